//! What comes before and after a response: interim responses, Early Hints above all, and trailers, over HTTP/1.1 and HTTP/2, over one
//! tier and over two.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, clippy::cast_possible_truncation)] // A test fails by panicking.

mod support;

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode};
use std::future::Future;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, Mutex, mpsc};
use std::task::Poll;
use std::time::Duration;
use support::{Dev, Http, get, request_head, text, wait_for};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, ServerConfig};

/// For two things that the edge must not hand on: a field of one hop, and one of the network's own.
const HINTS: &str = "HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload\r\nConnection: x-hop\r\n\
                     X-Hop: 1\r\nTidegate-Vouched: 1-1\r\n\r\n";
const PAGE: &str = "HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nContent-Length: 4\r\n\r\npage";

/// An origin that hints at once, and answers once the test says so.
struct Hinting {
    url: String,
    go: mpsc::Sender<()>,
}

impl Hinting {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (go, may_go) = mpsc::channel::<()>();
        let may_go = Arc::new(Mutex::new(may_go));
        std::thread::spawn(move || {
            for mut stream in listener.incoming().map_while(Result::ok) {
                let may_go = Arc::clone(&may_go);
                std::thread::spawn(move || {
                    loop {
                        let head = request_head(&mut stream);
                        if head.is_empty() {
                            return;
                        }
                        if head.contains("/plain") {
                            let _ = stream.write_all(PAGE.as_bytes());
                            continue;
                        }
                        let times = if head.contains("/flood") { 1_000 } else { 1 };
                        if stream.write_all(HINTS.repeat(times).as_bytes()).is_err() || may_go.lock().unwrap().recv().is_err() {
                            return;
                        }
                        let _ = stream.write_all(PAGE.as_bytes());
                    }
                });
            }
        });
        Self { url, go }
    }
}

fn on_runtime<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
}

type Sender = h2::client::SendRequest<Bytes>;

async fn connect_h2(dev: &Dev) -> Sender {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(&dev.ca).unwrap()).unwrap();
    let mut config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let address = dev.https[0].trim_start_matches("https://").trim_end_matches('/').replace("localhost", "127.0.0.1");
    let tcp = tokio::net::TcpStream::connect(address).await.unwrap();
    let tls = tokio_rustls::TlsConnector::from(Arc::new(config)).connect(ServerName::try_from("localhost").unwrap(), tcp).await.unwrap();
    let (sender, connection) = h2::client::handshake(tls).await.unwrap();
    tokio::spawn(connection);
    sender
}

struct Over2 {
    interim: Vec<(u16, HeaderMap)>,
    head: http::response::Parts,
    body: Vec<u8>,
    trailers: Option<HeaderMap>,
}

/// Sends a request, with a body and trailers where there are any; `at_first` is called at the first interim response.
async fn ask_h2(sender: &Sender, request: Request<()>, sent: Option<(Bytes, HeaderMap)>, at_first: impl Fn()) -> Over2 {
    let mut sender = sender.clone().ready().await.unwrap();
    let (mut response, mut body) = sender.send_request(request, sent.is_none()).unwrap();
    if let Some((data, trailers)) = sent {
        body.send_data(data, false).unwrap();
        body.send_trailers(trailers).unwrap();
    }
    let mut interim = Vec::new();
    let answered = std::future::poll_fn(|cx| {
        while let Poll::Ready(Some(early)) = response.poll_informational(cx) {
            let early = early.unwrap();
            if interim.is_empty() {
                at_first();
            }
            interim.push((early.status().as_u16(), early.headers().clone()));
        }
        Pin::new(&mut response).poll(cx)
    });
    let (head, mut from) = answered.await.unwrap().into_parts();
    let mut body = Vec::new();
    while let Some(data) = from.data().await {
        let data = data.unwrap();
        from.flow_control().release_capacity(data.len()).unwrap();
        body.extend_from_slice(&data);
    }
    Over2 { interim, head, body, trailers: from.trailers().await.unwrap() }
}

fn get_h2(path: &str) -> Request<()> {
    Request::get(format!("https://localhost{path}")).body(()).unwrap()
}

fn is_clean(fields: &HeaderMap) -> bool {
    ["x-hop", "connection", "tidegate-vouched"].iter().all(|n| !fields.contains_key(*n))
}

