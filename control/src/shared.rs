//! What all parts of a control node's rim share, and the thread that runs the driver.

use crate::ControlError;
use crate::acme::Acme;
use crate::cluster_key::ClusterKeys;
use crate::feed::{Audience, Told, Unseal};
use crate::heard::Heard;
use crate::holding::Holding;
use crate::ownership::Names;
use crate::peers::Peers;
use crate::questions::Questions;
use crate::raft::{Disk, Done, Driver, Input, Leadership, Members, NotDone, Output, Shared, Ticket};
use crate::settings::ControlSettings;
use bytes::Bytes;
use parking_lot::Mutex;
use raft::eraftpb::{ConfChangeV2, Message};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Duration;
use tidegate_certs::CertError;
use tidegate_control_state::{Refusal, State};
use tidegate_control_types::certificate::SealedCertificate;
use tidegate_control_types::command::{SealedDnsKey, SealedTicketKey};
use tidegate_control_types::lease::Grant;
use tidegate_control_types::sealed::SealedName;
use tidegate_control_types::{BootTime, Certificate, Change, Clock, Command, DnsKey, Incarnation, NodeName, TicketKey, wire};
use tidegate_node::link::Links;
use tidegate_node::{CurrentCredentials, SystemClock};
use tokio::sync::{broadcast, oneshot, watch};
use zeroize::Zeroizing;

/// Frames that a slow watch stream may be behind by before it is caught up anew.
const MOST_BEHIND: usize = 4096;
/// Inputs taken into one round: one fsync serves them all.
const MOST_PER_ROUND: usize = 4096;
/// How long a change may take before its outcome is called unknown.
pub const CHANGE_TIMEOUT: Duration = Duration::from_secs(10);

/// One batch of applied entries, encoded once for every watcher.
#[derive(Clone)]
pub enum Broadcast {
    Entries {
        through: u64,
        for_edges: EdgeFrames,
        for_dns: Bytes,
        for_others: Bytes,
    },
    /// For every node, as a frame.
    Question(Bytes),
    /// The state came as a whole: whoever watches has to be caught up anew.
    Restored,
}

/// What edges are told, by their region.
#[derive(Clone)]
pub enum EdgeFrames {
    Alike(Bytes),
    Regional(Arc<BTreeMap<String, Bytes>>),
}

impl EdgeFrames {
    /// `None`: a node of a region that had no edge at that moment has to be caught up.
    #[must_use]
    pub fn of(&self, region: &str) -> Option<Bytes> {
        match self {
            Self::Alike(frame) => Some(frame.clone()),
            Self::Regional(frames) => frames.get(region).cloned(),
        }
    }
}

type Answer = oneshot::Sender<Result<Done, NotDone>>;

enum ToDriver {
    Input(Input),
    Ask(Box<dyn FnOnce(Ticket) -> Input + Send>, Answer),
    Members(oneshot::Sender<Members>),
    Stop,
}

pub struct Control {
    pub settings: ControlSettings,
    pub raft: Arc<Shared>,
    pub clock: SystemClock,
    pub credentials: CurrentCredentials,
    pub cluster_keys: ClusterKeys,
    pub links: Arc<Links>,
    pub peers: Peers,
    to_driver: Sender<ToDriver>,
    /// Counts applied batches, acknowledgements and changes of leader: whoever waits for any of them looks again.
    pub changed: watch::Sender<u64>,
    pub broadcast: broadcast::Sender<Broadcast>,
    /// Locked after the leadership, where both are.
    pub heard: Mutex<Heard>,
    /// Held by a control node that joins: one at a time.
    pub joining: tokio::sync::Mutex<()>,
    /// Nodes that were put elsewhere just now.
    pub moved: Mutex<BTreeMap<NodeName, BootTime>>,
    pub relay: tokio::sync::Notify,
    pub questions: Questions,
    pub names: Names,
    pub acme: Acme,
    pub holding: Holding,
    /// Why the driver ended, if it failed.
    pub failed: watch::Sender<Option<String>>,
    generation: AtomicU64,
}

