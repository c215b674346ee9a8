//! Content codings with the real binary: made once, right to the byte for clients that nobody here wrote, and purged with what they
//! were made of.

#![allow(clippy::unwrap_used, clippy::panic, clippy::disallowed_methods)] // A test fails by panicking.

mod support;

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use support::network::{Network, Plan};
use support::{Http, Nginx, Response, get, get_with, wait_for};

const HOST: &str = "shop.example";
const CODINGS: [&str; 3] = ["br", "zstd", "gzip"];

/// Text of so many bytes that differs by `version`.
fn page(length: usize, version: usize) -> Vec<u8> {
    let line = |n: usize| format!("line {n} of version {version}: {:x}\n", n.wrapping_mul(2_654_435_761) % 97);
    (0..).flat_map(|n| line(n).into_bytes()).take(length).collect()
}

fn write(root: &Path, name: &str, length: usize, version: usize) -> Vec<u8> {
    let content = page(length, version);
    std::fs::write(root.join(name), &content).unwrap();
    content
}

/// As curl decodes it.
fn decoded(edge: SocketAddr, path: &str, coding: &str) -> Vec<u8> {
    let url = format!("http://{edge}{path}");
    let accept = format!("Accept-Encoding: {coding}");
    let out = Command::new("curl").args(["-sS", "--compressed", "-H", &format!("Host: {HOST}"), "-H", &accept, &url]).output().unwrap();
    assert!(out.status.success(), "{}", support::text(&out.stderr));
    out.stdout
}

fn ask(edge: SocketAddr, path: &str, accept: &str, more: &[(&str, &str)]) -> Response {
    get_with(edge, HOST, path, &[&[("Accept-Encoding", accept)], more].concat())
}

/// The coded answer, once it has been made.
fn coded(edge: SocketAddr, path: &str, coding: &str) -> Response {
    wait_for("the coding", || Some(ask(edge, path, coding, &[])).filter(|r| r.header("content-encoding") == Some(coding)))
}

struct World {
    network: Network,
    nginx: Nginx,
    root: std::path::PathBuf,
    _dir: tempfile::TempDir,
}

