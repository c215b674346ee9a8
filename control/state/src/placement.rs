//! Where certificates are needed: edges get a private key only if they serve a site that uses it.

use crate::State;
use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};
use tidegate_control_types::SiteSpec;
use tidegate_control_types::site::CertificateChoice;

/// Made once for any number of certificates.
pub struct Placement<'a> {
    state: &'a State,
    /// By the names under which certificates were uploaded, for sites that use them; once one of those is asked for.
    uploaded: OnceCell<BTreeMap<&'a str, Where<'a>>>,
}

/// Regions in which something is needed.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Where<'a> {
    Everywhere,
    In(BTreeSet<&'a str>),
}

impl<'a> Where<'a> {
    fn of(spec: &'a SiteSpec) -> Self {
        if spec.regions.is_empty() { Self::Everywhere } else { Self::In(spec.regions.iter().map(String::as_str).collect()) }
    }

    fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::In(mut a), Self::In(b)) => {
                a.extend(b);
                Self::In(a)
            }
            _ => Self::Everywhere,
        }
    }

    fn holds(&self, region: &str) -> bool {
        match self {
            Self::Everywhere => true,
            Self::In(regions) => regions.contains(region),
        }
    }
}

impl<'a> Placement<'a> {
    #[must_use]
    pub fn new(state: &'a State) -> Self {
        Self { state, uploaded: OnceCell::new() }
    }

    fn of_uploaded(&self, name: &str) -> Option<&Where<'a>> {
        let all = self.uploaded.get_or_init(|| {
            let mut uploaded: BTreeMap<&str, Where<'_>> = BTreeMap::new();
            for spec in self.state.sites().map(|s| &s.current().spec) {
                if let CertificateChoice::Uploaded(name) = &spec.tls.certificate {
                    let before = uploaded.remove(name.as_str()).unwrap_or(Where::In(BTreeSet::new()));
                    uploaded.insert(name.as_str(), before.and(Where::of(spec)));
                }
            }
            uploaded
        });
        all.get(name)
    }

    /// Whether all edges need the certificate that stands under `name`.
    #[must_use]
    pub fn is_needed_everywhere(&self, name: &str) -> bool {
        match name.split_once('/') {
            Some(("internal" | "acme", site)) => self.state.site(site).is_some_and(|s| s.current().spec.regions.is_empty()),
            Some((uploaded, _)) => self.of_uploaded(uploaded) == Some(&Where::Everywhere),
            None => false,
        }
    }

    /// Whether edges of `region` need the certificate that stands under `name`.
    #[must_use]
    pub fn is_needed(&self, name: &str, region: &str) -> bool {
        match name.split_once('/') {
            Some(("internal" | "acme", site)) => self.state.site(site).is_some_and(|s| s.current().spec.is_served_in(region)),
            Some((uploaded, _)) => self.of_uploaded(uploaded).is_some_and(|w| w.holds(region)),
            None => false,
        }
    }
}
