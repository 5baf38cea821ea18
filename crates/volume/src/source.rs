//! Asking a source: where the chain of what shows through ends in a layer that lies elsewhere, the
//! driver reads it. A source may answer late, or not at all for days: its pieces wait, are asked
//! for again, and are given up when the session ends. Nothing is ever taken for zeros but what the
//! source itself said is.

use crate::closing::BEING_CLOSED;
use crate::event::{Effect, SourceAnswer, SourceToken};
use crate::origin::Follow;
use crate::session::{Life, Role, Session};
use cluster::Origin;
use proto::limits::{MEMBER_REQUEST_BLOCKS_MAX, SOURCE_PIECES_MAX, SOURCE_RETRY_MS};
use proto::{
    BLOCK_SIZE, BLOCKS_PER_OBJECT, BlockRange, BlockState, Duration, LayerId, OBJECT_SIZE, Time,
};
use replica::Answer;
use std::collections::{BTreeMap, BTreeSet};

const _: () = assert!(SOURCE_PIECES_MAX >= 2, "there is room beside the background");

/// What is asked of sources.
///
/// Invariant: each question belongs to a piece under way, and each piece of a source to one
/// question.
#[derive(Debug, Default)]
pub(crate) struct Sources {
    /// In the order in which they came. A number is never used again, so that what comes late
    /// finds nothing.
    questions: BTreeMap<u64, Question>,
    /// Number of the last question.
    last: u64,
    /// Sources whose last answer was an error.
    troubles: BTreeMap<LayerId, Trouble>,
    /// Whether there are questions of guests since it was last asked.
    has_grown: bool,
}

#[derive(Debug)]
struct Question {
    /// The piece that waits for it, and the work that waits for the piece.
    piece: u64,
    work: u64,
    layer: LayerId,
    offset: u64,
    /// As far as the source reaches: at most `blocks`.
    length: u64,
    blocks: BlockRange,
    kind_only: bool,
    /// Whether nobody waits for it but the session itself.
    background: bool,
    /// Whether it is with the driver.
    asked: bool,
}

#[derive(Debug)]
struct Trouble {
    /// Since when.
    since: Time,
    reason: String,
    /// When one question is asked again, to see.
    again_at: Time,
}

/// What a session knows of a source that does not answer.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SourceTrouble {
    /// Since when it has not.
    pub since: Time,
    /// Where the source is, and why it does not: "nbd://.. (connection refused)".
    pub reason: String,
}

impl Sources {
    /// When a source that failed is asked again.
    pub(crate) fn deadline(&self) -> Option<Time> {
        let waits = |layer: &LayerId| {
            self.questions.values().any(|question| question.layer == *layer && !question.asked)
                && !self.is_asked(*layer)
        };
        let troubles = self.troubles.iter().filter(|(layer, _)| waits(layer));
        troubles.map(|(_, trouble)| trouble.again_at).min()
    }

    fn is_asked(&self, layer: LayerId) -> bool {
        self.questions.values().any(|question| question.layer == layer && question.asked)
    }

    /// The source that a work waits for, if it waits for one.
    pub(crate) fn awaited_by(&self, work: u64) -> Option<LayerId> {
        let mut questions = self.questions.values();
        questions.find(|question| question.work == work).map(|question| question.layer)
    }

    /// The works of guests that wait for sources, and how many questions each has.
    pub(crate) fn asked_by_guests(&self) -> impl Iterator<Item = (u64, usize)> + use<> {
        let mut works: BTreeMap<u64, usize> = BTreeMap::new();
        for question in self.questions.values().filter(|question| !question.background) {
            *works.entry(question.work).or_default() += 1;
        }
        works.into_iter()
    }

    /// The works that wait for a source that does not answer.
    pub(crate) fn in_trouble(&self) -> BTreeSet<u64> {
        let is_away = |question: &&Question| self.troubles.contains_key(&question.layer);
        self.questions.values().filter(is_away).map(|question| question.work).collect()
    }

    /// Whether there are questions of guests since this was last asked.
    pub(crate) fn has_grown(&mut self) -> bool {
        std::mem::take(&mut self.has_grown)
    }

    /// What may be asked now: the guests' questions before the others.
    fn next(&self, now: Time) -> Option<u64> {
        let asked = self.questions.values().filter(|question| question.asked);
        let (all, background) = asked.fold((0, 0), |(all, background), question| {
            (all + 1, background + usize::from(question.background))
        });
        if all >= SOURCE_PIECES_MAX {
            return None;
        }
        let may = |question: &Question| {
            let has_room = !question.background || background < SOURCE_PIECES_MAX / 2;
            // One question shows whether a source is well again.
            let is_well = self
                .troubles
                .get(&question.layer)
                .is_none_or(|trouble| trouble.again_at <= now && !self.is_asked(question.layer));
            !question.asked && has_room && is_well
        };
        let able = self.questions.iter().filter(|(_, question)| may(question));
        able.min_by_key(|(number, question)| (question.background, **number)).map(|(at, _)| *at)
    }

