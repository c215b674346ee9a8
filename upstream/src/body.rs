//! A response body on its way in: bounded in idle time, and telling its connection when it is over.

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
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
    /// The end of the idle time, and the steps of the request's body when that time began.
    late: Option<(Pin<Box<Sleep>>, u64)>,
    over: Option<Over>,
}

impl<B: Body> TimedBody<B> {
    pub fn new(inner: B, idle: Duration, progress: Option<Rc<Progress>>, over: Over) -> Self {
        let mut body = Self { inner, idle, progress, late: None, over: Some(over) };
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
    B::Error: std::error::Error + 'static,
{
    type Data = Bytes;
    type Error = FetchError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, FetchError>>> {
        let this = &mut *self;
        match Pin::new(&mut this.inner).poll_frame(cx) {
            Poll::Ready(frame) => {
                this.late = None;
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
                        Some(Err(cause(&error)))
                    }
                    None => {
                        this.finish(true);
                        None
                    }
                })
            }
            Poll::Pending => {
                let idle = this.idle;
                let steps = this.progress.as_ref().map_or(0, |p| p.steps());
                let (late, since) = this.late.get_or_insert_with(|| (Box::pin(tokio::time::sleep(idle)), steps));
                ready!(late.as_mut().poll(cx));
                // While the request still comes on, or waits for its client, upstream may wait for it too.
                if *since != steps || this.progress.as_ref().is_some_and(|p| p.turn() == Turn::Client) {
                    *since = steps;
                    late.as_mut().reset(Instant::now() + idle);
                    let _ = late.as_mut().poll(cx);
                    return Poll::Pending;
                }
                this.finish(false);
                Poll::Ready(Some(Err(FetchError::Idle)))
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

/// hyper reports an invalid chunk as an IO error of these kinds, and a connection that ended early as one of another kind.
fn cause(error: &(dyn std::error::Error + 'static)) -> FetchError {
    let mut causes = std::iter::successors(Some(error), |e| e.source());
    let is_invalid = |e: &std::io::Error| matches!(e.kind(), std::io::ErrorKind::InvalidInput | std::io::ErrorKind::InvalidData);
    if causes.any(|e| e.downcast_ref().is_some_and(is_invalid)) { FetchError::Chunk } else { FetchError::Broken }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::connect::{self, Connection};
    use http_body_util::BodyExt;
    use tidegate_gateway::RequestBody;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    /// A body of which nothing comes, or a client that sends a byte every second.
    struct Fed(Option<tokio::time::Interval>);

    impl Body for Fed {
        type Data = Bytes;
        type Error = std::io::Error;

        fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
            match &mut self.0 {
                Some(ticks) => ticks.poll_tick(cx).map(|_| Some(Ok(Frame::data(Bytes::from_static(b"x"))))),
                None => Poll::Pending,
            }
        }
    }

    /// When an idle time of 5 s ends a response of which nothing comes. Upstream takes `bytes` of the request's body meanwhile, which come
    /// one a second.
    fn ends_after(bytes: u32) -> u64 {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        tokio::task::LocalSet::new().block_on(&runtime, async {
            let ticks = tokio::time::interval_at(Instant::now() + Duration::from_secs(1), Duration::from_secs(1));
            let mut request = RequestBody::of(Fed(Some(ticks)), u64::MAX);
            let response = TimedBody::new(Fed(None), Duration::from_secs(5), request.progress(), Box::new(|_| ()));
            let begun = Instant::now();
            tokio::task::spawn_local(async move {
                for _ in 0..bytes {
                    request.frame().await;
                }
                // Upstream stops reading, although the client has more data.
                std::future::pending::<()>().await;
            });
            assert_eq!(response.collect().await.unwrap_err(), FetchError::Idle);
            begun.elapsed().as_secs()
        })
    }

    #[test]
    fn the_idle_time_of_a_response_begins_anew_while_its_request_comes_on() {
        assert_eq!(ends_after(0), 5);
        assert_eq!(ends_after(32), 40);
    }

    #[test]
    fn an_invalid_chunk_is_told_from_a_connection_that_ended() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        tokio::task::LocalSet::new().block_on(&runtime, async {
            for (rest, want) in
                [("zz\r\nhalf\r\n", FetchError::Chunk), ("ffffffffffffffffff\r\n", FetchError::Chunk), ("4\r\nha", FetchError::Broken)]
            {
                let (ours, mut theirs) = tokio::io::duplex(1024);
                let Ok(Connection::H1(mut to)) = connect::h1(ours, false).await else { unreachable!() };
                let response = format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{rest}");
                let request = http::Request::get("/").header("host", "h").body(RequestBody::Empty).unwrap();
                let answer = async {
                    theirs.read_exact(&mut [0; 16]).await.unwrap();
                    theirs.write_all(response.as_bytes()).await.unwrap();
                    theirs.shutdown().await.unwrap();
                };
                let (answered, ()) = tokio::join!(to.sender.send_request(request), answer);
                let body = answered.unwrap().into_body();
                let body = TimedBody::new(body, Duration::from_secs(9), None, Box::new(|_| ()));
                assert_eq!(body.collect().await.unwrap_err(), want, "{rest:?}");
            }
        });
    }
}
