//! Kept connections of one worker, per server: idle ones of HTTP/1.1, and ones of HTTP/2 that many requests share.
//!
//! A new HTTP/2 request uses a connection on which the server allows another stream, so slow readers do not block others.

use crate::connect::{Connection, Http1};
use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::net::IpAddr;
use std::rc::{Rc, Weak};
use std::time::Duration;
use tidegate_gateway::FetchError;
use tidegate_http2::Sender;
use tokio::sync::Mutex;
use tokio::time::Instant;

const MAX_IDLE: usize = 64;
/// Idle ones of HTTP/1.1 to all servers together. Those of HTTP/2 are bounded for each server.
const MAX_ALL_IDLE: usize = 1024;
/// Shorter than what servers commonly allow, so that they do not close just as a request is sent.
const IDLE_FOR: Duration = Duration::from_secs(30);
/// HTTP/2 connections to one server; beyond, requests wait for one another.
const MAX_SHARED: usize = 64;
/// An HTTP/2 connection without requests is closed after this time, and an unused server is forgotten.
const UNUSED_FOR: Duration = Duration::from_secs(300);
/// The same for a server that refuses HTTP/2.
const REFUSING_FOR: Duration = Duration::from_secs(24 * 3600);
/// The time between two sweeps.
const SWEPT_EVERY: Duration = Duration::from_secs(10);

/// A connection, and what decides for how long it may be kept.
#[derive(Clone, Copy, Debug)]
pub struct Made {
    pub at: Instant,
    pub to: IpAddr,
}

struct Idle {
    to: Http1,
    made: Made,
    since: Instant,
}

struct Shared {
    sender: Sender,
    made: Made,
    used: Instant,
}

struct Kept {
    h1: VecDeque<Idle>,
    h2: Vec<Shared>,
    used: Instant,
    /// The server spoke HTTP/2 last time: one connection is opened at a time, which all who wait then share.
    speaks_h2: bool,
    /// It said that it takes requests over HTTP/1.1 alone.
    refuses_h2: bool,
    opening: Rc<Opening>,
}

/// Held while a connection is opened; when and why that failed last.
pub type Opening = Mutex<Option<(Instant, FetchError)>>;

impl Default for Kept {
    fn default() -> Self {
        let (h1, h2) = (VecDeque::new(), Vec::new());
        Self { h1, h2, used: Instant::now(), speaks_h2: false, refuses_h2: false, opening: Rc::default() }
    }
}

impl Kept {
    /// Drops connections that are closed, or were idle for too long.
    fn sweep(&mut self, now: Instant) {
        self.h1.retain(|idle| !idle.to.sender.is_closed() && now.duration_since(idle.since) < IDLE_FOR);
        self.h2.retain_mut(|s| !s.sender.is_closed() && (!s.sender.is_idle() || now.duration_since(s.used) < UNUSED_FOR));
    }

    fn is_forgotten(&self, now: Instant) -> bool {
        // To learn once more that a server refuses HTTP/2 can cost a request.
        let unused_for = if self.refuses_h2 { REFUSING_FOR } else { UNUSED_FOR };
        self.h1.is_empty() && self.h2.is_empty() && Rc::strong_count(&self.opening) == 1 && now.duration_since(self.used) >= unused_for
    }
}

struct All<K> {
    kept: RefCell<HashMap<K, Kept>>,
    /// The number of idle HTTP/1.1 connections.
    idle: Cell<usize>,
    is_swept: Cell<bool>,
}

pub struct Pool<K>(Rc<All<K>>);

impl<K> Clone for Pool<K> {
    fn clone(&self) -> Self {
        Self(Rc::clone(&self.0))
    }
}

impl<K> All<K> {
    /// Closes the connection that was idle for longest, if there are as many as there may be.
    fn make_room(&self) {
        if self.idle.get() < MAX_ALL_IDLE {
            return;
        }
        let mut all = self.kept.borrow_mut();
        // The first of each is its oldest.
        let oldest = all.values_mut().filter(|kept| !kept.h1.is_empty()).min_by_key(|kept| kept.h1.front().map(|idle| idle.since));
        if let Some(kept) = oldest {
            kept.h1.pop_front();
            self.count(1, 0);
        }
    }

    /// One server had `before` idle connections, and has `after` now.
    fn count(&self, before: usize, after: usize) {
        self.idle.set((self.idle.get() + after).saturating_sub(before));
    }
}

/// As long as there is something to sweep.
async fn sweep<K: Hash + Eq>(pool: Weak<All<K>>) {
    loop {
        tokio::time::sleep(SWEPT_EVERY).await;
        let Some(pool) = pool.upgrade() else { return };
        let (mut all, now) = (pool.kept.borrow_mut(), Instant::now());
        all.retain(|_, kept| {
            kept.sweep(now);
            !kept.is_forgotten(now)
        });
        pool.idle.set(all.values().map(|kept| kept.h1.len()).sum());
        if all.is_empty() {
            pool.is_swept.set(false);
            return;
        }
    }
}

