//! How the copies of a volume are: what is whole, away or being built, what is waited for, which
//! loss would hurt, and when all will be there. All of it follows from the map and from what this
//! node sees of the others; what a session of another node knows is known there.

use super::overview::{outlook_words, situation_words, span_words};
use super::{Engine, Phase};
use crate::admin::{AdminError, ExplainReport, LossReport, PartGroupReport, PartMemberReport};
use crate::attach::HeldId;
use crate::names;
use cluster::steward::{self, Sight, Situation};
use cluster::{Configuration, DiskState, Member, Volume};
use proto::{
    DiskId, LineageId, NodeId, OBJECT_SIZE, PartitionId, Time, counted, limits, size_in_words,
};
use std::collections::{BTreeMap, BTreeSet};

/// More objects than this are not counted one by one: it takes milliseconds in which guests wait.
const COUNTED_MAX: u64 = 1 << 20;
/// Nodes of which it is found out what the loss of two would do.
const PAIRS_MAX: usize = 16;
/// Disks named in one sentence.
const NAMED_MAX: usize = 5;

/// What a volume shows of one lineage.
pub(super) struct Part {
    /// Whose it is.
    pub(super) name: String,
    pub(super) lineage: LineageId,
    /// How many copies are asked for, and by which table it lies.
    pub(super) copies: u8,
    /// From its start on.
    pub(super) bytes: u64,
}

/// How one copy is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum CopyState {
    Whole,
    Behind,
    OpenedAnew,
    Away,
    Gone,
    Building,
}

/// One copy, and since when it is so, if that is known and matters.
pub(super) type Copy = (DiskId, CopyState, Option<Time>);

/// How much lies somewhere.
#[derive(Clone, Copy, Default)]
pub(super) struct Amount {
    pub(super) objects: u64,
    pub(super) bytes: u64,
}

/// Parts that lie on the same disks and are in the same way.
struct Group {
    part: usize,
    copies: Vec<Copy>,
    situation: Situation,
    quorum: usize,
    /// How few members it may be left with.
    fewest: usize,
    may_be_refused: bool,
    amount: Amount,
    partitions: Vec<PartitionId>,
}

impl CopyState {
    fn words(self) -> &'static str {
        match self {
            CopyState::Whole => "whole",
            CopyState::Behind => "behind",
            CopyState::OpenedAnew => "opened anew",
            CopyState::Away => "away",
            CopyState::Gone => "gone",
            CopyState::Building => "building",
        }
    }
}

impl Part {
    pub(super) fn objects(&self) -> u64 {
        self.bytes.div_ceil(OBJECT_SIZE as u64)
    }

    /// How many bytes one of its objects has: the last one may have fewer.
    pub(super) fn bytes_of(&self, index: u64) -> u64 {
        let before = index * OBJECT_SIZE as u64;
        self.bytes.saturating_sub(before).min(OBJECT_SIZE as u64)
    }

    /// How much of it lies in which of 2^bits partitions, and whether that is only about right.
    pub(super) fn amounts(&self, bits: u8) -> (BTreeMap<PartitionId, Amount>, bool) {
        let objects = self.objects();
        let mut amounts: BTreeMap<PartitionId, Amount> = BTreeMap::new();
        if objects <= COUNTED_MAX {
            for index in 0..objects {
                let partition = proto::partition_of(self.lineage, index as u32, bits);
                let amount = amounts.entry(partition).or_default();
                amount.objects += 1;
                amount.bytes += self.bytes_of(index);
            }
            return (amounts, false);
        }
        // Its objects are spread evenly, as exactly as chance is.
        let count = 1u64 << bits;
        for number in 0..count {
            let objects = objects / count + u64::from(number < objects % count);
            let amount = Amount { objects, bytes: objects * OBJECT_SIZE as u64 };
            amounts.insert(PartitionId(number as u32), amount);
        }
        (amounts, true)
    }
}

impl Group {
    fn whole(&self, is_left: impl Fn(DiskId) -> bool) -> usize {
        let is_whole = |(disk, state, _): &&Copy| *state == CopyState::Whole && is_left(*disk);
        self.copies.iter().filter(is_whole).count()
    }

