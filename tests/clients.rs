//! Clients of every temper: slow, stalled, idle, and a thousand at once.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, clippy::cast_possible_truncation, clippy::print_stdout)] // A test fails by panicking.

mod support;

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Barrier, mpsc};
use std::time::Duration;
use support::network::{Network, Node, Plan};
use support::{Http, Nginx, text, wait_for};
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName, pem::PemObject};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

type H2Connection = h2::client::Connection<tokio_rustls::client::TlsStream<tokio::net::TcpStream>, bytes::Bytes>;

const SHORT: &str = "head_timeout = \"2s\"\nbody_timeout = \"3s\"\nidle_timeout = \"2s\"\ndrain = \"1s\"";
const LARGE: usize = 24 << 20;

/// An edge with short time limits in front of nginx with a large file.
fn short_limits(dir: &std::path::Path) -> (Network, Nginx) {
    limited(dir, SHORT)
}

fn limited(dir: &std::path::Path, limits: &'static str) -> (Network, Nginx) {
    let network = Network::planned(dir, Plan { limits, ..Plan::default() });
    let root = dir.join("www");
    std::fs::create_dir_all(&root).unwrap();
    std::fs::write(root.join("large.bin"), vec![7; LARGE]).unwrap();
    std::fs::write(root.join("small.txt"), "small").unwrap();
    let nginx = Nginx::start(&dir.join("nginx"), &root, "add_header Cache-Control max-age=3600;");
    network.site("s", "\"s.example\"", &nginx.url(), "");
    (network, nginx)
}

fn nobody_left(edge: &Node) {
    wait_for("the edge to have let go of the connection", || (edge.figure("tidegate_connections") == 0.0).then_some(()));
}

#[test]
fn a_client_that_keeps_the_edge_waiting_is_let_go() {
    let dir = tempfile::tempdir().unwrap();
    let (network, _nginx) = short_limits(dir.path());
    let edge = network.edges()[0];
    // Nothing at all, half a head, and a head that trickles: the time runs from its first byte.
    let mut silent = Http::connect(edge.address()).unwrap();
    assert!(silent.rest().is_empty());
    let mut half = Http::connect(edge.address()).unwrap();
    half.send(b"GET / HTTP/1.1\r\nHost: s.exa").unwrap();
    assert!(text(&half.rest()).starts_with("HTTP/1.1 408"));
    let mut trickle = TcpStream::connect(edge.address()).unwrap();
    trickle.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    let mut answer = Vec::new();
    wait_for("the trickling head to be refused", || {
        let _ = trickle.write_all(b"X");
        let mut buffer = [0; 512];
        if let Ok(n) = trickle.read(&mut buffer) {
            answer.extend_from_slice(&buffer[..n]);
        }
        text(&answer).starts_with("HTTP/1.1 4").then_some(())
    });
    // A kept connection without a next request.
    let mut idle = Http::connect(edge.address()).unwrap();
    assert_eq!(idle.ask("GET", "s.example", "/small.txt", &[]).unwrap().text(), "small");
    assert!(idle.rest().is_empty());
    // A body that stops.
    let mut body = Http::connect(edge.address()).unwrap();
    body.send(b"POST /small.txt HTTP/1.1\r\nHost: s.example\r\nContent-Length: 100\r\n\r\nabc").unwrap();
    let _ = body.rest();
    // A response that nobody takes.
    let mut stalled = Http::connect(edge.address()).unwrap();
    stalled.send(b"GET /large.bin HTTP/1.1\r\nHost: s.example\r\n\r\n").unwrap();
    drop((silent, half, trickle, idle, body));
    nobody_left(edge);
    // One that is read slowly, but read, gets all of it.
    let mut slow = Http::connect(edge.address()).unwrap();
    slow.send(b"GET /large.bin HTTP/1.1\r\nHost: s.example\r\nConnection: close\r\n\r\n").unwrap();
    let (mut read, mut buffer) = (0, vec![0; LARGE / 8]);
    for _ in 0..8 {
        std::thread::sleep(Duration::from_millis(250));
        slow.read_exact(&mut buffer);
        read += buffer.len();
    }
    assert!(read + slow.rest().len() > LARGE);
}

