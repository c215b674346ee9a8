//! The cluster's own authority. Its root is made once, at `control init`, is what every node trusts, and signs issuing
//! authorities alone: its private key may be taken offline. What nodes and sites show is signed by the newest of those.

use crate::CertError;
use crate::identity::{NodeIdentity, node_name, not_after, role_name};
use crate::seal::{random, to_hex};
use crate::token::sha256;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData, SanType,
};
use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer};
use std::net::IpAddr;
use time::{Duration, OffsetDateTime};
use zeroize::Zeroizing;

const ROOT_DAYS: i64 = 7300;
const ISSUING_DAYS: i64 = 1095;
/// Node certificates last a week and are renewed daily.
pub const NODE_DAYS: i64 = 7;
/// For how long after its end a node's certificate is good for its own renewal: the control plane may have been away for that long.
pub const LATE_DAYS: u64 = 90;
/// Certificates for sites from the internal CA.
pub const SITE_DAYS: i64 = 90;
/// Clocks of nodes may be behind the signer's by this much.
const BACKDATED: Duration = Duration::HOUR;

/// What every node trusts.
pub struct Root {
    certificate: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

/// An issuing authority, with the root's certificate behind its own.
pub struct Ca {
    certificate: CertificateDer<'static>,
    root: Vec<u8>,
    issuer: Issuer<'static, KeyPair>,
    not_after: u64,
}

/// A certificate with its key: `chain` in DER, leaf first; `key` in PKCS #8 DER.
pub struct IssuedKey {
    pub chain: Vec<Vec<u8>>,
    pub key: Zeroizing<Vec<u8>>,
}

fn at(secs: u64) -> Result<OffsetDateTime, CertError> {
    OffsetDateTime::from_unix_timestamp(i64::try_from(secs).unwrap_or(0)).map_err(|e| CertError::Certificate(e.to_string()))
}

fn validity(params: &mut CertificateParams, now_secs: u64, days: i64) -> Result<(), CertError> {
    let now = at(now_secs)?;
    (params.not_before, params.not_after) = (now - BACKDATED, now + Duration::days(days));
    Ok(())
}

fn authority(params: &mut CertificateParams, path_len: u8) {
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(path_len));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
}

impl Root {
    /// Makes a root; the second value is its private key, to be sealed.
    ///
    /// # Errors
    /// Key generation fails.
    pub fn create(cluster: &str, now_secs: u64) -> Result<(Self, Zeroizing<Vec<u8>>), CertError> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, format!("Tidegate {cluster} CA"));
        authority(&mut params, 1);
        validity(&mut params, now_secs, ROOT_DAYS)?;
        let certificate = params.self_signed(&key)?.der().clone();
        let secret = Zeroizing::new(key.serialize_der());
        Ok((Self::open(&certificate, &secret)?, secret))
    }

    /// # Errors
    /// The certificate or the key is damaged, or they do not belong together.
    pub fn open(certificate: &[u8], key: &[u8]) -> Result<Self, CertError> {
        let certificate = CertificateDer::from(certificate.to_vec());
        let key = KeyPair::try_from(key)?;
        let (_, parsed) = x509_parser::parse_x509_certificate(&certificate).map_err(|e| CertError::Certificate(e.to_string()))?;
        if parsed.public_key().raw != key.subject_public_key_info() {
            return Err(CertError::PrivateKey("it is not the key of the root's certificate".into()));
        }
        let issuer = Issuer::from_ca_cert_der(&certificate, key)?;
        Ok(Self { certificate, issuer })
    }

    #[must_use]
    pub fn certificate(&self) -> &[u8] {
        &self.certificate
    }

    fn name(&self) -> Result<String, CertError> {
        let (_, parsed) = x509_parser::parse_x509_certificate(&self.certificate).map_err(|e| CertError::Certificate(e.to_string()))?;
        let name = parsed.subject().iter_common_name().find_map(|n| n.as_str().ok());
        Ok(name.unwrap_or("Tidegate").chars().take(40).collect())
    }

    /// A new issuing authority: its certificate and its private key, to be sealed.
    ///
    /// # Errors
    /// Key generation fails.
    pub fn make_issuing(&self, now_secs: u64) -> Result<(Vec<u8>, Zeroizing<Vec<u8>>), CertError> {
        let (key, request) = request()?;
        Ok((self.sign_issuing(&request, now_secs)?, key))
    }

    /// Signs an issuing authority's request: its public key is taken, what it says of itself is not.
    ///
    /// # Errors
    /// The request is damaged, or the random source fails.
    pub fn sign_issuing(&self, request: &[u8], now_secs: u64) -> Result<Vec<u8>, CertError> {
        let mut request = CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(request))?;
        let mut params = CertificateParams::default();
        // No two have the same name: whoever builds a chain finds the right one at once.
        let mark = to_hex(&random::<4>()?);
        params.distinguished_name.push(DnType::CommonName, format!("{} issuing {} {mark}", self.name()?, at(now_secs)?.date()));
        authority(&mut params, 0);
        params.use_authority_key_identifier_extension = true;
        validity(&mut params, now_secs, ISSUING_DAYS)?;
        let (_, root) = x509_parser::parse_x509_certificate(&self.certificate).map_err(|e| CertError::Certificate(e.to_string()))?;
        // As old as the root: a signer whose clock is ahead makes none that others do not believe yet.
        params.not_before = root.validity().not_before.to_datetime();
        params.not_after = params.not_after.min(root.validity().not_after.to_datetime());
        request.params = params;
        Ok(request.signed_by(&self.issuer)?.der().to_vec())
    }
}

