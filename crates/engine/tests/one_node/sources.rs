//! Volumes whose content lies elsewhere: what the node asks of sources, and what it tells of them.

use crate::support::{MIB, World, opened};
use engine::{
    Input, Output, SourceId, SourceReply, SourceRequest, SourceWanted,
    admin::{
        AdminError, AdminErrorKind, AdminReply, AdminRequest, AdminToken, FlattenAction, LayerKind,
        VolumeReport,
    },
};
use proto::{BlockState, Buffer, limits::NODE_FLATTENS_MAX};
use volume::{Operation, SourceAnswer};

const BYTES: u64 = 5 * MIB + 512;

/// What lies elsewhere: full of nines. Sources whose address has "dead" in it do not answer.
#[derive(Default)]
struct Far {
    is_down: bool,
    /// What the process at the other end calls its export, if it is this one.
    own_export: Option<String>,
    reads: u64,
}

impl Far {
    fn answer(&mut self, request: &SourceRequest) -> Result<SourceReply, String> {
        if self.is_down || request.address.contains("dead") {
            return Err("connection refused".into());
        }
        let blocks = |length: u64| length.div_ceil(4096);
        match request.wanted {
            SourceWanted::Open => {
                Ok(SourceReply::Opened { bytes: BYTES, own_export: self.own_export.clone() })
            }
            SourceWanted::Read { bytes: BYTES, offset, length } => {
                assert!(offset + length <= BYTES);
                self.reads += 1;
                let mut buffer = Buffer::zeroed(blocks(length) as usize * 4096);
                buffer.as_mut_slice()[..length as usize].fill(9);
                Ok(SourceReply::Answer(SourceAnswer::Data(buffer.freeze())))
            }
            SourceWanted::Map { length, .. } => {
                let runs = vec![(blocks(length) as u32, BlockState::Data)];
                Ok(SourceReply::Answer(SourceAnswer::Map(runs)))
            }
            other => panic!("{other:?}"),
        }
    }

    /// Answers all that is asked, and gives back what else was said.
    fn serve(&mut self, world: &mut World) -> Vec<Output> {
        let mut said = Vec::new();
        while let Some(output) = world.said.pop_front() {
            match output {
                Output::Source { token, request } => {
                    let result = self.answer(&request);
                    world.tell(Input::Source { token, result });
                }
                other => said.push(other),
            }
        }
        said
    }

    /// Likewise, over some time.
    fn pass(&mut self, world: &mut World, seconds: u64) -> Vec<Output> {
        let mut said = self.serve(world);
        for _ in 0..seconds {
            world.pass(1);
            said.extend(self.serve(world));
        }
        said
    }

    fn admin(
        &mut self,
        world: &mut World,
        request: AdminRequest,
    ) -> Result<AdminReply, AdminError> {
        let token = AdminToken(world.next);
        world.next += 1;
        world.tell(Input::Admin { token, request });
        let said = self.pass(world, 1);
        if let [Output::Admin { token: answered, .. }] = said[..]
            && answered == token
            && let Some(Output::Admin { result, .. }) = said.into_iter().next()
        {
            return *result;
        }
        panic!("no answer");
    }

    fn create(&mut self, world: &mut World, name: &str, from: &str) -> VolumeReport {
        match self.admin(world, from_source(name, None, from)) {
            Ok(AdminReply::Volume(volume)) => volume,
            other => panic!("{other:?}"),
        }
    }

    fn info(&mut self, world: &mut World, name: &str) -> VolumeReport {
        match self.admin(world, AdminRequest::VolumeInfo { name: name.into() }) {
            Ok(AdminReply::Volume(volume)) => volume,
            other => panic!("{other:?}"),
        }
    }
}

fn from_source(name: &str, bytes: Option<u64>, from: &str) -> AdminRequest {
    AdminRequest::VolumeCreateFrom { name: name.into(), bytes, from: from.into() }
}

