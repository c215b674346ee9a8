//! Freshness and age (RFC 9111 section 4.2).

use crate::cache_control::ResponseDirectives;
use crate::field;
use crate::storable::{NotStorable, heuristically_cacheable};
use http::StatusCode;
use http::header::{AGE, DATE, ETAG, EXPIRES, HeaderMap, LAST_MODIFIED};
use serde::{Deserialize, Serialize};
use tidegate_control_types::WallTime;

/// The most that a heuristic gives, in seconds: a day.
const MOST_HEURISTIC: u64 = 86_400;

/// Seconds: the greatest age that is told apart (section 1.2.2).
const OLDEST: u64 = 1 << 31;

/// What the site says where the origin says nothing. Seconds.
#[derive(Clone, Copy, Debug, Default)]
pub struct FreshnessDefaults {
    /// `None`: heuristic.
    pub ttl: Option<u64>,
    pub stale_while_revalidate: u64,
    pub stale_if_error: u64,
    pub stale_if_unreachable: u64,
}

/// What a freshness lifetime comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum LifetimeBy {
    SMaxage,
    MaxAge,
    /// A field for caches of this kind alone (RFC 9213).
    Targeted,
    Expires,
    Site,
    LastModified,
    #[default]
    Nothing,
}

/// All that decides, at any later time, how old a stored response is and whether it is fresh.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Freshness {
    /// Freshness lifetime in whole seconds (section 4.2.1).
    pub lifetime: u64,
    pub by: LifetimeBy,
    /// `corrected_initial_age` in seconds (section 4.2.3), at `response_time`.
    pub initial_age: u64,
    pub response_time: WallTime,
    pub stale_while_revalidate: u64,
    pub stale_if_error: u64,
    pub stale_if_unreachable: u64,
    /// Never used stale (section 4.2.4).
    pub must_revalidate: bool,
    /// Used only after revalidation (section 5.2.2.4).
    pub no_cache: bool,
}

impl Freshness {
    #[must_use]
    pub fn new(
        status: StatusCode,
        headers: &HeaderMap,
        said: &ResponseDirectives,
        request_time: WallTime,
        response_time: WallTime,
        defaults: FreshnessDefaults,
    ) -> Self {
        let date = field::date(headers, &DATE);
        let (lifetime, by) = lifetime(status, headers, said, date.unwrap_or(response_time.as_secs()), defaults.ttl);
        Self {
            lifetime,
            by,
            initial_age: initial_age(headers, date, request_time, response_time),
            response_time,
            stale_while_revalidate: said.stale_while_revalidate.unwrap_or(defaults.stale_while_revalidate),
            stale_if_error: said.stale_if_error.unwrap_or(defaults.stale_if_error),
            // A response that was never fresh is not served stale either.
            stale_if_unreachable: if lifetime > 0 { defaults.stale_if_unreachable } else { 0 },
            // s-maxage has the meaning of proxy-revalidate too (section 5.2.2.10).
            must_revalidate: said.must_revalidate || said.proxy_revalidate || (said.s_maxage.is_some() && !said.targeted),
            no_cache: said.no_cache,
        }
    }

