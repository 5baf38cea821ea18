//! Snapshots taken at any moment, clones, flattening and shortening: each snapshot has a register
//! of its own, copied when it is agreed on, which what comes after may or may not be in until it
//! is sealed.

use super::*;
use proto::{BlockState, Payload};

/// A snapshot.
pub(super) struct Snap {
    volume: VolumeId,
    tag: String,
    layer: LayerId,
    pub(super) register: Register,
    /// The head above it was reported as opened.
    sealed: bool,
    /// Power failed before that: what was not flushed may be in it in part.
    pub(super) power_failed: bool,
}

impl World {
    /// Does this for the snapshot that is being taken, if one is.
    pub(super) fn unsealed(&mut self, todo: impl Fn(&mut Snap)) {
        let volume = self.volume;
        let unsealed = |snap: &&mut Snap| snap.volume == volume && !snap.sealed;
        self.snaps.iter_mut().filter(unsealed).for_each(todo);
    }

    /// Does this for the registers of the volume's snapshots that know a change.
    pub(super) fn knowing(&mut self, change: usize, todo: impl Fn(&mut Register)) {
        let volume = self.volume;
        let of_volume = self.snaps.iter_mut().filter(|snap| snap.volume == volume);
        let registers = of_volume.map(|snap| &mut snap.register);
        registers.filter(|register| register.knows(change)).for_each(todo);
    }

    /// Takes a snapshot now, if that is possible now.
    pub(super) fn snapshot(&mut self) -> bool {
        let tag = format!("s{}", self.snaps.len());
        let (volume, unix_s) = (self.volume, 0);
        let create = Command::CreateSnapshot { volume, tag: tag.clone(), unix_s };
        let Ok(answer) = self.state.apply(&create) else { return false };
        let Answer::SnapshotCreated { layer } = answer else { panic!("created") };
        let register = self.register.snapshot();
        let (sealed, power_failed) = (false, false);
        self.snaps.push(Snap { volume, tag, layer, register, sealed, power_failed });
        true
    }

    pub(super) fn layer_opened(&mut self, layer: LayerId) {
        let (volume, generation) = (self.volume, self.generation);
        if self.deaf || self.random.chance(300) {
            // The report gets lost; it comes again.
            return;
        }
        let opened = Command::LayerOpened { volume, generation, layer };
        self.state.apply(&opened).expect("the session writes");
        self.unsealed(|snap| {
            snap.register.sealed();
            snap.sealed = true;
        });
    }

    pub(super) fn report_flattened(&mut self) {
        if self.random.chance(300) {
            return;
        }
        let (volume, generation) = (self.volume, self.generation);
        // The cases tell the session alone to begin; refused if nothing shows through any more.
        let _ = self.state.apply(&Command::SetFlatten { volume, wanted: true });
        let flattened = Command::Flattened { volume, generation };
        let answer = self.state.apply(&flattened).expect("the session writes");
        self.flattened += 1;
        self.drop_layers(answer);
    }

    pub(super) fn report_shortened(&mut self, parent: LayerId) {
        if self.random.chance(300) {
            return;
        }
        let (volume, generation) = (self.volume, self.generation);
        let before = self.state.map().epoch();
        let shortened = Command::Shortened { volume, generation, parent };
        let answer = self.state.apply(&shortened).expect("it shows through");
        self.shortened += u64::from(self.state.map().epoch() > before);
        self.drop_layers(answer);
    }

    /// What shows through the volume.
    pub(super) fn chain(&self) -> Vec<cluster::Origin> {
        let map = self.state.map();
        map.chain(map.volume(self.volume).expect("it exists").head)
    }

    fn drop_layers(&mut self, answer: Answer) {
        let Answer::Dropped(layers) = answer else { panic!("dropped") };
        for (lineage, layer) in layers {
            self.disk.drop_layer(lineage, layer);
        }
    }

    /// Waits until the last snapshot is sealed.
    pub(super) fn seal(&mut self) {
        self.settle();
        for _ in 0..100_000 {
            let map = self.state.map();
            if map.sealing(map.volume(self.volume).expect("it exists")).is_none() {
                return;
            }
            self.advance();
        }
        panic!("it is never sealed");
    }

    /// What the session shows: the tags, and whether each sector is said to be data.
    pub(super) fn content(&mut self, sectors: u64) -> Vec<u32> {
        let mut tags = Vec::new();
        for first in (0..sectors).step_by(8192) {
            let length = (sectors - first).min(8192) * SECTOR;
            let read = self.ask(first * SECTOR, length, Operation::Read);
            let Ok(Completion::Data(content)) = read else { panic!("{read:?}") };
            tags.extend(Payload::joined(&content).chunks(SECTOR as usize).map(tag_of));
        }
        tags
    }

    /// Asks, and waits for the answer.
    pub(super) fn ask(
        &mut self,
        offset: u64,
        length: u64,
        operation: Operation,
    ) -> Result<Completion, Error> {
        let id = RequestId(1 << 50);
        let mut effects = Vec::new();
        let request = Request { id, offset, length, operation };
        self.session.handle(self.now, Event::Request(request), &mut effects);
        for _ in 0..100_000 {
            let is_end =
                |effect: &Effect| matches!(effect, Effect::Complete { id: of, .. } if *of == id);
            if let Some(place) = effects.iter().position(is_end) {
                let Effect::Complete { result, .. } = effects.swap_remove(place) else {
                    unreachable!("it was found")
                };
                self.take(effects);
                return result;
            }
            self.take(std::mem::take(&mut effects));
            self.disk.step(&mut self.random);
            if let Some((token, result)) = self.disk.deliver(&mut self.random) {
                let event = Event::Member { disk: DISK, token, result };
                self.session.handle(self.now, event, &mut effects);
                self.session.check();
            }
            if let Some(event) = self.answer_source() {
                self.session.handle(self.now, event, &mut effects);
                self.session.check();
            }
            self.now = self.now + Duration::from_millis(1);
            if self.session.deadline().is_some_and(|at| at <= self.now) {
                self.session.handle(self.now, Event::Tick, &mut effects);
            }
        }
        panic!("no answer");
    }

