//! What administrators see: the machines' own states put into words and sums.

use crate::{
    NoticeLevel,
    admin::{
        AgreementReport, AttachmentReport, DiskCounters, DiskReport, FlattenReport, NodeReport,
        OriginReport, ScheduleReport, ScrubReport, SourcesReport, StatusReport, VolumeReport,
    },
    attach::Held,
    disks::{Disk, Disks},
    names, shortening,
    unfinished::{self, Before},
};
use cluster::Map;
use proto::limits::SCHEDULE_WARNINGS_MAX;
use proto::{BLOCK_SIZE, DiskId, LayerId, OBJECT_SIZE, Time, calendar, counted, size_in_words};
use std::collections::BTreeMap;
use std::time::Duration;
use store::{Damage, DamagedPart, Notice, State, Usage};
use volume::{Flattening, Session};

/// A request that waits longer than this is worth showing: far beyond any healthy disk.
const WAITING_SHOWN: Duration = Duration::from_secs(2);
/// Share of the capacity that may be free before a warning: one twentieth.
const LOW_SPACE_DIVISOR: u64 = 20;
/// Damages shown in words per disk.
const DAMAGES_SHOWN_MAX: usize = 32;

/// One disk.
pub(crate) fn disk(map: &Map, disk: &Disk) -> DiskReport {
    let mut report = DiskReport {
        disk: disk.settings.disk,
        incarnation: disk.incarnation,
        path: disk.settings.path.clone(),
        state: "opening".into(),
        reason: None,
        capacity_bytes: 0,
        limit_bytes: disk.settings.limit_bytes,
        full: false,
        data_bytes: 0,
        metadata_bytes: 0,
        quarantined_bytes: 0,
        allocated_bytes: 0,
        available_bytes: 0,
        damaged_blocks: 0,
        damage_found: 0,
        damage_mended: disk.mended,
        damage_mending: 0,
        damage_again: disk.relapsed.len() as u64,
        lost_blocks: 0,
        scrub: ScrubReport::default(),
        counters: DiskCounters::default(),
        damages: Vec::new(),
    };
    if let Some(reason) = disk.failure() {
        (report.state, report.reason) = ("refused".into(), Some(reason.to_owned()));
    }
    let Some(store) = disk.store() else { return report };
    let status = store.status();
    let space = &status.space;
    (report.state, report.reason) = match &status.state {
        State::Opening => ("opening".into(), None),
        State::Serving => ("serving".into(), None),
        State::Closing | State::Closed => ("closed".into(), None),
        State::Refused(reason) => ("refused".into(), Some(reason.clone())),
        State::Retired(reason) => ("retired".into(), Some(reason.clone())),
    };
    // Where there is a limit, what is taken beyond it is no room for new data.
    let limit_bytes = space.limit_bytes.unwrap_or(u64::MAX);
    let beyond = space.allocated_bytes.saturating_sub(limit_bytes);
    // A store that found no room knows better than what was last heard of the file system.
    let growth = match space.full {
        true => 0,
        false => growth_bytes(disk, space.allocated_bytes, space.limit_bytes),
    };
    report.full = space.full;
    report.data_bytes = space.data_bytes;
    report.metadata_bytes = space.map_bytes + space.checkpoint_bytes + status.log_bytes;
    report.quarantined_bytes = space.quarantined_bytes;
    report.allocated_bytes = space.allocated_bytes + status.log_bytes;
    report.capacity_bytes = space.allocated_bytes.saturating_add(growth).min(limit_bytes);
    report.available_bytes = (space.free_bytes + space.quarantined_bytes)
        .saturating_add(growth)
        .saturating_sub(space.reserve_bytes)
        .saturating_sub(beyond);
    report.damaged_blocks = status.damages.len() as u64 + status.damages_dropped;
    report.damage_found = disk.found;
    let own = disk.settings.disk;
    let unmissed = status.damages.iter().filter(|damage| !is_missed(map, own, damage.part)).count();
    report.damaged_blocks -= unmissed as u64;
    let has_others = |damage: &&Damage| match damage.part {
        DamagedPart::Data { lineage, key, .. } | DamagedPart::MapPage { lineage, key, .. }
            if is_missed(map, own, damage.part) =>
        {
            let members = &map.configuration_of(lineage, key.index).current;
            members.iter().any(|member| member.disk != disk.settings.disk)
        }
        _ => false,
    };
    report.damage_mending = status.damages.iter().filter(has_others).count() as u64;
    report.lost_blocks = status.lost_blocks;
    report.scrub = ScrubReport {
        running: status.scrub.running,
        passes: status.scrub.passes_done,
        progress: f64::from(status.scrub.progress_permille) / 1000.0,
        rate_bytes_per_s: status.scrub.rate.0,
    };
    report.counters = DiskCounters {
        read_operations: status.counters.reads,
        read_bytes: status.counters.read_bytes,
        write_operations: status.counters.writes,
        write_bytes: status.counters.write_bytes,
        flushes: status.counters.flushes,
        log_bytes: status.counters.log_bytes,
        metadata_bytes: status.counters.metadata_bytes,
        checkpoints: status.counters.checkpoints,
        map_page_reads: status.counters.map_page_reads,
    };
    let latest = status.damages.iter().rev().take(DAMAGES_SHOWN_MAX);
    report.damages = latest.map(|damage| damage_words(map, damage)).collect();
    report
}

