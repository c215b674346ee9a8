//! Control nodes: shipped drivers with what surrounds them, the rim that carries their inputs and outputs.

use crate::api::CallId;
use crate::disk::SimDisk;
use crate::net::{Host, MS};
use crate::plan::{SITES, Setup};
use crate::world::{ConnId, Event, Kind, World};
use raft::eraftpb::{ConfChangeType, Message, MessageType, Snapshot};
use std::collections::BTreeMap;
use std::sync::Arc;
use tidegate_control::backup;
use tidegate_control::feed::{Audience, Feed, Told, Unseal};
use tidegate_control::heard::{Acked, Heard, Relayed, removal_of};
use tidegate_control::purge::forgettable;
use tidegate_control::raft::{Done, Driver, DriverSettings, Input, NotDone, Output, Shared, Ticket, member_change};
use tidegate_control_state::State;
use tidegate_control_types::api::Receipt;
use tidegate_control_types::certificate::SealedCertificate;
use tidegate_control_types::command::{Founding, SealedDnsKey, SealedTicketKey};
use tidegate_control_types::lease::Grant;
use tidegate_control_types::site::WhenDetached;
use tidegate_control_types::token::JoinRecord;
use tidegate_control_types::{
    Certificate, Change, Clock, Command, DnsKey, FromNode, Incarnation, NodeName, NodeState, Role, SiteSpec, TicketKey, ToNode, WallTime,
    site_file, wire,
};

pub struct ControlHost {
    pub id: u64,
    pub disk: SimDisk,
    pub running: Option<Box<Control>>,
}

/// No run has a private key.
struct NoKeys;

impl Unseal for NoKeys {
    fn certificate(&self, _: &SealedCertificate) -> Option<Certificate> {
        None
    }

    fn ticket_key(&self, _: &SealedTicketKey) -> Option<TicketKey> {
        None
    }

    fn dns_key(&self, _: &SealedDnsKey) -> Option<DnsKey> {
        None
    }
}

impl ControlHost {
    pub fn new(id: u64, disk: SimDisk) -> Self {
        Self { id, disk, running: None }
    }
}

/// One life of a control node.
pub struct Control {
    pub driver: Driver<SimDisk>,
    pub shared: Arc<Shared>,
    pub sessions: BTreeMap<ConnId, Session>,
    heard: Heard,
    /// Until when an answer to what was handed on is waited for.
    relaying: Option<u64>,
    tickets: BTreeMap<Ticket, Asker>,
    next_ticket: Ticket,
    published: u64,
    ticks: u64,
    leads: Option<u64>,
}

/// A watch stream, at the control node.
pub struct Session {
    node: NodeName,
    feed: Feed,
    /// It is behind by more than is kept for it: entries are dropped until it is caught up.
    lags: bool,
}

/// Who waits for what the driver does.
pub enum Asker {
    Change(CallId),
    Read(CallId),
    /// A purge was found true; this says whether this node still led.
    Confirm(CallId, Receipt),
    Lease(Wanted),
    Nobody,
}

/// A lease that a node asked for over a stream, at the leader or through a follower.
#[derive(Clone)]
pub struct Wanted {
    pub node: NodeName,
    pub conn: ConnId,
    pub asking: u64,
    pub via: Host,
}

pub enum Rpc {
    Lease(Wanted),
    Granted(Wanted, Grant),
    Relay {
        from: Host,
        term: u64,
        relayed: Relayed,
    },
    Relayed {
        leader: u64,
        term: u64,
        acks: Vec<(NodeName, Acked)>,
    },
    RelayFailed,
    /// A snapshot that was sent to this voter was not answered in time.
    SnapshotLate {
        to: u64,
    },
}

const TICK: u64 = 50 * MS;
const RELAY_TIMEOUT: u64 = 3000 * MS;
const SEND_TIMEOUT: u64 = 10_000 * MS;

