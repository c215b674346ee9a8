//! Both tiers: memory above, a disk below it where there is one.
//!
//! A response is looked for in memory first. What memory does not hold and the disk may hold is loaded into memory, once for
//! all who ask, away from the workers; it is then as if it had never left. What enters memory from a fetch goes to the disk
//! too, behind the answer.

use crate::disk::{ChunkAt, Executor, Folder, Threads, Tier};
use crate::memory::{MemoryTier, Passed, Ranges, Variants};
use crate::stored::{Body, StoredResponse};
use crate::{CHUNK, disk};
use bytes::Bytes;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;
use tidegate_cache::{CacheKey, Coding};
use tokio::sync::oneshot;

/// Keys that are being loaded at once, at most: a disk that hangs must not take all requests with it.
const MOST_LOADING: usize = 1024;

/// A key that is being loaded.
#[derive(Default)]
struct Loading {
    waiting: Vec<oneshot::Sender<Arc<Variants>>>,
    /// It was removed meanwhile: what was read is of no use.
    removed: bool,
}

struct Disk {
    tier: Arc<Tier>,
    executor: Box<dyn Executor>,
    loading: Arc<Mutex<HashMap<CacheKey, Loading>>>,
}

/// A part of a body.
pub enum Piece {
    Here(Bytes),
    OnDisk(DiskPiece),
}

/// A part of a chunk that has to be read first.
pub struct DiskPiece {
    at: ChunkAt,
    key: CacheKey,
    range: Range<usize>,
}

impl Piece {
    /// Bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::Here(bytes) => bytes.len(),
            Self::OnDisk(piece) => piece.range.len(),
        }
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

pub struct Store {
    memory: Arc<MemoryTier>,
    disk: Option<Disk>,
}

impl Store {
    /// Memory alone, of at most `limit` bytes.
    #[must_use]
    pub fn new(limit: u64) -> Self {
        Self { memory: Arc::new(MemoryTier::new(limit)), disk: None }
    }

    /// With a disk below it. `random`: any number; objects of two lives of a disk are told apart by it.
    #[must_use]
    pub fn with_disk(limit: u64, tier: Arc<Tier>, executor: Box<dyn Executor>, random: u64) -> Self {
        let disk = Disk { tier, executor, loading: Arc::default() };
        Self { memory: Arc::new(MemoryTier::numbered_from(limit, random)), disk: Some(disk) }
    }

    /// Memory of at most `memory` bytes, above a folder of at most so many, where there is one. See [`Store::with_disk`].
    ///
    /// # Errors
    /// The folder cannot be used.
    pub fn open(memory: u64, disk: Option<(&Path, u64)>, random: u64) -> io::Result<Self> {
        let Some((path, size)) = disk else { return Ok(Self::new(memory)) };
        let tier = Arc::new(Tier::new(Box::new(Folder::open(path)?), size));
        let threads = Threads::start(&tier)?;
        Ok(Self::with_disk(memory, tier, Box::new(threads), random))
    }

    /// The responses under a key's bytes that are in memory.
    #[must_use]
    pub fn get(&self, key: &[u8]) -> Option<Arc<Variants>> {
        self.memory.get(key)
    }

    /// A key was asked for: what is kept, and for how long, depends on how often that is.
    pub fn asked(&self, key: &[u8]) {
        if let Some(disk) = &self.disk {
            disk.tier.asked(key);
        }
    }

    /// Whether the disk may hold what `found` in memory does not; [`Store::load`] brings it.
    #[must_use]
    pub fn may_load(&self, key: &CacheKey, found: Option<&Arc<Variants>>) -> bool {
        let Some(disk) = &self.disk else { return false };
        found.is_none_or(|v| !v.are_all()) && disk.tier.has(key.as_bytes())
    }

    /// Brings what the disk holds of a key into memory. It resolves to nothing where that cannot be had.
    #[must_use]
    pub fn load(&self, key: &CacheKey) -> Option<oneshot::Receiver<Arc<Variants>>> {
        let disk = self.disk.as_ref()?;
        let (sender, receiver) = oneshot::channel();
        {
            let mut loading = disk.loading.lock();
            if loading.len() >= MOST_LOADING && !loading.contains_key(key) {
                return None;
            }
            let mine = loading.entry(key.clone()).or_default();
            mine.waiting.push(sender);
            if mine.waiting.len() > 1 {
                return Some(receiver);
            }
        }
        let (tier, memory, loading, key) = (Arc::clone(&disk.tier), Arc::clone(&self.memory), Arc::clone(&disk.loading), key.clone());
        disk.executor.read(Box::new(move || {
            let read = tier.load(&key);
            // Held while it enters memory: a removal comes wholly before that, and is seen, or wholly after.
            let mut loading = loading.lock();
            let Some(mine) = loading.remove(&key) else { return };
            let merged = if mine.removed { None } else { memory.merge(&key, read.into_iter().map(Arc::new).collect()) };
            drop(loading);
            if let Some(variants) = merged {
                for waiting in mine.waiting {
                    let _ = waiting.send(Arc::clone(&variants));
                }
            }
        }));
        Some(receiver)
    }

