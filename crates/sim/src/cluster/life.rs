//! What goes wrong, how it heals, and what must be true in the end.

use super::{
    Fault, atlas,
    member::{Process, address},
    net::Place,
    world::{BEGIN, ClusterWorld, Due, PATIENCE},
};
use crate::{
    crashpoints::{check_offline, check_offline_mended},
    disk::{CrashState, Effect, Fault as DiskFault, Latency, Mixture, OperationKind},
    node::{Life, Medium},
    random::Random,
    world::Link,
};
use engine::{
    Input,
    admin::{AdminRequest, ScrubAction},
};
use proto::{BLOCK_SIZE, DiskError, Duration, Time};
use std::collections::BTreeSet;

/// How often it is drawn what goes wrong.
const MISFORTUNE: Duration = Duration::from_millis(100);
/// How often the administrator looks what is to be done.
const ADMIN: Duration = Duration::from_millis(700);
/// Within which simulated time all nodes agree once everything has healed.
const HEAL_MAX: Duration = Duration::from_secs(120);
/// Within which all have joined and voters are chosen; who is to vote is watched for half a minute.
const JOIN_MAX: Duration = Duration::from_secs(180);
/// Within which a node that is to stop has stopped.
const STOP_MAX: Duration = Duration::from_secs(60);

/// Within which disks are scrubbed, and what is damaged is mended.
const SCRUB_MAX: Duration = Duration::from_secs(120);
/// Within which every partition has all its copies.
const WHOLE_MAX: Duration = Duration::from_secs(300);
/// How often that is looked at.
const LOOK: Duration = Duration::from_millis(500);
/// How long nothing is asked for before copies are compared.
const QUIET: Duration = Duration::from_secs(5);

/// How a process ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum End {
    /// By itself; the machine lives.
    Kill,
    /// With its machine.
    Power,
}

impl ClusterWorld {
    /// The phase in which everything may go wrong.
    pub(super) fn safety(&mut self) -> Result<(), String> {
        self.at(BEGIN, Due::Start(0));
        for place in 1..self.mix.nodes {
            let wait = Duration::from_millis(self.random.below(3_000));
            self.at(BEGIN + wait, Due::Start(place));
        }
        self.at(BEGIN + ADMIN, Due::Admin);
        if !self.mix.early {
            let voters = atlas::voters_wanted(self.mix.nodes);
            self.await_that("joining", JOIN_MAX, |world| {
                world.voters().len() == voters && world.has_settled()
            })?;
            if self.mix.whole {
                self.await_whole(0)?;
            }
        }
        self.is_dangerous = true;
        self.at(self.now, Due::Misfortune);
        self.pass(self.mix.span)
    }

    pub(super) fn happen(&mut self, due: Due) -> Result<(), String> {
        match due {
            Due::Misfortune => {
                self.at(self.now + MISFORTUNE, Due::Misfortune);
                self.forget_losses();
                self.look_for_waiting()?;
                if !self.is_healed { self.misfortune() } else { Ok(()) }
            }
            Due::Admin => {
                self.at(self.now + ADMIN, Due::Admin);
                self.administer()
            }
            Due::Mend(ways) => {
                self.trace.line(self.now, format_args!("mended: {ways:?}"));
                ways.into_iter().for_each(|(from, to)| self.net.mend(from, to));
                Ok(())
            }
            Due::Strike(fault, place, random) => self.strike(fault, Some(place), random),
            Due::Start(place) => self.start(place),
            Due::Renew(place) => {
                if self.losses.failed.contains(&place) {
                    self.end(place, End::Kill);
                }
                self.start(place)
            }
        }
    }

    /// Starts the process of a machine, unless it runs.
    pub fn start(&mut self, place: Place) -> Result<(), String> {
        if self.members[place].sim().is_some() {
            return Ok(());
        }
        self.trace.line(self.now, format_args!("{place}: starts"));
        self.net.machine_back(self.now, place);
        let seed = (self.members[0].node, address(0));
        let bits = self.mix.partition_bits;
        self.members[place].start(self.now, place, &seed, &self.mix.setup, bits);
        self.members[place].set_latency(self.mix.latency);
        self.heed(place)
    }

