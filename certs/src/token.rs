//! Tokens as people carry them. Only the hash of their secret is ever stored.

use crate::CertError;
use crate::seal::{from_hex, random, to_hex};

/// `tgt_<id>_<secret>`, for the API.
#[derive(Clone)]
pub struct ApiToken {
    pub id: String,
    pub secret: [u8; 32],
}

/// `tgj_<id>_<secret>_<cluster>_<SHA-256 of the root's certificate>[_<retired issuing authority>...]`: lets one node enrol, and lets
/// that node know the cluster it talks to.
#[derive(Clone)]
pub struct JoinToken {
    pub id: String,
    pub secret: [u8; 32],
    pub cluster: String,
    pub ca_fingerprint: [u8; 32],
    /// Issuing authorities that it is not to believe, by their keys' fingerprints.
    pub retired: Vec<[u8; 32]>,
}

const MOST_RETIRED: usize = 100;

#[must_use]
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut out = [0; 32];
    out.copy_from_slice(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes).as_ref());
    out
}

/// Compares in constant time.
#[must_use]
pub fn hash_matches(secret: &[u8; 32], hash: &[u8; 32]) -> bool {
    aws_lc_rs::constant_time::verify_slices_are_equal(&sha256(secret), hash).is_ok()
}

fn secret(text: &str) -> Option<[u8; 32]> {
    from_hex(text)?.try_into().ok()
}

fn is_id(text: &str) -> bool {
    text.len() == 12 && text.bytes().all(|b| b.is_ascii_hexdigit())
}

impl ApiToken {
    /// # Errors
    /// The system's random source fails.
    pub fn generate() -> Result<Self, CertError> {
        Ok(Self { id: to_hex(&random::<6>()?), secret: random()? })
    }

    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (id, hex) = text.trim().strip_prefix("tgt_")?.split_once('_')?;
        is_id(id).then_some(())?;
        Some(Self { id: id.into(), secret: secret(hex)? })
    }

    /// The token itself: shown once, never logged.
    #[must_use]
    pub fn reveal(&self) -> String {
        format!("tgt_{}_{}", self.id, to_hex(&self.secret))
    }
}

impl JoinToken {
    /// # Errors
    /// The system's random source fails.
    pub fn generate(cluster: &str, ca_certificate: &[u8], retired: &[[u8; 32]]) -> Result<Self, CertError> {
        let (id, secret) = (to_hex(&random::<6>()?), random()?);
        Ok(Self { id, secret, cluster: cluster.into(), ca_fingerprint: sha256(ca_certificate), retired: retired.to_vec() })
    }

    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.trim().strip_prefix("tgj_")?.split('_');
        let (id, hex, cluster, ca) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
        let retired: Vec<_> = parts.map(secret).collect::<Option<_>>()?;
        (is_id(id) && retired.len() <= MOST_RETIRED).then_some(())?;
        Some(Self { id: id.into(), secret: secret(hex)?, cluster: cluster.into(), ca_fingerprint: secret(ca)?, retired })
    }

    /// The token itself: shown once, never logged.
    #[must_use]
    pub fn reveal(&self) -> String {
        let head = format!("tgj_{}_{}_{}_{}", self.id, to_hex(&self.secret), self.cluster, to_hex(&self.ca_fingerprint));
        self.retired.iter().fold(head, |text, retired| format!("{text}_{}", to_hex(retired)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_read_back_and_hashes_match_only_their_secret() {
        let (a, b) = (ApiToken::generate().unwrap(), ApiToken::generate().unwrap());
        let back = ApiToken::parse(&a.reveal()).unwrap();
        assert!(back.id == a.id && hash_matches(&back.secret, &sha256(&a.secret)));
        assert!(!hash_matches(&b.secret, &sha256(&a.secret)));
        for retired in [&[][..], &[[1; 32], [2; 32]]] {
            let join = JoinToken::generate("main", b"der", retired).unwrap();
            let back = JoinToken::parse(&join.reveal()).unwrap();
            assert_eq!((back.ca_fingerprint, back.retired.as_slice()), (sha256(b"der"), retired));
            assert!(JoinToken::parse(&format!("{}_xy", join.reveal())).is_none());
        }
        for bad in ["", "tgt_", "tgt_a_b", "tgj_a_b_c_d", &a.reveal()[..40], &format!("{}0", a.reveal())] {
            assert!(ApiToken::parse(bad).is_none() && JoinToken::parse(bad).is_none(), "{bad}");
        }
    }
}
