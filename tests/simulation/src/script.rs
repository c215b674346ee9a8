//! What a test that tells its own story says to a world: one thing after another, each waited for.

use crate::api::{Answer, Call, CallId};
use crate::exchange::Asked;
use crate::net::{Host, MS, SECOND};
use crate::origin::page_of;
use crate::plan::{Action, Ask, SITES, Setup};
use crate::world::World;
use tidegate_control_types::site::WhenDetached;
use tidegate_control_types::{PurgeOrder, Selector};

/// The first site revalidates where a node is cut off, the second serves.
pub const SHOP: usize = 0;
pub const BLOG: usize = 1;

/// The place of a page among all, by its path.
#[must_use]
pub fn page(path: &str) -> usize {
    page_of(path).unwrap_or_else(|| panic!("there is no page {path}"))
}

#[must_use]
pub fn url(site: usize, path: &str) -> PurgeOrder {
    let host = format!("{}.example", SITES[site]);
    PurgeOrder { site: None, selector: Selector::Url { host, target: path.into() }, soft: false }
}

#[must_use]
pub fn tag(site: usize, tag: &str) -> PurgeOrder {
    PurgeOrder { site: SITES[site].parse().ok(), selector: Selector::Tag { tag: tag.into() }, soft: false }
}

#[must_use]
pub fn soft(order: PurgeOrder) -> PurgeOrder {
    PurgeOrder { soft: true, ..order }
}

impl World {
    /// A network that is up: a leader, and every cache node attached.
    #[must_use]
    pub fn up(setup: &Setup) -> Self {
        let mut world = Self::new(setup, true);
        world.settle_down();
        world
    }

    #[must_use]
    pub fn edge(&self, n: usize) -> Host {
        self.setup.edge(n - 1)
    }

    #[must_use]
    pub fn shield(&self, n: usize) -> Host {
        self.setup.shield(n - 1)
    }

    pub fn do_now(&mut self, action: Action) {
        let now = self.now();
        self.act_at(now, action);
        self.run_until(now);
    }

    pub fn wait(&mut self, ms: u64) {
        let until = self.now() + ms * MS;
        self.run_until(until);
    }

    /// Cuts a node off from every control node.
    pub fn cut_off(&mut self, node: Host) {
        self.control_links(node, Action::Cut);
    }

    pub fn cut_off_shields(&mut self) {
        (0..self.setup.shields).for_each(|n| self.cut_off(self.setup.shield(n)));
    }

    pub fn rejoin_shields(&mut self) {
        (0..self.setup.shields).for_each(|n| self.rejoin(self.setup.shield(n)));
    }

    pub fn rejoin(&mut self, node: Host) {
        self.control_links(node, Action::Heal);
    }

    fn control_links(&mut self, node: Host, action: fn(Host, Host) -> Action) {
        for control in (0..self.setup.controls).map(Host).filter(|c| *c != node) {
            self.do_now(action(node, control));
            self.do_now(action(control, node));
        }
    }

    /// Asks an edge, through its first worker.
    pub fn ask_for(&mut self, edge: Host, site: usize, path: &str) -> u64 {
        let id = self.get(edge, 0, Ask::get(site, page(path)));
        let now = self.now();
        self.run_until(now);
        id
    }

    /// Waits for an answer to its end.
    pub fn answer_to(&mut self, id: u64) -> &Asked {
        self.run_while(30 * SECOND, |w| w.exchanges.asked[&id].ended.is_some());
        &self.exchanges.asked[&id]
    }

    /// Asks, and waits for the whole answer: its status, and the exchange that it comes from.
    pub fn fetch(&mut self, edge: Host, site: usize, path: &str) -> (u16, Option<usize>) {
        let id = self.ask_for(edge, site, path);
        let answer = self.answer_to(id);
        (answer.status.map_or(0, |s| s.as_u16()), answer.exchange)
    }