impl Ca {
    /// # Errors
    /// The certificate or the key is damaged.
    pub fn open(root: &[u8], certificate: &[u8], key: &[u8]) -> Result<Self, CertError> {
        let certificate = CertificateDer::from(certificate.to_vec());
        let not_after = not_after(&certificate)?;
        let issuer = Issuer::from_ca_cert_der(&certificate, KeyPair::try_from(key)?)?;
        Ok(Self { certificate, root: root.to_vec(), issuer, not_after })
    }

    /// Valid for so many days, and never longer than this authority itself.
    fn leaf(&self, params: &mut CertificateParams, now_secs: u64, days: i64) -> Result<(), CertError> {
        validity(params, now_secs, days)?;
        params.not_after = params.not_after.min(at(self.not_after)?);
        params.use_authority_key_identifier_extension = true;
        Ok(())
    }

    /// Signs a node's request: its public key is taken, what it says of itself is not.
    ///
    /// # Errors
    /// The request is damaged.
    pub fn sign_node(&self, request: &[u8], identity: &NodeIdentity, now_secs: u64) -> Result<Vec<Vec<u8>>, CertError> {
        let mut request = CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(request))?;
        let mut params = CertificateParams::new(vec![
            role_name(&identity.cluster, &identity.role),
            node_name(&identity.cluster, &identity.role, &identity.name, identity.enrolled),
        ])?;
        let uri = identity.to_string().try_into().map_err(|_| CertError::Identity { why: "its names are not ASCII" })?;
        params.subject_alt_names.push(SanType::URI(uri));
        params.distinguished_name.push(DnType::CommonName, identity.name.clone());
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        self.leaf(&mut params, now_secs, NODE_DAYS)?;
        request.params = params;
        Ok(vec![request.signed_by(&self.issuer)?.der().to_vec(), self.certificate.to_vec(), self.root.clone()])
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
        self.leaf(&mut params, now_secs, SITE_DAYS)?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        Ok(IssuedKey { chain: vec![certificate.der().to_vec(), self.certificate.to_vec()], key: Zeroizing::new(key.serialize_der()) })
    }
}

/// A fresh key and the request for a certificate over it: `(key in PKCS #8 DER, request in DER)`.
///
/// # Errors
/// Key generation fails.
pub fn request() -> Result<(Zeroizing<Vec<u8>>, Vec<u8>), CertError> {
    let key = KeyPair::generate()?;
    let request = CertificateParams::default().serialize_request(&key)?;
    Ok((Zeroizing::new(key.serialize_der()), request.der().to_vec()))
}

/// Which key a request is for, as [`crate::identity::key_fingerprint`] says it; whoever made the request has that key.
///
/// # Errors
/// The request is damaged, or its signature is not by its key.
pub fn requested_key(request: &[u8]) -> Result<[u8; 32], CertError> {
    let request = CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(request))?;
    Ok(sha256(&request.public_key.subject_public_key_info()))
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

/// Checks that a certificate is what a root made of an issuing authority's request.
///
/// # Errors
/// It is of another root, over another key, or no authority's.
pub fn check_issuing(certificate: &[u8], request: &[u8], root: &[u8], now_secs: u64) -> Result<(), CertError> {
    let fail = |why: &str| CertError::Certificate(why.to_owned());
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).map_err(|e| CertError::Certificate(e.to_string()))?;
    let (_, root) = x509_parser::parse_x509_certificate(root).map_err(|e| CertError::Certificate(e.to_string()))?;
    parsed.verify_signature(Some(root.public_key())).map_err(|_| fail("the network's root did not sign it"))?;
    let wanted = CertificateSigningRequestParams::from_der(&CertificateSigningRequestDer::from(request))?;
    if parsed.public_key().raw != wanted.public_key.subject_public_key_info() {
        return Err(fail("it is over another key than was requested last"));
    }
    let is_authority = parsed.basic_constraints().ok().flatten().is_some_and(|c| c.value.ca);
    if !is_authority || !parsed.key_usage().ok().flatten().is_some_and(|u| u.value.key_cert_sign()) {
        return Err(fail("it is no authority's"));
    }
    let now = i64::try_from(now_secs).unwrap_or(i64::MAX);
    if now < parsed.validity().not_before.timestamp() || now > parsed.validity().not_after.timestamp() {
        return Err(fail("it is not valid now: look at the clocks, this one's and that of the machine that signed"));
    }
    Ok(())
}

/// A private key in PKCS #8 in PEM form.
#[must_use]
pub fn key_pem(der: &[u8]) -> String {
    pem::encode(&pem::Pem::new("PRIVATE KEY", der))
}

/// The one block of that kind in a PEM file.
///
/// # Errors
/// There is none, or more than one.
pub fn from_pem(text: &str, kind: &str) -> Result<Vec<u8>, CertError> {
    let fail = |why: String| CertError::Certificate(why);
    let blocks = pem::parse_many(text).map_err(|e| fail(e.to_string()))?;
    match blocks.as_slice() {
        [one] if one.tag() == kind => Ok(one.contents().to_vec()),
        _ => Err(fail(format!("not one {kind} in PEM form"))),
    }
}

/// A certificate signing request in PEM form.
#[must_use]
pub fn request_pem(der: &[u8]) -> String {
    pem::encode(&pem::Pem::new("CERTIFICATE REQUEST", der))
}

/// A certificate in PEM form.
#[must_use]
pub fn certificate_pem(der: &[u8]) -> String {
    pem::encode(&pem::Pem::new("CERTIFICATE", der))
}
