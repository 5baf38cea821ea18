//! The coordinator against disks played by hand, one to five of them.

use crate::{Answer, Coordinator, Effect, Error, Event, Request, Source, View};
use cluster::{Command, Configuration, Map, Member, State};
use proto::limits::{
    OPENING_WAIT_MS, RECOVERY_JUMP, SESSION_BEHIND_BYTES_MAX, SESSION_UNSETTLED_MAX,
};
use proto::{
    BLOCK_SIZE, BlockRange, Change, ClusterId, ConfigurationNumber, DiskId, Duration, Generation,
    Incarnation, LayerId, MemberError, MemberReply, MemberRequest, MemberToken, NodeId, ObjectKey,
    ObjectStamp, PartitionId, Payload, Stamp, Time, VolumeId,
};
use std::sync::Arc;

mod layers;
mod members;
mod readers;

const GENERATION: Generation = Generation(7);
const HEAD: View = View::Head { read_only: false };

/// A coordinator, the questions it asked that were not answered yet, and what it said.
struct Stage {
    coordinator: Coordinator,
    base: Arc<Map>,
    incarnations: Vec<u64>,
    asked: Vec<(usize, MemberToken, MemberRequest)>,
    done: Vec<(u64, Result<Answer, Error>)>,
    opened: bool,
    fenced: bool,
    lost: bool,
    now: Time,
}

fn base() -> (Arc<Map>, VolumeId) {
    let mut state = State::default();
    let node = NodeId(1);
    let mut apply = |command| state.apply(&command).expect("a good command");
    apply(Command::CreateCluster { cluster: ClusterId(1), partition_bits: 2, unix_s: 0 });
    apply(Command::AddNode { node, name: "alpha".into() });
    apply(Command::OpenDisk { disk: DiskId(100), node, incarnation: Incarnation(1) });
    apply(Command::CreateVolume { name: "vm".into(), bytes: 64 << 20, unix_s: 0 });
    let map = state.map();
    let volume = map.volume_named("vm").expect("just created").id;
    (map, volume)
}

impl Stage {
    fn begin(members: usize) -> Stage {
        let (base, volume) = base();
        Stage::begin_with(members, base, volume, HEAD)
    }

    fn begin_with(members: usize, base: Arc<Map>, volume: VolumeId, view: View) -> Stage {
        let incarnations = vec![1; members];
        let map = with(&base, &incarnations);
        let mut effects = Vec::new();
        let now = Time(1);
        let coordinator = Coordinator::open(now, volume, GENERATION, view, map, &mut effects);
        let mut stage = Stage {
            coordinator,
            base,
            incarnations,
            asked: Vec::new(),
            done: Vec::new(),
            opened: false,
            fenced: false,
            lost: false,
            now,
        };
        stage.take(effects);
        stage
    }

    /// Open, with nothing to settle, everything flushed once, and the stamp of object 0 known.
    fn open(members: usize) -> Stage {
        let mut stage = Stage::begin(members);
        stage.answer_usually();
        assert!(stage.opened);
        for token in [999, 998, 997] {
            match token {
                998 => stage.write(token),
                _ => stage.flush(token),
            }
            stage.answer_usually();
        }
        assert_eq!(stage.ended(), [999, 998, 997]);
        stage.done.clear();
        stage
    }

    /// Answers everything until nothing is asked any more: nobody has or refuses anything.
    fn answer_usually(&mut self) {
        for _ in 0..20 {
            if self.asked.is_empty() {
                return;
            }
            self.answer_all(|request| Ok(usual(request)));
        }
        panic!("questions without end");
    }

