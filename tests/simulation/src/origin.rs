//! The origin: answers that change, each with a number of its own, so that whoever sees one later knows when the origin
//! gave it.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use std::collections::BTreeMap;

/// The field that carries an exchange's number; a 304 brings a new one.
pub const EXCHANGE: HeaderName = HeaderName::from_static("x-exchange");

/// What every site has: path, Cache-Control, and bytes.
pub const PAGES: [(&str, &str, usize); 8] = [
    ("/", "max-age=1000", 100),
    ("/img/a", "max-age=1000", 300),
    ("/img/b", "max-age=1", 300),
    ("/images", "max-age=1000, stale-if-error=1000", 50),
    ("/swr", "max-age=1, stale-while-revalidate=1000", 50),
    ("/lang", "max-age=1000", 70),
    ("/mine", "private, max-age=1000", 40),
    ("/large", "max-age=1000", 300 << 10),
];
pub const TAGS: [&str; 3] = ["red", "green", "blue"];

/// One answer that the origin gave.
#[derive(Clone, Debug)]
pub struct Exchange {
    pub at: u64,
    pub site: String,
    pub page: usize,
    pub version: u64,
    pub language: u64,
    pub tags: Vec<&'static str>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    Well,
    /// Refuses connections.
    Down,
    /// Answers 503.
    Failing,
    /// Breaks off in the middle of a body.
    BreakingOff,
}

pub struct Origin {
    versions: BTreeMap<(String, usize), u64>,
    pub exchanges: Vec<Exchange>,
    pub health: Health,
    /// Between taking a request, with which its answer is settled, and giving the answer.
    pub takes_ms: u64,
}

pub struct Given {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

#[must_use]
pub fn page_of(path: &str) -> Option<usize> {
    PAGES.iter().position(|(p, ..)| *p == path)
}

/// The tags of a page in one of its versions.
#[must_use]
pub fn tags_of(page: usize, version: u64) -> Vec<&'static str> {
    let mixed = (page as u64 * 7 + version * 13) % 8;
    TAGS.iter().enumerate().filter(|(n, _)| mixed >> n & 1 == 1).map(|(_, t)| *t).collect()
}

/// The one right body.
#[must_use]
pub fn content(site: &str, page: usize, version: u64, language: u64) -> Bytes {
    let (path, _, length) = PAGES[page % PAGES.len()];
    let line = format!("{site}{path} version {version} language {language}; ");
    line.bytes().cycle().take(length).collect::<Vec<u8>>().into()
}

impl Default for Origin {
    fn default() -> Self {
        Self { versions: BTreeMap::new(), exchanges: Vec::new(), health: Health::Well, takes_ms: 5 }
    }
}

impl Origin {
    pub fn change(&mut self, site: &str, page: usize) {
        *self.versions.entry((site.to_owned(), page)).or_default() += 1;
    }

    #[must_use]
    pub fn version(&self, site: &str, page: usize) -> u64 {
        self.versions.get(&(site.to_owned(), page)).copied().unwrap_or(0)
    }

    /// Takes a request at `now`: its answer is settled.
    pub fn take(&mut self, now: u64, site: &str, method: &Method, path: &str, headers: &HeaderMap) -> Given {
        let mut fields = HeaderMap::new();
        let Some(page) = page_of(path).filter(|_| self.health != Health::Failing) else {
            let status = if self.health == Health::Failing { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::NOT_FOUND };
            return Given { status, headers: fields, body: Bytes::from_static(b"no") };
        };
        if !method.is_safe() {
            self.change(site, page);
            return Given { status: StatusCode::NO_CONTENT, headers: fields, body: Bytes::new() };
        }
        let version = self.version(site, page);
        let says = |name: &str| headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default();
        let speaks = PAGES[page].0 == "/lang";
        let language = if speaks { says("accept-language").parse().unwrap_or(0) } else { 0 };
        let tags = tags_of(page, version);
        let number = self.exchanges.len();
        self.exchanges.push(Exchange { at: now, site: site.to_owned(), page, version, language, tags: tags.clone() });
        let mut field = |name: HeaderName, value: String| {
            if let Ok(value) = HeaderValue::from_str(&value) {
                fields.insert(name, value);
            }
        };
        let etag = format!("\"{version}-{language}\"");
        field(EXCHANGE, number.to_string());
        field(http::header::CACHE_CONTROL, PAGES[page].1.into());
        field(http::header::ETAG, etag.clone());
        if !tags.is_empty() {
            field(HeaderName::from_static("surrogate-key"), tags.join(" "));
        }
        if speaks {
            field(http::header::VARY, "accept-language".into());
        }
        if says("if-none-match") == etag {
            return Given { status: StatusCode::NOT_MODIFIED, headers: fields, body: Bytes::new() };
        }
        let body = content(site, page, version, language);
        if let Ok(length) = HeaderValue::from_str(&body.len().to_string()) {
            fields.insert(http::header::CONTENT_LENGTH, length);
        }
        Given { status: StatusCode::OK, headers: fields, body: if method == Method::HEAD { Bytes::new() } else { body } }
    }
}
