//! Writes under which something else is tested: a client that stamps what it writes and remembers
//! what was acknowledged when, and a judge of what is read later, such as from a snapshot.
//!
//! The volume is divided into units, of one block each in the front and of a quarter of a block
//! behind that. One write at a time is in flight for a unit, many for the volume. Each write has a
//! serial number, which is also the time it was sent; times are counted, not measured. What is
//! measured is how long a client waits for its answers.

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
/// The error of an attachment that has ended. Whether what it answers was done, nobody knows.
const SHUTDOWN: u32 = 108;
/// A flush is no write of a unit.
const FLUSH_COOKIE: u64 = u64::MAX;
/// Set in the cookie of a read of a unit.
const READ_COOKIE: u64 = 1 << 32;

/// A time, in events of this process. Every write gets one when it is sent and one when it is
/// acknowledged.
pub type Moment = u64;
/// Later than everything.
pub const NEVER: Moment = Moment::MAX;

/// A client that goes on writing until it is stopped. It connects again when the server goes away.
pub struct Load {
    clock: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    /// The server is not expected to come back.
    is_over: Arc<AtomicBool>,
    /// The longest time an answer took, in microseconds, since it was last asked for.
    longest_us: Arc<AtomicU64>,
    thread: JoinHandle<Result<History>>,
}

