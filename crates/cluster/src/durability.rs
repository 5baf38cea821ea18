//! What an acknowledgement of a volume promises, and how the command that changes it learns that
//! whoever writes the volume has taken it.

use crate::command::Answer;
use crate::layer::hold;
use crate::refusal::Refusal;
use crate::state::State;
use crate::volume::Volume;
use proto::{Epoch, Generation, VolumeId};
use serde::{Deserialize, Serialize};

/// When what a guest changes is on stable media.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// When a flush after it, or it itself with FUA, has ended: as with any disk with a cache.
    #[default]
    Flush,
    /// When it is acknowledged.
    Ack,
}

impl Volume {
    /// Whether its writer has still to report that all that it acknowledges is stable: that was
    /// asked for while it was attached.
    pub fn awaits_stable(&self) -> bool {
        self.awaits_stable.is_some()
    }

    /// In which epoch that was asked for: the report names it, so that one about an earlier promise
    /// is none about this.
    pub fn stable_since(&self) -> Option<Epoch> {
        self.awaits_stable
    }
}

impl State {
    /// Changes what an acknowledgement promises. Whoever is attached to write takes it over, and
    /// reports that, if it promises more.
    pub(crate) fn set_durability(
        &mut self,
        id: VolumeId,
        durability: Durability,
    ) -> Result<Answer, Refusal> {
        let volume = self.volume(id)?;
        if volume.durability != durability {
            let is_written = volume.writer().is_some();
            let is_awaited = is_written && durability == Durability::Ack;
            let since = self.change().epoch;
            let volume = self.volume_again(id);
            volume.durability = durability;
            volume.awaits_stable = is_awaited.then_some(since);
        }
        Ok(Answer::Done)
    }

    /// The writer's session has taken what was asked for in that epoch.
    pub(crate) fn stable_from_now(
        &mut self,
        id: VolumeId,
        generation: Generation,
        since: Epoch,
    ) -> Result<Answer, Refusal> {
        if self.written_by(id, generation)?.awaits_stable == Some(since) {
            self.change_volume(id).awaits_stable = None;
        }
        Ok(Answer::Done)
    }

    /// A volume that was just made promises this: the same change as its making.
    pub(crate) fn make_durable(&mut self, made: Answer, durability: Durability) -> Answer {
        if let Answer::VolumeCreated { volume } = made
            && durability != Durability::default()
        {
            self.volume_again(volume).durability = durability;
        }
        made
    }
}

