//! Sessions that only read a head, of several members that a dead writer left unequal.

use super::*;

const READER: View = View::Head { read_only: true };

impl Stage {
    fn reader(members: usize) -> Stage {
        let (base, volume) = base();
        let stage = Stage::begin_with(members, base, volume, READER);
        assert!(stage.opened && stage.asked.is_empty(), "it fences nobody");
        stage
    }

    fn tells(&mut self, disk: usize, sequence: u64) {
        let found = MemberReply::Stamp(at(6, sequence));
        let asked = self.answer(disk, Ok(found));
        assert!(matches!(asked, MemberRequest::Stamp { .. }), "{asked:?}");
    }

    fn confirms(&mut self, disk: usize) {
        assert_eq!(self.questions(disk), ["confirm"]);
        self.answer(disk, Ok(confirmed()));
    }

    /// Of three disks the first alone has write 5, the others have 4; two of them have told.
    fn with_one_holder() -> Stage {
        let mut stage = Stage::reader(3);
        stage.read(1);
        stage.tells(0, 5);
        stage.tells(1, 4);
        stage.confirms(0);
        stage.confirms(1);
        stage
    }
}

#[test]
fn a_reader_asks_only_those_who_have_what_a_quorum_chose() {
    let mut stage = Stage::reader(3);
    stage.read(1);
    for disk in 0..3 {
        assert_eq!(stage.questions(disk), ["stamp"]);
    }
    stage.tells(1, 4);
    stage.confirms(1);
    assert!(stage.questions(1).is_empty(), "one of three knows nothing");
    stage.tells(0, 5);
    assert_eq!(stage.questions(0), ["confirm"], "it may have been opened anew and lost something");
    stage.confirms(0);
    // It was asked before the others.
    assert_eq!(stage.questions(0), ["read"]);
    stage.answer(0, Ok(data()));
    assert!(stage.ended().is_empty(), "it has not proved that it is still what it was");
    stage.confirms(0);
    stage.confirms(1);
    assert_eq!(stage.ended(), [1]);
    stage.tells(2, 5);
    // Now there are two to choose from.
    let mut readers = Vec::new();
    for token in 2..4 {
        stage.read(token);
        let reads = |disk: &usize| stage.questions(*disk).contains(&"read".to_string());
        readers.extend((0..3).filter(reads));
        let is_read = |(_, _, request): &mut (_, _, MemberRequest)| {
            matches!(request, MemberRequest::Read { .. })
        };
        let _: Vec<_> = stage.asked.extract_if(.., is_read).collect();
    }
    assert!(!readers.is_empty() && readers.iter().all(|disk| *disk != 1), "{readers:?}");
}

#[test]
fn a_reader_waits_if_nobody_is_left_who_has_what_it_showed() {
    let mut stage = Stage::with_one_holder();
    stage.tells(2, 4);
    stage.answer(0, Err(MemberError::Retired));
    assert!(stage.ended().is_empty());
    let questions: Vec<_> = (0..3).flat_map(|disk| stage.questions(disk)).collect();
    assert!(!questions.contains(&"read".to_string()), "{questions:?}");
    let obstacle = stage.coordinator.obstacle().expect("it waits");
    assert!(obstacle.contains("disk 00") && obstacle.contains("nobody else has"), "{obstacle}");
    assert!(stage.coordinator.is_stalled());
    // It comes back, after the read was due to be asked of another.
    (0..2).for_each(|_| stage.tick());
    assert_eq!(stage.questions(0), ["read"]);
    assert!(!stage.coordinator.is_stalled());
    for _ in 0..3 {
        stage.answer_all(|request| Ok(usual(request)));
    }
    assert_eq!(stage.ended(), [1]);
}

#[test]
fn what_a_disk_tells_that_was_opened_anew_does_not_count() {
    let mut stage = Stage::reader(3);
    stage.read(1);
    stage.tells(0, 4);
    stage.tells(1, 4);
    stage.confirms(0);
    // It lost write 5 with its power, which disk 2 still has.
    let reply = MemberReply::Confirmed {
        incarnation: Incarnation(2),
        refusals: 0,
        refused: Vec::new(),
        more: false,
    };
    stage.answer(1, Ok(reply));
    assert_eq!(stage.questions(0), [""; 0]);
    stage.tells(2, 5);
    stage.confirms(2);
    // The other is only asked whether the session is still the newest.
    assert_eq!(
        (stage.questions(0), stage.questions(2)),
        (vec!["confirm".into()], vec!["read".into()])
    );
}

#[test]
fn what_was_read_of_a_disk_that_went_away_before_it_proved_itself_is_asked_of_another() {
    let mut stage = Stage::reader(3);
    stage.read(1);
    for disk in 0..2 {
        stage.tells(disk, 5);
        stage.confirms(disk);
    }
    assert_eq!(stage.questions(0), ["read"]);
    stage.answer(0, Ok(data()));
    stage.answer(0, Err(MemberError::Retired));
    let of_other = stage.questions(1);
    assert!(of_other.contains(&"read".to_string()), "{of_other:?}");
}

#[test]
fn after_a_change_of_the_members_a_reader_chooses_anew() {
    let mut stage = Stage::with_one_holder();
    stage.asked.retain(|(_, _, request)| matches!(request, MemberRequest::Confirm { .. }));
    stage.answer_all(|request| Ok(usual(request)));
    stage.reopen(1);
    for disk in 0..3 {
        assert_eq!(stage.questions(disk), ["stamp"], "{disk}");
    }
    stage.tells(2, 4);
    stage.confirms(2);
    stage.answer_all(|request| match request {
        MemberRequest::Stamp { .. } => Ok(MemberReply::Stamp(at(6, 4))),
        request => Ok(usual(request)),
    });
    stage.answer_all(|request| Ok(usual(request)));
    let reads = (0..3).filter(|disk| stage.questions(*disk).contains(&"read".to_string()));
    assert_eq!(reads.count(), 1);
}

#[test]
fn a_busy_disk_is_asked_again_and_one_that_is_alone_is_not_asked() {
    let mut stage = Stage::reader(2);
    stage.read(1);
    stage.answer(0, Err(MemberError::Busy));
    stage.tells(1, 5);
    stage.confirms(1);
    stage.tick();
    stage.tells(0, 5);
    stage.confirms(0);
    assert_eq!(stage.questions(0), ["read"]);
    let mut stage = Stage::reader(1);
    stage.read(1);
    assert_eq!(stage.questions(0), ["read"]);
    stage.answer(0, Ok(data()));
    assert_eq!(stage.ended(), [1]);
}