#[test]
fn early_hints_reach_the_client_ahead_of_its_response() {
    for shields in ["0", "1"] {
        let dir = tempfile::tempdir().unwrap();
        let origin = Hinting::start();
        let dev = Dev::start(dir.path(), &["--origin", &origin.url, "--shields", shields]);

        let mut client = Http::connect(dev.http[0]).unwrap();
        client.send(b"GET /one HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
        assert_eq!(client.read_head().unwrap().status, 102);
        let hint = client.read_head().unwrap();
        assert_eq!((hint.status, hint.header("link")), (103, Some("</style.css>; rel=preload")));
        assert!(["x-hop", "connection", "tidegate-vouched"].iter().all(|n| hint.header(n).is_none()), "{hint:?}");
        // Only now does the origin answer.
        origin.go.send(()).unwrap();
        let page = client.read("GET").unwrap();
        assert_eq!((page.status, page.text().as_str()), (200, "page"));
        // They are not stored, and are nothing to a connection's next requests.
        let again = client.ask("GET", "localhost", "/one", &[]).unwrap();
        assert!(again.status == 200 && again.is_hit(), "{again:?}");

        // HTTP/1.0 knows none.
        let mut old = Http::connect(dev.http[0]).unwrap();
        old.send(b"GET /old HTTP/1.0\r\nHost: localhost\r\n\r\n").unwrap();
        origin.go.send(()).unwrap();
        assert!(text(&old.rest()).starts_with("HTTP/1.0 200"));

        on_runtime(async {
            let sender = connect_h2(&dev).await;
            let go = || origin.go.send(()).unwrap();
            let page = ask_h2(&sender, get_h2("/two"), None, go).await;
            assert_eq!((page.head.status, &page.body[..]), (StatusCode::OK, &b"page"[..]));
            let statuses: Vec<_> = page.interim.iter().map(|(status, _)| *status).collect();
            assert_eq!(statuses, [102, 103]);
            let hint = &page.interim[1].1;
            assert!(hint["link"] == "</style.css>; rel=preload" && is_clean(hint), "{hint:?}");
            assert!(ask_h2(&sender, get_h2("/two"), None, go).await.interim.is_empty());
            // There is an end to what one client is sent ahead of its response.
            let flooded = ask_h2(&sender, get_h2("/flood"), None, go).await;
            assert!(flooded.interim.len() <= 16 && flooded.body == b"page", "{}", flooded.interim.len());
        });
    }
}

/// A client that waits for 100 gets it, over HTTP/2 as over HTTP/1.1, once the origin is there to take the body.
#[test]
fn a_client_that_waits_is_told_to_send_its_body() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || {
                while !request_head(&mut stream).is_empty() && stream.read_exact(&mut [0; 4]).is_ok() {
                    let _ = stream.write_all(PAGE.as_bytes());
                }
            });
        }
    });
    for shields in ["0", "1"] {
        let dir = tempfile::tempdir().unwrap();
        let dev = Dev::start(dir.path(), &["--origin", &url, "--shields", shields]);
        let mut client = Http::connect(dev.http[0]).unwrap();
        client.send(b"PUT /one HTTP/1.1\r\nHost: localhost\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n").unwrap();
        assert_eq!(client.read_head().unwrap().status, 100);
        client.send(b"body").unwrap();
        assert_eq!(client.read("PUT").unwrap().text(), "page");

        on_runtime(async {
            let mut sender = connect_h2(&dev).await.ready().await.unwrap();
            let request = Request::put("https://localhost/two").header("expect", "100-continue").header("content-length", "4");
            let (mut response, mut body) = sender.send_request(request.body(()).unwrap(), false).unwrap();
            let early = std::future::poll_fn(|cx| response.poll_informational(cx)).await.unwrap().unwrap();
            assert_eq!(early.status(), StatusCode::CONTINUE);
            body.send_data(Bytes::from_static(b"body"), true).unwrap();
            assert_eq!(response.await.unwrap().status(), StatusCode::OK);
        });
    }
}

