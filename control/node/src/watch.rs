//! The watch stream: a cache node follows the log through any control node, acknowledges what all its workers have
//! applied, and asks for its lease.

use crate::NodeError;
use crate::backoff::Backoff;
use crate::clock::random_u64;
use crate::follower::{Follower, Heard};
use crate::link::{BoxError, Links};
use crate::network::{Network, Update};
use crate::settings::NodeSettings;
use crate::workers::Outbox;
use bytes::Bytes;
use http::Request;
use http_body_util::BodyExt;
use http_body_util::channel::{Channel, Sender};
use hyper::body::Incoming;
use parking_lot::RwLock;
use std::sync::Arc;
use std::time::Duration;
use tidegate_certs::SealingKey;
use tidegate_control_types::lease::LeaseEnd;
use tidegate_control_types::wire::{self, Deframer};
use tidegate_control_types::{Clock, FromNode, NodeReport, ToNode};
use tokio::sync::watch;

const REPORT_EVERY: Duration = Duration::from_secs(2);
/// Purges alone are written to disk at most this often; configuration always before it is acknowledged.
const SAVE_EVERY: Duration = Duration::from_secs(30);

/// What a watching node shares with the rest of its process.
pub struct Watched {
    pub lease: Arc<LeaseEnd>,
    /// `None` until the first configuration is applied by all workers.
    pub network: RwLock<Option<Arc<Network>>>,
    /// Turns true with the first lease, and says that this node may begin to answer.
    pub begun: watch::Sender<bool>,
}

impl Watched {
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::new(Self { lease: Arc::default(), network: RwLock::new(None), begun: watch::channel(false).0 })
    }

    #[must_use]
    pub fn network(&self) -> Option<Arc<Network>> {
        self.network.read().clone()
    }
}

pub struct Watcher {
    pub settings: NodeSettings,
    pub node_key: SealingKey,
    pub links: Arc<Links>,
    pub clock: Arc<dyn Clock>,
    pub workers: Outbox,
    /// Called with each update once all workers have it.
    pub applied: Box<dyn Fn(&Update) + Send + Sync>,
    pub report: Box<dyn Fn() -> NodeReport + Send + Sync>,
    pub watched: Arc<Watched>,
}

