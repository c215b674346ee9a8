//! The cluster key of a control node: it seals what is secret in the log, and lies outside of it. A new one goes from the leader to
//! every control node over mutual TLS, never through the log; only then does it seal, and the leader seals anew what the old one sealed.

use crate::ControlError;
use crate::settings::ClusterKeySource;
use crate::shared::{Control, NotNow};
use parking_lot::{Mutex, RwLock};
use std::io::Read;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::Duration;
use tidegate_certs::seal::sealed_under;
use tidegate_certs::{CertError, KeyId, Keyring, SealingKey};
use tidegate_control_state::State;
use tidegate_control_types::sealed::{Resealed, SealedName};
use tidegate_control_types::{Change, wire};
use zeroize::Zeroizing;

/// For a command to print the keys.
const PRINTED_WITHIN: Duration = Duration::from_secs(30);
const MOST_PRINTED: usize = 16 << 10;
const TAKEN_WITHIN: Duration = Duration::from_secs(45);
/// Secrets in one entry of the log.
const MOST_RESEALED: usize = 200;

pub struct ClusterKeys {
    source: ClusterKeySource,
    ring: RwLock<Arc<Keyring>>,
    /// Held while the source is changed.
    changing: Mutex<()>,
    /// One rotation at a time.
    rotating: tokio::sync::Mutex<()>,
}

impl ClusterKeys {
    /// # Errors
    /// The source gives no keys.
    pub fn load(source: &ClusterKeySource) -> Result<Self, ControlError> {
        Ok(Self::with(source, read(source)?))
    }

    /// For a new cluster: makes the key file where there is none.
    ///
    /// # Errors
    /// The source gives no keys, or the file cannot be written.
    pub fn load_or_create(source: &ClusterKeySource) -> Result<Self, ControlError> {
        match source {
            ClusterKeySource::File(path) if !path.exists() => Self::create(source, Keyring::new(SealingKey::generate()?)),
            _ => Self::load(source),
        }
    }

    /// For a control node that joins: `ring` is what the others have.
    ///
    /// # Errors
    /// There is a key file already, it cannot be written, or the command prints other keys.
    pub fn create(source: &ClusterKeySource, ring: Keyring) -> Result<Self, ControlError> {
        match source {
            ClusterKeySource::File(path) => ring.create(path)?,
            ClusterKeySource::Command(_) => {
                let own = read(source)?;
                if let Some(missing) = ring.keys().find(|k| own.key(k.id()).is_none()) {
                    return Err(ControlError::ClusterKey(format!("cluster_key_command does not print the key {}", missing.id())));
                }
                return Ok(Self::with(source, own));
            }
        }
        Ok(Self::with(source, ring))
    }

    fn with(source: &ClusterKeySource, ring: Keyring) -> Self {
        Self {
            source: source.clone(),
            ring: RwLock::new(Arc::new(ring)),
            changing: Mutex::default(),
            rotating: tokio::sync::Mutex::default(),
        }
    }

    #[must_use]
    pub fn ring(&self) -> Arc<Keyring> {
        Arc::clone(&self.ring.read())
    }

    /// # Errors
    /// This node has no such key, or the random source fails.
    pub fn seal(&self, state: &State, name: &SealedName, plain: &[u8]) -> Result<Vec<u8>, CertError> {
        self.ring().seal(KeyId(state.cluster_key), &name.to_string(), plain)
    }

