//! `make demo`: a virtual machine boots from a volume, and nothing is lost when the daemon is
//! killed under it.
//!
//! Says in words what it does, works in a scratch directory that it removes, and ends with PASS or
//! with what went wrong.
#![allow(clippy::disallowed_methods, reason = "tests of real processes read a clock and wait")]

use anyhow::{Context, Result, bail, ensure};
use e2e::{DiskSetup, Guest, Machine, Node, Scratch, Tool, guest_file};
use std::process::ExitCode;
use std::time::{Duration, Instant};

const VOLUME: &str = "demo";
const KILLS: usize = 3;
/// Each record that the guest writes, in bytes.
const RECORD_BYTES: usize = 65536;
/// How many records the guest writes, and how often it says so on its console.
const RECORDS: usize = 400;
const REPORT_EVERY: usize = 20;
const GIVE_BACK_TIME_LIMIT: Duration = Duration::from_secs(10);
const GUEST_TIME_LIMIT: Duration = Duration::from_secs(120);

fn main() -> ExitCode {
    match demo() {
        Ok(()) => {
            println!(
                "\nPASS: a guest booted from a sheepdog volume and lost nothing in {KILLS} kills \
                 of the daemon."
            );
            ExitCode::SUCCESS
        }
        Err(error) => {
            println!("\nFAIL: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn demo() -> Result<()> {
    let scratch = Scratch::new()?;

    step("Starting a node: one command, no configuration file.");
    let data = scratch.join("data");
    show(&format!("sheep --data {}", data.display()));
    let begin = Instant::now();
    let mut node = Node::start(&data, &[])?;
    println!("    It serves after {:.2} s.", begin.elapsed().as_secs_f64());

    step("Importing a bootable disk image (a stock kernel, syslinux, ext4) as a volume.");
    let image = guest_file("disk.img");
    show(&format!("dog volume import disk.img {VOLUME}"));
    indent(&node.dog("volume import").arg(&image).arg(VOLUME).ok()?);
    show("dog volume list");
    indent(&node.dog_ok("volume list")?);
    println!("    Only what is not zero takes space: the image was sparse, and so is the volume.");

    step("Booting a virtual machine from it: boot loader, kernel and files come over NBD.");
    let disk = DiskSetup::new(&node.nbd_socket(), VOLUME);
    let begin = Instant::now();
    let mut guest = Guest::boot(Machine::Disk, &disk)?;
    println!("    The guest is up after {:.1} s.", begin.elapsed().as_secs_f64());
    show("(in the guest) uname -sr; df -h /");
    indent(&guest.ok("uname -sr; df -h /", GUEST_TIME_LIMIT)?);

    step("The guest writes records and notes their checksums; sheep is killed (-9) under it.");
    kill_under_load(&mut node, &mut guest)?;

    step("Verifying in the guest, with its page cache dropped so that the volume is really read.");
    let verify = "echo 3 >/proc/sys/vm/drop_caches; cd /records; \
                  sha256sum -c sums >/tmp/verdict 2>&1; code=$?; \
                  echo \"$(grep -c ': OK' /tmp/verdict) records are right, \
                  $(grep -vc ': OK' /tmp/verdict) are wrong\"; exit $code";
    indent(&guest.ok(verify, GUEST_TIME_LIMIT)?);
    let errors =
        guest.ok("dmesg | grep -ciE 'I/O error|EXT4-fs error' || true", GUEST_TIME_LIMIT)?;
    ensure!(errors.trim() == "0", "the guest's kernel saw I/O errors");
    println!("    The guest's kernel saw no I/O error.");
    let sums = guest.ok("cat /records/sums", GUEST_TIME_LIMIT)?;

    step(
        "Switching the guest off, restarting sheep cleanly, and verifying from outside the guest.",
    );
    guest.power_off()?;
    node.stop()?;
    node.begin()?;
    let exported = scratch.join("exported.img");
    show(&format!("dog volume export {VOLUME} exported.img"));
    indent(&node.dog("volume export").arg(VOLUME).arg(&exported).ok()?);
    verify_outside(&scratch, &exported, &sums)?;
    show("dog status");
    indent(&node.dog("status").run()?.text());

    step("Deleting the volume gives its space back.");
    show(&format!("dog volume delete {VOLUME} --now --yes"));
    node.dog_ok(&format!("volume delete {VOLUME} --now --yes"))?;
    let begin = Instant::now();
    while node.dog_json("status")?["used_bytes"] != 0 {
        ensure!(begin.elapsed() < GIVE_BACK_TIME_LIMIT, "the space does not come back");
        std::thread::sleep(Duration::from_millis(20));
    }
    println!("    All of it is free again after {:.2} s.", begin.elapsed().as_secs_f64());
    node.stop()?;
    let unexpected = node.unexpected()?;
    ensure!(unexpected.is_empty(), "sheep logged what it should not:\n{}", unexpected.join("\n"));
    Ok(())
}

fn kill_under_load(node: &mut Node, guest: &mut Guest) -> Result<()> {
    let writer = format!(
        "mkdir -p /records && cd /records && n=0\n\
         while [ $n -lt {RECORDS} ]; do\n\
           n=$((n + 1))\n\
           dd if=/dev/urandom of=r$n bs={RECORD_BYTES} count=1 conv=fsync 2>/dev/null || exit 1\n\
           sha256sum r$n >>sums || exit 1\n\
           [ $((n % {REPORT_EVERY})) -ne 0 ] ||\n\
             echo \"guest: record $n is written and synced\" >/dev/console\n\
         done\n\
         sync; echo $n"
    );
    let writing = guest.begin(&writer)?;
    for kill in 1..=KILLS {
        let record = kill * RECORDS / (KILLS + 1) / REPORT_EVERY * REPORT_EVERY;
        guest.wait_console(&format!("record {record} is written"), GUEST_TIME_LIMIT)?;
        println!(
            "    The guest has written record {record}. Kill {kill}: SIGKILL for sheep, {} ...",
            pid(node)?
        );
        node.kill()?;
        std::thread::sleep(Duration::from_millis(500));
        let begin = Instant::now();
        node.begin()?;
        println!(
            "    ... down for half a second, then started again: it serves after {:.2} s, now {}.",
            begin.elapsed().as_secs_f64(),
            pid(node)?
        );
    }
    let output = guest.finish(writing, GUEST_TIME_LIMIT)?;
    if output.code != 0 {
        bail!("a write failed in the guest: {}", output.output);
    }
    println!(
        "    The guest has written {} records and noticed nothing but a pause.",
        output.output.trim()
    );
    Ok(())
}

fn pid(node: &Node) -> Result<String> {
    Ok(format!("process {}", node.pid().context("sheep does not run")?))
}

/// Takes the records out of the exported image with e2fsprogs, without mounting it, and compares
/// their checksums.
fn verify_outside(scratch: &Scratch, image: &std::path::Path, sums: &str) -> Result<()> {
    let records = scratch.join("records");
    // The second partition begins behind the 49 MiB of MBR and FAT; see tools/build-guest.
    let filesystem = format!("{}?offset={}", image.display(), 49 << 20);
    Tool::new("debugfs")
        .arg("-R")
        .arg(format!("rdump /records {}", scratch.path().display()))
        .arg(&filesystem)
        .ok()?;
    std::fs::write(records.join("expected"), sums)?;
    let checked = Tool::new("sha256sum")
        .words("--check --quiet --strict expected")
        .directory(&records)
        .run()?;
    ensure!(checked.code == Some(0), "outside the guest: {checked}");
    println!("    All {} records are the same outside the guest.", sums.lines().count());
    Ok(())
}

fn step(text: &str) {
    println!("\n==> {text}");
}

fn show(command: &str) {
    println!("    $ {command}");
}

fn indent(text: &str) {
    for line in text.lines() {
        println!("      {line}");
    }
}
