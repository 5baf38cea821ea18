//! The start and the end of a node: the journal, the founding of a cluster, the disks; and back.

use super::{Engine, JOURNAL_VERIFY_INTERVAL, Phase, Purpose, Work, entry_path};
use crate::{DiskSettings, NoticeLevel, Output, disks::Disk, report};
use cluster::{Answer, Command, Founding, LayerFate, Refusal, Voter};
use proto::{DiskId, Incarnation, Time};
use store::journal::{Journal, OpenError};

/// A disk's size is agreed anew when it has changed by more than this share of it.
const WEIGHT_CHANGE_DIVISOR: u64 = 16;

impl Engine {
    pub(super) fn handle_journal_effect(
        &mut self,
        now: Time,
        effect: store::journal::Effect,
        outputs: &mut Vec<Output>,
    ) {
        match effect {
            store::journal::Effect::Disk(op) => outputs.push(Output::Journal(op)),
            store::journal::Effect::Opened(Ok(opened)) => {
                if opened.repaired > 0 {
                    let sentence = format!(
                        "the cluster's journal had {} damaged records, and they were written anew \
                         from their second copies",
                        opened.repaired
                    );
                    outputs.push(Output::Notice { level: NoticeLevel::Warning, sentence });
                }
                let (node, snapshot) = (self.settings.node, opened.snapshot.as_deref());
                let is_empty = snapshot.is_none() && opened.records.is_empty();
                let Some(founding) =
                    self.settings.founding.or((!is_empty).then_some(Founding::Elsewhere))
                else {
                    let sentence = "the cluster's journal in the data directory is empty, though \
                                    this node has served before; put back the journal that was \
                                    there";
                    return self.fail(sentence.into(), outputs);
                };
                match Voter::boot(node, founding, self.settings.seed, snapshot, &opened.records) {
                    Ok(voter) => {
                        self.map = voter.map();
                        self.voter = Some(voter);
                        self.learn_peers(now, outputs);
                        if self.waits_for_map() {
                            self.phase = Phase::Joining;
                        } else {
                            self.begin(now, outputs);
                        }
                    }
                    Err(error) => self.fail(
                        format!(
                            "the cluster's state in the data directory cannot be used: {error}"
                        ),
                        outputs,
                    ),
                }
            }
            // A new node has nothing yet, or was killed before it had.
            store::journal::Effect::Opened(Err(OpenError::Blank))
                if self.settings.founding.is_some() =>
            {
                let (cluster, node) = (self.settings.cluster, self.settings.node);
                let identity = store::journal::Identity { cluster, node };
                let (unix_s, bytes) = (self.settings.unix_s, self.settings.journal_bytes);
                let mut effects = Vec::new();
                self.journal = Journal::create(identity, unix_s, bytes, &mut effects);
                self.work.extend(effects.into_iter().map(Work::FromJournal));
            }
            store::journal::Effect::Opened(Err(error)) => {
                self.fail(format!("the cluster's journal cannot be opened: {error}"), outputs);
            }
            store::journal::Effect::Verified(Ok(0)) => {}
            store::journal::Effect::Verified(Ok(repaired)) => {
                let sentence = format!(
                    "{repaired} parts of the cluster's journal were damaged, and they were written \
                     anew from their second copies"
                );
                outputs.push(Output::Notice { level: NoticeLevel::Warning, sentence });
            }
            store::journal::Effect::Verified(Err(OpenError::Medium(error))) => {
                let failed = store::journal::AppendError::Failed(error).to_string();
                self.journal_failure = Some(failed.clone());
                outputs.push(Output::Notice { level: NoticeLevel::Error, sentence: failed });
            }
            store::journal::Effect::Verified(Err(_)) => {
                let sentence = "the cluster's journal was damaged in both copies, and it is \
                                written anew from the state in memory";
                let sentence = sentence.to_owned();
                outputs.push(Output::Notice { level: NoticeLevel::Warning, sentence });
                let mut effects = Vec::new();
                self.voter.as_mut().expect("the node serves").rewrite(now, &mut effects);
                self.work.extend(effects.into_iter().map(Work::FromVoter));
            }
            store::journal::Effect::Done { token, result } => {
                if let Err(error) = &result {
                    self.journal_failure = Some(error.to_string());
                } else {
                    self.journal_failure = None;
                }
                self.work.push_back(Work::Voter(cluster::Event::Persisted {
                    request: cluster::RequestNumber(token.0),
                    result: result.map_err(persist_error),
                }));
            }
        }
    }