    fn is_writable(&self) -> bool {
        self.whole(|_| true) >= self.quorum && !self.may_be_refused
    }

    /// How many count in quorums.
    fn members(&self) -> usize {
        self.copies.iter().filter(|(_, state, _)| *state != CopyState::Building).count()
    }

    /// Adds up what it would be if only these disks were left.
    fn lose(&self, is_left: impl Fn(DiskId) -> bool, sum: &mut LossReport) {
        let (before, after) = (self.whole(|_| true), self.whole(is_left));
        if after == before {
            return;
        }
        let bytes = self.amount.bytes;
        if after == 0 {
            sum.lost_bytes += bytes;
        }
        if after >= self.quorum || !self.is_writable() {
            return;
        }
        // Those that are left must be able to settle without it, and to be enough.
        let is_left_out = after > self.members() - self.quorum && after >= self.fewest;
        match is_left_out {
            true => sum.paused_bytes += bytes,
            false => sum.waiting_bytes += bytes,
        }
    }
}

impl Engine {
    /// How the copies of a volume are.
    pub(super) fn explain(&self, now: Time, name: &str) -> Result<ExplainReport, AdminError> {
        let id = self.find(name)?;
        let volume = self.map.volume(id).expect("found just now");
        let sight = self.sight(now);
        let parts = self.parts(volume);
        let (mut groups, estimated) = self.part_groups(volume, &parts, &sight);
        let own = self.map.redundancy(volume.lineage).expect("a volume's lineage is kept");
        let possible = self.possible(own.copies);
        let whole = |group: &Group| {
            let wanted = usize::from(self.possible(parts[group.part].copies));
            let count = group.whole(|_| true);
            count >= wanted && count == group.copies.len() && !group.may_be_refused
        };
        let is_whole = groups.iter().all(&whole);
        groups.sort_by_key(|group| (group.is_writable(), whole(group), group.part));
        let (_, left) = self.outlook(now);
        let whole_in_s = left.map(|left| left.as_secs());
        let (losses, of_two) = self.losses(&groups, &sight);
        let mut report = ExplainReport {
            name: volume.name.clone(),
            bytes: volume.bytes,
            copies: own.copies,
            min_copies: own.min_copies,
            possible,
            whole: is_whole,
            summary: Vec::new(),
            groups: Vec::new(),
            losses,
            whole_in_s,
            estimated,
        };
        let less: Vec<&Group> = groups.iter().filter(|group| !whole(group)).collect();
        report.summary = self.summary(now, volume, &report, &less);
        report.summary.extend(loss_words(&report, &of_two));
        let words = |group: Group| self.part_report(now, &parts, group);
        report.groups = groups.into_iter().map(words).collect();
        Ok(report)
    }

    /// What a volume shows, by lineage: its own first, then what shows through. What lies elsewhere
    /// has no copies here.
    pub(super) fn parts(&self, volume: &Volume) -> Vec<Part> {
        let own = (volume.name.clone(), volume.lineage, volume.bytes);
        let mut limit = volume.bytes;
        let below = self.map.chain(volume.head).into_iter().map(|origin| {
            let owner = self.map.owner(origin.layer);
            let name = owner.map(|(volume, snapshot)| names::shown_name(volume, snapshot));
            limit = limit.min(origin.bytes);
            let hidden = || format!("hidden layer {}", origin.layer);
            (name.unwrap_or_else(hidden), origin.lineage, limit)
        });
        let kept = std::iter::once(own).chain(below).filter_map(|(name, lineage, bytes)| {
            let copies = self.map.redundancy(lineage)?.copies;
            Some(Part { name, lineage, copies, bytes })
        });
        kept.collect()
    }

    /// How many copies there can be with the disks there are.
    fn possible(&self, copies: u8) -> u8 {
        self.map.sites(copies).len().clamp(1, usize::from(copies)) as u8
    }

