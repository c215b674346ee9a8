//! Seeds: each decides a network, its faults, its clients and its operators.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)] // A test fails by panicking, and its figures are for people.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use tidegate_simulation::checker::Stats;
use tidegate_simulation::{Ended, Plan, replay, run, shrink};

/// Runs seeds on all cores; returns the sum of their figures, or tells the first failure's story.
fn run_all(seeds: std::ops::Range<u64>) -> Stats {
    let next = AtomicU64::new(seeds.start);
    let sum = Mutex::new(Stats::default());
    let failed: Mutex<Option<Ended>> = Mutex::new(None);
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                while failed.lock().unwrap().is_none() {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        break;
                    }
                    let ended = run(seed);
                    sum.lock().unwrap().add(&ended.stats);
                    if ended.violation.is_some() {
                        failed.lock().unwrap().get_or_insert(ended);
                    }
                }
            });
        }
    });
    if let Some(ended) = failed.into_inner().unwrap() {
        tell(ended.seed);
    }
    sum.into_inner().unwrap()
}

/// The story of a failing seed, as short as it can be made.
fn tell(seed: u64) {
    let plan = shrink(&Plan::random(seed), usize::try_from(number("TIDEGATE_TRIES", 300)).unwrap());
    let ended = replay(&plan, true);
    for line in &ended.story {
        println!("{line}");
    }
    panic!("seed {seed}, with {} actions left: {}", plan.actions.len(), ended.violation.unwrap_or_default());
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|v| v.parse().ok()).unwrap_or(default)
}

#[test]
fn no_seed_breaks_a_promise() {
    let (first, count) = (number("TIDEGATE_SEED", 0), number("TIDEGATE_SEEDS", 1000));
    let stats = run_all(first..first + count);
    println!("{count} seeds from {first}: {stats:#?}");
    assert!(stats.purges_200 > count && stats.purges_202 > 0 && stats.hits > count && stats.detached > 0, "too little happens: {stats:#?}");
}

#[test]
fn a_seed_is_the_same_run_every_time() {
    for seed in [1, 2, 3] {
        let (a, b) = (run(seed), run(seed));
        assert_eq!((a.hash, a.stats, a.violation), (b.hash, b.stats, b.violation), "seed {seed}");
    }
}
