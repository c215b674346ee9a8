//! The way to wherever a response comes from: a shield or the origin. The crate `upstream` has the real ones.

use crate::fetch_error::{FetchError, FetchFailed};
use crate::interim::Interim;
use crate::request_body::RequestBody;
use crate::site::Site;
use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body::Body;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use tidegate_control_types::{BootTime, Revision};

/// What a fetch has to satisfy beyond HTTP.
#[derive(Clone)]
pub struct Fetch {
    pub site: Rc<Site>,
    /// Chooses the shield, and the origin server where the site balances by hash.
    pub key_hash: u64,
    /// The answer must have begun at or after this.
    pub demand: Revision,
    /// No cache on the way may answer from what it stored.
    pub end_to_end: bool,
    pub https: bool,
    /// Straight to the origin, for what a shield cannot carry.
    pub direct: bool,
    /// Where interim responses go.
    pub interim: Option<Interim>,
    pub allowance: Allowance,
}

/// The limits of one client request upstream, over both tiers together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allowance {
    /// Requests to origin servers.
    pub attempts: u32,
    /// The deadline of a request without a body.
    pub until: BootTime,
}

pub struct Fetched {
    /// Without the fields that framed its body.
    pub response: Response<UpstreamBody>,
    /// Bytes of its body, where the framing said how many; of a response to HEAD, and of a 304, what its GET would have.
    pub length: Option<u64>,
    /// From a shield: the revision through which it vouches. From the origin: `None`.
    pub vouched: Option<Revision>,
    /// A shield's stale response, since the origin fails.
    pub stands_in: bool,
    /// Requests to origin servers that came to nothing before this one.
    pub failed_before: u32,
    /// Whether a missing length means that the body ends with the connection, so that nobody can tell a whole body from
    /// a torn one.
    pub close_delimited: bool,
    /// For a 101: the connection, once it speaks another protocol.
    pub upgrade: Option<hyper::upgrade::OnUpgrade>,
}

/// Among a request's extensions: what an extended CONNECT wants to speak (RFC 8441, RFC 9220).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConnectProtocol(pub Bytes);

pub trait Upstream: 'static {
    /// Sends the request and returns once the response's head is there.
    fn fetch(&self, request: Request<RequestBody>, fetch: Fetch) -> impl Future<Output = Result<Fetched, FetchFailed>>;
}

/// A response body on its way in: yields data until it ends or fails.
pub struct UpstreamBody {
    body: Pin<Box<dyn Body<Data = Bytes, Error = FetchError>>>,
    trailers: Option<HeaderMap>,
}

impl UpstreamBody {
    #[must_use]
    pub fn new(body: impl Body<Data = Bytes, Error = FetchError> + 'static) -> Self {
        Self { body: Box::pin(body), trailers: None }
    }

    pub fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, FetchError>>> {
        loop {
            let frame = match ready!(self.body.as_mut().poll_frame(cx)) {
                None => return Poll::Ready(None),
                Some(Err(e)) => return Poll::Ready(Some(Err(e))),
                Some(Ok(frame)) => frame,
            };
            match frame.into_data() {
                Ok(data) => return Poll::Ready(Some(Ok(data))),
                Err(frame) => self.trailers = frame.into_trailers().ok(),
            }
        }
    }

    pub async fn data(&mut self) -> Option<Result<Bytes, FetchError>> {
        std::future::poll_fn(|cx| self.poll_data(cx)).await
    }

    /// Whether neither data nor trailers come any more.
    #[must_use]
    pub fn is_end_stream(&self) -> bool {
        self.trailers.is_none() && self.body.is_end_stream()
    }

    /// Bytes that are still to come, where its framing says how many.
    #[must_use]
    pub fn length(&self) -> Option<u64> {
        self.body.size_hint().exact()
    }

    /// What came after its data, where it is for who is to get it.
    pub fn take_trailers(&mut self) -> Option<HeaderMap> {
        self.trailers.take()
    }
}
