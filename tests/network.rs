//! A whole network of processes in front of a large site that nobody here wrote: Python's and PostgreSQL's documentation
//! from Debian, served by nginx.

#![allow(clippy::unwrap_used, clippy::print_stdout)] // A test fails by panicking.

mod support;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use support::network::Network;
use support::{Http, Nginx, Response, get, loopback, text, wait_for};

const DOCUMENTATION: [(&str, &str); 2] = [("python", "/usr/share/doc/python3.11"), ("postgresql", "/usr/share/doc/postgresql-doc-15")];
const DOCS: &str = "docs.example";

/// The documentation copied into `root`, and the target of every file.
fn documentation(root: &Path, most: usize) -> Vec<String> {
    fn copy(from: &Path, to: &Path, prefix: &str, out: &mut Vec<String>) {
        std::fs::create_dir_all(to).unwrap();
        let mut entries: Vec<PathBuf> = std::fs::read_dir(from).unwrap().map(|e| e.unwrap().path()).collect();
        entries.sort();
        for path in entries {
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            let Ok(meta) = std::fs::metadata(&path) else { continue };
            if meta.is_dir() {
                copy(&path, &to.join(&name), &format!("{prefix}/{name}"), out);
            } else if std::fs::copy(&path, to.join(&name)).is_ok() {
                out.push(format!("{prefix}/{name}"));
            }
        }
    }
    let mut all = Vec::new();
    for (name, from) in DOCUMENTATION {
        copy(Path::new(from), &root.join(name), &format!("/{name}"), &mut all);
    }
    assert!(all.len() > 2000, "only {} files of documentation: are python3-doc and postgresql-doc installed?", all.len());
    let step = (all.len() / most.max(1)).max(1);
    all.into_iter().step_by(step).collect()
}

fn encoded(target: &str) -> String {
    target
        .bytes()
        .map(|b| if b.is_ascii_alphanumeric() || b"-._~/".contains(&b) { char::from(b).to_string() } else { format!("%{b:02X}") })
        .collect()
}

type Expected = HashMap<String, Response>;

fn expected(origin: &Nginx, targets: &[String]) -> Expected {
    let mut http = Http::connect(loopback(origin.port)).unwrap();
    targets.iter().map(|t| (t.clone(), http.ask("GET", DOCS, &encoded(t), &[]).unwrap())).collect()
}

/// Compares what a client gets with what the origin gives: status, type, validators and every byte.
fn same(target: &str, got: &Response, want: &Response) {
    assert_eq!(got.status, want.status, "{target}");
    for name in ["content-type", "etag", "last-modified", "cache-control", "content-length"] {
        assert_eq!(got.header(name), want.header(name), "{target}: {name}");
    }
    assert!(got.body == want.body, "{target}: the bytes differ ({} and {})", got.body.len(), want.body.len());
}

/// Asks for every target; retries what breaks off, as browsers do. Returns the hits.
fn crawl(address: SocketAddr, expected: &Expected) -> usize {
    let (mut http, mut hits) = (None, 0);
    for (target, want) in expected {
        let got = wait_for("an answer", || {
            let mut open = http.take().or_else(|| Http::connect(address).ok())?;
            let got = open.ask("GET", DOCS, &encoded(target), &[]).ok().filter(|r| r.status < 500)?;
            http = Some(open);
            Some(got)
        });
        same(target, &got, want);
        hits += usize::from(got.is_hit());
    }
    hits
}

