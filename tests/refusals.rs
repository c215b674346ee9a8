//! Bad input of every kind: each is tried, and what is answered says what to do.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, clippy::cast_possible_truncation)] // A test fails by panicking.

mod support;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::Duration;
use support::network::{Network, Plan};
use support::{Dev, Http, Nginx, error_of, free_port, get, get_with, loopback, text, tidegate, wait_for};

fn write(dir: &Path, name: &str, content: &str) -> String {
    let path = dir.join(name);
    std::fs::write(&path, content).unwrap();
    path.display().to_string()
}

#[test]
fn a_settings_file_is_judged_as_a_whole_before_anything_runs() {
    let dir = tempfile::tempdir().unwrap();
    let file = write(
        dir.path(),
        "edge.toml",
        "name = \"Fra_1\"\nregoin = \"eu\"\ndata = \"/d\"\nnode_key = \"/d/node.key\"\ncontrol = [\"c1:7443\"]\nhttp = [\"0.0.0.0\"]\n[limits]\nhead = \"1GiB\"\n",
    );
    let out = tidegate(&["edge", "--check", "--config", &file], &[]);
    assert_eq!(out.status.code(), Some(1));
    let shown = error_of(&out);
    for want in [
        "edge.toml:1: name: \"Fra_1\" is not a name",
        "edge.toml:2: regoin: no such key; did you mean region?",
        "region: is missing; for example: region = \"eu-central\"",
        "edge.toml:4: node_key: lies inside of data",
        "edge.toml:5: control[0]: \"c1:7443\" should look like \"https://c1.example.net:7443\"",
        "edge.toml:6: http[0]:",
        "edge.toml:8: limits.head: \"1GiB\" should be from 1KiB to 1MiB",
    ] {
        assert!(shown.contains(want), "{want}\nnot in\n{shown}");
    }
    let d = dir.path().display();
    let good = write(
        dir.path(),
        "good.toml",
        &format!(
            "name = \"fra-1\"\nregion = \"eu\"\ndata = \"{d}/data\"\nnode_key = \"{d}/k\"\ncontrol = [\"https://127.0.0.1:1\"]\nhttp = [\"127.0.0.1:0\"]\nhttps = []\nadmin = \"127.0.0.1:0\"\n"
        ),
    );
    let out = tidegate(&["edge", "--check", "--config", &good], &[]);
    assert!(out.status.success() && text(&out.stdout).contains("good.toml: good"), "{}", error_of(&out));
    let out = tidegate(&["edge", "--config", &good], &[]);
    assert!(error_of(&out).contains("not enrolled yet") && error_of(&out).contains("join_token_file"), "{}", error_of(&out));
    let out = tidegate(&["edge", "--config", "/nonexistent.toml"], &[]);
    assert!(error_of(&out).contains("/nonexistent.toml: No such file"), "{}", error_of(&out));
    assert_eq!(tidegate(&["egde"], &[]).status.code(), Some(2));
}

#[test]
fn a_taken_port_is_named() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let out = tidegate(&["dev", "--http", &address, "--https", "127.0.0.1:0", "--api", "127.0.0.1:0", "--admin", "127.0.0.1:0"], &[]);
    assert_eq!(out.status.code(), Some(1));
    assert!(
        error_of(&out).contains(&format!("cannot listen on {address}")) && error_of(&out).contains("another program listens there"),
        "{}",
        error_of(&out)
    );
}

