//! Sealing: private keys are stored only encrypted (AES-256-GCM). A sealed value is one version byte, the id of its key, a
//! random nonce and the ciphertext with its tag; the context it is for is authenticated, so that it opens nowhere else.

use crate::CertError;
use crate::token::sha256;
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

const VERSION: u8 = 2;

/// Which key sealed something. It says nothing of the key itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KeyId(pub [u8; 8]);

impl std::fmt::Display for KeyId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&to_hex(&self.0))
    }
}

/// The key that a sealed value names; `None` where it is none.
#[must_use]
pub fn sealed_under(sealed: &[u8]) -> Option<KeyId> {
    sealed.strip_prefix(&[VERSION])?.first_chunk().copied().map(KeyId)
}

/// 32 random bytes that seal other secrets.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct SealingKey([u8; 32]);

impl std::fmt::Debug for SealingKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SealingKey({})", self.id())
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

    #[must_use]
    pub fn id(&self) -> KeyId {
        let input = Zeroizing::new([&b"tidegate sealing key "[..], &self.0].concat());
        let [a, b, c, d, e, f, g, h, ..] = sha256(&input);
        KeyId([a, b, c, d, e, f, g, h])
    }

    /// Reads the key file, or makes it (mode 0600) where there is none.
    ///
    /// # Errors
    /// The file cannot be read or written, or is no key file.
    pub fn load_or_create(path: &Path) -> Result<Self, CertError> {
        match Self::load(path) {
            Err(CertError::File { error, .. }) if error.kind() == std::io::ErrorKind::NotFound => {
                let ring = Keyring::new(Self::generate()?);
                ring.create(path)?;
                Ok(ring.newest().clone())
            }
            other => other,
        }
    }

    /// # Errors
    /// The file cannot be read, or is no file of one key.
    pub fn load(path: &Path) -> Result<Self, CertError> {
        let ring = Keyring::load(path)?;
        if ring.older.is_empty() {
            Ok(ring.newest)
        } else {
            Err(CertError::KeyFile { path: path.display().to_string(), why: "it holds several keys" })
        }
    }

    /// # Errors
    /// The system's random source fails.
    pub fn seal(&self, context: &str, plain: &[u8]) -> Result<Vec<u8>, CertError> {
        let nonce: [u8; NONCE_LEN] = random()?;
        // With room for the tag: what grows leaves a copy behind.
        let mut body = Vec::with_capacity(plain.len() + AES_256_GCM.tag_len());
        body.extend_from_slice(plain);
        self.cipher()?
            .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(context.as_bytes()), &mut body)
            .map_err(|_| CertError::Random)?;
        Ok([&[VERSION][..], &self.id().0, &nonce, &body].concat())
    }

    /// # Errors
    /// It was sealed by another key, for another context, or is damaged.
    pub fn open(&self, context: &str, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, CertError> {
        let fail = || CertError::Sealed { what: context.into() };
        let id = sealed_under(sealed).ok_or_else(fail)?;
        if id != self.id() {
            return Err(CertError::UnknownKey { what: context.into(), id });
        }
        let rest = sealed.get(1 + id.0.len()..).ok_or_else(fail)?;
        let (nonce, body) = rest.split_first_chunk::<NONCE_LEN>().ok_or_else(fail)?;
        let mut body = Zeroizing::new(body.to_vec());
        let plain = self
            .cipher()?
            .open_in_place(Nonce::assume_unique_for_key(*nonce), Aad::from(context.as_bytes()), &mut body)
            .map_err(|_| fail())?
            .len();
        body.truncate(plain);
        Ok(body)
    }

    fn cipher(&self) -> Result<LessSafeKey, CertError> {
        UnboundKey::new(&AES_256_GCM, &self.0).map(LessSafeKey::new).map_err(|_| CertError::Random)
    }
}

/// Of one file.
const MOST_KEYS: usize = 100;

/// A key, and those that it followed: they open what was sealed in their time.
#[derive(Clone, Debug)]
pub struct Keyring {
    /// The oldest first.
    older: Vec<SealingKey>,
    newest: SealingKey,
}

impl Keyring {
    #[must_use]
    pub fn new(key: SealingKey) -> Self {
        Self { older: Vec::new(), newest: key }
    }

