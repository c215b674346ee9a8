//! One request and its response.

use crate::code::Code;
use crate::frame::{Frame, Kind};
use crate::message::{self, MessageError};
use crate::qpack::SectionError;
use crate::received::{ReceiveError, Received, Stream};
use crate::server::{Answered, EarlyData, Shared, data_head};
use crate::share::Share;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, header};
use http_body::Body;
use parking_lot::Mutex;
use quinn::{RecvStream, SendStream, WriteError};
use std::convert::Infallible;
use std::future::Future;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use tidegate_gateway::interim::{Interim, MOST_INTERIM, TakesInterim};
use tidegate_gateway::{Answering, OneInFlight, ResponseBody, Untaken};
use tokio::sync::mpsc;
use tokio::time::Sleep;

/// Heads are read up to this multiple of the announced limit. The service refuses those above the limit, and logs them;
/// longer ones are refused here.
const READ_BEYOND: usize = 2;

/// ```text
/// Head -> Body -> Answering -> Sending
///   \_______\________\___________\____-> over: reset, refused or finished
/// ```
pub struct Exchange<S> {
    shared: Rc<Shared<S>>,
    to: Sending,
    phase: Phase,
    interim: Arc<Interims>,
    /// Where the head does not come at once: the time at which it is too late.
    late: Option<Pin<Box<Sleep>>>,
    /// Where nobody sends anything yet: whether the client gives the request up.
    stopped: Option<Pin<Box<dyn Future<Output = ()>>>>,
    alive: mpsc::Sender<Infallible>,
}

enum Phase {
    Head(Stream),
    /// The head is there; whether there is a body is not known, and has to be for some methods.
    Body {
        asked: Box<(Request<()>, Received)>,
        has_to_be_known: bool,
    },
    Answering(Answering<Answered>),
    Sending(Outgoing),
    Over,
}

/// A response that its client does not have yet, all of it.
struct Open {
    in_flight: Option<Mutex<OneInFlight>>,
    share: Share,
    _alive: mpsc::Sender<Infallible>,
}

/// A piece of it: QUIC holds that until the client acknowledges it, or the stream is given up. So the transport knows when a connection
/// may be ended, and the sweep whether the client takes anything.
struct Unacknowledged {
    data: Bytes,
    of: Arc<Open>,
}

impl Unacknowledged {
    fn hold(data: Bytes, of: &Arc<Open>) -> Bytes {
        of.share.hold(data.len());
        Bytes::from_owner(Self { data, of: Arc::clone(of) })
    }
}

impl AsRef<[u8]> for Unacknowledged {
    fn as_ref(&self) -> &[u8] {
        &self.data
    }
}

impl Drop for Unacknowledged {
    fn drop(&mut self) {
        self.of.share.let_go(self.data.len());
        if let Some(in_flight) = &self.of.in_flight {
            in_flight.lock().all().taken();
        }
    }
}

/// A response's body on its way.
struct Outgoing {
    body: ResponseBody,
    open: Arc<Open>,
    /// Of the one frame that a body of known length is.
    left: Option<u64>,
    over: bool,
}

/// Why an exchange ends before its response does.
enum Ended {
    /// The client, or its connection, is gone.
    Gone,
    /// Its stream is reset.
    Reset(Code),
}

impl From<WriteError> for Ended {
    fn from(_: WriteError) -> Self {
        Self::Gone
    }
}

