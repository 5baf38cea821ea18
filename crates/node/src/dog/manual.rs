//! `dog completions` and `dog man`: produced from the one definition of each command line, as are
//! the reference pages of the manual, `docs/manual/dog.md` and `docs/manual/settings.md`.

use super::{Context, Failure, arguments::Arguments, print};
use crate::settings;
use clap::{Command, CommandFactory};
use clap_complete::Shell;
use std::{io, path::Path};

/// Prints completions for a shell. Those of the first three ask `dog complete` for everything,
/// names included; the others know commands and options only.
pub fn completions(shell: Shell) -> Result<(), Failure> {
    let script = match shell {
        Shell::Bash => include_bytes!("completions/dog.bash").to_vec(),
        Shell::Zsh => include_bytes!("completions/dog.zsh").to_vec(),
        Shell::Fish => include_bytes!("completions/dog.fish").to_vec(),
        other => {
            let mut script = Vec::new();
            clap_complete::generate(other, &mut dog(), "dog", &mut script);
            script
        }
    };
    print::bytes(&script)
}

/// Writes `sheep.1`, `dog.1`, `dog-volume.1`, `dog-volume-create.1` and so on.
pub fn pages(context: &Context, directory: &Path) -> Result<(), Failure> {
    if !directory.is_dir() {
        return Err(Failure::not_found(format!(
            "there is no directory {}; create it first",
            directory.display()
        )));
    }
    write_pages(directory).map_err(|error| {
        Failure::failed(format!(
            "cannot write manual pages into {}: {error}; check its permissions and free space",
            directory.display()
        ))
    })?;
    context.done(&format!("manual pages written into {}", directory.display()))
}

fn write_pages(directory: &Path) -> io::Result<()> {
    for command in [settings::command(), dog()] {
        clap_mangen::generate_to(command, directory)?;
    }
    Ok(())
}

/// The command line of `dog` as the manual shows it.
fn dog() -> Command {
    Arguments::command().disable_help_subcommand(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dog::failure::EXIT_CODES_HELP;
    use clap::Arg;
    use std::{fs, path::PathBuf};

    #[test]
    fn every_verb_has_a_page() {
        let directory = tempfile::tempdir().expect("a scratch directory");
        write_pages(directory.path()).expect("pages");
        for page in
            ["sheep.1", "dog.1", "dog-volume-create.1", "dog-disk-scrub-rate.1", "dog-bench.1"]
        {
            assert!(directory.path().join(page).is_file(), "{page} is missing");
        }
    }

    /// Set `UPDATE_MANUAL` to write the pages instead of comparing them.
    fn check_page(name: &str, text: &str) {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../docs/manual").join(name);
        if std::env::var_os("UPDATE_MANUAL").is_some() {
            fs::write(&path, text).expect("a page");
        }
        let page = fs::read_to_string(&path).unwrap_or_default();
        assert!(
            page == text,
            "docs/manual/{name} is not what the program says: write it anew with \
             `UPDATE_MANUAL=1 cargo test -p node manual`"
        );
    }

    #[test]
    fn reference_of_dog_is_what_the_program_says() {
        let mut text = String::from(
            "# Reference: dog\n\nProduced from the program's own definitions. Each command also \
             takes the options of every command:\n\n",
        );
        let mut command = dog();
        command.build();
        let global = |argument: &Arg| argument.is_global_set();
        text += &table_of(command.get_arguments().filter(|argument| global(argument)));
        text += &format!("\n```text\n{EXIT_CODES_HELP}\n```\n");
        describe(&command, "dog", &mut text);
        check_page("dog.md", &text);
    }

    /// The leaves of a tree of commands, each with its arguments.
    fn describe(command: &Command, path: &str, text: &mut String) {
        let verbs: Vec<&Command> =
            command.get_subcommands().filter(|verb| !verb.is_hide_set()).collect();
        for verb in &verbs {
            describe(verb, &format!("{path} {}", verb.get_name()), text);
        }
        // Most only group others.
        if !verbs.is_empty() && command.is_subcommand_required_set() {
            return;
        }
        let about = command.get_long_about().or(command.get_about());
        let about = about.map(ToString::to_string).unwrap_or_default();
        *text += &format!("\n## {path}\n");
        for paragraph in about.split("\n\n") {
            let words = paragraph.replace('\n', " ");
            *text += &format!("\n{}.\n", words.trim_end_matches('.'));
        }
        // An option with a default is listed there as if it had to be given.
        let usage = command.clone().render_usage().to_string().replace("--data <DIR> ", "");
        let usage = usage.trim_start_matches("Usage:").trim();
        *text += &format!("\n```text\n{usage}\n```\n");
        let own: Vec<&Arg> = command
            .get_arguments()
            .filter(|argument| !argument.is_global_set() && argument.get_id() != "help")
            .collect();
        if !own.is_empty() {
            *text += "\n";
            *text += &table_of(own.into_iter());
        }
    }

    fn table_of<'a>(arguments: impl Iterator<Item = &'a Arg>) -> String {
        let mut table = String::from("| argument | meaning |\n| --- | --- |\n");
        for argument in arguments {
            let value = argument.get_value_names().and_then(|names| names.first());
            let value = value.map(ToString::to_string).unwrap_or_default();
            let takes = argument.get_action().takes_values();
            let name = match argument.get_long() {
                Some(long) if takes => format!("--{long} {value}"),
                Some(long) => format!("--{long}"),
                None if argument.is_required_set() => value,
                None => format!("[{value}]"),
            };
            let aliases = argument.get_visible_aliases().unwrap_or_default();
            let aliases: String = aliases.iter().map(|alias| format!(", `--{alias}`")).collect();
            let help = argument.get_long_help().or(argument.get_help());
            let mut meaning = help.map(ToString::to_string).unwrap_or_default().replace('\n', " ");
            let default: Vec<String> = argument
                .get_default_values()
                .iter()
                .map(|value| value.to_string_lossy().to_string())
                .collect();
            if takes && !default.is_empty() {
                meaning += &format!(" (default {})", default.join(", "));
            }
            if let Some(variable) = argument.get_env() {
                meaning += &format!("; environment: {}", variable.to_string_lossy());
            }
            table += &format!("| `{name}`{aliases} | {} |\n", meaning.replace('|', "or"));
        }
        table
    }

    #[test]
    fn reference_of_settings_is_what_the_program_says() {
        let mut text = String::from(
            "# Reference: settings of sheep\n\nProduced from the program's own definitions. A flag \
             wins over the environment, that over the configuration file\n(`/etc/sheepdog/\
             sheep.toml` unless `--config` names another). An unknown key there is refused, and \
             so is an\nunknown environment variable that begins with `SHEEP_`.\n\n\
             | flag | environment | key | default | takes | meaning |\n\
             | --- | --- | --- | --- | --- | --- |\n",
        );
        for setting in settings::SETTINGS.iter().filter(|setting| !setting.hidden) {
            let key = match setting.name {
                "config" => "-".to_string(),
                _ => format!("`{}`", setting.key()),
            };
            let default = match setting.default {
                "" => "-".to_string(),
                default => format!("`{default}`"),
            };
            text += &format!(
                "| `--{} {}` | `{}` | {key} | {default} | {} | {} |\n",
                setting.name,
                setting.value.replace('|', " or "),
                setting.variable(),
                setting.limit,
                setting.doc
            );
        }
        check_page("settings.md", &text);
    }
}
