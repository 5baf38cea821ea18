//! Attempts between model disks, with a session that writes on, restarts, and power cuts; each
//! judged by what was acknowledged.

use super::*;
use crate::disk_model::{Cell, ModelDisk, Random, block_of};
use cluster::{Answer, Change as MemberChange, Command, State};
use proto::{ClusterId, NodeId, VolumeId, Write};

const DISKS: u64 = 5;
const GENERATION: Generation = Generation(1);

/// One write of the session: where, and what.
#[derive(Clone, Debug)]
struct Wrote {
    key: ObjectKey,
    previous: Stamp,
    stamp: Stamp,
    block: u32,
    word: u64,
}

/// Everything written to one index of a lineage, in order, and how much of it was acknowledged.
#[derive(Default)]
struct History {
    wrote: Vec<Wrote>,
    acknowledged: usize,
}

struct World {
    state: State,
    disks: BTreeMap<DiskId, ModelDisk>,
    histories: BTreeMap<(LineageId, u32), History>,
    sequence: u64,
    settled: Stamp,
    random: Random,
    now: Time,
}

fn node() -> NodeId {
    NodeId(1)
}

impl World {
    /// Three volumes of which the first has a snapshot, all partitions on disks 1 to 3.
    fn new(seed: u64) -> World {
        let mut world = World {
            state: State::default(),
            disks: BTreeMap::new(),
            histories: BTreeMap::new(),
            sequence: 0,
            settled: Stamp::default(),
            random: Random(seed),
            now: Time(1),
        };
        world.apply(Command::CreateCluster { cluster: ClusterId(1), partition_bits: 2, unix_s: 0 });
        world.apply(Command::AddNode { node: node(), name: "one".into() });
        for disk in 1..=DISKS {
            let disk = DiskId(u128::from(disk));
            world.apply(Command::AddDisk { disk, node: node(), bytes: 1 << 30 });
            world.disks.insert(disk, ModelDisk::new());
        }
        for disk in world.disks.keys().copied().collect::<Vec<_>>() {
            world.apply(Command::OpenDisk { disk, node: node(), incarnation: Incarnation(1) });
        }
        for name in ["a", "b", "c"] {
            world.apply(Command::CreateVolume { name: name.into(), bytes: 1 << 30, unix_s: 0 });
        }
        let volume = VolumeId(1);
        let (holder, read_only) = ("guest".into(), false);
        world.apply(Command::Attach { volume, node: node(), holder, read_only, unix_s: 0 });
        world.apply(Command::CreateSnapshot { volume, tag: "t".into(), unix_s: 0 });
        let layer = LayerId(4);
        world.apply(Command::LayerOpened { volume, generation: GENERATION, layer });
        for disk in [1, 2, 3] {
            let (lineage, generation, parent) = (LineageId(1), GENERATION, LayerId(1));
            let open = MemberRequest::OpenLayer { lineage, generation, layer, parent };
            let disk = world.disks.get_mut(&DiskId(disk)).expect("made above");
            disk.handle(&open).expect("it is new");
        }
        let openings =
            [1, 2, 3].map(|disk| Member { disk: DiskId(disk), incarnation: Incarnation(1) });
        let attempt = world.begin(&[1, 2, 3]);
        world.apply(Command::Activate { attempt, openings: openings.to_vec() });
        world
    }

    fn apply(&mut self, command: Command) -> Answer {
        let answer = self.state.apply(&command).unwrap_or_else(|refusal| panic!("{refusal}"));
        self.state.check();
        answer
    }

    /// An attempt to make these the members of every partition.
    fn begin(&mut self, wanted: &[u128]) -> u64 {
        let map = self.state.map();
        let partitions = (0..1 << map.partition_bits()).map(PartitionId);
        let numbered = |partition| (partition, map.configuration(3, partition).number);
        let change = MemberChange {
            wanted: wanted.iter().map(|&disk| DiskId(disk)).collect(),
            partitions: partitions.map(numbered).collect(),
        };
        let (bits, owner) = (map.partition_bits(), node());
        let begin = Command::BeginAttempt { copies: 3, bits, owner, changes: vec![change] };
        let Answer::AttemptBegun { attempt } = self.apply(begin) else { panic!("it is begun") };
        attempt
    }

