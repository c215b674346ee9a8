//! How well the tiers keep what is asked for again, beside LRU and an oracle, on a made trace: popularity by Zipf, and every
//! third request for something that nobody asks for again. `cargo test -p tidegate-store hit_ratios -- --nocapture` prints it.

use crate::disk::Tier;
use crate::disk::tests::{Disk, key, response};
use crate::memory::MemoryTier;
use fastrand::Rng;
use std::collections::{BTreeMap, BTreeSet, HashMap};

const OBJECTS: usize = 20_000;
const REQUESTS: usize = 200_000;

/// Keys in the order in which they are asked for.
fn trace() -> Vec<u64> {
    let mut r = Rng::with_seed(7);
    let mut sum = 0.0;
    let weights: Vec<f64> = (1..=OBJECTS)
        .map(|rank| {
            sum += (rank as f64).powf(-0.9);
            sum
        })
        .collect();
    let mut wonder = 1_000_000;
    (0..REQUESTS)
        .map(|_| {
            if r.u8(0..3) == 0 {
                wonder += 1;
                return wonder;
            }
            let at = r.f64() * sum;
            weights.partition_point(|w| *w < at) as u64
        })
        .collect()
}

/// Bytes of a key's body: mostly small, some large, whatever the popularity.
fn size(key: u64) -> usize {
    let mut r = Rng::with_seed(key);
    (100.0 * 40.0_f64.powf(r.f64() * r.f64())) as usize
}

#[derive(Default)]
struct Hits {
    objects: u64,
    bytes: u64,
}

impl Hits {
    fn note(&mut self, key: u64, hit: bool) {
        if hit {
            self.objects += 1;
            self.bytes += size(key) as u64;
        }
    }
}

/// `head`: what a response takes beside its body.
fn lru(trace: &[u64], room: usize, head: usize) -> Hits {
    let (mut at, mut order, mut used, mut hits) = (HashMap::new(), BTreeMap::new(), 0, Hits::default());
    for (now, key) in trace.iter().enumerate() {
        let last = at.insert(*key, now);
        hits.note(*key, last.is_some());
        match last {
            Some(last) => drop(order.remove(&last)),
            None => used += head + size(*key),
        }
        order.insert(now, *key);
        while used > room {
            let Some((_, oldest)) = order.pop_first() else { break };
            at.remove(&oldest);
            used -= head + size(oldest);
        }
    }
    hits
}

/// Who knows the future: what is asked for last goes first, and what is asked for no more never enters.
fn oracle(trace: &[u64], room: usize, head: usize) -> Hits {
    let mut next = vec![usize::MAX; trace.len()];
    let mut seen = HashMap::new();
    for (now, key) in trace.iter().enumerate().rev() {
        next[now] = seen.insert(*key, now).unwrap_or(usize::MAX);
    }
    let (mut kept, mut order, mut used, mut hits) = (HashMap::new(), BTreeSet::new(), 0, Hits::default());
    for (now, key) in trace.iter().enumerate() {
        let was: Option<usize> = kept.remove(key);
        hits.note(*key, was.is_some());
        if let Some(was) = was {
            order.remove(&(was, *key));
            used -= head + size(*key);
        }
        if next[now] == usize::MAX {
            continue;
        }
        kept.insert(*key, next[now]);
        order.insert((next[now], *key));
        used += head + size(*key);
        while used > room {
            let Some((_, last)) = order.pop_last() else { break };
            kept.remove(&last);
            used -= head + size(last);
        }
    }
    hits
}

fn memory(trace: &[u64], room: usize) -> Hits {
    let (memory, mut hits) = (MemoryTier::new(room as u64), Hits::default());
    for (n, k) in trace.iter().enumerate() {
        let hit = memory.get(key(*k).as_bytes()).is_some();
        hits.note(*k, hit);
        if !hit {
            memory.put(&key(*k), &response(*k, 1, 0, size(*k)), || ());
        }
        if n % 64 == 0 {
            memory.settle();
        }
    }
    hits
}

fn disk(trace: &[u64], room: usize) -> Hits {
    let (tier, mut hits) =
        (Tier::new(Box::new(Disk::default()), room as u64).of_objects(room as u64 / 64, room as u64 / 500), Hits::default());
    for k in trace {
        tier.asked(key(*k).as_bytes());
        let hit = !tier.load(&key(*k)).is_empty();
        hits.note(*k, hit);
        if !hit && tier.admits(&key(*k)) {
            tier.put(&key(*k), &response(*k, 1, 0, size(*k)));
            tier.work();
        }
    }
    hits
}

#[test]
fn hit_ratios_beside_lru_and_an_oracle() {
    let trace = trace();
    let asked: u64 = trace.iter().map(|k| size(*k) as u64).sum();
    println!("{REQUESTS} requests, {OBJECTS} objects by Zipf 0.9, every third for a key of its own");
    println!("hit ratio of objects / bytes, %");
    println!("{:<7}{:>5} {:>14} {:>14} {:>14}", "tier", "size", "LRU", "ours", "oracle");
    // What a response takes beside its body counts for LRU and the oracle alike.
    let beside = response(1, 1, 0, 0);
    let heads = [("memory", crate::memory::weight(&key(1), &beside)), ("disk", 230)];
    for ((tier, head), percent) in heads.into_iter().flat_map(|t| [1, 5, 20].map(|p| (t, p))) {
        let all: usize = (0..OBJECTS as u64).map(|k| head + size(k)).sum();
        let room = all * percent / 100;
        let ours = if tier == "disk" { disk(&trace, room) } else { memory(&trace, room) };
        let row = [lru(&trace, room, head), ours, oracle(&trace, room, head)];
        let shown = row.each_ref().map(|h| {
            let of = |n: u64, all: u64| 100.0 * n as f64 / all as f64;
            format!("{:.1} / {:.1}", of(h.objects, trace.len() as u64), of(h.bytes, asked))
        });
        println!("{tier:<7}{percent:>4}% {:>14} {:>14} {:>14}", shown[0], shown[1], shown[2]);
        let [lru, ours, oracle] = row;
        assert!(lru.objects < ours.objects && ours.objects < oracle.objects, "{tier} keeps less than LRU would at {percent} %");
    }
}
