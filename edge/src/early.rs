//! Interim responses over HTTP/1.1, on their way to the transport, which writes them between responses: hyper sends none.

use http::{HeaderMap, StatusCode};
use parking_lot::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use tidegate_gateway::interim::MOST_INTERIM;

/// Those of one connection, whose requests come one after another.
#[derive(Debug, Default)]
pub struct EarlyResponses {
    /// The request that has no response yet, counted from 1; 0: there is none.
    current: AtomicU64,
    last: AtomicU64,
    is_waiting: AtomicBool,
    waiting: Mutex<Waiting>,
}

/// Those of one request, as they go out.
#[derive(Debug, Default)]
struct Waiting {
    request: u64,
    count: u32,
    bytes: Vec<u8>,
}

/// Bytes that wait for a client; what comes beyond them is dropped.
const MOST_BYTES: usize = 64 << 10;

impl EarlyResponses {
    /// A request begins; returns its number.
    pub fn begin(&self) -> u64 {
        let request = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        self.current.store(request, Ordering::Release);
        request
    }

    /// The request has its response.
    pub fn end(&self) {
        self.current.store(0, Ordering::Release);
    }

    pub fn may_come(&self) -> bool {
        self.current.load(Ordering::Acquire) != 0
    }

    /// Takes one in for `request`; `false`: it is dropped.
    pub fn push(&self, request: u64, status: StatusCode, headers: &HeaderMap) -> bool {
        if self.current.load(Ordering::Acquire) != request {
            return false;
        }
        let mut waiting = self.waiting.lock();
        if waiting.request != request {
            *waiting = Waiting { request, ..Waiting::default() };
        }
        if waiting.count >= MOST_INTERIM || waiting.bytes.len() > MOST_BYTES {
            return false;
        }
        waiting.count += 1;
        let bytes = &mut waiting.bytes;
        let line = format!("HTTP/1.1 {} {}\r\n", status.as_u16(), status.canonical_reason().unwrap_or_default());
        bytes.extend_from_slice(line.as_bytes());
        for (name, value) in headers {
            for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
                bytes.extend_from_slice(part);
            }
        }
        bytes.extend_from_slice(b"\r\n");
        drop(waiting);
        self.is_waiting.store(true, Ordering::Release);
        true
    }

    /// What is to go out now. `written`: something has been written since the last flush, perhaps the response itself; then those of a
    /// request that has it are dropped.
    pub fn take(&self, written: bool) -> Vec<u8> {
        if !self.is_waiting.load(Ordering::Acquire) {
            return Vec::new();
        }
        self.is_waiting.store(false, Ordering::Release);
        let mut waiting = self.waiting.lock();
        let bytes = std::mem::take(&mut waiting.bytes);
        if written && waiting.request != self.current.load(Ordering::Acquire) { Vec::new() } else { bytes }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(bytes: &[u8]) -> &str {
        std::str::from_utf8(bytes).unwrap()
    }

    #[test]
    fn only_the_request_that_waits_gets_them() {
        let early = EarlyResponses::default();
        let mut link = HeaderMap::new();
        link.insert("link", "</a>; rel=preload".parse().unwrap());
        let first = early.begin();
        assert!(early.push(first, StatusCode::EARLY_HINTS, &link));
        assert_eq!(text(&early.take(false)), "HTTP/1.1 103 Early Hints\r\nlink: </a>; rel=preload\r\n\r\n");
        assert!(early.take(false).is_empty());

        // Its response came; it may be among what was written, or still be to come.
        assert!(early.push(first, StatusCode::EARLY_HINTS, &link));
        early.end();
        assert!(!early.push(first, StatusCode::EARLY_HINTS, &link));
        assert!(early.take(true).is_empty());
        let second = early.begin();
        assert!(!early.push(first, StatusCode::EARLY_HINTS, &link));
        assert!(early.push(second, StatusCode::PROCESSING, &link));
        early.end();
        assert!(text(&early.take(false)).starts_with("HTTP/1.1 102 Processing\r\n"));
    }

    #[test]
    fn there_is_an_end_to_them() {
        let early = EarlyResponses::default();
        let request = early.begin();
        let taken = (0..100).filter(|_| early.push(request, StatusCode::EARLY_HINTS, &HeaderMap::new())).count();
        assert_eq!(taken, MOST_INTERIM as usize);
        let mut large = HeaderMap::new();
        large.insert("link", "x".repeat(MOST_BYTES).parse().unwrap());
        let request = early.begin();
        let taken = (0..4).filter(|_| early.push(request, StatusCode::EARLY_HINTS, &large)).count();
        assert_eq!(taken, 1);
    }
}
