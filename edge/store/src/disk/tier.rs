//! The disk tier: a log of segments, in which new records follow old ones until the size is used up; then the oldest segment
//! goes, and what of it is still asked for is written anew at the log's end.
//!
//! Nothing is changed in place, so that a crash at any instruction leaves a prefix of the log and at most one torn record,
//! which its checksum gives away. Nothing here has to be durable: what is lost costs hits. What it says of purges is never
//! wrong for having lost something, since each response carries the index through which it was known not to be purged.
//!
//! All calls block; `threads` keeps them away from the workers. Jobs are done in the order in which they were queued.

use super::MAX_VARIANTS;
use super::medium::{Medium, Segment};
use super::record::{self, HEAD, Kind, Listed, Name, Place, SEGMENT_HEADER};
use super::{index::Index, response};
use crate::sketch::Sketch;
use crate::stored::StoredResponse;
use bytes::Bytes;
use parking_lot::Mutex;
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use tidegate_cache::CacheKey;

/// Bytes that are handed to the disk at once.
const WRITE_AT: usize = 1 << 20;
/// Bytes that may wait for the disk; an object that comes on top of as much is not kept there.
const MOST_WAITING: usize = 32 << 20;
const LEAST_SEGMENT: u64 = 1 << 20;
const MOST_SEGMENT: u64 = 256 << 20;
/// What was forgotten while nothing could be written.
const MOST_OWED: usize = 100_000;
/// A full disk keeps what is asked for this often at least.
const WANTED: u8 = 2;

/// What waits to be done.
enum Job {
    Response {
        key: CacheKey,
        response: Arc<StoredResponse>,
    },
    Chunk {
        name: Name,
        head: [u8; 24],
        bytes: Bytes,
    },
    /// The name, for one variant; all variants of its hash otherwise.
    Forget {
        ticket: u64,
        kind: Kind,
        name: Name,
    },
}

impl Job {
    fn weight(&self) -> usize {
        match self {
            Self::Response { response, .. } => response.weight(),
            Self::Chunk { bytes, .. } => bytes.len(),
            Self::Forget { .. } => 0,
        }
    }
}

#[derive(Default)]
struct Waiting {
    jobs: VecDeque<Job>,
    bytes: usize,
    ticket: u64,
    /// How many responses of each key's hash wait, or are in the writer's buffer.
    responses: HashMap<u64, u32>,
}

/// What look-ups need.
#[derive(Default)]
struct Found {
    index: Index,
    segments: BTreeMap<u32, Arc<dyn Segment>>,
    /// Hashes of keys that are to be forgotten, with the ticket of the job that will: until it is done nothing of theirs is
    /// found.
    barred: HashMap<u64, u64>,
}

struct Active {
    number: u32,
    file: Arc<dyn Segment>,
    /// Bytes that are in the file.
    written: u64,
    buffer: Vec<u8>,
    /// What the buffer holds, with where it stood before, of records that move.
    pending: Vec<(Listed, Option<Place>)>,
    list: Vec<Listed>,
}

impl Active {
    fn end(&self) -> u64 {
        self.written + self.buffer.len() as u64
    }
}

/// What is written anew: where it was, and the record.
type Kept = (Listed, Place, Vec<u8>);

#[derive(Default)]
struct Log {
    active: Option<Active>,
    next: u32,
    /// Bytes of the segments that are written no more.
    sealed: BTreeMap<u32, u64>,
    /// What was forgotten and could not be written down: the next segment begins with it.
    owed: Vec<(Kind, Name)>,
}

/// What happened since the start.
#[derive(Debug, Default)]
pub struct DiskFigures {
    pub bytes: AtomicU64,
    pub records: AtomicU64,
    pub reads: AtomicU64,
    pub written_bytes: AtomicU64,
    /// Not kept, since the disk could not follow.
    pub overrun: AtomicU64,
    pub damaged: AtomicU64,
    pub errors: AtomicU64,
}

fn add(figure: &AtomicU64, n: u64) {
    figure.fetch_add(n, Ordering::Relaxed);
}

/// A chunk that was found, readable for as long as this is held.
pub struct ChunkAt {
    file: Arc<dyn Segment>,
    place: Place,
    name: Name,
    object: u64,
    number: u64,
}

