//! Certificates of sites: brought by people, or made by an authority that nobody here wrote (pebble), with openssl and curl as clients.

#![allow(clippy::unwrap_used, clippy::disallowed_methods)] // A test fails by panicking.

mod support;

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use support::ari::Ari;
use support::https::{Https, Trusting};
use support::network::{Network, Plan};
use support::pebble::{Pebble, Place, cnames, resolver, run, shown};
use support::{Http, Nginx, Process, chromium, error_of, free_port, text, wait_for};

/// An authority of the test's own, made with openssl.
struct Authority(PathBuf);

impl Authority {
    fn new(dir: &Path) -> Self {
        let dir = dir.join("authority");
        std::fs::create_dir_all(&dir).unwrap();
        let at = |name: &str| dir.join(name).display().to_string();
        let ca = ["-addext", "basicConstraints=critical,CA:TRUE", "-addext", "keyUsage=critical,keyCertSign"];
        let head =
            ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "30", "-subj", "/CN=An authority"];
        run("openssl", &[&head[..], &ca, &["-keyout", &at("ca.key"), "-out", &at("ca.pem")]].concat());
        Self(dir)
    }

    fn ca(&self) -> String {
        self.0.join("ca.pem").display().to_string()
    }

    /// A chain and its key: for `names`, with a key as openssl calls it, for so many days.
    fn make(&self, file: &str, names: &str, key: &[&str], days: &str) -> (String, String) {
        let at = |name: &str| self.0.join(name).display().to_string();
        let (request, chain, secret, extensions) =
            (at(&format!("{file}.csr")), at(&format!("{file}.pem")), at(&format!("{file}.key")), at(&format!("{file}.ext")));
        let head = ["req", "-new", "-nodes", "-subj", "/CN=a host", "-keyout", &secret, "-out", &request, "-newkey"];
        run("openssl", &[&head[..], key].concat());
        std::fs::write(&extensions, format!("subjectAltName={names}\nbasicConstraints=CA:FALSE\n")).unwrap();
        let (ca, ca_key) = (self.ca(), at("ca.key"));
        let tail = ["-days", days, "-extfile", &extensions, "-out", &chain];
        run("openssl", &[&["x509", "-req", "-in", &request, "-CA", &ca, "-CAkey", &ca_key, "-CAcreateserial"][..], &tail].concat());
        let both = std::fs::read_to_string(&chain).unwrap() + &std::fs::read_to_string(&ca).unwrap();
        std::fs::write(&chain, both).unwrap();
        (chain, secret)
    }
}

const EC: [&str; 3] = ["ec", "-pkeyopt", "ec_paramgen_curve:P-256"];

fn origin(dir: &Path) -> Nginx {
    let root = dir.join("www");
    std::fs::create_dir_all(&root).unwrap();
    std::fs::write(root.join("page"), "a page of the shop\n").unwrap();
    std::fs::write(root.join("page.html"), "<!doctype html><p>a page of the shop</p>\n").unwrap();
    Nginx::start(&dir.join("nginx"), &root, "add_header Cache-Control max-age=3600;")
}

/// Applies a site with this choice of a certificate; its error, if it is refused.
fn apply(network: &Network, name: &str, hosts: &str, origin: &str, certificate: &str) -> Result<(), String> {
    let file = network.dir.join(format!("{name}.site.toml"));
    let text = format!(
        "name = \"{name}\"\nhosts = [{hosts}]\n[origin]\nservers = [{{ url = \"{origin}\" }}]\nallow_private = true\n[tls]\ncertificate = \"{certificate}\"\n"
    );
    std::fs::write(&file, text).unwrap();
    let out = network.tidegate(&["site", "apply", file.to_str().unwrap()]);
    if out.status.success() { Ok(()) } else { Err(error_of(&out)) }
}

/// A page of a host, by curl, at one edge; `Err`: what curl says.
fn page(network: &Network, edge: usize, host: &str, ca: &str) -> Result<String, String> {
    let node = network.edges()[edge];
    let (connect, url) = (format!("{host}:443:{}:{}", node.ip, node.https), format!("https://{host}/page"));
    let out = Command::new("curl").args(["-sS", "--max-time", "5", "--cacert", ca, "--connect-to", &connect, &url]).output().unwrap();
    if out.status.success() { Ok(text(&out.stdout)) } else { Err(text(&out.stderr)) }
}

