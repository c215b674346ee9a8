//! The API as its callers see it: calls at any control node, handed to the leader, answered once.

use crate::checker::Said;
use crate::control::{Asker, site};
use crate::net::{Host, MS, SECOND};
use crate::plan::SITES;
use crate::world::{Event, World};
use std::collections::BTreeMap;
use tidegate_control::purge::{Look, Waiting};
use tidegate_control::raft::{Done, Input, NotDone};
use tidegate_control_types::api::Receipt;
use tidegate_control_types::site::WhenDetached;
use tidegate_control_types::{Change, Clock, Command, PurgeOrder};

pub type CallId = u64;

#[derive(Clone, Debug)]
enum Wants {
    Purge { orders: Vec<PurgeOrder>, wait_ms: u64 },
    Receipt { index: u64, wait_ms: u64 },
    Change(Box<Change>),
    Read,
}

/// How a call ended.
#[derive(Clone, Debug)]
pub enum Answer {
    /// A change or a read, at this index.
    Done(u64),
    True(Receipt),
    NotYet(Receipt),
    Refused(String),
    /// The receipt is kept no longer.
    Gone(u64),
    /// Nothing happened.
    NoLeader,
    Unknown,
}

#[derive(Clone, Debug)]
pub struct Call {
    wants: Wants,
    begun: u64,
    /// Where a purge stands that was made.
    waiting: Option<Waiting>,
    confirming: bool,
    pub answer: Option<Answer>,
}

impl Call {
    fn new(wants: Wants) -> Self {
        Self { wants, begun: 0, waiting: None, confirming: false, answer: None }
    }

    pub fn purge(orders: Vec<PurgeOrder>, wait_ms: u64) -> Self {
        Self::new(Wants::Purge { orders, wait_ms })
    }

    pub fn receipt(index: u64, wait_ms: u64) -> Self {
        Self::new(Wants::Receipt { index, wait_ms })
    }

    pub fn detached(n: usize, mode: WhenDetached) -> Self {
        let spec = Box::new(site(SITES[n], mode));
        Self::change(Change::SitePut { spec, source: String::new(), expected: None, vouched: true })
    }

    pub fn remove(node: &str, dead: bool) -> Self {
        Self::change(Change::NodeRemove { name: node.parse().unwrap_or_else(|e| panic!("{e}")), dead })
    }

    pub fn change(change: Change) -> Self {
        Self::new(Wants::Change(Box::new(change)))
    }

    pub fn read() -> Self {
        Self::new(Wants::Read)
    }
}

#[derive(Default)]
pub struct Api {
    pub calls: BTreeMap<CallId, Call>,
    next: CallId,
    /// Calls whose purge waits to be true, and the control node that watches over each.
    waiting: BTreeMap<CallId, (Host, u64)>,
    /// Who first called for the purge at an index, and when.
    pub called: BTreeMap<u64, (u64, Vec<PurgeOrder>)>,
}

impl Api {
    /// Another log begins: its indices name other purges.
    pub fn another_log(&mut self) {
        self.waiting.clear();
        self.called.clear();
    }
}

/// A caller waits this long beyond what it asked for.
const PATIENCE: u64 = 15 * SECOND;
/// A control node waits this long for an election to end.
const LEADER_WAIT: u64 = 4 * SECOND;

impl World {
    /// Calls a control node.
    pub fn call(&mut self, at: Host, mut call: Call) -> CallId {
        self.api.next += 1;
        let id = self.api.next;
        call.begun = self.now();
        let wait = match &call.wants {
            Wants::Purge { wait_ms, .. } | Wants::Receipt { wait_ms, .. } => wait_ms * MS,
            _ => 0,
        };
        let what = match &call.wants {
            Wants::Purge { orders, .. } => {
                orders.iter().map(|o| format!("purge {}{}", if o.soft { "soft " } else { "" }, o.selector)).collect::<Vec<_>>().join(", ")
            }
            Wants::Receipt { index, .. } => format!("asks for the receipt {index}"),
            Wants::Read => "reads".into(),
            Wants::Change(change) => match &**change {
                Change::SitePut { spec, .. } => format!("site {} to be {:?} when detached", spec.name, spec.cache.when_detached),
                other => format!("{other:?}"),
            },
        };
        self.story.tell(self.truth.now(), "caller", || format!("call {id}: {what}"));
        self.api.calls.insert(id, call);
        let after = self.net.delay(self.setup.outside(), at);
        self.at(after, Event::Call { to: at, call: id, forwarded: false });
        self.at(wait + PATIENCE, Event::GiveUp { call: id });
        id
    }

