//! Range requests answered from a stored response (RFC 9110 section 14). One range is answered with 206, several are
//! answered with the whole, as section 14.2 allows.

use http::header::{HeaderMap, RANGE};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Selected {
    Whole,
    /// Invariant: `first <= last < length`.
    Part {
        first: u64,
        last: u64,
    },
    /// 416.
    Unsatisfiable,
}

/// What of a body of `length` bytes the request's Range selects.
#[must_use]
pub fn select(request: &HeaderMap, length: u64) -> Selected {
    let mut values = request.get_all(RANGE).iter();
    let (Some(value), None) = (values.next(), values.next()) else { return Selected::Whole };
    let Some(spec) = value.to_str().ok().and_then(bytes_spec) else { return Selected::Whole };
    match spec {
        (Some(first), last) if first < length => {
            let last = last.map_or(length - 1, |l| l.min(length - 1));
            if last < first { Selected::Whole } else { Selected::Part { first, last } }
        }
        (None, Some(suffix)) if suffix > 0 && length > 0 => Selected::Part { first: length.saturating_sub(suffix), last: length - 1 },
        (Some(first), Some(last)) if last < first => Selected::Whole,
        _ => Selected::Unsatisfiable,
    }
}

/// The first byte that the request's one range selects of a body whose length is not known yet; 0 for the last bytes, since nobody
/// knows where they begin. `None`: it asks for no range, or for several.
#[must_use]
pub fn first(request: &HeaderMap) -> Option<u64> {
    let mut values = request.get_all(RANGE).iter();
    let (Some(value), None) = (values.next(), values.next()) else { return None };
    match bytes_spec(value.to_str().ok()?)? {
        (Some(first), last) => last.is_none_or(|last| first <= last).then_some(first),
        (None, _) => Some(0),
    }
}

/// First and last position of `bytes=first-last`, or `(None, suffix length)`. `None` where it is anything else.
fn bytes_spec(value: &str) -> Option<(Option<u64>, Option<u64>)> {
    let (unit, set) = value.split_once('=')?;
    if !unit.eq_ignore_ascii_case("bytes") || set.contains(',') {
        return None;
    }
    let number = |text: &str| match text {
        "" => Some(None),
        _ if text.bytes().all(|b| b.is_ascii_digit()) => Some(Some(text.parse().unwrap_or(u64::MAX))),
        _ => None,
    };
    let (first, last) = set.trim().split_once('-')?;
    match (number(first.trim())?, number(last.trim())?) {
        (None, None) => None,
        spec => Some(spec),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Selected::{Part, Unsatisfiable, Whole};

    #[test]
    fn one_range_is_selected_and_nonsense_is_ignored() {
        let part = |first, last| Part { first, last };
        for (value, want) in [
            ("bytes=0-0", part(0, 0)),
            ("bytes=2-", part(2, 9)),
            ("Bytes=5-100", part(5, 9)),
            ("bytes=-3", part(7, 9)),
            ("bytes=-30", part(0, 9)),
            ("bytes=-0", Unsatisfiable),
            ("bytes=10-", Unsatisfiable),
            ("bytes=10-12", Unsatisfiable),
            ("bytes=5-2", Whole),
            ("bytes=-", Whole),
            ("bytes=a-b", Whole),
            ("bytes=0-1,3-4", Whole),
            ("lines=0-1", Whole),
            ("bytes=99999999999999999999-", Unsatisfiable),
        ] {
            let mut h = HeaderMap::new();
            h.insert(RANGE, value.parse().unwrap());
            assert_eq!(select(&h, 10), want, "{value}");
        }
        let mut h = HeaderMap::new();
        h.insert(RANGE, "bytes=-1".parse().unwrap());
        assert_eq!(select(&h, 0), Unsatisfiable);
    }
}
