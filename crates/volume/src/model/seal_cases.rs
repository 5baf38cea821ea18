//! Sealing with several members, played by disks that have nothing and refuse nothing.

use super::*;
use cluster::Member;
use proto::{ConfigurationNumber, ObjectStamp};

/// A writer's session, its disks, and what it said.
struct Cluster {
    state: State,
    volume: VolumeId,
    session: Session,
    now: Time,
    members: Vec<u128>,
    /// It answers nothing but that it is out of service.
    away: Option<u128>,
    said: Vec<Effect>,
    /// The last write.
    last: Stamp,
}

fn usual(request: &MemberRequest, last: &mut Stamp) -> MemberReply {
    let incarnation = Incarnation(1);
    match *request {
        MemberRequest::Fence { .. } => {
            let (settled, unsettled, more) = (Stamp::default(), Vec::new(), false);
            MemberReply::Fenced { incarnation, settled, unsettled, more }
        }
        MemberRequest::Stamp { key, .. } => {
            let (stamp, settled_generation) = (*last, Generation(0));
            MemberReply::Stamp(ObjectStamp { key, stamp, settled_generation })
        }
        MemberRequest::Write(ref write) => {
            *last = write.stamp;
            MemberReply::Written { incarnation }
        }
        MemberRequest::Flush { .. } => MemberReply::Flushed { incarnation },
        MemberRequest::Confirm { .. } => {
            let (refusals, refused, more) = (0, Vec::new(), false);
            MemberReply::Confirmed { incarnation, refusals, refused, more }
        }
        _ => MemberReply::Done,
    }
}

impl Cluster {
    fn open() -> Cluster {
        let mut state = State::default();
        let mut apply = |command| state.apply(&command).expect("a good command");
        apply(Command::CreateCluster { cluster: ClusterId(1), partition_bits: 4, unix_s: 0 });
        apply(Command::AddNode { node: NODE, name: "alpha".into() });
        apply(Command::OpenDisk { disk: DISK, node: NODE, incarnation: Incarnation(1) });
        let create = Command::CreateVolume { name: "vm".into(), bytes: 8 << 20, unix_s: 0 };
        let Answer::VolumeCreated { volume } = apply(create) else { panic!("created") };
        let (holder, read_only) = ("test".to_string(), false);
        let attach = Command::Attach { volume, node: NODE, holder, read_only, unix_s: 0 };
        let Answer::Attached { generation } = apply(attach) else { panic!("attached") };
        let (now, members) = (Time(1), vec![0, 1, 2]);
        let map = with(&state.map(), &members);
        let mut said = Vec::new();
        let view = View::Head { read_only };
        let session = Session::open(now, volume, generation, view, map, &mut said);
        let mut cluster = Cluster {
            state,
            volume,
            session,
            now,
            members,
            away: None,
            said,
            last: Stamp::default(),
        };
        cluster.go_on();
        assert!(cluster.says(|effect| matches!(effect, Effect::Opened(Ok(())))));
        cluster
    }

    fn tell(&mut self, event: Event) {
        self.session.handle(self.now, event, &mut self.said);
        self.session.check();
    }

    fn show_map(&mut self) {
        let map = with(&self.state.map(), &self.members);
        self.tell(Event::Map(map));
    }

    /// Answers everything, and lets some time pass.
    fn go_on(&mut self) {
        for _ in 0..40 {
            let mut asked = Vec::new();
            for effect in std::mem::take(&mut self.said) {
                match effect {
                    Effect::Member { member, token, request } => {
                        asked.push((member.disk, token, request));
                    }
                    other => self.said.push(other),
                }
            }
            if asked.is_empty() {
                self.now = self.now + Duration::from_millis(100);
                self.tell(Event::Tick);
            }
            for (disk, token, request) in asked {
                let result = match self.away == Some(disk.0) {
                    true => Err(MemberError::Retired),
                    false => Ok(usual(&request, &mut self.last)),
                };
                self.tell(Event::Member { disk, token, result });
            }
        }
    }

    fn says(&self, what: impl Fn(&Effect) -> bool) -> bool {
        self.said.iter().any(what)
    }

    fn is_reported(&self) -> bool {
        self.says(|effect| matches!(effect, Effect::LayerOpened { .. }))
    }

    fn snapshot(&mut self) {
        let create = Command::CreateSnapshot { volume: self.volume, tag: "one".into(), unix_s: 0 };
        self.state.apply(&create).expect("a new tag");
        self.show_map();
    }

    fn ask(&mut self, number: u64, operation: Operation, length: u64) -> bool {
        let id = RequestId(number);
        self.tell(Event::Request(Request { id, offset: 0, length, operation }));
        self.go_on();
        self.says(
            |effect| matches!(effect, Effect::Complete { id: of, result: Ok(_) } if *of == id),
        )
    }
}

fn with(map: &Map, members: &[u128]) -> Arc<Map> {
    let member = |disk: &u128| Member { disk: DiskId(*disk), incarnation: Incarnation(1) };
    let number = ConfigurationNumber(10 - members.len() as u64);
    Arc::new(map.with_members(number, members.iter().map(member).collect()))
}

#[test]
fn a_snapshot_is_not_complete_while_a_member_is_away_and_guests_do_not_notice() {
    let mut cluster = Cluster::open();
    cluster.away = Some(2);
    cluster.snapshot();
    cluster.go_on();
    assert!(!cluster.is_reported());
    let waiting = cluster.session.waiting(cluster.now).expect("the seal waits");
    assert!(waiting.reason.contains("disk 00000000000000000000000000000002"), "{waiting:?}");
    let buffer = Buffer::zeroed(BLOCK_SIZE);
    assert!(cluster.ask(1, Operation::Write { buffer, fua: true }, BLOCK_SIZE as u64));
    assert!(cluster.ask(2, Operation::Flush, 0));
    assert!(!cluster.is_reported());
    // It is excluded.
    cluster.members.pop();
    cluster.show_map();
    cluster.go_on();
    assert!(cluster.is_reported());
}

#[test]
fn a_seal_that_a_member_holds_up_does_not_keep_a_volume_from_being_closed() {
    for away in [None, Some(2)] {
        let mut cluster = Cluster::open();
        cluster.away = away;
        cluster.snapshot();
        if away.is_some() {
            cluster.go_on();
        }
        cluster.tell(Event::Close);
        cluster.go_on();
        assert!(cluster.says(|effect| matches!(effect, Effect::Closed)), "{away:?}");
        assert_eq!(cluster.is_reported(), away.is_none());
    }
}
