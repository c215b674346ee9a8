//! The witness: a randomised test over real sockets. An origin answers at random and records each answer; clients over
//! HTTP/1.1, HTTP/2 and HTTP/3 ask at random, over one tier and over two, read slowly and leave, while pages are purged. Then a model
//! of RFC 9110 and RFC 9111 of its own judges each answer: may this client have it at this time? It counts the requests upstream for
//! each client request, and looks for waits without a cause.
//!
//! `TIDEGATE_SEED` decides the random choices (not the timing of the processes), `TIDEGATE_WITNESS_SECONDS` the duration.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)] // A test fails by panicking.
#![allow(clippy::disallowed_methods, clippy::print_stdout)] // It has pauses, measures real time, and says what it drew.

#[path = "../support/mod.rs"]
mod support;

mod client;
mod heads;
mod model;
mod origin;

use client::{Client, Protocol, Reading, Wish};
use model::{Asked, Judge, Purge, Selector, Settings, World};
use origin::Origin;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use support::{Dev, Http, Numbers, error_of, wait_for};

/// Names in small letters, and bytes.
pub type Fields = Vec<(String, Vec<u8>)>;

const CLIENTS: usize = 30;
const SLOTS: usize = 14;
/// A path is asked for so long.
const PATH_LASTS: f64 = 6.0;
/// Maximum number of violations that are printed in full.
const TOLD: usize = 8;

/// All lines of a field as one value.
pub fn value_of(fields: &Fields, name: &str) -> Option<Vec<u8>> {
    let all: Vec<&[u8]> = fields.iter().filter(|(n, _)| n == name).map(|(_, v)| v.as_slice()).collect();
    (!all.is_empty()).then(|| all.join(if name == "cookie" { &b"; "[..] } else { b", " }))
}

pub fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|w| w == part)
}

/// The first line of a head, and its fields.
pub fn parsed(head: &[u8]) -> Option<(String, Fields)> {
    let mut lines = head.split(|b| *b == b'\n').map(|l| l.strip_suffix(b"\r").unwrap_or(l));
    let first = String::from_utf8_lossy(lines.next()?).into_owned();
    let field = |line: &[u8]| {
        let colon = line.iter().position(|b| *b == b':')?;
        Some((String::from_utf8_lossy(&line[..colon]).to_ascii_lowercase(), line[colon + 1..].trim_ascii().to_vec()))
    };
    Some((first, lines.filter_map(field).collect()))
}

/// The part of `total` bytes that a Range asks for: `None` if the field is not a range of this kind, `Some(None)` if it cannot be
/// satisfied.
pub fn range(text: &str, total: usize) -> Option<Option<(usize, usize)>> {
    let (first, last) = text.strip_prefix("bytes=")?.split_once('-')?;
    if first.is_empty() {
        let most: usize = last.parse().ok()?;
        let length = most.min(total);
        return Some((length > 0).then_some((total - length, length)));
    }
    let first: usize = first.parse().ok()?;
    let last = if last.is_empty() { usize::MAX } else { last.parse::<usize>().ok().filter(|l| *l >= first)? };
    Some((first < total).then(|| (first, last.min(total - 1) - first + 1)))
}

/// One network in front of the origin.
struct Network {
    name: &'static str,
    dev: Dev,
}

impl Network {
    fn start(name: &'static str, dir: &std::path::Path, origin: SocketAddr, shields: &str) -> Self {
        let dir = dir.join(name);
        std::fs::create_dir_all(&dir).unwrap();
        let url = format!("http://{origin}");
        let dev = Dev::start(&dir, &["--origin", &url, "--shields", shields]);
        for (site, more) in [("s0", ""), ("s1", "[cache]\nclient_reload = \"ignore\"\nstale_if_unreachable = \"0s\"\n")] {
            let file = dir.join(format!("{site}.toml"));
            let text = format!(
                "name = \"{site}\"\nhosts = [\"{site}.test\"]\n[origin]\nservers = [{{ url = \"{url}\" }}]\nallow_private = true\n\
                 first_byte_timeout = \"2s\"\nidle_timeout = \"3s\"\ntotal_timeout = \"6s\"\n{more}\
                 [tls]\nredirect = false\ncertificate = \"internal\"\n"
            );
            std::fs::write(&file, text).unwrap();
            let applied = dev.tidegate(&["site", "apply", "--vouch", file.to_str().unwrap()]);
            assert!(applied.status.success(), "{}", error_of(&applied));
        }
        let trusting = support::https::Trusting::authority(&dev.ca);
        let https = dev.https[0].trim_end_matches('/').trim_start_matches("https://").to_owned();
        for site in ["s0.test", "s1.test"] {
            wait_for("the site", || {
                let answers = Http::connect(dev.http[0]).ok()?.ask("GET", site, "/ready", &[]).ok()?;
                (answers.status == 204).then_some(())
            });
            let port: u16 = https.rsplit(':').next().unwrap().parse().unwrap();
            wait_for("its certificate", || support::https::shakes_hands(support::loopback(port), site, &trusting).then_some(()));
        }
        Self { name, dev }
    }

