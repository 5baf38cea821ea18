//! What the steward proposes, and that a cluster which does so comes to where it should be.

use crate::model::Dice;
use crate::steward::{Pace, Sight, Situation, plan, situations};
use crate::*;
use proto::limits::{STEWARD_COPYING_MAX, STEWARD_COPYING_PARTITIONS_MAX};
use proto::{ClusterId, DiskId, Duration, Incarnation, NodeId, PartitionId, Time};
use std::collections::BTreeSet;

struct World {
    state: State,
    sight: Sight,
    pace: Pace,
}

fn node(disk: u128) -> NodeId {
    NodeId(disk + 100)
}

fn seconds(count: u64) -> Duration {
    Duration::from_secs(count)
}

impl World {
    /// 2^bits partitions, a volume, and disks on a node each, the first of which has everything.
    fn new(bits: u8, disks: u128) -> World {
        let (state, sight) = (State::default(), Sight { now: Time(1), ..Sight::default() });
        let mut world = World { state, sight, pace: Pace::default() };
        let cluster = ClusterId(1);
        world.apply(Command::CreateCluster { cluster, partition_bits: bits, unix_s: 0 });
        for disk in 1..=disks {
            world.add(disk);
        }
        world.apply(Command::CreateVolume { name: "v".into(), bytes: 4096, unix_s: 0 });
        world
    }

    fn add(&mut self, disk: u128) {
        self.apply(Command::AddNode { node: node(disk), name: format!("n{disk}") });
        let (disk, node, bytes) = (DiskId(disk), node(disk), 1 << 40);
        self.apply(Command::AddDisk { disk, node, bytes });
        self.open(disk.0);
    }

    fn open(&mut self, disk: u128) {
        let known = self.state.map().disk(DiskId(disk)).expect("added").incarnation;
        let (disk, node, incarnation) = (DiskId(disk), node(disk), Incarnation(known.0 + 1));
        self.apply(Command::OpenDisk { disk, node, incarnation });
    }

    fn apply(&mut self, command: Command) -> Answer {
        let short = command.bounded().expect("short enough");
        let answer = self.state.apply(&short).unwrap_or_else(|why| panic!("{short:?}: {why}"));
        self.state.check();
        answer
    }

    fn plan(&self) -> Vec<Command> {
        plan(&self.state.map(), &self.sight, &self.pace, node(1))
    }

    fn goes_away(&mut self, disk: u128) {
        self.sight.away.insert(DiskId(disk), self.sight.now);
    }

    fn wait(&mut self, span: Duration) {
        self.sight.now = self.sight.now + span;
    }

    /// Proposes what is planned. The attempts that were begun.
    fn propose(&mut self) -> Vec<u64> {
        let answers: Vec<Answer> =
            self.plan().into_iter().map(|command| self.apply(command)).collect();
        let attempt = |answer| match answer {
            Answer::AttemptBegun { attempt } => Some(attempt),
            _ => None,
        };
        answers.into_iter().filter_map(attempt).collect()
    }

    fn activate(&mut self, attempt: u64) {
        let map = self.state.map();
        let disks = map.attempt(attempt).expect("under way").disks().into_iter();
        let opening =
            |disk| Member { disk, incarnation: map.disk(disk).expect("wanted").incarnation };
        self.apply(Command::Activate { attempt, openings: disks.map(opening).collect() });
    }

    /// Does what is planned until nothing is. In how many rounds.
    fn settle(&mut self) -> usize {
        for round in 0..500 {
            let attempts = self.propose();
            if attempts.is_empty() {
                return round;
            }
            attempts.into_iter().for_each(|attempt| self.activate(attempt));
        }
        panic!("no end: {:?}", self.plan());
    }

    fn members(&self, partition: u32) -> BTreeSet<u128> {
        let map = self.state.map();
        let held = map.configuration(3, PartitionId(partition));
        held.current.iter().map(|member| member.disk.0).collect()
    }

    fn all(&self) -> Vec<BTreeSet<u128>> {
        (0..1 << self.state.map().partition_bits()).map(|at| self.members(at)).collect()
    }
}

fn set<const N: usize>(disks: [u128; N]) -> BTreeSet<u128> {
    disks.into()
}

