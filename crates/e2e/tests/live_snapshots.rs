//! Snapshots of a running guest's file system and databases: each recovers as after a power
//! failure, and all that the guest had synced or committed before is in it.
#![allow(clippy::disallowed_methods, reason = "tests of real processes read a clock and wait")]

use anyhow::{Context, Result, ensure};
use e2e::{DiskSetup, Guest, Machine, Node, Scratch, Tool};
use std::fs;
use std::path::Path;
use std::time::Duration;

const SNAPSHOTS: usize = 5;
/// Of the databases.
const DATABASE_SNAPSHOTS: usize = 20;
/// What the accounts of a database have together, whatever is moved between them.
const BALANCE: &str = "10000";
const GUEST_TIME_LIMIT: Duration = Duration::from_secs(180);

/// A program of e2fsprogs, which are not in every user's path.
fn e2fsprogs(program: &str) -> Tool {
    let path = std::env::var("PATH").unwrap_or_default();
    Tool::new("env").arg(format!("PATH={path}:/usr/sbin:/sbin")).arg(program)
}

/// Replays the journal of an image as e2fsck does at boot, which refuses all that is not safe to
/// mend by itself; then nothing may be wrong.
fn recover(image: &Path) -> Result<()> {
    let output = e2fsprogs("e2fsck").words("-f -p").arg(image).run()?;
    ensure!(output.code.is_some_and(|code| code <= 1), "{output}");
    ensure!(output.text().contains("recovering journal"), "it was not in use: {output}");
    e2fsprogs("e2fsck").words("-f -n").arg(image).ok()?;
    Ok(())
}

/// Copies a file out of an image of a file system.
fn copy_out(image: &Path, file: &str, copy: &Path) -> Result<()> {
    let dump = format!("dump /{file} {}", copy.display());
    e2fsprogs("debugfs").arg("-R").arg(dump).arg(image).ok()?;
    Ok(())
}

/// The digest of a file in an image of a file system.
fn digest_in(image: &Path, file: &str, scratch: &Scratch) -> Result<String> {
    let copy = scratch.join("file");
    copy_out(image, file, &copy)?;
    let said = Tool::new("sha256sum").arg(&copy).ok()?;
    fs::remove_file(&copy)?;
    Ok(said.split_whitespace().next().unwrap_or_default().to_owned())
}

#[test]
fn file_systems_of_live_snapshots_recover_with_all_that_was_synced() -> Result<()> {
    let scratch = Scratch::new()?;
    let mut node = Node::start(&scratch.join("data"), &[])?;
    node.dog_ok("volume create v 192M")?;
    let mut guest = Guest::boot(Machine::Initramfs, &DiskSetup::new(&node.nbd_socket(), "v"))?;
    // The load: files that are written, synced, renamed and removed without end.
    let load = "cd /mnt && i=0; while [ ! -e /tmp/stop ]; do i=$((i + 1)); mkdir -p d$((i % 7)); \
                dd if=/dev/urandom of=d$((i % 7))/new bs=4k count=$((i % 50 + 1)) 2>/dev/null; \
                [ $((i % 5)) != 0 ] || sync; mv d$((i % 7))/new d$((i % 7))/f$((i % 31)); \
                [ $((i % 11)) != 0 ] || rm -rf d$((i % 3)); done";
    guest.ok("mkfs.ext4 -q /dev/vda && mount /dev/vda /mnt", GUEST_TIME_LIMIT)?;
    guest.ok(&format!("({load}) >/dev/null 2>&1 &"), GUEST_TIME_LIMIT)?;
    let mut digests = Vec::new();
    for number in 1..=SNAPSHOTS {
        let script = format!(
            "dd if=/dev/urandom of=/mnt/file{number} bs=64k count=16 conv=fsync 2>/dev/null && \
             sha256sum </mnt/file{number}"
        );
        let said = guest.ok(&script, GUEST_TIME_LIMIT)?;
        digests.push(said.split_whitespace().next().unwrap_or_default().to_owned());
        node.dog_ok(&format!("volume snapshot v@{number}"))?;
    }
    guest.ok("touch /tmp/stop", GUEST_TIME_LIMIT)?;

    // Each is cloned while the guest still has the volume.
    for number in 1..=SNAPSHOTS {
        let image = scratch.join("image");
        node.dog_ok(&format!("volume clone v@{number} c{number}"))?;
        node.dog("volume export").arg(format!("c{number}")).arg(&image).ok()?;
        recover(&image).with_context(|| format!("snapshot {number}"))?;
        for (place, expected) in digests.iter().enumerate() {
            let file = format!("file{}", place + 1);
            if place < number {
                let found = digest_in(&image, &file, &scratch)?;
                ensure!(found == *expected, "{file} of snapshot {number} is not what was synced");
            }
        }
        fs::remove_file(&image)?;
    }
    guest.power_off()?;

    // The clones need neither the volume nor its snapshots.
    node.dog_ok("volume delete v --with-snapshots --now --yes")?;
    let image = scratch.join("image");
    node.dog("volume export c5").arg(&image).ok()?;
    recover(&image)?;
    node.stop()
}

