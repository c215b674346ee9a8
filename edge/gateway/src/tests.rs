//! A gateway between clients and an upstream whose every answer the test times: what races with what is chosen, not hoped
//! for.

use crate::{
    Answer, Asked, Caches, Fetch, FetchError, FetchFailed, Fetched, Gateway, MOST_SELECTORS, Node, RequestBody, Site, Store, Tier,
    Upstream, UpstreamBody,
};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use http_body::{Body, Frame};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;
use tidegate_control_types::event::Event;
use tidegate_control_types::lease::LeaseEnd;
use tidegate_control_types::{BootTime, Clock, Incarnation, PurgeOrder, Revision, Selector, SiteState, WallTime, site_file};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::task::{JoinHandle, LocalSet};

#[derive(Default)]
struct TestClock(AtomicU64);

impl Clock for TestClock {
    fn boot(&self) -> BootTime {
        BootTime::from_nanos(self.0.load(Ordering::SeqCst) * 1_000_000)
    }

    fn wall(&self) -> WallTime {
        WallTime(1_700_000_000_000 + self.0.load(Ordering::SeqCst))
    }
}

/// A fetch that waits for the test to answer it.
struct Pending {
    headers: HeaderMap,
    fetch: Fetch,
    answer: oneshot::Sender<Result<Fetched, FetchError>>,
}

#[derive(Default)]
struct Origin {
    pending: RefCell<VecDeque<Pending>>,
    came: Notify,
}

#[derive(Clone, Default)]
struct Scripted(Rc<Origin>);

impl Upstream for Scripted {
    async fn fetch(&self, request: Request<RequestBody>, fetch: Fetch) -> Result<Fetched, FetchFailed> {
        let (answer, answered) = oneshot::channel();
        self.0.pending.borrow_mut().push_back(Pending { headers: request.headers().clone(), fetch, answer });
        self.0.came.notify_one();
        Ok(answered.await.unwrap_or(Err(FetchError::Broken))?)
    }
}

/// A body that the test feeds.
struct Fed(mpsc::UnboundedReceiver<Result<Bytes, FetchError>>);

impl Body for Fed {
    type Data = Bytes;
    type Error = FetchError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, FetchError>>> {
        self.0.poll_recv(cx).map(|data| data.map(|d| d.map(Frame::data)))
    }
}

type Feed = mpsc::UnboundedSender<Result<Bytes, FetchError>>;

impl Pending {
    fn begin(self, status: u16, headers: &[(&str, &str)], vouched: Option<Revision>) -> Feed {
        let (feed, fed) = mpsc::unbounded_channel();
        let mut response = Response::new(UpstreamBody::new(Fed(fed)));
        *response.status_mut() = StatusCode::from_u16(status).unwrap();
        for (name, value) in headers {
            response.headers_mut().append(HeaderName::from_bytes(name.as_bytes()).unwrap(), HeaderValue::from_str(value).unwrap());
        }
        let length = response.headers().get("content-length").map(|v| v.to_str().unwrap().parse().unwrap());
        crate::fields::strip_framing(response.headers_mut());
        let _ = self.answer.send(Ok(Fetched {
            response,
            length,
            vouched,
            stands_in: false,
            failed_before: 0,
            close_delimited: false,
            upgrade: None,
        }));
        feed
    }

    fn answer(self, status: u16, headers: &[(&str, &str)], body: &'static str) {
        let _ = self.begin(status, headers, None).send(Ok(Bytes::from_static(body.as_bytes())));
    }

    fn fail(self) {
        let _ = self.answer.send(Err(FetchError::Connect));
    }
}

const ATTACHED_UNTIL: u64 = 1_000_000;
const CACHED: (&str, &str) = ("cache-control", "max-age=100");
/// What a client read, or how it broke off.
type Read = Result<String, FetchError>;

struct World {
    gateway: Rc<Gateway<Scripted>>,
    origin: Scripted,
    clock: Arc<TestClock>,
    site: Rc<Site>,
    at: std::cell::Cell<u64>,
}

fn revision(index: u64) -> Revision {
    Revision::new(Incarnation(7), index)
}