#[test]
fn interim_responses_stand_between_responses_and_never_within() {
    let dir = tempfile::tempdir().unwrap();
    let origin = Hinting::start();
    let dev = Dev::start(dir.path(), &["--origin", &origin.url, "--shields", "0"]);
    assert_eq!(get(dev.http[0], "localhost", "/plain").status, 200);
    let mut client = Http::connect(dev.http[0]).unwrap();
    let ask = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
    client.send([ask("/plain"), ask("/hinted"), ask("/plain"), ask("/flood")].concat().as_bytes()).unwrap();
    assert!(client.read("GET").unwrap().is_hit());
    assert_eq!((client.read_head().unwrap().status, client.read_head().unwrap().status), (102, 103));
    origin.go.send(()).unwrap();
    assert_eq!(client.read("GET").unwrap().text(), "page");
    assert!(client.read("GET").unwrap().is_hit());
    let mut hints = 0;
    let page = loop {
        if hints == 2 {
            origin.go.send(()).unwrap();
        }
        let head = client.read_head().unwrap();
        if head.status == 200 {
            break head;
        }
        hints += 1;
    };
    assert!(hints <= 16 && page.header("content-length") == Some("4"), "{hints}");
}

/// An origin over HTTP/2 that hints.
fn hinting_h2(certificate: &Path, key: &Path) -> String {
    let mut config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![CertificateDer::from_pem_file(certificate).unwrap()], PrivateKeyDer::from_pem_file(key).unwrap())
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let url = format!("https://localhost:{}", listener.local_addr().unwrap().port());
    std::thread::spawn(move || {
        on_runtime(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
            while let Ok((tcp, _)) = listener.accept().await {
                let Ok(tls) = acceptor.accept(tcp).await else { continue };
                tokio::spawn(async move {
                    let mut connection = h2::server::handshake(tls).await.unwrap();
                    while let Some(Ok((_, mut respond))) = connection.accept().await {
                        let hint = http::Response::builder().status(103).header("link", "</style.css>; rel=preload").body(()).unwrap();
                        respond.send_informational(hint).unwrap();
                        let page = http::Response::builder().header("cache-control", "max-age=60").body(()).unwrap();
                        let mut body = respond.send_response(page, false).unwrap();
                        body.send_data(Bytes::from_static(b"page"), true).unwrap();
                    }
                });
            }
        });
    });
    url
}

#[test]
fn an_http2_origin_may_hint_too() {
    let dir = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let (certificate, key) = (dir.path().join("origin.pem"), dir.path().join("origin.key"));
    std::fs::write(&certificate, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let origin = hinting_h2(&certificate, &key);
    let dev = Dev::start(dir.path(), &["--origin", "http://127.0.0.1:9", "--shields", "1"]);
    let site = dir.path().join("site.toml");
    let file = format!(
        "name = \"hints\"\nhosts = [\"hints.example\"]\n[origin]\nservers = [{{ url = \"{origin}\" }}]\nallow_private = true\ntls = {{ verify = false }}\n\
         [tls]\ncertificate = \"internal\"\nredirect = false\n"
    );
    std::fs::write(&site, file).unwrap();
    let out = dev.tidegate(&["site", "apply", site.to_str().unwrap(), "--vouch"]);
    assert!(out.status.success(), "{}", support::error_of(&out));
    let explained = || support::text(&dev.tidegate(&["explain", "http://hints.example/"]).stdout);
    wait_for("both tiers to know the site", || (!explained().contains("does not know")).then_some(()));
    let mut client = Http::connect(dev.http[0]).unwrap();
    client.send(b"GET / HTTP/1.1\r\nHost: hints.example\r\n\r\n").unwrap();
    let hint = client.read_head().unwrap();
    assert_eq!((hint.status, hint.header("link")), (103, Some("</style.css>; rel=preload")));
    assert_eq!(client.read("GET").unwrap().text(), "page");
}

/// An origin that says in a trailer what it read, and in which trailers.
fn summing() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            std::thread::spawn(move || sum(stream));
        }
    });
    url
}

