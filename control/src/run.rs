//! A control node, running.

use crate::cluster_key::ClusterKeys;
use crate::heard::Relayed;
use crate::raft::{Driver, DriverSettings, RedbDisk};
use crate::settings::ControlSettings;
use crate::shared::{Control, NotNow};
use crate::{ControlError, api, ca as authority, cluster_key, duties, enrol, init, peers, questions, watch};
use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Limited};
use hyper::body::Incoming;
use parking_lot::Mutex;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tidegate_certs::{KeyId, NodeIdentity, SealingKey, ca, site};
use tidegate_control_state::{Enrolment, State};
use tidegate_control_types::authority::Fingerprint;
use tidegate_control_types::explain::Asked;
use tidegate_control_types::{Clock, Incarnation, NodeName, NodeState, Role, wire};
use tidegate_node::lifecycle::{Stopping, notify_systemd};
use tidegate_node::link::{LinkError, full};
use tidegate_node::metrics::Metrics;
use tidegate_node::serve::{CurrentTls, MutualTls, Peer, Transport, serve};
use tidegate_node::{Body, Credentials, CurrentCredentials, NodeError, admin, listen};

/// The longest message that one control node takes from another, in bytes.
const MOST_BODY: usize = wire::MAX_FRAME;
/// What a node says of itself, with the request for its certificate.
const MOST_SAID: usize = 64 << 10;
const API_CERTIFICATE_SECS: u64 = 86_400;
const REPLAYED_WITHIN: Duration = Duration::from_secs(10);
const WAITS_FOR_LOG: Duration = Duration::from_secs(1);

/// The listeners of a control node, bound before anything runs.
pub struct Bound {
    node: Vec<TcpListener>,
    api: Vec<TcpListener>,
    api_https: Vec<TcpListener>,
    admin: TcpListener,
}

fn addresses(listeners: &[TcpListener]) -> Vec<SocketAddr> {
    listeners.iter().filter_map(|l| l.local_addr().ok()).collect()
}

impl Bound {
    /// # Errors
    /// An address cannot be bound.
    pub fn bind(settings: &ControlSettings) -> Result<Self, NodeError> {
        let all = |list: &[SocketAddr]| list.iter().map(|a| listen::bind(*a)).collect::<Result<Vec<_>, _>>();
        Ok(Self {
            node: all(&settings.listen)?,
            api: all(&settings.api)?,
            api_https: all(&settings.api_https)?,
            admin: listen::bind(settings.admin)?,
        })
    }

    #[must_use]
    pub fn node(&self) -> Vec<SocketAddr> {
        addresses(&self.node)
    }

    #[must_use]
    pub fn api(&self) -> Vec<SocketAddr> {
        addresses(&self.api)
    }

    #[must_use]
    pub fn admin(&self) -> Option<SocketAddr> {
        self.admin.local_addr().ok()
    }
}