impl<S> Exchange<S>
where
    S: Fn(Request<Received>, Interim) -> Answering<Answered>,
{
    pub fn new(shared: Rc<Shared<S>>, send: SendStream, receive: RecvStream, alive: mpsc::Sender<Infallible>) -> Self {
        let stream = Stream::new(receive, shared.settings.head * READ_BEYOND);
        Self {
            shared,
            to: Sending { stream: send, waiting: Vec::new(), is_of_head: false, over: false, untaken: Untaken::new(None) },
            phase: Phase::Head(stream),
            interim: Arc::default(),
            late: None,
            stopped: None,
            alive,
        }
    }

    fn poll_answered(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Ended>> {
        loop {
            match &mut self.phase {
                Phase::Head(stream) => match stream.poll_frame(cx) {
                    Poll::Pending => return self.poll_late(cx),
                    Poll::Ready(frame) => {
                        let frame = frame.map_err(|error| self.shared.failed(&error))?;
                        self.head(frame)?;
                    }
                },
                Phase::Body { asked, has_to_be_known } => {
                    match asked.1.poll_known(cx) {
                        Poll::Pending if *has_to_be_known => return self.poll_late(cx),
                        Poll::Pending => {}
                        Poll::Ready(known) => known.map_err(|error| self.shared.failed(&error))?,
                    }
                    if let Phase::Body { asked, .. } = std::mem::replace(&mut self.phase, Phase::Over) {
                        let (request, body) = *asked;
                        self.ask(request.map(|()| body));
                    }
                }
                Phase::Answering(answering) => {
                    let answered = Pin::new(answering).poll(cx);
                    self.interim.hand_over(&mut self.to, cx, answered.is_ready());
                    if answered.is_pending() {
                        ready!(self.to.poll_written(cx))?;
                    }
                    let Poll::Ready(response) = answered else { return self.poll_stopped(cx) };
                    let share = self.shared.shares.begin();
                    self.phase = Phase::Sending(self.to.respond(response, self.alive.clone(), share));
                }
                Phase::Sending(outgoing) => {
                    let sent = outgoing.poll_sent(&mut self.to, cx);
                    if sent.is_pending() {
                        return self.poll_stopped(cx);
                    }
                    return sent;
                }
                Phase::Over => return Poll::Ready(Ok(())),
            }
        }
    }

    /// Whoever has asked may have given up.
    fn poll_stopped(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Ended>> {
        let stopped = self.stopped.get_or_insert_with(|| {
            let stopped = self.to.stream.stopped();
            Box::pin(async move { drop(stopped.await) })
        });
        stopped.as_mut().poll(cx).map(|()| Err(Ended::Reset(Code::REQUEST_CANCELLED)))
    }

    /// The head has to come within its time.
    fn poll_late(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Ended>> {
        let timeout = self.shared.settings.head_timeout;
        let late = self.late.get_or_insert_with(|| Box::pin(tokio::time::sleep(timeout)));
        late.as_mut().poll(cx).map(|()| Err(Ended::Reset(Code::REQUEST_INCOMPLETE)))
    }

    /// The first frame of a stream is a request's head.
    fn head(&mut self, frame: Option<Frame>) -> Result<(), Ended> {
        let Phase::Head(mut stream) = std::mem::replace(&mut self.phase, Phase::Over) else { return Ok(()) };
        let settings = &self.shared.settings;
        let read = match frame {
            None => return Err(Ended::Reset(Code::REQUEST_INCOMPLETE)),
            Some(Frame::Whole(Kind::Headers, section)) => message::request(&section, settings.head * READ_BEYOND),
            Some(Frame::TooLong(Kind::Headers)) => Err(MessageError::Section(SectionError::TooLarge)),
            Some(_) => return Err(self.shared.broken(Code::FRAME_UNEXPECTED, "a request does not begin with its head")),
        };
        let mut request = match read {
            Ok(request) => request,
            Err(MessageError::Section(SectionError::TooLarge)) => {
                stream.stop(Code::NO_ERROR);
                let text = "431 Request Header Fields Too Large\n\nthe head of the request is too large\n";
                let mut response = Answered::new(ResponseBody::whole(Bytes::from_static(text.as_bytes())));
                *response.status_mut() = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
                self.phase = Phase::Answering(Answering::now(response));
                return Ok(());
            }
            Err(MessageError::Section(SectionError::Broken)) => {
                return Err(self.shared.broken(Code::DECOMPRESSION_FAILED, "a head cannot be read"));
            }
            Err(MessageError::Malformed(why)) => {
                tracing::debug!(why, "a malformed request");
                stream.stop(Code::MESSAGE_ERROR);
                return Err(Ended::Reset(Code::MESSAGE_ERROR));
            }
        };
        if stream.is_early() {
            request.extensions_mut().insert(EarlyData);
        }
        self.to.prioritise(request.headers());
        self.to.is_of_head = *request.method() == Method::HEAD;
        // Of these the cache has to know whether there is a body, which they have none of mostly.
        let mut has_to_be_known = matches!(*request.method(), Method::GET | Method::HEAD);
        let body = Received::new(stream, self.shared.connection.clone(), request.headers(), settings.head);
        // A body that is said to be empty is not read, so its bytes would not be seen.
        has_to_be_known |= body.size_hint().exact() == Some(0);
        self.phase = Phase::Body { asked: Box::new((request, body)), has_to_be_known };
        Ok(())
    }

    fn ask(&mut self, request: Request<Received>) {
        self.late = None;
        let interim = Interim::new(Arc::clone(&self.interim) as Arc<dyn TakesInterim>, 0);
        self.phase = Phase::Answering((self.shared.service)(request, interim));
    }
}

impl<S> Shared<S> {
    fn broken(&self, code: Code, why: &'static str) -> Ended {
        tracing::debug!(why, "a client broke HTTP/3");
        self.connection.close(code.into(), why.as_bytes());
        Ended::Gone
    }

    fn failed(&self, error: &ReceiveError) -> Ended {
        match error {
            ReceiveError::Lost(_) => Ended::Reset(Code::REQUEST_CANCELLED),
            ReceiveError::Malformed(_) => Ended::Reset(Code::MESSAGE_ERROR),
            ReceiveError::Broken(broken) => self.broken(broken.code, broken.why),
        }
    }
}

impl<S> Future for Exchange<S>
where
    S: Fn(Request<Received>, Interim) -> Answering<Answered>,
{
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let ended = ready!(self.poll_answered(cx));
        if let Err(Ended::Reset(code)) = ended {
            self.to.reset(code);
        }
        self.phase = Phase::Over;
        Poll::Ready(())
    }
}

/// A stream that is over takes no interim response any more, however long its request goes on.
impl<S> Drop for Exchange<S> {
    fn drop(&mut self) {
        self.interim.0.lock().over = true;
    }
}

/// The way to the client. What was not finished is reset: a body that breaks off must not look whole.
struct Sending {
    stream: SendStream,
    waiting: Vec<Bytes>,
    /// The response is to HEAD: its body is dropped.
    is_of_head: bool,
    over: bool,
    untaken: Untaken,
}

impl Sending {
    fn poll_written(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Ended>> {
        while !self.waiting.is_empty() {
            let Poll::Ready(written) = pin!(self.stream.write_chunks(&mut self.waiting)).poll(cx) else {
                return self.untaken.poll(cx).map(|()| Err(Ended::Reset(Code::REQUEST_CANCELLED)));
            };
            written?;
            self.waiting.retain(|bytes| !bytes.is_empty());
            self.untaken.taken();
        }
        Poll::Ready(Ok(()))
    }

    /// What else is on its way to this client waits for what is more urgent (RFC 9218).
    fn prioritise(&self, headers: &HeaderMap) {
        const USUAL: i32 = 3;
        let Some(value) = headers.get("priority").and_then(|v| v.to_str().ok()) else { return };
        let urgency = value.split(',').find_map(|p| p.trim().strip_prefix("u=")?.parse().ok()).filter(|u| (0..8).contains(u));
        if let Some(urgency) = urgency.filter(|u| *u != USUAL) {
            let _ = self.stream.set_priority(USUAL - urgency);
        }
    }

    fn respond(&mut self, response: Answered, alive: mpsc::Sender<Infallible>, share: Share) -> Outgoing {
        let (mut head, mut body) = response.into_parts();
        if self.is_of_head {
            body.leave_out();
        }
        self.untaken = body.untaken();
        let open = Arc::new(Open { in_flight: body.take_in_flight().map(Mutex::new), share, _alive: alive });
        let bodiless = body.is_end_stream();
        let length = body.size_hint().exact().filter(|_| !bodiless);
        if let Some(length) = length.filter(|_| !head.headers.contains_key(header::CONTENT_LENGTH)) {
            head.headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
        }
        self.waiting.push(Unacknowledged::hold(message::headers_frame(Some(head.status), &head.headers), &open));
        self.waiting.extend(length.map(data_head));
        Outgoing { body, open, left: length, over: bodiless }
    }

    fn finish(&mut self) {
        self.over = true;
        let _ = self.stream.finish();
    }

    fn reset(&mut self, code: Code) {
        self.over = true;
        let _ = self.stream.reset(code.into());
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        if !self.over {
            self.reset(Code::INTERNAL_ERROR);
        }
    }
}

impl Outgoing {
    fn poll_sent(&mut self, to: &mut Sending, cx: &mut Context<'_>) -> Poll<Result<(), Ended>> {
        loop {
            if !self.over && self.open.share.poll_room(cx).is_pending() {
                ready!(to.poll_written(cx))?;
                return Poll::Pending;
            }
            // The head goes out with the first piece, where that is there.
            let piece = if self.over { Poll::Ready(None) } else { Pin::new(&mut self.body).poll_frame(cx) };
            if let Some(in_flight) = &self.open.in_flight {
                in_flight.lock().waits_for_us(piece.is_pending());
            }
            match piece {
                Poll::Pending => {
                    ready!(to.poll_written(cx))?;
                    return Poll::Pending;
                }
                Poll::Ready(None) if self.left.unwrap_or(0) == 0 => {
                    self.over = true;
                    ready!(to.poll_written(cx))?;
                    to.finish();
                    return Poll::Ready(Ok(()));
                }
                Poll::Ready(Some(Ok(frame))) => self.add(frame, to)?,
                Poll::Ready(None | Some(Err(_))) => {
                    tracing::debug!("a body failed");
                    return Poll::Ready(Err(Ended::Reset(Code::INTERNAL_ERROR)));
                }
            }
            if self.over {
                continue;
            }
            // The next piece is asked for once this one is taken.
            ready!(to.poll_written(cx))?;
        }
    }

    fn add(&mut self, frame: http_body::Frame<Bytes>, to: &mut Sending) -> Result<(), Ended> {
        match frame.into_data() {
            Ok(data) => {
                match &mut self.left {
                    Some(left) => *left = left.checked_sub(data.len() as u64).ok_or(Ended::Reset(Code::INTERNAL_ERROR))?,
                    None if data.is_empty() => {}
                    None => to.waiting.push(data_head(data.len() as u64)),
                }
                to.waiting.push(Unacknowledged::hold(data, &self.open));
                self.over = self.body.is_end_stream();
            }
            Err(frame) => {
                if let Ok(trailers) = frame.into_trailers() {
                    to.waiting.push(Unacknowledged::hold(message::headers_frame(None, &trailers), &self.open));
                    self.over = true;
                }
            }
        }
        Ok(())
    }
}

/// Interim responses of one request, until its response has begun.
#[derive(Default)]
struct Interims(Mutex<InterimsState>);

#[derive(Default)]
struct InterimsState {
    waiting: Vec<Bytes>,
    count: u32,
    over: bool,
    waker: Option<Waker>,
}

impl Interims {
    /// `last`: the response itself is there.
    fn hand_over(&self, to: &mut Sending, cx: &Context<'_>, last: bool) {
        let mut state = self.0.lock();
        to.waiting.append(&mut state.waiting);
        state.over |= last;
        state.waker = (!last).then(|| cx.waker().clone());
    }
}

impl TakesInterim for Interims {
    fn take(&self, _: u64, status: StatusCode, headers: &HeaderMap) {
        let mut state = self.0.lock();
        if !state.over && state.count < MOST_INTERIM {
            state.count += 1;
            state.waiting.push(message::headers_frame(Some(status), headers));
            let waker = state.waker.take();
            drop(state);
            waker.into_iter().for_each(Waker::wake);
        }
    }
}
