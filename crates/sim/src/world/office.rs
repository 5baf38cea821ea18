//! The administrator: creates, deletes, resizes and renames volumes, and asks what there is.

use super::{
    Guest, Link, World,
    shelf::{entry, is_made, is_passing},
};
use crate::oracle::OperationId;
use engine::{
    Input,
    admin::{AdminError, AdminReply, AdminRequest, AdminToken},
};
use proto::BLOCK_SIZE;

/// What the administrator is waiting for.
#[derive(Clone, Debug)]
pub(super) enum Errand {
    Create {
        name: String,
        bytes: u64,
    },
    Delete {
        volume: u64,
    },
    Resize {
        volume: u64,
        bytes: u64,
    },
    Rename {
        volume: u64,
        name: String,
    },
    /// Of a volume, with this tag; late if it was taken and the disks are slow.
    Snapshot {
        volume: u64,
        tag: String,
        taking: OperationId,
        is_taken: bool,
    },
    Clone {
        layer: u64,
        name: String,
    },
    /// To this snapshot's layer, from this head.
    Rollback {
        volume: u64,
        layer: u64,
        head: u64,
    },
    Flatten,
    DeleteSnapshot {
        layer: u64,
    },
    /// A question; the answer is kept for whoever asked.
    Question(Option<Box<Result<AdminReply, String>>>),
}

/// Sizes of volumes, in blocks: within one object, just across two, and a few objects.
const SIZES: [u64; 5] = [1, 24, 1024, 1030, 2500];

impl World {
    /// Something an administrator may want to do now.
    pub(super) fn send_errand(&mut self) -> Result<(), String> {
        if self.late.is_some() {
            return self.look_after_snapshot();
        }
        let volumes: Vec<u64> = self.guests.keys().copied().collect();
        if volumes.is_empty() || (volumes.len() < self.mix.volumes && self.random.coin()) {
            self.create_volume();
            return Ok(());
        }
        let volume = *self.random.pick(&volumes);
        if self.random.below(10) < self.mix.layers {
            return self.send_layer_errand(volume);
        }
        match self.random.below(6) {
            0 => self.delete_volume(volume),
            1 => self.rename_volume(volume),
            _ => self.resize_volume(volume),
        }
        Ok(())
    }

    pub(super) fn create_volume(&mut self) {
        self.next_name += 1;
        let name = format!("v{}", self.next_name);
        let bytes = *self.random.pick(&SIZES) * BLOCK_SIZE as u64;
        let errand = Errand::Create { name: name.clone(), bytes };
        self.send(errand, AdminRequest::VolumeCreate { name, bytes });
    }

    fn delete_volume(&mut self, volume: u64) {
        if !self.make_way(volume) {
            return;
        }
        let layers = self.layers_of(volume);
        self.send_readers_away(&layers);
        let name = self.guests[&volume].name.clone();
        let with_snapshots = !layers.is_empty();
        let request = AdminRequest::VolumeDelete { name, with_snapshots, keep_s: Some(0) };
        self.send(Errand::Delete { volume }, request);
    }

    fn rename_volume(&mut self, volume: u64) {
        self.next_name += 1;
        let new_name = format!("r{}", self.next_name);
        let guest = self.guests.get_mut(&volume).expect("picked among them");
        if !matches!(guest.link, Link::Open(_)) {
            return;
        }
        let name = guest.name.clone();
        let errand = Errand::Rename { volume, name: new_name.clone() };
        self.send(errand, AdminRequest::VolumeRename { name, new_name, while_attached: true });
    }

    /// Grows or shrinks. Only what is certainly in the volume before and after is used meanwhile.
    fn resize_volume(&mut self, volume: u64) {
        let bytes = *self.random.pick(&SIZES) * BLOCK_SIZE as u64;
        let guest = self.guests.get_mut(&volume).expect("picked among them");
        let shrinks = bytes < guest.bytes;
        if shrinks && !guest.in_flight.is_empty() {
            return;
        }
        guest.bytes = guest.bytes.min(bytes);
        let name = guest.name.clone();
        let request = AdminRequest::VolumeResize { name, bytes, allow_shrink: shrinks };
        self.send(Errand::Resize { volume, bytes }, request);
    }

