//! One request as this node takes it, and its head as it goes upstream.
//!
//! Invariant: [`Outgoing`] is the only reading of a request's head by which variants are selected, and the only source of the
//! head that upstream gets. Fields that are dropped, rewritten or added on the way change both in the same manner.

use crate::fields;
use crate::gateway::{Node, Tier};
use crate::interim::Interim;
use crate::site::Site;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request};
use smallvec::SmallVec;
use std::cell::Cell;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;
use std::rc::Rc;
use std::time::Duration;
use tidegate_cache::cache_control::{self, RequestDirectives};
use tidegate_cache::{Accepted, CacheKey, RequestHead, Revision, Target};
use tidegate_control_types::BootTime;
use tidegate_control_types::planted::Bug;
use tidegate_control_types::site::ClientReload;

use crate::request_body::RequestBody;

/// One request, admitted and routed.
pub struct Asked {
    pub site: Rc<Site>,
    pub method: Method,
    pub target: Target,
    pub key: CacheKey,
    /// End-to-end fields. Fields of one connection are removed, and at an edge the fields that clients must not set.
    pub headers: HeaderMap,
    /// Its sender takes trailers (TE).
    pub takes_trailers: bool,
    /// The protocol that its sender offers to switch to.
    pub upgrade: Option<HeaderValue>,
    /// At an edge, filled in by the gateway: the codings that the client accepts.
    pub accepted: Accepted,
    /// Accept-Encoding for a shared fetch, set by the gateway where it differs from the request's.
    pub shared_coding: Option<HeaderValue>,
    pub client: Option<IpAddr>,
    /// Receives interim responses.
    pub interim: Option<Interim>,
    /// Revision that the edge demands. Set at a shield only.
    pub demand: Option<Revision>,
    pub end_to_end: bool,
    /// At a shield: how many requests to origin servers it may cost, and until when its edge waits.
    pub allowed: Option<(u32, Duration)>,
    pub spent: Spent,
    /// The target as the client sent it, if it differs from its normal form.
    pub target_as_sent: Option<Box<str>>,
    /// The fetch is shared by all requests that reload: its Cache-Control is `no-cache`.
    pub reloads_for_all: Cell<bool>,
}

/// Requests to upstream that failed so far for one client request. All fetches for it share one allowance.
#[derive(Clone, Debug, Default)]
pub struct Spent {
    /// Requests to origin servers that came to nothing.
    failed: Cell<u32>,
    /// When upstream was first asked for it.
    since: Cell<Option<BootTime>>,
}

impl Spent {
    pub fn failed(&self) -> u32 {
        self.failed.get()
    }

    pub fn note_failed(&self, requests: u32) {
        self.failed.set(self.failed.get().saturating_add(requests));
    }

    /// When upstream was first asked for it, which is now at the latest.
    pub fn since(&self, now: BootTime) -> BootTime {
        let since = self.since.get().unwrap_or(now);
        self.since.set(Some(since));
        since
    }
}

impl Asked {
    /// A client's request, at an edge. `headers`: as they came, without Host.
    #[must_use]
    pub fn of_client(site: Rc<Site>, method: Method, target: Target, mut headers: HeaderMap) -> Self {
        let hop = OneHop::taken_from(&mut headers, fields::is_not_of_clients, &method);
        Self::new(site, method, target, headers, hop)
    }

    /// An edge's request, at a shield. `headers`: as they came, without Host.
    #[must_use]
    pub fn of_edge(site: Rc<Site>, method: Method, target: Target, mut headers: HeaderMap) -> Self {
        let demand = fields::revision(&headers, &fields::DEMAND);
        let end_to_end = headers.contains_key(fields::END_TO_END);
        let attempts = fields::number(&headers, &fields::ATTEMPTS).and_then(|n| u32::try_from(n).ok());
        let allowed = attempts.zip(fields::number(&headers, &fields::WITHIN).map(Duration::from_millis));
        let hop = OneHop::taken_from(&mut headers, |_, _| false, &method);
        Self { demand, end_to_end, allowed, ..Self::new(site, method, target, headers, hop) }
    }