/// A damage, with the volume and the place in it where it hit a volume: that is what people can
/// restore.
fn damage_words(map: &Map, damage: &Damage) -> String {
    let (key, first, bytes) = match damage.part {
        DamagedPart::Data { key, block, .. } => (key, block, BLOCK_SIZE),
        DamagedPart::MapPage { key, .. } => (key, 0, OBJECT_SIZE),
        _ => return damage.to_string(),
    };
    let from = u64::from(key.index) * OBJECT_SIZE as u64 + u64::from(first) * BLOCK_SIZE as u64;
    // What a layer keeps, those above it may show too.
    let what = match map.owner(key.layer) {
        Some((volume, None)) => format!("volume {}", names::shown_name(volume, None)),
        Some((volume, Some(snapshot))) => {
            let (name, volume) =
                (names::shown_name(volume, Some(snapshot)), names::shown_name(volume, None));
            format!("snapshot {name} and what was not overwritten since in volume {volume}")
        }
        None => match map.layer(key.layer) {
            Some(_) => format!("what others show of hidden layer {}", key.layer),
            None => return damage.to_string(),
        },
    };
    format!("{what}, {bytes} bytes from {from} on: {damage}")
}

/// Whether what is damaged counts: not what is left of a layer that is gone, or of a partition that
/// other disks have by now.
pub fn is_missed(map: &Map, disk: DiskId, part: DamagedPart) -> bool {
    let (DamagedPart::Data { lineage, key, .. } | DamagedPart::MapPage { lineage, key, .. }) = part
    else {
        return true;
    };
    let is_live = map.layer(key.layer).is_some_and(|known| known.lineage == lineage);
    let members = &map.configuration_of(lineage, key.index).current;
    is_live && members.iter().any(|member| member.disk == disk)
}

/// Nobody has what a disk has lost.
pub(crate) fn not_mended(map: &Map, path: &str, damage: &Damage) -> String {
    format!(
        "disk {path}: {}, and no other copy is good: restore it from a backup; every other block \
         is served",
        damage_words(map, damage)
    )
}

/// How much a disk can still grow: to its limit, as far as the file system has room.
pub(crate) fn growth_bytes(disk: &Disk, allocated: u64, limit: Option<u64>) -> u64 {
    let to_limit = limit.map(|limit| limit.saturating_sub(allocated));
    match disk.settings.kind {
        store::MediumKind::Device => 0,
        store::MediumKind::File => match (to_limit, disk.free_bytes()) {
            (Some(limit), Some(free)) => limit.min(free),
            (Some(only), None) | (None, Some(only)) => only,
            (None, None) => 0,
        },
    }
}

/// What is kept of a layer on all disks of this node.
pub(crate) fn usage(disks: &Disks, layer: LayerId) -> Usage {
    let mut sum = Usage::default();
    for store in disks.values().filter_map(Disk::store) {
        let usage = store.usage(layer);
        sum.objects += usage.objects;
        sum.data_blocks += usage.data_blocks;
        sum.map_blocks += usage.map_blocks;
    }
    sum
}

/// How many whole copies there are at least of what lies by each table of the map.
pub(crate) fn copies(map: &Map) -> BTreeMap<u8, u8> {
    map.tables().map(|table| (table, map.fewest_whole(table))).collect()
}

