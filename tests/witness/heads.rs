//! The heads that the origin may send, and their meaning by the standards. The meanings were written by hand beside the lines:
//! this file parses no field.

use crate::support::Numbers;

/// The time for which a stored copy may answer others (RFC 9111 sections 3 and 4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shared {
    Never,
    /// Only after the origin confirmed it for that very request.
    Validated,
    /// For so many seconds.
    For(u64),
    /// These lines do not say: Expires does, or a heuristic.
    Unsaid,
}

/// Lines of Cache-Control, or of a targeted field, and their meaning.
#[derive(Clone, Copy, Debug)]
pub struct Says {
    pub lines: &'static [&'static [u8]],
    pub shared: Shared,
    /// Never stale, whatever happens (`must-revalidate` and its kin).
    pub strict: bool,
    /// May also be stored for requests with Authorization (section 3.5).
    pub authorized: bool,
    /// `stale-while-revalidate` and `stale-if-error` (RFC 5861).
    pub while_revalidating: u64,
    pub if_error: u64,
    /// Others do not get the field X-Secret.
    pub keeps_secret: bool,
}

const fn says(lines: &'static [&'static [u8]], shared: Shared) -> Says {
    Says { lines, shared, strict: false, authorized: false, while_revalidating: 0, if_error: 0, keeps_secret: false }
}

const fn strict(lines: &'static [&'static [u8]], shared: Shared) -> Says {
    Says { strict: true, authorized: true, ..says(lines, shared) }
}

const fn public(lines: &'static [&'static [u8]], shared: Shared) -> Says {
    Says { authorized: true, ..says(lines, shared) }
}

use Shared::{For, Never, Unsaid, Validated};

pub const CACHE_CONTROL: &[Says] = &[
    says(&[], Unsaid),
    says(&[b"max-age=1"], For(1)),
    says(&[b"max-age=2"], For(2)),
    says(&[b"max-age=60"], For(60)),
    says(&[b"max-age=\"60\""], For(60)),
    says(&[b"MAX-AGE=60"], For(60)),
    says(&[b", max-age=60,, foo=\"a, b\""], For(60)),
    says(&[b"foo", b"max-age=60"], For(60)),
    says(&[b"max-age=99999999999999999999"], For(u64::MAX)),
    // The first counts, or it is stale (section 4.2.1).
    says(&[b"max-age=3, max-age=60"], For(3)),
    public(&[b"public, max-age=60"], For(60)),
    public(&[b"public"], Unsaid),
    strict(&[b"s-maxage=60, max-age=0"], For(60)),
    strict(&[b"s-maxage=2"], For(2)),
    strict(&[b"max-age=2, must-revalidate"], For(2)),
    Says { authorized: false, ..strict(&[b"max-age=2, proxy-revalidate"], For(2)) },
    Says { while_revalidating: 3, ..says(&[b"max-age=1, stale-while-revalidate=3"], For(1)) },
    Says { if_error: 60, ..says(&[b"max-age=1, stale-if-error=60"], For(1)) },
    Says { keeps_secret: true, ..says(&[b"max-age=60, private=\"x-secret\""], For(60)) },
    Says { keeps_secret: true, ..says(&[b"max-age=60, no-cache=\"x-secret\""], For(60)) },
    says(&[b"max-age=0"], For(0)),
    strict(&[b"s-maxage=0, max-age=60"], For(0)),
    strict(&[b"max-age=0, must-revalidate"], For(0)),
    // No whole number of seconds: stale (section 4.2.1).
    says(&[b"max-age=abc"], For(0)),
    says(&[b"max-age=-5"], For(0)),
    says(&[b"max-age="], For(0)),
    says(&[b"no-cache"], Validated),
    says(&[b"max-age=60, no-cache"], Validated),
    says(&[b"no-cache; max-age=60"], Validated),
    says(&[b"max-age=60", b"No-Cache"], Validated),
    says(&[b"no-store"], Never),
    says(&[b"NO-STORE, max-age=60"], Never),
    says(&[b"max-age=60, no-store"], Never),
    says(&[b"no-store;max-age=60"], Never),
    says(&[b"max-age=60 no-store"], Never),
    says(&[b"max-age=60", b"no-store"], Never),
    says(&[b"caf\xe9, no-store, max-age=60"], Never),
    says(&[b"foo=\"open, no-store, max-age=60"], Never),
    says(&[b"private"], Never),
    says(&[b"Private, max-age=60"], Never),
    says(&[b"private;, max-age=60"], Never),
    says(&[b"max-age=60;private"], Never),
    says(&[b"max-age=60,\tprivate"], Never),
    says(&[b"private=, max-age=60"], Never),
    says(&[b"public, private, max-age=60"], Never),
    says(&[b"caf\xc3\xa9 private, max-age=60"], Never),
];

