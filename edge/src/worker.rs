//! One worker: its gateway, its table of sites and its connections, from its start to the end of its drain.

use crate::access_log::Log;
use crate::admission::ConnectionState;
use crate::connection;
use crate::quic::{self, Quic};
use crate::routes::Routes;
use crate::settings::{EdgeSettings, Limits};
use http::header::HeaderValue;
use parking_lot::RwLock;
use rustls::ServerConfig;
use std::cell::{Cell, RefCell};
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;
use tidegate_control_types::site::TlsVersion;
use tidegate_control_types::{BootTime, Clock};
use tidegate_gateway::{AllCounters, Asked, Caches, Gateway};
use tidegate_node::lifecycle::Stopping;
use tidegate_node::link::Links;
use tidegate_node::workers::{Delivery, Inbox, ToWorker};
use tidegate_upstream::{EdgeUpstream, Http2Shields, OriginUpstream};
use tokio::sync::watch;

/// How often connections are looked at for time-outs.
const SWEEP: Duration = Duration::from_millis(250);
const LAST_WORDS: Duration = Duration::from_millis(100);

/// From an edge: over the shields of its region, else to the origin.
pub type WayOut = EdgeUpstream<Http2Shields, OriginUpstream>;

/// What all workers of an edge share.
pub struct Shared {
    pub settings: EdgeSettings,
    pub node: String,
    pub limits: RwLock<Arc<Limits>>,
    pub caches: Caches,
    pub counters: Arc<AllCounters>,
    pub clock: Arc<dyn Clock>,
    pub tls: Arc<ServerConfig>,
    pub tls_13: Arc<ServerConfig>,
    /// For authorities that look whose a host is (RFC 8737).
    pub tls_challenge: Arc<ServerConfig>,
    /// Where HTTP/3 is spoken.
    pub quic: Option<Arc<Quic>>,
    pub log: Option<Log>,
    pub stopping: Stopping,
    pub connections: Arc<AtomicU64>,
    pub refused: Arc<AtomicU64>,
    /// QUIC clients that had to show where they are.
    pub retries: Arc<AtomicU64>,
    pub links: Arc<Links>,
    pub background: tokio::runtime::Handle,
}

impl Shared {
    pub fn limits(&self) -> Arc<Limits> {
        Arc::clone(&self.limits.read())
    }
}

/// Who is at the other end of a connection.
pub struct Client {
    pub ip: IpAddr,
    pub https: bool,
    pub server_name: Option<String>,
}

pub struct Worker {
    pub shared: Arc<Shared>,
    pub coarse: Arc<AtomicU64>,
    /// This worker's copy, renewed by its sweep.
    pub limits: Cell<Limits>,
    pub gateway: Rc<Gateway<WayOut>>,
    pub routes: RefCell<Rc<Routes>>,
    connections: RefCell<Vec<Weak<ConnectionState>>>,
    open: Cell<usize>,
    /// What clients of a port are told of HTTP/3 there, once one was.
    pub alt_svc: RefCell<Option<(u16, HeaderValue)>>,
}

fn milliseconds(t: BootTime) -> u64 {
    t.as_nanos() / 1_000_000
}

/// A worker's own.
#[derive(Default)]
pub struct Listeners {
    /// With whether it speaks TLS.
    pub tcp: Vec<(std::net::TcpListener, bool)>,
    pub quic: Vec<tidegate_http3::Port>,
}

/// Runs a worker until the edge has drained. `begun` turns true when it may accept.
pub async fn run(
    shared: Arc<Shared>,
    gateway: Rc<Gateway<WayOut>>,
    listeners: Listeners,
    mut begun: watch::Receiver<bool>,
    mut inbox: Inbox,
) {
    let coarse = Arc::new(AtomicU64::new(milliseconds(shared.clock.boot())));
    let worker = Rc::new(Worker {
        shared: Arc::clone(&shared),
        coarse,
        limits: Cell::new(*shared.limits()),
        gateway,
        routes: RefCell::default(),
        connections: RefCell::default(),
        open: Cell::new(0),
        alt_svc: RefCell::default(),
    });
    let mut stopping = shared.stopping.clone();
    let mut waiting = Some(listeners);
    let mut accepting = Vec::new();
    let mut sweep = tokio::time::interval(SWEEP);
    loop {
        tokio::select! {
            biased;
            delivery = inbox.recv() => match delivery {
                Some(message) => worker.hear(message),
                None => break,
            },
            ready = begun.wait_for(|b| *b), if waiting.is_some() => {
                if ready.is_err() {
                    break;
                }
                let listeners = waiting.take().unwrap_or_default();
                for (listener, tls) in listeners.tcp {
                    accepting.push(tokio::task::spawn_local(accept(Rc::clone(&worker), listener, tls)));
                }
                for (port, quic) in listeners.quic.into_iter().zip(std::iter::repeat(&shared.quic).flatten()) {
                    accepting.push(tokio::task::spawn_local(quic::accept(Rc::clone(&worker), Arc::clone(quic), port)));
                }
            }
            _ = sweep.tick() => worker.sweep(),
            () = stopping.stopped() => break,
        }
    }
    for task in accepting {
        task.abort();
    }
    worker.drain(&mut inbox).await;
}