/// A site as its file would say it.
pub fn site(name: &str, detached: WhenDetached) -> SiteSpec {
    let mode = match detached {
        WhenDetached::Serve => "serve",
        WhenDetached::Revalidate => "revalidate",
        WhenDetached::Refuse => "refuse",
    };
    let text = format!(
        "name = \"{name}\"\nhosts = [\"{name}.example\"]\n[origin]\nservers = [{{ url = \"http://origin.example\" }}]\nretries = 0\n[cache]\nwhen_detached = \"{mode}\"\n"
    );
    site_file::read("site.toml", &text).unwrap_or_else(|e| panic!("the simulation's own site is wrong: {e:?}"))
}

/// The first state of a network whose nodes have all enrolled, as the snapshot that every voter begins with.
pub fn founding(setup: &Setup) -> Snapshot {
    let founding = Founding {
        cluster: "simulated".into(),
        incarnation: Incarnation::new(0, setup.seed),
        zone: None,
        lease: setup.lease,
        root: Vec::new(),
    };
    let mut state = State::new(founding, 1).keeping_receipts(setup.receipts);
    let mut index = 1;
    let mut apply = |change| {
        index += 1;
        let applied = state.apply(index, Command { at: WallTime(0), by: "init".into(), change });
        assert_eq!(applied.outcome, Ok(()), "the network cannot be founded");
    };
    for n in 0..setup.shields + setup.edges {
        let shield = n < setup.shields;
        let (role, name) = if shield { (Role::Shield, format!("s{}", n + 1)) } else { (Role::Edge, format!("e{}", n - setup.shields + 1)) };
        let id = format!("join-{n}");
        apply(Change::JoinCreate {
            join: JoinRecord {
                id: id.clone(),
                hash: [0; 32],
                role,
                region: None,
                created: WallTime(0),
                expires: WallTime(u64::MAX),
                used: None,
            },
        });
        let node = NodeState {
            name: name.parse().unwrap_or_else(|e| panic!("{e}")),
            role,
            region: "here".into(),
            address: shield.then(|| format!("{name}:7444")),
            advertise: Vec::new(),
            drained: false,
            since: 0,
        };
        apply(Change::NodeEnrol { node, join: id, key: [0; 32] });
    }
    for (name, detached) in SITES.iter().zip(setup.detached) {
        apply(Change::SitePut { spec: Box::new(site(name, detached)), source: String::new(), expected: None, vouched: true });
    }
    first(&state, &(1..=(setup.controls - setup.spares) as u64).collect())
}

/// The snapshot that a log begins behind.
fn first(state: &State, voters: &Vec<u64>) -> Snapshot {
    let mut snapshot = Snapshot { data: wire::encode(state).into(), ..Snapshot::default() };
    let meta = snapshot.mut_metadata();
    (meta.index, meta.term) = (state.applied, 1);
    meta.mut_conf_state().voters.clone_from(voters);
    snapshot
}

impl Control {
    pub fn leads(&self) -> bool {
        self.shared.leadership.lock().is_some()
    }
}

impl World {
    pub fn start_control(&mut self, host: Host) {
        let seed = self.machines[host.0].random.u64(..);
        let settings = DriverSettings {
            id: host.0 as u64 + 1,
            election_ticks: 16,
            heartbeat_ticks: 2,
            snapshot_every: self.setup.snapshot_every,
            keep_entries: self.setup.snapshot_every / 10,
        };
        let machine = &mut self.machines[host.0];
        let Kind::Control(control) = &mut machine.kind else { return };
        if control.disk.is_failing() {
            return;
        }
        let mut numbers = fastrand::Rng::with_seed(seed);
        let driver = Driver::new(control.disk.clone(), settings, State::nothing_yet(), Box::new(move || numbers.u64(..)));
        let driver = driver.unwrap_or_else(|e| panic!("c{} cannot start from what it wrote: {e}", control.id));
        machine.life += 1;
        let life = machine.life;
        let shared = driver.shared();
        let published = shared.state.read().applied;
        control.running = Some(Box::new(Control {
            published,
            driver,
            shared,
            sessions: BTreeMap::new(),
            heard: Heard::default(),
            relaying: None,
            tickets: BTreeMap::new(),
            next_ticket: 0,
            ticks: 0,
            leads: None,
        }));
        let first = self.machines[host.0].random.u64(1..TICK);
        self.at(first, Event::Tick { at: host, life });
    }

