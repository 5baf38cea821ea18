//! `dog volume import`: raw bytes through our own NBD client, other formats through `qemu-img`.
//! What fails or is interrupted leaves no new volume behind, and what is killed none that looks
//! whole.

use super::{
    Context, Failure,
    arguments::Import,
    content,
    failure::FailureKind,
    foreign::{self, Format},
    interrupt::Interrupt,
    print,
    progress::Progress,
    source::{self, Piece, Source},
    transfer::{self, Span},
    unfinished::Unfinished,
};
use crate::{
    nbd_client::{Command, NbdClient},
    size::Size,
};
use engine::admin::{AdminRequest, VolumeReport};
use proto::BLOCK_SIZE;
use std::{cell::Cell, fs::File, path::Path, time::Duration};

/// Runs of zeros from this length on are not sent.
const ZEROS_MIN: usize = 64 << 10;
/// What a volume begins with when nobody knows how much will come; it is doubled as needed and cut
/// to its length in the end.
const GROWING_BYTES: u64 = 1 << 30;

/// What is imported.
enum Input {
    /// Bytes as they are.
    Raw(Source),
    /// An image for `qemu-img` with the disk's size in it.
    Foreign { format: String, bytes: u64 },
}

/// Runs the command.
pub fn run(context: &Context, options: &Import) -> Result<(), Failure> {
    let interrupt = Interrupt::listen()?;
    let input = open(context, options, &interrupt)?;
    let length = match &input {
        Input::Raw(source) => source.length(),
        Input::Foreign { bytes, .. } => Some(*bytes),
    };
    let existing = find(context, &options.name)?;
    if let Some(volume) = &existing {
        check_overwrite(volume, options, length)?;
    }
    let blank = existing.is_none();
    let target_bytes = match (&existing, options.size, length) {
        (Some(volume), ..) => volume.bytes,
        (None, Some(size), Some(length)) if size.0 < length => {
            return Err(Failure::usage(format!(
                "the image holds {length} bytes, more than the {} of --size; give a larger size",
                size.0
            )));
        }
        (None, Some(size), _) => size.0,
        (None, None, Some(length)) => round_up(length)?,
        (None, None, None) => GROWING_BYTES,
    };
    let target = match &existing {
        None => Unfinished::create(context, &options.name, target_bytes, options.kept)?,
        Some(_) => Unfinished::take(context, &options.name, &interrupt)?,
    };
    let name = &target.working;
    let growing = blank && options.size.is_none() && length.is_none();
    let written = Cell::new(false);
    let mut progress = Progress::new("importing", length);
    let filled = match input {
        Input::Raw(source) => {
            let interrupt = &interrupt;
            let fill = Fill { context, name, blank, growing, interrupt, written: &written };
            fill.run(source, &mut progress)
        }
        Input::Foreign { format, bytes } => {
            let remote = foreign::Remote { socket: &context.nbd_socket, name };
            written.set(true);
            foreign::import(&options.file, &format, remote, blank, &interrupt, |part| {
                progress.reach((bytes as f64 * part) as u64);
            })
            .and_then(|()| {
                progress.reach(bytes);
                context.attach(name, &interrupt)
            })
            .and_then(finish)
        }
    };
    let (elapsed, summary) = (progress.elapsed(), progress.summary("imported", progress.elapsed()));
    drop(progress);
    match filled {
        Ok(()) => {
            target.finish()?;
            report(context, &options.name, &summary, elapsed)
        }
        Err(failure) => {
            Err(target.give_up(failure, written.get(), options.keep_partial, &interrupt))
        }
    }
}

