//! A node that is driven by hand: what it is asked, and what it answered. Who drives it decides in
//! what order the media work: one operation after the other, for whoever crashes it between any
//! two of them, or each as long as it takes.

use crate::node::{Life, Said, SimNode};
use engine::{
    Client, ConnectionId, Input, NoticeLevel, SourceId, SourceRequest,
    admin::{AdminError, AdminReply, AdminRequest, AdminToken},
};
use proto::{Duration, Payload, Time};
use std::collections::{BTreeMap, VecDeque};
use volume::{Answer, Completion, Operation, Request, RequestId};

/// In what order things happen by themselves.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Pace {
    /// The operation that was asked for first ends first, and time passes when none is in flight.
    OneByOne,
    /// Each when its time has come.
    InTime,
}

/// Simulated time within which anything that is waited for must have happened.
pub const PATIENCE: Duration = Duration::from_secs(600);

/// A node, its clients, and what they were told. See the module.
pub struct Driver {
    /// The node.
    pub node: SimNode,
    /// The present.
    pub now: Time,
    /// Whether the end of a round is left to whoever drives it, with [`SimNode::poll`]: then
    /// several inputs come together.
    pub gathers: bool,
    pace: Pace,
    /// Number of the last connection, request or question of an administrator.
    last: u64,
    /// What connections were answered that wanted a volume.
    pub answers: BTreeMap<ConnectionId, Answer>,
    /// How requests ended.
    pub completions: BTreeMap<(ConnectionId, RequestId), Result<Completion, volume::Error>>,
    /// What administrators were answered.
    pub replies: BTreeMap<AdminToken, Result<AdminReply, AdminError>>,
    /// What was said for the log.
    pub notices: Vec<(NoticeLevel, String)>,
    /// What sources are asked, first question first.
    pub questions: VecDeque<(SourceId, SourceRequest)>,
}

impl Driver {
    /// Nothing was asked of the node yet.
    pub fn of(node: SimNode, now: Time, pace: Pace) -> Driver {
        Driver {
            node,
            now,
            gathers: false,
            pace,
            last: 0,
            answers: BTreeMap::new(),
            completions: BTreeMap::new(),
            replies: BTreeMap::new(),
            notices: Vec::new(),
            questions: VecDeque::new(),
        }
    }

    /// Puts another process on the media that this one leaves; whoever waited for it waits in
    /// vain.
    pub fn replace(&mut self, start: impl FnOnce(crate::node::Media) -> SimNode) {
        self.node.replace(start);
        self.answers.clear();
        self.completions.clear();
        self.replies.clear();
        self.questions.clear();
    }

    // -- what is asked --

    /// Tells the node something.
    pub fn tell(&mut self, input: Input) {
        self.node.input(self.now, input);
        if !self.gathers {
            self.node.poll(self.now);
        }
        self.listen();
    }

    /// A client wants a volume, or a snapshot.
    pub fn ask_open(&mut self, identity: &str, name: &str) -> ConnectionId {
        self.last += 1;
        let connection = ConnectionId(self.last);
        let client = Client { identity: identity.into(), description: identity.into() };
        self.tell(Input::Open { connection, client, name: name.into() });
        connection
    }

    /// A connection ends, whatever it waits for.
    pub fn hang_up(&mut self, connection: ConnectionId) {
        self.tell(Input::Close { connection });
    }

    /// A client asks for something.
    pub fn request(
        &mut self,
        connection: ConnectionId,
        offset: u64,
        length: u64,
        operation: Operation,
    ) -> RequestId {
        self.last += 1;
        let id = RequestId(self.last);
        let request = Request { id, offset, length, operation };
        self.tell(Input::Request { connection, request });
        id
    }

    /// An administrator asks for something.
    pub fn administer(&mut self, request: AdminRequest) -> AdminToken {
        self.last += 1;
        let token = AdminToken(self.last);
        self.tell(Input::Admin { token, request });
        token
    }

    // -- and waited for --

    /// Waits until the node serves.
    pub fn await_ready(&mut self) -> Result<(), String> {
        self.run_until("the start", |driver| *driver.node.life() == Life::Ready)
    }