    /// Sends one write on to a disk that has what came before it. Whether it has it now.
    fn deliver(&mut self, lineage: LineageId, wrote: &Wrote, disk: DiskId) -> bool {
        let map = self.state.map();
        let (index, key) = (wrote.key.index, wrote.key);
        let write = Write {
            lineage,
            key,
            under: map.under_of(lineage, index),
            previous: wrote.previous,
            stamp: wrote.stamp,
            settled: self.settled,
            change: proto::Change::Data {
                first: wrote.block,
                payload: block_of(wrote.word),
                detect_zeroes: true,
            },
        };
        let incarnation = self.disks[&disk].incarnation;
        let member = Member { disk, incarnation };
        let is_current = map.configuration_of(lineage, index).current.contains(&member);
        let model = self.disks.get_mut(&disk).expect("one of them");
        is_current && model.handle(&MemberRequest::Write(write)).is_ok()
    }

    /// A guest writes: some members get it, and maybe those do that have missed the one before.
    fn write(&mut self) {
        let map = self.state.map();
        let lineage = LineageId(1 + self.random.below(3));
        let index = self.random.below(6) as u32;
        let head = if lineage == LineageId(1) && self.random.chance(800) { 4 } else { lineage.0 };
        let history = self.histories.entry((lineage, index)).or_default();
        // A sealed layer is not written once the head has something.
        let lowest = history.wrote.iter().map(|wrote| wrote.key.layer.0).max().unwrap_or(0);
        let layer = LayerId(head.max(lowest));
        self.sequence += 1;
        let wrote = Wrote {
            key: ObjectKey { layer, index },
            previous: history.wrote.last().map(|wrote| wrote.stamp).unwrap_or_default(),
            stamp: Stamp { generation: GENERATION, sequence: self.sequence },
            block: self.random.below(4) as u32,
            word: self.sequence,
        };
        history.wrote.push(wrote.clone());
        let members = map.configuration_of(lineage, index).current.clone();
        let mut got = 0;
        for member in &members {
            if self.random.chance(850) {
                got += usize::from(self.deliver(lineage, &wrote, member.disk));
            }
        }
        if got > members.len() / 2 {
            let history = self.histories.get_mut(&(lineage, index)).expect("it was written");
            history.acknowledged = history.wrote.len();
        }
    }

    /// The session sends again what members have missed; if all have all, it flushes, and the
    /// settled point moves.
    fn catch_up(&mut self) {
        let mut all = true;
        self.histories.retain(|_, history| !history.wrote.is_empty());
        let places: Vec<(LineageId, u32)> = self.histories.keys().copied().collect();
        for (lineage, index) in places {
            let members = self.state.map().configuration_of(lineage, index).current.clone();
            let mut whole = 0;
            for member in &members {
                for wrote in self.histories[&(lineage, index)].wrote.clone() {
                    self.deliver(lineage, &wrote, member.disk);
                }
                let history = &self.histories[&(lineage, index)];
                let last = history.wrote.last().expect("not empty");
                let has = self.disks[&member.disk].stamp(lineage, last.key).stamp == last.stamp;
                let is_now = self.disks[&member.disk].incarnation == member.incarnation;
                all &= has && is_now;
                whole += usize::from(has && is_now);
            }
            let is_refused = self.is_refused();
            let history = self.histories.get_mut(&(lineage, index)).expect("listed above");
            if whole > members.len() / 2 && !is_refused {
                history.acknowledged = history.wrote.len();
            }
        }
        if !all || self.is_refused() {
            return;
        }
        self.settled = Stamp { generation: GENERATION, sequence: self.sequence + 1 };
        self.sequence += 1;
        for disk in self.members() {
            for lineage in [1, 2, 3].map(LineageId) {
                let (generation, settled) = (GENERATION, self.settled);
                let flush = MemberRequest::Flush { lineage, generation, settled };
                self.disks.get_mut(&disk).expect("known").handle(&flush).expect("not fenced");
            }
        }
    }

    /// Whether any disk has refused the present configuration of some partition.
    fn is_refused(&self) -> bool {
        let map = self.state.map();
        let now = map.configuration(3, PartitionId(0)).number;
        self.disks.values().any(|disk| disk.refused.iter().any(|it| it.1.under.number >= now))
    }

    fn members(&self) -> Vec<DiskId> {
        let map = self.state.map();
        map.configuration(3, PartitionId(0)).current.iter().map(|member| member.disk).collect()
    }

