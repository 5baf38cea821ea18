//! `dog schedule`: snapshots that are taken again and again.

use super::{Context, Failure, arguments::ScheduleVerb, print};
use crate::span::Span;
use engine::admin::{AdminReply, AdminRequest, ScheduleReport};
use proto::limits::{SCHEDULE_EVERY_S_MAX, SCHEDULE_EVERY_S_MIN};

/// Runs one verb.
pub fn run(context: &Context, verb: ScheduleVerb) -> Result<(), Failure> {
    match verb {
        ScheduleVerb::Set { volume, schedule, every, keep } => {
            set(context, &volume.0, &schedule, every, keep)
        }
        ScheduleVerb::Remove { volume, schedule } => remove(context, &volume.0, &schedule),
        ScheduleVerb::List { volume } => list(context, volume.map(|volume| volume.0)),
    }
}

fn set(
    context: &Context,
    volume: &str,
    schedule: &str,
    every: Span,
    keep: u32,
) -> Result<(), Failure> {
    let every_s = every_s(every)?;
    let (name, schedule_name) = (volume.to_string(), schedule.to_string());
    let request = AdminRequest::ScheduleSet { name, schedule: schedule_name, every_s, keep };
    let AdminReply::Schedule(report) = context.ask(&request)? else {
        return Err(Failure::mismatch());
    };
    if context.json {
        return print::json(&report);
    }
    print::text(&format!(
        "volume {volume} gets a snapshot {schedule}-DATE every {}, of which {} are kept; the next \
         one: {}\n",
        Span::of_seconds(report.every_s.into()),
        report.keep,
        next(&report)
    ))
}

/// The time between two snapshots, in seconds.
fn every_s(every: Span) -> Result<u32, Failure> {
    let seconds = u32::try_from(every.seconds()).ok();
    let limits = SCHEDULE_EVERY_S_MIN..=SCHEDULE_EVERY_S_MAX;
    seconds.filter(|seconds| limits.contains(seconds)).ok_or_else(|| {
        // The daemon would say so in seconds.
        Failure::usage(format!(
            "snapshots cannot be taken every {every}; choose one minute to 366 days"
        ))
    })
}

fn remove(context: &Context, volume: &str, schedule: &str) -> Result<(), Failure> {
    let (name, schedule) = (volume.to_string(), schedule.to_string());
    let sentence = format!("schedule {schedule} of volume {name} removed; its snapshots stay");
    context.tell(&AdminRequest::ScheduleRemove { name, schedule })?;
    context.done(&sentence)
}

fn list(context: &Context, name: Option<String>) -> Result<(), Failure> {
    let AdminReply::Schedules(schedules) = context.ask(&AdminRequest::ScheduleList { name })?
    else {
        return Err(Failure::mismatch());
    };
    if context.json { print::json(&schedules) } else { print::text(&tabulate(&schedules)) }
}

/// Schedules as a table.
fn tabulate(schedules: &[ScheduleReport]) -> String {
    let columns = [
        ("VOLUME", false),
        ("SCHEDULE", false),
        ("EVERY", true),
        ("KEPT", true),
        ("NEXT", false),
        ("LAST PROBLEM", false),
    ];
    let rows = schedules.iter().map(|schedule| {
        vec![
            schedule.volume.clone(),
            schedule.schedule.clone(),
            Span::of_seconds(schedule.every_s.into()).to_string(),
            format!("{} of {}", schedule.snapshots, schedule.keep),
            next(schedule),
            schedule.problem.clone().unwrap_or_else(|| "-".to_string()),
        ]
    });
    print::table(&columns, rows.collect())
}

/// When the next snapshot is due.
fn next(schedule: &ScheduleReport) -> String {
    schedule.next_unix_s.map_or("at rest".to_string(), proto::calendar::date)
}

/// One schedule in words, for the description of its volume.
pub(super) fn words(schedule: &ScheduleReport) -> String {
    let mut words = format!(
        "{} every {}, {} of {} kept, next {}",
        schedule.schedule,
        Span::of_seconds(schedule.every_s.into()),
        schedule.snapshots,
        schedule.keep,
        next(schedule)
    );
    if let Some(problem) = &schedule.problem {
        words += &format!("; the last one could not be taken: {problem}");
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule() -> ScheduleReport {
        ScheduleReport {
            volume: "web".to_string(),
            schedule: "hourly".to_string(),
            every_s: 3600,
            keep: 24,
            next_unix_s: Some(1_700_002_800),
            last_slot: 472_222,
            snapshots: 3,
            last_snapshot_unix_s: Some(1_699_999_200),
            problem: None,
            failing: false,
        }
    }

    #[test]
    fn schedules_are_tabulated() {
        let mut resting = schedule();
        (resting.schedule, resting.every_s) = ("daily".to_string(), 86_400);
        (resting.next_unix_s, resting.problem) = (None, Some("it is full".to_string()));
        let expected = "\
VOLUME  SCHEDULE  EVERY     KEPT  NEXT                     LAST PROBLEM
web     hourly       1h  3 of 24  2023-11-14 23:00:00 UTC  -
web     daily        1d  3 of 24  at rest                  it is full
";
        assert_eq!(tabulate(&[schedule(), resting]), expected);
    }

    #[test]
    fn a_wrong_interval_is_told_as_it_was_asked_for() {
        let check = |text: &str, expected| {
            let found = every_s(text.parse().expect("a span of time"));
            let problem = format!("every {text}; choose one minute to 366 days");
            match expected {
                Some(seconds) => assert_eq!(found, Ok(seconds), "{text}"),
                None => assert!(found.expect_err(text).sentence.contains(&problem), "{text}"),
            }
        };
        check("1m", Some(60));
        check("366d", Some(31_622_400));
        check("59s", None);
        check("367d", None);
        check("500ms", None);
        check("99999999d", None);
    }

    #[test]
    fn one_schedule_is_told_in_words() {
        let mut failed = schedule();
        failed.problem = Some("it is full".to_string());
        let plain = "hourly every 1h, 3 of 24 kept, next 2023-11-14 23:00:00 UTC";
        assert_eq!(words(&schedule()), plain);
        assert_eq!(words(&failed), format!("{plain}; the last one could not be taken: it is full"));
    }
}
