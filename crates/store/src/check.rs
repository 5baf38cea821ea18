//! The offline check of a whole disk: every block owned exactly once, every borrowed one by a layer
//! below, the bitmap equal to the maps, every checksum right. For tests, and for a disk that
//! nobody has open.

use crate::layout::{
    BLOCKS_PER_PAGE, Entry, Kind, PAGES_PER_OBJECT, PageName, Run, parse_checkpoint_page,
    parse_map_page, parse_superblock,
};
use crate::open::{Offline, Opening, Replay};
use crate::space::CHUNK_BLOCKS;
use crate::table::{NOT_CACHED, Row, Slot};
use crate::{Damage, DamagedPart, Effect, OpenError, Options, Usage};
use proto::{
    BLOCK_SIZE, DiskDone, DiskOp, DiskRequest, LayerId, LineageId, ObjectKey, Stamp, Time,
    block_checksum,
};
use std::collections::{BTreeMap, VecDeque};

/// Reads `buffer.len()` bytes of the medium at a byte offset; what lies past its end reads as
/// zeros.
pub trait ReadMedium {
    /// Fills the buffer.
    fn read(&mut self, offset: u64, buffer: &mut [u8]) -> Result<(), proto::DiskError>;
    /// Length of the medium in bytes.
    fn bytes(&self) -> u64;
}

impl ReadMedium for &[u8] {
    fn read(&mut self, offset: u64, buffer: &mut [u8]) -> Result<(), proto::DiskError> {
        buffer.fill(0);
        let start = usize::try_from(offset).unwrap_or(usize::MAX).min(self.len());
        let end = start.saturating_add(buffer.len()).min(self.len());
        buffer[..end - start].copy_from_slice(&self[start..end]);
        Ok(())
    }

    fn bytes(&self) -> u64 {
        self.len() as u64
    }
}

/// What the check found.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Report {
    /// What is wrong, one sentence each. Empty: the disk is whole.
    pub problems: Vec<String>,
    /// Damaged places, also among the problems.
    pub damages: Vec<Damage>,
    /// The objects and their stamps.
    pub objects: BTreeMap<ObjectKey, Stamp>,
    /// What each layer uses.
    pub usage: BTreeMap<LayerId, Usage>,
    /// Blocks marked used that nobody owns.
    pub leaked_blocks: u64,
    /// Records found in the log.
    pub records: u64,
}

/// Checks a disk from its bytes alone, as if it were opened now, without changing it. An error
/// means that the disk could not be opened at all.
pub fn check(medium: &mut dyn ReadMedium) -> Result<Report, OpenError> {
    let offline = open(medium)?;
    let chunks = offline.replay.space.chunk_count();
    let blocks = u64::from(chunks) * u64::from(CHUNK_BLOCKS);
    let mut check = Check {
        medium,
        first: offline.replay.superblock.space_first,
        owned: vec![false; blocks as usize],
        owners: BTreeMap::new(),
        borrowed: Vec::new(),
        report: Report { records: offline.replay.records, ..Report::default() },
    };
    for damage in &offline.damages {
        check.damage(*damage);
    }
    check.checkpoint(&offline.replay);
    for (slot, row) in offline.replay.table.slots() {
        check.object(&offline, slot, row);
    }
    check.borrowed(&offline.replay);
    check.space(&offline.replay);
    Ok(check.report)
}

/// Opens the disk up to the point where the first write would be.
fn open(medium: &mut dyn ReadMedium) -> Result<Offline, OpenError> {
    let mut block = vec![0; BLOCK_SIZE];
    let mut kinds = [0, BLOCK_SIZE as u64].into_iter().filter_map(|offset| {
        medium.read(offset, &mut block).ok()?;
        parse_superblock(&block).ok().map(|superblock| superblock.kind)
    });
    let kind = kinds.next().unwrap_or_default();
    let mut effects = Vec::new();
    let options = Options::new(kind, medium.bytes());
    let mut opening = Opening::new(Time::default(), options, &mut effects);
    let mut todo: VecDeque<Effect> = effects.drain(..).collect();
    while let Some(effect) = todo.pop_front() {
        match effect {
            Effect::Disk(DiskOp { token, request: DiskRequest::Read { offset, mut buffer } }) => {
                let result = medium.read(offset, buffer.as_mut_slice()).map(|()| Some(buffer));
                opening.handle(Time::default(), DiskDone { token, result }, &mut effects);
                todo.extend(effects.drain(..));
            }
            Effect::Opened(Err(error)) => return Err(error),
            _ => break,
        }
    }
    opening.offline().ok_or_else(|| OpenError::Refused("the disk could not be read".to_owned()))
}

/// A check under way.
struct Check<'a> {
    medium: &'a mut dyn ReadMedium,
    first: u64,
    /// By block of space.
    owned: Vec<bool>,
    /// The blocks of data by their addresses.
    owners: BTreeMap<u64, Block>,
    borrowed: Vec<(u64, Block)>,
    report: Report,
}

/// A block of data as a map names it.
#[derive(Clone, Copy)]
struct Block {
    lineage: LineageId,
    key: ObjectKey,
    block: u32,
    checksum: u64,
}

