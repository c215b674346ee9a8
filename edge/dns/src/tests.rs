use crate::respond::MOST_UDP;
use crate::steer::{self, Client, Readiness, Standing};
use crate::table::Site;
use crate::{Edge, NameServer, Networks, Responder, Table, Transport};
use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::opt::{ClientSubnet, EdnsCode, EdnsOption, NSIDPayload};
use hickory_proto::rr::{DNSClass, Name, RecordType};
use hickory_proto::serialize::binary::BinEncodable;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::Duration;

const ANYBODY: Client<'_> = Client { near: &[], network: 0 };

fn edge(name: &str, region: &str, addresses: &[&str]) -> Edge {
    Edge {
        name: name.into(),
        region: region.into(),
        addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
        attached: true,
        drained: false,
        lost: Vec::new(),
        applied: 10,
        capacity: 1.0,
        room: 1.0,
    }
}

fn table() -> Table {
    Table {
        zone: Name::from_ascii("cdn.example.net.").unwrap(),
        serial: 10,
        name_servers: vec![
            NameServer { name: "d1".into(), addresses: vec!["192.0.2.53".parse().unwrap(), "2001:db8::53".parse().unwrap()] },
            NameServer { name: "d2".into(), addresses: vec!["198.51.100.53".parse().unwrap()] },
        ],
        sites: [("shop", 7), ("blog", 9)].map(|(name, revision)| (name.into(), Site { revision, regions: Vec::new() })).into(),
        edges: vec![
            edge("fra-1", "eu", &["192.0.2.1", "2001:db8::1"]),
            edge("fra-2", "eu", &["192.0.2.2", "2001:db8::2"]),
            edge("nyc-1", "us", &["198.51.100.1"]),
        ],
        caa: vec!["ca.example.org".into()],
        txt: Arc::new([("_acme-challenge.shop.cdn.example.net".to_owned(), vec!["first".to_owned(), "second".to_owned()])].into()),
        https: true,
        ttl: Duration::from_secs(20),
    }
}

const NETWORKS: &str = "203.0.113.0/24,eu,us # a comment\n\n203.0.113.64/26,us,eu\n2001:db8:1::/48,us\n";
const SOMEWHERE: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));

fn query(name: &str, kind: RecordType) -> Message {
    let mut query = Message::new(7, MessageType::Query, OpCode::Query);
    query.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    query
}

fn with_option(mut query: Message, option: Option<EdnsOption>) -> Message {
    let mut edns = Edns::new();
    edns.set_max_payload(4096);
    if let Some(option) = option {
        edns.options_mut().insert(option);
    }
    query.set_edns(edns);
    query
}

fn ask_over(table: &Table, query: &Message, source: IpAddr, transport: Transport) -> Message {
    let networks: Networks = NETWORKS.parse().unwrap();
    let responder = Responder { table, networks: &networks, signer: None, cookies: None, now: 1_700_000_000, name: "d1", region: &[] };
    Message::from_vec(&responder.respond(&query.to_vec().unwrap(), source, transport).unwrap().bytes).unwrap()
}

fn ask(query: &Message) -> Message {
    ask_over(&table(), query, SOMEWHERE, Transport::Udp)
}

/// The records of an answer, as text in order.
fn records(message: &Message) -> Vec<String> {
    let mut all: Vec<_> = message.answers.iter().map(|r| format!("{} {} {}", r.name, r.ttl, r.data)).collect();
    all.sort();
    all
}

