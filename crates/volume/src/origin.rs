//! What shows through from other lineages: where the volume's own has nothing, the answer to a
//! piece is completed with what its origin has there, and so on along the chain.

use crate::event::Effect;
use crate::pieces::BLOCK;
use crate::session::{Piece, Role, Session};
use crate::work::Task;
use cluster::{Map, Origin};
use proto::limits::{SESSION_PIECES_MAX, THROUGH_PIECES_MAX};
use proto::{BLOCK_SIZE, BLOCKS_PER_OBJECT, BlockRange, BlockState, LayerId, Payload};
use replica::{Answer, Request, Source};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

/// What shows through the layer of a session.
#[derive(Debug)]
pub(crate) struct Through {
    /// Nearest first.
    pub(crate) chain: Arc<[Origin]>,
    /// Below this block nothing may become absent: something of another lineage would show, here
    /// or in a layer below, which then would not differ from this one where it does.
    pub(crate) zero_below: u64,
}

impl Through {
    pub(crate) fn new(map: &Map, layer: LayerId) -> Through {
        let mut bytes = 0;
        let mut next = Some(layer);
        while let Some(at) = next {
            bytes = map.layer(at).map_or(bytes, |layer| bytes.max(layer.overlap));
            next = map.parent_in_lineage(at);
        }
        Through { chain: map.chain(layer).into(), zero_below: bytes.div_ceil(BLOCK) }
    }
}

/// A piece whose answer is being completed.
#[derive(Debug)]
pub(crate) struct Follow {
    pub(crate) work: u64,
    pub(crate) role: Role,
    pub(crate) index: u32,
    pub(crate) kind_only: bool,
    pub(crate) chain: Arc<[Origin]>,
    /// What was found so far, by its first block.
    found: BTreeMap<u32, Found>,
    /// Whether most of it is thought to be absent: maps are asked for first, and then for what
    /// they call data.
    sparse: bool,
    /// What is to be asked for.
    todo: VecDeque<Todo>,
    /// Questions under way.
    waiting: usize,
    failed: bool,
}

/// Something to be asked for.
#[derive(Clone, Copy, Debug)]
struct Todo {
    /// How far along the chain.
    level: usize,
    blocks: BlockRange,
    /// Whether the map is wanted, and not the content.
    kind_only: bool,
}

#[derive(Debug)]
enum Found {
    Content(Vec<Payload>),
    Runs(Vec<(u32, BlockState)>),
}

/// A piece that is complete.
#[derive(Debug)]
pub(crate) struct Whole {
    pub(crate) role: Role,
    pub(crate) answer: Answer,
    /// The content of a copy, by the block where each part begins.
    pub(crate) places: Vec<(u32, Payload)>,
}

impl Follow {
    pub(crate) fn new(
        work: u64,
        role: Role,
        index: u32,
        kind_only: bool,
        chain: Arc<[Origin]>,
    ) -> Follow {
        Follow {
            work,
            role,
            index,
            kind_only,
            chain,
            found: BTreeMap::new(),
            sparse: false,
            todo: VecDeque::new(),
            waiting: 0,
            failed: false,
        }
    }

    /// Takes in what one level of the chain has of some blocks. Level 0 is the first origin; what
    /// is absent here is to be asked for at `next`.
    pub(crate) fn take(&mut self, blocks: BlockRange, answer: &Answer, next: usize) {
        let absent = absent_of(blocks, answer);
        let holes = shown(&absent, self.index, self.chain.get(next));
        self.ask_for(next, &holes);
        if let Answer::Map(runs) = answer
            && self.sparse
        {
            return self.take_map(blocks, runs, next - 1);
        }
        // A copy is made of what there is, not of what is nowhere.
        let left_out = if matches!(self.role, Role::Copy) { &absent } else { &holes };
        for part in gaps(blocks, left_out) {
            let found = match answer {
                Answer::Data { content, .. } => Found::Content(cut(content, blocks, part)),
                Answer::Map(runs) => Found::Runs(cut_runs(runs, blocks, part)),
                _ => unreachable!("only these are completed"),
            };
            self.found.insert(part.first(), found);
        }
    }

