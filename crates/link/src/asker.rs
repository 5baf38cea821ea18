//! Requests to the peer's disks: which wait, which are in flight, which are sent again.

use crate::output::Output;
use crate::{CloseReason, Effect};
use proto::limits::{LINK_DISK_SHARE_DIVISOR, LINK_OUTPUT_BYTES_MAX, LINK_PENDING_MAX};
use proto::wire::reply::{self, Expected};
use proto::wire::{Header, request};
use proto::{DiskId, Duration, MemberError, MemberRequest, MemberToken, Payload, Time};
use std::collections::{BTreeMap, VecDeque};
use std::ops::Bound;

/// A request without an answer.
#[derive(Debug)]
struct Pending {
    token: MemberToken,
    disk: DiskId,
    request: MemberRequest,
    expected: Expected,
    /// What it counts for, in bytes.
    cost: u64,
    /// When it was sent on the present connection.
    sent: Option<Time>,
    /// Whether it was sent on an earlier one.
    sent_before: bool,
    /// Whether its answer is not wanted any more.
    cancelled: bool,
}

/// What one disk is asked. Goes when there is nothing.
#[derive(Debug, Default)]
struct Queue {
    /// Not sent on the present connection, in the order in which they were asked.
    waiting: VecDeque<u64>,
    /// In flight: requests and bytes.
    requests: u64,
    bytes: u64,
}

/// All requests to one peer.
#[derive(Debug)]
pub struct Asker {
    pending: BTreeMap<u64, Pending>,
    tokens: BTreeMap<MemberToken, u64>,
    queues: BTreeMap<DiskId, Queue>,
    /// The disk that was served last.
    turn: DiskId,
    next_id: u64,
    /// What the peer lets be in flight: requests and bytes.
    credit: (u64, u64),
    /// What is in flight.
    requests: u64,
    bytes: u64,
    /// Whether something may be sent that could not be before.
    changed: bool,
    /// Requests that were sent once more, in all.
    resent: u64,
}

impl Asker {
    pub fn new() -> Asker {
        Asker {
            pending: BTreeMap::new(),
            tokens: BTreeMap::new(),
            queues: BTreeMap::new(),
            turn: DiskId(0),
            next_id: 1,
            credit: (0, 0),
            requests: 0,
            bytes: 0,
            changed: false,
            resent: 0,
        }
    }

    /// Requests without an answer.
    pub fn pending(&self) -> usize {
        self.pending.len()
    }

    /// Requests that were sent once more, in all.
    pub fn resent(&self) -> u64 {
        self.resent
    }

    /// Takes a request.
    ///
    /// # Panics
    /// If its token is in flight.
    pub fn ask(
        &mut self,
        now: Time,
        token: MemberToken,
        disk: DiskId,
        request: MemberRequest,
        effects: &mut Vec<Effect>,
    ) {
        let vetted = match request::vet(&request) {
            Ok(()) if self.pending.len() >= LINK_PENDING_MAX => Err(MemberError::Busy),
            other => other,
        };
        if let Err(error) = vetted {
            let (promise, result) = (Duration::ZERO, Err(error));
            effects.push(Effect::Answered { token, asked_at: now, promise, result });
            return;
        }
        let id = self.next_id;
        self.next_id += 1;
        assert!(self.tokens.insert(token, id).is_none(), "{token:?} is in flight already");
        let (expected, cost) = (Expected::of(&request), request::cost(&request));
        let pending = Pending {
            token,
            disk,
            request,
            expected,
            cost,
            sent: None,
            sent_before: false,
            cancelled: false,
        };
        self.pending.insert(id, pending);
        self.queues.entry(disk).or_default().waiting.push_back(id);
        self.changed = true;
    }

    /// The answer is not wanted any more.
    pub fn cancel(&mut self, token: MemberToken) {
        let Some(id) = self.tokens.remove(&token) else { return };
        let pending = self.pending.get_mut(&id).expect("a token has its request");
        if pending.sent.is_some() {
            pending.cancelled = true;
            return;
        }
        let disk = pending.disk;
        self.pending.remove(&id);
        let queue = self.queues.get_mut(&disk).expect("a request has its disk");
        queue.waiting.retain(|&waiting| waiting != id);
        self.drop_if_idle(disk);
        self.changed = true;
    }

    /// A connection is there, with this credit.
    pub fn connected(&mut self, requests: u64, bytes: u64) {
        assert_eq!((self.requests, self.bytes), (0, 0));
        self.credit = (requests, bytes);
        self.changed = true;
    }

    /// The peer lets more be in flight.
    pub fn raise(&mut self, requests: u64, bytes: u64) -> Result<(), CloseReason> {
        if requests < self.credit.0 || bytes < self.credit.1 {
            return Err(CloseReason::Protocol("a credit that was given is taken back"));
        }
        self.credit = (requests, bytes);
        self.changed = true;
        Ok(())
    }

    /// The connection is gone: everything waits again, in the original order.
    pub fn disconnected(&mut self) {
        self.credit = (0, 0);
        (self.requests, self.bytes) = (0, 0);
        self.pending.retain(|_, pending| !pending.cancelled);
        self.queues.clear();
        for (&id, pending) in &mut self.pending {
            pending.sent_before |= pending.sent.take().is_some();
            self.queues.entry(pending.disk).or_default().waiting.push_back(id);
        }
    }

