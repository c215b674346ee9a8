//! Drives one Raft node: inputs and the time come in, messages and results go out. It owns the consensus core and the
//! disk; the state machine and what the leader knows of the fleet are shared for reading.
//!
//! Order within one round: the leader's own messages may leave at once; entries, votes and terms are on disk before any
//! message that acknowledges them leaves, and before anything is applied that depends on them.

use super::disk::{Disk, WriteBatch};
use super::log::MemLog;
use super::{StorageError, log};
use crate::ControlError;
use parking_lot::{Mutex, RwLock};
use protobuf::Message as _;
use raft::eraftpb::{ConfChangeSingle, ConfChangeType, ConfChangeV2, Entry, EntryType, Message, Snapshot};
use raft::{Config, RawNode, ReadOnlyOption, StateRole};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tidegate_control_state::{Applied, Refusal, State};
use tidegate_control_types::fleet::Fleet;
use tidegate_control_types::planted::Bug;
use tidegate_control_types::{BootTime, Command, NodeName, wire};

/// Names one input that wants an answer.
pub type Ticket = u64;

pub enum Input {
    Tick,
    Message(Box<Message>),
    Propose {
        ticket: Ticket,
        command: Box<Command>,
    },
    Members {
        ticket: Ticket,
        change: Box<ConfChangeV2>,
    },
    /// A linearizable read: answered with an index that everything acknowledged before is at or below, once this node has
    /// applied all through it.
    Read {
        ticket: Ticket,
    },
    /// An asking for a lease; granted only by way of a read that began now.
    Lease {
        ticket: Ticket,
        node: NodeName,
    },
    Transfer {
        to: u64,
    },
    Unreachable {
        id: u64,
    },
    SnapshotSent {
        id: u64,
        arrived: bool,
    },
}

#[derive(Clone, Debug, PartialEq)]
pub enum Done {
    Applied { index: u64, outcome: Result<(), Refusal> },
    Read { index: u64 },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotDone {
    /// Nothing happened: this node does not lead.
    NotLeader,
    /// It ceased to lead before the outcome was known; the change may yet happen.
    Unknown,
    /// Another change of the members is under way.
    Busy,
    /// The node that asks for a lease is not, or no longer, part of the network.
    UnknownNode,
    /// No follower would take it, and nothing behind it.
    TooLarge,
}

#[derive(Default)]
pub struct Output {
    pub messages: Vec<Message>,
    pub done: Vec<(Ticket, Result<Done, NotDone>)>,
    /// Entries that were applied, in order.
    pub applied: Vec<(u64, Applied)>,
    /// The state was replaced as a whole: watchers have to be caught up anew.
    pub restored: bool,
}

/// What the rim reads.
pub struct Shared {
    pub state: RwLock<State>,
    /// Present while this node leads.
    pub leadership: Mutex<Option<Leadership>>,
    /// 0: none known.
    pub leader: AtomicU64,
    pub term: AtomicU64,
    pub id: u64,
}

/// What a leader knows beyond the log.
pub struct Leadership {
    pub term: u64,
    pub fleet: Fleet,
    /// When this leader applied each recent purge: not before it was committed.
    pub purges: BTreeMap<u64, BootTime>,
}

#[derive(Clone, Copy, Debug)]
pub struct DriverSettings {
    pub id: u64,
    pub election_ticks: usize,
    pub heartbeat_ticks: usize,
    /// A snapshot is taken after this many applied entries, and this many stay in the log behind it.
    pub snapshot_every: u64,
    pub keep_entries: u64,
}

pub struct Driver<D: Disk> {
    raw: RawNode<MemLog>,
    disk: D,
    shared: Arc<Shared>,
    settings: DriverSettings,
    random: Box<dyn FnMut() -> u64 + Send>,
    /// Sets this process's proposals apart from those of an earlier one.
    life: u64,
    proposed: HashMap<Ticket, u64>,
    waiting_reads: Vec<(Ticket, Option<NodeName>)>,
    reads: HashMap<Vec<u8>, Vec<(Ticket, Option<NodeName>)>>,
    /// Confirmed by a quorum; not applied through their index yet.
    confirmed: Vec<(u64, Ticket, Option<NodeName>)>,
    next_read: u64,
    role: (StateRole, u64),
    snapshot_index: u64,
    out: Output,
}

const MOST_SIZE_PER_MESSAGE: u64 = 1 << 20;
const MOST_IN_FLIGHT: usize = 256;
/// Of one entry: less than what a node takes as one message.
const MOST_COMMAND: usize = 16 << 20;
const MOST_UNCOMMITTED: u64 = 256 << 20;
const MOST_PURGE_TIMES: usize = 100_000;

impl<D: Disk> Driver<D> {
    /// Starts from what `disk` holds: at least a snapshot, which `control init` or the leader wrote, or nothing at all for
    /// a node that waits for its leader.
    ///
    /// # Errors
    /// The disk cannot be read or its state is damaged.
    pub fn new(
        mut disk: D,
        settings: DriverSettings,
        empty: State,
        mut random: Box<dyn FnMut() -> u64 + Send>,
    ) -> Result<Self, ControlError> {
        let stored = disk.load()?;
        let snapshot_index = stored.snapshot.get_metadata().index;
        let state = if snapshot_index == 0 { empty } else { decode_state(&stored.snapshot)? };
        let config = Config {
            id: settings.id,
            election_tick: settings.election_ticks,
            heartbeat_tick: settings.heartbeat_ticks,
            applied: snapshot_index,
            max_size_per_msg: MOST_SIZE_PER_MESSAGE,
            max_inflight_msgs: MOST_IN_FLIGHT,
            max_uncommitted_size: MOST_UNCOMMITTED,
            check_quorum: true,
            pre_vote: true,
            read_only_option: ReadOnlyOption::Safe,
            ..Config::default()
        };
        let log = MemLog::new(stored.hard_state, stored.conf_state, stored.compacted, stored.entries, stored.snapshot);
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let raw = RawNode::new(&config, log, &logger).map_err(|e| ControlError::Raft(e.to_string()))?;
        let shared = Arc::new(Shared {
            state: RwLock::new(state),
            leadership: Mutex::new(None),
            leader: AtomicU64::new(0),
            term: AtomicU64::new(raw.raft.term),
            id: settings.id,
        });
        let (life, role) = (random(), (StateRole::Follower, u64::MAX));
        let mut driver = Self {
            raw,
            disk,
            shared,
            settings,
            random,
            life,
            proposed: HashMap::new(),
            waiting_reads: Vec::new(),
            reads: HashMap::new(),
            confirmed: Vec::new(),
            next_read: 0,
            role,
            snapshot_index,
            out: Output::default(),
        };
        // A cluster of one need not wait for anybody.
        let voters = driver.raw.store().conf_state().voters.clone();
        if voters == [settings.id] {
            driver.raw.campaign().map_err(|e| ControlError::Raft(e.to_string()))?;
        }
        Ok(driver)
    }

