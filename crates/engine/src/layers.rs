//! What administrators see of layers: snapshots with their clones and readers, and the tree.

use crate::{
    admin::{AttachmentReport, LayerKind, LayerReport, SnapshotReport},
    attach::{Held, HeldId},
    disks::Disks,
    names, report,
};
use cluster::{Map, Snapshot, Volume};
use proto::{BLOCK_SIZE, LayerId, LineageId};
use std::collections::{BTreeMap, BTreeSet};

/// The snapshots of a volume, oldest first, as of this time.
pub(crate) fn snapshots(
    (map, unix_s): (&Map, u64),
    disks: &Disks,
    held: &BTreeMap<HeldId, Held>,
    volume: &Volume,
) -> Vec<SnapshotReport> {
    let clones = clones(map);
    let report = |snapshot| snapshot_with((map, unix_s), disks, held, volume, snapshot, &clones);
    volume.snapshots.iter().map(report).collect()
}

/// One snapshot, as of this time.
pub(crate) fn snapshot(
    (map, unix_s): (&Map, u64),
    disks: &Disks,
    held: &BTreeMap<HeldId, Held>,
    volume: &Volume,
    snapshot: &Snapshot,
) -> SnapshotReport {
    let any_clone = map
        .children(snapshot.layer)
        .any(|child| map.layer(child).is_some_and(|layer| layer.lineage != volume.lineage));
    let clones = if any_clone { clones(map) } else { BTreeMap::new() };
    snapshot_with((map, unix_s), disks, held, volume, snapshot, &clones)
}

fn snapshot_with(
    (map, unix_s): (&Map, u64),
    disks: &Disks,
    held: &BTreeMap<HeldId, Held>,
    volume: &Volume,
    snapshot: &Snapshot,
    clones: &BTreeMap<LayerId, Vec<String>>,
) -> SnapshotReport {
    let usage = report::usage(disks, snapshot.layer);
    let here = || held.range(HeldId::readers(volume.id, snapshot.layer));
    let connections = |generation| {
        let reader = here().find(|(_, held)| held.generation == Some(generation));
        reader.map_or(0, |(_, held)| held.connections.len() as u32)
    };
    let readers = snapshot.readers.iter().map(|reader| AttachmentReport {
        node: reader.node,
        generation: reader.generation,
        holder: reader.holder.clone(),
        connections: connections(reader.generation),
        read_only: true,
        unknown: false,
    });
    SnapshotReport {
        volume: volume.name.clone(),
        tag: snapshot.tag.clone(),
        layer: snapshot.layer,
        bytes: snapshot.bytes,
        created_unix_s: snapshot.created_unix_s,
        used_bytes: usage.data_blocks * BLOCK_SIZE as u64,
        metadata_bytes: usage.map_blocks * BLOCK_SIZE as u64,
        reclaimable_bytes: None,
        sealing: map.sealing(volume) == Some(snapshot.layer),
        readers: readers.collect(),
        clones: clones.get(&snapshot.layer).cloned().unwrap_or_default(),
        schedule: snapshot.schedule.clone(),
        locked_until_unix_s: snapshot.is_locked(unix_s).then_some(snapshot.locked_until_unix_s),
        unknown_nodes: Vec::new(),
    }
}

/// The volumes that show each layer of another lineage, by name: a clone shows the snapshot it was
/// made of; and where the volume of that snapshot was deleted and is a clone itself, what that
/// shows.
fn clones(map: &Map) -> BTreeMap<LayerId, Vec<String>> {
    let alive: BTreeSet<LineageId> = map.volumes().map(|volume| volume.lineage).collect();
    let mut clones: BTreeMap<LayerId, Vec<String>> = BTreeMap::new();
    let trashed = map.volumes().filter(|volume| volume.trash.is_some());
    for volume in map.volumes_by_name().chain(trashed) {
        let mut shown = below_lineage(map, volume.head);
        while let Some(layer) = shown {
            clones.entry(layer).or_default().push(names::shown_name(volume, None));
            let is_alive = map.layer(layer).is_some_and(|known| alive.contains(&known.lineage));
            shown = if is_alive { None } else { below_lineage(map, layer) };
        }
    }
    clones
}

