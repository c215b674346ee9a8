//! One order, from its beginning to the certificate.

use super::{BY, Stop, account, authority, due};
use crate::settings::ChallengeKind;
use crate::shared::{Control, NotNow};
use instant_acme::{
    Account, AuthorizationState, AuthorizationStatus, CertificateIdentifier, ChallengeStatus, ChallengeType, Identifier, KeyAuthorization,
    NewOrder, Order, OrderStatus,
};
use rustls_pki_types::CertificateDer;
use std::sync::Arc;
use std::time::Duration;
use tidegate_certs::{ca, site, upload};
use tidegate_control_types::certificate::{Challenge, ChallengeAnswer, OrderRecord, OrderStep, SealedCertificate, acme_name};
use tidegate_control_types::sealed::SealedName;
use tidegate_control_types::{Change, Clock, Role, SiteName, WallTime};
use tidegate_node::clock::random_u64;

/// Every node that answers challenges has applied them by then, or is cut off.
const TOLD_WITHIN: Duration = Duration::from_secs(15);
const LOOK_AGAIN: Duration = Duration::from_millis(200);
/// For the authority to look at the challenges, and to make the certificate.
const LOOKED_AT_WITHIN: Duration = Duration::from_secs(300);
const MADE_WITHIN: Duration = Duration::from_secs(300);
const FIRST_POLL: Duration = Duration::from_millis(250);
const LONGEST_POLL: Duration = Duration::from_secs(10);
/// That are not taken, beyond those with which each request is repeated.
const MOST_NONCES: u32 = 20;
/// Of the authority's, on end.
const MOST_SILENCES: u32 = 3;
const AFTER_SILENCE: Duration = Duration::from_secs(1);
/// Orders for what is left, in one go.
const MOST_ROUNDS: u32 = 3;
/// As authorities have it.
const MOST_NAMES: usize = 100;

/// Begins an order for these names, or goes on with the one that is under way.
///
/// # Errors
/// This node cannot go on: another leader does.
pub async fn run(control: &Arc<Control>, site: &SiteName, names: Option<Vec<String>>) -> Result<(), NotNow> {
    let Some(settings) = &control.settings.acme else { return Ok(()) };
    let before = control.raft.state.read().order(site.as_str()).cloned();
    let left_out_before = before.as_ref().map(|o| o.left_out.clone()).unwrap_or_default();
    let mut order = match (names, before) {
        (None, None) => return Ok(()),
        (None, Some(order)) => order,
        (Some(names), before) => {
            let failures = before.map_or(0, |o| o.failures);
            match begin(control, site, names, settings.directory.clone(), failures) {
                Ok(order) => order,
                Err(problem) => {
                    tracing::error!(%site, problem, "no order can be begun");
                    return Err(NotNow::Unknown);
                }
            }
        }
    };
    let mut rounds = 0;
    let (problem, is_rate_limited) = loop {
        put(control, &order).await?;
        let stop = match follow_to_the_end(control, &mut order).await {
            Ok(certificate) => {
                tracing::info!(%site, names = order.ordered().join(" "), authority = order.authority, "a certificate was made");
                match control.change(BY, Change::CertificatePut { certificate }).await {
                    Err(NotNow::Refused(why)) => Stop::failed(why.to_string()),
                    other => {
                        other?;
                        no_challenges(control, site).await?;
                        match order.problem.take() {
                            // For those that were left out.
                            Some(problem) if !order.left_out.is_empty() => break (problem, false),
                            _ => return control.change(BY, Change::OrderRemove { site: site.clone() }).await.map(drop),
                        }
                    }
                }
            }
            Err(stop) => stop,
        };
        let (problem, is_rate_limited, unproven) = match stop {
            Stop::NotNow(e) => return Err(e),
            Stop::Failed { problem, is_rate_limited, unproven } => (problem, is_rate_limited, unproven),
            Stop::Nonce | Stop::Away(_) => (stop.to_string(), false, Vec::new()),
            Stop::NoAccount(_) => {
                super::forget_account(control).await?;
                (stop.to_string(), false, Vec::new())
            }
        };
        no_challenges(control, site).await?;
        // Of an order for the others alone, the reason why they are that.
        let problem = [order.problem.take(), Some(problem)].into_iter().flatten().collect::<Vec<_>>().join("; ");
        // What failed the last time too is known to be why, where the authority refuses even to look, or one by one comes to light.
        let again: &[String] = if is_rate_limited || rounds > 0 { &left_out_before } else { &[] };
        let failed = OrderRecord { left_out: order.left_out.iter().chain(&unproven).chain(again).cloned().collect(), ..order.clone() };
        let rest = failed.ordered();
        let is_less = !rest.is_empty() && rest.len() < order.ordered().len() && rounds < MOST_ROUNDS;
        if !is_less || !control.acme.goes_without(&control.raft.state.read(), &failed, control.clock.wall()) {
            order.left_out = failed.left_out;
            break (problem, is_rate_limited);
        }
        rounds += 1;
        tracing::warn!(%site, problem, rest = rest.join(" "), "what cannot be proven is left out of the certificate");
        match begin(control, site, order.names.clone(), order.authority.clone(), order.failures) {
            Ok(new) => order = OrderRecord { left_out: failed.left_out, problem: Some(problem), ..new },
            Err(_) => break (problem, false),
        }
    };
    tracing::warn!(%site, problem, "an order for a certificate failed");
    order.failures = order.failures.saturating_add(1);
    let longest = due::longest_wait(control.raft.state.read().certificate(&acme_name(site))).max(settings.retry);
    let wait = due::next_try(order.failures, settings.retry, is_rate_limited, random_u64());
    let wait = if is_rate_limited { wait } else { wait.min(longest) };
    (order.step, order.problem, order.url) = (OrderStep::Failed, Some(problem), None);
    order.next_try = control.clock.wall() + wait;
    put(control, &order).await
}

