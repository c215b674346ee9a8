//! Enrolment by a one-time join token, and the daily renewal of what it gave.

use crate::clock::random_u64;
use crate::identity::{Credentials, CurrentCredentials};
use crate::link::{self, LinkError, Links, full};
use crate::settings::NodeSettings;
use crate::watch::Watched;
use crate::{NodeError, SystemClock, backoff::Backoff};
use http::Request;
use http_body_util::BodyExt;
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tidegate_certs::tls::Trust;
use tidegate_certs::token::{JoinToken, sha256};
use tidegate_certs::{SealingKey, ca, identity, tls};
use tidegate_control_types::authority::{Fingerprint, Issuers};
use tidegate_control_types::{Clock, NodeState, wire};
use zeroize::Zeroizing;

#[derive(Serialize, Deserialize)]
pub struct EnrolRequest {
    pub join_id: String,
    pub join_secret: [u8; 32],
    pub node: NodeState,
    /// Certificate signing request, DER.
    pub request: Vec<u8>,
}

#[derive(Serialize, Deserialize)]
pub struct EnrolAnswer {
    /// DER, the root last: the join token says which.
    pub chain: Vec<Vec<u8>>,
    /// Issuing authorities that are believed no more.
    pub retired: Vec<Fingerprint>,
    /// For control nodes alone: what a voter needs.
    pub control: Option<ControlSecrets>,
}

#[derive(Serialize, Deserialize)]
pub struct ControlSecrets {
    pub raft_id: u64,
    /// The newest last.
    pub cluster_keys: Vec<Zeroizing<[u8; 32]>>,
}

/// Certificates are renewed when they are older than this.
const RENEW_AFTER: Duration = Duration::from_secs(24 * 3600);
const CALL: Duration = Duration::from_secs(20);
const TRIES: u32 = 30;
const SPREAD_MS: u64 = 2000;
const LIFE_SECS: u64 = ca::NODE_DAYS.unsigned_abs() * 86_400;
/// However little is left of its authority's own life.
const LEAST_BETWEEN: Duration = Duration::from_secs(3600);

/// A join token from its file.
///
/// # Errors
/// The file cannot be read or holds none.
pub fn read_join_token(path: &Path) -> Result<JoinToken, NodeError> {
    let text = std::fs::read_to_string(path).map_err(|e| NodeError::file(path, e))?;
    JoinToken::parse(&text).ok_or_else(|| NodeError::NoJoinToken { path: path.display().to_string() })
}

/// The credentials of an enrolled node: from its data folder, or by enrolling now.
///
/// # Errors
/// There are none and no valid join token, or no control node answers.
pub async fn credentials(settings: &NodeSettings, node: NodeState) -> Result<(Credentials, SealingKey), NodeError> {
    std::fs::create_dir_all(&settings.data).map_err(|e| NodeError::file(&settings.data, e))?;
    let node_key = SealingKey::load_or_create(&settings.node_key)?;
    if let Some(found) = Credentials::load(&settings.data, &node_key)? {
        found.check(&node, &settings.data)?;
        return Ok((found, node_key));
    }
    let role = node.role.as_str();
    let token = settings.join_token_file.as_deref().ok_or(NodeError::NotEnrolled { role })?;
    let token = read_join_token(token)?;
    let (credentials, _) = enrol(&token, &settings.control, node).await?;
    credentials.save(&settings.data, &node_key)?;
    tracing::info!(node = %settings.name, role, cluster = token.cluster, "enrolled");
    Ok((credentials, node_key))
}

/// Asks the control nodes in turn; a refusal is final, silence is not.
///
/// # Errors
/// Refused, or nobody answers for about a minute.
pub async fn enrol(token: &JoinToken, control: &[String], node: NodeState) -> Result<(Credentials, Option<ControlSecrets>), NodeError> {
    let (key, request) = ca::request()?;
    let body = wire::encode(&EnrolRequest { join_id: token.id.clone(), join_secret: token.secret, node, request });
    let name = identity::role_name(&token.cluster, "control");
    let config = Arc::new(tls::enrolling_client(token));
    let mut backoff = Backoff::new(Duration::from_millis(50), Duration::from_secs(3));
    let mut last = String::from("no control node is named");
    for _ in 0..TRIES {
        let mut others = 0;
        for address in control {
            match ask(address, &name, Arc::clone(&config), body.clone()).await {
                Ok(answer) => {
                    let root = answer.chain.last().filter(|root| sha256(root) == token.ca_fingerprint).cloned();
                    let root =
                        root.ok_or_else(|| NodeError::Enrolment("the answer's root is not the one that the join token names".into()))?;
                    let trust = Trust { root, retired: answer.retired };
                    return Ok((Credentials::new(answer.chain, key, trust)?, answer.control));
                }
                Err(Asked::Refused(why)) => return Err(NodeError::Enrolment(why)),
                Err(Asked::Silent(why)) => {
                    others += usize::from(why.contains(tls::OTHER_CA));
                    last = why;
                }
            }
        }
        // All are of another network: asking again changes nothing.
        if others > 0 && others == control.len() {
            break;
        }
        tokio::time::sleep(backoff.next(random_u64())).await;
    }
    Err(NodeError::Enrolment(last))
}

enum Asked {
    Refused(String),
    Silent(String),
}

