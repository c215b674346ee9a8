//! The head of an HTTP/1.1 request, read strictly (RFC 9112). What two implementations could read in two ways is refused
//! here, before any parser that is more lenient sees it: that is how requests are not smuggled.

use crate::settings::Limits;

/// Why a request is refused; the connection is closed after it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    pub status: u16,
    pub why: &'static str,
}

const fn bad(why: &'static str) -> Refusal {
    Refusal { status: 400, why }
}

/// What follows the head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    Length(u64),
    Chunked,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    pub framing: Framing,
    /// It asks for another protocol: what follows is HTTP only if that is not granted.
    pub upgrade: bool,
}

fn is_token_byte(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b)
}

fn is_token(s: &[u8]) -> bool {
    !s.is_empty() && s.iter().all(|b| is_token_byte(*b))
}

/// The end of the head that begins `bytes`, if all of it is there: the index behind its empty line.
///
/// # Errors
/// A line does not end in CRLF, or it is longer than the limits allow.
pub fn end(bytes: &[u8], limits: &Limits) -> Result<Option<usize>, Refusal> {
    if bytes.first().is_some_and(|b| !is_token_byte(*b)) {
        return Err(bad("this is not an HTTP request"));
    }
    let mut start = 0;
    for at in memchr::memchr_iter(b'\n', bytes) {
        if at == 0 || bytes.get(at - 1) != Some(&b'\r') {
            return Err(bad("a line of the head does not end in CR LF"));
        }
        if at > limits.head {
            break;
        }
        if at == start + 1 {
            return Ok(Some(at + 1));
        }
        if start == 0 {
            // The first line is judged as soon as it is there.
            request_line(bytes.get(..at - 1).unwrap_or_default(), limits)?;
        }
        start = at + 1;
    }
    if bytes.len() > limits.head {
        return Err(Refusal { status: 431, why: "the head of the request is too large" });
    }
    if start == 0 && bytes.len() > limits.uri + 64 {
        return Err(Refusal { status: 414, why: "the target of the request is too long" });
    }
    Ok(None)
}

fn request_line(line: &[u8], limits: &Limits) -> Result<(), Refusal> {
    let mut parts = line.split(|b| *b == b' ');
    let (Some(method), Some(target), Some(version), None) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
        return Err(bad("the request line is not METHOD SP TARGET SP VERSION"));
    };
    if !is_token(method) || method.len() > 32 {
        return Err(bad("the method is not a token"));
    }
    if target.len() > limits.uri {
        return Err(Refusal { status: 414, why: "the target of the request is too long" });
    }
    let is_visible = |b: &u8| (0x21..=0x7e).contains(b);
    // Bytes that may not stand everywhere in a URI: they are looked at more closely, as the parser behind this does.
    let is_odd = |b: &u8| matches!(b, b'"' | b'<' | b'>' | b'['..=b'^' | b'`' | b'{'..=b'}');
    let is_uri = target.iter().all(is_visible) && (!target.iter().any(is_odd) || http::Uri::try_from(target).is_ok());
    if target.is_empty() || !is_uri {
        return Err(bad("the target has a character that no URI has: it has to be written as % and two digits"));
    }
    match version {
        b"HTTP/1.1" | b"HTTP/1.0" => Ok(()),
        v if v.starts_with(b"HTTP/") => Err(Refusal { status: 505, why: "only HTTP/1.1 and HTTP/1.0 are spoken here" }),
        _ => Err(bad("the request line has no HTTP version")),
    }
}

/// Reads a whole head, its empty line included.
///
/// # Errors
/// What is wrong with it.
pub fn read(bytes: &[u8], limits: &Limits) -> Result<Head, Refusal> {
    let mut lines = bytes.split(|b| *b == b'\n').map(|l| l.strip_suffix(b"\r").unwrap_or(l));
    let first = lines.next().unwrap_or_default();
    request_line(first, limits)?;
    let http_10 = first.ends_with(b"/1.0");
    let (mut count, mut hosts, mut length, mut chunked, mut upgrade) = (0, 0, None, false, false);
    for line in lines {
        if line.is_empty() {
            break;
        }
        count += 1;
        if count > limits.fields {
            return Err(Refusal { status: 431, why: "the head of the request has too many fields" });
        }
        let (name, value) = field_line(line)?;
        match name.len() {
            4 if name.eq_ignore_ascii_case(b"host") => {
                hosts += 1;
                host(value)?;
            }
            7 if name.eq_ignore_ascii_case(b"upgrade") => upgrade = true,
            14 if name.eq_ignore_ascii_case(b"content-length") => {
                if length.is_some() {
                    return Err(bad("there are two Content-Length fields"));
                }
                length = Some(content_length(value)?);
            }
            17 if name.eq_ignore_ascii_case(b"transfer-encoding") => {
                if chunked {
                    return Err(bad("there are two Transfer-Encoding fields"));
                }
                if !value.eq_ignore_ascii_case(b"chunked") {
                    return Err(Refusal { status: 501, why: "the only transfer coding for requests is chunked" });
                }
                chunked = true;
            }
            _ => {}
        }
    }
    match hosts {
        1 => {}
        0 => return Err(bad("there is no Host field")),
        _ => return Err(bad("there are two Host fields")),
    }
    let framing = match (length, chunked) {
        (Some(_), true) => return Err(bad("there are both Content-Length and Transfer-Encoding")),
        (_, true) if http_10 => return Err(bad("HTTP/1.0 has no transfer codings")),
        (Some(n), false) if n > limits.body => return Err(Refusal { status: 413, why: "the body of the request is too large" }),
        (None, true) => Framing::Chunked,
        (n, false) => Framing::Length(n.unwrap_or(0)),
    };
    // HTTP/1.0 has no upgrades (RFC 9110 section 7.8).
    Ok(Head { framing, upgrade: upgrade && !http_10 })
}

