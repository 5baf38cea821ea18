//! The daemon as a process: start, signals, readiness, stop.
//!
//! The main thread opens everything that may be refused, starts the data thread and then serves
//! HTTP and signals; it ends when the data thread does.

use crate::{
    asker::Asker,
    belonging,
    data::{DataThread, DiskOptions, Listener, Parts},
    directory::{self, DataDirectory, DiskRecord, Record},
    disk::{Driver, Medium, OpenHow},
    http,
    identity::{Identity, Neighbour, Seed},
    log,
    peers::{self, PORT_DEFAULT, Peers},
    settings::{Listen, Plain, Settings, Stop},
    sockets,
    source::Sources,
    systemd::{self, notify},
};
use engine::Founding;
use mio::Poll;
use proto::NodeId;
use proto::limits::{DESCRIPTORS_WANTED, PARTITIONS_DEFAULT};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use sd_notify::NotifyState;
use std::{
    fs,
    net::{SocketAddr, TcpListener},
    os::unix::net::UnixListener,
    process::ExitCode,
    sync::{Arc, Mutex},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};
use store::MediumKind;
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::oneshot,
    task::LocalSet,
};

/// Mode of the NBD socket: the daemon's user and group.
const NBD_SOCKET_MODE: u32 = 0o660;
/// Mode of the admin socket: the daemon's user only.
const ADMIN_SOCKET_MODE: u32 = 0o600;
/// Files the daemon has open before the first client comes, and some for clients.
const DESCRIPTORS_MIN: u64 = 64;
/// How often systemd is told that the start goes on, and for how long that holds.
const START_NOTICE: Duration = Duration::from_secs(10);

/// A second signal to end counts from then on: some programs send theirs twice within milliseconds
/// (to the process and to its group), and mean one.
const SECOND_SIGNAL_AFTER: Duration = Duration::from_secs(1);

/// What the start takes at once, at least, in bytes.
const START_BYTES: usize = 4 << 20;

/// Runs `sheep` with the arguments of this process.
pub fn main() -> ExitCode {
    let settings = match Settings::of_process() {
        Ok(settings) => settings,
        Err(Stop::Print(text)) => {
            print!("{text}");
            return ExitCode::SUCCESS;
        }
        Err(Stop::Usage(sentence)) => {
            eprintln!("sheep: {sentence}");
            return ExitCode::from(2);
        }
    };
    log::start(settings.log_level);
    match run(&settings) {
        Ok(()) => ExitCode::SUCCESS,
        Err(sentence) => {
            tracing::error!("{sentence}");
            ExitCode::FAILURE
        }
    }
}

/// Everything that is open before the first thread starts.
struct Opened {
    nbd: Vec<Listener>,
    admin: UnixListener,
    metrics: Option<TcpListener>,
    directory: DataDirectory,
    /// The journal first, then the disks that could be opened.
    media: Vec<Medium>,
    engine: engine::Settings,
    identity: Identity,
    /// Where other nodes come in.
    peers: Option<TcpListener>,
}

/// Runs a daemon until it is told to stop. The error is one sentence with cause and remedy.
pub fn run(settings: &Settings) -> Result<(), String> {
    raise_descriptors()?;
    // Where memory ends within the cryptographic library, that says nothing.
    let mut room = Vec::<u8>::new();
    room.try_reserve_exact(START_BYTES).map_err(
        |_| "cannot start: there is not enough memory; raise the limit (`ulimit -v`) or free some",
    )?;
    drop(room);
    let opened = open(settings)?;
    let places = Places::of(&opened);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|error| format!("cannot start: {error}"))?;
    let ended = LocalSet::new().block_on(&runtime, serve(settings, opened, &places));
    places.remove();
    ended
}

