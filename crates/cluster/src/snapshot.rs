//! The whole state as bytes, and back: version, checksum, then the fields in postcard. Older
//! versions are read too (`migrate`). What came with version 5 is written behind those of version
//! 4, and only where there is any: a state without it is read by a `sheep` of before it.

use crate::attempt::Attempt;
use crate::command::DecodeError;
use crate::durability::Durability;
use crate::group::Group;
use crate::layer::Layer;
use crate::machine::{Disk, Node};
use crate::map::Map;
use crate::migrate;
use crate::partition::{Configuration, Member, Partitions, Table, from_runs, runs};
use crate::redundancy::Redundancy;
use crate::source::Source;
use crate::state::State;
use crate::token::Token;
use crate::volume::Volume;
use proto::limits::{PARTITION_BITS_MAX, SNAPSHOT_BYTES_MAX};
use proto::{
    ClusterId, ConfigurationNumber, DiskId, Epoch, Incarnation, LayerId, LineageId, NodeId,
    PartitionId, VolumeId, crc64,
};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, sync::Arc};

/// The version of the encoding, the first byte: that of a state without [`Further`], ..
const VERSION: u8 = 4;
/// .. and of one with it.
const VERSION_FURTHER: u8 = 5;
/// Version and checksum.
const HEADER_BYTES: usize = 1 + 8;

/// The fields of version 4, in their order. `Of...` are the things themselves or references to
/// them, which are written alike.
#[derive(Serialize, Deserialize)]
pub(crate) struct Fields<OfNode, OfDisk, OfVolume, OfSource, OfGroup> {
    pub(crate) epoch: Epoch,
    pub(crate) cluster: ClusterId,
    pub(crate) created_unix_s: u64,
    pub(crate) next_volume: VolumeId,
    pub(crate) next_layer: LayerId,
    pub(crate) nodes: Vec<OfNode>,
    pub(crate) disks: Vec<OfDisk>,
    pub(crate) partition_bits: u8,
    /// For each number of copies that has a table, runs of partitions with equal configurations.
    pub(crate) tables: Vec<(u8, Vec<(u32, Packed)>)>,
    pub(crate) volumes: Vec<OfVolume>,
    pub(crate) layers: Vec<(LayerId, Layer)>,
    pub(crate) sources: Vec<(LayerId, OfSource)>,
    pub(crate) groups: Vec<OfGroup>,
    pub(crate) lineages: Vec<(LineageId, Redundancy)>,
    pub(crate) next_attempt: u64,
    pub(crate) attempts: Vec<PackedAttempt>,
    /// Nodes with addresses, in order of id.
    pub(crate) addresses: Vec<(NodeId, Vec<String>)>,
    /// Join tokens, in order of id.
    pub(crate) tokens: Vec<Token>,
}

/// What version 5 has behind the fields of version 4; never all of it empty.
#[derive(Default, Serialize, Deserialize)]
struct Further {
    /// Volumes that promise something else than the default, in order of id, and since which epoch
    /// their writer has still to report that, if it has.
    durabilities: Vec<(VolumeId, Durability, Option<Epoch>)>,
    /// Ids of layers that recoveries have jumped over, in order.
    gaps: Vec<(LayerId, LayerId)>,
}

impl Further {
    fn of(map: &Map) -> Further {
        let differs = |volume: &&Volume| volume.durability != Durability::default();
        let durability = |it: &Volume| (it.id, it.durability, it.awaits_stable);
        let durabilities = map.volumes().filter(differs).map(durability).collect();
        Further { durabilities, gaps: map.gaps.to_vec() }
    }

    fn is_empty(&self) -> bool {
        self.durabilities.is_empty() && self.gaps.is_empty()
    }

    /// Puts what is told of volumes where it belongs. Each is named once, and only if there is
    /// something to tell.
    fn apply(self, fields: &mut Present) -> Result<(), DecodeError> {
        let contradiction = Err(DecodeError::Contradiction("more to tell, and nothing told"));
        if self.is_empty() {
            return contradiction;
        }
        let count = self.durabilities.len();
        let of = |(id, durability, awaits)| (id, (durability, awaits));
        let mut known: BTreeMap<_, _> = self.durabilities.into_iter().map(of).collect();
        let differ = known.values().all(|(durability, _)| *durability != Durability::default());
        if known.len() != count || !differ {
            return contradiction;
        }
        for volume in &mut fields.volumes {
            if let Some(told) = known.remove(&volume.id) {
                (volume.durability, volume.awaits_stable) = told;
            }
        }
        if known.is_empty() { Ok(()) } else { contradiction }
    }
}

/// A configuration in few bytes, for there are many. A member is the place of its disk in the list
/// of disks, and how much lower its incarnation is than that of the disk.
#[derive(Serialize, Deserialize)]
pub(crate) struct Packed {
    number: ConfigurationNumber,
    current: Vec<(u16, u64)>,
    recovering: Vec<(u16, u64)>,
    attempt: u64,
    may_be_refused: bool,
}

