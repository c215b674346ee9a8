//! Which records a name of the zone has.
//!
//! ```text
//! <zone>               SOA, NS, CAA
//! ns.<zone>            nothing of its own, unless a site is called so
//! <node>.ns.<zone>     A, AAAA: a node that answers for the zone
//! <site>.<zone>        A, AAAA, HTTPS: edges
//! any name             TXT, where somebody put some
//! ```

use crate::steer::{self, Chosen, Client};
use crate::table::{Edge, NameServer, Table};
use hickory_proto::rr::rdata::svcb::{Alpn, IpHint, SvcParamKey, SvcParamValue};
use hickory_proto::rr::rdata::{A, AAAA, CAA, HTTPS, NS, SOA, SVCB, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Of records that change when the network's own nodes do.
pub const STABLE_TTL: u32 = 3600;
/// Of TXT records: what proves something is soon gone, or soon something else.
const TXT_TTL: u32 = 30;
/// Of those that answer an authority: the next order has another answer, and an authority that kept the last one would not see it.
const CHALLENGE_TTL: u32 = 0;
/// RFC 1035 section 3.3.
const LONGEST_STRING: usize = 255;
/// Of negative answers (RFC 2308): a site that was just made is soon there for all.
pub const NEGATIVE_TTL: u32 = 5;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answered {
    /// The name has these records of the type.
    Records(Vec<RData>, u32),
    /// The name is there, but has none of the type.
    NoData,
    /// There is no such name, nor one below it.
    NxDomain,
    /// The zone is not ours.
    Refused,
    /// There is no edge at all to send anybody to: better asked again, or elsewhere.
    Failed,
}

/// What stands at a name.
enum At<'a> {
    Apex,
    Between,
    NameServer(&'a NameServer),
    Site(&'a str),
    Nothing,
}

/// What of a client had a say in an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DecidedBy {
    Nothing,
    /// The regions near it.
    Regions,
    /// These, and its network.
    Network,
}

/// Answers for one name and type.
#[must_use]
pub fn answer(table: &Table, name: &Name, kind: RecordType, client: Client<'_>) -> (Answered, DecidedBy) {
    if !table.zone.zone_of(name) {
        return (Answered::Refused, DecidedBy::Nothing);
    }
    let records = |list: Vec<RData>, ttl| if list.is_empty() { Answered::NoData } else { Answered::Records(list, ttl) };
    if let Some(values) = txt(table, name).filter(|_| kind == RecordType::TXT) {
        let record = |value: &String| RData::TXT(TXT::from_bytes(value.as_bytes().chunks(LONGEST_STRING).collect()));
        let challenge = name.iter().next().is_some_and(|label| label.eq_ignore_ascii_case(b"_acme-challenge"));
        let ttl = if challenge { CHALLENGE_TTL } else { TXT_TTL };
        return (Answered::Records(values.iter().map(record).collect(), ttl), DecidedBy::Nothing);
    }
    match at(table, name) {
        At::Nothing => (Answered::NxDomain, DecidedBy::Nothing),
        At::Between => (Answered::NoData, DecidedBy::Nothing),
        At::Apex => (records(apex(table, kind), STABLE_TTL), DecidedBy::Nothing),
        At::NameServer(server) => (records(addresses(&server.addresses, kind), STABLE_TTL), DecidedBy::Nothing),
        At::Site(site) => site_answer(table, site, kind, client),
    }
}

/// As names of TXT records are kept.
fn plain(name: &Name) -> String {
    name.to_ascii().trim_end_matches('.').to_ascii_lowercase()
}

fn txt<'a>(table: &'a Table, name: &Name) -> Option<&'a Vec<String>> {
    if table.txt.is_empty() { None } else { table.txt.get(&plain(name)) }
}

/// Whether a name of TXT records is it, or lies below it.
fn leads_to_txt(table: &Table, name: &Name) -> bool {
    if table.txt.is_empty() {
        return false;
    }
    let plain = plain(name);
    table.txt.keys().any(|n| n.strip_suffix(&plain).is_some_and(|rest| rest.is_empty() || rest.ends_with('.')))
}

