//! `cargo xtask bench table`: how long `sheep` starts, and how much memory it needs, on a disk that
//! describes a lot of data. The disk is written by the store's own code, block for block, on a
//! medium that keeps everything but the data: superblocks, log, checkpoints and map pages are real.

use super::{Common, machine, server::Sheep};
use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use proto::{
    BLOCK_SIZE, Buffer, Change, ConfigurationNumber, DiskDone, DiskError, DiskOp, DiskRequest,
    Duration, Generation, LayerId, LineageId, MemberReply, MemberRequest, MemberToken, OBJECT_SIZE,
    ObjectKey, Payload, Stamp, Time, Under, Write, limits,
};
use serde_json::json;
use std::{fs::File, io, ops::Range, os::unix::fs::FileExt, path::Path, time::Instant};
use store::{Effect, Event, MediumKind, Options, ScrubRate, Store};

/// Writes in flight at once: as many as a busy client has.
const WRITES_AT_ONCE: usize = 64;
/// How often the start is timed.
const STARTS: usize = 3;
/// How many snapshots and clones are timed.
const LAYERS_TIMED: usize = 25;
/// Only finds what never ends: a store that waits for a deadline gets there within these rounds.
const IDLE_ROUNDS_MAX: usize = 1000;

/// Options of `bench table`.
#[derive(Args, Clone)]
pub struct Described {
    /// How much data the disk describes, as fio writes sizes. It takes 1/200 of that in space
    #[arg(long, default_value = "1t")]
    size: String,
    #[command(flatten)]
    common: Common,
}

pub fn run(options: &Described) -> Result<()> {
    let root = crate::tidy::root();
    let programs = options.common.programs(&root)?;
    let bytes = super::fio::parse_size(&options.size)?;
    let objects = u32::try_from(bytes / OBJECT_SIZE as u64)?;
    let whole = bytes.is_multiple_of(OBJECT_SIZE as u64);
    ensure!(objects > 1 && whole, "the size must be some objects of {OBJECT_SIZE} bytes");
    let scratch = options.common.scratch(&root)?;
    let data = scratch.path.join("table");
    // Found by the program itself, attached once so that the disk knows the volume.
    let mut sheep = Sheep::start(&programs, &data, &[])?;
    sheep.create("bench", bytes)?;
    sheep.probe("bench")?;
    sheep.kill()?;
    eprintln!("describing {} ...", options.size);
    let started = Instant::now();
    describe(&data.join("disk"), objects)?;
    eprintln!("took {:.0} s", started.elapsed().as_secs_f64());
    let mut lines = vec![
        format!("`cargo xtask bench table --size {}`", options.size),
        String::new(),
        format!(
            "{objects} objects of 4 MiB, all blocks but those of the first written, then killed."
        ),
        String::new(),
        "| start | s until the first read | MiB resident | MiB resident at most |".to_string(),
        "| --- | --: | --: | --: |".to_string(),
    ];
    for number in 1..=STARTS {
        let started = Instant::now();
        // What a scrub would find is that there is no data.
        let mut sheep = Sheep::start(&programs, &data, &["--scrub-rate", "0"])?;
        sheep.probe("bench")?;
        let seconds = started.elapsed().as_secs_f64();
        let stored = sheep.stored_bytes()?;
        ensure!(stored == bytes - OBJECT_SIZE as u64, "the disk says that it has {stored} bytes");
        let (now, peak) = machine::resident_and_peak_bytes(sheep.process())?;
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let what = if number == 1 { "with the log as it was" } else { "again, after kill -9" };
        lines.push(format!("| {what} | {seconds:.2} | {:.0} | {:.0} |", mib(now), mib(peak)));
        sheep.kill()?;
    }
    lines.push(String::new());
    lines.push(time_layers(&programs, &data)?);
    lines.push(String::new());
    let text = lines.join("\n");
    options.common.publish("bench table", &text)
}

