//! Opening a disk: superblocks, checkpoint, log, verification, map pages, then the new superblock.
//! Nothing is written before all of that was found good.

mod fetch;
mod finish;
mod load;
mod pages;
mod replay;
mod scan;
mod verify;

use crate::cache::Cache;
use crate::layout::{Superblock, SuperblockError, parse_superblock};
use crate::store::{Operations, Serving};
use crate::{Damage, DamagedPart, Effect, Notice, OpenError, Opened, Options};
use fetch::Fetch;
use finish::Finishing;
use load::Loading;
use pages::PageLoading;
use proto::{BLOCK_SIZE, Buffer, DiskDone, DiskError, Time};
pub(crate) use replay::Replay;
use scan::Scan;
use verify::Verifying;

/// What a step of the opening came to.
pub(crate) enum Step {
    More,
    Opened(Box<Serving>),
    Refused(String),
}

#[expect(clippy::large_enum_variant, reason = "there is one, for a second")]
/// How far the opening is. Each phase owns what it has built for the next.
enum Phase {
    Superblocks([Option<Result<Buffer, DiskError>>; 2]),
    Checkpoint(Loading),
    Log(Scan),
    Verify(Verifying),
    Pages(PageLoading),
    Finish(Finishing),
    Over,
}

/// What all phases share.
pub(crate) struct Common {
    pub(crate) options: Options,
    pub(crate) operations: Operations,
    pub(crate) fetch: Fetch,
    pub(crate) damages: Vec<Damage>,
}

impl Common {
    /// Notes a damage that did not stop the opening.
    pub(crate) fn damaged(&mut self, part: DamagedPart, address: u64, unreadable: bool) {
        self.damages.push(Damage { part, address, unreadable });
    }
}

/// A read of the opening: which item of the fetch, and what came of it.
pub(crate) struct Fetched {
    pub(crate) item: usize,
    pub(crate) result: Result<Buffer, DiskError>,
}

/// A disk that was read but not opened, for the offline check.
pub(crate) struct Offline {
    pub(crate) replay: Replay,
    pub(crate) cache: Cache,
    pub(crate) damages: Vec<Damage>,
}

/// A disk being opened.
pub(crate) struct Opening {
    common: Common,
    phase: Phase,
}

impl Opening {
    /// Begins with the superblocks.
    pub(crate) fn new(_now: Time, options: Options, effects: &mut Vec<Effect>) -> Opening {
        let mut common = Common {
            options,
            operations: Operations::default(),
            fetch: Fetch::default(),
            damages: Vec::new(),
        };
        // Each by itself: that one cannot be read must not hide the other.
        common.fetch.add(0, 1);
        common.fetch.add(1, 1);
        common.fetch.step(&mut common.operations, effects);
        Opening { common, phase: Phase::Superblocks([None, None]) }
    }

    /// Takes the end of an operation.
    pub(crate) fn handle(&mut self, now: Time, done: DiskDone, effects: &mut Vec<Effect>) -> Step {
        let operation = self.common.operations.finish(done.token);
        if let Phase::Finish(finishing) = &mut self.phase {
            return match done.result {
                Err(error) => self.refuse(OpenError::Medium(error), effects),
                Ok(_) => match finishing.next(&mut self.common, effects) {
                    Err(error) => self.refuse(error, effects),
                    Ok(false) => Step::More,
                    Ok(true) => self.opened(now, effects),
                },
            };
        }
        let item = self.common.fetch.done(&operation);
        let buffer = done.result.and_then(|buffer| buffer.ok_or(DiskError::Io(0)));
        match self.fetched(Fetched { item, result: buffer }, effects) {
            Ok(()) => {}
            Err(error) => return self.refuse(error, effects),
        }
        self.common.fetch.step(&mut self.common.operations, effects);
        Step::More
    }

    /// Gives a read to the phase that wanted it, and goes to the next phase when that was its last.
    fn fetched(&mut self, fetched: Fetched, effects: &mut Vec<Effect>) -> Result<(), OpenError> {
        let common = &mut self.common;
        match &mut self.phase {
            Phase::Superblocks(copies) => copies[fetched.item] = Some(fetched.result),
            Phase::Checkpoint(loading) => loading.fetched(common, fetched)?,
            Phase::Log(scan) => scan.fetched(common, fetched),
            Phase::Verify(verifying) => verifying.fetched(fetched),
            Phase::Pages(loading) => loading.fetched(common, fetched),
            Phase::Finish(_) | Phase::Over => unreachable!("nothing is read in this phase"),
        }
        while self.common.fetch.is_over() {
            let phase = std::mem::replace(&mut self.phase, Phase::Over);
            self.phase = self.advance(phase, effects)?;
            if matches!(self.phase, Phase::Finish(_)) {
                break;
            }
        }
        Ok(())
    }

