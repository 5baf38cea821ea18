//! The replication protocol of one object, as a model: what disks keep, what sessions believe, what
//! is agreed, and every order in which messages, crashes and changes of the members can meet.
//!
//! It says nothing of bytes, time or placement. A *write* is a number in order of issue, the
//! content of an object the set of writes it shows, and its stamp the last of them. Everything sent
//! stays deliverable for ever, in any order and any number of times; a message that is lost is one
//! that is never delivered. What is agreed by Raft is one step.

mod steps;

/// Sessions in the model: session s has generation s + 1.
pub const SESSIONS: usize = 2;

/// The stamp of what was copied while it was being written.
const INCOMPLETE: u8 = u8::MAX;

/// Configurations there can be.
const CONFIGURATIONS: usize = 3;

/// A set of disks, sessions, writes or configuration numbers.
pub type Set = u8;

fn has(set: Set, item: usize) -> bool {
    set >> item & 1 == 1
}

fn with(set: Set, item: usize) -> Set {
    set | 1 << item
}

fn without(set: Set, item: usize) -> Set {
    set & !(1 << item)
}

fn count(set: Set) -> usize {
    set.count_ones() as usize
}

fn items(set: Set) -> impl Iterator<Item = usize> {
    (0..8).filter(move |item| has(set, *item))
}

/// The guards of DESIGN section 5, each of which can be taken away.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Guard {
    /// A confirmation counts for a read only if it was asked for after the read had come.
    ConfirmedAfterwards,
    /// A read is answered when a write quorum has confirmed; those who meet every fence quorum are
    /// not enough.
    ConfirmedByQuorum,
    /// A disk that has refused the configuration does not confirm it.
    RefusalNoticed,
    /// Settling considers only the answers with the highest last settled generation.
    LastSettledGeneration,
    /// A disk that takes a write of a generation has the object settled by it.
    WriteSettles,
    /// What was settled, and by whom, is stable before the session serves the object.
    FlushBeforeOpening,
    /// A disk counts only under the incarnation that the configuration lists.
    Incarnation,
    /// What is settled for a new configuration is stable on its members before it is activated.
    FlushBeforeActivation,
    /// A disk that is being made a member takes no writes until it is one.
    NewcomerTakesNoWrites,
    /// What was copied while it was being written has a stamp that no write has.
    IncompleteIsMarked,
    /// A disk that is a member in a former opening gets only whole copies.
    EvidenceStaysWhole,
    /// And only of what wins over what it has.
    EvidenceOnlyGrows,
    /// Content and stamp of a copy are adopted in one.
    AdoptedInOne,
    /// Members that meet every write quorum refuse a configuration before the next is activated.
    RefusalBeforeActivation,
    /// A reopened disk is evidence of what it held only if its machine has not lost power since,
    /// or a write quorum of machines has.
    EvidenceOfReopened,
    /// The settled point passes only what is stable on every member.
    SettledPointIsStable,
    /// What one attempt to change the members installs is refused after a later one has begun.
    NewestAttempt,
    /// What was in flight when acknowledged writes were lost is sent again as new writes.
    NewStampAfterLoss,
    /// A settled object is settled under a configuration that is not refused.
    ConfigurationOfSettle,
}

/// All of them.
pub const GUARDS: [Guard; 19] = [
    Guard::ConfirmedAfterwards,
    Guard::ConfirmedByQuorum,
    Guard::RefusalNoticed,
    Guard::LastSettledGeneration,
    Guard::WriteSettles,
    Guard::FlushBeforeOpening,
    Guard::Incarnation,
    Guard::FlushBeforeActivation,
    Guard::NewcomerTakesNoWrites,
    Guard::IncompleteIsMarked,
    Guard::EvidenceStaysWhole,
    Guard::EvidenceOnlyGrows,
    Guard::AdoptedInOne,
    Guard::RefusalBeforeActivation,
    Guard::EvidenceOfReopened,
    Guard::SettledPointIsStable,
    Guard::NewestAttempt,
    Guard::NewStampAfterLoss,
    Guard::ConfigurationOfSettle,
];