    /// How the copies of one partition are, for a volume of which some members are behind.
    pub(super) fn copies_of(
        &self,
        held: &Configuration,
        sight: &Sight,
        is_behind: impl Fn(DiskId) -> bool,
    ) -> Vec<Copy> {
        let current = |member: &Member| {
            let disk = member.disk;
            let away = sight.away.get(&disk).or(sight.unseen.get(&disk)).copied();
            let known = self.map.disk(disk);
            let is_gone = known.is_none_or(|known| known.state == DiskState::Gone);
            let state = match away {
                _ if is_gone => CopyState::Gone,
                Some(_) => CopyState::Away,
                None if !self.map.is_present(*member) => CopyState::OpenedAnew,
                None if is_behind(disk) => CopyState::Behind,
                None => CopyState::Whole,
            };
            (disk, state, away.filter(|_| state == CopyState::Away))
        };
        let building = |member: &Member| {
            let away = sight.away.get(&member.disk).or(sight.unseen.get(&member.disk)).copied();
            match away {
                Some(since) => (member.disk, CopyState::Away, Some(since)),
                None => (member.disk, CopyState::Building, self.attempt_begun(held.attempt)),
            }
        };
        // One that was to be built and is away counts no more than one that is being built.
        let recovering = held.recovering.iter().map(building);
        let recovering = recovering.filter(|(_, state, _)| *state == CopyState::Building);
        held.current.iter().map(current).chain(recovering).collect()
    }

    /// Of which partition of which table which disk lacks something of a volume, as its session
    /// knows, if that is here.
    pub(super) fn behind_of(&self, volume: &Volume) -> BTreeSet<(u8, PartitionId, DiskId)> {
        let held = self.held.get(&HeldId::Head(volume.id));
        let session = held.and_then(|held| held.session.as_ref());
        session.map(|session| session.behind().collect()).unwrap_or_default()
    }

    fn part_groups(&self, volume: &Volume, parts: &[Part], sight: &Sight) -> (Vec<Group>, bool) {
        let behind = self.behind_of(volume);
        let (map, pace, bits) = (&self.map, self.pace(), self.map.partition_bits());
        let mut groups: BTreeMap<(usize, Vec<Copy>, Situation, bool), Group> = BTreeMap::new();
        let mut estimated = false;
        for (number, part) in parts.iter().enumerate() {
            let table = part.copies;
            let floor = map.floor(table);
            let (amounts, is_estimated) = part.amounts(bits);
            estimated |= is_estimated;
            for (partition, amount) in amounts {
                let held = map.configuration(table, partition);
                let is_behind = |disk| behind.contains(&(table, partition, disk));
                let copies = self.copies_of(held, sight, is_behind);
                let situation = steward::situation(map, sight, &pace, table, partition);
                let may_be_refused = held.may_be_refused;
                let key = (number, copies.clone(), situation, may_be_refused);
                let group = groups.entry(key).or_insert_with(|| Group {
                    part: number,
                    copies,
                    situation,
                    quorum: held.quorum(),
                    fewest: held.fewest(floor),
                    may_be_refused,
                    amount: Amount::default(),
                    partitions: Vec::new(),
                });
                group.amount.objects += amount.objects;
                group.amount.bytes += amount.bytes;
                group.partitions.push(partition);
            }
        }
        (groups.into_values().collect(), estimated)
    }

    pub(super) fn copy_report(&self, now: Time, (disk, state, since): Copy) -> PartMemberReport {
        let node = self.map.disk(disk).map_or(NodeId(0), |known| known.node);
        PartMemberReport {
            disk,
            node,
            node_name: self.node_words(node),
            state: state.words().to_string(),
            since_s: since.map(|since| now.since(since).as_secs()),
        }
    }

    fn part_report(&self, now: Time, parts: &[Part], group: Group) -> PartGroupReport {
        PartGroupReport {
            part: parts[group.part].name.clone(),
            objects: group.amount.objects,
            bytes: group.amount.bytes,
            quorum: group.quorum as u32,
            writable: group.is_writable(),
            members: group.copies.iter().map(|copy| self.copy_report(now, *copy)).collect(),
            doing: situation_words(
                group.situation,
                &counted(group.partitions.len() as u64, "partition", "partitions"),
                self.settings.rebuild_after,
            ),
            partitions: group.partitions,
        }
    }

