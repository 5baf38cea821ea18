//! Makes one object on one disk equal to a peer's copy of it, layer by layer.
//!
//! Of each layer the checksums of both are compared, what differs is read from the source, staged
//! on the target, and adopted in one: see decision 0009. Nothing that the target had is touched
//! before all of it is there.

use crate::slots::Slots;
use proto::limits::{
    COPY_QUESTIONS_MAX, COPY_RESTARTS_MAX, MEMBER_REQUEST_BLOCKS_MAX, MEMBER_RETRY_MS,
};
use proto::{
    BLOCK_SIZE, BLOCKS_PER_OBJECT, BlockRange, BlockSum, Buffer, Change, ConfigurationNumber,
    DiskId, Duration, Generation, LayerId, LineageId, MemberError, MemberReply, MemberRequest,
    Mistake, ObjectKey, ObjectStamp, Payload, Permit, STAGED_NEVER, Stamp, Time, block_checksum,
    planted,
};
use std::collections::{BTreeMap, BTreeSet, VecDeque};

/// What is to be copied.
#[derive(Clone, Debug)]
pub struct Copy {
    /// Whose object.
    pub lineage: LineageId,
    /// Which object.
    pub index: u32,
    /// In these layers, each after the one below it; and all that lie above any of them.
    pub layers: Vec<CopyLayer>,
    /// Disks that have it, the preferred one first. At least one.
    pub sources: Vec<DiskId>,
    /// The disk that is to have it.
    pub target: DiskId,
    /// By what right.
    pub permit: Permit,
    /// For opening layers that the target does not know: no lower than its fence.
    pub generation: Generation,
}

/// One layer of the object.
#[derive(Clone, Copy, Debug)]
pub struct CopyLayer {
    /// Which.
    pub layer: LayerId,
    /// The layer of the same lineage below it; layer 0: none.
    pub parent: LayerId,
    /// What the target's object is stamped with.
    pub becomes: Becomes,
    /// It is only copied if the target's object had to be retracted, because content below it
    /// changes.
    pub is_above: bool,
}

impl Copy {
    /// Adds the layers above those that are there, of these of the lineage: each after the one
    /// below it, with that.
    pub fn add_above(
        &mut self,
        layers: &[(LayerId, LayerId)],
        becomes: impl Fn(LayerId) -> Becomes,
    ) {
        let mut known: BTreeSet<LayerId> = self.layers.iter().map(|it| it.layer).collect();
        for &(layer, parent) in layers {
            if known.contains(&parent) && known.insert(layer) {
                let becomes = becomes(layer);
                self.layers.push(CopyLayer { layer, parent, becomes, is_above: true });
            }
        }
        // A layer is newer than the one below it.
        self.layers.sort_by_key(|it| it.layer);
    }
}

/// How a copied object is stamped.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Becomes {
    /// So, even if it was equal. A source at another stamp is none.
    Given {
        /// The stamp, which the source has.
        stamp: Stamp,
        /// Who has settled it.
        settled_generation: Generation,
    },
    /// As it is at the source; [`Stamp::INCOMPLETE`] if it was written while it was copied.
    AsSource,
    /// As the target had it before it was retracted; it is not retracted before the source has
    /// been seen to have the same. What was incomplete is not copied again.
    AsBefore,
    /// It is left retracted: somebody else copies it.
    Retracted,
    /// As the target has it, so that what is damaged there is made anew: a source at another stamp
    /// is none.
    AsTarget,
}

/// How a copy ended well.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Copied {
    /// Every layer is what the source had; otherwise some are [`Stamp::INCOMPLETE`].
    pub is_complete: bool,
    /// Blocks of data that were sent to the target.
    pub blocks: u64,
}

/// How a copy ended otherwise. The target has some layers as wanted, and the others as they were.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CopyError {
    /// A newer attachment exists.
    #[error("fenced by generation {newer}")]
    Fenced {
        /// Its generation.
        newer: Generation,
    },
    /// A newer attempt exists, or this one is over.
    #[error("the partition's members are being changed by attempt {newer}")]
    Superseded {
        /// Its number.
        newer: u64,
    },
    /// The target has refused the configuration.
    #[error("the partition is in configuration {have}")]
    WrongConfiguration {
        /// The number the disk knows.
        have: ConfigurationNumber,
    },
    /// The target has no space for it.
    #[error("no space left on the target")]
    NoSpace,
    /// No source brings it; the text says why not the last.
    #[error("disk {disk} does not bring it: {reason}")]
    NoSource {
        /// The last source that was asked.
        disk: DiskId,
        /// Why it did not.
        reason: String,
    },
    /// The target does not take it, or does not serve.
    #[error("disk {disk} does not take it: {reason}")]
    Target {
        /// The target.
        disk: DiskId,
        /// Why not.
        reason: String,
    },
}