/// Of each attempt in these commands the partitions, and the members wanted for the first.
fn begun(commands: &[Command]) -> Vec<(usize, Vec<u128>)> {
    let attempt = |command: &Command| match command {
        Command::BeginAttempt { changes, .. } => {
            let count = changes.iter().map(|change| change.partitions.len()).sum();
            Some((count, changes[0].wanted.iter().map(|disk| disk.0).collect()))
        }
        _ => None,
    };
    commands.iter().filter_map(attempt).collect()
}

#[test]
fn a_cluster_grows_by_itself_a_few_partitions_at_a_time() {
    let mut world = World::new(8, 1);
    assert_eq!(world.plan(), [], "one disk alone is activated whenever it is opened");
    world.add(2);
    let first = begun(&world.plan());
    assert_eq!(first.len(), STEWARD_COPYING_MAX);
    assert!(first.iter().all(|(count, _)| *count == STEWARD_COPYING_PARTITIONS_MAX));
    // While those are under way nothing else is begun.
    let attempts = world.propose();
    assert_eq!(world.plan(), []);
    world.activate(attempts[0]);
    assert_eq!(begun(&world.plan()).len(), 1);
    attempts[1..].iter().for_each(|&attempt| world.activate(attempt));
    world.settle();
    assert!(world.all().iter().all(|members| *members == set([1, 2])));
    world.add(3);
    world.add(4);
    world.settle();
    let all = world.all();
    assert!(all.iter().all(|members| members.len() == 3));
    for disk in 1..5 {
        assert_eq!(all.iter().filter(|members| members.contains(&disk)).count(), 192);
    }
}

/// Guests wait where members may refuse: there each moment counts.
#[test]
fn who_is_away_is_not_hoped_for_where_members_may_refuse() {
    let mut world = World::new(0, 3);
    world.settle();
    let present = world.state.map().configuration(3, PartitionId(0)).number;
    let wanted = [1, 2, 3].map(DiskId).to_vec();
    let changes = vec![Change { wanted, partitions: vec![(PartitionId(0), present)] }];
    let begin = Command::BeginAttempt { copies: 3, bits: 0, owner: node(1), changes };
    let Answer::AttemptBegun { attempt } = world.apply(begin) else { panic!("not begun") };
    world.goes_away(3);
    world.apply(Command::GiveUpAttempt { attempt, may_be_refused: true });
    let attempts = world.propose();
    assert_eq!(attempts.len(), 1, "it is left out at once");
    world.activate(attempts[0]);
    assert_eq!(world.members(0), [1, 2].into());
}

#[test]
fn who_is_away_is_left_out_after_a_moment_and_replaced_after_the_grace_time() {
    let mut world = World::new(8, 4);
    world.settle();
    let before = world.all();
    world.goes_away(4);
    world.wait(seconds(4));
    assert_eq!(world.plan(), [], "it may come back in a moment");
    world.wait(seconds(1));
    assert_eq!(begun(&world.plan()).iter().map(|(count, _)| count).sum::<usize>(), 192);
    world.settle();
    let left = |members: &BTreeSet<u128>| members.iter().copied().filter(|&it| it != 4).collect();
    assert_eq!(world.all(), before.iter().map(left).collect::<Vec<BTreeSet<u128>>>());
    // Nothing is built anew yet; and when it is back in time, it gets what it had.
    world.wait(seconds(300));
    assert_eq!(world.plan(), []);
    world.sight.away.clear();
    world.open(4);
    world.settle();
    assert_eq!(world.all(), before);
    // Opened anew so fast that nobody missed it, it is listed anew, all at once.
    world.open(4);
    assert_eq!(begun(&world.plan()).iter().map(|(count, _)| count).sum::<usize>(), 192);
    world.settle();
    assert!(
        world.state.map().configurations().all(|held| {
            held.current.iter().all(|&member| world.state.map().is_present(member))
        })
    );
    // And if it does not come back, the others take its place.
    world.goes_away(4);
    world.wait(seconds(599));
    world.settle();
    assert!(!world.all().contains(&set([1, 2, 3])) || world.plan().is_empty());
    world.wait(seconds(1));
    world.settle();
    assert!(world.all().iter().all(|members| *members == set([1, 2, 3])));
}

