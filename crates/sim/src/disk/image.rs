//! The content of a medium: sparse, cheap to copy, hashable.

use crate::random::mix;
use proto::{BLOCK_SIZE, SECTOR_SIZE, crc64, is_zero};
use std::{
    collections::BTreeMap,
    sync::{Arc, OnceLock},
};

/// One block of content, shared between copies of an image until one of them changes it.
type Page = Arc<Content>;

static ZERO_PAGE: [u8; BLOCK_SIZE] = [0; BLOCK_SIZE];

/// What a medium holds: bytes, how long it is, and which parts of it have space.
///
/// Pages of zeros are not kept, so media of any size cost what is written to them. A copy costs
/// one reference per page.
#[derive(Clone, Debug, Default)]
pub struct Image {
    pages: BTreeMap<u64, Page>,
    /// In bytes.
    length: u64,
    /// Allocated ranges as start -> end, in bytes; apart and not touching.
    allocated: BTreeMap<u64, u64>,
}

impl Image {
    /// An empty file.
    pub fn empty() -> Image {
        Image::default()
    }

    /// A blank device of `bytes`, all of it allocated.
    pub fn device(bytes: u64) -> Image {
        let mut image = Image::default();
        image.allocate(0, bytes);
        image
    }

    /// The length in bytes.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// How many bytes have space.
    pub fn allocated_bytes(&self) -> u64 {
        self.allocated.iter().map(|(start, end)| end - start).sum()
    }

    /// Whether every byte of the range has space.
    pub fn is_allocated(&self, offset: u64, length: u64) -> bool {
        match self.allocated.range(..=offset).next_back() {
            Some((_, &end)) => offset + length <= end,
            None => length == 0,
        }
    }

    /// How many bytes of the range have no space yet.
    pub fn missing_bytes(&self, offset: u64, length: u64) -> u64 {
        let end = offset + length;
        let held: u64 = self
            .allocated
            .range(..end)
            .rev()
            .take_while(|(_, stop)| **stop > offset)
            .map(|(start, stop)| (*stop).min(end) - (*start).max(offset))
            .sum();
        length - held
    }

    /// Gives the range space, growing the medium if it ends before.
    pub fn allocate(&mut self, offset: u64, length: u64) {
        if length == 0 {
            return;
        }
        let (mut start, mut end) = (offset, offset + length);
        self.length = self.length.max(end);
        while let Some((&s, &e)) = self.allocated.range(..=end).next_back() {
            if e < start {
                break;
            }
            self.allocated.remove(&s);
            start = start.min(s);
            end = end.max(e);
        }
        self.allocated.insert(start, end);
    }

    /// Takes the range's space and content away.
    pub fn punch(&mut self, offset: u64, length: u64) {
        self.zero(offset, length);
        let end = offset + length;
        while let Some((&s, &e)) = self.allocated.range(..end).next_back() {
            if e <= offset {
                break;
            }
            self.allocated.remove(&s);
            if e > end {
                self.allocated.insert(end, e);
            }
            if s < offset {
                self.allocated.insert(s, offset);
            }
        }
    }

    /// Cuts the medium off at `length` bytes, or lengthens it by a hole.
    pub fn set_length(&mut self, length: u64) {
        if length < self.length {
            self.punch(length, self.length - length);
        }
        self.length = length;
    }

    /// Fills `target` from `offset` on; what was never written reads as zeros.
    pub fn read(&self, offset: u64, target: &mut [u8]) {
        let mut done = 0;
        while done < target.len() {
            let at = offset + done as u64;
            let (page, inside) = split(at);
            let count = (BLOCK_SIZE - inside).min(target.len() - done);
            let bytes = self.pages.get(&page).map_or(&ZERO_PAGE, |page| &page.bytes);
            target[done..done + count].copy_from_slice(&bytes[inside..inside + count]);
            done += count;
        }
    }

    /// Puts `source` at `offset`, giving it space.
    pub fn write(&mut self, offset: u64, source: &[u8]) {
        if !self.is_allocated(offset, source.len() as u64) {
            self.allocate(offset, source.len() as u64);
        }
        let mut done = 0;
        while done < source.len() {
            let (page, inside) = split(offset + done as u64);
            let count = (BLOCK_SIZE - inside).min(source.len() - done);
            self.write_page(page, inside, &source[done..done + count]);
            done += count;
        }
    }

    /// Writes zeros over the range, keeping its space as it is.
    pub fn zero(&mut self, offset: u64, length: u64) {
        let end = offset + length;
        let touched: Vec<u64> = self
            .pages
            .range(offset / BLOCK_SIZE as u64..end.div_ceil(BLOCK_SIZE as u64))
            .map(|(page, _)| *page)
            .collect();
        for page in touched {
            let start = page * BLOCK_SIZE as u64;
            let from = offset.max(start) - start;
            let to = end.min(start + BLOCK_SIZE as u64) - start;
            self.write_page(page, from as usize, &ZERO_PAGE[from as usize..to as usize]);
        }
    }

