//! Who holds a partition, changed in agreed steps: a disk begins to recover, the next members are
//! activated, a disk is excluded, partitions double.
//!
//! What must be true before the next members may be activated (DESIGN D3, "Changing members") only
//! those can know who hold the data: whoever proposes a step vouches for that. Here it is judged
//! what the map alone can tell: that the step begins with the present configuration, and that it
//! leaves enough members.

use crate::command::Answer;
use crate::layer;
use crate::machine::DiskState;
use crate::map::Map;
use crate::partition::{Configuration, Member};
use crate::refusal::Refusal;
use crate::state::{COUNT_MAX, State};
use proto::limits::{COPIES_MAX, MEMBERS_MAX, PARTITION_BITS_MAX};
use proto::{ConfigurationNumber, DiskId, Incarnation, PartitionId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::sync::Arc;

/// The next members of one partition.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Activation {
    /// Which partition.
    pub partition: PartitionId,
    /// The number of the configuration that they come after.
    pub from: ConfigurationNumber,
    /// Its next current members: each on a disk that is a member now, in the opening that is listed
    /// there or in its present one.
    pub current: Vec<Member>,
}

/// New configurations of some partitions of one table, none twice.
type Changes = Vec<(PartitionId, Configuration)>;

impl State {
    /// Disks of these partitions receive writes and catch up from now on.
    pub(crate) fn recover(
        &mut self,
        copies: u8,
        bits: u8,
        disk: DiskId,
        partitions: &[PartitionId],
    ) -> Result<Answer, Refusal> {
        self.vet_bits(bits)?;
        let known = self.disk(disk)?;
        let member = Member { disk, incarnation: known.incarnation };
        if known.incarnation == Incarnation(0) {
            return Err(Refusal::NeverOpened { disk });
        }
        if !known.is_in() {
            return Err(Refusal::DiskDraining { disk });
        }
        let mut changes = Changes::new();
        for &partition in partitions {
            let present = self.partition(copies, partition)?;
            let refused = |problem| Err(Refusal::Membership { disk, partition, problem });
            if present.current.is_empty() {
                return refused("the partition has no members yet");
            }
            if present.current.iter().any(|current| current.disk == disk) {
                return refused("it is a current member");
            }
            let mut next = present.clone();
            next.recovering.retain(|other| other.disk != disk);
            next.recovering.push(member);
            if next.members().count() > MEMBERS_MAX {
                return refused("the partition has as many members as it can have");
            }
            changes.push((partition, next));
        }
        self.carry_out(copies, changes)
    }

    /// The next members of some partitions count from now on.
    pub(crate) fn activate(
        &mut self,
        copies: u8,
        bits: u8,
        activations: &[Activation],
    ) -> Result<Answer, Refusal> {
        self.vet_bits(bits)?;
        let floor = self.map.floor(copies);
        let mut changes = Changes::new();
        for Activation { partition, from, current } in activations {
            let present = self.numbered(copies, *partition, *from)?;
            let mut disks = BTreeSet::new();
            for &member in current {
                let Member { disk, .. } = member;
                let refused =
                    |problem| Err(Refusal::Membership { disk, partition: *partition, problem });
                if !disks.insert(disk) {
                    return refused("a partition has a disk once");
                }
                let is_listed = present.current.contains(&member);
                let mut listed = present.members().map(|member| member.disk);
                if !is_listed && !listed.any(|listed| listed == disk) {
                    return refused("it is no member that recovers");
                }
                if !is_listed && !self.map.is_present(member) {
                    return refused("it was opened anew or removed meanwhile");
                }
            }
            let mut recovering = present.recovering.clone();
            recovering.retain(|member| !disks.contains(&member.disk));
            changes.push((
                *partition,
                self.next(*partition, present, current.clone(), recovering, floor)?,
            ));
        }
        self.carry_out(copies, changes)
    }

    /// A disk holds these partitions no more.
    pub(crate) fn exclude(
        &mut self,
        copies: u8,
        bits: u8,
        disk: DiskId,
        partitions: &[(PartitionId, ConfigurationNumber)],
    ) -> Result<Answer, Refusal> {
        self.vet_bits(bits)?;
        let floor = self.map.floor(copies);
        let mut changes = Changes::new();
        for &(partition, from) in partitions {
            let present = self.numbered(copies, partition, from)?;
            let without = |members: &[Member]| -> Vec<Member> {
                members.iter().copied().filter(|member| member.disk != disk).collect()
            };
            let (current, recovering) = (without(&present.current), without(&present.recovering));
            if recovering.len() < present.recovering.len() {
                changes.push((partition, Configuration { recovering, ..present.clone() }));
            } else if current.len() < present.current.len() {
                changes
                    .push((partition, self.next(partition, present, current, recovering, floor)?));
            } else {
                let problem = "it is no member";
                return Err(Refusal::Membership { disk, partition, problem });
            }
        }
        self.carry_out(copies, changes)
    }

