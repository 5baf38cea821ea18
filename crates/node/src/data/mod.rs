//! The data thread: one loop that owns the engine, the NBD connections and the disks, so that a
//! request meets no other thread on its way.
//!
//! A round: wait for completions and readiness, read the clock once, hand everything in, let the
//! engine finish the round, hand its disk operations to the kernel, write the replies.

mod caps;
mod disks;
mod link;
mod peers;
mod socket;

pub use disks::{DiskOptions, Made, SharedDirectory, lock};
pub use socket::Listener;

use crate::{
    asker::{Asker, Command, Reply},
    disk::Driver,
    identity::hex,
    peers::{ApplicationId, Peers},
    source::Sources,
};
use caps::Caps;
use disks::DiskChanges;
use engine::{
    ConnectionId, Engine, Input, NoticeLevel, Output,
    admin::{AdminError, AdminErrorKind, AdminReply, AdminRequest, AdminToken},
};
use front::nbd;
use link::Link;
use mio::{Events, Poll, Token, Waker};
use proto::{DiskDone, DiskError, DiskId, DiskOp, Duration, Epoch, NodeId, Time};
use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::SocketAddr,
    sync::mpsc::Receiver,
    time::{Instant, SystemTime, UNIX_EPOCH},
};
use store::MediumKind;
use tokio::sync::oneshot;
use volume::Answer;

/// Events taken in one round.
const EVENTS_MAX: usize = 64;
/// Connections accepted in one round.
const ACCEPTS_MAX: usize = 16;
/// How long accepting rests after it failed, as when descriptors run out.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);
/// How often the free space under the disks is looked at.
const SPACE_PERIOD: Duration = Duration::from_secs(5);
/// Reads that are handed to the kernel, and completions whose replies are written, before the next
/// ones of a round are looked at: so that disks, clients and this thread work side by side. Writes
/// are gathered instead, as those with neighbouring places become one operation of the device.
const READS_AT_ONCE: usize = 8;
/// How often replies are written and what they set free is handed in, in one round.
const TURNS_MAX: usize = 4;

/// The token of [`Waker`]s, made by [`DataThread::waker`].
const WAKE: Token = Token(0);
const DISKS: Token = Token(1);
/// Listeners follow from here on.
const LISTENERS: usize = 2;
/// Connections follow from here on.
const LINKS: usize = 16;

/// The journal's number among the driver's media; the disks follow.
const JOURNAL: usize = 0;

/// What a data thread is made of.
pub struct Parts {
    /// The directory, whose record is finished when the engine is ready.
    pub directory: SharedDirectory,
    /// What the engine is made with; the disks that can be used in the order of the driver's media.
    pub settings: engine::Settings,
    /// How disks are driven that come later.
    pub disk_options: DiskOptions,
    /// How the threads that make them ask this one.
    pub asker: Asker,
    /// Medium 0 is the journal.
    pub driver: Driver,
    /// The poll everything is registered with, and the command's waker.
    pub poll: Poll,
    /// Where NBD clients come from.
    pub listeners: Vec<Listener>,
    /// What other threads ask; bounded by its channel.
    pub commands: Receiver<Command>,
    /// Told once the node serves.
    pub ready: oneshot::Sender<()>,
    /// Reads what lies elsewhere, and wakes this thread.
    pub sources: Sources,
    /// The sockets of other nodes, registered with the poll.
    pub peers: Peers,
}

/// The loop and all it owns.
pub struct DataThread {
    started: Instant,
    directory: SharedDirectory,
    engine: Engine,
    driver: Driver,
    poll: Poll,
    events: Events,
    /// The disks, in the order of the driver's media behind the journal.
    disks: Vec<Option<DiskId>>,
    disk_changes: DiskChanges,
    listeners: Vec<Listener>,
    /// Listeners that may have connections waiting.
    knocked: Vec<bool>,
    accept_again: Option<Time>,
    caps: Caps,
    links: BTreeMap<u64, Link>,
    next_link: u64,
    /// Links that may have something to read. Those at a limit are looked at in each round.
    readable: BTreeSet<u64>,
    /// Links that have output to be written. No link stands here twice.
    touched: Vec<u64>,
    timers: BTreeSet<(Time, u64)>,
    next_space: Time,
    commands: Receiver<Command>,
    asked: BTreeMap<AdminToken, Reply>,
    next_token: u64,
    ready: Option<oneshot::Sender<()>>,
    sources: Sources,
    peers: Peers,
    /// Machines that want to join, and which request of the engine is about them.
    applications: BTreeMap<AdminToken, (ApplicationId, NodeId, SocketAddr)>,
    /// Of which map the sockets know where nodes are.
    expected: Epoch,
    stopping: bool,
    has_noted_others: bool,
    outputs: Vec<Output>,
    /// Whether the engine was given something since it was polled.
    engine_owes: bool,
    scratch: Vec<u8>,
    /// How it ended, once it did.
    end: Option<Result<(), String>>,
}