pub struct Tier {
    medium: Box<dyn Medium>,
    size: u64,
    segment_size: u64,
    found: Mutex<Found>,
    waiting: Mutex<Waiting>,
    log: Mutex<Log>,
    sketch: Sketch,
    /// A new response has to be asked for this often at least; 0 while there is room.
    least_wanted: AtomicU8,
    ready: AtomicBool,
    pub figures: DiskFigures,
}

impl Tier {
    /// Of at most `size` bytes; [`Tier::recover`] finds what is there.
    #[must_use]
    pub fn new(medium: Box<dyn Medium>, size: u64) -> Self {
        Self {
            medium,
            size,
            segment_size: (size / 64).clamp(LEAST_SEGMENT.min(size / 4), MOST_SEGMENT),
            found: Mutex::default(),
            waiting: Mutex::default(),
            log: Mutex::default(),
            sketch: Sketch::new(size / (4 << 10)),
            least_wanted: AtomicU8::new(0),
            ready: AtomicBool::new(false),
            figures: DiskFigures::default(),
        }
    }

    #[cfg(test)]
    #[must_use]
    pub fn of_objects(mut self, segment_size: u64, count: u64) -> Self {
        (self.segment_size, self.sketch) = (segment_size, Sketch::new(count));
        self
    }

    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// A key was asked for.
    pub fn asked(&self, key: &[u8]) {
        self.sketch.count(record::hash(key));
    }

    /// Whether a new response of this key is worth its room.
    #[must_use]
    pub fn admits(&self, key: &CacheKey) -> bool {
        self.sketch.estimate(record::hash(key.as_bytes())) >= self.least_wanted.load(Ordering::Relaxed)
    }

    #[must_use]
    pub fn has(&self, key: &[u8]) -> bool {
        let hash = record::hash(key);
        let found = self.found.lock();
        found.index.has(hash) && !found.barred.contains_key(&hash)
    }

    fn queue(&self, make: impl FnOnce(u64) -> Job) {
        let mut waiting = self.waiting.lock();
        waiting.ticket += 1;
        let job = make(waiting.ticket);
        waiting.bytes += job.weight();
        waiting.jobs.push_back(job);
    }

    /// Whether the disk follows: what comes while it does not is not kept there.
    #[must_use]
    pub fn has_room(&self) -> bool {
        let follows = self.waiting.lock().bytes < MOST_WAITING;
        if !follows {
            add(&self.figures.overrun, 1);
        }
        follows
    }

    /// Whether anything of this key is here, or will be.
    #[must_use]
    pub fn may_hold(&self, key: &CacheKey) -> bool {
        let hash = record::hash(key.as_bytes());
        self.waiting.lock().responses.contains_key(&hash) || self.found.lock().index.has(hash) || !self.is_ready()
    }

