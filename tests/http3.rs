//! HTTP/3 with clients that nobody here wrote: aioquic, and Chromium that may use nothing else.

#![allow(clippy::unwrap_used, clippy::disallowed_methods)] // A test fails by panicking.

mod support;

use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::Ordering;
use std::time::Duration;
use support::h3::{Aioquic, Lossy, quinn_client};
use support::network::{Network, Plan};
use support::origin::{Origin, body};
use support::{Dev, Http, Nginx, chromium, get, loopback, request_head, text, wait_for};

/// What the client calls a body: its SHA-256.
fn sum(bytes: &[u8]) -> String {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    digest.as_ref().iter().map(|b| format!("{b:02x}")).collect()
}

fn https(dev: &Dev) -> SocketAddr {
    loopback(dev.https[0].trim_end_matches('/').rsplit(':').next().unwrap().parse().unwrap())
}

fn client(dev: &Dev) -> Aioquic {
    Aioquic::of(https(dev), &dev.ca, "localhost")
}

/// A network with one edge in front of an origin, without time for a test to waste.
fn edge(dir: &Path, limits: &str, origin: &str) -> Network {
    let network = Network::planned(dir, Plan { limits, ..Plan::default() });
    network.site("s", "\"s.example\"", origin, "");
    network
}

fn client_of(network: &Network) -> Aioquic {
    Aioquic::of(loopback(network.edges()[0].https), &network.ca, "s.example")
}

fn is(answer: &Value, status: u16, bytes: &[u8]) {
    assert!(answer["error"].is_null() && answer["status"] == status, "{answer}");
    assert_eq!((answer["length"].as_u64(), answer["sha256"].as_str()), (Some(bytes.len() as u64), Some(&sum(bytes)[..])), "{answer}");
}

#[test]
fn the_sample_site_comes_over_http3_with_all_that_a_request_may_ask() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("access.log");
    let dev = Dev::start(dir.path(), &["--access-log", log.to_str().unwrap()]);
    let page = get(dev.http[0], "localhost", "/");
    let h3 = client(&dev);
    is(&h3.ask(&json!([{}]))[0], 200, &page.body);
    let asked = json!([
        { "path": "/" },
        { "path": "/", "method": "HEAD" },
        { "path": "/", "headers": [["range", "bytes=10-19"]] },
        { "path": "/", "headers": [["range", "bytes=-7"]] },
        { "path": "/", "headers": [["range", "bytes=100000-"]] },
        { "path": "/", "headers": [["if-none-match", page.header("etag").unwrap()]] },
        { "path": "/nosuch" },
        { "path": "/", "method": "TRACE" },
        { "path": "/", "authority": "localhost@evil.example" },
        { "path": "/", "headers": [["x", "a".repeat(9000)]], "late_end": true },
    ]);
    let a = h3.ask(&asked.as_array().unwrap()[..8].into());
    is(&a[0], 200, &page.body);
    assert!(a[0]["headers"]["cache-status"].as_str().unwrap().starts_with("edge-1; hit"), "{}", a[0]);
    assert!(a[0]["headers"].get("alt-svc").is_none(), "it is there already: {}", a[0]);
    is(&a[1], 200, b"");
    assert_eq!(a[1]["headers"]["content-length"], page.body.len().to_string());
    is(&a[2], 206, &page.body[10..20]);
    is(&a[3], 206, &page.body[page.body.len() - 7..]);
    assert_eq!((&a[4]["status"], &a[5]["status"], &a[6]["status"], &a[7]["status"]), (&416.into(), &304.into(), &404.into(), &405.into()));
    // A malformed request ends its stream alone.
    let a = h3.ask(&json!([asked[8], { "path": "/" }]));
    assert_eq!(a[0]["error"], "reset: 0x10e", "{}", a[0]);
    is(&a[1], 200, &page.body);
    // A request's end may come after its head.
    is(
        &h3.run(&json!([{ "do": "requests", "at_once": false, "requests": [{ "path": "/", "late_end": true }] }]))[0]["answers"][0],
        200,
        &page.body,
    );
    // The server says what it takes, and the other protocols say that it is there.
    let settings = h3.run(&json!([{ "do": "requests", "requests": [{}] }]));
    assert_eq!(settings[0]["settings"], json!({ "6": 32 << 10, "8": 1 }));
    let curl = Command::new("curl").args(["-s", "-i", "--cacert"]).arg(&dev.ca).arg(format!("{}/", dev.https[0])).output().unwrap();
    let port = https(&dev).port();
    assert!(text(&curl.stdout).contains(&format!("alt-svc: h3=\":{port}\"; ma=86400")), "{}", text(&curl.stdout));
    assert!(page.header("alt-svc").is_none(), "not over plain HTTP");
    wait_for("the access log", || std::fs::read_to_string(&log).ok()?.contains("\"protocol\":\"h3\"").then_some(()));
}

