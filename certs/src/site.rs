//! The certificates of sites, chosen by the server name of each handshake.

use crate::CertError;
use parking_lot::RwLock;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::CertificateDer;
use std::collections::HashMap;
use std::sync::Arc;

/// Shared by all workers; replaced as a whole or by one name, never while a handshake looks.
#[derive(Debug, Default)]
pub struct SiteCertificates {
    by_host: RwLock<HashMap<String, Arc<CertifiedKey>>>,
}

/// A certificate ready to sign with.
///
/// # Errors
/// Certificate or key are damaged, or do not belong together.
pub fn certified(chain: &[Vec<u8>], key: &[u8]) -> Result<Arc<CertifiedKey>, CertError> {
    let chain = chain.iter().map(|d| CertificateDer::from(d.clone())).collect();
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    Ok(Arc::new(CertifiedKey::from_der(chain, crate::tls::private_key(key), &provider)?))
}

impl SiteCertificates {
    /// Puts `all` in the place of what was there: host (exact, `*.base`, or `*` for any) to certificate.
    pub fn replace(&self, all: HashMap<String, Arc<CertifiedKey>>) {
        *self.by_host.write() = all;
    }

    fn find(&self, host: Option<&str>) -> Option<Arc<CertifiedKey>> {
        let by_host = self.by_host.read();
        if let Some(host) = host {
            if let Some(exact) = by_host.get(host) {
                return Some(Arc::clone(exact));
            }
            // The nearest wildcard: *.b.c before *.c.
            let above = host.match_indices('.').filter_map(|(at, _)| host.get(at + 1..));
            let mut wild = String::new();
            for base in above {
                wild.clear();
                wild.push_str("*.");
                wild.push_str(base);
                if let Some(found) = by_host.get(&wild) {
                    return Some(Arc::clone(found));
                }
            }
        }
        by_host.get("*").map(Arc::clone)
    }
}

impl ResolvesServerCert for SiteCertificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.find(hello.server_name().map(|n| n.trim_end_matches('.')))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Ca;

    #[test]
    fn the_most_exact_name_is_found() {
        let (ca, _) = Ca::create("main", 1_790_000_000).unwrap();
        let make = || {
            let issued = ca.issue_site(&["x.example".into(), "127.0.0.1".into()], 1_790_000_000).unwrap();
            certified(&issued.chain, &issued.key).unwrap()
        };
        let (exact, wild, any) = (make(), make(), make());
        let all = SiteCertificates::default();
        all.replace([("a.b.c".into(), exact.clone()), ("*.b.c".into(), wild.clone())].into());
        assert!(Arc::ptr_eq(&all.find(Some("a.b.c")).unwrap(), &exact));
        assert!(Arc::ptr_eq(&all.find(Some("z.b.c")).unwrap(), &wild));
        assert!(Arc::ptr_eq(&all.find(Some("y.z.b.c")).unwrap(), &wild));
        assert!(all.find(Some("b.c")).is_none() && all.find(None).is_none());
        all.replace([("*".into(), any.clone())].into());
        assert!(Arc::ptr_eq(&all.find(None).unwrap(), &any) && all.find(Some("q")).is_some());
    }
}