/// Runs until told to stop.
///
/// # Errors
/// The node cannot start, or its disk fails.
pub async fn run(mut settings: ControlSettings, bound: Bound, mut stopping: Stopping) -> Result<(), ControlError> {
    if !RedbDisk::exists(&settings.data) {
        return Err(ControlError::NoLog(settings.data.display().to_string()));
    }
    if settings.address.is_none() {
        settings.address = bound.node().first().map(ToString::to_string);
    }
    let node_key = SealingKey::load(&settings.node_key)?;
    let cluster_keys = ClusterKeys::load(&settings.cluster_key)?;
    let id = init::read_raft_id(&settings)?;
    let credentials =
        Credentials::load(&settings.data, &node_key)?.ok_or_else(|| ControlError::NoLog(settings.data.display().to_string()))?;
    credentials.check(&init::node_state(&settings), &settings.data)?;
    let credentials = CurrentCredentials::new(credentials);
    let driver_settings = DriverSettings {
        id,
        election_ticks: settings.raft.election_ticks,
        heartbeat_ticks: settings.raft.heartbeat_ticks,
        snapshot_every: settings.raft.snapshot_every,
        keep_entries: settings.raft.snapshot_every / 10,
    };
    let driver =
        Driver::new(RedbDisk::open(&settings.data)?, driver_settings, State::nothing_yet(), Box::new(tidegate_node::clock::random_u64))?;
    let asked = settings.raft.lease;
    let (control, thread) = Control::start(driver, settings, credentials, cluster_keys)?;
    let founding = control.raft.state.read().founding.clone();
    if let (Some(asked), false) = (asked.filter(|asked| *asked != founding.lease), founding.cluster.is_empty()) {
        tracing::warn!(?asked, founded = ?founding.lease, "the network keeps the lease that it was founded with: [raft] lease does nothing");
    }
    let mut failed = control.failed.subscribe();

    let metrics = Metrics::new("control", control.settings.name.as_str());
    let figures = Figures::register(&metrics);
    metrics.register(|r| r.register_collector(Box::new(Expiries(Arc::clone(&control)))));
    let ready = Arc::clone(&control);
    let readiness: admin::Readiness =
        Arc::new(move || if ready.raft.leader.load(Ordering::Acquire) > 0 { Ok(()) } else { Err("no leader is known".into()) });
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(admin::serve(bound.admin, metrics, readiness, stopping.clone()));
    for listener in bound.node {
        let (c, s) = (Arc::clone(&control), stopping.clone());
        let answer = move |request, peer| node_request(Arc::clone(&c), request, peer, s.clone());
        tasks.spawn(serve(listener, Transport::Mutual(MutualTls::new(control.credentials.clone(), true)), answer, stopping.clone()));
    }
    let router = api::router(Arc::clone(&control));
    let from_client = move |request, _peer: Peer| api::answer(router.clone(), request);
    for listener in bound.api {
        tasks.spawn(serve(listener, Transport::Clear, from_client.clone(), stopping.clone()));
    }
    if !bound.api_https.is_empty() {
        let tls = api_tls(&control);
        for listener in bound.api_https {
            tasks.spawn(serve(listener, Transport::Tls(Arc::clone(&tls)), from_client.clone(), stopping.clone()));
        }
    }
    tasks.spawn(watch::relay(Arc::clone(&control), stopping.clone()));
    tasks.spawn(duties::run(Arc::clone(&control), stopping.clone()));
    tasks.spawn(figures.keep(Arc::clone(&control), stopping.clone()));
    tasks.spawn(needs_key(Arc::clone(&control), stopping.clone()));
    tasks.spawn(renew_own(Arc::clone(&control), node_key, stopping.clone()));
    notify_systemd("READY=1");
    tracing::info!(node = %control.settings.name, id, "this control node runs");
    tokio::select! {
        () = stopping.stopped() => {}
        _ = failed.wait_for(Option::is_some) => {}
    }
    notify_systemd("STOPPING=1");
    let why = failed.borrow().clone();
    if let Some(error) = why {
        return Err(ControlError::Stopped(error));
    }
    // A leader that goes hands over first, so that nobody waits for an election.
    if control.leads() {
        hand_over(&control).await;
    }
    let _ = tokio::time::timeout(Duration::from_secs(2), tasks.join_all()).await;
    control.stop();
    let _ = tokio::task::spawn_blocking(move || thread.join()).await;
    Ok(())
}

async fn hand_over(control: &Control) {
    let Some(members) = control.members().await else { return };
    let Some(to) = members.voters.iter().copied().find(|id| *id != control.raft.id) else { return };
    control.input(crate::raft::Input::Transfer { to });
    let mut changed = control.changed.subscribe();
    let handed = async {
        while control.leads() {
            if changed.changed().await.is_err() {
                return;
            }
        }
    };
    let _ = tokio::time::timeout(Duration::from_secs(2), handed).await;
}

/// The API's TLS: a certificate for its names, of the issuing authority that signs, made anew a day after its making. None until this
/// node, where it joins, has learnt the authority's key with the log.
fn api_tls(control: &Arc<Control>) -> CurrentTls {
    type Made = (Fingerprint, u64, Arc<rustls::ServerConfig>);
    let (control, made) = (Arc::clone(control), Mutex::<Option<Made>>::default());
    Arc::new(move || {
        let now = control.clock.wall().as_secs();
        let newest = control.raft.state.read().authority.issuers().newest;
        let mut made = made.lock();
        if let Some((by, at, config)) = made.as_ref()
            && *by == newest
            && now.abs_diff(*at) < API_CERTIFICATE_SECS
        {
            return Some(Arc::clone(config));
        }
        match api_config(&control, now) {
            Ok(config) => {
                let config = Arc::new(config);
                *made = Some((newest, now, Arc::clone(&config)));
                Some(config)
            }
            Err(error) => {
                tracing::warn!(%error, "the API over TLS has no certificate");
                // An older one is better than none.
                made.as_ref().map(|(.., config)| Arc::clone(config))
            }
        }
    })
}