async fn no_challenges(control: &Control, site: &SiteName) -> Result<(), NotNow> {
    if control.raft.state.read().challenges(site.as_str()).is_empty() {
        return Ok(());
    }
    control.change(BY, Change::ChallengesPut { site: site.clone(), challenges: Vec::new() }).await.map(drop)
}

/// Follows an order past nonces that are not taken and an authority that is silent for a while.
async fn follow_to_the_end(control: &Arc<Control>, order: &mut OrderRecord) -> Result<SealedCertificate, Stop> {
    let (mut nonces, mut silences) = (0, 0);
    loop {
        let wait = match follow(control, order).await {
            Err(Stop::Nonce) if nonces < MOST_NONCES => {
                nonces += 1;
                FIRST_POLL
            }
            // The order is there still: it is gone on with, and not given up.
            Err(Stop::Away(_)) if silences < MOST_SILENCES => {
                silences += 1;
                AFTER_SILENCE * silences
            }
            followed => return followed,
        };
        tokio::time::sleep(wait).await;
    }
}

fn begin(control: &Control, site: &SiteName, names: Vec<String>, authority: String, failures: u32) -> Result<OrderRecord, String> {
    let (key, _) = ca::request().map_err(|e| e.to_string())?;
    let sealed_key = control.seal(&SealedName::OrderKey(site.clone()), &key).map_err(|e| e.to_string())?;
    let now = control.clock.wall();
    Ok(OrderRecord {
        site: site.clone(),
        names,
        left_out: Vec::new(),
        authority,
        url: None,
        sealed_key,
        began: now,
        step: OrderStep::Ordering,
        failures,
        problem: None,
        next_try: now,
    })
}

async fn put(control: &Control, order: &OrderRecord) -> Result<(), NotNow> {
    control.change(BY, Change::OrderPut { order: Box::new(order.clone()) }).await.map(drop)
}

