//! Disks that a node gets and loses while it runs.
//!
//! A disk is made in an order that a crash can stop anywhere: first the record lists it, marked as
//! being made; then there is its medium, and the engine makes that a disk and has it agreed; then
//! the mark goes (`docs/decisions/0016-disk-add.md`). One that is listed without the mark is never
//! made, whatever its medium looks like.

use super::{DataDirectory, READ_ONLY, RECORD, device, draw, record, writable_name};
use crate::{
    directory::record::{DiskRecord, Record},
    disk::{Medium, OpenHow},
};
use proto::{DiskId, limits::NODE_DISKS_MAX};
use rustix::fs::{FlockOperation, flock};
use std::{
    cell::Cell,
    fs::{self, DirBuilder, File, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt},
    path::Path,
};
use store::MediumKind;

/// The name of the file that is made in a directory.
const FILE: &str = "disk";
/// What may be in a directory that is taken: file systems put it into their root.
const HARMLESS: [&str; 1] = ["lost+found"];
/// Nobody else has anything to look for in the directory of a disk.
const DIRECTORY_MODE: u32 = 0o700;
/// Where devices are: no directory is made there.
const DEVICES: &str = "/dev";
/// What to do where sheep may not write.
const NOT_ALLOWED: &str = "run sheep as a user who may write there, or change its owner; where \
                           systemd starts it, allow the path with ReadWritePaths=";

/// A disk that is to be made, and that could be when it was looked at.
#[derive(Debug)]
pub struct NewDisk {
    disk: DiskRecord,
    /// Whose it is.
    record: Record,
    /// Whether the directory around a file is made too.
    is_new_directory: bool,
    /// The directory, and the file, that were made for it: what came there meanwhile is others'.
    made: [Cell<bool>; 2],
    warning: Option<String>,
}

impl NewDisk {
    /// Looks whether a disk of this node can be made at a path: a block device that is blank, or a
    /// directory that is empty or does not exist. Only reads. `data` is the data directory. The
    /// error is one sentence with cause and remedy.
    pub fn vet(
        data: &Path,
        record: &Record,
        path: &Path,
        limit_bytes: Option<u64>,
    ) -> Result<NewDisk, String> {
        let shown = path.display();
        if !path.is_absolute() {
            return Err(format!(
                "{shown} is no absolute path, and sheep runs in another directory than you do; \
                 write it from / on"
            ));
        }
        let path = writable_name(path)?;
        if path.as_os_str().len() > record::DISK_PATH_BYTES_MAX {
            return Err(format!(
                "the path {shown} is too long; choose one of at most {} bytes",
                record::DISK_PATH_BYTES_MAX
            ));
        }
        if record.is_witness() {
            return Err("this node is a witness, which stores nothing; add the disk to another \
                        node, or let this machine join anew with another data directory"
                .to_string());
        }
        if record.disks.len() >= NODE_DISKS_MAX {
            return Err(format!(
                "a node has {NODE_DISKS_MAX} disks at most, and this one has as many; take one out \
                 first, with `dog disk remove`"
            ));
        }
        let found = fs::metadata(&path);
        let (kind, is_new_directory) = match &found {
            Ok(found) if found.file_type().is_block_device() => (MediumKind::Device, false),
            Ok(found) if found.is_dir() => (MediumKind::File, false),
            Ok(_) => {
                return Err(format!(
                    "{shown} is neither a block device nor a directory; name a blank device such \
                     as /dev/sdb, or an empty directory for a file in it"
                ));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                vet_missing(&path)?;
                (MediumKind::File, true)
            }
            Err(error) => return Err(format!("cannot look at {shown}: {error}; {NOT_ALLOWED}")),
        };
        if let Ok(found) = &found {
            vet_other(data, record, &path, found)?;
        }
        let mut warning = None;
        let path = match kind {
            MediumKind::Device => {
                device::check_blank_for(&path, record, true)?;
                path
            }
            MediumKind::File => {
                if !is_new_directory {
                    vet_empty(&path, record)?;
                }
                let around = if is_new_directory { path.parent() } else { Some(path.as_path()) };
                warning = around.and_then(|around| shared(data, record, around, &path));
                path.join(FILE)
            }
        };
        let disk = DiskRecord { disk: DiskId(draw()?), kind, path, making: true, limit_bytes };
        let made = [Cell::new(false), Cell::new(false)];
        Ok(NewDisk { disk, record: record.clone(), is_new_directory, made, warning })
    }

    /// What the record says of it.
    pub fn disk(&self) -> &DiskRecord {
        &self.disk
    }

    /// What is to be known about it, in one sentence.
    pub fn warning(&self) -> Option<&str> {
        self.warning.as_deref()
    }

