//! Heads of messages as field sections (RFC 9114 section 4), read as strictly as those of HTTP/1.1.

use crate::frame;
use crate::qpack::{self, SectionError};
use bytes::{Buf, BufMut, Bytes, BytesMut};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{Method, Request, StatusCode, Uri, Version};
use tidegate_gateway::ConnectProtocol;

/// Why a field section is not the head, or the trailers, that it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MessageError {
    Section(SectionError),
    /// `H3_MESSAGE_ERROR`, on its stream.
    Malformed(&'static str),
}

impl From<SectionError> for MessageError {
    fn from(error: SectionError) -> Self {
        Self::Section(error)
    }
}

const fn malformed(why: &'static str) -> MessageError {
    MessageError::Malformed(why)
}

#[derive(Default)]
struct Pseudo {
    method: Option<Bytes>,
    scheme: Option<Bytes>,
    authority: Option<Bytes>,
    path: Option<Bytes>,
    protocol: Option<Bytes>,
}

impl Pseudo {
    fn take(&mut self, name: &[u8], value: Bytes) -> Result<(), MessageError> {
        let place = match name {
            b":method" => &mut self.method,
            b":scheme" => &mut self.scheme,
            b":authority" => &mut self.authority,
            b":path" => &mut self.path,
            b":protocol" => &mut self.protocol,
            _ => return Err(malformed("there is an unknown pseudo-header field")),
        };
        if place.replace(value).is_some() {
            return Err(malformed("a pseudo-header field is there twice"));
        }
        Ok(())
    }
}

/// A request's head, of at most `most` bytes.
///
/// # Errors
/// What is wrong with it.
pub fn request(section: &[u8], most: usize) -> Result<Request<()>, MessageError> {
    let (mut pseudo, mut headers) = (Pseudo::default(), HeaderMap::new());
    qpack::decode(section, most, |name, value| {
        if name.starts_with(b":") {
            if !headers.is_empty() {
                return Err(malformed("a pseudo-header field stands behind others"));
            }
            return pseudo.take(name, value);
        }
        add(&mut headers, name, value)
    })?;
    let method = pseudo.method.ok_or(malformed("there is no :method"))?;
    let method = Method::from_bytes(&method).map_err(|_| malformed(":method is not a token"))?;
    let connect = method == Method::CONNECT;
    let tunnel = connect && pseudo.protocol.is_none();
    if pseudo.protocol.is_some() && !connect {
        return Err(malformed(":protocol is CONNECT's alone"));
    }
    if tunnel != (pseudo.scheme.is_none() && pseudo.path.is_none()) || pseudo.scheme.is_some() != pseudo.path.is_some() {
        return Err(malformed(":scheme and :path belong to every request but CONNECT"));
    }
    let mut uri = http::uri::Parts::default();
    if let (Some(scheme), Some(path)) = (pseudo.scheme, pseudo.path) {
        let is_path = path.starts_with(b"/") || (path == "*" && method == Method::OPTIONS);
        if !is_path || path.iter().any(|b| !(0x21..=0x7e).contains(b)) {
            return Err(malformed(":path is not a path"));
        }
        uri.path_and_query = Some(PathAndQuery::from_maybe_shared(path).map_err(|_| malformed(":path is not a path"))?);
        uri.scheme = Some(Scheme::try_from(&scheme[..]).map_err(|_| malformed(":scheme is not a scheme"))?);
    }
    one_length(&mut headers)?;
    let authority = match (pseudo.authority, headers.get(header::HOST)) {
        (Some(authority), Some(host)) if !authority.eq_ignore_ascii_case(host.as_bytes()) => {
            return Err(malformed(":authority and Host differ"));
        }
        (Some(authority), _) => authority,
        (None, Some(host)) => Bytes::copy_from_slice(host.as_bytes()),
        (None, None) => return Err(malformed("there is no :authority")),
    };
    if authority.contains(&b'@') {
        return Err(malformed(":authority names a user"));
    }
    uri.authority = Some(Authority::from_maybe_shared(authority).map_err(|_| malformed(":authority is not a host"))?);
    let mut request = Request::new(());
    *request.uri_mut() = Uri::from_parts(uri).map_err(|_| malformed("its target is not a URI"))?;
    *request.method_mut() = method;
    *request.version_mut() = Version::HTTP_3;
    *request.headers_mut() = headers;
    if let Some(protocol) = pseudo.protocol {
        request.extensions_mut().insert(ConnectProtocol(protocol));
    }
    Ok(request)
}

