//! A response body on its way in: bounded in idle time, and telling its connection when it is over.

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;
use tidegate_gateway::{FetchError, Progress, Turn};
use tokio::time::{Instant, Sleep};

/// Called once, with whether the body was read to its end.
pub type Over = Box<dyn FnOnce(bool)>;

pub struct TimedBody<B> {
    inner: B,
    idle: Duration,
    /// Progress of the request's body, if it is still being sent: upstream may wait for it.
    progress: Option<Rc<Progress>>,
    sleep: Option<Pin<Box<Sleep>>>,
    over: Option<Over>,
}

impl<B: Body> TimedBody<B> {
    pub fn new(inner: B, idle: Duration, progress: Option<Rc<Progress>>, over: Over) -> Self {
        let mut body = Self { inner, idle, progress, sleep: None, over: Some(over) };
        if body.inner.is_end_stream() {
            body.finish(true);
        }
        body
    }
}

impl<B> TimedBody<B> {
    fn finish(&mut self, whole: bool) {
        if let Some(over) = self.over.take() {
            over(whole);
        }
    }
}

impl<B> Drop for TimedBody<B> {
    fn drop(&mut self) {
        self.finish(false);
    }
}

impl<B> Body for TimedBody<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    type Data = Bytes;
    type Error = FetchError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, FetchError>>> {
        let this = &mut *self;
        match Pin::new(&mut this.inner).poll_frame(cx) {
            Poll::Ready(frame) => {
                this.sleep = None;
                Poll::Ready(match frame {
                    Some(Ok(frame)) => {
                        if this.inner.is_end_stream() {
                            this.finish(true);
                        }
                        Some(Ok(frame))
                    }
                    Some(Err(error)) => {
                        tracing::debug!(%error, "a response body broke off");
                        this.finish(false);
                        Some(Err(FetchError::Broken))
                    }
                    None => {
                        this.finish(true);
                        None
                    }
                })
            }
            Poll::Pending => {
                let idle = this.idle;
                let sleep = this.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(Instant::now() + idle)));
                std::task::ready!(sleep.as_mut().poll(cx));
                if this.progress.as_ref().is_some_and(|p| p.turn() == Turn::Client) {
                    sleep.as_mut().reset(Instant::now() + idle);
                    let _ = sleep.as_mut().poll(cx);
                    return Poll::Pending;
                }
                this.finish(false);
                Poll::Ready(Some(Err(FetchError::Timeout)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}
