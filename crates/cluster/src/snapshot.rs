//! The whole state as bytes, and back: version, checksum, then the fields in postcard. Older
//! versions are read too (`migrate`).

use crate::command::DecodeError;
use crate::group::Group;
use crate::layer::Layer;
use crate::map::{Disk, Map, Node};
use crate::migrate;
use crate::partition::{Configuration, Partitions};
use crate::source::Source;
use crate::state::State;
use crate::volume::Volume;
use proto::limits::{PARTITION_BITS_MAX, SNAPSHOT_BYTES_MAX};
use proto::{ClusterId, Epoch, LayerId, VolumeId, crc64};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// The version of the encoding, the first byte.
const VERSION: u8 = 2;
/// Version and checksum.
const HEADER_BYTES: usize = 1 + 8;

/// The fields of version 2, in their order. `Of...` are the things themselves or references to
/// them, which are written alike.
#[derive(Serialize, Deserialize)]
pub(crate) struct Fields<OfNode, OfDisk, OfConfiguration, OfVolume, OfSource, OfGroup> {
    pub(crate) epoch: Epoch,
    pub(crate) cluster: ClusterId,
    pub(crate) created_unix_s: u64,
    pub(crate) next_volume: VolumeId,
    pub(crate) next_layer: LayerId,
    pub(crate) nodes: Vec<OfNode>,
    pub(crate) disks: Vec<OfDisk>,
    pub(crate) partition_bits: u8,
    /// Runs of partitions with equal configurations.
    pub(crate) partitions: Vec<(u32, OfConfiguration)>,
    pub(crate) volumes: Vec<OfVolume>,
    pub(crate) layers: Vec<(LayerId, Layer)>,
    pub(crate) sources: Vec<(LayerId, OfSource)>,
    pub(crate) groups: Vec<OfGroup>,
}

/// The fields with the things themselves.
pub(crate) type Present = Fields<Node, Disk, Configuration, Volume, Source, Group>;

impl State {
    /// As bytes for a snapshot, at most `SNAPSHOT_BYTES_MAX` of them. Equal states give equal
    /// bytes.
    pub fn encode(&self) -> Vec<u8> {
        let map = &*self.map;
        let fields = Fields::<&Node, &Disk, &Configuration, &Volume, &Source, &Group> {
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
            sources: map.sources().collect(),
            groups: map.groups().collect(),
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
        if !(migrate::OLDEST..=VERSION).contains(&version) {
            return Err(DecodeError::Version(version));
        }
        let (header, body) = bytes.split_at_checked(HEADER_BYTES).ok_or(DecodeError::Malformed)?;
        if header[1..] != checksum(bytes).to_le_bytes() {
            return Err(DecodeError::Checksum);
        }
        let fields: Present = if version == VERSION {
            match postcard::take_from_bytes(body) {
                Ok((fields, [])) => fields,
                _ => return Err(DecodeError::Malformed),
            }
        } else {
            migrate::from_version_1(body)?
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
fn map_of(fields: Present) -> Result<Map, DecodeError> {
    let contradiction = |what| Err(DecodeError::Contradiction(what));
    if fields.partition_bits > PARTITION_BITS_MAX {
        return contradiction("too many partitions");
    }
    let Some(partitions) = Partitions::from_runs(fields.partition_bits, fields.partitions) else {
        return contradiction("the number of partitions");
    };
    let counted = [
        fields.nodes.len(),
        fields.disks.len(),
        fields.volumes.len(),
        fields.layers.len(),
        fields.sources.len(),
        fields.groups.len(),
    ];
    let named = || fields.volumes.iter().filter(|volume| volume.trash.is_none());
    let names = named().map(|volume| (volume.name.clone(), volume.id)).collect();
    let map = Map {
        epoch: fields.epoch,
        cluster: fields.cluster,
        created_unix_s: fields.created_unix_s,
        partitions: Arc::new(partitions),
        names: Arc::new(names),
        next_volume: fields.next_volume,
        next_layer: fields.next_layer,
        provisioned_bytes: named().map(|volume| u128::from(volume.bytes)).sum(),
        attachments: fields.volumes.iter().map(|volume| volume.all_attachments().count()).sum(),
        snapshots: fields.volumes.iter().map(|volume| volume.snapshots.len()).sum(),
        schedules: fields.volumes.iter().map(|volume| volume.schedules.len()).sum(),
        sources: Arc::new(fields.sources.into_iter().collect()),
        groups: Arc::new(
            fields.groups.into_iter().map(|group| (group.name.clone(), Arc::new(group))).collect(),
        ),
        layers: Arc::new(fields.layers.into_iter().collect()),
        nodes: Arc::new(fields.nodes.into_iter().map(|node| (node.id, node)).collect()),
        disks: Arc::new(fields.disks.into_iter().map(|disk| (disk.id, disk)).collect()),
        volumes: Arc::new(
            fields.volumes.into_iter().map(|volume| (volume.id, Arc::new(volume))).collect(),
        ),
    };
    let kept = [
        map.nodes.len(),
        map.disks.len(),
        map.volumes.len(),
        map.layers.len(),
        map.sources.len(),
        map.groups.len(),
    ];
    if kept != counted {
        return contradiction("two things with one id");
    }
    Ok(map)
}
