//! Every command, option and default of `dog`, once: parsing, help, man pages and completions are
//! produced from here.

mod machines;

pub use super::diff::{Diff, ExportDiff, ImportDiff};
pub use machines::{ClusterVerb, DiskChoice, DiskVerb, NodeVerb, ScrubVerb};

use super::{
    cluster::{EXPIRES_DEFAULT, TokenName},
    failure::EXIT_CODES_HELP,
    freeze,
    moment::Moment,
    name::{GroupName, GroupOrSnapshotName, GroupSnapshotName, Name, SnapshotName, VolumeName},
};
use crate::{
    api::{DATA_DIRECTORY_DEFAULT, DATA_DIRECTORY_VARIABLE},
    size::Size,
    span::Span,
};
use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use engine::admin::Durability;
use std::path::PathBuf;

/// Manages the volumes and disks of a sheepdog node
///
/// dog asks the sheep of this machine over its admin socket, DIR/admin.sock, and moves data over
/// its NBD socket, DIR/nbd.sock. Sizes, offsets and lengths are bytes, or numbers with K, M, G, T
/// or P, powers of 1024.
#[derive(Debug, Parser)]
#[command(name = "dog", version, after_help = EXIT_CODES_HELP, max_term_width = 100)]
pub struct Arguments {
    /// Where and how to ask.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub noun: Noun,
}

/// Options of every command.
#[derive(Debug, Args)]
pub struct Global {
    /// Data directory of the node to ask
    #[arg(
        long,
        global = true,
        value_name = "DIR",
        env = DATA_DIRECTORY_VARIABLE,
        default_value = DATA_DIRECTORY_DEFAULT
    )]
    pub data: PathBuf,
    /// Admin socket of the node [default: DIR/admin.sock]
    #[arg(long, global = true, value_name = "PATH")]
    pub socket: Option<PathBuf>,
    /// NBD socket of the node [default: DIR/nbd.sock]
    #[arg(long, global = true, value_name = "PATH")]
    pub nbd_socket: Option<PathBuf>,
    /// Print JSON instead of tables and sentences
    #[arg(long, global = true)]
    pub json: bool,
}

/// What a command is about.
#[derive(Debug, Subcommand)]
pub enum Noun {
    /// Virtual disks: create, list, resize, snapshot, clone, import, export, attach
    #[command(subcommand)]
    Volume(VolumeVerb),
    /// Groups of volumes whose snapshots are taken at one moment
    #[command(subcommand)]
    Group(GroupVerb),
    /// Disks: list, add, scrub, drain, take out
    #[command(subcommand)]
    Disk(DiskVerb),
    /// Nodes of the cluster: list, drain, take out
    #[command(subcommand)]
    Node(NodeVerb),
    /// Is all well, and how full is it? Exits with 1 when something is wrong
    Status,
    /// Measure the node with the job set on a scratch volume, which is deleted again
    Bench(Bench),
    /// Snapshots that are taken again and again: set, remove, list
    #[command(subcommand)]
    Schedule(ScheduleVerb),
    /// Print shell completions, which complete the names of volumes, snapshots and disks too
    Completions {
        /// For which shell
        shell: Shell,
    },
    /// Write the manual pages into a directory
    Man {
        /// An existing directory, such as /usr/local/share/man/man1
        directory: PathBuf,
    },
    /// Deleted volumes: list, take out again, delete for good
    #[command(subcommand)]
    Trash(TrashVerb),
    /// The cluster: is anything at risk, and let other machines join
    #[command(subcommand)]
    Cluster(ClusterVerb),
    /// Print what may stand where the last word does; what the shells' completions ask
    #[command(hide = true)]
    Complete {
        /// The command line up to the cursor, from the program's name on
        #[arg(last = true)]
        words: Vec<String>,
    },
}

/// What to do with tokens that there are.
#[derive(Debug, Subcommand)]
pub enum TokenVerb {
    /// Let a token let nobody in any more; nodes that came by it stay
    Revoke {
        /// Its 16 digits, as `dog cluster token list` shows them, or the whole token
        token: TokenName,
    },
    /// List the tokens that there are, without their secrets
    List,
}

