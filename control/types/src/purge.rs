//! What can be purged, as people name it.

use crate::name::SiteName;
use crate::site::is_host;
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// The most selectors of one purge, and the longest of them in bytes.
pub const MAX_SELECTORS: usize = 1000;
pub const MAX_SELECTOR_BYTES: usize = 8 << 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PurgeType {
    Url,
    Tag,
    Prefix,
    Host,
    Site,
    All,
}

impl PurgeType {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Url => "url",
            Self::Tag => "tag",
            Self::Prefix => "prefix",
            Self::Host => "host",
            Self::Site => "site",
            Self::All => "all",
        }
    }
}

impl FromStr for PurgeType {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        [Self::Url, Self::Tag, Self::Prefix, Self::Host, Self::Site, Self::All]
            .into_iter()
            .find(|t| t.as_str() == s)
            .ok_or_else(|| format!("{s:?} is not a type of purge: url, tag, prefix, host, site or all"))
    }
}

/// One thing to purge. Hosts are lower-case and without port; paths and queries are as they were written, and
/// each cache brings them into its key's normal form when it applies the purge.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Selector {
    /// `target` is path and query, beginning with `/`.
    Url {
        host: String,
        target: String,
    },
    Tag {
        tag: String,
    },
    /// `path` begins with `/` and has no `/` at its end, or is empty for the whole host.
    Prefix {
        host: String,
        path: String,
    },
    Host {
        host: String,
    },
    /// All of the site that the order names.
    Site,
    /// All of the network.
    All,
}

/// A selector in the one site that it concerns; `None` is every site, for [`Selector::All`] alone.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PurgeOrder {
    pub site: Option<SiteName>,
    pub selector: Selector,
    /// Makes it stale instead of unusable.
    pub soft: bool,
}

impl PurgeOrder {
    /// About how many bytes it takes in a message.
    #[must_use]
    pub fn weight(&self) -> usize {
        let text = match &self.selector {
            Selector::Url { host, target } => host.len() + target.len(),
            Selector::Prefix { host, path } => host.len() + path.len(),
            Selector::Tag { tag } => tag.len(),
            Selector::Host { host } => host.len(),
            Selector::Site | Selector::All => 0,
        };
        80 + text
    }
}

impl Selector {
    /// Reads one selector of the given type. `site` and `all` take none.
    ///
    /// # Errors
    /// What is wrong with it and what would be right.
    pub fn parse(kind: PurgeType, text: &str) -> Result<Self, String> {
        if text.len() > MAX_SELECTOR_BYTES {
            return Err(format!("a selector of {} bytes is longer than {MAX_SELECTOR_BYTES}", text.len()));
        }
        match kind {
            PurgeType::Url => {
                let (host, target) = split_host(text)?;
                Ok(Self::Url { host, target: if target.starts_with('/') { target } else { format!("/{target}") } })
            }
            PurgeType::Prefix => {
                let (host, path) = split_host(text)?;
                if path.contains('?') {
                    return Err(format!("{text:?}: a prefix is HOST/PATH without a query; purge by url to name one query"));
                }
                Ok(Self::Prefix { host, path: path.trim_end_matches('/').into() })
            }
            PurgeType::Host => match split_host(text)? {
                (host, path) if matches!(path.as_str(), "" | "/") => Ok(Self::Host { host }),
                _ => Err(format!("{text:?} has a path; a host alone is like www.example.com, a path is purged by prefix")),
            },
            PurgeType::Tag if text.is_empty() || text.bytes().any(|b| !b.is_ascii_graphic() || b == b',') => {
                Err(format!("{text:?} is not a tag: printable ASCII without spaces and commas"))
            }
            PurgeType::Tag => Ok(Self::Tag { tag: text.into() }),
            PurgeType::Site | PurgeType::All => Err(format!("a purge of type {} takes no selectors", kind.as_str())),
        }
    }

    #[must_use]
    pub fn host(&self) -> Option<&str> {
        match self {
            Self::Url { host, .. } | Self::Prefix { host, .. } | Self::Host { host } => Some(host),
            Self::Tag { .. } | Self::Site | Self::All => None,
        }
    }
}