impl DataThread {
    /// What wakes the loop from other threads, after a command was sent.
    pub fn waker(poll: &Poll) -> io::Result<Waker> {
        Waker::new(poll.registry(), WAKE)
    }

    /// Makes the engine, which begins to open journal and disks.
    pub fn new(parts: Parts) -> io::Result<DataThread> {
        let Parts {
            directory, settings, driver, poll, listeners, commands, ready, sources, ..
        } = parts;
        let peers = parts.peers;
        let disk_changes = DiskChanges::new(directory.clone(), parts.asker, parts.disk_options);
        driver.register(poll.registry(), DISKS)?;
        let open = settings.disks.iter().filter(|disk| disk.refusal.is_none());
        let disks: Vec<_> = open.map(|disk| Some(disk.disk)).collect();
        assert_eq!(driver.count(), disks.len() + 1, "a medium for each disk and the journal");
        assert!(listeners.len() <= LINKS - LISTENERS, "a token for each listener");
        let started = Instant::now();
        let mut outputs = Vec::new();
        let mut thread = DataThread {
            started,
            directory,
            engine: Engine::new(time_since(started), settings, &mut outputs),
            driver,
            poll,
            events: Events::with_capacity(EVENTS_MAX),
            disks,
            disk_changes,
            knocked: vec![false; listeners.len()],
            listeners,
            accept_again: None,
            caps: Caps::default(),
            links: BTreeMap::new(),
            next_link: 1,
            readable: BTreeSet::new(),
            touched: Vec::new(),
            timers: BTreeSet::new(),
            next_space: Time(0),
            commands,
            asked: BTreeMap::new(),
            next_token: 1,
            ready: Some(ready),
            sources,
            peers,
            applications: BTreeMap::new(),
            expected: Epoch(0),
            stopping: false,
            has_noted_others: false,
            outputs,
            engine_owes: true,
            scratch: vec![0; link::SCRATCH_BYTES],
            end: None,
        };
        let now = time_since(started);
        thread.tell_space(now);
        thread.settle(now);
        Ok(thread)
    }

    /// Runs until the engine has stopped or failed; the error is one sentence.
    pub fn run(mut self) -> Result<(), String> {
        let mut done = Vec::new();
        while self.end.is_none() {
            let timeout = self.timeout();
            self.driver
                .wait(&mut self.poll, &mut self.events, timeout, &mut done)
                .map_err(|error| format!("cannot wait for events: {error}"))?;
            let now = time_since(self.started);
            self.take_done(now, &mut done);
            self.take_events(now);
            self.accept(now);
            self.read(now);
            self.expire(now);
            self.turn_peers(now);
            self.settle(now);
            self.note_others();
        }
        let end = self.end.take().expect("the loop has ended");
        if end.is_err() {
            lock(&self.directory).abandon();
        }
        end
    }

    /// The record tells the next start that other nodes look for this one.
    fn note_others(&mut self) {
        let is_early = self.ready.is_some() || self.end.is_some();
        if self.has_noted_others || is_early || !self.engine.is_among_others() {
            return;
        }
        self.has_noted_others = true;
        let mut directory = lock(&self.directory);
        if let Err(error) = directory.note_others() {
            let path = directory.path().display();
            tracing::warn!(
                "cannot write to {path}: {error}; free some space, and give --listen at the next \
                 start, or this node does not listen then"
            );
        }
    }

