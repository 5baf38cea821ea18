//! The operations that workloads are made of, each a few steps of a guest and an administrator.

use super::{
    BLOCK, LARGE, SMALL,
    bench::Bench,
    books::{Change, entry},
};
use crate::oracle::{Action, OperationId};
use engine::admin::{AdminReply, AdminRequest, AdminToken, FlattenAction};
use proto::{Buffer, Time};
use volume::{Answer, Completion, Operation, RequestId};

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
/// How long the trash keeps a volume, in seconds.
const KEEP_S: u64 = 24 * 3600;

/// One thing to ask for and to wait for.
#[derive(Clone, Debug)]
pub(super) enum Step {
    HangUp,
    Open,
    Opening,
    Ask(Errand),
    Asked(AdminToken, Errand),
    Flattening,
    Requesting(RequestId, OperationId),
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
}

impl Bench {
    /// Runs one operation to its end.
    pub(super) fn act(&mut self, act: Act) -> Result<(), String> {
        let mut steps = self.begin(act);
        while !steps.is_empty() {
            if !self.advance_act(&mut steps)? && !self.step() && !self.pass_time(Time(u64::MAX)) {
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
        let ask = |errand| Step::Ask(errand);
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
            act => steps.push(self.ask_guest(act, bytes)),
        }
        steps.reverse();
        steps
    }

    /// Sends a request of the guest.
    fn ask_guest(&mut self, act: Act, bytes: u64) -> Step {
        let (action, offset, length) = match act {
            Act::AlignedWrite => (Action::Write, 0, 2 * BLOCK),
            Act::UnalignedWrite => (Action::Write, 1536, BLOCK),
            Act::OverlappingWrite => (Action::Write, BLOCK, 2 * BLOCK),
            Act::Discard => (Action::Discard, BLOCK / 2, BLOCK + BLOCK / 2),
            Act::Zero => (Action::Zero, 1024, BLOCK),
            Act::Flush => (Action::Flush, 0, 0),
            other => unreachable!("{other:?} is an administrator's"),
        };
        let length = length.min(bytes - offset);
        let volume = self.books.volume(&self.current).id;
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
        let id = self.request(self.connection, offset, length, operation);
        Step::Requesting(id, booked)
    }

    /// Takes the next part of an operation if it can be taken. False: it waits.
    pub(super) fn advance_act(&mut self, steps: &mut Vec<Step>) -> Result<bool, String> {
        self.listen();
        let Some(step) = steps.pop() else { return Ok(false) };
        let next = match step {
            Step::HangUp => {
                self.hang_up(self.connection);
                None
            }
            Step::Open => {
                self.connection = self.ask_open(&self.current.clone());
                Some(Step::Opening)
            }
            Step::Opening => match self.answers.remove(&self.connection.0) {
                None => return Ok(wait(steps, step)),
                Some(answer) => {
                    self.opened(answer)?;
                    None
                }
            },
            Step::Ask(errand) => {
                let token = self.send(&errand);
                Some(Step::Asked(token, errand))
            }
            Step::Asked(token, errand) => match self.replies.remove(&token) {
                None => return Ok(wait(steps, Step::Asked(token, errand))),
                // The volume may still be on its way out of somebody's hands: ask again.
                Some(Err(_)) if matches!(errand, Errand::Delete | Errand::Trash) => {
                    return Ok(wait(steps, Step::Ask(errand)));
                }
                Some(Ok(_)) => {
                    self.book_answered()?;
                    None
                }
                Some(Err(sentence)) => return Err(format!("{errand:?} failed: {sentence}")),
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
            Step::Requesting(id, booked) => match self.completions.remove(&id) {
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

    fn opened(&mut self, answer: Answer) -> Result<(), String> {
        let volume = self.books.volume(&self.current).id;
        match answer {
            Answer::Opened { bytes, .. } if bytes == self.oracle.bytes(volume) => {
                self.oracle.attached(volume);
                Ok(())
            }
            other => Err(format!("opening was answered {other:?}")),
        }
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
            Errand::DeleteSnapshot => match oldest {
                Some(tag) => Change::DeleteSnapshot { name, tag },
                None => {
                    let origin = volume.and_then(|volume| volume.origin.clone());
                    let (name, tag) = origin.expect("it is a clone");
                    Change::DeleteSnapshot { name, tag }
                }
            },
        };
        let taking = match &change {
            Change::Snapshot { name, .. } => {
                Some(self.oracle.invoke_snapshot(self.books.volume(name).id))
            }
            _ => None,
        };
        let token = self.administer(request_for(&change));
        self.pending = Some((change, taking));
        token
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
    }
}

impl Bench {
    /// Books a change that was made: it was answered, or found made after a crash. What it made is
    /// known by what the node says now.
    pub(super) fn book(
        &mut self,
        change: Change,
        taking: Option<OperationId>,
    ) -> Result<(), String> {
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
            }
            Change::Resize { name, bytes } => {
                self.oracle.resize(self.books.volume(&name).id, bytes);
            }
            Change::Snapshot { name, tag } => {
                let volume = self.books.volume(&name).clone();
                let sealed = volume.head;
                match taking {
                    Some(taking) => self.oracle.ok_snapshot(taking, entry(sealed)),
                    None if self.oracle.recover_snapshot(volume.id, entry(sealed)) => {}
                    None => return Err(format!("a snapshot of {name} came from nowhere")),
                }
                self.books.sealed.insert(sealed);
                let head = self.head(&name)?;
                let volume = self.books.volume_mut(&name);
                volume.snapshots.push((tag, sealed));
                volume.head = head;
            }
            Change::Clone { name, tag, new_name } => {
                let source = entry(self.books.layer(&name, &tag));
                let id = self.adopt(&new_name, Some((name, tag)))?;
                self.oracle.clone_snapshot(source, id);
                self.current = new_name;
            }
            Change::Rollback { name, tag } => {
                let source = entry(self.books.layer(&name, &tag));
                let head = self.head(&name)?;
                let volume = self.books.volume_mut(&name);
                volume.head = head;
                let id = volume.id;
                self.oracle.roll_back(id, source);
            }
            // The content is the same; the node does it in its own time.
            Change::Flatten { .. } => {}
            Change::DeleteSnapshot { name, tag } => {
                let volume = self.books.volume_mut(&name);
                volume.snapshots.retain(|(known, _)| *known != tag);
                self.books.orphan(|origin| *origin == (name.clone(), tag.clone()));
            }
            Change::Trash { name } => self.books.volume_mut(&name).trashed = true,
            Change::Undelete { name } => self.books.volume_mut(&name).trashed = false,
        }
        Ok(())
    }
}