    #[must_use]
    pub fn shared(&self) -> Arc<Shared> {
        Arc::clone(&self.shared)
    }

    fn leads(&self) -> bool {
        self.raw.raft.state == StateRole::Leader
    }

    /// Takes one input in. Nothing is acknowledged before the next [`Driver::round`].
    pub fn input(&mut self, input: Input, now: BootTime) {
        match input {
            Input::Tick => {
                self.raw.tick();
            }
            Input::Message(message) => {
                if let Err(error) = self.raw.step(*message) {
                    tracing::debug!(%error, "a Raft message was refused");
                }
            }
            Input::Propose { ticket, command } => {
                let data = wire::encode(&*command);
                if data.len() > MOST_COMMAND {
                    self.out.done.push((ticket, Err(NotDone::TooLarge)));
                } else {
                    self.propose(ticket, |raw, context| raw.propose(context, data));
                }
            }
            // Raft makes an empty entry of a second change while one is under way.
            Input::Members { ticket, .. } if self.raw.raft.has_pending_conf() => self.out.done.push((ticket, Err(NotDone::Busy))),
            Input::Members { ticket, change } => self.propose(ticket, |raw, context| raw.propose_conf_change(context, *change)),
            Input::Read { ticket } => self.read(ticket, None),
            Input::Lease { ticket, node } => self.read(ticket, Some(node)),
            Input::Transfer { to } => self.raw.transfer_leader(to),
            Input::Unreachable { id } => self.raw.report_unreachable(id),
            Input::SnapshotSent { id, arrived } => {
                self.raw.report_snapshot(id, if arrived { raft::SnapshotStatus::Finish } else { raft::SnapshotStatus::Failure });
            }
        }
        self.note_role(now);
    }

