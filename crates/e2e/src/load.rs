//! Writes under which something else is tested: a client that stamps what it writes and remembers
//! what was acknowledged when, and a judge of what is read later, such as from a snapshot.
//!
//! The volume is divided into units, of one block each in the front and of a quarter of a block
//! behind that. One write at a time is in flight for a unit, many for the volume. Each write has a
//! serial number, which is also the time it was sent; times are counted, not measured.

use crate::nbd::{Peer, command};
use anyhow::{Context, Result, bail, ensure};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const BLOCK: usize = 4096;
const QUARTER: usize = 1024;
/// Units of a block each.
const BLOCKS: usize = 2048;
/// Units of a quarter of a block, behind them.
const QUARTERS: usize = 1024;
/// What the units cover; a volume must be at least as large.
const COVERED: usize = BLOCKS * BLOCK + QUARTERS * QUARTER;
/// Writes in flight.
const DEPTH: usize = 16;
/// How long a server may be away.
const RECONNECT_LIMIT: Duration = Duration::from_secs(30);
/// A flush is no write of a unit.
const FLUSH_COOKIE: u64 = u64::MAX;

/// A time, in events of this process. Every write gets one when it is sent and one when it is
/// acknowledged.
pub type Moment = u64;
/// Later than everything.
pub const NEVER: Moment = Moment::MAX;

/// A client that goes on writing until it is stopped. It connects again when the server goes away.
pub struct Load {
    clock: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<History>>,
}

/// All that was written.
pub struct History {
    /// What the volume contained before.
    base: Vec<u8>,
    /// The writes of each unit, in their order.
    units: Vec<Vec<Write>>,
    /// When each flush that was answered was sent, and when it was answered.
    flushes: Vec<(Moment, Moment)>,
}

#[derive(Clone, Copy, Debug)]
struct Write {
    /// When it was sent; also its stamp.
    sent: Moment,
    /// When it was acknowledged. `NEVER`: nobody knows whether it was done.
    acknowledged: Moment,
    /// Whether it made zeros of the unit instead of stamping it.
    zero: bool,
}

