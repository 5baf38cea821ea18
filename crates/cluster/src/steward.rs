//! What to do next so that every partition has the members that it should have: a pure function of
//! the map and of what is seen of the disks.
//!
//! It decides nothing: it gives commands to propose, each of which the agreed state judges by
//! itself. Whoever asks it does so again when the map or what is seen has changed, and what was
//! proposed before is under way by then.

use crate::attempt::{Attempt, Change};
use crate::command::Command;
use crate::machine::DiskState;
use crate::map::Map;
use crate::partition::{Configuration, Member};
use proto::limits::{
    ATTEMPT_DISKS_MAX, COMMAND_BYTES_MAX, PARTITIONS_PER_COMMAND_MAX, STEWARD_COPYING_MAX,
    STEWARD_COPYING_PARTITIONS_MAX, STEWARD_GRACE_MS, STEWARD_MOMENT_MS, STEWARD_URGENT_MAX,
};
use proto::{ConfigurationNumber, DiskId, Duration, NodeId, PartitionId, Time};
use std::collections::{BTreeMap, BTreeSet};

/// What is seen of disks and nodes.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Sight {
    /// Now.
    pub now: Time,
    /// Disks that do not answer, and since when.
    pub away: BTreeMap<DiskId, Time>,
    /// Disks of nodes that only others see, and since when: nobody is left out for that, and
    /// whoever asks carries out nothing that needs them.
    pub unseen: BTreeMap<DiskId, Time>,
    /// Nodes that do not answer, and since when. What they carry out comes to a halt.
    pub away_nodes: BTreeMap<NodeId, Time>,
    /// Current members that a session does not write to any more, since they have missed too much:
    /// in the table for how many copies, of which partition, and which disk.
    pub behind: BTreeSet<(u8, PartitionId, DiskId)>,
    /// Partitions, by table, whose last attempt came to nothing a short time ago: nothing is begun
    /// there now.
    pub paused: BTreeSet<(u8, PartitionId)>,
}

/// How long is waited, and how much is done at a time.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pace {
    /// A disk that is away for so long is left out, as far as enough members are left.
    pub moment: Duration,
    /// What a disk holds that is away for so long is built anew on others.
    pub grace: Duration,
    /// Attempts at once that only leave members out or list them anew.
    pub urgent_max: usize,
    /// Attempts at once that copy to newcomers.
    pub copying_max: usize,
}

impl Default for Pace {
    fn default() -> Pace {
        Pace {
            moment: Duration::from_millis(STEWARD_MOMENT_MS),
            grace: Duration::from_millis(STEWARD_GRACE_MS),
            urgent_max: STEWARD_URGENT_MAX,
            copying_max: STEWARD_COPYING_MAX,
        }
    }
}

/// Why the members of a partition are to change, the most urgent first.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Need {
    /// Nothing can be written now: members may refuse, or too few are there.
    Stuck,
    /// One member more that fails is felt: some are away, gone, behind, or were opened anew.
    Weak,
    /// There are fewer copies than are wanted.
    Few,
    /// Another place is better.
    Misplaced,
}

/// How the members of a partition are, and what is done about them or waited for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Situation {
    /// All are whole.
    Whole,
    /// An attempt to change them is under way.
    Changing,
    /// The last attempt came to nothing a short time ago; the next one follows.
    Paused,
    /// A member has not answered for a moment, and may in the next: then it is left out.
    Hesitant,
    /// A member answers other nodes and not this one: from here it is not left out.
    Unseen,
    /// A member that fails more is felt: one is away, gone, behind, or was opened anew. It is left
    /// out or made whole by the next attempt.
    Weak,
    /// As `Weak`, but as many are needed as there are: it is waited for, or for another disk.
    Short,
    /// Nothing can be written: members may refuse, or too few are whole. The next attempt ends
    /// that.
    Stuck,
    /// Too few members answer to find out what was acknowledged: they are waited for.
    Unsettled,
}

/// In how many partitions of a table the members are how. Whether others would be better is not
/// looked at.
pub fn situations(map: &Map, sight: &Sight, pace: &Pace, copies: u8) -> BTreeMap<Situation, u64> {
    let mut found = BTreeMap::new();
    for partition in (0..1u32 << map.partition_bits()).map(PartitionId) {
        *found.entry(situation(map, sight, pace, copies, partition)).or_default() += 1;
    }
    found
}

