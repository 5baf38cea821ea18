//! Attempts: how the members of partitions change (decision 0009). An agreed command begins one and
//! numbers it, another activates what it came to, or gives it up.
//!
//! What must be true before the next members may be activated (that enough of the present ones
//! refuse their configuration, that all is settled, that the next members have it on stable media)
//! only those can know who hold the data: the node that carries an attempt out vouches for that.
//! Here it is judged what the map alone can tell.

use crate::command::Answer;
use crate::layer::hold;
use crate::machine::DiskState;
use crate::map::Map;
use crate::partition::{Configuration, Member, Partitions};
use crate::refusal::Refusal;
use crate::state::{COUNT_MAX, State};
use proto::limits::{ATTEMPT_DISKS_MAX, ATTEMPTS_MAX, MEMBERS_MAX, PARTITIONS_PER_COMMAND_MAX};
use proto::{ConfigurationNumber, DiskId, Incarnation, NodeId, PartitionId};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Some partitions of one table, and the disks that are to be their members.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Change {
    /// The next members of each of them, in this order: at least one, and no more than copies. A
    /// disk that was opened anew is named like any other.
    pub wanted: Vec<DiskId>,
    /// The partitions, and the numbers of the configurations that they are to leave.
    pub partitions: Vec<(PartitionId, ConfigurationNumber)>,
}

/// A change of the members of some partitions of one table, from the command that begins it until
/// the one that activates it, or gives it up, or until newer attempts have all its partitions.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Attempt {
    /// Its number: larger than that of any before, whatever partitions those were for.
    pub number: u64,
    /// The table.
    pub copies: u8,
    /// The node that carries it out.
    pub owner: NodeId,
    /// The disks that are to be the members of each of its partitions.
    pub wanted: BTreeMap<PartitionId, Vec<DiskId>>,
}

impl Attempt {
    /// All disks that are to be members, each once.
    pub fn disks(&self) -> BTreeSet<DiskId> {
        self.wanted.values().flatten().copied().collect()
    }
}

impl Map {
    /// The attempts under way, in order of their numbers.
    pub fn attempts(&self) -> impl ExactSizeIterator<Item = &Attempt> {
        self.attempts.values().map(|attempt| &**attempt)
    }

    /// An attempt, if it is under way.
    pub fn attempt(&self, number: u64) -> Option<&Attempt> {
        self.attempts.get(&number).map(|attempt| &**attempt)
    }

    /// Ends attempts for some of their partitions: those that `ends` says so of. If members may
    /// refuse the configurations by now, that is noted.
    pub(crate) fn end_attempts(
        &mut self,
        may_be_refused: bool,
        ends: impl Fn(&Attempt, PartitionId) -> bool,
    ) {
        let mut ended: Vec<(u64, u8, PartitionId)> = Vec::new();
        for attempt in self.attempts() {
            let gone = attempt.wanted.keys().filter(|&&partition| ends(attempt, partition));
            ended.extend(gone.map(|&partition| (attempt.number, attempt.copies, partition)));
        }
        if ended.is_empty() {
            return;
        }
        let attempts = Arc::make_mut(&mut self.attempts);
        let partitions = Arc::make_mut(&mut self.partitions);
        for (number, copies, partition) in ended {
            let attempt = Arc::make_mut(attempts.get_mut(&number).expect("listed above"));
            attempt.wanted.remove(&partition);
            let held = partitions.configuration(copies, partition).expect("of an attempt");
            let ended = Configuration {
                recovering: Vec::new(),
                attempt: 0,
                may_be_refused: held.may_be_refused || may_be_refused,
                ..held.clone()
            };
            partitions.set(copies, partition, Arc::new(ended));
        }
        attempts.retain(|_, attempt| !attempt.wanted.is_empty());
    }

    /// A disk was removed: what would make it a member can come to nothing any more.
    pub(crate) fn end_attempts_with(&mut self, disk: DiskId) {
        self.end_attempts(true, |attempt, partition| attempt.wanted[&partition].contains(&disk));
    }

    /// A node was removed: nobody carries out what it had begun.
    pub(crate) fn end_attempts_of(&mut self, owner: NodeId) {
        self.end_attempts(true, |attempt, _| attempt.owner == owner);
    }
}