    /// Some blocks are to be asked for.
    fn ask_for(&mut self, level: usize, holes: &[BlockRange]) {
        let kind_only = self.kind_only || self.sparse;
        let todo = holes.iter().map(|&blocks| Todo { level, blocks, kind_only });
        self.todo.extend(todo);
    }

    /// What one level says that it has: its data is asked for, its zeros are known.
    fn take_map(&mut self, blocks: BlockRange, runs: &[(u32, BlockState)], level: usize) {
        for data in runs_of(BlockState::Data, blocks, runs) {
            self.todo.push_back(Todo { level, blocks: data, kind_only: false });
        }
        for zeros in runs_of(BlockState::Zero, blocks, runs) {
            let content = vec![Payload::zeroed(zeros.bytes())];
            self.found.insert(zeros.first(), Found::Content(content));
        }
    }

    /// The whole answer, and where its parts begin.
    fn assemble(self) -> (Answer, Vec<(u32, Payload)>) {
        let (mut all, mut runs, mut places) = (Vec::new(), Vec::new(), Vec::new());
        let is_copy = matches!(self.role, Role::Copy);
        for (mut first, found) in self.found {
            match found {
                Found::Runs(mut found) => runs.append(&mut found),
                Found::Content(content) if is_copy => {
                    for payload in content {
                        let blocks = (payload.len() / BLOCK_SIZE) as u32;
                        places.push((first, payload));
                        first += blocks;
                    }
                }
                Found::Content(mut content) => all.append(&mut content),
            }
        }
        let answer = match self.kind_only {
            true => Answer::Map(runs),
            false => Answer::Data { content: all, absent: Vec::new() },
        };
        (answer, places)
    }
}

impl Session {
    /// Completes the answer to a piece with what shows through. Gives it back if nothing does.
    pub(crate) fn follow(
        &mut self,
        Piece { work, role, place }: Piece,
        answer: Answer,
    ) -> Option<Answer> {
        let asker = self.works.at(work).expect("a work outlives its pieces");
        let (Some((index, blocks)), Some(chain)) = (place, asker.chain.clone()) else {
            return Some(answer);
        };
        // Once the map shows that all was copied, its origin may be gone; what was under way
        // when that was reported began after the copying.
        if self.through.chain.is_empty() || self.flatten.precedes(asker.number) {
            return Some(answer);
        }
        let chain = self.flatten.chain_for(asker.number, chain);
        if shown(&absent_of(blocks, &answer), index, chain.first()).is_empty() {
            return Some(answer);
        }
        let kind_only = matches!(answer, Answer::Map(_));
        let mut follow = Follow::new(work, role, index, kind_only, chain);
        follow.take(blocks, &answer, 0);
        self.begin_follow(follow);
        None
    }

    pub(crate) fn begin_follow(&mut self, follow: Follow) {
        let number = self.follows.insert(follow);
        self.pump_follow(number);
    }

    /// Asks for what is missing: some of it at once, always at least one.
    fn pump_follow(&mut self, number: u64) {
        loop {
            let room = self.pieces.len() < SESSION_PIECES_MAX;
            let follow = self.follows.at_mut(number).expect("it has not ended");
            if follow.waiting >= if room { THROUGH_PIECES_MAX } else { 1 } {
                return;
            }
            let Some(Todo { level, blocks, kind_only }) = follow.todo.pop_front() else { return };
            follow.waiting += 1;
            let (work, index) = (follow.work, follow.index);
            let origin = follow.chain[level];
            if self.ask_source(number, level, origin, blocks) {
                continue;
            }
            let Origin { lineage, layer, .. } = origin;
            let source = Source::Origin { lineage, layer };
            let request = match kind_only {
                true => Request::Map { source, index, blocks },
                false => Request::Read { source, index, blocks },
            };
            self.send(work, Role::Through { follow: number, level }, request);
        }
    }