    /// The process of a machine ends at once.
    pub fn end(&mut self, place: Place, how: End) {
        if self.members[place].sim().is_none() {
            return;
        }
        self.trace.line(self.now, format_args!("{place}: {how:?}"));
        self.summary.faults[usize::from(how == End::Power)] += 1;
        self.losses.failed.remove(&place);
        self.interrupted.insert(place);
        let states = [self.crash_state(), self.crash_state()];
        self.members[place].end((how == End::Power).then_some(states));
        match how {
            End::Kill => self.net.process_gone(self.now, place),
            End::Power => self.net.machine_dark(place),
        }
        self.net.sweep();
        self.rivals.retain(|_, (_, at)| *at != place);
        self.ghosts.retain(|_, ghost| ghost.at != place);
        let forgiven = how == End::Power && self.lose(place);
        // A session of a sole member tells by a flush that its disk was opened anew.
        let is_sole = self.books.fewest() < 2;
        let mut unheard = Vec::new();
        for tenant in self.tenants.values_mut() {
            tenant.may_fail |= forgiven || is_sole;
            if forgiven {
                unheard.extend(tenant.guest.disown());
            }
            if tenant.at == place {
                tenant.guest.forget();
                tenant.asked.clear();
            }
        }
        if forgiven {
            self.trace.line(self.now, format_args!("what is not flushed may be lost"));
            self.oracle.lost_power(unheard);
        }
    }

    /// A machine has lost its power. True: more have, since all copies were last there, than may
    /// without losing what was not flushed.
    fn lose(&mut self, place: Place) -> bool {
        if self.members[place].disk.is_none() {
            return false;
        }
        self.learn_members();
        self.losses.lossy.insert(place);
        self.losses.lossy.len() > atlas::machines_losable(self.books.fewest().max(1))
    }

    /// Waits until every partition has all its copies, in the beginning (0) or the end (1).
    pub fn await_whole(&mut self, when: usize) -> Result<(), String> {
        let before = self.now;
        while !self.is_whole() {
            if self.now.since(before) > WHOLE_MAX {
                let lacking = self.books.lacking();
                let attempts = self.furthest_map().map(|map| {
                    map.attempts()
                        .map(|attempt| format!("{attempt:?}").chars().take(200).collect())
                        .collect::<Vec<String>>()
                });
                return Err(format!(
                    "not all copies are there after {WHOLE_MAX:?}: {lacking}; {attempts:?}"
                ));
            }
            self.pass(LOOK)?;
        }
        self.summary.whole_ms[when] = self.now.since(before).as_millis() as u64;
        Ok(())
    }

    /// The same for all, and they start again in any order.
    pub fn end_all(&mut self, how: End, within: Duration) {
        for place in 0..self.mix.nodes {
            self.end(place, how);
            self.start_later(place, within);
        }
    }

    /// A machine's process starts again some time later.
    pub fn start_later(&mut self, place: Place, within: Duration) {
        let wait = Duration::from_nanos(self.random.below(within.as_nanos() as u64 + 1));
        self.at(self.now + wait, Due::Start(place));
    }

    /// Nothing happens at a node for some time, while bytes for it wait.
    pub fn pause(&mut self, place: Place, span: Duration) {
        self.trace.line(self.now, format_args!("{place}: is held up for {span:?}"));
        self.summary.faults[2] += 1;
        let until = self.now + span;
        self.members[place].paused_until = self.members[place].paused_until.max(until);
    }

    /// These ways are cut, for some time or until everything heals.
    pub fn cut(&mut self, ways: Vec<(Place, Place)>, span: Option<Duration>) {
        self.trace.line(self.now, format_args!("cut for {span:?}: {ways:?}"));
        self.summary.faults[3] += 1;
        ways.iter().for_each(|&(from, to)| self.net.cut(from, to));
        if let Some(span) = span {
            self.at(self.now + span, Due::Mend(ways));
        }
    }

    /// Everything passes again between all nodes.
    pub fn mend_all(&mut self) {
        self.net.heal();
    }

