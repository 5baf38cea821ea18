//! The operations that workloads are made of, each a few steps of a guest and an administrator.

use super::{
    BLOCK, GROUP, LARGE, SMALL,
    bench::{Bench, Takings},
    books::{Change, GroupSnapshot, entry},
};
use crate::oracle::{Action, OperationId};
use engine::{
    ConnectionId,
    admin::{AdminReply, AdminRequest, AdminToken, FlattenAction},
};
use proto::{Buffer, Time};
use std::collections::BTreeSet;
use volume::{Completion, Operation, RequestId};

/// An operation. Those of a guest go to the volume that it has; a clone is what it has next.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Act {
    /// Two whole blocks.
    AlignedWrite,
    /// Sectors from the middle of one block to the middle of the next.
    UnalignedWrite,
    /// Two whole blocks, one of them that of the aligned write.
    OverlappingWrite,
    /// A block and a half.
    Discard,
    /// Zeros over a block and some sectors.
    Zero,
    /// Smaller if it is large, larger if it is small.
    Resize,
    /// The volume goes with its snapshots; another one of the same name comes.
    Delete,
    /// What is acknowledged becomes durable.
    Flush,
    /// A snapshot of the volume, while the guest has it.
    Snapshot,
    /// A clone of its newest snapshot, of a new one if it has none.
    Clone,
    /// Back to its oldest snapshot, to a new one if it has none.
    Rollback,
    /// The volume is made independent of what it was cloned from; cloned first if it is no clone.
    Flatten,
    /// Its oldest snapshot goes; else the one it was cloned from; else a new one.
    DeleteSnapshot,
    /// The volume goes into the trash with its snapshots, and comes back.
    Trash,
    /// Two whole blocks of the volume that is in a group with it.
    PartnerWrite,
    /// A snapshot of the group. Whoever left it comes back before.
    GroupSnapshot,
    /// Likewise, while the guest writes to one volume, and when it has the answer, to the other.
    GroupSnapshotAmidWrites,
    /// Both volumes go back to the oldest snapshot of the group, to a new one if there is none.
    GroupRollback,
    /// The oldest snapshot of the group goes; else a new one.
    DropGroupSnapshot,
}

/// Those of a guest, and of a volume alone.
pub const ACTS: [Act; 8] = [
    Act::AlignedWrite,
    Act::UnalignedWrite,
    Act::OverlappingWrite,
    Act::Discard,
    Act::Zero,
    Act::Resize,
    Act::Delete,
    Act::Flush,
];

/// Those that make, drop, copy or hide layers.
pub const LAYER_ACTS: [Act; 6] =
    [Act::Snapshot, Act::Clone, Act::Rollback, Act::Flatten, Act::DeleteSnapshot, Act::Trash];

/// Those of a group of two volumes.
pub const GROUP_ACTS: [Act; 5] = [
    Act::PartnerWrite,
    Act::GroupSnapshot,
    Act::GroupSnapshotAmidWrites,
    Act::GroupRollback,
    Act::DropGroupSnapshot,
];

/// How long the trash keeps a volume, in seconds.
const KEEP_S: u64 = 24 * 3600;

/// One thing to ask for and to wait for.
#[derive(Clone, Debug)]
pub(super) enum Step {
    HangUp,
    Open,
    Opening(String),
    Ask(Errand),
    /// Asks, and waits for the answer when everything else is done.
    Begin(Errand),
    Asked(AdminToken, Errand),
    Flattening,
    /// A guest asks for something.
    Request(Act),
    Requesting((ConnectionId, RequestId), OperationId),
}

/// What an administrator does next. On what, is known when it is its turn.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Errand {
    Create { name: String },
    Delete,
    Resize { bytes: u64 },
    Snapshot,
    Clone,
    Rollback,
    Flatten,
    DeleteSnapshot,
    Trash,
    Undelete,
    Join,
    SnapshotGroup,
    RollbackGroup,
    DropGroupSnapshot,
}

impl Bench {
    /// Runs one operation to its end.
    pub(super) fn act(&mut self, act: Act) -> Result<(), String> {
        let mut steps = self.begin(act);
        while !steps.is_empty() {
            if !self.advance_act(&mut steps)? && !self.driver.proceed(Time(u64::MAX)) {
                return Err(format!("{act:?} never ends"));
            }
        }
        Ok(())
    }

