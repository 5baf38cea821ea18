//! Places to work in that vanish: directories, small file systems on loop devices, and the digest
//! of a directory.

use crate::tool::Tool;
use anyhow::{Context, Result};
use rustix::fs::SeekFrom;
use std::collections::BTreeMap;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const NEEDS: &str = "this test needs root and loop devices; run it on a machine that has them";
/// How long an unmount is tried.
const UNMOUNT_PATIENCE: Duration = Duration::from_secs(10);

/// A directory of one test, removed when dropped, unless `SHEEP_KEEP` is set.
///
/// It lies under the work tree's `scratch/`, so on a disk: file systems in memory know no direct
/// I/O. Its path is short, for the path of a unix socket holds 107 bytes.
pub struct Scratch {
    directory: tempfile::TempDir,
}

impl Scratch {
    /// A new, empty one.
    pub fn new() -> Result<Scratch> {
        let parent = parent();
        fs::create_dir_all(&parent)?;
        let mut directory =
            tempfile::Builder::new().prefix("t").rand_bytes(5).tempdir_in(parent)?;
        directory.disable_cleanup(std::env::var_os("SHEEP_KEEP").is_some());
        Ok(Scratch { directory })
    }

    /// One that other users reach too, wherever the work tree lies.
    pub fn public() -> Result<Scratch> {
        let directory = tempfile::Builder::new().prefix("sheep").tempdir_in("/var/tmp")?;
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755))?;
        Ok(Scratch { directory })
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// The path of something in it.
    pub fn join(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }
}

fn parent() -> PathBuf {
    match std::env::var_os("SHEEP_SCRATCH") {
        Some(parent) => PathBuf::from(parent),
        None => crate::repository().join("scratch"),
    }
}

/// Where notes about a data directory go: into the scratch directory around it, and not into a
/// small file system that is mounted there.
pub(crate) fn beside(data: &Path, ending: &str) -> PathBuf {
    let parent = parent();
    let directory = data.ancestors().find(|place| place.parent() == Some(&parent));
    let name = data.file_name().unwrap_or_default().to_string_lossy();
    let directory = directory.filter(|&place| place != data).or(data.parent());
    directory.unwrap_or(data).join(format!("{name}{ending}"))
}

/// A small file system in a file, mounted through a loop device; unmounted when dropped. Needs
/// root.
pub struct LoopMount {
    device: String,
    mount_point: PathBuf,
}

impl LoopMount {
    /// Makes a file system of `bytes` with `mkfs`, on a device with sectors of `sector_bytes`, and
    /// mounts it in `scratch`.
    ///
    /// Fails when loop devices or mounts are not allowed: what needs one must not be skipped
    /// unseen.
    pub fn new(scratch: &Scratch, mkfs: &str, bytes: u64, sector_bytes: u32) -> Result<LoopMount> {
        let image = scratch.join("filesystem.img");
        fs::File::create(&image)?.set_len(bytes)?;
        let mount = LoopMount::attach(&image, &scratch.join("mount"), sector_bytes)?;
        Tool::new("sh")
            .arg("-c")
            .arg(format!("PATH=$PATH:/usr/sbin {mkfs} {}", mount.device))
            .ok()?;
        mount.mount()
    }

    /// Mounts the file system that an image has already.
    pub fn of_image(image: &Path, mount_point: &Path, sector_bytes: u32) -> Result<LoopMount> {
        LoopMount::attach(image, mount_point, sector_bytes)?.mount()
    }

    fn attach(image: &Path, mount_point: &Path, sector_bytes: u32) -> Result<LoopMount> {
        let device = Tool::new("losetup")
            .words("--find --show --direct-io=on --sector-size")
            .arg(sector_bytes.to_string())
            .arg(image)
            .ok()
            .context(NEEDS)?
            .trim()
            .to_owned();
        let mount = LoopMount { device, mount_point: mount_point.to_owned() };
        fs::create_dir(&mount.mount_point)?;
        Ok(mount)
    }

    fn mount(self) -> Result<LoopMount> {
        Tool::new("mount").arg(&self.device).arg(&self.mount_point).ok().context(NEEDS)?;
        Ok(self)
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.mount_point
    }
}

