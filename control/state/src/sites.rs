//! Sites and their versions.

use serde::{Deserialize, Serialize};
use std::collections::VecDeque;
use tidegate_control_types::event::SiteState;
use tidegate_control_types::site::{HostPattern, SiteSpec};
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
    current: SiteVersion,
    earlier: VecDeque<SiteVersion>,
}

impl SiteRecord {
    pub(crate) fn new(version: SiteVersion) -> Self {
        Self { created: version.index, keys_since: version.index, current: version, earlier: VecDeque::new() }
    }

    pub(crate) fn put(&mut self, version: SiteVersion) {
        let (old, new) = (&self.current.spec, &version.spec);
        if old.hosts != new.hosts || old.cache.query != new.cache.query {
            self.keys_since = version.index;
        }
        self.earlier.push_back(std::mem::replace(&mut self.current, version));
        if self.earlier.len() >= MOST_VERSIONS {
            self.earlier.pop_front();
        }
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
        SiteState { spec: self.current.spec.clone(), revision: self.revision(), created: self.created, keys_since: self.keys_since }
    }
}

/// The site that answers for `host`: by its exact name, else by the longest wildcard, else by `*`.
pub(crate) fn most_exact<'a, T>(sites: impl Iterator<Item = (T, &'a SiteSpec)>, host: &str) -> Option<T> {
    let rank = |p: &HostPattern| match p {
        HostPattern::Exact(_) => usize::MAX,
        HostPattern::Under(base) => 1 + base.len(),
        HostPattern::Any => 0,
    };
    let best = |spec: &SiteSpec| spec.hosts.iter().filter(|p| p.matches(host)).map(rank).max();
    sites.filter_map(|(t, spec)| best(spec).map(|r| (r, t))).max_by_key(|(r, _)| *r).map(|(_, t)| t)
}