async fn follow(control: &Arc<Control>, record: &mut OrderRecord) -> Result<SealedCertificate, Stop> {
    let names = record.ordered();
    if names.len() > MOST_NAMES {
        return Err(Stop::failed(format!("the site has {} hosts: an authority takes {MOST_NAMES} in one certificate", names.len())));
    }
    let account = account(control).await?;
    let mut order = match record.url.clone() {
        Some(url) => account.order(url).await?,
        None => {
            let order = place(control, &account, record).await.map_err(|e| about(e, &names))?;
            record.url = Some(order.url().to_owned());
            put(control, record).await?;
            order
        }
    };
    if order.state().status == OrderStatus::Pending {
        record.step = OrderStep::Validating;
        put(control, record).await?;
        open_challenges(control, record, &mut order).await?;
        if !poll(&mut order, LOOKED_AT_WITHIN, |s| s != OrderStatus::Pending).await? {
            return Err(why_pending(&mut order).await);
        }
    }
    let key = control
        .cluster_keys
        .open(&SealedName::OrderKey(record.site.clone()), &record.sealed_key)
        .map_err(|e| Stop::failed(e.to_string()))?;
    if order.state().status == OrderStatus::Ready {
        record.step = OrderStep::Finalizing;
        put(control, record).await?;
        let request = ca::site_request(&key, &names).map_err(|e| Stop::failed(e.to_string()))?;
        order.finalize_csr(&request).await?;
    }
    if !poll(&mut order, MADE_WITHIN, |s| !matches!(s, OrderStatus::Processing | OrderStatus::Ready)).await? {
        return Err(Stop::failed(format!("the authority did not make it within {} s", MADE_WITHIN.as_secs())));
    }
    if order.state().status == OrderStatus::Invalid {
        return Err(why_invalid(&mut order).await);
    }
    let pem = order.certificate().await?.ok_or_else(|| Stop::failed("the authority calls the order done and has no certificate"))?;
    sealed(control, record, &pem, &key)
}

/// Asks the authority for it. Where it takes the place of another, that is named (RFC 9773 section 5): an authority may spare such orders its
/// limits; one that does not want to hear of it is asked without.
async fn place(control: &Control, account: &Account, record: &OrderRecord) -> Result<Order, instant_acme::Error> {
    let names: Vec<_> = record.ordered().into_iter().map(Identifier::Dns).collect();
    let new = || match control.settings.acme.as_ref().and_then(|s| s.profile.as_deref()) {
        Some(profile) => NewOrder::new(&names).profile(profile),
        None => NewOrder::new(&names),
    };
    let replaced = control.acme.replaced(&record.site, &control.raft.state.read()).map(CertificateDer::from);
    if let Some(id) = replaced.as_ref().and_then(|leaf| CertificateIdentifier::try_from(leaf).ok()) {
        match account.new_order(&new().replaces(id)).await {
            Err(error) if !authority::says_something_else(&error) => {
                let site = &record.site;
                tracing::info!(%site, error = authority::words(&error), "the authority takes no order in the place of a certificate");
            }
            placed => return placed,
        }
    }
    account.new_order(&new()).await
}

/// An order that is not taken: where the authority names one host alone, it may do so in words.
fn about(error: instant_acme::Error, names: &[String]) -> Stop {
    let is_about_a_name = ["rejectedIdentifier", "unsupportedIdentifier", "caa"].iter().any(|kind| authority::is(&error, kind));
    match Stop::from(error) {
        Stop::Failed { problem, is_rate_limited, unproven } if is_about_a_name && unproven.is_empty() => {
            let is_word = |name: &&String| problem.split(|c: char| !(c.is_ascii_alphanumeric() || ".-_*".contains(c))).any(|w| w == *name);
            let unproven = names.iter().filter(is_word).cloned().collect();
            Stop::Failed { problem, is_rate_limited, unproven }
        }
        other => other,
    }
}

