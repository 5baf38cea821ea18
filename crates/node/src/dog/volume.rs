//! `dog volume`: the verbs that ask the daemon. Those that move data are in modules of their own.

use super::{
    Context, Failure,
    arguments::{Keeping, VolumeVerb},
    attach, cluster, content, copies, diff, export,
    failure::FailureKind,
    from, import,
    interrupt::Interrupt,
    name::Name,
    print, schedule, snapshot,
    status::{overcommit_warning, status_report},
    trash::{self, Deletion},
    tree,
};
use crate::{size::Size, span::Span};
use engine::{
    admin::{
        AdminReply, AdminRequest, AttachmentReport, ClusterReport, Durability, FlattenReport,
        OriginReport, VolumeReport,
    },
    unfinished::{self, Before},
};
use proto::counted;
use std::{
    thread,
    time::{Duration, Instant},
};

/// How long deleting a scratch volume waits for its last connection to be gone.
const REMOVAL_PATIENCE: Duration = Duration::from_secs(10);
/// How often it looks.
const REMOVAL_INTERVAL: Duration = Duration::from_millis(50);

/// Runs one verb.
pub fn run(context: &Context, verb: VolumeVerb) -> Result<(), Failure> {
    match verb {
        VolumeVerb::Create { name, size, from: Some(from), wait, kept } => {
            from::create(context, name, size, &from, wait, kept)
        }
        VolumeVerb::Create { name, size: Some(size), kept, .. } => {
            create(context, name, size, kept)
        }
        VolumeVerb::Create { .. } => {
            Err(Failure::usage("a new, empty volume needs its size: dog volume create NAME SIZE"))
        }
        VolumeVerb::Set { name, kept } => set(context, &name.0, kept),
        VolumeVerb::List => list(context),
        VolumeVerb::Info { name: Name::Snapshot(name) } => snapshot::info(context, &name),
        VolumeVerb::Info { name: Name::Volume(name) } => {
            let volume = context.volume(&name)?;
            if context.json { print::json(&volume) } else { print::text(&describe(&volume)) }
        }
        VolumeVerb::Resize { name, size, allow_shrink, reconnect } => {
            resize(context, name.0, size, allow_shrink, reconnect)
        }
        VolumeVerb::Rename { name, new_name, while_attached } => {
            let request =
                AdminRequest::VolumeRename { name: name.0.clone(), new_name, while_attached };
            let volume = context.ask_for_volume(&request)?;
            context.show_changed(&volume, &format!("volume {name} is now {}", volume.name))
        }
        VolumeVerb::Delete { name: Name::Volume(name), yes, with_snapshots, now, keep } => {
            let keep_s = keep.map(Span::seconds);
            trash::delete(context, name, &Deletion { yes, with_snapshots, now, keep_s })
        }
        VolumeVerb::Delete { with_snapshots: true, .. } => Err(Failure::usage(
            "a snapshot has no snapshots; leave --with-snapshots out, or name the volume alone",
        )),
        VolumeVerb::Delete { keep: Some(_), .. } => Err(Failure::usage(
            "a snapshot does not go into the trash; leave --keep out, or name the volume alone",
        )),
        VolumeVerb::Delete { name: Name::Snapshot(name), yes, .. } => {
            snapshot::delete(context, name, yes)
        }
        VolumeVerb::Snapshot { name, freeze } => snapshot::create(context, name, &freeze),
        VolumeVerb::Snapshots { name, reclaimable } => {
            snapshot::list(context, &name.0, reclaimable)
        }
        VolumeVerb::Clone { name, new_name } => snapshot::clone(context, name, new_name),
        VolumeVerb::Rollback { name, yes } => snapshot::rollback(context, name, yes),
        VolumeVerb::Flatten { name, stop, wait } => snapshot::flatten(context, &name.0, stop, wait),
        VolumeVerb::Tree { name } => tree::run(context, name),
        VolumeVerb::Explain { name } => copies::explain(context, name.0),
        VolumeVerb::Locate { name, index } => copies::locate(context, name.0, index),
        VolumeVerb::Import(options) => import::run(context, &options),
        VolumeVerb::Export(options) => export::run(context, &options),
        VolumeVerb::Read { name, range, file, overwrite } => {
            content::read(context, &name.to_string(), &range, file.as_deref(), overwrite)
        }
        VolumeVerb::Write { name, offset, file, fua } => {
            content::write(context, &name.0, offset, file.as_deref(), fua)
        }
        VolumeVerb::Zero { name, range, no_unmap, fast } => {
            content::zero(context, &name.0, &range, no_unmap, fast)
        }
        VolumeVerb::Discard { name, range } => content::discard(context, &name.0, &range),
        VolumeVerb::Flush { name } => content::flush(context, &name.0),
        VolumeVerb::Map { name } => content::map(context, &name.to_string()),
        VolumeVerb::Attach { name, reconnect_delay, target } => {
            attach::run(context, &name, reconnect_delay, &target)
        }
        VolumeVerb::Reconnect { name } => {
            context.tell(&AdminRequest::VolumeReconnect { name: name.0.clone() })?;
            context.done(&format!("the client of volume {name} reconnects now"))
        }
        VolumeVerb::Detach { name, force: _, yes } => detach(context, &name, yes),
        VolumeVerb::Diff(options) => diff::difference::run(context, &options),
        VolumeVerb::ExportDiff(options) => diff::export::run(context, &options),
        VolumeVerb::ImportDiff(options) => diff::import::run(context, &options),
        VolumeVerb::Lock { name, until, yes } => snapshot::lock(context, name, until, yes),
    }
}

