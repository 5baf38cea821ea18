//! What lies elsewhere and shows through a volume: read here, each source by a thread of its own,
//! so that one that hangs keeps nobody waiting but those who want something of it. A thread ends
//! when it was not asked for a while, and its connection with it.

mod address;
mod open;

pub use address::Address;
use engine::{SourceId, SourceReply, SourceRequest, SourceWanted};
use mio::Waker;
use open::Open;
use proto::limits::{
    SOURCE_ANSWERS_MAX, SOURCE_IDLE_MS, SOURCE_QUESTIONS_MAX, SOURCE_READERS_MAX, SOURCE_RETRY_MS,
};
use std::{
    collections::{BTreeMap, VecDeque},
    net::SocketAddr,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

/// How long a source that could not be opened is not tried again, but its error repeated.
const REST: Duration = Duration::from_millis(SOURCE_RETRY_MS / 2);

/// An answer to the engine.
pub type Answer = (SourceId, Result<SourceReply, String>);

/// The threads that read sources, and what they bring.
pub struct Sources {
    readers: BTreeMap<String, Arc<Queue>>,
    answers: SyncSender<Answer>,
    arrivals: Receiver<Answer>,
    waker: Arc<Waker>,
    /// Where this process serves NBD by TCP.
    own: Option<SocketAddr>,
}

/// What one thread is asked.
#[derive(Default)]
struct Queue {
    state: Mutex<State>,
    filled: Condvar,
}

#[derive(Default)]
struct State {
    questions: VecDeque<(SourceId, SourceWanted)>,
    /// The thread has ended, or ends; it takes nothing any more.
    closed: bool,
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a question in, unless the thread has ended.
    fn put(&self, token: SourceId, wanted: SourceWanted) -> bool {
        let mut state = self.lock();
        if state.closed {
            return false;
        }
        state.questions.push_back((token, wanted));
        self.filled.notify_one();
        true
    }

    /// Takes up to so many out; waits for the first if it is told to. Nothing: it was idle for so
    /// long that it is closed now.
    fn take(&self, most: usize, wait: bool) -> Option<Vec<(SourceId, SourceWanted)>> {
        let mut state = self.lock();
        if wait {
            let idle = Duration::from_millis(SOURCE_IDLE_MS);
            let is_idle = |state: &mut State| state.questions.is_empty();
            let waited = self.filled.wait_timeout_while(state, idle, is_idle);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
            if state.questions.is_empty() {
                state.closed = true;
                return None;
            }
        }
        let count = most.min(state.questions.len());
        Some(state.questions.drain(..count).collect())
    }
}

impl Sources {
    /// No thread yet. Who waits for answers is woken.
    pub fn new(waker: Arc<Waker>, own: Option<SocketAddr>) -> Sources {
        let (answers, arrivals) = sync_channel(SOURCE_ANSWERS_MAX);
        Sources { readers: BTreeMap::new(), answers, arrivals, waker, own }
    }

    /// Asks a source. Gives back the answer if there is one at once.
    pub fn ask(&mut self, token: SourceId, request: SourceRequest) -> Option<Answer> {
        let SourceRequest { address, wanted } = request;
        if self.readers.get(&address).is_some_and(|queue| queue.put(token, wanted)) {
            return None;
        }
        self.readers.retain(|_, queue| !queue.lock().closed);
        let parsed = match Address::parse(&address) {
            Ok(parsed) => parsed,
            Err(error) => return Some((token, Err(error))),
        };
        if self.readers.len() >= SOURCE_READERS_MAX {
            let error = format!("this node reads {SOURCE_READERS_MAX} other sources just now");
            return Some((token, Err(error)));
        }
        let queue = Arc::new(Queue::default());
        queue.put(token, wanted);
        let reader = Reader {
            address: parsed,
            own: self.own,
            queue: Arc::clone(&queue),
            answers: self.answers.clone(),
            waker: Arc::clone(&self.waker),
            open: None,
            failed: None,
            asked: BTreeMap::new(),
            last: 0,
        };
        match thread::Builder::new().name("source".into()).spawn(move || reader.run()) {
            Ok(_) => {
                self.readers.insert(address, queue);
                None
            }
            Err(error) => Some((token, Err(format!("no thread can be started: {error}")))),
        }
    }

    /// An answer that has come.
    pub fn take(&mut self) -> Option<Answer> {
        self.arrivals.try_recv().ok()
    }
}

/// One thread.
struct Reader {
    address: Address,
    own: Option<SocketAddr>,
    queue: Arc<Queue>,
    answers: SyncSender<Answer>,
    waker: Arc<Waker>,
    open: Option<Open>,
    /// Why it could not be opened, and when.
    failed: Option<(Instant, String)>,
    /// What is asked over the connection, by number.
    asked: BTreeMap<u64, SourceId>,
    last: u64,
}

impl Reader {
    /// Until it was idle for long, or nobody takes its answers any more.
    fn run(mut self) {
        loop {
            let room = SOURCE_QUESTIONS_MAX - self.asked.len();
            let Some(questions) = self.queue.take(room, self.asked.is_empty()) else { return };
            for (token, wanted) in questions {
                if !self.ask(token, wanted) {
                    return;
                }
            }
            if !self.asked.is_empty() && !self.wait() {
                return;
            }
        }
    }

    /// Whether somebody took the answer.
    fn answer(&self, token: SourceId, result: Result<SourceReply, String>) -> bool {
        self.answers.send((token, result)).is_ok() && self.waker.wake().is_ok()
    }

    fn ask(&mut self, token: SourceId, wanted: SourceWanted) -> bool {
        if wanted == SourceWanted::Open {
            // Whoever makes a volume is told what is, not what was.
            self.failed = None;
            if self.asked.is_empty() {
                self.open = None;
            }
        }
        self.last += 1;
        let number = self.last;
        let open = match self.opened() {
            Ok(open) => open,
            Err(reason) => return self.answer(token, Err(reason)),
        };
        if wanted == SourceWanted::Open {
            let own_export = open.own_export();
            let result = open.bytes().map(|bytes| SourceReply::Opened { bytes, own_export });
            if self.asked.is_empty() {
                // Nothing may come of it.
                self.open = None;
            }
            return self.answer(token, result);
        }
        match open.ask(number, wanted) {
            Ok(None) => {
                self.asked.insert(number, token);
                true
            }
            Ok(Some((_, result))) => {
                if result.is_err() && self.asked.is_empty() {
                    // It may be another one, or of the right size, when it is opened anew.
                    self.open = None;
                }
                self.answer(token, result.map(SourceReply::Answer))
            }
            Err(error) => {
                self.asked.insert(number, token);
                self.lose(&error.to_string())
            }
        }
    }

    /// The source, opened now if it is not; an error is repeated for a moment.
    fn opened(&mut self) -> Result<&mut Open, String> {
        if self.open.is_none() {
            if let Some((at, reason)) = &self.failed
                && at.elapsed() < REST
            {
                return Err(reason.clone());
            }
            match Open::reach(&self.address, self.own) {
                Ok(open) => {
                    self.failed = None;
                    self.open = Some(open);
                }
                Err(reason) => {
                    self.failed = Some((Instant::now(), reason.clone()));
                    return Err(reason);
                }
            }
        }
        Ok(self.open.as_mut().expect("just opened"))
    }

    /// Waits for one answer, or for the end of the connection.
    fn wait(&mut self) -> bool {
        let open = self.open.as_mut().expect("something is asked of it");
        match open.wait() {
            Ok(Some((number, result))) => {
                let token = self.asked.remove(&number).expect("it was asked");
                self.answer(token, result.map(SourceReply::Answer))
            }
            Ok(None) => self.lose("it forgot what it was asked"),
            Err(error) => self.lose(&error.to_string()),
        }
    }

    /// The connection is of no use any more: all that is asked over it is answered so.
    fn lose(&mut self, reason: &str) -> bool {
        self.open = None;
        let asked = std::mem::take(&mut self.asked);
        asked.into_values().all(|token| self.answer(token, Err(reason.to_string())))
    }
}

#[cfg(test)]
mod tests;
