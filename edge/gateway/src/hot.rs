//! A worker's own first level above the shared store: what it answered with last, and the head that it went out with.
//!
//! A table of slots, each key in the one that its hash names. Nothing here is believed by itself: an entry counts while the
//! store still holds what it points to ([`Variants::have_left`]), and the purge check and freshness are decided on every
//! request as for any other stored response. What has left the store is let go by [`Hot::sweep`], so that memory stays
//! under its bound.

use http::HeaderMap;
use std::cell::RefCell;
use std::hash::BuildHasher;
use std::sync::Arc;
use tidegate_cache::{CacheKey, Coding};
use tidegate_store::{Store, StoredResponse, Variants};

const SLOTS: usize = 4096;
/// Of every so many hits of an entry one goes to the store, which has to know what is asked for.
const TOLD_EVERY: u8 = 16;
/// An entry gives way to another after being passed over this often at most.
const MOST_USES: u8 = 8;

pub struct Hot {
    slots: RefCell<Box<[Option<Slot>]>>,
    hasher: foldhash::fast::RandomState,
}

struct Slot {
    key: CacheKey,
    variants: Arc<Variants>,
    head: Option<Head>,
    uses: u8,
    hits: u8,
}

struct Head {
    said: Said,
    headers: HeaderMap,
}

/// All that makes one hit's head differ from another's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Said {
    pub age: u64,
    pub detail: Option<&'static str>,
    /// At a shield, the index through which it vouches.
    pub through: u64,
    /// Which of the variants, and in which coding.
    response: usize,
    coding: Option<Coding>,
}

impl Said {
    #[must_use]
    pub fn new(stored: &Arc<StoredResponse>, age: u64, detail: Option<&'static str>, through: u64, coding: Option<Coding>) -> Self {
        Self { age, detail, through, response: Arc::as_ptr(stored).addr(), coding }
    }
}

impl Default for Hot {
    fn default() -> Self {
        let slots = std::iter::repeat_with(|| None).take(SLOTS).collect();
        Self { slots: RefCell::new(slots), hasher: foldhash::fast::RandomState::default() }
    }
}

impl Hot {
    fn at(&self, key: &CacheKey) -> usize {
        usize::try_from(self.hasher.hash_one(key.as_bytes())).unwrap_or(0) % SLOTS
    }

    /// What is stored under a key.
    pub fn get(&self, key: &CacheKey, store: &Store) -> Option<Arc<Variants>> {
        let at = self.at(key);
        let mut slots = self.slots.borrow_mut();
        let slot = slots.get_mut(at)?;
        if let Some(mine) = slot.as_mut().filter(|s| s.key == *key) {
            if !mine.variants.have_left() {
                mine.hits = mine.hits.wrapping_add(1);
                if mine.hits.is_multiple_of(TOLD_EVERY) {
                    store.asked(key.as_bytes());
                    drop(store.get(key.as_bytes()));
                }
                mine.uses = MOST_USES.min(mine.uses + 1);
                return Some(Arc::clone(&mine.variants));
            }
            *slot = None;
        }
        store.asked(key.as_bytes());
        let variants = store.get(key.as_bytes())?;
        match slot {
            Some(other) if other.uses > 0 && !other.variants.have_left() => other.uses -= 1,
            _ => *slot = Some(Slot { key: key.clone(), variants: Arc::clone(&variants), head: None, uses: 0, hits: 0 }),
        }
        Some(variants)
    }

    /// The head of a hit: the one that went out before, where it says the same, else what `make` makes.
    pub fn head(&self, key: &CacheKey, said: Said, make: impl FnOnce() -> HeaderMap) -> HeaderMap {
        let mut slots = self.slots.borrow_mut();
        let slot = slots.get_mut(self.at(key)).and_then(Option::as_mut);
        let Some(slot) = slot.filter(|s| s.key == *key) else { return make() };
        if let Some(head) = slot.head.as_ref().filter(|h| h.said == said) {
            return head.headers.clone();
        }
        let headers = make();
        // The slot keeps what it holds alive, so that no other response can come to be where that is. One that came another way than
        // through `get` it may not hold.
        if slot.variants.iter().any(|r| Arc::as_ptr(r).addr() == said.response) {
            slot.head = Some(Head { said, headers: headers.clone() });
        }
        headers
    }