    fn new(site: Rc<Site>, method: Method, target: Target, headers: HeaderMap, hop: OneHop) -> Self {
        let key = CacheKey::new(site.name(), &target);
        let OneHop { takes_trailers, upgrade } = hop;
        Self {
            site,
            method,
            target,
            key,
            headers,
            takes_trailers,
            upgrade,
            accepted: Accepted::default(),
            shared_coding: None,
            client: None,
            interim: None,
            demand: None,
            end_to_end: false,
            allowed: None,
            spent: Spent::default(),
            target_as_sent: None,
            reloads_for_all: Cell::new(false),
        }
    }

    /// Notes the target in the client's own form. A request for one client goes upstream with it, so that a signature stays valid.
    #[must_use]
    pub fn with_target_as_sent(mut self, path_and_query: &str) -> Self {
        self.target_as_sent = (path_and_query != self.target.path_and_query).then(|| path_and_query.into());
        self
    }

    /// The request's Cache-Control, limited to the directives that the site lets clients use.
    #[must_use]
    pub fn directives(&self) -> RequestDirectives {
        let asked = cache_control::of_request(&self.headers);
        match self.site.state.spec.cache.client_reload {
            ClientReload::Revalidate => asked,
            ClientReload::Ignore => asked.satisfied(),
        }
    }

    /// A hash of the fields that reach the origin with a fetch for all. The client's address does not count.
    pub(crate) fn fields_hash(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        let is_of_the_way = |name: &str| fields::is_selection(name) || name.starts_with("x-forwarded-") || name.starts_with("tidegate-");
        for (name, value) in self.headers.iter().filter(|(name, _)| !is_of_the_way(name.as_str())) {
            (name.as_str(), value.as_bytes()).hash(&mut hasher);
        }
        hasher.finish()
    }

    /// The same request once more, as its client sent it.
    pub(crate) fn once_more(&self) -> Self {
        Self { method: self.method.clone(), interim: self.interim.clone(), spent: self.spent.clone(), ..self.again() }
    }

    /// The same request once more, for work that goes on behind it.
    pub(crate) fn again(&self) -> Self {
        Self {
            site: Rc::clone(&self.site),
            method: Method::GET,
            target: self.target.clone(),
            key: self.key.clone(),
            headers: self.headers.clone(),
            takes_trailers: self.takes_trailers,
            upgrade: self.upgrade.clone(),
            accepted: self.accepted,
            shared_coding: self.shared_coding.clone(),
            client: self.client,
            interim: None,
            demand: self.demand,
            end_to_end: self.end_to_end,
            allowed: self.allowed,
            spent: Spent::default(),
            target_as_sent: self.target_as_sent.clone(),
            reloads_for_all: self.reloads_for_all.clone(),
        }
    }

    /// Asks upstream so that every request which reloads may have the response.
    pub(crate) fn reload_for_all(&self) {
        self.reloads_for_all.set(true);
    }
}

/// The fields of a head that are meant for this node alone (RFC 9110 section 7.6.1).
struct OneHop {
    takes_trailers: bool,
    upgrade: Option<HeaderValue>,
}

impl OneHop {
    /// `goes_too`: what else does not go on.
    fn taken_from(headers: &mut HeaderMap, goes_too: fn(&str, &Method) -> bool, method: &Method) -> Self {
        let takes_trailers = fields::takes_trailers(headers);
        let upgrade = headers.get(header::UPGRADE).cloned();
        if headers.contains_key(header::CONNECTION) && !Bug::NamedByConnectionGoesOn.is_planted() {
            fields::strip_hop_by_hop(headers);
        }
        // Most requests have none of these: they are looked for once, name by name.
        let gone = |name: &HeaderName| fields::is_of_one_hop(name.as_str()) || goes_too(name.as_str(), method);
        let names: SmallVec<[HeaderName; 4]> = headers.keys().filter(|n| gone(n)).cloned().collect();
        names.iter().for_each(|name| drop(headers.remove(name)));
        // A WebSocket has no trailers.
        Self { takes_trailers: takes_trailers && upgrade.is_none(), upgrade }
    }
}

