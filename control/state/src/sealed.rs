//! All that is sealed in the state, and the network's own authority.

use crate::State;
use crate::apply::{Changed, Refusal};
use std::time::Duration;
use tidegate_control_types::authority::{Fingerprint, Issuing, RequestedIssuing, Retired, hex};
use tidegate_control_types::event::Event;
use tidegate_control_types::sealed::{ClusterKeyId, Resealed, SealedName};

/// A node's certificate is good for its own renewal for ninety days after its end; and clocks differ.
const USABLE_AFTER_ITS_END: Duration = Duration::from_secs(120 * 86_400);
const MOST_FORMER: usize = 1000;
/// That are trusted at once.
const MOST_ISSUING: usize = 10;

impl State {
    /// Every secret with its name.
    pub fn sealed(&self) -> impl Iterator<Item = (SealedName, &Vec<u8>)> {
        let a = &self.authority;
        let root = a.root_key.iter().map(|key| (SealedName::RootKey, key));
        let issuing = a.issuing.iter().map(|i| (SealedName::IssuingKey(i.fingerprint), &i.sealed_key));
        let requested = a.requested.iter().map(|r| (SealedName::RequestedIssuing, &r.sealed_key));
        let certificates = self.certificates.values().map(|(_, c)| (SealedName::CertificateKey(c.name.clone()), &c.sealed_key));
        let zones = self.dns_keys.values().map(|k| (SealedName::DnsKey(k.zone.clone()), &k.sealed_key));
        let tickets = self.ticket_keys.iter().map(|k| (SealedName::TicketKey(k.made), &k.sealed));
        let accounts = self.accounts.values().map(|a| (SealedName::Account(a.authority.clone()), &a.sealed));
        let orders = self.orders.values().map(|o| (SealedName::OrderKey(o.site.clone()), &o.sealed_key));
        root.chain(issuing).chain(requested).chain(certificates).chain(zones).chain(tickets).chain(accounts).chain(orders)
    }

    fn sealed_mut(&mut self, name: &SealedName) -> Option<&mut Vec<u8>> {
        let a = &mut self.authority;
        match name {
            SealedName::RootKey => a.root_key.as_mut(),
            SealedName::IssuingKey(fingerprint) => a.issuing.iter_mut().find(|i| i.fingerprint == *fingerprint).map(|i| &mut i.sealed_key),
            SealedName::RequestedIssuing => a.requested.as_mut().map(|r| &mut r.sealed_key),
            SealedName::CertificateKey(name) => self.certificates.get_mut(name).map(|(_, c)| &mut c.sealed_key),
            SealedName::DnsKey(zone) => self.dns_keys.get_mut(zone).map(|k| &mut k.sealed_key),
            SealedName::TicketKey(made) => self.ticket_keys.iter_mut().find(|k| k.made == *made).map(|k| &mut k.sealed),
            SealedName::Account(authority) => self.accounts.get_mut(authority).map(|a| &mut a.sealed),
            SealedName::OrderKey(site) => self.orders.get_mut(site).map(|o| &mut o.sealed_key),
        }
    }

    pub(crate) fn cluster_key_next(&mut self, key: ClusterKeyId) -> Changed {
        let keys = &mut self.cluster_keys;
        if keys.current == key || keys.former.contains(&key) {
            return Err(Refusal::Conflict("this cluster key has sealed before: others may know it by now".into()));
        }
        keys.next = Some(key);
        Ok(Vec::new())
    }

    pub(crate) fn cluster_key_put(&mut self, key: ClusterKeyId) -> Changed {
        let keys = &mut self.cluster_keys;
        let is_first = keys.current == ClusterKeyId::default();
        if !is_first && keys.next != Some(key) {
            return Err(Refusal::Conflict("another cluster key is the next one by now".into()));
        }
        if !is_first {
            keys.former.push(keys.current);
            let surplus = keys.former.len().saturating_sub(MOST_FORMER);
            keys.former.drain(..surplus);
        }
        (keys.current, keys.next) = (key, None);
        Ok(Vec::new())
    }

    pub(crate) fn reseal(&mut self, items: Vec<Resealed>) -> Changed {
        for item in items {
            if let Some(sealed) = self.sealed_mut(&item.name).filter(|sealed| **sealed == item.before) {
                *sealed = item.sealed;
            }
        }
        Ok(Vec::new())
    }

    fn issuers_changed(&self) -> Changed {
        Ok(vec![Event::Issuers(self.authority.issuers())])
    }

    pub(crate) fn root_key_remove(&mut self) -> Changed {
        self.authority.root_key.take().ok_or_else(|| Refusal::NotFound("the root's key is not in the log any more".into()))?;
        Ok(Vec::new())
    }

    pub(crate) fn issuing_put(&mut self, issuing: Issuing, requested: bool) -> Changed {
        let a = &mut self.authority;
        if a.issuing.iter().any(|i| i.fingerprint == issuing.fingerprint) || a.retired.iter().any(|r| r.fingerprint == issuing.fingerprint)
        {
            return Err(Refusal::Conflict("this issuing authority was there already".into()));
        }
        if a.issuing.len() >= MOST_ISSUING {
            return Err(Refusal::Limit(format!("there are {MOST_ISSUING} issuing authorities already: retire one first")));
        }
        if requested && a.requested.take().is_none() {
            return Err(Refusal::Conflict("no issuing authority was requested, or its certificate was brought already".into()));
        }
        a.issuing.push(issuing);
        self.issuers_changed()
    }

    pub(crate) fn issuing_requested(&mut self, requested: RequestedIssuing) -> Changed {
        self.authority.requested = Some(requested);
        Ok(Vec::new())
    }

    pub(crate) fn issuing_retire(&mut self, fingerprint: &Fingerprint) -> Changed {
        let (now, a) = (self.now, &mut self.authority);
        let at = a.issuing.iter().position(|i| i.fingerprint == *fingerprint);
        let at = at.ok_or_else(|| Refusal::NotFound(format!("there is no issuing authority {}", hex(fingerprint))))?;
        if at + 1 == a.issuing.len() {
            return Err(Refusal::Conflict("this issuing authority signs: make another one first".into()));
        }
        let gone = a.issuing.remove(at);
        a.retired.retain(|r| now < r.not_after + USABLE_AFTER_ITS_END);
        a.retired.push(Retired { fingerprint: gone.fingerprint, not_after: gone.not_after });
        self.issuers_changed()
    }
}
