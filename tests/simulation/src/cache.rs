//! Edges and shields: shipped watchers, workers' updates and gateways, polled by hand on this world's time.

use crate::exchange::{Of, Queue, SimOrigin, SimWay, deliver};
use crate::net::{Host, MS};
use crate::plan::{Ask, SITES};
use crate::store::{DiskWork, SimExecutor, SimFolder};
use crate::world::{ConnId, Event, Kind, World};
use http::{HeaderMap, HeaderValue};
use parking_lot::Mutex;
use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Wake, Waker};
use std::time::Duration;
use tidegate_control_types::{Clock, FromNode, NodeName, NodeReport, Role, ToNode};
use tidegate_gateway::store::Tier as DiskTier;
use tidegate_gateway::{Answer, Answering, Asked, Caches, Counters, Fills, Gateway, Node, RequestBody, Site, Store, Tier};
use tidegate_node::watch::{ControlPlane, NotWatching, Saved, WatchStream, Watched, Watcher};
use tidegate_node::workers::{Outbox, ToWorker};
use tidegate_node::{Network, NodeError, Update};
use tidegate_upstream::{EdgeUpstream, Shield, Shields};
use tokio::sync::{mpsc, oneshot};
use tokio::task::LocalSet;

pub struct CacheHost {
    pub name: NodeName,
    pub shield: bool,
    pub saved: SimSaved,
    /// Where its disk tier is.
    pub folder: SimFolder,
    pub running: Option<Cache>,
    /// The control plane removed it, and it ended.
    pub removed: bool,
    /// Its machine is no more.
    pub scrapped: bool,
}

impl CacheHost {
    pub fn new(name: &str, shield: bool) -> Self {
        let name = name.parse().unwrap_or_else(|e| panic!("{e}"));
        Self { name, shield, saved: SimSaved::default(), folder: SimFolder::default(), running: None, removed: false, scrapped: false }
    }
}

/// The file with a node's last good configuration.
#[derive(Clone, Default)]
pub struct SimSaved(Arc<Mutex<File>>);

#[derive(Default)]
struct File {
    network: Option<Network>,
    removed: bool,
    fails: bool,
}

impl SimSaved {
    pub fn forget(&self) {
        self.0.lock().network = None;
    }

    pub fn fail(&self, fails: bool) {
        self.0.lock().fails = fails;
    }
}

impl Saved for SimSaved {
    fn load(&self) -> Result<Option<Network>, NodeError> {
        Ok(self.0.lock().network.clone())
    }

    fn save(&self, network: &Network) -> Result<(), NodeError> {
        let mut file = self.0.lock();
        if file.fails {
            return Err(NodeError::Runtime("no room".into()));
        }
        file.network = Some(network.clone());
        Ok(())
    }

    fn end(&self) -> Result<(), NodeError> {
        let mut file = self.0.lock();
        if file.fails {
            return Err(NodeError::Runtime("no room".into()));
        }
        file.removed = true;
        Ok(())
    }

    fn has_ended(&self) -> bool {
        self.0.lock().removed
    }
}

type EdgeGateway = Gateway<EdgeUpstream<SimWay, SimOrigin>>;

enum Tiered {
    Edge(Rc<EdgeGateway>),
    Shield(Rc<Gateway<SimOrigin>>),
}

impl Tiered {
    fn apply(&self, u: &Update) {
        let site = |name: &str| u.network.sites.get(name).map(Arc::clone);
        match self {
            Self::Edge(g) => g.apply(u.revision, u.fresh, u.floor, &u.entries, &site),
            Self::Shield(g) => g.apply(u.revision, u.fresh, u.floor, &u.entries, &site),
        }
    }

    fn answer(&self, asked: Asked) -> Answering<Answer> {
        match self {
            Self::Edge(g) => g.answer(asked, RequestBody::Empty),
            Self::Shield(g) => g.answer(asked, RequestBody::Empty),
        }
    }

    fn sweep(&self) {
        match self {
            Self::Edge(g) => g.sweep(),
            Self::Shield(g) => g.sweep(),
        }
    }
}

type Sites = Rc<RefCell<HashMap<String, Rc<Site>>>>;

struct Worker {
    gateway: Rc<Tiered>,
    sites: Sites,
}

/// One life of a cache node.
pub struct Cache {
    local: LocalSet,
    flag: Arc<Flag>,
    pub watched: Arc<Watched>,
    workers: Vec<Worker>,
    out: Queue,
    watch_out: WatchQueue,
    disk: SimExecutor,
    store: Arc<Store>,
}

