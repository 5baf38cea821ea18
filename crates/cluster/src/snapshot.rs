//! The whole state as bytes, and back: version, checksum, then the fields in postcard.

use crate::command::DecodeError;
use crate::layer::Layer;
use crate::map::{Disk, Map, Node};
use crate::partition::{Configuration, Partitions};
use crate::state::State;
use crate::volume::Volume;
use proto::limits::{PARTITION_BITS_MAX, SNAPSHOT_BYTES_MAX};
use proto::{ClusterId, Epoch, LayerId, VolumeId, crc64};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// The version of the encoding, the first byte.
const VERSION: u8 = 1;
/// Version and checksum.
const HEADER_BYTES: usize = 1 + 8;

/// The fields of version 1, in their order. `Of...` are the things themselves or references to
/// them, which are written alike.
#[derive(Serialize, Deserialize)]
struct Fields<OfNode, OfDisk, OfConfiguration, OfVolume> {
    epoch: Epoch,
    cluster: ClusterId,
    created_unix_s: u64,
    next_volume: VolumeId,
    next_layer: LayerId,
    nodes: Vec<OfNode>,
    disks: Vec<OfDisk>,
    partition_bits: u8,
    /// Runs of partitions with equal configurations.
    partitions: Vec<(u32, OfConfiguration)>,
    volumes: Vec<OfVolume>,
    layers: Vec<(LayerId, Layer)>,
}

impl State {
    /// As bytes for a snapshot, at most `SNAPSHOT_BYTES_MAX` of them. Equal states give equal
    /// bytes.
    pub fn encode(&self) -> Vec<u8> {
        let map = &*self.map;
        let fields = Fields::<&Node, &Disk, &Configuration, &Volume> {
            epoch: map.epoch,
            cluster: map.cluster,
            created_unix_s: map.created_unix_s,
            next_volume: map.next_volume,
            next_layer: map.next_layer,
            nodes: map.nodes().collect(),
            disks: map.disks().collect(),
            partition_bits: map.partition_bits(),
            partitions: map.partitions.runs(),
            volumes: map.volumes().collect(),
            layers: map.layers.iter().map(|(&id, &layer)| (id, layer)).collect(),
        };
        let mut header = vec![0; HEADER_BYTES];
        header[0] = VERSION;
        let mut bytes =
            postcard::to_extend(&fields, header).expect("it only has serializable fields");
        let checksum = checksum(&bytes);
        bytes[1..HEADER_BYTES].copy_from_slice(&checksum.to_le_bytes());
        assert!(bytes.len() <= SNAPSHOT_BYTES_MAX, "the limits bound the state");
        bytes
    }

    /// From the bytes of a snapshot. What it gives obeys every invariant of the state.
    pub fn decode(bytes: &[u8]) -> Result<State, DecodeError> {
        if bytes.len() > SNAPSHOT_BYTES_MAX {
            return Err(DecodeError::TooLong);
        }
        let (&version, _) = bytes.split_first().ok_or(DecodeError::Malformed)?;
        if version != VERSION {
            return Err(DecodeError::Version(version));
        }
        let (header, body) = bytes.split_at_checked(HEADER_BYTES).ok_or(DecodeError::Malformed)?;
        if header[1..] != checksum(bytes).to_le_bytes() {
            return Err(DecodeError::Checksum);
        }
        let fields: Fields<Node, Disk, Configuration, Volume> =
            match postcard::take_from_bytes(body) {
                Ok((fields, [])) => fields,
                _ => return Err(DecodeError::Malformed),
            };
        let state = State { map: Arc::new(map_of(fields)?) };
        state.contradiction().map_err(DecodeError::Contradiction)?;
        Ok(state)
    }
}

/// Over everything, the checksum itself taken as zero.
pub(crate) fn checksum(bytes: &[u8]) -> u64 {
    crc64(&bytes[HEADER_BYTES..]) ^ u64::from(bytes[0])
}

/// The map that the fields describe, not yet judged.
fn map_of(fields: Fields<Node, Disk, Configuration, Volume>) -> Result<Map, DecodeError> {
    let contradiction = |what| Err(DecodeError::Contradiction(what));
    if fields.partition_bits > PARTITION_BITS_MAX {
        return contradiction("too many partitions");
    }
    let Some(partitions) = Partitions::from_runs(fields.partition_bits, fields.partitions) else {
        return contradiction("the number of partitions");
    };
    let counted = (fields.nodes.len(), fields.disks.len());
    let counted = (counted, fields.volumes.len(), fields.layers.len());
    let names = fields.volumes.iter().map(|volume| (volume.name.clone(), volume.id)).collect();
    let map = Map {
        epoch: fields.epoch,
        cluster: fields.cluster,
        created_unix_s: fields.created_unix_s,
        partitions: Arc::new(partitions),
        names: Arc::new(names),
        next_volume: fields.next_volume,
        next_layer: fields.next_layer,
        provisioned_bytes: fields.volumes.iter().map(|volume| u128::from(volume.bytes)).sum(),
        attachments: fields.volumes.iter().map(|volume| volume.all_attachments().count()).sum(),
        snapshots: fields.volumes.iter().map(|volume| volume.snapshots.len()).sum(),
        layers: Arc::new(fields.layers.into_iter().collect()),
        nodes: Arc::new(fields.nodes.into_iter().map(|node| (node.id, node)).collect()),
        disks: Arc::new(fields.disks.into_iter().map(|disk| (disk.id, disk)).collect()),
        volumes: Arc::new(
            fields.volumes.into_iter().map(|volume| (volume.id, Arc::new(volume))).collect(),
        ),
    };
    if ((map.nodes.len(), map.disks.len()), map.volumes.len(), map.layers.len()) != counted {
        return contradiction("two things with one id");
    }
    Ok(map)
}
