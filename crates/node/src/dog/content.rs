//! `dog volume read | write | zero | discard | flush | map`: the test client without QEMU.

use super::{
    Context, Failure,
    arguments::Range,
    export::{self, Partial},
    interrupt::Interrupt,
    print,
    progress::Progress,
    source::{Piece, Source},
    transfer::{self, Span},
};
use crate::{
    nbd_client::{Command, Extent, NbdClient},
    size::Size,
};
use std::{
    fs::File,
    io::{self, IsTerminal, Write},
    os::fd::AsFd,
    path::Path,
};

/// Reads a range to a file or standard output.
pub fn read(
    context: &Context,
    name: &str,
    range: &Range,
    file: Option<&Path>,
    overwrite: bool,
) -> Result<(), Failure> {
    let interrupt = Interrupt::listen()?;
    let file = file.filter(|path| path.as_os_str() != "-");
    if let Some(path) = file {
        export::check_target(path, overwrite)?;
    }
    if file.is_none() && io::stdout().is_terminal() {
        return Err(Failure::usage(
            "bytes of a volume would spoil the terminal; name a file or use a pipe, such as \
             `| hexdump -C`",
        ));
    }
    let mut client = context.attach(name, &interrupt)?;
    let span = check_range(&client, name, range)?;
    let mut progress = Progress::new("reading", Some(range.length.0));
    match file {
        None => transfer::read_in_order(&mut client, &[span], |_, bytes| {
            progress.advance(bytes.len() as u64);
            print::bytes(bytes)
        })?,
        Some(path) => {
            let failed = |error: io::Error| {
                Failure::failed(format!(
                    "cannot write {}: {error}; check its permissions and free space",
                    path.display()
                ))
            };
            let partial = Partial::beside(path);
            interrupt.will_remove(partial.path.clone());
            let mut target = partial.create()?;
            transfer::read_in_order(&mut client, &[span], |_, bytes| {
                progress.advance(bytes.len() as u64);
                target.write_all(bytes).map_err(failed)
            })?;
            partial.become_whole(path)?;
        }
    }
    drop(progress);
    Ok(client.disconnect()?)
}

/// Writes a file or standard input from an offset on, then flushes.
pub fn write(
    context: &Context,
    name: &str,
    offset: Size,
    file: Option<&Path>,
    fua: bool,
) -> Result<(), Failure> {
    let interrupt = Interrupt::listen()?;
    let mut source = open_source(file)?;
    let mut client = context.attach(name, &interrupt)?;
    check_aligned(&client, "the offset", offset.0)?;
    if let Some(length) = source.length() {
        check_range(&client, name, &Range { offset, length: Size(length) })?;
    }
    let mut progress = Progress::new("writing", source.length());
    let mut position = offset.0;
    while let Some(piece) = source.next(&interrupt)? {
        match piece {
            Piece::Data(data) => {
                let length = Size(data.len() as u64);
                // A pipe's length shows only here.
                check_range(&client, name, &Range { offset: Size(position), length })?;
                transfer::submit(&mut client, Command::Write { offset: position, data, fua })?;
                position += length.0;
                progress.advance(length.0);
            }
            Piece::Hole(length) => {
                zero_span(&mut client, Span { start: position, end: position + length })?;
                position += length;
                progress.advance(length);
            }
        }
    }
    drop(progress);
    transfer::settle(&mut client)?;
    client.call(Command::Flush)?;
    client.disconnect()?;
    context.done(&format!("{} written and flushed", Size(position - offset.0)))
}

/// Zeroes a span, many requests at a time.
pub fn zero_span(client: &mut NbdClient, span: Span) -> Result<(), Failure> {
    for (offset, length) in span.pieces(client.export().range_max()) {
        let command = Command::Zero { offset, length, no_hole: false, fast: false };
        transfer::submit(client, command)?;
    }
    Ok(())
}

/// Zeroes a range.
pub fn zero(
    context: &Context,
    name: &str,
    range: &Range,
    no_unmap: bool,
    fast: bool,
) -> Result<(), Failure> {
    let mut client = context.attach(name, &Interrupt::listen()?)?;
    let span = check_range(&client, name, range)?;
    for (offset, length) in span.pieces(client.export().range_max()) {
        let command = Command::Zero { offset, length, no_hole: no_unmap, fast };
        transfer::submit(&mut client, command)?;
    }
    transfer::settle(&mut client)?;
    client.call(Command::Flush)?;
    client.disconnect()?;
    context.done(&format!("{} zeroed and flushed", range.length))
}