impl Watcher {
    /// Follows the log for as long as the node runs.
    ///
    /// # Errors
    /// The control plane removed this node.
    pub async fn run(mut self) -> Result<(), NodeError> {
        let (mut follower, resumed) = Follower::resume(self.load_saved());
        if let Some(step) = resumed {
            self.apply(&step).await;
            // A node that has served before outlives its control plane, restarts included.
            self.watched.begun.send_replace(true);
        }
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(2));
        let mut turn = 0;
        loop {
            let Some(address) = self.settings.control.get(turn % self.settings.control.len().max(1)).cloned() else {
                return Err(NodeError::Runtime("no control node is named".into()));
            };
            turn += 1;
            match self.follow(&address, &mut follower, &mut backoff).await {
                Ended::Removed => {
                    return Err(NodeError::Removed { data: self.settings.data.display().to_string() });
                }
                Ended::Broken(error) => {
                    tracing::warn!(node = %self.settings.name, control = address, error, "the watch stream ended; trying the next control node")
                }
            }
            tokio::time::sleep(backoff.next(random_u64())).await;
        }
    }

    fn load_saved(&self) -> Option<Arc<Network>> {
        match Network::load(&self.settings.data, &self.node_key) {
            Ok(saved) => saved.map(Arc::new),
            Err(error) => {
                tracing::error!(%error, "the saved configuration is of no use; starting without it");
                None
            }
        }
    }

    async fn follow(&mut self, address: &str, follower: &mut Follower, backoff: &mut Backoff) -> Ended {
        let (mut out, body) = Channel::<Bytes, BoxError>::new(64);
        if say(&mut out, &follower.connected()).await.is_err() {
            return Ended::Broken("the stream closed at once".into());
        }
        let Ok(request) = Request::post("https://node/watch").body(body.boxed_unsync()) else {
            return Ended::Broken("no request can be made".into());
        };
        let response = match self.links.send(address, "control", request).await {
            Ok(r) => r,
            Err(e) => return Ended::Broken(e.to_string()),
        };
        match response.status().as_u16() {
            200 => {}
            410 => return Ended::Removed,
            other => return Ended::Broken(format!("{address} answered {other}")),
        }
        self.talk(out, response.into_body(), follower, backoff).await
    }

    async fn talk(
        &mut self,
        mut out: Sender<Bytes, BoxError>,
        mut incoming: Incoming,
        follower: &mut Follower,
        backoff: &mut Backoff,
    ) -> Ended {
        let mut frames = Deframer::default();
        let mut ask_again_after = follower.ask_again_after();
        let mut ask = tokio::time::interval(ask_again_after);
        let mut report = tokio::time::interval(REPORT_EVERY);
        let mut save = tokio::time::interval_at(tokio::time::Instant::now() + SAVE_EVERY, SAVE_EVERY);
        loop {
            let said = tokio::select! {
                data = incoming.frame() => match data {
                    Some(Ok(data)) => {
                        frames.push(data.data_ref().map(Bytes::as_ref).unwrap_or_default());
                        loop {
                            match frames.take::<ToNode>() {
                                Ok(Some(message)) => {
                                    let first = !follower.is_caught_up();
                                    match self.hear(message, follower, &mut out).await {
                                        Ok(()) => {}
                                        Err(ended) => return ended,
                                    }
                                    if follower.is_caught_up() && first {
                                        ask.reset_immediately();
                                        backoff.reset();
                                    }
                                    if follower.ask_again_after() != ask_again_after {
                                        ask_again_after = follower.ask_again_after();
                                        ask = tokio::time::interval(ask_again_after);
                                    }
                                }
                                Ok(None) => break Ok(()),
                                Err(e) => return Ended::Broken(e.to_string()),
                            }
                        }
                    }
                    Some(Err(e)) => return Ended::Broken(e.to_string()),
                    None => return Ended::Broken("the control node closed it".into()),
                },
                _ = ask.tick() => match follower.ask(self.clock.boot()) {
                    Some(asking) => say(&mut out, &asking).await,
                    None => Ok(()),
                },
                _ = report.tick(), if follower.is_caught_up() => say(&mut out, &FromNode::Report((self.report)())).await,
                _ = save.tick() => {
                    self.save();
                    Ok(())
                }
            };
            if let Err(e) = said {
                return Ended::Broken(e);
            }
        }
    }

    async fn hear(&mut self, message: ToNode, follower: &mut Follower, out: &mut Sender<Bytes, BoxError>) -> Result<(), Ended> {
        let heard = follower.hear(message, self.clock.wall());
        self.publish(follower);
        let update = match heard {
            Ok(Heard::Lease) => return Ok(()),
            Ok(Heard::Removed) => return Err(Ended::Removed),
            Ok(Heard::Step(update)) => update,
            Err(e) => return Err(Ended::Broken(e.to_string())),
        };
        self.apply(&update).await;
        if update.changes_configuration() && !self.save() {
            // Not acknowledged: a restart would bring back rules that the control plane believes gone.
            return Err(Ended::Broken("the configuration could not be saved".into()));
        }
        let acknowledgement = follower.applied(&update);
        self.publish(follower);
        say(out, &acknowledgement).await.map_err(Ended::Broken)
    }

    async fn apply(&self, update: &Arc<Update>) {
        self.workers.deliver(update).await;
        *self.watched.network.write() = Some(Arc::clone(&update.network));
        (self.applied)(update);
    }

    fn publish(&self, follower: &Follower) {
        self.watched.lease.publish(follower.until());
        if follower.until().is_some() {
            self.watched.begun.send_if_modified(|begun| !std::mem::replace(begun, true));
        }
    }

    fn save(&self) -> bool {
        let Some(network) = self.watched.network() else { return true };
        let saved = network.save(&self.settings.data, &self.node_key);
        if let Err(error) = &saved {
            tracing::error!(node = %self.settings.name, %error, "the configuration could not be saved: a restart without control plane would use an older one");
        }
        saved.is_ok()
    }
}

enum Ended {
    Removed,
    Broken(String),
}

async fn say(out: &mut Sender<Bytes, BoxError>, message: &FromNode) -> Result<(), String> {
    out.send_data(wire::frame(message).into()).await.map_err(|e| format!("the stream is closed: {e}"))
}
