//! The cluster key of a control node: it seals what is secret in the log, and lies outside of it. A new one goes from the leader to
//! every control node over mutual TLS, never through the log; only then does it seal, and the leader seals anew what the old one sealed.

use crate::ControlError;
use crate::settings::ClusterKeySource;
use crate::shared::{Control, NotNow};
use parking_lot::{Mutex, RwLock};
use std::collections::BTreeSet;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;
use tidegate_certs::seal::sealed_under;
use tidegate_certs::{CertError, KeyId, Keyring, SealingKey};
use tidegate_control_state::State;
use tidegate_control_types::sealed::{Resealed, SealedName};
use tidegate_control_types::{Change, wire};
use zeroize::Zeroizing;

/// For a command to print the keys.
const PRINTED_WITHIN: Duration = Duration::from_secs(30);
/// For this node to have applied what the leader has.
const NAMED_WITHIN: Duration = Duration::from_secs(10);
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
        self.ring().seal(KeyId(state.cluster_keys.current), &name.to_string(), plain)
    }

    /// # Errors
    /// It is damaged, another secret, or under a key that this node has not.
    pub fn open(&self, name: &SealedName, sealed: &[u8]) -> Result<Zeroizing<Vec<u8>>, CertError> {
        self.ring().open(&name.to_string(), sealed)
    }

    /// Takes the next key, so that it is here after a restart too.
    ///
    /// # Errors
    /// The key file cannot be written, or the command does not print this key.
    pub fn take(&self, key: SealingKey) -> Result<(), ControlError> {
        let _one = self.changing.lock();
        // What an operator changed meanwhile counts.
        let mut ring = read(&self.source)?;
        if ring.key(key.id()).is_none() {
            let ClusterKeySource::File(path) = &self.source else {
                return Err(ControlError::ClusterKey(format!(
                    "its cluster_key_command does not print the key {}: give every control node the same keys",
                    key.id()
                )));
            };
            ring = ring.with(key);
            ring.replace(path)?;
        }
        *self.ring.write() = Arc::new(ring);
        Ok(())
    }

    /// The key that is to follow `current`: a new one, or the newest of a key store.
    fn next(&self, current: KeyId) -> Result<SealingKey, ControlError> {
        match &self.source {
            ClusterKeySource::File(_) => Ok(SealingKey::generate()?),
            ClusterKeySource::Command(_) => {
                let ring = read(&self.source)?;
                if ring.newest().id() == current {
                    return Err(ControlError::ClusterKey(format!(
                        "cluster_key_command still prints {current} as the newest key: make a new key in the key store first, printed last"
                    )));
                }
                Ok(ring.newest().clone())
            }
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

/// What a command prints; what it says on stderr is the error's. With a runtime of its own: whoever asks may have none, or be in one.
fn printed(words: &[String]) -> Result<Zeroizing<String>, String> {
    let (program, arguments) = words.split_first().ok_or("it is empty")?;
    let mut command = tokio::process::Command::new(program);
    command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
    let run = move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| e.to_string())?;
        let done = runtime.block_on(async { tokio::time::timeout(PRINTED_WITHIN, command.output()).await });
        done.map_err(|_| format!("it has not ended within {PRINTED_WITHIN:?}"))?.map_err(|e| e.to_string())
    };
    let ended = std::thread::spawn(run).join().map_err(|_| "it could not be run".to_owned());
    let done = ended.flatten().map_err(|e| format!("{program}: {e}"))?;
    let text = Zeroizing::new(done.stdout);
    if !done.status.success() {
        let said: String = String::from_utf8_lossy(&done.stderr).trim().chars().take(500).collect();
        return Err(format!("{program} ended with {}: {said}", done.status));
    }
    std::str::from_utf8(&text).map(|t| Zeroizing::new(t.to_owned())).map_err(|_| format!("{program} prints no text"))
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
/// A control node does not take it, or this one leads no more: the old key goes on sealing, and the next try makes another one.
pub async fn rotate(control: &Arc<Control>, by: &str) -> Result<KeyId, NotRotated> {
    let _one = control.cluster_keys.rotating.lock().await;
    let current = KeyId(control.raft.state.read().cluster_keys.current);
    let key = aside(control, move |keys| keys.next(current)).await?;
    // Control nodes take no key that the log does not name.
    control.change(by, Change::ClusterKeyNext { key: key.id().0 }).await?;
    let own = key.clone();
    aside(control, move |keys| keys.take(own)).await?;
    let body = Zeroizing::new(wire::encode(key.as_bytes()));
    let path = format!("/cluster-key?log={}", control.log());
    let mut have = BTreeSet::from([control.raft.id]);
    loop {
        // Whoever joins later is given it as it joins.
        control.read_barrier().await?;
        let next = {
            let state = control.raft.state.read();
            state.members().find(|(id, ..)| !have.contains(id)).map(|(id, name, address)| (id, name.clone(), address.to_owned()))
        };
        let Some((id, name, address)) = next else { break };
        let given = control.links.call(&address, "control", &path, body.to_vec(), TAKEN_WITHIN).await;
        given.map_err(|e| {
            NotRotated::Refused(format!(
                "the control node {name} did not take the new key, so the old one stays: {e}. Mend {name}, or remove it (tidegate node remove {name}), then try again"
            ))
        })?;
        have.insert(id);
    }
    control.change(by, Change::ClusterKeyPut { key: key.id().0 }).await?;
    tracing::info!(key = %key.id(), by, "a new cluster key seals");
    Ok(key.id())
}

async fn aside<T: Send + 'static>(
    control: &Arc<Control>,
    work: impl FnOnce(&ClusterKeys) -> Result<T, ControlError> + Send + 'static,
) -> Result<T, NotRotated> {
    let shared = Arc::clone(control);
    let done = tokio::task::spawn_blocking(move || work(&shared.cluster_keys)).await;
    done.map_err(|e| NotRotated::Refused(e.to_string()))?.map_err(|e| NotRotated::Refused(e.to_string()))
}

