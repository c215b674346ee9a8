//! The memory tier, on moka: heads with small bodies, and chunks of larger ones, under one bound in bytes.

use crate::stored::{Body, StoredResponse};
use bytes::Bytes;
use http::HeaderMap;
use moka::ops::compute::Op;
use moka::sync::Cache;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tidegate_cache::{CacheKey, Coding};

/// Responses of one key that differ by Vary; more push out the oldest.
pub const MOST_VARIANTS: usize = 16;
/// What an entry takes beside its own bytes, in moka and the allocator.
const ENTRY_OVERHEAD: usize = 200;
/// How long a key is remembered as not storable (hit-for-miss), and how many such keys are.
const PASS_FOR: Duration = Duration::from_secs(60);
const MOST_PASSED: u64 = 100_000;
/// How long a key is remembered as one of which upstream gives no parts.
const WHOLE_FOR: Duration = Duration::from_secs(600);

/// The stored responses of one key, newest first.
#[derive(Debug, Default)]
pub struct Variants {
    list: Vec<Arc<StoredResponse>>,
    left: AtomicBool,
    /// What the disk holds of them is here.
    all: bool,
}

impl Variants {
    fn new(mut list: Vec<Arc<StoredResponse>>, all: bool) -> Arc<Self> {
        list.truncate(MOST_VARIANTS);
        Arc::new(Self { list, left: AtomicBool::new(false), all })
    }

    /// Whether the disk holds no more of them.
    #[must_use]
    pub fn are_all(&self) -> bool {
        self.all
    }

    /// The newest whose Vary the request matches (RFC 9111 section 4.1).
    #[must_use]
    pub fn select(&self, request: &HeaderMap) -> Option<&Arc<StoredResponse>> {
        self.list.iter().find(|r| r.vary.matches(request))
    }

    /// The newest first.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<StoredResponse>> {
        self.list.iter()
    }

    /// These have left the store, for others or for none: whoever still holds them must look again.
    #[must_use]
    pub fn have_left(&self) -> bool {
        self.left.load(Ordering::Acquire)
    }

    fn leave(&self) {
        self.left.store(true, Ordering::Release);
    }
}

#[derive(Clone)]
enum Entry {
    Head(Arc<Variants>),
    Chunk(Bytes),
}

pub struct MemoryTier {
    entries: Cache<CacheKey, Entry>,
    passed: Cache<CacheKey, ()>,
    whole: Cache<CacheKey, ()>,
    limit: u64,
    next_object: AtomicU64,
}

fn weigh(key: &CacheKey, entry: &Entry) -> u32 {
    let bytes = match entry {
        Entry::Head(v) => v.list.iter().map(|r| r.weight()).sum(),
        Entry::Chunk(b) => b.len(),
    };
    u32::try_from(ENTRY_OVERHEAD + key.as_bytes().len() + bytes).unwrap_or(u32::MAX)
}

/// What a response takes under a key.
#[cfg(test)]
pub fn weight(key: &CacheKey, response: &Arc<StoredResponse>) -> usize {
    weigh(key, &Entry::Head(Variants::new(vec![Arc::clone(response)], false))) as usize
}

fn leave(entry: &Entry) {
    if let Entry::Head(v) = entry {
        v.leave();
    }
}

impl MemoryTier {
    /// A store of at most `limit` bytes.
    #[must_use]
    pub fn new(limit: u64) -> Self {
        Self::numbered_from(limit, 1)
    }

    /// Bodies of several pieces have numbers from `first` on.
    #[must_use]
    pub fn numbered_from(limit: u64, first: u64) -> Self {
        Self {
            entries: Cache::builder().max_capacity(limit).weigher(weigh).eviction_listener(|_, entry, _| leave(&entry)).build(),
            passed: Cache::builder().max_capacity(MOST_PASSED).time_to_live(PASS_FOR).build(),
            whole: Cache::builder().max_capacity(MOST_PASSED).time_to_live(WHOLE_FOR).build(),
            limit,
            next_object: AtomicU64::new(first),
        }
    }

    /// The responses under a key's bytes.
    #[must_use]
    pub fn get(&self, key: &[u8]) -> Option<Arc<Variants>> {
        match self.entries.get(key)? {
            Entry::Head(v) => Some(v),
            Entry::Chunk(_) => None,
        }
    }

    /// Evicts now what has to go.
    #[cfg(test)]
    pub fn settle(&self) {
        self.entries.run_pending_tasks();
    }

    /// The largest body that is kept, in bytes: one object must not push out most others.
    #[must_use]
    pub fn most_body(&self) -> u64 {
        self.limit / 4
    }

    /// Bytes stored, about, and the bound.
    #[must_use]
    pub fn usage(&self) -> (u64, u64) {
        (self.entries.weighted_size(), self.limit)
    }