    /// The node that leads, if one does and all that act know it.
    pub fn leader(&self) -> Option<Place> {
        let acting = self.members.iter().filter(|member| member.acts(self.now));
        let mut leaders = acting.map(|member| {
            member.sim().and_then(|sim| sim.engine().voter()).and_then(|v| v.status().leader)
        });
        let first = leaders.next()??;
        let agree = leaders.all(|leader| leader == Some(first));
        self.members.iter().position(|member| agree && member.node == first)
    }

    /// The same as far as these nodes know.
    pub fn leader_among(&self, places: &[Place]) -> Option<Place> {
        let known = |place: &Place| Some(self.members[*place].sim()?.engine().voter()?.status());
        let leads = |place: &Place| known(place).is_some_and(|status| status.leads);
        let leader = places.iter().copied().find(leads)?;
        let node = Some(self.members[leader].node);
        let agree = places.iter().all(|place| known(place).is_some_and(|s| s.leader == node));
        agree.then_some(leader)
    }

    /// The term that a node knows, if it runs.
    pub fn term(&self, place: Place) -> Option<u64> {
        Some(self.members[place].sim()?.engine().voter()?.status().term)
    }

    /// How many requests guests have made and got an answer to, in all.
    pub fn answered_requests(&self) -> u64 {
        let waiting: usize = self.tenants.values().map(|tenant| tenant.asked.len()).sum();
        self.summary.requests - waiting as u64
    }

    /// Puts all guests to a node; those that are elsewhere leave what they have.
    pub fn move_guests(&mut self, place: Place) -> Result<(), String> {
        for volume in self.tenants.keys().copied().collect::<Vec<_>>() {
            self.send_guest(volume, place)?;
        }
        Ok(())
    }

    fn send_guest(&mut self, volume: u64, place: Place) -> Result<(), String> {
        let tenant = &self.tenants[&volume];
        if let Some(connection) = tenant.guest.connection()
            && self.members[tenant.at].sim().is_some()
        {
            self.hang_up(volume, connection)?;
        }
        let now = self.now;
        let tenant = self.tenants.get_mut(&volume).expect("listed");
        (tenant.at, tenant.guest.next_at) = (place, now);
        Ok(())
    }

    /// Lets something go wrong, or not. What is drawn does not depend on what came of it, so that
    /// faults can be left out one by one.
    fn misfortune(&mut self) -> Result<(), String> {
        let odds = self.mix.troubles;
        let mut fate = self.fate.fork();
        let kinds = [
            (Fault::Kill, odds.kill),
            (Fault::PowerCut, odds.power_cut),
            (Fault::All, odds.all),
            (Fault::Pause, odds.pause),
            (Fault::Reset, odds.reset),
            (Fault::OneWay, odds.one_way),
            (Fault::Partial, odds.partial),
            (Fault::Partition, odds.partition),
            (Fault::Stall, odds.stall),
            (Fault::SlowLink, odds.slow_link),
            (Fault::SlowMedium, odds.slow_medium),
            (Fault::Disk, odds.disk_fault),
            (Fault::Jump, odds.jump),
        ];
        for (fault, odds) in kinds {
            let chance = fate.chance(odds);
            let random = fate.fork();
            if chance {
                self.strike(fault, None, random)?;
            }
        }
        if self.mix.rot > 0 {
            let mut rot = self.rot.fork();
            if rot.chance(self.mix.rot) {
                self.strike(Fault::Rot, Some(self.rots), rot)?;
            }
        }
        Ok(())
    }

    /// Something was promised at a node, after which a fault there tells most: sometimes there is
    /// one.
    pub(super) fn ambush(&mut self, place: Place) -> Result<(), String> {
        if self.is_healed || !self.is_dangerous {
            return Ok(());
        }
        let chance = self.fate.chance(self.mix.troubles.ambush);
        let mut random = self.fate.fork();
        if !chance {
            return Ok(());
        }
        let fault = *random.pick(&[
            Fault::PowerCut,
            Fault::TwoPowerCuts,
            Fault::All,
            Fault::Evidence,
            Fault::Evidence,
            Fault::Kill,
            Fault::Partition,
        ]);
        let wait = Duration::from_micros(*random.pick(&[0, 0, 100, 3_000]));
        self.at(self.now + wait, Due::Strike(fault, place, random));
        Ok(())
    }

