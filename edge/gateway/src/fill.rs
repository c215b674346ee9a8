//! Fills: one fetch that any number of requests share while it grows.
//!
//! A fill goes `Waiting -> Head -> Done` or `Failed`, or `Waiting -> Stored` (a 304 confirmed what was stored), or
//! `Waiting -> Unshared` (the response is not storable: every waiter goes its own way). It never goes back. A fill that
//! fails fails every reader, and nothing of it is kept.
//!
//! Invariants: `chunks` are [`CHUNK`] bytes each, and the first `released` of a body are not among them any more; after `Done` it
//! does not grow. `wakers` wait for the head or the body, `watchers` for readers to come, move or leave.

use crate::fetch_error::{FetchError, FetchFailed};
use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use parking_lot::Mutex;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll, Waker};
use tidegate_cache::{CacheKey, Freshness, VaryKey};
use tidegate_control_types::{BootTime, Revision};
use tidegate_store::{CHUNK, StoredResponse};

/// Why a fill gave nothing: what stands in the access log.
pub type FillError = FetchFailed;

/// What is known of a response once its head has come.
#[derive(Debug)]
pub struct FillHead {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub freshness: Freshness,
    pub tags: Vec<Box<str>>,
    pub vary: VaryKey,
    /// The revision through which it is known to be clean.
    pub clean_through: Revision,
    /// Bytes, where the head says it.
    pub length: Option<u64>,
    /// It is given in other codings too.
    pub codable: bool,
}

enum Phase {
    Waiting,
    Head(Arc<FillHead>),
    Stored(Arc<StoredResponse>, Option<StatusCode>),
    Unshared,
    Failed(FillError),
}

struct State {
    phase: Phase,
    chunks: VecDeque<Bytes>,
    /// Number of chunks before these that every reader of a passing body has read.
    released: usize,
    tail: Vec<u8>,
    done: bool,
    /// The wakers of those who wait, by their numbers.
    wakers: BTreeMap<u64, Waker>,
    /// Number of those who waited so far.
    waiters: u64,
    /// Number of those who wait for the head.
    awaiting: usize,
    watchers: Vec<Waker>,
    /// Position of each reader in the body, in bytes, by its number.
    readers: BTreeMap<u64, u64>,
    /// Number of readers that there were so far.
    joined: u64,
    /// Somebody waits for it, or will.
    wanted: bool,
    /// Too large to keep after all: what every reader has passed is released.
    passing: bool,
    /// It waits for its quickest reader.
    paced: bool,
}

pub struct Fill {
    /// Requests that demand no later one may join.
    pub begun: Revision,
    /// Nanoseconds; moves when a fill that awaited its turn begins.
    begun_at: AtomicU64,
    pub end_to_end: bool,
    /// A client's own directives ask for a response newer than the known ones.
    is_reload: bool,
    /// It is one client's, as far as anybody knows: others do not join it.
    is_private: AtomicBool,
    /// A hash of the fields of the request that brings it.
    asked_with: AtomicU64,
    /// It begins once another one's head is here.
    awaits_turn: AtomicBool,
    /// Bytes of its body in memory, and those of all fills of the node.
    held: AtomicU64,
    of_all: Arc<AtomicU64>,
    forgotten: AtomicBool,
    /// A shield's stale response, since the origin fails.
    is_stand_in: AtomicBool,
    /// It goes on behind its request, which a stale response has answered.
    is_behind: AtomicBool,
    state: Mutex<State>,
}

/// What a request gets from a fill once its head is there.
pub enum Arrived {
    Head(Arc<FillHead>),
    /// Confirmed by the origin, with the status that did so.
    Stored(Arc<StoredResponse>, Option<StatusCode>),
    Unshared,
}

