//! What a disk is told when it is made and when it is opened.

use proto::{ClusterId, DiskId, Incarnation, NodeId, limits};
use serde::{Deserialize, Serialize};

/// Whose disk it is. Written into the superblock at format, compared at open.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Identity {
    /// The cluster it belongs to.
    pub cluster: ClusterId,
    /// The node that owns it.
    pub node: NodeId,
    /// The disk itself.
    pub disk: DiskId,
}

/// The identity a disk must show when it is opened. `None` accepts any.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Expected {
    /// The cluster it must belong to.
    pub cluster: Option<ClusterId>,
    /// The node it must belong to.
    pub node: Option<NodeId>,
    /// The disk it must be.
    pub disk: Option<DiskId>,
    /// The last opening that the cluster knows of: a disk that has not seen it is an old copy.
    pub incarnation: Option<Incarnation>,
}

impl From<Identity> for Expected {
    fn from(identity: Identity) -> Expected {
        Expected {
            cluster: Some(identity.cluster),
            node: Some(identity.node),
            disk: Some(identity.disk),
            incarnation: None,
        }
    }
}

/// What the medium is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MediumKind {
    #[default]
    /// A file, which grows in steps and gives space back by punching holes.
    File,
    /// A raw device: all of it is ours from the start.
    Device,
}

/// How a blank medium is made a disk.
#[derive(Clone, Debug)]
pub struct FormatOptions {
    /// Whose disk it becomes.
    pub identity: Identity,
    /// What the medium is.
    pub kind: MediumKind,
    /// The medium's present length in bytes.
    pub medium_bytes: u64,
    /// Where the disk may end at most, in bytes; `None`: wherever the medium ends.
    pub limit_bytes: Option<u64>,
    /// Length of the log in bytes, at least [`crate::LOG_BYTES_MIN`]; `None`: 1/64 of the disk,
    /// within bounds.
    pub log_bytes: Option<u64>,
    /// Wall-clock time for people, in seconds since 1970.
    pub created_unix_s: u64,
}

/// How fast scrub reads, in bytes per second; 0 is off.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct ScrubRate(pub u64);

/// How a disk is opened.
#[derive(Clone, Debug)]
pub struct Options {
    /// What its superblock must say.
    pub identity: Expected,
    /// What the medium is.
    pub kind: MediumKind,
    /// The medium's present length in bytes.
    pub medium_bytes: u64,
    /// Where the disk may end at most, in bytes; `None`: wherever the medium ends. A former
    /// opening's limit has no part in it.
    pub limit_bytes: Option<u64>,
    /// Most memory for cached map pages, in bytes.
    pub map_cache_bytes: usize,
    /// How fast scrub reads.
    pub scrub: ScrubRate,
    /// The machine's boot, as the system names it. While it is the same from one opening to the
    /// next the machine has not lost power, and what was acknowledged before is all there. All
    /// zero: not known, which counts as a loss of power. Whoever saw the disk fail in this boot
    /// gives zeros too: the disk was told that it did, but may have failed at that as well.
    pub boot: [u8; 16],
}

impl Options {
    /// A medium of `medium_bytes` with every choice left at its default.
    pub fn new(kind: MediumKind, medium_bytes: u64) -> Options {
        Options {
            identity: Expected::default(),
            kind,
            medium_bytes,
            limit_bytes: None,
            map_cache_bytes: limits::MAP_CACHE_BYTES_DEFAULT,
            scrub: ScrubRate::default(),
            boot: [0; 16],
        }
    }
}