impl Load {
    /// Begins to write to a volume that contains `base`.
    pub fn start(socket: &Path, export: &str, base: Vec<u8>) -> Load {
        assert!(base.len() >= COVERED, "the volume is too small");
        let (clock, stop) = (Arc::new(AtomicU64::new(1)), Arc::new(AtomicBool::new(false)));
        let mut writer = Writer {
            socket: socket.to_owned(),
            export: export.to_owned(),
            clock: clock.clone(),
            history: History {
                base,
                units: vec![Vec::new(); BLOCKS + QUARTERS],
                flushes: Vec::new(),
            },
            in_flight: BTreeMap::new(),
            random: 0x9e37_79b9_7f4a_7c15,
        };
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            writer.run(&stopped)?;
            Ok(writer.history)
        });
        Load { clock, stop, thread }
    }

    /// Now.
    pub fn moment(&self) -> Moment {
        self.clock.fetch_add(1, SeqCst)
    }

    /// Waits until so much more was sent and acknowledged.
    pub fn wait_for_writes(&self, count: u64) -> Result<()> {
        let (wanted, deadline) = (self.moment() + 2 * count, Instant::now() + RECONNECT_LIMIT);
        while self.clock.load(SeqCst) < wanted {
            ensure!(!self.thread.is_finished(), "the writing client ended by itself");
            ensure!(Instant::now() < deadline, "nothing more is written");
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    /// Waits for what is in flight and detaches.
    pub fn stop(self) -> Result<History> {
        self.stop.store(true, SeqCst);
        self.thread.join().map_err(|_| anyhow::anyhow!("the writing client panicked"))?
    }
}

struct Writer {
    socket: PathBuf,
    export: String,
    clock: Arc<AtomicU64>,
    history: History,
    /// Units, and which of their writes is in flight.
    in_flight: BTreeMap<usize, usize>,
    random: u64,
}

impl Writer {
    fn run(&mut self, stop: &AtomicBool) -> Result<()> {
        let mut away_since = None;
        loop {
            match self.serve(stop) {
                Ok(()) => return Ok(()),
                Err(Trouble::Away(error)) => {
                    let now = Instant::now();
                    let since = *away_since.get_or_insert(now);
                    if !self.in_flight.is_empty() {
                        away_since = None; // it was there
                    } else if now.duration_since(since) > RECONNECT_LIMIT {
                        return Err(error);
                    }
                    // Whether these were done, nobody can say.
                    self.in_flight.clear();
                    std::thread::sleep(Duration::from_millis(5));
                }
                Err(Trouble::Refused(error)) => return Err(error),
            }
        }
    }

    /// Writes over one connection until that ends, or the work does.
    fn serve(&mut self, stop: &AtomicBool) -> Result<(), Trouble> {
        let mut peer = Peer::unix(&self.socket).map_err(Trouble::Away)?;
        peer.greet().map_err(Trouble::Away)?;
        let size = peer.go(&self.export).map_err(Trouble::Away)?;
        // Right after a start, or while the last session ends, it may be refused for a moment.
        let size = size.map_err(|refusal| Trouble::Away(anyhow::anyhow!(refusal.0)))?;
        if size != self.history.base.len() as u64 {
            return Err(Trouble::Refused(anyhow::anyhow!("the volume has {size} bytes")));
        }
        let mut flushing = None;
        loop {
            while self.in_flight.len() < DEPTH && !stop.load(SeqCst) {
                self.send_one(&mut peer, &mut flushing).map_err(Trouble::Away)?;
            }
            if self.in_flight.is_empty() && flushing.is_none() {
                return Ok(());
            }
            let (error, cookie) = peer.reply().map_err(Trouble::Away)?;
            if error != 0 {
                let text = format!("request {cookie} of the load fails with error {error}");
                return Err(Trouble::Refused(anyhow::anyhow!(text)));
            }
            if cookie == FLUSH_COOKIE {
                let sent = flushing.take().context("a reply to no flush");
                let answered = self.clock.fetch_add(1, SeqCst);
                self.history.flushes.push((sent.map_err(Trouble::Refused)?, answered));
                continue;
            }
            let unit = cookie as usize;
            let place = self.in_flight.remove(&unit);
            let place = place.context("a reply to nothing").map_err(Trouble::Refused)?;
            self.history.units[unit][place].acknowledged = self.clock.fetch_add(1, SeqCst);
        }
    }

    fn send_one(&mut self, peer: &mut Peer, flushing: &mut Option<Moment>) -> Result<()> {
        let choice = self.next_random();
        if choice.is_multiple_of(128) && flushing.is_none() {
            *flushing = Some(self.clock.fetch_add(1, SeqCst));
            return peer.request(command::FLUSH, FLUSH_COOKIE, 0, 0);
        }
        let unit = (self.next_random() % (BLOCKS + QUARTERS) as u64) as usize;
        if self.in_flight.contains_key(&unit) {
            return Ok(());
        }
        let (offset, length) = place_of(unit);
        let zero = choice % 8 == 1;
        let sent = self.clock.fetch_add(1, SeqCst);
        self.in_flight.insert(unit, self.history.units[unit].len());
        self.history.units[unit].push(Write { sent, acknowledged: NEVER, zero });
        let (offset, length, cookie) = (offset as u64, length as u32, unit as u64);
        match zero {
            // Whole blocks that are discarded read as zeros here.
            true if choice % 16 == 1 && unit < BLOCKS => {
                peer.request(command::TRIM, cookie, offset, length)
            }
            true => peer.request(command::WRITE_ZEROES, cookie, offset, length),
            false => {
                peer.request(command::WRITE, cookie, offset, length)?;
                peer.send(&stamped(unit, sent))
            }
        }
    }

    fn next_random(&mut self) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random >> 8
    }
}

/// Why a connection of the load ended.
enum Trouble {
    /// The server is gone; it may come back.
    Away(anyhow::Error),
    /// The server does not do what it should.
    Refused(anyhow::Error),
}

