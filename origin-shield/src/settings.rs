//! The settings of a shield.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;
use tidegate_control_types::settings::{Section, duration, number, parsed, size};
use tidegate_node::lifecycle::DRAIN_WITHIN;
use tidegate_node::listen::everywhere;
use tidegate_node::settings::{NodeSettings, control_url, read_file};
use tidegate_node::{NodeError, workers};

#[derive(Clone, Debug)]
pub struct ShieldSettings {
    pub node: NodeSettings,
    /// Where edges connect to.
    pub listen: Vec<SocketAddr>,
    /// What edges are told to connect to (host:port); the first of `listen` where it is missing.
    pub address: Option<String>,
    pub workers: usize,
    /// Bytes of the memory tier.
    pub memory: u64,
    /// For requests in flight once the shield drains.
    pub drain: Duration,
}

impl ShieldSettings {
    /// # Errors
    /// All mistakes of the file.
    pub fn from_file(file: &Path) -> Result<Self, NodeError> {
        read_file(file, Self::read)
    }

    fn read(s: &Section<'_>) -> Option<Self> {
        let node = NodeSettings::read(s);
        let mut listen: Vec<SocketAddr> = s.list("listen", parsed);
        if !s.has("listen") {
            listen = everywhere(7444);
        }
        let address = s.optional("address", control_url);
        if address.is_none() && listen.first().is_none_or(|a| a.ip().is_unspecified()) {
            s.wrong("address", "is missing: listen names no single address that edges could connect to; for example: address = \"https://shield-1.example.net:7444\"");
        }
        let workers = s.or("workers", workers::cores(), |v| match v.as_str() {
            Some("cores") => Ok(workers::cores()),
            _ => number(1, 1024)(v).map(|n| usize::try_from(n).unwrap_or(1)).map_err(|e| format!("{e}, or \"cores\"")),
        });
        let memory = s.or("memory", 1 << 30, size(1 << 20, 1 << 50));
        let drain = s.table("limits").or("drain", DRAIN_WITHIN, duration(Duration::ZERO, Duration::from_secs(3600)));
        Some(Self { node: node?, listen, address, workers, memory, drain })
    }
}