    /// How long nothing needs to be done.
    fn timeout(&self) -> Option<Duration> {
        let busy = self.engine_owes
            || !self.touched.is_empty()
            || !self.outputs.is_empty()
            || (self.knocked.iter().any(|&knocked| knocked) && self.accept_again.is_none())
            || self.readable.iter().any(|id| self.links[id].wants_read());
        if busy {
            return Some(Duration::ZERO);
        }
        let timer = self.timers.first().map(|&(time, _)| time);
        let now = time_since(self.started);
        let deadlines = [
            self.engine.deadline(),
            timer,
            self.accept_again,
            Some(self.next_space),
            self.peers.deadline(now),
        ];
        let next = deadlines.into_iter().flatten().min()?;
        Some(next.since(now))
    }

    fn take_done(&mut self, now: Time, done: &mut Vec<(usize, DiskDone)>) {
        for (at, (medium, done)) in done.drain(..).enumerate() {
            if matches!(done.result, Err(DiskError::NoSpace)) {
                // What is known of the free space is out of date.
                self.next_space = Time(0);
            }
            let input = match medium {
                JOURNAL => Input::Journal(done),
                medium => {
                    // What a disk that is let go of had begun.
                    let Some(disk) = self.disks[medium - 1] else { continue };
                    Input::Disk { disk, done }
                }
            };
            self.tell(now, input);
            if at % READS_AT_ONCE == READS_AT_ONCE - 1 {
                self.perform(now);
                self.write_replies(now);
            }
        }
    }

    fn tell(&mut self, now: Time, input: Input) {
        self.engine.handle(now, input, &mut self.outputs);
        self.engine_owes = true;
    }

    fn take_events(&mut self, now: Time) {
        let mut woken = false;
        for event in &self.events {
            match event.token() {
                WAKE => woken = true,
                DISKS => {}
                token if Peers::owns(token) => self.peers.handle_event(event),
                Token(token) if token < LINKS => self.knocked[token - LISTENERS] = true,
                Token(token) => {
                    let id = (token - LINKS) as u64;
                    // Its events may have been on their way when it was closed.
                    let Some(link) = self.links.get_mut(&id) else { continue };
                    link.handle_event(event);
                    if link.is_readable() {
                        self.readable.insert(id);
                    }
                    if link.wants_write() && !link.touched {
                        link.touched = true;
                        self.touched.push(id);
                    } else if event.is_writable() && link.unwatch(self.poll.registry()).is_err() {
                        // The socket is broken: reading it tells how.
                        self.readable.insert(id);
                    }
                }
            }
        }
        if woken {
            self.take_commands(now);
            while let Some((token, result)) = self.sources.take() {
                self.tell(now, Input::Source { token, result });
            }
        }
    }

    fn take_commands(&mut self, now: Time) {
        while let Ok(command) = self.commands.try_recv() {
            match command {
                Command::Ping(reply) => {
                    // Who asked may have given up waiting.
                    let _ = reply.send(());
                }
                Command::Admin { reply, .. } if self.ready.is_some() => {
                    let sentence = "the node is starting; ask again in a moment".to_string();
                    let kind = AdminErrorKind::Unavailable;
                    reply.send(Err(AdminError { kind, sentence }));
                }
                Command::Admin { request: AdminRequest::TokenAdd { .. }, reply }
                    if !self.peers.is_listening() && !self.engine.is_among_others() =>
                {
                    let sentence = "this node does not listen for other machines, so none could \
                                    join; start sheep with --listen, as in --listen 0.0.0.0:7117, \
                                    and make the token then"
                        .to_string();
                    let kind = AdminErrorKind::Conflict;
                    reply.send(Err(AdminError { kind, sentence }));
                }
                Command::Admin { request: AdminRequest::DiskAdd { path, limit_bytes }, reply } => {
                    self.begin_adding(path.into(), limit_bytes, reply);
                }
                Command::DiskMade(made) => self.take_made(now, *made),
                Command::Admin { request, reply } => {
                    if matches!(request, AdminRequest::Status | AdminRequest::DiskList) {
                        // Whoever asks is told what is, not what was some seconds ago.
                        self.tell_space(now);
                    }
                    let token = AdminToken(self.next_token);
                    self.next_token += 1;
                    self.asked.insert(token, reply);
                    self.tell(now, Input::Admin { token, request });
                }
                Command::Stop => self.stop(now),
            }
        }
    }

