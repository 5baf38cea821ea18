//! The engine: takes an input, lets the machines it concerns talk to one another until they have
//! nothing more to say, and gives out what is for the world.
//!
//! Inside, everything that one machine says to another is a [`Work`] in a queue, so that no
//! machine is entered while it speaks. The queue is empty between inputs.

mod administer;
mod applying;
mod attaching;
mod boot;
mod changing;
mod duties;
mod era;
mod errands;
mod explain;
mod gathering;
mod groups;
mod locate;
mod lookups;
mod machines;
mod members;
mod mending;
mod outlook;
mod overview;
mod peers;
mod purpose;
mod relay;
mod schedules;
mod sources;
mod stable;
mod surveys;
mod tokens;
mod trash;

use crate::{
    Client, ConnectionId, Input, Output, Settings,
    admin::AdminToken,
    attach::{Admission, Held, HeldId, Stage},
    disks::{Disk, Disks},
    names, report,
    routes::Routes,
};
use cluster::{Command, Map, ProposalToken, Voter};
use errands::{Errand, Needs, Sealing};
use gathering::Gatherings;
use groups::GroupSealing;
use lookups::Lookups;
use members::Members;
use mending::{MendAnswer, MendQuestion, Mending};
use peers::Peers;
use proto::{
    DiskDone, DiskId, DiskOp, Duration, Generation, MemberError, MemberReply, MemberRequest,
    MemberToken, Mistake, NodeId, Time, VolumeId, limits, planted,
};
use purpose::Purpose;
use schedules::Schedules;
use sources::{Creation, SourceCounters, SourceRoute};
use stable::Settling;
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};
use store::journal::Journal;
use surveys::Survey;
use trash::Trash;
use volume::{Answer, RequestId, Session};

const JOURNAL_VERIFY_INTERVAL: Duration = Duration::from_secs(limits::JOURNAL_VERIFY_INTERVAL_S);

/// What one machine has to say to another.
enum Work {
    /// To a session, if it is still that of this attachment.
    Session(HeldId, Generation, volume::Event),
    /// To a disk's store.
    Store(DiskId, store::Event),
    /// What a store said.
    FromStore(DiskId, store::Effect),
    /// What the link to a node said, with its number.
    FromLink(NodeId, u64, link::Effect),
    /// To the voter.
    Voter(cluster::Event),
    /// What the voter said.
    FromVoter(cluster::Effect),
    /// What the journal said.
    FromJournal(store::journal::Effect),
    /// Propose a command for some purpose.
    Propose(Command, Purpose),
    /// Attempts to change members may want to ask more.
    Attempts,
    /// What mends damages may want to ask more.
    Mends,
    /// A member answers a mend.
    Mended(Box<MendAnswer>),
    /// A connection wants a volume or a snapshot (again, after it waited).
    Open(ConnectionId, Client, HeldId),
}

/// Where the node is in its life.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    /// The journal is opened.
    Journal,
    /// The first map of the cluster that the node joins is awaited, or what was agreed while the
    /// node was away.
    Joining,
    /// The disks are opened, the cluster is founded if need be.
    Disks,
    /// Requests are served.
    Serving,
    /// Sessions are being closed.
    ClosingSessions,
    /// Disks are being closed.
    ClosingDisks,
    /// All is closed, or the start failed.
    Ended,
}

/// Where a request of a session came from.
struct RequestRoute {
    connection: ConnectionId,
    id: RequestId,
}

/// Where a question to a store came from.
enum MemberRoute {
    /// A session.
    Session {
        /// Whose.
        id: HeldId,
        /// Of which attachment.
        generation: Generation,
        /// That of the session's question.
        token: MemberToken,
    },
    /// A survey of what deleting snapshots would free.
    Survey(u64),
    /// An attempt to change members, which this node carries out.
    Attempt {
        /// Which.
        number: u64,
        /// Its question.
        question: replica::AttemptQuestion,
    },
    /// Damage of a disk of this node is being mended.
    Mend {
        /// On which disk.
        disk: DiskId,
        /// Which mend.
        number: u64,
        /// Its question.
        question: MendQuestion,
    },
    /// Another node.
    Peer {
        /// Which.
        node: NodeId,
        /// That of the link it came through.
        number: u64,
        /// What the link calls it.
        question: link::Question,
    },
}