/// An attempt, a disk being its place in the list of disks.
#[derive(Serialize, Deserialize)]
pub(crate) struct PackedAttempt {
    number: u64,
    copies: u8,
    owner: NodeId,
    wanted: Vec<(PartitionId, Vec<u16>)>,
}

impl PackedAttempt {
    fn new(attempt: &Attempt, disks: &[&Disk]) -> PackedAttempt {
        let place = |disk: &DiskId| {
            let known = disks.binary_search_by_key(disk, |known| known.id);
            known.expect("attempts name known disks") as u16
        };
        let wanted = attempt.wanted.iter().map(|(&partition, wanted)| {
            let places = wanted.iter().map(place).collect();
            (partition, places)
        });
        PackedAttempt {
            number: attempt.number,
            copies: attempt.copies,
            owner: attempt.owner,
            wanted: wanted.collect(),
        }
    }

    /// Nothing if there is no such disk, or a partition is twice there.
    fn unpacked(&self, disks: &[DiskId]) -> Option<Attempt> {
        let disk = |&place: &u16| disks.get(usize::from(place)).copied();
        let unpack = |(partition, places): &(PartitionId, Vec<u16>)| {
            Some((*partition, places.iter().map(disk).collect::<Option<_>>()?))
        };
        let wanted: BTreeMap<_, _> = self.wanted.iter().map(unpack).collect::<Option<_>>()?;
        let &PackedAttempt { number, copies, owner, .. } = self;
        (wanted.len() == self.wanted.len()).then_some(Attempt { number, copies, owner, wanted })
    }
}

const _: () = assert!(proto::limits::DISKS_MAX <= u16::MAX as usize);

impl Packed {
    fn new(configuration: &Configuration, disks: &[&Disk]) -> Packed {
        let packed = |member: &Member| {
            let known = disks.binary_search_by_key(&member.disk, |disk| disk.id);
            let place = known.expect("members are known disks");
            (place as u16, disks[place].incarnation.0 - member.incarnation.0)
        };
        Packed {
            number: configuration.number,
            current: configuration.current.iter().map(packed).collect(),
            recovering: configuration.recovering.iter().map(packed).collect(),
            attempt: configuration.attempt,
            may_be_refused: configuration.may_be_refused,
        }
    }

    /// A configuration that no attempt concerns.
    pub(crate) fn settled(number: ConfigurationNumber, current: Vec<(u16, u64)>) -> Packed {
        let recovering = Vec::new();
        Packed { number, current, recovering, attempt: 0, may_be_refused: false }
    }

    /// Nothing if there is no such disk, or none that was opened so often.
    fn unpacked(&self, disks: &[Disk]) -> Option<Configuration> {
        let member = |&(place, lower): &(u16, u64)| {
            let disk = disks.get(usize::from(place))?;
            let incarnation = Incarnation(disk.incarnation.0.checked_sub(lower)?);
            Some(Member { disk: disk.id, incarnation })
        };
        Some(Configuration {
            number: self.number,
            current: self.current.iter().map(member).collect::<Option<_>>()?,
            recovering: self.recovering.iter().map(member).collect::<Option<_>>()?,
            attempt: self.attempt,
            may_be_refused: self.may_be_refused,
        })
    }
}

/// The fields with the things themselves.
pub(crate) type Present = Fields<Node, Disk, Volume, Source, Group>;