    /// Keeps the pieces of a body: all but the last are [`CHUNK`] bytes long.
    #[must_use]
    pub fn keep_body(&self, pieces: Vec<Bytes>) -> Body {
        let length = pieces.iter().map(|p| p.len() as u64).sum();
        match <[Bytes; 1]>::try_from(pieces) {
            Ok([only]) => Body::Whole(only),
            Err(pieces) if pieces.is_empty() => Body::Whole(Bytes::new()),
            Err(pieces) => {
                let object = self.next_object();
                for (n, piece) in (0u64..).zip(pieces) {
                    self.put_chunk(&CacheKey::chunk(object, n), piece);
                }
                Body::Chunked { object, length, on_disk: false }
            }
        }
    }

    /// The number of a body of several pieces.
    pub fn next_object(&self) -> u64 {
        self.next_object.fetch_add(1, Ordering::Relaxed)
    }

    pub fn put_chunk(&self, key: &CacheKey, piece: Bytes) {
        self.entries.insert(key.clone(), Entry::Chunk(piece));
    }

    #[must_use]
    pub fn chunk(&self, key: &CacheKey) -> Option<Bytes> {
        match self.entries.get(key.as_bytes())? {
            Entry::Chunk(piece) => Some(piece),
            Entry::Head(_) => None,
        }
    }

    /// Puts `response` in the place of what matched the same requests. One that is older by the log does not displace a
    /// newer one.
    /// `then` is called before anybody can find it, or remove it.
    pub fn put(&self, key: &CacheKey, response: &Arc<StoredResponse>, then: impl FnOnce()) {
        self.passed.invalidate(key);
        self.entries.entry_by_ref(key).and_compute_with(|old| {
            let (mut list, mut all) = (vec![Arc::clone(response)], false);
            if let Some(Entry::Head(variants)) = old.map(moka::Entry::into_value) {
                for other in &variants.list {
                    if other.vary != response.vary {
                        list.push(Arc::clone(other));
                    } else if other.incarnation == response.incarnation && other.begun > response.begun {
                        response.replace();
                        return Op::Nop;
                    } else if !other.is(response) {
                        other.replace();
                    }
                }
                all = variants.all;
                // Before the new ones are there: who finds these gone comes to the store, and waits for this.
                variants.leave();
            }
            then();
            Op::Put(Entry::Head(Variants::new(list, all)))
        });
    }

    /// Puts a coding beside the response that it was made of, where that or one with the very same bytes is still there. `then`
    /// is called with the response that has it now, before anybody can remove that.
    pub fn put_coding(&self, key: &CacheKey, of: &Body, coding: Coding, body: &Body, then: impl Fn(&Arc<StoredResponse>)) {
        self.entries.entry_by_ref(key).and_compute_with(|old| match old.map(moka::Entry::into_value) {
            Some(Entry::Head(v)) => {
                let mut list = v.list.clone();
                let Some(response) = list.iter_mut().find(|r| r.body.is(of)) else { return Op::Nop };
                *response = Arc::new(response.with_coding(coding, body.clone()));
                then(response);
                v.leave();
                Op::Put(Entry::Head(Variants::new(list, v.all)))
            }
            _ => Op::Nop,
        });
    }

    /// Adds what the disk holds of a key, but for what is here already: that is newer. Returns all of them.
    pub fn merge(&self, key: &CacheKey, from_disk: Vec<Arc<StoredResponse>>) -> Option<Arc<Variants>> {
        let mut merged = None;
        self.entries.entry_by_ref(key).and_compute_with(|old| {
            let mut list = Vec::new();
            if let Some(Entry::Head(variants)) = old.map(moka::Entry::into_value) {
                list.clone_from(&variants.list);
                variants.leave();
            } else if from_disk.is_empty() {
                return Op::Nop;
            }
            for response in from_disk {
                if list.iter().all(|other| other.vary != response.vary) {
                    list.push(response);
                }
            }
            let variants = Variants::new(list, true);
            merged = Some(Arc::clone(&variants));
            Op::Put(Entry::Head(variants))
        });
        merged
    }

    /// Drops all responses of a key.
    pub fn remove(&self, key: &CacheKey) {
        self.passed.invalidate(key);
        // Not moka's own removal, which another change of the same entry does not wait for.
        self.entries.entry_by_ref(key).and_compute_with(|old| match old {
            Some(old) => {
                leave(old.value());
                Op::Remove
            }
            None => Op::Nop,
        });
    }

    /// Drops one response, where it is still there: a purged one, whose memory need not wait for its eviction.
    pub fn drop_response(&self, key: &CacheKey, response: &Arc<StoredResponse>) {
        self.entries.entry_by_ref(key).and_compute_with(|old| match old.map(moka::Entry::into_value) {
            Some(Entry::Head(v)) => {
                v.leave();
                let rest: Vec<_> = v.list.iter().filter(|r| !r.is(response)).cloned().collect();
                if rest.is_empty() { Op::Remove } else { Op::Put(Entry::Head(Variants::new(rest, v.all))) }
            }
            _ => Op::Nop,
        });
    }

