//! A body on its way in.

use crate::client::Slot;
use bytes::Bytes;
use h2::RecvStream;
use http::{HeaderMap, header};
use http_body::{Body, Frame, SizeHint};
use std::cell::Cell;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use tokio::sync::oneshot;

/// What the peer sends after a head. A reset is an error, whatever its code: after it nobody knows whether the body was whole.
pub struct Received {
    from: RecvStream,
    data_is_over: bool,
    /// Set once the peer has sent the whole body.
    is_complete: Rc<Cell<bool>>,
    left: Option<u64>,
    /// Of a response: let go with it, what counts its request as open and what keeps the rest of it going.
    _exchange: Option<(Slot, Option<oneshot::Sender<()>>)>,
}

impl Received {
    pub(crate) fn new(from: RecvStream, headers: &HeaderMap) -> Self {
        let left = headers.get(header::CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse().ok());
        let is_complete = Rc::new(Cell::new(from.is_end_stream()));
        Self { from, data_is_over: false, is_complete, left, _exchange: None }
    }

    pub(crate) fn is_complete(&self) -> Rc<Cell<bool>> {
        Rc::clone(&self.is_complete)
    }

    pub(crate) fn of_exchange(mut self, slot: Slot, sending: Option<oneshot::Sender<()>>) -> Self {
        self._exchange = Some((slot, sending));
        self
    }
}

impl Drop for Received {
    fn drop(&mut self) {
        self.is_complete.set(self.from.is_end_stream());
    }
}

impl Body for Received {
    type Data = Bytes;
    type Error = h2::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        let this = &mut *self;
        if !this.data_is_over {
            if let Some(data) = ready!(this.from.poll_data(cx)).transpose()? {
                // It is taken: the peer may send as much again.
                let _ = this.from.flow_control().release_capacity(data.len());
                this.left = this.left.map(|left| left.saturating_sub(data.len() as u64));
                return Poll::Ready(Some(Ok(Frame::data(data))));
            }
            this.data_is_over = true;
            this.is_complete.set(true);
        }
        Poll::Ready(ready!(this.from.poll_trailers(cx))?.map(|trailers| Ok(Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.from.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        match self.left {
            _ if self.is_end_stream() => SizeHint::with_exact(0),
            Some(left) => SizeHint::with_exact(left),
            None => SizeHint::default(),
        }
    }
}
