//! What the leader does by itself: authorities and certificates for sites from the internal CA, keys, voters out of learners, and
//! forgetting removed nodes once they can answer nothing any more.

use crate::raft::Members;
use crate::shared::{Control, NotNow};
use crate::{acme, ca, cluster_key, enrol, holding, purge};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tidegate_certs::ca::SITE_DAYS;
use tidegate_certs::{CertError, seal, tickets};
use tidegate_control_types::certificate::{SealedCertificate, internal_name};
use tidegate_control_types::command::SealedTicketKey;
use tidegate_control_types::sealed::{ClusterKeyId, SealedName};
use tidegate_control_types::site::HostPattern;
use tidegate_control_types::{BootTime, Change, Clock, SiteName, WallTime};
use tidegate_node::lifecycle::Stopping;
use zeroize::Zeroizing;

const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Certificates are renewed when less than this is left of their 90 days.
const RENEW_LEFT: Duration = Duration::from_secs(30 * 86_400);
/// Tickets are good for that long, and as long again (RFC 8446 section C.4 wants them short).
const NEW_TICKET_KEY: Duration = Duration::from_secs(12 * 3600);
const RESEAL_EVERY: Duration = Duration::from_secs(60);
const SITE_LIFE: Duration = Duration::from_secs(SITE_DAYS.unsigned_abs() * 86_400);
/// By which a new certificate has to last longer than the one there is.
const WORTH_IT: Duration = Duration::from_secs(86_400);
const TRY_AGAIN: Duration = Duration::from_secs(10);
/// At one look.
const MOST_ISSUED: usize = 200;
/// Where nothing has changed.
const LOOK_AT_ALL: Duration = Duration::from_secs(60);
const WARN_EVERY: Duration = Duration::from_secs(6 * 3600);
const ENDS_SOON: Duration = Duration::from_secs(14 * 86_400);
/// An authority ends after years, and what is to be done may need somebody who holds the root's key.
const AUTHORITY_ENDS_SOON: Duration = Duration::from_secs(180 * 86_400);
const BY: &str = "leader";