/// A new token.
#[derive(Debug, Args)]
pub struct TokenOptions {
    /// How long it holds
    #[arg(long, value_name = "SPAN", default_value_t = EXPIRES_DEFAULT)]
    pub expires: Span,
    /// How many machines it lets in
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub uses: u32,
}

/// What to do with a volume.
#[derive(Debug, Subcommand)]
pub enum VolumeVerb {
    /// Make a new, empty volume; it takes space only as it is written. With --from, it has the
    /// content of something that lies elsewhere
    Create {
        /// Its name
        name: String,
        /// Its size, a multiple of 4096 bytes [with --from: the source's, rounded up]
        #[arg(allow_negative_numbers = true, required_unless_present = "from")]
        size: Option<Size>,
        /// Where its content is: nbd://HOST:PORT/EXPORT, nbd+unix:///EXPORT?socket=PATH, or the
        /// path of a raw file or device. The volume can be used at once and is filled in the
        /// background, also after a restart; until that is done, the source must stay what it is
        #[arg(long, value_name = "ADDRESS")]
        from: Option<String>,
        /// Show the progress and return when the volume is filled
        #[arg(long, requires = "from")]
        wait: bool,
        #[command(flatten)]
        kept: Keeping,
    },
    /// Change when what is written is stable, or how few copies of a volume may be left; or how
    /// many are kept, as long as the cluster has a single disk
    Set {
        /// Its name
        name: VolumeName,
        #[command(flatten)]
        kept: Keeping,
    },
    /// List all volumes
    List,
    /// Show everything about one volume or snapshot
    Info {
        /// A volume, or a snapshot as NAME@TAG
        name: Name,
    },
    /// Change a volume's size, while it is attached or not
    Resize {
        /// Its name
        name: VolumeName,
        /// The new size, a multiple of 4096 bytes
        #[arg(allow_negative_numbers = true)]
        size: Size,
        /// Allow a smaller size: what lies beyond it is lost
        #[arg(long, visible_alias = "yes")]
        allow_shrink: bool,
        /// Then drop the connection of its client, so that it reconnects and learns the new size.
        /// Only for clients that do reconnect, as QEMU does with reconnect-delay; others get
        /// errors
        #[arg(long)]
        reconnect: bool,
    },
    /// Give a volume another name
    Rename {
        /// Its name
        name: VolumeName,
        /// The name it gets
        new_name: String,
        /// Rename it though a client has it, which will not get it again under the old name
        #[arg(long)]
        while_attached: bool,
    },
    /// Put a volume into the trash, or delete one snapshot for good
    Delete {
        /// A volume, or a snapshot as NAME@TAG
        name: Name,
        /// Really delete a snapshot, or with --now a volume: this cannot be undone
        #[arg(long, short)]
        yes: bool,
        /// Delete the volume's snapshots too. Its clones stay
        #[arg(long)]
        with_snapshots: bool,
        /// Delete the volume for good and give its space back, instead of keeping it in the trash
        #[arg(long)]
        now: bool,
        /// How long the volume is kept in the trash [default: what the node is set to]
        #[arg(long, value_name = "TIME", conflicts_with = "now")]
        keep: Option<Span>,
    },
    /// Take a snapshot of a volume, while it is attached or not. It can be read when this returns
    Snapshot {
        /// The volume and the new snapshot's tag
        #[arg(value_name = "NAME@TAG")]
        name: SnapshotName,
        #[command(flatten)]
        freeze: FreezeOptions,
    },
    /// List the snapshots of a volume
    Snapshots {
        /// The volume's name
        name: VolumeName,
        /// Show what deleting each would free. This looks at every object of the volume, so it
        /// takes a while for large ones
        #[arg(long)]
        reclaimable: bool,
    },
    /// Make a new volume with the content of a snapshot, at once; both share their data
    Clone {
        /// The snapshot
        #[arg(value_name = "NAME@TAG")]
        name: SnapshotName,
        /// The new volume's name
        new_name: String,
    },
    /// Give a volume that nobody has attached the content and size of one of its snapshots. All its
    /// snapshots stay
    Rollback {
        /// The snapshot
        #[arg(value_name = "NAME@TAG")]
        name: SnapshotName,
        /// Really do it, though what was written since the last snapshot is lost
        #[arg(long, short)]
        yes: bool,
    },
    /// Copy what a clone shares with its snapshot, or a volume with its source, so that it needs it
    /// no more. This goes on in the background, also after a restart
    Flatten {
        /// The clone's name
        name: VolumeName,
        /// Stop it instead; what was copied stays copied
        #[arg(long, conflicts_with = "wait")]
        stop: bool,
        /// Show the progress and return when it is done
        #[arg(long)]
        wait: bool,
    },
    /// Show which volumes, snapshots and clones build on which
    Tree {
        /// Only what belongs to this volume, and what it builds on
        name: Option<VolumeName>,
    },
    /// Show how the copies of a volume are: what is away or being built, what is waited for, which
    /// loss would hurt, and when all will be whole
    Explain {
        /// Its name
        name: VolumeName,
    },
    /// Show on which disks of which nodes a volume has its place, or one of its objects
    Locate {
        /// Its name
        name: VolumeName,
        /// Only this object: the volume in pieces of 4 MiB, counted from 0
        #[arg(long, value_name = "N")]
        index: Option<u64>,
    },
    /// Fill a volume from a disk image or from standard input
    Import(Import),
    /// Save a volume or a snapshot as a disk image or to standard output
    Export(Export),
    /// Read bytes of a volume or snapshot
    Read {
        /// A volume, or a snapshot as NAME@TAG
        name: Name,
        #[command(flatten)]
        range: Range,
        /// File to write them to; without it or with -, standard output
        file: Option<PathBuf>,
        /// Replace the file if it exists
        #[arg(long, visible_alias = "yes")]
        overwrite: bool,
    },
    /// Write bytes into a volume
    Write {
        /// Its name
        name: VolumeName,
        /// Where to, a multiple of 512 bytes
        #[arg(long)]
        offset: Size,
        /// File to take them from; without it, standard input. Its length must be a multiple of
        /// 512 bytes
        file: Option<PathBuf>,
        /// Put each write on stable media before the next is counted as done
        #[arg(long)]
        fua: bool,
    },
    /// Make a range of a volume read as zeros
    Zero {
        /// Its name
        name: VolumeName,
        #[command(flatten)]
        range: Range,
        /// Keep the space allocated
        #[arg(long)]
        no_unmap: bool,
        /// Fail where zeroing would be as slow as writing
        #[arg(long)]
        fast: bool,
    },
    /// Give a range of a volume back as unused
    Discard {
        /// Its name
        name: VolumeName,
        #[command(flatten)]
        range: Range,
    },
    /// Put everything written to a volume on stable media
    Flush {
        /// Its name
        name: VolumeName,
    },
    /// Show which ranges of a volume or snapshot hold data
    Map {
        /// A volume, or a snapshot as NAME@TAG
        name: Name,
    },
    /// Print the QEMU arguments and the libvirt XML that attach a volume to a virtual machine, or a
    /// snapshot, read-only, to any number of them
    Attach {
        /// A volume, or a snapshot as NAME@TAG
        name: Name,
        /// How long a guest's I/O waits for a sheep that went away before it fails, in seconds
        #[arg(long, default_value_t = 3600, value_name = "SECONDS")]
        reconnect_delay: u32,
        /// The disk's name in the guest's XML
        #[arg(long, default_value = "vda", value_name = "NAME")]
        target: String,
    },
    /// Drop the connection of a volume's client, so that it reconnects and learns a new size
    Reconnect {
        /// Its name
        name: VolumeName,
    },
    /// End the attachment of a volume or snapshot on whichever node, so that another one can have
    /// it: also of a node that died
    ///
    /// A client that is still there is disconnected and loses what was not acknowledged to it. One
    /// that reconnects by itself may be the next to have the volume again: stop it first, if that
    /// can be done.
    Detach {
        /// A volume, or a snapshot as NAME@TAG
        name: Name,
        /// End it though its client has not asked for that
        #[arg(long, required = true)]
        force: bool,
        /// Really do it: a guest that is still there loses its disk
        #[arg(long, short)]
        yes: bool,
    },
    /// Show what was written to a volume, or to a later snapshot of it, since a snapshot
    Diff(Diff),
    /// Save what was written since a snapshot as a stream of changes, for `import-diff`
    ExportDiff(ExportDiff),
    /// Bring a copy of a volume from the state of one snapshot to that of the next
    ImportDiff(ImportDiff),
    /// Lock a snapshot: until that date nobody can delete it, nor its volume. This cannot be undone
    Lock {
        /// The snapshot
        #[arg(value_name = "NAME@TAG")]
        name: SnapshotName,
        /// Until when, in universal time: 2026-12-31 (when that day begins), 2026-12-31T12:00Z, or
        /// +30d from now
        #[arg(long, value_name = "DATE", allow_hyphen_values = true)]
        until: Moment,
        /// Really lock it for more than ten years
        #[arg(long, short)]
        yes: bool,
    },
}