/// Names a question of a copier until it is answered.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct CopyQuestion(u64);

/// Copies one object.
///
/// Its owner asks the disks what [`Copier::poll`] gives, hands every answer to [`Copier::handle`]
/// (for a question that will get none, [`MemberError::Retired`]), and polls again, until
/// [`Copier::outcome`]. The order of the questions to one disk must be kept. It ends a copier by
/// dropping it, and must do so when a source is opened anew; of one that was opened anew before it
/// was asked anything, nothing is wrong. There is one copier at a time for an object on a target.
#[derive(Debug)]
pub struct Copier {
    copy: Copy,
    /// Which source is asked; those before it failed.
    source: usize,
    /// Which layer is copied; those before it are done.
    layer: usize,
    stage: Stage,
    /// Still to be asked.
    queue: VecDeque<Ask>,
    /// Asked.
    asked: Slots<Ask>,
    /// A disk was busy: nothing is asked before this.
    retry_at: Option<Time>,
    /// What is staged on the target for this layer, block by block.
    staged: BTreeMap<u32, BlockSum>,
    /// What the source has of the layer.
    from: Side,
    /// What the target has of the layer.
    to: Side,
    /// The first blocks of the pages of its map that are damaged on the target.
    lost: BTreeSet<u32>,
    /// The stamp of the layer below, at the source.
    below: Option<Stamp>,
    /// Why the source is of no use; it is changed when all is answered that was asked.
    failed: Option<String>,
    /// The target has lost what was staged, or had something else; it begins anew when all is
    /// answered that was asked.
    must_restart: bool,
    /// Content read was not what the checksum said: somebody wrote.
    is_torn: bool,
    /// The target has nothing above the layer.
    is_bare: bool,
    /// What was about to be done when what lies above was looked for.
    next: Next,
    /// What the target shows in layers above, by their places among those that are copied; none:
    /// it does not know the layer.
    above: BTreeMap<usize, Option<ObjectStamp>>,
    /// What the target had in layers in which it was told to retract it.
    retracted: BTreeMap<LayerId, ObjectStamp>,
    /// The target was asked to open the layer.
    is_opened: bool,
    restarts: u32,
    copied: Copied,
    outcome: Option<Result<Copied, CopyError>>,
}

/// One disk's side of the layer.
#[derive(Debug, Default)]
struct Side {
    stamp: Option<ObjectStamp>,
    sums: Option<Vec<BlockSum>>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stage {
    /// The stamps are asked for.
    Looking,
    /// The checksums are.
    Comparing,
    /// What the target shows in the topmost layers above.
    Tips,
    /// In all of those above.
    Above,
    /// Whether the source has what the target had above.
    Vouching,
    /// The target retracts that, from the highest down.
    Retracting,
    /// What differs is read and staged.
    Moving,
    /// Whether the source still has its stamp.
    Proving,
    /// The target adopts or retracts.
    Ending,
}

/// What changes a layer's content.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Next {
    Move,
    Adopt,
    Retract,
}

#[derive(Clone, Debug)]
enum Ask {
    SourceStamp,
    /// Of the layer below, at the source.
    BelowStamp,
    TargetStamp,
    OpenLayer,
    SourceSums,
    TargetSums,
    /// The checksums of one page of the map, by its first block.
    TargetPage(u32),
    Read(BlockRange),
    Stage(Change),
    SourceStampAgain,
    Adopt,
    /// An adoption that cannot be: what an earlier copier staged is dropped by it.
    Clear,
    Retract,
    /// What the target shows in the layer at that place, which is above.
    StampAbove(usize),
    /// And the source.
    SourceAbove(usize),
    RetractAbove(usize),
}

