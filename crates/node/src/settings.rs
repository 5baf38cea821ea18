//! Every setting of `sheep`, defined once: flag, environment variable, key of the configuration
//! file, default, limit and documentation come from [`SETTINGS`]. A flag wins over the environment,
//! that over the file.

use crate::{
    api,
    disk::Performer,
    identity::{TokenText, is_open_to_others},
    size::Size,
    span::Span,
};
use clap::{Arg, ArgAction, Command, error::ErrorKind};
use proto::limits::{MAP_CACHE_BYTES_MIN, NODE_ADDRESSES_MAX, STEWARD_MOMENT_MS, TRASH_KEEP_S_MAX};
use std::{
    ffi::OsString,
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    str::FromStr,
    time::Duration,
};

/// The configuration file that is read if it is there and no other is named.
pub const CONFIG_FILE_DEFAULT: &str = "/etc/sheepdog/sheep.toml";
/// The name of the setting that names the configuration file, which cannot stand in that file.
const CONFIG: &str = "config";
/// The names of those that say which cluster to join.
const JOIN: &str = "join";
const TOKEN_FILE: &str = "token-file";
/// The name of the one that makes a witness: as a flag it may stand alone.
const WITNESS: &str = "witness";
/// What the names of our environment variables begin with.
const VARIABLES: &str = "SHEEP_";
/// Longest configuration file that is read, in bytes.
const CONFIG_BYTES_MAX: u64 = 1 << 20;

/// What a daemon is started with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The data directory.
    pub data: PathBuf,
    /// The raw device that holds the data; nothing: a file in the data directory, or the device
    /// the node was made with.
    pub disk: Option<PathBuf>,
    /// How much of the disk may be used, in bytes.
    pub limit: Option<u64>,
    /// The size of a new disk's log, in bytes.
    pub log: Option<u64>,
    /// Bytes for cached map pages.
    pub map_cache: usize,
    /// Scrub rate in bytes a second; 0 is off.
    pub scrub_rate: u64,
    /// The group that may use the NBD socket.
    pub socket_group: Option<u32>,
    /// The loopback address that serves NBD.
    pub nbd_listen: Option<SocketAddr>,
    /// The loopback address that serves health and metrics.
    pub metrics_listen: Option<SocketAddr>,
    /// Whether disks are driven past the page cache.
    pub direct_io: bool,
    /// How disks are driven.
    pub disk_engine: Performer,
    /// How long a clean stop may take.
    pub stop_timeout: Duration,
    /// The least important events that are logged.
    pub log_level: tracing::Level,
    /// How long deleted volumes are kept in the trash unless told otherwise, in seconds; 0: not at
    /// all.
    pub trash_expiry_s: u64,
    /// How long after the start nothing goes from the trash because it has expired.
    pub trash_grace: Duration,
    /// How long a disk may be away before what it holds is built anew on others.
    pub rebuild_after: Duration,
    /// How many bytes a second are copied into a volume that is filled, flattened or shortened; 0:
    /// no bound.
    pub fill_rate: u64,
    /// Where other nodes come in.
    pub listen: Listen,
    /// Where other nodes reach this one, the best first; nothing: found out.
    pub advertise: Vec<SocketAddr>,
    /// The token of the cluster to join.
    pub join: Option<TokenText>,
    /// Where that token stands, if not in `join`.
    pub token_file: Option<PathBuf>,
    /// Whether links to other nodes do without TLS.
    pub plain_peers: Plain,
    /// Whether the node is to be a witness; nothing: what it is.
    pub witness: Option<bool>,
}

/// Where other nodes come in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listen {
    /// At all addresses, on the port that all nodes use, if there are others; else not at all.
    Usual,
    /// Nowhere.
    Nowhere,
    /// Here.
    At(SocketAddr),
}

/// Whether links to other nodes do without TLS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plain {
    /// Never.
    No,
    /// On this machine.
    Loopback,
    /// Everywhere: whoever is on a network between nodes reads and changes all data.
    Everywhere,
}