    fn reopen(&mut self, disk: DiskId, power: bool) {
        let model = self.disks.get_mut(&disk).expect("one of them");
        model.reopen(if power { 300 } else { 0 }, &mut self.random);
        let incarnation = model.incarnation;
        self.apply(Command::OpenDisk { disk, node: node(), incarnation });
    }

    /// Carries an attempt out. `faults`: how often, of a thousand steps, something happens to a
    /// disk of these.
    fn carry_out(&mut self, attempt: u64, faults: u64, victims: &[DiskId]) -> AttemptOutcome {
        let mut machine = Reconfigurer::begin(self.state.map(), attempt).expect("it is under way");
        let mut asked: BTreeMap<DiskId, VecDeque<(AttemptQuestion, MemberRequest)>> =
            BTreeMap::new();
        for _ in 0..200_000 {
            if let Some(outcome) = machine.outcome() {
                return outcome.clone();
            }
            while let Some((question, disk, request)) = machine.poll(self.now) {
                asked.entry(disk).or_default().push_back((question, request));
            }
            asked.retain(|_, waiting| !waiting.is_empty());
            if asked.is_empty() {
                self.now = machine.deadline().expect("it waits for something");
                continue;
            }
            if self.random.chance(30) && !machine.may_be_refused() {
                self.write();
            }
            if self.random.chance(faults) && !victims.is_empty() {
                let disk = victims[self.random.below(victims.len() as u64) as usize];
                let power = self.random.chance(300);
                self.reopen(disk, power);
                for (question, _) in asked.remove(&disk).unwrap_or_default() {
                    machine.handle(self.now, question, Err(MemberError::Retired));
                }
                machine.reopened(disk);
                machine.learn(self.state.map());
                continue;
            }
            let at = self.random.below(asked.len() as u64) as usize;
            let (&disk, waiting) = asked.iter_mut().nth(at).expect("one of them");
            let (question, request) = waiting.pop_front().expect("not empty");
            let result = match self.random.chance(20) {
                true => Err(MemberError::Busy),
                false => self.disks.get_mut(&disk).expect("one of them").handle(&request),
            };
            machine.handle(self.now, question, result);
        }
        panic!("no end: {:?}", machine.progress());
    }

    /// Carries an attempt out while nothing else happens.
    fn carry_out_quietly(&mut self, attempt: u64) -> AttemptOutcome {
        let mut machine = Reconfigurer::begin(self.state.map(), attempt).expect("it is under way");
        for _ in 0..10_000 {
            if let Some(outcome) = machine.outcome() {
                return outcome.clone();
            }
            let Some((question, disk, request)) = machine.poll(self.now) else {
                self.now = machine.deadline().expect("it waits for something");
                continue;
            };
            let result = self.disks.get_mut(&disk).expect("one of them").handle(&request);
            machine.handle(self.now, question, result);
        }
        panic!("no end: {:?}", machine.progress());
    }

    /// The attempt is activated: all members have the same, durably, and all that was acknowledged.
    fn judge(&mut self, attempt: u64, openings: Vec<Member>) {
        self.apply(Command::Activate { attempt, openings });
        let members = self.members();
        for (&(lineage, index), history) in &mut self.histories {
            let rows = |disk: &DiskId| {
                let rows = self.disks[disk].stable_rows().clone().into_iter();
                let rows = rows.filter(|(place, _)| (place.0, place.1) == (lineage, index));
                let cells = |row: &crate::disk_model::Row| row.stamp;
                rows.map(|(place, row)| (place.2, cells(&row))).collect::<BTreeMap<_, _>>()
            };
            let first = rows(&members[0]);
            for disk in &members {
                assert_eq!(rows(disk), first, "{lineage} {index} on {disk}");
                assert_eq!(self.disks[disk].stable_rows(), self.disks[disk].rows());
            }
            let last = first.values().max().copied().unwrap_or_default();
            let length = history.wrote.iter().position(|wrote| wrote.stamp == last);
            let length = length.map_or(0, |at| at + 1);
            assert!(length > 0 || last == Stamp::default(), "a state that there never was");
            assert!(length >= history.acknowledged, "an acknowledged write is lost");
            history.wrote.truncate(length);
            for layer in if lineage == LineageId(1) { vec![1, 4] } else { vec![lineage.0] } {
                let key = ObjectKey { layer: LayerId(layer), index };
                let mut wanted: BTreeMap<u32, Cell> = BTreeMap::new();
                for wrote in history.wrote.iter().filter(|it| it.key.layer.0 <= layer) {
                    wanted.insert(wrote.block, Cell::Data(wrote.word));
                }
                for disk in &members {
                    assert_eq!(self.disks[disk].cells(lineage, key), wanted, "{key} on {disk}");
                }
            }
        }
    }

