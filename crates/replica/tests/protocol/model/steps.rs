//! The steps of the model: which are possible, and what they do.

use super::*;
use stateright::{Model, Property};

impl Model for Protocol {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        vec![State::first(&self.bounds)]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        if state.violation.is_some() {
            return;
        }
        for session in 0..self.bounds.sessions {
            self.actions_of_session(state, session, actions);
        }
        for disk in 0..state.disks.len() {
            self.actions_of_disk(state, disk, actions);
        }
        self.actions_of_change(state, actions);
    }

    fn next_state(&self, before: &State, action: Action) -> Option<State> {
        let mut state = before.clone();
        self.act(&mut state, action);
        if state.reading && state.is_confirmed(self.guards(Guard::ConfirmedByQuorum)) {
            state.fail("a fenced session reads what is no longer so");
        }
        let shown: Vec<Content> = state.disks.iter().map(Disk::now).collect();
        let differ = |one: &Content, other: &Content| {
            (one.stamp, one.settled_by) == (other.stamp, other.settled_by)
                && one.writes != other.writes
        };
        if shown.iter().enumerate().any(|(at, one)| shown[..at].iter().any(|it| differ(one, it))) {
            state.fail("equal stamps, other content");
        }
        state.disks.sort_unstable();
        (state != *before).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![Property::always("nothing is lost", |_, state: &State| state.violation.is_none())]
    }
}

impl State {
    /// Session 0 is open under the first configuration, nothing was written.
    fn first(bounds: &Bounds) -> State {
        let member = |at: usize| at < bounds.members;
        let disk = |at: usize| Disk {
            fence: u8::from(member(at)),
            listed: [if member(at) { Listed::Now } else { Listed::No }, Listed::No, Listed::No],
            ..Disk::default()
        };
        let mut disks: Vec<Disk> = (0..bounds.disks).map(disk).collect();
        disks.sort_unstable();
        let open = Session { phase: Phase::Open, number: 1, ..Session::default() };
        State {
            disks,
            sessions: [open, Session::default()],
            writes: Vec::new(),
            number: 1,
            begun_with: Content::default(),
            attempts: 0,
            attempt: None,
            forsaken: Vec::new(),
            restarts: 0,
            power_cuts: 0,
            copies: 0,
            reading: false,
            acknowledged: 0,
            flushed: 0,
            dead: 0,
            excused: 0,
            violation: None,
        }
    }
}

impl Protocol {
    /// Whether a disk is a member of a configuration as it is running now.
    fn counts(&self, disk: &Disk, number: u8) -> bool {
        let listed = disk.listed[usize::from(number) - 1];
        listed == Listed::Now || (listed == Listed::Reopened && !self.guards(Guard::Incarnation))
    }

    /// Whether a disk that is being made a member takes new writes.
    fn patches(&self, state: &State, disk: &Disk) -> bool {
        !self.guards(Guard::NewcomerTakesNoWrites)
            && state.attempt.is_some()
            && has(disk.wanted, usize::from(state.attempts))
    }

    fn actions_of_session(&self, state: &State, at: usize, actions: &mut Vec<Action>) {
        let session = &state.sessions[at];
        match session.phase {
            Phase::Absent => return actions.push(Action::Attach { session: at }),
            Phase::Opening => {
                let answers = state.members(session.number).filter_map(|disk| disk.peer[at].answer);
                if session.chosen.is_none()
                    && answers.clone().count() >= state.quorum(session.number)
                {
                    if answers.clone().any(|answer| answer.unsettled) {
                        actions.push(Action::Choose { session: at, source: None });
                    } else {
                        let sources = (0..state.disks.len())
                            .filter(|disk| state.disks[*disk].peer[at].answer.is_some());
                        actions.extend(
                            sources.map(|disk| Action::Choose { session: at, source: Some(disk) }),
                        );
                    }
                }
            }
            Phase::Open => {
                if state.writes.len() < self.bounds.writes {
                    actions.push(Action::Begin { session: at });
                }
                if at == 0 && !state.reading && state.missed() != 0 {
                    actions.push(Action::Read);
                }
            }
        }
        if session.number < state.number {
            actions.push(Action::Learn { session: at });
        }
    }

