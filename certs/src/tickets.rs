//! Session tickets (RFC 8446 section 4.6.1) that every edge of the network can read: a client that comes back to another edge resumes too.
//!
//! A ticket: the key's name, a nonce, and what is sealed with AES-256-GCM. The newest key seals, all that are kept open.

use crate::seal::random;
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use aws_lc_rs::digest;
use parking_lot::RwLock;
use rustls::server::ProducesTickets;
use std::sync::Arc;

/// Of a key, in bytes.
pub const KEY_LEN: usize = 32;
const NAME_LEN: usize = 16;

struct Key {
    name: [u8; NAME_LEN],
    cipher: LessSafeKey,
}

/// Shared by all workers; without a key there are no tickets.
#[derive(Default)]
pub struct Tickets {
    keys: RwLock<Arc<Vec<Key>>>,
    lifetime_seconds: u32,
}

impl Tickets {
    /// `lifetime_seconds`: for how long a key is kept after the one that follows it.
    #[must_use]
    pub fn new(lifetime_seconds: u32) -> Self {
        Self { keys: RwLock::default(), lifetime_seconds }
    }

    /// Puts these keys in the place of all, the newest last; those that are of the wrong length count as none.
    pub fn replace<'a>(&self, keys: impl Iterator<Item = &'a [u8]>) {
        let key = |bytes: &[u8]| {
            let cipher = LessSafeKey::new(UnboundKey::new(&AES_256_GCM, bytes).ok()?);
            // Nobody learns the key by its name.
            let digest = digest::digest(&digest::SHA256, &[b"ticket key ", bytes].concat());
            Some(Key { name: *digest.as_ref().first_chunk()?, cipher })
        };
        *self.keys.write() = Arc::new(keys.filter_map(key).collect());
    }
}

impl std::fmt::Debug for Tickets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tickets").field("keys", &self.keys.read().len()).finish_non_exhaustive()
    }
}

impl ProducesTickets for Tickets {
    fn enabled(&self) -> bool {
        !self.keys.read().is_empty()
    }

    fn lifetime(&self) -> u32 {
        self.lifetime_seconds
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        let keys = Arc::clone(&self.keys.read());
        let key = keys.last()?;
        let nonce: [u8; NONCE_LEN] = random().ok()?;
        let mut sealed = plain.to_vec();
        key.cipher.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(key.name), &mut sealed).ok()?;
        Some([&key.name[..], &nonce, &sealed].concat())
    }

    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        let (name, rest) = ticket.split_first_chunk::<NAME_LEN>()?;
        let (nonce, sealed) = rest.split_first_chunk::<NONCE_LEN>()?;
        let keys = Arc::clone(&self.keys.read());
        let key = keys.iter().find(|k| k.name == *name)?;
        let mut opened = sealed.to_vec();
        let plain = key.cipher.open_in_place(Nonce::assume_unique_for_key(*nonce), Aad::from(*name), &mut opened).ok()?;
        Some(plain.to_vec())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ticket_is_read_by_whoever_has_its_key_and_nothing_else_is_one() {
        let (one, other) = (Tickets::new(60), Tickets::new(60));
        let (a, b) = ([1; KEY_LEN], [2; KEY_LEN]);
        assert!(!one.enabled() && one.encrypt(b"x").is_none());
        one.replace([&a[..]].into_iter());
        other.replace([&a[..], &b].into_iter());
        let ticket = one.encrypt(b"a session").unwrap();
        assert_eq!(other.decrypt(&ticket).unwrap(), b"a session");
        assert!(one.decrypt(&other.encrypt(b"newer").unwrap()).is_none(), "it has not the newest key yet");
        for at in 0..ticket.len() {
            let mut torn = ticket.clone();
            torn[at] ^= 1;
            assert!(other.decrypt(&torn).is_none() && other.decrypt(&ticket[..at]).is_none(), "byte {at}");
        }
        other.replace([&b[..], &[0; 3]].into_iter());
        assert!(other.decrypt(&ticket).is_none(), "the key is gone");
    }
}
