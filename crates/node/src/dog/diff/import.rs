//! `dog volume import-diff`: receives a stream of changes. What is wrong with it is found before
//! anything is written, or undone.

use super::{
    ImportDiff,
    stream::{Damage, Decoder, Header, Item, Totals},
    target::Target,
};
use crate::dog::{
    Context, Failure, content,
    interrupt::Interrupt,
    print,
    progress::Progress,
    source::{Piece, Source, interrupted},
};
use crate::size::Size;
use std::path::Path;

/// What a hole in a file is read as, piece by piece.
static ZEROS: [u8; 64 << 10] = [0; 64 << 10];

/// Runs the command.
pub fn run(context: &Context, options: &ImportDiff) -> Result<(), Failure> {
    let interrupt = Interrupt::listen()?;
    let file = Some(options.file.as_path()).filter(|path| path.as_os_str() != "-");
    if let Some(path) = file {
        verify(path, &interrupt)?;
    }
    let mut stream = Stream::open(file, &interrupt)?;
    let header = stream.header()?;
    let mut target = Target::begin(context, options, header.clone(), &interrupt)?;
    let resumed_at = target.resumed_at;
    let mut progress = Progress::resumed("importing", resumed_at, header.to_bytes);
    let received = receive(&mut stream, &mut target, &mut progress);
    let took = progress.elapsed();
    drop(progress);
    let (totals, volume) = match received {
        Ok(totals) => (totals, target.complete()?),
        Err(failure) => return Err(target.give_up(failure, options.keep_partial)),
    };
    if context.json {
        let mut value = serde_json::to_value(&volume).expect("reports are always JSON");
        value["import_s"] = took.as_secs_f64().into();
        value["data_bytes"] = totals.data_bytes.into();
        value["zeros_bytes"] = totals.zero_bytes.into();
        value["resumed_at"] = resumed_at.into();
        value["tag"] = header.to.into();
        return print::json(&value);
    }
    let (name, data, zeros) = (&volume.name, Size(totals.data_bytes), Size(totals.zero_bytes));
    let state = match &header.to {
        Some(to) => format!("volume {name} has snapshot {name}@{to}"),
        None => format!("volume {name} is what volume {} was, without a snapshot", header.volume),
    };
    print::text(&format!("imported {data} of data and {zeros} of zeros; {state}\n"))?;
    context.warn_of_overcommit()
}

/// Reads a file from end to end before anything is written.
fn verify(path: &Path, interrupt: &Interrupt) -> Result<(), Failure> {
    let mut stream = Stream::open(Some(path), interrupt)?;
    let mut progress = Progress::new("verifying", stream.source.length());
    while let Some(item) = stream.next()? {
        if let Item::Data { content, .. } = item {
            progress.advance(content.len() as u64);
        }
    }
    Ok(())
}

/// Brings all that a stream tells of into the target.
fn receive(
    stream: &mut Stream<'_>,
    target: &mut Target<'_>,
    progress: &mut Progress,
) -> Result<Totals, Failure> {
    let mut totals = Totals::default();
    loop {
        let Some(item) = stream.next_here()? else {
            if stream.is_piped() {
                // A pipe may bring nothing for long, and the daemon waits for no half request.
                target.settle()?;
            }
            if !stream.read_more()? {
                break;
            }
            continue;
        };
        interrupted(stream.interrupt)?;
        let reached = match item {
            Item::Header(_) => continue,
            Item::Data { offset, content } => {
                target.write(offset, &content)?;
                offset + content.len() as u64
            }
            Item::Zero { offset, length } => {
                target.zero(offset, length)?;
                offset + length
            }
            Item::End(told) => {
                totals = told;
                continue;
            }
        };
        progress.reach(reached.max(target.resumed_at));
    }
    target.finish_writing()?;
    Ok(totals)
}

/// A stream of changes as it comes from a file or a pipe.
struct Stream<'a> {
    source: Source,
    decoder: Decoder,
    interrupt: &'a Interrupt,
    /// Zeros of a hole that were not looked at yet.
    hole: u64,
}

impl<'a> Stream<'a> {
    fn open(file: Option<&Path>, interrupt: &'a Interrupt) -> Result<Stream<'a>, Failure> {
        let source = content::open_source(file)?;
        Ok(Stream { source, decoder: Decoder::default(), interrupt, hole: 0 })
    }

    fn header(&mut self) -> Result<Header, Failure> {
        match self.next()? {
            Some(Item::Header(header)) => Ok(header),
            _ => unreachable!("a stream begins with its header or is damaged"),
        }
    }

    /// The next part; nothing at the end of a stream that is whole.
    fn next(&mut self) -> Result<Option<Item>, Failure> {
        loop {
            if let Some(item) = self.next_here()? {
                return Ok(Some(item));
            }
            if !self.read_more()? {
                return Ok(None);
            }
        }
    }

    /// The next part, if all of it was read already.
    fn next_here(&mut self) -> Result<Option<Item>, Failure> {
        self.decoder.next().map_err(|damage| self.refuse(&damage))
    }

    /// Whether nobody knows when more will come.
    fn is_piped(&self) -> bool {
        self.source.length().is_none()
    }

    /// Reads on; whether there was anything. At the end of the source the stream must be whole.
    fn read_more(&mut self) -> Result<bool, Failure> {
        if self.hole > 0 {
            let length = self.hole.min(ZEROS.len() as u64);
            self.hole -= length;
            self.decoder.push(&ZEROS[..length as usize]);
            return Ok(true);
        }
        match self.source.next(self.interrupt)? {
            Some(Piece::Data(bytes)) => self.decoder.push(&bytes),
            Some(Piece::Hole(length)) => self.hole = length,
            None => {
                self.decoder.finish().map_err(|damage| self.refuse(&damage))?;
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn refuse(&self, damage: &Damage) -> Failure {
        let from = self.source.name();
        Failure::failed(format!("{from}: {damage}; make the stream anew, or copy it again"))
    }
}