    fn propose(&mut self, ticket: Ticket, propose: impl FnOnce(&mut RawNode<MemLog>, Vec<u8>) -> raft::Result<()>) {
        if !self.leads() {
            self.out.done.push((ticket, Err(NotDone::NotLeader)));
            return;
        }
        let context = [self.life.to_be_bytes(), ticket.to_be_bytes()].concat();
        match propose(&mut self.raw, context) {
            Ok(()) if Bug::AcknowledgedBeforeCommit.is_planted() => {
                let index = self.raw.raft.raft_log.last_index();
                self.out.done.push((ticket, Ok(Done::Applied { index, outcome: Ok(()) })));
            }
            Ok(()) => {
                self.proposed.insert(ticket, self.raw.raft.term);
            }
            Err(_) => self.out.done.push((ticket, Err(NotDone::NotLeader))),
        }
    }

    fn read(&mut self, ticket: Ticket, lease_of: Option<NodeName>) {
        let planted = if lease_of.is_some() { Bug::LeaseWithoutQuorum } else { Bug::ReadWithoutQuorum };
        if self.leads() && planted.is_planted() {
            let applied = self.shared.state.read().applied;
            self.confirmed.push((applied, ticket, lease_of));
        } else if self.leads() {
            self.waiting_reads.push((ticket, lease_of));
        } else {
            self.out.done.push((ticket, Err(NotDone::NotLeader)));
        }
    }

    /// After a step or tick: a new role or term draws a new election timeout and ends what only the old role could answer.
    fn note_role(&mut self, now: BootTime) {
        let (state, term) = (self.raw.raft.state, self.raw.raft.term);
        self.shared.leader.store(self.raw.raft.leader_id, Ordering::Release);
        if (state, term) == self.role {
            return;
        }
        let was_leader = self.role.0 == StateRole::Leader;
        self.role = (state, term);
        self.shared.term.store(term, Ordering::Release);
        let ticks = self.settings.election_ticks;
        let spread = usize::try_from((self.random)() % ticks as u64).unwrap_or(0);
        self.raw.raft.set_randomized_election_timeout(ticks + spread);
        if state == StateRole::Leader {
            tracing::info!(term, "this control node leads");
            let fleet = Fleet::new(self.shared.state.read().founding.lease, now);
            *self.shared.leadership.lock() = Some(Leadership { term, fleet, purges: BTreeMap::new() });
        } else if was_leader {
            tracing::info!(term, "this control node no longer leads");
            *self.shared.leadership.lock() = None;
            let lost = self.proposed.drain().map(|(ticket, _)| ticket);
            let reads = self.reads.drain().flat_map(|(_, tickets)| tickets).chain(self.waiting_reads.drain(..)).map(|(ticket, _)| ticket);
            let reads = reads.chain(self.confirmed.drain(..).map(|(_, ticket, _)| ticket));
            let mut unknown: Vec<_> = lost.chain(reads).collect();
            unknown.sort_unstable();
            self.out.done.extend(unknown.into_iter().map(|ticket| (ticket, Err(NotDone::Unknown))));
        }
    }

    /// Persists, applies and answers all that the inputs so far have made ready.
    ///
    /// # Errors
    /// The disk failed or an entry cannot be read: the node must stop, and nothing of this round has been acknowledged.
    pub fn round(&mut self, now: BootTime) -> Result<Output, ControlError> {
        if !self.waiting_reads.is_empty() && self.leads() && self.raw.raft.commit_to_current_term() {
            self.next_read += 1;
            let context = [self.life.to_be_bytes(), self.next_read.to_be_bytes()].concat();
            self.reads.insert(context.clone(), std::mem::take(&mut self.waiting_reads));
            self.raw.read_index(context);
        }
        self.answer_reads(now);
        while self.raw.has_ready() {
            self.ready(now)?;
            self.note_role(now);
        }
        self.compact()?;
        Ok(std::mem::take(&mut self.out))
    }

