//! What a session that only reads shows of an object whose members may differ.
//!
//! It fences nobody and settles nothing. What a writer left in flight when it died may be on one
//! member and not on others; a session that read it from one and then read another would see time
//! go back. So before the first read of an object its members are asked for its stamp, one of the
//! answers of a write quorum is chosen as an opening would choose it (`settle`), and the object is
//! read only from members that have just that. Nobody writes meanwhile: the agreed state attaches
//! no writer beside it, and one that comes later fences it.
//!
//! An answer counts when the disk has confirmed, in answer to a later question, that it is the
//! opening of it which is listed: one that was opened anew may have lost what it had acknowledged.

use crate::coordinator::{Coordinator, Pending};
use crate::event::Effect;
use crate::partitions::Group;
use crate::peer::{PeerIndex, PeerSet};
use crate::settle::settle_among;
use proto::limits::SESSION_STAMPS_MAX;
use proto::{Generation, MemberRequest, ObjectStamp, Stamp};
use std::collections::{BTreeMap, BTreeSet};

/// The objects that were asked for.
#[derive(Debug, Default)]
pub(crate) struct Choices {
    objects: BTreeMap<u32, Choice>,
    /// Those of them of which nothing is chosen yet.
    open: BTreeSet<u32>,
}

#[derive(Debug)]
struct Choice {
    /// Members that were asked, whether or not they have answered.
    asked: PeerSet,
    state: ChoiceState,
}

#[derive(Debug)]
enum ChoiceState {
    /// What was answered so far.
    Asking(Vec<Told>),
    Chosen(Chosen),
}

/// What is shown.
#[derive(Debug)]
struct Chosen {
    stamp: Stamp,
    settled_by: Generation,
    /// Members that have it, ..
    holders: PeerSet,
    /// .. and members that have something else.
    others: PeerSet,
}

#[derive(Clone, Copy, Debug)]
struct Told {
    peer: PeerIndex,
    found: ObjectStamp,
    /// It counts when the peer has proved itself after this count; see `Coordinator::clock`.
    proof: u64,
}

impl Chosen {
    fn take(&mut self, peer: PeerIndex, found: ObjectStamp) {
        // Equal stamps settled by the same are equal content; of others that is not known.
        let is_same = found.stamp == self.stamp && settled_by(&found) == self.settled_by;
        if is_same { self.holders.insert(peer) } else { self.others.insert(peer) }
    }
}

fn settled_by(found: &ObjectStamp) -> Generation {
    found.settled_generation.max(found.stamp.generation)
}

impl Choices {
    fn chosen(&self, index: u32) -> Option<&Chosen> {
        match &self.objects.get(&index)?.state {
            ChoiceState::Chosen(chosen) => Some(chosen),
            ChoiceState::Asking(_) => None,
        }
    }

    /// Whether this member is known to have what is shown.
    pub(crate) fn holds(&self, peer: PeerIndex, index: u32) -> bool {
        self.chosen(index).is_some_and(|chosen| chosen.holders.contains(peer))
    }

    /// Whether this member is known to have something else than what is shown.
    pub(crate) fn differs(&self, peer: PeerIndex, index: u32) -> bool {
        self.chosen(index).is_some_and(|chosen| chosen.others.contains(peer))
    }

    /// Forgets what can be asked for anew, if there are `limit` objects: a choice that a quorum has
    /// comes out the same or newer. One that fewer have could come out older, and is kept. Gives
    /// back whether there is room for one more.
    fn make_room(&mut self, limit: usize, quorum: impl Fn(u32) -> usize) -> bool {
        if self.objects.len() >= limit {
            self.objects.retain(|index, choice| match &choice.state {
                ChoiceState::Asking(_) => true,
                ChoiceState::Chosen(chosen) => chosen.holders.len() < quorum(*index),
            });
        }
        self.objects.len() < limit
    }

    pub(crate) fn clear(&mut self) {
        *self = Choices::default();
    }
}

impl Coordinator {
    /// Whether what an object shows has to be chosen.
    pub(crate) fn chooses(&self, index: u32) -> bool {
        let is_head = self.read_only && self.generation != Generation::SEALED;
        is_head && self.partition_at(index).members.len() > 1
    }

