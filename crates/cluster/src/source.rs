//! Sources: what lies elsewhere and shows through a volume as if it were a snapshot.

use crate::command::Answer;
use crate::layer::{self, Layer};
use crate::layering::add_layer;
use crate::map::Map;
use crate::refusal::Refusal;
use crate::state::State;
use crate::volume::{check_name, check_size, printable};
use proto::limits::{SOURCE_ADDRESS_BYTES_MAX, SOURCES_MAX, VOLUME_BYTES_MAX};
use proto::{LayerId, LineageId};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// What a source layer shows. No disk has anything of that layer.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Source {
    /// Where it is: an NBD URI, or the absolute path of a file. What it means is up to the node
    /// that reads it.
    pub address: String,
    /// So many bytes of it show; what lies beyond is zero.
    pub bytes: u64,
}

/// Whether a source may have this address: 1 to 1024 printable bytes.
pub fn check_address(address: &str) -> Result<(), Refusal> {
    let cut = printable(address, SOURCE_ADDRESS_BYTES_MAX);
    match address.is_empty() || cut != address {
        true => Err(Refusal::BadAddress { address: cut }),
        false => Ok(()),
    }
}

const _: () = assert!(SOURCE_ADDRESS_BYTES_MAX == 1024, "the sentence above says so");

impl Map {
    /// What a layer shows that lies elsewhere, if it is a source layer.
    pub fn source(&self, layer: LayerId) -> Option<&Source> {
        self.sources.get(&layer)
    }

    /// All sources, by layer.
    pub fn sources(&self) -> impl ExactSizeIterator<Item = (LayerId, &Source)> {
        self.sources.iter().map(|(&layer, source)| (layer, source))
    }
}

impl State {
    pub(crate) fn create_volume_from(
        &mut self,
        name: &str,
        bytes: u64,
        address: &str,
        source_bytes: u64,
        unix_s: u64,
    ) -> Result<Answer, Refusal> {
        check_name(name)?;
        check_size(bytes)?;
        check_address(address)?;
        if !(1..=VOLUME_BYTES_MAX).contains(&source_bytes) {
            return Err(Refusal::SizeOutOfRange { bytes: source_bytes });
        }
        self.vet_new_volume(name)?;
        self.vet_new_layers(2)?;
        if self.map.sources.len() >= SOURCES_MAX {
            return Err(Refusal::TooManySources);
        }
        let map = self.change();
        let parent = add_layer(map, |id| Layer {
            lineage: LineageId(id.0),
            parent: LayerId(0),
            overlap: 0,
            opened: true,
        });
        let source = Source { address: address.to_owned(), bytes: source_bytes };
        Arc::make_mut(&mut map.sources).insert(parent, source);
        let overlap = bytes.min(source_bytes);
        let head = |id: LayerId| Layer { lineage: LineageId(id.0), parent, overlap, opened: true };
        let answer = self.add_volume(name, bytes, head, unix_s);
        let Answer::VolumeCreated { volume } = answer else { unreachable!("it was added") };
        self.volume_again(volume).flattening = true;
        Ok(answer)
    }
}

/// The first invariant that does not hold for the sources.
pub(crate) fn contradiction(map: &Map) -> Result<(), &'static str> {
    let hold = layer::hold;
    hold(map.sources.len() <= SOURCES_MAX, "too many sources")?;
    for (&id, source) in &*map.sources {
        let layer = map.layer(id).ok_or("a source without its layer")?;
        hold(layer.lineage.0 == id.0 && layer.parent == LayerId(0), "a source above something")?;
        hold(check_address(&source.address).is_ok(), "a source's address")?;
        hold((1..=VOLUME_BYTES_MAX).contains(&source.bytes), "a source's size")?;
        let in_lineage = |child: LayerId| map.layer(child).map(|child| child.lineage);
        let alone = map.children(id).all(|child| in_lineage(child) != Some(layer.lineage));
        hold(alone && map.owner(id).is_none(), "a source that is written")?;
    }
    Ok(())
}
