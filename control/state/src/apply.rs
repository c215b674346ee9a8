//! One entry of the log, applied.

use crate::purges::PurgeRecord;
use crate::sites::{SiteRecord, SiteVersion};
use crate::{
    AuditRecord, MOST_ACCOUNTS, MOST_AUDIT, MOST_CERTIFICATES, MOST_NODES, MOST_SITES, MOST_TICKET_KEYS, MOST_TOKENS, MOST_TXT, MOST_ZONES,
    NodeRecord, Removal, State,
};
use std::time::Duration;
use tidegate_control_types::authority::{Fingerprint, hex};
use tidegate_control_types::certificate::{Challenge, OrderStep, SealedCertificate, acme_name, covers, internal_name, is_uploaded_as};
use tidegate_control_types::event::Event;
use tidegate_control_types::site::{CertificateChoice, Hold, HostPattern, Shown, SiteSpec, WhenDetached};
use tidegate_control_types::token::Joined;
use tidegate_control_types::{CertificateName, Change, Command, NodeName, NodeState, PurgeOrder, Role, Selector, SiteName};

/// A node that did not hear that it is enrolled may ask for that long.
const ASKED_AGAIN_WITHIN: Duration = Duration::from_secs(600);

/// Why a command changed nothing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("{0}")]
    NotFound(String),
    #[error("{0}")]
    Conflict(String),
    /// Another revision than the caller expected.
    #[error("the site is at revision {found}, not at {expected}: look at what changed, then try again")]
    Stale { expected: u64, found: u64 },
    #[error("{0}")]
    Limit(String),
    #[error("the join token is unknown, used up, revoked or expired: make another (tidegate token create --join ROLE)")]
    JoinToken,
}

/// What an entry did: what watchers are told, or why nothing.
#[derive(Clone, Debug, PartialEq)]
pub struct Applied {
    pub outcome: Result<(), Refusal>,
    /// Without what holds a private key: that is in [`Applied::sealed`].
    pub events: Vec<Event>,
    pub sealed: Vec<Sealed>,
}

/// What changed of what is sealed: it comes with the state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Sealed {
    /// By its name.
    Certificate(String),
    /// By its zone.
    DnsKey(String),
    /// All of them.
    TicketKeys,
}

pub type Changed = Result<Vec<Event>, Refusal>;