    /// How often the origin was asked for a page.
    #[must_use]
    pub fn origin_gave(&self, site: usize, path: &str) -> usize {
        self.origin.exchanges.iter().filter(|e| e.site == SITES[site] && e.page == page(path)).count()
    }

    fn wait_for(&mut self, id: CallId) -> Answer {
        self.run_while(60 * SECOND, |w| w.api.calls[&id].answer.is_some());
        self.api.calls[&id].answer.clone().unwrap_or(Answer::Unknown)
    }

    /// Purges through the leader, and waits up to `wait_ms` for the purge to be true.
    pub fn purge(&mut self, order: PurgeOrder, wait_ms: u64) -> Answer {
        let id = self.begin_purge(order, wait_ms);
        self.wait_for(id)
    }

    pub fn begin_purge(&mut self, order: PurgeOrder, wait_ms: u64) -> CallId {
        let leader = self.leader_now();
        self.call(leader, Call::purge(vec![order], wait_ms))
    }

    /// The receipt once more.
    pub fn receipt(&mut self, index: u64, wait_ms: u64) -> Answer {
        let leader = self.leader_now();
        let id = self.call(leader, Call::receipt(index, wait_ms));
        self.wait_for(id)
    }

    pub fn set_detached(&mut self, site: usize, mode: WhenDetached) {
        let leader = self.leader_now();
        let id = self.call(leader, Call::detached(site, mode));
        let answer = self.wait_for(id);
        assert!(matches!(answer, Answer::Done(_)), "{answer:?}");
    }

    pub fn remove(&mut self, node: Host, dead: bool) {
        let (leader, name) = (self.leader_now(), self.machines[node.0].name.clone());
        let id = self.call(leader, Call::remove(&name, dead));
        let answer = self.wait_for(id);
        assert!(matches!(answer, Answer::Done(_)), "{answer:?}");
    }

    /// Whether a read through a control node, whatever it takes itself for, is answered.
    pub fn read_at(&mut self, control: Host) -> Answer {
        let id = self.call(control, Call::read());
        self.wait_for(id)
    }

    pub fn leader_now(&mut self) -> Host {
        self.run_while(20 * SECOND, |w| w.leader().is_some());
        self.leader().unwrap_or_else(|| panic!("nobody leads"))
    }

    /// Who votes, as the leader knows it.
    pub fn voters(&mut self) -> Vec<u64> {
        let leader = self.leader_now();
        let mut voters = self.control(leader).map(|c| c.driver.members().voters).unwrap_or_default();
        voters.sort_unstable();
        voters
    }

    /// The control node that a node's watch stream goes to.
    #[must_use]
    pub fn watches(&self, node: Host) -> Option<Host> {
        self.conns.values().find(|c| c.node.0 == node).map(|c| c.control.0)
    }

    /// What was violated, with the story that led to it.
    #[must_use]
    pub fn violation(&self) -> Option<String> {
        self.problem.clone()
    }

    #[must_use]
    pub fn story(&self) -> &[String] {
        self.story.told.as_deref().unwrap_or_default()
    }
}

impl Answer {
    /// Whether a purge was answered `200`.
    #[must_use]
    pub fn is_true(&self) -> bool {
        matches!(self, Self::True(_))
    }

    /// The nodes that a `202` names, with what it says of them.
    #[must_use]
    pub fn names(&self) -> Vec<(String, String)> {
        match self {
            Self::NotYet(r) => {
                let named = r.nodes.iter().filter(|n| n.state == "waiting" || n.state == "may_serve");
                named.map(|n| (n.name.clone(), n.state.clone())).collect()
            }
            _ => Vec::new(),
        }
    }

    #[must_use]
    pub fn index(&self) -> u64 {
        match self {
            Self::True(r) | Self::NotYet(r) => r.index,
            Self::Done(index) | Self::Gone(index) => *index,
            _ => 0,
        }
    }
}