/// One node's core. See the crate's documentation.
pub struct Engine {
    settings: Settings,
    started: Time,
    /// When the input being handled came.
    present: Time,
    phase: Phase,
    journal: Journal,
    /// Why the journal's last request failed, if it did.
    journal_failure: Option<String>,
    /// When the journal is to be verified next.
    verify_journal_at: Time,
    voter: Option<Voter>,
    map: Arc<Map>,
    disks: Disks,
    peers: Peers,
    /// What it knows of recoveries from a lost majority.
    era: era::Recoveries,
    /// What it does about the members of partitions.
    members_here: Members,
    /// What it mends of its disks.
    mending: Mending,
    held: BTreeMap<HeldId, Held>,
    /// What each connection has, or waits for.
    links: BTreeMap<ConnectionId, HeldId>,
    /// The last number given to a client that reads a snapshot.
    next_reader: u64,
    requests: Routes<RequestRoute>,
    members: Routes<MemberRoute>,
    proposals: Routes<Purpose>,
    /// Boot commands that have not been applied yet.
    boot_commands: usize,
    /// Whether what this node had attached in a former life was, or is being, given back.
    has_released: bool,
    /// Disks whose size is being agreed.
    weighing: BTreeSet<DiskId>,
    /// Whether it was up to this node to do what one node does for all.
    was_steward: bool,
    /// When a stop does not wait for the agreed log any more.
    stop_by: Option<Time>,
    /// Disks that have been told that their opening was agreed and do not remember it yet.
    noting: BTreeSet<DiskId>,
    /// Disks that have been told to close and have not said that they are.
    closing: BTreeSet<DiskId>,
    /// Administrators who wait until what lay beyond a smaller size is gone.
    shrinking: Vec<(AdminToken, VolumeId)>,
    /// Administrators who wait until a layer is sealed.
    sealing: Vec<Sealing>,
    /// Administrators who wait until a session has taken what it is to promise.
    settling: Vec<Settling>,
    /// Administrators who wait until layers of all volumes of a group are sealed.
    group_sealing: Vec<GroupSealing>,
    /// Group snapshots that were being taken when the node ended the last time, by group and tag.
    torn_groups: BTreeSet<(String, String)>,
    /// Commands that wait until those who have their volume are gone.
    errands: Vec<Errand>,
    /// Volumes that want their session, nobody has, and the node holds when it is their turn.
    turns: BTreeSet<VolumeId>,
    /// When it is looked at again whose turn it is.
    turns_at: Option<Time>,
    /// The volume whose turn was last.
    last_turn: VolumeId,
    /// When flattenings are looked after.
    flattens_at: Option<Time>,
    /// Reports that wait for what other nodes know.
    gatherings: Gatherings,
    /// Questions for names that this node does not know.
    lookups: Lookups,
    /// Questions what deleting snapshots would free.
    surveys: BTreeMap<u64, Survey>,
    /// The last survey's number.
    next_survey: u64,
    /// Snapshots that are taken again and again.
    schedules: Schedules,
    /// What is in the trash, and how it is emptied.
    trash: Trash,
    /// By how much the node's notion of the present is ahead of the wall clock, in seconds.
    ahead_s: u64,
    /// Questions to sources.
    asked_sources: Routes<SourceRoute>,
    source_counters: SourceCounters,
    /// Volumes that wait for their source to be made, and the last one's number.
    creations: BTreeMap<u64, Creation>,
    last_creation: u64,
    work: VecDeque<Work>,
}

