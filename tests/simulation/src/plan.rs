//! What happens in a run: all of it chosen before it begins, so that a failing run can be made shorter by leaving things
//! out.

use crate::disk::Fails;
use crate::net::{Host, MS, SECOND, Weather};
use crate::origin::{Health, PAGES, TAGS};
use fastrand::Rng;
use std::time::Duration;
use tidegate_control_types::site::WhenDetached;
use tidegate_control_types::{LeaseTerms, PurgeOrder, Selector};

/// What a network is made of.
#[derive(Clone, Debug)]
pub struct Setup {
    pub seed: u64,
    pub controls: usize,
    /// Of the control nodes, how many are not members yet when it begins.
    pub spares: usize,
    pub shields: usize,
    pub edges: usize,
    pub workers: usize,
    pub lease: LeaseTerms,
    /// Parts in a million by which clocks differ at most, from true time.
    pub drift_ppm: i64,
    /// Receipts kept, and purges remembered by a ledger: few, so that floors rise.
    pub receipts: usize,
    pub selectors: usize,
    pub weather: Weather,
    /// Entries after which a snapshot is taken.
    pub snapshot_every: u64,
    pub detached: [WhenDetached; 2],
    /// Bytes of each cache node's disk tier; 0 for none.
    pub disk: u64,
}

pub const SITES: [&str; 2] = ["shop", "blog"];

impl Setup {
    /// Three control nodes, two shields and three edges in calm weather.
    #[must_use]
    pub fn calm(seed: u64) -> Self {
        Self {
            seed,
            controls: 3,
            spares: 0,
            shields: 2,
            edges: 3,
            workers: 2,
            lease: LeaseTerms { duration: Duration::from_secs(2), drift_margin: Duration::from_millis(40) },
            drift_ppm: 0,
            receipts: 1000,
            selectors: 1000,
            weather: Weather { delay_ms: 4, lost: 0, doubled: 0, late: 0 },
            snapshot_every: 1000,
            detached: [WhenDetached::Revalidate, WhenDetached::Serve],
            disk: 0,
        }
    }

    #[must_use]
    pub fn random(seed: u64) -> Self {
        let mut r = Rng::with_seed(seed);
        let lease = LeaseTerms {
            duration: Duration::from_millis(*r.choice(&[1000, 2000, 5000]).unwrap_or(&2000)),
            drift_margin: Duration::from_millis(100),
        };
        // Two clocks may drift apart by the margin while a lease lasts, and by no more.
        let most = i64::try_from(100_000_000 / (2 * lease.duration.as_millis() + 2200)).unwrap_or(0);
        let spares = usize::from(r.u8(0..3) == 0);
        Self {
            controls: if r.u8(0..4) == 0 { 5 } else { 3 } + spares,
            spares,
            lease,
            drift_ppm: if r.bool() { most } else { 0 },
            receipts: if r.u8(0..3) == 0 { 4 } else { 1000 },
            selectors: if r.u8(0..3) == 0 { 3 } else { 1000 },
            weather: Weather { delay_ms: r.u64(2..40), lost: r.u64(0..50), doubled: r.u64(0..30), late: r.u64(0..30) },
            snapshot_every: if r.bool() { 8 } else { 1000 },
            detached: [when_detached(&mut r), when_detached(&mut r)],
            disk: *r.choice(&[0, 64 << 10, 16 << 20, 16 << 20]).unwrap_or(&0),
            ..Self::calm(seed)
        }
    }

    #[must_use]
    pub fn control(&self, n: usize) -> Host {
        Host(n % self.controls)
    }

    #[must_use]
    pub fn shield(&self, n: usize) -> Host {
        Host(self.controls + n % self.shields.max(1))
    }

    #[must_use]
    pub fn edge(&self, n: usize) -> Host {
        Host(self.controls + self.shields + n % self.edges)
    }

    /// Where the origin stands; clients stand behind it.
    #[must_use]
    pub fn origin(&self) -> Host {
        Host(self.controls + self.shields + self.edges)
    }

    #[must_use]
    pub fn outside(&self) -> Host {
        Host(self.origin().0 + 1)
    }
}

