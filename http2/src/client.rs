//! The client's end.

use crate::body::Received;
use crate::keep_alive::{Counted, KeepAlive, Pinger};
use crate::pipe::Pipe;
use crate::windows::Windows;
use bytes::Bytes;
use h2::Reason;
use h2::client::{Builder, SendRequest};
use http::{HeaderValue, Method, Request, Response, header};
use http_body::Body;
use std::cell::{Cell, OnceCell};
use std::future::Future;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tidegate_gateway::interim::{self, Interim};
use tidegate_gateway::{RequestBody, Untaken};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Notify, oneshot};
use tokio::task::AbortHandle;

#[derive(Clone, Copy, Debug)]
pub struct ClientSettings {
    /// Bytes of a head's fields.
    pub head: u32,
    pub windows: Windows,
    /// While requests are open.
    pub keep_alive: KeepAlive,
}

/// A connection that takes requests, any number of them at once. It ends when the last of its kind is let go.
#[derive(Clone)]
pub struct Sender {
    to: SendRequest<Bytes>,
    state: Rc<ConnectionState>,
}

#[derive(Default)]
struct ConnectionState {
    is_over: Cell<bool>,
    /// The server's settings have come: they are the first that it sends.
    is_heard: Cell<bool>,
    /// The task that drives it.
    task: OnceCell<AbortHandle>,
    open: Cell<usize>,
    waiting: Cell<usize>,
    /// A request is over, or all of them, or the settings have come.
    freed: Notify,
}

/// Time between two looks at the number of streams that the server allows. A change of it wakes no waiting request.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// The place of one request among a connection's open streams, held until its response is dropped.
pub struct Slot(Rc<ConnectionState>);

impl Slot {
    fn new(state: &Rc<ConnectionState>) -> Self {
        state.open.set(state.open.get() + 1);
        Self(Rc::clone(state))
    }
}

/// Counts a request as waiting for a slot.
struct Waiting<'a>(&'a Cell<usize>);

impl<'a> Waiting<'a> {
    fn new(count: &'a Cell<usize>) -> Self {
        count.set(count.get() + 1);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get().saturating_sub(1));
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.open.set(self.0.open.get().saturating_sub(1));
        self.0.freed.notify_one();
    }
}

/// Begins a connection, which lives on as a task of this worker.
///
/// # Errors
/// The connection fails.
pub async fn connect<I>(io: I, settings: &ClientSettings) -> Result<Sender, h2::Error>
where
    I: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let (io, received) = Counted::new(io);
    let mut builder = Builder::new();
    builder
        .enable_push(false)
        // Until the server says how many it takes.
        .initial_max_send_streams(100)
        .max_header_list_size(settings.head)
        .initial_window_size(settings.windows.few)
        .initial_connection_window_size(Windows::OF_CONNECTION);
    let (to, mut connection) = builder.handshake(io).await?;
    let mut pinger = connection.ping_pong().map(|pings| Pinger::new(pings, settings.keep_alive, Rc::clone(&received)));
    let state = Rc::new(ConnectionState::default());
    let shared = Rc::clone(&state);
    let windows = settings.windows;
    let mut window = windows.few;
    let of_task = Rc::clone(&shared);
    let task = tokio::task::spawn_local(async move {
        let ended = std::future::poll_fn(|cx| {
            if pinger.as_mut().is_some_and(|p| p.poll_gone(cx, state.open.get() > 0).is_ready()) {
                tracing::debug!("a server answers no ping");
                return Poll::Ready(Ok(()));
            }
            let wanted = windows.of(state.open.get());
            // Refused while the last change is on its way; it is asked for again then.
            if wanted != window && connection.set_initial_window_size(wanted).is_ok() {
                window = wanted;
            }
            let ended = Pin::new(&mut connection).poll(cx);
            if !state.is_heard.get() && received.get() > 0 {
                state.is_heard.set(true);
                state.freed.notify_waiters();
            }
            ended
        });
        if let Err(error) = ended.await {
            tracing::debug!(%error, "a connection to a server ended");
        }
        state.is_over.set(true);
        state.freed.notify_waiters();
    });
    let _ = of_task.task.set(task.abort_handle());
    Ok(Sender { to, state: shared })
}

impl ConnectionState {
    /// Ends the connection, with all its requests.
    fn end(&self) {
        self.is_over.set(true);
        self.task.get().into_iter().for_each(AbortHandle::abort);
        self.freed.notify_waiters();
    }
}

