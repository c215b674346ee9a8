//! The origin. Its answers are random and recorded before they are sent. Each line of a body names the answer.

use crate::heads::{AGE, CACHE_CONTROL, NO_HEAD, Says, Shared, TARGETED, TWO_FRAMINGS, VARY, tags};
use crate::support::Numbers;
use crate::{Fields, value_of};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// One line of a body has so many bytes.
const LINE: usize = 16;
/// A version of a path lasts so many seconds.
const VERSION: f64 = 4.0;
/// Last-Modified lies so far back that a tenth of the time is a lifetime for the whole run.
const LONG_AGO: u64 = 40_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Validator {
    None,
    Strong,
    Weak,
    Date,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    Length,
    Chunked,
    /// The body ends with the connection.
    Close,
    /// An event stream, a camera: it goes on until its reader leaves.
    Endless,
}

/// The fault of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    None,
    ClosedBeforeHead,
    ClosedInHead,
    Hangs,
    NoHead(usize),
    TwoFramings(usize),
    /// After so many bytes of the body.
    Cut(usize),
    HangsInBody(usize),
}

/// The properties of a path that stay the same.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    pub validator: Validator,
    pub ranges: bool,
    pub codes: bool,
    /// It codes without a word of it in Vary.
    codes_silently: bool,
    pub text: bool,
    /// It fails every second time.
    is_bad: bool,
    targeted: bool,
    expires: bool,
    vary: Option<usize>,
    control: usize,
    pub length: usize,
}

impl Shape {
    pub fn of(path: &str) -> Self {
        let mut r = Numbers(hash(path.as_bytes()));
        let length = match r.index(100) {
            0 => (9 << 20) + 77,
            1..=3 => (2 << 20) + r.index(1 << 20),
            4..=15 => 100_000 + r.index(300_000),
            16..=19 => 0,
            _ => r.index(5_000),
        };
        Self {
            validator: [Validator::None, Validator::Strong, Validator::Strong, Validator::Weak, Validator::Date][r.index(5)],
            ranges: r.index(2) == 0,
            codes: r.index(6) == 0,
            codes_silently: r.index(2) == 0,
            text: r.index(2) == 0,
            is_bad: r.index(14) == 0,
            targeted: r.index(8) == 0,
            expires: r.index(5) == 0,
            vary: (r.index(3) == 0).then(|| r.index(VARY.len())),
            control: r.index(CACHE_CONTROL.len()),
            length,
        }
    }
}

/// One request that reached the origin, and all of the answer.
#[derive(Clone, Debug)]
pub struct Answer {
    pub serial: usize,
    pub method: String,
    pub host: String,
    pub path: String,
    /// Fields of the request.
    pub asked: Fields,
    /// The client's request that it was sent for.
    pub caused_by: Option<usize>,
    pub arrived: f64,
    pub status: u16,
    pub says: Says,
    targeted: Option<usize>,
    vary_lines: &'static [&'static [u8]],
    age_line: Option<usize>,
    /// Seconds until Expires, sent when Cache-Control is silent.
    pub expires: Option<u64>,
    /// Has a Date, so that heuristic freshness is possible.
    pub has_date: bool,
    pub age: u64,
    /// Fields that select variants; `None` if the response cannot be shared.
    pub vary: Option<Vec<&'static str>>,
    pub tags: Vec<String>,
    pub body: u64,
    pub length: usize,
    pub is_coded: bool,
    pub etag: Option<String>,
    pub last_modified: Option<String>,
    pub framing: Framing,
    pub fault: Fault,
    /// Size in bytes and hash of the request's body, once it has come completely.
    pub upload: Option<(usize, u64)>,
    pub head_sent: Option<f64>,
    pub ended: Option<f64>,
    /// The node closed the connection first.
    pub was_left: bool,
}

impl Answer {
    /// It ended as it should.
    pub fn is_good(&self) -> bool {
        self.fault == Fault::None && !matches!(self.status, 500 | 503)
    }
}

