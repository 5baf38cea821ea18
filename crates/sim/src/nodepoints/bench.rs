//! A node being driven by hand, and what is known of it from outside.

use super::{
    NAME,
    books::{Books, Change, Volume},
};
use crate::{
    node::{Life, Said, SimNode},
    oracle::{Action, OperationId, Oracle},
    random::mix,
};
use engine::{
    Client, ConnectionId, Input,
    admin::{AdminReply, AdminRequest, AdminToken, LayerReport, VolumeReport},
};
use proto::{Duration, Time};
use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash, Hasher},
};
use volume::{Answer, Completion, Operation, Request, RequestId};

pub(super) struct Bench {
    pub(super) node: SimNode,
    pub(super) now: Time,
    pub(super) oracle: Oracle,
    pub(super) books: Books,
    /// The name of the volume that the guest has, and its connection.
    pub(super) current: String,
    pub(super) connection: ConnectionId,
    /// A change under way, and how the oracle calls it if it is a snapshot.
    pub(super) pending: Option<(Change, Option<OperationId>)>,
    next_connection: u64,
    next_request: u64,
    next_token: u64,
    pub(super) answers: BTreeMap<u64, Answer>,
    pub(super) completions: BTreeMap<RequestId, Result<Completion, volume::Error>>,
    pub(super) replies: BTreeMap<AdminToken, Result<AdminReply, String>>,
}

impl Bench {
    pub(super) fn of(node: SimNode, oracle: Oracle, books: Books) -> Bench {
        Bench {
            node,
            now: Time(5_000_000_000),
            oracle,
            books,
            current: NAME.into(),
            connection: ConnectionId(0),
            pending: None,
            next_connection: 0,
            next_request: 0,
            next_token: 0,
            answers: BTreeMap::new(),
            completions: BTreeMap::new(),
            replies: BTreeMap::new(),
        }
    }

    /// Equal for equal expectations.
    pub(super) fn key(&self) -> u64 {
        // Its keys are fixed: equal in every run.
        let mut hasher = DefaultHasher::new();
        let pending = self.pending.as_ref().map(|(change, _)| change);
        (&self.books, pending).hash(&mut hasher);
        self.oracle.key() ^ mix(hasher.finish())
    }

    pub(super) fn create(&mut self, name: &str) -> Result<(), String> {
        let change = Change::Create { name: name.into() };
        self.consult(AdminRequest::VolumeCreate { name: name.into(), bytes: super::LARGE })?;
        self.book(change, None)
    }

    /// The change under way was answered.
    pub(super) fn book_answered(&mut self) -> Result<(), String> {
        let (change, taking) = self.pending.take().expect("a change is answered once");
        self.book(change, taking)
    }

    /// Takes a new volume in; what it is the clone of stands in `origin`.
    pub(super) fn adopt(
        &mut self,
        name: &str,
        origin: Option<(String, String)>,
    ) -> Result<u64, String> {
        let reports = self.volumes()?;
        let report = reports.iter().find(|report| report.name == name);
        let Some(report) = report else { return Err(format!("{name} is not listed")) };
        let (id, head) = (report.volume.0, self.head(name)?);
        let volume = Volume { id, head, snapshots: Vec::new(), origin, trashed: false };
        self.books.volumes.insert(name.into(), volume);
        Ok(id)
    }

    pub(super) fn volumes(&mut self) -> Result<Vec<VolumeReport>, String> {
        match self.consult(AdminRequest::VolumeList)? {
            AdminReply::Volumes(reports) => Ok(reports),
            other => Err(format!("the list of volumes is {other:?}")),
        }
    }

    pub(super) fn layers(&mut self) -> Result<Vec<LayerReport>, String> {
        match self.consult(AdminRequest::LayerList { name: None })? {
            AdminReply::Layers(reports) => Ok(reports),
            other => Err(format!("the list of layers is {other:?}")),
        }
    }

    /// The layer that a volume writes.
    pub(super) fn head(&mut self, name: &str) -> Result<u64, String> {
        let layers = self.layers()?;
        let head = layers.iter().find(|layer| layer.name.as_deref() == Some(name));
        head.map(|layer| layer.layer.0).ok_or_else(|| format!("{name} has no head"))
    }

    /// Asks to attach a volume, or a snapshot; answered to the connection returned.
    pub(super) fn ask_open(&mut self, name: &str) -> ConnectionId {
        self.next_connection += 1;
        let connection = ConnectionId(self.next_connection);
        let client = Client { identity: "guest".into(), description: "guest".into() };
        self.node.input(self.now, Input::Open { connection, client, name: name.into() });
        self.node.poll(self.now);
        connection
    }

