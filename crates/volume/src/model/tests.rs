//! The runs.

use super::*;

const CALM: Faults = Faults { busy: 0, no_space: 0, corrupt: 0 };

/// What may go wrong in a run, times in a thousand steps.
#[derive(Clone, Copy)]
struct Plan {
    faults: Faults,
    deaths: u64,
    power: bool,
    resizes: u64,
    reattach: u64,
    /// Snapshots, flattens, and clones that take the place of the volume.
    snapshots: u64,
    flattens: u64,
    clones: u64,
    /// New volumes that are filled from a source and take the place of the volume; sources that
    /// go away, or come back.
    sources: u64,
    outages: u64,
    /// How many requests may wait for sources and hold a place, if that is not as always.
    share: Option<usize>,
    /// Volumes are told to lie on a layer further down; there are so many at the start.
    shortens: u64,
    depth: u64,
    /// Whether what is acknowledged is promised to be stable.
    ack: bool,
}

const PLAIN: Plan = Plan {
    faults: CALM,
    deaths: 0,
    power: false,
    resizes: 0,
    reattach: 0,
    snapshots: 0,
    flattens: 0,
    clones: 0,
    sources: 0,
    outages: 0,
    share: None,
    shortens: 0,
    depth: 0,
    ack: false,
};

const OBJECT_SECTORS: u64 = 8192;

/// A place where requests meet: around the borders of objects, and near the end.
fn place(world: &mut World) -> (u64, u64) {
    let hot = [0, OBJECT_SECTORS, 2 * OBJECT_SECTORS, 2 * OBJECT_SECTORS + 4000];
    let around = hot[world.random.below(4) as usize];
    let first = (around + world.random.below(96)).saturating_sub(48);
    let sectors = match world.random.below(20) {
        0 => 1 + world.random.below(6000),
        1..4 => 8 + world.random.below(200),
        _ => 1 + world.random.below(40),
    };
    if world.random.chance(400) {
        (first / 8 * 8, sectors.div_ceil(8) * 8)
    } else {
        (first, sectors)
    }
}

fn submit_something(world: &mut World) {
    let (first, sectors) = place(world);
    let fua = world.random.chance(100);
    match world.random.below(100) {
        0..35 => world.read(first, sectors),
        35..75 => world.write(first, sectors, fua),
        75..82 => world.discard(first, sectors, fua),
        82..90 => {
            let (unmap, fast) = (world.random.chance(500), world.random.chance(300));
            world.zero(first, sectors, unmap, fast, fua);
        }
        90..96 => world.flush(),
        96..98 => {
            let what = What::Status { first, sectors };
            world.request(first, sectors, Operation::Status, what, None);
        }
        _ => world.request(first, sectors, Operation::Prefetch, What::Other, None),
    }
}

fn resize(world: &mut World) {
    let bytes = (2 * OBJECT_SECTORS + 800 * world.random.below(8)) * SECTOR / 4096 * 4096;
    let resize = Command::ResizeVolume { volume: world.volume, bytes, allow_shrink: true };
    // Refused while a shrink is not done: then it stays as it is.
    let _ = world.state.apply(&resize);
}

/// The requests that ended, and the shortenings.
fn run(seed: u64, steps: u64, plan: Plan) -> (u64, u64) {
    let bytes = (2 * OBJECT_SECTORS + 5600) * SECTOR;
    let mut world = World::new(seed, bytes, plan.faults);
    world.share = plan.share;
    if plan.ack {
        world.promise();
    }
    let depth = 1 + world.random.below(24) as usize;
    for _ in 0..plan.depth {
        for _ in 0..10 {
            submit_something(&mut world);
        }
        world.disk.faults = CALM;
        super::layer_cases::go_on_with_a_clone(&mut world);
        world.disk.faults = plan.faults;
    }
    let mut dead_for = 0;
    for _ in 0..steps {
        match world.random.below(10) {
            // What comes before the attachment is open is checked against the size of later.
            0..4 if world.opened.is_none() && plan.resizes > 0 => {}
            0..4 if world.open.len() < depth => submit_something(&mut world),
            0..6 => {
                for _ in 0..1 + world.random.below(6) {
                    world.disk.step(&mut world.random);
                }
            }
            6..9 => {
                world.deliver();
                if world.random.chance(500) {
                    world.deliver_source();
                }
            }
            _ => {
                let span = Duration::from_millis(world.random.below(4));
                world.pass(span);
            }
        }
        if world.disk.dead {
            dead_for += 1;
            if dead_for > 40 && world.random.chance(100) {
                world.reopen();
                dead_for = 0;
            }
        } else if world.random.chance(plan.deaths) {
            let power = plan.power && world.random.chance(600);
            world.die(power);
        }
        if world.random.chance(plan.resizes) {
            resize(&mut world);
        }
        if !Arc::ptr_eq(&world.map, &world.state.map()) && world.random.chance(100) {
            world.tell_map();
        }
        if world.random.chance(plan.reattach) {
            world.source.down = None;
            world.close();
            world.attach(false);
        }
        if world.random.chance(plan.snapshots) && world.snapshot() && world.random.chance(500) {
            world.tell_map();
        }
        if world.random.chance(plan.flattens) {
            let start = world.random.chance(800);
            world.tell(Event::Flatten { start });
        }
        if plan.shortens > 0 && world.random.chance(plan.shortens) {
            shorten(&mut world);
        }
        if world.random.chance(plan.clones) {
            go_on_with_a_clone(&mut world);
        }
        if world.random.chance(plan.sources) {
            go_on_with_a_source(&mut world);
        }
        if world.random.chance(plan.outages) {
            let is_down = world.source.down.is_some();
            world.source.down = (!is_down).then_some("connection refused");
        }
    }
    if plan.shortens > 0 {
        // Most go to their end, under load.
        shorten(&mut world);
        for _ in 0..5000 {
            if world.session.flattening().is_none() {
                break;
            }
            if world.opened.is_some() && world.open.len() < depth && world.random.chance(60) {
                submit_something(&mut world);
            }
            world.advance();
        }
    }
    finish(&mut world);
    (world.completed, world.shortened)
}