fn tls(ca: &std::path::Path, protocol: &[u8]) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(ca).unwrap()).unwrap();
    let mut config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![protocol.to_vec()];
    config
}

/// Windows of so many bytes for each stream.
const SMALL_WINDOW: u32 = 10_000;

async fn over_http2(edge: &Node, ca: &std::path::Path) -> (h2::client::SendRequest<bytes::Bytes>, H2Connection) {
    let tcp = tokio::net::TcpStream::connect(("127.0.0.1", edge.https)).await.unwrap();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(tls(ca, b"h2")));
    let tls = connector.connect(ServerName::try_from("s.example").unwrap(), tcp).await.unwrap();
    h2::client::Builder::new().initial_window_size(SMALL_WINDOW).handshake(tls).await.unwrap()
}

/// Speaks HTTP/2 to the edge over TLS, with a window that is never opened again.
fn stall_over_http2(edge: &Node, ca: &std::path::Path, done: &AtomicBool) -> u64 {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (mut sender, mut connection) = over_http2(edge, ca).await;
        let mut pings = connection.ping_pong().unwrap();
        let driven = tokio::spawn(connection);
        let request = http::Request::get("https://s.example/large.bin").body(()).unwrap();
        let (response, _) = sender.send_request(request, true).unwrap();
        let mut body = response.await.unwrap().into_body();
        let first = body.data().await.unwrap().unwrap().len() as u64;
        // Pings are answered all the while: the connection lives, the response does not move.
        while !driven.is_finished() && !done.load(Ordering::SeqCst) {
            let _ = pings.ping(h2::Ping::opaque()).await;
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        first
    })
}

/// Takes requests and answers none. Counts the connections that are open.
fn silent_origin() -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let open = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&open);
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let count = Arc::clone(&count);
            count.fetch_add(1, Ordering::SeqCst);
            std::thread::spawn(move || {
                while stream.read(&mut [0; 4096]).is_ok_and(|n| n > 0) {}
                count.fetch_sub(1, Ordering::SeqCst);
            });
        }
    });
    (url, open)
}

/// An origin that hangs is left alone once the clients have gone, but for a few fetches.
#[test]
fn clients_that_come_and_go_leave_few_fetches_behind() {
    for shields in [0, 1] {
        let dir = tempfile::tempdir().unwrap();
        let (url, open) = silent_origin();
        let network = Network::planned(dir.path(), Plan { shields, ..Plan::default() });
        network.site("s", "\"s.example\"", &url, "first_byte_timeout = \"300s\"\ntotal_timeout = \"300s\"");
        let edge = network.edges()[0];
        let clients: Vec<Http> = (0..200)
            .map(|n| {
                let mut client = Http::connect(edge.address()).unwrap();
                client.send(format!("GET /{n} HTTP/1.1\r\nHost: s.example\r\n\r\n").as_bytes()).unwrap();
                client
            })
            .collect();
        wait_for("the requests at the origin", || (open.load(Ordering::SeqCst) == 200).then_some(()));
        drop(clients);
        // Each node keeps some, and the edge's are waited for at the shield.
        let most = 64 * (1 + shields);
        wait_for("the others to be given up", || (open.load(Ordering::SeqCst) <= most).then_some(()));
    }
}

async fn over_http3(edge: &Node, ca: &std::path::Path, window: u32) -> quinn::Connection {
    let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(tls(ca, b"h3")).unwrap();
    let (mut settings, mut transport) = (quinn::ClientConfig::new(Arc::new(crypto)), quinn::TransportConfig::default());
    transport.stream_receive_window(window.into());
    settings.transport_config(Arc::new(transport));
    let endpoint = quinn::Endpoint::client(SocketAddr::from(([127, 0, 0, 1], 0))).unwrap();
    let address = SocketAddr::from(([127, 0, 0, 1], edge.https));
    endpoint.connect_with(settings, address, "s.example").unwrap().await.unwrap()
}

