//! The engine beside a second reading of RFC 9111, made from the text alone and as plain as it can be: whatever a response and a
//! request say, the two agree on whether it is kept, and what becomes of it later.

#![allow(clippy::unwrap_used)] // A test fails by panicking.

use http::{HeaderMap, StatusCode};
use proptest::prelude::*;
use tidegate_cache::reuse::{self, Attachment, Reuse};
use tidegate_cache::{Freshness, FreshnessDefaults, Standing, cache_control, storable};
use tidegate_control_types::WallTime;

/// When the response came, in seconds.
const NOW: u64 = 1_700_000_000;

#[derive(Clone, Debug)]
struct Case {
    status: u16,
    response: Vec<&'static str>,
    age: Option<u64>,
    /// Seconds before it came.
    date: u64,
    expires: Option<i64>,
    modified: Option<u64>,
    request: Vec<&'static str>,
    authorization: bool,
    /// Seconds that it took, and after which the request comes.
    delay: u64,
    later: u64,
}

fn case() -> impl Strategy<Value = Case> {
    let response = prop::sample::subsequence(
        vec![
            "max-age=10",
            "MAX-AGE=\"100\"",
            "s-maxage=50",
            "S-Maxage=0",
            "no-store",
            "no-cache",
            "no-cache=\"x\"",
            "private",
            "private=\"x\"",
            "public",
            "must-revalidate",
            "proxy-revalidate",
            "must-understand",
            "stale-while-revalidate=20",
            "immutable",
            "max-age=oops",
            "unknown=1",
        ],
        0..4,
    );
    let request = prop::sample::subsequence(
        vec!["max-age=5", "max-age=60", "max-stale", "max-stale=15", "min-fresh=30", "no-cache", "no-store", "only-if-cached"],
        0..3,
    );
    let status = prop::sample::select(vec![200u16, 200, 200, 201, 203, 301, 302, 404, 410, 418, 500, 206, 304]);
    let times = (prop::option::of(0u64..80), 0u64..80, prop::option::of(-50i64..150), prop::option::of(0u64..2000));
    ((status, response, request, any::<bool>()), times, (0u64..3, 0u64..200)).prop_map(
        |((status, response, request, authorization), (age, date, expires, modified), (delay, later))| Case {
            status,
            response,
            age,
            date,
            expires,
            modified,
            request,
            authorization,
            delay,
            later,
        },
    )
}

/// The value of a directive: `None` where it is not there, `Some("")` where it has none. The first counts.
fn directive(all: &[&str], name: &str) -> Option<String> {
    let found = all.iter().map(|d| d.to_lowercase()).find(|d| d.split('=').next() == Some(name))?;
    Some(found.split_once('=').map(|(_, v)| v.trim_matches('"').to_owned()).unwrap_or_default())
}

fn seconds(all: &[&str], name: &str) -> Option<u64> {
    directive(all, name).map(|v| v.parse().unwrap_or(0))
}

impl Case {
    /// `no-cache` and `private` with fields' names are of those fields alone (sections 5.2.2.4 and 5.2.2.7).
    fn says(&self, name: &str) -> bool {
        let whole: Vec<_> = self.response.iter().copied().filter(|d| !d.ends_with("=\"x\"")).collect();
        directive(&whole, name).is_some()
    }

    fn asks(&self, name: &str) -> bool {
        directive(&self.request, name).is_some()
    }

    /// Section 3.
    fn may_be_kept(&self) -> bool {
        // RFC 9110 section 15.1.
        let by_itself = [200, 203, 204, 300, 301, 308, 404, 405, 410, 414, 501].contains(&self.status);
        let understood = by_itself || [302, 303, 307, 400, 403, 500, 502, 503, 504].contains(&self.status);
        if self.status == 206 || self.status == 304 || self.asks("no-store") {
            return false;
        }
        if self.says("must-understand") {
            if !understood {
                return false;
            }
        } else if self.says("no-store") {
            return false;
        }
        if self.says("private") {
            return false;
        }
        // A cache may decline to store: here `s-maxage=0` is no permission to share.
        let for_others = self.says("public") || seconds(&self.response, "s-maxage").is_some_and(|s| s > 0);
        if self.authorization && !(self.says("must-revalidate") || for_others) {
            return false;
        }
        let explicit = self.expires.is_some() || self.says("max-age") || self.says("s-maxage");
        if self.authorization && !explicit {
            return false;
        }
        self.says("public") || self.expires.is_some() || self.says("max-age") || self.says("s-maxage") || by_itself
    }