    /// What status and difference say of a volume must fit what it contains.
    fn check_states(&mut self, tags: &[u32], bases: &[(LayerId, Vec<u32>)]) {
        let bytes = tags.len() as u64 * SECTOR;
        let status = self.ask(0, bytes, Operation::Status);
        let Ok(Completion::Status(extents)) = status else { panic!("{status:?}") };
        let mut at = 0;
        for extent in extents {
            let end = at + (extent.length / SECTOR) as usize;
            let is_zero = tags[at..end].iter().all(|tag| *tag == 0);
            assert!(extent.state == BlockState::Data || is_zero, "{at}..{end}: {extent:?}");
            at = end;
        }
        let nothing = vec![0; tags.len()];
        let bases = bases.iter().map(|(layer, tags)| (*layer, tags));
        for (base, below) in bases.chain([(LayerId(0), &nothing)]) {
            let difference = self.ask(0, bytes, Operation::Difference { base });
            let Ok(Completion::Difference(runs)) = difference else { panic!("{difference:?}") };
            let mut at = 0;
            for run in runs {
                let end = at + (run.length / SECTOR) as usize;
                let known = below.len().clamp(at, end);
                let same = (at..known).all(|sector| tags[sector] == below[sector]);
                let more = tags[known..end].iter().all(|tag| *tag == 0);
                assert!(run.state.is_some() || (same && more), "{at}..{end} since {base}: {run:?}");
                at = end;
            }
        }
    }

    /// Reads a sealed snapshot from end to end.
    pub(super) fn read_snapshot(&mut self, number: usize) -> Vec<u32> {
        let Snap { volume, tag, layer, .. } = &self.snaps[number];
        let (volume, tag, layer) = (*volume, tag.clone(), *layer);
        self.detach();
        let holder = "reader".to_string();
        let attach = Command::AttachSnapshot { volume, tag, node: NODE, holder, unix_s: 0 };
        let answer = self.state.apply(&attach).expect("it is sealed");
        let Answer::Attached { generation } = answer else { panic!("attached") };
        let before = std::mem::replace(&mut self.volume, volume);
        self.generation = generation;
        self.open_session(View::Snapshot { layer });
        assert_eq!(self.opened, Some(Ok(())), "a snapshot needs no fence");
        let known = self.map.volume(volume).expect("it exists");
        let snapshot = known.snapshots.iter().find(|snapshot| snapshot.layer == layer);
        let sectors = snapshot.expect("just attached").bytes / SECTOR;
        let tags = self.content(sectors);
        let bases: Vec<(LayerId, Vec<u32>)> = Vec::new();
        self.check_states(&tags, &bases);
        self.tell(Event::Close);
        assert!(self.closed);
        self.detach();
        self.volume = before;
        let snap = &mut self.snaps[number];
        // First: what is found makes the register forget what may have been.
        if !snap.power_failed {
            snap.register.no_halves(&tags);
        }
        for (sector, tag) in tags.iter().enumerate() {
            snap.register.found(sector as u64, *tag, usize::MAX, true);
        }
        tags
    }

    /// Reads all snapshots of the volume, and compares the head with each of them.
    pub(super) fn check_snapshots(&mut self) {
        let volume = self.volume;
        let mut bases = Vec::new();
        for number in 0..self.snaps.len() {
            if self.snaps[number].volume == volume && self.snaps[number].sealed {
                let tags = self.read_snapshot(number);
                bases.push((self.snaps[number].layer, tags));
            }
        }
        self.attach(true);
        self.seal();
        let tags = self.content(self.sectors());
        for (sector, tag) in tags.iter().enumerate() {
            self.register.found(sector as u64, *tag, usize::MAX, true);
        }
        self.check_states(&tags, &bases);
        self.close();
        self.detach();
    }

    /// Goes on with a clone of the last snapshot, or of another one.
    pub(super) fn clone_snapshot(&mut self, number: usize, read_before: bool) {
        let tags = if read_before { self.read_snapshot(number) } else { Vec::new() };
        self.detach();
        let Snap { volume, tag, .. } = &self.snaps[number];
        let (volume, tag) = (*volume, tag.clone());
        let name = format!("clone{}", self.random.next());
        let clone = Command::CloneSnapshot { volume, tag, name, unix_s: 0 };
        let answer = self.state.apply(&clone).expect("it is sealed");
        let Answer::VolumeCreated { volume } = answer else { panic!("created") };
        self.volume = volume;
        self.register = Register::of(&tags, self.register.next_tag());
        self.attach(false);
    }

    /// Deletes a snapshot, if nothing is in the way.
    pub(super) fn delete_snapshot(&mut self, number: usize) {
        let Snap { volume, tag, .. } = &self.snaps[number];
        let delete = Command::DropSnapshot { volume: *volume, tag: tag.clone(), unix_s: 0 };
        if let Ok(answer) = self.state.apply(&delete) {
            self.drop_layers(answer);
            self.snaps.remove(number);
        }
    }

    pub(super) fn last_sealed(&self) -> Option<usize> {
        self.snaps.iter().rposition(|snap| snap.sealed)
    }
}
