//! Requests that go upstream as the client sent them: other methods, bodies on GET, other protocols, and requests whose response
//! cannot be shared. An unsafe method invalidates the stored response, and a response that turns out to be shareable is stored.

use crate::answering::Answering;
use crate::asked::{Asked, Outgoing, Purpose};
use crate::deliver;
use crate::fetch::{self, Own, Relayed, Validating};
use crate::fetch_error::{FetchError, FetchFailed};
use crate::fill::{Fill, Watched};
use crate::gateway::{Answer, Gateway, MaxIndex, STALE_AT_SHIELD};
use crate::request_body::RequestBody;
use crate::site::Counters;
use crate::upstream::{Fetch, Fetched, Upstream};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use std::rc::Rc;
use std::sync::Arc;
use tidegate_cache::reuse::Attachment;
use tidegate_cache::{CacheKey, CacheStatus, ForwardReason, cache_control, storable};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// The result of a fetch for one client's request.
struct Brought {
    code: StatusCode,
    /// It is a shield's stale response.
    stands_in: bool,
    what: Kept,
}

#[allow(clippy::large_enum_variant)] // The common one is the large one.
enum Kept {
    /// A fill, which others share.
    ForAll(Arc<Fill>, oneshot::Receiver<Relayed>),
    /// The response, and for a 101 the upstream's side of the tunnel.
    ForOne(Own, Option<hyper::upgrade::OnUpgrade>),
}

/// A fetch in a task of its own, which ends with this.
struct AbortOnDrop(JoinHandle<Result<Brought, FetchFailed>>);

impl AbortOnDrop {
    async fn ended(&mut self) -> Result<Brought, FetchFailed> {
        (&mut self.0).await.unwrap_or(Err(FetchError::Broken.into()))
    }
}

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Lets a fetch continue although a stale response has answered its client.
async fn goes_on_behind(mut task: AbortOnDrop) {
    if let Ok(Brought { what: Kept::ForAll(fill, _), .. }) = task.ended().await {
        fill.goes_on_behind();
    }
}

impl<U: Upstream> Gateway<U> {
    /// Upstream is asked as the client asks, and its response streams to this client; the request's body streams the other way.
    /// `validating`: the stored response that may be served if upstream fails.
    pub(crate) fn pass(
        self: &Rc<Self>,
        asked: Asked,
        body: RequestBody,
        validating: Option<Validating>,
        reason: ForwardReason,
    ) -> Answering<Answer> {
        Answering::later(Rc::clone(self).passed(asked, body, validating, reason))
    }

    pub(crate) async fn passed(
        self: Rc<Self>,
        asked: Asked,
        body: RequestBody,
        validating: Option<Validating>,
        reason: ForwardReason,
    ) -> Answer {
        let status = CacheStatus { detail: self.detail(), ..CacheStatus::forwarded(reason) };
        let (asked, validating) = (Rc::new(asked), validating.as_ref());
        let brings = Rc::clone(&self).bring(Rc::clone(&asked), body);
        let brought = if validating.is_some_and(|v| self.may_stand_in(&asked, v, FetchError::Timeout)) {
            // A task of its own, which can go on behind the stale response.
            let mut task = AbortOnDrop(tokio::task::spawn_local(brings));
            match self.or_stale(&asked, validating, task.ended()).await {
                Some(brought) => brought,
                None => {
                    // The next request finds its result.
                    self.in_background(&asked.key, goes_on_behind(task));
                    Err(FetchError::Timeout.into())
                }
            }
        } else {
            brings.await
        };
        let Brought { code, stands_in, what } = match brought {
            Ok(brought) => brought,
            Err(error) => return self.failed(&asked, validating, error, status),
        };
        let mut status = CacheStatus { forward_status: Some(code.as_u16()), ..status };
        if stands_in {
            Counters::add(&asked.site.counters.stale, 1);
            status.detail = Some(STALE_AT_SHIELD);
        }
        let (own, tunnel) = match what {
            Kept::ForAll(fill, relayed) => {
                let answer = self.answer_alone(&asked, validating, fill, relayed, status).await;
                return answer.unwrap_or_else(|| deliver::failed(&self, FetchError::Broken.into(), status));
            }
            Kept::ForOne(own, tunnel) => (own, tunnel),
        };
        let mut answer = deliver::relay(&self, &asked, own, status);
        if let (Some(_), Some(protocol)) = (&tunnel, &asked.upgrade) {
            answer.response.headers_mut().insert(http::header::UPGRADE, protocol.clone());
            answer.response.headers_mut().insert(http::header::CONNECTION, HeaderValue::from_static("upgrade"));
        }
        answer.tunnel = tunnel;
        answer
    }

