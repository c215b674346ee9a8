//! The watch stream: a cache node follows the log through any control node, acknowledges what all its workers have
//! applied, and asks for its lease.

use crate::backoff::Backoff;
use crate::clock::random_u64;
use crate::identity::CurrentCredentials;
use crate::link::{BoxError, Links};
use crate::network::{Network, Update};
use crate::settings::NodeSettings;
use crate::workers::Outbox;
use crate::{NodeError, VERSION};
use bytes::Bytes;
use http::Request;
use http_body_util::BodyExt;
use http_body_util::channel::{Channel, Sender};
use hyper::body::Incoming;
use parking_lot::RwLock;
use std::sync::Arc;
use std::time::Duration;
use tidegate_certs::SealingKey;
use tidegate_control_types::lease::{LeaseEnd, NodeLease};
use tidegate_control_types::wire::{self, Deframer};
use tidegate_control_types::{Clock, FromNode, NodeReport, ToNode};
use tokio::sync::watch;

/// Until the first grant says how long a lease lasts.
const FIRST_ASK_AGAIN: Duration = Duration::from_secs(1);
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
    pub credentials: CurrentCredentials,
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
        let mut lease = NodeLease::default();
        if let Some(saved) = self.load_saved() {
            lease.applied(saved.revision.index);
            self.apply(Arc::new(saved.restart())).await;
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
            lease.reconnected();
            match self.follow(&address, &mut lease, &mut backoff).await {
                Ended::Removed => {
                    self.watched.lease.publish(None);
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

    async fn follow(&mut self, address: &str, lease: &mut NodeLease, backoff: &mut Backoff) -> Ended {
        let (mut out, body) = Channel::<Bytes, BoxError>::new(64);
        let applied = self.watched.network().map(|n| n.revision);
        if say(&mut out, &FromNode::Hello { applied, version: VERSION.into() }).await.is_err() {
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
        self.talk(out, response.into_body(), lease, backoff).await
    }

    async fn talk(
        &mut self,
        mut out: Sender<Bytes, BoxError>,
        mut incoming: Incoming,
        lease: &mut NodeLease,
        backoff: &mut Backoff,
    ) -> Ended {
        let mut frames = Deframer::default();
        let mut ask_again_after = FIRST_ASK_AGAIN;
        let mut ask = tokio::time::interval(ask_again_after);
        let mut report = tokio::time::interval(REPORT_EVERY);
        let mut save = tokio::time::interval_at(tokio::time::Instant::now() + SAVE_EVERY, SAVE_EVERY);
        // What this connection is good for begins with its catch-up.
        let mut caught_up = false;
        loop {
            let said = tokio::select! {
                data = incoming.frame() => match data {
                    Some(Ok(data)) => {
                        frames.push(data.data_ref().map(Bytes::as_ref).unwrap_or_default());
                        loop {
                            match frames.take::<ToNode>() {
                                Ok(Some(ToNode::Removed)) => return Ended::Removed,
                                Ok(Some(message)) => {
                                    match &message {
                                        ToNode::CatchUp { .. } => {
                                            caught_up = true;
                                            ask.reset_immediately();
                                            backoff.reset();
                                        }
                                        ToNode::Lease { grant, .. } if grant.ask_again_after() != ask_again_after => {
                                            ask_again_after = grant.ask_again_after().max(Duration::from_millis(1));
                                            ask = tokio::time::interval(ask_again_after);
                                        }
                                        _ => {}
                                    }
                                    if let Err(e) = self.hear(message, lease, &mut out).await {
                                        return Ended::Broken(e);
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
                _ = ask.tick(), if caught_up => {
                    let asking = lease.ask(self.clock.boot());
                    say(&mut out, &FromNode::AskLease { asking }).await
                }
                _ = report.tick(), if caught_up => say(&mut out, &FromNode::Report((self.report)())).await,
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

    async fn hear(&mut self, message: ToNode, lease: &mut NodeLease, out: &mut Sender<Bytes, BoxError>) -> Result<(), String> {
        let heard = self.clock.wall();
        let update = match message {
            ToNode::Lease { asking, grant } => {
                lease.granted(asking, grant);
                self.publish(lease);
                return Ok(());
            }
            ToNode::CatchUp { revision, missed, .. } => Network::caught_up(self.watched.network().as_deref(), revision, *missed, heard),
            ToNode::Entries { through, entries } => match self.watched.network() {
                Some(network) => network.followed(through, entries, heard),
                None => return Err("entries came before the catch-up".into()),
            },
            ToNode::Removed => return Ok(()),
        };
        let index = update.revision.index;
        let update = Arc::new(update);
        if update.fresh {
            // Under another log nothing that was granted or applied before means anything.
            self.watched.lease.publish(None);
            *lease = NodeLease::default();
        }
        let must_save = update.changes_configuration();
        self.apply(Arc::clone(&update)).await;
        if must_save && !self.save() {
            // Not acknowledged: a restart would bring back rules that the control plane believes gone.
            return Err("the configuration could not be saved".into());
        }
        lease.applied(index);
        self.publish(lease);
        say(out, &FromNode::Ack { index }).await
    }

    async fn apply(&self, update: Arc<Update>) {
        self.workers.deliver(&update).await;
        *self.watched.network.write() = Some(Arc::clone(&update.network));
        (self.applied)(&update);
    }

    fn publish(&self, lease: &NodeLease) {
        self.watched.lease.publish(lease.until());
        if lease.until().is_some() {
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

    /// The credentials in use.
    #[must_use]
    pub fn credentials(&self) -> &CurrentCredentials {
        &self.credentials
    }
}

enum Ended {
    Removed,
    Broken(String),
}

async fn say(out: &mut Sender<Bytes, BoxError>, message: &FromNode) -> Result<(), String> {
    out.send_data(wire::frame(message).into()).await.map_err(|e| format!("the stream is closed: {e}"))
}