    /// All reads of the phase are done: it adds more, or the next phase begins.
    fn advance(&mut self, phase: Phase, effects: &mut Vec<Effect>) -> Result<Phase, OpenError> {
        let common = &mut self.common;
        common.fetch.clear();
        Ok(match phase {
            Phase::Finish(_) | Phase::Over => unreachable!("these phases end by themselves"),
            Phase::Superblocks(copies) => {
                let copies = copies.map(|copy| copy.expect("both were read"));
                let superblock = choose_superblock(common, copies)?;
                Phase::Checkpoint(Loading::new(common, superblock))
            }
            Phase::Checkpoint(mut loading) => match loading.advance(common)? {
                false => Phase::Checkpoint(loading),
                true => {
                    let replay: Replay = loading.finish(common)?;
                    Phase::Log(Scan::new(common, replay))
                }
            },
            Phase::Log(mut scan) => match scan.advance(common)? {
                false => Phase::Log(scan),
                true => Phase::Verify(Verifying::new(common, scan.finish()?)),
            },
            Phase::Verify(mut verifying) => match verifying.advance(common) {
                false => Phase::Verify(verifying),
                true => {
                    let replay = verifying.finish()?;
                    Phase::Pages(PageLoading::new(common, replay)?)
                }
            },
            Phase::Pages(mut loading) => match loading.advance(common) {
                false => Phase::Pages(loading),
                true => Phase::Finish(Finishing::new(common, loading.finish(), effects)?),
            },
        })
    }

    /// What was found, if all of it was read and nothing written yet.
    pub(crate) fn offline(self) -> Option<Offline> {
        let Phase::Finish(finishing) = self.phase else { return None };
        let (replay, cache) = finishing.into_found();
        Some(Offline { replay, cache, damages: self.common.damages })
    }

    fn opened(&mut self, now: Time, effects: &mut Vec<Effect>) -> Step {
        let Phase::Finish(finishing) = std::mem::replace(&mut self.phase, Phase::Over) else {
            unreachable!("only the last phase opens")
        };
        for damage in &self.common.damages {
            effects.push(Effect::Notice(Notice::Damaged(*damage)));
        }
        let (opened, parts): (Opened, _) = finishing.finish(&mut self.common);
        effects.push(Effect::Opened(Ok(opened)));
        Step::Opened(Box::new(Serving::new(now, parts)))
    }

    fn refuse(&mut self, error: OpenError, effects: &mut Vec<Effect>) -> Step {
        self.phase = Phase::Over;
        let reason = error.to_string();
        effects.push(Effect::Opened(Err(error)));
        Step::Refused(reason)
    }
}

/// The superblock that rules, if it is one of the disk that is wanted.
fn choose_superblock(
    common: &mut Common,
    copies: [Result<Buffer, DiskError>; 2],
) -> Result<Superblock, OpenError> {
    let failed = copies.iter().find_map(|copy| copy.as_ref().err().cloned());
    let copies = copies.map(|copy| copy.ok().map(|bytes| parse_superblock(bytes.as_slice())));
    let valid = copies.iter().flatten().flatten();
    let rules = valid.max_by_key(|superblock| superblock.sequence).cloned();
    for (address, copy) in (0..).zip(&copies) {
        // Whatever the other copy says: it may be what a newer release has already replaced.
        if let Some(Err(SuperblockError::Newer(found))) = copy {
            return Err(OpenError::NewerVersion { found: *found });
        }
        if rules.is_some() && !matches!(copy, Some(Ok(_))) {
            common.damaged(DamagedPart::Superblock, address, copy.is_none());
        }
    }
    if let (None, Some(error)) = (&rules, failed) {
        return Err(OpenError::Medium(error));
    }
    let Some(superblock) = rules else {
        let is = |error| move |copy: &_| *copy == Some(Err(error));
        let blank = copies.iter().all(is(SuperblockError::Blank));
        let damaged = copies.iter().any(is(SuperblockError::Damaged));
        return Err(match (blank, damaged) {
            (true, _) => OpenError::Blank,
            (_, true) => OpenError::SuperblocksDamaged,
            _ => OpenError::Foreign,
        });
    };
    vet_identity(&common.options, &superblock)?;
    // All of the log was there when the disk was made. What a truncation took of it must not be
    // taken for blocks that cannot be read.
    let (found, needed) = (common.options.medium_bytes, superblock.space_first * BLOCK_SIZE as u64);
    if found < needed {
        return Err(OpenError::Truncated { found, needed });
    }
    Ok(superblock)
}

fn vet_identity(options: &Options, superblock: &Superblock) -> Result<(), OpenError> {
    let (found, expected) = (superblock.identity, options.identity);
    if let Some(expected) = expected.cluster.filter(|&cluster| cluster != found.cluster) {
        return Err(OpenError::WrongCluster { found: found.cluster, expected });
    }
    if let Some(expected) = expected.node.filter(|&node| node != found.node) {
        return Err(OpenError::WrongNode { found: found.node, expected });
    }
    if let Some(expected) = expected.disk.filter(|&disk| disk != found.disk) {
        return Err(OpenError::WrongDisk { found: found.disk, expected });
    }
    if let Some(known) = expected.incarnation.filter(|&known| known > superblock.incarnation) {
        return Err(OpenError::OldCopy { found: superblock.incarnation.0, known: known.0 });
    }
    let agreed = superblock.agreed_incarnation;
    if let Some(known) = expected.incarnation.filter(|&known| known < agreed) {
        return Err(OpenError::OldMap { known: known.0, agreed: agreed.0 });
    }
    if options.kind != superblock.kind {
        return Err(OpenError::WrongKind);
    }
    Ok(())
}