    pub fn tick(&mut self, host: Host, life: u64) {
        if self.machines[host.0].life != life {
            return;
        }
        self.at(TICK, Event::Tick { at: host, life });
        let sync = self.machines[host.0].random.u8(0..20) == 0;
        if let (true, Kind::Control(c)) = (sync, &self.machines[host.0].kind) {
            c.disk.sync();
        }
        let clock = Arc::clone(&self.machines[host.0].clock);
        let Some(control) = self.control(host) else { return };
        control.ticks += 1;
        control.driver.input(Input::Tick, clock.boot());
        if control.ticks.is_multiple_of(10) {
            self.duties(host);
            self.relay(host);
            self.catch_up_laggards(host);
        }
        self.pump(host);
    }

    fn change_member(&mut self, leader: Host, kind: ConfChangeType, id: u64) {
        let change = Box::new(member_change(kind, id));
        self.ask(leader, Asker::Nobody, |ticket| Input::Members { ticket, change });
    }

    pub fn make_learner(&mut self, of: Host) {
        if let Some(leader) = self.leader() {
            self.change_member(leader, ConfChangeType::AddLearnerNode, of.0 as u64 + 1);
            self.pump(leader);
        }
    }

    /// What a leader does by itself: voters out of learners, and forgetting removed nodes that can answer nothing any more.
    fn duties(&mut self, host: Host) {
        let clock = Arc::clone(&self.machines[host.0].clock);
        let Some(control) = self.control(host) else { return };
        if control.leads()
            && let Some(id) = control.driver.members().ready_learner()
        {
            self.tell(host, || format!("makes a voter of c{id}"));
            self.change_member(host, ConfChangeType::AddNode, id);
        }
        let Some(control) = self.control(host) else { return };
        let done = {
            let state = control.shared.state.read();
            let leadership = control.shared.leadership.lock();
            leadership.as_ref().map(|l| forgettable(&state, l, clock.boot())).unwrap_or_default()
        };
        for (name, removal) in done {
            let command = Box::new(Command { at: clock.wall(), by: "leader".into(), change: Change::NodeForget { name, removal } });
            self.ask(host, Asker::Nobody, |ticket| Input::Propose { ticket, command });
        }
    }

    pub fn raft(&mut self, to: Host, message: Box<Message>) {
        let now = self.machines[to.0].clock.boot();
        let (from, kind) = (message.from, message.get_msg_type());
        let Some(control) = self.control(to) else { return };
        control.driver.input(Input::Message(message), now);
        self.pump(to);
        if kind == MessageType::MsgSnapshot {
            let sender = Host(usize::try_from(from).unwrap_or(1) - 1);
            let (now, id) = (self.machines[sender.0].clock.boot(), to.0 as u64 + 1);
            if let Some(control) = self.control(sender) {
                control.driver.input(Input::SnapshotSent { id, arrived: true }, now);
            }
        }
    }

    /// Hands an input to a driver and remembers who waits for it.
    pub fn ask(&mut self, host: Host, asker: Asker, input: impl FnOnce(Ticket) -> Input) {
        let now = self.machines[host.0].clock.boot();
        let Some(control) = self.control(host) else { return };
        control.next_ticket += 1;
        let ticket = control.next_ticket;
        control.tickets.insert(ticket, asker);
        control.driver.input(input(ticket), now);
    }