fn request(path: &str) -> http::Request<()> {
    http::Request::get(format!("https://s.example{path}")).body(()).unwrap()
}

/// Whatever else goes on, no response waits without end for a client that does not take it.
#[test]
fn a_response_that_nobody_takes_ends_beside_others_that_are_taken() {
    let dir = tempfile::tempdir().unwrap();
    let (network, _nginx) = limited(dir.path(), "body_timeout = \"1s\"");
    let edge = network.edges()[0];
    let pause = || tokio::time::sleep(Duration::from_millis(100));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let (mut sender, connection) = over_http2(edge, &network.ca).await;
        let driven = tokio::spawn(connection);
        let (stalled, _) = sender.send_request(request("/large.bin"), true).unwrap();
        let mut stalled = stalled.await.unwrap().into_body();
        let ended = tokio::spawn(async move { while stalled.data().await.unwrap().is_ok() {} });
        // The stalled response is reset after twenty times `body_timeout` at most.
        let mut asked = 0;
        while !ended.is_finished() {
            asked += 1;
            assert!(asked < 400, "it waits without end");
            let (small, _) = sender.send_request(request("/small.txt"), true).unwrap();
            assert_eq!(small.await.unwrap().status(), 200);
            pause().await;
        }
        ended.await.unwrap();
        assert!(!driven.is_finished());
    });
    runtime.block_on(async {
        let connection = over_http3(edge, &network.ca, SMALL_WINDOW).await;
        let (mut driver, mut sender) = h3::client::new(h3_quinn::Connection::new(connection.clone())).await.unwrap();
        let driven = tokio::spawn(async move { std::future::poll_fn(|cx| driver.poll_close(cx)).await });
        // Over QUIC the window opens as a stream is read, and this one is not read.
        let mut stalled = sender.send_request(request("/large.bin")).await.unwrap();
        stalled.finish().await.unwrap();
        assert_eq!(stalled.recv_response().await.unwrap().status(), 200);
        let reset = || stalled_streams(&connection);
        let mut asked = 0;
        while reset() == 0 {
            asked += 1;
            assert!(asked < 400, "it waits without end");
            let mut small = sender.send_request(request("/small.txt")).await.unwrap();
            small.finish().await.unwrap();
            assert_eq!(small.recv_response().await.unwrap().status(), 200);
            while small.recv_data().await.unwrap().is_some() {}
            pause().await;
        }
        assert!(!driven.is_finished());
    });
}

/// Each of many large responses comes on while the others do, and all come whole.
#[test]
fn large_responses_share_a_connection_of_http3() {
    const RESPONSES: usize = 6;
    let dir = tempfile::tempdir().unwrap();
    let (network, _nginx) = limited(dir.path(), "body_timeout = \"1s\"");
    let edge = network.edges()[0];
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let connection = over_http3(edge, &network.ca, 8 << 20).await;
        let (mut driver, mut sender) = h3::client::new(h3_quinn::Connection::new(connection)).await.unwrap();
        tokio::spawn(async move { std::future::poll_fn(|cx| driver.poll_close(cx)).await });
        let come: Arc<[AtomicUsize; RESPONSES]> = Arc::default();
        let mut reading = tokio::task::JoinSet::new();
        for n in 0..RESPONSES {
            let (mut stream, come) = (sender.send_request(request("/large.bin")).await.unwrap(), Arc::clone(&come));
            reading.spawn(async move {
                stream.finish().await.unwrap();
                assert_eq!(stream.recv_response().await.unwrap().status(), 200);
                while let Some(data) = stream.recv_data().await.unwrap() {
                    come[n].fetch_add(bytes::Buf::remaining(&data), Ordering::SeqCst);
                }
                come.iter().map(|c| c.load(Ordering::SeqCst)).collect::<Vec<_>>()
            });
        }
        let when_the_first_was_whole = reading.join_next().await.unwrap().unwrap();
        println!("{when_the_first_was_whole:?}");
        assert!(when_the_first_was_whole.iter().all(|come| *come > LARGE / 4), "{when_the_first_was_whole:?}");
        while let Some(ended) = reading.join_next().await {
            ended.unwrap();
        }
        assert!(come.iter().all(|c| c.load(Ordering::SeqCst) == LARGE));
    });
}

