//! One worker of a shield.

use bytes::Bytes;
use http::header::{self, HeaderValue};
use http::{Request, Response, StatusCode};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tidegate_control_types::Role;
use tidegate_control_types::purge::host_and_port;
use tidegate_gateway::interim::Interim;
use tidegate_gateway::{AllCounters, Answering, Asked, Gateway, RequestBody, ResponseBody, Site, fields};
use tidegate_http2::{KeepAlive, Received, ServerSettings, Windows};
use tidegate_node::lifecycle::Stopping;
use tidegate_node::serve::{MutualTls, identity_of};
use tidegate_node::workers::{Delivery, Inbox, ToWorker};
use tidegate_upstream::OriginUpstream;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
const KEEP_ALIVE: KeepAlive = KeepAlive { every: Duration::from_secs(5), within: Duration::from_secs(5) };
/// How often memory that is no longer of use is let go.
const SWEEP: Duration = Duration::from_millis(250);
const MOST_STREAMS: u32 = 1024;
/// Bytes of one response that wait for its edge.
const SEND_BUFFER: usize = 400 << 10;

pub struct Worker {
    pub gateway: Rc<Gateway<OriginUpstream>>,
    pub sites: RefCell<Rc<HashMap<String, Rc<Site>>>>,
    pub counters: Arc<AllCounters>,
    pub tls: MutualTls,
    pub stopping: Stopping,
    pub drain: Duration,
    pub open: Cell<usize>,
    pub region: String,
    /// Edges of this region that are enrolled and not removed, with the index at which they enrolled.
    pub edges: RefCell<Rc<HashMap<String, u64>>>,
}

/// Runs until the shield has drained.
pub async fn run(worker: Rc<Worker>, listeners: Vec<std::net::TcpListener>, mut begun: watch::Receiver<bool>, mut inbox: Inbox) {
    let mut stopping = worker.stopping.clone();
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
                for listener in waiting.take().into_iter().flatten() {
                    accepting.push(tokio::task::spawn_local(accept(Rc::clone(&worker), listener)));
                }
            }
            _ = sweep.tick() => worker.gateway.sweep(),
            () = stopping.stopped() => break,
        }
    }
    for task in accepting {
        task.abort();
    }
    let limit = tokio::time::sleep(worker.drain);
    tokio::pin!(limit);
    while worker.open.get() > 0 {
        tokio::select! {
            () = &mut limit => return,
            () = tokio::time::sleep(Duration::from_millis(10)) => {}
            Some(message) = inbox.recv() => worker.hear(message),
        }
    }
}