/// One setting.
pub struct Setting {
    /// The flag without dashes. With `_` for `-` the key in the configuration file, and in capital
    /// letters behind `SHEEP_` the environment variable.
    pub name: &'static str,
    /// What the value is, in help: a placeholder.
    pub value: &'static str,
    /// The value unless another is given; empty: none.
    pub default: &'static str,
    /// What values are taken, for people.
    pub limit: &'static str,
    /// What it does, for people: whole sentences.
    pub doc: &'static str,
    /// Only for tests: works like the others, but no help mentions it.
    pub hidden: bool,
    take: fn(&mut Settings, &str) -> Result<(), String>,
}

impl Setting {
    /// The environment variable.
    pub fn variable(&self) -> String {
        format!("{VARIABLES}{}", self.key().to_ascii_uppercase())
    }

    /// The key in the configuration file.
    pub fn key(&self) -> String {
        self.name.replace('-', "_")
    }
}

/// All settings, in the order in which help shows them.
pub const SETTINGS: &[Setting] = &[
    Setting {
        name: "data",
        value: "DIR",
        default: api::DATA_DIRECTORY_DEFAULT,
        limit: "a path short enough for sockets in it: 96 bytes",
        doc: "The data directory: identity, sockets and, unless --disk names a device, all data. \
              It is made if it is not there.",
        hidden: false,
        take: |settings, text| {
            settings.data = PathBuf::from(non_empty(text)?);
            Ok(())
        },
    },
    Setting {
        name: CONFIG,
        value: "FILE",
        default: "",
        limit: "a TOML file",
        doc: "The configuration file, with these settings as keys (`-` becomes `_`). Unless named, \
              /etc/sheepdog/sheep.toml is read if it is there.",
        hidden: false,
        // It is looked at before all others; here there is nothing left to do.
        take: |_, _| Ok(()),
    },
    Setting {
        name: "disk",
        value: "DEVICE",
        default: "",
        limit: "a block device, blank when the node is made",
        doc: "Keep the data on this raw device instead of a file in the data directory. A node \
              that was made with a device finds it again by itself, unless its name changed.",
        hidden: false,
        take: |settings, text| {
            settings.disk = Some(PathBuf::from(non_empty(text)?));
            Ok(())
        },
    },
    Setting {
        name: "limit",
        value: "SIZE",
        default: "",
        limit: "bytes, or a number with K, M, G or T",
        doc: "How much of the file system or device may be used for data. Without it, all.",
        hidden: false,
        take: |settings, text| {
            settings.limit = Some(positive(parse::<Size>(text)?)?);
            Ok(())
        },
    },
    Setting {
        name: "disk-log",
        value: "SIZE",
        default: "",
        limit: "bytes, or a number with K, M, G or T",
        doc: "The size of the write-ahead log of a disk that is made now; an existing disk keeps \
              its own. Without it, chosen by the size of the disk.",
        hidden: false,
        take: |settings, text| {
            settings.log = Some(positive(parse::<Size>(text)?)?);
            Ok(())
        },
    },
    Setting {
        name: "map-cache",
        value: "SIZE",
        default: "256M",
        limit: "at least 4M",
        doc: "Memory for the maps that tell where blocks lie. About 4 MiB per GiB of data in use \
              keep all of it in memory.",
        hidden: false,
        take: |settings, text| {
            let bytes = parse::<Size>(text)?.0;
            if bytes < MAP_CACHE_BYTES_MIN as u64 {
                return Err(format!("must be at least {}", Size(MAP_CACHE_BYTES_MIN as u64)));
            }
            settings.map_cache = usize::try_from(bytes).map_err(|e| e.to_string())?;
            Ok(())
        },
    },
    Setting {
        name: "scrub-rate",
        value: "SIZE",
        default: "8M",
        limit: "bytes a second; 0 is off",
        doc: "How much is read each second to find damage on the disk before it is needed.",
        hidden: false,
        take: |settings, text| {
            settings.scrub_rate = parse::<Size>(text)?.0;
            Ok(())
        },
    },
    Setting {
        name: "socket-group",
        value: "GROUP",
        default: "",
        limit: "a name in /etc/group, or a number",
        doc: "The group whose members may attach volumes through the NBD socket, for example the \
              one QEMU runs as. Without it, the group of the daemon.",
        hidden: false,
        take: |settings, text| {
            settings.socket_group = Some(parse_group(non_empty(text)?)?);
            Ok(())
        },
    },
    Setting {
        name: "nbd-listen",
        value: "ADDRESS:PORT",
        default: "",
        limit: "a loopback address",
        doc: "Serve NBD on TCP too. Only loopback addresses, as there is no TLS yet.",
        hidden: false,
        take: |settings, text| {
            settings.nbd_listen = Some(parse_loopback(text)?);
            Ok(())
        },
    },
    Setting {
        name: "metrics-listen",
        value: "ADDRESS:PORT",
        default: "",
        limit: "a loopback address",
        doc: "Serve /health and /metrics (Prometheus) on TCP too. Only loopback addresses, as \
              there is no TLS yet.",
        hidden: false,
        take: |settings, text| {
            settings.metrics_listen = Some(parse_loopback(text)?);
            Ok(())
        },
    },
    Setting {
        name: "direct-io",
        value: "on|off",
        default: "on",
        limit: "on or off",
        doc: "Drive disks past the page cache. Off is only for file systems that cannot: slower, \
              and data is then twice in memory.",
        hidden: false,
        take: |settings, text| {
            settings.direct_io = parse_switch(text)?;
            Ok(())
        },
    },
    Setting {
        name: "disk-engine",
        value: "ENGINE",
        default: "auto",
        limit: "auto, uring or threads",
        doc: "How disks are driven: by io_uring where it is allowed, or by threads.",
        hidden: false,
        take: |settings, text| {
            settings.disk_engine = match text {
                "auto" => Performer::Auto,
                "uring" => Performer::Ring,
                "threads" => Performer::Threads,
                _ => return Err("must be auto, uring or threads".to_string()),
            };
            Ok(())
        },
    },
    Setting {
        name: "stop-timeout",
        value: "SECONDS",
        default: "60",
        limit: "1 to 3600",
        doc: "How long a clean stop may take before the program ends as if it were killed, which \
              loses nothing but makes the next start longer.",
        hidden: false,
        take: |settings, text| {
            let seconds: u64 = text.parse().map_err(|_| "must be a number of seconds")?;
            if !(1..=3600).contains(&seconds) {
                return Err("must be from 1 to 3600 seconds".to_string());
            }
            settings.stop_timeout = Duration::from_secs(seconds);
            Ok(())
        },
    },
    Setting {
        name: "log-level",
        value: "LEVEL",
        default: "info",
        limit: "error, warn, info, debug or trace",
        doc: "The least important events that are logged to standard error.",
        hidden: false,
        take: |settings, text| {
            settings.log_level = tracing::Level::from_str(text)
                .ok()
                .filter(|_| text.parse::<u8>().is_err())
                .ok_or("must be error, warn, info, debug or trace")?;
            Ok(())
        },
    },
    Setting {
        name: "trash-expiry",
        value: "TIME",
        default: "24h",
        limit: "a number with s, m, h, d or w; 10 years at most; 0 is off",
        doc: "How long a deleted volume is kept in the trash, from which it can be taken out, \
              unless `dog volume delete` says otherwise. 0 switches the trash off: what is \
              deleted is gone.",
        hidden: false,
        take: |settings, text| {
            let seconds = parse::<Span>(text)?.seconds();
            if seconds > TRASH_KEEP_S_MAX {
                return Err(format!("must be at most {}", Span::of_seconds(TRASH_KEEP_S_MAX)));
            }
            settings.trash_expiry_s = seconds;
            Ok(())
        },
    },
    Setting {
        name: "trash-grace",
        value: "TIME",
        default: "10m",
        limit: "a number with s, m, h, d or w, or 0",
        doc: "For tests: how long after the start nothing goes from the trash because it has \
              expired.",
        hidden: true,
        take: |settings, text| {
            settings.trash_grace = parse::<Span>(text)?.duration();
            Ok(())
        },
    },
    Setting {
        name: "rebuild-after",
        value: "TIME",
        default: "10m",
        limit: "a number with s, m, h, d or w; at least 6s",
        doc: "How long a disk or a machine may be away before its copies are made anew on other \
              disks, where there are such. What returns earlier only gets what it has missed. \
              The node that leads the cluster goes by its own setting: give all the same.",
        hidden: false,
        take: |settings, text| {
            let span = parse::<Span>(text)?;
            // Until then it is not even left out.
            if span.milliseconds() <= STEWARD_MOMENT_MS {
                return Err("must be at least 6s".to_string());
            }
            settings.rebuild_after = span.duration();
            Ok(())
        },
    },
    Setting {
        name: "fill-rate",
        value: "SIZE",
        default: "100M",
        limit: "bytes a second; 0 is as fast as it goes",
        doc: "How much is copied each second, in the background, into each volume that is filled \
              from a source, flattened, or shortened.",
        hidden: false,
        take: |settings, text| {
            settings.fill_rate = parse::<Size>(text)?.0;
            Ok(())
        },
    },
    Setting {
        name: "listen",
        value: "ADDRESS:PORT",
        default: "",
        limit: "an address, or none",
        doc: "Where other nodes of the cluster, and machines that want to join it, come in: with \
              TLS and a certificate or a token. Without it, all addresses with port 7117 for a \
              node that joins, has --advertise, or has had other nodes; a node that is alone \
              does not listen.",
        hidden: false,
        take: |settings, text| {
            settings.listen = parse_listen(text)?;
            Ok(())
        },
    },
    Setting {
        name: "advertise",
        value: "ADDRESS:PORT,...",
        default: "",
        limit: "at most 4 addresses",
        doc: "Where other nodes reach this one, the best first. Without it, the address that \
              --listen names, or that of the way out of this machine.",
        hidden: false,
        take: |settings, text| {
            settings.advertise = parse_advertise(text)?;
            Ok(())
        },
    },
    Setting {
        name: JOIN,
        value: "TOKEN",
        default: "",
        limit: "what `dog cluster token` prints",
        doc: "Join the cluster that the token is for, with a new data directory. Later starts need \
              it no more, and it does no harm. Other users of this machine can see it in the list \
              of processes: --token-file hides it.",
        hidden: false,
        take: |settings, text| {
            settings.join = Some(TokenText::parse(text)?);
            Ok(())
        },
    },
    Setting {
        name: TOKEN_FILE,
        value: "FILE",
        default: "",
        limit: "a file with what `dog cluster token` prints",
        doc: "Join with the token in this file, which only its owner may read. It is read while \
              the machine is no node yet. --join goes before it at the same place.",
        hidden: false,
        take: |settings, text| {
            settings.token_file = Some(PathBuf::from(non_empty(text)?));
            Ok(())
        },
    },
    Setting {
        name: "plain-peers",
        value: "WHERE",
        default: "",
        limit: "loopback, or anybody-on-the-network-may-read-and-write-all-data",
        doc: "Do without TLS between nodes: for measurements on one machine, or, if it is said at \
              length, everywhere. Machines still join with TLS.",
        hidden: false,
        take: |settings, text| {
            settings.plain_peers = match text {
                PLAIN_LOOPBACK => Plain::Loopback,
                PLAIN_EVERYWHERE => Plain::Everywhere,
                _ => {
                    return Err(format!("is none of {PLAIN_LOOPBACK} and {PLAIN_EVERYWHERE}"));
                }
            };
            Ok(())
        },
    },
    Setting {
        name: WITNESS,
        value: "on|off",
        default: "",
        limit: "on, which may be left out, or off",
        doc: "Join as a witness: a node that votes and stores no data, so that of two others with \
              disks one may die. Later starts need it no more, and it does no harm.",
        hidden: false,
        take: |settings, text| {
            settings.witness = Some(parse_switch(text)?);
            Ok(())
        },
    },
];

