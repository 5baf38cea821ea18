//! `dog volume`: the verbs that ask the daemon. Those that move data are in modules of their own.

use super::{
    Context, Failure,
    arguments::VolumeVerb,
    attach, content, export,
    failure::FailureKind,
    import,
    interrupt::Interrupt,
    print,
    status::{overcommit_warning, status_report},
};
use crate::size::Size;
use engine::admin::{AdminReply, AdminRequest, VolumeReport};
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
        VolumeVerb::Create { name, size } => create(context, name, size),
        VolumeVerb::List => list(context),
        VolumeVerb::Info { name } => {
            let volume = context.volume(&name)?;
            if context.json { print::json(&volume) } else { print::text(&describe(&volume)) }
        }
        VolumeVerb::Resize { name, size, allow_shrink } => {
            resize(context, name, size, allow_shrink)
        }
        VolumeVerb::Rename { name, new_name, while_attached } => {
            let request =
                AdminRequest::VolumeRename { name: name.clone(), new_name, while_attached };
            let volume = context.ask_for_volume(&request)?;
            context.show_changed(&volume, &format!("volume {name} is now {}", volume.name))
        }
        VolumeVerb::Delete { name, yes } => delete(context, name, yes),
        VolumeVerb::Import(options) => import::run(context, &options),
        VolumeVerb::Export(options) => export::run(context, &options),
        VolumeVerb::Read { name, range, file, overwrite } => {
            content::read(context, &name, &range, file.as_deref(), overwrite)
        }
        VolumeVerb::Write { name, offset, file, fua } => {
            content::write(context, &name, offset, file.as_deref(), fua)
        }
        VolumeVerb::Zero { name, range, no_unmap, fast } => {
            content::zero(context, &name, &range, no_unmap, fast)
        }
        VolumeVerb::Discard { name, range } => content::discard(context, &name, &range),
        VolumeVerb::Flush { name } => content::flush(context, &name),
        VolumeVerb::Map { name } => content::map(context, &name),
        VolumeVerb::Attach { name, reconnect_delay, target } => {
            attach::run(context, &name, reconnect_delay, &target)
        }
        VolumeVerb::Reconnect { name } => {
            context.tell(&AdminRequest::VolumeReconnect { name: name.clone() })?;
            context.done(&format!("the client of volume {name} reconnects now"))
        }
    }
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
    fn show_changed(&self, volume: &VolumeReport, sentence: &str) -> Result<(), Failure> {
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
        let request = AdminRequest::VolumeDelete { name: name.to_string() };
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

fn create(context: &Context, name: String, size: Size) -> Result<(), Failure> {
    let request = AdminRequest::VolumeCreate { name, bytes: size.0 };
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
    context.warn_of_overcommit()
}

fn resize(context: &Context, name: String, size: Size, allow_shrink: bool) -> Result<(), Failure> {
    let request = AdminRequest::VolumeResize { name: name.clone(), bytes: size.0, allow_shrink };
    let volume = context.ask_for_volume(&request)?;
    let sentence = format!("volume {} has {} now", volume.name, Size(volume.bytes));
    context.show_changed(&volume, &sentence)?;
    // Without connections it is the node itself that still holds it, to discard the cut-off end.
    if let Some(attachment) = volume.attachment.as_ref().filter(|a| a.connections > 0) {
        context.note(&format!(
            "{} learns the new size when it asks anew: `dog volume reconnect {name}`, then \
             `block_resize` in QEMU or `virsh blockresize` (see the manual, \"Growing online\")",
            attachment.holder
        ));
    }
    context.warn_of_overcommit()
}

fn delete(context: &Context, name: String, yes: bool) -> Result<(), Failure> {
    if !yes {
        let volume = context.volume(&name)?;
        return Err(Failure::conflict(format!(
            "deleting volume {name} destroys its {} of data for good; say --yes if you mean it",
            Size(volume.used_bytes)
        )));
    }
    context.tell(&AdminRequest::VolumeDelete { name: name.clone() })?;
    context.done(&format!("volume {name} deleted; its space comes back in the background"))
}

/// Volumes as a table.
fn tabulate(volumes: &[VolumeReport]) -> String {
    let columns = [
        ("NAME", false),
        ("SIZE", true),
        ("USED", true),
        ("COPIES", true),
        ("ATTACHED TO", false),
        ("STATE", false),
    ];
    let rows = volumes.iter().map(|volume| {
        vec![
            volume.name.clone(),
            Size(volume.bytes).to_string(),
            Size(volume.used_bytes).to_string(),
            volume.copies.to_string(),
            volume.attachment.as_ref().map_or_else(|| "-".to_string(), |a| a.holder.clone()),
            volume.waiting.clone().unwrap_or_else(|| "ok".to_string()),
        ]
    });
    print::table(&columns, rows.collect())
}

/// One volume in full.
fn describe(volume: &VolumeReport) -> String {
    let exact = |bytes: u64| match bytes {
        0..1024 => Size(bytes).to_string(),
        _ => format!("{} ({bytes} bytes)", Size(bytes)),
    };
    let mut fields = vec![
        ("Name", volume.name.clone()),
        ("Id", volume.volume.to_string()),
        ("Size", exact(volume.bytes)),
        ("Used", exact(volume.used_bytes)),
        ("Used by maps", exact(volume.metadata_bytes)),
        ("Copies", volume.copies.to_string()),
        ("Created", print::date(volume.created_unix_s)),
    ];
    match &volume.attachment {
        None => fields.push(("Attached to", "nobody".to_string())),
        Some(attachment) => {
            let mode = if attachment.read_only { ", read only" } else { "" };
            let plural = if attachment.connections == 1 { "" } else { "s" };
            fields.push((
                "Attached to",
                format!(
                    "{} by {} connection{plural}{mode}",
                    attachment.holder, attachment.connections
                ),
            ));
            fields.push(("On node", attachment.node.to_string()));
            fields.push(("Generation", attachment.generation.to_string()));
        }
    }
    fields.push(("State", volume.waiting.clone().unwrap_or_else(|| "ok".to_string())));
    print::fields(&fields)
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine::admin::AttachmentReport;
    use proto::{Generation, NodeId, VolumeId};

    fn volume(name: &str, attached: bool) -> VolumeReport {
        let attachment = attached.then(|| AttachmentReport {
            node: NodeId(0xab),
            generation: Generation(3),
            holder: "process 4711 (qemu-system-x86)".to_string(),
            connections: 1,
            read_only: false,
        });
        VolumeReport {
            volume: VolumeId(7),
            name: name.to_string(),
            bytes: 20 << 30,
            used_bytes: 4096,
            metadata_bytes: 0,
            copies: 1,
            created_unix_s: 1_700_000_000,
            attachment,
            waiting: attached.then(|| "waiting for disk 1, 12 s".to_string()),
        }
    }

    #[test]
    fn volumes_are_tabulated() {
        let printed = tabulate(&[volume("a", false), volume("long-name", true)]);
        let expected = "\
NAME           SIZE     USED  COPIES  ATTACHED TO                     STATE
a          20.0 GiB  4.0 KiB       1  -                               ok
long-name  20.0 GiB  4.0 KiB       1  process 4711 (qemu-system-x86)  waiting for disk 1, 12 s
";
        assert_eq!(printed, expected);
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
    }
}