/// Number of streams that the edge has reset.
fn stalled_streams(connection: &quinn::Connection) -> u64 {
    connection.stats().frame_rx.reset_stream
}

#[test]
fn an_http2_client_that_takes_nothing_is_let_go_though_it_answers_pings() {
    let dir = tempfile::tempdir().unwrap();
    let (network, _nginx) = short_limits(dir.path());
    let edge = network.edges()[0];
    let done = AtomicBool::new(false);
    /// Ends the client, also where the test fails.
    struct Done<'a>(&'a AtomicBool);
    impl Drop for Done<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::SeqCst);
        }
    }
    std::thread::scope(|scope| {
        let end = Done(&done);
        let stalled = scope.spawn(|| stall_over_http2(edge, &network.ca, &done));
        wait_for("the stalled client's connection", || (edge.figure("tidegate_connections") == 1.0 || stalled.is_finished()).then_some(()));
        nobody_left(edge);
        drop(end);
        let first = stalled.join().unwrap();
        assert!(first > 0 && first <= 10_000);
    });
}

/// An origin that sends half of its answer, and the rest once it is told to.
fn half_origin(half: Vec<u8>, rest: Vec<u8>) -> (String, Arc<AtomicUsize>, mpsc::Sender<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let asked = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&asked);
    let (go, may_go) = mpsc::channel::<()>();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            support::request_head(&mut stream);
            count.fetch_add(1, Ordering::SeqCst);
            let length = half.len() + rest.len();
            let head = format!("HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n");
            let _ = stream.write_all(head.as_bytes());
            let _ = stream.write_all(&half);
            let _ = may_go.recv();
            let _ = stream.write_all(&rest);
        }
    });
    (url, asked, go)
}

#[test]
fn a_thousand_clients_of_one_cold_object_are_one_request_to_the_origin() {
    const CLIENTS: usize = 1000;
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let raised = rustix::process::Rlimit { current: limit.maximum, maximum: limit.maximum };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, raised).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let network = Network::planned(dir.path(), Plan { shields: 1, edges: 2, ..Plan::default() });
    let (half, rest) = (vec![b'a'; 100_000], vec![b'b'; 400_000]);
    let (origin, asked, go) = half_origin(half.clone(), rest.clone());
    network.site("s", "\"s.example\"", &origin, "");
    let addresses: Vec<SocketAddr> = network.edges().iter().map(|e| e.address()).collect();
    let whole = [half.clone(), rest].concat();
    let (begun, first) = (Arc::new(Barrier::new(CLIENTS)), Arc::new(AtomicUsize::new(0)));
    let clients: Vec<_> = (0..CLIENTS)
        .map(|n| {
            let (address, begun, first, wanted) = (addresses[n % addresses.len()], Arc::clone(&begun), Arc::clone(&first), half.len());
            let ask = move || {
                let mut http = Http::connect(address).unwrap();
                begun.wait();
                http.send(b"GET /cold.bin HTTP/1.1\r\nHost: s.example\r\nConnection: close\r\n\r\n").unwrap();
                let (status, mut body) = (http.read_head().unwrap().status, vec![0; wanted]);
                http.read_exact(&mut body);
                // The first half is here, and the origin holds the other back.
                first.fetch_add(1, Ordering::SeqCst);
                body.extend(http.rest());
                (status, body)
            };
            std::thread::Builder::new().stack_size(128 << 10).spawn(ask).unwrap()
        })
        .collect();
    wait_for("the first bytes at every client", || (first.load(Ordering::SeqCst) == CLIENTS).then_some(()));
    go.send(()).unwrap();
    for client in clients {
        let (status, body) = client.join().unwrap();
        assert!(status == 200 && body == whole, "{status}, {} bytes", body.len());
    }
    assert_eq!(asked.load(Ordering::SeqCst), 1);
}
