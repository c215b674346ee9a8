//! Notices a client that takes nothing of a response while its other requests keep the connection alive.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::time::{Instant, Sleep};

/// The patience with one response that its client has to take.
#[derive(Debug)]
pub struct Untaken {
    most: Option<Duration>,
    /// Something was taken since the timer was set.
    taken: bool,
    timer: Option<Pin<Box<Sleep>>>,
}

impl Untaken {
    /// It ends between once and twice `most` after the client took something; never where that is `None`.
    #[must_use]
    pub fn new(most: Option<Duration>) -> Self {
        Self { most, taken: false, timer: None }
    }

    /// The client took all that there was.
    pub fn taken(&mut self) {
        self.taken = true;
    }

    /// While something waits for the client. Resolves if nothing has been taken for too long.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(most) = self.most else { return Poll::Pending };
        // A response that is taken as it comes needs none.
        let timer = self.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(most)));
        loop {
            ready!(timer.as_mut().poll(cx));
            if !std::mem::take(&mut self.taken) {
                return Poll::Ready(());
            }
            timer.as_mut().reset(Instant::now() + most);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;

    #[tokio::test(start_paused = true)]
    async fn only_a_client_that_takes_nothing_is_left() {
        let most = Duration::from_secs(60);
        let waits = |untaken: &mut Untaken, cx: &mut Context<'_>| untaken.poll(cx);
        let mut untaken = Untaken::new(Some(most));
        for pause in [1, 59, 600, 40, 3600] {
            let some = poll_fn(|cx| waits(&mut untaken, cx));
            let pause = Duration::from_secs(pause.min(59));
            assert!(tokio::time::timeout(pause, some).await.is_err());
            untaken.taken();
            // Upstream gives nothing.
            tokio::time::sleep(pause * 10).await;
        }
        let began = Instant::now();
        poll_fn(|cx| waits(&mut untaken, cx)).await;
        assert!((most..=most * 2).contains(&began.elapsed()), "{:?}", began.elapsed());
        let mut never = Untaken::new(None);
        assert!(tokio::time::timeout(most * 100, poll_fn(|cx| waits(&mut never, cx))).await.is_err());
    }
}
