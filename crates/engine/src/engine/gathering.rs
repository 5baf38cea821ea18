//! What only other nodes know, asked of them for reports about volumes: how much lies on their
//! disks, and how volumes are that are attached there.
//!
//! A question may be lost and a node may not answer: after a second the report is given without
//! them, and names them. Nothing but reports depends on it.

use super::{Engine, Phase, overview::all_attachments};
use crate::Output;
use crate::admin::{
    AdminReply, AdminRequest, AdminToken, AttachmentReport, SnapshotReport, VolumeReport,
};
use crate::disks::Disk;
use cluster::DiskState;
use proto::wire::note::Channel;
use proto::{BLOCK_SIZE, Duration, Generation, LayerId, NodeId, Payload, Time, VolumeId, limits};
use std::collections::{BTreeMap, BTreeSet};
use store::Usage;

/// What questions and answers are told on.
pub(super) const REPORTS: Channel = Channel(5);
/// The version of these messages, their first byte.
const VERSION: u8 = 1;
const ASK: u8 = 0;
const ANSWER: u8 = 1;
/// How long answers are waited for.
const PATIENCE: Duration = Duration::from_secs(1);
/// Layers in one answer; what more there are is asked for next.
const LAYERS_MAX: usize = 8192;
/// Volumes that are attached there, in one answer.
const HOLDS_MAX: usize = 2048;
/// Why a request waits, in bytes; longer sentences are cut.
const REASON_BYTES_MAX: usize = 200;
/// Reports that are gathered for at once; beyond that one is given without the others.
const GATHERINGS_MAX: usize = 64;

const LAYER_BYTES: usize = 32;
const HOLD_BYTES: usize = 22;
const HEAD_BYTES: usize = 64;
const _: () = assert!(
    HEAD_BYTES + LAYERS_MAX * LAYER_BYTES + HOLDS_MAX * (HOLD_BYTES + REASON_BYTES_MAX)
        <= limits::WIRE_CONTROL_BYTES_MAX
);

/// Where an answer ended: what comes after is asked for next.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct After {
    layer: u64,
    volume: u64,
}

/// One attachment, as the node that has it knows it.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Hold {
    volume: VolumeId,
    generation: Generation,
    connections: u32,
    /// Why its oldest request waits, if one does noticeably.
    waiting: Option<String>,
}

/// One answer.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct Answer {
    layers: Vec<(LayerId, Usage)>,
    holds: Vec<Hold>,
    /// There is more after this.
    more: Option<After>,
}

/// What others have said.
#[derive(Default)]
pub(super) struct Elsewhere {
    usage: BTreeMap<LayerId, Usage>,
    holds: BTreeMap<(VolumeId, Generation), Hold>,
    /// Nodes that have said all.
    told: BTreeSet<NodeId>,
}

impl Elsewhere {
    /// What lies of a layer on the disks of others.
    fn usage(&self, layer: LayerId) -> Usage {
        self.usage.get(&layer).copied().unwrap_or_default()
    }
}

/// A report that waits for others.
struct Gathering {
    token: AdminToken,
    request: AdminRequest,
    /// All that had been agreed when it was asked is known here.
    is_agreed: bool,
    /// Who has not said all.
    wanted: BTreeSet<NodeId>,
    got: Elsewhere,
    until: Time,
}

/// Reports that wait for others.
#[derive(Default)]
pub(super) struct Gatherings {
    all: BTreeMap<u64, Gathering>,
    last: u64,
}

impl Gatherings {
    /// When the next one is given without those who have not answered.
    pub(super) fn deadline(&self) -> Option<Time> {
        self.all.values().map(|gathering| gathering.until).min()
    }
}

impl Engine {
    /// The other nodes that have disks, or any of these attachments.
    fn nodes_elsewhere(&self) -> BTreeSet<NodeId> {
        let disks = self.map.disks().filter(|disk| disk.state != DiskState::Gone);
        let holders = self.map.volumes().flat_map(all_attachments).map(|held| held.node);
        let mut nodes: BTreeSet<NodeId> = disks.map(|disk| disk.node).chain(holders).collect();
        nodes.remove(&self.settings.node);
        nodes
    }

