//! The volume that a stream of changes is received into: what state it is found in, how it is
//! written, and how it becomes what it was or what it is to be.

use super::{
    ImportDiff, changed,
    marker::{Marker, Record},
    sample,
    stream::Header,
};
use crate::dog::{
    Context, Failure, content,
    failure::FailureKind,
    interrupt::Interrupt,
    name::SnapshotName,
    transfer::{self, Span},
};
use crate::nbd_client::{Command, NbdClient};
use crate::size::Size;
use engine::admin::{AdminReply, AdminRequest, SnapshotReport, VolumeReport};
use proto::BLOCK_SIZE;

/// After how much content the progress is put on stable media.
const CHECKPOINT_BYTES: u64 = 16 << 20;

/// A target while it is written. Its marker exists.
pub struct Target<'a> {
    context: &'a Context,
    interrupt: &'a Interrupt,
    name: String,
    header: Header,
    client: NbdClient,
    marker: Marker,
    /// All that the stream tells of before this place had arrived when this began.
    pub resumed_at: u64,
    /// Up to where the stream has told.
    reached: u64,
    /// Bytes that came since the progress was noted.
    unnoted: u64,
}

/// What is known of an import that was begun and not ended.
struct Begun {
    record: Record,
    /// Of the target.
    client: NbdClient,
}

