//! The server's end: one task per connection, which answers what is there at once, and one per request that has to wait.

use crate::body::Received;
use crate::keep_alive::{Counted, KeepAlive, Pinger};
use crate::pipe::Pipe;
use bytes::Bytes;
use h2::server::{Builder, SendResponse};
use h2::{Reason, SendStream};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use http_body::Body;
use parking_lot::Mutex;
use std::cell::Cell;
use std::future::Future;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tidegate_gateway::interim::{Interim, MOST_INTERIM, TakesInterim};
use tidegate_gateway::{Answering, ConnectProtocol, ResponseBody};
use tokio::io::{AsyncRead, AsyncWrite};

#[derive(Clone, Copy, Debug)]
pub struct ServerSettings {
    /// Requests at once.
    pub streams: u32,
    /// Bytes of a head's fields.
    pub head: u32,
    /// Bytes of bodies that may come before they are taken.
    pub stream_window: u32,
    pub connection_window: u32,
    /// Bytes of a response that wait for its client.
    pub send_buffer: usize,
    pub keep_alive: KeepAlive,
    /// Resets of ours that a peer may provoke by errors, in all the life of its connection.
    pub provoked_resets: usize,
    /// Whether CONNECT may name a protocol (RFC 8441).
    pub extended_connect: bool,
    /// Once the server is to stop: for requests that are not over.
    pub drain: Duration,
}

/// Resets that a peer may have pending before its connection is ended (CVE-2023-44487).
const MOST_RESETS: usize = 50;

type Answered = Response<ResponseBody>;

/// Serves a connection to its end, or until `stopping`, and from then on to the end of its requests.
///
/// # Errors
/// The peer breaks the protocol, is gone, or the connection fails.
pub async fn serve<I, S>(io: I, settings: &ServerSettings, service: S, stopping: impl Future<Output = ()>) -> Result<(), h2::Error>
where
    I: AsyncRead + AsyncWrite + Unpin,
    S: FnMut(Request<Received>, Interim) -> Answering<Answered>,
{
    let (io, received) = Counted::new(io);
    let mut builder = Builder::new();
    builder
        .max_concurrent_streams(settings.streams)
        .max_header_list_size(settings.head)
        .initial_window_size(settings.stream_window)
        .initial_connection_window_size(settings.connection_window)
        .max_send_buffer_size(settings.send_buffer)
        .max_pending_accept_reset_streams(MOST_RESETS)
        .max_local_error_reset_streams(Some(settings.provoked_resets));
    if settings.extended_connect {
        builder.enable_connect_protocol();
    }
    let mut stopping = pin!(stopping);
    let mut connection = tokio::select! {
        shaken = builder.handshake(io) => shaken?,
        () = stopping.as_mut() => return Ok(()),
    };
    let Some(pings) = connection.ping_pong() else { return Ok(()) };
    let mut pinger = Pinger::new(pings, settings.keep_alive, received);
    let mut requests = Requests { service, waiting: Vec::new(), spare: Arc::default() };
    let mut drained: Option<Pin<Box<tokio::time::Sleep>>> = None;
    std::future::poll_fn(|cx| {
        if drained.is_none() && stopping.as_mut().poll(cx).is_ready() {
            connection.graceful_shutdown();
            drained = Some(Box::pin(tokio::time::sleep(settings.drain)));
        }
        if drained.as_mut().is_some_and(|late| late.as_mut().poll(cx).is_ready()) {
            return Poll::Ready(Ok(()));
        }
        if pinger.poll_gone(cx, true).is_ready() {
            tracing::debug!("a peer answers no ping");
            return Poll::Ready(Ok(()));
        }
        loop {
            // All that has come is taken before the first is answered: what is there at once then goes out together.
            match connection.poll_accept(cx) {
                Poll::Ready(Some(request)) => requests.waiting.push(request?),
                Poll::Ready(None) => return Poll::Ready(Ok(())),
                Poll::Pending if requests.waiting.is_empty() => return Poll::Pending,
                Poll::Pending => requests.begin(cx),
            }
        }
    })
    .await
}

struct Requests<S> {
    service: S,
    waiting: Vec<(Request<h2::RecvStream>, SendResponse<Bytes>)>,
    /// For the next request, from one that was answered at once.
    spare: Arc<Reply>,
}

