//! Images in formats that are not raw: recognised by their magic, converted by `qemu-img` straight
//! into or out of the volume's NBD export.
//!
//! A raw image is written by a guest, which may put any bytes at its start. So a format is only
//! followed unasked when the image stands alone: nothing the guest wrote can then make `qemu-img`
//! read another file of this machine.

use super::{failure::Failure, interrupt::Interrupt, source};
use crate::nbd_client::{be32, be64, printable};
use std::{
    ffi::OsString,
    fs::File,
    io::{self, Read},
    os::unix::fs::{FileExt, FileTypeExt},
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    thread,
};

/// What an image seems to be.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    /// Bytes as they are.
    Raw,
    /// A format by the name `qemu-img` gives it; the image needs no other file.
    Alone(&'static str),
    /// The same, but the image may refer to other files, or it may as well be raw.
    Doubtful(&'static str),
}

/// Exit codes of `qemu-img check` after which an image may be converted: no error, space leaked
/// but nothing lost, and a format that has no check.
const CHECK_PASSED: [i32; 3] = [0, 3, 63];

/// How much of an image's start is looked at.
pub const HEAD_BYTES: usize = 512;

/// Recognises a format by the image's first bytes and its last 512.
pub fn recognise(head: &[u8], tail: &[u8]) -> Format {
    let starts = |magic: &[u8]| head.starts_with(magic);
    if starts(b"QFI\xfb") {
        return recognise_qcow(head);
    }
    if starts(b"vhdxfile") {
        return Format::Alone("vhdx");
    }
    if head.get(0x40..0x44) == Some(&[0x7f, 0x10, 0xda, 0xbe]) {
        return Format::Alone("vdi");
    }
    if starts(b"conectix") {
        return Format::Alone("vpc");
    }
    if starts(b"KDMV") || starts(b"COWD") || starts(b"# Disk DescriptorFile") {
        return Format::Doubtful("vmdk");
    }
    if starts(b"QED\0") {
        return Format::Doubtful("qed");
    }
    if starts(b"WithoutFreeSpace") || starts(b"WithouFreSpacExt") {
        return Format::Doubtful("parallels");
    }
    if tail.starts_with(b"conectix") {
        // A fixed VHD: raw content with a footer.
        return Format::Doubtful("vpc");
    }
    Format::Raw
}

/// qcow and qcow2 name a backing file, and qcow2 version 3 an external data file.
fn recognise_qcow(head: &[u8]) -> Format {
    let version = be32(head, 4);
    let backed = be64(head, 8) != Some(0);
    /// The bit of "an external data file is used" among the incompatible features.
    const EXTERNAL_DATA: u64 = 1 << 2;
    match version {
        Some(1) if backed => Format::Doubtful("qcow"),
        Some(1) => Format::Alone("qcow"),
        Some(2) if !backed => Format::Alone("qcow2"),
        Some(3) if !backed && be64(head, 72).is_some_and(|bits| bits & EXTERNAL_DATA == 0) => {
            Format::Alone("qcow2")
        }
        _ => Format::Doubtful("qcow2"),
    }
}

/// Looks at a file. Files called `*.raw` are raw whatever they contain.
pub fn recognise_file(file: &File, path: &Path) -> io::Result<Format> {
    if path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("raw")) {
        return Ok(Format::Raw);
    }
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Ok(Format::Raw);
    }
    let length = metadata.len();
    let mut head = vec![0; HEAD_BYTES.min(usize::try_from(length).unwrap_or(HEAD_BYTES))];
    file.read_exact_at(&mut head, 0)?;
    let mut tail = [0; 512];
    if length >= 512 {
        file.read_exact_at(&mut tail, length - 512)?;
    }
    Ok(recognise(&head, &tail))
}

/// Whether this may be a format's name: it becomes part of an option of `qemu-img`.
pub fn is_format_name(name: &str) -> bool {
    !name.is_empty()
        && name.len() <= 32
        && name.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || b"-_".contains(&c))
}

