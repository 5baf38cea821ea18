//! New data that finds no space waits while something is being deleted, or would be, and is not
//! kept waiting in vain.

mod support;

use proto::{
    Duration, LayerId, LineageId, MemberError, MemberReply, MemberRequest, ObjectKey, Write, limits,
};
use store::{Event, Notice};
use support::{Host, KEY, LINEAGE, data, write};

const MIB: u64 = 1 << 20;
const SPACE_WAIT: Duration = Duration::from_millis(limits::STORE_SPACE_WAIT_MS);

/// The write of a MiB to another lineage than [`LINEAGE`].
fn another(index: u32) -> MemberRequest {
    let key = ObjectKey { layer: LayerId(2), index };
    let values: Vec<u64> = (1..=256).collect();
    match write(key, 1, data(0, &values)) {
        MemberRequest::Write(write) => {
            MemberRequest::Write(Write { lineage: LineageId(2), ..write })
        }
        other => other,
    }
}

fn refusal(reply: Option<Result<MemberReply, MemberError>>) -> Option<MemberError> {
    reply.expect("it is answered").err()
}

/// A disk that has no room for one more MiB, and takes no new data.
fn full() -> Host {
    let mut host = Host::formatted(900 << 20, Some(64 * MIB), 4 << 20);
    host.open().expect("it opens");
    let mut refused = false;
    for number in 0..64 {
        let values: Vec<u64> = (1..=256).collect();
        let key = ObjectKey { index: number, ..KEY };
        refused |= host.ask(write(key, 1, data(0, &values))).is_err();
    }
    assert!(refused, "the disk is not full");
    host.settle();
    host
}

/// A guest's write got "no space" while a volume in the trash was about to be purged for it.
#[test]
fn new_data_waits_for_what_is_deleted_for_it() {
    let mut host = full();
    host.event(Event::GivesWay { more: true });
    let waiting = host.request(another(0));
    host.settle();
    assert!(!host.replies.contains_key(&waiting), "{:?}", host.replies);
    let room = host.store().room().expect("it serves");
    assert!(room.is_wanted && !room.is_growing && room.bytes < MIB, "{room:?}");
    host.event(Event::DropLayer { lineage: LINEAGE, layer: KEY.layer });
    host.event(Event::GivesWay { more: false });
    host.settle();
    let reply = host.replies.remove(&waiting);
    assert!(matches!(reply, Some(Ok(MemberReply::Written { .. }))), "{reply:?}");
    host.pass(Duration::from_secs(6));
    let room = host.store().room().expect("it serves");
    assert!(!room.is_wanted && !room.is_growing && room.bytes > 32 * MIB, "{room:?}");
    host.store().check();
}

/// As for what somebody deleted just before.
#[test]
fn new_data_waits_for_what_is_being_dropped() {
    let mut host = full();
    host.event(Event::DropLayer { lineage: LINEAGE, layer: KEY.layer });
    for index in 0..16 {
        let reply = host.ask(another(index));
        assert!(matches!(reply, Ok(MemberReply::Written { .. })), "{index}: {reply:?}");
    }
    host.store().check();
}

#[test]
fn what_waits_is_refused_once_nothing_gives_way_any_more() {
    let mut host = full();
    host.event(Event::GivesWay { more: true });
    let waiting = host.request(another(0));
    host.settle();
    assert!(!host.replies.contains_key(&waiting));
    host.event(Event::GivesWay { more: false });
    host.settle();
    assert_eq!(refusal(host.replies.remove(&waiting)), Some(MemberError::NoSpace));
    assert_eq!(refusal(Some(host.ask(another(1)))), Some(MemberError::NoSpace));
}

/// If nothing is deleted after all, writes do not hang, and only the first of them waits.
#[test]
fn patience_ends() {
    let mut host = full();
    host.event(Event::GivesWay { more: true });
    // Told long ago: what counts is since when it waits.
    host.pass(3 * SPACE_WAIT);
    let waiting = host.request(another(0));
    host.settle();
    host.pass(SPACE_WAIT - Duration::from_millis(1));
    assert!(!host.replies.contains_key(&waiting));
    assert_eq!(
        host.store().deadline().map(|at| at.since(host.now)),
        Some(Duration::from_millis(1))
    );
    host.pass(Duration::from_millis(1));
    assert_eq!(refusal(host.replies.remove(&waiting)), Some(MemberError::NoSpace));
    assert!(host.notices.contains(&Notice::Full));
    assert_eq!(refusal(Some(host.ask(another(1)))), Some(MemberError::NoSpace));
    assert!(host.store().room().expect("it serves").is_wanted);
    // Something is deleted after all: patience is back.
    host.event(Event::DropLayer { lineage: LINEAGE, layer: KEY.layer });
    let reply = host.ask(another(2));
    assert!(matches!(reply, Ok(MemberReply::Written { .. })), "{reply:?}");
}

/// A stop does not wait for space.
#[test]
fn a_close_refuses_what_waits_for_space() {
    let mut host = full();
    host.event(Event::GivesWay { more: true });
    let waiting = host.request(another(0));
    host.settle();
    host.close();
    assert_eq!(refusal(host.replies.remove(&waiting)), Some(MemberError::NoSpace));
}
