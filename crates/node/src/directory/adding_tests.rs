//! Disks that are added and forgotten, step by step as a crash may leave them, and refused.

use super::*;
use std::os::unix::fs::MetadataExt;

struct Scratch {
    scratch: tempfile::TempDir,
    directory: DataDirectory,
}

impl Scratch {
    fn new() -> Scratch {
        let scratch = tempfile::tempdir().expect("a scratch directory");
        let path = scratch.path().join("data");
        let mut directory = DataDirectory::open(&path, None).expect("made");
        directory.begin().expect("begun");
        for file in [directory.journal(), directory.disk(&directory.record().disks[0])] {
            fs::write(file, b"content").expect("written");
        }
        directory.finish().expect("finished");
        Scratch { scratch, directory }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    fn vet(&self, path: &Path) -> Result<NewDisk, String> {
        NewDisk::vet(self.directory.path(), self.directory.record(), path, None)
    }

    /// The program ends and is started again.
    fn restart(self) -> Scratch {
        let Scratch { scratch, directory } = self;
        let path = directory.path().to_path_buf();
        drop(directory);
        let directory = DataDirectory::open(&path, None).expect("it starts");
        directory.begin().expect("nothing to begin");
        Scratch { scratch, directory }
    }

    #[track_caller]
    fn refused(&self, path: &Path, parts: &[&str]) {
        let before = (self.listing(), self.directory.record().clone());
        let sentence = self.vet(path).expect_err("it is refused");
        for part in parts {
            assert!(sentence.contains(part), "{part} is not in: {sentence}");
        }
        assert_eq!((self.listing(), self.directory.record().clone()), before, "{sentence}");
    }

    fn listing(&self) -> Vec<PathBuf> {
        let entries = fs::read_dir(self.scratch.path()).expect("listed");
        let mut paths: Vec<_> = entries.map(|entry| entry.expect("listed").path()).collect();
        paths.sort();
        paths
    }
}

/// A superblock of a disk, as far as its owner is told by it.
fn superblock(record: &Record, disk: DiskId) -> Vec<u8> {
    let mut block = vec![0; 2 * proto::BLOCK_SIZE];
    block[..8].copy_from_slice(b"SHEEPDSK");
    for (at, id) in [(32, record.cluster.0), (48, record.node.0), (64, disk.0)] {
        block[at..at + 16].copy_from_slice(&id.to_le_bytes());
    }
    block
}

#[test]
fn a_disk_is_listed_before_it_is_made_and_marked_until_it_serves() {
    let mut at = Scratch::new();
    let path = at.path("second");
    let new = at.vet(&path).expect("possible");
    assert!(!path.exists(), "looking makes nothing");
    let id = new.disk().disk;
    let listed = |at: &Scratch| at.directory.record().disks[1..].to_vec();

    // Killed before the record: unknown. After it: listed, and not there.
    at = at.restart();
    assert_eq!(listed(&at), []);
    at.directory.begin_disk(&new).expect("begun");
    at = at.restart();
    assert_eq!(listed(&at), [new.disk().clone()]);
    assert!(listed(&at)[0].making);
    let sentence = at.directory.check_disk(&listed(&at)[0]).expect_err("it is missing");
    assert!(sentence.contains("second/disk is missing; mount its file system"), "{sentence}");

    // After the medium was made.
    let medium = new.make(false).expect("made");
    assert_eq!((medium.kind(), medium.path()), (MediumKind::File, &*path.join("disk")));
    drop(medium);
    at = at.restart();
    at.directory.check_disk(&listed(&at)[0]).expect("it is there");
    assert!(listed(&at)[0].making);

    // And after it is one of the cluster's.
    fs::write(path.join("disk"), b"served").expect("written");
    at.directory.finish_disk(id).expect("finished");
    at = at.restart();
    assert!(!listed(&at)[0].making && listed(&at)[0].disk == id);
    assert_eq!(fs::read(path.join("disk")).expect("kept"), b"served");
    at.directory.forget_disk(id).expect("forgotten");
    at = at.restart();
    assert_eq!(listed(&at), []);
    assert_eq!(fs::read(path.join("disk")).expect("left alone"), b"served");
    let only = at.directory.record().disks[0].disk;
    at.directory.forget_disk(only).expect("nothing to do");
    assert_eq!(at.directory.record().disks.len(), 1, "a node has one disk at least");
}

#[test]
fn nothing_is_left_of_a_disk_that_is_not_added_but_what_others_have_there() {
    let mut at = Scratch::new();
    let path = at.path("second");
    let new = at.vet(&path).expect("possible");
    at.directory.begin_disk(&new).expect("begun");
    drop(new.make(false).expect("made"));
    fs::write(path.join("disk"), superblock(at.directory.record(), new.disk().disk)).expect("made");
    new.unmake();
    assert!(!path.exists());
    at.directory.forget_disk(new.disk().disk).expect("forgotten");

    // A directory that was there stays.
    fs::create_dir(&path).expect("made");
    let new = at.vet(&path).expect("possible");
    drop(new.make(false).expect("made"));
    new.unmake();
    assert_eq!(fs::read_dir(&path).expect("there").count(), 0);

    // Somebody else's file came there meanwhile: it is not made, and not removed.
    fs::write(path.join("disk"), b"not yours").expect("written");
    let sentence = new.make(false).expect_err("it is there");
    assert!(sentence.contains("somebody else uses it"), "{sentence}");
    new.unmake();
    assert_eq!(fs::read(path.join("disk")).expect("kept"), b"not yours");
    fs::write(path.join("disk"), superblock(at.directory.record(), DiskId(1))).expect("written");
    new.unmake();
    assert!(path.join("disk").exists(), "the disk of another one");

    // Nor one in which there is nothing yet: another sheep makes a disk of it.
    fs::remove_file(path.join("disk")).expect("removed");
    let new = at.vet(&path).expect("possible");
    fs::write(path.join("disk"), [0; 16384]).expect("written");
    new.make(false).expect_err("it is there");
    new.unmake();
    assert!(path.join("disk").exists(), "another one is making it");
    let disk = DiskRecord { path: path.join("disk"), ..new.disk().clone() };
    let other = fs::File::open(&disk.path).expect("opened");
    rustix::fs::flock(&other, rustix::fs::FlockOperation::NonBlockingLockExclusive).expect("free");
    unmake_blank(&disk);
    assert!(disk.path.exists(), "somebody has it");
    drop(other);
    fs::write(&disk.path, superblock(at.directory.record(), disk.disk)).expect("written");
    unmake_blank(&disk);
    assert!(disk.path.exists(), "it may have served");
    fs::write(&disk.path, [0; 16384]).expect("written");
    unmake_blank(&disk);
    assert!(!disk.path.exists());
}

#[test]
fn places_that_cannot_be_taken_are_told_in_one_sentence_each() {
    let mut at = Scratch::new();
    at.refused(Path::new("second"), &["no absolute path", "write it from / on"]);
    at.refused(Path::new("/dev/no-such"), &["no device /dev/no-such", "lsblk"]);
    at.refused(Path::new("/dev/null"), &["neither a block device nor a directory"]);
    at.refused(&at.path("no/such/disk"), &["no directory", "mount the file system"]);
    at.refused(&at.path(&"x".repeat(600)), &["too long", "at most 512"]);
    let link = at.path("link");
    std::os::unix::fs::symlink(at.path("nowhere"), &link).expect("linked");
    at.refused(&link, &["a link that leads nowhere"]);
    let file = at.path("file");
    fs::write(&file, b"x").expect("written");
    at.refused(&file, &["neither a block device nor a directory"]);

    // The data directory itself, by whichever name, and that of another node.
    let data = at.directory.path().to_path_buf();
    let own = at.directory.record().disks[0].disk.to_string();
    at.refused(&data, &[&own, "of this node", "choose another"]);
    let other = at.path("other-data");
    fs::create_dir(&other).expect("made");
    fs::copy(data.join(RECORD), other.join(RECORD)).expect("copied");
    at.refused(&other, &["the data directory of a Sheepdog node"]);

    // What is in use, by two names.
    let second = at.path("second");
    let new = at.vet(&second).expect("possible");
    at.directory.begin_disk(&new).expect("begun");
    drop(new.make(false).expect("made"));
    let (id, alias) = (new.disk().disk.to_string(), at.path("alias"));
    std::os::unix::fs::symlink(&second, &alias).expect("linked");
    for path in [&second, &alias, &second.join("../second")] {
        at.refused(path, &[&id, "take that disk out first"]);
    }

    // What holds something.
    let full = at.path("full");
    fs::create_dir(&full).expect("made");
    fs::create_dir(full.join("lost+found")).expect("made");
    at.vet(&full).expect("the root of a file system is empty");
    let record = at.directory.record().clone();
    let foreign = Record { cluster: ClusterId(1), ..record.clone() };
    let neighbour = Record { node: NodeId(1), ..record.clone() };
    let holds = [
        (&foreign, "a disk of another Sheepdog cluster"),
        (&neighbour, "of another node of this cluster"),
        (&record, "which was one of this node"),
    ];
    for (owner, words) in holds {
        fs::write(full.join("disk"), superblock(owner, DiskId(9))).expect("written");
        at.refused(&full, &[words, "remove the file `disk`"]);
    }
    fs::write(full.join("disk"), b"holiday").expect("written");
    at.refused(&full, &["is not empty (it holds `disk`)"]);
}

#[test]
fn two_disks_on_one_file_system_are_warned_of() {
    let at = Scratch::new();
    let new = at.vet(&at.path("second")).expect("possible");
    let own = at.directory.record().disks[0].disk.to_string();
    let warning = new.warning().expect("both die together");
    assert!(warning.contains(&own) && warning.contains("same file system"), "{warning}");
    // Elsewhere it is silent.
    if let Ok(elsewhere) = tempfile::tempdir_in("/dev/shm")
        && elsewhere.path().metadata().expect("there").dev()
            != at.scratch.path().metadata().expect("there").dev()
    {
        fs::create_dir(elsewhere.path().join("disk")).expect("made");
        assert_eq!(at.vet(&elsewhere.path().join("disk")).expect("possible").warning(), None);
    }
}

#[test]
fn a_node_with_as_many_disks_as_it_may_have_takes_no_more() {
    let mut at = Scratch::new();
    for number in 1..proto::limits::NODE_DISKS_MAX {
        let new = at.vet(&at.path(&format!("disk-{number}"))).expect("possible");
        at.directory.begin_disk(&new).expect("begun");
    }
    at.refused(&at.path("one-more"), &["64 disks at most", "dog disk remove"]);
    at.restart();
}
