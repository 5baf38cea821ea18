//! The engine's part in attaching: commands and sessions for what `attach` decides.

use super::{Admission, Engine, Phase, Purpose, Work, lookups::Question};
use crate::{
    Client, ConnectionId, Output,
    attach::{Duty, Held, HeldId, Stage, Turn, admit},
    names,
};
use cluster::Command;
use proto::{
    Duration, Generation, Mistake, Time, VolumeId,
    limits::{FLATTEN_LOOK_MS, OPEN_TURN_MS_MAX},
    planted,
};
use volume::{Answer, Base, Session, Tags, View};

/// Why a client does not get what it was about to have.
const ENDED: &str = "an administrator has just ended the attachment; try again";

impl Engine {
    /// What a name that a client gave stands for, or the answer that it stands for nothing.
    pub(super) fn describe(&self, name: &str) -> Result<(names::Export, Answer), Answer> {
        if self.phase != Phase::Serving {
            return Err(Answer::Refused { sentence: self.not_serving() });
        }
        let export = names::find(&self.map, name)?;
        let (bytes, read_only) = export.shape(&self.map).expect("found just now");
        Ok((export, Answer::Described { bytes, read_only }))
    }

    /// What snapshots an export shows that a client asks about.
    pub(super) fn bases(&self, name: &str, tags: &Tags) -> Result<Vec<Base>, Answer> {
        let (export, _) = self.describe(name)?;
        Ok(names::bases(&self.map, export, tags))
    }

    pub(super) fn handle_describe(
        &mut self,
        now: Time,
        connection: ConnectionId,
        name: String,
        outputs: &mut Vec<Output>,
    ) {
        let answer = match self.describe(&name) {
            Ok((_, answer)) => answer,
            Err(answer) => {
                let question = Question::Describe(connection, name);
                if self.look_up(now, question).is_none() {
                    return;
                }
                answer
            }
        };
        outputs.push(Output::Answer { connection, answer });
    }

    pub(super) fn handle_bases(
        &mut self,
        now: Time,
        connection: ConnectionId,
        (name, tags): (String, Tags),
        outputs: &mut Vec<Output>,
    ) {
        let bases = self.bases(&name, &tags);
        if bases.is_err() {
            let question = Question::Bases(connection, name, tags);
            if self.look_up(now, question).is_none() {
                return;
            }
        }
        let answer = Answer::Bases(bases.unwrap_or_default());
        outputs.push(Output::Answer { connection, answer });
    }

    pub(super) fn handle_open(
        &mut self,
        now: Time,
        connection: ConnectionId,
        client: Client,
        name: String,
        outputs: &mut Vec<Output>,
    ) {
        let question = Question::Open(connection, client, name);
        let question = match &question {
            Question::Open(.., name) if self.describe(name).is_err() => self.look_up(now, question),
            _ => Some(question),
        };
        if let Some(Question::Open(connection, client, name)) = question {
            self.open_known(connection, client, &name, outputs);
        }
    }

    /// A client wants what has this name, or is told that nothing has.
    pub(super) fn open_known(
        &mut self,
        connection: ConnectionId,
        client: Client,
        name: &str,
        outputs: &mut Vec<Output>,
    ) {
        assert!(!self.links.contains_key(&connection), "a connection opens one volume");
        match self.describe(name) {
            Ok((export, _)) => {
                let id = self.held_id(export, &client);
                self.work.push_back(Work::Open(connection, client, id));
                self.links.insert(connection, id);
            }
            Err(answer) => outputs.push(Output::Answer { connection, answer }),
        }
    }

    /// Under which id a client has, or would have, a volume or a snapshot.
    fn held_id(&mut self, export: names::Export, client: &Client) -> HeldId {
        let (volume, layer) = match export {
            names::Export::Volume(volume) => return HeldId::Head(volume),
            names::Export::Snapshot { volume, layer } => (volume, layer),
        };
        let mut readers = self.held.range(HeldId::readers(volume, layer));
        if let Some((id, _)) = readers.find(|(_, held)| held.client.identity == client.identity) {
            return *id;
        }
        self.next_reader += 1;
        HeldId::Snapshot { volume, layer, reader: self.next_reader }
    }

