//! The data directory: identity, lock, and the places of disk, journal and sockets.
//!
//! It is made in an order that a crash can stop anywhere: first the record, marked as founding,
//! then the media; the mark goes when the engine serves for the first time. A directory whose
//! record still has the mark never served anything, and its media are made anew.

mod adding;
mod device;
mod record;

pub use adding::{NewDisk, unmake_blank};
pub use record::{DiskRecord, Record, replace};

use crate::{api, disk::patiently};
use proto::{ClusterId, DiskId, NodeId};
use record::RecordError;
use rustix::{
    fs::{FlockOperation, flock},
    io::Errno,
    rand::{GetRandomFlags, getrandom},
};
use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::Duration,
};
use store::MediumKind;

/// The name of the node's record.
const RECORD: &str = "node";
/// The name of the lock.
const LOCK: &str = "lock";
/// What to do about a file system that cannot be written.
const READ_ONLY: &str =
    "its file system is mounted read only; mount it writable (see `dmesg` for why)";
/// The name of the disk's file.
const DISK: &str = "disk";
/// The name of the journal's file.
const JOURNAL: &str = "cluster";
/// Names that do not make a directory somebody else's: leftovers of ours, and what file systems
/// put into their root.
const HARMLESS: [&str; 7] = [
    LOCK,
    "node.new",
    "nbd.sock",
    "admin.sock",
    "lost+found",
    IDENTITY,
    // Written before the record by a machine that is joining.
    "identity.new",
];
/// The name of the file with the node's keys.
const IDENTITY: &str = "identity";
/// Everybody may pass through, so that QEMU as another user reaches the NBD socket; only the owner
/// may list.
const DIRECTORY_MODE: u32 = 0o711;
/// Longest path of a data directory, in bytes: that of a socket in it must fit into 107.
const PATH_BYTES_MAX: usize = 107 - "/admin.sock".len();

/// A data directory that is ours: locked, and its record read.
#[derive(Debug)]
pub struct DataDirectory {
    path: PathBuf,
    record: Record,
    /// Whether this run made the directory itself.
    made: bool,
    /// Whether the record on disk names a device otherwise.
    renamed: bool,
    /// Held as long as it is open.
    _lock: File,
}

impl DataDirectory {
    /// As [`DataDirectory::open_as`], where nothing is said of a witness.
    #[cfg(test)]
    pub fn open(path: &Path, device: Option<&Path>) -> Result<DataDirectory, String> {
        DataDirectory::open_as(path, device, None)
    }

    /// Opens a data directory, or begins a new one where there is none. `device` is the raw device
    /// that was asked for, `witness` whether the node is to be one; nothing: what it is already, or
    /// else not. The error is one sentence with cause and remedy; nothing was changed.
    pub fn open_as(
        path: &Path,
        device: Option<&Path>,
        witness: Option<bool>,
    ) -> Result<DataDirectory, String> {
        if witness == Some(true) && device.is_some() {
            return Err("--witness is for a node that stores nothing, and --disk names where to \
                        store; leave out one of the two"
                .to_string());
        }
        let path = std::path::absolute(path)
            .map_err(|error| format!("{} is no path: {error}", path.display()))?;
        if path.as_os_str().len() > PATH_BYTES_MAX {
            return Err(format!(
                "the path {} is too long for sockets in it; choose one of at most {PATH_BYTES_MAX} \
                 bytes for --data",
                path.display()
            ));
        }
        let made = make(&path)?;
        let opened = DataDirectory::open_made(&path, device, witness, made);
        if opened.is_err() && made {
            // Only what is empty goes.
            let _ = fs::remove_file(path.join(LOCK));
            let _ = fs::remove_dir(&path);
        }
        opened
    }

    fn open_made(
        path: &Path,
        device: Option<&Path>,
        witness: Option<bool>,
        made: bool,
    ) -> Result<DataDirectory, String> {
        // Looked at before the lock is made: nothing is put into somebody else's directory.
        if !path.join(RECORD).exists() {
            check_empty(path)?;
        }
        let lock = lock(path)?;
        let (record, renamed) = match Record::read(&path.join(RECORD)) {
            Ok(found) => {
                let record = retake(path, found.clone(), device, witness)?;
                let renamed = record != found;
                (record, renamed)
            }
            Err(RecordError::Missing) => {
                check_empty(path)?;
                (new_record(device, witness == Some(true))?, false)
            }
            Err(RecordError::Unusable(what)) => {
                return Err(format!(
                    "{} {what}; restore it from a backup, or start with another data directory",
                    path.join(RECORD).display()
                ));
            }
        };
        Ok(DataDirectory { path: path.to_path_buf(), record, made, renamed, _lock: lock })
    }

