//! The control plane: a Raft node, the watch streams of cache nodes, enrolment, and the HTTP API.
//!
//! `raft` is the core: a driver that takes messages, the time and random numbers as arguments and gives messages and
//! results back. Everything else in this crate is the rim around it.

#![forbid(unsafe_code)]

mod acme;
mod api;
pub mod backup;
mod ca;
mod cluster_key;
mod duties;
mod enrol;
pub mod feed;
pub mod heard;
mod holding;
mod init;
mod ownership;
mod peers;
pub mod purge;
mod questions;
pub mod raft;
mod run;
pub mod settings;
mod shared;
mod watch;

pub use init::{Founded, init, join};
pub use run::{Bound, run};
pub use settings::ControlSettings;

#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    #[error(transparent)]
    Node(#[from] tidegate_node::NodeError),
    #[error(transparent)]
    Certificates(#[from] tidegate_certs::CertError),
    #[error(transparent)]
    Storage(#[from] raft::StorageError),
    #[error("{0} is a control node already: its data folder holds a log")]
    Exists(String),
    #[error(
        "{0} holds no control node yet: make the first of a cluster with `tidegate control init`, or a further one with `tidegate control join`"
    )]
    NoLog(String),
    #[error("{path}: {error}")]
    Backup { path: String, error: backup::BackupError },
    #[error("{0}")]
    ClusterKey(String),
    #[error("this control node cannot be put into the network's state: {0}")]
    Refused(tidegate_control_state::Refusal),
    #[error("the network removed this control node; to bring it back, empty {0}, remove its cluster key file, and join it anew")]
    Removed(String),
    #[error("the root's key is not in this backup: it was taken out of the log before")]
    RootIsAway,
    #[error("this control node has no issuing authority yet: it waits for the log")]
    NoCa,
    #[error("the consensus core refused to go on: {0}")]
    Raft(String),
    /// Why the driver ended, in its own words.
    #[error("{0}")]
    Stopped(String),
}