/// Opens what is to be imported and decides how.
fn open(context: &Context, options: &Import, interrupt: &Interrupt) -> Result<Input, Failure> {
    let forced = options.format.as_deref();
    if let Some(format) = forced.filter(|format| !foreign::is_format_name(format)) {
        return Err(Failure::usage(format!(
            "`{format}` is no format; `qemu-img --help` lists those that are supported"
        )));
    }
    let piped = options.file.as_os_str() == "-";
    if piped {
        return match forced {
            Some("raw") => Ok(Input::Raw(content::open_source(None)?)),
            None => {
                let mut source = content::open_source(None)?;
                refuse_format(&source.peek(foreign::HEAD_BYTES, interrupt)?)?;
                Ok(Input::Raw(source))
            }
            Some(format) => Err(Failure::usage(format!(
                "a {format} image cannot be read from a pipe; save it to a file first"
            ))),
        };
    }
    let path = &options.file;
    let format = match forced {
        Some("raw") => None,
        Some(format) => Some(format.to_string()),
        None => {
            let source = File::open(path).ok();
            let format = source.map_or(Ok(Format::Raw), |f| foreign::recognise_file(&f, path));
            chosen_format(context, path, format.unwrap_or(Format::Raw))?
        }
    };
    let source = content::open_source(Some(path))?;
    match format {
        None => Ok(Input::Raw(source)),
        Some(format) => {
            let bytes = foreign::virtual_size(path, &format)?;
            foreign::check(path, &format, interrupt)?;
            Ok(Input::Foreign { format, bytes })
        }
    }
}

/// Refuses standard input that begins like an image that would have to be converted.
fn refuse_format(head: &[u8]) -> Result<(), Failure> {
    match foreign::recognise(head, &[]) {
        Format::Raw => Ok(()),
        Format::Alone(format) | Format::Doubtful(format) => Err(Failure::usage(format!(
            "standard input begins like a {format} image, and only a file can be converted; save \
             it to a file and import that, or say --format raw for its bytes as they are"
        ))),
    }
}

/// The format to convert from, nothing for raw.
fn chosen_format(
    context: &Context,
    path: &Path,
    format: Format,
) -> Result<Option<String>, Failure> {
    match format {
        Format::Raw => Ok(None),
        Format::Alone(format) => {
            context.note(&format!(
                "{} is a {format} image and is converted; say --format raw for its bytes as they \
                 are",
                path.display()
            ));
            Ok(Some(format.to_string()))
        }
        Format::Doubtful(format) => Err(Failure::usage(format!(
            "{} looks like a {format} image that may refer to other files; say --format {format} \
             if you trust where it comes from, or --format raw for its bytes as they are",
            path.display()
        ))),
    }
}

/// The volume of this name, if there is one.
fn find(context: &Context, name: &str) -> Result<Option<VolumeReport>, Failure> {
    match context.volume(name) {
        Ok(volume) => Ok(Some(volume)),
        Err(failure) if failure.kind == FailureKind::NotFound => Ok(None),
        Err(failure) => Err(failure),
    }
}

/// Whether a volume that exists may be filled.
fn check_overwrite(
    volume: &VolumeReport,
    options: &Import,
    length: Option<u64>,
) -> Result<(), Failure> {
    let name = &volume.name;
    if !options.overwrite {
        return Err(Failure::conflict(format!(
            "volume {name} exists; say --overwrite to replace its content for good, or choose \
             another name"
        )));
    }
    if options.size.is_some_and(|size| size.0 != volume.bytes) {
        return Err(Failure::usage(format!(
            "volume {name} has {} bytes and --size says otherwise; leave --size away, or change \
             the volume with `dog volume resize` first",
            volume.bytes
        )));
    }
    if options.kept.is_said() {
        return Err(Failure::usage(format!(
            "volume {name} exists and is kept as it is; leave --copies, --min-copies and \
             --durability away, or import into a new volume"
        )));
    }
    match length {
        Some(length) if length > volume.bytes => Err(Failure::conflict(format!(
            "the image holds {length} bytes and volume {name} only {}; grow it first with `dog \
             volume resize {name} {}`",
            volume.bytes,
            round_up(length)?
        ))),
        _ => Ok(()),
    }
}

/// A size that a volume may have.
fn round_up(length: u64) -> Result<u64, Failure> {
    if length == 0 {
        return Err(Failure::usage(
            "there is nothing to import: the image is empty; check the file, or give --size",
        ));
    }
    length.checked_next_multiple_of(BLOCK_SIZE as u64).ok_or_else(|| {
        Failure::usage("the image is larger than any volume may be; check the file".to_string())
    })
}

fn report(context: &Context, name: &str, summary: &str, elapsed: Duration) -> Result<(), Failure> {
    let volume = context.volume(name)?;
    if context.json {
        let mut value = serde_json::to_value(&volume).expect("reports are always JSON");
        value["import_s"] = elapsed.as_secs_f64().into();
        return print::json(&value);
    }
    print::text(&format!(
        "{summary}; volume {name} has {}, of which {} are used\n",
        Size(volume.bytes),
        Size(volume.used_bytes)
    ))?;
    context.warn_of_overcommit()
}

