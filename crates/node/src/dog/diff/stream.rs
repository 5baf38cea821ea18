//! The stream of changes, as `docs/formats/diff.md` draws it: its bytes made and taken apart. No
//! I/O: what is taken apart may come in any pieces, from anybody.

use proto::limits::{
    DIFF_HEADER_BYTES_MAX, DIFF_RECORD_BYTES_MAX, VOLUME_BYTES_MAX, VOLUME_NAME_BYTES_MAX,
};
use proto::{BLOCK_SIZE, Crc64, crc64};
use std::fmt;

const MAGIC: [u8; 8] = *b"SHEEPDIF";
const VERSION: u32 = 1;
/// Bytes of a header before its names.
const NUMBERS_BYTES: usize = 104;
/// Bytes of a record before its payload.
const RECORD_BYTES: usize = 32;
/// Bytes of an end's payload.
const TOTALS_BYTES: usize = 32;
const FLAG_SEALED: u32 = 1;
const KIND_DATA: u32 = 1;
const KIND_ZERO: u32 = 2;
const KIND_END: u32 = 3;

/// What a stream says of itself.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Header {
    /// The cluster it was written in.
    pub cluster: u128,
    /// The volume's id there.
    pub volume_id: u64,
    /// The layers of both ends there; the first is 0 for a full stream.
    pub from_layer: u64,
    /// See above.
    pub to_layer: u64,
    /// The sizes of both ends in bytes; the first is 0 for a full stream.
    pub from_bytes: u64,
    /// See above.
    pub to_bytes: u64,
    /// Where in the volume it begins.
    pub start: u64,
    /// The sample of what the snapshot it begins with contains.
    pub sample: u64,
    /// The volume's name.
    pub volume: String,
    /// The tag of the snapshot it begins with; nothing for a full stream.
    pub from: Option<String>,
    /// The tag of the snapshot it leads to; nothing if that is a volume.
    pub to: Option<String>,
}

/// What records told of.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Totals {
    /// How many records.
    pub records: u64,
    /// Bytes of content.
    pub data_bytes: u64,
    /// Bytes of zeros.
    pub zero_bytes: u64,
}

/// A part of a stream, verified.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Item {
    /// Always the first.
    Header(Header),
    /// The volume has this content here.
    Data {
        /// Where in the volume.
        offset: u64,
        /// Whole blocks.
        content: Vec<u8>,
    },
    /// The volume has zeros here.
    Zero {
        /// Where in the volume.
        offset: u64,
        /// How many, in bytes.
        length: u64,
    },
    /// Always the last.
    End(Totals),
}

/// What is wrong with a stream, and where.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Damage {
    /// Where in the stream the part begins that is wrong, or where it ends too early.
    pub at: u64,
    /// Up to where in the volume all was well; nothing if not even the header was.
    pub volume_at: Option<u64>,
    /// In words.
    pub what: &'static str,
}

impl fmt::Display for Damage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, at byte {} of the stream", self.what, self.at)?;
        match self.volume_at {
            Some(offset) => write!(f, ", after what it tells of the volume before byte {offset}"),
            None => Ok(()),
        }
    }
}

impl Header {
    /// Whether it is the same stream but for where it begins.
    pub fn is_same_stream(&self, other: &Header) -> bool {
        let whole = |header: &Header| Header { start: 0, ..header.clone() };
        whole(self) == whole(other)
    }

