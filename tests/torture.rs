//! Readers, fills, ranges, purges, evictions and kills at random, in an order that one seed decides, against an origin whose bodies
//! name their page, version and offset: whatever is served whole is right, to the byte. `TIDEGATE_READS` and `TIDEGATE_SEED`.

#![allow(clippy::unwrap_used, clippy::panic, clippy::disallowed_methods, clippy::print_stdout)] // A test fails by panicking.

mod support;

use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use support::network::{Network, Plan};
use support::origin::{Known, Origin};
use support::{Http, Numbers, Response};

const DISK: &str = "disk = { path = \"{data}/cache\", size = \"16MiB\" }\nmemory = \"4MiB\"";
/// Not a whole number of slices.
const LARGE: usize = (9 << 20) + 77;
const LANGUAGES: [&str; 3] = ["de", "en", "fr"];

/// Mostly small, some of several pieces, a few so large that they are kept in slices; more of them than memory holds, and than the disk
/// holds.
fn page(r: &mut Numbers) -> String {
    if r.index(200) == 0 {
        return format!("/{LARGE}/parts/{}", r.index(3));
    }
    let kind = if r.index(20) == 0 { "private" } else { ["plain", "plain", "plain", "vary", "chunked"][r.index(5)] };
    match r.index(20) {
        0 => format!("/{}/{kind}/{}", [262_143, 262_144, 262_145, 700_000][r.index(4)], r.index(8)),
        1 | 2 => format!("/{}/{kind}/{}", 20_000 + r.index(3) * 7_001, r.index(20)),
        _ => format!("/{}/{kind}/{}", [0, 1, 77, 900, 4096][r.index(5)], r.index(30)),
    }
}

#[derive(Default)]
struct Score {
    reads: AtomicU64,
    hits: AtomicU64,
    parts: AtomicU64,
    unmodified: AtomicU64,
    /// Broken off, or refused: an edge was killed, or the origin broke off. Their readers saw it.
    broken: AtomicU64,
}

fn check(known: &Known, path: &str, language: &str, range: Option<(usize, usize)>, answer: &Response, score: &Score) -> Result<(), String> {
    let add = |n: &AtomicU64| {
        n.fetch_add(1, Ordering::Relaxed);
    };
    if answer.is_hit() {
        add(&score.hits);
    }
    if matches!(answer.status, 502..=504) {
        add(&score.broken);
        return Ok(());
    }
    // What it says it is: `"<path>[#language]-<version>"`.
    let etag = answer.header("etag").unwrap_or_default().trim_matches('"').to_owned();
    let Some((named, version)) = etag.rsplit_once('-') else { return Err(format!("{} without its name", answer.status)) };
    let want = if path.contains("/vary/") { format!("{path}#{language}") } else { path.to_owned() };
    if named != want {
        return Err(format!("it is {named}"));
    }
    let whole = known.body(named, version.parse().map_err(|_| etag.clone())?);
    match (answer.status, range) {
        (304, _) => {
            add(&score.unmodified);
            Ok(())
        }
        (200, _) if answer.body == **whole => Ok(()),
        (206, Some((first, last))) => {
            add(&score.parts);
            let end = (last + 1).min(whole.len());
            let says = format!("bytes {first}-{}/{}", end - 1, whole.len());
            let right = answer.header("content-range") == Some(says.as_str()) && whole.get(first..end) == Some(&answer.body[..]);
            if right { Ok(()) } else { Err(format!("206 with {:?}, {} bytes", answer.header("content-range"), answer.body.len())) }
        }
        (416, Some((first, _))) if first >= whole.len() => Ok(()),
        (status, _) => Err(format!("{status} with {} bytes of {}", answer.body.len(), whole.len())),
    }
}

