//! Three drivers in virtual time over a network and disks of this test's making.

use super::super::disk::Stored;
use super::*;
use raft::eraftpb::{ConfState, HardState};
use std::time::Duration;
use tidegate_control_types::command::Founding;
use tidegate_control_types::{Change, Incarnation, LeaseTerms, WallTime};

/// Keeps what was written; `fail` makes every later write fail.
#[derive(Clone, Default)]
struct TestDisk(Arc<Mutex<(Stored2, bool)>>);

#[derive(Clone, Default)]
struct Stored2 {
    hard_state: HardState,
    conf_state: ConfState,
    compacted: (u64, u64),
    entries: BTreeMap<u64, Entry>,
    snapshot: Snapshot,
}

impl Disk for TestDisk {
    fn load(&mut self) -> Result<Stored, StorageError> {
        let s = self.0.lock().0.clone();
        let entries = s.entries.into_values().collect();
        Ok(Stored { hard_state: s.hard_state, conf_state: s.conf_state, compacted: s.compacted, entries, snapshot: s.snapshot })
    }

    fn write(&mut self, batch: &WriteBatch<'_>) -> Result<(), StorageError> {
        let mut disk = self.0.lock();
        if disk.1 {
            return Err(StorageError::Write { path: "test".into(), error: "full".into(), hint: "" });
        }
        let s = &mut disk.0;
        if batch.clear {
            s.entries.clear();
        }
        if let Some((index, term)) = batch.compacted {
            s.compacted = (index, term);
            s.entries.retain(|i, _| *i > index);
        }
        if let Some(first) = batch.entries.first() {
            s.entries.retain(|i, _| *i < first.index);
            s.entries.extend(batch.entries.iter().map(|e| (e.index, e.clone())));
        }
        if let Some(v) = batch.snapshot {
            s.snapshot = v.clone();
        }
        if let Some(v) = batch.hard_state {
            s.hard_state = v.clone();
        }
        if let Some(v) = batch.conf_state {
            s.conf_state = v.clone();
        }
        Ok(())
    }
}

fn founding() -> State {
    let founding =
        Founding { cluster: "t".into(), incarnation: Incarnation(1), zone: None, lease: LeaseTerms::default(), root: Vec::new() };
    State::new(founding, 1)
}

fn first_disk(voters: &[u64]) -> TestDisk {
    let disk = TestDisk::default();
    let mut snapshot = Snapshot { data: wire::encode(&founding()).into(), ..Snapshot::default() };
    let meta = snapshot.mut_metadata();
    (meta.index, meta.term) = (1, 1);
    meta.mut_conf_state().voters = voters.to_vec();
    let conf_state = meta.get_conf_state().clone();
    let hard_state = HardState { term: 1, commit: 1, ..HardState::default() };
    disk.0.lock().0 = Stored2 { hard_state, conf_state, compacted: (1, 1), entries: BTreeMap::new(), snapshot };
    disk
}

struct Cluster {
    drivers: BTreeMap<u64, Driver<TestDisk>>,
    disks: BTreeMap<u64, TestDisk>,
    cut: Vec<u64>,
    now: BootTime,
    done: HashMap<Ticket, Result<Done, NotDone>>,
    seed: u64,
}

impl Cluster {
    fn new(ids: &[u64], seed: u64) -> Self {
        let disks = ids.iter().map(|id| (*id, first_disk(ids))).collect();
        let mut c = Self { drivers: BTreeMap::new(), disks, cut: vec![], now: BootTime::default(), done: HashMap::new(), seed };
        ids.iter().for_each(|id| c.start(*id));
        c
    }

    fn start(&mut self, id: u64) {
        let settings = DriverSettings { id, election_ticks: 10, heartbeat_ticks: 1, snapshot_every: 20, keep_entries: 5 };
        self.seed += 1;
        let mut x = self.seed;
        let random = move || {
            x = x.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            x >> 33
        };
        self.drivers.insert(id, Driver::new(self.disks[&id].clone(), settings, founding(), Box::new(random)).unwrap());
    }

    /// Runs rounds until no message is under way; then ticks everybody.
    fn step(&mut self) {
        self.now = self.now + Duration::from_millis(100);
        let now = self.now;
        self.drivers.values_mut().for_each(|d| d.input(Input::Tick, now));
        self.settle();
    }

    fn settle(&mut self) {
        loop {
            let mut messages = Vec::new();
            for driver in self.drivers.values_mut() {
                let out = driver.round(self.now).unwrap();
                messages.extend(out.messages);
                self.done.extend(out.done);
            }
            if messages.is_empty() {
                return;
            }
            for m in messages {
                let arrives = !self.cut.contains(&m.from) && !self.cut.contains(&m.to);
                if let (true, Some(d)) = (arrives, self.drivers.get_mut(&m.to)) {
                    d.input(Input::Message(Box::new(m)), self.now);
                }
            }
        }
    }

    fn leader(&mut self) -> u64 {
        for _ in 0..200 {
            self.step();
            if let Some(id) = self.drivers.iter().find(|(id, d)| d.leads() && !self.cut.contains(id)).map(|(id, _)| *id) {
                return id;
            }
        }
        panic!("no leader within 20 s of virtual time");
    }

    fn ask(&mut self, id: u64, input: Input) {
        self.drivers.get_mut(&id).unwrap().input(input, self.now);
        self.settle();
    }