/// What one run of the model explores.
#[derive(Clone, Debug)]
pub struct Bounds {
    /// How many disks there are.
    pub disks: usize,
    /// How many of them are members at the beginning; the others are empty.
    pub members: usize,
    /// Writes that sessions may begin.
    pub writes: usize,
    /// Sessions, at most [`SESSIONS`].
    pub sessions: usize,
    /// Times that a `sheep` dies and starts again: nothing that a disk took is lost.
    pub restarts: usize,
    /// Times that a machine loses power: any tail of what is not flushed is lost.
    pub power_cuts: usize,
    /// Configurations there may be beside the first.
    pub changes: usize,
    /// Attempts to make them; one may be given up for another at any time.
    pub attempts: usize,
    /// Copies that disks may get before a configuration is refused.
    pub copies: usize,
    /// Whether sessions tell disks the settled point.
    pub settled_points: bool,
    /// What is taken away.
    pub removed: Option<Guard>,
}

/// The content of the object as one disk has it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Content {
    /// The writes it shows.
    writes: Set,
    /// The last of them, counted from 1; 0: none.
    stamp: u8,
    /// The generation that settled it last.
    settled_by: u8,
}

/// What a disk has taken and not flushed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
enum Record {
    /// The write, and the generation that it settles the object by; 0: by none.
    Write(u8, u8),
    Put(Content),
}

/// What a disk tells of the object.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
struct Answer {
    content: Content,
    /// The fence the disk keeps.
    fence: u8,
    /// It lies above the settled point that the disk knows.
    unsettled: bool,
    /// The disk has all it ever acknowledged under the configuration that is asked for.
    lossless: bool,
}

/// What a session knows of one disk.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
struct Peer {
    /// What it answered to the fence.
    answer: Option<Answer>,
    /// It has what was settled.
    marked: bool,
    /// Writes that it answered, under the configuration the session knows.
    got: Set,
    /// Writes that it said to be stable.
    stable: Set,
    /// It has confirmed the session since the read came that is under way.
    confirms: bool,
}

/// Whether something names a disk as it runs now. Incarnations have no numbers here: only whether
/// they are still the same matters.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
enum Listed {
    /// It does not.
    #[default]
    No,
    /// It names an earlier opening.
    Reopened,
    /// It names this one.
    Now,
}

/// A disk, and all that anybody knows of it. Disks have no names: states that differ only in their
/// order are one.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Disk {
    /// Its machine has lost power since the configuration that lists it was made.
    lossy: bool,
    stable: Content,
    tail: Vec<Record>,
    /// Durable: sessions below are refused.
    fence: u8,
    /// Durable: configurations up to here are refused.
    refused: u8,
    /// Durable: the attempt that installed last.
    installed: u8,
    /// The settled point, and how much of that is sure to outlive the power.
    settled: u8,
    settled_stable: u8,
    /// Whether configuration i + 1 lists it.
    listed: [Listed; CONFIGURATIONS],
    /// The attempts that would make it a member.
    wanted: Set,
    /// What it said when it refused, to the newest attempt.
    evidence: Option<Answer>,
    /// Whether the newest attempt has installed, and the disk is as it was then.
    ready: Listed,
    peer: [Peer; SESSIONS],
}

impl Disk {
    /// What it shows, flushed or not.
    fn now(&self) -> Content {
        self.tail.iter().fold(self.stable, |content, record| match *record {
            Record::Write(write, generation) => Content {
                writes: with(content.writes, usize::from(write)),
                stamp: write + 1,
                settled_by: content.settled_by.max(generation),
            },
            Record::Put(content) => content,
        })
    }

    fn flush(&mut self) {
        self.stable = self.now();
        self.tail.clear();
        self.settled_stable = self.settled;
    }