impl State {
    /// Applies the entry at `index`, which is greater than [`State::applied`]. An entry that is refused counts as applied.
    pub fn apply(&mut self, index: u64, command: Command) -> Applied {
        let Command { at, by, change } = command;
        self.now = self.now.max(at);
        let what = describe(&change);
        let mut sealed = match &change {
            Change::CertificatePut { certificate } => vec![Sealed::Certificate(certificate.name.clone())],
            Change::DnsKeyPut { key } => vec![Sealed::DnsKey(key.zone.clone())],
            Change::TicketKeyPut { .. } => vec![Sealed::TicketKeys],
            _ => Vec::new(),
        };
        let site = match &change {
            Change::SitePut { spec, .. } => Some(spec.name.clone()),
            Change::SiteRemove { name, .. } => Some(name.clone()),
            _ => None,
        };
        let before = site.as_ref().and_then(|name| self.sites.get(name)).map(|s| Wants::of(&s.current().spec));
        let done = match change {
            Change::SitePut { spec, source, expected, vouched } => self.site_put(index, &by, (*spec, source), expected, vouched),
            Change::HostPut { site, host, hold } => self.host_put(index, &site, host, hold),
            Change::SiteRemove { name, expected } => self.site_remove(index, &name, expected),
            Change::Purge { orders } => self.record_purge(index, &by, orders),
            Change::NodeEnrol { node, join, key } => self.node_enrol(index, node, &join, key),
            Change::NodeUpdate { node } => self.node_update(index, node),
            Change::NodeDrain { name, drained } => self.node_drain(index, &name, drained),
            Change::NodeRemove { name, dead } => self.node_remove(index, &name, dead),
            Change::NodeForget { name, removal } => {
                if self.nodes.get(&name).and_then(|n| n.removed).is_some_and(|r| r.index == removal) {
                    self.nodes.remove(&name);
                }
                Ok(Vec::new())
            }
            Change::TokenCreate { token } => limited(&mut self.tokens, token.id.clone(), token, MOST_TOKENS, "tokens"),
            Change::TokenRevoke { id } => removed(&mut self.tokens, &id, "token"),
            Change::JoinCreate { join } => {
                let now = self.now;
                self.joins.retain(|_, j| now < j.expires && j.used.as_ref().is_none_or(|u| now.since(u.at) < ASKED_AGAIN_WITHIN));
                limited(&mut self.joins, join.id.clone(), join, MOST_TOKENS, "join tokens")
            }
            Change::JoinRevoke { id } => removed(&mut self.joins, &id, "join token"),
            Change::CertificatePut { certificate } => self.certificate_put(index, certificate),
            Change::CertificateRemove { name } => self.certificate_remove(name),
            Change::AccountPut { account } => {
                self.accounts.remove(&account.authority);
                limited(&mut self.accounts, account.authority.clone(), account, MOST_ACCOUNTS, "accounts at authorities")
            }
            Change::AccountRemove { authority } => removed(&mut self.accounts, &authority, "account at the authority"),
            Change::OrderPut { order } => {
                if self.sites.contains_key(&order.site) {
                    self.orders.insert(order.site.clone(), *order);
                    Ok(Vec::new())
                } else {
                    Err(Refusal::NotFound(format!("there is no site {}", order.site)))
                }
            }
            Change::OrderRemove { site } => {
                self.orders.remove(&site);
                Ok(Vec::new())
            }
            Change::ChallengesPut { site, challenges } => self.challenges_put(site, challenges),
            Change::DnsKeyPut { key } if self.dns_keys.contains_key(&key.zone) => {
                Err(Refusal::Conflict(format!("the zone {} is signed already", key.zone)))
            }
            Change::DnsKeyPut { key } => limited(&mut self.dns_keys, key.zone.clone(), key, MOST_ZONES, "signed zones"),
            Change::DnsKeyRemove { zone } => removed(&mut self.dns_keys, &zone, "signed zone").map(|_| vec![Event::DnsKeyRemoved(zone)]),
            Change::TicketKeyPut { key } => {
                self.ticket_keys.push(key);
                let gone = self.ticket_keys.len().saturating_sub(MOST_TICKET_KEYS);
                self.ticket_keys.drain(..gone);
                Ok(Vec::new())
            }
            Change::TxtPut { name, values } => self.txt_put(name, values),
            Change::ClusterKeyNext { key } => self.cluster_key_next(key),
            Change::ClusterKeyPut { key } => self.cluster_key_put(key),
            Change::Reseal { items } => self.reseal(items),
            Change::RootKeyPut { sealed } => {
                self.authority.root_key = Some(sealed);
                Ok(Vec::new())
            }
            Change::RootKeyRemove => self.root_key_remove(),
            Change::IssuingRequest { requested } => self.issuing_requested(requested),
            Change::IssuingPut { issuing, requested } => self.issuing_put(issuing, requested),
            Change::IssuingRetire { fingerprint } => self.issuing_retire(&fingerprint),
            Change::MemberPut { id, name, .. } if self.members.get(&id).is_some_and(|m| m.0 != name) => {
                Err(Refusal::Conflict(format!("the id {id} is another control node's than {name}'s")))
            }
            Change::MemberPut { id, name, address } => {
                self.greatest_member = self.greatest_member.max(id);
                self.members.insert(id, (name, address));
                Ok(Vec::new())
            }
            Change::MemberRemove { id } => {
                self.members.remove(&id);
                Ok(Vec::new())
            }
        };
        if let (Ok(_), Some(site)) = (&done, &site) {
            let after = self.sites.get(site).map(|s| Wants::of(&s.current().spec));
            sealed.extend(self.newly_placed(site, before.as_ref(), after.as_ref()).map(Sealed::Certificate));
        }
        self.applied = index;
        if let (Ok(_), Some(what)) = (&done, what) {
            if self.audit.len() >= MOST_AUDIT {
                self.audit.pop_front();
            }
            self.audit.push_back(AuditRecord { index, at, by, what });
        }
        match done {
            Ok(events) => Applied { outcome: Ok(()), events, sealed },
            Err(refusal) => Applied { outcome: Err(refusal), events: Vec::new(), sealed: Vec::new() },
        }
    }

