//! Which hosts a site answers for. The leader looks at what they show: at those that show nothing yet often, for whoever has just made a record,
//! and at the others now and then, for names that change hands.

use crate::ownership::Seen;
use crate::shared::{Control, NotNow};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tidegate_control_state::State;
use tidegate_control_types::site::{Hold, HostPattern, Shown};
use tidegate_control_types::{Change, Clock, SiteName, WallTime};
use tidegate_node::clock::random_u64;

const BY: &str = "leader";
/// Of a host that has shown nothing yet: after this first, then more and more seldom.
const FIRST: Duration = Duration::from_secs(2);
const SELDOM: Duration = Duration::from_secs(300);
/// A host that was asked for that long is looked at every [`SELDOM`] only.
const OFTEN_FOR: u32 = 100;
const OFTEN: Duration = Duration::from_secs(20);
/// Of one that a site holds.
const AGAIN: Duration = Duration::from_secs(6 * 3600);
/// Of one that shows no longer whose it is.
const AGAIN_LOST: Duration = Duration::from_secs(600);
/// After which it is its site's no more.
const GRACE: Duration = Duration::from_secs(7 * 86_400);
/// Looked at at once.
const MOST_AT_ONCE: usize = 32;
const MOST_OF_A_SITE: usize = 4;

type Host = (SiteName, HostPattern);

/// When each host is looked at next. Made anew by each leader.
#[derive(Default)]
pub struct Holding(Mutex<BTreeMap<Host, Next>>);

struct Next {
    at: WallTime,
    looks: u32,
    /// Being looked at.
    now: bool,
}

impl Holding {
    /// The hosts whose time has come; they count as being looked at.
    fn due(&self, state: &State, now: WallTime) -> Vec<Host> {
        let mut all = self.0.lock();
        all.retain(|(site, host), _| state.site(site.as_str()).is_some_and(|r| r.current().spec.hosts.contains(host)));
        let mut waiting = Vec::new();
        for record in state.sites() {
            for host in &record.current().spec.hosts {
                let hold = record.holds().get(host);
                if *host == HostPattern::Any || hold.is_some_and(|h| h.shown == Shown::Vouched) {
                    continue;
                }
                let key = (record.name().clone(), host.clone());
                // A new leader does not look at all of them at once.
                let first = if hold.is_some() { now + later(AGAIN, random_u64()) } else { now };
                let next = all.entry(key.clone()).or_insert(Next { at: first, looks: 0, now: false });
                if !next.now && now >= next.at {
                    waiting.push((next.at, key));
                }
            }
        }
        // Whoever waits longest is first, and no site has all the places.
        waiting.sort();
        let mut places: BTreeMap<SiteName, usize> = BTreeMap::new();
        all.iter().filter(|(_, n)| n.now).for_each(|((site, _), _)| *places.entry(site.clone()).or_default() += 1);
        let mut under_way: usize = places.values().sum();
        let mut due = Vec::new();
        for (_, key) in waiting {
            let of_site = places.entry(key.0.clone()).or_default();
            if under_way >= MOST_AT_ONCE || *of_site >= MOST_OF_A_SITE {
                continue;
            }
            (under_way, *of_site) = (under_way + 1, *of_site + 1);
            if let Some(next) = all.get_mut(&key) {
                next.now = true;
            }
            due.push(key);
        }
        due
    }

    fn looked(&self, host: &Host, wait: impl Fn(u32) -> Duration, now: WallTime) {
        if let Some(next) = self.0.lock().get_mut(host) {
            (next.looks, next.now) = (next.looks.saturating_add(1), false);
            next.at = now + wait(next.looks);
        }
    }
}

/// Some part of it, each time another.
fn later(most: Duration, random: u64) -> Duration {
    Duration::from_millis(random % u64::try_from(most.as_millis()).unwrap_or(1).max(1))
}

/// How long a host that shows nothing yet is let be, after so many looks.
fn patience(looks: u32) -> Duration {
    if looks > OFTEN_FOR { SELDOM } else { FIRST.saturating_mul(looks.max(1)).min(OFTEN) }
}