    /// Begins an operation; what is left to do of it is returned, last thing first.
    pub(super) fn begin(&mut self, act: Act) -> Vec<Step> {
        let volume = self.books.volume(&self.current);
        let (has_snapshot, is_clone) = (!volume.snapshots.is_empty(), volume.origin.is_some());
        let has_origin = volume.origin.as_ref().is_some_and(|(name, _)| !name.is_empty());
        let bytes = self.oracle.bytes(volume.id);
        let ask = Step::Ask;
        let snapshot = (!has_snapshot).then_some(Step::Ask(Errand::Snapshot));
        let clone = [Step::HangUp, ask(Errand::Clone), Step::Open];
        let mut steps = Vec::new();
        match act {
            Act::Resize => {
                let bytes = if bytes == LARGE { SMALL } else { LARGE };
                steps.push(ask(Errand::Resize { bytes }));
            }
            Act::Delete => {
                let name = self.current.clone();
                let errands = [Errand::Delete, Errand::Create { name }].map(ask);
                steps.extend([Step::HangUp].into_iter().chain(errands).chain([Step::Open]));
            }
            Act::Snapshot => steps.push(ask(Errand::Snapshot)),
            Act::Clone => steps.extend(snapshot.into_iter().chain(clone)),
            Act::Rollback => {
                let back = [Step::HangUp, ask(Errand::Rollback), Step::Open];
                steps.extend(snapshot.into_iter().chain(back));
            }
            Act::Flatten => {
                if !is_clone {
                    steps.extend(snapshot.into_iter().chain(clone));
                }
                steps.extend([ask(Errand::Flatten), Step::Flattening]);
            }
            Act::DeleteSnapshot => {
                steps.extend(snapshot.filter(|_| !has_origin));
                steps.push(ask(Errand::DeleteSnapshot));
            }
            Act::Trash => {
                let errands = [Errand::Trash, Errand::Undelete].map(ask);
                steps.extend([Step::HangUp].into_iter().chain(errands).chain([Step::Open]));
            }
            Act::GroupSnapshot
            | Act::GroupSnapshotAmidWrites
            | Act::GroupRollback
            | Act::DropGroupSnapshot => steps = self.begin_with_group(act),
            act => steps.push(self.ask_guest(act)),
        }
        steps.reverse();
        steps
    }

    /// What to do with the group, first thing first.
    fn begin_with_group(&self, act: Act) -> Vec<Step> {
        let group = self.books.group();
        let has_left = !group.members.contains(&self.current) && !self.is_clone();
        let join = has_left.then_some(Step::Ask(Errand::Join));
        let snapshot = join.clone().into_iter().chain([Step::Ask(Errand::SnapshotGroup)]);
        let is_whole = |snapshot: &GroupSnapshot| snapshot.parts.len() == snapshot.count;
        match act {
            Act::GroupSnapshot => snapshot.collect(),
            Act::GroupSnapshotAmidWrites => {
                // One that is under way when it begins, and one that begins while it is taken.
                let during = [Step::Begin(Errand::SnapshotGroup), Step::Request(Act::AlignedWrite)];
                let after = Step::Request(Act::PartnerWrite);
                join.into_iter().chain(during).chain([after]).collect()
            }
            Act::GroupRollback => {
                let has_one = group.snapshots.iter().any(is_whole);
                let back = [Step::HangUp, Step::Ask(Errand::RollbackGroup), Step::Open];
                snapshot.filter(|_| !has_one).chain(back).collect()
            }
            _ => {
                let has_one = !group.snapshots.is_empty();
                let drop = Step::Ask(Errand::DropGroupSnapshot);
                snapshot.filter(|_| !has_one).chain([drop]).collect()
            }
        }
    }

    /// Whether the guest works on a clone, which is in no group.
    fn is_clone(&self) -> bool {
        self.current != super::NAME
    }