    /// Whether a report waits for what others know; its answer follows.
    pub(super) fn gather(
        &mut self,
        now: Time,
        token: AdminToken,
        request: &AdminRequest,
        is_agreed: bool,
    ) -> bool {
        let is_gathered = matches!(
            request,
            AdminRequest::VolumeList
                | AdminRequest::VolumeInfo { .. }
                | AdminRequest::SnapshotList { reclaimable: false, .. }
                | AdminRequest::TrashList
                | AdminRequest::LayerList { .. }
        );
        let serves = self.phase == Phase::Serving && self.leaderless().is_none();
        if !is_gathered || !serves || self.gatherings.all.len() >= GATHERINGS_MAX {
            return false;
        }
        let mut wanted = self.nodes_elsewhere();
        wanted.retain(|node| self.away_since(*node).is_none());
        if wanted.is_empty() {
            return false;
        }
        self.gatherings.last += 1;
        let number = self.gatherings.last;
        for node in &wanted {
            self.send_control(now, *node, REPORTS, &ask(number, After::default()));
        }
        let (request, got, until) = (request.clone(), Elsewhere::default(), now + PATIENCE);
        let gathering = Gathering { token, request, is_agreed, wanted, got, until };
        self.gatherings.all.insert(number, gathering);
        true
    }

    /// Gives the reports that have waited long enough.
    pub(super) fn tick_gatherings(&mut self, now: Time, outputs: &mut Vec<Output>) {
        let due = self.gatherings.all.iter().filter(|(_, it)| it.until <= now);
        for number in due.map(|(number, _)| *number).collect::<Vec<_>>() {
            self.end_gathering(now, number, outputs);
        }
    }

    fn end_gathering(&mut self, now: Time, number: u64, outputs: &mut Vec<Output>) {
        let Some(gathering) = self.gatherings.all.remove(&number) else { return };
        let Gathering { token, request, is_agreed, got, .. } = gathering;
        let mut result = self.administer_known(now, token, request, is_agreed, outputs);
        if let Some(Ok(reply)) = &mut result {
            self.complete(&got, reply);
        }
        if let Some(result) = result {
            outputs.push(Output::Admin { token, result: Box::new(result) });
        }
    }

    /// Another node asks, or answers.
    pub(super) fn handle_report(
        &mut self,
        now: Time,
        node: NodeId,
        message: &Payload,
        outputs: &mut Vec<Output>,
    ) {
        // What is not understood says nothing.
        let mut bytes = Bytes(message.as_slice());
        match (bytes.u8(), bytes.u8(), bytes.u64()) {
            (Some(VERSION), Some(ASK), Some(number)) => {
                let Some(after) = bytes.after().filter(|_| bytes.0.is_empty()) else { return };
                let answer = answer_message(number, &self.answer_after(now, after));
                self.send_control(now, node, REPORTS, &answer);
            }
            (Some(VERSION), Some(ANSWER), Some(number)) => {
                let Some(answer) = bytes.answer() else { return };
                self.take_answer(now, node, number, answer, outputs);
            }
            _ => {}
        }
    }

    fn take_answer(
        &mut self,
        now: Time,
        node: NodeId,
        number: u64,
        answer: Answer,
        outputs: &mut Vec<Output>,
    ) {
        let Some(gathering) = self.gatherings.all.get_mut(&number) else { return };
        if !gathering.wanted.contains(&node) {
            return;
        }
        for (layer, usage) in answer.layers {
            add_usage(gathering.got.usage.entry(layer).or_default(), usage);
        }
        let holds = answer.holds.into_iter().map(|hold| ((hold.volume, hold.generation), hold));
        gathering.got.holds.extend(holds);
        if let Some(after) = answer.more {
            return self.send_control(now, node, REPORTS, &ask(number, after));
        }
        gathering.wanted.remove(&node);
        gathering.got.told.insert(node);
        if gathering.wanted.is_empty() {
            self.end_gathering(now, number, outputs);
        }
    }

