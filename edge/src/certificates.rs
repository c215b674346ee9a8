//! Which certificates each host has, and with what session tickets are sealed, after every change of the network.

use parking_lot::Mutex;
use rustls::sign::CertifiedKey;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use tidegate_certs::site::Choice;
use tidegate_certs::tickets::Tickets;
use tidegate_certs::{SiteCertificates, challenge, site};
use tidegate_control_types::certificate::{Challenge, ChallengeAnswer, acme_name, covers, internal_name, is_uploaded_as};
use tidegate_control_types::site::{CertificateChoice, HostPattern};
use tidegate_control_types::{Certificate, SiteState};
use tidegate_node::Network;

pub struct Certificates {
    sites: Arc<SiteCertificates>,
    challenges: Arc<SiteCertificates>,
    tickets: Arc<Tickets>,
    /// What was made of them last: keys are not read anew when something else changes.
    made: Mutex<Made>,
}

#[derive(Default)]
struct Made {
    by_name: BTreeMap<String, (Arc<Certificate>, Arc<CertifiedKey>)>,
    challenges: Vec<(Challenge, Arc<CertifiedKey>)>,
}

impl Certificates {
    #[must_use]
    pub fn new(sites: Arc<SiteCertificates>, challenges: Arc<SiteCertificates>, tickets: Arc<Tickets>) -> Self {
        Self { sites, challenges, tickets, made: Mutex::default() }
    }

    pub fn set(&self, network: &Network) {
        self.tickets.replace(network.ticket_keys.iter().map(|k| k.key.as_slice()));
        let mut made = self.made.lock();
        made.read(network);
        let mut all: HashMap<String, Choice> = HashMap::new();
        for state in network.sites.values() {
            made.of_site(state, &mut all);
        }
        self.sites.replace(all);
        let one = |(c, key): &(Challenge, Arc<CertifiedKey>)| (c.host.clone(), vec![Arc::clone(key)]);
        self.challenges.replace(made.challenges.iter().map(one).collect());
    }
}

impl Made {
    fn read(&mut self, network: &Network) {
        let mut before = std::mem::take(&mut self.by_name);
        for (name, certificate) in network.certificates.iter() {
            let made = match before.remove(name) {
                Some((old, key)) if Arc::ptr_eq(&old, certificate) || old == *certificate => Ok(key),
                _ => site::certified(&certificate.chain, &certificate.key),
            };
            match made {
                Ok(key) => drop(self.by_name.insert(name.clone(), (Arc::clone(certificate), key))),
                Err(error) => tracing::error!(certificate = name, %error, "a certificate is of no use"),
            }
        }
        let mut before = std::mem::take(&mut self.challenges);
        for open in network.challenges.values().flatten() {
            let ChallengeAnswer::TlsAlpn01 { digest } = &open.answer else { continue };
            if let Some(at) = before.iter().position(|(c, _)| c == open) {
                self.challenges.push(before.swap_remove(at));
                continue;
            }
            match challenge::certificate(&open.host, digest) {
                Ok(key) => self.challenges.push((open.clone(), key)),
                Err(error) => tracing::error!(host = open.host, %error, "a challenge cannot be answered"),
            }
        }
    }

    fn of_site(&self, state: &SiteState, all: &mut HashMap<String, Choice>) {
        let spec = &state.spec;
        // Until an authority has made one, the network's own does.
        let wanted: Vec<Vec<&(Arc<Certificate>, Arc<CertifiedKey>)>> = match &spec.tls.certificate {
            CertificateChoice::Internal => vec![self.named(&internal_name(&spec.name))],
            CertificateChoice::Auto => vec![self.named(&acme_name(&spec.name)), self.named(&internal_name(&spec.name))],
            CertificateChoice::Uploaded(name) => vec![self.uploaded(name.as_str())],
        };
        // One that is not shown to be its own may be another site's.
        for host in spec.hosts.iter().filter(|h| !state.unshown.contains(h)) {
            let choice = wanted.iter().map(|group| group.iter().filter(|(c, _)| covers(&c.hosts, host)).map(|(_, key)| Arc::clone(key)));
            let Some(choice) = choice.map(Iterator::collect::<Choice>).find(|choice| !choice.is_empty()) else { continue };
            if *host == HostPattern::Any {
                // The network's own certificate for it is for names of this machine, which a handshake may say, where no site has them.
                for name in ["localhost", "127.0.0.1", "::1"] {
                    all.entry(name.to_owned()).or_insert_with(|| choice.clone());
                }
            }
            all.insert(host.to_string(), choice);
        }
    }

    fn named(&self, name: &str) -> Vec<&(Arc<Certificate>, Arc<CertifiedKey>)> {
        self.by_name.get(name).into_iter().collect()
    }

    /// ECDSA first: it is the cheaper one for both sides.
    fn uploaded(&self, wanted: &str) -> Vec<&(Arc<Certificate>, Arc<CertifiedKey>)> {
        let from = self.by_name.range(format!("{wanted}/")..);
        from.take_while(|(name, _)| is_uploaded_as(name, wanted)).map(|(_, made)| made).collect()
    }
}