/// Why there are no settings to start with.
#[derive(Debug)]
pub enum Stop {
    /// Help or the version was asked for: print this and end well.
    Print(String),
    /// Something is wrong: one sentence with cause and remedy; exit code 2.
    Usage(String),
}

impl Settings {
    /// The defaults of [`SETTINGS`].
    fn defaults() -> Settings {
        let mut settings = Settings {
            data: PathBuf::new(),
            disk: None,
            limit: None,
            log: None,
            map_cache: 0,
            scrub_rate: 0,
            socket_group: None,
            nbd_listen: None,
            metrics_listen: None,
            direct_io: true,
            disk_engine: Performer::Auto,
            stop_timeout: Duration::ZERO,
            log_level: tracing::Level::INFO,
            trash_expiry_s: 0,
            trash_grace: Duration::ZERO,
            rebuild_after: Duration::ZERO,
            fill_rate: 0,
            listen: Listen::Usual,
            advertise: Vec::new(),
            join: None,
            token_file: None,
            plain_peers: Plain::No,
            witness: None,
        };
        for setting in SETTINGS.iter().filter(|setting| !setting.default.is_empty()) {
            (setting.take)(&mut settings, setting.default).expect("defaults are right");
        }
        settings
    }

    /// As if nothing was said.
    #[cfg(test)]
    pub(crate) fn of_none() -> Settings {
        Settings::defaults()
    }

