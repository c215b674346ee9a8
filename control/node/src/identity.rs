//! A node's credentials: made at enrolment, kept sealed in its data folder, renewed daily.

use crate::NodeError;
use rustls::ClientConfig;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tidegate_certs::tls::Trust;
use tidegate_certs::{NodeIdentity, SealingKey, identity, tls};
use tidegate_control_types::authority::Fingerprint;
use tidegate_control_types::{NodeState, wire};
use tokio::sync::watch;
use zeroize::Zeroizing;

/// What is stored: the certificate's chain, its private key (sealed) and the root, all DER, and whom the node believes no more.
#[derive(Clone, Serialize, Deserialize)]
struct StoredCredentials {
    chain: Vec<Vec<u8>>,
    sealed_key: Vec<u8>,
    root: Vec<u8>,
    retired: Vec<Fingerprint>,
}

/// Ready for use.
pub struct Credentials {
    pub identity: NodeIdentity,
    pub chain: Vec<Vec<u8>>,
    pub key: Zeroizing<Vec<u8>>,
    pub trust: Trust,
    /// The authority that issued it.
    pub issuer: Fingerprint,
    pub client: Arc<ClientConfig>,
    /// Seconds since 1970.
    pub not_after: u64,
}

const CONTEXT: &str = "node identity";

impl Credentials {
    /// # Errors
    /// A certificate or key is damaged.
    pub fn new(chain: Vec<Vec<u8>>, key: impl Into<Zeroizing<Vec<u8>>>, trust: Trust) -> Result<Self, NodeError> {
        let key = key.into();
        let leaf = chain.first().map(Vec::as_slice).unwrap_or_default();
        let (who, not_after) = (NodeIdentity::of_certificate(leaf)?, identity::not_after(leaf)?);
        let client = Arc::new(tls::node_client(&chain, &key, &trust)?);
        let issuer = chain.get(1).map(|c| identity::key_fingerprint(c)).transpose()?.unwrap_or_default();
        Ok(Self { identity: who, chain, key, trust, issuer, client, not_after })
    }

    /// Whether they are those of the node that the settings speak of: its name, role and region are fixed by its enrolment.
    ///
    /// # Errors
    /// They are another's.
    pub fn check(&self, node: &NodeState, data: &Path) -> Result<(), NodeError> {
        let i = &self.identity;
        if i.name == node.name.as_str() && i.role == node.role.as_str() && i.region == node.region {
            return Ok(());
        }
        let found = format!("{} {} in {}", i.role, i.name, i.region);
        let wanted = format!("{} {} in {}", node.role, node.name, node.region);
        Err(NodeError::Other { data: data.display().to_string(), found, wanted })
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
        Self::new(stored.chain, key, Trust { root: stored.root, retired: stored.retired }).map(Some)
    }

    /// # Errors
    /// The folder cannot be written.
    pub fn save(&self, data: &Path, node_key: &SealingKey) -> Result<(), NodeError> {
        let sealed_key = node_key.seal(CONTEXT, &self.key)?;
        let Trust { root, retired } = self.trust.clone();
        let stored = StoredCredentials { chain: self.chain.clone(), sealed_key, root, retired };
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
pub struct CurrentCredentials(Arc<watch::Sender<Arc<Credentials>>>);

impl CurrentCredentials {
    #[must_use]
    pub fn new(credentials: Credentials) -> Self {
        Self(Arc::new(watch::channel(Arc::new(credentials)).0))
    }

    #[must_use]
    pub fn get(&self) -> Arc<Credentials> {
        Arc::clone(&self.0.borrow())
    }

    pub fn replace(&self, credentials: Credentials) {
        self.0.send_replace(Arc::new(credentials));
    }

    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<Arc<Credentials>> {
        self.0.subscribe()
    }

    /// The same certificate, with these authorities believed no more, beside those that are not believed already: whoever was told of a
    /// theft does not unlearn it. False where that is nothing new.
    ///
    /// # Errors
    /// The certificate is damaged.
    pub fn distrust(&self, retired: &[Fingerprint]) -> Result<bool, NodeError> {
        let now = self.get();
        let mut trust = now.trust.clone();
        trust.retired.extend(retired.iter().filter(|r| !now.trust.retired.contains(r)));
        if trust == now.trust {
            return Ok(false);
        }
        self.replace(Credentials::new(now.chain.clone(), now.key.clone(), trust)?);
        Ok(true)
    }
}
