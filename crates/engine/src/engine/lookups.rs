//! Names that this node does not know. What was agreed a moment ago, over another node, it may not
//! have heard of: whoever asks for such a name is answered once the node knows all that had been
//! agreed by then. So a volume that one node was told to make is there on every node for whoever
//! knows that it was made.
//!
//! The node proposes something that changes nothing; when that is applied here, so is all that was
//! agreed before. One such proposal is under way at a time, for all who wait, and after one there
//! is a pause: names that do not exist cost the cluster no more than that.

use super::{Engine, Phase, Purpose, Work};
use crate::admin::{AdminError, AdminErrorKind, AdminRequest, AdminToken};
use crate::{Client, ConnectionId, Output};
use cluster::{Answer, Command, Refusal};
use proto::{Duration, Time, limits};
use volume::{Answer as ClientAnswer, Tags};

const PAUSE: Duration = Duration::from_millis(limits::LOOKUP_PAUSE_MS);
const PATIENCE: Duration = Duration::from_millis(limits::LOOKUP_MS_MAX);

/// Who asked for a name that is not known here.
pub(super) enum Question {
    /// A client wants to know what it is.
    Describe(ConnectionId, String),
    /// A client wants to know what snapshots it shows.
    Bases(ConnectionId, String, Tags),
    /// A client wants to have it.
    Open(ConnectionId, Client, String),
    /// An administrator.
    Admin(AdminToken, AdminRequest),
}

impl Question {
    fn connection(&self) -> Option<ConnectionId> {
        match self {
            Question::Describe(connection, _)
            | Question::Bases(connection, ..)
            | Question::Open(connection, ..) => Some(*connection),
            Question::Admin(..) => None,
        }
    }
}

/// One that waits.
struct Lookup {
    question: Question,
    until: Time,
    /// The proposal under way was made after it was asked.
    is_covered: bool,
}

/// All that wait.
#[derive(Default)]
pub(super) struct Lookups {
    all: Vec<Lookup>,
    is_proposed: bool,
    /// The next proposal is not made before.
    pause_until: Option<Time>,
}

impl Lookups {
    /// When something is to be done by itself.
    pub(super) fn deadline(&self) -> Option<Time> {
        let ends = self.all.iter().map(|lookup| lookup.until);
        let next = self.pause_until.filter(|_| !self.all.is_empty() && !self.is_proposed);
        ends.chain(next).min()
    }

    /// The client is gone.
    pub(super) fn forget(&mut self, connection: ConnectionId) {
        self.all.retain(|lookup| lookup.question.connection() != Some(connection));
    }
}

impl Engine {
    /// Whether the answer to a question for a name that is not known here waits until what had been
    /// agreed by now is known. Gives the question back if not.
    pub(super) fn look_up(&mut self, now: Time, question: Question) -> Option<Question> {
        let is_sure = self.phase != Phase::Serving || !self.is_among_others();
        if is_sure || self.lookups.all.len() >= limits::LOOKUPS_MAX {
            return Some(question);
        }
        let until = now + PATIENCE;
        self.lookups.all.push(Lookup { question, until, is_covered: false });
        self.pump_lookups(now);
        None
    }

    fn pump_lookups(&mut self, now: Time) {
        let lookups = &mut self.lookups;
        let is_pause = lookups.pause_until.is_some_and(|until| now < until);
        if lookups.is_proposed || is_pause || lookups.all.is_empty() {
            return;
        }
        lookups.all.iter_mut().for_each(|lookup| lookup.is_covered = true);
        lookups.is_proposed = true;
        lookups.pause_until = Some(now + PAUSE);
        self.work.push_back(Work::Propose(Command::nothing(), Purpose::LookedUp));
    }

    /// What changes nothing was applied, or nobody knows.
    pub(super) fn looked_up(
        &mut self,
        now: Time,
        result: &Result<Answer, Refusal>,
        outputs: &mut Vec<Output>,
    ) {
        self.lookups.is_proposed = false;
        let is_applied = matches!(result, Ok(_) | Err(Refusal::NoSuchToken { .. }));
        let covered = self.lookups.all.extract_if(.., |lookup| lookup.is_covered);
        let (known, unknown): (Vec<Lookup>, Vec<Lookup>) = covered.partition(|_| is_applied);
        // They are asked for again.
        let again = unknown.into_iter().map(|lookup| Lookup { is_covered: false, ..lookup });
        self.lookups.all.extend(again.collect::<Vec<_>>());
        for Lookup { question, .. } in known {
            self.answer_question(now, question, outputs);
        }
        self.pump_lookups(now);
    }

    /// All that had been agreed when this was asked is known, or never will be in time.
    fn answer_question(&mut self, now: Time, question: Question, outputs: &mut Vec<Output>) {
        match question {
            Question::Describe(connection, name) => {
                let (Ok((_, answer)) | Err(answer)) = self.describe(&name);
                outputs.push(Output::Answer { connection, answer });
            }
            Question::Bases(connection, name, tags) => {
                let answer = self.bases(&name, &tags).unwrap_or_default();
                outputs.push(Output::Answer { connection, answer: ClientAnswer::Bases(answer) });
            }
            Question::Open(connection, client, name) => {
                self.open_known(connection, client, &name, outputs);
            }
            Question::Admin(token, request) => {
                self.answer_admin(now, token, request, true, outputs);
            }
        }
    }

    pub(super) fn tick_lookups(&mut self, now: Time, outputs: &mut Vec<Output>) {
        let late = self.lookups.all.extract_if(.., |lookup| lookup.until <= now);
        for Lookup { question, .. } in late.collect::<Vec<_>>() {
            let sentence = "whether that exists cannot be said: this node may not have heard of \
                            it, and the nodes that vote do not answer; `dog cluster status` says \
                            why";
            self.give_up(question, sentence.to_owned(), outputs);
        }
        self.pump_lookups(now);
    }

    /// The node stops.
    pub(super) fn abandon_lookups(&mut self, outputs: &mut Vec<Output>) {
        for Lookup { question, .. } in std::mem::take(&mut self.lookups.all) {
            let sentence = self.not_serving();
            self.give_up(question, sentence, outputs);
        }
    }

    fn give_up(&self, question: Question, sentence: String, outputs: &mut Vec<Output>) {
        outputs.push(match question {
            Question::Describe(connection, _) | Question::Open(connection, ..) => {
                Output::Answer { connection, answer: ClientAnswer::Refused { sentence } }
            }
            // That is said when it is opened.
            Question::Bases(connection, ..) => {
                Output::Answer { connection, answer: ClientAnswer::Bases(Vec::new()) }
            }
            Question::Admin(token, _) => {
                let error = AdminError { kind: AdminErrorKind::Unavailable, sentence };
                Output::Admin { token, result: Box::new(Err(error)) }
            }
        });
    }
}
