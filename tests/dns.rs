//! The zone as the world sees it: dig and a recursive resolver ask nodes of the role `dns`, while edges come, drain and die.

#![allow(clippy::unwrap_used, clippy::disallowed_methods)] // A test fails by panicking.

mod support;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use support::network::{Network, Node, Plan};
use support::{Http, Nginx, Process, error_of, free_port, text, wait_for};

/// What dig says of a question, each answer's line in order.
fn dig(port: u16, arguments: &[&str]) -> Vec<String> {
    let mut dig = Command::new("dig");
    dig.args(["@127.0.0.1", "-p", &port.to_string(), "+norecurse", "+tries=1", "+time=2", "+noall", "+answer"]);
    let out = dig.args(arguments).output().unwrap();
    let mut lines: Vec<_> = text(&out.stdout).lines().map(|l| l.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    lines.sort();
    lines
}

/// All that dig says: status, flags and sections.
fn dig_all(port: u16, arguments: &[&str]) -> String {
    let mut dig = Command::new("dig");
    dig.args(["@127.0.0.1", "-p", &port.to_string(), "+norecurse", "+tries=1", "+time=2"]);
    text(&dig.args(arguments).output().unwrap().stdout)
}

fn start(dir: &Path, plan: Plan<'_>) -> (Network, Nginx) {
    let network = Network::planned(dir, plan);
    let root = dir.join("www");
    std::fs::create_dir_all(&root).unwrap();
    std::fs::write(root.join("page"), "page").unwrap();
    let nginx = Nginx::start(&dir.join("nginx"), &root, "add_header Cache-Control max-age=3600;");
    (network, nginx)
}

fn server(network: &Network) -> &Node {
    network.nodes.iter().find(|n| n.role == "dns").unwrap()
}

/// The addresses that the site's name has, in order.
fn named(port: u16) -> Vec<String> {
    dig(port, &["shop.cdn.test", "A"]).iter().filter_map(|l| l.rsplit(' ').next().map(str::to_owned)).collect()
}

fn until(port: u16, what: &str, want: &[&str]) {
    let mut last = Vec::new();
    let came = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        wait_for(what, || {
            last = named(port);
            (last == want).then_some(())
        });
    }));
    assert!(came.is_ok(), "{what}: {last:?} instead of {want:?}");
}

#[test]
fn the_zone_answers_as_a_zone_should() {
    let dir = tempfile::tempdir().unwrap();
    let (network, nginx) = start(
        dir.path(),
        Plan { edges: 2, dns: 2, dns_more: "caa = [\"ca.example.org\"]\nttl = \"7s\"\nhttps_records = true", ..Plan::default() },
    );
    network.site("shop", "\"www.shop.example\"", &nginx.url(), "");
    let port = server(&network).port;
    until(port, "both edges", &["127.0.1.1", "127.0.1.2"]);
    assert_eq!(dig(port, &["ShOp.cdn.TEST", "AAAA"]), ["ShOp.cdn.TEST. 7 IN AAAA ::1"]);
    let https = dig(port, &["shop.cdn.test", "HTTPS"]);
    assert!(https.len() == 1 && https[0].contains("1 . alpn=\"h3,h2\" ipv4hint=127.0.1."), "{https:?}");
    assert_eq!(dig(port, &["cdn.test", "NS"]), ["cdn.test. 3600 IN NS dns-1.ns.cdn.test.", "cdn.test. 3600 IN NS dns-2.ns.cdn.test."]);
    assert_eq!(dig(port, &["dns-2.ns.cdn.test", "A"]), ["dns-2.ns.cdn.test. 3600 IN A 127.0.0.1"]);
    assert_eq!(dig(port, &["cdn.test", "CAA"]), ["cdn.test. 3600 IN CAA 0 issue \"ca.example.org\""]);
    assert_eq!(dig(port, &["shop.cdn.test", "ANY", "+notcp"]), ["shop.cdn.test. 3600 IN HINFO \"RFC8482\" \"\""]);
    assert_eq!(dig(port, &["shop.cdn.test", "A", "+tcp"]).len(), 2);
    for (question, says) in [
        (&["nowhere.cdn.test", "A"][..], "status: NXDOMAIN"),
        (&["shop.cdn.test", "MX"], "status: NOERROR"),
        (&["example.org", "A"], "status: REFUSED"),
        (&["cdn.test", "AXFR", "+tcp"], "Transfer failed"),
        (&["shop.cdn.test", "A", "+edns=1", "+noednsneg"], "status: BADVERS"),
        (&["shop.cdn.test", "A", "+nsid"], "NSID: 64 6e 73 2d 31"),
        (&["shop.cdn.test", "A", "+subnet=203.0.113.0/24"], "CLIENT-SUBNET: 203.0.113.0/24/0"),
        (&["shop.cdn.test", "CH", "TXT"], "status: REFUSED"),
        (&["shop.cdn.test", "A", "+cookie=0102030405060708"], "COOKIE: 0102030405060708"),
    ] {
        let answer = dig_all(port, question);
        assert!(answer.contains(says), "{question:?}: {answer}");
        let negative = question.contains(&"MX") || says.contains("NXDOMAIN");
        assert_eq!(
            answer.contains("AUTHORITY SECTION") && answer.contains("SOA\tdns-1.ns.cdn.test. hostmaster.cdn.test."),
            negative,
            "{answer}"
        );
        assert_eq!(answer.contains(" aa;") || answer.contains(" aa "), negative || answer.contains("ANSWER SECTION"), "{answer}");
    }
}

