//! What test writes contain: every sector says who wrote it, where and when, and every byte of it
//! can be checked.
//!
//! | field | bytes | meaning |
//! | --- | --- | --- |
//! | magic | 8 | `SIMSTAMP` |
//! | checksum | 8 | of the sector, this field as zero |
//! | volume | 8 | the volume's id |
//! | sector | 8 | the sector's number in the volume, thus its block and place in it |
//! | writer | 8 | the client |
//! | serial | 8 | of the write; unique in a run |
//! | epoch | 8 | how often the node had been started |
//! | generation | 8 | of the attachment, as the client counts them |
//! | rest | 448 | a stream seeded by the fields above: nothing compresses, nothing repeats |

use crate::random::mix;
use proto::{SECTOR_SIZE, crc64, is_zero};

/// Bytes before the stream.
const HEADER: usize = 64;
const MAGIC: u64 = u64::from_le_bytes(*b"SIMSTAMP");

/// What one sector of a test write says of itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stamp {
    /// The volume's id.
    pub volume: u64,
    /// The sector's number in the volume.
    pub sector: u64,
    /// The client.
    pub writer: u64,
    /// Of the write; unique in a run and never 0.
    pub serial: u64,
    /// How often the node had been started.
    pub epoch: u64,
    /// Of the attachment, as the client counts them.
    pub generation: u64,
}

/// What a sector that was read holds.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Content {
    /// Nothing but zeros.
    Zero,
    /// A whole stamped sector.
    Stamped(Stamp),
    /// Neither: torn inside the sector, rotten, or never written by a test.
    Garbage,
}

impl Stamp {
    /// Fills a sector.
    ///
    /// # Panics
    /// If the target is not one sector: a bug of the caller.
    pub fn fill(&self, target: &mut [u8]) {
        assert_eq!(target.len(), SECTOR_SIZE);
        let words = [
            MAGIC,
            0,
            self.volume,
            self.sector,
            self.writer,
            self.serial,
            self.epoch,
            self.generation,
        ];
        for (word, place) in words.iter().zip(target.chunks_exact_mut(8)) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        let seed = mix(self.serial) ^ mix(self.sector ^ (self.volume << 40));
        for (number, place) in target[HEADER..].chunks_exact_mut(8).enumerate() {
            place.copy_from_slice(&mix(seed.wrapping_add(number as u64 + 1)).to_le_bytes());
        }
        let checksum = crc64(target);
        target[8..16].copy_from_slice(&checksum.to_le_bytes());
    }

    /// What a sector holds.
    ///
    /// # Panics
    /// If the source is not one sector: a bug of the caller.
    pub fn parse(source: &[u8]) -> Content {
        assert_eq!(source.len(), SECTOR_SIZE);
        if is_zero(source) {
            return Content::Zero;
        }
        let word = |index: usize| {
            let bytes = source[index * 8..index * 8 + 8].try_into().expect("eight bytes");
            u64::from_le_bytes(bytes)
        };
        let mut copy = [0; SECTOR_SIZE];
        copy.copy_from_slice(source);
        copy[8..16].fill(0);
        if word(0) != MAGIC || word(1) != crc64(&copy) {
            return Content::Garbage;
        }
        Content::Stamped(Stamp {
            volume: word(2),
            sector: word(3),
            writer: word(4),
            serial: word(5),
            epoch: word(6),
            generation: word(7),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_is_read_back_and_any_flipped_bit_is_noticed() {
        let stamp = Stamp { volume: 1, sector: 77, writer: 2, serial: 9, epoch: 3, generation: 4 };
        let mut sector = [0; SECTOR_SIZE];
        stamp.fill(&mut sector);
        assert_eq!(Stamp::parse(&sector), Content::Stamped(stamp));
        for bit in 0..SECTOR_SIZE * 8 {
            sector[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Stamp::parse(&sector), Content::Garbage, "bit {bit}");
            sector[bit / 8] ^= 1 << (bit % 8);
        }
        assert_eq!(Stamp::parse(&[0; SECTOR_SIZE]), Content::Zero);
    }
}
