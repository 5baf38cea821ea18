//! Who a node is, and who its peers are: the cluster's authority, certificates, join tokens, and
//! TLS configurations made of them (decision 0010).
//!
//! Everything between nodes is TLS 1.3 with certificates on both sides. A certificate names the
//! cluster and the node; that the node is still a member is for the agreed map to say.

mod authority;
mod file;
mod text;
mod tls;
mod token;

pub use authority::{Authority, NodeKey, PublicKey, digest};
pub use file::{Identity, Membership, NEIGHBOURS_MAX, Neighbour, is_open_to_others};
pub use text::{from_hex, hex};
pub use tls::{
    ALPN_JOIN, ALPN_PEER, BadCredential, Credentials, Trust, host_config, joining_config, provider,
};
pub use token::{SEEDS_MAX, Seed, TokenText};

/// Fills the array with random bytes of the kernel.
pub(crate) fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    // It fails only where there is no entropy source at all, where nothing may be begun.
    aws_lc_rs::rand::fill(&mut bytes).expect("the kernel gives random numbers");
    bytes
}
