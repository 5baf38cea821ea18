//! `dog complete`: what may stand where the cursor is, for the small scripts that `dog
//! completions` prints. It follows from the definitions of the command line alone: which command
//! and argument the last word belongs to, and of which type that is. A type that names something
//! of the node is in [`names_of`], so that every argument of such a type is completed, also one of
//! a later command.
//!
//! It asks the node for a moment only and is silent when there is no answer. It is our own because
//! clap's engine for this is marked unstable, and knows nothing of `@`, at which bash cuts words.

use super::{
    Failure,
    arguments::Arguments,
    name::{
        ClusterDiskName, DiskName, GroupName, GroupOrSnapshotName, GroupSnapshotName, Name,
        NodeName, SEPARATOR, SnapshotName, VolumeName,
    },
    print,
};
use crate::{
    api::{self, DATA_DIRECTORY_DEFAULT, DATA_DIRECTORY_VARIABLE},
    client::Client,
    size::Size,
};
use clap::{Arg, Command, CommandFactory};
use engine::admin::{AdminReply, AdminRequest, ClusterDiskReport, ClusterNodeReport};
use std::{
    any::TypeId,
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::mpsc,
    thread,
    time::Duration,
};

/// How long a person with a finger on the key is kept waiting.
const PATIENCE: Duration = Duration::from_secs(1);
/// Tells the script to complete paths itself. No name and no option has slashes.
const FILES: &str = "//files";

/// Something that may stand there, and what it is.
type Candidate = (String, String);

/// Prints the candidates for the last of the words, one a line: the word, a tab, what it is.
pub fn run(words: &[String]) -> Result<(), Failure> {
    let mut text = String::new();
    for (word, help) in candidates(words, &ask) {
        text += &format!("{word}\t{help}\n");
    }
    print::text(&text)
}

/// What a node can be asked for.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Question {
    Volumes,
    /// Those of this volume, with its name before them.
    Snapshots(String),
    Groups,
    /// Those of this group, with its name before them.
    GroupSnapshots(String),
    Disks,
    /// Those of all nodes.
    ClusterDisks,
    Nodes,
}

/// Asks the node with this admin socket.
fn ask(socket: &Path, question: Question) -> Option<Vec<Candidate>> {
    let client = Client::new(socket);
    let request = match &question {
        Question::Volumes => AdminRequest::VolumeList,
        Question::Snapshots(volume) => {
            AdminRequest::SnapshotList { name: volume.clone(), reclaimable: false }
        }
        Question::Groups => AdminRequest::GroupList,
        Question::GroupSnapshots(group) => AdminRequest::GroupInfo { name: group.clone() },
        Question::Disks => AdminRequest::DiskList,
        Question::ClusterDisks | Question::Nodes => AdminRequest::ClusterStatus,
    };
    let (sender, reply) = mpsc::channel();
    // One that hangs must not keep the person waiting.
    thread::spawn(move || {
        // Nobody listens any more if it took too long.
        let _ = sender.send(client.request(&request).ok());
    });
    let reply = reply.recv_timeout(PATIENCE).ok()??;
    Some(match (question, reply) {
        (Question::Volumes, AdminReply::Volumes(volumes)) => {
            let size = |bytes| Size(bytes).to_string();
            volumes.into_iter().map(|volume| (volume.name, size(volume.bytes))).collect()
        }
        (Question::Snapshots(volume), AdminReply::Snapshots(snapshots)) => {
            let name = |tag| format!("{volume}{SEPARATOR}{tag}");
            let taken = |unix_s| proto::calendar::date(unix_s);
            snapshots.into_iter().map(|at| (name(at.tag), taken(at.created_unix_s))).collect()
        }
        (Question::Groups, AdminReply::Groups(groups)) => {
            groups.into_iter().map(|group| (group.name, group.volumes.join(", "))).collect()
        }
        (Question::GroupSnapshots(group), AdminReply::Group(report)) => {
            let name = |tag| format!("{group}{SEPARATOR}{tag}");
            let taken = |unix_s| proto::calendar::date(unix_s);
            report
                .snapshots
                .into_iter()
                .map(|at| (name(at.tag), taken(at.created_unix_s)))
                .collect()
        }
        (Question::Disks, AdminReply::Disks(disks)) => {
            disks.into_iter().map(|disk| (disk.disk.to_string(), disk.path)).collect()
        }
        (Question::ClusterDisks, AdminReply::Cluster(report)) => {
            let named = |disk: ClusterDiskReport| (disk.disk.to_string(), disk.node_name);
            report.disks.into_iter().map(named).collect()
        }
        (Question::Nodes, AdminReply::Cluster(report)) => {
            let named = |node: ClusterNodeReport| match node.name.is_empty() {
                true => (node.node.to_string(), node.addresses.join(", ")),
                false => (node.name, node.addresses.join(", ")),
            };
            report.nodes.into_iter().map(named).collect()
        }
        _ => return None,
    })
}