    /// The largest body that is kept, in bytes: one object must not push out most others.
    #[must_use]
    pub fn most_body(&self) -> u64 {
        self.memory.most_body()
    }

    /// Bytes stored in memory, about, and the bound.
    #[must_use]
    pub fn usage(&self) -> (u64, u64) {
        self.memory.usage()
    }

    #[must_use]
    pub fn disk(&self) -> Option<&Arc<Tier>> {
        self.disk.as_ref().map(|d| &d.tier)
    }

    fn wake_writer(&self) {
        if let Some(disk) = self.disk.as_ref().filter(|d| d.tier.is_waiting()) {
            disk.executor.wake_writer();
        }
    }

    /// Keeps the pieces of a body that is stored under `key`: all but the last are [`CHUNK`] bytes long.
    #[must_use]
    pub fn keep_body(&self, key: &CacheKey, pieces: &[Bytes]) -> Body {
        let on_disk = self.disk.as_ref().map(|d| &d.tier).filter(|_| pieces.len() > 1).filter(|tier| tier.admits(key) && tier.has_room());
        let mut body = self.memory.keep_body(pieces.to_vec());
        if let (Some(tier), Body::Chunked { object, on_disk, .. }) = (on_disk, &mut body) {
            *on_disk = true;
            for (n, piece) in (0u64..).zip(pieces) {
                tier.put_chunk(key, *object, n, piece);
            }
            self.wake_writer();
        }
        body
    }

    /// A body of `length` bytes under `key` of which nothing is here yet: [`Store::keep_piece`] brings it, in any order.
    #[must_use]
    pub fn begin_body(&self, key: &CacheKey, length: u64) -> Body {
        let on_disk = self.disk.as_ref().is_some_and(|d| d.tier.admits(key) && d.tier.has_room());
        Body::Chunked { object: self.memory.next_object(), length, on_disk }
    }

    /// Keeps a piece of a body that is stored under `key`.
    pub fn keep_piece(&self, key: &CacheKey, body: &Body, number: u64, piece: Bytes) {
        let Body::Chunked { object, on_disk, .. } = body else { return };
        if let Some(tier) = self.disk.as_ref().map(|d| &d.tier).filter(|tier| *on_disk && tier.has_room()) {
            tier.put_chunk(key, *object, number, &piece);
            self.wake_writer();
        }
        self.memory.put_chunk(&CacheKey::chunk(*object, number), piece);
    }

    /// The bytes from `first` through `last` of a body; `None` where a piece is gone: the response is then of no use.
    #[must_use]
    pub fn body(&self, body: &Body, first: u64, last: u64) -> Option<Vec<Piece>> {
        if let Body::Whole(_) = body {
            return body.of_whole(first, last).map(|piece| vec![Piece::Here(piece)]);
        }
        if last >= body.len() || first > last {
            return None;
        }
        let chunk = CHUNK as u64;
        (first / chunk..=last / chunk).map(|n| self.piece(body, first.max(n * chunk), last)).collect()
    }

    /// What one piece of a body holds of the bytes from `first` through `last`, beginning with `first`; `None` where it is not here.
    #[must_use]
    pub fn piece(&self, body: &Body, first: u64, last: u64) -> Option<Piece> {
        let (object, length) = match body {
            Body::Whole(_) => return body.of_whole(first, last).map(Piece::Here),
            Body::Chunked { object, length, .. } => (*object, *length),
        };
        let chunk = CHUNK as u64;
        let n = first / chunk;
        let start = usize::try_from(first % chunk).ok()?;
        let end = usize::try_from((last + 1).min(length).min((n + 1) * chunk).checked_sub(n * chunk)?).ok()?;
        let key = CacheKey::chunk(object, n);
        if let Some(piece) = self.memory.chunk(&key) {
            return (start < end && end <= piece.len()).then(|| Piece::Here(piece.slice(start..end)));
        }
        let at = self.disk.as_ref()?.tier.find_chunk(object, n)?;
        (start < end).then_some(Piece::OnDisk(DiskPiece { at, key, range: start..end }))
    }

    /// How many bytes of a body are here.
    #[must_use]
    pub fn bytes_here(&self, body: &Body) -> u64 {
        let (chunk, Some(last)) = (CHUNK as u64, body.len().checked_sub(1)) else { return 0 };
        let piece = |n| self.piece(body, n * chunk, last).map_or(0, |p| p.len() as u64);
        if let Body::Whole(_) = body { body.len() } else { (0..=last / chunk).map(piece).sum() }
    }

    /// Reads a part of a chunk, which is in memory then. It resolves to nothing where the disk failed.
    #[must_use]
    pub fn read(&self, piece: DiskPiece) -> oneshot::Receiver<Bytes> {
        let (sender, receiver) = oneshot::channel();
        if let Some(disk) = &self.disk {
            let (tier, memory) = (Arc::clone(&disk.tier), Arc::clone(&self.memory));
            disk.executor.read(Box::new(move || {
                let Some(chunk) = tier.read_chunk(&piece.at) else { return };
                if piece.range.end <= chunk.len() {
                    let part = chunk.slice(piece.range);
                    memory.put_chunk(&piece.key, chunk);
                    let _ = sender.send(part);
                }
            }));
        }
        receiver
    }