pub fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3))
}

/// The bytes of a body from `from` on.
pub fn body(id: u64, from: usize, length: usize) -> Vec<u8> {
    let (mut out, mut line) = (Vec::with_capacity(length + 2 * LINE), format!("{:08x}{:07x}\n", id as u32, from / LINE).into_bytes());
    for _ in from / LINE..=(from + length) / LINE {
        out.extend_from_slice(&line);
        // Only the digits that change: a debug build that writes them all is slower than the nodes that it tests.
        let mut place = LINE - 1;
        loop {
            place -= 1;
            line[place] = match line[place] {
                b'9' => b'a',
                b'f' => b'0',
                digit => digit + 1,
            };
            if line[place] != b'0' {
                break;
            }
        }
    }
    let skip = from % LINE;
    out.drain(..skip);
    out.truncate(length);
    out
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut encoder, bytes).unwrap();
    encoder.finish().unwrap()
}

#[derive(Clone)]
pub struct Origin(Arc<State>);

struct State {
    began: Instant,
    wall: SystemTime,
    answers: Mutex<Vec<Answer>>,
    seed: u64,
}

impl Origin {
    pub async fn start(seed: u64) -> (Self, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let origin = Self(Arc::new(State { began: Instant::now(), wall: SystemTime::now(), answers: Mutex::default(), seed }));
        let accepting = origin.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let origin = accepting.clone();
                tokio::spawn(async move {
                    let _ = stream.set_nodelay(true);
                    Connection { stream, origin, read: Vec::new() }.serve().await;
                });
            }
        });
        (origin, address)
    }

    pub fn now(&self) -> f64 {
        self.0.began.elapsed().as_secs_f64()
    }

    pub fn answers(&self) -> Vec<Answer> {
        self.0.answers.lock().unwrap().clone()
    }

    pub fn answer(&self, serial: usize) -> Option<Answer> {
        self.0.answers.lock().unwrap().get(serial).cloned()
    }

    fn note(&self, serial: usize, change: impl FnOnce(&mut Answer)) {
        change(&mut self.0.answers.lock().unwrap()[serial]);
    }

    /// Draws the answer to a request, and writes it down.
    fn draw(&self, method: &str, path: &str, asked: Fields) -> Answer {
        let mut answers = self.0.answers.lock().unwrap();
        let serial = answers.len();
        let mut r = Numbers(self.0.seed ^ (serial as u64).wrapping_mul(0x5851_f42d_4c95_7f2d));
        let shape = Shape::of(path);
        let arrived = self.now();
        let usual = r.index(5) > 0;
        // A 304 is sent with all fields that count, because missing fields would keep their old values.
        let is_conditional = ["if-none-match", "if-modified-since"].iter().any(|n| value_of(&asked, n).is_some());
        let mut says = CACHE_CONTROL[if usual { shape.control } else { r.index(CACHE_CONTROL.len()) }];
        if is_conditional && says.shared == Shared::Unsaid {
            says = CACHE_CONTROL[3];
        }
        let targeted = shape.targeted.then(|| r.index(TARGETED.len()));
        if let Some(meaning) = targeted.and_then(|t| TARGETED[t].1) {
            says = Says { lines: says.lines, keeps_secret: says.keeps_secret, ..meaning };
        }
        let status = match r.index(30) {
            0 => 404,
            1 => 500,
            2 => 503,
            3 => 301,
            4 => 203,
            5 => 429,
            _ if method == "GET" && value_of(&asked, "content-type").is_some() => 415,
            _ => 200,
        };
        let status = if shape.length > 1 << 20 { 200 } else { status };
        let fault = if r.index(if shape.is_bad { 2 } else { 12 }) > 0 {
            Fault::None
        } else {
            let at = r.index(shape.length.max(1));
            match r.index(9) {
                0 | 1 => Fault::ClosedBeforeHead,
                2 => Fault::ClosedInHead,
                3 => Fault::Hangs,
                4 => Fault::NoHead(r.index(NO_HEAD.len())),
                5 => Fault::TwoFramings(r.index(TWO_FRAMINGS.len())),
                6 | 7 => Fault::Cut(at),
                _ => Fault::HangsInBody(at),
            }
        };
        let framing = match r.index(60) {
            0..=34 => Framing::Length,
            35..=53 => Framing::Chunked,
            54..=57 => Framing::Close,
            _ => Framing::Endless,
        };
        let vary = shape.vary.filter(|_| is_conditional || r.index(10) > 0).map(|v| VARY[v]);
        let mut named: Option<Vec<&'static str>> = vary.map_or(Some(Vec::new()), |(_, names)| names.map(<[_]>::to_vec));
        let is_coded = shape.codes && value_of(&asked, "accept-encoding").is_some_and(|v| crate::contains(&v, b"gzip"));
        if shape.codes
            && !shape.codes_silently
            && let Some(named) = &mut named
        {
            named.push("accept-encoding");
        }
        // The validator covers the version and everything that the body depends on.
        let version = ((arrived + hash(path.as_bytes()) as f64 % VERSION) / VERSION) as u64;
        let mut identity = format!("{path} {version} {is_coded} {status}").into_bytes();
        let every = shape.vary.map_or(&[][..], |v| VARY[v].1.unwrap_or(&["x-v", "cookie"]));
        every.iter().for_each(|name| identity.extend(value_of(&asked, name).unwrap_or_else(|| b"-".to_vec())));
        let named_body = hash(&identity) & 0x7fff_ffff;
        let is_nameless = shape.validator == Validator::None || framing == Framing::Endless;
        let body = if is_nameless { serial as u64 | 0x8000_0000 } else { named_body };
        let etag = match shape.validator {
            _ if is_nameless => None,
            Validator::Strong => Some(format!("\"{named_body:x}\"")),
            Validator::Weak => Some(format!("W/\"{named_body:x}\"")),
            Validator::Date | Validator::None => None,
        };
        let modified = self.0.wall + Duration::from_secs(version) - Duration::from_secs(LONG_AGO);
        let last_modified = (shape.validator == Validator::Date && status == 200 && !is_nameless && every.is_empty() && !shape.codes)
            .then(|| httpdate::fmt_http_date(modified));
        let expires = if shape.expires { [None, Some(0), Some(5)][r.index(3)] } else { None };
        let (_, tags) = tags(&mut Numbers(self.0.seed ^ serial as u64));
        let age_line = (r.index(6) == 0).then(|| r.index(AGE.len()));
        let answer = Answer {
            serial,
            method: method.into(),
            host: value_of(&asked, "host").map(|h| String::from_utf8_lossy(&h).into_owned()).unwrap_or_default(),
            path: path.into(),
            caused_by: value_of(&asked, "x-req").and_then(|v| String::from_utf8_lossy(&v).parse().ok()),
            asked,
            arrived,
            status,
            says,
            targeted,
            vary_lines: vary.map_or(&[], |(lines, _)| lines),
            age_line,
            expires,
            has_date: last_modified.is_some(),
            age: age_line.map_or(0, |a| AGE[a].1),
            vary: named,
            tags,
            body,
            length: shape.length,
            is_coded,
            etag,
            last_modified,
            framing,
            fault,
            upload: None,
            head_sent: None,
            ended: None,
            was_left: false,
        };
        answers.push(answer.clone());
        answer
    }
}

