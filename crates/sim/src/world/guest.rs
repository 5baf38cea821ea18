//! Guests: what uses a volume, request by request, and remembers what it was told.

use super::mix::GuestMix;
use crate::{
    oracle::{Action, OperationId, Oracle, Violation},
    random::Random,
};
use engine::ConnectionId;
use proto::{BLOCK_SIZE, Buffer, OBJECT_SIZE, Payload, SECTOR_SIZE, Time};
use std::collections::BTreeMap;
use volume::{Completion, Operation, Request, RequestId};

/// What a guest has of its volume.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Link {
    /// Nothing: it will connect again.
    None,
    /// It asked for the volume.
    Opening(ConnectionId),
    /// It uses the volume.
    Open(ConnectionId),
    /// It asks for nothing more, and closes when the last answer has come.
    Closing(ConnectionId),
}

/// A request in flight.
#[derive(Clone, Copy, Debug)]
pub struct InFlight {
    /// How the oracle calls it; nothing where there is nothing to judge.
    pub operation: Option<OperationId>,
    /// What it does.
    pub action: Action,
    /// Whether its answer promises that it is durable.
    pub fua: bool,
}

/// One guest and its volume.
pub struct Guest {
    /// The volume's id.
    pub volume: u64,
    /// The volume's name.
    pub name: String,
    /// The size the guest goes by, in bytes: never more than the volume has.
    pub bytes: u64,
    /// What it has of its volume.
    pub link: Link,
    /// Its requests in flight.
    pub in_flight: BTreeMap<RequestId, InFlight>,
    /// When it does something next.
    pub next_at: Time,
    /// Whether it is or was a clone, or had snapshots: what it uses is not what it shows.
    pub has_layers: bool,
    /// Whether every change that is acknowledged is stable, by what its volume promises.
    pub is_stable: bool,
    next_request: u64,
}

/// Blocks of one hot place: guests write where others write.
const HOT_BLOCKS: u64 = 12;

impl Guest {
    /// A guest that is not connected.
    pub fn new(volume: u64, name: String, bytes: u64) -> Guest {
        Guest {
            volume,
            name,
            bytes,
            link: Link::None,
            in_flight: BTreeMap::new(),
            next_at: Time(0),
            has_layers: false,
            is_stable: false,
            next_request: 0,
        }
    }

    /// Its connection, whatever it is for.
    pub fn connection(&self) -> Option<ConnectionId> {
        match self.link {
            Link::None => None,
            Link::Opening(connection) | Link::Open(connection) | Link::Closing(connection) => {
                Some(connection)
            }
        }
    }

    /// The process is gone: nothing is connected, nothing in flight.
    pub fn forget(&mut self) {
        self.link = Link::None;
        self.in_flight.clear();
    }

    /// What it has in flight is not judged any more, whatever the answers: gives back how the
    /// oracle calls it.
    pub fn disown(&mut self) -> Vec<OperationId> {
        self.in_flight.values_mut().filter_map(|request| request.operation.take()).collect()
    }

    /// The next request, booked with the oracle; nothing if it would overlap too many others.
    pub fn next(
        &mut self,
        mix: &GuestMix,
        random: &mut Random,
        oracle: &mut Oracle,
    ) -> Option<Request> {
        let kind = random.weighted(&[
            mix.write,
            mix.write_unaligned,
            mix.write_zero_data,
            mix.read,
            mix.flush,
            mix.discard,
            mix.zero,
            mix.status,
        ]);
        let whole = kind == 0 || random.coin();
        let (offset, length) = self.place(random, whole);
        let fua = random.chance(60_000);
        match kind {
            0 | 1 => self.write(oracle, offset, length, fua),
            2 => self.write_zero_data(oracle, offset, length, fua),
            3 => Some(self.read(oracle, offset, length)),
            4 => Some(self.flush(oracle)),
            5 => {
                let operation = Operation::Discard { fua };
                self.change(oracle, Action::Discard, offset, length, fua, operation)
            }
            6 => {
                let may_unmap = random.chance(800_000);
                let operation = Operation::WriteZeroes { may_unmap, fast_only: false, fua };
                self.change(oracle, Action::Zero, offset, length, fua, operation)
            }
            _ => Some(self.request(offset, length, Operation::Status, None, Action::Read, false)),
        }
    }

    /// A read of this range.
    pub fn read(&mut self, oracle: &mut Oracle, offset: u64, length: u64) -> Request {
        let id = oracle.invoke(self.volume, 0, Action::Read, offset, length);
        self.request(offset, length, Operation::Read, Some(id), Action::Read, false)
    }

