//! Watch streams of cache nodes, at any control node: what a node missed, then every entry as it is applied; its
//! acknowledgements and askings for a lease go on to the leader.

use crate::enrol;
use crate::feed::{Audience, Feed};
use crate::heard::Acked;
use crate::shared::{Broadcast, Control};
use bytes::Bytes;
use http::Response;
use http_body_util::BodyExt;
use http_body_util::channel::{Channel, Sender};
use hyper::body::Incoming;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tidegate_certs::NodeIdentity;
use tidegate_control_state::Enrolment;
use tidegate_control_types::lease::Grant;
use tidegate_control_types::wire::{self, Deframer};
use tidegate_control_types::{Clock, EdgeStanding, FromNode, NodeName, NodeReport, Role, ToNode};
use tidegate_node::lifecycle::Stopping;
use tidegate_node::link::BoxError;
use tidegate_node::{Body, VERSION};
use tokio::sync::{broadcast, mpsc};

const HELLO_TIMEOUT: Duration = Duration::from_secs(5);
const LEASE_TIMEOUT: Duration = Duration::from_secs(3);
/// A stream that takes nothing for this long is cut.
const SEND_TIMEOUT: Duration = Duration::from_secs(10);

/// Opens the stream of a node that is enrolled, or was removed and may not know it.
pub fn open(
    control: &Arc<Control>,
    name: NodeName,
    (role, who): (Role, NodeIdentity),
    incoming: Incoming,
    stopping: Stopping,
) -> Response<Body> {
    let (out, body) = Channel::<Bytes, BoxError>::new(16);
    let control = Arc::clone(control);
    tokio::spawn(async move {
        let session = Session { control, name, role, who };
        if let Err(why) = session.run(incoming, out, stopping).await {
            tracing::info!(node = %session.name, why, "a watch stream ended");
        }
    });
    Response::new(body.boxed_unsync())
}

struct Session {
    control: Arc<Control>,
    name: NodeName,
    role: Role,
    /// As its certificate says it.
    who: NodeIdentity,
}

impl Session {
    async fn run(&self, mut incoming: Incoming, mut out: Sender<Bytes, BoxError>, mut stopping: Stopping) -> Result<(), String> {
        let mut frames = Deframer::default();
        let hello = tokio::time::timeout(HELLO_TIMEOUT, next(&mut incoming, &mut frames)).await.map_err(|_| "no hello")??;
        let FromNode::Hello { applied, purges_after, version } = hello else { return Err("it did not begin with a hello".into()) };
        tracing::info!(node = %self.name, role = %self.role, version, mine = VERSION, "a node watches");
        // Subscribed before the state is read: nothing falls between.
        let mut updates = self.control.broadcast.subscribe();
        // None for a node that was removed: it is told so, and nothing else.
        let mut feed: Option<Feed> = None;
        if !self.is_removed(&mut out).await? {
            let missed = {
                let state = self.control.raft.state.read();
                Feed::open(&state, (self.role, self.who.region.as_str()), applied, purges_after, &*self.control)
                    .map_err(|e| e.to_string())?
            };
            feed = Some(missed.0);
            send(&mut out, wire::frame(&missed.1).into()).await?;
        }
        let (leases, mut granted) = mpsc::channel(16);
        loop {
            tokio::select! {
                message = next(&mut incoming, &mut frames) => self.hear(message?, &leases)?,
                update = updates.recv() => match update {
                    Ok(_) | Err(broadcast::error::RecvError::Lagged(_)) if self.is_removed(&mut out).await? => feed = None,
                    Ok(Broadcast::Entries { through, for_edges, for_dns, for_others }) => {
                        if feed.as_mut().is_some_and(|f| f.is_news(through)) {
                            let frame = match Audience::of(self.role, &self.who.region) {
                                Audience::Edges(region) => for_edges.of(region).ok_or("its region was not known: it begins anew")?,
                                Audience::Dns => for_dns,
                                Audience::Others => for_others,
                            };
                            send(&mut out, frame).await?;
                        }
                    }
                    Ok(Broadcast::Question(frame)) => {
                        if feed.is_some() {
                            send(&mut out, frame).await?;
                        }
                    }
                    Ok(Broadcast::Restored) | Err(broadcast::error::RecvError::Lagged(_)) => {
                        let missed = feed.as_mut().map(|f| f.again(&self.control.raft.state.read(), &*self.control));
                        if let Some(missed) = missed {
                            send(&mut out, wire::frame(&missed.map_err(|e| e.to_string())?).into()).await?;
                        }
                    }
                    Err(broadcast::error::RecvError::Closed) => return Ok(()),
                },
                Some(grant) = granted.recv() => send(&mut out, wire::frame(&grant).into()).await?,
                () = stopping.stopped() => return Ok(()),
            }
        }
    }

