//! Snapshots and what is made of them: errands of the administrator, clients that read snapshots,
//! and what must be true of all of them after each start.

use super::{Link, PATIENCE, World, office::Errand};
use crate::oracle::{Action, OperationId};
use engine::{
    Client, ConnectionId, Input,
    admin::{AdminReply, AdminRequest, FlattenAction},
};
use proto::{Duration, Payload, Time};
use std::collections::BTreeMap;
use volume::{Answer, Completion, Operation, Request, RequestId};

/// A snapshot that exists.
#[derive(Clone, Debug)]
pub(super) struct Snapshot {
    /// Its volume.
    pub(super) volume: u64,
    /// Its name within it.
    pub(super) tag: String,
}

/// Somebody who reads a snapshot once, from its beginning to its end.
pub(super) struct Reader {
    layer: u64,
    is_open: bool,
    /// It was told to go.
    is_leaving: bool,
    /// What is still to be read: offset and length.
    todo: Vec<(u64, u64)>,
    in_flight: BTreeMap<RequestId, OperationId>,
    next_request: u64,
    /// When it does something next.
    pub(super) next_at: Time,
}

/// Snapshots a run has at the same time, at most.
const SNAPSHOTS_MAX: usize = 12;
/// Volumes that there may be besides those that a run wants: clones.
const CLONES_MAX: usize = 3;
/// Reads that a reader has in flight at most.
const READS_MAX: usize = 4;

/// What the oracle calls a snapshot: as no volume is called.
pub(super) fn entry(layer: u64) -> u64 {
    (1 << 32) | layer
}

/// Refusals that end by themselves: the disks have yet to do something.
pub(super) fn is_passing(sentence: &str) -> bool {
    ["is still being taken", "is still discarding", "the node is stopping"]
        .iter()
        .any(|part| sentence.contains(part))
}

/// Whether the answer says that the snapshot or rollback was made, but that disks are slow.
pub(super) fn is_made(sentence: &str) -> bool {
    sentence.contains("was taken, but") || sentence.contains("was rolled back to")
}

impl World {
    /// An administrator does something about snapshots of a volume.
    pub(super) fn send_layer_errand(&mut self, volume: u64) -> Result<(), String> {
        let layers: Vec<u64> =
            self.snapshots.iter().filter(|(_, s)| s.volume == volume).map(|(l, _)| *l).collect();
        let some = if layers.is_empty() { None } else { Some(*self.random.pick(&layers)) };
        match (self.random.weighted(&[6, 2, 2, 2, 3, 4]), some) {
            (1, Some(layer)) if self.guests.len() < self.mix.volumes + CLONES_MAX => {
                self.clone_snapshot(layer);
            }
            (2, Some(layer)) => self.roll_back(volume, layer)?,
            (3, _) => self.flatten(volume)?,
            (4, Some(layer)) => self.delete_snapshot(layer),
            (5, Some(layer)) => self.read_snapshot(layer),
            _ if self.snapshots.len() < SNAPSHOTS_MAX => self.take_snapshot(volume),
            _ => {}
        }
        Ok(())
    }

    fn take_snapshot(&mut self, volume: u64) {
        self.next_name += 1;
        let tag = format!("s{}", self.next_name);
        let name = self.guests[&volume].name.clone();
        let taking = self.oracle.invoke_snapshot(volume);
        self.sealed_bytes += self.oracle.bytes(volume);
        let errand = Errand::Snapshot { volume, tag: tag.clone(), taking, is_taken: false };
        self.send(errand, AdminRequest::SnapshotCreate { name, tag });
    }

    fn clone_snapshot(&mut self, layer: u64) {
        self.next_name += 1;
        let new_name = format!("c{}", self.next_name);
        let Snapshot { volume, tag } = self.snapshots[&layer].clone();
        let name = self.guests[&volume].name.clone();
        let errand = Errand::Clone { layer, name: new_name.clone() };
        self.send(errand, AdminRequest::VolumeClone { name, tag, new_name });
    }

    fn roll_back(&mut self, volume: u64, layer: u64) -> Result<(), String> {
        if !self.make_way(volume) {
            return Ok(());
        }
        let (name, tag) = (self.guests[&volume].name.clone(), self.snapshots[&layer].tag.clone());
        let head = self.head(&name)?;
        let errand = Errand::Rollback { volume, layer, head };
        self.send(errand, AdminRequest::VolumeRollback { name, tag });
        Ok(())
    }