    /// Asks as an administrator, and waits for the answer.
    pub fn consult(&mut self, request: AdminRequest) -> Result<AdminReply, AdminError> {
        let token = self.administer(request);
        let waited = self.run_until("an answer", |driver| driver.replies.contains_key(&token));
        if let Err(sentence) = waited {
            return Err(AdminError { kind: engine::admin::AdminErrorKind::Unavailable, sentence });
        }
        self.replies.remove(&token).expect("just seen")
    }

    /// Opens a volume, or a snapshot, and waits for the answer.
    pub fn open(&mut self, identity: &str, name: &str) -> Result<(ConnectionId, Answer), String> {
        let connection = self.ask_open(identity, name);
        self.run_until(name, |driver| driver.answers.contains_key(&connection))?;
        Ok((connection, self.answers.remove(&connection).expect("just seen")))
    }

    /// Makes a request, and waits for its end.
    pub fn complete(
        &mut self,
        connection: ConnectionId,
        (offset, length): (u64, u64),
        operation: Operation,
    ) -> Result<Completion, String> {
        let key = (connection, self.request(connection, offset, length, operation));
        self.run_until("a request", |driver| driver.completions.contains_key(&key))?;
        let result = self.completions.remove(&key).expect("just seen");
        result.map_err(|error| error.to_string())
    }

    /// Reads, and waits for the content.
    pub fn read(
        &mut self,
        connection: ConnectionId,
        offset: u64,
        length: u64,
    ) -> Result<Vec<u8>, String> {
        match self.complete(connection, (offset, length), Operation::Read)? {
            Completion::Data(parts) => Ok(Payload::joined(&parts)),
            other => Err(format!("reading was answered {other:?}")),
        }
    }

    // -- what happens by itself --

    /// Lets things happen until something is so.
    pub fn run_until(
        &mut self,
        what: &str,
        mut done: impl FnMut(&mut Driver) -> bool,
    ) -> Result<(), String> {
        let end = self.now + PATIENCE;
        self.node.poll(self.now);
        loop {
            self.listen();
            if done(self) {
                return Ok(());
            }
            if let Life::Failed(sentence) = self.node.life() {
                return Err(format!("the node failed: {sentence}"));
            }
            if !self.proceed(end) {
                return Err(format!("{what} never comes"));
            }
        }
    }

    /// Lets the next thing happen, if it is due by then.
    pub fn proceed(&mut self, end: Time) -> bool {
        match self.pace {
            Pace::OneByOne => self.step() || self.pass_time(end),
            Pace::InTime => {
                let Some(due) = self.node.next_due().filter(|due| *due <= end) else {
                    return false;
                };
                self.now = self.now.max(due);
                self.node.advance(self.now);
                self.node.poll(self.now);
                true
            }
        }
    }

    /// Lets the operation end that was asked for first. False: none is in flight.
    pub fn step(&mut self) -> bool {
        self.node.step(self.now)
    }

    /// Lets time pass until the node wants to be told, if that is by then.
    pub fn pass_time(&mut self, end: Time) -> bool {
        let Some(deadline) = self.node.engine().deadline().filter(|at| *at <= end) else {
            return false;
        };
        self.now = self.now.max(deadline);
        self.node.input(self.now, Input::Tick);
        self.node.poll(self.now);
        true
    }

    /// Lets everything happen until then.
    pub fn idle(&mut self, end: Time) {
        while self.proceed(end) {}
        self.now = self.now.max(end);
        self.listen();
    }

    /// Takes in what the node said.
    pub fn listen(&mut self) {
        for said in self.node.take_said() {
            match said {
                Said::Answer { connection, answer } => {
                    self.answers.insert(connection, answer);
                }
                Said::Complete { connection, id, result } => {
                    let before = self.completions.insert((connection, id), result);
                    assert!(before.is_none(), "a request is answered once");
                }
                Said::Admin { token, result } => {
                    let before = self.replies.insert(token, *result);
                    assert!(before.is_none(), "an administrator is answered once");
                }
                Said::Notice { level, sentence } => self.notices.push((level, sentence)),
                Said::Source { token, request } => self.questions.push_back((token, request)),
                // Clients of the driver hang up by themselves, and know sizes from what they asked.
                Said::Disconnect { .. } | Said::Resized { .. } => {}
                other => unreachable!("the node keeps {other:?} to itself"),
            }
        }
    }
}