#[test]
fn what_people_bring_is_checked_served_and_changed_without_a_broken_connection() {
    let dir = tempfile::tempdir().unwrap();
    let network = Network::planned(dir.path(), Plan { edges: 2, ..Plan::default() });
    let (nginx, authority) = (origin(dir.path()), Authority::new(dir.path()));
    let upload = |name: &str, chain: &str, key: &str| network.tidegate(&["cert", "upload", name, "--chain", chain, "--key", key]);
    let names = "DNS:www.shop.example,DNS:*.img.shop.example";
    let (chain, key) = authority.make("ec", names, &EC, "20");
    let (rsa_chain, rsa_key) = authority.make("rsa", names, &["rsa:2048"], "20");
    let hosts = "\"www.shop.example\", \"*.img.shop.example\"";

    // What is of no use is refused, and says why.
    let (weak_chain, weak_key) = authority.make("weak", names, &["rsa:1024"], "20");
    let (old_chain, old_key) = authority.make("old", names, &EC, "-1");
    let (odd_chain, odd_key) = authority.make("odd", names, &["ec", "-pkeyopt", "ec_paramgen_curve:secp521r1"], "20");
    let turned = dir.path().join("turned.pem").display().to_string();
    let leaf = std::fs::read_to_string(&chain).unwrap();
    let (first, second) = leaf.split_at(leaf.find("-----END").unwrap() + 26);
    std::fs::write(&turned, format!("{second}\n{first}")).unwrap();
    let foreign = dir.path().join("foreign.pem").display().to_string();
    let other = Authority::new(&dir.path().join("other"));
    std::fs::write(&foreign, format!("{first}\n{}", std::fs::read_to_string(other.ca()).unwrap())).unwrap();
    for (name, chain, key, says) in [
        ("shop", chain.as_str(), rsa_key.as_str(), "is not the key of the first certificate"),
        ("shop", &weak_chain, &weak_key, "1024 bits"),
        ("shop", &old_chain, &old_key, "expired"),
        ("shop", &odd_chain, &odd_key, "P-256 and P-384"),
        ("shop", &turned, &key, "the leaf has to come first"),
        ("shop", &foreign, &key, "does not hold together"),
        ("shop", &key, &key, "there is none in the chain"),
        ("shop", &chain, &chain, "not a private key: there is none in it"),
        ("internal", &chain, &key, "has a meaning in site files"),
    ] {
        let out = upload(name, chain, key);
        assert!(out.status.code() == Some(1) && error_of(&out).contains(says), "{says}: {}", error_of(&out));
    }
    let refused = apply(&network, "shop", hosts, &nginx.url(), "shop").unwrap_err();
    assert!(refused.contains("upload it first"), "{refused}");

    let out = upload("shop", &chain, &key);
    assert!(out.status.success(), "{}", error_of(&out));
    let refused = apply(&network, "shop", "\"www.shop.example\", \"other.example\"", &nginx.url(), "shop").unwrap_err();
    assert!(refused.contains("not for other.example"), "{refused}");
    apply(&network, "shop", hosts, &nginx.url(), "shop").unwrap();
    let ca = authority.ca();
    for (edge, host) in [(0, "www.shop.example"), (1, "www.shop.example"), (1, "a.img.shop.example")] {
        wait_for("the certificate", || page(&network, edge, host, &ca).ok().filter(|p| p == "a page of the shop\n"));
    }
    let refused = page(&network, 0, "img.shop.example", &ca).unwrap_err();
    assert!(refused.contains("TLS") || refused.contains("SSL"), "{refused}");

    // A key of another kind stands beside it, for clients that can do no other.
    assert!(upload("shop", &rsa_chain, &rsa_key).status.success());
    let rsa = ["-sigalgs", "RSA-PSS+SHA256:RSA+SHA256", "-tls1_2"];
    wait_for("the RSA certificate", || shown(&network, 0, "www.shop.example", &rsa).contains("Peer signature type: RSA").then_some(()));
    let both = shown(&network, 0, "www.shop.example", &["-CAfile", &ca]);
    assert!(both.contains("Peer signature type: ECDSA") && both.contains("Verify return code: 0"), "{both}");
    let list = network.json(&["cert", "show", "shop"]);
    let kinds: Vec<_> =
        list["certificates"].as_array().unwrap().iter().map(|c| (c["name"].as_str().unwrap(), c["days_left"].as_i64().unwrap())).collect();
    assert!(kinds.contains(&("shop/ecdsa", 19)) && kinds.contains(&("shop/rsa", 19)), "{kinds:?}");

    // A session that began at one edge goes on at another, until an edge is removed, which knew the key.
    let session = dir.path().join("session").display().to_string();
    for version in ["-tls1_2", "-tls1_3"] {
        assert!(with_session(&network, 0, &[version, "-sess_out", &session]).contains("New, TLSv1."), "{version}");
        let there = with_session(&network, 1, &[version, "-sess_in", &session]);
        assert!(there.contains("Reused, TLSv1."), "{version}: {there}");
    }
    let removed = network.tidegate(&["node", "remove", "edge-2", "--dead"]);
    assert!(removed.status.success(), "{}", error_of(&removed));
    wait_for("the key to be another", || {
        with_session(&network, 0, &["-tls1_3", "-sess_in", &session]).contains("New, TLSv1.").then_some(())
    });

    // What a site uses can neither be removed nor be replaced by what is not for its hosts.
    let (less_chain, less_key) = authority.make("less", "DNS:www.shop.example", &EC, "20");
    for (out, says) in [
        (network.tidegate(&["cert", "remove", "shop"]), "uses it"),
        (upload("shop", &less_chain, &less_key), "the site shop uses it for *.img.shop.example"),
    ] {
        assert!(error_of(&out).contains(says), "{says}: {}", error_of(&out));
    }

    // A new one is there at once, and who is connected stays so.
    let (new_chain, new_key) = authority.make("new", names, &EC, "25");
    let mut waiting = Https::to(network.edges()[0], "www.shop.example", &Trusting::authority(&ca)).unwrap();
    assert_eq!(waiting.get("/page").unwrap().1, "a page of the shop\n");
    let group = waiting.stream.conn.negotiated_key_exchange_group().unwrap().name();
    assert_eq!(group, rustls::NamedGroup::X25519MLKEM768, "what is recorded today is safe from tomorrow's computers");
    assert_eq!(waiting.get("/page").unwrap().1, "a page of the shop\n");
    assert!(upload("shop", &new_chain, &new_key).status.success());
    let serial = run("openssl", &["x509", "-in", &new_chain, "-noout", "-serial"]);
    wait_for("the new certificate", || {
        let pem = shown(&network, 0, "www.shop.example", &[]);
        let file = dir.path().join("shown.pem");
        let leaf = pem.split("-----BEGIN CERTIFICATE-----").nth(1)?.split("-----END").next()?;
        std::fs::write(&file, format!("-----BEGIN CERTIFICATE-----{leaf}-----END CERTIFICATE-----\n")).unwrap();
        (run("openssl", &["x509", "-in", file.to_str().unwrap(), "-noout", "-serial"]) == serial).then_some(())
    });
    assert_eq!(waiting.get("/page").unwrap().1, "a page of the shop\n");

    let figures = network.nodes[0].figure("tidegate_certificate_not_after_seconds");
    assert!(figures > 1e9, "{figures}");
    // Nobody reads the key where it does not belong.
    let secret = std::fs::read_to_string(&new_key).unwrap().lines().nth(1).unwrap().to_owned();
    for answer in [network.json(&["cert", "list"]).to_string(), network.json(&["cert", "show", "shop"]).to_string()] {
        assert!(!answer.contains(&secret[..40]) && !answer.contains("PRIVATE"), "{answer}");
    }
    assert!(network.tidegate(&["site", "remove", "shop"]).status.success());
    assert!(network.tidegate(&["cert", "remove", "shop"]).status.success());
    assert_eq!(network.tidegate(&["cert", "show", "shop"]).status.code(), Some(3));
}