const DOCUMENTATION: &str = "/usr/share/doc/python3.11/html";

/// Its files, by their paths.
fn documentation() -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut folders = vec![Path::new(DOCUMENTATION).to_path_buf()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else if let Ok(bytes) = std::fs::read(&path) {
                files.insert(format!("/{}", path.strip_prefix(DOCUMENTATION).unwrap().display()), bytes);
            }
        }
    }
    files
}

#[test]
fn a_large_documentation_site_comes_right_to_the_byte() {
    let dir = tempfile::tempdir().unwrap();
    let nginx = Nginx::start(&dir.path().join("nginx"), Path::new(DOCUMENTATION), "add_header Cache-Control max-age=3600;");
    let network = edge(dir.path(), "drain = \"1s\"", &nginx.url());
    let files = documentation();
    assert!(files.len() > 400, "{}", files.len());
    let paths: Vec<&String> = files.keys().collect();
    // A hundred streams at once.
    for some in paths.chunks(100) {
        let requests: Vec<Value> = some.iter().map(|p| json!({ "path": p })).collect();
        for (path, answer) in some.iter().zip(client_of(&network).ask(&requests.into())) {
            is(&answer, 200, &files[*path]);
        }
    }
}

/// Hints at what is to come, says what it was sent, and has trailers.
fn talkative() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || {
                let mut from = BufReader::new(stream.try_clone().unwrap());
                loop {
                    let head = request_head(&mut from).to_ascii_lowercase();
                    if head.is_empty() {
                        return;
                    }
                    let field = |name: &str| head.lines().find_map(|l| l.strip_prefix(&format!("{name}: "))).unwrap_or("none").to_owned();
                    let (mut data, mut trailers) = (Vec::new(), String::new());
                    if let Ok(length) = field("content-length").parse() {
                        data = vec![0; length];
                        if from.read_exact(&mut data).is_err() {
                            return;
                        }
                    }
                    while head.contains("transfer-encoding: chunked") {
                        let mut size = String::new();
                        from.read_line(&mut size).unwrap();
                        let length = usize::from_str_radix(size.trim(), 16).unwrap_or(0);
                        if length == 0 {
                            let mut line = String::new();
                            while from.read_line(&mut line).is_ok_and(|n| n > 2) {
                                trailers += line.trim();
                                line.clear();
                            }
                            break;
                        }
                        let mut chunk = vec![0; length + 2];
                        from.read_exact(&mut chunk).unwrap();
                        data.extend_from_slice(&chunk[..length]);
                    }
                    let answer = format!(
                        "HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload\r\n\r\n\
                         HTTP/1.1 200 OK\r\nCache-Control: private\r\nAlt-Svc: h3=\":1\"\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\
                         X-Cookie: {}\r\nX-Early: {}\r\nX-Trailers: {trailers}\r\nX-Sha256: {}\r\n\r\n3\r\nsum\r\n0\r\nX-Sum: {}\r\n\r\n",
                        field("cookie"),
                        field("early-data"),
                        sum(&data),
                        data.len()
                    );
                    if stream.write_all(answer.as_bytes()).is_err() {
                        return;
                    }
                }
            });
        }
    });
    url
}

