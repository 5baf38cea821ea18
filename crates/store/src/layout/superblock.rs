//! The superblock: who the disk is, and where its checkpoint and its log begin.

use super::codec::{Cursor, Put, Reader, is_sealed, seal};
use super::{ADDRESS_MAX, CheckpointKind, PageHeader, RootEntry};
use crate::{Damage, DamagedPart, Identity, MediumKind};
use proto::{BLOCK_SIZE, Buffer, ClusterId, DiskId, Incarnation, NodeId};

const MAGIC: [u8; 8] = *b"SHEEPDSK";
/// What is written. Version 1 knew nothing of replication: it has zeros where this one says what
/// the machine's boots were, which means that nothing is known of them.
const VERSION: u32 = 2;
const VERSION_MIN: u32 = 1;
const CHECKSUM_AT: usize = 16;
/// The log begins behind the two superblocks and a spare block.
pub(crate) const LOG_FIRST: u64 = 3;
/// Checksum, two addresses and number of the root's top.
const ROOT_PLACE_BYTES: usize = 3 * 8 + 4;
/// What a superblock says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Superblock {
    pub(crate) sequence: u64,
    pub(crate) identity: Identity,
    pub(crate) incarnation: Incarnation,
    pub(crate) kind: MediumKind,
    pub(crate) created_unix_s: u64,
    /// The log region: `log_blocks` from block [`LOG_FIRST`] on.
    pub(crate) log_blocks: u64,
    /// The first block of space.
    pub(crate) space_first: u64,
    /// Where space may end at most; 0: wherever the medium ends.
    pub(crate) limit_blocks: u64,
    /// Where replay starts: the block within the log region, the batch and the record expected.
    pub(crate) replay_position: u64,
    pub(crate) replay_sequence: u64,
    pub(crate) replay_lsn: u64,
    /// The opening that noted that place: batches from there on are of this one or a later one. A
    /// batch of an earlier opening there is what a crash cut off.
    pub(crate) replay_incarnation: Incarnation,
    /// All records up to here are durable, with their data.
    pub(crate) durable_lsn: u64,
    /// The top page of the root; without it there is no checkpoint yet.
    pub(crate) root: Option<RootEntry>,
    /// The last opening that the agreed state acknowledged, as far as the disk was told: a map that
    /// has not seen it is an old copy. 0: it was never told.
    pub(crate) agreed_incarnation: Incarnation,
    /// The machine's boot in which the last opening was; all zero: not known, or the disk failed
    /// since.
    pub(crate) boot: [u8; 16],
    /// What openings from this one on acknowledged is all there. Never above `incarnation`; 0
    /// before the first opening that was told the boot.
    pub(crate) lossless_from: Incarnation,
}

/// Why some bytes are no superblock.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum SuperblockError {
    /// All zero.
    Blank,
    /// Something else.
    Foreign,
    /// It was one, or is one torn.
    Damaged,
    /// A later version.
    Newer(u32),
}

impl Superblock {
    /// The block it belongs in.
    pub(crate) fn address(&self) -> u64 {
        self.sequence % 2
    }

    /// The sequence of the superblock after this one: the next one, unless that would go over the
    /// only good copy while the other is known to be damaged. A write that is torn must leave one.
    pub(crate) fn next_sequence(&self, damages: &[Damage]) -> u64 {
        let is_bad = |address| {
            damages.iter().any(|d| d.part == DamagedPart::Superblock && d.address == address)
        };
        let next = self.sequence + 1;
        if is_bad((next + 1) % 2) && !is_bad(next % 2) { next + 1 } else { next }
    }