    fn flatten(&mut self, volume: u64) -> Result<(), String> {
        let name = self.guests[&volume].name.clone();
        let request = AdminRequest::VolumeInfo { name: name.clone() };
        let AdminReply::Volume(report) = self.consult(request)? else {
            return Err("the report of a volume is none".into());
        };
        // A session may have ended it by the time that it is asked for.
        if report.origin.is_none() || report.flatten.is_some() {
            return Ok(());
        }
        let request = AdminRequest::VolumeFlatten { name, action: FlattenAction::Start };
        self.send(Errand::Flatten, request);
        Ok(())
    }

    fn delete_snapshot(&mut self, layer: u64) {
        self.send_readers_away(&[layer]);
        let Snapshot { volume, tag } = self.snapshots[&layer].clone();
        let name = self.guests[&volume].name.clone();
        self.send(Errand::DeleteSnapshot { layer }, AdminRequest::SnapshotDelete { name, tag });
    }

    /// The guest of a volume goes, and comes back when the errand is done. False: it is on its way
    /// in or out.
    pub(super) fn make_way(&mut self, volume: u64) -> bool {
        if let Link::Open(connection) = self.guests[&volume].link {
            self.hang_up(volume, connection);
        }
        let guest = self.guests.get_mut(&volume).expect("picked among them");
        if guest.link != Link::None {
            return false;
        }
        guest.next_at = Time(u64::MAX);
        true
    }

    /// The layer that a volume writes.
    fn head(&mut self, name: &str) -> Result<u64, String> {
        let request = AdminRequest::LayerList { name: Some(name.into()) };
        let AdminReply::Layers(layers) = self.consult(request)? else {
            return Err("the list of layers is none".into());
        };
        let head = layers.iter().find(|layer| layer.name.as_deref() == Some(name));
        head.map(|head| head.layer.0).ok_or_else(|| format!("{name} has no head"))
    }

    /// The snapshots of a volume, as the node tells: tag and layer, and whether one is still being
    /// taken.
    fn listed(&mut self, volume: u64) -> Result<Vec<(String, u64, bool)>, String> {
        let name = self.guests[&volume].name.clone();
        let request = AdminRequest::SnapshotList { name, reclaimable: false };
        match self.consult(request)? {
            AdminReply::Snapshots(list) => {
                Ok(list.into_iter().map(|s| (s.tag, s.layer.0, s.sealing)).collect())
            }
            other => Err(format!("the list of snapshots is {other:?}")),
        }
    }

    /// A snapshot was taken that nobody had the answer of in time: looks whether it is sealed now.
    pub(super) fn look_after_snapshot(&mut self) -> Result<(), String> {
        let Some(Errand::Snapshot { volume, tag, taking, is_taken: true }) = self.late.clone()
        else {
            return Ok(());
        };
        let listed = self.listed(volume)?;
        let found = listed.into_iter().find(|(known, ..)| *known == tag);
        let Some((_, layer, is_sealing)) = found else {
            return Err(format!("snapshot {tag} was taken and is not there"));
        };
        if !is_sealing {
            self.late = None;
            self.snapshot_taken(volume, tag, taking, layer);
        }
        Ok(())
    }

    /// A snapshot was taken, and answered.
    pub(super) fn snapshot_taken(
        &mut self,
        volume: u64,
        tag: String,
        taking: OperationId,
        layer: u64,
    ) {
        self.oracle.ok_snapshot(taking, entry(layer));
        self.snapshots.insert(layer, Snapshot { volume, tag });
        self.guests.get_mut(&volume).expect("it had a snapshot taken").has_layers = true;
    }

    pub(super) fn forget_snapshot(&mut self, layer: u64) {
        self.snapshots.remove(&layer);
        self.oracle.remove(entry(layer));
    }

    /// The layers of a volume's snapshots.
    pub(super) fn layers_of(&self, volume: u64) -> Vec<u64> {
        let of_volume = self.snapshots.iter().filter(|(_, snapshot)| snapshot.volume == volume);
        of_volume.map(|(layer, _)| *layer).collect()
    }

    /// A client wants to read a snapshot.
    fn read_snapshot(&mut self, layer: u64) {
        let Snapshot { volume, tag } = &self.snapshots[&layer];
        let name = format!("{}@{tag}", self.guests[volume].name);
        self.next_connection += 1;
        let connection = ConnectionId(self.next_connection);
        let identity = format!("reader {}", connection.0);
        let client = Client { description: identity.clone(), identity };
        self.trace.line(self.now, format_args!("reader {} opens {name}", connection.0));
        let mut todo = self.oracle.touched(entry(layer), self.oracle.bytes(entry(layer)));
        todo.reverse();
        let reader = Reader {
            layer,
            is_open: false,
            is_leaving: false,
            todo,
            in_flight: BTreeMap::new(),
            next_request: 0,
            next_at: Time(u64::MAX),
        };
        self.readers.insert(connection.0, reader);
        self.node.input(self.now, Input::Open { connection, client, name });
        self.node.poll(self.now);
    }

