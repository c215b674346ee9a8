//! The purge promise with real processes: three control nodes, two shields and three edges under load, each on a host of its
//! own; killed, stopped, cut off from each other, with full disks and wrong clocks, in an order that one seed decides, while
//! purges are answered. Everything is recorded by one clock, and checked as the simulation checks it.
//!
//! Hosts are network namespaces. Where the machine allows none, the nodes share one host, and are killed and stopped only.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::disallowed_methods, clippy::print_stdout)] // A test fails by panicking.

#[path = "support/promise.rs"]
mod promise;
mod support;

use promise::{Given, Promises, time};
use serde_json::Value;
use std::collections::{BTreeMap, HashMap};
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use support::hosts::{self, Entered, Hosts};
use support::network::{Api, Network, Plan};
use support::{Http, Numbers, request_head, wait_for};
use tidegate_control_types::{PurgeOrder, Selector};

const SITES: [(&str, &str); 2] = [("shop", "revalidate"), ("blog", "serve")];
const PAGES: u64 = 6;
const TAGS: [&str; 3] = ["red", "green", "blue"];

const DISK: &str = "disk = { path = \"{data}/cache\", size = \"16MiB\" }";

/// What everybody here shares.
struct World {
    start: Instant,
    promises: Mutex<Promises>,
    given: Mutex<Vec<Given>>,
    versions: Mutex<HashMap<(String, String), u64>>,
    violations: Mutex<Vec<String>>,
    over: AtomicBool,
    answers: AtomicU64,
    hits: AtomicU64,
    purges_200: AtomicU64,
    purges_202: AtomicU64,
    purges_unknown: AtomicU64,
    token: String,
}

impl World {
    fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_nanos()).unwrap()
    }

    fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }
}

fn tags(path: &str, version: u64) -> Vec<String> {
    let mixed = path.bytes().map(u64::from).sum::<u64>() + version * 5;
    TAGS.iter().enumerate().filter(|(n, _)| mixed >> n & 1 == 1).map(|(_, t)| (*t).to_owned()).collect()
}

/// An origin whose every answer has a number.
fn origin(world: &Arc<World>) -> u16 {
    let listener = TcpListener::bind("0.0.0.0:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let world = Arc::clone(world);
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let world = Arc::clone(&world);
            std::thread::spawn(move || origin_connection(&world, stream));
        }
    });
    port
}

fn origin_connection(world: &World, mut stream: TcpStream) {
    loop {
        let head = request_head(&mut stream);
        let field = |name: &str| {
            let line = head.lines().find(|l| l.to_ascii_lowercase().starts_with(&format!("{name}:")))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        };
        let (Some(path), Some(host)) = (head.split(' ').nth(1), field("host")) else { return };
        let site = host.split('.').next().unwrap_or_default().to_owned();
        let version = world.versions.lock().unwrap().get(&(host.clone(), path.to_owned())).copied().unwrap_or(0);
        let tags = tags(path, version);
        let number = {
            let mut given = world.given.lock().unwrap();
            given.push(Given { at: world.now(), site, host: host.clone(), path: path.to_owned(), tags: tags.clone() });
            given.len() - 1
        };
        std::thread::sleep(Duration::from_millis((number as u64 * 37) % 60));
        let etag = format!("\"{version}\"");
        let common =
            format!("X-Exchange: {number}\r\nCache-Control: max-age=1000\r\nETag: {etag}\r\nSurrogate-Key: {}\r\n", tags.join(" "));
        let answer = if field("if-none-match").as_ref() == Some(&etag) {
            format!("HTTP/1.1 304 Not Modified\r\n{common}\r\n")
        } else {
            let body = format!("{host}{path} in version {version}");
            format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n{common}\r\n{body}", body.len())
        };
        if stream.write_all(answer.as_bytes()).is_err() {
            return;
        }
    }
}

fn client(world: &World, edges: &[(String, SocketAddr)], mut r: Numbers) {
    while !world.is_over() {
        let (name, address) = &edges[r.index(edges.len())];
        let host = format!("{}.example", SITES[r.index(2)].0);
        let path = format!("/p/{}", r.below(PAGES));
        let Ok(mut http) = Http::connect(*address) else {
            std::thread::sleep(Duration::from_millis(20));
            continue;
        };
        for _ in 0..r.below(20) {
            let begun = world.now();
            let Ok(answer) = http.ask("GET", &host, &path, &[]) else { break };
            let number: Option<usize> = answer.header("x-exchange").and_then(|n| n.parse().ok());
            let Some(given) = number.and_then(|n| world.given.lock().unwrap().get(n).cloned()) else { continue };
            world.answers.fetch_add(1, Ordering::Relaxed);
            world.hits.fetch_add(u64::from(answer.is_hit()), Ordering::Relaxed);
            let mut checked = world.promises.lock().unwrap().answered(name, begun, &given, false);
            if !answer.text().starts_with(&format!("{host}{path} in version ")) {
                checked = Err(format!("wrong bytes: {host}{path} got {:?}", answer.text()));
            }
            if let Err(why) = checked {
                world.violations.lock().unwrap().push(why);
                return;
            }
        }
    }
}