/// Has the volume lie on one of the layers further down that show through it.
fn shorten(world: &mut World) {
    let chain = world.chain();
    if chain.len() > 1 {
        let place = 1 + world.random.below(chain.len() as u64 - 1) as usize;
        world.tell(Event::Shorten { parent: chain[place].layer });
    }
}

/// What was written so far lies below a clone from now on.
fn go_on_with_a_clone(world: &mut World) {
    let faults = std::mem::replace(&mut world.disk.faults, CALM);
    finish(world);
    let snapshots = world.snaps.len() as u64;
    if snapshots > 2 && world.random.chance(500) {
        let number = world.random.below(snapshots) as usize;
        world.delete_snapshot(number);
    }
    match world.last_sealed() {
        Some(number) => world.clone_snapshot(number, true),
        None => world.attach(false),
    }
    world.disk.faults = faults;
    // So that the sizes known to the model and to the session agree.
    world.settle();
}

/// A volume that shows what lies elsewhere from now on.
fn go_on_with_a_source(world: &mut World) {
    let faults = std::mem::replace(&mut world.disk.faults, CALM);
    finish(world);
    let bytes = (2 * OBJECT_SECTORS + 800 * world.random.below(8)) * SECTOR;
    let source_bytes = SECTOR * (1 + world.random.below(3 * OBJECT_SECTORS));
    world.create_from_source(bytes, source_bytes);
    let start = world.random.chance(700);
    world.tell(Event::Flatten { start });
    if world.random.chance(500) {
        let bytes_per_s = 1 << (18 + world.random.below(14));
        world.tell(Event::FillRate { bytes_per_s });
    }
    world.disk.faults = faults;
    world.settle();
}

/// Everything ends, and after a close and a new attachment all of it is still there.
fn finish(world: &mut World) {
    world.disk.faults = CALM;
    world.source.down = None;
    world.settle();
    if world.unreported || world.register.failures() > 0 {
        // Two: the first one may have to report a loss, and the one after it too.
        for _ in 0..3 {
            world.flush();
            world.settle();
        }
    }
    world.seal();
    world.close();
    world.attach(true);
    let sectors = world.sectors();
    for first in (0..sectors).step_by(2048) {
        world.read(first, (sectors - first).min(2048));
    }
    world.settle();
    world.close();
    world.check_snapshots();
}

/// Runs a number of seeds.
fn check(seeds: u64, steps: u64, plan: Plan) {
    let first = std::env::var("SEED").ok().and_then(|seed| seed.parse().ok());
    let range = first.map_or(0..seeds, |seed: u64| seed..seed + 1);
    let (mut completed, mut shortened) = (0, 0);
    for seed in range {
        let result = std::panic::catch_unwind(|| run(seed, steps, plan));
        match result {
            Ok(counts) => {
                completed += counts.0;
                shortened += counts.1;
            }
            Err(damage) => {
                println!("seed {seed}: run again with SEED={seed}, and TRACE=1 to see it all");
                std::panic::resume_unwind(damage);
            }
        }
    }
    assert!(completed > 0);
    assert!(first.is_some() || plan.shortens == 0 || shortened >= seeds / 4, "{shortened}");
}

const STEPS: u64 = 600;

#[test]
fn overlapping_requests_see_one_another_in_order() {
    check(25, STEPS, Plan { reattach: 2, ..PLAIN });
}

#[test]
fn a_busy_full_and_damaged_disk_harms_only_the_requests_it_refused() {
    let faults = Faults { busy: 30, no_space: 40, corrupt: 5 };
    check(25, STEPS, Plan { faults, reattach: 2, ..PLAIN });
}

