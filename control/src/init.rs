//! The first control node of a cluster, and further ones.

use crate::ControlError;
use crate::ca;
use crate::cluster_key::ClusterKeys;
use crate::raft::{Disk, RedbDisk, WriteBatch};
use crate::settings::ControlSettings;
use raft::eraftpb::{HardState, Snapshot};
use std::path::Path;
use std::time::Duration;
use tidegate_certs::ca::{request, requested_key};
use tidegate_certs::tls::Trust;
use tidegate_certs::token::{ApiToken, JoinToken, sha256};
use tidegate_certs::{Ca, Keyring, NodeIdentity, Root, SealingKey};
use tidegate_control_state::State;
use tidegate_control_types::authority::Fingerprint;
use tidegate_control_types::command::Founding;
use tidegate_control_types::sealed::SealedName;
use tidegate_control_types::token::{JoinRecord, TokenRecord, TokenRole};
use tidegate_control_types::{Change, Clock, Command, Incarnation, NodeState, Role, WallTime, wire};
use tidegate_node::clock::random_u64;
use tidegate_node::{Credentials, NodeError, SystemClock, enrol};
use zeroize::Zeroizing;

/// How long join tokens that were not given another time are good for.
pub const JOIN_TTL: Duration = Duration::from_secs(3600);

/// What a new cluster gives its operator, once.
pub struct Founded {
    pub admin_token: String,
    /// PEM.
    pub ca: String,
}

/// This node's member id in the control plane, and how it is reached.
pub fn node_state(settings: &ControlSettings) -> NodeState {
    NodeState {
        name: settings.name.clone(),
        role: Role::Control,
        region: settings.region.clone(),
        address: settings.address.clone(),
        advertise: Vec::new(),
        drained: false,
        since: 0,
    }
}

pub fn refuse_existing(settings: &ControlSettings) -> Result<(), ControlError> {
    std::fs::create_dir_all(&settings.data).map_err(|e| NodeError::file(&settings.data, e))?;
    if RedbDisk::exists(&settings.data) { Err(ControlError::Exists(settings.name.to_string())) } else { Ok(()) }
}

/// Founds a cluster: its CA, its keys, its first voter and its first tokens. Runs nothing. `root_key_file`: where the root's private
/// key goes, which is in the log otherwise.
///
/// # Errors
/// There is one already, or the folders cannot be written.
pub fn init(settings: &ControlSettings, cluster: &str, root_key_file: Option<&Path>) -> Result<Founded, ControlError> {
    refuse_existing(settings)?;
    let now = SystemClock.wall();
    let ring = ClusterKeys::load_or_create(&settings.cluster_key)?.ring();
    let seals = ring.newest();
    let (root, root_key) = Root::create(cluster, now.as_secs())?;
    let root_key = Zeroizing::new(root_key);
    let (certificate, issuing_key) = root.make_issuing(now.as_secs())?;
    let issuing_key = Zeroizing::new(issuing_key);
    let ca = Ca::open(root.certificate(), &certificate, &issuing_key)?;
    let issuing = ca::issuing(certificate, now, |name| seals.seal(&name.to_string(), &issuing_key))?;
    let founding = Founding {
        cluster: cluster.to_owned(),
        incarnation: Incarnation::new(0, random_u64()),
        zone: settings.zone.clone(),
        lease: settings.raft.lease.unwrap_or_default(),
        root: root.certificate().to_vec(),
    };
    let mut state = State::new(founding, 0);
    let mut index = 0;
    let mut apply = |change| {
        index += 1;
        state.apply(index, Command { at: now, by: "control init".into(), change });
    };
    let token = ApiToken::generate()?;
    let record = TokenRecord {
        id: token.id.clone(),
        note: "made by control init".into(),
        hash: sha256(&token.secret),
        role: TokenRole::Admin,
        sites: Vec::new(),
        created: now,
        expires: None,
    };
    apply(Change::TokenCreate { token: record });
    apply(Change::ClusterKeyPut { key: seals.id().0 });
    match root_key_file {
        Some(file) => write_root_key(file, &root_key)?,
        None => apply(Change::RootKeyPut { sealed: seals.seal(&SealedName::RootKey.to_string(), &root_key)? }),
    }
    apply(Change::IssuingPut { issuing, requested: false });
    enrol_first(settings, &mut state, &ca, cluster, now, "control init")?;
    write_first(settings, &state)?;
    Ok(Founded { admin_token: token.reveal(), ca: pem(root.certificate()) })
}