fn api_config(control: &Control, now: u64) -> Result<rustls::ServerConfig, ControlError> {
    let issued = authority::newest(control)?.issue_site(&control.settings.api_names, now)?;
    let resolver = tidegate_certs::SiteCertificates::default();
    resolver.replace([("*".to_owned(), vec![site::certified(&issued.chain, &issued.key)?])].into());
    let mut config = rustls::ServerConfig::builder().with_no_client_auth().with_cert_resolver(Arc::new(resolver));
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

/// Every control node took the cluster key before it began to seal: one that has lost it since is of no use as a leader, and ends.
async fn needs_key(control: Arc<Control>, mut stopping: Stopping) {
    let mut changed = control.changed.subscribe();
    loop {
        let missing = || {
            let seals = KeyId(control.raft.state.read().cluster_keys.current);
            (seals != KeyId::default() && control.cluster_keys.ring().key(seals).is_none()).then_some(seals)
        };
        if missing().is_some() {
            // What has just begun applies its log first, and may be past that key then.
            tokio::time::sleep(REPLAYED_WITHIN).await;
        }
        if let Some(seals) = missing().filter(|_| control.raft.leader.load(Ordering::Acquire) > 0) {
            let why = format!("the network seals with the key {seals}, which this node has not: give it the keys of another control node");
            return control.end(why);
        }
        tokio::select! {
            _ = changed.changed() => {}
            () = stopping.stopped() => return,
        }
    }
}

/// A control node has the CA at hand and renews its own certificate: daily, and when another authority issues from now on.
async fn renew_own(control: Arc<Control>, node_key: SealingKey, mut stopping: Stopping) {
    let (mut wait, mut saved, mut not_before) = (Duration::ZERO, true, 0);
    let mut changed = control.changed.subscribe();
    loop {
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            _ = changed.changed(), if wait > WAITS_FOR_LOG => {}
            () = stopping.stopped() => return,
        }
        wait = Duration::from_secs(3600);
        let issuers = control.raft.state.read().authority.issuers();
        match control.credentials.distrust(&issuers.retired) {
            Ok(news) => saved &= !news,
            Err(error) => tracing::error!(%error, "authorities that were retired are still believed"),
        }
        if !saved {
            let kept = control.credentials.get().save(&control.settings.data, &node_key);
            saved = kept.is_ok();
            if let Err(error) = kept {
                wait = WAITS_FOR_LOG;
                tracing::error!(%error, "that authorities were retired is not kept for the next start");
            }
        }
        let (old, now) = (control.credentials.get(), control.clock.wall().as_secs());
        let is_fresh = now < not_before || old.not_after.saturating_sub(now) > u64::try_from((ca::NODE_DAYS - 1) * 86_400).unwrap_or(0);
        if is_fresh && (issuers.newest == old.issuer || issuers.newest == Fingerprint::default()) {
            continue;
        }
        let renewed = ca::request().map_err(ControlError::from).and_then(|(key, request)| {
            let chain = authority::newest(&control)?.sign_node(&request, &old.identity, now)?;
            Ok(Credentials::new(chain, key, old.trust.clone())?)
        });
        match renewed.and_then(|c| c.save(&control.settings.data, &node_key).map(|()| c).map_err(Into::into)) {
            Ok(c) => {
                tracing::info!(node = %control.settings.name, "certificate renewed");
                // However little is left of the authority's own life.
                not_before = now + 3600;
                control.credentials.replace(c);
            }
            Err(error) => {
                // It waits for the log, which has the CA's key.
                wait = WAITS_FOR_LOG;
                tracing::warn!(%error, "certificate not renewed");
            }
        }
    }
}

fn plain(status: StatusCode, body: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(full(body));
    *response.status_mut() = status;
    response
}