#[test]
fn edges_that_drain_die_or_hang_leave_the_answers_and_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let (mut network, nginx) = start(dir.path(), Plan { controls: 3, edges: 2, dns: 1, lease: "1s", ..Plan::default() });
    network.site("shop", "\"www.shop.example\"", &nginx.url(), "");
    let port = server(&network).port;
    until(port, "both edges", &["127.0.1.1", "127.0.1.2"]);

    assert!(network.tidegate(&["node", "drain", "edge-1"]).status.success());
    until(port, "the drained edge to be named no more", &["127.0.1.2"]);
    assert!(network.tidegate(&["node", "undrain", "edge-1"]).status.success());
    until(port, "it to be back", &["127.0.1.1", "127.0.1.2"]);

    network.node("edge-2").kill();
    until(port, "the dead edge to be named no more", &["127.0.1.1"]);
    network.node("edge-2").start();
    until(port, "it to be back", &["127.0.1.1", "127.0.1.2"]);
    network.node("edge-1").signal("STOP");
    until(port, "the edge that hangs to be named no more", &["127.0.1.2"]);
    network.node("edge-1").signal("CONT");
    until(port, "it to be back", &["127.0.1.1", "127.0.1.2"]);

    // Without any control node it goes on with what it knew, after a restart too.
    for n in 1..=3 {
        network.node(&format!("control-{n}")).kill();
    }
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(named(port), ["127.0.1.1", "127.0.1.2"]);
    let dns = network.node("dns-1");
    dns.kill();
    dns.start();
    until(port, "it to answer after a restart", &["127.0.1.1", "127.0.1.2"]);
}

#[test]
fn where_a_node_is_reached_is_what_its_settings_say_now() {
    let dir = tempfile::tempdir().unwrap();
    let (mut network, nginx) = start(dir.path(), Plan { controls: 3, shields: 1, edges: 2, dns: 1, ..Plan::default() });
    network.site("shop", "\"www.shop.example\"", &nginx.url(), "");
    let port = server(&network).port;
    until(port, "both edges", &["127.0.1.1", "127.0.1.2"]);
    let again = |network: &mut Network, name: &str, old: &str, new: &str| {
        let node = network.node(name);
        node.kill();
        let config = std::fs::read_to_string(&node.config).unwrap();
        assert!(config.contains(old), "{config}");
        std::fs::write(&node.config, config.replace(old, new)).unwrap();
        node.start();
    };
    again(&mut network, "edge-1", "\"127.0.1.1\"", "\"127.0.1.9\"");
    until(port, "the edge at its new address", &["127.0.1.2", "127.0.1.9"]);
    assert!(text(&network.tidegate(&["audit"]).stdout).contains("node edge-1 is reached at 127.0.1.9, ::1"));
    // It was drained by hand, and stays so.
    assert!(network.tidegate(&["node", "drain", "edge-1"]).status.success());
    again(&mut network, "edge-1", "\"127.0.1.9\"", "\"127.0.1.10\"");
    wait_for("the drained edge to be back at its next address", || {
        let nodes = network.json(&["node", "list"]);
        let edge = nodes.as_array()?.iter().find(|n| n["name"] == "edge-1")?;
        (edge["state"] == "drained" && edge["advertise"][0] == "127.0.1.10").then_some(())
    });
    assert!(network.tidegate(&["node", "undrain", "edge-1"]).status.success());
    until(port, "it to be back where it is now", &["127.0.1.10", "127.0.1.2"]);
    // Edges find a shield that has moved.
    let (old, new) = (network.node("shield-1").port, free_port());
    again(&mut network, "shield-1", &format!(":{old}\""), &format!(":{new}\""));
    let admin = SocketAddr::from(([127, 0, 0, 1], network.node("shield-1").admin));
    let mut n = 0;
    wait_for("a miss over the shield", || {
        n += 1;
        let page = format!("/page?{n}");
        let mut http = Http::connect(network.edges()[1].address()).ok()?;
        let answer = http.ask("GET", "www.shop.example", &page, &[]).ok()?;
        assert_eq!(answer.status, 200);
        let figures = Http::connect(admin).ok()?.ask("GET", "localhost", "/metrics", &[]).ok()?.text();
        figures.lines().any(|l| l.starts_with("tidegate_site_requests_total") && !l.ends_with(" 0")).then_some(())
    });
    // What it is was fixed when it enrolled.
    again(&mut network, "edge-2", "region = \"eu\"", "region = \"us\"");
    let edge = network.node("edge-2");
    wait_for("it to end", || edge.has_ended().then_some(()));
    assert!(edge.logged().contains("is that of edge edge-2 in eu, and the settings are of edge edge-2 in us"), "{}", edge.logged());
}