impl State {
    /// As bytes for a snapshot, at most `SNAPSHOT_BYTES_MAX` of them. Equal states give equal
    /// bytes.
    pub fn encode(&self) -> Vec<u8> {
        let map = &*self.map;
        let disks: Vec<&Disk> = map.disks().collect();
        let packed = |table: &Table| {
            let pack = |(length, held)| (length, Packed::new(held, &disks));
            runs(table).into_iter().map(pack).collect()
        };
        let fields = Fields::<&Node, &Disk, &Volume, &Source, &Group> {
            epoch: map.epoch,
            cluster: map.cluster,
            created_unix_s: map.created_unix_s,
            next_volume: map.next_volume,
            next_layer: map.next_layer,
            nodes: map.nodes().collect(),
            partition_bits: map.partition_bits(),
            tables: map
                .partitions
                .tables()
                .map(|(copies, table)| (copies, packed(table)))
                .collect(),
            next_attempt: map.next_attempt,
            attempts: map.attempts().map(|held| PackedAttempt::new(held, &disks)).collect(),
            disks,
            volumes: map.volumes().collect(),
            layers: map.layers.iter().map(|(&id, &layer)| (id, layer)).collect(),
            sources: map.sources().collect(),
            groups: map.groups().collect(),
            lineages: map.lineages.iter().map(|(&id, &known)| (id, known)).collect(),
            addresses: map.addresses.iter().map(|(&id, known)| (id, known.clone())).collect(),
            tokens: map.tokens.to_vec(),
        };
        let further = Further::of(map);
        let mut header = vec![0; HEADER_BYTES];
        header[0] = if further.is_empty() { VERSION } else { VERSION_FURTHER };
        let serializable = "it only has serializable fields";
        let mut bytes = postcard::to_extend(&fields, header).expect(serializable);
        if !further.is_empty() {
            bytes = postcard::to_extend(&further, bytes).expect(serializable);
        }
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
        if !(migrate::OLDEST..=VERSION_FURTHER).contains(&version) {
            return Err(DecodeError::Version(version));
        }
        let (header, body) = bytes.split_at_checked(HEADER_BYTES).ok_or(DecodeError::Malformed)?;
        if header[1..] != checksum(bytes).to_le_bytes() {
            return Err(DecodeError::Checksum);
        }
        let map = match version {
            1 => migrate::from_version_1(body)?,
            2 => migrate::from_version_2(body)?,
            3 => migrate::from_version_3(body)?,
            VERSION => {
                let fields: Present = record(body)?;
                let partitions = partitions_of(&fields)?;
                map_of(fields, partitions)?
            }
            _ => {
                let (mut fields, rest) = postcard::take_from_bytes::<Present>(body)
                    .map_err(|_| DecodeError::Malformed)?;
                let further = record::<Further>(rest)?;
                let gaps = Arc::new(further.gaps.clone());
                further.apply(&mut fields)?;
                let partitions = partitions_of(&fields)?;
                Map { gaps, ..map_of(fields, partitions)? }
            }
        };
        let state = State { map: Arc::new(map) };
        state.contradiction().map_err(DecodeError::Contradiction)?;
        Ok(state)
    }
}

/// Over everything, the checksum itself taken as zero.
pub(crate) fn checksum(bytes: &[u8]) -> u64 {
    crc64(&bytes[HEADER_BYTES..]) ^ u64::from(bytes[0])
}

/// The only record in these bytes.
pub(crate) fn record<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, DecodeError> {
    match postcard::take_from_bytes(body) {
        Ok((record, [])) => Ok(record),
        _ => Err(DecodeError::Malformed),
    }
}

/// The tables that the fields describe.
pub(crate) fn partitions_of(fields: &Present) -> Result<Partitions, DecodeError> {
    let contradiction = DecodeError::Contradiction;
    let bits = fields.partition_bits;
    if bits > PARTITION_BITS_MAX {
        return Err(contradiction("too many partitions"));
    }
    let mut tables = Vec::new();
    for (copies, packed) in &fields.tables {
        let unpack =
            |(length, held): &(u32, Packed)| Some((*length, held.unpacked(&fields.disks)?));
        let unpacked = packed.iter().map(unpack).collect::<Option<_>>();
        let unpacked = unpacked.ok_or(contradiction("a member that there never was"))?;
        let table = from_runs(bits, unpacked).ok_or(contradiction("the number of partitions"))?;
        tables.push((*copies, table));
    }
    Partitions::from_tables(bits, tables).ok_or(contradiction("the tables of partitions"))
}

/// The map that the fields describe, not yet judged.
pub(crate) fn map_of(fields: Present, partitions: Partitions) -> Result<Map, DecodeError> {
    let counted = [
        fields.nodes.len(),
        fields.disks.len(),
        fields.volumes.len(),
        fields.layers.len(),
        fields.sources.len(),
        fields.groups.len(),
        fields.lineages.len(),
        fields.attempts.len(),
        fields.addresses.len(),
    ];
    let disks: Vec<DiskId> = fields.disks.iter().map(|disk| disk.id).collect();
    let unpack = |packed: &PackedAttempt| {
        let attempt = packed.unpacked(&disks)?;
        Some((attempt.number, Arc::new(attempt)))
    };
    let attempts = fields.attempts.iter().map(unpack).collect::<Option<_>>();
    let attempts = attempts.ok_or(DecodeError::Contradiction("an attempt with unknown disks"))?;
    let named = || fields.volumes.iter().filter(|volume| volume.trash.is_none());
    let names = named().map(|volume| (volume.name.clone(), volume.id)).collect();
    let map = Map {
        epoch: fields.epoch,
        cluster: fields.cluster,
        created_unix_s: fields.created_unix_s,
        partitions: Arc::new(partitions),
        attempts: Arc::new(attempts),
        next_attempt: fields.next_attempt,
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
        addresses: Arc::new(fields.addresses.into_iter().collect()),
        tokens: Arc::new(fields.tokens),
        gaps: Arc::default(),
        layers: Arc::new(fields.layers.into_iter().collect()),
        lineages: Arc::new(fields.lineages.into_iter().collect()),
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
        map.lineages.len(),
        map.attempts.len(),
        map.addresses.len(),
    ];
    if kept != counted {
        return Err(DecodeError::Contradiction("two things with one id"));
    }
    Ok(map)
}
