//! A network of machines on one machine: a namespace for each node, with a cable each to a switch,
//! which is a bridge in a namespace of its own. Nothing of it is seen outside, and nothing outside
//! is reached from it. Needs root.
//!
//! Faults are made where they would be: a cable is pulled out of the switch, so that the others
//! hear nothing and are told nothing; packets are lost on their way in, by who sent them.

use crate::tool::Tool;
use anyhow::{Context, Result};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

/// Where `ip netns` keeps its names.
const NAMES: &str = "/run/netns";
/// What all of ours begin with; then come the process, which network of it, and which machine.
const PREFIX: &str = "sheep-e2e";
const PORT: u16 = 7117;
const NEEDS: &str =
    "this test needs root and network namespaces; run it on a machine that has them";
/// Lost on the way into a machine is what is in one of these sets.
const RULES: &str = "table ip faults {
    set lost { type ipv4_addr; }
    set without_large { type ipv4_addr; }
    set refused { type ipv4_addr; }
    chain input {
        type filter hook input priority 0; policy accept;
        ip saddr @refused meta l4proto tcp reject with tcp reset
        ip saddr @lost drop
        ip saddr @without_large ip length > 600 drop
    }
}";

/// Machines that see one another, numbered from 0. Gone when dropped.
pub struct Network {
    name: String,
    machines: usize,
}

impl Network {
    /// So many machines, all well. What dead processes have left is removed on the way.
    pub fn new(machines: usize) -> Result<Network> {
        static SERIAL: AtomicU32 = AtomicU32::new(0);
        remove_left_over();
        let serial = SERIAL.fetch_add(1, SeqCst);
        let name = format!("{PREFIX}-{}-{serial}", std::process::id());
        // From here on dropping it cleans up.
        let network = Network { name, machines };
        let switch = network.switch();
        Tool::new("ip").words("netns add").arg(&switch).ok().context(NEEDS)?;
        network.ip(&switch, "link add bridge type bridge")?;
        network.ip(&switch, "link set bridge up")?;
        for at in 0..machines {
            let machine = network.machine(at);
            Tool::new("ip").words("netns add").arg(&machine).ok()?;
            let cable = format!("link add {} type veth peer name cable netns", port(at));
            Tool::new("ip").arg("-n").arg(&switch).words(&cable).arg(&machine).ok()?;
            network.ip(&switch, &format!("link set {} master bridge up", port(at)))?;
            network.ip(&machine, "link set lo up")?;
            network.ip(&machine, &format!("address add {}/24 dev cable", host(at)))?;
            network.ip(&machine, "link set cable up")?;
            network.nft(at, RULES)?;
        }
        Ok(network)
    }

    /// The namespace of a machine, for [`crate::Node::start_member_in`].
    pub fn namespace(&self, at: usize) -> PathBuf {
        assert!(at < self.machines, "there is no such machine");
        Path::new(NAMES).join(self.machine(at))
    }

    /// Where a daemon on a machine is reached.
    pub fn address(&self, at: usize) -> String {
        format!("{}:{PORT}", host(at))
    }

    /// Pulls the cable of a machine out of the switch.
    pub fn unplug(&self, at: usize) -> Result<()> {
        self.ip(&self.switch(), &format!("link set {} down", port(at)))
    }

    /// Puts it in again.
    pub fn plug(&self, at: usize) -> Result<()> {
        self.ip(&self.switch(), &format!("link set {} up", port(at)))
    }

    /// From now on all that one machine sends to another is lost, and nobody is told.
    pub fn cut_one_way(&self, from: usize, to: usize) -> Result<()> {
        self.add(to, "lost", from)
    }

    /// As [`Network::cut_one_way`], in both directions.
    pub fn cut(&self, one: usize, other: usize) -> Result<()> {
        self.cut_one_way(one, other)?;
        self.cut_one_way(other, one)
    }

    /// Only small packets come through from one machine to another, as where a tunnel between them
    /// takes less than both believe: connections are made, and then hang.
    pub fn lose_large(&self, from: usize, to: usize) -> Result<()> {
        self.add(to, "without_large", from)
    }

    /// Whatever one machine sends to another is answered by the end of the connection: requests
    /// that came before were executed, and their answers meet a closed door.
    pub fn refuse(&self, from: usize, to: usize) -> Result<()> {
        self.add(to, "refused", from)
    }

