//! Who has which volume or snapshot on this node: from a connection's wish to attach, through the
//! agreed attachment and the session, to its end.
//!
//! One [`Held`] per volume that somebody has or is getting, and one per snapshot and client that
//! reads it. Its life: attaching (the command is on its way through the log) - opening (the session
//! fences and settles) - open - closing (the session drains and flushes) - detaching - gone.

use crate::{Client, ConnectionId};
use proto::limits::OPENS_WAITING_MAX;
use proto::{Generation, LayerId, Time, VolumeId};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::RangeInclusive;
use volume::{Answer, Session};

/// Names one [`Held`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum HeldId {
    /// A volume itself: one client has it at a time.
    Head(VolumeId),
    /// A snapshot as one client reads it.
    Snapshot {
        /// Whose snapshot.
        volume: VolumeId,
        /// What it names.
        layer: LayerId,
        /// Stands for the client; never used for another one.
        reader: u64,
    },
}

impl HeldId {
    /// Whose attachment it is.
    pub(crate) fn volume(self) -> VolumeId {
        match self {
            HeldId::Head(volume) | HeldId::Snapshot { volume, .. } => volume,
        }
    }

    /// All that read a snapshot.
    pub(crate) fn readers(volume: VolumeId, layer: LayerId) -> RangeInclusive<HeldId> {
        let id = |reader| HeldId::Snapshot { volume, layer, reader };
        id(0)..=id(u64::MAX)
    }
}

/// What the node itself holds a volume for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Duty {
    /// Its session has to discard what lay beyond a smaller size, or to open its head.
    Finish,
    /// Its session copies what shows through it, all of that or what lies above some layer.
    Flatten,
}

/// Where a held volume is in its life.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Stage {
    /// The attach command has been proposed.
    Attaching,
    /// The session exists and is not ready yet.
    Opening,
    /// Requests are served.
    Open,
    /// The session drains and flushes.
    Closing,
    /// The detach command has been proposed.
    Detaching,
}

/// A wait for a volume that another node has.
#[derive(Debug)]
pub(crate) struct Turn {
    /// When it ends.
    pub(crate) until: Time,
    /// Who has it, for whoever is refused then; nothing while the attach command is on its way.
    pub(crate) refusal: Option<String>,
}

/// One volume that somebody on this node has, gets, or gives back.
pub(crate) struct Held {
    /// Who.
    pub(crate) client: Client,
    /// What for, if the holder is the node itself: anybody else waits for its end.
    pub(crate) duty: Option<Duty>,
    /// Whether it is to be given back as soon as it is attached.
    pub(crate) is_called_off: bool,
    /// Another node has the volume, and may be about to give it back.
    pub(crate) turn: Option<Turn>,
    /// Where it is in its life.
    pub(crate) stage: Stage,
    /// The map does not have its attachment any more: somebody else has ended it, and all that is
    /// left to do is to give it up.
    pub(crate) is_ended: bool,
    /// The attachment's number, once agreed.
    pub(crate) generation: Option<Generation>,
    /// The session, from Opening to Closing.
    pub(crate) session: Option<Session>,
    /// The client's connections, those that still wait for their answer included.
    pub(crate) connections: BTreeSet<ConnectionId>,
    /// Those of `connections` that wait for their answer.
    pub(crate) unanswered: Vec<ConnectionId>,
    /// Connections that want the volume once it is free again.
    pub(crate) next: VecDeque<(ConnectionId, Client)>,
}

impl Held {
    pub(crate) fn new(client: Client, duty: Option<Duty>) -> Held {
        Held {
            client,
            duty,
            is_called_off: false,
            turn: None,
            stage: Stage::Attaching,
            is_ended: false,
            generation: None,
            session: None,
            connections: BTreeSet::new(),
            unanswered: Vec::new(),
            next: VecDeque::new(),
        }
    }

    /// Adds a connection of the holder; its answer is owed unless the volume is open.
    pub(crate) fn join(&mut self, connection: ConnectionId) {
        self.connections.insert(connection);
        if self.stage != Stage::Open {
            self.unanswered.push(connection);
        }
    }

    /// Removes a connection wherever it is.
    pub(crate) fn leave(&mut self, connection: ConnectionId) {
        self.connections.remove(&connection);
        self.unanswered.retain(|other| *other != connection);
        self.next.retain(|(other, _)| *other != connection);
    }

    /// Until when it waits, with nothing on its way.
    pub(crate) fn waits_until(&self) -> Option<Time> {
        self.turn.as_ref().filter(|turn| turn.refusal.is_some()).map(|turn| turn.until)
    }

