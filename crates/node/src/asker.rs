//! How other threads ask the data thread: a bounded queue of commands, and a waker.

use crate::data::Made;
use engine::admin::{AdminError, AdminErrorKind, AdminReply, AdminRequest};
use mio::Waker;
use proto::limits::{ADMIN_ANSWER_MS_MAX, ADMIN_CHANGES_MAX, ADMIN_REQUESTS_MAX};
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
    /// The medium of one more disk is there.
    DiskMade(Box<Made>),
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
    /// One more for each of them that changes something.
    changes: Arc<Semaphore>,
}

/// Where the answer to an administrator's request goes. Until it is gone, the request counts.
#[derive(Debug)]
pub struct Reply {
    sender: oneshot::Sender<Result<AdminReply, AdminError>>,
    _permits: (OwnedSemaphorePermit, Option<OwnedSemaphorePermit>),
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
        let changes = Arc::new(Semaphore::new(ADMIN_CHANGES_MAX));
        (Asker { commands, waker: Arc::new(waker), requests, changes }, arrivals)
    }

    /// What wakes the data thread.
    pub fn waker(&self) -> Arc<Waker> {
        Arc::clone(&self.waker)
    }

    /// Asks as an administrator and waits for the answer.
    pub async fn ask(&self, request: AdminRequest) -> Result<AdminReply, AdminError> {
        let change = match request.changes() {
            true => Some(Arc::clone(&self.changes).try_acquire_owned().map_err(|_| {
                unavailable("too many changes wait already; see for what with `dog status`")
            })?),
            false => None,
        };
        let permit = Arc::clone(&self.requests)
            .try_acquire_owned()
            .map_err(|_| unavailable("too many requests at once; ask again in a moment"))?;
        let (sender, answer) = oneshot::channel();
        let reply = Reply { sender, _permits: (permit, change) };
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

    /// Hands a disk to the data thread. Waits for room in the queue; if the data thread has ended,
    /// nobody takes it.
    pub fn hand_over(&self, made: Made) {
        if self.commands.send(Command::DiskMade(Box::new(made))).is_ok() {
            // One that cannot be woken looks at its queue when something else happens.
            let _ = self.waker.wake();
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Requests that waited for a disk out of service held all places, however long ago who had
    /// asked had given up: nobody could ask any more what they waited for.
    #[test]
    fn requests_that_wait_for_ever_leave_room_for_those_that_tell_why() {
        let poll = mio::Poll::new().expect("a poll");
        let waker = Waker::new(poll.registry(), mio::Token(0)).expect("a waker");
        let (asker, commands) = Asker::new(waker);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let mut unanswered = Vec::new();
        runtime.expect("a runtime").block_on(async {
            let given_up = Duration::from_millis(1);
            for _ in 0..2 * ADMIN_REQUESTS_MAX {
                let (name, bytes) = ("vm1".to_string(), 4096);
                let resize = AdminRequest::VolumeResize { name, bytes, allow_shrink: true };
                let _ = tokio::time::timeout(given_up, asker.ask(resize)).await;
                unanswered.extend(commands.try_recv());
            }
            assert!(unanswered.len() > 10);
            let _ = tokio::time::timeout(given_up, asker.ask(AdminRequest::Status)).await;
        });
        let asked = commands.try_recv().expect("it is asked");
        assert!(matches!(asked, Command::Admin { request: AdminRequest::Status, .. }));
        assert_eq!(unanswered.len(), ADMIN_CHANGES_MAX);
    }
}