struct Connection {
    stream: TcpStream,
    origin: Origin,
    /// Received bytes that are not used yet.
    read: Vec<u8>,
}

/// The other side is gone.
struct Left;

impl Connection {
    async fn serve(mut self) {
        while let Some((method, path, asked)) = self.head().await {
            if path == "/ready" {
                let _ = self.write(b"HTTP/1.1 204 Ready\r\n\r\n").await;
                continue;
            }
            let answer = self.origin.draw(&method, &path, asked);
            let serial = answer.serial;
            let outcome = self.respond(answer).await;
            let now = self.origin.now();
            self.origin.note(serial, |a| {
                a.ended = Some(now);
                a.was_left = matches!(outcome, Err(Left));
            });
            if !matches!(outcome, Ok(true)) {
                return;
            }
        }
    }

    async fn more(&mut self) -> Result<(), Left> {
        self.read.reserve(64 << 10);
        match self.stream.read_buf(&mut self.read).await {
            Ok(n) if n > 0 => Ok(()),
            _ => Err(Left),
        }
    }

    async fn head(&mut self) -> Option<(String, String, Fields)> {
        let end = loop {
            if let Some(at) = self.read.windows(4).position(|w| w == b"\r\n\r\n") {
                break at + 4;
            }
            self.more().await.ok()?;
        };
        let head: Vec<u8> = self.read.drain(..end).collect();
        let (first, fields) = crate::parsed(&head)?;
        let mut words = first.split(' ');
        Some((words.next()?.to_owned(), words.next()?.to_owned(), fields))
    }