    /// Whether it is on its way out: nobody can join any more, but wait for the next turn.
    pub(crate) fn is_ending(&self) -> bool {
        match self.stage {
            _ if self.is_ended => true,
            Stage::Closing | Stage::Detaching => true,
            // Its client went again before it had it.
            Stage::Attaching if self.connections.is_empty() => true,
            Stage::Attaching | Stage::Opening | Stage::Open => self.duty.is_some(),
        }
    }
}

/// What to do with a connection that wants a volume.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Admission {
    /// Nobody has it: attach it for this client.
    Attach,
    /// Its own client has it and it is open.
    Joined,
    /// Its answer follows later.
    Wait,
    /// Somebody else has it.
    Refused(Answer),
}

/// Decides about a connection that wants a volume, and takes it in where it may wait or join.
pub(crate) fn admit(
    held: &mut BTreeMap<HeldId, Held>,
    id: HeldId,
    name: &str,
    connection: ConnectionId,
    client: &Client,
) -> Admission {
    let Some(held) = held.get_mut(&id) else { return Admission::Attach };
    if held.is_ending() {
        if held.next.len() >= OPENS_WAITING_MAX {
            let sentence = format!("too many clients wait for {name}; try again in a moment");
            return Admission::Refused(Answer::Refused { sentence });
        }
        held.next.push_back((connection, client.clone()));
        return Admission::Wait;
    }
    if held.client.identity != client.identity {
        let sentence = format!(
            "volume {name} is attached by {holder}; a volume has one writer at a time: stop that \
             client first",
            holder = held.client.description,
        );
        return Admission::Refused(Answer::Refused { sentence });
    }
    held.join(connection);
    match held.stage {
        Stage::Open => Admission::Joined,
        _ => Admission::Wait,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(identity: &str) -> Client {
        Client { identity: identity.into(), description: format!("process {identity}") }
    }

    #[test]
    fn a_second_client_is_told_who_holds_the_volume() {
        let id = HeldId::Head(VolumeId(1));
        let mut held = BTreeMap::new();
        let wish = |held: &mut _, number, who: &str| {
            admit(held, id, "vm1", ConnectionId(number), &client(who))
        };
        assert_eq!(wish(&mut held, 1, "a"), Admission::Attach);
        let mut first = Held::new(client("a"), None);
        first.join(ConnectionId(1));
        held.insert(id, first);
        assert_eq!(wish(&mut held, 2, "a"), Admission::Wait);
        held.get_mut(&id).unwrap().stage = Stage::Open;
        assert_eq!(wish(&mut held, 3, "a"), Admission::Joined);
        match wish(&mut held, 4, "b") {
            Admission::Refused(Answer::Refused { sentence }) => {
                assert!(sentence.contains("vm1 is attached by process a"), "{sentence}")
            }
            other => panic!("{other:?}"),
        }
        held.get_mut(&id).unwrap().stage = Stage::Closing;
        assert_eq!(wish(&mut held, 5, "b"), Admission::Wait);
        let held = held.get_mut(&id).unwrap();
        assert_eq!(held.next.len(), 1);
        held.leave(ConnectionId(5));
        assert!(held.next.is_empty());
    }

    #[test]
    fn a_client_that_went_before_it_had_its_volume_is_on_its_way_out() {
        let mut held = Held::new(client("a"), None);
        held.join(ConnectionId(1));
        assert!(!held.is_ending());
        held.leave(ConnectionId(1));
        assert!(held.is_ending());
        let id = HeldId::Head(VolumeId(1));
        let mut all = BTreeMap::from([(id, held)]);
        for (number, who) in [(2, "a"), (3, "b")] {
            let at = ConnectionId(number);
            assert_eq!(admit(&mut all, id, "vm1", at, &client(who)), Admission::Wait);
        }
        assert_eq!(all[&id].next.len(), 2);
    }

    #[test]
    fn those_who_wait_for_a_closing_volume_are_bounded() {
        let mut held = BTreeMap::new();
        let mut ending = Held::new(client("a"), None);
        ending.stage = Stage::Detaching;
        held.insert(HeldId::Head(VolumeId(1)), ending);
        for number in 0..OPENS_WAITING_MAX as u64 {
            let at = ConnectionId(number);
            let admission = admit(&mut held, HeldId::Head(VolumeId(1)), "vm1", at, &client("b"));
            assert_eq!(admission, Admission::Wait);
        }
        let at = ConnectionId(u64::MAX);
        let admission = admit(&mut held, HeldId::Head(VolumeId(1)), "vm1", at, &client("b"));
        assert!(matches!(admission, Admission::Refused(_)));
    }
}
