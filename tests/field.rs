//! Situations from practice, one small file per case in `tests/field`: the exchange as text, in the manner of varnishtest. This
//! file is the one runner.
//!
//! A case names its source, starts a network in front of an origin that it plays itself, and goes line by line. Indented lines
//! belong to the command above them:
//!
//! ```text
//! One sentence: the behaviour that the case requires
//! source: RFC 9111 section 4
//! network shields=1            (or 0; both where the line is missing)
//! settings [origin]            (lines of the site's file)
//!   retries = 1
//! ask NAME [h2]                a client sends a request: METHOD PATH, fields, `| text` for a body
//! origin NAME                  waits for the next request at the origin: `has Field: value`, `lacks Field`, `is METHOD PATH`
//! reply NAME                   answers it: STATUS, fields, `| text` or `bytes N` (framed by Content-Length), `open` (framed by
//!                              its fields), `raw text`
//! more NAME                    sends on: `raw text`, `chunk text`, `end`
//! expect NAME                  waits for the client's response: `status N|M`, `body text`, `bytes N`, `has`, `lacks`, `hit`,
//!                              `miss`, `broken`, `begins text`
//! leave NAME, close NAME       the client goes, or the origin closes the connection
//! gone NAME                    the node has dropped the origin's answer, within a few seconds
//! seconds N NAME               the response took N seconds or less
//! purge KIND SELECTOR          (tag, url, prefix) as the command line does; it has to be true when it returns
//! count N                      so many requests have come to the origin by now
//! nothing                      no request comes to the origin
//! pause 300ms
//! ```
//!
//! Text may have `\r`, `\n`, `\\` and `\xNN`. Paths are the case's own.

#![allow(clippy::unwrap_used, clippy::panic, clippy::expect_used)] // A test fails by panicking.
#![allow(clippy::disallowed_methods)] // A script has pauses, and a test measures real time.

mod support;

use std::collections::{HashMap, VecDeque};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use support::{Dev, error_of, wait_for};

/// Maximum wait for an expected event.
const PATIENCE: Duration = Duration::from_secs(20);
/// Maximum time until a node drops an answer without readers.
const GONE_WITHIN: Duration = Duration::from_secs(5);
/// Time without an event that shows that it does not happen.
const QUIET: Duration = Duration::from_millis(400);
const AT_ONCE: usize = 4;

#[derive(Debug)]
struct Step {
    line: usize,
    words: Vec<String>,
    block: Vec<String>,
}

struct Case {
    name: String,
    shields: Vec<String>,
    settings: String,
    steps: Vec<Step>,
}

impl Case {
    fn read(path: &Path) -> Self {
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let text = std::fs::read_to_string(path).unwrap();
        let mut case = Self { name, shields: vec!["0".into(), "1".into()], settings: String::new(), steps: Vec::new() };
        let mut has_source = false;
        for (n, line) in text.lines().enumerate().skip(1) {
            if line.trim().is_empty() {
                continue;
            }
            if let Some(rest) = line.strip_prefix("  ") {
                let last = case.steps.last_mut().unwrap_or_else(|| panic!("{}:{}: no command above", case.name, n + 1));
                last.block.push(rest.to_owned());
                continue;
            }
            if line.starts_with("source:") {
                has_source = true;
                continue;
            }
            let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
            case.steps.push(Step { line: n + 1, words, block: Vec::new() });
        }
        assert!(has_source, "{}: it names no source", case.name);
        let (head, steps): (Vec<_>, Vec<_>) = case.steps.into_iter().partition(|s| matches!(&*s.words[0], "network" | "settings"));
        case.steps = steps;
        for step in head {
            match &*step.words[0] {
                "network" => case.shields = vec![step.words[1].strip_prefix("shields=").unwrap().to_owned()],
                _ => case.settings += &format!("{}\n{}\n", step.words[1..].join(" "), step.block.join("\n")),
            }
        }
        case
    }
}