    /// One fault, unless this one is left out.
    fn strike(
        &mut self,
        fault: Fault,
        place: Option<Place>,
        mut random: Random,
    ) -> Result<(), String> {
        if self.is_healed {
            return Ok(());
        }
        let number = self.strikes;
        self.strikes += 1;
        if self.spared.contains(&number) {
            return Ok(());
        }
        let nodes = self.mix.nodes as u64;
        let any = random.below(nodes) as usize;
        let place = place.unwrap_or(any);
        let other = random.below(nodes) as usize;
        let long = *random.pick(&[200, 1_000, 3_000, 12_000]);
        let span = Duration::from_millis(random.between(1, long));
        self.trace.line(self.now, format_args!("fault {number}: {fault:?}"));
        match fault {
            Fault::Kill => {
                self.end(place, End::Kill);
                self.start_later(place, span);
            }
            Fault::PowerCut => {
                self.end(place, End::Power);
                self.start_later(place, span);
            }
            Fault::TwoPowerCuts => {
                for place in [place, other] {
                    self.end(place, End::Power);
                    self.start_later(place, span);
                }
            }
            Fault::All => {
                let how = if random.coin() { End::Kill } else { End::Power };
                self.end_all(how, span);
            }
            // One loses what it had not flushed, another is only opened anew, and those that know
            // better are not to be reached: who may say what was acknowledged?
            Fault::Evidence => {
                let first = random.below(nodes) as usize;
                let others: Vec<Place> =
                    (0..self.mix.nodes).filter(|at| *at != place && *at != first).collect();
                self.end(place, End::Power);
                self.end(first, End::Kill);
                let ways = others
                    .iter()
                    .flat_map(|at| [(*at, place), (*at, first), (place, *at), (first, *at)]);
                self.start_later(place, Duration::from_millis(500));
                self.start_later(first, Duration::from_millis(500));
                if others.len() == 1 {
                    self.cut(ways.collect(), Some(Duration::from_secs(15)));
                }
            }
            Fault::Pause => {
                let span = if random.chance(100_000) { Duration::from_secs(60) } else { span };
                self.pause(place, span);
            }
            Fault::Reset => {
                let connections = self.net.connections();
                if !connections.is_empty() {
                    let connection = *random.pick(&connections);
                    self.trace.line(self.now, format_args!("connection {connection} breaks"));
                    self.summary.faults[4] += 1;
                    self.net.reset(self.now, connection, span);
                    self.excused_at.fill(self.now);
                }
            }
            Fault::Partition => {
                let sides: Vec<bool> = (0..nodes).map(|_| random.coin()).collect();
                let ways = (0..self.mix.nodes).flat_map(|from| {
                    let apart = |to: &usize| sides[*to] != sides[from];
                    (0..sides.len()).filter(apart).map(|to| (from, to)).collect::<Vec<_>>()
                });
                self.cut(ways.collect(), Some(span));
            }
            Fault::SlowMedium => {
                let slow = DiskFault::once(OperationKind::Write, Effect::Delay(span));
                let medium = if random.coin() { Medium::Disk } else { Medium::Journal };
                let line = format_args!("{place}: {medium:?} takes {span:?} longer");
                self.trace.line(self.now, line);
                if let Some(sim) = self.members[place].sim_mut() {
                    sim.media_mut().get_mut(medium).add_fault(slow);
                    self.excused_at.fill(self.now + span);
                }
            }
            Fault::Disk => self.fail_disk(place, span),
            Fault::Jump => return self.jump(place),
            Fault::Rot => self.rot_by_chance(place, &mut random),
            _ if place == other => {}
            Fault::OneWay => self.cut(vec![(place, other)], Some(span)),
            Fault::Partial => self.cut(vec![(place, other), (other, place)], Some(span)),
            Fault::Stall => {
                self.trace.line(self.now, format_args!("{place} to {other} stalls for {span:?}"));
                self.net.stall(place, other, self.now + span);
                self.at(self.now + span, Due::Mend(vec![(place, other)]));
            }
            Fault::SlowLink => {
                let by = Duration::from_millis(random.between(1, 400));
                self.trace.line(self.now, format_args!("{place} to {other} slower by {by:?}"));
                self.net.slow(place, other, by);
                self.at(self.now + span, Due::Mend(vec![(place, other)]));
            }
        }
        Ok(())
    }

