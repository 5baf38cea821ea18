//! One object of each disk that is made equal to a copy, over and over: what the disk has staged
//! and adopted, as a store would, and who asks for it. However often a request comes, what was
//! adopted is what was staged for it.

use super::disk::content;
use super::requests::{LINEAGE, UNDER};
use proto::{
    Change, Generation, LayerId, MemberError, MemberReply, MemberRequest, ObjectKey, Payload,
    Permit, Stamp,
};
use std::collections::BTreeMap;

/// The object. All other requests are about another one.
pub const COPIED: ObjectKey = ObjectKey { layer: LayerId(3), index: 9 };

/// Blocks and what they have: the first bytes of it.
type Parts = BTreeMap<u32, [u8; 8]>;

/// What a disk has of the object.
#[derive(Debug, Default)]
pub struct Copied {
    staged: Parts,
    /// Its stamp, and what was adopted with it.
    pub stamp: Stamp,
    pub adopted: Parts,
    /// How often it had the stamp already.
    pub adopted_before: u64,
    /// How often something else was staged.
    pub not_staged: u64,
}

impl Copied {
    /// The same blocks once more replace those that are there.
    pub fn stage(&mut self, first: u32, payload: &Payload) {
        self.staged.insert(first, start_of(payload));
    }

    pub fn adopt(&mut self, staged: u32, stamp: Stamp) -> Result<MemberReply, MemberError> {
        let have = self.staged.len() as u32;
        if have == 0 && self.stamp == stamp {
            self.adopted_before += 1;
            return Ok(MemberReply::Done);
        }
        let parts = std::mem::take(&mut self.staged);
        if have != staged {
            self.not_staged += 1;
            return Err(MemberError::NotStaged { have });
        }
        (self.stamp, self.adopted) = (stamp, parts);
        Ok(MemberReply::Done)
    }

    /// The disk is opened anew.
    pub fn reopen(&mut self) {
        self.staged.clear();
    }
}

fn start_of(payload: &Payload) -> [u8; 8] {
    payload.as_slice()[..8].try_into().expect("a whole block")
}

#[derive(Clone, Copy, Debug, Default)]
enum State {
    #[default]
    New,
    /// From the beginning.
    Again,
    /// So many parts are not answered.
    Staging(u32),
    Staged,
    Adopting,
}

/// Who copies: one round after the other, each with its own content.
#[derive(Clone, Copy, Debug, Default)]
pub struct Copier {
    state: State,
    round: u64,
}

impl Copier {
    /// What to ask now.
    pub fn next_requests(&mut self) -> Vec<MemberRequest> {
        match self.state {
            State::Staging(_) | State::Adopting => Vec::new(),
            State::Staged if !self.gives_up() => {
                self.state = State::Adopting;
                vec![MemberRequest::Adopt {
                    permit: permit(),
                    lineage: LINEAGE,
                    key: COPIED,
                    staged: self.parts(),
                    stamp: self.stamp(),
                    settled_generation: Generation(2),
                }]
            }
            State::New | State::Again | State::Staged => {
                self.round += u64::from(!matches!(self.state, State::Again));
                self.state = State::Staging(self.parts());
                let stage = |first| {
                    let change =
                        Change::Data { first, payload: self.part(first), detect_zeroes: false };
                    MemberRequest::Stage { permit: permit(), lineage: LINEAGE, key: COPIED, change }
                };
                (0..self.parts()).map(stage).collect()
            }
        }
    }

    /// An answer; if something was adopted, the disk must have just that.
    pub fn answered(&mut self, result: &Result<MemberReply, MemberError>, disk: &Copied) {
        self.state = match (self.state, result) {
            (State::Staging(1), Ok(_)) => State::Staged,
            (State::Staging(missing), Ok(_)) => State::Staging(missing - 1),
            (State::Adopting, Ok(_)) => {
                assert_eq!(disk.stamp, self.stamp());
                let told: Parts =
                    (0..self.parts()).map(|first| (first, start_of(&self.part(first)))).collect();
                assert_eq!(disk.adopted, told, "something else was adopted than was staged");
                State::New
            }
            (State::Adopting, Err(MemberError::NotStaged { .. })) => State::Again,
            other => panic!("{other:?}"),
        };
    }

    /// The process that was asked is gone.
    pub fn forgotten(&mut self) {
        self.state = State::Again;
    }

    /// This process is gone, and another one goes on.
    pub fn restarted(self) -> Copier {
        Copier { state: State::New, ..self }
    }

    /// Now and then nothing becomes of a round, and the disk is left with what it has staged.
    fn gives_up(&self) -> bool {
        !self.round.is_multiple_of(2)
    }

    fn parts(&self) -> u32 {
        3 - (self.round % 3) as u32
    }

    fn part(&self, first: u32) -> Payload {
        content(self.round * 4 + u64::from(first), 1)
    }

    fn stamp(&self) -> Stamp {
        Stamp { generation: Generation(2), sequence: self.round }
    }
}

fn permit() -> Permit {
    Permit::Attempt { under: UNDER, attempt: 1 }
}
