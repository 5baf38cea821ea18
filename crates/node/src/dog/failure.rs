//! Why a command of `dog` failed, and the exit code that says so to scripts.

use crate::nbd_client::NbdError;
use crate::{client::ClientError, size::SizeError};
use engine::admin::AdminErrorKind;
use serde::Serialize;

/// What a script learns from the exit code. 0 is success; clap itself uses 2 as we do.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    /// It did not work: the daemon does not run, a disk or file failed, the connection broke.
    Failed,
    /// The command makes no sense as it stands.
    Usage,
    /// What was named does not exist.
    NotFound,
    /// It exists, is in use, or would destroy something without having been told to.
    Conflict,
    /// There are as many of them as there may be.
    LimitReached,
    /// Somebody pressed Ctrl-C.
    Interrupted,
}

impl FailureKind {
    /// The process's exit code.
    pub fn exit_code(self) -> u8 {
        match self {
            FailureKind::Failed => 1,
            FailureKind::Usage => 2,
            FailureKind::NotFound => 3,
            FailureKind::Conflict => 4,
            FailureKind::LimitReached => 5,
            FailureKind::Interrupted => 130,
        }
    }
}

/// The exit code of `dog cluster status` and `dog status` when something is at risk or waited for:
/// the command did what it should, and scripts can tell that from a command that failed.
pub const AT_RISK_EXIT_CODE: u8 = 6;

/// For `--help`: the codes of [`FailureKind::exit_code`], and [`AT_RISK_EXIT_CODE`].
pub const EXIT_CODES_HELP: &str = "\
Exit codes:
    0  done
    1  failed: the daemon does not run, a disk or file failed, the connection broke
    2  usage: the command makes no sense as it stands
    3  not found: what was named does not exist
    4  conflict: it exists, is in use, or would destroy something without being told to
    5  limit reached: there are as many of them as there may be
    6  at risk: the cluster has warnings, such as copies that are missing (`dog cluster status`)
  130  interrupted by Ctrl-C or a signal";

/// One sentence with cause and remedy, and its kind.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error, Serialize)]
#[error("{sentence}")]
pub struct Failure {
    /// For scripts.
    pub kind: FailureKind,
    /// For people.
    pub sentence: String,
}

impl Failure {
    /// It did not work.
    pub fn failed(sentence: impl Into<String>) -> Failure {
        Failure { kind: FailureKind::Failed, sentence: sentence.into() }
    }

    /// The command makes no sense.
    pub fn usage(sentence: impl Into<String>) -> Failure {
        Failure { kind: FailureKind::Usage, sentence: sentence.into() }
    }

    /// What was named does not exist.
    pub fn not_found(sentence: impl Into<String>) -> Failure {
        Failure { kind: FailureKind::NotFound, sentence: sentence.into() }
    }

    /// It is in the way of something.
    pub fn conflict(sentence: impl Into<String>) -> Failure {
        Failure { kind: FailureKind::Conflict, sentence: sentence.into() }
    }

    /// Ctrl-C; the sentence says what was left behind.
    pub fn interrupted(sentence: impl Into<String>) -> Failure {
        Failure { kind: FailureKind::Interrupted, sentence: sentence.into() }
    }

    /// The daemon answered with something that does not belong to the question.
    pub fn mismatch() -> Failure {
        Failure::failed(
            "the daemon's answer does not belong to the question; install the same version of \
             sheep and dog",
        )
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Failure {
        let kind = match &error {
            ClientError::Refused(refused) => match refused.kind {
                AdminErrorKind::NotFound => FailureKind::NotFound,
                AdminErrorKind::Conflict => FailureKind::Conflict,
                AdminErrorKind::Invalid => FailureKind::Usage,
                AdminErrorKind::Unavailable => FailureKind::Failed,
                AdminErrorKind::LimitReached => FailureKind::LimitReached,
            },
            _ => FailureKind::Failed,
        };
        Failure { kind, sentence: error.to_string() }
    }
}

impl From<NbdError> for Failure {
    fn from(error: NbdError) -> Failure {
        let kind = match &error {
            NbdError::Unknown(_) => FailureKind::NotFound,
            NbdError::Refused(_) => FailureKind::Conflict,
            NbdError::Interrupted => FailureKind::Interrupted,
            _ => FailureKind::Failed,
        };
        Failure { kind, sentence: error.to_string() }
    }
}

impl From<SizeError> for Failure {
    fn from(error: SizeError) -> Failure {
        Failure::usage(error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine::admin::AdminError;

    #[test]
    fn each_kind_of_refusal_has_its_exit_code() {
        let check = |kind, code| {
            let refused = AdminError { kind, sentence: "no".to_string() };
            let failure = Failure::from(ClientError::Refused(refused));
            assert_eq!(failure.kind.exit_code(), code);
            assert_eq!(failure.sentence, "no");
        };
        check(AdminErrorKind::Unavailable, 1);
        check(AdminErrorKind::Invalid, 2);
        check(AdminErrorKind::NotFound, 3);
        check(AdminErrorKind::Conflict, 4);
        check(AdminErrorKind::LimitReached, 5);
        let lost = Failure::from(NbdError::Lost("gone".to_string()));
        assert_eq!(lost.kind.exit_code(), 1);
    }

    #[test]
    fn help_names_every_exit_code() {
        for kind in [
            FailureKind::Failed,
            FailureKind::Usage,
            FailureKind::NotFound,
            FailureKind::Conflict,
            FailureKind::LimitReached,
            FailureKind::Interrupted,
        ] {
            let code = format!("{:>5}  ", kind.exit_code());
            assert!(EXIT_CODES_HELP.contains(&code), "{code} is missing");
            assert_ne!(kind.exit_code(), AT_RISK_EXIT_CODE);
        }
        assert!(EXIT_CODES_HELP.contains(&format!("{AT_RISK_EXIT_CODE:>5}  at risk")));
    }
}
