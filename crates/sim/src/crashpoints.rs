//! Every crash point of small workloads on one disk: after each end of a disk operation the power
//! goes or the process dies, in every way that matters, and the disk must come back right.

use crate::{
    disk::{CrashState, Fault, Image, Mixture, SimDisk},
    ledger::{Asked, Crash, Ledger, Step},
    onedisk::{OneDisk, Order, Reader, Setup},
    random::{Random, mix},
};
use proto::Duration;
use std::collections::BTreeSet;
use store::{DamagedPart, Event};

/// The operations on layers that workloads are extended by.
pub const LAYER_STEPS: [Step; 5] =
    [Step::Open, Step::Write(0, 1, 2), Step::Write(1, 5, 1), Step::DropUpper, Step::DropLower];

/// The eight operations that workloads are made of.
pub const STEPS: [Step; 8] = [
    Step::Write(0, 0, 2),
    Step::Write(0, 1, 2),
    Step::Write(1, 5, 1),
    Step::WriteZeros(0, 0, 1),
    Step::Absent(0, 1, 1),
    Step::Zero(0, 0, 3),
    Step::Drop,
    Step::Flush,
];

/// Mixtures of sectors tried at each crash point.
pub const MIXTURES: u64 = 16;

/// All workloads of one up to `longest` operations.
pub fn workloads(longest: usize) -> Vec<Vec<Step>> {
    workloads_of(&STEPS, longest)
}

/// The same of other operations.
pub fn workloads_of(steps: &[Step], longest: usize) -> Vec<Vec<Step>> {
    let mut all: Vec<Vec<Step>> = vec![Vec::new()];
    let mut from = 0;
    for _ in 0..longest {
        let end = all.len();
        for at in from..end {
            for step in steps {
                let mut longer = all[at].clone();
                longer.push(*step);
                all.push(longer);
            }
        }
        from = end;
    }
    all.split_off(1)
}

/// How a workload is run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Pace {
    /// Each operation is answered before the next one is asked for. Crash points before the last
    /// operation are those of the shorter workload.
    OneByOne,
    /// All operations are asked for at once.
    AllAtOnce,
}

/// What was tried.
#[derive(Clone, Copy, Default, Debug)]
pub struct Tally {
    /// Workloads run.
    pub workloads: u64,
    /// Crash points met.
    pub points: u64,
    /// Crash states enumerated.
    pub states: u64,
    /// Of these, states that no earlier one was equal to: opened and verified.
    pub recoveries: u64,
}

impl Tally {
    /// Adds another.
    pub fn add(&mut self, other: Tally) {
        self.workloads += other.workloads;
        self.points += other.points;
        self.states += other.states;
        self.recoveries += other.recoveries;
    }
}

/// A disk with something on it, from which workloads start.
pub struct Base {
    setup: Setup,
    image: Image,
    ledger: Ledger,
}

impl Base {
    /// A disk that was just made.
    pub fn fresh(setup: Setup) -> Base {
        let image = setup.formatted().expect("a blank medium can be formatted");
        Base { setup, image, ledger: Ledger::default() }
    }

    /// A disk with data in both objects, closed in order, so that maps and table are on it.
    pub fn used(setup: Setup) -> Base {
        Base::after(setup, &[Step::Write(0, 0, 4), Step::Zero(0, 6, 2), Step::Write(1, 4, 3)])
    }

    /// The same with two layers: the upper one has changed a part of one object.
    pub fn layered(setup: Setup) -> Base {
        let lower = [Step::Write(0, 0, 4), Step::Zero(0, 6, 2), Step::Write(1, 4, 3)];
        let upper = [Step::Open, Step::Write(0, 2, 1), Step::Absent(0, 0, 1)];
        Base::after(setup, &[&lower[..], &upper[..]].concat())
    }

    fn after(setup: Setup, steps: &[Step]) -> Base {
        let mut base = Base::fresh(setup);
        let mut disk = OneDisk::open(&base.setup, base.image, Order::FirstFirst).expect("opens");
        for step in steps.iter().chain(&[Step::Flush]) {
            run_step(&mut disk, &mut base.ledger, *step).expect("no fault, no refusal");
        }
        let medium = disk.close();
        base.image = medium.crashed(&CrashState::New);
        let mut disk = OneDisk::open(&base.setup, base.image, Order::FirstFirst).expect("opens");
        base.ledger.verify(&mut disk, Crash::Power).expect("a closed disk is whole");
        disk.settle();
        base.image = disk.disk().crashed(&CrashState::New);
        base
    }