    fn write_some(&mut self, count: usize) {
        for _ in 0..count {
            self.write();
            if self.random.chance(100) {
                self.catch_up();
            }
        }
    }
}

#[test]
fn members_change_and_nothing_acknowledged_is_lost() {
    let mut given_up = 0;
    for seed in 0..80 {
        let mut world = World::new(seed);
        for _ in 0..5 {
            world.write_some(60);
            let members = world.members();
            // One disk may fail as it likes between two changes; and newcomers as they like.
            let victim = members[world.random.below(members.len() as u64) as usize];
            if world.random.chance(500) {
                let power = world.random.chance(500);
                world.reopen(victim, power);
                world.write_some(20);
            }
            let mut wanted: Vec<u128> = (1..=u128::from(DISKS)).collect();
            for at in (1..wanted.len()).rev() {
                wanted.swap(at, world.random.below(at as u64 + 1) as usize);
            }
            wanted.truncate(3);
            let newcomers = wanted.iter().map(|&disk| DiskId(disk));
            let newcomers = newcomers.filter(|disk| !members.contains(disk));
            let victims: Vec<DiskId> = newcomers.chain([victim]).collect();
            let mut faults = world.random.below(2) * 3;
            let mut last = None;
            for round in 0.. {
                assert!(round < 50, "seed {seed}: it never comes to an end: {last:?}");
                let attempt = world.begin(&wanted);
                match world.carry_out(attempt, faults, &victims) {
                    AttemptOutcome::Activate { openings } => {
                        // It may have been opened anew since it said it was ready.
                        world.judge(attempt, openings);
                        break;
                    }
                    AttemptOutcome::GiveUp { may_be_refused, reason } => {
                        // Nothing but a disk that failed in the middle is a reason.
                        let is_expected = matches!(
                            reason,
                            GiveUp::Reopened { .. } | GiveUp::Disk { .. } | GiveUp::Object { .. }
                        );
                        assert!(is_expected && faults > 0, "seed {seed}: {reason}");
                        world.apply(Command::GiveUpAttempt { attempt, may_be_refused });
                        given_up += 1;
                        last = Some(reason);
                        faults = if round > 3 { 0 } else { faults };
                    }
                }
            }
        }
    }
    assert!(given_up > 10, "{given_up}");
}

#[test]
fn one_that_lost_power_is_not_believed_alone_and_it_is_said_who_is_waited_for() {
    let mut world = World::new(7);
    world.write_some(50);
    let [first, second, third] = [1, 2, 3].map(DiskId);
    world.reopen(first, true);
    let attempt = world.begin(&[1, 3]);
    let mut machine = Reconfigurer::begin(world.state.map(), attempt).expect("under way");
    let mut away = BTreeSet::from([second]);
    for step in 0..20_000 {
        if let Some(outcome) = machine.outcome() {
            assert!(matches!(outcome, AttemptOutcome::Activate { .. }) && step > 5_000);
            return;
        }
        let Some((question, disk, request)) = machine.poll(world.now) else {
            world.now = machine.deadline().expect("it waits for something");
            if step > 5_000 {
                let progress = machine.progress();
                assert_eq!(
                    (progress.stage, machine.may_be_refused()),
                    (AttemptStage::Refusing, true)
                );
                assert_eq!(progress.waiting_for, [second]);
                assert!(!away.is_empty());
                away.clear();
            }
            continue;
        };
        let result = match away.contains(&disk) {
            true => Err(MemberError::Retired),
            false => world.disks.get_mut(&disk).expect("known").handle(&request),
        };
        machine.handle(world.now, question, result);
    }
    panic!("no end: {:?} {third}", machine.progress());
}

