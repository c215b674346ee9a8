//! Origins of every kind: several servers, weights, backups and health; TLS, HTTP/2 and names.

#![allow(clippy::unwrap_used, clippy::disallowed_methods)] // A test fails by panicking.

mod support;

use std::collections::BTreeMap;
use std::io::Write;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use support::network::{Network, Plan};
use support::{Http, Nginx, Process, error_of, free_port, get, wait_for};

/// An origin that says who it is, and whether it is well: not while a file `down` lies in its root.
fn origin(dir: &Path, name: &str) -> Nginx {
    let root = dir.join(name);
    std::fs::create_dir_all(&root).unwrap();
    std::fs::write(root.join("n"), name).unwrap();
    std::fs::write(root.join("health"), "well").unwrap();
    let well = "location = /health { if (-f $document_root/down) { return 503; } }";
    Nginx::start(&dir.join(format!("{name}.nginx")), &root, &format!("add_header Cache-Control no-store; {well}"))
}

fn apply(network: &Network, origin: &str) {
    let file = network.dir.join("o.site.toml");
    let text = format!("name = \"o\"\nhosts = [\"o.example\"]\n[origin]\n{origin}\n[tls]\ncertificate = \"internal\"\nredirect = false\n");
    std::fs::write(&file, text).unwrap();
    let out = network.tidegate(&["site", "apply", file.to_str().unwrap()]);
    assert!(out.status.success(), "{}", error_of(&out));
}

/// Who answered, how often.
fn answered(edge: SocketAddr, requests: usize) -> BTreeMap<String, usize> {
    let mut out = BTreeMap::new();
    for _ in 0..requests {
        let answer = get(edge, "o.example", "/n");
        assert_eq!(answer.status, 200, "{}", answer.text());
        *out.entry(answer.text()).or_default() += 1;
    }
    out
}

fn counts(of: &[(&str, usize)]) -> BTreeMap<String, usize> {
    of.iter().map(|(n, c)| ((*n).to_owned(), *c)).collect()
}

#[test]
fn servers_share_by_weight_and_stand_in_for_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let network = Network::planned(dir.path(), Plan::default());
    let edge = network.edges()[0].address();
    let (mut a, b, c) = (origin(dir.path(), "a"), origin(dir.path(), "b"), origin(dir.path(), "c"));
    let servers = format!(
        "servers = [{{ url = \"{}\", weight = 3 }}, {{ url = \"{}\" }}, {{ url = \"{}\", backup = true }}]\nallow_private = true",
        a.url(),
        b.url(),
        c.url()
    );
    apply(&network, &servers);
    wait_for("the site", || (get(edge, "o.example", "/n").status == 200).then_some(()));
    assert_eq!(answered(edge, 40), counts(&[("a", 30), ("b", 10)]));

    // Probes take out who is not well, and bring them back; the backup serves when nobody else does.
    apply(&network, &format!("{servers}\nhealth = {{ path = \"/health\", interval = \"100ms\", down_after = 2, up_after = 2 }}"));
    std::fs::write(dir.path().join("a/down"), "").unwrap();
    wait_for("a to be left alone", || (answered(edge, 8) == counts(&[("b", 8)])).then_some(()));
    std::fs::write(dir.path().join("b/down"), "").unwrap();
    wait_for("the backup to serve", || (answered(edge, 8) == counts(&[("c", 8)])).then_some(()));
    wait_for("it to be reported", || {
        let nodes = network.json(&["node", "list"]);
        let edge = nodes.as_array()?.iter().find(|n| n["name"] == "edge-1")?.clone();
        (edge["origins_down"].as_array()?.len() == 2).then_some(())
    });
    std::fs::remove_file(dir.path().join("a/down")).unwrap();
    std::fs::remove_file(dir.path().join("b/down")).unwrap();
    wait_for("both to be back", || (answered(edge, 8) == counts(&[("a", 6), ("b", 2)])).then_some(()));

    // One answer with a status in `ejection` takes its server out.
    apply(&network, &format!("{servers}\nejection = {{ statuses = [503], after = 1, time = \"1h\" }}"));
    std::fs::write(dir.path().join("a/down"), "").unwrap();
    wait_for("a's one failure", || (get(edge, "o.example", "/health").status == 503).then_some(()));
    assert_eq!(answered(edge, 8), counts(&[("b", 8)]));
    std::fs::remove_file(dir.path().join("a/down")).unwrap();

    // One that dies between two probes costs no request.
    apply(&network, &servers);
    a.stop();
    let now = answered(edge, 20);
    assert!(!now.contains_key("a") && now.values().sum::<usize>() == 20, "{now:?}");
}

