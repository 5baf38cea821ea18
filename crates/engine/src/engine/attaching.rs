//! The engine's part in attaching: commands and sessions for what `attach` decides.

use super::{Admission, Engine, Link, Phase, Purpose, Work};
use crate::{
    Client, ConnectionId, Output,
    attach::{Held, Stage, admit},
};
use cluster::Command;
use proto::{Generation, Time, VolumeId};
use volume::{Answer, Session};

impl Engine {
    /// A connection wants a volume.
    pub(super) fn open(
        &mut self,
        now: Time,
        connection: ConnectionId,
        client: Client,
        volume: VolumeId,
        outputs: &mut Vec<Output>,
    ) {
        // It may have gone, or the volume been deleted, while it waited.
        if !self.links.contains_key(&connection) {
            return;
        }
        let Some(name) = self.map.volume(volume).map(|volume| volume.name.clone()) else {
            let sentence = "the volume was deleted meanwhile; `dog volume list` shows what exists";
            return self.refuse(connection, sentence.into(), outputs);
        };
        match admit(&mut self.held, volume, &name, connection, &client) {
            Admission::Attach => {
                let mut held = Held::new(client, false);
                held.join(connection);
                self.begin_attach(now, volume, held);
            }
            Admission::Joined => self.answer_opened(volume, connection, outputs),
            Admission::Wait => {}
            Admission::Refused(answer) => {
                self.links.remove(&connection);
                outputs.push(Output::Answer { connection, answer });
            }
        }
    }

    fn refuse(&mut self, connection: ConnectionId, sentence: String, outputs: &mut Vec<Output>) {
        self.links.remove(&connection);
        outputs.push(Output::Answer { connection, answer: Answer::Refused { sentence } });
    }

    fn answer_opened(
        &mut self,
        volume: VolumeId,
        connection: ConnectionId,
        outputs: &mut Vec<Output>,
    ) {
        let volume = self.map.volume(volume).expect("an attached volume is not deleted");
        let answer = Answer::Opened { bytes: volume.served_bytes(), read_only: false };
        outputs.push(Output::Answer { connection, answer });
    }

    /// Attaches a volume for the node itself, so that what lies beyond its smaller size goes.
    pub(super) fn begin_discard(&mut self, now: Time, volume: VolumeId) {
        if self.held.contains_key(&volume) {
            return; // its session does it
        }
        if self.phase != Phase::Serving {
            return; // the next start does it
        }
        let client = Client {
            identity: "sheep".into(),
            description: "this node, which discards what lay beyond its smaller size".into(),
        };
        self.begin_attach(now, volume, Held::new(client, true));
    }

    fn begin_attach(&mut self, now: Time, volume: VolumeId, held: Held) {
        self.detach_forgotten(volume);
        let command = Command::Attach {
            volume,
            node: self.settings.node,
            holder: held.client.description.clone(),
            read_only: false,
            unix_s: self.unix_s(now),
        };
        self.held.insert(volume, held);
        self.work.push_back(Work::Propose(command, Purpose::Attach(volume)));
    }

    /// Makes up for a detachment that the journal did not take: whoever has a volume here is in
    /// `held`, so nobody has what else the map shows as attached here.
    pub(super) fn detach_forgotten(&mut self, volume: VolumeId) {
        if self.held.contains_key(&volume) {
            return;
        }
        let attachments = self.map.volume(volume).map_or(&[][..], |known| &known.attachments);
        for forgotten in attachments.iter().filter(|held| held.node == self.settings.node) {
            let command = Command::Detach { volume, generation: forgotten.generation };
            self.work.push_back(Work::Propose(command, Purpose::DetachForgotten));
        }
    }

    /// The attach command was applied.
    pub(super) fn attached(
        &mut self,
        now: Time,
        volume: VolumeId,
        generation: Generation,
        outputs: &mut Vec<Output>,
    ) {
        let held = self.held.get_mut(&volume).expect("held while attaching");
        held.generation = Some(generation);
        let wanted = match held.internal {
            true => self.phase == Phase::Serving,
            false => !held.connections.is_empty(),
        };
        if !wanted {
            held.stage = Stage::Detaching; // everybody left meanwhile, or the node stops
            let command = Command::Detach { volume, generation };
            self.work.push_back(Work::Propose(command, Purpose::Detach(volume)));
            return;
        }
        held.stage = Stage::Opening;
        let mut effects = Vec::new();
        let map = self.map.clone();
        held.session = Some(Session::open(now, volume, generation, false, map, &mut effects));
        for effect in effects {
            self.handle_session_effect(now, volume, generation, effect, outputs);
        }
    }

    /// The attach command was refused.
    pub(super) fn attach_refused(
        &mut self,
        volume: VolumeId,
        sentence: &str,
        outputs: &mut Vec<Output>,
    ) {
        let held = self.held.remove(&volume).expect("held while attaching");
        for connection in held.unanswered {
            self.refuse(connection, sentence.into(), outputs);
        }
        self.refuse_shrunk(volume, sentence, outputs);
        self.admit_next(held.next);
        self.advance_stop(outputs);
    }

    /// The session is ready, or cannot be had.
    pub(super) fn session_opened(
        &mut self,
        volume: VolumeId,
        result: Result<(), volume::Error>,
        outputs: &mut Vec<Output>,
    ) {
        let held = self.held.get_mut(&volume).expect("its session speaks");
        let waiting = std::mem::take(&mut held.unanswered);
        match result {
            Ok(()) => {
                if held.stage == Stage::Opening {
                    held.stage = Stage::Open;
                }
                for connection in waiting {
                    self.answer_opened(volume, connection, outputs);
                }
            }
            Err(error) => {
                for connection in waiting {
                    held.connections.remove(&connection);
                    self.links.remove(&connection);
                    let answer = Answer::Refused { sentence: error.to_string() };
                    outputs.push(Output::Answer { connection, answer });
                }
                self.release(volume);
            }
        }
    }

    /// Nobody wants the volume any more: the session drains and flushes, then it is detached.
    pub(super) fn release(&mut self, volume: VolumeId) {
        let Some(held) = self.held.get_mut(&volume) else { return };
        match held.stage {
            Stage::Attaching | Stage::Closing | Stage::Detaching => {}
            Stage::Opening | Stage::Open => {
                held.stage = Stage::Closing;
                let generation = held.generation.expect("known since it was attached");
                self.work.push_back(Work::Session(volume, generation, volume::Event::Close));
            }
        }
    }

    /// The volume is detached, or cannot be: who waited gets the next turn.
    pub(super) fn detached(&mut self, now: Time, volume: VolumeId, outputs: &mut Vec<Output>) {
        let held = self.held.remove(&volume).expect("held while detaching");
        assert!(held.session.is_none(), "detached before its session closed");
        assert!(held.connections.is_empty(), "nobody joins a volume on its way out");
        self.admit_next(held.next);
        let shrinks = self.map.volume(volume).is_some_and(|v| v.pending_discard.is_some());
        if shrinks && self.phase == Phase::Serving {
            self.begin_discard(now, volume);
        }
        self.advance_stop(outputs);
    }

    fn admit_next(&mut self, waiting: impl IntoIterator<Item = (ConnectionId, Client)>) {
        for (connection, client) in waiting {
            if let Some(Link { volume }) = self.links.get(&connection) {
                self.work.push_back(Work::Open(connection, client, *volume));
            }
        }
    }
}
