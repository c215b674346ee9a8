//! From the Host of a request to its site: exact names, then the longest wildcard, then `*`.

use http::HeaderValue;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use tidegate_control_types::certificate::ChallengeAnswer;
use tidegate_control_types::site::HostPattern;
use tidegate_gateway::{AllCounters, Site};
use tidegate_node::Network;

/// Where an authority looks.
pub const CHALLENGES: &str = "/.well-known/acme-challenge/";

/// One worker's table.
#[derive(Default)]
pub struct Routes {
    /// `None`: edges of other regions answer for it, and no other site does.
    exact: HashMap<String, Option<Rc<Site>>>,
    under: HashMap<String, Option<Rc<Site>>>,
    any: Option<Rc<Site>>,
    /// What authorities are answered (RFC 8555 section 8.3), by host and token.
    challenges: HashMap<(String, String), String>,
    /// Of sites that browsers are to visit over https alone (RFC 6797), by name.
    hsts: HashMap<String, HeaderValue>,
}

impl Routes {
    #[must_use]
    pub fn new(network: &Network, region: &str, counters: &AllCounters) -> Self {
        let mut routes = Self::default();
        for state in network.sites.values() {
            let is_here = state.spec.is_served_in(region);
            let site = is_here.then(|| Rc::new(Site::new(Arc::clone(state), counters.get(state.spec.name.as_str()))));
            let age = state.spec.tls.hsts.as_secs();
            if let Some(value) = (age > 0).then(|| HeaderValue::from_str(&format!("max-age={age}")).ok()).flatten() {
                routes.hsts.insert(state.spec.name.to_string(), value);
            }
            for host in state.spec.hosts.iter().filter(|h| !state.unshown.contains(h)) {
                match host {
                    HostPattern::Exact(h) => drop(routes.exact.insert(h.clone(), site.clone())),
                    HostPattern::Under(h) => drop(routes.under.insert(h.clone(), site.clone())),
                    HostPattern::Any => routes.any.clone_from(&site),
                }
            }
        }
        for challenge in network.challenges.values().flatten() {
            if let ChallengeAnswer::Http01 { token, key_authorization } = &challenge.answer {
                routes.challenges.insert((challenge.host.clone(), token.clone()), key_authorization.clone());
            }
        }
        routes
    }

    #[must_use]
    pub fn hsts(&self, site: &str) -> Option<HeaderValue> {
        self.hsts.get(site).cloned()
    }

    /// The answer to an authority that asks `host` for what lies at `path`.
    #[must_use]
    pub fn challenge(&self, host: &str, path: &str) -> Option<&str> {
        let token = path.strip_prefix(CHALLENGES)?;
        self.challenges.get(&(host.to_owned(), token.to_owned())).map(String::as_str)
    }

    /// `host` is lower-case and without port.
    #[must_use]
    pub fn find(&self, host: &str) -> Option<&Rc<Site>> {
        if let Some(site) = self.exact.get(host) {
            return site.as_ref();
        }
        if !self.under.is_empty() {
            let mut above = host.match_indices('.').filter_map(|(at, _)| host.get(at + 1..));
            if let Some(site) = above.find_map(|base| self.under.get(base)) {
                return site.as_ref();
            }
        }
        self.any.as_ref()
    }
}
