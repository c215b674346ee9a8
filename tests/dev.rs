//! `tidegate dev`: what a newcomer meets first.

#![allow(clippy::unwrap_used, clippy::print_stdout)] // A test fails by panicking.

mod support;

use serde_json::Value;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use support::{Dev, Nginx, get, get_with, text};

#[test]
fn the_sample_site_is_served_purged_and_gone_without_a_trace() {
    let dir = tempfile::tempdir().unwrap();
    let mut dev = Dev::start(dir.path(), &[]);
    let first = get(dev.http[0], "localhost", "/");
    assert!(first.status == 200 && first.text().contains("Your network works"), "{first:?}");
    let second = get(dev.http[0], "localhost", "/");
    assert!(second.is_hit(), "{}", second.cache_status());
    assert!(second.header("surrogate-key").is_none(), "tags are not for clients");

    let purge = dev.tidegate(&["purge", "--json", "url", "http://localhost/"]);
    assert_eq!(purge.status.code(), Some(0), "{}", text(&purge.stderr));
    let receipt: Value = serde_json::from_slice(&purge.stdout).unwrap();
    assert_eq!((receipt["done"].as_bool(), receipt["nodes"].as_array().map(Vec::len)), (Some(true), Some(2)));
    assert!(!get(dev.http[0], "localhost", "/").is_hit());

    for path in ["/healthz", "/readyz"] {
        assert_eq!(get(dev.admin, "localhost", path).status, 200, "{path}");
    }
    let metrics = get(dev.admin, "localhost", "/metrics").text();
    assert!(metrics.contains("tidegate_site_hits_total{role=\"edge\",node=\"edge-1\",site=\"dev\"} 1"), "{metrics}");
    assert_eq!(get(dev.http[0], "localhost", "/metrics").status, 404, "never on a port of clients");

    dev.process.signal("TERM");
    assert_eq!(dev.process.ended(), 0);
    assert!(!dev.data.exists(), "the temporary folder is removed");
    assert!(dev.process.logged().contains("serving after"));
}

#[test]
fn https_speaks_http2_with_a_certificate_of_the_networks_own_ca() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(dir.path(), &["--shields", "0"]);
    for host in ["localhost", "127.0.0.1"] {
        let url = dev.https[0].replace("localhost", host);
        let out =
            Command::new("curl").args(["-sS", "--http2", "-D-", "--cacert"]).arg(&dev.ca).arg(format!("{url}/hello.txt")).output().unwrap();
        let shown = text(&out.stdout);
        assert!(shown.starts_with("HTTP/2 200") && shown.contains("Hello from the origin"), "{shown}{}", text(&out.stderr));
    }
    let out = Command::new("curl")
        .args(["-sS", "--http1.1", "-w", "%{http_version}", "-o", "/dev/null", "--cacert"])
        .arg(&dev.ca)
        .arg(&dev.https[0])
        .output()
        .unwrap();
    assert_eq!(text(&out.stdout), "1.1");
    let out = Command::new("curl").args(["-sS"]).arg(&dev.https[0]).output().unwrap();
    assert!(!out.status.success(), "nobody else trusts that CA");
}

#[test]
fn kept_data_is_used_again_and_nodes_that_are_not_started_are_removed() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("www");
    std::fs::create_dir_all(&root).unwrap();
    std::fs::write(root.join("a.txt"), "first").unwrap();
    let nginx = Nginx::start(&dir.path().join("nginx"), &root, "add_header Cache-Control max-age=3600;");
    let data = dir.path().join("data");
    let arguments = |edges: &'static str| {
        ["--origin".to_owned(), nginx.url(), "--data".into(), data.display().to_string(), "--edges".into(), edges.into()]
    };
    let start = |edges| {
        let all = arguments(edges);
        Dev::start(dir.path(), &all.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let mut dev = start("2");
    let old_token = dev.token.clone();
    assert_eq!(get(dev.http[1], "x.example", "/a.txt").text(), "first");
    dev.process.signal("INT");
    assert_eq!(dev.process.ended(), 0);
    assert!(data.exists());

    let dev = start("1");
    assert_ne!(dev.token, old_token, "a fresh token each time");
    assert_eq!(get(dev.http[0], "x.example", "/a.txt").text(), "first");
    let nodes: Value = serde_json::from_slice(&dev.tidegate(&["node", "list", "--json"]).stdout).unwrap();
    let states: Vec<_> = nodes.as_array().unwrap().iter().map(|n| (n["name"].as_str().unwrap(), n["state"].as_str().unwrap())).collect();
    assert!(states.contains(&("edge-1", "attached")) && !states.iter().any(|(n, s)| *n == "edge-2" && *s != "removed"), "{states:?}");
    let purge = dev.tidegate(&["purge", "all"]);
    assert_eq!(purge.status.code(), Some(0), "{}", text(&purge.stdout));
    let refused = support::tidegate(&["status"], &[("TIDEGATE_API", &dev.api[0]), ("TIDEGATE_TOKEN", &old_token)]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused.stderr).contains("unknown or revoked"), "{}", text(&refused.stderr));
}

