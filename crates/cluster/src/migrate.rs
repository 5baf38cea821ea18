//! Snapshots of the state as earlier versions wrote them, made into the present one. Each version's
//! records stay here as they were.

use crate::command::DecodeError;
use crate::group::Group;
use crate::layer::{Layer, Snapshot};
use crate::machine::{Disk, DiskState, Node, NodeState};
use crate::map::Map;
use crate::partition::{Configuration, Member, Partitions, from_runs};
use crate::redundancy::Redundancy;
use crate::snapshot::{Packed, Present, map_of, partitions_of, record};
use crate::source::Source;
use crate::volume::{Attachment, PendingDiscard, Volume};
use proto::limits::{COPIES_DEFAULT, MEMBERS_MAX, PARTITION_BITS_MAX};
use proto::{
    ClusterId, ConfigurationNumber, DiskId, Epoch, Generation, Incarnation, LayerId, LineageId,
    NodeId, VolumeId,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// The oldest version that is read.
pub(crate) const OLDEST: u8 = 1;

/// Version 1: no trash, locks, schedules, groups or sources.
#[derive(Serialize, Deserialize)]
struct Fields1 {
    epoch: Epoch,
    cluster: ClusterId,
    created_unix_s: u64,
    next_volume: VolumeId,
    next_layer: LayerId,
    nodes: Vec<Node2>,
    disks: Vec<Disk2>,
    partition_bits: u8,
    partitions: Vec<(u32, Configuration2)>,
    volumes: Vec<Volume1>,
    layers: Vec<(LayerId, Layer)>,
}

#[derive(Serialize, Deserialize)]
struct Volume1 {
    id: VolumeId,
    name: String,
    bytes: u64,
    lineage: LineageId,
    head: LayerId,
    snapshots: Vec<Snapshot1>,
    generation: Generation,
    attachments: Vec<Attachment>,
    pending_discard: Option<PendingDiscard>,
    created_unix_s: u64,
    flattening: bool,
}

#[derive(Serialize, Deserialize)]
struct Snapshot1 {
    tag: String,
    layer: LayerId,
    bytes: u64,
    created_unix_s: u64,
    readers: Vec<Attachment>,
}

/// Version 2: one disk, one table of partitions, no zones.
#[derive(Serialize, Deserialize)]
struct Fields2 {
    epoch: Epoch,
    cluster: ClusterId,
    created_unix_s: u64,
    next_volume: VolumeId,
    next_layer: LayerId,
    nodes: Vec<Node2>,
    disks: Vec<Disk2>,
    partition_bits: u8,
    partitions: Vec<(u32, Configuration2)>,
    volumes: Vec<Volume>,
    layers: Vec<(LayerId, Layer)>,
    sources: Vec<(LayerId, Source)>,
    groups: Vec<Group>,
}

/// As versions 1 and 2 wrote a configuration.
#[derive(Serialize, Deserialize)]
struct Configuration2 {
    number: ConfigurationNumber,
    current: Vec<Member>,
    recovering: Vec<Member>,
}

/// Version 3: no attempts.
#[derive(Serialize, Deserialize)]
struct Fields3 {
    epoch: Epoch,
    cluster: ClusterId,
    created_unix_s: u64,
    next_volume: VolumeId,
    next_layer: LayerId,
    nodes: Vec<Node>,
    disks: Vec<Disk>,
    partition_bits: u8,
    tables: Vec<(u8, Vec<(u32, Packed3)>)>,
    volumes: Vec<Volume>,
    layers: Vec<(LayerId, Layer)>,
    sources: Vec<(LayerId, Source)>,
    groups: Vec<Group>,
    lineages: Vec<(LineageId, Redundancy)>,
}

#[derive(Serialize, Deserialize)]
struct Packed3 {
    number: ConfigurationNumber,
    current: Vec<(u16, u64)>,
    recovering: Vec<(u16, u64)>,
}

/// That of version 1 too.
#[derive(Serialize, Deserialize)]
struct Node2 {
    id: NodeId,
    name: String,
}

/// That of version 1 too.
#[derive(Serialize, Deserialize)]
struct Disk2 {
    id: DiskId,
    node: NodeId,
    incarnation: Incarnation,
}

/// The present map, from the body of a snapshot of version 1; not yet judged.
pub(crate) fn from_version_1(body: &[u8]) -> Result<Map, DecodeError> {
    let fields: Fields1 = record(body)?;
    map_of_version_2(Fields2 {
        epoch: fields.epoch,
        cluster: fields.cluster,
        created_unix_s: fields.created_unix_s,
        next_volume: fields.next_volume,
        next_layer: fields.next_layer,
        nodes: fields.nodes,
        disks: fields.disks,
        partition_bits: fields.partition_bits,
        partitions: fields.partitions,
        volumes: fields.volumes.into_iter().map(volume).collect(),
        layers: fields.layers,
        sources: Vec::new(),
        groups: Vec::new(),
    })
}

/// The present map, from the body of a snapshot of version 2; not yet judged.
pub(crate) fn from_version_2(body: &[u8]) -> Result<Map, DecodeError> {
    map_of_version_2(record(body)?)
}

/// The partitions become those of volumes with the default number of copies, and so all volumes
/// are kept. Nobody ever told how large the disk is.
fn map_of_version_2(fields: Fields2) -> Result<Map, DecodeError> {
    let contradiction = DecodeError::Contradiction;
    if fields.partition_bits > PARTITION_BITS_MAX {
        return Err(contradiction("too many partitions"));
    }
    let bits = fields.partition_bits;
    let had = fields.partitions.iter().map(|(_, held)| held.current.len()).min();
    let had = had.map_or(0, |had| had.min(MEMBERS_MAX) as u8);
    let runs = fields.partitions.into_iter().map(|(length, held)| (length, configuration(held)));
    let partitions = from_runs(bits, runs.collect())
        .and_then(|table| Partitions::from_tables(bits, vec![(COPIES_DEFAULT, table)]))
        .ok_or(contradiction("the number of partitions"))?;
    let sources: BTreeSet<LayerId> = fields.sources.iter().map(|(id, _)| *id).collect();
    let kept = fields.layers.iter().filter(|(id, _)| !sources.contains(id));
    let lineages: BTreeSet<LineageId> = kept.map(|(_, layer)| layer.lineage).collect();
    let present = Present {
        epoch: fields.epoch,
        cluster: fields.cluster,
        created_unix_s: fields.created_unix_s,
        next_volume: fields.next_volume,
        next_layer: fields.next_layer,
        nodes: fields.nodes.into_iter().map(node).collect(),
        disks: fields.disks.into_iter().map(disk).collect(),
        partition_bits: bits,
        tables: Vec::new(),
        volumes: fields.volumes,
        layers: fields.layers,
        sources: fields.sources,
        groups: fields.groups,
        lineages: lineages.into_iter().map(|id| (id, Redundancy::new(had))).collect(),
        next_attempt: 1,
        attempts: Vec::new(),
        addresses: Vec::new(),
        tokens: Vec::new(),
        gaps: Vec::new(),
    };
    map_of(present, partitions)
}

/// The present map, from the body of a snapshot of version 3; not yet judged.
pub(crate) fn from_version_3(body: &[u8]) -> Result<Map, DecodeError> {
    let fields: Fields3 = record(body)?;
    // Nothing but an attempt lets a disk recover, and there was none.
    let packed = |old: Packed3| Packed::settled(old.number, old.current);
    let runs = |runs: Vec<(u32, Packed3)>| -> Vec<(u32, Packed)> {
        runs.into_iter().map(|(length, old)| (length, packed(old))).collect()
    };
    let tables = fields.tables.into_iter().map(|(copies, table)| (copies, runs(table))).collect();
    let present = Present {
        epoch: fields.epoch,
        cluster: fields.cluster,
        created_unix_s: fields.created_unix_s,
        next_volume: fields.next_volume,
        next_layer: fields.next_layer,
        nodes: fields.nodes,
        disks: fields.disks,
        partition_bits: fields.partition_bits,
        tables,
        volumes: fields.volumes,
        layers: fields.layers,
        sources: fields.sources,
        groups: fields.groups,
        lineages: fields.lineages,
        next_attempt: 1,
        attempts: Vec::new(),
        addresses: Vec::new(),
        tokens: Vec::new(),
        gaps: Vec::new(),
    };
    let partitions = partitions_of(&present)?;
    map_of(present, partitions)
}

/// The present map, from the body of a snapshot of version 4; not yet judged. That had no gaps,
/// which are the last field: as if it had an empty list of them.
pub(crate) fn from_version_4(body: &[u8]) -> Result<Map, DecodeError> {
    let body = [body, &[0]].concat();
    let present: Present = record(&body)?;
    let partitions = partitions_of(&present)?;
    map_of(present, partitions)
}

fn configuration(old: Configuration2) -> Configuration {
    let Configuration2 { number, current, .. } = old;
    Configuration { number, current, ..Default::default() }
}

fn node(old: Node2) -> Node {
    Node { id: old.id, name: old.name, zone: String::new(), state: NodeState::In }
}

fn disk(old: Disk2) -> Disk {
    let Disk2 { id, node, incarnation } = old;
    Disk { id, node, incarnation, bytes: 0, state: DiskState::In }
}

fn volume(old: Volume1) -> Volume {
    Volume {
        id: old.id,
        name: old.name,
        bytes: old.bytes,
        lineage: old.lineage,
        head: old.head,
        snapshots: old.snapshots.into_iter().map(snapshot).collect(),
        generation: old.generation,
        attachments: old.attachments,
        pending_discard: old.pending_discard,
        created_unix_s: old.created_unix_s,
        flattening: old.flattening,
        trash: None,
        schedules: Vec::new(),
    }
}

fn snapshot(old: Snapshot1) -> Snapshot {
    Snapshot {
        tag: old.tag,
        layer: old.layer,
        bytes: old.bytes,
        created_unix_s: old.created_unix_s,
        readers: old.readers,
        locked_until_unix_s: 0,
        schedule: None,
    }
}