impl Ask {
    fn is_of_target(&self) -> bool {
        match self {
            Ask::SourceStamp
            | Ask::BelowStamp
            | Ask::SourceSums
            | Ask::SourceAbove(_)
            | Ask::Read(_)
            | Ask::SourceStampAgain => false,
            Ask::TargetStamp
            | Ask::OpenLayer
            | Ask::TargetSums
            | Ask::TargetPage(_)
            | Ask::Stage(_)
            | Ask::Adopt
            | Ask::Clear
            | Ask::Retract
            | Ask::StampAbove(_)
            | Ask::RetractAbove(_) => true,
        }
    }
}

impl Copier {
    /// Begins a copy.
    ///
    /// # Panics
    /// If there is no source: a bug of the caller.
    pub fn begin(copy: Copy) -> Copier {
        assert!(!copy.sources.is_empty(), "a copy has a source");
        let mut copier = Copier {
            copy,
            source: 0,
            layer: 0,
            stage: Stage::Looking,
            queue: VecDeque::new(),
            asked: Slots::default(),
            retry_at: None,
            staged: BTreeMap::new(),
            from: Side::default(),
            to: Side::default(),
            lost: BTreeSet::new(),
            below: None,
            failed: None,
            must_restart: false,
            is_torn: false,
            is_bare: false,
            next: Next::Move,
            above: BTreeMap::new(),
            retracted: BTreeMap::new(),
            is_opened: false,
            restarts: 0,
            copied: Copied { is_complete: true, blocks: 0 },
            outcome: None,
        };
        copier.begin_layer();
        copier
    }

    /// What is copied.
    pub fn copy(&self) -> &Copy {
        &self.copy
    }

    /// How it ended, once it has.
    pub fn outcome(&self) -> Option<&Result<Copied, CopyError>> {
        self.outcome.as_ref()
    }

    /// When to poll again though nothing was answered.
    pub fn deadline(&self) -> Option<Time> {
        self.retry_at.filter(|_| self.outcome.is_none())
    }

    /// The next question to ask, if there is one now: of which disk, and what.
    pub fn poll(&mut self, now: Time) -> Option<(CopyQuestion, DiskId, MemberRequest)> {
        if self.outcome.is_some() || self.asked.len() >= COPY_QUESTIONS_MAX {
            return None;
        }
        if self.retry_at.is_some_and(|at| at > now) {
            return None;
        }
        self.retry_at = None;
        let ask = self.queue.pop_front()?;
        let disk = match ask.is_of_target() {
            true => self.copy.target,
            false => self.copy.sources[self.source],
        };
        let request = self.request(&ask);
        let question = CopyQuestion(self.asked.insert(ask));
        Some((question, disk, request))
    }

    /// Takes an answer. Total: whatever a disk answers, nothing panics. What was not asked, or
    /// was answered before, is passed over.
    pub fn handle(
        &mut self,
        now: Time,
        question: CopyQuestion,
        result: Result<MemberReply, MemberError>,
    ) {
        let Some(ask) = self.asked.remove(question.0) else { return };
        if self.outcome.is_some() {
            return;
        }
        match result {
            Ok(reply) => self.handle_reply(ask, reply),
            Err(MemberError::Busy) => {
                self.retry_at = Some(now + Duration::from_millis(MEMBER_RETRY_MS));
                self.queue.push_front(ask);
            }
            Err(error) => self.handle_error(ask, error),
        }
        self.advance();
    }

    /// Puts what was staged into the object, if it is so many blocks.
    fn adopt(&self, staged: u32) -> MemberRequest {
        let (stamp, settled_generation) = self.becomes();
        MemberRequest::Adopt {
            permit: self.copy.permit,
            lineage: self.copy.lineage,
            key: self.key(),
            staged,
            stamp,
            settled_generation,
            replaces: self.replaces(),
        }
    }

    fn key(&self) -> ObjectKey {
        self.key_at(self.layer)
    }

    fn key_at(&self, at: usize) -> ObjectKey {
        ObjectKey { layer: self.copy.layers[at].layer, index: self.copy.index }
    }

    fn layer(&self) -> CopyLayer {
        self.copy.layers[self.layer]
    }