    /// It was opened anew.
    fn reopen(&mut self) {
        for listed in self.listed.iter_mut().chain([&mut self.ready]) {
            if *listed == Listed::Now {
                *listed = Listed::Reopened;
            }
        }
    }

    fn put(&mut self, content: Content, flush: bool) {
        self.tail.push(Record::Put(content));
        if flush {
            self.flush();
        }
    }
}

/// A write that a session has begun.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
struct Write {
    session: u8,
    /// The stamp before it.
    previous: u8,
    /// The configurations under which it was sent.
    under: Set,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
enum Phase {
    #[default]
    Absent,
    Opening,
    Open,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
struct Session {
    phase: Phase,
    /// The number of the configuration it knows.
    number: u8,
    /// What it settles.
    chosen: Option<Content>,
    /// What it reads: what it settled and what it has acknowledged since.
    shown: Set,
}

/// The newest attempt to make another configuration.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
struct Attempt {
    /// Of which configuration it makes the next.
    from: u8,
    /// What it came to.
    chosen: Option<Chosen>,
}

/// What an attempt installs.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
struct Chosen {
    content: Content,
    /// The highest fence of those who refused.
    fence: u8,
    /// One of them named the object as not settled.
    named: bool,
    /// A write quorum of machines has lost power.
    excused: bool,
}

/// The state of everything.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct State {
    disks: Vec<Disk>,
    sessions: [Session; SESSIONS],
    writes: Vec<Write>,
    /// The number of the newest configuration, and what it began with.
    number: u8,
    begun_with: Content,
    attempts: u8,
    attempt: Option<Attempt>,
    /// What former attempts have still to install: their number, the configuration they began from.
    forsaken: Vec<(u8, u8, Chosen)>,
    restarts: u8,
    power_cuts: u8,
    copies: u8,
    /// Session 0 reads, and has not shown something that was acknowledged when the read came.
    reading: bool,
    /// Writes that were acknowledged, or read by a session of later.
    acknowledged: Set,
    /// Writes that a flush covered.
    flushed: Set,
    /// Writes that may not be seen any more.
    dead: Set,
    /// Configurations of which a write quorum of machines had lost power when the next was made.
    excused: Set,
    /// What went wrong.
    violation: Option<&'static str>,
}

/// One step.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    /// A session begins a write.
    Begin { session: usize },
    /// A disk gets a write that was sent under a configuration.
    Deliver { write: usize, number: u8, disk: usize },
    /// A disk flushes for a session.
    Flush { session: usize, disk: usize },
    /// A disk hears of the settled point.
    Tell { session: usize, disk: usize },
    /// A newer session is agreed.
    Attach { session: usize },
    /// A disk fences for it.
    Fence { session: usize, disk: usize },
    /// It has heard enough; where no disk named the object, it takes it as this one has it.
    Choose { session: usize, source: Option<usize> },
    /// A disk takes what was settled.
    Settle { session: usize, disk: usize },
    /// A session learns of the newest configuration.
    Learn { session: usize },
    /// A guest reads by session 0. Only when that has missed something: what it shows only grows,
    /// so that a read which comes before shows all there was.
    Read,
    /// A disk confirms session 0.
    Confirm { disk: usize },
    /// A disk that is to be a member gets a copy of what another has; torn, if a write came between
    /// its content and its stamp.
    Copy { source: usize, disk: usize, torn: bool },
    /// `sheep` dies and starts again.
    Restart { disk: usize },
    /// A machine loses power; so many records of its tail were on the medium, and the settled point
    /// was or not.
    PowerCut { disk: usize, kept: usize, settled: bool },
    /// Somebody tries to make these the members.
    Attempt { wanted: Set },
    /// A disk refuses the present configuration.
    Refuse { disk: usize },
    /// The attempt has heard enough.
    Conclude { source: Option<usize> },
    /// A disk becomes what the next configuration begins with.
    Install { disk: usize, attempt: u8 },
}