    /// What this node tells others.
    fn answer_after(&self, now: Time, after: After) -> Answer {
        let mut layers: BTreeMap<LayerId, Usage> = BTreeMap::new();
        for store in self.disks.values().filter_map(Disk::store) {
            for (_, layer) in store.layers().into_iter().filter(|(_, it)| it.0 > after.layer) {
                add_usage(layers.entry(layer).or_default(), store.usage(layer));
            }
        }
        // Generations are those of their volumes: all of one are told together.
        let mut holds: BTreeMap<VolumeId, Vec<Hold>> = BTreeMap::new();
        for (id, held) in &self.held {
            let volume = id.volume();
            if let Some(generation) = held.generation.filter(|_| volume.0 > after.volume) {
                let connections = held.connections.len() as u32;
                let waiting = crate::report::waiting(now, held);
                let hold = Hold { volume, generation, connections, waiting };
                holds.entry(volume).or_default().push(hold);
            }
        }
        let mut answer = Answer::default();
        let (all_layers, all_holds) = (layers.len(), holds.len());
        answer.layers.extend(layers.into_iter().take(LAYERS_MAX));
        let mut told = 0;
        let mut last = after.volume;
        for (volume, mut of_volume) in holds {
            if answer.holds.len() + of_volume.len() > HOLDS_MAX && told > 0 {
                break;
            }
            of_volume.truncate(HOLDS_MAX);
            answer.holds.extend(of_volume);
            (told, last) = (told + 1, volume.0);
        }
        if answer.layers.len() < all_layers || told < all_holds {
            let layer = answer.layers.last().map_or(after.layer, |(layer, _)| layer.0);
            answer.more = Some(After { layer, volume: last });
        }
        answer
    }

    /// Says of a volume what this node does not know by itself; `unknown` is `unknown_here`.
    pub(super) fn with_unknown(&self, unknown: &[String], report: VolumeReport) -> VolumeReport {
        let mut report = report;
        self.complete_volume(&Elsewhere::default(), unknown, &mut report);
        report
    }

    /// Says of a snapshot what this node does not know by itself; `unknown` is `unknown_here`.
    pub(super) fn with_unknown_snapshot(
        &self,
        unknown: &[String],
        report: SnapshotReport,
    ) -> SnapshotReport {
        let mut report = report;
        self.complete_snapshot(&Elsewhere::default(), unknown, &mut report);
        report
    }

    /// The other nodes that have disks of which this one does not know what lies there.
    pub(super) fn unknown_here(&self) -> Vec<String> {
        self.unknown_nodes(&Elsewhere::default())
    }

    /// Puts what others said into a report.
    fn complete(&self, got: &Elsewhere, reply: &mut AdminReply) {
        let unknown = self.unknown_nodes(got);
        match reply {
            AdminReply::Volume(volume) => self.complete_volume(got, &unknown, volume),
            AdminReply::Volumes(volumes) => {
                volumes.iter_mut().for_each(|volume| self.complete_volume(got, &unknown, volume));
            }
            AdminReply::Snapshots(snapshots) => {
                snapshots
                    .iter_mut()
                    .for_each(|snapshot| self.complete_snapshot(got, &unknown, snapshot));
            }
            AdminReply::Layers(layers) => {
                for layer in layers {
                    add_blocks(&mut layer.used_bytes, got.usage(layer.layer).data_blocks);
                    layer.unknown_nodes.clone_from(&unknown);
                }
            }
            AdminReply::Trash(trashed) => {
                for report in trashed {
                    let layers = self.map.volume(report.volume).map(|volume| volume.layers());
                    for layer in layers.into_iter().flatten() {
                        add_blocks(&mut report.used_bytes, got.usage(layer).data_blocks);
                    }
                    report.unknown_nodes = unknown.to_vec();
                }
            }
            _ => {}
        }
    }

