//! Many requests in flight for one long piece of work: reads that come back in order, and writes.

use super::failure::Failure;
use crate::nbd_client::{Command, Extent, NbdClient, Outcome};
use std::collections::BTreeMap;

/// Requests kept in flight: enough to hide the way to the disk and back.
pub const DEPTH: usize = 32;
/// Bytes of one read or write.
pub const REQUEST_BYTES: u32 = 1 << 20;

/// A range of a volume, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Span {
    /// Where it starts.
    pub start: u64,
    /// Where it ends.
    pub end: u64,
}

impl Span {
    /// The span cut into pieces of at most `bytes`.
    pub fn pieces(self, bytes: u64) -> impl Iterator<Item = (u64, u64)> {
        let count = (self.end - self.start).div_ceil(bytes);
        (0..count).map(move |place| {
            let offset = self.start + place * bytes;
            (offset, (self.end - offset).min(bytes))
        })
    }

    /// The span cut into pieces that can be held in memory, of at most `bytes`.
    pub fn payloads(self, bytes: u32) -> impl Iterator<Item = (u64, u32)> {
        self.pieces(bytes.into()).map(|(offset, length)| (offset, length as u32))
    }
}

/// Reads the spans, many requests at a time, and hands their content over in order.
pub fn read_in_order(
    client: &mut NbdClient,
    spans: &[Span],
    mut take: impl FnMut(u64, &[u8]) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let step = REQUEST_BYTES.min(client.export().payload_max);
    let mut wanted = spans.iter().flat_map(|span| span.payloads(step));
    let mut arrived: BTreeMap<u64, (u64, Vec<u8>)> = BTreeMap::new();
    // Cookies grow by one, so the next to hand over is known by number.
    let mut next = None;
    let mut asked = 0usize;
    loop {
        // What has arrived early counts too: it is held in memory.
        while asked < DEPTH {
            let Some((offset, length)) = wanted.next() else { break };
            let cookie = client.submit(Command::Read { offset, length })?;
            next.get_or_insert(cookie);
            asked += 1;
        }
        let Some(reply) = client.wait()? else { return Ok(()) };
        let Outcome::Data(data) = reply.result? else { return Err(Failure::mismatch()) };
        arrived.insert(reply.cookie, (reply.offset, data));
        while let Some((offset, data)) = next.and_then(|cookie| arrived.remove(&cookie)) {
            take(offset, &data)?;
            next = next.map(|cookie| cookie + 1);
            asked -= 1;
        }
    }
}

/// Sends a command once there is room, and reports the first failure of those before it. It is
/// sent whole: where the next comes from may bring nothing for long, and the daemon does not wait
/// that long for the rest of a request.
pub fn submit(client: &mut NbdClient, command: Command) -> Result<(), Failure> {
    while client.in_flight() >= DEPTH {
        settle_one(client)?;
    }
    client.submit(command)?;
    Ok(client.push()?)
}

/// Waits for all that was submitted.
pub fn settle(client: &mut NbdClient) -> Result<(), Failure> {
    while client.in_flight() > 0 {
        settle_one(client)?;
    }
    Ok(())
}

fn settle_one(client: &mut NbdClient) -> Result<(), Failure> {
    if let Some(reply) = client.wait()? {
        reply.result?;
    }
    Ok(())
}

/// The block status of a span, whole: neighbours of the same kind are one.
pub fn status(client: &mut NbdClient, span: Span) -> Result<Vec<Extent>, Failure> {
    let mut extents: Vec<Extent> = Vec::new();
    let mut position = span.start;
    while position < span.end {
        let length = (span.end - position).min(client.export().range_max());
        let told = if client.export().context.is_some() {
            client.call(Command::Status { offset: position, length })?
        } else {
            // A server without block status: all may be data.
            Outcome::Status(vec![Extent { length, hole: false, zero: false }])
        };
        let Outcome::Status(told) = told else { return Err(Failure::mismatch()) };
        for extent in told {
            position += extent.length;
            match extents.last_mut() {
                Some(last) if last.hole == extent.hole && last.zero == extent.zero => {
                    last.length += extent.length;
                }
                _ => extents.push(extent),
            }
        }
    }
    Ok(extents)
}