    fn stop(&mut self, now: Time) {
        if self.stopping {
            return;
        }
        self.stopping = true;
        // Closes them: who knocks now is refused at once.
        self.listeners.clear();
        self.knocked.clear();
        self.accept_again = None;
        self.peers.stop_listening();
        self.tell(now, Input::Stop);
        // Those the engine knows nothing of yet.
        let ids: Vec<_> =
            self.links.iter().filter(|(_, l)| l.negotiating).map(|(&id, _)| id).collect();
        for id in ids {
            self.with_link(now, id, |link, effects| link.machine.handle_stop(now, effects));
        }
    }

    /// Lets a link do something, and carries out what its machine wants done.
    fn with_link(
        &mut self,
        now: Time,
        id: u64,
        act: impl FnOnce(&mut Link, &mut Vec<nbd::Effect>),
    ) {
        let Some(link) = self.links.get_mut(&id) else { return };
        let mut effects = Vec::new();
        act(link, &mut effects);
        self.carry_out(now, id, effects);
    }

    fn carry_out(&mut self, now: Time, id: u64, effects: Vec<nbd::Effect>) {
        let connection = ConnectionId(id);
        let mut reads = 0;
        for effect in effects {
            match effect {
                nbd::Effect::Send(segment) => {
                    let Some(link) = self.links.get_mut(&id) else { return };
                    link.send(segment);
                    if !link.touched {
                        link.touched = true;
                        self.touched.push(id);
                    }
                }
                nbd::Effect::List => self.tell(now, Input::List { connection }),
                nbd::Effect::Describe { name } => {
                    self.tell(now, Input::Describe { connection, name });
                }
                nbd::Effect::Bases { name, tags } => {
                    self.tell(now, Input::Bases { connection, name, tags });
                }
                nbd::Effect::Open { name } => {
                    let client = self.links[&id].client.clone();
                    self.tell(now, Input::Open { connection, client, name });
                }
                nbd::Effect::Request(request) => {
                    reads += usize::from(matches!(request.operation, volume::Operation::Read));
                    self.tell(now, Input::Request { connection, request });
                    if reads == READS_AT_ONCE {
                        reads = 0;
                        self.begin_operations();
                    }
                }
                nbd::Effect::Close { reason } => return self.close(now, id, &reason),
            }
        }
        let Some(link) = self.links.get_mut(&id) else { return };
        // Timers only move forward lazily: one that is too early looks again when it rings.
        if let Some(deadline) = link.machine.deadline()
            && link.timer.is_none_or(|timer| deadline < timer)
        {
            if let Some(timer) = link.timer.replace(deadline) {
                self.timers.remove(&(timer, id));
            }
            self.timers.insert((deadline, id));
        }
    }

    fn close(&mut self, now: Time, id: u64, reason: &nbd::CloseReason) {
        let link = self.links.remove(&id).expect("a link is closed once");
        self.readable.remove(&id);
        if let Some(timer) = link.timer {
            self.timers.remove(&(timer, id));
        }
        self.caps.release(&link.peer, link.negotiating);
        let client = &link.client.description;
        if link.negotiating {
            tracing::debug!(connection = id, %client, %reason, "connection closed");
        } else {
            tracing::info!(connection = id, %client, %reason, "volume released");
        }
        // The socket goes first, so that whoever learns of the end finds it closed.
        drop(link);
        self.tell(now, Input::Close { connection: ConnectionId(id) });
    }

    fn accept(&mut self, now: Time) {
        if self.accept_again.is_some_and(|again| again > now) {
            return;
        }
        self.accept_again = None;
        for number in 0..self.listeners.len() {
            for _ in 0..ACCEPTS_MAX {
                if !self.knocked[number] {
                    break;
                }
                match self.listeners[number].accept() {
                    Ok(socket) => self.welcome(now, socket),
                    Err(error) => match error.kind() {
                        io::ErrorKind::WouldBlock => self.knocked[number] = false,
                        io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted => {}
                        _ => {
                            // Descriptors or memory are short: asking again at once would spin.
                            tracing::warn!("cannot accept connections for the moment: {error}");
                            self.accept_again = Some(now + ACCEPT_PAUSE);
                            return;
                        }
                    },
                }
            }
        }
    }

