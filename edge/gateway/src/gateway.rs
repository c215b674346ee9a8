//! The way of a request through a cache node, for all protocols and both tiers.

use crate::answering::Answering;
use crate::asked::{Asked, Outgoing, Purpose};
use crate::body::ResponseBody;
use crate::coder::Coder;
use crate::deliver;
use crate::fetch::{self, Own, Relayed, Validating};
use crate::fetch_error::{FetchError, FetchFailed};
use crate::fields;
use crate::fill::{Arrived, Fill, Fills, Joined};
use crate::hot::Hot;
use crate::request_body::RequestBody;
use crate::site::{Counters, Site};
use crate::slices::Slices;
use crate::upstream::{Allowance, Fetch, Fetched, Upstream};
use http::header::{AUTHORIZATION, COOKIE, IF_MODIFIED_SINCE, IF_NONE_MATCH, RANGE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tidegate_cache::cache_control::RequestDirectives;
use tidegate_cache::reuse::{self, Attachment, Reuse, StandIn, Why};
use tidegate_cache::{CacheKey, CacheStatus, ForwardReason, Freshness, Ledger, Standing, VaryKey, conditional, field};
use tidegate_control_types::lease::LeaseEnd;
use tidegate_control_types::planted::Bug;
use tidegate_control_types::site::WhenDetached;
use tidegate_control_types::{BootTime, Clock, Incarnation, Revision, WallTime};
use tidegate_store::{Passed, Ranges, Store, StoredResponse, Variants};
use tokio::sync::{Notify, oneshot};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tier {
    Edge,
    Shield,
}

/// What a node says of itself in messages.
#[derive(Debug)]
pub struct Node {
    pub name: String,
    pub tier: Tier,
    pub via: HeaderValue,
    /// This network's word in CDN-Loop.
    pub cdn_id: HeaderValue,
}

/// A response, how it came about, and for a 101 the upstream's side of the tunnel.
pub struct Answer {
    pub response: Response<ResponseBody>,
    pub status: CacheStatus,
    pub tunnel: Option<hyper::upgrade::OnUpgrade>,
}

impl Answer {
    pub(crate) fn new(response: Response<ResponseBody>, status: CacheStatus) -> Self {
        Self { response, status, tunnel: None }
    }

    /// With the fields that came for the one who asked.
    fn with_own(mut self, relayed: Option<Relayed>) -> Self {
        if let Some(Relayed::Fields(own)) = relayed {
            self.response.headers_mut().extend(own);
        }
        self
    }
}

/// What all workers of a node share.
#[derive(Clone)]
pub struct Caches {
    pub store: Arc<Store>,
    pub fills: Arc<Fills>,
    /// Where bodies are coded for clients: at edges.
    pub coder: Option<Coder>,
}

pub struct Gateway<U> {
    pub node: Rc<Node>,
    pub store: Arc<Store>,
    pub fills: Arc<Fills>,
    pub(crate) coder: Option<Coder>,
    pub clock: Arc<dyn Clock>,
    pub lease: Arc<LeaseEnd>,
    pub upstream: U,
    pub(crate) hot: Hot,
    pub(crate) ledger: RefCell<Ledger>,
    pub(crate) most_selectors: usize,
    pub(crate) incarnation: Cell<Incarnation>,
    pub(crate) advanced: Notify,
    /// The keys for which [`Gateway::in_background`] does something.
    in_background: RefCell<HashSet<CacheKey>>,
}

/// A shield that is behind what an edge demands waits this long to catch up.
const CATCH_UP: Duration = Duration::from_millis(250);
/// Fetches for one request: the first may turn out to have begun before a purge that it must honour.
const MOST_FETCHES: usize = 3;
/// Fetches of one key at a time, for requests that differ in their fields after one of them has failed.
const MOST_OF_ONE_KEY: usize = 16;

/// Why upstream is asked for one client alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OneClient {
    Authorization,
    /// The request's own `no-store`.
    NoStore,
    Passed(Passed),
    /// A range of a large response without a strong validator.
    Range,
    /// If-Match or If-Unmodified-Since.
    Conditions,
}

/// Detail in Cache-Status for a stale response that came from a shield, because the origin fails.
pub(crate) const STALE_AT_SHIELD: &str = "stale-at-shield";
/// What was validated end to end is good for this long where a detached node has to revalidate.
const CONFIRMED_FOR: Duration = Duration::from_secs(1);
/// A disk that takes longer to find a response holds nothing.
const LOAD_WITHIN: Duration = Duration::from_secs(1);

enum Found {
    /// Not in memory, but perhaps on the disk.
    OnDisk,
    Fresh(Arc<StoredResponse>),
    StaleWhileRevalidating(Arc<StoredResponse>),
    Validate {
        stored: Arc<StoredResponse>,
        why: ForwardReason,
        or_stale: StandIn,
    },
    Nothing(ForwardReason),
}

/// The time and this node's standing by which one request is decided, once its head has come in.
#[derive(Clone, Copy)]
pub(crate) struct Moment {
    boot: BootTime,
    pub wall: WallTime,
    pub attachment: Attachment,
}

impl Moment {
    /// What Cache-Status says of a node that is cut off.
    pub fn detail(self) -> Option<&'static str> {
        (self.attachment != Attachment::Attached).then_some("detached")
    }
}

