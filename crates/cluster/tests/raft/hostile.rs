//! Bytes that no member would send: no panic, and nothing kept beyond the limits.

use crate::world::{Dice, Disk, World};
use cluster::{Effect, Event, Founding, Voter};
use prost::Message as _;
use proto::{NodeId, Time};
use raft::eraftpb::{Entry, Message, MessageType, Snapshot};

/// A number that is often near another that matters.
fn number(dice: &mut Dice) -> u64 {
    match dice.below(9) {
        0 => 0,
        8 => u64::MAX / 2 - dice.below(3),
        1 => u64::MAX - dice.below(3),
        2 => 1 << dice.below(64),
        3 => 40 + dice.below(20),
        _ => dice.below(40),
    }
}

/// Any message, well-formed for `raft`.
fn any_message(dice: &mut Dice) -> Message {
    let mut message = Message { msg_type: dice.below(20) as i32, ..Message::default() };
    (message.from, message.to) = (1 + dice.below(3), 1 + dice.below(3));
    (message.term, message.log_term) = (number(dice), dice.below(4));
    (message.index, message.commit) = (number(dice), number(dice));
    (message.commit_term, message.reject_hint) = (dice.below(4), number(dice));
    message.reject = dice.percent(30);
    if dice.percent(10) {
        message.request_snapshot = number(dice);
    }
    if dice.percent(10) {
        message.context = b"CampaignTransfer".to_vec();
    }
    let mut index = if dice.percent(80) { message.index } else { number(dice) };
    for _ in 0..dice.below(4) {
        index = index.wrapping_add(1);
        let mut entry = Entry { index, term: message.log_term, ..Entry::default() };
        entry.entry_type = dice.below(4) as i32;
        if dice.percent(40) {
            entry.data = (0..dice.below(30)).map(|_| dice.below(256) as u8).collect();
            entry.context = (0..dice.below(4)).map(|_| dice.below(256) as u8).collect();
        }
        message.entries.push(entry);
    }
    if dice.percent(5) {
        message.snapshot = Some(Snapshot::default());
    }
    message
}

fn any_bytes(dice: &mut Dice) -> Vec<u8> {
    let mut bytes = vec![1, 0];
    match dice.below(10) {
        // A piece of a snapshot: kind, term, entry, where, whether it is the last, its bytes.
        0 => {
            bytes.extend([2, dice.below(9) as u8, dice.below(99) as u8, dice.below(9) as u8]);
            bytes.extend([dice.below(2) as u8, 5, 2, 1, 1, 0, 9]);
        }
        1 => bytes.extend([3, dice.below(9) as u8, dice.below(99) as u8, dice.below(9) as u8]),
        // Proposals: kind, instance, number, how many, how long.
        2 => bytes.extend([1, dice.below(4) as u8, dice.below(4) as u8, 1, 2, 1, 1]),
        3 => bytes = (0..dice.below(40)).map(|_| dice.below(256) as u8).collect(),
        _ => {
            let message = any_message(dice).encode_to_vec();
            bytes.push(0);
            bytes.extend(postcard::to_stdvec(&message).expect("bytes"));
        }
    }
    if dice.percent(10) && !bytes.is_empty() {
        let place = dice.below(bytes.len() as u64) as usize;
        bytes[place] ^= 1 << dice.below(8);
    }
    bytes
}

/// A leader that goes calls the member to lead, in the member's own term.
fn call_to_lead(voter: &Voter, node: NodeId, dice: &mut Dice) -> Event {
    let (to, from) = (node.0 as u64, 1 + (node.0 as u64 + dice.below(2)) % 3);
    let term = voter.status().term;
    let msg_type = MessageType::MsgTimeoutNow as i32;
    let message = Message { msg_type, to, from, term, ..Message::default() }.encode_to_vec();
    let mut bytes = vec![1, 0, 0];
    bytes.extend(postcard::to_stdvec(&message).expect("bytes"));
    Event::Received { from: NodeId(from.into()), bytes }
}

#[test]
fn nothing_that_arrives_makes_a_member_panic() {
    let world = World::settled(21, 3);
    let mut dice = Dice(21);
    let mut taken = 0;
    for round in 0..400 {
        let number = dice.below(3) as usize;
        let (node, disk) = (world.machines[number].node, &world.machines[number].disk);
        let mut journal = if round % 4 == 0 { Disk::default() } else { disk.clone() };
        let boot = |journal: &Disk| {
            let snapshot = journal.snapshot.as_deref();
            Voter::boot(node, Founding::Elsewhere, round, snapshot, &journal.records)
                .expect("what it wrote itself")
        };
        let mut voter = boot(&journal);
        let before = voter.status().term;
        for step in 0..150 {
            let mut effects = Vec::new();
            let from = NodeId(u128::from(1 + dice.below(3)));
            let event = match dice.below(8) {
                // It counts on from whatever term it was told of.
                _ if step == 149 => call_to_lead(&voter, node, &mut dice),
                0 => Event::Tick,
                _ => Event::Received { from, bytes: any_bytes(&mut dice) },
            };
            voter.handle(Time(0), event, &mut effects);
            // The journal does all it is asked for.
            while let Some(effect) = effects.pop() {
                let request = match effect {
                    Effect::Append { request, records } => {
                        journal.records.extend(records);
                        request
                    }
                    Effect::Snapshot { request, bytes } => {
                        journal = Disk { snapshot: Some(bytes), ..Disk::default() };
                        request
                    }
                    _ => continue,
                };
                let done = Event::Persisted { request, result: Ok(()) };
                voter.handle(Time(0), done, &mut effects);
            }
            voter.check();
        }
        // Whatever got into its journal, it starts again.
        boot(&journal).check();
        taken += usize::from(voter.status().term > before);
    }
    assert!(taken > 100, "hardly anything was taken for a message: {taken}");
}
