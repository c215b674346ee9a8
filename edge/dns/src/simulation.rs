//! Steering as a whole, in virtual time: 200 edges in 12 regions, what they report, what the nodes that answer for the zone are told of
//! it and when, what resolvers keep, and failures. What decides is the code that ships: [`Current`], `loads`, `steer`.

use crate::current::Current;
use crate::networks;
use crate::settings::ZoneSettings;
use crate::steer::{self, Client};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;
use tidegate_control_types::{BootTime, EdgeStanding, Incarnation, NodeState, Revision, Role, SiteState, WallTime, site_file};
use tidegate_node::Network;

const EDGES: usize = 200;
const REGIONS: usize = 12;
const SITES: usize = 40;
/// Networks of clients near each region, each behind a resolver of its own.
const NETWORKS: usize = 16;
const LEASE: u64 = 5;
/// How often an edge asks for its lease, and the leader tells of it.
const ASKS_EVERY: u64 = 2;
const REPORTS_EVERY: u64 = 5;
const TTL: u64 = 20;
const FAILURES: usize = 10;
/// Until loads have evened out.
const SETTLED: u64 = 400;

struct Numbers(u64);

impl Numbers {
    fn below(&mut self, most: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % most
    }
}

struct Edge {
    region: usize,
    cores: u32,
    alive: bool,
    /// As the leader counts it.
    lease_until: u64,
    reported: u16,
    /// Cores that its clients keep busy.
    work: f64,
}

struct World {
    now: u64,
    numbers: Numbers,
    edges: Vec<Edge>,
    current: Arc<Current>,
    /// By region, site and network: the edges that its resolver was told, and until when it keeps them.
    kept: Vec<(Vec<usize>, u64)>,
    /// Cores that one network's clients of a site keep busy.
    demand: Vec<f64>,
    changes: u64,
    asked: u64,
}

fn name(edge: usize) -> String {
    format!("e{edge:03}")
}

impl World {
    fn new(seed: u64, load: f64) -> Self {
        let mut numbers = Numbers(seed);
        let edges: Vec<Edge> = (0..EDGES)
            .map(|n| Edge {
                // Small regions and large ones: 6 to 29 edges.
                region: (0..REGIONS).find(|r| n < (r + 1) * 6 + r * (r + 1)).unwrap_or(REGIONS - 1),
                cores: [4, 8, 8, 16][usize::try_from(numbers.below(4)).unwrap()],
                alive: true,
                lease_until: LEASE,
                reported: 0,
                work: 0.0,
            })
            .collect();
        let zone = ZoneSettings { name: "cdn.test".parse().unwrap(), ttl: Duration::from_secs(TTL), caa: Vec::new(), https_records: false };
        let current = Current::new(zone, Arc::default());
        current.network(&network(&edges));
        // Zipf: the most popular site is a quarter of everything; each region's demand goes with what its edges can do.
        let popular: Vec<f64> = (1..=SITES).map(|rank| 1.0 / f64::from(u32::try_from(rank).unwrap())).collect();
        let all: f64 = popular.iter().sum();
        let mut demand = Vec::new();
        for region in 0..REGIONS {
            let cores: u32 = edges.iter().filter(|e| e.region == region).map(|e| e.cores).sum();
            for of_site in &popular {
                for _ in 0..NETWORKS {
                    demand.push(f64::from(cores) * load * of_site / all / f64::from(u32::try_from(NETWORKS).unwrap()));
                }
            }
        }
        // Resolvers ask at different times.
        let kept = (0..demand.len()).map(|_| (Vec::new(), numbers.below(TTL))).collect();
        Self { now: 0, numbers, edges, current, kept, demand, changes: 0, asked: 0 }
    }