#[test]
fn names_have_the_records_that_the_zone_says() {
    for (name, kind, code, want) in [
        ("cdn.example.net.", RecordType::NS, ResponseCode::NoError, &["3600 d1.ns.cdn.example.net.", "3600 d2.ns.cdn.example.net."][..]),
        (
            "cdn.example.net.",
            RecordType::SOA,
            ResponseCode::NoError,
            &["3600 d1.ns.cdn.example.net. hostmaster.cdn.example.net. 10 3600 600 604800 5"],
        ),
        ("cdn.example.net.", RecordType::CAA, ResponseCode::NoError, &["3600 0 issue \"ca.example.org\""]),
        ("cdn.example.net.", RecordType::A, ResponseCode::NoError, &[]),
        ("d1.ns.cdn.example.net.", RecordType::A, ResponseCode::NoError, &["3600 192.0.2.53"]),
        ("d1.ns.cdn.example.net.", RecordType::AAAA, ResponseCode::NoError, &["3600 2001:db8::53"]),
        ("d2.ns.cdn.example.net.", RecordType::AAAA, ResponseCode::NoError, &[]),
        ("d3.ns.cdn.example.net.", RecordType::A, ResponseCode::NXDomain, &[]),
        ("ns.cdn.example.net.", RecordType::A, ResponseCode::NoError, &[]),
        ("shop.cdn.example.net.", RecordType::TXT, ResponseCode::NoError, &[]),
        ("shop.cdn.example.net.", RecordType::CAA, ResponseCode::NoError, &["3600 0 issue \"ca.example.org\""]),
        ("shop.cdn.example.net.", RecordType::ANY, ResponseCode::NoError, &["3600 RFC8482 "]),
        ("nowhere.cdn.example.net.", RecordType::A, ResponseCode::NXDomain, &[]),
        ("www.shop.cdn.example.net.", RecordType::A, ResponseCode::NXDomain, &[]),
        ("example.net.", RecordType::A, ResponseCode::Refused, &[]),
        ("cdn.example.org.", RecordType::SOA, ResponseCode::Refused, &[]),
    ] {
        let answer = ask(&query(name, kind));
        let want: Vec<_> = want.iter().map(|w| format!("{name} {w}")).collect();
        assert_eq!((answer.response_code, records(&answer)), (code, want), "{name} {kind}");
        assert_eq!(answer.authoritative, code != ResponseCode::Refused, "{name} {kind}");
        assert_eq!(answer.authorities.len(), usize::from(answer.answers.is_empty() && code != ResponseCode::Refused), "{name} {kind}");
        assert!(answer.authorities.iter().all(|r| r.record_type() == RecordType::SOA && r.ttl == 5));
    }
}

#[test]
fn a_client_is_sent_to_what_is_near_it() {
    let to = |client: &str| {
        records(&ask_over(&table(), &query("shop.cdn.example.net.", RecordType::A), client.parse().unwrap(), Transport::Udp))
    };
    let (eu, us) = (["192.0.2.1", "192.0.2.2"], ["198.51.100.1"]);
    let expect = |all: &[&str]| all.iter().map(|a| format!("shop.cdn.example.net. 20 {a}")).collect::<Vec<_>>();
    assert_eq!(to("203.0.113.9"), expect(&eu));
    assert_eq!(to("203.0.113.70"), expect(&us));
    assert_eq!(to("2001:db8:1::5"), expect(&us));
    assert_eq!(to("::ffff:203.0.113.9"), expect(&eu));
    // And over HTTPS records to the same.
    let https = ask_over(&table(), &query("shop.cdn.example.net.", RecordType::HTTPS), "203.0.113.70".parse().unwrap(), Transport::Udp);
    assert_eq!(records(&https), ["shop.cdn.example.net. 20 1 . alpn=h3,h2, ipv4hint=198.51.100.1,"]);
}

#[test]
fn edges_behind_one_address_are_named_once() {
    let mut t = table();
    t.edges[1].addresses = t.edges[0].addresses.clone();
    let to = |kind| records(&ask_over(&t, &query("shop.cdn.example.net.", kind), "203.0.113.9".parse().unwrap(), Transport::Udp));
    assert_eq!(to(RecordType::A), ["shop.cdn.example.net. 20 192.0.2.1"]);
    assert_eq!(to(RecordType::AAAA), ["shop.cdn.example.net. 20 2001:db8::1"]);
}

#[test]
fn whoever_is_in_no_network_is_taken_for_near_this_node() {
    let (t, networks) = (table(), NETWORKS.parse().unwrap());
    let region = ["us".to_owned()];
    let responder =
        Responder { table: &t, networks: &networks, signer: None, cookies: None, now: 1_700_000_000, name: "d1", region: &region };
    let asked = query("shop.cdn.example.net.", RecordType::A).to_vec().unwrap();
    let to = |source: &str| {
        let answer = responder.respond(&asked, source.parse().unwrap(), Transport::Udp).unwrap().bytes;
        records(&Message::from_vec(&answer).unwrap()).len()
    };
    assert_eq!((to("10.0.0.1"), to("203.0.113.9")), (1, 2));
}