impl<U: Upstream> Gateway<U> {
    /// `most_selectors`: purges remembered per site, beyond which the floor rises.
    #[must_use]
    pub fn new(
        node: Rc<Node>,
        Caches { store, fills, coder }: Caches,
        clock: Arc<dyn Clock>,
        lease: Arc<LeaseEnd>,
        upstream: U,
        most_selectors: usize,
    ) -> Rc<Self> {
        Rc::new(Self {
            node,
            store,
            fills,
            coder,
            clock,
            lease,
            upstream,
            hot: Hot::default(),
            ledger: RefCell::new(Ledger::new(most_selectors)),
            most_selectors,
            incarnation: Cell::new(Incarnation(0)),
            advanced: Notify::new(),
            in_background: RefCell::default(),
        })
    }

    /// Answers one request: look up, fetch if need be, store while streaming, deliver. What memory holds is answered at once.
    pub fn answer(self: &Rc<Self>, mut asked: Asked, body: RequestBody) -> Answering<Answer> {
        self.negotiate(&mut asked);
        let Some(moment) = self.moment(&asked.site) else { return Answering::now(deliver::detached(self)) };
        Counters::add(&asked.site.counters.requests, 1);
        if !matches!(asked.method, Method::GET | Method::HEAD) {
            return self.pass(asked, body, None, ForwardReason::Method);
        }
        if !matches!(body, RequestBody::Empty) || asked.upgrade.is_some() {
            // What a body on GET means only the origin knows (RFC 9110 section 9.3.1), and whether it grants another
            // protocol too.
            return self.pass(asked, body, None, ForwardReason::Bypass);
        }
        if asked.demand.is_some_and(|demand| !self.revision().reaches(demand)) && !Bug::DemandIgnored.is_planted() {
            let this = Rc::clone(self);
            return Answering::later(async move {
                let caught_up = this.catch_up(&asked).await;
                this.from_store(asked, moment, caught_up).await
            });
        }
        self.from_store(asked, moment, true)
    }

    /// From what is stored, as far as that goes. `caught_up`: the ledger knows all that this request demands.
    fn from_store(self: &Rc<Self>, asked: Asked, moment: Moment, caught_up: bool) -> Answering<Answer> {
        let directives = asked.directives();
        let found = if caught_up && (!asked.end_to_end || Bug::EndToEndIgnored.is_planted()) {
            self.look_up(&asked, &directives, moment)
        } else {
            Found::Nothing(ForwardReason::Request)
        };
        if let Found::OnDisk = found {
            let this = Rc::clone(self);
            return Answering::later(async move {
                let variants = this.load(&asked.key).await;
                let found = this.look_into(variants, &asked, &directives, moment);
                this.from_found(asked, moment, &directives, found).await
            });
        }
        self.from_found(asked, moment, &directives, found)
    }

    fn from_found(self: &Rc<Self>, asked: Asked, moment: Moment, directives: &RequestDirectives, found: Found) -> Answering<Answer> {
        let mut found = found;
        if let Found::Fresh(stored) | Found::StaleWhileRevalidating(stored) = &found
            && !directives.only_if_cached
            && !conditional::holds(&asked.headers, &stored.headers)
        {
            // Whether the client's own version is the newest is for the origin to say (RFC 9110 section 13.1.1).
            return self.pass(asked, RequestBody::Empty, None, ForwardReason::Request);
        }
        if let Found::Fresh(stored) | Found::StaleWhileRevalidating(stored) = &found
            && let Some(slice) = deliver::missing(self, &asked, stored)
        {
            if directives.only_if_cached {
                found = Found::Nothing(ForwardReason::Partial);
            } else {
                if let Found::StaleWhileRevalidating(_) = found {
                    self.revalidate_behind(&asked, stored);
                }
                let (this, stored) = (Rc::clone(self), Arc::clone(stored));
                return Answering::later(async move { this.complete(asked, stored, slice, moment.attachment).await });
            }
        }
        let (reason, validating) = match found {
            Found::Fresh(stored) => match self.hit(&asked, &stored, moment) {
                Some(answer) => return Answering::now(answer),
                None => (ForwardReason::Miss, None),
            },
            Found::StaleWhileRevalidating(stored) => {
                self.revalidate_behind(&asked, &stored);
                match self.hit(&asked, &stored, moment) {
                    Some(answer) => return Answering::now(answer),
                    None => (ForwardReason::Miss, None),
                }
            }
            Found::Validate { stored, why, or_stale } => (why, Some(Validating { stored, or_stale })),
            Found::Nothing(why) => (why, None),
            Found::OnDisk => (ForwardReason::UriMiss, None),
        };
        if directives.only_if_cached {
            return Answering::now(deliver::own(
                self,
                StatusCode::GATEWAY_TIMEOUT,
                CacheStatus::default(),
                "nothing stored answers this request, and only-if-cached was asked for",
            ));
        }
        if self.one_client(&asked, directives, validating.as_ref()).is_some() {
            return self.pass(asked, RequestBody::Empty, validating, reason);
        }
        let this = Rc::clone(self);
        Answering::later(async move { this.fetch(asked, validating, reason, moment.attachment).await })
    }

    /// Why upstream is asked for this client alone, with the client's own fields: the request already shows that its response cannot
    /// be shared. `None`: it may be shared.
    pub(crate) fn one_client(&self, asked: &Asked, directives: &RequestDirectives, validating: Option<&Validating>) -> Option<OneClient> {
        let has = |name| asked.headers.contains_key(name);
        let passed = || {
            let passed = self.store.passed(&asked.key).filter(|p| *p != Passed::WithCookie || has(COOKIE));
            passed.filter(|_| !validating.is_some_and(Validating::has_validator))
        };
        if has(AUTHORIZATION) {
            Some(OneClient::Authorization)
        } else if directives.no_store {
            Some(OneClient::NoStore)
        } else if let Some(passed) = passed() {
            Some(OneClient::Passed(passed))
        } else if has(RANGE) && asked.method == Method::GET && self.store.ranges(&asked.key) == Ranges::OfOneClient {
            Some(OneClient::Range)
        } else if !conditional::holds_for_any(&asked.headers) {
            Some(OneClient::Conditions)
        } else {
            None
        }
    }