/// What to do with deleted volumes.
#[derive(Debug, Subcommand)]
pub enum TrashVerb {
    /// List the volumes in the trash, the soonest to go first
    List,
    /// Take a volume out of the trash, with all its snapshots
    Undelete {
        /// The name it had, or its id where several had that name
        #[arg(value_name = "NAME|ID")]
        which: String,
        /// Give it another name
        #[arg(long)]
        name: Option<String>,
    },
    /// Delete what is in the trash for good
    #[command(override_usage = "dog trash purge [OPTIONS] <NAME|ID|--all>")]
    Purge {
        /// The name it had, or its id where several had that name
        #[arg(value_name = "NAME|ID", required_unless_present = "all")]
        which: Option<String>,
        /// Everything that is in the trash
        #[arg(long, conflicts_with = "which")]
        all: bool,
        /// Really do it: this cannot be undone
        #[arg(long, short)]
        yes: bool,
    },
}

/// A range of bytes.
#[derive(Debug, Args)]
pub struct Range {
    /// Where it starts, a multiple of 512 bytes
    #[arg(long)]
    pub offset: Size,
    /// How long it is, a multiple of 512 bytes
    #[arg(long)]
    pub length: Size,
}

/// `dog volume import`.
#[derive(Debug, Args)]
pub struct Import {
    /// The image, or - for standard input
    pub file: PathBuf,
    /// The volume's name
    pub name: String,
    /// The volume's size [default: the image's, rounded up to 4096 bytes]
    #[arg(long)]
    pub size: Option<Size>,
    /// The image's format, as `qemu-img` names it. Without it, qcow2, vhdx, vdi and vpc images
    /// that stand alone are recognised, and everything else is raw
    #[arg(long)]
    pub format: Option<String>,
    /// Replace the content of a volume that exists
    #[arg(long, visible_alias = "yes")]
    pub overwrite: bool,
    /// Keep the volume when the import fails or is interrupted
    #[arg(long)]
    pub keep_partial: bool,
    #[command(flatten)]
    pub kept: Keeping,
}

