use super::*;
use tidegate_control_types::certificate::{Challenge, ChallengeAnswer, SealedCertificate};
use tidegate_control_types::event::Event;
use tidegate_control_types::node::Role;
use tidegate_control_types::site::{Hold, HostPattern, Shown};
use tidegate_control_types::{Change, Command, Incarnation, LeaseTerms, site_file, wire};

fn founded() -> State {
    let founding =
        Founding { cluster: "main".into(), incarnation: Incarnation(7), zone: None, lease: LeaseTerms::default(), root: Vec::new() };
    State::new(founding, 1)
}

/// Applies changes from index 2 on, at one second each; `Err` of the last one.
struct Log {
    state: State,
    index: u64,
}

impl Log {
    fn new() -> Self {
        Self { state: founded(), index: 1 }
    }

    fn apply(&mut self, change: Change) -> Applied {
        self.index += 1;
        self.state.apply(self.index, Command { at: WallTime(self.index * 1000), by: "test".into(), change })
    }

    fn site(&mut self, name: &str, hosts: &str, more: &str) -> Applied {
        let source = format!("name = \"{name}\"\nhosts = [{hosts}]\n[origin]\nservers = [{{ url = \"http://o\" }}]\n{more}");
        let spec = Box::new(site_file::read("t", &source).unwrap());
        self.apply(Change::SitePut { spec, source, expected: None, vouched: true })
    }

    fn purge(&mut self, site: Option<&str>, selector: Selector) -> Applied {
        self.apply(Change::Purge { orders: vec![PurgeOrder { site: site.map(|s| s.parse().unwrap()), selector, soft: false }] })
    }

    fn enrol(&mut self, name: &str) -> Applied {
        let join = JoinRecord {
            id: format!("j-{name}"),
            hash: [0; 32],
            role: Role::Edge,
            region: None,
            created: WallTime(0),
            expires: WallTime(u64::MAX),
            used: None,
        };
        let id = join.id.clone();
        self.apply(Change::JoinCreate { join });
        let node = NodeState {
            name: name.parse().unwrap(),
            role: Role::Edge,
            region: "eu".into(),
            address: None,
            advertise: vec![],
            drained: false,
            since: 0,
        };
        self.apply(Change::NodeEnrol { node, join: id, key: [1; 32] })
    }
}

#[test]
fn a_purge_finds_its_site_by_host_and_is_refused_without_one() {
    let mut log = Log::new();
    log.site("shop", "\"www.example.com\"", "");
    log.site("imgs", "\"*.example.com\"", "");
    let url = |host: &str| Selector::Url { host: host.into(), target: "/".into() };
    let placed = |a: Applied| match a.events.first() {
        Some(Event::Purged(orders)) => orders[0].site.as_ref().map(ToString::to_string),
        other => panic!("{other:?} {:?}", a.outcome),
    };
    assert_eq!(placed(log.purge(None, url("www.example.com"))).unwrap(), "shop");
    assert_eq!(placed(log.purge(None, url("a.example.com"))).unwrap(), "imgs");
    assert!(matches!(log.purge(None, url("example.org")).outcome, Err(Refusal::NotFound(_))));
    assert!(matches!(log.purge(Some("imgs"), url("www.example.com")).outcome, Err(Refusal::Conflict(_))));
    assert!(matches!(log.purge(None, Selector::Tag { tag: "t".into() }).outcome, Err(Refusal::Conflict(_))));
    assert_eq!(placed(log.purge(Some("shop"), Selector::Tag { tag: "t".into() })).unwrap(), "shop");
    assert_eq!(placed(log.purge(None, Selector::All)), None);
}

#[test]
fn a_host_belongs_to_one_site_and_an_unexpected_revision_is_refused() {
    let mut log = Log::new();
    log.site("shop", "\"a.example\"", "");
    assert!(matches!(log.site("blog", "\"a.example\"", "").outcome, Err(Refusal::Conflict(_))));
    let name: SiteName = "shop".parse().unwrap();
    let remove = |expected| Change::SiteRemove { name: name.clone(), expected: Some(expected) };
    assert_eq!(log.apply(remove(9)).outcome, Err(Refusal::Stale { expected: 9, found: 2 }));
    assert_eq!(log.apply(remove(2)).outcome, Ok(()));
    assert!(log.state.site("shop").is_none());
}