impl World {
    fn new(tier: Tier) -> Self {
        let text = "name = \"s\"\nhosts = [\"h.example\"]\n[origin]\nservers = [{ url = \"http://o.example\" }]\n";
        let spec = site_file::read("s.toml", text).unwrap();
        let state = Arc::new(SiteState { spec, revision: 1, created: 1, keys_since: 1, unshown: Vec::new() });
        let (origin, clock) = (Scripted::default(), Arc::new(TestClock::default()));
        let name = HeaderValue::from_static("n");
        let node = Node { name: "n".into(), tier, via: name.clone(), cdn_id: name };
        let lease = Arc::new(LeaseEnd::default());
        lease.publish(Some(BootTime::from_nanos(ATTACHED_UNTIL * 1_000_000)));
        let store = Arc::new(Store::new(64 << 20));
        let gateway = Gateway::new(
            Rc::new(node),
            Caches { store, fills: Arc::default(), coder: None },
            clock.clone(),
            lease,
            origin.clone(),
            MOST_SELECTORS,
        );
        gateway.apply(revision(1), true, 0, &[(1, vec![Event::Site(Box::new((*state).clone()))])], &|_| None);
        let site = Rc::new(Site::new(state, Arc::default()));
        Self { gateway, origin, clock, site, at: std::cell::Cell::new(1) }
    }

    fn pass(&self, time: Duration) {
        self.clock.0.fetch_add(u64::try_from(time.as_millis()).unwrap(), Ordering::SeqCst);
    }

    fn purge(&self, selector: Selector, soft: bool) -> u64 {
        let index = self.at.get() + 1;
        self.at.set(index);
        let order = PurgeOrder { site: Some("s".parse().unwrap()), selector, soft };
        let state = Arc::clone(&self.site.state);
        self.gateway.apply(revision(index), false, 0, &[(index, vec![Event::Purged(vec![order])])], &move |_| Some(Arc::clone(&state)));
        index
    }

    fn purge_url(&self, path: &str) -> u64 {
        self.purge(Selector::Url { host: "h.example".into(), target: path.into() }, false)
    }