    pub(crate) fn clear(&mut self) {
        self.questions.clear();
    }

    /// Asserts the invariant, but for the pieces' side of it.
    pub(crate) fn check(&self, is_waiting: impl Fn(u64, u64) -> bool) {
        for (number, question) in &self.questions {
            assert!(*number <= self.last && question.length > 0, "{question:?}");
            assert!(is_waiting(question.piece, question.work), "nobody waits: {question:?}");
        }
        let asked = self.questions.values().filter(|question| question.asked).count();
        assert!(asked <= SOURCE_PIECES_MAX, "too much is asked of sources");
    }

    pub(crate) fn len(&self) -> usize {
        self.questions.len()
    }
}

impl Session {
    /// Asks the source instead of the disks, if this origin is one.
    pub(crate) fn ask_source(
        &mut self,
        follow: u64,
        level: usize,
        origin: Origin,
        blocks: BlockRange,
    ) -> bool {
        let Some(source) = self.map.source(origin.layer) else { return false };
        let Follow { work, index, kind_only, role, .. } =
            self.follows.at(follow).expect("it asks just now");
        let (work, index, kind_only) = (*work, *index, *kind_only);
        let background = matches!(role, Role::Copy);
        let offset =
            u64::from(index) * OBJECT_SIZE as u64 + u64::from(blocks.first()) * BLOCK_SIZE as u64;
        // Beyond it are zeros, whatever the source has there.
        let end = origin.bytes.min(source.bytes);
        let length = end.saturating_sub(offset).min(blocks.bytes() as u64);
        assert!(length > 0, "only what shows is asked for");
        let piece = self.begin_piece(work, Role::Through { follow, level }, (index, blocks));
        self.sources.last += 1;
        let layer = origin.layer;
        let question = Question {
            piece,
            work,
            layer,
            offset,
            length,
            blocks,
            kind_only,
            background,
            asked: false,
        };
        self.sources.questions.insert(self.sources.last, question);
        self.sources.has_grown |= !background;
        true
    }

    /// Hands questions to the driver, as far as the limits and the sources' state allow.
    pub(crate) fn pump_sources(&mut self, effects: &mut Vec<Effect>) {
        while self.life == Life::Open
            && self.sources.len() > 0
            && let Some(number) = self.sources.next(self.now)
        {
            let question = self.sources.questions.get_mut(&number).expect("just found");
            question.asked = true;
            let Question { layer, offset, length, kind_only, .. } = *question;
            let token = SourceToken(number);
            effects.push(Effect::Source { token, layer, offset, length, kind_only });
        }
    }

    /// The driver has an answer of a source, or says why it has none.
    pub(crate) fn handle_source(
        &mut self,
        token: SourceToken,
        result: Result<SourceAnswer, String>,
        effects: &mut Vec<Effect>,
    ) {
        // It may have been given up meanwhile.
        let Some(question) = self.sources.questions.get_mut(&token.0) else { return };
        question.asked = false;
        let (layer, blocks, kind_only) = (question.layer, question.blocks, question.kind_only);
        let copies = question.background;
        let fits = |answer| fitting(answer, blocks, kind_only, copies);
        match result.and_then(fits) {
            Ok(answer) => {
                self.sources.troubles.remove(&layer);
                let question = self.sources.questions.remove(&token.0).expect("just seen");
                self.handle_piece(question.piece, Ok(answer), effects);
            }
            Err(reason) => {
                let again_at = self.now + Duration::from_millis(SOURCE_RETRY_MS);
                let since = self.sources.troubles.get(&layer).map_or(self.now, |known| known.since);
                self.sources.troubles.insert(layer, Trouble { since, reason, again_at });
                // Who waits behind those that wait needs no place either.
                for (number, _) in self.sources.asked_by_guests() {
                    if self.sources.awaited_by(number) == Some(layer) {
                        self.put_off_behind(number, layer, effects);
                    }
                }
                self.make_way(effects);
            }
        }
    }

    /// What a work asked of sources is given up.
    pub(crate) fn give_up_questions(&mut self, work: u64, effects: &mut Vec<Effect>) {
        let questions = self.sources.questions.iter();
        let its = questions.filter(|(_, question)| question.work == work);
        for number in its.map(|(number, _)| *number).collect::<Vec<_>>() {
            let question = self.sources.questions.remove(&number).expect("listed just now");
            let error = replica::Error::Io("it was put off".into());
            self.handle_piece(question.piece, Err(error), effects);
        }
    }

