//! An edge, running.

use crate::access_log::Log;
use crate::certificates::Certificates;
use crate::figures::ClientFigures;
use crate::quic::Quic;
use crate::settings::{EdgeSettings, Limits};
use crate::worker::{self, Listeners, Shared};
use http::HeaderValue;
use parking_lot::RwLock;
use rustls::ServerConfig;
use rustls::server::ServerSessionMemoryCache;
use std::net::{SocketAddr, TcpListener};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tidegate_certs::seal::SealingKey;
use tidegate_certs::tickets::Tickets;
use tidegate_certs::{SiteCertificates, challenge, identity, token};
use tidegate_control_types::{Clock, NodeName, NodeReport, NodeState, Role};
use tidegate_gateway::{Caches, Coder, Figures, Gateway, MOST_SELECTORS, Node, Store, Tier};
use tidegate_http3::Secret;
use tidegate_node::clock::{Load, random_u64};
use tidegate_node::lifecycle::Stopping;
use tidegate_node::link::Links;
use tidegate_node::metrics::Metrics;
use tidegate_node::network::SavedFile;
use tidegate_node::watch::{Watched, Watcher};
use tidegate_node::workers::{Workers, cores};
use tidegate_node::{CurrentCredentials, NodeError, SystemClock, Update, VERSION, admin, enrol, listen, role};
use tidegate_upstream::{EdgeUpstream, Http2Shields, OriginPools, OriginUpstream, Resolver, Shield, ShieldTls, Shields, probe_all};

const MOST_SESSIONS: usize = 20_480;
/// As long as the control plane lets each key be the newest.
const TICKET_LIFETIME_SECONDS: u32 = 12 * 3600;

/// The listeners of an edge, bound before anything runs.
pub struct Bound {
    workers: Vec<Listeners>,
    admin: TcpListener,
    pub http: Vec<SocketAddr>,
    pub https: Vec<SocketAddr>,
}

impl Bound {
    /// # Errors
    /// An address cannot be bound.
    pub fn bind(settings: &EdgeSettings) -> Result<Self, NodeError> {
        let mut workers: Vec<Listeners> = (0..settings.workers.max(1)).map(|_| Listeners::default()).collect();
        let (mut http, mut https) = (Vec::new(), Vec::new());
        for (addresses, tls, bound) in [(&settings.http, false, &mut http), (&settings.https, true, &mut https)] {
            for address in addresses {
                let (all, packets) = if tls && settings.http3 {
                    listen::bind_both(*address, workers.len())?
                } else {
                    (listen::bind_shared(*address, workers.len())?, Vec::new())
                };
                bound.extend(all.first().and_then(|l| l.local_addr().ok()));
                workers.iter_mut().zip(all).for_each(|(w, l)| w.tcp.push((l, tls)));
                workers.iter_mut().zip(tidegate_http3::ports(packets)).for_each(|(w, port)| w.quic.push(port));
            }
        }
        Ok(Self { workers, admin: listen::bind(settings.node.admin)?, http, https })
    }

    #[must_use]
    pub fn admin(&self) -> Option<SocketAddr> {
        self.admin.local_addr().ok()
    }
}

