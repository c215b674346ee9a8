//! Where a client would be sent for a site, in words: by the functions that answer queries.

use crate::networks::{self, Networks};
use crate::steer::{self, Chosen, Client, Readiness, Standing};
use crate::table::{Edge, Table};
use std::net::IpAddr;
use tidegate_control_types::explain::{Steered, SteeredEdge};

/// `own`: the regions that count for a client of no known network.
#[must_use]
pub fn explain(table: &Table, networks: &Networks, own: &[String], site: &str, client: IpAddr) -> Steered {
    let (found, scope) = networks.find(client);
    let (near, near_by) = if found.is_empty() {
        (own, "no network of the table holds the client: this node's own region counts".to_owned())
    } else {
        (found, "the table of networks".to_owned())
    };
    let (network, of_network) = networks::network(client, scope);
    let Chosen { edges: named, by_network } = steer::choose(table, site, Client { near, network }, |_| true);
    let scope = if by_network { of_network } else { scope };
    let any = |_: &IpAddr| true;
    let asked = table.sites.get(site).cloned().unwrap_or_default();
    let mut others: Vec<&Edge> = table.edges.iter().filter(|e| !named.iter().any(|n| n.name == e.name)).collect();
    let distance = |e: &Edge| near.iter().position(|r| *r == e.region).unwrap_or(near.len());
    others.sort_by(|a, b| {
        steer::readiness(b, &asked, any)
            .cmp(&steer::readiness(a, &asked, any))
            .then_with(|| (distance(a), &a.name).cmp(&(distance(b), &b.name)))
    });
    let why = match named.first().and_then(|e| Some((steer::readiness(e, &asked, any)?, e))) {
        None => "no edge may be sent clients: the answer is SERVFAIL".to_owned(),
        Some((Readiness::Found(Standing::Ready), e)) if near.contains(&e.region) => {
            format!(
                "the nearest region with an edge that is ready is {}; within it the site's own order of edges decides{}",
                e.region,
                if by_network { ", and which of its clients' networks the busy ones let in" } else { "" }
            )
        }
        Some((Readiness::Found(Standing::Ready), _)) => {
            "no region near the client has an edge that is ready: all others count alike".to_owned()
        }
        Some((readiness, _)) => format!("no edge is ready: the best there are is {}", standing(Some(readiness))),
    };
    let edge = |e: &Edge, named| SteeredEdge {
        name: e.name.clone(),
        region: e.region.clone(),
        addresses: e.named(any),
        named,
        standing: if asked.is_served_by(e) {
            standing(steer::readiness(e, &asked, any))
        } else {
            "does not serve the site's regions".into()
        },
        capacity: e.capacity,
        room: e.room,
    };
    let edges = named.iter().map(|e| edge(e, true)).chain(others.into_iter().map(|e| edge(e, false))).collect();
    Steered { name: format!("{site}.{}", table.zone), near: near.to_vec(), near_by, scope, why, edges }
}

fn standing(readiness: Option<Readiness>) -> String {
    let (lost, standing) = match readiness {
        None => return "drained".into(),
        Some(Readiness::Lost(standing)) => ("lost, ", standing),
        Some(Readiness::Found(standing)) => ("", standing),
    };
    let word = match standing {
        Standing::Ready => "ready",
        Standing::Behind => "behind",
        Standing::CutOff => "cut_off",
    };
    format!("{lost}{word}")
}
