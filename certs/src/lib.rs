//! The internal CA, enrolment, node identities, sealing of private keys, and the certificates of sites.
//!
//! Names: a node's certificate carries who it is as a URI (`tidegate://cluster/role/region/name`) and, for TLS's own
//! name check, `role.cluster.tidegate.internal` and `name.role.cluster.tidegate.internal`.

#![forbid(unsafe_code)]

pub mod ca;
pub mod challenge;
pub mod dnssec;
pub mod identity;
pub mod seal;
pub mod site;
pub mod tickets;
pub mod tls;
pub mod token;
pub mod upload;

pub use ca::{Ca, IssuedKey, Root};
pub use identity::NodeIdentity;
pub use seal::{KeyId, Keyring, SealingKey};
pub use site::SiteCertificates;

#[derive(Debug, thiserror::Error)]
pub enum CertError {
    #[error("cannot make the certificate: {0}")]
    Issue(#[from] rcgen::Error),
    #[error("the sealed {what} does not open: it is damaged")]
    Sealed { what: String },
    #[error("the sealed {what} does not open: the key {id} is not among those of this node")]
    UnknownKey { what: String, id: seal::KeyId },
    #[error("the system's random source failed")]
    Random,
    #[error("{path}: {error}")]
    File { path: String, error: std::io::Error },
    #[error("{path} is not a key file: {why}")]
    KeyFile { path: String, why: &'static str },
    #[error("not a Tidegate node's certificate: {why}")]
    Identity { why: &'static str },
    #[error("not a certificate: {0}")]
    Certificate(String),
    #[error("not a private key: {0}")]
    PrivateKey(String),
    #[error("TLS settings: {0}")]
    Tls(#[from] rustls::Error),
    #[error("{0}")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
}