/// What the lineage of a layer lies on.
fn below_lineage(map: &Map, layer: LayerId) -> Option<LayerId> {
    let mut lowest = layer;
    while let Some(parent) = map.parent_in_lineage(lowest) {
        lowest = parent;
    }
    let parent = map.layer(lowest)?.parent;
    map.layer(parent).map(|_| parent)
}

/// The layers, each after what it lies on: all, or those of a volume and what they lie on.
pub(crate) fn list(map: &Map, disks: &Disks, volume: Option<&Volume>) -> Vec<LayerReport> {
    let lineages: BTreeMap<LineageId, &Volume> =
        map.volumes().map(|volume| (volume.lineage, volume)).collect();
    let mut named: BTreeMap<LayerId, (&Volume, Option<&Snapshot>)> = BTreeMap::new();
    for volume in map.volumes() {
        named.insert(volume.head, (volume, None));
        let snapshots = volume.snapshots.iter();
        named.extend(snapshots.map(|snapshot| (snapshot.layer, (volume, Some(snapshot)))));
    }
    let wanted = volume.map(|volume| connected(map, volume));
    let mut reports = Vec::new();
    for (lineage, id) in map.layers() {
        if wanted.as_ref().is_some_and(|wanted| !wanted.contains(&id)) {
            continue;
        }
        let layer = map.layer(id).expect("just listed");
        let owner = named.get(&id).copied();
        let (kind, bytes) = match owner {
            Some((volume, None)) => (LayerKind::Head, Some(volume.bytes)),
            Some((_, Some(snapshot))) => (LayerKind::Snapshot, Some(snapshot.bytes)),
            None => match map.source(id) {
                Some(source) => (LayerKind::Source, Some(source.bytes)),
                None => (LayerKind::Hidden, None),
            },
        };
        let address = map.source(id).map(|source| source.address.clone());
        let belongs_to = lineages.get(&lineage);
        reports.push(LayerReport {
            layer: id,
            parent: (layer.parent != LayerId(0)).then_some(layer.parent),
            kind,
            name: owner.map(|(volume, snapshot)| names::full_name(volume, snapshot)).or(address),
            volume: belongs_to.map(|volume| names::shown_name(volume, None)),
            bytes,
            used_bytes: report::usage(disks, id).data_blocks * BLOCK_SIZE as u64,
            sealing: belongs_to.is_some_and(|volume| map.sealing(volume) == Some(id)),
            in_trash: belongs_to.is_some_and(|volume| volume.trash.is_some()),
            unknown_nodes: Vec::new(),
        });
    }
    reports
}

/// The layers of a volume's lineage and all that they lie on.
fn connected(map: &Map, volume: &Volume) -> BTreeSet<LayerId> {
    let of_lineage = map.layers().filter(|(lineage, _)| *lineage == volume.lineage);
    let mut connected: BTreeSet<LayerId> = of_lineage.map(|(_, layer)| layer).collect();
    let mut below = below_lineage(map, volume.head);
    while let Some(layer) = below {
        connected.insert(layer);
        let parent = map.layer(layer).map(|layer| layer.parent);
        below = parent.filter(|parent| *parent != LayerId(0));
    }
    connected
}

/// How many layers nothing names, and how many bytes of data they keep for others.
pub(crate) fn hidden(map: &Map, disks: &Disks) -> (u64, u64) {
    let named: BTreeSet<LayerId> = map.volumes().flat_map(Volume::layers).collect();
    let hidden = map
        .layers()
        .map(|(_, layer)| layer)
        .filter(|layer| !named.contains(layer) && map.source(*layer).is_none());
    hidden.fold((0, 0), |(count, bytes), layer| {
        let blocks = report::usage(disks, layer).data_blocks;
        (count + 1, bytes + blocks * BLOCK_SIZE as u64)
    })
}
