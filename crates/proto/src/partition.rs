//! Which partition an object belongs to.

use crate::{LineageId, PartitionId};

/// Which of the 2^`bits` partitions the objects `index` of a lineage's layers belong to. A promise:
/// it never changes, because data lies where it says. It takes the upper bits of a well-spread
/// hash, so that doubling the partitions turns p into 2p and 2p + 1.
///
/// # Panics
/// If `bits` is more than 32: a bug of the caller.
pub fn partition_of(lineage: LineageId, index: u32, bits: u8) -> PartitionId {
    assert!(bits <= 32);
    if bits == 0 {
        return PartitionId(0);
    }
    let hash = mix(mix(lineage.0 ^ 0x7061_7274_6974_696f).wrapping_add(u64::from(index)));
    PartitionId((hash >> (64 - u32::from(bits))) as u32)
}

/// The splitmix64 finaliser: every bit of the input moves about half the bits of the output.
pub fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}
