//! What every process of the network shares: its identity, mutual TLS, the watch stream with its lease, reports, the
//! admin listener, and how it starts and ends.

#![forbid(unsafe_code)]

pub mod admin;
pub mod backoff;
pub mod clock;
pub mod enrol;
pub mod follower;
pub mod identity;
pub mod lifecycle;
pub mod link;
pub mod listen;
pub mod metrics;
pub mod network;
pub mod role;
pub mod serve;
pub mod settings;
pub mod watch;
mod watch_link;
pub mod workers;

pub use clock::SystemClock;
pub use identity::{Credentials, CurrentCredentials};
pub use link::{Body, BoxError};
pub use network::{Network, Update};

/// This program's version, as nodes and the admin listener say it.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    #[error(transparent)]
    Settings(#[from] tidegate_control_types::settings::Mistakes),
    #[error(transparent)]
    Certificates(#[from] tidegate_certs::CertError),
    #[error("cannot listen on {address}: {error}{hint}")]
    Listen { address: std::net::SocketAddr, error: std::io::Error, hint: &'static str },
    #[error("{path}: {error}")]
    File { path: String, error: std::io::Error },
    #[error("{path}: {error}")]
    Damaged { path: String, error: tidegate_control_types::wire::WireError },
    #[error(
        "this node is not enrolled yet: put a join token into a file and name it with join_token_file (make one with: tidegate token create --join {role})"
    )]
    NotEnrolled { role: &'static str },
    #[error("{path} holds no join token")]
    NoJoinToken { path: String },
    #[error("cannot enrol: {0}")]
    Enrolment(String),
    #[error(
        "{data} is that of {found}, and the settings are of {wanted}: put back what they said, or remove that node (tidegate node remove), empty {data} and enrol with a new join token"
    )]
    Other { data: String, found: String, wanted: String },
    #[error("the control plane removed this node; to bring it back, empty {data} and enrol it with a new join token")]
    Removed { data: String },
    #[error("{0}")]
    Runtime(String),
}

impl NodeError {
    pub fn file(path: &std::path::Path, error: std::io::Error) -> Self {
        Self::File { path: path.display().to_string(), error }
    }
}