impl Fill {
    #[must_use]
    fn new(begun: Revision, begun_at: BootTime, end_to_end: bool, is_reload: bool, of_all: &Arc<AtomicU64>) -> Arc<Self> {
        let state = State {
            phase: Phase::Waiting,
            chunks: VecDeque::new(),
            released: 0,
            tail: Vec::new(),
            done: false,
            wakers: BTreeMap::new(),
            waiters: 0,
            awaiting: 0,
            watchers: Vec::new(),
            readers: BTreeMap::new(),
            joined: 0,
            wanted: false,
            passing: false,
            paced: false,
        };
        Arc::new(Self {
            begun,
            begun_at: AtomicU64::new(begun_at.as_nanos()),
            end_to_end,
            is_reload,
            is_private: AtomicBool::new(false),
            asked_with: AtomicU64::new(0),
            awaits_turn: AtomicBool::new(false),
            held: AtomicU64::new(0),
            of_all: Arc::clone(of_all),
            forgotten: AtomicBool::new(false),
            is_stand_in: AtomicBool::new(false),
            is_behind: AtomicBool::new(false),
            state: Mutex::new(state),
        })
    }

    /// It is brought by a request with these fields.
    #[must_use]
    pub fn asked_with(self: Arc<Self>, fields: u64) -> Arc<Self> {
        self.asked_with.store(fields, Ordering::Relaxed);
        self
    }

    /// Whether no other fields than these can cause it to fail before its head: a request with the same ones brings it, or its head is
    /// here.
    #[must_use]
    pub fn is_as_asked_with(&self, fields: u64) -> bool {
        self.asked_with.load(Ordering::Relaxed) == fields || matches!(self.state.lock().phase, Phase::Head(_) | Phase::Stored(..))
    }

    /// Its response turned out to be for others too.
    pub fn share(&self) {
        self.is_private.store(false, Ordering::Release);
    }

    /// Said before its head is here.
    pub fn note_stand_in(&self) {
        self.is_stand_in.store(true, Ordering::Release);
    }

    /// The fill continues in the background: its request has been answered.
    pub fn goes_on_behind(&self) {
        self.is_behind.store(true, Ordering::Release);
    }

    /// Whether it is for later requests: its own is answered, and it has had no reader yet.
    #[must_use]
    pub fn is_for_later(&self) -> bool {
        self.is_behind.load(Ordering::Acquire) && self.state.lock().joined == 0
    }

    #[must_use]
    pub fn is_stand_in(&self) -> bool {
        self.is_stand_in.load(Ordering::Acquire)
    }

    #[must_use]
    pub fn begun_at(&self) -> BootTime {
        BootTime::from_nanos(self.begun_at.load(Ordering::Acquire))
    }

    /// Its turn has come: upstream is asked now.
    pub fn begin(&self, now: BootTime) {
        self.begun_at.store(now.as_nanos(), Ordering::Release);
        self.awaits_turn.store(false, Ordering::Release);
    }

    /// Whether the fill has not started yet. Then it will ask with `no-cache`, and so serve every request that reloads.
    #[must_use]
    pub fn awaits_its_turn(&self) -> bool {
        self.awaits_turn.load(Ordering::Acquire)
    }

    /// The state of the response so far; `None` before its head has come. A failed fill cannot be joined.
    #[must_use]
    pub fn arrived_so_far(&self) -> Option<Arrived> {
        match &self.state.lock().phase {
            Phase::Waiting => None,
            Phase::Head(h) => Some(Arrived::Head(Arc::clone(h))),
            Phase::Stored(r, status) => Some(Arrived::Stored(Arc::clone(r), *status)),
            Phase::Unshared | Phase::Failed(_) => Some(Arrived::Unshared),
        }
    }

    /// What it fetches was invalidated meanwhile: its readers get it, nobody else does.
    #[must_use]
    pub fn is_forgotten(&self) -> bool {
        self.forgotten.load(Ordering::Acquire)
    }

    fn holds(&self, bytes: u64) {
        self.held.fetch_add(bytes, Ordering::Relaxed);
        self.of_all.fetch_add(bytes, Ordering::Relaxed);
    }