    fn https(&self) -> SocketAddr {
        support::loopback(self.dev.https[0].trim_end_matches('/').rsplit(':').next().unwrap().parse().unwrap())
    }

    fn settings(site: &str) -> Settings {
        let ignores = site == "s1.test";
        Settings {
            ignores_reloads: ignores,
            stale_if_unreachable: if ignores { 0.0 } else { 3600.0 },
            stale_wait: 2.0,
            first_byte_timeout: 2.0,
            total_timeout: 6.0,
        }
    }
}

/// The state that all clients share.
struct Shared {
    origin: Origin,
    asked: Mutex<Vec<Asked>>,
    purges: Mutex<Vec<Purge>>,
    /// The validators seen last for each path.
    tags: Mutex<HashMap<String, Validators>>,
    next: AtomicUsize,
    until: f64,
}

/// ETag and Last-Modified.
type Validators = (Option<String>, Option<String>);

/// A page that is asked for at that time.
fn page(network: &str, now: f64, slot: usize) -> (String, String) {
    let epoch = ((now + slot as f64 * 0.43) / PATH_LASTS) as usize;
    let site = if slot.is_multiple_of(3) { "s1.test" } else { "s0.test" };
    (site.to_owned(), format!("/{network}/{slot}/{epoch}"))
}