    /// The body of a request, whole.
    async fn upload(&mut self, asked: &Fields) -> Result<Vec<u8>, Left> {
        let mut out = Vec::new();
        if let Some(length) = value_of(asked, "content-length").and_then(|v| String::from_utf8(v).ok()?.parse::<usize>().ok()) {
            while self.read.len() < length {
                self.more().await?;
            }
            return Ok(self.read.drain(..length).collect());
        }
        if value_of(asked, "transfer-encoding").is_none() {
            return Ok(out);
        }
        loop {
            let line = loop {
                if let Some(at) = self.read.windows(2).position(|w| w == b"\r\n") {
                    break at;
                }
                self.more().await?;
            };
            let size: String = self.read.drain(..line + 2).map(char::from).collect();
            let size = usize::from_str_radix(size.trim(), 16).map_err(|_| Left)?;
            while self.read.len() < size + 2 {
                self.more().await?;
            }
            out.extend(self.read.drain(..size + 2).take(size));
            if size == 0 {
                return Ok(out);
            }
        }
    }

    async fn write(&mut self, bytes: &[u8]) -> Result<(), Left> {
        self.stream.write_all(bytes).await.map_err(|_| Left)
    }

    /// Waits until the other side closes.
    async fn hang(&mut self) -> Left {
        while self.more().await.is_ok() {
            self.read.clear();
        }
        Left
    }

