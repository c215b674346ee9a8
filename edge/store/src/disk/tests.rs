//! The disk tier on a disk in memory, that can be torn at any byte.

use super::record;
use super::{Medium, Segment, Tier};
use crate::stored::{Body, StoredResponse};
use bytes::Bytes;
use http::{HeaderMap, StatusCode};
use parking_lot::Mutex;
use proptest::prelude::*;
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::Arc;
use std::time::Instant;
use tidegate_cache::{CacheKey, Freshness, Incarnation, Revision, Target, VaryKey};

type File = Arc<Mutex<Vec<u8>>>;

#[derive(Clone, Default)]
pub struct Disk {
    segments: Arc<Mutex<BTreeMap<u32, File>>>,
    lists: Arc<Mutex<BTreeMap<u32, Vec<u8>>>>,
    /// Bytes that can still be written; with none at all the disk is broken rather than full.
    room: Arc<Mutex<Option<usize>>>,
}

struct Open(File, Arc<Mutex<Option<usize>>>);

impl Segment for Open {
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let file = self.0.lock();
        let at = usize::try_from(offset).unwrap();
        let from = file.get(at..at + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(from);
        Ok(())
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        if let Some(room) = &mut *self.1.lock() {
            if *room == 0 {
                return Err(io::Error::other("broken"));
            }
            *room = room.checked_sub(bytes.len()).ok_or(io::ErrorKind::StorageFull)?;
        }
        let mut file = self.0.lock();
        let at = usize::try_from(offset).unwrap();
        file.resize(at, 0);
        file.extend_from_slice(bytes);
        Ok(())
    }

    fn length(&self) -> io::Result<u64> {
        Ok(self.0.lock().len() as u64)
    }
}

impl Medium for Disk {
    fn segments(&self) -> io::Result<Vec<u32>> {
        Ok(self.segments.lock().keys().copied().collect())
    }

    fn create(&self, segment: u32) -> io::Result<Arc<dyn Segment>> {
        let file = File::default();
        assert!(self.segments.lock().insert(segment, Arc::clone(&file)).is_none(), "a segment is made once");
        Ok(Arc::new(Open(file, Arc::clone(&self.room))))
    }

    fn open(&self, segment: u32) -> io::Result<Arc<dyn Segment>> {
        let file = self.segments.lock().get(&segment).map(Arc::clone).ok_or(io::ErrorKind::NotFound)?;
        Ok(Arc::new(Open(file, Arc::clone(&self.room))))
    }

