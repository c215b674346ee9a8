//! The disk tier with real processes: what it holds is there after a restart, torn by nothing, and purged by what was purged.

#![allow(clippy::unwrap_used, clippy::panic, clippy::disallowed_methods, clippy::print_stdout)] // A test fails by panicking.

mod support;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use support::network::{Network, Plan};
use support::origin::{Origin, body, right};
use support::{Http, get, get_with, wait_for};

const DISK: &str = "disk = { path = \"{data}/cache\", size = \"64MiB\" }\nmemory = \"4MiB\"";

fn network(dir: &std::path::Path, origin: &Origin) -> Network {
    let network = Network::planned(dir, Plan { lease: "1s", edge_more: DISK, ..Plan::default() });
    network.site("shop", "\"shop.example\"", &origin.url(), "[cache]\nwhen_detached = \"serve\"");
    network
}

fn paths() -> Vec<String> {
    let sizes = [0, 1, 700, 5000, 100_000, 262_144, 262_145, 900_000];
    (0..32).map(|n| format!("/{}/{n}", sizes[n % sizes.len()])).collect()
}

/// Starts the edge again, and waits until it answers and is attached.
fn started(network: &mut Network) -> SocketAddr {
    network.node("edge-1").start();
    let edge = network.node("edge-1").address();
    wait_for("the edge", || Http::connect(edge).ok());
    network.attached();
    edge
}

fn restart(network: &mut Network, how: &str) -> SocketAddr {
    let edge = network.node("edge-1");
    if how == "KILL" {
        edge.kill();
    } else {
        edge.signal(how);
        assert_eq!(edge.process.as_mut().unwrap().ended(), 0);
    }
    let edge = started(network);
    // The index is read while the edge serves already; what is asked for before that comes from the origin.
    wait_for("the disk tier's index", || (network.node("edge-1").figure("tidegate_disk_records") > 0.0).then_some(()));
    // And it is vouched for with the first lease.
    wait_for("a hit", || get(edge, "shop.example", "/1/1").cache_status().contains("hit").then_some(()));
    edge
}

fn cache_files(network: &Network, kind: &str) -> Vec<PathBuf> {
    let folder = network.dir.join("edge-1/cache");
    let all = std::fs::read_dir(folder).unwrap().flatten().map(|f| f.path());
    all.filter(|p| p.extension().is_some_and(|e| e == kind)).collect()
}

#[test]
fn what_the_disk_holds_is_there_after_a_restart() {
    let (dir, origin) = (tempfile::tempdir().unwrap(), Origin::start());
    let mut network = network(dir.path(), &origin);
    let edge = network.node("edge-1").address();
    for path in paths() {
        assert_eq!(right(&path, &get(edge, "shop.example", &path).body, 0), 0);
    }
    wait_for("all of it to be on the disk", || {
        let written = network.node("edge-1").figure("tidegate_disk_records");
        (written >= paths().len() as f64 + 20.0).then_some(())
    });
    let once = origin.gave();
    for how in ["TERM", "KILL", "KILL"] {
        let edge = restart(&mut network, how);
        for path in paths() {
            let whole = body(&path, 0);
            let answer = get(edge, "shop.example", &path);
            assert_eq!(
                (answer.status, answer.body == whole, answer.is_hit()),
                (200, true, true),
                "{how} {path}: {}",
                answer.cache_status()
            );
            if whole.len() > 4000 {
                let (first, last) = (whole.len() / 3, whole.len() - 2);
                let part = get_with(edge, "shop.example", &path, &[("Range", &format!("bytes={first}-{last}"))]);
                assert_eq!((part.status, part.body == whole[first..=last]), (206, true), "{path}");
            }
        }
    }
    assert_eq!(origin.gave(), once, "the origin gave something again");
    // What is purged is purged there too, by whatever selector, and stays so after a restart.
    for (n, (arguments, path)) in
        [(["url", "shop.example/700/2"], "/700/2"), (["prefix", "shop.example/900000"], "/900000/7"), (["site", "shop"], "/5000/3")]
            .into_iter()
            .enumerate()
    {
        let edge = network.node("edge-1").address();
        let version = origin.change(path);
        network.purge(&arguments);
        let edge = if n % 2 == 0 { restart(&mut network, "KILL") } else { edge };
        assert_eq!(right(path, &get(edge, "shop.example", path).body, version), version, "{path}");
    }
}

#[test]
fn a_purge_that_was_answered_holds_through_a_restart_without_control_plane() {
    let (dir, origin) = (tempfile::tempdir().unwrap(), Origin::start());
    let mut network = network(dir.path(), &origin);
    let edge = network.node("edge-1").address();
    for path in paths() {
        get(edge, "shop.example", &path);
    }
    wait_for("all of it to be on the disk", || {
        let written = network.node("edge-1").figure("tidegate_disk_records");
        (written >= paths().len() as f64 + 20.0).then_some(())
    });
    let version = origin.change("/5000/3");
    network.purge(&["url", "shop.example/5000/3"]);
    network.node("control-1").kill();
    network.node("edge-1").kill();
    network.node("edge-1").start();
    wait_for("the edge", || Http::connect(edge).ok());
    for _ in 0..100 {
        assert_eq!(right("/5000/3", &get(edge, "shop.example", "/5000/3").body, version), version);
        std::thread::sleep(Duration::from_millis(10));
    }
    // What was not purged is asked about, and need not come again.
    let answer = get(edge, "shop.example", "/100000/4");
    assert_eq!(right("/100000/4", &answer.body, 0), 0);
    assert!(answer.cache_status().contains("fwd-status=304"), "{}", answer.cache_status());
}