async fn ask(address: &str, name: &str, config: Arc<rustls::ClientConfig>, body: Vec<u8>) -> Result<EnrolAnswer, Asked> {
    let silent = |e: String| Asked::Silent(e);
    let mut connection = link::connect(address, name, config).await.map_err(|e| silent(e.to_string()))?;
    let request = Request::post("https://node/enrol").body(full(body)).map_err(|e| silent(e.to_string()))?;
    let response = tokio::time::timeout(CALL, connection.send(request)).await.map_err(|_| silent(format!("{address} does not answer")))?;
    let response = response.map_err(|e| silent(format!("{address}: {e}")))?;
    let status = response.status();
    let bytes = response.into_body().collect().await.map_err(|e| silent(e.to_string()))?.to_bytes();
    match status.as_u16() {
        200 => wire::decode(&bytes).map_err(|e| silent(e.to_string())),
        400..=499 => Err(Asked::Refused(String::from_utf8_lossy(&bytes).into_owned())),
        _ => Err(silent(format!("{address} answered {status}: {}", String::from_utf8_lossy(&bytes)))),
    }
}

/// Tells the control plane where the node is reached, in case its settings say something else than when it enrolled.
pub async fn announce(settings: NodeSettings, node: NodeState, links: Arc<Links>) {
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(15));
    let body = wire::encode(&node);
    loop {
        for address in &settings.control {
            match links.call(address, "control", "/node", body.clone(), CALL).await {
                Ok(_) => return,
                Err(LinkError::Refused { status: 400 | 422, detail, .. }) => {
                    return tracing::warn!(node = %node.name, detail, "the control plane does not take what this node says of itself");
                }
                Err(error) => tracing::debug!(%error, "where this node is reached is not told yet"),
            }
        }
        tokio::time::sleep(backoff.next(random_u64())).await;
    }
}

/// Renews the certificate daily, and when another authority issues from now on, for as long as the node runs. A control plane that is
/// away delays it, and says so in the log with the time that is left.
pub async fn renew(settings: NodeSettings, current: CurrentCredentials, node_key: SealingKey, links: Arc<Links>, watched: Arc<Watched>) {
    let mut issuers = watched.issuers.subscribe();
    let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(60));
    let (mut saved, mut not_before) = (true, 0);
    loop {
        let told = issuers.borrow_and_update().clone().unwrap_or_default();
        match current.distrust(&told.retired) {
            Ok(news) => saved &= !news,
            Err(error) => tracing::error!(node = %settings.name, %error, "authorities that were retired are still believed"),
        }
        if !saved {
            let kept = current.get().save(&settings.data, &node_key);
            saved = kept.is_ok();
            if let Err(error) = kept {
                tracing::error!(node = %settings.name, %error, "that authorities were retired is not kept for the next start");
            }
        }
        let (now, credentials) = (SystemClock.wall().as_secs(), current.get());
        let (not_after, is_old) = (credentials.not_after, is_by_another(&told, &credentials));
        let renew_at = (not_after + RENEW_AFTER.as_secs()).saturating_sub(LIFE_SECS).max(not_before);
        if now < renew_at && !is_old {
            let waits = if saved { Duration::from_secs((renew_at - now).min(3600)) } else { backoff.next(random_u64()) };
            let _ = tokio::time::timeout(waits, issuers.changed()).await;
            continue;
        }
        if is_old {
            // Not all nodes at the same moment.
            tokio::time::sleep(Duration::from_millis(random_u64() % SPREAD_MS)).await;
        }
        match renew_once(&settings, &current, &node_key, &links, &told, now >= renew_at).await {
            Ok(()) => {
                backoff.reset();
                not_before = now + LEAST_BETWEEN.as_secs();
                tracing::info!(node = %settings.name, "certificate renewed");
            }
            Err(error) => {
                tracing::warn!(node = %settings.name, seconds_left = not_after.saturating_sub(now), %error, "certificate not renewed");
                tokio::time::sleep(backoff.next(random_u64())).await;
            }
        }
    }
}

fn is_by_another(told: &Issuers, credentials: &Credentials) -> bool {
    told.newest != Fingerprint::default() && told.newest != credentials.issuer
}

/// `is_due`: by its age, so that one of an authority that is no longer the newest is better than none.
async fn renew_once(
    settings: &NodeSettings,
    current: &CurrentCredentials,
    node_key: &SealingKey,
    links: &Links,
    told: &Issuers,
    is_due: bool,
) -> Result<(), NodeError> {
    let (key, request) = ca::request()?;
    let mut last = String::new();
    let mut best = None;
    for address in &settings.control {
        match links.call(address, "control", "/renew", request.clone(), CALL).await {
            Ok(bytes) => {
                let chain = wire::decode::<Vec<Vec<u8>>>(&bytes).map_err(|e| NodeError::Enrolment(e.to_string()));
                match chain.and_then(|chain| Credentials::new(chain, key.clone(), current.get().trust.clone())) {
                    Ok(renewed) if is_by_another(told, &renewed) => {
                        last = format!("{address} has not heard of the newest issuing authority yet");
                        best = Some(renewed);
                    }
                    Ok(renewed) => {
                        best = Some(renewed);
                        break;
                    }
                    Err(e) => last = format!("{address}: {e}"),
                }
            }
            Err(e) => last = e.to_string(),
        }
    }
    match best.filter(|renewed| is_due || !is_by_another(told, renewed)) {
        Some(renewed) => {
            renewed.save(&settings.data, node_key)?;
            current.replace(renewed);
            Ok(())
        }
        None => Err(NodeError::Enrolment(last)),
    }
}