#[test]
fn a_host_is_a_sites_once_it_is_shown_and_then_no_others() {
    let mut log = Log::new();
    let put = |log: &mut Log, name: &str, vouched| {
        let source =
            format!("name = \"{name}\"\nhosts = [\"a.example\", \"*.b.example\"]\n[origin]\nservers = [{{ url = \"http://o\" }}]\n");
        let spec = Box::new(site_file::read("t", &source).unwrap());
        log.apply(Change::SitePut { spec, source, expected: None, vouched })
    };
    let host = HostPattern::parse("a.example").unwrap();
    let hold = Some(Hold { shown: Shown::Cname, since: WallTime(0), lost: None });
    let show = |log: &mut Log, site: &str, hold| log.apply(Change::HostPut { site: site.parse().unwrap(), host: host.clone(), hold });
    let of = |log: &Log| log.state.site_of_host("a.example").map(|s| s.name().to_string());
    // Naming a host first is worth nothing.
    assert_eq!((put(&mut log, "thief", false).outcome, put(&mut log, "owner", false).outcome), (Ok(()), Ok(())));
    assert_eq!(of(&log), None);
    let missed_before = log.index;
    let Applied { outcome: Ok(()), events, .. } = show(&mut log, "owner", hold) else { panic!() };
    let Some(Event::Site(told)) = events.first() else { panic!("{events:?}") };
    assert_eq!((told.unshown.len(), told.keys_since), (1, log.index));
    assert_eq!(of(&log).as_deref(), Some("owner"));
    assert!(matches!(show(&mut log, "thief", hold).outcome, Err(Refusal::Conflict(_))));
    assert!(matches!(put(&mut log, "third", true).outcome, Err(Refusal::Conflict(_))), "not on an admin's word either");
    // Who was away is told of it.
    assert_eq!(log.state.missed_since(missed_before, u64::MAX).sites.len(), 1);
    // It stays its own through its file's versions, until it names the host no more.
    assert_eq!(put(&mut log, "owner", false).outcome, Ok(()));
    assert_eq!(of(&log).as_deref(), Some("owner"));
    log.site("owner", "\"c.example\"", "");
    assert_eq!(show(&mut log, "thief", hold).outcome, Ok(()));
    assert_eq!((show(&mut log, "thief", None).outcome, of(&log)), (Ok(()), None));
    // A removed site's name is for an admin to give again.
    log.apply(Change::SiteRemove { name: "owner".parse().unwrap(), expected: None });
    assert!(matches!(put(&mut log, "owner", false).outcome, Err(Refusal::Conflict(_))));
    assert_eq!(put(&mut log, "owner", true).outcome, Ok(()));
}

#[test]
fn what_is_ordered_is_shown_and_named_once_and_an_admins_word_stands() {
    let mut log = Log::new();
    let names = |log: &Log| log.state.site("shop").unwrap().orderable();
    log.site("shop", "\"www.a.example\", \"*.a.example\", \"b.example\", \"192.0.2.1\"", "");
    assert_eq!(names(&log), ["*.a.example", "b.example"], "the wildcard is for the first");
    let put = |log: &mut Log, hold| {
        let host = HostPattern::parse("b.example").unwrap();
        log.apply(Change::HostPut { site: "shop".parse().unwrap(), host, hold }).outcome
    };
    assert!(matches!(put(&mut log, None), Err(Refusal::Conflict(_))), "an admin vouches");
    let file = |log: &mut Log, vouched| {
        let source = "name = \"other\"\nhosts = [\"c.example\"]\n[origin]\nservers = [{ url = \"http://o\" }]\n".to_owned();
        let spec = Box::new(site_file::read("t", &source).unwrap());
        log.apply(Change::SitePut { spec, source, expected: None, vouched })
    };
    file(&mut log, false);
    let host = HostPattern::parse("c.example").unwrap();
    let lost = Some(Hold { shown: Shown::Txt, since: WallTime(0), lost: Some(WallTime(1)) });
    log.apply(Change::HostPut { site: "other".parse().unwrap(), host: host.clone(), hold: lost });
    assert!(log.state.site("other").unwrap().orderable().is_empty(), "it shows so no more");
    file(&mut log, true);
    let hold = log.state.site("other").unwrap().holds()[&host];
    assert_eq!((hold.shown, hold.lost), (Shown::Vouched, None));
}