    /// The disk of a machine fails at what it is asked for next. Only while nothing else is
    /// lost, and others have what it has. Some time later the process is started anew.
    pub fn fail_disk(&mut self, place: Place, span: Duration) {
        self.learn_members();
        let is_alone = self.books.fewest() < 2 || self.members[place].disk.is_none();
        let has_losses = !(self.losses.lossy.is_empty() && self.losses.failed.is_empty());
        if is_alone || has_losses {
            return;
        }
        let kind = if self.random.coin() { OperationKind::Write } else { OperationKind::Flush };
        let for_good = self.random.coin();
        let Some(sim) = self.members[place].sim_mut() else { return };
        let error = Effect::Error(DiskError::Io(5));
        let fault = match for_good {
            true => DiskFault::always(kind, error),
            false => DiskFault::once(kind, error),
        };
        sim.media_mut().disk.add_fault(fault);
        self.trace.line(
            self.now,
            format_args!("{place}: the disk fails at its next {kind:?}, for good: {for_good}"),
        );
        self.losses.failed.insert(place);
        self.losses.lossy.insert(place);
        self.summary.faults[5] += 1;
        self.at(self.now + span, Due::Renew(place));
    }

    /// A bit turns over on the disk of a machine, if nothing else is lost.
    fn rot_by_chance(&mut self, place: Place, random: &mut Random) {
        let has_losses = !(self.losses.lossy.is_empty() && self.losses.failed.is_empty());
        let is_only_here = self.rotten.iter().all(|other| *other == place)
            && self.losses.failed.is_empty()
            && self.losses.lossy.iter().all(|other| *other == place);
        if (has_losses && !is_only_here) || (!has_losses && !self.is_whole()) {
            return;
        }
        // What was lost before all copies were there may have been on one disk alone.
        self.learn_members();
        if self.books.fewest() < 2 {
            return;
        }
        let of_maps = random.chance(300_000);
        self.rot_one(place, of_maps, random);
    }

    /// A bit turns over in a block of data, or in a page of a map, on the disk of a machine. False:
    /// it has none.
    pub fn rot_one(&mut self, place: Place, of_maps: bool, random: &mut Random) -> bool {
        let first = 3 + self.mix.setup.log_bytes / BLOCK_SIZE as u64;
        let Some(sim) = self.members[place].sim_mut() else { return false };
        let disk = &mut sim.media_mut().disk;
        let image = disk.image();
        let is_it = |block: &u64| {
            let magic = &image.block(*block)[..4];
            // Pages of checkpoints have twins, and both must not rot.
            *block >= first && magic != b"SCKP" && (magic == b"SMAP") == of_maps
        };
        let blocks: Vec<u64> = image.blocks().filter(is_it).collect();
        if blocks.is_empty() {
            return false;
        }
        let block = *random.pick(&blocks);
        let offset = block * BLOCK_SIZE as u64 + random.below(BLOCK_SIZE as u64);
        let bit = random.below(8) as u8;
        disk.spoil(|image| image.flip(offset, bit));
        let line = format_args!("{place}: block {block} rots, of maps: {of_maps}");
        self.trace.line(self.now, line);
        self.summary.rot[0] += 1;
        self.rotten.insert(place);
        self.rotted_at = self.now;
        self.losses.lossy.insert(place);
        true
    }

    /// No guest asks for anything any more, until the end.
    pub fn quiet(&mut self) {
        for tenant in self.tenants.values_mut() {
            tenant.guest.next_at = Time(u64::MAX);
        }
    }