/// Trailers of a request, of at most `most` bytes.
///
/// # Errors
/// What is wrong with them.
pub fn trailers(section: &[u8], most: usize) -> Result<HeaderMap, MessageError> {
    let mut headers = HeaderMap::new();
    qpack::decode(section, most, |name, value| {
        if name.starts_with(b":") {
            return Err(malformed("there is a pseudo-header field among the trailers"));
        }
        add(&mut headers, name, value)
    })?;
    Ok(headers)
}

/// Content-Length is one number, if it is there: two that differ could be read in two ways further on.
fn one_length(headers: &mut HeaderMap) -> Result<(), MessageError> {
    let mut all = headers.get_all(header::CONTENT_LENGTH).iter();
    let Some(first) = all.next() else { return Ok(()) };
    let is_number = first.as_bytes().iter().all(u8::is_ascii_digit) && first.to_str().is_ok_and(|v| v.parse::<u64>().is_ok());
    if !is_number || all.any(|other| other != first) {
        return Err(malformed("Content-Length is not one number"));
    }
    let first = first.clone();
    headers.insert(header::CONTENT_LENGTH, first);
    Ok(())
}

fn add(headers: &mut HeaderMap, name: &[u8], value: Bytes) -> Result<(), MessageError> {
    let name = HeaderName::from_lowercase(name).map_err(|_| malformed("the name of a field is not a token in lower case"))?;
    if OF_CONNECTIONS.contains(&name) || (name == header::TE && value != "trailers") {
        return Err(malformed("there is a field that belongs to one connection alone"));
    }
    let padded = |byte: Option<&u8>| byte.is_some_and(|b| matches!(b, b' ' | b'\t'));
    if padded(value.first()) || padded(value.last()) {
        return Err(malformed("the value of a field begins or ends with a space"));
    }
    let value = HeaderValue::from_maybe_shared(value).map_err(|_| malformed("the value of a field has a control character"))?;
    // It holds 32,768 names; sections are bounded below that.
    let _ = headers.try_append(name, value);
    Ok(())
}

/// RFC 9114 section 4.2.
const OF_CONNECTIONS: [HeaderName; 5] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// A type in one byte, a length in four.
const ROOM: usize = 5;

/// A HEADERS frame: a response's head, or trailers where there is no status.
#[must_use]
pub fn headers_frame(status: Option<StatusCode>, headers: &HeaderMap) -> Bytes {
    let mut bytes = BytesMut::with_capacity(512);
    bytes.put_bytes(0, ROOM);
    qpack::begin(&mut bytes);
    if let Some(status) = status {
        qpack::field(":status", status.as_str().as_bytes(), false, &mut bytes);
    }
    for (name, value) in headers {
        if !OF_CONNECTIONS.contains(name) {
            let secret = value.is_sensitive() || *name == header::SET_COOKIE;
            qpack::field(name.as_str(), value.as_bytes(), secret, &mut bytes);
        }
    }
    let mut head = BytesMut::with_capacity(ROOM);
    frame::head(frame::HEADERS, bytes.len() - ROOM, &mut head);
    let free = ROOM.saturating_sub(head.len());
    if let Some(place) = bytes.get_mut(free..ROOM) {
        place.copy_from_slice(&head);
    }
    bytes.advance(free);
    bytes.freeze()
}

/// A HEADERS frame: the head of a request without fields, as a client writes it.
#[must_use]
pub fn request_frame(method: &str, authority: &str, path: &str) -> Bytes {
    let (mut section, mut bytes) = (BytesMut::new(), BytesMut::new());
    qpack::begin(&mut section);
    for (name, value) in [(":method", method), (":scheme", "https"), (":authority", authority), (":path", path)] {
        qpack::field(name, value.as_bytes(), false, &mut section);
    }
    frame::head(frame::HEADERS, section.len(), &mut bytes);
    bytes.put_slice(&section);
    bytes.freeze()
}