    fn step(&mut self) {
        for (n, e) in self.edges.iter_mut().enumerate().filter(|(_, e)| e.alive) {
            let n = n as u64;
            if (self.now + n).is_multiple_of(ASKS_EVERY) {
                e.lease_until = self.now + LEASE;
            }
            if (self.now + n).is_multiple_of(REPORTS_EVERY) {
                let busy = (e.work / f64::from(e.cores) * 1000.0).min(1000.0);
                #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
                let busy = busy as u16;
                e.reported = busy;
            }
        }
        if self.now.is_multiple_of(ASKS_EVERY) {
            let standing = |(n, e): (usize, &Edge)| EdgeStanding {
                node: name(n).parse().unwrap(),
                attached: e.lease_until > self.now,
                applied: 9,
                load_permille: e.reported,
                capacity: e.cores,
            };
            let all = self.edges.iter().enumerate().map(standing).collect();
            self.current.standings(all, BootTime::default() + Duration::from_secs(self.now));
        }
        let table = self.current.table().unwrap();
        let regions: Vec<Vec<String>> = (0..REGIONS).map(|r| vec![format!("r{r}"), format!("r{}", (r + 1) % REGIONS)]).collect();
        self.edges.iter_mut().for_each(|e| e.work = 0.0);
        for (at, (edges, until)) in self.kept.iter_mut().enumerate() {
            if *until <= self.now {
                let (region, site, network) = (at / NETWORKS / SITES, at / NETWORKS % SITES, at % NETWORKS);
                let address = IpAddr::V4(Ipv4Addr::from(u32::try_from((region * NETWORKS + network) << 12).unwrap()));
                let client = Client { near: &regions[region], network: networks::network(address, 0).0 };
                let chosen = steer::choose(&table, &format!("s{site}"), client, |_| true);
                let new: Vec<usize> = chosen.edges.iter().map(|e| e.name[1..].parse().unwrap()).collect();
                self.asked += 1;
                self.changes += u64::from(!edges.is_empty() && *edges != new);
                (*edges, *until) = (new, self.now + TTL);
            }
            // Its clients take either; one that does not answer is passed over.
            let alive: Vec<usize> = edges.iter().copied().filter(|e| self.edges[*e].alive).collect();
            for e in &alive {
                self.edges[*e].work += self.demand[at] / f64::from(u32::try_from(alive.len()).unwrap());
            }
        }
        self.now += 1;
    }

    fn run(&mut self, seconds: u64) {
        (0..seconds).for_each(|_| self.step());
    }

    fn named(&self, edge: usize) -> bool {
        self.kept.iter().any(|(edges, _)| edges.contains(&edge))
    }

    /// The busiest edge of each region beside the region's mean, and the share of edges that are over 95 % busy.
    fn evenness(&self) -> (f64, f64) {
        let busy = |e: &Edge| e.work / f64::from(e.cores);
        let mut worst: f64 = 0.0;
        for region in 0..REGIONS {
            let here = || self.edges.iter().filter(|e| e.region == region && e.alive);
            let (work, cores): (f64, f64) = here().fold((0.0, 0.0), |(w, c), e| (w + e.work, c + f64::from(e.cores)));
            worst = worst.max(here().map(busy).fold(0.0, f64::max) / (work / cores).max(1e-9));
        }
        let alive: Vec<&Edge> = self.edges.iter().filter(|e| e.alive).collect();
        #[allow(clippy::cast_precision_loss)]
        let full = alive.iter().filter(|e| busy(e) > 0.95).count() as f64 / alive.len() as f64;
        (worst, full)
    }
}

fn network(edges: &[Edge]) -> Arc<Network> {
    let node = |(n, e): (usize, &Edge)| NodeState {
        name: name(n).parse().unwrap(),
        role: Role::Edge,
        region: format!("r{}", e.region),
        address: None,
        advertise: vec![IpAddr::V4(Ipv4Addr::from(0x0a00_0000 + u32::try_from(n).unwrap()))],
        drained: false,
        since: 1,
    };
    let site = |n: usize| {
        let text = format!("name = \"s{n}\"\nhosts = [\"h{n}.example\"]\n[origin]\nservers = [{{ url = \"http://o.example\" }}]\n");
        let state =
            SiteState { spec: site_file::read("s.toml", &text).unwrap(), revision: 5, created: 3, keys_since: 3, unshown: Vec::new() };
        (state.spec.name.clone(), Arc::new(state))
    };
    let nodes: BTreeMap<_, _> = edges.iter().enumerate().map(node).map(|n| (n.name.clone(), n)).collect();
    Arc::new(Network {
        revision: Revision::new(Incarnation(7), 9),
        heard: WallTime(0),
        sites: Arc::new((0..SITES).map(site).collect()),
        certificates: Arc::default(),
        dns_keys: Arc::default(),
        ticket_keys: Arc::default(),
        issuers: Arc::default(),
        txt: Arc::default(),
        challenges: Arc::default(),
        nodes: Arc::new(nodes),
    })
}