fn kinds(far: &mut Far, world: &mut World) -> Vec<(LayerKind, Option<String>)> {
    match far.admin(world, AdminRequest::LayerList { name: None }) {
        Ok(AdminReply::Layers(layers)) => {
            layers.into_iter().map(|layer| (layer.kind, layer.name)).collect()
        }
        other => panic!("{other:?}"),
    }
}

/// The question that was asked last.
fn question(world: &mut World) -> SourceId {
    match world.said.pop_front() {
        Some(Output::Source { token, .. }) => token,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_volume_is_made_when_its_source_is_known_and_filled_by_the_node() {
    let (mut world, mut far) = (World::found(), Far::default());
    let made = far.create(&mut world, "v", "nbd://h/e");
    assert_eq!(made.bytes, BYTES.next_multiple_of(4096));
    let origin = made.origin.expect("it shows its source");
    assert_eq!((origin.name, origin.source.as_deref()), (None, Some("nbd://h/e")));
    assert_eq!(origin.bytes, BYTES);
    assert!(made.flatten.is_some(), "it is filled from the start");
    far.pass(&mut world, 3);
    let filled = far.info(&mut world, "v");
    assert_eq!((filled.origin, filled.attachment), (None, None));
    assert_eq!(filled.used_bytes, BYTES.next_multiple_of(4096));
    assert_eq!(kinds(&mut far, &mut world), [(LayerKind::Head, Some("v".into()))]);
    far.is_down = true;
    assert_eq!(world.open(1, "a", "v"), opened(filled.bytes));
    assert_eq!(world.read(1, BYTES - 512, 512), [9; 512]);
    assert_eq!(world.read(1, BYTES, 3584), [0; 3584]);
}

#[test]
fn a_source_that_keeps_silent_or_cannot_be_had_makes_no_volume() {
    let (mut world, mut far) = (World::found(), Far::default());
    let token = AdminToken(70);
    world.tell(Input::Admin { token, request: from_source("v", None, "nbd://h/e") });
    let asked = question(&mut world);
    world.pass(21);
    let Some(Output::Admin { result, .. }) = world.said.pop_front() else { panic!("no answer") };
    let error = result.expect_err("it keeps silent");
    assert_eq!(error.kind, AdminErrorKind::Unavailable);
    assert!(error.sentence.contains("has not answered for 20 s"), "{}", error.sentence);
    let late = SourceReply::Opened { bytes: BYTES, own_export: None };
    world.tell(Input::Source { token: asked, result: Ok(late) });
    assert!(world.said.is_empty() && world.engine.map().volumes().count() == 0);

    let mut refused = |far: &mut Far, name: &str, bytes, from: &str| {
        far.admin(&mut world, from_source(name, bytes, from)).expect_err("refused").sentence
    };
    let sentence = refused(&mut far, "v", None, "nbd://dead/e");
    assert_eq!(sentence, "cannot make volume v from nbd://dead/e: connection refused");
    let small = refused(&mut far, "v", Some(4096), "nbd://h/e");
    assert!(small.contains("the new volume would have only 4096"), "{small}");
    far.own_export = Some("w".into());
    let unknown = refused(&mut far, "v", None, "nbd://h/w");
    assert!(unknown.contains("there is no volume named \"w\""), "{unknown}");
    // These are refused before anything is asked.
    let sentence = refused(&mut far, "a/b", None, "nbd://h/e");
    assert!(sentence.contains("a/b"), "{sentence}");
    refused(&mut far, "v", None, "");

    world.tell(Input::Admin { token, request: from_source("v", None, "nbd://h/e") });
    question(&mut world);
    world.tell(Input::Stop);
    let Some(Output::Admin { result, .. }) = world.said.pop_front() else { panic!("no answer") };
    assert!(result.expect_err("the node stops").sentence.contains("stopping"));
}

#[test]
fn what_is_served_by_this_very_node_must_be_a_snapshot_without_a_source() {
    let (mut world, mut far) = (World::found(), Far::default());
    world.create("plain", 16 * MIB);
    world.snapshot("plain", "s");
    // One that is not filled at all.
    let stop = FlattenAction::Stop;
    far.is_down = true;
    let token = AdminToken(70);
    world.tell(Input::Admin { token, request: from_source("x", None, "nbd://h/e") });
    let asked = question(&mut world);
    let there = SourceReply::Opened { bytes: BYTES, own_export: None };
    world.tell(Input::Source { token: asked, result: Ok(there) });
    far.pass(&mut world, 1);
    let flatten = AdminRequest::VolumeFlatten { name: "x".into(), action: stop };
    far.admin(&mut world, flatten).expect("stopped");
    let take = AdminRequest::SnapshotCreate { name: "x".into(), tag: "s".into() };
    far.admin(&mut world, take).expect("taken while the source is away");
    far.is_down = false;
    let clone = "clone it with `dog volume clone plain@s NEW`";
    for (own, told) in [("plain", "take a snapshot"), ("plain@s", clone)] {
        far.own_export = Some(own.into());
        let request = from_source("new", None, "nbd+unix:///own");
        let error = far.admin(&mut world, request).expect_err(own);
        assert_eq!(error.kind, AdminErrorKind::Invalid);
        assert!(error.sentence.contains(told), "{}", error.sentence);
    }
}

#[test]
fn sources_that_are_away_keep_no_other_volume_from_being_filled() {
    let (mut world, mut far) = (World::found(), Far::default());
    for number in 0..NODE_FLATTENS_MAX {
        let name = format!("d{number}");
        let token = AdminToken(70);
        let from = format!("nbd://dead/{number}");
        world.tell(Input::Admin { token, request: from_source(&name, None, &from) });
        let asked = question(&mut world);
        let there = SourceReply::Opened { bytes: BYTES, own_export: None };
        world.tell(Input::Source { token: asked, result: Ok(there) });
        far.pass(&mut world, 1);
    }
    let waits = far.info(&mut world, "d0");
    let why = waits.flatten.and_then(|flatten| flatten.waiting).expect("it says why");
    assert!(why.starts_with("waiting for nbd://dead/0 (connection refused), "), "{why}");
    assert!(far.create(&mut world, "live", "nbd://h/e").origin.is_some());
    far.pass(&mut world, 65);
    assert_eq!(far.info(&mut world, "live").origin, None, "it had no turn");
    // Whoever wants a volume whose source is away has it at once.
    let answer = world.open(1, "a", "d0");
    assert_eq!(answer, opened(BYTES.next_multiple_of(4096)));
    far.serve(&mut world);
    world.write(1, 0, 7, 4096);
    far.serve(&mut world);
    assert_eq!(world.read(1, 0, 512), [7; 512]);
}

#[test]
fn a_killed_node_goes_on_filling_and_clients_see_all_of_it_meanwhile() {
    let (mut world, mut far) = (World::found(), Far::default());
    far.is_down = true;
    let token = AdminToken(70);
    world.tell(Input::Admin { token, request: from_source("v", None, "nbd://h/e") });
    let asked = question(&mut world);
    let there = SourceReply::Opened { bytes: BYTES, own_export: None };
    world.tell(Input::Source { token: asked, result: Ok(there) });
    far.pass(&mut world, 2);
    let (disk, journal) = world.kill();
    let mut world = World::start(disk, journal, false);
    assert_eq!(far.reads, 0);
    far.is_down = false;
    let client = engine::Client { identity: "a".into(), description: "process a".into() };
    let connection = engine::ConnectionId(1);
    world.tell(Input::Open { connection, client, name: "v".into() });
    far.serve(&mut world);
    let id = volume::RequestId(1);
    let (offset, length) = (BYTES - 1024, 1024);
    let request = volume::Request { id, offset, length, operation: Operation::Read };
    world.tell(Input::Request { connection, request });
    let said = far.pass(&mut world, 2);
    let read = said.into_iter().find_map(|output| match output {
        Output::Complete { result: Ok(volume::Completion::Data(data)), .. } => Some(data),
        _ => None,
    });
    assert_eq!(read.expect("it was read")[0].as_slice(), [9; 1024]);
    far.pass(&mut world, 3);
    assert_eq!(far.info(&mut world, "v").origin, None);
}