/// Two edges in the region eu, and one in us; a client subnet's edges once `subnet` is sent to the one in us.
fn with_one_edge_in_us(dir: &Path, more: &str, subnet: &str) -> (Network, Nginx) {
    let (mut network, nginx) = start(dir, Plan { edges: 3, dns: 1, dns_more: more, ..Plan::default() });
    network.site("shop", "\"www.shop.example\"", &nginx.url(), "");
    // It moves to us before it enrols anew.
    assert!(network.tidegate(&["node", "remove", "edge-3", "--dead"]).status.success());
    let edge = network.node("edge-3");
    edge.kill();
    let config =
        std::fs::read_to_string(&edge.config).unwrap().replace("region = \"eu\"", "region = \"us\"").replace("edge-3\"", "nyc-1\"");
    std::fs::write(&edge.config, config).unwrap();
    std::fs::remove_dir_all(&edge.data).unwrap();
    network.enrol_again("edge-3");
    network.node("edge-3").start();
    let port = server(&network).port;
    wait_for("the edge in us", || (near(port, subnet) == ["127.0.1.3"]).then_some(()));
    (network, nginx)
}

fn near(port: u16, subnet: &str) -> Vec<String> {
    let lines = dig(port, &["shop.cdn.test", "A", &format!("+subnet={subnet}")]);
    lines.iter().filter_map(|l| l.rsplit(' ').next().map(str::to_owned)).collect()
}

#[test]
fn clients_are_sent_to_the_regions_near_them() {
    let dir = tempfile::tempdir().unwrap();
    let networks = dir.path().join("networks.csv");
    std::fs::write(&networks, "203.0.113.0/24,eu\n198.51.100.0/24,us,eu\n").unwrap();
    let (network, _nginx) = with_one_edge_in_us(dir.path(), &format!("networks = \"{}\"", networks.display()), "198.51.100.0/24");
    let port = server(&network).port;
    assert_eq!(near(port, "203.0.113.7/32"), ["127.0.1.1", "127.0.1.2"]);
    assert!(dig_all(port, &["shop.cdn.test", "+subnet=198.51.100.7/32"]).contains("CLIENT-SUBNET: 198.51.100.7/32/24"));
}

/// A file of networks that a program which nobody here wrote made, of JSON: a record for each network.
fn maxmind(file: &Path, networks: &str) {
    let program = "import json,sys\nfrom netaddr import IPSet\nfrom mmdb_writer import MMDBWriter\n\
        w = MMDBWriter(6, 'GeoLite2-City', languages=['EN'], ipv4_compatible=True)\n\
        for network, record in json.loads(sys.argv[2]).items(): w.insert_network(IPSet([network]), record)\n\
        w.to_db_file(sys.argv[1])";
    let mut python = Command::new("python3");
    python.args(["-c", program, file.to_str().unwrap(), networks]);
    let out = python.env("PYTHONPATH", support::h3::PYTHON_PATH).env("PYTHONDONTWRITEBYTECODE", "1").output().unwrap();
    assert!(out.status.success(), "{}", text(&out.stderr));
}