    fn request(&self, ask: &Ask) -> MemberRequest {
        let (lineage, key, permit) = (self.copy.lineage, self.key(), self.copy.permit);
        let stamp_of = |key| MemberRequest::Stamp { lineage, key, generation: Generation::SEALED };
        let layer = self.layer();
        match ask {
            Ask::SourceStamp | Ask::TargetStamp | Ask::SourceStampAgain => stamp_of(key),
            Ask::BelowStamp => stamp_of(ObjectKey { layer: layer.parent, ..key }),
            Ask::OpenLayer => MemberRequest::OpenLayer {
                lineage,
                generation: self.copy.generation,
                layer: layer.layer,
                parent: layer.parent,
            },
            Ask::SourceSums | Ask::TargetSums => {
                MemberRequest::Checksums { lineage, key, blocks: BlockRange::whole() }
            }
            Ask::TargetPage(first) => {
                let blocks = BlockRange::new(*first, PAGE as u32).expect("a page of an object");
                MemberRequest::Checksums { lineage, key, blocks }
            }
            Ask::Read(blocks) => {
                let generation = Generation::SEALED;
                MemberRequest::Read { lineage, key, generation, under: None, blocks: *blocks }
            }
            Ask::Stage(change) => {
                MemberRequest::Stage { permit, lineage, key, change: change.clone() }
            }
            Ask::Adopt => self.adopt(self.staged.len() as u32),
            Ask::Clear => self.adopt(STAGED_NEVER),
            Ask::Retract => {
                let replaces = self.replaces();
                MemberRequest::Retract { permit, lineage, key, replaces }
            }
            Ask::StampAbove(at) | Ask::SourceAbove(at) => stamp_of(self.key_at(*at)),
            Ask::RetractAbove(at) => {
                let (key, seen) = (self.key_at(*at), self.above.get(at).copied().flatten());
                let replaces = seen.map(|found| found.stamp).unwrap_or_default();
                MemberRequest::Retract { permit, lineage, key, replaces }
            }
        }
    }

    /// What the target had when it was looked at.
    fn replaces(&self) -> Stamp {
        self.to.stamp.map(|found| found.stamp).unwrap_or_default()
    }

    /// What the target's object is stamped with.
    fn becomes(&self) -> (Stamp, Generation) {
        let source = self.from.stamp;
        let settled = source.map_or(Generation(0), |found| found.settled_generation);
        match self.given() {
            Some(given) => given,
            None if self.is_torn && !planted(Mistake::IncompleteUnmarked) => {
                (Stamp::INCOMPLETE, settled)
            }
            None => (source.map_or(Stamp::INCOMPLETE, |found| found.stamp), settled),
        }
    }

    /// The stamp that the source must have, and who has settled it, where that is given.
    fn given(&self) -> Option<(Stamp, Generation)> {
        match self.layer().becomes {
            Becomes::Given { stamp, settled_generation } => Some((stamp, settled_generation)),
            Becomes::AsSource | Becomes::Retracted => None,
            Becomes::AsTarget => self.to.stamp.map(|found| (found.stamp, found.settled_generation)),
            Becomes::AsBefore => {
                let had = self.retracted.get(&self.layer().layer)?;
                Some((had.stamp, had.settled_generation))
            }
        }
    }

    /// Whether a layer above is passed over: it was not retracted, or is not to be copied again.
    fn is_passed_over(&self) -> bool {
        let layer = self.layer();
        let had = self.retracted.get(&layer.layer);
        layer.is_above
            && match (layer.becomes, had) {
                (_, None) | (Becomes::Retracted, _) => true,
                (Becomes::AsBefore, Some(had)) => had.stamp == Stamp::INCOMPLETE,
                _ => false,
            }
    }

    /// Looks at a layer, for the first time or again.
    fn begin_layer(&mut self) {
        self.stage = Stage::Looking;
        self.from = Side::default();
        self.to = Side::default();
        self.is_torn = false;
        self.is_bare = false;
        self.is_opened = false;
        self.lost.clear();
        self.queue.clear();
        while self.layer < self.copy.layers.len() && self.is_passed_over() {
            self.layer += 1;
        }
        if self.layer == self.copy.layers.len() {
            self.outcome = Some(Ok(self.copied));
            return;
        }
        self.below = Some(Stamp::default());
        if self.layer().parent != LayerId(0) {
            self.below = None;
            self.queue.push_back(Ask::BelowStamp);
        }
        self.queue.extend([Ask::SourceStamp, Ask::TargetStamp]);
    }