    /// The sites that want the uploaded certificate which stands under `name`.
    fn users_of<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a SiteSpec> {
        self.sites.values().map(|s| &s.current().spec).filter(move |spec| match &spec.tls.certificate {
            CertificateChoice::Uploaded(wanted) => is_uploaded_as(name, wanted.as_str()),
            CertificateChoice::Auto | CertificateChoice::Internal => false,
        })
    }

    /// The certificates that edges of some region need from now on, or need no more, since a site wants others or is served elsewhere.
    fn newly_placed(&self, site: &SiteName, before: Option<&Wants>, after: Option<&Wants>) -> impl Iterator<Item = String> {
        let moved = before.map(|w| &w.regions) != after.map(|w| &w.regions);
        let own = moved && before.is_some();
        let uploaded: Vec<_> = match (before, after) {
            (Some(b), Some(a)) if b == a => Vec::new(),
            _ => before.into_iter().chain(after).filter_map(|w| w.uploaded.clone()).collect(),
        };
        let own = [internal_name(site), acme_name(site)].into_iter().filter(move |_| own);
        let mut all: Vec<String> = uploaded.iter().flat_map(|u| self.uploaded_as(u)).map(|c| c.name.clone()).collect();
        all.extend(own.filter(|name| self.certificates.contains_key(name)));
        all.sort_unstable();
        all.dedup();
        all.into_iter()
    }

    fn certificate_put(&mut self, index: u64, certificate: SealedCertificate) -> Changed {
        let site = certificate.name.split_once('/').filter(|(source, _)| matches!(*source, "acme" | "internal")).map(|(_, site)| site);
        // No site names one that is made for it.
        let users = site.is_none().then(|| self.users_of(&certificate.name)).into_iter().flatten();
        if let Some((spec, host)) = users.into_iter().find_map(|s| Some((s, uncovered(&certificate.hosts, s)?))) {
            let names = certificate.hosts.join(", ");
            return Err(Refusal::Conflict(format!("the site {} uses it for {host}, and it is for {names} alone", spec.name)));
        }
        if let Some(gone) = site.filter(|s| !self.sites.contains_key(*s)) {
            return Err(Refusal::NotFound(format!("there is no site {gone}")));
        }
        if self.certificates.len() >= MOST_CERTIFICATES && !self.certificates.contains_key(&certificate.name) {
            return Err(Refusal::Limit(format!("there are {MOST_CERTIFICATES} certificates already")));
        }
        self.certificates.insert(certificate.name.clone(), (index, certificate));
        Ok(Vec::new())
    }

    fn certificate_remove(&mut self, name: String) -> Changed {
        let others = |wanted: &str| self.certificates.keys().any(|n| *n != name && is_uploaded_as(n, wanted));
        let user = self.users_of(&name).find(|s| matches!(&s.tls.certificate, CertificateChoice::Uploaded(w) if !others(w.as_str())));
        if let Some(user) = user {
            return Err(Refusal::Conflict(format!("the site {} uses it: give that another certificate first", user.name)));
        }
        removed(&mut self.certificates, &name, "certificate").map(|_| vec![Event::CertificateRemoved(name)])
    }

    /// One for each algorithm of a key.
    fn uploaded_as<'a>(&'a self, wanted: &'a CertificateName) -> impl Iterator<Item = &'a SealedCertificate> {
        let from = self.certificates.range(format!("{wanted}/")..);
        from.take_while(|(name, _)| is_uploaded_as(name, wanted.as_str())).map(|(_, (_, c))| c)
    }

    /// Whether the certificate that a site wants is there, and is for its hosts.
    fn has_certificate(&self, spec: &SiteSpec) -> Result<(), Refusal> {
        let CertificateChoice::Uploaded(wanted) = &spec.tls.certificate else { return Ok(()) };
        let mut found = self.uploaded_as(wanted).peekable();
        if found.peek().is_none() {
            return Err(Refusal::Conflict(format!(
                "there is no certificate {wanted}: upload it first (tidegate cert upload {wanted} --chain FILE --key FILE)"
            )));
        }
        match found.find_map(|c| Some((c, uncovered(&c.hosts, spec)?))) {
            Some((c, host)) => {
                Err(Refusal::Conflict(format!("the certificate {} is for {}, and not for {host}", c.name, c.hosts.join(", "))))
            }
            None => Ok(()),
        }
    }

