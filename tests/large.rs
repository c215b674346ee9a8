//! Large objects: only the slices that are asked for come from the origin, a strong validator ties them together, and what breaks
//! off goes on. The origin's objects are as large as their path says, and every 16 bytes name their place and version.

#![allow(clippy::unwrap_used, clippy::panic, clippy::disallowed_methods, clippy::print_stdout)] // A test fails by panicking.

mod support;

use std::io::Write;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use support::network::{Network, Plan};
use support::{Http, Numbers, Response, get, get_with, request_head, wait_for};

const HOST: &str = "big.example";
const MIB: u64 = 1 << 20;
const SLICE: u64 = MIB;

#[derive(Default)]
struct State {
    version: AtomicU64,
    requests: AtomicU64,
    sent: AtomicU64,
    /// Connections break off after so many bytes of a body; 0: they do not.
    breaks: AtomicU64,
    /// No parts are given from this request on; 0: they always are.
    whole_from: AtomicU64,
    /// How complete responses are framed: 0 by their length, 1 in chunks, 2 by the end of the connection.
    framing: AtomicU64,
    /// Not 0: there is nothing here any more.
    gone: AtomicU64,
    /// Milliseconds between two pieces of a body.
    slow: AtomicU64,
}

#[derive(Clone, Default)]
struct Origin {
    port: u16,
    state: Arc<State>,
}

fn content(version: u64, first: u64, end: u64) -> Vec<u8> {
    let mut all = Vec::with_capacity(usize::try_from(end - first).unwrap() + 32);
    for n in first / 16..end.div_ceil(16) {
        // `vvv-nnnnnnnnnnn`, in hexadecimal.
        let mut block = *b"000-00000000000\n";
        for (at, mut number) in [(2, version), (14, n)] {
            let mut at: usize = at;
            while number > 0 {
                block[at] = b"0123456789abcdef"[usize::try_from(number % 16).unwrap()];
                (number, at) = (number / 16, at - 1);
            }
        }
        all.extend_from_slice(&block);
    }
    let skip = usize::try_from(first % 16).unwrap();
    all.drain(..skip);
    all.truncate(usize::try_from(end - first).unwrap());
    all
}

impl Origin {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let origin = Self { port: listener.local_addr().unwrap().port(), state: Arc::default() };
        let state = Arc::clone(&origin.state);
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let state = Arc::clone(&state);
                std::thread::spawn(move || while answer(&stream, &state).is_some() {});
            }
        });
        origin
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Requests and bytes of bodies since the last time.
    fn gave(&self) -> (u64, u64) {
        (self.state.requests.swap(0, Ordering::Relaxed), self.state.sent.swap(0, Ordering::Relaxed))
    }

    fn change(&self) -> u64 {
        self.state.version.fetch_add(1, Ordering::Relaxed) + 1
    }
}