    /// Lets go of what the store has let go of.
    pub fn sweep(&self) {
        for slot in &mut *self.slots.borrow_mut() {
            if slot.as_ref().is_some_and(|s| s.variants.have_left()) {
                *slot = None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use http::StatusCode;
    use std::cell::Cell;
    use tidegate_cache::{Freshness, Target, VaryKey};
    use tidegate_store::Body;

    fn stored(path: &str) -> (CacheKey, Arc<StoredResponse>) {
        let freshness = Freshness { lifetime: 9, ..Freshness::default() };
        let target = Target::new(false, "h", path, None);
        let (key, body) = (CacheKey::new("s", &target), Body::Whole(Bytes::from_static(b"x")));
        (key, Arc::new(StoredResponse::new(target, StatusCode::OK, HeaderMap::new(), VaryKey::default(), freshness, body)))
    }

    fn select(hot: &Hot, store: &Store, key: &CacheKey) -> Option<Arc<StoredResponse>> {
        hot.get(key, store)?.select(&HeaderMap::new()).cloned()
    }

    #[test]
    fn what_was_replaced_or_removed_in_the_store_is_not_found_here() {
        let (store, hot) = (Store::new(1 << 20), Hot::default());
        let (key, first) = stored("/");
        let (_, second) = stored("/");
        store.put(&key, &first);
        for _ in 0..2 {
            assert!(Arc::ptr_eq(&select(&hot, &store, &key).unwrap(), &first));
        }
        store.put(&key, &second);
        assert!(Arc::ptr_eq(&select(&hot, &store, &key).unwrap(), &second));
        store.remove(&key);
        assert!(select(&hot, &store, &key).is_none());
    }

    #[test]
    fn no_head_is_kept_of_a_response_that_the_slot_does_not_hold() {
        let (store, hot) = (Store::new(1 << 20), Hot::default());
        let ((key, first), (_, second)) = (stored("/"), stored("/"));
        store.put(&key, &first);
        hot.get(&key, &store);
        // It came from the store while the slot still holds its predecessor. Once it is gone, another may lie where it lay.
        store.put(&key, &second);
        let made = Cell::new(0);
        for _ in 0..2 {
            hot.head(&key, Said::new(&second, 0, None, 0, None), || {
                made.set(made.get() + 1);
                HeaderMap::new()
            });
        }
        assert_eq!(made.get(), 2);
    }

    #[test]
    fn memory_is_let_go_of() {
        let (store, hot) = (Store::new(1 << 20), Hot::default());
        for n in 0..100 {
            let (key, response) = stored(&format!("/{n}"));
            store.put(&key, &response);
            assert!(select(&hot, &store, &key).is_some());
            store.remove(&key);
        }
        let held = || hot.slots.borrow().iter().flatten().count();
        assert!(held() > 0);
        hot.sweep();
        assert_eq!(held(), 0);
    }

    #[test]
    fn a_head_goes_out_again_only_where_it_says_the_same() {
        let (store, hot) = (Store::new(1 << 20), Hot::default());
        let (key, response) = stored("/");
        store.put(&key, &response);
        hot.get(&key, &store);
        let made = Cell::new(0);
        let ask = |age, through| {
            hot.head(&key, Said::new(&response, age, None, through, None), || {
                made.set(made.get() + 1);
                HeaderMap::new()
            });
            made.get()
        };
        assert_eq!((ask(1, 5), ask(1, 5), ask(2, 5), ask(2, 6), ask(2, 6)), (1, 1, 2, 3, 3));
    }
}