/// Ends attachments by force.
fn detach(context: &Context, name: &Name, yes: bool) -> Result<(), Failure> {
    let (volume, tag) = match name {
        Name::Volume(volume) => (volume.clone(), None),
        Name::Snapshot(name) => (name.volume.clone(), Some(name.tag.clone())),
    };
    if !yes {
        let report = context.volume(&volume)?;
        let cluster = cluster::report(context)?;
        return Err(Failure::conflict(detach_question(name, &report, &cluster)));
    }
    context.tell(&AdminRequest::VolumeDetach { name: volume, tag })?;
    context.done(&format!("{name} is not attached any more; another client can have it"))
}

/// What ending it means, for who has not said that it is meant.
fn detach_question(name: &Name, report: &VolumeReport, cluster: &ClusterReport) -> String {
    let held = report.attachment.as_ref().filter(|_| matches!(name, Name::Volume(_)));
    let who = held.map_or("its clients".to_string(), |held| {
        let node = cluster.nodes.iter().find(|node| node.node == held.node);
        let (node, state) = match node {
            Some(node) if node.up => (cluster::node_words(node), "is up".to_string()),
            Some(node) => {
                let away = format!("has been away for {}", print::span(node.since_s));
                (cluster::node_words(node), away)
            }
            None => (held.node.to_string(), "is no part of the cluster".to_string()),
        };
        format!("{} on node {node}, which {state},", held.holder)
    });
    format!(
        "ending the attachment of {name} takes it from {who} at once: a guest that still runs \
         there loses its disk, and what was not acknowledged to it may be lost; say --yes if you \
         mean it"
    )
}

impl Context {
    /// Asks for something that is answered by one volume.
    pub(super) fn ask_for_volume(&self, request: &AdminRequest) -> Result<VolumeReport, Failure> {
        match self.ask(request)? {
            AdminReply::Volume(volume) => Ok(volume),
            _ => Err(Failure::mismatch()),
        }
    }

    /// The volume of this name.
    pub(super) fn volume(&self, name: &str) -> Result<VolumeReport, Failure> {
        self.ask_for_volume(&AdminRequest::VolumeInfo { name: name.to_string() })
    }

    /// Says that something without a result was done.
    pub(super) fn done(&self, sentence: &str) -> Result<(), Failure> {
        if self.json {
            return print::json(&serde_json::json!({ "done": true }));
        }
        print::text(&format!("{sentence}\n"))
    }