    fn ready(&mut self, now: BootTime) -> Result<(), ControlError> {
        let mut ready = self.raw.ready();
        self.out.messages.extend(ready.take_messages());
        let installed = (!ready.snapshot().is_empty()).then(|| ready.snapshot().clone());
        let hard_state = ready.hs().cloned();
        let entries = ready.take_entries();
        if installed.is_some() || hard_state.is_some() || !entries.is_empty() {
            self.persist(installed, hard_state, &entries)?;
        }
        self.out.messages.extend(ready.take_persisted_messages());
        let read_states = ready.take_read_states();
        let committed = ready.take_committed_entries();
        self.apply(committed, now)?;
        let mut light = self.raw.advance(ready);
        if let Some(commit) = light.commit_index() {
            // Not worth a write of its own: a restart learns it from the leader.
            self.raw.mut_store().set_commit(commit);
        }
        self.out.messages.extend(light.take_messages());
        self.apply(light.take_committed_entries(), now)?;
        self.raw.advance_apply();
        for state in read_states {
            let confirmed = self.reads.remove(&state.request_ctx).unwrap_or_default();
            self.confirmed.extend(confirmed.into_iter().map(|(ticket, lease_of)| (state.index, ticket, lease_of)));
        }
        self.answer_reads(now);
        Ok(())
    }

    fn persist(
        &mut self,
        installed: Option<Snapshot>,
        hard_state: Option<raft::eraftpb::HardState>,
        entries: &[Entry],
    ) -> Result<(), ControlError> {
        let meta = installed.as_ref().map(Snapshot::get_metadata);
        self.disk.write(&WriteBatch {
            hard_state: hard_state.as_ref(),
            conf_state: meta.map(raft::eraftpb::SnapshotMetadata::get_conf_state),
            entries,
            snapshot: installed.as_ref(),
            compacted: meta.map(|m| (m.index, m.term)),
            clear: meta.is_some(),
        })?;
        if let Some(snapshot) = installed {
            let state = decode_state(&snapshot)?;
            self.snapshot_index = snapshot.get_metadata().index;
            self.raw.mut_store().install(snapshot);
            *self.shared.state.write() = state;
            self.out.applied.clear();
            self.out.restored = true;
        }
        let log: &mut log::MemLog = self.raw.mut_store();
        log.append(entries);
        if let Some(hard_state) = hard_state {
            log.set_hard_state(hard_state);
        }
        Ok(())
    }

    fn apply(&mut self, entries: Vec<Entry>, now: BootTime) -> Result<(), ControlError> {
        for entry in entries {
            let index = entry.index;
            let applied = match entry.get_entry_type() {
                EntryType::EntryNormal if entry.data.is_empty() => None,
                EntryType::EntryNormal => {
                    let command = wire::decode::<Command>(&entry.data).map_err(|e| ControlError::Raft(format!("entry {index}: {e}")))?;
                    Some(self.shared.state.write().apply(index, command))
                }
                EntryType::EntryConfChange | EntryType::EntryConfChangeV2 => {
                    self.change_members(&entry)?;
                    None
                }
            };
            let outcome = applied.as_ref().map_or(Ok(()), |a| a.outcome.clone());
            match applied {
                Some(applied) => self.note_applied(index, applied, now),
                None => self.shared.state.write().skip(index),
            }
            if let Some(ticket) = self.own(&entry.context) {
                self.proposed.remove(&ticket);
                self.out.done.push((ticket, Ok(Done::Applied { index, outcome })));
            }
        }
        Ok(())
    }

    fn note_applied(&mut self, index: u64, applied: Applied, now: BootTime) {
        let purged = applied.events.iter().any(|e| matches!(e, tidegate_control_types::Event::Purged(_)));
        if purged && let Some(leadership) = self.shared.leadership.lock().as_mut() {
            leadership.purges.insert(index, now);
            while leadership.purges.len() > MOST_PURGE_TIMES {
                leadership.purges.pop_first();
            }
        }
        self.out.applied.push((index, applied));
    }

    fn own(&self, context: &[u8]) -> Option<Ticket> {
        let ticket = context.strip_prefix(&self.life.to_be_bytes())?;
        Some(Ticket::from_be_bytes(ticket.try_into().ok()?)).filter(|t| self.proposed.contains_key(t))
    }

    fn change_members(&mut self, entry: &Entry) -> Result<(), ControlError> {
        let change = if entry.get_entry_type() == EntryType::EntryConfChange {
            use raft::eraftpb::ConfChange;
            let one = ConfChange::parse_from_bytes(&entry.data).map_err(|e| ControlError::Raft(e.to_string()))?;
            member_change(one.get_change_type(), one.node_id)
        } else {
            ConfChangeV2::parse_from_bytes(&entry.data).map_err(|e| ControlError::Raft(e.to_string()))?
        };
        let conf_state = self.raw.apply_conf_change(&change).map_err(|e| ControlError::Raft(e.to_string()))?;
        self.disk.write(&WriteBatch { conf_state: Some(&conf_state), ..WriteBatch::default() })?;
        self.raw.mut_store().set_conf_state(conf_state);
        Ok(())
    }