    /// One sector's content.
    pub fn sector(&self, sector: u64) -> &[u8] {
        let (page, inside) = split(sector * SECTOR_SIZE as u64);
        let bytes = self.pages.get(&page).map_or(&ZERO_PAGE, |page| &page.bytes);
        &bytes[inside..inside + SECTOR_SIZE]
    }

    /// One block's content.
    pub fn block(&self, block: u64) -> &[u8; BLOCK_SIZE] {
        self.pages.get(&block).map_or(&ZERO_PAGE, |page| &page.bytes)
    }

    /// The numbers of all blocks that hold anything but zeros.
    pub fn blocks(&self) -> impl Iterator<Item = u64> {
        self.pages.keys().copied()
    }

    /// Turns one bit over.
    pub fn flip(&mut self, offset: u64, bit: u8) {
        let (page, inside) = split(offset);
        let byte = self.block(page)[inside] ^ (1 << (bit % 8));
        self.write_page(page, inside, &[byte]);
    }

    /// A number that is equal for equal content, length and space, and hardly ever for others.
    pub fn key(&self) -> u64 {
        let pages = self.pages.iter().fold(mix(self.length), |key, (page, content)| {
            key ^ mix(content.sum() ^ mix(page + 1))
        });
        self.allocated
            .iter()
            .fold(pages, |key, (start, end)| key ^ mix(start.rotate_left(32) ^ end))
    }

    fn write_page(&mut self, page: u64, inside: usize, source: &[u8]) {
        if source.len() == BLOCK_SIZE {
            if is_zero(source) {
                self.pages.remove(&page);
            } else {
                let whole = source.try_into().expect("the length was just compared");
                self.pages.insert(page, Arc::new(Content::new(whole)));
            }
            return;
        }
        if is_zero(source) && !self.pages.contains_key(&page) {
            return;
        }
        let held = self.pages.entry(page).or_insert_with(|| Arc::new(Content::new(ZERO_PAGE)));
        let bytes = Arc::make_mut(held).bytes_mut();
        bytes[inside..inside + source.len()].copy_from_slice(source);
        if is_zero(bytes) {
            self.pages.remove(&page);
        }
    }
}

/// What a page holds.
#[derive(Clone, Debug)]
struct Content {
    bytes: [u8; BLOCK_SIZE],
    /// The checksum of the bytes, once somebody has asked for it.
    sum: OnceLock<u64>,
}

impl Content {
    fn new(bytes: [u8; BLOCK_SIZE]) -> Content {
        Content { bytes, sum: OnceLock::new() }
    }

    fn sum(&self) -> u64 {
        *self.sum.get_or_init(|| crc64(&self.bytes))
    }

    fn bytes_mut(&mut self) -> &mut [u8; BLOCK_SIZE] {
        self.sum.take();
        &mut self.bytes
    }
}

/// The page a byte lies in, and where in it.
fn split(offset: u64) -> (u64, usize) {
    (offset / BLOCK_SIZE as u64, (offset % BLOCK_SIZE as u64) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Random;

    #[test]
    fn content_matches_a_flat_array() {
        const SIZE: usize = 8 * BLOCK_SIZE;
        let mut random = Random::new(3);
        let (mut image, mut model) = (Image::empty(), vec![0u8; SIZE]);
        for round in 0..2_000 {
            let offset = random.below(SIZE as u64 - 1);
            let length = random.between(1, (SIZE as u64 - offset).min(6_000));
            let range = offset as usize..(offset + length) as usize;
            if random.coin() {
                image.zero(offset, length);
                model[range].fill(0);
            } else {
                model[range.clone()].fill(round as u8);
                image.write(offset, &model[range]);
            }
            let mut seen = vec![1; SIZE];
            image.read(0, &mut seen);
            assert!(seen == model, "round {round}");
        }
    }

    #[test]
    fn space_matches_a_set_of_units() {
        const UNIT: u64 = 512;
        let mut random = Random::new(4);
        let (mut image, mut model) = (Image::empty(), [false; 40]);
        for _ in 0..5_000 {
            let first = random.below(39);
            let count = random.between(1, (40 - first).min(9));
            let range = first as usize..(first + count) as usize;
            let missing = model[range.clone()].iter().filter(|held| !**held).count() as u64;
            assert_eq!(image.missing_bytes(first * UNIT, count * UNIT), missing * UNIT);
            assert_eq!(image.is_allocated(first * UNIT, count * UNIT), missing == 0);
            let give = random.coin();
            match give {
                true => image.allocate(first * UNIT, count * UNIT),
                false => image.punch(first * UNIT, count * UNIT),
            }
            model[range].fill(give);
            let held = model.iter().filter(|held| **held).count() as u64;
            assert_eq!(image.allocated_bytes(), held * UNIT);
        }
    }

    #[test]
    fn key_tells_content_apart() {
        let mut image = Image::device(1 << 20);
        let blank = image.key();
        image.write(8192, &[1]);
        let other = image.key();
        assert_ne!(blank, other);
        image.flip(8192, 0);
        assert_eq!(image.key(), blank);
        image.write(12288, &[1]);
        assert_ne!(image.key(), other);
    }
}
