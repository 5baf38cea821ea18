//! Who holds a partition: what is judged of every configuration, and how partitions double. How
//! members change is in `attempt`.

use crate::command::Answer;
use crate::layer;
use crate::machine::DiskState;
use crate::map::Map;
use crate::partition::{Configuration, Member};
use crate::refusal::Refusal;
use crate::state::{COUNT_MAX, State};
use proto::limits::{COPIES_MAX, MEMBERS_MAX, PARTITION_BITS_MAX};
use proto::{ConfigurationNumber, DiskId, Incarnation, PartitionId};
use std::collections::BTreeSet;
use std::sync::Arc;

impl State {
    /// Doubles the partitions, to 2^bits. Attempts name partitions and disks are asked about them
    /// by their numbers, so none may be under way.
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
        if !self.map.attempts.is_empty() {
            return Err(Refusal::AttemptsUnderWay { count: self.map.attempts.len() });
        }
        Arc::make_mut(&mut self.change().partitions).double();
        Ok(Answer::Done)
    }

    /// Whether numbers of one of 2^bits partitions mean what they meant to whoever gave them.
    pub(crate) fn vet_bits(&self, bits: u8) -> Result<(), Refusal> {
        let present = self.map.partition_bits();
        if bits != present {
            return Err(Refusal::OtherPartitions { given: bits, present });
        }
        Ok(())
    }

    /// The configuration of a partition, if it still has this number.
    pub(crate) fn numbered(
        &self,
        copies: u8,
        partition: PartitionId,
        from: ConfigurationNumber,
    ) -> Result<&Configuration, Refusal> {
        let unknown = Refusal::UnknownPartition { copies, partition };
        let present = self.map.partitions.configuration(copies, partition).ok_or(unknown)?;
        if present.number != from {
            let present = present.number;
            return Err(Refusal::OldConfiguration { partition, given: from, present });
        }
        Ok(present)
    }
}

/// The first invariant that does not hold for the partitions.
pub(crate) fn contradiction(map: &Map) -> Result<(), &'static str> {
    let hold = layer::hold;
    for copies in map.tables() {
        hold((1..=COPIES_MAX).contains(&copies), "a table for a number of copies that is none")?;
        let table = map.partitions.table(copies).ok_or("a table that is none")?;
        let is_bounded = |held: &Configuration| held.current.len() <= usize::from(copies);
        hold(table.iter().all(|held| is_bounded(held)), "more members than copies")?;
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