#[test]
fn requests_that_could_be_read_in_two_ways_are_refused_and_the_connection_closed() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(dir.path(), &["--shields", "0"]);
    for (request, status) in [
        ("GET / HTTP/1.1\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        ("GET / HTTP/1.1\nHost: a\n\n", 400),
        ("GET / HTTP/1.1\r\nHost: a\r\nX: y\n\r\n", 400),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n", 400),
        ("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nabcd", 400),
        ("GET / HTTP/1.1\r\nHost: a\r\nX : y\r\n\r\n", 400),
        ("GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", 501),
        ("GET / HTTP/3.0\r\nHost: a\r\n\r\n", 505),
        ("CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n", 405),
        ("\x16\x03\x01\x02\x00\x01\x00\x01\u{fc}", 400),
    ] {
        let mut http = Http::connect(dev.http[0]).unwrap();
        http.send(request.as_bytes()).unwrap();
        let answer = http.read("GET").unwrap();
        assert_eq!(answer.status, status, "{request:?}: {}", answer.text());
        if status != 405 {
            assert_eq!(answer.header("connection"), Some("close"), "{request:?}");
            assert!(http.rest().is_empty());
        }
    }
    // What came before a bad request on the same connection is answered first, and rightly.
    let mut http = Http::connect(dev.http[0]).unwrap();
    http.send(b"GET /hello.txt HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n").unwrap();
    assert_eq!(http.read("GET").unwrap().text(), "Hello from the origin.\n");
    assert_eq!(http.read("GET").unwrap().status, 400);
    let long = "x".repeat(9000);
    assert_eq!(Http::connect(dev.http[0]).unwrap().ask("GET", "a", &format!("/{long}"), &[]).unwrap().status, 414);
    let many: Vec<(String, String)> = (0..101).map(|n| (format!("x-{n}"), "y".into())).collect();
    let many: Vec<_> = many.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
    assert_eq!(get_with(dev.http[0], "a", "/", &many).status, 431);
    assert_eq!(get(dev.admin, "a", "/healthz").status, 200);
}

#[test]
fn garbage_on_every_port_harms_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(dir.path(), &[]);
    let port = |url: &str| loopback(url.rsplit(':').next().unwrap().trim_end_matches('/').parse().unwrap());
    let nodes: serde_json::Value = serde_json::from_slice(&dev.tidegate(&["node", "list", "--json"]).stdout).unwrap();
    let listeners = nodes.as_array().unwrap().iter().filter_map(|n| n["address"].as_str()?.parse::<SocketAddr>().ok());
    let mut ports: Vec<SocketAddr> = vec![dev.http[0], port(&dev.https[0]), port(&dev.api[0]), dev.admin];
    ports.extend(listeners);
    assert_eq!(ports.len(), 6);
    let mut seed = 7u64;
    for address in &ports {
        for size in [1usize, 100, 5000] {
            let bytes: Vec<u8> = (0..size)
                .map(|_| {
                    seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    (seed >> 33) as u8
                })
                .collect();
            let mut tcp = TcpStream::connect(address).unwrap();
            tcp.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
            let _ = tcp.write_all(&bytes);
            let _ = tcp.read(&mut [0; 64]);
        }
    }
    assert_eq!(get(dev.http[0], "a", "/hello.txt").status, 200);
    assert_eq!(dev.tidegate(&["purge", "all"]).status.code(), Some(0));
}