/// The reason why a request goes upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// A response for all whose requests it matches. Conditions and ranges of the client are this node's own business, and so are
    /// codings, at an edge that makes them.
    Shared,
    /// A response for this client alone, which is asked for as the client asks.
    OneClient,
}

/// The head of a request as it reaches upstream.
#[derive(Clone, Copy)]
pub struct Outgoing<'a> {
    asked: &'a Asked,
    node: &'a Node,
    purpose: Purpose,
}

/// Fields that this node sets in the place of the client's.
const REPLACED: [HeaderName; 2] = [header::ACCEPT_ENCODING, header::CACHE_CONTROL];
static NO_CACHE: HeaderValue = HeaderValue::from_static("no-cache");

/// Fields that this node sets or adds to.
const ADDED: [HeaderName; 6] =
    [header::VIA, fields::CDN_LOOP, fields::FORWARDED_FOR, fields::FORWARDED_PROTO, fields::FORWARDED_HOST, header::TE];

impl<'a> Outgoing<'a> {
    #[must_use]
    pub fn new(asked: &'a Asked, node: &'a Node, purpose: Purpose) -> Self {
        Self { asked, node, purpose }
    }

    /// Whether a field of the request does not go on.
    fn drops(&self, name: &str) -> bool {
        self.purpose == Purpose::Shared && fields::is_selection(name)
    }

    /// The value that takes the place of the client's in a shared fetch.
    fn replaced(&self, name: &str) -> Option<&HeaderValue> {
        match name {
            _ if self.purpose != Purpose::Shared => None,
            "accept-encoding" => self.asked.shared_coding.as_ref(),
            "cache-control" => self.asked.reloads_for_all.get().then_some(&NO_CACHE),
            _ => None,
        }
    }

    /// The value that this node adds after the received lines of a field.
    fn added(&self, name: &HeaderName) -> Option<HeaderValue> {
        let (asked, at_edge) = (self.asked, self.node.tier == Tier::Edge);
        let forwards = at_edge && asked.site.state.spec.origin.forwarded;
        match name {
            n if n == header::VIA => Some(self.node.via.clone()),
            n if n == fields::CDN_LOOP && at_edge => Some(self.node.cdn_id.clone()),
            n if n == fields::FORWARDED_FOR && forwards => asked.client.and_then(|ip| ip.to_string().try_into().ok()),
            n if n == fields::FORWARDED_PROTO && forwards => {
                Some(HeaderValue::from_static(if asked.target.https { "https" } else { "http" }))
            }
            n if n == fields::FORWARDED_HOST && forwards => HeaderValue::from_str(&asked.target.authority()).ok(),
            // A stored response has no trailers, so a shared fetch does not ask for any.
            n if n == header::TE && asked.takes_trailers && self.purpose == Purpose::OneClient => {
                Some(HeaderValue::from_static("trailers"))
            }
            _ => None,
        }
    }

    /// The request without its body. The target is in origin form; the sender adds scheme and authority where its protocol
    /// requires them.
    #[must_use]
    pub fn request(&self, method: &Method) -> Request<RequestBody> {
        let asked = self.asked;
        let mut headers = asked.headers.clone();
        if self.purpose == Purpose::Shared {
            fields::strip_selection(&mut headers);
        }
        for name in REPLACED {
            if let Some(value) = self.replaced(name.as_str()) {
                headers.insert(name, value.clone());
            }
        }
        for name in ADDED {
            if let Some(value) = self.added(&name) {
                headers.append(name, value);
            }
        }
        fields::insert(&mut headers, header::HOST, &asked.target.authority());
        let mut request = Request::new(RequestBody::Empty);
        request.method_mut().clone_from(method);
        // A target that is no URI cannot come from an admitted request.
        let as_sent = asked.target_as_sent.as_deref().filter(|_| self.purpose == Purpose::OneClient);
        *request.uri_mut() = as_sent.unwrap_or(&asked.target.path_and_query).parse().unwrap_or_default();
        *request.headers_mut() = headers;
        request
    }
}

