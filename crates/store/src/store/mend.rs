//! Damages that a checkpoint mends, because it writes anew what was damaged.

use super::Serving;
use crate::{Damage, DamagedPart, Effect, Notice};

impl Serving {
    /// What was damaged before this checkpoint and belongs to checkpoints was written anew.
    pub(super) fn tell_mended(&mut self, effects: &mut Vec<Effect>) {
        let table = &self.table;
        let is_mended = |damage: &Damage| match damage.part {
            DamagedPart::Superblock | DamagedPart::Log | DamagedPart::Checkpoint => true,
            DamagedPart::MapPage { lineage, key, page } => table
                .find(lineage, key)
                .is_none_or(|slot| table.row(slot).page(usize::from(page)).0 != damage.address),
            DamagedPart::Data { .. } => false,
        };
        let mended: Vec<Damage> = self.damages.iter().copied().filter(is_mended).collect();
        self.damages.retain(|damage| !mended.contains(damage));
        effects.extend(mended.into_iter().map(|damage| Effect::Notice(Notice::Mended(damage))));
    }

    /// Damages met while the disk was opened: what a checkpoint can mend, the first one does.
    pub(super) fn mend_opened(&mut self) {
        for damage in &self.damages {
            match damage.part {
                DamagedPart::Superblock => self.checkpoint.request(),
                DamagedPart::Checkpoint => {
                    self.checkpoint.request();
                    let listed = self.checkpoint.listing().iter().find(|(_, listed)| {
                        [listed.address, listed.twin].contains(&damage.address)
                    });
                    if let Some((&header, _)) = listed {
                        self.checkpoint.write_again(header);
                    }
                }
                _ => {}
            }
        }
    }
}