/// How the members of one partition are.
pub fn situation(
    map: &Map,
    sight: &Sight,
    pace: &Pace,
    copies: u8,
    partition: PartitionId,
) -> Situation {
    match (View { map, sight, pace }).step(copies, partition, None) {
        Ok(Step { need: Need::Stuck, .. }) => Situation::Stuck,
        Ok(Step { need: Need::Weak, .. }) => Situation::Weak,
        Ok(Step { need: Need::Few | Need::Misplaced, .. }) => Situation::Whole,
        Err(situation) => situation,
    }
}

/// The next members of one partition.
struct Step {
    copies: u8,
    partition: PartitionId,
    from: ConfigurationNumber,
    need: Need,
    /// Members that are whole.
    whole: usize,
    wanted: Vec<DiskId>,
    /// Something is to be copied to a disk that is no member.
    is_copying: bool,
}

/// Whether there is anything to look after: several disks, or what is left of attempts of when
/// there were. One disk alone is activated whenever it is opened.
pub fn is_wanted(map: &Map) -> bool {
    let is_left = || map.attempts().len() > 0 || map.configurations().any(|it| it.may_be_refused);
    map.disks().len() > 1 || is_left()
}

/// The commands to propose now, in this order; the attempts among them are to be carried out by
/// `owner`, who asks.
///
/// * Attempts that cannot come to an end are given up: their owner is away, or a disk that they
///   want is, or `owner` carries them out and does not see one.
/// * A member that is away for longer than a moment, or behind, is left out: so quorums are whole
///   again, and the settled point moves. Never so that fewer are left than volumes ask for.
/// * A member that was opened anew is listed anew, and gets what it has missed.
/// * Where there are fewer copies than are wanted, and where other disks should hold a partition
///   ([`Map::wanted_members`]), newcomers get it: in the place of a disk that is away only after
///   the grace time.
///
/// The most endangered partitions come first. What cannot be done now, since too few members answer
/// to settle by, is left.
pub fn plan(map: &Map, sight: &Sight, pace: &Pace, owner: NodeId) -> Vec<Command> {
    let mut commands = Vec::new();
    if !is_wanted(map) || map.node(owner).is_none() {
        return commands;
    }
    let view = View { map, sight, pace };
    let (halted, going): (Vec<&Attempt>, Vec<&Attempt>) =
        map.attempts().partition(|attempt| view.is_halted(attempt, owner));
    for attempt in halted {
        // How far it had come nobody can say.
        let (attempt, may_be_refused) = (attempt.number, true);
        commands.push(Command::GiveUpAttempt { attempt, may_be_refused });
    }
    let copying = going.iter().filter(|attempt| view.copies_to_newcomers(attempt)).count();
    let urgent_room = pace.urgent_max.saturating_sub(going.len() - copying);
    let copying_room = pace.copying_max.saturating_sub(copying);
    let mut steps: Vec<Step> = Vec::new();
    for copies in map.tables() {
        // It costs most by far, and is of no use if nothing can be copied.
        let wish = (copying_room > 0)
            .then(|| map.wanted_members_without(copies, |disk| view.is_away_for(disk, pace.grace)));
        for index in 0..1u32 << map.partition_bits() {
            let wish = wish.as_ref().map(|wish| &wish[index as usize][..]);
            steps.extend(view.step(copies, PartitionId(index), wish).ok());
        }
    }
    steps.sort_by_key(|step| (step.need, step.whole, step.copies, step.partition));
    let (copying, urgent): (Vec<Step>, Vec<Step>) =
        steps.into_iter().partition(|step| step.is_copying);
    let bits = map.partition_bits();
    for (steps, room, most) in [
        (urgent, urgent_room, PARTITIONS_PER_COMMAND_MAX),
        (copying, copying_room, STEWARD_COPYING_PARTITIONS_MAX),
    ] {
        let batches = batches(steps, room, most).into_iter();
        commands.extend(batches.map(|(copies, changes)| Command::BeginAttempt {
            copies,
            bits,
            owner,
            changes,
        }));
    }
    commands
}

struct View<'a> {
    map: &'a Map,
    sight: &'a Sight,
    pace: &'a Pace,
}

