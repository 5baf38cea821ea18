//! The node's state as metrics, made anew for each scrape from the reports people see too, so
//! that both never differ.

use super::error_response;
use crate::asker::Asker;
use axum::{
    extract::State,
    http::header,
    response::{IntoResponse, Response},
};
use engine::admin::{
    AdminReply, AdminRequest, DiskReport, SourcesReport, StatusReport, VolumeReport,
};
use prometheus_client::{
    encoding::text::encode,
    metrics::{
        counter::{ConstCounter, Counter},
        family::Family,
        gauge::Gauge,
    },
    registry::{Registry, Unit},
};
use std::{fs, sync::atomic::AtomicU64};

/// What Prometheus wants to be told.
const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

type Labels = Vec<(&'static str, String)>;
type Number = Gauge<f64, AtomicU64>;

/// All metrics.
pub async fn answer_metrics(State(asker): State<Asker>) -> Response {
    let status = match asker.ask(AdminRequest::Status).await {
        Ok(AdminReply::Status(report)) => report,
        Ok(_) => unreachable!("a status is answered by a status"),
        Err(error) => return error_response(&error),
    };
    let volumes = match asker.ask(AdminRequest::VolumeList).await {
        Ok(AdminReply::Volumes(reports)) => reports,
        Ok(_) => unreachable!("a list is answered by a list"),
        Err(error) => return error_response(&error),
    };
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], print(&status, &volumes)).into_response()
}

fn print(status: &StatusReport, volumes: &[VolumeReport]) -> String {
    let mut registry = Registry::with_prefix("sheep");
    add_node(&mut registry, status);
    add_disks(&mut registry, &status.disks);
    add_volumes(&mut registry, volumes);
    add_schedules(&mut registry, volumes);
    add_sources(&mut registry, &status.sources);
    add_process(&mut registry);
    let mut text = String::new();
    encode(&mut text, &registry).expect("a String takes everything");
    text
}

fn add_node(registry: &mut Registry, status: &StatusReport) {
    let node = &status.node;
    let labels = vec![
        ("node", node.node.to_string()),
        ("cluster", node.cluster.to_string()),
        ("version", node.version.clone()),
    ];
    add(registry, "node_info", "Who this node is; always 1.", None, [(labels, 1.0)]);
    let mut plain = |name, help, unit, value| {
        add_one(registry, name, help, unit, value);
    };
    plain("healthy", "Whether all is well: 1 or 0.", None, f64::from(u8::from(status.healthy)));
    plain("warnings", "Sentences in the status report.", None, status.warnings.len() as f64);
    plain("uptime", "Since the program started.", Some(Unit::Seconds), node.uptime_s as f64);
    plain("epoch", "The agreed state's epoch.", None, node.epoch as f64);
    plain("volumes", "Volumes there are.", None, status.volumes as f64);
    plain("snapshots", "Snapshots there are.", None, status.snapshots as f64);
    let help = "Layers that nothing names, but others build on.";
    plain("hidden_layers", help, None, status.hidden_layers as f64);
    plain("volumes_attached", "Volumes somebody holds.", None, status.attached as f64);
    let bytes = Some(Unit::Bytes);
    plain(
        "provisioned",
        "Sum of the volumes' sizes.",
        bytes.clone(),
        status.provisioned_bytes as f64,
    );
    plain("capacity", "What the disks could hold.", bytes.clone(), status.capacity_bytes as f64);
    plain("used", "What guests' data takes.", bytes.clone(), status.used_bytes as f64);
    plain(
        "hidden",
        "Data of hidden layers, part of used.",
        bytes.clone(),
        status.hidden_bytes as f64,
    );
    plain("trash_volumes", "Volumes in the trash.", None, status.trash_volumes as f64);
    let help = "Data of volumes in the trash, part of used.";
    plain("trash", help, bytes, status.trash_bytes as f64);
    let help = "Volumes that went from the trash before their time, for want of space";
    registry.register("trash_gave_way", help, ConstCounter::new(status.trash_gave_way));
}

