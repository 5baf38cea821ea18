//! The node's disks, from blank medium or present one to serving, each its own machine.

use crate::{DiskSettings, Settings};
use proto::{DiskDone, DiskId, DiskOp, DiskRequest, Incarnation, Time};
use std::collections::{BTreeMap, BTreeSet};
use store::{Expected, Format, FormatOptions, Identity, OpenError, Options, Store};

/// One disk of the node.
pub(crate) struct Disk {
    /// What it was made with.
    pub(crate) settings: DiskSettings,
    /// Where it is in its life.
    pub(crate) stage: Stage,
    /// Which opening this is, once it is open.
    pub(crate) incarnation: Incarnation,
    /// What the file system under it has free, if the driver told.
    free_bytes: Option<u64>,
    /// What the store had given back by then.
    given_back_bytes: u64,
    /// Damages mended since the program started.
    pub(crate) mended: u64,
    /// Damages found since then.
    pub(crate) found: u64,
    /// Blocks, by address, that were damaged again after they were written anew, and still are.
    pub(crate) relapsed: BTreeSet<u64>,
    /// Whether its opening is agreed.
    pub(crate) is_agreed: bool,
    /// Whether somebody waits to hear that it is there.
    pub(crate) is_added: bool,
    /// Whether it was taken out of the cluster and is being closed.
    pub(crate) is_leaving: bool,
}

/// Where a disk is in its life.
pub(crate) enum Stage {
    /// A blank medium is being made a disk.
    Formatting(Box<Format>),
    /// The store opens, serves, or is retired or closed (see its status).
    Store(Box<Store>),
    /// It could not be opened, or may not be used, and why. Nothing is asked of its medium.
    Failed(String),
}

impl Disk {
    /// Begins with a disk by opening it; a blank one says so. `known` is the last opening that the
    /// agreed state has seen: a medium that has not seen it is an old copy, and stays as it is.
    pub(crate) fn begin(
        now: Time,
        node: &Settings,
        settings: &DiskSettings,
        known: Option<Incarnation>,
        effects: &mut Vec<store::Effect>,
    ) -> Disk {
        let store = open(now, node, settings, known, effects);
        Disk::at(settings, Stage::Store(Box::new(store)))
    }

    /// One of which nothing is asked, and why.
    pub(crate) fn failed(settings: &DiskSettings, reason: String) -> Disk {
        Disk::at(settings, Stage::Failed(reason))
    }

    fn at(settings: &DiskSettings, stage: Stage) -> Disk {
        Disk {
            settings: settings.clone(),
            stage,
            incarnation: Incarnation(0),
            free_bytes: None,
            given_back_bytes: 0,
            mended: 0,
            found: 0,
            relapsed: BTreeSet::new(),
            is_agreed: false,
            is_added: false,
            is_leaving: false,
        }
    }

    /// The driver tells what the file system under it has free.
    pub(crate) fn learn_free(&mut self, free_bytes: u64) {
        self.free_bytes = Some(free_bytes);
        self.given_back_bytes = self.given_back();
    }

    /// What the file system has free, as far as the driver told: with what was given back since.
    pub(crate) fn free_bytes(&self) -> Option<u64> {
        let since = self.given_back().saturating_sub(self.given_back_bytes);
        self.free_bytes.map(|free| free.saturating_add(since))
    }

    fn given_back(&self) -> u64 {
        self.store().map_or(0, |store| store.status().counters.given_back_bytes)
    }

    /// Makes the blank medium a disk.
    pub(crate) fn format(
        &mut self,
        node: &Settings,
        ops: &mut Vec<DiskOp>,
    ) -> Result<(), OpenError> {
        let options = FormatOptions {
            identity: identity(node, self.settings.disk),
            kind: self.settings.kind,
            medium_bytes: self.settings.medium_bytes,
            limit_bytes: self.settings.limit_bytes,
            log_bytes: self.settings.log_bytes,
            created_unix_s: node.unix_s,
        };
        self.stage = Stage::Formatting(Box::new(Format::new(options, ops)?));
        self.note_growth(ops);
        Ok(())
    }

    /// The end of an operation of a disk being formatted; the store opens after the last one.
    pub(crate) fn handle_format(
        &mut self,
        now: Time,
        node: &Settings,
        done: DiskDone,
        ops: &mut Vec<DiskOp>,
        effects: &mut Vec<store::Effect>,
    ) -> Result<(), OpenError> {
        let Stage::Formatting(format) = &mut self.stage else {
            unreachable!("only called while formatting")
        };
        let result = format.handle(done, ops);
        self.note_growth(ops);
        if let Some(result) = result {
            result?;
            self.stage = Stage::Store(Box::new(open(now, node, &self.settings, None, effects)));
        }
        Ok(())
    }

    /// Formatting a file makes it longer: the store has to know how long it is now.
    fn note_growth(&mut self, ops: &[DiskOp]) {
        for op in ops {
            if let DiskRequest::Allocate { offset, length, .. } = op.request {
                self.settings.medium_bytes = self.settings.medium_bytes.max(offset + length);
            }
        }
    }

    /// The store, once there is one.
    pub(crate) fn store(&self) -> Option<&Store> {
        match &self.stage {
            Stage::Store(store) => Some(store),
            Stage::Formatting(_) | Stage::Failed(_) => None,
        }
    }

    /// The store, once there is one.
    pub(crate) fn store_mut(&mut self) -> Option<&mut Store> {
        match &mut self.stage {
            Stage::Store(store) => Some(store),
            Stage::Formatting(_) | Stage::Failed(_) => None,
        }
    }

    /// Why it is not used, if it is not.
    pub(crate) fn failure(&self) -> Option<&str> {
        match &self.stage {
            Stage::Failed(reason) => Some(reason),
            Stage::Formatting(_) | Stage::Store(_) => None,
        }
    }

    /// Whether its opening is agreed and all that members are asked is done: no write or flush has
    /// failed since.
    pub(crate) fn serves(&self) -> bool {
        let store = self.store().filter(|_| self.is_agreed);
        store.is_some_and(|store| store.failure().is_none())
    }

    /// Whether its opening has ended, well or not.
    pub(crate) fn is_settled(&self) -> bool {
        self.incarnation != Incarnation(0) || self.failure().is_some()
    }
}

fn identity(node: &Settings, disk: DiskId) -> Identity {
    Identity { cluster: node.cluster, node: node.node, disk }
}

fn open(
    now: Time,
    node: &Settings,
    settings: &DiskSettings,
    known: Option<Incarnation>,
    effects: &mut Vec<store::Effect>,
) -> Store {
    let identity = identity(node, settings.disk);
    let options = Options {
        identity: Expected { incarnation: known, ..identity.into() },
        kind: settings.kind,
        medium_bytes: settings.medium_bytes,
        limit_bytes: settings.limit_bytes,
        map_cache_bytes: settings.map_cache_bytes,
        scrub: store::ScrubRate(settings.scrub_bytes_per_s),
        boot: node.boot,
    };
    Store::open(now, options, effects)
}

/// The node's disks by id.
pub(crate) type Disks = BTreeMap<DiskId, Disk>;