fn tls_config(
    certificates: &Arc<SiteCertificates>,
    tickets: &Arc<Tickets>,
    versions: &[&'static rustls::SupportedProtocolVersion],
) -> Arc<ServerConfig> {
    let resolver = Arc::clone(certificates) as Arc<dyn rustls::server::ResolvesServerCert>;
    let mut config = ServerConfig::builder_with_protocol_versions(versions).with_no_client_auth().with_cert_resolver(resolver);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    config.session_storage = ServerSessionMemoryCache::new(MOST_SESSIONS);
    config.ticketer = Arc::clone(tickets) as Arc<dyn rustls::server::ProducesTickets>;
    config.send_tls13_tickets = 1;
    Arc::new(config)
}

/// For authorities that look whose a host is: a handshake and nothing else.
fn challenge_config(challenges: &Arc<SiteCertificates>) -> Arc<ServerConfig> {
    let resolver = Arc::clone(challenges) as Arc<dyn rustls::server::ResolvesServerCert>;
    let mut config = ServerConfig::builder_with_protocol_versions(rustls::ALL_VERSIONS).with_no_client_auth().with_cert_resolver(resolver);
    config.alpn_protocols = vec![challenge::ALPN.to_vec()];
    config.send_tls13_tickets = 0;
    Arc::new(config)
}

/// QUIC has TLS 1.3 alone. Sessions are kept here and each is resumed once, so that early data cannot be taken twice.
fn quic(certificates: &Arc<SiteCertificates>, key: &SealingKey) -> Arc<Quic> {
    let resolver = Arc::clone(certificates) as Arc<dyn rustls::server::ResolvesServerCert>;
    let mut tls =
        ServerConfig::builder_with_protocol_versions(&[&rustls::version::TLS13]).with_no_client_auth().with_cert_resolver(resolver);
    tls.alpn_protocols = vec![b"h3".to_vec()];
    tls.session_storage = ServerSessionMemoryCache::new(MOST_SESSIONS);
    // All or nothing, says RFC 9001 section 4.6.1; the amount is QUIC's to limit.
    tls.max_early_data_size = u32::MAX;
    Arc::new(Quic { tls: Arc::new(tls), secret: Secret::new(key.as_bytes()) })
}

/// Runs until told to stop; then listeners close, and requests in flight finish within the drain limit.
///
/// # Errors
/// The edge cannot start or enrol, or the control plane removed it.
pub async fn run(mut settings: EdgeSettings, bound: Bound, file: Option<PathBuf>, mut stopping: Stopping) -> Result<(), NodeError> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    // Where port 0 took a free one, redirects name that.
    settings.https.clone_from(&bound.https);
    let node = &settings.node;
    let state = NodeState {
        name: node.name.clone(),
        role: Role::Edge,
        region: node.region.clone(),
        address: None,
        advertise: node.advertise.clone(),
        drained: false,
        since: 0,
    };
    let (credentials, node_key) = enrol::credentials(node, state.clone()).await?;
    let cdn_id = cdn_id(&credentials.identity.cluster, &credentials.trust.root)?;
    let credentials = CurrentCredentials::new(credentials);
    let links = Links::new(credentials.clone());
    let watched = Watched::new();
    let (certificates, challenges): (Arc<SiteCertificates>, Arc<SiteCertificates>) = (Arc::default(), Arc::default());
    let tickets = Arc::new(Tickets::new(TICKET_LIFETIME_SECONDS));
    let (current, shown) = (credentials.clone(), credentials.clone());
    let (shields, shield_tls): (Arc<Shields>, ShieldTls) = (Arc::default(), Arc::new(move || Arc::clone(&current.get().client)));
    let pools = OriginPools::new(Resolver::new(&node.name_servers));
    let log = settings.access_log.clone().map(Log::start).transpose()?;
    let store = Arc::new(Store::open(settings.memory, node.disk(), random_u64()).map_err(|e| node.disk_error(e))?);
    let coder = Coder::start(cores() / 2).map_err(|e| NodeError::Runtime(format!("cannot start a thread: {e}")))?;
    let shared = Arc::new(Shared {
        node: node.name.to_string(),
        limits: RwLock::new(Arc::new(settings.limits)),
        caches: Caches { store: Arc::clone(&store), fills: Arc::default(), coder: Some(coder) },
        counters: Arc::default(),
        clock: Arc::clone(&clock),
        tls: tls_config(&certificates, &tickets, rustls::ALL_VERSIONS),
        tls_13: tls_config(&certificates, &tickets, &[&rustls::version::TLS13]),
        tls_challenge: challenge_config(&challenges),
        quic: settings.http3.then(|| quic(&certificates, &node_key)),
        log,
        stopping: stopping.clone(),
        connections: Arc::default(),
        refused: Arc::default(),
        retries: Arc::default(),
        links: Arc::clone(&links),
        background: tokio::runtime::Handle::current(),
        settings: settings.clone(),
    });
    let (workers, outbox) = start_workers(&shared, bound.workers, &watched, (&shields, &shield_tls), &pools, cdn_id)?;
    let metrics = Metrics::new("edge", &shared.node);
    metrics.register(|r| {
        r.register_collector(Box::new(figures(&shared)));
        r.register_collector(Box::new(client_figures(&shared)));
    });
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(admin::serve(bound.admin, metrics, readiness(&watched, node.name.clone()), stopping.clone()));
    tasks.spawn(enrol::announce(node.clone(), state, Arc::clone(&links)));
    tasks.spawn(enrol::renew(node.clone(), credentials.clone(), node_key.clone(), Arc::clone(&links), Arc::clone(&watched)));
    tasks.spawn(reload(Arc::clone(&shared), file, stopping.clone()));
    let probes = Workers::start_aside("probe", &stopping, {
        let (pools, clock) = (Arc::clone(&pools), Arc::clone(&clock));
        move || probe_all(Arc::clone(&pools), Arc::clone(&clock))
    })?;
    let watcher = Watcher {
        node: node.name.to_string(),
        addresses: node.control.clone(),
        control: links,
        saved: Box::new(SavedFile::new(&node.data, node_key)),
        stored: node.disk.is_some(),
        random: Box::new(random_u64),
        clock: Arc::clone(&clock),
        workers: outbox,
        prepare: Box::new(prepare(
            &settings,
            credentials,
            Certificates::new(certificates, challenges, tickets),
            shields,
            Arc::clone(&pools),
        )),
        standings: Box::new(drop),
        report: Box::new(report(&shared, shown, pools)),
        say: None,
        watched: Arc::clone(&watched),
    };
    let ended = role::follow(watcher, "this edge serves", &node.data, tasks, &mut stopping).await;
    let joined = tokio::task::spawn_blocking(move || {
        workers.join();
        probes.join();
        store.close();
    });
    if ended.is_ok() {
        let _ = joined.await;
    }
    ended
}

