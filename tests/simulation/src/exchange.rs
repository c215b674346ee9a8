//! Requests between tiers and to the origin, and the answers that clients get: what goes out of one node's futures, over
//! the network, and into another's.

use crate::net::{Host, MS, SECOND};
use crate::origin::{EXCHANGE, Given, Health, PAGES, content};
use crate::plan::{Ask, SITES};
use crate::world::{Event, World};
use bytes::Bytes;
use http::response::Parts;
use http::{Response, StatusCode, header};
use http_body::{Body, Frame, SizeHint};
use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;
use tidegate_gateway::interim::Interim;
use tidegate_gateway::{Answer, Answering, Fetch, FetchError, FetchFailed, Fetched, RequestBody, Upstream, UpstreamBody, fields};
use tidegate_upstream::{Shield, ShieldWay};
use tokio::sync::{mpsc, oneshot};

type Unsent = tidegate_upstream::Unanswered;

/// What a node's futures want of the world.
pub enum Out {
    ToShield { shield: String, request: http::Request<RequestBody>, reply: oneshot::Sender<Result<Response<UpstreamBody>, Unsent>> },
    ToOrigin { site: String, request: http::Request<RequestBody>, reply: oneshot::Sender<Result<Fetched, FetchError>> },
    Head { of: Of, parts: Box<Parts> },
    Data { of: Of, bytes: Bytes },
    End { of: Of, whole: bool },
}

pub type Queue = Rc<RefCell<VecDeque<Out>>>;

/// Whose answer it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Of {
    Client(u64),
    Exchange(u64),
}

/// Hands an answer over, piece by piece.
pub async fn deliver(answering: Answering<Answer>, of: Of, pause_ms: u64, out: Queue) {
    let (parts, body) = answering.await.response.into_parts();
    out.borrow_mut().push_back(Out::Head { of, parts: Box::new(parts) });
    let mut body = std::pin::pin!(body);
    let whole = loop {
        if pause_ms > 0 {
            tokio::time::sleep(Duration::from_millis(pause_ms)).await;
        }
        match std::future::poll_fn(|cx| body.as_mut().poll_frame(cx)).await {
            None => break true,
            Some(Err(_)) => break false,
            Some(Ok(frame)) => {
                let bytes = frame.into_data().unwrap_or_default();
                out.borrow_mut().push_back(Out::Data { of, bytes });
            }
        }
    };
    out.borrow_mut().push_back(Out::End { of, whole });
}

pub struct SimWay(pub Queue);

impl ShieldWay for SimWay {
    async fn send(
        &self,
        shield: &Shield,
        request: http::Request<RequestBody>,
        _: Option<Interim>,
        timeout: Duration,
        _: Duration,
    ) -> Result<Response<UpstreamBody>, Unsent> {
        let (reply, replied) = oneshot::channel();
        self.0.borrow_mut().push_back(Out::ToShield { shield: shield.name.clone(), request, reply });
        match tokio::time::timeout(timeout, replied).await {
            Err(_) => Err((FetchError::Timeout, None)),
            Ok(Err(_)) => Err((FetchError::Broken, None)),
            Ok(Ok(answer)) => answer,
        }
    }
}

pub struct SimOrigin(pub Queue);

impl Upstream for SimOrigin {
    async fn fetch(&self, request: http::Request<RequestBody>, fetch: Fetch) -> Result<Fetched, FetchFailed> {
        let (reply, replied) = oneshot::channel();
        self.0.borrow_mut().push_back(Out::ToOrigin { site: fetch.site.name().to_owned(), request, reply });
        Ok(replied.await.unwrap_or(Err(FetchError::Broken))?)
    }
}

/// A body that comes over the network, and its length where the head says it.
struct Fed(mpsc::UnboundedReceiver<Result<Bytes, FetchError>>, Option<u64>);

impl Body for Fed {
    type Data = Bytes;
    type Error = FetchError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, FetchError>>> {
        self.0.poll_recv(cx).map(|data| data.map(|d| d.map(Frame::data)))
    }

