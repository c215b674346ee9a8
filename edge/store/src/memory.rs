//! The memory tier, on moka: heads with small bodies, and chunks of larger ones, under one bound in bytes.

use crate::CHUNK;
use crate::stored::{Body, StoredResponse};
use bytes::Bytes;
use http::HeaderMap;
use moka::ops::compute::Op;
use moka::sync::Cache;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tidegate_cache::CacheKey;

/// Responses of one key that differ by Vary; more push out the oldest.
const MOST_VARIANTS: usize = 16;
/// What an entry takes beside its own bytes, in moka and the allocator.
const ENTRY_OVERHEAD: usize = 200;
/// How long a key is remembered as not storable (hit-for-miss), and how many such keys are.
const PASS_FOR: Duration = Duration::from_secs(60);
const MOST_PASSED: u64 = 100_000;

/// The stored responses of one key, newest first.
#[derive(Debug, Default)]
pub struct Variants {
    list: Vec<Arc<StoredResponse>>,
    left: AtomicBool,
}

impl Variants {
    fn new(list: Vec<Arc<StoredResponse>>) -> Arc<Self> {
        Arc::new(Self { list, left: AtomicBool::new(false) })
    }

    /// The newest whose Vary the request matches (RFC 9111 section 4.1).
    #[must_use]
    pub fn select(&self, request: &HeaderMap) -> Option<&Arc<StoredResponse>> {
        self.list.iter().find(|r| r.vary.matches(request))
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

pub struct MemoryStore {
    entries: Cache<CacheKey, Entry>,
    passed: Cache<CacheKey, ()>,
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

fn leave(entry: &Entry) {
    if let Entry::Head(v) = entry {
        v.leave();
    }
}

impl MemoryStore {
    /// A store of at most `limit` bytes.
    #[must_use]
    pub fn new(limit: u64) -> Self {
        Self {
            entries: Cache::builder().max_capacity(limit).weigher(weigh).eviction_listener(|_, entry, _| leave(&entry)).build(),
            passed: Cache::builder().max_capacity(MOST_PASSED).time_to_live(PASS_FOR).build(),
            limit,
            next_object: AtomicU64::new(1),
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
                let object = self.next_object.fetch_add(1, Ordering::Relaxed);
                for (n, piece) in (0u64..).zip(pieces) {
                    self.entries.insert(CacheKey::chunk(object, n), Entry::Chunk(piece));
                }
                Body::Chunked { object, length }
            }
        }
    }

    /// The bytes from `first` through `last` of a body; `None` where a piece is gone: the response is then of no use.
    #[must_use]
    pub fn body(&self, body: &Body, first: u64, last: u64) -> Option<Vec<Bytes>> {
        let (object, length) = match body {
            Body::Whole(_) => return body.of_whole(first, last).map(|piece| vec![piece]),
            Body::Chunked { object, length } => (*object, *length),
        };
        if last >= length || first > last {
            return None;
        }
        let chunk = CHUNK as u64;
        let pieces = (first / chunk..=last / chunk).map(|n| {
            let Entry::Chunk(piece) = self.entries.get(&CacheKey::chunk(object, n))? else { return None };
            let start = first.saturating_sub(n * chunk);
            let end = (last + 1 - n * chunk).min(piece.len() as u64);
            let (start, end) = (usize::try_from(start).ok()?, usize::try_from(end).ok()?);
            (start < end).then(|| piece.slice(start..end))
        });
        pieces.collect()
    }

    /// Puts `response` in the place of what matched the same requests. One that is older by the log does not displace a
    /// newer one.
    #[allow(clippy::needless_pass_by_value)] // It is the store's from here on.
    pub fn put(&self, key: &CacheKey, response: Arc<StoredResponse>) {
        self.passed.invalidate(key);
        self.entries.entry_by_ref(key).and_compute_with(|old| {
            let mut list = vec![Arc::clone(&response)];
            if let Some(Entry::Head(variants)) = old.map(moka::Entry::into_value) {
                for other in &variants.list {
                    if other.vary != response.vary {
                        list.push(Arc::clone(other));
                    } else if other.incarnation == response.incarnation && other.begun > response.begun {
                        return Op::Nop;
                    }
                }
                list.truncate(MOST_VARIANTS);
                // Before the new ones are there: who finds these gone comes to the store, and waits for this.
                variants.leave();
            }
            Op::Put(Entry::Head(Variants::new(list)))
        });
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
                let rest: Vec<_> = v.list.iter().filter(|r| !Arc::ptr_eq(r, response)).cloned().collect();
                if rest.is_empty() { Op::Remove } else { Op::Put(Entry::Head(Variants::new(rest))) }
            }
            _ => Op::Nop,
        });
    }

    /// The origin's answer to this key was not storable: for a while its requests do not wait for one another.
    pub fn pass(&self, key: &CacheKey) {
        self.passed.insert(key.clone(), ());
    }

    #[must_use]
    pub fn is_passed(&self, key: &CacheKey) -> bool {
        self.passed.contains_key(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::StatusCode;
    use proptest::prelude::*;
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
        let store = MemoryStore::new(1 << 20);
        let key = CacheKey::new("s", &Target::new(false, "h", "/", None));
        let whole = |b: &'static [u8]| Body::Whole(Bytes::from_static(b));
        let (a, b) = (response(whole(b"a"), 5, "1"), response(whole(b"b"), 5, "2"));
        store.put(&key, Arc::clone(&a));
        store.put(&key, Arc::clone(&b));
        let select = |x: &str| store.get(key.as_bytes()).unwrap().select(&request(x)).cloned();
        assert!(Arc::ptr_eq(&select("1").unwrap(), &a) && Arc::ptr_eq(&select("2").unwrap(), &b) && select("3").is_none());
        let old = response(whole(b"old"), 4, "1");
        store.put(&key, old);
        assert!(Arc::ptr_eq(&select("1").unwrap(), &a), "a fill that began earlier does not displace a later one");
        // However far the one that is there was found clean meanwhile, it is the older one.
        a.raise_clean_through(9);
        let newer = response(whole(b"new"), 6, "1");
        let before = store.get(key.as_bytes()).unwrap();
        store.put(&key, Arc::clone(&newer));
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
        let store = MemoryStore::new(1 << 20);
        let held: Vec<_> = (0..100)
            .map(|n| {
                let key = CacheKey::new("s", &Target::new(false, "h", &format!("/{n}"), None));
                store.put(&key, response(store.keep_body(vec![Bytes::from(vec![7; CHUNK / 8])]), 1, "1"));
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
        let store = MemoryStore::new(4 << 20);
        for n in 0..100 {
            let pieces = vec![Bytes::from(vec![7; CHUNK]), Bytes::from(vec![7; CHUNK])];
            let key = CacheKey::new("s", &Target::new(false, "h", &format!("/{n}"), None));
            store.put(&key, response(store.keep_body(pieces), 1, "1"));
        }
        store.entries.run_pending_tasks();
        assert!(store.usage().0 <= 4 << 20, "{:?}", store.usage());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn any_range_of_a_chunked_body_is_right(length in 1usize..3 * CHUNK, a in 0u64..3 * CHUNK as u64, b in 0u64..3 * CHUNK as u64) {
            let store = MemoryStore::new(64 << 20);
            let whole: Vec<u8> = (0..length).map(|n| (n * 7 + n / 251) as u8).collect();
            let body = store.keep_body(whole.chunks(CHUNK).map(Bytes::copy_from_slice).collect());
            prop_assert_eq!(body.len(), length as u64);
            let got = store.body(&body, a, b).map(|p| p.concat());
            let want = (a <= b && b < length as u64).then(|| whole[a as usize..=b as usize].to_vec());
            prop_assert_eq!(got, want);
        }
    }
}
