//! What is left of a medium after the power went.
//!
//! Everything that was not flushed is made of units that survive or not on their own: each sector
//! of each write, each discard and each allocation. (Sectors in space whose allocation is lost are
//! lost with it: the file system does not know of them.)

use super::{Change, Image, Progress, SimDisk, Unsynced};
use crate::random::Random;
use proto::SECTOR_SIZE;
use std::collections::BTreeMap;

/// One thing that survives or not on its own.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Unit {
    /// All unsynced writes to one sector, by the sector's number on the medium.
    Sector(u64),
    /// A discard or allocation, by its place in the order of changes.
    Extent(usize),
}

/// Which of the units survive.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CrashState {
    /// None: only what was flushed.
    Old,
    /// All, those in flight too.
    New,
    /// All but this one.
    OneOld(Unit),
    /// Only this one (and the allocation it lies in).
    OneNew(Unit),
    /// Each by its own coin.
    Mixture(Mixture),
}

/// A repeatable mixture. The coin differs from write to write: some are whole or gone, others are
/// torn sector by sector.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Mixture {
    /// Of the coins.
    pub seed: u64,
}

impl SimDisk {
    /// The units that differ from what is durable: those that a crash can leave either way.
    pub fn units(&self) -> Vec<Unit> {
        let new = self.crashed(&CrashState::New);
        let mut units = Vec::new();
        for (index, unsynced) in self.ordered().into_iter().enumerate() {
            match &unsynced.change {
                Change::Write { offset, payload } => {
                    let first = offset / SECTOR_SIZE as u64;
                    let sectors = first..first + (payload.len() / SECTOR_SIZE) as u64;
                    let differs =
                        |sector: &u64| new.sector(*sector) != self.durable.sector(*sector);
                    units.extend(sectors.filter(differs).map(Unit::Sector));
                }
                Change::Punch { .. } | Change::Allocate { .. } => units.push(Unit::Extent(index)),
            }
        }
        units.sort();
        units.dedup();
        units
    }

    /// What the medium would hold after a power cut now.
    pub fn crashed(&self, state: &CrashState) -> Image {
        match *state {
            CrashState::Old => self.durable.clone(),
            CrashState::New => self.surviving(|_, _, _| true),
            CrashState::OneOld(unit) => self.surviving(|_, _, at| at != unit),
            CrashState::OneNew(unit) => self.surviving(|_, unsynced, at| {
                at == unit || matches!(unit, Unit::Sector(sector) if allocates(unsynced, sector))
            }),
            CrashState::Mixture(Mixture { seed }) => {
                let mut random = Random::new(seed);
                let mut odds = BTreeMap::new();
                self.surviving(|index, _, at| match at {
                    Unit::Extent(_) => random.chance(750_000),
                    Unit::Sector(_) => {
                        let odds = odds.entry(index).or_insert_with(|| {
                            *random.pick(&[0, 125_000, 500_000, 875_000, 1_000_000])
                        });
                        random.chance(*odds)
                    }
                })
            }
        }
    }

    /// What the medium would hold if the process died now: what completed is there, of what was in
    /// flight what `state` says.
    pub fn killed(&self, state: &CrashState) -> Image {
        let completed = |unsynced: &Unsynced| matches!(unsynced.progress, Progress::Completed(_));
        match *state {
            CrashState::Old => self.surviving(|_, unsynced, _| completed(unsynced)),
            CrashState::New => self.surviving(|_, _, _| true),
            CrashState::OneOld(unit) => {
                self.surviving(|_, unsynced, at| completed(unsynced) || at != unit)
            }
            CrashState::OneNew(unit) => {
                self.surviving(|_, unsynced, at| completed(unsynced) || at == unit)
            }
            CrashState::Mixture(Mixture { seed }) => {
                let mut random = Random::new(seed);
                self.surviving(|_, unsynced, _| completed(unsynced) || random.coin())
            }
        }
    }

    /// Whether anything is not durable.
    pub fn is_unsynced(&self) -> bool {
        !self.unsynced.is_empty()
    }

    /// The changes in the order in which they became visible, those in flight last.
    fn ordered(&self) -> Vec<&Unsynced> {
        let mut ordered: Vec<&Unsynced> = self.unsynced.iter().collect();
        ordered.sort_by_key(|unsynced| match unsynced.progress {
            Progress::Doubtful => 0,
            Progress::Completed(number) => number,
            Progress::InFlight(_) => u64::MAX,
        });
        ordered
    }

    /// The durable content with the units that `keep` keeps.
    fn surviving(&self, mut keep: impl FnMut(usize, &Unsynced, Unit) -> bool) -> Image {
        let mut image = self.durable.clone();
        let mut lost: Vec<(u64, u64)> = Vec::new();
        for (index, unsynced) in self.ordered().into_iter().enumerate() {
            match &unsynced.change {
                Change::Write { offset, payload } => {
                    for start in (0..payload.len()).step_by(SECTOR_SIZE) {
                        let at = offset + start as u64;
                        let kept = keep(index, unsynced, Unit::Sector(at / SECTOR_SIZE as u64));
                        let gone = lost.iter().any(|(start, end)| (*start..*end).contains(&at))
                            && !image.is_allocated(at, SECTOR_SIZE as u64);
                        if kept && !gone {
                            image.write(at, &payload.as_slice()[start..start + SECTOR_SIZE]);
                        }
                    }
                }
                Change::Punch { offset, length } => {
                    if keep(index, unsynced, Unit::Extent(index)) {
                        image.punch(*offset, *length);
                    }
                }
                Change::Allocate { offset, length, zero } => {
                    if !keep(index, unsynced, Unit::Extent(index)) {
                        lost.push((*offset, offset + length));
                        continue;
                    }
                    image.allocate(*offset, *length);
                    if *zero {
                        image.zero(*offset, *length);
                    }
                }
            }
        }
        image
    }
}

/// Whether this is the allocation of space that holds the sector.
fn allocates(unsynced: &Unsynced, sector: u64) -> bool {
    let at = sector * SECTOR_SIZE as u64;
    match &unsynced.change {
        Change::Allocate { offset, length, .. } => (*offset..offset + length).contains(&at),
        Change::Write { .. } | Change::Punch { .. } => false,
    }
}
