//! One node's core: owns the agreed state, the disks' stores and the volumes' sessions, and routes
//! between them, the fronts and the administrators. The daemon performs its outputs on a real
//! machine, the simulator on a simulated one.
//!
//! It must never do I/O, read a clock, draw randomness or block. Its main type is [`Engine`]: made
//! by [`Engine::new`], it opens the journal and the disks, serves [`Input`]s, and ends with
//! [`Output::Stopped`] after [`Input::Stop`].
//!
//! Among several nodes it owns the links to the others. The driver has the sockets: it dials where
//! [`Output::Dial`] says, lets a `link::Greeter` read the first frame of what it accepts and hands
//! it to [`Engine::handle_accepted`], reads into [`Engine::peer_payload_target`] or hands bytes to
//! [`Engine::handle_peer_bytes`], and once a round writes what [`Engine::peers_with_output`] names.
//! At [`Engine::deadline`] it reads what is there before it hands in [`Input::Tick`]: a process
//! that was held up must not take the others for silent.
#![forbid(unsafe_code)]

pub mod admin;
mod attach;
mod disks;
mod engine;
mod layers;
mod names;
mod report;
mod routes;
mod shortening;
mod timetable;
pub mod unfinished;

pub use cluster::Founding;
pub use engine::Engine;
pub use link::CloseReason;
pub use report::is_missed;

use admin::{AdminError, AdminReply, AdminRequest, AdminToken};
use proto::{ClusterId, DiskDone, DiskId, DiskOp, Duration, NodeId};

/// Chosen by the driver for each connection of a front, never reused while the engine lives.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct ConnectionId(pub u64);

/// Who is at the other end of a connection: connections of equal clients share an attachment.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Client {
    /// What makes it this client: "pid 4711 started 88123" for a Unix socket's peer process, the
    /// connection itself for TCP.
    pub identity: String,
    /// In words, for people: "process 4711 (qemu-system-x86)", "127.0.0.1:40112".
    pub description: String,
}

/// What an engine is made with. Ids of a new node are drawn by the driver.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The cluster the node belongs to, or founds.
    pub cluster: ClusterId,
    /// The node.
    pub node: NodeId,
    /// What a blank journal's medium means: the cluster is founded here, or the node joins one that
    /// exists. Stays so until the node has served once, so that a start that was cut short is
    /// completed; from then on nothing, and a blank medium is one that lost its content.
    pub founding: Option<Founding>,
    /// Drawn for each start; names this process to the others.
    pub instance: u64,
    /// Drawn for each start; elections are drawn from it.
    pub seed: u64,
    /// Under which addresses the others reach this node, the best first; they are agreed when they
    /// are others than before. None: whatever is agreed stays.
    pub addresses: Vec<String>,
    /// Nodes that this one was told of, each with its addresses: where it looks for the cluster
    /// that it joins, and where it looks for a node besides the agreed addresses.
    pub seeds: Vec<(NodeId, Vec<String>)>,
    /// How long the journal's medium is, in bytes.
    pub journal_bytes: u64,
    /// The disks.
    pub disks: Vec<DiskSettings>,
    /// Seconds since 1970 at the start. Shown to people; what is about dates (schedules, locks, the
    /// trash) is decided by it, and nothing else.
    pub unix_s: u64,
    /// How long deleted volumes are kept in the trash unless told otherwise, in seconds; 0: not at
    /// all.
    pub trash_expiry_s: u64,
    /// How long after the start nothing is deleted for good because it has expired.
    pub trash_grace: Duration,
    /// How long a disk may be away before what it holds is built anew on others, as long as this
    /// node decides about that.
    pub rebuild_after: Duration,
    /// The machine's boot, as the system names it: see [`store::Options::boot`].
    pub boot: [u8; 16],
    /// The program's version, for reports.
    pub version: String,
    /// How many bytes a second are copied into each volume that is being filled or flattened; 0:
    /// as many as can be.
    pub fill_bytes_per_s: u64,
    /// Two to this power: the partitions of a cluster that is founded here.
    pub partition_bits: u8,
}

/// One disk of the node.
#[derive(Clone, Debug)]
pub struct DiskSettings {
    /// Its id: known from the node's own record, never guessed from the medium.
    pub disk: DiskId,
    /// Whether a blank medium is to be made a disk. Stays true until the node has served once, or,
    /// of a disk that is added to one that has, until [`Output::DiskAdded`] was heard: so that one
    /// that was cut short is completed. One that the agreed state has seen open is never made.
    pub format: bool,
    /// A file or a device.
    pub kind: store::MediumKind,
    /// The medium's present length in bytes.
    pub medium_bytes: u64,
    /// How much of the medium may be used at most, in bytes; nothing: as far as it grows.
    pub limit_bytes: Option<u64>,
    /// Bytes for cached map pages.
    pub map_cache_bytes: usize,
    /// Scrub rate in bytes a second; 0 is off.
    pub scrub_bytes_per_s: u64,
    /// The log's size for a new disk, in bytes; nothing: chosen by the disk's size.
    pub log_bytes: Option<u64>,
    /// Where it is, for reports.
    pub path: String,
    /// Why its medium cannot be used, in one sentence that names it, if it cannot: it is reported,
    /// and nothing is asked of it.
    pub refusal: Option<String>,
}