#[test]
fn nothing_is_begun_that_cannot_come_to_an_end() {
    let mut world = World::new(4, 3);
    world.settle();
    // Of three, one is left: what the two others had acknowledged it may not have.
    world.goes_away(2);
    world.goes_away(3);
    world.wait(seconds(3600));
    assert_eq!(world.plan(), []);
    // With two there are enough; but no fewer than volumes ask for.
    world.sight.away.remove(&DiskId(2));
    world.settle();
    assert!(world.all().iter().all(|members| *members == set([1, 2])));
    world.goes_away(2);
    world.wait(seconds(3600));
    assert_eq!(world.plan(), []);
    let volume = world.state.map().volume_named("v").expect("created").id;
    world.apply(Command::SetCopies { volume, copies: 3, min_copies: Some(1) });
    world.settle();
    assert!(world.all().iter().all(|members| *members == set([1])));
}

/// Else a guest would wait as long as for a machine of which nobody knows whether it comes back.
/// One that leads and had no connection to a node left out what sessions there wrote to.
#[test]
fn who_is_seen_by_others_is_not_left_out_and_nothing_is_begun_that_needs_it() {
    let mut world = World::new(3, 3);
    world.settle();
    let attempts = |world: &World| world.state.map().attempts().count();
    world.sight.unseen.insert(DiskId(2), world.sight.now);
    world.wait(seconds(3600));
    assert_eq!(world.plan(), []);
    // Nor is another one that is gone, from here: who writes may see those that this one does not.
    world.goes_away(3);
    world.wait(seconds(60));
    assert_eq!(world.plan(), []);
    world.sight.unseen.clear();
    let attempt = world.propose()[0];
    // What this node carries out and cannot end it gives up; what another one does is its own.
    world.sight.unseen.insert(DiskId(2), world.sight.now);
    assert_eq!(world.plan(), [], "it may come back in a moment");
    world.wait(seconds(5));
    let given_up = Command::GiveUpAttempt { attempt, may_be_refused: true };
    assert_eq!(world.plan(), [given_up]);
    let (map, pace) = (world.state.map(), &world.pace);
    assert_eq!(plan(&map, &world.sight, pace, node(2)), []);
    world.propose();
    assert_eq!(attempts(&world), 0);
    world.sight.unseen.clear();
    world.settle();
    assert!(world.all().iter().all(|members| *members == set([1, 2])));
    // It is no newcomer either.
    world.sight.away.clear();
    world.sight.unseen.insert(DiskId(3), world.sight.now);
    assert_eq!(world.plan(), []);
}

#[test]
fn where_one_that_answers_cannot_help_nobody_waits_for_one_that_does_not() {
    let mut world = World::new(2, 3);
    world.settle();
    world.goes_away(3);
    assert_eq!(world.propose(), [], "two of three are enough");
    world.sight.behind.insert((3, PartitionId(1), DiskId(2)));
    let begun = world.propose();
    assert_eq!(begun.len(), 1);
    let map = world.state.map();
    let wanted = &map.attempt(begun[0]).expect("just begun").wanted;
    let expected = BTreeSet::from([DiskId(1), DiskId(2)]);
    assert_eq!(wanted.keys().collect::<Vec<_>>(), [&PartitionId(1)]);
    assert_eq!(wanted[&PartitionId(1)].iter().copied().collect::<BTreeSet<_>>(), expected);
}

#[test]
fn who_is_behind_is_left_out_and_gets_what_it_missed_as_a_newcomer() {
    let mut world = World::new(2, 3);
    world.settle();
    world.sight.behind.insert((3, PartitionId(1), DiskId(2)));
    assert_eq!(begun(&world.plan()), [(1, vec![1, 3])]);
    let attempt = world.propose()[0];
    world.activate(attempt);
    let again = begun(&world.plan());
    assert_eq!(again.len(), 1);
    assert_eq!((again[0].0, again[0].1.iter().copied().collect()), (1, set([1, 2, 3])));
    // Where too few would be left it is made whole as it is.
    let mut world = World::new(2, 2);
    world.settle();
    world.sight.behind.insert((3, PartitionId(1), DiskId(2)));
    assert_eq!(begun(&world.plan()), [(1, vec![1, 2])]);
}

