//! The machine room: nodes, their zones, and disks, that come and go while volumes are in use.

use crate::command::Answer;
use crate::layer;
use crate::map::Map;
use crate::partition::{Configuration, Member};
use crate::placement::{Site, place};
use crate::refusal::Refusal;
use crate::state::State;
use crate::volume::printable;
use proto::limits::{
    DISKS_MAX, NODE_ADDRESS_BYTES_MAX, NODE_ADDRESSES_MAX, NODE_NAME_BYTES_MAX, NODES_MAX,
    ZONE_NAME_BYTES_MAX,
};
use proto::{DiskId, Incarnation, NodeId, PartitionId};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// A machine that runs `sheep`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Node {
    /// The identity in its data directory.
    pub id: NodeId,
    /// What people call it, usually the host's name.
    pub name: String,
    /// What may fail together with others: copies are kept in different zones where there are
    /// several. Nodes of which nobody said so are all in the zone "".
    pub zone: String,
    /// Whether its disks are to be used.
    pub state: NodeState,
}

/// Whether a node's disks are to be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum NodeState {
    /// Yes.
    In,
    /// No: what they have is to go to other nodes, as if each of them were draining.
    Draining,
    /// The node was given up when a majority of the voters was lost (decision 0013): it is not
    /// let in any more, and is in the map until somebody takes it out.
    Lost,
}

/// A disk that holds, or may hold, replicas.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Disk {
    /// The identity in its superblock.
    pub id: DiskId,
    /// Where it is attached.
    pub node: NodeId,
    /// Its last opening that the cluster learned of; 0 if it was never opened.
    pub incarnation: Incarnation,
    /// How much it can hold, in bytes: its weight among the disks. 0 if nobody told yet; then it
    /// gets nothing new.
    pub bytes: u64,
    /// Whether it is to be used.
    pub state: DiskState,
}

/// Whether a disk is to be used.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum DiskState {
    /// Yes.
    In,
    /// What it has is to go to other disks. Until then it serves as before.
    Draining,
    /// It was taken out for good. It is in the map only until no partition lists it any more.
    Gone,
}

impl Disk {
    /// Whether it is to be used, as far as it is concerned itself.
    pub fn is_in(&self) -> bool {
        self.state == DiskState::In
    }
}

/// Whether a node may have this address: 1 to 128 printable bytes. What it means is up to whoever
/// dials it.
pub fn check_node_address(address: &str) -> Result<(), Refusal> {
    let cut = printable(address, NODE_ADDRESS_BYTES_MAX);
    match address.is_empty() || cut != address {
        true => Err(Refusal::BadNodeAddress { address: cut }),
        false => Ok(()),
    }
}

const _: () = assert!(NODE_ADDRESS_BYTES_MAX == 128, "the sentence above says so");

impl Map {
    /// Under which addresses the others reach a node, the best first; none if nobody said.
    pub fn addresses_of(&self, node: NodeId) -> &[String] {
        self.addresses.get(&node).map_or(&[], Vec::as_slice)
    }

    /// Whether this is the present opening of a disk that is not gone: a member of which it is not
    /// so acknowledges nothing until it is activated anew.
    pub fn is_present(&self, member: Member) -> bool {
        self.disk(member.disk).is_some_and(|disk| {
            disk.incarnation == member.incarnation && disk.state != DiskState::Gone
        })
    }

    /// The disks attached to a node, in order of id.
    pub fn disks_of(&self, node: NodeId) -> impl Iterator<Item = &Disk> {
        self.disks().filter(move |disk| disk.node == node)
    }

    /// The partitions that list a disk as a member, current or recovering, each with the number of
    /// copies whose table it is in.
    pub fn partitions_on(&self, disk: DiskId) -> impl Iterator<Item = (u8, PartitionId)> {
        self.partitions.tables().flat_map(move |(copies, table)| {
            let lists = move |configuration: &Configuration| {
                configuration.members().any(|member| member.disk == disk)
            };
            let listed = table.iter().enumerate().filter(move |(_, held)| lists(held));
            listed.map(move |(index, _)| (copies, PartitionId(index as u32)))
        })
    }

