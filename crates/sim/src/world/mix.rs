//! What a seed is made of: the mix of operations, faults and circumstances, drawn before the run
//! (swarm testing: most runs lack most things, some have a lot of one).

use crate::{disk::Latency, onedisk::Setup, random::Random};
use proto::{Duration, limits};
use store::MediumKind;

/// How often a guest does what, as weights.
#[derive(Clone, Copy, Debug)]
pub struct GuestMix {
    /// Whole blocks.
    pub write: u32,
    /// Any sectors.
    pub write_unaligned: u32,
    /// Zeros as data.
    pub write_zero_data: u32,
    /// Reads.
    pub read: u32,
    /// Flushes.
    pub flush: u32,
    /// Discards.
    pub discard: u32,
    /// Write-zeroes requests.
    pub zero: u32,
    /// Block status.
    pub status: u32,
    /// The connection goes away, with requests in flight, and comes back.
    pub reconnect: u32,
}

/// How often what goes wrong, in millionths per step of the run.
#[derive(Clone, Copy, Debug, Default)]
pub struct FaultMix {
    /// The process is killed.
    pub kill: u32,
    /// The power goes.
    pub power_cut: u32,
    /// The process is stopped in order.
    pub stop: u32,
    /// A write of the disk fails.
    pub write_error: u32,
    /// A flush of the disk fails.
    pub flush_error: u32,
    /// A read of the disk fails once.
    pub read_error: u32,
    /// A read brings a wrong bit once.
    pub flip_on_read: u32,
    /// An operation takes much longer.
    pub slow: u32,
}

/// Everything about a run that is not decided step by step.
#[derive(Clone, Debug)]
pub struct Mix {
    /// The disk.
    pub setup: Setup,
    /// How long its operations take.
    pub latency: Latency,
    /// How many steps the run has.
    pub steps: u64,
    /// Requests one guest has in flight at most.
    pub depth: usize,
    /// Volumes at most.
    pub volumes: usize,
    /// How long guests think between requests, at most.
    pub think: Duration,
    /// Guests' operations.
    pub guest: GuestMix,
    /// Faults.
    pub faults: FaultMix,
    /// How often an administrator does something, in millionths per step.
    pub admin: u32,
    /// How many of an administrator's errands in ten have to do with snapshots.
    pub layers: u64,
}

impl Mix {
    /// The mix of a seed.
    pub fn draw(random: &mut Random) -> Mix {
        let mut weight = |usual: u32| match random.below(4) {
            0 => 0,
            1 => usual * 4,
            _ => usual,
        };
        let guest = GuestMix {
            write: weight(20) + 2,
            write_unaligned: weight(12),
            write_zero_data: weight(2),
            read: weight(12) + 1,
            flush: weight(6),
            discard: weight(5),
            zero: weight(5),
            status: weight(1),
            reconnect: weight(1),
        };
        let faults = FaultMix {
            kill: weight(3_000),
            power_cut: weight(3_000),
            stop: weight(1_000),
            write_error: weight(300),
            flush_error: weight(300),
            read_error: weight(300),
            flip_on_read: weight(300),
            slow: weight(1_000),
        };
        let calm = random.chance(100_000);
        let high = *random.pick(&[30, 300, 3_000, 30_000]);
        Mix {
            setup: draw_setup(random),
            latency: Latency { low: Duration::from_micros(10), high: Duration::from_micros(high) },
            steps: random.between(300, 3_000),
            depth: *random.pick(&[1, 2, 4, 16]),
            volumes: random.between(1, 3) as usize,
            think: Duration::from_micros(*random.pick(&[1, 100, 1_000, 20_000])),
            guest,
            faults: if calm { FaultMix::default() } else { faults },
            admin: *random.pick(&[0, 2_000, 10_000, 50_000]),
            layers: *random.pick(&[0, 5, 8, 9]),
        }
    }
}

fn draw_setup(random: &mut Random) -> Setup {
    let capacity = *random.pick(&[24 << 20, 64 << 20, 256 << 20]);
    let kind = if random.coin() { MediumKind::File } else { MediumKind::Device };
    // A file without a limit keeps so much in reserve that a small file system is full at once.
    let limited = kind == MediumKind::File && (capacity < 256 << 20 || random.coin());
    Setup {
        kind,
        capacity,
        limit_bytes: limited.then_some(capacity - (4 << 20)),
        log_bytes: store::LOG_BYTES_MIN * *random.pick(&[1, 2, 8]),
        map_cache_bytes: limits::MAP_CACHE_BYTES_MIN,
        scrub_bytes_per_s: *random.pick(&[0, 0, 1 << 20, 64 << 20]),
        ..Setup::default()
    }
}
