//! Kept connections of one worker, per server: idle ones of HTTP/1.1, and ones of HTTP/2 that many requests share.
//!
//! Requests of HTTP/2 get a connection on which the server takes one more: slow readers of one hold up nobody else.

use crate::connect::{Connection, Http1};
use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::net::IpAddr;
use std::rc::Rc;
use std::time::Duration;
use tidegate_http2::Sender;
use tokio::sync::Mutex;
use tokio::time::Instant;

const MAX_IDLE: usize = 64;
/// Shorter than what servers commonly allow, so that they do not close just as a request is sent.
const IDLE_FOR: Duration = Duration::from_secs(30);
/// HTTP/2 connections to one server; beyond, requests wait for one another.
const MAX_SHARED: usize = 64;

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

#[derive(Default)]
struct Kept {
    h1: VecDeque<Idle>,
    h2: Vec<(Sender, Made)>,
    /// The server spoke HTTP/2 last time: one connection is opened at a time, which all who wait then share.
    speaks_h2: bool,
    /// It said that it takes requests over HTTP/1.1 alone.
    refuses_h2: bool,
    opening: Rc<Mutex<()>>,
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

    /// A connection that is still good, the most recently used first. `is_good`: whether one that was made so may be used on.
    #[must_use]
    pub fn take(&self, key: &K, is_good: impl Fn(&Made) -> bool) -> Option<(Connection, Made)> {
        let mut all = self.0.borrow_mut();
        let kept = all.get_mut(key)?;
        // Requests that are under way on one that is let go here come to their end.
        kept.h2.retain(|(sender, made)| !sender.is_closed() && is_good(made));
        let full = kept.h2.len() >= MAX_SHARED;
        if let Some((sender, made)) = kept.h2.iter().find(|(s, _)| s.has_room()).or_else(|| kept.h2.first().filter(|_| full)) {
            return Some((Connection::H2(sender.clone()), *made));
        }
        let now = Instant::now();
        kept.h1.retain(|idle| !idle.to.sender.is_closed() && now.duration_since(idle.since) < IDLE_FOR && is_good(&idle.made));
        kept.h1.pop_back().map(|idle| (Connection::H1(idle.to), idle.made))
    }

    fn kept<T>(&self, key: &K, f: impl FnOnce(&mut Kept) -> T) -> T {
        f(self.0.borrow_mut().entry(key.clone()).or_default())
    }

    /// What has to be held while a connection is opened to a server that speaks HTTP/2.
    #[must_use]
    pub fn opening(&self, key: &K) -> Option<Rc<Mutex<()>>> {
        self.kept(key, |k| k.speaks_h2.then(|| Rc::clone(&k.opening)))
    }

    pub fn share(&self, key: &K, sender: &Sender, made: Made) {
        self.kept(key, |k| {
            k.speaks_h2 = true;
            k.h2.push((sender.clone(), made));
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
        self.0.borrow().get(key).is_some_and(|k| k.refuses_h2)
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