    /// Whether the node was removed; it is told so then, before anything that came after.
    async fn is_removed(&self, out: &mut Sender<Bytes, BoxError>) -> Result<bool, String> {
        match enrol::enrolment(&self.control, &self.who) {
            Enrolment::Stands => Ok(false),
            Enrolment::Removed(removal) => {
                send(out, wire::frame(&ToNode::Removed { removal }).into()).await?;
                Ok(true)
            }
            Enrolment::Over | Enrolment::Ahead => Err("the node is forgotten".into()),
        }
    }

    fn hear(&self, message: FromNode, leases: &mpsc::Sender<ToNode>) -> Result<(), String> {
        // Its name may be another's.
        if enrol::enrolment(&self.control, &self.who) == Enrolment::Over {
            return Err("the node is forgotten".into());
        }
        match message {
            FromNode::Hello { .. } => return Err("a second hello".into()),
            FromNode::Ack { index } => acknowledged(&self.control, &self.name, Acked { enrolled: self.who.enrolled, index }),
            FromNode::Ended { removal } => {
                tracing::info!(node = %self.name, removal, "a removed node has ended");
                self.control.heard.lock().ended(&self.name, removal);
                tell(&self.control);
                self.control.note_change();
                return Err("the node has ended".into());
            }
            FromNode::Explained { number, said } => self.control.questions.answered(number, &self.name, said.map(|s| *s)),
            FromNode::Report(report) => reported(&self.control, &self.name, report),
            FromNode::AskLease { asking } => {
                let (control, name, role, leases) = (Arc::clone(&self.control), self.name.clone(), self.role, leases.clone());
                tokio::spawn(async move {
                    match lease(&control, &name).await {
                        Ok(grant) => drop(leases.send(ToNode::Lease { asking, grant }).await),
                        Err(why) => return tracing::debug!(node = %name, why, "no lease granted"),
                    }
                    if role == Role::Dns {
                        match standings(&control).await {
                            Ok(standings) => drop(leases.send(ToNode::Standings(standings)).await),
                            Err(why) => tracing::debug!(node = %name, why, "how the edges stand is not known"),
                        }
                    }
                });
            }
        }
        Ok(())
    }
}

async fn next(incoming: &mut Incoming, frames: &mut Deframer) -> Result<FromNode, String> {
    loop {
        if let Some(message) = frames.take().map_err(|e| e.to_string())? {
            return Ok(message);
        }
        match incoming.frame().await {
            Some(Ok(data)) => frames.push(data.data_ref().map(Bytes::as_ref).unwrap_or_default()),
            Some(Err(e)) => return Err(e.to_string()),
            None => return Err("the node closed it".into()),
        }
    }
}

async fn send(out: &mut Sender<Bytes, BoxError>, frame: Bytes) -> Result<(), String> {
    let sent = tokio::time::timeout(SEND_TIMEOUT, out.send_data(frame)).await;
    sent.map_err(|_| "the node takes nothing")?.map_err(|e| e.to_string())
}