    /// The settings of this process: its arguments (with the program's name first), environment
    /// and configuration file.
    pub fn of_process() -> Result<Settings, Stop> {
        Settings::gather(
            std::env::args_os().collect(),
            &std::env::vars_os().collect::<Vec<_>>(),
            Path::new(CONFIG_FILE_DEFAULT),
        )
    }

    /// The settings from these sources.
    fn gather(
        arguments: Vec<OsString>,
        variables: &[(OsString, OsString)],
        default_file: &Path,
    ) -> Result<Settings, Stop> {
        let matches = command().try_get_matches_from(arguments).map_err(|e| stop_of(&e))?;
        refuse_unknown(variables).map_err(Stop::Usage)?;
        let variable = |name: &str| {
            variables.iter().find(|(found, _)| found == name).map(|(_, value)| value.clone())
        };
        let flag = |setting: &Setting| matches.get_one::<OsString>(setting.name).cloned();
        let config = SETTINGS.iter().find(|setting| setting.name == CONFIG).expect("is a setting");
        let named = flag(config).or_else(|| variable(&config.variable())).map(PathBuf::from);
        let file = named.as_deref().unwrap_or(default_file);
        let keys = read_file(file, named.is_some()).map_err(Stop::Usage)?;

        let mut settings = Settings::defaults();
        // Where the two settings come from that mean the same: the smaller number wins.
        let (mut join_from, mut file_from) = (usize::MAX, usize::MAX);
        for setting in SETTINGS {
            let (key, name) = (setting.key(), setting.variable());
            let given = if let Some(value) = flag(setting) {
                Some((value, format!("--{}", setting.name), 0))
            } else if let Some(value) = variable(&name) {
                Some((value, format!("environment variable {name}"), 1))
            } else {
                let value = keys.iter().find(|(found, _)| *found == key);
                value.map(|(_, value)| (value.into(), format!("{key} in {}", file.display()), 2))
            };
            let Some((value, place, from)) = given else { continue };
            let text = value.to_str().ok_or_else(|| {
                Stop::Usage(format!("{place} is not UTF-8 text; write it in UTF-8"))
            })?;
            (setting.take)(&mut settings, text).map_err(|error| match setting.name {
                // A secret, or most of one: not for logs.
                JOIN => Stop::Usage(format!("{place}: what it holds {error}")),
                _ => Stop::Usage(format!("{place}: `{text}` {error}")),
            })?;
            match setting.name {
                JOIN => join_from = from,
                TOKEN_FILE => file_from = from,
                _ => {}
            }
        }
        if join_from <= file_from {
            settings.token_file = None;
        } else {
            settings.join = None;
        }
        Ok(settings)
    }
}

