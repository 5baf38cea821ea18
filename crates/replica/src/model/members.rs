//! Members that fall behind, come back, are changed, or lose their power; the settled point.

use super::*;

#[test]
fn a_disk_that_takes_nothing_falls_behind_and_frees_what_was_kept_for_it() {
    let mut stage = Stage::open(3);
    let bytes = 256 * BLOCK_SIZE;
    let writes = SESSION_BEHIND_BYTES_MAX / bytes + 1;
    for token in 0..writes as u64 {
        assert!(stage.coordinator.behind().is_empty(), "write {token}");
        let payload = Payload::zeroed(bytes);
        let change = Change::Data { first: 0, payload, detect_zeroes: true };
        stage.request(token, Request::Change { index: 0, change });
        stage.answer(0, Ok(written(1)));
        if token + 1 == writes as u64 {
            break;
        }
        stage.answer(1, Ok(written(1)));
    }
    stage.answer(1, Ok(written(1)));
    let behind = stage.coordinator.behind();
    assert!(matches!(&behind[..], [(DiskId(2), why)] if why.contains("slowly")), "{behind:?}");
    assert!(stage.coordinator.chains.is_empty(), "nothing is kept");
    assert!(!stage.coordinator.is_stalled());
    // It gets nothing more, and the settled point stands still.
    stage.asked.clear();
    let settled = stage.coordinator.settled;
    stage.write(1000);
    assert!(stage.questions(2).is_empty());
    stage.answer_usually();
    stage.flush(1001);
    stage.answer_usually();
    assert_eq!((stage.ended().last(), stage.coordinator.settled), (Some(&1001), settled));
}

/// Numbers that a recovery jumps to made whole whoever was behind: what it lacked was read from it,
/// or taken from the others.
#[test]
fn who_is_behind_still_is_when_a_recovery_jumps_over_numbers() {
    for is_fewer in [false, true] {
        let mut stage = Stage::open(3);
        stage.write(1);
        stage.answer(0, Ok(written(1)));
        stage.answer(1, Ok(written(1)));
        // It has something of no history.
        stage.answer(2, Err(MemberError::WrongStamp { have: at(6, 9).stamp }));
        stage.answer(2, Ok(MemberReply::Stamp(at(6, 9))));
        assert_eq!(stage.coordinator.behind().len(), 1);
        let listed = if is_fewer { 1..3 } else { 0..3 };
        let members = listed.map(|disk| Member { disk: DiskId(disk), incarnation: Incarnation(1) });
        let number = ConfigurationNumber(3 + RECOVERY_JUMP + u64::from(is_fewer));
        let may_be_refused = true;
        let current = members.collect();
        let new = Configuration { number, current, may_be_refused, ..Default::default() };
        let mut map = Map::clone(&stage.base);
        for partition in (0..1 << map.partition_bits()).map(PartitionId) {
            map = map.with_configuration(partition, new.clone());
        }
        stage.tell(Event::Map(Arc::new(map)));
        assert_eq!(stage.coordinator.behind()[0].0, DiskId(2), "it is as it was");
        stage.asked.retain(|(disk, ..)| *disk != 2);
        stage.answer_usually();
        stage.read(2);
        stage.write(3);
        stage.flush(4);
        for _ in 0..3 {
            let asked = stage.questions(2);
            let is_harmless = |question: &String| ["flush", "confirm"].contains(&&question[..]);
            assert!(asked.iter().all(is_harmless), "{asked:?}");
            stage.answer_all(|request| Ok(usual(request)));
        }
        // Of two one is not enough; where all three are left nothing has changed.
        assert_eq!(stage.ended().contains(&3), !is_fewer);
    }
}

#[test]
fn a_short_absence_is_made_up_for() {
    let mut stage = Stage::open(3);
    stage.write(1);
    stage.answer(2, Err(MemberError::Retired));
    stage.answer(0, Ok(written(1)));
    stage.answer(1, Ok(written(1)));
    stage.write(2);
    assert!(stage.questions(2).is_empty());
    stage.answer(0, Ok(written(1)));
    stage.answer(1, Ok(written(1)));
    assert_eq!(stage.ended(), [1, 2]);
    stage.tick();
    assert_eq!(stage.questions(2), ["fence"]);
    stage.answer(2, Ok(fenced(1, &[])));
    stage.answer(2, Ok(MemberReply::Stamp(at(7, 1))));
    assert_eq!(stage.questions(2), ["write 1>2", "write 2>3"]);
    stage.answer_usually();
    assert!(stage.coordinator.behind().is_empty() && stage.coordinator.chains.is_empty());
}

