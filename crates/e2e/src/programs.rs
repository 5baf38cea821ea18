//! Where the programs under test and the guest are; both are made when they are not there yet.

use crate::tool::Tool;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::Duration;

/// A first build on a slow machine with a cold cache.
const BUILD_TIME_LIMIT: Duration = Duration::from_secs(1800);

/// The root of the work tree.
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().nth(2).expect("the crate lies in crates/e2e")
}

/// The daemon: out of the directory that `SHEEP_PROGRAMS` names, else built here in release mode,
/// as people run it.
pub fn sheep() -> PathBuf {
    programs().join("sheep")
}

/// The command.
pub fn dog() -> PathBuf {
    programs().join("dog")
}

fn programs() -> &'static Path {
    static PROGRAMS: OnceLock<PathBuf> = OnceLock::new();
    PROGRAMS.get_or_init(|| {
        if let Some(directory) = std::env::var_os("SHEEP_PROGRAMS") {
            return PathBuf::from(directory);
        }
        let cargo = std::env::var_os("CARGO").unwrap_or("cargo".into());
        // Joined, so that a relative directory is the one cargo means when run at the top.
        let target = std::env::var_os("CARGO_TARGET_DIR").unwrap_or("target".into());
        let target = repository().join(target);
        Tool::new(cargo)
            .words("build --release --quiet --package node --bins --target-dir")
            .arg(&target)
            .directory(repository())
            .time_limit(BUILD_TIME_LIMIT)
            .ok()
            .expect("sheep and dog build");
        target.join("release")
    })
}

/// A file of the guest: `vmlinuz`, `initramfs` or `disk.img`. See tools/build-guest.
pub fn guest_file(name: &str) -> PathBuf {
    static GUEST: OnceLock<PathBuf> = OnceLock::new();
    GUEST
        .get_or_init(|| {
            let directory = repository().join("target/guest");
            Tool::new(repository().join("tools/build-guest"))
                .arg(&directory)
                .time_limit(BUILD_TIME_LIMIT)
                .ok()
                .expect("the guest can be made");
            directory
        })
        .join(name)
}
