//! The purge check. A ledger holds, per selector, the index of its last purge; a stored response carries
//! `clean_through`, the index through which it is known not to be purged. It may be used only while no purge that
//! matches it has a greater index.
//!
//! Purging is O(1): nothing is searched and nothing is freed here. Checking is one comparison while the site saw no new
//! purge, and one look-up per selector that could match otherwise.
//!
//! The ledger is bounded per site: the oldest selectors are forgotten, and the floor rises to their index. What was
//! stored through less than the floor can no longer be vouched for.
//!
//! Invariants: every index in the ledger <= `through`; `latest` of a site >= every index that could match one of its
//! responses; an index that was forgotten <= the floor.

use crate::key::Target;
use std::collections::{HashMap, VecDeque};
use tidegate_control_types::planted::Bug;

/// Selectors remembered per site.
pub const MOST_SELECTORS: usize = 100_000;

/// What a purge names, within one site.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope<'a> {
    Url {
        host: &'a str,
        path_and_query: &'a str,
    },
    Tag(&'a str),
    /// Without `/` at its end.
    Prefix {
        host: &'a str,
        path: &'a str,
    },
    Host(&'a str),
    Site,
}

/// What the ledger says of a stored response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    Current,
    /// To be treated as stale.
    SoftlyPurged,
    /// The ledger does not reach back far enough: usable only once the origin confirmed it.
    Unvouched,
    Purged,
}

/// Indices of the last purges of one selector; 0 where there was none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Marks {
    hard: u64,
    soft: u64,
}

impl Marks {
    fn raise(&mut self, index: u64, soft: bool) {
        let slot = if soft { &mut self.soft } else { &mut self.hard };
        *slot = (*slot).max(index);
    }

    fn join(&mut self, other: Self) {
        self.hard = self.hard.max(other.hard);
        self.soft = self.soft.max(other.soft);
    }

    fn newest(self) -> u64 {
        self.hard.max(self.soft)
    }
}

/// Purges of one site.
#[derive(Clone, Debug, Default)]
struct SiteLedger {
    latest: u64,
    floor: u64,
    site: Marks,
    /// By kind and text, see [`entry_key`]. Prefixes and URLs are counted so that a site without them skips the look-ups.
    entries: HashMap<Box<str>, Marks>,
    prefixes: usize,
    order: VecDeque<(u64, Box<str>)>,
}

#[derive(Clone, Debug)]
pub struct Ledger {
    through: u64,
    floor: u64,
    everything: Marks,
    sites: HashMap<Box<str>, SiteLedger>,
    most_selectors: usize,
}

/// One text for each selector of a site: a letter for its kind, then host and path, separated by what no host contains.
fn entry_key(out: &mut String, scope: Scope<'_>) {
    out.clear();
    let parts = match scope {
        Scope::Url { host, path_and_query } => ["u", host, path_and_query],
        Scope::Tag(tag) => ["t", tag, ""],
        Scope::Prefix { host, path } => ["p", host, path],
        Scope::Host(host) => ["h", host, ""],
        Scope::Site => ["", "", ""],
    };
    parts.iter().for_each(|p| out.push_str(p));
}

impl Ledger {
    #[must_use]
    pub fn new(most_selectors: usize) -> Self {
        Self { through: 0, floor: 0, everything: Marks::default(), sites: HashMap::new(), most_selectors }
    }

    /// The index of the last entry of the log that this ledger has seen.
    #[must_use]
    pub fn through(&self) -> u64 {
        self.through
    }

    /// All entries up to `index` are in.
    pub fn advance(&mut self, index: u64) {
        self.through = self.through.max(index);
    }

    /// Purges up to `index` may be missing: what was stored through less is not vouched for.
    pub fn raise_floor(&mut self, index: u64) {
        self.floor = self.floor.max(index);
        self.advance(index);
        for site in self.sites.values_mut() {
            site.latest = site.latest.max(index);
        }
    }