    pub(super) fn send(&mut self, errand: Errand, request: AdminRequest) {
        self.next_token += 1;
        self.trace.line(self.now, format_args!("admin {} asks {request:?}", self.next_token));
        self.errand = Some(errand);
        let token = AdminToken(self.next_token);
        self.node.input(self.now, Input::Admin { token, request });
        self.node.poll(self.now);
    }

    pub(super) fn errand_answered(
        &mut self,
        token: AdminToken,
        result: Result<AdminReply, AdminError>,
    ) -> Result<(), String> {
        self.trace.line(self.now, format_args!("admin {} told {result:?}", token.0));
        if token.0 != self.next_token {
            return Ok(());
        }
        let result = result.map_err(|error| error.sentence);
        match (self.errand.take(), result) {
            (Some(Errand::Create { name, .. }), Ok(AdminReply::Volume(report))) => {
                self.adopt(report.volume.0, name, report.bytes);
            }
            (Some(Errand::Delete { volume }), result) => {
                if result.is_ok() {
                    self.forget_volume(volume);
                } else if let Some(guest) = self.guests.get_mut(&volume) {
                    guest.next_at = self.now;
                }
            }
            (Some(Errand::Resize { volume, bytes }), result) => {
                // It may have its new size, and what lay beyond not be discarded yet.
                let resized = result.as_ref().map_or_else(
                    |sentence| sentence.starts_with("the volume has its new size"),
                    |_| true,
                );
                self.resized(volume, if resized { bytes } else { self.oracle.bytes(volume) });
            }
            (Some(Errand::Rename { volume, name }), Ok(_)) => {
                self.guests.get_mut(&volume).expect("it is only deleted by errand").name = name;
            }
            (Some(Errand::Snapshot { volume, tag, taking, .. }), result) => {
                return self.snapshot_answered(volume, tag, taking, result);
            }
            (Some(Errand::Clone { layer, name }), Ok(AdminReply::Volume(report))) => {
                self.summary.layers[1] += 1;
                self.adopt_clone(report.volume.0, name, layer);
            }
            (Some(Errand::Rollback { volume, layer, .. }), result) => {
                let guest = self.guests.get_mut(&volume).expect("it is only deleted by errand");
                guest.next_at = self.now;
                match result {
                    Err(sentence) if !is_made(&sentence) => {
                        if !self.excused && !is_passing(&sentence) {
                            return Err(format!("a rollback failed: {sentence}"));
                        }
                    }
                    _ => {
                        self.summary.layers[2] += 1;
                        self.rolled_back(volume, layer);
                    }
                }
            }
            (Some(Errand::Flatten), Ok(_)) => self.summary.layers[3] += 1,
            (Some(Errand::DeleteSnapshot { layer }), Ok(_)) => {
                self.summary.layers[4] += 1;
                self.forget_snapshot(layer);
            }
            (
                Some(Errand::Clone { .. } | Errand::Flatten | Errand::DeleteSnapshot { .. }),
                Err(sentence),
            ) => {
                if !self.excused && !is_passing(&sentence) {
                    return Err(format!("an errand failed: {sentence}"));
                }
            }
            (Some(Errand::Question(None)), result) => {
                self.errand = Some(Errand::Question(Some(Box::new(result))));
            }
            (Some(Errand::Create { .. } | Errand::Rename { .. }), Err(sentence)) => {
                if !self.excused {
                    return Err(format!("an errand failed: {sentence}"));
                }
            }
            (errand, result) => return Err(format!("{errand:?} was answered {result:?}")),
        }
        Ok(())
    }

    fn snapshot_answered(
        &mut self,
        volume: u64,
        tag: String,
        taking: OperationId,
        result: Result<AdminReply, String>,
    ) -> Result<(), String> {
        match result {
            Ok(AdminReply::Snapshot(report)) => {
                self.summary.layers[0] += 1;
                self.snapshot_taken(volume, tag, taking, report.layer.0);
            }
            Err(sentence) if is_made(&sentence) => {
                self.late = Some(Errand::Snapshot { volume, tag, taking, is_taken: true });
            }
            Err(sentence) if self.excused || is_passing(&sentence) => {
                self.oracle.failed_snapshot(taking);
            }
            result => return Err(format!("a snapshot was answered {result:?}")),
        }
        Ok(())
    }