#[test]
fn a_maxmind_file_says_where_clients_are_and_is_read_again() {
    let dir = tempfile::tempdir().unwrap();
    let networks = dir.path().join("City.mmdb");
    let (berlin, mexico) = (r#"{"location": {"latitude": 52.5, "longitude": 13.4}}"#, r#"{"country": {"iso_code": "MX"}}"#);
    maxmind(
        &networks,
        &format!(
            r#"{{"203.0.113.0/24": {berlin}, "198.51.100.0/25": {mexico}, "198.51.100.128/25": {mexico}, "2001:db8::/32": {mexico},
                "192.0.2.0/24": {{"registered_country": {{"iso_code": "SE"}}}}}}"#
        ),
    );
    let more = format!(
        "networks = \"{}\"\n[[regions]]\nname = \"eu\"\nlatitude = 50.1\nlongitude = 8.7\n[[regions]]\nname = \"us\"\nlatitude = 39\nlongitude = -77.5",
        networks.display()
    );
    let (mut network, _nginx) = with_one_edge_in_us(dir.path(), &more, "198.51.100.0/24");
    let port = server(&network).port;
    for subnet in ["203.0.113.7/32", "192.0.2.0/24"] {
        assert_eq!(near(port, subnet), ["127.0.1.1", "127.0.1.2"], "{subnet}");
    }
    assert_eq!(near(port, "2001:db8:7::/48"), ["127.0.1.3"]);
    // The halves of a network that are alike are one.
    assert!(dig_all(port, &["shop.cdn.test", "+subnet=198.51.100.7/32"]).contains("CLIENT-SUBNET: 198.51.100.7/32/24"));
    // A file that is none changes nothing; another one does.
    let good = std::fs::read(&networks).unwrap();
    std::fs::write(&networks, &good[..good.len() / 2]).unwrap();
    network.node("dns-1").signal("HUP");
    wait_for("the refusal", || network.node("dns-1").logged().contains("the one before counts on").then_some(()));
    assert_eq!(near(port, "203.0.113.7/32"), ["127.0.1.1", "127.0.1.2"]);
    maxmind(&networks, &format!(r#"{{"203.0.113.0/24": {mexico}}}"#));
    network.node("dns-1").signal("HUP");
    wait_for("the new file", || (near(port, "203.0.113.7/32") == ["127.0.1.3"]).then_some(()));
}

#[test]
fn a_recursive_resolver_follows_a_cname_into_the_zone() {
    let dir = tempfile::tempdir().unwrap();
    let (network, nginx) = start(dir.path(), Plan { edges: 1, dns: 1, ..Plan::default() });
    network.site("shop", "\"www.shop.example\"", &nginx.url(), "");
    until(server(&network).port, "the edge", &["127.0.1.1"]);
    let port = free_port();
    let config = dir.path().join("unbound.conf");
    let text = format!(
        "server:\n interface: 127.0.0.1@{port}\n port: {port}\n do-daemonize: no\n use-syslog: no\n username: \"\"\n chroot: \"\"\n directory: \"{}\"\n \
         pidfile: \"\"\n do-not-query-localhost: no\n use-caps-for-id: yes\n module-config: \"iterator\"\n local-zone: \"test.\" nodefault\n \
         local-zone: \"www.shop.example.\" redirect\n local-data: \"www.shop.example. 60 IN CNAME shop.cdn.test.\"\n\
         stub-zone:\n name: \"cdn.test.\"\n stub-addr: 127.0.0.1@{}\n",
        dir.path().display(),
        server(&network).port
    );
    std::fs::write(&config, text).unwrap();
    let mut command = Command::new("unbound");
    let unbound = Process::start(command.args(["-d", "-p", "-c", config.to_str().unwrap()]), &dir.path().join("unbound.log"));
    let resolve = |name: &str| {
        let out =
            Command::new("dig").args(["@127.0.0.1", "-p", &port.to_string(), "+short", "+tries=1", "+time=3", name, "A"]).output().unwrap();
        support::text(&out.stdout)
    };
    wait_for("the resolver", || (resolve("shop.cdn.test") == "127.0.1.1\n").then_some(()));
    assert_eq!(resolve("www.shop.example"), "shop.cdn.test.\n127.0.1.1\n", "{}", unbound.logged());
    let edge = network.edges()[0];
    let page = Command::new("curl")
        .args([
            "-sS",
            "--fail",
            "--cacert",
            network.ca.to_str().unwrap(),
            "--resolve",
            &format!("www.shop.example:{}:127.0.0.1", edge.https),
        ])
        .arg(format!("https://www.shop.example:{}/page", edge.https))
        .output()
        .unwrap();
    assert_eq!(support::text(&page.stdout), "page", "{}", error_of(&page));
}

#[test]
fn garbage_harms_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (network, nginx) = start(dir.path(), Plan { dns: 1, ..Plan::default() });
    network.site("shop", "\"www.shop.example\"", &nginx.url(), "");
    let port = server(&network).port;
    until(port, "the edge", &["127.0.1.1"]);
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut r = support::Numbers(7);
    for _ in 0..3_000 {
        let packet: Vec<u8> = (0..r.index(600)).map(|_| u8::try_from(r.below(256)).unwrap()).collect();
        socket.send_to(&packet, ("127.0.0.1", port)).unwrap();
    }
    // Over TCP: garbage, half a query, a length of nothing, and many connections that say nothing.
    for bytes in [&b"\xff\xffgarbage"[..], b"\0\x20half", b"\0\0", b"\0\x0c123456789012"] {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        stream.write_all(bytes).unwrap();
        let _ = stream.read_to_end(&mut Vec::new());
    }
    let silent: Vec<_> = (0..200).map(|_| TcpStream::connect(("127.0.0.1", port)).unwrap()).collect();
    assert_eq!(named(port), ["127.0.1.1"]);
    // They are of one network, which does not get all the places, and none for ever.
    drop(silent);
    wait_for("a place", || (dig(port, &["shop.cdn.test", "A", "+tcp"]).len() == 1).then_some(()));
}

