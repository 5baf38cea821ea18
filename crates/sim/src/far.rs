//! A source: what lies elsewhere and shows through a volume, and everything that can be wrong with
//! it. What it has is known by its number alone.

use crate::{
    driver::Driver,
    random::{Random, mix},
};
use engine::{SourceId, SourceReply, SourceRequest, SourceWanted};
use proto::{BLOCK_SIZE, BlockState, Buffer, Duration, SECTOR_SIZE, Time, limits};
use std::collections::BTreeMap;
use volume::SourceAnswer;

const BLOCK: u64 = BLOCK_SIZE as u64;
const SECTOR: u64 = SECTOR_SIZE as u64;
/// Runs of so many sectors are zeros, one in three.
const RUN: u64 = 100;

/// How it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mood {
    /// It answers.
    Well,
    /// It takes its time.
    Slow,
    /// Some of its answers are errors, or are not what was asked for.
    Flaky,
    /// It cannot be reached.
    Away,
    /// It takes questions and says nothing, until whoever asks gives up.
    Silent,
    /// It has become shorter: it is another source.
    Shorter,
}

/// The moods in which nothing can be had of it.
pub const BAD: [Mood; 3] = [Mood::Away, Mood::Silent, Mood::Shorter];

/// A source. See the module.
pub struct Far {
    /// How it is just now.
    pub mood: Mood,
    bytes: u64,
    random: Random,
    /// What will be answered, by time and number.
    due: BTreeMap<(Time, u64), (SourceId, SourceRequest)>,
    asked: u64,
}

/// The bytes of one sector of the source.
pub fn sector(number: u64) -> [u8; SECTOR_SIZE] {
    let mut bytes = [0; SECTOR_SIZE];
    if number / RUN % 3 != 2 {
        let word = (mix(number) | 1).to_le_bytes();
        bytes.chunks_exact_mut(8).for_each(|target| target.copy_from_slice(&word));
    }
    bytes
}

impl Far {
    /// A source of this size in bytes, whole sectors, that is well.
    pub fn new(bytes: u64, random: Random) -> Far {
        assert!(bytes.is_multiple_of(SECTOR));
        Far { mood: Mood::Well, bytes, random, due: BTreeMap::new(), asked: 0 }
    }

    /// Takes what it is asked.
    pub fn take(&mut self, driver: &mut Driver) {
        driver.listen();
        for (token, request) in driver.questions.drain(..) {
            let patience = Duration::from_millis(limits::SOURCE_SILENT_MS_MAX);
            let most = match self.mood {
                Mood::Slow => Duration::from_secs(3),
                Mood::Silent => patience,
                _ => Duration::from_millis(20),
            };
            let least = if self.mood == Mood::Silent { patience } else { Duration::ZERO };
            let span = self.random.between(least.as_nanos() as u64, most.as_nanos() as u64);
            self.asked += 1;
            let at = driver.now + Duration::from_nanos(span);
            self.due.insert((at, self.asked), (token, request));
        }
    }

    /// When it answers next.
    pub fn next_due(&self) -> Option<Time> {
        self.due.keys().next().map(|(at, _)| *at)
    }

    /// Whoever asked is gone.
    pub fn forget(&mut self) {
        self.due.clear();
    }

    /// The answer that is due first.
    pub fn answer(&mut self) -> Option<(SourceId, Result<SourceReply, String>)> {
        let (_, (token, request)) = self.due.pop_first()?;
        Some((token, self.reply(request.wanted)))
    }

    fn reply(&mut self, wanted: SourceWanted) -> Result<SourceReply, String> {
        match self.mood {
            Mood::Away => return Err("connection refused".into()),
            Mood::Silent => return Err("it does not answer".into()),
            Mood::Flaky if self.random.chance(300_000) => return Err("input/output error".into()),
            _ => {}
        }
        let has = if self.mood == Mood::Shorter { self.bytes - SECTOR } else { self.bytes };
        let (bytes, offset, length) = match wanted {
            SourceWanted::Open => {
                return Ok(SourceReply::Opened { bytes: has, own_export: None });
            }
            SourceWanted::Read { bytes, offset, length }
            | SourceWanted::Map { bytes, offset, length } => (bytes, offset, length),
        };
        if bytes != has {
            return Err(format!("it has {has} bytes, not {bytes}"));
        }
        assert!(length > 0 && offset.is_multiple_of(BLOCK) && offset + length <= bytes);
        let mut blocks = length.div_ceil(BLOCK);
        if self.mood == Mood::Flaky && self.random.chance(100_000) {
            // More than was asked for.
            blocks += 1;
        }
        if let SourceWanted::Map { .. } = wanted {
            let per_block = BLOCK / SECTOR;
            let state = |block: u64| {
                let mut sectors = (0..per_block).map(|at| offset / SECTOR + block * per_block + at);
                let is_zero = sectors.all(|number| sector(number) == [0; SECTOR_SIZE]);
                if is_zero { BlockState::Zero } else { BlockState::Data }
            };
            let runs = (0..blocks).map(|block| (1, state(block))).collect();
            return Ok(SourceReply::Answer(SourceAnswer::Map(runs)));
        }
        let mut buffer = Buffer::zeroed((blocks * BLOCK) as usize);
        let target = buffer.as_mut_slice()[..length as usize].chunks_exact_mut(SECTOR_SIZE);
        for (at, target) in target.enumerate() {
            target.copy_from_slice(&sector(offset / SECTOR + at as u64));
        }
        Ok(SourceReply::Answer(SourceAnswer::Data(buffer.freeze())))
    }
}