/// This network's word in CDN-Loop: its name, and enough of its CA to tell it from another of that name.
pub fn cdn_id(cluster: &str, ca: &[u8]) -> Result<HeaderValue, NodeError> {
    let mark: String = token::sha256(ca).iter().take(4).map(|b| format!("{b:02x}")).collect();
    HeaderValue::from_str(&format!("tidegate-{cluster}-{mark}")).map_err(|e| NodeError::Runtime(e.to_string()))
}

fn start_workers(
    shared: &Arc<Shared>,
    listeners: Vec<Listeners>,
    watched: &Arc<Watched>,
    (shields, shield_tls): (&Arc<Shields>, &ShieldTls),
    pools: &Arc<OriginPools>,
    cdn_id: HeaderValue,
) -> Result<(Workers, tidegate_node::workers::Outbox), NodeError> {
    let via = HeaderValue::from_str(&format!("1.1 {}", shared.node)).map_err(|e| NodeError::Runtime(e.to_string()))?;
    let (shared, watched, pools) = (Arc::clone(shared), Arc::clone(watched), Arc::clone(pools));
    let (shields, shield_tls) = (Arc::clone(shields), Arc::clone(shield_tls));
    Workers::start("edge", listeners, move |listeners, inbox| {
        let node = Node { name: shared.node.clone(), tier: Tier::Edge, via: via.clone(), cdn_id: cdn_id.clone() };
        let (shared, watched, pools) = (Arc::clone(&shared), Arc::clone(&watched), Arc::clone(&pools));
        let (shields, way) = (Arc::clone(&shields), Http2Shields::new(Arc::clone(&shield_tls)));
        async move {
            let origin = OriginUpstream::new(pools, Arc::clone(&shared.clock));
            let upstream = EdgeUpstream::new(shields, way, origin, Arc::clone(&shared.clock));
            let (caches, clock, lease) = (shared.caches.clone(), Arc::clone(&shared.clock), Arc::clone(&watched.lease));
            let gateway = Gateway::new(Rc::new(node), caches, clock, lease, upstream, MOST_SELECTORS);
            worker::run(shared, gateway, listeners, watched.begun.subscribe(), inbox).await;
        }
    })
}