    fn take(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Member { member, token, request } => {
                    self.asked.push((member.disk.0 as usize, token, request));
                }
                Effect::Opened => self.opened = true,
                Effect::Done { token, result } => self.done.push((token, result)),
                Effect::Lost => self.lost = true,
                Effect::Fenced => self.fenced = true,
            }
        }
        self.coordinator.check();
    }

    fn tell(&mut self, event: Event) {
        let mut effects = Vec::new();
        self.coordinator.handle(self.now, event, &mut effects);
        self.take(effects);
    }

    fn request(&mut self, token: u64, request: Request) {
        self.tell(Event::Request { token, request });
    }

    fn write(&mut self, token: u64) {
        self.write_to(token, 0);
    }

    fn write_to(&mut self, token: u64, index: u32) {
        let payload = Payload::zeroed(BLOCK_SIZE);
        let change = Change::Data { first: 0, payload, detect_zeroes: true };
        self.request(token, Request::Change { index, change });
    }

    fn read(&mut self, token: u64) {
        let blocks = BlockRange::new(0, 1).expect("a block");
        self.request(token, Request::Read { source: Source::Own, index: 0, blocks });
    }

    fn flush(&mut self, token: u64) {
        self.request(token, Request::Flush { reported: true });
    }

    /// Answers the oldest question of this disk.
    fn answer(&mut self, disk: usize, result: Result<MemberReply, MemberError>) -> MemberRequest {
        let place = self.asked.iter().position(|(asked, ..)| *asked == disk);
        let (_, token, request) = self.asked.remove(place.expect("the disk was asked something"));
        self.tell(Event::Member { disk: DiskId(disk as u128), token, result });
        request
    }

    fn answer_all(
        &mut self,
        mut result: impl FnMut(&MemberRequest) -> Result<MemberReply, MemberError>,
    ) {
        for (disk, token, request) in std::mem::take(&mut self.asked) {
            let result = result(&request);
            self.tell(Event::Member { disk: DiskId(disk as u128), token, result });
        }
    }

    /// The disk was opened anew and the map shows it.
    fn reopen(&mut self, disk: usize) {
        self.asked.retain(|(asked, ..)| *asked != disk);
        self.incarnations[disk] += 1;
        let map = with(&self.base, &self.incarnations);
        self.tell(Event::Map(map));
    }

    fn tick(&mut self) {
        self.now = self.coordinator.deadline().expect("something is put off");
        self.tell(Event::Tick);
    }

    /// The requests that have ended, in order.
    fn ended(&self) -> Vec<u64> {
        self.done.iter().map(|(token, _)| *token).collect()
    }

    /// What a disk is being asked, in short.
    fn questions(&self, disk: usize) -> Vec<String> {
        let of_disk = self.asked.iter().filter(|(asked, ..)| *asked == disk);
        of_disk
            .map(|(_, _, request)| match request {
                MemberRequest::Fence { .. } => "fence".to_string(),
                MemberRequest::OpenLayer { layer, parent, .. } => format!("open {parent}>{layer}"),
                MemberRequest::Settle { stamp, .. } => format!("settle {}", stamp.sequence),
                MemberRequest::Stamp { .. } => "stamp".to_string(),
                MemberRequest::Write(write) => {
                    format!("write {}>{}", write.previous.sequence, write.stamp.sequence)
                }
                MemberRequest::Read { .. } => "read".to_string(),
                MemberRequest::Map { .. } => "map".to_string(),
                MemberRequest::Difference { .. } => "difference".to_string(),
                MemberRequest::Reclaimable { .. } => "reclaimable".to_string(),
                MemberRequest::Flush { .. } => "flush".to_string(),
                MemberRequest::Mark { .. } => "mark".to_string(),
                MemberRequest::Confirm { .. } => "confirm".to_string(),
                MemberRequest::Checksums { .. } => "checksums".to_string(),
                other => format!("{other:?}"),
            })
            .collect()
    }
}

fn with(base: &Map, incarnations: &[u64]) -> Arc<Map> {
    let member = |(disk, incarnation): (usize, &u64)| Member {
        disk: DiskId(disk as u128),
        incarnation: Incarnation(*incarnation),
    };
    let members = incarnations.iter().enumerate().map(member).collect();
    let number = ConfigurationNumber(incarnations.iter().sum());
    Arc::new(base.with_members(number, members))
}

fn key() -> ObjectKey {
    ObjectKey { layer: LayerId(1), index: 0 }
}

fn at(generation: u64, sequence: u64) -> ObjectStamp {
    let stamp = Stamp { generation: Generation(generation), sequence };
    ObjectStamp { key: key(), stamp, settled_generation: Generation(0) }
}

fn fenced(incarnation: u64, unsettled: &[ObjectStamp]) -> MemberReply {
    let unsettled = unsettled.to_vec();
    let (settled, more) = (Stamp::default(), false);
    MemberReply::Fenced { incarnation: Incarnation(incarnation), settled, unsettled, more }
}

fn written(incarnation: u64) -> MemberReply {
    MemberReply::Written { incarnation: Incarnation(incarnation) }
}

fn flushed(incarnation: u64) -> MemberReply {
    MemberReply::Flushed { incarnation: Incarnation(incarnation) }
}

fn confirmed() -> MemberReply {
    let (incarnation, refused) = (Incarnation(1), Vec::new());
    MemberReply::Confirmed { incarnation, refusals: 0, refused, more: false }
}

/// What a disk answers that never had anything.
fn usual(request: &MemberRequest) -> MemberReply {
    match request {
        MemberRequest::Fence { .. } => fenced(1, &[]),
        MemberRequest::Stamp { .. } => MemberReply::Stamp(at(0, 0)),
        MemberRequest::Write(_) => written(1),
        MemberRequest::Flush { .. } => flushed(1),
        MemberRequest::Read { .. } => data(),
        MemberRequest::Confirm { .. } => confirmed(),
        _ => MemberReply::Done,
    }
}