/// How long a snapshot of the volume takes, and a clone of that, from the question over the admin
/// socket to the answer; in a sentence with medians and the longest.
fn time_layers(programs: &Path, data: &Path) -> Result<String> {
    let sheep = Sheep::start(programs, data, &["--scrub-rate", "0"])?;
    sheep.probe("bench")?;
    let (mut snapshots, mut clones) = (Vec::new(), Vec::new());
    for number in 0..LAYERS_TIMED {
        let (tag, new_name) = (format!("t{number}"), format!("clone{number}"));
        let snapshot = json!({"request": "snapshot_create", "name": "bench", "tag": tag});
        snapshots.push(sheep.ask(&snapshot)?.1);
        let clone = json!({
            "request": "volume_clone", "name": "bench", "tag": tag, "new_name": new_name
        });
        clones.push(sheep.ask(&clone)?.1);
    }
    let figures = |times: &mut Vec<std::time::Duration>| {
        times.sort();
        let ms = |time: std::time::Duration| time.as_secs_f64() * 1000.0;
        format!(
            "{:.2} ms, at most {:.2} ms",
            ms(times[times.len() / 2]),
            ms(times[times.len() - 1])
        )
    };
    Ok(format!(
        "Of that volume, the median of {LAYERS_TIMED}: a snapshot {}; a clone of it {}.",
        figures(&mut snapshots),
        figures(&mut clones)
    ))
}

/// Writes all blocks of all objects but the first of the only volume, through the store.
fn describe(disk: &Path, objects: u32) -> Result<()> {
    let mut writer = Writer::open(disk)?;
    let blocks = limits::MEMBER_REQUEST_BLOCKS_MAX;
    let object_blocks = (OBJECT_SIZE / BLOCK_SIZE) as u32;
    let mut sequence = 0;
    for index in 1..objects {
        let mut previous = Stamp::default();
        for first in (0..object_blocks).step_by(blocks as usize) {
            sequence += 1;
            let stamp = Stamp { generation: Generation(1), sequence };
            let payload = writer.payload.clone();
            let change = Change::Data { first, payload, detect_zeroes: false };
            let key = ObjectKey { layer: writer.layer, index };
            let under = Under { copies: 1, bits: 12, number: ConfigurationNumber(1) };
            let lineage = writer.lineage;
            let settled = stamp;
            let write = Write { lineage, key, under, previous, stamp, settled, change };
            writer.ask(MemberRequest::Write(write))?;
            previous = stamp;
        }
        if index % (1 << 15) == 0 {
            eprintln!("{} %", u64::from(index) * 100 / u64::from(objects));
        }
    }
    // A flush covers what was answered before it.
    writer.settle(0)?;
    writer.ask(MemberRequest::Flush {
        lineage: writer.lineage,
        generation: Generation(1),
        settled: Stamp::default(),
    })?;
    writer.settle(0)?;
    // An idle store notes on the medium what the flush made durable.
    writer.now = writer.now + Duration::from_secs(1);
    writer.settle(0)?;
    writer.file.sync_all()?;
    Ok(())
}

/// A store on a file that keeps everything but data.
struct Writer {
    store: Store,
    file: File,
    file_bytes: u64,
    now: Time,
    lineage: LineageId,
    layer: LayerId,
    /// The data of every write, known by its address in memory.
    payload: Payload,
    operations: Vec<DiskOp>,
    asked: u64,
    in_flight: usize,
    opened: bool,
}

impl Writer {
    fn open(disk: &Path) -> Result<Writer> {
        let file = File::options().read(true).write(true).open(disk)?;
        let file_bytes = file.metadata()?.len();
        let mut options = Options::new(MediumKind::File, file_bytes);
        options.scrub = ScrubRate(0);
        let now = Time(1_000_000_000);
        let mut buffer = Buffer::zeroed(limits::MEMBER_REQUEST_BLOCKS_MAX as usize * BLOCK_SIZE);
        buffer.as_mut_slice().fill(0x5e);
        let mut effects = Vec::new();
        let mut writer = Writer {
            store: Store::open(now, options, &mut effects),
            file,
            file_bytes,
            now,
            lineage: LineageId::default(),
            layer: LayerId::default(),
            payload: buffer.freeze(),
            operations: Vec::new(),
            asked: 0,
            in_flight: 0,
            opened: false,
        };
        writer.take(effects)?;
        while !writer.opened {
            ensure!(writer.perform()?, "the disk does not open");
        }
        let layers = writer.store.layers();
        let known = layers.first().context("the disk does not know the volume")?;
        (writer.lineage, writer.layer) = *known;
        Ok(writer)
    }

