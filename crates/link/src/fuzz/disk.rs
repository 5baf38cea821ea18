//! A disk of a few numbers: answers as a store would, and knows every byte by its place.

use proto::{
    BLOCK_SIZE, BlockRange, BlockState, Buffer, Change, Incarnation, LayerId, MemberError,
    MemberReply, MemberRequest, ObjectKey, ObjectStamp, Payload, Stamp,
};

/// Where the last write of the disk's one chain stands, and how often it was asked what.
#[derive(Debug, Default)]
pub struct Disk {
    pub have: Stamp,
    /// Writes that were applied: each once.
    pub applied: u64,
}

/// What a write of this number brings, or a read at this place.
pub fn content(seed: u64, blocks: u32) -> Payload {
    let mut buffer = Buffer::stale(blocks as usize * BLOCK_SIZE);
    for (at, word) in buffer.as_mut_slice().chunks_exact_mut(8).enumerate() {
        word.copy_from_slice(&(seed.wrapping_mul(31) + at as u64).to_le_bytes());
    }
    buffer.freeze()
}

/// The object that all requests are about.
pub const KEY: ObjectKey = ObjectKey { layer: LayerId(3), index: 4 };

impl Disk {
    /// Answers as a store would.
    pub fn answer(&mut self, request: &MemberRequest) -> Result<MemberReply, MemberError> {
        let incarnation = Incarnation(1);
        let object =
            ObjectStamp { key: KEY, stamp: self.have, settled_generation: Default::default() };
        Ok(match request {
            MemberRequest::Fence { .. } => {
                // Three frames of rows, now and then.
                let count = if self.have.sequence % 16 == 5 { 3_300 } else { 1 };
                let rows = (0..count).map(|index| {
                    let key = ObjectKey { index, ..KEY };
                    ObjectStamp { key, ..object }
                });
                MemberReply::Fenced { incarnation, unsettled: rows.collect() }
            }
            MemberRequest::Settle { .. } | MemberRequest::OpenLayer { .. } => MemberReply::Done,
            MemberRequest::Stamp { .. } => MemberReply::Stamp(object),
            MemberRequest::Write(write) => {
                if let Change::Data { payload, .. } = &write.change {
                    let blocks = (payload.len() / BLOCK_SIZE) as u32;
                    let told = content(write.stamp.sequence, blocks);
                    assert!(
                        payload.as_slice() == told.as_slice(),
                        "the content of a write changed"
                    );
                    assert_eq!(payload.as_slice().as_ptr() as usize % BLOCK_SIZE, 0);
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
        })
    }
}