    /// Lets a driver do all that its inputs have made ready, and carries out what comes of it.
    pub fn pump(&mut self, host: Host) {
        let clock = Arc::clone(&self.machines[host.0].clock);
        loop {
            let Some(control) = self.control(host) else { return };
            let mut output = match control.driver.round(clock.boot()) {
                Ok(output) => output,
                Err(error) => {
                    self.tell(host, || format!("stops: {error}"));
                    return self.stop(host);
                }
            };
            let messages = std::mem::take(&mut output.messages);
            let done = std::mem::take(&mut output.done);
            let quiet = messages.is_empty() && done.is_empty() && output.applied.is_empty() && !output.restored;
            messages.into_iter().for_each(|m| self.send_raft(host, m));
            self.note_role(host);
            self.publish(host, output);
            for (ticket, result) in done {
                if let Some(asker) = self.control(host).and_then(|c| c.tickets.remove(&ticket)) {
                    self.answered(host, asker, result);
                }
            }
            self.look_at_all(host);
            // What was answered may have been an input.
            if quiet {
                return;
            }
        }
    }

    fn send_raft(&mut self, host: Host, message: Message) {
        let to = Host(usize::try_from(message.to).unwrap_or(1) - 1);
        let arrivals = self.net.datagram(host, to);
        if arrivals.is_empty() {
            let now = self.machines[host.0].clock.boot();
            let Some(control) = self.control(host) else { return };
            control.driver.input(Input::Unreachable { id: message.to }, now);
            if message.get_msg_type() == MessageType::MsgSnapshot {
                control.driver.input(Input::SnapshotSent { id: message.to, arrived: false }, now);
            }
            return;
        }
        if message.get_msg_type() == MessageType::MsgSnapshot {
            // Who sends it waits for an answer; one that came makes this of no effect.
            self.at(SEND_TIMEOUT, Event::Rpc { to: host, rpc: Rpc::SnapshotLate { to: message.to } });
        }
        for after in arrivals {
            self.at(after, Event::Raft { to, message: Box::new(message.clone()) });
        }
    }

    fn note_role(&mut self, host: Host) {
        let Some(control) = self.control(host) else { return };
        let leads = control.shared.leadership.lock().as_ref().map(|l| l.term);
        if leads == control.leads {
            return;
        }
        control.leads = leads;
        let Some(term) = leads else { return self.tell(host, || "leads no longer".into()) };
        self.tell(host, || format!("leads term {term}"));
        let Kind::Control(c) = &self.machines[host.0].kind else { return };
        let (disk, id) = (c.disk.clone(), c.id);
        let checked = self.checker.leads(id, term, |index| disk.reaches(index));
        self.must(checked);
    }

    fn publish(&mut self, host: Host, output: Output) {
        let Some(control) = self.control(host) else { return };
        let id = control.shared.id;
        let applied = control.shared.state.read().applied;
        if applied == control.published && !output.restored {
            return;
        }
        control.published = applied;
        for (index, applied) in &output.applied {
            let checked = self.checker.applied(id, *index, applied);
            self.must(checked);
            if self.story.told.is_some() && applied.outcome.is_ok() {
                let what = format!("has applied {index}: {}", in_words(applied));
                self.tell(host, || what);
            }
        }
        let Some(control) = self.control(host) else { return };
        let shared = Arc::clone(&control.shared);
        let state = shared.state.read();
        let entries = Told::new(&state, output.applied, &NoKeys).to(Audience::Others);
        let (mut out, mut forgotten) = (Vec::new(), Vec::new());
        for (conn, session) in &mut control.sessions {
            if state.node(session.node.as_str()).is_none() {
                forgotten.push(*conn);
                continue;
            }
            // Nothing that came after its removal reaches a node before the word of it.
            if let Some(removal) = removal_of(&state, &session.node) {
                out.push((*conn, Ok(ToNode::Removed { removal })));
            } else if output.restored && !session.lags {
                out.push((*conn, session.feed.again(&state, &NoKeys)));
            } else if !session.lags && session.feed.is_news(state.applied) {
                out.push((*conn, Ok(entries.clone())));
            }
        }
        drop(state);
        forgotten.into_iter().for_each(|conn| self.closed(conn));
        for (conn, message) in out {
            match message {
                Ok(message) => self.say_down(conn, message),
                Err(_) => self.closed(conn),
            }
        }
    }