impl<S: FnMut(Request<Received>, Interim) -> Answering<Answered>> Requests<S> {
    fn begin(&mut self, cx: &mut Context<'_>) {
        for (request, mut respond) in self.waiting.drain(..) {
            if respond.poll_reset(cx).is_ready() {
                // It was given up in the same breath: nobody is asked for it.
                continue;
            }
            if Arc::get_mut(&mut self.spare).is_none() {
                self.spare = Arc::default();
            }
            *self.spare.0.lock() = Some((respond, 0));
            let interim = Interim::new(Arc::clone(&self.spare) as Arc<dyn TakesInterim>, 0);
            let (mut head, body) = request.into_parts();
            if let Some(protocol) = head.extensions.remove::<h2::ext::Protocol>() {
                head.extensions.insert(ConnectProtocol(Bytes::copy_from_slice(protocol.as_ref())));
            }
            let is_head = head.method == http::Method::HEAD;
            let body = Received::new(body, &head.headers);
            let is_complete = body.is_complete();
            let answering = (self.service)(Request::from_parts(head, body), interim);
            let mut stream = Stream { reply: Arc::clone(&self.spare), is_head, is_complete, state: State::Answering(answering) };
            if Pin::new(&mut stream).poll(cx).is_pending() {
                tokio::task::spawn_local(stream);
            }
        }
    }
}

/// The way back to a request's sender, until its response has begun; and the interim responses that went there.
#[derive(Default)]
struct Reply(Mutex<Option<(SendResponse<Bytes>, u32)>>);

impl TakesInterim for Reply {
    fn take(&self, _: u64, status: StatusCode, headers: &HeaderMap) {
        if let Some((reply, sent)) = self.0.lock().as_mut().filter(|(_, sent)| *sent < MOST_INTERIM) {
            *sent += 1;
            let mut interim = Response::new(());
            *interim.status_mut() = status;
            interim.headers_mut().clone_from(headers);
            if let Err(error) = reply.send_informational(interim) {
                tracing::debug!(%error, "an interim response was not sent");
            }
        }
    }
}

struct Stream {
    reply: Arc<Reply>,
    is_head: bool,
    /// Whether all of the request has come.
    is_complete: Rc<Cell<bool>>,
    state: State,
}

enum State {
    Over,
    Answering(Answering<Answered>),
    Sending(Pipe<ResponseBody>),
    /// The response is over, and the client still sends its request. To drop the stream now would reset it (RFC 9113 section 8.1),
    /// and some clients that are reset drop a response that they have.
    Lingering(SendStream<Bytes>, Option<Pin<Box<tokio::time::Sleep>>>),
}

/// Time that a client has to end a request whose response is over.
const LINGERS: Duration = Duration::from_secs(1);

/// A stream that is over takes no interim response any more, however long its request goes on.
impl Drop for Stream {
    fn drop(&mut self) {
        self.reply.0.lock().take();
    }
}

impl Future for Stream {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = &mut *self;
        if let State::Answering(answering) = &mut this.state {
            let Poll::Ready(response) = Pin::new(answering).poll(cx) else {
                // Who has asked may have given up.
                let mut reply = this.reply.0.lock();
                return match reply.as_mut() {
                    Some((reply, _)) => reply.poll_reset(cx).map(|_| ()),
                    None => Poll::Ready(()),
                };
            };
            let Some((reply, _)) = this.reply.0.lock().take() else { return Poll::Ready(()) };
            match respond(reply, response, this.is_head) {
                Some(state) => this.state = state,
                None => return Poll::Ready(()),
            }
        }
        if let State::Sending(pipe) = &mut this.state {
            ready!(Pin::new(&mut *pipe).poll(cx));
            if let State::Sending(pipe) = std::mem::replace(&mut this.state, State::Over) {
                this.state = State::Lingering(pipe.into_stream(), None);
            }
        }
        let State::Lingering(to, late) = &mut this.state else { return Poll::Ready(()) };
        if this.is_complete.get() || to.poll_reset(cx).is_ready() {
            return Poll::Ready(());
        }
        late.get_or_insert_with(|| Box::pin(tokio::time::sleep(LINGERS))).as_mut().poll(cx)
    }
}

/// Sends the head. A response to HEAD has no body. `None`: the client has gone.
fn respond(mut reply: SendResponse<Bytes>, response: Answered, is_head: bool) -> Option<State> {
    let (mut head, mut body) = response.into_parts();
    if is_head {
        body.leave_out();
    }
    let bodiless = body.is_end_stream();
    if let Some(length) = body.size_hint().exact().filter(|_| !bodiless && !head.headers.contains_key(header::CONTENT_LENGTH)) {
        head.headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    }
    match reply.send_response(Response::from_parts(head, ()), bodiless) {
        Ok(to) if bodiless => Some(State::Lingering(to, None)),
        Ok(to) => {
            let untaken = body.untaken();
            Some(State::Sending(Pipe::new(body, to, Reason::INTERNAL_ERROR, untaken)))
        }
        Err(error) => {
            tracing::debug!(%error, "a response was not sent");
            reply.send_reset(Reason::INTERNAL_ERROR);
            None
        }
    }
}
