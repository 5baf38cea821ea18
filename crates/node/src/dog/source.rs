//! Where an import takes raw bytes from: a file with holes, a block device or a pipe.

use super::{failure::Failure, interrupt::Interrupt};
use proto::{BLOCK_SIZE, is_zero};
use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{SeekFrom, seek},
    io::Errno,
};
use std::{
    fs::File,
    io::{self, Read},
    os::{
        fd::AsFd,
        unix::fs::{FileExt, FileTypeExt},
    },
};

/// How much is read at once: long enough for the disks, short enough for progress.
pub const PIECE_BYTES: usize = 1 << 20;
/// How often a pipe that brings nothing is left to see whether the work was interrupted.
const INTERRUPT_CHECK: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };

/// Raw bytes in order, with the holes known where the file system tells.
pub struct Source {
    file: File,
    /// For messages.
    name: String,
    /// How long it is; unknown for a pipe.
    length: Option<u64>,
    /// Whether the file system knows holes.
    holes: bool,
    position: u64,
    /// What was taken from a pipe to look at, and comes first.
    peeked: Vec<u8>,
    /// Up to where data is known to go on.
    data_end: u64,
}

/// A part of a source, in order and without gaps.
#[derive(PartialEq, Eq, Debug)]
pub enum Piece {
    /// Bytes, at most [`PIECE_BYTES`].
    Data(Vec<u8>),
    /// That many zeros.
    Hole(u64),
}

impl Source {
    /// Of an open file, from where it stands. `name` is for messages.
    pub fn new(mut file: File, name: &str) -> Result<Source, Failure> {
        let failed = |error: io::Error| read_failure(name, &error);
        let metadata = file.metadata().map_err(failed)?;
        let kind = metadata.file_type();
        if kind.is_dir() {
            return Err(Failure::usage(format!("{name} is a directory; name an image file")));
        }
        let position =
            if kind.is_file() { io::Seek::stream_position(&mut file).map_err(failed)? } else { 0 };
        let length = if kind.is_file() {
            Some(metadata.len().saturating_sub(position))
        } else if kind.is_block_device() {
            let end = io::Seek::seek(&mut file, io::SeekFrom::End(0)).map_err(failed)?;
            io::Seek::seek(&mut file, io::SeekFrom::Start(0)).map_err(failed)?;
            Some(end)
        } else {
            None
        };
        let holes = kind.is_file();
        let name = name.to_string();
        Ok(Source { file, name, length, holes, position, peeked: Vec::new(), data_end: position })
    }

    /// How many bytes it will bring, where that is known before.
    pub fn length(&self) -> Option<u64> {
        self.length
    }

    /// What to call it in messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Up to `length` first bytes, which [`Source::next`] still brings. Only before the first part.
    pub fn peek(&mut self, length: usize, interrupt: &Interrupt) -> Result<Vec<u8>, Failure> {
        assert!(length <= PIECE_BYTES, "a peek is shorter than a piece");
        let mut bytes = vec![0; length];
        let mut filled = 0;
        while filled < length {
            self.wait(interrupt)?;
            let rest = &mut bytes[filled..];
            let taken = match self.length {
                Some(_) => self.file.read_at(rest, self.position + filled as u64),
                None => self.file.read(rest),
            };
            match taken {
                Ok(0) => break,
                Ok(taken) => filled += taken,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(read_failure(&self.name, &error)),
            }
        }
        bytes.truncate(filled);
        if self.length.is_none() {
            self.peeked.clone_from(&bytes);
        }
        Ok(bytes)
    }

    /// The next part; nothing at the end.
    pub fn next(&mut self, interrupt: &Interrupt) -> Result<Option<Piece>, Failure> {
        if self.holes && self.position >= self.data_end {
            if let Some(hole) = self.skip_hole()? {
                return Ok(Some(Piece::Hole(hole)));
            }
            if self.position >= self.data_end {
                return Ok(None);
            }
        }
        let wanted = if self.holes {
            usize::try_from(self.data_end - self.position).unwrap_or(PIECE_BYTES).min(PIECE_BYTES)
        } else {
            PIECE_BYTES
        };
        let mut bytes = std::mem::take(&mut self.peeked);
        let mut filled = bytes.len();
        bytes.resize(wanted, 0);
        while filled < wanted {
            self.wait(interrupt)?;
            match self.file.read(&mut bytes[filled..]) {
                Ok(0) => break,
                Ok(length) => filled += length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(read_failure(&self.name, &error)),
            }
        }
        bytes.truncate(filled);
        self.position += filled as u64;
        if filled < wanted && self.holes {
            // The file became shorter while we read: what is gone is gone.
            return Err(Failure::failed(format!(
                "{} became shorter while it was read; import it when nobody writes to it",
                self.name
            )));
        }
        Ok((filled > 0).then_some(Piece::Data(bytes)))
    }