    fn answer_reads(&mut self, now: BootTime) {
        if self.confirmed.is_empty() {
            return;
        }
        let applied = self.shared.state.read().applied;
        let (due, later) = std::mem::take(&mut self.confirmed).into_iter().partition(|(index, ..)| *index <= applied);
        self.confirmed = later;
        for (index, ticket, lease_of) in due {
            let answer = match lease_of {
                None => Ok(Done::Read { index }),
                Some(node) => self.grant(&node, index, now),
            };
            self.out.done.push((ticket, answer));
        }
    }

    /// The quorum has confirmed this leader since the asking came; the lease counts from now, with a margin.
    fn grant(&mut self, node: &NodeName, index: u64, now: BootTime) -> Result<Done, NotDone> {
        let known = self.shared.state.read().node(node.as_str()).is_some_and(|n| n.removed.is_none());
        let mut leadership = self.shared.leadership.lock();
        match leadership.as_mut() {
            Some(leadership) if known => {
                leadership.fleet.lease_granted(node, now);
                Ok(Done::Read { index })
            }
            Some(_) => Err(NotDone::UnknownNode),
            None => Err(NotDone::NotLeader),
        }
    }

    fn compact(&mut self) -> Result<(), ControlError> {
        let state = self.shared.state.read();
        let applied = state.applied;
        let due = applied >= self.snapshot_index + self.settings.snapshot_every;
        let wanted = self.raw.store().take_wanted() && applied > self.snapshot_index;
        if !due && !wanted {
            return Ok(());
        }
        let data = wire::encode(&*state);
        drop(state);
        let log = self.raw.store();
        let mut snapshot = Snapshot { data: data.into(), ..Snapshot::default() };
        let meta = snapshot.mut_metadata();
        meta.index = applied;
        meta.term = raft::Storage::term(log, applied).map_err(|e| ControlError::Raft(e.to_string()))?;
        meta.set_conf_state(log.conf_state().clone());
        let mut after = log.compacted();
        let keep_from = applied.saturating_sub(self.settings.keep_entries).max(after.0 + 1);
        if keep_from > after.0 + 1 {
            after = (keep_from - 1, raft::Storage::term(log, keep_from - 1).map_err(|e| ControlError::Raft(e.to_string()))?);
        }
        self.disk.write(&WriteBatch { snapshot: Some(&snapshot), compacted: Some(after), ..WriteBatch::default() })?;
        self.raw.mut_store().compact(snapshot, keep_from);
        self.snapshot_index = applied;
        Ok(())
    }

    /// Voters and learners as this node has applied them, and how far each has acknowledged the log where this node leads.
    #[must_use]
    pub fn members(&self) -> Members {
        let conf = self.raw.store().conf_state();
        let matched = |id: u64| self.raw.raft.prs().get(id).map_or(0, |p| p.matched);
        Members {
            voters: conf.voters.clone(),
            learners: conf.learners.iter().map(|id| (*id, matched(*id))).collect(),
            joint: !conf.voters_outgoing.is_empty(),
            committed: self.raw.raft.raft_log.committed,
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Members {
    pub voters: Vec<u64>,
    /// With the index that each has acknowledged.
    pub learners: Vec<(u64, u64)>,
    /// Between two sets of voters.
    pub joint: bool,
    pub committed: u64,
}

impl Members {
    /// The learner that may vote now, if any: it has all but the newest of the log.
    #[must_use]
    pub fn ready_learner(&self) -> Option<u64> {
        const CLOSE: u64 = 100;
        if self.joint {
            return None;
        }
        self.learners.iter().find(|(_, matched)| *matched > 0 && matched + CLOSE >= self.committed).map(|(id, _)| *id)
    }
}

/// One voter or learner more or less, in one step.
#[must_use]
pub fn member_change(kind: ConfChangeType, id: u64) -> ConfChangeV2 {
    let mut one = ConfChangeSingle { node_id: id, ..ConfChangeSingle::default() };
    one.set_change_type(kind);
    ConfChangeV2 { changes: vec![one].into(), ..ConfChangeV2::default() }
}

fn decode_state(snapshot: &Snapshot) -> Result<State, ControlError> {
    wire::decode(&snapshot.data).map_err(|e| ControlError::Storage(StorageError::Damaged { path: "snapshot".into(), what: e.to_string() }))
}

#[cfg(test)]
mod tests;
