//! `dog`, the command for people and scripts: asks the daemon over its admin socket and moves data
//! over its NBD socket. Nouns then verbs; each command is one function of the module of its noun.
//!
//! Started by [`main`]; one process runs one command and exits with the code of
//! [`failure::FailureKind`].

// People are shown rates and times left, and signals are awaited beside the work.
#![allow(clippy::disallowed_methods)]

mod arguments;
mod attach;
mod bench;
mod cluster;
mod complete;
mod content;
mod copies;
mod diff;
mod disk;
mod export;
mod failure;
mod foreign;
mod freeze;
mod from;
mod group;
mod import;
mod interrupt;
mod jobs;
mod manual;
mod moment;
mod name;
mod node;
mod print;
mod progress;
mod replace;
mod schedule;
mod snapshot;
mod source;
mod status;
pub(crate) mod transfer;
mod trash;
mod tree;
mod unfinished;
mod volume;

use crate::{
    api,
    client::{Client, ClientError},
    nbd_client::NbdClient,
};
use arguments::{Arguments, ClusterVerb, Global, Noun};
use clap::{Parser, error::ErrorKind};
use engine::admin::{AdminError, AdminErrorKind, AdminReply, AdminRequest};
use failure::{Failure, FailureKind};
use interrupt::Interrupt;
use std::{
    path::PathBuf,
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

/// How long a daemon that is starting, or has too much to do, is asked again.
const START_PATIENCE: Duration = Duration::from_secs(10);
/// How often.
const START_INTERVAL: Duration = Duration::from_millis(50);

/// Runs the command that the process's arguments name.
pub fn main() -> ExitCode {
    if let Some(code) = freeze::guard::asked_for() {
        return code;
    }
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        // Help, the version, and help for who gave no verb: as clap prints them.
        Err(error)
            if !error.use_stderr()
                || error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand =>
        {
            error.exit()
        }
        Err(error) => {
            let json = std::env::args_os().any(|argument| argument == "--json");
            let failure = Failure::usage(usage_sentence(&error.to_string()));
            print::failure(&failure, json);
            return ExitCode::from(failure.kind.exit_code());
        }
    };
    let json = arguments.global.json;
    match run(arguments) {
        Ok(code) => code,
        Err(failure) => {
            print::failure(&failure, json);
            ExitCode::from(failure.kind.exit_code())
        }
    }
}

/// What clap says about a wrong command line, in one sentence: its first paragraph and the usage.
fn usage_sentence(text: &str) -> String {
    let mut paragraphs = text.split("\n\n").map(|paragraph| {
        paragraph.lines().map(str::trim).collect::<Vec<_>>().join(" ").trim().to_string()
    });
    let first = paragraphs.next().unwrap_or_default();
    let what = first.strip_prefix("error: ").unwrap_or(&first);
    let usage = paragraphs.find_map(|paragraph| {
        // clap lists an option with a default as if it had to be given.
        let usage = paragraph.strip_prefix("Usage: ")?.replace("--data <DIR> ", "");
        Some(format!("; say `{usage}`"))
    });
    format!("{what}{}; see `dog --help`", usage.unwrap_or_default())
}

/// What every command needs.
struct Context {
    client: Client,
    nbd_socket: PathBuf,
    json: bool,
}

