//! A body on its way out, as fast as the peer's windows allow.

use bytes::Bytes;
use h2::{Reason, SendStream};
use http_body::Body;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tidegate_gateway::Untaken;

/// Sends a body to its end, or resets the stream where the body fails. It ends early where the peer has reset the stream.
pub struct Pipe<B> {
    body: B,
    to: SendStream<Bytes>,
    /// Waits for a window, with whether it is the last.
    held: Option<(Bytes, bool)>,
    /// What the peer is told where the body fails.
    failure: Reason,
    untaken: Untaken,
}

impl<B> Pipe<B> {
    pub fn new(body: B, to: SendStream<Bytes>, failure: Reason, untaken: Untaken) -> Self {
        Self { body, to, held: None, failure, untaken }
    }

    /// The stream, once the body is over.
    pub fn into_stream(self) -> SendStream<Bytes> {
        self.to
    }

    pub fn reset(&mut self, reason: Reason) {
        self.to.send_reset(reason);
    }
}

impl<B> Pipe<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    fn poll_sent(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), h2::Error>> {
        loop {
            if let Poll::Ready(reset) = self.to.poll_reset(cx) {
                return Poll::Ready(reset.map(|_| ()));
            }
            if let Some((data, last)) = self.held.take() {
                while self.to.capacity() == 0 {
                    match self.to.poll_capacity(cx) {
                        Poll::Ready(Some(Ok(_))) => {}
                        Poll::Ready(Some(Err(e))) => return Poll::Ready(Err(e)),
                        Poll::Ready(None) => return Poll::Ready(Ok(())),
                        Poll::Pending => {
                            self.held = Some((data, last));
                            ready!(self.untaken.poll(cx));
                            tracing::debug!("a peer takes nothing of a body");
                            self.to.send_reset(Reason::CANCEL);
                            return Poll::Ready(Ok(()));
                        }
                    }
                }
                self.untaken.taken();
                self.to.send_data(data, last)?;
                if last {
                    return Poll::Ready(Ok(()));
                }
                continue;
            }
            // A window is asked for only once there is something to send: it is taken from the connection's other streams.
            match ready!(Pin::new(&mut self.body).poll_frame(cx)) {
                None => return Poll::Ready(self.to.send_data(Bytes::new(), true)),
                Some(Err(error)) => {
                    tracing::debug!(%error, "a body failed");
                    self.to.send_reset(self.failure);
                    return Poll::Ready(Ok(()));
                }
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) if data.is_empty() => {}
                    Ok(data) => {
                        self.to.reserve_capacity(1);
                        self.held = Some((data, self.body.is_end_stream()));
                    }
                    Err(frame) => {
                        if let Ok(trailers) = frame.into_trailers() {
                            self.to.reserve_capacity(0);
                            return Poll::Ready(self.to.send_trailers(trailers));
                        }
                    }
                },
            }
        }
    }
}

impl<B> Future for Pipe<B>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: std::fmt::Display,
{
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.poll_sent(cx).map(|sent| {
            if let Err(error) = sent {
                tracing::debug!(%error, "a stream ended");
            }
        })
    }
}