    fn lets_go(&self, bytes: u64) {
        self.held.fetch_sub(bytes, Ordering::Relaxed);
        self.of_all.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Changes the response, and wakes all who wait for it.
    fn change(&self, f: impl FnOnce(&mut State)) {
        let wakers = {
            let mut state = self.state.lock();
            f(&mut state);
            std::mem::take(&mut state.wakers)
        };
        wakers.into_values().for_each(Waker::wake);
    }

    /// Changes something about its readers, and wakes those who watch them.
    fn change_readers<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        let (out, watchers) = {
            let mut state = self.state.lock();
            (f(&mut state), std::mem::take(&mut state.watchers))
        };
        watchers.into_iter().for_each(Waker::wake);
        out
    }

    /// Waits until `ready` gives something. It is asked whenever readers come, move or leave.
    async fn watch<T>(&self, mut ready: impl FnMut(&mut State) -> Option<T>) -> T {
        poll_fn(|cx| {
            let mut s = self.state.lock();
            if let Some(out) = ready(&mut s) {
                return Poll::Ready(out);
            }
            if !s.watchers.iter().any(|w| w.will_wake(cx.waker())) {
                s.watchers.push(cx.waker().clone());
            }
            Poll::Pending
        })
        .await
    }

    pub fn head(&self, head: Arc<FillHead>) {
        self.change(|s| {
            // One allocation for a small body, full chunks for a large one.
            let room = head.length.map_or(0, |l| usize::try_from(l).unwrap_or(CHUNK).min(CHUNK));
            s.tail.reserve_exact(room);
            s.phase = Phase::Head(head);
        });
    }

    pub fn stored(&self, response: Arc<StoredResponse>, status: Option<StatusCode>) {
        self.change(|s| s.phase = Phase::Stored(response, status));
    }

    pub fn unshared(&self) {
        self.change(|s| s.phase = Phase::Unshared);
    }

    pub fn fail(&self, error: impl Into<FillError>) {
        self.change(|s| s.fail(error.into()));
    }

    /// Fails unless it has a reader again: no request may join it between the decision and its end.
    pub fn is_given_up(&self) -> bool {
        let is_read = {
            let mut s = self.state.lock();
            if !s.is_read() {
                s.fail(FetchError::Abandoned.into());
            }
            s.is_read()
        };
        !is_read
    }

    /// Fails, unless it has come to its end.
    fn end(&self) {
        let is_open = {
            let s = self.state.lock();
            matches!(s.phase, Phase::Waiting) || (matches!(s.phase, Phase::Head(_)) && !s.done)
        };
        if is_open {
            self.fail(FetchError::Broken);
        }
    }

    /// Appends what came in. Returns the length so far.
    pub fn push(&self, mut data: &[u8]) -> u64 {
        let mut length = 0;
        self.holds(data.len() as u64);
        self.change(|s| {
            while !data.is_empty() {
                let (now, later) = data.split_at(data.len().min(CHUNK - s.tail.len()));
                s.tail.extend_from_slice(now);
                data = later;
                if s.tail.len() == CHUNK {
                    s.chunks.push_back(std::mem::take(&mut s.tail).into());
                }
            }
            length = s.length();
        });
        length
    }

    /// It grew over what may be kept: from now on only its readers hold it, and what all of them have read goes.
    pub fn pass_by(&self) {
        self.change_readers(|s| s.passing = true);
    }

    /// While it passes by: until the slowest reader is near. `false`: no reader is left.
    pub async fn readers_near(&self, window: u64) -> bool {
        self.watch(|s| {
            let Some(slowest) = s.readers.values().min().copied() else { return Some(false) };
            let read = usize::try_from(slowest).unwrap_or(0) / CHUNK;
            while s.released < read
                && let Some(chunk) = s.chunks.pop_front()
            {
                s.released += 1;
                self.lets_go(chunk.len() as u64);
            }
            (s.length().saturating_sub(slowest) <= window).then_some(true)
        })
        .await
    }

