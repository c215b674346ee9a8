//! The certificates of sites, chosen by the server name of each handshake.

use crate::CertError;
use parking_lot::RwLock;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use std::collections::HashMap;
use std::sync::Arc;

/// Of one host: the first that a client can check is its.
pub type Choice = Vec<Arc<CertifiedKey>>;

/// Shared by all workers; replaced as a whole, never while a handshake looks.
#[derive(Debug, Default)]
pub struct SiteCertificates {
    by_host: RwLock<HashMap<String, Choice>>,
}

/// A certificate ready to sign with. The key: PKCS #8, PKCS #1 or SEC 1.
///
/// # Errors
/// Certificate or key are damaged, or do not belong together.
pub fn certified(chain: &[Vec<u8>], key: &[u8]) -> Result<Arc<CertifiedKey>, CertError> {
    let chain = chain.iter().map(|d| CertificateDer::from(d.clone())).collect();
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    let key = PrivateKeyDer::try_from(key.to_vec()).map_err(|e| CertError::PrivateKey(e.to_owned()))?;
    Ok(Arc::new(CertifiedKey::from_der(chain, key, &provider)?))
}

impl SiteCertificates {
    /// Puts `all` in the place of what was there: host (exact, `*.base`, or `*` for any) to its certificates, the preferred one first.
    pub fn replace(&self, all: HashMap<String, Choice>) {
        *self.by_host.write() = all;
    }

    fn find<T>(&self, host: Option<&str>, choose: impl Fn(&Choice) -> Option<T>) -> Option<T> {
        let by_host = self.by_host.read();
        if let Some(host) = host {
            if let Some(exact) = by_host.get(host) {
                return choose(exact);
            }
            // The nearest wildcard: *.b.c before *.c.
            let above = host.match_indices('.').filter_map(|(at, _)| host.get(at + 1..));
            let mut wild = String::new();
            for base in above {
                wild.clear();
                wild.push_str("*.");
                wild.push_str(base);
                if let Some(found) = by_host.get(&wild) {
                    return choose(found);
                }
            }
        }
        by_host.get("*").and_then(choose)
    }
}

impl ResolvesServerCert for SiteCertificates {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        let schemes = hello.signature_schemes();
        let choose = |all: &Choice| all.iter().find(|c| c.key.choose_scheme(schemes).is_some()).or(all.first()).cloned();
        self.find(hello.server_name().map(|n| n.trim_end_matches('.')), choose)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Ca;

    #[test]
    fn the_most_exact_name_is_found() {
        let now = 1_790_000_000;
        let root = crate::Root::create("main", now).unwrap().0;
        let (certificate, key) = root.make_issuing(now).unwrap();
        let ca = Ca::open(root.certificate(), &certificate, &key).unwrap();
        let make = || {
            let issued = ca.issue_site(&["x.example".into(), "127.0.0.1".into()], 1_790_000_000).unwrap();
            certified(&issued.chain, &issued.key).unwrap()
        };
        let (exact, wild, any) = (make(), make(), make());
        let all = SiteCertificates::default();
        let find = |host: Option<&str>| all.find(host, |c| c.first().cloned());
        all.replace([("a.b.c".into(), vec![exact.clone()]), ("*.b.c".into(), vec![wild.clone()])].into());
        assert!(Arc::ptr_eq(&find(Some("a.b.c")).unwrap(), &exact));
        assert!(Arc::ptr_eq(&find(Some("z.b.c")).unwrap(), &wild));
        assert!(Arc::ptr_eq(&find(Some("y.z.b.c")).unwrap(), &wild));
        assert!(find(Some("b.c")).is_none() && find(None).is_none());
        all.replace([("*".into(), vec![any.clone()])].into());
        assert!(Arc::ptr_eq(&find(None).unwrap(), &any) && find(Some("q")).is_some());
    }
}