/// One request of a client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ask {
    pub site: usize,
    pub page: usize,
    pub method: http::Method,
    pub language: u64,
    pub range: Option<(u64, u64)>,
    pub if_none_match: bool,
    pub no_cache: bool,
    /// The request carries Authorization, so its response is not shared.
    pub authorized: bool,
    /// Milliseconds between two pieces that the client takes.
    pub slow: u64,
}

impl Ask {
    #[must_use]
    pub fn get(site: usize, page: usize) -> Self {
        Self {
            site,
            page,
            method: http::Method::GET,
            language: 0,
            range: None,
            if_none_match: false,
            no_cache: false,
            authorized: false,
            slow: 0,
        }
    }
}

impl Ask {
    #[must_use]
    pub fn path(&self) -> &'static str {
        PAGES[self.page].0
    }
}

#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    Get {
        edge: Host,
        worker: usize,
        ask: Ask,
    },
    /// As soon as the node is attached, if that is before `until` (nanoseconds).
    GetOnceAttached {
        edge: Host,
        ask: Ask,
        until: u64,
    },
    Purge {
        at: Host,
        orders: Vec<PurgeOrder>,
        wait_ms: u64,
    },
    /// Applies the site anew with another `when_detached`.
    Detached {
        at: Host,
        site: usize,
        mode: WhenDetached,
    },
    /// A linearizable read through the API.
    Read {
        at: Host,
    },
    Remove {
        at: Host,
        node: Host,
        dead: bool,
    },
    Change {
        site: usize,
        page: usize,
    },
    Origin(Health),
    OriginTakes {
        ms: u64,
    },
    /// The process ends; what it wrote stays.
    Kill(Host),
    /// The machine loses its power: what was not synced goes with it.
    Power(Host),
    Start(Host),
    /// A cache node starts without what it had saved and stored.
    StartBare(Host),
    /// A cache node starts without what it had saved.
    StartForgetful(Host),
    Suspend(Host),
    Resume(Host),
    /// One direction.
    Cut(Host, Host),
    Heal(Host, Host),
    HealAll,
    Transfer {
        to: Host,
    },
    /// A control node becomes a learner; the leader makes a voter of it again once it has caught up.
    Learner(Host),
    Disk(Host, Option<Fails>),
    /// An edge's or shield's disks take nothing any more, or take it again.
    SavesFail(Host, bool),
    Wall(Host, i64),
    /// The leader's state is saved.
    Backup,
    /// Every control node begins anew with what was saved.
    Restore,
    /// Its watch stream breaks.
    Reset(Host),
    /// Its watch stream gets so far behind that entries are dropped.
    Lag(Host),
}

impl Action {
    #[must_use]
    pub fn is_fault(&self) -> bool {
        !matches!(
            self,
            Self::Get { .. }
                | Self::GetOnceAttached { .. }
                | Self::OriginTakes { .. }
                | Self::Purge { .. }
                | Self::Detached { .. }
                | Self::Read { .. }
                | Self::Remove { .. }
                | Self::Change { .. }
                | Self::Start(_)
                | Self::Resume(_)
                | Self::Heal(..)
                | Self::HealAll
                | Self::Disk(_, None)
                | Self::SavesFail(_, false)
                | Self::Origin(Health::Well)
                | Self::Backup
        )
    }
}

#[derive(Clone, Debug)]
pub struct Plan {
    pub setup: Setup,
    /// In order of time (nanoseconds).
    pub actions: Vec<(u64, Action)>,
    /// When faults end.
    pub until: u64,
}

fn when_detached(r: &mut Rng) -> WhenDetached {
    *r.choice(&[WhenDetached::Serve, WhenDetached::Revalidate, WhenDetached::Revalidate, WhenDetached::Refuse])
        .unwrap_or(&WhenDetached::Serve)
}

/// A host that a fault strikes: mostly a cache node or the control plane alike.
fn victim(r: &mut Rng, s: &Setup) -> Host {
    Host(r.usize(0..s.origin().0))
}