    /// Resolves once the quickest reader is near, while bodies hold much memory. Near means within the bytes that it has already taken,
    /// so that a reader which takes little has little waiting for it. Resolves at once if there are no readers.
    pub async fn quickest_reader_near(&self) {
        self.watch(|s| {
            let quickest = s.readers.values().max().copied();
            s.paced = quickest.is_some_and(|at| s.length().saturating_sub(at) > at.clamp(LEAST_AHEAD, MOST_AHEAD));
            (!s.paced).then_some(())
        })
        .await;
    }

    /// The store holds its body, and counts it.
    pub fn is_in_store(&self) {
        self.lets_go(self.held.load(Ordering::Relaxed));
    }

    #[must_use]
    pub fn has_failed(&self) -> bool {
        matches!(self.state.lock().phase, Phase::Failed(_))
    }

    /// Somebody will read it.
    pub fn want(&self) {
        self.change_readers(|s| s.wanted = true);
    }

    /// Until somebody wants it.
    pub async fn wanted(&self) {
        self.watch(|s| s.wanted.then_some(())).await;
    }

    /// Bytes that have come.
    #[must_use]
    pub fn length(&self) -> u64 {
        self.state.lock().total()
    }

    /// Whether anybody reads it, or waits for its head.
    #[must_use]
    pub fn is_read(&self) -> bool {
        self.state.lock().is_read()
    }

    /// Resolves once the fill has a reader.
    pub async fn read(&self) {
        self.watch(|s| s.is_read().then_some(())).await;
    }

    /// Until nobody reads it.
    pub async fn unread(&self) {
        self.watch(|s| (!s.is_read()).then_some(())).await;
    }

    /// Where each reader is now.
    pub fn positions(&self) -> BTreeMap<u64, u64> {
        self.state.lock().readers.clone()
    }

    /// While it passes by: readers far behind that have not moved since they were at `before` are read no further, so that
    /// they do not hold up another that is near.
    pub fn leave_behind(&self, before: &BTreeMap<u64, u64>, window: u64) {
        self.change_readers(|s| {
            let near = s.length().saturating_sub(window);
            if s.readers.values().any(|at| *at >= near) {
                s.readers.retain(|number, at| *at >= near || before.get(number) != Some(at));
            }
        });
    }

    /// The body is whole; returns its pieces for the store.
    pub fn done(&self) -> Vec<Bytes> {
        let mut pieces = Vec::new();
        self.change(|s| {
            if !s.tail.is_empty() {
                let tail = std::mem::take(&mut s.tail).into_boxed_slice();
                s.chunks.push_back(tail.into());
            }
            s.done = true;
            pieces.extend(s.chunks.iter().cloned());
        });
        pieces
    }

    /// Until the head is there.
    ///
    /// # Errors
    /// The fetch failed before.
    pub async fn arrived(&self) -> Result<Arrived, FillError> {
        let mut waiting = Waiting { fill: self, number: None };
        // It borrows: a closure that takes `waiting.number` by value would take a copy.
        poll_fn(|cx| {
            let mut s = self.state.lock();
            Poll::Ready(match &s.phase {
                Phase::Waiting => {
                    let was_read = s.is_read();
                    s.awaiting += usize::from(waiting.number.is_none());
                    let watchers = if was_read { Vec::new() } else { std::mem::take(&mut s.watchers) };
                    s.wait(cx, &mut waiting.number);
                    drop(s);
                    watchers.into_iter().for_each(Waker::wake);
                    return Poll::Pending;
                }
                Phase::Head(h) => Ok(Arrived::Head(Arc::clone(h))),
                Phase::Stored(r, status) => Ok(Arrived::Stored(Arc::clone(r), *status)),
                Phase::Unshared => Ok(Arrived::Unshared),
                Phase::Failed(e) => Err(*e),
            })
        })
        .await
    }
}

/// How far the slowest reader of a body that is not kept may lag, in bytes; and how far where bodies hold much memory.
pub const WINDOW: u64 = 2 << 20;
pub const SMALL_WINDOW: u64 = 256 << 10;
/// How far a body may be ahead of its quickest reader where bodies hold much memory.
const LEAST_AHEAD: u64 = 512 << 10;
const MOST_AHEAD: u64 = 8 << 20;