/// Requests of other nodes. Who may do what is decided by the certificate alone.
async fn node_request(control: Arc<Control>, request: Request<Incoming>, peer: Peer, stopping: Stopping) -> Response<Body> {
    let role = peer.identity.as_ref().and_then(|i| i.role.parse::<Role>().ok());
    let path = request.uri().path().to_owned();
    if peer.is_late && !matches!(path.as_str(), "/renew" | "/enrol") {
        return plain(StatusCode::FORBIDDEN, "this node's certificate has expired: it has to renew it first");
    }
    match (path.as_str(), role, peer.identity) {
        ("/enrol", _, _) => enrol_request(&control, request).await,
        ("/watch", Some(role), Some(who)) if role.follows() => match who.name.parse::<NodeName>() {
            // A leader of yesterday, or one that has not applied all yet, may not know a node that has just enrolled.
            Ok(_) if enrol::enrolment(&control, &who) == Enrolment::Ahead && control.read_barrier().await.is_err() => {
                plain(StatusCode::SERVICE_UNAVAILABLE, "this node is not known here")
            }
            // One that was removed is told so, and says when it has ended.
            Ok(name) => match enrol::enrolment(&control, &who) {
                Enrolment::Stands | Enrolment::Removed(_) => watch::open(&control, name, (role, who), request.into_body(), stopping),
                Enrolment::Over | Enrolment::Ahead => plain(StatusCode::GONE, "the network removed this node"),
            },
            Err(e) => plain(StatusCode::FORBIDDEN, e.to_string()),
        },
        ("/node", Some(role), Some(who)) if role.follows() => {
            let bytes = match body(request, MOST_SAID).await {
                Ok(b) => b,
                Err(r) => return r,
            };
            match (wire::decode::<NodeState>(&bytes), enrol::enrolment(&control, &who)) {
                (Err(e), _) => plain(StatusCode::BAD_REQUEST, e.to_string()),
                // The leader may know better than this one.
                (Ok(mut node), Enrolment::Stands) if node.name.as_str() == who.name => {
                    node.since = who.enrolled;
                    announced(&control, node).await
                }
                (Ok(_), Enrolment::Ahead) => plain(StatusCode::SERVICE_UNAVAILABLE, "this node is not known here yet"),
                (Ok(_), _) => plain(StatusCode::FORBIDDEN, "this node is not, or no longer, what it says"),
            }
        }
        ("/renew", Some(_), Some(who)) => renew_request(&control, &who, request).await,
        (
            "/raft" | "/lease" | "/relay" | "/explain" | "/standings" | "/issuer" | "/cluster-key" | "/node",
            Some(Role::Control),
            Some(who),
        ) => control_request(&control, &path, &who, request).await,
        (path, Some(_), Some(_)) if path.starts_with("/v1/") => api::answer(api::router(control), request).await,
        _ => plain(StatusCode::FORBIDDEN, "this node may not ask for that"),
    }
}

/// Whether a control node of this log is still part of the control plane. Its id says so, for none is given twice: an id that this node's
/// state has seen and that is no member's was removed, however old that state is; and one that it has not seen may have joined since.
fn may_speak(control: &Control, path: &str, who: &NodeIdentity, from: Option<u64>) -> Result<(), (StatusCode, &'static str)> {
    if matches!(enrol::enrolment(control, who), Enrolment::Removed(_) | Enrolment::Over) {
        return Err((StatusCode::GONE, "the network removed this control node"));
    }
    if path != "/raft" {
        return Ok(());
    }
    let state = control.raft.state.read();
    let from = from.ok_or((StatusCode::BAD_REQUEST, "Raft messages come with the id of their sender"))?;
    match state.members().find(|m| m.0 == from) {
        Some((_, name, _)) if name.as_str() != who.name => Err((StatusCode::FORBIDDEN, "this id is another control node's")),
        None if from < state.next_member() => Err((StatusCode::GONE, "the network removed this control node")),
        _ => Ok(()),
    }
}

async fn body(request: Request<Incoming>, most: usize) -> Result<Bytes, Response<Body>> {
    match Limited::new(request.into_body(), most).collect().await {
        Ok(all) => Ok(all.to_bytes()),
        Err(e) => Err(plain(StatusCode::BAD_REQUEST, e.to_string())),
    }
}

/// What this node cannot answer, since it does not lead.
async fn to_leader(control: &Control, path: &str, body: Bytes, timeout: Duration) -> Response<Body> {
    let Some(leader) = control.leader_address() else { return plain(StatusCode::SERVICE_UNAVAILABLE, "no leader is known") };
    match control.links.call(&leader, "control", path, body.to_vec(), timeout).await {
        Ok(answer) => plain(StatusCode::OK, answer),
        Err(LinkError::Refused { status, detail, .. }) => plain(StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_GATEWAY), detail),
        Err(e) => plain(StatusCode::SERVICE_UNAVAILABLE, e.to_string()),
    }
}