    /// Shows a volume that was made or changed.
    pub(super) fn show_changed(
        &self,
        volume: &VolumeReport,
        sentence: &str,
    ) -> Result<(), Failure> {
        if self.json {
            return print::json(volume);
        }
        print::text(&format!("{sentence}\n"))
    }

    /// Deletes a scratch volume once its last connection, which we closed, is gone.
    pub(super) fn delete_when_free(
        &self,
        name: &str,
        interrupt: &Interrupt,
    ) -> Result<(), Failure> {
        interrupt.clean_up();
        let until = Instant::now() + REMOVAL_PATIENCE;
        let request = AdminRequest::VolumeDelete {
            name: name.to_string(),
            with_snapshots: false,
            keep_s: Some(0),
        };
        loop {
            match self.tell(&request) {
                Err(refused) if refused.kind == FailureKind::Conflict && Instant::now() < until => {
                    thread::sleep(REMOVAL_INTERVAL);
                }
                result => return result,
            }
        }
    }

    /// Warns if more was promised to volumes than the disks could hold.
    pub(super) fn warn_of_overcommit(&self) -> Result<(), Failure> {
        let report = status_report(self)?;
        if let Some(warning) = overcommit_warning(&report) {
            self.note(&format!("warning: {warning}"));
        }
        Ok(())
    }
}

/// The request for a new, empty volume.
pub(super) fn creation(name: String, bytes: u64, kept: Keeping) -> AdminRequest {
    if !kept.is_said() {
        return AdminRequest::VolumeCreate { name, bytes };
    }
    kept_creation(name, Some(bytes), None, kept)
}

/// The request for a new volume that is to be kept as is said.
pub(super) fn kept_creation(
    name: String,
    bytes: Option<u64>,
    from: Option<String>,
    Keeping { copies, min_copies, durability }: Keeping,
) -> AdminRequest {
    let durability = durability.map(Durability::from);
    AdminRequest::VolumeCreateKept { name, bytes, from, copies, min_copies, durability }
}

fn set(context: &Context, name: &str, kept: Keeping) -> Result<(), Failure> {
    let Keeping { copies, min_copies, durability } = kept;
    let mut changed = None;
    if kept.is_of_copies() {
        let request = AdminRequest::VolumeKeep { name: name.to_string(), copies, min_copies };
        let volume = context.ask_for_volume(&request)?;
        let sentence = format!("volume {name} is kept in {}", copies_words(&volume));
        changed = Some((volume, sentence));
    }
    if let Some(durability) = durability.map(Durability::from) {
        let request = AdminRequest::VolumeDurability { name: name.to_string(), durability };
        let volume = context.ask_for_volume(&request)?;
        let sentence = format!("what is written to volume {name} is {}", stable_words(durability));
        let before = changed.map_or(String::new(), |(_, before)| format!("{before}; "));
        changed = Some((volume, before + &sentence));
    }
    match changed {
        Some((volume, sentence)) => context.show_changed(&volume, &sentence),
        None => Err(Failure::usage(
            "nothing is to be changed; say --copies, --min-copies or --durability",
        )),
    }
}

/// When what is written is stable, to follow "is".
fn stable_words(durability: Durability) -> &'static str {
    match durability {
        Durability::Flush => "stable after a flush",
        Durability::Ack => "stable when it is acknowledged",
    }
}

/// "ack: what is written is stable when it is acknowledged".
fn durability_words(volume: &VolumeReport) -> String {
    let name = match volume.durability {
        Durability::Flush => "flush",
        Durability::Ack => "ack",
    };
    let awaited = match volume.durability_awaited {
        true => "; whoever has it attached has not said yet that it does so",
        false => "",
    };
    format!("{name}: what is written is {}{awaited}", stable_words(volume.durability))
}

