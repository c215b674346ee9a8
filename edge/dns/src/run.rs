//! A node that answers for the zone, running.

use crate::cookie::Cookies;
use crate::current::Current;
use crate::explain::explain;
use crate::figures::{Collected, Figures};
use crate::probe::probe;
use crate::server::{self, Answers};
use crate::settings::DnsSettings;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::sync::Arc;
use std::time::Duration;
use tidegate_control_types::explain::{Asked, Said};
use tidegate_control_types::{Clock, NodeReport, NodeState, Role};
use tidegate_node::clock::random_u64;
use tidegate_node::lifecycle::Stopping;
use tidegate_node::link::Links;
use tidegate_node::metrics::Metrics;
use tidegate_node::network::SavedFile;
use tidegate_node::watch::{Watched, Watcher};
use tidegate_node::workers::{Outbox, Workers};
use tidegate_node::{CurrentCredentials, NodeError, SystemClock, VERSION, admin, enrol, listen, role};

/// Bound before anything runs.
pub struct Bound {
    workers: Vec<Sockets>,
    admin: TcpListener,
    pub listen: Vec<SocketAddr>,
}

/// Of one worker.
#[derive(Default)]
struct Sockets {
    udp: Vec<UdpSocket>,
    tcp: Vec<TcpListener>,
}

