//! Partitions: the slices that objects hash to, and which disks hold each of them.

use crate::machine::DiskState;
use proto::limits::COPIES_DEFAULT;
use proto::{ConfigurationNumber, DiskId, Incarnation, PartitionId};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, sync::Arc};

/// One opening of one disk: what an acknowledgement belongs to.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct Member {
    /// The disk.
    pub disk: DiskId,
    /// Which opening of it. A disk that was opened anew is another member.
    pub incarnation: Incarnation,
}

/// The disks that hold one partition, as last activated.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Configuration {
    /// Grows with each change of the members; 0 while the partition never had any.
    pub number: ConfigurationNumber,
    /// Who counts in quorums; empty only while the number is 0.
    pub current: Vec<Member>,
    /// Who is to become current by the attempt under way and is being made equal, in the opening in
    /// which it was when that began; counts in no quorum and takes no writes.
    pub recovering: Vec<Member>,
    /// The attempt under way to change the members; 0: none.
    pub attempt: u64,
    /// An attempt at this configuration has ended without activating the next: the members may
    /// refuse it, and then only another attempt makes the partition serve again.
    pub may_be_refused: bool,
}

impl Configuration {
    /// How many current members make a quorum: a majority.
    pub fn quorum(&self) -> usize {
        self.current.len() / 2 + 1
    }

    /// How few members it may be left with where volumes ask for `floor`: so many, as far as it has
    /// them, and at least one.
    pub fn fewest(&self, floor: u8) -> usize {
        usize::from(floor).min(self.current.len()).max(1)
    }

    /// All members, the current ones first.
    pub fn members(&self) -> impl Iterator<Item = &Member> {
        self.current.iter().chain(&self.recovering)
    }
}

/// The configurations of one table, by partition. Equal ones share one, so the table costs a
/// pointer each, and a copy of it shares them all.
pub(crate) type Table = Vec<Arc<Configuration>>;

/// The configuration of every partition, in a table for each number of copies in use: a lineage of
/// which n copies are kept lies by table n (decision 0007). All tables have the same partitions.
///
/// Invariant: there is a table for `COPIES_DEFAULT`. Tables are never taken away: the numbers of
/// their configurations must only grow.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Partitions {
    bits: u8,
    tables: BTreeMap<u8, Table>,
}

impl Partitions {
    /// 2^bits partitions without members.
    pub(crate) fn new(bits: u8) -> Partitions {
        let table = vec![Arc::default(); 1 << bits];
        Partitions { bits, tables: BTreeMap::from([(COPIES_DEFAULT, table)]) }
    }

    /// From these tables; nothing if that for `COPIES_DEFAULT` is missing, or one is twice there or
    /// has another length.
    pub(crate) fn from_tables(bits: u8, tables: Vec<(u8, Table)>) -> Option<Partitions> {
        let count = tables.len();
        let tables: BTreeMap<u8, Table> = tables.into_iter().collect();
        let is_whole = tables.values().all(|table| table.len() == 1 << bits);
        let is_right = tables.len() == count && tables.contains_key(&COPIES_DEFAULT) && is_whole;
        is_right.then_some(Partitions { bits, tables })
    }

    /// How many binary digits a partition number has.
    pub(crate) fn bits(&self) -> u8 {
        self.bits
    }

    /// All tables, by the number of copies.
    pub(crate) fn tables(&self) -> impl Iterator<Item = (u8, &Table)> {
        self.tables.iter().map(|(&copies, table)| (copies, table))
    }

    /// One of them.
    pub(crate) fn table(&self, copies: u8) -> Option<&Table> {
        self.tables.get(&copies)
    }

    /// The configuration of one partition, if there are such a table and such a partition.
    pub(crate) fn configuration(
        &self,
        copies: u8,
        partition: PartitionId,
    ) -> Option<&Configuration> {
        let table = self.tables.get(&copies)?;
        table.get(partition.0 as usize).map(|configuration| &**configuration)
    }

    /// The different configurations, each at least once.
    pub(crate) fn distinct(&self) -> impl Iterator<Item = &Configuration> {
        self.tables.values().flat_map(|table| runs(table)).map(|(_, configuration)| configuration)
    }

    /// Sets one configuration. The caller knows that there is one.
    pub(crate) fn set(&mut self, copies: u8, partition: PartitionId, new: Arc<Configuration>) {
        let table = self.tables.get_mut(&copies).expect("looked up before");
        table[partition.0 as usize] = new;
    }