fn at<'a>(table: &'a Table, name: &Name) -> At<'a> {
    match own(table, name) {
        At::Nothing if leads_to_txt(table, name) => At::Between,
        at => at,
    }
}

/// What the network itself has there.
fn own<'a>(table: &'a Table, name: &Name) -> At<'a> {
    let zone = usize::from(table.zone.num_labels());
    let labels: Vec<&[u8]> = name.iter().collect();
    let Some(own) = labels.len().checked_sub(zone).and_then(|n| labels.get(..n)) else { return At::Nothing };
    let is = |label: &[u8], text: &str| label.eq_ignore_ascii_case(text.as_bytes());
    let site = |label: &[u8]| {
        // Sites' names are in lower case.
        let name = String::from_utf8(label.to_ascii_lowercase()).ok()?;
        table.sites.get_key_value(&name).map(|(name, _)| name.as_str())
    };
    match own {
        [] => At::Apex,
        [label] => match site(label) {
            Some(site) => At::Site(site),
            None if is(label, "ns") && !table.name_servers.is_empty() => At::Between,
            None => At::Nothing,
        },
        [node, ns] if is(ns, "ns") => table.name_servers.iter().find(|s| is(node, &s.name)).map_or(At::Nothing, At::NameServer),
        _ => At::Nothing,
    }
}

/// The types that a name has records of, whoever asks; `None`: there is no such name.
#[must_use]
pub fn types(table: &Table, name: &Name) -> Option<Vec<RecordType>> {
    let of = |addresses: &[IpAddr]| {
        let has = |kind, v4: bool| addresses.iter().any(|ip| ip.is_ipv4() == v4).then_some(kind);
        [has(RecordType::A, true), has(RecordType::AAAA, false)]
    };
    let caa = (!table.caa.is_empty()).then_some(RecordType::CAA);
    let all: Vec<Option<RecordType>> = match at(table, name) {
        At::Nothing => return None,
        At::Between => Vec::new(),
        At::Apex => vec![Some(RecordType::SOA), (!table.name_servers.is_empty()).then_some(RecordType::NS), caa],
        At::NameServer(server) => of(&server.addresses).to_vec(),
        At::Site(_) => {
            let addresses: Vec<IpAddr> = table.edges.iter().flat_map(|e| e.addresses.iter().copied()).collect();
            of(&addresses).into_iter().chain([table.https.then_some(RecordType::HTTPS), caa]).collect()
        }
    };
    Some(all.into_iter().flatten().chain(txt(table, name).map(|_| RecordType::TXT)).collect())
}

/// The name of one of the zone's name servers.
fn name_of(table: &Table, server: &NameServer) -> Option<Name> {
    Name::from_labels([server.name.as_bytes(), b"ns"]).ok()?.append_domain(&table.zone).ok()
}

fn apex(table: &Table, kind: RecordType) -> Vec<RData> {
    match kind {
        RecordType::SOA => vec![RData::SOA(soa(table))],
        RecordType::NS => table.name_servers.iter().filter_map(|s| name_of(table, s)).map(|n| RData::NS(NS(n))).collect(),
        RecordType::CAA => caa(table),
        _ => Vec::new(),
    }
}

fn caa(table: &Table) -> Vec<RData> {
    let authority = |name: &String| Some(RData::CAA(CAA::new_issue(false, Some(Name::from_ascii(name).ok()?), Vec::new())));
    let mut all: Vec<RData> = table.caa.iter().filter_map(authority).collect();
    all.dedup();
    all
}

/// Also what a negative answer carries in its authority section.
#[must_use]
pub fn soa(table: &Table) -> SOA {
    let server = table.name_servers.first().and_then(|s| name_of(table, s)).unwrap_or_else(|| table.zone.clone());
    let hostmaster = table.zone.prepend_label("hostmaster").unwrap_or_else(|_| table.zone.clone());
    SOA::new(server, hostmaster, table.serial, 3600, 600, 604_800, NEGATIVE_TTL)
}

