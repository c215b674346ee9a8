//! A stored response as a record's payload: length of the head (u32, little endian), the head, the body where it is one piece, and
//! what of its codings is one piece each.
//!
//! The index through which it is known not to be purged, and the log that this index counts in, are part of the head: a purge
//! that came while the response lay on the disk is seen when it is used again.

use super::record::{Name, hash};
use crate::stored::{Body, Codings, StoredResponse};
use bytes::Bytes;
use http::header::{HeaderName, HeaderValue};
use http::{HeaderMap, StatusCode};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use tidegate_cache::{CacheKey, Coding, Freshness, Incarnation, Revision, Target, VaryKey};

#[derive(Serialize, Deserialize)]
struct Head<'a> {
    key: &'a [u8],
    target: Target,
    status: u16,
    #[serde(borrow)]
    headers: Vec<(&'a str, &'a [u8])>,
    #[serde(borrow)]
    hidden: Vec<(&'a str, &'a [u8])>,
    tags: Vec<Box<str>>,
    vary: VaryKey,
    freshness: Freshness,
    incarnation: u64,
    begun: u64,
    clean_through: u64,
    body: At,
    /// Where it may be given in other codings: those that are there.
    codings: Option<Vec<(Coding, At)>>,
}

/// Where a body is: so many bytes that follow, or an object of this number and length in chunks.
#[derive(Clone, Copy, Serialize, Deserialize)]
enum At {
    Here(usize),
    Chunked(u64, u64),
}

fn at(body: &Body) -> At {
    match body {
        Body::Whole(bytes) => At::Here(bytes.len()),
        Body::Chunked { object, length, .. } => At::Chunked(*object, *length),
    }
}

#[must_use]
pub fn name(key: &CacheKey, response: &StoredResponse) -> Name {
    Name::response(hash(key.as_bytes()), &postcard::to_allocvec(&response.vary).unwrap_or_default())
}

/// What follows the head in the payload.
#[must_use]
pub fn bodies(response: &StoredResponse) -> Vec<Bytes> {
    let codings = response.codings.iter().flat_map(|c| c.iter()).map(|(_, body)| body);
    std::iter::once(&response.body).chain(codings).filter_map(|b| if let Body::Whole(b) = b { Some(b.clone()) } else { None }).collect()
}

/// The head's part of the payload.
#[must_use]
pub fn encode(key: &CacheKey, response: &StoredResponse) -> Vec<u8> {
    let clean = response.clean_through();
    let head = Head {
        key: key.as_bytes(),
        target: response.target.clone(),
        status: response.status.as_u16(),
        headers: response.headers.iter().map(|(n, v)| (n.as_str(), v.as_bytes())).collect(),
        hidden: response.hidden.iter().flat_map(|h| h.iter()).map(|(n, v)| (n.as_str(), v.as_bytes())).collect(),
        tags: response.tags.clone(),
        vary: response.vary.clone(),
        freshness: response.freshness,
        incarnation: clean.incarnation.0,
        begun: response.begun,
        clean_through: clean.index,
        body: at(&response.body),
        codings: response.codings.as_ref().map(|c| c.iter().map(|(coding, body)| (coding, at(body))).collect()),
    };
    let mut out = postcard::to_extend(&head, vec![0; 4]).unwrap_or_default();
    let length = u32::try_from(out.len().saturating_sub(4)).unwrap_or(u32::MAX);
    if let Some(at) = out.first_chunk_mut::<4>() {
        *at = length.to_le_bytes();
    }
    out
}

fn fields(lines: &[(&str, &[u8])]) -> Option<HeaderMap> {
    let mut out = HeaderMap::with_capacity(lines.len());
    for (n, v) in lines {
        out.append(HeaderName::from_bytes(n.as_bytes()).ok()?, HeaderValue::from_bytes(v).ok()?);
    }
    Some(out)
}

/// The response under `key` that a payload holds; `None` for another key's, or one that is damaged.
#[must_use]
pub fn decode(key: &CacheKey, payload: &Bytes) -> Option<StoredResponse> {
    let (length, rest) = payload.split_first_chunk::<4>()?;
    let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
    let head: Head<'_> = postcard::from_bytes(rest.get(..length)?).ok()?;
    if head.key != key.as_bytes() {
        return None;
    }
    let headers = fields(&head.headers)?;
    let mut rest = payload.slice(4 + length..);
    let mut take = |at: At| match at {
        At::Chunked(object, length) => Some(Body::Chunked { object, length, on_disk: true }),
        At::Here(length) => (length <= rest.len()).then(|| Body::Whole(rest.split_to(length))),
    };
    let body = take(head.body)?;
    let mut codings = head.codings.as_ref().map(|_| Codings::default());
    for (coding, at) in head.codings.into_iter().flatten() {
        codings = Some(codings.unwrap_or_default().with(coding, take(at)?));
    }
    let status = StatusCode::from_u16(head.status).ok()?;
    let mut response = StoredResponse::new(head.target, status, headers, head.vary, head.freshness, body);
    response.tags = head.tags;
    response.hidden = if head.hidden.is_empty() { None } else { Some(Box::new(fields(&head.hidden)?)) };
    response.codings = codings.map(Arc::new);
    response.from_disk = true;
    let mut response = response.with_clean_through(Revision::new(Incarnation(head.incarnation), head.clean_through));
    response.begun = head.begun;
    Some(response)
}