/// Every file below a folder that holds one of these, in any of the ways in which they are written down.
fn holding(dir: &Path, secrets: &[Vec<u8>]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap().map(Result::unwrap) {
            let path = entry.path();
            if entry.file_type().unwrap().is_dir() {
                folders.push(path);
            } else if let Ok(bytes) = std::fs::read(&path)
                && secrets.iter().any(|s| bytes.windows(s.len()).any(|w| w == s.as_slice()))
            {
                found.push(path);
            }
        }
    }
    found
}

#[test]
fn no_file_of_any_node_holds_a_key_or_a_token() {
    let (dir, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let names = [("www.shop.example", "shop.cdn.test")];
    let plan = Plan { controls: 3, shields: 1, edge_more: "access_log = \"{data}.access\"", ..Plan::default() };
    let mut a = automatic(dir.path(), plan, "", &names, &[("PEBBLE_VA_NOSLEEP", "1")]);
    let authority = Authority::new(elsewhere.path());
    let (chain, key) = authority.make("mine", "DNS:www.mine.example", &EC, "20");
    assert!(a.network.tidegate(&["cert", "upload", "mine", "--chain", &chain, "--key", &key]).status.success());
    apply(&a.network, "mine", "\"www.mine.example\"", &a.nginx.url(), "mine").unwrap();
    a.apply("\"www.shop.example\"");
    a.trusted(0, "www.shop.example");
    assert!(a.network.tidegate(&["dns", "sign", "cdn.test"]).status.success());
    let made = text(&a.network.tidegate(&["token", "create", "--role", "read"]).stdout).trim().to_owned();
    let backup = dir.path().join("the.backup").display().to_string();
    let out = a.network.tidegate(&["control", "backup", &backup]);
    assert!(out.status.success(), "{}", error_of(&out));
    // What was refused is logged, and what was asked with a token is too.
    assert!(!a.network.tidegate(&["cert", "upload", "bad", "--chain", &key, "--key", &key]).status.success());
    a.network.node("edge-1").kill();
    a.network.node("edge-1").start();
    a.network.attached();

    let pem = std::fs::read_to_string(&key).unwrap();
    let lines: Vec<&str> = pem.lines().filter(|l| !l.starts_with('-')).collect();
    let der = data_encoding::BASE64.decode(lines.concat().as_bytes()).unwrap();
    let hex: String = der.iter().map(|b| format!("{b:02x}")).collect();
    // The key's number stands in the middle of its 138 bytes; the rest is the same for all keys, or public.
    let secret = der[36..68].to_vec();
    let mut secrets = vec![secret, lines[0].as_bytes()[..60].to_vec(), hex.as_bytes()[72..136].to_vec()];
    for token in [&a.network.token, &made] {
        // Its name may be read anywhere.
        secrets.push(token.rsplit(['.', '_']).next().unwrap().as_bytes().to_vec());
    }
    assert!(secrets.iter().all(|s| s.len() >= 20), "{secrets:?}");
    assert_eq!(holding(dir.path(), &secrets), Vec::<PathBuf>::new());
    // Nor are cluster keys anywhere but in the control nodes' own files, the first one and the one that follows it.
    let out = a.network.tidegate(&["control", "rotate-key"]);
    assert!(out.status.success(), "{}", error_of(&out));
    let lines = std::fs::read_to_string(dir.path().join("control-1.cluster.key")).unwrap();
    let keys: Vec<Vec<u8>> =
        lines.lines().flat_map(|hex| [hex.as_bytes().to_vec(), data_encoding::HEXLOWER.decode(hex.as_bytes()).unwrap()]).collect();
    let mut held = holding(dir.path(), &keys);
    held.sort();
    assert_eq!((keys.len(), held), (4, (1..=3).map(|n| dir.path().join(format!("control-{n}.cluster.key"))).collect()));
    // The search finds what is there.
    std::fs::write(dir.path().join("control-1/planted"), pem).unwrap();
    assert_eq!(holding(dir.path(), &secrets).len(), 1);
}

/// Whether a process has these bytes anywhere in its memory.
fn remembers(process: u32, secret: &[u8]) -> bool {
    use std::os::unix::fs::FileExt;
    let maps = std::fs::read_to_string(format!("/proc/{process}/maps")).unwrap();
    let memory = std::fs::File::open(format!("/proc/{process}/mem")).unwrap();
    let number = |hex: &str| u64::from_str_radix(hex, 16).unwrap();
    let writable = maps.lines().filter(|l| l.split(' ').nth(1).unwrap().starts_with("rw"));
    let mut ranges = writable.map(|l| l.split(' ').next().unwrap().split_once('-').unwrap());
    ranges.any(|(from, to)| {
        let mut bytes = vec![0; usize::try_from(number(to) - number(from)).unwrap()];
        // What went meanwhile is not there.
        memory.read_exact_at(&mut bytes, number(from)).is_ok() && memchr::memmem::find(&bytes, secret).is_some()
    })
}

#[test]
fn only_edges_of_a_sites_regions_serve_it_and_get_its_key() {
    let dir = tempfile::tempdir().unwrap();
    let plan = Plan { edges: 2, dns: 1, regions: &["eu", "us"], control_more: "zone = \"cdn.test\"", ..Plan::default() };
    let network = Network::planned(dir.path(), plan);
    let (nginx, authority) = (origin(dir.path()), Authority::new(dir.path()));
    let ca = authority.ca();
    let (chain, key) = authority.make("shop", "DNS:www.shop.example", &EC, "30");
    assert!(network.tidegate(&["cert", "upload", "shop", "--chain", &chain, "--key", &key]).status.success());
    let pem = std::fs::read_to_string(&key).unwrap();
    let der = data_encoding::BASE64.decode(pem.lines().filter(|l| !l.starts_with('-')).collect::<String>().as_bytes()).unwrap();
    let remember = |edge: usize| remembers(network.edges()[edge].process.as_ref().unwrap().child.id(), &der[36..68]);
    assert!(!remember(0) && !remember(1), "no site needs it yet");
    let dns = network.nodes.iter().find(|n| n.role == "dns").unwrap().address();
    let named = || {
        let (server, port) = (format!("@{}", dns.ip()), dns.port().to_string());
        let mut all: Vec<_> = run("dig", &[&server, "-p", &port, "+short", "shop.cdn.test"]).lines().map(str::to_owned).collect();
        all.sort();
        all
    };
    let served = |edge: usize| page(&network, edge, "www.shop.example", &ca).is_ok_and(|p| p == "a page of the shop\n");
    for (regions, by) in [("regions = [\"eu\"]\n", [true, false]), ("regions = [\"us\", \"asia\"]\n", [false, true]), ("", [true, true])] {
        let file = dir.path().join("regional.toml");
        let text = format!(
            "name = \"shop\"\nhosts = [\"www.shop.example\"]\n{regions}[origin]\nservers = [{{ url = \"{}\" }}]\nallow_private = true\n[tls]\ncertificate = \"shop\"\n",
            nginx.url()
        );
        std::fs::write(&file, text).unwrap();
        let out = network.tidegate(&["site", "apply", file.to_str().unwrap(), "--vouch"]);
        assert!(out.status.success(), "{}", error_of(&out));
        wait_for(&format!("{regions}to be so"), || ([served(0), served(1)] == by).then_some(()));
        // The dns node is in eu: that is the nearest region, where it serves the site.
        let addresses = [if by[0] { "127.0.1.1" } else { "127.0.1.2" }];
        wait_for(&format!("DNS to know {regions}"), || (named() == addresses).then_some(()));
        for edge in (0..2).filter(|e| !by[*e]) {
            let mut http = Http::connect_on(None, network.edges()[edge].address()).unwrap();
            assert_eq!(http.ask("GET", "www.shop.example", "/page", &[]).unwrap().status, 421);
            let refused = page(&network, edge, "www.shop.example", &ca).unwrap_err();
            assert!(refused.contains("alert"), "{refused}");
        }
        if regions.contains("eu") {
            assert!(remember(0), "the search finds what is there");
            assert!(!remember(1), "an edge elsewhere never got the key");
        }
    }
    let out = network.tidegate(&["dns", "explain", "shop", "--client", "192.0.2.1"]);
    assert!(out.status.success(), "{}", error_of(&out));
}

/// What openssl says of a handshake after which it asks for the page, and so gets a ticket.
fn with_session(network: &Network, edge: usize, more: &[&str]) -> String {
    use std::io::Write;
    let address = format!("{}:{}", network.edges()[edge].ip, network.edges()[edge].https);
    let mut openssl = Command::new("openssl");
    openssl.args(["s_client", "-connect", &address, "-servername", "www.shop.example", "-ign_eof"]).args(more);
    openssl.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    let mut child = openssl.spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"GET /page HTTP/1.1\r\nHost: www.shop.example\r\nConnection: close\r\n\r\n").unwrap();
    text(&child.wait_with_output().unwrap().stdout)
}