    /// Opens it.
    pub fn open(&self, order: Order) -> (OneDisk, Ledger) {
        let disk = OneDisk::open(&self.setup, self.image.clone(), order).expect("a base opens");
        (disk, self.ledger.clone())
    }
}

/// Explores workloads from one base. Remembers which states it has seen.
pub struct Explorer<'a> {
    base: &'a Base,
    order: Order,
    pace: Pace,
    /// Whether the disk is closed as soon as the last operation was asked for.
    closing: bool,
    /// What the medium does wrong in every workload: to test the test.
    sabotage: Vec<Fault>,
    seen: BTreeSet<u64>,
    /// What was tried so far.
    pub tally: Tally,
}

impl<'a> Explorer<'a> {
    /// An explorer that has seen nothing.
    pub fn new(base: &'a Base, order: Order, pace: Pace) -> Explorer<'a> {
        let (sabotage, seen) = (Vec::new(), BTreeSet::new());
        let closing = false;
        Explorer { base, order, pace, closing, sabotage, seen, tally: Tally::default() }
    }

    /// The same, closing the disk in order at the end: crash points of a whole checkpoint.
    pub fn closing(mut self) -> Explorer<'a> {
        self.closing = true;
        self
    }

    /// The same on a medium that does something wrong: the explorer must notice.
    pub fn sabotaged(mut self, fault: Fault) -> Explorer<'a> {
        self.sabotage.push(fault);
        self
    }

    /// Tries every crash point of a workload. The error says which one went wrong and how.
    pub fn explore(&mut self, workload: &[Step]) -> Result<(), String> {
        self.tally.workloads += 1;
        let (mut disk, mut ledger) = self.base.open(self.order);
        self.sabotage.iter().for_each(|fault| disk.disk_mut().add_fault(fault.clone()));
        let (last, before) = workload.split_last().expect("workloads are not empty");
        let at_once = match self.pace {
            Pace::AllAtOnce => workload,
            Pace::OneByOne => {
                for step in before {
                    run_step(&mut disk, &mut ledger, *step)?;
                }
                std::slice::from_ref(last)
            }
        };
        let mut asked = Vec::new();
        for step in at_once {
            begin_step(&mut disk, &mut ledger, *step, &mut asked)?;
        }
        if self.closing {
            disk.event(Event::Close);
        }
        disk.round();
        let mut point = 0;
        let idle_until = disk.now() + IDLE;
        loop {
            collect(&mut disk, &mut ledger, &mut asked)?;
            self.crash_everywhere(&disk, &ledger, workload, point)?;
            point += 1;
            if !disk.step() && !disk.pass_time_until(idle_until) {
                break;
            }
        }
        if asked.is_empty() { Ok(()) } else { Err(format!("{workload:?}: never answered")) }
    }

    /// Tries every way to crash at this point.
    fn crash_everywhere(
        &mut self,
        disk: &OneDisk,
        ledger: &Ledger,
        workload: &[Step],
        point: u32,
    ) -> Result<(), String> {
        self.tally.points += 1;
        let medium = disk.disk();
        let mut states = vec![CrashState::Old, CrashState::New];
        for unit in medium.units() {
            states.push(CrashState::OneOld(unit));
            states.push(CrashState::OneNew(unit));
        }
        let salt = mix(self.tally.points);
        states.extend(
            (0..MIXTURES).map(|n| CrashState::Mixture(Mixture { seed: salt.wrapping_add(n) })),
        );
        for crash in [Crash::Power, Crash::Kill] {
            for state in &states {
                self.tally.states += 1;
                let image = match crash {
                    Crash::Power => medium.crashed(state),
                    Crash::Kill => medium.killed(state),
                };
                let key = image.key() ^ ledger.key(crash).rotate_left(1) ^ crash as u64;
                if !self.seen.insert(key) {
                    continue;
                }
                self.tally.recoveries += 1;
                let context = || {
                    let (order, pace) = (self.order, self.pace);
                    format!(
                        "{workload:?} {order:?} {pace:?}, crash point {point}, {crash:?} {state:?}"
                    )
                };
                let _loud = Loud(&context);
                recover(&self.base.setup, image, ledger.clone(), crash, key)
                    .map_err(|error| format!("{}: {error}", context()))?;
            }
        }
        Ok(())
    }
}

/// How long a disk may go on working by itself after the last answer.
const IDLE: Duration = Duration::from_millis(400);

/// Says where we were when something panics.
struct Loud<'a>(&'a dyn Fn() -> String);

impl Drop for Loud<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("at {}", (self.0)());
        }
    }
}