    /// Makes the record durable and the media blank, if the node is being founded. Must come
    /// before the media are opened.
    pub fn begin(&self) -> Result<(), String> {
        if !self.record.founding {
            return Ok(());
        }
        let failed = |error: io::Error| {
            format!(
                "cannot write to {}: {error}; free space, or choose another data directory",
                self.path.display()
            )
        };
        self.record.write(&self.path.join(RECORD)).map_err(failed)?;
        let mut files = vec![self.journal()];
        if self.record.is_witness() {
            // Of when it was not to be one.
            files.push(self.path.join(DISK));
        }
        for disk in &self.record.disks {
            match disk.kind {
                MediumKind::File => files.push(self.disk(disk)),
                MediumKind::Device => device::erase_half_made(&disk.path, &self.record, disk)?,
            }
        }
        for file in files {
            // Left by an attempt that was cut off: nothing was ever served from it.
            match fs::remove_file(file) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
                _ => {}
            }
        }
        Ok(())
    }

    /// The node serves: from now on the media are never made anew, and a device is looked for
    /// where it was found now.
    pub fn finish(&mut self) -> io::Result<()> {
        if self.record.founding || self.renamed || !self.record.keyed {
            // The media's names must not be forgotten by a power cut.
            File::open(&self.path)?.sync_all()?;
            let record = Record { founding: false, keyed: true, ..self.record.clone() };
            record.write(&self.path.join(RECORD))?;
            self.record = record;
            self.renamed = false;
        }
        Ok(())
    }

    /// There are other nodes: from now on this one is looked for where it listens. Must come after
    /// [`DataDirectory::finish`].
    pub fn note_others(&mut self) -> io::Result<()> {
        assert!(!self.record.founding, "a node serves before it has others");
        if !self.record.others {
            let record = Record { others: true, ..self.record.clone() };
            record.write(&self.path.join(RECORD))?;
            self.record = record;
        }
        Ok(())
    }

    /// Takes back what was made, if the node was being founded and could not be.
    pub fn abandon(&self) {
        if !self.record.founding {
            return;
        }
        let names = [JOURNAL, DISK, RECORD, LOCK].map(|name| self.path.join(name));
        for path in names.into_iter().chain([self.nbd_socket(), self.admin_socket()]) {
            let _ = fs::remove_file(path);
        }
        if !self.record.joined {
            // Who was let in, or may have been, keeps what it was let in as.
            let _ = fs::remove_file(self.identity());
        }
        if self.made {
            let _ = fs::remove_dir(&self.path);
        }
    }

    /// The node is to be this one of this cluster, which it joins. Must come before
    /// [`DataDirectory::begin`].
    ///
    /// # Panics
    /// If it has served already: a bug of the caller.
    pub fn become_node(&mut self, cluster: ClusterId, node: NodeId) {
        assert!(self.record.founding, "a node that has served stays who it is");
        (self.record.cluster, self.record.node, self.record.joined) = (cluster, node, true);
    }

    /// Where its keys are.
    pub fn identity(&self) -> PathBuf {
        self.path.join(IDENTITY)
    }

    /// Who the node is.
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// Where it is: an absolute path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the journal is.
    pub fn journal(&self) -> PathBuf {
        self.path.join(JOURNAL)
    }

    /// Where a disk is.
    pub fn disk(&self, disk: &DiskRecord) -> PathBuf {
        self.path.join(&disk.path)
    }

    /// Where clients attach volumes.
    pub fn nbd_socket(&self) -> PathBuf {
        api::nbd_socket(&self.path)
    }

    /// Where administrators ask.
    pub fn admin_socket(&self) -> PathBuf {
        api::admin_socket(&self.path)
    }
}

/// Makes the directory if it is not there. Returns whether it was made.
fn make(path: &Path) -> Result<bool, String> {
    let failed = |error: io::Error| {
        let hint = match error.kind() {
            io::ErrorKind::PermissionDenied => "run sheep as a user who may, or choose another",
            io::ErrorKind::ReadOnlyFilesystem => READ_ONLY,
            _ => "choose another directory",
        };
        format!("cannot make the data directory {}: {error}; {hint}", path.display())
    };
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(failed)?;
    }
    match DirBuilder::new().mode(DIRECTORY_MODE).create(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(false),
        Err(error) => Err(failed(error)),
    }
}

