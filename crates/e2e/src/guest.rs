//! A virtual machine that does what scripts say. What is in it: tools/build-guest.

use crate::programs::guest_file;
use crate::qmp::Qmp;
use crate::scratch::Scratch;
use crate::tool::{Tool, wait};
use anyhow::{Context, Result, bail, ensure};
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

const BOOT_TIME_LIMIT: Duration = Duration::from_secs(180);
/// A working KVM prints the kernel's first line in a fraction of this.
const KVM_PROBE_TIME: Duration = Duration::from_secs(6);
const END_TIME_LIMIT: Duration = Duration::from_secs(60);

/// How the guest's disk is attached.
#[derive(Clone, Debug)]
pub struct DiskSetup {
    /// The unix socket of the NBD server.
    pub socket: PathBuf,
    /// The name of the export, so of the volume.
    pub export: String,
    /// What QEMU does when a write finds no space: `enospc` pauses the guest, `report` tells it.
    pub werror: &'static str,
    /// How long QEMU waits for the server to come back, in seconds.
    pub reconnect_delay_s: u32,
}

/// What the guest is started from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Machine {
    /// Kernel and initramfs are given to QEMU; the volume is an empty disk.
    Initramfs,
    /// The BIOS boots from the volume, which holds `disk.img`.
    Disk,
}

/// What fio writes to the guest's disk and verifies: whole blocks with flushes in its first half,
/// odd sizes at odd sectors in its second.
#[derive(Clone, Copy, Debug)]
pub struct VerifiedLoad {
    /// For how long, in seconds.
    pub seconds: u32,
    /// Where the second half begins, in MiB.
    pub half_mib: u32,
    /// How much of each half is written to, in MiB.
    pub written_mib: u32,
    /// After how many writes they are verified.
    pub backlog: u32,
}

/// A running virtual machine with one disk, `/dev/vda`. Killed when dropped.
pub struct Guest {
    child: Child,
    console: PathBuf,
    agent: BufReader<UnixStream>,
    qmp: Qmp,
    serial: u64,
    _directory: Scratch,
}

/// How a script in the guest ended.
#[derive(Debug)]
pub struct GuestOutput {
    /// Its exit code.
    pub code: i32,
    /// What it printed, both streams.
    pub output: String,
}

/// A script that runs in the guest; give it back to [`Guest::finish`].
#[must_use]
pub struct Running {
    serial: u64,
}

impl DiskSetup {
    /// A volume behind a socket, with the settings that the manual recommends.
    pub fn new(socket: &Path, export: &str) -> DiskSetup {
        DiskSetup {
            socket: socket.to_owned(),
            export: export.to_owned(),
            werror: "enospc",
            reconnect_delay_s: 60,
        }
    }

    /// QEMU's words for it.
    pub fn arguments(&self) -> Vec<String> {
        let socket = self.socket.display();
        let DiskSetup { export, werror, reconnect_delay_s, .. } = self;
        vec![
            "-blockdev".to_owned(),
            format!(
                "driver=nbd,node-name=volume,server.type=unix,server.path={socket},export={export},\
                 reconnect-delay={reconnect_delay_s},discard=unmap,cache.direct=on"
            ),
            "-device".to_owned(),
            format!("virtio-blk-pci,id=disk,drive=volume,werror={werror},rerror=report"),
        ]
    }
}

impl Guest {
    /// Boots a machine whose first disk is a volume and waits until it takes scripts.
    pub fn boot(machine: Machine, disk: &DiskSetup) -> Result<Guest> {
        Guest::boot_with(machine, &disk.arguments())
    }

    /// As [`Guest::boot`], with QEMU's own words for the disk, such as `dog volume attach` prints.
    pub fn boot_with(machine: Machine, disk_arguments: &[String]) -> Result<Guest> {
        let directory = Scratch::new()?;
        let console = directory.join("console");
        let mut qemu = bare_machine(accelerator())
            .arg("-serial")
            .arg(format!("file:{}", console.display()))
            .arg("-serial")
            .arg(format!("unix:{},server=on,wait=off", directory.join("agent").display()))
            .arg("-qmp")
            .arg(format!("unix:{},server=on,wait=off", directory.join("qmp").display()))
            .args(disk_arguments);
        if machine == Machine::Initramfs {
            qemu = qemu
                .arg("-kernel")
                .arg(guest_file("vmlinuz"))
                .arg("-initrd")
                .arg(guest_file("initramfs"))
                .arg("-append")
                .arg("console=ttyS0 panic=-1 quiet");
        }
        let errors = directory.join("qemu.log");
        let mut child = qemu.spawn(File::create(&errors)?)?;
        let deadline = Instant::now() + BOOT_TIME_LIMIT;
        let mut start = || -> Result<(BufReader<UnixStream>, Qmp)> {
            let agent = connect(&directory.join("agent"), &mut child, deadline)?;
            let qmp = Qmp::connect(connect(&directory.join("qmp"), &mut child, deadline)?)?;
            Ok((BufReader::new(agent), qmp))
        };
        let (agent, qmp) =
            start().with_context(|| fs::read_to_string(&errors).unwrap_or_default())?;
        let mut guest = Guest { child, console, agent, qmp, serial: 0, _directory: directory };
        let greeting = guest.answer(deadline)?;
        if !greeting.starts_with("ready ") {
            bail!("the guest greets with {greeting:?}");
        }
        Ok(guest)
    }