    fn challenges_put(&mut self, site: SiteName, mut challenges: Vec<Challenge>) -> Changed {
        if !self.sites.contains_key(&site) {
            challenges.clear();
        }
        let was_open = self.challenges.remove(&site).is_some();
        if challenges.is_empty() && !was_open {
            return Ok(Vec::new());
        }
        if !challenges.is_empty() {
            self.challenges.insert(site.clone(), challenges.clone());
        }
        Ok(vec![Event::Challenges { site, challenges }])
    }

    fn txt_put(&mut self, name: String, values: Vec<String>) -> Changed {
        if values.is_empty() {
            self.txt.remove(&name).ok_or_else(|| Refusal::NotFound(format!("{name} has no TXT records")))?;
        } else if self.txt.len() >= MOST_TXT && !self.txt.contains_key(&name) {
            return Err(Refusal::Limit(format!("there are {MOST_TXT} names with TXT records already")));
        } else {
            self.txt.insert(name.clone(), values.clone());
        }
        Ok(vec![Event::Txt { name, values }])
    }

    /// An entry without a command: the first of a term, or a change of the voters.
    pub fn skip(&mut self, index: u64) {
        self.applied = index;
    }

    fn site_put(&mut self, index: u64, by: &str, (spec, source): (SiteSpec, String), expected: Option<u64>, vouched: bool) -> Changed {
        self.expect(&spec.name, expected)?;
        self.has_certificate(&spec)?;
        if let Some((host, other)) = spec.hosts.iter().find_map(|h| Some((h, self.holder(h, &spec.name)?))) {
            return Err(Refusal::Conflict(format!("the host {host} belongs to the site {other}")));
        }
        // CNAME records of hosts that were a former site's may still lead to this name.
        if !vouched && !self.sites.contains_key(&spec.name) && self.detached.contains_key(&spec.name) {
            let name = &spec.name;
            return Err(Refusal::Conflict(format!(
                "a site {name} was removed, and hosts of others may still lead to that name: choose another, or have an admin vouch for its hosts"
            )));
        }
        if self.sites.len() >= MOST_SITES && !self.sites.contains_key(&spec.name) {
            return Err(Refusal::Limit(format!("there are {MOST_SITES} sites already")));
        }
        self.note_detached(index, &spec.name, Some(spec.cache.when_detached));
        // A new site may take its hosts from another's wildcard.
        if self.sites.get(&spec.name).is_none_or(|old| old.current().spec.hosts != spec.hosts) {
            self.hosts_changed = index;
        }
        let version = SiteVersion { index, at: self.now, by: by.into(), source, spec };
        let name = version.spec.name.clone();
        let record = match self.sites.entry(name) {
            std::collections::btree_map::Entry::Occupied(at) => {
                let record = at.into_mut();
                record.put(version);
                record
            }
            std::collections::btree_map::Entry::Vacant(at) => at.insert(SiteRecord::new(version)),
        };
        let hold = Hold { shown: Shown::Vouched, since: self.now, lost: None };
        for host in record.current().spec.hosts.clone() {
            // Every host: there is nothing that could show whose they are.
            // An admin's word stands, whatever the host shows from now on.
            let stands = record.holds().get(&host).is_some_and(|h| h.shown == Shown::Vouched);
            if (vouched || host == HostPattern::Any) && !stands {
                if !record.holds().contains_key(&host) {
                    self.hosts_changed = index;
                }
                record.hold(index, host, Some(hold));
            }
        }
        Ok(vec![Event::Site(Box::new(record.state()))])
    }

    /// The site that holds a host, if it is another one than `but`.
    fn holder(&self, host: &HostPattern, but: &SiteName) -> Option<&SiteName> {
        self.sites.values().find(|r| r.name() != but && r.holds().contains_key(host)).map(SiteRecord::name)
    }

