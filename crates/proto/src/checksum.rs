//! The two checksums of the system.

use crate::units::BLOCK_SIZE;
use crate::{LineageId, ids::ObjectKey};
use crate::{Mistake, planted};

/// CRC-64/NVMe of some bytes: block data and everything on disk.
pub fn crc64(bytes: &[u8]) -> u64 {
    crc_fast::checksum(crc_fast::CrcAlgorithm::Crc64Nvme, bytes)
}

/// CRC-64/NVMe of bytes that come in pieces.
#[derive(Clone, Debug)]
pub struct Crc64(crc_fast::Digest);

impl Default for Crc64 {
    fn default() -> Crc64 {
        Crc64(crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc64Nvme))
    }
}

impl Crc64 {
    /// The next piece.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The checksum of all pieces so far.
    pub fn finish(&self) -> u64 {
        self.0.finalize()
    }
}

/// CRC-64/NVMe of some bytes with the eight bytes at `hole` taken as zero: how a record on disk
/// carries its own checksum.
///
/// # Panics
/// If the hole leaves the bytes: a bug of the caller.
pub fn crc64_around(bytes: &[u8], hole: usize) -> u64 {
    let mut digest = crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc64Nvme);
    digest.update(&bytes[..hole]);
    digest.update(&[0; 8]);
    digest.update(&bytes[hole + 8..]);
    digest.finalize()
}

/// CRC-32C of some bytes: frames on the wire.
pub fn crc32c(bytes: &[u8]) -> u32 {
    crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, bytes) as u32
}

/// CRC-32C of bytes that come in pieces.
#[derive(Clone, Debug)]
pub struct Crc32c(crc_fast::Digest);

impl Default for Crc32c {
    fn default() -> Crc32c {
        Crc32c(crc_fast::Digest::new(crc_fast::CrcAlgorithm::Crc32Iscsi))
    }
}

impl Crc32c {
    /// The next piece.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The checksum of all pieces so far.
    pub fn finish(&self) -> u32 {
        self.0.finalize() as u32
    }
}

/// The checksum of one block of data at its place. It depends on the lineage, the object's index
/// and the block's number but not on the layer, so that copies and merged layers can be compared,
/// while a block that was written to, or read from, a wrong place is noticed.
///
/// The place is mixed into the CRC of the data by a bijective hash, which costs a few nanoseconds
/// instead of a second pass; two places never share a key by construction of the packing below.
pub fn block_checksum(lineage: LineageId, key: ObjectKey, block: u32, data: &[u8]) -> u64 {
    debug_assert_eq!(data.len(), BLOCK_SIZE);
    if planted(Mistake::PlaceNotInChecksum) {
        return crc64(data);
    }
    crc64(data) ^ place_key(lineage, key.index, block)
}

/// A well-spread 64-bit key of a place: two rounds of the splitmix64 finaliser (a bijection).
fn place_key(lineage: LineageId, index: u32, block: u32) -> u64 {
    let offset = (u64::from(index) << 10) | u64::from(block);
    mix(mix(lineage.0 ^ 0x5348_4545_5044_4f47).wrapping_add(offset))
}

/// The splitmix64 finaliser.
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// Whether all bytes are zero. The first 64 bytes decide for almost all data.
pub fn is_zero(bytes: &[u8]) -> bool {
    let (head, tail) = bytes.split_at(bytes.len().min(64));
    if head.iter().any(|&b| b != 0) {
        return false;
    }
    tail.chunks(256).all(|chunk| chunk.iter().fold(0, |sum, &b| sum | b) == 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::LayerId;

    #[test]
    fn crc64_is_the_nvme_one() {
        assert_eq!(crc64(b"123456789"), 0xae8b_1486_0a79_9888);
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        let bytes: Vec<u8> = (0..100).collect();
        let mut holed = bytes.clone();
        holed[16..24].fill(0);
        assert_eq!(crc64_around(&bytes, 16), crc64(&holed));
    }

    #[test]
    fn checksum_names_the_place_but_not_the_layer() {
        let data = [7u8; BLOCK_SIZE];
        let sum = |lineage, layer, index, block| {
            let key = ObjectKey { layer: LayerId(layer), index };
            block_checksum(LineageId(lineage), key, block, &data)
        };
        assert_eq!(sum(1, 1, 2, 3), sum(1, 9, 2, 3));
        assert_ne!(sum(1, 1, 2, 3), sum(2, 1, 2, 3));
        assert_ne!(sum(1, 1, 2, 3), sum(1, 1, 3, 3));
        assert_ne!(sum(1, 1, 2, 3), sum(1, 1, 2, 4));
    }

    #[test]
    fn zero_is_found_wherever_the_one_hides() {
        let mut bytes = vec![0u8; BLOCK_SIZE];
        assert!(is_zero(&bytes));
        for at in [0, 63, 64, 319, 320, 4095] {
            bytes[at] = 1;
            assert!(!is_zero(&bytes), "byte {at}");
            bytes[at] = 0;
        }
    }
}
