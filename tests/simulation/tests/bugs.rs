//! Would the simulation find a bug? Each rule that holds the promise is taken out of the shipped code, one at a time.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)] // A test fails by panicking, and its table is for people.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use tidegate_simulation::{Bug, Plan, replay_with, run_with, shrink_with};

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|v| v.parse().ok()).unwrap_or(default)
}

/// Seeds needed to catch a bug from each of several starts; `None`: it was not caught.
fn hunt(bug: Bug, starts: u64, most: u64) -> (Vec<Option<u64>>, String) {
    let mut how = String::new();
    let needed = (0..starts).map(|start| {
        let found = (0..most).find_map(|n| Some((n + 1, run_with(Some(bug), start * 1_000_000 + n).violation?)));
        found.map(|(n, why)| {
            how = why;
            n
        })
    });
    (needed.collect(), how)
}

/// The story of one seed with one bug: `TIDEGATE_BUG=... TIDEGATE_SEED=...`.
#[test]
fn story_of_a_bug() {
    let Ok(name) = std::env::var("TIDEGATE_BUG") else { return };
    let bug = Bug::ALL.into_iter().find(|b| format!("{b:?}") == name);
    let plan = Plan::random(number("TIDEGATE_SEED", 0));
    let plan = shrink_with(bug, &plan, usize::try_from(number("TIDEGATE_TRIES", 300)).unwrap());
    let ended = replay_with(bug, &plan, true);
    ended.story.iter().for_each(|line| println!("{line}"));
    println!("{bug:?}, {} actions: {:?}", plan.actions.len(), ended.violation);
}

#[test]
fn every_planted_bug_is_caught() {
    let (starts, most) = (number("TIDEGATE_STARTS", 1), number("TIDEGATE_SEEDS", 1500));
    let only = std::env::var("TIDEGATE_ONLY").unwrap_or_default();
    let next = AtomicUsize::new(0);
    let table = Mutex::new(BTreeMap::new());
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                while let Some(bug) = Bug::ALL.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let wanted = only.is_empty() || only.split(',').any(|name| name == format!("{bug:?}"));
                    if !wanted {
                        continue;
                    }
                    let (mut needed, how) = hunt(*bug, starts, most);
                    needed.sort_by_key(|n| n.unwrap_or(u64::MAX));
                    println!("{bug:?}: {needed:?} {}", how.chars().take(90).collect::<String>());
                    table.lock().unwrap().insert(*bug, needed);
                }
            });
        }
    });
    let table = table.into_inner().unwrap();
    let caught = table.values().filter(|n| n.iter().all(Option::is_some)).count();
    println!("caught {caught} of {} planted; median seeds to catch each, of {starts} starts:", table.len());
    for (bug, needed) in &table {
        println!("{:>6}  {bug:?}", needed[needed.len() / 2].map_or("none".into(), |n| n.to_string()));
    }
    let missed: Vec<_> = table.iter().filter(|(_, n)| n.iter().any(Option::is_none)).map(|(b, _)| b).collect();
    assert!(missed.is_empty(), "not caught within {most} seeds: {missed:?}");
}