#[test]
fn two_hundred_edges_in_twelve_regions() {
    let seed = 20_261_127;
    // Half of what all edges together can do, and a quarter of each region's is one site's.
    let mut world = World::new(seed, 0.5);
    world.run(TTL + 2);
    let (before, full_before) = world.evenness();
    world.run(SETTLED);
    let (even, full) = world.evenness();
    (world.changes, world.asked) = (0, 0);
    world.run(100);
    #[allow(clippy::cast_precision_loss)]
    let flapping = world.changes as f64 / world.asked as f64;

    // Edges die, one after another, and stay so.
    let (mut times, mut moved) = (Vec::new(), Vec::new());
    let mut dead = BTreeSet::new();
    for _ in 0..FAILURES {
        let victim = loop {
            let n = usize::try_from(world.numbers.below(EDGES as u64)).unwrap();
            // One that clients are sent to.
            if world.edges[n].alive && world.named(n) {
                break n;
            }
        };
        let before: Vec<Vec<usize>> = world.kept.iter().map(|(edges, _)| edges.clone()).collect();
        let with = before.iter().filter(|edges| edges.contains(&victim)).count();
        world.edges[victim].alive = false;
        dead.insert(victim);
        let died = world.now;
        while world.named(victim) {
            world.step();
            assert!(world.now - died <= LEASE + ASKS_EVERY + TTL, "edge {victim} is still named");
        }
        times.push(world.now - died);
        let others = before.iter().zip(&world.kept).filter(|(was, (is, _))| !was.contains(&victim) && *was != is).count();
        #[allow(clippy::cast_precision_loss)]
        moved.push(others as f64 / (before.len() - with) as f64);
        // At any point of the others' rhythm.
        let a_while = 10 + world.numbers.below(20);
        world.run(a_while);
    }
    assert!(world.kept.iter().all(|(edges, _)| edges.iter().all(|e| !dead.contains(e))), "no dead edge is named");
    // A whole region goes: its clients are sent to the next.
    let died = world.now;
    world.edges.iter_mut().filter(|e| e.region == 5).for_each(|e| e.alive = false);
    let of_region = |w: &World| w.kept.iter().filter(|(edges, _)| edges.iter().any(|e| w.edges[*e].region == 5)).count();
    while of_region(&world) > 0 {
        world.step();
        assert!(world.now - died <= LEASE + ASKS_EVERY + TTL);
    }
    let region_time = world.now - died;
    world.run(SETTLED);
    let (_, full_after) = world.evenness();
    times.sort_unstable();
    let mean_moved = moved.iter().sum::<f64>() / f64::from(u32::try_from(FAILURES).unwrap());
    println!(
        "seed {seed}: {EDGES} edges, {REGIONS} regions, {SITES} sites, {} answers kept by resolvers\n\
         busiest edge of a region beside its mean: {before:.2} before load counts, {even:.2} after; over 95 % busy: {:.1} % -> {:.1} % of edges\n\
         answers that change while nothing happens: {:.2} %\n\
         an edge dies: named nowhere after {} to {} s (median {}), lease {LEASE} s + TTL {TTL} s; others' clients moved meanwhile: {:.2} %\n\
         a region dies: named nowhere after {region_time} s; over 95 % busy {SETTLED} s later: {:.1} % of edges",
        world.kept.len(),
        full_before * 100.0,
        full * 100.0,
        flapping * 100.0,
        times[0],
        times[FAILURES - 1],
        times[FAILURES / 2],
        mean_moved * 100.0,
        full_after * 100.0,
    );
    assert!(full < full_before && even < before, "load that is reported evens itself out");
    assert!(flapping < 0.02, "{flapping}");
    assert!(mean_moved < 0.03, "{mean_moved}");
}
