//! What tests look at again and again.

use crate::node::Node;
use anyhow::{Result, ensure};
use std::time::{Duration, Instant};

/// What a node does by itself with the small volumes of a test has happened within this.
const PATIENCE: Duration = Duration::from_secs(90);
/// How often it is looked whether it has.
const INTERVAL: Duration = Duration::from_millis(10);

/// All that a volume or snapshot contains.
pub fn content(node: &Node, name: &str) -> Result<Vec<u8>> {
    let output = node.dog("volume export").arg(name).arg("-").run()?;
    ensure!(output.code == Some(0), "{output}");
    Ok(output.stdout)
}

/// Waits until a node knows that nobody has a volume: a client that has gone is noticed a moment
/// later.
pub fn wait_free(node: &Node, volume: &str) -> Result<()> {
    wait_until("nobody has the volume", || {
        Ok(node.dog_json(&format!("volume info {volume}"))?["attachment"].is_null())
    })
}

/// Waits until something is so.
pub fn wait_until(what: &str, mut is_so: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !is_so()? {
        ensure!(Instant::now() < deadline, "not after {} s: {what}", PATIENCE.as_secs());
        std::thread::sleep(INTERVAL);
    }
    Ok(())
}

/// Waits until nothing of any volume takes space.
pub fn wait_empty(node: &Node) -> Result<()> {
    wait_until("all space is free", || Ok(node.dog_json("status")?["used_bytes"] == 0))?;
    let status = node.dog_json("status")?;
    ensure!(status["snapshots"] == 0 && status["hidden_layers"] == 0, "{status}");
    Ok(())
}

/// A number below `bound`; the same numbers in every run that begins with the same one, not 0.
pub fn below(random: &mut u64, bound: usize) -> usize {
    *random ^= *random << 13;
    *random ^= *random >> 7;
    *random ^= *random << 17;
    ((*random >> 11) % bound as u64) as usize
}