/// "3 copies, of which there are 2 by now; its writes wait while fewer than 2 are left".
fn copies_words(volume: &VolumeReport) -> String {
    let VolumeReport { copies, copies_wanted, min_copies, .. } = *volume;
    let wanted = counted(u64::from(copies_wanted), "copy", "copies");
    let now = match copies < u32::from(copies_wanted) {
        true => format!(", of which there {} {copies} now", if copies == 1 { "is" } else { "are" }),
        false => String::new(),
    };
    let rest = match min_copies {
        0 | 1 => String::new(),
        few => format!("; none is left out so that fewer than {few} stay"),
    };
    format!("{wanted}{now}{rest}")
}

fn create(context: &Context, name: String, size: Size, kept: Keeping) -> Result<(), Failure> {
    let request = creation(name, size.0, kept);
    let volume = context.ask_for_volume(&request)?;
    let sentence = format!("volume {} of {} created", volume.name, Size(volume.bytes));
    context.show_changed(&volume, &sentence)?;
    context.warn_of_overcommit()
}

fn list(context: &Context) -> Result<(), Failure> {
    let AdminReply::Volumes(volumes) = context.ask(&AdminRequest::VolumeList)? else {
        return Err(Failure::mismatch());
    };
    if context.json {
        return print::json(&volumes);
    }
    print::text(&tabulate(&volumes))?;
    let unknown = volumes.first().and_then(|volume| print::unknown_note(&volume.unknown_nodes));
    unknown.into_iter().for_each(|note| context.note(&note));
    context.warn_of_overcommit()
}

fn resize(
    context: &Context,
    name: String,
    size: Size,
    allow_shrink: bool,
    reconnect: bool,
) -> Result<(), Failure> {
    let request = AdminRequest::VolumeResize { name: name.clone(), bytes: size.0, allow_shrink };
    let volume = context.ask_for_volume(&request)?;
    let sentence = format!("volume {} has {} now", volume.name, Size(volume.bytes));
    let attachment = client(&volume);
    if reconnect && attachment.is_some() {
        context.tell(&AdminRequest::VolumeReconnect { name })?;
    }
    context.show_changed(&volume, &sentence)?;
    if let Some(attachment) = attachment {
        context.note(&resized_note(&volume, &attachment.holder, reconnect));
    }
    context.warn_of_overcommit()
}

/// What is left to do until the client's guest sees the new size.
fn resized_note(volume: &VolumeReport, holder: &str, reconnected: bool) -> String {
    let VolumeReport { name, bytes, .. } = volume;
    let steps = format!(
        "block_resize of its node, sheep-{}, to {bytes} by QMP, or `virsh blockresize DOMAIN \
         TARGET {bytes}B`",
        volume.volume
    );
    match reconnected {
        true => format!("{holder} reconnects with its next request; then tell QEMU: {steps}"),
        false => format!(
            "{holder} may use the new size, but learns it only when it connects: `dog volume \
             reconnect {name}` if it has a reconnect-delay, then tell QEMU: {steps}"
        ),
    }
}

/// Volumes as a table.
fn tabulate(volumes: &[VolumeReport]) -> String {
    let columns = [
        ("NAME", false),
        ("SIZE", true),
        ("USED", true),
        ("SNAPSHOTS", true),
        ("COPIES", true),
        ("ATTACHED TO", false),
        ("STATE", false),
    ];
    let rows = volumes.iter().map(|volume| {
        vec![
            volume.name.clone(),
            Size(volume.bytes).to_string(),
            print::at_least(volume.used_bytes, &volume.unknown_nodes),
            volume.snapshots.to_string(),
            volume.copies.to_string(),
            client(volume).map_or_else(|| "-".to_string(), |held| held.holder.clone()),
            state(volume),
        ]
    });
    print::table(&columns, rows.collect())
}

/// The client that has a volume, or may have it.
fn client(volume: &VolumeReport) -> Option<&AttachmentReport> {
    volume.attachment.as_ref().filter(|attachment| attachment.is_client())
}

