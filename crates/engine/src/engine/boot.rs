//! The start and the end of a node: the journal, the founding of a cluster, the disks; and back.

use super::{Engine, JOURNAL_VERIFY_INTERVAL, Phase, Purpose, Work, entry_path};
use crate::{NoticeLevel, Output, disks::Disk};
use cluster::{Command, Founding, LayerFate, Voter};
use proto::{DiskId, Incarnation, Time, limits::PARTITIONS_DEFAULT};
use store::journal::{Journal, OpenError};

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
                // Only elections are drawn, and who is alone needs none.
                let seed = node.0 as u64;
                match Voter::boot(node, Founding::Here, seed, snapshot, &opened.records) {
                    Ok(voter) if !voter.is_alone() => {
                        let sentence = "the cluster has other members, and this version cannot \
                                        reach them; run the sheep that let them in";
                        self.fail(sentence.into(), outputs);
                    }
                    Ok(voter) => {
                        self.map = voter.map();
                        self.voter = Some(voter);
                        self.begin_disks(now, outputs);
                    }
                    Err(error) => self.fail(
                        format!(
                            "the cluster's state in the data directory cannot be used: {error}"
                        ),
                        outputs,
                    ),
                }
            }
            // A founding node has nothing yet, or was killed before it had.
            store::journal::Effect::Opened(Err(OpenError::Blank)) if self.settings.found => {
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

    /// The agreed state is known: founds the cluster where that is wanted, and begins the disks.
    fn begin_disks(&mut self, now: Time, outputs: &mut Vec<Output>) {
        self.phase = Phase::Disks;
        if self.map.cluster().0 == 0 {
            self.boot(Command::CreateCluster {
                cluster: self.settings.cluster,
                partition_bits: PARTITIONS_DEFAULT.trailing_zeros() as u8,
                unix_s: self.settings.unix_s,
            });
        } else if self.map.cluster() != self.settings.cluster {
            let sentence = "the journal in the data directory belongs to another cluster; put \
                            back the journal that was there";
            return self.fail(sentence.into(), outputs);
        }
        let node = self.settings.node;
        if self.map.node(node).is_none() {
            self.boot(Command::AddNode { node, name: String::new() });
        }
        for settings in self.settings.disks.clone() {
            let mut effects = Vec::new();
            // A map that does not know the disk has seen none of its openings.
            let known =
                self.map.disk(settings.disk).map_or(Incarnation(0), |disk| disk.incarnation);
            let disk = Disk::begin(now, &self.settings, &settings, Some(known), &mut effects);
            self.disks.insert(settings.disk, disk);
            let id = settings.disk;
            self.work.extend(effects.into_iter().map(|effect| Work::FromStore(id, effect)));
        }
    }

    /// Proposes one step of starting.
    pub(super) fn boot(&mut self, command: Command) {
        self.boot_commands += 1;
        self.work.push_back(Work::Propose(command, Purpose::Boot));
    }

    /// After each step of starting: serves once all are done.
    pub(super) fn advance_boot(&mut self, outputs: &mut Vec<Output>) {
        if self.phase != Phase::Disks || self.boot_commands > 0 {
            return;
        }
        if self.disks.values().any(|disk| disk.incarnation == Incarnation(0)) {
            return;
        }
        if let Err(sentence) = self.drop_deleted_layers() {
            return self.fail(sentence, outputs);
        }
        // Only now: a map that is refused must not become the oldest one that is accepted.
        let ids: Vec<DiskId> = self.disks.keys().copied().collect();
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
    }

    fn begin_serving(&mut self, outputs: &mut Vec<Output>) {
        self.phase = Phase::Serving;
        outputs.push(Output::Ready);
        self.trash.is_stale = true;
        self.begin_groups();
        self.attend_all();
        self.begin_schedules();
    }

    /// The map is the authority on which layers exist: what a disk missed is dropped now. But a
    /// layer that was never issued means that the map is older than the disk: then nothing is.
    fn drop_deleted_layers(&mut self) -> Result<(), String> {
        let mut deleted = Vec::new();
        for (id, disk) in &self.disks {
            let store = disk.store().expect("it has an incarnation, so it is open");
            for (lineage, layer, fate) in self.map.layer_fates(&store.layers()) {
                match fate {
                    LayerFate::Live => {}
                    LayerFate::Deleted => deleted.push((*id, lineage, layer)),
                    LayerFate::NeverIssued => {
                        return Err(format!(
                            "disk {} holds layer {layer} of a volume that the journal in the data \
                             directory does not know yet: an old copy of the journal was put \
                             back; put the newest one back",
                            disk.settings.path
                        ));
                    }
                }
            }
        }
        // The newest first: a layer without children goes whole, without being merged.
        deleted.sort_unstable_by_key(|&(_, _, layer)| std::cmp::Reverse(layer));
        for (disk, lineage, layer) in deleted {
            self.work.push_back(Work::Store(disk, store::Event::DropLayer { lineage, layer }));
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
    pub(super) fn disk_opened(&mut self, id: DiskId, opened: &store::Opened) {
        let entry = self.disks.get_mut(&id).expect("it speaks");
        entry.incarnation = opened.incarnation;
        self.boot(Command::OpenDisk {
            disk: id,
            node: self.settings.node,
            incarnation: opened.incarnation,
        });
        // Whatever this node had attached in a former life has no session any more. Not said
        // before every disk is open: a start that is refused leaves the journal as it was.
        if self.disks.values().all(|disk| disk.incarnation != Incarnation(0)) {
            self.boot(Command::ReleaseNode { node: self.settings.node });
        }
    }

    /// There is nothing on the medium yet: makes it a disk, where that is wanted.
    pub(super) fn disk_blank(&mut self, id: DiskId, outputs: &mut Vec<Output>) {
        let disk = self.disks.get_mut(&id).expect("it speaks");
        if !disk.settings.format {
            return self.disk_refused(id, &store::OpenError::Blank, outputs);
        }
        let mut ops = Vec::new();
        let result = disk.format(&self.settings, &mut ops);
        self.issue(id, ops, outputs);
        if let Err(error) = result {
            self.disk_refused(id, &error, outputs);
        }
    }

    pub(super) fn disk_refused(
        &mut self,
        id: DiskId,
        error: &store::OpenError,
        outputs: &mut Vec<Output>,
    ) {
        let path = entry_path(&self.disks, id);
        self.fail(format!("{path}: {error}"), outputs);
    }

    /// After each step of stopping: sessions first, then the disks, then the end.
    pub(super) fn advance_stop(&mut self, outputs: &mut Vec<Output>) {
        if self.phase == Phase::ClosingSessions && self.held.is_empty() {
            self.phase = Phase::ClosingDisks;
            self.closing = self.disks.keys().copied().collect();
            let close = |disk: &DiskId| Work::Store(*disk, store::Event::Close);
            self.work.extend(self.closing.iter().map(close));
        }
        if self.phase == Phase::ClosingDisks && self.closing.is_empty() {
            self.phase = Phase::Ended;
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