    fn welcome(&mut self, now: Time, mut socket: socket::Socket) {
        let id = self.next_link;
        self.next_link += 1;
        let token = Token(LINKS + id as usize);
        let known = socket
            .peer(id)
            .and_then(|known| socket.register(self.poll.registry(), token).map(|()| known));
        let (peer, client) = match known {
            Ok(known) => known,
            Err(error) => {
                tracing::debug!("a connection was lost while it was accepted: {error}");
                return;
            }
        };
        if let Err(cap) = self.caps.admit(&peer) {
            tracing::info!(client = %client.description, "connection refused: {cap}");
            return;
        }
        tracing::debug!(connection = id, client = %client.description, "connection accepted");
        let mut effects = Vec::new();
        let link = Link::new(now, token, socket, (peer, client), &mut effects);
        self.links.insert(id, link);
        self.readable.insert(id);
        self.carry_out(now, id, effects);
    }

    fn read(&mut self, now: Time) {
        if self.readable.is_empty() {
            return;
        }
        let mut scratch = std::mem::take(&mut self.scratch);
        for id in std::mem::take(&mut self.readable) {
            self.with_link(now, id, |link, effects| link.read(now, &mut scratch, effects));
            if self.links.get(&id).is_some_and(Link::is_readable) {
                self.readable.insert(id);
            }
        }
        self.scratch = scratch;
    }

    fn expire(&mut self, now: Time) {
        while let Some(&(time, id)) = self.timers.first()
            && time <= now
        {
            self.timers.pop_first();
            self.with_link(now, id, |link, effects| {
                link.timer = None;
                link.machine.handle_deadline(now, effects);
            });
        }
        if self.engine.deadline().is_some_and(|deadline| deadline <= now) {
            self.tell(now, Input::Tick);
        }
        if self.next_space <= now {
            self.tell_space(now);
        }
    }

    /// Tells the engine how much space the file systems under the disks' files have.
    fn tell_space(&mut self, now: Time) {
        self.next_space = now + SPACE_PERIOD;
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.tell(now, Input::WallClock { unix_s: since_1970.as_secs() });
        for number in 0..self.disks.len() {
            let Some(disk) = self.disks[number] else { continue };
            let medium = self.driver.medium(number + 1);
            if medium.kind() != MediumKind::File {
                continue;
            }
            match rustix::fs::fstatvfs(medium.file()) {
                Ok(space) => {
                    let free_bytes = space.f_bavail.saturating_mul(space.f_frsize);
                    self.tell(now, Input::MediumSpace { disk, free_bytes });
                }
                Err(error) => tracing::warn!(
                    "cannot ask for the free space under {}: {error}",
                    medium.path().display()
                ),
            }
        }
    }

    /// Ends a round: everything the engine and the machines want done is done, as far as that
    /// needs no waiting.
    fn settle(&mut self, now: Time) {
        for _ in 0..TURNS_MAX {
            self.perform(now);
            if self.engine_owes {
                self.engine_owes = false;
                self.engine.poll(now, &mut self.outputs);
                self.perform(now);
            }
            self.write_peers(now);
            if self.touched.is_empty() && self.outputs.is_empty() {
                return;
            }
            // The disks work while the replies are written.
            self.driver.enter();
            self.write_replies(now);
        }
    }

    /// Writes what the sockets take of the replies there are.
    fn write_replies(&mut self, now: Time) {
        for id in std::mem::take(&mut self.touched) {
            let Some(link) = self.links.get_mut(&id) else { continue };
            let mut effects = Vec::new();
            link.touched = false;
            link.write(now, self.poll.registry(), &mut effects);
            self.carry_out(now, id, effects);
        }
    }

    /// Hands the disk operations among the outputs to the kernel, and leaves the rest for later.
    fn begin_operations(&mut self) {
        for output in std::mem::take(&mut self.outputs) {
            match output {
                Output::Disk { disk, op } => self.begin(disk, op),
                other => self.outputs.push(other),
            }
        }
        self.driver.enter();
    }

    fn begin(&mut self, disk: DiskId, op: DiskOp) {
        let number = self.disks.iter().position(|&known| known == Some(disk));
        self.driver.begin(1 + number.expect("only disks that the engine was given are driven"), op);
    }

