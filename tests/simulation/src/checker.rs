//! What must hold after every step: Raft's safety, the API's history, and the purge promise itself. It knows nothing of how
//! the network works; it compares what was promised with what was seen.

use crate::origin::Exchange;
use raft::eraftpb::Entry;
use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use tidegate_control_state::Applied;
use tidegate_control_types::{Event, PurgeOrder, Selector};

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

/// From when on, and where, a purge has to be true.
#[derive(Clone, Debug)]
enum Enforced {
    /// By a `202`: at the nodes that it does not name.
    At(BTreeMap<String, u64>),
    Everywhere(u64),
}

#[derive(Clone, Debug)]
struct Promise {
    orders: Vec<PurgeOrder>,
    called_at: u64,
    index: u64,
    enforced: Enforced,
}

/// What an acknowledged change said.
#[derive(Clone, Debug, PartialEq)]
pub enum Said {
    Purge(Vec<PurgeOrder>),
    Other,
}

#[derive(Default)]
pub struct Checker {
    /// By log, since each begins its indices anew, and index.
    promises: BTreeMap<(u64, u64), Promise>,
    log: u64,
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
        self.log += 1;
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

    /// A purge that was called for at `called_at` was answered `200` at `now`.
    pub fn purge_true(&mut self, index: u64, orders: &[PurgeOrder], called_at: u64, now: u64) {
        let promise = self.promises.entry((self.log, index));
        let promise = promise.or_insert_with(|| Promise { orders: orders.to_vec(), called_at, index, enforced: Enforced::Everywhere(now) });
        promise.called_at = promise.called_at.min(called_at);
        if let Enforced::At(_) = promise.enforced {
            promise.enforced = Enforced::Everywhere(now);
        }
    }

    /// A purge was answered `202` at `now`; at `done` it is said to be true already.
    pub fn purge_pending(&mut self, index: u64, orders: &[PurgeOrder], called_at: u64, now: u64, done: &[String]) {
        let promise = self.promises.entry((self.log, index));
        let new = || Promise { orders: orders.to_vec(), called_at, index, enforced: Enforced::At(BTreeMap::new()) };
        if let Enforced::At(nodes) = &mut promise.or_insert_with(new).enforced {
            for node in done {
                nodes.entry(node.clone()).or_insert(now);
            }
        }
    }

    /// Its receipt is kept no longer: nobody can learn any more that it became true.
    pub fn receipt_gone(&mut self, index: u64) {
        if matches!(self.promises.get(&(self.log, index)).map(|p| &p.enforced), Some(Enforced::At(_))) {
            self.promises.remove(&(self.log, index));
        }
    }

    /// Whether every purge that has a revision is known to be true everywhere.
    #[must_use]
    pub fn not_true_yet(&self) -> Vec<u64> {
        let of_now = self.promises.iter().filter(|((log, _), _)| *log == self.log);
        of_now.filter(|(_, p)| matches!(p.enforced, Enforced::At(_))).map(|(_, p)| p.index).collect()
    }

    /// A client's request whose head reached `node` at `begun` was answered with what the origin said in `exchange`.
    pub fn answered(&mut self, node: &str, begun: u64, exchange: &Exchange, may_be_stale: bool) -> Checked {
        self.stats.answers += 1;
        for p in self.promises.values() {
            let from = match &p.enforced {
                Enforced::Everywhere(from) => *from,
                Enforced::At(nodes) => match nodes.get(node) {
                    Some(from) => *from,
                    None => continue,
                },
            };
            if begun <= from || exchange.at >= p.called_at {
                continue;
            }
            for order in p.orders.iter().filter(|o| names(o, exchange)) {
                if order.soft && may_be_stale {
                    continue;
                }
                let how = if order.soft { "soft " } else { "" };
                return Err(format!(
                    "stale: the {how}purge at {} ({}) was called for at {} and true at {node} from {}; a request of {} got what the origin said at {}",
                    p.index,
                    order.selector,
                    time(p.called_at),
                    time(from),
                    time(begun),
                    time(exchange.at),
                ));
            }
        }
        Ok(())
    }

    /// At the end: every acknowledged change was applied.
    pub fn nothing_lost(&self) -> Checked {
        match self.acknowledged.keys().find(|i| !self.applied.contains_key(i)) {
            Some(index) => Err(format!("lost: the change acknowledged at {index} was never applied")),
            None => Ok(()),
        }
    }
}

/// True time, for people.
#[must_use]
pub fn time(nanos: u64) -> String {
    format!("{:.3} s", nanos as f64 / 1e9)
}

/// Whether a purge names what the origin gave: said here once more, as plainly as it can be.
fn names(order: &PurgeOrder, given: &Exchange) -> bool {
    let (host, path) = (format!("{}.example", given.site), crate::origin::PAGES[given.page].0);
    if order.site.as_ref().is_some_and(|s| s.as_str() != given.site) {
        return false;
    }
    match &order.selector {
        Selector::Url { host: h, target } => *h == host && target == path,
        Selector::Prefix { host: h, path: p } => *h == host && (path == p || path.starts_with(&format!("{p}/"))),
        Selector::Host { host: h } => *h == host,
        Selector::Tag { tag } => order.site.is_some() && given.tags.contains(&tag.as_str()),
        Selector::Site => order.site.is_some(),
        Selector::All => true,
    }
}