impl Keeping {
    /// Whether anything is said of it.
    pub fn is_said(&self) -> bool {
        self.is_of_copies() || self.durability.is_some()
    }

    /// Whether anything is said of the number of copies.
    pub fn is_of_copies(&self) -> bool {
        self.copies.is_some() || self.min_copies.is_some()
    }
}

/// How a volume is kept.
#[derive(Clone, Copy, Debug, Args)]
pub struct Keeping {
    /// How many copies are kept, each on a disk of its own, 1 to 5 [for a new volume: 3]. With
    /// fewer disks there are fewer, until there are more
    #[arg(long, value_name = "COUNT")]
    pub copies: Option<u8>,
    /// A copy that is away is left out only if so many are left, unless there never were so many;
    /// of those that are not left out a majority must have a write [half of the copies, rounded
    /// up]
    #[arg(long, value_name = "COUNT")]
    pub min_copies: Option<u8>,
    /// When what is written is on stable media: `flush`, once the guest has flushed, as with any
    /// disk; or `ack`, whenever it is acknowledged, which costs a flush each time [for a new
    /// volume: flush]
    #[arg(long, value_name = "WHEN", value_enum)]
    pub durability: Option<Promise>,
}

/// When what is written is stable.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum Promise {
    /// After a flush
    Flush,
    /// When it is acknowledged
    Ack,
}

