//! The administrator: creates, deletes, resizes and renames volumes, and asks what there is.

use super::{Guest, Link, World};
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
    /// A question; the answer is kept for whoever asked.
    Question(Option<Box<Result<AdminReply, String>>>),
}

/// Sizes of volumes, in blocks: within one object, just across two, and a few objects.
const SIZES: [u64; 5] = [1, 24, 1024, 1030, 2500];

impl World {
    /// Something an administrator may want to do now.
    pub(super) fn send_errand(&mut self) {
        let volumes: Vec<u64> = self.guests.keys().copied().collect();
        if volumes.is_empty() || (volumes.len() < self.mix.volumes && self.random.coin()) {
            return self.create_volume();
        }
        let volume = *self.random.pick(&volumes);
        match self.random.below(6) {
            0 => self.delete_volume(volume),
            1 => self.rename_volume(volume),
            _ => self.resize_volume(volume),
        }
    }

    pub(super) fn create_volume(&mut self) {
        self.next_name += 1;
        let name = format!("v{}", self.next_name);
        let bytes = *self.random.pick(&SIZES) * BLOCK_SIZE as u64;
        let errand = Errand::Create { name: name.clone(), bytes };
        self.send(errand, AdminRequest::VolumeCreate { name, bytes });
    }

    fn delete_volume(&mut self, volume: u64) {
        if let Link::Open(connection) = self.guests[&volume].link {
            self.hang_up(volume, connection);
        }
        let guest = self.guests.get_mut(&volume).expect("picked among them");
        if guest.link != Link::None {
            return;
        }
        // It waits until the outcome is known.
        guest.next_at = proto::Time(u64::MAX);
        let name = guest.name.clone();
        self.send(
            Errand::Delete { volume },
            AdminRequest::VolumeDelete { name, with_snapshots: false, keep_s: Some(0) },
        );
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

    fn send(&mut self, errand: Errand, request: AdminRequest) {
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
                    self.guests.remove(&volume);
                    self.oracle.remove(volume);
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
                let expected = matches!(&errand, Some(Errand::Create { name, bytes })
                    if *name == report.name && *bytes == report.bytes);
                if !expected {
                    return Err(format!("volume {} came from nowhere", report.name));
                }
                self.adopt(id, report.name.clone(), report.bytes);
                continue;
            }
            let mut sizes = vec![self.oracle.bytes(id)];
            if let Some(Errand::Resize { volume, bytes }) = errand
                && volume == id
            {
                sizes.push(bytes);
            }
            if !sizes.contains(&report.bytes) {
                return Err(format!("{} has {} bytes, not {sizes:?}", report.name, report.bytes));
            }
            self.resized(id, report.bytes);
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
            self.guests.remove(&id);
            self.oracle.remove(id);
        }
        Ok(())
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