impl Engine {
    /// Begins the life of a node: opens its journal, then its disks. Ends in [`Output::Ready`] or
    /// [`Output::Failed`].
    pub fn new(now: Time, settings: Settings, outputs: &mut Vec<Output>) -> Engine {
        let mut effects = Vec::new();
        let identity =
            store::journal::Expected { cluster: Some(settings.cluster), node: Some(settings.node) };
        let journal = Journal::open(identity, settings.journal_bytes, &mut effects);
        let mut engine = Engine {
            settings,
            started: now,
            present: now,
            phase: Phase::Journal,
            journal,
            journal_failure: None,
            verify_journal_at: now + JOURNAL_VERIFY_INTERVAL,
            voter: None,
            map: cluster::State::default().map(),
            disks: Disks::new(),
            peers: Peers::new(),
            era: era::Recoveries::default(),
            mending: Mending::default(),
            members_here: Members::default(),
            held: BTreeMap::new(),
            links: BTreeMap::new(),
            next_reader: 0,
            requests: Routes::new(),
            members: Routes::new(),
            proposals: Routes::new(),
            boot_commands: 0,
            has_released: false,
            weighing: BTreeSet::new(),
            was_steward: false,
            stop_by: None,
            noting: BTreeSet::new(),
            closing: BTreeSet::new(),
            shrinking: Vec::new(),
            sealing: Vec::new(),
            settling: Vec::new(),
            group_sealing: Vec::new(),
            torn_groups: BTreeSet::new(),
            errands: Vec::new(),
            turns: BTreeSet::new(),
            turns_at: None,
            last_turn: VolumeId(0),
            flattens_at: None,
            gatherings: Gatherings::default(),
            lookups: Lookups::default(),
            surveys: BTreeMap::new(),
            next_survey: 0,
            schedules: Schedules::new(),
            trash: Trash::default(),
            ahead_s: 0,
            asked_sources: Routes::new(),
            source_counters: SourceCounters::default(),
            creations: BTreeMap::new(),
            last_creation: 0,
            work: effects.into_iter().map(Work::FromJournal).collect(),
        };
        engine.run(now, outputs);
        engine
    }

    /// Takes one input.
    pub fn handle(&mut self, now: Time, input: Input, outputs: &mut Vec<Output>) {
        self.present = now;
        match input {
            Input::Disk { disk, done } => self.handle_disk(now, disk, done, outputs),
            Input::Journal(done) => {
                let mut effects = Vec::new();
                self.journal.handle(done, &mut effects);
                self.work.extend(effects.into_iter().map(Work::FromJournal));
            }
            Input::List { connection } => {
                let answer = Answer::Listed(names::list(&self.map));
                outputs.push(Output::Answer { connection, answer });
            }
            Input::Describe { connection, name } => {
                self.handle_describe(now, connection, name, outputs);
            }
            Input::Bases { connection, name, tags } => {
                self.handle_bases(now, connection, (name, tags), outputs);
            }
            Input::Open { connection, client, name } => {
                self.handle_open(now, connection, client, name, outputs);
            }
            Input::Close { connection } => self.handle_close(connection),
            Input::Request { connection, request } => {
                self.handle_request(now, connection, request, outputs);
            }
            Input::Admin { token, request } => self.handle_admin(now, token, request, outputs),
            Input::MediumSpace { disk, free_bytes } => {
                if let Some(known) = self.disks.get_mut(&disk) {
                    let is_first = known.free_bytes().is_none();
                    known.learn_free(free_bytes);
                    if known.store().is_some() {
                        let event = store::Event::MediumSpace { free_bytes };
                        self.work.push_back(Work::Store(disk, event));
                    }
                    if is_first {
                        self.learn_first_space(now);
                    }
                    self.weigh(disk);
                }
            }
            Input::WallClock { unix_s } => self.ahead_s = self.unix_s().saturating_sub(unix_s),
            Input::Tick => self.handle_tick(now, outputs),
            Input::Stop => self.handle_stop(now, outputs),
            Input::Peer { node, input } => self.handle_peer(now, node, input),
            Input::AddDisk(settings) => self.add_disk(now, *settings, outputs),
            Input::Admit { token, applicant, name, addresses } => {
                self.handle_applicant(token, applicant, name, addresses, outputs);
            }
            Input::Source { token, result } => self.handle_source(token, result, outputs),
        }
        self.run(now, outputs);
    }

    /// Ends a round of inputs: what the stores gathered goes to their media.
    pub fn poll(&mut self, now: Time, outputs: &mut Vec<Output>) {
        self.present = now;
        self.verify_journal(now);
        self.poll_stores(now);
        self.run(now, outputs);
        // What the stores now want may concern the trash, and what is told of it them.
        if self.tend_trash(now) {
            self.run(now, outputs);
            self.poll_stores(now);
            self.run(now, outputs);
        }
    }