impl From<Promise> for Durability {
    fn from(promise: Promise) -> Durability {
        match promise {
            Promise::Flush => Durability::Flush,
            Promise::Ack => Durability::Ack,
        }
    }
}

/// `dog volume export`.
#[derive(Debug, Args)]
pub struct Export {
    /// A volume, or a snapshot as NAME@TAG. While somebody has the volume attached, take a snapshot
    /// and export that
    pub name: Name,
    /// The file, or - for standard output
    pub file: PathBuf,
    /// The image's format
    #[arg(long, value_enum, default_value_t = ExportFormat::Raw)]
    pub format: ExportFormat,
    /// Replace the file if it exists
    #[arg(long, visible_alias = "yes")]
    pub overwrite: bool,
}

/// What an export is written as.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub enum ExportFormat {
    /// The bytes as they are; a file is sparse
    Raw,
    /// QEMU's own format, through `qemu-img`
    Qcow2,
}

/// What to do with groups of volumes.
#[derive(Debug, Subcommand)]
pub enum GroupVerb {
    /// Make a group of volumes
    Create {
        /// Its name
        name: String,
        /// Its volumes; more can be added later, and without one it can have no snapshot
        volumes: Vec<VolumeName>,
    },
    /// Delete a group, while its volumes and all snapshots stay; or delete a snapshot of a group,
    /// in all of its volumes
    Delete {
        /// A group, or a snapshot of it as NAME@TAG
        name: GroupOrSnapshotName,
        /// Really delete the snapshot: there is no way back to it then. A group alone needs this
        /// not
        #[arg(long, short)]
        yes: bool,
    },
    /// List all groups
    List,
    /// Show the volumes and snapshots of a group, or one of its snapshots
    Info {
        /// A group, or a snapshot of it as NAME@TAG
        name: GroupOrSnapshotName,
    },
    /// Add volumes to a group
    Add {
        /// The group's name
        name: GroupName,
        /// Which volumes
        #[arg(required = true)]
        volumes: Vec<VolumeName>,
    },
    /// Take volumes out of a group; their snapshots stay
    Remove {
        /// The group's name
        name: GroupName,
        /// Which volumes
        #[arg(required = true)]
        volumes: Vec<VolumeName>,
    },
    /// Take a snapshot of all volumes of a group at one moment, while they are attached or not. It
    /// can be read when this returns
    Snapshot {
        /// The group and the new snapshot's tag, which each volume's snapshot gets
        #[arg(value_name = "NAME@TAG")]
        name: GroupSnapshotName,
        #[command(flatten)]
        freeze: FreezeOptions,
    },
    /// Give all volumes of a group snapshot the content and size they had then, or none of them.
    /// Nobody may have one of them attached
    Rollback {
        /// The group and the snapshot's tag
        #[arg(value_name = "NAME@TAG")]
        name: GroupSnapshotName,
        /// Really do it: what was written since the last snapshots is lost
        #[arg(long, short)]
        yes: bool,
    },
}

/// Guests that stand still for a snapshot.
#[derive(Debug, Args)]
pub struct FreezeOptions {
    /// Let a guest stand still meanwhile: the socket of its guest agent, whose file systems are
    /// frozen, or of QEMU's monitor (QMP), whose processors are stopped. May be given several times
    #[arg(long, value_name = "SOCKET")]
    pub freeze: Vec<PathBuf>,
    /// How long guests stand still at most: they go on after that whatever happens, and what was
    /// not done by then counts as failed. A number with ms, s or m
    #[arg(long, value_name = "TIME", default_value = "10s", requires = "freeze")]
    #[arg(value_parser = freeze::deadline)]
    pub freeze_deadline: Span,
}