/// Whether a node's futures have something to do.
struct Flag(AtomicBool);

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// What a node's watcher wants of the world.
pub enum WatchOut {
    Open {
        address: String,
        hello: FromNode,
        opening: oneshot::Sender<Result<ConnId, NotWatching>>,
        sender: mpsc::UnboundedSender<Result<ToNode, String>>,
    },
    Say {
        conn: ConnId,
        message: FromNode,
    },
    Dropped {
        conn: ConnId,
    },
    Removed,
}

type WatchQueue = Arc<Mutex<VecDeque<WatchOut>>>;

struct SimControlPlane(WatchQueue);

struct SimStream {
    conn: ConnId,
    out: WatchQueue,
    incoming: mpsc::UnboundedReceiver<Result<ToNode, String>>,
}

impl ControlPlane for SimControlPlane {
    type Stream = SimStream;

    async fn watch(&self, address: &str, hello: &FromNode) -> Result<SimStream, NotWatching> {
        let (opening, opened) = oneshot::channel();
        let (sender, incoming) = mpsc::unbounded_channel();
        self.0.lock().push_back(WatchOut::Open { address: address.to_owned(), hello: hello.clone(), opening, sender });
        match opened.await {
            Ok(Ok(conn)) => Ok(SimStream { conn, out: Arc::clone(&self.0), incoming }),
            Ok(Err(why)) => Err(why),
            Err(_) => Err("the connection is lost".to_owned().into()),
        }
    }
}

impl WatchStream for SimStream {
    async fn say(&mut self, message: &FromNode) -> Result<(), String> {
        self.out.lock().push_back(WatchOut::Say { conn: self.conn, message: message.clone() });
        Ok(())
    }

    async fn next(&mut self) -> Result<ToNode, String> {
        self.incoming.recv().await.unwrap_or(Err("the control node closed it".into()))
    }
}

impl Drop for SimStream {
    fn drop(&mut self) {
        self.out.lock().push_back(WatchOut::Dropped { conn: self.conn });
    }
}

/// Takes updates in one after the other, each after a moment of its own.
async fn work(gateway: Rc<Tiered>, sites: Sites, mut inbox: mpsc::UnboundedReceiver<ToWorker>, mut numbers: fastrand::Rng) {
    while let Some(message) = inbox.recv().await {
        // Nobody asks for explanations here.
        let ToWorker::Update(delivery) = message else { continue };
        if numbers.u8(0..4) == 0 {
            tokio::time::sleep(Duration::from_millis(numbers.u64(1..60))).await;
        }
        let u = &delivery.update;
        gateway.apply(u);
        if u.changes_configuration() {
            let site = |s: &Arc<tidegate_control_types::SiteState>| {
                (s.spec.name.to_string(), Rc::new(Site::new(Arc::clone(s), Arc::<Counters>::default())))
            };
            *sites.borrow_mut() = u.network.sites.values().map(site).collect();
        }
        gateway.sweep();
        let _ = delivery.applied.send(());
    }
}

/// One request of a client, on its way in.
pub struct Request {
    pub id: u64,
    pub worker: usize,
    pub ask: Ask,
}

