//! What one watching node is told: first what it missed, then every entry once. Pure; `watch` carries it over a stream.
//!
//! Invariant: the node has been told of everything through `sent`.

use tidegate_control_state::{Applied, State};
use tidegate_control_types::command::SealedCertificate;
use tidegate_control_types::planted::Bug;
use tidegate_control_types::{CatchUp, Certificate, Event, Revision, Role, ToNode};

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

/// Opens a sealed certificate; `None` where it cannot.
pub type Unseal<'a> = &'a dyn Fn(&SealedCertificate) -> Option<Certificate>;

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
        unseal: Unseal<'_>,
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
    pub fn again(&mut self, state: &State, unseal: Unseal<'_>) -> Result<ToNode, Behind> {
        if Bug::LagWithoutCatchUp.is_planted() {
            return Ok(ToNode::Entries { through: state.applied, entries: Vec::new() });
        }
        self.catch_up(state, Some(Revision::new(state.founding.incarnation, self.sent)), self.sent, unseal)
    }

    fn catch_up(&mut self, state: &State, applied: Option<Revision>, purges_after: u64, unseal: Unseal<'_>) -> Result<ToNode, Behind> {
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
        let secret = self.role.holds_keys();
        let certificates = if secret { missed.certificates.iter().filter_map(unseal).collect() } else { Vec::new() };
        self.sent = here.index;
        let missed = CatchUp {
            floor: missed.floor,
            sites: missed.sites,
            site_names: missed.site_names,
            certificates,
            nodes: missed.nodes,
            purges: missed.purges,
        };
        Ok(ToNode::CatchUp { revision: here, missed: Box::new(missed) })
    }
}

/// What watchers are told of entries that were just applied; even empty ones move a node's revision, which leases wait for. Where a private
/// key is among it, also what those are told who may not hold one.
#[must_use]
pub fn entries(state: &State, applied: Vec<(u64, Applied)>, unseal: Unseal<'_>) -> (ToNode, Option<ToNode>) {
    let mut has_keys = false;
    let mut events = |applied: Applied| {
        let mut events = applied.events;
        if let Some(name) = applied.certificate_changed {
            events.extend(state.certificates().find(|c| c.name == name).and_then(unseal).map(Event::Certificate));
            has_keys = true;
        }
        events
    };
    let entries: Vec<_> = applied.into_iter().map(|(index, applied)| (index, events(applied))).filter(|(_, e)| !e.is_empty()).collect();
    let without_keys = has_keys.then(|| {
        let mut entries = entries.clone();
        entries.iter_mut().for_each(|(_, events)| events.retain(|e| !matches!(e, Event::Certificate(_))));
        entries.retain(|(_, events)| !events.is_empty());
        ToNode::Entries { through: state.applied, entries }
    });
    (ToNode::Entries { through: state.applied, entries }, without_keys)
}