fn reader(edges: &[SocketAddr], mut r: Numbers, known: &Known, score: &Score, until: u64, wrong: &Mutex<Vec<String>>) {
    let done = || score.reads.load(Ordering::Relaxed) >= until || !wrong.lock().unwrap().is_empty();
    while !done() {
        let Ok(mut http) = Http::connect(edges[r.index(edges.len())]) else {
            std::thread::sleep(Duration::from_millis(10));
            continue;
        };
        for _ in 0..r.index(200) {
            if done() {
                return;
            }
            let (path, language) = (page(&mut r), LANGUAGES[r.index(3)]);
            let size: usize = path.split('/').nth(1).unwrap().parse().unwrap();
            let mut fields = vec![("accept-language", language.to_owned())];
            let mut range = None;
            let large = size == LARGE && r.index(20) > 0;
            match if large { 0 } else { r.index(10) } {
                0..=2 => {
                    let first = r.index(size + 2);
                    let last = first + r.index((size + 2).min(3 << 20));
                    range = Some((first, last));
                    fields.push(("range", format!("bytes={first}-{last}")));
                }
                3 => fields.push(("cache-control", "no-cache".into())),
                4 => fields.push(("if-none-match", format!("\"{path}-{}\"", r.index(3)))),
                _ => {}
            }
            let fields: Vec<_> = fields.iter().map(|(n, v)| (*n, v.as_str())).collect();
            score.reads.fetch_add(1, Ordering::Relaxed);
            let Ok(answer) = http.ask("GET", "shop.example", &path, &fields) else {
                score.broken.fetch_add(1, Ordering::Relaxed);
                break;
            };
            if let Err(why) = check(known, &path, language, range, &answer, score) {
                wrong.lock().unwrap().push(format!("GET {path} {fields:?}: {why}; {:?}", answer.headers));
                return;
            }
        }
    }
}

/// Pages change, are purged, and edges are killed, for as long as there are readers.
fn trouble(network: &mut Network, origin: &Origin, mut r: Numbers, done: &AtomicBool) -> (u64, u64) {
    let (mut purges, mut kills) = (0, 0);
    while !done.load(Ordering::Relaxed) {
        for _ in 0..r.index(20) {
            origin.change(&page(&mut r));
        }
        let path = page(&mut r);
        let url = format!("shop.example{path}");
        let digit = r.index(10).to_string();
        let arguments: &[&str] = match r.index(60) {
            0..=39 => &["url", &url],
            40..=54 => &["tag", &digit],
            55 | 56 => &["prefix", "shop.example/4096"],
            57 | 58 => &["site", "shop", "--soft"],
            _ => &["host", "shop.example"],
        };
        network.tidegate(&[&["purge", "--no-wait"], arguments].concat());
        purges += 1;
        if r.index(8) == 0 {
            let edge = network.node(["edge-1", "edge-2"][r.index(2)]);
            edge.kill();
            edge.start();
            kills += 1;
        }
        std::thread::sleep(Duration::from_millis(r.below(300)));
    }
    (purges, kills)
}

#[test]
fn whatever_is_served_whole_is_right_to_the_byte() {
    let number = |name: &str, default: u64| std::env::var(name).ok().and_then(|v| v.parse().ok()).unwrap_or(default);
    let (seed, until) = (number("TIDEGATE_SEED", 1), number("TIDEGATE_READS", 200_000));
    let (dir, origin) = (tempfile::tempdir().unwrap(), Origin::start());
    let mut network =
        Network::planned(dir.path(), Plan { shields: 1, edges: 2, lease: "1s", edge_more: DISK, shield_more: DISK, ..Plan::default() });
    network.site("shop", "\"shop.example\"", &origin.url(), "");
    origin.break_off_every(500);
    let edges: Vec<_> = network.edges().iter().map(|e| e.address()).collect();
    let (known, score, wrong, done) = (Known::default(), Score::default(), Mutex::default(), AtomicBool::new(false));
    let (purges, kills) = std::thread::scope(|scope| {
        let readers: Vec<_> = (0..4u64)
            .map(|n| {
                let (edges, known, score, wrong) = (&edges, &known, &score, &wrong);
                scope.spawn(move || reader(edges, Numbers(seed * 1000 + n), known, score, until, wrong))
            })
            .collect();
        let done = &done;
        scope.spawn(move || {
            readers.into_iter().for_each(|r| r.join().unwrap());
            done.store(true, Ordering::Relaxed);
        });
        trouble(&mut network, &origin, Numbers(seed), done)
    });
    assert_eq!(wrong.into_inner().unwrap(), Vec::<String>::new(), "seed {seed}");
    let get = |n: &AtomicU64| n.load(Ordering::Relaxed);
    println!(
        "seed {seed}: {} reads, {} of them hits, {} parts, {} unmodified, {} broken off or refused and seen to be; {purges} purges, {kills} \
         kills, {} bodies from the origin; 0 wrong bytes",
        get(&score.reads),
        get(&score.hits),
        get(&score.parts),
        get(&score.unmodified),
        get(&score.broken),
        origin.gave(),
    );
    assert!(get(&score.hits) > until / 20 && get(&score.parts) > until / 20 && get(&score.broken) < until / 10);
}