/// Opens what a crash left and verifies it; some, chosen by the key, are then used further, crash
/// again, or are emptied.
pub fn recover(
    setup: &Setup,
    image: Image,
    mut ledger: Ledger,
    crash: Crash,
    key: u64,
) -> Result<(), String> {
    let mut disk = OneDisk::open(setup, image, Order::FirstFirst)
        .map_err(|error| format!("the disk cannot be opened: {error}"))?;
    ledger.verify(&mut disk, crash)?;
    disk.store().check();
    disk.settle();
    check_offline(disk.disk())?;
    match key % 8 {
        0 => reuse(setup, disk, ledger, key),
        1 => empty(disk, &ledger),
        _ => Ok(()),
    }
}

/// Writes to a recovered disk, cuts the power once more and verifies again.
fn reuse(setup: &Setup, mut disk: OneDisk, mut ledger: Ledger, key: u64) -> Result<(), String> {
    for step in [Step::Write(0, 2, 2), Step::Flush, Step::Write(1, 5, 2)] {
        run_step(&mut disk, &mut ledger, step)?;
    }
    let state = CrashState::Mixture(Mixture { seed: key });
    let image = disk.disk().crashed(&state);
    let mut disk = OneDisk::open(setup, image, Order::FirstFirst)
        .map_err(|error| format!("the second time the disk cannot be opened: {error}"))?;
    ledger.verify(&mut disk, Crash::Power).map_err(|error| format!("the second time {error}"))?;
    check_offline(disk.disk())
}

/// Drops every layer of a disk: all space must come back, exactly.
pub fn empty(mut disk: OneDisk, ledger: &Ledger) -> Result<(), String> {
    for (lineage, layer) in ledger.layers() {
        disk.event(Event::DropLayer { lineage, layer });
    }
    disk.idle(Duration::from_secs(5));
    let status = disk.store().status();
    if status.space.data_bytes + status.space.map_bytes != 0 || status.objects != 0 {
        return Err(format!("dropping everything leaves {status:?}"));
    }
    disk.store().check();
    check_offline(disk.disk())
}

/// The offline check of all that a process that died now would leave.
pub fn check_offline(medium: &SimDisk) -> Result<(), String> {
    match check_offline_mended(medium, |_| true)? {
        0 => Ok(()),
        leaked => Err(format!("the offline check found {leaked} blocks without an owner")),
    }
}

/// The same of a disk on which pages of maps were damaged: what they named has no owner any more,
/// and the disk knows how much that is. Damage that does not count may stay. How much has no owner.
pub fn check_offline_mended(
    medium: &SimDisk,
    counts: impl Fn(DamagedPart) -> bool,
) -> Result<u64, String> {
    let mut report = store::check::check(&mut Reader(medium.image()))
        .map_err(|error| format!("the offline check could not open the disk: {error}"))?;
    let stays = report.damages.iter().filter(|damage| !counts(damage.part));
    let stays: Vec<String> = stays.map(ToString::to_string).collect();
    report.problems.retain(|problem| !stays.contains(problem));
    match report.problems.is_empty() {
        true => Ok(report.leaked_blocks),
        false => Err(format!("the offline check found {:?}", report.problems)),
    }
}

/// Runs one step to its answer.
pub fn run_step(disk: &mut OneDisk, ledger: &mut Ledger, step: Step) -> Result<(), String> {
    let mut asked = Vec::new();
    begin_step(disk, ledger, step, &mut asked)?;
    disk.round();
    if asked.is_empty() {
        disk.settle();
    }
    for (token, asked) in asked {
        let answer = disk.wait(token);
        ledger
            .answered(asked, answer)
            .map_err(|error| format!("{error} ({:?})", disk.store().status()))?;
    }
    Ok(())
}

type Open = Vec<(proto::MemberToken, Asked)>;

/// Asks for one step.
fn begin_step(
    disk: &mut OneDisk,
    ledger: &mut Ledger,
    step: Step,
    open: &mut Open,
) -> Result<(), String> {
    ledger.prepare(disk)?;
    if step == Step::DropLower {
        // A flush covers what was answered before it.
        for (token, _) in open.extract_if(.., |(_, asked)| matches!(asked, Asked::Open)) {
            ledger.answered(Asked::Open, disk.wait(token))?;
        }
        ledger.seal(disk)?;
    }
    match ledger.begin(step) {
        (_, None) => {
            for (lineage, layer) in ledger.take_drops() {
                disk.event(Event::DropLayer { lineage, layer });
            }
        }
        (Asked::Open, Some(request)) => {
            let token = disk.ask(request.clone());
            match disk.answer(token) {
                // Nothing may be sent to a layer before it is open.
                Some(Err(proto::MemberError::Busy)) => {
                    ledger.answered(Asked::Open, disk.call(request))?;
                }
                Some(answer) => ledger.answered(Asked::Open, answer)?,
                None => open.push((token, Asked::Open)),
            }
        }
        (asked, Some(request)) => open.push((disk.ask(request), asked)),
    }
    Ok(())
}

