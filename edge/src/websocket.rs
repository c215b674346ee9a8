//! WebSocket over HTTP/2 and HTTP/3 (RFC 8441, RFC 9220): an extended CONNECT becomes an upgrade of HTTP/1.1 towards the origin, and the
//! streams of both carry what follows.

use crate::worker::Open;
use bytes::{Bytes, BytesMut};
use data_encoding::BASE64;
use http::header::{self, HeaderName, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use std::cell::Cell;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tidegate_certs::seal;
use tidegate_gateway::{ConnectProtocol, FetchError, RequestBody, ResponseBody, UpstreamBody};
use tokio::io::{AsyncRead, AsyncWriteExt, ReadBuf, ReadHalf, WriteHalf};
use tokio::sync::oneshot;
use tokio::time::Instant;

const ACCEPT: HeaderName = header::SEC_WEBSOCKET_ACCEPT;
/// RFC 6455 section 1.3.
const OF_THE_PROTOCOL: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
/// Bytes that are read at once.
const PIECE: usize = 16 << 10;

/// A client's half of a tunnel, until the origin has granted it.
pub struct Asking {
    from_client: RequestBody,
    key: HeaderValue,
}

/// Makes of an extended CONNECT what an origin of HTTP/1.1 knows. `None`: the request is none.
///
/// # Errors
/// What the client is told: the protocol is none that is carried here.
pub fn asked(request: &mut Request<RequestBody>) -> Option<Result<Asking, StatusCode>> {
    if request.method() != Method::CONNECT {
        return None;
    }
    let ConnectProtocol(protocol) = request.extensions_mut().remove::<ConnectProtocol>()?;
    if !protocol.eq_ignore_ascii_case(b"websocket") {
        return Some(Err(StatusCode::NOT_IMPLEMENTED));
    }
    let Some(key) = seal::random::<16>().ok().and_then(|bytes| HeaderValue::from_str(&BASE64.encode(&bytes)).ok()) else {
        return Some(Err(StatusCode::INTERNAL_SERVER_ERROR));
    };
    *request.method_mut() = Method::GET;
    let headers = request.headers_mut();
    headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(header::SEC_WEBSOCKET_KEY, key.clone());
    headers.entry(header::SEC_WEBSOCKET_VERSION).or_insert(HeaderValue::from_static("13"));
    headers.remove(header::CONTENT_LENGTH);
    let from_client = std::mem::replace(request.body_mut(), RequestBody::Empty).unlimited();
    Some(Ok(Asking { from_client, key }))
}

impl Asking {
    /// The client's response: where `tunnel` was granted, its body is what the origin sends, and what the client sends goes there.
    /// It ends where nothing goes either way for as long as `idle`; until then it counts as `open`.
    pub fn granted(
        self,
        mut response: Response<ResponseBody>,
        tunnel: Option<OnUpgrade>,
        idle: Duration,
        open: Open,
    ) -> Response<ResponseBody> {
        let Some(tunnel) = tunnel else {
            // To who asked, success would say that there is a tunnel now (RFC 8441 section 5).
            return if response.status().is_success() { refused(response) } else { response };
        };
        let headers = response.headers_mut();
        let accepted = headers.remove(ACCEPT);
        headers.remove(header::UPGRADE);
        headers.remove(header::CONNECTION);
        if accepted.is_none_or(|a| a.as_bytes() != accept(&self.key).as_bytes()) {
            tracing::debug!("an origin granted what was not asked");
            return refused(response);
        }
        headers.remove(header::CONTENT_LENGTH);
        *response.status_mut() = StatusCode::OK;
        let (hand_over, from_origin) = oneshot::channel();
        let (wanted, unwanted) = oneshot::channel();
        let moved = Moved::default();
        let of_body = moved.clone();
        let (alive, ended) = oneshot::channel::<()>();
        tokio::task::spawn_local(async move {
            let _alive = (alive, open);
            // What the client has to say goes as long as it listens: whoever has gone, or takes nothing more, ends both ways.
            tokio::select! {
                () = carry(tunnel, hand_over, self.from_client, moved.clone()) => {}
                () = moved.stands_still(idle) => {}
                _ = unwanted => {}
            }
        });
        let body = FromOrigin { state: State::Waiting(from_origin), moved: of_body, ended, _wanted: wanted };
        response.map(|_| ResponseBody::relay(UpstreamBody::new(body), None))
    }
}

/// The origin did not grant what was asked.
fn refused(response: Response<ResponseBody>) -> Response<ResponseBody> {
    let text = "502 Bad Gateway\n\nthe origin did not accept this WebSocket (RFC 6455 section 4.2.2)\n";
    let mut response = response.map(|_| ResponseBody::whole(Bytes::from_static(text.as_bytes())));
    *response.status_mut() = StatusCode::BAD_GATEWAY;
    let headers = response.headers_mut();
    for name in [header::CONTENT_LENGTH, header::CONTENT_TYPE, header::CONTENT_ENCODING, header::ETAG, header::LAST_MODIFIED] {
        headers.remove(name);
    }
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

/// What the origin has to answer to a key.
fn accept(key: &HeaderValue) -> String {
    let mut digest = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA1_FOR_LEGACY_USE_ONLY);
    digest.update(key.as_bytes());
    digest.update(OF_THE_PROTOCOL);
    BASE64.encode(digest.finish().as_ref())
}

type Io = TokioIo<Upgraded>;

/// Hands the origin's half over, and carries what the client sends until it ends.
async fn carry(tunnel: OnUpgrade, hand_over: oneshot::Sender<ReadHalf<Io>>, mut from_client: RequestBody, moved: Moved) {
    let Ok(upgraded) = tunnel.await else { return };
    let (read, mut write): (_, WriteHalf<Io>) = tokio::io::split(TokioIo::new(upgraded));
    if hand_over.send(read).is_err() {
        return;
    }
    while let Some(frame) = from_client.frame().await {
        // A client that breaks off does not end what it says in order.
        let Ok(frame) = frame else { return };
        if let Ok(data) = frame.into_data()
            && (write.write_all(&data).await.is_err() || write.flush().await.is_err())
        {
            return;
        }
        moved.note();
    }
    let _ = write.shutdown().await;
    // The origin may go on: its half ends the tunnel.
    std::future::pending::<()>().await;
}

/// When anything moved in a tunnel last.
#[derive(Clone)]
struct Moved(Rc<Cell<Instant>>);

impl Default for Moved {
    fn default() -> Self {
        Self(Rc::new(Cell::new(Instant::now())))
    }
}

impl Moved {
    fn note(&self) {
        self.0.set(Instant::now());
    }

    /// Until nothing has moved for so long.
    async fn stands_still(&self, idle: Duration) {
        while self.0.get().elapsed() < idle {
            tokio::time::sleep_until(self.0.get() + idle).await;
        }
    }
}

/// What the origin sends. The client's half ends with it.
struct FromOrigin {
    state: State,
    moved: Moved,
    /// The client's half is over, other than by its end.
    ended: oneshot::Receiver<()>,
    _wanted: oneshot::Sender<()>,
}

enum State {
    Waiting(oneshot::Receiver<ReadHalf<Io>>),
    Reading(ReadHalf<Io>, BytesMut),
    Over,
}

impl Body for FromOrigin {
    type Data = Bytes;
    type Error = FetchError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, FetchError>>> {
        if let State::Waiting(from) = &mut self.state {
            self.state = match ready!(Pin::new(from).poll(cx)) {
                Ok(read) => State::Reading(read, BytesMut::new()),
                Err(_) => State::Over,
            };
        }
        if Pin::new(&mut self.ended).poll(cx).is_ready() {
            return Poll::Ready(Some(Err(FetchError::Broken)));
        }
        let State::Reading(read, buffer) = &mut self.state else { return Poll::Ready(Some(Err(FetchError::Broken))) };
        buffer.resize(PIECE, 0);
        let mut room = ReadBuf::new(buffer);
        let came = ready!(Pin::new(read).poll_read(cx, &mut room)).map(|()| room.filled().len());
        let came = came.map(|length| buffer.split_to(length).freeze());
        self.moved.note();
        Poll::Ready(match came {
            Ok(data) if data.is_empty() => None,
            Ok(data) => Some(Ok(Frame::data(data))),
            Err(_) => Some(Err(FetchError::Broken)),
        })
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_the_standard() {
        assert_eq!(accept(&HeaderValue::from_static("dGhlIHNhbXBsZSBub25jZQ==")), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }
}