impl View<'_> {
    fn is_away_for(&self, disk: DiskId, long: Duration) -> bool {
        self.sight.away.get(&disk).is_some_and(|&since| since + long <= self.sight.now)
    }

    /// Whether a disk answers and can hold something.
    fn is_there(&self, disk: DiskId) -> bool {
        let known = self.map.disk(disk);
        let is_usable =
            known.is_some_and(|known| known.state != DiskState::Gone && known.incarnation.0 > 0);
        is_usable && !self.sight.away.contains_key(&disk) && !self.sight.unseen.contains_key(&disk)
    }

    fn is_halted(&self, attempt: &Attempt, owner: NodeId) -> bool {
        let since = self.sight.away_nodes.get(&attempt.owner);
        let is_left = since.is_some_and(|&since| since + self.pace.moment <= self.sight.now);
        let cannot_ask = |disk: &DiskId| {
            let since = self.sight.unseen.get(disk).filter(|_| attempt.owner == owner);
            since.is_some_and(|&since| since + self.pace.moment <= self.sight.now)
        };
        let is_away = |disk: &DiskId| self.is_away_for(*disk, self.pace.moment);
        is_left || attempt.disks().iter().any(|disk| is_away(disk) || cannot_ask(disk))
    }

    fn copies_to_newcomers(&self, attempt: &Attempt) -> bool {
        let mut partitions = attempt.wanted.keys();
        partitions.any(|&at| !self.map.configuration(attempt.copies, at).recovering.is_empty())
    }

    /// What is to be done about one partition, or why nothing is.
    fn step(
        &self,
        copies: u8,
        partition: PartitionId,
        wish: Option<&[DiskId]>,
    ) -> Result<Step, Situation> {
        let held = self.map.configuration(copies, partition);
        if held.current.is_empty() {
            return Err(Situation::Whole);
        }
        if held.attempt != 0 {
            return Err(Situation::Changing);
        }
        if self.sight.paused.contains(&(copies, partition)) {
            return Err(Situation::Paused);
        }
        let answers = |member: &&Member| self.is_there(member.disk);
        // It answers others, and may be what they write to: it is not to be left out from here,
        // unless nobody writes anyway.
        if !held.may_be_refused
            && held.current.iter().any(|member| self.sight.unseen.contains_key(&member.disk))
        {
            return Err(Situation::Unseen);
        }
        // Those who settle must meet every write quorum.
        if held.current.iter().filter(answers).count() <= held.current.len() - held.quorum() {
            return Err(Situation::Unsettled);
        }
        // Whoever does not answer at this moment may in the next.
        let hesitates = |member: &Member| {
            self.sight.away.contains_key(&member.disk)
                && !self.is_away_for(member.disk, self.pace.moment)
        };
        let is_behind =
            |member: &Member| self.sight.behind.contains(&(copies, partition, member.disk));
        // But where one that answers cannot help, and nothing can be written, each moment counts.
        let answering = || held.current.iter().filter(answers);
        let helps = |member: &&Member| !is_behind(member) && self.map.is_present(**member);
        let helping = answering().filter(helps).count();
        let is_held_up = helping < held.quorum() && helping < answering().count();
        if held.current.iter().any(hesitates) && !is_held_up && !held.may_be_refused {
            return Err(Situation::Hesitant);
        }
        let stays = |member: &&Member| answers(member) && !is_behind(member);
        let staying: Vec<Member> = held.current.iter().filter(stays).copied().collect();
        let whole = staying.iter().filter(|member| self.map.is_present(**member)).count();
        let disks = |members: &[Member]| members.iter().map(|member| member.disk).collect();
        let step = |need: Need, wanted: Vec<DiskId>| {
            let is_member = |disk: &DiskId| held.current.iter().any(|it| it.disk == *disk);
            let is_copying = !wanted.iter().all(is_member);
            let from = held.number;
            Step { copies, partition, from, need, whole, wanted, is_copying }
        };
        if whole < held.current.len() || held.may_be_refused {
            let is_stuck = held.may_be_refused || whole < held.quorum();
            let need = if is_stuck { Need::Stuck } else { Need::Weak };
            let wanted = self.enough(copies, held, disks(&staying), is_behind, wish);
            return wanted.map(|wanted| step(need, wanted)).ok_or(Situation::Short);
        }
        let better = wish.and_then(|wish| self.better(held, wish));
        let wanted = better.ok_or(Situation::Whole)?;
        let is_few = held.current.len() < wanted.len();
        Ok(step(if is_few { Need::Few } else { Need::Misplaced }, wanted))
    }

    /// Those who stay, if they are as many as volumes ask for; otherwise with those who are behind,
    /// or with newcomers.
    fn enough(
        &self,
        copies: u8,
        held: &Configuration,
        mut wanted: Vec<DiskId>,
        is_behind: impl Fn(&Member) -> bool,
        wish: Option<&[DiskId]>,
    ) -> Option<Vec<DiskId>> {
        let floor = held.fewest(self.map.floor(copies));
        // All that they miss is not settled: the attempt makes it whole, while sessions wait.
        let behind = held.current.iter().filter(|it| is_behind(it) && self.is_there(it.disk));
        let newcomers =
            wish.unwrap_or_default().iter().copied().filter(|&it| self.is_new(held, it));
        for disk in behind.map(|member| member.disk).chain(newcomers) {
            if wanted.len() < floor {
                wanted.push(disk);
            }
        }
        (wanted.len() >= floor).then_some(wanted)
    }

    /// Whether a disk can be a newcomer of a partition.
    fn is_new(&self, held: &Configuration, disk: DiskId) -> bool {
        let is_in = self.map.disk(disk).is_some_and(|known| known.is_in());
        is_in && self.is_there(disk) && held.current.iter().all(|member| member.disk != disk)
    }

    /// The members that are wished for, of those that answer; and where that would be fewer than
    /// there are, members of now beside them. Nothing if that is who they are.
    fn better(&self, held: &Configuration, wish: &[DiskId]) -> Option<Vec<DiskId>> {
        let is_member = |disk: DiskId| held.current.iter().any(|member| member.disk == disk);
        let can_be = |disk: &DiskId| is_member(*disk) || self.is_new(held, *disk);
        let mut wanted: Vec<DiskId> = wish.iter().copied().filter(can_be).collect();
        for member in &held.current {
            if wanted.len() < held.current.len() && !wanted.contains(&member.disk) {
                wanted.push(member.disk);
            }
        }
        let is_same = wanted.len() == held.current.len() && wanted.iter().all(|&it| is_member(it));
        (!is_same).then_some(wanted)
    }
}

