//! An origin whose bodies name their page and version at every line, so that a wrong byte is seen.

use super::request_head;
use std::collections::HashMap;
use std::io::{BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

#[derive(Clone, Default)]
pub struct Origin {
    port: u16,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    /// Whole bodies.
    gave: AtomicUsize,
    versions: Mutex<HashMap<String, u64>>,
    slow: AtomicBool,
    /// Every so many answers break off in the middle; 0: none.
    breaks: AtomicUsize,
    known: Known,
}

/// Bodies that were asked for already, since making one takes longer than reading it.
#[derive(Default)]
pub struct Known(Mutex<Bodies>);

type Bodies = HashMap<(String, u64), Arc<Vec<u8>>>;

const MOST_KNOWN: usize = 256 << 20;

impl Known {
    pub fn body(&self, named: &str, version: u64) -> Arc<Vec<u8>> {
        let key = (named.to_owned(), version);
        if let Some(known) = self.0.lock().unwrap().get(&key) {
            return Arc::clone(known);
        }
        let made = Arc::new(body(named, version));
        let mut known = self.0.lock().unwrap();
        if known.len() >= 1_000 || known.values().map(|b| b.len()).sum::<usize>() > MOST_KNOWN {
            known.clear();
        }
        Arc::clone(known.entry(key).or_insert(made))
    }
}

/// `/size/...`: the body of a page in one version.
pub fn body(path: &str, version: u64) -> Vec<u8> {
    let size: usize = path.split('/').nth(1).and_then(|s| s.parse().ok()).unwrap_or(0);
    let mut out = Vec::with_capacity(size + 64);
    while out.len() < size {
        let at = out.len();
        writeln!(out, "{path} {version} {at}").unwrap();
    }
    out.truncate(size);
    out
}

/// The body of a page is one that the origin gave, whole; its version.
pub fn right(path: &str, got: &[u8], newest: u64) -> u64 {
    let found = (0..=newest).rev().find(|version| body(path, *version) == got);
    found.unwrap_or_else(|| panic!("{path}: {} bytes that the origin never gave", got.len()))
}

impl Origin {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let origin = Self { port: listener.local_addr().unwrap().port(), shared: Arc::default() };
        let shared = Arc::clone(&origin.shared);
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let shared = Arc::clone(&shared);
                std::thread::spawn(move || serve(stream, &shared));
            }
        });
        origin
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    pub fn gave(&self) -> usize {
        self.shared.gave.load(Ordering::Relaxed)
    }

    /// Bodies come in pieces from now on.
    pub fn be_slow(&self) {
        self.shared.slow.store(true, Ordering::Relaxed);
    }

    pub fn break_off_every(&self, answers: usize) {
        self.shared.breaks.store(answers, Ordering::Relaxed);
    }

    pub fn change(&self, path: &str) -> u64 {
        let mut versions = self.shared.versions.lock().unwrap();
        let version = versions.entry(path.to_owned()).or_default();
        *version += 1;
        *version
    }
}

/// A page: its ETag names its version, and a tag its last digit. `/size/vary/...` comes in languages, `/size/private/...` may not be
/// kept, `/size/chunked/...` says no length, `/size/parts/...` comes in parts.
fn serve(mut stream: TcpStream, shared: &Shared) {
    let mut requests = BufReader::new(stream.try_clone().unwrap());
    loop {
        let head = request_head(&mut requests);
        let Some(path) = head.split(' ').nth(1).map(str::to_owned) else { return };
        let version = shared.versions.lock().unwrap().get(&path).copied().unwrap_or(0);
        let field = |name: &str| {
            let line = head.lines().find(|l| l.to_ascii_lowercase().starts_with(&format!("{name}:")));
            line.and_then(|l| l.split_once(':')).map(|(_, v)| v.trim().to_owned()).unwrap_or_default()
        };
        let kind = path.split('/').nth(2).unwrap_or_default();
        // What a variant's lines name.
        let named = if kind == "vary" { format!("{path}#{}", field("accept-language")) } else { path.clone() };
        let cc = if kind == "private" { "private" } else { "max-age=10000" };
        let tag = path.bytes().last().map_or('x', char::from);
        let etag = format!("\"{named}-{version}\"");
        let common = format!(
            "ETag: {etag}\r\nCache-Control: {cc}\r\nSurrogate-Key: {tag}\r\n{}",
            if kind == "vary" { "Vary: Accept-Language\r\n" } else { "" }
        );
        if field("if-none-match") == etag {
            if stream.write_all(format!("HTTP/1.1 304 Not Modified\r\n{common}\r\n").as_bytes()).is_err() {
                return;
            }
            continue;
        }
        let gave = shared.gave.fetch_add(1, Ordering::Relaxed);
        let breaks = shared.breaks.load(Ordering::Relaxed);
        let whole = shared.known.body(&named, version);
        let bounds = (kind == "parts" && ["", &etag].contains(&field("if-range").as_str())).then(|| field("range"));
        let bounds = bounds.as_deref().and_then(|range| range.strip_prefix("bytes=")?.split_once('-'));
        let bounds =
            bounds.and_then(|(first, last)| Some((first.parse::<usize>().ok()?, last.parse::<usize>().ok()?.min(whole.len() - 1))));
        let (status, ranges) = match bounds {
            Some((first, last)) => ("206 Partial Content", format!("Content-Range: bytes {first}-{last}/{}\r\n", whole.len())),
            None if kind == "parts" => ("200 OK", "Accept-Ranges: bytes\r\n".to_owned()),
            None => ("200 OK", String::new()),
        };
        let body = bounds.map_or(&whole[..], |(first, last)| &whole[first..=last]);
        let framing = if kind == "chunked" { "Transfer-Encoding: chunked".to_owned() } else { format!("Content-Length: {}", body.len()) };
        let mut answer = format!("HTTP/1.1 {status}\r\n{framing}\r\n{ranges}{common}\r\n").into_bytes();
        if head.starts_with("HEAD") {
        } else if kind == "chunked" {
            for piece in body.chunks(50_000) {
                write!(answer, "{:x}\r\n", piece.len()).unwrap();
                answer.extend_from_slice(piece);
                answer.extend_from_slice(b"\r\n");
            }
            answer.extend_from_slice(b"0\r\n\r\n");
        } else {
            answer.extend_from_slice(body);
        }
        let torn = breaks > 0 && gave % breaks == breaks - 1 && body.len() > 10;
        if torn {
            answer.truncate(answer.len() - body.len() / 2 - 1);
        }
        for piece in answer.chunks(32 << 10) {
            if shared.slow.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(5));
            }
            if stream.write_all(piece).is_err() {
                return;
            }
        }
        if torn {
            return;
        }
    }
}