/// One volume. `named` knows what layers are called.
pub(crate) fn volume(
    now: Time,
    map: &Map,
    disks: &Disks,
    volume: &cluster::Volume,
    held: Option<&Held>,
    copies: &BTreeMap<u8, u8>,
    named: &dyn Fn(LayerId) -> Option<String>,
) -> VolumeReport {
    let bytes = |blocks: u64| blocks * BLOCK_SIZE as u64;
    let head = usage(disks, volume.head);
    let (mut kept, mut maps) = (0, head.map_blocks);
    for snapshot in &volume.snapshots {
        let usage = usage(disks, snapshot.layer);
        kept += usage.data_blocks;
        maps += usage.map_blocks;
    }
    let origin = map.origin(volume.head).map(|origin| OriginReport {
        name: named(origin.layer),
        layer: origin.layer,
        bytes: origin.bytes,
        source: map.source(origin.layer).map(|source| source.address.clone()),
        lineages: map.chain(volume.head).len() as u32,
    });
    let session = held.and_then(|held| held.session.as_ref());
    let running = session.and_then(Session::flattening);
    let total_bytes = origin.as_ref().map_or(0, |origin| origin.bytes);
    let progress = |running: Option<Flattening>| match running {
        Some(running) => FlattenReport {
            running: running.error.is_none(),
            done_bytes: running.done_bytes,
            total_bytes: running.total_bytes,
            error: running.error.map(|error| error.to_string()),
            bytes_per_s: running.bytes_per_s,
            waiting: session.and_then(Session::source_trouble).map(|trouble| {
                let seconds = now.since(trouble.since).as_secs();
                format!("waiting for {}, {seconds} s", trouble.reason)
            }),
        },
        None => FlattenReport {
            running: false,
            done_bytes: 0,
            total_bytes,
            error: None,
            bytes_per_s: 0,
            waiting: None,
        },
    };
    let is_shortened = |running: &Flattening| running.onto.is_some();
    let (shortens, flattens) = match running {
        Some(running) if is_shortened(&running) => (Some(running), None),
        running => (None, running),
    };
    let is_wanted = shortens.is_some() || shortening::target(map, disks, volume).is_some();
    let shorten = (is_wanted && !volume.flattening).then(|| Box::new(progress(shortens)));
    let flatten = volume.flattening.then(|| progress(flattens));
    // A clone shows what others keep, as well or as badly as they do.
    let below = map.chain(volume.head).into_iter().map(|origin| origin.lineage);
    let lineages = std::iter::once(volume.lineage).chain(below);
    let tables = lineages.filter_map(|lineage| map.redundancy(lineage));
    let kept_in = tables.filter_map(|known| copies.get(&known.copies)).min();
    let wanted = map.redundancy(volume.lineage);
    let attachment = volume.attachments.first().map(|attachment| AttachmentReport {
        node: attachment.node,
        generation: attachment.generation,
        holder: attachment.holder.clone(),
        connections: held.map_or(0, |held| held.connections.len() as u32),
        read_only: attachment.read_only,
        unknown: false,
    });
    VolumeReport {
        volume: volume.id,
        name: volume.name.clone(),
        bytes: volume.bytes,
        used_bytes: bytes(head.data_blocks + kept),
        head_bytes: bytes(head.data_blocks),
        snapshots_bytes: bytes(kept),
        metadata_bytes: bytes(maps),
        snapshots: volume.snapshots.len() as u32,
        sealing: map.sealing(volume).is_some(),
        origin,
        flatten,
        shorten,
        copies: kept_in.map_or(0, |copies| u32::from(*copies)),
        copies_wanted: wanted.map_or(0, |known| known.wanted),
        min_copies: wanted.map_or(0, |known| known.min_copies),
        durability: volume.durability,
        durability_awaited: volume.awaits_stable(),
        created_unix_s: volume.created_unix_s,
        attachment,
        waiting: held.and_then(|held| waiting(now, held)),
        importing: unfinished::target(&volume.name)
            .map(|(target, _)| target)
            .or_else(|| unfinished::marked(&volume.name, volume.bytes))
            .map(str::to_string),
        schedules: Vec::new(),
        unknown_nodes: Vec::new(),
    }
}

/// Why the oldest request of a volume waits, if it does so for long.
pub(crate) fn waiting(now: Time, held: &Held) -> Option<String> {
    let waiting = held.session.as_ref()?.waiting(now)?;
    let span = now.since(waiting.since);
    (span >= WAITING_SHOWN).then(|| format!("{}, {} s", waiting.reason, span.as_secs()))
}