/// Host (lower-case, no port) and the rest from `/` or `?` on, of a URL with or without scheme. Other characters than those of ASCII
/// are encoded as clients encode them (RFC 3987 section 3.1).
fn split_host(text: &str) -> Result<(String, String), String> {
    let wrong = |why: &str| format!("{text:?} {why}; it should look like https://www.example.com/path or www.example.com/path");
    let rest = match text.split_once("://") {
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") || scheme.eq_ignore_ascii_case("https") => rest,
        Some((before, _)) if !before.contains(['/', '?']) => return Err(wrong("has a scheme other than http and https")),
        _ => text,
    };
    let rest = rest.split('#').next().unwrap_or_default();
    if rest.bytes().any(|b| b <= b' ' || b == 0x7f) {
        return Err(wrong("has a space or a control character in it"));
    }
    let (authority, path) = rest.split_at(rest.find(['/', '?']).unwrap_or(rest.len()));
    if authority.contains('@') {
        return Err(wrong("has a user in it"));
    }
    let host = without_port(authority).ok_or_else(|| wrong("has no host"))?;
    let path = path.chars().fold(String::with_capacity(path.len()), |mut out, c| {
        if c.is_ascii() {
            out.push(c);
        } else {
            c.encode_utf8(&mut [0; 4]).bytes().for_each(|b| out.push_str(&format!("%{b:02X}")));
        }
        out
    });
    Ok((host, path))
}

/// The host of an authority, lower-case, and its port where it names one: `Example.com:8080` -> `example.com` and 8080, `[::1]` ->
/// `[::1]`. `None` where it is no host, or what follows it is no port.
#[must_use]
pub fn host_and_port(authority: &str) -> Option<(String, Option<u16>)> {
    let end = if authority.starts_with('[') { authority.find(']')? + 1 } else { authority.find(':').unwrap_or(authority.len()) };
    let (host, port) = (authority.get(..end)?, authority.get(end..)?);
    let port = match port.strip_prefix(':') {
        None if port.is_empty() => None,
        Some("") => None,
        Some(digits) if digits.bytes().all(|b| b.is_ascii_digit()) => Some(digits.parse().ok()?),
        _ => return None,
    };
    let host = host.strip_suffix('.').unwrap_or(host);
    is_host(host).then(|| (host.to_ascii_lowercase(), port))
}

/// The host alone.
#[must_use]
pub fn without_port(authority: &str) -> Option<String> {
    host_and_port(authority).map(|(host, _)| host)
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Url { host, target } => write!(f, "url {host}{target}"),
            Self::Tag { tag } => write!(f, "tag {tag}"),
            Self::Prefix { host, path } => write!(f, "prefix {host}{path}/"),
            Self::Host { host } => write!(f, "host {host}"),
            Self::Site => f.write_str("site"),
            Self::All => f.write_str("all"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_without_their_ports() {
        for (authority, host) in [("Example.com:8080", "example.com"), ("a.example.", "a.example"), ("[::1]:80", "[::1]"), ("a:", "a")] {
            assert_eq!(without_port(authority).as_deref(), Some(host), "{authority}");
        }
        assert_eq!(host_and_port("A:8080"), Some(("a".into(), Some(8080))));
        assert_eq!(host_and_port("a:"), Some(("a".into(), None)));
        for none in ["a:65536", "a:+1", "", ":80", "a:b", "a:1:2", "<..", "a..b", "[::1", "[::1]80", "a b", "a/b", "u@h", "[x]"] {
            assert_eq!(without_port(none), None, "{none}");
        }
    }

    #[test]
    fn selectors_are_read_as_people_write_them() {
        let url = |h: &str, t: &str| Ok(Selector::Url { host: h.into(), target: t.into() });
        assert_eq!(Selector::parse(PurgeType::Url, "https://WWW.Example.com:8443/a?b=1#c"), url("www.example.com", "/a?b=1"));
        assert_eq!(Selector::parse(PurgeType::Url, "www.example.com"), url("www.example.com", "/"));
        assert_eq!(Selector::parse(PurgeType::Url, "a.example/caf\u{e9}?q=\u{20ac}"), url("a.example", "/caf%C3%A9?q=%E2%82%AC"));
        assert!(Selector::parse(PurgeType::Url, "caf\u{e9}.example/").is_err());
        assert_eq!(Selector::parse(PurgeType::Url, "www.example.com?x"), url("www.example.com", "/?x"));
        assert_eq!(Selector::parse(PurgeType::Url, "http://[::1]:80/a://b"), url("[::1]", "/a://b"));
        let prefix = |p: &str| Ok(Selector::Prefix { host: "h".into(), path: p.into() });
        assert_eq!(Selector::parse(PurgeType::Prefix, "h/img/"), prefix("/img"));
        assert_eq!(Selector::parse(PurgeType::Prefix, "h"), prefix(""));
    }

    #[test]
    fn what_is_no_selector_is_refused() {
        for (kind, text) in [
            (PurgeType::Url, "ftp://h/a"),
            (PurgeType::Url, "https:///a"),
            (PurgeType::Url, "https://u@h/a"),
            (PurgeType::Url, "h/a b"),
            (PurgeType::Prefix, "h/a?b"),
            (PurgeType::Host, "h/a"),
            (PurgeType::Tag, ""),
            (PurgeType::Tag, "a b"),
            (PurgeType::Site, "x"),
        ] {
            assert!(Selector::parse(kind, text).is_err(), "{kind:?} {text}");
        }
    }
}
