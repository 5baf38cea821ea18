//! Administrators' requests about nodes, disks and attachments wherever they are: what is drained,
//! taken out, or ended by force.

use super::{Engine, Purpose, Work, administer::refused, overview::all_attachments};
use crate::admin::{AdminError, AdminErrorKind, AdminToken};
use cluster::{Command, DiskState, Refusal};
use proto::{DiskId, Generation, NodeId, counted};
use std::collections::{BTreeMap, BTreeSet};

impl Engine {
    /// Which node is meant by a name or an id.
    pub(super) fn find_node(&self, which: &str) -> Result<NodeId, AdminError> {
        let mut named = self.map.nodes().filter(|node| node.name == which);
        let error = |kind, sentence| Err(AdminError { kind, sentence });
        match (named.next(), named.next()) {
            (Some(node), None) => return Ok(node.id),
            (Some(_), Some(_)) => {
                return error(
                    AdminErrorKind::Conflict,
                    format!(
                        "several nodes are called {which}; give the id instead, as `dog node list` \
                         shows it"
                    ),
                );
            }
            (None, _) => {}
        }
        match self.map.nodes().find(|node| node.id.to_string() == which) {
            Some(node) => Ok(node.id),
            None => error(
                AdminErrorKind::NotFound,
                format!("no node is called {which}; `dog node list` shows the nodes"),
            ),
        }
    }

    /// A node is to go. The agreed state judges whether it holds anything; here it is seen to that
    /// it does not run, and that the others can agree without it.
    pub(super) fn remove_node(&mut self, token: AdminToken, which: &str) -> Result<(), AdminError> {
        let node = self.find_node(which)?;
        let conflict = |sentence| Err(AdminError { kind: AdminErrorKind::Conflict, sentence });
        let name = self.node_words(node);
        if self.is_left_behind(node) {
            // It can never come back as it is, whoever it was that it was not counted among.
            self.work.push_back(Work::Propose(Command::GiveUpNode { node }, Purpose::DiskKnown));
        }
        if self.map.is_lost(node) || self.is_left_behind(node) {
            if let Some((silent, count)) = self.silent_witnesses(node) {
                let count = counted(count, "partition", "partitions");
                return conflict(format!(
                    "node {silent} does not answer, and of {count} it may have what was written on \
                     it and on node {name} alone: start it first, or, if it is lost for ever too, \
                     wait until others have its copies"
                ));
            }
            let purpose = Purpose::AdminDone(token);
            self.work.push_back(Work::Propose(Command::RemoveLostNode { node }, purpose));
            return Ok(());
        }
        // What it holds is to be told first: once it is stopped it cannot be drained.
        let count = self.map.disks_of(node).count();
        if count > 0 {
            return Err(refused(&Refusal::NodeHasDisks { name, count }));
        }
        let attached = self.map.volumes().flat_map(all_attachments);
        let count = attached.filter(|held| held.node == node).count();
        if count > 0 {
            return Err(refused(&Refusal::NodeHasAttachments { name, count }));
        }
        if node == self.settings.node {
            return conflict(format!(
                "node {name} is the one that was asked; stop sheep here, and ask another node"
            ));
        }
        let is_up = |id: NodeId| id == self.settings.node || self.away_since(id).is_none();
        if is_up(node) {
            return conflict(format!("node {name} still runs; stop sheep there first"));
        }
        let agreement = self.agreement_report();
        if agreement.voters.contains(&node) {
            let left = agreement.voters.iter().filter(|id| **id != node && is_up(**id)).count();
            if left < agreement.voters.len() / 2 + 1 {
                return conflict(format!(
                    "without node {name} too few of the nodes that vote can be reached; bring \
                     others back first, as `dog cluster status` shows them"
                ));
            }
        }
        let purpose = Purpose::AdminDone(token);
        self.work.push_back(Work::Propose(Command::RemoveNode { node }, purpose));
        Ok(())
    }

    /// Another node than the lost one that does not answer, if it has copies of what lies there:
    /// who is left must be there to tell what they have before the lost do not count any more. With
    /// how many partitions.
    fn silent_witnesses(&self, lost: NodeId) -> Option<(String, u64)> {
        let away = self.disks_away(self.present);
        let mut found: BTreeMap<NodeId, u64> = BTreeMap::new();
        for disk in self.map.disks_of(lost) {
            for (copies, partition) in self.map.partitions_on(disk.id) {
                let held = self.map.configuration(copies, partition);
                let nodes = held.current.iter().filter(|member| away.contains_key(&member.disk));
                let nodes = nodes.filter_map(|member| Some(self.map.disk(member.disk)?.node));
                let is_silent = |node: &NodeId| *node != lost && !self.map.is_lost(*node);
                let nodes: BTreeSet<NodeId> = nodes.filter(is_silent).collect();
                if self.map.is_in_use(copies) {
                    nodes.into_iter().for_each(|node| *found.entry(node).or_default() += 1);
                }
            }
        }
        let (node, count) = found.into_iter().max_by_key(|(_, count)| *count)?;
        Some((self.node_words(node), count))
    }

    /// A disk is to go. The agreed state judges by what it knows; here disks that do not answer
    /// count as not there, too.
    pub(super) fn remove_disk(
        &mut self,
        token: AdminToken,
        disk: DiskId,
    ) -> Result<(), AdminError> {
        let away = self.disks_away(self.present);
        let is_in = self.map.disk(disk).is_some_and(|known| known.state != DiskState::Gone);
        if is_in {
            let vetted = self.map.vet_removal(disk, |id| away.contains_key(&id));
            vetted.map_err(|refusal| refused(&refusal))?;
        }
        let purpose = Purpose::AdminDone(token);
        self.work.push_back(Work::Propose(Command::RemoveDisk { disk }, purpose));
        Ok(())
    }

    /// Somebody's attachments are to end, wherever they are. Sessions that live learn it by the
    /// map, and those that do not hear of it are fenced by the next attachment.
    pub(super) fn detach_by_force(
        &mut self,
        token: AdminToken,
        name: &str,
        tag: Option<&str>,
    ) -> Result<(), AdminError> {
        let volume = self.find(name)?;
        let known = self.map.volume(volume).expect("found just now");
        let (attachments, what) = match tag {
            None => (&known.attachments, format!("volume {name}")),
            Some(tag) => match known.snapshot(tag) {
                Some(snapshot) => (&snapshot.readers, format!("snapshot {name}@{tag}")),
                None => {
                    let (name, tag) = (name.to_string(), tag.to_string());
                    return Err(refused(&Refusal::UnknownSnapshot { name, tag }));
                }
            },
        };
        let generations: Vec<Generation> =
            attachments.iter().map(|attachment| attachment.generation).collect();
        let Some((&last, before)) = generations.split_last() else {
            let sentence = format!("{what} is not attached; there is nothing to end");
            return Err(AdminError { kind: AdminErrorKind::Conflict, sentence });
        };
        for &generation in before {
            let command = Command::Detach { volume, generation };
            self.work.push_back(Work::Propose(command, Purpose::DetachForgotten));
        }
        let command = Command::Detach { volume, generation: last };
        self.work.push_back(Work::Propose(command, Purpose::AdminDone(token)));
        Ok(())
    }
}