/// A network whose sites get their certificates from a pebble.
struct Automatic {
    network: Network,
    nginx: Nginx,
    pebble: Pebble,
    _resolver: Process,
    root: String,
}

/// `names`: hosts and where they lead; `acme`: more lines of the settings.
fn automatic(dir: &Path, plan: Plan<'_>, acme: &str, names: &[(&str, &str)], environment: &[(&str, &str)]) -> Automatic {
    automatic_with(dir, plan, acme, names, "", environment)
}

/// `authority`: more of its own settings.
fn automatic_with(
    dir: &Path,
    plan: Plan<'_>,
    acme: &str,
    names: &[(&str, &str)],
    authority: &str,
    environment: &[(&str, &str)],
) -> Automatic {
    let (place, port) = (Place::new(dir), free_port());
    let more = format!("zone = \"cdn.test\"\nname_servers = [\"127.0.0.1:{port}\"]\n{}", place.settings(acme));
    let network = Network::planned(dir, Plan { dns: 1, as_advertised: true, control_more: &more, ..plan });
    let dns = network.nodes.iter().find(|n| n.role == "dns").unwrap().port;
    let resolver = resolver(dir, port, dns, &cnames(names));
    let (http, https) = (network.edges()[0].port, network.edges()[0].https);
    let pebble = place.start(port, http, https, authority, environment);
    let root = pebble.root().display().to_string();
    Automatic { nginx: origin(dir), network, pebble, _resolver: resolver, root }
}