    /// Makes and opens its medium. Must come after [`DataDirectory::begin_disk`]. May wait for
    /// long. The error is one sentence; [`NewDisk::unmake`] takes back what was made until then.
    pub fn make(&self, direct: bool) -> Result<Medium, String> {
        if self.disk.kind == MediumKind::File {
            self.make_file().map_err(|error| self.make_sentence(&error))?;
        }
        let how = OpenHow { kind: self.disk.kind, create: false, direct };
        let medium = Medium::open(&self.disk.path, how)?;
        match self.disk.kind {
            MediumKind::File => medium.check_allocation()?,
            // Looked at again now that nobody else can take it.
            MediumKind::Device => device::check_blank_for(&self.disk.path, &self.record, false)?,
        }
        Ok(medium)
    }

    fn make_file(&self) -> io::Result<()> {
        let directory = self.disk.path.parent().expect("a file lies in a directory");
        if self.is_new_directory {
            DirBuilder::new().mode(DIRECTORY_MODE).create(directory)?;
            self.made[0].set(true);
        }
        // Not one that came there meanwhile.
        let new = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&self.disk.path);
        let new = new?;
        self.made[1].set(true);
        new.sync_all()?;
        File::open(directory)?.sync_all()?;
        match directory.parent() {
            Some(parent) if self.is_new_directory => File::open(parent)?.sync_all(),
            _ => Ok(()),
        }
    }

    fn make_sentence(&self, error: &io::Error) -> String {
        let remedy = match error.kind() {
            io::ErrorKind::PermissionDenied => NOT_ALLOWED,
            io::ErrorKind::ReadOnlyFilesystem => {
                "its file system is mounted read only, or systemd keeps sheep from writing there; \
                 mount it writable, or allow the path with ReadWritePaths="
            }
            io::ErrorKind::StorageFull => "free some space",
            io::ErrorKind::AlreadyExists => "somebody else uses it; choose another directory",
            _ => "choose another directory",
        };
        format!("cannot make {}: {error}; {remedy}", self.disk.path.display())
    }

    /// Takes back what was made of a disk that never served: its own superblocks, or its file. What
    /// is there of others stays.
    pub fn unmake(&self) {
        let path = &self.disk.path;
        match self.disk.kind {
            MediumKind::Device => {
                if let Err(sentence) = device::erase_half_made(path, &self.record, &self.disk) {
                    tracing::warn!("{sentence}; clear it with `wipefs -a` before it is used again");
                }
            }
            MediumKind::File => {
                let [is_made_directory, is_made] = &self.made;
                if is_made.get() && device::is_blank_or_of(path, &self.record, &self.disk) {
                    // Not there is as good.
                    let _ = fs::remove_file(path);
                }
                if is_made_directory.get()
                    && let Some(directory) = path.parent()
                {
                    // Only what is empty goes.
                    let _ = fs::remove_dir(directory);
                }
            }
        }
    }
}

/// A disk that was being made when the program ended is given up: its file goes, if nothing is in
/// it and nobody has it. What has been made a disk stays as it is: it may have served.
pub fn unmake_blank(disk: &DiskRecord) {
    let path = &disk.path;
    let is_free = || {
        let file = File::open(path)?;
        flock(&file, FlockOperation::NonBlockingLockExclusive)?;
        io::Result::Ok(device::is_blank(path))
    };
    if disk.kind == MediumKind::File && is_free().unwrap_or(false) {
        // Not there is as good.
        let _ = fs::remove_file(path);
    }
}

/// Whether a directory could be made at a path where there is nothing.
fn vet_missing(path: &Path) -> Result<(), String> {
    let shown = path.display();
    if fs::symlink_metadata(path).is_ok() {
        return Err(format!("{shown} is a link that leads nowhere; name what it should lead to"));
    }
    if path.starts_with(DEVICES) {
        return Err(format!("there is no device {shown}; check the path with lsblk"));
    }
    match path.parent() {
        Some(parent) if parent.is_dir() => Ok(()),
        Some(parent) => Err(format!(
            "there is no directory {}, in which {shown} could be made; mount the file system, or \
             check the path",
            parent.display()
        )),
        None => Err(format!("{shown} is no path; choose an empty directory")),
    }
}