    /// Whether the connection takes further requests.
    async fn respond(&mut self, answer: Answer) -> Result<bool, Left> {
        let serial = answer.serial;
        let mut r = Numbers(self.origin.0.seed.rotate_left(17) ^ serial as u64);
        let upload = self.upload(&answer.asked).await?;
        self.origin.note(serial, |a| a.upload = Some((upload.len(), hash(&upload))));
        let delay = match r.index(12) {
            0 => 400 + r.below(900),
            1..=5 => r.below(80),
            _ => 0,
        };
        tokio::time::sleep(Duration::from_millis(delay)).await;
        match answer.fault {
            Fault::ClosedBeforeHead => return Ok(false),
            Fault::Hangs => return Err(self.hang().await),
            Fault::ClosedInHead => {
                self.write(b"HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nContent-Le").await?;
                return Ok(false);
            }
            Fault::NoHead(n) => {
                self.write(NO_HEAD[n]).await?;
                return Ok(false);
            }
            _ => {}
        }
        if r.index(20) == 0 {
            self.write(b"HTTP/1.1 103 Early Hints\r\nLink: </x>; rel=preload\r\n\r\n").await?;
        }
        let whole = if answer.is_coded { gzip(&body(answer.body, 0, answer.length)) } else { Vec::new() };
        let total = if answer.is_coded { whole.len() } else { answer.length };
        let (status, from, length) = self.selected(&answer, total);
        let bodiless = status == 304 || answer.method == "HEAD";
        let head = self.head_of(&answer, status, from, length, total, bodiless);
        let (cut, hangs) = match answer.fault {
            Fault::Cut(at) => (Some(at.min(length)), false),
            Fault::HangsInBody(at) => (Some(at.min(length)), true),
            _ => (None, false),
        };
        let endless = answer.framing == Framing::Endless;
        let is_whole = answer.framing == Framing::Length && cut.is_some_and(|cut| cut >= length);
        let breaks = cut.is_some() && !bodiless && !endless && !is_whole;
        self.origin.note(serial, |a| {
            a.status = status;
            if cut.is_some() && !breaks {
                a.fault = Fault::None;
            }
            if a.framing == Framing::Close && !bodiless {
                // A truncated body cannot be recognised as such.
                a.says.shared = Shared::Never;
            }
        });
        self.write(&head).await?;
        let now = self.origin.now();
        self.origin.note(serial, |a| a.head_sent = Some(now));
        if bodiless {
            return Ok(true);
        }
        let paced = (r.index(10) == 0).then(|| Duration::from_millis(20 + r.below(120)));
        let piece = if paced.is_some() { length / 8 + 1000 } else { 64 << 10 };
        let end = if endless { usize::MAX } else { cut.unwrap_or(length) };
        let mut at = 0;
        while at < end {
            let size = piece.min(end - at);
            let bytes =
                if answer.is_coded && !endless { whole[from + at..from + at + size].to_vec() } else { body(answer.body, from + at, size) };
            let chunk = if matches!(answer.framing, Framing::Chunked | Framing::Endless) {
                [format!("{size:x}\r\n").as_bytes(), &bytes, b"\r\n"].concat()
            } else {
                bytes
            };
            self.write(&chunk).await?;
            at += size;
            if endless {
                tokio::select! {
                    left = self.hang() => return Err(left),
                    () = tokio::time::sleep(Duration::from_millis(50)) => {}
                }
            } else if let Some(pace) = paced {
                tokio::time::sleep(pace).await;
            }
        }
        if hangs && breaks {
            return Err(self.hang().await);
        }
        if breaks || matches!(answer.fault, Fault::TwoFramings(_)) || answer.framing == Framing::Close {
            return Ok(false);
        }
        if answer.framing == Framing::Chunked {
            self.write(b"0\r\n\r\n").await?;
        }
        Ok(true)
    }

    /// Conditions and ranges, as RFC 9110 sections 13 and 14 have them: the status, and which bytes of the representation.
    fn selected(&self, answer: &Answer, total: usize) -> (u16, usize, usize) {
        let whole = (answer.status, 0, total);
        if answer.status != 200 || !matches!(&*answer.method, "GET" | "HEAD") || matches!(answer.fault, Fault::TwoFramings(_)) {
            return whole;
        }
        let field = |name: &str| value_of(&answer.asked, name).map(|v| String::from_utf8_lossy(&v).into_owned());
        let tag = answer.etag.as_deref();
        let opaque = |t: &str| t.trim().trim_start_matches("W/").to_owned();
        let listed = |list: &str| list.trim() == "*" || list.split(',').any(|t| tag.is_some_and(|tag| opaque(t) == opaque(tag)));
        if let Some(list) = field("if-match")
            && !(list.trim() == "*" || list.split(',').any(|t| Some(t.trim()) == tag && !t.contains("W/")))
        {
            return (412, 0, total);
        }
        if let Some(list) = field("if-none-match") {
            if listed(&list) {
                return (304, 0, 0);
            }
        } else if let (Some(since), Some(modified)) = (field("if-modified-since"), &answer.last_modified)
            && since == *modified
        {
            return (304, 0, 0);
        }
        if let (Some(range), true, "GET", false) =
            (field("range"), Shape::of(&answer.path).ranges, &*answer.method, answer.framing == Framing::Endless)
        {
            let same = field("if-range").is_none_or(|v| answer.etag.as_deref() == Some(v.as_str()) && !v.starts_with("W/"));
            return match crate::range(&range, total) {
                Some(Some((from, length))) if same => (206, from, length),
                Some(None) if same => (416, 0, 0),
                _ => whole,
            };
        }
        whole
    }