/// Names one question to a source. Answered exactly once.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct SourceId(pub u64);

/// What is asked of something that lies elsewhere.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SourceRequest {
    /// An NBD URI, or the path of a file.
    pub address: String,
    /// What.
    pub wanted: SourceWanted,
}

/// One question to a source.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SourceWanted {
    /// Its size. Answered by [`SourceReply::Opened`].
    Open,
    /// Its content, for all blocks that the bytes touch, with zeros behind them. Answered by
    /// [`volume::SourceAnswer::Data`].
    Read {
        /// How large it was when the volume was made: of another size, it is another source.
        bytes: u64,
        /// Where, a multiple of the block size.
        offset: u64,
        /// How many bytes.
        length: u64,
    },
    /// Which blocks are zeros for sure. Answered by [`volume::SourceAnswer::Map`].
    Map {
        /// See above.
        bytes: u64,
        /// Where, a multiple of the block size.
        offset: u64,
        /// How many bytes.
        length: u64,
    },
}

/// What a source has.
#[derive(Debug)]
pub enum SourceReply {
    /// It is there.
    Opened {
        /// Its size in bytes.
        bytes: u64,
        /// If it is served by this very process: the export's name.
        own_export: Option<String>,
    },
    /// What a session asked for.
    Answer(volume::SourceAnswer),
}

/// What comes in.
#[derive(Debug)]
pub enum Input {
    /// An operation on a disk's medium has ended.
    Disk {
        /// Which disk.
        disk: DiskId,
        /// How.
        done: DiskDone,
    },
    /// An operation on the journal's medium has ended.
    Journal(DiskDone),
    /// A connection wants to know the volumes it may attach. Answered by [`Output::Answer`].
    List {
        /// Whose question.
        connection: ConnectionId,
    },
    /// A connection wants to know one volume's size. Answered by [`Output::Answer`].
    Describe {
        /// Whose question.
        connection: ConnectionId,
        /// The volume.
        name: String,
    },
    /// A connection wants to know what a volume or snapshot can be compared with. Answered by
    /// [`Output::Answer`].
    Bases {
        /// Whose question.
        connection: ConnectionId,
        /// The volume or snapshot.
        name: String,
        /// Which of its bases.
        tags: volume::Tags,
    },
    /// A connection wants to attach a volume. Answered by [`Output::Answer`].
    Open {
        /// Whose question.
        connection: ConnectionId,
        /// Who is there.
        client: Client,
        /// The volume.
        name: String,
    },
    /// A request of a connection that has attached a volume. Its id is unique within the
    /// connection.
    Request {
        /// Whose request.
        connection: ConnectionId,
        /// What.
        request: volume::Request,
    },
    /// The connection is gone. Nothing is sent to it any more; its requests in flight run to their
    /// end. The last one of a client to go ends the attachment, and with it what is not begun.
    Close {
        /// Which.
        connection: ConnectionId,
    },
    /// An administrator's request. Answered by [`Output::Admin`].
    Admin {
        /// Comes back with the answer.
        token: AdminToken,
        /// What.
        request: AdminRequest,
    },
    /// What the file system under a disk's file still has free: wanted once before the disk's
    /// first operation and every few seconds. Reports depend on it, and how much is fetched of it
    /// ahead of need.
    MediumSpace {
        /// Which disk.
        disk: DiskId,
        /// Free for us, in bytes.
        free_bytes: u64,
    },
    /// What the wall clock shows now, in seconds since 1970: wanted now and then. A clock that was
    /// ahead at the start and was corrected since must not end a lock or the trash early.
    WallClock {
        /// Seconds since 1970.
        unix_s: u64,
    },
    /// Time may have come: see [`Engine::deadline`].
    Tick,
    /// Stop: disconnect clients, finish and flush what is in flight, close the disks.
    Stop,
    /// Something about a connection to another node; what is about its bytes are methods of
    /// [`Engine`].
    Peer {
        /// Which node.
        node: NodeId,
        /// What.
        input: PeerInput,
    },
    /// One more disk of this node, to be opened, or made one where its medium is blank and that is
    /// wanted. Answered by [`Output::DiskAdded`]. Its medium is there from now on.
    AddDisk(Box<DiskSettings>),
    /// A machine has asked to become a node. Answered by [`Output::Admin`], done once it is one.
    Admit {
        /// Comes back with the answer.
        token: admin::AdminToken,
        /// Who, and what it shows for it.
        applicant: cluster::Applicant,
        /// What people call it.
        name: String,
        /// Under which addresses the others reach it, the best first.
        addresses: Vec<String>,
    },
    /// A source answers, or the reason in a few words why it does not.
    Source {
        /// That of the question.
        token: SourceId,
        /// The answer.
        result: Result<SourceReply, String>,
    },
}