    /// Streams that lag take the next message, and find that they have missed some.
    fn catch_up_laggards(&mut self, host: Host) {
        let Some(control) = self.control(host) else { return };
        let state = control.shared.state.read();
        let behind = control.sessions.iter_mut().filter(|(_, s)| s.lags && removal_of(&state, &s.node).is_none());
        let again = behind.map(|(conn, s)| {
            s.lags = false;
            (*conn, s.feed.again(&state, &NoKeys))
        });
        let out: Vec<_> = again.collect();
        drop(state);
        for (conn, message) in out {
            match message {
                Ok(message) => self.say_down(conn, message),
                Err(_) => self.closed(conn),
            }
        }
    }

    fn answered(&mut self, host: Host, asker: Asker, result: Result<Done, NotDone>) {
        match asker {
            Asker::Nobody => {}
            Asker::Change(call) => self.change_done(host, call, result),
            Asker::Read(call) => self.read_done(host, call, result),
            Asker::Confirm(call, receipt) => self.confirmed(host, call, receipt, result),
            Asker::Lease(wanted) => {
                let Ok(Done::Read { index }) = result else { return };
                let Some(control) = self.control(host) else { return };
                let duration = control.shared.state.read().founding.lease.duration;
                let grant = Grant { read_index: index, duration };
                if wanted.via == host {
                    self.granted(wanted, grant);
                } else {
                    self.send_rpc(host, wanted.via, Rpc::Granted(wanted, grant));
                }
            }
        }
    }

    fn granted(&mut self, wanted: Wanted, grant: Grant) {
        if self.control(wanted.via).is_some_and(|c| c.sessions.contains_key(&wanted.conn)) {
            self.say_down(wanted.conn, ToNode::Lease { asking: wanted.asking, grant });
        }
    }

    pub fn send_rpc(&mut self, from: Host, to: Host, rpc: Rpc) {
        if !self.net.is_cut(from, to) {
            let after = self.net.delay(from, to);
            self.at(after, Event::Rpc { to, rpc });
        }
    }

    pub fn rpc(&mut self, to: Host, rpc: Rpc) {
        let wall = self.machines[to.0].clock.wall();
        let Some(control) = self.control(to) else { return };
        match rpc {
            Rpc::Lease(wanted) => {
                let node = wanted.node.clone();
                self.ask(to, Asker::Lease(wanted), |ticket| Input::Lease { ticket, node });
                self.pump(to);
            }
            Rpc::Granted(wanted, grant) => self.granted(wanted, grant),
            Rpc::Relay { from, term, relayed } => {
                let acks = relayed.acks.clone();
                let state = control.shared.state.read();
                let taken = control.shared.leadership.lock().as_mut().map(|l| relayed.tell(&state, &mut l.fleet, wall));
                drop(state);
                let leader = control.shared.id;
                match taken {
                    Some(_) => {
                        self.look_at_all(to);
                        self.pump(to);
                        self.send_rpc(to, from, Rpc::Relayed { leader, term, acks });
                    }
                    None => self.send_rpc(to, from, Rpc::RelayFailed),
                }
            }
            Rpc::Relayed { leader, term, acks } => {
                control.relaying = None;
                control.heard.delivered(leader, term, acks);
                self.relay(to);
            }
            Rpc::RelayFailed => control.relaying = None,
            Rpc::SnapshotLate { to: id } => {
                let now = self.machines[to.0].clock.boot();
                if let Some(control) = self.control(to) {
                    control.driver.input(Input::SnapshotSent { id, arrived: false }, now);
                }
            }
        }
    }