/// `\r`, `\n`, `\\` and `\xNN` undone.
fn unescaped(text: &str) -> Vec<u8> {
    let (mut out, mut rest) = (Vec::new(), text.as_bytes());
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        let (b'\\', Some(next)) = (*first, after.first()) else {
            out.push(*first);
            continue;
        };
        match next {
            b'r' => out.push(b'\r'),
            b'n' => out.push(b'\n'),
            b'x' => {
                let digits = std::str::from_utf8(&after[1..3]).unwrap();
                out.push(u8::from_str_radix(digits, 16).unwrap());
                rest = &after[2..];
            }
            other => out.push(*other),
        }
        rest = &rest[1..];
    }
    out
}

/// A request at the origin, and the way back.
struct Arrived {
    head: Vec<u8>,
    stream: TcpStream,
    /// The node has closed the connection.
    gone: Arc<AtomicBool>,
}

/// The case's own origin: each request waits until the case answers it, or is answered with 404 where it is for no case.
struct Origin {
    url: String,
    arrived: Arc<Mutex<VecDeque<Arrived>>>,
    count: Arc<AtomicUsize>,
}

impl Origin {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (arrived, count) = (Arc::<Mutex<VecDeque<Arrived>>>::default(), Arc::<AtomicUsize>::default());
        let (queue, counter) = (Arc::clone(&arrived), Arc::clone(&count));
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let (queue, counter) = (Arc::clone(&queue), Arc::clone(&counter));
                std::thread::spawn(move || serve(stream, &queue, &counter));
            }
        });
        Self { url, arrived, count }
    }
}

fn serve(mut stream: TcpStream, queue: &Mutex<VecDeque<Arrived>>, counter: &AtomicUsize) {
    let _ = stream.set_nodelay(true);
    let gone = Arc::<AtomicBool>::default();
    while let Some(head) = read_head(&mut stream) {
        let shown = String::from_utf8_lossy(&head).to_ascii_lowercase();
        let field = |name: &str| shown.lines().find_map(|l| l.strip_prefix(&format!("{name}: "))?.trim().parse::<usize>().ok());
        if let Some(length) = field("content-length") {
            let _ = stream.read_exact(&mut vec![0; length]);
        }
        counter.fetch_add(1, Ordering::SeqCst);
        let (stream, gone) = (stream.try_clone().unwrap(), Arc::clone(&gone));
        queue.lock().unwrap().push_back(Arrived { head, stream, gone });
    }
    gone.store(true, Ordering::SeqCst);
}

fn read_head(stream: &mut TcpStream) -> Option<Vec<u8>> {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") {
        if stream.read(&mut byte).ok()? == 0 {
            return None;
        }
        head.push(byte[0]);
    }
    Some(head)
}

/// The response as the client has received it so far.
#[derive(Clone, Debug, Default)]
struct Got {
    head: String,
    body: Vec<u8>,
    whole: bool,
    seconds: f64,
}

impl Got {
    fn status(&self) -> &str {
        self.head.split_whitespace().nth(1).unwrap_or("none")
    }

    /// All values of a field.
    fn field(&self, name: &str) -> Option<String> {
        let of = |l: &str| l.split_once(':').filter(|(n, _)| n.trim().eq_ignore_ascii_case(name)).map(|(_, v)| v.trim().to_owned());
        let all: Vec<String> = self.head.lines().skip(1).filter_map(of).collect();
        (!all.is_empty()).then(|| all.join(", "))
    }

    fn cache(&self) -> String {
        self.field("cache-status").unwrap_or_default().rsplit(',').next().unwrap_or_default().to_owned()
    }
}

struct Client {
    /// The response so far, filled in by the client's thread.
    got: Arc<Mutex<Got>>,
    stream: Option<TcpStream>,
    reading: Option<JoinHandle<()>>,
}

fn block_of(block: &[String]) -> (Vec<&str>, Option<Vec<u8>>) {
    let body: Vec<Vec<u8>> = block.iter().filter_map(|l| l.strip_prefix("| ")).map(unescaped).collect();
    let fields = block.iter().map(String::as_str).filter(|l| !l.starts_with("| ")).collect();
    (fields, (!body.is_empty()).then(|| body.concat()))
}