    /// Runs a script and waits for its end.
    pub fn run(&mut self, script: &str, limit: Duration) -> Result<GuestOutput> {
        let running = self.begin(script)?;
        self.finish(running, limit)
    }

    /// Runs a script, demands exit code 0 and gives what it printed.
    pub fn ok(&mut self, script: &str, limit: Duration) -> Result<String> {
        let output = self.run(script, limit)?;
        if output.code != 0 {
            let console = self.console_text()?;
            bail!(
                "in the guest: `{script}` ended with code {}\n{}\n{console}",
                output.code,
                output.output
            );
        }
        Ok(output.output)
    }

    /// Starts a script. One runs at a time.
    pub fn begin(&mut self, script: &str) -> Result<Running> {
        self.serial += 1;
        let line = format!("{} {}\n", self.serial, base64(script.as_bytes()));
        self.agent.get_mut().write_all(line.as_bytes())?;
        Ok(Running { serial: self.serial })
    }

    /// Waits for the end of a script.
    pub fn finish(&mut self, running: Running, limit: Duration) -> Result<GuestOutput> {
        let line = self.answer(Instant::now() + limit).with_context(|| {
            format!("the guest does not answer\n{}", self.console_text().unwrap_or_default())
        })?;
        let mut words = line.split_whitespace();
        let serial: u64 = words.next().unwrap_or("").parse()?;
        if serial != running.serial {
            bail!("the guest answers {serial} instead of {}", running.serial);
        }
        let code = words.next().unwrap_or("").parse()?;
        let output =
            String::from_utf8_lossy(&from_base64(words.next().unwrap_or(""))?).into_owned();
        Ok(GuestOutput { code, output })
    }

    /// Starts fio on the disk; give it back to [`Guest::finish_load`].
    pub fn begin_load(&mut self, load: VerifiedLoad) -> Result<Running> {
        let VerifiedLoad { seconds, half_mib, written_mib, backlog } = load;
        self.begin(&format!(
            "fio --filename=/dev/vda --direct=1 --ioengine=libaio --time_based \
             --runtime={seconds} --thread --verify=crc32c --verify_fatal=1 \
             --verify_backlog={backlog} --serialize_overlap=1 --output=/tmp/fio \
             --name=blocks --size={written_mib}m --rw=randwrite --bs=4k --iodepth=16 --fsync=64 \
             --name=odd --offset={half_mib}m --size={written_mib}m --rw=randwrite \
             --bsrange=512-64k --blockalign=512 --iodepth=8; \
             code=$?; grep -iE 'err=|verify|bad magic|error' /tmp/fio; exit $code"
        ))
    }

    /// Waits for the end of fio. Neither it nor the guest's kernel has seen an error or a delay
    /// that the kernel calls one.
    pub fn finish_load(&mut self, running: Running, limit: Duration) -> Result<()> {
        let GuestOutput { code, output } = self.finish(running, limit)?;
        let is_well = code == 0 && output.matches("err= 0").count() == 2;
        ensure!(is_well, "fio in the guest ended with {code}: {output}");
        let errors = self.ok("dmesg | grep -iE 'I/O error|blk_update|timeout' || true", limit)?;
        ensure!(errors.is_empty(), "the guest's kernel saw: {errors}");
        Ok(())
    }

    /// Everything on the guest's console so far.
    pub fn console_text(&self) -> Result<String> {
        Ok(String::from_utf8_lossy(&fs::read(&self.console)?).into_owned())
    }

