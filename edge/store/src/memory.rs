//! The memory tier, on moka: heads with small bodies, and chunks of larger ones, under one bound in bytes.

use crate::stored::{Body, StoredResponse};
use bytes::Bytes;
use moka::ops::compute::Op;
use moka::sync::Cache;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use tidegate_cache::storable::NotStorable;
use tidegate_cache::{CacheKey, Coding, RequestHead, VaryKey};

/// Responses of one key that differ by Vary: the most, and how many sets of fields they may vary on.
const MAX_VARIANTS: usize = 1024;
const MAX_GROUPS: usize = 16;
/// The part of the memory tier, and the bytes, that the variants of one key may take.
const VARIANTS_PART: u64 = 16;
const MAX_VARIANTS_BYTES: u64 = 32 << 20;
/// Maximum of the request count of a variant.
const MAX_WANTED: u8 = 15;
/// What an entry takes beside its own bytes, in moka and the allocator.
const ENTRY_OVERHEAD: usize = 200;
/// How long a key is remembered as not storable (hit-for-miss), and how many such keys are.
const PASS_FOR: Duration = Duration::from_secs(60);
const MOST_PASSED: u64 = 100_000;
/// How long it is remembered how ranges of a key are to be asked for.
const RANGES_FOR: Duration = Duration::from_secs(600);

/// The requests for a key that are not shared, for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passed {
    /// All of them; with the reason, if the response was not stored.
    Everyones(Option<NotStorable>),
    /// Requests that carry a cookie, because the response has no explicit freshness.
    WithCookie,
}

/// The way in which upstream is asked for a range of a response that is not stored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ranges {
    /// In slices, which are kept: a strong validator ties them together, as far as anybody knows.
    #[default]
    InSlices,
    /// Not at all: upstream gives no parts, or all of it is small.
    Whole,
    /// As the client asks: it is large, and nothing ties its parts together.
    OfOneClient,
}

/// The stored responses of one key, newest first.
///
/// Invariant: of two responses for the same requests only the newer one is here; each of `list` is in one of `groups`.
#[derive(Debug, Default)]
pub struct Variants {
    list: Vec<Arc<StoredResponse>>,
    groups: Vec<Group>,
    left: AtomicBool,
    /// What the disk holds of them is here.
    all: bool,
}

/// Variants that vary on the same fields: a request's values of these are made once, and looked up.
#[derive(Debug)]
struct Group {
    /// One of them, in `list`.
    of: usize,
    by_values: HashMap<u64, usize>,
    /// The variants by the language that is best for them, for requests that prefer one language.
    by_language: HashMap<u64, usize>,
}

impl Variants {
    /// `max_bytes`: of all of them together, but for the newest.
    fn new(mut list: Vec<Arc<StoredResponse>>, all: bool, max_bytes: u64) -> Arc<Self> {
        keep_the_most_wanted(&mut list, max_bytes);
        let mut groups = groups_of(&list);
        if groups.len() > MAX_GROUPS {
            let kept: Vec<VaryKey> = groups.iter().take(MAX_GROUPS).filter_map(|g| list.get(g.of)).map(|r| r.vary.clone()).collect();
            list.retain(|r| kept.iter().any(|k| k.has_fields_of(&r.vary)));
            groups = groups_of(&list);
        }
        Arc::new(Self { groups, list, left: AtomicBool::new(false), all })
    }

    /// Whether the disk holds no more of them.
    #[must_use]
    pub fn are_all(&self) -> bool {
        self.all
    }