fn open(settings: &Settings) -> Result<Opened, String> {
    // Ports first: they can be refused before anything is made.
    let tcp = |address, setting| sockets::open_tcp(address, setting);
    let nbd_tcp = settings.nbd_listen.map(|address| tcp(address, "nbd-listen")).transpose()?;
    let metrics =
        settings.metrics_listen.map(|address| tcp(address, "metrics-listen")).transpose()?;
    let named = open_named(settings)?;
    let (device, witness) = (settings.disk.as_deref(), settings.witness);
    let mut directory = DataDirectory::open_as(&settings.data, device, witness)?;
    let token = settings.token(directory.record().founding)?;
    // Keys of another node than that of a record which says nothing yet: those of who has asked.
    let known = Identity::read(&directory.identity())?;
    let has_applied = known.is_some_and(|known| known.node != directory.record().node);
    let joins = directory.record().founding && (token.is_some() || has_applied);
    if directory.record().founding && directory.record().is_witness() && !joins {
        directory.abandon();
        return Err(
            "a witness stores nothing and cannot be a cluster by itself; give the token of \
                    the cluster that it is for with --join or --token-file"
                .to_string(),
        );
    }
    let peers = match (settings.listen, named) {
        (Listen::Nowhere, _) if joins => {
            return Err("the other nodes must find a machine that joins at an address; start it \
                        without --listen none"
                .to_string());
        }
        (Listen::Usual, _) if listens(settings, directory.record(), joins) => Some(open_usual()?),
        (_, named) => named,
    };
    let addresses = advertised(settings, peers.as_ref());
    let seeds: Vec<Seed> =
        addresses.iter().filter_map(|address| address.to_string().parse().ok()).collect();
    let identity = belonging::settle(token.as_ref(), &mut directory, &seeds)?;
    let opened = open_in(settings, &directory, &identity);
    let (nbd_unix, admin, media) = match opened {
        Ok(opened) => opened,
        Err(sentence) => {
            let _ = fs::remove_file(directory.nbd_socket());
            let _ = fs::remove_file(directory.admin_socket());
            directory.abandon();
            return Err(sentence);
        }
    };
    let mut nbd = vec![Listener::Unix(mio::net::UnixListener::from_std(nbd_unix))];
    nbd.extend(nbd_tcp.map(|listener| Listener::Tcp(mio::net::TcpListener::from_std(listener))));
    let engine = engine_settings(settings, &directory, &media, (&identity, &addresses))?;
    let (journal, disks) = media;
    let media = std::iter::once(journal).chain(disks.into_iter().flatten()).collect();
    Ok(Opened { nbd, admin, metrics, directory, media, engine, identity, peers })
}

/// Whether this node listens at the usual port: not if it is, and was always, alone.
fn listens(settings: &Settings, record: &Record, joins: bool) -> bool {
    joins || record.joined || record.others || !settings.advertise.is_empty()
}

/// Opens the usual place where other nodes come in. The error is one sentence.
fn open_usual() -> Result<TcpListener, String> {
    belonging::open_usual(PORT_DEFAULT).map_err(|error| {
        format!(
            "cannot listen at port {PORT_DEFAULT}, where other nodes look for this one: {error}; \
             stop who uses it, or choose another address with --listen"
        )
    })
}

/// Opens the place where other nodes come in, if it is named.
fn open_named(settings: &Settings) -> Result<Option<TcpListener>, String> {
    let is_loopback = matches!(settings.listen, Listen::At(at) if at.ip().is_loopback());
    if settings.plain_peers == Plain::Loopback && !is_loopback {
        return Err("--plain-peers loopback needs a loopback address to listen on; give --listen \
                    127.0.0.1:7117, or do without it"
            .to_string());
    }
    match settings.listen {
        Listen::Nowhere if !settings.advertise.is_empty() => {
            Err("--advertise names where other nodes reach this one, and with --listen none they \
                 do not; leave out one of the two"
                .to_string())
        }
        Listen::Nowhere | Listen::Usual => Ok(None),
        Listen::At(address) => belonging::open_listener(address).map(Some),
    }
}

/// Where other nodes reach this one.
fn advertised(settings: &Settings, peers: Option<&TcpListener>) -> Vec<SocketAddr> {
    if !settings.advertise.is_empty() {
        return settings.advertise.clone();
    }
    let listening = peers.and_then(|listener| listener.local_addr().ok());
    let Some(listening) = listening else { return Vec::new() };
    let address = belonging::reachable(listening);
    if address.is_none() {
        tracing::warn!(
            "no address is known at which other nodes reach this machine, and what they know of it \
             stays; name one with --advertise"
        );
    }
    address.into_iter().collect()
}

/// The journal, and each disk of the record, or why it cannot be opened.
type Media = (Medium, Vec<Result<Medium, String>>);