    /// Every disk is scrubbed once, and what is damaged is mended by then.
    pub fn scrub_all(&mut self) -> Result<(), String> {
        let places: Vec<Place> =
            (0..self.mix.nodes).filter(|at| self.members[*at].disk.is_some()).collect();
        let counts = |world: &ClusterWorld, place: Place| {
            let engine = world.members[place].sim().map(|sim| sim.engine());
            engine.map_or((0, 0), |engine| engine.scrubbed())
        };
        for &place in &places {
            for action in [ScrubAction::Rate(1 << 30), ScrubAction::Start] {
                self.send_admin(place, AdminRequest::DiskScrub { disk: None, action })?;
            }
        }
        let before: Vec<u64> = places.iter().map(|at| counts(self, *at).0).collect();
        // A pass that is under way may have come past what rotted since: so another one.
        for more in 1..=2 {
            self.await_that("a scrub", SCRUB_MAX, |world| {
                let mut passes = places.iter().zip(&before);
                passes.all(|(at, before)| counts(world, *at).0 >= before + more)
            })?;
            for &place in &places {
                let action = ScrubAction::Start;
                self.send_admin(place, AdminRequest::DiskScrub { disk: None, action })?;
            }
        }
        self.await_that("mending", SCRUB_MAX, |world| {
            places.iter().all(|at| counts(world, *at).1 == 0)
        })
    }

    /// The wall clock of a machine is set to something else.
    fn jump(&mut self, place: Place) -> Result<(), String> {
        let by = *self.random.pick(&[-31_536_000, -3_600, -1, 1, 3_600, 31_536_000_i64]);
        let member = &mut self.members[place];
        member.unix_s = member.unix_s.saturating_add_signed(by);
        let unix_s = member.unix_s + self.now.0 / 1_000_000_000;
        self.trace.line(self.now, format_args!("{place}: wall clock {unix_s}"));
        match self.members[place].acts(self.now) {
            true => self.input(place, Input::WallClock { unix_s }),
            false => Ok(()),
        }
    }

    fn crash_state(&mut self) -> CrashState {
        match self.random.below(5) {
            0 => CrashState::Old,
            1 => CrashState::New,
            _ => CrashState::Mixture(Mixture { seed: self.random.next() }),
        }
    }

    // -- the end --

    /// Whether every node that was wanted serves and is in the map of all, one leads, and all know
    /// the same.
    pub fn has_settled(&self) -> bool {
        if !self.members.iter().all(|member| member.serves(self.now)) || self.leader().is_none() {
            return false;
        }
        let states = self.members.iter().map(|member| {
            let engine = member.sim().expect("it serves").engine();
            let voter = engine.voter().expect("it serves");
            let status = voter.status();
            let nodes = engine.map().nodes().len();
            (status.applied, status.committed, status.voters, nodes)
        });
        let states: Vec<_> = states.collect();
        let first = &states[0];
        let digests = || {
            let voters = self.members.iter().filter_map(|member| member.sim()?.engine().voter());
            voters.map(|voter| voter.state_digest()).collect::<BTreeSet<u64>>()
        };
        states.iter().all(|state| state == first)
            && first.0 == first.1
            && first.3 == self.mix.nodes
            && !first.2.is_empty()
            && digests().len() == 1
    }

    /// Heals everything and waits until all nodes agree.
    fn heal(&mut self) -> Result<(), String> {
        self.trace.line(self.now, format_args!("heal"));
        self.is_healed = true;
        self.net.heal();
        let calm = Latency { low: Duration::from_micros(20), high: Duration::from_micros(400) };
        for place in 0..self.mix.nodes {
            self.members[place].paused_until = self.now;
            if self.losses.failed.contains(&place) {
                self.end(place, End::Kill);
            }
            self.start(place)?;
            let now = self.members[place].local(self.now);
            if let Some(sim) = self.members[place].sim_mut() {
                for medium in [Medium::Disk, Medium::Journal] {
                    let medium = sim.media_mut().get_mut(medium);
                    medium.clear_faults();
                    medium.release(now);
                }
            }
            self.members[place].set_latency(calm);
        }
        for (connection, ghost) in std::mem::take(&mut self.ghosts) {
            self.input(ghost.at, Input::Close { connection })?;
        }
        let before = self.now;
        // What was lost or held up meanwhile may be missed for a while yet.
        self.excused_at.fill(self.now);
        self.await_that("agreeing after everything healed", HEAL_MAX, |world| world.has_settled())?;
        self.summary.healed_ms = self.now.since(before).as_millis() as u64;
        Ok(())
    }

