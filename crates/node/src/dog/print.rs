//! What people and scripts see: tables, fields, JSON, times; and failures.

use super::failure::Failure;
use crate::size::Size;
use comfy_table::{CellAlignment, ContentArrangement, Table, presets};
use serde::Serialize;
use std::io::{self, Write};

/// Writes text to standard output. A reader that went away is not an error worth a word.
pub fn text(text: &str) -> Result<(), Failure> {
    bytes(text.as_bytes())
}

/// Writes bytes to standard output.
pub fn bytes(bytes: &[u8]) -> Result<(), Failure> {
    let mut output = io::stdout().lock();
    match output.write_all(bytes).and_then(|()| output.flush()) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
            // As any program that SIGPIPE ends; 128 + 13 is what a shell would show.
            std::process::exit(141)
        }
        Err(error) => Err(Failure::failed(format!(
            "cannot write to standard output: {error}; check where it leads"
        ))),
    }
}

/// Prints a value as JSON, for programs.
pub fn json(value: &impl Serialize) -> Result<(), Failure> {
    let printed = serde_json::to_string_pretty(value).expect("reports are always JSON");
    text(&format!("{printed}\n"))
}

/// Says why the command failed, on standard error.
pub fn failure(failure: &Failure, json: bool) {
    let line = if json {
        serde_json::json!({ "error": failure }).to_string()
    } else {
        format!("dog: {failure}")
    };
    // When even that cannot be written, the exit code still says it.
    let _ = writeln!(io::stderr(), "{line}");
}

/// A table with these columns; those marked `true` hold numbers and are aligned to the right.
/// A row is one line, however long, for `grep` and eyes alike.
pub fn table(columns: &[(&str, bool)], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING);
    table.set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(columns.iter().map(|(name, _)| *name));
    table.add_rows(rows);
    for (place, (_, number)) in columns.iter().enumerate() {
        let last = place + 1 == columns.len();
        if let Some(column) = table.column_mut(place) {
            column.set_padding((0, if last { 0 } else { 2 }));
            if *number {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
    }
    let lines: Vec<String> = table.lines().map(|line| line.trim_end().to_string()).collect();
    lines.join("\n") + "\n"
}

/// Names and values under one another.
pub fn fields(fields: &[(&str, String)]) -> String {
    let width = fields.iter().map(|(name, _)| name.len()).max().unwrap_or(0) + 1;
    let mut lines = String::new();
    for (name, value) in fields {
        lines += &format!("{:<width$} {value}\n", format!("{name}:"));
    }
    lines
}

/// A number of bytes, rounded and exactly.
pub fn exact(bytes: u64) -> String {
    match bytes {
        0..1024 => Size(bytes).to_string(),
        _ => format!("{} ({bytes} bytes)", Size(bytes)),
    }
}

/// A number of bytes that other nodes have a part in: with a plus if some of them did not say.
pub fn at_least(bytes: u64, unknown_nodes: &[String]) -> String {
    let plus = if unknown_nodes.is_empty() { "" } else { "+" };
    format!("{}{plus}", Size(bytes))
}

/// What a plus behind a size means, if there is one.
pub fn unknown_note(unknown_nodes: &[String]) -> Option<String> {
    (!unknown_nodes.is_empty()).then(|| {
        format!(
            "+: at least so much; what lies on disks of {} is not known now",
            unknown_nodes.join(", ")
        )
    })
}

/// A span of time in the two largest units: `3 d 4 h`, `2 min 5 s`, `7 s`.
pub fn span(seconds: u64) -> String {
    let units = [(86_400, "d"), (3600, "h"), (60, "min"), (1, "s")];
    let first = units.iter().position(|(length, _)| seconds >= *length).unwrap_or(3);
    let mut left = seconds;
    let mut words = Vec::new();
    for (length, unit) in units.iter().skip(first).take(2) {
        if left >= *length || words.is_empty() {
            words.push(format!("{} {unit}", left / length));
        }
        left %= length;
    }
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_have_at_most_two_units() {
        let check = |seconds, text: &str| assert_eq!(span(seconds), text);
        check(0, "0 s");
        check(59, "59 s");
        check(60, "1 min");
        check(125, "2 min 5 s");
        check(3600, "1 h");
        check(90_061, "1 d 1 h");
    }

    #[test]
    fn what_others_did_not_say_is_told() {
        let unknown = ["n1".to_string(), "n2".to_string()];
        assert_eq!((at_least(1 << 20, &[]), unknown_note(&[])), ("1.0 MiB".to_string(), None));
        assert_eq!(at_least(1 << 20, &unknown), "1.0 MiB+");
        assert!(unknown_note(&unknown).is_some_and(|note| note.contains("disks of n1, n2 is")));
    }

    #[test]
    fn tables_are_lines_for_scripts() {
        let rows = vec![
            vec!["short".to_string(), "1".to_string(), "x".to_string()],
            vec!["a longer name".to_string(), "12345".to_string(), String::new()],
        ];
        let printed = table(&[("NAME", false), ("SIZE", true), ("HOLDER", false)], rows);
        let expected = "\
NAME            SIZE  HOLDER
short              1  x
a longer name  12345
";
        assert_eq!(printed, expected);
    }

    #[test]
    fn fields_line_up() {
        let printed = fields(&[("Name", "x".to_string()), ("Used space", "1".to_string())]);
        assert_eq!(printed, "Name:       x\nUsed space: 1\n");
    }
}
