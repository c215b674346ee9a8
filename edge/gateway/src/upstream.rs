//! The way to wherever a response comes from: a shield or the origin. The crate `upstream` has the real ones.

use crate::body::RequestBody;
use crate::site::Site;
use bytes::Bytes;
use http::{Request, Response};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use tidegate_control_types::Revision;

/// What a fetch has to satisfy beyond HTTP.
#[derive(Clone, Debug)]
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
}

/// Why there is no response, in words for the access log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FetchError {
    #[error("no origin server can be reached")]
    Connect,
    #[error("the origin's name does not resolve")]
    Resolve,
    #[error("the origin's certificate is not accepted")]
    Tls,
    #[error("the origin did not answer in time")]
    Timeout,
    #[error("the origin has something else by now")]
    Changed,
    #[error("the origin broke off or answered what is not HTTP")]
    Broken,
    #[error("every origin server is down")]
    Down,
    #[error("the origin's address is private, and this site may not reach such addresses")]
    Private,
    #[error("the origin answered with an error, and a stale response may stand in")]
    ServerError,
}

impl FetchError {
    /// The word for Cache-Status, logs and between nodes.
    #[must_use]
    pub fn token(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Resolve => "resolve",
            Self::Tls => "tls",
            Self::Timeout => "timeout",
            Self::Changed => "changed",
            Self::Broken => "broken",
            Self::Down => "down",
            Self::Private => "private",
            Self::ServerError => "server-error",
        }
    }

    #[must_use]
    pub fn of_token(token: &str) -> Option<Self> {
        [Self::Connect, Self::Resolve, Self::Tls, Self::Timeout, Self::Changed, Self::Broken, Self::Down, Self::Private, Self::ServerError]
            .into_iter()
            .find(|e| e.token() == token)
    }

    /// What the client gets.
    #[must_use]
    pub fn status(self) -> http::StatusCode {
        match self {
            Self::Timeout => http::StatusCode::GATEWAY_TIMEOUT,
            Self::Down => http::StatusCode::SERVICE_UNAVAILABLE,
            _ => http::StatusCode::BAD_GATEWAY,
        }
    }
}

pub struct Fetched {
    pub response: Response<UpstreamBody>,
    /// From a shield: the revision through which it vouches. From the origin: `None`.
    pub vouched: Option<Revision>,
    /// Whether a missing length means that the body ends with the connection, so that nobody can tell a whole body from
    /// a torn one.
    pub close_delimited: bool,
    /// For a 101: the connection, once it speaks another protocol.
    pub upgrade: Option<hyper::upgrade::OnUpgrade>,
}

pub trait Upstream: 'static {
    /// Sends the request and returns once the response's head is there.
    fn fetch(&self, request: Request<RequestBody>, fetch: Fetch) -> impl Future<Output = Result<Fetched, FetchError>>;
}

/// A response body on its way in: yields data until it ends or fails.
pub struct UpstreamBody(pub Pin<Box<dyn http_body::Body<Data = Bytes, Error = FetchError>>>);

impl UpstreamBody {
    pub fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, FetchError>>> {
        loop {
            match self.0.as_mut().poll_frame(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Ready(Some(Err(e))) => return Poll::Ready(Some(Err(e))),
                // Trailers are dropped, as RFC 9110 section 6.5.1 allows.
                Poll::Ready(Some(Ok(frame))) => {
                    if let Ok(data) = frame.into_data() {
                        return Poll::Ready(Some(Ok(data)));
                    }
                }
            }
        }
    }

    pub async fn data(&mut self) -> Option<Result<Bytes, FetchError>> {
        std::future::poll_fn(|cx| self.poll_data(cx)).await
    }
}