    /// Sends a request, after others are answered if there are many.
    fn ask(&mut self, request: MemberRequest) -> Result<()> {
        self.asked += 1;
        self.in_flight += 1;
        let token = MemberToken(self.asked);
        self.tell(Event::Member { token, request })?;
        if self.in_flight == WRITES_AT_ONCE { self.settle(WRITES_AT_ONCE / 2) } else { Ok(()) }
    }

    /// Runs until at most so many requests wait; with none, until the medium is idle too.
    fn settle(&mut self, left: usize) -> Result<()> {
        for _ in 0..IDLE_ROUNDS_MAX {
            self.now = self.now + Duration::from_millis(1);
            let mut effects = Vec::new();
            self.store.poll(self.now, &mut effects);
            self.take(effects)?;
            while self.perform()? {}
            if self.in_flight <= left && (left > 0 || self.operations.is_empty()) {
                return Ok(());
            }
        }
        bail!("the store waits for ever: {:?}", self.store.status().waiting)
    }

    fn tell(&mut self, event: Event) -> Result<()> {
        let mut effects = Vec::new();
        self.store.handle(self.now, event, &mut effects);
        self.take(effects)
    }

    fn take(&mut self, effects: Vec<Effect>) -> Result<()> {
        for effect in effects {
            match effect {
                Effect::Disk(operation) => self.operations.push(operation),
                Effect::Member { result, .. } => {
                    let reply = result.map_err(|error| anyhow::anyhow!("refused: {error}"))?;
                    let fits =
                        matches!(reply, MemberReply::Written { .. } | MemberReply::Flushed { .. });
                    ensure!(fits, "an unexpected answer: {reply:?}");
                    self.in_flight -= 1;
                }
                Effect::Opened(result) => {
                    result.map_err(|error| anyhow::anyhow!("the disk does not open: {error}"))?;
                    self.opened = true;
                }
                Effect::Closed => bail!("the store closed by itself"),
                Effect::AgreedNoted => {}
                Effect::Notice(notice) => eprintln!("{notice:?}"),
                Effect::MendEnded { .. } => {}
            }
        }
        Ok(())
    }

    /// Performs what the store asked for; returns whether there was anything.
    fn perform(&mut self) -> Result<bool> {
        let operations = std::mem::take(&mut self.operations);
        let any = !operations.is_empty();
        for DiskOp { token, request } in operations {
            let result = self.perform_one(request);
            let result = result.map_err(|e| DiskError::Io(e.raw_os_error().unwrap_or(0)));
            self.tell(Event::Disk(DiskDone { token, result }))?;
        }
        Ok(any)
    }

    fn perform_one(&mut self, request: DiskRequest) -> io::Result<Option<Buffer>> {
        match request {
            DiskRequest::Read { offset, mut buffer } => {
                self.file.read_exact_at(buffer.as_mut_slice(), offset)?;
                return Ok(Some(buffer));
            }
            DiskRequest::Write { mut offset, payloads } => {
                let data = address_range(&self.payload);
                for payload in payloads {
                    if !data.contains(&address_range(&payload).start) {
                        self.file.write_all_at(payload.as_slice(), offset)?;
                    }
                    offset += payload.len() as u64;
                }
            }
            DiskRequest::Allocate { offset, length, .. } => {
                self.file_bytes = self.file_bytes.max(offset + length);
                self.file.set_len(self.file_bytes)?;
            }
            // The file is synced once, at the end.
            DiskRequest::Flush | DiskRequest::Discard { .. } => {}
        }
        Ok(None)
    }
}

/// Where the bytes are in memory.
fn address_range(payload: &Payload) -> Range<usize> {
    let start = payload.as_slice().as_ptr().addr();
    start..start + payload.len()
}