fn add_disks(registry: &mut Registry, disks: &[DiskReport]) {
    let labels = |disk: &DiskReport| vec![("disk", disk.disk.to_string())];
    let mut gauge = |name, help, unit, value: &dyn Fn(&DiskReport) -> f64| {
        add(registry, name, help, unit, disks.iter().map(|disk| (labels(disk), value(disk))));
    };
    let bytes = || Some(Unit::Bytes);
    gauge("disk_serving", "Whether the disk serves: 1 or 0.", None, &|disk| {
        f64::from(u8::from(disk.state == "serving"))
    });
    gauge("disk_capacity", "What it could hold.", bytes(), &|disk| disk.capacity_bytes as f64);
    gauge("disk_data", "Guests' data.", bytes(), &|disk| disk.data_bytes as f64);
    gauge("disk_metadata", "Maps, tables and log.", bytes(), &|disk| disk.metadata_bytes as f64);
    gauge("disk_quarantined", "Freed, not to be reused yet.", bytes(), &|disk| {
        disk.quarantined_bytes as f64
    });
    gauge("disk_allocated", "Taken from file system or device.", bytes(), &|disk| {
        disk.allocated_bytes as f64
    });
    gauge("disk_available", "What new data may take.", bytes(), &|disk| {
        disk.available_bytes as f64
    });
    gauge("disk_damaged_blocks", "Damaged and not mended.", None, &|d| d.damaged_blocks as f64);
    gauge("disk_lost_blocks", "Neither used nor free.", None, &|disk| disk.lost_blocks as f64);
    gauge("disk_scrub_progress_ratio", "How much of the running pass is done.", None, &|disk| {
        disk.scrub.progress
    });

    let mut counter = |name, help, unit, value: &dyn Fn(&DiskReport) -> u64| {
        count(registry, name, help, unit, disks.iter().map(|disk| (labels(disk), value(disk))));
    };
    counter("disk_damage_found", "Damages found.", None, &|disk| disk.damage_found);
    counter("disk_damage_mended", "Damages mended.", None, &|disk| disk.damage_mended);
    counter("disk_scrub_passes", "Scrub passes completed.", None, &|disk| disk.scrub.passes);
    counter("disk_reads", "Reads of guests' data.", None, &|d| d.counters.read_operations);
    counter("disk_read", "Guests' data read.", bytes(), &|disk| disk.counters.read_bytes);
    counter("disk_writes", "Writes of guests' data.", None, &|d| d.counters.write_operations);
    counter("disk_written", "Guests' data written.", bytes(), &|disk| disk.counters.write_bytes);
    counter("disk_flushes", "Device flushes.", None, &|disk| disk.counters.flushes);
    counter("disk_log_written", "Log written.", bytes(), &|disk| disk.counters.log_bytes);
    counter("disk_metadata_written", "Map and checkpoint pages written.", bytes(), &|disk| {
        disk.counters.metadata_bytes
    });
    counter("disk_checkpoints", "Checkpoints completed.", None, &|d| d.counters.checkpoints);
    counter("disk_map_page_reads", "Map pages not in the cache.", None, &|disk| {
        disk.counters.map_page_reads
    });
}

fn add_schedules(registry: &mut Registry, volumes: &[VolumeReport]) {
    let all = || volumes.iter().flat_map(|volume| &volume.schedules);
    let failing = all().filter(|schedule| schedule.failing).count();
    add_one(registry, "schedules", "Schedules of snapshots.", None, all().count() as f64);
    let help = "Schedules whose snapshots cannot be taken.";
    add_one(registry, "schedules_failing", help, None, failing as f64);
}

fn add_sources(registry: &mut Registry, sources: &SourcesReport) {
    let bytes = || Some(Unit::Bytes);
    let help = "Volumes that show what lies elsewhere.";
    add_one(registry, "source_volumes", help, None, sources.volumes as f64);
    let help = "What they have fetched of it.";
    add_one(registry, "source_filled", help, bytes(), sources.filled_bytes as f64);
    let help = "What they have still to fetch.";
    add_one(registry, "source_to_fill", help, bytes(), sources.to_fill_bytes as f64);
    let help = "For how long something waits for a source that does not answer.";
    let unit = Some(Unit::Seconds);
    add_one(registry, "source_waiting", help, unit, sources.waiting_s as f64);
    let help = "Content that came from sources";
    let metric = ConstCounter::new(sources.read_bytes);
    registry.register_with_unit("source_read", help, Unit::Bytes, metric);
    let help = "Questions to sources that had no answer, or an error";
    registry.register("source_failures", help, ConstCounter::new(sources.failures));
}