    fn complete_volume(&self, got: &Elsewhere, unknown: &[String], report: &mut VolumeReport) {
        report.unknown_nodes = unknown.to_vec();
        let Some(volume) = self.map.volume(report.volume) else { return };
        let head = got.usage(volume.head);
        add_blocks(&mut report.head_bytes, head.data_blocks);
        add_blocks(&mut report.metadata_bytes, head.map_blocks);
        for snapshot in &volume.snapshots {
            let usage = got.usage(snapshot.layer);
            add_blocks(&mut report.snapshots_bytes, usage.data_blocks);
            add_blocks(&mut report.metadata_bytes, usage.map_blocks);
        }
        report.used_bytes = report.head_bytes.saturating_add(report.snapshots_bytes);
        let Some(attachment) = &mut report.attachment else { return };
        if attachment.node == self.settings.node {
            return;
        }
        self.complete_attachment(got, Some(report.volume), attachment);
        let hold = got.holds.get(&(report.volume, attachment.generation));
        report.waiting = hold.and_then(|hold| hold.waiting.clone());
        let known_there = format!(
            "how far it is, node {} knows, where the volume is attached",
            self.node_words(attachment.node)
        );
        let copying = report.flatten.iter_mut().chain(report.shorten.as_deref_mut());
        for progress in copying.filter(|progress| !progress.running) {
            progress.waiting.get_or_insert_with(|| known_there.clone());
        }
    }

    fn complete_snapshot(&self, got: &Elsewhere, unknown: &[String], report: &mut SnapshotReport) {
        let usage = got.usage(report.layer);
        add_blocks(&mut report.used_bytes, usage.data_blocks);
        add_blocks(&mut report.metadata_bytes, usage.map_blocks);
        report.unknown_nodes = unknown.to_vec();
        let volume = self.map.volume_named(&report.volume).map(|volume| volume.id);
        for reader in &mut report.readers {
            self.complete_attachment(got, volume, reader);
        }
    }

    fn complete_attachment(
        &self,
        got: &Elsewhere,
        volume: Option<VolumeId>,
        attachment: &mut AttachmentReport,
    ) {
        if attachment.node == self.settings.node {
            return;
        }
        let hold = volume.and_then(|volume| got.holds.get(&(volume, attachment.generation)));
        attachment.connections = hold.map_or(0, |hold| hold.connections);
        // Who has said all and did not name it is giving it up just now.
        attachment.unknown = hold.is_none() && !got.told.contains(&attachment.node);
    }

    /// Who has disks and has not said what lies there, or has one that does not serve.
    fn unknown_nodes(&self, got: &Elsewhere) -> Vec<String> {
        let own = self.settings.node;
        let is_unknown = |disk: &&cluster::Disk| {
            let is_known = got.told.contains(&disk.node) && self.serves_there(disk.node, disk.id);
            disk.state != DiskState::Gone && disk.node != own && !is_known
        };
        let nodes: BTreeSet<NodeId> =
            self.map.disks().filter(is_unknown).map(|disk| disk.node).collect();
        nodes.into_iter().map(|node| self.node_words(node)).collect()
    }
}

/// Adds what is told of a layer.
fn add_usage(sum: &mut Usage, usage: Usage) {
    sum.objects = sum.objects.saturating_add(usage.objects);
    sum.data_blocks = sum.data_blocks.saturating_add(usage.data_blocks);
    sum.map_blocks = sum.map_blocks.saturating_add(usage.map_blocks);
}

/// Adds so many blocks to a number of bytes. What others say may be nonsense: nothing overflows.
fn add_blocks(bytes: &mut u64, blocks: u64) {
    *bytes = bytes.saturating_add(blocks.saturating_mul(BLOCK_SIZE as u64));
}

fn ask(number: u64, after: After) -> Vec<u8> {
    let mut bytes = vec![VERSION, ASK];
    for word in [number, after.layer, after.volume] {
        bytes.extend(word.to_le_bytes());
    }
    bytes
}

fn answer_message(number: u64, answer: &Answer) -> Vec<u8> {
    let mut bytes = vec![VERSION, ANSWER];
    bytes.extend(number.to_le_bytes());
    bytes.push(u8::from(answer.more.is_some()));
    let after = answer.more.unwrap_or_default();
    for word in [after.layer, after.volume] {
        bytes.extend(word.to_le_bytes());
    }
    bytes.extend((answer.layers.len() as u32).to_le_bytes());
    for (layer, usage) in &answer.layers {
        for word in [layer.0, usage.objects, usage.data_blocks, usage.map_blocks] {
            bytes.extend(word.to_le_bytes());
        }
    }
    bytes.extend((answer.holds.len() as u32).to_le_bytes());
    for hold in &answer.holds {
        bytes.extend(hold.volume.0.to_le_bytes());
        bytes.extend(hold.generation.0.to_le_bytes());
        bytes.extend(hold.connections.to_le_bytes());
        let reason = cut(hold.waiting.as_deref().unwrap_or_default());
        bytes.extend((reason.len() as u16).to_le_bytes());
        bytes.extend(reason.as_bytes());
    }
    bytes
}