    fn handle_reply(&mut self, ask: Ask, reply: MemberReply) {
        match (ask, reply) {
            (Ask::SourceStamp, MemberReply::Stamp(found)) => self.from.stamp = Some(found),
            (Ask::BelowStamp, MemberReply::Stamp(found)) => self.below = Some(found.stamp),
            (Ask::TargetStamp, MemberReply::Stamp(found)) => self.to.stamp = Some(found),
            (Ask::OpenLayer, MemberReply::Done) => self.queue.push_back(Ask::TargetStamp),
            (Ask::SourceSums, MemberReply::Checksums(sums)) if is_whole(&sums) => {
                self.from.sums = Some(sums);
            }
            (Ask::TargetSums, MemberReply::Checksums(sums)) if is_whole(&sums) => {
                self.to.sums = Some(sums);
            }
            (Ask::TargetPage(first), MemberReply::Checksums(sums)) if sums.len() == PAGE => {
                if let Some(known) = &mut self.to.sums {
                    let first = first as usize;
                    known[first..first + PAGE].copy_from_slice(&sums);
                }
            }
            (Ask::Read(blocks), MemberReply::Data { content, .. }) => {
                self.handle_content(blocks, &content);
            }
            (Ask::Stage(change), MemberReply::Done) => self.note_staged(&change),
            (Ask::SourceStampAgain, MemberReply::Stamp(found)) => self.prove(found),
            (Ask::Adopt | Ask::Retract, MemberReply::Done) => self.end_layer(),
            (Ask::StampAbove(at), MemberReply::Stamp(found)) => {
                self.above.insert(at, Some(found));
            }
            (Ask::SourceAbove(at), MemberReply::Stamp(found)) => {
                let had = self.retracted_at(at);
                if had.is_some_and(|had| had.stamp != found.stamp) {
                    self.fail_source(format!("above, the object is at {:?}", found.stamp));
                }
            }
            (Ask::RetractAbove(at), MemberReply::Done) => self.retract_under(at),
            // Nothing was left, and the object is adopted already.
            (Ask::Clear, MemberReply::Done) => self.must_restart = true,
            (ask, _) => {
                let reason = "it gave an answer that makes no sense; see its log".to_string();
                match ask.is_of_target() {
                    true => self.fail_target(reason),
                    false => self.fail_source(reason),
                }
            }
        }
    }

    fn handle_error(&mut self, ask: Ask, error: MemberError) {
        match (&ask, error) {
            // What is below was merged into the layer.
            (Ask::BelowStamp, MemberError::Invalid(_)) => self.below = Some(Stamp::default()),
            // It does not know the layer, so it has nothing there.
            (&Ask::StampAbove(at), MemberError::Invalid(_)) => {
                self.above.insert(at, None);
            }
            (Ask::TargetStamp, MemberError::Invalid(reason)) => {
                // Every disk knows the first layer of a lineage.
                if self.layer().becomes == Becomes::AsTarget
                    || self.layer().layer.0 == self.copy.lineage.0
                    || self.is_opened
                {
                    return self.fail_target(reason.into_owned());
                }
                self.is_opened = true;
                self.queue.push_back(Ask::OpenLayer);
            }
            // A page of its map is damaged: which one, and all of its blocks are to be copied.
            (Ask::TargetSums, MemberError::Corrupt { .. }) => {
                self.to.sums = Some(vec![BlockSum::Absent; BLOCKS_PER_OBJECT as usize]);
                self.queue.extend((0..BLOCKS_PER_OBJECT).step_by(PAGE).map(Ask::TargetPage));
            }
            (&Ask::TargetPage(first), MemberError::Corrupt { .. }) => {
                self.lost.insert(first);
            }
            // Others that were under way with the one below.
            (Ask::Stage(_), MemberError::Invalid(_)) if self.is_clearing() => {}
            (Ask::Stage(_), MemberError::Invalid(_)) if self.restarts == 0 => {
                // An earlier copier has left something there.
                self.restarts += 1;
                self.queue.retain(|ask| !matches!(ask, Ask::Stage(_) | Ask::Read(_)));
                self.queue.push_back(Ask::Clear);
            }
            (Ask::Adopt | Ask::Clear, MemberError::NotStaged { .. }) => self.must_restart = true,
            // Somebody else has changed it: it is looked at again.
            (
                Ask::Adopt | Ask::Clear | Ask::Retract | Ask::RetractAbove(_),
                MemberError::WrongStamp { .. },
            ) => self.must_restart = true,
            (ask, error) if !ask.is_of_target() => self.fail_source(error.to_string()),
            (_, MemberError::Fenced { newer }) => self.end(CopyError::Fenced { newer }),
            (_, MemberError::Superseded { newer }) => self.end(CopyError::Superseded { newer }),
            (_, MemberError::WrongConfiguration { have }) => {
                self.end(CopyError::WrongConfiguration { have });
            }
            (_, MemberError::NoSpace) => self.end(CopyError::NoSpace),
            (_, error) => self.fail_target(error.to_string()),
        }
    }

