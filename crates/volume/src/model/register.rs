//! What a volume may contain: for each sector the changes in the order of arrival.

/// A change of some sectors.
#[derive(Clone)]
struct Change {
    /// When it ended, if it has.
    ended: Option<u64>,
    failed: bool,
    /// Power failed since it began and before it was stable: it may be gone, in part or whole.
    doubtful: bool,
    /// A flush has failed since then, so that the guest knows.
    reported: bool,
    stable: bool,
    /// It ends only when it is stable; reads go ahead once it is applied.
    fua: bool,
    /// It had not ended well when a snapshot was agreed on that this is the register of.
    may_miss: bool,
}

impl Change {
    fn is_certain(&self) -> bool {
        !self.may_miss && (self.ended.is_some() || self.fua) && !self.failed && !self.doubtful
    }
}

#[derive(Clone)]
struct Entry {
    change: usize,
    tag: u32,
    /// A read has found it.
    seen: bool,
}

/// The sectors of a volume; a tag of 0 is zeros.
#[derive(Clone)]
pub(super) struct Register {
    sectors: Vec<Vec<Entry>>,
    changes: Vec<Change>,
    tag: u32,
    step: u64,
    failures: u64,
    /// Of a snapshot that is being taken: what comes now may miss it.
    is_snapshot: bool,
}

impl Register {
    pub(super) fn new(sectors: u64) -> Register {
        let sectors = (0..sectors).map(|_| Vec::new()).collect();
        let changes = Vec::new();
        Register { sectors, changes, tag: 0, step: 0, failures: 0, is_snapshot: false }
    }

    /// What there may be in a snapshot that is agreed on now.
    pub(super) fn snapshot(&self) -> Register {
        let mut snapshot = self.clone();
        snapshot.is_snapshot = true;
        for change in &mut snapshot.changes {
            change.may_miss = change.ended.is_none() || change.failed;
        }
        snapshot
    }

    /// A volume that has exactly these tags, all stable.
    pub(super) fn of(tags: &[u32], next_tag: u32) -> Register {
        let mut register = Register::new(tags.len() as u64);
        register.tag = next_tag;
        for (sector, tag) in tags.iter().enumerate() {
            if *tag != 0 {
                let change = register.begin(sector as u64, 1, *tag, false);
                register.done(change);
            }
        }
        register.changes.iter_mut().for_each(|change| change.stable = true);
        register
    }

    /// The snapshot is sealed: all of it is stable.
    pub(super) fn sealed(&mut self) {
        for change in &mut self.changes {
            change.stable |= change.is_certain();
        }
    }

    /// Whether this knows a change: one that came after a snapshot was sealed is none of it.
    pub(super) fn knows(&self, change: usize) -> bool {
        change < self.changes.len()
    }

    /// Asserts that each write that ended well is in these tags as a whole, or not at all.
    pub(super) fn no_halves(&self, tags: &[u32]) {
        // For each change whether some sector shows it, and whether some shows what was before it.
        let mut shows = vec![(false, false); self.changes.len()];
        let mut tags_of = vec![0; self.changes.len()];
        for (sector, entries) in self.sectors.iter().enumerate().take(tags.len()) {
            let found = entries.iter().rposition(|entry| entry.tag == tags[sector]);
            for (place, entry) in entries.iter().enumerate() {
                tags_of[entry.change] = entry.tag;
                if Some(place) == found {
                    shows[entry.change].0 = true;
                } else if found.is_none_or(|found| place > found) {
                    shows[entry.change].1 = true;
                }
            }
        }
        for (change, (is_shown, is_missed)) in shows.into_iter().enumerate() {
            let Change { failed, doubtful, ended, .. } = self.changes[change];
            let is_whole = ended.is_some() && !failed && !doubtful && tags_of[change] != 0;
            assert!(!(is_whole && is_shown && is_missed), "half of write {}", tags_of[change]);
        }
    }