    fn poll_stores(&mut self, now: Time) {
        let mut effects = Vec::new();
        for (id, disk) in &mut self.disks {
            if let Some(store) = disk.store_mut() {
                store.poll(now, &mut effects);
                self.work.extend(effects.drain(..).map(|effect| Work::FromStore(*id, effect)));
            }
        }
    }

    /// When [`Input::Tick`] and [`Engine::poll`] are wanted at the latest.
    pub fn deadline(&self) -> Option<Time> {
        let stores = self.disks.values().filter_map(|disk| disk.store()?.deadline());
        let sessions = self.held.values().filter_map(|held| held.session.as_ref()?.deadline());
        let journal = self.can_verify_journal().then_some(self.verify_journal_at);
        let own = [
            self.turns_at,
            self.flattens_at,
            self.errands_deadline(),
            self.stable_deadline(),
            self.gatherings.deadline(),
            self.lookups.deadline(),
            self.surveys_deadline(),
            self.schedules_deadline(),
            self.trash.look_at,
            self.creations_deadline(),
            self.peers.deadline(),
            self.members_here.deadline(),
            self.mending.deadline(),
            self.own_turns_deadline(),
            self.stop_by,
        ];
        stores.chain(sessions).chain(journal).chain(own.into_iter().flatten()).min()
    }

    /// Asserts the invariants of all machines. For tests and simulation: it walks everything.
    pub fn check(&self) {
        assert!(self.work.is_empty(), "work left between inputs");
        if self.held.values().all(|held| held.session.is_none()) {
            assert_eq!(self.requests.len(), 0, "a request was never completed");
        }
        for held in self.held.values() {
            if let Some(session) = &held.session {
                session.check();
                let epoch = session.epoch().unwrap_or(self.map.epoch());
                assert_eq!(epoch, self.map.epoch(), "a session goes by another map");
            }
            for connection in &held.connections {
                assert!(self.links.contains_key(connection), "a held volume's link is lost");
            }
        }
        for (connection, id) in &self.links {
            let knows = |held: &Held| {
                held.connections.contains(connection)
                    || held.next.iter().any(|(next, _)| next == connection)
            };
            assert!(self.held.get(id).is_some_and(knows), "a connection waits for nothing");
        }
        for store in self.disks.values().filter_map(Disk::store) {
            store.check();
        }
        self.check_peers();
        if self.phase == Phase::Serving {
            self.check_attachments();
            self.check_duties();
            self.check_errands();
            self.check_stable();
            self.check_schedules();
            self.check_trash();
            self.check_members();
        }
    }

    /// The present agreed state.
    pub fn map(&self) -> &Arc<Map> {
        &self.map
    }

    /// How many scrub passes the node's disks have finished in all, and how many damages that count
    /// are known and not mended: for simulation.
    pub fn scrubbed(&self) -> (u64, usize) {
        let stores = || self.disks.iter().filter_map(|(id, disk)| Some((*id, disk.store()?)));
        let passes = stores().map(|(_, store)| store.status().scrub.passes_done).sum();
        let missed = stores().map(|(id, store)| {
            let is_it = |it: &&store::Damage| report::is_missed(&self.map, id, it.part);
            store.damages().iter().filter(is_it).count()
        });
        (passes, missed.sum())
    }

    /// This node's part in agreeing on it; nothing before the journal is open.
    pub fn voter(&self) -> Option<&Voter> {
        self.voter.as_ref()
    }

    /// How many group snapshots that a crash interrupted have not gone yet.
    pub fn torn_groups(&self) -> usize {
        let snapshots = self.map.groups().flat_map(|group| &group.snapshots);
        snapshots.filter(|snapshot| snapshot.stage == cluster::GroupStage::Torn).count()
    }

    /// Whether clients and administrators are served.
    pub fn is_serving(&self) -> bool {
        self.phase == Phase::Serving
    }

    // -- inputs --