    /// Sends a request of the guest.
    fn ask_guest(&mut self, act: Act) -> Step {
        let partner = self.books.group.as_ref().map(|group| group.partner.clone());
        let name = match act {
            Act::PartnerWrite => partner.expect("there is a group"),
            _ => self.current.clone(),
        };
        let volume = self.books.volume(&name).id;
        let bytes = self.oracle.bytes(volume);
        let (action, offset, length) = match act {
            Act::AlignedWrite | Act::PartnerWrite => (Action::Write, 0, 2 * BLOCK),
            Act::UnalignedWrite => (Action::Write, 1536, BLOCK),
            Act::OverlappingWrite => (Action::Write, BLOCK, 2 * BLOCK),
            Act::Discard => (Action::Discard, BLOCK / 2, BLOCK + BLOCK / 2),
            Act::Zero => (Action::Zero, 1024, BLOCK),
            Act::Flush => (Action::Flush, 0, 0),
            other => unreachable!("{other:?} is an administrator's"),
        };
        let length = length.min(bytes - offset);
        let booked = self.oracle.invoke(volume, 0, action, offset, length);
        let operation = match action {
            Action::Write => {
                let start = offset - offset % BLOCK;
                let end = (offset + length).next_multiple_of(BLOCK);
                let mut buffer = Buffer::zeroed((end - start) as usize);
                let inside = (offset - start) as usize;
                let target = &mut buffer.as_mut_slice()[inside..inside + length as usize];
                self.oracle.fill(booked, target);
                Operation::Write { buffer, fua: false }
            }
            Action::Discard => Operation::Discard { fua: false },
            Action::Zero => {
                Operation::WriteZeroes { may_unmap: true, fast_only: false, fua: false }
            }
            Action::Flush => Operation::Flush,
            Action::Read => unreachable!("no operation of a workload reads"),
        };
        let connection = *self.connections.get(&name).expect("it is attached");
        let id = self.driver.request(connection, offset, length, operation);
        Step::Requesting((connection, id), booked)
    }

    /// Takes the next part of an operation if it can be taken. False: it waits.
    pub(super) fn advance_act(&mut self, steps: &mut Vec<Step>) -> Result<bool, String> {
        self.driver.listen();
        let Some(step) = steps.pop() else { return Ok(false) };
        let next = match step {
            Step::HangUp => {
                self.hang_up_all();
                None
            }
            Step::Open => {
                for name in self.wanted() {
                    self.ask_open(&name);
                    steps.push(Step::Opening(name));
                }
                None
            }
            Step::Opening(ref name) => match self.driver.answers.remove(&self.connections[name]) {
                None => return Ok(wait(steps, step)),
                Some(answer) => {
                    self.opened(name, answer)?;
                    None
                }
            },
            Step::Ask(errand) => {
                let token = self.send(&errand);
                Some(Step::Asked(token, errand))
            }
            Step::Begin(errand) => {
                let token = self.send(&errand);
                steps.insert(0, Step::Asked(token, errand));
                None
            }
            Step::Asked(token, errand) => match self.driver.replies.remove(&token) {
                None => return Ok(wait(steps, Step::Asked(token, errand))),
                // The volume may still be on its way out of somebody's hands: ask again.
                Some(Err(_)) if matches!(errand, Errand::Delete | Errand::Trash) => {
                    return Ok(wait(steps, Step::Ask(errand)));
                }
                Some(Ok(_)) => {
                    self.book_answered()?;
                    None
                }
                Some(Err(error)) => return Err(format!("{errand:?} failed: {error}")),
            },
            Step::Flattening => {
                let request = AdminRequest::VolumeInfo { name: self.current.clone() };
                match self.consult(request)? {
                    AdminReply::Volume(report) if report.origin.is_none() => {
                        self.books.volume_mut(&self.current.clone()).origin = None;
                        None
                    }
                    _ => return Ok(wait(steps, step)),
                }
            }
            Step::Request(act) => Some(self.ask_guest(act)),
            Step::Requesting(key, booked) => match self.driver.completions.remove(&key) {
                None => return Ok(wait(steps, step)),
                Some(Ok(Completion::Done)) => {
                    self.oracle.ok(booked, false);
                    None
                }
                Some(other) => return Err(format!("a request was answered {other:?}")),
            },
        };
        steps.extend(next);
        Ok(true)
    }