#[test]
fn origins_over_tls_and_http2_by_names_that_move() {
    let dir = tempfile::tempdir().unwrap();
    let (dns, port) = (free_port(), free_port());
    let hosts = dir.path().join("hosts");
    let resolve_to = |address: &str| std::fs::write(&hosts, format!("{address} origin.test\n")).unwrap();
    resolve_to("127.0.0.1");
    let mut command = Command::new("dnsmasq");
    command.args(["--keep-in-foreground", "--no-resolv", "--no-hosts", "--local-ttl=1", "--user=root", "--listen-address=127.0.0.1"]);
    command.args(["--bind-interfaces", "--local=/test/", &format!("--port={dns}"), &format!("--addn-hosts={}", hosts.display())]);
    let dnsmasq = Process::start(command.arg("--pid-file="), &dir.path().join("dnsmasq.log"));

    // Each signed itself; the first says that it is an authority, as those of `openssl req -x509` do.
    let certificate = |name: &str, is_ca| {
        let mut params = rcgen::CertificateParams::new(["origin.test".to_owned()]).unwrap();
        params.is_ca = if is_ca { rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained) } else { rcgen::IsCa::NoCa };
        let key = rcgen::KeyPair::generate().unwrap();
        let made = params.self_signed(&key).unwrap();
        let (certificate, file) = (dir.path().join(format!("{name}.pem")), dir.path().join(format!("{name}.key")));
        std::fs::write(&certificate, made.pem()).unwrap();
        std::fs::write(&file, key.serialize_pem()).unwrap();
        (made.pem(), format!("ssl_certificate {}; ssl_certificate_key {};", certificate.display(), file.display()))
    };
    let (authority, of_first) = certificate("first", true);
    let (plain, of_second) = certificate("second", false);
    let start = |address: &str, name: &str, tls: &str| {
        let root = dir.path().join(name);
        std::fs::create_dir_all(&root).unwrap();
        std::fs::write(root.join("n"), name).unwrap();
        let extra = format!("{tls} add_header X-Protocol $server_protocol; add_header Cache-Control no-store;");
        Nginx::start_at(&format!("{address}:{port} ssl http2"), &dir.path().join(format!("{name}.nginx")), &root, &extra)
    };
    let mut first = start("127.0.0.1", "first", &of_first);
    let _second = start("127.0.0.2", "second", &of_second);

    let more = format!("name_servers = [\"127.0.0.1:{dns}\"]");
    let network = Network::planned(dir.path(), Plan { shields: 1, shield_more: &more, edge_more: &more, ..Plan::default() });
    let edge = network.edges()[0].address();
    let servers = format!("servers = [{{ url = \"https://origin.test:{port}\" }}]\nallow_private = true");
    apply(&network, &servers);
    let refused = wait_for("the site", || Some(get(edge, "o.example", "/n")).filter(|r| r.status != 421));
    assert!(refused.status == 502 && refused.cache_status().contains("detail=tls-unknown-authority"), "{refused:?}");
    apply(&network, &format!("{servers}\ntls = {{ verify = false }}"));
    wait_for("an unverified answer", || (get(edge, "o.example", "/n").status == 200).then_some(()));
    apply(&network, &format!("{servers}\ntls = {{ ca = '''{authority}{plain}''' }}"));
    let good = wait_for("a verified answer", || Some(get(edge, "o.example", "/n")).filter(|r| r.status == 200));
    assert_eq!((good.text().as_str(), good.header("x-protocol")), ("first", Some("HTTP/2.0")));

    let in_clear = origin(dir.path(), "clear");
    apply(&network, &servers.replace(&format!("origin.test:{port}"), in_clear.url().trim_start_matches("http://")));
    let refused = wait_for("the origin in clear", || Some(get(edge, "o.example", "/n")).filter(|r| r.status != 200));
    assert!(refused.status == 502 && refused.cache_status().contains("detail=not-tls"), "{refused:?}");
    let known = format!("{servers}\ntls = {{ ca = '''{authority}{plain}''' }}");
    apply(&network, &known);
    wait_for("a verified answer", || (get(edge, "o.example", "/n").status == 200).then_some(()));

    resolve_to("127.0.0.2");
    dnsmasq.signal("HUP");
    first.stop();
    let moved = wait_for("the name's new address", || Some(get(edge, "o.example", "/n")).filter(|r| r.status == 200));
    assert_eq!(moved.text(), "second");
    std::fs::write(&hosts, "").unwrap();
    dnsmasq.signal("HUP");
    apply(&network, &servers.replace("origin.test", "nowhere.test"));
    let unknown = wait_for("a name that is none", || Some(get(edge, "o.example", "/n")).filter(|r| r.status != 200));
    assert!(unknown.status == 502 && unknown.cache_status().contains("detail=resolve"), "{unknown:?}");
}