    pub(crate) fn encode(&self) -> Buffer {
        let mut buffer = Buffer::zeroed(BLOCK_SIZE);
        let mut out = Cursor::new(buffer.as_mut_slice());
        out.put(&MAGIC);
        out.put_u32(VERSION);
        out.put_u32(BLOCK_SIZE as u32);
        out.put_u64(0);
        out.put_u64(self.sequence);
        out.put_u128(self.identity.cluster.0);
        out.put_u128(self.identity.node.0);
        out.put_u128(self.identity.disk.0);
        out.put_u64(self.incarnation.0);
        out.put_u64(self.created_unix_s);
        out.put_u8(match self.kind {
            MediumKind::File => 0,
            MediumKind::Device => 1,
        });
        out.put(&[0; 7]);
        out.put_u64(LOG_FIRST);
        out.put_u64(self.log_blocks);
        out.put_u64(self.space_first);
        out.put_u64(self.limit_blocks);
        out.put_u64(self.replay_position);
        out.put_u64(self.replay_sequence);
        out.put_u64(self.replay_lsn);
        out.put_u64(self.replay_incarnation.0);
        out.put_u64(self.durable_lsn);
        if let Some(top) = &self.root {
            out.put_u64(top.checksum);
            out.put_u64(top.address);
            out.put_u64(top.twin);
            out.put_u32(top.header.number);
        } else {
            out.put(&[0; ROOT_PLACE_BYTES]);
        }
        out.put_u64(self.agreed_incarnation.0);
        out.put(&self.boot);
        out.put_u64(self.lossless_from.0);
        seal(buffer.as_mut_slice(), CHECKSUM_AT);
        buffer
    }
}

/// Parses one superblock. What is returned has addresses that make sense among one another.
pub(crate) fn parse_superblock(bytes: &[u8]) -> Result<Superblock, SuperblockError> {
    let bytes = bytes.get(..BLOCK_SIZE).ok_or(SuperblockError::Foreign)?;
    if bytes[..8] != MAGIC {
        let blank = proto::is_zero(bytes);
        return Err(if blank { SuperblockError::Blank } else { SuperblockError::Foreign });
    }
    if !is_sealed(bytes, CHECKSUM_AT) {
        return Err(SuperblockError::Damaged);
    }
    let mut fields = Reader::new(&bytes[8..]);
    let version = fields.u32().ok_or(SuperblockError::Damaged)?;
    if !(VERSION_MIN..=VERSION).contains(&version) {
        return Err(SuperblockError::Newer(version));
    }
    parse_fields(&mut fields).ok_or(SuperblockError::Damaged)
}

fn parse_fields(fields: &mut Reader) -> Option<Superblock> {
    if fields.u32()? != BLOCK_SIZE as u32 {
        return None;
    }
    fields.u64()?;
    let sequence = fields.u64()?;
    let identity = Identity {
        cluster: ClusterId(fields.u128()?),
        node: NodeId(fields.u128()?),
        disk: DiskId(fields.u128()?),
    };
    let incarnation = Incarnation(fields.u64()?);
    let created_unix_s = fields.u64()?;
    let kind = match fields.u8()? {
        0 => MediumKind::File,
        1 => MediumKind::Device,
        _ => return None,
    };
    fields.take(7)?;
    let log_first = fields.u64()?;
    let superblock = Superblock {
        sequence,
        identity,
        incarnation,
        kind,
        created_unix_s,
        log_blocks: fields.u64()?,
        space_first: fields.u64()?,
        limit_blocks: fields.u64()?,
        replay_position: fields.u64()?,
        replay_sequence: fields.u64()?,
        replay_lsn: fields.u64()?,
        replay_incarnation: Incarnation(fields.u64()?),
        durable_lsn: fields.u64()?,
        root: parse_root_place(fields)?,
        agreed_incarnation: Incarnation(fields.u64()?),
        boot: fields.u128()?.to_le_bytes(),
        lossless_from: Incarnation(fields.u64()?),
    };
    let sound = log_first == LOG_FIRST
        && superblock.log_blocks >= crate::LOG_BYTES_MIN / BLOCK_SIZE as u64
        && superblock.log_blocks <= u64::from(u32::MAX)
        && superblock.space_first == LOG_FIRST + superblock.log_blocks
        && superblock.limit_blocks <= ADDRESS_MAX
        && superblock.replay_position < superblock.log_blocks
        && superblock.replay_sequence > 0
        && superblock.replay_lsn > 0
        && superblock.agreed_incarnation <= superblock.incarnation
        && superblock.lossless_from <= superblock.incarnation
        && superblock
            .root
            .iter()
            .flat_map(|top| [top.address, top.twin])
            .all(|address| (superblock.space_first..ADDRESS_MAX).contains(&address));
    sound.then_some(superblock)
}