/// Refuses a directory that is not empty although it has no record.
fn check_empty(path: &Path) -> Result<(), String> {
    let shown = path.display();
    let failed = |error: io::Error| {
        format!(
            "cannot look into {shown}: {error}; run sheep as a \
                                             user who may"
        )
    };
    for entry in fs::read_dir(path).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        let name = name.to_string_lossy();
        if name == DISK || name == JOURNAL {
            return Err(format!(
                "{shown} holds `{name}` but the record `{RECORD}` that tells whose it is is \
                 missing; restore it from a backup, or start with another data directory"
            ));
        }
        if !HARMLESS.contains(&name.as_ref()) {
            return Err(format!(
                "{shown} is not empty (it holds `{name}`) and no data directory; choose one that \
                 is empty or does not exist yet"
            ));
        }
    }
    Ok(())
}

/// How long the lock is waited for: that of a process that was killed just now is held until the
/// kernel has taken the process apart.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);

/// Takes the lock of the directory for as long as the file is open.
fn lock(path: &Path) -> Result<File, String> {
    let name = path.join(LOCK);
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&name)
        .map_err(|error| {
            format!("cannot open {}: {error}; {}", name.display(), lock_remedy(error.kind()))
        })?;
    let lock = || flock(&file, FlockOperation::NonBlockingLockExclusive);
    if let Err(error) = patiently(LOCK_PATIENCE, Errno::WOULDBLOCK, lock) {
        if error != Errno::WOULDBLOCK {
            return Err(format!("cannot lock {}: {error}", name.display()));
        }
        let mut holder = String::new();
        let _ = (&file).take(32).read_to_string(&mut holder);
        let holder = match holder.trim().parse::<u32>() {
            Ok(pid) => format!("process {pid}"),
            Err(_) => "another process".to_string(),
        };
        return Err(format!(
            "the data directory {} is already in use by {holder}; stop it first, or choose another \
             directory",
            path.display()
        ));
    }
    // For people, and for the sentence above. Nothing is decided by it.
    let written = file
        .set_len(0)
        .and_then(|()| file.seek(SeekFrom::Start(0)))
        .and_then(|_| writeln!(file, "{}", std::process::id()));
    written
        .map_err(|error| format!("cannot write {}: {error}; free some space", name.display()))?;
    Ok(file)
}

/// What to do when the lock cannot be opened.
fn lock_remedy(kind: io::ErrorKind) -> &'static str {
    match kind {
        io::ErrorKind::ReadOnlyFilesystem => READ_ONLY,
        io::ErrorKind::StorageFull => "free some space",
        _ => "run sheep as the user who owns it",
    }
}

/// The record of a node that is being made: on this device, in a file, or as a witness.
fn new_record(device: Option<&Path>, witness: bool) -> Result<Record, String> {
    let disks = if witness { Vec::new() } else { vec![new_disk(device)?] };
    Ok(Record {
        cluster: ClusterId(draw()?),
        node: NodeId(draw()?),
        founding: true,
        joined: false,
        keyed: false,
        others: false,
        disks,
    })
}

/// The disk of a node that is being made.
fn new_disk(device: Option<&Path>) -> Result<DiskRecord, String> {
    let (kind, path) = match device {
        None => (MediumKind::File, DISK.into()),
        Some(path) => {
            let path = writable_name(path)?;
            device::check_blank(&path)?;
            (MediumKind::Device, path)
        }
    };
    Ok(DiskRecord { disk: DiskId(draw()?), kind, path, making: false, limit_bytes: None })
}

