//! What must hold after every step: Raft's safety, the API's history, and the purge promise itself. It knows nothing of how
//! the network works; it compares what was promised with what was seen.

use crate::origin::Exchange;
pub use crate::promise::time;
use crate::promise::{Given, Promises};
use raft::eraftpb::Entry;
use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use tidegate_control_state::Applied;
use tidegate_control_types::{Event, PurgeOrder};

/// All that any voter ever wrote into its log. Log matching: one index and term, one entry.
#[derive(Default)]
pub struct LogBook {
    entries: BTreeMap<(u64, u64), u64>,
    problem: Option<String>,
}

impl LogBook {
    pub fn wrote(&mut self, node: u64, entries: &[Entry]) {
        for e in entries {
            let mut hasher = DefaultHasher::new();
            (&e.data[..], &e.context[..]).hash(&mut hasher);
            let hash = hasher.finish();
            if *self.entries.entry((e.index, e.term)).or_insert(hash) != hash {
                self.problem = Some(format!("log matching: c{node} wrote another entry at index {} of term {}", e.index, e.term));
            }
        }
    }

    /// # Errors
    /// Two logs differ where they must not.
    pub fn check(&self) -> Result<(), String> {
        self.problem.clone().map_or(Ok(()), Err)
    }
}

/// What an acknowledged change said.
#[derive(Clone, Debug, PartialEq)]
pub enum Said {
    Purge(Vec<PurgeOrder>),
    Other,
}

#[derive(Default)]
pub struct Checker {
    pub promises: Promises,
    leaders: BTreeMap<u64, u64>,
    /// What was applied first at each index, and the newest term that anybody led by then.
    applied: BTreeMap<u64, (Applied, u64)>,
    acknowledged: BTreeMap<u64, Said>,
    /// When each answered operation ended, and the greatest index that any had seen by then.
    ended: Vec<(u64, u64)>,
    pub stats: Stats,
}

/// What a run came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    pub steps: u64,
    pub faults: u64,
    pub answers: u64,
    /// Of them from a cache, without asking anybody.
    pub hits: u64,
    /// Answered by a node that was cut off.
    pub detached: u64,
    pub purges_200: u64,
    pub purges_202: u64,
    pub purges_unknown: u64,
    /// Purges that a later receipt made true.
    pub receipts_200: u64,
    pub leaders: u64,
}

impl Stats {
    pub fn add(&mut self, other: &Self) {
        self.steps += other.steps;
        self.faults += other.faults;
        self.answers += other.answers;
        self.hits += other.hits;
        self.detached += other.detached;
        self.purges_200 += other.purges_200;
        self.purges_202 += other.purges_202;
        self.purges_unknown += other.purges_unknown;
        self.receipts_200 += other.receipts_200;
        self.leaders += other.leaders;
    }
}

type Checked = Result<(), String>;

impl Checker {
    /// The network was restored from a backup: another log begins. What was promised to be true stays promised.
    pub fn another_log(&mut self) {
        self.promises.another_log();
        self.leaders.clear();
        self.applied.clear();
        self.acknowledged.clear();
        self.ended.clear();
    }

    pub fn leads(&mut self, node: u64, term: u64, log_reaches: impl Fn(u64) -> bool) -> Checked {
        if let Some(other) = self.leaders.get(&term) {
            return if *other == node { Ok(()) } else { Err(format!("election safety: c{other} and c{node} both lead term {term}")) };
        }
        self.leaders.insert(term, node);
        self.stats.leaders += 1;
        // Who learns late that it was elected may find that another has followed it already.
        match self.applied.iter().rev().find(|(_, (_, by))| *by < term) {
            Some((last, _)) if !log_reaches(*last) => {
                Err(format!("leader completeness: c{node} leads term {term} without entry {last}, which was applied before"))
            }
            _ => Ok(()),
        }
    }

    /// The newest term that anybody led.
    #[must_use]
    pub fn newest_term(&self) -> u64 {
        self.leaders.last_key_value().map_or(0, |(term, _)| *term)
    }

    pub fn applied(&mut self, node: u64, index: u64, applied: &Applied) -> Checked {
        let term = self.newest_term();
        let (first, _) = self.applied.entry(index).or_insert_with(|| (applied.clone(), term));
        if first != applied {
            return Err(format!("state machine safety: c{node} applied {applied:?} at {index}, another {first:?}"));
        }
        self.check_acknowledged(index)
    }

    fn check_acknowledged(&self, index: u64) -> Checked {
        let (Some(said), Some((applied, _))) = (self.acknowledged.get(&index), self.applied.get(&index)) else { return Ok(()) };
        let kept = applied.outcome.is_ok()
            && match said {
                Said::Purge(orders) => applied.events.contains(&Event::Purged(orders.clone())),
                Said::Other => true,
            };
        if kept { Ok(()) } else { Err(format!("lost: what was acknowledged at {index} is not what stands there: {applied:?}")) }
    }

    /// A change that began at `begun` was answered at `now` as done at `index`.
    pub fn acknowledged(&mut self, begun: u64, now: u64, index: u64, said: Said) -> Checked {
        if let Some((_, seen)) = self.before(begun).filter(|(_, seen)| *seen >= index) {
            return Err(format!("linearizability: a change that began after {seen} was answered got index {index}"));
        }
        self.ended(now, index);
        self.acknowledged.insert(index, said);
        self.check_acknowledged(index)
    }

    /// A read that began at `begun` was answered at `now` from the state at `index`.
    pub fn read(&mut self, begun: u64, now: u64, index: u64) -> Checked {
        if let Some((_, seen)) = self.before(begun).filter(|(_, seen)| *seen > index) {
            return Err(format!("linearizability: a read that began after {seen} was answered saw only {index}"));
        }
        self.ended(now, index);
        Ok(())
    }

    fn before(&self, begun: u64) -> Option<(u64, u64)> {
        let at = self.ended.partition_point(|(ended, _)| *ended < begun);
        self.ended.get(at.checked_sub(1)?).copied()
    }

    fn ended(&mut self, now: u64, index: u64) {
        let most = self.ended.last().map_or(0, |(_, m)| *m).max(index);
        self.ended.push((now, most));
    }

    /// A client's request whose head reached `node` at `begun` was answered with what the origin said in `exchange`.
    pub fn answered(&mut self, node: &str, begun: u64, exchange: &Exchange, may_be_stale: bool) -> Checked {
        self.stats.answers += 1;
        let given = Given {
            at: exchange.at,
            site: exchange.site.clone(),
            host: format!("{}.example", exchange.site),
            path: crate::origin::PAGES[exchange.page].0.to_owned(),
            tags: exchange.tags.iter().map(|t| (*t).to_owned()).collect(),
        };
        self.promises.answered(node, begun, &given, may_be_stale)
    }

    /// At the end: every acknowledged change was applied.
    pub fn nothing_lost(&self) -> Checked {
        match self.acknowledged.keys().find(|i| !self.applied.contains_key(i)) {
            Some(index) => Err(format!("lost: the change acknowledged at {index} was never applied")),
            None => Ok(()),
        }
    }
}