async fn accept(worker: Rc<Worker>, listener: std::net::TcpListener) {
    let listener = match tokio::net::TcpListener::from_std(listener) {
        Ok(l) => l,
        Err(error) => return tracing::error!(%error, "a listener failed"),
    };
    loop {
        match listener.accept().await {
            Ok((tcp, _)) => {
                let worker = Rc::clone(&worker);
                worker.open.set(worker.open.get() + 1);
                tokio::task::spawn_local(async move {
                    connection(&worker, tcp).await;
                    worker.open.set(worker.open.get().saturating_sub(1));
                });
            }
            Err(error) => {
                tracing::warn!(%error, "no connection can be accepted");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

async fn connection(worker: &Rc<Worker>, tcp: TcpStream) {
    tidegate_upstream::prepare(&tcp);
    let Some(config) = worker.tls.current() else { return };
    let Ok(Ok(tls)) = tokio::time::timeout(HANDSHAKE_TIMEOUT, TlsAcceptor::from(config).accept(tcp)).await else {
        return tracing::debug!("a TLS handshake failed");
    };
    let who = identity_of(tls.get_ref().1);
    let Some(who) = who.as_ref().filter(|w| w.role == "edge" && w.region == worker.region) else {
        return tracing::warn!(who = ?who.map(|w| w.to_string()), "only edges of its region may ask a shield");
    };
    let settings = ServerSettings {
        streams: MOST_STREAMS,
        head: 128 << 10,
        // Uploads that an origin does not take hold up no others.
        stream_window: 256 << 10,
        connection_window: Windows::OF_CONNECTION,
        send_buffer: SEND_BUFFER,
        keep_alive: KEEP_ALIVE,
        // An edge is known, and its connection lives for weeks.
        provoked_resets: usize::MAX,
        extended_connect: false,
        drain: worker.drain,
    };
    let ends = worker.tls.ends(tls.get_ref().1, worker.stopping.clone());
    if let Err(error) =
        tidegate_http2::serve(tls, &settings, |request, interim| worker.answer((&who.name, who.enrolled), request, interim), ends).await
    {
        tracing::debug!(%error, "an edge's connection ended");
    }
}

impl Worker {
    fn hear(&self, message: ToWorker) {
        match message {
            ToWorker::Update(delivery) => self.apply(delivery),
            ToWorker::Explain(question, reply) => {
                let sites = Rc::clone(&self.sites.borrow());
                let Some(site) = sites.get(question.site.as_str()).cloned() else {
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
            let site = |s: &Arc<tidegate_control_types::SiteState>| {
                let name = s.spec.name.to_string();
                let counters = self.counters.get(&name);
                (name, Rc::new(Site::new(Arc::clone(s), counters)))
            };
            *self.sites.borrow_mut() = Rc::new(u.network.sites.values().map(site).collect());
            let of_region = u.network.nodes.values().filter(|n| n.role == Role::Edge && n.region == self.region);
            *self.edges.borrow_mut() = Rc::new(of_region.map(|n| (n.name.to_string(), n.since)).collect());
        }
        let _ = delivery.applied.send(());
    }

    fn answer(&self, (edge, enrolled): (&str, u64), request: Request<Received>, interim: Interim) -> Answering<Response<ResponseBody>> {
        let (parts, body) = request.into_parts();
        let sites = Rc::clone(&self.sites.borrow());
        // One that was removed is answered nothing; one that has just enrolled may be known in a moment.
        let is_known = self.edges.borrow().get(edge) == Some(&enrolled);
        match asked(parts, &sites).filter(|_| is_known) {
            Some(asked) => {
                let asked = Asked { interim: Some(interim), ..asked };
                self.gateway.answer(asked, RequestBody::of(body, u64::MAX)).then(|answer| answer.response)
            }
            None => {
                // A site, or an edge, that this shield does not know yet, most likely: the edge asks the origin itself.
                let mut response = Response::new(ResponseBody::whole(Bytes::from_static(b"no such site here, or no such edge\n")));
                *response.status_mut() = StatusCode::MISDIRECTED_REQUEST;
                Answering::now(response)
            }
        }
    }
}

/// An edge's request as the gateway takes it; `None` where this shield does not know its site.
#[must_use]
pub fn asked(parts: http::request::Parts, sites: &HashMap<String, Rc<Site>>) -> Option<Asked> {
    let mut headers = parts.headers;
    let text = |name: &http::HeaderName| headers.get(name).and_then(|v| v.to_str().ok()).map(str::to_owned);
    let (site, scheme) = (text(&fields::SITE)?, text(&fields::SCHEME));
    let site = Rc::clone(sites.get(&site)?);
    let authority = parts.uri.authority().map(|a| a.as_str().to_owned()).unwrap_or_default();
    let (host, port) = host_and_port(&authority)?;
    headers.remove(header::HOST);
    let path = parts.uri.path_and_query().map_or("/", |p| p.as_str());
    let target = site.target(scheme.as_deref() == Some("https"), &host, path).on_port(port);
    Some(Asked::of_edge(site, parts.method, target, headers).with_target_as_sent(path))
}

/// What a shield calls itself.
pub fn via(name: &str) -> HeaderValue {
    HeaderValue::from_str(&format!("2.0 {name}")).unwrap_or(HeaderValue::from_static("2.0 tidegate"))
}