fn call(world: &World, api: &Api, method: &str, path: &str, body: &str) -> Option<(u16, Value)> {
    let mut http = api.connect().ok()?;
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: api\r\nAuthorization: Bearer {}\r\nContent-Length: {}\r\n\r\n{body}",
        world.token,
        body.len()
    );
    http.send(head.as_bytes()).ok()?;
    let answer = http.read(method).ok()?;
    Some((answer.status, serde_json::from_slice(&answer.body).unwrap_or(Value::Null)))
}

fn note_receipt(world: &World, status: u16, receipt: &Value, orders: &[PurgeOrder], called_at: u64) {
    let now = world.now();
    let Some(index) = receipt["index"].as_u64() else { return };
    let mut promises = world.promises.lock().unwrap();
    if status == 200 {
        promises.is_true(index, orders, called_at, now);
    } else if status == 202 {
        let done = |n: &&Value| n["state"] == "applied" || n["state"] == "silent";
        let nodes = receipt["nodes"].as_array().into_iter().flatten().filter(done);
        let done: Vec<_> = nodes.filter_map(|n| n["name"].as_str().map(str::to_owned)).collect();
        promises.is_pending(index, orders, called_at, now, &done);
    }
}

type Asked = Mutex<HashMap<u64, (Vec<PurgeOrder>, u64)>>;

fn purger(world: &World, apis: &[Api], asked: &Asked, mut r: Numbers) {
    while !world.is_over() {
        let site = SITES[r.index(2)].0;
        let (host, path) = (format!("{site}.example"), format!("/p/{}", r.below(PAGES)));
        for _ in 0..r.below(3) {
            let page = (host.clone(), format!("/p/{}", r.below(PAGES)));
            *world.versions.lock().unwrap().entry(page).or_default() += 1;
        }
        let tag = TAGS[r.index(3)];
        let (kind, selectors, selector) = match r.below(10) {
            0..4 => ("url", format!("[\"{host}{path}\"]"), Selector::Url { host, target: path }),
            4..7 => ("tag", format!("[\"{tag}\"]"), Selector::Tag { tag: tag.into() }),
            7 => ("prefix", format!("[\"{host}/p\"]"), Selector::Prefix { host, path: "/p".into() }),
            8 => ("host", format!("[\"{host}\"]"), Selector::Host { host }),
            _ => ("site", "[]".into(), Selector::Site),
        };
        let body = format!("{{\"type\":\"{kind}\",\"selectors\":{selectors},\"site\":\"{site}\"}}");
        let orders = vec![PurgeOrder { site: site.parse().ok(), selector, soft: false }];
        let called_at = world.now();
        let api = &apis[r.index(apis.len())];
        match call(world, api, "POST", "/v1/purges?wait=8s", &body) {
            Some((status @ (200 | 202), receipt)) => {
                let count = if status == 200 { &world.purges_200 } else { &world.purges_202 };
                count.fetch_add(1, Ordering::Relaxed);
                asked.lock().unwrap().insert(receipt["index"].as_u64().unwrap(), (orders.clone(), called_at));
                note_receipt(world, status, &receipt, &orders, called_at);
            }
            _ => drop(world.purges_unknown.fetch_add(1, Ordering::Relaxed)),
        }
        std::thread::sleep(Duration::from_millis(r.below(150)));
    }
}

enum Fault {
    Killed,
    Stopped,
    /// What the first host sends to the second is lost.
    Cut(Vec<(String, IpAddr)>),
    DiskFull,
    /// Seconds that its wall clock is off.
    Clock(i64),
}

impl Fault {
    fn random(network: &Network, at: usize, r: &mut Numbers) -> Self {
        let kinds = if network.hosts.is_some() { 5 } else { 2 };
        match r.below(kinds) {
            0 => Self::Killed,
            1 => Self::Stopped,
            2 => Self::Cut(cuts(network, at, r)),
            3 => Self::DiskFull,
            _ => Self::Clock([-3600, -40, 15, 7200][r.index(4)]),
        }
    }