#[test]
fn a_large_site_is_the_same_through_every_edge_and_purges_are_true() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("www");
    let targets = documentation(&root, usize::MAX);
    let origin = Nginx::start(&dir.path().join("nginx"), &root, "add_header Cache-Control max-age=86400; add_header Surrogate-Key $tag;");
    let notes_root = dir.path().join("notes");
    std::fs::create_dir_all(&notes_root).unwrap();
    std::fs::write(notes_root.join("n.txt"), "a note").unwrap();
    let notes = Nginx::start(&dir.path().join("nginx-notes"), &notes_root, "add_header Cache-Control max-age=86400;");
    let network = Network::start(dir.path(), 3, 2, 3, "5s");
    network.site("docs", "\"docs.example\"", &origin.url(), "");
    network.site("notes", "\"notes.example\", \"*.notes.example\"", &notes.url(), "");
    let expected = expected(&origin, &targets);
    // nginx writes a request down once its answer is out.
    wait_for("nginx's log of what was asked directly", || (origin.asked().len() == targets.len()).then_some(()));
    origin.forget();

    let edges = network.edges();
    let through_all = || {
        std::thread::scope(|s| {
            let crawls: Vec<_> = edges.iter().map(|e| s.spawn(|| crawl(e.address(), &expected))).collect();
            crawls.into_iter().map(|c| c.join().unwrap()).sum::<usize>()
        })
    };
    through_all();
    let asked = wait_for("nginx's log of the crawl", || Some(origin.asked()).filter(|asked| asked.len() >= expected.len()));
    assert_eq!(asked.len(), expected.len());
    let more: Vec<_> = asked.iter().filter(|(_, n)| **n > 1).collect();
    assert!(more.is_empty(), "the origin saw these more than once: {more:?}");
    let hits = through_all();
    assert!(hits * 100 >= expected.len() * 3 * 99, "{hits} hits of {}", expected.len() * 3);
    println!("{} objects through 3 edges; second crawl: {hits} hits of {}", expected.len(), expected.len() * 3);
    assert_eq!(origin.asked().values().sum::<usize>(), expected.len(), "the second crawl reached the origin");

    // IPv6, and the other site.
    let over_6 = get(edges[1].address_6(), DOCS, &encoded(&targets[0]));
    same(&targets[0], &over_6, &expected[&targets[0]]);
    assert_eq!(get(edges[0].address(), "x.notes.example", "/n.txt").text(), "a note");
    assert_eq!(get(edges[0].address(), "unknown.example", "/").status, 421);

    // Changed files, purged by prefix, tag and URL: new from the moment of the 200, on every edge.
    let under = |prefix: &str| targets.iter().filter(|t| t.starts_with(prefix)).take(20).cloned().collect::<Vec<_>>();
    let (by_prefix, by_tag) = (under("/python/html/library/"), under("/postgresql/"));
    let by_url = vec![targets.iter().find(|t| t.starts_with("/python/html/tutorial/")).unwrap().clone()];
    let url = format!("http://docs.example{}", encoded(&by_url[0]));
    let purges: [(&[String], Vec<&str>); 3] = [
        (&by_prefix, vec!["prefix", "docs.example/python/html/library"]),
        (&by_tag, vec!["tag", "postgresql", "--site", "docs"]),
        (&by_url, vec!["url", &url]),
    ];
    for (round, (changed, purge)) in purges.iter().enumerate() {
        assert!(!changed.is_empty());
        for target in *changed {
            std::fs::write(root.join(&target[1..]), format!("changed in round {round}: {target}")).unwrap();
        }
        network.purge(purge);
        for edge in &edges {
            for target in *changed {
                let got = get(edge.address(), DOCS, &encoded(target));
                assert_eq!(got.text(), format!("changed in round {round}: {target}"), "{} through {}", purge[0], edge.name);
            }
        }
    }
    let kept = targets.iter().find(|t| t.starts_with("/python/html/c-api/")).unwrap();
    assert!(get(edges[2].address(), DOCS, &encoded(kept)).is_hit(), "what was not named is still there");
    assert!(get(edges[0].address(), "x.notes.example", "/n.txt").is_hit(), "another tenant's is untouched");
}