#[test]
fn the_api_refuses_clearly() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(dir.path(), &["--shields", "0"]);
    let wrong = format!("tgt_000000000000_{}", "0".repeat(64));
    let out = tidegate(&["purge", "all"], &[("TIDEGATE_API", &dev.api[0]), ("TIDEGATE_TOKEN", &wrong)]);
    assert!(out.status.code() == Some(1) && error_of(&out).contains("the token is unknown or revoked"), "{}", error_of(&out));
    let out = tidegate(&["purge", "all"], &[("TIDEGATE_API", &dev.api[0])]);
    assert!(out.status.code() == Some(2) && error_of(&out).contains("TIDEGATE_TOKEN"), "{}", error_of(&out));
    let out = tidegate(&["status"], &[("TIDEGATE_API", "http://198.51.100.1:9080"), ("TIDEGATE_TOKEN", &wrong)]);
    assert!(error_of(&out).contains("in clear"), "{}", error_of(&out));

    // A token for purges of one site can do nothing else.
    let made = dev.tidegate(&["token", "create", "--role", "purge", "--site", "dev"]);
    let token = text(&made.stdout).trim().to_owned();
    let with = |arguments: &[&str]| tidegate(arguments, &[("TIDEGATE_API", &dev.api[0]), ("TIDEGATE_TOKEN", &token)]);
    assert_eq!(with(&["purge", "site", "dev"]).status.code(), Some(0));
    for refused in [&["purge", "all"][..], &["site", "remove", "dev"], &["token", "list"], &["node", "list"]] {
        let out = with(refused);
        assert!(out.status.code() == Some(1) && error_of(&out).contains("does not allow"), "{refused:?}: {}", error_of(&out));
    }
    let out = dev.tidegate(&["purge", "tag", "a b"]);
    assert!(out.status.code() == Some(2) && error_of(&out).contains("is not a tag"), "{}", error_of(&out));
    assert_eq!(dev.tidegate(&["site", "show", "nosuch"]).status.code(), Some(3));
    let site = write(dir.path(), "bad.toml", "name = \"x\"\nhosts = [\"x.example\"]\n[origin]\nservers = [{ url = \"ftp://x\" }]\n");
    let out = dev.tidegate(&["site", "apply", &site]);
    assert!(error_of(&out).contains("bad.toml:4: origin.servers[0].url"), "{}", error_of(&out));
    let site =
        write(dir.path(), "x.toml", "name = \"x\"\nhosts = [\"x.example\"]\n[origin]\nservers = [{ url = \"http://127.0.0.1:1\" }]\n");
    assert!(dev.tidegate(&["site", "apply", "--vouch", "--expect", "0", &site]).status.success());
    let out = dev.tidegate(&["site", "apply", "--expect", "1", &site]);
    assert!(error_of(&out).contains("not at 1"), "{}", error_of(&out));
    // That site may not reach the operator's own network.
    let refused = wait_for("the edge to know the site", || {
        let r = get_with(dev.http[0], "x.example", "/", &[]);
        (r.status != 200).then_some(r)
    });
    assert!(refused.status == 308 || refused.text().contains("private"), "{refused:?}");
    let mut http = Http::connect(loopback(dev.api[0].rsplit(':').next().unwrap().parse().unwrap())).unwrap();
    let problem = http.ask("GET", "localhost", "/v1/nodes", &[]).unwrap();
    assert_eq!((problem.status, problem.header("content-type")), (401, Some("application/problem+json")));
}

/// An origin that behaves as its path says, and never well.
fn bad_origin() -> (String, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || {
                let head = support::request_head(&mut stream);
                let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
                let _ = match path.as_str() {
                    "/cut" | "/long" => {
                        stream.write_all(b"HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nContent-Length: 1000\r\n\r\nonly this")
                    }
                    "/chunk" => stream
                        .write_all(b"HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhalf \r\n"),
                    "/more" => stream.write_all(b"HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nContent-Length: 4\r\n\r\nfour and more"),
                    "/garbage" => stream.write_all(b"\x00\x01\x02 this is not HTTP\r\n\r\n"),
                    "/slow" => {
                        std::thread::sleep(Duration::from_secs(5));
                        Ok(())
                    }
                    _ => stream.write_all(b"HTTP/1.1 200 OK\r\nCache-Control: max-age=1, stale-if-error=60\r\nContent-Length: 2\r\n\r\nok"),
                };
            });
        }
    });
    (format!("http://127.0.0.1:{port}"), port)
}

#[test]
fn an_origin_that_fails_is_never_taken_for_a_whole_answer() {
    let dir = tempfile::tempdir().unwrap();
    let (origin, _) = bad_origin();
    let down = format!("http://127.0.0.1:{}", free_port());
    for shields in ["0", "1"] {
        let dev = Dev::start(dir.path(), &["--origin", &origin, "--shields", shields]);
        for path in ["/cut", "/chunk"] {
            for _ in 0..2 {
                let got = Http::connect(dev.http[0]).unwrap().ask("GET", "a", path, &[]);
                assert!(got.as_ref().is_err() || got.as_ref().is_ok_and(|r| r.status == 502), "{path} with {shields} shields: {got:?}");
            }
        }
        assert_eq!(get(dev.http[0], "a", "/more").text(), "four", "{shields} shields");
        assert_eq!(get(dev.http[0], "a", "/garbage").status, 502, "{shields} shields");
        let site = write(
            dir.path(),
            "dev.toml",
            &format!(
                "name = \"dev\"\nhosts = [\"*\"]\n[origin]\nservers = [{{ url = \"{origin}\" }}]\nallow_private = true\nfirst_byte_timeout = \"300ms\"\nretries = 0\n[tls]\nredirect = false\ncertificate = \"internal\"\n"
            ),
        );
        assert!(dev.tidegate(&["site", "apply", &site]).status.success());
        let slow = wait_for("the new time-out", || Some(get(dev.http[0], "a", "/slow")).filter(|r| r.status == 504));
        assert!(slow.text().contains("did not begin its answer in time"), "{}", slow.text());
    }
    let dev = Dev::start(dir.path(), &["--origin", &down]);
    let answer = get(dev.http[0], "a", "/");
    assert!(answer.status == 502 && answer.cache_status().contains("detail=refused"), "{answer:?}");
}

