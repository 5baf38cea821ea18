//! Threads that perform operations with plain system calls: all of them where io_uring is not to
//! be had, else the few that io_uring has no form of.

use super::{medium::Medium, operation::Operation};
use rustix::{
    event::{EventfdFlags, eventfd},
    io::{Errno, read, write},
};
use std::{
    collections::VecDeque,
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread::JoinHandle,
};

/// Threads at most: what keeps an ordinary disk busy. Each is started when it is first needed.
const THREADS_MAX: usize = 16;

/// A medium with its number.
type Numbered = (usize, Arc<Medium>);
/// A task for a thread: the medium, and what to do on it.
type Task = (Numbered, Box<Operation>);
/// A performed step: the medium's number, its operation, and the kernel's result.
pub type Performed = (usize, Box<Operation>, i32);

/// The threads, and the queues to and from them.
pub struct Pool {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
    /// Tasks handed over whose results were not taken yet.
    in_flight: usize,
}

struct Shared {
    queues: Mutex<Queues>,
    /// Told when `waiting` grows or `stop` is set.
    work: Condvar,
    /// Readable while there are results that were not taken.
    results: OwnedFd,
}

#[derive(Default)]
struct Queues {
    /// Bounded by the operations a driver has in flight.
    waiting: VecDeque<Task>,
    /// Bounded likewise.
    performed: Vec<Performed>,
    idle: usize,
    stop: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queues> {
        // No thread panics with the lock held, and a panic ends the process anyway.
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pool {
    /// A pool without threads yet.
    pub fn new() -> io::Result<Pool> {
        let results = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let shared = Shared { queues: Mutex::default(), work: Condvar::new(), results };
        Ok(Pool { shared: Arc::new(shared), threads: Vec::new(), in_flight: 0 })
    }

    /// Becomes readable when there are results to take.
    pub fn readiness(&self) -> BorrowedFd<'_> {
        self.shared.results.as_fd()
    }

    /// Tasks handed over whose results were not taken yet.
    #[cfg(test)]
    pub fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Performs the next step of the operation in some thread.
    pub fn perform(&mut self, medium: Numbered, operation: Box<Operation>) {
        self.in_flight += 1;
        let wanted = {
            let mut queues = self.shared.lock();
            queues.waiting.push_back((medium, operation));
            queues.waiting.len() > queues.idle
        };
        self.shared.work.notify_one();
        if wanted && self.threads.len() < THREADS_MAX {
            self.start_thread();
        }
    }

    fn start_thread(&mut self) {
        let shared = Arc::clone(&self.shared);
        let started = std::thread::Builder::new()
            .name(format!("disk-{}", self.threads.len()))
            .spawn(move || run(&shared));
        match started {
            Ok(thread) => self.threads.push(thread),
            // Those that run go on; without any, nothing would ever complete.
            Err(error) if self.threads.is_empty() => panic!("cannot start a thread: {error}"),
            Err(error) => tracing::warn!("cannot start one more disk thread: {error}"),
        }
    }

    /// Takes the results there are.
    pub fn take_performed(&mut self) -> Vec<Performed> {
        if self.in_flight == 0 {
            return Vec::new();
        }
        let mut count = [0u8; 8];
        match read(&self.shared.results, &mut count) {
            Ok(_) | Err(Errno::AGAIN | Errno::INTR) => {}
            Err(error) => panic!("an event counter cannot fail: {error}"),
        }
        let performed = std::mem::take(&mut self.shared.lock().performed);
        self.in_flight -= performed.len();
        performed
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.lock().stop = true;
        self.shared.work.notify_all();
        for thread in self.threads.drain(..) {
            // A thread that panicked has ended the process.
            let _ = thread.join();
        }
    }
}

/// What each thread does: steps, one after the other, until told to stop.
fn run(shared: &Shared) {
    while let Some(((number, medium), mut operation)) = next_task(shared) {
        let result = operation.perform(&medium);
        // It closes with the last who has it: not this thread, once it is told.
        drop(medium);
        let first = {
            let mut queues = shared.lock();
            queues.performed.push((number, operation, result));
            queues.performed.len() == 1
        };
        if first {
            write(&shared.results, &1u64.to_ne_bytes()).expect("the counter is far from its end");
        }
    }
}

fn next_task(shared: &Shared) -> Option<Task> {
    let mut queues = shared.lock();
    loop {
        if let Some(task) = queues.waiting.pop_front() {
            return Some(task);
        }
        if queues.stop {
            return None;
        }
        queues.idle += 1;
        queues = shared.work.wait(queues).unwrap_or_else(PoisonError::into_inner);
        queues.idle -= 1;
    }
}
