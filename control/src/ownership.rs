//! Whose a site's hosts are. What leads to the site's own name in the zone was put there by whoever holds the host's name: a CNAME record
//! does (the last of a chain of them), or, for names that may have none, a TXT record at `_tidegate.<host>` that says that name. An address
//! that happens to be one of this network's edges says nothing of which site is meant.

use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ProtocolConfig, ResolveHosts, ResolverConfig};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::proto::rr::{RData, RecordType};
use hickory_resolver::{ResolverBuilder, TokioResolver};
use std::net::SocketAddr;
use std::time::Duration;
use tidegate_control_types::site::{HostPattern, Shown};
use tidegate_node::clock::random_u64;

const TIMEOUT: Duration = Duration::from_secs(5);
/// CNAME records behind one another.
const LONGEST_CHAIN: usize = 8;

/// What a host shows.
pub struct Seen {
    pub shown: Shown,
    /// The names that its CNAME records lead to, one after another.
    pub chain: Vec<String>,
    /// What is missing, or could not be found out.
    pub problem: Option<String>,
    /// Where it is not: a name server did not answer, which says nothing of the host.
    pub is_certain: bool,
}

/// What the world's name servers say.
pub struct Names(Option<TokioResolver>);

impl Names {
    /// With these name servers, or where there are none the system's.
    #[must_use]
    pub fn new(name_servers: &[SocketAddr]) -> Self {
        let server = |address: &SocketAddr| {
            let at = |protocol| {
                let mut connection = ConnectionConfig::new(protocol);
                connection.port = address.port();
                connection
            };
            NameServerConfig::new(address.ip(), true, vec![at(ProtocolConfig::Udp), at(ProtocolConfig::Tcp)])
        };
        let mut builder = if name_servers.is_empty() {
            TokioResolver::builder_tokio()
        } else {
            let config = ResolverConfig::from_name_servers(name_servers.iter().map(server).collect());
            Ok(TokioResolver::builder_with_config(config, TokioRuntimeProvider::default()))
        };
        if let Ok(builder) = &mut builder {
            builder.options_mut().use_hosts_file = ResolveHosts::Never;
            // Who asks wants to see what he has just changed.
            builder.options_mut().cache_size = 0;
        }
        let built = builder.and_then(ResolverBuilder::build);
        Self(built.inspect_err(|error| tracing::warn!(%error, "no name server is configured: the owners of hosts cannot be seen")).ok())
    }

    /// The records of a name and type; none where there are none.
    async fn look_up(&self, name: &str, kind: RecordType) -> Result<Vec<RData>, String> {
        let resolver = self.0.as_ref().ok_or("no name server is configured")?;
        let found = tokio::time::timeout(TIMEOUT, resolver.lookup(format!("{}.", name.trim_end_matches('.')), kind)).await;
        match found.map_err(|_| format!("no name server answers for {name}"))? {
            Ok(found) => Ok(found.answers().iter().filter(|r| r.record_type() == kind).map(|r| r.data.clone()).collect()),
            Err(error) if error.is_no_records_found() => Ok(Vec::new()),
            Err(error) => Err(format!("{name} cannot be looked up: {error}")),
        }
    }

    /// What a host shows of `target`, the site's own name in the zone.
    pub async fn of_host(&self, host: &HostPattern, target: &str) -> Seen {
        let (asked, txt) = match host {
            HostPattern::Any => return Seen { shown: Shown::Vouched, chain: Vec::new(), problem: None, is_certain: true },
            HostPattern::Exact(h) => (h.clone(), format!("_tidegate.{h}")),
            // Any name under it stands for all: another each time, which nobody can have put there alone.
            HostPattern::Under(base) => (format!("tidegate-{:016x}.{base}", random_u64()), format!("_tidegate.{base}")),
        };
        let (chain, mut problem) = match self.chain(&asked).await {
            Ok(chain) => (chain, None),
            Err(problem) => (Vec::new(), Some(problem)),
        };
        if chain.last().is_some_and(|last| same(last, target)) {
            return Seen { shown: Shown::Cname, chain, problem: None, is_certain: true };
        }
        match self.says(&txt, target).await {
            Ok(true) => return Seen { shown: Shown::Txt, chain, problem: None, is_certain: true },
            Ok(false) => {}
            Err(other) => problem = problem.or(Some(other)),
        }
        let is_certain = problem.is_none();
        let missing = || match chain.last() {
            Some(last) => format!("{asked} leads to {last}, and not to {target}"),
            None => format!("{asked} has no CNAME record, and {txt} no TXT record that says \"{target}\""),
        };
        Seen { shown: Shown::No, problem: Some(problem.unwrap_or_else(missing)), chain, is_certain }
    }

    async fn chain(&self, host: &str) -> Result<Vec<String>, String> {
        let mut chain: Vec<String> = Vec::new();
        while chain.len() < LONGEST_CHAIN {
            let at = chain.last().map_or(host, String::as_str);
            let found = self.look_up(at, RecordType::CNAME).await?;
            let Some(RData::CNAME(next)) = found.into_iter().next() else { return Ok(chain) };
            chain.push(next.0.to_ascii().trim_end_matches('.').to_ascii_lowercase());
        }
        Err(format!("{host} leads through more than {LONGEST_CHAIN} CNAME records"))
    }

    async fn says(&self, name: &str, target: &str) -> Result<bool, String> {
        let found = self.look_up(name, RecordType::TXT).await?;
        Ok(found.iter().any(|data| match data {
            RData::TXT(txt) => std::str::from_utf8(&txt.txt_data.concat()).is_ok_and(|text| same(text.trim(), target)),
            _ => false,
        }))
    }
}

fn same(one: &str, other: &str) -> bool {
    one.trim_end_matches('.').eq_ignore_ascii_case(other.trim_end_matches('.'))
}
