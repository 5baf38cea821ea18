//! Trees of layers on a whole node: every small one, with branches of rollback and with clones,
//! and its volumes and snapshots deleted in every order.

use super::{
    BLOCK, Base, LARGE, Loud, NAME,
    acts::request_for,
    bench::Bench,
    books::{Books, Change},
    recovery::DROPPING,
};
use crate::{crashpoints::check_offline, onedisk::Setup, oracle::Action};
use proto::Buffer;
use std::collections::BTreeSet;
use volume::{Completion, Operation};

/// One layer more. Volumes and snapshots are counted from 0, in the order in which they were made.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Growth {
    /// A snapshot of this volume.
    Snapshot(usize),
    /// This volume is rolled back to this snapshot of it.
    Rollback(usize, usize),
    /// A new volume from this snapshot of this volume.
    Clone(usize, usize),
}

/// What was done.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Tally {
    /// Trees.
    pub trees: u64,
    /// Orders of deleting all that a tree's layers are named by.
    pub orders: u64,
    /// How often everything that was left was read and counted.
    pub verified: u64,
}

/// Every way to grow a tree of two up to `layers` layers.
pub fn trees(layers: usize) -> Vec<Vec<Growth>> {
    let mut all: Vec<Vec<Growth>> = Vec::new();
    // Of each, how many snapshots each volume has.
    let mut last: Vec<(Vec<Growth>, Vec<usize>)> = vec![(Vec::new(), vec![0])];
    for _ in 1..layers {
        let mut next = Vec::new();
        for (tree, volumes) in &last {
            for (volume, snapshots) in volumes.iter().copied().enumerate() {
                let mut grow = |growth, volumes: Vec<usize>| {
                    let longer: Vec<Growth> = tree.iter().copied().chain([growth]).collect();
                    next.push((longer, volumes));
                };
                let mut more = volumes.clone();
                more[volume] += 1;
                grow(Growth::Snapshot(volume), more);
                for snapshot in 0..snapshots {
                    grow(Growth::Rollback(volume, snapshot), volumes.clone());
                    let more = volumes.iter().copied().chain([0]).collect();
                    grow(Growth::Clone(volume, snapshot), more);
                }
            }
        }
        all.extend(next.iter().map(|(tree, _)| tree.clone()));
        last = next;
    }
    all
}

/// Grows a tree, deletes it in every order, and says how much was tried. After each deletion what
/// is left must be what it was, and have what it needs and nothing more; in the end nothing is
/// left. In every second order the deletions are asked for at once, one behind the other.
pub fn delete_in_every_order(tree: &[Growth]) -> Result<Tally, String> {
    let context = format!("{tree:?}");
    let _loud = Loud(&context);
    let base = grow(tree).map_err(|error| format!("{context}: {error}"))?;
    let mut tally = Tally { trees: 1, ..Tally::default() };
    let mut seen = BTreeSet::new();
    for order in orders(&base.books) {
        let context = format!("{tree:?}, deleted in the order {order:?}");
        let _loud = Loud(&context);
        let wait = tally.orders.is_multiple_of(2);
        tally.orders += 1;
        delete(&base, &order, wait, &mut seen, &mut tally)
            .map_err(|error| format!("{context}: {error}"))?;
    }
    Ok(tally)
}

fn delete(
    base: &Base,
    order: &[Change],
    wait: bool,
    seen: &mut BTreeSet<Vec<Change>>,
    tally: &mut Tally,
) -> Result<(), String> {
    let mut bench = base.start()?;
    for (done, change) in order.iter().enumerate() {
        bench.change(change.clone())?;
        if wait {
            bench.idle(DROPPING);
        }
        // What was left after equal beginnings was looked at.
        if wait && done + 1 < order.len() && seen.insert(order[..=done].to_vec()) {
            tally.verified += 1;
            bench.verify()?;
            bench.driver.node.engine().check();
        } else if !wait && done + 2 == order.len() {
            tally.verified += 1;
            bench.verify()?;
        }
    }
    bench.check_empty()?;
    check_offline(&bench.driver.node.media().disk)
}

/// All orders of deleting everything. A volume that is deleted takes the snapshots with it that it
/// still has.
fn orders(books: &Books) -> Vec<Vec<Change>> {
    let mut whole = Vec::new();
    let mut begun: Vec<(Vec<Change>, Books)> = vec![(Vec::new(), books.clone())];
    while let Some((order, left)) = begun.pop() {
        if left.volumes.is_empty() {
            whole.push(order);
            continue;
        }
        for (name, volume) in &left.volumes {
            let with = |change| order.iter().cloned().chain([change]).collect::<Vec<_>>();
            let mut fewer = left.clone();
            fewer.volumes.remove(name);
            begun.push((with(Change::Delete { name: name.clone() }), fewer));
            for (tag, _) in &volume.snapshots {
                let mut fewer = left.clone();
                fewer.volume_mut(name).snapshots.retain(|(known, _)| known != tag);
                let (name, tag) = (name.clone(), tag.clone());
                begun.push((with(Change::DeleteSnapshot { name, tag }), fewer));
            }
        }
    }
    whole
}

/// A stopped node with such a tree. Every layer has a block of its own, one that all have, and
/// one that it has at two times.
fn grow(tree: &[Growth]) -> Result<Base, String> {
    let setup = Setup::default();
    let mut bench = Bench::founded(&setup);
    bench.create(NAME)?;
    let mut names = vec![NAME.to_owned()];
    bench.fill(NAME, 0)?;
    for (number, growth) in tree.iter().enumerate() {
        let tag = |bench: &Bench, volume: usize, snapshot: usize| {
            bench.books.volume(&names[volume]).snapshots[snapshot].0.clone()
        };
        let (volume, change) = match *growth {
            Growth::Snapshot(volume) => {
                let (name, tag) = (names[volume].clone(), format!("s{number}"));
                (volume, Change::Snapshot { name, tag })
            }
            Growth::Rollback(volume, snapshot) => {
                let tag = tag(&bench, volume, snapshot);
                (volume, Change::Rollback { name: names[volume].clone(), tag })
            }
            Growth::Clone(volume, snapshot) => {
                let tag = tag(&bench, volume, snapshot);
                let (name, new_name) = (names[volume].clone(), format!("clone{number}"));
                names.push(new_name.clone());
                (names.len() - 1, Change::Clone { name, tag, new_name })
            }
        };
        bench.change(change)?;
        bench.fill(&names[volume], 1 + number as u64)?;
    }
    bench.verify()?;
    Ok(Base::stopped(setup, bench))
}

impl Bench {
    /// Makes a change and waits for the answer.
    fn change(&mut self, change: Change) -> Result<(), String> {
        let takings = self.begin_takings(&change);
        self.consult(request_for(&change))?;
        self.book(change, takings)
    }

    /// Writes the blocks that a layer of this number has.
    fn fill(&mut self, name: &str, number: u64) -> Result<(), String> {
        self.current = name.to_owned();
        self.open()?;
        let last = LARGE / BLOCK - 1;
        for block in [number, last, number] {
            let volume = self.books.volume(name).id;
            let booked = self.oracle.invoke(volume, 0, Action::Write, block * BLOCK, BLOCK);
            let mut buffer = Buffer::zeroed(BLOCK as usize);
            self.oracle.fill(booked, buffer.as_mut_slice());
            let operation = Operation::Write { buffer, fua: false };
            match self.driver.complete(self.connection(), (block * BLOCK, BLOCK), operation)? {
                Completion::Done => self.oracle.ok(booked, false),
                other => return Err(format!("a write was answered {other:?}")),
            }
        }
        self.hang_up_all();
        Ok(())
    }
}
