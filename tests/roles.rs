//! The roles as an operator runs them: signals, readiness, drain, load balancers in front, the API over TLS.

#![allow(clippy::unwrap_used, clippy::disallowed_methods)] // A test fails by panicking.

mod support;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixDatagram;
use std::sync::mpsc;
use std::time::Duration;
use support::network::{Network, Plan};
use support::{Http, Nginx, free_port, get, text, tidegate, wait_for};

/// An origin that answers each request with its path once it is told to go on.
fn held_origin() -> (String, mpsc::Receiver<String>, mpsc::Sender<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let (asked, was_asked) = mpsc::channel();
    let (go, may_go) = mpsc::channel::<()>();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let head = support::request_head(&mut stream);
            let path = head.split(' ').nth(1).unwrap_or_default().to_owned();
            let half = format!("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", path.len());
            let _ = stream.write_all(half.as_bytes());
            let _ = asked.send(path.clone());
            let _ = may_go.recv();
            let _ = stream.write_all(path.as_bytes());
        }
    });
    (url, was_asked, go)
}

#[test]
fn a_drained_edge_finishes_what_it_began_and_tells_systemd() {
    let dir = tempfile::tempdir().unwrap();
    let mut network = Network::planned(dir.path(), Plan { limits: "drain = \"20s\"", ..Plan::default() });
    let (origin, asked, go) = held_origin();
    network.site("slow", "\"slow.example\"", &origin, "");
    let socket = dir.path().join("notify");
    let systemd = UnixDatagram::bind(&socket).unwrap();
    systemd.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
    let said = || {
        let mut buffer = [0; 64];
        let n = systemd.recv(&mut buffer).unwrap();
        text(&buffer[..n])
    };
    let edge = network.node("edge-1");
    edge.signal("TERM");
    assert_eq!(edge.process.as_mut().unwrap().ended(), 0);
    edge.start_with(&[("NOTIFY_SOCKET", socket.to_str().unwrap())]);
    assert_eq!(said(), "READY=1");
    let address = edge.address();
    // A kept connection without a request, and one in the middle of its answer.
    let mut idle = Http::connect(address).unwrap();
    assert_eq!(idle.ask("GET", "nobody.example", "/", &[]).unwrap().status, 421);
    let busy = std::thread::spawn(move || Http::connect(address).unwrap().ask("GET", "slow.example", "/in-flight", &[]));
    assert_eq!(asked.recv_timeout(Duration::from_secs(30)).unwrap(), "/in-flight");
    edge.signal("TERM");
    assert_eq!(said(), "STOPPING=1");
    assert!(idle.rest().is_empty());
    wait_for("its listener to be closed", || TcpStream::connect(address).is_err().then_some(()));
    go.send(()).unwrap();
    assert_eq!(busy.join().unwrap().unwrap().text(), "/in-flight");
    assert_eq!(edge.process.as_mut().unwrap().ended(), 0);
}

#[test]
fn a_drain_ends_within_its_bound_whatever_a_client_does() {
    let dir = tempfile::tempdir().unwrap();
    let mut network = Network::planned(dir.path(), Plan { limits: "drain = \"500ms\"", ..Plan::default() });
    let (origin, asked, _go) = held_origin();
    // Nothing else would end this request before the test's patience does.
    network.site("slow", "\"slow.example\"", &origin, "idle_timeout = \"1h\"");
    let edge = network.node("edge-1");
    let address = edge.address();
    let cut = std::thread::spawn(move || Http::connect(address).unwrap().ask("GET", "slow.example", "/held", &[]));
    asked.recv_timeout(Duration::from_secs(30)).unwrap();
    edge.signal("TERM");
    assert_eq!(edge.process.as_mut().unwrap().ended(), 0);
    assert!(cut.join().unwrap().is_err(), "an answer that was cut off is seen to be");
}

#[test]
fn sighup_reads_the_limits_again_and_refuses_a_wrong_file() {
    let dir = tempfile::tempdir().unwrap();
    let mut network = Network::planned(dir.path(), Plan { shields: 1, ..Plan::default() });
    let edge = network.node("edge-1");
    let long = format!("/{}", "x".repeat(2000));
    assert_eq!(get(edge.address(), "nobody.example", &long).status, 421);
    let file = std::fs::read_to_string(&edge.config).unwrap();
    std::fs::write(&edge.config, file.replace("[limits]", "[limits]\nuri = \"1KiB\"")).unwrap();
    edge.signal("HUP");
    let refused = wait_for("the new limit", || Some(get(edge.address(), "nobody.example", &long)).filter(|r| r.status != 421));
    assert_eq!(refused.status, 414);
    std::fs::write(&edge.config, file.replace("[limits]", "[limits]\nuri = \"1 furlong\"")).unwrap();
    edge.signal("HUP");
    wait_for("the mistake to be said", || edge.logged().contains("limits.uri").then_some(()));
    assert_eq!(get(edge.address(), "nobody.example", &long).status, 414, "what was in force stays in force");
    for name in ["shield-1", "control-1"] {
        let node = network.node(name);
        node.signal("HUP");
        wait_for("it to have looked", || node.logged().contains("in force after a restart").then_some(()));
        assert!(node.process.as_mut().unwrap().child.try_wait().unwrap().is_none(), "{name} goes on");
    }
}

