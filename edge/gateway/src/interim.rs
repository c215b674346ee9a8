//! Interim responses (RFC 9110 section 15.2), Early Hints (RFC 8297) above all: from upstream to the one client whose request went
//! there, ahead of its response. A request that joined another's fill gets none, and none is stored.

use crate::fields;
use http::{HeaderMap, StatusCode};
use std::sync::Arc;

/// More of them for one request are dropped.
pub const MOST_INTERIM: u32 = 16;

/// So are larger ones: clients that take much in a response's head may take less here.
const MOST_BYTES: usize = 16 << 10;

/// Interim responses from upstream to one request, of 128 bytes each: larger ones count for several. More of them are an error.
pub const MOST_RECEIVED: usize = 10_000;

/// How many an interim response counts for.
#[must_use]
pub fn cost(headers: &HeaderMap) -> usize {
    1 + fields::size(headers) / 128
}

/// A client's connection, or stream, that takes interim responses for as long as its request has no response.
pub trait TakesInterim: Send + Sync {
    /// Dropped where `request`, by the connection's own count, has its response by now, or where they come too fast.
    fn take(&self, request: u64, status: StatusCode, headers: &HeaderMap);
}

/// Where the interim responses of one request go.
#[derive(Clone)]
pub struct Interim {
    to: Arc<dyn TakesInterim>,
    request: u64,
}

impl Interim {
    #[must_use]
    pub fn new(to: Arc<dyn TakesInterim>, request: u64) -> Self {
        Self { to, request }
    }

    /// Tells the client to send its body (RFC 9110 section 10.1.1).
    pub fn go_on(&self) {
        self.to.take(self.request, StatusCode::CONTINUE, &HeaderMap::new());
    }

    /// Passes one on. Not 100 and 101: each hop settles for itself whether it waits for a body or speaks another protocol.
    pub fn pass(&self, status: StatusCode, headers: &HeaderMap) {
        if !status.is_informational() || matches!(status, StatusCode::CONTINUE | StatusCode::SWITCHING_PROTOCOLS) {
            return;
        }
        let mut headers = headers.clone();
        fields::strip_hop_by_hop(&mut headers);
        fields::strip_internal(&mut headers);
        fields::strip_for_client(&mut headers);
        for of_body in [http::header::CONTENT_LENGTH, http::header::TRAILER] {
            headers.remove(of_body);
        }
        if fields::size(&headers) <= MOST_BYTES {
            self.to.take(self.request, status, &headers);
        }
    }
}
