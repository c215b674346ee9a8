//! One entry for each kind of input from outside: it must not panic, and must keep what is said here of it. The fuzzer calls them
//! (`fuzz_targets`), and `tests/fuzzing.rs` for a while on a stable compiler.

use hickory_proto::rr::Name;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use std::sync::{Arc, LazyLock};
use tidegate_cache::range::Selected;
use tidegate_cache::{
    Accepted, Freshness, FreshnessDefaults, Target, VaryKey, WallTime, cache_control, coding, conditional, field, partial, range,
    validation,
};
use tidegate_control_state::State;
use tidegate_control_types::purge::{PurgeType, without_port};
use tidegate_control_types::wire::{self, Deframer};
use tidegate_control_types::{Command, FromNode, Selector, ToNode, site_file};
use tidegate_dns::{Cookies, Edge, MOST_UDP, NameServer, Networks, Reply, Responder, Signer, Table, Transport};
use tidegate_edge::{Limits, head};
use tidegate_http3::parsers::{Frame, Frames, Kind, headers_frame, request, trailers};

pub type Entry = fn(&[u8]);

/// By the name of the fuzz target.
pub const ALL: [(&str, Entry); 7] = [
    ("request_head", request_head),
    ("proxy_protocol", proxy_protocol),
    ("messages", messages),
    ("text", text),
    ("fields", fields),
    ("dns", dns),
    ("http3", http3),
];

/// Heads of HTTP/1.1 requests and lines of chunked bodies: the same however they are split, and what is admitted can be read in one
/// way only.
pub fn request_head(data: &[u8]) {
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
}

/// PROXY protocol v2 headers, from whoever may send them.
pub fn proxy_protocol(data: &[u8]) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let mut rest = data;
    let read = runtime.block_on(tidegate_edge::proxy_protocol::read(&mut rest));
    if read.is_ok() {
        let length = 16 + usize::from(u16::from_be_bytes([data[14], data[15]]));
        assert_eq!(data.len() - rest.len(), length, "exactly the header is taken off");
    }
}

/// Packets that ask for the zone: no answer is longer than it may be, is anything but an answer to this query, or calls forth another.
pub fn dns(data: &[u8]) {
    let address = |text: &str| text.parse().unwrap();
    let edge = |name: &str, region: &str, ip| Edge {
        name: name.into(),
        region: region.into(),
        addresses: vec![address(ip)],
        attached: true,
        drained: false,
        lost: Vec::new(),
        applied: 9,
        capacity: 1.0,
        room: 1.0,
    };
    let table = Table {
        zone: Name::from_ascii("cdn.test.").unwrap(),
        serial: 9,
        name_servers: vec![NameServer { name: "d1".into(), addresses: vec![address("192.0.2.53")] }],
        sites: [("shop".to_owned(), tidegate_dns::Site { revision: 7, regions: Vec::new() })].into(),
        edges: vec![edge("fra-1", "eu", "192.0.2.1"), edge("nyc-1", "us", "2001:db8::1")],
        caa: vec!["ca.example.org".into()],
        txt: Arc::new([("_acme-challenge.shop.cdn.test".to_owned(), vec!["first".to_owned(), "second".to_owned()])].into()),
        https: true,
        ttl: std::time::Duration::from_secs(20),
    };
    let networks: Networks = "203.0.113.0/24,eu\n2001:db8:1::/48,us,eu\n".parse().unwrap();
    static SIGNER: LazyLock<Signer> = LazyLock::new(|| {
        let key = tidegate_certs::dnssec::generate().unwrap();
        Signer::new(&Name::from_ascii("cdn.test.").unwrap(), &key.key).unwrap()
    });
    let cookies = Cookies::new([7; 16]);
    let (signer, cookies) = (Some(&*SIGNER), Some(&cookies));
    let responder = Responder { table: &table, networks: &networks, signer, cookies, now: 1_700_000_000, name: "d1", region: &[] };
    for transport in [Transport::Udp, Transport::Tcp] {
        let Some(Reply { bytes: answer, .. }) = responder.respond(data, address("203.0.113.9"), transport) else { continue };
        assert!(data.len() >= 12 && data[2] & 0x80 == 0, "what is no query was answered");
        assert!(answer[..2] == data[..2] && answer[2] & 0x80 != 0);
        assert!(transport == Transport::Tcp || answer.len() <= usize::from(MOST_UDP));
        assert_eq!(responder.respond(&answer, address("203.0.113.9"), transport), None, "an answer was answered");
        assert!(Responder::cut_short(&answer).len() <= data.len().max(12) + 11);
        let _ = Responder::alike(&answer);
    }
    if let Ok(text) = std::str::from_utf8(data) {
        let _ = text.parse::<Networks>();
    }
}