    /// Goes on when everything that was asked is answered.
    fn advance(&mut self) {
        if self.outcome.is_some() || !self.asked.is_empty() {
            return;
        }
        if std::mem::take(&mut self.must_restart) {
            return self.restart();
        }
        if let Some(reason) = self.failed.take() {
            return self.change_source(reason);
        }
        if !self.queue.is_empty() {
            return;
        }
        match self.stage {
            Stage::Looking => self.compare(),
            Stage::Comparing => self.move_blocks(),
            Stage::Moving => {
                self.stage = Stage::Proving;
                self.queue.push_back(Ask::SourceStampAgain);
            }
            Stage::Proving => self.change(Next::Adopt),
            Stage::Tips => self.look_above(),
            Stage::Above => self.vouch(),
            Stage::Vouching => self.retract_above(),
            Stage::Retracting => self.go_on(),
            // Its answer has ended the layer.
            Stage::Ending => {}
        }
    }

    /// What an earlier copier staged is about to be dropped.
    fn is_clearing(&self) -> bool {
        let is_it = |ask: &Ask| matches!(ask, Ask::Clear);
        self.queue.iter().any(is_it) || self.asked.iter().any(|(_, ask)| is_it(ask))
    }

    /// Changes the layer's content, once the target has nothing above it.
    fn change(&mut self, next: Next) {
        let had = self.to.stamp.map(|found| found.stamp);
        // Else only who has settled it changes, which it may whatever lies above.
        let changes = next != Next::Adopt || had != Some(self.becomes().0);
        self.next = next;
        let above = self.layers_above();
        if self.is_bare || !changes || above.is_empty() {
            return self.go_on();
        }
        self.above.clear();
        let has_child = |at: &usize| {
            let layer = self.copy.layers[*at].layer;
            above.iter().any(|other| self.copy.layers[*other].parent == layer)
        };
        let tips = above.iter().copied().filter(|at| !has_child(at));
        self.queue = tips.map(Ask::StampAbove).collect();
        self.stage = Stage::Tips;
    }

    /// The places of the layers that lie above this one.
    fn layers_above(&self) -> Vec<usize> {
        let mut over = BTreeSet::from([self.layer().layer]);
        let mut above = Vec::new();
        for (at, layer) in self.copy.layers.iter().enumerate().skip(self.layer + 1) {
            if over.contains(&layer.parent) {
                over.insert(layer.layer);
                above.push(at);
            }
        }
        above
    }

    /// What the topmost layers show tells whether there may be anything above.
    fn look_above(&mut self) {
        let shown = self.to.stamp.map(|found| found.stamp).unwrap_or_default();
        let is_shown = |found: &Option<ObjectStamp>| found.is_some_and(|it| it.stamp == shown);
        if shown != Stamp::INCOMPLETE && self.above.values().all(is_shown) {
            return self.go_on();
        }
        let left = self.layers_above().into_iter().filter(|at| !self.above.contains_key(at));
        self.queue = left.map(Ask::StampAbove).collect();
        self.stage = Stage::Above;
        self.advance();
    }

    /// Notes what the target has above, and asks the source for what is to be there again.
    fn vouch(&mut self) {
        let mut shown = BTreeMap::from([(self.layer().layer, self.to.stamp)]);
        for at in self.layers_above() {
            let CopyLayer { layer, parent, .. } = self.copy.layers[at];
            let below = shown.get(&parent).copied().flatten();
            let here = self.above.get(&at).copied().flatten().or(below);
            shown.insert(layer, here);
            let Some(had) = here else { continue };
            let is_own = below.is_none_or(|below| below.stamp != had.stamp);
            if is_own {
                self.retracted.insert(layer, had);
            } else if had.stamp == Stamp::INCOMPLETE {
                // It may be its own or not; if it was retracted before, what it had is known.
                self.retracted.entry(layer).or_insert(had);
            }
        }
        let asked = self.layers_above().into_iter().filter(|&at| {
            let is_wanted = self.copy.layers[at].becomes == Becomes::AsBefore;
            let had = self.retracted_at(at).map(|had| had.stamp);
            is_wanted && had.is_some_and(|had| had != Stamp::INCOMPLETE)
        });
        self.queue = asked.map(Ask::SourceAbove).collect();
        self.stage = Stage::Vouching;
        self.advance();
    }