/// Asks the node with this admin socket.
type Ask<'a> = &'a dyn Fn(&Path, Question) -> Option<Vec<Candidate>>;
/// Asks the node that the line names.
type AskNode<'a> = &'a dyn Fn(Question) -> Option<Vec<Candidate>>;

/// How far the words before the last one lead.
struct Place<'a> {
    command: &'a Command,
    /// How many arguments by position there were.
    positions: usize,
    /// The option whose value comes next.
    awaited: Option<&'a Arg>,
    /// Whether `--` was there: no options any more.
    only_positions: bool,
    /// The values of options, by their ids.
    values: BTreeMap<String, String>,
}

fn candidates(words: &[String], ask: Ask<'_>) -> Vec<Candidate> {
    let Some((last, before)) = words.get(1..).and_then(|words| words.split_last()) else {
        return Vec::new();
    };
    let mut command = Arguments::command();
    command.build();
    let mut place = Place {
        command: &command,
        positions: 0,
        awaited: None,
        only_positions: false,
        values: BTreeMap::new(),
    };
    for word in before {
        place.pass(word);
    }
    let socket = place.socket();
    let ask = |question| ask(&socket, question);
    if let Some(option) = place.awaited {
        return values(option, last, &ask);
    }
    if place.only_positions || !last.starts_with('-') {
        return place.positional(last, &ask);
    }
    match last.split_once('=') {
        Some((name, value)) => {
            let Some(option) = place.option(name) else { return Vec::new() };
            let values = values(option, value, &ask).into_iter();
            let whole = |(value, help): Candidate| match value == FILES {
                true => (value, help),
                false => (format!("{name}={value}"), help),
            };
            values.map(whole).collect()
        }
        None => place.options(last),
    }
}

impl<'a> Place<'a> {
    /// One word further.
    fn pass(&mut self, word: &str) {
        if let Some(option) = self.awaited.take() {
            self.values.insert(option.get_id().to_string(), word.to_string());
        } else if self.only_positions || !word.starts_with('-') || word == "-" {
            match self.command.find_subcommand(word).filter(|_| !self.only_positions) {
                Some(command) => (self.command, self.positions) = (command, 0),
                None => self.positions += 1,
            }
        } else if word == "--" {
            self.only_positions = true;
        } else if let Some((name, value)) = word.split_once('=') {
            if let Some(option) = self.option(name) {
                self.values.insert(option.get_id().to_string(), value.to_string());
            }
        } else {
            self.awaited = self.option(word).filter(|option| option.get_action().takes_values());
        }
    }

    /// The option that is written so.
    fn option(&self, word: &str) -> Option<&'a Arg> {
        let mut options = self.command.get_arguments();
        match word.strip_prefix("--") {
            Some(long) => options.find(|option| {
                let aliases = option.get_all_aliases().unwrap_or_default();
                option.get_long() == Some(long) || aliases.contains(&long)
            }),
            // Of several short ones only the last can have a value.
            None => options.find(|option| option.get_short() == word.chars().last()),
        }
    }

    /// Commands, or what an argument by position may be.
    fn positional(&self, start: &str, ask: AskNode<'_>) -> Vec<Candidate> {
        let commands = self.command.get_subcommands().filter(|command| !command.is_hide_set());
        let commands = commands.map(|command| {
            let about = command.get_about().map(ToString::to_string).unwrap_or_default();
            (command.get_name().to_string(), about)
        });
        let commands = commands.take_while(|_| self.positions == 0);
        let mut found: Vec<Candidate> =
            commands.filter(|(name, _)| name.starts_with(start)).collect();
        if let Some(argument) = self.command.get_positionals().nth(self.positions) {
            found.extend(values(argument, start, ask));
        }
        found
    }

    fn options(&self, start: &str) -> Vec<Candidate> {
        let options = self.command.get_arguments().filter(|option| !option.is_hide_set());
        let named = options.filter_map(|option| {
            let help = option.get_help().map(ToString::to_string).unwrap_or_default();
            Some((format!("--{}", option.get_long()?), help))
        });
        named.filter(|(name, _)| name.starts_with(start)).collect()
    }

    /// The admin socket that the command would ask.
    fn socket(&self) -> PathBuf {
        if let Some(socket) = self.values.get("socket") {
            return PathBuf::from(socket);
        }
        let data = self.values.get("data").map(PathBuf::from);
        let data = data.or_else(|| std::env::var_os(DATA_DIRECTORY_VARIABLE).map(PathBuf::from));
        api::admin_socket(&data.unwrap_or_else(|| PathBuf::from(DATA_DIRECTORY_DEFAULT)))
    }
}

