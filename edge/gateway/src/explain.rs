//! What this node holds for a request, and what it would do with it: said by the functions that do it.

use crate::asked::{Asked, Outgoing, Purpose};
use crate::codings::negotiate;
use crate::gateway::{Gateway, OneClient, hash};
use crate::site::Site;
use crate::upstream::Upstream;
use http::header::ETAG;
use http::{HeaderMap, HeaderName, HeaderValue, Method};
use std::rc::Rc;
use std::sync::Arc;
use tidegate_cache::Standing;
use tidegate_cache::freshness::LifetimeBy;
use tidegate_cache::reuse::{self, Reuse, StandIn, Why};
use tidegate_control_types::explain::{Explained, Next, Question, Variant};
use tidegate_control_types::site::WhenDetached;
use tidegate_store::{Passed, StoredResponse};

impl Asked {
    /// The request that a question speaks of, to one of its site's nodes.
    #[must_use]
    pub fn of_question(question: &Question, site: Rc<Site>) -> Self {
        let target = site.target(question.https, &question.host, &question.target).on_port(question.port);
        let mut headers = HeaderMap::new();
        for (name, value) in &question.headers {
            if let (Ok(name), Ok(value)) = (name.parse::<HeaderName>(), HeaderValue::from_str(value)) {
                headers.append(name, value);
            }
        }
        Self::of_client(site, Method::GET, target, headers)
    }
}

/// Where a site is not known, which an edge answers with 421 and a shield leaves to the origin.
#[must_use]
pub fn unknown<U: Upstream>(gateway: &Gateway<U>, question: &Question) -> Explained {
    Explained {
        revision: gateway.revision().to_string(),
        attached: gateway.lease.attached(gateway.clock.boot()),
        key: Vec::new(),
        next: Next::Refuse,
        why: format!("this node does not know the site {} yet", question.site),
        variants: Vec::new(),
    }
}

impl<U: Upstream> Gateway<U> {
    /// What is stored for a request, and what the next one like it would do.
    pub async fn explain(self: Rc<Self>, mut asked: Asked) -> Explained {
        // At a shield what its edges send.
        let codes = asked.site.state.spec.compression.enabled;
        negotiate(&mut asked, codes);
        let mut variants = self.store.get(asked.key.as_bytes());
        if self.store.may_load(&asked.key, variants.as_ref()) {
            variants = self.load(&asked.key).await.or(variants);
        }
        let selected = variants.as_ref().and_then(|v| v.select(&Outgoing::new(&asked, &self.node, Purpose::Shared))).cloned();
        let all = variants.iter().flat_map(|v| v.iter());
        let described = all.map(|r| self.describe(&asked, r, selected.as_ref().is_some_and(|s| Arc::ptr_eq(s, r)))).collect();
        let (next, why) = self.next(&asked, variants.is_some(), selected.as_ref());
        let why = match asked.site.counters.failures.last(hash(asked.key.as_bytes())) {
            None => why,
            Some((at, failed)) => {
                let ago = self.clock.wall().as_secs().saturating_sub(at.as_secs());
                format!("{why}; {ago} s ago a request for it failed here: {failed}")
            }
        };
        let scheme = if asked.target.https { "https" } else { "http" };
        let key = [asked.site.name(), scheme, &asked.target.authority(), &asked.target.path_and_query].map(str::to_owned).to_vec();
        let attached = self.lease.attached(self.clock.boot());
        Explained { revision: self.revision().to_string(), attached, key, next, why, variants: described }
    }

    fn describe(&self, asked: &Asked, r: &Arc<StoredResponse>, selected: bool) -> Variant {
        let standing = match self.standing(asked.site.name(), r) {
            Standing::Current => "current",
            Standing::SoftlyPurged => "softly_purged",
            Standing::Purged => "purged",
            Standing::Unvouched => "unvouched",
        };
        Variant {
            selected,
            status: r.status.as_u16(),
            vary: r.vary.fields().map(|(n, v)| (n.to_owned(), v.map(|v| shown(n, v)))).collect(),
            age: r.freshness.current_age(self.clock.wall()),
            lifetime: r.freshness.lifetime,
            lifetime_by: by(r.freshness.by).into(),
            standing: standing.into(),
            clean_through: r.clean_through().index,
            etag: r.headers.get(ETAG).and_then(|v| v.to_str().ok()).map(str::to_owned),
            tags: r.tags.iter().map(ToString::to_string).collect(),
            bytes: r.body.len(),
            codings: r.codings.iter().flat_map(|c| c.iter()).map(|(c, body)| (c.token().to_owned(), body.len())).collect(),
            bytes_here: self.store.bytes_here(&r.body),
            in_slices: r.in_slices,
            from_disk: r.from_disk,
        }
    }

