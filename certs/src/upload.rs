//! Certificates that people bring: the chain and its key in PEM, checked before anything is kept.

use crate::CertError;
use crate::site::certified;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use std::time::Duration;
use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::public_key::PublicKey;

const MOST_CERTIFICATES: usize = 10;
const LEAST_RSA_BITS: usize = 2048;
const MOST_RSA_BITS: usize = 4096;
/// Each handshake carries it.
const MOST_CHAIN_BYTES: usize = 32 << 10;
const MOST_NAMES: usize = 1000;

/// A chain that is sound, with the key that belongs to it.
#[derive(Debug)]
pub struct Uploaded {
    /// DER, leaf first.
    pub chain: Vec<Vec<u8>>,
    /// DER: PKCS #8, PKCS #1 or SEC 1.
    pub key: Vec<u8>,
    pub facts: Facts,
}

/// What a certificate says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// DNS names in lower case, and addresses.
    pub names: Vec<String>,
    /// Seconds since 1970.
    pub not_before: u64,
    pub not_after: u64,
    /// Of its key: `ecdsa`, `rsa` or `ed25519`.
    pub algorithm: &'static str,
}

fn refused(why: impl Into<String>) -> CertError {
    CertError::Certificate(why.into())
}

fn parsed(der: &[u8]) -> Result<X509Certificate<'_>, CertError> {
    match x509_parser::parse_x509_certificate(der) {
        Ok(([], certificate)) => Ok(certificate),
        Ok(_) => Err(refused("there is something behind its end")),
        Err(e) => Err(refused(e.to_string())),
    }
}

/// # Errors
/// It cannot be read, names nobody, or has a key that is too weak or unknown.
pub fn facts(leaf: &[u8]) -> Result<Facts, CertError> {
    let leaf = parsed(leaf)?;
    let names = leaf.subject_alternative_name().map_err(|e| refused(e.to_string()))?;
    let names = names.ok_or_else(|| refused("it names no host: clients read subjectAltName alone"))?;
    let name = |n: &GeneralName<'_>| match n {
        GeneralName::DNSName(n) => Some(n.to_ascii_lowercase()),
        GeneralName::IPAddress(bytes) => match (<[u8; 4]>::try_from(*bytes), <[u8; 16]>::try_from(*bytes)) {
            (Ok(v4), _) => Some(std::net::Ipv4Addr::from(v4).to_string()),
            (_, Ok(v6)) => Some(std::net::Ipv6Addr::from(v6).to_string()),
            _ => None,
        },
        _ => None,
    };
    let names: Vec<String> = names.value.general_names.iter().filter_map(name).collect();
    if names.is_empty() || names.len() > MOST_NAMES {
        return Err(refused(format!("it has {} names of hosts: 1 to {MOST_NAMES} are taken", names.len())));
    }
    let algorithm = match leaf.public_key().parsed() {
        Ok(PublicKey::RSA(key)) if key.key_size() < LEAST_RSA_BITS => {
            return Err(refused(format!("its RSA key has {} bits: {LEAST_RSA_BITS} are the least that clients trust", key.key_size())));
        }
        Ok(PublicKey::RSA(key)) if key.key_size() > MOST_RSA_BITS => {
            return Err(refused(format!(
                "its RSA key has {} bits: more than {MOST_RSA_BITS} make handshakes slow, and nothing safer",
                key.key_size()
            )));
        }
        Ok(PublicKey::RSA(_)) => "rsa",
        Ok(PublicKey::EC(point)) if matches!(point.key_size(), 256 | 384) => "ecdsa",
        Ok(PublicKey::EC(_)) => return Err(refused("its key is on a curve that clients do not take: P-256 and P-384 are taken")),
        _ if leaf.public_key().algorithm.algorithm.to_id_string() == "1.3.101.112" => "ed25519",
        _ => return Err(refused("its key is of a kind that is not taken: ECDSA, RSA and Ed25519 are")),
    };
    let at = |t: i64| u64::try_from(t).unwrap_or(0);
    let validity = leaf.validity();
    Ok(Facts { names, not_before: at(validity.not_before.timestamp()), not_after: at(validity.not_after.timestamp()), algorithm })
}