impl<'a> Target<'a> {
    /// Finds out whether the stream fits what is there, and begins.
    pub fn begin(
        context: &'a Context,
        options: &ImportDiff,
        header: Header,
        interrupt: &'a Interrupt,
    ) -> Result<Target<'a>, Failure> {
        let name = options.name.0.clone();
        let mut marker = Marker::find(context, &name, interrupt)?;
        let finding = Finding { context, interrupt, name: &name, header: &header };
        let begun = finding.begun(marker.as_mut())?;
        let is_begun = begun.is_some();
        if let Some(Begun { record, client }) = begun {
            let resumed_at = match options.resume {
                true => finding.resume_at(&record),
                false => Err(finding.tell(&record)),
            };
            if let Ok(Some(resumed_at)) = resumed_at {
                let marker = marker.expect("it says how far it came");
                return Ok(Target {
                    context,
                    interrupt,
                    name,
                    header,
                    client,
                    marker,
                    resumed_at,
                    reached: resumed_at,
                    unnoted: 0,
                });
            }
            client.disconnect()?;
            resumed_at?;
        }
        if header.start > 0 {
            return Err(Failure::conflict(format!(
                "the stream begins at {}, and nothing of it has arrived in volume {name} before; \
                 send all of it, without --start",
                header.start
            )));
        }
        if is_begun {
            go_back(context, &name, begun_header(marker.as_ref()), interrupt)?;
        }
        Target::begin_anew(context, name, header, marker, interrupt)
    }

    fn begin_anew(
        context: &'a Context,
        name: String,
        header: Header,
        marker: Option<Marker>,
        interrupt: &'a Interrupt,
    ) -> Result<Target<'a>, Failure> {
        let finding = Finding { context, interrupt, name: &name, header: &header };
        let client = match &header.from {
            Some(_) => Some(finding.attach_exact()?),
            None => {
                finding.check_absent()?;
                None
            }
        };
        let mut marker = match marker {
            Some(marker) => marker,
            None => Marker::create(context, &name, interrupt)?,
        };
        marker.put(Record { header: header.clone(), progress: 0, generation: 0 })?;
        let client = match client {
            Some(client) => client,
            None => {
                let request =
                    AdminRequest::VolumeCreate { name: name.clone(), bytes: header.to_bytes };
                let made = context.ask_for_volume(&request);
                match made.and_then(|_| context.attach(&name, interrupt)) {
                    Ok(client) => client,
                    Err(failure) => {
                        // Where even that fails the next import finds that nothing was begun.
                        let _ = marker.remove(context, interrupt);
                        return Err(failure);
                    }
                }
            }
        };
        let generation = finding.generation()?;
        marker.put(Record { header: header.clone(), progress: 0, generation })?;
        let (resumed_at, reached, unnoted) = (0, 0, 0);
        let target = Target {
            context,
            interrupt,
            name,
            header,
            client,
            marker,
            resumed_at,
            reached,
            unnoted,
        };
        let grown = match target.header.to_bytes > target.client.export().bytes {
            true => target.resize(target.header.to_bytes),
            false => Ok(()),
        };
        match grown {
            Ok(()) => Ok(target),
            Err(failure) => Err(target.give_up(failure, false)),
        }
    }

    /// This is its content here.
    pub fn write(&mut self, offset: u64, content: &[u8]) -> Result<(), Failure> {
        let end = offset + content.len() as u64;
        if end <= self.resumed_at {
            return Ok(());
        }
        for (at, length) in (Span { start: offset, end }).payloads(self.client.export().payload_max)
        {
            let from = (at - offset) as usize;
            let data = content[from..from + length as usize].to_vec();
            transfer::submit(&mut self.client, Command::Write { offset: at, data, fua: false })?;
        }
        self.wrote(end, content.len() as u64)
    }

    /// It reads as zeros here.
    pub fn zero(&mut self, offset: u64, length: u64) -> Result<(), Failure> {
        let end = offset + length;
        if end <= self.resumed_at {
            return Ok(());
        }
        content::zero_span(&mut self.client, Span { start: offset, end })?;
        self.wrote(end, BLOCK_SIZE as u64)
    }

    fn wrote(&mut self, end: u64, bytes: u64) -> Result<(), Failure> {
        self.unnoted += bytes;
        self.reached = end;
        if self.unnoted >= CHECKPOINT_BYTES { self.note(end) } else { Ok(()) }
    }

    /// Waits until all that was written has arrived.
    pub fn settle(&mut self) -> Result<(), Failure> {
        transfer::settle(&mut self.client)
    }

    /// Everything before this place is put on stable media, and then that it is there.
    fn note(&mut self, progress: u64) -> Result<(), Failure> {
        transfer::settle(&mut self.client)?;
        self.client.call(Command::Flush)?;
        self.unnoted = 0;
        // A stream that was begun again tells of what is known already.
        let header = self.header.clone();
        let generation = self.marker.record.as_ref().map_or(0, |record| record.generation);
        self.marker.put(Record { header, progress: progress.max(self.resumed_at), generation })
    }

    /// All has arrived, and the stream is whole.
    pub fn finish_writing(&mut self) -> Result<(), Failure> {
        self.note(self.header.to_bytes)
    }

    /// The target becomes what the stream leads to. When that fails, nothing is missing but this.
    pub fn complete(self) -> Result<VolumeReport, Failure> {
        let remainder = kept(&self.name, &self.header, self.header.to_bytes);
        self.become_whole().map_err(|failure| with(failure, &remainder))
    }

    fn become_whole(self) -> Result<VolumeReport, Failure> {
        let Target { context, interrupt, name, header, .. } = &self;
        if context.volume(name)?.bytes != header.to_bytes {
            self.resize(header.to_bytes)?;
        }
        if let Some(tag) = header.to.clone()
            && !snapshots(context, name)?.iter().any(|snapshot| snapshot.tag == tag)
        {
            let request = AdminRequest::SnapshotCreate { name: name.clone(), tag };
            context.ask(&request)?;
        }
        let (context, interrupt, name) = (*context, *interrupt, name.clone());
        self.client.disconnect()?;
        self.marker.remove(context, interrupt)?;
        context.volume(&name)
    }

    fn resize(&self, bytes: u64) -> Result<(), Failure> {
        let name = self.name.clone();
        let request = AdminRequest::VolumeResize { name, bytes, allow_shrink: true };
        self.context.ask_for_volume(&request).map(|_| ())
    }

    /// Something is wrong: keeps what has arrived, or undoes it. Gives back what to report.
    pub fn give_up(mut self, failure: Failure, keep: bool) -> Failure {
        if keep {
            // Where that fails, what was noted before holds.
            let _ = self.note(self.reached);
        }
        let Target { context, interrupt, name, header, client, marker, .. } = self;
        let progress = marker.record.as_ref().map_or(0, |record| record.progress);
        if keep {
            return with(failure, &kept(&name, &header, progress));
        }
        interrupt.clean_up();
        let undone = client.disconnect().map_err(Failure::from);
        let undone = undone.and_then(|()| go_back(context, &name, &header, interrupt));
        match undone.and_then(|()| marker.remove(context, interrupt)) {
            Ok(()) => with(failure, &undone_sentence(&name, &header)),
            Err(refused) => with(
                failure,
                &format!(
                    "that could not be undone ({refused}); {}",
                    kept(&name, &header, progress)
                ),
            ),
        }
    }
}

fn with(failure: Failure, remainder: &str) -> Failure {
    crate::dog::with_remainder(failure, remainder)
}

fn undone_sentence(name: &str, header: &Header) -> String {
    match &header.from {
        Some(from) => format!("volume {name} is what it was at {name}@{from}"),
        None => format!("volume {name} was deleted again"),
    }
}