impl World {
    pub fn start_cache(&mut self, host: Host) {
        let handle = self.runtime.handle().clone();
        let _context = handle.enter();
        let seed = self.machines[host.0].random.u64(..);
        let setup = self.setup.clone();
        let machine = &mut self.machines[host.0];
        machine.life += 1;
        let clock: Arc<dyn Clock> = machine.clock.clone();
        let Kind::Cache(node) = &mut machine.kind else { return };
        let (local, watched) = (LocalSet::new(), Watched::new());
        let (out, watch_out): (Queue, WatchQueue) = (Rc::default(), Arc::default());
        let shields: Arc<Shields> = Arc::default();
        let mut numbers = fastrand::Rng::with_seed(seed);
        let (disk, fills) = (SimExecutor::default(), Arc::<Fills>::default());
        let store = Arc::new(if setup.disk > 0 {
            let tier = Arc::new(DiskTier::new(Box::new(node.folder.clone()), setup.disk));
            tier.recover();
            Store::with_disk(256 << 20, tier, Box::new(disk.clone()), numbers.u64(..))
        } else {
            Store::new(256 << 20)
        });
        let (mut workers, mut senders) = (Vec::new(), Vec::new());
        for _ in 0..setup.workers {
            let tier = if node.shield { Tier::Shield } else { Tier::Edge };
            let via = HeaderValue::from_str(&format!("1.1 {}", node.name)).unwrap_or(HeaderValue::from_static("x"));
            let about = Rc::new(Node { name: node.name.to_string(), tier, via: via.clone(), cdn_id: via });
            let caches = Caches { store: Arc::clone(&store), fills: Arc::clone(&fills), coder: None };
            let lease = Arc::clone(&watched.lease);
            let origin = SimOrigin(Rc::clone(&out));
            let gateway = if node.shield {
                Tiered::Shield(Gateway::new(about, caches, Arc::clone(&clock), lease, origin, setup.selectors))
            } else {
                let upstream = EdgeUpstream::new(Arc::clone(&shields), SimWay(Rc::clone(&out)), origin, Arc::clone(&clock));
                Tiered::Edge(Gateway::new(about, caches, Arc::clone(&clock), lease, upstream, setup.selectors))
            };
            let (sender, inbox) = mpsc::unbounded_channel();
            let (gateway, sites) = (Rc::new(gateway), Sites::default());
            local.spawn_local(work(Rc::clone(&gateway), Rc::clone(&sites), inbox, numbers.fork()));
            workers.push(Worker { gateway, sites });
            senders.push(sender);
        }
        let jitter = Mutex::new(numbers.fork());
        let mut addresses: Vec<_> = (1..=setup.controls).map(|n| format!("c{n}")).collect();
        numbers.shuffle(&mut addresses);
        let watcher = Watcher {
            node: node.name.to_string(),
            addresses,
            control: SimControlPlane(Arc::clone(&watch_out)),
            saved: Box::new(node.saved.clone()),
            stored: setup.disk > 0,
            clock,
            random: Box::new(move || jitter.lock().u64(..)),
            workers: Outbox::new(senders),
            prepare: Box::new(move |update| set_shields(&shields, update)),
            standings: Box::new(drop),
            report: Box::new(NodeReport::default),
            say: None,
            watched: Arc::clone(&watched),
        };
        let ended = Arc::clone(&watch_out);
        local.spawn_local(async move {
            let _ = watcher.run().await;
            ended.lock().push_back(WatchOut::Removed);
        });
        let flag = Arc::new(Flag(AtomicBool::new(true)));
        node.running = Some(Cache { local, flag, watched, workers, out, watch_out, disk, store });
    }

    pub fn wake(&mut self, host: Host) {
        if let Some(cache) = self.cache(host) {
            cache.flag.0.store(true, Ordering::Relaxed);
        }
    }

    /// Lets a node's futures do what they can; whether there was anything.
    pub fn poll(&mut self, host: Host) -> bool {
        if self.machines[host.0].suspended_since.is_some() {
            return false;
        }
        let handle = self.runtime.handle().clone();
        let Some(cache) = self.cache(host) else { return false };
        if !cache.flag.0.load(Ordering::Relaxed) {
            return false;
        }
        let _context = handle.enter();
        let waker = Waker::from(Arc::clone(&cache.flag));
        while cache.flag.0.swap(false, Ordering::Relaxed) {
            let _ = Pin::new(&mut cache.local).poll(&mut Context::from_waker(&waker));
        }
        let (out, watch_out) = (Rc::clone(&cache.out), Arc::clone(&cache.watch_out));
        loop {
            let next = watch_out.lock().pop_front();
            let Some(next) = next else { break };
            self.watch_out(host, next);
        }
        loop {
            let next = out.borrow_mut().pop_front();
            let Some(next) = next else { break };
            self.out(host, next);
        }
        self.begin_disk_work(host);
        true
    }

    /// What a node asked of its disk takes a while.
    fn begin_disk_work(&mut self, host: Host) {
        let Some(queue) = self.cache(host).map(|c| Arc::clone(&c.disk.0)) else { return };
        while let Some(work) = { queue.lock().pop_front() } {
            let machine = &mut self.machines[host.0];
            let (takes, life) = (machine.random.u64(MS / 10..20 * MS), machine.life);
            self.at(takes, Event::Disk { at: host, life, work });
        }
    }

    pub fn disk_done(&mut self, host: Host, life: u64, work: DiskWork) {
        if self.machines[host.0].life != life {
            return;
        }
        let Some(cache) = self.cache(host) else { return };
        match work {
            DiskWork::Read(work) => work(),
            DiskWork::Write => cache.store.disk().into_iter().for_each(|tier| tier.work()),
        }
        cache.flag.0.store(true, Ordering::Relaxed);
    }

    fn watch_out(&mut self, host: Host, out: WatchOut) {
        match out {
            WatchOut::Open { address, hello, opening, sender } => {
                let Some(control) = self.host_named(&address) else { return };
                let life = self.machines[host.0].life;
                let conn = self.new_conn((host, life), control);
                let apart = self.net.is_apart(host, control);
                if let Some(c) = self.conns.get_mut(&conn) {
                    (c.opening, c.sender) = (Some(opening), Some(sender));
                }
                if apart {
                    // The time-out of a connect.
                    return self.at(3000 * MS, Event::Closed { conn });
                }
                let after = self.net.delay(host, control);
                let running = self.control(control).is_some();
                self.at(after, if running { Event::Open { conn, hello } } else { Event::Closed { conn } });
            }
            WatchOut::Say { conn, message } => {
                if let FromNode::Ack { index } = &message {
                    let index = *index;
                    self.tell(host, || format!("acknowledges {index}"));
                }
                self.say_up(conn, message);
            }
            WatchOut::Dropped { conn } => self.closed(conn),
            WatchOut::Removed => {
                self.tell(host, || "was removed, and ends".into());
                self.stop(host);
                if let Kind::Cache(c) = &mut self.machines[host.0].kind {
                    c.removed = true;
                }
            }
        }
    }

