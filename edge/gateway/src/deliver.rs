//! What goes back: a stored response, a fill as it grows, or another's response handed through.

use crate::asked::Asked;
use crate::body::ResponseBody;
use crate::coded_body::CodedBody;
use crate::fetch::Own;
use crate::fetch_error::FetchFailed;
use crate::fields;
use crate::fill::{Fill, FillHead, FillReader};
use crate::gateway::{Answer, Gateway, Moment, Tier, hash};
use crate::hot::Said;
use crate::site::Counters;
use crate::slices::{LARGE, SLICE, SlicedBody, Slices};
use crate::upstream::Upstream;
use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Response, StatusCode};
use std::rc::Rc;
use std::sync::Arc;
use tidegate_cache::range::{self, Selected};
use tidegate_cache::storable::NotStorable;
use tidegate_cache::{CacheStatus, Coding, coding, conditional, field};
use tidegate_control_types::Revision;
use tidegate_store::{Body, CHUNK, StoredResponse};

/// What this node adds to every response.
fn mark<U: Upstream>(gateway: &Gateway<U>, headers: &mut HeaderMap, status: CacheStatus) {
    let mut text = String::with_capacity(64);
    status.write(&mut text, &gateway.node.name);
    if let Ok(value) = HeaderValue::from_str(&text) {
        headers.append(fields::CACHE_STATUS, value);
    }
}

fn vouch<U: Upstream>(gateway: &Gateway<U>, headers: &mut HeaderMap, through: Revision) {
    if gateway.node.tier == Tier::Shield {
        fields::insert(headers, fields::VOUCHED, &through.to_string());
    }
}

/// Adds how many requests to the origin failed before this answer: they count over both tiers.
fn with_cost<U: Upstream>(gateway: &Gateway<U>, asked: &Asked, mut answer: Answer) -> Answer {
    let failed = asked.spent.failed();
    if gateway.node.tier == Tier::Shield && failed > 0 {
        answer.response.headers_mut().insert(fields::ATTEMPTS, HeaderValue::from(failed));
    }
    answer
}

fn answer(status: StatusCode, headers: HeaderMap, body: ResponseBody, how: CacheStatus) -> Answer {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    *response.headers_mut() = headers;
    Answer::new(response, how)
}

/// What of a response's body the request gets.
enum Part {
    NotModified,
    /// Status, and the first and last byte; `None` for an empty body.
    Bytes(StatusCode, Option<(u64, u64)>),
    Unsatisfiable,
}

/// `length`: of the whole body, where it is known. `codable`: it is given in other codings too, which share its date.
fn select(asked: &Asked, status: StatusCode, headers: &HeaderMap, length: Option<u64>, codable: bool) -> Part {
    if matches!(asked.method, Method::GET | Method::HEAD)
        && status == StatusCode::OK
        && conditional::is_conditional(&asked.headers)
        && conditional::not_modified(&asked.headers, headers)
    {
        return Part::NotModified;
    }
    let Some(length) = length else { return Part::Bytes(status, None) };
    let whole = Part::Bytes(status, length.checked_sub(1).map(|last| (0, last)));
    if status != StatusCode::OK
        || asked.method != Method::GET
        || !asked.headers.contains_key(header::RANGE)
        || !conditional::range_applies(&asked.headers, headers)
        || (codable && asked.headers.get(header::IF_RANGE).is_some_and(|v| !v.as_bytes().starts_with(b"\"")))
    {
        return whole;
    }
    match range::select(&asked.headers, length) {
        Selected::Whole => whole,
        Selected::Part { first, last } => Part::Bytes(StatusCode::PARTIAL_CONTENT, Some((first, last))),
        Selected::Unsatisfiable => Part::Unsatisfiable,
    }
}

fn set_range(headers: &mut HeaderMap, first: u64, last: u64, length: u64) {
    // They are those of the whole content.
    for name in ["content-md5", "content-digest"] {
        headers.remove(name);
    }
    fields::insert(headers, header::CONTENT_RANGE, &format!("bytes {first}-{last}/{length}"));
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(last + 1 - first));
}

/// A 304 to a client says what it must (RFC 9110 section 15.4.5); to another cache of this network all that is new.
fn not_modified(headers: &mut HeaderMap, tier: Tier) {
    const GONE: [HeaderName; 2] = [header::CONTENT_LENGTH, header::CONTENT_RANGE];
    const OF_BODY: [HeaderName; 3] = [header::CONTENT_ENCODING, header::CONTENT_TYPE, header::CONTENT_LANGUAGE];
    for name in GONE.into_iter().chain(OF_BODY.into_iter().filter(|_| tier == Tier::Edge)) {
        headers.remove(name);
    }
}