/// How to go on, and how to go back.
fn kept(name: &str, header: &Header, progress: u64) -> String {
    let resume = match &header.to {
        Some(_) => format!(
            "go on with --resume and all of the stream again, or what `dog volume export-diff \
             --start {progress}` makes of it"
        ),
        None => "go on with --resume and the whole of a new stream".to_string(),
    };
    let back = match &header.from {
        Some(from) => format!("`dog volume rollback {name}@{from} --yes` goes back"),
        None => format!("`dog volume delete {name} --now --yes` undoes it"),
    };
    let done = (progress.min(header.to_bytes), header.to_bytes);
    format!(
        "volume {name} has received {} of a stream that leads to {} ({} of its {}): {resume}; \
         {back}",
        if progress == 0 { "the beginning" } else { "a part" },
        state_of(header),
        Size(done.0),
        Size(done.1),
    )
}

/// What a stream leads to, as its sender calls it.
fn state_of(header: &Header) -> String {
    match &header.to {
        Some(to) => format!("{}@{to}", header.volume),
        None => format!("volume {}", header.volume),
    }
}

fn begun_header(marker: Option<&Marker>) -> &Header {
    let record = marker.and_then(|marker| marker.record.as_ref());
    &record.expect("an import that was begun has a record").header
}

fn snapshots(context: &Context, name: &str) -> Result<Vec<SnapshotReport>, Failure> {
    let request = AdminRequest::SnapshotList { name: name.to_string(), reclaimable: false };
    match context.ask(&request)? {
        AdminReply::Snapshots(snapshots) => Ok(snapshots),
        _ => Err(Failure::mismatch()),
    }
}

/// The target becomes what it was before a stream was begun.
fn go_back(
    context: &Context,
    name: &str,
    header: &Header,
    interrupt: &Interrupt,
) -> Result<(), Failure> {
    let Some(from) = &header.from else {
        return match context.delete_when_free(name, interrupt) {
            Err(failure) if failure.kind == FailureKind::NotFound => Ok(()),
            result => result,
        };
    };
    let base = SnapshotName { volume: name.to_string(), tag: from.clone() };
    context.rollback_when_free(&base).map(|_| ())
}

/// What is looked at before anything is done.
struct Finding<'a> {
    context: &'a Context,
    interrupt: &'a Interrupt,
    name: &'a str,
    header: &'a Header,
}