/// Books the answers that have come.
fn collect(disk: &mut OneDisk, ledger: &mut Ledger, open: &mut Open) -> Result<(), String> {
    let mut rest = Vec::new();
    for (token, asked) in std::mem::take(open) {
        match disk.answer(token) {
            Some(answer) => ledger.answered(asked, answer)?,
            None => rest.push((token, asked)),
        }
    }
    *open = rest;
    Ok(())
}

/// The disks that random workloads start from: which one, the seed decides.
pub fn random_bases() -> [Base; 2] {
    [
        Base::fresh(Setup::default()),
        Base::used(Setup { log_bytes: store::LOG_BYTES_MIN, ..Setup::default() }),
    ]
}

/// A longer random workload with several crashes, by one seed.
pub fn random_workload(bases: &[Base; 2], seed: u64) -> Result<Tally, String> {
    let mut random = Random::new(seed);
    let mut tally = Tally { workloads: 1, ..Tally::default() };
    let base = random.pick(bases);
    let (mut disk, mut ledger) = base.open(Order::Seeded(random.next()));
    for life in 0..random.between(2, 5) {
        let mut open = Vec::new();
        for _ in 0..random.between(1, 40) {
            begin_step(&mut disk, &mut ledger, random_step(&mut random), &mut open)?;
            if random.coin() {
                disk.round();
            }
            for _ in 0..random.below(6) {
                disk.step();
            }
            collect(&mut disk, &mut ledger, &mut open)?;
            if random.chance(30_000) {
                disk.idle(Duration::from_millis(random.below(500)));
            }
        }
        tally.points += 1;
        tally.recoveries += 1;
        let state = match random.below(6) {
            0 => CrashState::Old,
            1 => CrashState::New,
            _ => CrashState::Mixture(Mixture { seed: random.next() }),
        };
        let crash = if random.coin() { Crash::Power } else { Crash::Kill };
        let medium = disk.into_disk();
        let image = match crash {
            Crash::Power => medium.crashed(&state),
            Crash::Kill => medium.killed(&state),
        };
        let context = || format!("seed {seed}, life {life}, {crash:?} {state:?}");
        let _loud = Loud(&context);
        disk = recover_interrupted(&base.setup, image, &mut random)
            .map_err(|error| format!("{}: {error}", context()))?;
        ledger
            .verify(&mut disk, crash)
            .and_then(|()| {
                disk.store().check();
                disk.settle();
                check_offline(disk.disk())
            })
            .map_err(|error| format!("{}: {error}", context()))?;
    }
    empty(disk, &ledger).map_err(|error| format!("seed {seed}: {error}"))?;
    Ok(tally)
}

/// Opens a disk, sometimes losing the power again while it is being opened.
fn recover_interrupted(
    setup: &Setup,
    mut image: Image,
    random: &mut Random,
) -> Result<OneDisk, String> {
    while random.chance(300_000) {
        let medium = SimDisk::new(image, setup.capacity, random.fork());
        let mut disk = OneDisk::start(setup, medium, Order::Seeded(random.next()));
        for _ in 0..random.below(12) {
            disk.step();
        }
        image = disk.disk().crashed(&CrashState::Mixture(Mixture { seed: random.next() }));
    }
    let medium = SimDisk::new(image, setup.capacity, random.fork());
    OneDisk::open_disk(setup, medium, Order::Seeded(random.next()))
        .map_err(|error| format!("the disk cannot be opened: {error}"))
}

fn random_step(random: &mut Random) -> Step {
    let index = random.weighted(&[6, 3, 1]) as u32;
    let first = random.below(12) as u32;
    let count = random.between(1, u64::from(16 - first)) as u32;
    match random.weighted(&[40, 4, 8, 10, 2, 12, 4, 1, 4]) {
        0 => Step::Write(index, first, count),
        1 => Step::WriteZeros(index, first, count),
        2 => Step::Zero(index, first, count),
        3 => Step::Absent(index, first, count),
        4 => Step::Drop,
        6 => Step::Open,
        7 => Step::DropUpper,
        8 => Step::DropLower,
        _ => Step::Flush,
    }
}