    pub fn call_arrives(&mut self, to: Host, id: CallId, forwarded: bool) {
        let begun = match self.api.calls.get(&id) {
            Some(c) if c.answer.is_none() => c.begun,
            _ => return,
        };
        let Some(control) = self.control(to) else { return };
        if !control.leads() {
            match self.leader_of(to).filter(|_| !forwarded) {
                Some(leader) if !self.net.is_apart(to, leader) => {
                    let after = self.net.delay(to, leader);
                    self.at(after, Event::Call { to: leader, call: id, forwarded: true });
                }
                Some(_) => {}
                None if self.now() < begun + LEADER_WAIT && !forwarded => self.at(100 * MS, Event::Call { to, call: id, forwarded }),
                None => self.answer(id, Answer::NoLeader),
            }
            return;
        }
        let wall = self.machines[to.0].clock.wall();
        let propose =
            |change| move |ticket| Input::Propose { ticket, command: Box::new(Command { at: wall, by: "caller".into(), change }) };
        let Some(wants) = self.api.calls.get(&id).map(|c| c.wants.clone()) else { return };
        match wants {
            Wants::Purge { orders, .. } => {
                let Some(control) = self.control(to) else { return };
                let placed = control.shared.state.read().placed(orders);
                match placed {
                    Ok(orders) => self.ask(to, Asker::Change(id), propose(Change::Purge { orders })),
                    Err(refusal) => self.answer(id, Answer::Refused(refusal.to_string())),
                }
            }
            Wants::Receipt { index, .. } => self.begin_wait(to, id, index),
            Wants::Change(change) => self.ask(to, Asker::Change(id), propose(*change)),
            Wants::Read => self.ask(to, Asker::Read(id), |ticket| Input::Read { ticket }),
        }
        self.pump(to);
    }

    pub fn change_done(&mut self, host: Host, id: CallId, result: Result<Done, NotDone>) {
        let now = self.now();
        let Some(call) = self.api.calls.get(&id).cloned() else { return };
        match result {
            Ok(Done::Applied { index, outcome: Ok(()) }) => match call.wants {
                Wants::Purge { .. } => self.begin_wait(host, id, index),
                _ => {
                    if call.answer.is_none() {
                        let checked = self.checker.acknowledged(call.begun, now, index, Said::Other);
                        self.must(checked);
                    }
                    self.answer(id, Answer::Done(index));
                }
            },
            Ok(Done::Applied { outcome: Err(refusal), .. }) => self.answer(id, Answer::Refused(refusal.to_string())),
            Ok(Done::Read { .. }) => {}
            Err(NotDone::NotLeader) => self.answer(id, Answer::NoLeader),
            Err(_) => self.answer(id, Answer::Unknown),
        }
    }

    pub fn read_done(&mut self, host: Host, id: CallId, result: Result<Done, NotDone>) {
        let now = self.now();
        let Some(call) = self.api.calls.get(&id).filter(|c| c.answer.is_none()).cloned() else { return };
        match result {
            Ok(_) => {
                let Some(control) = self.control(host) else { return };
                let applied = control.shared.state.read().applied;
                let checked = self.checker.read(call.begun, now, applied);
                self.must(checked);
                self.answer(id, Answer::Done(applied));
            }
            Err(_) => self.answer(id, Answer::Unknown),
        }
    }

    fn begin_wait(&mut self, host: Host, id: CallId, index: u64) {
        let clock = std::sync::Arc::clone(&self.machines[host.0].clock);
        let life = self.machines[host.0].life;
        let Some(control) = self.control(host) else { return };
        let record = control.shared.state.read().purge(index).cloned();
        let Some(call) = self.api.calls.get_mut(&id) else { return };
        let wait = match &call.wants {
            Wants::Purge { wait_ms, .. } | Wants::Receipt { wait_ms, .. } => *wait_ms,
            _ => 0,
        };
        match record {
            Ok(record) => {
                let begun = call.begun;
                if let Wants::Purge { .. } = call.wants {
                    self.api.called.entry(index).or_insert((begun, record.orders.clone()));
                }
                call.waiting = Some(Waiting { index, record, deadline: clock.boot() + std::time::Duration::from_millis(wait) });
                self.api.waiting.insert(id, (host, life));
                self.look(host, id);
            }
            Err(_) => self.answer(id, Answer::Gone(index)),
        }
    }