impl Automatic {
    fn apply(&self, hosts: &str) {
        apply(&self.network, "shop", hosts, &self.nginx.url(), "auto").unwrap();
    }

    /// Until an edge serves the host under a certificate that the world trusts.
    fn trusted(&self, edge: usize, host: &str) {
        let mut last = String::new();
        let came = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            wait_for("a trusted page", || {
                let got = page(&self.network, edge, host, &self.root);
                last = format!("{got:?}");
                (got.ok()? == "a page of the shop\n").then_some(())
            });
        }));
        let orders = text(&self.network.tidegate(&["cert", "list"]).stdout);
        assert!(came.is_ok(), "{host}: {last}\n{orders}\n{}", self.pebble.process.logged());
    }

    fn certificate(&self) -> Value {
        let all = self.network.json(&["cert", "show", "shop"]);
        all["certificates"].as_array().unwrap().iter().find(|c| c["name"] == "acme/shop").cloned().unwrap_or(Value::Null)
    }
}

#[test]
fn an_authority_makes_certificates_by_http_and_by_dns_whoever_is_asked() {
    let dir = tempfile::tempdir().unwrap();
    let names = [
        ("www.shop.example", "shop.cdn.test"),
        ("img.shop.example", "shop.cdn.test"),
        ("_acme-challenge.img.shop.example", "_acme-challenge.shop.cdn.test"),
    ];
    // It refuses half of all nonces.
    let environment = [("PEBBLE_VA_NOSLEEP", "1"), ("PEBBLE_WFE_NONCEREJECT", "50")];
    let a =
        automatic(dir.path(), Plan { edges: 3, edge_more: "access_log = \"{data}.access\"", ..Plan::default() }, "", &names, &environment);
    a.apply("\"www.shop.example\", \"*.img.shop.example\"");
    for edge in 0..3 {
        a.trusted(edge, "www.shop.example");
        a.trusted(edge, "a.img.shop.example");
    }
    let seen = shown(&a.network, 0, "www.shop.example", &["-CAfile", &a.root]);
    assert!(seen.contains("Verify return code: 0 (ok)") && seen.contains("Pebble Intermediate"), "{seen}");
    // A browser sees the page over HTTP/2 and over HTTP/3.
    let edge = a.network.edges()[0];
    let address = std::net::SocketAddr::new(edge.ip, edge.https);
    let force = ["--enable-quic", "--origin-to-force-quic-on=www.shop.example:443"];
    for (protocol, more) in [("h2", &["--disable-quic"][..]), ("h3", &force)] {
        let shown = chromium(&dir.path().join(protocol), address, "https://www.shop.example/page.html", more);
        assert!(shown.contains("a page of the shop"), "{protocol}: {shown}");
        wait_for("the access log", || {
            let log = std::fs::read_to_string(dir.path().join("edge-1.access")).ok()?;
            log.lines().any(|l| l.contains("/page.html") && l.contains(&format!("\"{protocol}\""))).then_some(())
        });
    }
    // An origin may answer authorities itself, over plain HTTP, where everything else is sent to https.
    let own = dir.path().join("www/.well-known/acme-challenge");
    std::fs::create_dir_all(&own).unwrap();
    std::fs::write(own.join("its-own"), "its own answer").unwrap();
    let ask = |path: &str| {
        let mut http = Http::connect_on(None, a.network.edges()[1].address()).unwrap();
        http.ask("GET", "www.shop.example", path, &[]).unwrap()
    };
    let (own, other) = (ask("/.well-known/acme-challenge/its-own"), ask("/page"));
    assert_eq!((own.status, own.text().as_str(), other.status), (200, "its own answer", 308));
    let first = a.certificate();
    assert!(first["next"].as_str().unwrap().starts_with("renewed in "), "{first}");
    // Another one, when somebody says so; then all is as it was.
    let out = a.network.tidegate(&["cert", "renew", "shop", "--watch"]);
    assert!(out.status.success() && text(&out.stdout).contains("acme/shop is there"), "{}{}", text(&out.stdout), error_of(&out));
    assert_ne!(a.certificate()["fingerprint"], first["fingerprint"]);
    let list = a.network.json(&["cert", "list"]);
    assert!(list["orders"].as_array().unwrap().is_empty(), "{list}");
    let audit = text(&a.network.tidegate(&["audit"]).stdout);
    assert!(audit.contains("certificate of shop ordered at") && audit.contains("certificate acme/shop put"), "{audit}");
}