    fn name(&self) -> &'static str {
        match self {
            Self::Killed => "killed",
            Self::Stopped => "stopped",
            Self::Cut(_) => "cut off",
            Self::DiskFull => "disk full",
            Self::Clock(_) => "clock wrong",
        }
    }

    fn strike(&self, network: &mut Network, at: usize) {
        let node = &mut network.nodes[at];
        match self {
            Self::Killed => node.kill(),
            Self::Stopped => node.signal("STOP"),
            Self::Cut(cuts) => cuts.iter().for_each(|(from, to)| Hosts::cut(from, *to)),
            Self::DiskFull => Hosts::fill_disk(&node.data),
            Self::Clock(seconds) => {
                node.kill();
                node.start_later(*seconds);
            }
        }
    }

    fn mend(&self, network: &mut Network, at: usize) {
        let node = &mut network.nodes[at];
        match self {
            Self::Killed => node.start(),
            Self::Stopped => node.signal("CONT"),
            Self::Cut(cuts) => cuts.iter().for_each(|(from, to)| Hosts::mend(from, *to)),
            Self::DiskFull => {
                Hosts::free_disk(&node.data);
                // A control node that cannot write ends: an operator, or systemd, starts it again.
                if node.has_ended() {
                    node.start();
                }
            }
            Self::Clock(_) => {
                node.kill();
                node.start();
            }
        }
    }
}

/// A node alone, one that is heard by nobody, one that hears nobody, or one that two others cannot both reach.
fn cuts(network: &Network, at: usize, r: &mut Numbers) -> Vec<(String, IpAddr)> {
    let (me, mut others): (_, Vec<_>) = (&network.nodes[at], network.nodes.iter().filter(|n| n.name != network.nodes[at].name).collect());
    let from = |a: &support::network::Node, b: &support::network::Node| (a.name.clone(), b.ip);
    let out = |others: &[&support::network::Node]| others.iter().map(|o| from(me, o)).collect::<Vec<_>>();
    let back = |others: &[&support::network::Node]| others.iter().map(|o| from(o, me)).collect::<Vec<_>>();
    match r.below(4) {
        0 => out(&others),
        1 => back(&others),
        2 => [out(&others), back(&others)].concat(),
        _ => {
            others.retain(|_| r.below(2) == 0);
            [out(&others), back(&others)].concat()
        }
    }
}

