//! One volume as the cluster agrees on it, and the rules for its name and size.

use crate::Refusal;
use crate::durability::Durability;
use crate::layer::Snapshot;
use crate::schedule::Schedule;
use proto::limits::{VOLUME_BYTES_MAX, VOLUME_BYTES_MIN, VOLUME_NAME_BYTES_MAX};
use proto::{BLOCK_SIZE, Epoch, Generation, LayerId, LineageId, NodeId, VolumeId};
use serde::{Deserialize, Serialize};

/// A volume's size is a multiple of this many bytes: one block, so that no block lies half outside.
pub const SIZE_UNIT: u64 = BLOCK_SIZE as u64;

/// What a guest sees as a disk.
///
/// Invariant: either one attachment that writes, or any number of read-only ones.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Volume {
    /// Never reused within the cluster.
    pub id: VolumeId,
    /// Unique among the volumes that are not in the trash; obeys [`check_name`].
    pub name: String,
    /// The size that people asked for, in bytes; obeys [`check_size`]. What a session may serve at
    /// this moment is [`Volume::served_bytes`].
    pub bytes: u64,
    /// Decides where its objects lie.
    pub lineage: LineageId,
    /// The layer that writes go to.
    pub head: LayerId,
    /// Its snapshots, oldest first.
    pub snapshots: Vec<Snapshot>,
    /// The last generation that was issued; 0 if it was never attached.
    pub generation: Generation,
    /// Who has it open, in order of generation.
    pub attachments: Vec<Attachment>,
    /// Content beyond a former end that is still to be discarded.
    pub pending_discard: Option<PendingDiscard>,
    /// When it was created, in seconds since 1970; for people.
    pub created_unix_s: u64,
    /// Whether its writer's session is to copy what shows through its head, until nothing does.
    pub flattening: bool,
    /// Since when it is in the trash, if it is.
    pub trash: Option<Trash>,
    /// Snapshots of it that are taken again and again, by name.
    pub schedules: Vec<Schedule>,
    /// What an acknowledgement promises. Written apart, where it is not the default (`snapshot`).
    #[serde(skip)]
    pub durability: Durability,
    /// See [`Volume::stable_since`]; written with it.
    #[serde(skip)]
    pub(crate) awaits_stable: Option<Epoch>,
}

/// A volume's stay in the trash: it keeps its content and snapshots, and nobody can attach it. It
/// has a name, that it had, which others may have too.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Trash {
    /// When it was deleted, in seconds since 1970.
    pub since_unix_s: u64,
    /// From when on it may be deleted for good, in seconds since 1970.
    pub expires_unix_s: u64,
}

impl Volume {
    /// The attachment that may write, if there is one.
    pub fn writer(&self) -> Option<&Attachment> {
        self.attachments.iter().find(|attachment| !attachment.read_only)
    }

    /// The attachment with this generation, of the volume or of one of its snapshots, if it is
    /// still held.
    pub fn attachment(&self, generation: Generation) -> Option<&Attachment> {
        self.all_attachments().find(|attachment| attachment.generation == generation)
    }

    /// Its attachments and those of its snapshots.
    pub(crate) fn all_attachments(&self) -> impl Iterator<Item = &Attachment> {
        let readers = self.snapshots.iter().flat_map(|snapshot| &snapshot.readers);
        self.attachments.iter().chain(readers)
    }

    /// Ends some of its attachments and those of its snapshots; gives back how many.
    pub(crate) fn release(&mut self, ends: impl Fn(&Attachment) -> bool) -> usize {
        let readers = self.snapshots.iter_mut().map(|snapshot| &mut snapshot.readers);
        let mut released = 0;
        for held in std::iter::once(&mut self.attachments).chain(readers) {
            let before = held.len();
            held.retain(|attachment| !ends(attachment));
            released += before - held.len();
        }
        // The next session goes by it from the start.
        self.awaits_stable = self.awaits_stable.filter(|_| self.writer().is_some());
        released
    }

    /// The schedule of this name.
    pub fn schedule(&self, name: &str) -> Option<&Schedule> {
        self.schedules.iter().find(|schedule| schedule.name == name)
    }

    /// The snapshot with this tag.
    pub fn snapshot(&self, tag: &str) -> Option<&Snapshot> {
        self.snapshots.iter().find(|snapshot| snapshot.tag == tag)
    }

    /// The layers it names: its head, and that of each of its snapshots.
    pub fn layers(&self) -> impl Iterator<Item = LayerId> {
        let sealed = self.snapshots.iter().map(|snapshot| snapshot.layer);
        std::iter::once(self.head).chain(sealed)
    }