    /// How this node stands to the control plane for a site, now that the request's head is here; `None`: it must refuse,
    /// because its site says so or because it was removed.
    pub(crate) fn moment(&self, site: &Site) -> Option<Moment> {
        let boot = self.clock.boot();
        let attachment = if self.lease.attached(boot) {
            Attachment::Attached
        } else if self.lease.has_ended() {
            return None;
        } else {
            match site.state.spec.cache.when_detached {
                WhenDetached::Serve => Attachment::Alone,
                _ if Bug::DetachedNodeServes.is_planted() => Attachment::Alone,
                WhenDetached::Revalidate => Attachment::AloneRevalidating { confirmed: false },
                WhenDetached::Refuse => return None,
            }
        };
        Some(Moment { boot, wall: self.clock.wall(), attachment })
    }

    /// At a shield: whether the ledger knows all that the edge knows, after a short wait where it does not yet.
    async fn catch_up(&self, asked: &Asked) -> bool {
        let Some(demand) = asked.demand else { return true };
        let reached = async {
            while !self.revision().reaches(demand) {
                self.advanced.notified().await;
            }
        };
        self.revision().reaches(demand) || tokio::time::timeout(CATCH_UP, reached).await.is_ok()
    }

    fn look_up(&self, asked: &Asked, directives: &RequestDirectives, moment: Moment) -> Found {
        let variants = self.hot.get(&asked.key, &self.store);
        let is_here = variants.as_ref().is_some_and(|v| v.select(&self.shared_head(asked)).is_some());
        if !is_here && self.store.may_load(&asked.key, variants.as_ref()) {
            return Found::OnDisk;
        }
        self.look_into(variants, asked, directives, moment)
    }

    /// The head of a shared fetch.
    pub(crate) fn shared_head<'a>(&'a self, asked: &'a Asked) -> Outgoing<'a> {
        Outgoing::new(asked, &self.node, Purpose::Shared)
    }

    /// What the disk holds of a key, in memory now.
    pub(crate) async fn load(&self, key: &CacheKey) -> Option<Arc<Variants>> {
        let loaded = self.store.load(key)?;
        tokio::time::timeout(LOAD_WITHIN, loaded).await.ok()?.ok()
    }

    fn look_into(&self, variants: Option<Arc<Variants>>, asked: &Asked, directives: &RequestDirectives, moment: Moment) -> Found {
        let Some(variants) = variants else { return Found::Nothing(ForwardReason::UriMiss) };
        let Some(stored) = variants.select(&self.shared_head(asked)) else { return Found::Nothing(ForwardReason::VaryMiss) };
        let standing = self.standing(asked.site.name(), stored);
        let attachment = self.attachment(moment, stored);
        match reuse::decide(&stored.freshness, directives, standing, attachment, moment.wall) {
            Reuse::Fresh => Found::Fresh(Arc::clone(stored)),
            Reuse::StaleWhileRevalidating => Found::StaleWhileRevalidating(Arc::clone(stored)),
            Reuse::Validate { why, or_stale } => {
                let why = if why == Why::Request { ForwardReason::Request } else { ForwardReason::Stale };
                Found::Validate { stored: Arc::clone(stored), why, or_stale }
            }
            Reuse::Gone => {
                self.store.drop_response(&asked.key, stored);
                Found::Nothing(ForwardReason::Miss)
            }
        }
    }

    /// How this node stands to the control plane, for one response.
    pub(crate) fn attachment(&self, moment: Moment, stored: &StoredResponse) -> Attachment {
        match moment.attachment {
            Attachment::AloneRevalidating { .. } => {
                let confirmed = stored.asked_origin_at.is_some_and(|at| moment.boot.since(at) < CONFIRMED_FOR);
                Attachment::AloneRevalidating { confirmed }
            }
            other => other,
        }
    }

    /// The purge check. Passing it moves the response's mark up to this ledger.
    pub(crate) fn standing(&self, site: &str, stored: &StoredResponse) -> Standing {
        let clean = stored.clean_through();
        if clean.incarnation != self.incarnation.get() && !Bug::IncarnationIgnored.is_planted() {
            return Standing::Unvouched;
        }
        if stored.from_disk && !self.lease.was_held() && !Bug::DiskTrustedBeforeLease.is_planted() {
            // An earlier life may have acknowledged purges that this one has not heard of yet.
            return Standing::Unvouched;
        }
        let ledger = self.ledger.borrow();
        let clean = if stored.from_disk && Bug::DiskWithoutRevision.is_planted() { ledger.through() } else { clean.index };
        let standing = ledger.check(site, &stored.target, &stored.tags, clean);
        if standing == Standing::Current || (standing == Standing::SoftlyPurged && Bug::SoftlyPurgedVouchedFor.is_planted()) {
            stored.raise_clean_through(ledger.through() + u64::from(Bug::CleanThroughTooFar.is_planted()));
        }
        standing
    }

    /// `None`: a piece of its body was evicted, and it is as if it were not there.
    fn hit(self: &Rc<Self>, asked: &Asked, stored: &Arc<StoredResponse>, moment: Moment) -> Option<Answer> {
        let answer = deliver::hit(self, asked, stored, moment);
        match &answer {
            Some(answer) => {
                let stale = answer.status.ttl.is_none_or(|ttl| ttl <= 0);
                Counters::add(if stale { &asked.site.counters.stale } else { &asked.site.counters.hits }, 1);
            }
            None => self.store.drop_response(&asked.key, stored),
        }
        answer
    }

