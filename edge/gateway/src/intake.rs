//! What the network changed, taken in by one worker's gateway: its ledger of purges, and the revision that it is at.

use crate::gateway::Gateway;
use crate::site::Site;
use crate::upstream::Upstream;
use std::sync::Arc;
use tidegate_cache::{Ledger, Scope, Target};
use tidegate_control_types::event::Event;
use tidegate_control_types::{PurgeOrder, Revision, Selector, SiteState};

impl<U: Upstream> Gateway<U> {
    /// The revision that this worker is at.
    #[must_use]
    pub fn revision(&self) -> Revision {
        Revision::new(self.incarnation.get(), self.ledger.borrow().through())
    }

    /// Takes in what the network changed. `fresh`: under another log than before, all that was known of purges is void.
    /// `site` gives a site as it is after the change.
    pub fn apply(
        &self,
        revision: Revision,
        fresh: bool,
        floor: u64,
        entries: &[(u64, Vec<Event>)],
        site: &dyn Fn(&str) -> Option<Arc<SiteState>>,
    ) {
        {
            let mut ledger = self.ledger.borrow_mut();
            if fresh {
                *ledger = Ledger::new(self.most_selectors);
                self.incarnation.set(revision.incarnation);
            }
            for (index, event) in entries.iter().flat_map(|(i, events)| events.iter().map(move |e| (*i, e))) {
                match event {
                    Event::Site(s) => ledger.site(s.spec.name.as_str(), s.created, s.keys_since),
                    Event::SiteRemoved(name) => ledger.remove_site(name.as_str()),
                    Event::Purged(orders) => orders.iter().for_each(|order| record(&mut ledger, order, index, site)),
                    Event::Certificate(_)
                    | Event::CertificateRemoved(_)
                    | Event::DnsKey(_)
                    | Event::DnsKeyRemoved(_)
                    | Event::Issuers(_)
                    | Event::TicketKeys(_)
                    | Event::Txt { .. }
                    | Event::Challenges { .. }
                    | Event::Node(_)
                    | Event::NodeRemoved(_) => {}
                }
            }
            if floor > 0 {
                ledger.raise_floor(floor);
            }
            ledger.advance(revision.index);
        }
        self.advanced.notify_waiters();
    }
}

/// Writes one order into the ledger, in the normal form of the site's keys and as it was written: the rules of the keys
/// may have been others when a response was stored.
fn record(ledger: &mut Ledger, order: &PurgeOrder, index: u64, site: &dyn Fn(&str) -> Option<Arc<SiteState>>) {
    let name = order.site.as_ref().map(tidegate_control_types::SiteName::as_str);
    let mut purge = |scope| ledger.purge(name, scope, order.soft, index);
    match &order.selector {
        Selector::Url { host, target } => {
            let plain = Target::new(false, host, target, None);
            purge(Scope::Url { host: &plain.host, path_and_query: &plain.path_and_query });
            let by_rules = name.and_then(site).map(|s| Site::new(s, Arc::default()).target(false, host, target));
            if let Some(t) = by_rules.filter(|t| t.path_and_query != plain.path_and_query) {
                purge(Scope::Url { host: &t.host, path_and_query: &t.path_and_query });
            }
        }
        Selector::Tag { tag } => purge(Scope::Tag(tag)),
        Selector::Prefix { host, path } => {
            let normal = Target::new(false, host, if path.is_empty() { "/" } else { path }, None);
            purge(Scope::Prefix { host: &normal.host, path: normal.path().trim_end_matches('/') });
        }
        Selector::Host { host } => purge(Scope::Host(host)),
        Selector::Site | Selector::All => purge(Scope::Site),
    }
}