/// Opens what lies in the data directory: the sockets, and the media.
fn open_in(
    settings: &Settings,
    directory: &DataDirectory,
    identity: &Identity,
) -> Result<(UnixListener, UnixListener, Media), String> {
    let nbd = sockets::open_unix(&directory.nbd_socket(), NBD_SOCKET_MODE, settings.socket_group)?;
    let admin = sockets::open_unix(&directory.admin_socket(), ADMIN_SOCKET_MODE, None)?;
    directory.begin()?;
    let keys = directory.identity();
    if !keys.exists() {
        identity.write(&keys).map_err(|error| {
            format!("cannot write {}: {error}; free some space", keys.display())
        })?;
    }
    let how =
        |kind| OpenHow { kind, create: directory.record().founding, direct: settings.direct_io };
    let journal = Medium::open(&directory.journal(), how(MediumKind::File))?;
    let open_disk = |disk: &DiskRecord| {
        directory.check_disk(disk)?;
        Medium::open(&directory.disk(disk), how(disk.kind))
    };
    let listed = &directory.record().disks;
    let disks: Vec<_> = listed.iter().map(open_disk).collect();
    // One that is missing does not keep the others from serving, if there are others that have.
    let mut served = listed.iter().zip(&disks).filter(|(disk, _)| !disk.making);
    if !served.any(|(_, opened)| opened.is_ok())
        && let Some(Err(sentence)) = disks.iter().find(|opened| opened.is_err())
    {
        return Err(sentence.clone());
    }
    if directory.record().founding {
        for medium in std::iter::once(&journal).chain(disks.iter().flatten()) {
            medium.check_allocation()?;
        }
    }
    if !settings.direct_io {
        tracing::warn!(
            "direct I/O is off: data is kept in the page cache too, and reads are not checked \
             against the disk; switch it on when the file system can"
        );
    }
    Ok((nbd, admin, (journal, disks)))
}

fn engine_settings(
    settings: &Settings,
    directory: &DataDirectory,
    (journal, media): &Media,
    (identity, addresses): (&Identity, &[SocketAddr]),
) -> Result<engine::Settings, String> {
    let record = directory.record();
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let options = disk_options(settings);
    let disks = record.disks.iter().zip(media).map(|(disk, medium)| {
        let medium = medium.as_ref().map_err(Clone::clone);
        let known = options.settings(disk, &directory.disk(disk), medium);
        engine::DiskSettings { format: record.founding || disk.making, ..known }
    });
    Ok(engine::Settings {
        cluster: record.cluster,
        node: record.node,
        founding: match (record.founding, record.joined) {
            (false, _) => None,
            (true, false) => Some(Founding::Here),
            (true, true) => Some(Founding::Elsewhere),
        },
        instance: directory::draw()? as u64,
        seed: directory::draw()? as u64,
        addresses: addresses.iter().map(SocketAddr::to_string).collect(),
        seeds: identity.neighbours.iter().map(seeds_of).collect(),
        journal_bytes: journal.bytes(),
        disks: disks.collect(),
        unix_s: since_1970.as_secs(),
        trash_expiry_s: settings.trash_expiry_s,
        trash_grace: settings.trash_grace,
        rebuild_after: settings.rebuild_after,
        boot: boot(),
        version: env!("CARGO_PKG_VERSION").to_string(),
        fill_bytes_per_s: settings.fill_rate,
        partition_bits: PARTITIONS_DEFAULT.trailing_zeros() as u8,
    })
}

fn disk_options(settings: &Settings) -> DiskOptions {
    DiskOptions {
        limit_bytes: settings.limit,
        map_cache_bytes: settings.map_cache,
        scrub_bytes_per_s: settings.scrub_rate,
        log_bytes: settings.log,
        direct: settings.direct_io,
    }
}

/// The kernel's name for the time since the machine was switched on; all zero if it has none, as
/// where /proc is not there.
fn boot() -> [u8; 16] {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
    match u128::from_str_radix(&digits, 16) {
        Ok(number) if digits.len() == 32 => number.to_be_bytes(),
        _ => [0; 16],
    }
}

fn seeds_of(neighbour: &Neighbour) -> (NodeId, Vec<String>) {
    (neighbour.node, neighbour.addresses.iter().map(Seed::to_string).collect())
}

