//! What one watching node is told: first what it missed, then every entry once. Pure; `watch` carries it over a stream.
//!
//! Invariant: the node has been told of everything through `sent`.

use tidegate_control_state::{Applied, Placement, Sealed, State};
use tidegate_control_types::certificate::SealedCertificate;
use tidegate_control_types::command::{SealedDnsKey, SealedTicketKey};
use tidegate_control_types::planted::Bug;
use tidegate_control_types::{CatchUp, Certificate, DnsKey, Event, Revision, Role, TicketKey, ToNode};

#[derive(Debug)]
pub struct Feed {
    role: Role,
    region: String,
    sent: u64,
}

/// This control node is behind the node itself: another one has to answer it, or it would be rolled back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the node is at {node}, this control node at {here}")]
pub struct Behind {
    pub node: Revision,
    pub here: Revision,
}

/// Opens what is sealed; `None` where it cannot.
pub trait Unseal {
    fn certificate(&self, sealed: &SealedCertificate) -> Option<Certificate>;
    fn dns_key(&self, sealed: &SealedDnsKey) -> Option<DnsKey>;
    fn ticket_key(&self, sealed: &SealedTicketKey) -> Option<TicketKey>;
}

/// Who is told of which private keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Audience<'a> {
    /// Of session tickets, and of the certificates of sites that this region serves.
    Edges(&'a str),
    /// Of zones' keys.
    Dns,
    /// Of none.
    Others,
}

impl<'a> Audience<'a> {
    #[must_use]
    pub fn of(role: Role, region: &'a str) -> Self {
        if role.holds_keys() {
            Self::Edges(region)
        } else if role.signs_zones() {
            Self::Dns
        } else {
            Self::Others
        }
    }

    fn may_know(self, event: &Event) -> bool {
        match event {
            Event::Certificate(_) | Event::TicketKeys(_) => matches!(self, Self::Edges(_)),
            Event::DnsKey(_) => self == Self::Dns,
            _ => true,
        }
    }
}

impl Feed {
    /// Begins with what a node of `role` in `region` that has applied all through `applied` has missed, purges after `purges_after`
    /// among it.
    ///
    /// # Errors
    /// The node is ahead.
    pub fn open(
        state: &State,
        (role, region): (Role, &str),
        applied: Option<Revision>,
        purges_after: u64,
        unseal: &dyn Unseal,
    ) -> Result<(Self, ToNode), Behind> {
        let mut feed = Self { role, region: region.to_owned(), sent: 0 };
        let message = feed.catch_up(state, applied, purges_after, unseal)?;
        Ok((feed, message))
    }

    /// Whether entries through `through` are news for this node; they count as told then.
    pub fn is_news(&mut self, through: u64) -> bool {
        let news = through > self.sent;
        self.sent = self.sent.max(through);
        news
    }

    /// Entries were missed in between: what the node missed, all at once.
    ///
    /// # Errors
    /// The node is ahead.
    pub fn again(&mut self, state: &State, unseal: &dyn Unseal) -> Result<ToNode, Behind> {
        if Bug::LagWithoutCatchUp.is_planted() {
            return Ok(ToNode::Entries { through: state.applied, entries: Vec::new() });
        }
        self.catch_up(state, Some(Revision::new(state.founding.incarnation, self.sent)), self.sent, unseal)
    }