impl Settings {
    /// The token of the cluster to join, if there is to be one. Its file is read only where it is
    /// needed: a node that has joined starts without. The error is one sentence.
    pub fn token(&self, is_needed: bool) -> Result<Option<TokenText>, String> {
        match (&self.join, &self.token_file) {
            (Some(token), _) => Ok(Some(token.clone())),
            (None, Some(path)) if is_needed => {
                let read = read_token(path);
                read.map(Some).map_err(|what| format!("--token-file: {} {what}", path.display()))
            }
            (None, _) => Ok(None),
        }
    }
}

impl Plain {
    /// Whether a link to this address does without TLS.
    pub fn is_for(self, address: IpAddr) -> bool {
        match self {
            Plain::No => false,
            Plain::Loopback => address.is_loopback(),
            Plain::Everywhere => true,
        }
    }
}

/// What the values of `--plain-peers` are.
const PLAIN_LOOPBACK: &str = "loopback";
const PLAIN_EVERYWHERE: &str = "anybody-on-the-network-may-read-and-write-all-data";

fn parse_listen(text: &str) -> Result<Listen, String> {
    if text == "none" {
        return Ok(Listen::Nowhere);
    }
    text.parse().map(Listen::At).map_err(|_| {
        "is no address with port; write it like 192.0.2.7:7117 or [::]:7117, or none".to_string()
    })
}