#[test]
fn an_authority_makes_certificates_by_tls_and_for_an_account_of_somebody_else() {
    let dir = tempfile::tempdir().unwrap();
    let (place, port) = (Place::new(dir.path()), free_port());
    let eab = dir.path().join("eab.key");
    std::fs::write(&eab, "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W\n").unwrap();
    let acme = format!(
        "challenges = [\"tls-alpn-01\"]\nretry = \"2s\"\nexternal_account = {{ key_id = \"kid-1\", hmac_key_file = \"{}\" }}",
        eab.display()
    );
    let more = format!("zone = \"cdn.test\"\nname_servers = [\"127.0.0.1:{port}\"]\n{}", place.settings(&acme));
    let network = Network::planned(dir.path(), Plan { dns: 1, as_advertised: true, control_more: &more, ..Plan::default() });
    let dns = network.nodes.iter().find(|n| n.role == "dns").unwrap().port;
    let (nginx, https) = (origin(dir.path()), network.edges()[0].https);
    let leads = cnames(&[("www.shop.example", "shop.cdn.test")]);
    let resolver = resolver(dir.path(), port, dns, &leads);
    apply(&network, "shop", "\"www.shop.example\"", &nginx.url(), "auto").unwrap();
    // Nobody is there yet: that is said, and tried again.
    let order = wait_for("the failure", || {
        let all = network.json(&["cert", "show", "shop"]);
        all["orders"].as_array()?.iter().find(|o| o["step"] == "failed").cloned()
    });
    assert!(order["problem"].as_str().unwrap().contains("cannot reach 127.0.0.1") && order["next_try"].is_u64(), "{order}");
    let keys = ", \"externalAccountBindingRequired\": true, \"externalAccountMACKeys\": {\"kid-1\": \"zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W\"}";
    let pebble = place.start(port, 1, https, keys, &[("PEBBLE_VA_NOSLEEP", "1")]);
    let root = pebble.root().display().to_string();
    let a = Automatic { network, nginx, pebble, _resolver: resolver, root };
    a.trusted(0, "www.shop.example");
    let audit = text(&a.network.tidegate(&["audit"]).stdout);
    assert!(audit.contains("order for the certificate of shop failed") && audit.contains("account at https://127.0.0.1"), "{audit}");
}

#[test]
fn the_next_leader_goes_on_with_an_order() {
    let dir = tempfile::tempdir().unwrap();
    let names = [("www.shop.example", "shop.cdn.test")];
    let plan = Plan { controls: 3, ..Plan::default() };
    // The authority takes its time before it looks.
    let mut a = automatic(dir.path(), plan, "", &names, &[("PEBBLE_VA_SLEEPTIME", "5"), ("PEBBLE_WFE_NONCEREJECT", "0")]);
    a.apply("\"www.shop.example\"");
    wait_for("the authority to look", || {
        let all = a.network.json(&["cert", "show", "shop"]);
        let order = all["orders"].as_array()?.first()?.clone();
        (order["step"] == "validating" && !order["challenges"].as_array()?.is_empty()).then_some(())
    });
    let leader = a.network.json(&["status"])["leader"].as_str().unwrap().to_owned();
    a.network.node(&leader).kill();
    a.trusted(0, "www.shop.example");
    let orders = a.pebble.process.logged();
    assert!(orders.contains("There are now 1 orders") && !orders.contains("There are now 2 orders"), "{orders}");
    // Nothing is left of it.
    wait_for("the end of the order", || {
        let all = a.network.json(&["cert", "show", "shop"]);
        all["orders"].as_array()?.is_empty().then_some(())
    });
}

#[test]
fn short_lived_certificates_are_renewed_under_load_and_no_handshake_fails() {
    let dir = tempfile::tempdir().unwrap();
    let names = [("www.shop.example", "shop.cdn.test")];
    let plan = Plan { edges: 2, ..Plan::default() };
    // A third of its life left is 8 s.
    let a = automatic_with(dir.path(), plan, "", &names, ", \"certificateValidityPeriod\": 24", &[("PEBBLE_VA_NOSLEEP", "1")]);
    a.apply("\"www.shop.example\"");
    a.trusted(0, "www.shop.example");
    a.trusted(1, "www.shop.example");
    let (config, is_over, network) = (Trusting::authority(&a.root), AtomicBool::new(false), &a.network);
    let load = |edge: usize| {
        let (mut done, mut failed) = (0, Vec::new());
        while !is_over.load(Ordering::Relaxed) {
            match Https::to(network.edges()[edge], "www.shop.example", &config) {
                Ok(mut connection) => assert_eq!(connection.get("/page").unwrap().1, "a page of the shop\n"),
                Err(e) => failed.push(e.to_string()),
            }
            done += 1;
            std::thread::sleep(Duration::from_millis(5));
        }
        (done, failed)
    };
    std::thread::scope(|scope| {
        let loads = [0, 1].map(|edge| scope.spawn(move || load(edge)));
        let mut seen = vec![a.certificate()["fingerprint"].clone()];
        let renewed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            wait_for("two renewals", || {
                let now = a.certificate()["fingerprint"].clone();
                if seen.last() != Some(&now) {
                    seen.push(now);
                }
                std::thread::sleep(Duration::from_millis(200));
                (seen.len() == 3).then_some(())
            });
        }));
        is_over.store(true, Ordering::Relaxed);
        for load in loads {
            let (done, failed) = load.join().unwrap();
            println!("{done} handshakes, {} failed", failed.len());
            assert!(done > 500 && failed.is_empty(), "{done} handshakes: {failed:?}");
        }
        assert!(renewed.is_ok(), "{seen:?}: {}", text(&a.network.tidegate(&["cert", "list"]).stdout));
    });
}