    /// Its bytes.
    ///
    /// # Panics
    /// If a name is longer than names are.
    pub fn encode(&self) -> Vec<u8> {
        let (from, to) = (self.from.as_deref().unwrap_or(""), self.to.as_deref().unwrap_or(""));
        let names = [&self.volume, from, to];
        let length: usize = names.iter().map(|name| name.len()).sum();
        let total = (NUMBERS_BYTES + length).next_multiple_of(8) + 8;
        let flags = if self.to.is_some() { FLAG_SEALED } else { 0 };
        let mut bytes = Vec::with_capacity(total);
        bytes.extend(MAGIC);
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend((total as u32).to_le_bytes());
        bytes.extend(self.cluster.to_le_bytes());
        let Header { volume_id, from_layer, to_layer, from_bytes, to_bytes, .. } = *self;
        for number in [volume_id, from_layer, to_layer, from_bytes, to_bytes] {
            bytes.extend(number.to_le_bytes());
        }
        bytes.extend(self.start.to_le_bytes());
        bytes.extend(self.sample.to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        for name in names {
            assert!(name.len() <= VOLUME_NAME_BYTES_MAX, "names are short");
            bytes.extend((name.len() as u16).to_le_bytes());
        }
        bytes.extend([0; 6]);
        names.iter().for_each(|name| bytes.extend(name.as_bytes()));
        bytes.resize(total - 8, 0);
        bytes.extend(crc64(&bytes).to_le_bytes());
        bytes
    }

    /// How long the header that begins so is.
    fn length(bytes: &[u8]) -> Result<usize, &'static str> {
        if bytes[..8] != MAGIC {
            return Err("this is no stream of changes");
        }
        if u32_at(bytes, 8) != VERSION {
            return Err("this stream is of another version of dog, which has to read it");
        }
        let length = u32_at(bytes, 12) as usize;
        let possible = NUMBERS_BYTES + 8..=DIFF_HEADER_BYTES_MAX;
        let is_possible = possible.contains(&length) && length.is_multiple_of(8);
        is_possible.then_some(length).ok_or("the header is damaged: its length is impossible")
    }

    /// Takes a whole header apart.
    pub fn decode(bytes: &[u8]) -> Result<Header, &'static str> {
        if bytes.len() < NUMBERS_BYTES + 8 || Header::length(bytes)? != bytes.len() {
            return Err("the header is damaged: its length is impossible");
        }
        let (body, checksum) = bytes.split_at(bytes.len() - 8);
        if u64_at(checksum, 0) != crc64(body) {
            return Err("the header is damaged: its checksum does not fit");
        }
        let lengths = [92, 94, 96].map(|at| usize::from(u16_at(body, at)));
        let mut rest = &body[NUMBERS_BYTES..];
        let mut names = Vec::new();
        for length in lengths {
            let (name, after) =
                rest.split_at_checked(length).ok_or("the header's names are cut")?;
            names.push(std::str::from_utf8(name).map_err(|_| "the header has names of no text")?);
            rest = after;
        }
        let optional = |name: &str| (!name.is_empty()).then(|| name.to_owned());
        let header = Header {
            cluster: u128::from_le_bytes(body[16..32].try_into().expect("sixteen bytes")),
            volume_id: u64_at(body, 32),
            from_layer: u64_at(body, 40),
            to_layer: u64_at(body, 48),
            from_bytes: u64_at(body, 56),
            to_bytes: u64_at(body, 64),
            start: u64_at(body, 72),
            sample: u64_at(body, 80),
            volume: names[0].to_owned(),
            from: optional(names[1]),
            to: optional(names[2]),
        };
        let sealed = if header.to.is_some() { FLAG_SEALED } else { 0 };
        let zeros = body[98..NUMBERS_BYTES].iter().chain(rest).all(|byte| *byte == 0);
        if u32_at(body, 88) != sealed || !zeros || rest.len() >= 8 {
            return Err("the header says what this version of dog does not know");
        }
        header.judge()?;
        Ok(header)
    }

    /// Whether it makes sense.
    fn judge(&self) -> Result<(), &'static str> {
        let is_size = |bytes: u64| {
            (1..=VOLUME_BYTES_MAX).contains(&bytes) && bytes.is_multiple_of(BLOCK_SIZE as u64)
        };
        let is_name = |name: &str| {
            let odd = |c: char| c.is_control() || c.is_whitespace() || matches!(c, '/' | '@');
            !name.is_empty() && name.len() <= VOLUME_NAME_BYTES_MAX && !name.contains(odd)
        };
        let full = self.from.is_none();
        let numbers = [self.from_layer, self.from_bytes, self.sample];
        if full && numbers != [0; 3] || !full && !is_size(self.from_bytes) {
            return Err("the header contradicts itself about what the stream begins with");
        }
        if !is_size(self.to_bytes) {
            return Err("the header gives the volume an impossible size");
        }
        let late = self.start > 0 && self.to.is_none();
        if late || self.start > self.to_bytes || !self.start.is_multiple_of(BLOCK_SIZE as u64) {
            return Err("the header gives the stream an impossible start");
        }
        let mut names = [Some(&self.volume), self.from.as_ref(), self.to.as_ref()].into_iter();
        if !names.all(|name| name.is_none_or(|name| is_name(name))) || self.from == self.to && !full
        {
            return Err("the header has impossible names");
        }
        Ok(())
    }
}