    /// The origin's answer to this key was not storable: for a while its requests do not wait for one another.
    pub fn pass(&self, key: &CacheKey) {
        self.passed.insert(key.clone(), ());
    }

    /// Upstream gives no parts of what it has under this key: for a while it is not asked for any.
    pub fn takes_no_ranges(&self, key: &CacheKey) {
        self.whole.insert(key.clone(), ());
    }

    #[must_use]
    pub fn gives_ranges(&self, key: &CacheKey) -> bool {
        !self.whole.contains_key(key)
    }

    #[must_use]
    pub fn is_passed(&self, key: &CacheKey) -> bool {
        self.passed.contains_key(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::CHUNK;
    use http::StatusCode;
    use tidegate_cache::{Freshness, Target, VaryKey};
    use tidegate_cache::{Incarnation, Revision};

    fn response(body: Body, index: u64, vary_on: &str) -> Arc<StoredResponse> {
        let freshness = Freshness { lifetime: 9, ..Freshness::default() };
        let (mut headers, mut request) = (HeaderMap::new(), HeaderMap::new());
        headers.insert("vary", "x".parse().unwrap());
        request.insert("x", vary_on.parse().unwrap());
        let vary = VaryKey::new(&headers, &request).unwrap();
        let r = StoredResponse::new(Target::new(false, "h", "/", None), StatusCode::OK, headers, vary, freshness, body);
        Arc::new(r.with_clean_through(Revision::new(Incarnation(1), index)))
    }

    fn request(x: &str) -> HeaderMap {
        let mut h = HeaderMap::new();
        h.insert("x", x.parse().unwrap());
        h
    }

    #[test]
    fn variants_stand_side_by_side_and_a_newer_one_replaces_its_like() {
        let store = MemoryTier::new(1 << 20);
        let key = CacheKey::new("s", &Target::new(false, "h", "/", None));
        let whole = |b: &'static [u8]| Body::Whole(Bytes::from_static(b));
        let (a, b) = (response(whole(b"a"), 5, "1"), response(whole(b"b"), 5, "2"));
        store.put(&key, &a, || ());
        store.put(&key, &b, || ());
        let select = |x: &str| store.get(key.as_bytes()).unwrap().select(&request(x)).cloned();
        assert!(Arc::ptr_eq(&select("1").unwrap(), &a) && Arc::ptr_eq(&select("2").unwrap(), &b) && select("3").is_none());
        let old = response(whole(b"old"), 4, "1");
        store.put(&key, &old, || ());
        assert!(Arc::ptr_eq(&select("1").unwrap(), &a), "a fill that began earlier does not displace a later one");
        // However far the one that is there was found clean meanwhile, it is the older one.
        a.raise_clean_through(9);
        let newer = response(whole(b"new"), 6, "1");
        let before = store.get(key.as_bytes()).unwrap();
        store.put(&key, &newer, || ());
        assert!(before.have_left() && Arc::ptr_eq(&select("1").unwrap(), &newer));
        let before = store.get(key.as_bytes()).unwrap();
        store.drop_response(&key, &newer);
        assert!(before.have_left() && select("1").is_none() && select("2").is_some());
        let before = store.get(key.as_bytes()).unwrap();
        store.remove(&key);
        assert!(before.have_left() && store.get(key.as_bytes()).is_none());
    }

    #[test]
    fn what_is_evicted_says_so_to_those_who_hold_it() {
        let store = MemoryTier::new(1 << 20);
        let held: Vec<_> = (0..100)
            .map(|n| {
                let key = CacheKey::new("s", &Target::new(false, "h", &format!("/{n}"), None));
                store.put(&key, &response(store.keep_body(vec![Bytes::from(vec![7; CHUNK / 8])]), 1, "1"), || ());
                (store.get(key.as_bytes()), key)
            })
            .collect();
        store.entries.run_pending_tasks();
        let (mut here, mut gone) = (0, 0);
        for (held, key) in held {
            let still = store.get(key.as_bytes()).is_some();
            *(if still { &mut here } else { &mut gone }) += 1;
            assert!(held.is_none_or(|h| h.have_left() != still));
        }
        assert!(here > 0 && gone > 0, "{here} {gone}");
    }

    #[test]
    fn memory_stays_under_its_bound() {
        let store = MemoryTier::new(4 << 20);
        for n in 0..100 {
            let pieces = vec![Bytes::from(vec![7; CHUNK]), Bytes::from(vec![7; CHUNK])];
            let key = CacheKey::new("s", &Target::new(false, "h", &format!("/{n}"), None));
            store.put(&key, &response(store.keep_body(pieces), 1, "1"), || ());
        }
        store.entries.run_pending_tasks();
        assert!(store.usage().0 <= 4 << 20, "{:?}", store.usage());
    }
}