/// The volume behind an NBD socket.
#[derive(Clone, Copy, Debug)]
pub struct Remote<'a> {
    /// The daemon's NBD socket.
    pub socket: &'a Path,
    /// The volume's name.
    pub name: &'a str,
}

impl Remote<'_> {
    /// As `qemu-img`'s image options.
    fn image_options(&self) -> OsString {
        let mut options = OsString::from("driver=raw,file.driver=nbd,file.server.type=unix,");
        options.push("file.server.path=");
        options.push(escape(self.socket.as_os_str()));
        options.push(",file.export=");
        options.push(escape(self.name.as_ref()));
        options
    }
}

/// A local image as `qemu-img`'s image options.
fn local_image_options(path: &Path, format: &str) -> OsString {
    let device = path.metadata().is_ok_and(|metadata| metadata.file_type().is_block_device());
    let driver = if device { "host_device" } else { "file" };
    let mut options =
        OsString::from(format!("driver={format},file.driver={driver},file.filename="));
    options.push(escape(path.as_os_str()));
    options
}

/// A comma ends an option's value unless it is doubled.
pub fn escape(value: &std::ffi::OsStr) -> OsString {
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    let mut escaped = Vec::new();
    for byte in value.as_bytes() {
        escaped.push(*byte);
        if *byte == b',' {
            escaped.push(*byte);
        }
    }
    OsString::from_vec(escaped)
}

/// How large the disk inside an image is, in bytes.
pub fn virtual_size(path: &Path, format: &str) -> Result<u64, Failure> {
    let output = Command::new("qemu-img")
        .args(["info", "--output=json", "--image-opts"])
        .arg(local_image_options(path, format))
        .stdin(Stdio::null())
        .output()
        .map_err(|error| start_failure(&error))?;
    if !output.status.success() {
        return Err(qemu_failure(&output.stderr, path));
    }
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    report["virtual-size"].as_u64().ok_or_else(|| {
        Failure::failed(format!(
            "qemu-img does not tell the size of {}; check the file with `qemu-img info`",
            path.display()
        ))
    })
}

/// Refuses an image that `qemu-img check` finds damaged: converting reads what a truncated image
/// lacks as zeros, and calls that success.
pub fn check(path: &Path, format: &str, interrupt: &Interrupt) -> Result<(), Failure> {
    let mut command = Command::new("qemu-img");
    command.args(["check", "--image-opts"]).arg(local_image_options(path, format));
    let (status, complaints) = supervise(command, interrupt, |_| {})?;
    match status.code() {
        Some(code) if CHECK_PASSED.contains(&code) => Ok(()),
        _ => {
            let text = String::from_utf8_lossy(&complaints);
            let first = text.lines().find(|line| !line.trim().is_empty());
            let reason = first.unwrap_or("qemu-img check gave no reason");
            Err(Failure::failed(format!(
                "{} is a damaged or truncated {format} image ({}): nothing was imported; fetch it \
                 again, or repair a copy with `qemu-img check -r all` and import that",
                path.display(),
                printable(reason.trim_start_matches("qemu-img: ").as_bytes())
            )))
        }
    }
}

/// Converts an image into a volume. `blank` says that the volume reads as zeros now.
pub fn import(
    path: &Path,
    format: &str,
    remote: Remote<'_>,
    blank: bool,
    interrupt: &Interrupt,
    progress: impl FnMut(f64),
) -> Result<(), Failure> {
    let mut command = Command::new("qemu-img");
    command.args(["convert", "-p", "-n", "-W", "-m", "16"]);
    if blank {
        command.arg("--target-is-zero");
    }
    command
        .args(["--image-opts", "--target-image-opts"])
        .arg(local_image_options(path, format))
        .arg(remote.image_options());
    run(command, path, interrupt, progress)
}