/// An origin that answers each head, without reading a body, with this status and what follows it; `None`: it closes the connection.
fn raw_origin(answer: impl Fn(&str) -> Option<String> + Send + Sync + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let (url, answer) = (format!("http://{}", listener.local_addr().unwrap()), Arc::new(answer));
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let answer = Arc::clone(&answer);
            std::thread::spawn(move || {
                loop {
                    let head = support::request_head(&mut stream);
                    let Some(answer) = Some(&head).filter(|h| !h.is_empty()).and_then(|h| answer(h)) else { return };
                    if write!(stream, "HTTP/1.1 {answer}").is_err() {
                        return;
                    }
                }
            });
        }
    });
    url
}

/// An origin that reads no bodies takes one for the next request on its connection, which could be another client's.
#[test]
fn a_body_that_the_origin_does_not_read_is_no_request_of_the_next_client() {
    let url = raw_origin(|head| {
        let first = head.lines().next().unwrap_or_default();
        let status = if first.starts_with("POST") { "405 Method Not Allowed" } else { "200 OK" };
        let body = format!("answer to {first}");
        Some(format!("{status}\r\nCache-Control: no-store\r\nContent-Length: {}\r\n\r\n{body}", body.len()))
    });
    for shields in [0, 1] {
        let dir = tempfile::tempdir().unwrap();
        let network = Network::planned(dir.path(), Plan { shields, ..Plan::default() });
        let edge = network.edges()[0].address();
        apply(&network, &format!("servers = [{{ url = \"{url}\" }}]\nallow_private = true"));
        wait_for("the site", || (get(edge, "o.example", "/n").status == 200).then_some(()));
        for method in ["GET", "DELETE", "OPTIONS", "POST"] {
            for _ in 0..4 {
                let body = "GET /evil HTTP/1.1\r\nX: ";
                let mut attacker = Http::connect(edge).unwrap();
                let request = format!("{method} /a HTTP/1.1\r\nHost: o.example\r\nContent-Length: {}\r\n\r\n{body}", body.len());
                attacker.send(request.as_bytes()).unwrap();
                attacker.read(method).unwrap();
                assert_eq!(get(edge, "o.example", "/victim").text(), "answer to GET /victim HTTP/1.1", "after {method}");
            }
        }
    }
}