/// `/LENGTH/KIND/...`: `whole` takes no ranges, `coded` codes each part for clients that accept gzip, `weak` has a weak validator, `private` may not be shared, `ranges` is as it should be.
fn answer(mut stream: &TcpStream, state: &State) -> Option<()> {
    let head = request_head(&mut stream.try_clone().ok()?);
    let path = head.split(' ').nth(1)?;
    let (length, kind) = path[1..].split_once('/')?;
    let (length, kind) = (length.parse::<u64>().ok()?, kind.split('/').next()?);
    let field = |name: &str| {
        let line = head.lines().find(|l| l.to_ascii_lowercase().starts_with(&format!("{name}:")))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    let version = state.version.load(Ordering::Relaxed);
    let etag = format!("{}\"v{version}\"", if kind == "weak" { "W/" } else { "" });
    let request = state.requests.fetch_add(1, Ordering::Relaxed) + 1;
    let whole_from = state.whole_from.load(Ordering::Relaxed);
    let gives_parts = kind != "whole" && (whole_from == 0 || request < whole_from);
    let fields =
        format!("ETag: {etag}\r\nCache-Control: {}\r\nSurrogate-Key: big\r\n", if kind == "private" { "private" } else { "max-age=1000" });
    if state.gone.load(Ordering::Relaxed) > 0 {
        write!(stream, "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n").ok()?;
        return Some(());
    }
    if let Some(bad) = field("x-bad") {
        if bad == "closes" {
            return None;
        }
        if bad == "slow" {
            std::thread::sleep(Duration::from_millis(700));
        }
        if bad == "gone" {
            std::thread::sleep(Duration::from_millis(20));
            write!(stream, "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n").ok()?;
            return Some(());
        }
        write!(stream, "HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n").ok()?;
        return Some(());
    }
    if field("if-none-match").is_some_and(|e| e == etag) {
        write!(stream, "HTTP/1.1 304 Not Modified\r\n{fields}\r\n").ok()?;
        return Some(());
    }
    let range = field("range").filter(|_| gives_parts && field("if-range").is_none_or(|e| e == etag));
    let bounds = range.and_then(|r| {
        let (first, last) = r.strip_prefix("bytes=")?.split_once('-')?;
        let first = first.parse::<u64>().ok()?;
        Some((first, last.parse::<u64>().map_or(length, |last| last + 1).min(length)))
    });
    let (status, first, end) = match bounds {
        Some((first, _)) if first >= length => {
            write!(stream, "HTTP/1.1 416 Range Not Satisfiable\r\nContent-Range: bytes */{length}\r\nContent-Length: 0\r\n\r\n").ok()?;
            return Some(());
        }
        Some((first, end)) => (format!("206 Partial Content\r\nContent-Range: bytes {first}-{}/{length}", end - 1), first, end),
        None => ("200 OK".to_owned(), 0, length),
    };
    let framed_by = if bounds.is_none() { state.framing.load(Ordering::Relaxed) } else { 0 };
    let is_coded = kind == "coded" && bounds.is_some() && field("accept-encoding").is_some_and(|a| a.contains("gzip"));
    let framed_by = if is_coded { 1 } else { framed_by };
    let chunked = framed_by == 1;
    let fields = if is_coded { format!("{fields}Content-Encoding: gzip\r\n") } else { fields };
    let framing = match framed_by {
        0 => format!("Content-Length: {}", end - first),
        1 => "Transfer-Encoding: chunked".to_owned(),
        _ => "Connection: close".to_owned(),
    };
    write!(stream, "HTTP/1.1 {status}\r\n{framing}\r\nAccept-Ranges: bytes\r\n{fields}\r\n").ok()?;
    if is_coded {
        stream.write_all(b"a\r\n0123456789\r\n").ok()?;
    }
    let breaks = state.breaks.load(Ordering::Relaxed);
    let mut at = first;
    while at < end {
        let next = end.min(at + 64 * 1024);
        if breaks > 0 && next - first > breaks {
            stream.shutdown(std::net::Shutdown::Both).ok()?;
            return None;
        }
        if chunked {
            write!(stream, "{:x}\r\n", next - at).ok()?;
        }
        // Counted before they are written: who reads the last of them may ask for the count at once.
        state.sent.fetch_add(next - at, Ordering::Relaxed);
        stream.write_all(&content(version, at, next)).ok()?;
        if chunked {
            stream.write_all(b"\r\n").ok()?;
        }
        at = next;
        std::thread::sleep(std::time::Duration::from_millis(state.slow.load(Ordering::Relaxed)));
    }
    if chunked {
        stream.write_all(b"0\r\n\r\n").ok()?;
    }
    if framed_by == 2 {
        stream.shutdown(std::net::Shutdown::Both).ok()?;
        return None;
    }
    Some(())
}

fn network(dir: &std::path::Path, origin: &Origin, shields: usize, edge_more: &str) -> Network {
    let network = Network::planned(dir, Plan { lease: "1s", shields, edge_more, ..Plan::default() });
    network.site("big", &format!("\"{HOST}\""), &origin.url(), "");
    network
}

fn part(edge: SocketAddr, path: &str, range: &str) -> Response {
    get_with(edge, HOST, path, &[("Range", &format!("bytes={range}"))])
}

/// A part that is right, to its last byte.
fn right(edge: SocketAddr, path: &str, length: u64, first: u64, last: u64, version: u64) -> Response {
    let answer = part(edge, path, &format!("{first}-{last}"));
    assert_eq!(answer.status, 206, "{path} {first}-{last}: {}", answer.text());
    assert_eq!(answer.header("content-range"), Some(&*format!("bytes {first}-{last}/{length}")));
    assert!(answer.body == content(version, first, last + 1), "{path} {first}-{last}: wrong bytes");
    answer
}

#[test]
fn a_part_costs_its_slices_and_no_more() {
    let (dir, origin) = (tempfile::tempdir().unwrap(), Origin::start());
    for shields in [0, 1] {
        let folder = dir.path().join(shields.to_string());
        std::fs::create_dir(&folder).unwrap();
        let network = network(&folder, &origin, shields, "");
        let edge = network.edges()[0].address();
        origin.gave();
        let length = 10u64 << 30;
        let path = format!("/{length}/ranges/{shields}");
        right(edge, &path, length, 5_000_000_000, 5_000_000_000, 0);
        wait_for("the slice", || right(edge, &path, length, 5_000_000_000, 5_000_000_000, 0).is_hit().then_some(()));
        let (requests, sent) = origin.gave();
        assert_eq!(requests, 1);
        println!("one byte of 10 GiB, {shields} shields: the origin gave {sent} bytes");
        assert!(sent <= SLICE, "{sent}");
        let two = right(edge, &path, length, 5_000_000_000, 5_001_000_000, 0).cache_status();
        assert!(two.contains("edge-1; fwd=partial"), "one of them was here: {two}");
        assert!(origin.gave().0 <= 1, "the slice behind it");
        wait_for("both", || right(edge, &path, length, 4_999_950_000, 5_000_000_050, 0).is_hit().then_some(()));
        assert_eq!(origin.gave().0, 0, "it is here");
        // The last bytes, of which nobody knew where they begin.
        let end = part(edge, &path, "-10");
        assert_eq!((end.status, end.header("content-range")), (206, Some(&*format!("bytes {}-{}/{length}", length - 10, length - 1))));
        assert!(end.body == content(0, length - 10, length));
        let (requests, sent) = origin.gave();
        assert!(requests <= 1 && sent <= SLICE, "{requests} requests, {sent} bytes");
        let beyond = part(edge, &path, &format!("{length}-"));
        assert_eq!((beyond.status, beyond.header("content-range")), (416, Some(&*format!("bytes */{length}"))));
        assert_eq!(origin.gave().0, 0, "its length is known");
        // Unknown, and beyond its end.
        let small = format!("/1000/ranges/{shields}");
        assert_eq!(part(edge, &small, "5000000-").status, 416);
        right(edge, &small, 1000, 10, 19, 0);
        assert!(get(edge, HOST, &small).is_hit(), "a small one is here as a whole then");
        // A whole one begins at once, and costs little to whoever turns away.
        origin.gave();
        let mut http = Http::connect(edge).unwrap();
        http.send(format!("GET {path} HTTP/1.1\r\nHost: {HOST}\r\n\r\n").as_bytes()).unwrap();
        let head = http.read_head().unwrap();
        assert_eq!((head.status, head.header("content-length")), (200, Some(&*length.to_string())));
        let mut begin = vec![0; 3_000_000];
        http.read_exact(&mut begin);
        assert!(begin == content(0, 0, 3_000_000));
        drop(http);
        let sent = wait_for("the origin to be left alone", || {
            let before = origin.state.sent.load(Ordering::Relaxed);
            std::thread::sleep(std::time::Duration::from_millis(500));
            (origin.state.sent.load(Ordering::Relaxed) == before).then_some(before)
        });
        println!("3 MB of 10 GiB, {shields} shields: the origin gave {sent} bytes");
        assert!(sent < 64 * MIB, "{sent}");
    }
}

#[test]
fn a_body_larger_than_memory_is_one_fetch_for_all_and_stays_on_the_disk() {
    let (dir, origin) = (tempfile::tempdir().unwrap(), Origin::start());
    let mut network = network(dir.path(), &origin, 1, "disk = { path = \"{data}/cache\", size = \"256MiB\" }\nmemory = \"16MiB\"");
    let edge = network.edges()[0].address();
    let length = 40 * MIB;
    let path = format!("/{length}/ranges/a");
    origin.state.slow.store(1, Ordering::Relaxed);
    let whole = content(0, 0, length);
    std::thread::scope(|scope| {
        for _ in 0..20 {
            scope.spawn(|| assert!(get(edge, HOST, &path).body == whole));
        }
    });
    let (requests, sent) = origin.gave();
    println!("40 MiB for 20 clients at once: {requests} requests, {sent} bytes of the origin");
    assert!(requests <= 4 && sent < length + 8 * MIB, "{requests} requests, {sent} bytes");
    let edge = network.node("edge-1");
    edge.signal("TERM");
    assert_eq!(edge.process.as_mut().unwrap().ended(), 0);
    edge.start();
    let edge = edge.address();
    wait_for("the edge", || Http::connect(edge).ok());
    network.attached();
    wait_for("the disk's index", || get(edge, HOST, &path).cache_status().contains("hit").then_some(()));
    origin.gave();
    assert!(get(edge, HOST, &path).body == whole);
    let again = origin.gave().1;
    println!("and after a restart: {again} bytes of the origin");
    assert!(again < length / 2, "{again}");
}

#[test]
fn what_breaks_off_goes_on_where_it_ended() {
    let (dir, origin) = (tempfile::tempdir().unwrap(), Origin::start());
    let network = network(dir.path(), &origin, 1, "");
    let edge = network.edges()[0].address();
    let length = 20 * MIB;
    for (n, breaks) in [3_000_000, 1_500_000].into_iter().enumerate() {
        origin.state.breaks.store(breaks, Ordering::Relaxed);
        let answer = get(edge, HOST, &format!("/{length}/ranges/{n}"));
        assert!(answer.status == 200 && answer.body == content(0, 0, length), "{} bytes", answer.body.len());
        let (requests, sent) = origin.gave();
        println!("20 MiB over connections that break after {breaks} bytes: {requests} requests, {sent} bytes");
        assert!(requests > 1 && sent < 2 * length, "{sent}");
    }
}

#[test]
fn parts_of_two_versions_are_never_mixed() {
    let (dir, origin) = (tempfile::tempdir().unwrap(), Origin::start());
    let network = network(dir.path(), &origin, 1, "");
    let edge = network.edges()[0].address();
    let length = 12 * MIB;
    let path = format!("/{length}/ranges/a");
    right(edge, &path, length, 5 * MIB, 5 * MIB + 9, 0);
    let new = origin.change();
    // Another slice: what is here has no future.
    right(edge, &path, length, 9 * MIB, 9 * MIB + 9, new);
    right(edge, &path, length, 5 * MIB, 5 * MIB + 9, new);
    let newer = origin.change();
    for (version, path) in [(newer, path.clone()), (newer + 1, format!("/{length}/ranges/b"))] {
        if version > newer {
            right(edge, &path, length, 0, 9, newer);
            origin.change();
        }
        // What has begun with a slice that is here, and goes on with one that cannot be had any more, breaks off for all to see.
        match Http::connect(edge).unwrap().ask("GET", HOST, &path, &[]) {
            Ok(whole) => assert!(whole.body == content(version, 0, length)),
            Err(torn) => println!("{path}: {torn}"),
        }
        assert!(get(edge, HOST, &path).body == content(version, 0, length), "and the next one gets what is there now");
    }
    // A purge: the parts go with their response.
    let newest = origin.change();
    network.purge(&["tag", "big", "--site", "big"]);
    right(edge, &path, length, 0, 9, newest);
}

#[test]
fn without_ranges_or_a_strong_validator_an_object_is_fetched_whole() {
    let (dir, origin) = (tempfile::tempdir().unwrap(), Origin::start());
    let network = network(dir.path(), &origin, 0, "");
    let edge = network.edges()[0].address();
    let length = 3 * MIB;
    for (kind, requests) in [("whole", 1), ("weak", 2)] {
        let path = format!("/{length}/{kind}/a");
        right(edge, &path, length, 2 * MIB, 2 * MIB + 9, 0);
        assert_eq!(origin.gave().0, requests, "{kind}");
        right(edge, &path, length, MIB, MIB + 9, 0);
        assert_eq!(origin.gave().0, 0, "{kind}: it is here, or on its way");
    }
    // What may not be shared is asked for as the client asks.
    let path = format!("/{length}/private/a");
    origin.gave();
    for n in 1..4 {
        right(edge, &path, length, n * 100_000, n * 100_000 + 9, 0);
    }
    let (_, sent) = origin.gave();
    assert!(sent < 2 * MIB, "{sent}");
}

/// One server may give parts while the next one does not. A shield gives parts of responses that it fetches as a whole.
#[test]
fn what_comes_whole_in_the_midst_of_a_body_goes_on_there() {
    let (dir, origin) = (tempfile::tempdir().unwrap(), Origin::start());
    let network = network(dir.path(), &origin, 0, "");
    let edge = network.edges()[0].address();
    let length = 7 * MIB + 5;
    for (n, whole_from, framing) in [(0, 2, 0), (1, 3, 0), (2, 4, 0), (3, 3, 1), (4, 3, 2)] {
        origin.gave();
        origin.state.framing.store(framing, Ordering::Relaxed);
        origin.state.whole_from.store(whole_from, Ordering::Relaxed);
        right(edge, &format!("/{length}/ranges/{n}"), length, MIB / 2, length - 1, 0);
        let requests = origin.gave().0;
        assert!(requests <= whole_from + 1, "{requests}: the rest comes with the first that is whole, but for what was asked for ahead");
    }
}

/// The origin refuses one client's request for a missing part: the stored object stays, and other clients get the rest.
#[test]
fn a_refused_part_costs_others_nothing() {
    let (dir, origin) = (tempfile::tempdir().unwrap(), Origin::start());
    for shields in [0, 1] {
        let dir = dir.path().join(shields.to_string());
        std::fs::create_dir_all(&dir).unwrap();
        let network = network(&dir, &origin, shields, "");
        let edge = network.edges()[0].address();
        let (length, path) = (5 * MIB, format!("/{}/ranges/{shields}", 5 * MIB));
        right(edge, &path, length, 0, 9, 0);
        wait_for("its first slice", || right(edge, &path, length, 0, 9, 0).is_hit().then_some(()));
        let range = format!("bytes={}-{}", 3 * MIB, 3 * MIB + 9);
        let bad = get_with(edge, HOST, &path, &[("Range", &range), ("X-Bad", "1")]);
        assert_eq!(bad.status, 400, "the origin's own words");
        right(edge, &path, length, MIB / 2, length - 1, 0);
        assert!(right(edge, &path, length, 0, 9, 0).is_hit());

        // The same for those who wait for the part together with that client.
        let path = format!("{path}/b");
        right(edge, &path, length, 0, 9, 0);
        wait_for("its first slice", || right(edge, &path, length, 0, 9, 0).is_hit().then_some(()));
        origin.gave();
        std::thread::scope(|scope| {
            let bad = || Http::connect(edge).unwrap().ask("GET", HOST, &path, &[("Range", &range), ("X-Bad", "slow")]);
            let bad = scope.spawn(bad);
            wait_for("the bad request", || (origin.state.requests.load(Ordering::Relaxed) > 0).then_some(()));
            right(edge, &path, length, 3 * MIB, 3 * MIB + 9, 0);
            assert!(bad.join().unwrap().map_or(true, |r| r.status >= 400));
        });
    }
}

/// The same while others go on asking for parts that the origin refuses them, before and behind who downloads all of it.
#[test]
fn a_download_is_whole_beside_many_refused_parts() {
    let (dir, origin) = (tempfile::tempdir().unwrap(), Origin::start());
    for (shields, bad) in [(0, "gone"), (0, "1"), (1, "gone"), (0, "closes")] {
        let dir = dir.path().join(format!("{shields}{bad}"));
        std::fs::create_dir_all(&dir).unwrap();
        let network = network(&dir, &origin, shields, "");
        let edge = network.edges()[0].address();
        let (length, path) = (16 * MIB, format!("/{}/ranges/{shields}/{bad}", 16 * MIB));
        right(edge, &path, length, 0, 9, 0);
        wait_for("its first slice", || right(edge, &path, length, 0, 9, 0).is_hit().then_some(()));
        let over = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            for n in 0..4_u64 {
                let (over, path) = (&over, &path);
                scope.spawn(move || {
                    for at in (1..16).cycle().skip(usize::try_from(n * 4).unwrap()) {
                        if over.load(Ordering::Relaxed) {
                            return;
                        }
                        let range = format!("bytes={}-{}", at * MIB, at * MIB + 9);
                        let _ = Http::connect(edge).unwrap().ask("GET", HOST, path, &[("Range", &range), ("X-Bad", bad)]);
                    }
                });
            }
            let answer = std::panic::catch_unwind(|| get(edge, HOST, &path));
            over.store(true, Ordering::Relaxed);
            assert!(answer.unwrap().body == content(0, 0, length), "{bad}");
        });
        assert!(right(edge, &path, length, 0, 9, 0).is_hit(), "{bad}");
    }
}