fn proxy_header(client: [u8; 4], port: u16) -> Vec<u8> {
    let mut header = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\x00\x0c".to_vec();
    header.extend(client);
    header.extend([127, 0, 0, 1]);
    header.extend(port.to_be_bytes());
    header.extend(80u16.to_be_bytes());
    header
}

#[test]
fn the_proxy_protocol_names_the_client_and_is_required_where_it_is_believed() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("access.log");
    let more = format!("proxy_protocol_from = [\"127.0.0.0/8\"]\naccess_log = \"{}\"", log.display());
    let network = Network::planned(dir.path(), Plan { edge_more: &more, ..Plan::default() });
    let root = dir.path().join("www");
    std::fs::create_dir_all(&root).unwrap();
    std::fs::write(root.join("a.txt"), "behind a balancer").unwrap();
    let nginx = support::Nginx::start(&dir.path().join("nginx"), &root, "add_header Cache-Control max-age=60;");
    network.site("a", "\"a.example\"", &nginx.url(), "");
    let edge = network.edges()[0];
    let mut http = Http::connect(edge.address()).unwrap();
    http.send(&proxy_header([203, 0, 113, 9], 4711)).unwrap();
    let answer = http.ask("GET", "a.example", "/a.txt", &[]).unwrap();
    assert_eq!((answer.status, answer.text().as_str()), (200, "behind a balancer"));
    wait_for("the access log", || {
        let lines = std::fs::read_to_string(&log).ok()?;
        lines.contains("\"203.0.113.9\"").then_some(())
    });
    // Without the header nothing is answered; from elsewhere (IPv6 here) the header is not believed.
    let mut bare = Http::connect(edge.address()).unwrap();
    bare.send(b"GET /a.txt HTTP/1.1\r\nHost: a.example\r\n\r\n").unwrap();
    assert!(bare.rest().is_empty());
    assert_eq!(get(edge.address_6(), "a.example", "/a.txt").status, 200);
    let mut other = Http::connect(edge.address_6()).unwrap();
    other.send(&proxy_header([203, 0, 113, 9], 4711)).unwrap();
    assert!(text(&other.rest()).starts_with("HTTP/1.1 400"));
}

#[test]
fn the_api_over_tls_is_trusted_by_the_networks_own_ca() {
    let dir = tempfile::tempdir().unwrap();
    let port = free_port();
    let more = format!("api_https = [\"127.0.0.1:{port}\"]\napi_names = [\"localhost\"]");
    let network = Network::planned(dir.path(), Plan { edges: 0, control_more: &more, ..Plan::default() });
    let api = format!("https://localhost:{port}");
    let with = |more: &[(&str, &str)]| {
        tidegate(&["status", "--json"], &[&[("TIDEGATE_API", api.as_str()), ("TIDEGATE_TOKEN", network.token.as_str())], more].concat())
    };
    let good = with(&[("TIDEGATE_CA", network.ca.to_str().unwrap())]);
    assert!(good.status.success(), "{}", text(&good.stderr));
    let untrusted = with(&[]);
    assert!(!untrusted.status.success() && text(&untrusted.stderr).contains("TIDEGATE_CA"), "{}", text(&untrusted.stderr));
}

#[test]
fn a_drained_edge_says_so_to_whoever_sends_it_clients() {
    let dir = tempfile::tempdir().unwrap();
    let network = Network::planned(dir.path(), Plan::default());
    let ready = || get(support::loopback(network.edges()[0].admin), "localhost", "/readyz");
    assert_eq!(ready().status, 200);
    assert_eq!(network.tidegate(&["node", "drain", "edge-1"]).status.code(), Some(0));
    let drained = wait_for("it to be drained", || Some(ready()).filter(|r| r.status == 503));
    assert!(drained.text().contains("drained"), "{}", drained.text());
    assert_eq!(network.tidegate(&["node", "undrain", "edge-1"]).status.code(), Some(0));
    wait_for("it to be back", || (ready().status == 200).then_some(()));
    let refused = network.tidegate(&["node", "drain", "control-1"]);
    assert!(refused.status.code() == Some(1) && text(&refused.stderr).contains("control node"), "{}", text(&refused.stderr));
}

