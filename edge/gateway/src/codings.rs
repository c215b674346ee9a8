//! Content codings at an edge: what a client accepts, and the coded form of a stored response that it gets.

use crate::asked::Asked;
use crate::coder::Job;
use crate::gateway::{Gateway, Tier};
use crate::site::Site;
use crate::upstream::Upstream;
use http::header::{ACCEPT_ENCODING, AUTHORIZATION, CACHE_CONTROL, COOKIE, HeaderMap, RANGE, SET_COOKIE};
use http::{Method, StatusCode};
use std::sync::Arc;
use tidegate_cache::{Accepted, Coding, coding, field, storable};
use tidegate_store::{Body, StoredResponse};

impl<U: Upstream> Gateway<U> {
    /// Whether this node codes what it stores of a site; upstream is asked for what has no coding then.
    pub(crate) fn codes(&self, site: &Site) -> bool {
        self.coder.is_some() && site.state.spec.compression.enabled
    }

    /// Puts the accepted codings of a request for a shared response into one normal form, or removes them, so that there are few
    /// variants.
    pub(crate) fn negotiate(&self, asked: &mut Asked) {
        if self.node.tier == Tier::Edge {
            let codes = self.codes(&asked.site);
            negotiate(asked, codes);
        } else if !asked.headers.contains_key(ACCEPT_ENCODING) {
            // Else the origin might choose a coding, and it would be kept for those who take none.
            asked.shared_coding = Some(Accepted::default().normal());
        }
    }

    /// The coded form of a stored response that this request gets. The one that the client wants most is made, if there is none.
    pub(crate) fn coded<'a>(&self, asked: &Asked, stored: &'a Arc<StoredResponse>) -> Option<(Coding, &'a Body)> {
        let codings = stored.codings.as_ref().filter(|_| !asked.accepted.is_none() && !asked.headers.contains_key(RANGE))?;
        if !self.codes(&asked.site) {
            return None;
        }
        if asks_for_no_transform(&asked.headers) {
            return None;
        }
        let mut wanted = asked.accepted.wanted();
        let first = wanted.next()?;
        if let Some(body) = codings.get(first) {
            return Some((first, body));
        }
        self.code(asked, stored, first);
        wanted.find_map(|coding| Some((coding, codings.get(coding)?)))
    }

    /// The coding in which a response for one client alone goes out, made while it streams: where the client wants one, and it came
    /// without. A page that may hold a secret is not coded: a client that chooses text beside the secret could guess it from the
    /// length (BREACH). So nothing is coded if the request carries Cookie or Authorization, or if the response sets a cookie.
    pub(crate) fn coding_of_one(&self, asked: &Asked, status: StatusCode, headers: &mut HeaderMap, length: Option<u64>) -> Option<Coding> {
        let rule = &asked.site.state.spec.compression;
        let is_codable = self.codes(&asked.site)
            && matches!(asked.method, Method::GET | Method::HEAD)
            && coding::is_codable(status, headers, length, &rule.types, rule.min_size)
            && !storable::is_stream(headers);
        if !is_codable {
            return None;
        }
        // Whichever form it goes out in.
        coding::vary(headers);
        let may_be_secret = [AUTHORIZATION, COOKIE].iter().any(|n| asked.headers.contains_key(n)) || headers.contains_key(SET_COOKIE);
        if may_be_secret || asks_for_no_transform(&asked.headers) {
            return None;
        }
        asked.accepted.wanted().next()
    }

    pub(crate) fn code(&self, asked: &Asked, stored: &Arc<StoredResponse>, coding: Coding) {
        if let Some(coder) = &self.coder {
            coder.make(Job {
                store: Arc::clone(&self.store),
                key: asked.key.clone(),
                response: Arc::clone(stored),
                coding,
                counters: Arc::clone(&asked.site.counters),
            });
        }
    }
}

/// RFC 9111 section 5.2.1.6.
fn asks_for_no_transform(request: &HeaderMap) -> bool {
    request.contains_key(CACHE_CONTROL) && field::list(request, &CACHE_CONTROL).any(|d| d.eq_ignore_ascii_case(b"no-transform"))
}

/// `codes`: this node codes stored responses itself, and therefore asks upstream for identity.
pub fn negotiate(asked: &mut Asked, codes: bool) {
    if asked.headers.contains_key(ACCEPT_ENCODING) {
        asked.accepted = Accepted::of(&asked.headers);
    }
    let codings = if codes { Accepted::default() } else { asked.accepted };
    asked.shared_coding = Some(codings.normal());
}