    /// The disks that may get partitions: known in their size, opened, and neither they nor their
    /// nodes draining. Where those would be fewer than `copies`, draining ones stay among them: a
    /// drain waits rather than take copies away.
    pub fn sites(&self, copies: u8) -> Vec<Site> {
        let usable = |disk: &&Disk| {
            let is_sized = disk.bytes > 0 && disk.incarnation > Incarnation(0);
            is_sized && disk.state != DiskState::Gone && !self.is_lost(disk.node)
        };
        let is_staying =
            |disk: &&Disk| disk.is_in() && self.nodes[&disk.node].state == NodeState::In;
        let site = |disk: &Disk| Site {
            disk: disk.id,
            node: disk.node,
            zone: self.nodes[&disk.node].zone.clone(),
            weight: disk.bytes,
        };
        let staying: Vec<Site> = self.disks().filter(usable).filter(is_staying).map(site).collect();
        if staying.len() >= usize::from(copies) {
            return staying;
        }
        self.disks().filter(usable).map(site).collect()
    }

    /// Which disks each partition of a table should come to lie on, given the disks there are and
    /// where the partitions lie or are on their way to. It is a wish: what holds is the
    /// configurations.
    ///
    /// # Panics
    /// If there is no such table: a bug of the caller, see [`Map::tables`].
    pub fn wanted_members(&self, copies: u8) -> Vec<Vec<DiskId>> {
        self.wanted_members_without(copies, |_| false)
    }

    /// The same as if some disks were not there.
    ///
    /// # Panics
    /// If there is no such table: a bug of the caller, see [`Map::tables`].
    pub fn wanted_members_without(
        &self,
        copies: u8,
        is_lost: impl Fn(DiskId) -> bool,
    ) -> Vec<Vec<DiskId>> {
        let table = self.partitions.table(copies).expect("a table of the map");
        let mut sites = self.sites(copies);
        sites.retain(|site| !is_lost(site.disk));
        let present: Vec<Vec<DiskId>> = table
            .iter()
            .map(|configuration| configuration.members().map(|member| member.disk).collect())
            .collect();
        place(&sites, copies, &present)
    }
}

impl State {
    pub(crate) fn add_node(&mut self, node: NodeId, name: &str) -> Result<Answer, Refusal> {
        if node == NodeId(0) {
            return Err(Refusal::ZeroId { what: "node" });
        }
        let name = printable(name, NODE_NAME_BYTES_MAX);
        let known = match self.map.node(node) {
            Some(known) if known.name == name => return Ok(Answer::Done),
            None if self.map.nodes.len() >= NODES_MAX => return Err(Refusal::TooManyNodes),
            known => known.cloned(),
        };
        let new =
            || Node { id: node, name: String::new(), zone: String::new(), state: NodeState::In };
        let changed = Node { name, ..known.unwrap_or_else(new) };
        Arc::make_mut(&mut self.change().nodes).insert(node, changed);
        Ok(Answer::Done)
    }

    fn node(&self, node: NodeId) -> Result<&Node, Refusal> {
        self.map.node(node).ok_or(Refusal::UnknownNode { node })
    }

    /// A disk that is not gone.
    pub(crate) fn disk(&self, disk: DiskId) -> Result<&Disk, Refusal> {
        match self.map.disk(disk) {
            Some(known) if known.state == DiskState::Gone => Err(Refusal::DiskGone { disk }),
            Some(known) => Ok(known),
            None => Err(Refusal::UnknownDisk { disk }),
        }
    }

    fn change_node(&mut self, node: Node) -> Answer {
        if self.map.node(node.id) != Some(&node) {
            Arc::make_mut(&mut self.change().nodes).insert(node.id, node);
        }
        Answer::Done
    }

    fn change_disk(&mut self, disk: Disk) -> Answer {
        if self.map.disk(disk.id) != Some(&disk) {
            Arc::make_mut(&mut self.change().disks).insert(disk.id, disk);
        }
        Answer::Done
    }

    pub(crate) fn set_zone(&mut self, node: NodeId, zone: &str) -> Result<Answer, Refusal> {
        let zone = printable(zone, ZONE_NAME_BYTES_MAX);
        let node = Node { zone, ..self.node(node)?.clone() };
        Ok(self.change_node(node))
    }