    /// From what is stored, and upstream for what of it is missing.
    async fn complete(self: &Rc<Self>, asked: Asked, stored: Arc<StoredResponse>, slice: u64, attachment: Attachment) -> Answer {
        let status = CacheStatus { detail: self.detail(), ..CacheStatus::forwarded(ForwardReason::Partial) };
        let slices = Slices::new(self, &asked, &stored);
        let (relay, mut relayed) = oneshot::channel();
        let came = slices.begin(slice, false, Some(relay));
        let mut arrived = if came.is_joined { self.before_half_time(&asked, came.fill.arrived()).await } else { came.fill.arrived().await };
        // The fields of the request that began the fetch may have been the cause.
        if came.is_joined && arrived.as_ref().is_err_and(|failed| failed.error.depends_on_the_request()) {
            let (relay, again) = oneshot::channel();
            relayed = again;
            arrived = slices.begin(slice, true, Some(relay)).fill.arrived().await;
        }
        match arrived {
            Ok(_) => {
                let status = CacheStatus { forward_status: Some(206), stored: true, ..status };
                deliver::stored(self, &asked, &stored, status).unwrap_or_else(|| deliver::failed(self, FetchError::Broken.into(), status))
            }
            Err(FetchFailed { error: FetchError::Changed, .. }) => self.fetch(asked, None, ForwardReason::Partial, attachment).await,
            // The origin's own answer, which is for this client alone.
            Err(error) => match relayed.try_recv() {
                Ok(Relayed::Whole(own)) => self.relay(&asked, own, status),
                _ => self.failed(&asked, None, error, status),
            },
        }
    }

