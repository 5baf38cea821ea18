//! `dog volume export-diff`: writes the stream of changes that leads from one state to another.

use super::{
    ExportDiff, Pair, changed, sample,
    stream::{Encoder, Header, Totals},
};
use crate::dog::{
    Context, Failure,
    export::{self, Partial, windows},
    interrupt::Interrupt,
    name::{Name, NameError, SnapshotName},
    print,
    progress::Progress,
    source::interrupted,
    transfer::{self, Span},
};
use engine::admin::{AdminReply, AdminRequest};
use proto::BLOCK_SIZE;
use std::{
    fs::File,
    io::{self, IsTerminal, Write},
    path::PathBuf,
};

/// Runs the command.
pub fn run(context: &Context, options: &ExportDiff) -> Result<(), Failure> {
    let interrupt = Interrupt::listen()?;
    let Ends { from, to, file } = ends(options)?;
    let piped = file.as_os_str() == "-";
    if piped && io::stdout().is_terminal() {
        return Err(Failure::usage(
            "a stream of changes would spoil the terminal; name a file, or use a pipe",
        ));
    }
    if !piped {
        export::check_target(&file, options.overwrite)?;
    }
    let mut pair = Pair::open(context, from.as_ref(), &to, &interrupt)?;
    let header = header(context, &mut pair, &to, options)?;
    let mut progress = Progress::resumed("exporting", header.start, header.to_bytes);
    if piped {
        write(&mut pair, &header, &mut Sink::Output, &mut progress, &interrupt)?;
        drop(progress);
        return pair.close();
    }
    let partial = Partial::beside(&file);
    interrupt.will_remove(partial.path.clone());
    let mut sink = Sink::File(partial.create()?, partial.path.clone());
    let totals = write(&mut pair, &header, &mut sink, &mut progress, &interrupt)?;
    interrupted(&interrupt)?;
    partial.become_whole(&file)?;
    let took = progress.elapsed();
    drop(progress);
    pair.close()?;
    let Totals { records, data_bytes, zero_bytes } = totals;
    let file = file.display();
    if context.json {
        return print::json(&serde_json::json!({
            "file": file.to_string(), "records": records, "data_bytes": data_bytes,
            "zeros_bytes": zero_bytes, "start": header.start, "bytes": header.to_bytes,
            "export_s": took.as_secs_f64(),
        }));
    }
    let (data, zeros) = (crate::size::Size(data_bytes), crate::size::Size(zero_bytes));
    print::text(&format!("exported {data} of data and {zeros} of zeros to {file}\n"))
}

/// What is exported, and where to.
#[derive(PartialEq, Eq, Debug)]
struct Ends {
    /// What the stream begins with; nothing for everything.
    from: Option<SnapshotName>,
    /// What it leads to.
    to: Name,
    file: PathBuf,
}

fn ends(options: &ExportDiff) -> Result<Ends, Failure> {
    let ExportDiff { from, to, file, full, .. } = options;
    match (full, file) {
        (true, None) => Ok(Ends { from: None, to: from.clone(), file: PathBuf::from(to) }),
        (true, Some(_)) => Err(Failure::usage(
            "--full begins with nothing; name only what the stream leads to, and the file",
        )),
        (false, None) => Err(Failure::usage(
            "name the snapshot that the stream begins with, what it leads to, and the file; or \
             say --full for everything",
        )),
        (false, Some(file)) => {
            let to = to.parse().map_err(|error: NameError| Failure::usage(error.to_string()))?;
            match from {
                Name::Snapshot(from) => {
                    Ok(Ends { from: Some(from.clone()), to, file: file.clone() })
                }
                Name::Volume(from) => Err(Failure::usage(format!(
                    "a stream of changes begins with a snapshot, and {from} is a volume; name one \
                     of its snapshots, such as {from}@monday, or say --full for everything"
                ))),
            }
        }
    }
}

fn header(
    context: &Context,
    pair: &mut Pair,
    to: &Name,
    options: &ExportDiff,
) -> Result<Header, Failure> {
    let AdminReply::Node(node) = context.ask(&AdminRequest::NodeInfo)? else {
        return Err(Failure::mismatch());
    };
    let volume = match to {
        Name::Volume(volume) => volume,
        Name::Snapshot(name) => &name.volume,
    };
    let to_bytes = pair.client.export().bytes;
    let start = options.start.map_or(0, |start| start.0);
    if start > 0 && pair.to.is_none() {
        return Err(Failure::usage(format!(
            "volume {volume} may have changed since the first part was sent; export a snapshot, or \
             all of it without --start"
        )));
    }
    if start > to_bytes || !start.is_multiple_of(BLOCK_SIZE as u64) {
        return Err(Failure::usage(format!(
            "a stream cannot begin at {start}: say --start with what `dog volume import-diff` told"
        )));
    }
    let mut header = Header {
        cluster: node.cluster.0,
        volume_id: context.volume(volume)?.volume.0,
        to_layer: pair.to.as_ref().map_or(0, |to| to.layer.0),
        to_bytes,
        start,
        volume: volume.clone(),
        to: pair.to.as_ref().map(|to| to.tag.clone()),
        ..Header::default()
    };
    if let Some((from, client)) = &mut pair.from {
        header.from_layer = from.layer.0;
        header.from_bytes = from.bytes;
        header.from = Some(from.tag.clone());
        header.sample = sample(client)?;
    }
    Ok(header)
}