/// A label's value as the text format wants it. The library writes values as they are, and a
/// volume's name may contain quotes and backslashes (never line breaks).
fn quoted(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"")
}

fn add_volumes(registry: &mut Registry, volumes: &[VolumeReport]) {
    let mut gauge = |name, help, unit, value: &dyn Fn(&VolumeReport) -> f64| {
        let rows = volumes.iter().map(|volume| {
            let labels = vec![("volume", quoted(&volume.name)), ("id", volume.volume.to_string())];
            (labels, value(volume))
        });
        add(registry, name, help, unit, rows);
    };
    let bytes = || Some(Unit::Bytes);
    gauge("volume_size", "What a guest sees.", bytes(), &|volume| volume.bytes as f64);
    let help = "What its data takes with that of its snapshots.";
    gauge("volume_used", help, bytes(), &|volume| volume.used_bytes as f64);
    let help = "What its snapshots keep, part of used.";
    gauge("volume_snapshots_used", help, bytes(), &|volume| volume.snapshots_bytes as f64);
    gauge("volume_snapshots", "Snapshots it has.", None, &|volume| f64::from(volume.snapshots));
    gauge("volume_connections", "NBD connections that hold it.", None, &|volume| {
        volume.attachment.as_ref().map_or(0.0, |attachment| f64::from(attachment.connections))
    });
    gauge("volume_waiting", "Whether its oldest request waits noticeably: 1 or 0.", None, &|v| {
        f64::from(u8::from(v.waiting.is_some()))
    });
}

fn add_process(registry: &mut Registry) {
    let page = rustix::param::page_size() as u64;
    let ticks = rustix::param::clock_ticks_per_second() as f64;
    let statm = fs::read_to_string("/proc/self/statm").unwrap_or_default();
    if let Some(pages) = statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()) {
        let (name, value) = ("process_resident_memory", (pages * page) as f64);
        add_one(registry, name, "Memory in use.", Some(Unit::Bytes), value);
    }
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // Fields 14 and 15; the name, field 2, may hold spaces.
    let fields = stat.rsplit_once(')').map_or("", |(_, fields)| fields).split_ascii_whitespace();
    let times: Vec<f64> = fields.skip(14 - 3).take(2).filter_map(|f| f.parse().ok()).collect();
    let seconds = times.iter().sum::<f64>() / ticks;
    let metric = ConstCounter::new(seconds);
    registry.register_with_unit("process_cpu", "CPU time used", Unit::Seconds, metric);
    if let Ok(open) = fs::read_dir("/proc/self/fd") {
        let (name, value) = ("process_open_descriptors", open.count() as f64);
        add_one(registry, name, "Open files and sockets.", None, value);
    }
}

/// Registers a gauge of the whole.
fn add_one(registry: &mut Registry, name: &str, help: &str, unit: Option<Unit>, value: f64) {
    let gauge = Number::default();
    gauge.set(value);
    let help = help.trim_end_matches('.');
    match unit {
        Some(unit) => registry.register_with_unit(name, help, unit, gauge),
        None => registry.register(name, help, gauge),
    }
}

/// Registers a gauge with these rows.
fn add(
    registry: &mut Registry,
    name: &str,
    help: &str,
    unit: Option<Unit>,
    rows: impl IntoIterator<Item = (Labels, f64)>,
) {
    let family = Family::<Labels, Number>::default();
    for (labels, value) in rows {
        family.get_or_create(&labels).set(value);
    }
    let help = help.trim_end_matches('.');
    match unit {
        Some(unit) => registry.register_with_unit(name, help, unit, family),
        None => registry.register(name, help, family),
    }
}

/// Registers a counter with these rows.
fn count(
    registry: &mut Registry,
    name: &str,
    help: &str,
    unit: Option<Unit>,
    rows: impl IntoIterator<Item = (Labels, u64)>,
) {
    let family = Family::<Labels, Counter>::default();
    for (labels, value) in rows {
        family.get_or_create(&labels).inc_by(value);
    }
    let help = help.trim_end_matches('.');
    match unit {
        Some(unit) => registry.register_with_unit(name, help, unit, family),
        None => registry.register(name, help, family),
    }
}