    /// Heals everything, verifies what was promised, stops all nodes, and looks at what they leave.
    pub(super) fn finish(&mut self) -> Result<(), String> {
        self.heal()?;
        self.await_whole(1)?;
        self.await_that("answering everybody", PATIENCE + PATIENCE, |world| {
            world.tenants.values().all(|tenant| {
                let opening = matches!(tenant.guest.link, Link::Opening(_));
                let since = tenant.asked.values().min();
                !opening && since.is_none_or(|since| world.now.since(*since) < PATIENCE)
            })
        })?;
        for volume in self.tenants.keys().copied().collect::<Vec<_>>() {
            for place in 0..self.mix.nodes {
                self.verify(volume, place)?;
            }
        }
        for volume in self.tenants.keys().copied().collect::<Vec<_>>() {
            self.send_guest(volume, 0)?;
            self.tenants.get_mut(&volume).expect("listed").guest.next_at = Time(u64::MAX);
        }
        self.await_that("detaching everything", PATIENCE, |world| {
            world.furthest_map().is_some_and(|map| map.volumes().all(|v| v.attachments.is_empty()))
        })?;
        self.pass(QUIET)?;
        self.await_whole(1)?;
        if !self.rotten.is_empty() {
            self.scrub_all()?;
            // What was mended last reaches the disk.
            self.pass(QUIET)?;
            self.await_whole(1)?;
        }
        self.compare_copies()?;
        self.await_that("agreeing in the end", HEAL_MAX, |world| world.has_settled())?;
        let map = self.furthest_map().expect("it was agreed on");
        for place in (0..self.mix.nodes).rev() {
            self.stop(place)?;
        }
        for (place, member) in self.members.iter().enumerate() {
            let Process::Runs(sim) = &member.process else { panic!("it has stopped") };
            let Some(disk) = member.disk else { continue };
            let medium = &sim.media().disk;
            let checked = match self.rotten.contains(&place) {
                true => check_offline_mended(medium, |part| engine::is_missed(&map, disk, part))
                    .map(|_| ()),
                false => check_offline(medium),
            };
            checked.map_err(|error| format!("disk of {}: {error}", member.node))?;
        }
        Ok(())
    }

    /// Has a volume attached at a node, and reads all that was ever written.
    fn verify(&mut self, volume: u64, place: Place) -> Result<(), String> {
        self.send_guest(volume, place)?;
        let hold = |world: &mut ClusterWorld| {
            let guest = &mut world.tenants.get_mut(&volume).expect("listed").guest;
            guest.next_at = Time(u64::MAX);
        };
        self.await_that("attaching", PATIENCE, |world| {
            matches!(world.tenants[&volume].guest.link, Link::Open(_))
        })?;
        hold(self);
        let Link::Open(connection) = self.tenants[&volume].guest.link else {
            return Err("a guest lost its volume at once".into());
        };
        let bytes = self.tenants[&volume].guest.bytes;
        for (offset, length) in self.oracle.touched(volume, bytes) {
            let guest = &mut self.tenants.get_mut(&volume).expect("listed").guest;
            let request = guest.read(&mut self.oracle, offset, length);
            self.ask(volume, connection, request)?;
            self.await_that("a read", PATIENCE, |world| {
                world.tenants[&volume].guest.in_flight.is_empty()
            })?;
        }
        Ok(())
    }

    /// Stops a node in order.
    fn stop(&mut self, place: Place) -> Result<(), String> {
        self.trace.line(self.now, format_args!("{place}: stops"));
        self.agenda.clear();
        for volume in self.tenants.keys().copied().collect::<Vec<_>>() {
            let tenant = &self.tenants[&volume];
            if tenant.at == place
                && let Some(connection) = tenant.guest.connection()
            {
                self.hang_up(volume, connection)?;
            }
            self.tenants.get_mut(&volume).expect("listed").guest.next_at = Time(u64::MAX);
        }
        self.input(place, Input::Stop)?;
        self.await_that("stopping", STOP_MAX, |world| {
            world.members[place].sim().is_some_and(|sim| *sim.life() == Life::Stopped)
        })
    }
}