    /// Asks upstream as the client asks. What answers others too is stored from then on.
    async fn bring(self: Rc<Self>, asked: Rc<Asked>, body: RequestBody) -> Result<Brought, FetchFailed> {
        let mut request = Outgoing::new(&asked, &self.node, Purpose::OneClient).request(&asked.method);
        let has_body = !matches!(body, RequestBody::Empty);
        *request.body_mut() = body;
        if let Some(protocol) = &asked.upgrade {
            request.headers_mut().insert(http::header::UPGRADE, protocol.clone());
            request.headers_mut().insert(http::header::CONNECTION, HeaderValue::from_static("upgrade"));
        }
        let sent = (self.clock.wall(), self.clock.boot());
        // What is purged while the answer is under way, it may not know; all that was purged before, by whatever tag, it must.
        let before = self.revision();
        let demand = self.demand(&asked).max_index(before);
        let revalidates = self.moment(&asked.site).is_none_or(|m| matches!(m.attachment, Attachment::AloneRevalidating { .. }));
        let end_to_end = self.past_caches(&asked) || revalidates;
        let fetch = Fetch { direct: asked.upgrade.is_some(), ..self.fetch_to(&asked, demand, end_to_end) };
        Counters::add(&asked.site.counters.fetches, 1);
        // An unsafe request that is answered meanwhile says that what this one brings is not to be kept.
        let is_watched = matches!(asked.method, Method::GET | Method::POST) && asked.upgrade.is_none();
        // The key does not show a body on GET, an offer of another protocol, or another form of the target.
        let is_plain = !has_body && asked.upgrade.is_none() && asked.target_as_sent.is_none();
        let watched = is_watched.then(|| self.fills.watch(&asked.key, self.fills.new_fill(demand, sent.1, end_to_end, false)));
        let mut fetched = self.ask_upstream(&asked, request, fetch).await?;
        let (code, stands_in) = (fetched.response.status(), fetched.stands_in);
        let was_invalidated = watched.as_ref().is_some_and(Watched::is_forgotten);
        if storable::invalidates(&asked.method, code) {
            self.invalidate(&asked, fetched.response.headers());
        }
        let for_others = if is_plain { fetch::answers_others(&self, &asked, &fetched, sent.0) } else { Err(None) };
        if !was_invalidated && (for_others.is_ok() || self.answers_get(&asked, &fetched)) {
            let clean = fetched.vouched.unwrap_or(before);
            // A POST has just made its own fill invalid, as all others of the key.
            let fill = watched.and_then(Watched::take).filter(|_| asked.method == Method::GET);
            let (fill, relayed) = fetch::keep_answer(&self, &asked, fetched, sent, clean, fill);
            return Ok(Brought { code, stands_in, what: Kept::ForAll(fill, relayed) });
        }
        let tunnel = fetched.upgrade.take().filter(|_| code == StatusCode::SWITCHING_PROTOCOLS);
        let Fetched { response, length, vouched, close_delimited, .. } = fetched;
        let why = for_others.err().flatten();
        let own = Own { clean_through: vouched.unwrap_or(before), length, unframed: close_delimited, why, response };
        Ok(Brought { code, stands_in, what: Kept::ForOne(own, tunnel) })
    }

    /// Whether the answer to a POST may be kept for a GET of the same target.
    fn answers_get(&self, asked: &Asked, fetched: &Fetched) -> bool {
        let headers = fetched.response.headers();
        // The coding is one that this client takes.
        let is_plain = !headers.contains_key(http::header::CONTENT_ENCODING);
        is_plain
            && asked.target_as_sent.is_none()
            && storable::answers_get(&asked.method, fetched.response.status(), headers, &cache_control::of_response(headers), &asked.target)
    }

    /// RFC 9111 section 4.4: the target, and what Location and Content-Location name on the same host.
    fn invalidate(&self, asked: &Asked, response: &HeaderMap) {
        let drop_target = |path: &str| {
            for https in [false, true] {
                let target = asked.site.target(https, &asked.target.host, path).on_port(asked.target.port());
                let key = CacheKey::new(asked.site.name(), &target);
                self.fills.forget(&key);
                self.store.remove(&key);
            }
        };
        drop_target(&asked.target.path_and_query);
        for name in [http::header::LOCATION, http::header::CONTENT_LOCATION] {
            let Some(uri) = response.get(name).and_then(|v| v.to_str().ok()).and_then(|v| v.parse::<http::Uri>().ok()) else { continue };
            let same = uri.host().is_none_or(|h| h.eq_ignore_ascii_case(&asked.target.host));
            if let (true, Some(path)) = (same, uri.path_and_query().filter(|p| p.as_str().starts_with('/'))) {
                drop_target(path.as_str());
            }
        }
    }
}