/// The model within its bounds.
#[derive(Clone, Debug)]
pub struct Protocol {
    /// How far it goes.
    pub bounds: Bounds,
}

impl Protocol {
    fn guards(&self, guard: Guard) -> bool {
        self.bounds.removed != Some(guard)
    }
}

impl State {
    /// The place of a stamp in the order of all.
    fn order(&self, stamp: u8) -> (u8, u8) {
        match stamp {
            0 => (0, 0),
            INCOMPLETE => (0, 1),
            write => (self.writes[usize::from(write) - 1].session + 1, write),
        }
    }

    fn members(&self, number: u8) -> impl Iterator<Item = &Disk> + Clone {
        let at = usize::from(number) - 1;
        self.disks.iter().filter(move |disk| disk.listed[at] != Listed::No)
    }

    fn quorum(&self, number: u8) -> usize {
        self.members(number).count() / 2 + 1
    }

    /// How many members meet every write quorum.
    fn meeting(&self, number: u8) -> usize {
        self.members(number).count() + 1 - self.quorum(number)
    }

    /// What went wrong, if anything did.
    pub fn violation(&self) -> Option<&'static str> {
        self.violation
    }

    fn fail(&mut self, what: &'static str) {
        self.violation.get_or_insert(what);
    }

    /// The object is served from here on with this content. What was acknowledged and not flushed
    /// may be lost if a write quorum of machines has lost power.
    fn judge(&mut self, content: Set, excused: bool) {
        if self.flushed & !content != 0 {
            self.fail("a flushed write is lost");
        }
        if self.acknowledged & !content != 0 && !excused {
            self.fail("an acknowledged write is lost");
        }
        if self.dead & content != 0 {
            self.fail("a write that was gone rises");
        }
        self.dead |= self.acknowledged & !content;
        self.acknowledged &= content;
    }

    fn acknowledge(&mut self, write: usize) {
        let session = &mut self.sessions[usize::from(self.writes[write].session)];
        session.shown = with(session.shown, write);
        // The session does not know yet that the power took it.
        let is_lost = has(self.excused, usize::from(session.number));
        if is_lost && !has(self.begun_with.writes, write) {
            self.dead = with(self.dead, write);
            return;
        }
        if has(self.dead, write) {
            self.fail("a write is acknowledged that nobody will see");
        }
        self.acknowledged = with(self.acknowledged, write);
    }

    /// The content to go on with, of these answers.
    fn settle(&self, answers: impl Iterator<Item = Answer> + Clone, guard: bool) -> Content {
        let newest = answers.clone().map(|answer| answer.content.settled_by).max().unwrap_or(0);
        let settled = answers.filter(|answer| !guard || answer.content.settled_by == newest);
        let best = settled.map(|answer| answer.content).max_by_key(|it| self.order(it.stamp));
        best.expect("somebody answered")
    }

    /// Own writes of a session that it has not acknowledged.
    fn in_flight(&self, session: usize) -> Set {
        let own =
            |(write, it): (usize, &Write)| (usize::from(it.session) == session).then_some(write);
        let own: Vec<usize> = self.writes.iter().enumerate().filter_map(own).collect();
        own.into_iter().filter(|write| !has(self.sessions[session].shown, *write)).fold(0, with)
    }

    /// Acknowledged writes that session 0 would not show.
    fn missed(&self) -> Set {
        self.acknowledged & !self.sessions[0].shown & !self.in_flight(0)
    }

    /// Whether session 0 has confirmations enough to answer a read.
    fn is_confirmed(&self, guard: bool) -> bool {
        let session = &self.sessions[0];
        let enough = match guard {
            true => self.quorum(session.number),
            false => self.meeting(session.number),
        };
        self.members(session.number).filter(|disk| disk.peer[0].confirms).count() >= enough
    }
}