    /// Waits until the console shows a text.
    pub fn wait_console(&mut self, text: &str, limit: Duration) -> Result<()> {
        let deadline = Instant::now() + limit;
        while !self.console_text()?.contains(text) {
            if Instant::now() > deadline || self.child.try_wait()?.is_some() {
                bail!("the console does not show {text:?}:\n{}", self.console_text()?);
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    /// QEMU's control socket.
    pub fn qmp(&mut self) -> &mut Qmp {
        &mut self.qmp
    }

    /// Lets the guest write out everything and switches it off.
    pub fn power_off(mut self) -> Result<()> {
        let mounts = "awk '$1 ~ /^.dev.vd/ && $2 != \"/\" { print $2 }' /proc/mounts";
        let script = format!(
            "sync; for mount in $({mounts}); do umount $mount; done; mount -o remount,ro / 2>&-; \
             poweroff -f"
        );
        let _ = self.begin(&script)?;
        match wait(&mut self.child, END_TIME_LIMIT)? {
            Some(status) if status.success() => Ok(()),
            Some(status) => bail!("QEMU ended with {status}"),
            None => bail!("the guest does not switch off:\n{}", self.console_text()?),
        }
    }

    fn answer(&mut self, deadline: Instant) -> Result<String> {
        let mut line = Vec::new();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                bail!("no answer from the guest in time:\n{}", self.console_text()?);
            }
            self.agent.get_ref().set_read_timeout(Some(left))?;
            match self.agent.read_until(b'\n', &mut line) {
                Ok(0) => bail!("QEMU is gone:\n{}", self.console_text()?),
                Ok(_) => return Ok(String::from_utf8_lossy(&line).into_owned()),
                // What was read so far stays in `line`.
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error).context("the guest's agent"),
            }
        }
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- console of the guest ---\n{}", self.console_text().unwrap_or_default());
        }
    }
}

fn bare_machine(accelerator: &str) -> Tool {
    Tool::new("qemu-system-x86_64")
        .arg("-machine")
        .arg(format!("q35,accel={accelerator}"))
        .words("-m 768 -smp 1 -display none -nodefaults -no-user-config -no-reboot")
}

/// `kvm` where a guest really runs under it, else `tcg`. A device node alone says little: some
/// clouds show one and then never let a guest's first instruction finish.
fn accelerator() -> &'static str {
    static ACCELERATOR: OnceLock<&str> = OnceLock::new();
    ACCELERATOR.get_or_init(|| match std::env::var("SHEEP_ACCELERATOR").as_deref() {
        Ok("kvm") => "kvm",
        Ok("tcg") => "tcg",
        _ if kvm_works().unwrap_or(false) => "kvm",
        _ => "tcg",
    })
}

fn kvm_works() -> Result<bool> {
    if File::options().read(true).write(true).open("/dev/kvm").is_err() {
        return Ok(false);
    }
    let directory = Scratch::new()?;
    let console = directory.join("console");
    let mut child = bare_machine("kvm")
        .arg("-serial")
        .arg(format!("file:{}", console.display()))
        .arg("-kernel")
        .arg(guest_file("vmlinuz"))
        .arg("-append")
        .arg("console=ttyS0 earlyprintk=ttyS0 panic=-1")
        .spawn(File::create(directory.join("qemu.log"))?)?;
    let deadline = Instant::now() + KVM_PROBE_TIME;
    let mut works = false;
    while !works
        && Instant::now() < deadline
        && wait(&mut child, Duration::from_millis(50))?.is_none()
    {
        works = String::from_utf8_lossy(&fs::read(&console).unwrap_or_default())
            .contains("Linux version");
    }
    works |=
        String::from_utf8_lossy(&fs::read(&console).unwrap_or_default()).contains("Linux version");
    let _ = child.kill();
    child.wait()?;
    Ok(works)
}

fn connect(path: &Path, child: &mut Child, deadline: Instant) -> Result<UnixStream> {
    loop {
        match UnixStream::connect(path) {
            Ok(stream) => return Ok(stream),
            Err(error) if Instant::now() > deadline => {
                return Err(error).context("QEMU does not start");
            }
            Err(_) => {}
        }
        if let Some(status) = wait(child, Duration::from_millis(20))? {
            bail!("QEMU ended with {status}");
        }
    }
}

const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

fn base64(bytes: &[u8]) -> String {
    let mut text = String::new();
    for group in bytes.chunks(3) {
        let byte = |place: usize| u32::from(group.get(place).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for digit in 0..4 {
            if digit <= group.len() {
                let value = (bits >> (18 - 6 * digit)) & 63;
                text.push(char::from(ALPHABET[value as usize]));
            } else {
                text.push('=');
            }
        }
    }
    text
}

fn from_base64(text: &str) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let (mut bits, mut count) = (0u32, 0);
    for digit in text.bytes().filter(|&digit| digit != b'=') {
        let value = ALPHABET.iter().position(|&known| known == digit);
        bits = bits << 6 | u32::try_from(value.context("the guest answers no base64")?)?;
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push(u8::try_from(bits >> count & 0xff)?);
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_goes_there_and_back() {
        for length in 0..32u8 {
            let bytes: Vec<u8> = (0..length).map(|byte| byte.wrapping_mul(37)).collect();
            assert_eq!(from_base64(&base64(&bytes)).expect("it is base64"), bytes);
        }
        assert_eq!(base64(b"sync"), "c3luYw==");
    }
}