#[test]
fn a_stale_response_stands_in_for_an_origin_that_went() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("www");
    std::fs::create_dir_all(&root).unwrap();
    std::fs::write(root.join("a.txt"), "kept").unwrap();
    let mut nginx = Nginx::start(&dir.path().join("nginx"), &root, "add_header Cache-Control 'max-age=1, stale-if-error=60';");
    let dev = Dev::start(dir.path(), &["--origin", &nginx.url(), "--shields", "0"]);
    assert_eq!(get(dev.http[0], "a", "/a.txt").text(), "kept");
    nginx.stop();
    let stale = wait_for("it to be stale", || Some(get(dev.http[0], "a", "/a.txt")).filter(|r| !r.is_hit()));
    assert_eq!((stale.status, stale.text().as_str()), (200, "kept"));
    assert!(stale.cache_status().contains("stale-if-error"), "{}", stale.cache_status());
    // A hard purge is stronger: what it named is not used, even now.
    assert_eq!(dev.tidegate(&["purge", "url", "a/a.txt"]).status.code(), Some(0));
    assert!(matches!(get(dev.http[0], "a", "/a.txt").status, 502 | 503));
}

/// A small file system of its own, unmounted at the end.
struct SmallDisk(std::path::PathBuf);

impl SmallDisk {
    fn mount(at: &Path) -> Self {
        std::fs::create_dir_all(at).unwrap();
        let done = Command::new("mount").args(["-t", "tmpfs", "-o", "size=12m", "tmpfs"]).arg(at).status().unwrap();
        assert!(done.success(), "mounting needs root");
        Self(at.to_owned())
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

#[test]
#[ignore = "mounts a file system: tests/long runs it"]
fn a_full_disk_ends_a_control_node_with_a_clear_word_and_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("control-1");
    let _disk = SmallDisk::mount(&data);
    let mut network = Network::planned(dir.path(), Plan { edges: 0, ..Plan::default() });
    network.site("s", "\"s.example\"", "http://127.0.0.1:1", "");
    std::fs::write(data.join("ballast"), vec![0; 4 << 20]).unwrap();
    let urls: Vec<String> = (0..1000).map(|n| format!("s.example/{}/{n}", "x".repeat(1000))).collect();
    let purge: Vec<&str> = ["purge", "url", "--no-wait"].into_iter().chain(urls.iter().map(String::as_str)).collect();
    let mut answered = 0;
    let refused = wait_for("the disk to be full", || {
        let out = network.tidegate(&purge);
        let told = matches!(out.status.code(), Some(0 | 75));
        answered += usize::from(told);
        (!told).then_some(out)
    });
    assert!(answered > 0 && error_of(&refused).contains("unknown"), "{answered}: {}", error_of(&refused));
    let node = network.node("control-1");
    assert_eq!(node.process.as_mut().unwrap().ended(), 1);
    assert!(node.logged().contains("No space left on device") && node.logged().contains("free space"), "{}", node.logged());
    std::fs::remove_file(data.join("ballast")).unwrap();
    network.node("control-1").start();
    wait_for("it to serve again", || network.tidegate(&["status"]).status.success().then_some(()));
    assert_eq!(network.json(&["site", "show", "s"])["name"], "s");
    network.purge(&["site", "s"]);
}
