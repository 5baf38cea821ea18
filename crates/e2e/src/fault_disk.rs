//! A disk that loses at a power cut what was not flushed, under a real file system: an NBD server
//! that keeps what was written since the last flush apart, shown as a file by `nbdfuse`, as a block
//! device by a loop device, and mounted.
//!
//! A power cut is a copy of the medium as it would be found afterwards. What runs goes on
//! undisturbed, so that one run is cut at many moments.

use crate::scratch::{LoopMount, Scratch};
use crate::tool::Tool;
use anyhow::{Context, Result, bail, ensure};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What a disk writes whole or not at all; its sectors.
const SECTOR: usize = 4096;
const MOUNT_PATIENCE: Duration = Duration::from_secs(20);
/// HAS_FLAGS, SEND_FLUSH, SEND_TRIM and SEND_WRITE_ZEROES.
const FLAGS: u16 = 1 | 1 << 2 | 1 << 5 | 1 << 6;
const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
const REPLY_UNSUPPORTED: u32 = 0x8000_0001;
const INPUT_OUTPUT_ERROR: u32 = 5;
/// No client here asks for more at once.
const REQUEST_BYTES_MAX: usize = 64 << 20;

/// What becomes of the sectors that were written and not flushed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Unflushed {
    /// None of them is there.
    Lost,
    /// Each is there or not, by a seed.
    Mixed(u64),
}

/// The medium.
struct Medium {
    /// What survives a power cut.
    durable: File,
    path: PathBuf,
    bytes: u64,
    /// Sectors that were written since the last flush.
    unflushed: BTreeMap<u64, Vec<u8>>,
    flushes: u64,
    /// Every request fails.
    is_broken: bool,
}

/// A file system on such a disk, mounted; unmounted when dropped. Needs root.
pub struct FaultDisk {
    medium: Arc<Mutex<Medium>>,
    mount: Option<LoopMount>,
    fuse: Child,
    fuse_point: PathBuf,
}

