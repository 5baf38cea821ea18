//! Who is at the other end, and so what people are told about it: `dog` ends with a sentence, the
//! source of a volume is waited for, and a few words say why.

use super::wire::error_sentence;
use proto::limits::{SOURCE_CONNECT_MS_MAX, SOURCE_SILENT_MS_MAX};
use std::{fmt, io, time::Duration};

/// How long the daemon may take to accept, to greet and to answer what needs no work.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long it may take over attaching and letting go: both settle what was begun on the volume.
const SETTLE_PATIENCE: Duration = Duration::from_secs(60);

/// Who is at the other end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Peer {
    /// The daemon of this machine.
    Daemon,
    /// A server anywhere, which somebody else runs.
    Source,
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Peer::Daemon => "the daemon",
            Peer::Source => "it",
        })
    }
}

impl Peer {
    /// How long connecting and each step of greeting may take.
    pub fn patience(self) -> Duration {
        match self {
            Peer::Daemon => PATIENCE,
            Peer::Source => Duration::from_millis(SOURCE_CONNECT_MS_MAX),
        }
    }

    /// How long the last step of it may, and the goodbye.
    pub fn settle_patience(self) -> Duration {
        match self {
            Peer::Daemon => SETTLE_PATIENCE,
            Peer::Source => Duration::from_millis(SOURCE_CONNECT_MS_MAX),
        }
    }

    /// How long it may send nothing while something is asked of it, if that is not for ever: the
    /// daemon says itself what it waits for.
    pub fn silence(self) -> Option<Duration> {
        match self {
            Peer::Daemon => None,
            Peer::Source => Some(Duration::from_millis(SOURCE_SILENT_MS_MAX)),
        }
    }

    /// It keeps us waiting.
    pub(super) fn hanging(self) -> String {
        match self {
            Peer::Daemon => {
                "the daemon does not answer on its NBD socket: it hangs or has far \
                             too much to do; look at `dog status` and its log"
            }
            Peer::Source => "it does not answer",
        }
        .to_string()
    }

    /// The connection failed.
    pub(super) fn broken(self, error: &io::Error) -> String {
        match self {
            Peer::Daemon => format!("the connection to the daemon failed: {error}; try again"),
            Peer::Source => error.to_string(),
        }
    }

    /// It ended while something was in flight.
    pub(super) fn ended(self, what: &str) -> String {
        match self {
            Peer::Daemon => format!(
                "the connection to the daemon ended: {what}; look at `dog status` and the \
                 daemon's log"
            ),
            Peer::Source => what.to_string(),
        }
    }

    /// It ended during the handshake.
    pub(super) fn closed_early(self) -> String {
        match self {
            Peer::Daemon => {
                "the daemon closed the connection before the volume was attached; \
                             look at its log"
            }
            Peer::Source => "it closed the connection before it had named its export",
        }
        .to_string()
    }

    /// What it sent makes no sense.
    pub(super) fn sent_nonsense(self, what: &str) -> String {
        match self {
            Peer::Daemon => format!(
                "the daemon sent nonsense ({what}); install the same version of sheep and dog"
            ),
            Peer::Source => format!("it sent nonsense: {what}"),
        }
    }

    /// Likewise, from the beginning.
    pub(super) fn speaks_nonsense(self, what: &str) -> String {
        match self {
            Peer::Daemon => format!(
                "what listens there does not speak NBD as sheep does ({what}); check the socket's \
                 path"
            ),
            Peer::Source => format!("it does not speak NBD as it should: {what}"),
        }
    }

    /// There is no such export; the server's own words, if it has some.
    pub(super) fn unknown(self, name: &str, words: &str) -> String {
        match self {
            Peer::Daemon if words.is_empty() => {
                format!("there is no volume `{name}`; `dog volume list` shows those that exist")
            }
            Peer::Daemon => words.to_string(),
            Peer::Source if words.is_empty() => format!("it has no export named {name:?}"),
            Peer::Source => format!("it has no export named {name:?}: {words}"),
        }
    }

    /// It is not to be had.
    pub(super) fn in_use(self, name: &str) -> String {
        match self {
            Peer::Daemon => {
                format!("volume `{name}` is in use; `dog volume info {name}` shows by whom")
            }
            Peer::Source => format!("it does not give export {name:?} to us"),
        }
    }

    /// One request failed.
    pub(super) fn request_failed(self, code: u32) -> String {
        match (self, code) {
            (Peer::Daemon, _) => error_sentence(code),
            (Peer::Source, 5) => "it has an I/O error there".to_string(),
            (Peer::Source, _) => format!("it refuses a request (NBD error {code})"),
        }
    }

    /// Some other refusal.
    pub(super) fn refused(self, name: &str, code: u32) -> String {
        match self {
            Peer::Daemon => format!(
                "the daemon refused to attach volume `{name}` (error {code}); look at its log"
            ),
            Peer::Source => format!("it refuses export {name:?} (error {code})"),
        }
    }
}