/// Discards a range.
pub fn discard(context: &Context, name: &str, range: &Range) -> Result<(), Failure> {
    let mut client = context.attach(name, &Interrupt::listen()?)?;
    let span = check_range(&client, name, range)?;
    for (offset, length) in span.pieces(client.export().range_max()) {
        transfer::submit(&mut client, Command::Trim { offset, length })?;
    }
    transfer::settle(&mut client)?;
    client.call(Command::Flush)?;
    client.disconnect()?;
    context.done(&format!("{} discarded and flushed", range.length))
}

/// Flushes.
pub fn flush(context: &Context, name: &str) -> Result<(), Failure> {
    let mut client = context.attach(name, &Interrupt::listen()?)?;
    client.call(Command::Flush)?;
    client.disconnect()?;
    context.done(&format!("volume {name} flushed"))
}

/// Shows what is data and what is not.
pub fn map(context: &Context, name: &str) -> Result<(), Failure> {
    let mut client = context.attach(name, &Interrupt::listen()?)?;
    let span = Span { start: 0, end: client.export().bytes };
    let extents = transfer::status(&mut client, span)?;
    client.disconnect()?;
    if context.json {
        return print::json(&located(&extents));
    }
    print::text(&tabulate(&extents))
}

/// Extents with where they start, as the table has them.
fn located(extents: &[Extent]) -> Vec<serde_json::Value> {
    let mut offset = 0;
    let locate = |extent: &Extent| {
        let Extent { length, hole, zero } = *extent;
        let value = serde_json::json!({
            "offset": offset, "length": length, "hole": hole, "zero": zero
        });
        offset += length;
        value
    };
    extents.iter().map(locate).collect()
}

fn tabulate(extents: &[Extent]) -> String {
    let mut offset = 0;
    let rows = extents.iter().map(|extent| {
        let start = offset;
        offset += extent.length;
        let kind = match (extent.hole, extent.zero) {
            (false, false) => "data",
            (false, true) => "zeros, space kept",
            (true, true) => "zeros",
            (true, false) => "unknown, takes no space",
        };
        vec![start.to_string(), extent.length.to_string(), kind.to_string()]
    });
    print::table(&[("OFFSET", true), ("LENGTH", true), ("CONTENT", false)], rows.collect())
}

/// The file, or standard input.
pub fn open_source(file: Option<&Path>) -> Result<Source, Failure> {
    let Some(path) = file.filter(|path| path.as_os_str() != "-") else {
        let input = io::stdin().as_fd().try_clone_to_owned().map_err(|error| {
            Failure::failed(format!(
                "cannot read standard input: {error}; check where it comes from"
            ))
        })?;
        return Source::new(File::from(input), "standard input");
    };
    let file = File::open(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => {
            Failure::not_found(format!("there is no file {}; check its path", path.display()))
        }
        _ => Failure::failed(format!(
            "cannot open {}: {error}; check its permissions",
            path.display()
        )),
    })?;
    Source::new(file, &path.display().to_string())
}

/// The range as a span of the volume, if it is one.
fn check_range(client: &NbdClient, name: &str, range: &Range) -> Result<Span, Failure> {
    check_aligned(client, "the offset", range.offset.0)?;
    check_aligned(client, "the length", range.length.0)?;
    let bytes = client.export().bytes;
    let end = range.offset.0.checked_add(range.length.0).filter(|end| *end <= bytes);
    end.map(|end| Span { start: range.offset.0, end }).ok_or_else(|| {
        Failure::usage(format!(
            "offset {} and length {} leave volume {name}, which has {bytes} bytes; choose a range \
             inside it",
            range.offset.0, range.length.0
        ))
    })
}

fn check_aligned(client: &NbdClient, what: &str, bytes: u64) -> Result<(), Failure> {
    let unit = client.export().block_min;
    if bytes.is_multiple_of(u64::from(unit)) {
        return Ok(());
    }
    Err(Failure::usage(format!(
        "{what} must be a multiple of {unit} bytes, and {bytes} is not; round it"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extents_are_located() {
        let extents = [
            Extent { length: 4096, hole: false, zero: false },
            Extent { length: 8192, hole: true, zero: true },
            Extent { length: 4096, hole: false, zero: true },
        ];
        let offsets: Vec<_> = located(&extents).iter().map(|v| v["offset"].as_u64()).collect();
        assert_eq!(offsets, [Some(0), Some(4096), Some(12288)]);
        assert_eq!(located(&extents)[1]["length"], 8192);
    }
}