/// Makes this node the only control node of a state: its place in the log, and its certificate on disk.
pub fn enrol_first(
    settings: &ControlSettings,
    state: &mut State,
    ca: &Ca,
    cluster: &str,
    now: WallTime,
    by: &str,
) -> Result<(), ControlError> {
    let node_key = SealingKey::load_or_create(&settings.node_key)?;
    // Used up at once, by this node itself.
    // The time of a backup may be ahead of this clock.
    let logged = now.max(state.now());
    let (join, _) = join_record((cluster, &state.founding.root, &[]), Role::Control, None, logged, JOIN_TTL)?;
    let id = join.id.clone();
    let mut apply = |change| {
        let index = state.applied + 1;
        let applied = state.apply(index, Command { at: now, by: by.into(), change });
        applied.outcome.map(|()| index).map_err(ControlError::Refused)
    };
    let (key, request) = request()?;
    apply(Change::JoinCreate { join })?;
    let enrolled = apply(Change::NodeEnrol { node: node_state(settings), join: id, key: requested_key(&request)? })?;
    apply(Change::MemberPut { id: 1, name: settings.name.clone(), address: settings.address.clone().unwrap_or_default() })?;
    let identity = NodeIdentity {
        cluster: cluster.to_owned(),
        role: Role::Control.to_string(),
        region: settings.region.clone(),
        name: settings.name.to_string(),
        enrolled,
    };
    let trust = Trust { root: state.founding.root.clone(), retired: state.authority.issuers().retired };
    let credentials = Credentials::new(ca.sign_node(&request, &identity, now.as_secs())?, key, trust)?;
    Ok(credentials.save(&settings.data, &node_key)?)
}

/// The state as the snapshot that the log begins behind, with this node as its only voter.
pub fn write_first(settings: &ControlSettings, state: &State) -> Result<(), ControlError> {
    let mut snapshot = Snapshot { data: wire::encode(state).into(), ..Snapshot::default() };
    let meta = snapshot.mut_metadata();
    (meta.index, meta.term) = (state.applied, 1);
    meta.mut_conf_state().voters = vec![1];
    let conf_state = meta.get_conf_state().clone();
    let hard_state = HardState { term: 1, commit: state.applied, ..HardState::default() };
    let mut disk = RedbDisk::open(&settings.data)?;
    disk.write(&WriteBatch {
        hard_state: Some(&hard_state),
        conf_state: Some(&conf_state),
        snapshot: Some(&snapshot),
        compacted: Some((state.applied, 1)),
        ..WriteBatch::default()
    })?;
    write_raft_id(settings, 1)
}

/// A join token and what the log keeps of it.
///
/// # Errors
/// The system's random source fails.
pub fn join_record(
    (cluster, root, retired): (&str, &[u8], &[Fingerprint]),
    role: Role,
    region: Option<String>,
    now: WallTime,
    ttl: Duration,
) -> Result<(JoinRecord, String), ControlError> {
    let token = JoinToken::generate(cluster, root, retired)?;
    let record =
        JoinRecord { id: token.id.clone(), hash: sha256(&token.secret), role, region, created: now, expires: now + ttl, used: None };
    Ok((record, token.reveal()))
}

/// Enrols a further control node with its join token: it gets its certificate, its place among the learners, and the
/// cluster key. Runs nothing; `run` then makes it catch up, and the leader makes it a voter.
///
/// # Errors
/// It is a control node already, or the peers refuse it or do not answer.
pub async fn join(settings: &ControlSettings) -> Result<(), ControlError> {
    refuse_existing(settings)?;
    let node_key = SealingKey::load_or_create(&settings.node_key)?;
    let file = settings.join_token_file.as_deref().ok_or(NodeError::NotEnrolled { role: "control" })?;
    let token = enrol::read_join_token(file)?;
    if settings.peers.is_empty() {
        return Err(NodeError::Enrolment("no peers are named; for example: peers = [\"https://c1.example.net:7443\"]".into()).into());
    }
    let (credentials, secrets) = enrol::enrol(&token, &settings.peers, node_state(settings)).await?;
    let secrets = secrets.ok_or_else(|| NodeError::Enrolment("the join token is not for a control node".into()))?;
    let mut keys = secrets.cluster_keys.iter().map(|k| SealingKey::from_bytes(**k));
    let first = keys.next().ok_or_else(|| NodeError::Enrolment("the control plane gave no cluster key".into()))?;
    ClusterKeys::create(&settings.cluster_key, keys.fold(Keyring::new(first), |ring, key| ring.with(key)))?;
    credentials.save(&settings.data, &node_key)?;
    RedbDisk::open(&settings.data)?.write(&WriteBatch::default())?;
    write_raft_id(settings, secrets.raft_id)
}

fn raft_id_file(settings: &ControlSettings) -> std::path::PathBuf {
    settings.data.join("raft-id")
}

fn write_raft_id(settings: &ControlSettings, id: u64) -> Result<(), ControlError> {
    Ok(tidegate_node::identity::write_file(&raft_id_file(settings), &wire::encode(&id))?)
}

/// # Errors
/// This is no control node yet.
pub fn read_raft_id(settings: &ControlSettings) -> Result<u64, ControlError> {
    let path = raft_id_file(settings);
    let bytes = std::fs::read(&path).map_err(|_| ControlError::NoLog(settings.data.display().to_string()))?;
    wire::decode(&bytes).map_err(|error| NodeError::Damaged { path: path.display().to_string(), error }.into())
}

/// A private key in PEM form, in a new file of mode 0600.
///
/// # Errors
/// The file is there already, or cannot be written.
pub fn write_root_key(file: &Path, key: &[u8]) -> Result<(), ControlError> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    let text = Zeroizing::new(tidegate_certs::ca::key_pem(key));
    let open = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(file);
    open.and_then(|mut f| f.write_all(text.as_bytes()).and_then(|()| f.sync_all())).map_err(|e| NodeError::file(file, e).into())
}

/// DER to PEM.
#[must_use]
pub fn pem(der: &[u8]) -> String {
    tidegate_certs::ca::certificate_pem(der)
}
