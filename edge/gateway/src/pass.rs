//! Requests that are not answered from the cache: other methods, bodies on GET, other protocols. What they change is forgotten.

use crate::answering::Answering;
use crate::body::RequestBody;
use crate::deliver;
use crate::fetch::{self, Own};
use crate::gateway::{Answer, Asked, Gateway, MaxIndex, Tier};
use crate::site::Counters;
use crate::upstream::{Fetch, Fetched, Upstream};
use http::header::ACCEPT_ENCODING;
use http::{HeaderMap, HeaderValue, StatusCode};
use std::rc::Rc;
use tidegate_cache::{CacheKey, CacheStatus, ForwardReason, cache_control, storable};

impl<U: Upstream> Gateway<U> {
    /// Everything that is not answered from the cache: streamed both ways.
    pub(crate) fn pass(self: &Rc<Self>, asked: Asked, body: RequestBody, reason: ForwardReason) -> Answering<Answer> {
        let this = Rc::clone(self);
        Answering::later(async move { this.passed(asked, body, reason).await })
    }

    async fn passed(self: Rc<Self>, mut asked: Asked, body: RequestBody, reason: ForwardReason) -> Answer {
        let status = CacheStatus { detail: self.detail(), ..CacheStatus::forwarded(reason) };
        let upgrade = asked.headers.get(http::header::UPGRADE).cloned();
        let mut request = fetch::upstream_request(&self, &asked, &asked.method, false);
        *request.body_mut() = body;
        if let Some(protocol) = &upgrade {
            request.headers_mut().insert(http::header::UPGRADE, protocol.clone());
            request.headers_mut().insert(http::header::CONNECTION, HeaderValue::from_static("upgrade"));
        }
        let sent = (self.clock.wall(), self.clock.boot());
        // What is purged while the answer is under way, it may not know; all that was purged before, by whatever tag, it must.
        let before = self.revision();
        let demand = self.demand(&asked).max_index(before);
        let fetch = Fetch { direct: upgrade.is_some(), ..self.fetch_to(&asked, demand, self.past_caches(&asked)) };
        Counters::add(&asked.site.counters.fetches, 1);
        match self.upstream.fetch(request, fetch).await {
            Err(error) => {
                Counters::add(&asked.site.counters.errors, 1);
                deliver::failed(&self, error, status)
            }
            Ok(mut fetched) => {
                let code = fetched.response.status();
                if storable::invalidates(&asked.method, code) {
                    self.invalidate(&asked, fetched.response.headers());
                }
                if self.answers_get(&asked, &fetched) {
                    if self.node.tier == Tier::Edge {
                        // As it was asked for: by this it is told from other variants.
                        asked.headers.insert(ACCEPT_ENCODING, asked.accepted.normal());
                    }
                    let (asked, clean) = (Rc::new(asked), fetched.vouched.unwrap_or(before));
                    let (fill, relayed) = fetch::keep_answer(&self, &asked, fetched, sent, clean);
                    return self.answer_alone(&asked, fill, relayed, CacheStatus { forward_status: Some(code.as_u16()), ..status }).await;
                }
                let tunnel = fetched.upgrade.take().filter(|_| code == StatusCode::SWITCHING_PROTOCOLS);
                let status = CacheStatus { forward_status: Some(code.as_u16()), ..status };
                let own =
                    Own { clean_through: fetched.vouched.unwrap_or(before), unframed: fetched.close_delimited, response: fetched.response };
                let mut answer = deliver::relay(&self, &asked, own, status);
                if let (Some(_), Some(protocol)) = (&tunnel, upgrade) {
                    answer.response.headers_mut().insert(http::header::UPGRADE, protocol);
                    answer.response.headers_mut().insert(http::header::CONNECTION, HeaderValue::from_static("upgrade"));
                }
                answer.tunnel = tunnel;
                answer
            }
        }
    }

    /// Whether the answer to a POST may be kept for a GET of the same target.
    fn answers_get(&self, asked: &Asked, fetched: &Fetched) -> bool {
        let headers = fetched.response.headers();
        storable::answers_get(&asked.method, fetched.response.status(), headers, &cache_control::of_response(headers), &asked.target)
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