impl Finding<'_> {
    fn volume(&self) -> Result<Option<VolumeReport>, Failure> {
        match self.context.volume(self.name) {
            Ok(volume) => Ok(Some(volume)),
            Err(failure) if failure.kind == FailureKind::NotFound => Ok(None),
            Err(failure) => Err(failure),
        }
    }

    /// The number of our attachment of the target; we have it.
    fn generation(&self) -> Result<u64, Failure> {
        let attachment = self.context.volume(self.name)?.attachment;
        Ok(attachment.map_or(0, |attachment| attachment.generation.0))
    }

    /// Whether nobody had the target since the marker was written: no client, and not the node
    /// itself for a snapshot or a rollback. We have it now; then the marker says so.
    fn is_untouched(&self, marker: &mut Marker) -> Result<bool, Failure> {
        let generation = self.generation()?;
        let record = marker.record.clone().expect("an import was begun");
        // The same one, if the daemon had not noticed yet that our last connection was gone.
        let is_next = generation == record.generation + 1 && record.generation > 0;
        if is_next {
            marker.put(Record { generation, ..record.clone() })?;
        }
        Ok(is_next || (generation == record.generation && generation > 0))
    }

    /// The import that was begun and is neither ended nor undone, if there is one and what it has
    /// left is sure to be there.
    fn begun(&self, marker: Option<&mut Marker>) -> Result<Option<Begun>, Failure> {
        let Some(marker) = marker else { return Ok(None) };
        let Some(record) = marker.record.clone() else { return Ok(None) };
        let Some(volume) = self.volume()? else {
            // A new volume that was deleted, or not made yet.
            return Ok(None);
        };
        let snapshots = snapshots(self.context, self.name)?;
        let newest = snapshots.last();
        let is_done = newest.is_some_and(|newest| Some(&newest.tag) == record.header.to.as_ref());
        if is_done {
            return Ok(None);
        }
        let is_at_start = newest.is_some_and(|newest| {
            Some(&newest.tag) == record.header.from.as_ref() && volume.bytes == newest.bytes
        });
        let (written, client) = match &record.header.from {
            Some(from) if is_at_start => self.written_since(from)?,
            _ => (1, self.context.attach(self.name, self.interrupt)?),
        };
        let is_untouched = self.is_untouched(marker)?;
        if written > 0 && is_untouched {
            return Ok(Some(Begun { record, client }));
        }
        client.disconnect()?;
        Ok(None)
    }

    /// What is to be said to somebody who did not expect it.
    fn tell(&self, begun: &Record) -> Failure {
        let Record { header, progress, .. } = begun;
        Failure::conflict(kept(self.name, header, *progress))
    }

    /// Where an import goes on; nothing if it must begin anew.
    fn resume_at(&self, begun: &Record) -> Result<Option<u64>, Failure> {
        let Record { header, progress, .. } = begun;
        let same = self.header.to.is_some() && self.header.is_same_stream(header);
        if self.header.from != header.from {
            // It cannot follow what there is, and what has arrived is not to be lost for it.
            return Err(self.tell(begun));
        }
        if !same {
            return Ok(None);
        }
        if self.header.start > *progress {
            return Err(Failure::conflict(format!(
                "the stream begins at {}, and what has arrived in volume {} ends at {progress}; \
                 say `dog volume export-diff --start {progress}`",
                self.header.start, self.name
            )));
        }
        Ok(Some(*progress))
    }

    /// A full stream makes its volume.
    fn check_absent(&self) -> Result<(), Failure> {
        match self.volume()? {
            None => Ok(()),
            Some(_) => Err(Failure::conflict(format!(
                "volume {name} exists, and the stream is one of everything; choose a name that is \
                 free, or delete {name} first",
                name = self.name
            ))),
        }
    }

    /// Attaches the target, which is exactly what the stream begins with.
    fn attach_exact(&self) -> Result<NbdClient, Failure> {
        let Finding { name, header, .. } = self;
        let from = header.from.as_deref().expect("it is no full stream");
        let Some(volume) = self.volume()? else {
            return Err(Failure::not_found(format!(
                "there is no volume {name} to bring from {from} to what follows; begin with a \
                 stream of everything, `dog volume export-diff --full`"
            )));
        };
        let snapshots = snapshots(self.context, name)?;
        let newest = snapshots.last().map(|newest| newest.tag.as_str());
        if let Some(to) = header.to.as_ref().filter(|to| snapshots.iter().any(|s| s.tag == **to)) {
            return Err(Failure::conflict(format!(
                "volume {name} has snapshot {name}@{to} already, which this stream leads to; if \
                 it came with the same stream, go on with the next one, and if it is something \
                 else, delete it"
            )));
        }
        if newest != Some(from) {
            return Err(Failure::conflict(format!(
                "the stream begins with {}@{from}, and the newest snapshot of volume {name} is {}; \
                 bring the streams in their order",
                header.volume,
                newest.map_or("none".to_string(), |newest| format!("{name}@{newest}"))
            )));
        }
        let bytes = snapshots.last().map_or(0, |newest| newest.bytes);
        let foreign = |what: String| {
            Failure::conflict(format!(
                "{name}@{from} is not the state that the stream begins with: {what}; it is of \
                 another volume than {}",
                header.volume
            ))
        };
        if bytes != header.from_bytes {
            return Err(foreign(format!("it has {bytes} bytes, and not {}", header.from_bytes)));
        }
        let full_name = SnapshotName { volume: name.to_string(), tag: from.to_string() };
        let mut held = self.context.attach(&full_name.to_string(), self.interrupt)?;
        let found = sample(&mut held)?;
        held.disconnect()?;
        if found != header.sample {
            return Err(foreign("its content is something else".to_string()));
        }
        let (written, client) = self.written_since(from)?;
        if written > 0 || volume.bytes != bytes {
            client.disconnect()?;
            let what = match written {
                0 => format!("has {} now instead of {}", Size(volume.bytes), Size(bytes)),
                _ => format!("was written since ({})", Size(written)),
            };
            return Err(Failure::conflict(format!(
                "volume {name} is not what it was at {name}@{from}: it {what}; go back with `dog \
                 volume rollback {name}@{from} --yes`, then import again"
            )));
        }
        Ok(client)
    }

    /// How many bytes may differ from one of the target's snapshots.
    fn written_since(&self, tag: &str) -> Result<(u64, NbdClient), Failure> {
        let mut client = self.context.attach_to_compare(self.name, tag, self.interrupt)?;
        if client.export().context.is_none() {
            return Err(Failure::conflict(format!(
                "volume {name} does not build on {name}@{tag}; go back with `dog volume rollback \
                 {name}@{tag} --yes`, then import again",
                name = self.name
            )));
        }
        let span = Span { start: 0, end: client.export().bytes };
        let changes = changed(&mut client, span, self.interrupt)?;
        let written = changes.iter().filter(|run| run.dirty).map(|run| run.length).sum();
        Ok((written, client))
    }
}