/// What the sockets of other nodes are made of.
fn peers_parts(
    settings: &Settings,
    engine: &engine::Settings,
    identity: Identity,
    listener: Option<TcpListener>,
) -> Result<peers::Parts, String> {
    let credentials = identity.credentials().ok_or("this node was not let in yet")?;
    let Some(member) = identity.membership else { unreachable!("it has credentials") };
    let (cluster, node, instance) = (engine.cluster, engine.node, engine.instance);
    if settings.plain_peers != Plain::No {
        tracing::warn!("links to other nodes are not protected (--plain-peers)");
    }
    Ok(peers::Parts {
        identity: proto::wire::Identity { cluster, node, instance },
        credentials,
        authority: member.authority,
        plain: settings.plain_peers,
        listeners: listener.into_iter().collect(),
    })
}

/// Starts the data thread, serves HTTP and signals beside it, and ends with it.
async fn serve(settings: &Settings, opened: Opened, places: &Places) -> Result<(), String> {
    let cannot = |error: std::io::Error| format!("cannot start: {error}");
    let Opened { nbd, admin, metrics, directory, media, engine, identity, peers } = opened;
    let poll = Poll::new().map_err(cannot)?;
    let parts = peers_parts(settings, &engine, identity, peers)?;
    let peers = Peers::new(parts, poll.registry()).map_err(cannot)?;
    let (asker, commands) = Asker::new(DataThread::waker(&poll).map_err(cannot)?);
    let (ready, mut readied) = oneshot::channel();
    let (end, mut ended) = oneshot::channel();
    let (disk_engine, disk_options) = (settings.disk_engine, disk_options(settings));
    let directory = Arc::new(Mutex::new(directory));
    let for_disks = asker.clone();
    let sources = Sources::new(asker.waker(), settings.nbd_listen);
    let thread = std::thread::Builder::new().name("data".to_string()).spawn(move || {
        let run = || {
            // The ring belongs to the thread that makes it.
            let driver = Driver::new(media, disk_engine)
                .map_err(|error| format!("cannot drive the disks as wanted: {error}"))?;
            let parts = Parts {
                directory,
                settings: engine,
                disk_options,
                asker: for_disks,
                driver,
                poll,
                listeners: nbd,
                commands,
                ready,
                sources,
                peers,
            };
            let data = DataThread::new(parts).map_err(|error| format!("cannot start: {error}"))?;
            data.run()
        };
        // The main thread waits for it until it ends.
        let _ = end.send(run());
    });
    let thread = thread.map_err(cannot)?;

    let admin = tokio::net::UnixListener::from_std(admin).map_err(cannot)?;
    tokio::task::spawn_local(http::serve_unix(admin, http::admin_router(asker.clone())));
    if let Some(metrics) = metrics {
        let metrics = tokio::net::TcpListener::from_std(metrics).map_err(cannot)?;
        tokio::task::spawn_local(http::serve_tcp(metrics, http::watching_router(asker.clone())));
    }

    let mut terminate = signal(SignalKind::terminate()).map_err(cannot)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(cannot)?;
    // Caught and not looked at: neither a closed terminal nor a file size limit ends the process.
    let _hangup = signal(SignalKind::hangup()).map_err(cannot)?;
    let _file_size = signal(SignalKind::from_raw(libc::SIGXFSZ)).map_err(cannot)?;
    let watchdog = tokio::task::spawn_local(systemd::watch(asker.clone()));
    let mut telling = None;
    let mut stopping: Option<Instant> = None;
    notify(&[NotifyState::Status("starting: opening the disk")]);
    let mut waiting = tokio::time::interval(START_NOTICE);
    let deadline = tokio::time::sleep(Duration::MAX);
    tokio::pin!(deadline);
    loop {
        tokio::select! {
            result = &mut ended => {
                watchdog.abort();
                let _ = thread.join();
                if stopping.is_some() {
                    tracing::info!("stopped");
                }
                return result.unwrap_or_else(|_| Err("the data thread is gone".to_string()));
            }
            result = &mut readied, if !readied.is_terminated() => if result.is_ok() {
                tracing::info!("serving {places}");
                notify(&[NotifyState::Ready]);
                telling = Some(tokio::task::spawn_local(systemd::tell(asker.clone())));
            },
            _ = waiting.tick(), if !readied.is_terminated() => {
                let microseconds = 3 * START_NOTICE.as_micros() as u32;
                notify(&[NotifyState::ExtendTimeoutUsec(microseconds)]);
            },
            _ = async {
                tokio::select! { _ = terminate.recv() => (), _ = interrupt.recv() => () }
            } => {
                if let Some(since) = stopping {
                    if since.elapsed() < SECOND_SIGNAL_AFTER {
                        continue;
                    }
                    return Err("told to stop a second time: ended at once, as if killed; nothing \
                                acknowledged is lost".to_string());
                }
                stopping = Some(Instant::now());
                tracing::info!("stopping: finishing what is in flight");
                if let Some(telling) = telling.take() {
                    telling.abort();
                }
                notify(&[
                    NotifyState::Stopping,
                    NotifyState::Status("stopping: finishing what is in flight"),
                ]);
                asker.stop();
                deadline.as_mut().reset(tokio::time::Instant::now() + settings.stop_timeout);
            }
            () = &mut deadline, if stopping.is_some() => {
                return Err(format!(
                    "the clean stop took more than {} s and was given up; nothing acknowledged is \
                     lost, but the next start takes longer (see --stop-timeout)",
                    settings.stop_timeout.as_secs()
                ));
            }
        }
    }
}

