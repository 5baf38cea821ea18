//! The driver of the node's media: performs [`DiskOp`]s with io_uring, or with threads where that
//! is not to be had, and never blocks the thread that asks.

mod device;
mod medium;
mod operation;
mod pool;
mod ring;
#[cfg(test)]
mod tests;

pub(crate) use medium::patiently;
pub use medium::{Medium, OpenHow};

use mio::{Events, Interest, Poll, Registry, Token, unix::SourceFd};
use operation::{Operation, Step};
use pool::Pool;
use proto::{DiskDone, DiskOp, limits::NODE_DISKS_MAX};
use ring::Ring;
use std::{
    collections::VecDeque,
    io,
    os::fd::{AsFd, AsRawFd},
    sync::Arc,
    time::Duration,
};

/// How operations are performed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Performer {
    /// With io_uring if this machine has it, else with threads.
    Auto,
    /// With io_uring, or not at all.
    Ring,
    /// With threads.
    Threads,
}

/// Media that a driver has at most: the journal and the disks.
const MEDIA_MAX: usize = 1 + NODE_DISKS_MAX;

/// One medium of a driver.
struct Place {
    medium: Arc<Medium>,
    /// Operations begun on it and not taken yet.
    in_flight: usize,
    /// Whether it goes as soon as there are none.
    is_leaving: bool,
}

/// Performs operations on media. One thread asks and takes; it never waits here.
pub struct Driver {
    /// By number. A number is used again once its medium is gone.
    places: Vec<Option<Place>>,
    ring: Option<Ring>,
    pool: Pool,
    /// Operations that wait for room in the ring. Bounded by what the stores have in flight.
    waiting: VecDeque<(usize, Box<Operation>)>,
    /// Operations that ended without a system call.
    ended: Vec<(usize, DiskDone)>,
    completed: Vec<ring::Completed>,
}

impl Driver {
    /// A driver of these media; operations name them by their place in the list.
    ///
    /// # Errors
    /// Where the wanted performer is refused by the machine.
    pub fn new(media: Vec<Medium>, performer: Performer) -> io::Result<Driver> {
        assert!(media.len() <= MEDIA_MAX, "the caller has counted");
        let ring = match performer {
            Performer::Threads => None,
            Performer::Ring => Some(Ring::new(&media, MEDIA_MAX)?),
            Performer::Auto => Ring::new(&media, MEDIA_MAX)
                .inspect_err(|error| {
                    tracing::warn!(
                        "io_uring is not to be had here ({error}); disks are driven by threads, \
                         which costs more CPU; allow io_uring (sysctl kernel.io_uring_disabled) \
                         to end that"
                    );
                })
                .ok(),
        };
        let pool = Pool::new()?;
        let by = if ring.is_some() { "io_uring" } else { "threads" };
        tracing::debug!("disks are driven by {by}");
        Ok(Driver {
            places: media.into_iter().map(|medium| Some(Place::new(medium))).collect(),
            ring,
            pool,
            waiting: VecDeque::new(),
            ended: Vec::new(),
            completed: Vec::new(),
        })
    }

    /// How many media there are.
    pub fn count(&self) -> usize {
        self.places.iter().flatten().count()
    }

    /// The medium with this number.
    ///
    /// # Panics
    /// If there is none.
    pub fn medium(&self, number: usize) -> &Medium {
        &self.place(number).medium
    }

    fn place(&self, number: usize) -> &Place {
        self.places[number].as_ref().expect("a medium of the driver")
    }

    /// Takes one more medium, and gives the number that operations name it by. The others keep
    /// theirs.
    ///
    /// # Errors
    /// Why not, in one sentence, where there are too many or the kernel does not take it.
    pub fn add(&mut self, medium: Medium) -> Result<usize, String> {
        let number = self.places.iter().position(Option::is_none).unwrap_or(self.places.len());
        if number >= MEDIA_MAX {
            return Err(format!(
                "sheep drives {NODE_DISKS_MAX} disks at most, and has as many; take one out first"
            ));
        }
        if let Some(ring) = &mut self.ring {
            ring.set_file(number, Some(medium.file().as_fd())).map_err(|error| {
                format!(
                    "the kernel takes no more disks of this process ({error}); raise LimitNOFILE, \
                     or `ulimit -n`, and start sheep again"
                )
            })?;
        }
        if number == self.places.len() {
            self.places.push(None);
        }
        self.places[number] = Some(Place::new(medium));
        Ok(number)
    }

