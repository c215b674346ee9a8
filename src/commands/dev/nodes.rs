//! The settings of each node of `tidegate dev`.

use super::{Dev, Network, loopback};
use crate::commands::Failure;
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use tidegate_control::ControlSettings;
use tidegate_control::settings::ClusterKeySource;
use tidegate_control::settings::RaftSettings;
use tidegate_control_types::NodeName;
use tidegate_dns::{DnsSettings, ProbeSettings, ZoneSettings};
use tidegate_edge::{EdgeSettings, Limits};
use tidegate_node::settings::NodeSettings;
use tidegate_node::workers;
use tidegate_origin_shield::ShieldSettings;

const REGION: &str = "local";
/// Its sites are `<site>.cdn.test`; nobody else has names under `test` (RFC 6761).
const ZONE: &str = "cdn.test";
const DNS_PORT: u16 = 8053;
const DNS_TTL: Duration = Duration::from_secs(5);

/// The n-th of a row of addresses: the next port each time, or a free one.
fn nth(first: SocketAddr, n: u16) -> Result<SocketAddr, Failure> {
    let port = if first.port() == 0 { Some(0) } else { first.port().checked_add(n) };
    let port = port.ok_or_else(|| Failure::usage(format!("there is no port {} places after {}", n, first.port())))?;
    Ok(SocketAddr::new(first.ip(), port))
}

impl Dev {
    fn node(&self, network: &Network, name: &str, admin: SocketAddr) -> Result<NodeSettings, Failure> {
        Ok(NodeSettings {
            name: name.parse::<NodeName>().map_err(Failure::new)?,
            region: REGION.into(),
            data: network.data.join(name),
            node_key: network.data.join("keys").join(format!("{name}.key")),
            control: Vec::new(),
            join_token_file: Some(network.data.join("keys").join(format!("{name}.join"))),
            advertise: vec![IpAddr::from([127, 0, 0, 1])],
            admin,
            disk: None,
            name_servers: self.name_server.clone(),
        })
    }

    pub(super) fn edge(&self, network: &Network, n: u16) -> Result<EdgeSettings, Failure> {
        let admin = if n == 0 { self.admin } else { loopback(0) };
        Ok(EdgeSettings {
            node: self.node(network, &format!("edge-{}", n + 1), admin)?,
            http: vec![nth(self.http, n)?],
            https: vec![nth(self.https, n)?],
            http3: true,
            workers: workers::cores(),
            proxy_protocol_from: Vec::new(),
            memory: 1 << 30,
            access_log: self.access_log.as_deref().map(tidegate_edge::AccessLog::of),
            limits: Limits::default(),
        })
    }

    pub(super) fn shield(&self, network: &Network, n: u16) -> Result<ShieldSettings, Failure> {
        let name = format!("shield-{}", n + 1);
        Ok(ShieldSettings {
            listen: vec![loopback(network.ports.get(&name))],
            address: None,
            workers: workers::cores(),
            memory: 1 << 30,
            drain: Limits::default().drain,
            node: self.node(network, &name, loopback(0))?,
        })
    }

    pub(super) fn control(&self, network: &Network, n: u16) -> Result<ControlSettings, Failure> {
        let name = format!("control-{}", n + 1);
        let node = self.node(network, &name, loopback(0))?;
        Ok(ControlSettings {
            listen: vec![loopback(network.ports.get(&name))],
            address: None,
            api: vec![nth(self.api, n)?],
            api_https: Vec::new(),
            api_names: Vec::new(),
            peers: Vec::new(),
            join_token_file: node.join_token_file,
            admin: node.admin,
            zone: Some(ZONE.into()),
            name_servers: self.name_server.clone(),
            raft: RaftSettings::default(),
            acme: None,
            cluster_key: ClusterKeySource::File(network.data.join("keys").join(format!("{name}.cluster.key"))),
            name: node.name,
            region: node.region,
            data: node.data,
            node_key: node.node_key,
        })
    }

    /// The nodes of this run.
    pub(super) fn wanted(&self) -> BTreeSet<String> {
        let names = |kind: &'static str, count: u16| (1..=count).map(move |n| format!("{kind}-{n}"));
        names("edge", self.edges).chain(names("shield", self.shields)).chain(names("dns", 1)).collect()
    }

    /// The node that answers for the zone, bound. Where nobody says at which port, and another program has the usual one, at a free one.
    pub(super) fn dns(&self, network: &Network) -> Result<(DnsSettings, tidegate_dns::Bound), Failure> {
        let settings = |listen| {
            Ok::<_, Failure>(DnsSettings {
                node: self.node(network, "dns-1", loopback(0))?,
                listen: vec![listen],
                zone: ZoneSettings { name: ZONE.parse().map_err(Failure::new)?, ttl: DNS_TTL, caa: Vec::new(), https_records: false },
                networks: None,
                regions: Vec::new(),
                workers: 1,
                // Its edges share one address, at ports of their own.
                probe: ProbeSettings { port: 443, interval: Duration::ZERO },
                rate_limit: 0,
            })
        };
        let usual = settings(self.dns.unwrap_or(loopback(DNS_PORT)))?;
        let (settings, bound) = match tidegate_dns::Bound::bind(&usual) {
            Err(_) if self.dns.is_none() => {
                let free = settings(loopback(0))?;
                let bound = tidegate_dns::Bound::bind(&free)?;
                (free, bound)
            }
            bound => (usual, bound?),
        };
        Ok((settings, bound))
    }
}