/// What came, checked: no authority's mistake gets to the edges.
fn sealed(control: &Control, record: &OrderRecord, pem: &str, key: &[u8]) -> Result<SealedCertificate, Stop> {
    let failed = |e: tidegate_certs::CertError| Stop::failed(format!("what the authority made is of no use: {e}"));
    let (chain, facts) = upload::read_chain(pem.as_bytes(), control.clock.wall().as_secs()).map_err(failed)?;
    site::certified(&chain, key).map_err(failed)?;
    let hosts = record.ordered();
    if let Some(missing) = hosts.iter().find(|n| !facts.names.contains(n)) {
        return Err(Stop::failed(format!("what the authority made is not for {missing}")));
    }
    let name = acme_name(&record.site);
    let sealed_key = control.seal(&SealedName::CertificateKey(name.clone()), key).map_err(failed)?;
    let (not_before, not_after) = (WallTime(facts.not_before * 1000), WallTime(facts.not_after * 1000));
    Ok(SealedCertificate { name, chain, sealed_key, hosts, not_before, not_after })
}

/// Puts the answers where the authority will look, waits until all nodes give them, and says so.
async fn open_challenges(control: &Arc<Control>, record: &OrderRecord, order: &mut Order) -> Result<(), Stop> {
    let (mut open, mut chosen, mut wrong) = (Vec::new(), Vec::new(), Vec::new());
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        let mut authorization = authorization?;
        match authorization.status {
            AuthorizationStatus::Pending => {
                let name = authorization.identifier().to_string();
                let Some((kind, wanted)) = choose(control, record, &authorization) else {
                    wrong.push((format!("the authority offers no challenge for {name} that may be used here"), name));
                    continue;
                };
                let host = name.trim_start_matches("*.").to_owned();
                chosen.push((name, wanted.clone()));
                let challenge = authorization.challenge(wanted).ok_or_else(|| Stop::failed("a challenge is gone"))?;
                open.push(Challenge { host, answer: answer(kind, &challenge.token, &challenge.key_authorization()) });
            }
            AuthorizationStatus::Valid => {}
            status => {
                let name = authorization.identifier().to_string();
                wrong.push((format!("the authorization of {name} is {status:?}"), name));
            }
        }
    }
    if !wrong.is_empty() {
        let (problems, unproven): (Vec<_>, _) = wrong.into_iter().unzip();
        return Err(Stop::Failed { problem: problems.join("; "), is_rate_limited: false, unproven });
    }
    let site = record.site.clone();
    let told = control.change(BY, Change::ChallengesPut { site, challenges: open.clone() }).await?;
    let by_dns = open.iter().any(|c| matches!(c.answer, ChallengeAnswer::Dns01 { .. }));
    told_everywhere(control, told, if by_dns { &[Role::Dns, Role::Edge] } else { &[Role::Edge] }).await?;
    let mut authorizations = order.authorizations();
    while let Some(authorization) = authorizations.next().await {
        let mut authorization = authorization?;
        let name = authorization.identifier().to_string();
        let Some((_, wanted)) = chosen.iter().find(|(n, _)| *n == name) else { continue };
        if let Some(mut challenge) = authorization.challenge(wanted.clone())
            && challenge.status == ChallengeStatus::Pending
        {
            challenge.set_ready().await?;
        }
    }
    Ok(())
}