    /// Puts `response` in the place of what matched the same requests. One that is older by the log does not displace a
    /// newer one.
    pub fn put(&self, key: &CacheKey, response: &Arc<StoredResponse>) {
        self.memory.put(key, response, || {
            // To the disk first: a removal that comes after it is in memory finds it there too.
            let Some(disk) = &self.disk else { return };
            let wanted = match response.body {
                Body::Whole(_) => disk.tier.admits(key) && disk.tier.has_room(),
                Body::Chunked { on_disk, .. } => on_disk,
            };
            if wanted {
                disk.tier.put(key, response);
            } else if disk.tier.may_hold(key) {
                // What it takes the place of must not come back.
                disk.tier.drop_response(key, response);
            }
        });
        self.wake_writer();
    }

    /// Keeps what `of`, the body of a response under `key`, is in another coding; nothing where that response is gone.
    pub fn put_coding(&self, key: &CacheKey, of: &Body, coding: Coding, pieces: &[Bytes]) {
        let body = self.keep_body(key, pieces);
        let on_disk = [of, &body].iter().all(|b| !matches!(b, Body::Chunked { on_disk: false, .. }));
        let tier = self.disk.as_ref().map(|d| &d.tier).filter(|tier| on_disk && tier.admits(key) && tier.has_room());
        self.memory.put_coding(key, of, coding, &body, |response| {
            if let Some(tier) = tier {
                tier.put(key, response);
            }
        });
        self.wake_writer();
    }

    /// Drops all responses of a key.
    pub fn remove(&self, key: &CacheKey) {
        self.drop_both(key, |memory| memory.remove(key), |tier| tier.remove(key));
    }

    /// Drops one response, where it is still there: a purged one, whose room need not wait for its eviction.
    pub fn drop_response(&self, key: &CacheKey, response: &Arc<StoredResponse>) {
        self.drop_both(key, |memory| memory.drop_response(key, response), |tier| tier.drop_response(key, response));
    }

    fn drop_both(&self, key: &CacheKey, of_memory: impl Fn(&MemoryTier), of_disk: impl FnOnce(&disk::Tier)) {
        // First here: what goes to the disk goes there while it is in memory. And once more: the disk may have been read meanwhile.
        of_memory(&self.memory);
        if self.disk.is_some() {
            self.forget(key, of_disk);
            of_memory(&self.memory);
        }
    }

    fn forget(&self, key: &CacheKey, of_disk: impl FnOnce(&disk::Tier)) {
        let Some(disk) = &self.disk else { return };
        if disk.tier.may_hold(key) {
            of_disk(&disk.tier);
        }
        if let Some(loading) = disk.loading.lock().get_mut(key) {
            loading.removed = true;
        }
        self.wake_writer();
    }

    /// The origin's answer to this key could not be shared: for a while its requests do not wait for one another.
    pub fn pass(&self, key: &CacheKey, whose: Passed) {
        self.memory.pass(key, whose);
    }

    /// The origin's answer to this key can be shared after all.
    pub fn share(&self, key: &CacheKey) {
        self.memory.share(key);
    }

    /// How ranges of this key are to be asked for, for a while.
    pub fn note_ranges(&self, key: &CacheKey, ranges: Ranges) {
        self.memory.note_ranges(key, ranges);
    }

    #[must_use]
    pub fn ranges(&self, key: &CacheKey) -> Ranges {
        self.memory.ranges(key)
    }

    /// The requests for a key that are not shared, if any.
    #[must_use]
    pub fn passed(&self, key: &CacheKey) -> Option<Passed> {
        self.memory.passed(key)
    }

    /// Nothing more comes: the disk tier writes what waits.
    pub fn close(&self) {
        if let Some(disk) = &self.disk {
            disk.executor.close();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn any_range_of_a_chunked_body_is_right(length in 1usize..3 * CHUNK, a in 0u64..3 * CHUNK as u64, b in 0u64..3 * CHUNK as u64) {
            let store = Store::new(64 << 20);
            let whole: Vec<u8> = (0..length).map(|n| (n * 7 + n / 251) as u8).collect();
            let pieces: Vec<_> = whole.chunks(CHUNK).map(Bytes::copy_from_slice).collect();
            let body = store.keep_body(&CacheKey::chunk(0, 0), &pieces);
            prop_assert_eq!(body.len(), length as u64);
            let got = store.body(&body, a, b).map(|pieces| {
                pieces.iter().flat_map(|p| if let Piece::Here(bytes) = p { bytes.to_vec() } else { Vec::new() }).collect::<Vec<_>>()
            });
            let want = (a <= b && b < length as u64).then(|| whole[a as usize..=b as usize].to_vec());
            prop_assert_eq!(got, want);
        }
    }
}