impl Check<'_> {
    fn problem(&mut self, sentence: String) {
        self.report.problems.push(sentence);
    }

    fn damage(&mut self, damage: Damage) {
        self.problem(damage.to_string());
        self.report.damages.push(damage);
    }

    fn read(&mut self, address: u64) -> Result<Vec<u8>, proto::DiskError> {
        let mut block = vec![0; BLOCK_SIZE];
        self.medium.read(address * BLOCK_SIZE as u64, &mut block)?;
        Ok(block)
    }

    /// Notes who owns a block.
    fn own(&mut self, replay: &Replay, address: u64, owner: &str) {
        let at = address.checked_sub(self.first).and_then(|at| usize::try_from(at).ok());
        let Some(owned) = at.and_then(|at| self.owned.get_mut(at)) else {
            return self.problem(format!("{owner} lies outside of space, at block {address}"));
        };
        if std::mem::replace(owned, true) {
            self.problem(format!("{owner} is at block {address}, which has another owner too"));
        }
        if !replay.space.is_taken(address) {
            self.problem(format!("{owner} is at block {address}, which is marked free"));
        }
        if !replay.space.is_allocated(Run { address, count: 1 }) {
            self.problem(format!("{owner} is at block {address}, which is in a hole"));
        }
    }

    /// Both copies of every page of the checkpoint.
    fn checkpoint(&mut self, replay: &Replay) {
        for (header, listed) in &replay.listing {
            for address in [listed.address, listed.twin] {
                self.own(replay, address, "a page of the checkpoint");
                let bytes = self.read(address);
                let unreadable = bytes.is_err();
                let good = bytes
                    .is_ok_and(|bytes| parse_checkpoint_page(&bytes, *header, listed.checksum));
                if !good {
                    self.damage(Damage { part: DamagedPart::Checkpoint, address, unreadable });
                }
            }
        }
    }

    /// The map and the data of one object.
    fn object(&mut self, offline: &Offline, slot: Slot, row: &Row) {
        let replay = &offline.replay;
        self.report.objects.insert(row.key, row.stamp);
        let known = replay.lineages.get(&row.lineage);
        if row.unmarked && known.is_none_or(|known| known.mark.is_none()) {
            self.problem(format!("object {} was adopted after a mark that is not there", row.key));
        }
        let usage = self.report.usage.entry(row.key.layer).or_default();
        usage.objects += 1;
        for page in 0..PAGES_PER_OBJECT {
            let (address, checksum) = row.page(page);
            let name = PageName { lineage: row.lineage, key: row.key, page: page as u8 };
            let mut stored = None;
            if address != 0 {
                self.report.usage.entry(row.key.layer).or_default().map_blocks += 1;
                self.own(replay, address, "a map page");
                let bytes = self.read(address);
                let unreadable = bytes.is_err();
                stored = bytes.ok().and_then(|bytes| parse_map_page(&bytes, &name, checksum));
                if stored.is_none() {
                    let PageName { lineage, key, page } = name;
                    let part = DamagedPart::MapPage { lineage, key, page };
                    self.damage(Damage { part, address, unreadable });
                }
            }
            let index = replay.table.row(slot).cached[page];
            let map = if index == NOT_CACHED {
                stored.as_ref()
            } else {
                Some(&offline.cache.peek(index).map)
            };
            let Some(map) = map else {
                if address == 0 && row.counts[page] != 0 {
                    self.problem(format!("object {} counts blocks of a page it lacks", row.key));
                }
                continue;
            };
            if map.data() != row.counts[page] {
                self.problem(format!("object {} counts the blocks of a page wrong", row.key));
            }
            self.report.usage.entry(row.key.layer).or_default().data_blocks +=
                u64::from(map.data());
            for at in 0..BLOCKS_PER_PAGE {
                self.block(replay, &name, map.entry(at), page as u32 * BLOCKS_PER_PAGE + at);
            }
        }
    }

    fn block(&mut self, replay: &Replay, name: &PageName, entry: Entry, block: u32) {
        if entry.kind != Kind::Data {
            return;
        }
        let named = Block { lineage: name.lineage, key: name.key, block, checksum: entry.checksum };
        if !entry.owner {
            self.borrowed.push((entry.address, named));
            return;
        }
        self.owners.insert(entry.address, named);
        self.own(replay, entry.address, "a block of data");
        let bytes = self.read(entry.address);
        let unreadable = bytes.is_err();
        let good = bytes.is_ok_and(|bytes| {
            block_checksum(name.lineage, name.key, block, &bytes) == entry.checksum
        });
        if !good {
            let part = DamagedPart::Data { lineage: name.lineage, key: name.key, block };
            self.damage(Damage { part, address: entry.address, unreadable });
        }
    }

    /// Every borrowed block belongs to a layer below, as the same block with the same content.
    fn borrowed(&mut self, replay: &Replay) {
        // Of a page that was damaged nobody knows the owners.
        if replay.lost_blocks > 0 || !self.report.damages.is_empty() {
            return;
        }
        for (address, named) in std::mem::take(&mut self.borrowed) {
            let tree = replay.lineages.get(&named.lineage).map(|known| &known.tree);
            let sound = self.owners.get(&address).is_some_and(|owner| {
                let below = owner.key.layer < named.key.layer
                    && tree.is_some_and(|tree| tree.is_below(owner.key.layer, named.key.layer));
                let place = |at: &Block| (at.lineage, at.key.index, at.block, at.checksum);
                below && place(owner) == place(&named)
            });
            if !sound {
                let Block { key, block, .. } = named;
                self.problem(format!(
                    "block {block} of object {key} is borrowed at block {address}, which no layer \
                     below owns"
                ));
            }
        }
    }

    /// Every used block has an owner.
    fn space(&mut self, replay: &Replay) {
        let taken = replay.space.allocated() - replay.space.available();
        let owned = self.owned.iter().filter(|&&owned| owned).count() as u64;
        self.report.leaked_blocks = taken.saturating_sub(owned);
        if self.report.leaked_blocks > replay.lost_blocks && self.report.damages.is_empty() {
            self.problem(format!("{} used blocks have no owner", self.report.leaked_blocks));
        }
    }
}