#[test]
fn an_uploaded_certificate_is_for_the_hosts_of_its_sites() {
    let mut log = Log::new();
    let certificate = |name: &str, hosts: &[&str]| SealedCertificate {
        name: name.into(),
        chain: vec![],
        sealed_key: vec![],
        hosts: hosts.iter().map(|h| (*h).to_owned()).collect(),
        not_before: WallTime(0),
        not_after: WallTime(1),
    };
    let tls = "[tls]\ncertificate = \"mine\"\n";
    assert!(matches!(log.site("shop", "\"a.example\"", tls).outcome, Err(Refusal::Conflict(_))), "it is not there");
    log.apply(Change::CertificatePut { certificate: certificate("mine/rsa", &["*.example"]) });
    assert!(matches!(log.site("shop", "\"a.b.example\"", tls).outcome, Err(Refusal::Conflict(_))), "it is for others");
    assert_eq!(log.site("shop", "\"a.example\"", tls).outcome, Ok(()));
    let put =
        |log: &mut Log, name: &str, hosts: &[&str]| log.apply(Change::CertificatePut { certificate: certificate(name, hosts) }).outcome;
    assert!(matches!(put(&mut log, "mine/ecdsa", &["b.example"]), Err(Refusal::Conflict(_))));
    let remove = |log: &mut Log, name: &str| log.apply(Change::CertificateRemove { name: name.into() }).outcome;
    assert!(matches!(remove(&mut log, "mine/rsa"), Err(Refusal::Conflict(_))), "the only one");
    assert_eq!((put(&mut log, "mine/ecdsa", &["a.example"]), remove(&mut log, "mine/rsa")), (Ok(()), Ok(())));
    // A site that is gone gets none.
    assert!(matches!(put(&mut log, "acme/nobody", &["a.example"]), Err(Refusal::NotFound(_))));
    // What a site had from others goes with it.
    log.apply(Change::CertificatePut { certificate: certificate("acme/shop", &["a.example"]) });
    let challenge = Challenge { host: "a.example".into(), answer: ChallengeAnswer::Dns01 { value: "v".into() } };
    log.apply(Change::ChallengesPut { site: "shop".parse().unwrap(), challenges: vec![challenge] });
    let gone = log.apply(Change::SiteRemove { name: "shop".parse().unwrap(), expected: None }).events;
    assert!(gone.contains(&Event::CertificateRemoved("acme/shop".into())), "{gone:?}");
    assert!(gone.iter().any(|e| matches!(e, Event::Challenges { challenges, .. } if challenges.is_empty())), "{gone:?}");
    assert!(log.state.certificate("mine/ecdsa").is_some());
}

#[test]
fn any_version_since_an_acknowledgement_that_served_alone_counts() {
    let mut log = Log::new();
    let cache = |w: &str| format!("[cache]\nwhen_detached = \"{w}\"\n");
    log.site("shop", "\"a.example\"", &cache("refuse")); // 2
    log.site("shop", "\"a.example\"", &cache("serve")); // 3
    log.site("shop", "\"a.example\"", &cache("refuse")); // 4
    let order = [PurgeOrder { site: Some("shop".parse().unwrap()), selector: Selector::Site, soft: false }];
    let may = |log: &Log, since| log.state.may_serve_detached(&order, since);
    assert_eq!([may(&log, 1), may(&log, 2), may(&log, 3), may(&log, 4), may(&log, 5)], [true, true, true, false, false]);
    log.apply(Change::SiteRemove { name: "shop".parse().unwrap(), expected: None }); // 5
    log.site("shop", "\"a.example\"", &cache("refuse")); // 6
    assert_eq!([may(&log, 3), may(&log, 4)], [true, false], "a removed site's past is not forgotten with it");
    let all = [PurgeOrder { site: None, selector: Selector::All, soft: false }];
    assert!(log.state.may_serve_detached(&all, 3) && !log.state.may_serve_detached(&all, 4));
}