/// Reads a chain, leaf first, and its key, and checks that they are of use at `now_secs`: that the key is the leaf's, that each
/// certificate was signed by the next, that none is expired, and that no signature or key is weak.
///
/// # Errors
/// What is wrong, in words for whoever brought them.
pub fn read(chain: &[u8], key: &[u8], now_secs: u64) -> Result<Uploaded, CertError> {
    let (chain, facts) = read_chain(chain, now_secs)?;
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|e| match e {
        rustls_pki_types::pem::Error::NoItemsFound => CertError::PrivateKey("there is none in it, in PEM and without a passphrase".into()),
        e => CertError::PrivateKey(e.to_string()),
    })?;
    let key = key.secret_der().to_vec();
    certified(&chain, &key).map_err(|e| match e {
        CertError::Tls(rustls::Error::InconsistentKeys(_)) => {
            CertError::PrivateKey("it is not the key of the first certificate of the chain".into())
        }
        e => e,
    })?;
    Ok(Uploaded { chain, key, facts })
}

/// # Errors
/// As [`read`].
pub fn read_chain(pem: &[u8], now_secs: u64) -> Result<(Vec<Vec<u8>>, Facts), CertError> {
    let chain: Vec<CertificateDer<'static>> =
        CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().map_err(|e| refused(format!("the chain is not PEM: {e}")))?;
    let Some((leaf, above)) = chain.split_first() else { return Err(refused("there is none in the chain, in PEM")) };
    if chain.len() > MOST_CERTIFICATES {
        return Err(refused(format!("the chain is longer than {MOST_CERTIFICATES}")));
    }
    if chain.iter().map(|c| c.len()).sum::<usize>() > MOST_CHAIN_BYTES {
        return Err(refused(format!("the chain has more than {MOST_CHAIN_BYTES} bytes, and each handshake carries it")));
    }
    if parsed(leaf)?.is_ca() && !above.is_empty() {
        return Err(refused("the first certificate is an authority's: the leaf has to come first"));
    }
    let facts = facts(leaf)?;
    for (n, der) in chain.iter().enumerate() {
        let validity = parsed(der)?.validity().clone();
        let (before, after) = (validity.not_before.timestamp(), validity.not_after.timestamp());
        let now = i64::try_from(now_secs).unwrap_or(i64::MAX);
        let which = if n == 0 { "it".to_owned() } else { format!("certificate {} of the chain", n + 1) };
        if now > after {
            return Err(refused(format!("{which} expired {} s ago", now - after)));
        }
        if now < before {
            return Err(refused(format!("{which} is not valid for another {} s: is a clock wrong?", before - now)));
        }
    }
    for (n, pair) in chain.windows(2).enumerate() {
        let (Some(below), Some(issuer)) = (pair.first(), pair.last()) else { continue };
        if parsed(below)?.issuer().as_raw() != parsed(issuer)?.subject().as_raw() {
            return Err(refused(format!("certificate {} of the chain is not the one that issued certificate {}", n + 2, n + 1)));
        }
    }
    if let Some((last, between)) = above.split_last() {
        let anchor = webpki::anchor_from_trusted_cert(last).map_err(|e| refused(format!("the last certificate of the chain: {e}")))?;
        let end = webpki::EndEntityCert::try_from(leaf).map_err(|e| refused(e.to_string()))?;
        let algorithms = rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms.all;
        let at = UnixTime::since_unix_epoch(Duration::from_secs(now_secs));
        end.verify_for_usage(algorithms, &[anchor], between, at, webpki::KeyUsage::server_auth(), None, None)
            .map_err(|e| refused(format!("the chain does not hold together: {e}")))?;
    }
    Ok((chain.iter().map(|c| c.to_vec()).collect(), facts))
}
