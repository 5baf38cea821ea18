//! Why a connection between nodes ends.

use proto::limits;
use proto::wire::note::Farewell;
use proto::wire::{Era, FrameError};
use proto::{ClusterId, NodeId};

/// Why a connection ended, or never came to be, in words for a log.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CloseReason {
    /// The driver could not connect.
    #[error("the node cannot be reached; see that it runs and that its address is right")]
    Unreachable,
    /// Dialling took more than `LINK_CONNECT_MS_MAX`.
    #[error(
        "the node did not answer within {} s; see that it runs and the network lets it through",
        limits::LINK_CONNECT_MS_MAX / 1000
    )]
    ConnectTooSlow,
    /// The peer closed its socket, or it failed.
    #[error("the connection broke; it is made anew")]
    Broken,
    /// The hello took more than `LINK_HELLO_MS_MAX`.
    #[error(
        "the other side did not say who it is within {} s; see what runs at that address",
        limits::LINK_HELLO_MS_MAX / 1000
    )]
    HelloTooSlow,
    /// A frame took more than `LINK_FRAME_MS_MAX` to arrive.
    #[error("the node stopped in the middle of a message; see the network and its load")]
    FrameTooSlow,
    /// Nothing came for `LINK_SILENT_MS_MAX`.
    #[error(
        "the node has been silent for {} s; see that it runs",
        limits::LINK_SILENT_MS_MAX / 1000
    )]
    Silent,
    /// Output was not read for `LINK_STALL_MS_MAX`.
    #[error("the node does not read what it is sent; see the network and its load")]
    NotReading,
    /// This side wanted to.
    #[error("this node ends the connection; nothing is to be done")]
    Stopped,
    /// The peer has connected anew.
    #[error("the node has connected anew; nothing is to be done")]
    Superseded,
    /// The peer said goodbye.
    #[error("the node ended the connection: {text}")]
    Said {
        /// Why, for what to do next.
        why: Farewell,
        /// In its words.
        text: String,
    },
    /// What came is no frame, or a damaged one.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The other side belongs to another cluster.
    #[error("the node belongs to cluster {theirs} and this one to {ours}; correct the address")]
    OtherCluster {
        /// Its cluster.
        theirs: ClusterId,
        /// Ours.
        ours: ClusterId,
    },
    /// The other side is not in the map.
    #[error("node {node} is not a member of this cluster; let it join first")]
    UnknownNode {
        /// Its id.
        node: NodeId,
    },
    /// The other side has this node's id.
    #[error(
        "the other side is node {node}, as this one is; if its disks are a copy of this node's, \
         stop it, else correct the address"
    )]
    OwnIdentity {
        /// The id of both.
        node: NodeId,
    },
    /// Another node answers than the one that was dialled.
    #[error("node {found} answers at the address of node {wanted}; correct the address")]
    OtherNode {
        /// Who should have.
        wanted: NodeId,
        /// Who did.
        found: NodeId,
    },
    /// The hello is meant for another node than this one.
    #[error("the node took this one, {own}, for node {meant}; correct the address it has")]
    MeantForAnother {
        /// This node.
        own: NodeId,
        /// Whom it wanted.
        meant: NodeId,
    },
    /// No version in common.
    #[error(
        "the node speaks versions {theirs_min} to {theirs_max} and this one {ours_min} to \
         {ours_max}; upgrade the older one first"
    )]
    NoCommonVersion {
        /// Its lowest.
        theirs_min: u16,
        /// Its highest.
        theirs_max: u16,
        /// Our lowest.
        ours_min: u16,
        /// Our highest.
        ours_max: u16,
    },
    /// Two processes say that they are this node.
    #[error(
        "node {node} runs twice, from copies of one data directory; stop the copy that was started \
         last, and never start it again"
    )]
    Twin {
        /// Its id.
        node: NodeId,
    },
    /// The cluster was recovered without one of the two.
    #[error(
        "node {node} has another history than this one (recovery {theirs_count} there, \
         {ours_count} here: the cluster was recovered without one of them, or on both sides of a \
         cut); the one that was left behind is taken out with `dog node remove`, wiped, and joins \
         anew",
        theirs_count = theirs.count(),
        ours_count = ours.count()
    )]
    OtherEra {
        /// Its id.
        node: NodeId,
        /// The life of the agreed log that it has a part in.
        theirs: Era,
        /// Ours.
        ours: Era,
    },
    /// The other side was lost when the cluster was recovered.
    #[error(
        "node {node} was given up when the cluster was recovered; take it out with `dog node \
         remove`, wipe its data directory, and let it join anew"
    )]
    GivenUp {
        /// Its id.
        node: NodeId,
    },
    /// Another process says that it is this node, and the one of before may still be there.
    #[error(
        "node {node} still has a connection of another process; whether that runs is found out in \
         a moment"
    )]
    Undecided {
        /// Its id.
        node: NodeId,
    },
    /// Something else than a hello came first.
    #[error("the other side did not begin with who it is; report this bug")]
    BeforeHello,
    /// The peer had more in flight than it was granted.
    #[error("the node asks for more at once than it was granted; report this bug")]
    BeyondCredit,
    /// The peer broke the protocol in another way.
    #[error("the node broke the protocol ({0}); report this bug")]
    Protocol(&'static str),
    /// The certificate of the other side is that of another node than its hello names.
    #[error(
        "the other side has the certificate of node {shown} and says that it is node {said}; if \
         its data directory is a mixture of two, restore it"
    )]
    OtherCertificate {
        /// Whose certificate it is.
        shown: NodeId,
        /// Who it says it is.
        said: NodeId,
    },
    /// This side does not know yet who its peers are.
    #[error("the node is starting; it is tried again in a moment")]
    Starting,
}

impl CloseReason {
    /// What to tell the other side of it; nothing if it knows, or cannot hear.
    pub fn farewell(&self) -> Option<Farewell> {
        use CloseReason::*;
        match self {
            Unreachable | ConnectTooSlow | Broken | Said { .. } => None,
            HelloTooSlow | FrameTooSlow | Silent | NotReading => Some(Farewell::Slow),
            // It goes away for a moment, as far as the other side is concerned.
            Stopped | Starting | Undecided { .. } => Some(Farewell::Stopping),
            Superseded => Some(Farewell::Superseded),
            GivenUp { .. } => Some(Farewell::GivenUp),
            Twin { .. } => Some(Farewell::Twin),
            OtherEra { .. }
            | OtherCluster { .. }
            | UnknownNode { .. }
            | OwnIdentity { .. }
            | OtherNode { .. }
            | MeantForAnother { .. }
            | NoCommonVersion { .. }
            | OtherCertificate { .. } => Some(Farewell::Refused),
            Frame(_) | BeforeHello | BeyondCredit | Protocol(_) => Some(Farewell::Broken),
        }
    }

    /// Whether the next connection will hardly do better, so that it need not be tried soon.
    pub(crate) fn is_lasting(&self) -> bool {
        let why = match self {
            CloseReason::Said { why, .. } => Some(*why),
            other => other.farewell(),
        };
        matches!(
            why,
            Some(Farewell::Refused | Farewell::GivenUp | Farewell::Twin | Farewell::Broken)
        )
    }
}