fn order(r: &mut Rng) -> PurgeOrder {
    let site = r.usize(0..SITES.len());
    let named = SITES[site].parse().ok();
    let host = format!("{}.example", SITES[site]);
    let path = PAGES[r.usize(0..PAGES.len())].0.to_owned();
    let tag = (*r.choice(&TAGS).unwrap_or(&"red")).to_owned();
    let (site, selector) = match r.u8(0..12) {
        0..=4 => (None, Selector::Url { host, target: path }),
        5..=7 => (named, Selector::Tag { tag }),
        8 => (None, Selector::Prefix { host, path: "/img".into() }),
        9 => (None, Selector::Host { host }),
        10 => (named, Selector::Site),
        _ => (None, Selector::All),
    };
    PurgeOrder { site, selector, soft: r.u8(0..5) == 0 }
}

impl Plan {
    /// A run's plan, from its seed alone.
    #[must_use]
    pub fn random(seed: u64) -> Self {
        let setup = Setup::random(seed);
        let mut r = Rng::with_seed(seed ^ 0x5eed);
        let until = r.u64(20..40) * SECOND;
        let mut plan = Self { actions: Vec::new(), until, setup };
        plan.clients(&mut r);
        // Some runs are nothing but a drama: chaos hides what depends on one thing after the other.
        if r.u8(0..3) > 0 {
            plan.operators(&mut r);
            plan.faults(&mut r);
        }
        for _ in 0..r.u8(1..4) {
            plan.drama(&mut r);
        }
        plan.actions.sort_by_key(|(at, _)| *at);
        plan
    }

    fn add(&mut self, at: u64, action: Action) {
        if at < self.until {
            self.actions.push((at, action));
        }
    }

    fn clients(&mut self, r: &mut Rng) {
        // Few pages are asked for often: races need company.
        let few = r.usize(1..PAGES.len());
        let pause = r.u64(10..80) * MS;
        let mut at = 3 * SECOND;
        while at < self.until {
            at += r.u64(1..2 * pause);
            let page = if r.u8(0..6) == 0 { r.usize(0..PAGES.len()) } else { r.usize(0..few) };
            let mut ask = Ask::get(r.usize(0..SITES.len()), page);
            match r.u8(0..20) {
                0 => ask.method = http::Method::HEAD,
                1 => ask.range = Some((r.u64(0..30), r.u64(30..300))),
                2 => ask.if_none_match = true,
                3 => ask.no_cache = true,
                4 => ask.method = http::Method::POST,
                5 => ask.slow = r.u64(1..400),
                6 => ask.authorized = true,
                _ => {}
            }
            ask.language = r.u64(0..2);
            let edge = self.setup.edge(r.usize(0..8));
            let worker = r.usize(0..self.setup.workers);
            self.add(at, Action::Get { edge, worker, ask });
        }
    }

    fn operators(&mut self, r: &mut Rng) {
        let pause = r.u64(200..1500) * MS;
        let mut at = 4 * SECOND;
        while at < self.until {
            at += r.u64(1..2 * pause);
            let to = self.setup.control(r.usize(0..8));
            match r.u8(0..20) {
                0 | 1 => {
                    let site = r.usize(0..SITES.len());
                    self.add(at, Action::Detached { at: to, site, mode: when_detached(r) });
                }
                2 | 3 => self.add(at, Action::Read { at: to }),
                4 => self.add(at, Action::Transfer { to }),
                _ => {
                    let orders: Vec<_> = (0..if r.u8(0..5) == 0 { 3 } else { 1 }).map(|_| order(r)).collect();
                    for _ in 0..r.usize(0..3) {
                        self.add(at, Action::Change { site: r.usize(0..SITES.len()), page: r.usize(0..PAGES.len()) });
                    }
                    let wait_ms = *r.choice(&[0, 1000, 10_000, 10_000]).unwrap_or(&0);
                    self.add(at + 1, Action::Purge { at: to, orders, wait_ms });
                }
            }
        }
        if r.u8(0..3) == 0 {
            let (saved, restored) = (r.u64(6 * SECOND..self.until), r.u64(2..10) * SECOND);
            self.add(saved, Action::Backup);
            self.add(saved + restored, Action::Restore);
        }
        if r.u8(0..4) == 0 {
            let node = self.setup.edge(r.usize(0..8));
            let (at, to, dead) = (r.u64(8 * SECOND..self.until), self.setup.control(r.usize(0..8)), r.bool());
            if dead {
                self.add(at - 1, Action::Kill(node));
            }
            self.add(at, Action::Remove { at: to, node, dead });
            // Its supervisor starts it again.
            self.add(at + r.u64(1..8) * SECOND, Action::Start(node));
        }
    }