#[test]
fn the_letters_case_of_the_question_comes_back() {
    let asked = query("ShOp.CDN.example.NET.", RecordType::AAAA);
    let answer = ask(&asked);
    assert!(answer.queries[0].name().eq_case(asked.queries[0].name()));
    assert!(!answer.answers.is_empty() && answer.answers.iter().all(|r| r.name.eq_case(asked.queries[0].name())));
}

#[test]
fn a_client_subnet_counts_and_comes_back_with_its_scope() {
    let subnet = |address: &str, source| EdnsOption::Subnet(ClientSubnet::new(address.parse().unwrap(), source, 0));
    let asked = |name: &str, option| {
        let answer = ask(&with_option(query(name, RecordType::A), Some(option)));
        let Some(EdnsOption::Subnet(said)) = answer.edns.clone().unwrap().option(EdnsCode::Subnet).cloned() else { panic!("{answer:?}") };
        (records(&answer).len(), said.source_prefix(), said.scope_prefix())
    };
    let shop = "shop.cdn.example.net.";
    // Within the /24 another /26 says something else, which parts from this address at the 26th bit.
    assert_eq!(asked(shop, subnet("203.0.113.0", 24)), (2, 24, 26));
    assert_eq!(asked(shop, subnet("203.0.113.64", 26)), (1, 26, 26));
    assert_eq!(asked(shop, subnet("203.0.113.128", 25)), (2, 25, 25));
    assert_eq!(asked("d1.ns.cdn.example.net.", subnet("203.0.113.0", 24)), (1, 24, 0));
    assert_eq!(asked(shop, subnet("0.0.0.0", 0)), (2, 0, 0));
    let scoped = EdnsOption::Subnet(ClientSubnet::new(SOMEWHERE, 24, 24));
    assert_eq!(ask(&with_option(query(shop, RecordType::A), Some(scoped))).response_code, ResponseCode::FormErr);
}

#[test]
fn edns_is_answered_as_it_is_asked() {
    let plain = ask(&query("shop.cdn.example.net.", RecordType::A));
    assert!(plain.edns.is_none());
    let with = ask(&with_option(query("shop.cdn.example.net.", RecordType::A), None)).edns.unwrap();
    assert_eq!((with.max_payload(), with.version(), with.option(EdnsCode::NSID)), (MOST_UDP, 0, None));
    let nsid = EdnsOption::NSID(NSIDPayload::new(Vec::new()).unwrap());
    let named = ask(&with_option(query("shop.cdn.example.net.", RecordType::A), Some(nsid))).edns.unwrap();
    assert_eq!(named.option(EdnsCode::NSID), Some(&EdnsOption::NSID(NSIDPayload::new(b"d1".to_vec()).unwrap())));
    let mut newer = with_option(query("shop.cdn.example.net.", RecordType::A), None);
    newer.edns.as_mut().unwrap().set_version(1);
    let refused = ask(&newer);
    // 16, which means BADSIG elsewhere.
    assert_eq!((u16::from(refused.response_code), refused.answers.len()), (16, 0));
}