    fn host_put(&mut self, index: u64, site: &SiteName, host: HostPattern, hold: Option<Hold>) -> Changed {
        if let Some(other) = hold.and_then(|_| self.holder(&host, site)) {
            return Err(Refusal::Conflict(format!("the host {host} belongs to the site {other}")));
        }
        let record = self.sites.get_mut(site).filter(|r| r.current().spec.hosts.contains(&host));
        let record = record.ok_or_else(|| Refusal::NotFound(format!("there is no site {site} that names the host {host}")))?;
        if record.holds().get(&host).is_some_and(|h| h.shown == Shown::Vouched) {
            return Err(Refusal::Conflict(format!("an admin vouches that the host {host} is the site {site}'s")));
        }
        if record.holds().contains_key(&host) != hold.is_some() {
            self.hosts_changed = index;
        }
        record.hold(index, host, hold);
        Ok(vec![Event::Site(Box::new(record.state()))])
    }

    fn site_remove(&mut self, index: u64, name: &SiteName, expected: Option<u64>) -> Changed {
        self.expect(name, expected)?;
        self.sites.remove(name).ok_or_else(|| Refusal::NotFound(format!("there is no site {name}")))?;
        self.note_detached(index, name, None);
        self.hosts_changed = index;
        let mut events = vec![Event::SiteRemoved(name.clone())];
        for certificate in [internal_name(name), acme_name(name)] {
            if self.certificates.remove(&certificate).is_some() {
                events.push(Event::CertificateRemoved(certificate));
            }
        }
        self.orders.remove(name);
        events.extend(self.challenges_put(name.clone(), Vec::new())?);
        Ok(events)
    }

    fn expect(&self, name: &SiteName, expected: Option<u64>) -> Result<(), Refusal> {
        let found = self.sites.get(name).map_or(0, SiteRecord::revision);
        match expected {
            Some(expected) if expected != found => Err(Refusal::Stale { expected, found }),
            _ => Ok(()),
        }
    }

    fn note_detached(&mut self, index: u64, name: &SiteName, now: Option<WhenDetached>) {
        let history = self.detached.entry(name.clone()).or_default();
        if history.last().is_none_or(|(_, last)| *last != now) {
            history.push((index, now));
        }
    }

    fn record_purge(&mut self, index: u64, by: &str, orders: Vec<PurgeOrder>) -> Changed {
        let orders = self.placed(orders)?;
        self.purges.add(index, PurgeRecord { at: self.now, by: by.into(), orders: orders.clone() });
        Ok(vec![Event::Purged(orders)])
    }

    /// The orders with the sites that they concern, as applying them now would find them.
    ///
    /// # Errors
    /// An order concerns no site, or another than it names.
    pub fn placed(&self, mut orders: Vec<PurgeOrder>) -> Result<Vec<PurgeOrder>, Refusal> {
        orders.iter_mut().try_for_each(|order| self.place(order))?;
        Ok(orders)
    }

    /// Finds the site that an order concerns, or checks the one it names.
    fn place(&self, order: &mut PurgeOrder) -> Result<(), Refusal> {
        if let Some(site) = &order.site
            && !self.sites.contains_key(site)
        {
            return Err(Refusal::NotFound(format!("there is no site {site}")));
        }
        if let Some(host) = order.selector.host() {
            let found = self.site_of_host(host).ok_or_else(|| Refusal::NotFound(format!("no site serves the host {host}")))?.name();
            if order.site.as_ref().is_some_and(|named| named != found) {
                return Err(Refusal::Conflict(format!("the host {host} belongs to the site {found}")));
            }
            order.site = Some(found.clone());
        } else if order.site.is_none() && order.selector != Selector::All {
            let mut names = self.sites.keys();
            match (names.next(), names.next()) {
                (Some(only), None) => order.site = Some(only.clone()),
                (None, _) => return Err(Refusal::NotFound("there is no site yet".into())),
                _ => return Err(Refusal::Conflict(format!("there are several sites: say which one the {} is of", order.selector))),
            }
        } else if order.selector == Selector::All {
            order.site = None;
        }
        Ok(())
    }

