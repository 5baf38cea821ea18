//! Disks that come and go while the node runs. What waits for media or for the record is done by a
//! thread of its own, one thing after the other; this thread only takes what is open, and tells the
//! engine.

use super::DataThread;
use crate::{
    asker::{Asker, Reply},
    directory::{DataDirectory, DiskRecord, NewDisk, unmake_blank},
    disk::Medium,
};
use engine::{
    Input,
    admin::{AdminError, AdminErrorKind, AdminReply, DiskAddedReport},
};
use proto::{DiskId, Time};
use std::{
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        mpsc::{Sender, channel},
    },
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The data directory, whose record several threads write.
pub type SharedDirectory = Arc<Mutex<DataDirectory>>;

/// Something that may wait for a medium.
type Job = Box<dyn FnOnce() + Send>;

/// How the disks of this node are driven.
#[derive(Clone, Copy, Debug)]
pub struct DiskOptions {
    /// How much of each may be used, unless another limit was said of it.
    pub limit_bytes: Option<u64>,
    /// Bytes for cached map pages.
    pub map_cache_bytes: usize,
    /// Scrub rate in bytes a second; 0 is off.
    pub scrub_bytes_per_s: u64,
    /// The log's size for a new disk.
    pub log_bytes: Option<u64>,
    /// Past the page cache.
    pub direct: bool,
}

impl DiskOptions {
    /// What the engine is to know of a disk, whose medium is open or is not, and why.
    pub fn settings(
        &self,
        disk: &DiskRecord,
        path: &Path,
        medium: Result<&Medium, String>,
    ) -> engine::DiskSettings {
        engine::DiskSettings {
            disk: disk.disk,
            format: disk.making,
            kind: disk.kind,
            medium_bytes: medium.as_ref().map_or(0, |medium| medium.bytes()),
            limit_bytes: disk.limit_bytes.or(self.limit_bytes),
            map_cache_bytes: self.map_cache_bytes,
            scrub_bytes_per_s: self.scrub_bytes_per_s,
            log_bytes: self.log_bytes,
            path: path.display().to_string(),
            refusal: medium.err(),
        }
    }
}

/// A disk whose medium is there and open, and who waits for it.
#[derive(Debug)]
pub struct Made {
    new: NewDisk,
    medium: Medium,
    waiting: Waiting,
}

/// Who waits until a disk is added. Only one is added at a time.
#[derive(Debug)]
struct Waiting {
    reply: Reply,
    _turn: OwnedSemaphorePermit,
}

impl Waiting {
    fn refuse(self, sentence: String) {
        let kind = AdminErrorKind::Conflict;
        self.reply.send(Err(AdminError { kind, sentence }));
    }
}

/// The part of the data thread that is about its disks coming and going.
pub(super) struct DiskChanges {
    directory: SharedDirectory,
    asker: Asker,
    options: DiskOptions,
    turn: Arc<Semaphore>,
    /// The disk that the engine was given, and has not answered about.
    adding: Option<(NewDisk, Waiting)>,
    /// To the thread that does what may wait, once there is one.
    jobs: Option<Sender<Job>>,
}

impl DiskChanges {
    pub(super) fn new(
        directory: SharedDirectory,
        asker: Asker,
        options: DiskOptions,
    ) -> DiskChanges {
        let turn = Arc::new(Semaphore::new(1));
        DiskChanges { directory, asker, options, turn, adding: None, jobs: None }
    }

    /// Has something done that may wait. If there can be no thread for it, it comes back.
    fn begin(&mut self, job: Job) -> Result<(), (Job, std::io::Error)> {
        if self.jobs.is_none() {
            let (sender, jobs) = channel::<Job>();
            let run = move || jobs.into_iter().for_each(|job| job());
            match std::thread::Builder::new().name("disks".to_string()).spawn(run) {
                Ok(_) => self.jobs = Some(sender),
                Err(error) => return Err((job, error)),
            }
        }
        let sent = self.jobs.as_ref().expect("made above").send(job);
        sent.expect("it takes jobs as long as there is who sends them");
        Ok(())
    }

    /// The record is to say what is so. If it does not, the next start finds out.
    fn note(&mut self, job: impl FnOnce(&SharedDirectory) + Send + 'static) {
        let directory = Arc::clone(&self.directory);
        if let Err((_, error)) = self.begin(Box::new(move || job(&directory))) {
            tracing::warn!(
                "cannot start a thread: {error}; the record of this node's disks is put right at \
                 the next start of sheep"
            );
        }
    }
}

/// The data directory, for as long as its record is changed.
pub fn lock(directory: &SharedDirectory) -> MutexGuard<'_, DataDirectory> {
    // No thread panics with the lock held but one that ends the process.
    directory.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Makes and opens the medium of one more disk. If that fails, nothing is left of it.
fn make(
    directory: &SharedDirectory,
    (path, limit_bytes): (&Path, Option<u64>),
    direct: bool,
) -> Result<(NewDisk, Medium), String> {
    let (data, record) = {
        let directory = lock(directory);
        (directory.path().to_path_buf(), directory.record().clone())
    };
    let new = NewDisk::vet(&data, &record, path, limit_bytes)?;
    lock(directory).begin_disk(&new)?;
    match new.make(direct) {
        Ok(medium) => Ok((new, medium)),
        Err(sentence) => {
            take_back(directory, &new);
            Err(sentence)
        }
    }
}

/// Nothing is left of a disk that was not added.
fn take_back(directory: &SharedDirectory, new: &NewDisk) {
    new.unmake();
    if let Err(sentence) = lock(directory).forget_disk(new.disk().disk) {
        tracing::warn!("{sentence}; the disk that was not added is forgotten at the next start");
    }
}