    /// Asks those members for the object's stamp that were not asked and can be.
    pub(crate) fn pump_choice(&mut self, index: u32, effects: &mut Vec<Effect>) {
        if !self.choices.objects.contains_key(&index) {
            let partitions = &self.partitions;
            let (lineage, bits) = (self.lineage, partitions.bits());
            let quorum = |index| partitions.quorum_of(proto::partition_of(lineage, index, bits));
            if !self.choices.make_room(SESSION_STAMPS_MAX, quorum) {
                return;
            }
            let state = ChoiceState::Asking(Vec::new());
            self.choices.objects.insert(index, Choice { asked: PeerSet::EMPTY, state });
            self.choices.open.insert(index);
        }
        for peer in self.partition_at(index).whole.iter() {
            let choice = self.choices.objects.get_mut(&index).expect("it is there now");
            let state = &self.peers[usize::from(peer)];
            let may_tell = state.is_up() && state.retry_at.is_none() && state.knows_a_layer();
            if choice.asked.contains(peer) || !may_tell {
                continue;
            }
            choice.asked.insert(peer);
            let (lineage, generation) = (self.lineage, self.generation);
            let key = self.key_at(peer, index);
            let request = MemberRequest::Stamp { lineage, key, generation };
            self.ask(Pending::Choose { peer, object: index }, request, effects);
        }
    }

    /// A member tells what it has.
    pub(crate) fn handle_told(
        &mut self,
        peer: PeerIndex,
        index: u32,
        found: ObjectStamp,
        effects: &mut Vec<Effect>,
    ) {
        let Some(choice) = self.choices.objects.get_mut(&index) else { return };
        match &mut choice.state {
            ChoiceState::Asking(told) => {
                // A confirmation that was asked for before this proves nothing about it.
                self.clock += 1;
                told.push(Told { peer, found, proof: self.clock });
                self.want_confirmation(peer, effects);
            }
            ChoiceState::Chosen(chosen) => {
                chosen.take(peer, found);
                self.is_changed = true;
            }
        }
    }

    /// A member did not tell: it may be asked again.
    pub(crate) fn untold(&mut self, peer: PeerIndex, index: u32) {
        if let Some(choice) = self.choices.objects.get_mut(&index) {
            choice.asked.remove(peer);
            self.is_changed = true;
        }
    }

    /// A disk has proved which opening it is: answers of it may count now.
    pub(crate) fn choose(&mut self) {
        for index in self.choices.open.iter().copied().collect::<Vec<u32>>() {
            let (whole, quorum) = {
                let partition = self.partition_at(index);
                (partition.whole, partition.quorum())
            };
            let peers = &self.peers;
            let choice = self.choices.objects.get_mut(&index).expect("it is open");
            let ChoiceState::Asking(told) = &choice.state else { continue };
            let counts = |it: &&Told| {
                whole.contains(it.peer) && peers[usize::from(it.peer)].proved >= it.proof
            };
            let counted = told.iter().filter(counts);
            if counted.clone().count() < quorum {
                continue;
            }
            let best = settle_among(counted.map(|it| it.found));
            let Some(best) = best else { continue };
            let mut chosen = Chosen {
                stamp: best.stamp,
                settled_by: settled_by(&best),
                holders: PeerSet::EMPTY,
                others: PeerSet::EMPTY,
            };
            told.iter().for_each(|it| chosen.take(it.peer, it.found));
            choice.state = ChoiceState::Chosen(chosen);
            self.choices.open.remove(&index);
            self.is_changed = true;
        }
    }

    /// The members of some partitions are others, and all have the same: it is chosen anew.
    pub(crate) fn reset_choices(&mut self, is_changed: impl Fn(&Coordinator, u32) -> bool) {
        let mut choices = std::mem::take(&mut self.choices);
        choices.objects.retain(|index, _| !is_changed(self, *index));
        choices.open.retain(|index| !is_changed(self, *index));
        let of = |(token, pending): (u64, &Pending)| match pending {
            Pending::Choose { object, .. } if is_changed(self, *object) => Some(token),
            _ => None,
        };
        let gone: Vec<u64> = self.tokens.iter().filter_map(of).collect();
        for token in gone {
            self.tokens.remove(token);
        }
        self.choices = choices;
    }

