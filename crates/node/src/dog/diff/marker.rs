//! What a receiver leaves beside its target while it works: a volume of one block that says which
//! stream is being received and how far it came. Drawn in `docs/formats/diff.md`.

use super::stream::Header;
use crate::dog::{Context, Failure, failure::FailureKind, interrupt::Interrupt};
use crate::nbd_client::{Command, NbdClient, Outcome};
use engine::{admin::AdminRequest, unfinished};
use proto::{BLOCK_SIZE, crc64, is_zero, limits::VOLUME_NAME_BYTES_MAX};

const MAGIC: [u8; 8] = *b"SHEEPIMP";
const VERSION: u32 = 1;
/// Where the header begins.
const HEADER_AT: usize = 32;

/// What it says.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Record {
    /// The stream's header.
    pub header: Header,
    /// All that the stream tells of before this place has arrived.
    pub progress: u64,
    /// The generation of the target's attachment under which that was so. If the next one is not
    /// the receiver's, somebody else had the target: then nothing is known of what is there.
    pub generation: u64,
}

impl Record {
    fn encode(&self) -> Vec<u8> {
        let header = self.header.encode();
        let mut bytes = Vec::with_capacity(BLOCK_SIZE);
        bytes.extend(MAGIC);
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend((header.len() as u32).to_le_bytes());
        bytes.extend(self.progress.to_le_bytes());
        bytes.extend(self.generation.to_le_bytes());
        bytes.extend(header);
        bytes.resize(BLOCK_SIZE - 8, 0);
        bytes.extend(crc64(&bytes).to_le_bytes());
        bytes
    }

    /// Nothing if the bytes are no such record.
    fn decode(bytes: &[u8]) -> Option<Record> {
        let bytes: &[u8; BLOCK_SIZE] = bytes.try_into().ok()?;
        let (body, checksum) = bytes.split_at(BLOCK_SIZE - 8);
        let number = |at: usize| u32::from_le_bytes(body[at..at + 4].try_into().expect("four"));
        let sound = body[..8] == MAGIC && checksum == crc64(body).to_le_bytes();
        if !sound || number(8) != VERSION {
            return None;
        }
        let header = body.get(HEADER_AT..)?.get(..number(12) as usize)?;
        let long = |at: usize| u64::from_le_bytes(body[at..at + 8].try_into().expect("eight"));
        let (progress, generation) = (long(16), long(24));
        Some(Record { header: Header::decode(header).ok()?, progress, generation })
    }
}

/// The volume beside a target, attached: nobody else receives into the target meanwhile.
pub struct Marker {
    name: String,
    client: NbdClient,
    /// What it says; nothing if nothing was begun.
    pub record: Option<Record>,
}

impl Marker {
    /// What it is called.
    pub fn name_of(target: &str) -> Result<String, Failure> {
        let name = unfinished::marker(target);
        if name.len() > VOLUME_NAME_BYTES_MAX {
            return Err(Failure::usage(format!(
                "a volume named {name} would be needed while the stream is received, and the name \
                 is too long; give the target a shorter name"
            )));
        }
        Ok(name)
    }

    /// That of a target, if there is one.
    pub fn find(
        context: &Context,
        target: &str,
        interrupt: &Interrupt,
    ) -> Result<Option<Marker>, Failure> {
        let name = Marker::name_of(target)?;
        let foreign = || {
            Failure::conflict(format!(
                "volume {name} is in the way: its name is needed while a stream is received into \
                 {target}, and it is something else; rename it"
            ))
        };
        match context.volume(&name) {
            Err(failure) if failure.kind == FailureKind::NotFound => return Ok(None),
            Err(failure) => return Err(failure),
            Ok(volume) if volume.bytes != BLOCK_SIZE as u64 => return Err(foreign()),
            Ok(_) => {}
        }
        let mut client = context.attach(&name, interrupt).map_err(|failure| match failure.kind {
            FailureKind::Conflict => Failure::conflict(format!(
                "somebody else receives a stream into volume {target} ({failure}); wait for its end"
            )),
            _ => failure,
        })?;
        let length = BLOCK_SIZE as u32;
        let Outcome::Data(bytes) = client.call(Command::Read { offset: 0, length })? else {
            return Err(Failure::mismatch());
        };
        let record = Record::decode(&bytes);
        if record.is_none() && !is_zero(&bytes) {
            return Err(foreign());
        }
        Ok(Some(Marker { name, client, record }))
    }

    /// Makes the one of a target.
    pub fn create(
        context: &Context,
        target: &str,
        interrupt: &Interrupt,
    ) -> Result<Marker, Failure> {
        let name = Marker::name_of(target)?;
        let bytes = BLOCK_SIZE as u64;
        context.ask_for_volume(&AdminRequest::VolumeCreate { name: name.clone(), bytes })?;
        let client = context.attach(&name, interrupt)?;
        Ok(Marker { name, client, record: None })
    }

    /// Says something else from now on, on stable media.
    pub fn put(&mut self, record: Record) -> Result<(), Failure> {
        let data = record.encode();
        self.client.call(Command::Write { offset: 0, data, fua: true })?;
        self.record = Some(record);
        Ok(())
    }

    /// There is nothing to be remembered any more.
    pub fn remove(self, context: &Context, interrupt: &Interrupt) -> Result<(), Failure> {
        self.client.disconnect()?;
        context.delete_when_free(&self.name, interrupt)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> Record {
        let header = Header {
            to_bytes: 1 << 20,
            volume: "web".into(),
            to: Some("b".into()),
            ..Header::default()
        };
        Record { header, progress: 8192, generation: 3 }
    }

    #[test]
    fn what_is_remembered_is_read_again_and_nothing_else_is_taken_for_it() {
        let bytes = record().encode();
        assert_eq!((bytes.len(), &bytes[..8]), (BLOCK_SIZE, &b"SHEEPIMP"[..]));
        assert_eq!(Record::decode(&bytes), Some(record()));
        assert_eq!(Record::decode(&[0; BLOCK_SIZE]), None);
        assert_eq!(Record::decode(&bytes[1..]), None);
        for at in (0..BLOCK_SIZE).step_by(7) {
            let mut spoiled = bytes.clone();
            spoiled[at] ^= 1;
            assert_eq!(Record::decode(&spoiled), None, "byte {at}");
        }
    }

    #[test]
    fn a_target_with_a_very_long_name_is_refused_before_anything_is_made() {
        assert_eq!(Marker::name_of("web").as_deref(), Ok("web.import"));
        let failure = Marker::name_of(&"x".repeat(255)).expect_err("too long");
        assert!(failure.sentence.contains("shorter name"), "{failure}");
    }
}