    /// A part of a piece has come. Gives back the piece when it is whole: its role, its answer, and
    /// where the parts of that begin.
    pub(crate) fn take_through(
        &mut self,
        number: u64,
        level: usize,
        blocks: BlockRange,
        answer: Option<&Answer>,
    ) -> Option<Whole> {
        let follow = self.follows.at_mut(number).expect("it waits for this");
        follow.waiting -= 1;
        match answer {
            Some(answer) if !follow.failed => follow.take(blocks, answer, level + 1),
            _ => {
                follow.failed = true;
                follow.todo.clear();
            }
        }
        self.pump_follow(number);
        let follow = self.follows.at(number).expect("just seen");
        if follow.waiting > 0 {
            return None;
        }
        let follow = self.follows.remove(number).expect("just seen");
        if follow.failed {
            return None;
        }
        let role = follow.role;
        let (answer, places) = follow.assemble();
        Some(Whole { role, answer, places })
    }

    /// What is to be copied: all of these that the volume's own lineage has nothing of.
    pub(crate) fn begin_copy(&mut self, piece: Piece, answer: &Answer) {
        let Some((index, blocks)) = piece.place else { return };
        let work = self.works.at(piece.work).expect("a work outlives its pieces");
        let Task::Flatten { onto, .. } = work.task else { unreachable!("only these look") };
        let mut chain = self.flatten.chain_for(work.number, Arc::clone(&self.through.chain));
        let holes = shown(&absent_of(blocks, answer), index, chain.first());
        match onto {
            // What it copies is counted when it has come.
            Some(parent) => {
                let end = chain.iter().position(|origin| origin.layer == parent).unwrap_or(0);
                chain = chain[..end].into();
            }
            None => {
                let wanted: usize = holes.iter().map(|hole| hole.bytes()).sum();
                self.give_back((blocks.bytes() - wanted) as u64);
            }
        }
        if holes.is_empty() || chain.is_empty() {
            return;
        }
        let mut follow = Follow::new(piece.work, Role::Copy, index, false, chain);
        follow.sparse = onto.is_some();
        follow.ask_for(0, &holes);
        self.begin_follow(follow);
    }

    /// What was fetched to be copied, without a lock, is copied only where the volume's own lineage
    /// still has nothing and something still shows through.
    pub(crate) fn keep_absent(&mut self, piece: &Piece, answer: &Answer) {
        let Some((index, blocks)) = piece.place else { return };
        let absent = absent_of(blocks, answer);
        let wanted = shown(&absent, index, self.through.chain.first());
        let work = self.works.at_mut(piece.work).expect("a work outlives its pieces");
        let mut kept = Vec::new();
        for (first, payload) in work.take_fetched() {
            let blocks = (payload.len() / BLOCK_SIZE) as u32;
            let (mut at, end) = (first, first + blocks);
            for range in &wanted {
                let (from, to) = (range.first().max(at), range.end().min(end));
                if from < to {
                    let (skip, length) = ((from - first) as usize, (to - from) as usize);
                    kept.push((from, payload.slice(skip * BLOCK_SIZE, length * BLOCK_SIZE)));
                    at = to;
                }
            }
        }
        work.take_copy(kept);
    }

    /// What of another map changes what shows through.
    pub(crate) fn take_through_map(&mut self, effects: &mut Vec<Effect>) {
        self.through = Through::new(&self.map, self.shown_layer());
        self.advance_flatten(effects);
    }
}

/// Which blocks an answer calls absent.
fn absent_of(blocks: BlockRange, answer: &Answer) -> Vec<BlockRange> {
    match answer {
        Answer::Data { absent, .. } => absent.clone(),
        Answer::Map(runs) => runs_of(BlockState::Absent, blocks, runs),
        _ => Vec::new(),
    }
}

/// Which blocks are in this state, in runs as long as can be.
fn runs_of(wanted: BlockState, blocks: BlockRange, runs: &[(u32, BlockState)]) -> Vec<BlockRange> {
    let mut at = blocks.first();
    let mut found: Vec<BlockRange> = Vec::new();
    for (count, state) in runs {
        let run = BlockRange::new(at, *count);
        at += count;
        let Some(run) = run.filter(|_| *state == wanted) else { continue };
        match found.last_mut() {
            Some(last) if last.end() == run.first() => {
                let count = last.count() + run.count();
                *last = BlockRange::new(last.first(), count).expect("one object");
            }
            _ => found.push(run),
        }
    }
    found
}

