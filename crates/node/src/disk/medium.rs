//! One medium that is open: a file or a block device, with its lock.

use proto::BLOCK_SIZE;
use rustix::{
    fs::{
        FallocateFlags, FileType, FlockOperation, OFlags, fallocate, flock, fstat, ioctl_blksszget,
    },
    io::Errno,
};
use std::{
    fs::{File, OpenOptions},
    io::{Seek, SeekFrom},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};
use store::MediumKind;

/// How long a lock, or a device that is in use, is waited for. The kernel takes a process's ring
/// apart some time after the process is gone, and the ring holds the files open: right after a
/// kill -9 the lock of a dead daemon is still held. On a busy machine that has taken more than
/// three seconds. A daemon that lives is told by the lock of its directory, without this wait.
const LOCK_PATIENCE: Duration = Duration::from_secs(10);
/// How often it is tried.
const LOCK_INTERVAL: Duration = Duration::from_millis(5);

/// An open medium. Exclusive: no other process has it open through this program.
#[derive(Debug)]
pub struct Medium {
    file: File,
    path: PathBuf,
    kind: MediumKind,
    bytes: u64,
}

/// How to open a medium.
#[derive(Clone, Copy, Debug)]
pub struct OpenHow {
    /// What it must be.
    pub kind: MediumKind,
    /// Make it if it is not there: only files, only for a new node.
    pub create: bool,
    /// Past the page cache.
    pub direct: bool,
}

impl Medium {
    /// Opens and locks a medium. The error is one sentence with cause and remedy.
    pub fn open(path: &Path, how: OpenHow) -> Result<Medium, String> {
        let shown = path.display();
        let mut flags = OFlags::CLOEXEC;
        if how.direct {
            flags |= OFlags::DIRECT;
        }
        if how.kind == MediumKind::Device {
            // The kernel refuses this while the device is mounted or used by another driver.
            flags |= OFlags::EXCL;
        }
        let mut options = OpenOptions::new();
        options.read(true).write(true).mode(0o600).custom_flags(flags.bits() as i32);
        options.create(how.create && how.kind == MediumKind::File);
        let file = patiently(LOCK_PATIENCE, Errno::BUSY, || {
            options.open(path).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
        })
        .map_err(|errno| open_sentence(path, how, errno))?;
        let stat = fstat(&file).map_err(|e| format!("cannot look at {shown}: {e}"))?;
        let is_device = FileType::from_raw_mode(stat.st_mode) == FileType::BlockDevice;
        match (how.kind, is_device, FileType::from_raw_mode(stat.st_mode)) {
            (MediumKind::Device, true, _) | (MediumKind::File, false, FileType::RegularFile) => {}
            (MediumKind::Device, ..) => {
                return Err(format!(
                    "{shown} is no block device; give --disk a device such as /dev/sdb, or leave \
                     it out to keep the data in a file of the data directory"
                ));
            }
            (MediumKind::File, ..) => {
                return Err(format!(
                    "{shown} is no regular file; restore the file, or start with \
                                    another data directory"
                ));
            }
        }
        lock(&file, path)?;
        let medium = Medium { file, path: path.to_path_buf(), kind: how.kind, bytes: 0 };
        medium.measured(stat.st_size as u64)
    }

    /// Fills in the length, and refuses what cannot be used.
    fn measured(mut self, file_bytes: u64) -> Result<Medium, String> {
        let shown = self.path.display();
        if self.kind == MediumKind::File {
            self.bytes = file_bytes;
            return Ok(self);
        }
        let sector = ioctl_blksszget(&self.file)
            .map_err(|e| format!("cannot ask {shown} for its sector size: {e}"))?;
        if sector as usize > BLOCK_SIZE {
            return Err(format!(
                "{shown} has sectors of {sector} bytes, and sheep needs 4096 or less; use another \
                 device, or a file system on it and a data directory there"
            ));
        }
        self.bytes = (&self.file)
            .seek(SeekFrom::End(0))
            .map_err(|e| format!("cannot ask {shown} for its size: {e}"))?;
        Ok(self)
    }

    /// Whether space can be allocated on its file system; the error is a sentence. Writes nothing
    /// but may leave one block allocated at the start of an empty file.
    pub fn check_allocation(&self) -> Result<(), String> {
        if self.kind == MediumKind::Device || self.bytes > 0 {
            return Ok(());
        }
        match fallocate(&self.file, FallocateFlags::KEEP_SIZE, 0, BLOCK_SIZE as u64) {
            Ok(()) => Ok(()),
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => Err(format!(
                "the file system of {} cannot preallocate space (fallocate); put the data \
                 directory on ext4, XFS, Btrfs or tmpfs",
                self.path.display()
            )),
            Err(error) => {
                Err(format!("cannot allocate space for {}: {error}", self.path.display()))
            }
        }
    }

    /// A medium of any open file, taken for what the test says it is.
    #[cfg(test)]
    pub fn for_test(file: File, kind: MediumKind, bytes: u64) -> Medium {
        Medium { file, path: PathBuf::from("test"), kind, bytes }
    }

    /// The open file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// A file or a device.
    pub fn kind(&self) -> MediumKind {
        self.kind
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How long it was when it was opened, in bytes.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// How long the device is, in bytes. For files [`Medium::bytes`] is soon out of date.
    pub fn device_bytes(&self) -> u64 {
        debug_assert_eq!(self.kind, MediumKind::Device);
        self.bytes
    }
}

/// Takes the advisory lock of a medium for as long as the file is open.
fn lock(file: &File, path: &Path) -> Result<(), String> {
    let lock = || flock(file, FlockOperation::NonBlockingLockExclusive);
    patiently(LOCK_PATIENCE, Errno::WOULDBLOCK, lock).map_err(|errno| match errno {
        Errno::WOULDBLOCK => format!(
            "{} is already in use by another process; two sheep never share a disk, stop the \
             other one first",
            path.display()
        ),
        errno => format!("cannot lock {}: {errno}", path.display()),
    })
}

/// Tries for so long, as long as it fails with `held`.
pub(crate) fn patiently<T>(
    patience: Duration,
    held: Errno,
    attempt: impl Fn() -> Result<T, Errno>,
) -> Result<T, Errno> {
    let until = Instant::now() + patience;
    loop {
        match attempt() {
            Err(errno) if errno == held && Instant::now() < until => thread::sleep(LOCK_INTERVAL),
            result => return result,
        }
    }
}

/// The sentence for a medium that does not open.
fn open_sentence(path: &Path, how: OpenHow, errno: Errno) -> String {
    let shown = path.display();
    match errno {
        Errno::NOENT if how.kind == MediumKind::File => format!(
            "{shown} is missing, and without it the data of this node is gone; put it back (or \
             its disk), or start with another data directory"
        ),
        Errno::NOENT => format!("there is no device {shown}; check the path with lsblk"),
        Errno::BUSY => format!(
            "{shown} is in use (mounted, or part of something else); unmount it, or choose \
             another device"
        ),
        Errno::INVAL if how.direct => format!(
            "the file system of {shown} refuses direct I/O; use another file system, or start \
             with --direct-io off (slower, and the page cache then takes memory)"
        ),
        Errno::ACCESS | Errno::PERM => format!(
            "permission denied on {shown}; run sheep as the user who owns it, or change its owner"
        ),
        Errno::ROFS => {
            format!("{shown} is on a file system that is mounted read only; mount it writable")
        }
        _ => format!("cannot open {shown}: {errno}"),
    }
}