#[test]
fn bodies_trailers_and_early_hints_go_both_ways() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(dir.path(), &["--origin", &talkative(), "--shields", "1"]);
    let sent = 3 << 20;
    let pattern: Vec<u8> = (0..=250).cycle().take(sent).collect();
    let te = json!(["te", "trailers"]);
    let a = client(&dev).ask(&json!([
        { "method": "POST", "path": "/length", "body": sent, "headers": [["content-length", sent.to_string()], te] },
        { "method": "POST", "path": "/trailers", "body": "hello", "trailers": [["x-mine", "here"]], "headers": [te, ["trailer", "x-mine"]] },
        { "path": "/cookies", "headers": [["cookie", "a=b"], ["cookie", "c=d"], te] },
        { "method": "POST", "path": "/short", "body": "hello", "headers": [["content-length", "6"]] },
        { "method": "POST", "path": "/long", "body": "hello", "headers": [["content-length", "4"]] },
        { "method": "POST", "path": "/none", "body": "hello", "headers": [["content-length", "0"]] },
    ]));
    // A client that waits gets 100 Continue; this one sends no body all the same.
    let headers = json!([["expect", "100-continue"], ["content-length", "4"]]);
    let upload = json!({ "method": "PUT", "path": "/waits", "headers": headers, "keep_open": true });
    let waits = &client(&dev).run(&json!([{ "do": "requests", "requests": [upload], "within": 3 }]))[0]["answers"][0];
    assert_eq!((&waits["interim"][0][":status"], &waits["error"]), (&json!("100"), &json!("timeout")), "{waits}");
    for (answer, bytes) in a.iter().zip([&pattern[..], b"hello", b""]) {
        is(answer, 200, b"sum");
        assert_eq!(answer["headers"]["x-sha256"], sum(bytes), "{answer}");
        assert_eq!(answer["trailers"]["x-sum"], bytes.len().to_string(), "{answer}");
        assert_eq!(answer["interim"][0][":status"], "103", "{answer}");
        assert_eq!(answer["interim"][0]["link"], "</style.css>; rel=preload", "{answer}");
        assert!(answer["headers"].get("alt-svc").is_none(), "the origin's own place is nothing to clients of the network: {answer}");
    }
    assert_eq!(a[1]["headers"]["x-trailers"], "x-mine: here");
    assert_eq!(a[2]["headers"]["x-cookie"], "a=b; c=d");
    // A body that is not as long as it says is no request.
    for broken in &a[3..] {
        assert!(broken["error"] == "reset: 0x10e" || broken["status"] == 502 || broken["status"] == 400, "{broken}");
    }
}

#[test]
fn early_data_is_for_safe_requests_and_the_origin_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(dir.path(), &["--origin", &talkative(), "--shields", "0"]);
    let first = json!({ "do": "requests", "wait_for_ticket": true, "requests": [{ "path": "/a" }] });
    let early = json!({ "do": "early", "requests": [{ "path": "/b" }, { "path": "/c", "method": "POST", "body": "x" }] });
    wait_for("requests that were taken up before the handshake was over", || {
        let runs = client(&dev).run(&json!([first, early]));
        assert_eq!(runs[0]["answers"][0]["headers"]["x-early"], "none");
        assert_eq!(runs[1]["early"], true, "{}", runs[1]);
        let a = &runs[1]["answers"];
        is(&a[0], 200, b"sum");
        // On a busy machine the handshake may be over before the edge looks at them: then they are requests as any other.
        let early = (a[0]["headers"]["x-early"].as_str(), a[1]["status"].as_u64());
        assert!([Some("1"), Some("none")].contains(&early.0) && [Some(425), Some(200)].contains(&early.1), "{early:?}");
        (early == (Some("1"), Some(425))).then_some(())
    });
}