/// A sentence, cut at a whole character.
fn cut(text: &str) -> &str {
    let mut end = text.len().min(REASON_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// What is left of a message.
struct Bytes<'a>(&'a [u8]);

impl Bytes<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, left) = self.0.split_first_chunk()?;
        self.0 = left;
        Some(*taken)
    }

    fn u8(&mut self) -> Option<u8> {
        Some(u8::from_le_bytes(self.take()?))
    }

    fn u16(&mut self) -> Option<u16> {
        Some(u16::from_le_bytes(self.take()?))
    }

    fn u32(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.take()?))
    }

    fn u64(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.take()?))
    }

    fn after(&mut self) -> Option<After> {
        Some(After { layer: self.u64()?, volume: self.u64()? })
    }

    /// Reads a whole answer or nothing.
    fn answer(&mut self) -> Option<Answer> {
        let has_more = match self.u8()? {
            0 => false,
            1 => true,
            _ => return None,
        };
        let more = Some(self.after()?).filter(|_| has_more);
        let mut answer = Answer { more, ..Answer::default() };
        let layers = self.u32()? as usize;
        if layers > LAYERS_MAX {
            return None;
        }
        for _ in 0..layers {
            let layer = LayerId(self.u64()?);
            let (objects, data_blocks, map_blocks) = (self.u64()?, self.u64()?, self.u64()?);
            // More than any disk has; sums must not overflow.
            if [objects, data_blocks, map_blocks].iter().any(|count| *count > 1 << 40) {
                return None;
            }
            answer.layers.push((layer, Usage { objects, data_blocks, map_blocks }));
        }
        let holds = self.u32()? as usize;
        if holds > HOLDS_MAX {
            return None;
        }
        for _ in 0..holds {
            let (volume, generation) = (VolumeId(self.u64()?), Generation(self.u64()?));
            let connections = self.u32()?;
            let length = usize::from(self.u16()?);
            let (reason, left) = self.0.split_at_checked(length)?;
            self.0 = left;
            let reason = std::str::from_utf8(reason).ok()?;
            let waiting = (!reason.is_empty()).then(|| reason.to_string());
            answer.holds.push(Hold { volume, generation, connections, waiting });
        }
        self.0.is_empty().then_some(answer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_whole_or_not_at_all() {
        let usage = Usage { objects: 1, data_blocks: 2, map_blocks: 3 };
        let hold = |waiting: Option<&str>| Hold {
            volume: VolumeId(7),
            generation: Generation(4),
            connections: 2,
            waiting: waiting.map(str::to_string),
        };
        let answer = Answer {
            layers: vec![(LayerId(5), usage), (LayerId(9), usage)],
            holds: vec![hold(None), hold(Some("waits for node b"))],
            more: Some(After { layer: 9, volume: 7 }),
        };
        for answer in [answer, Answer::default()] {
            let bytes = answer_message(8, &answer);
            let read = |bytes: &[u8]| Bytes(&bytes[10..]).answer();
            assert_eq!(read(&bytes), Some(answer));
            assert!((10..bytes.len()).all(|length| read(&bytes[..length]).is_none()));
            assert_eq!(read(&[&bytes[..], &[0]].concat()), None);
            let mut odd = bytes.clone();
            odd[10] = 2;
            assert_eq!(read(&odd), None);
        }
    }

    #[test]
    fn a_reason_is_cut_between_characters() {
        let long = "ö".repeat(REASON_BYTES_MAX);
        assert_eq!(cut(&long), "ö".repeat(REASON_BYTES_MAX / 2));
        assert_eq!(cut(&format!("a{long}")).len(), REASON_BYTES_MAX - 1);
        assert_eq!(cut("short"), "short");
    }
}