fn wish(r: &mut Numbers, shared: &Shared, network: &str, id: usize) -> Wish {
    let slot = r.index(SLOTS).min(r.index(SLOTS));
    let (host, path) = page(network, shared.origin.now(), slot);
    let protocol = [Protocol::One, Protocol::Two, Protocol::Three][r.index(3)];
    let method = match r.index(100) {
        0..=6 => "HEAD",
        7..=11 => "POST",
        _ => "GET",
    };
    let mut fields: Fields = Vec::new();
    let mut add = |name: &str, value: &[u8]| fields.push((name.to_owned(), value.to_vec()));
    add("x-req", id.to_string().as_bytes());
    let one_of = |r: &mut Numbers, all: &[&'static [u8]]| all[r.index(all.len())];
    if r.index(2) == 0 {
        add("x-v", one_of(r, &[b"a", b"b", b"a, b", b"a,b", b"\xe4"]));
    }
    if r.index(4) == 0 {
        add("cookie", one_of(r, &[b"u=1", b"u=2", b"u=3; l=4", b"u=1,l=4", b"u=1, l=4"]));
        if protocol != Protocol::One && r.index(3) == 0 {
            add("cookie", b"l=4");
        }
    }
    if r.index(12) == 0 {
        add("authorization", one_of(r, &[b"Basic YTpi", b"Basic Yzpk"]));
    }
    if r.index(3) == 0 {
        add("accept-language", one_of(r, &[b"de", b"en", b"de, en;q=0.5", b"en;q=0.5, de", b"fr"]));
    }
    if method == "GET" && r.index(40) == 0 {
        add("content-type", b"a/b");
    }
    if r.index(6) == 0 {
        add("origin", one_of(r, &[b"https://a.test", b"https://b.test"]));
    }
    if r.index(2) == 0 {
        add("accept-encoding", one_of(r, &[b"gzip", b"gzip, br", b"zstd", b"identity", b"gzip, deflate, br, zstd"]));
    }
    if r.index(7) == 0 {
        let all: [&[u8]; 10] = [
            b"no-cache",
            b"max-age=0",
            b"no-store",
            b"max-age=3",
            b"min-fresh=1",
            b"max-stale",
            b"max-stale=2",
            b"only-if-cached",
            b"max-age=2, max-stale=1",
            b"no-cache",
        ];
        add("cache-control", all[r.index(all.len())]);
    }
    let (tag, date) = shared.tags.lock().unwrap().get(&path).cloned().unwrap_or_default();
    let tag = tag.unwrap_or_else(|| "\"none\"".into());
    if method == "GET" && r.index(6) == 0 {
        let length = origin::Shape::of(&path).length;
        let first = r.index(length + 2);
        let text = match r.index(4) {
            0 => format!("bytes={first}-"),
            1 => format!("bytes=-{}", 1 + r.index(length + 2)),
            _ => format!("bytes={first}-{}", first + r.index(length / 3 + 2)),
        };
        add("range", text.as_bytes());
        if r.index(3) == 0 {
            add("if-range", tag.as_bytes());
        }
    }
    if method != "POST" {
        match r.index(24) {
            0..=2 => add("if-none-match", tag.as_bytes()),
            3 => add("if-none-match", format!("\"other\", {tag}").as_bytes()),
            4 => date.iter().for_each(|d| add("if-modified-since", d.as_bytes())),
            5 => add("if-match", tag.as_bytes()),
            _ => {}
        }
    }
    if protocol == Protocol::One && r.index(6) == 0 {
        add("connection", one_of(r, &[b"X-V", b"close, Cookie", b"origin, x-v", b"Accept-Language", b"close", b"Authorization"]));
    }
    let upload = (method == "POST").then(|| {
        let length = [0, 10, 5_000, 200_000][r.index(4)];
        origin::body(id as u64, 0, length)
    });
    let reading = match r.index(40) {
        0..=2 => Reading::Leaves(1 + r.index(50_000)),
        3..=5 => Reading::LeavesAt(5 + r.below(1500)),
        6..=9 => Reading::Slow(64 << 10, 100 + r.below(400)),
        _ => Reading::All,
    };
    let upload_takes = if method == "POST" && r.index(4) == 0 { 2600 } else { 0 };
    Wish { protocol, method, host, path, fields, upload, upload_takes, reading }
}

async fn browse(shared: Arc<Shared>, network: &'static str, mut clients: HashMap<String, Client>, seed: u64) {
    let mut r = Numbers(seed);
    while shared.origin.now() < shared.until {
        let id = shared.next.fetch_add(1, Ordering::Relaxed);
        let wish = wish(&mut r, &shared, network, id);
        let started = shared.origin.now();
        let mut got = clients.get_mut(&wish.host).unwrap().ask(&wish).await;
        let ended = shared.origin.now();
        let settings = Network::settings(&wish.host);
        let mut asked = Asked { id, settings, wish, started, ended, got: client::Got::default(), wrong_bytes: None };
        if asked.wish.fields.iter().any(|(n, v)| n == "connection" && contains(v, b"close")) {
            clients.get_mut(&asked.wish.host).unwrap().close_one();
        }
        std::mem::swap(&mut asked.got, &mut got);
        if let Some(answer) = asked.answer().and_then(|serial| shared.origin.answer(serial)) {
            // A long body takes a while: without this, all other tasks of the thread would wait.
            asked.wrong_bytes = tokio::task::block_in_place(|| model::wrong_bytes(&answer, &asked.wish, &asked.got));
            let said = |name: &str| value_of(&asked.got.fields, name).map(|v| String::from_utf8_lossy(&v).into_owned());
            shared.tags.lock().unwrap().insert(asked.wish.path.clone(), (said("etag"), said("last-modified")));
        }
        asked.got.body = Vec::new();
        shared.asked.lock().unwrap().push(asked);
        tokio::time::sleep(Duration::from_millis(r.below(40))).await;
    }
}

/// Purges one thing after another.
fn purge(shared: &Shared, network: &'static str, api: SocketAddr, token: &str, mut r: Numbers) {
    let mut http = Http::connect(api).unwrap();
    while shared.origin.now() < shared.until {
        std::thread::sleep(Duration::from_millis(300 + r.below(900)));
        let (host, path) = page(network, shared.origin.now(), r.index(6));
        let tag = format!("t{}", r.index(6));
        let (kind, named, selector) = if r.index(2) == 0 {
            ("url", format!("{host}{path}"), Selector::Url(host, path))
        } else {
            ("tag", tag.clone(), Selector::Tag(tag))
        };
        let body =
            format!("{{\"type\":\"{kind}\",\"selectors\":[\"{named}\"],\"site\":\"s{}\"}}", if named.starts_with("s1") { 1 } else { 0 });
        let sent = shared.origin.now();
        let request = format!(
            "POST /v1/purges?wait=5s HTTP/1.1\r\nHost: api\r\nAuthorization: Bearer {token}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        http.send(request.as_bytes()).unwrap();
        let answer = http.read("POST").unwrap();
        assert!(matches!(answer.status, 200 | 202), "{}", answer.text());
        if answer.status == 200 {
            let answered = shared.origin.now();
            shared.purges.lock().unwrap().push(Purge { network: network.into(), selector, sent, answered });
        }
    }
}

#[test]
fn every_answer_is_for_whom_it_went_to() {
    let number = |name: &str| std::env::var(name).ok().map(|v| v.parse::<u64>().unwrap());
    let seed =
        number("TIDEGATE_SEED").unwrap_or_else(|| std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap().as_nanos() as u64 % 1_000_000);
    let seconds = number("TIDEGATE_WITNESS_SECONDS").unwrap_or(60);
    println!("the witness: TIDEGATE_SEED={seed} TIDEGATE_WITNESS_SECONDS={seconds}");
    // Each minute uses new networks, and its records are judged at its end.
    let rounds = seconds.div_ceil(60);
    for round in 0..rounds {
        run(seed + round, seconds as f64 / rounds as f64);
    }
}

fn run(seed: u64, seconds: f64) {
    let dir = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let (origin, address) = runtime.block_on(Origin::start(seed));
    let networks = [Network::start("one", dir.path(), address, "0"), Network::start("two", dir.path(), address, "1")];
    let until = origin.now() + seconds;
    let shared = Arc::new(Shared {
        origin: origin.clone(),
        asked: Mutex::default(),
        purges: Mutex::default(),
        tags: Mutex::default(),
        next: AtomicUsize::new(0),
        until,
    });
    std::thread::scope(|scope| {
        let mut r = Numbers(seed);
        for network in &networks {
            let (shared, draws) = (Arc::clone(&shared), Numbers(r.below(u64::MAX)));
            let api = network.dev.api[0].trim_start_matches("http://").trim_end_matches('/').parse().unwrap();
            scope.spawn(move || purge(&shared, network.name, api, &network.dev.token, draws));
        }
        runtime.block_on(async {
            let mut tasks = tokio::task::JoinSet::new();
            for n in 0..CLIENTS * networks.len() {
                let network = &networks[n % networks.len()];
                let client = || Client::new(network.dev.http[0], network.https(), &network.dev.ca);
                let clients = ["s0.test", "s1.test"].map(|host| (host.to_owned(), client()));
                tasks.spawn(browse(Arc::clone(&shared), network.name, HashMap::from(clients), r.below(u64::MAX)));
            }
            while let Some(done) = tasks.join_next().await {
                done.unwrap();
            }
            // Streams without readers end.
            tokio::time::sleep(Duration::from_secs(4)).await;
        });
    });
    let world = World {
        answers: origin.answers(),
        asked: std::mem::take(&mut *shared.asked.lock().unwrap()),
        purges: std::mem::take(&mut *shared.purges.lock().unwrap()),
        over: origin.now(),
    };
    let mut judge = Judge::new(&world);
    let mut kinds: HashMap<String, usize> = HashMap::new();
    let mut told = 0;
    for asked in &world.asked {
        let wrong = judge.judge(asked);
        for what in &wrong {
            let kind: String = what.chars().filter(|c| !c.is_ascii_digit()).collect();
            let count = kinds.entry(kind).or_default();
            *count += 1;
            if *count == 1 && told < TOLD {
                told += 1;
                println!("VIOLATION after {:.1} s: {what}\n{}", asked.ended - (until - seconds), judge.told(asked));
            }
        }
    }
    for what in judge.endless() {
        *kinds.entry("a stream went on without readers".into()).or_default() += 1;
        println!("VIOLATION: {what}");
    }
    let faults = world.answers.iter().filter(|a| !a.is_good()).count();
    let clients = |p: Protocol| world.asked.iter().filter(|a| a.wish.protocol == p && a.got.head_after.is_some()).count();
    println!(
        "seed {seed}: {} requests ({} over HTTP/1.1, {} over HTTP/2, {} over HTTP/3 were answered), {} upstream ({faults} went wrong), \
         {} were answered with another's response ({} with a stale one), {} purges; longest wait that nobody caused: {:.2} s",
        world.asked.len(),
        clients(Protocol::One),
        clients(Protocol::Two),
        clients(Protocol::Three),
        world.answers.len(),
        judge.reused,
        judge.stale,
        world.purges.len(),
        judge.longest_wait,
    );
    // A network that does nothing does nothing wrong.
    let least = if seconds >= 30.0 { 50 } else { 1 };
    let each = [Protocol::One, Protocol::Two, Protocol::Three].map(clients);
    assert!(
        each.iter().all(|n| *n >= least) && judge.reused >= least && world.purges.len() >= least / 10,
        "{each:?}, too little was drawn"
    );
    let mut kinds: Vec<_> = kinds.into_iter().collect();
    kinds.sort_by_key(|(_, n)| std::cmp::Reverse(*n));
    assert!(kinds.is_empty(), "seed {seed}: {kinds:#?}");
}
