//! Commands that are agreed while no node runs: what a node finds that was down for long, or that
//! no request of an administrator leads to.

use crate::support::Medium;
use cluster::{
    Answer, Command, Effect, Event, Founding, PersistError, ProposalToken, Refusal, Voter,
};
use proto::{NodeId, Time};
use std::collections::VecDeque;
use store::journal::{self, Expected, Journal, Token};

/// The node of `support`.
const NODE: NodeId = NodeId(2);

/// Puts commands into the log of a node that is not running, one after the other.
pub fn agree(journal: &mut Medium, commands: Vec<Command>) -> Vec<Result<Answer, Refusal>> {
    let mut effects = Vec::new();
    let bytes = journal.bytes.len() as u64;
    let mut keeper = Journal::open(Expected::default(), bytes, &mut effects);
    let mut queue: VecDeque<journal::Effect> = effects.into();
    let mut commands = commands.into_iter();
    let mut voter: Option<Voter> = None;
    let mut results = Vec::new();
    loop {
        let mut said = Vec::new();
        match (queue.pop_front(), voter.as_mut()) {
            (Some(journal::Effect::Disk(op)), _) => {
                let mut more = Vec::new();
                keeper.handle(journal.perform(op), &mut more);
                queue.extend(more);
            }
            (Some(journal::Effect::Opened(Ok(found))), None) => {
                let snapshot = found.snapshot.as_deref();
                let booted = Voter::boot(NODE, Founding::Here, 1, snapshot, &found.records);
                voter = Some(booted.expect("a good log"));
            }
            (Some(journal::Effect::Done { token, result }), Some(voter)) => {
                let request = cluster::RequestNumber(token.0);
                let result = result.map_err(|error| PersistError::Failed(error.to_string()));
                voter.handle(Time(1), Event::Persisted { request, result }, &mut said);
            }
            (Some(other), _) => panic!("{other:?}"),
            (None, Some(voter)) => match commands.next() {
                Some(command) => {
                    voter.propose(Time(1), ProposalToken(1), command, &mut said);
                }
                None => return results,
            },
            (None, None) => panic!("the journal does not open"),
        }
        for effect in said {
            let mut more = Vec::new();
            match effect {
                Effect::Append { request, records } => {
                    keeper.append(Token(request.0), records, &mut more);
                }
                Effect::Snapshot { request, bytes } => {
                    keeper.snapshot(Token(request.0), bytes, &mut more);
                }
                Effect::Applied { result, .. } => results.push(result),
                other => panic!("nobody else takes part: {other:?}"),
            }
            queue.extend(more);
        }
    }
}