    /// A reader does its next thing.
    pub(super) fn reader_acts(&mut self, connection: u64) {
        let think = self.random.below(self.mix.think.as_nanos() as u64 + 1);
        let now = self.now;
        let reader = self.readers.get_mut(&connection).expect("it acts");
        reader.next_at = now + Duration::from_nanos(think);
        if reader.in_flight.len() >= READS_MAX {
            reader.next_at = Time(u64::MAX); // until one is answered
            return;
        }
        let Some((offset, length)) = reader.todo.pop().filter(|_| !reader.is_leaving) else {
            reader.next_at = Time(u64::MAX);
            if reader.in_flight.is_empty() {
                self.send_away(connection);
            }
            return;
        };
        reader.next_request += 1;
        let id = RequestId(reader.next_request);
        let known = entry(reader.layer);
        let booked = self.oracle.invoke(known, 0, Action::Read, offset, length);
        reader.in_flight.insert(id, booked);
        self.summary.requests += 1;
        let line = format_args!("reader {connection} asks {}: {offset}+{length}", id.0);
        self.trace.line(now, line);
        let request = Request { id, offset, length, operation: Operation::Read };
        let connection = ConnectionId(connection);
        self.node.input(now, Input::Request { connection, request });
        self.node.poll(now);
    }

    /// A reader's connection ends, whatever it has in flight.
    fn send_away(&mut self, connection: u64) {
        let reader = self.readers.remove(&connection).expect("it is there");
        for (_, booked) in reader.in_flight {
            self.oracle.failed(booked);
        }
        self.trace.line(self.now, format_args!("reader {connection} goes"));
        self.node.input(self.now, Input::Close { connection: ConnectionId(connection) });
        self.node.poll(self.now);
    }

    /// Whoever reads one of these snapshots goes.
    pub(super) fn send_readers_away(&mut self, layers: &[u64]) {
        let readers = self.readers.iter().filter(|(_, reader)| layers.contains(&reader.layer));
        for connection in readers.map(|(connection, _)| *connection).collect::<Vec<_>>() {
            self.send_away(connection);
        }
    }

    /// The node stops: readers that have nothing in flight go.
    pub(super) fn part_with_readers(&mut self) {
        let idle = |reader: &&Reader| reader.is_leaving && reader.in_flight.is_empty();
        let readers = self.readers.iter().filter(|(_, reader)| idle(reader));
        for connection in readers.map(|(connection, _)| *connection).collect::<Vec<_>>() {
            self.send_away(connection);
        }
    }

    /// Somebody was told how the attaching ended. False: it is no reader.
    pub(super) fn reader_answered(
        &mut self,
        connection: ConnectionId,
        answer: &Answer,
    ) -> Result<bool, String> {
        let now = self.now;
        let Some(reader) = self.readers.get_mut(&connection.0) else { return Ok(false) };
        let owed = self.oracle.bytes(entry(reader.layer));
        match answer {
            Answer::Opened { bytes, read_only: true } if *bytes == owed => {
                (reader.is_open, reader.next_at) = (true, now);
            }
            Answer::Refused { .. } | Answer::Unknown { .. } => {
                self.readers.remove(&connection.0);
            }
            other => return Err(format!("a reader was told {other:?}, owed {owed} bytes")),
        }
        Ok(true)
    }

    /// A read has ended. False: it is no reader's.
    pub(super) fn reader_completed(
        &mut self,
        connection: ConnectionId,
        id: RequestId,
        result: &Result<Completion, volume::Error>,
    ) -> Result<bool, String> {
        let now = self.now;
        let Some(reader) = self.readers.get_mut(&connection.0) else { return Ok(false) };
        let booked = reader.in_flight.remove(&id).expect("a read is answered once");
        reader.next_at = now;
        match result {
            Ok(Completion::Data(payloads)) => {
                let bytes = Payload::joined(payloads);
                self.oracle.ok_read(booked, &bytes).map_err(|wrong| wrong.to_string())?;
                self.summary.snapshot_reads += 1;
            }
            Ok(other) => return Err(format!("a read was answered {other:?}")),
            Err(error) => {
                self.oracle.failed(booked);
                self.summary.failures += 1;
                self.judge_failure(error)?;
            }
        }
        Ok(true)
    }

