//! Who a node is, as its certificate says it.

use crate::CertError;
use crate::token::sha256;
use std::fmt;
use x509_parser::extensions::GeneralName;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeIdentity {
    pub cluster: String,
    pub role: String,
    pub region: String,
    pub name: String,
    /// The index at which it enrolled: after a removal another node may have its name.
    pub enrolled: u64,
}

impl fmt::Display for NodeIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "tidegate://{}/{}/{}/{}/{}", self.cluster, self.role, self.region, self.name, self.enrolled)
    }
}

/// The name under which TLS asks for any node of a role.
#[must_use]
pub fn role_name(cluster: &str, role: &str) -> String {
    format!("{role}.{cluster}.tidegate.internal")
}

/// The name under which TLS asks for one node, of one enrolment.
#[must_use]
pub fn node_name(cluster: &str, role: &str, name: &str, enrolled: u64) -> String {
    format!("{name}.{enrolled}.{role}.{cluster}.tidegate.internal")
}

impl NodeIdentity {
    /// Reads the identity out of a certificate whose chain was verified already.
    ///
    /// # Errors
    /// It is no node's certificate.
    pub fn of_certificate(der: &[u8]) -> Result<Self, CertError> {
        let (_, certificate) = x509_parser::parse_x509_certificate(der).map_err(|e| CertError::Certificate(e.to_string()))?;
        let names = certificate.subject_alternative_name().map_err(|e| CertError::Certificate(e.to_string()))?;
        let names = names.ok_or(CertError::Identity { why: "it names nobody" })?;
        let uri = names.value.general_names.iter().find_map(|n| match n {
            GeneralName::URI(uri) => uri.strip_prefix("tidegate://"),
            _ => None,
        });
        let mut parts = uri.ok_or(CertError::Identity { why: "it has no tidegate:// name" })?.split('/');
        let mut next =
            || parts.next().filter(|p| !p.is_empty()).ok_or(CertError::Identity { why: "its tidegate:// name has not five parts" });
        let (cluster, role, region, name) = (next()?.into(), next()?.into(), next()?.into(), next()?.into());
        let enrolled = next()?.parse().map_err(|_| CertError::Identity { why: "its tidegate:// name does not say when it enrolled" })?;
        match parts.next() {
            None => Ok(Self { cluster, role, region, name, enrolled }),
            Some(_) => Err(CertError::Identity { why: "its tidegate:// name has more than five parts" }),
        }
    }
}

/// Who made a certificate, as its distinguished name.
///
/// # Errors
/// It is no certificate.
pub fn issuer(der: &[u8]) -> Result<String, CertError> {
    let (_, certificate) = x509_parser::parse_x509_certificate(der).map_err(|e| CertError::Certificate(e.to_string()))?;
    Ok(certificate.issuer().to_string())
}

/// Which key a certificate is for: SHA-256 of its public key (the SubjectPublicKeyInfo). Two certificates of one key have the same, and
/// nobody but who signed it can make another of the same certificate: its signature can be written in several ways.
///
/// # Errors
/// It is no certificate.
pub fn key_fingerprint(der: &[u8]) -> Result<[u8; 32], CertError> {
    let (_, certificate) = x509_parser::parse_x509_certificate(der).map_err(|e| CertError::Certificate(e.to_string()))?;
    Ok(sha256(certificate.public_key().raw))
}

/// When a certificate stops being valid, in seconds since 1970.
///
/// # Errors
/// It is no certificate.
pub fn not_after(der: &[u8]) -> Result<u64, CertError> {
    let (_, certificate) = x509_parser::parse_x509_certificate(der).map_err(|e| CertError::Certificate(e.to_string()))?;
    Ok(u64::try_from(certificate.validity().not_after.timestamp()).unwrap_or(0))
}
