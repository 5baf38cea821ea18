//! What is said to `dog` about machines and their disks.

use super::{TokenOptions, TokenVerb};
use crate::dog::name::{ClusterDiskName, DiskName, NodeName};
use crate::size::Size;
use clap::{Args, Subcommand};
use std::path::PathBuf;

/// What to do with the cluster.
#[derive(Debug, Subcommand)]
pub enum ClusterVerb {
    /// Make a token with which machines join: `sheep --data DIR --token-file FILE`. It is printed
    /// on one line, once, and kept nowhere
    #[command(args_conflicts_with_subcommands = true)]
    Token {
        /// What to do with tokens that there are.
        #[command(subcommand)]
        verb: Option<TokenVerb>,
        /// What the new one is.
        #[command(flatten)]
        options: TokenOptions,
    },
    /// Is anything at risk: which copies are missing, which nodes and disks are away since when,
    /// what is being done about it, who leads and votes, and what is waited for. Exits with 6 when
    /// there are warnings
    ///
    /// It is the cluster as the node that is asked knows it, also while nothing can be agreed on.
    Status,
    /// A majority of the nodes that vote is lost for ever: go on from what the node that is asked
    /// has of the cluster's state. DANGEROUS: what only the lost nodes knew is lost
    ///
    /// Without --yes it only says who is lost, what it may cost and what to do instead. It is
    /// refused while there is another way, and on a node that knows less than another. The lost
    /// nodes must never be started again with what they have; take them out with `dog node remove`
    /// afterwards.
    Recover {
        /// Another node, by name or id, that is lost for ever though it does not vote; can be given
        /// several times
        #[arg(long, value_name = "NODE")]
        lost: Vec<NodeName>,
        /// Do it
        #[arg(long)]
        yes: bool,
    },
}

/// What to do with disks.
#[derive(Debug, Subcommand)]
pub enum DiskVerb {
    /// List the disks of all nodes: whether they are there, and how much lies on them; and what is
    /// known of those of this node
    List,
    /// Give the node that is asked one more disk, while it runs. Data begins to move to it by
    /// itself
    Add {
        /// A block device that is blank, or a directory that is empty or does not exist yet, for a
        /// file in it
        #[arg(value_name = "PATH")]
        path: PathBuf,
        /// How much of it may be used for data, as in 500G [default: as `sheep --limit` says]
        #[arg(long, value_name = "SIZE")]
        limit: Option<Size>,
    },
    /// Scrubbing: reading everything once in a while, to find damage before it is needed
    #[command(subcommand)]
    Scrub(ScrubVerb),
    /// Have what lies on a disk go to other disks. Until it is there, the disk serves as before;
    /// where too few disks would be left, it stays
    Drain {
        /// The disk's id, as `dog disk list` shows it
        #[arg(value_name = "ID")]
        disk: ClusterDiskName,
    },
    /// Use a disk again that was being drained
    Undrain {
        /// The disk's id, as `dog disk list` shows it
        #[arg(value_name = "ID")]
        disk: ClusterDiskName,
    },
    /// Take a disk out of the cluster: one that is drained, or one that will not come back. What it
    /// holds does not count any more. Refused while too few copies would be left
    Remove {
        /// The disk's id, as `dog disk list` shows it
        #[arg(value_name = "ID")]
        disk: ClusterDiskName,
        /// Really do it, though copies of partitions lie on it
        #[arg(long, short)]
        yes: bool,
    },
}

/// What to do about scrubbing.
#[derive(Debug, Subcommand)]
pub enum ScrubVerb {
    /// Begin a pass now
    Start {
        #[command(flatten)]
        disk: DiskChoice,
    },
    /// End the running pass
    Stop {
        #[command(flatten)]
        disk: DiskChoice,
    },
    /// Set how much is read each second; 0 switches scrubbing off
    Rate {
        /// Bytes a second
        #[arg(allow_negative_numbers = true)]
        rate: Size,
        #[command(flatten)]
        disk: DiskChoice,
    },
}

/// One disk or all.
#[derive(Debug, Args)]
pub struct DiskChoice {
    /// The disk's id, as `dog disk list` shows it [default: all disks of the node]
    #[arg(long, value_name = "ID")]
    pub disk: Option<DiskName>,
}

/// What to do with the node.
#[derive(Debug, Subcommand)]
pub enum NodeVerb {
    /// Show the identity and version of the node that is asked
    Info,
    /// List the nodes: whether they are there, who leads and votes, and what they have
    List,
    /// Have what lies on the disks of a node go to other nodes. Until it is there, they serve as
    /// before; where too few disks would be left, it stays
    Drain {
        /// Its name or id
        #[arg(value_name = "NAME")]
        node: NodeName,
    },
    /// Use the disks of a node again that was being drained
    Undrain {
        /// Its name or id
        #[arg(value_name = "NAME")]
        node: NodeName,
    },
    /// Have another node take the place of one that goes, or is lost
    ///
    /// The new one has joined before. What the old one holds goes to other nodes, without a moment
    /// in which there are fewer copies; then you are told to stop it, and it is taken out. Of one
    /// that is lost the copies are made anew from others, at once. Can be interrupted at any time:
    /// said again, it goes on from there
    Replace {
        /// The name or id of the node that goes
        #[arg(value_name = "OLD")]
        old: NodeName,
        /// The name or id of the node that is to take its place
        #[arg(value_name = "NEW")]
        new: NodeName,
        /// The old one will not come back; without this, copies that it alone may have are waited
        /// for
        #[arg(long)]
        lost: bool,
    },
    /// Take a node out of the cluster that is stopped and has neither disks nor attached volumes,
    /// or that was given up by `dog cluster recover`
    Remove {
        /// Its name or id
        #[arg(value_name = "NAME")]
        node: NodeName,
        /// Also where copies of partitions lie on a node that was given up: what is left goes on
        /// without them
        #[arg(long)]
        yes: bool,
    },
}