impl State {
    /// Begins an attempt; of each of its partitions it is the only one from now on.
    pub(crate) fn begin_attempt(
        &mut self,
        copies: u8,
        bits: u8,
        owner: NodeId,
        changes: &[Change],
    ) -> Result<Answer, Refusal> {
        self.vet_bits(bits)?;
        if self.map.node(owner).is_none() {
            return Err(Refusal::UnknownNode { node: owner });
        }
        let mut wanted: BTreeMap<PartitionId, Vec<DiskId>> = BTreeMap::new();
        for change in changes {
            for &(partition, from) in &change.partitions {
                let present = self.numbered(copies, partition, from)?;
                self.vet_wanted(copies, partition, present, &change.wanted)?;
                self.vet_enough(copies, present, change.wanted.len())?;
                if wanted.insert(partition, change.wanted.clone()).is_some() {
                    return Err(Refusal::PartitionTwice { partition });
                }
            }
        }
        if wanted.is_empty() {
            return Err(Refusal::EmptyAttempt);
        }
        let number = self.map.next_attempt;
        let attempt = Attempt { number, copies, owner, wanted };
        if wanted_too_many(&attempt) {
            return Err(Refusal::AttemptTooLarge);
        }
        let replaced = |old: &Attempt| old.wanted.keys().all(|p| attempt.wanted.contains_key(p));
        let left = |old: &&Attempt| old.copies != copies || !replaced(old);
        if self.map.attempts().filter(left).count() >= ATTEMPTS_MAX {
            return Err(Refusal::TooManyAttempts);
        }
        let map = self.change();
        map.next_attempt = number + 1;
        map.end_attempts(true, |old, partition| {
            old.copies == copies && attempt.wanted.contains_key(&partition)
        });
        let disks = Arc::clone(&map.disks);
        let mut changed = Vec::new();
        for (&partition, wanted) in &attempt.wanted {
            let present = map.configuration(copies, partition);
            let is_new = |disk: &DiskId| present.current.iter().all(|held| held.disk != *disk);
            let member = |disk: DiskId| Member { disk, incarnation: disks[&disk].incarnation };
            let recovering = wanted.iter().copied().filter(is_new).map(member).collect();
            changed.push((
                partition,
                Configuration { recovering, attempt: number, ..present.clone() },
            ));
        }
        set_all(Arc::make_mut(&mut map.partitions), copies, changed);
        Arc::make_mut(&mut map.attempts).insert(number, Arc::new(attempt));
        Ok(Answer::AttemptBegun { attempt: number })
    }

    /// The disks that an attempt wants are the members of its partitions from now on, each in the
    /// opening that did its part.
    pub(crate) fn activate(&mut self, number: u64, openings: &[Member]) -> Result<Answer, Refusal> {
        let attempt = self.map.attempt(number).ok_or(Refusal::AttemptOver { attempt: number })?;
        let copies = attempt.copies;
        let mut changed = Vec::new();
        for (&partition, wanted) in &attempt.wanted {
            let present = self.map.configuration(copies, partition);
            self.vet_enough(copies, present, wanted.len())?;
            let mut current = Vec::with_capacity(wanted.len());
            for &disk in wanted {
                let refused = |problem| Err(Refusal::Membership { disk, partition, problem });
                let mut named = openings.iter().filter(|opening| opening.disk == disk);
                let Some(&opening) = named.next() else {
                    return refused("the attempt wants it and it did not answer");
                };
                if named.next().is_some() {
                    return refused("it is named in two openings");
                }
                if !self.map.is_present(opening) {
                    return refused("it was opened anew meanwhile");
                }
                current.push(opening);
            }
            let number = ConfigurationNumber(present.number.0 + 1);
            changed.push((partition, Configuration { number, current, ..Default::default() }));
        }
        let map = self.change();
        Arc::make_mut(&mut map.attempts).remove(&number);
        set_all(Arc::make_mut(&mut map.partitions), copies, changed);
        map.raise_had();
        map.forget_gone();
        Ok(Answer::Done)
    }

    /// An attempt is over without having come to anything.
    pub(crate) fn give_up_attempt(&mut self, number: u64, may_be_refused: bool) -> Answer {
        if self.map.attempt(number).is_some() {
            let map = self.change();
            map.end_attempts(may_be_refused, |attempt, _| attempt.number == number);
        }
        Answer::Done
    }