/// What the value of an argument may be, as far as it begins so.
fn values(argument: &Arg, start: &str, ask: AskNode<'_>) -> Vec<Candidate> {
    if !argument.get_action().takes_values() {
        return Vec::new();
    }
    let parser = argument.get_value_parser();
    if parser.type_id() == TypeId::of::<PathBuf>() {
        return vec![(FILES.to_string(), String::new())];
    }
    let found: Vec<Candidate> = match parser.possible_values() {
        Some(values) => values
            .map(|value| {
                let help = value.get_help().map(ToString::to_string).unwrap_or_default();
                (value.get_name().to_string(), help)
            })
            .collect(),
        None => names_of(|id| parser.type_id() == id, start, ask).unwrap_or_default(),
    };
    found.into_iter().filter(|(name, _)| name.starts_with(start)).collect()
}

/// What the node has of a type, if it is one that names something.
fn names_of(is: impl Fn(TypeId) -> bool, start: &str, ask: AskNode<'_>) -> Option<Vec<Candidate>> {
    let snapshots_of = start.split_once(SEPARATOR).map(|(volume, _)| volume.to_string());
    if is(TypeId::of::<VolumeName>()) {
        ask(Question::Volumes)
    } else if is(TypeId::of::<Name>()) {
        ask(snapshots_of.map_or(Question::Volumes, Question::Snapshots))
    } else if is(TypeId::of::<SnapshotName>()) {
        match snapshots_of {
            Some(volume) => ask(Question::Snapshots(volume)),
            None => ask(Question::Volumes).map(with_separator),
        }
    } else if is(TypeId::of::<GroupName>()) {
        ask(Question::Groups)
    } else if is(TypeId::of::<GroupOrSnapshotName>()) {
        ask(snapshots_of.map_or(Question::Groups, Question::GroupSnapshots))
    } else if is(TypeId::of::<GroupSnapshotName>()) {
        match snapshots_of {
            Some(group) => ask(Question::GroupSnapshots(group)),
            None => ask(Question::Groups).map(with_separator),
        }
    } else if is(TypeId::of::<DiskName>()) {
        ask(Question::Disks)
    } else if is(TypeId::of::<ClusterDiskName>()) {
        ask(Question::ClusterDisks)
    } else if is(TypeId::of::<NodeName>()) {
        ask(Question::Nodes)
    } else {
        None
    }
}