    fn head_of(&self, answer: &Answer, status: u16, from: usize, length: usize, total: usize, bodiless: bool) -> Vec<u8> {
        let serial = answer.serial;
        let mut r = Numbers(self.origin.0.seed.rotate_left(40) ^ serial as u64);
        let shape = Shape::of(&answer.path);
        let mut head = format!("HTTP/1.1 {status} Said\r\n").into_bytes();
        let mut add = |name: &str, value: &[u8]| head.extend([name.as_bytes(), b": ", value, b"\r\n"].concat());
        add("Date", httpdate::fmt_http_date(SystemTime::now()).as_bytes());
        add("X-Answer", serial.to_string().as_bytes());
        add("X-Echo", format!("e{serial}").as_bytes());
        add("X-Body", answer.body.to_string().as_bytes());
        add("X-Secret", serial.to_string().as_bytes());
        if r.index(5) == 0 {
            add("Set-Cookie", format!("s={serial}").as_bytes());
        }
        if r.index(8) == 0 {
            add("Connection", b"X-Hop");
            add("X-Hop", b"1");
        }
        answer.says.lines.iter().for_each(|line| add("Cache-Control", line));
        if let Some((line, _)) = TARGETED.get(answer.targeted.unwrap_or(usize::MAX)) {
            add("CDN-Cache-Control", line);
        }
        match answer.expires {
            None => {}
            Some(0) => add("Expires", [&b"0"[..], b"Thu, 01 Jan 1970 00:00:00 GMT", b"never"][r.index(3)]),
            Some(seconds) => add("Expires", httpdate::fmt_http_date(SystemTime::now() + Duration::from_secs(seconds)).as_bytes()),
        }
        if let Some(age) = answer.age_line {
            add("Age", AGE[age].0);
        }
        for line in answer.vary_lines {
            add("Vary", line);
        }
        if shape.codes && !shape.codes_silently {
            add("Vary", b"Accept-Encoding");
        }
        if answer.is_coded {
            add("Content-Encoding", b"gzip");
        }
        for (name, value) in tags(&mut Numbers(self.origin.0.seed ^ serial as u64)).0 {
            add(name, &value);
        }
        if let Some(tag) = &answer.etag {
            add("ETag", tag.as_bytes());
        }
        if let Some(date) = &answer.last_modified {
            add("Last-Modified", date.as_bytes());
        }
        add("Content-Type", if shape.text { b"text/plain" } else { b"image/png" });
        if shape.ranges {
            add("Accept-Ranges", b"bytes");
        }
        if status == 206 {
            add("Content-Range", format!("bytes {from}-{}/{total}", from + length - 1).as_bytes());
        }
        if status == 416 {
            add("Content-Range", format!("bytes */{total}").as_bytes());
        }
        if let Some((len, hash)) = self.origin.answer(serial).and_then(|a| a.upload).filter(|_| answer.method == "POST") {
            add("X-Upload", format!("{len} {hash}").as_bytes());
        }
        match (answer.fault, answer.framing) {
            (Fault::TwoFramings(n), _) => head.extend(TWO_FRAMINGS[n]),
            _ if bodiless => {}
            (_, Framing::Length) => add("Content-Length", length.to_string().as_bytes()),
            (_, Framing::Chunked | Framing::Endless) => add("Transfer-Encoding", b"chunked"),
            (_, Framing::Close) => add("Connection", b"close"),
        }
        head.extend(b"\r\n");
        head
    }
}