    /// With a lifetime that is shorter by up to `percent`, so that what was stored together does not expire together. `random`: any
    /// number.
    #[must_use]
    pub fn spread(mut self, percent: u8, random: u64) -> Self {
        if percent > 0 {
            let most = self.lifetime.saturating_mul(u64::from(percent.min(100))) / 100;
            // The bits of keys and times are not spread evenly.
            let mixed = (random ^ (random >> 32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            self.lifetime -= (mixed ^ (mixed >> 29)) % (most + 1);
        }
        self
    }

    /// `current_age` in whole seconds (section 4.2.3).
    #[must_use]
    pub fn current_age(&self, now: WallTime) -> u64 {
        self.initial_age + now.since(self.response_time).as_secs()
    }

    /// Whether a stored copy answers requests that ask for nothing special, at the time at which it came: else its like is not worth
    /// waiting for.
    #[must_use]
    pub fn is_shared_on_arrival(&self) -> bool {
        let stale_for = (self.initial_age >= self.lifetime).then(|| self.initial_age - self.lifetime);
        !self.no_cache && stale_for.is_none_or(|s| !self.must_revalidate && s < self.stale_while_revalidate)
    }

    /// Whether a stored copy could answer any later request: fresh, stale, or after validation.
    ///
    /// # Errors
    /// Why not.
    pub fn reusable(&self, headers: &HeaderMap) -> Result<(), NotStorable> {
        let may_be_used = !self.no_cache && (self.lifetime > 0 || self.stale_while_revalidate > 0 || self.stale_if_error > 0);
        if may_be_used || headers.contains_key(ETAG) || headers.contains_key(LAST_MODIFIED) {
            return Ok(());
        }
        Err(if self.by == LifetimeBy::Nothing && !self.no_cache { NotStorable::NoFreshness } else { NotStorable::NoValidator })
    }

    /// How many seconds it has been stale for at `now`; `None` while it is fresh.
    #[must_use]
    pub fn stale_for(&self, now: WallTime) -> Option<u64> {
        let age = self.current_age(now);
        (age >= self.lifetime).then(|| age - self.lifetime)
    }
}

/// Section 4.2.1.
fn lifetime(status: StatusCode, headers: &HeaderMap, said: &ResponseDirectives, date: u64, default_ttl: Option<u64>) -> (u64, LifetimeBy) {
    let untargeted = |by| if said.targeted { LifetimeBy::Targeted } else { by };
    if let Some(seconds) = said.s_maxage {
        return (seconds, untargeted(LifetimeBy::SMaxage));
    }
    if let Some(seconds) = said.max_age {
        return (seconds, untargeted(LifetimeBy::MaxAge));
    }
    if !said.targeted && headers.contains_key(EXPIRES) {
        // An unreadable Expires, "0" among them, is in the past (section 5.3).
        return (field::date(headers, &EXPIRES).map_or(0, |at| at.saturating_sub(date)), LifetimeBy::Expires);
    }
    if !(heuristically_cacheable(status) || said.public) {
        return (0, LifetimeBy::Nothing);
    }
    if let Some(seconds) = default_ttl {
        return (seconds, LifetimeBy::Site);
    }
    // Section 4.2.2: a tenth of the time since it changed last.
    let changed = field::date(headers, &LAST_MODIFIED);
    changed.map_or((0, LifetimeBy::Nothing), |at| ((date.saturating_sub(at) / 10).min(MOST_HEURISTIC), LifetimeBy::LastModified))
}

/// Section 4.2.3, at the time of the response.
fn initial_age(headers: &HeaderMap, date: Option<u64>, request_time: WallTime, response_time: WallTime) -> u64 {
    let apparent = date.map_or(0, |d| response_time.as_secs().saturating_sub(d));
    // The first member of the list counts; a value that is not a number of seconds is ignored (section 5.1).
    let first = field::list(headers, &AGE).next().filter(|m| m.iter().all(u8::is_ascii_digit));
    let value = first.map_or(0, |m| field::digits(m).unwrap_or(OLDEST).min(OLDEST));
    let corrected = value + response_time.since(request_time).as_secs();
    apparent.max(corrected)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache_control;

    const NOW: WallTime = WallTime(1_700_000_000_000);

    fn check(lines: &[(&'static str, String)]) -> Freshness {
        let mut h = HeaderMap::new();
        for (n, v) in lines {
            h.append(*n, v.parse().unwrap());
        }
        Freshness::new(StatusCode::OK, &h, &cache_control::of_response(&h), NOW, NOW, FreshnessDefaults::default())
    }

    fn date(offset: i64) -> String {
        field::show_date(NOW.as_secs().saturating_add_signed(offset))
    }

    #[test]
    fn lifetimes_by_precedence() {
        let cc = |v: &str| ("cache-control", v.to_owned());
        assert_eq!(check(&[cc("max-age=5, s-maxage=9")]).lifetime, 9);
        assert_eq!(check(&[cc("max-age=5"), ("expires", date(99))]).lifetime, 5);
        assert_eq!(check(&[("date", date(0)), ("expires", date(99))]).lifetime, 99);
        assert_eq!(check(&[("expires", "0".into())]).lifetime, 0);
        assert_eq!(check(&[("date", date(0)), ("last-modified", date(-1000))]).lifetime, 100);
        assert_eq!(check(&[("date", date(0)), ("last-modified", date(-100_000_000))]).lifetime, MOST_HEURISTIC);
        assert_eq!(check(&[]).lifetime, 0);
    }

    #[test]
    fn lifetimes_are_spread_within_what_the_site_allows() {
        let f = Freshness { lifetime: 1000, ..Freshness::default() };
        assert_eq!(f.spread(0, 7), f);
        let all: Vec<u64> = (0..1000).map(|n| f.spread(10, n * 1000).lifetime).collect();
        assert!(all.iter().all(|l| (900..=1000).contains(l)));
        let early = all.iter().filter(|l| **l < 950).count();
        assert!((350..650).contains(&early), "{early} of 1000 in the earlier half");
        assert_eq!(Freshness { lifetime: u64::MAX, ..f }.spread(100, 5).lifetime.min(1), 1);
    }

    #[test]
    fn age_counts_from_the_origin() {
        let f = check(&[("date", date(-30)), ("age", "10".into()), ("cache-control", "max-age=60".into())]);
        assert_eq!(f.initial_age, 30);
        assert_eq!(f.current_age(WallTime(NOW.0 + 5_999)), 35);
        assert_eq!(f.stale_for(WallTime(NOW.0 + 29_999)), None);
        assert_eq!(f.stale_for(WallTime(NOW.0 + 31_000)), Some(1));
        for (age, counts) in [("50, 3", 50), ("x, 3", 0), ("x", 0), ("-1", 0), ("1.5", 0), ("0;a=b", 0), ("", 0), ("99999999999", OLDEST)] {
            assert_eq!(check(&[("age", age.into())]).initial_age, counts, "{age}");
        }
        assert_eq!(check(&[("age", "7".into()), ("age", "9".into())]).initial_age, 7);
    }
}