    /// How many bytes from the start a session may serve now. After a shrink that is no more than
    /// the place where the pending discard begins, even if the volume has grown again since: what
    /// is written there before the discard has been reported done (`ShrinkDone`) would be
    /// discarded by the next session.
    pub fn served_bytes(&self) -> u64 {
        self.pending_discard.map_or(self.bytes, |discard| self.bytes.min(discard.above))
    }
}

/// What a shrink left to do: discard all content from `above` up to `end`, so that it can never be
/// seen again. The session of a writer does it, before it serves anything beyond `above`, and
/// reports it with `Command::ShrinkDone`; until then it stays in the map, through any crash.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct PendingDiscard {
    /// Where it begins: byte offset in the volume, a multiple of [`SIZE_UNIT`].
    pub above: u64,
    /// One past the last byte that may have content; more than `above`.
    pub end: u64,
}

/// The right of one client on one node to use a volume.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Attachment {
    /// Where its session runs.
    pub node: NodeId,
    /// Its number; only grows from one attachment of a volume to the next.
    pub generation: Generation,
    /// Who holds it, for people: "process 4711 (qemu-system-x86)".
    pub holder: String,
    /// Whether it may only read.
    pub read_only: bool,
    /// When it began, in seconds since 1970; for people.
    pub since_unix_s: u64,
}

/// Whether a volume may have this name: 1 to 255 bytes, only printable characters, no white space,
/// no '/' and no '@' (they separate parts of a path and a snapshot's name), no '-' at the start (it
/// would read as an option).
pub fn check_name(name: &str) -> Result<(), Refusal> {
    let bad = |problem| Refusal::BadName { name: printable(name, VOLUME_NAME_BYTES_MAX), problem };
    problem_of(name).map_or(Ok(()), |problem| Err(bad(problem)))
}

/// Whether a snapshot may have this tag: the rules are those of [`check_name`].
pub fn check_tag(tag: &str) -> Result<(), Refusal> {
    let bad = |problem| Refusal::BadTag { tag: printable(tag, VOLUME_NAME_BYTES_MAX), problem };
    problem_of(tag).map_or(Ok(()), |problem| Err(bad(problem)))
}

/// What is wrong with the name of a volume, a snapshot, a group or a schedule.
pub(crate) fn problem_of(name: &str) -> Option<&'static str> {
    Some(if name.is_empty() {
        "it is empty"
    } else if name.len() > VOLUME_NAME_BYTES_MAX {
        "it is longer than 255 bytes"
    } else if name.starts_with('-') {
        "it starts with '-'"
    } else if name.contains(['/', '@']) {
        "it contains '/' or '@'"
    } else if name.contains(char::is_whitespace) {
        "it contains white space"
    } else if name.contains(is_unprintable) {
        "it contains characters that cannot be printed"
    } else {
        return None;
    })
}

const _: () = assert!(VOLUME_NAME_BYTES_MAX == 255, "the sentence above says so");

/// Whether a volume may have this size in bytes: 4 KiB to 1 PiB, a multiple of [`SIZE_UNIT`].
pub fn check_size(bytes: u64) -> Result<(), Refusal> {
    if !(VOLUME_BYTES_MIN..=VOLUME_BYTES_MAX).contains(&bytes) {
        return Err(Refusal::SizeOutOfRange { bytes });
    }
    if !bytes.is_multiple_of(SIZE_UNIT) {
        return Err(Refusal::SizeNotAligned {
            bytes,
            below: bytes - bytes % SIZE_UNIT,
            above: bytes.next_multiple_of(SIZE_UNIT),
        });
    }
    Ok(())
}

/// `text` with what cannot be printed replaced, cut to at most `bytes_max` bytes.
pub(crate) fn printable(text: &str, bytes_max: usize) -> String {
    let mut result = String::new();
    for c in text.chars().map(|c| if is_unprintable(c) { '?' } else { c }) {
        if result.len() + c.len_utf8() > bytes_max {
            break;
        }
        result.push(c);
    }
    result
}

/// Characters that change how the text around them is shown, or show nothing at all: two names
/// must not look alike because of them.
fn is_unprintable(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{00ad}' | '\u{034f}' | '\u{061c}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}'
            | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}'
            | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}' | '\u{e000}'..='\u{f8ff}'
            | '\u{e0000}'..='\u{10ffff}')
}