/// Names behind which a tag is to come.
fn with_separator(names: Vec<Candidate>) -> Vec<Candidate> {
    names.into_iter().map(|(name, help)| (format!("{name}{SEPARATOR}"), help)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::RefCell;

    fn node(question: Question) -> Option<Vec<Candidate>> {
        let names: &[&str] = match question {
            Question::Volumes => &["disk1", "disk2", "data"],
            Question::Snapshots(name) if name == "disk1" => &["disk1@monday", "disk1@tuesday"],
            Question::Snapshots(_) => return None,
            Question::Groups => &["db", "web"],
            Question::GroupSnapshots(name) if name == "db" => &["db@monday"],
            Question::GroupSnapshots(_) => return None,
            Question::Disks => &["00112233445566778899aabbccddeeff"],
            Question::ClusterDisks => {
                &["00112233445566778899aabbccddeeff", "ff112233445566778899aabbccddeeff"]
            }
            Question::Nodes => &["n0", "n1"],
        };
        Some(names.iter().map(|name| (name.to_string(), "it".to_string())).collect())
    }

    /// The words that a line, with the cursor at its end, may go on with.
    fn check(line: &str, expected: &[&str]) {
        let words: Vec<String> = line.split(' ').map(str::to_string).collect();
        let found = candidates(&words, &|_, question| node(question));
        let found: Vec<&str> = found.iter().map(|(word, _)| word.as_str()).collect();
        assert_eq!(found, expected, "{line}");
    }

    #[test]
    fn commands_and_options_come_from_the_definitions() {
        check("dog vol", &["volume"]);
        check("dog volume sn", &["snapshot", "snapshots"]);
        check("dog volume resize disk1 10G --all", &["--allow-shrink"]);
        check("dog --js", &["--json"]);
        check("dog volume list --js", &["--json"]);
        check("dog comp", &["completions"]);
        check("dog completions ba", &["bash"]);
        check("dog volume export disk1 file --format q", &["qcow2"]);
        check("dog volume export disk1 file --format=q", &["--format=qcow2"]);
        check("dog nothing ", &[]);
        check("dog volume list ", &[]);
        check("dog", &[]);
    }

    #[test]
    fn names_come_from_the_node_by_the_type_of_the_argument() {
        check("dog volume info d", &["disk1", "disk2", "data"]);
        check("dog volume info disk", &["disk1", "disk2"]);
        check("dog volume info disk1@", &["disk1@monday", "disk1@tuesday"]);
        check("dog volume info disk1@t", &["disk1@tuesday"]);
        check("dog volume info disk2@", &[]);
        check("dog volume flatten --wait da", &["data"]);
        check("dog volume flatten -- da", &["data"]);
        check("dog volume flush disk1@", &[]); // it takes volumes only
        check("dog volume clone dis", &["disk1@", "disk2@"]);
        check("dog volume clone disk1@m", &["disk1@monday"]);
        check("dog volume clone disk1@monday ", &[]); // a new name
        check("dog volume resize disk1 ", &[]); // a size
        check("dog group info ", &["db", "web"]);
        check("dog group delete db@", &["db@monday"]);
        check("dog group rollback d", &["db@"]);
        check("dog group add web d", &["disk1", "disk2", "data"]);
        check("dog schedule remove da", &["data"]);
        check("dog volume read disk1 --offset 0 --length 4K ", &[FILES]);
        check("dog --data ", &[FILES]);
        check("dog --data=", &[FILES]);
        check("dog volume import ", &[FILES]);
        check("dog disk scrub start --disk 0011", &["00112233445566778899aabbccddeeff"]);
        check("dog disk scrub start --disk ff", &[]); // it is another node's
        check("dog disk remove ff", &["ff112233445566778899aabbccddeeff"]);
        check("dog node drain n", &["n0", "n1"]);
        check("dog volume detach disk1@t", &["disk1@tuesday"]);
    }

    /// An argument that names something that exists is of a type that says so.
    #[test]
    fn every_argument_that_is_called_name_completes_unless_it_names_something_new() {
        let mut command = Arguments::command();
        command.build();
        let mut missing = Vec::new();
        let mut commands: Vec<&Command> = vec![&command];
        while let Some(command) = commands.pop() {
            commands.extend(command.get_subcommands());
            for argument in command.get_positionals().filter(|known| known.get_id() == "name") {
                if values(argument, "", &node).is_empty() {
                    missing.push(command.get_name().to_string());
                }
            }
        }
        missing.sort_unstable();
        assert_eq!(missing, ["create", "create", "import"], "give the argument a type of `name`");
    }

    #[test]
    fn the_node_that_the_line_names_is_asked() {
        let check = |line: &str, expected: &str| {
            let words: Vec<String> = line.split(' ').map(str::to_string).collect();
            let asked = RefCell::new(None);
            candidates(&words, &|socket, _| {
                *asked.borrow_mut() = Some(socket.to_path_buf());
                None
            });
            assert_eq!(asked.into_inner(), Some(PathBuf::from(expected)), "{line}");
        };
        check("dog --data /srv/a volume info ", "/srv/a/admin.sock");
        check("dog volume info --data=/srv/b ", "/srv/b/admin.sock");
        check("dog --socket /run/s --data /srv/a disk scrub stop --disk ", "/run/s");
    }

    #[test]
    fn silence_is_no_answer() {
        let words = ["dog", "volume", "info", ""].map(str::to_string);
        assert_eq!(candidates(&words, &|_, _| None), []);
        let directory = tempfile::tempdir().expect("a scratch directory");
        assert!(ask(&directory.path().join("admin.sock"), Question::Volumes).is_none());
    }
}
