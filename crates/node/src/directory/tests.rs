//! Data directories: made, found again, locked, cut off half way, and refused.

use super::*;
use std::os::unix::fs::MetadataExt;

struct Scratch(tempfile::TempDir);

impl Scratch {
    fn new() -> Scratch {
        Scratch(tempfile::tempdir().expect("a scratch directory"))
    }

    fn data(&self) -> PathBuf {
        self.0.path().join("data")
    }

    /// Everything in the data directory, with content.
    fn content(&self) -> Vec<(String, Vec<u8>)> {
        let Ok(entries) = fs::read_dir(self.data()) else { return Vec::new() };
        let mut content: Vec<_> = entries
            .map(|entry| entry.expect("listed"))
            .map(|entry| {
                let name = entry.file_name().to_string_lossy().into_owned();
                (name, fs::read(entry.path()).unwrap_or_default())
            })
            .collect();
        content.sort();
        content
    }

    fn refused(&self, device: Option<&Path>) -> String {
        let before = self.content();
        let sentence = DataDirectory::open(&self.data(), device).expect_err("refused");
        assert_eq!(self.content(), before, "changed although refused: {sentence}");
        sentence
    }
}

/// Founds a node, as the daemon does, and leaves it.
fn found(path: &Path) -> Record {
    let mut directory = DataDirectory::open(path, None).expect("made");
    directory.begin().expect("begun");
    for file in [directory.journal(), directory.disk(&directory.record().disks[0])] {
        fs::write(file, b"content").expect("written");
    }
    directory.finish().expect("finished");
    directory.record().clone()
}

#[test]
fn a_node_finds_itself_again() {
    let scratch = Scratch::new();
    let record = found(&scratch.data());
    assert_eq!(fs::metadata(scratch.data()).expect("there").mode() & 0o777, DIRECTORY_MODE);
    for _ in 0..2 {
        let directory = DataDirectory::open(&scratch.data(), None).expect("opens");
        directory.begin().expect("nothing to begin");
        assert_eq!(directory.record(), &record);
        assert!(!directory.record().founding);
        assert_eq!(fs::read(directory.journal()).expect("kept"), b"content");
    }
    let other = Scratch::new();
    assert_ne!(found(&other.data()).node, record.node);
}

#[test]
fn a_half_made_node_is_made_anew_with_the_same_identity() {
    let scratch = Scratch::new();
    let first = DataDirectory::open(&scratch.data(), None).expect("made");
    first.begin().expect("begun");
    fs::write(first.journal(), b"half").expect("written");
    let record = first.record().clone();
    drop(first);
    let second = DataDirectory::open(&scratch.data(), None).expect("opens");
    assert_eq!(second.record(), &record);
    second.begin().expect("begun again");
    assert!(!second.journal().exists());
}

#[test]
fn a_crash_before_the_record_leaves_nothing_to_misread() {
    let scratch = Scratch::new();
    drop(DataDirectory::open(&scratch.data(), None).expect("made"));
    fs::write(scratch.data().join("node.new"), b"torn").expect("written");
    fs::write(scratch.data().join("nbd.sock"), b"").expect("written");
    found(&scratch.data());
}

#[test]
fn an_abandoned_node_leaves_no_trace() {
    let scratch = Scratch::new();
    let directory = DataDirectory::open(&scratch.data(), None).expect("made");
    directory.begin().expect("begun");
    fs::write(directory.journal(), b"half").expect("written");
    directory.abandon();
    assert!(!scratch.data().exists());

    let record = found(&scratch.data());
    DataDirectory::open(&scratch.data(), None).expect("opens").abandon();
    assert_eq!(Record::read(&scratch.data().join(RECORD)).expect("kept"), record);
}

#[test]
fn a_directory_has_one_user() {
    let scratch = Scratch::new();
    let first = DataDirectory::open(&scratch.data(), None).expect("made");
    let sentence = scratch.refused(None);
    let holder = format!("already in use by process {}", std::process::id());
    assert!(sentence.contains(&holder), "{sentence}");
    drop(first);
    DataDirectory::open(&scratch.data(), None).expect("opens");
}