    /// Attaches the volume that the guest has.
    pub(super) fn open(&mut self) -> Result<(), String> {
        let name = self.current.clone();
        let volume = self.books.volume(&name).id;
        self.connection = self.open_at(&name, volume)?;
        self.oracle.attached(volume);
        Ok(())
    }

    /// Attaches a volume or a snapshot, which the oracle knows by this number.
    pub(super) fn open_at(&mut self, name: &str, known: u64) -> Result<ConnectionId, String> {
        let connection = self.ask_open(name);
        self.run_until(|bench| bench.answers.contains_key(&connection.0))?;
        match self.answers.remove(&connection.0) {
            Some(Answer::Opened { bytes, .. }) if bytes == self.oracle.bytes(known) => {
                Ok(connection)
            }
            other => Err(format!("opening {name} was answered {other:?}")),
        }
    }

    pub(super) fn hang_up(&mut self, connection: ConnectionId) {
        self.node.input(self.now, Input::Close { connection });
        self.node.poll(self.now);
    }

    /// Reads all of a volume or snapshot and compares it.
    pub(super) fn read_all(&mut self, connection: ConnectionId, known: u64) -> Result<(), String> {
        let length = self.oracle.bytes(known);
        let booked = self.oracle.invoke(known, 0, Action::Read, 0, length);
        let id = self.request(connection, 0, length, Operation::Read);
        self.run_until(|bench| bench.completions.contains_key(&id))?;
        match self.completions.remove(&id) {
            Some(Ok(Completion::Data(payloads))) => {
                let bytes: Vec<u8> =
                    payloads.iter().flat_map(|p| p.as_slice().iter().copied()).collect();
                self.oracle.ok_read(booked, &bytes).map_err(|wrong| wrong.to_string())
            }
            other => Err(format!("reading was answered {other:?}")),
        }
    }

    pub(super) fn request(
        &mut self,
        connection: ConnectionId,
        offset: u64,
        length: u64,
        operation: Operation,
    ) -> RequestId {
        self.next_request += 1;
        let id = RequestId(self.next_request);
        let request = Request { id, offset, length, operation };
        self.node.input(self.now, Input::Request { connection, request });
        self.node.poll(self.now);
        id
    }

    pub(super) fn administer(&mut self, request: AdminRequest) -> AdminToken {
        self.next_token += 1;
        let token = AdminToken(self.next_token);
        self.node.input(self.now, Input::Admin { token, request });
        self.node.poll(self.now);
        token
    }

    pub(super) fn consult(&mut self, request: AdminRequest) -> Result<AdminReply, String> {
        let token = self.administer(request);
        self.run_until(|bench| bench.replies.contains_key(&token))?;
        self.replies.remove(&token).expect("just seen")
    }

    pub(super) fn await_ready(&mut self) -> Result<(), String> {
        self.run_until(|bench| *bench.node.life() == Life::Ready)
    }

    pub(super) fn run_until(&mut self, done: impl Fn(&Bench) -> bool) -> Result<(), String> {
        loop {
            self.listen();
            if done(self) {
                return Ok(());
            }
            if let Life::Failed(sentence) = self.node.life() {
                return Err(format!("the node failed: {sentence}"));
            }
            if !self.step() && !self.pass_time(Time(u64::MAX)) {
                return Err("what is waited for never comes".into());
            }
        }
    }

    pub(super) fn step(&mut self) -> bool {
        self.node.step(self.now)
    }

    pub(super) fn pass_time(&mut self, end: Time) -> bool {
        let Some(deadline) = self.node.engine().deadline().filter(|at| *at <= end) else {
            return false;
        };
        self.now = self.now.max(deadline);
        self.node.input(self.now, Input::Tick);
        self.node.poll(self.now);
        true
    }

    pub(super) fn idle(&mut self, span: Duration) {
        let end = self.now + span;
        while self.step() || self.pass_time(end) {}
        self.now = end;
    }

    pub(super) fn listen(&mut self) {
        for said in self.node.take_said() {
            match said {
                Said::Answer { connection, answer } => {
                    self.answers.insert(connection.0, answer);
                }
                Said::Complete { id, result, .. } => {
                    let before = self.completions.insert(id, result);
                    assert!(before.is_none(), "a request is answered once");
                }
                Said::Admin { token, result } => {
                    self.replies.insert(token, (*result).map_err(|error| error.sentence));
                }
                _ => {}
            }
        }
    }
}