#[test]
fn a_client_that_changes_its_address_keeps_its_connection() {
    let dir = tempfile::tempdir().unwrap();
    let origin = Origin::start();
    let network = edge(dir.path(), "drain = \"1s\"", &origin.url());
    let path = "/4000000/moving";
    // Two workers: half of the new addresses lead to the other one's socket.
    let runs = client_of(&network).run(&json!([{ "do": "migrate", "times": 6, "request": { "path": path } }]));
    let whole = body(path, 0);
    is(&runs[0]["answers"][0], 200, &whole);
    is(&runs[0]["answers"][1], 200, &whole);
}

#[test]
fn bodies_come_whole_over_a_network_that_loses_packets() {
    let dir = tempfile::tempdir().unwrap();
    let origin = Origin::start();
    let network = edge(dir.path(), "drain = \"1s\"", &origin.url());
    let seed = 20_261_127;
    let lossy = Lossy::start(loopback(network.edges()[0].https), 50, seed);
    let h3 = Aioquic::of(lossy.address, &network.ca, "s.example");
    let paths: Vec<String> =
        (0..100).map(|n| format!("/{}/lossy-{n}", [100, 3_000, 20_000, 60_000][n % 4])).chain(["/1048576/lossy".into()]).collect();
    let requests: Vec<Value> = paths.iter().map(|p| json!({ "path": p })).collect();
    for (path, answer) in paths.iter().zip(h3.ask(&requests.into())) {
        is(&answer, 200, &body(path, 0));
    }
    let (carried, lost) = (lossy.carried.load(Ordering::Relaxed), lossy.lost.load(Ordering::Relaxed));
    println!("seed {seed}: {carried} packets carried, {lost} lost");
    assert!(lost * 10 > carried / 10, "{lost} of {carried}");
}

/// Frames and streams in hexadecimal: what a peer may not do, and how its connection ends.
#[test]
fn who_breaks_the_protocol_loses_its_connection_and_nobody_else_anything() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(dir.path(), &[]);
    let page = get(dev.http[0], "localhost", "/");
    let h3 = client(&dev);
    let one_way = |hex: &str, end: bool| json!({ "do": "raw", "unidirectional": [hex], "end": end });
    let request = |hex: &str| json!({ "do": "raw", "bidirectional": [hex], "expect_end": true });
    let cases = [
        ("a second control stream", one_way("0004 00", false), 0x103),
        ("a push", one_way("01", false), 0x103),
        ("entries for a table that is not there", one_way("02 3fe11f", false), 0x103),
        ("DATA where a head should be", request("00 01 61"), 0x105),
        ("a frame of HTTP/2", request("02 00"), 0x105),
        ("SETTINGS on a request's stream", request("04 00"), 0x105),
        ("a reference to a dynamic table", request("01 03 0200 80"), 0x200),
    ];
    let runs: Vec<Value> = cases.iter().map(|(_, run, _)| clean(run)).collect();
    for ((what, _, code), run) in cases.iter().zip(h3.run(&runs.into())) {
        assert_eq!(run["ended"]["code"], *code, "{what}: {run}");
    }
    // A frame that says it has a gibibyte, and sections that would grow to it: answered, and nothing is kept.
    let section = format!("01 {:08x} 0000 {}", 0x8000_0000u32 | 20_002, "ff16".repeat(10_000)).replace(' ', "");
    let runs = h3.run(&json!([
        { "do": "raw", "bidirectional": ["01c000000040000000"] },
        { "do": "raw", "bidirectional": [section] },
    ]));
    for run in runs {
        assert_eq!(run["answers"][0]["status"], 431, "{run}");
    }
    is(&h3.ask(&json!([{ "path": "/" }]))[0], 200, &page.body);
}

fn clean(run: &Value) -> Value {
    serde_json::from_str(&run.to_string().replace(' ', "")).unwrap()
}

fn memory(network: &Network) -> u64 {
    let id = network.edges()[0].process.as_ref().unwrap().child.id();
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).unwrap();
    status.lines().find_map(|l| l.strip_prefix("VmRSS:")?.trim().split(' ').next()?.parse().ok()).unwrap()
}