    /// The newest whose Vary the request matches. One without Vary, which would answer any request, is the last choice (RFC 9111
    /// section 4.1).
    #[must_use]
    pub fn select(&self, request: &impl RequestHead) -> Option<&Arc<StoredResponse>> {
        let (mut best, mut plain): (Option<usize>, Option<usize>) = (None, None);
        for group in &self.groups {
            let Some(key) = self.list.get(group.of).map(|r| &r.vary) else { continue };
            if key.is_empty() {
                plain = Some(group.of);
                continue;
            }
            let wanted = key.wanted(request);
            let answers = |at: &usize| self.list.get(*at).is_some_and(|r| r.vary.is_for(&wanted));
            let by_values = group.by_values.get(&wanted.hash()).copied().filter(answers);
            let in_language = || group.by_language.get(&wanted.hash_by_language()?).copied().filter(answers);
            let found = by_values.or_else(in_language);
            best = [best, found].into_iter().flatten().min();
        }
        let response = self.list.get(best.or(plain)?)?;
        if self.list.len() > 1 {
            response.note_wanted(MAX_WANTED);
        }
        Some(response)
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

fn groups_of(list: &[Arc<StoredResponse>]) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for (at, response) in list.iter().enumerate() {
        let known = groups.iter().position(|g| list.get(g.of).is_some_and(|r| r.vary.has_fields_of(&response.vary)));
        let n = known.unwrap_or_else(|| {
            groups.push(Group { of: at, by_values: HashMap::new(), by_language: HashMap::new() });
            groups.len() - 1
        });
        let Some(group) = groups.get_mut(n) else { continue };
        if !response.vary.is_empty() {
            group.by_values.entry(response.vary.hash()).or_insert(at);
        }
        if let Some(hash) = response.vary.hash_by_language() {
            group.by_language.entry(hash).or_insert(at);
        }
    }
    groups
}

/// Lets go of those that were asked for least, and of equals of the oldest, until the rest is within its bounds. The newest stays.
fn keep_the_most_wanted(list: &mut Vec<Arc<StoredResponse>>, max_bytes: u64) {
    let bytes = |list: &[Arc<StoredResponse>]| list.iter().map(|r| r.weight() as u64).sum::<u64>();
    let mut total = bytes(list);
    while list.len() > 1 && (list.len() > MAX_VARIANTS || total > max_bytes) {
        // `min_by_key` gives the first of equals, and the oldest are the last.
        let Some((victim, least)) = list.iter().enumerate().skip(1).rev().map(|(n, r)| (n, r.wanted())).min_by_key(|(_, w)| *w) else {
            return;
        };
        let gone = list.remove(victim);
        total -= gone.weight() as u64;
        // Counts age, so that a variant wanted now outlives one wanted long ago.
        let sum: usize = list.iter().map(|r| usize::from(r.wanted())).sum();
        let is_full = sum > list.len() * usize::from(MAX_WANTED) / 2;
        list.iter().for_each(|r| r.forget_wanted(least.max(if is_full { r.wanted() / 2 } else { 0 })));
    }
}

#[derive(Clone)]
enum Entry {
    Head(Arc<Variants>),
    Chunk(Bytes),
}

pub struct MemoryTier {
    entries: Cache<CacheKey, Entry>,
    passed: Cache<CacheKey, Passed>,
    ranges: Cache<CacheKey, Ranges>,
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
    weigh(key, &Entry::Head(Variants::new(vec![Arc::clone(response)], false, u64::MAX))) as usize
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
            ranges: Cache::builder().max_capacity(MOST_PASSED).time_to_live(RANGES_FOR).build(),
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
                        response.inherit_wanted(other);
                        other.replace();
                    }
                }
                all = variants.all;
                // Before the new ones are there: who finds these gone comes to the store, and waits for this.
                variants.leave();
            }
            then();
            Op::Put(Entry::Head(Variants::new(list, all, self.max_variants_bytes())))
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
                Op::Put(Entry::Head(Variants::new(list, v.all, self.max_variants_bytes())))
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
            let variants = Variants::new(list, true, self.max_variants_bytes());
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
                if rest.is_empty() { Op::Remove } else { Op::Put(Entry::Head(Variants::new(rest, v.all, u64::MAX))) }
            }
            _ => Op::Nop,
        });
    }

    /// The origin's answer to this key could not be shared: for a while its requests do not wait for one another.
    pub fn pass(&self, key: &CacheKey, whose: Passed) {
        if matches!(whose, Passed::Everyones(_)) || !self.passed.contains_key(key) {
            self.passed.insert(key.clone(), whose);
        }
    }

    /// The origin's answer to this key can be shared after all.
    pub fn share(&self, key: &CacheKey) {
        if matches!(self.passed(key), Some(Passed::Everyones(_))) {
            self.passed.invalidate(key);
        }
    }

    /// How ranges of this key are to be asked for, for a while.
    pub fn note_ranges(&self, key: &CacheKey, ranges: Ranges) {
        self.ranges.insert(key.clone(), ranges);
    }

    #[must_use]
    pub fn ranges(&self, key: &CacheKey) -> Ranges {
        self.ranges.get(key).unwrap_or_default()
    }

    /// Maximum size of all variants of one key, in bytes.
    fn max_variants_bytes(&self) -> u64 {
        (self.limit / VARIANTS_PART).min(MAX_VARIANTS_BYTES)
    }

    #[must_use]
    pub fn passed(&self, key: &CacheKey) -> Option<Passed> {
        self.passed.get(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::CHUNK;
    use http::{HeaderMap, StatusCode};
    use tidegate_cache::{Freshness, Target};
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
    fn a_response_without_vary_hides_none_that_varies() {
        let store = MemoryTier::new(1 << 20);
        let key = CacheKey::new("s", &Target::new(false, "h", "/", None));
        let varied = response(Body::Whole(Bytes::from_static(b"varied")), 1, "1");
        store.put(&key, &varied, || ());
        let freshness = Freshness { lifetime: 9, ..Freshness::default() };
        let (target, body) = (Target::new(false, "h", "/", None), Body::Whole(Bytes::from_static(b"plain")));
        let plain = StoredResponse::new(target, StatusCode::OK, HeaderMap::new(), VaryKey::default(), freshness, body);
        let plain = Arc::new(plain.with_clean_through(Revision::new(Incarnation(1), 2)));
        store.put(&key, &plain, || ());
        let select = |x: &str| store.get(key.as_bytes()).unwrap().select(&request(x)).cloned().unwrap();
        assert!(Arc::ptr_eq(&select("1"), &varied) && Arc::ptr_eq(&select("2"), &plain));
    }

    #[test]
    fn the_most_wanted_of_many_variants_stay_within_their_bytes() {
        let limit = 16 << 20;
        let store = MemoryTier::new(limit);
        let key = CacheKey::new("s", &Target::new(false, "h", "/", None));
        let body = || Body::Whole(Bytes::from(vec![7; 4 << 10]));
        let wanted = response(body(), 1, "wanted");
        store.put(&key, &wanted, || ());
        for n in 0..2000 {
            if n % 2 == 0 {
                let found = store.get(key.as_bytes()).unwrap().select(&request("wanted")).cloned();
                assert!(found.is_some_and(|f| Arc::ptr_eq(&f, &wanted)), "gone after {n} others");
            }
            store.put(&key, &response(body(), 1, &n.to_string()), || ());
        }
        let all = store.get(key.as_bytes()).unwrap();
        let bytes: usize = all.iter().map(|r| r.weight()).sum();
        assert!(bytes as u64 <= limit / VARIANTS_PART && all.iter().count() > 100, "{bytes} bytes, {} variants", all.iter().count());
        assert!(all.select(&request("1999")).is_some());
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
