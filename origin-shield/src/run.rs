//! A shield, running.

use crate::settings::ShieldSettings;
use crate::worker::{self, Worker};
use http::HeaderValue;
use std::cell::{Cell, RefCell};
use std::net::{SocketAddr, TcpListener};
use std::rc::Rc;
use std::sync::Arc;
use tidegate_control_types::{Clock, NodeReport, NodeState, Role};
use tidegate_gateway::{AllCounters, Caches, Figures, Fills, Gateway, MOST_SELECTORS, Node, Store, Tier};
use tidegate_node::clock::random_u64;
use tidegate_node::lifecycle::Stopping;
use tidegate_node::link::Links;
use tidegate_node::metrics::Metrics;
use tidegate_node::network::SavedFile;
use tidegate_node::serve::MutualTls;
use tidegate_node::watch::{Watched, Watcher};
use tidegate_node::workers::Workers;
use tidegate_node::{CurrentCredentials, NodeError, SystemClock, VERSION, admin, enrol, listen, role};
use tidegate_upstream::{OriginPools, OriginUpstream, Resolver, probe_all};

/// The listeners of a shield, bound before anything runs.
pub struct Bound {
    workers: Vec<Vec<TcpListener>>,
    admin: TcpListener,
    pub listen: Vec<SocketAddr>,
}

impl Bound {
    /// # Errors
    /// An address cannot be bound.
    pub fn bind(settings: &ShieldSettings) -> Result<Self, NodeError> {
        let mut workers: Vec<Vec<TcpListener>> = (0..settings.workers.max(1)).map(|_| Vec::new()).collect();
        let mut bound = Vec::new();
        for address in &settings.listen {
            let all = listen::bind_shared(*address, workers.len())?;
            bound.extend(all.first().and_then(|l| l.local_addr().ok()));
            workers.iter_mut().zip(all).for_each(|(w, l)| w.push(l));
        }
        Ok(Self { workers, admin: listen::bind(settings.node.admin)?, listen: bound })
    }

    #[must_use]
    pub fn admin(&self) -> Option<SocketAddr> {
        self.admin.local_addr().ok()
    }
}

/// Runs until told to stop.
///
/// # Errors
/// The shield cannot start or enrol, or the control plane removed it.
pub async fn run(settings: ShieldSettings, bound: Bound, mut stopping: Stopping) -> Result<(), NodeError> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let node = &settings.node;
    let address = settings.address.clone().or_else(|| bound.listen.first().map(ToString::to_string));
    let state = NodeState {
        name: node.name.clone(),
        role: Role::Shield,
        region: node.region.clone(),
        address,
        advertise: node.advertise.clone(),
        drained: false,
        since: 0,
    };
    let (credentials, node_key) = enrol::credentials(node, state.clone()).await?;
    let credentials = CurrentCredentials::new(credentials);
    let links = Links::new(credentials.clone());
    let watched = Watched::new();
    let pools = OriginPools::new(Resolver::new(&node.name_servers));
    let store = Arc::new(Store::open(settings.memory, node.disk(), random_u64()).map_err(|e| node.disk_error(e))?);
    let fills: Arc<Fills> = Arc::default();
    let counters: Arc<AllCounters> = Arc::default();
    let name = node.name.to_string();
    let (workers, outbox) = Workers::start("shield", bound.workers, {
        let caches = Caches { store: Arc::clone(&store), fills: Arc::clone(&fills), coder: None };
        let (counters, pools, watched) = (Arc::clone(&counters), Arc::clone(&pools), Arc::clone(&watched));
        let (clock, stopping, tls, drain, name, region) = (
            Arc::clone(&clock),
            stopping.clone(),
            MutualTls::new(credentials.clone(), false),
            settings.drain,
            name.clone(),
            node.region.clone(),
        );
        move |listeners, inbox| {
            let node =
                Node { name: name.clone(), tier: Tier::Shield, via: worker::via(&name), cdn_id: HeaderValue::from_static("tidegate") };
            let upstream = (Arc::clone(&pools), Arc::clone(&clock));
            let (caches, clock, watched) = (caches.clone(), Arc::clone(&clock), Arc::clone(&watched));
            let (counters, tls, stopping, region) = (Arc::clone(&counters), tls.clone(), stopping.clone(), region.clone());
            async move {
                let upstream = OriginUpstream::new(upstream.0, upstream.1);
                let gateway = Gateway::new(Rc::new(node), caches, clock, Arc::clone(&watched.lease), upstream, MOST_SELECTORS);
                let worker = Rc::new(Worker {
                    gateway,
                    sites: RefCell::default(),
                    counters,
                    tls,
                    stopping,
                    drain,
                    open: Cell::new(0),
                    region,
                    edges: RefCell::default(),
                });
                worker::run(worker, listeners, watched.begun.subscribe(), inbox).await;
            }
        }
    })?;
    let probes = Workers::start_aside("probe", &stopping, {
        let (pools, clock) = (Arc::clone(&pools), Arc::clone(&clock));
        move || probe_all(Arc::clone(&pools), Arc::clone(&clock))
    })?;
    let metrics = Metrics::new("shield", &name);
    let figures = Figures { counters, store: Arc::clone(&store), fills };
    metrics.register(|r| r.register_collector(Box::new(figures.clone())));
    let ready = Arc::clone(&watched);
    let readiness: admin::Readiness =
        Arc::new(move || if *ready.begun.borrow() { Ok(()) } else { Err("no configuration has come from the control plane yet".into()) });
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(admin::serve(bound.admin, metrics, readiness, stopping.clone()));
    tasks.spawn(enrol::announce(node.clone(), state, Arc::clone(&links)));
    tasks.spawn(enrol::renew(node.clone(), credentials.clone(), node_key.clone(), Arc::clone(&links), Arc::clone(&watched)));
    let (origin, reported) = (Arc::clone(&pools), Arc::clone(&pools));
    let watcher = Watcher {
        node: node.name.to_string(),
        addresses: node.control.clone(),
        control: links,
        saved: Box::new(SavedFile::new(&node.data, node_key)),
        stored: node.disk.is_some(),
        random: Box::new(random_u64),
        clock: Arc::clone(&clock),
        workers: outbox,
        prepare: Box::new(move |update| {
            if update.changes_configuration() {
                origin.set_sites(update.network.sites.values().map(|s| &s.spec));
            }
        }),
        standings: Box::new(drop),
        report: Box::new(move || report(&figures, &credentials, &reported, &*clock)),
        say: None,
        watched: Arc::clone(&watched),
    };
    let ended = role::follow(watcher, "this shield serves", &node.data, tasks, &mut stopping).await;
    if ended.is_ok() {
        let _ = tokio::task::spawn_blocking(move || {
            workers.join();
            probes.join();
            store.close();
        })
        .await;
    }
    ended
}

fn report(figures: &Figures, credentials: &CurrentCredentials, pools: &OriginPools, clock: &dyn Clock) -> NodeReport {
    let (stored_bytes, stored_limit_bytes) = figures.store.usage();
    NodeReport {
        requests: figures.counters.sum(|c| &c.requests),
        hits: figures.counters.sum(|c| &c.hits),
        stored_bytes,
        stored_limit_bytes,
        version: VERSION.into(),
        origins_down: pools.down(clock),
        issuer: credentials.get().issuer,
        ..NodeReport::default()
    }
}
