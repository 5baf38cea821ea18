//! Names on the command line: `NAME` is a volume, `NAME@TAG` a snapshot of it. Whether such a name
//! may exist is the cluster's to say; here it is only taken apart.

use proto::DiskId;
use std::{fmt, str::FromStr};

/// What stands between a volume's name and a tag. Neither may contain it.
pub const SEPARATOR: char = '@';

/// A volume.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VolumeName(pub String);

/// A snapshot of a volume.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SnapshotName {
    /// The volume's name.
    pub volume: String,
    /// The snapshot's own.
    pub tag: String,
}

/// What can be read: a volume or a snapshot.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Name {
    /// A volume's content as it is now.
    Volume(String),
    /// What it was once.
    Snapshot(SnapshotName),
}

/// A disk of the node that is asked, by its id.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DiskName(pub DiskId);

/// A disk of any node, by its id.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ClusterDiskName(pub DiskId);

/// A node, by its name or its id.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeName(pub String);

/// A group of volumes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GroupName(pub String);

/// A snapshot of a group, written like one of a volume.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GroupSnapshotName(pub SnapshotName);

/// A group, or a snapshot of it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GroupOrSnapshotName(pub Name);

/// Why a text is no such name: one sentence with the remedy.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0}")]
pub struct NameError(String);

impl FromStr for Name {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Name, NameError> {
        match text.split_once(SEPARATOR) {
            None => Ok(Name::Volume(text.to_string())),
            Some((volume, tag))
                if !volume.is_empty() && !tag.is_empty() && !tag.contains(SEPARATOR) =>
            {
                let (volume, tag) = (volume.to_string(), tag.to_string());
                Ok(Name::Snapshot(SnapshotName { volume, tag }))
            }
            Some(_) => Err(NameError(format!(
                "`{text}` names no snapshot; write the volume's name, one `@`, and the \
                 snapshot's tag, as in disk1@monday"
            ))),
        }
    }
}

impl FromStr for SnapshotName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<SnapshotName, NameError> {
        match text.parse()? {
            Name::Snapshot(name) => Ok(name),
            Name::Volume(name) => Err(NameError(format!(
                "`{name}` names no snapshot; write the tag too, as in {name}@monday"
            ))),
        }
    }
}

impl FromStr for VolumeName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<VolumeName, NameError> {
        match text.parse()? {
            Name::Volume(name) => Ok(VolumeName(name)),
            Name::Snapshot(SnapshotName { volume, .. }) => Err(NameError(format!(
                "`{text}` names a snapshot, and this needs a volume; say `{volume}`, or make a \
                 volume of the snapshot with `dog volume clone {text} NEW`"
            ))),
        }
    }
}

impl FromStr for GroupName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<GroupName, NameError> {
        match text.parse()? {
            Name::Volume(name) => Ok(GroupName(name)),
            Name::Snapshot(SnapshotName { volume, .. }) => Err(NameError(format!(
                "`{text}` names a snapshot, and this needs a group; say `{volume}`"
            ))),
        }
    }
}

impl FromStr for GroupSnapshotName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<GroupSnapshotName, NameError> {
        text.parse().map(GroupSnapshotName)
    }
}

impl FromStr for GroupOrSnapshotName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<GroupOrSnapshotName, NameError> {
        text.parse().map(GroupOrSnapshotName)
    }
}

impl FromStr for DiskName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<DiskName, NameError> {
        let whole = text.len() == 32 && text.bytes().all(|digit| digit.is_ascii_hexdigit());
        let id = if whole { u128::from_str_radix(text, 16).ok() } else { None };
        id.map(|id| DiskName(DiskId(id))).ok_or_else(|| {
            NameError(format!(
                "`{text}` is no disk id; give the 32 hexadecimal digits that `dog disk list` shows"
            ))
        })
    }
}

impl FromStr for ClusterDiskName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<ClusterDiskName, NameError> {
        text.parse::<DiskName>().map(|disk| ClusterDiskName(disk.0))
    }
}

impl FromStr for NodeName {
    type Err = NameError;

    fn from_str(text: &str) -> Result<NodeName, NameError> {
        match text.is_empty() {
            true => Err(NameError("give the node's name or id, as `dog node list` shows".into())),
            false => Ok(NodeName(text.to_string())),
        }
    }
}

impl fmt::Display for VolumeName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Display for SnapshotName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{SEPARATOR}{}", self.volume, self.tag)
    }
}

/// As an NBD export's name too.
impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Name::Volume(name) => f.write_str(name),
            Name::Snapshot(name) => name.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_taken_apart_and_put_together() {
        let check = |text: &str, parts: Option<(&str, &str)>| {
            let name: Name = text.parse().expect(text);
            let expected = match parts {
                None => Name::Volume(text.to_string()),
                Some((volume, tag)) => {
                    Name::Snapshot(SnapshotName { volume: volume.into(), tag: tag.into() })
                }
            };
            assert_eq!(name, expected);
            assert_eq!(name.to_string(), text);
            assert_eq!(text.parse::<VolumeName>().is_ok(), parts.is_none());
            assert_eq!(text.parse::<SnapshotName>().is_ok(), parts.is_some());
        };
        check("disk1", None);
        check("disk1@monday", Some(("disk1", "monday")));
        check("a b", None);
        check("\u{e9}@\u{e8}", Some(("\u{e9}", "\u{e8}")));
    }

    #[test]
    fn half_names_are_refused_with_a_remedy() {
        for text in ["@", "a@", "@b", "a@b@c", "a@@b"] {
            let error = text.parse::<Name>().expect_err(text);
            assert!(error.to_string().contains("as in disk1@monday"), "{error}");
            assert!(text.parse::<SnapshotName>().is_err() && text.parse::<VolumeName>().is_err());
        }
        let error = "a".parse::<SnapshotName>().expect_err("a volume");
        assert!(error.to_string().contains("as in a@monday"), "{error}");
        let error = "a@b".parse::<VolumeName>().expect_err("a snapshot");
        assert!(error.to_string().contains("dog volume clone a@b NEW"), "{error}");
    }

    #[test]
    fn disk_ids_are_whole() {
        let id = "000102030405060708090a0b0c0d0e0f";
        let disk: DiskName = id.parse().expect("a disk's id");
        assert_eq!(disk.0.to_string(), id);
        for text in ["", "0", "xyz", &id[1..], "+00102030405060708090a0b0c0d0e0f"] {
            let error = text.parse::<DiskName>().expect_err(text);
            assert!(error.to_string().contains("dog disk list"), "{error}");
        }
    }
}