/// nginx ends each connection after so many requests with GOAWAY, while the open requests continue.
#[test]
fn an_origin_that_drains_its_connections_is_asked_over_new_ones() {
    const OF_ONE: usize = 20;
    let (dir, port) = (tempfile::tempdir().unwrap(), free_port());
    let key = rcgen::generate_simple_self_signed(["origin.test".to_owned()]).unwrap();
    let (certificate, file) = (dir.path().join("c.pem"), dir.path().join("c.key"));
    std::fs::write(&certificate, key.cert.pem()).unwrap();
    std::fs::write(&file, key.signing_key.serialize_pem()).unwrap();
    let root = dir.path().join("root");
    std::fs::create_dir_all(&root).unwrap();
    std::fs::write(root.join("n"), "page").unwrap();
    std::fs::write(root.join("large"), vec![b'x'; 30 << 20]).unwrap();
    let tls = format!("ssl_certificate {}; ssl_certificate_key {};", certificate.display(), file.display());
    let extra = format!("{tls} keepalive_requests {OF_ONE}; add_header X-Connection $connection; add_header Cache-Control no-store;");
    let _nginx = Nginx::start_at(&format!("127.0.0.1:{port} ssl http2"), &dir.path().join("nginx"), &root, &extra);
    let network = Network::planned(dir.path(), Plan { shields: 0, ..Plan::default() });
    let edge = network.edges()[0].address();
    apply(&network, &format!("servers = [{{ url = \"https://127.0.0.1:{port}\" }}]\nallow_private = true\ntls = {{ verify = false }}"));
    wait_for("the site", || (get(edge, "o.example", "/n").status == 200).then_some(()));

    let mut slow = std::net::TcpStream::connect(edge).unwrap();
    slow.write_all(b"GET /large HTTP/1.1\r\nHost: o.example\r\n\r\n").unwrap();
    std::io::Read::read_exact(&mut slow, &mut [0; 64]).unwrap();
    let (clients, each) = (4, 60);
    let ask = || {
        let mut client = Http::connect(edge).unwrap();
        let one = |_| {
            let answer = client.ask("GET", "o.example", "/n", &[]).unwrap();
            assert_eq!(answer.status, 200, "{}", answer.text());
            answer.header("x-connection").unwrap().to_owned()
        };
        (0..each).map(one).collect::<Vec<_>>()
    };
    let used: std::collections::BTreeSet<String> = std::thread::scope(|scope| {
        let asking: Vec<_> = (0..clients).map(|_| scope.spawn(ask)).collect();
        asking.into_iter().flat_map(|a| a.join().unwrap()).collect()
    });
    // Each of two workers has connections of its own, and each client may find the last ones drained.
    let most = clients * each / OF_ONE + 2 + clients;
    assert!(used.len() <= most, "{} connections", used.len());
}

#[test]
fn a_site_is_known_to_no_edge_before_its_origin_is() {
    let dir = tempfile::tempdir().unwrap();
    let network = Network::planned(dir.path(), Plan { shields: 1, ..Plan::default() });
    let origin = origin(dir.path(), "a");
    network.attached();
    let edge = network.edges()[0].address();
    std::thread::scope(|scope| {
        // A client asks for each of them from before it is there.
        let asking = scope.spawn(|| {
            let mut client = Http::connect(edge).unwrap();
            let mut ask = |n| loop {
                let answer = client.ask("GET", &format!("s{n}.example"), "/n", &[]).unwrap();
                if answer.status != 421 {
                    return (n, answer.status, answer.text());
                }
            };
            (0..40).map(&mut ask).collect::<Vec<_>>()
        });
        for n in 0..40 {
            let file = dir.path().join("s.toml");
            let site = format!("name = \"s{n}\"\nhosts = [\"s{n}.example\"]\n[tls]\ncertificate = \"internal\"\nredirect = false\n");
            let origin = format!("[origin]\nservers = [{{ url = \"{}\" }}]\nallow_private = true\n", origin.url());
            std::fs::write(&file, site + &origin).unwrap();
            let out = network.tidegate(&["site", "apply", file.to_str().unwrap()]);
            assert!(out.status.success(), "{}", error_of(&out));
        }
        let wrong: Vec<_> = asking.join().unwrap().into_iter().filter(|(_, status, _)| *status != 200).collect();
        assert!(wrong.is_empty(), "{wrong:?}");
    });
}

