//! Partitions: the slices that objects hash to, and which disks hold each of them.

use proto::{ConfigurationNumber, DiskId, Incarnation, LineageId, PartitionId};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// One opening of one disk: what an acknowledgement belongs to.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct Member {
    /// The disk.
    pub disk: DiskId,
    /// Which opening of it. A disk that was opened anew is another member.
    pub incarnation: Incarnation,
}

/// The disks that hold one partition, as last activated.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Configuration {
    /// Grows with each change of the members; 0 while the partition never had any.
    pub number: ConfigurationNumber,
    /// Who counts in quorums; empty only while the number is 0.
    pub current: Vec<Member>,
    /// Who receives writes and catches up, and counts in no quorum.
    pub recovering: Vec<Member>,
}

impl Configuration {
    /// How many current members make a quorum: a majority.
    pub fn quorum(&self) -> usize {
        self.current.len() / 2 + 1
    }
}

/// The configuration of every partition. Partitions with equal configurations share one, so the
/// table costs a pointer each, and a copy of it shares them all.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Partitions {
    table: Vec<Arc<Configuration>>,
}

impl Partitions {
    /// 2^bits partitions without members.
    pub(crate) fn new(bits: u8) -> Partitions {
        Partitions { table: vec![Arc::default(); 1 << bits] }
    }

    /// From runs of equal configurations; nothing if they are not a power of two together.
    pub(crate) fn from_runs(bits: u8, runs: Vec<(u32, Configuration)>) -> Option<Partitions> {
        let count = 1usize << bits;
        let mut table = Vec::with_capacity(count);
        for (length, configuration) in runs {
            let length = length as usize;
            if length == 0 || length > count - table.len() {
                return None;
            }
            table.resize(table.len() + length, Arc::new(configuration));
        }
        (table.len() == count).then_some(Partitions { table })
    }

    /// As runs of equal configurations, the shortest such list.
    pub(crate) fn runs(&self) -> Vec<(u32, &Configuration)> {
        let mut runs: Vec<(u32, &Arc<Configuration>)> = Vec::new();
        for configuration in &self.table {
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

    /// How many binary digits a partition number has.
    pub(crate) fn bits(&self) -> u8 {
        self.table.len().trailing_zeros() as u8
    }

    /// The configuration of one partition, if there is such a partition.
    pub(crate) fn configuration(&self, partition: PartitionId) -> Option<&Configuration> {
        self.table.get(partition.0 as usize).map(|configuration| &**configuration)
    }

    /// The different configurations, each at least once.
    pub(crate) fn distinct(&self) -> impl Iterator<Item = &Configuration> {
        self.runs().into_iter().map(|(_, configuration)| configuration)
    }

    /// Activates `member` in every partition that its disk holds in an older incarnation or that
    /// has no member yet, under the next number.
    ///
    /// With one disk that is all a change takes: whatever it holds is all there is, so there is
    /// nothing to fence, settle or copy first. With several, only the partitions that were prepared
    /// for it (DESIGN D3, "Changing members") may be activated.
    pub(crate) fn activate_sole(&mut self, member: Member) {
        let mut last: Option<(Arc<Configuration>, Arc<Configuration>)> = None;
        for slot in &mut self.table {
            if let Some((old, new)) = &last
                && Arc::ptr_eq(old, slot)
            {
                *slot = Arc::clone(new);
                continue;
            }
            assert!(slot.recovering.is_empty(), "recovery needs a second disk");
            assert!(slot.current.iter().all(|current| current.disk == member.disk));
            let new = Arc::new(Configuration {
                number: ConfigurationNumber(slot.number.0 + 1),
                current: vec![member],
                recovering: Vec::new(),
            });
            last = Some((Arc::clone(slot), Arc::clone(&new)));
            *slot = new;
        }
    }
}

/// Which of the 2^`bits` partitions the objects `index` of a lineage's layers belong to. A promise:
/// it never changes, because data lies where it says. It takes the upper bits of a well-spread
/// hash, so that doubling the partitions turns p into 2p and 2p + 1.
///
/// # Panics
/// If `bits` is more than 32: a bug of the caller.
pub fn partition_of(lineage: LineageId, index: u32, bits: u8) -> PartitionId {
    assert!(bits <= 32);
    if bits == 0 {
        return PartitionId(0);
    }
    let hash = mix(mix(lineage.0 ^ 0x7061_7274_6974_696f).wrapping_add(u64::from(index)));
    PartitionId((hash >> (64 - u32::from(bits))) as u32)
}

/// The splitmix64 finaliser: every bit of the input moves about half the bits of the output.
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}