    fn actions_of_disk(&self, state: &State, at: usize, actions: &mut Vec<Action>) {
        let disk = &state.disks[at];
        for (write, it) in state.writes.iter().enumerate() {
            let takes = disk.now().stamp == it.previous && disk.fence <= it.session + 1;
            if !takes {
                continue;
            }
            for number in items(it.under).map(|number| number as u8) {
                let member = self.counts(disk, number) && disk.refused < number;
                if member || self.patches(state, disk) {
                    actions.push(Action::Deliver { write, number, disk: at });
                }
            }
        }
        for (session, it) in state.sessions.iter().enumerate() {
            let generation = session as u8 + 1;
            if it.phase == Phase::Absent || !self.counts(disk, it.number) {
                continue;
            }
            if it.phase == Phase::Open && disk.fence <= generation {
                actions.push(Action::Flush { session, disk: at });
                if self.bounds.settled_points {
                    actions.push(Action::Tell { session, disk: at });
                }
                let is_asked = state.reading || !self.guards(Guard::ConfirmedAfterwards);
                let refuses = self.guards(Guard::RefusalNoticed) && disk.refused >= it.number;
                if session == 0 && is_asked && !refuses && !disk.peer[0].confirms {
                    actions.push(Action::Confirm { disk: at });
                }
            }
            let is_asked = disk.peer[session].answer.is_none() && disk.fence <= generation;
            if it.phase == Phase::Opening && is_asked {
                actions.push(Action::Fence { session, disk: at });
            }
            let refuses = self.guards(Guard::ConfigurationOfSettle) && disk.refused >= it.number;
            if it.chosen.is_some() && disk.fence == generation && !refuses {
                actions.push(Action::Settle { session, disk: at });
            }
        }
        if state.restarts < self.bounds.restarts as u8 {
            actions.push(Action::Restart { disk: at });
        }
        if state.power_cuts < self.bounds.power_cuts as u8 {
            for kept in 0..=disk.tail.len() {
                actions.push(Action::PowerCut { disk: at, kept, settled: true });
                if disk.settled != disk.settled_stable {
                    actions.push(Action::PowerCut { disk: at, kept, settled: false });
                }
            }
        }
    }

    fn actions_of_change(&self, state: &State, actions: &mut Vec<Action>) {
        let may_change = usize::from(state.number) <= self.bounds.changes;
        if may_change && usize::from(state.attempts) < self.bounds.attempts {
            let sets = (0..1 << state.disks.len()).filter(|wanted: &Set| count(*wanted) >= 2);
            actions.extend(sets.map(|wanted| Action::Attempt { wanted }));
        }
        if !self.guards(Guard::NewestAttempt) {
            for &(attempt, ..) in &state.forsaken {
                for (at, disk) in state.disks.iter().enumerate() {
                    if has(disk.wanted, usize::from(attempt)) && disk.installed != attempt {
                        actions.push(Action::Install { disk: at, attempt });
                    }
                }
            }
        }
        let Some(attempt) = &state.attempt else { return };
        match attempt.chosen {
            None => {
                if state.copies < self.bounds.copies as u8 {
                    self.actions_of_copying(state, attempt.from, actions);
                }
                for (at, disk) in state.disks.iter().enumerate() {
                    let member = disk.listed[usize::from(attempt.from) - 1] != Listed::No;
                    if member && disk.evidence.is_none() {
                        actions.push(Action::Refuse { disk: at });
                    }
                }
                if self.is_evidence(state, attempt.from) {
                    let said = |at: &usize| state.disks[*at].evidence.is_some();
                    let answers = state.disks.iter().filter_map(|disk| disk.evidence);
                    if answers.clone().any(|answer| answer.unsettled) {
                        actions.push(Action::Conclude { source: None });
                    } else {
                        let sources = (0..state.disks.len()).filter(said);
                        actions.extend(sources.map(|at| Action::Conclude { source: Some(at) }));
                    }
                }
            }
            Some(_) => {
                for (at, disk) in state.disks.iter().enumerate() {
                    let wanted = has(disk.wanted, usize::from(state.attempts));
                    if wanted && disk.installed != state.attempts {
                        actions.push(Action::Install { disk: at, attempt: state.attempts });
                    }
                }
            }
        }
    }

