//! Backups: the whole state in one file, and a cluster made from one. What is secret in it is sealed under the cluster key,
//! which is not part of it, or hashed.

use crate::ControlError;
use crate::init::{enrol_first, refuse_existing, write_first};
use crate::settings::ControlSettings;
use std::path::Path;
use tidegate_certs::token::sha256;
use tidegate_certs::{Ca, SealingKey};
use tidegate_control_state::State;
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
    let cluster_key = SealingKey::load(&settings.cluster_key)?;
    let ca_key = cluster_key.open("ca", &state.founding.ca_sealed_key)?;
    let ca = Ca::open(&state.founding.ca_certificate, &ca_key)?;
    let mut state = state.restored(random_u64());
    let cluster = state.founding.cluster.clone();
    enrol_first(settings, &mut state, &ca, &cluster, SystemClock.wall(), "control restore")?;
    write_first(settings, &state)?;
    Ok(Restored { cluster, made, sites: state.sites().count(), nodes: state.nodes().filter(|n| n.state.role.follows()).count() })
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
