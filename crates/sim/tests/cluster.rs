//! Clusters of several nodes, by fresh seeds, by fixed ones, and in directed cases.

use proto::Duration;
use sim::cluster::{ClusterMix, ClusterWorld, End};
use sim::entropy;

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn fresh_seeds_pass() {
    for _ in 0..20 {
        if let Err(error) = ClusterWorld::new(entropy(), false).run() {
            panic!("{error}");
        }
    }
}