/// Those of the blocks where the origin shows through.
fn shown(absent: &[BlockRange], index: u32, origin: Option<&Origin>) -> Vec<BlockRange> {
    let Some(origin) = origin else { return Vec::new() };
    let object = u64::from(index) * u64::from(BLOCKS_PER_OBJECT);
    let end = (origin.bytes.div_ceil(BLOCK)).saturating_sub(object);
    let end = end.min(u64::from(BLOCKS_PER_OBJECT)) as u32;
    let clip = |range: &BlockRange| {
        BlockRange::new(range.first(), range.end().min(end).saturating_sub(range.first()))
    };
    absent.iter().filter_map(clip).collect()
}

/// What of `blocks` lies between the holes.
fn gaps(blocks: BlockRange, holes: &[BlockRange]) -> Vec<BlockRange> {
    let mut at = blocks.first();
    let mut gaps = Vec::new();
    for hole in holes {
        gaps.extend(BlockRange::new(at, hole.first() - at));
        at = hole.end();
    }
    gaps.extend(BlockRange::new(at, blocks.end() - at));
    gaps
}

/// The content of `part`, of the content of `blocks`.
fn cut(content: &[Payload], blocks: BlockRange, part: BlockRange) -> Vec<Payload> {
    let from = (part.first() - blocks.first()) as usize * BLOCK_SIZE;
    let to = from + part.bytes();
    let mut at = 0;
    let mut result = Vec::new();
    for payload in content {
        let (start, end) = (at.max(from), (at + payload.len()).min(to));
        if start < end {
            result.push(payload.slice(start - at, end - start));
        }
        at += payload.len();
    }
    result
}

/// The runs of `part`, of the runs of `blocks`.
fn cut_runs(
    runs: &[(u32, BlockState)],
    blocks: BlockRange,
    part: BlockRange,
) -> Vec<(u32, BlockState)> {
    let mut at = blocks.first();
    let mut result = Vec::new();
    for (count, state) in runs {
        let (start, end) = (at.max(part.first()), (at + count).min(part.end()));
        if start < end {
            result.push((end - start, *state));
        }
        at += count;
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::LineageId;

    fn range(first: u32, end: u32) -> BlockRange {
        BlockRange::new(first, end - first).expect("blocks")
    }

    #[test]
    fn an_origin_shows_no_further_than_it_reaches() {
        let origin = |bytes| Origin { lineage: LineageId(1), layer: LayerId(1), bytes };
        let absent = [range(0, 2), range(4, 9)];
        // Object, bytes that show, what is to be asked for.
        type Row = (u32, u64, &'static [(u32, u32)]);
        let table: [Row; 6] = [
            (0, 0, &[]),
            (0, BLOCK, &[(0, 1)]),
            (0, 6 * BLOCK, &[(0, 2), (4, 6)]),
            (0, 1 << 30, &[(0, 2), (4, 9)]),
            (1, 4 << 20, &[]),
            (1, (4 << 20) + 5 * BLOCK, &[(0, 2), (4, 5)]),
        ];
        for (index, bytes, wanted) in table {
            let found = shown(&absent, index, Some(&origin(bytes)));
            let found: Vec<_> = found.iter().map(|run| (run.first(), run.end())).collect();
            assert_eq!(found, wanted, "object {index}, {bytes} bytes");
        }
        assert!(shown(&absent, 0, None).is_empty());
    }

    #[test]
    fn what_lies_between_holes_is_cut_out_whole() {
        let blocks = range(8, 16);
        let found = gaps(blocks, &[range(8, 9), range(11, 13)]);
        assert_eq!(found, [range(9, 11), range(13, 16)]);
        assert_eq!(gaps(blocks, &[blocks]), []);
        let runs = [(3, BlockState::Data), (5, BlockState::Zero)];
        let wanted = [(1, BlockState::Data), (2, BlockState::Zero)];
        assert_eq!(cut_runs(&runs, blocks, range(10, 13)), wanted);
        let block = Payload::zeroed(4 * BLOCK_SIZE);
        let lengths = |part| -> Vec<usize> {
            let content = cut(&[block.clone(), block.clone()], blocks, part);
            content.iter().map(|payload| payload.len() / BLOCK_SIZE).collect()
        };
        assert_eq!((lengths(range(9, 11)), lengths(range(10, 15))), (vec![2], vec![2, 3]));
    }
}
