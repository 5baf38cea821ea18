//! One machine of the cluster: its clock, its media, and the process that runs on it or does not.

use super::clock::Clock;
use crate::{
    disk::{CrashState, Image, Latency},
    node::{Life, Media, SimNode},
    onedisk::Setup,
    random::Random,
};
use engine::{DiskSettings, Founding, Settings};
use proto::{ClusterId, DiskId, Duration, Mistake, NodeId, Time, limits, planted};

/// The cluster of all runs.
pub const CLUSTER: ClusterId = ClusterId(0xc1);

/// Whether a process runs on a machine.
pub enum Process {
    /// One does.
    Runs(Box<SimNode>),
    /// None does.
    Down {
        /// What is left.
        media: Box<Media>,
    },
}

/// A machine. See the module.
pub struct Member {
    /// The node's id.
    pub node: NodeId,
    /// Its disk, if it has one.
    pub disk: Option<DiskId>,
    /// Its clock.
    pub clock: Clock,
    /// What its wall clock shows, in seconds since 1970, at the beginning of the run.
    pub unix_s: u64,
    /// Whether the cluster is founded here.
    pub founds: bool,
    /// The process.
    pub process: Process,
    /// Until when nothing happens here.
    pub paused_until: Time,
    /// How many processes ran here.
    pub lives: u64,
    /// Which run of the machine's kernel this is: another after each power cut.
    pub boot: [u8; 16],
    random: Random,
}

impl Member {
    /// A machine with blank media on which nothing runs.
    pub fn new(
        node: NodeId,
        disk: Option<DiskId>,
        founds: bool,
        setup: &Setup,
        random: &mut Random,
    ) -> Member {
        let mut random = random.fork();
        let mut media = Media::blank(setup, &mut random);
        if disk.is_none() {
            media.disk = crate::disk::SimDisk::new(Image::empty(), 0, random.fork());
        }
        let clock = Clock {
            offset: random.below(1 << 50),
            drift: random.between(0, 20_000) as i64 - 10_000,
        };
        Member {
            node,
            disk,
            clock,
            unix_s: 1_700_000_000 + random.below(7_200),
            founds,
            process: Process::Down { media: Box::new(media) },
            paused_until: Time(0),
            lives: 0,
            boot: (1 + random.below(1 << 60) as u128).to_le_bytes(),
            random,
        }
    }

    /// What its clock shows.
    pub fn local(&self, now: Time) -> Time {
        self.clock.local(now)
    }

    /// The process, if one runs.
    pub fn sim(&self) -> Option<&SimNode> {
        match &self.process {
            Process::Runs(sim) => Some(sim),
            Process::Down { .. } => None,
        }
    }

    /// The same, to be driven.
    pub fn sim_mut(&mut self) -> Option<&mut SimNode> {
        match &mut self.process {
            Process::Runs(sim) => Some(sim),
            Process::Down { .. } => None,
        }
    }

    /// Whether it does anything now.
    pub fn acts(&self, now: Time) -> bool {
        self.sim().is_some() && self.paused_until <= now
    }

    /// Whether it serves, and does anything now.
    pub fn serves(&self, now: Time) -> bool {
        self.acts(now) && self.sim().is_some_and(|sim| *sim.life() == Life::Ready)
    }

    /// When it does something next by itself.
    pub fn next_due(&self) -> Option<Time> {
        let due = self.clock.global(self.sim()?.next_due()?);
        Some(due.max(self.paused_until))
    }

    /// Starts a process. A cluster that is founded has two to this power partitions.
    pub fn start(
        &mut self,
        now: Time,
        place: usize,
        seed: &(NodeId, String),
        setup: &Setup,
        partition_bits: u8,
    ) {
        let nothing = Process::Down { media: Box::new(empty()) };
        let Process::Down { media, .. } = std::mem::replace(&mut self.process, nothing) else {
            panic!("one process at a time runs on a machine");
        };
        self.lives += 1;
        let founding = if self.founds { Founding::Here } else { Founding::Elsewhere };
        let disk = self.disk.map(|disk| DiskSettings {
            disk,
            format: !media.founded,
            kind: setup.kind,
            medium_bytes: media.disk.length(),
            limit_bytes: setup.limit_bytes,
            map_cache_bytes: setup.map_cache_bytes,
            scrub_bytes_per_s: setup.scrub_bytes_per_s,
            log_bytes: Some(setup.log_bytes),
            path: format!("disk of {}", address(place)),
            refusal: None,
        });
        let settings = Settings {
            cluster: CLUSTER,
            node: self.node,
            founding: (!media.founded).then_some(founding),
            instance: self.random.next(),
            seed: self.random.next(),
            addresses: vec![address(place)],
            seeds: match self.founds {
                true => Vec::new(),
                false => vec![(seed.0, vec![seed.1.clone()])],
            },
            journal_bytes: media.journal.length(),
            disks: disk.into_iter().collect(),
            unix_s: self.unix_s + now.0 / 1_000_000_000,
            trash_expiry_s: 24 * 3600,
            trash_grace: Duration::from_secs(limits::TRASH_START_GRACE_S),
            rebuild_after: Duration::from_millis(limits::STEWARD_GRACE_MS),
            boot: self.boot,
            version: "simulated".into(),
            fill_bytes_per_s: 0,
            partition_bits,
        };
        let sim = SimNode::start_with(self.local(now), settings, *media);
        self.process = Process::Runs(Box::new(sim));
    }

    /// How long operations of its media take from now on.
    pub fn set_latency(&mut self, latency: Latency) {
        if let Some(sim) = self.sim_mut() {
            sim.media_mut().disk.set_latency(latency);
            sim.media_mut().journal.set_latency(latency);
        }
    }

    /// The process ends, with the machine or not.
    pub fn end(&mut self, power_cut: Option<[CrashState; 2]>) {
        let nothing = Process::Down { media: Box::new(empty()) };
        let mut media = match std::mem::replace(&mut self.process, nothing) {
            Process::Runs(sim) => sim.into_media(),
            Process::Down { media, .. } => *media,
        };
        match power_cut {
            Some([disk, journal]) => {
                media.disk.power_cut(&disk);
                media.journal.power_cut(&journal);
                if !planted(Mistake::BootKept) {
                    self.boot = (u128::from_le_bytes(self.boot) + 1).to_le_bytes();
                }
            }
            None => {
                media.disk.kill();
                media.journal.kill();
            }
        }
        media.disk.clear_faults();
        media.journal.clear_faults();
        self.paused_until = Time(0);
        self.process = Process::Down { media: Box::new(media) };
    }
}

/// Under which address the node at a place is reached.
pub fn address(place: usize) -> String {
    format!("machine{place}:7000")
}

fn empty() -> Media {
    let blank = || crate::disk::SimDisk::new(Image::empty(), 0, Random::new(0));
    Media { disk: blank(), journal: blank(), founded: false }
}