/// A client whose own request the origin answers gets that answer, whatever other clients ask for.
#[test]
fn what_fails_for_some_clients_fails_for_no_others() {
    // It drops the connections of some clients, a while after they asked.
    let url = raw_origin(|head| {
        std::thread::sleep(Duration::from_millis(150));
        (!head.contains("evil")).then(|| "200 OK\r\nCache-Control: max-age=60\r\nContent-Length: 2\r\n\r\nok".to_owned())
    });
    let dir = tempfile::tempdir().unwrap();
    let network = Network::planned(dir.path(), Plan { shields: 1, ..Plan::default() });
    let edge = network.edges()[0].address();
    apply(&network, &format!("servers = [{{ url = \"{url}\" }}]\nallow_private = true\nejection = {{ after = 1000 }}"));
    wait_for("the site", || (get(edge, "o.example", "/n").status == 200).then_some(()));
    for round in 0..5 {
        let path = format!("/page/{round}");
        std::thread::scope(|scope| {
            let ask = |agent: &str| Http::connect(edge).unwrap().ask("GET", "o.example", &path, &[("User-Agent", agent)]).unwrap();
            let evil: Vec<_> = (0..4).map(|n| scope.spawn(move || ask(&format!("evil{n}")))).collect();
            std::thread::sleep(Duration::from_millis(30));
            let honest: Vec<_> = (0..5).map(|n| scope.spawn(move || ask(&format!("honest{n}")))).collect();
            for answer in honest.into_iter().map(|t| t.join().unwrap()) {
                assert_eq!(answer.status, 200, "round {round}: {}", answer.text());
            }
            evil.into_iter().for_each(|t| drop(t.join().unwrap()));
        });
    }
}

/// Each 304 brings fields that no answer before had.
#[test]
fn the_fields_of_many_304s_do_not_add_up() {
    let count = AtomicU32::new(0);
    let url = raw_origin(move |head| {
        let n = count.fetch_add(1, Ordering::Relaxed);
        let fields = "ETag: \"a\"\r\nCache-Control: no-cache\r\n";
        if !head.to_ascii_lowercase().contains("if-none-match") {
            return Some(format!("200 OK\r\n{fields}Content-Length: 2\r\n\r\nok"));
        }
        let more: String = (0..200).map(|f| format!("X{n}-{f}: v\r\n")).collect();
        Some(format!("304 Not Modified\r\n{fields}{more}\r\n"))
    });
    let dir = tempfile::tempdir().unwrap();
    let dev = support::Dev::start(dir.path(), &["--origin", &url, "--shields", "1"]);
    for _ in 0..6 {
        let answer = get(dev.http[0], "localhost", "/page");
        assert!(answer.status == 200 && answer.headers.len() < 270, "{} fields", answer.headers.len());
    }
}

/// A server that ends slow uploads is well, and the site's other requests go on.
#[test]
fn an_upload_that_the_origin_grew_tired_of_ejects_nobody() {
    let url = raw_origin(|head| {
        if head.starts_with("POST") {
            std::thread::sleep(Duration::from_millis(300));
            return None;
        }
        Some("200 OK\r\nCache-Control: no-store\r\nContent-Length: 2\r\n\r\nok".to_owned())
    });
    let dir = tempfile::tempdir().unwrap();
    let network = Network::planned(dir.path(), Plan::default());
    let edge = network.edges()[0].address();
    apply(&network, &format!("servers = [{{ url = \"{url}\" }}]\nallow_private = true\nejection = {{ after = 1, time = \"1h\" }}"));
    wait_for("the site", || (get(edge, "o.example", "/n").status == 200).then_some(()));
    for _ in 0..2 {
        let mut slow = Http::connect(edge).unwrap();
        slow.send(b"POST /n HTTP/1.1\r\nHost: o.example\r\nContent-Length: 100\r\n\r\nhalf").unwrap();
        let answer = slow.read("POST").unwrap();
        assert!(answer.status == 502 && answer.cache_status().contains("detail=reset"), "{answer:?}");
        assert_eq!(get(edge, "o.example", "/n").status, 200);
    }
}