fn data() -> MemberReply {
    content(vec![Payload::zeroed(BLOCK_SIZE)])
}

fn content(content: Vec<Payload>) -> MemberReply {
    MemberReply::Data { content, absent: Vec::new() }
}

#[test]
fn a_write_is_acknowledged_when_a_quorum_has_it() {
    for (members, quorum) in [(1, 1), (2, 2), (3, 2), (5, 3)] {
        let mut stage = Stage::open(members);
        stage.write(1);
        for disk in 0..members {
            assert_eq!(stage.ended().len(), usize::from(disk >= quorum), "{disk} of {members}");
            assert_eq!(stage.questions(disk), ["write 1>2"], "{disk} of {members}");
            stage.answer(disk, Ok(written(1)));
        }
        assert_eq!(stage.ended(), [1], "of {members}");
    }
}

#[test]
fn an_attachment_opens_when_a_quorum_is_fenced_and_the_others_had_a_moment() {
    for (members, quorum) in [(1, 1), (2, 2), (3, 2), (5, 3)] {
        let mut stage = Stage::begin(members);
        for disk in 0..quorum {
            assert!(!stage.opened && stage.coordinator.obstacle().is_some(), "{disk}");
            stage.answer(disk, Ok(fenced(1, &[])));
        }
        if quorum < members {
            assert!(stage.questions(0).is_empty(), "the others have a moment");
            stage.tick();
            assert_eq!(stage.now, Time(1) + Duration::from_millis(OPENING_WAIT_MS));
        }
        for _ in 0..10 {
            let late: Vec<_> = stage.asked.extract_if(.., |(disk, ..)| *disk >= quorum).collect();
            stage.answer_all(|request| Ok(usual(request)));
            stage.asked.extend(late);
        }
        assert!(stage.opened, "of {members}");
        let behind: Vec<DiskId> = stage.coordinator.behind().iter().map(|it| it.0).collect();
        let late: Vec<DiskId> = (quorum..members).map(|disk| DiskId(disk as u128)).collect();
        assert_eq!(behind, late);
        // Whoever comes later is not written to.
        (quorum..members).for_each(|disk| drop(stage.answer(disk, Ok(fenced(1, &[])))));
        stage.write(1);
        let is_asked = |disk: &usize| !stage.questions(*disk).is_empty();
        assert_eq!((0..members).filter(is_asked).count(), quorum);
    }
}

#[test]
fn what_one_disk_lists_the_others_are_asked_about_before_it_is_settled_and_flushed() {
    let mut stage = Stage::begin(3);
    stage.answer(0, Ok(fenced(1, &[at(6, 5)])));
    stage.answer(1, Ok(fenced(1, &[])));
    stage.answer(2, Ok(fenced(1, &[])));
    for disk in 0..3 {
        stage.answer(disk, Ok(confirmed()));
    }
    for disk in 1..3 {
        assert_eq!(stage.questions(disk), ["stamp"]);
        stage.answer(disk, Ok(MemberReply::Stamp(at(6, 5))));
    }
    for question in ["settle 5", "mark"] {
        for disk in 0..3 {
            assert_eq!(stage.questions(disk)[0], question);
            stage.answer(disk, Ok(MemberReply::Done));
        }
    }
    for disk in 0..3 {
        assert!(!stage.opened, "it is not stable yet");
        assert_eq!(stage.questions(disk), ["flush"]);
        stage.answer(disk, Ok(flushed(1)));
    }
    assert!(stage.opened && stage.coordinator.behind().is_empty());
}

#[test]
fn disks_that_disagree_are_not_served_before_they_are_equal() {
    let mut stage = Stage::begin(2);
    stage.answer(0, Ok(fenced(1, &[at(6, 5)])));
    stage.answer(1, Ok(fenced(1, &[at(6, 4)])));
    (0..2).for_each(|disk| drop(stage.answer(disk, Ok(confirmed()))));
    assert!(!stage.opened);
    // A copier looks at both.
    assert_eq!(
        (stage.questions(0), stage.questions(1)),
        (vec!["stamp".into()], vec!["stamp".into()])
    );
    let obstacle = stage.coordinator.obstacle().expect("it waits");
    assert!(obstacle.contains("to get what others have"), "{obstacle}");
}

#[test]
fn a_flush_counts_only_disks_that_held_everything_when_they_flushed() {
    let mut stage = Stage::open(3);
    stage.write(1);
    stage.answer(0, Ok(written(1)));
    stage.answer(1, Ok(written(1)));
    assert_eq!(stage.ended(), [1]);
    stage.flush(2);
    // Disk 2 does not have the write yet: its flush would mean nothing.
    assert_eq!(stage.questions(2), ["write 1>2"]);
    stage.answer(0, Ok(flushed(1)));
    assert_eq!(stage.ended(), [1]);
    stage.answer(1, Ok(flushed(1)));
    assert_eq!(stage.ended(), [1, 2]);
}

