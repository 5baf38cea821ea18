//! What a store tells about itself.

use crate::{Identity, MediumKind, ScrubRate};
use proto::{Incarnation, LayerId, LineageId, ObjectKey};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Where in its life a store is.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// Reading what is on the medium.
    #[default]
    Opening,
    /// Answering requests.
    Serving,
    /// Finishing, on the way to closed.
    Closing,
    /// Closed in order.
    Closed,
    /// Opening was refused.
    Refused(String),
    /// A write or flush failed; writes are refused until the disk is opened anew. The sentence
    /// says what failed.
    Retired(String),
}

/// Everything a store tells about itself, at one moment.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Status {
    /// Where in its life it is.
    pub state: State,
    /// Whose disk it is.
    pub identity: Identity,
    /// What the medium is.
    pub kind: MediumKind,
    /// The number of this opening.
    pub incarnation: Incarnation,
    /// When the disk was made, in seconds since 1970.
    pub created_unix_s: u64,
    /// The space on the medium.
    pub space: SpaceStatus,
    /// Length of the log in bytes.
    pub log_bytes: u64,
    /// How much of the log would be replayed now, in bytes.
    pub log_used_bytes: u64,
    /// Objects in the table.
    pub objects: u64,
    /// Map pages in memory.
    pub map_pages_cached: u64,
    /// Of these, pages with changes that no checkpoint has.
    pub map_pages_dirty: u64,
    /// Member requests not answered yet.
    pub requests: u64,
    /// Why requests wait, if any does for more than its own I/O.
    pub waiting: Option<Waiting>,
    /// Layers whose objects are being dropped.
    pub layers_dropping: u64,
    /// What happened since this opening.
    pub counters: Counters,
    /// The scrub.
    pub scrub: ScrubStatus,
    /// The damages known, oldest first, at most [`crate::DAMAGES_MAX`].
    pub damages: Vec<Damage>,
    /// Damages that found no room in the list.
    pub damages_dropped: u64,
    /// Blocks that belong to nobody any more because the map page that named them is lost. Only a
    /// new disk gets them back.
    pub lost_blocks: u64,
    /// What openings from this one on acknowledged is all there: the machine has not lost power
    /// since.
    #[serde(default)]
    pub lossless_from: Incarnation,
    /// Partitions of which a configuration is refused.
    #[serde(default)]
    pub partitions_refused: u64,
}

/// What requests wait for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Waiting {
    /// Room in the log: a checkpoint is running.
    Log,
    /// Room in the map cache: a checkpoint is running.
    MapCache,
    /// Space: the medium is growing, or freed space waits for a flush.
    Space,
}

/// The space on the medium, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct SpaceStatus {
    /// What the disk may have at most for data and maps; `None`: as much as the file system gives.
    pub limit_bytes: Option<u64>,
    /// Allocated on the medium for data and maps.
    pub allocated_bytes: u64,
    /// Used by blocks of objects.
    pub data_bytes: u64,
    /// Used by map pages.
    pub map_bytes: u64,
    /// Used by the checkpoint.
    pub checkpoint_bytes: u64,
    /// Used by content that is staged, not part of any object yet.
    #[serde(default)]
    pub staged_bytes: u64,
    /// Freed, waiting for a flush or for a read to end.
    pub quarantined_bytes: u64,
    /// Allocated and free.
    pub free_bytes: u64,
    /// Kept for overwrites and metadata: new data may not use it.
    pub reserve_bytes: u64,
    /// Whether new data is refused.
    pub full: bool,
}

/// What new data may still take of what the disk has from the medium, at one moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Room {
    /// So many bytes, at once or after a flush: beyond the reserve and what metadata will take.
    pub bytes: u64,
    /// What the disk has from the medium, in bytes.
    pub allocated_bytes: u64,
    /// What the disk may have from the medium at most, if that was limited.
    pub limit_bytes: Option<u64>,
    /// Whether new data is refused, or waits for what is being deleted.
    pub is_wanted: bool,
    /// Whether layers are being dropped: there will be more.
    pub is_growing: bool,
}