fn unsatisfiable(headers: &mut HeaderMap, length: u64) {
    not_modified(headers, Tier::Edge);
    fields::insert(headers, header::CONTENT_RANGE, &format!("bytes */{length}"));
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(0));
}

fn set_age(headers: &mut HeaderMap, age: u64) {
    headers.insert(header::AGE, HeaderValue::from(age));
}

/// A stored response that answers by itself; `None` where a piece of its body is gone.
pub fn hit<U: Upstream>(gateway: &Rc<Gateway<U>>, asked: &Asked, stored: &Arc<StoredResponse>, moment: Moment) -> Option<Answer> {
    let int = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    let age = stored.freshness.current_age(moment.wall);
    let how = CacheStatus { detail: moment.detail(), ..CacheStatus::hit(int(stored.freshness.lifetime).saturating_sub(int(age))) };
    let through = if gateway.node.tier == Tier::Shield { stored.clean_through().index } else { 0 };
    let coded = gateway.coded(asked, stored);
    let said = Said::new(stored, age, how.detail, through, coded.map(|(coding, _)| coding));
    let headers = gateway.hot.head(&asked.key, said, || stored_head(gateway, stored, coded, age, how));
    part_of(gateway, asked, stored, coded, headers, how).or_else(|| uncoded(gateway, asked, stored, coded, age, how))
}

/// A stored response that upstream was asked about; `None` where a piece of its body is gone.
pub fn stored<U: Upstream>(gateway: &Rc<Gateway<U>>, asked: &Asked, stored: &Arc<StoredResponse>, how: CacheStatus) -> Option<Answer> {
    let age = stored.freshness.current_age(gateway.clock.wall());
    let coded = gateway.coded(asked, stored);
    let answer = part_of(gateway, asked, stored, coded, stored_head(gateway, stored, coded, age, how), how);
    answer.or_else(|| uncoded(gateway, asked, stored, coded, age, how)).map(|answer| with_cost(gateway, asked, answer))
}

/// As it came, where a piece of its coded form is gone; that is made once more.
fn uncoded<U: Upstream>(
    gateway: &Rc<Gateway<U>>,
    asked: &Asked,
    stored: &Arc<StoredResponse>,
    coded: Coded<'_>,
    age: u64,
    how: CacheStatus,
) -> Option<Answer> {
    let (coding, _) = coded?;
    stored.codings.as_ref()?.give_up(coding);
    gateway.code(asked, stored, coding);
    part_of(gateway, asked, stored, None, stored_head(gateway, stored, None, age, how), how)
}

type Coded<'a> = Option<(Coding, &'a Body)>;

fn stored_head<U: Upstream>(gateway: &Gateway<U>, stored: &StoredResponse, coded: Coded<'_>, age: u64, how: CacheStatus) -> HeaderMap {
    let mut headers = stored.headers.clone();
    set_age(&mut headers, age);
    mark(gateway, &mut headers, how);
    vouch(gateway, &mut headers, stored.clean_through());
    if let Some((coding, body)) = coded {
        coding::describe(&mut headers, coding, Some(body.len()));
    } else {
        set_length(&mut headers, stored.status, Some(stored.body.len()));
    }
    headers
}

/// Sets Content-Length, except for statuses that must not have it (RFC 9110 section 8.6).
fn set_length(headers: &mut HeaderMap, status: StatusCode, length: Option<u64>) {
    if let Some(length) = length.filter(|_| !status.is_informational() && status != StatusCode::NO_CONTENT) {
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    }
}