    /// What the next request would do, and which rule or directive decides that.
    fn next(&self, asked: &Asked, any: bool, selected: Option<&Arc<StoredResponse>>) -> (Next, String) {
        let Some(moment) = self.moment(&asked.site) else {
            return (Next::Refuse, "this node was removed, or is cut off and the site's when_detached is \"refuse\"".into());
        };
        let asks = asked.directives();
        let Some(stored) = selected else {
            if let Some(why) = self.one_client(asked, &asks, None) {
                return (Next::Pass, one_client(why));
            }
            let why = if any {
                "the responses stored under this key are for requests with other fields (Vary)"
            } else {
                "nothing is stored under this key; if the next response is not stored either, its Cache-Status says why"
            };
            return (Next::Fetch, why.into());
        };
        let f = &stored.freshness;
        let (age, standing) = (f.current_age(moment.wall), self.standing(asked.site.name(), stored));
        let attachment = self.attachment(moment, stored);
        let for_so_long = match f.by {
            LifetimeBy::Nothing => "it has no lifetime (Cache-Control, Expires), and none can be assumed".into(),
            field => format!("{} says {} s, its age is {age} s", by(field), f.lifetime),
        };
        match reuse::decide(f, &asks, standing, attachment, moment.wall) {
            Reuse::Fresh => (Next::Hit, for_so_long),
            Reuse::StaleWhileRevalidating => {
                let why = if standing == Standing::SoftlyPurged { "it was softly purged".into() } else { for_so_long };
                (Next::HitStale, format!("{why}; stale-while-revalidate allows {} s", f.stale_while_revalidate))
            }
            Reuse::Gone => (Next::Fetch, "it was purged".into()),
            Reuse::Validate { why: Why::Request, .. } => (Next::Validate, "the request's Cache-Control wants it newer".into()),
            Reuse::Validate { why: Why::Stale, or_stale } => {
                let why = match standing {
                    Standing::Unvouched => {
                        "nobody vouches that no purge named it (a restart, a restore, or more purges than are remembered)".into()
                    }
                    Standing::SoftlyPurged => "it was softly purged".into(),
                    _ if f.no_cache => "its Cache-Control says no-cache".into(),
                    _ if asked.site.state.spec.cache.when_detached == WhenDetached::Revalidate && moment.detail().is_some() => {
                        "this node is cut off, and the site's when_detached is \"revalidate\"".into()
                    }
                    _ => for_so_long,
                };
                let else_stale = match or_stale {
                    StandIn::Never => "",
                    StandIn::Unreachable => "; if upstream cannot be reached it may be given stale (stale_if_unreachable)",
                    StandIn::AnyError => "; if upstream fails it may be given stale (stale-if-error)",
                };
                (Next::Validate, format!("{why}{else_stale}"))
            }
        }
    }
}

fn one_client(why: OneClient) -> String {
    match why {
        OneClient::Authorization => "the request has Authorization".into(),
        OneClient::NoStore => "the request's Cache-Control has no-store".into(),
        OneClient::Range => "the request has a Range, and the response is large and has no strong validator".into(),
        OneClient::Conditions => "the request has If-Match or If-Unmodified-Since, which the origin has to judge".into(),
        OneClient::Passed(Passed::WithCookie) => "the request has a cookie, and the last response had no explicit lifetime".into(),
        OneClient::Passed(Passed::Everyones(None)) => {
            "the last response was stale at once; for a minute such requests do not wait for each other".into()
        }
        OneClient::Passed(Passed::Everyones(Some(why))) => {
            format!("the last response was not stored: {}; for a minute such requests do not wait for each other", why.text())
        }
    }
}

/// The value of a field that a variant was selected by. Those of Cookie and Authorization are their visitor's secrets.
fn shown(name: &str, value: &[u8]) -> String {
    if matches!(name, "cookie" | "authorization" | "proxy-authorization") {
        return "(hidden)".into();
    }
    String::from_utf8_lossy(value).trim_end().replace(['\r', '\n'], " ")
}

fn by(by: LifetimeBy) -> &'static str {
    match by {
        LifetimeBy::SMaxage => "s-maxage",
        LifetimeBy::MaxAge => "max-age",
        LifetimeBy::Targeted => "a targeted field (Tidegate-Cache-Control, CDN-Cache-Control or Surrogate-Control)",
        LifetimeBy::Expires => "Expires",
        LifetimeBy::Site => "the site's default_ttl",
        LifetimeBy::LastModified => "a tenth of the time since Last-Modified",
        LifetimeBy::Nothing => "nothing",
    }
}
