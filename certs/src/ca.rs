//! The cluster's own authority: made once at `control init`, its private key sealed in the replicated state.

use crate::CertError;
use crate::identity::{NodeIdentity, node_name, role_name};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer};
use std::net::IpAddr;
use time::{Duration, OffsetDateTime};

const CA_DAYS: i64 = 3650;
/// Node certificates last a week and are renewed daily.
pub const NODE_DAYS: i64 = 7;
/// Certificates for sites from the internal CA.
pub const SITE_DAYS: i64 = 90;
/// Clocks of nodes may be behind the signer's by this much.
const BACKDATED: Duration = Duration::HOUR;

pub struct Ca {
    certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate with its key: `chain` in DER, leaf first and the CA last; `key` in PKCS #8 DER.
pub struct IssuedKey {
    pub chain: Vec<Vec<u8>>,
    pub key: Vec<u8>,
}

fn validity(params: &mut CertificateParams, now_secs: u64, days: i64) -> Result<(), CertError> {
    let now =
        OffsetDateTime::from_unix_timestamp(i64::try_from(now_secs).unwrap_or(0)).map_err(|e| CertError::Certificate(e.to_string()))?;
    params.not_before = now - BACKDATED;
    params.not_after = now + Duration::days(days);
    Ok(())
}

impl Ca {
    /// Makes an authority; the second value is its private key, to be sealed.
    ///
    /// # Errors
    /// Key generation fails.
    pub fn create(cluster: &str, now_secs: u64) -> Result<(Self, Vec<u8>), CertError> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, format!("Tidegate {cluster} CA"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        validity(&mut params, now_secs, CA_DAYS)?;
        let certificate = params.self_signed(&key)?.der().clone();
        let secret = key.serialize_der();
        Ok((Self::open(&certificate, &secret)?, secret))
    }

    /// # Errors
    /// The certificate or the key is damaged.
    pub fn open(certificate: &[u8], key: &[u8]) -> Result<Self, CertError> {
        let certificate = CertificateDer::from(certificate.to_vec());
        let issuer = Issuer::from_ca_cert_der(&certificate, KeyPair::try_from(key)?)?;
        Ok(Self { certificate, issuer })
    }

    #[must_use]
    pub fn certificate(&self) -> &[u8] {
        &self.certificate
    }

    /// Signs a node's request: its public key is taken, what it says of itself is not.
    ///
    /// # Errors
    /// The request is damaged.
    pub fn sign_node(&self, request: &[u8], identity: &NodeIdentity, now_secs: u64) -> Result<Vec<Vec<u8>>, CertError> {
        let mut request = CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(request))?;
        let mut params = CertificateParams::new(vec![
            role_name(&identity.cluster, &identity.role),
            node_name(&identity.cluster, &identity.role, &identity.name),
        ])?;
        let uri = identity.to_string().try_into().map_err(|_| CertError::Identity { why: "its names are not ASCII" })?;
        params.subject_alt_names.push(SanType::URI(uri));
        params.distinguished_name.push(DnType::CommonName, identity.name.clone());
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        validity(&mut params, now_secs, NODE_DAYS)?;
        request.params = params;
        Ok(vec![request.signed_by(&self.issuer)?.der().to_vec(), self.certificate.to_vec()])
    }

    /// A certificate for a site's hosts, from this authority.
    ///
    /// # Errors
    /// A host is no name, or key generation fails.
    pub fn issue_site(&self, hosts: &[String], now_secs: u64) -> Result<IssuedKey, CertError> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        for host in hosts {
            params.subject_alt_names.push(match host.trim_matches(['[', ']']).parse::<IpAddr>() {
                Ok(ip) => SanType::IpAddress(ip),
                Err(_) => SanType::DnsName(host.clone().try_into()?),
            });
        }
        if let Some(first) = hosts.first() {
            params.distinguished_name.push(DnType::CommonName, first.chars().take(64).collect::<String>());
        }
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        validity(&mut params, now_secs, SITE_DAYS)?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(IssuedKey { chain: vec![certificate.der().to_vec(), self.certificate.to_vec()], key: key.serialize_der() })
    }
}

/// A fresh key and the request for a certificate over it: `(key in PKCS #8 DER, request in DER)`.
///
/// # Errors
/// Key generation fails.
pub fn node_request() -> Result<(Vec<u8>, Vec<u8>), CertError> {
    let key = KeyPair::generate()?;
    let request = CertificateParams::default().serialize_request(&key)?;
    Ok((key.serialize_der(), request.der().to_vec()))
}

/// The request for a certificate for these names over a key in PKCS #8 DER.
///
/// # Errors
/// The key is damaged, or a name is none.
pub fn site_request(key: &[u8], names: &[String]) -> Result<Vec<u8>, CertError> {
    let key = KeyPair::try_from(key)?;
    let mut params = CertificateParams::new(names.to_vec())?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    Ok(params.serialize_request(&key)?.der().to_vec())
}

/// A certificate in PEM form.
#[must_use]
pub fn certificate_pem(der: &[u8]) -> String {
    pem::encode(&pem::Pem::new("CERTIFICATE", der))
}