    /// Finds the next data; returns the length of the hole before it, if there is one.
    fn skip_hole(&mut self) -> Result<Option<u64>, Failure> {
        let start = self.position;
        let length = self.file.metadata().map_err(|error| read_failure(&self.name, &error))?.len();
        let data = match seek(&self.file, SeekFrom::Data(start)) {
            Ok(data) => data,
            Err(Errno::NXIO) => length,
            Err(_) => {
                // A file system that knows no holes: all is data.
                self.data_end = length;
                return Ok(None);
            }
        };
        self.position = data;
        self.data_end = data;
        if data < length {
            let end = seek(&self.file, SeekFrom::Hole(data)).unwrap_or(length);
            self.data_end = end.max(data);
            seek(&self.file, SeekFrom::Start(data))
                .map_err(|error| read_failure(&self.name, &error.into()))?;
        }
        Ok(data.checked_sub(start).filter(|hole| *hole > 0))
    }

    /// Returns when there is something to read, or the work is interrupted.
    fn wait(&self, interrupt: &Interrupt) -> Result<(), Failure> {
        if self.length.is_some() {
            return interrupted(interrupt);
        }
        wait_for(&self.file, interrupt)
    }
}

/// Waits until the descriptor can be read or has ended, or the work is interrupted.
pub fn wait_for(descriptor: &impl AsFd, interrupt: &Interrupt) -> Result<(), Failure> {
    loop {
        interrupted(interrupt)?;
        match poll(&mut [PollFd::new(descriptor, PollFlags::IN)], Some(&INTERRUPT_CHECK)) {
            Ok(0) | Err(Errno::INTR) => {}
            Ok(_) => return Ok(()),
            Err(error) => return Err(Failure::failed(format!("cannot wait for input: {error}"))),
        }
    }
}

/// The failure of interrupted work, if it is.
pub fn interrupted(interrupt: &Interrupt) -> Result<(), Failure> {
    if interrupt.requested() { Err(Failure::interrupted("interrupted")) } else { Ok(()) }
}

fn read_failure(name: &str, error: &io::Error) -> Failure {
    Failure::failed(format!("cannot read {name}: {error}; check that the file is whole"))
}

/// A part of a piece: `start .. end`, zeros or not.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Run {
    /// Where it starts in the piece.
    pub start: usize,
    /// Where it ends.
    pub end: usize,
    /// Whether all of it is zeros.
    pub zero: bool,
}