impl Client {
    fn ask(dev: &Dev, step: &Step) -> Self {
        let got = Arc::<Mutex<Got>>::default();
        if step.words.get(2).is_some_and(|w| w == "h2") {
            return Self::ask_h2(dev, step, got);
        }
        let (lines, body) = block_of(&step.block);
        let mut request = Vec::new();
        let (raw, lines): (Vec<&str>, Vec<&str>) = lines.into_iter().partition(|l| l.starts_with("raw "));
        raw.iter().for_each(|l| request.extend(unescaped(&l[4..])));
        let method = lines.first().and_then(|l| l.split(' ').next()).unwrap_or("GET").to_owned();
        if let Some((first, fields)) = lines.split_first() {
            request.extend(format!("{first} HTTP/1.1\r\n").into_bytes());
            if !fields.iter().any(|f| f.to_ascii_lowercase().starts_with("host:")) {
                request.extend(b"Host: localhost\r\n");
            }
            for field in fields {
                request.extend(unescaped(field));
                request.extend(b"\r\n");
            }
            if !fields.iter().any(|f| f.to_ascii_lowercase().starts_with("connection:")) {
                request.extend(b"Connection: close\r\n");
            }
            if let Some(body) = &body {
                request.extend(format!("Content-Length: {}\r\n", body.len()).into_bytes());
            }
            request.extend(b"\r\n");
            request.extend(body.unwrap_or_default());
        }
        let mut stream = TcpStream::connect(dev.http[0]).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        stream.write_all(&request).unwrap();
        let (mut from, of_task) = (stream.try_clone().unwrap(), Arc::clone(&got));
        let reading = std::thread::spawn(move || read_response(&mut from, &method, &of_task));
        Self { got, stream: Some(stream), reading: Some(reading) }
    }

    /// Asks with curl, over TLS and HTTP/2.
    fn ask_h2(dev: &Dev, step: &Step, got: Arc<Mutex<Got>>) -> Self {
        let (lines, _) = block_of(&step.block);
        let target = lines[0].split(' ').nth(1).unwrap().to_owned();
        let fields: Vec<String> = lines[1..].iter().flat_map(|l| ["-H".to_owned(), (*l).to_owned()]).collect();
        let url = format!("{}{target}", dev.https[0].trim_end_matches('/'));
        let of_task = Arc::clone(&got);
        let reading = std::thread::spawn(move || {
            let began = Instant::now();
            let mut curl = Command::new("curl");
            curl.args(["-sS", "-k", "--http2", "-i", "--max-time", "20"]).args(fields).arg(url);
            let out = curl.output().unwrap();
            let at = out.stdout.windows(4).position(|w| w == b"\r\n\r\n").map_or(out.stdout.len(), |at| at + 4);
            let head = String::from_utf8_lossy(&out.stdout[..at]).into_owned();
            let seconds = began.elapsed().as_secs_f64();
            *of_task.lock().unwrap() = Got { head, body: out.stdout[at..].to_vec(), whole: out.status.success(), seconds };
        });
        Self { got, stream: None, reading: Some(reading) }
    }
}

