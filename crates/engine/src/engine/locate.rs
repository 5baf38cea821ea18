//! Which disks hold a volume, or one of its objects: where they have their place by the map,
//! written or not.

use super::Engine;
use super::explain::{Amount, Copy};
use crate::admin::{AdminError, AdminErrorKind, LocateReport, LocatedReport};
use proto::{Time, counted};
use std::collections::BTreeMap;

impl Engine {
    /// Where a volume is, or one of its objects.
    pub(super) fn locate(
        &self,
        now: Time,
        name: &str,
        index: Option<u64>,
    ) -> Result<LocateReport, AdminError> {
        let id = self.find(name)?;
        let volume = self.map.volume(id).expect("found just now");
        let (sight, behind) = (self.sight(now), self.behind_of(volume));
        let parts = self.parts(volume);
        let bits = self.map.partition_bits();
        let objects = parts.first().map_or(0, |own| own.objects());
        if let Some(index) = index.filter(|index| *index >= objects) {
            let sentence = format!(
                "volume {name} has no object {index}: it has {}, counted from 0, each of 4 MiB",
                counted(objects, "object", "objects")
            );
            return Err(AdminError { kind: AdminErrorKind::Invalid, sentence });
        }
        let (mut located, mut estimated) = (Vec::new(), false);
        for part in &parts {
            let amounts = match index {
                None => {
                    let (amounts, is_estimated) = part.amounts(bits);
                    estimated |= is_estimated;
                    amounts
                }
                // As far as this one shows through.
                Some(index) if index < part.objects() => {
                    let partition = self.map.partition_of(part.lineage, index as u32);
                    let amount = Amount { objects: 1, bytes: part.bytes_of(index) };
                    BTreeMap::from([(partition, amount)])
                }
                Some(_) => continue,
            };
            let mut sums: BTreeMap<Copy, Amount> = BTreeMap::new();
            for (partition, amount) in amounts {
                let held = self.map.configuration(part.copies, partition);
                let is_behind = |disk| behind.contains(&(part.copies, partition, disk));
                for copy in self.copies_of(held, &sight, is_behind) {
                    let sum = sums.entry(copy).or_default();
                    sum.objects += amount.objects;
                    sum.bytes += amount.bytes;
                }
            }
            located.extend(sums.into_iter().map(|(copy, sum)| LocatedReport {
                part: part.name.clone(),
                member: self.copy_report(now, copy),
                objects: sum.objects,
                bytes: sum.bytes,
            }));
        }
        Ok(LocateReport { name: volume.name.clone(), index, objects, located, estimated })
    }
}