/// What an edge does with a change beside its workers: certificates, shields and origins.
fn prepare(
    settings: &EdgeSettings,
    credentials: CurrentCredentials,
    certificates: Certificates,
    shields: Arc<Shields>,
    pools: Arc<OriginPools>,
) -> impl Fn(&Update) + Send + Sync + use<> {
    let region = settings.node.region.clone();
    move |update| {
        if !update.changes_configuration() && !update.fresh {
            return;
        }
        let network = &update.network;
        certificates.set(network);
        pools.set_sites(network.sites.values().map(|s| &s.spec));
        let cluster = credentials.get().identity.cluster.clone();
        let mine = network.nodes.values().filter(|n| n.role == Role::Shield && n.region == region && !n.drained);
        let shield = |n: &NodeState| {
            let address = n.address.clone()?;
            Some(Shield::new(n.name.to_string(), address, identity::node_name(&cluster, "shield", n.name.as_str(), n.since)))
        };
        shields.set(mine.filter_map(shield).collect());
    }
}

fn figures(shared: &Shared) -> Figures {
    Figures { counters: Arc::clone(&shared.counters), store: Arc::clone(&shared.caches.store), fills: Arc::clone(&shared.caches.fills) }
}

fn client_figures(shared: &Shared) -> ClientFigures {
    ClientFigures {
        connections: Arc::clone(&shared.connections),
        refused: Arc::clone(&shared.refused),
        retries: Arc::clone(&shared.retries),
        log_dropped: shared.log.as_ref().map(|l| Arc::clone(&l.dropped)).unwrap_or_default(),
    }
}

fn readiness(watched: &Arc<Watched>, own: NodeName) -> admin::Readiness {
    let watched = Arc::clone(watched);
    Arc::new(move || {
        if !*watched.begun.borrow() {
            return Err("no configuration has come from the control plane yet".into());
        }
        let drained = watched.network().is_some_and(|n| n.nodes.get(&own).is_some_and(|state| state.drained));
        if drained { Err("this node is drained".into()) } else { Ok(()) }
    })
}

fn report(shared: &Arc<Shared>, credentials: CurrentCredentials, pools: Arc<OriginPools>) -> impl Fn() -> NodeReport + Send + Sync + use<> {
    let shared = Arc::clone(shared);
    let capacity = u32::try_from(shared.settings.workers).unwrap_or(u32::MAX);
    let load = Load::new(capacity.min(u32::try_from(cores()).unwrap_or(1)));
    move || {
        let (stored_bytes, stored_limit_bytes) = shared.caches.store.usage();
        NodeReport {
            requests: shared.counters.sum(|c| &c.requests),
            hits: shared.counters.sum(|c| &c.hits),
            stored_bytes,
            stored_limit_bytes,
            open_connections: shared.connections.load(Ordering::Relaxed),
            load_permille: load.permille(),
            capacity,
            version: VERSION.into(),
            origins_down: pools.down(&*shared.clock),
            issuer: credentials.get().issuer,
        }
    }
}

/// On SIGHUP limits are read again, and the access log's file is opened again.
async fn reload(shared: Arc<Shared>, file: Option<PathBuf>, mut stopping: Stopping) {
    while stopping.reload().await {
        if let Some(log) = &shared.log {
            log.reopen();
        }
        let Some(file) = &file else { continue };
        match EdgeSettings::from_file(file) {
            Ok(new) => {
                let limits: Limits = new.limits;
                *shared.limits.write() = Arc::new(limits);
                tracing::info!(node = shared.node, "settings read again: [limits] are in force; other changes need a restart");
            }
            Err(error) => tracing::error!(%error, "settings not changed"),
        }
    }
}