/// By which challenge a name is proven this time: after a failure the next kind has its turn.
fn choose(control: &Control, record: &OrderRecord, authorization: &AuthorizationState) -> Option<(ChallengeKind, ChallengeType)> {
    let kinds: &[ChallengeKind] = match &control.settings.acme {
        Some(settings) if !authorization.wildcard => &settings.challenges,
        _ => &[ChallengeKind::Dns01],
    };
    let offered = |kind: &ChallengeKind| {
        let wanted = match kind {
            ChallengeKind::Http01 => ChallengeType::Http01,
            ChallengeKind::TlsAlpn01 => ChallengeType::TlsAlpn01,
            ChallengeKind::Dns01 => ChallengeType::Dns01,
        };
        authorization.challenges.iter().any(|c| c.r#type == wanted).then_some((*kind, wanted))
    };
    let offered: Vec<_> = kinds.iter().filter_map(offered).collect();
    let turn = usize::try_from(record.failures).unwrap_or(0) % offered.len().max(1);
    offered.into_iter().nth(turn)
}

fn answer(kind: ChallengeKind, token: &str, key: &KeyAuthorization) -> ChallengeAnswer {
    match kind {
        ChallengeKind::Http01 => ChallengeAnswer::Http01 { token: token.to_owned(), key_authorization: key.as_str().to_owned() },
        ChallengeKind::TlsAlpn01 => ChallengeAnswer::TlsAlpn01 { digest: key.digest().as_ref().to_vec() },
        ChallengeKind::Dns01 => ChallengeAnswer::Dns01 { value: key.dns_value() },
    }
}

/// Until every node of these roles that is attached has applied the entry; one that is cut off is named nowhere soon.
async fn told_everywhere(control: &Control, index: u64, roles: &[Role]) -> Result<(), NotNow> {
    let mut changed = control.changed.subscribe();
    let told = async {
        loop {
            let now = control.now();
            let all = control.with_leadership(|state, l| {
                // A new leader does not know yet who is attached.
                if !l.fleet.knows_all(now) {
                    return false;
                }
                let mut asked = state.nodes().filter(|n| n.removed.is_none() && roles.contains(&n.state.role));
                asked.all(|n| {
                    let name = &n.state.name;
                    !l.fleet.attached(name, now) || l.fleet.acked_index(name).is_some_and(|acked| acked >= index)
                })
            });
            if all.ok_or(NotNow::NoLeader)? {
                return Ok(());
            }
            let _ = tokio::time::timeout(LOOK_AGAIN, changed.changed()).await;
        }
    };
    let told = tokio::time::timeout(TOLD_WITHIN, told).await;
    told.unwrap_or_else(|_| {
        tracing::warn!("not every node has the answers to an authority's challenges yet");
        Ok(())
    })
}

/// Asks how the order is until that satisfies, at most for so long; false where it did not.
async fn poll(order: &mut Order, within: Duration, is_enough: impl Fn(OrderStatus) -> bool) -> Result<bool, Stop> {
    let mut wait = FIRST_POLL;
    let polled = async {
        loop {
            if is_enough(order.state().status) {
                return Ok(true);
            }
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(LONGEST_POLL);
            order.refresh().await?;
        }
    };
    tokio::time::timeout(within, polled).await.unwrap_or(Ok(false))
}

/// Names that the authority has not made up its mind about.
async fn why_pending(order: &mut Order) -> Stop {
    let mut unproven = Vec::new();
    let mut authorizations = order.authorizations();
    while let Some(Ok(mut authorization)) = authorizations.next().await {
        if authorization.refresh().await.is_ok() && authorization.status != AuthorizationStatus::Valid {
            unproven.push(authorization.identifier().to_string());
        }
    }
    let problem = format!("the authority was not done within {} s with {}", LOOKED_AT_WITHIN.as_secs(), unproven.join(", "));
    Stop::Failed { problem, is_rate_limited: false, unproven }
}

/// Which name was not proven, and what the authority saw.
async fn why_invalid(order: &mut Order) -> Stop {
    let (mut found, mut unproven) = (Vec::new(), Vec::new());
    let mut is_rate_limited = false;
    let mut authorizations = order.authorizations();
    while let Some(Ok(mut authorization)) = authorizations.next().await {
        if authorization.refresh().await.is_err() {
            continue;
        }
        for challenge in &authorization.challenges {
            if let Some(error) = &challenge.error {
                let said = instant_acme::Error::Api(error.clone());
                is_rate_limited |= super::authority::is_rate_limit(&said);
                // One that is tried again has one too (section 8.2).
                if challenge.status == ChallengeStatus::Invalid {
                    unproven.push(authorization.identifier().to_string());
                }
                found.push(format!("{} by {:?}: {}", authorization.identifier(), challenge.r#type, super::authority::words(&said)));
            }
        }
    }
    if let Some(error) = &order.state().error
        && found.is_empty()
    {
        let said = instant_acme::Error::Api(error.clone());
        is_rate_limited = super::authority::is_rate_limit(&said);
        unproven = super::authority::named(error);
        found.push(super::authority::words(&said));
    }
    let problem = if found.is_empty() { "the authority refused the order, and says no more".to_owned() } else { found.join("; ") };
    Stop::Failed { problem, is_rate_limited, unproven }
}