/// What of a stored response this request gets.
fn part_of<U: Upstream>(
    gateway: &Rc<Gateway<U>>,
    asked: &Asked,
    stored: &Arc<StoredResponse>,
    coded: Coded<'_>,
    mut headers: HeaderMap,
    how: CacheStatus,
) -> Option<Answer> {
    let content = coded.map_or(&stored.body, |(_, body)| body);
    let length = content.len();
    let (status, body) = match select(asked, stored.status, &stored.headers, Some(length), stored.codings.is_some()) {
        Part::NotModified => {
            not_modified(&mut headers, gateway.node.tier);
            (StatusCode::NOT_MODIFIED, ResponseBody::empty())
        }
        Part::Unsatisfiable => {
            unsatisfiable(&mut headers, length);
            (StatusCode::RANGE_NOT_SATISFIABLE, ResponseBody::empty())
        }
        Part::Bytes(status, bounds) => {
            if let (StatusCode::PARTIAL_CONTENT, Some((first, last))) = (status, bounds) {
                set_range(&mut headers, first, last, length);
            }
            let body = match bounds {
                Some((first, last)) if asked.method != Method::HEAD => match content.of_whole(first, last) {
                    Some(piece) => ResponseBody::whole(piece),
                    None => pieces(gateway, asked, stored, content, first, last)?,
                },
                _ => ResponseBody::empty(),
            };
            (status, body)
        }
    };
    count(asked, &body);
    Some(answer(status, headers, body, how))
}

/// From pieces, of which some may be on the disk, or upstream.
fn pieces<U: Upstream>(
    gateway: &Rc<Gateway<U>>,
    asked: &Asked,
    stored: &Arc<StoredResponse>,
    content: &Body,
    first: u64,
    last: u64,
) -> Option<ResponseBody> {
    let in_slices = stored.in_slices && content.is(&stored.body);
    if let Some(pieces) = (!in_slices || last - first < LARGE).then(|| gateway.store.body(content, first, last)).flatten() {
        return Some(ResponseBody::stored(&gateway.store, pieces));
    }
    let source = in_slices.then(|| Box::new(Slices::new(gateway, asked, stored)))?;
    Some(ResponseBody::sliced(SlicedBody::new(source, &gateway.store, content, first, last + 1)))
}

/// The first slice of a hit that is not here and can be fetched: whoever asks for it learns before the head goes out whether
/// upstream still has the same. Only the beginning of a long one is looked at.
pub fn missing<U: Upstream>(gateway: &Gateway<U>, asked: &Asked, stored: &Arc<StoredResponse>) -> Option<u64> {
    if !stored.in_slices || asked.method != Method::GET || gateway.coded(asked, stored).is_some() {
        return None;
    }
    match select(asked, stored.status, &stored.headers, Some(stored.body.len()), stored.codings.is_some()) {
        Part::Bytes(_, Some((first, last))) => {
            let pieces = std::iter::successors(Some(first), |at| Some((at / PIECE + 1) * PIECE)).take_while(|at| *at <= last);
            let missing = pieces.take(MOST_LOOKED_AT).find(|at| gateway.store.piece(&stored.body, *at, *at).is_none());
            missing.map(|at| at / SLICE)
        }
        _ => None,
    }
}

const PIECE: u64 = CHUNK as u64;
/// Pieces: 16 MiB.
const MOST_LOOKED_AT: usize = 64;

fn count(asked: &Asked, body: &ResponseBody) {
    if let Some(n) = http_body::Body::size_hint(body).exact() {
        Counters::add(&asked.site.counters.body_bytes, n);
    }
}

/// A fill as it grows.
pub fn fill<U: Upstream>(gateway: &Gateway<U>, asked: &Asked, head: &FillHead, fill: Arc<Fill>, how: CacheStatus) -> Answer {
    let mut headers = head.headers.clone();
    set_age(&mut headers, head.freshness.current_age(gateway.clock.wall()));
    mark(gateway, &mut headers, how);
    vouch(gateway, &mut headers, head.clean_through);
    let (status, body) = match select(asked, head.status, &head.headers, head.length, head.codable) {
        Part::NotModified => {
            not_modified(&mut headers, gateway.node.tier);
            (StatusCode::NOT_MODIFIED, ResponseBody::empty())
        }
        Part::Unsatisfiable => {
            unsatisfiable(&mut headers, head.length.unwrap_or(0));
            (StatusCode::RANGE_NOT_SATISFIABLE, ResponseBody::empty())
        }
        Part::Bytes(status, bounds) if asked.method == Method::HEAD || (bounds.is_none() && head.length.is_some()) => {
            set_length(&mut headers, status, head.length);
            (status, ResponseBody::empty())
        }
        Part::Bytes(status, None) => (status, ResponseBody::fill(FillReader::new(fill, 0, None))),
        Part::Bytes(status, Some((first, last))) => {
            if status == StatusCode::PARTIAL_CONTENT {
                set_range(&mut headers, first, last, head.length.unwrap_or(0));
            } else {
                set_length(&mut headers, status, head.length);
            }
            (status, ResponseBody::fill(FillReader::new(fill, first, Some(last + 1))))
        }
    };
    count(asked, &body);
    with_cost(gateway, asked, answer(status, headers, body, how))
}