    /// Copies that disks may get which are not members as they run now.
    fn actions_of_copying(&self, state: &State, from: u8, actions: &mut Vec<Action>) {
        let wanted = |disk: &Disk| has(disk.wanted, usize::from(state.attempts));
        for (at, disk) in state.disks.iter().enumerate() {
            let listed = disk.listed[usize::from(from) - 1];
            if !wanted(disk) || listed == Listed::Now {
                continue;
            }
            let is_evidence = listed == Listed::Reopened;
            for (source, peer) in state.disks.iter().enumerate() {
                let (new, old) = (peer.now(), disk.now());
                if peer.listed[usize::from(from) - 1] != Listed::Now || new == old {
                    continue;
                }
                let order = |it: Content| (it.settled_by, state.order(it.stamp));
                let wins = order(new) > order(old);
                if !is_evidence || wins || !self.guards(Guard::EvidenceOnlyGrows) {
                    actions.push(Action::Copy { source, disk: at, torn: false });
                }
                let may_tear = !is_evidence || !self.guards(Guard::EvidenceStaysWhole);
                if may_tear && new.writes != 0 {
                    actions.push(Action::Copy { source, disk: at, torn: true });
                }
            }
        }
    }

    /// Whether those who refused meet every write quorum, and hold what they acknowledged.
    fn is_evidence(&self, state: &State, number: u8) -> bool {
        let answers = || state.disks.iter().filter_map(|disk| disk.evidence);
        if !self.guards(Guard::RefusalBeforeActivation) {
            return answers().count() >= 1;
        }
        let lossless = answers().filter(|answer| answer.lossless).count();
        let lossy = answers().count() - lossless;
        let lost_power = !self.guards(Guard::EvidenceOfReopened) || lossy >= state.quorum(number);
        lossless >= state.meeting(number)
            || (lost_power && lossless + lossy >= state.meeting(number))
    }

