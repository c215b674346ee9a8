//! What is to be done about a site's certificate, and when. Pure.

use std::time::Duration;
use tidegate_control_types::WallTime;
use tidegate_control_types::certificate::{OrderRecord, OrderStep, SealedCertificate};

/// However often it fails, so often it is tried at least.
const LONGEST_WAIT: Duration = Duration::from_secs(12 * 3600);
/// An authority that says so has been asked too much.
const RATE_LIMITED: Duration = Duration::from_secs(3600);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// An order is to be begun.
    Begin,
    /// One is under way: whoever leads goes on with it.
    GoOn,
    /// Nothing before that time.
    At(WallTime),
}

/// What is asked for by people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wish {
    /// What failed is tried now.
    Issue,
    /// A new one in the place of one that is good.
    Renew,
}

/// For these `names` at this authority: a host that a certificate is for, and that is none of them any more, is left out of the next.
/// `renew_at`: as the authority suggests.
#[must_use]
pub fn due(
    names: &[String],
    authority: &str,
    certificate: Option<&SealedCertificate>,
    order: Option<&OrderRecord>,
    renew_at: Option<WallTime>,
    wish: Option<Wish>,
    now: WallTime,
) -> Due {
    let is_same = |o: &OrderRecord| o.names == names && o.authority == authority;
    // One that failed for other names says nothing of these.
    if let Some(order) = order.filter(|o| is_same(o) || o.step != OrderStep::Failed) {
        return match order.step {
            _ if !is_same(order) => Due::Begin,
            OrderStep::Failed if wish.is_some() || now >= order.next_try => Due::Begin,
            OrderStep::Failed => Due::At(order.next_try),
            OrderStep::Ordering | OrderStep::Validating | OrderStep::Finalizing => Due::GoOn,
        };
    }
    let Some(certificate) = certificate.filter(|c| names.iter().all(|n| c.hosts.contains(n))) else { return Due::Begin };
    let at = renew_at.unwrap_or_else(|| renewal(certificate));
    if wish == Some(Wish::Renew) || now >= at { Due::Begin } else { Due::At(at) }
}

/// Whether an order for `rest` alone is worth it, where `left_out` cannot be proven: for what has no certificate, or an old one. One that
/// is good for a name that is left out is not given up for that before a sixth of its life is left, unless the authority wants it replaced
/// early, and never for names that it is not for.
#[must_use]
pub fn goes_without(
    rest: &[String],
    left_out: &[String],
    certificate: Option<&SealedCertificate>,
    renew_at: Option<WallTime>,
    now: WallTime,
) -> bool {
    let Some(certificate) = certificate else { return true };
    let is_for = |names: &[String]| names.iter().any(|n| certificate.hosts.contains(n));
    let last_sixth = certificate.not_after.since(certificate.not_before) / 6;
    let is_early = renew_at.is_some_and(|at| now >= at && at < renewal(certificate));
    let is_needed = now < certificate.not_after && is_for(left_out);
    let is_kept = is_needed && (!is_for(rest) || !is_early && certificate.not_after.since(now) > last_sixth);
    !is_kept && due(rest, "", Some(certificate), None, renew_at, None, now) == Due::Begin
}

/// Where the authority says nothing: when a third of its life is left, and up to a thirtieth of it sooner, each at another time.
#[must_use]
pub fn renewal(certificate: &SealedCertificate) -> WallTime {
    let life = certificate.not_after.since(certificate.not_before);
    let spread = u64::try_from((life / 30).as_millis()).unwrap_or(0).max(1);
    // Another for each certificate, and the same on every control node.
    let some = certificate
        .chain
        .first()
        .into_iter()
        .flatten()
        .fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3));
    let left = life / 3 + Duration::from_millis(some % spread);
    WallTime(certificate.not_after.0.saturating_sub(u64::try_from(left.as_millis()).unwrap_or(0)))
}

/// Where a certificate is to be renewed, tries are not further apart than a part of its life.
#[must_use]
pub fn longest_wait(certificate: Option<&SealedCertificate>) -> Duration {
    certificate.map_or(LONGEST_WAIT, |c| c.not_after.since(c.not_before) / 24)
}