#[test]
fn what_is_no_question_for_us_is_said_or_ignored() {
    let mut update = query("shop.cdn.example.net.", RecordType::A);
    update.metadata.op_code = OpCode::Notify;
    assert_eq!(ask(&update).response_code, ResponseCode::NotImp);
    let mut chaos = query("shop.cdn.example.net.", RecordType::TXT);
    chaos.queries[0].query_class = DNSClass::CH;
    assert_eq!(ask(&chaos).response_code, ResponseCode::Refused);
    let mut two = query("shop.cdn.example.net.", RecordType::A);
    two.add_query(two.queries[0].clone());
    assert_eq!(ask(&two).response_code, ResponseCode::FormErr);
    assert_eq!(ask(&query("cdn.example.net.", RecordType::AXFR)).response_code, ResponseCode::Refused);
    let networks = Networks::default();
    let (table, bytes) = (table(), query("shop.cdn.example.net.", RecordType::A).to_vec().unwrap());
    let respond =
        |packet: &[u8]| {
            Responder { table: &table, networks: &networks, signer: None, cookies: None, now: 1_700_000_000, name: "d1", region: &[] }
                .respond(packet, SOMEWHERE, Transport::Udp)
        };
    let mut response = bytes.clone();
    response[2] |= 0x80;
    assert_eq!(respond(&response), None, "two servers would go on for ever");
    assert_eq!(respond(&bytes[..11]), None);
    let torn = Message::from_vec(&respond(&bytes[..20]).unwrap().bytes).unwrap();
    assert_eq!((torn.id, torn.response_code), (7, ResponseCode::FormErr));
}

#[test]
fn what_does_not_fit_is_cut_short_over_udp_alone() {
    let mut table = table();
    table.caa = (0..80).map(|n| format!("authority-number-{n}.example.org")).collect();
    let asked = with_option(query("cdn.example.net.", RecordType::CAA), None);
    let udp = ask_over(&table, &asked, SOMEWHERE, Transport::Udp);
    assert!(udp.truncation && udp.answers.is_empty() && udp.edns.is_some());
    let tcp = ask_over(&table, &asked, SOMEWHERE, Transport::Tcp);
    assert!(!tcp.truncation && tcp.answers.len() == 80);
}

#[test]
fn an_answer_that_is_held_back_says_where_there_is_more() {
    let (table, networks) = (table(), Networks::default());
    let responder =
        Responder { table: &table, networks: &networks, signer: None, cookies: None, now: 1_700_000_000, name: "d1", region: &[] };
    let answer = |name, kind| {
        let query = with_option(query(name, kind), None).to_vec().unwrap();
        responder.respond(&query, SOMEWHERE, Transport::Udp).unwrap().bytes
    };
    let whole = answer("shop.cdn.example.net.", RecordType::A);
    let short = Message::from_vec(&Responder::cut_short(&whole)).unwrap();
    assert!(short.truncation && short.answers.is_empty() && short.edns.is_some() && short.id == 7);
    assert_eq!(short.queries, Message::from_vec(&whole).unwrap().queries);
    // Alike are those of one question, and all that say that there is nothing.
    assert_eq!(
        Responder::alike(&answer("shop.cdn.example.net.", RecordType::MX)),
        Responder::alike(&answer("blog.cdn.example.net.", RecordType::TXT))
    );
    assert_eq!(Responder::alike(&whole), Responder::alike(&answer("SHOP.cdn.example.net.", RecordType::A)));
    assert_ne!(Responder::alike(&whole), Responder::alike(&answer("shop.cdn.example.net.", RecordType::AAAA)));
    assert_eq!(
        Responder::alike(&answer("x1.cdn.example.net.", RecordType::A)),
        Responder::alike(&answer("x2.cdn.example.net.", RecordType::A))
    );
}

#[test]
fn without_a_ready_edge_the_next_best_answers_and_never_nothing_by_accident() {
    let mut t = table();
    let to = |t: &Table| {
        let a = ask_over(t, &query("blog.cdn.example.net.", RecordType::A), "203.0.113.9".parse().unwrap(), Transport::Udp);
        (a.response_code, a.answers.iter().map(|r| r.data.to_string()).collect::<Vec<_>>().join(" "))
    };
    for e in &mut t.edges[..2] {
        e.applied = 8;
    }
    // The near ones are behind: the far one is ready.
    assert_eq!(to(&t), (ResponseCode::NoError, "198.51.100.1".into()));
    t.edges[2].drained = true;
    assert_eq!(to(&t).1.split(' ').count(), 2);
    t.edges[0].attached = false;
    assert_eq!(to(&t).1, "192.0.2.2");
    t.edges[1].attached = false;
    assert_eq!(to(&t).1.split(' ').count(), 2);
    for e in &mut t.edges {
        e.drained = true;
    }
    assert_eq!(to(&t), (ResponseCode::ServFail, String::new()));
    // An edge that is gone is not named for being the only one with an address of its kind.
    let mut t = table();
    for e in &mut t.edges[..2] {
        e.attached = false;
    }
    let none = ask_over(&t, &query("blog.cdn.example.net.", RecordType::AAAA), SOMEWHERE, Transport::Udp);
    assert_eq!((none.response_code, none.answers.len()), (ResponseCode::NoError, 0));
    // No edge has an address of the family: that is so, and no outage.
    t.edges.drain(..2);
    let none = ask_over(&t, &query("blog.cdn.example.net.", RecordType::AAAA), SOMEWHERE, Transport::Udp);
    assert_eq!((none.response_code, none.answers.len()), (ResponseCode::NoError, 0));
}

