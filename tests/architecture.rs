//! The crates keep to the arrows of docs/architecture.md, and the pure ones to purity.

#![allow(clippy::unwrap_used, clippy::print_stdout)] // A test fails by panicking.

use std::collections::BTreeSet;
use std::path::Path;

/// Crate, its folder, and the crates of this project that it may depend on.
const ARROWS: [(&str, &str, &[&str]); 17] = [
    ("tidegate-control-types", "control/types", &[]),
    ("tidegate-cache", "edge/cache", &["tidegate-control-types"]),
    ("tidegate-store", "edge/store", &["tidegate-cache"]),
    ("tidegate-gateway", "edge/gateway", &["tidegate-cache", "tidegate-store", "tidegate-control-types"]),
    ("tidegate-dns", "edge/dns", &["tidegate-control-types", "tidegate-node"]),
    ("tidegate-http2", "http2", &["tidegate-gateway"]),
    ("tidegate-http3", "http3", &["tidegate-gateway"]),
    ("tidegate-upstream", "upstream", &["tidegate-gateway", "tidegate-http2", "tidegate-control-types"]),
    ("tidegate-bench", "bench", &["tidegate-http3"]),
    ("tidegate-certs", "certs", &[]),
    ("tidegate-control-state", "control/state", &["tidegate-control-types"]),
    ("tidegate-node", "control/node", &["tidegate-control-types", "tidegate-certs"]),
    ("tidegate-client", "control/client", &["tidegate-control-types"]),
    ("tidegate-control", "control", &["tidegate-control-state", "tidegate-node", "tidegate-control-types", "tidegate-certs"]),
    (
        "tidegate-edge",
        "edge",
        &[
            "tidegate-gateway",
            "tidegate-http2",
            "tidegate-http3",
            "tidegate-upstream",
            "tidegate-node",
            "tidegate-certs",
            "tidegate-control-types",
        ],
    ),
    (
        "tidegate-simulation",
        "tests/simulation",
        &[
            "tidegate-cache",
            "tidegate-control",
            "tidegate-control-state",
            "tidegate-control-types",
            "tidegate-gateway",
            "tidegate-node",
            "tidegate-origin-shield",
            "tidegate-upstream",
        ],
    ),
    (
        "tidegate-origin-shield",
        "origin-shield",
        &["tidegate-gateway", "tidegate-http2", "tidegate-upstream", "tidegate-node", "tidegate-control-types"],
    ),
];

/// Crates that do no IO, read no clock and draw no random number.
const PURE: [&str; 3] = ["control/types", "control/state", "edge/cache"];
const IMPURE: [&str; 12] =
    ["tokio", "hyper", "hyper-util", "socket2", "rustix", "rand", "getrandom", "aws-lc-rs", "redb", "moka", "rustls", "parking_lot"];

fn dependencies(folder: &str) -> BTreeSet<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(root.join(folder).join("Cargo.toml")).unwrap();
    let manifest: toml::Table = text.parse().unwrap();
    manifest["dependencies"].as_table().unwrap().keys().cloned().collect()
}

#[test]
fn no_crate_depends_on_what_it_may_not() {
    for (name, folder, allowed) in ARROWS {
        let ours: BTreeSet<_> = dependencies(folder).into_iter().filter(|d| d.starts_with("tidegate")).collect();
        let allowed: BTreeSet<_> = allowed.iter().map(|a| (*a).to_owned()).collect();
        assert!(ours.is_subset(&allowed), "{name} depends on {:?}", ours.difference(&allowed).collect::<Vec<_>>());
    }
}

#[test]
fn nothing_that_ships_can_have_bugs_planted_in_it() {
    let folders = ARROWS.iter().map(|a| a.1).filter(|f| *f != "tests/simulation");
    for folder in folders.chain(["."]) {
        let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(folder).join("Cargo.toml")).unwrap();
        let turned_on = text.lines().filter(|l| l.contains("planted-bugs") && !l.starts_with("planted-bugs = []"));
        assert_eq!(turned_on.collect::<Vec<_>>(), Vec::<&str>::new(), "{folder}");
    }
}

#[test]
fn every_crate_of_the_workspace_has_its_arrows() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let manifest: toml::Table = std::fs::read_to_string(root.join("Cargo.toml")).unwrap().parse().unwrap();
    let members: BTreeSet<_> = manifest["workspace"]["members"].as_array().unwrap().iter().map(|m| m.as_str().unwrap()).collect();
    assert_eq!(members, ARROWS.iter().map(|a| a.1).collect());
}

#[test]
fn pure_crates_depend_on_nothing_that_does_io() {
    for folder in PURE {
        let found: Vec<_> = dependencies(folder).into_iter().filter(|d| IMPURE.contains(&d.as_str())).collect();
        assert!(found.is_empty(), "{folder} depends on {found:?}");
    }
}

#[test]
fn pure_crates_use_no_part_of_std_that_does_io() {
    fn check(folder: &Path) {
        for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
            if entry.file_type().unwrap().is_dir() {
                check(&entry.path());
                continue;
            }
            let text = std::fs::read_to_string(entry.path()).unwrap();
            for word in ["std::fs", "std::net::Tcp", "std::net::Udp", "std::thread", "Instant::now", "SystemTime::now", "std::env"] {
                assert!(!text.contains(word), "{} uses {word}", entry.path().display());
            }
        }
    }
    for folder in PURE {
        check(&Path::new(env!("CARGO_MANIFEST_DIR")).join(folder).join("src"));
    }
}
