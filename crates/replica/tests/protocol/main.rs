//! The replication protocol, explored state by state: within its bounds nothing is lost, nothing
//! that was gone rises, nobody reads what is no longer so; and without any one of its guards there
//! is a way to lose something. `docs/reliability.md` has the figures and what they mean.
//!
//! With `PROTOCOL_FAR=1` it goes much further, for minutes and in gigabytes.

mod model;

use model::{Bounds, Guard, Protocol};
use stateright::{Checker, Model};

/// Three members, one write, one session after the other; nothing else happens.
const CALM: Bounds = Bounds {
    disks: 3,
    members: 3,
    writes: 1,
    sessions: 2,
    restarts: 0,
    power_cuts: 0,
    changes: 0,
    attempts: 0,
    copies: 0,
    settled_points: false,
    removed: None,
};

/// What the continuous integration explores, and how many states that has: another number means
/// another protocol.
const EXPLORED: [(&str, Bounds, usize); 8] = [
    ("two writes, two power cuts", Bounds { writes: 2, power_cuts: 2, ..CALM }, 128286),
    ("two writes, a change", Bounds { writes: 2, changes: 1, attempts: 1, ..CALM }, 1076050),
    (
        "a change, two power cuts",
        Bounds { power_cuts: 2, changes: 1, attempts: 1, ..CALM },
        1046234,
    ),
    (
        "two members and one more, two power cuts, a copy",
        Bounds { members: 2, power_cuts: 2, changes: 1, attempts: 1, copies: 1, ..CALM },
        781672,
    ),
    (
        "settled points, a change",
        Bounds { settled_points: true, power_cuts: 1, changes: 1, attempts: 1, ..CALM },
        1302456,
    ),
    ("a change in two attempts", Bounds { changes: 1, attempts: 2, ..CALM }, 334511),
    (
        "a restart, a change, a copy",
        Bounds { restarts: 1, changes: 1, attempts: 1, copies: 1, ..CALM },
        312744,
    ),
    (
        "two writes, a restart, a change, a copy, one session",
        Bounds { writes: 2, sessions: 1, restarts: 1, changes: 1, attempts: 1, copies: 1, ..CALM },
        59098,
    ),
];

/// What `make soak` explores beside, with `PROTOCOL_FAR`.
const EXPLORED_FAR: [(&str, Bounds); 8] = [
    (
        "two attempts, a power cut, two copies",
        Bounds { power_cuts: 1, changes: 1, attempts: 2, copies: 2, ..CALM },
    ),
    (
        "two writes, a power cut, two attempts, two copies, one session",
        Bounds {
            writes: 2,
            sessions: 1,
            power_cuts: 1,
            changes: 1,
            attempts: 2,
            copies: 2,
            ..CALM
        },
    ),
    (
        "a restart and a power cut",
        Bounds { restarts: 1, power_cuts: 1, changes: 1, attempts: 1, ..CALM },
    ),
    (
        "settled points, two power cuts",
        Bounds { settled_points: true, power_cuts: 2, changes: 1, attempts: 1, ..CALM },
    ),
    (
        "two writes, a power cut, a change",
        Bounds { writes: 2, power_cuts: 1, changes: 1, attempts: 1, ..CALM },
    ),
    (
        "two members and one more, two writes, a power cut",
        Bounds { members: 2, writes: 2, power_cuts: 1, changes: 1, attempts: 1, ..CALM },
    ),
    ("a power cut, two changes", Bounds { power_cuts: 1, changes: 2, attempts: 2, ..CALM }),
    (
        "two writes, two power cuts, a change",
        Bounds { writes: 2, power_cuts: 2, changes: 1, attempts: 1, ..CALM },
    ),
];