    fn faults(&mut self, r: &mut Rng) {
        let pause = r.u64(300..4000) * MS;
        let mut at = 5 * SECOND;
        while at < self.until {
            at += r.u64(1..2 * pause);
            let lasts = *r.choice(&[200, 700, 1500, 4000, 9000]).unwrap_or(&700) * MS;
            let host = victim(r, &self.setup);
            let is_control = host.0 < self.setup.controls;
            match r.u8(0..20) {
                0 | 1 => {
                    self.add(at, if r.bool() { Action::Kill(host) } else { Action::Power(host) });
                    let start = match r.u8(0..8) {
                        0 if !is_control => Action::StartBare(host),
                        1 if !is_control => Action::StartForgetful(host),
                        _ => Action::Start(host),
                    };
                    self.add(at + lasts, start);
                }
                2..=4 => {
                    self.add(at, Action::Suspend(host));
                    self.add(at + lasts, Action::Resume(host));
                }
                5..=8 => self.isolate(at, lasts, host, r.u8(0..3)),
                9 | 10 => self.bridge(r, at, lasts),
                11 if is_control => {
                    let fails = if r.bool() { Fails::Full } else { Fails::Crash { kept: r.bool() } };
                    self.add(at, Action::Disk(host, Some(fails)));
                    self.add(at + lasts, Action::Disk(host, None));
                    self.add(at + lasts, Action::Start(host));
                }
                11 => {
                    self.add(at, Action::SavesFail(host, true));
                    self.add(at + lasts, Action::SavesFail(host, false));
                }
                12 => self.add(at, Action::Wall(host, r.i64(-100_000..100_000))),
                13 => self.add(at, Action::Reset(host)),
                14 => self.add(at, Action::Lag(host)),
                15 => {
                    let health = *r.choice(&[Health::Down, Health::Failing, Health::BreakingOff]).unwrap_or(&Health::Down);
                    self.add(at, Action::Origin(health));
                    self.add(at + lasts, Action::Origin(Health::Well));
                }
                16 | 17 => {
                    self.add(at, Action::OriginTakes { ms: r.u64(100..3000) });
                    self.add(at + lasts, Action::OriginTakes { ms: 5 });
                }
                18 => {
                    // One that is no member yet, rather.
                    let control = if r.bool() { self.setup.controls - 1 } else { r.usize(0..8) };
                    self.add(at, Action::Learner(self.setup.control(control)));
                }
                _ => {
                    let other = victim(r, &self.setup);
                    self.add(at, Action::Cut(host, other));
                    self.add(at + lasts, Action::Heal(host, other));
                }
            }
        }
    }

    /// What rarely happens by chance alone.
    fn drama(&mut self, r: &mut Rng) {
        // Some take their time, and all of them must be over before the end.
        let at = if r.bool() { r.u64(4 * SECOND..6 * SECOND) } else { r.u64(4 * SECOND..self.until) };
        match r.u8(0..15) {
            10 => self.seconds_in_a_row(r, at),
            8 => self.failing_while_away(r, at),
            7 => self.forgotten_purge(r, at),
            5 => self.lagging_shields(r, at),
            6 => self.rush(r, at),
            3 => self.restored_meanwhile(r, at, true),
            4 => self.restored_meanwhile(r, at, false),
            0 => self.two_leaders(r, at),
            1 | 9 => self.lagging_friend(r, at),
            2 => self.forgotten_rules(r, at),
            _ => self.alone(r, at),
        }
    }

    /// Control nodes apart, `one` from the others.
    fn part(&mut self, at: u64, lasts: u64, one: Host) {
        for other in (0..self.setup.controls).map(Host).filter(|o| *o != one) {
            for (a, b) in [(one, other), (other, one)] {
                self.add(at, Action::Cut(a, b));
                self.add(at + lasts, Action::Heal(a, b));
            }
        }
    }