/// `TIDEGATE_KILLS` makes it longer.
#[test]
fn an_edge_that_is_killed_in_the_middle_of_fills_serves_no_torn_body() {
    let kills = std::env::var("TIDEGATE_KILLS").ok().and_then(|n| n.parse().ok()).unwrap_or(20);
    let (dir, origin) = (tempfile::tempdir().unwrap(), Origin::start());
    let mut network = network(dir.path(), &origin);
    origin.be_slow();
    let (mut read, mut hits) = (0, 0);
    for n in 0..kills {
        // No page has changed more often.
        let newest = n as u64;
        let edge = network.node("edge-1").address();
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for reader in 0..4 {
                let done = &done;
                scope.spawn(move || {
                    for k in 0.. {
                        if done.load(Ordering::Relaxed) {
                            return;
                        }
                        let path = &paths()[(k * 7 + reader * 3 + n) % paths().len()];
                        let answer = Http::connect(edge).and_then(|mut h| h.ask("GET", "shop.example", path, &[]));
                        if let Ok(answer) = answer {
                            assert_eq!(answer.status, 200);
                            right(path, &answer.body, newest);
                        }
                    }
                });
            }
            std::thread::sleep(Duration::from_millis(150 + (n as u64 * 37) % 300));
            network.node("edge-1").kill();
            done.store(true, Ordering::Relaxed);
        });
        let edge = started(&mut network);
        for path in paths() {
            let answer = get(edge, "shop.example", &path);
            right(&path, &answer.body, newest);
            read += 1;
            hits += usize::from(answer.is_hit());
        }
        // The next round finds another version of some.
        for path in paths().iter().skip(n % 5).step_by(5) {
            origin.change(path);
        }
        network.purge(&["site", "shop"]);
    }
    println!("{kills} kills: {read} bodies read after them, {hits} of them hits, 0 wrong");
}

#[test]
fn what_is_damaged_on_the_disk_is_never_served() {
    let (dir, origin) = (tempfile::tempdir().unwrap(), Origin::start());
    let mut network = network(dir.path(), &origin);
    let edge = network.node("edge-1").address();
    for path in paths() {
        get(edge, "shop.example", &path);
    }
    restart(&mut network, "TERM");
    let mut damaged = 0;
    for round in 0..12usize {
        network.node("edge-1").kill();
        for (n, file) in cache_files(&network, "segment").into_iter().enumerate() {
            let mut bytes = std::fs::read(&file).unwrap();
            let length = bytes.len();
            match round % 4 {
                // A bit here and there.
                0 => bytes.iter_mut().skip(round * 31 + n).step_by(50_021).for_each(|b| *b ^= 1 << (round % 8)),
                // A block that was never written.
                1 => bytes.iter_mut().skip(length / 3).take(4096 * 20).for_each(|b| *b = 0),
                2 => bytes.truncate(length / 2 + round),
                // Blocks in each other's place.
                _ if length > 40_000 => {
                    let (a, b) = bytes.split_at_mut(length / 2);
                    a[8192..16_384].swap_with_slice(&mut b[..8192]);
                }
                _ => {}
            }
            std::fs::write(&file, bytes).unwrap();
        }
        if round >= 4 {
            for list in cache_files(&network, "list") {
                let mut bytes = std::fs::read(&list).unwrap();
                match round % 3 {
                    0 => std::fs::remove_file(&list).unwrap(),
                    1 => bytes.truncate(bytes.len() / 2),
                    _ => bytes.iter_mut().skip(20).step_by(97).for_each(|b| *b ^= 4),
                }
                if list.exists() {
                    std::fs::write(&list, bytes).unwrap();
                }
            }
        }
        started(&mut network);
        for path in paths() {
            // A body that breaks off in the middle is seen by its client; nothing wrong is.
            let answer = Http::connect(edge).and_then(|mut h| h.ask("GET", "shop.example", &path, &[]));
            if let Ok(answer) = answer {
                assert_eq!((answer.status, right(&path, &answer.body, 0)), (200, 0));
            }
            let again = get(edge, "shop.example", &path);
            assert_eq!((again.status, right(&path, &again.body, 0)), (200, 0), "it is fetched anew");
        }
        damaged += usize::from(network.node("edge-1").figure("tidegate_disk_damaged_total") > 0.0);
        let written = network.node("edge-1").figure("tidegate_disk_written_bytes_total");
        wait_for("what was fetched anew to be written", || {
            let edge = network.node("edge-1");
            (edge.figure("tidegate_disk_records") > 30.0 && edge.figure("tidegate_disk_written_bytes_total") >= written).then_some(())
        });
    }
    assert!(damaged > 0, "no damage was ever seen");
}
