//! Raw devices before they are ours: what is on them, and taking back a half-made disk.

use super::record::{DiskRecord, Record};
use proto::{BLOCK_SIZE, ClusterId, DiskId, NodeId, is_zero};
use std::{
    fs::{File, OpenOptions},
    io::{self, Read},
    os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt},
    path::Path,
};

/// How much at the start of a device must be zero before it is taken, in bytes: every common file
/// system and partition table leaves a trace there.
const LOOKED_AT: usize = 1 << 20;
/// What others write at the start of what is theirs: name, offset, bytes.
const SIGNATURES: [(&str, usize, &[u8]); 10] = [
    ("a disk of another Sheepdog node", 0, b"SHEEPDSK"),
    ("a GPT partition table", 512, b"EFI PART"),
    ("an LVM volume", 512, b"LABELONE"),
    ("an XFS file system", 0, b"XFSB"),
    ("a LUKS volume", 0, b"LUKS\xba\xbe"),
    ("a swap area", 4086, b"SWAPSPACE2"),
    ("a Btrfs file system", 0x10040, b"_BHRfS_M"),
    ("an ext2, ext3 or ext4 file system", 0x438, b"\x53\xef"),
    ("a Linux RAID member", 4096, b"\xfc\x4e\x2b\xa9"),
    ("an MBR partition table", 510, b"\x55\xaa"),
];
/// Where the superblock holds cluster, node and disk (`docs/formats/disk.md`).
const IDENTITY: std::ops::Range<usize> = 32..80;
/// How many superblocks there are, one block each from the start.
const SUPERBLOCKS: usize = 2;

/// Refuses a device that holds anything. Only reads.
pub fn check_blank(path: &Path) -> Result<(), String> {
    check(path, None, true)
}

/// The same for one more disk of a node, which knows its own. Not exclusive where the caller has
/// the device open itself.
pub fn check_blank_for(path: &Path, record: &Record, exclusive: bool) -> Result<(), String> {
    check(path, Some(record), exclusive)
}

fn check(path: &Path, record: Option<&Record>, exclusive: bool) -> Result<(), String> {
    let shown = path.display();
    let cannot = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => format!("there is no device {shown}; check the path with lsblk"),
        io::ErrorKind::PermissionDenied => {
            format!("permission denied on {shown}; run sheep as root or as the device's owner")
        }
        io::ErrorKind::ResourceBusy => format!(
            "{shown} is in use (mounted, or part of something else); unmount it, or choose \
             another device"
        ),
        _ => format!("cannot read {shown}: {error}; check the device"),
    };
    let flags = if exclusive { libc::O_EXCL } else { 0 };
    let opened = OpenOptions::new().read(true).custom_flags(flags).open(path);
    let file = opened.map_err(cannot)?;
    if !file.metadata().map_err(cannot)?.file_type().is_block_device() {
        return Err(format!(
            "{shown} is no block device; give --disk a device such as /dev/sdb, or leave it out to \
             keep the data in a file of the data directory"
        ));
    }
    let mut head = Vec::with_capacity(LOOKED_AT);
    file.take(LOOKED_AT as u64).read_to_end(&mut head).map_err(cannot)?;
    let owner = record.and_then(|record| Some(owner_in(&head)?.words(record)));
    match owner.or_else(|| found(&head).map(str::to_string)) {
        None => Ok(()),
        Some(what) => Err(format!(
            "{shown} is not blank: it holds {what}; choose another device, or clear it with \
             `wipefs -a` and `blkdiscard -z` if nothing on it is needed"
        )),
    }
}

/// What the start of a device shows, if it is not blank.
fn found(head: &[u8]) -> Option<&'static str> {
    if is_zero(head) {
        return None;
    }
    let known = SIGNATURES
        .iter()
        .find(|(_, offset, bytes)| head.get(*offset..).is_some_and(|rest| rest.starts_with(bytes)));
    Some(known.map_or("data of an unknown kind", |(name, ..)| name))
}

/// Whose disk a medium is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Owner {
    cluster: ClusterId,
    node: NodeId,
    disk: DiskId,
}

impl Owner {
    /// In words, for this node.
    pub fn words(&self, record: &Record) -> String {
        if self.cluster != record.cluster {
            return "a disk of another Sheepdog cluster".to_string();
        }
        match self.node == record.node {
            true => format!("disk {}, which was one of this node", self.disk),
            false => format!("disk {} of another node of this cluster", self.disk),
        }
    }
}

/// Whose disk lies in a file, if one does.
pub fn owner_of(path: &Path) -> Option<Owner> {
    let mut head = Vec::new();
    let file = File::open(path).ok()?;
    file.take((SUPERBLOCKS * BLOCK_SIZE) as u64).read_to_end(&mut head).ok()?;
    owner_in(&head)
}

fn owner_in(head: &[u8]) -> Option<Owner> {
    let blocks = head.chunks_exact(BLOCK_SIZE).take(SUPERBLOCKS);
    let block = blocks.into_iter().find(|block| block.starts_with(b"SHEEPDSK"))?;
    let number = |at: usize| {
        let bytes = block[IDENTITY][16 * at..][..16].try_into().expect("16 bytes");
        u128::from_le_bytes(bytes)
    };
    Some(Owner { cluster: ClusterId(number(0)), node: NodeId(number(1)), disk: DiskId(number(2)) })
}

/// Whether a file holds nothing at its start. One that cannot be read may hold anything.
pub fn is_blank(path: &Path) -> bool {
    let mut head = Vec::new();
    let read = File::open(path)
        .and_then(|file| file.take((SUPERBLOCKS * BLOCK_SIZE) as u64).read_to_end(&mut head));
    read.is_ok() && is_zero(&head)
}