    fn member(&mut self, id: u64, ticket: Ticket) {
        let change = Change::MemberPut { id: ticket, name: "n".parse().unwrap(), address: "a".into() };
        self.ask(id, Input::Propose { ticket, command: Box::new(Command { at: WallTime(ticket), by: "t".into(), change }) });
    }
}

#[test]
fn one_voter_leads_at_once_and_keeps_its_log_over_a_restart() {
    let mut c = Cluster::new(&[1], 1);
    c.settle();
    c.member(1, 7);
    assert!(matches!(c.done[&7], Ok(Done::Applied { outcome: Ok(()), .. })));
    let before = c.drivers[&1].shared.state.read().clone();
    c.start(1);
    c.settle();
    assert_eq!(c.drivers[&1].shared.state.read().members().count(), before.members().count());
}

#[test]
fn a_cut_off_leader_acknowledges_nothing_and_a_new_one_is_elected() {
    for seed in 0..20 {
        let mut c = Cluster::new(&[1, 2, 3], seed * 100);
        let old = c.leader();
        c.member(old, 1);
        assert!(c.done[&1].is_ok());
        c.cut = vec![old];
        c.member(old, 2);
        c.ask(old, Input::Read { ticket: 3 });
        assert!(!c.done.contains_key(&2) && !c.done.contains_key(&3), "seed {seed}: without a quorum nothing is answered");
        let new = c.leader();
        c.member(new, 4);
        assert!(new != old && c.done[&4].is_ok(), "seed {seed}");
        // check_quorum: it notices by itself, and says that it does not know.
        for _ in 0..30 {
            c.step();
        }
        assert_eq!((c.done.get(&2), c.done.get(&3)), (Some(&Err(NotDone::Unknown)), Some(&Err(NotDone::Unknown))), "seed {seed}");
        c.cut.clear();
        for _ in 0..30 {
            c.step();
        }
        let states: Vec<_> = c.drivers.values().map(|d| d.shared.state.read().clone()).collect();
        assert!(states.iter().all(|s| *s == states[0]), "seed {seed}: all agree");
        assert!(states[0].members().any(|m| m.0 == 4) && !states[0].members().any(|m| m.0 == 2));
    }
}

#[test]
fn a_follower_that_missed_the_log_gets_the_state() {
    let mut c = Cluster::new(&[1, 2, 3], 5);
    let leader = c.leader();
    let behind = [1, 2, 3].into_iter().find(|id| *id != leader).unwrap();
    c.cut = vec![behind];
    for ticket in 10..80 {
        c.member(leader, ticket);
    }
    assert!(c.drivers[&leader].raw.store().len() < 40, "the log was compacted");
    c.cut.clear();
    for _ in 0..40 {
        c.step();
    }
    assert_eq!(*c.drivers[&behind].shared.state.read(), *c.drivers[&leader].shared.state.read());
    // And it holds after a restart from its disk alone.
    c.start(behind);
    for _ in 0..40 {
        c.step();
    }
    assert_eq!(c.drivers[&behind].shared.state.read().members().count(), 70);
}

#[test]
fn a_lease_is_granted_only_by_a_confirmed_leader_to_a_known_node() {
    let mut c = Cluster::new(&[1, 2, 3], 9);
    let leader = c.leader();
    let node: NodeName = "fra-1".parse().unwrap();
    c.ask(leader, Input::Lease { ticket: 1, node: node.clone() });
    assert_eq!(c.done[&1], Err(NotDone::UnknownNode));
    c.cut = vec![leader];
    c.ask(leader, Input::Lease { ticket: 2, node });
    assert!(!c.done.contains_key(&2));
    assert!(!c.drivers[&leader].shared.leadership.lock().as_ref().unwrap().fleet.attached(&"fra-1".parse().unwrap(), c.now));
}

#[test]
fn a_full_disk_stops_the_node_before_it_acknowledges() {
    let mut c = Cluster::new(&[1], 3);
    c.settle();
    c.disks[&1].0.lock().1 = true;
    let now = c.now;
    let driver = c.drivers.get_mut(&1).unwrap();
    let change = Change::MemberRemove { id: 9 };
    driver.input(Input::Propose { ticket: 1, command: Box::new(Command { at: WallTime(0), by: "t".into(), change }) }, now);
    assert!(driver.round(now).is_err());
    assert!(driver.out.done.is_empty());
}

#[test]
fn a_learner_without_a_log_catches_up_and_may_vote() {
    use raft::eraftpb::{ConfChangeSingle, ConfChangeType};
    let mut c = Cluster::new(&[1], 4);
    c.settle();
    c.member(1, 10);
    c.disks.insert(2, TestDisk::default());
    c.start(2);
    let change = |kind| {
        let mut one = ConfChangeSingle { node_id: 2, ..ConfChangeSingle::default() };
        one.set_change_type(kind);
        Box::new(ConfChangeV2 { changes: vec![one].into(), ..ConfChangeV2::default() })
    };
    c.ask(1, Input::Members { ticket: 1, change: change(ConfChangeType::AddLearnerNode) });
    for _ in 0..20 {
        c.step();
    }
    let members = c.drivers[&1].members();
    assert!(matches!(members.learners[..], [(2, matched)] if matched == members.committed), "{members:?}");
    c.ask(1, Input::Members { ticket: 2, change: change(ConfChangeType::AddNode) });
    for _ in 0..20 {
        c.step();
    }
    assert_eq!(c.drivers[&2].members().voters, [1, 2]);
    assert_eq!(*c.drivers[&2].shared.state.read(), *c.drivers[&1].shared.state.read());
}