    pub(crate) fn set_addresses(
        &mut self,
        node: NodeId,
        addresses: &[String],
    ) -> Result<Answer, Refusal> {
        self.node(node)?;
        if addresses.len() > NODE_ADDRESSES_MAX {
            return Err(Refusal::TooManyInCommand { max: NODE_ADDRESSES_MAX });
        }
        addresses.iter().try_for_each(|address| check_node_address(address))?;
        if self.map.addresses_of(node) != addresses {
            let known = Arc::make_mut(&mut self.change().addresses);
            if addresses.is_empty() {
                known.remove(&node);
            } else {
                known.insert(node, addresses.to_vec());
            }
        }
        Ok(Answer::Done)
    }

    pub(crate) fn drain_node(&mut self, node: NodeId, wanted: bool) -> Result<Answer, Refusal> {
        let state = if wanted { NodeState::Draining } else { NodeState::In };
        if self.map.is_lost(node) {
            return Err(Refusal::NodeIsLost { name: self.node_name(node) });
        }
        let node = Node { state, ..self.node(node)?.clone() };
        if wanted && self.map.node(node.id) != Some(&node) {
            self.map.vet_drain(|disk| disk.node == node.id)?;
        }
        Ok(self.change_node(node))
    }

    pub(crate) fn remove_node(&mut self, node: NodeId) -> Result<Answer, Refusal> {
        self.node(node)?;
        let name = self.node_name(node);
        let disks = self.map.disks_of(node).count();
        if disks > 0 {
            return Err(Refusal::NodeHasDisks { name, count: disks });
        }
        let held = self.map.volumes().flat_map(|volume| volume.all_attachments());
        let attachments = held.filter(|held| held.node == node).count();
        if attachments > 0 {
            return Err(Refusal::NodeHasAttachments { name, count: attachments });
        }
        let map = self.change();
        map.end_attempts_of(node);
        Arc::make_mut(&mut map.nodes).remove(&node);
        if map.addresses.contains_key(&node) {
            Arc::make_mut(&mut map.addresses).remove(&node);
        }
        Ok(Answer::Done)
    }

    pub(crate) fn add_disk(
        &mut self,
        disk: DiskId,
        node: NodeId,
        bytes: u64,
    ) -> Result<Answer, Refusal> {
        if disk == DiskId(0) {
            return Err(Refusal::ZeroId { what: "disk" });
        }
        if bytes == 0 {
            return Err(Refusal::EmptyDisk { disk });
        }
        self.node(node)?;
        if let Some(known) = self.map.disk(disk) {
            let known = if known.node == node { self.disk(disk)? } else { known };
            self.vet_owner(known, node)?;
            let disk = Disk { bytes, ..known.clone() };
            return Ok(self.change_disk(disk));
        }
        if self.map.disks.len() >= DISKS_MAX {
            return Err(Refusal::TooManyDisks);
        }
        let (incarnation, state) = (Incarnation(0), DiskState::In);
        Ok(self.change_disk(Disk { id: disk, node, incarnation, bytes, state }))
    }

    /// Whether a disk may turn up at a node.
    fn vet_owner(&self, disk: &Disk, node: NodeId) -> Result<(), Refusal> {
        if disk.node == node {
            return Ok(());
        }
        let (owner, node) = (self.node_name(disk.node), self.node_name(node));
        Err(Refusal::DiskOfAnotherNode { disk: disk.id, owner, node })
    }

    pub(crate) fn open_disk(
        &mut self,
        disk: DiskId,
        node: NodeId,
        incarnation: Incarnation,
    ) -> Result<Answer, Refusal> {
        if disk == DiskId(0) {
            return Err(Refusal::ZeroId { what: "disk" });
        }
        self.node(node)?;
        let known = self.map.disk(disk).cloned();
        match (&known, self.map.disks().next()) {
            (Some(known), _) => {
                self.vet_owner(known, node)?;
                if known.state == DiskState::Gone {
                    return Err(Refusal::DiskGone { disk });
                }
                if known.incarnation >= incarnation {
                    let known = known.incarnation;
                    return Err(Refusal::OldIncarnation { disk, given: incarnation, known });
                }
            }
            (None, Some(other)) => return Err(Refusal::SecondDisk { disk, known: other.id }),
            (None, None) => {}
        }
        let state = DiskState::In;
        let first = Disk { id: disk, node, incarnation, bytes: 0, state };
        let opened = Disk { incarnation, ..known.unwrap_or(first) };
        let map = self.change();
        Arc::make_mut(&mut map.disks).insert(disk, opened);
        // With several disks the partitions of one keep its former opening, which is not current
        // any more, until an attempt has found out what the others have that it has not. Attempts
        // that want the disk go on: whoever carries one out sees which opening answers, and none
        // but the present one can be activated.
        let is_empty = map.configurations().all(|held| held.current.is_empty());
        if map.disks.len() == 1 || is_empty {
            map.end_attempts_with(disk);
            Arc::make_mut(&mut map.partitions).activate_sole(Member { disk, incarnation });
            map.raise_had();
        }
        Ok(Answer::Done)
    }