    fn handle_disk(&mut self, now: Time, id: DiskId, done: DiskDone, outputs: &mut Vec<Output>) {
        // One that could not be added, or was closed, is forgotten.
        let Some(disk) = self.disks.get_mut(&id) else { return };
        if disk.store().is_some() {
            self.work.push_back(Work::Store(id, store::Event::Disk(done)));
            return;
        }
        if disk.failure().is_some() {
            return;
        }
        let (mut ops, mut effects) = (Vec::new(), Vec::new());
        let result = disk.handle_format(now, &self.settings, done, &mut ops, &mut effects);
        self.issue(id, ops, outputs);
        self.work.extend(effects.into_iter().map(|effect| Work::FromStore(id, effect)));
        if let Err(error) = result {
            self.disk_refused(id, &error.to_string(), outputs);
        }
    }

    fn issue(&self, disk: DiskId, ops: Vec<DiskOp>, outputs: &mut Vec<Output>) {
        outputs.extend(ops.into_iter().map(|op| Output::Disk { disk, op }));
    }

    fn handle_request(
        &mut self,
        now: Time,
        connection: ConnectionId,
        request: volume::Request,
        outputs: &mut Vec<Output>,
    ) {
        let id = self.links.get(&connection);
        let held = id.and_then(|id| Some((*id, self.held.get_mut(id)?)));
        let session = held.and_then(|(id, held)| match held.stage {
            Stage::Open => Some((id, held.generation?, held.session.as_mut()?)),
            _ => None,
        });
        let Some((id, generation, session)) = session else {
            let result = Err(volume::Error::Fenced);
            outputs.push(Output::Complete { connection, id: request.id, result });
            return;
        };
        let route = RequestRoute { connection, id: request.id };
        let number = RequestId(self.requests.insert(route));
        let mut effects = Vec::new();
        let request = volume::Request { id: number, ..request };
        session.handle(now, volume::Event::Request(request), &mut effects);
        for effect in effects {
            self.handle_session_effect(now, id, generation, effect, outputs);
        }
    }

    fn handle_tick(&mut self, now: Time, outputs: &mut Vec<Output>) {
        for (id, held) in &self.held {
            let due = held.session.as_ref().and_then(Session::deadline);
            if let (Some(generation), Some(due)) = (held.generation, due)
                && due <= now
            {
                self.work.push_back(Work::Session(*id, generation, volume::Event::Tick));
            }
        }
        if self.turns_at.is_some_and(|due| due <= now) {
            self.turns_at = None;
            self.take_turns();
        }
        if self.flattens_at.is_some_and(|due| due <= now) {
            self.look_after_flattens(now);
        }
        self.end_own_turns(now, outputs);
        self.tick_peers(now, outputs);
        self.tick_members(now, outputs);
        self.tick_mending(now, outputs);
        self.answer_sealed(now, outputs);
        self.answer_stable(now, outputs);
        self.answer_sealed_groups(now, outputs);
        self.advance_surveys(now, outputs);
        self.tick_gatherings(now, outputs);
        self.tick_lookups(now, outputs);
        self.take_schedules(now);
        self.drop_surplus();
        self.expire_creations(Some(now), outputs);
        if self.stop_by.is_some_and(|by| by <= now) {
            self.stop_by = None;
            self.abandon_attachments(outputs);
        }
    }

    fn handle_stop(&mut self, now: Time, outputs: &mut Vec<Output>) {
        match self.phase {
            Phase::Serving => {
                self.phase = Phase::ClosingSessions;
                self.forget_attempts();
                self.forget_mends();
                let links: Vec<_> = self.links.keys().copied().collect();
                for connection in links {
                    let reason = "the node stops";
                    outputs.push(Output::Disconnect { connection, reason });
                }
                let own = self.held.iter().filter(|(_, held)| held.duty.is_some());
                for id in own.map(|(id, _)| *id).collect::<Vec<_>>() {
                    self.release(id);
                }
                self.turns.clear();
                self.schedules.clear();
                (self.turns_at, self.flattens_at) = (None, None);
                self.abandon_errands(outputs);
                self.abandon_lookups(outputs);
                if self.is_among_others() {
                    self.stop_by = Some(now + Duration::from_millis(limits::STOP_AGREED_MS_MAX));
                    let mut effects = Vec::new();
                    self.voter.as_mut().expect("it serves").resign(now, &mut effects);
                    self.work.extend(effects.into_iter().map(Work::FromVoter));
                }
                self.advance_stop(now, outputs);
            }
            // Nothing was served yet: whatever state the media are in, the next start copes.
            Phase::Journal | Phase::Joining | Phase::Disks => {
                self.phase = Phase::Ended;
                self.drop_all_peers(now, outputs);
                outputs.push(Output::Stopped);
            }
            Phase::ClosingSessions | Phase::ClosingDisks | Phase::Ended => {}
        }
    }