    /// A reader is to go. False: it is none.
    pub(super) fn reader_disconnected(&mut self, connection: ConnectionId) -> bool {
        let now = self.now;
        let Some(reader) = self.readers.get_mut(&connection.0) else { return false };
        (reader.is_leaving, reader.next_at) = (true, now);
        true
    }

    /// After a start: compares what snapshots there are with what was promised, given what was
    /// under way.
    pub(super) fn resync_snapshots(&mut self, errand: Option<&Errand>) -> Result<(), String> {
        let late = self.late.take();
        for volume in self.guests.keys().copied().collect::<Vec<_>>() {
            let listed = self.listed(volume)?;
            for (tag, layer, _) in &listed {
                if let Some(known) = self.snapshots.get(layer) {
                    if (known.volume, &known.tag) != (volume, tag) {
                        return Err(format!("layer {layer} is called {tag} of {volume} now"));
                    }
                    continue;
                }
                let is_of = |errand: &&Errand| {
                    matches!(errand, Errand::Snapshot { volume: of, tag: wanted, .. }
                        if *of == volume && wanted == tag)
                };
                let expected = errand.filter(is_of).is_some() || late.iter().any(|e| is_of(&e));
                if !expected || !self.oracle.recover_snapshot(volume, entry(*layer), false) {
                    return Err(format!("snapshot {tag} came from nowhere"));
                }
                self.snapshots.insert(*layer, Snapshot { volume, tag: tag.clone() });
                self.guests.get_mut(&volume).expect("listed").has_layers = true;
            }
            if let Some(Errand::Snapshot { volume: of, tag, .. }) = &late
                && *of == volume
                && listed.iter().all(|(known, ..)| known != tag)
            {
                return Err(format!("snapshot {tag} was taken and is lost"));
            }
            for layer in self.layers_of(volume) {
                if listed.iter().any(|(_, known, _)| *known == layer) {
                    continue;
                }
                let deleted = matches!(errand, Some(Errand::DeleteSnapshot { layer: gone })
                    if *gone == layer);
                if !deleted {
                    return Err(format!("snapshot {:?} is lost", self.snapshots[&layer]));
                }
                self.forget_snapshot(layer);
            }
            if let Some(&Errand::Rollback { volume: of, layer, head }) = errand
                && of == volume
                && self.head(&self.guests[&volume].name.clone())? != head
            {
                self.rolled_back(volume, layer);
            }
        }
        self.oracle.forget_interrupted();
        Ok(())
    }

    /// A volume has the content and size of one of its snapshots.
    pub(super) fn rolled_back(&mut self, volume: u64, layer: u64) {
        self.oracle.roll_back(volume, entry(layer));
        let bytes = self.oracle.bytes(volume);
        let now = self.now;
        let guest = self.guests.get_mut(&volume).expect("it was rolled back");
        (guest.bytes, guest.next_at) = (bytes, now);
    }

    /// Reads every snapshot as soon as the node has sealed it.
    pub(super) fn verify_snapshots(&mut self) -> Result<(), String> {
        let end = self.now + PATIENCE;
        for volume in self.guests.keys().copied().collect::<Vec<_>>() {
            while self.listed(volume)?.iter().any(|(_, _, is_sealing)| *is_sealing) {
                let Some(due) = self.node.next_due().filter(|due| *due <= end) else {
                    return Err("a snapshot is never sealed".into());
                };
                self.now = self.now.max(due);
                self.node_acts()?;
            }
        }
        for layer in self.snapshots.keys().copied().collect::<Vec<_>>() {
            self.read_snapshot(layer);
            let connection = self.next_connection;
            self.drive("attaching a snapshot", |world| {
                world.readers.get(&connection).is_none_or(|reader| reader.is_open)
            })?;
            if !self.readers.contains_key(&connection) {
                return Err(format!("nobody may read snapshot {:?}", self.snapshots[&layer]));
            }
            let waits = Time(u64::MAX);
            while let Some(reader) = self.readers.get(&connection) {
                if reader.next_at != waits {
                    self.reader_acts(connection);
                    continue;
                }
                self.drive("reading a snapshot", |world| {
                    world.readers.get(&connection).is_none_or(|reader| reader.next_at != waits)
                })?;
            }
        }
        Ok(())
    }
}
