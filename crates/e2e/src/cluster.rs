//! Several daemons that are one cluster, each reached by the others at an address of its own.

use crate::look::{content, wait_free, wait_until};
use crate::netns::Network;
use crate::node::Node;
use crate::scratch::Scratch;
use anyhow::{Context, Result};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

/// A cluster of a test. Its daemons end when it is dropped, and then its network.
pub struct Cluster {
    /// The nodes, each with its place in the order in which they came.
    pub nodes: Vec<Node>,
    /// The machines that they run on; all on this one, if nothing.
    network: Option<Network>,
    directory: PathBuf,
    variables: Vec<(String, String)>,
    /// Which of the clusters of this process it is: tests run side by side.
    number: usize,
}

/// Nodes of a cluster that need places of their own.
const NODES_MAX: usize = 16;
static CLUSTERS: AtomicUsize = AtomicUsize::new(0);

impl Cluster {
    /// The first node of a cluster whose nodes all run on this machine, each with a port.
    pub fn found(scratch: &Scratch) -> Result<Cluster> {
        Cluster::begin(scratch, None, &[])
    }

    /// The first node of a cluster with a machine of the network for each of its nodes, and the
    /// same variables in the environment of all.
    pub fn found_in(
        network: Network,
        scratch: &Scratch,
        variables: &[(&str, &str)],
    ) -> Result<Cluster> {
        Cluster::begin(scratch, Some(network), variables)
    }

    fn begin(
        scratch: &Scratch,
        network: Option<Network>,
        variables: &[(&str, &str)],
    ) -> Result<Cluster> {
        let owned = |&(name, value): &(&str, &str)| (name.to_owned(), value.to_owned());
        let variables = variables.iter().map(owned).collect();
        let directory = scratch.path().to_owned();
        let number = CLUSTERS.fetch_add(1, Ordering::Relaxed);
        let mut cluster = Cluster { nodes: Vec::new(), network, directory, variables, number };
        let data = cluster.usual_data();
        cluster.add(&data, None)?;
        Ok(cluster)
    }

    /// One more machine, as people add it.
    pub fn grow(&mut self) -> Result<()> {
        self.grow_on(&self.usual_data())
    }

    /// As [`Cluster::grow`], with another data directory than usual.
    pub fn grow_on(&mut self, data: &Path) -> Result<()> {
        let token = self.nodes[0].dog_ok("cluster token --uses 1")?;
        self.add(data, Some(token.trim()))
    }

    /// One more machine, that only votes. All must run on this machine.
    pub fn grow_witness(&mut self) -> Result<()> {
        let token = self.nodes[0].dog_ok("cluster token --uses 1")?;
        let options = ["--join", token.trim(), "--witness"];
        let (data, address) = (self.usual_data(), address(self.number, self.nodes.len()));
        let mut node = Node::start_member_with(&data, &address, &options)?;
        node.expect_log("is not connected any more");
        self.nodes.push(node);
        Ok(())
    }

    fn usual_data(&self) -> PathBuf {
        self.directory.join(format!("n{}", self.nodes.len()))
    }

    fn add(&mut self, data: &Path, token: Option<&str>) -> Result<()> {
        let at = self.nodes.len();
        let mut node = match &self.network {
            None => Node::start_member(data, &address(self.number, at), token)?,
            Some(network) => {
                let pairs = self.variables.iter().map(|(name, value)| (&name[..], &value[..]));
                let variables: Vec<(&str, &str)> = pairs.collect();
                let address = network.address(at);
                Node::start_member_in(&network.namespace(at), data, &address, token, &variables)?
            }
        };
        // Others die here.
        node.expect_log("is not connected any more");
        self.nodes.push(node);
        Ok(())
    }

    /// The machines, where they have some.
    pub fn network(&self) -> &Network {
        self.network.as_ref().expect("this cluster has a network of its own")
    }

    /// What `dog cluster status` tells on a node, well or not.
    pub fn status(&self, at: usize) -> Result<Value> {
        self.ask(at, "cluster status")
    }

    /// What a command tells on a node that ends with another code where something is not well.
    pub fn ask(&self, at: usize, words: &str) -> Result<Value> {
        let output = self.nodes[at].dog(&format!("--json {words}")).run()?;
        serde_json::from_slice(&output.stdout).with_context(|| output.to_string())
    }

    /// Whether as a node tells every partition, of whatever is kept in three copies, has so many
    /// and nothing is being done about them.
    pub fn has_copies(&self, at: usize, count: u64) -> Result<bool> {
        let status = self.status(at)?;
        let all = status["copies"].as_array().context("no copies")?;
        let kept =
            all.iter().find(|kept| kept["copies"] == 3).context("nothing in three copies")?;
        let is_done = status["attempts"].as_array().is_some_and(Vec::is_empty);
        Ok(is_done && kept["possible"] == count && kept["fewer"] == 0 && kept["waiting"] == 0)
    }

    /// Waits until all see all others and everything has as many whole copies as it should have,
    /// which all of them say.
    pub fn wait_whole(&self) -> Result<()> {
        let peers = self.nodes.len() - 1;
        let count = self.nodes.len().min(3) as u64;
        wait_until("every copy is whole, for every node", || {
            // The first one that is not so is enough.
            for at in 0..self.nodes.len() {
                let status = self.ask(at, "status")?;
                let is_up = |peer: &&Value| peer["up"] == true;
                let up = status["peers"].as_array().map(|all| all.iter().filter(is_up).count());
                if up != Some(peers) || !self.has_copies(at, count)? {
                    return Ok(false);
                }
            }
            Ok(true)
        })
    }

    /// Waits until so many voices count, without which not any of them may die.
    pub fn wait_voters(&self, count: usize) -> Result<()> {
        wait_until("enough nodes vote", || {
            let agreement = &self.ask(0, "status")?["agreement"];
            let voters = agreement["voters"].as_array().map(Vec::len);
            Ok(voters == Some(count) && agreement["changing"] == false)
        })
    }

    /// All that a volume contains, as a node tells once nobody has it: an attachment ends a moment
    /// after its client, and other nodes refuse it until then.
    pub fn content(&self, at: usize, volume: &str) -> Result<Vec<u8>> {
        self.wait_free(at, volume)?;
        content(&self.nodes[at], volume)
    }

    /// Waits until a node knows that nobody has the volume.
    pub fn wait_free(&self, at: usize, volume: &str) -> Result<()> {
        wait_free(&self.nodes[at], volume)
    }
}

/// Where the other nodes reach one of a cluster. An address of this process alone, and a port that
/// no system gives away: it is free again after each death of its daemon.
fn address(number: usize, at: usize) -> String {
    let [_, high, middle, low] = std::process::id().to_be_bytes();
    format!("127.{}.{middle}.{low}:{}", 1 + (high & 0x7f), 7117 + NODES_MAX * number + at)
}
