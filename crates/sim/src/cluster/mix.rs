//! What the seed of a cluster's run is made of.

use crate::{disk::Latency, onedisk::Setup, random::Random, world::GuestMix, world::Mix};
use proto::Duration;
use store::MediumKind;

/// How often what goes wrong, in millionths per simulated tenth of a second.
#[derive(Clone, Copy, Debug, Default)]
pub struct Troubles {
    /// A process is killed.
    pub kill: u32,
    /// A machine loses its power.
    pub power_cut: u32,
    /// All processes are killed, or all machines lose their power.
    pub all: u32,
    /// A process is held up.
    pub pause: u32,
    /// A connection breaks.
    pub reset: u32,
    /// A way is cut in one direction.
    pub one_way: u32,
    /// Two nodes do not see each other, others see both.
    pub partial: u32,
    /// Some nodes do not see the others.
    pub partition: u32,
    /// Bytes are held for seconds.
    pub stall: u32,
    /// A way becomes slow.
    pub slow_link: u32,
    /// A medium becomes slow.
    pub slow_medium: u32,
    /// A disk fails a write or a flush.
    pub disk_fault: u32,
    /// A wall clock jumps.
    pub jump: u32,
    /// Connections of which the dialler does not know, per dial.
    pub ghosts: u32,
    /// A fault just after something was promised, per promise.
    pub ambush: u32,
}

/// Something that goes wrong.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// A process is killed.
    Kill,
    /// A machine loses its power.
    PowerCut,
    /// Two machines do.
    TwoPowerCuts,
    /// All processes are killed, or all machines lose their power.
    All,
    /// Of three, one loses its power, one is killed, and these two do not see the third for long.
    Evidence,
    /// A process is held up.
    Pause,
    /// A connection breaks.
    Reset,
    /// A way is cut in one direction.
    OneWay,
    /// Two nodes do not see each other.
    Partial,
    /// Some nodes do not see the others.
    Partition,
    /// Bytes are held for seconds.
    Stall,
    /// A way becomes slow.
    SlowLink,
    /// A medium becomes slow.
    SlowMedium,
    /// A disk fails a write or a flush.
    Disk,
    /// A wall clock jumps.
    Jump,
    /// A bit turns over on a disk.
    Rot,
}

/// Everything about a run that is not decided step by step.
#[derive(Clone, Debug)]
pub struct ClusterMix {
    /// How many nodes, 1 to 7.
    pub nodes: usize,
    /// The nodes' disks.
    pub setup: Setup,
    /// How long operations of media take.
    pub latency: Latency,
    /// How long a way through the network takes, at least and at most.
    pub network: (Duration, Duration),
    /// How long the phase lasts in which things go wrong, of simulated time.
    pub span: Duration,
    /// Requests one guest has in flight at most.
    pub depth: usize,
    /// Volumes at most.
    pub volumes: usize,
    /// How long guests think between requests, at most.
    pub think: Duration,
    /// Guests' operations.
    pub guest: GuestMix,
    /// How often a guest goes elsewhere when it is asked for its next request, in millionths.
    pub moves: u32,
    /// How often somebody else wants a guest's volume too, in the same way.
    pub rivals: u32,
    /// How often a volume is taken from its guest by force, and its guest goes on elsewhere, per
    /// look of the administrator, in millionths.
    pub takeovers: u32,
    /// How often it takes or deletes a snapshot, in the same way.
    pub snapshots: u32,
    /// How often it has a disk or a node drained, or not any more.
    pub drains: u32,
    /// Faults.
    pub troubles: Troubles,
    /// Whether faults begin before all nodes have joined.
    pub early: bool,
    /// Whether faults begin only when every partition has all its copies. Not if they begin early.
    pub whole: bool,
    /// Whether the last node has no disk, and only votes.
    pub witness: bool,
    /// Two to this power: the partitions. Few mostly: a run with all of a real cluster's takes ten
    /// times as long.
    pub partition_bits: u8,
    /// How often a bit of data or of a map turns over on the one disk of a run that rots, in
    /// millionths per simulated tenth of a second. Drawn apart from all else.
    pub rot: u32,
    /// Whether volumes may promise that what is acknowledged is stable, from the start or from some
    /// time on. Drawn apart from all else.
    pub ack: bool,
}

impl ClusterMix {
    /// The mix of a seed.
    pub fn draw(random: &mut Random) -> ClusterMix {
        let mut weight = |usual: u32| match random.below(3) {
            0 => 0,
            1 => usual * 4,
            _ => usual,
        };
        let troubles = Troubles {
            kill: weight(10_000),
            power_cut: weight(8_000),
            all: weight(1_000),
            pause: weight(3_000),
            reset: weight(20_000),
            one_way: weight(5_000),
            partial: weight(5_000),
            partition: weight(5_000),
            stall: weight(10_000),
            slow_link: weight(5_000),
            slow_medium: weight(3_000),
            disk_fault: weight(4_000),
            jump: weight(5_000),
            ghosts: weight(50_000),
            ambush: weight(15_000),
        };
        let calm = random.chance(100_000);
        let high = *random.pick(&[30, 300, 3_000]);
        let far = *random.pick(&[100, 1_000, 20_000]);
        let mut mix = ClusterMix {
            nodes: *random.pick(&[1, 2, 3, 3, 3, 3, 4, 5, 5, 7]),
            setup: Setup {
                kind: if random.coin() { MediumKind::File } else { MediumKind::Device },
                capacity: 128 << 20,
                limit_bytes: Some(124 << 20),
                ..Setup::default()
            },
            latency: Latency { low: Duration::from_micros(10), high: Duration::from_micros(high) },
            network: (Duration::from_micros(30), Duration::from_micros(far)),
            span: Duration::from_secs(random.between(10, 30)),
            depth: *random.pick(&[1, 2, 4]),
            volumes: random.between(1, 3) as usize,
            think: Duration::from_millis(*random.pick(&[50, 100, 500])),
            guest: Mix::draw(random).guest,
            moves: *random.pick(&[2_000, 10_000, 40_000]),
            rivals: *random.pick(&[0, 10_000, 50_000]),
            takeovers: *random.pick(&[0, 0, 0, 300_000, 600_000]),
            snapshots: *random.pick(&[0, 0, 50_000, 300_000]),
            drains: *random.pick(&[0, 0, 50_000, 200_000]),
            troubles: if calm { Troubles::default() } else { troubles },
            early: random.chance(300_000),
            whole: random.chance(800_000),
            witness: random.chance(200_000),
            partition_bits: match random.chance(40_000) {
                true => 12,
                false => *random.pick(&[1, 3, 5, 7]),
            },
            rot: 0,
            ack: false,
        };
        if mix.takeovers > 0 {
            // Who has the volume may not know yet that it has not.
            mix.rivals = 0;
        }
        mix
    }

    /// A run in which nothing goes wrong by itself: for directed cases.
    pub fn calm(nodes: usize) -> ClusterMix {
        let mut mix = ClusterMix::draw(&mut Random::new(1));
        mix.troubles = Troubles::default();
        mix.nodes = nodes;
        mix.network = (Duration::from_micros(30), Duration::from_micros(300));
        mix.latency = Latency { low: Duration::from_micros(10), high: Duration::from_micros(300) };
        mix.think = Duration::from_millis(150);
        (mix.moves, mix.rivals, mix.volumes, mix.depth) = (0, 0, 1, 2);
        (mix.takeovers, mix.snapshots, mix.drains) = (0, 0, 0);
        (mix.span, mix.early, mix.whole) = (Duration::from_secs(3), false, true);
        (mix.witness, mix.partition_bits) = (false, 5);
        mix
    }
}
