//! Sites and their versions.

use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, VecDeque};
use tidegate_control_types::event::SiteState;
use tidegate_control_types::site::{Hold, HostPattern, SiteSpec};
use tidegate_control_types::{SiteName, WallTime};

const MOST_VERSIONS: usize = 50;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SiteVersion {
    pub index: u64,
    pub at: WallTime,
    pub by: String,
    pub source: String,
    pub spec: SiteSpec,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SiteRecord {
    created: u64,
    keys_since: u64,
    /// Of its newest version, or of what it holds.
    changed: u64,
    current: SiteVersion,
    earlier: VecDeque<SiteVersion>,
    /// Those of its hosts that are shown to be its own: it answers for these.
    holds: BTreeMap<HostPattern, Hold>,
}

impl SiteRecord {
    pub(crate) fn new(version: SiteVersion) -> Self {
        let index = version.index;
        Self { created: index, keys_since: index, changed: index, current: version, earlier: VecDeque::new(), holds: BTreeMap::new() }
    }

    pub(crate) fn put(&mut self, version: SiteVersion) {
        let (old, new) = (&self.current.spec, &version.spec);
        if old.hosts != new.hosts || old.cache.query != new.cache.query {
            self.keys_since = version.index;
        }
        self.changed = version.index;
        self.holds.retain(|host, _| version.spec.hosts.contains(host));
        self.earlier.push_back(std::mem::replace(&mut self.current, version));
        if self.earlier.len() >= MOST_VERSIONS {
            self.earlier.pop_front();
        }
    }

    /// A host is shown to be its own at `index`, or is so no more.
    pub(crate) fn hold(&mut self, index: u64, host: HostPattern, hold: Option<Hold>) {
        self.changed = index;
        match hold {
            Some(hold) => {
                if self.holds.insert(host, hold).is_none() {
                    // Purges in between may have named what it stored when it held the host before.
                    self.keys_since = index;
                }
            }
            None => drop(self.holds.remove(&host)),
        }
    }

    #[must_use]
    pub fn holds(&self) -> &BTreeMap<HostPattern, Hold> {
        &self.holds
    }

    /// The names under which an authority can certify those of its hosts that show whose they are.
    #[must_use]
    pub fn orderable(&self) -> Vec<String> {
        let shown = |h: &String| HostPattern::parse(h).ok().and_then(|h| self.holds.get(&h)).is_some_and(|hold| hold.lost.is_none());
        let all: Vec<String> = self.current.spec.certifiable().into_iter().filter(shown).collect();
        // What a wildcard is for as well an authority takes for a mistake.
        let twice = |name: &str| {
            name.split_once('.').is_some_and(|(first, above)| first != "*" && all.iter().any(|n| n.strip_prefix("*.") == Some(above)))
        };
        all.iter().filter(|n| !twice(n)).cloned().collect()
    }

    /// The index of its newest change.
    #[must_use]
    pub fn changed(&self) -> u64 {
        self.changed
    }

    #[must_use]
    pub fn current(&self) -> &SiteVersion {
        &self.current
    }

    #[must_use]
    pub fn name(&self) -> &SiteName {
        &self.current.spec.name
    }

    /// Index of the newest version.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.current.index
    }

    /// Newest first.
    pub fn versions(&self) -> impl Iterator<Item = &SiteVersion> {
        std::iter::once(&self.current).chain(self.earlier.iter().rev())
    }

    #[must_use]
    pub fn state(&self) -> SiteState {
        let unshown = self.current.spec.hosts.iter().filter(|h| !self.holds.contains_key(h)).cloned().collect();
        SiteState {
            spec: self.current.spec.clone(),
            revision: self.revision(),
            created: self.created,
            keys_since: self.keys_since,
            unshown,
        }
    }
}

/// The site that answers for `host`: by its exact name, else by the longest wildcard, else by `*`.
pub(crate) fn most_exact<'a>(sites: impl Iterator<Item = &'a SiteRecord>, host: &str) -> Option<&'a SiteRecord> {
    let rank = |p: &HostPattern| match p {
        HostPattern::Exact(_) => usize::MAX,
        HostPattern::Under(base) => 1 + base.len(),
        HostPattern::Any => 0,
    };
    let best = |record: &SiteRecord| record.holds.keys().filter(|p| p.matches(host)).map(rank).max();
    sites.filter_map(|record| best(record).map(|r| (r, record))).max_by_key(|(r, _)| *r).map(|(_, record)| record)
}