#[test]
fn garbage_costs_little_and_is_not_amplified() {
    let dir = tempfile::tempdir().unwrap();
    let origin = Origin::start();
    let network = edge(dir.path(), "head_timeout = \"3s\"\ndrain = \"1s\"", &origin.url());
    let h3 = client_of(&network);
    let (path, whole) = ("/20000/good", body("/20000/good", 0));
    is(&h3.ask(&json!([{ "path": path }]))[0], 200, &whole);
    let runs = h3.run(&json!([{ "do": "flood", "count": 20_000 }, { "do": "requests", "requests": [{ "path": path }] }]));
    let (sent, got) = (runs[0]["sent"].as_f64().unwrap(), runs[0]["got"].as_f64().unwrap());
    println!("garbage: {sent} bytes sent, {got} bytes came back: {:.3}", got / sent);
    assert!(got < sent, "{got} for {sent}");
    is(&runs[1]["answers"][0], 200, &whole);
    // Handshakes that nobody goes on with: from some point on a client has to show where it is, and a good one does.
    let half_open = || {
        let runs = h3.run(&json!([{ "do": "half_open", "count": 1_500 }, { "do": "requests", "requests": [{ "path": path }] }]));
        is(&runs[1]["answers"][0], 200, &whole);
        wait_for("the handshakes to be given up", || (network.edges()[0].figure("tidegate_connections") == 0.0).then_some(()));
        memory(&network)
    };
    let before = half_open();
    assert!(network.edges()[0].figure("tidegate_quic_retries_total") > 0.0);
    let after = half_open();
    println!("memory: {before} KiB after 1,500 handshakes, {after} KiB after 3,000");
    assert!(after < before + (16 << 10), "{before} -> {after} KiB");
}

#[test]
fn who_sends_half_a_head_or_nothing_is_let_go() {
    let dir = tempfile::tempdir().unwrap();
    let origin = Origin::start();
    let network = edge(dir.path(), "head_timeout = \"1s\"\nbody_timeout = \"2s\"\nidle_timeout = \"2s\"\ndrain = \"1s\"", &origin.url());
    let runs = client_of(&network).run(&json!([
        { "do": "raw", "bidirectional": ["01 40".replace(' ', "")], "within": 10 },
        { "do": "hold", "seconds": 20 },
    ]));
    assert_eq!(runs[0]["answers"][0]["error"], "reset: 0x10d", "{}", runs[0]);
    assert_eq!(runs[1]["ended"]["code"], 0x100, "{}", runs[1]);
    wait_for("nobody to be left", || (network.edges()[0].figure("tidegate_connections") == 0.0).then_some(()));
}

#[test]
fn an_edge_that_stops_answers_what_it_was_asked_and_one_that_was_killed_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let origin = Origin::start();
    let mut network = edge(dir.path(), "drain = \"20s\"", &origin.url());
    let (path, h3) = ("/8000000/slow", client_of(&network));
    origin.be_slow();
    let begin = |h3: &Aioquic, run: &Value| {
        let mut child = h3.begin(&json!([run]));
        let mut line = String::new();
        BufReader::new(child.stderr.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "begun\n");
        child
    };
    let run = json!({ "do": "hold", "seconds": 40, "request": { "path": path } });
    let asking = begin(&h3, &run);
    wait_for("the origin to be asked", || (origin.gave() > 0).then_some(()));
    network.edges()[0].signal("TERM");
    let out: Value = serde_json::from_slice(&asking.wait_with_output().unwrap().stdout).unwrap();
    is(&out[0]["answers"][0], 200, &body(path, 0));
    assert_eq!(out[0]["ended"]["code"], 0x100, "{out}");
    // Killed, and there again with the same keys: it does not know the connection any more, and can say so.
    let edge = network.node("edge-1");
    edge.process.as_mut().unwrap().ended();
    edge.start();
    network.attached();
    wait_for("the edge to serve again", || Http::connect(network.edges()[0].address()).ok());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let ended = runtime.block_on(async {
        let endpoint = quinn::Endpoint::client(loopback(0)).unwrap();
        let connecting = endpoint.connect_with(quinn_client(&network.ca), loopback(network.edges()[0].https), "s.example").unwrap();
        let connection = connecting.await.unwrap();
        network.node("edge-1").kill();
        network.node("edge-1").start();
        // Its silence would be noticed no sooner than after 30 seconds.
        tokio::time::timeout(Duration::from_secs(20), connection.closed()).await
    });
    assert!(matches!(ended, Ok(quinn::ConnectionError::Reset)), "{ended:?}");
}

