//! The certificate by which a host answers a TLS-ALPN-01 challenge (RFC 8737 section 3).

use crate::CertError;
use rcgen::{CertificateParams, CustomExtension, KeyPair};
use rustls::sign::CertifiedKey;
use rustls_pki_types::PrivateKeyDer;
use std::sync::Arc;

/// The protocol that such a handshake is for.
pub const ALPN: &[u8] = b"acme-tls/1";

/// # Errors
/// The host is no name, the digest no SHA-256, or a key cannot be made.
pub fn certificate(host: &str, digest: &[u8]) -> Result<Arc<CertifiedKey>, CertError> {
    if digest.len() != 32 {
        return Err(CertError::Certificate("the digest of a challenge has 32 bytes".into()));
    }
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(vec![host.to_owned()])?;
    params.custom_extensions = vec![CustomExtension::new_acme_identifier(digest)];
    let certificate = params.self_signed(&key)?;
    // It was made of this key, and the extension is one that no check of certificates knows.
    let key = PrivateKeyDer::try_from(key.serialize_der()).map_err(|e| CertError::PrivateKey(e.to_owned()))?;
    let key = rustls::crypto::aws_lc_rs::default_provider().key_provider.load_private_key(key)?;
    Ok(Arc::new(CertifiedKey::new(vec![certificate.der().clone()], key)))
}