    /// A node reaches no control node but `only`.
    fn leave_only(&mut self, at: u64, lasts: u64, node: Host, only: Option<Host>) {
        for control in (0..self.setup.controls).map(Host).filter(|c| Some(*c) != only) {
            for (a, b) in [(node, control), (control, node)] {
                self.add(at, Action::Cut(a, b));
                self.add(at + lasts, Action::Heal(a, b));
            }
        }
    }

    /// Nobody asks a node for anything meanwhile.
    fn quiet(&mut self, node: Host, meanwhile: std::ops::Range<u64>) {
        self.actions.retain(|(at, action)| !meanwhile.contains(at) || !matches!(action, Action::Get { edge, .. } if *edge == node));
    }

    fn order_of(site: usize, page: usize) -> Vec<PurgeOrder> {
        let (host, target) = (format!("{}.example", SITES[site]), PAGES[page].0.to_owned());
        vec![PurgeOrder { site: None, selector: Selector::Url { host, target }, soft: false }]
    }

    /// A control node is cut off from the others, perhaps the leader; it is asked, and they are.
    fn two_leaders(&mut self, r: &mut Rng, at: u64) {
        let one = self.setup.control(r.usize(0..8));
        self.add(at.saturating_sub(SECOND), Action::Transfer { to: one });
        self.part(at, 3 * SECOND, one);
        let (page, site) = (r.usize(0..PAGES.len()), r.usize(0..SITES.len()));
        let mut then = at;
        while then < at + 3 * SECOND {
            then += r.u64(5..40) * MS;
            self.add(then, Action::Read { at: one });
            let other = self.setup.control(one.0 + r.usize(1..self.setup.controls));
            self.add(then + 1, Action::Purge { at: other, orders: Self::order_of(site, page), wait_ms: 0 });
        }
    }

    /// A node's one control node comes back to the others after a purge, and its watch stream lags.
    fn lagging_friend(&mut self, r: &mut Rng, at: u64) {
        let s = self.setup.clone();
        let (edge, friend, other) = (s.edge(r.usize(0..8)), s.control(r.usize(0..8)), r.usize(1..s.controls));
        let (site, page) = (r.usize(0..SITES.len()), r.usize(0..3));
        self.add(at - SECOND, Action::Detached { at: friend, site, mode: WhenDetached::Revalidate });
        self.add(at - SECOND, Action::Get { edge, worker: 0, ask: Ask::get(site, page) });
        self.leave_only(at, 20 * SECOND, edge, Some(friend));
        let parted = at + 7 * SECOND;
        self.part(parted, 9 * SECOND, friend);
        self.add(parted - 1, Action::Get { edge, worker: 0, ask: Ask::get(site, page) });
        let purge = Action::Purge { at: s.control(friend.0 + other), orders: Self::order_of(site, page), wait_ms: 10_000 };
        self.add(parted + 3 * SECOND, purge);
        let mut then = parted + 9 * SECOND;
        // Before it is attached it would ask the origin, and learn what is new.
        self.quiet(edge, parted..then + 5 * SECOND);
        self.add(then, Action::GetOnceAttached { edge, ask: Ask::get(site, page), until: then + 5 * SECOND });
        while then < parted + 11 * SECOND {
            then += r.u64(2..20) * MS;
            self.add(then, Action::Lag(edge));
        }
    }

    /// A node acknowledges a purge, is killed, and starts without the control plane, while the shields have not heard of it.
    fn forgotten_purge(&mut self, r: &mut Rng, at: u64) {
        let s = self.setup.clone();
        let (edge, other, to) = (s.edge(r.usize(0..8)), s.edge(r.usize(0..8)), s.control(r.usize(0..8)));
        let (site, page) = (r.usize(0..SITES.len()), r.usize(0..2));
        self.add(at - SECOND, Action::Detached { at: to, site, mode: WhenDetached::Serve });
        self.add(at - 500 * MS, Action::Get { edge: other, worker: 0, ask: Ask::get(site, page) });
        for shield in (0..s.shields).map(|n| s.shield(n)) {
            for control in (0..s.controls).map(Host) {
                self.add(at, Action::Cut(control, shield));
                self.add(at + 800 * MS, Action::Heal(control, shield));
            }
        }
        self.add(at + 10 * MS, Action::Purge { at: to, orders: Self::order_of(site, page), wait_ms: 10_000 });
        let struck = at + r.u64(100..500) * MS;
        self.leave_only(struck, 8 * SECOND, edge, None);
        self.add(struck, Action::Kill(edge));
        self.add(struck + MS, Action::Start(edge));
        let mut then = struck;
        while then < at + 4 * SECOND {
            then += r.u64(10..100) * MS;
            self.add(then, Action::Get { edge, worker: r.usize(0..s.workers), ask: Ask::get(site, page) });
        }
    }