    /// The cable of a machine carries no more than so many bits a second, with a queue of half a
    /// second in both directions.
    pub fn slow(&self, at: usize, bits_per_s: u64) -> Result<()> {
        let shaped = |namespace: &str, device: &str| -> Result<()> {
            Tool::new("tc")
                .arg("-n")
                .arg(namespace)
                .words(&format!("qdisc replace dev {device} root tbf"))
                .words(&format!("rate {bits_per_s}bit burst 16kb latency 500ms"))
                .ok()?;
            Ok(())
        };
        shaped(&self.machine(at), "cable")?;
        shaped(&self.switch(), &port(at))
    }

    /// Ends all faults.
    pub fn heal(&self) -> Result<()> {
        for at in 0..self.machines {
            let flushed = ["lost", "without_large", "refused"]
                .map(|set| format!("flush set ip faults {set}\n"))
                .concat();
            self.nft(at, &flushed)?;
            self.plug(at)?;
            for (namespace, device) in [(self.machine(at), "cable"), (self.switch(), &port(at))] {
                let words = format!("qdisc delete dev {device} root");
                // There is none unless it was slow.
                Tool::new("tc").arg("-n").arg(namespace).words(&words).run()?;
            }
        }
        Ok(())
    }

    fn add(&self, to: usize, set: &str, from: usize) -> Result<()> {
        self.nft(to, &format!("add element ip faults {set} {{ {} }}", host(from)))
    }

    fn switch(&self) -> String {
        format!("{}-switch", self.name)
    }

    fn machine(&self, at: usize) -> String {
        format!("{}-{at}", self.name)
    }

    fn ip(&self, namespace: &str, words: &str) -> Result<()> {
        Tool::new("ip").arg("-n").arg(namespace).words(words).ok()?;
        Ok(())
    }

    fn nft(&self, at: usize, script: &str) -> Result<()> {
        within(&self.namespace(at), "nft").words("-f -").input(script).ok()?;
        Ok(())
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        remove(|name| name.starts_with(&format!("{}-", self.name)));
    }
}

/// A program in a network namespace, under its own process id.
pub(crate) fn within(namespace: &Path, program: impl AsRef<std::ffi::OsStr>) -> Tool {
    Tool::new("nsenter").arg(format!("--net={}", namespace.display())).arg("--").arg(program)
}

/// A machine's port of the switch.
fn port(at: usize) -> String {
    format!("port{at}")
}

fn host(at: usize) -> String {
    format!("10.117.0.{}", 1 + at)
}

/// Removes what tests left that were killed.
fn remove_left_over() {
    remove(|name| {
        let process = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').nth(1));
        process.is_some_and(|process| !Path::new("/proc").join(process).exists())
    });
}

fn remove(is_meant: impl Fn(&str) -> bool) {
    let Ok(entries) = std::fs::read_dir(NAMES) else { return };
    for name in entries.flatten().map(|entry| entry.file_name()) {
        if name.to_str().is_some_and(&is_meant) {
            let _ = Tool::new("ip").words("netns delete").arg(&name).run();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether a small and a large message of one machine reach another, and are answered.
    fn reaches(network: &Network, from: usize, to: usize) -> [bool; 2] {
        [16, 1400].map(|bytes| {
            let words = format!("ping -c 1 -W 1 -q -s {bytes} {}", host(to));
            let output = within(&network.namespace(from), "busybox").words(&words).run();
            output.is_ok_and(|output| output.code == Some(0))
        })
    }

    #[test]
    fn machines_see_one_another_as_far_as_the_faults_let_them() -> Result<()> {
        let network = Network::new(3)?;
        let (yes, no) = ([true; 2], [false; 2]);
        let pairs = [(0, 1), (1, 2), (2, 0)];
        let looked_at = &network;
        let all = || {
            std::thread::scope(|scope| {
                pairs
                    .map(|(from, to)| scope.spawn(move || reaches(looked_at, from, to)))
                    .map(|looking| looking.join().expect("it does not panic"))
            })
        };
        // Where nobody answered it takes a moment until somebody is asked again.
        let check = |expected: [[bool; 2]; 3]| {
            crate::wait_until(&format!("{expected:?}"), || Ok(all() == expected))
        };
        check([yes; 3])?;
        network.unplug(2)?;
        check([yes, no, no])?;
        network.heal()?;
        network.cut_one_way(0, 1)?;
        check([no, yes, yes])?;
        network.heal()?;
        network.lose_large(1, 2)?;
        check([yes, [true, false], yes])?;
        network.heal()?;
        network.slow(0, 1_000_000)?;
        check([yes; 3])?;
        network.heal()?;
        check([yes; 3])?;
        let name = network.name.clone();
        drop(network);
        let is_left = std::fs::read_dir(NAMES)?
            .flatten()
            .any(|entry| entry.file_name().to_string_lossy().starts_with(&name));
        assert!(!is_left);
        Ok(())
    }
}