    /// Hands on what this node heard: into its own view, or to the leader.
    fn relay(&mut self, host: Host) {
        let wall = self.machines[host.0].clock.wall();
        let Some(control) = self.control(host) else { return };
        let leads = {
            let state = control.shared.state.read();
            control.shared.leadership.lock().as_mut().map(|l| control.heard.tell(&state, &mut l.fleet, wall)).is_some()
        };
        if leads {
            control.relaying = None;
        } else {
            let (leader, term, now) = (self.leader_of(host), self.term_of(host), self.now());
            let Some(control) = self.control(host) else { return };
            let Some(leader) = leader.filter(|_| control.relaying.is_none_or(|until| now > until)) else { return };
            let news = control.heard.news(&control.shared.state.read(), leader.0 as u64 + 1, term);
            if let Some(relayed) = news {
                control.relaying = Some(now + RELAY_TIMEOUT);
                self.send_rpc(host, leader, Rpc::Relay { from: host, term, relayed });
            }
            return;
        }
        self.look_at_all(host);
    }

    pub fn term_of(&mut self, host: Host) -> u64 {
        self.control(host).map_or(0, |c| c.shared.term.load(std::sync::atomic::Ordering::Acquire))
    }

    /// Whom a follower takes for the leader.
    pub fn leader_of(&mut self, host: Host) -> Option<Host> {
        let control = self.control(host)?;
        let id = control.shared.leader.load(std::sync::atomic::Ordering::Acquire);
        (id != 0 && id != control.shared.id).then(|| Host(usize::try_from(id).unwrap_or(1) - 1))
    }

    /// The control node that leads the newest term.
    #[must_use]
    pub fn leader(&self) -> Option<Host> {
        let leads = |m: &crate::world::Machine| if let Kind::Control(c) = &m.kind { c.running.as_ref()?.leads } else { None };
        let all = self.machines.iter().enumerate().filter(|(_, m)| m.suspended_since.is_none());
        all.filter_map(|(n, m)| Some((leads(m)?, Host(n)))).max().map(|(_, h)| h)
    }

    // Watch streams.

    pub fn open(&mut self, id: ConnId, hello: FromNode) {
        let Some(conn) = self.conns.get(&id) else { return };
        let (host, node) = (conn.control.0, self.machines[conn.node.0.0].name.clone());
        let role = if node.starts_with('s') { Role::Shield } else { Role::Edge };
        let Some(control) = self.control(host) else { return self.closed(id) };
        let known = control.shared.state.read().node(&node).map(|n| n.removed.is_some());
        let removal = node.parse().ok().and_then(|n| removal_of(&control.shared.state.read(), &n));
        let back = |removed, refused: Option<&str>| Event::Opened { conn: id, removed, refused: refused.map(str::to_owned) };
        let answer = match known {
            Some(_) => {
                let FromNode::Hello { applied, purges_after, .. } = hello else { return self.closed(id) };
                let opened = Feed::open(&control.shared.state.read(), (role, ""), applied, purges_after, &NoKeys);
                match (opened, node.parse::<NodeName>()) {
                    (Ok((feed, missed)), Ok(name)) => {
                        control.sessions.insert(id, Session { node: name, feed, lags: false });
                        let after = self.net.delay(host, self.conns[&id].node.0);
                        self.at(after, back(false, None));
                        return self.say_down(id, removal.map_or(missed, |removal| ToNode::Removed { removal }));
                    }
                    (Err(behind), _) => back(false, Some(&behind.to_string())),
                    (_, Err(e)) => back(false, Some(&e.to_string())),
                }
            }
            None if !control.leads() => back(false, Some("503")),
            None => back(true, None),
        };
        let after = self.net.delay(host, self.conns[&id].node.0);
        self.at(after, answer);
    }

