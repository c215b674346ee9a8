//! Sealing: private keys are stored only encrypted (AES-256-GCM). A sealed value is one version byte, a random nonce and
//! the ciphertext with its tag; the context it is for is authenticated, so that it opens nowhere else.

use crate::CertError;
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

const VERSION: u8 = 1;

/// 32 random bytes that seal other secrets.
#[derive(Clone)]
pub struct SealingKey([u8; 32]);

impl std::fmt::Debug for SealingKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SealingKey(..)")
    }
}

/// # Errors
/// The system's random source fails.
pub fn random<const N: usize>() -> Result<[u8; N], CertError> {
    let mut bytes = [0; N];
    aws_lc_rs::rand::fill(&mut bytes).map_err(|_| CertError::Random)?;
    Ok(bytes)
}

impl SealingKey {
    /// # Errors
    /// The system's random source fails.
    pub fn generate() -> Result<Self, CertError> {
        Ok(Self(random()?))
    }

    #[must_use]
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Reads the key file, or makes it (mode 0600) where there is none.
    ///
    /// # Errors
    /// The file cannot be read or written, or is no key file.
    pub fn load_or_create(path: &Path) -> Result<Self, CertError> {
        match Self::load(path) {
            Err(CertError::File { error, .. }) if error.kind() == std::io::ErrorKind::NotFound => {
                let key = Self::generate()?;
                key.save(path)?;
                Ok(key)
            }
            other => other,
        }
    }

    /// # Errors
    /// The file cannot be read, or is no key file.
    pub fn load(path: &Path) -> Result<Self, CertError> {
        let text = std::fs::read_to_string(path).map_err(|error| CertError::File { path: path.display().to_string(), error })?;
        from_hex(text.trim())
            .and_then(|b| b.try_into().ok())
            .map(Self)
            .ok_or_else(|| CertError::KeyFile { path: path.display().to_string() })
    }

    /// Writes a new key file; an existing one is never overwritten.
    ///
    /// # Errors
    /// It exists or cannot be written.
    pub fn save(&self, path: &Path) -> Result<(), CertError> {
        let fail = |error| CertError::File { path: path.display().to_string(), error };
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(fail)?;
        }
        let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(fail)?;
        file.write_all(to_hex(&self.0).as_bytes()).and_then(|()| file.write_all(b"\n")).and_then(|()| file.sync_all()).map_err(fail)
    }

    /// # Errors
    /// The system's random source fails.
    pub fn seal(&self, context: &str, plain: &[u8]) -> Result<Vec<u8>, CertError> {
        let nonce: [u8; NONCE_LEN] = random()?;
        let mut body = plain.to_vec();
        self.cipher()?
            .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(context.as_bytes()), &mut body)
            .map_err(|_| CertError::Random)?;
        Ok([&[VERSION][..], &nonce, &body].concat())
    }

    /// # Errors
    /// It was sealed by another key, for another context, or is damaged.
    pub fn open(&self, context: &str, sealed: &[u8]) -> Result<Vec<u8>, CertError> {
        let fail = || CertError::Sealed { what: context.into() };
        let rest = sealed.strip_prefix(&[VERSION]).ok_or_else(fail)?;
        let (nonce, body) = rest.split_first_chunk::<NONCE_LEN>().ok_or_else(fail)?;
        let mut body = body.to_vec();
        let plain = self
            .cipher()?
            .open_in_place(Nonce::assume_unique_for_key(*nonce), Aad::from(context.as_bytes()), &mut body)
            .map_err(|_| fail())?;
        Ok(plain.to_vec())
    }

    fn cipher(&self) -> Result<LessSafeKey, CertError> {
        UnboundKey::new(&AES_256_GCM, &self.0).map(LessSafeKey::new).map_err(|_| CertError::Random)
    }
}

#[must_use]
pub fn to_hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut out, b| {
        let _ = write!(out, "{b:02x}");
        out
    })
}

#[must_use]
pub fn from_hex(text: &str) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(2) || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(text.get(at..at + 2)?, 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sealed_value_opens_with_its_key_in_its_context_only() {
        let key = SealingKey::generate().unwrap();
        let sealed = key.seal("a", b"secret").unwrap();
        assert_eq!(key.open("a", &sealed).unwrap(), b"secret");
        assert!(key.open("b", &sealed).is_err());
        assert!(SealingKey::generate().unwrap().open("a", &sealed).is_err());
        for at in 0..sealed.len() {
            let mut torn = sealed.clone();
            torn[at] ^= 1;
            assert!(key.open("a", &torn).is_err(), "byte {at}");
            assert!(key.open("a", &sealed[..at]).is_err());
        }
    }

    #[test]
    fn key_files_are_private_and_never_overwritten() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/node.key");
        let key = SealingKey::load_or_create(&path).unwrap();
        assert_eq!(SealingKey::load_or_create(&path).unwrap().as_bytes(), key.as_bytes());
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(key.save(&path).is_err());
        std::fs::write(&path, "short").unwrap();
        assert!(matches!(SealingKey::load(&path), Err(CertError::KeyFile { .. })));
    }
}
