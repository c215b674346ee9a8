//! Cache-Status (RFC 9211): how this node handled a request, as its last member of the list.

use std::fmt::Write;

/// Why a request went forward (RFC 9211 section 2.2). Logs and metrics use the same tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ForwardReason {
    Bypass,
    Method,
    UriMiss,
    VaryMiss,
    Miss,
    Request,
    Stale,
    Partial,
}

impl ForwardReason {
    #[must_use]
    pub fn token(self) -> &'static str {
        match self {
            Self::Bypass => "bypass",
            Self::Method => "method",
            Self::UriMiss => "uri-miss",
            Self::VaryMiss => "vary-miss",
            Self::Miss => "miss",
            Self::Request => "request",
            Self::Stale => "stale",
            Self::Partial => "partial",
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheStatus {
    pub hit: bool,
    pub forward: Option<ForwardReason>,
    pub forward_status: Option<u16>,
    /// Seconds of freshness left, below zero for a stale response.
    pub ttl: Option<i64>,
    pub stored: bool,
    pub collapsed: bool,
    pub detail: Option<&'static str>,
}

impl CacheStatus {
    #[must_use]
    pub fn forwarded(reason: ForwardReason) -> Self {
        Self { forward: Some(reason), ..Self::default() }
    }

    #[must_use]
    pub fn hit(ttl: i64) -> Self {
        Self { hit: true, ttl: Some(ttl), ..Self::default() }
    }

    /// Writes the member for the node of this name.
    pub fn write(&self, out: &mut String, node: &str) {
        // A token does not begin with a digit (RFC 9651 section 3.3.4).
        let quote = if node.starts_with(|c: char| c.is_ascii_digit()) { "\"" } else { "" };
        let _ = write!(out, "{quote}{node}{quote}");
        if self.hit {
            out.push_str("; hit");
        }
        if let Some(reason) = self.forward {
            let _ = write!(out, "; fwd={}", reason.token());
        }
        if let Some(status) = self.forward_status {
            let _ = write!(out, "; fwd-status={status}");
        }
        if let Some(ttl) = self.ttl {
            let _ = write!(out, "; ttl={ttl}");
        }
        if self.stored {
            out.push_str("; stored");
        }
        if self.collapsed {
            out.push_str("; collapsed");
        }
        if let Some(detail) = self.detail {
            let _ = write!(out, "; detail={detail}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_as_rfc_9211_writes_them() {
        let show = |s: CacheStatus, node| {
            let mut out = String::new();
            s.write(&mut out, node);
            out
        };
        assert_eq!(show(CacheStatus::hit(30), "fra-1"), "fra-1; hit; ttl=30");
        let s = CacheStatus { stored: true, collapsed: true, forward_status: Some(200), ..CacheStatus::forwarded(ForwardReason::UriMiss) };
        assert_eq!(show(s, "1a"), "\"1a\"; fwd=uri-miss; fwd-status=200; stored; collapsed");
    }
}