#[test]
fn networks_are_read_as_a_whole_or_not_at_all() {
    for (text, line, says) in [
        ("203.0.113.0/24", 1, "needs the name of a region"),
        ("203.0.113.0/24,eu\n203.0.113.1/24,eu", 2, "bits beyond its prefix"),
        ("203.0.113.0/33,eu", 1, "is no network"),
        ("eu,203.0.113.0/24", 1, "is no network"),
        ("::ffff:203.0.113.0/120,eu", 1, "write it as"),
        ("203.0.113.0/24,eu,,us", 1, "needs the name of a region"),
        ("# two\n203.0.113.0/24,eu\n203.0.113.0/24,us", 3, "stands here twice"),
    ] {
        let wrong = text.parse::<Networks>().unwrap_err();
        assert!(wrong.line == line && wrong.problem.contains(says), "{text}: {wrong}");
    }
}

const LOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

fn any_edges() -> impl Strategy<Value = Vec<Edge>> {
    let one = (any::<bool>(), any::<bool>(), any::<bool>(), 5u64..10, 0usize..4, 1u32..5, 1u32..11);
    let one = one.prop_map(|(attached, drained, reachable, applied, region, capacity, room)| Edge {
        attached,
        drained,
        lost: if reachable { Vec::new() } else { vec![LOST] },
        applied,
        capacity: f64::from(capacity),
        room: f64::from(room) / 10.0,
        ..edge("", ["eu", "us", "as", "af"][region], &[])
    });
    proptest::collection::vec(one, 0..12).prop_map(|mut edges| {
        for (n, e) in edges.iter_mut().enumerate() {
            e.name = format!("e{n}");
            e.addresses = vec![IpAddr::V4(Ipv4Addr::new(192, 0, 2, u8::try_from(n).unwrap()))];
            if !e.lost.is_empty() {
                e.lost = e.addresses.clone();
            }
        }
        edges
    })
}