fn read_response(from: &mut TcpStream, method: &str, got: &Mutex<Got>) {
    let began = Instant::now();
    let head = loop {
        let Some(head) = read_head(from) else { return };
        let head: String = head.iter().map(|b| char::from(*b)).collect();
        if !head.starts_with("HTTP/1.1 1") || head.starts_with("HTTP/1.1 101") {
            break head;
        }
    };
    got.lock().unwrap().head = head;
    let now = got.lock().unwrap().clone();
    let take = |bytes: &[u8]| got.lock().unwrap().body.extend_from_slice(bytes);
    let exactly = |from: &mut TcpStream, mut left: usize| {
        let mut buffer = [0; 65_536];
        while left > 0 {
            let most = left.min(buffer.len());
            match from.read(&mut buffer[..most]) {
                Ok(n) if n > 0 => {
                    take(&buffer[..n]);
                    left -= n;
                }
                _ => return false,
            }
        }
        true
    };
    let whole = if method == "HEAD" || matches!(now.status(), "101" | "204" | "304") {
        true
    } else if now.field("transfer-encoding").is_some() {
        'chunks: loop {
            let mut line = Vec::new();
            let mut byte = [0];
            while !line.ends_with(b"\r\n") {
                if from.read(&mut byte).unwrap_or(0) == 0 {
                    break 'chunks false;
                }
                line.push(byte[0]);
            }
            let size = usize::from_str_radix(std::str::from_utf8(&line).unwrap().trim(), 16).unwrap();
            let (sized, ended) = (exactly(from, size), from.read_exact(&mut [0; 2]).is_ok());
            if size == 0 || !sized || !ended {
                break size == 0 && ended;
            }
        }
    } else if let Some(length) = now.field("content-length") {
        length.parse().is_ok_and(|length| exactly(from, length))
    } else {
        let mut rest = Vec::new();
        let read = from.read_to_end(&mut rest).is_ok();
        take(&rest);
        read
    };
    let mut got = got.lock().unwrap();
    (got.whole, got.seconds) = (whole, began.elapsed().as_secs_f64());
}

struct Run<'a> {
    case: &'a Case,
    dev: Dev,
    origin: Origin,
    clients: HashMap<String, Client>,
    answers: HashMap<String, Arrived>,
}

/// Checks a line `has Name: value` or `lacks Name`; `None` for any other line.
fn fields_fit(line: &str, field: impl Fn(&str) -> Option<String>) -> Option<bool> {
    if let Some(want) = line.strip_prefix("has ") {
        let (name, value) = want.split_once(": ").unwrap_or((want, ""));
        let value: String = unescaped(value).iter().map(|b| char::from(*b)).collect();
        return Some(field(name).is_some_and(|v| v.contains(&value)));
    }
    line.strip_prefix("lacks ").map(|name| field(name).is_none())
}