    /// # Errors
    /// It is damaged, another secret, or under a key that this node has not.
    pub fn open(&self, name: &SealedName, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, CertError> {
        self.ring().open(&name.to_string(), sealed)
    }

    /// Takes a key from the leader, so that it is here after a restart too.
    ///
    /// # Errors
    /// The key file cannot be written, or the command does not print this key.
    pub fn take(&self, key: SealingKey) -> Result<(), ControlError> {
        let _one = self.changing.lock();
        let ring = match &self.source {
            ClusterKeySource::File(path) => {
                // What an operator added to the file meanwhile is kept.
                let ring = Keyring::load(path)?;
                if ring.newest().id() == key.id() {
                    ring
                } else {
                    let ring = ring.with(key);
                    ring.replace(path)?;
                    ring
                }
            }
            ClusterKeySource::Command(_) => {
                let ring = read(&self.source)?;
                if ring.key(key.id()).is_none() {
                    return Err(ControlError::ClusterKey(format!(
                        "its cluster_key_command does not print the key {}: give every control node the same keys",
                        key.id()
                    )));
                }
                ring
            }
        };
        *self.ring.write() = Arc::new(ring);
        Ok(())
    }

    /// The key that is to follow `current`: one that is there already and has not sealed yet, else a new one.
    fn next(&self, current: KeyId) -> Result<SealingKey, ControlError> {
        let ring = read(&self.source)?;
        if ring.newest().id() != current {
            return Ok(ring.newest().clone());
        }
        match &self.source {
            ClusterKeySource::File(_) => Ok(SealingKey::generate()?),
            ClusterKeySource::Command(_) => Err(ControlError::ClusterKey(format!(
                "cluster_key_command still prints {current} as the newest key: make a new key in the key store first, printed last"
            ))),
        }
    }
}

fn read(source: &ClusterKeySource) -> Result<Keyring, ControlError> {
    match source {
        ClusterKeySource::File(path) => Ok(Keyring::load(path)?),
        ClusterKeySource::Command(words) => {
            let text = printed(words).map_err(|why| ControlError::ClusterKey(format!("cluster_key_command: {why}")))?;
            Keyring::parse(&text).ok_or_else(|| {
                ControlError::ClusterKey(
                    "cluster_key_command prints no keys: 64 hexadecimal digits for each, one in a line, the newest last".into(),
                )
            })
        }
    }
}

/// What a command prints; what it says on stderr is the error's.
fn printed(words: &[String]) -> Result<Zeroizing<String>, String> {
    let (program, arguments) = words.split_first().ok_or("it is empty")?;
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(|e| format!("{program}: {e}"))?;
    let (done, ended) = channel();
    if let Some(stdout) = child.stdout.take() {
        std::thread::spawn(move || {
            let mut text = Zeroizing::new(String::with_capacity(MOST_PRINTED));
            let read = stdout.take(MOST_PRINTED as u64).read_to_string(&mut text);
            let _ = done.send(read.map(|_| text));
        });
    }
    let printed = ended.recv_timeout(PRINTED_WITHIN);
    if printed.is_err() {
        let _ = child.kill();
    }
    let mut said = String::new();
    if let Some(stderr) = child.stderr.take().filter(|_| printed.is_ok()) {
        let _ = stderr.take(500).read_to_string(&mut said);
    }
    let status = child.wait().map_err(|e| e.to_string())?;
    match printed {
        Err(_) => Err(format!("{program} has not ended within {PRINTED_WITHIN:?}")),
        Ok(_) if !status.success() => Err(format!("{program} ended with {status}: {}", said.trim())),
        Ok(text) => text.map_err(|e| format!("{program}: {e}")),
    }
}

#[derive(Debug, thiserror::Error)]
pub enum NotRotated {
    #[error(transparent)]
    NotNow(#[from] NotNow),
    /// Nothing has changed: the old key goes on sealing.
    #[error("{0}")]
    Refused(String),
}

/// Makes a new key, gives it to every control node, and lets it seal from now on. Returns its id.
///
/// # Errors
/// A control node does not take it, or this one leads no more; trying again goes on with the same key.
pub async fn rotate(control: &Arc<Control>, by: &str) -> Result<KeyId, NotRotated> {
    let _one = control.cluster_keys.rotating.lock().await;
    let (current, members) = {
        let state = control.raft.state.read();
        let members: Vec<_> = state.members().map(|(id, name, address)| (id, name.clone(), address.to_owned())).collect();
        (KeyId(state.cluster_key), members)
    };
    let refused = |e: ControlError| NotRotated::Refused(e.to_string());
    let shared = Arc::clone(control);
    let made = tokio::task::spawn_blocking(move || {
        let key = shared.cluster_keys.next(current)?;
        shared.cluster_keys.take(key.clone())?;
        Ok::<_, ControlError>(key)
    });
    let key = made.await.map_err(|e| NotRotated::Refused(e.to_string()))?.map_err(refused)?;
    let body = Zeroizing::new(wire::encode(key.as_bytes()));
    let path = format!("/cluster-key?log={}", control.log());
    for (_, name, address) in members.into_iter().filter(|(id, ..)| *id != control.raft.id) {
        let given = control.links.call(&address, "control", &path, body.to_vec(), TAKEN_WITHIN).await;
        given.map_err(|e| {
            NotRotated::Refused(format!(
                "the control node {name} did not take the new key, so the old one stays: {e}. Mend or remove {name}, then try again"
            ))
        })?;
    }
    control.change(by, Change::ClusterKeyPut { key: key.id().0 }).await?;
    tracing::info!(key = %key.id(), by, "a new cluster key seals");
    Ok(key.id())
}

/// How many secrets there are, and how many of them another key than the network's has sealed.
#[must_use]
pub fn sealed_otherwise(state: &State) -> (usize, usize) {
    let mut all = 0;
    let otherwise = state.sealed().inspect(|_| all += 1).filter(|(_, sealed)| is_otherwise(state, sealed)).count();
    (all, otherwise)
}

fn is_otherwise(state: &State, sealed: &[u8]) -> bool {
    sealed_under(sealed) != Some(KeyId(state.cluster_key))
}

/// Seals some of what another key sealed under the network's key. Returns whether there is nothing left that could be.
///
/// # Errors
/// This node leads no more.
pub async fn reseal(control: &Control, by: &str) -> Result<bool, NotNow> {
    let stale: Vec<(SealedName, Vec<u8>)> = {
        let state = control.raft.state.read();
        let stale = state.sealed().filter(|(_, sealed)| is_otherwise(&state, sealed));
        stale.map(|(name, sealed)| (name, sealed.clone())).collect()
    };
    let again = |(name, before): (SealedName, Vec<u8>)| {
        let opened = control.cluster_keys.open(&name, &before);
        let sealed = opened.and_then(|plain| control.seal(&name, &plain));
        match sealed {
            Ok(sealed) => Some(Resealed { name, before, sealed }),
            Err(error) => {
                tracing::error!(%error, "a secret cannot be sealed anew");
                None
            }
        }
    };
    let items: Vec<_> = stale.into_iter().filter_map(again).take(MOST_RESEALED).collect();
    if items.is_empty() {
        return Ok(true);
    }
    control.change(by, Change::Reseal { items }).await?;
    Ok(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(script: &str) -> ClusterKeySource {
        ClusterKeySource::Command(["sh", "-c", script].map(str::to_owned).to_vec())
    }

    #[test]
    fn a_command_prints_the_keys_or_says_why_not() {
        let (old, new) = ("11".repeat(32), "22".repeat(32));
        let ring = read(&command(&format!("echo {old}; echo {new}"))).unwrap();
        assert_eq!((ring.keys().count(), ring.newest().as_bytes()), (2, &[0x22; 32]));
        let why = |script: &str| read(&command(script)).unwrap_err().to_string();
        assert!(why("echo locked >&2; exit 3").contains("exit status: 3: locked"), "{}", why("exit 3"));
        assert!(why("echo nonsense").contains("prints no keys"));
        let missing = ClusterKeySource::Command(vec!["/no/such/program".into()]);
        assert!(read(&missing).unwrap_err().to_string().contains("/no/such/program"));
        // A new one is asked for where it is made.
        let keys = ClusterKeys::load(&command(&format!("echo {old}"))).unwrap();
        let current = keys.ring().newest().id();
        assert!(keys.next(current).unwrap_err().to_string().contains("make a new key in the key store first"));
        assert!(keys.take(SealingKey::from_bytes([0x22; 32])).unwrap_err().to_string().contains("does not print the key"));
    }

    #[test]
    fn a_key_that_was_given_out_and_has_not_sealed_yet_is_the_next_one() {
        let dir = tempfile::tempdir().unwrap();
        let source = ClusterKeySource::File(dir.path().join("cluster.key"));
        let keys = ClusterKeys::load_or_create(&source).unwrap();
        let current = keys.ring().newest().id();
        let next = keys.next(current).unwrap();
        assert_ne!(next.id(), current);
        keys.take(next.clone()).unwrap();
        keys.take(next.clone()).unwrap();
        assert_eq!(keys.next(current).unwrap().id(), next.id());
        let again = ClusterKeys::load(&source).unwrap();
        assert_eq!(again.ring().keys().map(SealingKey::id).collect::<Vec<_>>(), [current, next.id()]);
    }
}