proptest! {
    #[test]
    fn no_edge_is_named_while_a_better_one_is_there(edges in any_edges(), near in proptest::sample::subsequence(vec!["eu", "us", "as", "af"], 0..4), regions in proptest::sample::subsequence(vec!["eu", "us", "as", "af"], 0..4), network in any::<u64>()) {
        let near: Vec<String> = near.into_iter().map(str::to_owned).collect();
        let blog = Site { revision: 9, regions: regions.into_iter().map(str::to_owned).collect() };
        let t = Table { edges, sites: [("blog".to_owned(), blog.clone())].into(), ..table() };
        let client = Client { near: &near, network };
        let all = steer::choose(&t, "blog", client, |_| true);
        prop_assert!(all.edges.iter().all(|e| blog.is_served_by(e)));
        let chosen = &all.edges;
        let best = t.edges.iter().filter_map(|e| steer::readiness(e, &blog, |_| true)).max();
        prop_assert!(chosen.iter().all(|e| steer::readiness(e, &blog, |_| true) == best));
        prop_assert_eq!(chosen.is_empty(), best.is_none());
        prop_assert!(chosen.len() <= steer::MOST_NAMED);
        // Nor a farther one while one that is as good is nearer.
        let far = |e: &Edge| near.iter().position(|r| *r == e.region).unwrap_or(near.len());
        let nearest = t.edges.iter().filter(|e| steer::readiness(e, &blog, |_| true) == best && best.is_some()).map(far).min();
        prop_assert!(chosen.iter().all(|e| Some(far(e)) == nearest));
        let as_good = t.edges.iter().filter(|e| steer::readiness(e, &blog, |_| true) == best && best.is_some() && Some(far(e)) == nearest).count();
        prop_assert_eq!(chosen.len(), as_good.min(steer::MOST_NAMED));
        prop_assert_eq!(steer::choose(&t, "blog", client, |_| true), all.clone());
        if !all.by_network {
            prop_assert_eq!(steer::choose(&t, "blog", Client { near: &near, network: network ^ 1 }, |_| true), all.clone());
        }
    }

    #[test]
    fn what_a_scope_says_of_one_address_is_so_of_all(
        prefixes in proptest::collection::vec((any::<u32>(), 0u8..33), 0..12), client in any::<u32>(), other in any::<u32>(),
    ) {
        // Close together, so that they lie in one another.
        let squeeze = |n: u32| n & 0x0f0f_00ff;
        let masked = |n: u32, length: u8| if length == 0 { 0 } else { n & (u32::MAX << (32 - u32::from(length))) };
        let all: BTreeMap<(u32, u8), usize> = prefixes.iter().enumerate().map(|(n, (a, l))| ((masked(squeeze(*a), *l), *l), n)).collect();
        let text: String = all.iter().map(|((a, l), n)| format!("{}/{l},r{n}\n", Ipv4Addr::from(*a))).collect();
        let networks: Networks = text.parse().unwrap();
        let naive = |a: u32| {
            let holds = all.iter().filter(|((first, l), _)| masked(a, *l) == *first);
            holds.max_by_key(|((_, l), _)| *l).map(|(_, n)| vec![format!("r{n}")]).unwrap_or_default()
        };
        let client = squeeze(client);
        let (near, scope) = networks.find(Ipv4Addr::from(client).into());
        prop_assert_eq!(near, naive(client));
        let sharing = masked(client, scope) | (other & !masked(u32::MAX, scope));
        prop_assert_eq!(naive(sharing), near, "scope {}", scope);
    }

    #[test]
    fn no_packet_panics_or_amplifies(packet in proptest::collection::vec(any::<u8>(), 0..300), flip in any::<prop::sample::Index>(), bit in 0u8..8) {
        let (t, networks) = (table(), NETWORKS.parse().unwrap());
        let responder = Responder { table: &t, networks: &networks, signer: None, cookies: None, now: 1_700_000_000, name: "d1", region: &[] };
        let mut query = with_option(query("shop.cdn.example.net.", RecordType::ANY), None).to_vec().unwrap();
        let at = flip.index(query.len());
        query[at] ^= 1 << bit;
        for packet in [packet, query] {
            let answer = responder.respond(&packet, SOMEWHERE, Transport::Udp).map(|r| r.bytes);
            let fits = answer.is_none_or(|a| {
                let short = Message::from_vec(&Responder::cut_short(&a));
                a.len() <= usize::from(MOST_UDP) && Message::from_vec(&a).is_ok() && short.is_ok_and(|s| s.truncation)
            });
            prop_assert!(fits);
        }
    }
}

#[test]
fn a_change_of_one_capacity_moves_few_sites_and_shares_go_by_capacity() {
    let edges: Vec<Edge> =
        (0..10).map(|n| Edge { capacity: if n == 0 { 2.0 } else { 1.0 }, ..edge(&format!("e{n}"), "eu", &["192.0.2.1"]) }).collect();
    let first = |t: &Table| -> Vec<String> {
        (0..11_000).map(|n| steer::choose(t, &format!("s{n}"), ANYBODY, |_| true).edges[0].name.clone()).collect()
    };
    let sites = (0..11_000).map(|n| (format!("s{n}"), Site::default())).collect();
    let before = Table { edges, sites, ..table() };
    let mut after = before.clone();
    after.edges[3].capacity = 1.5;
    let (before, after) = (first(&before), first(&after));
    let of = |all: &[String], name: &str| all.iter().filter(|n| *n == name).count();
    // A share of 1/11 is 1,000.
    assert!(
        (1_850..2_150).contains(&of(&before, "e0")) && (900..1_100).contains(&of(&before, "e1")),
        "{} {}",
        of(&before, "e0"),
        of(&before, "e1")
    );
    let moved: Vec<_> = before.iter().zip(&after).filter(|(a, b)| a != b).collect();
    assert!(moved.len() < 600 && moved.iter().all(|(_, to)| *to == "e3"), "{}", moved.len());
    let (ten, elsewhere) = (Site { revision: 10, regions: Vec::new() }, Site { revision: 10, regions: vec!["us".into()] });
    assert_eq!(steer::readiness(&edge("e", "eu", &[]), &ten, |_| true), Some(Readiness::Found(Standing::Ready)));
    assert_eq!(steer::readiness(&edge("e", "eu", &[]), &elsewhere, |_| true), None);
}