/// Offset and length of a unit.
fn place_of(unit: usize) -> (usize, usize) {
    match unit.checked_sub(BLOCKS) {
        None => (unit * BLOCK, BLOCK),
        Some(quarter) => (BLOCKS * BLOCK + quarter * QUARTER, QUARTER),
    }
}

/// What a write puts into a unit.
fn stamped(unit: usize, sent: Moment) -> Vec<u8> {
    let (_, length) = place_of(unit);
    let stamp = [(unit as u64 + 1).to_le_bytes(), sent.to_le_bytes()].concat();
    stamp.repeat(length / stamp.len())
}

impl History {
    /// Whether `content` is what the volume was at one moment between two: nothing that was
    /// acknowledged before the first is missing, nothing sent after the second is there, and if
    /// something is there, so is all that was acknowledged before it was sent.
    pub fn check(&self, content: &[u8], from: Moment, to: Moment) -> Result<()> {
        ensure!(content.len() == self.base.len(), "it has {} bytes", content.len());
        ensure!(content[COVERED..] == self.base[COVERED..], "bytes changed that nobody wrote");
        // What was acknowledged before this must be there.
        let mut past = from;
        let mut found = Vec::new();
        for unit in 0..self.units.len() {
            let (offset, length) = place_of(unit);
            let states = self.states(unit, &content[offset..offset + length], to)?;
            if let [Some(Write { sent, .. })] = states[..] {
                past = past.max(sent);
            }
            found.push(states);
        }
        for (unit, states) in found.iter().enumerate() {
            let missing = |state: &Option<Write>| {
                let sent = state.map_or(0, |write| write.sent);
                let mut later = self.units[unit].iter().filter(|write| write.sent > sent);
                later.find(|write| write.acknowledged < past)
            };
            if states.iter().all(|state| missing(state).is_some()) {
                let state = states.last().context("a unit is in some state")?;
                bail!(
                    "unit {unit} shows {state:?}, but {:?} was acknowledged before {past} (looked \
                     at between {from} and {to})",
                    missing(state)
                );
            }
        }
        Ok(())
    }

    /// Whether `content` is what the volume must contain now.
    pub fn check_latest(&self, content: &[u8]) -> Result<()> {
        self.check(content, NEVER - 1, NEVER)
    }

    /// Whether `content` may be found after a power cut between two moments: all that was flushed
    /// before the first or something later, and nothing sent after the second. Each unit for
    /// itself: of what was not flushed some may be lost and some not.
    pub fn check_power_cut(&self, content: &[u8], from: Moment, to: Moment) -> Result<()> {
        ensure!(content.len() == self.base.len(), "it has {} bytes", content.len());
        let answered = self.flushes.iter().filter(|(_, answered)| *answered < from);
        let flushed = answered.map(|(sent, _)| *sent).max().unwrap_or(0);
        for unit in 0..self.units.len() {
            let (offset, length) = place_of(unit);
            let found = self.states(unit, &content[offset..offset + length], to)?;
            let durable = self.units[unit].iter().rfind(|write| write.acknowledged < flushed);
            let durable = durable.map_or(0, |write| write.sent);
            ensure!(
                found.iter().any(|state| state.map_or(0, |write| write.sent) >= durable),
                "unit {unit} shows {found:?}, but what was sent at {durable} was flushed before \
                 {from}"
            );
        }
        Ok(())
    }

