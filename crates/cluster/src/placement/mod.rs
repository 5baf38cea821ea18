//! Placement: which disks each partition should come to lie on, as a pure function of where it lies
//! now and of the disks there are. `docs/decisions/0007-placement.md` explains it on a page.
//!
//! It decides nothing: what it gives is a wish, that is come to by agreed steps (attempts,
//! see `BeginAttempt`), each of which is judged by itself. So it may get better from version to
//! version, and nodes of two versions still agree on the map.

mod assign;
mod layout;
mod share;

#[cfg(test)]
mod least;
#[cfg(test)]
mod tests;

use layout::Layout;
use proto::limits::{COPIES_MAX, DISKS_MAX, MEMBERS_MAX, PARTITION_BITS_MAX};
use proto::{DiskId, NodeId};

/// What placement has to know of a disk that may hold something.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Site {
    /// Which disk.
    pub disk: DiskId,
    /// The node it is attached to. Copies of one partition avoid one another's nodes.
    pub node: NodeId,
    /// The zone that the node is in. Copies avoid one another's zones before that.
    pub zone: String,
    /// How much it can hold in proportion to the others; more than 0.
    pub weight: u64,
}

/// The members that each partition should have: `copies` of them, or as many as there are sites.
///
/// `present` says where the partitions lie now, in order; members that are no site are to be left.
/// The members of a partition that stay keep their order and come first. With no site at all
/// everything stays as it is.
///
/// * Of each site's ideal share (decision 0007) the result is less than one partition away.
/// * In each partition the copies are spread over as many zones as possible and as evenly as
///   possible, and within that over nodes; no disk has two.
/// * Nothing moves that need not, apart from exchanges where the first two leave no other way.
/// * Equal input gives equal output, and the output as `present` gives itself.
///
/// # Panics
/// If there are more than `COPIES_MAX` copies, or none, more than `DISKS_MAX` sites, two sites for
/// one disk, one with weight 0, or more partitions or members than their limits: bugs of the
/// caller.
pub fn place(sites: &[Site], copies: u8, present: &[Vec<DiskId>]) -> Vec<Vec<DiskId>> {
    assert!((1..=COPIES_MAX).contains(&copies));
    assert!(sites.len() <= DISKS_MAX && present.len() <= 1 << PARTITION_BITS_MAX);
    assert!(present.iter().all(|members| members.len() <= 2 * MEMBERS_MAX));
    if sites.is_empty() {
        return present.to_vec();
    }
    let mut layout = Layout::new(sites, copies);
    let place_of = |disk: &DiskId| layout.index_of(*disk);
    let present: Vec<Vec<u16>> =
        present.iter().map(|members| members.iter().filter_map(place_of).collect()).collect();
    let mut held = vec![0; layout.disks.len()];
    for &disk in present.iter().flatten() {
        held[disk as usize] += 1;
    }
    let partitions = present.len() as u32;
    let ideal = share::ideal(&layout, partitions);
    let targets = share::whole(&layout, &ideal, partitions, &held);
    layout.tighten(&targets, partitions);
    let next = assign::assign(&layout, &targets, &present);
    let id = |&disk: &u16| layout.disks[disk as usize].id;
    next.iter().map(|members| members.iter().map(id).collect()).collect()
}