#[test]
fn newcomers_know_layers_in_which_nothing_was_copied() {
    let mut world = World::new(3);
    let attempt = world.begin(&[1, 2, 4]);
    let outcome = world.carry_out_quietly(attempt);
    let AttemptOutcome::Activate { openings } = outcome else { panic!("{outcome:?}") };
    world.apply(Command::Activate { attempt, openings });
    // The session may write there at once.
    let key = ObjectKey { layer: LayerId(4), index: 0 };
    let stamp = MemberRequest::Stamp { lineage: LineageId(1), key, generation: GENERATION };
    let newcomer = world.disks.get_mut(&DiskId(4)).expect("one of them");
    assert!(matches!(newcomer.handle(&stamp), Ok(MemberReply::Stamp(_))));
}

/// A next member that is out of service ends the attempt after a moment, though the others are
/// enough to settle by: else the members would refuse for ever what is left.
#[test]
fn a_next_member_that_is_retired_for_a_moment_ends_the_attempt() {
    let mut world = World::new(8);
    world.write_some(20);
    let attempt = world.begin(&[1, 2, 3]);
    let mut machine = Reconfigurer::begin(world.state.map(), attempt).expect("under way");
    let mut refusing_since = None;
    for _ in 0..20_000 {
        if let Some(outcome) = machine.outcome() {
            let disk = DiskId(3);
            let reason = MemberError::Retired.to_string();
            let (reason, may_be_refused) = (GiveUp::Disk { disk, reason }, true);
            assert_eq!(*outcome, AttemptOutcome::GiveUp { reason, may_be_refused });
            let since: Time = refusing_since.expect("it has asked");
            assert!(since + Duration::from_millis(STEWARD_MOMENT_MS) <= world.now);
            return;
        }
        let Some((question, disk, request)) = machine.poll(world.now) else {
            world.now = machine.deadline().expect("it waits for something");
            continue;
        };
        let result = match (disk, &request) {
            (DiskId(3), MemberRequest::Refuse(_)) => {
                refusing_since.get_or_insert(world.now);
                Err(MemberError::Retired)
            }
            _ => world.disks.get_mut(&disk).expect("known").handle(&request),
        };
        machine.handle(world.now, question, result);
    }
    panic!("no end: {:?}", machine.progress());
}

/// Carries an attempt out with a disk that answers nothing from some moment on, of which the
/// machine hears. Gives the outcome, if there is one within a minute of what it counts.
fn carry_out_without(
    world: &mut World,
    attempt: u64,
    silent: DiskId,
    answers: impl Fn(&Reconfigurer) -> bool,
) -> Option<AttemptOutcome> {
    let mut machine = Reconfigurer::begin(world.state.map(), attempt).expect("under way");
    let mut since = None;
    let end = world.now + Duration::from_millis(60_000);
    while world.now < end {
        while let Some((question, disk, request)) = machine.poll(world.now) {
            if world.random.chance(100) && !machine.may_be_refused() {
                world.write();
            }
            let is_silent = since.is_some() || !answers(&machine);
            if is_silent {
                since.get_or_insert(world.now);
            }
            if disk == silent && is_silent {
                continue;
            }
            let result = world.disks.get_mut(&disk).expect("known").handle(&request);
            machine.handle(world.now, question, result);
        }
        if let Some(outcome) = machine.outcome() {
            return Some(outcome.clone());
        }
        world.now = world.now + Duration::from_millis(500);
        let away = since.map(|since| (silent, since)).into_iter().collect();
        machine.miss(world.now, &away);
    }
    None
}

/// Of three, one was started anew and has to be listed anew, and then another one dies: it was the
/// first source for what the former has missed. Two of three are enough, and what lay there waited
/// for the dead one for as long as that lasted.
#[test]
fn who_dies_as_a_source_is_not_waited_for_where_another_has_it_all() {
    for seed in 0..20 {
        let mut world = World::new(seed);
        world.write_some(50);
        world.reopen(DiskId(2), false);
        let attempt = world.begin(&[2, 3]);
        let outcome = carry_out_without(&mut world, attempt, DiskId(1), |_| false);
        let Some(AttemptOutcome::Activate { openings }) = outcome else { panic!("{outcome:?}") };
        world.judge(attempt, openings);
    }
}

/// Of what it knew nothing can be left out, so the next attempt is one without it.
#[test]
fn who_dies_after_it_has_refused_ends_the_attempt() {
    let mut world = World::new(9);
    world.write_some(50);
    let attempt = world.begin(&[2, 3]);
    let is_early = |machine: &Reconfigurer| {
        matches!(machine.stage, AttemptStage::Copying { .. } | AttemptStage::Refusing)
    };
    let outcome = carry_out_without(&mut world, attempt, DiskId(1), is_early);
    let Some(AttemptOutcome::GiveUp { reason, may_be_refused: true }) = outcome else {
        panic!("{outcome:?}")
    };
    assert!(matches!(reason, GiveUp::Disk { disk: DiskId(1), .. }), "{reason}");
}