/// Puts steps into attempts, in their order, as many as there is room for.
fn batches(steps: Vec<Step>, room: usize, most: usize) -> Vec<(u8, Vec<Change>)> {
    let mut batches: Vec<(u8, Vec<Change>)> = Vec::new();
    let mut last: Option<Batch> = None;
    for step in steps {
        if let Some(batch) = &mut last
            && batch.takes(&step, most)
        {
            batch.add(step);
            continue;
        }
        batches.extend(last.take().map(Batch::changes));
        if batches.len() == room {
            return batches;
        }
        let mut batch = Batch { copies: step.copies, need: step.need, ..Batch::default() };
        batch.add(step);
        last = Some(batch);
    }
    batches.extend(last.map(Batch::changes));
    batches
}

/// An attempt in the making.
struct Batch {
    copies: u8,
    need: Need,
    groups: BTreeMap<Vec<DiskId>, Vec<(PartitionId, ConfigurationNumber)>>,
    disks: BTreeSet<DiskId>,
    count: usize,
    /// No fewer than the command will have.
    bytes: usize,
}

impl Default for Batch {
    fn default() -> Batch {
        Batch {
            copies: 0,
            need: Need::Stuck,
            groups: BTreeMap::new(),
            disks: BTreeSet::new(),
            count: 0,
            bytes: 64,
        }
    }
}

impl Batch {
    /// How many bytes a step adds at most: a partition and a number take 13, a disk 19.
    fn cost(&self, step: &Step) -> usize {
        let is_known = self.groups.contains_key(&step.wanted);
        13 + if is_known { 0 } else { 3 + 19 * step.wanted.len() }
    }

    fn takes(&self, step: &Step, most: usize) -> bool {
        let new = step.wanted.iter().filter(|disk| !self.disks.contains(disk)).count();
        self.copies == step.copies
            && self.need == step.need
            && self.count < most
            && self.disks.len() + new <= ATTEMPT_DISKS_MAX
            && self.bytes + self.cost(step) <= COMMAND_BYTES_MAX
    }

    fn add(&mut self, step: Step) {
        self.bytes += self.cost(&step);
        self.count += 1;
        self.disks.extend(&step.wanted);
        self.groups.entry(step.wanted).or_default().push((step.partition, step.from));
    }

    fn changes(self) -> (u8, Vec<Change>) {
        let change = |(wanted, partitions)| Change { wanted, partitions };
        (self.copies, self.groups.into_iter().map(change).collect())
    }
}