    /// Whether the journal has time to be verified.
    pub(super) fn can_verify_journal(&self) -> bool {
        self.phase == Phase::Serving && self.journal.is_ready()
    }

    /// Lets the journal look for rot, when that is due.
    pub(super) fn verify_journal(&mut self, now: Time) {
        if self.can_verify_journal() && self.verify_journal_at <= now {
            self.verify_journal_at = now + JOURNAL_VERIFY_INTERVAL;
            let mut effects = Vec::new();
            self.journal.verify(&mut effects);
            self.work.extend(effects.into_iter().map(Work::FromJournal));
        }
    }

    /// The agreed state is known, as far as the journal has it. Among others that may be less than
    /// was agreed, and than the disks were told: a step that goes through the log brings the rest.
    /// What this node had attached is given back first then, for that is such a step.
    pub(super) fn begin(&mut self, now: Time, outputs: &mut Vec<Output>) {
        if self.is_among_others() {
            self.phase = Phase::Joining;
            self.has_released = true;
            self.boot(Command::ReleaseNode { node: self.settings.node });
        } else {
            self.begin_disks(now, outputs);
        }
    }

    /// All that was agreed is known: founds the cluster where that is wanted, and begins the disks.
    fn begin_disks(&mut self, now: Time, outputs: &mut Vec<Output>) {
        self.phase = Phase::Disks;
        if self.map.cluster().0 == 0 {
            self.boot(Command::CreateCluster {
                cluster: self.settings.cluster,
                partition_bits: self.settings.partition_bits,
                unix_s: self.settings.unix_s,
            });
        } else if self.map.cluster() != self.settings.cluster {
            let sentence = "the journal in the data directory belongs to another cluster; put \
                            back the journal that was there";
            return self.fail(sentence.into(), outputs);
        }
        let node = self.settings.node;
        if self.map.node(node).is_none() {
            if self.is_among_others() {
                let sentence = "this node was taken out of the cluster; to let it in again, start \
                                it with an empty data directory";
                return self.fail(sentence.into(), outputs);
            }
            self.boot(Command::AddNode { node, name: String::new() });
        }
        let addresses = self.settings.addresses.clone();
        if !addresses.is_empty() && self.map.addresses_of(node) != addresses {
            self.boot(Command::SetAddresses { node, addresses });
        }
        for settings in self.settings.disks.clone() {
            self.begin_own_disk(now, &settings, outputs);
        }
        self.release_former();
        self.advance_boot(outputs);
    }

    pub(super) fn begin_disk(&mut self, now: Time, settings: &DiskSettings) {
        let (id, mut effects) = (settings.disk, Vec::new());
        // A map that does not know the disk has seen none of its openings.
        let known = self.map.disk(id).map_or(Incarnation(0), |disk| disk.incarnation);
        let disk = Disk::begin(now, &self.settings, settings, Some(known), &mut effects);
        self.disks.insert(id, disk);
        self.work.extend(effects.into_iter().map(|effect| Work::FromStore(id, effect)));
    }

    /// Whatever this node had attached in a former life has no session any more. Not said before
    /// every disk is open: a start that is refused leaves the journal as it was.
    fn release_former(&mut self) {
        let is_due = self.phase == Phase::Disks && self.disks.values().all(Disk::is_settled);
        if is_due && !std::mem::replace(&mut self.has_released, true) {
            self.boot(Command::ReleaseNode { node: self.settings.node });
        }
    }

    /// Proposes one step of starting.
    pub(super) fn boot(&mut self, command: Command) {
        self.boot_commands += 1;
        let purpose = Purpose::Boot(Box::new(command.clone()));
        self.work.push_back(Work::Propose(command, purpose));
    }

    /// After each step of starting: serves once all are done.
    pub(super) fn advance_boot(&mut self, outputs: &mut Vec<Output>) {
        if self.phase == Phase::Joining && self.has_released && self.boot_commands == 0 {
            return self.begin_disks(self.present, outputs);
        }
        if self.phase != Phase::Disks || self.boot_commands > 0 {
            return;
        }
        let is_ready = |disk: &Disk| disk.is_agreed || disk.failure().is_some();
        if !self.has_released || !self.disks.values().all(is_ready) {
            return;
        }
        let agreed = self.disks.iter().filter(|(_, disk)| disk.is_agreed);
        let ids: Vec<DiskId> = agreed.map(|(id, _)| *id).collect();
        for id in &ids {
            if let Err(sentence) = self.drop_deleted_layers(*id) {
                return self.fail(sentence, outputs);
            }
        }
        // Only now: a map that is refused must not become the oldest one that is accepted.
        self.noting = ids.iter().copied().collect();
        self.work.extend(ids.into_iter().map(|id| Work::Store(id, store::Event::Agreed)));
        if self.noting.is_empty() {
            self.begin_serving(outputs);
        }
    }