/// Looks at the hosts whose time has come.
pub fn look(control: &Arc<Control>) {
    let (now, state) = (control.clock.wall(), control.raft.state.read());
    let Some(zone) = state.founding.zone.clone() else { return };
    for host in control.holding.due(&state, now) {
        let (control, zone) = (Arc::clone(control), zone.clone());
        tokio::spawn(async move {
            let target = format!("{}.{zone}", host.0);
            let seen = control.names.of_host(&host.1, &target).await;
            if let Err(error) = take(&control, &host, &seen).await {
                tracing::debug!(site = %host.0, host = %host.1, %error, "what a host shows was not taken in");
            }
            let hold = control.raft.state.read().site(host.0.as_str()).and_then(|r| r.holds().get(&host.1).copied());
            let wait = |looks| match hold {
                None => patience(looks),
                Some(Hold { lost: Some(_), .. }) => AGAIN_LOST,
                Some(_) => AGAIN,
            };
            control.holding.looked(&host, wait, control.clock.wall());
        });
    }
}

/// What was seen of a host, into the log, where it changes something.
pub async fn take(control: &Control, (site, host): &Host, seen: &Seen) -> Result<(), NotNow> {
    let before = control.raft.state.read().site(site.as_str()).and_then(|r| r.holds().get(host).copied());
    let Some(hold) = after(before, seen, control.clock.wall()) else { return Ok(()) };
    tracing::info!(%site, %host, held = hold.is_some(), problem = seen.problem, "what a host shows has changed");
    control.change(BY, Change::HostPut { site: site.clone(), host: host.clone(), hold }).await.map(drop)
}

/// What becomes of a hold; `None`: nothing changes.
#[allow(clippy::option_option)] // The inner one: the host is the site's no more.
fn after(before: Option<Hold>, seen: &Seen, now: WallTime) -> Option<Option<Hold>> {
    match (before, seen.shown) {
        (Some(Hold { shown: Shown::Vouched, .. }), _) => None,
        (None, Shown::No) => None,
        (None, shown) => Some(Some(Hold { shown, since: now, lost: None })),
        // A name server that does not answer says nothing.
        (Some(_), Shown::No) if !seen.is_certain => None,
        (Some(hold @ Hold { lost: None, .. }), Shown::No) => Some(Some(Hold { lost: Some(now), ..hold })),
        (Some(Hold { lost: Some(lost), .. }), Shown::No) => (now.since(lost) >= GRACE).then_some(None),
        (Some(hold), shown) => (hold.lost.is_some() || hold.shown != shown).then_some(Some(Hold { shown, lost: None, ..hold })),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_held_once_it_shows_so_and_let_go_a_week_after_it_does_no_more() {
        let seen = |shown, is_certain| Seen { shown, chain: Vec::new(), problem: None, is_certain };
        let (yes, no, nobody) = (seen(Shown::Cname, true), seen(Shown::No, true), seen(Shown::No, false));
        let at = |days: u64| WallTime(days * 86_400_000);
        assert_eq!(after(None, &no, at(0)), None);
        let held = after(None, &yes, at(1)).unwrap();
        assert_eq!(held, Some(Hold { shown: Shown::Cname, since: at(1), lost: None }));
        assert_eq!((after(held, &yes, at(2)), after(held, &nobody, at(2))), (None, None));
        let lost = after(held, &no, at(2)).unwrap();
        assert_eq!(lost.unwrap().lost, Some(at(2)));
        assert_eq!((after(lost, &no, at(8)), after(lost, &nobody, at(30))), (None, None));
        assert_eq!(after(lost, &no, at(9)), Some(None), "after a week");
        assert_eq!(after(lost, &seen(Shown::Txt, true), at(5)), Some(Some(Hold { shown: Shown::Txt, since: at(1), lost: None })));
        let vouched = Some(Hold { shown: Shown::Vouched, since: at(0), lost: None });
        assert_eq!(after(vouched, &no, at(400)), None);
    }

    #[test]
    fn a_host_that_shows_nothing_is_looked_at_within_seconds_at_first() {
        assert_eq!([1, 3, 50, 101].map(|n| patience(n).as_secs()), [2, 6, 20, 300]);
    }
}
