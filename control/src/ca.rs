//! The network's own authority, at the leader. While the root's key is in the log the leader makes issuing authorities by itself, a year
//! apart; once an operator has taken it offline, the operator does. A new one signs at once and is believed at once, since all nodes
//! trust the root; an old one is believed until it is retired, which waits until no node shows anything of it.

use crate::ControlError;
use crate::shared::{CHANGE_TIMEOUT, Control, NotNow};
use std::sync::Arc;
use std::time::Duration;
use tidegate_certs::ca::{LATE_DAYS, NODE_DAYS, SITE_DAYS, check_issuing, request};
use tidegate_certs::{Ca, CertError, Root, identity};
use tidegate_control_state::State;
use tidegate_control_types::authority::{Fingerprint, Issuing, RequestedIssuing, hex};
use tidegate_control_types::sealed::SealedName;
use tidegate_control_types::{Change, Clock, WallTime, wire};

/// By which a new one has to last longer than the last.
const WORTH_IT: Duration = Duration::from_secs(30 * 86_400);
/// The next one is made when less than this is left of an issuing authority's three years.
const RENEW_LEFT: Duration = Duration::from_secs(2 * 365 * 86_400);

#[derive(Debug, thiserror::Error)]
pub enum CaError {
    #[error(transparent)]
    NotNow(#[from] NotNow),
    #[error(transparent)]
    Certificate(#[from] CertError),
    #[error("the root's key is not in the log: bring it a request (tidegate control ca request, sign, install)")]
    RootIsAway,
    #[error("no issuing authority was requested, or its certificate was brought already: tidegate control ca request")]
    NotRequested,
    #[error(
        "{nodes} may still show a certificate of this issuing authority, and could never renew it: wait until they have, remove them, or retire it with --force and enrol them anew"
    )]
    InUse { nodes: String },
}

/// The issuing authority that signs now.
///
/// # Errors
/// The state holds none yet, or the cluster key is another cluster's.
pub fn newest(control: &Control) -> Result<Ca, ControlError> {
    let (root, newest) = {
        let state = control.raft.state.read();
        (state.founding.root.clone(), state.authority.issuing.last().cloned())
    };
    let newest = newest.ok_or(ControlError::NoCa)?;
    let key = control.cluster_keys.open(&SealedName::IssuingKey(newest.fingerprint), &newest.sealed_key)?;
    Ok(Ca::open(&root, &newest.certificate, &key)?)
}

/// An issuing authority as the log takes it; `seal` seals its private key.
///
/// # Errors
/// The certificate is damaged, or the key cannot be sealed.
pub fn issuing(
    certificate: Vec<u8>,
    now: WallTime,
    seal: impl FnOnce(&SealedName) -> Result<Vec<u8>, CertError>,
) -> Result<Issuing, CertError> {
    let fingerprint = identity::key_fingerprint(&certificate)?;
    let not_after = WallTime(identity::not_after(&certificate)? * 1000);
    let sealed_key = seal(&SealedName::IssuingKey(fingerprint))?;
    Ok(Issuing { fingerprint, certificate, sealed_key, not_before: now, not_after })
}

/// Makes an issuing authority with the root that is in the log.
///
/// # Errors
/// The root's key is not there, or the change was not made.
pub async fn rotate(control: &Control, by: &str) -> Result<Fingerprint, CaError> {
    let (root, sealed) = {
        let state = control.raft.state.read();
        (state.founding.root.clone(), state.authority.root_key.clone().ok_or(CaError::RootIsAway)?)
    };
    let root = Root::open(&root, &control.cluster_keys.open(&SealedName::RootKey, &sealed)?)?;
    let now = control.clock.wall();
    let (certificate, key) = root.make_issuing(now.as_secs())?;
    put(control, by, certificate, &key, false).await
}

async fn put(control: &Control, by: &str, certificate: Vec<u8>, key: &[u8], requested: bool) -> Result<Fingerprint, CaError> {
    let issuing = issuing(certificate, control.clock.wall(), |name| control.seal(name, key))?;
    let fingerprint = issuing.fingerprint;
    control.change(by, Change::IssuingPut { issuing, requested }).await?;
    tracing::info!(issuing = hex(&fingerprint), by, "a new issuing authority signs");
    Ok(fingerprint)
}

/// A key for an issuing authority, and the request that the root, which is offline, is to sign: DER.
///
/// # Errors
/// The change was not made.
pub async fn make_request(control: &Control, by: &str) -> Result<Vec<u8>, CaError> {
    let (key, request) = request()?;
    let sealed_key = control.seal(&SealedName::RequestedIssuing, &key)?;
    let requested = RequestedIssuing { request: request.clone(), sealed_key };
    control.change(by, Change::IssuingRequest { requested }).await?;
    Ok(request)
}

/// What the root made of the request.
///
/// # Errors
/// It made something else, or the change was not made.
pub async fn install(control: &Control, by: &str, certificate: Vec<u8>) -> Result<Fingerprint, CaError> {
    let (root, requested) = {
        let state = control.raft.state.read();
        (state.founding.root.clone(), state.authority.requested.clone().ok_or(CaError::NotRequested)?)
    };
    check_issuing(&certificate, &requested.request, &root, control.clock.wall().as_secs())?;
    let key = control.cluster_keys.open(&SealedName::RequestedIssuing, &requested.sealed_key)?;
    put(control, by, certificate, &key, true).await
}

