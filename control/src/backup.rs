//! Backups: the whole state in one file, and a cluster made from one. What is secret in it is sealed under the cluster key,
//! which is not part of it, or hashed.

use crate::ControlError;
use crate::cluster_key::ClusterKeys;
use crate::init::{enrol_first, refuse_existing, write_first, write_root_key};
use crate::settings::ControlSettings;
use std::path::Path;
use tidegate_certs::token::sha256;
use tidegate_certs::{Ca, Root};
use tidegate_control_state::State;
use tidegate_control_types::sealed::SealedName;
use tidegate_control_types::{Clock, WallTime, wire};
use tidegate_node::clock::random_u64;
use tidegate_node::{NodeError, SystemClock};

const MAGIC: &[u8] = b"tidegate backup\n";

#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    #[error("it is no backup of Tidegate's")]
    Foreign,
    #[error("it is cut short or damaged: its checksum does not fit")]
    Damaged,
    #[error(transparent)]
    Version(#[from] wire::WireError),
}

/// The file: a line that says what it is, when it was made with the state, and the SHA-256 of both.
#[must_use]
pub fn write(state: &State, now: WallTime) -> Vec<u8> {
    let body = wire::encode(&(now, state));
    [MAGIC, &sha256(&body), &body].concat()
}

/// # Errors
/// It is something else, damaged, or another version's.
pub fn read(file: &[u8]) -> Result<(WallTime, State), BackupError> {
    let rest = file.strip_prefix(MAGIC).ok_or(BackupError::Foreign)?;
    let (sum, body) = rest.split_first_chunk::<32>().ok_or(BackupError::Damaged)?;
    if sha256(body) != *sum {
        return Err(BackupError::Damaged);
    }
    Ok(wire::decode(body)?)
}

/// What was restored.
pub struct Restored {
    pub cluster: String,
    pub made: WallTime,
    pub sites: usize,
    pub nodes: usize,
    /// The root's key was in it, and a new issuing authority was made.
    pub has_root: bool,
    /// This node has a newer cluster key than the one of then.
    pub seals_with_an_older_key: bool,
}

/// Makes this node the first of the cluster in `file`, under a new incarnation: what caches stored before needs
/// revalidation. Every other control node has to join anew. Runs nothing.
///
/// # Errors
/// There is a control node here already, the file is of no use, or the cluster key is another cluster's.
pub fn restore(settings: &ControlSettings, file: &Path) -> Result<Restored, ControlError> {
    refuse_existing(settings)?;
    let bytes = std::fs::read(file).map_err(|e| NodeError::file(file, e))?;
    let wrong = |error| ControlError::Backup { path: file.display().to_string(), error };
    let (made, state) = read(&bytes).map_err(wrong)?;
    let keys = ClusterKeys::load(&settings.cluster_key)?;
    let newest = state.authority.issuing.last().ok_or(ControlError::NoCa)?;
    let ca_key = keys.open(&SealedName::IssuingKey(newest.fingerprint), &newest.sealed_key)?;
    let mut ca = Ca::open(&state.founding.root, &newest.certificate, &ca_key)?;
    let (now, newest_key) = (SystemClock.wall(), keys.ring().newest().id());
    let mut state = state.restored(random_u64());
    let cluster = state.founding.cluster.clone();
    // The issuing authority of then may have been retired since, and nodes do not forget that: another one signs, where the root is here.
    let has_root = state.authority.root_key.is_some();
    if let Some(sealed) = &state.authority.root_key {
        let root = Root::open(&state.founding.root, &keys.open(&SealedName::RootKey, sealed)?)?;
        let (certificate, key) = root.make_issuing(now.as_secs())?;
        ca = Ca::open(&state.founding.root, &certificate, &key)?;
        let issuing = crate::ca::issuing(certificate, now, |name| keys.seal(&state, name, &key))?;
        // Also beside as many as there may be: a backup that cannot be restored is none.
        state.authority.issuing.push(issuing);
    }
    enrol_first(settings, &mut state, &ca, &cluster, now, "control restore")?;
    write_first(settings, &state)?;
    Ok(Restored {
        cluster,
        made,
        sites: state.sites().count(),
        nodes: state.nodes().filter(|n| n.state.role.follows()).count(),
        has_root,
        seals_with_an_older_key: newest_key.0 != state.cluster_keys.current,
    })
}

/// Writes the root's key, out of a backup, to a new file.
///
/// # Errors
/// The backup is of no use or has no such key, the cluster key is another cluster's, or the file is there already.
pub fn save_root(settings: &ControlSettings, backup: &Path, file: &Path) -> Result<(), ControlError> {
    let bytes = std::fs::read(backup).map_err(|e| NodeError::file(backup, e))?;
    let (_, state) = read(&bytes).map_err(|error| ControlError::Backup { path: backup.display().to_string(), error })?;
    let sealed = state.authority.root_key.as_ref().ok_or(ControlError::RootIsAway)?;
    let key = ClusterKeys::load(&settings.cluster_key)?.open(&SealedName::RootKey, sealed)?;
    write_root_key(file, &key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backup_is_read_back_and_nothing_else_is() {
        let state = State::nothing_yet();
        let file = write(&state, WallTime(7));
        assert_eq!(read(&file).unwrap(), (WallTime(7), state));
        assert!(matches!(read(b"PK"), Err(BackupError::Foreign)));
        for at in [MAGIC.len(), file.len() - 1] {
            let mut flipped = file.clone();
            flipped[at] ^= 1;
            assert!(matches!(read(&flipped), Err(BackupError::Damaged)));
            assert!(matches!(read(&file[..at]), Err(BackupError::Damaged)));
        }
    }
}