    /// What the loss of each node would do, the worst first; and that of two nodes that is worst.
    fn losses(
        &self,
        groups: &[Group],
        sight: &Sight,
    ) -> (Vec<LossReport>, Option<[LossReport; 2]>) {
        let mut disks: BTreeMap<NodeId, BTreeSet<DiskId>> = BTreeMap::new();
        for (disk, ..) in groups.iter().flat_map(|group| &group.copies) {
            if let Some(known) = self.map.disk(*disk)
                && !sight.away_nodes.contains_key(&known.node)
            {
                disks.entry(known.node).or_default().insert(*disk);
            }
        }
        let lose = |nodes: &[NodeId]| {
            let last = *nodes.last().expect("one at least");
            let mut sum = LossReport {
                node: last,
                node_name: self.node_words(last),
                lost_bytes: 0,
                waiting_bytes: 0,
                paused_bytes: 0,
            };
            let is_left = |disk| nodes.iter().all(|node| !disks[node].contains(&disk));
            groups.iter().for_each(|group| group.lose(is_left, &mut sum));
            sum
        };
        let badness = |loss: &LossReport| (loss.lost_bytes, loss.waiting_bytes, loss.paused_bytes);
        let mut each: Vec<LossReport> = disks.keys().map(|node| lose(&[*node])).collect();
        each.sort_by_key(|loss| std::cmp::Reverse(badness(loss)));
        let mut of_two: Option<[LossReport; 2]> = None;
        let is_felt = each.first().is_some_and(|loss| badness(loss) > (0, 0, 0));
        let firsts = if is_felt { 1 } else { PAIRS_MAX };
        for first in each.iter().take(firsts) {
            for second in each.iter().take(PAIRS_MAX).filter(|second| second.node != first.node) {
                let both = lose(&[first.node, second.node]);
                if of_two.as_ref().is_none_or(|[_, known]| badness(known) < badness(&both)) {
                    of_two = Some([first.clone(), both]);
                }
            }
        }
        each.retain(|loss| badness(loss) > (0, 0, 0));
        (each, of_two)
    }

    /// How it is and what is waited for, in few words, however large it is.
    fn summary(
        &self,
        now: Time,
        volume: &Volume,
        report: &ExplainReport,
        less: &[&Group],
    ) -> Vec<String> {
        let mut words = Vec::new();
        let bytes = |groups: &mut dyn Iterator<Item = &&Group>| {
            size_in_words(groups.map(|group| group.amount.bytes).sum())
        };
        if report.whole {
            let copies = counted(u64::from(report.possible), "copy", "copies");
            words.push(format!("{copies} of all of it, all there and whole"));
        } else {
            let how = self.copy_words(now, less, |state| state != CopyState::Whole);
            let what = bytes(&mut less.iter());
            let why = match how.is_empty() {
                true => "other disks have none yet".to_string(),
                false => how,
            };
            words.push(format!("{what} have fewer whole copies than they could have: {why}"));
        }
        if report.possible < report.copies {
            words.push(format!(
                "it asks for {} copies, and there are disks for {}: let another machine join",
                report.copies, report.possible
            ));
        }
        let stuck = || less.iter().filter(|group| !group.is_writable());
        if stuck().next().is_some() {
            let stuck: Vec<&Group> = stuck().copied().collect();
            let away = |state| matches!(state, CopyState::Away | CopyState::OpenedAnew);
            let for_whom = match self.copy_words(now, &stuck, away) {
                whom if whom.is_empty() => "its disks to be agreed anew".to_string(),
                whom => whom,
            };
            let what = bytes(&mut stuck.iter());
            words.push(format!("{what} wait for {for_whom}: they cannot be written now"));
        }
        let doing: BTreeMap<Situation, usize> = less
            .iter()
            .map(|group| (group.situation, group.partitions.len()))
            .fold(BTreeMap::new(), |mut sums, (situation, count)| {
                *sums.entry(situation).or_default() += count;
                sums
            });
        words.extend(doing.into_iter().filter_map(|(situation, count)| {
            let what = counted(count as u64, "partition", "partitions");
            situation_words(situation, &what, self.settings.rebuild_after)
        }));
        words.extend(self.request_words(now, volume));
        if !report.whole {
            words.push(format!("until it is whole: {}", outlook_words(report.whole_in_s)));
        }
        if self.phase == Phase::Serving {
            let old = self.leaderless();
            words.extend(old.map(|why| format!("all this is what was known last: {why}")));
        }
        words
    }

