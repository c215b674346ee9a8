//! Kept connections of one worker: idle HTTP/1.1 ones, and shared HTTP/2 ones, per server.

use crate::connect::Connection;
use hyper::client::conn::http1;
use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::rc::Rc;
use std::time::Duration;
use tidegate_gateway::RequestBody;
use tokio::time::Instant;

const MOST_IDLE: usize = 64;
/// Shorter than what servers commonly allow, so that they do not close just as a request is sent.
const IDLE_FOR: Duration = Duration::from_secs(30);

struct Kept {
    h1: VecDeque<(http1::SendRequest<RequestBody>, Instant)>,
    h2: Option<tidegate_http2::Sender>,
}

pub struct Pool<K>(Rc<RefCell<HashMap<K, Kept>>>);

impl<K> Clone for Pool<K> {
    fn clone(&self) -> Self {
        Self(Rc::clone(&self.0))
    }
}

impl<K: Hash + Eq + Clone + 'static> Pool<K> {
    #[must_use]
    pub fn new() -> Self {
        Self(Rc::default())
    }

    /// A connection that is still good, the most recently used first.
    #[must_use]
    pub fn take(&self, key: &K) -> Option<Connection> {
        let mut all = self.0.borrow_mut();
        let kept = all.get_mut(key)?;
        if let Some(sender) = kept.h2.as_ref().filter(|s| !s.is_closed()) {
            return Some(Connection::H2(sender.clone()));
        }
        kept.h2 = None;
        let now = Instant::now();
        kept.h1.retain(|(sender, since)| !sender.is_closed() && now.duration_since(*since) < IDLE_FOR);
        kept.h1.pop_back().map(|(sender, _)| Connection::H1(sender))
    }

    fn kept<T>(&self, key: &K, f: impl FnOnce(&mut Kept) -> T) -> T {
        let mut all = self.0.borrow_mut();
        f(all.entry(key.clone()).or_insert_with(|| Kept { h1: VecDeque::new(), h2: None }))
    }

    pub fn share(&self, key: &K, sender: &tidegate_http2::Sender) {
        self.kept(key, |k| k.h2 = Some(sender.clone()));
    }

    /// Keeps an HTTP/1.1 connection once it is ready for its next request.
    pub fn keep(&self, key: K, mut sender: http1::SendRequest<RequestBody>) {
        let pool = self.clone();
        tokio::task::spawn_local(async move {
            if sender.ready().await.is_ok() {
                pool.kept(&key, |k| {
                    if k.h1.len() >= MOST_IDLE {
                        k.h1.pop_front();
                    }
                    k.h1.push_back((sender, Instant::now()));
                });
            }
        });
    }
}
