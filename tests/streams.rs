//! What streams both ways: gRPC, and WebSocket over HTTP/1.1, HTTP/2 and HTTP/3, with peers that nobody here wrote.

#![allow(clippy::unwrap_used, clippy::disallowed_methods)] // A test fails by panicking.

mod support;

use bytes::Bytes;
use serde_json::{Value, json};
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use support::h3::{Aioquic, PYTHON_PATH};
use support::{Dev, Http, loopback, text, wait_for};
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, pem::PemObject};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

fn python(script: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new("python3");
    command.arg(format!("{}/tests/support/{script}", env!("CARGO_MANIFEST_DIR"))).args(arguments);
    command.env("PYTHONPATH", PYTHON_PATH).env("PYTHONDONTWRITEBYTECODE", "1").stdin(Stdio::null());
    command
}

/// A server that prints its port; it ends with this value.
struct Peer(Child, u16);

impl Peer {
    fn start(script: &str, arguments: &[&str]) -> Self {
        let mut child = python(script, arguments).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        Self(child, line.trim().parse().unwrap())
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn https(dev: &Dev) -> SocketAddr {
    loopback(dev.https[0].trim_end_matches('/').rsplit(':').next().unwrap().parse().unwrap())
}

/// The site `dev` again, in front of `origin`.
fn apply(dev: &Dev, dir: &Path, origin: &str) {
    let file = dir.join("site.toml");
    let site = format!(
        "name = \"streams\"\nhosts = [\"streams.example\"]\n[origin]\nservers = [{{ url = \"{origin}\" }}]\nallow_private = true\n\
         tls = {{ verify = false }}\n[tls]\ncertificate = \"internal\"\nredirect = false\n"
    );
    std::fs::write(&file, site).unwrap();
    let out = dev.tidegate(&["site", "apply", "--vouch", file.to_str().unwrap()]);
    assert!(out.status.success(), "{}", support::error_of(&out));
    let explained = || text(&dev.tidegate(&["explain", "https://streams.example/"]).stdout);
    wait_for("all to know the site", || (!explained().contains("does not know")).then_some(()));
}

#[test]
fn grpc_passes_through_in_full_duplex() {
    for shields in ["0", "1"] {
        let dir = tempfile::tempdir().unwrap();
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let (certificate, key) = (dir.path().join("origin.pem"), dir.path().join("origin.key"));
        std::fs::write(&certificate, made.cert.pem()).unwrap();
        std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
        let server = Peer::start("grpc_peers.py", &["serve", key.to_str().unwrap(), certificate.to_str().unwrap()]);
        let dev = Dev::start(dir.path(), &["--shields", shields]);
        apply(&dev, dir.path(), &format!("https://localhost:{}", server.1));
        let out =
            python("grpc_peers.py", &["ask", &https(&dev).to_string(), "streams.example", dev.ca.to_str().unwrap()]).output().unwrap();
        let said: Value = serde_json::from_slice(&out.stdout).unwrap_or_else(|_| panic!("{}", text(&out.stderr)));
        let expected = json!({
            "unary": true, "trailer": "500000", "refused": ["FAILED_PRECONDITION", "not like this"], "unknown": "UNIMPLEMENTED",
            "heard": ["heard 0", "heard 1", "heard 2", "heard 3", "heard 4"], "counted": 2_000_290,
        });
        assert_eq!(said, expected, "over {shields} shields");
    }
}

/// A text frame of a client, whose mask is nothing; and one of a server.
fn frame(from_client: bool, message: &str) -> Vec<u8> {
    let length = u8::try_from(message.len()).unwrap();
    let head: &[u8] = if from_client { &[0x81, 0x80 | length, 0, 0, 0, 0] } else { &[0x81, length] };
    [head, message.as_bytes()].concat()
}

async fn over_http2(dev: &Dev, protocol: &'static str, said: &[&str]) -> (u16, Vec<u8>) {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(&dev.ca).unwrap()).unwrap();
    let mut config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let tcp = tokio::net::TcpStream::connect(https(dev)).await.unwrap();
    let tls = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(ServerName::try_from("localhost").unwrap(), tcp).await.unwrap();
    let (mut sender, connection) = h2::client::handshake(tls).await.unwrap();
    let driven = tokio::spawn(connection);
    while !sender.is_extended_connect_protocol_enabled() {
        assert!(!driven.is_finished());
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    sender = sender.ready().await.unwrap();
    let mut request = http::Request::builder().method("CONNECT").uri("https://localhost/ws").body(()).unwrap();
    request.extensions_mut().insert(h2::ext::Protocol::from_static(protocol));
    let (response, mut to) = sender.send_request(request, false).unwrap();
    let response = response.await.unwrap();
    let (status, mut from) = (response.status().as_u16(), response.into_body());
    let mut got = Vec::new();
    if status == 200 {
        for message in said {
            to.send_data(Bytes::from(frame(true, message)), false).unwrap();
            let answer = from.data().await.unwrap().unwrap();
            from.flow_control().release_capacity(answer.len()).unwrap();
            got.extend_from_slice(&answer);
        }
        to.send_data(Bytes::new(), true).unwrap();
    }
    (status, got)
}

#[test]
fn websocket_passes_through_over_every_version_of_http() {
    let dir = tempfile::tempdir().unwrap();
    let server = Peer::start("websocket_origin.py", &[]);
    let dev = Dev::start(dir.path(), &["--origin", &format!("http://127.0.0.1:{}", server.1), "--shields", "1"]);
    let both: Vec<u8> = [frame(false, "HELLO"), frame(false, "AGAIN")].concat();

    let mut http = Http::connect(dev.http[0]).unwrap();
    let fields = [
        ("Connection", "Upgrade"),
        ("Upgrade", "websocket"),
        ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ];
    let granted = http.ask("GET", "localhost", "/ws", &fields).unwrap();
    assert_eq!((granted.status, granted.header("sec-websocket-accept")), (101, Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo=")));
    let mut got = vec![0; both.len()];
    http.send(&frame(true, "hello")).unwrap();
    http.send(&frame(true, "again")).unwrap();
    http.read_exact(&mut got);
    assert_eq!(got, both);
    let connections = || {
        let metrics = support::get(dev.admin, "localhost", "/metrics").text();
        let line = metrics.lines().find(|l| l.starts_with("tidegate_connections")).unwrap().to_owned();
        line.rsplit(' ').next().unwrap().to_owned()
    };
    wait_for("a tunnel to be the open connection", || (connections() == "1").then_some(()));
    drop(http);
    wait_for("the tunnel to have ended", || (connections() == "0").then_some(()));

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    assert_eq!(runtime.block_on(over_http2(&dev, "websocket", &["hello", "again"])), (200, both.clone()));
    assert_eq!(runtime.block_on(over_http2(&dev, "connect-ip", &[])).0, 501);

    let hex = |message: &str| frame(true, message).iter().map(|b| format!("{b:02x}")).collect::<String>();
    let say = json!([hex("hello"), hex("again")]);
    let runs = Aioquic::of(https(&dev), &dev.ca, "localhost").run(&json!([{ "do": "websocket", "path": "/ws", "say": say }]));
    let answer = &runs[0]["answers"][0];
    assert_eq!(answer["status"], 200, "{answer}");
    let came: Vec<u8> = answer["text"].as_str().unwrap().chars().map(|c| u8::try_from(u32::from(c)).unwrap()).collect();
    assert!(came.starts_with(&both), "{answer}");
    // An origin that does not know the protocol has not granted it, whatever it says.
    let sample = tempfile::tempdir().unwrap();
    let plain = Dev::start(sample.path(), &[]);
    let runs =
        Aioquic::of(https(&plain), &plain.ca, "localhost").ask(&json!([{ "method": "CONNECT", "protocol": "websocket", "path": "/" }]));
    assert_eq!(runs[0]["status"], 502, "{}", runs[0]);
    assert!(runs[0]["text"].as_str().unwrap().contains("did not accept this WebSocket"), "{}", runs[0]);
    // What is no tunnel is answered as ever.
    let runs =
        Aioquic::of(https(&dev), &dev.ca, "localhost").ask(&json!([{ "method": "CONNECT", "protocol": "connect-udp", "path": "/" }]));
    assert_eq!(runs[0]["status"], 501, "{}", runs[0]);
}

#[test]
fn a_page_in_chromium_speaks_websocket_over_http2() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("access.log");
    let server = Peer::start("websocket_origin.py", &[]);
    let origin = format!("http://127.0.0.1:{}", server.1);
    let dev = Dev::start(dir.path(), &["--origin", &origin, "--access-log", log.to_str().unwrap()]);
    let out = Command::new("chromium")
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"])
        .args(["--disable-component-update", "--disable-sync", "--ignore-certificate-errors", "--dump-dom"])
        .arg(format!("--user-data-dir={}", dir.path().join("chromium").display()))
        .arg(format!("{}/", dev.https[0].trim_end_matches('/')))
        .output()
        .unwrap();
    let page = text(&out.stdout);
    assert!(page.contains("HELLO FROM A PAGE"), "{page}\n{}", text(&out.stderr));
    wait_for("the access log", || {
        let lines = std::fs::read_to_string(&log).ok()?;
        let mut all = lines.lines().filter_map(|l| serde_json::from_str::<Value>(l).ok());
        all.find(|l| l["target"] == "/ws" && l["protocol"] == "h2")
    });
}