/// Converts a volume into a new qcow2 image.
pub fn export(
    remote: Remote<'_>,
    target: &Path,
    interrupt: &Interrupt,
    progress: impl FnMut(f64),
) -> Result<(), Failure> {
    let absolute = std::path::absolute(target).map_err(|error| {
        Failure::failed(format!("cannot find {}: {error}; give its full path", target.display()))
    })?;
    let mut command = Command::new("qemu-img");
    // An absolute path, so that no colon in it can name a protocol.
    command
        .args(["convert", "-p", "-W", "-m", "16", "-O", "qcow2", "--image-opts"])
        .arg(remote.image_options())
        .arg(absolute);
    run(command, target, interrupt, progress)
}

/// Runs `qemu-img convert -p` and reports its progress, 0 to 1.
fn run(
    command: Command,
    path: &Path,
    interrupt: &Interrupt,
    progress: impl FnMut(f64),
) -> Result<(), Failure> {
    let (status, complaints) = supervise(command, interrupt, progress)?;
    if status.success() { Ok(()) } else { Err(qemu_failure(&complaints, path)) }
}

/// Runs `qemu-img` to its end, or kills it when interrupted; how it ended and what it complained.
fn supervise(
    mut command: Command,
    interrupt: &Interrupt,
    mut progress: impl FnMut(f64),
) -> Result<(ExitStatus, Vec<u8>), Failure> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| start_failure(&error))?;
    let mut errors = child.stderr.take().expect("asked for above");
    let complaints = thread::spawn(move || {
        let mut text = Vec::new();
        // What cannot be read is missing from a message, no more.
        let _ = errors.read_to_end(&mut text);
        text
    });
    let followed = follow(&mut child, interrupt, &mut progress);
    if followed.is_err() {
        // It may have ended by itself; then there is nothing to kill.
        let _ = child.kill();
    }
    let status = child
        .wait()
        .map_err(|error| Failure::failed(format!("qemu-img got lost: {error}; try again")))?;
    let complaints = complaints.join().unwrap_or_default();
    followed?;
    source::interrupted(interrupt)?;
    Ok((status, complaints))
}

/// Reads the percentages that `qemu-img -p` prints until it closes its output.
fn follow(
    child: &mut Child,
    interrupt: &Interrupt,
    progress: &mut impl FnMut(f64),
) -> Result<(), Failure> {
    let mut output = child.stdout.take().expect("asked for by the caller");
    let (mut line, mut bytes) = (Vec::new(), [0; 4096]);
    loop {
        source::wait_for(&output, interrupt)?;
        let length = match output.read(&mut bytes) {
            Ok(0) | Err(_) => return Ok(()),
            Ok(length) => length,
        };
        for byte in &bytes[..length] {
            match byte {
                b'\r' | b'\n' => {
                    if let Some(part) = parse_progress(&line) {
                        progress(part);
                    }
                    line.clear();
                }
                // A line longer than a percentage is none.
                byte if line.len() < 64 => line.push(*byte),
                _ => {}
            }
        }
    }
}

/// `    (12.34/100%)` as 0.1234.
fn parse_progress(line: &[u8]) -> Option<f64> {
    let text = std::str::from_utf8(line).ok()?.trim();
    let percent: f64 = text.strip_prefix('(')?.strip_suffix("/100%)")?.parse().ok()?;
    (0.0..=100.0).contains(&percent).then_some(percent / 100.0)
}

fn start_failure(error: &io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::NotFound => Failure::failed(
            "qemu-img is not installed, and only it converts images that are not raw; install the \
             package qemu-utils (Debian, Ubuntu) or qemu-img (Fedora)",
        ),
        _ => Failure::failed(format!("cannot run qemu-img: {error}; check its installation")),
    }
}

