//! A node's credentials: made at enrolment, kept sealed in its data folder, renewed daily.

use crate::NodeError;
use parking_lot::RwLock;
use rustls::ClientConfig;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tidegate_certs::{NodeIdentity, SealingKey, identity, tls};
use tidegate_control_types::wire;

/// What is stored: the certificate's chain, its private key (sealed) and the CA, all DER.
#[derive(Clone, Serialize, Deserialize)]
pub struct StoredCredentials {
    pub chain: Vec<Vec<u8>>,
    pub sealed_key: Vec<u8>,
    pub ca: Vec<u8>,
}

/// Ready for use.
pub struct Credentials {
    pub identity: NodeIdentity,
    pub chain: Vec<Vec<u8>>,
    pub key: Vec<u8>,
    pub ca: Vec<u8>,
    pub client: Arc<ClientConfig>,
    /// Seconds since 1970.
    pub not_after: u64,
}

const CONTEXT: &str = "node identity";

impl Credentials {
    /// # Errors
    /// A certificate or key is damaged.
    pub fn new(chain: Vec<Vec<u8>>, key: Vec<u8>, ca: Vec<u8>) -> Result<Self, NodeError> {
        let leaf = chain.first().map(Vec::as_slice).unwrap_or_default();
        let (who, not_after) = (NodeIdentity::of_certificate(leaf)?, identity::not_after(leaf)?);
        let client = Arc::new(tls::node_client(&chain, &key, &ca)?);
        Ok(Self { identity: who, chain, key, ca, client, not_after })
    }

    fn file(data: &Path) -> PathBuf {
        data.join("identity")
    }

    /// What an earlier enrolment left in the data folder.
    ///
    /// # Errors
    /// It is there but cannot be read or opened.
    pub fn load(data: &Path, node_key: &SealingKey) -> Result<Option<Self>, NodeError> {
        let path = Self::file(data);
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(NodeError::file(&path, e)),
        };
        let stored: StoredCredentials =
            wire::decode(&bytes).map_err(|error| NodeError::Damaged { path: path.display().to_string(), error })?;
        let key = node_key.open(CONTEXT, &stored.sealed_key)?;
        Self::new(stored.chain, key, stored.ca).map(Some)
    }

    /// # Errors
    /// The folder cannot be written.
    pub fn save(&self, data: &Path, node_key: &SealingKey) -> Result<(), NodeError> {
        let sealed_key = node_key.seal(CONTEXT, &self.key)?;
        let stored = StoredCredentials { chain: self.chain.clone(), sealed_key, ca: self.ca.clone() };
        write_file(&Self::file(data), &wire::encode(&stored))
    }
}

/// Writes a file so that at any moment either the old or the new whole content is there.
///
/// # Errors
/// The folder cannot be written.
pub fn write_file(path: &Path, bytes: &[u8]) -> Result<(), NodeError> {
    use std::io::Write;
    let fail = |e| NodeError::file(path, e);
    let folder = path.parent().unwrap_or(Path::new("/"));
    std::fs::create_dir_all(folder).map_err(fail)?;
    let new = path.with_extension("new");
    let mut file = std::fs::File::create(&new).map_err(fail)?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(fail)?;
    std::fs::rename(&new, path).map_err(fail)?;
    std::fs::File::open(folder).and_then(|d| d.sync_all()).map_err(fail)
}

/// The credentials in use; renewal puts new ones in their place.
#[derive(Clone)]
pub struct CurrentCredentials(Arc<RwLock<Arc<Credentials>>>);

impl CurrentCredentials {
    #[must_use]
    pub fn new(credentials: Credentials) -> Self {
        Self(Arc::new(RwLock::new(Arc::new(credentials))))
    }

    #[must_use]
    pub fn get(&self) -> Arc<Credentials> {
        Arc::clone(&self.0.read())
    }

    pub fn replace(&self, credentials: Credentials) {
        *self.0.write() = Arc::new(credentials);
    }
}
