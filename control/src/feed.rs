//! What one watching node is told: first what it missed, then every entry once. Pure; `watch` carries it over a stream.
//!
//! Invariant: the node has been told of everything through `sent`.

use tidegate_control_state::{Applied, Sealed, State};
use tidegate_control_types::certificate::SealedCertificate;
use tidegate_control_types::command::{SealedDnsKey, SealedTicketKey};
use tidegate_control_types::planted::Bug;
use tidegate_control_types::{CatchUp, Certificate, DnsKey, Event, Revision, Role, TicketKey, ToNode};

#[derive(Debug)]
pub struct Feed {
    role: Role,
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
pub enum Audience {
    /// Of sites' certificates and of session tickets.
    Edges,
    /// Of zones' keys.
    Dns,
    /// Of none.
    Others,
}

impl Audience {
    #[must_use]
    pub fn of(role: Role) -> Self {
        if role.holds_keys() {
            Self::Edges
        } else if role.signs_zones() {
            Self::Dns
        } else {
            Self::Others
        }
    }

    fn may_know(self, event: &Event) -> bool {
        match event {
            Event::Certificate(_) | Event::TicketKeys(_) => self == Self::Edges,
            Event::DnsKey(_) => self == Self::Dns,
            _ => true,
        }
    }
}

impl Feed {
    /// Begins with what a node of `role` that has applied all through `applied` has missed, purges after `purges_after`
    /// among it.
    ///
    /// # Errors
    /// The node is ahead.
    pub fn open(
        state: &State,
        role: Role,
        applied: Option<Revision>,
        purges_after: u64,
        unseal: &dyn Unseal,
    ) -> Result<(Self, ToNode), Behind> {
        let mut feed = Self { role, sent: 0 };
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
        let audience = Audience::of(self.role);
        let certificates = missed.certificates.iter().filter(|_| audience == Audience::Edges);
        let ticket_keys = missed.ticket_keys.iter().filter(|_| audience == Audience::Edges);
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
pub struct Told {
    through: u64,
    entries: Vec<(u64, Vec<Event>)>,
    /// Some are not to know all of it.
    is_private: bool,
}

impl Told {
    #[must_use]
    pub fn new(state: &State, applied: Vec<(u64, Applied)>, unseal: &dyn Unseal) -> Self {
        let mut is_private = false;
        let mut events = |applied: Applied| {
            let mut events = applied.events;
            events.extend(applied.sealed.and_then(|sealed| match sealed {
                Sealed::Certificate(name) => {
                    state.certificates().find(|c| c.name == name).and_then(|c| unseal.certificate(c)).map(Event::Certificate)
                }
                Sealed::TicketKeys => Some(Event::TicketKeys(state.ticket_keys().iter().filter_map(|k| unseal.ticket_key(k)).collect())),
                Sealed::DnsKey(zone) => state.dns_key(&zone).and_then(|k| unseal.dns_key(k)).map(Event::DnsKey),
            }));
            is_private |= !events.iter().all(|e| Audience::Others.may_know(e));
            events
        };
        let entries = applied.into_iter().map(|(index, applied)| (index, events(applied))).filter(|(_, e)| !e.is_empty()).collect();
        Self { through: state.applied, entries, is_private }
    }

    /// Whether all are told the same.
    #[must_use]
    pub fn is_for_all(&self) -> bool {
        !self.is_private
    }

    #[must_use]
    pub fn to(&self, audience: Audience) -> ToNode {
        let mut entries = self.entries.clone();
        entries.iter_mut().for_each(|(_, events)| events.retain(|e| audience.may_know(e)));
        entries.retain(|(_, events)| !events.is_empty());
        ToNode::Entries { through: self.through, entries }
    }
}
