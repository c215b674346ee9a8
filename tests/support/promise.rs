//! The purge promise as it is checked, in the simulation and with real processes alike: what was promised, from when on and
//! where, against what clients were answered. It knows nothing of how the network works.

// Either uses its part.
#![allow(dead_code)]

use std::collections::BTreeMap;
use tidegate_control_types::{PurgeOrder, Selector};

/// What the origin gave, and when; times in nanoseconds of one clock that everybody here shares.
#[derive(Clone, Debug)]
pub struct Given {
    pub at: u64,
    pub site: String,
    pub host: String,
    pub path: String,
    pub tags: Vec<String>,
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
    enforced: Enforced,
}

#[derive(Default)]
pub struct Promises {
    /// By log, since each begins its indices anew, and index.
    all: BTreeMap<(u64, u64), Promise>,
    log: u64,
}

impl Promises {
    /// The network was restored from a backup. What was promised to be true stays promised.
    pub fn another_log(&mut self) {
        self.log += 1;
    }

    /// The purge at `index`, called for at `called_at`, was answered `200` at `now`.
    pub fn is_true(&mut self, index: u64, orders: &[PurgeOrder], called_at: u64, now: u64) {
        let new = || Promise { orders: orders.to_vec(), called_at, enforced: Enforced::Everywhere(now) };
        let promise = self.all.entry((self.log, index)).or_insert_with(new);
        promise.called_at = promise.called_at.min(called_at);
        if let Enforced::At(_) = promise.enforced {
            promise.enforced = Enforced::Everywhere(now);
        }
    }

    /// It was answered `202` at `now`; at the nodes `done` it is said to be true already.
    pub fn is_pending(&mut self, index: u64, orders: &[PurgeOrder], called_at: u64, now: u64, done: &[String]) {
        let new = || Promise { orders: orders.to_vec(), called_at, enforced: Enforced::At(BTreeMap::new()) };
        if let Enforced::At(nodes) = &mut self.all.entry((self.log, index)).or_insert_with(new).enforced {
            for node in done {
                nodes.entry(node.clone()).or_insert(now);
            }
        }
    }

    /// Its receipt is kept no longer: nobody can learn any more that it became true.
    pub fn is_forgotten(&mut self, index: u64) {
        if matches!(self.all.get(&(self.log, index)).map(|p| &p.enforced), Some(Enforced::At(_))) {
            self.all.remove(&(self.log, index));
        }
    }

    /// Purges of the log as it is that are not known to be true everywhere.
    #[must_use]
    pub fn open(&self) -> Vec<u64> {
        let of_now = self.all.iter().filter(|((log, _), _)| *log == self.log);
        of_now.filter(|(_, p)| matches!(p.enforced, Enforced::At(_))).map(|((_, index), _)| *index).collect()
    }

    /// A client's request whose head reached `node` at `begun` was answered with what the origin gave.
    ///
    /// # Errors
    /// A purge that was answered named it, and was not true.
    pub fn answered(&self, node: &str, begun: u64, given: &Given, may_be_stale: bool) -> Result<(), String> {
        for ((_, index), p) in &self.all {
            let from = match &p.enforced {
                Enforced::Everywhere(from) => *from,
                Enforced::At(nodes) => match nodes.get(node) {
                    Some(from) => *from,
                    None => continue,
                },
            };
            if begun <= from || given.at >= p.called_at {
                continue;
            }
            if let Some(order) = p.orders.iter().find(|o| names(o, given) && !(o.soft && may_be_stale)) {
                return Err(format!(
                    "stale: the {}purge at {index} ({}) was called for at {} and true at {node} from {}; a request of {} got what the origin said at {}",
                    if order.soft { "soft " } else { "" },
                    order.selector,
                    time(p.called_at),
                    time(from),
                    time(begun),
                    time(given.at),
                ));
            }
        }
        Ok(())
    }
}

/// A time, for people.
#[must_use]
pub fn time(nanos: u64) -> String {
    format!("{:.3} s", nanos as f64 / 1e9)
}

/// Whether a purge names what the origin gave: said here once more, as plainly as it can be.
fn names(order: &PurgeOrder, given: &Given) -> bool {
    if order.site.as_ref().is_some_and(|s| s.as_str() != given.site) {
        return false;
    }
    match &order.selector {
        Selector::Url { host, target } => *host == given.host && *target == given.path,
        Selector::Prefix { host, path } => *host == given.host && (given.path == *path || given.path.starts_with(&format!("{path}/"))),
        Selector::Host { host } => *host == given.host,
        Selector::Tag { tag } => order.site.is_some() && given.tags.contains(tag),
        Selector::Site => order.site.is_some(),
        Selector::All => true,
    }
}