fn parse_advertise(text: &str) -> Result<Vec<SocketAddr>, String> {
    let one = |text: &str| {
        let address = text.trim().parse().ok();
        let fits = |address: &SocketAddr| !address.ip().is_unspecified() && address.port() != 0;
        address.filter(fits).ok_or_else(|| {
            "holds no address with port that others could reach; write it like 192.0.2.7:7117, \
             several with commas between them"
                .to_string()
        })
    };
    let addresses: Vec<SocketAddr> = text.split(',').map(one).collect::<Result<_, _>>()?;
    if addresses.len() > NODE_ADDRESSES_MAX {
        return Err(format!("holds more than {NODE_ADDRESSES_MAX} addresses; give the best ones"));
    }
    Ok(addresses)
}

fn read_token(path: &Path) -> Result<TokenText, String> {
    let cannot = |what: String| format!("cannot be read: {what}; check the path and its rights");
    let metadata = std::fs::metadata(path).map_err(|error| cannot(error.to_string()))?;
    if metadata.len() > CONFIG_BYTES_MAX {
        return Err(cannot("it is too long for a token".to_string()));
    }
    if is_open_to_others(&metadata) {
        let shown = path.display();
        return Err(format!("can be read by others; run `chmod 600 {shown}`, or make a new token"));
    }
    let text = std::fs::read_to_string(path).map_err(|error| cannot(error.to_string()))?;
    TokenText::parse(&text).map_err(|what| format!("holds something that {what}"))
}

/// The command line, for help, manual page and completions.
pub fn command() -> Command {
    let mut command = Command::new("sheep")
        .version(env!("CARGO_PKG_VERSION"))
        .about("Serves block volumes to virtual machines from the disks of this machine.")
        .after_help(AFTER_HELP)
        .override_usage("sheep [--data DIR] [OPTIONS]")
        .max_term_width(100);
    for setting in SETTINGS {
        let default = match setting.default {
            "" => String::new(),
            default => format!("; default {default}"),
        };
        let help = format!("{} [{}{default}]", setting.doc, setting.limit);
        let mut argument = Arg::new(setting.name)
            .long(setting.name)
            .value_name(setting.value)
            .value_parser(clap::value_parser!(OsString))
            .action(ArgAction::Set)
            .hide(setting.hidden)
            .help(help);
        if setting.name == WITNESS {
            argument = argument.num_args(0..=1).default_missing_value("on");
        }
        command = command.arg(argument);
    }
    command
}

const AFTER_HELP: &str = "\
Each option can also be given by an environment variable (--nbd-listen: SHEEP_NBD_LISTEN) or a key \
of the configuration file (nbd_listen); a flag wins over the environment, and that over the file.

In the data directory, nbd.sock is where QEMU attaches volumes (`dog volume attach NAME` prints \
how), and admin.sock is where `dog` manages the node; the latter is for the daemon's user only.

Exit codes: 0 stopped cleanly, 1 failed (the last line of the log says why), 2 wrong usage.";

/// What clap found, as one sentence or as the text that was asked for.
fn stop_of(error: &clap::Error) -> Stop {
    if matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion) {
        return Stop::Print(error.to_string());
    }
    let text = error.to_string();
    let first = text.lines().next().unwrap_or_default();
    let first = first.strip_prefix("error: ").unwrap_or(first);
    Stop::Usage(format!("{first}; see `sheep --help`"))
}

/// Refuses a variable that looks like one of ours and is none: a slip of the pen would be a setting
/// that is not there.
fn refuse_unknown(variables: &[(OsString, OsString)]) -> Result<(), String> {
    let ours = variables.iter().map(|(name, _)| name.to_string_lossy());
    for name in ours.filter(|name| name.starts_with(VARIABLES)) {
        if !SETTINGS.iter().any(|setting| setting.variable() == name) {
            let known: Vec<String> = SETTINGS.iter().map(Setting::variable).collect();
            return Err(format!(
                "unknown environment variable {name}; unset it or mend its name, known are {}",
                known.join(", ")
            ));
        }
    }
    Ok(())
}