fn state(volume: &VolumeReport) -> String {
    match &volume.waiting {
        Some(waiting) => waiting.clone(),
        None if volume.sealing => "settling the last snapshot or rollback".to_string(),
        None => importing(volume).unwrap_or_else(|| "ok".to_string()),
    }
}

/// What there is to say of a volume that an import has not filled.
fn importing(volume: &VolumeReport) -> Option<String> {
    let held = client(volume).is_some();
    let begun = proto::calendar::date(volume.created_unix_s);
    if let Some(target) = unfinished::marked(&volume.name, volume.bytes) {
        let unfinished = if held { "" } else { "unfinished " };
        return Some(format!(
            "marks an {unfinished}import of changes into {target}, begun {begun}"
        ));
    }
    let (target, before) = unfinished::target(&volume.name)?;
    Some(match (before, held) {
        (Before::Nothing, true) => format!("import of {target}, begun {begun}"),
        (Before::Nothing, false) => format!("unfinished import of {target}, begun {begun}"),
        (Before::Volume, true) => format!("import over {target}"),
        (Before::Volume, false) => format!("unfinished import over {target}"),
    })
}

/// One volume in full.
fn describe(volume: &VolumeReport) -> String {
    let exact = print::exact;
    let mut fields = vec![
        ("Name", volume.name.clone()),
        ("Id", volume.volume.to_string()),
        ("Size", exact(volume.bytes)),
        ("Used", exact(volume.used_bytes)),
    ];
    if volume.snapshots > 0 {
        fields.push(("  by the volume", exact(volume.head_bytes)));
        fields.push(("  by snapshots", exact(volume.snapshots_bytes)));
    }
    fields.extend([
        ("Used by maps", exact(volume.metadata_bytes)),
        ("Snapshots", volume.snapshots.to_string()),
    ]);
    if let Some(origin) = &volume.origin {
        let what = if origin.source.is_some() { "Source" } else { "Cloned from" };
        fields.push((what, origin_words(origin)));
    }
    let is_filled = volume.origin.as_ref().is_some_and(|origin| origin.source.is_some());
    match &volume.flatten {
        Some(flatten) if is_filled => fields.push(("Filling", flatten_words(flatten))),
        Some(flatten) => fields.push(("Flattening", flatten_words(flatten))),
        None if is_filled => fields.push(("Filling", "stopped".to_string())),
        None => {}
    }
    if let Some(shorten) = &volume.shorten {
        fields.push(("Shortening", flatten_words(shorten)));
    }
    fields.extend([
        ("Copies", copies_words(volume)),
        ("Durability", durability_words(volume)),
        ("Created", proto::calendar::date(volume.created_unix_s)),
    ]);
    match client(volume) {
        None => fields.push(("Attached to", "nobody".to_string())),
        Some(attachment) => {
            let mode = if attachment.read_only { ", read only" } else { "" };
            let connections = match attachment.unknown {
                true => "connections that are not known now".to_string(),
                false => counted(u64::from(attachment.connections), "connection", "connections"),
            };
            fields.push(("Attached to", format!("{} by {connections}{mode}", attachment.holder)));
            fields.push(("On node", attachment.node.to_string()));
            fields.push(("Generation", attachment.generation.to_string()));
        }
    }
    for schedule in &volume.schedules {
        fields.push(("Schedule", schedule::words(schedule)));
    }
    fields.push(("State", state(volume)));
    if !volume.unknown_nodes.is_empty() {
        let nodes = volume.unknown_nodes.join(", ");
        fields
            .push(("Not known", format!("what lies on disks of {nodes}: more is used than that")));
    }
    print::fields(&fields)
}

fn origin_words(origin: &OriginReport) -> String {
    if let Some(source) = &origin.source {
        return format!("{source}, the first {}", Size(origin.bytes));
    }
    let what = match &origin.name {
        Some(name) => name.clone(),
        None => {
            let layer = origin.layer;
            format!("a snapshot that was deleted and is kept for its clones (layer {layer})")
        }
    };
    let further = match origin.lineages {
        0 | 1 => String::new(),
        more => {
            let others = counted(u64::from(more) - 1, "other", "others");
            format!(", and what that shows through {others}")
        }
    };
    format!("{what}, the first {}{further}", Size(origin.bytes))
}

