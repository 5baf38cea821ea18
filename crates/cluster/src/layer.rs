//! Layers as the cluster agrees on them: which exist, what lies below each, and when one goes.

use crate::map::Map;
use crate::refusal::Refusal;
use crate::volume::{Attachment, Volume};
use proto::{LayerId, LineageId};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// One generation of a volume's content.
///
/// Invariant: its parent exists and has a lower id. It is the head of one volume, or named by one
/// snapshot, or hidden: needed by others only.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Layer {
    /// Decides where its objects lie.
    pub lineage: LineageId,
    /// What shows where it has nothing of its own: a layer of the same lineage, or of another one
    /// for the lowest layer of a clone. Layer 0: nothing.
    pub parent: LayerId,
    /// How many bytes from the start of a parent in *another* lineage, however far below, show
    /// through. 0 without one.
    pub overlap: u64,
    /// Whether the disks are known to know it, and with it the end of its parent's writes. Until
    /// then its parent is *sealing*.
    pub opened: bool,
}

/// A name for a sealed layer.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Snapshot {
    /// Unique among the volume's snapshots; obeys [`crate::check_name`].
    pub tag: String,
    /// Its content.
    pub layer: LayerId,
    /// The volume's size when it was taken, in bytes.
    pub bytes: u64,
    /// When it was taken, in seconds since 1970; for people.
    pub created_unix_s: u64,
    /// Who reads it, in order of generation. The generations are drawn from the volume's.
    pub readers: Vec<Attachment>,
    /// Before this time, in seconds since 1970, nobody deletes it; 0: it is not locked.
    pub locked_until_unix_s: u64,
    /// The schedule that had it taken, if one had.
    pub schedule: Option<String>,
}

impl Snapshot {
    /// Whether it may not be deleted at this time.
    pub fn is_locked(&self, unix_s: u64) -> bool {
        unix_s < self.locked_until_unix_s
    }

    /// Why not.
    pub(crate) fn refusal(&self, volume: &Volume) -> Refusal {
        Refusal::Locked {
            name: volume.name.clone(),
            tag: self.tag.clone(),
            until_unix_s: self.locked_until_unix_s,
        }
    }
}

/// What shows through where a layer's whole lineage has nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Origin {
    /// Whose layer it is: never the lineage it shows through.
    pub lineage: LineageId,
    /// The sealed layer.
    pub layer: LayerId,
    /// So many bytes from the start show through.
    pub bytes: u64,
}

/// What a chain shows of one of its layers where those before it have nothing: as far as all of the
/// overlaps down to it reach.
pub fn onto(chain: &[Origin], layer: LayerId) -> Option<Origin> {
    let place = chain.iter().position(|origin| origin.layer == layer)?;
    let bytes = chain[..=place].iter().map(|origin| origin.bytes).min()?;
    Some(Origin { bytes, ..chain[place] })
}

/// A layer that would go with a snapshot.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Going {
    /// Its lineage.
    pub lineage: LineageId,
    /// The layer.
    pub layer: LayerId,
    /// The child that takes over what it still shows of the layer, if another child goes before:
    /// then what the other one alone showed is free as well.
    pub heir: Option<LayerId>,
}

impl Map {
    /// What would go if the snapshot that names a layer were deleted, in that order.
    pub fn going_with(&self, snapshot: LayerId) -> Vec<Going> {
        let mut without = self.clone();
        let mut named: BTreeSet<LayerId> = self.volumes().flat_map(Volume::layers).collect();
        named.remove(&snapshot);
        let gone = prune_unnamed(&mut without, [snapshot], &named);
        let went = |layer: LayerId| gone.iter().any(|&(_, other)| other == layer);
        let going = |&(lineage, layer): &(LineageId, LayerId)| {
            let in_lineage = |child: &LayerId| self.layers[child].lineage == lineage;
            let (before, after): (Vec<LayerId>, Vec<LayerId>) =
                self.children(layer).filter(in_lineage).partition(|&child| went(child));
            let heir = after.first().copied().filter(|_| !before.is_empty());
            Going { lineage, layer, heir }
        };
        gone.iter().map(going).collect()
    }

    /// A layer that exists.
    pub fn layer(&self, layer: LayerId) -> Option<&Layer> {
        self.layers.get(&layer)
    }

    /// All layers that exist, each with its lineage, in order of id.
    pub fn layers(&self) -> impl Iterator<Item = (LineageId, LayerId)> {
        self.layers.iter().map(|(&id, layer)| (layer.lineage, id))
    }

    /// The layer of the same lineage right below a layer.
    pub fn parent_in_lineage(&self, layer: LayerId) -> Option<LayerId> {
        let known = self.layer(layer)?;
        let parent = self.layer(known.parent)?;
        (parent.lineage == known.lineage).then_some(known.parent)
    }

    /// What shows through where the lineage of a layer has nothing, seen from that layer.
    pub fn origin(&self, layer: LayerId) -> Option<Origin> {
        let overlap = self.layer(layer)?.overlap;
        let mut lowest = layer;
        while let Some(parent) = self.parent_in_lineage(lowest) {
            lowest = parent;
        }
        let below = self.layer(lowest)?.parent;
        let lineage = self.layer(below)?.lineage;
        (overlap > 0).then_some(Origin { lineage, layer: below, bytes: overlap })
    }

    /// What shows through where the lineage of a layer has nothing, nearest first: each where the
    /// one before it has nothing either.
    pub fn chain(&self, layer: LayerId) -> Vec<Origin> {
        let mut chain: Vec<Origin> = Vec::new();
        let mut at = layer;
        // A parent's id is lower than its child's, so this ends.
        while let Some(origin) = self.origin(at)
            && origin.layer < at
        {
            chain.push(origin);
            at = origin.layer;
        }
        chain
    }

