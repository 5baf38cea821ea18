//! How other threads ask the data thread: a bounded queue of commands, and a waker.

use engine::admin::{AdminError, AdminErrorKind, AdminReply, AdminRequest};
use mio::Waker;
use proto::limits::{ADMIN_ANSWER_MS_MAX, ADMIN_REQUESTS_MAX};
use std::{
    sync::{
        Arc,
        mpsc::{Receiver, SyncSender, TrySendError, sync_channel},
    },
    time::Duration,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};

/// Room in the queue beside administrators' requests: for the stop and one ping.
const OTHERS: usize = 8;

/// What is asked.
#[derive(Debug)]
pub enum Command {
    /// An administrator's request.
    Admin {
        /// What.
        request: AdminRequest,
        /// Where the answer goes.
        reply: Reply,
    },
    /// Show that the loop turns.
    Ping(oneshot::Sender<()>),
    /// Finish what is in flight, close everything, end.
    Stop,
}

/// Asks the data thread. Clones share one queue.
#[derive(Clone, Debug)]
pub struct Asker {
    commands: SyncSender<Command>,
    waker: Arc<Waker>,
    /// One permit per administrator's request that was not answered yet.
    requests: Arc<Semaphore>,
}

/// Where the answer to an administrator's request goes. Until it is gone, the request counts.
#[derive(Debug)]
pub struct Reply {
    sender: oneshot::Sender<Result<AdminReply, AdminError>>,
    _permit: OwnedSemaphorePermit,
}

impl Reply {
    /// Answers. Who asked may have given up waiting.
    pub fn send(self, result: Result<AdminReply, AdminError>) {
        let _ = self.sender.send(result);
    }
}

impl Asker {
    /// An asker, and where its commands arrive.
    pub fn new(waker: Waker) -> (Asker, Receiver<Command>) {
        let (commands, arrivals) = sync_channel(ADMIN_REQUESTS_MAX + OTHERS);
        let requests = Arc::new(Semaphore::new(ADMIN_REQUESTS_MAX));
        (Asker { commands, waker: Arc::new(waker), requests }, arrivals)
    }

    /// Asks as an administrator and waits for the answer.
    pub async fn ask(&self, request: AdminRequest) -> Result<AdminReply, AdminError> {
        let Ok(permit) = Arc::clone(&self.requests).try_acquire_owned() else {
            return Err(unavailable("too many requests at once; ask again in a moment"));
        };
        let (sender, answer) = oneshot::channel();
        let reply = Reply { sender, _permit: permit };
        self.send(Command::Admin { request, reply })?;
        let limit = Duration::from_millis(ADMIN_ANSWER_MS_MAX);
        match tokio::time::timeout(limit, answer).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(unavailable("the node is stopping; ask again when it runs")),
            Err(_) => Err(unavailable(
                "the request is not finished yet and goes on; look at its effect later, and at \
                 what it waits for with `dog status`",
            )),
        }
    }

    /// Whether the data thread answers within this time.
    pub async fn ping(&self, limit: Duration) -> bool {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Ping(reply)).is_ok()
            && matches!(tokio::time::timeout(limit, answer).await, Ok(Ok(())))
    }

    /// Asks for a clean stop. It is over when the data thread ends.
    pub fn stop(&self) {
        // If it has ended already there is nothing to stop.
        let _ = self.send(Command::Stop);
    }

    fn send(&self, command: Command) -> Result<(), AdminError> {
        let sent = self.commands.try_send(command).map_err(|error| match error {
            TrySendError::Full(_) => {
                unavailable("too many requests at once; ask again in a moment")
            }
            TrySendError::Disconnected(_) => {
                unavailable("the node is stopping; ask again when it runs")
            }
        });
        sent?;
        self.waker.wake().map_err(|_| unavailable("the node is out of memory; ask again later"))
    }
}

fn unavailable(sentence: &str) -> AdminError {
    AdminError { kind: AdminErrorKind::Unavailable, sentence: sentence.to_string() }
}