    fn node_enrol(&mut self, index: u64, mut node: NodeState, join: &str, key: Fingerprint) -> Changed {
        node.check().map_err(Refusal::Conflict)?;
        let record = self.joins.get_mut(join).filter(|j| self.now < j.expires && j.role == node.role).ok_or(Refusal::JoinToken)?;
        if let Some(used) = &record.used {
            // It did not hear the answer.
            let present = self.nodes.get(&node.name).filter(|n| n.removed.is_none());
            let again = used.node == node.name && used.key == key && present.is_some_and(|n| n.state.since == used.enrolled);
            return if again && self.now.since(used.at) < ASKED_AGAIN_WITHIN { Ok(Vec::new()) } else { Err(Refusal::JoinToken) };
        }
        if record.region.as_ref().is_some_and(|r| *r != node.region) {
            return Err(Refusal::Conflict(format!("the join token is for another region than {}", node.region)));
        }
        if self.nodes.contains_key(&node.name) {
            return Err(Refusal::Conflict(format!("there is a node {} already: remove it first, or choose another name", node.name)));
        }
        if self.nodes.len() >= MOST_NODES {
            return Err(Refusal::Limit(format!("there are {MOST_NODES} nodes already")));
        }
        record.used = Some(Joined { node: node.name.clone(), key, enrolled: index, at: self.now });
        node.since = index;
        Ok(self.put_node(index, node))
    }

    fn put_node(&mut self, index: u64, state: NodeState) -> Vec<Event> {
        let event = Event::Node(state.clone());
        self.nodes.insert(state.name.clone(), NodeRecord { state, revision: index, removed: None });
        vec![event]
    }

    fn present(&mut self, name: &NodeName) -> Result<&mut NodeRecord, Refusal> {
        let found = self.nodes.get_mut(name).filter(|n| n.removed.is_none());
        found.ok_or_else(|| Refusal::NotFound(format!("there is no node {name}")))
    }

    fn node_update(&mut self, index: u64, mut node: NodeState) -> Changed {
        let old = &self.present(&node.name)?.state;
        // The name may be another's by now.
        if old.since != node.since {
            return Err(Refusal::Conflict(format!("{} has enrolled anew since", node.name)));
        }
        if old.role != node.role {
            return Err(Refusal::Conflict(format!("{} is enrolled as {}", node.name, old.role)));
        }
        node.check().map_err(Refusal::Conflict)?;
        (node.region, node.since, node.drained) = (old.region.clone(), old.since, old.drained);
        Ok(self.put_node(index, node))
    }

    fn node_drain(&mut self, index: u64, name: &NodeName, drained: bool) -> Changed {
        let mut state = self.present(name)?.state.clone();
        if state.role == Role::Control {
            return Err(Refusal::Conflict(format!("{name} is a control node: only edges and shields can be drained")));
        }
        state.drained = drained;
        Ok(self.put_node(index, state))
    }

    fn node_remove(&mut self, index: u64, name: &NodeName, dead: bool) -> Changed {
        let record = self.nodes.get_mut(name).ok_or_else(|| Refusal::NotFound(format!("there is no node {name}")))?;
        let before = record.removed;
        record.removed = Some(Removal { index: before.map_or(index, |r| r.index), dead: dead || before.is_some_and(|r| r.dead) });
        record.revision = index;
        if before.is_some() {
            return Ok(Vec::new());
        }
        if record.state.role != Role::Edge {
            return Ok(vec![Event::NodeRemoved(name.clone())]);
        }
        // It has read them.
        self.ticket_keys.clear();
        Ok(vec![Event::NodeRemoved(name.clone()), Event::TicketKeys(Vec::new())])
    }
}

/// Which certificate a site wants, and where.
#[derive(PartialEq)]
struct Wants {
    regions: Vec<String>,
    uploaded: Option<CertificateName>,
}

impl Wants {
    fn of(spec: &SiteSpec) -> Self {
        let uploaded = match &spec.tls.certificate {
            CertificateChoice::Uploaded(name) => Some(name.clone()),
            CertificateChoice::Auto | CertificateChoice::Internal => None,
        };
        Self { regions: spec.regions.clone(), uploaded }
    }
}

/// The first host of the site that a certificate for these names is not for.
fn uncovered<'a>(names: &[String], spec: &'a SiteSpec) -> Option<&'a HostPattern> {
    spec.hosts.iter().find(|h| !covers(names, h))
}