/// A network in a folder of its own, which holds all of an object but its last slice. The object is so long that the head of a response
/// goes out before that slice is known to be missing.
fn without_its_end(dir: &std::path::Path, origin: &Origin, shields: usize) -> (Network, u64, String) {
    let dir = dir.join(shields.to_string());
    std::fs::create_dir_all(&dir).unwrap();
    let network = network(&dir, origin, shields, "");
    let (length, path) = (18 * MIB, format!("/{}/ranges/{shields}", 18 * MIB));
    let first = || right(network.edges()[0].address(), &path, length, 0, 17 * MIB - 1, 0);
    first();
    wait_for("the first slices", || first().is_hit().then_some(()));
    (network, length, path)
}

/// The first client who misses a part of it gets a torn body; the next ones learn that it is gone.
#[test]
fn an_object_that_was_deleted_is_given_no_longer() {
    let (dir, origin) = (tempfile::tempdir().unwrap(), Origin::start());
    for shields in [0, 1] {
        let (network, _, path) = without_its_end(dir.path(), &origin, shields);
        let edge = network.edges()[0].address();
        origin.state.gone.store(1, Ordering::Relaxed);
        wait_for("its end", || {
            let answer = Http::connect(edge).unwrap().ask("GET", HOST, &path, &[]);
            answer.is_ok_and(|a| a.status == 404).then_some(())
        });
        origin.state.gone.store(0, Ordering::Relaxed);
    }
}