    /// A site as it is now: nothing stored before `created` is its own, and what was stored before `keys_since` may have
    /// been purged under another name.
    pub fn site(&mut self, name: &str, created: u64, keys_since: u64) {
        let all = self.everything.newest().max(self.floor);
        let site = self.sites.entry(name.into()).or_default();
        site.site.raise(created, false);
        site.floor = site.floor.max(keys_since);
        site.latest = site.latest.max(created).max(keys_since).max(all);
    }

    pub fn remove_site(&mut self, name: &str) {
        self.sites.remove(name);
    }

    /// Records a purge at `index`; `None` purges every site. A site that this node does not know has nothing to purge.
    pub fn purge(&mut self, site: Option<&str>, scope: Scope<'_>, soft: bool, index: u64) {
        self.advance(index);
        let Some(name) = site else {
            self.everything.raise(index, soft);
            for site in self.sites.values_mut() {
                site.latest = site.latest.max(index);
            }
            return;
        };
        let Some(site) = self.sites.get_mut(name) else { return };
        site.latest = site.latest.max(index);
        if scope == Scope::Site {
            site.site.raise(index, soft);
            return;
        }
        let mut key = String::new();
        entry_key(&mut key, scope);
        let key: Box<str> = key.into();
        let marks = site.entries.entry(key.clone()).or_insert_with(|| {
            site.prefixes += usize::from(matches!(scope, Scope::Prefix { .. }));
            Marks::default()
        });
        marks.raise(index, soft);
        site.order.push_back((index, key));
        site.forget_beyond(self.most_selectors);
    }

    fn marks(&self, site: &SiteLedger, target: &Target) -> Marks {
        let mut marks = self.everything;
        marks.join(site.site);
        if site.entries.is_empty() {
            return marks;
        }
        let mut key = String::with_capacity(2 + target.host.len() + target.path_and_query.len());
        let mut look = |scope| {
            entry_key(&mut key, scope);
            if let Some(m) = site.entries.get(key.as_str()) {
                marks.join(*m);
            }
        };
        look(Scope::Host(&target.host));
        look(Scope::Url { host: &target.host, path_and_query: &target.path_and_query });
        if site.prefixes > 0 {
            let path = target.path();
            let ends = path.match_indices('/').map(|(at, _)| at).chain([path.len()]);
            ends.for_each(|end| look(Scope::Prefix { host: &target.host, path: path.get(..end).unwrap_or_default() }));
        }
        marks
    }

    /// Whether a response of `site`, stored under `target` with `tags`, known clean through `clean_through`, may be used.
    #[must_use]
    pub fn check(&self, site: &str, target: &Target, tags: &[Box<str>], clean_through: u64) -> Standing {
        let Some(site) = self.sites.get(site) else { return Standing::Unvouched };
        if clean_through >= site.latest {
            return Standing::Current;
        }
        let mut marks = self.marks(site, target);
        if !site.entries.is_empty() {
            let mut key = String::new();
            for tag in tags.iter().filter(|_| !Bug::TagsIgnored.is_planted()) {
                entry_key(&mut key, Scope::Tag(tag));
                if let Some(m) = site.entries.get(key.as_str()) {
                    marks.join(*m);
                }
            }
        }
        if marks.hard > clean_through {
            Standing::Purged
        } else if self.floor.max(if Bug::KeysRuleIgnored.is_planted() { 0 } else { site.floor }) > clean_through
            && !Bug::FloorIgnored.is_planted()
        {
            Standing::Unvouched
        } else if marks.soft > clean_through {
            Standing::SoftlyPurged
        } else {
            Standing::Current
        }
    }

    /// The newest purge known that can match `target` by anything but its tags, and the floor at least: what a fetch for
    /// a request that came now has to begin after.
    #[must_use]
    pub fn demand(&self, site: &str, target: &Target) -> u64 {
        let Some(site) = self.sites.get(site) else { return self.through };
        if site.latest == 0 {
            return 0;
        }
        self.marks(site, target).newest().max(self.floor).max(site.floor)
    }