    /// Looks at every wait that this control node watches over.
    pub fn look_at_all(&mut self, host: Host) {
        let life = self.machines[host.0].life;
        let its: Vec<_> = self.api.waiting.iter().filter(|(_, w)| **w == (host, life)).map(|(id, _)| *id).collect();
        its.into_iter().for_each(|id| self.look(host, id));
    }

    pub fn look(&mut self, host: Host, id: CallId) {
        let now = self.machines[host.0].clock.boot();
        let life = self.machines[host.0].life;
        let Some(call) = self.api.calls.get(&id) else { return };
        let (true, false, Some(waiting)) = (call.answer.is_none(), call.confirming, call.waiting.clone()) else { return };
        let Some(control) = self.control(host) else { return };
        let looked = {
            let state = control.shared.state.read();
            control.shared.leadership.lock().as_ref().map(|l| waiting.look(&state, l, now))
        };
        match looked {
            None => self.answer(id, Answer::Unknown),
            Some(Look::Confirm(receipt)) => {
                if let Some(call) = self.api.calls.get_mut(&id) {
                    call.confirming = true;
                }
                self.ask(host, Asker::Confirm(id, receipt), |ticket| Input::Read { ticket });
            }
            Some(Look::NotYet(receipt)) => self.answer(id, Answer::NotYet(receipt)),
            Some(Look::Wait { until }) => {
                let after = u64::try_from(until.since(now).as_nanos()).unwrap_or(0) + MS;
                self.at(after, Event::Look { at: host, life, call: id });
            }
        }
    }

    pub fn confirmed(&mut self, _: Host, id: CallId, receipt: Receipt, result: Result<Done, NotDone>) {
        match result {
            Ok(_) => self.answer(id, Answer::True(receipt)),
            Err(_) => self.answer(id, Answer::Unknown),
        }
    }

    pub fn give_up(&mut self, id: CallId) {
        if self.api.calls.get(&id).is_some_and(|c| c.answer.is_none()) {
            self.answer(id, Answer::Unknown);
        }
    }

    /// The moment in which an answer leaves the control node: from then on it has to be true.
    fn answer(&mut self, id: CallId, answer: Answer) {
        let now = self.now();
        let Some(call) = self.api.calls.get_mut(&id).filter(|c| c.answer.is_none()) else { return };
        call.answer = Some(answer.clone());
        let (begun, is_receipt) = (call.begun, matches!(call.wants, Wants::Receipt { .. }));
        let is_purge = matches!(call.wants, Wants::Purge { .. });
        self.api.waiting.remove(&id);
        self.story.tell(now, "caller", || format!("call {id} is answered: {}", in_words(&answer)));
        match &answer {
            Answer::True(receipt) | Answer::NotYet(receipt) => {
                let index = receipt.index;
                let Some((called, orders)) = self.api.called.get(&index).cloned() else { return };
                if is_purge {
                    let checked = self.checker.acknowledged(begun, now, index, Said::Purge(orders.clone()));
                    self.must(checked);
                }
                if let Answer::True(_) = answer {
                    self.checker.promises.is_true(index, &orders, called, now);
                    *(if is_receipt { &mut self.checker.stats.receipts_200 } else { &mut self.checker.stats.purges_200 }) += 1;
                } else {
                    let done = |n: &&tidegate_control_types::api::ReceiptNode| n.state == "applied" || n.state == "silent";
                    let done: Vec<_> = receipt.nodes.iter().filter(done).map(|n| n.name.clone()).collect();
                    self.checker.promises.is_pending(index, &orders, called, now, &done);
                    if !is_receipt {
                        self.checker.stats.purges_202 += 1;
                    }
                }
            }
            Answer::Gone(index) => self.checker.promises.is_forgotten(*index),
            Answer::Unknown if is_purge => self.checker.stats.purges_unknown += 1,
            _ => {}
        }
    }
}

fn in_words(answer: &Answer) -> String {
    match answer {
        Answer::Done(index) => format!("done, at {index}"),
        Answer::True(receipt) => format!("200, the purge at {} is true everywhere", receipt.index),
        Answer::NotYet(receipt) => {
            let nodes: Vec<_> = receipt.nodes.iter().map(|n| format!("{} {}", n.name, n.state)).collect();
            format!("202, the purge at {}: {}", receipt.index, nodes.join(", "))
        }
        Answer::Gone(index) => format!("410, the receipt {index} is kept no longer"),
        Answer::Refused(why) => format!("refused: {why}"),
        Answer::NoLeader => "there is no leader".into(),
        Answer::Unknown => "the outcome is unknown".into(),
    }
}