fn sum(mut stream: TcpStream) {
    let mut from = BufReader::new(stream.try_clone().unwrap());
    loop {
        let (mut head, mut line) = (String::new(), String::new());
        while from.read_line(&mut line).is_ok_and(|n| n > 2) {
            head += &line.to_ascii_lowercase();
            line.clear();
        }
        if head.is_empty() {
            return;
        }
        let (mut data, mut trailers) = (Vec::new(), String::new());
        while head.contains("transfer-encoding: chunked") {
            let mut size = String::new();
            from.read_line(&mut size).unwrap();
            let length = usize::from_str_radix(size.trim(), 16).unwrap();
            if length == 0 {
                let mut line = String::new();
                while from.read_line(&mut line).is_ok_and(|n| n > 2) {
                    trailers += &line.trim().to_ascii_lowercase();
                    line.clear();
                }
                break;
            }
            let mut chunk = vec![0; length + 2];
            from.read_exact(&mut chunk).unwrap();
            data.extend_from_slice(&chunk[..length]);
        }
        let asked = if head.contains("\r\nte: trailers") { "trailers" } else { "none" };
        let answer = format!(
            "HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum, X-Got, Content-Length\r\nX-Te: {asked}\r\n\r\n\
             3\r\nsum\r\n0\r\nX-Sum: {}\r\nX-Got: {trailers}\r\nContent-Length: 7\r\n\r\n",
            data.len()
        );
        if stream.write_all(answer.as_bytes()).is_err() {
            return;
        }
    }
}

#[test]
fn trailers_go_both_ways_with_what_is_not_shared() {
    for shields in ["0", "1"] {
        let dir = tempfile::tempdir().unwrap();
        let dev = Dev::start(dir.path(), &["--origin", &summing(), "--shields", shields]);
        let mut client = TcpStream::connect(dev.http[0]).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let post = "POST /a HTTP/1.1\r\nHost: localhost\r\nTE: trailers\r\nConnection: TE, close\r\nTransfer-Encoding: chunked\r\nTrailer: X-Mine\r\n\r\n\
                    5\r\nhello\r\n0\r\nX-Mine: here\r\n\r\n";
        client.write_all(post.as_bytes()).unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        let answer = answer.to_ascii_lowercase();
        let (head, rest) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.contains("x-te: trailers") && head.contains("trailer: x-sum"), "{head}");
        assert!(
            rest.starts_with("3\r\nsum\r\n0\r\n") && rest.contains("x-sum: 5\r\n") && rest.contains("x-got: x-mine: here\r\n"),
            "{rest}"
        );
        assert!(!rest.contains("content-length"), "{rest}");

        on_runtime(async {
            let sender = connect_h2(&dev).await;
            let mut sent = HeaderMap::new();
            sent.insert("x-mine", "there".parse().unwrap());
            let post = Request::post("https://localhost/b").header("te", "trailers").header("trailer", "x-mine").body(()).unwrap();
            let got = ask_h2(&sender, post, Some((Bytes::from_static(b"hello over h2"), sent)), || ()).await;
            let trailers = got.trailers.unwrap();
            assert_eq!((got.head.headers["x-te"].to_str().unwrap(), &got.body[..]), ("trailers", &b"sum"[..]));
            assert_eq!((trailers["x-sum"].to_str().unwrap(), trailers["x-got"].to_str().unwrap()), ("13", "x-mine: there"));
            assert!(!trailers.contains_key("content-length"));
            // With what is shared they are not kept, and none are announced.
            for _ in 0..2 {
                let shared = ask_h2(&sender, get_h2("/c"), None, || ()).await;
                assert!(shared.trailers.is_none() && !shared.head.headers.contains_key("trailer"), "{:?}", shared.head);
            }
        });
    }
}

/// No purge by URL could name them.
#[test]
fn bytes_that_no_uri_has_are_refused_over_every_version() {
    let dir = tempfile::tempdir().unwrap();
    let origin = Hinting::start();
    let dev = Dev::start(dir.path(), &["--origin", &origin.url, "--shields", "0"]);
    let refused = support::get(dev.http[0], "localhost", "/caf\u{e9}?q=\u{e9}");
    assert_eq!(refused.status, 400);
    on_runtime(async {
        let sender = connect_h2(&dev).await;
        for path in ["/caf\u{e9}", "/?q=\u{e9}"] {
            let refused = ask_h2(&sender, get_h2(path), None, || ()).await;
            assert_eq!(refused.head.status, 400, "{path}");
        }
    });
}