/// Strikes nodes, one fault after the other and some at once; returns how many of each kind.
fn faults(network: &mut Network, world: &World, mut r: Numbers, lasts: Duration) -> BTreeMap<&'static str, u64> {
    let mut done = BTreeMap::new();
    let end = Instant::now() + lasts;
    // What is to be made good, and when.
    let mut to_mend: Vec<(Instant, usize, Fault)> = Vec::new();
    while Instant::now() < end || !to_mend.is_empty() {
        let now = Instant::now();
        let (due, later): (Vec<_>, Vec<_>) = to_mend.into_iter().partition(|(at, ..)| *at <= now);
        to_mend = later;
        due.iter().for_each(|(_, at, fault)| fault.mend(network, *at));
        // One cut at a time: they share what they mend.
        let cut = to_mend.iter().any(|(.., f)| matches!(f, Fault::Cut(_)));
        if now < end && to_mend.len() < 3 && r.below(8) == 0 && world.violations.lock().unwrap().is_empty() {
            let at = r.index(network.nodes.len());
            let struck = to_mend.iter().any(|(_, n, _)| *n == at);
            let fault = Fault::random(network, at, &mut r);
            if !(struck || cut && matches!(fault, Fault::Cut(_))) {
                fault.strike(network, at);
                *done.entry(fault.name()).or_default() += 1;
                to_mend.push((now + Duration::from_millis(200 + r.below(7000)), at, fault));
            }
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    done
}

/// How long no purge is acknowledged after the leader is killed.
fn write_gap(network: &mut Network, world: &World) -> Option<Duration> {
    let status = network.json(&["control", "members"]);
    let leader = status.as_array()?.iter().find(|m| m["state"] == "leader")?["name"].as_str()?.to_owned();
    let apis: Vec<_> = network.nodes.iter().filter(|n| n.role == "control" && n.name != leader).map(|n| n.api()).collect();
    network.node(&leader).kill();
    let killed = Instant::now();
    let body = "{\"type\":\"url\",\"selectors\":[\"shop.example/nothing\"]}";
    while !apis.iter().any(|api| call(world, api, "POST", "/v1/purges", body).is_some_and(|(s, _)| s == 200 || s == 202)) {
        assert!(killed.elapsed() < support::PATIENCE, "no write after the leader was lost");
    }
    let gap = killed.elapsed();
    network.node(&leader).start();
    Some(gap)
}

/// Requests that fail while no control node runs.
fn without_control_plane(network: &mut Network, edges: &[(String, SocketAddr)]) -> (u64, u64) {
    let controls: Vec<_> = network.nodes.iter().filter(|n| n.role == "control").map(|n| n.name.clone()).collect();
    controls.iter().for_each(|n| network.node(n).kill());
    let (mut asked, mut failed) = (0, 0);
    let end = Instant::now() + Duration::from_secs(6);
    while Instant::now() < end {
        for (_, address) in edges {
            let answer = Http::connect(*address).and_then(|mut h| h.ask("GET", "blog.example", &format!("/p/{}", asked % PAGES), &[]));
            asked += 1;
            failed += u64::from(!answer.is_ok_and(|a| a.status == 200));
        }
    }
    controls.iter().for_each(|n| network.node(n).start());
    (asked, failed)
}

#[test]
fn purges_that_were_answered_stay_true_whatever_happens_to_processes() {
    let entered = hosts::enter("purges_that_were_answered_stay_true_whatever_happens_to_processes");
    let (apart, here) = match entered {
        Entered::Over => return,
        Entered::Inside => (true, hosts::OUTSIDE),
        Entered::Refused => {
            println!("this machine allows no network namespaces: no node is cut off, no disk full, no clock wrong in this run");
            (false, Ipv4Addr::LOCALHOST)
        }
    };
    let number = |name: &str, default: u64| std::env::var(name).ok().and_then(|v| v.parse().ok()).unwrap_or(default);
    let (seed, seconds) = (number("TIDEGATE_SEED", 1), number("TIDEGATE_FAULT_SECONDS", 120));
    let dir = tempfile::tempdir().unwrap();
    let mut network = Network::planned(
        dir.path(),
        Plan { controls: 3, shields: 2, edges: 3, lease: "2s", apart, shield_more: DISK, edge_more: DISK, ..Plan::default() },
    );
    let world = Arc::new(World {
        start: Instant::now(),
        promises: Mutex::default(),
        given: Mutex::default(),
        versions: Mutex::default(),
        violations: Mutex::default(),
        over: AtomicBool::new(false),
        answers: AtomicU64::new(0),
        hits: AtomicU64::new(0),
        purges_200: AtomicU64::new(0),
        purges_202: AtomicU64::new(0),
        purges_unknown: AtomicU64::new(0),
        token: network.token.clone(),
    });
    let url = format!("http://{here}:{}", origin(&world));
    for (name, mode) in SITES {
        network.site(name, &format!("\"{name}.example\""), &url, &format!("[cache]\nwhen_detached = \"{mode}\""));
    }
    let edges: Vec<_> = network.edges().iter().map(|n| (n.name.clone(), n.address())).collect();
    let apis: Vec<_> = network.nodes.iter().filter(|n| n.role == "control").map(|n| n.api()).collect();
    let asked = Asked::default();
    let done = std::thread::scope(|scope| {
        for n in 0..4 {
            let (world, edges) = (&world, &edges);
            scope.spawn(move || client(world, edges, Numbers(seed * 1000 + n)));
        }
        for n in 0..2 {
            let (world, apis, asked) = (&world, &apis, &asked);
            scope.spawn(move || purger(world, apis, asked, Numbers(seed * 1000 + 100 + n)));
        }
        let done = faults(&mut network, &world, Numbers(seed), Duration::from_secs(seconds));
        // Faults are over: all is as it should be again, and stays so under load.
        network.attached();
        std::thread::sleep(Duration::from_secs(1));
        world.over.store(true, Ordering::Relaxed);
        done
    });
    let violations = world.violations.lock().unwrap().clone();
    assert_eq!(violations, Vec::<String>::new(), "seed {seed}");
    // Every purge that has a receipt becomes true.
    let open = world.promises.lock().unwrap().open();
    for index in &open {
        let (orders, called_at) = asked.lock().unwrap()[index].clone();
        wait_for("every purge to be true", || {
            let (status, receipt) = call(&world, &apis[0], "GET", &format!("/v1/purges/{index}?wait=2s"), "")?;
            note_receipt(&world, status, &receipt, &orders, called_at);
            (status == 200).then_some(())
        });
    }
    let mut gaps: Vec<_> = (0..3)
        .filter_map(|_| {
            let gap = write_gap(&mut network, &world);
            wait_for("the control plane", || network.tidegate(&["status"]).status.success().then_some(()));
            std::thread::sleep(Duration::from_secs(2));
            gap
        })
        .collect();
    gaps.sort();
    network.attached();
    let (requests, failed) = without_control_plane(&mut network, &edges);
    let get = |n: &AtomicU64| n.load(Ordering::Relaxed);
    println!(
        "seed {seed}, {seconds} s of faults {done:?}: {} answers, {} of them hits; purges 200 {}, 202 {}, unknown {}; {} became true later; \
         stale 0; write gap after the loss of a leader p50 {:?} max {:?}; without control nodes {failed} of {requests} requests failed; over after {}",
        get(&world.answers),
        get(&world.hits),
        get(&world.purges_200),
        get(&world.purges_202),
        get(&world.purges_unknown),
        open.len(),
        gaps.get(gaps.len() / 2),
        gaps.last(),
        time(world.now()),
    );
    assert_eq!(failed, 0, "the data plane outlives the control plane");
    assert!(get(&world.purges_200) > 0 && get(&world.hits) > 0);
}
