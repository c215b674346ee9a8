//! Keys that zones are signed with: ECDSA P-256 (RFC 6605), one key for everything in a zone.

use crate::CertError;
use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};

/// A zone key that is also the one that the parent vouches for (RFC 4034 section 2.1.1).
pub const FLAGS: u16 = 257;
pub const ALGORITHM: u8 = 13;
const PROTOCOL: u8 = 3;
/// SHA-256 (RFC 4509).
pub const DIGEST_TYPE: u8 = 2;

pub struct ZoneKey {
    /// PKCS #8 DER.
    pub key: Vec<u8>,
    /// As it stands in the DNSKEY record.
    pub public: Vec<u8>,
}

/// # Errors
/// The system's random source fails.
pub fn generate() -> Result<ZoneKey, CertError> {
    let key = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new()).map_err(|_| CertError::Random)?;
    let pair =
        EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, key.as_ref()).map_err(|e| CertError::PrivateKey(e.to_string()))?;
    // Both coordinates, without the byte that says so.
    let public = pair.public_key().as_ref().get(1..).unwrap_or_default().to_vec();
    Ok(ZoneKey { key: key.as_ref().to_vec(), public })
}

fn record(public: &[u8]) -> Vec<u8> {
    let mut record = FLAGS.to_be_bytes().to_vec();
    record.extend([PROTOCOL, ALGORITHM]);
    record.extend_from_slice(public);
    record
}

/// RFC 4034 appendix B.
#[must_use]
pub fn key_tag(public: &[u8]) -> u16 {
    let words = record(public);
    let sum: u32 =
        words.chunks(2).map(|w| u32::from(w.first().copied().unwrap_or(0)) << 8 | u32::from(w.get(1).copied().unwrap_or(0))).sum();
    u16::try_from((sum + (sum >> 16)) & 0xffff).unwrap_or(0)
}

/// What the parent zone's DS record has of a key, for a zone in lower case (RFC 4034 section 5.1.4).
#[must_use]
pub fn ds_digest(zone: &str, public: &[u8]) -> Vec<u8> {
    let mut named = Vec::new();
    for label in zone.trim_end_matches('.').split('.') {
        named.push(u8::try_from(label.len()).unwrap_or(0));
        named.extend_from_slice(label.as_bytes());
    }
    named.push(0);
    named.extend(record(public));
    digest(&SHA256, &named).as_ref().to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 6605 section 6.1.
    #[test]
    fn the_example_of_the_standard() {
        let text = "GojIhhXUN/u4v54ZQqGSnyhWJwaubCvTmeexv7bR6edbkrSqQpF64cYbcB7wNcP+e+MAnLr+Wi9xMWyQLc8NAA==";
        let public = decode(text);
        assert_eq!(key_tag(&public), 55648);
        let hex: String = ds_digest("example.net", &public).iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex, "b4c8c1fe2e7477127b27115656ad6256f424625bf5c1e2770ce6d6e37df61d17");
    }

    fn decode(text: &str) -> Vec<u8> {
        let value = |b: u8| match b {
            b'A'..=b'Z' => b - b'A',
            b'a'..=b'z' => b - b'a' + 26,
            b'0'..=b'9' => b - b'0' + 52,
            b'+' => 62,
            _ => 63,
        };
        let digits: Vec<u32> = text.bytes().filter(|b| *b != b'=').map(|b| u32::from(value(b))).collect();
        let bits = digits.chunks(4).flat_map(|four| {
            let word = four.iter().fold(0, |w, d| w << 6 | d) << (6 * (4 - four.len()));
            word.to_be_bytes()[1..four.len()].to_vec()
        });
        bits.collect()
    }

    #[test]
    fn keys_differ() {
        let (one, other) = (generate().unwrap(), generate().unwrap());
        assert!(one.public.len() == 64 && one.public != other.public);
    }
}