    /// Lets a medium go: nothing is begun on it any more. It is closed once what was begun has
    /// ended.
    ///
    /// # Panics
    /// If there is no such medium.
    pub fn remove(&mut self, number: usize) {
        self.places[number].as_mut().expect("a medium of the driver").is_leaving = true;
        self.close_if_idle(number);
    }

    fn close_if_idle(&mut self, number: usize) {
        let is_over = |place: &Place| place.is_leaving && place.in_flight == 0;
        if !self.places[number].as_ref().is_some_and(is_over) {
            return;
        }
        if let Some(ring) = &mut self.ring
            && let Err(error) = ring.set_file(number, None)
        {
            tracing::warn!("a disk that was taken out stays open until sheep ends: {error}");
        }
        self.places[number] = None;
    }

    /// Makes the threads' results wake the poll; what arrives under the token needs no handling.
    pub fn register(&self, registry: &Registry, token: Token) -> io::Result<()> {
        let fd = self.pool.readiness().as_raw_fd();
        registry.register(&mut SourceFd(&fd), token, Interest::READABLE)
    }

    /// Operations begun and not taken yet.
    #[cfg(test)]
    pub fn in_flight(&self) -> usize {
        let ring = self.ring.as_ref().map_or(0, Ring::in_flight);
        ring + self.pool.in_flight() + self.waiting.len() + self.ended.len()
    }

    /// Begins an operation on the medium with this number.
    pub fn begin(&mut self, medium: usize, op: DiskOp) {
        let place = self.places[medium].as_mut().expect("a medium of the driver");
        assert!(!place.is_leaving, "an operation on a medium that was let go");
        place.in_flight += 1;
        match Operation::new(op, &place.medium) {
            Ok(operation) => self.step(medium, Box::new(operation)),
            Err(done) => self.ended.push((medium, done)),
        }
    }

    fn step(&mut self, medium: usize, mut operation: Box<Operation>) {
        match &mut self.ring {
            Some(_) if matches!(operation.step(), Step::DiscardDevice { .. }) => {
                self.perform_in_pool(medium, operation);
            }
            Some(ring) if ring.has_room() => ring.begin(medium, operation),
            Some(_) => self.waiting.push_back((medium, operation)),
            None => self.perform_in_pool(medium, operation),
        }
    }

    fn perform_in_pool(&mut self, number: usize, operation: Box<Operation>) {
        let medium = Arc::clone(&self.place(number).medium);
        self.pool.perform((number, medium), operation);
    }

    /// Hands what was begun to the kernel now, not only with the next [`Driver::wait`].
    pub fn enter(&mut self) {
        if let Some(ring) = &mut self.ring {
            ring.enter();
        }
    }

    /// Hands what was begun to the kernel, and waits until an operation has ended, the poll has
    /// events or the time is over. Then takes both: the events into `events`, the operations that
    /// ended, with their medium's number, into `done`, which must be empty.
    pub fn wait(
        &mut self,
        poll: &mut Poll,
        events: &mut Events,
        timeout: Option<Duration>,
        done: &mut Vec<(usize, DiskDone)>,
    ) -> io::Result<()> {
        debug_assert!(done.is_empty(), "each end is counted once");
        let at_once = Some(Duration::ZERO);
        let timeout = if self.ended.is_empty() { timeout } else { at_once };
        events.clear();
        let mut completed = std::mem::take(&mut self.completed);
        match &mut self.ring {
            Some(ring) => {
                ring.wait(poll.registry().as_fd(), timeout);
                if ring.take_completed(&mut completed) {
                    poll_once(poll, events, at_once)?;
                }
            }
            None => poll_once(poll, events, timeout)?,
        }
        completed.extend(self.pool.take_performed());
        for (medium, operation, result) in completed.drain(..) {
            match operation.handle_result(result) {
                Ok(operation) => self.step(medium, operation),
                Err(end) => done.push((medium, end)),
            }
        }
        self.completed = completed;
        while let Some(ring) = &mut self.ring
            && ring.has_room()
            && let Some((medium, operation)) = self.waiting.pop_front()
        {
            ring.begin(medium, operation);
        }
        done.append(&mut self.ended);
        for (number, _) in done.iter() {
            self.places[*number].as_mut().expect("it had an operation").in_flight -= 1;
            self.close_if_idle(*number);
        }
        Ok(())
    }
}

impl Place {
    fn new(medium: Medium) -> Place {
        Place { medium: Arc::new(medium), in_flight: 0, is_leaving: false }
    }
}

/// Waits for events. A signal is as good as none of them.
fn poll_once(poll: &mut Poll, events: &mut Events, timeout: Option<Duration>) -> io::Result<()> {
    match poll.poll(events, timeout) {
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
        polled => polled,
    }
}