    fn act(&self, state: &mut State, action: Action) {
        match action {
            Action::Begin { session } => {
                let it = state.sessions[session];
                let own = state.in_flight(session) | it.shown;
                let previous = items(own).max_by_key(|write| state.order(*write as u8 + 1));
                let previous = previous.map_or(0, |write| write as u8 + 1);
                let (session, under) = (session as u8, with(0, usize::from(it.number)));
                state.writes.push(Write { session, previous, under });
            }
            Action::Deliver { write, number, disk } => self.deliver(state, write, number, disk),
            Action::Flush { session, disk } => {
                state.disks[disk].flush();
                let mut stable = state.disks[disk].stable.writes & state.sessions[session].shown;
                if !self.bounds.settled_points {
                    stable &= !state.flushed;
                }
                state.disks[disk].peer[session].stable |= stable;
                self.end_flush(state, session);
            }
            Action::Tell { session, disk } => {
                let guard = self.guards(Guard::SettledPointIsStable);
                let number = state.sessions[session].number;
                let everywhere = |write: usize| {
                    state.members(number).all(|disk| {
                        let peer = &disk.peer[session];
                        has(if guard { peer.stable } else { peer.got | peer.stable }, write)
                    })
                };
                let shown = items(state.sessions[session].shown);
                let settled: Vec<usize> = shown.take_while(|write| everywhere(*write)).collect();
                let Some(&last) = settled.last() else { return };
                let disk = &mut state.disks[disk];
                disk.settled = disk.settled.max(last as u8 + 1);
            }
            Action::Attach { session } => {
                let number = state.number;
                state.sessions[session] =
                    Session { phase: Phase::Opening, number, ..Session::default() };
            }
            Action::Fence { session, disk } => {
                let answer = self.answer(state, disk, state.sessions[session].number);
                let disk = &mut state.disks[disk];
                disk.fence = session as u8 + 1;
                disk.peer[session].answer = Some(answer);
            }
            Action::Choose { session, source } => self.choose(state, session, source),
            Action::Settle { session, disk } => self.settle_at(state, session, disk),
            Action::Learn { session } => self.learn(state, session),
            Action::Read => {
                state.reading = true;
                if self.guards(Guard::ConfirmedAfterwards) {
                    state.disks.iter_mut().for_each(|disk| disk.peer[0].confirms = false);
                }
            }
            Action::Confirm { disk } => state.disks[disk].peer[0].confirms = true,
            Action::Copy { source, disk, torn } => {
                state.copies += 1;
                let mut new = state.disks[source].now();
                if torn {
                    new.writes = without(new.writes, usize::from(new.stamp) - 1);
                    if self.guards(Guard::IncompleteIsMarked) {
                        new.stamp = INCOMPLETE;
                    }
                }
                let disk = &mut state.disks[disk];
                if !self.guards(Guard::AdoptedInOne) {
                    let half = Content { writes: new.writes, ..disk.now() };
                    disk.tail.push(Record::Put(half));
                }
                disk.put(new, false);
            }
            Action::Restart { disk } => {
                state.restarts += 1;
                let disk = &mut state.disks[disk];
                disk.reopen();
            }
            Action::PowerCut { disk, kept, settled } => {
                state.power_cuts += 1;
                let disk = &mut state.disks[disk];
                disk.reopen();
                disk.lossy = true;
                disk.tail.truncate(kept);
                if !settled {
                    disk.settled = disk.settled_stable;
                }
            }
            Action::Attempt { wanted } => {
                if let Some(Attempt { from, chosen: Some(chosen) }) = state.attempt
                    && !self.guards(Guard::NewestAttempt)
                {
                    state.forsaken.push((state.attempts, from, chosen));
                }
                state.attempts += 1;
                state.attempt = Some(Attempt { from: state.number, chosen: None });
                for (at, disk) in state.disks.iter_mut().enumerate() {
                    disk.evidence = None;
                    disk.ready = Listed::No;
                    if self.guards(Guard::NewestAttempt) {
                        disk.wanted = 0;
                    }
                    if has(wanted, at) {
                        disk.wanted = with(disk.wanted, usize::from(state.attempts));
                    }
                }
            }
            Action::Refuse { disk } => {
                let number = state.number;
                let answer = self.answer(state, disk, number);
                let disk = &mut state.disks[disk];
                if self.guards(Guard::RefusalBeforeActivation) {
                    disk.refused = disk.refused.max(number);
                }
                disk.evidence = Some(answer);
            }
            Action::Conclude { source } => {
                let guard = self.guards(Guard::LastSettledGeneration);
                let answers = state.disks.iter().filter_map(|disk| disk.evidence);
                let fence = answers.clone().map(|answer| answer.fence).max().unwrap_or(0);
                let newest = answers.clone().map(|it| it.content.settled_by).max().unwrap_or(0);
                let members = state.members(state.number);
                let excused = members.filter(|it| it.lossy).count() >= state.quorum(state.number);
                let content = match source {
                    None => state.settle(answers, guard),
                    Some(at) => state.disks[at].evidence.expect("it answered").content,
                };
                let content = Content { settled_by: newest, ..content };
                let attempt = state.attempt.as_mut().expect("it is under way");
                attempt.chosen = Some(Chosen { content, fence, named: source.is_none(), excused });
                state.disks.iter_mut().for_each(|disk| disk.evidence = None);
            }
            Action::Install { disk, attempt } => self.install(state, disk, attempt),
        }
    }

