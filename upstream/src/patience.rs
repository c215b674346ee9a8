//! How long upstream may take. Time is charged to whom it belongs: while the client owes more of a request's body, no time of
//! upstream's runs.

use std::future::Future;
use std::pin::pin;
use std::time::Duration;
use tidegate_control_types::planted::Bug;
use tidegate_gateway::{FetchError, Progress, Turn, is_stream};

/// A body of events, or of messages of a call, may be quiet for so long.
const STREAM_IDLE: Duration = Duration::from_secs(3600);

/// The time limits of one request.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// Time from the request's last byte to the response's first byte.
    pub first_byte: Duration,
    /// Without upstream taking any of a request's body.
    pub stall: Duration,
}

impl Patience {
    /// Waits for the head of the response to a request that is being sent.
    ///
    /// # Errors
    /// Upstream took too long.
    pub async fn wait<F: Future>(self, sending: F, progress: Option<&Progress>) -> Result<F::Output, FetchError> {
        let mut sending = pin!(sending);
        let Some(progress) = progress else {
            return tokio::time::timeout(self.first_byte, sending).await.map_err(|_| FetchError::Timeout);
        };
        let begun = tokio::time::Instant::now();
        loop {
            let (turn, steps) = (progress.turn(), progress.steps());
            let late = async {
                match turn {
                    Turn::Client if Bug::UploadsOnTheClock.is_planted() => {
                        tokio::time::sleep_until(begun + self.first_byte).await;
                        FetchError::Timeout
                    }
                    Turn::Client => std::future::pending().await,
                    Turn::Upstream => {
                        tokio::time::sleep(self.stall).await;
                        FetchError::Stalled
                    }
                    Turn::Answer => {
                        tokio::time::sleep(self.first_byte).await;
                        FetchError::Timeout
                    }
                }
            };
            tokio::select! {
                biased;
                sent = &mut sending => return Ok(sent),
                () = progress.stepped(steps) => {}
                error = late => return Err(error),
            }
        }
    }
}

/// How long a body with this head may be quiet.
#[must_use]
pub fn idle(headers: &http::HeaderMap, idle: Duration) -> Duration {
    if is_stream(headers) { idle.max(STREAM_IDLE) } else { idle }
}

/// The time to a response's first byte: a call (gRPC, which is always a POST) may answer with its first message only.
#[must_use]
pub fn first_byte<B>(request: &http::Request<B>, first_byte: Duration) -> Duration {
    if *request.method() == http::Method::POST { idle(request.headers(), first_byte) } else { first_byte }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use http_body::{Body, Frame};
    use std::pin::Pin;
    use std::task::{Context, Poll};
    use tidegate_gateway::RequestBody;
    use tokio::sync::mpsc;

    struct Fed(mpsc::UnboundedReceiver<Bytes>);

    impl Body for Fed {
        type Data = Bytes;
        type Error = std::convert::Infallible;

        fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
            self.0.poll_recv(cx).map(|data| data.map(|d| Ok(Frame::data(d))))
        }
    }

    /// Error and time in seconds of a request to a silent upstream, which reads the whole body or none of it. The client sends one byte
    /// every ten seconds, `bytes` times.
    fn wait(bytes: u32, reads: bool) -> (FetchError, u64) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        tokio::task::LocalSet::new().block_on(&runtime, async {
            let (feed, fed) = mpsc::unbounded_channel();
            tokio::task::spawn_local(async move {
                for _ in 0..bytes {
                    tokio::time::sleep(Duration::from_secs(10)).await;
                    feed.send(Bytes::from_static(b"x")).unwrap();
                }
            });
            let mut body = RequestBody::of(Fed(fed), u64::MAX);
            let progress = body.progress().unwrap();
            let sending = async {
                while reads && std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await.is_some() {}
                std::future::pending::<()>().await;
            };
            let begun = tokio::time::Instant::now();
            let patience = Patience { first_byte: Duration::from_secs(5), stall: Duration::from_secs(3) };
            let error = patience.wait(sending, Some(&progress)).await.unwrap_err();
            (error, begun.elapsed().as_secs())
        })
    }

    #[test]
    fn time_runs_for_whom_it_belongs_to() {
        assert_eq!(wait(30, true), (FetchError::Timeout, 305), "from the last byte of the upload");
        assert_eq!(wait(30, false), (FetchError::Stalled, 3));
    }
}