/// Nobody believes what it signed from now on. `force`: not even nodes that can get nothing else any more.
///
/// # Errors
/// It signs now, a node still needs it, or the change was not made.
pub async fn retire(control: &Arc<Control>, by: &str, fingerprint: &Fingerprint, force: bool) -> Result<(), CaError> {
    // What is not there, or signs, is refused by the state.
    let is_old = {
        let state = control.raft.state.read();
        state.authority.issuing.iter().rev().skip(1).any(|i| i.fingerprint == *fingerprint)
    };
    if is_old && !force {
        let in_use: Vec<_> = shown(control).await.into_iter().filter(|(_, by)| by.is_none_or(|by| by == *fingerprint)).collect();
        if !in_use.is_empty() {
            return Err(CaError::InUse { nodes: in_use.into_iter().map(|(name, _)| name).collect::<Vec<_>>().join(", ") });
        }
    }
    control.change(by, Change::IssuingRetire { fingerprint: *fingerprint }).await?;
    tracing::info!(issuing = hex(fingerprint), by, "an issuing authority is believed no more");
    Ok(())
}

/// Every node, with the issuing authority whose certificate it shows; `None` where it has not said.
pub async fn shown(control: &Arc<Control>) -> Vec<(String, Option<Fingerprint>)> {
    let all = control.with_leadership(|state, l| {
        let nodes = state.nodes().filter(|n| n.removed.is_none() && n.state.role.follows());
        let of = |name| l.fleet.report(name).map(|(r, _)| r.issuer);
        let nodes: Vec<_> = nodes.map(|n| (n.state.name.to_string(), of(&n.state.name))).collect();
        let members: Vec<_> = state.members().map(|(id, name, address)| (id, name.to_string(), address.to_owned())).collect();
        (nodes, members)
    });
    let (mut nodes, members) = all.unwrap_or_default();
    for (id, name, address) in members {
        let issuer = if id == control.raft.id {
            Some(control.credentials.get().issuer)
        } else {
            let path = format!("/issuer?log={}", control.log());
            let said = control.links.call(&address, "control", &path, Vec::new(), CHANGE_TIMEOUT / 4).await;
            said.ok().and_then(|bytes| wire::decode(&bytes).ok())
        };
        nodes.push((name, issuer));
    }
    nodes
}

/// What is due: a new issuing authority, or the end of one of which nothing can be of any use any more.
///
/// # Errors
/// The change was not made.
pub async fn look(control: &Arc<Control>, by: &str) -> Result<(), CaError> {
    let now = control.clock.wall();
    let (is_due, useless) = {
        let state = control.raft.state.read();
        (is_due(&state, now), useless(&state, now))
    };
    if let Some(fingerprint) = useless {
        retire(control, by, &fingerprint, true).await?;
    }
    if is_due {
        rotate(control, by).await?;
    }
    Ok(())
}

/// When the root and the issuing authority that signs end.
#[must_use]
pub fn ends(state: &State) -> Vec<(&'static str, WallTime)> {
    let root = identity::not_after(&state.founding.root).ok().map(|secs| ("root", WallTime(secs * 1000)));
    let issuing = state.authority.issuing.last().map(|i| ("issuing", i.not_after));
    root.into_iter().chain(issuing).collect()
}

fn is_due(state: &State, now: WallTime) -> bool {
    // Near the root's own end another one lasts no longer than the last.
    let root_end = identity::not_after(&state.founding.root).map_or(WallTime(0), |secs| WallTime(secs * 1000));
    let lasts_longer = |i: &Issuing| root_end.since(i.not_after) > WORTH_IT;
    let newest = state.authority.issuing.last();
    state.authority.root_key.is_some() && newest.is_some_and(|i| i.not_after.since(now) < RENEW_LEFT && lasts_longer(i))
}

/// The newest that followed it has signed for longer than anything of it is good for, if only for its own renewal.
fn useless(state: &State, now: WallTime) -> Option<Fingerprint> {
    let days = LATE_DAYS + u64::try_from(NODE_DAYS.max(SITE_DAYS)).unwrap_or(0);
    let after = |next: &Issuing| now.since(next.not_before) > Duration::from_secs(days * 86_400);
    state.authority.issuing.windows(2).find_map(|pair| match pair {
        [old, next] if after(next) => Some(old.fingerprint),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn day(n: u64) -> WallTime {
        WallTime(n * 86_400_000)
    }

    fn made(at: u64) -> Issuing {
        let fingerprint = [u8::try_from(at % 251).unwrap(); 32];
        Issuing { fingerprint, certificate: vec![], sealed_key: vec![], not_before: day(at), not_after: day(at + 1095) }
    }

    #[test]
    fn one_is_made_each_year_while_the_root_is_there_and_the_last_ends_when_nothing_of_it_is_good() {
        let mut state = State::nothing_yet();
        state.founding.root = Root::create("main", day(1000).as_secs()).unwrap().0.certificate().to_vec();
        assert!(!is_due(&state, day(5000)), "nothing is founded yet");
        state.authority.issuing.push(made(1000));
        assert!(!is_due(&state, day(1900)), "the root is offline");
        state.authority.root_key = Some(vec![1]);
        assert!(!is_due(&state, day(1364)) && is_due(&state, day(1366)));
        state.authority.issuing.push(made(1366));
        assert!(!is_due(&state, day(1367)));
        // The root lasts for twenty years.
        state.authority.issuing.push(Issuing { not_after: day(8290), ..made(7300) });
        assert!(!is_due(&state, day(8200)), "another one would last no longer");
        state.authority.issuing.pop();
        assert_eq!(useless(&state, day(1366 + 180)), None);
        assert_eq!(useless(&state, day(1366 + 181)), Some(made(1000).fingerprint));
    }
}