#[test]
fn any_process_may_die_during_a_crawl() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("www");
    let targets = documentation(&root, 150);
    std::fs::write(root.join("purged.txt"), "old").unwrap();
    let origin = Nginx::start(&dir.path().join("nginx"), &root, "add_header Cache-Control max-age=86400;");
    let mut network = Network::start(dir.path(), 3, 2, 3, "2s");
    network.site("docs", "\"docs.example\"", &origin.url(), "");
    let expected = Arc::new(expected(&origin, &targets));
    for edge in network.edges() {
        assert_eq!(get(edge.address(), DOCS, "/purged.txt").text(), "old");
    }
    std::fs::write(root.join("purged.txt"), "new").unwrap();
    network.purge(&["url", "docs.example/purged.txt"]);

    let (over, crawled) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let addresses: Vec<_> = network.edges().iter().map(|e| e.address()).collect();
    let crawls: Vec<_> = addresses
        .into_iter()
        .map(|address| {
            let (expected, over, crawled) = (Arc::clone(&expected), Arc::clone(&over), Arc::clone(&crawled));
            std::thread::spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    crawl(address, &expected);
                    crawled.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    let names: Vec<String> = network.nodes.iter().map(|n| n.name.clone()).collect();
    for (n, name) in names.iter().enumerate() {
        network.node(name).kill();
        let before = crawled.load(Ordering::Relaxed);
        wait_for("the crawls to go on without it", || {
            (crawled.load(Ordering::Relaxed) > before + 1 || name.starts_with("edge")).then_some(())
        });
        network.node(name).start();
        network.attached();
        for edge in network.edges() {
            // An edge that died counts as attached until its lease is over, and may be on its way up.
            wait_for("the edge to listen", || Http::connect(edge.address()).ok());
            assert_eq!(get(edge.address(), DOCS, "/purged.txt").text(), "new", "a purge that was answered, after {name} died");
        }
        let text = format!("new {n}");
        std::fs::write(root.join("purged.txt"), &text).unwrap();
        network.purge(&["url", "docs.example/purged.txt"]);
        for edge in network.edges() {
            assert_eq!(get(edge.address(), DOCS, "/purged.txt").text(), text, "a purge after {name} came back");
        }
        std::fs::write(root.join("purged.txt"), "new").unwrap();
        network.purge(&["url", "docs.example/purged.txt"]);
    }
    over.store(true, Ordering::Relaxed);
    for crawl in crawls {
        crawl.join().unwrap();
    }
    println!("{} crawls of {} objects while each of {} processes died once", crawled.load(Ordering::Relaxed), expected.len(), names.len());
}

#[test]
fn a_purge_is_told_truly_while_an_edge_is_cut_off() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("www");
    std::fs::create_dir_all(&root).unwrap();
    for name in ["s.txt", "r.txt", "f.txt"] {
        std::fs::write(root.join(name), "old").unwrap();
    }
    let origin = Nginx::start(&dir.path().join("nginx"), &root, "add_header Cache-Control max-age=86400;");
    let mut network = Network::start(dir.path(), 1, 0, 2, "1s");
    for (name, mode) in [("s", "serve"), ("r", "revalidate"), ("f", "refuse")] {
        network.site(name, &format!("\"{name}.example\""), &origin.url(), &format!("[cache]\nwhen_detached = \"{mode}\""));
    }
    let ask = |network: &Network, edge: usize, name: &str| {
        get(network.edges()[edge].address(), &format!("{name}.example"), &format!("/{name}.txt"))
    };
    for name in ["s", "r", "f"] {
        assert_eq!(ask(&network, 1, name).text(), "old");
    }
    // The control plane goes: the data plane outlives it, each site in its own way.
    network.node("control-1").kill();
    wait_for("the lease to end", || (ask(&network, 1, "f").status == 503).then_some(()));
    let alone = ask(&network, 1, "s");
    assert!(alone.is_hit() && alone.cache_status().contains("detached"), "{alone:?}");
    std::fs::write(root.join("r.txt"), "new").unwrap();
    wait_for("the second of revalidate", || (ask(&network, 1, "r").text() == "new").then_some(()));

    // It comes back, and an edge is stopped in its tracks.
    network.node("control-1").start();
    network.attached();
    network.node("edge-2").signal("STOP");
    for name in ["s.txt", "f.txt"] {
        std::fs::write(root.join(name), "new").unwrap();
    }
    std::fs::write(root.join("r.txt"), "newer").unwrap();
    let purge = |name: &str| {
        let out = network.tidegate(&["purge", "--json", "--wait", "8s", "url", &format!("{name}.example/{name}.txt")]);
        let receipt: serde_json::Value = serde_json::from_slice(&out.stdout).unwrap();
        (out.status.code(), receipt)
    };
    for name in ["r", "f"] {
        let (code, receipt) = purge(name);
        assert_eq!((code, receipt["done"].as_bool()), (Some(0), Some(true)), "{name}: certainly silent after its lease: {receipt}");
        assert!(receipt.to_string().contains("\"silent\""), "{receipt}");
    }
    let (code, receipt) = purge("s");
    assert_eq!((code, receipt["done"].as_bool()), (Some(75), Some(false)), "it may still serve: {receipt}");
    let node = receipt["nodes"].as_array().unwrap().iter().find(|n| n["name"] == "edge-2").unwrap().clone();
    assert_eq!(node["state"], "may_serve", "{receipt}");

    // Resumed, it applies what it missed before it counts as attached, and the same receipt becomes true.
    network.node("edge-2").signal("CONT");
    let index = receipt["index"].as_u64().unwrap();
    wait_for("the receipt", || {
        let api = format!("/v1/purges/{index}?wait=1s");
        let mut http = Http::connect(loopback(network.nodes[0].port)).ok()?;
        let bearer = format!("Bearer {}", network.token);
        http.ask("GET", "localhost", &api, &[("Authorization", &bearer)]).ok().filter(|r| r.status == 200)
    });
    for (name, want) in [("s", "new"), ("r", "newer"), ("f", "new")] {
        for edge in 0..2 {
            assert_eq!(ask(&network, edge, name).text(), want, "{name}");
        }
    }

    // Removed, a node ends, and what it says names the way back.
    let out = network.tidegate(&["node", "remove", "edge-2"]);
    assert!(out.status.success(), "{}", text(&out.stderr));
    assert_eq!(network.node("edge-2").process.as_mut().unwrap().ended(), 1);
    assert!(network.node("edge-2").logged().contains("the control plane removed this node"));
}