    /// Doubles the partitions, to 2^bits.
    pub(crate) fn split_partitions(&mut self, bits: u8) -> Result<Answer, Refusal> {
        let present = self.map.partition_bits();
        if bits > PARTITION_BITS_MAX {
            return Err(Refusal::TooManyPartitions { bits });
        }
        if bits == present {
            return Ok(Answer::Done);
        }
        if bits != present + 1 {
            return Err(Refusal::NotDoubled { present: 1 << present });
        }
        Arc::make_mut(&mut self.change().partitions).double();
        Ok(Answer::Done)
    }

    /// Whether numbers of one of 2^bits partitions mean what they meant to whoever gave them.
    fn vet_bits(&self, bits: u8) -> Result<(), Refusal> {
        let present = self.map.partition_bits();
        if bits != present {
            return Err(Refusal::OtherPartitions { given: bits, present });
        }
        Ok(())
    }

    fn partition(&self, copies: u8, partition: PartitionId) -> Result<&Configuration, Refusal> {
        let unknown = Refusal::UnknownPartition { copies, partition };
        self.map.partitions.configuration(copies, partition).ok_or(unknown)
    }

    /// The configuration of a partition, if it still has this number.
    fn numbered(
        &self,
        copies: u8,
        partition: PartitionId,
        from: ConfigurationNumber,
    ) -> Result<&Configuration, Refusal> {
        let present = self.partition(copies, partition)?;
        if present.number != from {
            let present = present.number;
            return Err(Refusal::OldConfiguration { partition, given: from, present });
        }
        Ok(present)
    }

    /// The configuration after `present` with these members, if they are enough: no fewer than
    /// before, or than `floor`. None of them is gone: it could not have what the others have.
    fn next(
        &self,
        partition: PartitionId,
        present: &Configuration,
        current: Vec<Member>,
        recovering: Vec<Member>,
        floor: u8,
    ) -> Result<Configuration, Refusal> {
        let floor = usize::from(floor).min(present.current.len()).max(1);
        if current.len() < floor {
            return Err(Refusal::TooFewCopies { left: current.len(), floor });
        }
        if let Some(gone) = current.iter().find(|member| self.disk(member.disk).is_err()) {
            let (disk, problem) = (gone.disk, "it was removed and cannot be a member any more");
            return Err(Refusal::Membership { disk, partition, problem });
        }
        let number = ConfigurationNumber(present.number.0 + 1);
        Ok(Configuration { number, current, recovering })
    }

    /// Puts new configurations into the map, all of which were judged.
    fn carry_out(&mut self, copies: u8, changes: Changes) -> Result<Answer, Refusal> {
        let mut seen = BTreeSet::new();
        for (partition, _) in &changes {
            if !seen.insert(*partition) {
                return Err(Refusal::PartitionTwice { partition: *partition });
            }
        }
        let is_news = |(partition, new): &(PartitionId, Configuration)| {
            self.map.configuration(copies, *partition) != new
        };
        if !changes.iter().any(is_news) {
            return Ok(Answer::Done);
        }
        let map = self.change();
        let partitions = Arc::make_mut(&mut map.partitions);
        for (partition, new) in changes {
            partitions.set(copies, partition, Arc::new(new));
        }
        map.raise_had();
        map.forget_gone();
        Ok(Answer::Done)
    }
}

/// The first invariant that does not hold for the partitions.
pub(crate) fn contradiction(map: &Map) -> Result<(), &'static str> {
    let hold = layer::hold;
    for copies in map.tables() {
        hold((1..=COPIES_MAX).contains(&copies), "a table for a number of copies that is none")?;
    }
    for configuration in map.configurations() {
        let count = configuration.members().count();
        hold(count <= MEMBERS_MAX, "too many members of a partition")?;
        let disks: BTreeSet<DiskId> = configuration.members().map(|member| member.disk).collect();
        hold(disks.len() == count, "a disk that is twice a member")?;
        for member in configuration.members() {
            let disk = map.disk(member.disk).ok_or("an unknown member of a partition")?;
            hold(member.incarnation <= disk.incarnation, "a member that was never opened")?;
        }
        let is_gone = |member: &Member| {
            map.disk(member.disk).is_some_and(|disk| disk.state == DiskState::Gone)
        };
        hold(!configuration.recovering.iter().any(is_gone), "a disk that is gone and recovers")?;
        let numbered = configuration.number.0 > 0;
        hold(numbered != configuration.current.is_empty(), "a partition's number")?;
        hold(numbered || configuration.recovering.is_empty(), "recovery from nobody")?;
        hold(configuration.number.0 <= COUNT_MAX, "a count without end")?;
    }
    // With one disk its last opening is all there is.
    if let (1, Some(sole)) = (map.disks.len(), map.disks().next())
        && sole.incarnation > Incarnation(0)
    {
        let lists = |held: &Configuration| held.current.iter().any(|m| m.disk == sole.id);
        hold(map.configurations().all(lists), "a partition without the only disk")?;
    }
    Ok(())
}