    fn catch_up(&mut self, state: &State, applied: Option<Revision>, purges_after: u64, unseal: &dyn Unseal) -> Result<ToNode, Behind> {
        let here = state.revision();
        if let Some(node) = applied.filter(|a| a.incarnation == here.incarnation && a.index > here.index) {
            return Err(Behind { node, here });
        }
        // A revision of another incarnation is worth nothing, and no purge of this one names what was stored under it.
        let (since, purges_after) = match applied {
            None => (0, purges_after),
            Some(a) if here.reaches(a) => (a.index, purges_after),
            Some(_) => (0, u64::MAX),
        };
        let missed = state.missed_since(since, purges_after);
        let audience = Audience::of(self.role, &self.region);
        let (placement, is_edge) = (Placement::new(state), matches!(audience, Audience::Edges(_)));
        let certificates = missed.certificates.iter().filter(|c| is_edge && placement.is_needed(&c.name, &self.region));
        let ticket_keys = missed.ticket_keys.iter().filter(|_| is_edge);
        let dns_keys = missed.dns_keys.iter().filter(|_| audience == Audience::Dns);
        self.sent = here.index;
        let missed = CatchUp {
            floor: missed.floor,
            sites: missed.sites,
            site_names: missed.site_names,
            certificates: certificates.filter_map(|c| unseal.certificate(c)).collect(),
            dns_keys: dns_keys.filter_map(|k| unseal.dns_key(k)).collect(),
            ticket_keys: ticket_keys.filter_map(|k| unseal.ticket_key(k)).collect(),
            txt: missed.txt,
            challenges: missed.challenges,
            nodes: missed.nodes,
            issuers: missed.issuers,
            purges: missed.purges,
        };
        Ok(ToNode::CatchUp { revision: here, missed: Box::new(missed) })
    }
}

/// What watchers are told of entries that were just applied; even empty ones move a node's revision, which leases wait for.
pub struct Told<'a> {
    through: u64,
    entries: Vec<(u64, Vec<Event>)>,
    /// Some are not to know all of it.
    is_private: bool,
    /// Where there are certificates among it that not all edges need.
    placement: Option<Placement<'a>>,
}

impl<'a> Told<'a> {
    #[must_use]
    pub fn new(state: &'a State, applied: Vec<(u64, Applied)>, unseal: &dyn Unseal) -> Self {
        let mut is_private = false;
        let mut events = |applied: Applied| {
            let mut events = applied.events;
            events.extend(applied.sealed.into_iter().filter_map(|sealed| match sealed {
                Sealed::Certificate(name) => state.certificate(&name).and_then(|c| unseal.certificate(c)).map(Event::Certificate),
                Sealed::TicketKeys => Some(Event::TicketKeys(state.ticket_keys().iter().filter_map(|k| unseal.ticket_key(k)).collect())),
                Sealed::DnsKey(zone) => state.dns_key(&zone).and_then(|k| unseal.dns_key(k)).map(Event::DnsKey),
            }));
            is_private |= !events.iter().all(|e| Audience::Others.may_know(e));
            events
        };
        let entries: Vec<_> = applied.into_iter().map(|(index, applied)| (index, events(applied))).filter(|(_, e)| !e.is_empty()).collect();
        let certificates = || {
            entries.iter().flat_map(|(_, e)| e).filter_map(|e| match e {
                Event::Certificate(c) => Some(c.name.as_str()),
                _ => None,
            })
        };
        let placement = certificates().next().map(|_| Placement::new(state));
        let placement = placement.filter(|p| !certificates().all(|name| p.is_needed_everywhere(name)));
        Self { through: state.applied, entries, is_private, placement }
    }

    /// Whether all are told the same.
    #[must_use]
    pub fn is_for_all(&self) -> bool {
        !self.is_private
    }

    /// Whether edges of different regions may be told different things.
    #[must_use]
    pub fn is_regional(&self) -> bool {
        self.placement.is_some()
    }