/// Many connections need many descriptors; what is allowed at most is taken. With fewer than the
/// daemon itself needs it does not begin.
fn raise_descriptors() -> Result<(), String> {
    let limit = getrlimit(Resource::Nofile);
    let maximum = limit.maximum.unwrap_or(DESCRIPTORS_WANTED);
    let wanted = limit.current.unwrap_or(maximum).max(DESCRIPTORS_WANTED.min(maximum));
    let raised = Rlimit { current: Some(wanted), maximum: limit.maximum };
    if wanted < DESCRIPTORS_MIN {
        return Err(format!(
            "only {wanted} files may be open, and sheep needs {DESCRIPTORS_MIN} for itself; raise \
             LimitNOFILE, or `ulimit -n`"
        ));
    }
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!("cannot raise the number of open files to {wanted}: {error}");
    } else if wanted < DESCRIPTORS_WANTED {
        tracing::warn!(
            "only {wanted} files may be open, {DESCRIPTORS_WANTED} are wanted for many clients; \
             raise LimitNOFILE"
        );
    }
    Ok(())
}

/// Where a daemon can be reached, for the log, and for clearing up.
struct Places {
    nbd: std::path::PathBuf,
    admin: std::path::PathBuf,
    tcp: Vec<(&'static str, std::net::SocketAddr)>,
}

impl Places {
    fn of(opened: &Opened) -> Places {
        // Asked of the sockets: port 0 is whichever the system chose.
        let nbd = opened.nbd.iter().find_map(|listener| match listener {
            Listener::Tcp(listener) => listener.local_addr().ok(),
            Listener::Unix(_) => None,
        });
        let metrics = opened.metrics.as_ref().and_then(|listener| listener.local_addr().ok());
        let peers = opened.peers.as_ref().and_then(|listener| listener.local_addr().ok());
        let listening = [("NBD", nbd), ("metrics", metrics), ("other nodes", peers)];
        Places {
            nbd: opened.directory.nbd_socket(),
            admin: opened.directory.admin_socket(),
            tcp: listening
                .into_iter()
                .filter_map(|(what, address)| Some((what, address?)))
                .collect(),
        }
    }

    fn remove(&self) {
        for path in [&self.nbd, &self.admin] {
            // Not there is as good.
            let _ = fs::remove_file(path);
        }
    }
}

impl std::fmt::Display for Places {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "NBD at {}, administration at {}", self.nbd.display(), self.admin.display())?;
        for (what, address) in &self.tcp {
            write!(f, ", {what} at {address}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_alone_does_not_listen_unless_it_is_told_to() {
        let scratch = tempfile::tempdir().expect("a scratch directory");
        let directory = DataDirectory::open(&scratch.path().join("data"), None).expect("opens");
        let alone = directory.record().clone();
        let none = Settings::of_none();
        assert!(!listens(&none, &alone, false));
        assert!(listens(&none, &alone, true), "it joins");
        assert!(listens(&none, &Record { joined: true, ..alone.clone() }, false));
        assert!(listens(&none, &Record { others: true, ..alone.clone() }, false));
        let address = "192.0.2.1:7117".parse().expect("an address");
        let advertising = Settings { advertise: vec![address], ..none };
        assert!(listens(&advertising, &alone, false));
        let nowhere = Settings { listen: Listen::Nowhere, ..advertising };
        assert!(open_named(&nowhere).expect_err("both").contains("leave out one of the two"));
    }
}