#[test]
fn why_nothing_comes_is_said_and_a_second_kind_of_proof_is_tried() {
    let dir = tempfile::tempdir().unwrap();
    let (place, port) = (Place::new(dir.path()), free_port());
    let more = format!("zone = \"cdn.test\"\nname_servers = [\"127.0.0.1:{port}\"]\n{}", place.settings(""));
    let network = Network::planned(dir.path(), Plan { dns: 1, as_advertised: true, control_more: &more, ..Plan::default() });
    let dns = network.nodes.iter().find(|n| n.role == "dns").unwrap().port;
    let (nginx, https) = (origin(dir.path()), network.edges()[0].https);
    let resolver = resolver(dir.path(), port, dns, &cnames(&[("www.shop.example", "shop.cdn.test")]));
    // Port 80 does not get through to the edges, wherever it is asked.
    let pebble = place.start(port, free_port(), https, "", &[("PEBBLE_VA_NOSLEEP", "1")]);
    let root = pebble.root().display().to_string();
    let a = Automatic { network, nginx, pebble, _resolver: resolver, root };
    a.apply("\"www.shop.example\"");
    let order = wait_for("the failure", || {
        let all = a.network.json(&["cert", "show", "shop"]);
        all["orders"].as_array()?.iter().find(|o| o["step"] == "failed").cloned()
    });
    let problem = order["problem"].as_str().unwrap();
    assert!(problem.contains("www.shop.example by Http01") && problem.contains("connection refused"), "{problem}");
    assert!(order["next_try"].as_u64().unwrap() >= order["began"].as_u64().unwrap() + 60_000, "{order}");
    assert!(a.network.node_logged("control-1").contains("an order for a certificate failed"));
    // Nobody has to wait for that minute; and what failed is not tried in the same way again.
    let out = a.network.tidegate(&["cert", "issue", "shop", "--watch"]);
    assert!(out.status.success(), "{}{}", text(&out.stdout), error_of(&out));
    assert!(
        error_of(&out).contains("tls-alpn-01 for www.shop.example") || a.pebble.process.logged().contains("set VALID"),
        "{}",
        error_of(&out)
    );
    a.trusted(0, "www.shop.example");
    for (arguments, says) in [
        (&["cert", "issue", "nothing"][..], "there is no site nothing"),
        (&["cert", "show", "nothing"], "there is no certificate nothing"),
        (&["cert", "remove", "shop"], "no certificate was uploaded as shop"),
    ] {
        let out = a.network.tidegate(arguments);
        assert!(error_of(&out).contains(says), "{arguments:?}: {}", error_of(&out));
    }
    apply(&a.network, "plain", "\"plain.example\"", &a.nginx.url(), "internal").unwrap();
    let out = a.network.tidegate(&["cert", "issue", "plain"]);
    assert!(out.status.code() == Some(1) && error_of(&out).contains("has another certificate"), "{}", error_of(&out));
}

#[test]
fn a_host_that_cannot_be_proven_does_not_keep_the_others_waiting() {
    let dir = tempfile::tempdir().unwrap();
    let (place, port) = (Place::new(dir.path()), free_port());
    let network = Network::planned(dir.path(), Plan { control_more: &place.settings(""), ..Plan::default() });
    let (nginx, edge) = (origin(dir.path()), network.edges()[0]);
    let leads = |host: &str| format!(" local-data: \"{host} A 127.0.0.1\"\n");
    // Of two hosts that an admin vouches for nothing is known in DNS.
    let known = leads("www.shop.example");
    let resolver_before = resolver(dir.path(), port, 1, &known);
    let pebble = place.start(port, edge.port, edge.https, "", &[("PEBBLE_VA_NOSLEEP", "1"), ("PEBBLE_AUTHZREUSE", "0")]);
    let root = pebble.root().display().to_string();
    let a = Automatic { network, nginx, pebble, _resolver: resolver_before, root };
    a.apply("\"gone.shop.example\", \"www.shop.example\", \"soon.shop.example\"");
    a.trusted(0, "www.shop.example");
    let order = wait_for("word of the others", || {
        let all = a.network.json(&["cert", "show", "shop"]);
        assert_eq!(all["certificates"][0]["hosts"], serde_json::json!(["www.shop.example"]), "{all}");
        all["orders"].as_array()?.iter().find(|o| o["step"] == "failed").cloned()
    });
    assert_eq!(order["left_out"].as_array().map(Vec::len), Some(2), "{order}");
    let problem = order["problem"].as_str().unwrap();
    assert!(problem.contains("gone.shop.example by Http01") && problem.contains("soon.shop.example by Http01"), "{problem}");
    // They are tried again; nothing is asked for the one that has a certificate, as long as that is all there is to get.
    let out = a.network.tidegate(&["cert", "issue", "shop", "--watch"]);
    assert!(!out.status.success() && error_of(&out).contains("gone.shop.example"), "{}{}", text(&out.stdout), error_of(&out));
    let made = |a: &Automatic| a.network.node_logged("control-1").matches("a certificate was made").count();
    assert_eq!(made(&a), 1);
    let resolved = |a: Automatic, known: &str| {
        let Automatic { network, nginx, pebble, _resolver, root } = a;
        drop(_resolver);
        Automatic { network, nginx, pebble, _resolver: resolver(dir.path(), port, 1, known), root }
    };
    // One is put right.
    let a = resolved(a, &(known.clone() + &leads("soon.shop.example")));
    a.network.tidegate(&["cert", "issue", "shop", "--watch"]);
    a.trusted(0, "soon.shop.example");
    a.trusted(0, "www.shop.example");
    assert_eq!(made(&a), 2);
    // A certificate that is good for a host for long is not given up since that host cannot be proven today.
    let a = resolved(a, &known);
    let out = a.network.tidegate(&["cert", "renew", "shop", "--watch"]);
    assert!(!out.status.success() && error_of(&out).contains("shop.example by"), "{}{}", text(&out.stdout), error_of(&out));
    a.trusted(0, "soon.shop.example");
    assert_eq!(made(&a), 2);
}

