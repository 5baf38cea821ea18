//! `dog volume diff`: what differs, as a table or as JSON.

use super::{Diff, Pair, changed};
use crate::dog::{Context, Failure, export::windows, interrupt::Interrupt, name::Name, print};
use crate::nbd_client::Changed;
use crate::size::Size;
use serde::Serialize;

/// What may be said of a range.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
enum Kind {
    /// It may differ, and there is data now.
    Data,
    /// It differs, and reads as zeros now.
    Zeros,
    /// It was there and lies beyond the end now.
    CutOff,
}

impl Kind {
    fn words(self) -> &'static str {
        match self {
            Kind::Data => "data",
            Kind::Zeros => "zeros",
            Kind::CutOff => "cut off",
        }
    }
}

/// A range that differs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
struct Row {
    offset: u64,
    length: u64,
    kind: Kind,
}

/// What differs between two states.
#[derive(Debug, Serialize)]
struct Report {
    from: String,
    to: String,
    from_bytes: u64,
    to_bytes: u64,
    data_bytes: u64,
    zeros_bytes: u64,
    cut_off_bytes: u64,
    changed: Vec<Row>,
}

/// Runs the command.
pub fn run(context: &Context, options: &Diff) -> Result<(), Failure> {
    let interrupt = Interrupt::listen()?;
    let from = &options.from;
    let to = options.to.clone().unwrap_or_else(|| Name::Volume(from.volume.clone()));
    let report = if to == Name::Snapshot(from.clone()) {
        let bytes = context.snapshot(from)?.bytes;
        Report::new(from.to_string(), to.to_string(), bytes, bytes, Vec::new())
    } else {
        let mut pair = Pair::open(context, Some(from), &to, &interrupt)?;
        let from_bytes = pair.from.as_ref().map_or(0, |(report, _)| report.bytes);
        let to_bytes = pair.client.export().bytes;
        let mut rows = Vec::new();
        for window in windows(to_bytes) {
            add(&mut rows, window.start, &changed(&mut pair.client, window, &interrupt)?);
        }
        pair.close()?;
        Report::new(from.to_string(), to.to_string(), from_bytes, to_bytes, rows)
    };
    if context.json { print::json(&report) } else { print::text(&report.tabulate()) }
}

/// Adds what differs from `offset` on; neighbours of the same kind are one.
fn add(rows: &mut Vec<Row>, mut offset: u64, runs: &[Changed]) {
    for run in runs {
        let kind = if run.zero { Kind::Zeros } else { Kind::Data };
        match rows.last_mut() {
            _ if !run.dirty => {}
            Some(last) if last.kind == kind && last.offset + last.length == offset => {
                last.length += run.length;
            }
            _ => rows.push(Row { offset, length: run.length, kind }),
        }
        offset += run.length;
    }
}

impl Report {
    fn new(from: String, to: String, from_bytes: u64, to_bytes: u64, mut rows: Vec<Row>) -> Report {
        if to_bytes < from_bytes {
            let length = from_bytes - to_bytes;
            rows.push(Row { offset: to_bytes, length, kind: Kind::CutOff });
        }
        let sum = |kind| rows.iter().filter(|row| row.kind == kind).map(|row| row.length).sum();
        Report {
            from,
            to,
            from_bytes,
            to_bytes,
            data_bytes: sum(Kind::Data),
            zeros_bytes: sum(Kind::Zeros),
            cut_off_bytes: sum(Kind::CutOff),
            changed: rows,
        }
    }

    fn tabulate(&self) -> String {
        let rows = self.changed.iter().map(|row| {
            vec![row.offset.to_string(), row.length.to_string(), row.kind.words().to_string()]
        });
        let mut text = String::new();
        if !self.changed.is_empty() {
            let columns = [("OFFSET", true), ("LENGTH", true), ("KIND", false)];
            text = print::table(&columns, rows.collect());
        }
        let Report { from, to, from_bytes, to_bytes, data_bytes, zeros_bytes, .. } = self;
        let (data, zeros) = (Size(*data_bytes), Size(*zeros_bytes));
        let total = Size(data_bytes + zeros_bytes);
        text += &match data_bytes + zeros_bytes {
            0 => format!("nothing of {to} differs from {from}"),
            _ => format!("{total} of {to} differ from {from}: {data} of data, {zeros} of zeros"),
        };
        if from_bytes != to_bytes {
            let change = if from_bytes < to_bytes { "grew" } else { "shrank" };
            let (before, after) = (Size(*from_bytes), Size(*to_bytes));
            text += &format!("; it {change} from {before} to {after}");
        }
        text + "\n"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(length: u64, dirty: bool, zero: bool) -> Changed {
        Changed { length, dirty, zero }
    }

    #[test]
    fn ranges_are_tabulated_with_a_sum_and_the_sizes() {
        let mut rows = Vec::new();
        let runs = [run(4096, false, false), run(8192, true, false), run(4096, true, true)];
        add(&mut rows, 0, &runs);
        add(&mut rows, 16_384, &[run(4096, true, true), run(4096, false, false)]);
        let report = Report::new("web@a".into(), "web".into(), 28_672, 24_576, rows);
        let expected = "\
OFFSET  LENGTH  KIND
  4096    8192  data
 12288    8192  zeros
 24576    4096  cut off
16.0 KiB of web differ from web@a: 8.0 KiB of data, 8.0 KiB of zeros; it shrank from 28.0 KiB to \
24.0 KiB
";
        assert_eq!(report.tabulate(), expected);
        let json = serde_json::to_value(&report).expect("JSON");
        assert_eq!(
            (&json["cut_off_bytes"], &json["changed"][2]["kind"]),
            (&4096.into(), &"cut_off".into())
        );
        let nothing = Report::new("web@a".into(), "web@b".into(), 4096, 8192, Vec::new());
        let expected = "nothing of web@b differs from web@a; it grew from 4.0 KiB to 8.0 KiB\n";
        assert_eq!(nothing.tabulate(), expected);
    }
}
