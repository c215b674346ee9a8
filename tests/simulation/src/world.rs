//! The world: machines, what lies between them, and one queue of events in true time.
//!
//! Between two events nothing happens. After each, all that the futures of running nodes can do at that moment is done,
//! and everything is checked.

use crate::api::{Api, Call, CallId};
use crate::cache::{Cache, CacheHost, Request};
use crate::checker::{Checker, LogBook};
use crate::clock::{HostClock, Truth};
use crate::control::{Control, ControlHost, Rpc};
use crate::disk::SimDisk;
use crate::exchange::{Exchanges, Passing};
use crate::net::{Host, MS, Net, SECOND};
use crate::origin::Origin;
use crate::plan::{Action, Setup};
use crate::store::DiskWork;
use crate::story::Story;
use fastrand::Rng;
use parking_lot::Mutex;
use raft::eraftpb::Message;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tidegate_control_types::{Clock, FromNode, ToNode};

pub type ConnId = u64;

pub enum Event {
    /// Lets futures whose time has come go on.
    Turn,
    /// Looks for connections whose other side is out of reach.
    KeepAlive,
    Tick {
        at: Host,
        life: u64,
    },
    Raft {
        to: Host,
        message: Box<Message>,
    },
    Rpc {
        to: Host,
        rpc: Rpc,
    },
    /// A watch stream: opened by a node, and what the two say.
    Open {
        conn: ConnId,
        hello: FromNode,
    },
    Opened {
        conn: ConnId,
        removed: bool,
        refused: Option<String>,
    },
    ToControl {
        conn: ConnId,
        message: FromNode,
    },
    ToNode {
        conn: ConnId,
        message: Box<ToNode>,
    },
    Closed {
        conn: ConnId,
    },
    Look {
        at: Host,
        life: u64,
        call: CallId,
    },
    Call {
        to: Host,
        call: CallId,
        forwarded: bool,
    },
    GiveUp {
        call: CallId,
    },
    Request {
        edge: Host,
        request: Box<Request>,
    },
    Passing(Passing),
    /// A cache node's disk has done what it was asked for.
    Disk {
        at: Host,
        life: u64,
        work: DiskWork,
    },
    Act(Action),
}

pub enum Kind {
    Control(ControlHost),
    Cache(CacheHost),
}

/// A machine and the process on it.
pub struct Machine {
    pub name: String,
    pub clock: Arc<HostClock>,
    pub kind: Kind,
    /// Grows with each start of the process: what was meant for an earlier one does not reach it.
    pub life: u64,
    pub suspended_since: Option<u64>,
    /// Each host draws its own numbers, so that more or less elsewhere changes little here.
    pub random: Rng,
    backlog: Vec<Event>,
}

/// A watch stream between a node and a control node.
pub struct Conn {
    pub node: (Host, u64),
    pub control: (Host, u64),
    pub sender: Option<tokio::sync::mpsc::UnboundedSender<Result<ToNode, String>>>,
    pub opening: Option<tokio::sync::oneshot::Sender<Result<ConnId, tidegate_node::watch::NotWatching>>>,
    /// When the last message of each direction arrives: a stream keeps its order.
    up: u64,
    down: u64,
    stalled_up: Vec<FromNode>,
    stalled_down: Vec<ToNode>,
    pub apart_since: Option<u64>,
}

pub struct World {
    pub setup: Setup,
    pub truth: Truth,
    queue: BTreeMap<(u64, u64), Event>,
    sequence: u64,
    pub runtime: tokio::runtime::Runtime,
    pub net: Net,
    pub origin: Origin,
    pub checker: Checker,
    pub story: Story,
    pub machines: Vec<Machine>,
    pub book: Arc<Mutex<LogBook>>,
    pub conns: BTreeMap<ConnId, Conn>,
    pub next_conn: ConnId,
    pub exchanges: Exchanges,
    pub api: Api,
    /// What was saved of the leader's state.
    pub backup: Option<tidegate_control_state::State>,
    pub restores: u64,
    pub problem: Option<String>,
}