/// The SOA record of a negative answer, whose TTL says how long that counts (RFC 2308 section 3).
#[must_use]
pub fn negative(table: &Table) -> Record {
    Record::from_rdata(table.zone.clone(), NEGATIVE_TTL, RData::SOA(soa(table)))
}

fn addresses(all: &[IpAddr], kind: RecordType) -> Vec<RData> {
    // No set of records holds one twice (RFC 2181 section 5).
    let once = all.iter().enumerate().filter(|(n, ip)| !all.iter().take(*n).any(|other| other == *ip)).map(|(_, ip)| ip);
    let of_kind = once.filter_map(|ip| match (ip, kind) {
        (IpAddr::V4(v4), RecordType::A) => Some(RData::A(A(*v4))),
        (IpAddr::V6(v6), RecordType::AAAA) => Some(RData::AAAA(AAAA(*v6))),
        _ => None,
    });
    of_kind.collect()
}

fn site_answer(table: &Table, site: &str, kind: RecordType, client: Client<'_>) -> (Answered, DecidedBy) {
    let wanted = |ip: &IpAddr| match kind {
        RecordType::A => ip.is_ipv4(),
        RecordType::AAAA => ip.is_ipv6(),
        _ => true,
    };
    if kind == RecordType::CAA {
        let caa = caa(table);
        return (if caa.is_empty() { Answered::NoData } else { Answered::Records(caa, STABLE_TTL) }, DecidedBy::Nothing);
    }
    let leads_to_edges = match kind {
        RecordType::A | RecordType::AAAA => true,
        RecordType::HTTPS => table.https,
        _ => false,
    };
    if !leads_to_edges {
        return (Answered::NoData, DecidedBy::Nothing);
    }
    let Chosen { edges: chosen, by_network } = steer::choose(table, site, client, wanted);
    let decided_by = if by_network { DecidedBy::Network } else { DecidedBy::Regions };
    if chosen.is_empty() {
        // Of one family none need have an address; of both, that is an outage and no fact about the name.
        let any = !steer::choose(table, site, client, |_| true).edges.is_empty();
        return (if any { Answered::NoData } else { Answered::Failed }, decided_by);
    }
    let ttl = u32::try_from(table.ttl.as_secs()).unwrap_or(u32::MAX);
    let records = if kind == RecordType::HTTPS { vec![https(&chosen)] } else { addresses(&distinct(&chosen, wanted), kind) };
    (Answered::Records(records, ttl), decided_by)
}

/// Their addresses; edges behind one address are one to the world, and no set of records holds one twice (RFC 2181 section 5).
fn distinct(edges: &[&Edge], wanted: impl Fn(&IpAddr) -> bool) -> Vec<IpAddr> {
    let mut all = Vec::new();
    for ip in edges.iter().flat_map(|e| e.named(&wanted)) {
        if !all.contains(&ip) {
            all.push(ip);
        }
    }
    all
}

/// That the site is there over HTTPS, by which protocols, and at which addresses (RFC 9460): a client need not try http first.
fn https(edges: &[&Edge]) -> RData {
    let all: Vec<IpAddr> = [distinct(edges, IpAddr::is_ipv4), distinct(edges, IpAddr::is_ipv6)].concat();
    let v4: Vec<Ipv4Addr> = all.iter().filter_map(|ip| if let IpAddr::V4(ip) = ip { Some(*ip) } else { None }).collect();
    let v6: Vec<Ipv6Addr> = all.iter().filter_map(|ip| if let IpAddr::V6(ip) = ip { Some(*ip) } else { None }).collect();
    let mut parameters = vec![(SvcParamKey::Alpn, SvcParamValue::Alpn(Alpn(vec!["h3".into(), "h2".into()])))];
    if !v4.is_empty() {
        parameters.push((SvcParamKey::Ipv4Hint, SvcParamValue::Ipv4Hint(IpHint(v4.into_iter().map(A).collect()))));
    }
    if !v6.is_empty() {
        parameters.push((SvcParamKey::Ipv6Hint, SvcParamValue::Ipv6Hint(IpHint(v6.into_iter().map(AAAA).collect()))));
    }
    RData::HTTPS(HTTPS(SVCB::new(1, Name::root(), parameters)))
}