#[test]
fn a_host_that_moved_counts_as_its_former_sites_too() {
    let mut log = Log::new();
    log.site("old", "\"*.example\"", ""); // 2, serves
    log.site("new", "\"a.example\"", "[cache]\nwhen_detached = \"refuse\"\n"); // 3
    let order = |selector| [PurgeOrder { site: Some("new".parse().unwrap()), selector, soft: false }];
    let url = order(Selector::Url { host: "a.example".into(), target: "/".into() });
    assert!(log.state.may_serve_detached(&url, 2), "a node at 2 takes the host for the old site's");
    assert!(!log.state.may_serve_detached(&url, 3));
    assert!(!log.state.may_serve_detached(&order(Selector::Site), 2));
}

#[test]
fn changed_hosts_or_keys_need_revalidation_and_other_changes_do_not() {
    let mut log = Log::new();
    let keys_since = |log: &Log| log.state.site("shop").unwrap().state().keys_since;
    log.site("shop", "\"a.example\"", "");
    log.site("shop", "\"a.example\"", "[cache]\ndefault_ttl = \"5s\"\n");
    assert_eq!(keys_since(&log), 2);
    log.site("shop", "\"a.example\", \"b.example\"", "");
    assert_eq!(keys_since(&log), 4);
    log.site("shop", "\"a.example\", \"b.example\"", "[cache]\nquery = \"none\"\n");
    assert_eq!(keys_since(&log), 5);
}

#[test]
fn what_was_missed_is_complete_or_the_floor_says_so() {
    let mut log = Log::new();
    log.state.purges.keep_at_most(2);
    log.site("shop", "\"a.example\"", "");
    for _ in 0..4 {
        log.purge(None, Selector::All); // 3, 4, 5, 6
    }
    let missed = |applied, purges_after| {
        let m = log.state.missed_since(applied, purges_after);
        (m.floor, m.purges.iter().map(|p| p.0).collect::<Vec<_>>(), m.sites.len())
    };
    assert_eq!(missed(0, u64::MAX), (0, vec![], 1), "a node that holds nothing misses nothing");
    assert_eq!(missed(3, 3), (4, vec![5, 6], 0));
    assert_eq!(missed(4, 4), (0, vec![5, 6], 0));
    assert_eq!(missed(6, 6), (0, vec![], 0));
    assert_eq!(missed(6, 0), (4, vec![5, 6], 0), "a node that holds what an earlier life stored");
    assert_eq!((log.state.purge(4).err(), log.state.purge(5).is_ok(), log.state.purge(9).err()), (Some(true), true, Some(false)));
}