    /// Those who have what is shown of an object, if none of them serves.
    fn lost_holders(&self, index: u32) -> Option<PeerSet> {
        let chosen = self.choices.chosen(index)?;
        let holders: PeerSet = chosen
            .holders
            .iter()
            .filter(|it| self.partition_at(index).whole.contains(*it))
            .collect();
        holders.iter().all(|peer| !self.is_ready(peer)).then_some(holders)
    }

    /// For whom a read waits because nobody else has what is shown: continues the sentence
    /// "waiting for ..".
    pub(crate) fn choice_obstacle(&self) -> Option<String> {
        self.waiting_objects().find_map(|index| {
            if !self.choices.objects.contains_key(&index) {
                let why = "members to become equal: too many objects differ between them";
                return Some(why.to_string());
            }
            let holders = self.lost_holders(index)?;
            let partition = self.partition_at(index);
            let group = Group { members: partition.members, whole: partition.whole };
            let words = holders.iter().filter_map(|peer| self.waits_for(&group, peer));
            let words: Vec<String> = words.collect();
            let who = match words.is_empty() {
                true => "the members of a partition to be changed".to_string(),
                false => words.join(" or "),
            };
            Some(format!("{who}; nobody else has what this session has to show"))
        })
    }

    /// Whether some read waits for disks that do not serve, however long one waits.
    pub(crate) fn is_choice_away(&self) -> bool {
        let is_away = |peer: PeerIndex| self.peers[usize::from(peer)].is_away();
        self.waiting_objects()
            .filter_map(|index| self.lost_holders(index))
            .any(|holders| holders.iter().all(is_away))
    }

    /// Asserts what is known of choices.
    pub(crate) fn check_choices(&self) {
        let Choices { objects, open } = &self.choices;
        assert!(objects.len() <= SESSION_STAMPS_MAX, "more is remembered than may be");
        assert!(self.read_only || objects.is_empty(), "a writer settles");
        let mut under_way: BTreeMap<(u32, PeerIndex), usize> = BTreeMap::new();
        for (_, pending) in self.tokens.iter() {
            if let Pending::Choose { peer, object } = pending {
                *under_way.entry((*object, *peer)).or_default() += 1;
            }
        }
        for (index, choice) in objects {
            let answered: PeerSet = match &choice.state {
                ChoiceState::Asking(told) => told.iter().map(|it| it.peer).collect(),
                ChoiceState::Chosen(chosen) => {
                    assert!(!chosen.holders.is_empty(), "nobody has what was chosen");
                    chosen.holders.iter().chain(chosen.others.iter()).collect()
                }
            };
            let is_open = matches!(choice.state, ChoiceState::Asking(_));
            assert_eq!(open.contains(index), is_open, "object {index}");
            for peer in choice.asked.iter() {
                let asked = under_way.get(&(*index, peer)).copied().unwrap_or(0);
                assert_eq!(asked + usize::from(answered.contains(peer)), 1, "{choice:?}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_quorum_has_is_forgotten() {
        let mut choices = Choices::default();
        for index in 0..6 {
            let holders = (0..=(index % 3) as PeerIndex).collect();
            let chosen = Chosen {
                stamp: Stamp::default(),
                settled_by: Generation(0),
                holders,
                others: PeerSet::EMPTY,
            };
            let state = match index {
                5 => ChoiceState::Asking(Vec::new()),
                _ => ChoiceState::Chosen(chosen),
            };
            choices.objects.insert(index, Choice { asked: PeerSet::EMPTY, state });
        }
        assert!(choices.make_room(7, |_| 2) && choices.objects.len() == 6, "there is room");
        assert!(choices.make_room(6, |_| 2));
        // One holder is not enough, and the last one is still being asked for.
        assert!(choices.objects.keys().eq(&[0, 3, 5]));
        assert!(!choices.make_room(3, |_| 2), "nothing more can be forgotten");
    }
}