/// Makes a stream. The caller writes what each call returns, in order.
pub struct Encoder {
    position: u64,
    key: u64,
    whole: Crc64,
    reached: u64,
    to_bytes: u64,
    totals: Totals,
}

impl Encoder {
    /// Begins one; its header.
    pub fn begin(header: &Header) -> (Encoder, Vec<u8>) {
        let bytes = header.encode();
        let mut whole = Crc64::default();
        whole.update(&bytes);
        let encoder = Encoder {
            position: bytes.len() as u64,
            key: u64_at(&bytes, bytes.len() - 8),
            whole,
            reached: header.start,
            to_bytes: header.to_bytes,
            totals: Totals::default(),
        };
        (encoder, bytes)
    }

    /// The head of a record with this content, which follows it.
    pub fn data(&mut self, offset: u64, content: &[u8]) -> [u8; RECORD_BYTES] {
        assert!(content.len() <= DIFF_RECORD_BYTES_MAX, "a record is that long at most");
        self.totals.data_bytes += content.len() as u64;
        self.record(KIND_DATA, offset, content.len() as u64, content)
    }

    /// A record of zeros.
    pub fn zero(&mut self, offset: u64, length: u64) -> [u8; RECORD_BYTES] {
        self.totals.zero_bytes += length;
        self.record(KIND_ZERO, offset, length, &[])
    }

    /// The end, and what the stream told of.
    pub fn end(mut self) -> (Vec<u8>, Totals) {
        let totals = self.totals;
        let mut payload = Vec::with_capacity(TOTALS_BYTES);
        let numbers = [totals.records, totals.data_bytes, totals.zero_bytes, self.whole.finish()];
        numbers.iter().for_each(|number| payload.extend(number.to_le_bytes()));
        self.reached = self.to_bytes;
        let head = self.record(KIND_END, self.to_bytes, 0, &payload);
        ([&head[..], &payload].concat(), totals)
    }

    fn record(
        &mut self,
        kind: u32,
        offset: u64,
        length: u64,
        payload: &[u8],
    ) -> [u8; RECORD_BYTES] {
        assert!(offset >= self.reached && offset + length <= self.to_bytes, "records are in order");
        self.reached = offset + length;
        let mut head = [0; RECORD_BYTES];
        head[..4].copy_from_slice(&kind.to_le_bytes());
        head[4..8].copy_from_slice(&(payload.len() as u32).to_le_bytes());
        head[8..16].copy_from_slice(&offset.to_le_bytes());
        head[16..24].copy_from_slice(&length.to_le_bytes());
        let checksum = checksum(self.key, self.position, &head[..24], payload);
        head[24..].copy_from_slice(&checksum.to_le_bytes());
        self.position += (RECORD_BYTES + payload.len()) as u64;
        self.totals.records += 1;
        self.whole.update(&head);
        self.whole.update(payload);
        head
    }
}

/// The checksum of a record at its place.
fn checksum(key: u64, position: u64, head: &[u8], payload: &[u8]) -> u64 {
    let mut crc = Crc64::default();
    crc.update(&key.to_le_bytes());
    crc.update(&position.to_le_bytes());
    crc.update(head);
    crc.update(payload);
    crc.finish()
}

/// Takes a stream apart. Bytes go in by [`Decoder::push`]; [`Decoder::next`] brings what they
/// complete; [`Decoder::finish`] tells whether all of it came.
#[derive(Default)]
pub struct Decoder {
    /// What came and was not taken yet: `input[used..]`.
    input: Vec<u8>,
    used: usize,
    /// Where in the stream that begins.
    position: u64,
    header: Option<Header>,
    key: u64,
    whole: Crc64,
    /// Up to where in the volume it told.
    reached: u64,
    totals: Totals,
    ended: bool,
    /// It was damaged: there is nothing more to be had.
    damage: Option<Damage>,
}

impl Decoder {
    /// More of the stream. All that [`Decoder::next`] brings is to be taken before.
    pub fn push(&mut self, bytes: &[u8]) {
        self.input.drain(..self.used);
        self.used = 0;
        self.input.extend_from_slice(bytes);
    }

    /// Bytes that came and were not taken yet.
    pub fn held_bytes(&self) -> usize {
        self.input.len() - self.used
    }

    /// The next part, if it is there.
    pub fn next(&mut self) -> Result<Option<Item>, Damage> {
        if let Some(damage) = &self.damage {
            return Err(damage.clone());
        }
        let taken = if self.header.is_none() { self.take_header() } else { self.take_record() };
        taken.map_err(|what| {
            let damage = self.damaged(self.position, what);
            self.damage = Some(damage.clone());
            damage
        })
    }