/// All that was written.
pub struct History {
    /// How often the client was connected. What was in flight when a connection ended, nobody
    /// knows whether it was done.
    connections: u32,
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
        Load::begin(socket, export, base, false)
    }

    /// Begins to write to a volume that contains `base`, and to read: each unit must show the last
    /// of its writes that was acknowledged.
    pub fn start_with_reads(socket: &Path, export: &str, base: Vec<u8>) -> Load {
        Load::begin(socket, export, base, true)
    }

    fn begin(socket: &Path, export: &str, base: Vec<u8>, reads: bool) -> Load {
        assert!(base.len() >= COVERED, "the volume is too small");
        let (clock, longest_us) = (Arc::new(AtomicU64::new(1)), Arc::new(AtomicU64::new(0)));
        let (stop, is_over) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let mut writer = Writer {
            socket: socket.to_owned(),
            export: export.to_owned(),
            clock: clock.clone(),
            longest_us: longest_us.clone(),
            is_over: is_over.clone(),
            reads,
            history: History {
                connections: 0,
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
        Load { clock, stop, is_over, longest_us, thread }
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

    /// The longest time an answer took since this was last asked, or since the beginning. What is
    /// in flight counts once it is answered.
    pub fn longest_wait(&self) -> Duration {
        Duration::from_micros(self.longest_us.swap(0, SeqCst))
    }

    /// Ends where the server is gone for good: nobody knows what became of what was in flight.
    pub fn give_up(self) -> Result<History> {
        self.is_over.store(true, SeqCst);
        self.stop()
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
    longest_us: Arc<AtomicU64>,
    is_over: Arc<AtomicBool>,
    /// Whether it reads too.
    reads: bool,
    history: History,
    /// Units, what is in flight for each, and since when.
    in_flight: BTreeMap<usize, (InFlight, Instant)>,
    random: u64,
}

/// What is in flight for a unit.
#[derive(Clone, Copy)]
enum InFlight {
    /// This one of its writes.
    Write(usize),
    Read,
}

impl Writer {
    fn run(&mut self, stop: &AtomicBool) -> Result<()> {
        let mut away_since = None;
        loop {
            match self.serve(stop) {
                Ok(()) => return Ok(()),
                Err(Trouble::Away(_)) if self.is_over.load(SeqCst) => return Ok(()),
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
        self.history.connections += 1;
        let mut flushing = None;
        loop {
            while self.in_flight.len() < DEPTH && !stop.load(SeqCst) {
                self.send_one(&mut peer, &mut flushing).map_err(Trouble::Away)?;
            }
            if self.in_flight.is_empty() && flushing.is_none() {
                return Ok(());
            }
            let (error, cookie) = peer.reply().map_err(Trouble::Away)?;
            if error == SHUTDOWN {
                let text = "another client has the volume";
                return Err(Trouble::Away(anyhow::anyhow!(text)));
            }
            if error != 0 {
                let text = format!("request {cookie} of the load fails with error {error}");
                return Err(Trouble::Refused(anyhow::anyhow!(text)));
            }
            if cookie == FLUSH_COOKIE {
                let sent = flushing.take().context("a reply to no flush");
                let (sent, begin) = sent.map_err(Trouble::Refused)?;
                let answered = self.clock.fetch_add(1, SeqCst);
                self.history.flushes.push((sent, answered));
                self.took(begin);
                continue;
            }
            let unit = (cookie & !READ_COOKIE) as usize;
            let known = self.in_flight.remove(&unit);
            let (what, begin) = known.context("a reply to nothing").map_err(Trouble::Refused)?;
            match what {
                InFlight::Write(place) => {
                    let now = self.clock.fetch_add(1, SeqCst);
                    self.history.units[unit][place].acknowledged = now;
                }
                InFlight::Read => {
                    let (_, length) = place_of(unit);
                    let content = peer.payload(length).map_err(Trouble::Away)?;
                    self.history.check_read(unit, &content).map_err(Trouble::Refused)?;
                }
            }
            self.took(begin);
        }
    }

    fn took(&self, begin: Instant) {
        self.longest_us.fetch_max(begin.elapsed().as_micros() as u64, SeqCst);
    }

    fn send_one(
        &mut self,
        peer: &mut Peer,
        flushing: &mut Option<(Moment, Instant)>,
    ) -> Result<()> {
        let choice = self.next_random();
        if choice.is_multiple_of(128) && flushing.is_none() {
            *flushing = Some((self.clock.fetch_add(1, SeqCst), Instant::now()));
            return peer.request(command::FLUSH, FLUSH_COOKIE, 0, 0);
        }
        let unit = (self.next_random() % (BLOCKS + QUARTERS) as u64) as usize;
        if self.in_flight.contains_key(&unit) {
            return Ok(());
        }
        let (offset, length) = place_of(unit);
        if self.reads && choice % 8 == 3 {
            let (offset, length) = (offset as u64, length as u32);
            self.in_flight.insert(unit, (InFlight::Read, Instant::now()));
            return peer.request(command::READ, unit as u64 | READ_COOKIE, offset, length);
        }
        let zero = choice % 8 == 1;
        let sent = self.clock.fetch_add(1, SeqCst);
        let write = InFlight::Write(self.history.units[unit].len());
        self.in_flight.insert(unit, (write, Instant::now()));
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

    /// How often the client was connected.
    pub fn connections(&self) -> u32 {
        self.connections
    }

    /// Whether a unit for which nothing was in flight may look like this: as the last of its writes
    /// that was acknowledged left it, or one after that of which nobody knows whether it was done.
    fn check_read(&self, unit: usize, content: &[u8]) -> Result<()> {
        let (offset, length) = place_of(unit);
        let last = self.units[unit].iter().rfind(|write| write.acknowledged != NEVER);
        // Nearly always; all others are looked through.
        let is_last = match last {
            None => *content == self.base[offset..offset + length],
            Some(write) if write.zero => content.iter().all(|&byte| byte == 0),
            Some(write) => content == stamped(unit, write.sent),
        };
        if is_last {
            return Ok(());
        }
        let least = last.map_or(0, |write| write.sent);
        let states = self.states(unit, content, NEVER)?;
        ensure!(
            states.iter().any(|state| state.map_or(0, |write| write.sent) >= least),
            "a read of unit {unit} shows {states:?}, but {last:?} was acknowledged before"
        );
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
        History { connections: 1, base: vec![0; COVERED], units, flushes: Vec::new() }
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
    fn a_read_shows_the_last_that_was_acknowledged_or_what_nobody_knows() {
        let history = history(&[
            (0, write(1, 2)),
            (0, write(3, 4)),
            (1, write(5, 6)),
            (1, write(7, NEVER)),
            (2, write(9, NEVER)),
        ]);
        let check = |unit, content: &[u8], good: bool| {
            let result = history.check_read(unit, content);
            assert_eq!(result.is_ok(), good, "{unit}: {result:?}");
        };
        check(0, &stamped(0, 3), true);
        check(0, &stamped(0, 1), false); // an older one
        check(0, &[0; BLOCK], false); // lost
        check(1, &stamped(1, 5), true);
        check(1, &stamped(1, 7), true);
        check(1, &[0; BLOCK], false);
        check(2, &[0; BLOCK], true);
        check(2, &stamped(2, 9), true);
        check(2, &stamped(2, 8), false); // never written
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