#[test]
fn what_is_stuck_comes_first_and_what_is_halted_is_given_up() {
    let mut world = World::new(4, 4);
    world.pace.urgent_max = 1;
    world.settle();
    let attempts: Vec<u64> = world.propose();
    assert!(attempts.is_empty());
    // One partition may be refused, since an attempt at it came to nothing.
    let map = world.state.map();
    let partition = PartitionId(9);
    let held = map.configuration(3, partition);
    let wanted: Vec<DiskId> = held.current.iter().map(|member| member.disk).collect();
    let changes = vec![Change { wanted, partitions: vec![(partition, held.number)] }];
    let begin = Command::BeginAttempt { copies: 3, bits: 4, owner: node(2), changes };
    let Answer::AttemptBegun { attempt } = world.apply(begin) else { panic!("it is begun") };
    world.open(1);
    // Its owner is away: after a moment it is given up, and tried again before all else.
    world.sight.away_nodes.insert(node(2), world.sight.now);
    let give_up = Command::GiveUpAttempt { attempt, may_be_refused: true };
    assert!(!world.plan().contains(&give_up));
    world.wait(seconds(5));
    assert_eq!(world.plan()[0], give_up);
    world.apply(give_up);
    let first = begun(&world.plan());
    assert_eq!(first.len(), 1, "no more at once");
    assert_eq!(first[0].0, 1, "that one");
    let attempt = world.propose()[0];
    assert!(world.state.map().attempt(attempt).expect("begun").wanted.contains_key(&partition));
    // A disk that it wants is gone for longer than a moment.
    let disk = *world.state.map().attempt(attempt).expect("begun").disks().first().expect("three");
    world.goes_away(disk.0);
    world.wait(seconds(5));
    assert_eq!(world.plan()[0], Command::GiveUpAttempt { attempt, may_be_refused: true });
}

#[test]
fn where_an_attempt_came_to_nothing_none_is_begun_for_a_while() {
    let mut world = World::new(2, 3);
    world.settle();
    world.open(2);
    world.sight.paused.insert((3, PartitionId(1)));
    let attempts = world.propose();
    attempts.into_iter().for_each(|attempt| world.activate(attempt));
    assert_eq!(world.plan(), [], "all the others");
    world.sight.paused.clear();
    assert_eq!(begun(&world.plan()).iter().map(|(count, _)| count).sum::<usize>(), 1);
}

/// The second disk was removed while it got its first copies: the members of those partitions may
/// refuse them, and only another attempt lets them be written again.
#[test]
fn one_disk_alone_is_looked_after_while_it_may_refuse() {
    let mut world = World::new(2, 1);
    world.add(2);
    assert!(!world.propose().is_empty());
    world.apply(Command::RemoveDisk { disk: DiskId(2) });
    assert_eq!(world.state.map().disks().len(), 1);
    assert!(world.state.map().configurations().any(|held| held.may_be_refused));
    assert_eq!(begun(&world.plan()), [(4, vec![1])]);
    world.settle();
    assert!(world.state.map().configurations().all(|held| !held.may_be_refused));
    assert!(!crate::steward::is_wanted(&world.state.map()));
    // The same with an attempt whose owner went away before the disk was.
    world.add(2);
    let map = world.state.map();
    let change = |at| (PartitionId(at), map.configuration(3, PartitionId(at)).number);
    let changes =
        vec![Change { wanted: vec![DiskId(1)], partitions: (0..4).map(change).collect() }];
    let begin = Command::BeginAttempt { copies: 3, bits: 2, owner: node(2), changes };
    let Answer::AttemptBegun { attempt } = world.apply(begin) else { panic!("it is begun") };
    world.apply(Command::RemoveDisk { disk: DiskId(2) });
    world.sight.away_nodes.insert(node(2), world.sight.now);
    world.wait(seconds(5));
    assert_eq!(world.plan()[0], Command::GiveUpAttempt { attempt, may_be_refused: true });
    assert!(world.propose().is_empty(), "the next look begins another");
    world.settle();
    assert!(world.state.map().configurations().all(|held| !held.may_be_refused));
    assert!(world.state.map().attempts().len() == 0);
    world.open(1);
}

