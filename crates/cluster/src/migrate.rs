//! Snapshots of the state as earlier versions wrote them, made into the present one. Each version's
//! records stay here as they were.

use crate::command::DecodeError;
use crate::layer::{Layer, Snapshot};
use crate::map::{Disk, Node};
use crate::partition::Configuration;
use crate::snapshot::Present;
use crate::volume::{Attachment, PendingDiscard, Volume};
use proto::{ClusterId, Epoch, Generation, LayerId, LineageId, VolumeId};
use serde::{Deserialize, Serialize};

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
    nodes: Vec<Node>,
    disks: Vec<Disk>,
    partition_bits: u8,
    partitions: Vec<(u32, Configuration)>,
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

/// The present fields, from the body of a snapshot of version 1.
pub(crate) fn from_version_1(body: &[u8]) -> Result<Present, DecodeError> {
    let fields: Fields1 = match postcard::take_from_bytes(body) {
        Ok((fields, [])) => fields,
        _ => return Err(DecodeError::Malformed),
    };
    Ok(Present {
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