macro_rules! round_trip {
    ($data:expr, $($kind:ty),*) => {
        $(if let Ok(value) = wire::decode::<$kind>($data) {
            let again = wire::decode::<$kind>(&wire::encode(&value)).unwrap();
            assert!(again == value);
        })*
    };
}

/// What nodes send each other and what lies on disk: unreadable bytes are an error, readable ones come out as they went in.
pub fn messages(data: &[u8]) {
    round_trip!(data, Command, ToNode, FromNode, State);
    let _ = tidegate_control::backup::read(data);
    let (mut whole, mut split) = (Deframer::default(), Deframer::default());
    whole.push(data);
    let mut pieces = data.chunks(3);
    loop {
        let a = whole.take::<FromNode>();
        let b = loop {
            match split.take::<FromNode>() {
                Ok(None) => match pieces.next() {
                    Some(piece) => split.push(piece),
                    None => break Ok(None),
                },
                other => break other,
            }
        };
        match (a, b) {
            (Ok(Some(a)), Ok(Some(b))) => assert!(a == b),
            (Ok(None), Ok(None)) | (Err(_), Err(_)) => return,
            (a, b) => panic!("{a:?} in one piece, {b:?} in many"),
        }
    }
}

/// Site files, URLs of origins and selectors of purges, as operators write them.
pub fn text(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Err(mistakes) = site_file::read("site.toml", text) {
        assert!(!mistakes.to_string().is_empty());
    }
    let _ = site_file::parse_origin_url(text);
    if let Some(host) = without_port(text) {
        assert_eq!(without_port(&host).as_deref(), Some(host.as_str()));
    }
    for kind in [PurgeType::Url, PurgeType::Tag, PurgeType::Prefix, PurgeType::Host, PurgeType::Site, PurgeType::All] {
        let _ = Selector::parse(kind, text);
    }
}

fn lines(lines: &[u8]) -> HeaderMap {
    let mut out = HeaderMap::new();
    for line in lines.split(|b| *b == b'\n') {
        let Some(colon) = line.iter().position(|b| *b == b':') else { continue };
        let (Ok(name), Ok(value)) = (HeaderName::from_bytes(&line[..colon]), HeaderValue::from_bytes(&line[colon + 1..])) else { continue };
        out.append(name, value);
    }
    out
}