    /// The text of a key file: 64 hexadecimal digits for each key, one in a line, the newest last.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let key = |line: &str| Some(SealingKey(from_hex(line.trim())?.try_into().ok()?));
        let mut older: Vec<_> = text.lines().filter(|l| !l.trim().is_empty()).map(key).collect::<Option<_>>()?;
        let newest = older.pop()?;
        (older.len() < MOST_KEYS).then_some(Self { older, newest })
    }

    /// # Errors
    /// The file cannot be read, or is no key file.
    pub fn load(path: &Path) -> Result<Self, CertError> {
        let text = std::fs::read_to_string(path).map_err(|error| CertError::File { path: path.display().to_string(), error })?;
        let text = Zeroizing::new(text);
        let wrong = || CertError::KeyFile { path: path.display().to_string(), why: "64 hexadecimal digits for each key, one in a line" };
        Self::parse(&text).ok_or_else(wrong)
    }

    /// Writes a new key file (mode 0600); an existing one is never overwritten.
    ///
    /// # Errors
    /// It exists or cannot be written.
    pub fn create(&self, path: &Path) -> Result<(), CertError> {
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(|error| CertError::File { path: path.display().to_string(), error })?;
        }
        self.write(path)
    }

    /// Puts the file in the place of another: at any moment the old or the new one is there, whole.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn replace(&self, path: &Path) -> Result<(), CertError> {
        let fail = |error| CertError::File { path: path.display().to_string(), error };
        let new = path.with_extension("new");
        match std::fs::remove_file(&new) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(fail(e)),
            _ => {}
        }
        self.write(&new)?;
        std::fs::rename(&new, path).map_err(fail)?;
        std::fs::File::open(path.parent().unwrap_or(Path::new("/"))).and_then(|folder| folder.sync_all()).map_err(fail)
    }

    fn write(&self, path: &Path) -> Result<(), CertError> {
        let fail = |error| CertError::File { path: path.display().to_string(), error };
        let mut text = Zeroizing::new(String::with_capacity((self.older.len() + 1) * 65));
        for key in self.keys() {
            text.push_str(&Zeroizing::new(to_hex(&key.0)));
            text.push('\n');
        }
        let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(fail)?;
        file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(fail)
    }

    #[must_use]
    pub fn newest(&self) -> &SealingKey {
        &self.newest
    }

    /// The oldest first.
    pub fn keys(&self) -> impl Iterator<Item = &SealingKey> {
        self.older.iter().chain([&self.newest])
    }

    #[must_use]
    pub fn key(&self, id: KeyId) -> Option<&SealingKey> {
        self.keys().find(|k| k.id() == id)
    }

    /// With one key more, the newest from now on.
    #[must_use]
    pub fn with(&self, key: SealingKey) -> Self {
        let mut older: Vec<_> = self.keys().filter(|k| k.id() != key.id()).cloned().collect();
        let surplus = (older.len() + 1).saturating_sub(MOST_KEYS);
        older.drain(..surplus);
        Self { older, newest: key }
    }

    /// # Errors
    /// The ring has no such key, or the system's random source fails.
    pub fn seal(&self, id: KeyId, context: &str, plain: &[u8]) -> Result<Vec<u8>, CertError> {
        self.key(id).ok_or_else(|| CertError::UnknownKey { what: context.into(), id })?.seal(context, plain)
    }

    /// # Errors
    /// No key of the ring sealed it, it was sealed for another context, or it is damaged.
    pub fn open(&self, context: &str, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, CertError> {
        let id = sealed_under(sealed).ok_or_else(|| CertError::Sealed { what: context.into() })?;
        self.key(id).ok_or_else(|| CertError::UnknownKey { what: context.into(), id })?.open(context, sealed)
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
        assert_eq!(*key.open("a", &sealed).unwrap(), b"secret");
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
    fn a_ring_opens_what_any_of_its_keys_sealed() {
        let (old, new) = (SealingKey::generate().unwrap(), SealingKey::generate().unwrap());
        let before = old.seal("a", b"secret").unwrap();
        let ring = Keyring::new(old.clone()).with(new.clone());
        assert_eq!(*ring.open("a", &before).unwrap(), b"secret");
        let after = ring.seal(new.id(), "a", b"secret").unwrap();
        assert_eq!((sealed_under(&before), sealed_under(&after)), (Some(old.id()), Some(new.id())));
        let error = Keyring::new(old).open("a", &after).unwrap_err();
        assert_eq!(error.to_string(), format!("the sealed a does not open: the key {} is not among those of this node", new.id()));
        let text: String = ring.keys().map(|k| to_hex(&k.0) + "\n").collect();
        assert_eq!(Keyring::parse(&text).unwrap().newest().id(), new.id());
        for bad in ["", "\n", "abc", &text[..100], &text.repeat(51)] {
            assert!(Keyring::parse(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn key_files_are_private_and_overwritten_only_as_a_whole() {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/node.key");
        let key = SealingKey::load_or_create(&path).unwrap();
        assert_eq!(SealingKey::load_or_create(&path).unwrap().as_bytes(), key.as_bytes());
        let mode = || std::fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(), 0o600);
        assert!(Keyring::new(key.clone()).create(&path).is_err());
        // What another process left behind stops nobody.
        std::fs::write(path.with_extension("new"), "half").unwrap();
        let two = Keyring::new(key).with(SealingKey::generate().unwrap());
        two.replace(&path).unwrap();
        assert_eq!((mode(), Keyring::load(&path).unwrap().newest().id()), (0o600, two.newest().id()));
        assert!(matches!(SealingKey::load(&path), Err(CertError::KeyFile { .. })));
        std::fs::write(&path, "short").unwrap();
        assert!(matches!(SealingKey::load(&path), Err(CertError::KeyFile { .. })));
    }
}