    pub fn heard(&mut self, id: ConnId, message: FromNode) {
        let Some(host) = self.conns.get(&id).map(|c| c.control.0) else { return };
        let Some(control) = self.control(host) else { return };
        let Some(node) = control.sessions.get(&id).map(|s| s.node.clone()) else { return };
        match message {
            FromNode::Hello { .. } | FromNode::Report(_) | FromNode::Explained { .. } => {}
            FromNode::Ended { removal } => {
                control.heard.ended(&node, removal);
                self.relay(host);
                self.closed(id);
            }
            FromNode::Ack { index } => {
                let enrolled = control.shared.state.read().node(node.as_str()).map_or(0, |n| n.state.since);
                control.heard.acked(&node, Acked { enrolled, index });
                self.relay(host);
                self.pump(host);
            }
            FromNode::AskLease { asking } => {
                let wanted = Wanted { node: node.clone(), conn: id, asking, via: host };
                if control.leads() {
                    self.ask(host, Asker::Lease(wanted), |ticket| Input::Lease { ticket, node });
                    self.pump(host);
                } else if let Some(leader) = self.leader_of(host) {
                    self.send_rpc(host, leader, Rpc::Lease(wanted));
                }
            }
        }
    }

    pub fn save_state(&mut self) {
        let Some(leader) = self.leader() else { return };
        if let Some(control) = self.control(leader) {
            let state = control.shared.state.read().clone();
            // As a file keeps it.
            let file = backup::write(&state, WallTime(0));
            self.backup = backup::read(&file).ok().map(|(_, state)| state);
        }
    }

    /// As `control restore`, with every control node there from the beginning.
    pub fn restore_state(&mut self) {
        let Some(state) = self.backup.take() else { return };
        self.restores += 1;
        let state = state.restored(self.setup.seed + 1_000_003 * self.restores);
        let voters = (1..=self.setup.controls as u64).collect();
        self.forget_old_log();
        self.checker.another_log();
        self.api.another_log();
        self.book = Arc::default();
        for host in (0..self.setup.controls).map(Host) {
            self.stop(host);
            let disk = SimDisk::new(host.0 as u64 + 1, Arc::clone(&self.book));
            disk.found(first(&state, &voters));
            if let Kind::Control(c) = &mut self.machines[host.0].kind {
                c.disk = disk;
            }
        }
        (0..self.setup.controls).for_each(|n| self.start(Host(n)));
    }

    pub fn transfer(&mut self, to: Host) {
        let Some(leader) = self.leader() else { return };
        let now = self.machines[leader.0].clock.boot();
        if let Some(control) = self.control(leader) {
            control.driver.input(Input::Transfer { to: to.0 as u64 + 1 }, now);
            self.pump(leader);
        }
    }

    pub fn lag(&mut self, node: Host) {
        let its: Vec<_> = self.conns.iter().filter(|(_, c)| c.node.0 == node).map(|(id, c)| (*id, c.control.0)).collect();
        for (id, control) in its {
            if let Some(session) = self.control(control).and_then(|c| c.sessions.get_mut(&id)) {
                session.lags = true;
            }
        }
    }
}

fn in_words(applied: &tidegate_control_state::Applied) -> String {
    let words = applied.events.iter().map(|e| match e {
        tidegate_control_types::Event::Purged(orders) => {
            let all: Vec<_> = orders.iter().map(|o| format!("{}{}", if o.soft { "soft " } else { "" }, o.selector)).collect();
            format!("purge {}", all.join(", "))
        }
        tidegate_control_types::Event::Site(s) => format!("site {} ({:?} when detached)", s.spec.name, s.spec.cache.when_detached),
        tidegate_control_types::Event::NodeRemoved(n) => format!("{n} removed"),
        other => format!("{other:?}"),
    });
    words.collect::<Vec<_>>().join("; ")
}