#[test]
fn a_network_in_one_process_answers_for_its_zone_too() {
    let dir = tempfile::tempdir().unwrap();
    let dev = support::Dev::start(dir.path(), &["--edges", "2"]);
    // Both edges have it.
    assert_eq!(dig(dev.dns.port(), &["dev.cdn.test", "A"]), ["dev.cdn.test. 5 IN A 127.0.0.1"]);
    let status = text(&dev.tidegate(&["status"]).stdout);
    assert!(status.contains("zone cdn.test"), "{status}");
}

#[test]
fn its_settings_are_judged_as_a_whole() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("dns.toml");
    let head = "name = \"d1\"\nregion = \"eu\"\ncontrol = [\"https://c1.example.net:7443\"]\n";
    let check = |more: &str| {
        std::fs::write(&file, format!("{head}{more}")).unwrap();
        let out = support::tidegate(&["dns", "--check", "--config", file.to_str().unwrap()], &[]);
        (out.status.code(), error_of(&out))
    };
    let (code, said) = check("zone = \"cdn..x\"\ncaa = [\"a b\"]\nttl = \"0s\"\nnetworks = \"here.csv\"\ndisk = 1\nrate_limt = 3\n");
    assert_eq!(code, Some(1));
    for mistake in
        ["advertise: is missing", ":4: zone: ", ":5: caa[0]: ", ":6: ttl: ", ":7: networks: ", ":8: disk: ", "did you mean rate_limit?"]
    {
        assert!(said.contains(mistake), "{mistake}: {said}");
    }
    let networks = dir.path().join("networks.csv");
    std::fs::write(&networks, "203.0.113.0/24,eu\nnonsense\n").unwrap();
    let good = format!("zone = \"cdn.test\"\nadvertise = [\"192.0.2.53\"]\nnetworks = \"{}\"\n", networks.display());
    let (code, said) = check(&good);
    assert!(code == Some(1) && said.contains("networks.csv") && said.contains("line 2"), "{said}");
    std::fs::write(&networks, "203.0.113.0/24,eu\n").unwrap();
    assert_eq!(check(&good), (Some(0), String::new()));
    let region = "[[regions]]\nname = \"eu\"\nlatitude = 91\n";
    let (_, said) = check(&format!("{good}{region}"));
    for mistake in ["regions[0].latitude: should be degrees from -90 to 90", "regions[0].longitude: is missing", "is for a MaxMind file"] {
        assert!(said.contains(mistake), "{mistake}: {said}");
    }
    let maxmind = good.replace(".csv", ".mmdb");
    let (_, said) = check(&maxmind);
    assert!(said.contains("say where your regions are"), "{said}");
    std::fs::write(dir.path().join("networks.mmdb"), "203.0.113.0/24,eu\n").unwrap();
    let (code, said) = check(&format!("{maxmind}[[regions]]\nname = \"eu\"\nlatitude = 50\nlongitude = 8\n"));
    assert!(code == Some(1) && said.contains("networks.mmdb: not a MaxMind file"), "{said}");
}