/// The first invariant that does not hold for what a volume promises.
pub(crate) fn contradiction(volume: &Volume) -> Result<(), &'static str> {
    let may_await = volume.durability == Durability::Ack && volume.writer().is_some();
    hold(may_await || volume.awaits_stable.is_none(), "a report that nobody can give")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Command, Map};
    use proto::{ClusterId, DiskId, Incarnation, NodeId};
    use std::sync::Arc;

    const NODE: NodeId = NodeId(2);

    fn state() -> State {
        let mut state = State::default();
        for command in [
            Command::CreateCluster { cluster: ClusterId(1), partition_bits: 2, unix_s: 0 },
            Command::AddNode { node: NODE, name: "alpha".into() },
            Command::OpenDisk { disk: DiskId(3), node: NODE, incarnation: Incarnation(1) },
            Command::CreateVolume { name: "v".into(), bytes: 4096, unix_s: 0 },
        ] {
            state.apply(&command).expect("a good command");
        }
        state
    }

    fn done(state: &mut State, command: Command) -> Arc<Map> {
        state.apply(&command).unwrap_or_else(|refusal| panic!("{command:?}: {refusal}"));
        state.check();
        assert_eq!(State::decode(&state.encode()).as_ref(), Ok(&*state), "{command:?}");
        state.map()
    }

    fn attach(state: &mut State, volume: VolumeId) -> Generation {
        let (holder, read_only) = ("guest".to_string(), false);
        let attach = Command::Attach { volume, node: NODE, holder, read_only, unix_s: 0 };
        done(state, attach).volume(volume).expect("attached").generation
    }

    const V: VolumeId = VolumeId(1);

    fn set(durability: Durability) -> Command {
        Command::SetDurability { volume: V, durability }
    }

    fn awaits(map: &Map) -> bool {
        map.volume(V).expect("it exists").awaits_stable()
    }

    #[test]
    fn a_promise_is_awaited_from_who_writes_and_from_nobody_else() {
        let mut state = state();
        assert!(!awaits(&done(&mut state, set(Durability::Ack))), "nobody has it");
        let generation = attach(&mut state, V);
        assert!(!awaits(&state.map()), "it goes by it from the start");
        assert!(!awaits(&done(&mut state, set(Durability::Flush))));
        assert!(awaits(&done(&mut state, set(Durability::Ack))));
        assert!(awaits(&done(&mut state, set(Durability::Ack))), "asked twice, taken never");
        let since = state.map().volume(V).and_then(Volume::stable_since).expect("awaited");
        let stranger = Generation(generation.0 + 1);
        let stale = Command::StableFromNow { volume: V, generation: stranger, since };
        assert!(matches!(state.apply(&stale), Err(Refusal::NotTheWriter { .. })));
        let stable = Command::StableFromNow { volume: V, generation, since };
        assert!(!awaits(&done(&mut state, stable.clone())));
        // A report that comes late is about what was asked for then.
        done(&mut state, set(Durability::Flush));
        assert!(awaits(&done(&mut state, set(Durability::Ack))));
        assert!(awaits(&done(&mut state, stable.clone())));
        let since = state.map().volume(V).and_then(Volume::stable_since).expect("awaited");
        let stable = Command::StableFromNow { volume: V, generation, since };
        assert!(!awaits(&done(&mut state, stable.clone())));
        let epoch = state.map().epoch();
        assert_eq!(done(&mut state, stable).epoch(), epoch, "done already is done");
        // Whoever goes leaves nobody to be waited for, however it goes.
        for end in [
            Command::Detach { volume: V, generation: Generation(generation.0) },
            Command::ReleaseNode { node: NODE },
        ] {
            done(&mut state, set(Durability::Flush));
            assert!(awaits(&done(&mut state, set(Durability::Ack))));
            assert!(!awaits(&done(&mut state, end)));
            attach(&mut state, V);
        }
    }

    #[test]
    fn a_state_without_promises_is_written_as_it_was() {
        let mut state = state();
        let before = state.encode();
        assert_eq!(before[0], 4);
        done(&mut state, set(Durability::Ack));
        assert_eq!(state.encode()[0], 5);
        done(&mut state, set(Durability::Flush));
        assert_eq!(state.encode()[0], 4);
        // It says more, and tells nothing, or of nobody.
        for further in [
            Vec::new(),
            vec![(V, Durability::Flush, None)],
            vec![(V, Durability::Ack, Some(Epoch(3)))],
            vec![(VolumeId(7), Durability::Ack, None)],
            vec![(V, Durability::Ack, None); 2],
        ] {
            let mut bytes = before.clone();
            bytes[0] = 5;
            // Behind it the gaps of recoveries, of which there are none.
            let further = (further, Vec::<(u64, u64)>::new());
            bytes = postcard::to_extend(&further, bytes).expect("serializable");
            let checksum = crate::snapshot::checksum(&bytes);
            bytes[1..9].copy_from_slice(&checksum.to_le_bytes());
            assert!(State::decode(&bytes).is_err(), "{further:?}");
        }
    }

    #[test]
    fn a_volume_is_made_with_its_promise_and_its_clones_have_it() {
        let mut state = state();
        let create = Command::CreateVolumeDurable {
            name: "w".into(),
            bytes: 4096,
            from: None,
            copies: 1,
            min_copies: None,
            durability: Durability::Ack,
            unix_s: 0,
        };
        assert_eq!(Command::decode(&create.encode()).as_ref(), Ok(&create));
        let epoch = state.map().epoch();
        let map = done(&mut state, create);
        assert_eq!(map.epoch().0, epoch.0 + 1);
        let volume = map.volume_named("w").expect("made").id;
        let (tag, name) = (|| "t".to_string(), "x".to_string());
        let generation = attach(&mut state, volume);
        let map = done(&mut state, Command::CreateSnapshot { volume, tag: tag(), unix_s: 0 });
        let layer = map.volume(volume).expect("it exists").head;
        done(&mut state, Command::LayerOpened { volume, generation, layer });
        done(&mut state, Command::ReleaseNode { node: NODE });
        done(&mut state, Command::CloneSnapshot { volume, tag: tag(), name, unix_s: 0 });
        let map = done(&mut state, Command::Rollback { volume, tag: tag() });
        for name in ["w", "x"] {
            assert_eq!(map.volume_named(name).expect("there").durability, Durability::Ack);
        }
        // The trash changes nothing.
        let id = map.volume_named("x").expect("there").id;
        let (unix_s, expires_unix_s, with_snapshots) = (1, 2, false);
        done(
            &mut state,
            Command::TrashVolume { volume: id, with_snapshots, unix_s, expires_unix_s },
        );
        let refused =
            state.apply(&Command::SetDurability { volume: id, durability: Durability::Ack });
        assert!(matches!(refused, Err(Refusal::InTrash { .. })), "{refused:?}");
        let map = done(&mut state, Command::Undelete { volume: id, name: "y".into() });
        assert_eq!(map.volume_named("y").expect("back").durability, Durability::Ack);
    }
}
