//! What administrators see of the disks of one node.

use proto::{DiskId, Incarnation};
use serde::{Deserialize, Serialize};

/// A disk that was added to a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskAddedReport {
    /// Its id.
    pub disk: DiskId,
    /// Where it is: the device, or the file in the directory.
    pub path: String,
    /// What is to be known about it, in one sentence, if there is anything.
    pub warning: Option<String>,
}

/// One disk.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DiskReport {
    /// Its id.
    pub disk: DiskId,
    /// Which opening of it this is.
    pub incarnation: Incarnation,
    /// Where it is: a path.
    pub path: String,
    /// `opening`, `serving`, `refused`, `retired` or `closed`.
    pub state: String,
    /// For a disk that does not serve: why, and what to do.
    pub reason: Option<String>,
    /// What it could hold, in bytes.
    pub capacity_bytes: u64,
    /// How much of the file system or device it may use, in bytes, where that was limited.
    #[serde(default)]
    pub limit_bytes: Option<u64>,
    /// Whether new data is refused for want of space.
    #[serde(default)]
    pub full: bool,
    /// Guests' data, in bytes.
    pub data_bytes: u64,
    /// Maps, tables and the log, in bytes.
    pub metadata_bytes: u64,
    /// Freed, but not yet to be reused, in bytes.
    pub quarantined_bytes: u64,
    /// Taken from the file system or device, in bytes.
    pub allocated_bytes: u64,
    /// What new data may still take, in bytes.
    pub available_bytes: u64,
    /// Blocks known to be damaged and not mended.
    pub damaged_blocks: u64,
    /// Damage found since the program started, mended or not.
    pub damage_found: u64,
    /// Damage mended since the program started.
    pub damage_mended: u64,
    /// Damaged blocks that other disks have copies of: they are mended by themselves.
    #[serde(default)]
    pub damage_mending: u64,
    /// Blocks that were damaged again after they were written anew, and still are: the disk is
    /// failing.
    #[serde(default)]
    pub damage_again: u64,
    /// Blocks lost to damage of the maps: neither used nor free.
    pub lost_blocks: u64,
    /// Scrubbing.
    pub scrub: ScrubReport,
    /// Counters since the program started.
    pub counters: DiskCounters,
    /// The most recent damages, in words.
    pub damages: Vec<String>,
}

/// How far scrubbing is.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ScrubReport {
    /// Whether a pass is running.
    pub running: bool,
    /// Passes completed since the disk was made.
    pub passes: u64,
    /// How much of the running pass is done, 0 to 1.
    pub progress: f64,
    /// The rate it keeps, in bytes a second; 0 is off.
    pub rate_bytes_per_s: u64,
}

/// What a disk has done since the program started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskCounters {
    /// Reads of guests' data, in operations and bytes.
    pub read_operations: u64,
    /// See above.
    pub read_bytes: u64,
    /// Writes of guests' data, in operations and bytes.
    pub write_operations: u64,
    /// See above.
    pub write_bytes: u64,
    /// Device flushes.
    pub flushes: u64,
    /// Bytes written to the log.
    pub log_bytes: u64,
    /// Bytes of map and checkpoint pages written.
    pub metadata_bytes: u64,
    /// Checkpoints completed.
    pub checkpoints: u64,
    /// Map pages read from the medium.
    pub map_page_reads: u64,
}