async fn enrol_request(control: &Arc<Control>, request: Request<Incoming>) -> Response<Body> {
    let bytes = match body(request, MOST_SAID).await {
        Ok(b) => b,
        Err(r) => return r,
    };
    if !control.leads() {
        return to_leader(control, "/enrol", bytes, crate::shared::CHANGE_TIMEOUT * 2).await;
    }
    match enrol::enrol(control, &bytes).await {
        Ok(answer) => plain(StatusCode::OK, wire::encode(&answer)),
        Err(e) if e.is_final() => plain(StatusCode::FORBIDDEN, e.to_string()),
        Err(e) => plain(StatusCode::SERVICE_UNAVAILABLE, e.to_string()),
    }
}

/// Where a node is reached, as it says itself: into the log where that is new.
async fn announced(control: &Arc<Control>, node: NodeState) -> Response<Body> {
    if !control.leads() {
        let path = format!("/node?log={}", control.log());
        let told = to_leader(control, &path, wire::encode(&node).into(), crate::shared::CHANGE_TIMEOUT).await;
        // What else it refuses is this control node's to mend.
        return match told.status() {
            StatusCode::OK | StatusCode::UNPROCESSABLE_ENTITY => told,
            _ => plain(StatusCode::SERVICE_UNAVAILABLE, "the leader cannot be told now"),
        };
    }
    match enrol::announced(control, node).await {
        Ok(()) => plain(StatusCode::OK, Bytes::new()),
        Err(e @ NotNow::Refused(_)) => plain(StatusCode::UNPROCESSABLE_ENTITY, e.to_string()),
        Err(e) => plain(StatusCode::SERVICE_UNAVAILABLE, e.to_string()),
    }
}

async fn renew_request(control: &Control, who: &NodeIdentity, request: Request<Incoming>) -> Response<Body> {
    match body(request, MOST_SAID).await {
        Err(r) => r,
        Ok(bytes) => match enrol::renew(control, who, &bytes) {
            Ok(chain) => plain(StatusCode::OK, wire::encode(&chain)),
            Err(e) => plain(StatusCode::FORBIDDEN, e.to_string()),
        },
    }
}

async fn control_request(control: &Arc<Control>, path: &str, who: &NodeIdentity, request: Request<Incoming>) -> Response<Body> {
    let query = request.uri().query().unwrap_or_default().to_owned();
    let bytes = match body(request, MOST_BODY).await {
        Ok(b) => b,
        Err(r) => return r,
    };
    let bad = |why: String| plain(StatusCode::BAD_REQUEST, why);
    let field = |name: &str| query.split('&').find_map(|p| p.strip_prefix(name)?.strip_prefix('=').map(str::to_owned));
    // A node from before a restore speaks of another log, whatever it says; one that joins has none yet.
    let (mine, none) = (control.log().to_string(), Incarnation(0).to_string());
    if field("log").is_none_or(|theirs| theirs != mine && theirs != none && mine != none) {
        return plain(StatusCode::CONFLICT, "this node belongs to another log: the network was restored, and it has to join anew");
    }
    let from = field("from").and_then(|id| id.parse().ok());
    if let Err((status, why)) = may_speak(control, path, who, from) {
        return plain(status, why);
    }
    match path {
        "/raft" => {
            let Some(messages) = peers::decode(&bytes) else { return bad("not Raft messages".into()) };
            if let (Some(id), Some(address)) = (from, field("address")) {
                control.peers.saw(id, &address);
            }
            messages.into_iter().for_each(|m| control.message(m));
            plain(StatusCode::OK, Bytes::new())
        }
        "/lease" => match wire::decode::<NodeName>(&bytes) {
            Ok(name) => match control.grant_lease(name).await {
                Ok(grant) => plain(StatusCode::OK, wire::encode(&grant)),
                Err(e) => plain(StatusCode::SERVICE_UNAVAILABLE, e.to_string()),
            },
            Err(e) => bad(e.to_string()),
        },
        "/node" => match wire::decode::<NodeState>(&bytes) {
            Ok(node) if control.leads() => announced(control, node).await,
            Ok(_) => plain(StatusCode::SERVICE_UNAVAILABLE, "this control node does not lead"),
            Err(e) => bad(e.to_string()),
        },
        "/issuer" => plain(StatusCode::OK, wire::encode(&control.credentials.get().issuer)),
        "/cluster-key" => match wire::decode::<[u8; 32]>(&bytes) {
            Ok(key) => match cluster_key::given(control, SealingKey::from_bytes(key)).await {
                Ok(()) => plain(StatusCode::OK, Bytes::new()),
                Err(e) => plain(StatusCode::CONFLICT, e.to_string()),
            },
            Err(e) => bad(e.to_string()),
        },
        "/standings" => match watch::standings_here(control) {
            Some(standings) => plain(StatusCode::OK, wire::encode(&standings)),
            None => plain(StatusCode::SERVICE_UNAVAILABLE, "this control node does not lead"),
        },
        "/explain" => match wire::decode::<Asked>(&bytes) {
            Ok(question) => {
                let answers = questions::ask_here(control, &question, questions::within()).await;
                plain(StatusCode::OK, wire::encode(&answers))
            }
            Err(e) => bad(e.to_string()),
        },
        _ => match wire::decode::<Relayed>(&bytes) {
            Ok(relayed) => {
                let now = control.clock.wall();
                match control.with_leadership(|state, l| relayed.tell(state, &mut l.fleet, now)) {
                    Some(news) => {
                        if news {
                            control.note_change();
                        }
                        plain(StatusCode::OK, Bytes::new())
                    }
                    None => plain(StatusCode::SERVICE_UNAVAILABLE, "this control node does not lead"),
                }
            }
            Err(e) => bad(e.to_string()),
        },
    }
}