    /// The greatest index up to `most` of a purge that matches by tag.
    #[must_use]
    pub fn tag_demand(&self, site: &str, tags: &[Box<str>], most: u64) -> u64 {
        let Some(site) = self.sites.get(site) else { return 0 };
        let mut key = String::new();
        let indices = tags.iter().filter_map(|tag| {
            entry_key(&mut key, Scope::Tag(tag));
            let m = site.entries.get(key.as_str())?;
            [m.hard, m.soft].into_iter().filter(|i| *i <= most).max()
        });
        indices.max().unwrap_or(0)
    }
}

impl SiteLedger {
    fn forget_beyond(&mut self, most: usize) {
        while self.order.len() > most {
            let Some((index, key)) = self.order.pop_front() else { return };
            // A selector that was purged again since is remembered by its later place in the order.
            if self.entries.get(&key).is_some_and(|m| m.newest() <= index) {
                self.entries.remove(&key);
                self.prefixes -= usize::from(key.starts_with('p'));
                self.floor = self.floor.max(index);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SITE: &str = "shop";

    fn target(text: &str) -> Target {
        Target::new(true, "h", text, None)
    }

    fn ledger() -> Ledger {
        let mut l = Ledger::new(MOST_SELECTORS);
        l.site(SITE, 1, 1);
        l
    }

    fn check(l: &Ledger, path: &str, tags: &[&str], clean_through: u64) -> Standing {
        let tags: Vec<Box<str>> = tags.iter().map(|t| (*t).into()).collect();
        l.check(SITE, &target(path), &tags, clean_through)
    }

    #[test]
    fn each_selector_matches_what_it_names_and_nothing_else() {
        use Standing::{Current, Purged};
        for (scope, path, tags, want) in [
            (Scope::Url { host: "h", path_and_query: "/a?b" }, "/a?b", &[][..], Purged),
            (Scope::Url { host: "h", path_and_query: "/a?b" }, "/a", &[], Current),
            (Scope::Url { host: "g", path_and_query: "/a" }, "/a", &[], Current),
            (Scope::Prefix { host: "h", path: "/img" }, "/img", &[], Purged),
            (Scope::Prefix { host: "h", path: "/img" }, "/img/a/b?c", &[], Purged),
            (Scope::Prefix { host: "h", path: "/img" }, "/images", &[], Current),
            (Scope::Prefix { host: "h", path: "" }, "/x", &[], Purged),
            (Scope::Host("h"), "/x", &[], Purged),
            (Scope::Host("g"), "/x", &[], Current),
            (Scope::Tag("t"), "/x", &["s", "t"], Purged),
            (Scope::Tag("t"), "/x", &["tt"], Current),
            (Scope::Site, "/x", &[], Purged),
        ] {
            let mut l = ledger();
            l.purge(Some(SITE), scope, false, 5);
            assert_eq!(check(&l, path, tags, 4), want, "{scope:?} {path}");
            assert_eq!(check(&l, path, tags, 5), Current, "stored after the purge: {scope:?}");
        }
    }

    #[test]
    fn all_purges_every_site_and_a_site_no_other() {
        let mut l = ledger();
        l.site("blog", 2, 2);
        l.purge(Some("blog"), Scope::Site, false, 5);
        assert_eq!(check(&l, "/", &[], 4), Standing::Current);
        l.purge(None, Scope::Site, false, 6);
        assert_eq!(check(&l, "/", &[], 5), Standing::Purged);
    }

    #[test]
    fn hard_is_stronger_than_soft_whichever_came_last() {
        let mut l = ledger();
        let scope = Scope::Host("h");
        l.purge(Some(SITE), scope, true, 5);
        assert_eq!(check(&l, "/", &[], 4), Standing::SoftlyPurged);
        l.purge(Some(SITE), scope, false, 6);
        l.purge(Some(SITE), scope, true, 7);
        assert_eq!(
            (check(&l, "/", &[], 4), check(&l, "/", &[], 6), check(&l, "/", &[], 7)),
            (Standing::Purged, Standing::SoftlyPurged, Standing::Current)
        );
    }

    #[test]
    fn a_site_made_anew_owns_nothing_that_was_stored_before() {
        let mut l = ledger();
        l.remove_site(SITE);
        assert_eq!(check(&l, "/", &[], 9), Standing::Unvouched);
        l.site(SITE, 10, 10);
        assert_eq!(check(&l, "/", &[], 9), Standing::Purged);
        l.site(SITE, 10, 12);
        assert_eq!(check(&l, "/", &[], 11), Standing::Unvouched, "the key's rules changed");
    }

    #[test]
    fn what_is_forgotten_raises_the_floor() {
        let mut l = Ledger::new(2);
        l.site(SITE, 1, 1);
        for (n, tag) in ["a", "b", "a", "c"].iter().enumerate() {
            l.purge(Some(SITE), Scope::Tag(tag), false, 5 + n as u64);
        }
        assert_eq!(check(&l, "/", &["b"], 5), Standing::Unvouched);
        assert_eq!(check(&l, "/", &["a"], 6), Standing::Purged);
        assert_eq!(check(&l, "/", &["z"], 6), Standing::Current);
        l.raise_floor(20);
        assert_eq!(check(&l, "/", &["z"], 19), Standing::Unvouched);
        assert_eq!(l.demand(SITE, &target("/")), 20);
    }

    #[test]
    fn unrelated_purges_demand_nothing() {
        let mut l = ledger();
        for n in 0..100 {
            l.purge(Some(SITE), Scope::Url { host: "h", path_and_query: &format!("/{n}") }, false, 10 + n);
        }
        assert_eq!(l.demand(SITE, &target("/7")), 17);
        assert_eq!(l.demand(SITE, &target("/x")), 1);
        l.purge(Some(SITE), Scope::Tag("t"), false, 500);
        assert_eq!((l.tag_demand(SITE, &["t".into()], 499), l.tag_demand(SITE, &["t".into()], 500)), (0, 500));
    }

    proptest! {
        /// Against a plain list of all purges, and with a ledger that forgets: never more permissive.
        #[test]
        fn the_ledger_never_permits_what_the_list_forbids(
            purges in proptest::collection::vec((0u8..6, 0u8..3, any::<bool>()), 0..20), clean in 1u64..30, room in 1usize..8,
        ) {
            let mut full = ledger();
            let mut small = Ledger::new(room);
            small.site(SITE, 1, 1);
            let (mut hard, mut soft) = (0, 0);
            for (n, (kind, which, is_soft)) in purges.iter().enumerate() {
                let index = 2 + n as u64;
                let (path, tag) = (format!("/d{which}/f"), format!("t{which}"));
                let dir = format!("/d{which}");
                let scope = match kind {
                    0 => Scope::Url { host: "h", path_and_query: &path },
                    1 => Scope::Tag(&tag),
                    2 => Scope::Prefix { host: "h", path: &dir },
                    3 => Scope::Host(if *which == 0 { "h" } else { "g" }),
                    4 => Scope::Prefix { host: "h", path: &path },
                    _ => Scope::Tag("other"),
                };
                full.purge(Some(SITE), scope, *is_soft, index);
                small.purge(Some(SITE), scope, *is_soft, index);
                if *kind < 5 && *which == 0 {
                    let slot = if *is_soft { &mut soft } else { &mut hard };
                    *slot = index;
                }
            }
            let want = if hard > clean { Standing::Purged } else if soft > clean { Standing::SoftlyPurged } else { Standing::Current };
            prop_assert_eq!(check(&full, "/d0/f", &["t0"], clean), want);
            let got = check(&small, "/d0/f", &["t0"], clean);
            prop_assert!(got == want || got == Standing::Unvouched || (want == Standing::SoftlyPurged && got == Standing::Purged), "{:?} {:?}", got, want);
        }
    }
}