/// A lease from the leader, be it this node or another.
async fn lease(control: &Arc<Control>, name: &NodeName) -> Result<Grant, String> {
    if control.leads() {
        return control.grant_lease(name.clone()).await.map_err(|e| e.to_string());
    }
    let leader = control.leader_address().ok_or("no leader is known")?;
    let bytes = control
        .links
        .call(&leader, "control", &format!("/lease?log={}", control.log()), wire::encode(name), LEASE_TIMEOUT)
        .await
        .map_err(|e| e.to_string())?;
    wire::decode(&bytes).map_err(|e| e.to_string())
}

/// How the edges stand, as the leader knows it, be it this node or another.
async fn standings(control: &Arc<Control>) -> Result<Vec<EdgeStanding>, String> {
    if let Some(here) = standings_here(control) {
        return Ok(here);
    }
    let leader = control.leader_address().ok_or("no leader is known")?;
    let path = format!("/standings?log={}", control.log());
    let bytes = control.links.call(&leader, "control", &path, Vec::new(), LEASE_TIMEOUT).await.map_err(|e| e.to_string())?;
    wire::decode(&bytes).map_err(|e| e.to_string())
}

/// Where this node leads: how the edges stand. Nothing until it has led for long enough to know: those who send clients to edges go on with what
/// they heard last then, or all clients would be sent to the edges that happened to ask first.
pub fn standings_here(control: &Control) -> Option<Vec<EdgeStanding>> {
    let now = control.now();
    control.with_leadership(|state, leadership| {
        if !leadership.fleet.knows_all(now) {
            return Vec::new();
        }
        let edges = state.nodes().filter(|n| n.removed.is_none() && n.state.role == Role::Edge);
        let report = |name: &NodeName| leadership.fleet.report(name).map(|(report, _)| report);
        let standing = |name: &NodeName| EdgeStanding {
            node: name.clone(),
            attached: leadership.fleet.attached(name, now),
            applied: leadership.fleet.acked_index(name).unwrap_or(0),
            load_permille: report(name).map_or(0, |r| r.load_permille),
            capacity: report(name).map_or(0, |r| r.capacity.max(1)),
        };
        edges.map(|n| standing(&n.state.name)).collect()
    })
}

fn acknowledged(control: &Control, name: &NodeName, acked: Acked) {
    control.heard.lock().acked(name, acked);
    tell(control);
}

fn reported(control: &Control, name: &NodeName, report: NodeReport) {
    control.heard.lock().reported(name, report);
    tell(control);
}

/// What was heard goes on: into this node's own view where it leads, else to the leader.
fn tell(control: &Control) {
    let now = control.clock.wall();
    match control.with_leadership(|state, leadership| control.heard.lock().tell(state, &mut leadership.fleet, now)) {
        Some(true) => control.note_change(),
        Some(false) => {}
        None => control.relay.notify_one(),
    }
}

/// Hands acknowledgements and reports on to the leader, all of them whenever it changes.
pub async fn relay(control: Arc<Control>, mut stopping: Stopping) {
    loop {
        tokio::select! {
            () = control.relay.notified() => {}
            () = tokio::time::sleep(Duration::from_millis(500)) => {}
            () = stopping.stopped() => return,
        }
        if control.leads() {
            tell(&control);
            continue;
        }
        let (id, term) = (control.raft.leader.load(Ordering::Acquire), control.raft.term.load(Ordering::Acquire));
        let Some(leader) = control.leader_address() else { continue };
        let news = {
            // In this order wherever both are locked.
            let state = control.raft.state.read();
            control.heard.lock().news(&state, id, term)
        };
        let Some(news) = news else { continue };
        match control.links.call(&leader, "control", &format!("/relay?log={}", control.log()), wire::encode(&news), LEASE_TIMEOUT).await {
            Ok(_) => control.heard.lock().delivered(id, term, news.acks),
            Err(error) => {
                tracing::debug!(%error, "acknowledgements were not handed on");
                control.relay.notify_one();
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}
