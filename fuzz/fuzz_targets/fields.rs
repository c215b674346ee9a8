//! Fields of requests and responses, and targets: anything that HTTP lets through.
#![no_main]

use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use libfuzzer_sys::fuzz_target;
use tidegate_cache::range::Selected;
use tidegate_cache::{Accepted, Freshness, FreshnessDefaults, Target, VaryKey, WallTime, cache_control, conditional, field, range, validation};

fn headers(lines: &[u8]) -> HeaderMap {
    let mut out = HeaderMap::new();
    for line in lines.split(|b| *b == b'\n') {
        let Some(colon) = line.iter().position(|b| *b == b':') else { continue };
        let (Ok(name), Ok(value)) = (HeaderName::from_bytes(&line[..colon]), HeaderValue::from_bytes(&line[colon + 1..])) else { continue };
        out.append(name, value);
    }
    out
}

fuzz_target!(|data: (&[u8], &[u8], &str, u64)| {
    let (request, response, target, length) = data;
    let (request, response) = (headers(request), headers(response));
    let length = length % (1 << 40);
    match range::select(&request, length) {
        Selected::Part { first, last } => assert!(first <= last && last < length),
        Selected::Whole | Selected::Unsatisfiable => {}
    }
    let said = cache_control::of_response(&response);
    let _ = cache_control::of_request(&request);
    let (now, later) = (WallTime(1_700_000_000_000), WallTime(1_700_000_060_000));
    let fresh = Freshness::new(StatusCode::OK, &response, &said, now, now, FreshnessDefaults::default());
    assert!(fresh.current_age(later) >= fresh.current_age(now));
    if let Some(vary) = VaryKey::new(&response, &request) {
        assert!(vary.matches(&request));
    }
    let accepted = Accepted::of(&request);
    let _ = (accepted.wanted().count(), accepted.normal());
    let _ = (conditional::not_modified(&request, &response), conditional::range_applies(&request, &response));
    let _ = (validation::conditions(&response), validation::confirms(&response, &request), field::tags(&response));
    let once = Target::new(false, "h", target, None).path_and_query;
    assert!(once.starts_with('/'));
    assert_eq!(Target::new(false, "h", &once, None).path_and_query, once, "the normal form is its own normal form");
});