    /// After which of its writes a unit looks like this; nothing: before the first.
    fn states(&self, unit: usize, content: &[u8], to: Moment) -> Result<Vec<Option<Write>>> {
        let (offset, length) = place_of(unit);
        let mut states = Vec::new();
        if *content == self.base[offset..offset + length] {
            states.push(None);
        }
        let is_zero = content.iter().all(|&byte| byte == 0);
        for write in self.units[unit].iter().filter(|write| write.sent < to) {
            let same = if write.zero { is_zero } else { content == stamped(unit, write.sent) };
            if same {
                states.push(Some(*write));
            }
        }
        let (head, _) = content.split_at(16);
        ensure!(!states.is_empty(), "unit {unit} shows what nobody wrote by then: {head:02x?}");
        Ok(states)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(sent: Moment, acknowledged: Moment) -> Write {
        Write { sent, acknowledged, zero: false }
    }

    fn history(writes: &[(usize, Write)]) -> History {
        let mut units = vec![Vec::new(); BLOCKS + QUARTERS];
        for (unit, write) in writes {
            units[*unit].push(*write);
        }
        History { base: vec![0; COVERED], units, flushes: Vec::new() }
    }

    fn content(stamps: &[(usize, Moment)]) -> Vec<u8> {
        let mut content = vec![0; COVERED];
        for &(unit, sent) in stamps {
            let (offset, length) = place_of(unit);
            content[offset..offset + length].copy_from_slice(&stamped(unit, sent));
        }
        content
    }

    #[test]
    fn only_points_in_time_between_the_two_moments_pass() {
        let small = BLOCKS + 3;
        let zeroed = Write { zero: true, ..write(30, 31) };
        let history = history(&[
            (0, write(1, 2)),
            (0, write(10, 20)),
            (1, write(11, 12)),
            (small, write(21, 22)),
            (small, zeroed),
        ]);
        let check = |stamps: &[(usize, Moment)], from, to, good: bool| {
            let result = history.check(&content(stamps), from, to);
            assert_eq!(result.is_ok(), good, "{stamps:?} {from} {to}: {result:?}");
        };
        check(&[], 0, 40, true);
        check(&[(0, 1)], 3, 40, true);
        check(&[], 3, 40, false); // acknowledged before
        check(&[(0, 1), (1, 11)], 3, 40, true); // 10 and 11 overlap
        check(&[(0, 1), (small, 21)], 3, 40, false); // 10 and 11 were done when 21 was sent
        check(&[(0, 10), (1, 11), (small, 21)], 3, 40, true);
        check(&[(0, 10), (1, 11), (small, 21)], 3, 21, false); // sent afterwards
        check(&[(0, 10), (1, 11)], 32, 40, true); // zeroed again
        check(&[(0, 10), (1, 11), (small, 21)], 32, 40, false); // not zeroed
        check(&[(0, 5)], 0, 40, false); // never written
        assert!(history.check_latest(&content(&[(0, 10), (1, 11)])).is_ok());
        assert!(history.check_latest(&content(&[(0, 1), (1, 11)])).is_err());
    }

    #[test]
    fn a_power_cut_may_take_what_was_not_flushed_and_nothing_else() {
        let mut history = history(&[(0, write(1, 2)), (0, write(5, 6)), (1, write(7, 8))]);
        history.flushes.push((3, 4));
        let check = |history: &History, stamps: &[(usize, Moment)], from, good: bool| {
            let result = history.check_power_cut(&content(stamps), from, 20);
            assert_eq!(result.is_ok(), good, "{stamps:?} {from}: {result:?}");
        };
        check(&history, &[(0, 1)], 10, true);
        check(&history, &[(0, 5)], 10, true);
        check(&history, &[(0, 1), (1, 7)], 10, true); // the later one survived, the earlier not
        check(&history, &[], 10, false);
        check(&history, &[], 4, true); // the flush was not answered yet
        history.flushes.push((9, 10));
        check(&history, &[(0, 1), (1, 7)], 11, false);
        check(&history, &[(0, 5), (1, 7)], 11, true);
        check(&history, &[(0, 5)], 11, false);
    }

    #[test]
    fn half_a_write_and_the_place_of_another_are_noticed() {
        let history = history(&[(0, write(1, 2)), (1, write(3, 4))]);
        let mut torn = content(&[(0, 1), (1, 3)]);
        assert!(history.check_latest(&torn).is_ok());
        torn[BLOCK - 16..BLOCK].fill(0);
        assert!(history.check_latest(&torn).is_err());
        let mut misplaced = content(&[(0, 1)]);
        misplaced[BLOCK..2 * BLOCK].copy_from_slice(&stamped(0, 1));
        assert!(history.check_latest(&misplaced).is_err());
    }
}