#[test]
fn requests_stream_through_and_other_protocols_are_tunnelled() {
    use std::io::{Read, Write};
    let dir = tempfile::tempdir().unwrap();
    // An origin that grants any upgrade and then echoes in capitals; otherwise it answers with what it was sent.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let origin = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || {
                let mut stream = stream;
                let head = support::request_head(&mut stream);
                let head = head.to_lowercase();
                if head.contains("upgrade: echo") {
                    let _ = stream.write_all(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: echo\r\n\r\n");
                    let mut buffer = [0; 64];
                    while let Ok(n @ 1..) = stream.read(&mut buffer) {
                        let _ = stream.write_all(buffer[..n].to_ascii_uppercase().as_slice());
                    }
                } else {
                    let length = head
                        .split("content-length: ")
                        .nth(1)
                        .and_then(|r| r.lines().next())
                        .and_then(|n| n.trim().parse().ok())
                        .unwrap_or(0);
                    let mut body = vec![0; length];
                    let _ = stream.read_exact(&mut body);
                    let _ =
                        stream.write_all(format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n").as_bytes());
                    let _ = stream.write_all(&body);
                }
            });
        }
    });
    let dev = Dev::start(dir.path(), &["--origin", &origin]);
    let mut http = support::Http::connect(dev.http[0]).unwrap();
    let body = "x".repeat(300_000);
    http.send(format!("POST /p HTTP/1.1\r\nHost: h\r\nContent-Length: {}\r\n\r\n{body}", body.len()).as_bytes()).unwrap();
    assert_eq!(http.read("POST").unwrap().text(), body);

    let mut http = support::Http::connect(dev.http[0]).unwrap();
    let granted = http.ask("GET", "h", "/ws", &[("Connection", "Upgrade"), ("Upgrade", "echo")]).unwrap();
    assert_eq!((granted.status, granted.header("upgrade")), (101, Some("echo")), "{granted:?}");
    http.send(b"hello\n").unwrap();
    let mut stream = http;
    let mut got = [0; 6];
    stream.read_exact(&mut got);
    assert_eq!(&got, b"HELLO\n");
}

#[test]
fn a_browser_shows_the_sample_site_over_http2() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("access.log");
    let dev = Dev::start(dir.path(), &["--access-log", log.to_str().unwrap()]);
    get(dev.http[0], "localhost", "/hello.txt");
    let out = Command::new("chromium")
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"])
        .args(["--disable-component-update", "--disable-sync", "--ignore-certificate-errors", "--virtual-time-budget=5000", "--dump-dom"])
        .arg(format!("--user-data-dir={}", dir.path().join("chromium").display()))
        .arg(format!("{}/", dev.https[0]))
        .output()
        .unwrap();
    let page = text(&out.stdout);
    assert!(
        page.contains("Your network works") && page.contains("edge-1; fwd=") || page.contains("edge-1; hit"),
        "{page}\n{}",
        text(&out.stderr)
    );
    let lines = support::wait_for("the access log", || {
        let lines: Vec<Value> = std::fs::read_to_string(&log).ok()?.lines().filter_map(|l| serde_json::from_str(l).ok()).collect();
        (lines.iter().filter(|l| l["protocol"] == "h2").count() >= 4).then_some(lines)
    });
    for path in ["/", "/style.css", "/explain.js", "/hello.txt"] {
        assert!(lines.iter().any(|l| l["target"] == path && l["protocol"] == "h2" && l["status"] == 200), "{path} over h2");
    }
}