#[test]
fn whatever_happens_what_is_planned_is_accepted_and_leads_to_where_it_should() {
    for seed in 0..40 {
        let mut dice = Dice(seed);
        let mut world = World::new(5, 2);
        world.pace.copying_max = 8;
        for _ in 0..120 {
            let disks: Vec<u128> = world.state.map().disks().map(|disk| disk.id.0).collect();
            let disk = disks[dice.below(disks.len() as u64) as usize];
            match dice.below(16) {
                0 if disks.len() < 9 => {
                    let new = (1..20).find(|disk| !disks.contains(disk)).expect("few");
                    world.add(new);
                }
                1 | 2 => world.goes_away(disk),
                3..6 => drop(world.sight.away.remove(&DiskId(disk))),
                6 => {
                    // What was removed is not opened again.
                    let map = world.state.map();
                    let known = map.disk(DiskId(disk)).expect("listed").incarnation;
                    let incarnation = Incarnation(known.0 + 1);
                    let (disk, node) = (DiskId(disk), node(disk));
                    let _ = world.state.apply(&Command::OpenDisk { disk, node, incarnation });
                }
                7 => {
                    let wanted = dice.below(3) == 0;
                    let _ = world.state.apply(&Command::DrainDisk { disk: DiskId(disk), wanted });
                }
                8 if disks.len() > 4 => {
                    let _ = world.state.apply(&Command::RemoveDisk { disk: DiskId(disk) });
                }
                9 => {
                    let partition = PartitionId(dice.below(32) as u32);
                    world.sight.behind.insert((3, partition, DiskId(disk)));
                }
                10 => world.wait(seconds(dice.below(900))),
                11 => drop(world.sight.away_nodes.insert(node(disk), world.sight.now)),
                12 => world.sight.away_nodes.clear(),
                _ => {}
            }
            let going: Vec<u64> = world.propose();
            for attempt in going.into_iter().filter(|_| dice.below(3) > 0) {
                // An attempt of before may be over by now.
                if world.state.map().attempt(attempt).is_some() {
                    world.activate(attempt);
                }
            }
            if dice.below(4) == 0 {
                let one = world.state.map().attempts().next().map(|attempt| attempt.number);
                if let Some(attempt) = one {
                    let may_be_refused = dice.below(2) == 0;
                    world.apply(Command::GiveUpAttempt { attempt, may_be_refused });
                }
            }
        }
        // All come back, and nothing happens any more.
        let sight = Sight { now: world.sight.now, ..Sight::default() };
        world.sight = sight;
        // Draining disks get nothing new, also where there are no others.
        let disks: Vec<DiskId> = world.state.map().disks().map(|disk| disk.id).collect();
        for disk in disks {
            let _ = world.state.apply(&Command::DrainDisk { disk, wanted: false });
        }
        let left: Vec<u64> = world.state.map().attempts().map(|attempt| attempt.number).collect();
        left.into_iter().for_each(|attempt| world.activate(attempt));
        world.settle();
        let map = world.state.map();
        for (index, wish) in map.wanted_members(3).into_iter().enumerate() {
            let held = map.configuration(3, PartitionId(index as u32));
            let members: BTreeSet<DiskId> = held.current.iter().map(|it| it.disk).collect();
            assert_eq!(members, wish.into_iter().collect(), "seed {seed}");
            assert!(held.current.iter().all(|&member| map.is_present(member)));
            assert!(!held.may_be_refused && held.attempt == 0);
        }
    }
}

#[test]
fn how_members_are_is_told_whatever_is_done_about_them() {
    let mut world = World::new(2, 1);
    let told = |world: &World| {
        let (map, sight) = (world.state.map(), &world.sight);
        let found = situations(&map, sight, &world.pace, 3);
        assert_eq!(found.values().sum::<u64>(), 4);
        found.into_iter().collect::<Vec<_>>()
    };
    assert_eq!(told(&world), [(Situation::Whole, 4)]);
    // Two, and both are needed.
    world.add(2);
    let attempts = world.propose();
    assert_eq!(told(&world), [(Situation::Changing, 4)]);
    attempts.into_iter().for_each(|attempt| world.activate(attempt));
    world.settle();
    world.goes_away(2);
    assert_eq!(told(&world), [(Situation::Hesitant, 4)]);
    world.wait(seconds(5));
    assert_eq!(told(&world), [(Situation::Short, 4)]);
    world.sight.away.clear();
    // Three: one can be left out, and nobody knows anything with one of them alone.
    world.add(3);
    world.settle();
    assert_eq!(told(&world), [(Situation::Whole, 4)]);
    world.goes_away(3);
    world.wait(seconds(5));
    world.sight.paused.insert((3, PartitionId(1)));
    assert_eq!(told(&world), [(Situation::Paused, 1), (Situation::Weak, 3)]);
    world.sight.paused.clear();
    world.goes_away(2);
    assert_eq!(told(&world), [(Situation::Unsettled, 4)]);
    world.sight.away.clear();
    // Two were opened anew: what they have counts only when that is agreed.
    world.open(2);
    world.open(3);
    assert_eq!(told(&world), [(Situation::Stuck, 4)]);
    world.settle();
    assert_eq!(told(&world), [(Situation::Whole, 4)]);
}
