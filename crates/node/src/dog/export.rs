//! `dog volume export`: a sparse raw file, raw bytes to standard output, or qcow2 through
//! `qemu-img`. A file appears under its name only when it is whole and on stable media.

use super::{
    Context, Failure,
    arguments::{Export, ExportFormat},
    foreign,
    interrupt::Interrupt,
    name::Name,
    print,
    progress::Progress,
    source::{self, Run},
    transfer::{self, Span},
};
use crate::{nbd_client::NbdClient, size::Size};
use proto::BLOCK_SIZE;
use std::{
    fs::{self, File},
    io::{self, IsTerminal},
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

/// How much block status is looked up ahead of the reads, and held in memory.
const WINDOW_BYTES: u64 = 1 << 30;
/// Zeros are written to a pipe in pieces of this size.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// Runs the command.
pub fn run(context: &Context, options: &Export) -> Result<(), Failure> {
    let interrupt = Interrupt::listen()?;
    if options.file.as_os_str() == "-" {
        return to_output(context, options, &interrupt);
    }
    check_target(&options.file, options.overwrite)?;
    let bytes = size_of(context, &options.name)?;
    let name = options.name.to_string();
    let mut progress = Progress::new("exporting", Some(bytes));
    let partial = Partial::beside(&options.file);
    interrupt.will_remove(partial.path.clone());
    match options.format {
        ExportFormat::Raw => {
            let mut client = context.attach(&name, &interrupt)?;
            let file = partial.create()?;
            copy_to_file(&mut client, &file, &partial.path, &mut progress)?;
            client.disconnect()?;
        }
        ExportFormat::Qcow2 => {
            let remote = foreign::Remote { socket: &context.nbd_socket, name: &name };
            // Created by us, so that it is ours alone to remove; qemu-img fills it.
            partial.create()?;
            foreign::export(remote, &partial.path, &interrupt, |part| {
                progress.reach((bytes as f64 * part) as u64);
            })?;
            progress.reach(bytes);
        }
    }
    source::interrupted(&interrupt)?;
    partial.become_whole(&options.file)?;
    let summary = progress.summary("exported", progress.elapsed());
    let seconds = progress.elapsed().as_secs_f64();
    drop(progress);
    if context.json {
        let file = options.file.display().to_string();
        let report = serde_json::json!({ "file": file, "bytes": bytes, "export_s": seconds });
        return print::json(&report);
    }
    print::text(&format!("{summary} to {}\n", options.file.display()))
}

/// The size of what is to be exported, if it can be: a volume that a client writes has no content
/// that stands still.
pub fn size_of(context: &Context, name: &Name) -> Result<u64, Failure> {
    let name = match name {
        Name::Snapshot(name) => return Ok(context.snapshot(name)?.bytes),
        Name::Volume(name) => name,
    };
    let volume = context.volume(name)?;
    match volume.attachment.filter(|attachment| attachment.is_client()) {
        None => Ok(volume.bytes),
        Some(attachment) => Err(Failure::conflict(format!(
            "volume {name} is attached by {}; take a snapshot and export that: `dog volume \
             snapshot {name}@backup`, then export {name}@backup",
            attachment.holder
        ))),
    }
}

/// Everything, zeros included, to standard output.
fn to_output(context: &Context, options: &Export, interrupt: &Interrupt) -> Result<(), Failure> {
    if options.format != ExportFormat::Raw {
        return Err(Failure::usage(
            "a qcow2 image cannot be written to a pipe; name a file, or export raw",
        ));
    }
    if io::stdout().is_terminal() {
        return Err(Failure::usage(
            "a volume's bytes would spoil the terminal; name a file, or use a pipe",
        ));
    }
    size_of(context, &options.name)?;
    let mut client = context.attach(&options.name.to_string(), interrupt)?;
    let bytes = client.export().bytes;
    let mut progress = Progress::new("exporting", Some(bytes));
    let mut reached = 0;
    let put_zeros = |mut left: u64| -> Result<(), Failure> {
        while left > 0 {
            source::interrupted(interrupt)?;
            let length = left.min(ZEROS.len() as u64);
            print::bytes(&ZEROS[..length as usize])?;
            left -= length;
        }
        Ok(())
    };
    for window in windows(bytes) {
        let data = data_spans(&mut client, window)?;
        transfer::read_in_order(&mut client, &data, |offset, content| {
            put_zeros(offset - reached)?;
            print::bytes(content)?;
            reached = offset + content.len() as u64;
            progress.reach(reached);
            Ok(())
        })?;
    }
    put_zeros(bytes - reached)?;
    drop(progress);
    Ok(client.disconnect()?)
}

/// Copies what is data; the rest of the file stays a hole.
fn copy_to_file(
    client: &mut NbdClient,
    file: &File,
    path: &Path,
    progress: &mut Progress,
) -> Result<(), Failure> {
    let failed = |error: io::Error| write_failure(path, &error);
    let bytes = client.export().bytes;
    file.set_len(bytes).map_err(failed)?;
    for window in windows(bytes) {
        let data = data_spans(client, window)?;
        transfer::read_in_order(client, &data, |offset, content| {
            for Run { start, end, .. } in
                source::runs(content, BLOCK_SIZE).iter().filter(|run| !run.zero)
            {
                file.write_all_at(&content[*start..*end], offset + *start as u64)
                    .map_err(failed)?;
            }
            progress.reach(offset + content.len() as u64);
            Ok(())
        })?;
        progress.reach(window.end);
    }
    file.sync_all().map_err(failed)
}

/// A volume of that many bytes in the windows that are looked up at once.
pub fn windows(bytes: u64) -> impl Iterator<Item = Span> {
    let pieces = Span { start: 0, end: bytes }.pieces(WINDOW_BYTES);
    pieces.map(|(offset, length)| Span { start: offset, end: offset + length })
}

/// The parts of a window that do not read as zeros.
fn data_spans(client: &mut NbdClient, window: Span) -> Result<Vec<Span>, Failure> {
    let mut start = window.start;
    let mut spans = Vec::new();
    for extent in transfer::status(client, window)? {
        let end = start + extent.length;
        if !extent.zero {
            spans.push(Span { start, end });
        }
        start = end;
    }
    Ok(spans)
}

/// Whether a file may appear under this name.
pub fn check_target(path: &Path, overwrite: bool) -> Result<(), Failure> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(write_failure(path, &error)),
        Ok(metadata) if metadata.is_dir() => Err(Failure::usage(format!(
            "{path} is a directory; name a file, such as {file}",
            path = path.display(),
            file = path.join("volume.img").display()
        ))),
        Ok(metadata) if !metadata.is_file() => Err(Failure::conflict(format!(
            "{path} exists and is no plain file; to write to a device or pipe, say `dog volume \
             export NAME - > {path}`",
            path = path.display()
        ))),
        Ok(_) if !overwrite => Err(Failure::conflict(format!(
            "{} exists; say --overwrite to replace it, or choose another name",
            path.display()
        ))),
        Ok(_) => Ok(()),
    }
}

