//! Requests of the peer: what it may have in flight, and what of an earlier connection is still
//! with a disk.

use crate::event::Question;
use crate::output::{Mark, Output};
use crate::{CloseReason, Effect};
use proto::wire::{Header, note, reply, request};
use proto::{Duration, MemberError, MemberReply, Payload, Time};
use std::collections::BTreeMap;

/// A request that a disk of this node has not answered.
#[derive(Debug)]
struct Open {
    /// The connection that it came by last.
    connection: u64,
    /// Its frame, to know it again.
    header: Header,
    /// What it counts for, in bytes.
    cost: u64,
}

/// Some requests, and what they count for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Held {
    requests: u64,
    bytes: u64,
}

impl Held {
    fn add(&mut self, cost: u64) {
        self.requests += 1;
        self.bytes += cost;
    }

    fn remove(&mut self, cost: u64) {
        self.requests -= 1;
        self.bytes -= cost;
    }
}

/// All requests of one peer.
#[derive(Debug)]
pub struct Answerer {
    /// What the peer may have in flight at most.
    whole: Held,
    /// What it was told it may have in flight on this connection; never above `whole`, and only
    /// raised.
    granted: Held,
    /// What of this connection is with a disk, or answered and not taken by the socket.
    used: Held,
    /// What of earlier connections is with a disk and has not come again.
    orphans: Held,
    open: BTreeMap<Question, Open>,
    /// Counts the peer's processes.
    life: u64,
    /// The present connection; none: nobody is answered.
    connection: Option<u64>,
    /// Requests that came once more while a disk worked on them, in all.
    adopted: u64,
}

impl Answerer {
    pub fn new(requests: u32, bytes: u32) -> Answerer {
        Answerer {
            whole: Held { requests: requests.into(), bytes: bytes.into() },
            granted: Held::default(),
            used: Held::default(),
            orphans: Held::default(),
            open: BTreeMap::new(),
            life: 0,
            connection: None,
            adopted: 0,
        }
    }

    /// Requests that came once more while a disk worked on them, in all.
    pub fn adopted(&self) -> u64 {
        self.adopted
    }

    /// What the next connection may be granted, requests and bytes: with what earlier ones left, at
    /// most twice the whole.
    pub fn credit(&self) -> (u32, u32) {
        let left = |whole: u64, orphans: u64| whole.min((2 * whole).saturating_sub(orphans)) as u32;
        let Answerer { whole, orphans, .. } = self;
        (left(whole.requests, orphans.requests), left(whole.bytes, orphans.bytes))
    }

    /// The peer runs in another process: what the former one asked will not come again.
    pub fn restarted(&mut self) {
        self.life += 1;
    }

    /// A connection is there, and was granted this.
    pub fn connected(&mut self, connection: u64, (requests, bytes): (u32, u32)) {
        self.connection = Some(connection);
        self.granted = Held { requests: requests.into(), bytes: bytes.into() };
    }

    /// The connection is gone, with all answers that the socket has not taken.
    pub fn disconnected(&mut self) {
        self.connection = None;
        self.used = Held::default();
        self.granted = Held::default();
        self.orphans = Held::default();
        self.open.values().for_each(|open| self.orphans.add(open.cost));
    }

    /// Whether one more request that brings so many bytes may come; asked before memory is given to
    /// them.
    pub fn admit(&self, cost: u64) -> Result<(), CloseReason> {
        let fits = self.used.requests < self.granted.requests
            && self.used.bytes + cost <= self.granted.bytes;
        if fits { Ok(()) } else { Err(CloseReason::BeyondCredit) }
    }

    /// Takes a verified request.
    pub fn take_request(
        &mut self,
        header: &Header,
        body: &[u8],
        payload: Option<Payload>,
        effects: &mut Vec<Effect>,
    ) -> Result<(), CloseReason> {
        let connection = self.connection.expect("requests come by a connection");
        let (disk, request) = request::decode(header, body, payload)?;
        let cost = request::cost(&request);
        self.admit(cost)?;
        let question = Question { life: self.life, id: header.id };
        if let Some(open) = self.open.get_mut(&question) {
            if open.connection == connection {
                return Err(CloseReason::Protocol("two requests have one id"));
            }
            if open.header != *header {
                return Err(CloseReason::Protocol("a request comes again as another one"));
            }
            open.connection = connection;
            self.orphans.remove(cost);
            self.used.add(cost);
            self.adopted += 1;
            return Ok(());
        }
        self.used.add(cost);
        self.open.insert(question, Open { connection, header: *header, cost });
        effects.push(Effect::Asked { question, disk, request });
        Ok(())
    }

    /// Takes the answer of a disk, and sends it if who asked is still there.
    ///
    /// # Panics
    /// If the question is not open, or its answer longer than any may be.
    pub fn answer(
        &mut self,
        now: Time,
        question: Question,
        promise: Duration,
        result: Result<MemberReply, MemberError>,
        output: &mut Output,
    ) {
        let open = self.open.remove(&question).expect("only open questions are answered");
        if self.connection != Some(open.connection) {
            self.orphans.remove(open.cost);
            return;
        }
        output.put(now, |out, seal| reply::put(out, seal, question.id, promise, &result));
        if let Ok(MemberReply::Data { content, .. }) = result {
            content.into_iter().for_each(|piece| output.put_payload(now, piece));
        }
        output.mark(Mark::Answer(open.cost));
    }

    /// The socket has taken an answer.
    pub fn answer_taken(&mut self, cost: u64) {
        self.used.remove(cost);
    }

    /// Tells the peer of more credit, if much of it came back.
    pub fn raise(&mut self, now: Time, output: &mut Output) {
        if self.connection.is_none() || self.granted == self.whole {
            return;
        }
        let (requests, bytes) = self.credit();
        let may = Held {
            requests: self.granted.requests.max(requests.into()),
            bytes: self.granted.bytes.max(bytes.into()),
        };
        let is_much = |granted: u64, may: u64, whole: u64| {
            may > granted && (may == whole || may - granted >= whole / 8)
        };
        if is_much(self.granted.requests, may.requests, self.whole.requests)
            || is_much(self.granted.bytes, may.bytes, self.whole.bytes)
        {
            self.granted = may;
            output.put(now, |out, seal| {
                note::put_credit(out, seal, may.requests, may.bytes);
            });
        }
    }

    /// Asserts what must hold between two events.
    pub fn check(&self) {
        let mut with_disks = Held::default();
        let mut orphans = Held::default();
        for open in self.open.values() {
            let is_here = self.connection == Some(open.connection);
            if is_here {
                with_disks.add(open.cost)
            } else {
                orphans.add(open.cost)
            };
        }
        assert_eq!(self.orphans, orphans);
        assert!(with_disks.requests <= self.used.requests && with_disks.bytes <= self.used.bytes);
        assert!(self.used.requests <= self.granted.requests);
        assert!(self.used.bytes <= self.granted.bytes);
        assert!(self.granted.requests <= self.whole.requests);
        assert!(self.granted.bytes <= self.whole.bytes);
        assert!(self.used.requests + self.orphans.requests <= 2 * self.whole.requests);
        assert!(self.used.bytes + self.orphans.bytes <= 2 * self.whole.bytes);
    }
}