    fn retracted_at(&self, at: usize) -> Option<ObjectStamp> {
        self.retracted.get(&self.copy.layers[at].layer).copied()
    }

    fn retract_above(&mut self) {
        self.stage = Stage::Retracting;
        self.retract_under(usize::MAX);
        self.advance();
    }

    /// Has the highest that lies under a place retracted: one after the other, since each may have
    /// to be asked for again.
    fn retract_under(&mut self, place: usize) {
        let is_known = |at: &usize| self.above.get(at).copied().flatten().is_some();
        let left = self.layers_above().into_iter().rev().filter(|at| *at < place);
        let next = left.filter(is_known).find(|at| self.retracted_at(*at).is_some());
        self.queue.extend(next.map(Ask::RetractAbove));
    }

    fn go_on(&mut self) {
        self.is_bare = true;
        match self.next {
            Next::Move => self.move_blocks(),
            Next::Adopt => {
                self.stage = Stage::Ending;
                self.queue.push_back(Ask::Adopt);
            }
            Next::Retract => {
                self.stage = Stage::Ending;
                self.queue.push_back(Ask::Retract);
            }
        }
    }

    fn compare(&mut self) {
        let (Some(found), Some(below)) = (self.from.stamp, self.below) else {
            return self.change_source("it did not tell its stamp".to_string());
        };
        if let Some((stamp, _)) = self.given()
            && stamp != found.stamp
            && !planted(Mistake::StaleSource)
        {
            return self.change_source(format!("the object is at {:?}", found.stamp));
        }
        let target = self.to.stamp.map(|found| found.stamp).unwrap_or_default();
        if self.layer().becomes == Becomes::AsTarget && target == Stamp::INCOMPLETE {
            return self.fail_target("it has the object in part".to_string());
        }
        if found.stamp != below {
            self.stage = Stage::Comparing;
            self.queue.extend([Ask::SourceSums, Ask::TargetSums]);
        } else if target == Stamp::default() {
            // Neither has anything of its own in this layer.
            self.end_layer();
        } else {
            self.change(Next::Retract);
        }
    }

    /// Asks for what differs, and stages what needs no content.
    fn move_blocks(&mut self) {
        let (Some(from), Some(to)) = (&self.from.sums, &self.to.sums) else { return };
        let is_same = from == to && self.lost.is_empty();
        if !self.is_bare && !is_same && !self.layers_above().is_empty() {
            return self.change(Next::Move);
        }
        self.stage = Stage::Moving;
        let mut runs: Vec<(Ask, u32)> = Vec::new();
        for block in 0..BLOCKS_PER_OBJECT {
            let (wanted, present) = (from[block as usize], to[block as usize]);
            if let Some(staged) = self.staged.get(&block) {
                // The next source is at the same stamp, or the object is being written.
                self.is_torn |= *staged != wanted;
                continue;
            }
            let page = block / PAGE as u32 * PAGE as u32;
            if wanted == present && !self.lost.contains(&page) {
                continue;
            }
            let one = BlockRange::new(block, 1).expect("a block of an object");
            let ask = match wanted {
                BlockSum::Absent => Ask::Stage(Change::Absent { blocks: one }),
                BlockSum::Zero => Ask::Stage(Change::Zero { blocks: one }),
                BlockSum::Data(_) => Ask::Read(one),
            };
            if let Some((last, end)) = runs.last_mut()
                && *end == block
                && grow(last, &ask)
            {
                *end += 1;
                continue;
            }
            runs.push((ask, block + 1));
        }
        self.queue.extend(runs.into_iter().map(|(ask, _)| ask));
        self.advance();
    }