    /// Performs outputs until there are none.
    fn perform(&mut self, now: Time) {
        while !self.outputs.is_empty() {
            for output in std::mem::take(&mut self.outputs) {
                self.perform_one(now, output);
            }
        }
    }

    fn perform_one(&mut self, now: Time, output: Output) {
        match output {
            Output::Disk { disk, op } => self.begin(disk, op),
            Output::Journal(op) => self.driver.begin(JOURNAL, op),
            Output::Complete { connection, id, result } => {
                self.with_link(now, connection.0, |link, effects| {
                    link.machine.handle_completion(now, id, result, effects);
                });
            }
            Output::Answer { connection, answer } => self.answer(now, connection, answer),
            Output::Resized { connection, bytes } => {
                self.with_link(now, connection.0, |link, _| link.machine.handle_resized(bytes));
            }
            Output::Disconnect { connection, reason } => {
                tracing::info!(connection = connection.0, "disconnecting: {reason}");
                self.with_link(now, connection.0, |link, effects| {
                    link.machine.handle_stop(now, effects);
                });
            }
            Output::Admin { token, mut result } => {
                self.decide(now, token, &result);
                if let Ok(AdminReply::Token(report)) = &mut *result {
                    report.authority_digest = hex(&self.peers.authority_digest().0);
                }
                if let Some(reply) = self.asked.remove(&token) {
                    reply.send(*result);
                }
            }
            Output::Notice { level, sentence } => match level {
                NoticeLevel::Info => tracing::info!("{sentence}"),
                NoticeLevel::Warning => tracing::warn!("{sentence}"),
                NoticeLevel::Error => tracing::error!("{sentence}"),
            },
            Output::Dial { node, connection, addresses } => {
                self.dial(now, node, connection, &addresses);
            }
            Output::Hangup { node, connection, farewell, reason } => {
                tracing::info!(%node, "connection to a node closed: {reason}");
                self.peers.hang_up(now, node, connection, &farewell);
            }
            Output::DiskAdded { disk, result } => self.disk_added(disk, result),
            Output::DiskGone { disk } => self.disk_gone(disk),
            Output::Ready => self.handle_ready(),
            Output::Failed(sentence) => self.end = Some(Err(sentence)),
            Output::Stopped => self.end = Some(Ok(())),
            Output::Source { token, request } => {
                if let Some((token, result)) = self.sources.ask(token, request) {
                    self.tell(now, Input::Source { token, result });
                }
            }
        }
    }

    /// The engine serves: what was founded is now a node, and clients are let in.
    fn handle_ready(&mut self) {
        let Some(ready) = self.ready.take() else { return };
        // What was told before the engine opened its disks is lost.
        self.next_space = Time(0);
        let mut directory = lock(&self.directory);
        if let Err(error) = directory.finish() {
            let path = directory.path().display();
            self.end = Some(Err(format!("cannot write to {path}: {error}; free some space")));
            return;
        }
        drop(directory);
        for (number, listener) in self.listeners.iter_mut().enumerate() {
            let token = Token(LISTENERS + number);
            if let Err(error) = listener.register(self.poll.registry(), token) {
                self.end = Some(Err(format!("cannot listen for NBD clients: {error}")));
                return;
            }
            self.knocked[number] = true;
        }
        // Nobody waits for it if the start was given up.
        let _ = ready.send(());
    }

    fn answer(&mut self, now: Time, connection: ConnectionId, answer: Answer) {
        let opened = matches!(answer, Answer::Opened { .. });
        let Some(link) = self.links.get_mut(&connection.0) else { return };
        if opened && link.negotiating {
            link.negotiating = false;
            self.caps.settle(&link.peer);
            let client = &link.client.description;
            tracing::info!(connection = connection.0, %client, "volume attached");
        }
        self.with_link(now, connection.0, |link, effects| {
            link.machine.handle_answer(now, answer, effects);
        });
    }
}

/// The node's clock: it begins a while after 0, which thereby lies safely in the past.
fn time_since(started: Instant) -> Time {
    const START: Duration = Duration::from_secs(1);
    Time::default() + START + started.elapsed()
}