fn limited<T>(map: &mut std::collections::BTreeMap<String, T>, id: String, value: T, most: usize, what: &str) -> Changed {
    if map.len() >= most {
        return Err(Refusal::Limit(format!("there are {most} {what} already")));
    }
    map.insert(id, value);
    Ok(Vec::new())
}

fn removed<T>(map: &mut std::collections::BTreeMap<String, T>, id: &str, what: &str) -> Changed {
    map.remove(id).map(|_| Vec::new()).ok_or_else(|| Refusal::NotFound(format!("there is no {what} {id}")))
}

/// What the audit log says of a change; purges have their receipts instead.
fn describe(change: &Change) -> Option<String> {
    Some(match change {
        Change::SitePut { spec, .. } => format!("site {} applied", spec.name),
        Change::HostPut { site, host, hold: Some(Hold { lost: Some(_), .. }) } => {
            format!("the host {host} shows no longer that it is the site {site}'s")
        }
        Change::HostPut { site, host, hold: Some(_) } => format!("the host {host} is the site {site}'s"),
        Change::HostPut { site, host, hold: None } => format!("the host {host} is no longer the site {site}'s"),
        Change::SiteRemove { name, .. } => format!("site {name} removed"),
        Change::Purge { .. } => return None,
        Change::NodeUpdate { node } => {
            let all = node.address.iter().cloned().chain(node.advertise.iter().map(ToString::to_string));
            format!("node {} is reached at {}", node.name, all.collect::<Vec<_>>().join(", "))
        }
        Change::NodeEnrol { node, .. } => format!("{} {} enrolled", node.role, node.name),
        Change::NodeDrain { name, drained } => format!("node {name} {}", if *drained { "drained" } else { "undrained" }),
        Change::NodeRemove { name, dead } => format!("node {name} removed{}", if *dead { " as dead" } else { "" }),
        Change::NodeForget { name, .. } => format!("node {name} can no longer answer"),
        Change::TokenCreate { token } => format!("token {} created ({})", token.id, token.role.as_str()),
        Change::TokenRevoke { id } => format!("token {id} revoked"),
        Change::JoinCreate { join } => format!("join token {} created ({})", join.id, join.role),
        Change::JoinRevoke { id } => format!("join token {id} revoked"),
        Change::CertificatePut { certificate } => {
            format!("certificate {} put, for {}", certificate.name, certificate.hosts.join(", "))
        }
        Change::AccountPut { account } => format!("account at {} put", account.authority),
        Change::AccountRemove { authority } => format!("account at {authority} removed: the authority knows it no more"),
        Change::OrderPut { order } => match (order.step, &order.problem) {
            (OrderStep::Ordering, _) => format!("certificate of {} ordered at {}", order.site, order.authority),
            (OrderStep::Failed, Some(problem)) => format!("order for the certificate of {} failed: {problem}", order.site),
            _ => return None,
        },
        Change::OrderRemove { .. } | Change::ChallengesPut { .. } | Change::Reseal { .. } => return None,
        Change::TicketKeyPut { .. } => "a new key seals session tickets".into(),
        Change::ClusterKeyNext { key } => format!("cluster key {} given to control nodes", hex(key)),
        Change::ClusterKeyPut { key } => format!("cluster key {} seals", hex(key)),
        Change::RootKeyPut { .. } => "the root's key put into the log".into(),
        Change::RootKeyRemove => "the root's key taken out of the log".into(),
        Change::IssuingRequest { .. } => "an issuing authority requested".into(),
        Change::IssuingPut { issuing, .. } => format!("issuing authority {} signs", hex(&issuing.fingerprint)),
        Change::IssuingRetire { fingerprint } => format!("issuing authority {} retired", hex(fingerprint)),
        Change::CertificateRemove { name } => format!("certificate {name} removed"),
        Change::MemberPut { id, name, .. } => format!("control node {name} ({id}) put"),
        Change::MemberRemove { id } => format!("control node {id} removed"),
        Change::DnsKeyPut { key } => format!("zone {} signed", key.zone),
        Change::DnsKeyRemove { zone } => format!("zone {zone} no longer signed"),
        Change::TxtPut { name, values } if values.is_empty() => format!("TXT records of {name} removed"),
        Change::TxtPut { name, .. } => format!("TXT records of {name} put"),
    })
}
