//! Heads of HTTP/1.1 requests and lines of chunked bodies: read without a panic, the same however they are split, and what
//! is admitted can be read in one way only.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tidegate_edge::Limits;
use tidegate_edge::head;

fuzz_target!(|data: &[u8]| {
    let limits = Limits::default();
    let _ = head::chunk_size(data);
    let _ = head::trailer(data);
    let Ok(Some(end)) = head::end(data, &limits) else { return };
    assert_eq!(head::end(&data[..end], &limits).ok().flatten(), Some(end), "more bytes behind a head do not change it");
    if head::read(&data[..end], &limits).is_ok() {
        let text = &data[..end];
        assert!(text.ends_with(b"\r\n\r\n"));
        for (at, byte) in text.iter().enumerate() {
            assert!(*byte != 0);
            assert!(*byte != b'\n' || at > 0 && text[at - 1] == b'\r', "a bare LF was admitted");
            assert!(*byte != b'\r' || text.get(at + 1) == Some(&b'\n'), "a bare CR was admitted");
        }
        let lower = String::from_utf8_lossy(text).to_ascii_lowercase();
        let lines = |name: &str| lower.lines().skip(1).filter(|l| l.split(':').next().is_some_and(|n| n.trim() == name)).count();
        assert!(lines("content-length") + lines("transfer-encoding") <= 1, "a framing that can be read in two ways was admitted");
        assert!(lines("host") <= 1);
    }
});
