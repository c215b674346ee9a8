//! Whether a stored response answers a request, as it is, stale, or after validation (RFC 9111 section 4, RFC 5861,
//! and the purge check).

use crate::cache_control::RequestDirectives;
use crate::freshness::Freshness;
use crate::ledger::Standing;
use tidegate_control_types::WallTime;
use tidegate_control_types::planted::Bug;

/// How the node stands to the control plane, for one request to one site.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attachment {
    /// Its lease lasts: it knows of every purge that was answered.
    Attached,
    /// Cut off, and the site says `serve`.
    Alone,
    /// Cut off, and the site says `revalidate`: usable only if the origin confirmed it within the second.
    AloneRevalidating { confirmed: bool },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reuse {
    Fresh,
    /// Answers now, while a validation goes on behind it (stale-while-revalidate).
    StaleWhileRevalidating,
    /// Upstream is asked first. `or_stale`: the failures after which the stored response may be served.
    Validate {
        why: Why,
        or_stale: StandIn,
    },
    /// Must not be used and not be validated: as if it were not there.
    Gone,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    Stale,
    Request,
}

/// The failures of upstream after which a stored response may be served stale (RFC 9111 section 4.2.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum StandIn {
    Never,
    /// It cannot be reached, or says nothing.
    Unreachable,
    /// Also for an answer that is an error (`stale-if-error`, RFC 5861 section 4).
    AnyError,
}

/// Decides on a stored response that matches by key and Vary.
#[must_use]
pub fn decide(freshness: &Freshness, asked: &RequestDirectives, standing: Standing, attachment: Attachment, now: WallTime) -> Reuse {
    let unvouched = match standing {
        Standing::Purged if !Bug::PurgedMayStandIn.is_planted() => return Reuse::Gone,
        Standing::Unvouched => true,
        Standing::Current | Standing::SoftlyPurged | Standing::Purged => {
            matches!(attachment, Attachment::AloneRevalidating { confirmed: false })
        }
    };
    let stale_for = match (freshness.stale_for(now), standing) {
        (None, Standing::SoftlyPurged | Standing::Purged) => Some(0),
        (natural, _) => natural,
    };
    let may_be_stale = (!freshness.must_revalidate || Bug::StaleDespiteMustRevalidate.is_planted()) && !freshness.no_cache;
    let or_stale = |for_seconds: u64| {
        let may_stand_in = may_be_stale && (!unvouched || Bug::StaleIfErrorWhileDetached.is_planted());
        // After a soft purge, an operator's order, only an explicit stale-if-error allows a stale answer.
        let is_stale_by_time = standing == Standing::Current;
        match for_seconds {
            _ if !may_stand_in => StandIn::Never,
            s if s < freshness.stale_if_error => StandIn::AnyError,
            s if s < freshness.stale_if_unreachable && is_stale_by_time => StandIn::Unreachable,
            _ => StandIn::Never,
        }
    };
    let validate = |why| Reuse::Validate { why, or_stale: or_stale(stale_for.unwrap_or(0)) };
    if unvouched || freshness.no_cache {
        return validate(Why::Stale);
    }
    let age = freshness.current_age(now);
    let unwanted = asked.no_cache
        || asked.max_age.is_some_and(|most| age > most)
        || asked.min_fresh.is_some_and(|least| stale_for.is_some() || freshness.lifetime.saturating_sub(age) < least);
    if unwanted {
        return validate(Why::Request);
    }
    match stale_for {
        None => Reuse::Fresh,
        Some(_) if !may_be_stale => validate(Why::Stale),
        Some(s) if s < freshness.stale_while_revalidate => Reuse::StaleWhileRevalidating,
        Some(s) if standing == Standing::Current && asked.max_stale.is_some_and(|most| s <= most) => Reuse::Fresh,
        Some(_) => validate(Why::Stale),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRESH: Freshness = Freshness {
        lifetime: 10,
        by: crate::freshness::LifetimeBy::MaxAge,
        initial_age: 0,
        response_time: WallTime(0),
        stale_while_revalidate: 0,
        stale_if_error: 0,
        stale_if_unreachable: 0,
        must_revalidate: false,
        no_cache: false,
    };

    fn at(freshness: Freshness, second: u64) -> Reuse {
        decide(&freshness, &RequestDirectives::default(), Standing::Current, Attachment::Attached, WallTime(second * 1000))
    }

    #[test]
    fn stale_answers_only_within_their_windows() {
        use StandIn::{AnyError, Never, Unreachable};
        let validate = |or_stale| Reuse::Validate { why: Why::Stale, or_stale };
        assert_eq!((at(FRESH, 9), at(FRESH, 10)), (Reuse::Fresh, validate(Never)));
        let lenient = Freshness { stale_while_revalidate: 5, stale_if_error: 20, stale_if_unreachable: 30, ..FRESH };
        assert_eq!((at(lenient, 14), at(lenient, 15)), (Reuse::StaleWhileRevalidating, validate(AnyError)));
        assert_eq!((at(lenient, 30), at(lenient, 40)), (validate(Unreachable), validate(Never)));
        assert_eq!(at(Freshness { must_revalidate: true, ..lenient }, 14), validate(Never));
    }

    #[test]
    fn a_purge_is_stronger_than_freshness() {
        let decide = |standing, attachment| {
            decide(
                &Freshness { stale_if_error: 9, stale_if_unreachable: 99, ..FRESH },
                &RequestDirectives::default(),
                standing,
                attachment,
                WallTime(0),
            )
        };
        let validate = |or_stale| Reuse::Validate { why: Why::Stale, or_stale };
        assert_eq!(decide(Standing::Purged, Attachment::Alone), Reuse::Gone);
        assert_eq!(decide(Standing::SoftlyPurged, Attachment::Attached), validate(StandIn::AnyError));
        assert_eq!(decide(Standing::Unvouched, Attachment::Attached), validate(StandIn::Never), "a forgotten purge may have been hard");
        assert_eq!(decide(Standing::Current, Attachment::Alone), Reuse::Fresh);
        assert_eq!(decide(Standing::Current, Attachment::AloneRevalidating { confirmed: true }), Reuse::Fresh);
        assert_eq!(
            decide(Standing::Current, Attachment::AloneRevalidating { confirmed: false }),
            validate(StandIn::Never),
            "the control plane counts this node as silent"
        );
    }

    #[test]
    fn requests_may_ask_for_more() {
        let ask = |asked| decide(&FRESH, &asked, Standing::Current, Attachment::Attached, WallTime(5000));
        let refused = Reuse::Validate { why: Why::Request, or_stale: StandIn::Never };
        assert_eq!(ask(RequestDirectives { no_cache: true, ..Default::default() }), refused);
        assert_eq!(ask(RequestDirectives { max_age: Some(4), ..Default::default() }), refused);
        assert_eq!(ask(RequestDirectives { max_age: Some(5), ..Default::default() }), Reuse::Fresh);
        assert_eq!(ask(RequestDirectives { min_fresh: Some(6), ..Default::default() }), refused);
    }
}