    fn asked(&self, path: &str, headers: &[(&'static str, &str)]) -> Asked {
        let target = self.site.target(false, "h.example", path);
        let mut fields = HeaderMap::new();
        for (name, value) in headers {
            fields.append(*name, value.parse().unwrap());
        }
        Asked::of_client(Rc::clone(&self.site), Method::GET, target, fields)
    }

    fn start(&self, asked: Asked) -> JoinHandle<Answer> {
        let answering = self.gateway.answer(asked, RequestBody::Empty);
        tokio::task::spawn_local(answering)
    }

    fn get(&self, path: &str) -> JoinHandle<Answer> {
        self.start(self.asked(path, &[]))
    }

    async fn fetch(&self) -> Pending {
        loop {
            if let Some(pending) = self.origin.0.pending.borrow_mut().pop_front() {
                return pending;
            }
            self.origin.0.came.notified().await;
        }
    }

    fn nothing_fetched(&self) -> bool {
        self.origin.0.pending.borrow().is_empty()
    }
}

/// Until all that can happen now has happened.
async fn settle() {
    for _ in 0..50 {
        tokio::task::yield_now().await;
    }
}

async fn read(answer: JoinHandle<Answer>) -> (StatusCode, HeaderMap, Read) {
    let answer = answer.await.unwrap();
    let (parts, mut body) = answer.response.into_parts();
    let mut out = Vec::new();
    let whole = loop {
        match std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await {
            None => break Ok(String::from_utf8(out).unwrap()),
            Some(Ok(frame)) => out.extend_from_slice(&frame.into_data().unwrap()),
            Some(Err(e)) => break Err(e),
        }
    };
    (parts.status, parts.headers, whole)
}

async fn text(answer: JoinHandle<Answer>) -> String {
    read(answer).await.2.unwrap()
}

fn test(tier: Tier, run: impl AsyncFnOnce(&World)) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    LocalSet::new().block_on(&runtime, async { run(&World::new(tier)).await });
}

#[test]
fn a_request_after_a_purge_joins_no_fill_from_before_it() {
    test(Tier::Edge, async |w| {
        let before = w.get("/a");
        let old = w.fetch().await;
        w.purge_url("/a");
        let after = w.get("/a");
        let new = w.fetch().await;
        let unrelated = w.get("/a");
        settle().await;
        assert!(w.nothing_fetched(), "the third shares the second's");
        new.answer(200, &[CACHED], "new");
        settle().await;
        old.answer(200, &[CACHED], "old");
        assert_eq!((text(before).await, text(after).await, text(unrelated).await), ("old".into(), "new".into(), "new".into()));
        assert_eq!(text(w.get("/a")).await, "new", "a fill that began earlier does not displace a later one");
        assert!(w.nothing_fetched());
    });
}

#[test]
fn purges_of_other_things_do_not_keep_requests_apart() {
    test(Tier::Edge, async |w| {
        let first = w.get("/a");
        let fetch = w.fetch().await;
        for n in 0..100 {
            w.purge_url(&format!("/other/{n}"));
        }
        let second = w.get("/a");
        settle().await;
        assert!(w.nothing_fetched());
        fetch.answer(200, &[CACHED], "one");
        assert_eq!((text(first).await, text(second).await), ("one".into(), "one".into()));
    });
}

#[test]
fn a_tag_that_is_seen_only_in_the_head_counts_for_readers_that_came_after_its_purge() {
    test(Tier::Edge, async |w| {
        let before = w.get("/a");
        let old = w.fetch().await;
        w.purge(Selector::Tag { tag: "t".into() }, false);
        let after = w.get("/a");
        settle().await;
        assert!(w.nothing_fetched(), "nobody knows its tags yet");
        old.answer(200, &[CACHED, ("surrogate-key", "t u")], "old");
        let new = w.fetch().await;
        new.answer(200, &[CACHED, ("surrogate-key", "t u")], "new");
        assert_eq!((text(before).await, text(after).await), ("old".into(), "new".into()));
        assert_eq!(text(w.get("/a")).await, "new");
    });
}

#[test]
fn a_confirmation_that_was_asked_for_before_a_purge_is_worth_nothing_after_it() {
    test(Tier::Edge, async |w| {
        let first = w.get("/a");
        w.fetch().await.answer(200, &[CACHED, ("etag", "\"1\""), ("cache-tag", "t")], "old");
        assert_eq!(text(first).await, "old");
        w.pass(Duration::from_secs(101));
        let validating = w.get("/a");
        let asked = w.fetch().await;
        assert_eq!(asked.headers.get("if-none-match").unwrap(), "\"1\"");
        w.purge(Selector::Tag { tag: "t".into() }, false);
        let after = w.get("/a");
        settle().await;
        asked.answer(304, &[CACHED, ("etag", "\"1\"")], "");
        // Whoever came before the purge may have it; who came after gets what the origin says now.
        assert_eq!(text(validating).await, "old");
        let anew = w.fetch().await;
        anew.answer(200, &[CACHED, ("etag", "\"2\""), ("cache-tag", "t")], "new");
        assert_eq!(text(after).await, "new");
        assert_eq!(text(w.get("/a")).await, "new");
    });
}

#[test]
fn who_joined_a_validation_gets_no_other_variant() {
    test(Tier::Edge, async |w| {
        let german = [("accept-language", "de")];
        let head = [CACHED, ("etag", "\"de\""), ("vary", "accept-language")];
        let first = w.start(w.asked("/a", &german));
        w.fetch().await.answer(200, &head, "deutsch");
        assert_eq!(text(first).await, "deutsch");
        w.pass(Duration::from_secs(101));
        let validating = w.start(w.asked("/a", &german));
        let asked = w.fetch().await;
        let french = w.start(w.asked("/a", &[("accept-language", "fr")]));
        settle().await;
        asked.answer(304, &head, "");
        w.fetch().await.answer(200, &[CACHED, ("etag", "\"fr\""), ("vary", "accept-language")], "francais");
        assert_eq!((text(validating).await, text(french).await), ("deutsch".into(), "francais".into()));
    });
}

#[test]
fn a_softly_purged_response_stands_in_only_where_it_may() {
    test(Tier::Edge, async |w| {
        let lenient = ("cache-control", "max-age=100, stale-if-error=1000");
        for (path, head) in [("/lenient", lenient), ("/strict", CACHED)] {
            let first = w.get(path);
            w.fetch().await.answer(200, &[head], "kept");
            text(first).await;
            w.purge(Selector::Url { host: "h.example".into(), target: path.into() }, true);
            let asked = w.get(path);
            w.fetch().await.fail();
            let (status, ..) = read(asked).await;
            assert_eq!(status == StatusCode::OK, path == "/lenient", "{path}: {status}");
        }
        // An origin that says nothing is not waited for, and one that is away for long stands nothing in.
        let first = w.get("/late");
        w.fetch().await.answer(200, &[CACHED], "kept");
        text(first).await;
        w.pass(Duration::from_secs(200));
        let waits = w.get("/late");
        let pending = w.fetch().await;
        let (status, headers, body) = read(waits).await;
        assert_eq!((status, body.unwrap().as_str()), (StatusCode::OK, "kept"));
        assert!(headers.get("cache-status").unwrap().to_str().unwrap().contains("detail=stale-if-unreachable"));
        pending.answer(200, &[CACHED], "new");
        settle().await;
        assert_eq!(text(w.get("/late")).await, "new", "what came late is kept all the same");
        w.pass(Duration::from_secs(100 + 3601));
        let asked = w.get("/late");
        w.fetch().await.fail();
        assert_eq!(read(asked).await.0, StatusCode::BAD_GATEWAY);
        w.purge_url("/lenient");
        let asked = w.get("/lenient");
        w.fetch().await.fail();
        assert_eq!(read(asked).await.0, StatusCode::BAD_GATEWAY, "a hard purge is stronger");
    });
}

#[test]
fn what_an_edge_demands_a_shield_answers_from_nothing_older() {
    test(Tier::Shield, async |w| {
        let demanding = |index| Asked { demand: Some(revision(index)), ..w.asked("/a", &[]) };
        let first = w.start(demanding(1));
        w.fetch().await.answer(200, &[CACHED], "first");
        let (_, headers, body) = read(first).await;
        assert_eq!(body.unwrap(), "first");
        assert_eq!(headers.get("tidegate-vouched").unwrap(), &*revision(1).to_string());
        assert_eq!(text(w.start(demanding(1))).await, "first");
        // The edge knows of a purge that has not come here: after a short wait the origin is asked, end of story.
        let ahead = w.start(demanding(5));
        let asked = w.fetch().await;
        assert!(asked.fetch.demand.reaches(revision(5)));
        let feed = asked.begin(200, &[CACHED], None);
        feed.send(Ok(Bytes::from_static(b"second"))).unwrap();
        drop(feed);
        let (_, headers, body) = read(ahead).await;
        assert_eq!(body.unwrap(), "second");
        assert!(Revision::parse(headers.get("tidegate-vouched").unwrap().to_str().unwrap()).unwrap().reaches(revision(5)));
        // Now the purge comes: what was fetched after it is not touched by it.
        w.at.set(4);
        assert_eq!(w.purge_url("/a"), 5);
        assert_eq!(text(w.start(demanding(5))).await, "second");
        assert!(w.nothing_fetched());
    });
}

#[test]
fn a_shields_answer_is_as_clean_as_the_shield_vouches() {
    test(Tier::Edge, async |w| {
        let first = w.get("/a");
        let asked = w.fetch().await;
        w.purge_url("/a");
        // The shield took it from its cache, clean through 1 alone.
        let feed = asked.begin(200, &[CACHED], Some(revision(1)));
        feed.send(Ok(Bytes::from_static(b"old"))).unwrap();
        drop(feed);
        assert_eq!(text(first).await, "old", "asked before the purge");
        let second = w.get("/a");
        let asked = w.fetch().await;
        assert!(asked.fetch.demand.reaches(revision(2)));
        asked.answer(200, &[CACHED], "new");
        assert_eq!(text(second).await, "new");
    });
}

#[test]
fn an_upstream_that_breaks_off_fails_every_reader_and_leaves_nothing() {
    test(Tier::Edge, async |w| {
        let readers = [w.get("/a"), w.get("/a")];
        let feed = w.fetch().await.begin(200, &[CACHED, ("content-length", "100")], None);
        feed.send(Ok(Bytes::from_static(b"half"))).unwrap();
        settle().await;
        feed.send(Err(FetchError::Broken)).unwrap();
        for reader in readers {
            assert_eq!(read(reader).await.2, Err(FetchError::Broken));
        }
        let again = w.get("/a");
        w.fetch().await.answer(200, &[CACHED], "whole");
        assert_eq!(text(again).await, "whole");
        // One that ends early without saying so is found out by its length.
        let short = w.get("/b");
        let feed = w.fetch().await.begin(200, &[CACHED, ("content-length", "100")], None);
        feed.send(Ok(Bytes::from_static(b"half"))).unwrap();
        settle().await;
        drop(feed);
        assert!(read(short).await.2.is_err());
        let again = w.get("/b");
        settle().await;
        assert!(!w.nothing_fetched());
        drop(again);
    });
}

#[test]
fn a_fill_that_its_readers_left_goes_on_for_those_to_come() {
    test(Tier::Edge, async |w| {
        let gone = w.get("/a");
        let feed = w.fetch().await.begin(200, &[CACHED], None);
        feed.send(Ok(Bytes::from_static(b"half "))).unwrap();
        drop(gone.await.unwrap());
        settle().await;
        let late = w.get("/a");
        feed.send(Ok(Bytes::from_static(b"and half"))).unwrap();
        drop(feed);
        assert_eq!(text(late).await, "half and half");
        assert!(w.nothing_fetched());
        assert_eq!(text(w.get("/a")).await, "half and half");
    });
}

#[test]
fn what_may_not_be_stored_keeps_nobody_waiting_for_another() {
    test(Tier::Edge, async |w| {
        let waiting = [w.get("/a"), w.get("/a"), w.get("/a")];
        let first = w.fetch().await;
        settle().await;
        assert!(w.nothing_fetched());
        let private = [("cache-control", "private"), ("set-cookie", "who=1")];
        let slow = first.begin(200, &private, None);
        // The others ask for themselves, at once, while the first is still under way.
        for body in ["second", "third"] {
            w.fetch().await.answer(200, &private, body);
        }
        slow.send(Ok(Bytes::from_static(b"first"))).unwrap();
        drop(slow);
        let mut got = Vec::new();
        for reader in waiting {
            got.push(text(reader).await);
        }
        got.sort();
        assert_eq!(got, ["first", "second", "third"]);
        // And for a while nobody waits at all.
        let (a, b) = (w.get("/a"), w.get("/a"));
        w.fetch().await.answer(200, &private, "x");
        w.fetch().await.answer(200, &private, "y");
        text(a).await;
        text(b).await;
    });
}

#[test]
fn stale_while_revalidate_answers_at_once_and_asks_once() {
    test(Tier::Edge, async |w| {
        let head = [("cache-control", "max-age=10, stale-while-revalidate=60"), ("etag", "\"1\"")];
        let first = w.get("/a");
        w.fetch().await.answer(200, &head, "one");
        text(first).await;
        w.pass(Duration::from_secs(20));
        assert_eq!((text(w.get("/a")).await, text(w.get("/a")).await), ("one".into(), "one".into()));
        let asked = w.fetch().await;
        assert!(w.nothing_fetched(), "one validation for both");
        asked.answer(200, &[head[0], ("etag", "\"2\"")], "two");
        settle().await;
        assert_eq!(text(w.get("/a")).await, "two");
        // Not beyond its time.
        w.pass(Duration::from_secs(100));
        let waits = w.get("/a");
        w.fetch().await.answer(304, &head, "");
        settle().await;
        drop(waits);
    });
}

#[test]
fn what_an_unsafe_method_invalidates_no_fill_from_before_it_brings_back() {
    test(Tier::Edge, async |w| {
        let before = w.get("/a");
        let old = w.fetch().await;
        let post = w.start(Asked { method: Method::POST, ..w.asked("/a", &[]) });
        w.fetch().await.answer(200, &[], "done");
        assert_eq!(text(post).await, "done");
        let after = w.get("/a");
        let new = w.fetch().await;
        old.answer(200, &[CACHED], "old");
        assert_eq!(text(before).await, "old");
        new.answer(200, &[CACHED], "new");
        assert_eq!((text(after).await, text(w.get("/a")).await), ("new".into(), "new".into()));
        // The other way round: the old one comes last.
        let before = w.get("/b");
        let old = w.fetch().await;
        let post = w.start(Asked { method: Method::POST, ..w.asked("/b", &[]) });
        w.fetch().await.answer(200, &[], "done");
        text(post).await;
        old.answer(200, &[CACHED], "old");
        assert_eq!(text(before).await, "old");
        let after = w.get("/b");
        w.fetch().await.answer(200, &[CACHED], "new");
        assert_eq!(text(after).await, "new");
    });
}

#[test]
fn a_revalidation_is_kept_though_purges_of_other_things_went_by() {
    test(Tier::Edge, async |w| {
        let head = [("cache-control", "max-age=10, stale-while-revalidate=60")];
        let first = w.get("/a");
        w.fetch().await.answer(200, &head, "one");
        text(first).await;
        w.pass(Duration::from_secs(20));
        assert_eq!(text(w.get("/a")).await, "one");
        let asked = w.fetch().await;
        w.purge_url("/other");
        assert_eq!(text(w.get("/a")).await, "one", "checked against the purge, which raises its mark");
        asked.answer(200, &head, "two");
        settle().await;
        assert_eq!(text(w.get("/a")).await, "two");
        assert!(w.nothing_fetched());
    });
}

#[test]
fn a_range_is_answered_from_a_fill_that_is_under_way() {
    test(Tier::Edge, async |w| {
        let whole = w.get("/a");
        let feed = w.fetch().await.begin(200, &[CACHED, ("content-length", "10"), ("etag", "\"1\"")], None);
        feed.send(Ok(Bytes::from_static(b"01234"))).unwrap();
        let part = w.start(w.asked("/a", &[("range", "bytes=2-3")]));
        let (status, headers, body) = read(part).await;
        assert_eq!((status.as_u16(), body.unwrap().as_str()), (206, "23"));
        assert_eq!(headers.get("content-range").unwrap(), "bytes 2-3/10");
        feed.send(Ok(Bytes::from_static(b"56789"))).unwrap();
        drop(feed);
        assert_eq!(text(whole).await, "0123456789");
    });
}

fn cookies(answer: &Answer) -> Vec<&str> {
    answer.response.headers().get_all("set-cookie").iter().filter_map(|v| v.to_str().ok()).collect()
}

#[test]
fn a_cookie_goes_to_the_one_client_that_it_was_meant_for() {
    for shared in ["max-age=100", "public, max-age=100", "s-maxage=100"] {
        test(Tier::Edge, async |w| {
            let readers = [w.get("/a"), w.get("/a"), w.get("/a")];
            let said = [("cache-control", shared), ("set-cookie", "who=1"), ("set-cookie", "b=2"), ("etag", "\"1\"")];
            w.fetch().await.answer(200, &said, "page");
            let mut got = Vec::new();
            for reader in readers {
                got.push(cookies(&reader.await.unwrap()).len());
            }
            got.sort_unstable();
            assert_eq!(got, [0, 0, 2], "{shared}");
            assert_eq!(cookies(&w.get("/a").await.unwrap()), Vec::<&str>::new(), "a hit");
            // A confirmation brings another one.
            w.clock.0.store(200_000, Ordering::SeqCst);
            let (a, b) = (w.get("/a"), w.get("/a"));
            w.fetch().await.answer(304, &[("set-cookie", "who=3"), ("etag", "\"1\"")], "");
            let (a, b) = (a.await.unwrap(), b.await.unwrap());
            assert_eq!((cookies(&a), cookies(&b)), (vec!["who=3"], vec![]));
            assert_eq!(cookies(&w.get("/a").await.unwrap()), Vec::<&str>::new());
        });
    }
}

#[test]
fn a_post_that_says_that_it_answers_a_get_is_kept_for_it_until_the_next_one() {
    test(Tier::Edge, async |w| {
        let post = || w.start(Asked { method: Method::POST, ..w.asked("/a", &[]) });
        let first = post();
        let says = [CACHED, ("content-location", "/a"), ("content-length", "3")];
        w.fetch().await.answer(200, &says, "one");
        assert_eq!(text(first).await, "one");
        assert_eq!(text(w.get("/a")).await, "one");
        assert!(w.nothing_fetched());
        // Its body comes slowly, and another POST overtakes it: what it said is no longer so.
        let slow = post();
        let body = w.fetch().await.begin(200, &says, None);
        settle().await;
        let other = post();
        w.fetch().await.answer(200, &[("content-length", "2")], "ok");
        assert_eq!(text(other).await, "ok");
        body.send(Ok(Bytes::from_static(b"two"))).unwrap();
        drop(body);
        assert_eq!(text(slow).await, "two");
        let get = w.get("/a");
        w.fetch().await.answer(200, &[CACHED], "three");
        assert_eq!(text(get).await, "three");
    });
}

/// A cut-off node that has to revalidate counts from when a POST went out, as it does for a GET.
#[test]
fn the_second_of_a_post_counts_from_when_it_was_sent() {
    let text_of_site = "name = \"s\"\nhosts = [\"h.example\"]\n[origin]\nservers = [{ url = \"http://o.example\" }]\n[cache]\nwhen_detached = \"revalidate\"\n";
    test(Tier::Edge, async |w| {
        let spec = site_file::read("s.toml", text_of_site).unwrap();
        let state = Arc::new(SiteState { spec, revision: 2, created: 1, keys_since: 1, unshown: Vec::new() });
        let site = Rc::new(Site::new(state, Arc::default()));
        let asked = |method| Asked { site: Rc::clone(&site), method, ..w.asked("/a", &[]) };
        w.clock.0.store(ATTACHED_UNTIL, Ordering::SeqCst);
        let post = w.start(asked(Method::POST));
        let sent = w.fetch().await;
        w.clock.0.store(ATTACHED_UNTIL + 5000, Ordering::SeqCst);
        sent.answer(200, &[CACHED, ("content-location", "/a"), ("content-length", "3")], "old");
        assert_eq!(text(post).await, "old");
        let get = w.start(asked(Method::GET));
        w.fetch().await.answer(200, &[CACHED], "new");
        assert_eq!(text(get).await, "new");
    });
}

#[test]
fn an_invalidation_finds_a_fill_that_waits_for_no_other() {
    test(Tier::Edge, async |w| {
        let vary = [CACHED, ("vary", "accept-language")];
        let ask = |language: &'static str| w.start(w.asked("/a", &[("accept-language", language)]));
        let (en, de) = (ask("en"), ask("de"));
        w.fetch().await.answer(200, &vary, "en");
        let slow = w.fetch().await;
        let post = w.start(Asked { method: Method::POST, ..w.asked("/a", &[]) });
        w.fetch().await.answer(200, &[("content-length", "2")], "ok");
        text(post).await;
        slow.answer(200, &vary, "de before the post");
        assert_eq!((text(en).await, text(de).await), ("en".into(), "de before the post".into()));
        let again = ask("de");
        w.fetch().await.answer(200, &vary, "de after it");
        assert_eq!(text(again).await, "de after it");
    });
}

/// A 304 may not make bytes the ones that its validator names by now.
#[test]
fn what_came_with_a_weak_validator_is_never_put_together_from_slices() {
    for tier in [Tier::Edge, Tier::Shield] {
        test(tier, async |w| {
            let changed = "Tue, 14 Nov 2023 22:13:20 GMT";
            let body: &'static str = "x".repeat(600_000).leak();
            for (path, then, now) in
                [("/a", [("last-modified", changed), ("x", "y")], ("x", "z")), ("/b", [("etag", "W/\"a\""), ("x", "y")], ("etag", "\"a\""))]
            {
                let get = w.get(path);
                let common = [CACHED, ("accept-ranges", "bytes"), ("date", changed)];
                w.fetch().await.answer(200, &[&common[..], &then].concat(), body);
                assert_eq!(text(get).await.len(), body.len());
                let validated = w.start(w.asked(path, &[("cache-control", "no-cache")]));
                w.fetch().await.answer(304, &[CACHED, ("accept-ranges", "bytes"), ("date", "Tue, 14 Nov 2023 23:13:20 GMT"), now], "");
                assert_eq!(text(validated).await.len(), body.len());
                let (key, asked) = (w.asked(path, &[]).key, HeaderMap::new());
                let stored = Arc::clone(w.gateway.store.get(key.as_bytes()).unwrap().select(&asked).unwrap());
                assert!(!stored.in_slices && !stored.headers.contains_key("accept-ranges"), "{path}");
            }
        });
    }
}

/// A POST's answer is kept for a GET: what is fetched of it later has no body.
#[test]
fn a_fetch_for_the_store_speaks_of_no_body() {
    test(Tier::Edge, async |w| {
        w.get("/a");
        assert!(w.fetch().await.headers.get("content-length").is_none());
        w.start(w.asked("/b", &[("content-length", "9"), ("content-type", "text/plain"), ("expect", "100-continue")]));
        let fetched = w.fetch().await;
        for name in ["content-length", "content-type", "expect"] {
            assert!(!fetched.headers.contains_key(name), "{name}");
        }
    });
}

#[test]
fn fields_that_are_one_clients_alone_go_to_nobody_else() {
    for tier in [Tier::Edge, Tier::Shield] {
        test(tier, async |w| {
            let (first, second) = (w.get("/a"), w.get("/a"));
            let said = [("cache-control", "max-age=100, private=\"x-mine\""), ("x-mine", "1"), ("x-mine", "2"), ("x-ours", "3")];
            w.fetch().await.answer(200, &said, "text");
            let (_, headers, body) = read(first).await;
            assert_eq!((headers.get_all("x-mine").iter().count(), body.unwrap().as_str()), (2, "text"));
            for other in [second, w.get("/a")] {
                let (_, headers, _) = read(other).await;
                assert!(!headers.contains_key("x-mine") && headers.contains_key("x-ours"));
            }
            assert!(w.nothing_fetched());
        });
    }
}

/// Found by the simulation: a request asked again for what it knew when it came, and was kept from the answer by a purge that the
/// shield did not know yet.
#[test]
fn a_request_is_answered_however_many_purges_come_meanwhile() {
    test(Tier::Edge, async |w| {
        let stale = ("cache-control", "max-age=100, stale-while-revalidate=100");
        w.purge(Selector::Url { host: "h.example".into(), target: "/a".into() }, true);
        let get = w.get("/a");
        for _ in 0..3 {
            let asked = w.fetch().await;
            let before = asked.fetch.demand;
            let purge = w.purge_url("/a");
            assert!(!before.reaches(revision(purge)));
            drop(asked.begin(200, &[stale], Some(revision(1))));
            settle().await;
            let pending = w.origin.0.pending.borrow();
            assert!(pending.front().unwrap().fetch.demand.reaches(revision(purge)), "it asks again for what is known by now");
        }
        w.fetch().await.answer(200, &[stale], "text");
        let (status, _, body) = read(get).await;
        assert_eq!((status, body.unwrap().as_str()), (StatusCode::OK, "text"));
    });
}

#[test]
fn an_invalidation_finds_what_one_client_fetches_by_itself() {
    test(Tier::Edge, async |w| {
        let head = [("cache-control", "public, max-age=100")];
        let ask = || w.start(w.asked("/a", &[("authorization", "Basic x")]));
        let slow = ask();
        let old = w.fetch().await;
        let post = w.start(Asked { method: Method::POST, ..w.asked("/a", &[]) });
        w.fetch().await.answer(200, &[("content-length", "2")], "ok");
        text(post).await;
        old.answer(200, &head, "before the post");
        assert_eq!(text(slow).await, "before the post");
        let again = ask();
        w.fetch().await.answer(200, &head, "after it");
        assert_eq!((text(again).await, text(w.get("/a")).await), ("after it".into(), "after it".into()));
        assert!(w.nothing_fetched() && w.gateway.fills.is_empty());
    });
}

/// A fill without readers is fetched to its end only if little is missing.
#[test]
fn a_fill_without_readers_ends_where_it_is_not_worth_its_end() {
    for (length, is_kept) in [("1000000", true), ("9000000", false), ("", false)] {
        test(Tier::Edge, async |w| {
            let gone = w.get("/a");
            let fields: Vec<_> = [CACHED].into_iter().chain((!length.is_empty()).then_some(("content-length", length))).collect();
            let feed = w.fetch().await.begin(200, &fields, None);
            feed.send(Ok(Bytes::from(vec![7; 1000]))).unwrap();
            drop(gone.await.unwrap());
            tokio::time::sleep(Duration::from_secs(1)).await;
            assert_eq!(!feed.is_closed(), is_kept, "{length:?}: upstream goes on");
            if is_kept {
                // But not for ever.
                tokio::time::sleep(Duration::from_secs(11)).await;
                assert!(feed.is_closed());
            }
            let again = w.get("/a");
            w.fetch().await.answer(200, &[CACHED], "whole");
            assert_eq!(text(again).await, "whole");
        });
    }
}

/// Clients that go before the head has come leave few fetches behind them, for a short time.
#[test]
fn a_fill_that_nobody_waits_for_ends() {
    test(Tier::Edge, async |w| {
        let second = || tokio::time::sleep(Duration::from_secs(1));
        let gone = w.get("/slow");
        let fetch = w.fetch().await;
        gone.abort();
        second().await;
        // Its client may ask again, and wait as briefly.
        fetch.answer(200, &[CACHED], "slow");
        settle().await;
        assert_eq!(text(w.get("/slow")).await, "slow");
        assert!(w.nothing_fetched());

        let mut fetches = Vec::new();
        for n in 0..100 {
            let gone = w.get(&format!("/{n}"));
            fetches.push(w.fetch().await);
            gone.abort();
        }
        second().await;
        fetches.retain(|f| !f.answer.is_closed());
        assert_eq!(fetches.len(), 64, "the others are given up at once");
        // A client that comes back finds one of them.
        let waits = w.get("/0");
        settle().await;
        fetches.remove(0).answer(200, &[CACHED], "wanted");
        assert_eq!(text(waits).await, "wanted");
        // A page whose client stays is no concern of theirs.
        let stays = w.get("/another");
        let fetch = w.fetch().await;
        second().await;
        fetch.answer(200, &[CACHED], "another");
        assert_eq!(text(stays).await, "another");
        assert!(w.nothing_fetched());
    });
}

/// Clients with cookies each fetch a page without explicit freshness; none waits for a fetch of another client.
#[test]
fn clients_with_cookies_wait_for_no_page_that_may_be_anothers() {
    test(Tier::Edge, async |w| {
        let head = [("last-modified", "Tue, 01 Jan 2019 00:00:00 GMT")];
        let ask = |who: &'static str| w.start(w.asked("/a", &[("cookie", who)]));
        let first = ask("a");
        w.fetch().await.answer(200, &head, "of a");
        assert_eq!(text(first).await, "of a");
        let (b, c) = (ask("b"), ask("c"));
        for _ in 0..2 {
            let asked = w.fetch().await;
            let body = if asked.headers.get("cookie").unwrap() == "b" { "of b" } else { "of c" };
            asked.answer(200, &head, body);
        }
        assert_eq!((text(b).await, text(c).await), ("of b".into(), "of c".into()));
        // Clients without cookies share it.
        let (d, e) = (w.get("/a"), w.get("/a"));
        w.fetch().await.answer(200, &head, "of nobody");
        assert_eq!((text(d).await, text(e).await), ("of nobody".into(), "of nobody".into()));
        assert!(w.nothing_fetched());
    });
}