/// Each connection takes one request, and takes most of `connect_timeout` to open, so that some requests wait longer than that for theirs.
#[test]
fn who_waits_for_the_connections_of_others_says_nothing_against_the_server() {
    let dir = tempfile::tempdir().unwrap();
    let key = rcgen::generate_simple_self_signed(["origin.test".to_owned()]).unwrap();
    let (certificate, file) = (dir.path().join("c.pem"), dir.path().join("c.key"));
    std::fs::write(&certificate, key.cert.pem()).unwrap();
    std::fs::write(&file, key.signing_key.serialize_pem()).unwrap();
    let root = dir.path().join("root");
    std::fs::create_dir_all(&root).unwrap();
    std::fs::write(root.join("n"), vec![b'x'; 1200]).unwrap();
    std::fs::write(root.join("quick"), "page").unwrap();
    let tls = format!("ssl_certificate {}; ssl_certificate_key {};", certificate.display(), file.display());
    let extra = format!("{tls} http2_max_concurrent_streams 1; add_header Cache-Control no-store; location = /n {{ limit_rate 100; }}");
    let port = free_port();
    let _nginx = Nginx::start_at(&format!("127.0.0.1:{port} ssl http2"), &dir.path().join("nginx"), &root, &extra);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let slowly = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for client in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(1000));
                let Ok(server) = std::net::TcpStream::connect(("127.0.0.1", port)) else { return };
                let (mut to, mut back) = (server.try_clone().unwrap(), client.try_clone().unwrap());
                std::thread::spawn(move || {
                    let _ = std::io::copy(&mut &client, &mut to);
                    let _ = to.shutdown(std::net::Shutdown::Both);
                });
                let _ = std::io::copy(&mut &server, &mut back);
                let _ = back.shutdown(std::net::Shutdown::Both);
            });
        }
    });
    let network = Network::planned(dir.path(), Plan { shields: 0, ..Plan::default() });
    let edge = network.edges()[0].address();
    let site = "allow_private = true\ntls = { verify = false }\nconnect_timeout = \"2s\"\nejection = { after = 1, time = \"1h\" }";
    apply(&network, &format!("servers = [{{ url = \"https://127.0.0.1:{slowly}\" }}]\n{site}"));
    // Both workers know then that it speaks HTTP/2.
    wait_for("the site", || (get(edge, "o.example", "/quick").status == 200).then_some(()));
    (0..16).for_each(|_| assert_eq!(get(edge, "o.example", "/quick").status, 200));
    std::thread::scope(|scope| {
        let all: Vec<_> = (0..10).map(|n| scope.spawn(move || get(edge, "o.example", &format!("/n?{n}")))).collect();
        for answer in all.into_iter().map(|t| t.join().unwrap()) {
            assert_eq!(answer.status, 200, "{}", answer.text());
        }
    });
    assert_eq!(get(edge, "o.example", "/quick").status, 200);
}

/// An origin that answers one request on each connection, and closes it when the next one comes.
fn forgetful_origin() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || {
                support::request_head(&mut stream);
                // So long that those who ask at once get a connection each.
                std::thread::sleep(Duration::from_millis(300));
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nCache-Control: no-store\r\nContent-Length: 2\r\n\r\nok");
                support::request_head(&mut stream);
            });
        }
    });
    url
}

#[test]
fn kept_connections_that_all_died_cost_one_attempt() {
    let dir = tempfile::tempdir().unwrap();
    let dev = support::Dev::start(dir.path(), &["--origin", &forgetful_origin(), "--shields", "0"]);
    let ask = |n: usize| get(dev.http[0], "localhost", &format!("/{n}"));
    std::thread::scope(|scope| {
        let all: Vec<_> = (0..12).map(|n| scope.spawn(move || ask(n).status)).collect();
        assert!(all.into_iter().all(|t| t.join().unwrap() == 200));
    });
    for n in 12..20 {
        let answer = ask(n);
        assert_eq!(answer.status, 200, "{}", answer.text());
    }
}