#[test]
fn a_join_token_enrols_one_node_and_names_are_unique_until_forgotten() {
    let mut log = Log::new();
    let how = |log: &Log, since| log.state.enrolment(("fra-1", "edge", "eu"), since);
    assert_eq!(log.enrol("fra-1").outcome, Ok(()));
    assert!(matches!(log.enrol("fra-1").outcome, Err(Refusal::Conflict(_))));
    let name: NodeName = "fra-1".parse().unwrap();
    let first = log.state.node("fra-1").unwrap().state.since;
    let is_there = Refusal::Conflict("there is a node fra-1 already: remove it first, or choose another name".into());
    assert_eq!(log.enrol("fra-1").outcome, Err(is_there));
    assert_eq!(how(&log, first), Enrolment::Stands);
    assert_eq!(how(&log, first + 1), Enrolment::Over);
    assert_eq!(how(&log, log.state.applied + 1), Enrolment::Ahead);
    assert_eq!(log.state.enrolment(("fra-1", "edge", "us"), first), Enrolment::Over, "its certificate says something else");
    assert_eq!(log.apply(Change::NodeRemove { name: name.clone(), dead: false }).outcome, Ok(()));
    assert!(log.state.node("fra-1").unwrap().removed.is_some(), "it counts until it can no longer answer");
    assert!(matches!(how(&log, first), Enrolment::Removed(_)));
    assert!(matches!(log.apply(Change::NodeDrain { name: name.clone(), drained: true }).outcome, Err(Refusal::NotFound(_))));
    let removal = log.state.node("fra-1").unwrap().removed.unwrap().index;
    log.apply(Change::NodeForget { name: name.clone(), removal: removal + 1 });
    assert!(log.state.node("fra-1").is_some(), "that is another removal");
    log.apply(Change::NodeForget { name, removal });
    assert_eq!(how(&log, first), Enrolment::Over);
    assert_eq!(log.enrol("fra-1").outcome, Ok(()));
    assert_eq!((how(&log, first), how(&log, log.index)), (Enrolment::Over, Enrolment::Stands), "the name is another's");
}

fn again_later(log: &mut Log, node: &NodeState) -> Result<(), Refusal> {
    log.apply(Change::NodeEnrol { node: node.clone(), join: "j-fra-1".into(), key: [1; 32] }).outcome
}

#[test]
fn who_did_not_hear_that_it_is_enrolled_asks_once_more() {
    let mut log = Log::new();
    assert_eq!(log.enrol("fra-1").outcome, Ok(()));
    let node = log.state.node("fra-1").unwrap().state.clone();
    let mut again = |name: &str, key| {
        let node = NodeState { name: name.parse().unwrap(), since: 0, ..node.clone() };
        log.apply(Change::NodeEnrol { node, join: "j-fra-1".into(), key })
    };
    let same = again("fra-1", [1; 32]);
    assert_eq!((same.outcome, same.events), (Ok(()), vec![]));
    assert_eq!(again("fra-1", [2; 32]).outcome, Err(Refusal::JoinToken), "somebody else has read the token");
    assert_eq!(again("fra-2", [1; 32]).outcome, Err(Refusal::JoinToken));
    assert_eq!(log.state.node("fra-1").unwrap().state, node);
    let put =
        |log: &mut Log, name: &str| log.apply(Change::MemberPut { id: 3, name: name.parse().unwrap(), address: String::new() }).outcome;
    assert_eq!((put(&mut log, "c-3"), put(&mut log, "c-3")), (Ok(()), Ok(())));
    assert!(matches!(put(&mut log, "c-4"), Err(Refusal::Conflict(_))), "two that joined at once");
    let later = Command { at: WallTime(700_000), by: "test".into(), change: Change::JoinRevoke { id: "none".into() } };
    log.index += 1;
    log.state.apply(log.index, later);
    assert_eq!(again_later(&mut log, &node), Err(Refusal::JoinToken), "not for ever");
    log.apply(Change::NodeRemove { name: node.name.clone(), dead: true });
    let removal = log.index;
    let enrol = Change::NodeEnrol { node: node.clone(), join: "j-fra-1".into(), key: [1; 32] };
    assert_eq!(log.apply(enrol.clone()).outcome, Err(Refusal::JoinToken));
    log.apply(Change::NodeForget { name: node.name, removal });
    assert_eq!(log.apply(enrol).outcome, Err(Refusal::JoinToken));
}

#[test]
fn the_state_survives_its_encoding() {
    let mut log = Log::new();
    log.site("shop", "\"a.example\"", "");
    log.enrol("fra-1");
    log.purge(None, Selector::All);
    assert_eq!(wire::decode::<State>(&wire::encode(&log.state)).unwrap(), log.state);
}

