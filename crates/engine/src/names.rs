//! What clients call volumes and snapshots: "vm1" and "vm1@monday".

use crate::attach::HeldId;
use cluster::{Map, Snapshot, Volume};
use proto::{LayerId, VolumeId, limits::BASES_LISTED_MAX};
use std::collections::{BTreeMap, BTreeSet};
use volume::{Answer, Base, Tags};

/// What a client can have.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Export {
    /// A volume, to read and write.
    Volume(VolumeId),
    /// A snapshot, to read.
    Snapshot {
        /// Whose.
        volume: VolumeId,
        /// What it names.
        layer: LayerId,
    },
}

impl From<HeldId> for Export {
    fn from(id: HeldId) -> Export {
        match id {
            HeldId::Head(volume) => Export::Volume(volume),
            HeldId::Snapshot { volume, layer, .. } => Export::Snapshot { volume, layer },
        }
    }
}

impl Export {
    /// Its size in bytes and whether it can only be read, if it exists.
    pub(crate) fn shape(self, map: &Map) -> Option<(u64, bool)> {
        match self {
            Export::Volume(volume) => Some((map.volume(volume)?.served_bytes(), false)),
            Export::Snapshot { volume, layer } => Some((snapshot(map, volume, layer)?.bytes, true)),
        }
    }
}

/// The snapshot of a volume that names a layer.
pub(crate) fn snapshot(map: &Map, volume: VolumeId, layer: LayerId) -> Option<&Snapshot> {
    map.volume(volume)?.snapshots.iter().find(|snapshot| snapshot.layer == layer)
}

/// What is called so, or the answer that nothing is, or that it cannot be had yet.
pub(crate) fn find(map: &Map, name: &str) -> Result<Export, Answer> {
    let (volume_name, tag) = match name.split_once('@') {
        Some((volume, tag)) => (volume, Some(tag)),
        None => (name, None),
    };
    let unknown = |sentence| Err(Answer::Unknown { sentence });
    let Some(volume) = map.volume_named(volume_name) else {
        return unknown(no_such_volume(volume_name));
    };
    let Some(tag) = tag else { return Ok(Export::Volume(volume.id)) };
    let Some(snapshot) = volume.snapshot(tag) else {
        return unknown(no_such_snapshot(volume_name, tag));
    };
    if map.sealing(volume) == Some(snapshot.layer) {
        let sentence = format!(
            "snapshot {name} cannot be read yet: it is still being taken, or a rollback to it \
             being finished; try again in a moment"
        );
        return Err(Answer::Refused { sentence });
    }
    Ok(Export::Snapshot { volume: volume.id, layer: snapshot.layer })
}

/// What something that is held is called, if it still exists. What is in the trash does not, for
/// clients.
pub(crate) fn of(map: &Map, id: HeldId) -> Option<String> {
    let volume = map.volume(id.volume()).filter(|volume| volume.trash.is_none())?;
    match id {
        HeldId::Head(_) => Some(volume.name.clone()),
        HeldId::Snapshot { layer, .. } => {
            Some(full_name(volume, Some(snapshot(map, volume.id, layer)?)))
        }
    }
}

/// "volume", or "volume@tag" for a snapshot of it.
pub(crate) fn full_name(volume: &Volume, snapshot: Option<&Snapshot>) -> String {
    match snapshot {
        Some(snapshot) => format!("{}@{}", volume.name, snapshot.tag),
        None => volume.name.clone(),
    }
}

/// As [`full_name`]; of what is in the trash, that it is there, for others have that name, too.
pub(crate) fn shown_name(volume: &Volume, snapshot: Option<&Snapshot>) -> String {
    let name = full_name(volume, snapshot);
    if volume.trash.is_some() { name + " (in trash)" } else { name }
}

/// All that a client can have now: the volumes in order, each with its snapshots after it, oldest
/// first.
pub(crate) fn list(map: &Map) -> Vec<String> {
    let mut names = Vec::new();
    for volume in map.volumes_by_name() {
        names.push(volume.name.clone());
        let sealing = map.sealing(volume);
        let sealed = volume.snapshots.iter().filter(|snapshot| Some(snapshot.layer) != sealing);
        names.extend(sealed.map(|snapshot| full_name(volume, Some(snapshot))));
    }
    names
}

/// Those of a volume's snapshots that lie below what an export shows and can be read, newest first.
pub(crate) fn bases(map: &Map, export: Export, tags: &Tags) -> Vec<Base> {
    let (volume, shown) = match export {
        Export::Volume(volume) => (volume, None),
        Export::Snapshot { volume, layer } => (volume, Some(layer)),
    };
    let Some(volume) = map.volume(volume) else { return Vec::new() };
    let sealing = map.sealing(volume);
    let readable = volume.snapshots.iter().filter(|snapshot| Some(snapshot.layer) != sealing);
    let names: BTreeMap<LayerId, &str> =
        readable.map(|snapshot| (snapshot.layer, snapshot.tag.as_str())).collect();
    let named: BTreeSet<&str> = tags.named.iter().map(String::as_str).collect();
    let mut bases = Vec::new();
    let mut listed = 0;
    let mut at = shown.unwrap_or(volume.head);
    while let Some(below) = map.parent_in_lineage(at) {
        at = below;
        let Some(&tag) = names.get(&at) else { continue };
        let is_listed = tags.all && listed < BASES_LISTED_MAX;
        listed += 1;
        if is_listed || named.contains(tag) {
            bases.push(Base { tag: tag.to_owned(), layer: at });
        }
    }
    bases
}

/// To a client that waited for something.
pub(crate) const DELETED_MEANWHILE: &str =
    "it was deleted meanwhile; `dog volume list` shows what exists";

pub(crate) fn no_such_volume(name: &str) -> String {
    format!("there is no volume named {name:?}; `dog volume list` shows those that exist")
}

pub(crate) fn no_such_snapshot(name: &str, tag: &str) -> String {
    format!(
        "volume {name:?} has no snapshot {tag:?}; `dog volume snapshots {name}` shows those it has"
    )
}

/// What every layer that has a name is called.
pub(crate) fn of_layers(map: &Map) -> BTreeMap<LayerId, String> {
    let mut names = BTreeMap::new();
    for volume in map.volumes() {
        names.insert(volume.head, shown_name(volume, None));
        for snapshot in &volume.snapshots {
            names.insert(snapshot.layer, shown_name(volume, Some(snapshot)));
        }
    }
    names
}
