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
use proto::{DiskDone, DiskOp};
use ring::Ring;
use std::{
    collections::VecDeque,
    io,
    os::fd::{AsFd, AsRawFd},
    sync::Arc,
    time::Duration,
};

/// The media of a driver, by number.
type Media = [Medium];

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

/// Performs operations on media. One thread asks and takes; it never waits here.
pub struct Driver {
    media: Arc<Media>,
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
        let media: Arc<Media> = media.into();
        let ring = match performer {
            Performer::Threads => None,
            Performer::Ring => Some(Ring::new(&media)?),
            Performer::Auto => Ring::new(&media)
                .inspect_err(|error| {
                    tracing::warn!(
                        "io_uring is not to be had here ({error}); disks are driven by threads, \
                         which costs more CPU; allow io_uring (sysctl kernel.io_uring_disabled) \
                         to end that"
                    );
                })
                .ok(),
        };
        let pool = Pool::new(Arc::clone(&media))?;
        let by = if ring.is_some() { "io_uring" } else { "threads" };
        tracing::debug!("disks are driven by {by}");
        Ok(Driver {
            media,
            ring,
            pool,
            waiting: VecDeque::new(),
            ended: Vec::new(),
            completed: Vec::new(),
        })
    }

    /// The media, by number.
    pub fn media(&self) -> &[Medium] {
        &self.media
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
        match Operation::new(op, &self.media[medium]) {
            Ok(operation) => self.step(medium, Box::new(operation)),
            Err(done) => self.ended.push((medium, done)),
        }
    }

    fn step(&mut self, medium: usize, mut operation: Box<Operation>) {
        match &mut self.ring {
            Some(_) if matches!(operation.step(), Step::DiscardDevice { .. }) => {
                self.pool.perform(medium, operation);
            }
            Some(ring) if ring.has_room() => ring.begin(medium, operation),
            Some(_) => self.waiting.push_back((medium, operation)),
            None => self.pool.perform(medium, operation),
        }
    }

    /// Hands what was begun to the kernel now, not only with the next [`Driver::wait`].
    pub fn enter(&mut self) {
        if let Some(ring) = &mut self.ring {
            ring.enter();
        }
    }

    /// Hands what was begun to the kernel, and waits until an operation has ended, the poll has
    /// events or the time is over. Then takes both: the events into `events`, the operations that
    /// ended, with their medium's number, into `done`.
    pub fn wait(
        &mut self,
        poll: &mut Poll,
        events: &mut Events,
        timeout: Option<Duration>,
        done: &mut Vec<(usize, DiskDone)>,
    ) -> io::Result<()> {
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
        Ok(())
    }
}

/// Waits for events. A signal is as good as none of them.
fn poll_once(poll: &mut Poll, events: &mut Events, timeout: Option<Duration>) -> io::Result<()> {
    match poll.poll(events, timeout) {
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(()),
        polled => polled,
    }
}