#[test]
fn a_head_request_draws_no_long_body() {
    let (dir, origin) = (tempfile::tempdir().unwrap(), Origin::start());
    origin.state.framing.store(1, Ordering::Relaxed);
    let network = network(dir.path(), &origin, 0, "");
    let mut http = Http::connect(network.edges()[0].address()).unwrap();
    assert_eq!(http.ask("HEAD", HOST, &format!("/{}/whole/a", 4096 * MIB), &[]).unwrap().status, 200);
    let sent = wait_for("the origin to be left alone", || {
        let before = origin.state.sent.load(Ordering::Relaxed);
        std::thread::sleep(Duration::from_millis(700));
        (origin.state.sent.load(Ordering::Relaxed) == before).then_some(before)
    });
    println!("HEAD of 4 GiB: the origin gave {sent} bytes");
    // Bytes in the buffers of sockets count too.
    assert!(sent < 24 * MIB, "{sent}");
}

/// Some frameworks code each part by itself, under the validator of the whole.
#[test]
fn parts_in_a_coding_are_not_put_together() {
    let (dir, origin) = (tempfile::tempdir().unwrap(), Origin::start());
    let network = network(dir.path(), &origin, 0, "");
    network.site("big", &format!("\"{HOST}\""), &origin.url(), "[compression]\nenabled = false");
    let edge = network.edges()[0].address();
    let length = 5 * MIB;
    for (n, first) in [&[][..], &[("Accept-Encoding", "gzip")]].into_iter().enumerate() {
        let path = format!("/{length}/coded/{n}");
        let range = [("Range", "bytes=0-9")];
        let first = get_with(edge, HOST, &path, &[&range, first].concat());
        assert!(first.status == 206 && first.body == content(0, 0, 10), "{first:?}");
        let whole = get_with(edge, HOST, &path, &[("Accept-Encoding", "gzip")]);
        assert!(whole.status == 200 && whole.header("content-encoding").is_none() && whole.body == content(0, 0, length), "{n}");
        right(edge, &path, length, 3 * MIB, 3 * MIB + 9, 0);
    }
}