/// A file that is not whole yet, beside the one it will become. Dropped, it is removed.
pub struct Partial {
    /// Its name until then.
    pub path: PathBuf,
}

impl Partial {
    /// The one beside `path`; nothing is made yet.
    pub fn beside(path: &Path) -> Partial {
        let mut name = std::ffi::OsString::from(".");
        name.push(path.file_name().unwrap_or_default());
        name.push(format!(".partial-{}", std::process::id()));
        Partial { path: path.with_file_name(name) }
    }

    /// Makes it, empty.
    pub fn create(&self) -> Result<File, Failure> {
        let options = &mut File::options();
        options
            .write(true)
            .create_new(true)
            .open(&self.path)
            .map_err(|error| write_failure(&self.path, &error))
    }

    /// Puts the content on stable media and the file under its name.
    pub fn become_whole(self, path: &Path) -> Result<(), Failure> {
        let failed = |error: io::Error| write_failure(path, &error);
        File::open(&self.path).and_then(|file| file.sync_all()).map_err(failed)?;
        fs::rename(&self.path, path).map_err(failed)?;
        let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let directory = directory.unwrap_or(Path::new("."));
        File::open(directory).and_then(|directory| directory.sync_all()).map_err(failed)
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        // After become_whole there is nothing under this name any more.
        let _ = fs::remove_file(&self.path);
    }
}

fn write_failure(path: &Path, error: &io::Error) -> Failure {
    Failure::failed(format!(
        "cannot write {}: {error}; check that the directory exists, its permissions and free \
         space ({} or more may be needed)",
        path.display(),
        Size(BLOCK_SIZE as u64)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_appears_whole_or_not_at_all() {
        let directory = tempfile::tempdir().expect("a scratch directory");
        let path = directory.path().join("image");
        let partial = Partial::beside(&path);
        partial.create().expect("a file").write_all_at(b"half", 0).expect("a write");
        drop(partial);
        assert_eq!(fs::read_dir(directory.path()).expect("a listing").count(), 0);
        let partial = Partial::beside(&path);
        partial.create().expect("a file").write_all_at(b"whole", 0).expect("a write");
        assert!(!path.exists());
        partial.become_whole(&path).expect("a rename");
        assert_eq!(fs::read(&path).expect("the file"), b"whole");
        assert_eq!(fs::read_dir(directory.path()).expect("a listing").count(), 1);
    }

    #[test]
    fn existing_files_and_devices_are_spared() {
        let directory = tempfile::tempdir().expect("a scratch directory");
        let path = directory.path().join("image");
        assert_eq!(check_target(&path, false), Ok(()));
        fs::write(&path, "old").expect("a file");
        let failure = check_target(&path, false).expect_err("it exists");
        assert_eq!(failure.kind.exit_code(), 4);
        assert_eq!(check_target(&path, true), Ok(()));
        assert!(check_target(directory.path(), true).is_err());
        assert!(check_target(Path::new("/dev/null"), true).is_err());
    }
}