    /// A node is cut off, what it holds is purged, and the origin fails where stale answers might help.
    fn failing_while_away(&mut self, r: &mut Rng, at: u64) {
        let s = self.setup.clone();
        let (edge, to, site) = (s.edge(r.usize(0..8)), s.control(r.usize(0..8)), r.usize(0..SITES.len()));
        let stands_in = |(_, says, _): &(&str, &str, usize)| says.contains("stale-if-error");
        let page = PAGES.iter().position(stands_in).unwrap_or(0);
        self.add(at - SECOND, Action::Detached { at: to, site, mode: WhenDetached::Revalidate });
        self.add(at - 300 * MS, Action::Get { edge, worker: 0, ask: Ask::get(site, page) });
        self.leave_only(at, 14 * SECOND, edge, None);
        // No lease lasts longer.
        let alone = at + 6 * SECOND;
        self.add(alone, Action::Purge { at: to, orders: Self::order_of(site, page), wait_ms: 10_000 });
        self.add(alone, Action::Origin(if r.bool() { Health::Failing } else { Health::Down }));
        self.add(at + 13 * SECOND, Action::Origin(Health::Well));
        let mut then = alone;
        while then < at + 13 * SECOND {
            then += r.u64(100..600) * MS;
            self.add(then, Action::Get { edge, worker: r.usize(0..s.workers), ask: Ask::get(site, page) });
        }
    }

    /// A node cannot write down what its site's rules are now, loses the control plane, and starts anew.
    fn forgotten_rules(&mut self, r: &mut Rng, at: u64) {
        let s = self.setup.clone();
        let (edge, to, site, page) = (s.edge(r.usize(0..8)), s.control(r.usize(0..8)), r.usize(0..SITES.len()), r.usize(0..3));
        self.add(at - 1500 * MS, Action::Detached { at: to, site, mode: WhenDetached::Serve });
        self.add(at - 700 * MS, Action::SavesFail(edge, true));
        self.add(at - 600 * MS, Action::Detached { at: to, site, mode: WhenDetached::Revalidate });
        self.leave_only(at + 500 * MS, 15 * SECOND, edge, None);
        self.add(at + 600 * MS, Action::Kill(edge));
        self.add(at + 700 * MS, Action::SavesFail(edge, false));
        self.add(at + 700 * MS, Action::Start(edge));
        let mut then = at + 6 * SECOND;
        self.add(then + r.u64(500..3000) * MS, Action::Purge { at: to, orders: Self::order_of(site, page), wait_ms: 10_000 });
        while then < at + 12 * SECOND {
            then += r.u64(20..200) * MS;
            self.add(then, Action::Get { edge, worker: 0, ask: Ask::get(site, page) });
        }
    }

    /// The network is restored while a node is cut off, and asked, and its site's rules were others before. `shields`: they
    /// are what is cut off, and their edges ask them in terms of the new log.
    fn restored_meanwhile(&mut self, r: &mut Rng, at: u64, shields: bool) {
        let s = self.setup.clone();
        let (edge, to, site, page) = (s.edge(r.usize(0..8)), s.control(r.usize(0..8)), r.usize(0..SITES.len()), r.usize(0..3));
        self.add(at, Action::Detached { at: to, site, mode: if shields { WhenDetached::Serve } else { WhenDetached::Revalidate } });
        self.add(at + 400 * MS, Action::Backup);
        self.add(at + 500 * MS, Action::Detached { at: to, site, mode: WhenDetached::Serve });
        let cut = if shields { (0..s.shields).map(|n| s.shield(n)).collect() } else { vec![edge] };
        for node in cut {
            self.leave_only(at + 1500 * MS, if shields { 7 * SECOND } else { 15 * SECOND }, node, None);
        }
        self.add(at + 1400 * MS, Action::Get { edge, worker: 0, ask: Ask::get(site, page) });
        self.add(at + 1600 * MS, Action::Restore);
        let mut then = at + 6 * SECOND;
        self.add(then + r.u64(0..2000) * MS, Action::Purge { at: to, orders: Self::order_of(site, page), wait_ms: 10_000 });
        while then < at + 12 * SECOND {
            then += r.u64(20..200) * MS;
            self.add(then, Action::Get { edge, worker: r.usize(0..s.workers), ask: Ask::get(site, page) });
        }
    }