    /// Books the end of a request.
    pub fn ended(
        &mut self,
        id: RequestId,
        result: Result<Completion, volume::Error>,
        oracle: &mut Oracle,
    ) -> Result<Outcome, Violation> {
        let Some(request) = self.in_flight.remove(&id) else {
            panic!("request {id:?} was answered twice or never asked");
        };
        let Some(operation) = request.operation else { return Ok(Outcome::Done) };
        match result {
            Err(error) => {
                // Of a read or flush that failed nothing is known; a change stays pending until
                // its session is gone: the disk may still have it.
                if matches!(request.action, Action::Read | Action::Flush) {
                    oracle.failed(operation);
                }
                return Ok(Outcome::Failed(error));
            }
            Ok(Completion::Data(payloads)) => {
                assert_eq!(request.action, Action::Read, "only reads bring data");
                let bytes = Payload::joined(&payloads);
                oracle.ok_read(operation, &bytes)?;
            }
            Ok(Completion::Done) => oracle.ok(operation, request.fua || self.is_stable),
            Ok(Completion::Status(_) | Completion::Difference(_)) => {
                panic!("guests ask for no states and differences")
            }
        }
        Ok(Outcome::Done)
    }

    fn flush(&mut self, oracle: &mut Oracle) -> Request {
        let id = oracle.invoke(self.volume, 0, Action::Flush, 0, 0);
        self.request(0, 0, Operation::Flush, Some(id), Action::Flush, false)
    }

    fn write(
        &mut self,
        oracle: &mut Oracle,
        offset: u64,
        length: u64,
        fua: bool,
    ) -> Option<Request> {
        if oracle.is_crowded(self.volume, offset, length) {
            return None;
        }
        let id = oracle.invoke(self.volume, 0, Action::Write, offset, length);
        let (mut buffer, inside) = covering(offset, length);
        oracle.fill(id, &mut buffer.as_mut_slice()[inside..inside + length as usize]);
        let operation = Operation::Write { buffer, fua };
        Some(self.request(offset, length, operation, Some(id), Action::Write, fua))
    }

    fn write_zero_data(
        &mut self,
        oracle: &mut Oracle,
        offset: u64,
        length: u64,
        fua: bool,
    ) -> Option<Request> {
        let (mut buffer, inside) = covering(offset, length);
        buffer.as_mut_slice()[inside..inside + length as usize].fill(0);
        let operation = Operation::Write { buffer, fua };
        self.change(oracle, Action::Zero, offset, length, fua, operation)
    }

    fn change(
        &mut self,
        oracle: &mut Oracle,
        action: Action,
        offset: u64,
        length: u64,
        fua: bool,
        operation: Operation,
    ) -> Option<Request> {
        if oracle.is_crowded(self.volume, offset, length) {
            return None;
        }
        let id = oracle.invoke(self.volume, 0, action, offset, length);
        Some(self.request(offset, length, operation, Some(id), action, fua))
    }

    fn request(
        &mut self,
        offset: u64,
        length: u64,
        operation: Operation,
        booked: Option<OperationId>,
        action: Action,
        fua: bool,
    ) -> Request {
        self.next_request += 1;
        let id = RequestId(self.next_request);
        self.in_flight.insert(id, InFlight { operation: booked, action, fua });
        Request { id, offset, length, operation }
    }

    /// Where the next request goes: mostly to few hot places, one of them across two objects.
    fn place(&self, random: &mut Random, whole: bool) -> (u64, u64) {
        let unit = if whole { BLOCK_SIZE as u64 } else { SECTOR_SIZE as u64 };
        let hot = HOT_BLOCKS * BLOCK_SIZE as u64;
        if random.chance(10_000) {
            let length = (random.between(1, 512) * BLOCK_SIZE as u64).min(self.bytes);
            let offset = random.below(self.bytes - length + 1);
            return (offset - offset % unit, length);
        }
        let starts =
            [0, (OBJECT_SIZE as u64).saturating_sub(hot / 2), self.bytes.saturating_sub(hot)];
        let start = (*random.pick(&starts)).min(self.bytes.saturating_sub(hot));
        let units = hot.min(self.bytes - start) / unit;
        let first = random.below(units);
        let most = (units - first).min(if random.coin() { 3 } else { units });
        (start + first * unit, random.between(1, most) * unit)
    }
}

/// How a request ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// As asked.
    Done,
    /// Not, and why.
    Failed(volume::Error),
}

/// Memory for a write, with foreign bytes around the guest's own, and where those begin.
fn covering(offset: u64, length: u64) -> (Buffer, usize) {
    let block = BLOCK_SIZE as u64;
    let start = offset - offset % block;
    let end = (offset + length).next_multiple_of(block);
    let mut buffer = Buffer::stale((end - start) as usize);
    buffer.as_mut_slice().fill(0xa5);
    (buffer, (offset - start) as usize)
}