    /// The disk remembers that its opening was agreed.
    pub(super) fn agreed_noted(&mut self, id: DiskId, outputs: &mut Vec<Output>) {
        self.noting.remove(&id);
        if self.phase == Phase::Disks && self.noting.is_empty() {
            self.begin_serving(outputs);
        }
        let disk = self.disks.get_mut(&id).expect("it speaks");
        if std::mem::take(&mut disk.is_added) {
            outputs.push(Output::DiskAdded { disk: id, result: Ok(()) });
        }
        // One that was kept because it was the only one need not be any more.
        self.let_go_of_removed(outputs);
    }

    fn begin_serving(&mut self, outputs: &mut Vec<Output>) {
        self.phase = Phase::Serving;
        outputs.push(Output::Ready);
        self.trash.is_stale = true;
        self.begin_groups();
        self.attend_all();
        self.begin_schedules();
        for id in self.disks.keys().copied().collect::<Vec<_>>() {
            self.weigh(id);
        }
        self.begin_members();
        self.let_go_of_removed(outputs);
    }

    /// The map is the authority on which layers exist: what a disk missed is dropped now. But a
    /// layer that was never issued means that the map is older than the disk: then nothing is.
    fn drop_deleted_layers(&mut self, id: DiskId) -> Result<(), String> {
        let (mut deleted, mut unknown) = (Vec::new(), 0);
        let disk = &self.disks[&id];
        let store = disk.store().expect("its opening is agreed, so it is open");
        for (lineage, layer, fate) in self.map.layer_fates(&store.layers()) {
            match fate {
                LayerFate::Live => {}
                LayerFate::Deleted => deleted.push((lineage, layer)),
                // Only those knew it that were lost: kept, and said so.
                LayerFate::Unknown => unknown += 1,
                LayerFate::NeverIssued => {
                    return Err(format!(
                        "disk {} holds layer {layer} of a volume that the journal in the data \
                         directory does not know yet: an old copy of the journal was put back; \
                         put the newest one back",
                        disk.settings.path
                    ));
                }
            }
        }
        if unknown > 0 {
            let path = disk.settings.path.clone();
            self.era.unknown_layers.insert(id, (path, unknown));
        }
        // The newest first: a layer without children goes whole, without being merged.
        deleted.sort_unstable_by_key(|&(_, layer)| std::cmp::Reverse(layer));
        for (lineage, layer) in deleted {
            self.work.push_back(Work::Store(id, store::Event::DropLayer { lineage, layer }));
        }
        Ok(())
    }

    /// The node cannot serve.
    pub(super) fn fail(&mut self, sentence: String, outputs: &mut Vec<Output>) {
        if self.phase != Phase::Ended {
            self.phase = Phase::Ended;
            outputs.push(Output::Failed(sentence));
        }
    }

    /// What a store found while it opened.
    pub(super) fn disk_opened(&mut self, now: Time, id: DiskId, opened: &store::Opened) {
        let entry = self.disks.get_mut(&id).expect("it speaks");
        entry.incarnation = opened.incarnation;
        self.propose_opening(id);
        self.tell_openings(now, None);
        self.release_former();
    }

    fn propose_opening(&mut self, id: DiskId) {
        let (node, entry) = (self.settings.node, &self.disks[&id]);
        let (incarnation, bytes) = (entry.incarnation, self.capacity_bytes(id));
        if self.map.disk(id).is_none() {
            let command = Command::AddDisk { disk: id, node, bytes };
            self.work.push_back(Work::Propose(command, Purpose::DiskKnown));
        }
        let command = Command::OpenDisk { disk: id, node, incarnation };
        self.work.push_back(Work::Propose(command, Purpose::DiskOpened(id)));
    }

