//! The record `node` of a data directory: who this node is, and where its disks are.
//!
//! A text of lines, so that people can read it: a title with the version, one line per fact, and
//! last the CRC-64/NVMe of all bytes before that line. It is refused unless all of it fits.

use proto::{ClusterId, DiskId, NodeId, crc64, limits::NODE_DISKS_MAX};
use std::{
    fmt::Write as _,
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};
use store::MediumKind;

/// The first line, up to the version.
const TITLE: &str = "sheepdog node record, version ";
/// The version that is written, ..
const VERSION: u32 = 1;
/// .. and that of a witness, which a `sheep` of before there were such is to know that it does not
/// know.
const VERSION_WITNESS: u32 = 2;
/// What stands there in place of the disks.
const WITNESS: &str = "witness";
/// The lines that say so; records of before there were other nodes do not have them.
const KEYED: &str = "keys";
const OTHERS: &str = "others";
/// Longest record that is read, in bytes.
const BYTES_MAX: u64 = 64 << 10;
/// Longest path of a disk that is added, in bytes.
pub const DISK_PATH_BYTES_MAX: usize = 512;
/// What a disk takes beside its path at most, in bytes: its line, and that of its limit.
const DISK_LINES_BYTES: usize = 128;
/// What stands before a disk that is being made, in the place of `disk`: versions of before there
/// were such do not know it, and refuse the record.
const MAKING: &str = "making";

const _: () = assert!(
    NODE_DISKS_MAX * (DISK_PATH_BYTES_MAX + "/disk".len() + DISK_LINES_BYTES) + 4096
        <= BYTES_MAX as usize,
    "a record with all disks fits"
);

/// Everybody may read it; who may reach it is for the directory to say.
const MODE: u32 = 0o644;

/// Puts a file in place of the one at this path, at once and durably. The mode is right from the
/// first moment, not only after a chmod.
pub fn replace(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let directory = path.parent().expect("a file lies in a directory");
    let new = path.with_extension("new");
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&new)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    File::open(directory)?.sync_all()
}

/// Who this node is, and where its disks are.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Record {
    /// The cluster it belongs to.
    pub cluster: ClusterId,
    /// The node.
    pub node: NodeId,
    /// Whether the media were still being made when this was written: nothing was ever served from
    /// them, and they are made anew.
    pub founding: bool,
    /// Whether the node joined a cluster, or founded one.
    pub joined: bool,
    /// Whether its keys were written once: if they are missing they were lost.
    pub keyed: bool,
    /// Whether there were other nodes once: they look for this one where it listens.
    pub others: bool,
    /// The disks; none: the node is a witness.
    pub disks: Vec<DiskRecord>,
}

/// One disk.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DiskRecord {
    /// The disk.
    pub disk: DiskId,
    /// A file or a device.
    pub kind: MediumKind,
    /// Where it is: for a file relative to the data directory.
    pub path: PathBuf,
    /// Whether it was being made, as one more of a node that served, when this was written: it may
    /// be made now, unless the cluster has seen it.
    pub making: bool,
    /// How much of it may be used at most, in bytes, where that was said of this very disk.
    pub limit_bytes: Option<u64>,
}

/// Why there is no record.
#[derive(Debug)]
pub enum RecordError {
    /// There is no such file.
    Missing,
    /// It cannot be used: what is wrong, to be put behind its path.
    Unusable(String),
}