/// Name and trimmed value of one field line.
fn field_line(line: &[u8]) -> Result<(&[u8], &[u8]), Refusal> {
    if line.first().is_some_and(|b| matches!(b, b' ' | b'\t')) {
        return Err(bad("a field is folded over two lines"));
    }
    let Some(colon) = memchr::memchr(b':', line) else { return Err(bad("a line of the head has no colon")) };
    let (name, value) = line.split_at(colon);
    if !is_token(name) {
        return Err(bad("a field's name is not a token"));
    }
    let value = trimmed(value.get(1..).unwrap_or_default());
    if value.iter().any(|b| (*b < b' ' && *b != b'\t') || *b == 0x7f) {
        return Err(bad("a field's value has a control character"));
    }
    Ok((name, value))
}

/// Without spaces and tabs around it, and with all else that a strict reader refuses.
fn trimmed(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    value
}

fn content_length(value: &[u8]) -> Result<u64, Refusal> {
    let digits = !value.is_empty() && value.len() < 19 && value.iter().all(u8::is_ascii_digit);
    let number = std::str::from_utf8(value).ok().filter(|_| digits).and_then(|v| v.parse().ok());
    number.ok_or(bad("Content-Length is not a number"))
}

fn host(value: &[u8]) -> Result<(), Refusal> {
    let fine = |b: &u8| b.is_ascii_alphanumeric() || b"-._~:[]%".contains(b);
    if value.is_empty() || value.len() > 300 || !value.iter().all(fine) { Err(bad("Host is not a host")) } else { Ok(()) }
}

/// An empty line before a request is skipped (RFC 9112 section 2.2): how many of its bytes `bytes` begin with.
#[must_use]
pub fn empty_line(bytes: &[u8]) -> usize {
    match bytes {
        [b'\r', b'\n', ..] => 2,
        [b'\r'] => 1,
        _ => 0,
    }
}

/// The size in a line before a chunk, without its CRLF; extensions are allowed and ignored.
///
/// # Errors
/// It is none.
pub fn chunk_size(line: &[u8]) -> Result<u64, Refusal> {
    let end = line.iter().position(|b| matches!(b, b';' | b' ' | b'\t')).unwrap_or(line.len());
    let digits = line.get(..end).unwrap_or_default();
    let rest = line.get(end..).unwrap_or_default();
    let fine = !digits.is_empty()
        && digits.len() <= 15
        && digits.iter().all(u8::is_ascii_hexdigit)
        && rest.iter().all(|b| (b' '..0x7f).contains(b) || *b == b'\t');
    let size = std::str::from_utf8(digits).ok().filter(|_| fine).and_then(|d| u64::from_str_radix(d, 16).ok());
    size.ok_or(bad("a chunk's size is not a number"))
}