    /// Puts another configuration into the place of each, in all tables. It is asked once for each
    /// run of partitions that share one.
    pub(crate) fn replace(&mut self, new: impl Fn(&Configuration) -> Option<Configuration>) {
        for table in self.tables.values_mut() {
            let mut last: Option<(Arc<Configuration>, Arc<Configuration>)> = None;
            for slot in table {
                match &last {
                    Some((old, new)) if Arc::ptr_eq(old, slot) => *slot = Arc::clone(new),
                    _ => {
                        let new = new(slot).map_or_else(|| Arc::clone(slot), Arc::new);
                        last = Some((Arc::clone(slot), Arc::clone(&new)));
                        *slot = new;
                    }
                }
            }
        }
    }

    /// Activates `member` in every partition that its disk holds in an older incarnation or that
    /// has no member yet, under the next number.
    ///
    /// With one disk that is all a change takes: whatever it holds is all there is, so there is
    /// nothing to fence, settle or copy first. With several, only the partitions that were prepared
    /// for it (DESIGN D3, "Changing members") may be activated.
    pub(crate) fn activate_sole(&mut self, member: Member) {
        self.replace(|old| {
            assert!(old.attempt == 0, "an attempt of a disk that was opened anew");
            assert!(old.current.iter().all(|current| current.disk == member.disk));
            let number = ConfigurationNumber(old.number.0 + 1);
            Some(Configuration { number, current: vec![member], ..Default::default() })
        });
    }

    /// Adds the table for a number of copies, if there is none: nothing lies by it yet, so its
    /// members may be any. They are those that the next larger table has, or the largest, as many
    /// as wanted: so a volume that comes to have more copies or fewer has most of them already.
    /// Disks that are draining are taken only where there are no others, and those that are gone
    /// not at all: of any partition some are left.
    pub(crate) fn add_table(&mut self, copies: u8, state: impl Fn(DiskId) -> DiskState) {
        if self.tables.contains_key(&copies) {
            return;
        }
        let larger = self.tables.range(copies..).next();
        let (_, model) = larger.or(self.tables.last_key_value()).expect("there is a table");
        let mut added =
            Partitions { bits: self.bits, tables: BTreeMap::from([(copies, model.clone())]) };
        added.replace(|old| {
            let those = |wanted: DiskState| -> Vec<Member> {
                let members = old.current.iter().filter(|member| state(member.disk) == wanted);
                members.take(usize::from(copies)).copied().collect()
            };
            let staying = those(DiskState::In);
            let current = if staying.is_empty() { those(DiskState::Draining) } else { staying };
            Some(Configuration { number: old.number, current, ..Default::default() })
        });
        self.tables.extend(added.tables);
    }

    /// Every number of before is behind those of now; the members stay, and are to be agreed anew
    /// where `is_doubtful`.
    pub(crate) fn jump(&mut self, by: u64, is_doubtful: bool) {
        self.replace(|old| {
            (old.number.0 > 0).then(|| Configuration {
                number: ConfigurationNumber(old.number.0 + by),
                may_be_refused: old.may_be_refused || is_doubtful,
                ..old.clone()
            })
        });
    }

    /// Twice as many partitions: p becomes 2p and 2p + 1 with the members of p.
    pub(crate) fn double(&mut self) {
        self.bits += 1;
        for table in self.tables.values_mut() {
            let twice = |old: &Arc<Configuration>| [Arc::clone(old), Arc::clone(old)];
            *table = table.iter().flat_map(twice).collect();
        }
    }
}

/// A table from runs of equal configurations; nothing if they are not 2^bits together.
pub(crate) fn from_runs(bits: u8, runs: Vec<(u32, Configuration)>) -> Option<Table> {
    let count = 1usize << bits;
    let mut table = Vec::with_capacity(count);
    for (length, configuration) in runs {
        let length = length as usize;
        if length == 0 || length > count - table.len() {
            return None;
        }
        table.resize(table.len() + length, Arc::new(configuration));
    }
    (table.len() == count).then_some(table)
}

/// A table as runs of equal configurations, the shortest such list.
pub(crate) fn runs(table: &Table) -> Vec<(u32, &Configuration)> {
    let mut runs: Vec<(u32, &Arc<Configuration>)> = Vec::new();
    for configuration in table {
        match runs.last_mut() {
            Some((length, last))
                if Arc::ptr_eq(last, configuration) || **last == *configuration =>
            {
                *length += 1;
            }
            _ => runs.push((1, configuration)),
        }
    }
    runs.into_iter().map(|(length, configuration)| (length, &**configuration)).collect()
}