/// CDN-Cache-Control (RFC 9213); without a meaning where it is invalid, and so not there.
pub const TARGETED: &[(&[u8], Option<Says>)] = &[
    (b"max-age=60", Some(says(&[], For(60)))),
    (b"max-age=2", Some(says(&[], For(2)))),
    (b"no-store", Some(says(&[], Never))),
    (b"max-age=60, private", Some(says(&[], Never))),
    (b"max-age=60, no-cache", Some(says(&[], Validated))),
    (b"max-age=2, must-revalidate", Some(strict(&[], For(2)))),
    (b"max-age=60 no-store", None),
    (b"max-age=60,", None),
    (b"max-age=60; caf\xe9", None),
    (b"max-age=\"60", None),
];

type Lines = &'static [&'static [u8]];

/// Lines of Vary: the fields that they name in small letters, or nothing where others may never have the response.
pub const VARY: &[(Lines, Option<&[&str]>)] = &[
    (&[b"X-V"], Some(&["x-v"])),
    (&[b"x-v,, Accept-Language"], Some(&["x-v", "accept-language"])),
    (&[b"X-V", b"Cookie"], Some(&["x-v", "cookie"])),
    (&[b"Cookie"], Some(&["cookie"])),
    (&[b"Accept-Language"], Some(&["accept-language"])),
    (&[b"Origin"], Some(&["origin"])),
    (&[b"*"], None),
    (&[b"X-V, *"], None),
    (&[b"X-V, caf\xe9"], None),
    (&[b"X V"], None),
];

/// Lines of Age, and the age that they mean (section 5.1: the first member counts, an invalid one counts as 0).
pub const AGE: &[(&[u8], u64)] = &[(b"0", 0), (b"1", 1), (b"abc", 0), (b"1, 90", 1), (b"-90", 0), (b"", 0)];

/// Surrogate-Key, Cache-Tag or xkey with a tag `t0` to `t5`, in the forms that are met, in bytes.
pub fn tags(r: &mut Numbers) -> (Vec<(&'static str, Vec<u8>)>, Vec<String>) {
    let mut tags: Vec<String> = Vec::new();
    let mut fields = Vec::new();
    for _ in 0..r.index(3) {
        let (one, two) = (format!("t{}", r.index(6)), format!("t{}", r.index(6)));
        let (name, joined) = [("surrogate-key", " "), ("cache-tag", ","), ("xkey", ", ")][r.index(3)];
        let mut value = format!("{one}{joined}{two}").into_bytes();
        if r.index(4) == 0 {
            value.extend([joined.as_bytes(), b"caf\xe9"].concat());
        }
        fields.push((name, value));
        tags.extend([one, two]);
    }
    (fields, tags)
}

/// Heads with contradictory framing, which every recipient has to refuse (RFC 9112 section 6.3).
pub const TWO_FRAMINGS: &[&[u8]] = &[
    b"Content-Length: 5\r\nContent-Length: 7\r\n",
    b"Content-Length: 5, 7\r\n",
    b"Content-Length: +5\r\n",
    b"Content-Length: 5x\r\n",
    b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
    b"Transfer-Encoding: gzip, chunked\r\n",
    b"Transfer-Encoding: chunked, chunked\r\n",
    b"Transfer-Encoding: x\r\n",
];

/// Bytes that are not a response head.
pub const NO_HEAD: &[&[u8]] = &[
    b"HTTP/1.1 200 OK\r\nX-V : 1\xff\r\n: no name\r\n\r\n",
    b"HTTP/1.1 20 OK\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nX\x00Y: 1\r\nContent-Length: 0\r\n\r\n",
    b"SSH-2.0-nothing\r\n\r\n",
    b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\n",
];
