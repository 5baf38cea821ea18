//! A disk of a few numbers: answers as a store would, and knows every byte by its place.

use super::copying::{COPIED, Copied};
use proto::limits::MEMBER_ROWS_MAX;
use proto::{
    BLOCK_SIZE, BlockRange, BlockState, BlockSum, Buffer, Change, Generation, Incarnation, LayerId,
    LineageId, LineageStamp, MemberError, MemberReply, MemberRequest, ObjectKey, ObjectStamp,
    PartitionId, Payload, Refused, Stamp, Under, partition_of,
};

/// Where the last write of the disk's one chain stands, and how often it was asked what.
#[derive(Debug, Default)]
pub struct Disk {
    pub have: Stamp,
    /// Writes that were applied: each once.
    pub applied: u64,
    /// The object that is copied over and over.
    pub copied: Copied,
}

/// What a write of this number brings, or a read at this place.
pub fn content(seed: u64, blocks: u32) -> Payload {
    let mut buffer = Buffer::stale(blocks as usize * BLOCK_SIZE);
    for (at, word) in buffer.as_mut_slice().chunks_exact_mut(8).enumerate() {
        word.copy_from_slice(&(seed.wrapping_mul(31) + at as u64).to_le_bytes());
    }
    buffer.freeze()
}

/// The object that all requests are about, but for those of a copier.
pub const KEY: ObjectKey = ObjectKey { layer: LayerId(3), index: 4 };

impl Disk {
    /// Answers as a store would.
    pub fn answer(&mut self, request: &MemberRequest) -> Result<MemberReply, MemberError> {
        let incarnation = Incarnation(1);
        let object =
            ObjectStamp { key: KEY, stamp: self.have, settled_generation: Default::default() };
        Ok(match request {
            MemberRequest::Fence { list, after, .. } => {
                let first = if after.layer < KEY.layer { 0 } else { after.index + 1 };
                let rows = (first..).take(if *list { self.rows() } else { 0 }).map(|index| {
                    let key = ObjectKey { index, ..KEY };
                    ObjectStamp { key, ..object }
                });
                let (unsettled, more) = (rows.collect(), *list && self.goes_on());
                MemberReply::Fenced { incarnation, settled: self.have, unsettled, more }
            }
            MemberRequest::Stage { key: COPIED, change, .. } => {
                let Change::Data { first, payload, .. } = change else { panic!("{change:?}") };
                self.copied.stage(*first, payload);
                MemberReply::Done
            }
            MemberRequest::Adopt { key: COPIED, staged, stamp, .. } => {
                return self.copied.adopt(*staged, *stamp);
            }
            MemberRequest::Settle { .. }
            | MemberRequest::OpenLayer { .. }
            | MemberRequest::Mark { .. }
            | MemberRequest::Adopt { .. }
            | MemberRequest::Retract { .. } => MemberReply::Done,
            MemberRequest::Stage { change, .. } => {
                if let Change::Data { first, payload, .. } = change {
                    check_content(payload, (*first).into());
                }
                MemberReply::Done
            }
            MemberRequest::Stamp { .. } => MemberReply::Stamp(object),
            MemberRequest::Write(write) => {
                if let Change::Data { payload, .. } = &write.change {
                    check_content(payload, write.stamp.sequence);
                }
                if self.have != write.stamp {
                    if self.have != write.previous {
                        return Err(MemberError::WrongStamp { have: self.have });
                    }
                    self.have = write.stamp;
                    self.applied += 1;
                }
                MemberReply::Written { incarnation }
            }
            MemberRequest::Read { blocks, .. } => {
                let whole = content(blocks.first().into(), blocks.count());
                // In two pieces, where there are two blocks.
                let half = blocks.count() as usize / 2 * BLOCK_SIZE;
                let pieces = [whole.slice(0, half), whole.slice(half, whole.len() - half)];
                let content = pieces.into_iter().filter(|piece| !piece.is_empty()).collect();
                let absent = BlockRange::new(blocks.first(), 1).into_iter().collect();
                MemberReply::Data { content, absent }
            }
            MemberRequest::Map { blocks, .. } => {
                MemberReply::Map(vec![(blocks.count(), BlockState::Zero)])
            }
            MemberRequest::Difference { blocks, .. } => {
                MemberReply::Difference((0..blocks.count()).map(|_| (1, None)).collect())
            }
            MemberRequest::Reclaimable { index, .. } => {
                MemberReply::Reclaimable { blocks: 5, next_index: Some(index + 1) }
            }
            MemberRequest::Flush { .. } => MemberReply::Flushed { incarnation },
            MemberRequest::Confirm { refusals, .. } => {
                let partitions = (0..self.rows() as u32).map(PartitionId);
                let under = Under { copies: 3, bits: 12, ..Under::default() };
                let refused = partitions.map(|partition| Refused { under, partition }).collect();
                let (refusals, more) = (refusals + 1, self.goes_on());
                MemberReply::Confirmed { incarnation, refusals, refused, more }
            }
            MemberRequest::Lineages { after } => {
                let lineage = |number| LineageStamp {
                    lineage: LineageId(number),
                    fence: Generation(1),
                    settled: self.have,
                    marked_by: Generation(1),
                };
                let lineages = (after.0 + 1..).take(self.rows()).map(lineage).collect();
                MemberReply::Lineages { lineages, more: self.goes_on() }
            }
            MemberRequest::Survey { bits, partitions, after: (lineage, after), .. } => {
                let first = if after.layer < KEY.layer { 0 } else { after.index + 1 };
                let is_asked = |index: &u32| {
                    partitions.binary_search(&partition_of(*lineage, *index, *bits)).is_ok()
                };
                let rows = (first..first + 5000).filter(is_asked).take(self.rows());
                let rows = rows.map(|index| {
                    let key = ObjectKey { index, ..KEY };
                    (*lineage, ObjectStamp { key, ..object })
                });
                let objects: Vec<_> = rows.collect();
                let more = self.goes_on() && !objects.is_empty();
                MemberReply::Survey { incarnation, objects, more }
            }
            MemberRequest::Checksums { blocks, .. } => {
                let sum = |place: u32| match place % 3 {
                    0 => BlockSum::Absent,
                    1 => BlockSum::Zero,
                    _ => BlockSum::Data(place.into()),
                };
                MemberReply::Checksums(blocks.iter().map(sum).collect())
            }
            MemberRequest::Refuse(_) => {
                MemberReply::Refused { incarnation, lossless_from: incarnation }
            }
            MemberRequest::Install { .. } => MemberReply::Installed { incarnation },
        })
    }

    /// Rows of a list: as many as it may have, now and then.
    fn rows(&self) -> usize {
        if self.goes_on() { MEMBER_ROWS_MAX } else { 1 }
    }

    fn goes_on(&self) -> bool {
        self.have.sequence % 16 == 5
    }
}

/// Asserts that the content is that of this seed, and lies as a disk wants it.
fn check_content(payload: &Payload, seed: u64) {
    let told = content(seed, (payload.len() / BLOCK_SIZE) as u32);
    assert!(payload.as_slice() == told.as_slice(), "the content of a request changed");
    assert_eq!(payload.as_slice().as_ptr() as usize % BLOCK_SIZE, 0);
}
