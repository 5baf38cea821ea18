//! How many copies of a volume are kept: by which table its objects lie, and how few copies must be
//! left.

use crate::command::Answer;
use crate::layer::{self, Layer};
use crate::machine::DiskState;
use crate::map::Map;
use crate::partition::Configuration;
use crate::refusal::Refusal;
use crate::state::State;
use proto::limits::{COPIES_DEFAULT, COPIES_MAX, MEMBERS_MAX};
use proto::{Generation, LayerId, LineageId, VolumeId};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::sync::Arc;

/// How one lineage is kept. It is there as long as any of its layers: also when the volume is gone
/// and a clone still shows what it had.
///
/// Invariant: `copies` and `wanted` are 1 to `COPIES_MAX`, `min_copies` no more than the
/// larger of `copies` and `wanted`, and both tables exist.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Redundancy {
    /// By which table its objects lie: they have so many copies, or as many as there are disks.
    pub copies: u8,
    /// By which table they are to lie: `copies`, or another that they are being copied to.
    pub wanted: u8,
    /// With fewer copies than this its writes wait, unless it never had so many.
    pub min_copies: u8,
    /// The most copies that all of its partitions ever had at once.
    pub had: u8,
}

impl Redundancy {
    /// What holds unless something else is asked for.
    pub(crate) fn new(had: u8) -> Redundancy {
        let copies = COPIES_DEFAULT;
        Redundancy { copies, wanted: copies, min_copies: min_copies_default(copies), had }
    }

    /// No disk is excluded from a partition that would have fewer members then: `min_copies`, or
    /// what it has ever had, and at least one.
    pub fn floor(&self) -> u8 {
        self.min_copies.min(self.had).max(1)
    }
}

/// How few copies must be left unless something else is asked for: half of them, rounded up.
pub fn min_copies_default(copies: u8) -> u8 {
    copies.div_ceil(2)
}

impl Map {
    /// How a lineage is kept, if any layer of it is there. A source layer is not kept here at all.
    pub fn redundancy(&self, lineage: LineageId) -> Option<&Redundancy> {
        self.lineages.get(&lineage)
    }

    /// The fewest members that a partition of this table may be left with: what the strictest of
    /// those asks for that lie by it.
    pub fn floor(&self, copies: u8) -> u8 {
        let lies_by_it = |known: &&Redundancy| known.copies == copies || known.wanted == copies;
        let floors = self.lineages.values().filter(lies_by_it).map(Redundancy::floor);
        floors.max().unwrap_or(1)
    }

    /// How many current members every partition of a table has at least.
    pub(crate) fn fewest_members(&self, copies: u8) -> u8 {
        let table = self.partitions.table(copies).expect("looked up before");
        let fewest = table.iter().map(|configuration| configuration.current.len()).min();
        fewest.map_or(0, |fewest| fewest as u8)
    }

    /// How many whole copies every partition of a table has at least: current members whose disks
    /// are there in the opening that is listed. A disk that is away counts until it is left out.
    ///
    /// # Panics
    /// If there is no such table: a bug of the caller, see [`Map::tables`].
    pub fn fewest_whole(&self, copies: u8) -> u8 {
        let table = self.partitions.table(copies).expect("a table of the map");
        let whole = |configuration: &Arc<Configuration>| {
            configuration.current.iter().filter(|member| self.is_present(**member)).count()
        };
        // Partitions beside one another often share what they have.
        let same = |one: &Arc<Configuration>, next: &Arc<Configuration>| Arc::ptr_eq(one, next);
        let fewest = table.chunk_by(same).map(|run| whole(&run[0])).min();
        fewest.map_or(0, |fewest| fewest as u8)
    }

    /// The members of some partitions changed: lineages that have more copies than ever learn it.
    pub(crate) fn raise_had(&mut self) {
        for copies in self.tables().collect::<Vec<u8>>() {
            let has = self.fewest_members(copies);
            let rises = |known: &Redundancy| known.copies == copies && known.had < has;
            if self.lineages.values().any(rises) {
                let lineages = Arc::make_mut(&mut self.lineages);
                for known in lineages.values_mut().filter(|known| rises(known)) {
                    known.had = has;
                }
            }
        }
    }

    /// A volume has its first layer: its lineage is kept as that is from which it is cloned.
    pub(crate) fn add_lineage(&mut self, layer: Layer) {
        let origin = self.layer(layer.parent).and_then(|parent| self.redundancy(parent.lineage));
        let like = origin.copied().unwrap_or(Redundancy::new(0));
        let had = self.fewest_members(like.wanted);
        let known = Redundancy { copies: like.wanted, had, ..like };
        Arc::make_mut(&mut self.lineages).insert(layer.lineage, known);
    }

    /// Other copies of a lineage are wanted, vetted before; and there already, if there is nothing
    /// to copy for that.
    fn keep(&mut self, lineage: LineageId, is_unwritten: bool, copies: u8, min_copies: u8) {
        let mut new = Redundancy { wanted: copies, min_copies, ..self.lineages[&lineage] };
        let before = new.copies;
        let disks = Arc::clone(&self.disks);
        let state = |disk| disks.get(&disk).map_or(DiskState::Gone, |disk| disk.state);
        if self.partitions.table(copies).is_none() {
            Arc::make_mut(&mut self.partitions).add_table(copies, state);
        }
        // Nothing lies by the former table, or it lies where the new one says: nothing to copy.
        let tables = [before, copies].map(|copies| self.partitions.table(copies));
        if is_unwritten || tables[0] == tables[1] {
            new.copies = copies;
            let has = self.fewest_members(copies);
            new.had = if is_unwritten { has } else { new.had.max(has) };
        }
        Arc::make_mut(&mut self.lineages).insert(lineage, new);
    }