    /// The stream is over: whether that is its end.
    pub fn finish(&self) -> Result<(), Damage> {
        match &self.damage {
            Some(damage) => Err(damage.clone()),
            None if self.ended => Ok(()),
            None => {
                let at = self.position + self.held_bytes() as u64;
                Err(self.damaged(at, "the stream ends too early"))
            }
        }
    }

    fn damaged(&self, at: u64, what: &'static str) -> Damage {
        Damage { at, volume_at: self.header.is_some().then_some(self.reached), what }
    }

    fn take_header(&mut self) -> Result<Option<Item>, &'static str> {
        let input = &self.input[self.used..];
        // What is no stream at all is seen at once, however short it is.
        let known = input.len().min(MAGIC.len());
        if input[..known] != MAGIC[..known] {
            return Err("this is no stream of changes");
        }
        if input.len() < NUMBERS_BYTES {
            return Ok(None);
        }
        let length = Header::length(input)?;
        let Some(bytes) = input.get(..length) else { return Ok(None) };
        let header = Header::decode(bytes)?;
        self.key = u64_at(bytes, length - 8);
        self.whole.update(bytes);
        self.reached = header.start;
        self.header = Some(header.clone());
        self.advance(length);
        Ok(Some(Item::Header(header)))
    }

    fn take_record(&mut self) -> Result<Option<Item>, &'static str> {
        let input = &self.input[self.used..];
        if self.ended {
            return if input.is_empty() { Ok(None) } else { Err("bytes follow the stream's end") };
        }
        let Some(head) = input.get(..RECORD_BYTES) else { return Ok(None) };
        let (kind, payload) = (u32_at(head, 0), u32_at(head, 4) as usize);
        let (offset, length) = (u64_at(head, 8), u64_at(head, 16));
        self.judge(kind, payload, offset, length)?;
        let Some(payload) = input.get(RECORD_BYTES..RECORD_BYTES + payload) else {
            return Ok(None);
        };
        if u64_at(head, 24) != checksum(self.key, self.position, &head[..24], payload) {
            return Err("the stream is damaged: a record's checksum does not fit");
        }
        let item = match kind {
            KIND_DATA => {
                self.totals.data_bytes += length;
                Item::Data { offset, content: payload.to_vec() }
            }
            KIND_ZERO => {
                self.totals.zero_bytes += length;
                Item::Zero { offset, length }
            }
            _ => {
                let Totals { records, data_bytes, zero_bytes } = self.totals;
                let found = [records, data_bytes, zero_bytes, self.whole.finish()];
                if [0, 8, 16, 24].map(|at| u64_at(payload, at)) != found {
                    return Err("the stream is damaged: it is not what its end says it was");
                }
                self.ended = true;
                Item::End(self.totals)
            }
        };
        let taken = RECORD_BYTES + payload.len();
        self.whole.update(&input[..taken]);
        self.totals.records += 1;
        self.reached = offset + length;
        self.advance(taken);
        Ok(Some(item))
    }

    /// Whether the numbers of a record make sense, before its payload is waited for.
    fn judge(
        &self,
        kind: u32,
        payload: usize,
        offset: u64,
        length: u64,
    ) -> Result<(), &'static str> {
        let to_bytes = self.header.as_ref().map_or(0, |header| header.to_bytes);
        let fits = match kind {
            KIND_DATA => length == payload as u64 && (1..=DIFF_RECORD_BYTES_MAX).contains(&payload),
            KIND_ZERO => length > 0 && payload == 0,
            KIND_END => length == 0 && payload == TOTALS_BYTES && offset == to_bytes,
            _ => return Err("the stream is damaged: a record of an unknown kind"),
        };
        let block = BLOCK_SIZE as u64;
        let is_whole = offset.is_multiple_of(block) && length.is_multiple_of(block);
        let end = offset.checked_add(length).filter(|end| *end <= to_bytes);
        if !fits || !is_whole || offset < self.reached || end.is_none() {
            return Err("the stream is damaged: a record of an impossible place or length");
        }
        Ok(())
    }

    fn advance(&mut self, bytes: usize) {
        self.used += bytes;
        self.position += bytes as u64;
    }
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(bytes[at..at + 2].try_into().expect("two bytes"))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}