#[test]
fn limits_hold_over_http2_too() {
    let dir = tempfile::tempdir().unwrap();
    let network = Network::planned(
        dir.path(),
        Plan { limits: "fields = 20\nuri = \"1KiB\"\nbody = \"1KiB\"\nbody_timeout = \"1s\"", ..Plan::default() },
    );
    let root = dir.path().join("www");
    std::fs::create_dir_all(&root).unwrap();
    std::fs::write(root.join("a.txt"), "a").unwrap();
    let nginx = support::Nginx::start(&dir.path().join("nginx"), &root, "");
    network.site("s", "\"s.example\"", &nginx.url(), "");
    let port = network.edges()[0].https;
    let curl = |more: &[&str], path: &str| {
        let url = format!("https://s.example:{port}{path}");
        let mut command = std::process::Command::new("curl");
        command.args(["-sS", "--http2", "-o", "/dev/null", "-w", "%{http_version} %{http_code}", "--cacert", network.ca.to_str().unwrap()]);
        let out = command.args(["--resolve", &format!("s.example:{port}:127.0.0.1")]).args(more).arg(url).output().unwrap();
        text(&out.stdout) + &text(&out.stderr)
    };
    wait_for("the site's certificate", || (curl(&[], "/a.txt") == "2 200").then_some(()));
    let fields: Vec<String> = (0..30).flat_map(|n| ["-H".to_owned(), format!("X-{n}: 1")]).collect();
    assert_eq!(curl(&fields.iter().map(String::as_str).collect::<Vec<_>>(), "/a.txt"), "2 431");
    assert_eq!(curl(&[], &format!("/{}", "x".repeat(2000))), "2 414");
    // curl may meet the reset of a stream whose body nobody takes before the answer that came ahead of it.
    let refused = |answer: &str, status: &str| assert!(answer == status || answer.starts_with("0 000"), "{answer}");
    refused(&curl(&["--data-binary", &"x".repeat(2000)], "/a.txt"), "2 413");
    // Without a length it is cut off as it comes: this origin answers once it has the last chunk.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    network.site("s", "\"s.example\"", &format!("http://{}", listener.local_addr().unwrap()), "");
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let (mut seen, mut byte) = (Vec::new(), [0]);
            while !seen.ends_with(b"\r\n0\r\n\r\n") && stream.read(&mut byte).is_ok_and(|n| n == 1) {
                seen.push(byte[0]);
            }
            if seen.ends_with(b"\r\n0\r\n\r\n") {
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
            }
        }
    });
    let file = dir.path().join("body");
    let upload = |bytes: usize| {
        std::fs::write(&file, "x".repeat(bytes)).unwrap();
        curl(&["-H", "Content-Length:", "-T", file.to_str().unwrap()], "/a.txt")
    };
    wait_for("the new origin", || (upload(1000) == "2 200").then_some(()));
    refused(&upload(100_000), "2 413");
    // A client that sends nothing more of its body is not waited for.
    let mut stalled = std::process::Command::new("curl");
    stalled.args(["-sS", "--http2", "-o", "/dev/null", "--cacert", network.ca.to_str().unwrap(), "-T", "."]);
    stalled.args(["--resolve", &format!("s.example:{port}:127.0.0.1"), &format!("https://s.example:{port}/a.txt")]);
    let mut stalled = stalled.stdin(std::process::Stdio::piped()).stderr(std::process::Stdio::null()).spawn().unwrap();
    wait_for("the stalled upload to be ended", || stalled.try_wait().unwrap().map(|_| ()));
}

#[test]
fn a_network_that_slept_for_longer_than_its_certificates_comes_back_by_itself() {
    let dir = tempfile::tempdir().unwrap();
    let mut network = Network::planned(dir.path(), Plan { controls: 3, shields: 1, dns: 1, ..Plan::default() });
    let root = dir.path().join("www");
    std::fs::create_dir_all(&root).unwrap();
    std::fs::write(root.join("page"), "page").unwrap();
    let nginx = Nginx::start(&dir.path().join("nginx"), &root, "add_header Cache-Control max-age=60;");
    network.site("s", "\"s.example\"", &nginx.url(), "");
    let names: Vec<String> = network.nodes.iter().map(|n| n.name.clone()).collect();
    names.iter().for_each(|n| network.node(n).kill());
    // Certificates of nodes last seven days. Without any control node an edge serves all the same, past a shield that takes it no more.
    let later = 30 * 86_400;
    for name in ["edge-1", "shield-1"] {
        network.node(name).start_later(later);
    }
    wait_for("the page", || {
        let edge = network.edges()[0].address();
        let got = Http::connect_on(None, edge).ok()?.ask("GET", "s.example", "/page", &[]).ok()?;
        (got.status == 200 && got.text() == "page").then_some(())
    });
    for name in names.iter().filter(|n| !["edge-1", "shield-1"].contains(&n.as_str())) {
        network.node(name).start_later(later);
    }
    network.attached();
    for name in &names {
        wait_for(&format!("{name} to have a new certificate"), || network.node_logged(name).contains("certificate renewed").then_some(()));
    }
    // Tiers speak to one another again.
    wait_for("an answer over the shield", || {
        let edge = network.edges()[0].address();
        let got = Http::connect_on(None, edge).ok()?.ask("GET", "s.example", &format!("/page?{}", free_port()), &[]).ok()?;
        got.cache_status().contains("shield-1").then_some(())
    });
    // One that the network removed meanwhile gets none.
    assert!(network.tidegate(&["node", "remove", "edge-1", "--dead"]).status.success());
    let refused = network.node("edge-1");
    wait_for("the removed node to end", || refused.has_ended().then_some(()));
}
