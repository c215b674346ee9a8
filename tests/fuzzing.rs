//! Every entry of the fuzz targets, on a stable compiler: inputs that are kept (`fuzz/seeds`, and what this file makes), changed at
//! random for some seconds each. `tests/long` has the fuzzer itself.

#![allow(clippy::unwrap_used, clippy::panic, clippy::disallowed_methods, clippy::print_stdout)] // A test fails by panicking.

#[path = "../fuzz/entries.rs"]
mod entries;
mod support;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};
use support::Numbers;
use tidegate_control_types::lease::Grant;
use tidegate_control_types::{CatchUp, FromNode, Incarnation, Revision, ToNode, wire};

fn kept(target: &str) -> Vec<Vec<u8>> {
    let folder = format!("{}/fuzz/seeds/{target}", env!("CARGO_MANIFEST_DIR"));
    let files = std::fs::read_dir(folder).into_iter().flatten();
    let mut all: Vec<_> = files.map(|f| std::fs::read(f.unwrap().path()).unwrap()).collect();
    if target == "messages" {
        let revision = Revision::new(Incarnation(7), 3);
        let down = [
            ToNode::CatchUp { revision, missed: Box::new(CatchUp::default()) },
            ToNode::Entries { through: 9, entries: vec![(9, vec![])] },
            ToNode::Lease { asking: 1, grant: Grant { read_index: 9, duration: Duration::from_secs(5) } },
            ToNode::Removed { removal: 4 },
        ];
        let up = [
            FromNode::Hello { applied: Some(revision), purges_after: u64::MAX, version: "1".into() },
            FromNode::Ack { index: 9 },
            FromNode::AskLease { asking: 2 },
            FromNode::Ended { removal: 4 },
        ];
        all.extend(down.iter().flat_map(|m| [wire::encode(m), wire::frame(m)]));
        all.extend(up.iter().flat_map(|m| [wire::encode(m), wire::frame(m)]));
        all.push(up.iter().flat_map(wire::frame).collect());
    }
    // In one order everywhere, so that a seed is one run.
    all.sort();
    assert!(!all.is_empty(), "no inputs for {target}");
    all
}

fn changed(numbers: &mut Numbers, all: &[Vec<u8>]) -> Vec<u8> {
    let mut data = all[numbers.index(all.len())].clone();
    for _ in 0..=numbers.below(6) {
        let at = numbers.index(data.len() + 1);
        let end = at + numbers.index(data.len() + 1 - at);
        match numbers.below(7) {
            0 if at < data.len() => data[at] ^= 1 << numbers.below(8),
            1 if at < data.len() => data[at] = numbers.below(256) as u8,
            2 => drop(data.splice(at..at, (0..numbers.below(9)).map(|_| 0).collect::<Vec<u8>>())),
            3 => drop(data.drain(at..end)),
            4 => {
                let copy = data[at..end].to_vec();
                let to = numbers.index(data.len() + 1);
                data.splice(to..to, copy);
            }
            5 => {
                // A piece of another.
                let other = &all[numbers.index(all.len())];
                let from = numbers.index(other.len() + 1);
                let piece = other[from..from + numbers.index(other.len() + 1 - from)].to_vec();
                data.splice(at..end, piece);
            }
            _ => {
                let words = ["0", "18446744073709551616", "-1", "\r\n", "\"", ",", "%", "..", "*", ";q=", "\u{fffd}", "=", ":"];
                data.splice(at..at, words[numbers.index(words.len())].bytes());
            }
        }
    }
    data.truncate(64 << 10);
    data
}

#[test]
fn no_input_from_outside_breaks_a_parser() {
    let number = |name: &str, default: u64| std::env::var(name).map_or(default, |v| v.parse().unwrap());
    let (seconds, seed) = (number("TIDEGATE_FUZZ_SECONDS", 10), number("TIDEGATE_SEED", 1));
    std::thread::scope(|scope| {
        for (target, entry) in entries::ALL {
            scope.spawn(move || {
                let (all, mut numbers) = (kept(target), Numbers(seed));
                all.iter().for_each(|data| entry(data));
                let (end, mut runs) = (Instant::now() + Duration::from_secs(seconds), 0u64);
                while Instant::now() < end {
                    for _ in 0..100 {
                        let data = changed(&mut numbers, &all);
                        if catch_unwind(AssertUnwindSafe(|| entry(&data))).is_err() {
                            panic!("{target}, TIDEGATE_SEED={seed}, after {runs}: {:?}", data.escape_ascii().to_string());
                        }
                        runs += 1;
                    }
                }
                println!("{target}: {runs} inputs from {} kept ones, seed {seed}", all.len());
            });
        }
    });
}