/// Where the stream goes.
enum Sink {
    Output,
    File(File, PathBuf),
}

impl Sink {
    fn put(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        match self {
            Sink::Output => print::bytes(bytes),
            Sink::File(file, path) => file.write_all(bytes).map_err(|error| {
                Failure::failed(format!(
                    "cannot write {}: {error}; check its permissions and free space",
                    path.display()
                ))
            }),
        }
    }
}

fn write(
    pair: &mut Pair,
    header: &Header,
    sink: &mut Sink,
    progress: &mut Progress,
    interrupt: &Interrupt,
) -> Result<Totals, Failure> {
    let (mut encoder, head) = Encoder::begin(header);
    sink.put(&head)?;
    for window in windows(header.to_bytes) {
        let window = Span { start: window.start.max(header.start), end: window.end };
        if window.start >= window.end {
            continue;
        }
        let parts = parts(pair, window, interrupt)?;
        let data: Vec<Span> = parts.iter().filter(|part| !part.1).map(|part| part.0).collect();
        let mut zeros = parts.iter().filter(|part| part.1).map(|part| part.0).peekable();
        transfer::read_in_order(&mut pair.client, &data, |offset, content| {
            interrupted(interrupt)?;
            while let Some(zero) = zeros.next_if(|zero| zero.start < offset) {
                sink.put(&encoder.zero(zero.start, zero.end - zero.start))?;
            }
            sink.put(&encoder.data(offset, content))?;
            sink.put(content)?;
            progress.reach(offset + content.len() as u64);
            Ok(())
        })?;
        for zero in zeros {
            sink.put(&encoder.zero(zero.start, zero.end - zero.start))?;
        }
        progress.reach(window.end);
    }
    let (end, totals) = encoder.end();
    sink.put(&end)?;
    if let Sink::File(file, path) = sink {
        file.sync_all().map_err(|error| {
            Failure::failed(format!("cannot write {}: {error}; check the disk", path.display()))
        })?;
    }
    Ok(totals)
}

/// What is to be told of a window, in order, and whether it is zeros.
fn parts(
    pair: &mut Pair,
    window: Span,
    interrupt: &Interrupt,
) -> Result<Vec<(Span, bool)>, Failure> {
    let mut at = window.start;
    let mut parts = Vec::new();
    let mut take = |length: u64, told: bool, zero: bool| {
        let span = Span { start: at, end: at + length };
        at = span.end;
        if told {
            parts.push((span, zero));
        }
    };
    if pair.from.is_some() {
        for run in changed(&mut pair.client, window, interrupt)? {
            take(run.length, run.dirty, run.zero);
        }
    } else {
        // A new volume has zeros already.
        for extent in transfer::status(&mut pair.client, window)? {
            take(extent.length, !extent.zero, false);
        }
    }
    Ok(parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_two_names_or_one_with_full() {
        let check = |words: &[&str], full: bool, expected: Option<(Option<&str>, &str)>| {
            let options = ExportDiff {
                from: words[0].parse().expect("a name"),
                to: words[1].to_string(),
                file: words.get(2).map(PathBuf::from),
                full,
                start: None,
                overwrite: false,
            };
            let found = ends(&options).ok();
            let expected = expected.map(|(from, to)| Ends {
                from: from.map(|from| from.parse().expect("a name")),
                to: to.parse().expect("a name"),
                file: PathBuf::from("-"),
            });
            assert_eq!(found, expected, "{words:?}");
        };
        check(&["a@x", "a@y", "-"], false, Some((Some("a@x"), "a@y")));
        check(&["a@x", "a", "-"], false, Some((Some("a@x"), "a")));
        check(&["a@x", "-"], true, Some((None, "a@x")));
        check(&["a", "-"], true, Some((None, "a")));
        check(&["a@x", "-"], false, None);
        check(&["a", "a@y", "-"], false, None);
        check(&["a@x", "a@", "-"], false, None);
        check(&["a@x", "a@y", "-"], true, None);
    }
}