impl Record {
    /// Reads the record at this path.
    pub fn read(path: &Path) -> Result<Record, RecordError> {
        let unusable = |error: io::Error| RecordError::Unusable(format!("cannot be read: {error}"));
        match fs::metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(RecordError::Missing);
            }
            Err(error) => return Err(unusable(error)),
            Ok(metadata) if metadata.len() > BYTES_MAX => {
                return Err(RecordError::Unusable("is too long to be one".to_string()));
            }
            Ok(_) => {}
        }
        let bytes = fs::read(path).map_err(unusable)?;
        Record::parse(&bytes).map_err(RecordError::Unusable)
    }

    /// Whether it is a node without disks, which only votes.
    pub fn is_witness(&self) -> bool {
        self.disks.is_empty()
    }

    /// Writes the record in place of the one at this path, at once and durably.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        replace(path, self.print().as_bytes(), MODE)
    }

    fn print(&self) -> String {
        let state = match (self.founding, self.joined) {
            (true, false) => "founding",
            (false, false) => "serving",
            (true, true) => "joining",
            (false, true) => "member",
        };
        let mut text = format!(
            "{TITLE}{}\ncluster {}\nnode {}\nstate {state}\n",
            if self.is_witness() { VERSION_WITNESS } else { VERSION },
            self.cluster,
            self.node
        );
        for (is_so, line) in [(self.keyed, KEYED), (self.others, OTHERS)] {
            if is_so {
                let _ = writeln!(text, "{line}");
            }
        }
        if self.is_witness() {
            let _ = writeln!(text, "{WITNESS}");
        }
        for disk in &self.disks {
            let kind = match disk.kind {
                MediumKind::File => "file",
                MediumKind::Device => "device",
            };
            let path = disk.path.to_str().expect("checked when the disk was taken");
            assert!(!path.contains('\n'), "checked when the disk was taken");
            let word = if disk.making { MAKING } else { "disk" };
            let _ = writeln!(text, "{word} {} {kind} {path}", disk.disk);
            if let Some(limit_bytes) = disk.limit_bytes {
                let _ = writeln!(text, "limit {limit_bytes}");
            }
        }
        let checksum = crc64(text.as_bytes());
        let _ = writeln!(text, "checksum {checksum:016x}");
        text
    }

    fn parse(bytes: &[u8]) -> Result<Record, String> {
        let text = std::str::from_utf8(bytes).map_err(|_| "is no text".to_string())?;
        let mut lines = text.split_inclusive('\n').map(|line| line.trim_end_matches('\n'));
        let version = lines.next().and_then(|line| line.strip_prefix(TITLE));
        let is_witness = match version.map(str::parse::<u32>) {
            Some(Ok(VERSION)) => false,
            Some(Ok(VERSION_WITNESS)) => true,
            Some(Ok(version)) => {
                return Err(format!("is of version {version}, which this sheep does not know"));
            }
            _ => return Err("is no node record".to_string()),
        };
        let damaged = || "is damaged".to_string();
        let body = text.strip_suffix('\n').ok_or_else(damaged)?;
        let (body, last) = body.rsplit_once('\n').ok_or_else(damaged)?;
        let checksum = last.strip_prefix("checksum ").ok_or_else(damaged)?;
        // The newline before the last line is part of what is summed.
        if format!("{:016x}", crc64(&bytes[..body.len() + 1])) != checksum {
            return Err(damaged());
        }
        let record = Record::parse_facts(body.lines().skip(1)).ok_or_else(damaged)?;
        if record.is_witness() == is_witness { Ok(record) } else { Err(damaged()) }
    }

    fn parse_facts<'a>(lines: impl Iterator<Item = &'a str>) -> Option<Record> {
        let mut lines = lines.peekable();
        let number = |text: &str| u128::from_str_radix(text, 16).ok().filter(|&id| id != 0);
        let cluster = ClusterId(number(lines.next()?.strip_prefix("cluster ")?)?);
        let node = NodeId(number(lines.next()?.strip_prefix("node ")?)?);
        let (founding, joined) = match lines.next()?.strip_prefix("state ")? {
            "founding" => (true, false),
            "serving" => (false, false),
            "joining" => (true, true),
            "member" => (false, true),
            _ => return None,
        };
        let keyed = lines.next_if_eq(&KEYED).is_some();
        let others = lines.next_if_eq(&OTHERS).is_some();
        let is_witness = lines.next_if_eq(&WITNESS).is_some();
        let mut disks = Vec::new();
        while let Some(line) = lines.next() {
            let (word, rest) = line.split_once(' ')?;
            let making = match word {
                "disk" => false,
                MAKING => true,
                _ => return None,
            };
            let mut words = rest.splitn(3, ' ');
            let disk = DiskId(number(words.next()?)?);
            let kind = match words.next()? {
                "file" => MediumKind::File,
                "device" => MediumKind::Device,
                _ => return None,
            };
            let path = PathBuf::from(words.next().filter(|path| !path.is_empty())?);
            let limit = lines.next_if(|line| line.starts_with("limit "));
            let limit_bytes = match limit.and_then(|line| line.strip_prefix("limit ")) {
                Some(text) => Some(text.parse().ok()?),
                None => None,
            };
            disks.push(DiskRecord { disk, kind, path, making, limit_bytes });
        }
        let fits = disks.len() <= NODE_DISKS_MAX && disks.is_empty() == is_witness;
        fits.then_some(Record { cluster, node, founding, joined, keyed, others, disks })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(id: u128, kind: MediumKind, path: &str) -> DiskRecord {
        let (disk, path) = (DiskId(id), path.into());
        DiskRecord { disk, kind, path, making: false, limit_bytes: None }
    }

    fn record() -> Record {
        Record {
            cluster: ClusterId(0xabc),
            node: NodeId(1 << 100),
            founding: false,
            joined: false,
            keyed: false,
            others: false,
            disks: vec![
                disk(7, MediumKind::File, "disk"),
                disk(8, MediumKind::Device, "/dev/disk/by-id/with a space"),
            ],
        }
    }

    #[test]
    fn what_is_written_is_read() {
        let directory = tempfile::tempdir().expect("a scratch directory");
        let path = directory.path().join("node");
        assert!(matches!(Record::read(&path), Err(RecordError::Missing)));
        for (founding, joined) in [(true, false), (false, false), (true, true), (false, true)] {
            let (keyed, others) = (joined, founding);
            let record = Record { founding, joined, keyed, others, ..record() };
            record.write(&path).expect("written");
            assert_eq!(Record::read(&path).expect("read"), record);
            let witness = Record { disks: Vec::new(), ..record };
            witness.write(&path).expect("written");
            assert_eq!(Record::read(&path).expect("read"), witness);
        }
        assert_eq!(fs::read_dir(directory.path()).expect("listed").count(), 1);
        let mut record = record();
        record.disks[0].limit_bytes = Some(1 << 30);
        record.disks[1].making = true;
        record.disks.push(DiskRecord {
            making: true,
            limit_bytes: Some(u64::MAX),
            ..disk(9, MediumKind::File, "/srv/limit 7/disk")
        });
        record.write(&path).expect("written");
        assert_eq!(Record::read(&path).expect("read"), record);
    }

    /// What the version before reads, and what it refuses: it took every line behind the facts that
    /// it knew for a disk.
    #[test]
    fn a_disk_that_is_being_made_is_no_disk_to_the_version_before() {
        let lines = |record: &Record| -> Vec<String> {
            let text = record.print();
            let own = |line: &&str| {
                let facts = ["sheepdog ", "cluster ", "node ", "state ", "checksum "];
                !facts.iter().any(|fact| line.starts_with(fact))
            };
            text.lines().filter(own).map(str::to_owned).collect()
        };
        let is_known = |line: &String| line.starts_with("disk ");
        let mut record = record();
        assert_eq!(lines(&record).len(), 2);
        assert!(lines(&record).iter().all(is_known));
        record.disks[1].making = true;
        assert!(!lines(&record).iter().all(is_known));
    }

    #[test]
    fn every_cut_and_every_flipped_bit_is_noticed() {
        let text = record().print();
        for length in 0..text.len() {
            assert!(Record::parse(&text.as_bytes()[..length]).is_err(), "cut at {length}");
        }
        for bit in 0..text.len() * 8 {
            let mut bytes = text.clone().into_bytes();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(Record::parse(&bytes).is_err(), "bit {bit}");
        }
        let mut doubled = text.clone();
        doubled.push_str(&text);
        assert!(Record::parse(doubled.as_bytes()).is_err());
    }

    #[test]
    fn records_that_lie_or_come_from_the_future_are_refused() {
        let check = |from: &str, to: &str, part: &str| {
            let mut text = record().print().replacen(from, to, 1);
            text.truncate(text.find("checksum").expect("a checksum"));
            let checksum = crc64(text.as_bytes());
            let _ = writeln!(text, "checksum {checksum:016x}");
            let error = Record::parse(text.as_bytes()).expect_err(to);
            assert!(error.contains(part), "{error}");
        };
        check("version 1", "version 3", "version 3, which this sheep does not know");
        check("version 1", "version 2", "damaged");
        check("disk 00", "witness\ndisk 00", "damaged");
        check("sheepdog", "goatdog", "no node record");
        check("state serving", "state sleeping", "damaged");
        check("cluster 0", "cluster x", "damaged");
        check("file disk", "file ", "damaged");
        check("file disk", "tape disk", "damaged");
        check("\ndisk ", "\ndesk ", "damaged");
        check("file disk", "file disk\nlimit ", "damaged");
        check("file disk", "file disk\nlimit 7x", "damaged");
        check("file disk", "file disk\nlimit 7\nlimit 7", "damaged");
        check("\nnode ", "\nknot ", "damaged");
    }
}