    /// Nobody waits for what sources are asked any more: the pieces end with this error.
    pub(crate) fn give_up_sources(&mut self, effects: &mut Vec<Effect>) {
        for question in std::mem::take(&mut self.sources.questions).into_values() {
            let error = match self.life {
                Life::Fenced => replica::Error::Fenced,
                _ => replica::Error::Io(BEING_CLOSED.into()),
            };
            self.handle_piece(question.piece, Err(error), effects);
        }
    }

    /// All was copied: what sources are still asked is here by now, and they may be gone for ever.
    pub(crate) fn ask_disks_instead(&mut self) {
        let losses = self.flatten.losses();
        for question in std::mem::take(&mut self.sources.questions).into_values() {
            let piece = self.pieces.remove(question.piece).expect("it waits for the question");
            self.works.at_mut(piece.work).expect("a work outlives its pieces").in_flight -= 1;
            let (index, blocks) = piece.place.expect("it is a look");
            let Role::Through { follow, level } = piece.role else {
                unreachable!("only these ask sources")
            };
            let source = replica::Source::Own;
            let request = match question.kind_only {
                true => replica::Request::Map { source, index, blocks },
                false => replica::Request::Read { source, index, blocks },
            };
            self.send(piece.work, Role::Instead { follow, level, losses }, request);
        }
    }

    /// Copies were lost meanwhile: only the source has what was asked for.
    pub(crate) fn ask_source_again(&mut self, follow: u64, level: usize, blocks: BlockRange) {
        let origin = self.follows.at(follow).expect("it waits for this").chain[level];
        let is_asked = self.ask_source(follow, level, origin, blocks);
        assert!(is_asked, "the source stays while something is to be copied from it");
    }

    /// The background is not to go on: what it asked of sources is given up.
    pub(crate) fn give_up_background(&mut self, effects: &mut Vec<Effect>) {
        let background = |(_, question): &(&u64, &Question)| question.background;
        let questions = self.sources.questions.iter().filter(background);
        for number in questions.map(|(number, _)| *number).collect::<Vec<_>>() {
            let question = self.sources.questions.remove(&number).expect("listed just now");
            let error = replica::Error::Io("the flattening was stopped".into());
            self.handle_piece(question.piece, Err(error), effects);
        }
    }

    /// What a session says of a source that does not answer, if something waits for it.
    pub fn source_trouble(&self) -> Option<SourceTrouble> {
        let waits = |layer: LayerId| self.sources.questions.values().any(|q| q.layer == layer);
        let mut troubles = self.sources.troubles.iter().filter(|(layer, _)| waits(**layer));
        let (layer, trouble) = troubles.next()?;
        Some(SourceTrouble { since: trouble.since, reason: self.source_words(*layer) })
    }

    /// Where a source is, and why it does not answer if that is known.
    pub(crate) fn source_words(&self, layer: LayerId) -> String {
        let address = self.map.source(layer).map_or("a source", |source| &source.address);
        match self.sources.troubles.get(&layer) {
            Some(trouble) => format!("{address} ({})", trouble.reason),
            None => address.to_string(),
        }
    }
}

/// The answer, if it is one to what was asked. For a copy, whole blocks of zeros count as absent:
/// what is thin at the source stays thin.
fn fitting(
    answer: SourceAnswer,
    blocks: BlockRange,
    kind_only: bool,
    copies: bool,
) -> Result<Answer, String> {
    match answer {
        SourceAnswer::Data(content) if !kind_only && content.len() == blocks.bytes() => {
            let mut absent: Vec<BlockRange> = Vec::new();
            let data = content.as_slice().chunks(BLOCK_SIZE).zip(blocks.iter());
            for (_, block) in data.filter(|(data, _)| copies && proto::is_zero(data)) {
                match absent.last_mut() {
                    Some(last) if last.end() == block => {
                        *last = BlockRange::new(last.first(), last.count() + 1).expect("inside");
                    }
                    _ => absent.push(BlockRange::new(block, 1).expect("inside")),
                }
            }
            Ok(Answer::Data { content: vec![content], absent })
        }
        SourceAnswer::Map(runs) if kind_only && covers(&runs, blocks.count()) => {
            Ok(Answer::Map(runs))
        }
        _ => Err("it answered something else than was asked".into()),
    }
}

fn covers(runs: &[(u32, BlockState)], blocks: u32) -> bool {
    let says = |(count, state): &(u32, BlockState)| *count > 0 && *state != BlockState::Absent;
    let sum = runs.iter().map(|(count, _)| u64::from(*count)).sum::<u64>();
    runs.iter().all(says) && sum == u64::from(blocks)
}

const _: () = assert!(MEMBER_REQUEST_BLOCKS_MAX <= BLOCKS_PER_OBJECT);