    /// Shields hear of purges late, and are asked by edges that know them and by one that is cut off.
    fn lagging_shields(&mut self, r: &mut Rng, at: u64) {
        let s = self.setup.clone();
        let (edge, other, to) = (s.edge(r.usize(0..8)), s.edge(r.usize(0..8)), s.control(r.usize(0..8)));
        let (site, page) = (r.usize(0..SITES.len()), r.usize(0..3));
        let mode = if r.bool() { WhenDetached::Revalidate } else { WhenDetached::Serve };
        self.add(at, Action::Detached { at: to, site, mode });
        for n in 0..SITES.len() {
            self.add(at + n as u64, Action::Get { edge: other, worker: n, ask: Ask::get(site, page) });
        }
        self.leave_only(at + SECOND, 15 * SECOND, edge, None);
        for round in 0..3 {
            let then = at + (7 + 3 * round) * SECOND;
            for shield in (0..s.shields).map(|n| s.shield(n)) {
                for control in (0..s.controls).map(Host) {
                    self.add(then, Action::Cut(control, shield));
                    self.add(then + 700 * MS, Action::Heal(control, shield));
                }
            }
            let mut orders = Self::order_of(site, page);
            if r.bool() {
                let order =
                    |tag: &str| PurgeOrder { site: SITES[site].parse().ok(), selector: Selector::Tag { tag: tag.into() }, soft: false };
                orders = TAGS.into_iter().map(order).collect();
            }
            // Requests of one client alone leave the shields' copies in place.
            let authorized = r.bool();
            // Not to be waited for, it is said to be true at the edges alone.
            let wait_ms = if r.bool() { 150 } else { 10_000 };
            self.add(then + 10 * MS, Action::Purge { at: to, orders, wait_ms });
            let mut asked = then + r.u64(100..650) * MS;
            while asked < then + 2500 * MS {
                for edge in [edge, other, s.edge(r.usize(0..8))] {
                    let ask = Ask { authorized, ..Ask::get(site, page) };
                    self.add(asked, Action::Get { edge, worker: r.usize(0..s.workers), ask });
                }
                asked += r.u64(5..60) * MS;
            }
        }
    }

    /// Both tiers are cut off and have to revalidate, of a slow origin: what one asked for, another might take for its own.
    fn seconds_in_a_row(&mut self, r: &mut Rng, at: u64) {
        let s = self.setup.clone();
        let (edge, to) = (r.usize(0..8), s.control(r.usize(0..8)));
        let (site, page) = (r.usize(0..SITES.len()), r.usize(0..2));
        self.add(at - SECOND, Action::Detached { at: to, site, mode: WhenDetached::Revalidate });
        let edges = [s.edge(edge), s.edge(edge + 1)];
        for node in (0..s.shields).map(|n| s.shield(n)).chain(edges) {
            self.leave_only(at, 14 * SECOND, node, None);
        }
        // No lease lasts longer.
        let alone = at + 6 * SECOND;
        self.add(alone, Action::OriginTakes { ms: r.u64(400..1200) });
        self.add(at + 13 * SECOND, Action::OriginTakes { ms: 5 });
        for n in 0..3 {
            let purged = alone + n * 2 * SECOND + r.u64(0..SECOND);
            self.add(purged, Action::Purge { at: to, orders: Self::order_of(site, page), wait_ms: 10_000 });
        }
        let mut then = alone;
        while then < at + 13 * SECOND {
            then += r.u64(20..200) * MS;
            let edge = edges[r.usize(0..edges.len())];
            self.add(then, Action::Get { edge, worker: r.usize(0..s.workers), ask: Ask::get(site, page) });
        }
    }