/// The end of a disk's addition: the record says it, then who waits is told.
fn end(directory: &SharedDirectory, new: &NewDisk, waiting: Waiting, result: Result<(), String>) {
    if let Err(sentence) = result {
        take_back(directory, new);
        return waiting.refuse(sentence);
    }
    let disk = new.disk().disk;
    finish(directory, disk);
    let path = new.disk().path.display().to_string();
    tracing::info!("{path}: disk {disk} was added");
    let report = DiskAddedReport { disk, path, warning: new.warning().map(str::to_string) };
    waiting.reply.send(Ok(AdminReply::DiskAdded(report)));
}

fn finish(directory: &SharedDirectory, disk: DiskId) {
    if let Err(sentence) = lock(directory).finish_disk(disk) {
        tracing::warn!("{sentence}; the disk is used, and the next start of sheep notes it");
    }
}

/// The end of what was begun before the program ended the last time.
fn end_former(directory: &SharedDirectory, disk: DiskId, result: Result<(), String>) {
    let Err(sentence) = result else { return finish(directory, disk) };
    let record = lock(directory).record().clone();
    let Some(known) = record.disks.iter().find(|known| known.disk == disk) else { return };
    tracing::warn!(
        "disk {disk} was being added when sheep ended and is given up ({sentence}); what is in {} \
         is left there: if it is still wanted, clear it and add it again with `dog disk add`",
        known.path.display()
    );
    unmake_blank(known);
    if let Err(sentence) = lock(directory).forget_disk(disk) {
        tracing::warn!("{sentence}; the disk is not used, and given up again at the next start");
    }
}

impl DataThread {
    /// An administrator has one more disk for this node.
    pub(super) fn begin_adding(&mut self, path: PathBuf, limit_bytes: Option<u64>, reply: Reply) {
        let refuse = |reply: Reply, kind, sentence: String| {
            reply.send(Err(AdminError { kind, sentence }));
        };
        let vetted = match self.stopping {
            true => Err("the node is stopping; ask again when it runs".to_string()),
            false => self.engine.vet_one_more_disk(),
        };
        if let Err(sentence) = vetted {
            return refuse(reply, AdminErrorKind::Unavailable, sentence);
        }
        let changes = &mut self.disk_changes;
        let Ok(turn) = Arc::clone(&changes.turn).try_acquire_owned() else {
            let sentence = "another disk is being added; add this one when that is done";
            return refuse(reply, AdminErrorKind::Conflict, sentence.to_string());
        };
        let waiting = Arc::new(Mutex::new(Some(Waiting { reply, _turn: turn })));
        let (directory, asker) = (Arc::clone(&changes.directory), changes.asker.clone());
        let direct = changes.options.direct;
        let taken = Arc::clone(&waiting);
        let job = move || {
            let Some(waiting) = take(&taken) else { return };
            match make(&directory, (&path, limit_bytes), direct) {
                // If the node has ended meanwhile, the next start goes on with it.
                Ok((new, medium)) => asker.hand_over(Made { new, medium, waiting }),
                Err(sentence) => waiting.refuse(sentence),
            }
        };
        if let Err((_, error)) = changes.begin(Box::new(job))
            && let Some(waiting) = take(&waiting)
        {
            waiting.refuse(format!("cannot start a thread: {error}; free some memory"));
        }
    }

    /// The medium of one more disk is open: the engine makes it a disk.
    pub(super) fn take_made(&mut self, now: Time, made: Made) {
        let Made { new, medium, waiting } = made;
        let disk = new.disk();
        let settings = self.disk_changes.options.settings(disk, &disk.path, Ok(&medium));
        let disk = disk.disk;
        self.disk_changes.adding = Some((new, waiting));
        match self.driver.add(medium) {
            Ok(number) => {
                if self.disks.len() < number {
                    self.disks.push(None);
                }
                self.disks[number - 1] = Some(disk);
                self.tell(now, Input::AddDisk(Box::new(settings)));
                self.tell_space(now);
            }
            Err(sentence) => self.disk_added(disk, Err(sentence)),
        }
    }

    /// The engine has one more disk, or does not take it.
    pub(super) fn disk_added(&mut self, disk: DiskId, result: Result<(), String>) {
        if result.is_err() {
            self.close_disk(disk);
        }
        match self.disk_changes.adding.take_if(|(new, _)| new.disk().disk == disk) {
            Some((new, waiting)) => {
                self.disk_changes.note(move |directory| end(directory, &new, waiting, result));
            }
            None => self.disk_changes.note(move |directory| end_former(directory, disk, result)),
        }
    }

    /// A disk was taken out of the cluster.
    pub(super) fn disk_gone(&mut self, disk: DiskId) {
        self.close_disk(disk);
        self.disk_changes.note(move |directory| {
            if let Err(sentence) = lock(directory).forget_disk(disk) {
                tracing::warn!("{sentence}; the disk is not used, and forgotten at the next start");
            }
        });
    }

    /// Closes the medium of a disk, once what was begun on it has ended.
    fn close_disk(&mut self, disk: DiskId) {
        // One that could not be opened has none.
        if let Some(at) = self.disks.iter().position(|known| *known == Some(disk)) {
            self.disks[at] = None;
            self.driver.remove(1 + at);
        }
    }
}

fn take(waiting: &Mutex<Option<Waiting>>) -> Option<Waiting> {
    waiting.lock().unwrap_or_else(PoisonError::into_inner).take()
}