fn flatten_words(flatten: &FlattenReport) -> String {
    if let Some(error) = &flatten.error {
        return format!("came to a halt: {error}; it is tried again after a while");
    }
    if !flatten.running {
        return "waits; it goes on by itself".to_string();
    }
    let percent = flatten.done_bytes as f64 * 100.0 / flatten.total_bytes.max(1) as f64;
    let (done, total) = (Size(flatten.done_bytes), Size(flatten.total_bytes));
    let rest = match &flatten.waiting {
        Some(waiting) => format!(", {waiting}"),
        None => {
            let left = flatten.total_bytes.saturating_sub(flatten.done_bytes);
            from::speed_words(flatten.bytes_per_s, left)
        }
    };
    format!("{done} of {total} ({percent:.0} %){rest}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::{Generation, LayerId, NodeId, VolumeId};

    fn volume(name: &str, attached: bool) -> VolumeReport {
        let attachment = attached.then(|| AttachmentReport {
            node: NodeId(0xab),
            generation: Generation(3),
            holder: "process 4711 (qemu-system-x86)".to_string(),
            connections: 1,
            read_only: false,
            unknown: false,
        });
        VolumeReport {
            volume: VolumeId(7),
            name: name.to_string(),
            bytes: 20 << 30,
            used_bytes: 4096,
            head_bytes: 4096,
            snapshots_bytes: 0,
            metadata_bytes: 0,
            snapshots: 0,
            sealing: false,
            origin: None,
            flatten: None,
            shorten: None,
            copies: 1,
            copies_wanted: 3,
            min_copies: 2,
            durability: Durability::Flush,
            durability_awaited: false,
            created_unix_s: 1_700_000_000,
            attachment,
            waiting: attached.then(|| "waiting for disk 1, 12 s".to_string()),
            importing: None,
            schedules: Vec::new(),
            unknown_nodes: Vec::new(),
        }
    }

    #[test]
    fn volumes_are_tabulated() {
        let printed = tabulate(&[volume("a", false), volume("long-name", true)]);
        let expected = "\
NAME           SIZE     USED  SNAPSHOTS  COPIES  ATTACHED TO                     STATE
a          20.0 GiB  4.0 KiB          0       1  -                               ok
long-name  20.0 GiB  4.0 KiB          0       1  process 4711 (qemu-system-x86)  waiting for disk \
1, 12 s
";
        assert_eq!(printed, expected);
    }

    #[test]
    fn half_an_import_does_not_look_well() {
        let check = |name: &str, attached: bool, expected: &str| {
            let volume = VolumeReport { waiting: None, ..volume(name, attached) };
            assert_eq!(state(&volume), expected);
        };
        let begun = "begun 2023-11-14 22:13:20 UTC";
        check("d.import-00000001", true, &format!("import of d, {begun}"));
        check("d.import-00000001", false, &format!("unfinished import of d, {begun}"));
        check("d.overwrite-00000001", true, "import over d");
        check("d.overwrite-00000001", false, "unfinished import over d");
        check("d", false, "ok");
        check("d.import", false, "ok"); // too large for a marker
        let marks = |attached, expected: &str| {
            let volume =
                VolumeReport { waiting: None, bytes: 4096, ..volume("d.import", attached) };
            assert_eq!(state(&volume), expected);
        };
        marks(true, &format!("marks an import of changes into d, {begun}"));
        marks(false, &format!("marks an unfinished import of changes into d, {begun}"));
    }

    #[test]
    fn one_volume_is_described_in_full() {
        let printed = describe(&volume("a", true));
        for line in [
            "Size:         20.0 GiB (21474836480 bytes)",
            "Created:      2023-11-14 22:13:20 UTC",
            "Attached to:  process 4711 (qemu-system-x86) by 1 connection",
            "State:        waiting for disk 1, 12 s",
        ] {
            assert!(printed.lines().any(|printed| printed == line), "{line} is not in\n{printed}");
        }
        assert!(describe(&volume("a", false)).contains("Attached to:  nobody"));
        // It said "-" of who had it on another node.
        let mut elsewhere = volume("v", true);
        elsewhere.attachment.as_mut().expect("attached").connections = 0;
        elsewhere.attachment.as_mut().expect("attached").unknown = true;
        elsewhere.unknown_nodes = vec!["n2".to_string()];
        let page = describe(&elsewhere);
        assert!(page.contains("by connections that are not known now"), "{page}");
        assert!(page.contains("what lies on disks of n2: more is used than that"), "{page}");
        assert!(tabulate(&[elsewhere]).contains("4.0 KiB+"));
        // It said "by 0 connections" when the client had gone and the node was not done yet.
        let mut left = volume("a", true);
        left.attachment.as_mut().expect("attached").connections = 0;
        assert!(describe(&left).contains("Attached to:  nobody"));
        assert!(!tabulate(&[left]).contains("qemu"));
    }

    #[test]
    fn a_resize_says_what_is_left_to_do() {
        let volume = volume("a", true);
        for reconnected in [false, true] {
            let note = resized_note(&volume, "process 4711 (qemu)", reconnected);
            assert!(note.starts_with("process 4711 (qemu) "), "{note}");
            assert!(note.contains("sheep-7, to 21474836480 by QMP"), "{note}");
            assert!(note.contains("virsh blockresize DOMAIN TARGET 21474836480B"), "{note}");
            assert_eq!(note.contains("dog volume reconnect a"), !reconnected, "{note}");
        }
    }

    #[test]
    fn a_clone_shows_what_it_builds_on_and_what_its_snapshots_keep() {
        let mut clone = volume("a", false);
        let (layer, bytes) = (LayerId(12), 10 << 30);
        clone.snapshots = 2;
        clone.snapshots_bytes = 1 << 20;
        clone.used_bytes = (1 << 20) + 4096;
        clone.sealing = true;
        let name = Some("golden@v1".to_string());
        clone.origin = Some(OriginReport { name, layer, bytes, source: None, lineages: 1 });
        let flatten = FlattenReport {
            running: true,
            done_bytes: 5 << 30,
            total_bytes: 10 << 30,
            error: None,
            bytes_per_s: 0,
            waiting: None,
        };
        clone.flatten = Some(flatten.clone());
        let check = |volume: &VolumeReport, lines: &[&str]| {
            let printed = describe(volume);
            for line in lines {
                let found = printed.lines().any(|printed| printed == *line);
                assert!(found, "{line} is not in\n{printed}");
            }
        };
        check(
            &clone,
            &[
                "  by the volume: 4.0 KiB (4096 bytes)",
                "  by snapshots:  1.0 MiB (1048576 bytes)",
                "Snapshots:       2",
                "Cloned from:     golden@v1, the first 10.0 GiB",
                "Flattening:      5.0 GiB of 10.0 GiB (50 %)",
                "State:           settling the last snapshot or rollback",
            ],
        );
        clone.origin = Some(OriginReport { name: None, layer, bytes, source: None, lineages: 6 });
        clone.flatten = Some(FlattenReport { running: false, ..flatten.clone() });
        check(
            &clone,
            &[
                "Cloned from:     a snapshot that was deleted and is kept for its clones (layer \
                 12), the first 10.0 GiB, and what that shows through 5 others",
                "Flattening:      waits; it goes on by itself",
            ],
        );
        let error = Some("no space is left".to_string());
        clone.flatten = Some(FlattenReport { error, ..flatten });
        let halted = "Flattening:      came to a halt: no space is left; it is tried again after a \
                      while";
        check(&clone, &[halted]);
        clone.shorten = clone.flatten.take().map(Box::new);
        check(&clone, &[&halted.replace("Flattening: ", "Shortening: ")]);
    }
}