/// When each certificate of a site ends, and how often an order for one has failed; read when somebody asks.
struct Expiries(Arc<Control>);

impl std::fmt::Debug for Expiries {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Expiries")
    }
}

impl Collector for Expiries {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let state = self.0.raft.state.read();
        let help = "When a certificate of a site ends, in seconds since 1970";
        let mut all = encoder.encode_descriptor("certificate_not_after_seconds", help, None, MetricType::Gauge)?;
        for c in state.certificates() {
            let value = ConstGauge::new(i64::try_from(c.not_after.as_secs()).unwrap_or(i64::MAX));
            value.encode(all.encode_family(&[("certificate", c.name.as_str())])?)?;
        }
        let help = "When the network's own root and the authority that issues for it end, in seconds since 1970";
        let mut all = encoder.encode_descriptor("ca_not_after_seconds", help, None, MetricType::Gauge)?;
        for (authority, not_after) in authority::ends(&state) {
            let value = ConstGauge::new(i64::try_from(not_after.as_secs()).unwrap_or(i64::MAX));
            value.encode(all.encode_family(&[("authority", authority)])?)?;
        }
        let help = "How often the order for a site's certificate has failed on end";
        let mut all = encoder.encode_descriptor("certificate_order_failures", help, None, MetricType::Gauge)?;
        for order in state.orders() {
            ConstGauge::new(i64::from(order.failures)).encode(all.encode_family(&[("site", order.site.as_str())])?)?;
        }
        Ok(())
    }
}

/// The figures of a control node.
struct Figures {
    leader: Gauge,
    term: Gauge,
    applied: Gauge,
    sites: Gauge,
    nodes: Gauge,
}

impl Figures {
    fn register(metrics: &Metrics) -> Self {
        let f = Self {
            leader: Gauge::default(),
            term: Gauge::default(),
            applied: Gauge::default(),
            sites: Gauge::default(),
            nodes: Gauge::default(),
        };
        metrics.register(|r| {
            r.register("raft_leads", "1 while this control node leads", f.leader.clone());
            r.register("raft_term", "Raft term", f.term.clone());
            r.register("raft_applied_index", "Index of the last applied entry", f.applied.clone());
            r.register("sites", "Sites", f.sites.clone());
            r.register("nodes", "Nodes that are enrolled", f.nodes.clone());
        });
        f
    }

    async fn keep(self, control: Arc<Control>, mut stopping: Stopping) {
        loop {
            let int = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
            {
                let state = control.raft.state.read();
                self.applied.set(int(state.applied));
                self.sites.set(int(state.sites().count() as u64));
                self.nodes.set(int(state.nodes().count() as u64));
            }
            self.term.set(int(control.raft.term.load(Ordering::Acquire)));
            self.leader.set(i64::from(control.leads()));
            tokio::select! {
                () = tokio::time::sleep(Duration::from_secs(1)) => {}
                () = stopping.stopped() => return,
            }
        }
    }
}