/// The way of clients to an edge's port, for as long as it is not cut.
struct Way(Arc<AtomicBool>);

impl Way {
    fn open(from: SocketAddr, to: SocketAddr) -> Self {
        let listener = TcpListener::bind(from).unwrap();
        listener.set_nonblocking(true).unwrap();
        let cut = Arc::new(AtomicBool::new(false));
        let is_cut = Arc::clone(&cut);
        std::thread::spawn(move || {
            while !is_cut.load(Ordering::Relaxed) {
                let Ok((client, _)) = listener.accept() else {
                    std::thread::sleep(Duration::from_millis(5));
                    continue;
                };
                client.set_nonblocking(false).unwrap();
                let Ok(edge) = TcpStream::connect(to) else { continue };
                for (mut from, mut to) in [(client.try_clone().unwrap(), edge.try_clone().unwrap()), (edge, client)] {
                    std::thread::spawn(move || {
                        let _ = std::io::copy(&mut from, &mut to);
                        let _ = to.shutdown(std::net::Shutdown::Both);
                    });
                }
            }
        });
        Self(cut)
    }
}

impl Drop for Way {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn an_edge_that_loses_only_its_port_leaves_the_answers_and_explain_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let port = free_port();
    let networks = dir.path().join("networks.csv");
    std::fs::write(&networks, "203.0.113.0/24,us,eu\n").unwrap();
    let more = format!("networks = \"{}\"\n[probe]\nport = {port}\ninterval = \"200ms\"", networks.display());
    let (network, nginx) = start(dir.path(), Plan { edges: 2, dns: 1, dns_more: &more, ..Plan::default() });
    network.site("shop", "\"www.shop.example\"", &nginx.url(), "");
    let ways: Vec<Way> = (0..2u8)
        .map(|n| Way::open(SocketAddr::from(([127, 0, 1, n + 1], port)), support::loopback(network.edges()[usize::from(n)].https)))
        .collect();
    let dns = server(&network).port;
    until(dns, "both edges", &["127.0.1.1", "127.0.1.2"]);
    let explained = |client: &str| network.json(&["dns", "explain", "shop.cdn.test", "--client", client])["nodes"][0]["steered"].clone();
    let here = explained("198.51.100.7");
    assert!(here["near_by"].as_str().unwrap().contains("no network of the table"), "{here}");
    let ready = |e: &serde_json::Value| e["edges"][0]["standing"] == "ready";
    let there = wait_for("the edges to be ready", || Some(explained("203.0.113.7")).filter(ready));
    assert_eq!(
        (there["near"].as_array().unwrap().len(), there["scope"].as_u64(), &there["edges"][0]["standing"]),
        (2, Some(24), &"ready".into())
    );

    // The edge itself lives, and holds its lease.
    let [first, second] = <[Way; 2]>::try_from(ways).ok().unwrap();
    drop(first);
    until(dns, "the edge whose port is lost to be named no more", &["127.0.1.2"]);
    let lost = explained("203.0.113.7");
    let edge = lost["edges"].as_array().unwrap().iter().find(|e| e["name"] == "edge-1").unwrap();
    assert_eq!((edge["standing"].as_str(), edge["named"].as_bool()), (Some("lost, ready"), Some(false)), "{lost}");
    // Where nothing answers the fault is most likely here: better all of them than none.
    drop(second);
    until(dns, "both to be named again", &["127.0.1.1", "127.0.1.2"]);
    let _way = Way::open(SocketAddr::from(([127, 0, 1, 1], port)), support::loopback(network.edges()[0].https));
    until(dns, "the one that answers", &["127.0.1.1"]);
    let out = network.tidegate(&["dns", "explain", "shop", "--client", "203.0.113.7"]);
    let said = text(&out.stdout);
    assert!(
        said.contains("dns-1 (eu) on shop.cdn.test.") && said.contains("near the client: us, eu") && said.contains("lost, ready"),
        "{said}"
    );
    for (name, client, code, says) in
        [("nosuch", "203.0.113.7", 3, "no site is called"), ("shop", "somewhere", 2, "invalid IP address"), ("", "::1", 3, "no site")]
    {
        let out = network.tidegate(&["dns", "explain", name, "--client", client]);
        assert!(out.status.code() == Some(code) && error_of(&out).contains(says), "{name} {client}: {out:?}");
    }
}