/// What to do about schedules.
#[derive(Debug, Subcommand)]
pub enum ScheduleVerb {
    /// Have snapshots NAME-DATE taken of a volume again and again, or otherwise than until now
    ///
    /// Time is counted from 1970 in slots of the given length, in universal time: every 1h is on
    /// the hour, every 1d at midnight. Each slot gets one snapshot, when it begins; what was missed
    /// while sheep did not run is not made up for, but for the present slot.
    Set {
        /// The volume's name
        volume: VolumeName,
        /// The schedule's name, of which a volume can have several
        #[arg(value_name = "NAME")]
        schedule: String,
        /// One snapshot in this time, as in 15m, 1h or 7d; one minute to 366 days
        #[arg(long)]
        every: Span,
        /// How many are kept. Beyond that the oldest is deleted, unless it is locked or being read
        #[arg(long)]
        keep: u32,
    },
    /// Take no more of them. Those that were taken stay
    Remove {
        /// The volume's name
        volume: VolumeName,
        /// The schedule's name
        #[arg(value_name = "NAME")]
        schedule: String,
    },
    /// List schedules: when the next snapshot is due, and why the last one could not be taken
    List {
        /// Only those of this volume
        volume: Option<VolumeName>,
    },
}

/// `dog bench`.
#[derive(Debug, Args)]
pub struct Bench {
    /// How long each job runs
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=3600))]
    pub seconds: u32,
    /// How large the scratch volume is; all of it is written first
    #[arg(long, default_value = "1G")]
    pub size: Size,
    /// Run only this job; may be given several times [default: all]
    #[arg(long, value_name = "JOB")]
    pub job: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn parse(line: &str) -> Result<Arguments, clap::Error> {
        Arguments::try_parse_from(line.split_whitespace())
    }

    #[test]
    fn definitions_are_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn commands_of_the_manual_parse() {
        for line in [
            "dog volume create disk1 20G",
            "dog volume create disk1 --from nbd://host/export",
            "dog volume create disk1 20G --from image.raw --wait",
            "dog volume list --json",
            "dog --json volume info disk1",
            "dog volume resize disk1 30G",
            "dog volume resize disk1 10G --allow-shrink",
            "dog volume resize disk1 10G --yes",
            "dog volume resize disk1 40G --reconnect",
            "dog volume rename disk1 disk2",
            "dog volume rename disk1 disk2 --while-attached",
            "dog volume delete disk1 --yes",
            "dog volume delete disk1 --yes --with-snapshots",
            "dog volume delete disk1@monday --yes",
            "dog volume delete disk1",
            "dog volume delete disk1 --now --yes",
            "dog volume delete disk1 --keep 7d",
            "dog volume lock disk1@monday --until 2026-12-31",
            "dog volume lock disk1@monday --until 2026-12-31T12:00Z",
            "dog volume lock disk1@monday --until +30d",
            "dog volume lock disk1@monday --until 2099-12-31 --yes",
            "dog trash list",
            "dog trash undelete disk1",
            "dog trash undelete 17 --name disk2",
            "dog trash purge disk1 --yes",
            "dog trash purge --all --yes",
            "dog volume snapshot disk1@monday",
            "dog volume snapshot disk1@monday --freeze /run/ga.sock --freeze-deadline 5s",
            "dog group create db data log",
            "dog group create db",
            "dog group add db data log",
            "dog group remove db log",
            "dog group list --json",
            "dog group info db",
            "dog group info db@monday",
            "dog group snapshot db@monday",
            "dog group snapshot db@monday --freeze a.sock --freeze b.sock --freeze-deadline 500ms",
            "dog group rollback db@monday --yes",
            "dog group delete db@monday --yes",
            "dog group delete db",
            "dog volume snapshots disk1",
            "dog volume snapshots disk1 --reclaimable --json",
            "dog volume info disk1@monday",
            "dog volume clone disk1@monday disk2",
            "dog volume rollback disk1@monday --yes",
            "dog volume flatten disk2",
            "dog volume flatten disk2 --stop",
            "dog volume flatten disk2 --wait",
            "dog volume tree",
            "dog volume tree disk2",
            "dog volume import - disk1 --size 1G",
            "dog volume import image.qcow2 disk1 --format qcow2 --overwrite",
            "dog volume export disk1 -",
            "dog volume export disk1 disk1.qcow2 --format qcow2",
            "dog volume export disk1@monday disk1.raw",
            "dog volume read disk1@monday --offset 0 --length 4K",
            "dog volume map disk1@monday",
            "dog volume attach disk1@monday",
            "dog volume read disk1 --offset 0 --length 4K",
            "dog volume read disk1 --offset 0 --length 4K file",
            "dog volume write disk1 --offset 1M file --fua",
            "dog volume zero disk1 --offset 0 --length 1M --no-unmap --fast",
            "dog volume discard disk1 --offset 0 --length 1M",
            "dog volume flush disk1",
            "dog volume map disk1",
            "dog volume attach disk1 --reconnect-delay 60",
            "dog volume reconnect disk1",
            "dog volume diff disk1@monday",
            "dog volume diff disk1@monday disk1 --json",
            "dog volume diff disk1@monday disk1@tuesday",
            "dog volume export-diff disk1@monday disk1@tuesday changes",
            "dog volume export-diff disk1@monday disk1 -",
            "dog volume export-diff disk1@a disk1@b --start 4096 -",
            "dog volume export-diff --full disk1@monday - --start 4G",
            "dog volume import-diff - copy",
            "dog volume import-diff changes copy --resume --keep-partial",
            "dog disk list",
            "dog disk drain 00112233445566778899aabbccddeeff",
            "dog disk undrain 00112233445566778899aabbccddeeff",
            "dog disk remove 00112233445566778899aabbccddeeff --yes",
            "dog cluster status --json",
            "dog cluster token --uses 2",
            "dog node list",
            "dog node drain n1",
            "dog node undrain n1",
            "dog node remove n1",
            "dog node remove n1 --yes",
            "dog cluster recover",
            "dog cluster recover --lost n4 --lost n5 --yes",
            "dog volume detach disk1 --force --yes",
            "dog volume detach disk1@monday --force",
            "dog disk scrub start",
            "dog disk scrub stop --disk 00112233445566778899aabbccddeeff",
            "dog disk scrub rate 10M",
            "dog node info --data /srv/sheep",
            "dog status --socket /run/sheep.sock",
            "dog bench --seconds 2 --size 256M --job rw-4k-q1 --job rr-4k-q1",
            "dog completions bash",
            "dog complete -- dog volume info --",
            "dog schedule set disk1 hourly --every 1h --keep 24",
            "dog schedule remove disk1 hourly",
            "dog schedule list",
            "dog schedule list disk1 --json",
            "dog man /tmp",
        ] {
            if let Err(error) = parse(line) {
                panic!("{line}: {error}");
            }
        }
    }

    #[test]
    fn nonsense_is_a_usage_error() {
        for line in [
            "dog",
            "dog volume",
            "dog volume create disk1",
            "dog volume create disk1 20X",
            "dog volume create disk1 20G --wait",
            "dog volume create disk1 -5",
            "dog volume read disk1 --offset 0",
            "dog volume export disk1 file --format vmdk",
            "dog volume snapshot disk1",
            "dog volume snapshot disk1@a --freeze-deadline 5s",
            "dog group snapshot db@a --freeze s --freeze-deadline 1h",
            "dog group add db",
            "dog group create db data@monday",
            "dog volume snapshot disk1@",
            "dog volume snapshot disk1@a@b",
            "dog volume snapshots disk1@monday",
            "dog volume resize disk1@monday 20G",
            "dog volume write disk1@monday --offset 0",
            "dog volume clone disk1 disk2",
            "dog volume flatten disk2 --stop --wait",
            "dog volume diff disk1",
            "dog volume export-diff disk1@monday",
            "dog volume export-diff disk1@a disk1@b disk1@c file",
            "dog volume import-diff - copy@monday",
            "dog volume delete disk1 --keep 7d --now",
            "dog volume delete disk1 --keep soon",
            "dog volume lock disk1 --until +30d",
            "dog volume lock disk1@monday",
            "dog volume lock disk1@monday --until tomorrow",
            "dog trash",
            "dog trash purge",
            "dog trash purge disk1 --all",
            "dog disk scrub",
            "dog disk drain 00",
            "dog disk remove",
            "dog node drain",
            "dog volume detach disk1",
            "dog disk scrub stop --disk 00",
            "dog bench --seconds 0",
            "dog completions cmd",
            "dog schedule set disk1 hourly --every 1h",
            "dog schedule set disk1 hourly --every 60 --keep 24",
            "dog schedule set disk1@monday hourly --every 1h --keep 24",
            "dog volume list surplus",
        ] {
            let error = parse(line).expect_err(line);
            assert_eq!(error.exit_code(), 2, "{line}");
        }
    }
}