#[test]
fn an_edge_that_stops_waits_until_a_slow_client_has_all() {
    let dir = tempfile::tempdir().unwrap();
    let origin = Origin::start();
    let mut network = edge(dir.path(), "drain = \"30s\"", &origin.url());
    let (path, whole) = ("/600000/kept", body("/600000/kept", 0));
    let quick = client_of(&network);
    is(&quick.ask(&json!([{ "path": path }]))[0], 200, &whole);
    // All of the answer is with QUIC long before it is with the client.
    let slow = Lossy::slow(loopback(network.edges()[0].https), 0, 1, Duration::from_millis(10));
    let mut child =
        Aioquic::of(slow.address, &network.ca, "s.example").begin(&json!([{ "do": "hold", "seconds": 60, "request": { "path": path } }]));
    let mut line = String::new();
    BufReader::new(child.stderr.as_mut().unwrap()).read_line(&mut line).unwrap();
    let before = slow.carried.load(Ordering::Relaxed);
    wait_for("the answer to be on its way", || (slow.carried.load(Ordering::Relaxed) > before + 40).then_some(()));
    network.edges()[0].signal("TERM");
    let out: Value = serde_json::from_slice(&child.wait_with_output().unwrap().stdout).unwrap();
    is(&out[0]["answers"][0], 200, &whole);
    assert_eq!(network.node("edge-1").process.as_mut().unwrap().ended(), 0);
}

#[test]
fn a_client_that_gives_up_takes_its_request_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            request_head(&mut stream);
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nCache-Control: private\r\nContent-Length: 100\r\n\r\na");
            // Until the edge has closed it.
            let _ = stream.read(&mut [0]);
            let _ = tell.send(());
        }
    });
    let network = Network::planned(dir.path(), Plan::default());
    network.site("s", "\"s.example\"", &url, "idle_timeout = \"300s\"");
    let mut child = client_of(&network).begin(&json!([{ "do": "cancel", "seconds": 60, "request": { "path": "/events" } }]));
    let mut line = String::new();
    BufReader::new(child.stderr.as_mut().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "begun\n");
    assert!(told.recv_timeout(support::PATIENCE / 2).is_ok(), "the origin goes on for nobody");
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn connections_that_have_ended_leave_nothing_behind() {
    let dir = tempfile::tempdir().unwrap();
    let origin = Origin::start();
    let network = edge(dir.path(), "drain = \"1s\"", &origin.url());
    let address = loopback(network.edges()[0].https);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let connect = |times: usize| {
        runtime.block_on(async {
            let endpoint = quinn::Endpoint::client(loopback(0)).unwrap();
            let config = quinn_client(&network.ca);
            for _ in 0..times {
                let connection = endpoint.connect_with(config.clone(), address, "s.example").unwrap().await.unwrap();
                let mut ours = Vec::new();
                for first in [&[0u8, 4, 0][..], &[2], &[3]] {
                    let mut stream = connection.open_uni().await.unwrap();
                    stream.write_all(first).await.unwrap();
                    ours.push(stream);
                }
                // The server's settings are there.
                let mut theirs = connection.accept_uni().await.unwrap();
                theirs.read_exact(&mut [0; 3]).await.unwrap();
                connection.close(0x100u32.into(), b"");
            }
            endpoint.wait_idle().await;
        });
        wait_for("all to have ended", || (network.edges()[0].figure("tidegate_connections") == 0.0).then_some(()));
        memory(&network)
    };
    let before = connect(400);
    let after = connect(1_500);
    println!("memory: {before} KiB after 400 connections, {after} KiB after 1,900");
    assert!(after < before + (12 << 10), "{before} -> {after} KiB");
}