/// Runs on every control node, and acts only while it leads.
pub async fn run(control: Arc<Control>, mut stopping: Stopping) {
    let mut changed = control.changed.subscribe();
    let mut warned = None;
    let (mut resealed, mut sites) = (None, Sites::default());
    loop {
        tokio::select! {
            () = tokio::time::sleep(LOOK_EVERY) => {}
            _ = changed.changed() => {}
            () = stopping.stopped() => return,
        }
        if control.leads() {
            once(&control, &mut sites).await;
            reseal(&control, &mut resealed).await;
            let now = control.now();
            if warned.is_none_or(|last| now.since(last) >= WARN_EVERY) {
                warned = Some(now);
                warn_of_ends(&control);
            }
            // However many changes come, the duties look at most a few times a second.
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum NoKey {
    #[error(transparent)]
    NotNow(#[from] NotNow),
    #[error(transparent)]
    Certificates(#[from] CertError),
}

fn needs_ticket_key(control: &Control) -> bool {
    let newest = control.raft.state.read().ticket_keys().last().map(|k| k.made);
    newest.is_none_or(|made| control.clock.wall().since(made) >= NEW_TICKET_KEY)
}

/// A new key for session tickets. Tickets of the one before are good until the next.
///
/// # Errors
/// It could not be made, or this node leads no more.
pub async fn make_ticket_key(control: &Control, by: &str) -> Result<(), NoKey> {
    let made = control.clock.wall();
    let key: Zeroizing<[u8; tickets::KEY_LEN]> = Zeroizing::new(seal::random()?);
    let sealed = control.seal(&SealedName::TicketKey(made), &*key)?;
    control.change(by, Change::TicketKeyPut { key: SealedTicketKey { made, sealed } }).await?;
    Ok(())
}

/// After a change of the cluster key, until nothing is sealed under another one; and now and then, for what was on its way meanwhile.
async fn reseal(control: &Control, done: &mut Option<(ClusterKeyId, BootTime)>) {
    let (current, now) = (control.raft.state.read().cluster_keys.current, control.now());
    if done.is_some_and(|(key, at)| key == current && now.since(at) < RESEAL_EVERY) {
        return;
    }
    match cluster_key::reseal(control, BY).await {
        Ok(true) => *done = Some((current, now)),
        // More of it waits: the next look is at once.
        Ok(false) => control.note_change(),
        Err(error) => tracing::debug!(%error, "secrets are not sealed anew yet"),
    }
}

/// Those who read logs and no figures hear in time of what will end.
fn warn_of_ends(control: &Control) {
    let (now, state) = (control.clock.wall(), control.raft.state.read());
    for c in state.certificates().filter(|c| !c.name.starts_with("internal/")) {
        let (life, left) = (c.not_after.since(c.not_before), c.not_after.since(now));
        // Automatic ones are renewed before; short-lived ones have no fortnight.
        if left < ENDS_SOON.min(life / 4) {
            let days = left.as_secs() / 86_400;
            tracing::warn!(certificate = c.name, hosts = c.hosts.join(" "), days, "a certificate ends soon: see tidegate cert show");
        }
    }
    for (authority, not_after) in ca::ends(&state) {
        let left = not_after.since(now);
        if left < AUTHORITY_ENDS_SOON {
            let days = left.as_secs() / 86_400;
            tracing::warn!(authority, days, "the network's own authority ends soon: see tidegate control ca show");
        }
    }
}

async fn once(control: &Arc<Control>, sites: &mut Sites) {
    if let Err(error) = ca::look(control, BY).await {
        tracing::warn!(%error, "the network's own authority is not as it should be");
    }
    // The other duties have their turn in between.
    for site in sites.without_certificate(control).into_iter().take(MOST_ISSUED) {
        if let Err(error) = issue(control, &site).await {
            tracing::error!(site = %site, error, "no certificate could be issued");
            sites.failed.insert(site, control.now());
            if !control.leads() {
                break;
            }
        }
    }
    if let Some(id) = control.members().await.as_ref().and_then(Members::ready_learner) {
        match enrol::promote(control, id).await {
            Ok(()) => tracing::info!(id, "a control node votes from now on"),
            Err(error) => tracing::debug!(id, %error, "not promoted yet"),
        }
    }
    if needs_ticket_key(control)
        && let Err(error) = make_ticket_key(control, BY).await
    {
        tracing::warn!(%error, "there is no new key for session tickets");
    }
    holding::look(control);
    acme::look(control);
    let now = control.now();
    for (name, removal) in control.with_leadership(|state, l| purge::forgettable(state, l, now)).unwrap_or_default() {
        if control.change(BY, Change::NodeForget { name: name.clone(), removal }).await.is_ok() {
            control.with_leadership(|_, l| l.fleet.forget(&name));
            control.heard.lock().forget(&name);
        }
    }
}

/// The names of a site's certificate. Hosts of `*` are those of a network on one machine.
fn certificate_hosts(hosts: &[HostPattern]) -> Vec<String> {
    hosts
        .iter()
        .flat_map(|h| match h {
            HostPattern::Any => vec!["localhost".into(), "127.0.0.1".into(), "::1".into()],
            other => vec![other.to_string()],
        })
        .collect()
}

/// When all sites were looked at last.
#[derive(Default)]
struct Sites {
    /// With the index of the entry that was the last then, and how long the look took.
    looked: Option<(BootTime, u64, Duration)>,
    /// Those for which it came to nothing: they do not hold up the others.
    failed: BTreeMap<SiteName, BootTime>,
}

impl Sites {
    /// After a change, and now and then; where there are many sites and many changes, a twentieth of the time is spent on it.
    fn without_certificate(&mut self, control: &Control) -> Vec<SiteName> {
        let (now, applied) = (control.now(), control.raft.state.read().applied);
        if let Some((at, last, took)) = self.looked {
            let unchanged = if self.failed.is_empty() { LOOK_AT_ALL } else { TRY_AGAIN };
            let waits = if applied == last { unchanged } else { took * 20 };
            if now.since(at) < waits {
                return Vec::new();
            }
        }
        self.failed.retain(|_, at| now.since(*at) < TRY_AGAIN);
        let mut found = sites_without_certificate(control);
        found.retain(|site| !self.failed.contains_key(site));
        self.looked = Some((now, applied, control.now().since(now)));
        found
    }
}

/// Those that have none first: what is renewed can wait.
fn sites_without_certificate(control: &Control) -> Vec<SiteName> {
    let state = control.raft.state.read();
    let now = control.clock.wall();
    let newest = state.authority.issuing.last();
    // No certificate outlives its authority.
    let attainable = newest.map_or(now, |i| i.not_after).min(now + SITE_LIFE);
    let good = |c: &SealedCertificate, hosts: &[HostPattern]| {
        // What an authority that signs no more has made is made anew, before that is retired.
        let is_newest = c.chain.get(1) == newest.map(|i| &i.certificate);
        let is_long = now + RENEW_LEFT < c.not_after || c.not_after + WORTH_IT > attainable;
        c.hosts == certificate_hosts(hosts) && is_long && is_newest
    };
    let (mut none, mut due) = (Vec::new(), Vec::new());
    for site in state.sites() {
        match state.certificate(&internal_name(site.name())) {
            None => none.push(site.name().clone()),
            Some(c) if !good(c, &site.current().spec.hosts) => due.push(site.name().clone()),
            Some(_) => {}
        }
    }
    none.extend(due);
    none
}

async fn issue(control: &Control, site: &SiteName) -> Result<(), String> {
    let Some(hosts) = control.raft.state.read().site(site.as_str()).map(|s| certificate_hosts(&s.current().spec.hosts)) else {
        return Ok(());
    };
    let now = control.clock.wall();
    let name = internal_name(site);
    let issued = ca::newest(control).map_err(|e| e.to_string())?.issue_site(&hosts, now.as_secs()).map_err(|e| e.to_string())?;
    let sealed_key = control.seal(&SealedName::CertificateKey(name.clone()), &issued.key).map_err(|e| e.to_string())?;
    let not_after = issued.chain.first().and_then(|leaf| tidegate_certs::identity::not_after(leaf).ok()).unwrap_or(0);
    let certificate =
        SealedCertificate { name, chain: issued.chain, sealed_key, hosts, not_before: now, not_after: WallTime(not_after * 1000) };
    control.change(BY, Change::CertificatePut { certificate }).await.map(|_| ()).map_err(|e| e.to_string())
}