/// The top page of the root, or that there is none.
fn parse_root_place(fields: &mut Reader) -> Option<Option<RootEntry>> {
    let (checksum, address, twin) = (fields.u64()?, fields.u64()?, fields.u64()?);
    let header = PageHeader { kind: CheckpointKind::Root, number: fields.u32()? };
    if address != 0 {
        return Some(Some(RootEntry { header, address, twin, checksum }));
    }
    (checksum == 0 && twin == 0 && header.number == 0).then_some(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn superblock(sequence: u64) -> Superblock {
        let header = PageHeader { kind: CheckpointKind::Root, number: 3 };
        Superblock {
            sequence,
            identity: Identity { cluster: ClusterId(1), node: NodeId(2), disk: DiskId(3) },
            incarnation: Incarnation(1),
            created_unix_s: 0,
            kind: MediumKind::File,
            log_blocks: 16,
            space_first: 19,
            limit_blocks: 0,
            replay_position: 0,
            replay_sequence: 1,
            replay_lsn: 1,
            replay_incarnation: Incarnation(1),
            durable_lsn: 0,
            root: Some(RootEntry { header, address: 19, twin: 4096, checksum: 7 }),
            agreed_incarnation: Incarnation(1),
            boot: [5; 16],
            lossless_from: Incarnation(1),
        }
    }

    /// A write that is torn while one copy is rotten must not hit the other one.
    #[test]
    fn the_next_superblock_goes_over_the_bad_copy() {
        let bad =
            |address| vec![Damage { part: DamagedPart::Superblock, address, unreadable: false }];
        for sequence in [6, 7] {
            let now = superblock(sequence);
            assert_eq!(now.next_sequence(&[]), sequence + 1);
            for address in [0, 1] {
                let next = Superblock { sequence: now.next_sequence(&bad(address)), ..now.clone() };
                assert_eq!(next.address(), address, "after {sequence}");
                assert!(next.sequence > sequence);
            }
        }
    }

    fn parsed(superblock: &Superblock) -> Result<Superblock, SuperblockError> {
        parse_superblock(superblock.encode().as_slice())
    }

    #[test]
    fn a_root_is_in_space_or_there_is_none() {
        let with = superblock(1);
        assert_eq!(parsed(&with).as_ref(), Ok(&with));
        let without = Superblock { root: None, ..with.clone() };
        assert_eq!(parsed(&without).as_ref(), Ok(&without));
        // Nobody can have acknowledged an opening that never was.
        let ahead = Superblock { agreed_incarnation: Incarnation(2), ..with.clone() };
        assert_eq!(parsed(&ahead), Err(SuperblockError::Damaged));
        let ahead = Superblock { lossless_from: Incarnation(2), ..with.clone() };
        assert_eq!(parsed(&ahead), Err(SuperblockError::Damaged));
        let top = with.root.expect("it has one");
        let bad = [
            RootEntry { address: 18, ..top },
            RootEntry { twin: 18, ..top },
            RootEntry { twin: 0, ..top },
            RootEntry { twin: ADDRESS_MAX, ..top },
            // Without an address nothing else may be said of a root.
            RootEntry { address: 0, ..top },
        ];
        for top in bad {
            let superblock = Superblock { root: Some(top), ..with.clone() };
            assert_eq!(parsed(&superblock), Err(SuperblockError::Damaged), "{top:?}");
        }
    }
}