/// What the browser shows of a page, over HTTP/3 or not at all.
fn over_http3(dir: &Path, address: SocketAddr, path: &str) -> String {
    let port = address.port();
    let force = format!("--origin-to-force-quic-on=localhost:{port}");
    chromium(dir, address, &format!("https://localhost:{port}{path}"), &["--enable-quic", &force])
}

#[test]
fn chromium_that_may_use_nothing_else_shows_the_sample_site() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("access.log");
    let dev = Dev::start(dir.path(), &["--access-log", log.to_str().unwrap()]);
    let page = over_http3(dir.path(), https(&dev), "/");
    assert!(page.contains("Your network works"), "{page}");
    let lines = wait_for("the access log", || {
        let lines: Vec<Value> = std::fs::read_to_string(&log).ok()?.lines().filter_map(|l| serde_json::from_str(l).ok()).collect();
        (lines.iter().filter(|l| l["protocol"] == "h3").count() >= 4).then_some(lines)
    });
    for path in ["/", "/style.css", "/explain.js", "/hello.txt"] {
        assert!(lines.iter().any(|l| l["target"] == path && l["protocol"] == "h3" && l["status"] == 200), "{path} over h3");
    }
}

/// A page that fetches all files that are named, compares each with its sum, and says how many were right and which were not.
const COMPARING: &str = "<!doctype html><title>comparing</title><p id=said></p><script>
(async () => {
    const wanted = Object.entries(await (await fetch('/wanted.json')).json());
    let right = 0; const wrong = []; const count = wanted.length;
    const worker = async () => {
        for (let one; (one = wanted.pop());) {
            try {
                const answer = await fetch(one[0]);
                const sum = new Uint8Array(await crypto.subtle.digest('SHA-256', await answer.arrayBuffer()));
                const hex = [...sum].map(b => b.toString(16).padStart(2, '0')).join('');
                if (answer.status === 200 && hex === one[1]) right++; else wrong.push(one[0] + ' ' + answer.status);
            } catch (e) { wrong.push(one[0] + ' ' + e); }
        }
    };
    await Promise.all(Array.from({ length: 32 }, worker));
    document.getElementById('said').textContent = `${right} of ${count} right. ${wrong.join(', ')}`;
})();
</script>";

#[test]
fn chromium_gets_a_large_documentation_site_right_to_the_byte() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("www");
    std::fs::create_dir_all(&root).unwrap();
    std::os::unix::fs::symlink(DOCUMENTATION, root.join("html")).unwrap();
    let wanted: serde_json::Map<String, Value> = documentation().iter().map(|(p, b)| (format!("/html{p}"), sum(b).into())).collect();
    let count = wanted.len();
    assert!(count > 400, "{count} files");
    std::fs::write(root.join("wanted.json"), Value::Object(wanted).to_string()).unwrap();
    std::fs::write(root.join("index.html"), COMPARING).unwrap();
    let nginx = Nginx::start(&dir.path().join("nginx"), &root, "add_header Cache-Control max-age=3600;");
    let log = dir.path().join("access.log");
    let dev = Dev::start(dir.path(), &["--origin", &nginx.url(), "--access-log", log.to_str().unwrap()]);
    let page = over_http3(dir.path(), https(&dev), "/index.html");
    assert!(page.contains(&format!("{count} of {count} right. <")), "{page}");
    let over_h3 = || {
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        text.lines().filter_map(|l| serde_json::from_str::<Value>(l).ok()).filter(|l| l["protocol"] == "h3" && l["status"] == 200).count()
    };
    wait_for("the access log", || (over_h3() >= count + 2).then_some(()));
}