#[test]
fn a_stamp_of_no_history_leaves_a_member_behind_and_nothing_else() {
    let mut stage = Stage::open(3);
    stage.write(1);
    stage.answer(0, Ok(written(1)));
    stage.answer(1, Ok(written(1)));
    stage.answer(2, Err(MemberError::WrongStamp { have: at(5, 5).stamp }));
    stage.answer(2, Ok(MemberReply::Stamp(at(5, 5))));
    let behind = stage.coordinator.behind();
    assert!(matches!(&behind[..], [(DiskId(2), _)]), "{behind:?}");
    assert!(!stage.coordinator.is_stalled() && stage.coordinator.chains.is_empty());
    stage.write(2);
    stage.answer_usually();
    assert_eq!(stage.ended(), [1, 2]);
}

#[test]
fn the_settled_point_moves_with_what_a_flush_made_stable_on_every_member() {
    let mut stage = Stage::open(3);
    let before = stage.coordinator.settled;
    stage.write(1);
    stage.answer_usually();
    assert_eq!(stage.coordinator.settled, before, "acknowledged is not stable");
    stage.flush(2);
    stage.answer(0, Ok(flushed(1)));
    stage.answer(1, Ok(flushed(1)));
    assert_eq!(stage.ended(), [1, 2]);
    assert_eq!(stage.coordinator.settled, before, "one may still lose it");
    stage.answer(2, Ok(flushed(1)));
    assert_eq!(stage.coordinator.settled.sequence, before.sequence + 1);
    stage.write(3);
    let is_told = |request: &MemberRequest| match request {
        MemberRequest::Write(write) => write.settled.sequence == before.sequence + 1,
        _ => false,
    };
    assert!(stage.asked.iter().all(|(_, _, request)| is_told(request)));
}

#[test]
fn a_session_flushes_by_itself_when_too_much_is_not_settled() {
    let mut stage = Stage::open(1);
    for token in 0..=SESSION_UNSETTLED_MAX {
        stage.write(token);
        assert!(stage.asked.len() <= 2);
        stage.answer_usually();
    }
    assert_eq!(stage.ended().len() as u64, SESSION_UNSETTLED_MAX + 1);
    let above = stage.coordinator.sequence.next() - stage.coordinator.settled.sequence;
    assert!(above < SESSION_UNSETTLED_MAX, "{above} writes");
}

#[test]
fn what_was_lost_with_too_many_machines_is_reported_and_the_rest_comes_under_new_stamps() {
    let mut stage = Stage::open(3);
    stage.write(1);
    stage.answer_usually();
    stage.write(2);
    assert_eq!(stage.questions(0), ["write 2>3"]);
    stage.asked.clear();
    stage.incarnations = vec![2; 3];
    let map = with(&stage.base, &stage.incarnations);
    stage.tell(Event::Map(map));
    stage.answer_all(|_| Ok(fenced(2, &[])));
    let asked: Vec<usize> = (0..3).map(|disk| stage.questions(disk).len()).collect();
    assert_eq!(asked.iter().sum::<usize>(), 1, "one of them is asked what there is");
    stage.answer_all(|_| Ok(MemberReply::Stamp(at(7, 1))));
    assert!(stage.lost);
    for disk in 0..3 {
        assert_eq!(stage.questions(disk), ["write 1>4"]);
        stage.answer(disk, Ok(written(2)));
    }
    stage.flush(3);
    stage.answer_all(|_| Ok(flushed(2)));
    stage.flush(4);
    stage.answer_all(|_| Ok(flushed(2)));
    let failed: Vec<bool> = stage.done.iter().map(|(_, result)| result.is_err()).collect();
    assert_eq!((stage.ended(), failed), (vec![1, 2, 3, 4], vec![false, false, true, false]));
}

#[test]
fn what_the_new_members_have_is_done_and_the_rest_is_sent_again() {
    let mut stage = Stage::open(3);
    for token in 1..=3 {
        stage.write(token);
    }
    stage.asked.clear();
    let number = ConfigurationNumber(stage.coordinator.partition_at(0).under.number.0 + 1);
    let member = |disk: u128| Member { disk: DiskId(disk), incarnation: Incarnation(1) };
    let map = stage.base.with_members(number, [1, 2, 3].map(member).to_vec());
    stage.tell(Event::Map(Arc::new(map)));
    // A new one is fenced before it is asked for anything.
    assert_eq!(stage.questions(3), ["fence"]);
    stage.answer(3, Ok(fenced(1, &[])));
    stage.answer_all(|_| Ok(MemberReply::Stamp(at(7, 3))));
    assert_eq!(stage.ended(), [1, 2]);
    for disk in 1..4 {
        assert_eq!(stage.questions(disk), ["write 3>4"]);
    }
    assert!(stage.questions(0).is_empty());
    assert!(!stage.lost);
    stage.answer_usually();
    assert_eq!(stage.ended(), [1, 2, 3]);
}