impl Run<'_> {
    fn step(&mut self, step: &Step) {
        let fail = |what: String| -> ! { panic!("{}:{}: {what}\n{}", self.case.name, step.line, self.dev.process.logged()) };
        let name = step.words.get(1).cloned().unwrap_or_default();
        match &*step.words[0] {
            "ask" => drop(self.clients.insert(name, Client::ask(&self.dev, step))),
            "origin" => {
                let end = Instant::now() + PATIENCE;
                let arrived = loop {
                    if let Some(arrived) = self.origin.arrived.lock().unwrap().pop_front() {
                        break arrived;
                    }
                    if Instant::now() > end {
                        fail("no request came to the origin".into());
                    }
                    std::thread::sleep(Duration::from_millis(5));
                };
                let seen = Got { head: arrived.head.iter().map(|b| char::from(*b)).collect(), ..Got::default() };
                for line in &step.block {
                    let fits = fields_fit(line, |n| seen.field(n))
                        .unwrap_or_else(|| seen.head.starts_with(&format!("{} HTTP/1.1\r\n", line.strip_prefix("is ").unwrap())));
                    if !fits {
                        fail(format!("the origin got no request that {line:?}:\n{}", seen.head));
                    }
                }
                self.answers.insert(name, arrived);
            }
            "reply" => {
                let Some(to) = self.answers.get_mut(&name) else { fail(format!("there is no request {name}")) };
                let _ = to.stream.write_all(&response(&step.block));
            }
            "more" => {
                let Some(to) = self.answers.get_mut(&name) else { fail(format!("there is no request {name}")) };
                for line in &step.block {
                    let data = match line.split_once(' ').unwrap_or((line, "")) {
                        ("raw", text) => unescaped(text),
                        ("chunk", text) => chunk(text),
                        ("end", _) => b"0\r\n\r\n".to_vec(),
                        other => fail(format!("unknown: {other:?}")),
                    };
                    let _ = to.stream.write_all(&data);
                }
            }
            "purge" => {
                let purged = self.dev.tidegate(&["purge", &name, &step.words[2]]);
                if !purged.status.success() {
                    fail(error_of(&purged));
                }
            }
            "close" => {
                if let Some(to) = self.answers.remove(&name) {
                    let _ = to.stream.shutdown(std::net::Shutdown::Both);
                }
            }
            "gone" => {
                let Some(to) = self.answers.get(&name) else { fail(format!("there is no request {name}")) };
                let end = Instant::now() + GONE_WITHIN;
                while !to.gone.load(Ordering::SeqCst) {
                    if Instant::now() > end {
                        fail("the node holds on to it".into());
                    }
                    std::thread::sleep(Duration::from_millis(5));
                }
            }
            "leave" => {
                if let Some(Client { stream: Some(stream), .. }) = self.clients.get(&name) {
                    stream.shutdown(std::net::Shutdown::Both).unwrap();
                }
            }
            "expect" => self.expect(step, &name),
            "seconds" => {
                let got = self.clients[&step.words[2]].got.lock().unwrap().clone();
                let most: f64 = name.parse().unwrap();
                if got.seconds == 0.0 || got.seconds > most {
                    fail(format!("it took {} s (0: it is not over)", got.seconds));
                }
            }
            "count" => {
                let count = self.origin.count.load(Ordering::SeqCst);
                if count.to_string() != name {
                    fail(format!("{count} requests came to the origin"));
                }
            }
            "nothing" => {
                std::thread::sleep(QUIET);
                if let Some(arrived) = self.origin.arrived.lock().unwrap().front() {
                    fail(format!("a request came to the origin:\n{}", String::from_utf8_lossy(&arrived.head)));
                }
            }
            "pause" => {
                let ms = name
                    .strip_suffix("ms")
                    .map_or_else(|| name.strip_suffix('s').unwrap().parse::<u64>().unwrap() * 1000, |ms| ms.parse().unwrap());
                std::thread::sleep(Duration::from_millis(ms));
            }
            other => fail(format!("unknown command {other:?}")),
        }
    }

    fn expect(&mut self, step: &Step, name: &str) {
        let fail = |what: String| -> ! { panic!("{}:{}: {what}\n{}", self.case.name, step.line, self.dev.process.logged()) };
        let Some(client) = self.clients.get_mut(name) else { fail(format!("there is no client {name}")) };
        if let Some(begins) = step.block.iter().find_map(|l| l.strip_prefix("begins ")) {
            // It need not be over.
            let want = unescaped(begins);
            let end = Instant::now() + PATIENCE;
            while !client.got.lock().unwrap().body.starts_with(&want) {
                if Instant::now() > end {
                    fail(format!("the body begins otherwise: {:?}", client.got.lock().unwrap()));
                }
                std::thread::sleep(Duration::from_millis(5));
            }
        } else if let Some(reading) = client.reading.take() {
            let end = Instant::now() + PATIENCE * 3;
            while !reading.is_finished() {
                if Instant::now() > end {
                    fail(format!("its response does not end: {:?}", client.got.lock().unwrap()));
                }
                std::thread::sleep(Duration::from_millis(5));
            }
            let _ = reading.join();
        }
        let got = client.got.lock().unwrap().clone();
        for line in &step.block {
            let (what, value) = line.split_once(' ').unwrap_or((line, ""));
            let fits = match what {
                "status" => value.split('|').any(|s| s == got.status()),
                "body" => got.whole && got.body == unescaped(value),
                "bytes" => got.whole && got.body.len().to_string() == value,
                "begins" => true,
                "hit" => got.cache().contains("; hit"),
                "miss" => got.cache().contains("fwd="),
                "broken" => !got.whole && !got.head.is_empty(),
                _ => fields_fit(line, |n| got.field(n)).unwrap_or_else(|| fail(format!("unknown: {line}"))),
            };
            if !fits {
                let shown = String::from_utf8_lossy(&got.body[..got.body.len().min(200)]).into_owned();
                fail(format!("not {line:?}: {}{shown}{}", got.head, if got.whole { "" } else { " (broken off)" }));
            }
        }
    }
}