    /// The end of the proposal that says that a disk was opened.
    pub(super) fn opening_agreed(
        &mut self,
        id: DiskId,
        result: Result<Answer, Refusal>,
        outputs: &mut Vec<Output>,
    ) {
        // One that was refused meanwhile is forgotten.
        let Some(disk) = self.disks.get_mut(&id) else { return };
        let is_listed = self.map.disk(id).is_some_and(|d| d.incarnation == disk.incarnation);
        match result {
            Err(Refusal::OutcomeUnknown) if !is_listed => return self.propose_opening(id),
            Err(refusal) if !is_listed => {
                return self.disk_refused(id, &refusal.to_string(), outputs);
            }
            Ok(_) | Err(_) => disk.is_agreed = true,
        }
        match self.phase {
            Phase::Disks => self.advance_boot(outputs),
            Phase::Serving => match self.drop_deleted_layers(id) {
                Ok(()) => {
                    self.noting.insert(id);
                    self.work.push_back(Work::Store(id, store::Event::Agreed));
                    self.weigh(id);
                }
                Err(sentence) => self.disk_refused(id, &sentence, outputs),
            },
            _ => {}
        }
    }

    /// How much a disk can hold, as far as it is known.
    fn capacity_bytes(&self, id: DiskId) -> u64 {
        report::disk(&self.map, &self.disks[&id]).capacity_bytes.max(1)
    }

    /// Has a disk's size agreed, if it is quite another than is agreed.
    pub(super) fn weigh(&mut self, id: DiskId) {
        let is_open = self.disks.get(&id).is_some_and(|disk| disk.is_agreed);
        let Some(known) = self.map.disk(id).filter(|_| is_open) else { return };
        let (bytes, agreed) = (self.capacity_bytes(id), known.bytes);
        let is_news = bytes.abs_diff(agreed) > agreed / WEIGHT_CHANGE_DIVISOR;
        if is_news && self.phase == Phase::Serving && self.weighing.insert(id) {
            let command = Command::SetWeight { disk: id, bytes };
            self.work.push_back(Work::Propose(command, Purpose::DiskWeight(id)));
        }
    }

    /// There is nothing on the medium yet: makes it a disk, where that is wanted.
    pub(super) fn disk_blank(&mut self, id: DiskId, outputs: &mut Vec<Output>) {
        // What was agreed to be open has been a disk, whatever is said of the medium now.
        let has_been = self.map.disk(id).is_some_and(|known| known.incarnation > Incarnation(0));
        let disk = self.disks.get_mut(&id).expect("it speaks");
        if !disk.settings.format || has_been {
            return self.disk_refused(id, &store::OpenError::Blank.to_string(), outputs);
        }
        let mut ops = Vec::new();
        let result = disk.format(&self.settings, &mut ops);
        self.issue(id, ops, outputs);
        if let Err(error) = result {
            self.disk_refused(id, &error.to_string(), outputs);
        }
    }

    /// A disk cannot be used. Without its only disk a node does not start; with others it does.
    pub(super) fn disk_refused(&mut self, id: DiskId, sentence: &str, outputs: &mut Vec<Output>) {
        let sentence = format!("{}: {sentence}", entry_path(&self.disks, id));
        let is_added = self.disks[&id].is_added;
        if !is_added && self.phase != Phase::Serving && self.is_only_disk(id) {
            return self.fail(sentence, outputs);
        }
        self.put_out(id, sentence, outputs);
        self.release_former();
        self.advance_boot(outputs);
    }

    /// After each step of stopping: sessions first, then the disks, then the end.
    pub(super) fn advance_stop(&mut self, now: Time, outputs: &mut Vec<Output>) {
        if self.phase == Phase::ClosingSessions && self.held.is_empty() {
            self.phase = Phase::ClosingDisks;
            let open =
                |disk: &Disk| disk.store().is_some() && disk.is_settled() && !disk.is_leaving;
            let open = self.disks.iter().filter(|(_, disk)| open(disk));
            self.closing = open.map(|(id, _)| *id).collect();
            let close = |disk: &DiskId| Work::Store(*disk, store::Event::Close);
            self.work.extend(self.closing.iter().map(close));
        }
        if self.phase == Phase::ClosingDisks && self.closing.is_empty() {
            self.phase = Phase::Ended;
            self.drop_all_peers(now, outputs);
            outputs.push(Output::Stopped);
        }
    }
}

/// What the journal's failure means to the voter.
fn persist_error(error: store::journal::AppendError) -> cluster::PersistError {
    match error {
        store::journal::AppendError::NoSpace => cluster::PersistError::NoSpace,
        other => cluster::PersistError::Failed(other.to_string()),
    }
}
