//! A node being driven by hand, and what is known of it from outside.

use super::{
    LARGE, NAME,
    books::{Books, Change, Volume},
};
use crate::{
    driver::{Driver, Pace},
    node::{Media, SimNode},
    onedisk::Setup,
    oracle::{Action, OperationId, Oracle},
    random::{Random, mix},
};
use engine::{
    ConnectionId,
    admin::{AdminReply, AdminRequest, GroupReport, LayerReport, VolumeReport},
};
use proto::{Duration, Time};
use std::{
    collections::BTreeMap,
    hash::{DefaultHasher, Hash, Hasher},
};
use volume::Answer;

pub(super) struct Bench {
    pub(super) driver: Driver,
    pub(super) oracle: Oracle,
    pub(super) books: Books,
    /// The name of the volume that the guest works on.
    pub(super) current: String,
    /// The guest's connections, by volume.
    pub(super) connections: BTreeMap<String, ConnectionId>,
    /// A change under way, and the snapshots that are taken by it.
    pub(super) pending: Option<(Change, Takings)>,
}

/// How the oracle calls the snapshots that are being taken, by volume.
pub(super) type Takings = BTreeMap<String, OperationId>;

const GUEST: &str = "guest";

impl Bench {
    pub(super) fn of(node: SimNode, now: Time, oracle: Oracle, books: Books) -> Bench {
        Bench {
            driver: Driver::of(node, now, Pace::OneByOne),
            oracle,
            books,
            current: NAME.into(),
            connections: BTreeMap::new(),
            pending: None,
        }
    }

    /// A new node, with nothing on it.
    pub(super) fn founded(setup: &Setup) -> Bench {
        let now = Time(1_000_000_000);
        let media = Media::blank(setup, &mut Random::new(1));
        let node = SimNode::start(now, setup, media);
        let mut bench = Bench::of(node, now, Oracle::new(), Books::default());
        bench.driver.await_ready().expect("a node can be founded");
        bench
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
        self.consult(AdminRequest::VolumeCreate { name: name.into(), bytes: LARGE })?;
        self.book(change, Takings::new())
    }

    /// The change under way was answered.
    pub(super) fn book_answered(&mut self) -> Result<(), String> {
        let (change, takings) = self.pending.take().expect("a change is answered once");
        self.book(change, takings)
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

    /// Asks as an administrator, and waits for the answer.
    pub(super) fn consult(&mut self, request: AdminRequest) -> Result<AdminReply, String> {
        self.driver.consult(request).map_err(|error| error.sentence)
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

    pub(super) fn groups(&mut self) -> Result<Vec<GroupReport>, String> {
        match self.consult(AdminRequest::GroupList)? {
            AdminReply::Groups(reports) => Ok(reports),
            other => Err(format!("the list of groups is {other:?}")),
        }
    }

    /// The layer that a volume writes.
    pub(super) fn head(&mut self, name: &str) -> Result<u64, String> {
        let layers = self.layers()?;
        let head = layers.iter().find(|layer| layer.name.as_deref() == Some(name));
        head.map(|layer| layer.layer.0).ok_or_else(|| format!("{name} has no head"))
    }

    /// Asks to attach a volume for the guest; answered to the connection that it has from now on.
    pub(super) fn ask_open(&mut self, name: &str) -> ConnectionId {
        let connection = self.driver.ask_open(GUEST, name);
        self.connections.insert(name.into(), connection);
        connection
    }

    /// The guest gets an answer.
    pub(super) fn opened(&mut self, name: &str, answer: Answer) -> Result<(), String> {
        let volume = self.books.volume(name).id;
        self.opened_as(name, volume, answer)?;
        self.oracle.attached(volume);
        Ok(())
    }

    /// Attaches what the guest works on.
    pub(super) fn open(&mut self) -> Result<(), String> {
        for name in self.wanted() {
            let connection = self.ask_open(&name);
            let is_answered = |driver: &mut Driver| driver.answers.contains_key(&connection);
            self.driver.run_until(&name, is_answered)?;
            let answer = self.driver.answers.remove(&connection).expect("just seen");
            self.opened(&name, answer)?;
        }
        Ok(())
    }

    /// The names of the volumes that the guest has, when it has what it wants.
    pub(super) fn wanted(&self) -> Vec<String> {
        let partner = self.books.group.as_ref().map(|group| group.partner.clone());
        [self.current.clone()].into_iter().chain(partner).collect()
    }

    /// Attaches a snapshot, which the oracle knows by this number.
    pub(super) fn open_at(&mut self, name: &str, known: u64) -> Result<ConnectionId, String> {
        let (connection, answer) = self.driver.open(GUEST, name)?;
        self.opened_as(name, known, answer).map(|()| connection)
    }

    fn opened_as(&self, name: &str, known: u64, answer: Answer) -> Result<(), String> {
        match answer {
            Answer::Opened { bytes, .. } if bytes == self.oracle.bytes(known) => Ok(()),
            other => Err(format!("opening {name} was answered {other:?}")),
        }
    }

    /// The guest gives back all that it has.
    pub(super) fn hang_up_all(&mut self) {
        for connection in std::mem::take(&mut self.connections).into_values() {
            self.driver.hang_up(connection);
        }
    }

    /// The guest's connection to the volume that it works on.
    pub(super) fn connection(&self) -> ConnectionId {
        *self.connections.get(&self.current).expect("it is attached")
    }

    /// Reads all of a volume or snapshot and compares it.
    pub(super) fn read_all(&mut self, connection: ConnectionId, known: u64) -> Result<(), String> {
        let length = self.oracle.bytes(known);
        let booked = self.oracle.invoke(known, 0, Action::Read, 0, length);
        let bytes = self.driver.read(connection, 0, length)?;
        self.oracle.ok_read(booked, &bytes).map_err(|wrong| wrong.to_string())
    }

    pub(super) fn idle(&mut self, span: Duration) {
        self.driver.idle(self.driver.now + span);
    }
}