    /// What an earlier life left behind has been found.
    fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Acquire)
    }

    /// To be kept.
    pub fn put(&self, key: &CacheKey, response: &Arc<StoredResponse>) {
        *self.waiting.lock().responses.entry(record::hash(key.as_bytes())).or_default() += 1;
        self.queue(|_| Job::Response { key: key.clone(), response: Arc::clone(response) });
    }

    pub fn put_chunk(&self, key: &CacheKey, object: u64, number: u64, bytes: &Bytes) {
        let mut head = [0; 24];
        head[..16].copy_from_slice(&record::chunk_name(object, number));
        head[16..].copy_from_slice(&record::hash(key.as_bytes()).to_le_bytes());
        self.queue(|_| Job::Chunk { name: Name::chunk(object, number), head, bytes: bytes.clone() });
    }

    /// From now on nothing of this key is found, after a restart neither.
    pub fn remove(&self, key: &CacheKey) {
        self.forget(Kind::Removed, Name { hash: record::hash(key.as_bytes()), variant: 0 });
    }

    pub fn drop_response(&self, key: &CacheKey, response: &StoredResponse) {
        self.forget(Kind::Dropped, response::name(key, response));
    }

    fn forget(&self, kind: Kind, name: Name) {
        // Barred first: what is found until the job is done would come back.
        let mut found = self.found.lock();
        self.queue(|ticket| {
            found.barred.insert(name.hash, ticket);
            Job::Forget { ticket, kind, name }
        });
    }

    /// Whether there is anything to do.
    #[must_use]
    pub fn is_waiting(&self) -> bool {
        !self.waiting.lock().jobs.is_empty()
    }

    /// Does all that waits. Errors cost what they struck, and are counted.
    pub fn work(&self) {
        let mut log = self.log.lock();
        let mut done = Vec::new();
        loop {
            let next = {
                let mut waiting = self.waiting.lock();
                let next = waiting.jobs.pop_front();
                waiting.bytes -= next.as_ref().map_or(0, Job::weight);
                next
            };
            let Some(job) = next else { break };
            if let Job::Response { key, .. } = &job {
                done.push(record::hash(key.as_bytes()));
            }
            let worked = self.job(&mut log, job);
            self.note(worked);
        }
        let flushed = self.flush(&mut log);
        self.note(flushed);
        self.written(&done);
        self.sketch.fade();
        self.measure(&log);
    }

    /// These wait no more: they are in the index, or lost.
    fn written(&self, hashes: &[u64]) {
        let mut waiting = self.waiting.lock();
        for hash in hashes {
            if let Some(count) = waiting.responses.get_mut(hash) {
                *count -= 1;
                if *count == 0 {
                    waiting.responses.remove(hash);
                }
            }
        }
    }

    fn note(&self, done: io::Result<()>) {
        if let Err(error) = done {
            // Once in a while is enough: a full disk says it for every object.
            let before = self.figures.errors.fetch_add(1, Ordering::Relaxed);
            if before.is_power_of_two() || before == 0 {
                tracing::error!(%error, errors = before + 1, "the disk tier could not be written; what it should have kept costs hits");
            }
        }
    }

    fn job(&self, log: &mut Log, job: Job) -> io::Result<()> {
        match job {
            // It was overtaken.
            Job::Response { response, .. } if response.is_replaced() => Ok(()),
            Job::Response { key, response } => {
                let name = response::name(&key, &response);
                let head = response::encode(&key, &response);
                let bodies = response::bodies(&response);
                let parts: Vec<&[u8]> = std::iter::once(&head[..]).chain(bodies.iter().map(|b| &b[..])).collect();
                self.append_or_lose(log, Kind::Response, name, &parts)
            }
            Job::Chunk { name, head, bytes } => self.append_or_lose(log, Kind::Chunk, name, &[&head, &bytes]),
            Job::Forget { ticket, kind, name } => {
                // What was queued before it and still is in the buffer must not be found after it.
                let flushed = self.flush(log);
                {
                    let mut found = self.found.lock();
                    match kind {
                        Kind::Removed => found.index.remove_variants(name.hash),
                        _ => found.index.remove(name),
                    }
                    if found.barred.get(&name.hash) == Some(&ticket) {
                        found.barred.remove(&name.hash);
                    }
                }
                flushed.and(self.append_or_lose(log, kind, name, &[]))
            }
        }
    }

    fn append_or_lose(&self, log: &mut Log, kind: Kind, name: Name, parts: &[&[u8]]) -> io::Result<()> {
        let appended = self.append(log, None, kind, name, parts);
        if appended.is_err() {
            self.lost(log, kind, name);
        }
        appended
    }

    fn append(&self, log: &mut Log, from: Option<Place>, kind: Kind, name: Name, parts: &[&[u8]]) -> io::Result<()> {
        let size = (HEAD + parts.iter().map(|p| p.len()).sum::<usize>()) as u64;
        if SEGMENT_HEADER as u64 + size > self.segment_size {
            return Ok(());
        }
        if log.active.as_ref().is_some_and(|a| a.end() + size > self.segment_size) {
            self.seal(log)?;
        }
        if log.active.is_none() {
            self.begin(log)?;
        }
        let Some(active) = &mut log.active else { return Ok(()) };
        let offset = u32::try_from(active.end()).map_err(io::Error::other)?;
        if let Some(place) = record::write(&mut active.buffer, active.number, offset, kind, name, parts) {
            active.pending.push((Listed { kind, name, offset: place.offset, length: place.length }, from));
        }
        if active.buffer.len() >= WRITE_AT { self.flush(log) } else { Ok(()) }
    }

    /// Writes out the buffer; what it held is found from then on.
    fn flush(&self, log: &mut Log) -> io::Result<()> {
        let Some(active) = log.active.as_mut().filter(|a| !a.buffer.is_empty()) else { return Ok(()) };
        if let Err(e) = active.file.write(active.written, &active.buffer) {
            // What of it was written nobody knows: this segment ends before it.
            active.buffer.clear();
            for (listed, _) in std::mem::take(&mut active.pending) {
                self.lost(log, listed.kind, listed.name);
            }
            let _ = self.seal(log);
            if e.kind() == io::ErrorKind::StorageFull {
                // Others use this disk too: what is kept has to shrink.
                self.shrink(log);
            }
            return Err(e);
        }
        add(&self.figures.written_bytes, active.buffer.len() as u64);
        active.written += active.buffer.len() as u64;
        active.buffer.clear();
        let mut found = self.found.lock();
        for (listed, from) in active.pending.drain(..) {
            active.list.push(listed);
            let place = Place { segment: active.number, offset: listed.offset, length: listed.length };
            match (listed.kind, from) {
                (Kind::Response | Kind::Chunk, Some(old)) => found.index.moved(listed.name, old, place),
                (Kind::Chunk, None) => found.index.put(listed.name, place),
                (Kind::Response, None) => {
                    found.index.put(listed.name, place);
                    found.index.keep_variants(listed.name.hash, MAX_VARIANTS);
                }
                (Kind::Dropped | Kind::Removed, _) => {}
            }
        }
        Ok(())
    }

    /// A record could not be written. What it would have taken the place of must not be found either, now or after a restart.
    fn lost(&self, log: &mut Log, kind: Kind, name: Name) {
        match kind {
            Kind::Chunk => self.found.lock().index.remove(name),
            Kind::Response => {
                self.found.lock().index.remove(name);
                self.owe(log, Kind::Dropped, name);
            }
            Kind::Dropped | Kind::Removed => self.owe(log, kind, name),
        }
    }

    /// Writes it down with the next segment. Where that takes too long, nothing is kept that could come back.
    fn owe(&self, log: &mut Log, kind: Kind, name: Name) {
        log.owed.push((kind, name));
        if log.owed.len() > MOST_OWED {
            log.owed.clear();
            let active = log.active.take().map(|a| a.number);
            for segment in std::mem::take(&mut log.sealed).into_keys().chain(active) {
                let removed = self.medium.remove(segment);
                self.note(removed);
            }
            let mut found = self.found.lock();
            (found.index, found.segments) = (Index::default(), BTreeMap::new());
        }
    }

    /// Forgets the oldest segment.
    fn shrink(&self, log: &mut Log) {
        if let Some((oldest, _)) = log.sealed.pop_first() {
            self.leave(oldest, false);
            self.found.lock().segments.remove(&oldest);
            let removed = self.medium.remove(oldest);
            self.note(removed);
        }
    }

    fn seal(&self, log: &mut Log) -> io::Result<()> {
        let flushed = self.flush(log);
        let Some(active) = log.active.take() else { return flushed };
        if active.list.is_empty() {
            self.found.lock().segments.remove(&active.number);
            return flushed.and(self.medium.remove(active.number));
        }
        let list = record::write_list(active.number, &active.list);
        log.sealed.insert(active.number, active.written + list.len() as u64);
        flushed.and(self.medium.write_list(active.number, &list))
    }

    /// A new segment at the end of the log, after making room for it.
    fn begin(&self, log: &mut Log) -> io::Result<()> {
        let number = log.next;
        log.next = number.checked_add(1).ok_or_else(|| io::Error::other("no more segments can be numbered: empty the folder"))?;
        let (mut leaving, mut kept) = (Vec::new(), Vec::new());
        let begun = self.begin_in_place_of(log, number, &mut leaving, &mut kept);
        // What moved is where it went by now; what did not is gone.
        let mut found = self.found.lock();
        leaving.iter().for_each(|segment| drop(found.segments.remove(segment)));
        kept.iter().for_each(|(listed, old, _)| found.index.remove_at(listed.name, *old));
        begun
    }

    fn begin_in_place_of(&self, log: &mut Log, number: u32, leaving: &mut Vec<u32>, kept: &mut Vec<Kept>) -> io::Result<()> {
        // Room for this one, and its list.
        while log.sealed.values().sum::<u64>() + self.segment_size * 9 / 8 > self.size {
            let Some((oldest, _)) = log.sealed.pop_first() else { break };
            // What is kept of the first goes into the new one; of further ones there would be no room for it.
            let of_this = self.leave(oldest, leaving.is_empty());
            if leaving.is_empty() {
                *kept = of_this;
            }
            leaving.push(oldest);
            // Whoever reads it still can.
            self.medium.remove(oldest)?;
        }
        let file = self.medium.create(number)?;
        self.found.lock().segments.insert(number, Arc::clone(&file));
        let buffer = record::segment_header(number).to_vec();
        log.active = Some(Active { number, file, written: 0, buffer, pending: Vec::new(), list: Vec::new() });
        while let Some((kind, name)) = log.owed.pop() {
            if let Err(e) = self.append(log, None, kind, name, &[]) {
                log.owed.push((kind, name));
                return Err(e);
            }
        }
        for (listed, old, record) in &*kept {
            let payload = record.get(HEAD..).unwrap_or_default();
            self.append(log, Some(*old), listed.kind, listed.name, &[payload])?;
        }
        self.flush(log)
    }

    /// Forgets what a segment holds, but for what is asked for most; returns that.
    fn leave(&self, segment: u32, keep: bool) -> Vec<Kept> {
        let Some(file) = self.found.lock().segments.get(&segment).map(Arc::clone) else { return Vec::new() };
        let mut room = if keep { self.segment_size / 4 * 3 } else { 0 };
        let all = self.list(segment, &*file).into_iter().map(|listed| {
            let place = Place { segment, offset: listed.offset, length: listed.length };
            (self.worth(&*file, &listed, place), listed, place)
        });
        let mut all: Vec<_> = all.collect();
        // The most wanted first, and among equals the latest.
        all.sort_by_key(|(worth, _, place)| std::cmp::Reverse((*worth, place.offset)));
        let (mut kept, mut least) = (Vec::new(), WANTED);
        for (worth, listed, place) in all {
            let fits = worth >= WANTED && place.size() <= room;
            if let Some(record) = fits.then(|| self.read(&*file, place)).flatten() {
                room -= place.size();
                kept.push((listed, place, record));
            } else {
                least = least.max(worth);
                self.found.lock().index.remove_at(listed.name, place);
            }
        }
        if keep {
            // What comes anew has to be wanted more than what had to go for it.
            self.least_wanted.store(least, Ordering::Relaxed);
        }
        kept.sort_by_key(|(_, place, _)| place.offset);
        kept
    }

    /// How often the record was asked for of late; 0 where nobody can find it any more.
    fn worth(&self, file: &dyn Segment, listed: &Listed, place: Place) -> u8 {
        if self.found.lock().index.get(listed.name) != Some(place) {
            return 0;
        }
        if !listed.name.is_chunk() {
            return self.sketch.estimate(listed.name.hash);
        }
        // It is worth as much as the response that it belongs to.
        let mut key = [0; 8];
        if file.read(u64::from(place.offset) + HEAD as u64 + 16, &mut key).is_err() {
            return 0;
        }
        let hash = u64::from_le_bytes(key);
        if self.found.lock().index.has(hash) { self.sketch.estimate(hash) } else { 0 }
    }

    fn list(&self, segment: u32, file: &dyn Segment) -> Vec<Listed> {
        let list = self.medium.read_list(segment).ok().and_then(|bytes| record::read_list(segment, &bytes));
        list.unwrap_or_else(|| {
            let length = file.length().unwrap_or(0).min(MOST_SEGMENT * 2);
            let mut bytes = vec![0; usize::try_from(length).unwrap_or(0)];
            if file.read(0, &mut bytes).is_err() {
                bytes.clear();
            }
            record::scan(segment, &bytes)
        })
    }

    /// Finds what an earlier life left behind.
    pub fn recover(&self) {
        let mut log = self.log.lock();
        let done = self.recover_log(&mut log);
        self.note(done);
        self.ready.store(true, Ordering::Release);
        // The size may be another one than before.
        while log.sealed.values().sum::<u64>() > self.size {
            self.shrink(&mut log);
        }
        self.measure(&log);
    }

    fn recover_log(&self, log: &mut Log) -> io::Result<()> {
        let mut segments = self.medium.segments()?;
        segments.sort_unstable();
        log.next = segments.last().map_or(1, |last| last.saturating_add(1));
        // Seen as a whole, once all of it is there: what comes later may say that what came before is gone.
        let (mut index, mut files) = (Index::default(), BTreeMap::new());
        for segment in segments {
            let Ok(file) = self.medium.open(segment) else { continue };
            let listed = self.medium.read_list(segment).ok().and_then(|bytes| record::read_list(segment, &bytes));
            let was_listed = listed.is_some();
            let list = listed.unwrap_or_else(|| self.list(segment, &*file));
            if list.is_empty() {
                let removed = self.medium.remove(segment);
                self.note(removed);
                continue;
            }
            log.sealed.insert(segment, file.length().unwrap_or(0) + (list.len() * 24) as u64);
            if !was_listed {
                let written = self.medium.write_list(segment, &record::write_list(segment, &list));
                self.note(written);
            }
            for l in list {
                match l.kind {
                    Kind::Response | Kind::Chunk => index.put(l.name, Place { segment, offset: l.offset, length: l.length }),
                    Kind::Dropped => index.remove(l.name),
                    Kind::Removed => index.remove_variants(l.name.hash),
                }
            }
            files.insert(segment, file);
        }
        let mut found = self.found.lock();
        (found.index, found.segments) = (index, files);
        Ok(())
    }

    fn measure(&self, log: &Log) {
        let active = log.active.as_ref().map_or(0, Active::end);
        self.figures.bytes.store(log.sealed.values().sum::<u64>() + active, Ordering::Relaxed);
        self.figures.records.store(self.found.lock().index.len() as u64, Ordering::Relaxed);
    }

    /// Writes out all there is, and the list of what the last segment holds: the next start finds it at once.
    pub fn close(&self) {
        self.work();
        let mut log = self.log.lock();
        if !log.owed.is_empty() {
            let begun = self.begin(&mut log);
            self.note(begun);
        }
        let done = self.seal(&mut log);
        self.note(done);
    }

    /// A whole record, where it is as it was written.
    fn read(&self, file: &dyn Segment, place: Place) -> Option<Vec<u8>> {
        let mut record = vec![0; usize::try_from(place.size()).ok()?];
        add(&self.figures.reads, 1);
        let read = file.read(u64::from(place.offset), &mut record);
        if read.is_ok() && record::check(place, &record).is_some() {
            return Some(record);
        }
        let records = self.figures.damaged.fetch_add(1, Ordering::Relaxed) + 1;
        // A disk that fails may have damaged them all.
        if records.is_power_of_two() {
            let (segment, offset) = (place.segment, place.offset);
            tracing::warn!(segment, offset, records, error = ?read.err(), "a record of the disk tier is damaged, and not used");
        }
        None
    }

    /// The responses that are kept of a key, the latest first.
    #[must_use]
    pub fn load(&self, key: &CacheKey) -> Vec<StoredResponse> {
        let hash = record::hash(key.as_bytes());
        let mut places: Vec<_> = {
            let mut found = self.found.lock();
            if found.barred.contains_key(&hash) {
                return Vec::new();
            }
            let variants = found.index.variants(hash);
            let with_file = |(name, place): (Name, Place)| {
                let file = found.segments.get(&place.segment).map(Arc::clone);
                if file.is_none() {
                    found.index.remove_at(name, place);
                }
                Some((name, place, file?))
            };
            variants.into_iter().filter_map(with_file).collect()
        };
        places.sort_unstable_by_key(|(_, p, _)| std::cmp::Reverse((p.segment, p.offset)));
        places.truncate(MAX_VARIANTS);
        let mut responses = Vec::new();
        for (name, place, file) in places {
            match self.read(&*file, place) {
                Some(record) => responses.extend(response::decode(key, &Bytes::from(record).slice(HEAD..))),
                None => self.found.lock().index.remove_at(name, place),
            }
        }
        // Where they lie does not say which is the newest: what is asked for often was moved.
        responses.sort_by_key(|r| std::cmp::Reverse((r.freshness.response_time, r.begun)));
        responses
    }

    #[must_use]
    pub fn find_chunk(&self, object: u64, number: u64) -> Option<ChunkAt> {
        let name = Name::chunk(object, number);
        let found = self.found.lock();
        let place = found.index.get(name)?;
        let file = Arc::clone(found.segments.get(&place.segment)?);
        Some(ChunkAt { file, place, name, object, number })
    }

    /// `None`: it is damaged, and forgotten.
    #[must_use]
    pub fn read_chunk(&self, at: &ChunkAt) -> Option<Bytes> {
        let record = self.read(&*at.file, at.place).filter(|r| r.get(HEAD..HEAD + 16) == Some(&record::chunk_name(at.object, at.number)));
        if record.is_none() {
            self.found.lock().index.remove_at(at.name, at.place);
        }
        Some(Bytes::from(record?).slice(HEAD + 24..))
    }
}