/// Whether a file holds nothing at its start but what could be left of this very disk. One that
/// cannot be read may hold anything.
pub fn is_blank_or_of(path: &Path, record: &Record, disk: &DiskRecord) -> bool {
    let mut head = Vec::new();
    let read = File::open(path)
        .and_then(|file| file.take((SUPERBLOCKS * BLOCK_SIZE) as u64).read_to_end(&mut head));
    let identity = identity_of(record, disk);
    let is_ours = |block: &[u8]| is_zero(block) || is_of(block, &identity);
    read.is_ok() && head.chunks(BLOCK_SIZE).all(is_ours)
}

/// Refuses a device that does not hold this disk of this node, as when names of devices changed.
/// Only reads.
pub fn check_ours(path: &Path, record: &Record, disk: &DiskRecord) -> Result<(), String> {
    let shown = path.display();
    let remedy = "if the device has another name now, name it with --disk (best by a name in \
                  /dev/disk/by-id, which stays the same)";
    let cannot = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => {
            format!("there is no device {shown}, which holds this node's data; {remedy}")
        }
        _ => format!("cannot read {shown}, which holds this node's data: {error}; check it"),
    };
    let file = File::open(path).map_err(cannot)?;
    let identity = identity_of(record, disk);
    for number in 0..SUPERBLOCKS {
        let mut block = [0u8; BLOCK_SIZE];
        match file.read_exact_at(&mut block, (number * BLOCK_SIZE) as u64) {
            Ok(()) if is_of(&block, &identity) => return Ok(()),
            // One of the two may be unreadable: the other one tells.
            _ => {}
        }
    }
    Err(format!(
        "{shown} does not hold this node's disk, or both of its superblocks are damaged; \
                 {remedy}"
    ))
}

/// Blanks the superblocks of a disk that this very node began to make and never served from.
/// Leaves every other content alone.
pub fn erase_half_made(path: &Path, record: &Record, disk: &DiskRecord) -> Result<(), String> {
    let identity = identity_of(record, disk);
    let cannot = |error: io::Error| format!("cannot clear {}: {error}", path.display());
    // Not exclusive: it may be this process that has it open still.
    let file = OpenOptions::new().read(true).write(true).open(path).map_err(cannot)?;
    let mut ours = false;
    for number in 0..SUPERBLOCKS {
        let mut block = [0u8; BLOCK_SIZE];
        let offset = (number * BLOCK_SIZE) as u64;
        file.read_exact_at(&mut block, offset).map_err(cannot)?;
        if is_of(&block, &identity) {
            file.write_all_at(&[0; BLOCK_SIZE], offset).map_err(cannot)?;
            ours = true;
        }
    }
    if ours { file.sync_all().map_err(cannot) } else { Ok(()) }
}

/// The identity as a superblock holds it.
fn identity_of(record: &Record, disk: &DiskRecord) -> Vec<u8> {
    [record.cluster.0, record.node.0, disk.disk.0].iter().flat_map(|id| id.to_le_bytes()).collect()
}

/// Whether the block looks like a superblock of this identity. Its checksum is the store's to
/// check.
fn is_of(block: &[u8], identity: &[u8]) -> bool {
    block.len() == BLOCK_SIZE && block.starts_with(b"SHEEPDSK") && block[IDENTITY] == *identity
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_content_is_named() {
        assert_eq!(found(&[0; LOOKED_AT]), None);
        for (name, offset, bytes) in SIGNATURES {
            let mut head = vec![0u8; LOOKED_AT];
            head[offset..offset + bytes.len()].copy_from_slice(bytes);
            assert_eq!(found(&head), Some(name));
        }
        let mut head = vec![0u8; LOOKED_AT];
        head[LOOKED_AT - 1] = 1;
        assert_eq!(found(&head), Some("data of an unknown kind"));
        assert_eq!(found(&[1; 100]), Some("data of an unknown kind"));
    }

    #[test]
    fn another_disk_at_the_same_name_is_noticed() {
        let directory = tempfile::tempdir().expect("a scratch directory");
        let path = directory.path().join("device");
        let disk = |id| DiskRecord {
            disk: proto::DiskId(id),
            kind: store::MediumKind::Device,
            path: path.clone(),
            making: false,
            limit_bytes: None,
        };
        let record = Record {
            cluster: proto::ClusterId(1),
            node: proto::NodeId(2),
            founding: false,
            joined: false,
            keyed: false,
            others: false,
            disks: vec![disk(3)],
        };
        let refused = |part: &str| {
            let error = check_ours(&path, &record, &record.disks[0]).expect_err(part);
            assert!(error.contains(part) && error.contains("--disk"), "{error}");
        };
        refused("there is no device");
        let mut blocks = vec![0u8; SUPERBLOCKS * BLOCK_SIZE];
        std::fs::write(&path, &blocks).expect("written");
        refused("does not hold this node's disk");
        let mut superblock = |id| {
            // The second one alone is enough: the first may be torn.
            let block = &mut blocks[BLOCK_SIZE..];
            block[..8].copy_from_slice(b"SHEEPDSK");
            block[IDENTITY].copy_from_slice(&identity_of(&record, &disk(id)));
            std::fs::write(&path, &blocks).expect("written");
        };
        superblock(4);
        refused("does not hold this node's disk");
        superblock(3);
        check_ours(&path, &record, &record.disks[0]).expect("it is ours");
        erase_half_made(&path, &record, &record.disks[0]).expect("erased");
        assert!(is_zero(&std::fs::read(&path).expect("read")[BLOCK_SIZE..BLOCK_SIZE + 8]));
    }
}