    /// Whether disks may be asked to become the members of a partition.
    fn vet_wanted(
        &self,
        copies: u8,
        partition: PartitionId,
        present: &Configuration,
        wanted: &[DiskId],
    ) -> Result<(), Refusal> {
        let mut disks: BTreeSet<DiskId> = present.current.iter().map(|held| held.disk).collect();
        let mut named = BTreeSet::new();
        for &disk in wanted {
            let refused = |problem| Err(Refusal::Membership { disk, partition, problem });
            let known = self.disk(disk)?;
            if !named.insert(disk) {
                return refused("a partition has a disk once");
            }
            if known.incarnation == Incarnation(0) {
                return Err(Refusal::NeverOpened { disk });
            }
            if present.current.is_empty() {
                return refused("the partition has no members yet");
            }
            if disks.insert(disk) && !known.is_in() {
                return Err(Refusal::DiskDraining { disk });
            }
            if named.len() > usize::from(copies) {
                return refused("the partition would have more members than copies");
            }
            if disks.len() > MEMBERS_MAX {
                return refused("too many disks would have a part in it at once");
            }
        }
        Ok(())
    }

    /// Whether so many members are enough for a partition: no fewer than before, or than the
    /// volumes ask for that lie there.
    fn vet_enough(&self, copies: u8, present: &Configuration, left: usize) -> Result<(), Refusal> {
        let floor = present.fewest(self.map.floor(copies));
        if left < floor { Err(Refusal::TooFewCopies { left, floor }) } else { Ok(()) }
    }
}

fn wanted_too_many(attempt: &Attempt) -> bool {
    attempt.wanted.len() > PARTITIONS_PER_COMMAND_MAX || attempt.disks().len() > ATTEMPT_DISKS_MAX
}

/// Sets configurations of one table. Equal ones that follow one another share one.
fn set_all(partitions: &mut Partitions, copies: u8, new: Vec<(PartitionId, Configuration)>) {
    let mut last: Option<Arc<Configuration>> = None;
    for (partition, new) in new {
        let shared = last.filter(|last| **last == new).unwrap_or_else(|| Arc::new(new));
        partitions.set(copies, partition, Arc::clone(&shared));
        last = Some(shared);
    }
}

/// The first invariant that does not hold for the attempts.
pub(crate) fn contradiction(map: &Map) -> Result<(), &'static str> {
    hold(map.next_attempt > 0 && map.next_attempt <= COUNT_MAX, "the number of attempts")?;
    hold(map.attempts.len() <= ATTEMPTS_MAX, "too many attempts")?;
    let mut changing = 0;
    for (&number, attempt) in &*map.attempts {
        let is_issued = number > 0 && number < map.next_attempt;
        hold(attempt.number == number && is_issued, "an attempt's number")?;
        hold(map.node(attempt.owner).is_some(), "an attempt of an unknown node")?;
        let is_small = !attempt.wanted.is_empty() && !wanted_too_many(attempt);
        hold(is_small, "an attempt of too many partitions, or none")?;
        for (&partition, wanted) in &attempt.wanted {
            let held = map.partitions.configuration(attempt.copies, partition);
            let held = held.ok_or("an attempt at a partition that there is not")?;
            hold(held.attempt == number, "two attempts at one partition")?;
            let disks: BTreeSet<DiskId> = wanted.iter().copied().collect();
            let is_list = !disks.is_empty() && disks.len() == wanted.len();
            let is_bounded = wanted.len() <= usize::from(attempt.copies);
            hold(is_list && is_bounded, "the members that an attempt wants")?;
            for disk in wanted {
                let known = map.disk(*disk).ok_or("an attempt with an unknown disk")?;
                let is_usable = known.state != DiskState::Gone && known.incarnation.0 > 0;
                hold(is_usable, "an attempt with a disk that cannot be a member")?;
            }
            let is_new = |disk: &&DiskId| held.current.iter().all(|member| member.disk != **disk);
            let recovering = held.recovering.iter().map(|member| &member.disk);
            hold(recovering.eq(wanted.iter().filter(is_new)), "who recovers in an attempt")?;
            changing += 1;
        }
    }
    let slots = map.partitions.tables().flat_map(|(_, table)| table);
    let concerned = slots.filter(|held| held.attempt != 0).count();
    hold(concerned == changing, "an attempt that is not under way")?;
    for held in map.configurations() {
        hold(held.attempt != 0 || held.recovering.is_empty(), "recovery without an attempt")?;
        let is_numbered = held.number.0 > 0;
        hold(is_numbered || !held.may_be_refused && held.attempt == 0, "a refusal of nothing")?;
    }
    Ok(())
}
