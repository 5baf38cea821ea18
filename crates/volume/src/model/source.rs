//! A source: content that lies elsewhere, which answers late, fails for a while, and comes back.

use super::disk::Random;
use super::*;
use crate::{SourceAnswer, SourceToken};
use proto::BlockState;

/// All sources of a run.
#[derive(Default)]
pub(super) struct FakeSource {
    /// What each has: a tag for each sector.
    contents: BTreeMap<LayerId, Vec<u32>>,
    /// What has been asked and not been answered.
    pub(super) questions: Vec<Question>,
    /// Why they do not answer, if they do not.
    pub(super) down: Option<&'static str>,
    /// How many bytes of content were asked for.
    pub(super) read_bytes: u64,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Question {
    pub(super) token: SourceToken,
    layer: LayerId,
    pub(super) offset: u64,
    length: u64,
    kind_only: bool,
}

impl FakeSource {
    /// Answers one question, in no particular order.
    fn answer(&mut self, random: &mut Random) -> Option<Event> {
        if self.questions.is_empty() {
            return None;
        }
        let place = random.below(self.questions.len() as u64) as usize;
        let Question { token, layer, offset, length, kind_only } = self.questions.remove(place);
        let result = match self.down {
            Some(reason) => Err(reason.to_string()),
            None => Ok(self.look(layer, offset, length, kind_only)),
        };
        Some(Event::Source { token, result })
    }

    fn look(&mut self, layer: LayerId, offset: u64, length: u64, kind_only: bool) -> SourceAnswer {
        let content = &self.contents[&layer];
        let (first, end) = (offset / SECTOR, (offset + length) / SECTOR);
        assert!(length > 0 && offset.is_multiple_of(BLOCK_SIZE as u64));
        assert!(end <= content.len() as u64, "asked for what is beyond the source");
        let tags = &content[first as usize..end as usize];
        let blocks = length.div_ceil(BLOCK_SIZE as u64) as usize;
        if kind_only {
            let is_zero = |block: usize| tags.chunks(8).nth(block).unwrap().iter().all(|t| *t == 0);
            let kind = |block| if is_zero(block) { BlockState::Zero } else { BlockState::Data };
            return SourceAnswer::Map((0..blocks).map(|block| (1, kind(block))).collect());
        }
        self.read_bytes += length;
        let mut buffer = Buffer::zeroed(blocks * BLOCK_SIZE);
        let words = tags.iter().flat_map(|tag| [*tag; SECTOR as usize / 4]);
        let target = buffer.as_mut_slice().chunks_mut(4).zip(words);
        target.for_each(|(target, word)| target.copy_from_slice(&word.to_le_bytes()));
        SourceAnswer::Data(buffer.freeze())
    }
}

impl World {
    /// Goes on with a new volume whose parent is a source: every third run of 100 sectors of it is
    /// zeros.
    pub(super) fn create_from_source(&mut self, bytes: u64, source_bytes: u64) {
        self.detach();
        let name = format!("import{}", self.random.next());
        let address = "nbd://far/away".to_string();
        let create = Command::CreateVolumeFrom { name, bytes, address, source_bytes, unix_s: 0 };
        let answer = self.state.apply(&create).expect("there is room");
        let Answer::VolumeCreated { volume } = answer else { panic!("created") };
        self.volume = volume;
        let mut tags = Vec::new();
        for sector in 0..source_bytes / SECTOR {
            let is_zero = sector / 100 % 3 == 2;
            tags.push(if is_zero { 0 } else { self.register.next_tag() });
        }
        let map = self.state.map();
        let head = map.volume(volume).expect("just made").head;
        let layer = map.origin(head).expect("it shows its source").layer;
        let mut shown = tags.clone();
        shown.resize((bytes / SECTOR) as usize, 0);
        self.source.contents.insert(layer, tags);
        self.register = Register::of(&shown, self.register.next_tag());
        self.attach(false);
    }

    pub(super) fn ask_source(
        &mut self,
        token: SourceToken,
        layer: LayerId,
        (offset, length): (u64, u64),
        kind_only: bool,
    ) {
        assert!(self.state.map().source(layer).is_some(), "source {layer} is gone");
        let question = Question { token, layer, offset, length, kind_only };
        self.source.questions.push(question);
        assert!(self.source.questions.len() <= 2 * proto::limits::SOURCE_PIECES_MAX);
    }

    /// One answer of a source reaches the session.
    pub(super) fn deliver_source(&mut self) {
        if let Some(event) = self.source.answer(&mut self.random) {
            self.tell(event);
        }
    }

    /// Likewise, for a session that is asked something by itself.
    pub(super) fn answer_source(&mut self) -> Option<Event> {
        self.source.answer(&mut self.random)
    }
}