#[test]
fn a_late_disk_counts_for_a_flush_once_it_has_everything_stable() {
    let mut stage = Stage::open(3);
    stage.write(1);
    stage.answer(0, Ok(written(1)));
    stage.answer(1, Ok(written(1)));
    stage.flush(2);
    stage.answer(0, Ok(flushed(1)));
    stage.answer(2, Ok(written(1)));
    assert_eq!(stage.questions(2), ["flush"]);
    assert_eq!(stage.ended(), [1]);
    stage.answer(2, Ok(flushed(1)));
    assert_eq!(stage.ended(), [1, 2]);
}

#[test]
fn a_flush_with_nothing_to_do_ends_at_once_and_a_new_session_has_everything_to_do() {
    let mut stage = Stage::open(1);
    stage.flush(1);
    assert_eq!(stage.ended(), [1]);
    let mut stage = Stage::begin(1);
    stage.answer(0, Ok(fenced(1, &[])));
    stage.flush(1);
    assert!(stage.ended().is_empty());
    assert_eq!(stage.questions(0), ["flush"]);
}

#[test]
fn a_flush_does_not_cover_writes_acknowledged_after_it_was_sent() {
    let mut stage = Stage::open(1);
    stage.write(1);
    stage.write(2);
    stage.answer(0, Ok(written(1)));
    stage.flush(3);
    stage.answer(0, Ok(written(1)));
    stage.flush(4);
    assert_eq!(stage.questions(0), ["flush"]);
    stage.answer(0, Ok(flushed(1)));
    assert_eq!(stage.ended(), [1, 2, 3]);
    stage.answer(0, Ok(flushed(1)));
    assert_eq!(stage.ended(), [1, 2, 3, 4]);
}

#[test]
fn a_flush_of_another_incarnation_does_not_count() {
    let mut stage = Stage::open(1);
    stage.write(1);
    stage.answer(0, Ok(written(1)));
    stage.flush(2);
    stage.answer(0, Ok(flushed(2)));
    assert_eq!(stage.ended(), [1]);
    stage.reopen(0);
    stage.answer(0, Ok(fenced(2, &[])));
    stage.answer(0, Ok(MemberReply::Stamp(at(7, 2))));
    stage.answer(0, Ok(flushed(2)));
    assert_eq!(stage.ended(), [1, 2]);
    assert!(stage.done.iter().all(|(_, result)| result.is_ok()) && !stage.lost);
}

#[test]
fn a_loss_is_reported_by_the_flush_that_waits_and_by_the_next() {
    let mut stage = Stage::open(1);
    stage.write(1);
    stage.answer(0, Ok(written(1)));
    stage.flush(2);
    stage.reopen(0);
    stage.answer(0, Ok(fenced(2, &[])));
    stage.answer(0, Ok(MemberReply::Stamp(at(7, 1))));
    assert!(stage.lost);
    stage.answer(0, Ok(flushed(2)));
    stage.flush(3);
    stage.flush(4);
    let failed: Vec<bool> = stage.done.iter().map(|(_, result)| result.is_err()).collect();
    assert_eq!((stage.ended(), failed), (vec![1, 2, 3, 4], vec![false, true, true, false]));
    // The chain goes on from what is there.
    stage.write(5);
    assert_eq!(stage.questions(0), ["write 1>3"]);
}

#[test]
fn a_disk_that_lost_what_it_had_flushed_is_not_used() {
    let mut stage = Stage::open(1);
    stage.write(1);
    stage.reopen(0);
    stage.answer(0, Ok(fenced(2, &[])));
    assert_eq!(stage.questions(0), ["stamp"]);
    stage.answer(0, Ok(MemberReply::Stamp(at(0, 0))));
    let obstacle = stage.coordinator.obstacle().expect("it waits");
    assert!(obstacle.contains("reported as stable"), "{obstacle}");
    assert!(stage.coordinator.is_stalled() && stage.ended().is_empty());
}

#[test]
fn a_full_disk_fails_one_write_and_those_behind_it_go_on() {
    let mut stage = Stage::open(1);
    for token in 1..=3 {
        stage.write(token);
    }
    assert_eq!(stage.questions(0), ["write 1>2", "write 2>3", "write 3>4"]);
    // The answers come in another order than the writes.
    let have = at(7, 1).stamp;
    stage.asked.swap(0, 1);
    stage.answer(0, Err(MemberError::WrongStamp { have }));
    stage.answer(0, Err(MemberError::NoSpace));
    assert_eq!(stage.done.len(), 1);
    assert!(matches!(stage.done[0], (1, Err(Error::NoSpace))));
    assert_eq!(stage.questions(0), ["write 3>4"], "nothing is sent before all is answered");
    stage.answer(0, Err(MemberError::WrongStamp { have }));
    assert_eq!(stage.questions(0), ["stamp"]);
    stage.answer(0, Ok(MemberReply::Stamp(at(7, 1))));
    assert_eq!(stage.questions(0), ["write 1>3", "write 3>4"]);
    stage.answer_all(|_| Ok(written(1)));
    assert_eq!(stage.ended(), [1, 2, 3]);
    stage.write(4);
    assert_eq!(stage.questions(0), ["write 4>5"]);
}