    /// The process that was asked is gone, or nobody is asked any more.
    pub fn forget(&mut self, effects: &mut Vec<Effect>) {
        self.disconnected();
        self.queues.clear();
        self.tokens.clear();
        let pending = std::mem::take(&mut self.pending);
        effects.extend(pending.into_values().map(|p| Effect::Forgotten { token: p.token }));
    }

    /// Sends what may be sent: of each disk in turn, until the output is long enough.
    pub fn pump(&mut self, now: Time, output: &mut Output) {
        while self.changed && output.unsent() < LINK_OUTPUT_BYTES_MAX {
            let Some(disk) = self.next_disk() else {
                self.changed = false;
                return;
            };
            self.turn = disk;
            let queue = self.queues.get_mut(&disk).expect("just found");
            let id = queue.waiting.pop_front().expect("it has something to send");
            let pending = self.pending.get_mut(&id).expect("what waits is pending");
            pending.sent = Some(now);
            self.resent += u64::from(pending.sent_before);
            queue.requests += 1;
            queue.bytes += pending.cost;
            self.requests += 1;
            self.bytes += pending.cost;
            let Pending { disk, request, .. } = pending;
            let mut payload = None;
            output.put(now, |out, seal| {
                payload = request::put(out, seal, id, *disk, request).cloned();
            });
            if let Some(payload) = payload {
                output.put_payload(now, payload);
            }
        }
    }

    /// The next disk, in turn, whose first request fits into the credit.
    fn next_disk(&self) -> Option<DiskId> {
        let after = (Bound::Excluded(self.turn), Bound::Unbounded);
        let before = (Bound::Unbounded, Bound::Included(self.turn));
        let in_turn = self.queues.range(after).chain(self.queues.range(before));
        in_turn.filter(|(_, queue)| self.may_send(queue)).map(|(&disk, _)| disk).next()
    }

    fn may_send(&self, queue: &Queue) -> bool {
        let Some(first) = queue.waiting.front() else { return false };
        let cost = self.pending[first].cost;
        let (requests, bytes) = self.credit;
        let fits = self.requests < requests && self.bytes + cost <= bytes;
        let share = (requests / LINK_DISK_SHARE_DIVISOR, bytes / LINK_DISK_SHARE_DIVISOR);
        let within = queue.requests < share.0 && queue.bytes + cost <= share.1;
        fits && (within || queue.requests == 0)
    }

    /// Whether a frame may be the answer to something; asked before memory is given to its payload.
    pub fn admit(&self, header: &Header) -> Result<(), CloseReason> {
        let pending = self.pending.get(&header.id).filter(|pending| pending.sent.is_some());
        let pending = pending.ok_or(CloseReason::Protocol("it answers what was not asked"))?;
        Ok(pending.expected.admit(header)?)
    }

    /// Takes a verified answer.
    pub fn take_reply(
        &mut self,
        header: &Header,
        body: &[u8],
        payload: Option<Payload>,
        effects: &mut Vec<Effect>,
    ) -> Result<(), CloseReason> {
        self.admit(header)?;
        let pending = &self.pending[&header.id];
        let reply = reply::decode(header, body, payload, &pending.expected)?;
        let pending = self.pending.remove(&header.id).expect("admitted");
        self.requests -= 1;
        self.bytes -= pending.cost;
        let queue = self.queues.get_mut(&pending.disk).expect("a request has its disk");
        queue.requests -= 1;
        queue.bytes -= pending.cost;
        self.drop_if_idle(pending.disk);
        self.changed = true;
        if !pending.cancelled {
            self.tokens.remove(&pending.token);
            let asked_at = pending.sent.expect("admitted");
            let (token, promise, result) = (pending.token, reply.promise, reply.result);
            effects.push(Effect::Answered { token, asked_at, promise, result });
        }
        Ok(())
    }

    fn drop_if_idle(&mut self, disk: DiskId) {
        let idle = self.queues.get(&disk).is_some_and(|q| q.waiting.is_empty() && q.requests == 0);
        if idle {
            self.queues.remove(&disk);
        }
    }

    /// Asserts what must hold between two events.
    pub fn check(&self) {
        assert!(self.pending.len() <= LINK_PENDING_MAX);
        let in_flight = || self.pending.values().filter(|pending| pending.sent.is_some());
        assert_eq!(self.requests, in_flight().count() as u64);
        assert_eq!(self.bytes, in_flight().map(|pending| pending.cost).sum::<u64>());
        assert!(self.requests <= self.credit.0 && self.bytes <= self.credit.1);
        let wanted = self.pending.values().filter(|pending| !pending.cancelled).count();
        assert_eq!(self.tokens.len(), wanted);
        let waiting: usize = self.queues.values().map(|queue| queue.waiting.len()).sum();
        assert_eq!(waiting + self.requests as usize, self.pending.len());
        for queue in self.queues.values() {
            assert!(queue.waiting.iter().is_sorted());
        }
    }
}
