//! What systemd is told: that the daemon serves, what it is doing, and that it is alive.

use crate::asker::Asker;
use engine::admin::{AdminReply, AdminRequest, StatusReport};
use sd_notify::NotifyState;
use std::{
    env, io,
    os::{
        linux::net::SocketAddrExt,
        unix::{
            ffi::OsStrExt,
            net::{SocketAddr, UnixDatagram},
        },
    },
    time::Duration,
};

/// How often what the daemon is doing is looked at; it is told when it has changed.
const STATUS_PERIOD: Duration = Duration::from_secs(5);

/// Tells systemd, if it started us. Never waits: whoever does not listen misses it.
pub fn notify(states: &[NotifyState]) {
    let text: String = states.iter().map(|state| format!("{state}\n")).collect();
    if let Err(error) = send(text.as_bytes()) {
        tracing::debug!("systemd is not told: {error}");
    }
}

fn send(text: &[u8]) -> io::Result<()> {
    let Some(path) = env::var_os("NOTIFY_SOCKET") else { return Ok(()) };
    let address = match path.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(&path)?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    socket.send_to_addr(text, &address).map(|_| ())
}

/// Feeds systemd's watchdog for as long as the data thread turns.
pub async fn watch(asker: Asker) {
    let Some(timeout) = watchdog_timeout() else { return };
    let period = timeout / 3;
    loop {
        if asker.ping(period).await {
            notify(&[NotifyState::Watchdog]);
        } else {
            tracing::error!("the data thread does not answer; its watchdog is not fed");
        }
        tokio::time::sleep(period).await;
    }
}

/// How long systemd waits for a sign of life, if it waits for one of ours: see
/// sd_watchdog_enabled(3). Without a process id it is meant for whoever reads it.
fn watchdog_timeout() -> Option<Duration> {
    let number = |name| env::var(name).ok()?.parse::<u64>().ok();
    let microseconds = number("WATCHDOG_USEC").filter(|&microseconds| microseconds > 0)?;
    let is_ours = match env::var_os("WATCHDOG_PID") {
        None => true,
        Some(_) => number("WATCHDOG_PID") == Some(u64::from(std::process::id())),
    };
    is_ours.then(|| Duration::from_micros(microseconds))
}

/// Tells what the node is doing, whenever that has changed.
pub async fn tell(asker: Asker) {
    let mut told = String::new();
    loop {
        if let Ok(AdminReply::Status(report)) = asker.ask(AdminRequest::Status).await {
            let words = describe(&report);
            if words != told {
                notify(&[NotifyState::Status(&words)]);
                told = words;
            }
        }
        tokio::time::sleep(STATUS_PERIOD).await;
    }
}

/// One line: what is served, or why nothing is.
fn describe(report: &StatusReport) -> String {
    if let Some(disk) = report.disks.iter().find(|disk| disk.state != "serving") {
        let reason = disk.reason.as_deref().unwrap_or("it is not open");
        return format!("out of service: disk {}: {reason}", disk.path);
    }
    let mut words = match report.volumes {
        1 => format!("serving 1 volume, {} attached", report.attached),
        many => format!("serving {many} volumes, {} attached", report.attached),
    };
    if !report.healthy
        && let Some(warning) = report.warnings.first()
    {
        words += &format!("; needs attention: {warning}");
    }
    words.replace('\n', " ")
}