#[test]
fn with_several_copies_a_full_one_catches_up_instead_of_failing_the_write() {
    let mut stage = Stage::open(3);
    stage.write(1);
    stage.answer(0, Err(MemberError::NoSpace));
    stage.answer(1, Ok(written(1)));
    stage.answer(2, Ok(written(1)));
    assert!(matches!(stage.done[..], [(1, Ok(Answer::Done))]));
    stage.tick();
    assert_eq!(stage.questions(0), ["stamp"]);
    stage.answer(0, Ok(MemberReply::Stamp(at(7, 1))));
    assert_eq!(stage.questions(0), ["write 1>2"]);
}

/// It was failed as one that never was when the second disk refused it, though it was on its way
/// to the first again, which then took it: equal stamps with other content, or a failed assertion.
#[test]
fn a_write_that_is_sent_again_to_a_disk_has_not_been_refused_by_all() {
    for takes_it in [true, false] {
        let mut stage = Stage::open(2);
        stage.write(1);
        stage.answer(0, Err(MemberError::NoSpace));
        stage.tick();
        stage.answer(0, Ok(MemberReply::Stamp(at(7, 1))));
        assert_eq!(stage.questions(0), ["write 1>2"]);
        stage.answer(1, Err(MemberError::NoSpace));
        assert!(stage.done.is_empty(), "the first one may be taking it");
        if takes_it {
            stage.answer(0, Ok(written(1)));
            assert!(stage.done.is_empty(), "one is no quorum");
            stage.tick();
            stage.answer(1, Ok(MemberReply::Stamp(at(7, 1))));
            stage.answer(1, Ok(written(1)));
            assert!(matches!(stage.done[..], [(1, Ok(Answer::Done))]));
        } else {
            stage.answer(0, Err(MemberError::NoSpace));
            assert!(matches!(stage.done[..], [(1, Err(Error::NoSpace))]));
        }
        stage.answer_usually();
        assert!(stage.coordinator.chains.is_empty() && stage.coordinator.behind().is_empty());
        stage.write(2);
        let previous = if takes_it { 2 } else { 1 };
        assert_eq!(stage.questions(0), [format!("write {previous}>3")]);
    }
}

/// It waited for a refusal of the one that is behind, which is not asked.
#[test]
fn a_write_that_all_refuse_but_one_that_is_behind_fails_unless_that_one_may_have_it() {
    let mut stage = Stage::open(3);
    stage.write(1);
    // Its answer does not count: whether it has the write is not known.
    stage.answer(2, Ok(written(2)));
    assert_eq!(stage.coordinator.behind().len(), 1);
    for disk in [0, 1] {
        stage.answer(disk, Err(MemberError::NoSpace));
    }
    assert!(stage.done.is_empty(), "the one that is behind may have it");
    stage.tick();
    stage.answer_all(|_| Ok(MemberReply::Stamp(at(7, 1))));
    stage.answer_all(|_| Ok(written(1)));
    assert!(matches!(stage.done[..], [(1, Ok(Answer::Done))]));
    stage.write(2);
    for disk in [0, 1] {
        assert_eq!(stage.ended(), [1]);
        stage.answer(disk, Err(MemberError::NoSpace));
    }
    assert!(matches!(stage.done[..], [_, (2, Err(Error::NoSpace))]));
    stage.write(3);
    stage.answer_usually();
    assert_eq!(stage.ended(), [1, 2, 3]);
}

/// The write fails while the other disk is being asked for its stamp.
#[test]
fn a_write_may_fail_while_a_disk_is_asked_where_it_stands() {
    let mut stage = Stage::open(2);
    stage.write(1);
    stage.answer(0, Err(MemberError::NoSpace));
    stage.tick();
    assert_eq!(stage.questions(0), ["stamp"]);
    stage.answer(1, Err(MemberError::NoSpace));
    assert!(matches!(stage.done[..], [(1, Err(Error::NoSpace))]));
    stage.answer(0, Ok(MemberReply::Stamp(at(7, 1))));
    assert!(stage.coordinator.chains.is_empty());
    stage.write(2);
    assert_eq!(stage.questions(0), ["write 1>3"]);
}