/// Guests wait from then on, so that the next attempt, without it, is to come soon.
#[test]
fn who_dies_before_it_refuses_ends_the_attempt_soon() {
    let mut world = World::new(9);
    world.write_some(50);
    let attempt = world.begin(&[1, 2]);
    let begun = world.now;
    let is_early = |machine: &Reconfigurer| matches!(machine.stage, AttemptStage::Copying { .. });
    let outcome = carry_out_without(&mut world, attempt, DiskId(1), is_early);
    let Some(AttemptOutcome::GiveUp { reason, may_be_refused: true }) = outcome else {
        panic!("{outcome:?}")
    };
    assert!(matches!(reason, GiveUp::Disk { disk: DiskId(1), .. }), "{reason}");
    assert!(world.now.since(begun) < Duration::from_secs(2), "{:?}", world.now.since(begun));
}

/// Some answer, right or not.
fn nonsense(random: &mut Random) -> Result<MemberReply, MemberError> {
    let incarnation = Incarnation(random.below(3));
    let stamp = Stamp { generation: Generation(random.below(2)), sequence: random.below(3) };
    let row = |random: &mut Random| {
        let layer = LayerId(random.below(6));
        let key = ObjectKey { layer, index: random.below(4) as u32 };
        let settled_generation = Generation(random.below(3));
        (LineageId(random.below(4)), ObjectStamp { key, stamp, settled_generation })
    };
    let more = random.chance(200);
    let mut objects: Vec<_> = (0..random.below(4)).map(|_| row(random)).collect();
    if random.chance(700) {
        objects.sort_by_key(|(lineage, found)| (*lineage, found.key));
    }
    Ok(match random.below(12) {
        0 => MemberReply::Done,
        1 | 2 => MemberReply::Stamp(row(random).1),
        3..6 => MemberReply::Survey { incarnation, objects, more },
        6 => MemberReply::Checksums(vec![proto::BlockSum::Zero; random.below(2000) as usize]),
        7 => MemberReply::Refused { incarnation, lossless_from: Incarnation(random.below(4)) },
        8 => MemberReply::Installed { incarnation },
        9 => MemberReply::Lineages { lineages: Vec::new(), more },
        10 => return Err(MemberError::Superseded { newer: 7 }),
        _ => return Err(MemberError::invalid("because")),
    })
}

#[test]
fn whatever_disks_answer_nothing_panics() {
    let mut reasons = BTreeSet::new();
    for seed in 0..400 {
        let mut world = World::new(seed);
        world.write_some(10);
        if seed % 2 == 0 {
            world.reopen(DiskId(2), false);
        }
        let attempt = world.begin(&[1, 2, 4]);
        let mut machine = Reconfigurer::begin(world.state.map(), attempt).expect("under way");
        // The later it begins, the further the attempt has come.
        let mut right = world.random.below(400);
        for _ in 0..2_000 {
            let Some((question, disk, request)) = machine.poll(world.now) else {
                let Some(at) = machine.deadline() else { break };
                world.now = at;
                continue;
            };
            let is_right = right > 0 || world.random.chance(700);
            right = right.saturating_sub(1);
            let result = match is_right {
                true => world.disks.get_mut(&disk).expect("known").handle(&request),
                false => nonsense(&mut world.random),
            };
            machine.handle(world.now, question, result);
            machine.handle(world.now, question, Ok(MemberReply::Done));
        }
        reasons.insert(match machine.outcome() {
            Some(AttemptOutcome::GiveUp { reason: GiveUp::Disk { .. }, .. }) => "disk",
            Some(AttemptOutcome::GiveUp { reason: GiveUp::Superseded { .. }, .. }) => "superseded",
            Some(AttemptOutcome::GiveUp { reason: GiveUp::Reopened { .. }, .. }) => "reopened",
            Some(AttemptOutcome::GiveUp { .. }) => "other",
            Some(AttemptOutcome::Activate { .. }) => "activated",
            None => "waits",
        });
    }
    for reason in ["disk", "superseded", "reopened", "activated"] {
        assert!(reasons.contains(reason), "{reasons:?}");
    }
}