    /// Content of the source: it is staged if it is what the checksums say.
    fn handle_content(&mut self, blocks: BlockRange, content: &[Payload]) {
        let bytes: usize = content.iter().map(Payload::len).sum();
        if bytes != blocks.bytes() {
            return self.fail_source("it gave content of another length".to_string());
        }
        let payload = match content {
            [one] => one.clone(),
            many => joined(many, bytes),
        };
        if self.must_restart || self.is_clearing() {
            return;
        }
        let Some(sums) = &self.from.sums else { return };
        let (lineage, key) = (self.copy.lineage, self.key());
        let is_right =
            blocks.iter().zip(payload.as_slice().chunks(BLOCK_SIZE)).all(|(at, data)| {
                let sum = block_checksum(lineage, key, at, data);
                sums[at as usize] == BlockSum::Data(sum)
            });
        if is_right {
            let first = blocks.first();
            // What has space of its own at the source has it here.
            let change = Change::Data { first, payload, detect_zeroes: false };
            self.queue.push_front(Ask::Stage(change));
        } else {
            self.is_torn = true;
        }
    }

    fn note_staged(&mut self, change: &Change) {
        let Some(sums) = &self.from.sums else { return };
        let blocks = match change {
            Change::Data { first, payload, .. } => {
                let count = (payload.len() / BLOCK_SIZE) as u32;
                self.copied.blocks += u64::from(count);
                BlockRange::new(*first, count).expect("it was asked for")
            }
            Change::Zero { blocks } | Change::Absent { blocks } => *blocks,
        };
        self.staged.extend(blocks.iter().map(|block| (block, sums[block as usize])));
    }

    /// Whether the source was quiet all the time.
    fn prove(&mut self, found: ObjectStamp) {
        let is_same = self.from.stamp.is_some_and(|before| before.stamp == found.stamp);
        match self.given() {
            None if !is_same => self.is_torn = true,
            None if !self.is_torn => {}
            Some(_) if is_same && !self.is_torn => {}
            _ => self.fail_source("its content is not what its checksums say".to_string()),
        }
    }

    fn end_layer(&mut self) {
        self.copied.is_complete &= !self.is_torn;
        self.staged.clear();
        self.layer += 1;
        self.begin_layer();
    }

    fn fail_source(&mut self, reason: String) {
        self.failed.get_or_insert(reason);
        if !self.is_clearing() {
            self.queue.clear();
        }
    }

    /// The next source is asked for the same layer.
    fn change_source(&mut self, reason: String) {
        let disk = self.copy.sources[self.source];
        self.source += 1;
        if self.source == self.copy.sources.len() {
            return self.end(CopyError::NoSource { disk, reason });
        }
        self.queue.clear();
        self.begin_layer();
    }

    /// From the beginning: the target has nothing staged any more.
    fn restart(&mut self) {
        self.restarts += 1;
        if self.restarts > COPY_RESTARTS_MAX {
            return self.fail_target("it lost what was staged again and again".to_string());
        }
        self.staged.clear();
        self.layer = 0;
        self.begin_layer();
    }

    fn fail_target(&mut self, reason: String) {
        self.end(CopyError::Target { disk: self.copy.target, reason });
    }

    fn end(&mut self, error: CopyError) {
        self.queue.clear();
        self.outcome = Some(Err(error));
    }
}

/// Blocks of a page of an object's map: what is damaged together.
const PAGE: usize = 256;

fn is_whole(sums: &[BlockSum]) -> bool {
    sums.len() == BLOCKS_PER_OBJECT as usize
}

/// Lengthens a question by the next block, if that is one of the same kind.
fn grow(last: &mut Ask, next: &Ask) -> bool {
    let (blocks, limit) = match (last, next) {
        (Ask::Read(blocks), Ask::Read(_)) => (blocks, MEMBER_REQUEST_BLOCKS_MAX),
        (Ask::Stage(Change::Absent { blocks }), Ask::Stage(Change::Absent { .. }))
        | (Ask::Stage(Change::Zero { blocks }), Ask::Stage(Change::Zero { .. })) => {
            (blocks, BLOCKS_PER_OBJECT)
        }
        _ => return false,
    };
    if blocks.count() == limit {
        return false;
    }
    *blocks = BlockRange::new(blocks.first(), blocks.count() + 1).expect("inside the object");
    true
}

fn joined(parts: &[Payload], bytes: usize) -> Payload {
    let mut whole = Buffer::stale(bytes);
    let mut at = 0;
    for part in parts {
        whole.as_mut_slice()[at..at + part.len()].copy_from_slice(part.as_slice());
        at += part.len();
    }
    whole.freeze()
}