/// A connection whose other side is out of reach for this long is given up.
const KEEP_ALIVE: u64 = 4 * SECOND;
const TURN: u64 = 5 * MS;

impl World {
    #[must_use]
    pub fn new(setup: &Setup, told: bool) -> Self {
        let truth = Truth::default();
        let book: Arc<Mutex<LogBook>> = Arc::default();
        let mut random = Rng::with_seed(setup.seed ^ 0xc10c);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
        let mut world = Self {
            setup: setup.clone(),
            truth: truth.clone(),
            queue: BTreeMap::new(),
            sequence: 0,
            runtime: runtime.unwrap_or_else(|e| panic!("no runtime: {e}")),
            net: Net::new(setup.seed, setup.weather),
            origin: Origin::default(),
            checker: Checker::default(),
            story: Story::new(told),
            machines: Vec::new(),
            book: Arc::clone(&book),
            conns: BTreeMap::new(),
            next_conn: 0,
            exchanges: Exchanges::default(),
            api: Api::default(),
            backup: None,
            restores: 0,
            problem: None,
        };
        let founding = crate::control::founding(setup);
        for n in 0..setup.origin().0 {
            let drift = if setup.drift_ppm > 0 { random.i64(-setup.drift_ppm..=setup.drift_ppm) } else { 0 };
            let clock = HostClock::new(truth.clone(), random.u64(1..1_000_000) * SECOND, drift);
            let (name, kind) = if n < setup.controls {
                let id = n as u64 + 1;
                let disk = SimDisk::new(id, Arc::clone(&book));
                if n < setup.controls - setup.spares {
                    disk.found(founding.clone());
                }
                (format!("c{id}"), Kind::Control(ControlHost::new(id, disk)))
            } else {
                let at = n - setup.controls;
                let name = if at < setup.shields { format!("s{}", at + 1) } else { format!("e{}", at - setup.shields + 1) };
                (name.clone(), Kind::Cache(CacheHost::new(&name, at < setup.shields)))
            };
            world.machines.push(Machine { name, clock, kind, life: 0, suspended_since: None, random: random.fork(), backlog: Vec::new() });
        }
        for n in 0..world.machines.len() {
            world.start(Host(n));
        }
        world.at(TURN, Event::Turn);
        world.at(SECOND, Event::KeepAlive);
        world
    }

    #[must_use]
    pub fn now(&self) -> u64 {
        self.truth.now()
    }

    /// Puts an event `after` nanoseconds from now.
    pub fn at(&mut self, after: u64, event: Event) {
        self.sequence += 1;
        self.queue.insert((self.now() + after, self.sequence), event);
    }

    pub fn act_at(&mut self, time: u64, action: Action) {
        self.sequence += 1;
        self.queue.insert((time, self.sequence), Event::Act(action));
    }

    /// What control nodes of another log say reaches nobody: they refuse it.
    pub fn forget_old_log(&mut self) {
        self.queue.retain(|_, e| !matches!(e, Event::Raft { .. } | Event::Rpc { .. }));
    }

    pub fn tell(&mut self, who: Host, what: impl FnOnce() -> String) {
        let name = self.machines.get(who.0).map_or("", |m| m.name.as_str());
        self.story.tell(self.truth.now(), name, what);
    }

    pub fn must(&mut self, checked: Result<(), String>) {
        if let (Err(why), None) = (checked, &self.problem) {
            self.story.tell(self.truth.now(), "CHECK", || why.clone());
            self.problem = Some(why);
        }
    }

    /// Runs through `time`, or to the first violation.
    pub fn run_until(&mut self, time: u64) {
        while self.problem.is_none() {
            let Some((&(at, sequence), _)) = self.queue.first_key_value().filter(|((at, _), _)| *at <= time) else { break };
            let Some(event) = self.queue.remove(&(at, sequence)) else { break };
            self.pass(at);
            self.handle(event);
            self.settle();
            self.check();
        }
        if self.problem.is_none() {
            self.pass(time);
        }
    }