    /// Asks for a change, and notes that it is under way.
    fn send(&mut self, errand: &Errand) -> AdminToken {
        let name = self.current.clone();
        let volume = self.books.volumes.get(&name);
        let snapshots = volume.map_or(&[][..], |volume| &volume.snapshots);
        let [oldest, newest] = [snapshots.first(), snapshots.last()]
            .map(|snapshot| snapshot.map(|(tag, _)| tag.clone()));
        self.books.next_name += 1;
        let change = match errand {
            Errand::Create { name } => Change::Create { name: name.clone() },
            Errand::Delete => Change::Delete { name },
            Errand::Resize { bytes } => Change::Resize { name, bytes: *bytes },
            Errand::Snapshot => {
                Change::Snapshot { name, tag: format!("s{}", self.books.next_name) }
            }
            Errand::Clone => {
                let new_name = format!("clone{}", self.books.next_name);
                Change::Clone { name, tag: newest.expect("one was taken"), new_name }
            }
            Errand::Rollback => Change::Rollback { name, tag: oldest.expect("one was taken") },
            Errand::Flatten => Change::Flatten { name },
            Errand::Trash => Change::Trash { name },
            Errand::Undelete => Change::Undelete { name },
            Errand::Join => Change::Join { name },
            Errand::SnapshotGroup => {
                Change::SnapshotGroup { tag: format!("g{}", self.books.next_name) }
            }
            Errand::RollbackGroup => {
                let mut snapshots = self.books.group().snapshots.iter();
                let oldest = snapshots.find(|snapshot| snapshot.parts.len() == snapshot.count);
                Change::RollbackGroup { tag: oldest.expect("one was taken").tag.clone() }
            }
            Errand::DropGroupSnapshot => {
                let oldest = self.books.group().snapshots.first();
                Change::DropGroupSnapshot { tag: oldest.expect("one was taken").tag.clone() }
            }
            Errand::DeleteSnapshot => match oldest {
                Some(tag) => Change::DeleteSnapshot { name, tag },
                None => {
                    let origin = volume.and_then(|volume| volume.origin.clone());
                    let (name, tag) = origin.expect("it is a clone");
                    Change::DeleteSnapshot { name, tag }
                }
            },
        };
        let takings = self.begin_takings(&change);
        let token = self.driver.administer(request_for(&change));
        self.pending = Some((change, takings));
        token
    }

    /// Tells the oracle of the snapshots that a change is going to take.
    pub(super) fn begin_takings(&mut self, change: &Change) -> Takings {
        let names = match change {
            Change::Snapshot { name, .. } => BTreeSet::from([name.clone()]),
            Change::SnapshotGroup { .. } => self.books.group().members.clone(),
            _ => BTreeSet::new(),
        };
        let mut takings = Takings::new();
        for name in names {
            let volume = self.books.volume(&name).id;
            takings.insert(name, self.oracle.invoke_snapshot(volume));
        }
        takings
    }
}

fn wait(steps: &mut Vec<Step>, step: Step) -> bool {
    steps.push(step);
    false
}

pub(super) fn request_for(change: &Change) -> AdminRequest {
    match change.clone() {
        Change::Create { name } => AdminRequest::VolumeCreate { name, bytes: LARGE },
        Change::Delete { name } => {
            AdminRequest::VolumeDelete { name, with_snapshots: true, keep_s: Some(0) }
        }
        Change::Trash { name } => {
            AdminRequest::VolumeDelete { name, with_snapshots: true, keep_s: Some(KEEP_S) }
        }
        Change::Undelete { name } => AdminRequest::TrashUndelete { which: name, new_name: None },
        Change::Resize { name, bytes } => {
            AdminRequest::VolumeResize { name, bytes, allow_shrink: true }
        }
        Change::Snapshot { name, tag } => AdminRequest::SnapshotCreate { name, tag },
        Change::Clone { name, tag, new_name } => AdminRequest::VolumeClone { name, tag, new_name },
        Change::Rollback { name, tag } => AdminRequest::VolumeRollback { name, tag },
        Change::Flatten { name } => {
            AdminRequest::VolumeFlatten { name, action: FlattenAction::Start }
        }
        Change::DeleteSnapshot { name, tag } => AdminRequest::SnapshotDelete { name, tag },
        Change::Join { name } => AdminRequest::GroupAdd { name: GROUP.into(), volumes: vec![name] },
        Change::SnapshotGroup { tag } => AdminRequest::GroupSnapshot { name: GROUP.into(), tag },
        Change::RollbackGroup { tag } => AdminRequest::GroupRollback { name: GROUP.into(), tag },
        Change::DropGroupSnapshot { tag } => {
            AdminRequest::GroupSnapshotDelete { name: GROUP.into(), tag }
        }
    }
}