/// Where the lack of each guard is felt, and how.
fn broken() -> Vec<(Guard, Bounds, &'static str)> {
    let changed = Bounds { changes: 1, attempts: 1, ..CALM };
    const STALE: &str = "a fenced session reads what is no longer so";
    const LOST: &str = "an acknowledged write is lost";
    const ROSE: &str = "a write that was gone rises";
    const DIFFER: &str = "the members of a new configuration differ";
    let alone = Bounds { sessions: 1, ..changed.clone() };
    let twice = Bounds { changes: 2, attempts: 2, power_cuts: 2, ..alone.clone() };
    vec![
        (Guard::ConfirmedAfterwards, CALM, STALE),
        (Guard::ConfirmedByQuorum, Bounds { members: 2, ..changed.clone() }, STALE),
        (Guard::RefusalNoticed, Bounds { disks: 4, members: 2, ..changed.clone() }, STALE),
        (Guard::LastSettledGeneration, changed.clone(), ROSE),
        (Guard::WriteSettles, changed.clone(), LOST),
        (Guard::FlushBeforeOpening, Bounds { power_cuts: 2, ..changed.clone() }, ROSE),
        (Guard::Incarnation, Bounds { power_cuts: 1, ..CALM }, LOST),
        (Guard::FlushBeforeActivation, twice, LOST),
        (Guard::NewcomerTakesNoWrites, Bounds { writes: 2, ..alone.clone() }, DIFFER),
        (
            Guard::IncompleteIsMarked,
            Bounds { members: 2, copies: 1, ..alone.clone() },
            "equal stamps, other content",
        ),
        (
            Guard::EvidenceStaysWhole,
            Bounds { writes: 2, restarts: 1, copies: 1, ..alone.clone() },
            LOST,
        ),
        (Guard::EvidenceOnlyGrows, Bounds { restarts: 1, copies: 1, ..alone.clone() }, LOST),
        (
            Guard::AdoptedInOne,
            Bounds { power_cuts: 2, copies: 1, ..alone.clone() },
            "equal stamps, other content",
        ),
        (Guard::RefusalBeforeActivation, alone.clone(), DIFFER),
        (Guard::EvidenceOfReopened, Bounds { restarts: 1, power_cuts: 1, ..alone.clone() }, LOST),
        (
            Guard::SettledPointIsStable,
            Bounds { settled_points: true, power_cuts: 2, ..alone.clone() },
            DIFFER,
        ),
        (Guard::NewestAttempt, Bounds { writes: 2, attempts: 2, ..alone.clone() }, DIFFER),
        (
            Guard::NewStampAfterLoss,
            Bounds { writes: 2, power_cuts: 2, ..alone },
            "equal stamps, other content",
        ),
        (Guard::ConfigurationOfSettle, changed, DIFFER),
    ]
}

/// How many states there are, and how the first thing goes wrong that does. With one thread the
/// way there is always the same, one of the shortest.
fn explore(bounds: Bounds, threads: usize) -> (usize, Option<(&'static str, String)>) {
    let checker = Protocol { bounds }.checker().threads(threads).spawn_bfs().join();
    let found = checker.discoveries().into_values().next();
    let found = found.map(|path| {
        let what = path.last_state().violation().expect("that is what was looked for");
        let steps = path.into_actions();
        (what, steps.iter().map(|step| format!("  {step:?}\n")).collect())
    });
    (checker.unique_state_count(), found)
}

fn holds(name: &str, bounds: Bounds) -> usize {
    let (states, found) = explore(bounds, 2);
    println!("{name}: {states} states");
    if let Some((what, steps)) = found {
        panic!("{name}: {what}:\n{steps}");
    }
    states
}

#[test]
fn nothing_is_lost_in_any_order_of_events() {
    let mut same = true;
    for (name, bounds, states) in EXPLORED {
        same &= holds(name, bounds) == states;
    }
    assert!(same, "other states than were documented; see above");
    if std::env::var_os("PROTOCOL_FAR").is_some() {
        for (name, bounds) in EXPLORED_FAR {
            holds(name, bounds);
        }
    }
}

#[test]
fn without_any_one_guard_something_is_lost() {
    let broken = broken();
    for guard in model::GUARDS {
        assert!(broken.iter().any(|(known, ..)| *known == guard), "{guard:?} is never removed");
    }
    for (guard, bounds, wanted) in broken {
        let (states, found) = explore(Bounds { removed: Some(guard), ..bounds }, 1);
        let (what, steps) = found.unwrap_or_else(|| panic!("{guard:?} is not needed"));
        println!("without {guard:?}, after {states} states: {what}:\n{steps}");
        assert_eq!(what, wanted, "without {guard:?}:\n{steps}");
    }
}