    /// Runs until `done`, for at most `most` nanoseconds; whether it came to that.
    pub fn run_while(&mut self, most: u64, mut done: impl FnMut(&mut Self) -> bool) -> bool {
        let end = self.now() + most;
        while self.problem.is_none() && self.now() < end {
            if done(self) {
                return true;
            }
            self.run_until((self.now() + 10 * MS).min(end));
        }
        done(self)
    }

    fn pass(&mut self, at: u64) {
        let by = at.saturating_sub(self.now());
        if by > 0 {
            self.truth.set(at);
            self.runtime.block_on(tokio::time::advance(Duration::from_nanos(by)));
        }
    }

    fn handle(&mut self, event: Event) {
        self.checker.stats.steps += 1;
        let host = self.host_of(&event);
        if let Some(machine) = host.and_then(|h| self.machines.get_mut(h.0))
            && machine.suspended_since.is_some()
        {
            machine.backlog.push(event);
            return;
        }
        match event {
            Event::Turn => self.at(TURN, Event::Turn),
            Event::KeepAlive => self.keep_alive(),
            Event::Tick { at, life } => self.tick(at, life),
            Event::Raft { to, message } => self.raft(to, message),
            Event::Rpc { to, rpc } => self.rpc(to, rpc),
            Event::Open { conn, hello } => self.open(conn, hello),
            Event::Opened { conn, removed, refused } => self.opened(conn, removed, refused),
            Event::ToControl { conn, message } => self.heard(conn, message),
            Event::ToNode { conn, message } => {
                if let Some(sender) = self.conns.get(&conn).and_then(|c| c.sender.as_ref()) {
                    let _ = sender.send(Ok(*message));
                }
            }
            Event::Closed { conn } => self.closed(conn),
            Event::Look { at, life, call } => {
                if self.machines[at.0].life == life {
                    self.look(at, call);
                }
            }
            Event::Call { to, call, forwarded } => self.call_arrives(to, call, forwarded),
            Event::GiveUp { call } => self.give_up(call),
            Event::Request { edge, request } => self.request(edge, *request),
            Event::Passing(passing) => self.passing(passing),
            Event::Disk { at, life, work } => self.disk_done(at, life, work),
            Event::Act(action) => self.act(action),
        }
    }

    /// The machine whose process has to take an event in.
    fn host_of(&self, event: &Event) -> Option<Host> {
        match event {
            Event::Tick { at, .. } | Event::Look { at, .. } | Event::Disk { at, .. } => Some(*at),
            Event::Raft { to, .. } | Event::Rpc { to, .. } | Event::Call { to, .. } => Some(*to),
            Event::Open { conn, .. } | Event::ToControl { conn, .. } => self.conns.get(conn).map(|c| c.control.0),
            Event::Request { edge, .. } => Some(*edge),
            Event::Passing(p) => self.exchanges.host_of(p),
            _ => None,
        }
    }

    fn settle(&mut self) {
        loop {
            let mut moved = false;
            for n in 0..self.machines.len() {
                moved |= self.poll(Host(n));
            }
            if !moved {
                return;
            }
        }
    }

    fn check(&mut self) {
        let checked = self.book.lock().check();
        self.must(checked);
        self.check_leases();
    }

    /// A lease that a node believes in is one that the leader counts.
    fn check_leases(&mut self) {
        let leaders = self.machines.iter().filter_map(|m| {
            let control = if let Kind::Control(c) = &m.kind { c.running.as_ref()? } else { return None };
            let leadership = control.shared.leadership.lock();
            let term = leadership.as_ref()?.term;
            let ends: Vec<_> = self
                .machines
                .iter()
                .filter_map(|n| if let Kind::Cache(c) = &n.kind { Some(&c.name) } else { None })
                .map(|name| leadership.as_ref().map(|l| m.clock.boot() < l.fleet.lease_until(name)))
                .collect();
            Some((term, m.name.clone(), ends))
        });
        // One that another has followed, and does not know it yet, counts nothing.
        let newest = self.checker.newest_term();
        let Some((term, leader, counted)) = leaders.max_by_key(|(term, ..)| *term).filter(|(term, ..)| *term == newest) else { return };
        let caches = self.machines.iter().filter_map(|m| if let Kind::Cache(c) = &m.kind { Some((m, c)) } else { None });
        let wrong = caches.zip(counted).find_map(|((m, c), counted)| {
            let watched = &c.running.as_ref()?.watched;
            (watched.lease.attached(m.clock.boot()) && counted == Some(false)).then(|| m.name.clone())
        });
        if let Some(node) = wrong {
            self.must(Err(format!("lease: {node} believes in a lease that {leader}, leader of term {term}, no longer counts")));
        }
    }