impl State {
    fn length(&self) -> u64 {
        ((self.released + self.chunks.len()) * CHUNK + self.tail.len()) as u64
    }

    fn fail(&mut self, error: FillError) {
        self.phase = Phase::Failed(error);
        self.chunks.clear();
        self.tail = Vec::new();
    }

    fn is_read(&self) -> bool {
        !self.readers.is_empty() || self.awaiting > 0
    }

    /// The length, also once the last chunk is a short one.
    fn total(&self) -> u64 {
        match self.chunks.back() {
            Some(last) if self.done => ((self.released + self.chunks.len() - 1) * CHUNK + last.len()) as u64,
            _ => self.length(),
        }
    }

    /// Registers the waker of one who waits, whose number is given at its first wait.
    fn wait(&mut self, cx: &Context<'_>, number: &mut Option<u64>) {
        let number = *number.get_or_insert_with(|| {
            self.waiters += 1;
            self.waiters
        });
        self.wakers.entry(number).and_modify(|w| w.clone_from(cx.waker())).or_insert_with(|| cx.waker().clone());
    }
}

/// One who waits for a head. A waker keeps the memory of its task, so it goes with the one who waits.
struct Waiting<'a> {
    fill: &'a Fill,
    number: Option<u64>,
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        if let Some(number) = self.number {
            let watchers = {
                let mut s = self.fill.state.lock();
                s.wakers.remove(&number);
                s.awaiting -= 1;
                if s.is_read() { Vec::new() } else { std::mem::take(&mut s.watchers) }
            };
            watchers.into_iter().for_each(Waker::wake);
        }
    }
}

/// Reads a fill from its first byte, or a range of it, at its own pace.
pub struct FillReader {
    fill: Arc<Fill>,
    number: u64,
    at: u64,
    /// One past the last byte, where it is known.
    end: Option<u64>,
    /// Its number among those who wait.
    waits: Option<u64>,
}

impl FillReader {
    #[must_use]
    pub fn new(fill: Arc<Fill>, first: u64, end: Option<u64>) -> Self {
        let number = fill.change_readers(|s| {
            let number = s.joined;
            s.joined += 1;
            s.readers.insert(number, first);
            number
        });
        Self { fill, number, at: first, end, waits: None }
    }

    fn moved(&self, to: Option<u64>) {
        let watchers = {
            let mut s = self.fill.state.lock();
            match (to, s.readers.get_mut(&self.number)) {
                (Some(to), Some(at)) => *at = to,
                (None, Some(_)) => drop(s.readers.remove(&self.number)),
                // It was left behind.
                (_, None) => {}
            }
            if s.passing || s.paced || to.is_none() { std::mem::take(&mut s.watchers) } else { Vec::new() }
        };
        watchers.into_iter().for_each(Waker::wake);
    }

    /// Bytes still to come, where the length is known.
    #[must_use]
    pub fn left(&self) -> Option<u64> {
        self.end.map(|end| end.saturating_sub(self.at))
    }

    pub fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, FetchError>>> {
        if self.left() == Some(0) {
            return Poll::Ready(None);
        }
        let mut s = self.fill.state.lock();
        if let Phase::Failed(e) = &s.phase {
            return Poll::Ready(Some(Err(e.error)));
        }
        let length = s.total();
        if self.at >= length {
            if s.done {
                // A declared length that did not come was a failure before; this is the end of an unknown one.
                return Poll::Ready(None);
            }
            s.wait(cx, &mut self.waits);
            return Poll::Pending;
        }
        let chunk = CHUNK as u64;
        let (n, offset) = (usize::try_from(self.at / chunk).unwrap_or(usize::MAX), usize::try_from(self.at % chunk).unwrap_or(0));
        let most = usize::try_from(self.left().unwrap_or(u64::MAX)).unwrap_or(usize::MAX);
        // Too late for a body that passes by.
        let Some(kept) = n.checked_sub(s.released) else { return Poll::Ready(Some(Err(FetchError::Broken))) };
        let data = match s.chunks.get(kept) {
            Some(piece) => piece.slice(offset..piece.len().min(offset.saturating_add(most))),
            None => {
                let tail = s.tail.get(offset..).unwrap_or_default();
                Bytes::copy_from_slice(tail.get(..tail.len().min(most)).unwrap_or_default())
            }
        };
        let passing = s.passing;
        drop(s);
        self.at += data.len() as u64;
        if passing || self.at.is_multiple_of(CHUNK as u64) {
            self.moved(Some(self.at));
        }
        Poll::Ready(Some(Ok(data)))
    }
}