#[test]
fn after_a_restore_a_node_may_serve_until_it_is_heard_of() {
    let mut log = Log::new();
    log.site("shop", "\"a.example\"", "[cache]\nwhen_detached = \"revalidate\"");
    log.enrol("fra-1");
    let since = log.state.node("fra-1").unwrap().state.since;
    let orders = log.state.placed(vec![PurgeOrder { site: Some("shop".parse().unwrap()), selector: Selector::Site, soft: false }]).unwrap();
    assert!(!log.state.may_serve_detached(&orders, since));
    let restored = log.state.clone().restored(99);
    assert_eq!(restored.founding.incarnation.generation(), log.state.founding.incarnation.generation() + 1);
    assert!(restored.may_serve_detached(&orders, since), "what was said after the backup, nobody here knows");
    assert!(!restored.may_serve_detached(&orders, restored.applied), "one that has this log knows no other rules");
    assert_eq!((restored.members().count(), restored.purge(1)), (0, Err(true)));
}

#[test]
fn what_was_sealed_anew_replaces_only_what_it_was_made_of() {
    use tidegate_control_types::command::SealedDnsKey;
    use tidegate_control_types::sealed::{Resealed, SealedName};
    let mut log = Log::new();
    let key =
        |sealed: &[u8]| Change::DnsKeyPut { key: SealedDnsKey { zone: "cdn.test".into(), public: vec![1], sealed_key: sealed.to_vec() } };
    let again = |before: &[u8], sealed: &[u8]| {
        let name = SealedName::DnsKey("cdn.test".into());
        Change::Reseal { items: vec![Resealed { name, before: before.to_vec(), sealed: sealed.to_vec() }] }
    };
    let now = |log: &Log| log.state.sealed().map(|(_, sealed)| sealed.clone()).collect::<Vec<_>>();
    log.apply(key(b"old"));
    assert!(log.apply(again(b"old", b"new")).events.is_empty(), "nobody has to be told anything");
    assert_eq!(now(&log), [b"new"]);
    log.apply(again(b"old", b"late"));
    assert_eq!(now(&log), [b"new"], "it was made of what is there no more");
    log.apply(Change::DnsKeyRemove { zone: "cdn.test".into() });
    log.apply(again(b"new", b"late"));
    assert!(now(&log).is_empty());
}

#[test]
fn the_newest_authority_signs_and_older_ones_are_believed_until_they_are_retired() {
    use tidegate_control_types::authority::{Issuing, RequestedIssuing};
    use tidegate_control_types::event::Event;
    let mut log = Log::new();
    let issuing = |n: u8, requested| {
        let fingerprint = [n; 32];
        let issuing =
            Issuing { fingerprint, certificate: vec![n], sealed_key: vec![n], not_before: WallTime(0), not_after: WallTime(u64::MAX) };
        Change::IssuingPut { issuing, requested }
    };
    let told = |applied: crate::Applied| match applied.events.as_slice() {
        [Event::Issuers(issuers)] => (issuers.newest[0], issuers.retired.iter().map(|r| r[0]).collect::<Vec<_>>()),
        other => panic!("{other:?}: {:?}", applied.outcome),
    };
    assert_eq!(told(log.apply(issuing(1, false))), (1, vec![]));
    assert_eq!(told(log.apply(issuing(2, false))), (2, vec![]));
    let refused = |applied: crate::Applied| applied.outcome.unwrap_err().to_string();
    assert!(refused(log.apply(Change::IssuingRetire { fingerprint: [2; 32] })).contains("signs: make another one first"));
    assert!(refused(log.apply(Change::IssuingRetire { fingerprint: [9; 32] })).contains("there is no issuing authority 0909"));
    assert_eq!(told(log.apply(Change::IssuingRetire { fingerprint: [1; 32] })), (2, vec![1]));
    assert!(refused(log.apply(issuing(1, false))).contains("was there already"), "one that was retired does not come back");
    assert!(refused(log.apply(issuing(3, true))).contains("no issuing authority was requested"));
    log.apply(Change::IssuingRequest { requested: RequestedIssuing { request: vec![7], sealed_key: vec![7] } });
    assert_eq!(told(log.apply(issuing(3, true))), (3, vec![1]));
    assert!(log.state.authority.requested.is_none());
}