/// Why a change or a read did not happen as asked.
#[derive(Debug, thiserror::Error)]
pub enum NotNow {
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error("this control node does not lead, and knows no leader yet")]
    NoLeader,
    #[error("the outcome is unknown: the leader changed or the quorum was lost meanwhile; look before you try again")]
    Unknown,
    #[error("another change of the control nodes is under way; try again")]
    Busy,
    #[error("the node is not part of this network")]
    UnknownNode,
}

impl From<NotDone> for NotNow {
    fn from(e: NotDone) -> Self {
        match e {
            NotDone::NotLeader => Self::NoLeader,
            NotDone::Unknown => Self::Unknown,
            NotDone::Busy => Self::Busy,
            NotDone::UnknownNode => Self::UnknownNode,
            NotDone::TooLarge => Self::Refused(Refusal::Limit("it is too large for the log".into())),
        }
    }
}

impl Control {
    /// Starts the driver on a thread of its own; it ends when [`Control::stop`] is called or its disk fails.
    ///
    /// # Errors
    /// The thread cannot be made.
    pub fn start<D: Disk + 'static>(
        driver: Driver<D>,
        settings: ControlSettings,
        credentials: CurrentCredentials,
        cluster_keys: ClusterKeys,
    ) -> Result<(Arc<Self>, std::thread::JoinHandle<()>), ControlError> {
        let (to_driver, inbox) = channel();
        let links = Links::new(credentials.clone());
        let control = Arc::new(Self {
            raft: driver.shared(),
            clock: SystemClock,
            peers: Peers::default(),
            to_driver,
            changed: watch::channel(0).0,
            broadcast: broadcast::channel(MOST_BEHIND).0,
            heard: Mutex::default(),
            joining: tokio::sync::Mutex::default(),
            moved: Mutex::default(),
            relay: tokio::sync::Notify::new(),
            questions: Questions::default(),
            names: Names::new(&settings.name_servers),
            acme: Acme::default(),
            holding: Holding::default(),
            failed: watch::channel(None).0,
            generation: AtomicU64::new(0),
            settings,
            credentials,
            cluster_keys,
            links,
        });
        let (shared, runtime) = (Arc::clone(&control), tokio::runtime::Handle::current());
        let thread = std::thread::Builder::new().name("raft".into()).spawn(move || {
            let _guard = runtime.enter();
            if let Err(error) = run_driver(driver, &shared, &inbox) {
                tracing::error!(node = %shared.settings.name, %error, "this control node stops");
                shared.failed.send_replace(Some(error.to_string()));
            }
            // Whoever still waits for an answer gets none: the senders are dropped with the inbox.
        });
        let thread = thread.map_err(|e| ControlError::Raft(format!("cannot start the driver: {e}")))?;
        Ok((control, thread))
    }

    pub fn stop(&self) {
        let _ = self.to_driver.send(ToDriver::Stop);
    }

    /// This control node is of no use any more.
    pub fn end(&self, why: String) {
        self.failed.send_if_modified(|failed| {
            let is_first = failed.is_none();
            if is_first {
                tracing::error!(node = %self.settings.name, why, "this control node stops");
                *failed = Some(why);
            }
            is_first
        });
    }

    pub fn note_change(&self) {
        self.changed.send_replace(self.generation.fetch_add(1, Ordering::Relaxed) + 1);
    }

    pub fn message(&self, message: Message) {
        let _ = self.to_driver.send(ToDriver::Input(Input::Message(Box::new(message))));
    }

    pub fn input(&self, input: Input) {
        let _ = self.to_driver.send(ToDriver::Input(input));
    }

    async fn ask(&self, make: impl FnOnce(Ticket) -> Input + Send + 'static) -> Result<Done, NotNow> {
        let (answer, answered) = oneshot::channel();
        if self.to_driver.send(ToDriver::Ask(Box::new(make), answer)).is_err() {
            return Err(NotNow::Unknown);
        }
        match tokio::time::timeout(CHANGE_TIMEOUT, answered).await {
            Ok(Ok(done)) => Ok(done?),
            _ => Err(NotNow::Unknown),
        }
    }

    /// Proposes a change on this node, which has to lead, and waits until it is applied here. Returns its index.
    ///
    /// # Errors
    /// It was refused, or its outcome is unknown.
    pub async fn change(&self, by: &str, change: Change) -> Result<u64, NotNow> {
        let command = Box::new(Command { at: self.clock.wall(), by: by.into(), change });
        match self.ask(|ticket| Input::Propose { ticket, command }).await? {
            Done::Applied { index, outcome } => Ok(outcome.map(|()| index)?),
            Done::Read { .. } => Err(NotNow::Unknown),
        }
    }

    pub async fn change_members(&self, change: ConfChangeV2) -> Result<(), NotNow> {
        let deadline = self.clock.boot() + CHANGE_TIMEOUT;
        loop {
            let asked = change.clone();
            match self.ask(move |ticket| Input::Members { ticket, change: Box::new(asked) }).await {
                Err(NotNow::Busy) if self.clock.boot() < deadline => tokio::time::sleep(Duration::from_millis(10)).await,
                other => return other.map(|_| ()),
            }
        }
    }

    /// Returns once this node is known to lead and to have applied all that was acknowledged before the call.
    ///
    /// # Errors
    /// It does not lead, or cannot reach a quorum.
    pub async fn read_barrier(&self) -> Result<(), NotNow> {
        match self.ask(|ticket| Input::Read { ticket }).await? {
            Done::Read { .. } => Ok(()),
            Done::Applied { .. } => Err(NotNow::Unknown),
        }
    }

    /// Grants `node` a lease on this node, which has to lead.
    ///
    /// # Errors
    /// It does not lead, cannot reach a quorum, or does not know the node.
    pub async fn grant_lease(&self, node: NodeName) -> Result<Grant, NotNow> {
        let duration = self.raft.state.read().founding.lease.duration;
        match self.ask(|ticket| Input::Lease { ticket, node }).await? {
            Done::Read { index } => Ok(Grant { read_index: index, duration }),
            Done::Applied { .. } => Err(NotNow::Unknown),
        }
    }

    pub async fn members(&self) -> Option<Members> {
        let (answer, answered) = oneshot::channel();
        self.to_driver.send(ToDriver::Members(answer)).ok()?;
        answered.await.ok()
    }

    #[must_use]
    pub fn leads(&self) -> bool {
        self.raft.leadership.lock().is_some()
    }

    /// Reads the state and the leadership together; `None` where this node does not lead.
    pub fn with_leadership<T>(&self, f: impl FnOnce(&State, &mut Leadership) -> T) -> Option<T> {
        let state = self.raft.state.read();
        self.raft.leadership.lock().as_mut().map(|l| f(&state, l))
    }

    /// Whose log this node holds; all zeros for one that has none yet.
    #[must_use]
    pub fn log(&self) -> Incarnation {
        self.raft.state.read().founding.incarnation
    }

    #[must_use]
    pub fn now(&self) -> BootTime {
        self.clock.boot()
    }

    /// The address of the leader, if it is another node and known.
    #[must_use]
    pub fn leader_address(&self) -> Option<String> {
        let id = self.raft.leader.load(Ordering::Acquire);
        if id == 0 || id == self.raft.id {
            return None;
        }
        self.peers.address(id, &self.raft.state.read())
    }

    /// Seals a secret for the log. Not to be called while the state is locked.
    ///
    /// # Errors
    /// This node has not the network's key, or the random source fails.
    pub fn seal(&self, name: &SealedName, plain: &[u8]) -> Result<Vec<u8>, CertError> {
        self.cluster_keys.seal(&self.raft.state.read(), name, plain)
    }

    fn unsealed(&self, name: &SealedName, sealed: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
        let opened = self.cluster_keys.open(name, sealed);
        opened.inspect_err(|error| tracing::error!(%error, "a private key cannot be unsealed")).ok()
    }

    fn publish(&self, output: Output) {
        if output.restored {
            let _ = self.broadcast.send(Broadcast::Restored);
        }
        // Without watchers nobody needs the encoding.
        if self.broadcast.receiver_count() > 0 {
            let state = self.raft.state.read();
            let through = state.applied;
            let told = Told::new(&state, output.applied, self);
            let frame = |audience: Audience<'_>| Bytes::from(wire::frame(&told.to(audience)));
            let for_others = frame(Audience::Others);
            let other = |audience: Audience<'_>| if told.is_for_all() { for_others.clone() } else { frame(audience) };
            let for_dns = other(Audience::Dns);
            let for_edges = if told.is_regional() {
                let regions: BTreeSet<&str> = state.nodes().map(|n| n.state.region.as_str()).collect();
                EdgeFrames::Regional(Arc::new(regions.into_iter().map(|r| (r.to_owned(), frame(Audience::Edges(r)))).collect()))
            } else {
                EdgeFrames::Alike(other(Audience::Edges("")))
            };
            let _ = self.broadcast.send(Broadcast::Entries { through, for_edges, for_dns, for_others });
        }
    }
}

