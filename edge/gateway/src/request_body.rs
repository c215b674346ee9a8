//! The body of a client's request on its way to upstream, and how it comes on.

use crate::fetch_error::FetchError;
use crate::fields;
use crate::interim::Interim;
use bytes::Bytes;
use http::Method;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use std::cell::{Cell, RefCell};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::time::Sleep;

/// The side that has to act next while a request's body is sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Turn {
    /// The client's, to send more of it.
    Client,
    /// Upstream has to take the bytes that are ready.
    #[default]
    Upstream,
    /// Upstream's, to answer: all of it was handed over, or given up.
    Answer,
}

/// Progress of a request's body. The clock of the upstream request reads it.
#[derive(Debug, Default)]
pub struct Progress {
    turn: Cell<Turn>,
    /// Goes up with each step.
    steps: Cell<u64>,
    client_fault: Cell<Option<FetchError>>,
    /// The client had to act next when the body was given up.
    was_owed: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

impl Progress {
    #[must_use]
    pub fn turn(&self) -> Turn {
        self.turn.get()
    }

    /// Why the body did not come whole, which is the client's doing.
    #[must_use]
    pub fn client_fault(&self) -> Option<FetchError> {
        self.client_fault.get()
    }

    /// Whether the client has to send more of the body, or had to when upstream ended the request.
    #[must_use]
    pub fn is_owed(&self) -> bool {
        self.turn() == Turn::Client || self.was_owed.get()
    }

    fn step(&self, turn: Turn) {
        self.turn.set(turn);
        self.steps.set(self.steps.get() + 1);
        let waker = self.waker.borrow_mut().take();
        waker.into_iter().for_each(Waker::wake);
    }

    /// The steps so far.
    #[must_use]
    pub fn steps(&self) -> u64 {
        self.steps.get()
    }

    /// Resolves once there are more than `since` steps. For one waiter at a time.
    pub async fn stepped(&self, since: u64) {
        std::future::poll_fn(|cx| {
            if self.steps.get() != since {
                return Poll::Ready(());
            }
            *self.waker.borrow_mut() = Some(cx.waker().clone());
            Poll::Pending
        })
        .await;
    }
}

/// The body of a request to upstream.
pub enum RequestBody {
    Empty,
    Client {
        body: ClientBody,
        /// Bytes that may still come.
        left: u64,
        progress: Rc<Progress>,
        /// A client that waits for 100 Continue before it sends this body.
        waits: Option<Interim>,
        /// Maximum time without data from the client while upstream wants some, and since when it lasts.
        silence: Option<(Duration, Option<Pin<Box<Sleep>>>)>,
    },
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;
type ClientBody = Pin<Box<dyn Body<Data = Bytes, Error = BoxError>>>;

/// Why a request's body did not come whole.
#[derive(Debug, thiserror::Error)]
pub enum RequestBodyError {
    #[error("the client broke off: {0}")]
    Client(#[from] BoxError),
    #[error("the client sent nothing more of its request in time")]
    Silent,
    #[error("the body of the request is larger than this node allows")]
    TooLarge,
}

impl RequestBody {
    /// The body of a client's request, up to `most` bytes.
    #[must_use]
    pub fn of<B>(body: B, most: u64) -> Self
    where
        B: Body<Data = Bytes> + 'static,
        B::Error: Into<BoxError>,
    {
        if body.is_end_stream() {
            Self::Empty
        } else {
            Self::Client { body: Box::pin(body.map_err(Into::into)), left: most, progress: Rc::default(), waits: None, silence: None }
        }
    }
}

impl RequestBody {
    /// Removes the limit, for a tunnel.
    #[must_use]
    pub fn unlimited(mut self) -> Self {
        if let Self::Client { left, .. } = &mut self {
            *left = u64::MAX;
        }
        self
    }

    /// Limits the time without data from the client, for transports that do not do this themselves.
    #[must_use]
    pub fn never_silent_for(mut self, most: Duration) -> Self {
        if let Self::Client { silence, .. } = &mut self {
            *silence = Some((most, None));
        }
        self
    }

    /// The client waits for 100 Continue, which it gets once upstream wants the body.
    #[must_use]
    pub fn expected(mut self, by: Option<Interim>) -> Self {
        if let Self::Client { waits, .. } = &mut self {
            *waits = by;
        }
        self
    }

    /// The progress of this body, if it comes from a client.
    #[must_use]
    pub fn progress(&self) -> Option<Rc<Progress>> {
        if let Self::Client { progress, .. } = self { Some(Rc::clone(progress)) } else { None }
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        if let Self::Client { progress, .. } = self {
            progress.was_owed.set(progress.turn() == Turn::Client);
            progress.step(Turn::Answer);
        }
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = RequestBodyError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, RequestBodyError>>> {
        let Self::Client { body, left, progress, waits, silence } = &mut *self else { return Poll::Ready(None) };
        let frame = match body.as_mut().poll_frame(cx) {
            Poll::Ready(frame) => {
                if let Some((_, lasts)) = silence {
                    *lasts = None;
                }
                frame.transpose()
            }
            Poll::Pending => {
                if let Some(client) = waits.take() {
                    client.go_on();
                }
                if progress.turn() != Turn::Client {
                    progress.step(Turn::Client);
                }
                if let Some((most, lasts)) = silence {
                    let late = lasts.get_or_insert_with(|| Box::pin(tokio::time::sleep(*most)));
                    if late.as_mut().poll(cx).is_ready() {
                        progress.client_fault.set(Some(FetchError::Client));
                        return Poll::Ready(Some(Err(RequestBodyError::Silent)));
                    }
                }
                return Poll::Pending;
            }
        };
        let frame = frame.inspect_err(|_| progress.client_fault.set(Some(FetchError::Client)))?;
        let length = frame.as_ref().and_then(Frame::data_ref).map_or(0, |data| data.len() as u64);
        match left.checked_sub(length) {
            Some(rest) => *left = rest,
            None => {
                progress.client_fault.set(Some(FetchError::TooLarge));
                return Poll::Ready(Some(Err(RequestBodyError::TooLarge)));
            }
        }
        progress.step(if frame.is_none() || body.is_end_stream() { Turn::Answer } else { Turn::Upstream });
        Poll::Ready(frame.map(|frame| {
            Ok(match frame.into_trailers() {
                Ok(mut trailers) => {
                    fields::strip_of_trailers(&mut trailers);
                    fields::strip_reflected(&mut trailers, &Method::GET);
                    Frame::trailers(trailers)
                }
                Err(data) => data,
            })
        }))
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Empty => true,
            Self::Client { body, .. } => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Empty => SizeHint::with_exact(0),
            Self::Client { body, .. } => body.size_hint(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A client that has sent its head and nothing else.
    struct Silent;

    impl Body for Silent {
        type Data = Bytes;
        type Error = std::convert::Infallible;

        fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
            Poll::Pending
        }
    }

    #[test]
    fn a_silent_client_is_not_waited_for() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        runtime.block_on(async {
            let began = tokio::time::Instant::now();
            let mut body = RequestBody::of(Silent, 10).never_silent_for(Duration::from_secs(30));
            assert!(matches!(body.frame().await, Some(Err(RequestBodyError::Silent))));
            assert_eq!(began.elapsed().as_secs(), 30);
            assert_eq!(body.progress().and_then(|p| p.client_fault()), Some(FetchError::Client));
        });
    }
}