/// Cuts bytes into runs of zero blocks and of data. Runs of zeros shorter than `zeros_min` stay
/// with the data around them: the daemon finds single zero blocks by itself, and a request for
/// each would cost more.
pub fn runs(bytes: &[u8], zeros_min: usize) -> Vec<Run> {
    let mut fine: Vec<Run> = Vec::new();
    for (place, block) in bytes.chunks(BLOCK_SIZE).enumerate() {
        let (start, zero) = (place * BLOCK_SIZE, is_zero(block));
        match fine.last_mut() {
            Some(run) if run.zero == zero => run.end = start + block.len(),
            _ => fine.push(Run { start, end: start + block.len(), zero }),
        }
    }
    let mut coarse: Vec<Run> = Vec::new();
    for mut run in fine.iter().copied() {
        run.zero &= run.end - run.start >= zeros_min || fine.len() == 1;
        match coarse.last_mut() {
            Some(last) if last.zero == run.zero => last.end = run.end,
            _ => coarse.push(run),
        }
    }
    coarse
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Seek, Write};

    fn read_all(source: &mut Source) -> (Vec<u8>, u64) {
        let (mut bytes, mut holes) = (Vec::new(), 0);
        while let Some(piece) = source.next(&Interrupt::never()).expect("a readable source") {
            match piece {
                Piece::Data(data) => bytes.extend(data),
                Piece::Hole(length) => {
                    holes += length;
                    bytes.resize(bytes.len() + length as usize, 0);
                }
            }
        }
        (bytes, holes)
    }

    #[test]
    fn holes_are_told_and_content_is_whole() {
        let file = tempfile::tempfile().expect("a file");
        let mut content = vec![0u8; 5 << 20];
        content[1 << 20..(1 << 20) + 5000].fill(7);
        content[(4 << 20) + 123] = 9;
        file.set_len(content.len() as u64).expect("a length");
        file.write_all_at(&content[1 << 20..(1 << 20) + 5000], 1 << 20).expect("data");
        file.write_all_at(&[9], (4 << 20) + 123).expect("data");
        let mut source = Source::new(file, "image").expect("a source");
        assert_eq!(source.length(), Some(5 << 20));
        let (bytes, holes) = read_all(&mut source);
        assert!(bytes == content);
        assert!(holes >= 4 << 20, "{holes} bytes of holes");
    }

    #[test]
    fn what_was_peeked_at_still_comes() {
        let content: Vec<u8> = (0..3000u32).map(|n| n as u8).collect();
        let (reader, mut writer) = io::pipe().expect("a pipe");
        writer.write_all(&content).expect("room in the pipe");
        drop(writer);
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(&content).expect("data");
        file.rewind().expect("the start");
        for file in [File::from(std::os::fd::OwnedFd::from(reader)), file] {
            let mut source = Source::new(file, "image").expect("a source");
            let head = source.peek(512, &Interrupt::never()).expect("a head");
            assert!(head == content[..512]);
            assert!(read_all(&mut source).0 == content);
        }
    }

    #[test]
    fn an_empty_file_and_one_hole() {
        let file = tempfile::tempfile().expect("a file");
        let mut source = Source::new(file, "image").expect("a source");
        assert_eq!(read_all(&mut source), (Vec::new(), 0));
        let file = tempfile::tempfile().expect("a file");
        file.set_len(3 << 20).expect("a length");
        let mut source = Source::new(file, "image").expect("a source");
        let (bytes, holes) = read_all(&mut source);
        assert_eq!((bytes.len(), holes), (3 << 20, 3 << 20));
    }

    #[test]
    fn a_redirected_file_starts_where_it_stands() {
        let mut file = tempfile::tempfile().expect("a file");
        file.write_all(b"headcontent").expect("data");
        file.seek(io::SeekFrom::Start(4)).expect("a seek");
        let mut source = Source::new(file, "image").expect("a source");
        assert_eq!(source.length(), Some(7));
        assert_eq!(read_all(&mut source).0, b"content");
    }

    #[test]
    fn a_pipe_comes_in_whole_pieces() {
        let (reader, mut writer) = io::pipe().expect("a pipe");
        let content: Vec<u8> = (0..PIECE_BYTES + 777).map(|at| at as u8).collect();
        let sent = content.clone();
        let sender = std::thread::spawn(move || {
            for part in sent.chunks(1000) {
                writer.write_all(part).expect("a reader");
            }
        });
        let file = File::from(std::os::fd::OwnedFd::from(reader));
        let mut source = Source::new(file, "standard input").expect("a source");
        assert_eq!(source.length(), None);
        let first = source.next(&Interrupt::never()).expect("a piece");
        assert!(matches!(first, Some(Piece::Data(bytes)) if bytes == content[..PIECE_BYTES]));
        assert!(read_all(&mut source).0 == content[PIECE_BYTES..]);
        sender.join().expect("the sender ends");
    }

    #[test]
    fn an_interrupted_pipe_does_not_hang() {
        let (reader, _writer) = io::pipe().expect("a pipe");
        let file = File::from(std::os::fd::OwnedFd::from(reader));
        let mut source = Source::new(file, "standard input").expect("a source");
        let interrupt = Interrupt::never();
        interrupt.request();
        assert!(source.next(&interrupt).is_err());
    }

    #[test]
    fn zero_blocks_are_cut_out_where_it_pays() {
        let check = |pattern: &str, zeros_min_blocks: usize, expected: &[(usize, usize, bool)]| {
            let bytes: Vec<u8> = pattern
                .bytes()
                .flat_map(|letter| vec![u8::from(letter == b'x'); BLOCK_SIZE])
                .collect();
            let found: Vec<_> = runs(&bytes, zeros_min_blocks * BLOCK_SIZE)
                .iter()
                .map(|run| (run.start / BLOCK_SIZE, run.end / BLOCK_SIZE, run.zero))
                .collect();
            assert_eq!(found, expected, "{pattern}");
        };
        check("", 1, &[]);
        check("x", 1, &[(0, 1, false)]);
        check(".", 4, &[(0, 1, true)]);
        check("xx..xx", 1, &[(0, 2, false), (2, 4, true), (4, 6, false)]);
        check("xx..xx", 3, &[(0, 6, false)]);
        check("...x", 3, &[(0, 3, true), (3, 4, false)]);
        check(".x....", 2, &[(0, 2, false), (2, 6, true)]);
        let uneven = runs(&[0, 0, 1], 1);
        assert_eq!(uneven, [Run { start: 0, end: 3, zero: false }]);
    }
}