/// The whole, with what is wrong in words. Where other nodes have disks too, whether there is room
/// for all volumes is not told by those of this one.
pub(crate) fn status(
    node: NodeReport,
    disks: Vec<DiskReport>,
    volumes: &[VolumeReport],
    (hidden_layers, hidden_bytes): (u64, u64),
    journal_failure: Option<String>,
    has_all_disks: bool,
) -> StatusReport {
    let mut warnings = Vec::new();
    warnings.extend(journal_failure);
    let capacity_bytes = disks.iter().map(|disk| disk.capacity_bytes).sum();
    let available: u64 = disks.iter().map(|disk| disk.available_bytes).sum();
    let provisioned_bytes: u64 = volumes.iter().map(|volume| volume.bytes).sum();
    let mut healthy = warnings.is_empty();
    for disk in &disks {
        if disk.state != "serving" {
            healthy = false;
            let reason = disk.reason.as_deref().unwrap_or("it is not open");
            warnings.push(format!("disk {} does not serve: {reason}", disk.path));
        }
        if disk.damage_again > 0 {
            healthy = false;
            warnings.push(format!(
                "disk {} is failing: what was written anew is damaged again; have it drained with \
                 `dog disk drain {}` and replace it",
                disk.path, disk.disk
            ));
        }
        if disk.damage_mending > 0 && disk.damage_mending == disk.damaged_blocks {
            healthy = false;
            warnings.push(format!(
                "disk {} has {}, being mended from other disks by itself; {} mended since the \
                 program started",
                disk.path,
                counted(disk.damaged_blocks, "damaged block", "damaged blocks"),
                disk.damage_mended
            ));
        } else if disk.damaged_blocks > 0 {
            healthy = false;
            let them = if disk.damaged_blocks == 1 { "it" } else { "them" };
            warnings.push(format!(
                "disk {} has {}; `dog disk list --json` names {them}: restore {them} from a backup \
                 and think of replacing the disk",
                disk.path,
                counted(disk.damaged_blocks, "damaged block", "damaged blocks")
            ));
        }
    }
    for disk in disks.iter().filter(|disk| disk.full) {
        healthy = false;
        let what = match disk.limit_bytes {
            Some(limit) if limit <= disk.allocated_bytes => "its --limit is reached",
            _ => "the file system or device under it has no more room",
        };
        warnings.push(format!(
            "disk {} is full ({what}): guests' writes of new data get \"no space\"; reading, \
             overwriting, discarding and deleting go on; delete volumes, run fstrim in guests, or \
             give the disk more room",
            disk.path
        ));
    }
    let full = disks.iter().any(|disk| disk.full);
    if !full && capacity_bytes > 0 && available < capacity_bytes / LOW_SPACE_DIVISOR {
        warnings.push(format!(
            "only {} are left for new data; discard or delete something, or give the disk more \
             room",
            size_in_words(available)
        ));
    }
    if has_all_disks && provisioned_bytes > capacity_bytes {
        warnings.push(format!(
            "the volumes may grow to {} together, but the disks hold {}: add space before they \
             are full, or writes of new data will be refused",
            size_in_words(provisioned_bytes),
            size_in_words(capacity_bytes)
        ));
    }
    for volume in volumes {
        if let Some(waiting) = &volume.waiting {
            healthy = false;
            warnings.push(format!("volume {} waits: {waiting}", volume.name));
        }
        if let Some(error) = volume.flatten.as_ref().and_then(|flatten| flatten.error.as_ref()) {
            warnings.push(format!(
                "volume {name} is not being flattened: {error}; it is tried again by itself, and \
                 `dog volume flatten --stop {name}` ends that",
                name = volume.name
            ));
        }
        if let Some(error) = volume.shorten.as_ref().and_then(|shorten| shorten.error.as_ref()) {
            warnings.push(format!(
                "the chain of clones that volume {} reads through is not being shortened: {error}; \
                 it is tried again by itself as long as there is room for it",
                volume.name
            ));
        }
        warnings.extend(unfinished_words(volume));
        warnings.extend(half_received_words(volume, volumes));
    }
    warnings.extend(schedule_warnings(volumes));
    StatusReport {
        healthy,
        warnings,
        volumes: volumes.len() as u64,
        attached: volumes.iter().filter(|volume| volume.attachment.is_some()).count() as u64,
        provisioned_bytes,
        capacity_bytes,
        used_bytes: disks.iter().map(|disk| disk.data_bytes).sum(),
        snapshots: volumes.iter().map(|volume| u64::from(volume.snapshots)).sum(),
        hidden_layers,
        hidden_bytes,
        trash_volumes: 0,
        trash_bytes: 0,
        trash_gave_way: 0,
        sources: SourcesReport::default(),
        peers: Vec::new(),
        agreement: AgreementReport::default(),
        node,
        disks,
    }
}