impl Drop for FillReader {
    fn drop(&mut self) {
        if let Some(number) = self.waits {
            self.fill.state.lock().wakers.remove(&number);
        }
        self.moved(None);
    }
}

impl Drop for Fill {
    fn drop(&mut self) {
        self.of_all.fetch_sub(self.held.load(Ordering::Relaxed), Ordering::Relaxed);
    }
}

/// The fills under way on a node.
#[derive(Default)]
pub struct Fills {
    table: Mutex<HashMap<CacheKey, Vec<Arc<Fill>>>>,
    /// Bytes of bodies that all fills hold in memory.
    held: Arc<AtomicU64>,
}

/// A fill of one client alone, among the others for as long as this lives.
pub struct Watched {
    fills: Arc<Fills>,
    key: CacheKey,
    fill: Option<Arc<Fill>>,
}

impl Watched {
    /// Whether the response was invalidated while it was being fetched.
    #[must_use]
    pub fn is_forgotten(&self) -> bool {
        self.fill.as_ref().is_some_and(|f| f.is_forgotten())
    }

    /// Takes the fill out. The caller removes it from the running fills at the end.
    #[must_use]
    pub fn take(mut self) -> Option<Arc<Fill>> {
        self.fill.take()
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        if let Some(fill) = self.fill.take() {
            self.fills.remove(&self.key, &fill);
        }
    }
}

/// Ends a fill together with its task, however that task ends: all waiters get an error, and no request joins the fill after that.
pub struct Ends {
    fills: Arc<Fills>,
    key: Option<CacheKey>,
    fill: Arc<Fill>,
}

impl std::ops::Deref for Ends {
    type Target = Fill;

    fn deref(&self) -> &Fill {
        &self.fill
    }
}

impl Ends {
    #[must_use]
    pub fn new(fills: &Arc<Fills>, key: Option<CacheKey>, fill: &Arc<Fill>) -> Self {
        Self { fills: Arc::clone(fills), key, fill: Arc::clone(fill) }
    }
}

impl Drop for Ends {
    fn drop(&mut self) {
        self.fill.end();
        if let Some(key) = &self.key {
            self.fills.remove(key, &self.fill);
        }
    }
}

/// Whether a request got a fill to share, or begins one itself: at once, or once the head of another one is here.
pub enum Joined {
    Joined(Arc<Fill>),
    Began(Arc<Fill>, Option<Arc<Fill>>),
}

impl Fills {
    /// One that can be joined once it is among the others. `is_reload`: a client's own directives bring it.
    #[must_use]
    pub fn new_fill(&self, begun: Revision, begun_at: BootTime, end_to_end: bool, is_reload: bool) -> Arc<Fill> {
        Fill::new(begun, begun_at, end_to_end, is_reload, &self.held)
    }

    /// Bytes of bodies that all fills hold in memory.
    #[must_use]
    pub fn held(&self) -> u64 {
        self.held.load(Ordering::Relaxed)
    }

    /// Joins a fill that `fits`, or begins `new`. One that a client's directives bring waits for the head of the last such one, so that
    /// clients who reload bring one fetch at a time, and all who come meanwhile share the next.
    pub fn join(&self, key: &CacheKey, fits: impl Fn(&Fill) -> bool, new: impl FnOnce() -> Arc<Fill>) -> Joined {
        let mut table = self.table.lock();
        let fills = table.entry(key.clone()).or_default();
        if let Some(found) = fills.iter().find(|f| !f.is_private.load(Ordering::Acquire) && fits(f)) {
            return Joined::Joined(Arc::clone(found));
        }
        let fill = new();
        let before = fills.iter().rev().find(|f| f.is_reload && f.arrived_so_far().is_none()).cloned();
        // One that waits itself, and does not fit, is not waited for: waits would add up.
        let after = before.filter(|b| fill.is_reload && !b.awaits_its_turn());
        fill.awaits_turn.store(after.is_some(), Ordering::Release);
        fills.push(Arc::clone(&fill));
        Joined::Began(fill, after)
    }

