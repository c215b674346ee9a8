//! The settings of an edge.

use crate::proxy_protocol::Network;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tidegate_control_types::settings::{Section, boolean, duration, number, parsed, size, string};
use tidegate_node::listen::everywhere;
use tidegate_node::settings::{NodeSettings, path, read_file};
use tidegate_node::{NodeError, workers};

#[derive(Clone, Debug)]
pub struct EdgeSettings {
    pub node: NodeSettings,
    pub http: Vec<SocketAddr>,
    pub https: Vec<SocketAddr>,
    /// Whether HTTP/3 is spoken on the UDP ports of the same numbers.
    pub http3: bool,
    pub workers: usize,
    /// Networks whose PROXY protocol v2 header is believed, and required.
    pub proxy_protocol_from: Vec<Network>,
    /// Bytes of the memory tier.
    pub memory: u64,
    pub access_log: Option<AccessLog>,
    pub limits: Limits,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AccessLog {
    Stdout,
    File(PathBuf),
}

impl AccessLog {
    /// `-` or a path.
    #[must_use]
    pub fn of(text: &str) -> Self {
        if text == "-" { Self::Stdout } else { Self::File(text.into()) }
    }
}

/// What clients may ask of an edge.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of a request's head.
    pub head: usize,
    /// Fields of a request's head.
    pub fields: usize,
    /// Bytes of a request's target.
    pub uri: usize,
    /// Bytes of a request's body.
    pub body: u64,
    /// From a connection's, or a request's, first byte to the end of its head; and for a TLS handshake.
    pub head_timeout: Duration,
    /// Without a byte of a request's body, or without a byte taken of a response.
    pub body_timeout: Duration,
    /// Without a request on a kept connection.
    pub idle_timeout: Duration,
    /// Without a byte either way on a connection that speaks another protocol (WebSocket).
    pub tunnel_timeout: Duration,
    /// Connections of one worker.
    pub connections: usize,
    /// Streams of one HTTP/2 or HTTP/3 connection.
    pub streams: u32,
    /// For requests in flight once the edge drains.
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            head: 32 << 10,
            fields: 100,
            uri: 8 << 10,
            body: 1 << 30,
            head_timeout: Duration::from_secs(10),
            body_timeout: Duration::from_secs(30),
            idle_timeout: Duration::from_secs(60),
            tunnel_timeout: Duration::from_secs(3600),
            connections: 50_000,
            streams: 128,
            drain: Duration::from_secs(10),
        }
    }
}

impl EdgeSettings {
    /// # Errors
    /// All mistakes of the file.
    pub fn from_file(file: &Path) -> Result<Self, NodeError> {
        read_file(file, Self::read)
    }

    fn read(s: &Section<'_>) -> Option<Self> {
        let node = NodeSettings::read(s);
        let addresses = |key, port| if s.has(key) { s.list(key, parsed) } else { everywhere(port) };
        let http: Vec<SocketAddr> = addresses("http", 80);
        let https: Vec<SocketAddr> = addresses("https", 443);
        if http.is_empty() && https.is_empty() {
            s.wrong("http", "is empty, and so is https: an edge needs at least one listener");
        }
        let http3 = s.or("http3", true, boolean);
        let workers = s.or("workers", workers::cores(), |v| match v.as_str() {
            Some("cores") => Ok(workers::cores()),
            _ => number(1, 1024)(v).map(|n| usize::try_from(n).unwrap_or(1)).map_err(|e| format!("{e}, or \"cores\"")),
        });
        let proxy_protocol_from = s.list("proxy_protocol_from", parsed);
        let memory = s.or("memory", 1 << 30, size(1 << 20, 1 << 50));
        let access_log = s.optional("access_log", |v| match string(v)?.as_str() {
            "-" => Ok(AccessLog::Stdout),
            _ => path(v).map(AccessLog::File),
        });
        let limits = limits(&s.table("limits"));
        Some(Self { node: node?, http, https, http3, workers, proxy_protocol_from, memory, access_log, limits })
    }
}

fn limits(s: &Section<'_>) -> Limits {
    let d = Limits::default();
    let (ms, hour) = (Duration::from_millis(100), Duration::from_secs(3600));
    let bytes = |key, default: usize, least, most| s.or(key, default, |v| Ok(usize::try_from(size(least, most)(v)?).unwrap_or(default)));
    let count = |key, default: usize, least, most| s.or(key, default, |v| Ok(usize::try_from(number(least, most)(v)?).unwrap_or(default)));
    Limits {
        head: bytes("head", d.head, 1 << 10, 1 << 20),
        fields: count("fields", d.fields, 10, 1000),
        uri: bytes("uri", d.uri, 256, 64 << 10),
        body: s.or("body", d.body, size(0, 1 << 50)),
        head_timeout: s.or("head_timeout", d.head_timeout, duration(ms, hour)),
        body_timeout: s.or("body_timeout", d.body_timeout, duration(ms, hour)),
        idle_timeout: s.or("idle_timeout", d.idle_timeout, duration(ms, hour)),
        tunnel_timeout: s.or("tunnel_timeout", d.tunnel_timeout, duration(ms, 24 * hour)),
        connections: count("connections", d.connections, 1, 10_000_000),
        streams: s.or("streams", d.streams, |v| Ok(u32::try_from(number(1, 10_000)(v)?).unwrap_or(d.streams))),
        drain: s.or("drain", d.drain, duration(Duration::ZERO, hour)),
    }
}