/// An import that nobody goes on with, with the remedy.
fn unfinished_words(volume: &VolumeReport) -> Option<String> {
    let name = &volume.name;
    let (target, before) = unfinished::target(name)?;
    let goes_on = volume.attachment.as_ref().is_some_and(AttachmentReport::is_client);
    let remedy = match before {
        Before::Nothing => format!(
            "begun {} and not finished: delete what is there of it with `dog volume delete {name} \
             --now --yes`, and import again",
            calendar::date(volume.created_unix_s)
        ),
        Before::Volume => format!(
            "not finished, so that its content is partly old and partly new: give it its name \
             back with `dog volume rename {name} {target}`, and import again with --overwrite"
        ),
    };
    (!goes_on).then(|| format!("the import of volume {target} was {remedy}"))
}

/// Changes that nobody goes on receiving into a volume, with the remedy.
fn half_received_words(marker: &VolumeReport, volumes: &[VolumeReport]) -> Option<String> {
    let target = unfinished::marked(&marker.name, marker.bytes)?;
    let goes_on = marker.attachment.as_ref().is_some_and(AttachmentReport::is_client);
    // Once the volume is deleted nothing is half received.
    let exists = volumes.iter().any(|volume| volume.name == target);
    (exists && !goes_on).then(|| {
        format!(
            "the import of changes into volume {target} was begun {} and not finished, so that it \
             is neither in the old state nor in the new one: go on with `dog volume import-diff \
             FILE {target} --resume`, or roll it back and delete volume {}",
            calendar::date(marker.created_unix_s),
            marker.name
        )
    })
}

/// The schedules whose snapshots cannot be taken.
fn schedule_warnings(volumes: &[VolumeReport]) -> Vec<String> {
    let all = volumes.iter().flat_map(|volume| &volume.schedules);
    let failing: Vec<&ScheduleReport> = all.filter(|schedule| schedule.failing).collect();
    let warning = |report: &&ScheduleReport| {
        let why = report.problem.as_deref().unwrap_or_default();
        format!(
            "schedule {} of volume {} takes no snapshots: {why}",
            report.schedule, report.volume
        )
    };
    let mut warnings: Vec<String> =
        failing.iter().take(SCHEDULE_WARNINGS_MAX).map(warning).collect();
    if failing.len() > warnings.len() {
        let more = failing.len() - warnings.len();
        warnings.push(format!("{more} more schedules take none; `dog schedule list` says why"));
    }
    warnings
}

/// What a store wants people to know.
pub(crate) fn notice(map: &Map, path: &str, notice: &Notice) -> (NoticeLevel, String) {
    match notice {
        Notice::Damaged(damage) => {
            (NoticeLevel::Error, format!("disk {path}: {}", damage_words(map, damage)))
        }
        Notice::Mended(damage) => {
            let damage = damage_words(map, damage);
            (NoticeLevel::Warning, format!("disk {path}: {damage}, and was written anew"))
        }
        Notice::Relapsed(damage) => {
            let damage = damage_words(map, damage);
            let sentence = format!(
                "disk {path}: {damage}, again after it was written anew: the disk is failing, \
                 replace it"
            );
            (NoticeLevel::Error, sentence)
        }
        Notice::Retired { reason } => {
            (NoticeLevel::Error, format!("disk {path} is out of service: {reason}"))
        }
        Notice::Full => (
            NoticeLevel::Warning,
            format!("disk {path} is full: new data is refused until something is freed"),
        ),
        Notice::NoLongerFull => (NoticeLevel::Info, format!("disk {path} takes new data again")),
        Notice::ScrubDone { pass, errors } => (
            NoticeLevel::Info,
            match errors {
                0 => format!("disk {path}: scrub pass {pass} has ended and found no damage"),
                _ => format!(
                    "disk {path}: scrub pass {pass} has ended and found {}",
                    counted(*errors, "damage", "damages")
                ),
            },
        ),
    }
}
