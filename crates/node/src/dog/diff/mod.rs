//! `dog volume diff | export-diff | import-diff`: what differs between two states of a volume, as
//! the daemon's change map tells it, shown or carried to a copy.

pub mod difference;
pub mod export;
pub mod import;
mod marker;
mod stream;
#[cfg(test)]
mod stream_tests;
mod target;

use super::{
    Context, Failure,
    export::size_of,
    interrupt::Interrupt,
    name::{Name, SnapshotName, VolumeName},
    source::interrupted,
    transfer::{self, Span},
};
use crate::nbd_client::{Changed, Command, NbdClient, Outcome};
use crate::size::Size;
use clap::Args;
use engine::admin::SnapshotReport;
use proto::{BLOCK_SIZE, Crc64, limits::DIFF_RECORD_BYTES_MAX};
use std::path::PathBuf;

const _: () = assert!(transfer::REQUEST_BYTES as usize <= DIFF_RECORD_BYTES_MAX);

/// How many blocks the sample of a snapshot has.
const SAMPLE_BLOCKS: u64 = 256;

/// `dog volume diff`.
#[derive(Debug, Args)]
pub struct Diff {
    /// The snapshot to compare with
    #[arg(value_name = "NAME@TAG")]
    pub from: SnapshotName,
    /// What is compared: a later snapshot of the same volume, or the volume, which nobody may have
    /// attached [default: the volume]
    pub to: Option<Name>,
}

/// `dog volume export-diff`.
#[derive(Debug, Args)]
pub struct ExportDiff {
    /// The snapshot NAME@TAG that the stream begins with. Left out with --full
    pub from: Name,
    /// What it leads to: a later snapshot of the same volume, or the volume, which nobody may have
    /// attached
    pub to: String,
    /// The file, or - for standard output
    pub file: Option<PathBuf>,
    /// Everything, for a copy that does not exist yet
    #[arg(long)]
    pub full: bool,
    /// Begin at this place of the volume: what lies before it has arrived already, as `dog volume
    /// import-diff` says
    #[arg(long, value_name = "OFFSET")]
    pub start: Option<Size>,
    /// Replace the file if it exists
    #[arg(long, visible_alias = "yes")]
    pub overwrite: bool,
}

/// `dog volume import-diff`.
#[derive(Debug, Args)]
pub struct ImportDiff {
    /// The stream, or - for standard input
    pub file: PathBuf,
    /// The volume that is brought from one state to the next. A full stream makes it
    pub name: VolumeName,
    /// Go on with an import that was interrupted, or that --keep-partial kept
    #[arg(long)]
    pub resume: bool,
    /// When it fails or is interrupted, keep what has arrived, to go on later with --resume
    #[arg(long)]
    pub keep_partial: bool,
}

/// Two states of a volume, both of which stay while this exists.
struct Pair {
    /// The snapshot it begins with, and what keeps it from being deleted meanwhile; nothing for
    /// nothing at all.
    from: Option<(SnapshotReport, NbdClient)>,
    /// The snapshot it leads to; nothing for the volume as it is.
    to: Option<SnapshotReport>,
    /// Of the latter.
    client: NbdClient,
}

impl Pair {
    /// Attaches both. Without `from`, block status is that of any volume.
    fn open(
        context: &Context,
        from: Option<&SnapshotName>,
        to: &Name,
        interrupt: &Interrupt,
    ) -> Result<Pair, Failure> {
        size_of(context, to)?;
        let Some(from) = from else {
            let client = context.attach(&to.to_string(), interrupt)?;
            return Ok(Pair { from: None, to: report_of(context, to)?, client });
        };
        check_volumes(from, to)?;
        let held = context.attach(&from.to_string(), interrupt)?;
        let report = context.snapshot(from)?;
        let client = context.attach_to_compare(&to.to_string(), &from.tag, interrupt)?;
        if client.export().context.is_none() {
            return Err(Failure::conflict(format!(
                "{from} is no state that {to} went through: it is later, or a rollback left it; \
                 `dog volume tree {}` shows what builds on what",
                from.volume
            )));
        }
        Ok(Pair { from: Some((report, held)), to: report_of(context, to)?, client })
    }