    /// Puts a fill of one client alone among the others until the guard goes, so that an invalidation finds it.
    pub fn watch(self: &Arc<Self>, key: &CacheKey, fill: Arc<Fill>) -> Watched {
        fill.is_private.store(true, Ordering::Release);
        let fill = self.add(key, fill);
        Watched { fills: Arc::clone(self), key: key.clone(), fill: Some(fill) }
    }

    /// Number of fetches whose heads are not here.
    #[must_use]
    pub fn under_way(&self, key: &CacheKey) -> usize {
        self.table.lock().get(key).map_or(0, |fills| fills.iter().filter(|f| f.arrived_so_far().is_none()).count())
    }

    /// Whether anything is under way for it that has not failed.
    pub fn has(&self, key: &CacheKey) -> bool {
        self.table.lock().get(key).is_some_and(|fills| fills.iter().any(|f| !f.has_failed()))
    }

    /// Begins `fill`, whatever else is under way.
    pub fn add(&self, key: &CacheKey, fill: Arc<Fill>) -> Arc<Fill> {
        self.table.lock().entry(key.clone()).or_default().push(Arc::clone(&fill));
        fill
    }

    /// It is over, or no longer to be joined.
    pub fn remove(&self, key: &CacheKey, fill: &Arc<Fill>) {
        let mut table = self.table.lock();
        if let Some(fills) = table.get_mut(key) {
            fills.retain(|f| !Arc::ptr_eq(f, fill));
            if fills.is_empty() {
                table.remove(key);
            }
        }
    }