    /// Purges one after the other, and requests at all workers at once.
    fn rush(&mut self, r: &mut Rng, at: u64) {
        let s = self.setup.clone();
        let (edge, to, site, page) = (s.edge(r.usize(0..8)), s.control(r.usize(0..8)), r.usize(0..SITES.len()), r.usize(0..2));
        let mut then = at;
        if r.bool() {
            self.add(at, Action::OriginTakes { ms: r.u64(100..1000) });
            self.add(at + 5 * SECOND, Action::OriginTakes { ms: 5 });
        }
        while then < at + 5 * SECOND {
            self.add(then, Action::Purge { at: to, orders: Self::order_of(site, page), wait_ms: 10_000 });
            for _ in 0..20 {
                then += r.u64(1..12) * MS;
                self.add(then, Action::Get { edge, worker: r.usize(0..s.workers), ask: Ask::get(site, page) });
            }
        }
    }

    /// A cache node loses the control plane while its pages are asked for, purged and fetched slowly, and its site is
    /// changed or itself removed meanwhile.
    fn alone(&mut self, r: &mut Rng, at: u64) {
        let s = self.setup.clone();
        let lasts = r.u64(2..12) * SECOND;
        let node = if r.u8(0..4) == 0 { s.shield(r.usize(0..8)) } else { s.edge(r.usize(0..8)) };
        let (site, page) = (r.usize(0..SITES.len()), r.usize(0..4));
        let to = s.control(r.usize(0..8));
        // One control node may stay in its reach, itself without the others.
        let friend = r.bool().then(|| s.control(r.usize(0..8)));
        self.leave_only(at, lasts, node, friend);
        if let Some(friend) = friend {
            self.part(at, lasts, friend);
        }
        if r.bool() {
            self.add(at, Action::OriginTakes { ms: r.u64(200..3000) });
            self.add(at + lasts, Action::OriginTakes { ms: 5 });
        }
        match r.u8(0..4) {
            0 => self.add(at + r.u64(0..lasts), Action::Detached { at: to, site, mode: when_detached(r) }),
            1 => self.add(at + r.u64(0..lasts), Action::Remove { at: to, node, dead: false }),
            _ => {}
        }
        let edge = if node.0 < s.controls + s.shields { s.edge(r.usize(0..8)) } else { node };
        let mut then = at;
        while then < at + lasts + 2 * SECOND {
            then += r.u64(5..120) * MS;
            self.add(then, Action::Get { edge, worker: r.usize(0..s.workers), ask: Ask::get(site, page) });
            if r.u8(0..12) == 0 {
                self.add(then, Action::Purge { at: to, orders: Self::order_of(site, page), wait_ms: 10_000 });
                self.add(then + 1, Action::Read { at: s.control(r.usize(0..8)) });
            }
        }
    }

    /// From all control nodes or from everybody; 1 and 2: one direction only.
    fn isolate(&mut self, at: u64, lasts: u64, host: Host, way: u8) {
        for other in (0..self.setup.origin().0).map(Host).filter(|o| *o != host) {
            let is_control = other.0 < self.setup.controls;
            if !is_control && host.0 >= self.setup.controls {
                continue;
            }
            for (n, (a, b)) in [(host, other), (other, host)].into_iter().enumerate() {
                if usize::from(way) != n + 1 {
                    self.add(at, Action::Cut(a, b));
                    self.add(at + lasts, Action::Heal(a, b));
                }
            }
        }
    }

    /// Two halves that only one host still sees both of.
    fn bridge(&mut self, r: &mut Rng, at: u64, lasts: u64) {
        let all = self.setup.origin().0;
        let bridge = Host(r.usize(0..all));
        let left: Vec<bool> = (0..all).map(|_| r.bool()).collect();
        for a in (0..all).map(Host).filter(|h| *h != bridge) {
            for b in (0..all).map(Host).filter(|h| *h != bridge && left[h.0] != left[a.0]) {
                self.add(at, Action::Cut(a, b));
                self.add(at + lasts, Action::Heal(a, b));
            }
        }
    }
}