    /// What a disk says of the object to who asks under a configuration.
    fn answer(&self, state: &State, disk: usize, number: u8) -> Answer {
        let disk = &state.disks[disk];
        let listed = disk.listed[usize::from(number) - 1];
        let unchanged = listed == Listed::Now || !self.guards(Guard::Incarnation);
        let content = disk.now();
        Answer {
            content,
            fence: disk.fence,
            unsettled: !self.bounds.settled_points
                || state.order(content.stamp) > state.order(disk.settled),
            lossless: unchanged || !disk.lossy,
        }
    }

    fn deliver(&self, state: &mut State, write: usize, number: u8, disk: usize) {
        let session = usize::from(state.writes[write].session);
        let known = state.sessions[session].number;
        let known_to_be_there = has(state.sessions[session].shown, write);
        let counts = self.counts(&state.disks[disk], number);
        let settles = if self.guards(Guard::WriteSettles) { session as u8 + 1 } else { 0 };
        let disk = &mut state.disks[disk];
        disk.tail.push(Record::Write(write as u8, settles));
        if known != number || !counts || (known_to_be_there && !self.bounds.settled_points) {
            return;
        }
        disk.peer[session].got = with(disk.peer[session].got, write);
        let got = state.members(number).filter(|disk| has(disk.peer[session].got, write)).count();
        if got >= state.quorum(number) {
            state.acknowledge(write);
            if !self.bounds.settled_points {
                state.forget_answers_to(write);
            }
        }
    }

    /// The flush of a session ends when all it has acknowledged is stable on a quorum.
    fn end_flush(&self, state: &mut State, session: usize) {
        let it = state.sessions[session];
        let quorum = state.quorum(it.number);
        let stable = |write| {
            let on = state.members(it.number).filter(|disk| has(disk.peer[session].stable, write));
            has(state.flushed, write) || on.count() >= quorum
        };
        if items(it.shown).all(stable) {
            if state.dead & it.shown != 0 {
                state.fail("a flush ends well for what nobody will see");
            }
            state.flushed |= it.shown;
            if !self.bounds.settled_points {
                state.disks.iter_mut().for_each(|disk| disk.peer[session].stable = 0);
            }
        }
    }

    fn choose(&self, state: &mut State, session: usize, source: Option<usize>) {
        let generation = session as u8 + 1;
        let content = match source {
            None => {
                let answers = state.members(state.sessions[session].number);
                let answers = answers.filter_map(|disk| disk.peer[session].answer);
                state.settle(answers, self.guards(Guard::LastSettledGeneration))
            }
            // Nobody named it: it is the same everywhere.
            Some(at) => state.disks[at].peer[session].answer.expect("it answered").content,
        };
        let content = Content { settled_by: generation, ..content };
        state.sessions[session].chosen = Some(content);
    }

    fn settle_at(&self, state: &mut State, session: usize, disk: usize) {
        let generation = session as u8 + 1;
        let it = state.sessions[session];
        let Some(content) = it.chosen else { return };
        let now = state.disks[disk].now();
        let is_newer = state.order(now.stamp).0 >= generation || now.settled_by >= generation;
        let disk = &mut state.disks[disk];
        if !is_newer {
            disk.put(content, self.guards(Guard::FlushBeforeOpening));
        }
        if it.phase == Phase::Opening {
            disk.peer[session].marked = true;
            let marked = state.members(it.number).filter(|disk| disk.peer[session].marked);
            if marked.count() >= state.quorum(it.number) {
                self.open(state, session, content);
            }
        }
    }

    fn open(&self, state: &mut State, session: usize, content: Content) {
        state.judge(content.writes, false);
        let older = |write: &usize| usize::from(state.writes[*write].session) < session;
        let gone = (0..state.writes.len()).filter(older).fold(0, with) & !content.writes;
        state.dead |= gone;
        state.acknowledged |= content.writes;
        for disk in &mut state.disks {
            disk.peer[session].answer = None;
            disk.peer[session].marked = false;
        }
        state.sessions[session].phase = Phase::Open;
        state.sessions[session].shown = content.writes;
    }