/// As those get them who may.
impl Unseal for Control {
    fn certificate(&self, sealed: &SealedCertificate) -> Option<Certificate> {
        Some(Certificate {
            name: sealed.name.clone(),
            chain: sealed.chain.clone(),
            key: self.unsealed(&SealedName::CertificateKey(sealed.name.clone()), &sealed.sealed_key)?,
            hosts: sealed.hosts.clone(),
            not_after: sealed.not_after,
        })
    }

    fn ticket_key(&self, sealed: &SealedTicketKey) -> Option<TicketKey> {
        Some(TicketKey { made: sealed.made, key: self.unsealed(&SealedName::TicketKey(sealed.made), &sealed.sealed)? })
    }

    fn dns_key(&self, sealed: &SealedDnsKey) -> Option<DnsKey> {
        let key = self.unsealed(&SealedName::DnsKey(sealed.zone.clone()), &sealed.sealed_key)?;
        Some(DnsKey { zone: sealed.zone.clone(), public: sealed.public.clone(), key })
    }
}

fn run_driver<D: Disk>(mut driver: Driver<D>, control: &Arc<Control>, inbox: &Receiver<ToDriver>) -> Result<(), ControlError> {
    let clock = control.clock;
    let tick = control.settings.raft.tick;
    let mut next_tick = clock.boot() + tick;
    let mut tickets: HashMap<Ticket, Answer> = HashMap::new();
    let mut next_ticket: Ticket = 0;
    let mut published = 0;
    let mut leader_seen = (0, 0);
    loop {
        let first = match inbox.recv_timeout(next_tick.since(clock.boot())) {
            Ok(first) => Some(first),
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
        };
        let more = std::iter::from_fn(|| inbox.try_recv().ok()).take(MOST_PER_ROUND);
        for message in first.into_iter().chain(more) {
            let now = clock.boot();
            match message {
                ToDriver::Input(input) => driver.input(input, now),
                ToDriver::Ask(make, answer) => {
                    next_ticket += 1;
                    tickets.insert(next_ticket, answer);
                    driver.input(make(next_ticket), now);
                }
                ToDriver::Members(answer) => {
                    let _ = answer.send(driver.members());
                }
                ToDriver::Stop => return Ok(()),
            }
        }
        if clock.boot() >= next_tick {
            driver.input(Input::Tick, clock.boot());
            next_tick = clock.boot() + tick;
            tickets.retain(|_, answer| !answer.is_closed());
        }
        let mut output = driver.round(clock.boot())?;
        control.peers.send(control, std::mem::take(&mut output.messages));
        let done = std::mem::take(&mut output.done);
        let applied = control.raft.state.read().applied;
        if applied != published || output.restored {
            published = applied;
            control.publish(output);
        }
        for (ticket, result) in done {
            if let Some(answer) = tickets.remove(&ticket) {
                let _ = answer.send(result);
            }
        }
        let seen = (control.raft.leader.load(Ordering::Acquire), applied);
        if seen != leader_seen {
            if seen.0 != leader_seen.0 {
                control.relay.notify_one();
            }
            leader_seen = seen;
            control.note_change();
        }
    }
}
