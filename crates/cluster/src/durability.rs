//! What an acknowledgement of a volume promises, and how the command that changes it learns that
//! whoever writes the volume has taken it.

use crate::command::Answer;
use crate::layer::hold;
use crate::refusal::Refusal;
use crate::state::State;
use crate::volume::Volume;
use proto::{Generation, VolumeId};
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
            let volume = self.change_volume(id);
            volume.durability = durability;
            volume.awaits_stable = is_written && durability == Durability::Ack;
        }
        Ok(Answer::Done)
    }

    /// The writer's session has taken it.
    pub(crate) fn stable_from_now(
        &mut self,
        id: VolumeId,
        generation: Generation,
    ) -> Result<Answer, Refusal> {
        if self.written_by(id, generation)?.awaits_stable {
            self.change_volume(id).awaits_stable = false;
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
    hold(may_await || !volume.awaits_stable, "a report that nobody can give")
}