#[test]
fn an_origin_gets_certificates_of_its_own_through_the_network() {
    let dir = tempfile::tempdir().unwrap();
    let network = Network::planned(dir.path(), Plan { edges: 2, ..Plan::default() });
    let nginx = origin(dir.path());
    // Everything else is sent to https.
    apply(&network, "own", "\"www.own.example\"", &nginx.url(), "internal").unwrap();
    let (place, port) = (Place::new(dir.path()), free_port());
    let leads = " local-data: \"www.own.example. A 127.0.0.1\"\n";
    let _resolver = resolver(dir.path(), port, 1, leads);
    let edge = network.edges()[1];
    let pebble = place.start(port, edge.port, edge.https, "", &[("PEBBLE_VA_NOSLEEP", "1")]);
    wait_for("the site", || {
        let mut http = Http::connect_on(None, edge.address()).ok()?;
        (http.ask("GET", "www.own.example", "/page", &[]).ok()?.status == 308).then_some(())
    });
    // Installed by tests/run.
    let python = Path::new(env!("CARGO_TARGET_TMPDIR")).join("ari");
    let at = |name: &str| dir.path().join(name).display().to_string();
    let mut certbot = Command::new(python.join("bin/certbot"));
    certbot.args(["certonly", "-n", "--agree-tos", "-m", "admin@own.example", "--webroot", "-w", &at("www"), "-d", "www.own.example"]);
    certbot.args(["--server", &pebble.directory, "--config-dir", &at("certbot"), "--work-dir", &at("work"), "--logs-dir", &at("logs")]);
    let done = certbot.env("PYTHONPATH", &python).env("REQUESTS_CA_BUNDLE", &pebble.ca).output().unwrap();
    assert!(done.status.success(), "{}{}\n{}", text(&done.stdout), text(&done.stderr), pebble.process.logged());
    let (chain, leaf) = (at("certbot/live/www.own.example/chain.pem"), at("certbot/live/www.own.example/cert.pem"));
    let root = pebble.root().display().to_string();
    assert!(
        run("openssl", &["verify", "-CAfile", &root, "-untrusted", &chain, "-verify_hostname", "www.own.example", &leaf]).contains(": OK")
    );
    assert!(nginx.asked().keys().any(|path| path.contains("/.well-known/acme-challenge/")), "the origin answered");
}

#[test]
fn what_ends_soon_is_said_in_the_log() {
    let dir = tempfile::tempdir().unwrap();
    let mut network = Network::planned(dir.path(), Plan { edges: 0, ..Plan::default() });
    let authority = Authority::new(dir.path());
    let (chain, key) = authority.make("shop", "DNS:www.shop.example", &EC, "20");
    assert!(network.tidegate(&["cert", "upload", "shop", "--chain", &chain, "--key", &key]).status.success());
    network.node("control-1").kill();
    assert!(!network.node_logged("control-1").contains("ends soon"));
    network.node("control-1").start_later(18 * 86_400);
    wait_for("the warning", || {
        let log = network.node_logged("control-1");
        log.lines().any(|l| l.contains("a certificate ends soon") && l.contains("shop/ecdsa") && l.contains("days=1")).then_some(())
    });
}

#[test]
fn the_authority_says_when_to_renew() {
    let dir = tempfile::tempdir().unwrap();
    // Certificates of 30 days, to be renewed within an hour from the middle of their life on; without a word it would be after 19 or 20.
    let mut ari = Ari::start(dir.path(), "renewalthreshold_pctg: 50\nrenewal_window_duration: 3600");
    let mut network = Network::planned(dir.path(), Plan { control_more: &ari.acme(), ..Plan::default() });
    let nginx = origin(dir.path());
    apply(&network, "shop", "\"www.shop.example\"", &nginx.url(), "auto").unwrap();
    let said = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        wait_for("the page", || page(&network, 0, "www.shop.example", &ari.root()).ok().filter(|p| p == "a page of the shop\n"))
    }));
    assert!(said.is_ok(), "{}\n{}", text(&network.tidegate(&["cert", "list"]).stdout), ari.process.logged());
    let certificate = |network: &Network| -> Value {
        let all = network.json(&["cert", "show", "shop"]);
        all["certificates"].as_array().unwrap().iter().find(|c| c["name"] == "acme/shop").cloned().unwrap_or(Value::Null)
    };
    let first = wait_for("what the authority says", || {
        let c = certificate(&network);
        let next = c["next"].as_str()?.to_owned();
        ["in 14 d", "in 15 d"].iter().any(|n| next.contains(n)).then_some(c)
    });
    // Another certificate is due at once now, as after a mistake of the authority's own; it is away when the next leader asks.
    ari.ends();
    network.node("control-1").kill();
    network.node("control-1").start();
    wait_for("word of its silence", || network.node_logged("control-1").contains("does not say when to renew").then_some(()));
    ari.comes_back("renewal_force: True");
    let renewed = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        wait_for("the renewal", || {
            let now = certificate(&network);
            (now["fingerprint"].is_string() && now["fingerprint"] != first["fingerprint"]).then_some(())
        })
    }));
    assert!(renewed.is_ok(), "{}\n{}\n{}", certificate(&network), network.node_logged("control-1"), ari.process.logged());
    // This authority does not know what an order replaces.
    assert!(
        network.node_logged("control-1").contains("takes no order in the place of a certificate"),
        "{}",
        network.node_logged("control-1")
    );
}