#[test]
fn a_busy_disk_is_asked_again_later_in_order() {
    let mut stage = Stage::open(1);
    stage.write(1);
    stage.write(2);
    stage.answer(0, Err(MemberError::Busy));
    stage.answer(0, Err(MemberError::WrongStamp { have: at(7, 1).stamp }));
    assert!(stage.questions(0).is_empty(), "it wants to be left alone");
    assert!(stage.coordinator.obstacle().expect("it waits").contains("busy"));
    stage.tick();
    stage.answer(0, Ok(MemberReply::Stamp(at(7, 1))));
    assert_eq!(stage.questions(0), ["write 1>2", "write 2>3"]);
}

#[test]
fn writes_wait_for_a_disk_out_of_service_and_are_not_done_twice() {
    let mut stage = Stage::open(1);
    for token in 1..=3 {
        stage.write(token);
    }
    stage.answer(0, Err(MemberError::Retired));
    assert!(stage.coordinator.is_stalled());
    // Now and then it is asked whether it serves again.
    stage.asked.clear();
    stage.tick();
    assert_eq!(stage.questions(0), ["fence"]);
    stage.answer(0, Err(MemberError::Retired));
    assert!(stage.coordinator.obstacle().expect("it waits").contains("out of service"));
    stage.reopen(0);
    stage.answer(0, Ok(fenced(2, &[at(7, 2)])));
    // The first of them had been applied before the disk went away.
    stage.answer(0, Ok(MemberReply::Stamp(at(7, 2))));
    assert_eq!(stage.ended(), [1]);
    assert_eq!(stage.questions(0), ["write 2>3", "write 3>4"]);
    stage.answer_all(|_| Ok(written(2)));
    assert_eq!(stage.ended(), [1, 2, 3]);
}

#[test]
fn a_damaged_copy_is_read_elsewhere_and_the_last_one_is_reported() {
    let mut stage = Stage::open(2);
    let damaged = || Err(MemberError::Corrupt { key: key(), block: 0 });
    stage.read(1);
    assert_eq!(
        (stage.questions(0), stage.questions(1)),
        (vec!["read".into()], vec!["confirm".into()])
    );
    stage.answer(1, Ok(confirmed()));
    stage.answer(0, damaged());
    stage.answer(1, Ok(data()));
    assert!(stage.done.is_empty(), "the damaged one has confirmed nothing");
    stage.answer(0, Ok(confirmed()));
    assert!(matches!(stage.done.pop(), Some((1, Ok(Answer::Data { .. })))));
    stage.read(2);
    stage.answer(1, Ok(confirmed()));
    stage.answer(0, damaged());
    stage.answer(1, damaged());
    assert!(matches!(stage.done[..], [(2, Err(Error::Corrupt { block: 0, .. }))]));
}

/// Another one has not answered that write yet, so that it is kept, but was not sent again to who
/// had acknowledged it; and the next one went over what was missing.
#[test]
fn a_disk_that_lost_what_it_acknowledged_gets_no_write_over_that() {
    let mut stage = Stage::open(3);
    stage.write(1);
    stage.answer(0, Ok(written(1)));
    stage.answer(1, Ok(written(1)));
    assert_eq!(stage.ended(), [1]);
    stage.write(2);
    assert_eq!(stage.questions(1), ["write 2>3"]);
    // It was opened anew after a loss of power.
    stage.answer(1, Err(MemberError::WrongStamp { have: at(7, 1).stamp }));
    assert_eq!(stage.questions(1), ["stamp"]);
    stage.answer(1, Ok(MemberReply::Stamp(at(7, 1))));
    assert!(stage.questions(1).is_empty(), "{:?}", stage.questions(1));
    assert!(stage.coordinator.behind_in().all(|(_, _, disk)| disk == DiskId(1)));
    assert!(stage.coordinator.behind_in().count() > 0);
    // The others go on.
    stage.answer(0, Ok(written(1)));
    stage.answer(2, Ok(written(1)));
    stage.answer(2, Ok(written(1)));
    assert_eq!(stage.ended(), [1, 2]);
}

#[test]
fn a_disk_that_misses_an_acknowledged_write_is_not_read() {
    let mut stage = Stage::open(3);
    stage.write(1);
    stage.answer(1, Ok(written(1)));
    stage.answer(2, Ok(written(1)));
    stage.read(2);
    assert_eq!(stage.questions(0), ["write 1>2", "confirm"]);
    assert_eq!(stage.questions(1), ["read"]);
}

