//! Names of things. Each id is its own type, so that none can stand in for another.

use serde::{Deserialize, Serialize};
use std::fmt;

macro_rules! number_id {
    ($(#[$doc:meta])* $name:ident, $inner:ty) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        #[derive(Serialize, Deserialize)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({})", stringify!($name), self.0)
            }
        }
    };
}

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub u128);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:032x}", self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({:032x})", stringify!($name), self.0)
            }
        }

        /// For people (JSON) the 32 hex digits that `Display` prints; for binary formats 128 bits.
        impl Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                if serializer.is_human_readable() {
                    serializer.collect_str(self)
                } else {
                    self.0.serialize(serializer)
                }
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                if deserializer.is_human_readable() {
                    let text = String::deserialize(deserializer)?;
                    u128::from_str_radix(&text, 16).map($name).map_err(serde::de::Error::custom)
                } else {
                    u128::deserialize(deserializer).map($name)
                }
            }
        }
    };
}

uuid_id! {
    /// One cluster, drawn at random when its first node is created.
    ClusterId
}
uuid_id! {
    /// One node: the identity kept in its data directory.
    NodeId
}
uuid_id! {
    /// One disk: the identity kept in its superblock.
    DiskId
}
number_id! {
    /// One volume. Never reused within a cluster. 0 is none.
    VolumeId, u64
}
number_id! {
    /// One generation of a volume's content. Never reused within a cluster. 0 is none.
    LayerId, u64
}
number_id! {
    /// The layers of one volume that descend from one another; they share placement.
    /// It is the number of the lineage's first layer.
    LineageId, u64
}
number_id! {
    /// One of the 2^n slices that objects hash to.
    PartitionId, u32
}
number_id! {
    /// The stamp of one state of the map. Grows by one with each applied command.
    Epoch, u64
}
number_id! {
    /// Numbers the attachments of a volume. Only grows. 0 is "never attached".
    Generation, u64
}
number_id! {
    /// Numbers the member sets of one partition. Only grows.
    ConfigurationNumber, u64
}
number_id! {
    /// A fresh number each time a disk is opened; an acknowledgement belongs to one.
    Incarnation, u64
}

impl Generation {
    /// Carried by reads of sealed layers, whose content never changes: no fence concerns them. No
    /// attachment has this number.
    pub const SEALED: Generation = Generation(u64::MAX);
}

/// One 4 MiB piece of a layer.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize,
)]
pub struct ObjectKey {
    /// The layer the piece belongs to.
    pub layer: LayerId,
    /// Which piece: byte offset in the volume divided by the object size.
    pub index: u32,
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.layer, self.index)
    }
}

/// Names the last write applied to an object on a replica. Ordered by generation, then sequence.
/// The default (0, 0) is that of an object that was never written.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize,
)]
pub struct Stamp {
    /// The attachment that wrote.
    pub generation: Generation,
    /// The write's number within that attachment, from 1.
    pub sequence: u64,
}

impl Stamp {
    /// That of an object which was copied while it was being written: it has parts of more than
    /// one of its states and counts for nothing. No write has this stamp.
    pub const INCOMPLETE: Stamp = Stamp { generation: Generation(0), sequence: 1 };
}