/// The keys of the configuration file with their values as text.
fn read_file(path: &Path, must_exist: bool) -> Result<Vec<(String, String)>, String> {
    let shown = path.display();
    let text = match std::fs::metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && !must_exist => {
            return Ok(Vec::new());
        }
        Ok(metadata) if metadata.len() > CONFIG_BYTES_MAX => {
            return Err(format!("{shown} is too long for a configuration; name another file"));
        }
        _ => std::fs::read_to_string(path).map_err(|error| {
            format!("cannot read the configuration {shown}: {error}; mend or move it")
        })?,
    };
    let table: toml::Table = text.parse().map_err(|error: toml::de::Error| {
        let line = error.span().map_or(1, |span| 1 + text[..span.start].matches('\n').count());
        format!("{shown}, line {line}: {}; mend the TOML", error.message().replace('\n', " "))
    })?;
    table
        .into_iter()
        .map(|(key, value)| Ok((known(&key, path)?, text_of(&key, &value, path)?)))
        .collect()
}

/// The key, if it is one of a setting that may stand in a file.
fn known(key: &str, path: &Path) -> Result<String, String> {
    let keys = || SETTINGS.iter().filter(|setting| setting.name != CONFIG).map(Setting::key);
    if keys().any(|known| known == key) {
        return Ok(key.to_string());
    }
    Err(format!(
        "unknown key `{key}` in {}; known are {}",
        path.display(),
        keys().collect::<Vec<_>>().join(", ")
    ))
}

fn text_of(key: &str, value: &toml::Value, path: &Path) -> Result<String, String> {
    match value {
        toml::Value::String(text) => Ok(text.clone()),
        toml::Value::Integer(number) => Ok(number.to_string()),
        toml::Value::Boolean(truth) => Ok(if *truth { "on" } else { "off" }.to_string()),
        _ => Err(format!(
            "{key} in {} is of type {}; write a text, a number or true or false",
            path.display(),
            value.type_str()
        )),
    }
}

fn parse<T: FromStr<Err: ToString>>(text: &str) -> Result<T, String> {
    text.parse().map_err(|error: T::Err| format!("is wrong: {}", error.to_string()))
}

fn positive(size: Size) -> Result<u64, String> {
    if size.0 == 0 { Err("must be more than nothing".to_string()) } else { Ok(size.0) }
}

fn non_empty(text: &str) -> Result<&str, String> {
    if text.is_empty() { Err("must not be empty".to_string()) } else { Ok(text) }
}

fn parse_switch(text: &str) -> Result<bool, String> {
    match text {
        "on" | "true" | "yes" => Ok(true),
        "off" | "false" | "no" => Ok(false),
        _ => Err("must be on or off".to_string()),
    }
}

fn parse_loopback(text: &str) -> Result<SocketAddr, String> {
    let address: SocketAddr = text
        .parse()
        .map_err(|_| "is no address with port; write it like 127.0.0.1:10809".to_string())?;
    if address.ip().is_loopback() {
        return Ok(address);
    }
    Err("is not a loopback address, and there is no TLS yet to protect others; use 127.0.0.1 or \
         [::1], and a tunnel to reach it from other machines"
        .to_string())
}

/// A group's number, from its name in /etc/group or the number itself.
fn parse_group(text: &str) -> Result<u32, String> {
    if let Ok(number) = text.parse() {
        return Ok(number);
    }
    let groups = std::fs::read_to_string("/etc/group")
        .map_err(|error| format!("cannot be looked up in /etc/group: {error}; give its number"))?;
    let mut rows = groups.lines().map(|line| line.split(':'));
    rows.find_map(|mut fields| {
        (fields.next() == Some(text)).then(|| fields.nth(1)?.parse().ok()).flatten()
    })
    .ok_or_else(|| "is no group in /etc/group; make it with groupadd, or give a number".to_string())
}

#[cfg(test)]
mod tests;