#[test]
fn a_newer_attachment_ends_everything_once() {
    let mut stage = Stage::open(1);
    stage.write(1);
    stage.read(2);
    stage.flush(3);
    stage.write_to(4, 1);
    let newer = Generation(8);
    stage.answer(0, Err(MemberError::Fenced { newer }));
    assert!(stage.fenced);
    let mut ended = stage.ended();
    ended.sort_unstable();
    // The flush had nothing to wait for.
    assert_eq!(ended, [1, 2, 3, 4]);
    let failed = stage.done.iter().filter(|(_, result)| matches!(result, Err(Error::Fenced)));
    assert_eq!(failed.count(), 3);
    stage.answer_all(|_| Ok(written(1)));
    stage.write(5);
    assert!(matches!(stage.done.last(), Some((5, Err(Error::Fenced)))));
}

#[test]
fn answers_that_make_no_sense_take_the_disk_out_and_nothing_else() {
    type Row = (&'static str, fn() -> MemberReply);
    let nonsense: [Row; 8] = [
        ("short data", || content(Vec::new())),
        ("odd data", || content(vec![Payload::zeroed(4096).slice(0, 100)])),
        ("long data", || content(vec![Payload::zeroed(8192)])),
        ("empty data", || {
            let block = Payload::zeroed(4096);
            content(vec![block.slice(0, 0), block])
        }),
        ("absence elsewhere", || {
            let absent = BlockRange::new(1, 1).into_iter().collect();
            MemberReply::Data { content: vec![Payload::zeroed(4096)], absent }
        }),
        ("absence twice", || {
            let absent = vec![BlockRange::new(0, 1).expect("a block"); 2];
            MemberReply::Data { content: vec![Payload::zeroed(4096)], absent }
        }),
        ("a map", || MemberReply::Map(vec![(1, proto::BlockState::Data)])),
        ("a stamp", || MemberReply::Stamp(at(9, 9))),
    ];
    for (name, reply) in nonsense {
        let mut stage = Stage::open(1);
        stage.read(1);
        stage.answer(0, Ok(reply()));
        assert!(stage.ended().is_empty(), "{name}");
        assert!(stage.coordinator.is_stalled(), "{name}");
        stage.reopen(0);
        stage.answer(0, Ok(fenced(2, &[])));
        stage.answer(0, Ok(data()));
        assert_eq!(stage.ended(), [1], "{name}");
    }
}

#[test]
fn a_stamp_from_the_future_is_not_believed() {
    let mut stage = Stage::begin(1);
    stage.answer(0, Ok(fenced(1, &[])));
    stage.write(1);
    stage.answer(0, Ok(MemberReply::Stamp(at(8, 1))));
    assert!(stage.coordinator.is_stalled());
    assert!(stage.coordinator.obstacle().expect("it waits").contains("never sent"));
}

#[test]
fn discarding_what_was_never_written_sends_nothing() {
    let mut stage = Stage::open(1);
    let discard = |stage: &mut Stage, token| {
        let change = Change::Absent { blocks: BlockRange::whole() };
        stage.request(token, Request::Change { index: 3, change });
    };
    discard(&mut stage, 1);
    discard(&mut stage, 2);
    stage.answer(0, Ok(MemberReply::Stamp(at(0, 0))));
    assert_eq!(stage.ended(), [1, 2]);
    assert!(stage.asked.is_empty());
    // Behind a write it must be sent.
    stage.write_to(3, 3);
    discard(&mut stage, 4);
    stage.answer(0, Ok(MemberReply::Stamp(at(0, 0))));
    assert_eq!(stage.questions(0).len(), 2);
}

#[test]
fn a_session_that_only_reads_fences_nobody() {
    let (base, volume) = base();
    let mut effects = Vec::new();
    let map = with(&base, &[1]);
    let view = View::Head { read_only: true };
    let mut coordinator = Coordinator::open(Time(1), volume, GENERATION, view, map, &mut effects);
    assert!(matches!(effects[..], [Effect::Opened]), "{effects:?}");
    effects.clear();
    let blocks = BlockRange::new(0, 1).expect("a block");
    let request = Request::Read { source: Source::Own, index: 0, blocks };
    coordinator.handle(Time(1), Event::Request { token: 1, request }, &mut effects);
    assert!(matches!(
        effects[..],
        [Effect::Member { request: MemberRequest::Read { generation: GENERATION, .. }, .. }]
    ));
}

/// It was taken for the choice, with no member that had it to copy it from; or, with a stamp that
/// a member had too, it settled what nobody may settle.
#[test]
fn what_is_left_on_a_disk_that_was_excluded_from_the_partition_is_no_evidence() {
    let mut stage = Stage::begin(3);
    let partition = stage.coordinator.partition_id(0);
    let number = ConfigurationNumber(stage.coordinator.partition_at(0).under.number.0 + 1);
    let member = |disk| Member { disk: DiskId(disk), incarnation: Incarnation(1) };
    let current = vec![member(0), member(1)];
    let new = Configuration { number, current, ..Default::default() };
    let map = with(&stage.base, &stage.incarnations).with_configuration(partition, new);
    stage.asked.clear();
    stage.tell(Event::Map(Arc::new(map)));
    stage.answer(0, Ok(fenced(1, &[at(6, 5)])));
    stage.answer(1, Ok(fenced(1, &[at(6, 5)])));
    stage.answer(2, Ok(fenced(1, &[at(6, 9)])));
    stage.answer_all(|_| Ok(confirmed()));
    for disk in 0..2 {
        assert_eq!(stage.questions(disk), ["settle 5", "mark"]);
    }
    assert_eq!(stage.questions(2), ["mark"]);
    stage.answer_usually();
    assert!(stage.opened);
}

/// Its answer does not say which opening of the disk it is: one that lost power may have answered
/// for one that had acknowledged more.
#[test]
fn what_is_not_stable_is_shown_when_the_disk_proved_which_opening_it_is() {
    let mut stage = Stage::open(3);
    stage.write(1);
    stage.answer_usually();
    stage.done.clear();
    stage.read(2);
    stage.answer(0, Ok(data()));
    stage.answer(1, Ok(confirmed()));
    stage.answer(2, Ok(confirmed()));
    assert!(stage.done.is_empty());
    assert_eq!(stage.questions(0), ["confirm"]);
    let (incarnation, refused) = (Incarnation(2), Vec::new());
    let reply = MemberReply::Confirmed { incarnation, refusals: 0, refused, more: false };
    stage.answer(0, Ok(reply));
    assert!(stage.done.is_empty(), "it was opened anew");
    assert_eq!(stage.coordinator.behind()[0].0, DiskId(0));
}

#[test]
fn reads_share_a_confirmation_of_each_disk_and_one_of_a_quorum_is_enough() {
    let mut stage = Stage::open(3);
    for token in 1..=3 {
        stage.read(token);
    }
    assert_eq!(stage.questions(1), ["confirm"]);
    stage.answer(1, Ok(confirmed()));
    // It was sent before the other two came.
    assert_eq!(stage.questions(1), ["confirm"]);
    (0..3).for_each(|_| drop(stage.answer(0, Ok(data()))));
    assert_eq!(stage.ended(), [1]);
    stage.answer(1, Ok(confirmed()));
    assert_eq!(stage.ended(), [1, 2, 3]);
    assert!(stage.questions(1).is_empty());
}

#[test]
fn a_sole_member_is_asked_for_no_confirmation() {
    let mut stage = Stage::open(1);
    stage.write(1);
    stage.read(2);
    assert_eq!(stage.questions(0), ["write 1>2", "read"]);
    stage.answer_usually();
    assert_eq!(stage.ended(), [1, 2]);
}

#[test]
fn a_refused_configuration_makes_the_read_wait_for_the_map() {
    let mut stage = Stage::open(3);
    stage.read(1);
    stage.answer(0, Ok(data()));
    let under = stage.coordinator.partition_at(0).under;
    let partition = stage.coordinator.partition_id(0);
    for disk in 1..3 {
        let refused = vec![proto::Refused { under, partition }];
        let incarnation = Incarnation(1);
        let reply = MemberReply::Confirmed { incarnation, refusals: 1, refused, more: false };
        stage.answer(disk, Ok(reply));
    }
    assert!(stage.done.is_empty() && stage.asked.is_empty());
    let obstacle = stage.coordinator.obstacle().expect("it waits");
    assert!(obstacle.contains("to be changed"), "{obstacle}");
    // The next configuration has the same members.
    let members = vec![1; 3];
    let map = with(&stage.base, &members);
    let next = ConfigurationNumber(under.number.0 + 1);
    let current = map.configurations().next().expect("there are some").current.clone();
    stage.tell(Event::Map(Arc::new(map.with_members(next, current))));
    stage.answer_usually();
    assert_eq!(stage.ended(), [1]);
}

#[test]
fn a_disk_that_does_not_answer_a_read_is_not_waited_for() {
    let mut stage = Stage::open(3);
    stage.read(1);
    assert_eq!(stage.questions(0), ["read"]);
    stage.answer(1, Ok(confirmed()));
    stage.answer(2, Ok(confirmed()));
    stage.tick();
    assert_eq!(stage.questions(1), ["read"]);
    stage.answer(1, Ok(data()));
    assert_eq!(stage.ended(), [1]);
    // The late answer finds nothing.
    stage.answer(0, Ok(data()));
    assert_eq!(stage.ended(), [1]);
}

#[test]
fn near_disks_are_read_first() {
    let mut stage = Stage::open(3);
    stage.coordinator.set_near([DiskId(2)].into());
    stage.read(1);
    assert_eq!(stage.questions(2), ["read"]);
}