/// The status of a response's head.
#[must_use]
pub fn response_status(section: &[u8]) -> Option<u16> {
    let mut status = None;
    let read = qpack::decode(section, usize::MAX, |name, value| {
        if name == b":status" {
            status = std::str::from_utf8(&value).ok().and_then(|v| v.parse().ok());
        }
        Ok::<_, SectionError>(())
    });
    status.filter(|_| read.is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn section(fields: &[(&str, &str)]) -> BytesMut {
        let mut bytes = BytesMut::new();
        qpack::begin(&mut bytes);
        fields.iter().for_each(|(n, v)| qpack::field(n, v.as_bytes(), false, &mut bytes));
        bytes
    }

    const GET: [(&str, &str); 4] = [(":method", "GET"), (":scheme", "https"), (":authority", "h.example"), (":path", "/a?b")];

    fn with<'a>(more: &[(&'a str, &'a str)]) -> Vec<(&'a str, &'a str)> {
        GET.iter().chain(more).copied().collect()
    }

    #[test]
    fn a_request_is_read() {
        let read =
            request(&section(&with(&[("accept", "*/*"), ("cookie", "a=b"), ("cookie", "c=d"), ("te", "trailers")])), 1 << 10).unwrap();
        assert_eq!((read.method(), read.uri().to_string().as_str()), (&Method::GET, "https://h.example/a?b"));
        assert_eq!(read.headers().get_all("cookie").iter().count(), 2);
        let connect = request(
            &section(&[
                (":method", "CONNECT"),
                (":protocol", "websocket"),
                (":scheme", "https"),
                (":authority", "h.example"),
                (":path", "/"),
            ]),
            1 << 10,
        );
        assert_eq!(connect.unwrap().extensions().get::<ConnectProtocol>().map(|p| p.0.clone()), Some("websocket".into()));
    }

    #[test]
    fn what_is_malformed_is_refused() {
        let without = |name: &str| GET.into_iter().filter(|(n, _)| *n != name).collect::<Vec<_>>();
        let replaced =
            |name: &str, value: &'static str| GET.into_iter().map(|(n, v)| (n, if n == name { value } else { v })).collect::<Vec<_>>();
        let cases: Vec<(&str, Vec<(&str, &str)>)> = vec![
            ("no method", without(":method")),
            ("no scheme", without(":scheme")),
            ("no authority", without(":authority")),
            ("no path", without(":path")),
            ("an empty path", replaced(":path", "")),
            ("a path that is none", replaced(":path", "a")),
            ("a path with a space", replaced(":path", "/a b")),
            ("a user", replaced(":authority", "u@h.example")),
            ("two methods", with(&[(":method", "GET")])),
            ("a pseudo-header field at the end", with(&[("a", "b"), (":path", "/")])),
            ("an unknown one", with(&[(":status", "200")])),
            ("a protocol without CONNECT", with(&[(":protocol", "websocket")])),
            ("another Host", with(&[("host", "other.example")])),
            ("upper case", with(&[("Accept", "*/*")])),
            ("a name with a space", with(&[("a b", "c")])),
            ("a line break", with(&[("a", "b\r\nc: d")])),
            ("a NUL", with(&[("a", "b\0")])),
            ("a space in front", with(&[("a", " b")])),
            ("Connection", with(&[("connection", "close")])),
            ("Transfer-Encoding", with(&[("transfer-encoding", "chunked")])),
            ("Upgrade", with(&[("upgrade", "websocket")])),
            ("TE", with(&[("te", "gzip")])),
            ("two lengths", with(&[("content-length", "0"), ("content-length", "37")])),
            ("a list of lengths", with(&[("content-length", "0, 37")])),
            ("a length with a sign", with(&[("content-length", "+5")])),
            ("a length beyond all numbers", with(&[("content-length", "18446744073709551653")])),
            ("no length", with(&[("content-length", "")])),
        ];
        for (what, fields) in cases {
            let read = request(&section(&fields), 1 << 10);
            assert!(matches!(read, Err(MessageError::Malformed(_))), "{what}: {read:?}");
        }
        let large = "x".repeat(2000);
        assert_eq!(request(&section(&with(&[("a", &large)])), 1 << 10).unwrap_err(), MessageError::Section(SectionError::TooLarge));
        assert!(matches!(trailers(&section(&[(":path", "/")]), 1 << 10), Err(MessageError::Malformed(_))));
    }

    #[test]
    fn a_response_is_one_frame() {
        let mut headers = HeaderMap::new();
        for (name, value) in [("content-type", "text/css"), ("x-long", &"y".repeat(20_000)), ("connection", "close")] {
            headers.append(HeaderName::try_from(name).unwrap(), value.parse().unwrap());
        }
        let mut bytes = headers_frame(Some(StatusCode::OK), &headers);
        let mut frames = frame::Frames::new(1 << 20);
        let Ok(Some(frame::Frame::Whole(frame::Kind::Headers, payload))) = frames.next(&mut bytes) else { unreachable!() };
        assert!(bytes.is_empty());
        let mut names = Vec::new();
        qpack::decode(&payload, usize::MAX, |name, value| {
            names.push((String::from_utf8_lossy(name).into_owned(), value.len()));
            Ok::<_, SectionError>(())
        })
        .unwrap();
        assert_eq!(names, [(":status".to_owned(), 3), ("content-type".into(), 8), ("x-long".into(), 20_000)]);
    }
}