    fn size_hint(&self) -> SizeHint {
        self.1.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

enum Reply {
    Shield(oneshot::Sender<Result<Response<UpstreamBody>, Unsent>>),
    Origin(oneshot::Sender<Result<Fetched, FetchError>>),
    Given,
}

/// One request of a node to another, or to the origin.
struct Exchange {
    near: Host,
    far: Host,
    far_life: u64,
    site: String,
    request: Option<http::Request<RequestBody>>,
    reply: Reply,
    feed: Option<mpsc::UnboundedSender<Result<Bytes, FetchError>>>,
    last: u64,
    stalled: Vec<Back>,
    apart_since: Option<u64>,
}

/// What comes back.
pub enum Back {
    Head(Box<Parts>),
    Data(Bytes),
    End { whole: bool },
    Refused(FetchError),
}

pub enum Passing {
    There { id: u64 },
    Back { id: u64, back: Back },
}

/// A client's request and what has come of it.
pub struct Asked {
    pub edge: String,
    pub ask: Ask,
    pub begun: u64,
    pub status: Option<StatusCode>,
    /// What the origin said that it was answered with.
    pub exchange: Option<usize>,
    pub cache_status: String,
    range: Option<String>,
    pub body: Vec<u8>,
    pub ended: Option<bool>,
}

#[derive(Default)]
pub struct Exchanges {
    all: BTreeMap<u64, Exchange>,
    next: u64,
    pub asked: BTreeMap<u64, Asked>,
}

const KEEP_ALIVE: u64 = 4 * SECOND;

impl Exchanges {
    pub fn host_of(&self, passing: &Passing) -> Option<Host> {
        match passing {
            Passing::There { id } => self.all.get(id).map(|e| e.far),
            Passing::Back { id, .. } => self.all.get(id).map(|e| e.near),
        }
    }
}

impl World {
    /// A client asks an edge, whose worker its connection has come to.
    pub fn get(&mut self, edge: Host, worker: usize, ask: Ask) -> u64 {
        self.exchanges.next += 1;
        let id = self.exchanges.next;
        let asked = Asked {
            edge: self.machines[edge.0].name.clone(),
            ask: ask.clone(),
            begun: self.now(),
            status: None,
            exchange: None,
            cache_status: String::new(),
            range: None,
            body: Vec::new(),
            ended: None,
        };
        self.exchanges.asked.insert(id, asked);
        self.at(0, Event::Request { edge, request: Box::new(crate::cache::Request { id, worker, ask }) });
        id
    }

    pub fn out(&mut self, from: Host, out: Out) {
        match out {
            Out::ToShield { shield, request, reply } => {
                let Some(far) = self.host_named(&shield) else { return };
                if self.story.told.is_some() {
                    let what = asked_in_words(&request);
                    self.tell(from, || format!("asks {shield} for {what}"));
                }
                if self.net.is_apart(from, far) {
                    // The time-out of a connect.
                    let id = self.begin(from, far, String::new(), request, Reply::Shield(reply));
                    return self.at(2 * SECOND, Event::Passing(Passing::Back { id, back: Back::Refused(FetchError::Connect) }));
                }
                let id = self.begin(from, far, String::new(), request, Reply::Shield(reply));
                let after = self.net.delay(from, far);
                self.at(after, Event::Passing(Passing::There { id }));
            }
            Out::ToOrigin { site, request, reply } => {
                let far = self.setup.origin();
                let id = self.begin(from, far, site, request, Reply::Origin(reply));
                let after = self.net.delay(from, far);
                self.at(after, Event::Passing(Passing::There { id }));
            }
            Out::Head { of: Of::Client(id), parts } => self.client_head(from, id, &parts),
            Out::Data { of: Of::Client(id), bytes } => {
                if let Some(asked) = self.exchanges.asked.get_mut(&id) {
                    asked.body.extend_from_slice(&bytes);
                }
            }
            Out::End { of: Of::Client(id), whole } => self.client_end(id, whole),
            Out::Head { of: Of::Exchange(id), parts } => {
                if self.story.told.is_some() {
                    let near = self.exchanges.all.get(&id).map_or("nobody", |e| &self.machines[e.near.0].name).to_owned();
                    let what = answer_in_words(&parts);
                    self.tell(from, || format!("answers {near}: {what}"));
                }
                self.back(id, Back::Head(parts));
            }
            Out::Data { of: Of::Exchange(id), bytes } => self.back(id, Back::Data(bytes)),
            Out::End { of: Of::Exchange(id), whole } => self.back(id, Back::End { whole }),
        }
    }

    fn begin(&mut self, near: Host, far: Host, site: String, request: http::Request<RequestBody>, reply: Reply) -> u64 {
        self.exchanges.next += 1;
        let far_life = self.machines.get(far.0).map_or(0, |m| m.life);
        let exchange = Exchange {
            near,
            far,
            far_life,
            site,
            request: Some(request),
            reply,
            feed: None,
            last: 0,
            stalled: Vec::new(),
            apart_since: None,
        };
        self.exchanges.all.insert(self.exchanges.next, exchange);
        self.exchanges.next
    }

    /// Sends something back to who asked; a stream keeps its order.
    fn back(&mut self, id: u64, back: Back) {
        let now = self.now();
        let Some(e) = self.exchanges.all.get_mut(&id) else { return };
        if self.net.is_cut(e.far, e.near) || !e.stalled.is_empty() {
            return e.stalled.push(back);
        }
        e.last = e.last.max(now + self.net.delay(e.far, e.near));
        let after = e.last - now;
        self.at(after, Event::Passing(Passing::Back { id, back }));
    }

    pub fn passing(&mut self, passing: Passing) {
        match passing {
            Passing::There { id } => self.there(id),
            Passing::Back { id, back } => self.came_back(id, back),
        }
    }

    fn there(&mut self, id: u64) {
        let Some(e) = self.exchanges.all.get_mut(&id) else { return };
        let (far, site, Some(request)) = (e.far, e.site.clone(), e.request.take()) else { return };
        if far != self.setup.origin() {
            if !self.shield_request(far, id, request) {
                self.back(id, Back::Refused(FetchError::Broken));
            }
            return;
        }
        if self.origin.health == Health::Down {
            return self.back(id, Back::Refused(FetchError::Connect));
        }
        let now = self.now();
        let path = request.uri().path_and_query().map_or("/", |p| p.as_str()).to_owned();
        let given = self.origin.take(now, &site, request.method(), &path, request.headers());
        if self.story.told.is_some() {
            let near = self.exchanges.all.get(&id).map(|e| self.machines[e.near.0].name.clone()).unwrap_or_default();
            let number = self.origin.exchanges.len().saturating_sub(1);
            let tags = given.headers.get("surrogate-key").and_then(|v| v.to_str().ok()).unwrap_or("none").to_owned();
            self.story.tell(now, "origin", || {
                format!("takes {} {site}{path} of {near}: {} (exchange {number}, tags {tags})", request.method(), given.status)
            });
        }
        let Given { status, headers, body } = given;
        let mut response = Response::new(());
        (*response.status_mut(), *response.headers_mut()) = (status, headers);
        let parts = Box::new(response.into_parts().0);
        let Some(near) = self.exchanges.all.get(&id).map(|e| e.near) else { return };
        let random = &mut self.machines[near.0].random;
        let takes = random.u64(1..=self.origin.takes_ms) * MS;
        let breaks = self.origin.health == Health::BreakingOff && random.bool();
        let half = if breaks { body.len() / 2 } else { body.len() };
        let mut at = takes;
        self.at(at, Event::Passing(Passing::Back { id, back: Back::Head(parts) }));
        for piece in body.slice(..half).chunks(64 << 10) {
            at += self.machines[near.0].random.u64(0..=takes / 4 + MS);
            self.at(at, Event::Passing(Passing::Back { id, back: Back::Data(Bytes::copy_from_slice(piece)) }));
        }
        self.at(at + 1, Event::Passing(Passing::Back { id, back: Back::End { whole: !breaks } }));
    }

    fn came_back(&mut self, id: u64, back: Back) {
        let Some(e) = self.exchanges.all.get_mut(&id) else { return };
        match back {
            Back::Head(parts) => {
                let (feed, fed) = mpsc::unbounded_channel();
                e.feed = Some(feed);
                let length = parts.headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse().ok());
                let mut response = Response::from_parts(*parts, UpstreamBody::new(Fed(fed, length)));
                match std::mem::replace(&mut e.reply, Reply::Given) {
                    Reply::Shield(reply) => drop(reply.send(Ok(response))),
                    Reply::Origin(reply) => {
                        fields::strip_framing(response.headers_mut());
                        drop(reply.send(Ok(Fetched {
                            response,
                            length,
                            vouched: None,
                            stands_in: false,
                            failed_before: 0,
                            close_delimited: false,
                            upgrade: None,
                        })));
                    }
                    Reply::Given => {}
                }
            }
            Back::Data(bytes) => {
                if let Some(feed) = &e.feed {
                    let _ = feed.send(Ok(bytes));
                }
            }
            Back::End { whole } => {
                if let (Some(feed), false) = (&e.feed, whole) {
                    let _ = feed.send(Err(FetchError::Broken));
                }
                self.refuse(id, FetchError::Broken);
            }
            Back::Refused(error) => self.refuse(id, error),
        }
    }

    /// The end of an exchange; an error for who still waits for its head.
    fn refuse(&mut self, id: u64, error: FetchError) {
        let Some(e) = self.exchanges.all.remove(&id) else { return };
        match e.reply {
            Reply::Shield(reply) => drop(reply.send(Err((error, e.request)))),
            Reply::Origin(reply) => drop(reply.send(Err(error))),
            Reply::Given => {}
        }
    }

    pub fn exchanges_keep_alive(&mut self) {
        let now = self.now();
        let origin = self.setup.origin();
        let (mut gone, mut flowing) = (Vec::new(), Vec::new());
        for (id, e) in self.exchanges.all.iter_mut().filter(|(_, e)| e.far != origin) {
            let still = [e.near, e.far].iter().any(|h| self.machines[h.0].suspended_since.is_some());
            if still || self.net.is_apart(e.near, e.far) {
                if now - *e.apart_since.get_or_insert(now) > KEEP_ALIVE {
                    gone.push(*id);
                }
            } else if self.machines[e.far.0].life != e.far_life {
                gone.push(*id);
            } else {
                e.apart_since = None;
                flowing.push((*id, std::mem::take(&mut e.stalled)));
            }
        }
        gone.into_iter().for_each(|id| self.came_back(id, Back::End { whole: false }));
        for (id, stalled) in flowing {
            stalled.into_iter().for_each(|back| self.back(id, back));
        }
    }

    /// A process ended: what it asked for is forgotten, what it was asked for breaks off.
    pub fn exchanges_stopped(&mut self, host: Host) {
        self.exchanges.all.retain(|_, e| e.near != host);
        let broken: Vec<_> = self.exchanges.all.iter().filter(|(_, e)| e.far == host).map(|(id, _)| *id).collect();
        for id in broken {
            self.at(MS, Event::Passing(Passing::Back { id, back: Back::End { whole: false } }));
        }
    }

    fn client_head(&mut self, edge: Host, id: u64, parts: &Parts) {
        let Some(asked) = self.exchanges.asked.get_mut(&id) else { return };
        let text = |name: &str| parts.headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned();
        asked.status = Some(parts.status);
        asked.exchange = text(EXCHANGE.as_str()).parse().ok();
        asked.range = parts.headers.get(header::CONTENT_RANGE).and_then(|v| v.to_str().ok()).map(str::to_owned);
        asked.cache_status =
            parts.headers.get_all("cache-status").iter().next_back().and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned();
        let (begun, name, how, number) = (asked.begun, asked.edge.clone(), asked.cache_status.clone(), asked.exchange);
        let what = (SITES[asked.ask.site], PAGES[asked.ask.page].0, parts.status.as_u16());
        self.tell(edge, || {
            format!("answers {}{} of {}: {} {how} (exchange {number:?})", what.0, what.1, crate::checker::time(begun), what.2)
        });
        self.checker.stats.hits += u64::from(how.contains("; hit"));
        self.checker.stats.detached += u64::from(how.contains("detached"));
        let Some(exchange) = number.and_then(|n| self.origin.exchanges.get(n)).cloned() else {
            // Nothing has happened yet that a client might suffer from.
            if self.checker.stats.faults == 0 && matches!(what.2, 502 | 504) {
                self.must(Err(format!("an error without a cause: {name} answered {}{} with {}", what.0, what.1, what.2)));
            }
            return;
        };
        let says = PAGES[exchange.page].1;
        let may_be_stale = says.contains("stale-");
        let checked = self.checker.answered(&name, begun, &exchange, may_be_stale);
        self.must(checked);
    }

    fn client_end(&mut self, id: u64, whole: bool) {
        let Some(asked) = self.exchanges.asked.get_mut(&id) else { return };
        asked.ended = Some(whole);
        let exchange = asked.exchange.and_then(|n| self.origin.exchanges.get(n));
        let (Some(exchange), Some(status)) = (exchange, asked.status) else { return };
        let right = content(&exchange.site, exchange.page, exchange.version, exchange.language);
        let (asked_site, asked_page) = (SITES[asked.ask.site], asked.ask.page);
        let part = match (status, &asked.range) {
            (StatusCode::PARTIAL_CONTENT, Some(range)) => part(&right, range),
            (StatusCode::OK, _) if asked.ask.method != http::Method::HEAD => Some(right),
            _ => Some(Bytes::new()),
        };
        let fits = match &part {
            Some(part) if whole => asked.body[..] == part[..],
            Some(part) => part.starts_with(&asked.body),
            None => false,
        };
        if !fits || exchange.site != asked_site || exchange.page != asked_page {
            let why = format!(
                "wrong bytes: {} answered {asked_site}{} with {status} and {} bytes that are not those of exchange {:?} ({exchange:?})",
                asked.edge,
                PAGES[asked_page].0,
                asked.body.len(),
                asked.exchange
            );
            self.must(Err(why));
        }
    }
}

fn index_in(headers: &http::HeaderMap, name: &str) -> String {
    let revision = headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default();
    revision.rsplit('/').next().unwrap_or_default().to_owned()
}

fn asked_in_words(request: &http::Request<RequestBody>) -> String {
    let end_to_end = if request.headers().contains_key("tidegate-end-to-end") { ", end to end" } else { "" };
    format!("{}, demanding {}{end_to_end}", request.uri(), index_in(request.headers(), "tidegate-demand"))
}

fn answer_in_words(parts: &Parts) -> String {
    let number = parts.headers.get(EXCHANGE).and_then(|v| v.to_str().ok()).unwrap_or("none");
    format!("{} (exchange {number}), vouching {}", parts.status.as_u16(), index_in(&parts.headers, "tidegate-vouched"))
}

/// What `Content-Range` names of the right body.
fn part(right: &Bytes, range: &str) -> Option<Bytes> {
    let (bounds, length) = range.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = bounds.split_once('-')?;
    let (first, last, length): (usize, usize, usize) = (first.parse().ok()?, last.parse().ok()?, length.parse().ok()?);
    (length == right.len() && first <= last && last < length).then(|| right.slice(first..=last))
}