#[test]
fn a_part_costs_as_many_requests_as_are_allowed() {
    let (dir, origin) = (tempfile::tempdir().unwrap(), Origin::start());
    for shields in [0, 1] {
        let (network, _, path) = without_its_end(dir.path(), &origin, shields);
        let edge = network.edges()[0].address();
        origin.gave();
        let torn = Http::connect(edge).unwrap().ask("GET", HOST, &path, &[("Range", "bytes=5-"), ("X-Bad", "closes")]);
        assert!(torn.is_err(), "{torn:?}");
        assert_eq!(origin.gave().0, 3, "with {shields} shields");
    }
}

/// What one client asks for in its own way costs others nothing.
#[test]
fn ranges_that_lead_nowhere_leave_no_trace() {
    let (dir, origin) = (tempfile::tempdir().unwrap(), Origin::start());
    let network = network(dir.path(), &origin, 1, "");
    let edge = network.edges()[0].address();
    let length = 3 * MIB;
    // Beyond the end of what has another validator: the client gets what there is now.
    let path = format!("/{length}/ranges/a");
    let answer = get_with(edge, HOST, &path, &[("Range", "bytes=500000000-"), ("If-Range", "\"old\"")]);
    assert!(answer.status == 200 && answer.body == content(0, 0, length), "{}", answer.status);
    // By itself it is 416, and the next one finds what was learned on the way.
    let path = format!("/{length}/ranges/b");
    assert_eq!(part(edge, &path, "500000000-").status, 416);
    wait_for("its first slice", || right(edge, &path, length, 0, 9, 0).is_hit().then_some(()));
    // With credentials it is this client's alone, and remembered by nobody.
    let path = format!("/{length}/ranges/c");
    let own = get_with(edge, HOST, &path, &[("Range", "bytes=5-9"), ("Authorization", "Basic eDp5")]);
    assert!(own.status == 206 && own.body == content(0, 5, 10));
    right(edge, &path, length, 5, 9, 0);
    wait_for("it to be shared", || right(edge, &path, length, 5, 9, 0).is_hit().then_some(()));
}