async fn accept(worker: Rc<Worker>, listener: std::net::TcpListener, tls: bool) {
    let listener = match tokio::net::TcpListener::from_std(listener) {
        Ok(l) => l,
        Err(error) => return tracing::error!(%error, "a listener failed"),
    };
    loop {
        if worker.is_full() {
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        }
        match listener.accept().await {
            Ok((tcp, address)) => {
                let open = Open::new(&worker);
                let worker = Rc::clone(&worker);
                tokio::task::spawn_local(async move {
                    let _open = open;
                    connection::accept(worker, tcp, address, tls).await;
                });
            }
            Err(error) => {
                // Out of descriptors, most likely: those that are open go on.
                tracing::warn!(%error, "no connection can be accepted");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

/// Counts an open connection, or a tunnel.
pub struct Open(Rc<Worker>);

impl Open {
    pub fn new(worker: &Rc<Worker>) -> Self {
        worker.open.set(worker.open.get() + 1);
        worker.shared.connections.fetch_add(1, Ordering::Relaxed);
        Self(Rc::clone(worker))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.set(self.0.open.get().saturating_sub(1));
        self.0.shared.connections.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Worker {
    /// Whether it has as many connections as it may.
    pub fn is_full(&self) -> bool {
        self.open.get() >= self.limits.get().connections
    }

    fn hear(&self, message: ToWorker) {
        match message {
            ToWorker::Update(delivery) => self.apply(delivery),
            ToWorker::Explain(question, reply) => {
                let routes = Rc::clone(&self.routes.borrow());
                let Some(site) = routes.find(&question.host).cloned() else {
                    let _ = reply.send(tidegate_gateway::unknown(&self.gateway, &question));
                    return;
                };
                let explain = Rc::clone(&self.gateway).explain(Asked::of_question(&question, site));
                tokio::task::spawn_local(async move { reply.send(explain.await) });
            }
        }
    }

    fn apply(&self, delivery: Delivery) {
        let u = &delivery.update;
        self.gateway.apply(u.revision, u.fresh, u.floor, &u.entries, &|name| u.network.sites.get(name).map(Arc::clone));
        if u.changes_configuration() {
            *self.routes.borrow_mut() = Rc::new(Routes::new(&u.network, &self.shared.settings.node.region, &self.shared.counters));
        }
        let _ = delivery.applied.send(());
    }

    fn sweep(&self) {
        let now = milliseconds(self.shared.clock.boot());
        self.coarse.store(now, Ordering::Relaxed);
        self.gateway.sweep();
        let limits = self.shared.limits();
        self.limits.set(*limits);
        self.connections.borrow_mut().retain(|c| {
            c.upgrade().is_some_and(|c| {
                c.check(now, &limits);
                true
            })
        });
    }

    /// Until the connections are done or their time is over; the network's changes are still taken in.
    async fn drain(&self, inbox: &mut Inbox) {
        // Connections say their last word at the end of that time.
        let limit = tokio::time::sleep(self.shared.limits().drain + LAST_WORDS);
        tokio::pin!(limit);
        let mut look = tokio::time::interval(Duration::from_millis(10));
        while self.open.get() > 0 {
            tokio::select! {
                () = &mut limit => return,
                _ = look.tick() => {}
                Some(message) = inbox.recv() => self.hear(message),
            }
        }
    }

    pub fn watch_connection(&self, multiplexed: bool) -> Arc<ConnectionState> {
        let state = ConnectionState::new(Arc::clone(&self.coarse), multiplexed);
        self.connections.borrow_mut().push(Arc::downgrade(&state));
        state
    }

    /// Bytes that the body of a request may have.
    pub fn most_body(&self) -> u64 {
        self.limits.get().body
    }

    /// The TLS settings for a server name: its site may want TLS 1.3.
    pub fn tls_for(&self, name: Option<&str>) -> Arc<ServerConfig> {
        let routes = Rc::clone(&self.routes.borrow());
        let strict = name.and_then(|n| routes.find(n)).is_some_and(|s| s.state.spec.tls.min_version == TlsVersion::V1_3);
        Arc::clone(if strict { &self.shared.tls_13 } else { &self.shared.tls })
    }
}