#[test]
fn a_busy_edge_lets_a_part_of_the_networks_in_and_a_small_change_moves_few() {
    let named = |room: f64| -> Vec<Vec<String>> {
        let mut t = Table { edges: (0..6).map(|n| edge(&format!("e{n}"), "eu", &["192.0.2.1"])).collect(), ..table() };
        let first = steer::choose(&t, "blog", ANYBODY, |_| true).edges[0].name.clone();
        t.edges.iter_mut().find(|e| e.name == first).unwrap().room = room;
        let networks = (0..10_000u32).map(|n| crate::networks::network(IpAddr::V4(Ipv4Addr::from(n << 12)), 0).0);
        let clients = networks.map(|network| Client { near: &[], network });
        clients.map(|c| steer::choose(&t, "blog", c, |_| true).edges.iter().map(|e| e.name.clone()).collect()).collect()
    };
    let (all, busy, busier) = (named(1.0), named(0.7), named(0.65));
    let stay = |a: &[Vec<String>], b: &[Vec<String>]| a.iter().zip(b).filter(|(a, b)| a == b).count();
    assert!((6_800..7_200).contains(&stay(&all, &busy)), "{}", stay(&all, &busy));
    assert!((9_400..9_600).contains(&stay(&busy, &busier)), "{}", stay(&busy, &busier));
    // Whoever is not let in goes to the second and the third.
    assert!(busy.iter().filter(|n| n[0] != all[0][0]).all(|n| n[0] == all[0][1] && n[1] != all[0][0]));
}

#[test]
fn an_edge_that_lost_its_ipv4_is_passed_over_by_who_needs_that() {
    let mut near = edge("near", "eu", &["192.0.2.1", "2001:db8::1"]);
    near.lost = vec!["192.0.2.1".parse().unwrap()];
    let far = edge("far", "us", &["192.0.2.2", "2001:db8::2"]);
    let t = Table { edges: vec![near, far], ..table() };
    let client = Client { near: &["eu".to_owned()], network: 0 };
    let named = |wanted: fn(&IpAddr) -> bool| steer::choose(&t, "blog", client, wanted).edges[0].name.clone();
    assert_eq!((named(IpAddr::is_ipv4), named(IpAddr::is_ipv6)), ("far".into(), "near".into()));
    // Where all are lost all are named: better than none.
    let mut t = t.clone();
    t.edges.iter_mut().for_each(|e| e.lost = e.addresses.clone());
    let chosen = steer::choose(&t, "blog", client, IpAddr::is_ipv4).edges;
    assert_eq!(chosen[0].named(IpAddr::is_ipv4), ["192.0.2.1".parse::<IpAddr>().unwrap()]);
}

#[test]
fn a_denial_never_reaches_beyond_its_name() {
    let key = rcgen::KeyPair::generate().unwrap();
    let signer = crate::Signer::new(&"cdn.example.net.".parse().unwrap(), &key.serialize_der()).unwrap();
    let name = |labels: &str| Name::from_ascii(labels).unwrap();
    let long = format!("{0}.{0}.{0}.{1}.cdn.example.net.", "a".repeat(63), "b".repeat(255 - 3 * 64 - 17 - 1));
    assert_eq!(name(&long).to_bytes().unwrap().len(), 255);
    assert!(signer.denial(&name(&long), None, 5).is_none() && signer.denial(&name(&long[1..]), None, 5).is_none());
    assert!(signer.denial(&name(&long[2..]), None, 5).is_some());
}