#[test]
fn a_disk_that_is_opened_anew_gets_what_it_missed() {
    let faults = Faults { busy: 10, no_space: 20, corrupt: 0 };
    check(25, STEPS, Plan { faults, deaths: 8, reattach: 1, ..PLAIN });
}

#[test]
fn a_power_failure_takes_only_what_was_not_flushed_and_the_next_flush_says_so() {
    let faults = Faults { busy: 10, no_space: 20, corrupt: 0 };
    let plan = Plan { faults, deaths: 8, power: true, ..PLAIN };
    check(40, STEPS, plan);
    // A disk that was opened anew and that the session still knew by its opening before took a
    // write; the answer came after the map, was not heard, and power failed: nothing was lost.
    run(153, STEPS, plan);
}

/// Nothing that is asked fails for what the disk loses, either.
#[test]
fn a_power_failure_takes_nothing_that_was_acknowledged_where_that_is_promised() {
    let faults = Faults { busy: 10, no_space: 20, corrupt: 0 };
    let plan = Plan { faults, deaths: 8, power: true, ack: true, ..PLAIN };
    check(40, STEPS, plan);
    let layers = Plan { snapshots: 10, flattens: 10, clones: 3, resizes: 5, ..plan };
    check(30, STEPS, layers);
}

#[test]
fn what_a_shrink_cut_off_never_comes_back() {
    let faults = Faults { busy: 10, no_space: 0, corrupt: 0 };
    check(25, STEPS, Plan { faults, deaths: 2, resizes: 12, reattach: 1, ..PLAIN });
}

#[test]
fn everything_at_once() {
    let faults = Faults { busy: 20, no_space: 20, corrupt: 3 };
    check(40, STEPS, Plan { faults, deaths: 5, power: true, resizes: 5, ..PLAIN });
}

#[test]
fn a_snapshot_has_what_was_acknowledged_before_it_and_no_half_of_a_write() {
    check(30, STEPS, Plan { snapshots: 20, reattach: 2, ..PLAIN });
}

#[test]
fn a_snapshot_outlives_what_happens_to_the_disk() {
    let faults = Faults { busy: 30, no_space: 20, corrupt: 0 };
    check(30, STEPS, Plan { faults, deaths: 6, snapshots: 20, reattach: 1, ..PLAIN });
    let faults = Faults { busy: 30, no_space: 0, corrupt: 0 };
    check(30, STEPS, Plan { faults, deaths: 6, power: true, snapshots: 20, ..PLAIN });
}

#[test]
fn a_clone_shows_what_it_was_made_of() {
    check(12, STEPS, Plan { snapshots: 10, clones: 5, resizes: 10, ..PLAIN });
}

#[test]
fn a_clone_that_is_resized_and_flattened_under_load_stays_what_it_is() {
    let faults = Faults { busy: 20, no_space: 0, corrupt: 0 };
    let plan = Plan { faults, snapshots: 10, clones: 5, resizes: 6, flattens: 10, ..PLAIN };
    check(15, STEPS, plan);
}

#[test]
fn layers_and_everything_else_at_once() {
    let faults = Faults { busy: 20, no_space: 0, corrupt: 0 };
    let deaths = Plan { faults, deaths: 4, power: true, resizes: 5, ..PLAIN };
    check(20, STEPS, Plan { snapshots: 10, clones: 4, flattens: 10, ..deaths });
}

#[test]
fn a_volume_shows_its_source_whatever_happens_to_either() {
    check(15, STEPS, Plan { sources: 6, outages: 10, reattach: 3, ..PLAIN });
    let faults = Faults { busy: 20, no_space: 0, corrupt: 0 };
    let deaths = Plan { faults, deaths: 4, power: true, resizes: 5, ..PLAIN };
    let sources = Plan { sources: 5, outages: 10, ..deaths };
    check(20, STEPS, Plan { snapshots: 10, clones: 3, flattens: 10, ..sources });
}

#[test]
fn what_waits_for_a_source_keeps_its_order_when_it_is_put_off() {
    let faults = Faults { busy: 20, no_space: 0, corrupt: 0 };
    for requests in [1, 3] {
        let plan = Plan { faults, sources: 5, outages: 20, share: Some(requests), ..PLAIN };
        check(2, STEPS, Plan { reattach: 3, ..plan });
        check(2, STEPS, Plan { deaths: 4, power: true, ..plan });
        check(2, STEPS, Plan { snapshots: 10, flattens: 10, clones: 3, ..plan });
    }
}

#[test]
fn a_chain_that_is_shortened_under_load_shows_what_it_did() {
    let calm = Plan { depth: 6, shortens: 10, reattach: 1, ..PLAIN };
    check(3, STEPS, calm);
    check(3, STEPS, Plan { resizes: 6, snapshots: 2, flattens: 2, clones: 1, ..calm });
    let faults = Faults { busy: 20, no_space: 10, corrupt: 0 };
    check(5, STEPS, Plan { faults, deaths: 5, power: true, resizes: 3, ..calm });
}