    // -- the conversation among the machines --

    fn run(&mut self, now: Time, outputs: &mut Vec<Output>) {
        loop {
            self.work_off(now, outputs);
            self.note_stewardship();
            if self.work.is_empty() {
                return;
            }
        }
    }

    fn work_off(&mut self, now: Time, outputs: &mut Vec<Output>) {
        while let Some(work) = self.work.pop_front() {
            match work {
                Work::Session(id, generation, event) => {
                    self.tell_session(now, id, generation, event, outputs);
                }
                Work::Store(id, event) => {
                    // One that is being formatted, could not be opened or is gone, has nothing to
                    // do.
                    let disk = self.disks.get_mut(&id);
                    let Some(store) = disk.and_then(Disk::store_mut) else { continue };
                    let mut effects = Vec::new();
                    store.handle(now, event, &mut effects);
                    for effect in effects {
                        self.handle_store_effect(now, id, effect, outputs);
                    }
                }
                Work::FromStore(id, effect) => self.handle_store_effect(now, id, effect, outputs),
                Work::Voter(event) => {
                    let mut effects = Vec::new();
                    let voter = self.voter.as_mut().expect("the journal answers after it opened");
                    voter.handle(now, event, &mut effects);
                    self.work.extend(effects.into_iter().map(Work::FromVoter));
                }
                Work::FromLink(node, number, effect) => {
                    self.handle_link_effect(now, node, number, effect, outputs);
                }
                Work::FromVoter(effect) => self.handle_voter_effect(now, effect, outputs),
                Work::FromJournal(effect) => self.handle_journal_effect(now, effect, outputs),
                Work::Propose(command, purpose) => self.propose(now, command, purpose),
                Work::Attempts => self.pump_attempts(now, outputs),
                Work::Mends => self.pump_mends(now, outputs),
                Work::Mended(answer) => self.mend_answered(now, *answer, outputs),
                Work::Open(connection, client, id) => {
                    self.open(connection, client, id, outputs);
                }
            }
        }
    }

    fn tell_session(
        &mut self,
        now: Time,
        id: HeldId,
        generation: Generation,
        event: volume::Event,
        outputs: &mut Vec<Output>,
    ) {
        let Some(held) = self.held.get_mut(&id) else { return };
        if held.generation != Some(generation) {
            return;
        }
        let Some(session) = held.session.as_mut() else { return };
        let mut effects = Vec::new();
        session.handle(now, event, &mut effects);
        for effect in effects {
            self.handle_session_effect(now, id, generation, effect, outputs);
        }
    }