    pub(super) fn handle_close(&mut self, connection: ConnectionId) {
        self.lookups.forget(connection);
        let Some(id) = self.links.remove(&connection) else { return };
        let Some(held) = self.held.get_mut(&id) else { return };
        let was_holder = held.connections.contains(&connection);
        held.leave(connection);
        if was_holder && held.connections.is_empty() {
            self.release(id);
        }
    }

    /// A connection wants a volume or a snapshot.
    pub(super) fn open(
        &mut self,
        connection: ConnectionId,
        client: Client,
        id: HeldId,
        outputs: &mut Vec<Output>,
    ) {
        // It may have gone, or what it wants been deleted, while it waited.
        if !self.links.contains_key(&connection) {
            return self.attend(id.volume());
        }
        let Some(name) = names::of(&self.map, id) else {
            return self.refuse(connection, names::DELETED_MEANWHILE.into(), outputs);
        };
        match admit(&mut self.held, id, &name, connection, &client) {
            Admission::Attach => {
                let mut held = Held::new(client, None);
                held.join(connection);
                self.begin_attach(id, held);
                if planted(Mistake::AttachUnagreed) {
                    self.answer_opened(id, connection, outputs);
                }
            }
            Admission::Joined => self.answer_opened(id, connection, outputs),
            Admission::Wait => {
                if self.held.get(&id).is_some_and(|held| held.duty == Some(Duty::Flatten)) {
                    self.release(id); // the client's session goes on with what the node's does
                }
            }
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

    fn answer_opened(&mut self, id: HeldId, connection: ConnectionId, outputs: &mut Vec<Output>) {
        let shape = names::Export::from(id).shape(&self.map);
        let (bytes, read_only) = shape.expect("what is attached is not deleted");
        outputs.push(Output::Answer { connection, answer: Answer::Opened { bytes, read_only } });
    }

    /// Proposes the attachment. A snapshot that is gone is refused by the agreed state.
    pub(super) fn begin_attach(&mut self, id: HeldId, held: Held) {
        let (node, unix_s) = (self.settings.node, self.unix_s());
        let holder = held.client.description.clone();
        let command = match id {
            HeldId::Head(volume) => {
                Command::Attach { volume, node, holder, read_only: false, unix_s }
            }
            HeldId::Snapshot { volume, layer, .. } => {
                let tag = names::snapshot(&self.map, volume, layer)
                    .map_or(String::new(), |snapshot| snapshot.tag.clone());
                Command::AttachSnapshot { volume, tag, node, holder, unix_s }
            }
        };
        self.detach_forgotten(id.volume());
        self.held.insert(id, held);
        self.work.push_back(Work::Propose(command, Purpose::Attach(id)));
    }

    /// Makes up for detachments that the journal did not take: whoever has a volume or a snapshot
    /// here is in `held`, so nobody has what else the map shows as attached here.
    pub(super) fn detach_forgotten(&mut self, volume: VolumeId) {
        let Some(known) = self.map.volume(volume) else { return };
        let mut attachments = Vec::new();
        if !self.held.contains_key(&HeldId::Head(volume)) {
            attachments.extend(&known.attachments);
        }
        for snapshot in &known.snapshots {
            let readers = || self.held.range(HeldId::readers(volume, snapshot.layer));
            // Whose attachment is on its way may be in the map already.
            if readers().all(|(_, held)| held.generation.is_some()) {
                let is_held = |g: Generation| readers().any(|(_, held)| held.generation == Some(g));
                attachments
                    .extend(snapshot.readers.iter().filter(|reader| !is_held(reader.generation)));
            }
        }
        for forgotten in attachments.iter().filter(|held| held.node == self.settings.node) {
            let command = Command::Detach { volume, generation: forgotten.generation };
            self.work.push_back(Work::Propose(command, Purpose::DetachForgotten));
        }
    }

    /// The attach command was applied.
    pub(super) fn attached(
        &mut self,
        now: Time,
        id: HeldId,
        generation: Generation,
        outputs: &mut Vec<Output>,
    ) {
        let held = self.held.get_mut(&id).expect("held while attaching");
        held.generation = Some(generation);
        let volume = id.volume();
        let known = self.map.volume(volume).and_then(|known| known.attachment(generation));
        let sentence = match id {
            // Ended by somebody else before it was heard of here.
            _ if known.is_none() => Some(ENDED),
            // A snapshot is attached by its tag, and another one has got that meanwhile.
            HeldId::Snapshot { layer, .. }
                if names::snapshot(&self.map, volume, layer).is_none() =>
            {
                Some(names::DELETED_MEANWHILE)
            }
            _ => None,
        };
        if let Some(sentence) = sentence {
            held.is_ended = true;
            let waiting = std::mem::take(&mut held.unanswered);
            held.connections.clear();
            for connection in waiting {
                self.refuse(connection, sentence.into(), outputs);
            }
        }
        let held = self.held.get_mut(&id).expect("held while attaching");
        let is_wanted = match held.duty {
            _ if held.is_ended => false,
            // Somebody else is to have it, or what was to be done is not wanted any more.
            Some(_) => !held.is_called_off && self.phase == Phase::Serving,
            None => !held.connections.is_empty(),
        };
        if !is_wanted {
            held.stage = Stage::Detaching;
            let command = Command::Detach { volume, generation };
            self.work.push_back(Work::Propose(command, Purpose::Detach(id)));
            return;
        }
        held.stage = Stage::Opening;
        let view = match id {
            HeldId::Head(_) => View::Head { read_only: false },
            HeldId::Snapshot { layer, .. } => View::Snapshot { layer },
        };
        let mut effects = Vec::new();
        let map = self.map.clone();
        held.session = Some(Session::open(now, volume, generation, view, map, &mut effects));
        for effect in effects {
            self.handle_session_effect(now, id, generation, effect, outputs);
        }
    }

    /// The attach command was refused.
    pub(super) fn attach_refused(
        &mut self,
        now: Time,
        id: HeldId,
        sentence: &str,
        outputs: &mut Vec<Output>,
    ) {
        let held = self.held.remove(&id).expect("held while attaching");
        for connection in held.unanswered {
            self.refuse(connection, sentence.into(), outputs);
        }
        if let HeldId::Head(volume) = id {
            self.refuse_shrunk(volume, sentence, outputs);
        }
        self.admit_next(held.next);
        self.attend_later(now, id.volume());
        self.retry_errands();
        self.advance_stop(now, outputs);
    }

    // -- volumes that another node has --

    /// Whether who is refused a volume is to wait for it: a client that wants the volume itself.
    /// The one that has it may be closing it, as when a guest moves, and this node does not know.
    pub(super) fn may_wait(&self, id: HeldId) -> bool {
        let Some(held) = self.held.get(&id) else { return false };
        let is_over = held.turn.as_ref().is_some_and(|turn| turn.until <= self.present);
        matches!(id, HeldId::Head(_))
            && self.phase == Phase::Serving
            && held.duty.is_none()
            && !held.connections.is_empty()
            && !is_over
    }

    /// Waits until nobody has the volume, for a bounded time.
    pub(super) fn await_turn(&mut self, now: Time, id: HeldId, refusal: String) {
        let held = self.held.get_mut(&id).expect("held while attaching");
        let until = now + Duration::from_millis(OPEN_TURN_MS_MAX);
        let until = held.turn.as_ref().map_or(until, |turn| turn.until);
        held.turn = Some(Turn { until, refusal: Some(refusal) });
        // It may have been given back meanwhile.
        self.take_own_turns();
    }

    /// Tries again for those whose volumes nobody has any more, by the map.
    pub(super) fn take_own_turns(&mut self) {
        let is_free = |id: &HeldId| {
            self.map.volume(id.volume()).is_none_or(|known| known.attachments.is_empty())
        };
        let free = self.held.iter().filter(|(id, held)| {
            held.waits_until().is_some() && !held.connections.is_empty() && is_free(id)
        });
        for id in free.map(|(id, _)| *id).collect::<Vec<_>>() {
            let mut held = self.held.remove(&id).expect("just listed");
            let turn = held.turn.as_mut().expect("it waits");
            turn.refusal = None;
            self.begin_attach(id, held);
        }
    }

    /// When somebody has waited for long enough.
    pub(super) fn own_turns_deadline(&self) -> Option<Time> {
        self.held.values().filter_map(Held::waits_until).min()
    }

    /// Refuses those who have waited for long enough, and lets go of what nobody wants any more.
    pub(super) fn end_own_turns(&mut self, now: Time, outputs: &mut Vec<Output>) {
        let due =
            self.held.iter().filter(|(_, held)| held.waits_until().is_some_and(|at| at <= now));
        for id in due.map(|(id, _)| *id).collect::<Vec<_>>() {
            let turn = self.held.get_mut(&id).and_then(|held| held.turn.take());
            let sentence = turn.and_then(|turn| turn.refusal).expect("just seen");
            self.attach_refused(now, id, &sentence, outputs);
        }
    }

    /// The session is ready, or cannot be had.
    pub(super) fn session_opened(
        &mut self,
        now: Time,
        id: HeldId,
        result: Result<(), volume::Error>,
        outputs: &mut Vec<Output>,
    ) {
        let held = self.held.get_mut(&id).expect("its session speaks");
        let waiting = std::mem::take(&mut held.unanswered);
        match result {
            Ok(()) => {
                if held.stage == Stage::Opening {
                    held.stage = Stage::Open;
                }
                let flattens = held.duty != Some(Duty::Finish);
                for connection in waiting {
                    self.answer_opened(id, connection, outputs);
                }
                if let HeldId::Head(_) = id
                    && flattens
                {
                    self.tell_flatten(now, id, true);
                }
            }
            Err(error) => {
                for connection in waiting {
                    held.connections.remove(&connection);
                    self.links.remove(&connection);
                    let answer = Answer::Refused { sentence: error.to_string() };
                    outputs.push(Output::Answer { connection, answer });
                }
                self.release(id);
            }
        }
    }

    /// Starts what is wanted of flattening and shortening in an open session, or stops it.
    pub(super) fn tell_flatten(&mut self, now: Time, id: HeldId, start: bool) {
        let Some(held) = self.held.get(&id).filter(|held| held.stage == Stage::Open) else {
            return;
        };
        let generation = held.generation.expect("known since it was attached");
        // What is not begun now is looked at again, with the room of then.
        if start && self.flattens_at.is_none() {
            self.flattens_at = Some(now + Duration::from_millis(FLATTEN_LOOK_MS));
        }
        let event = match self.map.volume(id.volume()) {
            Some(volume) if start && !volume.flattening => match self.shortening(volume) {
                Some(parent) if self.may_shorten(id) => volume::Event::Shorten { parent },
                _ => return,
            },
            _ => volume::Event::Flatten { start },
        };
        if start {
            let bytes_per_s = self.settings.fill_bytes_per_s;
            let rate = volume::Event::FillRate { bytes_per_s };
            self.work.push_back(Work::Session(id, generation, rate));
        }
        self.work.push_back(Work::Session(id, generation, event));
    }

    /// Ends what the map does not show as attached any more: somebody has ended it. The session
    /// fails all that it has and takes nothing more; its clients are disconnected once they have
    /// their answers.
    pub(super) fn end_detached(&mut self) {
        let (mut ended, mut unused) = (Vec::new(), Vec::new());
        for (id, held) in &mut self.held {
            let Some(generation) = held.generation.filter(|_| !held.is_ended) else { continue };
            let volume = self.map.volume(id.volume());
            if volume.is_some_and(|known| known.attachment(generation).is_some()) {
                continue;
            }
            held.is_ended = true;
            if held.session.is_some() {
                ended.push((*id, generation));
                if held.connections.is_empty() {
                    unused.push(*id);
                }
            }
        }
        for (id, generation) in ended {
            self.work.push_back(Work::Session(id, generation, volume::Event::Ended));
        }
        // What the node itself holds has no connection whose end would release it.
        for id in unused {
            self.release(id);
        }
    }

    /// Nobody wants it any more: the session drains and flushes, then it is detached.
    pub(super) fn release(&mut self, id: HeldId) {
        let Some(held) = self.held.get_mut(&id) else { return };
        match held.stage {
            Stage::Attaching => {
                held.is_called_off = true;
                // Nothing is on its way whose end would be heard of.
                if let Some(turn) = &mut held.turn {
                    turn.until = self.present;
                }
            }
            Stage::Closing | Stage::Detaching => {}
            Stage::Opening | Stage::Open => {
                held.stage = Stage::Closing;
                let generation = held.generation.expect("known since it was attached");
                self.work.push_back(Work::Session(id, generation, volume::Event::Close));
            }
        }
    }

    /// It is detached, or cannot be: who waited gets the next turn.
    pub(super) fn detached(&mut self, now: Time, id: HeldId, outputs: &mut Vec<Output>) {
        let held = self.held.remove(&id).expect("held while detaching");
        assert!(held.session.is_none(), "detached before its session closed");
        assert!(held.connections.is_empty(), "nobody joins a volume on its way out");
        // What an administrator wants to do while nobody has it comes first.
        self.retry_errands();
        let is_wanted = self.admit_next(held.next);
        if held.duty.is_some() {
            self.take_turns();
        }
        // Whoever waits finds the volume finished, with all of its size.
        if !is_wanted || self.duty(id.volume()) == Some(Duty::Finish) {
            self.attend(id.volume());
        }
        self.reconsider_schedules(id.volume());
        self.advance_stop(now, outputs);
    }

    /// The node stops, and nobody agrees any more: what is held without a session is given up. That
    /// it was attached is made up for at the next start.
    pub(super) fn abandon_attachments(&mut self, outputs: &mut Vec<Output>) {
        let waits = |held: &Held| matches!(held.stage, Stage::Attaching | Stage::Detaching);
        let given_up = self.held.iter().filter(|(_, held)| waits(held)).map(|(id, _)| *id);
        for id in given_up.collect::<Vec<_>>() {
            let held = self.held.remove(&id).expect("just listed");
            for connection in held.unanswered {
                self.refuse(connection, self.not_serving(), outputs);
            }
            self.links.retain(|_, of| *of != id);
        }
        self.advance_stop(self.present, outputs);
    }

    /// Lets those try again who waited. Gives back whether there is any; then the volume is not to
    /// be taken by the node first.
    fn admit_next(&mut self, waiting: impl IntoIterator<Item = (ConnectionId, Client)>) -> bool {
        let mut any = false;
        for (connection, client) in waiting {
            if let Some(id) = self.links.get(&connection) {
                self.work.push_back(Work::Open(connection, client, *id));
                any = true;
            }
        }
        any
    }

    /// Asserts that what is held here is attached here in the agreed state, or known to be ended.
    pub(super) fn check_attachments(&self) {
        for (id, held) in &self.held {
            let Some(generation) = held.generation else { continue };
            let volume = self.map.volume(id.volume());
            let known = volume.and_then(|volume| volume.attachment(generation));
            assert!(known.is_some() || held.is_ended, "{id:?} is held but not attached");
        }
    }
}