impl RequestHead for Outgoing<'_> {
    fn each(&self, name: &str, visit: &mut dyn FnMut(&[u8])) {
        if self.drops(name) {
            return;
        }
        if let Some(value) = self.replaced(name) {
            return visit(value.as_bytes());
        }
        if name == header::HOST.as_str() {
            return visit(self.asked.target.authority().as_bytes());
        }
        self.asked.headers.each(name, visit);
        if let Some(value) = ADDED.iter().find(|added| added.as_str() == name).and_then(|added| self.added(added)) {
            visit(value.as_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use tidegate_control_types::{SiteState, site_file};

    /// The head that upstream gets equals the head that selects variants, field by field.
    #[test]
    fn both_readings_of_a_head_are_one() {
        let text = "name = \"s\"\nhosts = [\"h.example\"]\n[origin]\nservers = [{ url = \"http://o.example\" }]\n";
        let spec = site_file::read("s.toml", text).unwrap();
        let state = Arc::new(SiteState { spec, revision: 1, created: 1, keys_since: 1, unshown: Vec::new() });
        let site = Rc::new(Site::new(state, Arc::default()));
        let name = HeaderValue::from_static("n");
        let lines = [
            ("connection", "x-hop, origin"),
            ("x-hop", "1"),
            ("origin", "https://a.example"),
            ("x-forwarded-for", "192.0.2.9"),
            ("x-forwarded-host", "evil.example"),
            ("forwarded", "for=1"),
            ("te", "trailers"),
            ("cache-control", "max-age=1"),
            ("content-length", "5"),
            ("content-type", "a/b"),
            ("accept-encoding", "br;q=0.7, deflate"),
            ("range", "bytes=0-1"),
            ("if-none-match", "\"a\""),
            ("cookie", "a=b"),
            ("x-list", "1"),
            ("x-list", "2"),
            ("via", "1.1 before"),
            ("tidegate-demand", "1:1"),
        ];
        let mut headers = HeaderMap::new();
        lines.iter().for_each(|(n, v)| {
            headers.append(*n, HeaderValue::from_static(v));
        });
        for tier in [Tier::Edge, Tier::Shield] {
            let node = Node { name: "n".into(), tier, via: name.clone(), cdn_id: name.clone() };
            let target = site.target(true, "h.example", "/");
            let (site, headers) = (Rc::clone(&site), headers.clone());
            let of = if tier == Tier::Edge { Asked::of_client } else { Asked::of_edge };
            let mut asked = of(site, Method::GET, target, headers);
            asked.client = Some(IpAddr::from([192, 0, 2, 1]));
            asked.shared_coding = (tier == Tier::Edge).then(|| HeaderValue::from_static("identity"));
            asked.reload_for_all();
            for purpose in [Purpose::Shared, Purpose::OneClient] {
                let outgoing = Outgoing::new(&asked, &node, purpose);
                let sent = outgoing.request(&Method::GET);
                let added = ADDED;
                let added = added.iter().map(HeaderName::as_str);
                let names: std::collections::BTreeSet<_> = lines.iter().map(|(n, _)| *n).chain(added).chain(["host"]).collect();
                for name in names {
                    let mut read: Vec<Vec<u8>> = Vec::new();
                    outgoing.each(name, &mut |v| read.push(v.to_vec()));
                    let got: Vec<Vec<u8>> = sent.headers().get_all(name).iter().map(|v| v.as_bytes().to_vec()).collect();
                    assert_eq!(read, got, "{name} {tier:?} {purpose:?}");
                }
                for gone in ["x-hop", "origin", "connection", "content-length", "tidegate-demand"] {
                    assert!(!sent.headers().contains_key(gone), "{gone}");
                }
                let as_asked = purpose == Purpose::OneClient;
                for one_clients in ["range", "if-none-match", "content-type", "te"] {
                    assert_eq!(sent.headers().contains_key(one_clients), as_asked, "{one_clients}");
                }
                if tier == Tier::Edge {
                    assert_eq!(sent.headers().get_all("x-forwarded-for").iter().collect::<Vec<_>>(), ["192.0.2.1"]);
                    assert_eq!(sent.headers().get("accept-encoding").unwrap() == "identity", !as_asked);
                }
            }
        }
    }
}
