//! The corpora of the fuzzers as ordinary tests replay them: shared by the tests of the crates
//! whose parsers are fuzzed.

use std::{fs, path::PathBuf};

/// Checks that the corpus of a target has these seeds as they are (`UPDATE_CORPUS=1` writes them
/// anew), then replays everything in it.
pub fn check<Name: AsRef<str>>(target: &str, seeds: Vec<(Name, Vec<u8>)>, replay: impl Fn(&[u8])) {
    let directory =
        PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus").join(target);
    let update = std::env::var_os("UPDATE_CORPUS").is_some();
    for (name, bytes) in &seeds {
        let path = directory.join(name.as_ref());
        if update {
            fs::create_dir_all(&directory).expect("the corpus can be written");
            fs::write(&path, bytes).expect("the corpus can be written");
        }
        let kept = fs::read(&path).unwrap_or_default();
        assert!(kept == *bytes, "{} is not the seed; run with UPDATE_CORPUS=1", path.display());
    }
    let mut count = 0;
    for entry in fs::read_dir(&directory).expect("the corpus can be read") {
        let path = entry.expect("the corpus can be read").path();
        println!("{}", path.display()); // shown when the replay fails
        replay(&fs::read(&path).expect("the corpus can be read"));
        count += 1;
    }
    assert!(count >= seeds.len());
}