/// What a driver says of a connection to another node. A connection is named by the node and a
/// number that its link gave it; what is said of one that has ended is without effect.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PeerInput {
    /// The connection that [`Output::Dial`] asked for is there, and the other end is beyond doubt
    /// the node that was dialled.
    Dialled {
        /// That of the output.
        connection: u64,
        /// A random number, drawn for it.
        nonce: u64,
    },
    /// It cannot be had now; the output comes again.
    DialFailed {
        /// That of the output.
        connection: u64,
    },
    /// The connection was closed by the other end, or failed.
    Lost {
        /// Which one.
        connection: u64,
    },
}

/// What goes out.
#[derive(Debug)]
pub enum Output {
    /// Do this on a disk's medium.
    Disk {
        /// Which disk.
        disk: DiskId,
        /// What.
        op: DiskOp,
    },
    /// Do this on the journal's medium.
    Journal(DiskOp),
    /// The node serves: disks are open and the agreed state is known.
    Ready,
    /// The node cannot serve, and why: one sentence with cause and remedy. The driver exits.
    Failed(String),
    /// Everything is closed; the driver exits.
    Stopped,
    /// The answer to List, Describe, Bases or Open.
    Answer {
        /// Whose question.
        connection: ConnectionId,
        /// The answer.
        answer: volume::Answer,
    },
    /// The end of a request.
    Complete {
        /// Whose request.
        connection: ConnectionId,
        /// Which.
        id: volume::RequestId,
        /// How it ended.
        result: Result<volume::Completion, volume::Error>,
    },
    /// The volume of this connection has another size now.
    Resized {
        /// Whose volume.
        connection: ConnectionId,
        /// The new size in bytes.
        bytes: u64,
    },
    /// Close this connection, after the replies it still has to get. The driver answers with
    /// [`Input::Close`].
    Disconnect {
        /// Which.
        connection: ConnectionId,
        /// Why, for the log.
        reason: &'static str,
    },
    /// The answer to an administrator.
    Admin {
        /// That of the request.
        token: AdminToken,
        /// The answer.
        result: Box<Result<AdminReply, AdminError>>,
    },
    /// Something for the log.
    Notice {
        /// How loud.
        level: NoticeLevel,
        /// One sentence.
        sentence: String,
    },
    /// Connect to another node, at the first of these addresses that answers; none are known, and
    /// that is a failure too. Answered by [`PeerInput::Dialled`] or [`PeerInput::DialFailed`],
    /// unless [`Output::Hangup`] comes before.
    Dial {
        /// Which node: no other may answer.
        node: NodeId,
        /// Names the connection from now on.
        connection: u64,
        /// Where, the best first.
        addresses: Vec<String>,
    },
    /// Close this connection, or stop connecting. Nothing is said of it any more.
    Hangup {
        /// To which node.
        node: NodeId,
        /// Which one.
        connection: u64,
        /// To be written before, if the socket takes it at once.
        farewell: Vec<u8>,
        /// Why, for the log.
        reason: CloseReason,
    },
    /// The end of [`Input::AddDisk`], or of a disk to be made of a node that has served: the disk
    /// is one of the cluster's now, or why not, in one sentence with cause and remedy. Then its
    /// medium is not used any more, and never served anything.
    DiskAdded {
        /// Which disk.
        disk: DiskId,
        /// Whether it is.
        result: Result<(), String>,
    },
    /// A disk was taken out of the cluster and is closed. Its medium is not used any more, and at
    /// the next start it is no disk of this node.
    DiskGone {
        /// Which disk.
        disk: DiskId,
    },
    /// Ask a source. Answered by [`Input::Source`], in any order, within a bounded time.
    Source {
        /// Comes back with the answer.
        token: SourceId,
        /// What.
        request: SourceRequest,
    },
}

/// How loud a notice is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NoticeLevel {
    /// Worth knowing.
    Info,
    /// Something is damaged or short, and was dealt with.
    Warning,
    /// Somebody must act.
    Error,
}