impl<K: Hash + Eq + Clone + 'static> Pool<K> {
    #[must_use]
    pub fn new() -> Self {
        Self(Rc::new(All { kept: RefCell::default(), idle: Cell::new(0), is_swept: Cell::new(false) }))
    }

    /// A connection that is still good, the most recently used first. `is_good`: whether one that was made so may be used on.
    #[must_use]
    pub fn take(&self, key: &K, is_good: impl Fn(&Made) -> bool) -> Option<(Connection, Made)> {
        let mut all = self.0.kept.borrow_mut();
        let kept = all.get_mut(key)?;
        let now = Instant::now();
        kept.used = now;
        // Requests in progress on a removed connection still complete.
        kept.h2.retain_mut(|s| !s.sender.is_closed() && is_good(&s.made));
        let is_full = kept.h2.len() >= MAX_SHARED;
        let with_room = kept.h2.iter().position(|s| s.sender.has_room());
        let least_loaded = || (0..kept.h2.len()).filter(|_| is_full).min_by_key(|at| kept.h2[*at].sender.load());
        if let Some(shared) = with_room.or_else(least_loaded).and_then(|at| kept.h2.get_mut(at)) {
            shared.used = now;
            return Some((Connection::H2(shared.sender.clone()), shared.made));
        }
        let before = kept.h1.len();
        kept.h1.retain(|idle| !idle.to.sender.is_closed() && now.duration_since(idle.since) < IDLE_FOR && is_good(&idle.made));
        let idle = kept.h1.pop_back();
        self.0.count(before, kept.h1.len());
        idle.map(|idle| (Connection::H1(idle.to), idle.made))
    }

    fn kept<T>(&self, key: &K, f: impl FnOnce(&mut Kept) -> T) -> T {
        if !self.0.is_swept.replace(true) {
            tokio::task::spawn_local(sweep(Rc::downgrade(&self.0)));
        }
        let mut all = self.0.kept.borrow_mut();
        let kept = all.entry(key.clone()).or_default();
        kept.used = Instant::now();
        let before = kept.h1.len();
        let out = f(kept);
        self.0.count(before, kept.h1.len());
        out
    }

    /// The lock for opening a connection to a server that speaks HTTP/2.
    #[must_use]
    pub fn opening(&self, key: &K) -> Option<Rc<Opening>> {
        self.kept(key, |k| k.speaks_h2.then(|| Rc::clone(&k.opening)))
    }

    /// An HTTP/2 connection that was just opened, and whose server has not said yet how many requests it takes.
    #[must_use]
    pub fn unheard(&self, key: &K) -> Option<Sender> {
        self.kept(key, |k| {
            k.h2.retain_mut(|s| !s.sender.is_closed());
            k.h2.iter().map(|s| &s.sender).find(|s| !s.is_heard()).cloned()
        })
    }

    /// Lets other requests use a connection, unless there are enough. Then it ends with the request that opened it.
    pub fn share(&self, key: &K, sender: &Sender, made: Made) {
        self.kept(key, |k| {
            k.speaks_h2 = true;
            if k.h2.len() < MAX_SHARED {
                k.h2.push(Shared { sender: sender.clone(), made, used: Instant::now() });
            }
        });
    }

    /// One of its kept connections of HTTP/1.1 turned out to be dead: the others are as old, and may be so too.
    pub fn distrust(&self, key: &K) {
        self.kept(key, |k| k.h1.clear());
    }

    /// It takes requests over HTTP/1.1 alone, whatever it agreed to.
    pub fn note_refuses_h2(&self, key: &K) {
        self.kept(key, |k| {
            (k.refuses_h2, k.speaks_h2) = (true, false);
            k.h2.clear();
        });
    }

    #[must_use]
    pub fn refuses_h2(&self, key: &K) -> bool {
        self.0.kept.borrow().get(key).is_some_and(|k| k.refuses_h2)
    }

    /// The server speaks HTTP/1.1.
    pub fn shares_none(&self, key: &K) {
        self.kept(key, |k| k.speaks_h2 = false);
    }

    /// Keeps an HTTP/1.1 connection once it is ready for its next request.
    pub fn keep(&self, key: K, mut to: Http1, made: Made) {
        let pool = self.clone();
        tokio::task::spawn_local(async move {
            if to.sender.ready().await.is_ok() {
                pool.0.make_room();
                pool.kept(&key, |k| {
                    if k.h1.len() >= MAX_IDLE {
                        k.h1.pop_front();
                    }
                    k.h1.push_back(Idle { to, made, since: Instant::now() });
                });
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::connect;
    use std::net::Ipv4Addr;
    use tokio::io::AsyncReadExt;

    #[test]
    fn what_nobody_asks_for_any_more_is_closed_and_forgotten() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
        tokio::task::LocalSet::new().block_on(&runtime, async {
            let pool = Pool::<&str>::new();
            let (ours, mut theirs) = tokio::io::duplex(1024);
            let Ok(Connection::H1(to)) = connect::h1(ours, false).await else { unreachable!() };
            let began = Instant::now();
            pool.keep("a", to, Made { at: began, to: Ipv4Addr::LOCALHOST.into() });
            assert_eq!(theirs.read(&mut [0]).await.unwrap(), 0, "it is closed");
            let after = began.elapsed();
            assert!(after >= IDLE_FOR && after <= IDLE_FOR + SWEPT_EVERY, "{after:?}");
            assert_eq!(pool.0.idle.get(), 0);
            while pool.0.is_swept.get() {
                tokio::time::sleep(SWEPT_EVERY).await;
            }
            assert!(pool.0.kept.borrow().is_empty() && began.elapsed() >= UNUSED_FOR);
        });
    }
}