    /// No request joins what is under way for this key, and it is not to be stored.
    pub fn forget(&self, key: &CacheKey) {
        for fill in self.table.lock().remove(key).into_iter().flatten() {
            fill.forgotten.store(true, Ordering::Release);
        }
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.table.lock().len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::Future;
    use tidegate_cache::Incarnation;

    fn fill() -> Arc<Fill> {
        Fills::default().new_fill(Revision::new(Incarnation(1), 1), BootTime::default(), false, false)
    }

    fn head(length: Option<u64>) -> Arc<FillHead> {
        let freshness = Freshness { lifetime: 1, ..Freshness::default() };
        let clean_through = Revision::new(Incarnation(1), 1);
        Arc::new(FillHead {
            status: StatusCode::OK,
            headers: HeaderMap::new(),
            freshness,
            tags: vec![],
            vary: VaryKey::default(),
            clean_through,
            length,
            codable: false,
        })
    }

    fn poll(reader: &mut FillReader) -> Poll<Option<Result<Bytes, FetchError>>> {
        reader.poll_data(&mut Context::from_waker(Waker::noop()))
    }

    #[test]
    fn readers_at_any_pace_read_the_same_bytes() {
        let whole: Vec<u8> = (0..2 * CHUNK + 77).map(|n| (n * 31 + n / 7) as u8).collect();
        let f = fill();
        f.head(head(Some(whole.len() as u64)));
        let mut quick = FillReader::new(Arc::clone(&f), 0, Some(whole.len() as u64));
        let mut range = FillReader::new(Arc::clone(&f), 1000, Some(CHUNK as u64 + 5));
        let (mut a, mut b, mut c) = (Vec::new(), Vec::new(), Vec::new());
        for piece in whole.chunks(10_007) {
            f.push(piece);
            while let Poll::Ready(Some(Ok(data))) = poll(&mut quick) {
                a.extend_from_slice(&data);
            }
            if let Poll::Ready(Some(Ok(data))) = poll(&mut range) {
                b.extend_from_slice(&data);
            }
        }
        let pieces = f.done();
        let mut late = FillReader::new(Arc::clone(&f), 0, None);
        while let Poll::Ready(Some(Ok(data))) = poll(&mut late) {
            c.extend_from_slice(&data);
        }
        while let Poll::Ready(Some(Ok(data))) = poll(&mut range) {
            b.extend_from_slice(&data);
        }
        assert!(a == whole && c == whole && pieces.concat() == whole && b == whole[1000..CHUNK + 5]);
        assert!(matches!(poll(&mut late), Poll::Ready(None)));
    }

    #[test]
    fn a_reader_that_lags_too_far_behind_is_left_behind() {
        let f = fill();
        f.head(head(None));
        let (mut near, mut far) = (FillReader::new(Arc::clone(&f), 0, None), FillReader::new(Arc::clone(&f), 0, None));
        f.pass_by();
        let near_enough = |f: &Fill| {
            let waiting = std::pin::pin!(f.readers_near(WINDOW));
            waiting.poll(&mut Context::from_waker(Waker::noop())) == Poll::Ready(true)
        };
        let piece = vec![7; CHUNK];
        for _ in 0..=WINDOW / CHUNK as u64 {
            assert!(near_enough(&f));
            f.push(&piece);
            assert!(matches!(poll(&mut near), Poll::Ready(Some(Ok(_)))));
        }
        assert!(!near_enough(&f), "the far one holds it up");
        let before = f.positions();
        assert!(matches!(poll(&mut far), Poll::Ready(Some(Ok(_)))));
        f.leave_behind(&before, WINDOW);
        assert_eq!(f.positions().len(), 2, "slow, but it moves");
        f.push(&piece);
        assert!(matches!(poll(&mut near), Poll::Ready(Some(Ok(_)))));
        f.leave_behind(&f.positions(), WINDOW);
        assert!(near_enough(&f));
        assert_eq!(f.positions().len(), 1);
        f.push(&piece);
        assert!(matches!(poll(&mut near), Poll::Ready(Some(Ok(_)))));
        assert!(matches!(poll(&mut far), Poll::Ready(Some(Err(FetchError::Broken)))));
    }

    #[test]
    fn an_only_reader_is_waited_for() {
        let f = fill();
        f.head(head(None));
        let reader = FillReader::new(Arc::clone(&f), 0, None);
        f.pass_by();
        for _ in 0..2 * WINDOW / CHUNK as u64 {
            f.push(&vec![7; CHUNK]);
        }
        f.leave_behind(&f.positions(), WINDOW);
        assert_eq!(f.positions(), [(0, 0)].into(), "how long is up to its client's time limit");
        drop(reader);
    }

    #[test]
    fn who_waits_for_a_fill_whose_task_ends_is_told() {
        let (fills, key) = (Arc::<Fills>::default(), CacheKey::chunk(1, 1));
        for begins in [false, true] {
            let f = fills.add(&key, fill());
            let ends = Ends::new(&fills, Some(key.clone()), &f);
            if begins {
                f.head(head(None));
            }
            drop(ends);
            assert!(f.has_failed() && fills.is_empty());
        }
        let f = fills.add(&key, fill());
        let ends = Ends::new(&fills, Some(key), &f);
        f.head(head(None));
        f.push(b"page");
        f.done();
        drop(ends);
        assert!(!f.has_failed() && fills.is_empty());
    }

    #[test]
    fn a_fill_that_fails_fails_every_reader() {
        let f = fill();
        f.head(head(None));
        f.push(b"half");
        let mut reader = FillReader::new(Arc::clone(&f), 0, None);
        assert!(matches!(poll(&mut reader), Poll::Ready(Some(Ok(_)))));
        f.fail(FetchError::Broken);
        assert!(matches!(poll(&mut reader), Poll::Ready(Some(Err(FetchError::Broken)))));
        assert!(matches!(poll(&mut FillReader::new(f, 0, None)), Poll::Ready(Some(Err(_)))));
    }
}