/// A response that is this request's alone.
pub fn relay<U: Upstream>(gateway: &Gateway<U>, asked: &Asked, own: Own, how: CacheStatus) -> Answer {
    let (parts, body) = own.response.into_parts();
    let mut headers = parts.headers;
    fields::strip_hop_by_hop(&mut headers);
    fields::strip_internal(&mut headers);
    fields::strip_framing(&mut headers);
    if gateway.node.tier == Tier::Edge {
        fields::strip_for_client(&mut headers);
    } else {
        vouch(gateway, &mut headers, own.clean_through);
        if own.unframed {
            headers.insert(fields::UNFRAMED, HeaderValue::from_static("1"));
        }
    }
    if !headers.contains_key(header::DATE) {
        fields::insert(&mut headers, header::DATE, &field::show_date(gateway.clock.wall().as_secs()));
    }
    headers.append(header::VIA, gateway.node.via.clone());
    let how = CacheStatus { detail: how.detail.or(own.why.map(NotStorable::detail)), ..how };
    mark(gateway, &mut headers, how);
    set_length(&mut headers, parts.status, own.length);
    let bodiless = asked.method == Method::HEAD || matches!(parts.status.as_u16(), 101 | 204 | 304);
    if parts.status == StatusCode::NOT_MODIFIED {
        conditional::name_as_held(&asked.headers, &mut headers);
    }
    let mut body = match gateway.coding_of_one(asked, parts.status, &mut headers, own.length) {
        Some(coding) if asked.method == Method::HEAD => {
            coding::describe(&mut headers, coding, None);
            ResponseBody::empty()
        }
        _ if bodiless => ResponseBody::empty(),
        None => ResponseBody::relay(body, own.length),
        Some(coding) => match CodedBody::new(body, coding) {
            Ok(coded) => {
                coding::describe(&mut headers, coding, None);
                ResponseBody::coded(coded)
            }
            Err(body) => ResponseBody::relay(body, own.length),
        },
    };
    count(asked, &body);
    let (site, target, key) = (Rc::clone(&asked.site), asked.target.path_and_query.clone(), hash(asked.key.as_bytes()));
    let clock = Arc::clone(&gateway.clock);
    body.on_failure(Box::new(move |error| site.note_failure(&target, key, clock.wall(), error.into())));
    with_cost(gateway, asked, answer(parts.status, headers, body, how))
}

/// A page of this node's own.
pub fn own<U: Upstream>(gateway: &Gateway<U>, status: StatusCode, how: CacheStatus, text: &str) -> Answer {
    let mut headers = HeaderMap::new();
    let page = format!("{status}\n\n{text}\n");
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(page.len()));
    fields::insert(&mut headers, header::DATE, &field::show_date(gateway.clock.wall().as_secs()));
    headers.append(header::VIA, gateway.node.via.clone());
    mark(gateway, &mut headers, how);
    answer(status, headers, ResponseBody::whole(Bytes::from(page)), how)
}

/// There is no response from upstream.
pub fn failed<U: Upstream>(gateway: &Gateway<U>, failed: FetchFailed, how: CacheStatus) -> Answer {
    let how = CacheStatus { detail: Some(failed.error.token()), ..how };
    let mut answer = own(gateway, failed.error.status(), how, &failed.to_string());
    if gateway.node.tier == Tier::Shield {
        let headers = answer.response.headers_mut();
        headers.insert(fields::OWN_ERROR, HeaderValue::from_static(failed.error.token()));
        headers.insert(fields::ATTEMPTS, HeaderValue::from(failed.attempts));
        if let Some(line) = failed.line {
            headers.insert(fields::LINE, HeaderValue::from(line));
        }
    }
    answer
}

/// This node is cut off, and the site wants no answers from such a node.
pub fn detached<U: Upstream>(gateway: &Gateway<U>) -> Answer {
    let how = CacheStatus { detail: Some("detached"), ..CacheStatus::default() };
    let mut answer = own(
        gateway,
        StatusCode::SERVICE_UNAVAILABLE,
        how,
        "this node is cut off from its control plane, and this site does not allow it to answer meanwhile",
    );
    answer.response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("2"));
    answer
}
