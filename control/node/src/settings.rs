//! The settings that edges and shields share, and the helpers with which every role reads its file.

use crate::NodeError;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use tidegate_control_types::NodeName;
use tidegate_control_types::node::MOST_ADVERTISED;
use tidegate_control_types::settings::{self, Section, parsed, size, string};
use tidegate_control_types::site_file::parse_origin_url;
use toml::de::DeValue;

/// Who a node is and where its control plane is.
#[derive(Clone, Debug)]
pub struct NodeSettings {
    pub name: NodeName,
    pub region: String,
    pub data: PathBuf,
    /// Lies outside of `data`: it seals what `data` holds.
    pub node_key: PathBuf,
    /// host:port of control nodes, tried in turn.
    pub control: Vec<String>,
    pub join_token_file: Option<PathBuf>,
    pub advertise: Vec<IpAddr>,
    pub admin: SocketAddr,
    /// Where the disk tier of its cache is.
    pub disk: Option<DiskSettings>,
    /// Which name servers resolve the origins' names; none: the system's.
    pub name_servers: Vec<SocketAddr>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskSettings {
    /// A folder of its own.
    pub path: PathBuf,
    /// Bytes.
    pub size: u64,
}

fn disk(s: &Section<'_>) -> Option<DiskSettings> {
    if !s.has("disk") {
        return None;
    }
    let disk = s.table("disk");
    let path = disk.required("path", "\"/var/cache/tidegate\"", path);
    let size = disk.required("size", "\"50GiB\"", size(16 << 20, 1 << 50));
    Some(DiskSettings { path: path?, size: size? })
}

/// Reads a whole settings file.
///
/// # Errors
/// It cannot be read, or what it says is wrong.
pub fn read_file<T>(path: &Path, build: impl FnOnce(&Section<'_>) -> Option<T>) -> Result<T, NodeError> {
    let text = std::fs::read_to_string(path).map_err(|e| NodeError::file(path, e))?;
    Ok(settings::read(&path.display().to_string(), &text, build)?)
}

impl NodeSettings {
    /// The keys that every cache node's file has.
    pub fn read(s: &Section<'_>) -> Option<Self> {
        let name = s.required("name", "\"fra-1\"", parsed);
        let region = s.required("region", "\"eu-central\"", label);
        let data = s.or("data", PathBuf::from("/var/lib/tidegate"), path);
        let node_key = s.or("node_key", PathBuf::from("/etc/tidegate/node.key"), path);
        if node_key.starts_with(&data) {
            s.wrong("node_key", "lies inside of data: whoever copies the data folder must not get the key with it");
        }
        let control = s.list("control", control_url);
        if control.is_empty() {
            s.wrong("control", "should name at least one control node, for example: control = [\"https://c1.example.net:7443\"]");
        }
        let join_token_file = s.optional("join_token_file", path);
        let advertise = s.list("advertise", parsed);
        if advertise.len() > MOST_ADVERTISED {
            s.wrong("advertise", format!("has {} addresses: {MOST_ADVERTISED} at most", advertise.len()));
        }
        let admin = s.or("admin", SocketAddr::from(([127, 0, 0, 1], 9081)), parsed);
        let name_servers = s.list("name_servers", parsed);
        Some(Self { name: name?, region: region?, data, node_key, control, join_token_file, advertise, admin, disk: disk(s), name_servers })
    }
}

impl NodeSettings {
    /// Folder and size of the disk tier.
    #[must_use]
    pub fn disk(&self) -> Option<(&Path, u64)> {
        self.disk.as_ref().map(|d| (d.path.as_path(), d.size))
    }

    /// The disk tier's folder cannot be used.
    #[must_use]
    pub fn disk_error(&self, error: std::io::Error) -> NodeError {
        NodeError::file(self.disk().map_or(&self.data, |(path, _)| path), error)
    }
}

/// A path, absolute so that it means the same from every folder.
///
/// # Errors
/// It is relative.
pub fn path(v: &DeValue<'_>) -> Result<PathBuf, String> {
    let p = PathBuf::from(string(v)?);
    if p.is_absolute() { Ok(p) } else { Err(format!("{:?} should be an absolute path", p.display().to_string())) }
}

/// A region or zone word.
///
/// # Errors
/// It has other characters.
pub fn label(v: &DeValue<'_>) -> Result<String, String> {
    let text = string(v)?;
    match text.parse::<NodeName>() {
        Ok(_) => Ok(text),
        Err(_) => Err(format!("{text:?} should be 1 to 63 of a-z, 0-9 and '-'")),
    }
}

/// `https://host:port` of a control node, as host:port.
///
/// # Errors
/// What would be right.
pub fn control_url(v: &DeValue<'_>) -> Result<String, String> {
    let text = string(v)?;
    match parse_origin_url(&text) {
        Ok((true, host, port)) => Ok(format!("{host}:{port}")),
        _ => Err(format!("{text:?} should look like \"https://c1.example.net:7443\"")),
    }
}