/// Moves money between accounts and keeps a book of it, one transaction after the other, in a
/// database with a rollback journal and in one with a write-ahead log; says in `/tmp/committed`
/// which transaction was the last that both have.
fn database_load() -> String {
    let create = format!(
        "create table book(id integer primary key, v text); create table account(id integer \
         primary key, n integer); with recursive c(i) as (select 1 union all select i + 1 from c \
         where i < 100) insert into account select i, {BALANCE} / 100 from c;"
    );
    format!(
        "cd /mnt && sqlite3 journal.db '{create}' && sqlite3 wal.db 'pragma journal_mode=wal; \
         {create}' && i=0; while [ ! -e /tmp/stop ]; do i=$((i + 1)); t=\"pragma \
         synchronous=full; begin; insert into book values($i, hex(randomblob(700))); update \
         account set n = n - 7 where id = 1 + $i % 100; update book set v = hex(randomblob(300)) \
         where id = 1 + $i * 31 % $i; update account set n = n + 7 where id = 1 + $i * 17 % 100; \
         commit;\"; sqlite3 journal.db \"$t\" && sqlite3 wal.db \"$t\" || {{ echo $i \
         >/tmp/failed; break; }}; echo $i >/tmp/new; mv /tmp/new /tmp/committed; done"
    )
}

/// The last transaction that the guest was told is committed.
fn committed(guest: &mut Guest) -> Result<u64> {
    let said = guest.ok("! cat /tmp/failed 2>/dev/null && cat /tmp/committed", GUEST_TIME_LIMIT)?;
    said.trim().parse().with_context(|| format!("the guest says {said:?}"))
}

/// A database as it is found in an image, recovered by its own program: whole, balanced, and with
/// every transaction up to some.
fn check_database(image: &Path, name: &str, committed: u64, scratch: &Scratch) -> Result<()> {
    let directory = scratch.join(name);
    fs::create_dir(&directory)?;
    let database = directory.join("database");
    copy_out(image, name, &database)?;
    for companion in ["-journal", "-wal"] {
        let copy = directory.join(format!("database{companion}"));
        copy_out(image, &format!("{name}{companion}"), &copy)?;
    }
    let question = format!(
        "pragma integrity_check; select sum(n) from account; select max(id) >= {committed} and \
         count(*) = max(id) from book;"
    );
    let said = Tool::new("sqlite3").arg(&database).arg(&question).ok()?;
    let expected = ["ok", BALANCE, "1"];
    ensure!(said.lines().eq(expected), "{name}, of which {committed} was committed: {said}");
    fs::remove_dir_all(&directory)?;
    Ok(())
}

#[test]
fn databases_of_live_snapshots_recover_with_all_that_was_committed() -> Result<()> {
    let scratch = Scratch::new()?;
    let mut node = Node::start(&scratch.join("data"), &[])?;
    node.dog_ok("volume create v 128M")?;
    let mut guest = Guest::boot(Machine::Initramfs, &DiskSetup::new(&node.nbd_socket(), "v"))?;
    guest.ok("mkfs.ext4 -q /dev/vda && mount /dev/vda /mnt", GUEST_TIME_LIMIT)?;
    guest.ok(&format!("({}) >/tmp/log 2>&1 &", database_load()), GUEST_TIME_LIMIT)?;
    guest.ok("until [ -e /tmp/committed ]; do sleep 0.1; done", GUEST_TIME_LIMIT)?;
    let mut before = 0;
    for number in 1..=DATABASE_SNAPSHOTS {
        // Something new is in each of them.
        let wait = format!("until [ $(cat /tmp/committed) -gt {before} ]; do sleep 0.02; done");
        guest.ok(&wait, GUEST_TIME_LIMIT)?;
        before = committed(&mut guest)?;
        node.dog_ok(&format!("volume snapshot v@{number}"))?;
        // The load goes on while its snapshots are cloned, recovered and checked.
        node.dog_ok(&format!("volume clone v@{number} c{number}"))?;
        let image = scratch.join("image");
        node.dog("volume export").arg(format!("c{number}")).arg(&image).ok()?;
        recover(&image).with_context(|| format!("snapshot {number}"))?;
        for name in ["journal.db", "wal.db"] {
            check_database(&image, name, before, &scratch)
                .with_context(|| format!("snapshot {number}"))?;
        }
        fs::remove_file(&image)?;
    }
    // The first ones are still what they were.
    let image = scratch.join("image");
    node.dog("volume export v@1").arg(&image).ok()?;
    recover(&image)?;
    check_database(&image, "journal.db", 1, &scratch)?;
    guest.ok("touch /tmp/stop", GUEST_TIME_LIMIT)?;
    committed(&mut guest)?;
    guest.power_off()?;
    node.stop()
}