    fn remove(&self, segment: u32) -> io::Result<()> {
        self.lists.lock().remove(&segment);
        self.segments.lock().remove(&segment).map(drop).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn read_list(&self, segment: u32) -> io::Result<Vec<u8>> {
        self.lists.lock().get(&segment).cloned().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn write_list(&self, segment: u32, list: &[u8]) -> io::Result<()> {
        self.lists.lock().insert(segment, list.to_vec());
        Ok(())
    }
}

impl Disk {
    fn size(&self) -> u64 {
        let segments: usize = self.segments.lock().values().map(|f| f.lock().len()).sum();
        let lists: usize = self.lists.lock().values().map(Vec::len).sum();
        (segments + lists) as u64
    }

    /// As a crash leaves it: the end of the last segment is missing, from any byte on.
    fn tear(&self, by: usize) {
        if let Some((_, file)) = self.segments.lock().last_key_value() {
            let mut file = file.lock();
            let keep = file.len().saturating_sub(by);
            file.truncate(keep);
        }
    }
}

pub fn key(n: u64) -> CacheKey {
    CacheKey::new("s", &Target::new(false, "h", &format!("/{n}"), None))
}

/// The response to a key in some version, as one language's variant. Its body names all of it.
pub fn response(n: u64, version: u64, language: u64, size: usize) -> Arc<StoredResponse> {
    let (mut headers, mut request) = (HeaderMap::new(), HeaderMap::new());
    headers.insert("vary", "accept-language".parse().unwrap());
    headers.append("x-two", "a".parse().unwrap());
    headers.append("x-two", "b".parse().unwrap());
    request.insert("accept-language", language.to_string().parse().unwrap());
    let vary = VaryKey::new(&headers, &request).unwrap();
    let mut text = format!("{n} {version} {language} ").into_bytes();
    text.resize(size.max(text.len()), b'.');
    let target = Target::new(false, "h", &format!("/{n}"), None);
    let freshness = Freshness { lifetime: version, ..Freshness::default() };
    let mut r = StoredResponse::new(target, StatusCode::OK, headers, vary, freshness, Body::Whole(text.into()));
    r.tags = vec!["t".into()];
    Arc::new(r.with_clean_through(Revision::new(Incarnation(3), version)))
}

fn body(r: &StoredResponse) -> Bytes {
    if let Body::Whole(b) = &r.body { b.clone() } else { Bytes::new() }
}

fn versions(tier: &Tier, n: u64) -> Vec<(u64, u64)> {
    let loaded = tier.load(&key(n));
    let of = |r: &StoredResponse| {
        let text = String::from_utf8(body(r).to_vec()).unwrap();
        let mut words = text.split(' ');
        assert_eq!(words.next(), Some(n.to_string().as_str()), "another key's body");
        let version: u64 = words.next().unwrap().parse().unwrap();
        assert_eq!((r.clean_through(), r.freshness.lifetime), (Revision::new(Incarnation(3), version), version));
        (version, words.next().unwrap().parse().unwrap())
    };
    loaded.iter().map(of).collect()
}

fn start(disk: &Disk, size: u64) -> Tier {
    let tier = Tier::new(Box::new(disk.clone()), size);
    tier.recover();
    tier
}

#[test]
fn what_was_kept_is_there_after_a_restart_with_all_that_decides_on_its_use() {
    let disk = Disk::default();
    let tier = start(&disk, 64 << 20);
    let (a, b) = (response(1, 5, 0, 100), response(1, 6, 1, 100));
    tier.put(&key(1), &a);
    tier.put(&key(1), &b);
    a.raise_clean_through(9);
    tier.put_chunk(&key(2), 77, 3, &Bytes::from_static(b"a chunk"));
    assert!(!tier.has(key(1).as_bytes()), "not yet");
    tier.work();
    for tier in [&tier, &start(&disk, 64 << 20)] {
        assert!(tier.has(key(1).as_bytes()) && !tier.has(key(2).as_bytes()));
        let loaded = tier.load(&key(1));
        let of = |want: &StoredResponse| loaded.iter().find(|r| r.vary == want.vary).unwrap();
        for want in [&a, &b] {
            let got = of(want);
            assert_eq!((&got.headers, &got.tags, &got.target, got.begun), (&want.headers, &want.tags, &want.target, want.begun));
            assert_eq!((body(got), got.from_disk, got.asked_origin_at), (body(want), true, None));
            assert_eq!((got.clean_through(), got.freshness, got.status), (want.clean_through(), want.freshness, want.status));
        }
        let chunk = tier.find_chunk(77, 3).unwrap();
        assert_eq!(tier.read_chunk(&chunk).as_deref(), Some(&b"a chunk"[..]));
        assert!(tier.find_chunk(77, 4).is_none());
    }
}

#[test]
fn what_was_removed_is_not_found_from_then_on_nor_after_a_restart() {
    let disk = Disk::default();
    let tier = start(&disk, 64 << 20);
    for n in 0..3 {
        tier.put(&key(n), &response(n, 1, 0, 100));
        tier.put(&key(n), &response(n, 1, 1, 100));
    }
    tier.work();
    tier.remove(&key(0));
    tier.drop_response(&key(1), &response(1, 1, 1, 100));
    assert_eq!((versions(&tier, 0), versions(&tier, 2).len()), (vec![], 2), "at once, before anything is written");
    tier.put(&key(0), &response(0, 2, 0, 100));
    tier.work();
    for tier in [&tier, &start(&disk, 64 << 20)] {
        assert_eq!((versions(tier, 0), versions(tier, 1)), (vec![(2, 0)], vec![(1, 0)]));
    }
    // What still waits when it is removed does not come either.
    tier.put(&key(5), &response(5, 1, 0, 100));
    tier.remove(&key(5));
    tier.work();
    assert_eq!(versions(&tier, 5), vec![]);
}

#[test]
fn every_flipped_bit_is_seen() {
    let disk = Disk::default();
    let tier = start(&disk, 64 << 20);
    tier.put(&key(1), &response(1, 1, 0, 300));
    tier.put_chunk(&key(1), 7, 0, &Bytes::from_static(b"a chunk"));
    tier.work();
    let (number, file) = disk.segments.lock().iter().map(|(n, f)| (*n, Arc::clone(f))).next().unwrap();
    let whole = file.lock().clone();
    for at in record::SEGMENT_HEADER..whole.len() {
        // Found at the start, which has to read the records.
        disk.lists.lock().clear();
        file.lock()[at] ^= 1 << (at % 8);
        let torn = start(&disk, 64 << 20);
        let chunk = torn.find_chunk(7, 0).and_then(|c| torn.read_chunk(&c));
        assert!(versions(&torn, 1).len() < 2 && chunk.is_none(), "byte {at}");
        file.lock().clone_from(&whole);
        disk.segments.lock().insert(number, Arc::clone(&file));
        // Found when it is read.
        disk.lists.lock().clear();
        let tier = start(&disk, 64 << 20);
        file.lock()[at] ^= 1 << (at % 8);
        let chunk = tier.find_chunk(7, 0).unwrap();
        let read = (versions(&tier, 1).len(), tier.read_chunk(&chunk).is_some());
        assert!(matches!(read, (0, true) | (1, false)), "byte {at}: {read:?}");
        assert!(tier.has(key(1).as_bytes()) == (read.0 == 1) && tier.find_chunk(7, 0).is_some() == read.1, "it is forgotten");
        file.lock().clone_from(&whole);
    }
}

#[test]
fn a_full_disk_costs_hits_alone() {
    let disk = Disk::default();
    let tier = start(&disk, 8 << 20);
    *disk.room.lock() = Some(3 << 20);
    for n in 0..400 {
        tier.put(&key(n), &response(n, 1, 0, 20_000));
        tier.work();
    }
    assert!(tier.figures.errors.load(std::sync::atomic::Ordering::Relaxed) > 0);
    for n in 0..400 {
        versions(&tier, n);
    }
    *disk.room.lock() = None;
    tier.put(&key(900), &response(900, 1, 0, 100));
    tier.work();
    assert_eq!(versions(&tier, 900), vec![(1, 0)]);
    assert_eq!(versions(&start(&disk, 8 << 20), 900), vec![(1, 0)]);
}

#[test]
fn what_was_forgotten_while_nothing_could_be_written_does_not_come_back() {
    let disk = Disk::default();
    let tier = start(&disk, 64 << 20);
    for n in 0..3 {
        tier.put(&key(n), &response(n, 1, 0, 100));
    }
    tier.close();
    *disk.room.lock() = Some(0);
    let tier = start(&disk, 64 << 20);
    tier.remove(&key(0));
    // A newer one that is lost leaves no older one behind.
    tier.put(&key(1), &response(1, 2, 0, 100));
    tier.work();
    assert_eq!((versions(&tier, 0), versions(&tier, 1)), (vec![], vec![]));
    *disk.room.lock() = None;
    tier.close();
    let tier = start(&disk, 64 << 20);
    assert_eq!((versions(&tier, 0), versions(&tier, 1), versions(&tier, 2)), (vec![], vec![], vec![(1, 0)]));
}

#[test]
fn of_many_variants_the_latest_are_kept() {
    let tier = start(&Disk::default(), 64 << 20);
    for language in 0..40 {
        tier.put(&key(1), &response(1, language + 1, language, 10));
        tier.work();
    }
    let languages: Vec<_> = versions(&tier, 1).into_iter().map(|(_, l)| l).collect();
    assert!(languages.len() == super::MAX_VARIANTS && languages.iter().all(|l| *l >= 24), "{languages:?}");
}

#[test]
fn a_disk_that_was_made_smaller_keeps_to_it_from_the_start() {
    let disk = Disk::default();
    let tier = start(&disk, 64 << 20);
    for n in 0..400 {
        tier.put(&key(n), &response(n, 1, 0, 50_000));
        tier.work();
    }
    tier.close();
    assert!(disk.size() > 16 << 20);
    let tier = start(&disk, 8 << 20);
    assert!(disk.size() <= 8 << 20, "{}", disk.size());
    assert!((0..400).any(|n| tier.has(key(n).as_bytes())));
    assert!(
        (0..400).all(|n| tier.has(key(n).as_bytes()) != tier.load(&key(n)).is_empty()),
        "nothing is left in the index that is not there"
    );
}

#[derive(Clone, Debug)]
enum Step {
    Put { key: u64, language: u64, size: usize },
    Remove(u64),
    Drop { key: u64, language: u64 },
    Load(u64),
    Work,
    Close,
    Crash(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let (k, l) = (0u64..12, 0u64..3);
    prop_oneof![
        6 => (k.clone(), l.clone(), 0usize..60_000).prop_map(|(key, language, size)| Step::Put { key, language, size }),
        1 => k.clone().prop_map(Step::Remove),
        1 => (k.clone(), l).prop_map(|(key, language)| Step::Drop { key, language }),
        4 => k.prop_map(Step::Load),
        4 => Just(Step::Work),
        1 => Just(Step::Close),
        1 => prop_oneof![Just(0), 0usize..3000].prop_map(Step::Crash),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    /// Against a model that knows the newest version of each variant: what is found is that one; older ones come back only
    /// where a crash lost what followed them.
    #[test]
    fn what_is_found_is_the_newest_that_a_crash_left(steps in proptest::collection::vec(step(), 1..120)) {
        const SIZE: u64 = 600 << 10;
        let disk = Disk::default();
        let mut tier = start(&disk, SIZE);
        // Newest version by key and language; 0 for one that was removed.
        let mut newest: HashMap<(u64, u64), u64> = HashMap::new();
        let mut version = 0;
        let mut torn = false;
        for step in steps {
            match step {
                Step::Put { key: k, language, size } => {
                    version += 1;
                    tier.put(&key(k), &response(k, version, language, size));
                    newest.insert((k, language), version);
                }
                Step::Remove(k) => {
                    tier.remove(&key(k));
                    newest.iter_mut().filter(|((key, _), _)| *key == k).for_each(|(_, v)| *v = 0);
                }
                Step::Drop { key: k, language } => {
                    tier.drop_response(&key(k), &response(k, 0, language, 0));
                    newest.insert((k, language), 0);
                }
                Step::Load(k) => {
                    tier.asked(key(k).as_bytes());
                    for (found, language) in versions(&tier, k) {
                        let want = newest.get(&(k, language)).copied();
                        // One that waits to be written is not found yet: the one before it may be.
                        let older = torn || tier.is_waiting();
                        prop_assert!(want == Some(found) || older && want.is_some_and(|w| w == 0 || found < w), "{found} of {want:?}");
                        prop_assert!(want != Some(0) || torn, "what was removed came back");
                    }
                }
                Step::Work => tier.work(),
                Step::Close => {
                    tier.close();
                    tier = start(&disk, SIZE);
                }
                Step::Crash(by) => {
                    // What waits is lost, too.
                    torn |= by > 0 || tier.is_waiting();
                    disk.tear(by);
                    tier = start(&disk, SIZE);
                }
            }
            prop_assert!(disk.size() <= SIZE, "{} bytes", disk.size());
        }
    }
}

/// Figures, not a test of speed: how long a start takes with many records. `cargo test -p tidegate-store --release -- --ignored --nocapture`.
#[test]
#[ignore = "a figure for people"]
#[allow(clippy::disallowed_methods, clippy::print_stdout)]
fn how_long_a_start_takes() {
    let dir = tempfile::tempdir().unwrap();
    let size = 4 << 30;
    let tier = Tier::new(Box::new(super::Folder::open(dir.path()).unwrap()), size);
    tier.recover();
    let count = 1_000_000;
    for n in 0..count {
        tier.put(&key(n), &response(n, 1, 0, 1000));
        if n % 10_000 == 0 {
            tier.work();
        }
    }
    tier.close();
    drop(tier);
    for how in ["in good order", "after a kill"] {
        let begun = Instant::now();
        let tier = Tier::new(Box::new(super::Folder::open(dir.path()).unwrap()), size);
        tier.recover();
        println!("{count} responses, {how}: {:?}", begun.elapsed());
        let found = (0..count).filter(|n| tier.has(key(*n).as_bytes())).count();
        println!("found {found}");
        let lists =
            || std::fs::read_dir(dir.path()).unwrap().flatten().map(|f| f.path()).filter(|p| p.extension().is_some_and(|e| e == "list"));
        std::fs::remove_file(lists().max().unwrap()).unwrap();
    }
}