/// Refuses what another disk of this node has, under whichever name.
fn vet_other(
    data: &Path,
    record: &Record,
    path: &Path,
    found: &fs::Metadata,
) -> Result<(), String> {
    let is_same = |other: &DiskRecord| {
        let place = data.join(&other.path);
        match other.kind {
            MediumKind::Device => {
                let is_it = |at: fs::Metadata| at.rdev() == found.rdev();
                found.file_type().is_block_device()
                    && (place == path || fs::metadata(&place).is_ok_and(is_it))
            }
            MediumKind::File => {
                let place = place.parent().expect("a file lies in a directory");
                let is_it = |at: fs::Metadata| (at.dev(), at.ino()) == (found.dev(), found.ino());
                found.is_dir() && (place == path || fs::metadata(place).is_ok_and(is_it))
            }
        }
    };
    match record.disks.iter().find(|other| is_same(other)) {
        None => Ok(()),
        Some(other) => Err(format!(
            "{} is where disk {} of this node is; choose another device or directory, or take that \
             disk out first",
            path.display(),
            other.disk
        )),
    }
}

/// Refuses a directory that is not empty, and tells whose it is.
fn vet_empty(path: &Path, record: &Record) -> Result<(), String> {
    let shown = path.display();
    let failed = |error: io::Error| format!("cannot look into {shown}: {error}; {NOT_ALLOWED}");
    for entry in fs::read_dir(path).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name();
        let name = name.to_string_lossy();
        if HARMLESS.contains(&name.as_ref()) {
            continue;
        }
        if path.join(RECORD).is_file() {
            return Err(format!(
                "{shown} is the data directory of a Sheepdog node; choose an empty directory"
            ));
        }
        let owner = device::owner_of(&path.join(FILE)).map(|owner| owner.words(record));
        return Err(match owner {
            Some(owner) => format!(
                "{shown} holds {owner}; choose an empty directory, or remove the file `{FILE}` \
                 there if nothing in it is needed"
            ),
            None => format!(
                "{shown} is not empty (it holds `{name}`); choose a directory that is empty or \
                 does not exist yet"
            ),
        });
    }
    Ok(())
}

/// What is to be known of a directory on the same device as another disk.
fn shared(data: &Path, record: &Record, around: &Path, path: &Path) -> Option<String> {
    let device = fs::metadata(around).ok()?.dev();
    let lies_there = |disk: &&DiskRecord| {
        let place = data.join(&disk.path);
        disk.kind == MediumKind::File && fs::metadata(place).is_ok_and(|at| at.dev() == device)
    };
    let other = record.disks.iter().find(lies_there)?;
    Some(format!(
        "{} lies on the same file system as disk {}: when the device under it dies, both do, and \
         copies on the two count as two; put it on another device unless this is for a trial",
        path.display(),
        other.disk
    ))
}

impl DataDirectory {
    /// The record lists a disk as being made. Must come before its medium is touched.
    pub fn begin_disk(&mut self, new: &NewDisk) -> Result<(), String> {
        let mut disks = self.record.disks.clone();
        disks.push(new.disk.clone());
        self.write_disks(disks)
    }

    /// A disk is one of the cluster's: it is never made again.
    pub fn finish_disk(&mut self, disk: DiskId) -> Result<(), String> {
        let mut disks = self.record.disks.clone();
        for known in disks.iter_mut().filter(|known| known.disk == disk) {
            known.making = false;
        }
        self.write_disks(disks)
    }

    /// A disk is none of this node any more, or never became one. The only one stays.
    pub fn forget_disk(&mut self, disk: DiskId) -> Result<(), String> {
        let mut disks = self.record.disks.clone();
        disks.retain(|known| known.disk != disk);
        if disks.is_empty() {
            return Ok(());
        }
        self.write_disks(disks)
    }

    fn write_disks(&mut self, disks: Vec<DiskRecord>) -> Result<(), String> {
        let record = Record { disks, ..self.record.clone() };
        if record == self.record {
            return Ok(());
        }
        record.write(&self.path.join(RECORD)).map_err(|error| {
            let remedy = match error.kind() {
                io::ErrorKind::ReadOnlyFilesystem => READ_ONLY,
                _ => "free some space",
            };
            format!("cannot write to {}: {error}; {remedy}", self.path.display())
        })?;
        self.record = record;
        Ok(())
    }

    /// Looks at a disk that is listed, before it is opened. The error is one sentence.
    pub fn check_disk(&self, disk: &DiskRecord) -> Result<(), String> {
        match disk.kind {
            // That of a node that is being made is blank yet.
            MediumKind::Device if !disk.making && !self.record.founding => {
                device::check_ours(&disk.path, &self.record, disk)
            }
            MediumKind::File if self.record.disks.len() > 1 => {
                let path = self.disk(disk);
                match path.try_exists() {
                    Ok(false) => Err(format!(
                        "{} is missing; mount its file system or put the disk back and start sheep \
                         again, or, if it will not come back, say `dog disk remove {} --yes`",
                        path.display(),
                        disk.disk
                    )),
                    _ => Ok(()),
                }
            }
            _ => Ok(()),
        }
    }
}