/// A key that the leader gives this node, once its log names it as the next one.
///
/// # Errors
/// It does not, or the key cannot be kept.
pub async fn given(control: &Arc<Control>, key: SealingKey) -> Result<(), NotRotated> {
    let (id, mut changed) = (key.id(), control.changed.subscribe());
    let named = async {
        while control.raft.state.read().cluster_keys.next != Some(id.0) {
            if changed.changed().await.is_err() {
                return;
            }
        }
    };
    let late = |_| NotRotated::Refused(format!("the log does not name {id} as the next cluster key"));
    tokio::time::timeout(NAMED_WITHIN, named).await.map_err(late)?;
    aside(control, move |keys| keys.take(key)).await
}

/// How many secrets there are, and how many of them another key than the network's has sealed.
#[must_use]
pub fn sealed_otherwise(state: &State) -> (usize, usize) {
    let mut all = 0;
    let otherwise = state.sealed().inspect(|_| all += 1).filter(|(_, sealed)| is_otherwise(state, sealed)).count();
    (all, otherwise)
}

fn is_otherwise(state: &State, sealed: &[u8]) -> bool {
    sealed_under(sealed) != Some(KeyId(state.cluster_keys.current))
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
    fn a_key_is_kept_beside_those_before_it() {
        let dir = tempfile::tempdir().unwrap();
        let source = ClusterKeySource::File(dir.path().join("cluster.key"));
        let keys = ClusterKeys::load_or_create(&source).unwrap();
        let current = keys.ring().newest().id();
        let next = keys.next(current).unwrap();
        assert_ne!(next.id(), current);
        keys.take(next.clone()).unwrap();
        keys.take(next.clone()).unwrap();
        assert!(![current, next.id()].contains(&keys.next(current).unwrap().id()), "one that did not get to seal is not tried again");
        let again = ClusterKeys::load(&source).unwrap();
        assert_eq!(again.ring().keys().map(SealingKey::id).collect::<Vec<_>>(), [current, next.id()]);
    }
}