    pub(crate) fn set_weight(&mut self, disk: DiskId, bytes: u64) -> Result<Answer, Refusal> {
        let known = self.disk(disk)?;
        if bytes == 0 {
            return Err(Refusal::EmptyDisk { disk });
        }
        let disk = Disk { bytes, ..known.clone() };
        Ok(self.change_disk(disk))
    }

    pub(crate) fn drain_disk(&mut self, disk: DiskId, wanted: bool) -> Result<Answer, Refusal> {
        let state = if wanted { DiskState::Draining } else { DiskState::In };
        let disk = Disk { state, ..self.disk(disk)?.clone() };
        if wanted && self.map.disk(disk.id) != Some(&disk) {
            self.map.vet_drain(|known| known.id == disk.id)?;
        }
        Ok(self.change_disk(disk))
    }

    pub(crate) fn remove_disk(&mut self, disk: DiskId) -> Result<Answer, Refusal> {
        match self.map.disk(disk) {
            None => return Err(Refusal::UnknownDisk { disk }),
            Some(known) if known.state == DiskState::Gone => return Ok(Answer::Done),
            Some(_) => {}
        }
        self.map.vet_removal(disk, |_| false)?;
        let map = self.change();
        let disks = Arc::make_mut(&mut map.disks);
        disks.get_mut(&disk).expect("looked up before").state = DiskState::Gone;
        map.end_attempts_with(disk);
        map.take_from_unused(disk);
        map.forget_gone();
        Ok(Answer::Done)
    }
}

impl Map {
    /// Takes disks out of the map that are gone and that no partition lists any more.
    pub(crate) fn forget_gone(&mut self) {
        let gone = self.disks().filter(|disk| disk.state == DiskState::Gone).map(|disk| disk.id);
        let free: Vec<DiskId> =
            gone.filter(|&disk| self.partitions_on(disk).next().is_none()).collect();
        for disk in free {
            Arc::make_mut(&mut self.disks).remove(&disk);
        }
    }
}

/// The first invariant that does not hold for nodes and disks.
pub(crate) fn contradiction(map: &Map) -> Result<(), &'static str> {
    let hold = layer::hold;
    hold(map.nodes.len() <= NODES_MAX, "too many nodes")?;
    hold(map.disks.len() <= DISKS_MAX, "too many disks")?;
    for node in map.nodes() {
        hold(node.id != NodeId(0), "a node without an id")?;
        hold(printable(&node.name, NODE_NAME_BYTES_MAX) == node.name, "a node's name")?;
        hold(printable(&node.zone, ZONE_NAME_BYTES_MAX) == node.zone, "a node's zone")?;
    }
    for (node, addresses) in &*map.addresses {
        hold(map.node(*node).is_some(), "addresses of an unknown node")?;
        let count = addresses.len();
        hold((1..=NODE_ADDRESSES_MAX).contains(&count), "the number of a node's addresses")?;
        let fits = addresses.iter().all(|address| check_node_address(address).is_ok());
        hold(fits, "a node's address")?;
    }
    for disk in map.disks() {
        hold(disk.id != DiskId(0), "a disk without an id")?;
        hold(map.node(disk.node).is_some(), "a disk of an unknown node")?;
        if disk.state == DiskState::Gone {
            let is_listed = map.partitions_on(disk.id).next().is_some();
            hold(is_listed, "a disk that is gone and that nothing lists")?;
        }
    }
    Ok(())
}