fn run(arguments: Arguments) -> Result<ExitCode, Failure> {
    let context = Context::new(&arguments.global);
    match arguments.noun {
        Noun::Volume(verb) => volume::run(&context, verb)?,
        Noun::Group(verb) => group::run(&context, verb)?,
        Noun::Disk(verb) => disk::run(&context, verb)?,
        Noun::Node(verb) => node::run(&context, verb)?,
        Noun::Status => return status::status(&context),
        Noun::Bench(options) => bench::run(&context, &options)?,
        Noun::Schedule(verb) => schedule::run(&context, verb)?,
        Noun::Completions { shell } => manual::completions(shell)?,
        Noun::Complete { words } => complete::run(&words)?,
        Noun::Man { directory } => manual::pages(&context, &directory)?,
        Noun::Trash(verb) => trash::run(&context, verb)?,
        Noun::Cluster(ClusterVerb::Status) => return cluster::status(&context),
        Noun::Cluster(ClusterVerb::Recover { lost, yes }) => {
            cluster::recover(&context, &lost, yes)?;
        }
        Noun::Cluster(ClusterVerb::Token { verb, options }) => {
            cluster::token(&context, verb, &options)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

impl Context {
    fn new(global: &Global) -> Context {
        let admin = global.socket.clone().unwrap_or_else(|| api::admin_socket(&global.data));
        let nbd_socket = global.nbd_socket.clone().unwrap_or_else(|| api::nbd_socket(&global.data));
        Context { client: Client::new(admin), nbd_socket, json: global.json }
    }

    /// Asks the daemon. One that is starting is waited for.
    fn ask(&self, request: &AdminRequest) -> Result<AdminReply, Failure> {
        // A source that cannot be had is told at once; the daemon has waited for it already.
        let is_told_at_once = matches!(
            request,
            AdminRequest::VolumeCreateFrom { .. }
                | AdminRequest::VolumeCreateKept { from: Some(_), .. }
        );
        let patience = if is_told_at_once { Duration::ZERO } else { START_PATIENCE };
        let until = Instant::now() + patience;
        loop {
            match self.client.request(request) {
                Err(ClientError::Refused(AdminError {
                    kind: AdminErrorKind::Unavailable, ..
                })) if Instant::now() < until => thread::sleep(START_INTERVAL),
                result => return Ok(result?),
            }
        }
    }

    /// Asks for something that is answered by "done".
    fn tell(&self, request: &AdminRequest) -> Result<(), Failure> {
        match self.ask(request)? {
            AdminReply::Done => Ok(()),
            _ => Err(Failure::mismatch()),
        }
    }

    /// Attaches a volume over the NBD socket.
    fn attach(&self, name: &str, interrupt: &Interrupt) -> Result<NbdClient, Failure> {
        Ok(NbdClient::connect(&self.nbd_socket, name, interrupt.watch())?)
    }

    /// Attaches a volume or snapshot over the NBD socket, to compare it with a snapshot below it.
    fn attach_to_compare(
        &self,
        name: &str,
        tag: &str,
        interrupt: &Interrupt,
    ) -> Result<NbdClient, Failure> {
        Ok(NbdClient::connect_to_compare(&self.nbd_socket, name, tag, interrupt.watch())?)
    }

    /// A note for people, beside the result.
    fn note(&self, sentence: &str) {
        if !self.json {
            eprintln!("{sentence}");
        }
    }
}

/// The kinds of failure after which what was begun is put back in order, and what is said then.
fn with_remainder(mut failure: Failure, remainder: &str) -> Failure {
    if failure.kind == FailureKind::Interrupted {
        failure.sentence = format!("interrupted; {remainder}");
    } else {
        failure.sentence = format!("{}; {remainder}", failure.sentence);
    }
    failure
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_commands_are_told_in_one_sentence() {
        let check = |line: &str, parts: &[&str]| {
            let error = Arguments::try_parse_from(line.split_whitespace()).expect_err(line);
            let sentence = usage_sentence(&error.to_string());
            assert_eq!(sentence.lines().count(), 1, "{sentence}");
            for part in parts {
                assert!(sentence.contains(part), "{part} is not in: {sentence}");
            }
        };
        check("dog surplus", &["unrecognized subcommand 'surplus'", "; say `dog [OPTIONS]"]);
        check("dog volume create a 20X", &["`X` in `20X` is no unit", "; see `dog --help`"]);
        check("dog volume create", &["<NAME> <SIZE>", "say `dog volume create <NAME> <SIZE>`"]);
        check("dog volume create a -1", &["`-1` is no size"]);
        check("dog volume resize a -1", &["`-1` is no size"]);
        check("dog volume list --yaml", &["unexpected argument '--yaml'"]);
    }
}