    /// A layer is gone: its lineage too, if it was the last of it.
    pub(crate) fn forget_lineage(&mut self, lineage: LineageId) {
        // A lineage is named for its first layer, so its layers have no lower ids.
        let mut layers = self.layers.range(LayerId(lineage.0)..);
        if self.lineages.contains_key(&lineage) && layers.all(|(_, l)| l.lineage != lineage) {
            Arc::make_mut(&mut self.lineages).remove(&lineage);
        }
    }
}

impl State {
    /// Changes how many copies of a volume are wanted, and how few must be left.
    pub(crate) fn set_copies(
        &mut self,
        id: VolumeId,
        copies: u8,
        min_copies: Option<u8>,
    ) -> Result<Answer, Refusal> {
        let min_copies = vet(copies, min_copies)?;
        let volume = self.volume(id)?;
        let (lineage, is_unwritten) = (volume.lineage, volume.generation == Generation(0));
        let present = self.map.lineages[&lineage];
        if present != (Redundancy { wanted: copies, min_copies, ..present }) {
            self.change().keep(lineage, is_unwritten, copies, min_copies);
        }
        Ok(Answer::Done)
    }

    /// As [`State::set_copies`], where nothing has to be copied for it, and nobody can hold it for
    /// lying where it did: who carries out an attempt may go by a map of long ago, and must not
    /// take what lies by another table by now for what it is to make equal.
    pub(crate) fn keep_copies(
        &mut self,
        id: VolumeId,
        copies: u8,
        min_copies: Option<u8>,
    ) -> Result<Answer, Refusal> {
        vet(copies, min_copies)?;
        let volume = self.volume(id)?;
        let from = self.map.lineages[&volume.lineage].copies;
        // With one disk all tables say the same.
        let is_one = self.map.disks.len() == 1 && self.map.next_attempt == 1;
        if copies != from && !is_one {
            let name = volume.name.clone();
            return Err(Refusal::CopiesAreFixed { name, copies, from });
        }
        self.set_copies(id, copies, min_copies)
    }

    /// A new volume that is kept as is said.
    pub(crate) fn create_volume_kept(
        &mut self,
        name: &str,
        bytes: u64,
        from: Option<&(String, u64)>,
        (copies, min_copies): (u8, Option<u8>),
        unix_s: u64,
    ) -> Result<Answer, Refusal> {
        let min_copies = vet(copies, min_copies)?;
        let answer = match from {
            Some((address, source_bytes)) => {
                self.create_volume_from(name, bytes, address, *source_bytes, unix_s)?
            }
            None => self.create_volume(name, bytes, unix_s)?,
        };
        let Answer::VolumeCreated { volume } = answer else { unreachable!("it was made") };
        let lineage = self.map.volumes[&volume].lineage;
        // The same change as the creation.
        Arc::make_mut(&mut self.map).keep(lineage, true, copies, min_copies);
        Ok(answer)
    }

    /// All that a volume has lies by the table that is wanted.
    pub(crate) fn copies_moved(
        &mut self,
        id: VolumeId,
        generation: Generation,
        copies: u8,
    ) -> Result<Answer, Refusal> {
        let volume = self.volume(id)?;
        if volume.writer().is_none_or(|writer| writer.generation != generation) {
            return Err(Refusal::NotTheWriter { name: volume.name.clone(), generation });
        }
        let lineage = volume.lineage;
        let present = self.map.lineages[&lineage];
        // Others may be wanted meanwhile: then the session goes on with those.
        if present.wanted != copies || present.copies == copies {
            return Ok(Answer::Done);
        }
        let map = self.change();
        let had = present.had.max(map.fewest_members(copies));
        let new = Redundancy { copies, had, ..present };
        Arc::make_mut(&mut map.lineages).insert(lineage, new);
        Ok(Answer::Done)
    }
}

/// Whether a volume can be kept so; with how many copies that must be left.
fn vet(copies: u8, min_copies: Option<u8>) -> Result<u8, Refusal> {
    if !(1..=COPIES_MAX).contains(&copies) {
        return Err(Refusal::BadCopies { copies });
    }
    let min_copies = min_copies.unwrap_or(min_copies_default(copies));
    if !(1..=copies).contains(&min_copies) {
        return Err(Refusal::BadMinCopies { copies, min_copies });
    }
    Ok(min_copies)
}

/// The first invariant that does not hold for how lineages are kept.
pub(crate) fn contradiction(map: &Map) -> Result<(), &'static str> {
    let hold = layer::hold;
    let is_kept = |(id, _): &(&LayerId, &Layer)| !map.sources.contains_key(id);
    let kept = map.layers.iter().filter(is_kept).map(|(_, layer)| layer.lineage);
    let kept: BTreeSet<LineageId> = kept.collect();
    hold(kept.iter().eq(map.lineages.keys()), "a lineage of no layers, or layers of none")?;
    for known in map.lineages.values() {
        for copies in [known.copies, known.wanted] {
            hold(map.partitions.table(copies).is_some(), "a lineage without its table")?;
        }
        let most = known.copies.max(known.wanted);
        hold((1..=most).contains(&known.min_copies), "how few copies must be left")?;
        hold(usize::from(known.had) <= MEMBERS_MAX, "more copies than there can be")?;
    }
    Ok(())
}