/// Filling a volume with raw bytes.
struct Fill<'a> {
    context: &'a Context,
    name: &'a str,
    /// The volume reads as zeros: zeros need not be sent.
    blank: bool,
    /// Nobody knows how much will come.
    growing: bool,
    interrupt: &'a Interrupt,
    /// Set before the first change of the volume's content.
    written: &'a Cell<bool>,
}

impl Fill<'_> {
    fn run(&self, mut source: Source, progress: &mut Progress) -> Result<(), Failure> {
        let mut client = self.context.attach(self.name, self.interrupt)?;
        let mut position = 0;
        while let Some(piece) = source.next(self.interrupt)? {
            let length = match &piece {
                Piece::Data(data) => data.len() as u64,
                Piece::Hole(length) => *length,
            };
            let end = position + length;
            if end > client.export().bytes {
                client = self.grow(client, end, source.name())?;
            }
            match piece {
                Piece::Data(data) => self.put(&mut client, position, data)?,
                Piece::Hole(_) => self.skip(&mut client, Span { start: position, end })?,
            }
            position = end;
            progress.advance(length);
        }
        if !self.growing && !self.blank {
            // What the image does not reach is not the old content either.
            let span = Span { start: round_up(position.max(1))?, end: client.export().bytes };
            if span.start < span.end {
                self.written.set(true);
                content::zero_span(&mut client, span)?;
            }
        }
        finish(client)?;
        if self.growing { self.resize(round_up(position)?) } else { Ok(()) }
    }

    /// Writes one piece, leaving long runs of zeros out.
    fn put(&self, client: &mut NbdClient, at: u64, mut data: Vec<u8>) -> Result<(), Failure> {
        // Only the last piece can be uneven.
        data.resize(data.len().next_multiple_of(BLOCK_SIZE), 0);
        for run in source::runs(&data, ZEROS_MIN) {
            let span = Span { start: at + run.start as u64, end: at + run.end as u64 };
            if run.zero {
                self.skip(client, span)?;
                continue;
            }
            for (offset, length) in span.payloads(client.export().payload_max) {
                let start = (offset - at) as usize;
                let data = data[start..start + length as usize].to_vec();
                self.written.set(true);
                transfer::submit(client, Command::Write { offset, data, fua: false })?;
            }
        }
        Ok(())
    }

    /// Makes a span zeros.
    fn skip(&self, client: &mut NbdClient, span: Span) -> Result<(), Failure> {
        if self.blank {
            return Ok(());
        }
        // A hole at the end of a file may be uneven as the file is.
        let end = span.end.next_multiple_of(BLOCK_SIZE as u64).min(client.export().bytes);
        self.written.set(true);
        content::zero_span(client, Span { start: span.start, end })
    }

    /// Makes room up to `end`.
    fn grow(&self, mut client: NbdClient, end: u64, from: &str) -> Result<NbdClient, Failure> {
        let bytes = client.export().bytes;
        if !self.growing {
            return Err(Failure::usage(format!(
                "more than the {bytes} bytes of volume {} came from {from}; give a larger --size",
                self.name
            )));
        }
        transfer::settle(&mut client)?;
        client.disconnect()?;
        self.resize(bytes.saturating_mul(2).max(end.next_multiple_of(BLOCK_SIZE as u64)))?;
        self.context.attach(self.name, self.interrupt)
    }

    fn resize(&self, bytes: u64) -> Result<(), Failure> {
        let name = self.name.to_string();
        let request = AdminRequest::VolumeResize { name, bytes, allow_shrink: true };
        self.context.ask_for_volume(&request).map(|_| ())
    }
}

/// Everything written becomes durable, and the volume free.
fn finish(mut client: NbdClient) -> Result<(), Failure> {
    transfer::settle(&mut client)?;
    client.call(Command::Flush)?;
    Ok(client.disconnect()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn image_from_a_pipe_is_no_raw_volume_unasked() {
        let mut head = [0; foreign::HEAD_BYTES];
        assert_eq!(refuse_format(&head), Ok(()));
        head[..8].copy_from_slice(b"QFI\xfb\0\0\0\x03");
        let failure = refuse_format(&head).expect_err("a qcow2 image");
        assert!(failure.sentence.contains("qcow2") && failure.sentence.contains("--format raw"));
    }
}