impl Sender {
    /// Whether requests cannot be sent: the connection is over, or the server has sent GOAWAY and only finishes open requests.
    #[must_use]
    pub fn is_closed(&mut self) -> bool {
        let mut unwoken = Context::from_waker(Waker::noop());
        self.state.is_over.get() || matches!(self.to.poll_ready(&mut unwoken), Poll::Ready(Err(_)))
    }

    /// Number of requests that are open or wait for a slot.
    #[must_use]
    pub fn load(&self) -> usize {
        self.state.open.get() + self.state.waiting.get()
    }

    /// Whether no request is under way.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.state.open.get() == 0
    }

    /// Whether the server takes one more request now. Until its settings have come, it takes one.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.state.open.get() < if self.is_heard() { self.to.current_max_send_streams() } else { 1 }
    }

    /// Whether the server's settings have come.
    #[must_use]
    pub fn is_heard(&self) -> bool {
        self.state.is_heard.get()
    }

    /// Resolves once they have, or the connection is over.
    pub async fn heard(&self) {
        while !self.is_heard() && !self.state.is_over.get() {
            let freed = self.state.freed.notified();
            let _ = tokio::time::timeout(LOOK_AGAIN, freed).await;
        }
    }

    /// Waits until the server allows another stream. A request is handed to h2 only then: h2 would send it even after its client left.
    ///
    /// # Errors
    /// The connection is over.
    pub async fn slot(&mut self) -> Result<Slot, h2::Error> {
        let _waiting = Waiting::new(&self.state.waiting);
        loop {
            let mut freed = pin!(self.state.freed.notified());
            freed.as_mut().enable();
            std::future::poll_fn(|cx| self.to.poll_ready(cx)).await?;
            if self.has_room() {
                return Ok(Slot::new(&self.state));
            }
            let _ = tokio::time::timeout(LOOK_AGAIN, freed).await;
        }
    }

    /// Sends a request, whose URI names scheme and authority, and waits for its response's head. Dropping the response, or this future,
    /// ends the request wherever it is.
    ///
    /// # Errors
    /// The connection is over, or the server refuses or resets the request. ENHANCE_YOUR_CALM of this end: it sent too many interim
    /// responses.
    pub async fn send(
        &mut self,
        slot: Slot,
        request: Request<RequestBody>,
        interim: Option<Interim>,
    ) -> Result<Response<Received>, h2::Error> {
        let (mut head, body) = request.into_parts();
        let bodiless = body.is_end_stream();
        let length = body.size_hint().exact().filter(|_| !bodiless);
        if let Some(length) = length {
            head.headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
        } else if bodiless
            && matches!(head.method, Method::POST | Method::PUT | Method::PATCH)
            && !head.headers.contains_key(header::CONTENT_LENGTH)
        {
            // Some servers refuse what could have a body and says no length (RFC 9110 section 8.6).
            head.headers.insert(header::CONTENT_LENGTH, HeaderValue::from(0));
        }
        let (mut coming, to) = self.to.send_request(Request::from_parts(head, ()), bodiless)?;
        let sending = (!bodiless).then(|| {
            let (goes_on, ended) = oneshot::channel();
            tokio::task::spawn_local(send_body(Pipe::new(body, to, Reason::CANCEL, Untaken::new(None)), ended));
            goes_on
        });
        let mut count = 0;
        let response = std::future::poll_fn(|cx| {
            while let Poll::Ready(Some(Ok(early))) = coming.poll_informational(cx) {
                count += interim::cost(early.headers());
                if count > interim::MOST_RECEIVED {
                    // To reset the stream would not keep the server from sending.
                    self.state.end();
                    return Poll::Ready(Err(Reason::ENHANCE_YOUR_CALM.into()));
                }
                interim.iter().for_each(|i| i.pass(early.status(), early.headers()));
            }
            Pin::new(&mut coming).poll(cx)
        });
        let (head, body) = response.await?.into_parts();
        let body = Received::new(body, &head.headers).of_exchange(slot, sending);
        Ok(Response::from_parts(head, body))
    }
}

async fn send_body(mut pipe: Pipe<RequestBody>, ended: oneshot::Receiver<()>) {
    tokio::select! {
        biased;
        () = &mut pipe => {}
        _ = ended => pipe.reset(Reason::CANCEL),
    }
}