    #[must_use]
    pub fn to(&self, audience: Audience<'_>) -> ToNode {
        let mut entries = self.entries.clone();
        entries.iter_mut().for_each(|(_, events)| events.retain(|e| audience.may_know(e)));
        if let (Audience::Edges(region), Some(placement)) = (audience, &self.placement) {
            for event in entries.iter_mut().flat_map(|(_, events)| events) {
                if let Event::Certificate(c) = event
                    && !placement.is_needed(&c.name, region)
                {
                    // It may have been needed there before.
                    *event = Event::CertificateRemoved(c.name.clone());
                }
            }
        }
        entries.retain(|(_, events)| !events.is_empty());
        ToNode::Entries { through: self.through, entries }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;
    use tidegate_control_types::certificate::SealedCertificate;
    use tidegate_control_types::{Change, Command, WallTime, site_file};

    struct Opened;

    impl Unseal for Opened {
        fn certificate(&self, sealed: &SealedCertificate) -> Option<Certificate> {
            let (name, hosts) = (sealed.name.clone(), sealed.hosts.clone());
            Some(Certificate { name, chain: Vec::new(), key: vec![1].into(), hosts, not_after: WallTime(0) })
        }
        fn dns_key(&self, _: &SealedDnsKey) -> Option<DnsKey> {
            None
        }
        fn ticket_key(&self, _: &SealedTicketKey) -> Option<TicketKey> {
            None
        }
    }

    const REGIONS: [&str; 3] = ["eu", "us", "asia"];

    fn site(n: usize, regions: &[&str], certificate: &str) -> Change {
        let regions = if regions.is_empty() { String::new() } else { format!("regions = {regions:?}\n") };
        let text = format!(
            "name = \"s{n}\"\nhosts = [\"s{n}.example\"]\n{regions}[origin]\nservers = [{{ url = \"http://o.example\" }}]\n[tls]\ncertificate = \"{certificate}\"\n"
        );
        Change::SitePut { spec: Box::new(site_file::read("s", &text).unwrap()), source: text, expected: None, vouched: true }
    }

    fn certificate(name: String) -> Change {
        let hosts = (0..3).map(|n| format!("s{n}.example")).collect();
        let certificate =
            SealedCertificate { name, chain: Vec::new(), sealed_key: Vec::new(), hosts, not_before: WallTime(0), not_after: WallTime(1) };
        Change::CertificatePut { certificate }
    }

    fn any_change() -> impl Strategy<Value = Change> {
        let regions = || proptest::sample::subsequence(REGIONS.to_vec(), 0..3);
        let choice = prop_oneof![Just("auto"), Just("internal"), Just("one"), Just("two")];
        let named = prop_oneof![
            (0..3usize).prop_map(|n| format!("internal/s{n}")),
            (0..3usize).prop_map(|n| format!("acme/s{n}")),
            Just("one/ecdsa".to_owned()),
            Just("one/rsa".to_owned()),
            Just("two/ecdsa".to_owned()),
        ];
        prop_oneof![
            4 => (0..3usize, regions(), choice).prop_map(|(n, regions, choice)| site(n, &regions, choice)),
            3 => named.clone().prop_map(certificate),
            1 => named.prop_map(|name| Change::CertificateRemove { name }),
            1 => (0..3usize).prop_map(|n| Change::SiteRemove { name: format!("s{n}").parse().unwrap(), expected: None }),
        ]
    }

    proptest! {
        /// Whoever follows the log holds what one holds that is told of all at once: what its region needs, and nothing else.
        #[test]
        fn who_follows_holds_what_its_region_needs(batches in proptest::collection::vec(proptest::collection::vec(any_change(), 1..4), 1..12)) {
            let mut state = State::nothing_yet();
            let mut held: Vec<BTreeSet<String>> = REGIONS.map(|_| BTreeSet::new()).to_vec();
            for batch in batches {
                let mut applied = Vec::new();
                for change in batch {
                    let index = state.applied + 1;
                    applied.push((index, state.apply(index, Command { at: WallTime(0), by: String::new(), change })));
                }
                let told = Told::new(&state, applied, &Opened);
                for (region, held) in REGIONS.iter().zip(&mut held) {
                    let audience = if told.is_regional() { *region } else { "" };
                    let ToNode::Entries { entries, .. } = told.to(Audience::Edges(audience)) else { unreachable!() };
                    for event in entries.into_iter().flat_map(|(_, events)| events) {
                        match event {
                            Event::Certificate(c) => drop(held.insert(c.name)),
                            Event::CertificateRemoved(name) => drop(held.remove(&name)),
                            _ => {}
                        }
                    }
                    let (_, ToNode::CatchUp { missed, .. }) = Feed::open(&state, (Role::Edge, region), None, 0, &Opened).unwrap() else { unreachable!() };
                    let needed: BTreeSet<String> = missed.certificates.into_iter().map(|c| c.name).collect();
                    prop_assert_eq!(&*held, &needed, "{}", region);
                }
            }
        }
    }
}