/// Fields of a request and of a response, a target, and the length of a body, divided by bytes that stand in no field.
pub fn fields(data: &[u8]) {
    let mut parts = data.splitn(4, |b| *b == 0xff);
    let mut next = || parts.next().unwrap_or_default();
    let (request, response) = (lines(next()), lines(next()));
    let target = String::from_utf8_lossy(next()).into_owned();
    let length = String::from_utf8_lossy(next()).parse::<u64>().unwrap_or(1000) % (1 << 40);
    match range::select(&request, length) {
        Selected::Part { first, last } => {
            assert!(first <= last && last < length);
            assert!(range::first(&request).is_some_and(|f| f == first || f == 0), "what is asked of upstream begins no later");
        }
        Selected::Whole | Selected::Unsatisfiable => {}
    }
    if let Some((first, last, length)) = partial::content_range(&response) {
        assert!(first <= last && last < length);
    }
    assert!(!partial::is_part_of(&response, &HeaderMap::new()));
    let said = cache_control::of_response(&response);
    let _ = cache_control::of_request(&request);
    let (now, later) = (WallTime(1_700_000_000_000), WallTime(1_700_000_060_000));
    let fresh = Freshness::new(StatusCode::OK, &response, &said, now, now, FreshnessDefaults::default());
    assert!(fresh.current_age(later) >= fresh.current_age(now));
    if let Ok(vary) = VaryKey::new(&response, &request) {
        assert!(vary.matches(&request));
    }
    let accepted = Accepted::of(&request);
    let mut coded = response.clone();
    for wanted in accepted.wanted() {
        coding::describe(&mut coded, wanted, Some(length));
        assert!(partial::strong_validator(&coded).is_none_or(|v| !v.as_bytes().starts_with(b"\"")), "coded bytes have no strong ETag");
    }
    let _ = (accepted.normal(), coding::is_codable(StatusCode::OK, &response, None, &["text/*".into(), "*+xml".into()], 0));
    let _ = (conditional::not_modified(&request, &response), conditional::range_applies(&request, &response));
    let _ = conditional::holds(&request, &response);
    let _ = (validation::conditions(&response), validation::confirms(&response, &request), field::tags(&response));
    let once = Target::new(false, "h", &target, None).path_and_query;
    assert!(once.starts_with('/'));
    assert_eq!(Target::new(false, "h", &once, None).path_and_query, once, "the normal form is its own normal form");
}

/// What a client sends on a stream of HTTP/3, cut where the first byte says: the same however it is cut; and the field sections in it,
/// whose fields are those of a request that HTTP/1.1 could carry.
pub fn http3(data: &[u8]) {
    const MOST: usize = 4 << 10;
    let Some((cut, stream)) = data.split_first() else { return };
    let read = |pieces: &[&[u8]]| {
        let (mut frames, mut got, mut body) = (Frames::new(MOST), Vec::new(), Vec::new());
        for piece in pieces {
            let mut input = bytes::Bytes::copy_from_slice(piece);
            loop {
                match frames.next(&mut input) {
                    Ok(Some(Frame::Data(data))) => body.extend_from_slice(&data),
                    Ok(Some(frame)) => got.push(frame),
                    Ok(None) => break,
                    Err(broken) => return (got, body, Some(broken), false),
                }
            }
        }
        (got, body, None, frames.is_between())
    };
    let (first, second) = stream.split_at(usize::from(*cut).min(stream.len()));
    let whole = read(&[stream]);
    assert_eq!(whole, read(&[first, second]), "frames do not depend on how they come");
    for frame in whole.0 {
        let Frame::Whole(Kind::Headers, section) = frame else { continue };
        assert!(section.len() <= MOST);
        if let Ok(request) = request(&section, MOST) {
            assert!(request.uri().authority().is_some_and(|a| !a.as_str().contains('@')));
            assert!(request.uri().path_and_query().is_none_or(|p| !p.as_str().contains([' ', '\r', '\n'])));
        }
        let Ok(fields) = trailers(&section, MOST) else { continue };
        assert!(fields.iter().map(|(n, v)| n.as_str().len() + v.len() + 32).sum::<usize>() <= MOST);
        assert!(fields.values().all(|v| !v.as_bytes().iter().any(|b| matches!(b, b'\r' | b'\n' | 0))));
        let mut again = headers_frame(None, &fields);
        let Ok(Some(Frame::Whole(Kind::Headers, section))) = Frames::new(2 * MOST).next(&mut again) else { panic!("our own frame") };
        assert_eq!(trailers(&section, MOST).ok(), Some(fields), "what is written is read");
    }
}