    /// Section 4.2.1 and 4.2.2.
    fn lifetime(&self) -> u64 {
        if let Some(shared) = seconds(&self.response, "s-maxage") {
            return shared;
        }
        if let Some(own) = seconds(&self.response, "max-age") {
            return own;
        }
        if let Some(expires) = self.expires {
            return u64::try_from(expires + i64::try_from(self.date).unwrap()).unwrap_or(0);
        }
        let heuristic = [200, 203, 204, 300, 301, 308, 404, 405, 410, 414, 501].contains(&self.status) || self.says("public");
        match self.modified {
            // It changed so long before its Date.
            Some(before) if heuristic => before / 10,
            _ => 0,
        }
    }

    /// Section 4.2.3.
    fn current_age(&self) -> u64 {
        let apparent = self.date;
        let corrected = self.age.unwrap_or(0) + self.delay;
        apparent.max(corrected) + self.later
    }

    /// Section 4 and 5.2.1, and RFC 5861: `F`resh, `S`tale while it is revalidated, `V`alidate.
    fn becomes(&self) -> char {
        let (age, lifetime) = (self.current_age(), self.lifetime());
        if self.says("no-cache") || self.asks("no-cache") {
            return 'V';
        }
        if seconds(&self.request, "max-age").is_some_and(|most| age > most) {
            return 'V';
        }
        if let Some(least) = seconds(&self.request, "min-fresh")
            && (age >= lifetime || lifetime - age < least)
        {
            return 'V';
        }
        if age < lifetime {
            return 'F';
        }
        if self.says("must-revalidate") || self.says("proxy-revalidate") || self.says("s-maxage") {
            return 'V';
        }
        let stale_for = age - lifetime;
        if seconds(&self.response, "stale-while-revalidate").is_some_and(|window| stale_for < window) {
            return 'S';
        }
        match directive(&self.request, "max-stale").as_deref() {
            Some("") => 'F',
            Some(most) if stale_for <= most.parse().unwrap() => 'F',
            _ => 'V',
        }
    }

    fn fields(&self) -> (HeaderMap, HeaderMap) {
        let date = |seconds: u64| tidegate_cache::field::show_date(seconds).parse().unwrap();
        let (mut request, mut response) = (HeaderMap::new(), HeaderMap::new());
        // Over several lines, as it may come.
        for line in &self.response {
            response.append("cache-control", line.parse().unwrap());
        }
        if !self.request.is_empty() {
            request.insert("cache-control", self.request.join(" ,").parse().unwrap());
        }
        if self.authorization {
            request.insert("authorization", "Basic x".parse().unwrap());
        }
        let sent = NOW - self.date;
        response.insert("date", date(sent));
        self.age.map(|a| response.insert("age", a.into()));
        self.expires.map(|e| response.insert("expires", date(NOW.saturating_add_signed(e))));
        self.modified.map(|m| response.insert("last-modified", date(sent - m)));
        (request, response)
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]
    #[test]
    fn two_readings_of_the_standard_agree(case in case()) {
        let (request, response) = case.fields();
        let (asked, said) = (cache_control::of_request(&request), cache_control::of_response(&response));
        let status = StatusCode::from_u16(case.status).unwrap();
        let exchange = storable::Exchange {
            request: &request,
            asked: &asked,
            status,
            response: &response,
            said: &said,
            has_default_ttl: false,
        };
        let kept = storable::storable(&exchange);
        prop_assert_eq!(kept.is_ok(), case.may_be_kept(), "{:?}", kept);
        let (sent, came) = (WallTime((NOW - case.delay) * 1000), WallTime(NOW * 1000));
        let freshness = Freshness::new(status, &response, &said, sent, came, FreshnessDefaults::default());
        let now = WallTime((NOW + case.later) * 1000);
        prop_assert_eq!((freshness.lifetime, freshness.current_age(now)), (case.lifetime(), case.current_age()));
        let becomes = match reuse::decide(&freshness, &asked, Standing::Current, Attachment::Attached, now) {
            Reuse::Fresh => 'F',
            Reuse::StaleWhileRevalidating => 'S',
            Reuse::Validate { .. } => 'V',
            Reuse::Gone => 'G',
        };
        prop_assert_eq!(becomes, case.becomes());
    }
}