impl FaultDisk {
    /// Makes an ext4 of `bytes` and mounts it at `mount` in the scratch directory.
    pub fn new(scratch: &Scratch, bytes: u64) -> Result<FaultDisk> {
        let path = scratch.join("medium");
        File::create(&path)?.set_len(bytes)?;
        Tool::new("sh")
            .arg("-c")
            .arg(r#"PATH=$PATH:/usr/sbin mkfs.ext4 -q -b 4096 "$0""#)
            .arg(&path)
            .ok()?;
        let durable = File::options().read(true).write(true).open(&path)?;
        let unflushed = BTreeMap::new();
        let medium = Medium { durable, path, bytes, unflushed, flushes: 0, is_broken: false };
        let medium = Arc::new(Mutex::new(medium));
        let socket = scratch.join("medium.sock");
        let listener = UnixListener::bind(&socket)?;
        let served = medium.clone();
        // It ends with nbdfuse, its only client.
        std::thread::spawn(move || -> Result<()> {
            let (stream, _) = listener.accept()?;
            serve(stream, &served)
        });
        let fuse_point = scratch.join("fuse");
        fs::create_dir(&fuse_point)?;
        let file = fuse_point.join("disk");
        let log = scratch.join("nbdfuse.log");
        let fuse = Tool::new("nbdfuse")
            .arg(&file)
            .arg(format!("nbd+unix:///?socket={}", socket.display()))
            .spawn(File::create(&log)?)?;
        // From here on dropping it cleans up.
        let mut disk = FaultDisk { medium, mount: None, fuse, fuse_point };
        let begin = Instant::now();
        while !fs::metadata(&file).is_ok_and(|file| file.len() == bytes) {
            let said = fs::read_to_string(&log)?;
            let ended = disk.fuse.try_wait()?.is_some();
            ensure!(
                !ended && begin.elapsed() < MOUNT_PATIENCE,
                "nbdfuse shows no disk; this test needs root and /dev/fuse: {said}"
            );
            std::thread::sleep(Duration::from_millis(5));
        }
        disk.mount = Some(LoopMount::of_image(&file, &scratch.join("mount"), SECTOR as u32)?);
        Ok(disk)
    }

    /// Where the file system is.
    pub fn path(&self) -> &Path {
        self.mount.as_ref().expect("mounted as long as it lives").path()
    }

    /// How often it was flushed.
    pub fn flushes(&self) -> u64 {
        self.medium().flushes
    }

    /// From now on every request fails.
    pub fn fail(&self) {
        self.medium().is_broken = true;
    }

    /// The power fails: `image` becomes the medium as it is found afterwards. Gives how many
    /// sectors were lost.
    pub fn cut(&self, image: &Path, unflushed: Unflushed) -> Result<u64> {
        let medium = self.medium();
        Tool::new("cp").arg("--sparse=always").arg(&medium.path).arg(image).ok()?;
        let file = File::options().write(true).open(image)?;
        let mut lost = 0;
        for (sector, content) in &medium.unflushed {
            let kept = match unflushed {
                Unflushed::Lost => false,
                Unflushed::Mixed(seed) => mixed(seed ^ sector) & 1 == 0,
            };
            match kept {
                true => file.write_all_at(content, sector * SECTOR as u64)?,
                false => lost += 1,
            }
        }
        Ok(lost)
    }

    fn medium(&self) -> MutexGuard<'_, Medium> {
        self.medium.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for FaultDisk {
    fn drop(&mut self) {
        drop(self.mount.take());
        let _ = Tool::new("umount").arg(&self.fuse_point).run();
        let _ = self.fuse.kill();
        let _ = self.fuse.wait();
    }
}

/// Bits that are well mixed (SplitMix64).
fn mixed(number: u64) -> u64 {
    let number = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

impl Medium {
    fn sector(&self, sector: u64) -> Result<Vec<u8>> {
        if let Some(content) = self.unflushed.get(&sector) {
            return Ok(content.clone());
        }
        let mut content = vec![0; SECTOR];
        self.durable.read_exact_at(&mut content, sector * SECTOR as u64)?;
        Ok(content)
    }

    /// The sectors of a range, each with its part of the range.
    fn parts(offset: u64, length: usize) -> impl Iterator<Item = (u64, std::ops::Range<usize>)> {
        let (size, end) = (SECTOR as u64, offset + length as u64);
        (offset / size..end.div_ceil(size)).map(move |sector| {
            let begin = offset.saturating_sub(sector * size);
            let end = (end - sector * size).min(size);
            (sector, begin as usize..end as usize)
        })
    }

    fn read(&self, offset: u64, length: usize) -> Result<Vec<u8>> {
        let mut bytes = Vec::with_capacity(length);
        for (sector, part) in Medium::parts(offset, length) {
            bytes.extend_from_slice(&self.sector(sector)?[part]);
        }
        Ok(bytes)
    }

    fn write(&mut self, offset: u64, mut bytes: &[u8]) -> Result<()> {
        for (sector, part) in Medium::parts(offset, bytes.len()) {
            let (now, later) = bytes.split_at(part.len());
            let mut content = self.sector(sector)?;
            content[part].copy_from_slice(now);
            self.unflushed.insert(sector, content);
            bytes = later;
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        for (sector, content) in std::mem::take(&mut self.unflushed) {
            self.durable.write_all_at(&content, sector * SECTOR as u64)?;
        }
        self.flushes += 1;
        Ok(())
    }
}

/// Serves one decent NBD client until it hangs up.
fn serve(mut stream: UnixStream, medium: &Mutex<Medium>) -> Result<()> {
    let lock = || medium.lock().unwrap_or_else(PoisonError::into_inner);
    let bytes = lock().bytes;
    stream.write_all(b"NBDMAGICIHAVEOPT\0\x03")?;
    let _flags: [u8; 4] = take(&mut stream)?;
    loop {
        let _magic: [u8; 8] = take(&mut stream)?;
        let option = u32::from_be_bytes(take(&mut stream)?);
        let length = u32::from_be_bytes(take(&mut stream)?) as usize;
        ensure!(length <= 1 << 16, "an option of {length} bytes");
        stream.read_exact(&mut vec![0; length])?;
        let mut reply = |kind: u32, data: &[u8]| {
            let mut bytes = Vec::from(OPTION_REPLY_MAGIC.to_be_bytes());
            bytes.extend(option.to_be_bytes());
            bytes.extend(kind.to_be_bytes());
            bytes.extend((data.len() as u32).to_be_bytes());
            bytes.extend(data);
            stream.write_all(&bytes)
        };
        match option {
            crate::nbd::option::GO => {
                let mut information = vec![0, 0];
                information.extend(bytes.to_be_bytes());
                information.extend(FLAGS.to_be_bytes());
                reply(3, &information)?;
                reply(1, &[])?;
                break;
            }
            _ => reply(REPLY_UNSUPPORTED, &[])?,
        }
    }
    loop {
        let _magic_and_flags: [u8; 6] = take(&mut stream)?;
        let command = u16::from_be_bytes(take(&mut stream)?);
        let cookie: [u8; 8] = take(&mut stream)?;
        let offset = u64::from_be_bytes(take(&mut stream)?);
        let length = u32::from_be_bytes(take(&mut stream)?) as usize;
        ensure!(length <= REQUEST_BYTES_MAX, "a request of {length} bytes");
        let mut content = Vec::new();
        let mut error = 0;
        let is_broken = lock().is_broken;
        match command {
            crate::nbd::command::DISCONNECT => return Ok(()),
            _ if is_broken => {
                if command == crate::nbd::command::WRITE {
                    stream.read_exact(&mut vec![0; length])?;
                }
                error = INPUT_OUTPUT_ERROR;
            }
            crate::nbd::command::READ => content = lock().read(offset, length)?,
            crate::nbd::command::WRITE => {
                let mut bytes = vec![0; length];
                stream.read_exact(&mut bytes)?;
                lock().write(offset, &bytes)?;
            }
            crate::nbd::command::FLUSH => lock().flush()?,
            crate::nbd::command::TRIM | crate::nbd::command::WRITE_ZEROES => {
                lock().write(offset, &vec![0; length])?;
            }
            command => bail!("command {command}"),
        }
        let head = [&0x6744_6698_u32.to_be_bytes()[..], &error.to_be_bytes(), &cookie].concat();
        stream.write_all(&[head, content].concat())?;
    }
}

fn take<const N: usize>(stream: &mut UnixStream) -> Result<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes).context("the client hung up")?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_flushed_is_durable() -> Result<()> {
        let scratch = Scratch::new()?;
        let path = scratch.join("medium");
        let durable = File::options().read(true).write(true).create_new(true).open(&path)?;
        durable.set_len(1 << 20)?;
        let unflushed = BTreeMap::new();
        let mut medium =
            Medium { durable, path, bytes: 1 << 20, unflushed, flushes: 0, is_broken: false };
        medium.write(100, &[1; 5000])?;
        medium.flush()?;
        medium.write(4090, &[2; 10])?;
        let found = medium.read(0, 8192)?;
        assert_eq!((found[99], found[100], found[4089], found[4090]), (0, 1, 1, 2));
        assert_eq!((found[4099], found[4100], found[5099], found[5100]), (2, 1, 1, 0));
        let mut durable = vec![0; 8192];
        medium.durable.read_exact_at(&mut durable, 0)?;
        assert_eq!((durable[99], durable[100], durable[4095], durable[5099]), (0, 1, 1, 1));
        assert_eq!(medium.unflushed.len(), 2);
        Ok(())
    }
}