/// The record of a node that was made before, with the device that is asked for now.
fn retake(
    path: &Path,
    mut record: Record,
    device: Option<&Path>,
    witness: Option<bool>,
) -> Result<Record, String> {
    if record.founding {
        // Nothing was served yet: only the identity is kept, so that a half-made device is known.
        let is_witness = witness.unwrap_or(record.is_witness() && device.is_none());
        if is_witness {
            record.disks.clear();
            return Ok(record);
        }
        if record.is_witness() {
            record.disks.push(new_disk(device)?);
        }
        let disk = &mut record.disks[0];
        match device {
            None => (disk.kind, disk.path) = (MediumKind::File, DISK.into()),
            Some(device) => {
                let device = writable_name(device)?;
                if disk.path != device {
                    device::check_blank(&device)?;
                }
                (disk.kind, disk.path) = (MediumKind::Device, device);
            }
        }
        return Ok(record);
    }
    let shown = path.display();
    match (record.is_witness(), device, witness) {
        (false, _, Some(true)) => {
            return Err(format!(
                "the node in {shown} stores data, and a witness stores none; start it without \
                 --witness, or let this machine join as a witness with another data directory"
            ));
        }
        (true, Some(device), _) => {
            return Err(format!(
                "the node in {shown} is a witness, which stores nothing, also not on {}; start it \
                 without --disk, or let this machine join anew with another data directory",
                device.display()
            ));
        }
        (true, _, Some(false)) => {
            return Err(format!(
                "the node in {shown} is a witness and stays one; start it without --witness off, \
                 or let this machine join anew with another data directory"
            ));
        }
        (true, None, _) => return Ok(record),
        (false, ..) => {}
    }
    if let Some(device) = device {
        rename(path, &mut record, &writable_name(device)?)?;
    }
    find_exchanged(&mut record);
    // With others it is for the cluster to say what it means that one is not there.
    if let [disk] = &record.disks[..]
        && disk.kind == MediumKind::Device
    {
        device::check_ours(&disk.path, &record, disk)?;
    }
    Ok(record)
}

/// Names of devices may be others after the machine was switched on: a disk of this node that lies
/// on the device of another one is looked for there.
fn find_exchanged(record: &mut Record) {
    let devices = record.disks.iter().filter(|disk| disk.kind == MediumKind::Device);
    let places: Vec<PathBuf> = devices.map(|disk| disk.path.clone()).collect();
    if places.len() < 2 {
        return;
    }
    let before = record.clone();
    let holds = |place: &Path, disk: &DiskRecord| device::check_ours(place, &before, disk).is_ok();
    for disk in record.disks.iter_mut().filter(|disk| disk.kind == MediumKind::Device) {
        if holds(&disk.path, disk) {
            continue;
        }
        if let Some(place) = places.iter().find(|place| holds(place, disk)) {
            disk.path.clone_from(place);
        }
    }
}

/// A device is named at the start: it may be one that has another name in the record. One that was
/// taken out since is not used, and does not keep the others from serving.
fn rename(path: &Path, record: &mut Record, device: &Path) -> Result<(), String> {
    if record.disks.iter().any(|disk| disk.kind == MediumKind::File && disk.path == Path::new(DISK))
        && record.disks.iter().all(|disk| disk.kind == MediumKind::File)
    {
        return Err(format!(
            "the node in {} keeps its data in a file there, not on {}; start it without \
             --disk, or with another data directory",
            path.display(),
            device.display()
        ));
    }
    let holds = |device: &Path, disk: &DiskRecord| device::check_ours(device, record, disk).is_ok();
    let devices = || record.disks.iter().filter(|disk| disk.kind == MediumKind::Device);
    // What is wrong with the only one is told next.
    let is_only = devices().count() == 1;
    if devices().any(|disk| disk.path == device && (is_only || holds(device, disk))) {
        return Ok(());
    }
    let named = devices().find(|disk| holds(device, disk)).map(|disk| disk.disk);
    let is_missed = devices().any(|disk| !holds(&disk.path, disk));
    match &mut record.disks[..] {
        // Looked at next, and what is wrong with it told.
        [only] if named.is_none() && is_missed => only.path = device.to_path_buf(),
        disks => match disks.iter_mut().find(|disk| Some(disk.disk) == named) {
            Some(disk) => disk.path = device.to_path_buf(),
            None => tracing::warn!(
                "{} holds none of this node's disks, and is not used; leave --disk out, each disk \
                 is looked for where it was",
                device.display()
            ),
        },
    }
    Ok(())
}

/// The path as the record can hold it.
fn writable_name(path: &Path) -> Result<PathBuf, String> {
    let path = std::path::absolute(path)
        .map_err(|error| format!("{} is no path: {error}", path.display()))?;
    match path.to_str() {
        Some(text) if !text.contains('\n') => Ok(path),
        _ => Err(format!(
            "{} has a name that is no plain text; use another name of the device",
            path.display()
        )),
    }
}

/// A random id that is not zero.
pub fn draw() -> Result<u128, String> {
    let mut bytes = [0u8; 16];
    let mut filled = 0;
    while filled < bytes.len() {
        match getrandom(&mut bytes[filled..], GetRandomFlags::empty()) {
            Ok(count) => filled += count,
            Err(Errno::INTR) => {}
            Err(error) => return Err(format!("the kernel gives no random numbers: {error}")),
        }
    }
    Ok(u128::from_le_bytes(bytes).max(1))
}

#[cfg(test)]
mod adding_tests;
#[cfg(test)]
mod tests;
