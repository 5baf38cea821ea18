//! What the next configuration begins with: found out from those who refused the present one.

use super::comparison::Comparison;
use super::evidence::{is_enough, is_lossless};
use super::{Ask, AttemptStage, NONSENSE, Part, Reconfigurer, add, lists};
use cluster::LayerFate;
use proto::{DiskId, Incarnation, LayerId, LineageId, ObjectKey, ObjectStamp};
use std::collections::{BTreeSet, VecDeque};

impl Reconfigurer {
    pub(super) fn is_refused(&self) -> bool {
        self.parts.values().all(|part| {
            let have_said = part.wanted.iter().all(|disk| self.said.contains_key(disk));
            have_said && is_enough(&part.members, &self.said)
        })
    }

    /// Whether a disk that is to be a member has, but for what is not settled, all that the others
    /// have.
    fn has_all(&self, part: &Part, disk: DiskId) -> bool {
        let listed = part.members.iter().find(|member| member.disk == disk);
        let said = self.said.get(&disk);
        listed.zip(said).is_some_and(|(member, said)| is_lossless(member, said))
    }

    /// Those who refused in a partition: first those that have all they acknowledged.
    pub(super) fn evidence(&self, part: &Part) -> VecDeque<DiskId> {
        let refused = part.members.iter().filter(|member| self.said.contains_key(&member.disk));
        let mut disks: Vec<DiskId> = refused.map(|member| member.disk).collect();
        disks.sort_by_key(|&disk| !self.has_all(part, disk));
        disks.into()
    }

    /// Asks those who refused what is not settled and which fences they keep, and looks through the
    /// next members that do not have all.
    pub(super) fn begin_settling(&mut self) {
        self.begin_step();
        self.stage = AttemptStage::Settling;
        let said: Vec<(DiskId, Incarnation)> =
            self.said.iter().map(|(&disk, said)| (disk, said.incarnation)).collect();
        for (disk, incarnation) in said {
            self.openings.insert(disk, incarnation);
            if self.parts.values().any(|part| lists(part, disk)) {
                self.ask(disk, Ask::Unsettled { after: Default::default() });
                self.ask(disk, Ask::Lineages { after: LineageId(0) });
            }
        }
        let mut comparisons: Vec<Comparison> = Vec::new();
        for (&partition, part) in &self.parts {
            for &target in part.wanted.iter().filter(|&&disk| !self.has_all(part, disk)) {
                let mut sources = self.evidence(part);
                sources.retain(|&source| source != target);
                let is_listed = lists(part, target);
                if !sources.is_empty() {
                    add(&mut comparisons, self.bits, partition, sources, target, is_listed);
                }
            }
        }
        self.begin_comparing(comparisons);
    }

    pub(super) fn note_unsettled(
        &mut self,
        disk: DiskId,
        after: (LineageId, ObjectKey),
        objects: Vec<(LineageId, ObjectStamp)>,
        more: bool,
    ) {
        let mut last = after;
        for (lineage, found) in objects {
            let place = (lineage, found.key);
            if place <= last {
                return self.fail_disk(disk, NONSENSE.to_string());
            }
            last = place;
            let part = self.part(lineage, found.key.index);
            let is_asked = part.is_some_and(|part| lists(part, disk));
            if is_asked {
                self.found.insert(lineage);
                let known = self.known.entry(place).or_default();
                known.stamps.insert(disk, found);
                known.named.insert(disk);
            }
        }
        if more && last == after {
            return self.fail_disk(disk, NONSENSE.to_string());
        }
        if more {
            self.ask(disk, Ask::Unsettled { after: last });
        }
    }

    /// All that was asked is answered: asks what is missing, or plans what is to be installed.
    /// False if a newer map is needed before it can go on.
    pub(super) fn settle(&mut self) -> bool {
        // What was issued before the members refused, a map of now knows.
        let found: BTreeSet<(LineageId, LayerId)> = self
            .known
            .keys()
            .map(|(lineage, key)| (*lineage, key.layer))
            .chain(self.work.differences.keys().map(|place| (place.lineage, place.layer)))
            .collect();
        let fates = self.map.layer_fates(&found.into_iter().collect::<Vec<_>>());
        if fates.iter().any(|(.., fate)| *fate == LayerFate::NeverIssued) {
            return false;
        }
        let mut missing: Vec<(DiskId, Ask)> = Vec::new();
        for (&(lineage, key), known) in &self.known {
            let Some(part) = self.part(lineage, key.index) else { continue };
            if !self.is_live(lineage, key) {
                continue;
            }
            let silent = self.evidence(part).into_iter();
            let silent = silent.filter(|disk| !known.stamps.contains_key(disk));
            missing.extend(silent.map(|disk| (disk, Ask::Stamp { lineage, key })));
        }
        if !missing.is_empty() {
            self.is_verified = false;
            missing.into_iter().for_each(|(disk, ask)| self.ask(disk, ask));
            return true;
        }
        if !self.is_verified {
            // An answer about one object does not say in which opening it was given.
            self.is_verified = true;
            let said: Vec<DiskId> = self.said.keys().copied().collect();
            said.into_iter().for_each(|disk| self.ask(disk, Ask::Refuse));
            return true;
        }
        self.begin_step();
        self.stage = AttemptStage::Installing;
        self.plan_settled();
        true
    }
}