    pub(super) fn next_tag(&mut self) -> u32 {
        self.tag += 1;
        self.tag
    }

    /// How many changes came so far.
    pub(super) fn place(&self) -> usize {
        self.changes.len()
    }

    /// A count of the ends of changes.
    pub(super) fn step(&self) -> u64 {
        self.step
    }

    /// How often power failed.
    pub(super) fn failures(&self) -> u64 {
        self.failures
    }

    /// A change is asked for.
    pub(super) fn begin(&mut self, first: u64, sectors: u64, tag: u32, fua: bool) -> usize {
        let change = self.changes.len();
        self.changes.push(Change {
            ended: None,
            failed: false,
            doubtful: false,
            reported: false,
            stable: false,
            fua,
            may_miss: self.is_snapshot,
        });
        let end = first + sectors;
        if self.sectors.len() < end as usize {
            self.sectors.resize_with(end as usize, Vec::new);
        }
        for sector in first..end {
            self.sectors[sector as usize].push(Entry { change, tag, seen: false });
        }
        change
    }

    pub(super) fn done(&mut self, change: usize) {
        self.step += 1;
        let step = self.step;
        let change = &mut self.changes[change];
        assert!(change.ended.replace(step).is_none());
        if change.fua {
            change.stable = true;
            change.doubtful = false;
        }
    }

    pub(super) fn failed(&mut self, change: usize) {
        self.step += 1;
        let change = &mut self.changes[change];
        assert!(change.ended.replace(self.step).is_none());
        change.failed = true;
    }

    /// What ended up to that step is stable, unless the guest was told that it is not.
    pub(super) fn flushed(&mut self, step: u64) {
        for change in &mut self.changes {
            if change.ended.is_some_and(|ended| ended <= step) && !change.reported {
                change.stable = true;
                change.doubtful = false;
            }
        }
    }

    /// A flush failed: the guest knows of the losses so far.
    pub(super) fn loss_reported(&mut self) {
        for change in self.changes.iter_mut().filter(|change| change.doubtful) {
            change.reported = true;
        }
    }

    pub(super) fn power_failed(&mut self) {
        self.failures += 1;
        for change in self.changes.iter_mut().filter(|change| !change.stable) {
            change.doubtful = true;
        }
        for entry in self.sectors.iter_mut().flatten() {
            entry.seen &= self.changes[entry.change].stable;
        }
    }

    /// The session's own discard of the end of the volume is stable.
    pub(super) fn discarded(&mut self, first: u64, sectors: u64) {
        let change = self.begin(first, sectors, 0, true);
        self.done(change);
    }

    /// A read that came after `place` changes found this tag. If it is `sure`, power did not fail
    /// while it was under way, and what it found is what there is.
    pub(super) fn found(&mut self, sector: u64, tag: u32, place: usize, sure: bool) {
        if self.sectors.len() <= sector as usize {
            self.sectors.resize_with(sector as usize + 1, Vec::new);
        }
        let entries = &mut self.sectors[sector as usize];
        let end = entries.iter().position(|entry| entry.change >= place).unwrap_or(entries.len());
        let mut at = end;
        let found = loop {
            if at == 0 {
                assert_eq!(tag, 0, "sector {sector} has {tag}, which nobody may have written");
                break None;
            }
            at -= 1;
            let (entry, change) = (&entries[at], &self.changes[entries[at].change]);
            assert!(
                change.ended.is_some() || change.fua || change.may_miss,
                "a read overtook a change of sector {sector}"
            );
            if entry.tag == tag {
                break Some(at);
            }
            let certain = entry.seen || change.is_certain();
            assert!(!certain, "sector {sector} has {tag} instead of {}", entry.tag);
        };
        if sure {
            let first = found.map_or(0, |at| at + 1);
            entries.drain(first..end);
            if let Some(at) = found {
                entries[at].seen = true;
            }
        }
    }
}
