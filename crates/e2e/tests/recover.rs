//! Of three daemons two are killed and never come back, the one that votes among them: the third
//! goes on with what it has (`dog cluster recover`), and a dead one that is started again is told
//! so and ends.
#![allow(clippy::disallowed_methods, reason = "tests of real processes read a clock and wait")]

use anyhow::{Context, Result, ensure};
use e2e::{Cluster, Scratch, Tool, patchy_file, wait_until};
use serde_json::Value;
use std::time::Duration;

const VOLUME_BYTES: u64 = 64 << 20;

#[test]
fn what_was_flushed_is_there_after_two_of_three_machines_are_lost_for_ever() -> Result<()> {
    let scratch = Scratch::new()?;
    let mut cluster = Cluster::found(&scratch)?;
    cluster.nodes[0].dog_ok("volume create v 64M")?;
    cluster.grow()?;
    cluster.grow()?;
    let file = scratch.join("base.raw");
    patchy_file(&file, VOLUME_BYTES)?;
    let uri = cluster.nodes[0].uri("v");
    Tool::new("qemu-img").words("convert -n -f raw -O raw").arg(&file).arg(&uri).ok()?;
    cluster.wait_whole()?;
    cluster.wait_free(2, "v")?;
    let refused = cluster.nodes[2].dog_refuses("cluster recover --yes")?;
    ensure!(refused.to_string().contains("there is nothing to recover from"), "{refused}");

    // Only the first votes so soon.
    for at in [0, 1] {
        cluster.nodes[at].kill()?;
    }
    wait_until("it is noticed", || Ok(cluster.status(2)?["agreement"]["waiting"].is_string()))?;
    let said = cluster.nodes[2].dog_refuses("cluster recover")?;
    ensure!(said.to_string().contains("must NEVER be started again"), "{said}");
    ensure!(said.to_string().contains("dog cluster recover --yes"), "{said}");
    let status = cluster.status(2)?;
    let own = status["asked"].as_str().context("its id")?.to_owned();
    let nodes = status["nodes"].as_array().context("nodes")?;
    let id = |node: &Value| node["node"].as_str().map(str::to_owned);
    let others: Vec<String> = nodes.iter().filter_map(id).filter(|node| *node != own).collect();
    // The first is lost because it votes, the other one is said to be.
    let lost: String = others.iter().map(|node| format!(" --lost {node}")).collect();
    cluster.nodes[2].dog_ok(&format!("cluster recover --yes{lost}"))?;
    let status = cluster.status(2)?;
    ensure!(status["agreement"]["recovered"]["count"] == 1, "{status}");

    // It knows nothing of it, and is told. The first would agree with itself.
    cluster.nodes[2].expect_log("was recovered from the loss of a majority");
    cluster.nodes[1].expect_log("recovered without this node");
    cluster.nodes[1].expect_log("was given up");
    cluster.nodes[1].launch()?;
    let code = cluster.nodes[1].wait_end(Duration::from_secs(30))?;
    ensure!(code.is_some_and(|code| code != 0), "it ended with {code:?}");
    let log = cluster.nodes[1].log_text()?;
    ensure!(log.contains("wipe its data directory"), "{log}");

    for node in &others {
        let refused = cluster.nodes[2].dog_refuses(&format!("node remove {node}"))?;
        ensure!(refused.to_string().contains("say --yes"), "{refused}");
        cluster.nodes[2].dog_ok(&format!("node remove {node} --yes"))?;
    }
    ensure!(cluster.content(2, "v")? == std::fs::read(&file)?, "it is not what was flushed");
    let uri = cluster.nodes[2].uri("v");
    patchy_file(&file, VOLUME_BYTES)?;
    Tool::new("qemu-img").words("convert -n -f raw -O raw").arg(&file).arg(&uri).ok()?;
    ensure!(cluster.content(2, "v")? == std::fs::read(&file)?, "it is not what was written");
    ensure!(cluster.status(2)?["nodes"].as_array().map(Vec::len) == Some(1));
    Ok(())
}