    /// The layers that have this one as their parent, of any lineage, in order of id.
    pub fn children(&self, parent: LayerId) -> impl Iterator<Item = LayerId> {
        // A child's id is higher than its parent's.
        let above = self.layers.range(parent..).skip(1);
        above.filter(move |(_, layer)| layer.parent == parent).map(|(&id, _)| id)
    }

    /// The volume and the snapshot that name a layer. A head has a volume without a snapshot, a
    /// hidden layer none.
    pub fn owner(&self, layer: LayerId) -> Option<(&Volume, Option<&Snapshot>)> {
        self.volumes().find_map(|volume| {
            if volume.head == layer {
                return Some((volume, None));
            }
            let snapshot = volume.snapshots.iter().find(|snapshot| snapshot.layer == layer);
            snapshot.map(|snapshot| (volume, Some(snapshot)))
        })
    }

    /// The layer of a volume that is sealing, because the disks are not known to know the head
    /// above it. A snapshot of it cannot be read, cloned, rolled back to or deleted yet.
    pub fn sealing(&self, volume: &Volume) -> Option<LayerId> {
        let head = self.layer(volume.head)?;
        (!head.opened).then_some(head.parent)
    }
}

/// Takes out what nothing needs of `candidates` and of what lies below them; gives back what went,
/// in that order. The single child of a layer that goes lies on what the layer lay on.
pub(crate) fn prune(
    map: &mut Map,
    candidates: impl IntoIterator<Item = LayerId>,
) -> Vec<(LineageId, LayerId)> {
    let named: BTreeSet<LayerId> = map.volumes().flat_map(Volume::layers).collect();
    prune_unnamed(map, candidates, &named)
}

fn prune_unnamed(
    map: &mut Map,
    candidates: impl IntoIterator<Item = LayerId>,
    named: &BTreeSet<LayerId>,
) -> Vec<(LineageId, LayerId)> {
    let mut gone = Vec::new();
    let mut candidates: Vec<LayerId> = candidates.into_iter().collect();
    while let Some(candidate) = candidates.pop() {
        let Some(&layer) = map.layer(candidate) else { continue };
        let children: Vec<LayerId> = map.children(candidate).collect();
        let is_simple = match children[..] {
            [] => true,
            [child] => map.layers[&child].lineage == layer.lineage,
            _ => false,
        };
        if named.contains(&candidate) || !is_simple {
            continue;
        }
        let below = map.layer(layer.parent).map(|below| below.lineage);
        Arc::make_mut(&mut map.layers).remove(&candidate);
        if map.sources.contains_key(&candidate) {
            Arc::make_mut(&mut map.sources).remove(&candidate);
        }
        let layers = Arc::make_mut(&mut map.layers);
        if let [child] = children[..] {
            let child = layers.get_mut(&child).expect("listed as a child");
            // A flattened layer shows nothing of another lineage.
            let is_lowest = below.is_some_and(|below| below != layer.lineage);
            let shows_it = !is_lowest || child.overlap > 0;
            child.parent = if shows_it { layer.parent } else { LayerId(0) };
        }
        map.forget_lineage(layer.lineage);
        gone.push((layer.lineage, candidate));
        candidates.push(layer.parent);
    }
    gone
}

/// One invariant.
pub(crate) fn hold(condition: bool, what: &'static str) -> Result<(), &'static str> {
    if condition { Ok(()) } else { Err(what) }
}

/// The first invariant that does not hold for the layers.
pub(crate) fn contradiction(map: &Map) -> Result<(), &'static str> {
    let mut children: BTreeMap<LayerId, (usize, usize)> = BTreeMap::new();
    // The layers of a lineage hang together: one of them lies on none of them.
    let mut lowest = BTreeSet::new();
    let mut named = BTreeSet::new();
    for layer in map.volumes().flat_map(Volume::layers) {
        hold(map.layer(layer).is_some(), "a volume without its layer")?;
        hold(named.insert(layer), "a layer with two names")?;
    }
    let is_hidden = |layer: LayerId| !named.contains(&layer);
    for (&id, layer) in &*map.layers {
        hold(id > LayerId(0) && id < map.next_layer, "a layer's id")?;
        hold(layer.lineage.0 > 0 && layer.lineage.0 <= id.0, "a layer's lineage")?;
        if layer.parent != LayerId(0) {
            let parent = map.layer(layer.parent).ok_or("a layer without its parent")?;
            hold(layer.parent < id, "a layer below its parent")?;
            let count = children.entry(layer.parent).or_default();
            let same = parent.lineage == layer.lineage;
            *if same { &mut count.0 } else { &mut count.1 } += 1;
            hold(same || layer.lineage.0 > layer.parent.0, "a clone older than its parent")?;
        }
        // Else the layer could go before the disks know what to merge it into.
        hold(layer.opened || !is_hidden(layer.parent), "a hidden layer that is sealing")?;
        if map.parent_in_lineage(id).is_none() {
            hold(lowest.insert(layer.lineage), "a lineage in two parts")?;
            hold(layer.parent != LayerId(0) || layer.overlap == 0, "an overlap with nothing")?;
        }
    }
    for &id in map.layers.keys().filter(|&&id| is_hidden(id)) {
        let (same, other) = children.get(&id).copied().unwrap_or_default();
        hold(same >= 2 || other >= 1, "a needless layer")?;
    }
    Ok(())
}
