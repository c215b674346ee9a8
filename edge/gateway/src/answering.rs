//! An answer that is there at once, or later: a memory hit makes no future, no box and no task.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};

pub enum Answering<T> {
    /// `None` once it has been taken.
    Now(Option<T>),
    Later(Pin<Box<dyn Future<Output = T>>>),
}

impl<T: Unpin + 'static> Answering<T> {
    pub fn now(answer: T) -> Self {
        Self::Now(Some(answer))
    }

    pub fn later(answer: impl Future<Output = T> + 'static) -> Self {
        Self::Later(Box::pin(answer))
    }

    /// What `f` makes of it, at once where it is there.
    pub fn then<U: Unpin + 'static>(self, f: impl FnOnce(T) -> U + 'static) -> Answering<U> {
        match self {
            Self::Now(answer) => Answering::Now(answer.map(f)),
            Self::Later(answer) => Answering::later(async move { f(answer.await) }),
        }
    }
}

impl<T: Unpin> Future for Answering<T> {
    type Output = T;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<T> {
        match self.get_mut() {
            // Polled after its end, it stays silent, as a future may.
            Self::Now(answer) => answer.take().map_or(Poll::Pending, Poll::Ready),
            Self::Later(answer) => answer.as_mut().poll(cx),
        }
    }
}