/// After so many failures on end; `random` is any number.
#[must_use]
pub fn next_try(failures: u32, first: Duration, is_rate_limited: bool, random: u64) -> Duration {
    let wait = first.saturating_mul(1 << failures.saturating_sub(1).min(20)).min(LONGEST_WAIT);
    let wait = if is_rate_limited { wait.max(RATE_LIMITED) } else { wait };
    // A tenth more at most: those that failed together are not tried together.
    wait + Duration::from_millis(random % u64::try_from(wait.as_millis() / 10).unwrap_or(1).max(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidegate_control_types::SiteName;

    const DAY: u64 = 86_400_000;

    fn certificate(names: &[String]) -> SealedCertificate {
        SealedCertificate {
            name: "acme/shop".into(),
            chain: vec![b"leaf".to_vec()],
            sealed_key: Vec::new(),
            hosts: names.to_vec(),
            not_before: WallTime(0),
            not_after: WallTime(90 * DAY),
        }
    }

    fn order(names: &[String], step: OrderStep) -> OrderRecord {
        OrderRecord {
            site: "shop".parse::<SiteName>().unwrap(),
            names: names.to_vec(),
            left_out: Vec::new(),
            authority: "a".into(),
            url: None,
            sealed_key: Vec::new(),
            began: WallTime(0),
            step,
            failures: 1,
            problem: None,
            next_try: WallTime(1000),
        }
    }

    #[test]
    fn an_order_is_begun_gone_on_with_and_tried_again_at_its_time() {
        let names = ["www.shop.example".to_owned()];
        let (c, other) = (certificate(&names), ["shop.example".to_owned()]);
        let at = |c: Option<SealedCertificate>, o: Option<OrderRecord>, renew, wish, now| {
            due(&names, "a", c.as_ref(), o.as_ref(), renew, wish, WallTime(now))
        };
        assert_eq!(at(None, None, None, None, 0), Due::Begin);
        assert_eq!(at(Some(certificate(&other)), None, None, None, 0), Due::Begin, "its hosts are others now");
        let renewed = renewal(&c);
        assert!((57 * DAY..=60 * DAY).contains(&renewed.0), "{renewed:?}");
        assert_eq!(at(Some(c.clone()), None, None, None, DAY), Due::At(renewed));
        assert_eq!(at(Some(c.clone()), None, None, None, 60 * DAY), Due::Begin);
        assert_eq!(at(Some(c.clone()), None, Some(WallTime(5 * DAY)), None, 6 * DAY), Due::Begin, "the authority wants it sooner");
        assert_eq!(at(Some(c.clone()), None, None, Some(Wish::Renew), DAY), Due::Begin);
        assert_eq!(at(Some(c.clone()), None, None, Some(Wish::Issue), DAY), Due::At(renewed));
        for step in [OrderStep::Ordering, OrderStep::Validating, OrderStep::Finalizing] {
            assert_eq!(at(Some(c.clone()), Some(order(&names, step)), None, None, 0), Due::GoOn);
        }
        let failed = order(&names, OrderStep::Failed);
        assert_eq!(at(None, Some(failed.clone()), None, None, 999), Due::At(WallTime(1000)));
        assert_eq!(at(None, Some(failed.clone()), None, None, 1000), Due::Begin);
        assert_eq!(at(None, Some(failed), None, Some(Wish::Issue), 0), Due::Begin);
        assert_eq!(due(&names, "b", None, Some(&order(&names, OrderStep::Validating)), None, None, WallTime(0)), Due::Begin);
    }

    #[test]
    fn waits_double_up_to_a_bound_and_a_limit_of_the_authority_counts() {
        let minute = Duration::from_secs(60);
        for (failures, least) in [(1, 60), (2, 120), (3, 240), (30, 12 * 3600)] {
            for random in [0, 12_345, u64::MAX] {
                let wait = next_try(failures, minute, false, random).as_secs();
                assert!(wait >= least && wait <= least + least / 10, "{failures}: {wait}");
            }
        }
        assert!(next_try(1, minute, true, 0) >= Duration::from_secs(3600));
    }

    #[test]
    fn what_is_good_for_all_is_not_given_up_for_some_before_its_end_is_near() {
        let names = ["a", "b", "c"].map(str::to_owned);
        let (both, a, b, c) = (&names[..2], &names[..1], &names[1..2], &names[2..]);
        let of = |hosts: &[String], rest: &[String], out: &[String], now| {
            let certificate = certificate(hosts);
            let life = certificate.not_after.since(certificate.not_before);
            goes_without(rest, out, Some(&certificate), None, certificate.not_before + life / 100 * now)
        };
        assert!(goes_without(a, b, None, None, WallTime(0)));
        // At its renewal, and near its end.
        assert_eq!([50, 70, 80, 90, 101].map(|now| of(both, a, b, now)), [false, false, false, true, true]);
        assert_eq!([50, 90, 101].map(|now| of(both, c, b, now)), [false, false, true], "for a host that is new");
        let early =
            |renew_at: u64, now: u64| goes_without(a, b, Some(&certificate(both)), Some(WallTime(renew_at * DAY)), WallTime(now * DAY));
        assert_eq!((early(30, 31), early(30, 29), early(70, 71)), (true, false, false), "the authority will revoke it");
        assert_eq!([50, 70].map(|now| of(a, a, b, now)), [false, true], "nothing is given up");
        assert!(of(a, c, b, 50));
    }
}