impl Bound {
    /// # Errors
    /// An address cannot be bound.
    pub fn bind(settings: &DnsSettings) -> Result<Self, NodeError> {
        let mut workers: Vec<Sockets> = (0..settings.workers.max(1)).map(|_| Sockets::default()).collect();
        let mut bound = Vec::new();
        for address in &settings.listen {
            let (tcp, udp) = listen::bind_both(*address, workers.len())?;
            bound.extend(tcp.first().and_then(|l| l.local_addr().ok()));
            for ((worker, tcp), udp) in workers.iter_mut().zip(tcp).zip(udp) {
                worker.tcp.push(tcp);
                worker.udp.push(udp);
            }
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
/// The node cannot start or enrol, or the control plane removed it.
pub async fn run(settings: DnsSettings, bound: Bound, mut stopping: Stopping) -> Result<(), NodeError> {
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let node = &settings.node;
    let networks = settings.read_networks()?;
    let state = NodeState {
        name: node.name.clone(),
        role: Role::Dns,
        region: node.region.clone(),
        address: None,
        advertise: node.advertise.clone(),
        drained: false,
        since: 0,
    };
    let (credentials, node_key) = enrol::credentials(node, state.clone()).await?;
    let credentials = CurrentCredentials::new(credentials);
    let (links, shown) = (Links::new(credentials.clone()), credentials.clone());
    let (watched, current, figures) = (Watched::new(), Current::new(settings.zone.clone(), networks), Arc::<Figures>::default());
    let name = node.name.to_string();
    let answers = Answers {
        current: Arc::clone(&current),
        name: Arc::from(name.as_str()),
        figures: Arc::clone(&figures),
        region: Arc::from([node.region.clone()]),
        clock: Arc::clone(&clock),
        cookies: Arc::new(Cookies::new(cookie_secret())),
    };
    let said_by = answers.clone();
    let (workers, _) = Workers::start("dns", bound.workers, {
        let (watched, stopping) = (Arc::clone(&watched), stopping.clone());
        // The kernel spreads packets over the workers by their source.
        let share = settings.rate_limit.div_ceil(u32::try_from(settings.workers.max(1)).unwrap_or(1));
        let limit = settings.rate_limit.min(share.max(LEAST_RATE));
        move |sockets, _| serve(sockets, answers.clone(), limit, Arc::clone(&watched), stopping.clone())
    })?;
    let metrics = Metrics::new("dns", &name);
    metrics.register(|r| r.register_collector(Box::new(Collected(Arc::clone(&figures)))));
    let ready = Arc::clone(&watched);
    let readiness: admin::Readiness =
        Arc::new(move || if *ready.begun.borrow() { Ok(()) } else { Err("no configuration has come from the control plane yet".into()) });
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(admin::serve(bound.admin, metrics, readiness, stopping.clone()));
    tasks.spawn(enrol::announce(node.clone(), state, Arc::clone(&links)));
    tasks.spawn(enrol::renew(node.clone(), credentials.clone(), node_key.clone(), Arc::clone(&links), Arc::clone(&watched)));
    tasks.spawn(reload(settings.clone(), Arc::clone(&current), stopping.clone()));
    if !settings.probe.interval.is_zero() {
        tasks.spawn(probe(Arc::clone(&current), settings.probe, Arc::clone(&clock)));
    }
    let (of_network, of_standings) = (Arc::clone(&current), current);
    let watcher = Watcher {
        node: node.name.to_string(),
        addresses: node.control.clone(),
        control: links,
        saved: Box::new(SavedFile::new(&node.data, node_key)),
        stored: false,
        random: Box::new(random_u64),
        clock: Arc::clone(&clock),
        workers: Outbox::default(),
        prepare: Box::new(move |update| {
            if update.changes_configuration() {
                of_network.network(&update.network);
            }
        }),
        standings: Box::new({
            let clock = Arc::clone(&clock);
            move |standings| of_standings.standings(standings, clock.boot())
        }),
        say: Some(Arc::new(move |asked| say(&said_by, asked))),
        report: Box::new(move || NodeReport {
            requests: figures.queries(),
            version: VERSION.into(),
            issuer: shown.get().issuer,
            ..NodeReport::default()
        }),
        watched: Arc::clone(&watched),
    };
    let ended = role::follow(watcher, "this node answers for the zone", &node.data, tasks, &mut stopping).await;
    if ended.is_ok() {
        let _ = tokio::task::spawn_blocking(move || workers.join()).await;
    }
    ended
}

/// Of this life of the node: its clients get others after a restart.
fn cookie_secret() -> [u8; 16] {
    let mut secret = [0; 16];
    let (first, second) = secret.split_at_mut(8);
    first.copy_from_slice(&random_u64().to_le_bytes());
    second.copy_from_slice(&random_u64().to_le_bytes());
    secret
}

/// What this node says to what it is asked.
fn say(answers: &Answers, asked: &Asked) -> Option<Said> {
    let Asked::Steering { site, client } = asked else { return None };
    let table = answers.current.table()?;
    Some(Said::Steering(explain(&table, &answers.current.networks(), &answers.region, site.as_str(), *client)))
}

/// Reads the file of networks again whenever it is told to: a file that is none changes nothing.
async fn reload(settings: DnsSettings, current: Arc<Current>, mut stopping: Stopping) {
    let settings = Arc::new(settings);
    while settings.networks.is_some() && stopping.reload().await {
        let read = Arc::clone(&settings);
        match tokio::task::spawn_blocking(move || read.read_networks()).await {
            Ok(Ok(networks)) => {
                tracing::info!(rows = networks.rows(), "the file of networks was read again");
                current.take_networks(networks);
            }
            Ok(Err(error)) => tracing::error!(%error, "the file of networks cannot be read: the one before counts on"),
            Err(error) => tracing::error!(%error, "the file of networks cannot be read: the one before counts on"),
        }
    }
}

/// Of one worker, however many there are: a resolver's packets may all come to one.
const LEAST_RATE: u32 = 50;
/// A node that is cut off begins without knowing how the edges stand.
const TOLD_WITHIN: Duration = Duration::from_secs(3);

/// One worker, from the first configuration on.
async fn serve(sockets: Sockets, answers: Answers, limit: u32, watched: Arc<Watched>, mut stopping: Stopping) {
    let serving = async {
        let mut begun = watched.begun.subscribe();
        if begun.wait_for(|b| *b).await.is_err() {
            return;
        }
        // Before, an edge that died long ago looks like any other.
        let _ = tokio::time::timeout(TOLD_WITHIN, answers.current.told()).await;
        for socket in sockets.udp {
            match tokio::net::UdpSocket::from_std(socket) {
                Ok(socket) => drop(tokio::task::spawn_local(server::udp(socket, answers.clone(), limit))),
                Err(error) => tracing::error!(%error, "a socket failed"),
            }
        }
        for listener in sockets.tcp {
            match tokio::net::TcpListener::from_std(listener) {
                Ok(listener) => drop(tokio::task::spawn_local(server::tcp(listener, answers.clone()))),
                Err(error) => tracing::error!(%error, "a listener failed"),
            }
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        () = serving => {}
        () = stopping.stopped() => {}
    }
}
