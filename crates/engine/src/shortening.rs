//! Which volumes are to be shortened, and onto what: a clone of a clone of a clone reads through
//! all of them, and copying what the ones in between have written ends that, as long as it is
//! little. Decision 0004 has the reasons.

use crate::{
    disks::{Disk, Disks},
    report,
};
use cluster::{Map, Volume};
use proto::limits::{CHAIN_LINEAGES_MAX, SHORTEN_AT_MOST, SHORTEN_FREELY, SHORTEN_SPACE_SHARE};
use proto::{BLOCK_SIZE, LayerId};

/// The layer that a volume is to lie on instead of the present one, if too many lineages show
/// through it and something can be done about that for little. The same until it is done, unless
/// the disks get full meanwhile.
pub(crate) fn target(map: &Map, disks: &Disks, volume: &Volume) -> Option<LayerId> {
    if !is_too_long(map, volume) {
        return None;
    }
    // What disks of other nodes keep of the layers is not known here.
    if map.disks().any(|disk| !disks.contains_key(&disk.id)) {
        return None;
    }
    let chain = map.chain(volume.head);
    let shown = chain[0].bytes / BLOCK_SIZE as u64;
    let room = disks.values().filter_map(room).min()? / BLOCK_SIZE as u64 / SHORTEN_SPACE_SHARE;
    let (mut blocks, mut target) = (0, None);
    for (place, origin) in chain.iter().enumerate() {
        let remaining = chain.len() - place;
        let is_enough = remaining <= CHAIN_LINEAGES_MAX;
        let is_free = blocks <= shown / SHORTEN_FREELY;
        // Once it is enough it goes on only for little.
        if blocks > (shown / SHORTEN_AT_MOST).min(room) || (target.is_some() && !is_free) {
            break;
        }
        if is_enough {
            target = Some(origin.layer);
        }
        blocks += kept(map, disks, origin.layer);
    }
    target
}

/// Whether a volume reads through too many lineages and could be shortened, if there is room for
/// what that takes.
pub(crate) fn is_too_long(map: &Map, volume: &Volume) -> bool {
    // Its snapshots go on showing all of the chain.
    let has_snapshots = map.parent_in_lineage(volume.head).is_some();
    let may_be = !has_snapshots && !volume.flattening && volume.trash.is_none();
    may_be && map.chain(volume.head).len() > CHAIN_LINEAGES_MAX
}

/// How many blocks the disks keep of a layer and those below it in its lineage: no fewer than what
/// the lineage has seen from there.
fn kept(map: &Map, disks: &Disks, layer: LayerId) -> u64 {
    let below = |layer: &LayerId| map.parent_in_lineage(*layer);
    let layers = std::iter::successors(Some(layer), below);
    layers.map(|layer| report::usage(disks, layer).data_blocks).sum()
}

/// How much more a disk takes, in bytes; nothing if it takes nothing anyway.
fn room(disk: &Disk) -> Option<u64> {
    let room = disk.store()?.room()?;
    // As long as the driver has not told what the file system has, that counts for nothing.
    let growth = match room.is_wanted {
        true => 0,
        false => report::growth_bytes(disk, room.allocated_bytes, room.limit_bytes),
    };
    Some(room.bytes.saturating_add(growth))
}