#[test]
fn a_signed_zone_is_validated_by_others() {
    let dir = tempfile::tempdir().unwrap();
    let more = "caa = [\"ca.example.org\"]\nhttps_records = true";
    let (mut network, nginx) = start(dir.path(), Plan { edges: 2, dns: 1, dns_more: more, ..Plan::default() });
    network.site("shop", "\"www.shop.example\"", &nginx.url(), "");
    let dns = server(&network).port;
    until(dns, "both edges", &["127.0.1.1", "127.0.1.2"]);
    for (arguments, code, says) in [
        (&["ds", "cdn.test"][..], 3, "is not signed"),
        (&["sign", "not a zone"], 1, "is no name in a zone"),
        (&["txt", "set", "a/b?c.cdn.test", "x"], 2, "is no name in a zone"),
        (&["txt", "remove", "nothing.cdn.test"], 3, "has no TXT records"),
        (&["unsign", "cdn.test"], 3, "there is no signed zone"),
    ] {
        let out = network.tidegate(&[&["dns"], arguments].concat());
        assert!(out.status.code() == Some(code) && error_of(&out).contains(says), "{arguments:?}: {out:?}");
    }
    assert!(network.tidegate(&["dns", "sign", "CDN.test."]).status.success());
    assert!(error_of(&network.tidegate(&["dns", "sign", "cdn.test"])).contains("is signed already"));
    let ds = text(&network.tidegate(&["dns", "ds", "cdn.test"]).stdout).trim().to_owned();
    let signed = || dig(dns, &["cdn.test", "DNSKEY", "+dnssec"]);
    wait_for("the zone to be signed", || (signed().len() == 2).then_some(()));
    let challenge = "_acme-challenge.shop.cdn.test";
    assert!(network.tidegate(&["dns", "txt", "set", challenge, "a proof", &"x".repeat(300)]).status.success());
    wait_for("the TXT records", || (dig(dns, &[challenge, "TXT"]).len() == 2).then_some(()));
    assert!(dig(dns, &[challenge, "TXT"])[0].contains("0 IN TXT \"a proof\""));
    assert!(text(&network.tidegate(&["dns", "txt", "list"]).stdout).contains(challenge));
    assert!(network.tidegate(&["dns", "txt", "set", "below.it.cdn.test", "y"]).status.success());
    wait_for("the TXT record", || (dig(dns, &["below.it.cdn.test", "TXT"]).len() == 1).then_some(()));

    // A resolver that knows the DS record and trusts nothing else, and asks in letters of mixed case.
    let port = free_port();
    let config = dir.path().join("unbound.conf");
    let text_of = format!(
        "server:\n interface: 127.0.0.1@{port}\n port: {port}\n do-daemonize: no\n use-syslog: no\n username: \"\"\n chroot: \"\"\n directory: \"{}\"\n \
         pidfile: \"\"\n do-not-query-localhost: no\n use-caps-for-id: yes\n module-config: \"validator iterator\"\n local-zone: \"test.\" nodefault\n \
         trust-anchor: \"{ds}\"\n aggressive-nsec: yes\n\
         stub-zone:\n name: \"cdn.test.\"\n stub-addr: 127.0.0.1@{dns}\n",
        dir.path().display(),
    );
    std::fs::write(&config, text_of).unwrap();
    let mut command = Command::new("unbound");
    let unbound = Process::start(command.args(["-d", "-p", "-c", config.to_str().unwrap()]), &dir.path().join("unbound.log"));
    let ask = |question: &[&str]| {
        let mut dig = Command::new("dig");
        dig.args(["@127.0.0.1", "-p", &port.to_string(), "+dnssec", "+tries=1", "+time=3"]);
        text(&dig.args(question).output().unwrap().stdout)
    };
    wait_for("the resolver", || ask(&["shop.cdn.test", "A"]).contains("status: NOERROR").then_some(()));
    for (question, records) in [
        (&["shop.cdn.test", "A"][..], 3),
        (&["SHOP.cdn.TEST", "AAAA"], 2),
        (&["shop.cdn.test", "HTTPS"], 2),
        (&["cdn.test", "NS"], 2),
        (&["cdn.test", "SOA"], 2),
        (&["cdn.test", "CAA"], 2),
        (&["cdn.test", "DNSKEY"], 2),
        (&["dns-1.ns.cdn.test", "A"], 2),
        (&["_acme-challenge.shop.cdn.test", "TXT"], 3),
        (&["_ACME-challenge.shop.cdn.test", "A"], 0),
        (&["it.cdn.test", "TXT"], 0),
        (&["shop.cdn.test", "MX"], 0),
        (&["ns.cdn.test", "A"], 0),
        (&["nowhere.cdn.test", "A"], 0),
        (&["no.where.cdn.test", "TXT"], 0),
        (&["dns-1.ns.cdn.test", "AAAA"], 0),
        // After all these denials, whatever was made of them.
        (&["shop.cdn.test", "CAA"], 2),
    ] {
        let answer = ask(question);
        let flags = answer.lines().find(|l| l.starts_with(";; flags:")).unwrap_or_default();
        assert!(flags.contains(" ad;") || flags.contains(" ad "), "{question:?}: {answer}{}", unbound.logged());
        assert!(flags.contains(&format!("ANSWER: {records},")), "{question:?}: {answer}");
    }
    // Others that validate by themselves, and another that only asks.
    let anchors = dir.path().join("anchors");
    let (tag, digest) = ds.split_once(" DS ").unwrap();
    let name = tag.split_whitespace().next().unwrap();
    let (numbers, hash) = digest.rsplit_once(' ').unwrap();
    std::fs::write(&anchors, format!("trust-anchors {{ {name} static-ds {numbers} \"{hash}\"; }};\n")).unwrap();
    for (name, kind, says) in [
        ("shop.cdn.test", "A", "; fully validated"),
        ("cdn.test", "DNSKEY", "; fully validated"),
        ("nowhere.cdn.test", "A", "; negative response, fully validated"),
    ] {
        let mut delv = Command::new("delv");
        delv.args(["@127.0.0.1", "-p", &dns.to_string(), "-a", anchors.to_str().unwrap(), "+root=cdn.test", name, kind]);
        let out = delv.output().unwrap();
        assert!(text(&out.stdout).contains(says), "{name} {kind}: {out:?}");
    }
    let mut kdig = Command::new("kdig");
    kdig.args(["@127.0.0.1", "-p", &dns.to_string(), "+dnssec", "+nsid", "+subnet=203.0.113.0/24", "shop.cdn.test", "A"]);
    let out = text(&kdig.output().unwrap().stdout);
    for says in ["status: NOERROR", "RRSIG", "NSID", "CLIENT-SUBNET: 203.0.113.0/24/0", "Flags: qr aa"] {
        assert!(out.contains(says), "{says}: {out}");
    }
    // Who asks for no signatures gets none, and the code that there is no such name.
    assert_eq!(dig(dns, &["shop.cdn.test", "A"]).len(), 2);
    assert!(dig_all(dns, &["nowhere.cdn.test", "A"]).contains("status: NXDOMAIN"));
    assert!(network.tidegate(&["dns", "txt", "remove", challenge]).status.success());
    wait_for("them to be gone", || dig_all(dns, &[challenge, "TXT"]).contains("status: NXDOMAIN").then_some(()));
    assert!(dig_all(dns, &["it.cdn.test", "TXT"]).contains("status: NOERROR"), "a name between others");
    let denied = dig_all(dns, &["nowhere.cdn.test", "A", "+dnssec"]);
    assert!(denied.contains("status: NOERROR") && denied.contains("TYPE128"), "{denied}");
    let large = dig_all(dns, &["shop.cdn.test", "A", "+dnssec", "+notcp", "+ignore"]);
    assert!(
        large.lines().any(|l| l.starts_with(";; MSG SIZE") && l.rsplit(' ').next().unwrap().parse::<u32>().unwrap() <= 1232),
        "{large}"
    );

    // It stays signed without any control node, after a restart too; and nothing of the key lies open.
    network.node("control-1").kill();
    let node = network.node("dns-1");
    node.kill();
    node.start();
    wait_for("the zone to be signed again", || (signed().len() == 2).then_some(()));
    network.node("control-1").start();
    wait_for("the control plane", || network.tidegate(&["dns", "unsign", "cdn.test"]).status.success().then_some(()));
    wait_for("the zone to be signed no more", || (dig(dns, &["shop.cdn.test", "A", "+dnssec"]).len() == 2).then_some(()));
}
