//! The watch stream: a cache node follows the log through any control node, acknowledges what all its workers have
//! applied, and asks for its lease. What it hears and says is [`Follower`]'s; connections, files and clocks are arguments.

use crate::NodeError;
use crate::backoff::Backoff;
use crate::follower::{Follower, Heard};
use crate::network::{Network, Update};
use crate::workers::Outbox;
use parking_lot::RwLock;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tidegate_control_types::authority::Issuers;
use tidegate_control_types::explain::{Asked, Said};
use tidegate_control_types::lease::LeaseEnd;
use tidegate_control_types::planted::Bug;
use tidegate_control_types::{Clock, EdgeStanding, FromNode, NodeReport, ToNode};
use tokio::sync::{mpsc, watch};

const REPORT_EVERY: Duration = Duration::from_secs(2);
/// Purges alone are written to disk at most this often; configuration always before it is acknowledged.
const SAVE_EVERY: Duration = Duration::from_secs(30);
/// How long a node that was removed waits for the control plane to hear that it has ended.
const FAREWELL: Duration = Duration::from_secs(2);

/// Answers to questions that wait to be sent.
/// Entries of one step: in between the lease is asked for.
const MOST_TOGETHER: usize = 256;
const MOST_ANSWERS: usize = 16;

/// What a watching node shares with the rest of its process.
pub struct Watched {
    pub lease: Arc<LeaseEnd>,
    /// `None` until the first configuration is applied by all workers.
    pub network: RwLock<Option<Arc<Network>>>,
    /// Turns true with the first lease, and says that this node may begin to answer.
    pub begun: watch::Sender<bool>,
    /// By whom nodes' certificates have to be; `None` until the control plane has said so.
    pub issuers: watch::Sender<Option<Issuers>>,
}

impl Watched {
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            lease: Arc::default(),
            network: RwLock::new(None),
            begun: watch::channel(false).0,
            issuers: watch::channel(None).0,
        })
    }

    #[must_use]
    pub fn network(&self) -> Option<Arc<Network>> {
        self.network.read().clone()
    }
}

/// The way to the control nodes: [`crate::link::Links`] in a node, another one in a simulation.
pub trait ControlPlane: Send + Sync {
    type Stream: WatchStream;

    /// Opens a watch stream to the control node at `address`, and says hello.
    fn watch(&self, address: &str, hello: &FromNode) -> impl Future<Output = Result<Self::Stream, NotWatching>> + Send;
}

pub trait WatchStream: Send {
    fn say(&mut self, message: &FromNode) -> impl Future<Output = Result<(), String>> + Send;

    /// The next message. Given up half-way it loses none.
    fn next(&mut self) -> impl Future<Output = Result<ToNode, String>> + Send;

    /// The next message, where it has come already.
    fn come(&mut self) -> Option<Result<ToNode, String>> {
        None
    }
}

/// Why there is no watch stream.
pub enum NotWatching {
    /// The operator removed this node.
    Removed,
    Broken(String),
}

impl From<String> for NotWatching {
    fn from(why: String) -> Self {
        Self::Broken(why)
    }
}

/// Where a node keeps its last good configuration.
pub trait Saved: Send + Sync {
    /// # Errors
    /// It is there, but of no use.
    fn load(&self) -> Result<Option<Network>, NodeError>;

    /// Durable once it returns.
    ///
    /// # Errors
    /// It could not be written; what was saved before is still there.
    fn save(&self, network: &Network) -> Result<(), NodeError>;

    /// The node was removed: no later life of it begins from here. Durable once it returns.
    ///
    /// # Errors
    /// It could not be written.
    fn end(&self) -> Result<(), NodeError>;

    #[must_use]
    fn has_ended(&self) -> bool;
}

pub type Say = Arc<dyn Fn(&Asked) -> Option<Said> + Send + Sync>;