    /// What Cache-Status says while this node is cut off.
    pub(crate) fn detail(&self) -> Option<&'static str> {
        (!self.lease.attached(self.clock.boot())).then_some("detached")
    }

    fn revalidate_behind(self: &Rc<Self>, asked: &Asked, stored: &Arc<StoredResponse>) {
        let validating = Validating { stored: Arc::clone(stored), or_stale: StandIn::AnyError };
        let demand = self.demand(asked);
        let end_to_end = self.past_caches(asked);
        let now = self.clock.wall();
        let usable = |vary: &VaryKey, freshness: &Freshness| vary.matches(&self.shared_head(asked)) && freshness.stale_for(now).is_none();
        if let Joined::Began(fill, _) = self.join(asked, demand, end_to_end, false, false, usable) {
            fill.goes_on_behind();
            let asked = Rc::new(asked.again());
            tokio::task::spawn_local(fetch::run(Rc::clone(self), asked, fill, None, demand, end_to_end, Some(validating), None));
        }
    }

    /// Does some work for a key that no request waits for, one at a time for each key. Otherwise each request could begin more of it, while
    /// the origin is slow.
    pub(crate) fn in_background(self: &Rc<Self>, key: &CacheKey, work: impl Future<Output = ()> + 'static) {
        if self.in_background.borrow_mut().insert(key.clone()) {
            let ends = InBackground { gateway: Rc::clone(self), key: key.clone() };
            tokio::task::spawn_local(async move {
                work.await;
                drop(ends);
            });
        }
    }

    /// Joins a fill that is under way or begins one, and answers from it as it grows.
    async fn fetch(
        self: &Rc<Self>,
        asked: Asked,
        mut validating: Option<Validating>,
        reason: ForwardReason,
        attachment: Attachment,
    ) -> Answer {
        let arrival = self.revision();
        let end_to_end = self.past_caches(&asked) || matches!(attachment, Attachment::AloneRevalidating { .. });
        let mut demand = self.demand(&asked);
        let directives = asked.directives();
        let reload = directives.wants_newer();
        // This key is known to pass: the response is not expected to be shared, but a stored one may be validated.
        let passed = matches!(self.store.passed(&asked.key), Some(Passed::Everyones(_)));
        let asked = Rc::new(asked);
        // The deadline counts while this request waits for another one's fetch.
        asked.spent.since(self.clock.boot());
        let mut asks_again = true;
        for _ in 0..MOST_FETCHES {
            let (relay, mut relayed) = oneshot::channel();
            let joined = if passed {
                Joined::Began(self.own_fill(&asked, demand, end_to_end), None)
            } else {
                self.join(&asked, demand, end_to_end, reload, !asks_again, |vary, freshness| {
                    vary.matches(&self.shared_head(&asked)) && self.answers(freshness, &directives, reload)
                })
            };
            let (fill, collapsed) = match joined {
                Joined::Joined(fill) => (fill, true),
                Joined::Began(fill, after) => {
                    // The fill that this request just missed may have ended between its look-up and now.
                    let moment = Moment { boot: self.clock.boot(), wall: self.clock.wall(), attachment };
                    let again = || self.look_into(self.store.get(asked.key.as_bytes()), &asked, &directives, moment);
                    if validating.is_none()
                        && !end_to_end
                        && let Found::Fresh(stored) = again()
                        && stored.clean_through().reaches(demand)
                    {
                        fill.stored(Arc::clone(&stored), None);
                        self.fills.remove(&asked.key, &fill);
                        if let Some(answer) = self.hit(&asked, &stored, moment) {
                            return answer;
                        }
                        continue;
                    }
                    let validating = validating.clone();
                    tokio::task::spawn_local(fetch::run(
                        Rc::clone(self),
                        Rc::clone(&asked),
                        Arc::clone(&fill),
                        after,
                        demand,
                        end_to_end,
                        validating,
                        Some(relay),
                    ));
                    (fill, false)
                }
            };
            Counters::add(if collapsed { &asked.site.counters.collapsed } else { &asked.site.counters.fetches }, 1);
            let status = CacheStatus { collapsed, detail: self.detail(), ..CacheStatus::forwarded(reason) };
            let arriving = self.arrived(&asked, &fill, validating.as_ref());
            let is_anothers = collapsed && asks_again && !fill.is_as_asked_with(asked.fields_hash());
            let arrived = if is_anothers { self.before_half_time(&asked, arriving).await } else { arriving.await };
            let arrived = match arrived {
                // The error answers those requests for which no stale response is at hand.
                Err(error)
                    if error.error == FetchError::ServerError
                        && !validating.as_ref().is_some_and(|v| self.may_stand_in(&asked, v, error.error)) =>
                {
                    return self.by_itself(asked, None, demand.max_index(arrival), end_to_end, status).await;
                }
                // It was given up in the same moment.
                Err(error) if collapsed && error.error == FetchError::Abandoned => continue,
                // The fields of the request that began the fetch may have been the cause.
                Err(error)
                    if collapsed
                        && asks_again
                        && error.error.depends_on_the_request()
                        && !validating.as_ref().is_some_and(|v| self.may_stand_in(&asked, v, error.error)) =>
                {
                    asks_again = false;
                    continue;
                }
                Err(error) => return self.failed(&asked, validating.as_ref(), error, status),
                Ok(arrived) => arrived,
            };
            let (vary, freshness, tags, clean_through) = match &arrived {
                Arrived::Unshared => match relayed.try_recv() {
                    Ok(Relayed::Whole(own)) if !collapsed && !self.own_was_purged(&asked, &own, arrival) => {
                        return self.relay(&asked, own, status);
                    }
                    // This response is for another client, or from before a purge: the request asks upstream itself.
                    _ => return self.by_itself(asked, validating, demand.max_index(arrival), end_to_end, status).await,
                },
                Arrived::Head(head) => (&head.vary, &head.freshness, &head.tags, head.clean_through),
                Arrived::Stored(stored, _) => (&stored.vary, &stored.freshness, &stored.tags, stored.clean_through()),
            };
            if collapsed && !vary.matches(&self.shared_head(&asked)) {
                return self.alone(&asked, None, demand.max_index(arrival), end_to_end, status).await;
            }
            // A shield's stale response means that upstream has failed, for this request too.
            let stands_in = fill.is_stand_in() && self.may_be_stale(&asked, freshness);
            if collapsed && !stands_in && !self.answers(freshness, &directives, reload) {
                if !freshness.is_shared_on_arrival() {
                    return self.by_itself(asked, validating, demand.max_index(arrival), end_to_end, status).await;
                }
                continue;
            }
            if self.purged_before_arrival(&asked, tags, clean_through, Some((freshness, demand)), arrival) {
                demand = self.demand(&asked).max_index(self.revision());
                continue;
            }
            let status = self.status_of(&asked, &fill, status);
            match arrived {
                Arrived::Stored(stored, by) => {
                    let status = CacheStatus { forward_status: by.map(|s| s.as_u16()), stored: true, ..status };
                    if let Some(answer) = deliver::stored(self, &asked, &stored, status) {
                        return answer.with_own(relayed.try_recv().ok());
                    }
                    // A piece of the body that was confirmed is gone: fetch it whole.
                    self.store.drop_response(&asked.key, &stored);
                    validating = None;
                }
                Arrived::Head(head) => {
                    let status = CacheStatus { forward_status: Some(head.status.as_u16()), stored: true, ..status };
                    return deliver::fill(self, &asked, &head, fill, status).with_own(relayed.try_recv().ok());
                }
                Arrived::Unshared => {}
            }
        }
        // Purges come faster than answers: those that came after this request need not keep it from one.
        let status = CacheStatus { detail: self.detail(), ..CacheStatus::forwarded(reason) };
        self.alone(&asked, None, self.demand(&asked).max_index(self.revision()), end_to_end, status).await
    }

    /// Whether a response that another request brings answers this one too: whether a stored copy of it would, at this moment (RFC
    /// 9111 sections 3 and 4). Variants and purges are looked at apart. `reload`: it was fetched after this request had come, or it
    /// would not have been joined, so the client's wish for a newer response is met.
    fn answers(&self, freshness: &Freshness, directives: &RequestDirectives, reload: bool) -> bool {
        let directives = if reload { directives.satisfied() } else { *directives };
        let decided = reuse::decide(freshness, &directives, Standing::Current, Attachment::Attached, self.clock.wall());
        matches!(decided, Reuse::Fresh | Reuse::StaleWhileRevalidating) || Bug::WaitersShareAll.is_planted()
    }

    /// Asks upstream for this client alone. The stored response is validated where that is possible; otherwise the request keeps
    /// the client's own fields. A range is sent as received: a slice of a private response serves no other client.
    async fn by_itself(
        self: &Rc<Self>,
        asked: Rc<Asked>,
        validating: Option<Validating>,
        demand: Revision,
        end_to_end: bool,
        status: CacheStatus,
    ) -> Answer {
        if validating.as_ref().is_some_and(Validating::has_validator) && !asked.headers.contains_key(RANGE) {
            return self.alone(&asked, validating, demand, end_to_end, status).await;
        }
        let reason = status.forward.unwrap_or(ForwardReason::Miss);
        let asked = Rc::try_unwrap(asked).unwrap_or_else(|shared| shared.once_more());
        // On the heap, as is all that few requests need: every miss would carry its size.
        Box::pin(Rc::clone(self).passed(asked, RequestBody::Empty, validating, reason)).await
    }

    /// Whether a purge that this request must honour, seen only by the tags in the head, came after the response was known
    /// to be clean: a shield that has not heard of it answers in good faith. `freshness` of what is shared, with what was demanded.
    fn purged_before_arrival(
        &self,
        asked: &Asked,
        tags: &[Box<str>],
        clean_through: Revision,
        freshness: Option<(&Freshness, Revision)>,
        arrival: Revision,
    ) -> bool {
        if clean_through.reaches(arrival) || Bug::TagsInTheHeadIgnored.is_planted() {
            return false;
        }
        if arrival.incarnation != self.incarnation.get() {
            // The network was restored meanwhile: what was known of purges when the request came is gone.
            return true;
        }
        if asked.demand.is_some_and(|demand| demand.incarnation != arrival.incarnation && clean_through.reaches(demand)) {
            // It was fetched because of this demand, in terms of a log that only the edge knows, which is to judge.
            return false;
        }
        let clean = if clean_through.incarnation == arrival.incarnation { clean_through.index } else { 0 };
        // Nor is one good that the ledger has forgotten too much to vouch for.
        match self.ledger.borrow().check(asked.site.name(), &asked.target, tags, clean) {
            Standing::Current => false,
            // It is stale for who came after.
            Standing::SoftlyPurged => {
                !freshness.is_some_and(|(freshness, demand)| self.may_be_softly_purged(asked, freshness, demand.reaches(arrival)))
            }
            Standing::Purged | Standing::Unvouched => true,
        }
    }

    /// Whether what a shield answered may be given although it was softly purged. `knowing`: the shield knew that, so that it answered
    /// as it did because its own upstream failed, or because it asks it meanwhile.
    fn may_be_softly_purged(&self, asked: &Asked, freshness: &Freshness, knowing: bool) -> bool {
        let directives = asked.directives();
        match reuse::decide(freshness, &directives, Standing::SoftlyPurged, Attachment::Attached, self.clock.wall()) {
            Reuse::StaleWhileRevalidating => true,
            Reuse::Validate { or_stale, .. } => or_stale != StandIn::Never && knowing,
            Reuse::Fresh | Reuse::Gone => false,
        }
    }

    /// Whether a stale response may be given where upstream fails.
    fn may_be_stale(&self, asked: &Asked, freshness: &Freshness) -> bool {
        match reuse::decide(freshness, &asked.directives(), Standing::Current, Attachment::Attached, self.clock.wall()) {
            Reuse::Fresh | Reuse::StaleWhileRevalidating => true,
            Reuse::Validate { or_stale, .. } => or_stale != StandIn::Never,
            Reuse::Gone => false,
        }
    }

    /// Adds that the response is a shield's stale one, if it is.
    fn status_of(&self, asked: &Asked, fill: &Fill, status: CacheStatus) -> CacheStatus {
        if !fill.is_stand_in() {
            return status;
        }
        Counters::add(&asked.site.counters.stale, 1);
        CacheStatus { detail: Some(STALE_AT_SHIELD), ..status }
    }

    /// Time to wait for upstream while a stale response is at hand. A shield stops first, so that its edge receives the answer.
    pub(crate) fn stale_wait(&self, asked: &Asked) -> Duration {
        let wait = asked.site.state.spec.cache.stale_wait;
        if self.node.tier == Tier::Shield { wait * 3 / 4 } else { wait }
    }

    fn own_was_purged(&self, asked: &Asked, own: &Own, arrival: Revision) -> bool {
        // No purge can have named a tag that is not readable.
        let tags = field::tags(own.response.headers()).unwrap_or_default();
        self.purged_before_arrival(asked, &tags, own.clean_through, None, arrival)
    }

    pub(crate) fn failed(
        self: &Rc<Self>,
        asked: &Asked,
        validating: Option<&Validating>,
        error: FetchFailed,
        status: CacheStatus,
    ) -> Answer {
        if let Some(v) = validating.filter(|v| self.may_stand_in(asked, v, error.error)) {
            Counters::add(&asked.site.counters.stale, 1);
            let detail = if v.or_stale == StandIn::AnyError { "stale-if-error" } else { "stale-if-unreachable" };
            let status = CacheStatus { detail: Some(detail), ..status };
            if let Some(mut answer) = deliver::stored(self, asked, &v.stored, status) {
                if self.node.tier == Tier::Shield {
                    answer.response.headers_mut().insert(fields::STANDS_IN, HeaderValue::from_static("1"));
                }
                return answer;
            }
        }
        Counters::add(&asked.site.counters.errors, 1);
        // The attempts of earlier fetches for this request count too.
        let error = FetchFailed { attempts: error.attempts.max(asked.spent.failed()), ..error };
        self.note_failure(asked, error);
        deliver::failed(self, error, status)
    }

    pub(crate) fn note_failure(&self, asked: &Asked, failed: FetchFailed) {
        asked.site.note_failure(&asked.target.path_and_query, hash(asked.key.as_bytes()), self.clock.wall(), failed);
    }

    /// Whether a stored response may be given in the place of an answer that failed so.
    pub(crate) fn may_stand_in(&self, asked: &Asked, validating: &Validating, error: FetchError) -> bool {
        let allows = match validating.or_stale {
            StandIn::Never => false,
            StandIn::Unreachable => error.is_unreachable(),
            StandIn::AnyError => true,
        };
        // The same rules as for a hit decide whether the stored response answers this request.
        allows
            && !matches!(self.standing(asked.site.name(), &validating.stored), Standing::Purged | Standing::Unvouched)
            && conditional::holds(&asked.headers, &validating.stored.headers)
            && deliver::missing(self, asked, &validating.stored).is_none()
    }

    /// Waits for a fill that another client's request brings, and leaves it while there is time for a fetch of this request's own.
    async fn before_half_time<T>(&self, asked: &Asked, arriving: impl Future<Output = Result<T, FetchFailed>>) -> Result<T, FetchFailed> {
        let left = self.allowance(asked).until.since(self.clock.boot());
        tokio::time::timeout(left / 2, arriving).await.unwrap_or(Err(FetchError::Timeout.into()))
    }

    /// Waits for the head of a fill, for a short time only if a stale response is at hand. The fill continues.
    async fn arrived(&self, asked: &Asked, fill: &Fill, validating: Option<&Validating>) -> Result<Arrived, FetchFailed> {
        self.or_stale(asked, validating, fill.arrived()).await.unwrap_or_else(|| {
            fill.goes_on_behind();
            Err(FetchError::Timeout.into())
        })
    }

    /// Waits for upstream, for a short time only if a stale response is at hand. `None`: that one answers now.
    pub(crate) async fn or_stale<T>(&self, asked: &Asked, validating: Option<&Validating>, waiting: impl Future<Output = T>) -> Option<T> {
        let may_stand_in = || validating.is_some_and(|v| self.may_stand_in(asked, v, FetchError::Timeout));
        let mut waiting = std::pin::pin!(waiting);
        if may_stand_in() {
            match tokio::time::timeout(self.stale_wait(asked), waiting.as_mut()).await {
                Ok(out) => return Some(out),
                // Looked at again: it may have been purged meanwhile.
                Err(_) if may_stand_in() => return None,
                Err(_) => {}
            }
        }
        Some(waiting.await)
    }

    fn relay(&self, asked: &Asked, own: Own, status: CacheStatus) -> Answer {
        let status = CacheStatus { forward_status: Some(own.response.status().as_u16()), ..status };
        deliver::relay(self, asked, own, status)
    }

    /// A fetch for one request, whose response may still be stored for others. Its demand is all that this node knew at the
    /// request's arrival, tags included: it shares nothing, so unrelated purges do not invalidate it.
    async fn alone(
        self: &Rc<Self>,
        asked: &Rc<Asked>,
        validating: Option<Validating>,
        demand: Revision,
        end_to_end: bool,
        status: CacheStatus,
    ) -> Answer {
        let (relay, relayed) = oneshot::channel();
        let fill = self.own_fill(asked, demand, end_to_end);
        let (gateway, asked_too, of_task) = (Rc::clone(self), Rc::clone(asked), Arc::clone(&fill));
        let run = fetch::run(gateway, asked_too, of_task, None, demand, end_to_end, validating.clone(), Some(relay));
        tokio::task::spawn_local(run);
        if let Some(answer) = self.answer_alone(asked, validating.as_ref(), fill, relayed, status).await {
            return answer;
        }
        // A part for all was requested, but the response cannot be shared.
        let reason = status.forward.unwrap_or(ForwardReason::Miss);
        Box::pin(Rc::clone(self).passed(asked.once_more(), RequestBody::Empty, None, reason)).await
    }

    /// Answers from a fill that this request alone started and that cannot be joined. `None` if its response does not fit.
    pub(crate) async fn answer_alone(
        self: &Rc<Self>,
        asked: &Asked,
        validating: Option<&Validating>,
        fill: Arc<Fill>,
        mut relayed: oneshot::Receiver<Relayed>,
        status: CacheStatus,
    ) -> Option<Answer> {
        let arrived = self.arrived(asked, &fill, validating).await;
        let status = self.status_of(asked, &fill, status);
        let answer = match arrived {
            Err(error) => self.failed(asked, validating, error, status),
            Ok(Arrived::Head(head)) => deliver::fill(
                self,
                asked,
                &head,
                fill,
                CacheStatus { collapsed: false, forward_status: Some(head.status.as_u16()), stored: true, ..status },
            )
            .with_own(relayed.try_recv().ok()),
            Ok(Arrived::Stored(stored, by)) => {
                let status = CacheStatus { collapsed: false, forward_status: by.map(|s| s.as_u16()), stored: true, ..status };
                let answer = deliver::stored(self, asked, &stored, status);
                answer.unwrap_or_else(|| deliver::failed(self, FetchError::Broken.into(), status)).with_own(relayed.try_recv().ok())
            }
            Ok(Arrived::Unshared) => match relayed.await {
                Ok(Relayed::Whole(own)) => self.relay(asked, own, CacheStatus { collapsed: false, ..status }),
                _ => return None,
            },
        };
        Some(answer)
    }

    /// Whether no cache on the way may answer a fetch from what it stored: an edge says so, or this node has held no lease
    /// since it started. It may have forgotten purges then that its earlier life acknowledged, so that what it takes has to be
    /// younger than itself.
    pub(crate) fn past_caches(&self, asked: &Asked) -> bool {
        asked.end_to_end || (!self.lease.was_held() && !Bug::RestartedNodeTrustsShields.is_planted())
    }

    pub(crate) fn new_fill(&self, demand: Revision, end_to_end: bool) -> Arc<Fill> {
        self.fills.new_fill(demand, self.clock.boot(), end_to_end, false)
    }

    /// One that waits for no other; among the others all the same, so that an invalidation finds it.
    fn own_fill(&self, asked: &Asked, demand: Revision, end_to_end: bool) -> Arc<Fill> {
        self.fills.add(&asked.key, self.new_fill(demand, end_to_end))
    }

    /// `reload`: the client wants a response newer than its request. `as_asked`: it joins no fetch that another request's fields may cause
    /// to fail. `usable`: whether a response with a known head answers the request.
    fn join(
        &self,
        asked: &Asked,
        demand: Revision,
        end_to_end: bool,
        reload: bool,
        as_asked: bool,
        usable: impl Fn(&VaryKey, &Freshness) -> bool,
    ) -> Joined {
        let fields = asked.fields_hash();
        // An origin that fails for all clients gets at most this many requests at once.
        let as_asked = as_asked && self.fills.under_way(&asked.key) < MOST_OF_ONE_KEY;
        let now = self.clock.boot();
        // An edge counts its second from when it asked: at a shield it joins nothing that began before.
        let window = if asked.end_to_end && !Bug::SecondPerTier.is_planted() { Duration::ZERO } else { CONFIRMED_FOR };
        let fits = |fill: &Fill| {
            let recent = now.since(fill.begun_at()) < window || Bug::SecondIgnoredInJoining.is_planted();
            let is_new = !reload || fill.awaits_its_turn() || Bug::ReloadJoinsOlder.is_planted();
            let answers = match fill.arrived_so_far() {
                None => true,
                Some(Arrived::Head(head)) => usable(&head.vary, &head.freshness),
                Some(Arrived::Stored(stored, _)) => usable(&stored.vary, &stored.freshness),
                Some(Arrived::Unshared) => false,
            };
            let may_fail = as_asked && !fill.is_as_asked_with(fields);
            fill.begun.reaches(demand) && (!end_to_end || (fill.end_to_end && recent)) && is_new && answers && !may_fail
        };
        let new = || self.fills.new_fill(demand, now, end_to_end, reload).asked_with(fields);
        self.fills.join(&asked.key, fits, new)
    }

    /// What a fetch for this request has to have begun at or after.
    pub(crate) fn demand(&self, asked: &Asked) -> Revision {
        let own = self.ledger.borrow().demand(asked.site.name(), &asked.target);
        let incarnation = self.incarnation.get();
        match asked.demand.filter(|_| !Bug::DemandIgnored.is_planted()) {
            // The greater of both; one of another log is taken over as it is, for nobody here can compare it.
            Some(theirs) if theirs.incarnation != incarnation => theirs,
            Some(theirs) => Revision::new(incarnation, own.max(theirs.index)),
            None => Revision::new(incarnation, own),
        }
    }

    /// The site's limits; at a shield also those that the edge has sent.
    fn allowance(&self, asked: &Asked) -> Allowance {
        let origin = &asked.site.state.spec.origin;
        let (most, longest) = (origin.retries + 1, origin.total_timeout);
        let (attempts, within) = asked.allowed.map_or((most, longest), |(attempts, within)| (attempts.min(most), within.min(longest)));
        let left = attempts.saturating_sub(asked.spent.failed());
        // At least one: a further fetch of the same request follows an answer, not a failure.
        Allowance { attempts: left.max(1), until: asked.spent.since(self.clock.boot()) + within }
    }

    /// Asks upstream, and notes what that cost.
    pub(crate) async fn ask_upstream(&self, asked: &Asked, request: Request<RequestBody>, fetch: Fetch) -> Result<Fetched, FetchFailed> {
        let headers = request.headers();
        let takes_part = headers.contains_key(RANGE);
        let takes_304 = headers.contains_key(IF_NONE_MATCH) || headers.contains_key(IF_MODIFIED_SINCE);
        let fetched = self.upstream.fetch(request, fetch).await;
        asked.spent.note_failed(fetched.as_ref().map_or_else(|failed| failed.attempts, |fetched| fetched.failed_before));
        let fetched = fetched?;
        let is_unasked = match fetched.response.status() {
            StatusCode::PARTIAL_CONTENT => !takes_part,
            StatusCode::NOT_MODIFIED => !takes_304,
            _ => false,
        };
        if is_unasked {
            return Err(FetchFailed { attempts: fetched.failed_before + 1, ..FetchError::Unasked.into() });
        }
        Ok(fetched)
    }

    pub(crate) fn fetch_to(&self, asked: &Asked, demand: Revision, end_to_end: bool) -> Fetch {
        Fetch {
            site: Rc::clone(&asked.site),
            key_hash: hash(asked.key.as_bytes()),
            demand,
            end_to_end,
            https: asked.target.https,
            direct: false,
            interim: asked.interim.clone(),
            allowance: self.allowance(asked),
        }
    }

    /// Lets go of what the store no longer holds; to be called a few times a second.
    pub fn sweep(&self) {
        self.hot.sweep();
    }
}

struct InBackground<U> {
    gateway: Rc<Gateway<U>>,
    key: CacheKey,
}

impl<U> Drop for InBackground<U> {
    fn drop(&mut self) {
        self.gateway.in_background.borrow_mut().remove(&self.key);
    }
}

pub(crate) trait MaxIndex {
    fn max_index(self, other: Self) -> Self;
}

impl MaxIndex for Revision {
    fn max_index(self, other: Self) -> Self {
        if Bug::OwnWayDemandsLess.is_planted() {
            return self;
        }
        if other.reaches(self) { other } else { self }
    }
}

/// FNV-1a: spreads keys over shields alike on every node, whatever its version of a library.
#[must_use]
pub fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3))
}