    pub fn opened(&mut self, id: ConnId, removed: bool, refused: Option<String>) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        let Some(opening) = conn.opening.take() else { return };
        let answer = match refused {
            _ if removed => Err(NotWatching::Removed),
            Some(why) => Err(NotWatching::Broken(why)),
            None => Ok(id),
        };
        if answer.is_err() {
            self.conns.remove(&id);
        }
        let _ = opening.send(answer);
    }

    pub fn request(&mut self, edge: Host, request: Request) {
        let handle = self.runtime.handle().clone();
        let Some(cache) = self.cache(edge) else { return };
        if !*cache.watched.begun.borrow() {
            return;
        }
        let worker = &cache.workers[request.worker % cache.workers.len()];
        let (ask, name) = (&request.ask, SITES[request.ask.site]);
        let Some(site) = worker.sites.borrow().get(name).cloned() else { return };
        let host = format!("{name}.example");
        let target = site.target(false, &host, ask.path());
        let mut headers = HeaderMap::new();
        let mut field = |name: &'static str, value: String| {
            if let Ok(value) = HeaderValue::from_str(&value) {
                headers.insert(name, value);
            }
        };
        field("accept-language", ask.language.to_string());
        if let Some((first, last)) = ask.range {
            field("range", format!("bytes={first}-{last}"));
        }
        if ask.no_cache {
            field("cache-control", "no-cache".into());
        }
        if ask.authorized {
            field("authorization", "Basic c2lt".into());
        }
        if ask.if_none_match {
            let language = if ask.path() == "/lang" { ask.language } else { 0 };
            field("if-none-match", format!("\"0-{language}\""));
        }
        let asked = Asked::of_client(site, ask.method.clone(), target, headers);
        let (of, pause, out) = (Of::Client(request.id), ask.slow, Rc::clone(&cache.out));
        let _context = handle.enter();
        let _local = cache.local.enter();
        let answering = worker.gateway.answer(asked);
        tokio::task::spawn_local(deliver(answering, of, pause, out));
        cache.flag.0.store(true, Ordering::Relaxed);
    }

    /// An edge's request has arrived at a shield; `false`: it is not there to take it.
    pub fn shield_request(&mut self, shield: Host, exchange: u64, request: http::Request<RequestBody>) -> bool {
        let handle = self.runtime.handle().clone();
        let worker = self.machines[shield.0].random.usize(..);
        let Some(cache) = self.cache(shield) else { return false };
        if !*cache.watched.begun.borrow() {
            return false;
        }
        let worker = &cache.workers[worker % cache.workers.len()];
        let (parts, _) = request.into_parts();
        let Some(asked) = tidegate_origin_shield::asked(parts, &worker.sites.borrow()) else { return false };
        let out = Rc::clone(&cache.out);
        let _context = handle.enter();
        let _local = cache.local.enter();
        let answering = worker.gateway.answer(asked);
        tokio::task::spawn_local(deliver(answering, Of::Exchange(exchange), 0, out));
        cache.flag.0.store(true, Ordering::Relaxed);
        true
    }

    /// Whether a node believes in its lease.
    #[must_use]
    pub fn is_attached(&self, host: Host) -> bool {
        let machine = &self.machines[host.0];
        match &machine.kind {
            Kind::Cache(c) => c.running.as_ref().is_some_and(|c| c.watched.lease.attached(machine.clock.boot())),
            Kind::Control(_) => false,
        }
    }

    /// The index that a node's workers have all applied.
    #[must_use]
    pub fn applied_by(&self, host: Host) -> u64 {
        match &self.machines[host.0].kind {
            Kind::Cache(c) => c.running.as_ref().and_then(|c| c.watched.network()).map_or(0, |n| n.revision.index),
            Kind::Control(_) => 0,
        }
    }
}

/// What an edge does with a change of its shields.
fn set_shields(shields: &Shields, update: &Update) {
    if update.changes_configuration() {
        let all = update.network.nodes.values().filter(|n| n.role == Role::Shield && !n.drained);
        shields.set(all.filter_map(|n| Some(Shield::new(n.name.to_string(), n.address.clone()?, n.name.to_string()))).collect());
    }
}