/// What happened since the disk was opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Counters {
    /// Read requests answered with data.
    pub reads: u64,
    /// Bytes of them.
    pub read_bytes: u64,
    /// Writes applied, of any kind of change.
    pub writes: u64,
    /// Bytes of data written for them.
    pub write_bytes: u64,
    /// Bytes of data staged for objects.
    #[serde(default)]
    pub staged_bytes: u64,
    /// Objects that became what was staged for them.
    #[serde(default)]
    pub adopted: u64,
    /// Flushes of the medium.
    pub flushes: u64,
    /// Batches written to the log.
    pub log_batches: u64,
    /// Bytes of them.
    pub log_bytes: u64,
    /// Checkpoints finished.
    pub checkpoints: u64,
    /// Bytes of map and checkpoint pages written.
    pub metadata_bytes: u64,
    /// Map pages read.
    pub map_page_reads: u64,
    /// Blocks whose checksum was wrong.
    pub checksum_errors: u64,
    /// Rows of the object table looked at to find what a layer shows.
    pub rows_visited: u64,
    /// Reads that the medium failed.
    pub read_errors: u64,
    /// Bytes of holes given back to the file system.
    pub given_back_bytes: u64,
}

/// The scrub.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct ScrubStatus {
    /// Whether a pass is under way.
    pub running: bool,
    /// How fast it reads.
    pub rate: ScrubRate,
    /// The pass under way or the last one, from 1; 0: none yet.
    pub pass: u64,
    /// Passes finished in the life of the disk.
    pub passes_done: u64,
    /// How much of the pass is done, in thousandths.
    pub progress_permille: u32,
    /// Bytes read since the disk was opened.
    pub bytes: u64,
    /// Damages found in this pass.
    pub errors: u64,
}

/// What is kept of one layer on this disk. Exact.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Usage {
    /// Objects with a row in the table.
    pub objects: u64,
    /// Blocks of data that belong to the layer.
    pub data_blocks: u64,
    /// Blocks of map pages. Grows when a checkpoint writes the maps of new objects.
    pub map_blocks: u64,
}

/// Something on the medium that is not what was written there.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Damage {
    /// What is damaged.
    pub part: DamagedPart,
    /// Where, as a block address on the medium.
    pub address: u64,
    /// Whether the medium failed to read it (otherwise it returned the wrong bytes).
    pub unreadable: bool,
}

/// What a damage hit.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DamagedPart {
    /// One of the two superblocks.
    Superblock,
    /// The live part of the log.
    Log,
    /// One copy of a page of the checkpoint or of its root.
    Checkpoint,
    /// A map page: all of its blocks are damaged with it.
    MapPage {
        /// Whose.
        lineage: LineageId,
        /// Which object.
        key: ObjectKey,
        /// Which page of its map.
        page: u8,
    },
    /// A block of data.
    Data {
        /// Whose.
        lineage: LineageId,
        /// Which object.
        key: ObjectKey,
        /// Which block.
        block: u32,
    },
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let how = if self.unreadable { "cannot be read" } else { "has a wrong checksum" };
        let at = self.address;
        match self.part {
            DamagedPart::Superblock => write!(f, "the superblock at block {at} {how}"),
            DamagedPart::Log => write!(f, "the log at block {at} {how}"),
            DamagedPart::Checkpoint => write!(f, "the checkpoint page at block {at} {how}"),
            DamagedPart::MapPage { lineage, key, page } => {
                write!(f, "map page {page} of object {key} (lineage {lineage}) at block {at} {how}")
            }
            DamagedPart::Data { lineage, key, block } => {
                write!(f, "block {block} of object {key} (lineage {lineage}) at block {at} {how}")
            }
        }
    }
}

/// A layer with anything of it on this disk.
pub type LayerHere = (LineageId, LayerId);
