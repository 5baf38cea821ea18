//! Disks that come to this node while it runs, that cannot be used, and that go again.

use super::{Engine, Phase, Work};
use crate::{
    DiskSettings, NoticeLevel, Output,
    disks::{Disk, Stage},
};
use cluster::Refusal;
use proto::{DiskId, Incarnation, Time, limits};

impl Engine {
    /// Whether this node could have one more disk now; else why not, in one sentence with the
    /// remedy. Whoever means to add one asks before anything is made.
    pub fn vet_one_more_disk(&self) -> Result<(), String> {
        if self.phase != Phase::Serving {
            return Err(self.not_serving());
        }
        if self.map.disks().count() >= limits::DISKS_MAX {
            return Err(Refusal::TooManyDisks.to_string());
        }
        self.leaderless().map_or(Ok(()), Err)
    }

    /// The driver has one more disk.
    pub(super) fn add_disk(
        &mut self,
        now: Time,
        settings: DiskSettings,
        outputs: &mut Vec<Output>,
    ) {
        let disk = settings.disk;
        let vetted = match self.disks.contains_key(&disk) {
            true => Err(format!(
                "disk {disk} is one of this node's already; restart sheep to open it anew"
            )),
            false => self.vet_one_more_disk(),
        };
        if vetted.is_err() {
            outputs.push(Output::DiskAdded { disk, result: vetted });
            return;
        }
        self.begin_disk(now, &settings);
        self.disks.get_mut(&disk).expect("just begun").is_added = true;
    }

    /// Begins with a disk that the node had when it started.
    pub(super) fn begin_own_disk(
        &mut self,
        now: Time,
        settings: &DiskSettings,
        outputs: &mut Vec<Output>,
    ) {
        let id = settings.disk;
        // It was being added when the program ended the last time.
        let is_added = settings.format && self.settings.founding.is_none();
        if let Some(sentence) = settings.refusal.clone() {
            let mut disk = Disk::failed(settings, sentence.clone());
            disk.is_added = is_added;
            self.disks.insert(id, disk);
            return self.put_out(id, sentence, outputs);
        }
        if self.was_taken_out(settings) {
            // It goes once the node serves.
            let disk = Disk::failed(settings, "it was taken out of the cluster".to_string());
            self.disks.insert(id, disk);
            return;
        }
        self.begin_disk(now, settings);
        self.disks.get_mut(&id).expect("just begun").is_added = is_added;
    }

    /// Whether a disk that has served is not in the map any more, while others of this node are. Of
    /// a node none of whose disks is there, they say themselves whether the map is too old.
    fn was_taken_out(&self, settings: &DiskSettings) -> bool {
        let is_in = |id: DiskId| self.map.disk(id).is_some();
        !settings.format
            && !is_in(settings.disk)
            && self.settings.disks.iter().any(|other| is_in(other.disk))
    }

    /// Whether no other disk of the node that has served is left: there is none, or it failed.
    pub(super) fn is_only_disk(&self, id: DiskId) -> bool {
        let is_founded = self.settings.founding.is_none();
        let has_served = |disk: &DiskSettings| !(is_founded && disk.format);
        let is_left = |other: &DiskSettings| {
            self.disks.get(&other.disk).is_none_or(|disk| disk.failure().is_none())
        };
        let mut others = self.settings.disks.iter().filter(|other| other.disk != id);
        !others.any(|other| has_served(other) && is_left(other))
    }

    /// A disk is not used. One that is only being added is forgotten; what the agreed state has
    /// seen open stays, is reported, and is never taken for one that is still to be made.
    pub(super) fn put_out(&mut self, id: DiskId, sentence: String, outputs: &mut Vec<Output>) {
        let is_known = self.map.disk(id).is_some_and(|known| known.incarnation > Incarnation(0));
        let disk = self.disks.get_mut(&id).expect("one that there is");
        let is_added = std::mem::take(&mut disk.is_added);
        if is_added && !is_known {
            self.disks.remove(&id);
            outputs.push(Output::DiskAdded { disk: id, result: Err(sentence) });
            return;
        }
        disk.stage = Stage::Failed(sentence.clone());
        disk.is_agreed = false;
        outputs.push(Output::Notice { level: NoticeLevel::Error, sentence });
        if is_added {
            outputs.push(Output::DiskAdded { disk: id, result: Ok(()) });
        }
    }

    /// Closes the disks of this node that the agreed state does not have any more; but not all of
    /// them: a node has one at least.
    pub(super) fn let_go_of_removed(&mut self, outputs: &mut Vec<Output>) {
        let is_in = |id: &DiskId| self.map.disk(*id).is_some();
        if self.phase != Phase::Serving || !self.disks.keys().any(is_in) {
            return;
        }
        let is_over = |disk: &Disk| disk.is_agreed || disk.failure().is_some();
        let leaves =
            |(id, disk): &(&DiskId, &Disk)| !is_in(id) && !disk.is_leaving && is_over(disk);
        for id in self.disks.iter().filter(leaves).map(|(id, _)| *id).collect::<Vec<_>>() {
            let disk = self.disks.get_mut(&id).expect("just seen");
            disk.is_leaving = true;
            disk.is_agreed = false;
            match disk.store().is_some() {
                // Nobody who knows the map asks it anything, and who does not is put off.
                true => self.work.push_back(Work::Store(id, store::Event::Close)),
                false => self.disk_gone(id, outputs),
            }
        }
    }

    /// A disk that was taken out of the cluster is closed.
    pub(super) fn disk_gone(&mut self, id: DiskId, outputs: &mut Vec<Output>) {
        let disk = self.disks.remove(&id).expect("it was closed just now");
        self.noting.remove(&id);
        self.weighing.remove(&id);
        let sentence = format!(
            "{}: disk {id} was taken out of the cluster and is closed; what it holds is left there",
            disk.settings.path
        );
        outputs.push(Output::Notice { level: NoticeLevel::Info, sentence });
        outputs.push(Output::DiskGone { disk: id });
    }
}