fn chunk(text: &str) -> Vec<u8> {
    let data = unescaped(text);
    [format!("{:x}\r\n", data.len()).into_bytes(), data, b"\r\n".to_vec()].concat()
}

fn response(block: &[String]) -> Vec<u8> {
    let mut out = format!("HTTP/1.1 {}\r\n", block[0]).into_bytes();
    let (mut body, mut framed, mut raw) = (Vec::new(), true, Vec::new());
    for line in &block[1..] {
        match line.split_once(' ').unwrap_or((line, "")) {
            ("|", text) => body.extend(unescaped(text)),
            ("bytes", n) => body.extend(vec![b'x'; n.parse().unwrap()]),
            ("open", _) => framed = false,
            ("raw", text) => raw.extend(unescaped(text)),
            ("chunk", text) => raw.extend(chunk(text)),
            ("end", _) => raw.extend(b"0\r\n\r\n"),
            _ => out.extend([unescaped(line), b"\r\n".to_vec()].concat()),
        }
    }
    let bodiless = ["1", "204", "304"].iter().any(|s| block[0].starts_with(s));
    if framed && !bodiless {
        out.extend(format!("Content-Length: {}\r\n", body.len()).into_bytes());
    }
    [out, b"\r\n".to_vec(), body, raw].concat()
}

fn run(case: &Case, shields: &str) {
    let dir = tempfile::tempdir().unwrap();
    let origin = Origin::start();
    let dev = Dev::start(dir.path(), &["--origin", &origin.url, "--shields", shields]);
    if !case.settings.is_empty() {
        let mut tables = [
            ("[origin]", format!("servers = [{{ url = \"{}\" }}]\nallow_private = true\n", origin.url)),
            ("[tls]", "redirect = false\ncertificate = \"internal\"\n".to_owned()),
        ];
        let mut text = "name = \"dev\"\nhosts = [\"*\"]\n".to_owned();
        let mut rest = case.settings.clone();
        for (table, lines) in &mut tables {
            if let Some(at) = rest.find(*table) {
                rest.insert_str(at + table.len() + 1, lines);
            } else {
                rest += &format!("{table}\n{lines}");
            }
        }
        text += &rest;
        let file = dir.path().join("site.toml");
        std::fs::write(&file, text).unwrap();
        let version = |dev: &Dev| support::text(&dev.tidegate(&["site", "show", "dev", "--json"]).stdout);
        let before = version(&dev);
        let applied = dev.tidegate(&["site", "apply", file.to_str().unwrap()]);
        assert!(applied.status.success(), "{}: {}", case.name, error_of(&applied));
        wait_for("the settings", || (version(&dev) != before).then_some(()));
        // Edges have them when they acknowledge.
        std::thread::sleep(Duration::from_millis(300));
    }
    let mut run = Run { case, dev, origin, clients: HashMap::new(), answers: HashMap::new() };
    for step in &case.steps {
        run.step(step);
    }
    for client in run.clients.values() {
        client.stream.iter().for_each(|s| drop(s.shutdown(std::net::Shutdown::Both)));
    }
}

#[test]
fn every_situation_from_practice_goes_well() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/field");
    let only = std::env::var("TIDEGATE_FIELD").unwrap_or_default();
    let mut cases: Vec<_> =
        std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).filter(|p| p.extension().is_some_and(|e| e == "case")).collect();
    cases.sort();
    let cases: Vec<Case> = cases.iter().map(|p| Case::read(p)).filter(|c| c.name.contains(&only)).collect();
    let all: Vec<(&Case, &str)> = cases.iter().flat_map(|c| c.shields.iter().map(move |s| (c, s.as_str()))).collect();
    assert!(!all.is_empty());
    let (next, failed) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                while let Some((case, shields)) = all.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let ran = std::panic::catch_unwind(|| run(case, shields));
                    if ran.is_err() {
                        failed.lock().unwrap().push(format!("{} with {shields} shields", case.name));
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap();
    assert!(failed.is_empty(), "{} of {} failed: {failed:#?}", failed.len(), all.len());
}