pub struct Watcher<C> {
    pub node: String,
    /// Addresses of control nodes, asked in turn.
    pub addresses: Vec<String>,
    pub control: C,
    pub saved: Box<dyn Saved>,
    /// The node may hold what an earlier life stored.
    pub stored: bool,
    pub clock: Arc<dyn Clock>,
    /// Any number: spreads what nodes try again.
    pub random: Box<dyn Fn() -> u64 + Send + Sync>,
    pub workers: Outbox,
    /// Called with each update before any worker has it: what they will need is there then.
    pub prepare: Box<dyn Fn(&Update) + Send + Sync>,
    /// Called where this node is told how the edges stand.
    pub standings: Box<dyn Fn(Vec<EdgeStanding>) + Send + Sync>,
    pub report: Box<dyn Fn() -> NodeReport + Send + Sync>,
    /// What a node without workers says to what it is asked.
    pub say: Option<Say>,
    pub watched: Arc<Watched>,
}

/// The control plane removed this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Removed;

impl<C: ControlPlane> Watcher<C> {
    /// Follows the log for as long as the node is part of the network.
    pub async fn run(mut self) -> Removed {
        if self.saved.has_ended() {
            return Removed;
        }
        let (mut follower, resumed) = Follower::resume(self.load_saved(), self.stored);
        if let Some(step) = resumed {
            self.apply(&step).await;
            // A node that has served before outlives its control plane, restarts included.
            self.watched.begun.send_replace(true);
        }
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));
        for address in self.addresses.clone().iter().cycle() {
            match self.follow(address, &mut follower, &mut backoff).await {
                NotWatching::Removed => break,
                NotWatching::Broken(error) => {
                    tracing::warn!(node = self.node, control = address, error, "the watch stream ended; trying the next control node");
                }
            }
            tokio::time::sleep(backoff.next((self.random)())).await;
        }
        // Also where nobody asks any more: it is forgotten, and no later life of it may begin.
        self.end();
        Removed
    }

    fn load_saved(&self) -> Option<Arc<Network>> {
        match self.saved.load() {
            Ok(saved) => saved.map(Arc::new),
            Err(error) => {
                tracing::error!(%error, "the saved configuration is of no use; starting without it");
                None
            }
        }
    }

    async fn follow(&mut self, address: &str, follower: &mut Follower, backoff: &mut Backoff) -> NotWatching {
        let hello = follower.connected();
        match self.control.watch(address, &hello).await {
            Ok(stream) => self.talk(stream, follower, backoff).await,
            Err(why) => why,
        }
    }

    async fn talk(&mut self, mut stream: C::Stream, follower: &mut Follower, backoff: &mut Backoff) -> NotWatching {
        let (answers, mut explained) = mpsc::channel(MOST_ANSWERS);
        let mut ask_again_after = follower.ask_again_after();
        let mut ask = tokio::time::interval(ask_again_after);
        let mut report = tokio::time::interval(REPORT_EVERY);
        let mut behind = None;
        let mut save = tokio::time::interval_at(tokio::time::Instant::now() + SAVE_EVERY, SAVE_EVERY);
        loop {
            let done = tokio::select! {
                // What is due comes first: a stream of entries without end must not keep the lease from being asked for.
                biased;
                _ = ask.tick(), if follower.is_caught_up() => match follower.ask(self.clock.boot()) {
                    Some(asking) => stream.say(&asking).await.map_err(NotWatching::from),
                    None => Ok(()),
                },
                _ = report.tick(), if follower.is_caught_up() => {
                    stream.say(&FromNode::Report((self.report)())).await.map_err(NotWatching::from)
                }
                _ = save.tick() => {
                    self.save();
                    Ok(())
                }
                Some(answer) = explained.recv() => stream.say(&answer).await.map_err(NotWatching::from),
                message = next(&mut stream, &mut behind) => match message {
                    Ok(message) => {
                        let message = together(message, &mut stream, &mut behind);
                        self.hear(message, follower, &mut stream, backoff, &answers).await
                    }
                    Err(e) => Err(e.into()),
                },
            };
            if let Err(ended) = done {
                return ended;
            }
            if follower.ask_again_after() != ask_again_after {
                ask_again_after = follower.ask_again_after();
                ask = tokio::time::interval(ask_again_after);
            }
        }
    }

    async fn hear(
        &mut self,
        message: ToNode,
        follower: &mut Follower,
        stream: &mut C::Stream,
        backoff: &mut Backoff,
        answers: &mpsc::Sender<FromNode>,
    ) -> Result<(), NotWatching> {
        if matches!(message, ToNode::CatchUp { .. }) {
            backoff.reset();
        }
        let heard = follower.hear(message, self.clock.wall());
        self.publish(follower);
        let update = match heard {
            Ok(Heard::Lease) => return Ok(()),
            Ok(Heard::Explain { number, question }) => {
                let (workers, answers, say) = (self.workers.clone(), answers.clone(), self.say.clone());
                tokio::spawn(async move {
                    let said = match say {
                        Some(say) => say(&question),
                        None => workers.explain(*question).await,
                    };
                    // Who asks waits for all, those that have nothing to say too.
                    let _ = answers.try_send(FromNode::Explained { number, said: said.map(Box::new) });
                });
                return Ok(());
            }
            Ok(Heard::Standings(standings)) => {
                (self.standings)(standings);
                return Ok(());
            }
            Ok(Heard::Removed { removal }) => {
                // Before the control plane hears so nothing is answered any more, by this process or a later one.
                if !self.end() {
                    return Err(NotWatching::Removed);
                }
                stream.say(&FromNode::Ended { removal }).await?;
                let _ = tokio::time::timeout(FAREWELL, async { while stream.next().await.is_ok() {} }).await;
                return Err(NotWatching::Removed);
            }
            Ok(Heard::Step(update)) => update,
            Err(e) => return Err(e.to_string().into()),
        };
        if Bug::AcknowledgedBeforeApply.is_planted() {
            stream.say(&FromNode::Ack { index: update.revision.index }).await?;
        }
        self.apply(&update).await;
        if update.changes_configuration() && !self.save() && !Bug::AcknowledgedBeforeSave.is_planted() {
            // Not acknowledged: a restart would bring back rules that the control plane believes gone.
            return Err("the configuration could not be saved".to_owned().into());
        }
        let acknowledgement = follower.applied(&update);
        self.publish(follower);
        Ok(stream.say(&acknowledgement).await?)
    }

    /// Nothing is answered any more, by this life or a later one. False where the latter cannot be written down.
    fn end(&self) -> bool {
        self.watched.lease.end();
        let ended = self.saved.end();
        if let Err(error) = &ended {
            tracing::error!(node = self.node, %error, "that this node was removed cannot be written down: it counts until its removal as dead");
        }
        ended.is_ok()
    }

    async fn apply(&self, update: &Arc<Update>) {
        (self.prepare)(update);
        self.workers.deliver(update).await;
        *self.watched.network.write() = Some(Arc::clone(&update.network));
        let told = &*update.network.issuers;
        self.watched.issuers.send_if_modified(|known| {
            let news = known.as_ref() != Some(told);
            if news {
                *known = Some(told.clone());
            }
            news
        });
    }

    fn publish(&self, follower: &Follower) {
        self.watched.lease.publish(follower.until());
        if follower.until().is_some() {
            self.watched.begun.send_if_modified(|begun| !std::mem::replace(begun, true));
        }
    }

    fn save(&self) -> bool {
        let Some(network) = self.watched.network() else { return true };
        let saved = self.saved.save(&network);
        if let Err(error) = &saved {
            tracing::error!(node = self.node, %error, "the configuration could not be saved: a restart without control plane would use an older one");
        }
        saved.is_ok()
    }
}

/// What was taken already, or what comes next.
async fn next<S: WatchStream>(stream: &mut S, behind: &mut Option<Result<ToNode, String>>) -> Result<ToNode, String> {
    match behind.take() {
        Some(message) => message,
        None => stream.next().await,
    }
}

/// Entries that came while others were being applied are one step with the next: each step costs as much as the network is large.
fn together<S: WatchStream>(message: ToNode, stream: &mut S, behind: &mut Option<Result<ToNode, String>>) -> ToNode {
    let ToNode::Entries { mut through, mut entries } = message else { return message };
    while behind.is_none() && entries.len() < MOST_TOGETHER {
        match stream.come() {
            Some(Ok(ToNode::Entries { through: later, entries: more })) => {
                through = later;
                entries.extend(more);
            }
            Some(other) => *behind = Some(other),
            None => break,
        }
    }
    ToNode::Entries { through, entries }
}