    fn handle_session_effect(
        &mut self,
        now: Time,
        id: HeldId,
        generation: Generation,
        effect: volume::Effect,
        outputs: &mut Vec<Output>,
    ) {
        let volume = id.volume();
        match effect {
            volume::Effect::Member { member, token, request } => {
                let route = MemberRoute::Session { id, generation, token };
                self.ask_opening(now, member, route, request);
            }
            volume::Effect::Complete { id: number, result } => {
                let route = self.requests.remove(number.0);
                // A connection that is gone is not told any more.
                if self.links.contains_key(&route.connection) {
                    let RequestRoute { connection, id } = route;
                    outputs.push(Output::Complete { connection, id, result });
                }
            }
            volume::Effect::Opened(result) => self.session_opened(now, id, result, outputs),
            volume::Effect::ShrinkDone { discarded } => {
                let command = Command::ShrinkDone { volume, generation, discarded };
                self.work.push_back(Work::Propose(command, Purpose::Duty(volume)));
            }
            volume::Effect::LayerOpened { layer } => {
                let command = Command::LayerOpened { volume, generation, layer };
                self.work.push_back(Work::Propose(command, Purpose::Duty(volume)));
            }
            volume::Effect::Stable { since } => {
                let command = Command::StableFromNow { volume, generation, since };
                self.work.push_back(Work::Propose(command, Purpose::Duty(volume)));
            }
            volume::Effect::Flattened => {
                let command = Command::Flattened { volume, generation };
                self.work.push_back(Work::Propose(command, Purpose::Duty(volume)));
            }
            volume::Effect::Shortened { parent } => {
                let command = Command::Shortened { volume, generation, parent };
                self.work.push_back(Work::Propose(command, Purpose::Duty(volume)));
            }
            volume::Effect::Source { token, layer, offset, length, kind_only } => {
                let what = (offset, length, kind_only);
                self.ask_source((id, generation, token), layer, what, outputs);
            }
            volume::Effect::Fenced => {
                let held = self.held.get(&id).expect("its session speaks");
                let reason = match held.is_ended {
                    true => "an administrator ended the attachment",
                    false => "the volume was attached elsewhere",
                };
                for connection in held.connections.iter().copied() {
                    outputs.push(Output::Disconnect { connection, reason });
                }
            }
            volume::Effect::Closed => {
                let held = self.held.get_mut(&id).expect("its session speaks");
                held.session = None;
                held.stage = Stage::Detaching;
                let command = Command::Detach { volume, generation };
                self.work.push_back(Work::Propose(command, Purpose::Detach(id)));
            }
        }
    }

    /// Asks one opening of a disk. A later one is not it: whoever asks learns that from the map.
    fn ask_opening(
        &mut self,
        now: Time,
        member: cluster::Member,
        route: MemberRoute,
        request: MemberRequest,
    ) {
        let listed = self.map.disk(member.disk).map(|known| known.incarnation);
        if listed != Some(member.incarnation) && !planted(Mistake::AnyOpeningAsked) {
            return self.answer_member(now, member.disk, route, Err(MemberError::Retired));
        }
        self.ask_member(now, member.disk, route, request);
    }

    /// Hands a question to a disk, of this node or of another one.
    fn ask_member(&mut self, now: Time, disk: DiskId, route: MemberRoute, request: MemberRequest) {
        if self.disks.contains_key(&disk) {
            self.ask_local(now, disk, route, request);
        } else {
            self.ask_remote(now, disk, route, request);
        }
    }

    /// Asks a disk of this node. One that is not here, or not open as it is agreed, is out of
    /// service as far as the asker can tell: it waits for a new incarnation in the map.
    fn ask_local(&mut self, now: Time, disk: DiskId, route: MemberRoute, request: MemberRequest) {
        let disk_here = self.disks.get_mut(&disk).filter(|disk| disk.is_agreed);
        let Some(store) = disk_here.and_then(Disk::store_mut) else {
            let result = Err(MemberError::Retired);
            self.answer_member(now, disk, route, result);
            return;
        };
        let token = MemberToken(self.members.insert(route));
        let mut effects = Vec::new();
        store.handle(now, store::Event::Member { token, request }, &mut effects);
        self.work.extend(effects.into_iter().map(|effect| Work::FromStore(disk, effect)));
    }

    fn answer_member(
        &mut self,
        now: Time,
        disk: DiskId,
        route: MemberRoute,
        result: Result<MemberReply, MemberError>,
    ) {
        match route {
            MemberRoute::Session { id, generation, token } => {
                let event = volume::Event::Member { disk, token, result };
                self.work.push_back(Work::Session(id, generation, event));
            }
            MemberRoute::Survey(number) => self.survey_answered(now, number, result),
            MemberRoute::Attempt { number, question } => {
                self.attempt_answered(now, number, question, result);
            }
            MemberRoute::Mend { disk, number, question } => {
                let answer = MendAnswer { disk, number, question, result };
                self.work.push_back(Work::Mended(Box::new(answer)));
            }
            MemberRoute::Peer { node, number, question } => {
                self.answer_peer(now, (node, number, question), result);
            }
        }
    }