    /// Which copies are so, and since when.
    fn copy_words(
        &self,
        now: Time,
        groups: &[&Group],
        is_so: impl Fn(CopyState) -> bool,
    ) -> String {
        let copies = groups.iter().flat_map(|group| &group.copies);
        let found: BTreeSet<Copy> = copies.filter(|copy| is_so(copy.1)).copied().collect();
        let one = |copy: &Copy| {
            let known = self.copy_report(now, *copy);
            let since =
                known.since_s.map_or(String::new(), |it| format!(" for {}", span_words(it)));
            format!("disk {} of node {} ({}{since})", known.disk, known.node_name, known.state)
        };
        let mut words: Vec<String> = found.iter().take(NAMED_MAX).map(one).collect();
        if found.len() > NAMED_MAX {
            words.push(format!("{} more disks", found.len() - NAMED_MAX));
        }
        words.join(", ")
    }

    /// What is known of requests that wait: by the session, where it is.
    fn request_words(&self, now: Time, volume: &Volume) -> Option<String> {
        let attachment = volume.attachments.first()?;
        if attachment.node != self.settings.node {
            let node = self.node_words(attachment.node);
            return Some(format!(
                "it is attached on node {node}, which alone knows whether requests of its client \
                 wait, and which copies have missed some: ask `dog volume explain` there too"
            ));
        }
        let session = self.held.get(&HeldId::Head(volume.id))?.session.as_ref()?;
        let waiting = session.waiting(now)?;
        let span = now.since(waiting.since).as_secs();
        (span > 0).then(|| {
            format!(
                "the oldest request has been waiting for {}: {}",
                span_words(span),
                waiting.reason
            )
        })
    }
}

/// Which loss would hurt.
fn loss_words(report: &ExplainReport, of_two: &Option<[LossReport; 2]>) -> Option<String> {
    let moment = span_words(limits::STEWARD_MOMENT_MS / 1000);
    let then = |lead: &str, both: &LossReport, before: u64| match both {
        both if both.lost_bytes > before => {
            format!("{lead} node {} would lose {}", both.node_name, size_in_words(both.lost_bytes))
        }
        both if both.waiting_bytes > 0 => format!(
            "{lead} node {} would make {} wait until one of them is back",
            both.node_name,
            size_in_words(both.waiting_bytes)
        ),
        _ => String::new(),
    };
    let Some(first) = report.losses.first() else {
        let what = "losing any one node now would not be felt".to_string();
        let Some([first, both]) = of_two else { return Some(what) };
        return Some(match then(&format!("{} and also", first.node_name), both, 0) {
            more if more.is_empty() => what,
            more => format!("{what}; losing node {more}"),
        });
    };
    let node = &first.node_name;
    let what = match first {
        LossReport { lost_bytes: 1.., .. } => format!(
            "losing node {node} now would lose {}: no other whole copy is there",
            size_in_words(first.lost_bytes)
        ),
        LossReport { waiting_bytes: 1.., .. } => format!(
            "losing node {node} now would make {} of it wait until it, or another that is away, is \
             back",
            size_in_words(first.waiting_bytes)
        ),
        _ => format!(
            "losing node {node} now would make {} of it wait for about {moment}, until it is left \
             out",
            size_in_words(first.paused_bytes)
        ),
    };
    let more = of_two.as_ref().map(|[_, both]| then("losing also", both, first.lost_bytes));
    Some(match more {
        Some(more) if !more.is_empty() => format!("{what}; {more}"),
        _ => what,
    })
}