    /// Asks a question and waits for the answer.
    pub(super) fn consult(&mut self, request: AdminRequest) -> Result<AdminReply, String> {
        let before = self.errand.take();
        assert!(before.is_none(), "one errand at a time: {before:?}");
        self.send(Errand::Question(None), request);
        self.drive("a question", |world| matches!(world.errand, Some(Errand::Question(Some(_)))))?;
        match self.errand.take() {
            Some(Errand::Question(Some(answer))) => *answer,
            other => unreachable!("just seen: {other:?}"),
        }
    }

    /// After a start: compares what volumes there are with what was promised.
    pub(super) fn resync(&mut self) -> Result<(), String> {
        let errand = self.errand.take();
        let AdminReply::Volumes(found) = self.consult(AdminRequest::VolumeList)? else {
            return Err("the list of volumes is none".into());
        };
        for report in &found {
            let id = report.volume.0;
            if !self.guests.contains_key(&id) {
                match &errand {
                    Some(Errand::Create { name, bytes })
                        if *name == report.name && *bytes == report.bytes =>
                    {
                        self.adopt(id, report.name.clone(), report.bytes);
                    }
                    Some(Errand::Clone { layer, name }) if *name == report.name => {
                        self.adopt_clone(id, report.name.clone(), *layer);
                    }
                    _ => return Err(format!("volume {} came from nowhere", report.name)),
                }
                continue;
            }
            let mut sizes = vec![self.oracle.bytes(id)];
            if let Some(Errand::Rollback { volume, layer, .. }) = errand
                && volume == id
            {
                // Which of them, the head tells later.
                sizes.push(self.oracle.bytes(entry(layer)));
            }
            if let Some(Errand::Resize { volume, bytes }) = errand
                && volume == id
            {
                sizes.push(bytes);
            }
            if !sizes.contains(&report.bytes) {
                return Err(format!("{} has {} bytes, not {sizes:?}", report.name, report.bytes));
            }
            if matches!(errand, Some(Errand::Resize { volume, .. }) if volume == id) {
                self.resized(id, report.bytes);
            }
            let guest = self.guests.get_mut(&id).expect("just seen");
            let renamed = matches!(&errand, Some(Errand::Rename { volume, name })
                if *volume == id && *name == report.name);
            if guest.name != report.name && !renamed {
                return Err(format!("{} is called {} now", guest.name, report.name));
            }
            guest.name = report.name.clone();
            guest.next_at = self.now;
        }
        for id in self.guests.keys().copied().collect::<Vec<_>>() {
            if found.iter().any(|report| report.volume.0 == id) {
                continue;
            }
            if !matches!(errand, Some(Errand::Delete { volume }) if volume == id) {
                return Err(format!("volume {} is lost", self.guests[&id].name));
            }
            self.forget_volume(id);
        }
        self.resync_snapshots(errand.as_ref())?;
        for report in found {
            let bytes = self.oracle.bytes(report.volume.0);
            if report.bytes != bytes {
                return Err(format!("{} has {} bytes, not {bytes}", report.name, report.bytes));
            }
            self.resized(report.volume.0, bytes);
        }
        Ok(())
    }

    /// A volume is gone, and its snapshots with it.
    fn forget_volume(&mut self, volume: u64) {
        for layer in self.layers_of(volume) {
            self.forget_snapshot(layer);
        }
        self.guests.remove(&volume);
        self.oracle.remove(volume);
    }

    /// A clone of a snapshot exists.
    fn adopt_clone(&mut self, volume: u64, name: String, layer: u64) {
        self.oracle.clone_snapshot(entry(layer), volume);
        let mut guest = Guest::new(volume, name, self.oracle.bytes(volume));
        (guest.next_at, guest.has_layers) = (self.now, true);
        self.guests.insert(volume, guest);
    }

    /// A volume has this size for certain.
    fn resized(&mut self, volume: u64, bytes: u64) {
        self.oracle.resize(volume, bytes);
        if let Some(guest) = self.guests.get_mut(&volume) {
            guest.bytes = bytes;
        }
    }

    fn adopt(&mut self, volume: u64, name: String, bytes: u64) {
        self.oracle.create(volume, bytes);
        let mut guest = Guest::new(volume, name, bytes);
        guest.next_at = self.now;
        self.guests.insert(volume, guest);
    }
}