#[test]
fn directories_that_are_not_ours_are_refused_and_left_alone() {
    let with = |name: &str, content: &[u8], part: &str| {
        let scratch = Scratch::new();
        fs::create_dir(scratch.data()).expect("made");
        fs::write(scratch.data().join(name), content).expect("written");
        let sentence = scratch.refused(None);
        assert!(sentence.contains(part), "{sentence}");
    };
    with("thesis.tex", b"years", "it holds `thesis.tex`");
    with("disk", b"SHEEPDSK", "the record `node`");
    with("cluster", b"", "the record `node`");

    let scratch = Scratch::new();
    found(&scratch.data());
    fs::write(scratch.data().join(RECORD), b"nonsense").expect("written");
    let sentence = scratch.refused(None);
    assert!(sentence.contains("is no node record; restore it"), "{sentence}");
}

#[test]
fn a_damaged_record_is_never_replaced() {
    let scratch = Scratch::new();
    found(&scratch.data());
    let path = scratch.data().join(RECORD);
    let mut bytes = fs::read(&path).expect("read");
    bytes[40] ^= 1;
    fs::write(&path, bytes).expect("written");
    assert!(scratch.refused(None).contains("is damaged"));
}

#[test]
fn devices_are_looked_at_before_anything_is_made() {
    let scratch = Scratch::new();
    assert!(scratch.refused(Some(Path::new("/dev/no-such"))).contains("no device"));
    assert!(scratch.refused(Some(Path::new("/dev/null"))).contains("no block device"));
    assert!(!scratch.data().exists());
    found(&scratch.data());
    let sentence = scratch.refused(Some(Path::new("/dev/null")));
    assert!(sentence.contains("start it without --disk"), "{sentence}");
}

#[test]
fn a_path_too_long_for_sockets_is_refused() {
    let path = Path::new("/tmp").join("x".repeat(PATH_BYTES_MAX));
    let sentence = DataDirectory::open(&path, None).expect_err("refused");
    assert!(sentence.contains("too long for sockets"), "{sentence}");
    assert!(!path.exists());
}

#[test]
fn a_read_only_file_system_is_called_so() {
    assert!(lock_remedy(io::ErrorKind::ReadOnlyFilesystem).contains("read only"));
    assert!(lock_remedy(io::ErrorKind::PermissionDenied).contains("the user who owns it"));
}

/// A witness, as the daemon makes one, and leaves it.
fn witness(path: &Path) -> Record {
    let mut directory = DataDirectory::open_as(path, None, Some(true)).expect("made");
    directory.begin().expect("begun");
    fs::write(directory.journal(), b"content").expect("written");
    directory.finish().expect("finished");
    directory.record().clone()
}

#[test]
fn a_witness_finds_itself_again_and_stays_one() {
    let scratch = Scratch::new();
    let record = witness(&scratch.data());
    assert!(record.is_witness());
    for said in [None, Some(true)] {
        let directory = DataDirectory::open_as(&scratch.data(), None, said).expect("opens");
        assert_eq!(directory.record(), &record);
    }
    let before = scratch.content();
    let device = Some(Path::new("/dev/null"));
    for (device, said, part) in [
        (device, None, "start it without --disk"),
        (device, Some(true), "leave out one of the two"),
        (None, Some(false), "start it without --witness off"),
    ] {
        let opened = DataDirectory::open_as(&scratch.data(), device, said);
        let sentence = opened.expect_err("refused");
        assert!(sentence.contains(part), "{sentence}");
        assert_eq!(scratch.content(), before);
    }
    assert!(scratch.content().iter().all(|(name, _)| name != DISK));
}

#[test]
fn a_node_that_stores_data_does_not_become_a_witness() {
    let scratch = Scratch::new();
    let record = found(&scratch.data());
    let before = scratch.content();
    let opened = DataDirectory::open_as(&scratch.data(), None, Some(true));
    let sentence = opened.expect_err("refused");
    assert!(sentence.contains("start it without --witness"), "{sentence}");
    assert_eq!(scratch.content(), before);
    let directory = DataDirectory::open_as(&scratch.data(), None, Some(false)).expect("as it is");
    assert_eq!(directory.record(), &record);
}

#[test]
fn what_was_begun_may_become_something_else_as_long_as_nothing_was_served() {
    let scratch = Scratch::new();
    let begin = |said: Option<bool>| {
        let directory = DataDirectory::open_as(&scratch.data(), None, said).expect("opens");
        directory.begin().expect("begun");
        directory.record().is_witness()
    };
    assert!(!begin(None));
    fs::write(scratch.data().join(DISK), b"half made").expect("written");
    assert!(begin(Some(true)));
    assert!(!scratch.data().join(DISK).exists());
    assert!(begin(None), "as it was begun");
    assert!(!begin(Some(false)));
}