#[test]
fn the_access_log_goes_to_stdout_a_line_a_request() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(dir.path(), &["--access-log", "-"]);
    get(dev.http[0], "h", "/hello.txt");
    get(dev.http[0], "h", "/nosuch?q=1");
    let lines = support::wait_for("the lines", || {
        let out = std::fs::read_to_string(dir.path().join("dev.json")).ok()?;
        let all = out.lines().filter_map(|l| serde_json::from_str::<Value>(l).ok());
        let lines: Vec<Value> = all.filter(|l| l["host"] == "h").collect();
        (lines.len() == 2).then_some(lines)
    });
    let said = |line: &Value| (line["target"].as_str().unwrap().to_owned(), line["status"].as_u64().unwrap(), line["site"].clone());
    assert_eq!(said(&lines[0]), ("/hello.txt".to_owned(), 200, "dev".into()));
    assert_eq!(said(&lines[1]), ("/nosuch?q=1".to_owned(), 404, "dev".into()));
}

/// An origin whose bodies are shorter than it says; it goes after `/torn`, and stays after the others.
fn short_origin() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || {
                let head = support::request_head(&mut stream);
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nCache-Control: no-store\r\nContent-Length: 10\r\n\r\n12345");
                if !head.contains("/torn") {
                    support::request_head(&mut stream);
                }
            });
        }
    });
    url
}

#[test]
fn the_access_log_and_explain_say_why_a_body_broke_off() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(dir.path(), &["--access-log", "-", "--shields", "1", "--origin", &short_origin()]);
    let host = format!("localhost:{}", dev.http[0].port());
    assert!(support::Http::connect(dev.http[0]).unwrap().ask("GET", &host, "/torn", &[]).is_err(), "five of ten bytes came");
    let mut leaving = TcpStream::connect(dev.http[0]).unwrap();
    leaving.write_all(b"GET /left HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    let mut got = Vec::new();
    while !got.ends_with(b"12345") {
        let mut byte = [0];
        leaving.read_exact(&mut byte).unwrap();
        got.push(byte[0]);
    }
    drop(leaving);
    let why = support::wait_for("both lines", || {
        let out = std::fs::read_to_string(dir.path().join("dev.json")).ok()?;
        let all: Vec<Value> = out.lines().filter_map(|l| serde_json::from_str(l).ok()).collect();
        let of = |target: &str| {
            let line = all.iter().find(|l| l["target"] == target)?;
            Some((line["status"].clone(), line["bytes"].clone(), line["complete"].clone(), line["detail"].clone()))
        };
        Some((of("/torn")?, of("/left")?))
    });
    let line = |detail: &str| (200.into(), 5.into(), false.into(), detail.into());
    assert_eq!(why, (line("broken"), line("client-closed")));
    let explained = support::text(&dev.tidegate(&["explain", &format!("http://{host}/torn")]).stdout);
    assert_eq!(explained.matches("the connection ended in the middle of the answer").count(), 2, "by both tiers: {explained}");
}

#[test]
fn conditions_and_ranges_are_answered_from_the_store() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(dir.path(), &[]);
    let whole = get(dev.http[0], "h", "/hello.txt");
    let etag = whole.header("etag").unwrap().to_owned();
    let same = get_with(dev.http[0], "h", "/hello.txt", &[("If-None-Match", &etag)]);
    assert_eq!((same.status, same.body.len(), same.header("etag")), (304, 0, Some(etag.as_str())));
    let part = get_with(dev.http[0], "h", "/hello.txt", &[("Range", "bytes=6-9")]);
    assert_eq!((part.status, part.text().as_str(), part.header("content-range")), (206, "from", Some("bytes 6-9/23")));
    let beyond = get_with(dev.http[0], "h", "/hello.txt", &[("Range", "bytes=100-")]);
    assert_eq!((beyond.status, beyond.header("content-range")), (416, Some("bytes */23")));
    let head = support::Http::connect(dev.http[0]).unwrap().ask("HEAD", "h", "/hello.txt", &[]).unwrap();
    assert!(head.is_hit() && head.header("content-length") == Some("23"), "{head:?}");
}