impl Bench {
    /// Books a change that was made: it was answered, or found made after a crash. What it made is
    /// known by what the node says now.
    pub(super) fn book(&mut self, change: Change, takings: Takings) -> Result<(), String> {
        match change {
            Change::Create { name } => {
                let id = self.adopt(&name, None)?;
                self.oracle.create(id, LARGE);
                self.current = name;
            }
            Change::Delete { name } => {
                let volume = self.books.volumes.remove(&name).expect("it existed");
                self.oracle.remove(volume.id);
                self.books.orphan(|origin| origin.0 == name);
                let gone: Vec<u64> = volume.snapshots.iter().map(|(_, layer)| *layer).collect();
                self.books.forget_parts(&gone);
                self.books.forget_member(&name);
            }
            Change::Resize { name, bytes } => {
                self.oracle.resize(self.books.volume(&name).id, bytes);
            }
            Change::Snapshot { name, tag } => {
                self.book_snapshot(&name, tag, takings.get(&name).copied(), false)?;
            }
            Change::Clone { name, tag, new_name } => {
                let source = entry(self.books.layer(&name, &tag));
                let id = self.adopt(&new_name, Some((name, tag)))?;
                self.oracle.clone_snapshot(source, id);
                self.current = new_name;
            }
            Change::Rollback { name, tag } => self.book_rollback(&name, &tag)?,
            // The content is the same; the node does it in its own time.
            Change::Flatten { .. } => {}
            Change::DeleteSnapshot { name, tag } => self.book_dropped(&name, &tag),
            Change::Trash { name } => {
                self.books.volume_mut(&name).trashed = true;
                self.books.forget_member(&name);
            }
            Change::Undelete { name } => self.books.volume_mut(&name).trashed = false,
            Change::Join { name } => {
                self.books.group_mut().members.insert(name);
            }
            Change::SnapshotGroup { tag } => {
                let members = self.books.group().members.clone();
                let mut parts = BTreeSet::new();
                for name in &members {
                    let taking = takings.get(name).copied();
                    parts.insert(self.book_snapshot(name, tag.clone(), taking, true)?);
                }
                let snapshot = GroupSnapshot { tag, count: members.len(), parts };
                self.books.group_mut().snapshots.push(snapshot);
            }
            Change::RollbackGroup { tag } => {
                for name in self.books.parts(&tag).into_keys() {
                    self.book_rollback(&name, &tag)?;
                }
            }
            Change::DropGroupSnapshot { tag } => {
                for name in self.books.parts(&tag).into_keys() {
                    self.book_dropped(&name, &tag);
                }
            }
        }
        Ok(())
    }

    /// A snapshot of a volume exists. Returns its layer. When a crash interrupted it, it was sealed
    /// before or not.
    fn book_snapshot(
        &mut self,
        name: &str,
        tag: String,
        taking: Option<OperationId>,
        was_sealed: bool,
    ) -> Result<u64, String> {
        let volume = self.books.volume(name).clone();
        let sealed = volume.head;
        match taking {
            Some(taking) => self.oracle.ok_snapshot(taking, entry(sealed)),
            None if self.oracle.recover_snapshot(volume.id, entry(sealed), was_sealed) => {}
            None => return Err(format!("a snapshot of {name} came from nowhere")),
        }
        self.books.sealed.insert(sealed);
        let head = self.head(name)?;
        let volume = self.books.volume_mut(name);
        volume.snapshots.push((tag, sealed));
        volume.head = head;
        Ok(sealed)
    }

    fn book_rollback(&mut self, name: &str, tag: &str) -> Result<(), String> {
        let source = entry(self.books.layer(name, tag));
        let head = self.head(name)?;
        let volume = self.books.volume_mut(name);
        volume.head = head;
        let id = volume.id;
        self.oracle.roll_back(id, source);
        Ok(())
    }

    fn book_dropped(&mut self, name: &str, tag: &str) {
        let layer = self.books.layer(name, tag);
        let volume = self.books.volume_mut(name);
        volume.snapshots.retain(|(known, _)| known != tag);
        self.books.orphan(|origin| origin.0 == name && origin.1 == tag);
        self.books.forget_parts(&[layer]);
    }
}