/// Checks one line of a trailer section, without its CRLF.
///
/// # Errors
/// It is no field line.
pub fn trailer(line: &[u8]) -> Result<(), Refusal> {
    field_line(line).map(|_| ())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(text: &str) -> Result<Head, u16> {
        let limits = Limits::default();
        let all = text.replace('\n', "\r\n");
        match end(all.as_bytes(), &limits) {
            Ok(Some(at)) => read(&all.as_bytes()[..at], &limits).map_err(|r| r.status),
            Ok(None) => Err(0),
            Err(r) => Err(r.status),
        }
    }

    #[test]
    fn plain_requests_pass() {
        let none = Head { framing: Framing::Length(0), upgrade: false };
        assert_eq!(check("GET / HTTP/1.1\nHost: a.example:80\nX-Y: z\n\n"), Ok(none));
        assert_eq!(check("GET / HTTP/1.0\nHost: a\n\n"), Ok(none));
        assert_eq!(check("POST /a?b HTTP/1.1\nhost: [::1]\ncontent-length: 12\n\n").unwrap().framing, Framing::Length(12));
        assert_eq!(check("POST / HTTP/1.1\nHost: a\nTransfer-Encoding: Chunked\n\n").unwrap().framing, Framing::Chunked);
        assert!(check("GET / HTTP/1.1\nHost: a\nConnection: upgrade\nUpgrade: websocket\n\n").unwrap().upgrade);
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_refused() {
        for (text, status) in [
            ("GET / HTTP/1.1\n\n", 400),
            ("GET / HTTP/1.1\nHost: a\nHost: a\n\n", 400),
            ("GET / HTTP/1.1\nHost: a b\n\n", 400),
            ("GET / HTTP/1.1\nHost:\n\n", 400),
            ("POST / HTTP/1.1\nHost: a\nContent-Length: 1\nContent-Length: 1\n\n", 400),
            ("POST / HTTP/1.1\nHost: a\nContent-Length: 1, 1\n\n", 400),
            ("POST / HTTP/1.1\nHost: a\nContent-Length: +1\n\n", 400),
            ("POST / HTTP/1.1\nHost: a\nContent-Length: 1\nTransfer-Encoding: chunked\n\n", 400),
            ("POST / HTTP/1.1\nHost: a\nTransfer-Encoding: chunked\nTransfer-Encoding: chunked\n\n", 400),
            ("POST / HTTP/1.1\nHost: a\nTransfer-Encoding: gzip, chunked\n\n", 501),
            ("POST / HTTP/1.1\nHost: a\nTransfer-Encoding: xchunked\n\n", 501),
            ("POST / HTTP/1.0\nHost: a\nTransfer-Encoding: chunked\n\n", 400),
            ("POST / HTTP/1.1\nHost: a\nContent-Length: 9999999999999\n\n", 413),
            ("GET / HTTP/1.1\nHost: a\nX : y\n\n", 400),
            ("GET / HTTP/1.1\nHost: a\nX: y\n z\n\n", 400),
            ("GET / HTTP/1.1\nHost: a\nX\n\n", 400),
            ("GET / HTTP/1.1\nHost: a\nX: a\rb\n\n", 400),
            ("GET / HTTP/1.1\nHost: \ra\n\n", 400),
            ("POST / HTTP/1.1\nHost: a\nTransfer-Encoding: \x0cchunked\n\n", 400),
            ("GET / HTTP/1.1\nHost: a\nX: a\0b\n\n", 400),
            ("GET /a?b=#\0 HTTP/1.1\nHost: a\n\n", 400),
            ("GET /a?<b> HTTP/1.1\nHost: a\n\n", 400),
            ("GET  / HTTP/1.1\nHost: a\n\n", 400),
            ("GET / HTTP/2.0\nHost: a\n\n", 505),
            ("GET /\n\n", 400),
            ("G(T / HTTP/1.1\nHost: a\n\n", 400),
            ("\x16\x03\x01", 400),
            (" GET / HTTP/1.1\n", 400),
        ] {
            assert_eq!(check(text).err(), Some(status), "{text:?}");
        }
        assert_eq!(end(b"GET / HTTP/1.1\nHost: a\n\n", &Limits::default()).unwrap_err().status, 400, "bare LF");
    }

    #[test]
    fn sizes_are_bounded_as_soon_as_they_show() {
        let limits = Limits::default();
        let long = [b"GET /".to_vec(), vec![b'a'; limits.uri + 100]].concat();
        assert_eq!(end(&long, &limits).unwrap_err().status, 414);
        let big = [b"GET / HTTP/1.1\r\nX: ".to_vec(), vec![b'a'; limits.head]].concat();
        assert_eq!(end(&big, &limits).unwrap_err().status, 431);
        let many = format!("GET / HTTP/1.1\nHost: a\n{}\n", "X: y\n".repeat(limits.fields));
        assert_eq!(check(&many).unwrap_err(), 431);
    }

    #[test]
    fn chunk_sizes_are_plain_hexadecimal() {
        assert_eq!((chunk_size(b"1aF"), chunk_size(b"0;x=\"y\"")), (Ok(0x1af), Ok(0)));
        for bad in ["", "-1", "0x1", " 1", "g", "11111111111111111", "1;\0"] {
            assert!(chunk_size(bad.as_bytes()).is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let limits = Limits::default();
            if let Ok(Some(at)) = end(&bytes, &limits) { let _ = read(&bytes[..at], &limits); }
            let _ = chunk_size(&bytes);
        }
    }
}