fn world(edge_more: &str, site_more: &str) -> World {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    std::fs::create_dir_all(&root).unwrap();
    let extra = "add_header Cache-Control max-age=1000; add_header Surrogate-Key all;
        location /fixed/ { add_header Cache-Control 'max-age=1000, no-transform'; }
        location = /said { default_type text/plain; add_header Cache-Control max-age=1000; return 200 \"$http_accept_encoding\"; }
        location = /posted { add_header Content-Location /posted; add_header Cache-Control max-age=1000; add_header Vary Accept-Encoding;
            return 200 \"$http_accept_encoding\"; }
        location = /said/private { add_header Cache-Control private; return 200 \"$http_accept_encoding\"; }
        location = /said/varied { add_header Cache-Control max-age=1000; add_header Vary accept-encoding; return 200 \"$http_accept_encoding\"; }";
    let nginx = Nginx::start(&dir.path().join("nginx"), &root, extra);
    let network = Network::planned(dir.path(), Plan { lease: "1s", shields: 1, edge_more, ..Plan::default() });
    network.site("shop", &format!("\"{HOST}\""), &nginx.url(), site_more);
    World { network, nginx, root, _dir: dir }
}

#[test]
fn a_body_is_coded_once_and_right_to_the_byte() {
    let w = world("", "");
    let edge = w.network.edges()[0].address();
    // One piece, several pieces, and one whose coded form has several pieces.
    let pages: Vec<_> =
        [2000, 300_000, 3_000_000].into_iter().map(|n| (format!("/{n}.txt"), write(&w.root, &format!("{n}.txt"), n, 1))).collect();
    for (path, content) in &pages {
        let plain = get(edge, HOST, path);
        assert_eq!((plain.status, plain.header("content-encoding"), plain.header("vary")), (200, None, Some("Accept-Encoding")));
        assert!(plain.body == *content);
        let etag = plain.header("etag").unwrap().to_owned();
        for coding in CODINGS {
            let answer = coded(edge, path, coding);
            assert!(answer.is_hit() && answer.body.len() < content.len() / 2, "{path} {coding}: {} bytes", answer.body.len());
            assert_eq!(answer.header("content-length"), Some(&*answer.body.len().to_string()));
            assert_eq!((answer.header("etag"), answer.header("vary")), (Some(&*format!("W/{etag}")), Some("Accept-Encoding")));
            assert!(decoded(edge, path, coding) == *content, "{path} {coding}");
            let again = ask(edge, path, coding, &[("If-None-Match", &format!("W/{etag}"))]);
            assert_eq!((again.status, again.body.len()), (304, 0));
            let head = Http::connect(edge).unwrap().ask("HEAD", HOST, path, &[("Accept-Encoding", coding)]).unwrap();
            assert_eq!((head.header("content-encoding"), head.header("content-length")), (Some(coding), answer.header("content-length")));
            // A part is one of the bytes as they came, by their own validator.
            let part = ask(edge, path, coding, &[("Range", "bytes=10-19"), ("If-Range", &etag)]);
            assert_eq!((part.status, part.header("content-encoding"), part.header("etag")), (206, None, Some(&*etag)));
            assert!(part.body == content[10..20]);
            let whole = ask(edge, path, coding, &[("Range", "bytes=10-19"), ("If-Range", &format!("W/{etag}"))]);
            assert!(whole.status == 200 && whole.body == *content, "a weak validator ties no part to what it has");
            let dated = ask(edge, path, coding, &[("Range", "bytes=10-19"), ("If-Range", plain.header("last-modified").unwrap())]);
            assert_eq!(dated.status, 200, "nor does a date, which both forms have");
        }
        for (accept, want) in
            [("gzip, deflate, br, zstd", "br"), ("gzip, br;q=0.5", "gzip"), ("zstd, *;q=0.1", "zstd"), ("identity", ""), ("br;q=0", "")]
        {
            assert_eq!(ask(edge, path, accept, &[]).header("content-encoding").unwrap_or_default(), want, "{accept}");
        }
    }
    assert_eq!(w.network.edges()[0].figure("tidegate_site_codings_total"), 9.0, "each page in each coding, once");
    for (line, times) in w.nginx.asked() {
        assert_eq!(times, 1, "{line}");
    }
}

#[test]
fn nothing_is_coded_that_should_not_be() {
    let w = world("", "");
    let edge = w.network.edges()[0].address();
    std::fs::create_dir_all(w.root.join("fixed")).unwrap();
    write(&w.root, "fixed/a.txt", 5000, 1);
    write(&w.root, "tiny.txt", 500, 1);
    write(&w.root, "photo.jpg", 5000, 1);
    write(&w.root, "last.txt", 5000, 1);
    // Nothing to gain.
    let noise: Vec<u8> = (0..5000u64).map(|n| (n.wrapping_mul(n).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect();
    std::fs::write(w.root.join("noise.txt"), noise).unwrap();
    for _ in 0..3 {
        for path in ["/fixed/a.txt", "/tiny.txt", "/photo.jpg", "/noise.txt"] {
            let answer = ask(edge, path, "br, gzip, zstd", &[]);
            assert_eq!((answer.status, answer.header("content-encoding")), (200, None), "{path}");
        }
        // What was begun before it has been decided when this is there.
        coded(edge, "/last.txt", "br");
    }
    for path in ["/fixed/a.txt", "/tiny.txt", "/photo.jpg"] {
        assert_eq!(get(edge, HOST, path).header("vary"), None, "{path}");
    }
}

#[test]
fn the_origin_is_asked_in_one_form() {
    let w = world("", "");
    let edge = w.network.edges()[0].address();
    for accept in ["gzip, deflate, br", "zstd;q=0.3", "x"] {
        assert_eq!(ask(edge, "/said", accept, &[]).text(), "identity");
        assert_eq!(ask(edge, "/said/varied", accept, &[]).text(), "identity");
    }
    assert_eq!(get(edge, HOST, "/said/varied").text(), "identity");
    assert_eq!(w.nginx.asked().values().sum::<usize>(), 2, "{:?}", w.nginx.asked());
    // A POST is asked for as its client accepts it; kept for GETs, its answer is one for such clients alone.
    let posted = Http::connect(edge).unwrap().ask("POST", HOST, "/posted", &[("Accept-Encoding", "br"), ("Content-Length", "0")]).unwrap();
    assert_eq!(posted.text(), "br");
    for accept in ["gzip", "br", "identity"] {
        assert_eq!(ask(edge, "/posted", accept, &[]).text(), "identity", "{accept}");
    }
    // Once a response is known not to be shared, the client's own codings are sent upstream.
    ask(edge, "/said/private", "gzip, br", &[]);
    assert_eq!(ask(edge, "/said/private", "gzip;q=0.5, x, br", &[]).text(), "gzip;q=0.5, x, br");

    // Where the site says so, the codings are the origin's own business, in few variants.
    w.network.site("shop", &format!("\"{HOST}\""), &w.nginx.url(), "[compression]\nenabled = false");
    w.nginx.forget();
    for accept in ["gzip, deflate, br", "br;q=0.5, GZIP", "x-gzip, br"] {
        assert_eq!(ask(edge, "/said/varied?off", accept, &[]).text(), "br, gzip");
    }
    write(&w.root, "off.txt", 5000, 1);
    for _ in 0..3 {
        assert_eq!(ask(edge, "/off.txt", "br", &[]).header("content-encoding"), None);
    }
    assert_eq!(w.nginx.asked().get("GET 200 /said/varied?off"), Some(&1), "{:?}", w.nginx.asked());
}

#[test]
fn a_coding_goes_with_what_it_was_made_of() {
    let w = world("disk = { path = \"{data}/cache\", size = \"64MiB\" }", "");
    let edge = w.network.edges()[0].address();
    for (n, purge) in
        [&["url", "http://shop.example/a.txt"][..], &["tag", "all", "--site", "shop"], &["site", "shop"]].into_iter().enumerate()
    {
        let content = write(&w.root, "a.txt", 400_000, n);
        for coding in CODINGS {
            coded(edge, "/a.txt", coding);
            assert!(decoded(edge, "/a.txt", coding) == content, "{coding}");
        }
        let new = write(&w.root, "a.txt", 400_000, n + 1);
        assert!(decoded(edge, "/a.txt", "br") == content, "it is cached");
        w.network.purge(purge);
        for coding in CODINGS {
            assert!(decoded(edge, "/a.txt", coding) == new, "{purge:?}, {coding}");
        }
    }
}

#[test]
fn a_restart_brings_codings_back_from_the_disk() {
    let mut w = world("disk = { path = \"{data}/cache\", size = \"64MiB\" }", "");
    let edge = w.network.edges()[0].address();
    let pages: Vec<_> = [4000, 900_000].into_iter().map(|n| (format!("/{n}.txt"), write(&w.root, &format!("{n}.txt"), n, 1))).collect();
    for (path, _) in &pages {
        coded(edge, path, "br");
        coded(edge, path, "gzip");
    }
    let edge = w.network.node("edge-1");
    edge.signal("TERM");
    assert_eq!(edge.process.as_mut().unwrap().ended(), 0);
    edge.start();
    let edge = edge.address();
    wait_for("the edge", || Http::connect(edge).ok());
    w.network.attached();
    // The index is read while the edge serves already; what is asked for before that comes from the origin, and is coded anew.
    wait_for("the disk tier's index", || (w.network.edges()[0].figure("tidegate_disk_records") > 0.0).then_some(()));
    for (path, content) in &pages {
        for coding in ["br", "gzip"] {
            let answer = wait_for("the disk", || Some(ask(edge, path, coding, &[])).filter(Response::is_hit));
            assert_eq!(answer.header("content-encoding"), Some(coding), "{path}");
            assert!(decoded(edge, path, coding) == *content);
        }
    }
    assert_eq!(w.network.edges()[0].figure("tidegate_site_codings_total"), 0.0, "none had to be made again");
}