    /// Ends both attachments.
    fn close(self) -> Result<(), Failure> {
        self.client.disconnect()?;
        if let Some((_, held)) = self.from {
            held.disconnect()?;
        }
        Ok(())
    }
}

fn report_of(context: &Context, name: &Name) -> Result<Option<SnapshotReport>, Failure> {
    match name {
        Name::Volume(_) => Ok(None),
        Name::Snapshot(name) => context.snapshot(name).map(Some),
    }
}

/// Both states must be of one volume, and two.
fn check_volumes(from: &SnapshotName, to: &Name) -> Result<(), Failure> {
    let volume = match to {
        Name::Volume(volume) => volume,
        Name::Snapshot(name) => &name.volume,
    };
    if matches!(to, Name::Snapshot(to) if to == from) {
        return Err(Failure::usage(format!(
            "{from} stands there twice, and nothing differs between a snapshot and itself; name a \
             later snapshot, or volume {volume} for what was written since"
        )));
    }
    if *volume == from.volume {
        return Ok(());
    }
    Err(Failure::usage(format!(
        "{from} and {to} are of different volumes; compare a volume with one of its own snapshots"
    )))
}

/// What of a span differs, whole: neighbours of the same kind are one.
pub(super) fn changed(
    client: &mut NbdClient,
    span: Span,
    interrupt: &Interrupt,
) -> Result<Vec<Changed>, Failure> {
    let mut changes: Vec<Changed> = Vec::new();
    let mut position = span.start;
    while position < span.end {
        interrupted(interrupt)?;
        let length = (span.end - position).min(client.export().range_max());
        let told = client.call(Command::Difference { offset: position, length })?;
        let Outcome::Difference(told) = told else { return Err(Failure::mismatch()) };
        for run in told {
            position += run.length;
            match changes.last_mut() {
                Some(last) if (last.dirty, last.zero) == (run.dirty, run.zero) => {
                    last.length += run.length;
                }
                _ => changes.push(run),
            }
        }
    }
    Ok(changes)
}

/// The sample of what a snapshot contains.
fn sample(client: &mut NbdClient) -> Result<u64, Failure> {
    let blocks = client.export().bytes / BLOCK_SIZE as u64;
    let mut crc = Crc64::default();
    transfer::read_in_order(client, &sampled(blocks), |_, content| {
        crc.update(content);
        Ok(())
    })?;
    Ok(crc.finish())
}

/// Which of so many blocks are in a sample, evenly spread.
fn sampled(blocks: u64) -> Vec<Span> {
    let size = BLOCK_SIZE as u64;
    let mut numbers: Vec<u64> = (0..SAMPLE_BLOCKS)
        .map(|i| blocks / SAMPLE_BLOCKS * i + blocks % SAMPLE_BLOCKS * i / SAMPLE_BLOCKS)
        .collect();
    numbers.dedup();
    if blocks == 0 {
        numbers.clear();
    }
    numbers.iter().map(|number| Span { start: number * size, end: (number + 1) * size }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_has_each_block_once_and_reaches_far() {
        for (blocks, count, last) in
            [(0, 0, None), (1, 1, Some(0)), (3, 3, Some(2)), (256, 256, Some(255))]
        {
            let spans = sampled(blocks);
            assert_eq!((spans.len(), spans.last().map(|span| span.start / 4096)), (count, last));
        }
        let spans = sampled(1 << 38);
        assert_eq!((spans.len(), spans[255].end), (256, ((1 << 38) / 256 * 255 + 1) * 4096));
        let odd = sampled(1000);
        assert_eq!((odd.len(), odd[1].start, odd[255].start / 4096), (256, 3 * 4096, 996));
    }

    #[test]
    fn states_of_two_volumes_are_not_compared() {
        let from: SnapshotName = "a@x".parse().expect("a name");
        assert_eq!(check_volumes(&from, &"a".parse().expect("a name")), Ok(()));
        assert_eq!(check_volumes(&from, &"a@y".parse().expect("a name")), Ok(()));
        let failure = check_volumes(&from, &"b@x".parse().expect("a name")).expect_err("another");
        assert!(failure.sentence.contains("a@x and b@x"), "{failure}");
        let failure = check_volumes(&from, &"a@x".parse().expect("a name")).expect_err("itself");
        assert!(failure.sentence.contains("a@x stands there twice"), "{failure}");
    }
}