/// Any parts in any order, while versions change and are purged.
#[test]
fn any_part_at_any_time_is_right() {
    let seed = std::env::var("TIDEGATE_SEED").map_or(7, |s| s.parse().unwrap());
    println!("TIDEGATE_SEED={seed}");
    let (dir, origin) = (tempfile::tempdir().unwrap(), Origin::start());
    let disk = "disk = { path = \"{data}/cache\", size = \"48MiB\" }\nmemory = \"8MiB\"";
    let network = network(dir.path(), &origin, 1, disk);
    let edge = network.edges()[0].address();
    let mut numbers = Numbers(seed);
    for round in 0..6u64 {
        std::thread::scope(|scope| {
            for _ in 0..6 {
                let seed = numbers.below(u64::MAX);
                scope.spawn(move || {
                    let mut numbers = Numbers(seed);
                    for _ in 0..30 {
                        let length = [900_000, 3 * MIB + 5, 14 * MIB][numbers.index(3)];
                        let path = format!("/{length}/ranges/{}", numbers.below(3));
                        let first = numbers.below(length);
                        let most = if numbers.below(4) == 0 { 4 * MIB } else { 1000 };
                        let last = (first + numbers.below(most)).min(length - 1);
                        if numbers.below(12) == 0 {
                            assert!(get(edge, HOST, &path).body == content(round, 0, length), "{path}");
                        } else {
                            right(edge, &path, length, first, last, round);
                        }
                    }
                });
            }
        });
        origin.change();
        network.purge(&["site", "big"]);
    }
}