    // Streams keep their order, and stall while their link is cut.

    pub fn say_up(&mut self, id: ConnId, message: FromNode) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        if self.net.is_cut(conn.node.0, conn.control.0) {
            conn.stalled_up.push(message);
            return;
        }
        let now = self.truth.now();
        conn.up = conn.up.max(now + self.net.delay(conn.node.0, conn.control.0));
        let after = conn.up - now;
        self.at(after, Event::ToControl { conn: id, message });
    }

    pub fn say_down(&mut self, id: ConnId, message: ToNode) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        if self.net.is_cut(conn.control.0, conn.node.0) {
            conn.stalled_down.push(message);
            return;
        }
        let now = self.truth.now();
        conn.down = conn.down.max(now + self.net.delay(conn.control.0, conn.node.0));
        let after = conn.down - now;
        self.at(after, Event::ToNode { conn: id, message: Box::new(message) });
    }

    fn flow_again(&mut self) {
        for id in self.conns.keys().copied().collect::<Vec<_>>() {
            let Some(conn) = self.conns.get_mut(&id) else { continue };
            let (up, down) = (std::mem::take(&mut conn.stalled_up), std::mem::take(&mut conn.stalled_down));
            up.into_iter().for_each(|m| self.say_up(id, m));
            down.into_iter().for_each(|m| self.say_down(id, m));
        }
    }

    /// The node's end of a new stream.
    pub fn new_conn(&mut self, conn: (Host, u64), control: Host) -> ConnId {
        self.next_conn += 1;
        let life = self.machines[control.0].life;
        let new = Conn {
            node: conn,
            control: (control, life),
            sender: None,
            opening: None,
            up: 0,
            down: 0,
            stalled_up: Vec::new(),
            stalled_down: Vec::new(),
            apart_since: None,
        };
        self.conns.insert(self.next_conn, new);
        self.next_conn
    }

    fn keep_alive(&mut self) {
        self.at(SECOND / 2, Event::KeepAlive);
        let now = self.now();
        let mut gone = Vec::new();
        for (id, conn) in &mut self.conns {
            let ends = [conn.node.0, conn.control.0];
            let still = ends.iter().any(|h| self.machines[h.0].suspended_since.is_some());
            if still || self.net.is_apart(conn.node.0, conn.control.0) {
                let since = *conn.apart_since.get_or_insert(now);
                if now - since > KEEP_ALIVE {
                    gone.push(*id);
                }
            } else if self.machines[conn.control.0.0].life != conn.control.1 || self.machines[conn.node.0.0].life != conn.node.1 {
                // Another process is there now, or none, and its kernel says so.
                gone.push(*id);
            } else {
                conn.apart_since = None;
            }
        }
        gone.into_iter().for_each(|id| self.closed(id));
        self.exchanges_keep_alive();
    }

    /// Both ends learn that a stream is over; who cannot take it in now does later.
    pub fn closed(&mut self, id: ConnId) {
        let Some(conn) = self.conns.remove(&id) else { return };
        if let Some(sender) = conn.sender {
            let _ = sender.send(Err("the connection is lost".into()));
        }
        if let Some(opening) = conn.opening {
            let _ = opening.send(Err("the connection is lost".to_owned().into()));
        }
        if let Some(control) = self.control(conn.control.0) {
            control.sessions.remove(&id);
        }
    }

    pub fn control(&mut self, host: Host) -> Option<&mut Control> {
        match &mut self.machines.get_mut(host.0)?.kind {
            Kind::Control(c) => c.running.as_deref_mut(),
            Kind::Cache(_) => None,
        }
    }

    pub fn cache(&mut self, host: Host) -> Option<&mut Cache> {
        match &mut self.machines.get_mut(host.0)?.kind {
            Kind::Cache(c) => c.running.as_mut(),
            Kind::Control(_) => None,
        }
    }

    #[must_use]
    pub fn host_named(&self, name: &str) -> Option<Host> {
        self.machines.iter().position(|m| m.name == name).map(Host)
    }

    /// Starts the process on a machine, if it does not run.
    pub fn start(&mut self, host: Host) {
        match self.machines.get(host.0).map(|m| &m.kind) {
            Some(Kind::Control(c)) if c.running.is_none() => self.start_control(host),
            Some(Kind::Cache(c)) if c.running.is_none() && !c.scrapped => self.start_cache(host),
            _ => {}
        }
    }

    /// Ends the process on a machine at once.
    pub fn stop(&mut self, host: Host) {
        let machine = &mut self.machines[host.0];
        machine.life += 1;
        machine.backlog.clear();
        machine.suspended_since = None;
        match &mut machine.kind {
            Kind::Control(c) => c.running = None,
            Kind::Cache(c) => {
                let _context = self.runtime.enter();
                c.running = None;
            }
        }
        let broken: Vec<_> = self.conns.iter().filter(|(_, c)| c.node.0 == host || c.control.0 == host).map(|(id, _)| *id).collect();
        for id in broken {
            let apart = self.conns.get(&id).is_some_and(|c| self.net.is_apart(c.node.0, c.control.0));
            // The kernel says so; over a cut link nobody hears it.
            if !apart {
                self.at(MS, Event::Closed { conn: id });
            }
        }
        self.exchanges_stopped(host);
    }

    fn act(&mut self, action: Action) {
        if action.is_fault() {
            self.checker.stats.faults += 1;
        }
        let at = match &action {
            Action::Kill(h) | Action::Power(h) | Action::Start(h) | Action::StartBare(h) | Action::StartForgetful(h) => *h,
            Action::Suspend(h) | Action::Resume(h) => *h,
            Action::Cut(h, _) | Action::Heal(h, _) | Action::Disk(h, _) | Action::Reset(h) | Action::Lag(h) | Action::Learner(h) => *h,
            _ => self.setup.outside(),
        };
        if !matches!(action, Action::Get { .. } | Action::GetOnceAttached { .. } | Action::Purge { .. } | Action::Read { .. }) {
            let text = if self.story.told.is_some() { self.in_words(&action) } else { String::new() };
            self.tell(at, || text);
        }
        match action {
            Action::Get { edge, worker, ask } => drop(self.get(edge, worker, ask)),
            Action::GetOnceAttached { edge, ask, .. } if self.is_attached(edge) => drop(self.get(edge, 0, ask)),
            Action::GetOnceAttached { until, .. } if self.now() < until => self.at(MS, Event::Act(action)),
            Action::GetOnceAttached { .. } => {}
            Action::Purge { at, orders, wait_ms } => drop(self.call(at, Call::purge(orders, wait_ms))),
            Action::Detached { at, site, mode } => drop(self.call(at, Call::detached(site, mode))),
            Action::Read { at } => drop(self.call(at, Call::read())),
            Action::Remove { at, node, dead } => {
                let name = self.machines[node.0].name.clone();
                if dead {
                    // What the operator vouches for is so.
                    self.stop(node);
                    if let Kind::Cache(c) = &mut self.machines[node.0].kind {
                        c.scrapped = true;
                    }
                }
                self.call(at, Call::remove(&name, dead));
            }
            Action::Change { site, page } => self.origin.change(crate::plan::SITES[site], page),
            Action::Origin(health) => self.origin.health = health,
            Action::OriginTakes { ms } => self.origin.takes_ms = ms,
            Action::Kill(host) => self.stop(host),
            Action::Power(host) => {
                self.stop(host);
                let machine = &mut self.machines[host.0];
                match &machine.kind {
                    Kind::Control(c) => c.disk.lose_power(),
                    Kind::Cache(c) => c.folder.lose_power(&mut machine.random),
                }
            }
            Action::Start(host) => self.start(host),
            Action::StartBare(host) | Action::StartForgetful(host) => {
                if let Kind::Cache(c) = &mut self.machines[host.0].kind
                    && c.running.is_none()
                {
                    c.saved.forget();
                    if let Action::StartBare(_) = action {
                        c.folder.forget();
                    }
                }
                self.start(host);
            }
            Action::Suspend(host) => drop(self.machines[host.0].suspended_since.get_or_insert(self.truth.now())),
            Action::Resume(host) => self.resume(host),
            Action::Cut(a, b) => self.net.cut(a, b),
            Action::Heal(a, b) => {
                self.net.heal(a, b);
                self.flow_again();
            }
            Action::HealAll => {
                self.net.heal_all();
                self.flow_again();
            }
            Action::Transfer { to } => self.transfer(to),
            Action::Learner(host) => self.make_learner(host),
            Action::Disk(host, fails) => {
                if let Kind::Control(c) = &self.machines[host.0].kind {
                    c.disk.fail(fails);
                }
            }
            Action::SavesFail(host, fails) => {
                if let Kind::Cache(c) = &self.machines[host.0].kind {
                    c.saved.fail(fails);
                    c.folder.fail(fails);
                }
            }
            Action::Wall(host, ms) => self.machines[host.0].clock.jump_wall(ms),
            Action::Reset(host) => {
                let its: Vec<_> = self.conns.iter().filter(|(_, c)| c.node.0 == host).map(|(id, _)| *id).collect();
                its.into_iter().for_each(|id| self.closed(id));
            }
            Action::Lag(host) => self.lag(host),
            Action::Backup => self.save_state(),
            Action::Restore => self.restore_state(),
        }
    }

    fn resume(&mut self, host: Host) {
        let now = self.now();
        let machine = &mut self.machines[host.0];
        let Some(since) = machine.suspended_since.take() else { return };
        machine.clock.was_suspended(now - since);
        let backlog = std::mem::take(&mut machine.backlog);
        // Ticks that were missed are not made up for.
        let mut ticked = false;
        for event in backlog {
            if matches!(event, Event::Tick { .. }) && std::mem::replace(&mut ticked, true) {
                continue;
            }
            self.at(0, event);
        }
        self.wake(host);
    }

    fn name(&self, host: Host) -> String {
        self.machines
            .get(host.0)
            .map_or_else(|| if host == self.setup.origin() { "origin".into() } else { "outside".into() }, |m| m.name.clone())
    }

    fn in_words(&self, action: &Action) -> String {
        match action {
            Action::Kill(_) => "is killed".into(),
            Action::Power(_) => "loses its power".into(),
            Action::Start(_) => "starts".into(),
            Action::StartBare(_) => "starts with nothing saved or stored".into(),
            Action::StartForgetful(_) => "starts with nothing saved".into(),
            Action::Suspend(_) => "is suspended".into(),
            Action::Resume(_) => "goes on".into(),
            Action::Cut(_, b) => format!("reaches {} no more", self.name(*b)),
            Action::Heal(_, b) => format!("reaches {} again", self.name(*b)),
            Action::Disk(_, fails) => fails.map_or("its disk is well again".into(), |f| format!("its disk: {f:?}")),
            Action::Learner(_) => "is to be a learner".into(),
            Action::Reset(_) => "its watch stream breaks".into(),
            Action::Lag(_) => "its watch stream lags".into(),
            Action::SavesFail(h, fails) => format!("{} {} save", self.name(*h), if *fails { "can no longer" } else { "can again" }),
            Action::Remove { node, dead, .. } => format!("{} is removed{}", self.name(*node), if *dead { " as dead" } else { "" }),
            Action::Detached { site, mode, .. } => format!("site {} becomes {mode:?}", crate::plan::SITES[*site]),
            Action::Backup => "a backup is taken".into(),
            Action::Restore => "the network is restored from the backup".into(),
            other => format!("{other:?}"),
        }
    }
}