    fn learn(&self, state: &mut State, session: usize) {
        let number = state.number;
        let content = state.begun_with;
        for disk in &mut state.disks {
            disk.peer[session] = Peer::default();
        }
        // A read that is under way begins anew.
        state.reading &= session != 0;
        let in_flight = state.in_flight(session);
        let it = &mut state.sessions[session];
        it.number = number;
        it.chosen = None;
        if it.phase != Phase::Open {
            return;
        }
        // What is lost of it is lost: the guest hears of that with its next flush. Somebody may
        // have what came after it, though, and by the old stamps that would be the same.
        let lost = it.shown & !content.writes;
        it.shown &= content.writes;
        if lost != 0 && self.guards(Guard::NewStampAfterLoss) {
            return;
        }
        // What was in flight is everywhere, or is sent again.
        let mut last = content.stamp;
        for write in items(in_flight) {
            if has(content.writes, write) {
                state.acknowledge(write);
                continue;
            }
            let under = with(state.writes[write].under, usize::from(number));
            state.writes[write] = Write { previous: last, under, ..state.writes[write] };
            last = write as u8 + 1;
        }
    }

    fn install(&self, state: &mut State, disk: usize, number: u8) {
        let is_newest = number == state.attempts && state.attempt.is_some();
        let (from, chosen) = if is_newest {
            let attempt = state.attempt.expect("it is under way");
            (attempt.from, attempt.chosen.expect("it was concluded"))
        } else {
            let old = state.forsaken.iter().find(|old| old.0 == number).expect("it was made");
            (old.1, old.2)
        };
        let content = chosen.content;
        let stamp = state.disks[disk].now().stamp;
        let named = chosen.named || state.order(stamp) > state.order(state.disks[disk].settled);
        let here = &mut state.disks[disk];
        let flush = self.guards(Guard::FlushBeforeActivation);
        if self.guards(Guard::RefusalBeforeActivation) {
            here.refused = here.refused.max(from);
        }
        here.installed = number;
        here.fence = here.fence.max(chosen.fence);
        let now = here.now();
        let lossless = here.listed[usize::from(from) - 1] != Listed::No && !here.lossy;
        // Equal stamps are equal content, and what nobody named is equal on all.
        if now.stamp != content.stamp && (named || !lossless) {
            here.put(content, flush);
        } else {
            // The mark of a settling that came to nothing goes: its session settles again, and
            // maybe otherwise.
            here.put(Content { settled_by: content.settled_by, ..now }, flush);
        }
        here.lossy = false;
        if !is_newest {
            return;
        }
        here.ready = Listed::Now;
        let wanted = |disk: &&Disk| has(disk.wanted, usize::from(number));
        if state.disks.iter().filter(wanted).all(|disk| disk.ready != Listed::No) {
            self.activate(state, content, chosen.excused);
        }
    }

    fn activate(&self, state: &mut State, content: Content, excused: bool) {
        let number = usize::from(state.number);
        if excused {
            state.excused = with(state.excused, number);
        }
        for disk in &mut state.disks {
            disk.listed[number] = disk.ready;
            disk.ready = Listed::No;
            if self.guards(Guard::NewestAttempt) {
                disk.wanted = 0;
            }
        }
        state.number += 1;
        state.begun_with = content;
        state.attempt = None;
        state.judge(content.writes, excused);
        let unlike = |disk: &&Disk| {
            disk.listed[number] == Listed::Now && disk.now().writes != content.writes
        };
        if state.disks.iter().filter(unlike).count() > 0 {
            state.fail("the members of a new configuration differ");
        }
    }
}

impl State {
    /// An acknowledged write needs no more answers.
    fn forget_answers_to(&mut self, write: usize) {
        for disk in &mut self.disks {
            for peer in &mut disk.peer {
                peer.got = without(peer.got, write);
            }
        }
    }
}