fn qemu_failure(complaints: &[u8], path: &Path) -> Failure {
    let text = String::from_utf8_lossy(complaints);
    let last = text.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("it gave no reason");
    let reason = printable(last.trim_start_matches("qemu-img: ").as_bytes());
    Failure::failed(format!(
        "qemu-img could not convert {}: {reason}; check the image and `dog status`",
        path.display()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The head of a qcow image.
    fn qcow(version: u32, backing: u64, incompatible: u64) -> Vec<u8> {
        let mut head = vec![0; HEAD_BYTES];
        head[..4].copy_from_slice(b"QFI\xfb");
        head[4..8].copy_from_slice(&version.to_be_bytes());
        head[8..16].copy_from_slice(&backing.to_be_bytes());
        head[72..80].copy_from_slice(&incompatible.to_be_bytes());
        head
    }

    #[test]
    fn formats_are_recognised_by_magic() {
        let check = |head: &[u8], expected| assert_eq!(recognise(head, &[]), expected);
        check(&[], Format::Raw);
        check(&[0; 512], Format::Raw);
        check(&qcow(2, 0, 4), Format::Alone("qcow2"));
        check(&qcow(3, 0, 0), Format::Alone("qcow2"));
        check(&qcow(3, 0, 1), Format::Alone("qcow2"));
        check(b"vhdxfile....", Format::Alone("vhdx"));
        check(b"conectix", Format::Alone("vpc"));
        check(b"KDMV", Format::Doubtful("vmdk"));
        check(b"# Disk DescriptorFile\n", Format::Doubtful("vmdk"));
        check(b"QED\0", Format::Doubtful("qed"));
        let mut vdi = [0; 512];
        vdi[0x40..0x44].copy_from_slice(&0xbeda_107f_u32.to_le_bytes());
        check(&vdi, Format::Alone("vdi"));
        assert_eq!(recognise(&[0; 512], b"conectix"), Format::Doubtful("vpc"));
    }

    /// A guest that writes a qcow2 header with /etc/shadow as backing file into its raw disk must
    /// not get that file's content by having its disk exported and imported.
    #[test]
    fn image_that_refers_to_other_files_is_not_followed_unasked() {
        for head in [
            qcow(1, 104, 0),
            qcow(2, 104, 0),
            qcow(3, 104, 0),
            qcow(3, 0, 1 << 2),
            qcow(4, 0, 0),
            b"QFI\xfb\0\0\0\x03".to_vec(),
        ] {
            assert!(matches!(recognise(&head, &[]), Format::Doubtful(_)), "{head:?}");
        }
    }

    /// A download that broke off was imported with success, the rest of the disk zeros.
    #[test]
    fn truncated_image_is_refused() {
        let directory = tempfile::tempdir().expect("a scratch directory");
        let (raw, path) = (directory.path().join("raw"), directory.path().join("image.qcow2"));
        std::fs::write(&raw, vec![7u8; 4 << 20]).expect("a raw image");
        let made = Command::new("qemu-img")
            .args(["convert", "-f", "raw", "-O", "qcow2"])
            .args([&raw, &path])
            .status()
            .expect("qemu-img, from `make deps`");
        assert!(made.success());
        assert_eq!(check(&path, "qcow2", &Interrupt::never()), Ok(()));
        let file = File::options().write(true).open(&path).expect("the image");
        file.set_len(2 << 20).expect("a truncation");
        let failure = check(&path, "qcow2", &Interrupt::never()).expect_err("half an image");
        assert!(failure.sentence.contains("damaged or truncated qcow2"), "{failure}");
    }

    #[test]
    fn progress_is_understood() {
        let check = |line: &[u8], expected| assert_eq!(parse_progress(line), expected);
        check(b"    (12.50/100%)", Some(0.125));
        check(b"(100.00/100%)", Some(1.0));
        check(b"    (nan/100%)", None);
        check(b"    (120/100%)", None);
        check(b"error", None);
        check(b"\xff", None);
    }

    #[test]
    fn names_cannot_smuggle_options() {
        assert!(is_format_name("qcow2") && is_format_name("vmdk"));
        for name in ["", "raw,file.driver=x", "Raw", "a b", "../x"] {
            assert!(!is_format_name(name), "{name}");
        }
        let remote = Remote { socket: Path::new("/run/a,b.sock"), name: "x,driver=y" };
        let options = remote.image_options();
        let expected = "driver=raw,file.driver=nbd,file.server.type=unix,\
                        file.server.path=/run/a,,b.sock,file.export=x,,driver=y";
        assert_eq!(options, expected);
    }
}