impl Drop for LoopMount {
    fn drop(&mut self) {
        // The kernel holds the files of a killed process a moment longer, where it used a ring.
        let begin = Instant::now();
        let unmount = || Tool::new("umount").arg(&self.mount_point).ok().is_ok();
        while !unmount() && begin.elapsed() < UNMOUNT_PATIENCE {
            std::thread::sleep(Duration::from_millis(50));
        }
        let _ = Tool::new("losetup").arg("--detach").arg(&self.device).run();
    }
}

/// Every file below a directory with the digest of its content and metadata that matters. Two equal
/// digests: nothing was changed. Sockets and the lock do not count; they are no data.
pub fn digest(directory: &Path) -> Result<BTreeMap<PathBuf, String>> {
    let mut found = BTreeMap::new();
    let mut pending = vec![directory.to_owned()];
    while let Some(path) = pending.pop() {
        for entry in fs::read_dir(&path)? {
            let path = entry?.path();
            let kind = fs::symlink_metadata(&path)?.file_type();
            if kind.is_dir() {
                found.insert(path.clone(), "directory".to_owned());
                pending.push(path);
            } else if !kind.is_socket() && path.file_name() != Some("lock".as_ref()) {
                found.insert(path.clone(), file_digest(&path)?);
            }
        }
    }
    Ok(found)
}

/// Length and a hash of what is not zero; holes, and there are many, cost nothing.
fn file_digest(path: &Path) -> Result<String> {
    let file = fs::File::open(path)?;
    let length = file.metadata()?.len();
    let mut hasher = DefaultHasher::new();
    let mut bytes = vec![0; 1 << 20];
    let mut offset = 0;
    while let Ok(data) = rustix::fs::seek(&file, SeekFrom::Data(offset)) {
        let hole = rustix::fs::seek(&file, SeekFrom::Hole(data))?;
        offset = data;
        while offset < hole {
            let wanted = usize::try_from(hole - offset)?.min(bytes.len());
            file.read_exact_at(&mut bytes[..wanted], offset)?;
            for (place, block) in bytes[..wanted].chunks(512).enumerate() {
                if block.iter().any(|&byte| byte != 0) {
                    (offset + place as u64 * 512, block).hash(&mut hasher);
                }
            }
            offset += wanted as u64;
        }
    }
    Ok(format!("{length} bytes, {:016x}", hasher.finish()))
}

/// The alignment, in bytes, that direct I/O in a directory wants of a buffer; 1 when any will do.
pub fn direct_io_alignment(directory: &Path) -> Result<usize> {
    const LENGTH: usize = 4096;
    let path = directory.join("alignment-probe");
    fs::write(&path, [1; LENGTH])?;
    fs::File::open(&path)?.sync_all()?;
    let flags = rustix::fs::OFlags::DIRECT.bits();
    let file = fs::File::options().read(true).custom_flags(i32::try_from(flags)?).open(&path)?;
    let mut memory = vec![0; 4 * LENGTH];
    let aligned = memory.as_ptr().align_offset(LENGTH);
    let works = |offset: &usize| {
        let range = aligned + offset..aligned + offset + LENGTH;
        file.read_at(&mut memory[range], 0).is_ok_and(|length| length == LENGTH)
    };
    let found = (0..=12).map(|power| 1 << power).find(works);
    fs::remove_file(&path)?;
    found.context("no direct I/O here")
}

/// A file with data, holes and runs of zeros, so that sparseness and zero detection both have
/// something to do.
pub fn patchy_file(path: &Path, bytes: u64) -> Result<()> {
    fs::File::create(path)?.set_len(bytes)?;
    for (offset_mib, length_mib, source) in [
        (0, 3, "/dev/urandom"),
        (9, 1, "/dev/zero"),
        (17, 6, "/dev/urandom"),
        (30, 1, "/dev/urandom"),
    ] {
        Tool::new("dd")
            .arg(format!("if={source}"))
            .arg(format!("of={}", path.display()))
            .words(&format!("bs=1M seek={offset_mib} count={length_mib} conv=notrunc status=none"))
            .ok()?;
    }
    Ok(())
}