    fn handle_store_effect(
        &mut self,
        now: Time,
        disk: DiskId,
        effect: store::Effect,
        outputs: &mut Vec<Output>,
    ) {
        // What a disk still says when it could not be added concerns its medium, which is given up.
        if !self.disks.contains_key(&disk) && !matches!(effect, store::Effect::Member { .. }) {
            return;
        }
        match effect {
            store::Effect::Disk(op) => outputs.push(Output::Disk { disk, op }),
            store::Effect::Member { token, result } => {
                let route = self.members.remove(token.0);
                self.answer_member(now, disk, route, result);
            }
            store::Effect::Opened(Ok(opened)) => self.disk_opened(now, disk, &opened),
            store::Effect::Opened(Err(store::OpenError::Blank)) => self.disk_blank(disk, outputs),
            store::Effect::Opened(Err(error)) => {
                self.disk_refused(disk, &error.to_string(), outputs);
            }
            store::Effect::AgreedNoted => self.agreed_noted(disk, outputs),
            store::Effect::Closed => {
                if self.disks[&disk].is_leaving {
                    self.disk_gone(disk, outputs);
                }
                self.closing.remove(&disk);
                self.advance_stop(now, outputs);
            }
            store::Effect::MendEnded { damage } => self.block_mended(now, disk, &damage, outputs),
            store::Effect::Notice(notice) => {
                if let store::Notice::Mended(damage) = &notice {
                    let disk = self.disks.get_mut(&disk).expect("it speaks");
                    disk.mended += 1;
                    disk.relapsed.remove(&damage.address);
                }
                if matches!(notice, store::Notice::Retired { .. }) {
                    self.tell_openings(now, None);
                }
                if matches!(notice, store::Notice::Damaged(_)) {
                    self.disks.get_mut(&disk).expect("it speaks").found += 1;
                    self.note_damage(now);
                }
                if let store::Notice::Relapsed(damage) = &notice {
                    self.mend_relapsed(disk, damage);
                    let disk = self.disks.get_mut(&disk).expect("it speaks");
                    if !disk.relapsed.insert(damage.address) {
                        // Told when it was met first.
                        return;
                    }
                }
                let path = entry_path(&self.disks, disk);
                let (level, sentence) = report::notice(&self.map, &path, &notice);
                outputs.push(Output::Notice { level, sentence });
            }
        }
    }

    // -- the agreed state --

    fn propose(&mut self, now: Time, command: Command, purpose: Purpose) {
        let token = ProposalToken(self.proposals.insert(purpose));
        let mut effects = Vec::new();
        let voter = self.voter.as_mut().expect("nothing is proposed before the journal is open");
        voter.propose(now, token, command, &mut effects);
        self.work.extend(effects.into_iter().map(Work::FromVoter));
    }

    fn handle_voter_effect(
        &mut self,
        now: Time,
        effect: cluster::Effect,
        outputs: &mut Vec<Output>,
    ) {
        let mut effects = Vec::new();
        match effect {
            cluster::Effect::Append { request, records } => {
                let token = store::journal::Token(request.0);
                self.journal.append(token, records, &mut effects);
            }
            cluster::Effect::Snapshot { request, bytes } => {
                let token = store::journal::Token(request.0);
                self.journal.snapshot(token, bytes, &mut effects);
            }
            cluster::Effect::Applied { token, result } => {
                let purpose = self.proposals.remove(token.0);
                self.learn_map(now, outputs);
                self.applied(now, purpose, result, outputs);
            }
            cluster::Effect::Learned => {
                self.learn_map(now, outputs);
                self.answer_sealed(now, outputs);
                self.answer_stable(now, outputs);
                self.answer_sealed_groups(now, outputs);
            }
            cluster::Effect::Recovered(result) => self.recovered(now, result, outputs),
            cluster::Effect::Send { to, bytes } => self.send_to_voter(now, to, &bytes),
        }
        self.work.extend(effects.into_iter().map(Work::FromJournal));
    }
}

fn entry_path(disks: &Disks, disk: DiskId) -> String {
    disks.get(&disk).map_or_else(|| disk.to_string(), |disk| disk.settings.path.clone())
}
