//! The network's own authority and keys: who gets in and who does not, and the next of each kind in the place of one, under load.

#![allow(clippy::unwrap_used, clippy::disallowed_methods)] // A test fails by panicking.

mod support;

use serde_json::Value;
use std::path::Path;
use std::process::Output;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;
use support::https::{Https, Trusting};
use support::network::{Network, Plan};
use support::{Nginx, Process, binary, command_on, error_of, text, tidegate, wait_for};
use tidegate_certs::SealingKey;
use tidegate_control_types::{NodeState, Role, wire};
use tidegate_node::enrol::EnrolRequest;
use tidegate_node::{Credentials, link};

fn origin(dir: &Path) -> Nginx {
    let root = dir.join("www");
    std::fs::create_dir_all(&root).unwrap();
    std::fs::write(root.join("page"), "page").unwrap();
    Nginx::start(&dir.join("nginx"), &root, "add_header Cache-Control max-age=600;")
}

fn done(out: &Output) -> String {
    assert!(out.status.success(), "{}{}", text(&out.stdout), error_of(out));
    text(&out.stdout)
}

/// Where nodes reach the first control node.
fn control_address(network: &Network) -> String {
    let file: toml::Table = std::fs::read_to_string(&network.edges()[0].config).unwrap().parse().unwrap();
    file["control"][0].as_str().unwrap().trim_start_matches("https://").to_owned()
}

/// The issuing authorities that are believed, the newest first, once every node shows a certificate of that.
fn issuing(network: &Network) -> Vec<String> {
    wait_for("every node to have a certificate of the newest authority", || {
        let ca = network.json(&["control", "ca", "show"]);
        let all = ca["issuing"].as_array()?;
        let shown = all[0]["nodes"].as_array()?.len();
        (shown == network.nodes.len()).then(|| all.iter().map(|i| i["fingerprint"].as_str().unwrap().to_owned()).collect())
    })
}

#[test]
fn authorities_and_keys_are_replaced_under_load_and_no_request_fails() {
    let dir = tempfile::tempdir().unwrap();
    let mut network = Network::planned(dir.path(), Plan { controls: 3, shields: 1, edges: 2, dns: 1, ..Plan::default() });
    let nginx = origin(dir.path());
    network.site("s", "\"s.example\"", &nginx.url(), "");
    let trusting = Trusting::authority(&network.ca);
    wait_for("the site's certificate", || Https::to(network.edges()[1], "s.example", &trusting).ok());
    let (is_over, asked) = (AtomicBool::new(false), AtomicUsize::new(0));
    // Each request over its own handshake; every other one is for what no cache holds, over the shield.
    let load = |network: &Network, edge: usize| {
        let mut failed = Vec::new();
        while !is_over.load(Ordering::Relaxed) {
            let n = asked.fetch_add(1, Ordering::Relaxed);
            let path = if n.is_multiple_of(2) { "/page".to_owned() } else { format!("/page?{n}") };
            match Https::to(network.edges()[edge], "s.example", &trusting).and_then(|mut c| c.get(&path)) {
                Ok(answer) if answer == (200, "page".into()) => {}
                other => failed.push(format!("{path}: {other:?}")),
            }
            std::thread::sleep(Duration::from_millis(4));
        }
        failed
    };
    let first = issuing(&network);
    std::thread::scope(|scope| {
        let (loads, network) = (
            [0, 1].map(|edge| {
                scope.spawn({
                    let n = &network;
                    let load = &load;
                    move || load(n, edge)
                })
            }),
            &network,
        );
        let rotated = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let mut key = network.json(&["control", "rotate-key"]);
            for round in 0..3 {
                done(&network.tidegate(&["control", "rotate-key", "tickets"]));
                let next = network.json(&["control", "rotate-key"]);
                assert!(next["sealed_otherwise"] == 0 && next["sealed"].as_u64() > Some(4), "{next}");
                assert_ne!(next["cluster_key"], key["cluster_key"]);
                key = next;
                done(&network.tidegate(&["control", "ca", "rotate"]));
                let believed = issuing(network);
                assert_eq!(believed.len(), 2, "round {round}");
                let old = &believed[1];
                // The one that signs is not to be retired, the one before is, once the site's own certificate has been made anew.
                let refused = network.tidegate(&["control", "ca", "retire", &believed[0]]);
                assert!(error_of(&refused).contains("signs: make another one first"), "{}", error_of(&refused));
                done(&network.tidegate(&["control", "ca", "retire", &old[..16]]));
                wait_for("the end of the old one", || (issuing(network).len() == 1).then_some(()));
                network.purge(&["url", "http://s.example/page"]);
            }
        }));
        is_over.store(true, Ordering::Relaxed);
        for load in loads {
            let failed = load.join().unwrap();
            assert!(failed.is_empty(), "{} of {}: {:?}", failed.len(), asked.load(Ordering::Relaxed), &failed[..failed.len().min(5)]);
        }
        println!("{} requests, each over its own handshake; 0 failed", asked.load(Ordering::Relaxed));
        assert!(rotated.is_ok(), "{}", text(&network.tidegate(&["control", "ca", "show"]).stdout));
    });
    assert!(asked.load(Ordering::Relaxed) > 300);
    assert!(!issuing(&network).contains(&first[0]));
    let audit = text(&network.tidegate(&["audit"]).stdout);
    for said in ["seals", "signs", "retired"] {
        assert!(audit.contains(said), "{audit}");
    }
    // What was put on disk is enough for every node to come back.
    for name in network.nodes.iter().map(|n| n.name.clone()).collect::<Vec<_>>() {
        network.node(&name).kill();
        network.node(&name).start();
    }
    network.attached();
    network.purge(&["url", "http://s.example/page"]);
    network.site("t", "\"t.example\"", &nginx.url(), "");
    wait_for("a certificate of the new authority, under the new key", || {
        Https::to(network.edges()[0], "t.example", &trusting).ok()?.get("/page").ok().filter(|got| got.0 == 200)
    });
}

#[test]
fn the_roots_key_may_be_kept_offline() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    let network = Network::planned(dir.path(), Plan::default());
    let config = network.nodes[0].config.display().to_string();
    done(&network.tidegate(&["control", "backup", &at("backup")]));
    done(&tidegate(&["control", "ca", "save-root", "--config", &config, &at("backup"), &at("root.key")], &[]));
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(at("root.key")).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    let again = tidegate(&["control", "ca", "save-root", "--config", &config, &at("backup"), &at("root.key")], &[]);
    assert!(error_of(&again).contains("File exists"), "{}", error_of(&again));
    done(&network.tidegate(&["control", "ca", "drop-root"]));
    assert!(text(&network.tidegate(&["control", "ca", "show"]).stdout).contains("its key offline"));
    let refused = network.tidegate(&["control", "ca", "rotate"]);
    assert!(error_of(&refused).contains("the root's key is not in the log: bring it a request"), "{}", error_of(&refused));
    done(&network.tidegate(&["control", "backup", &at("later")]));
    let none = tidegate(&["control", "ca", "save-root", "--config", &config, &at("later"), &at("other.key")], &[]);
    assert!(error_of(&none).contains("the root's key is not in this backup"), "{}", error_of(&none));

    let ca = network.ca.display().to_string();
    let sign = |key: &str, request: &str, out: &str| {
        tidegate(&["control", "ca", "sign", "--root", &ca, "--root-key", &at(key), "--request", &at(request), &at(out)], &[])
    };
    let refused = network.tidegate(&["control", "ca", "install", &ca]);
    assert!(error_of(&refused).contains("no issuing authority was requested"), "{}", error_of(&refused));
    done(&network.tidegate(&["control", "ca", "request", &at("old.csr")]));
    done(&network.tidegate(&["control", "ca", "request", &at("new.csr")]));
    done(&sign("root.key", "old.csr", "old.pem"));
    done(&sign("root.key", "new.csr", "new.pem"));
    // Whoever has another key has not the root's.
    let openssl = ["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", &at("stray.key")];
    assert!(std::process::Command::new("openssl").args(openssl).output().unwrap().status.success());
    assert!(error_of(&sign("stray.key", "new.csr", "stray.pem")).contains("not the key of the root's certificate"));
    for (file, why) in [
        (at("old.pem"), "over another key than was requested last"),
        (ca.clone(), "over another key"),
        (at("new.csr"), "not one CERTIFICATE in PEM form"),
    ] {
        let refused = network.tidegate(&["control", "ca", "install", &file]);
        assert!(error_of(&refused).contains(why), "{file}: {}", error_of(&refused));
    }
    let before = issuing(&network);
    done(&network.tidegate(&["control", "ca", "install", &at("new.pem")]));
    let after = issuing(&network);
    assert!(after.len() == 2 && after[1] == before[0]);
    // openssl reads the chain as we do.
    let verified = std::process::Command::new("openssl").args(["verify", "-CAfile", &ca, &at("new.pem")]).output().unwrap();
    assert!(text(&verified.stdout).contains(": OK"), "{}", text(&verified.stderr));
    // A new network may have its root's key elsewhere from the beginning.
    let settings = std::fs::read_to_string(&config).unwrap().replace(dir.path().to_str().unwrap(), &at("second"));
    std::fs::create_dir_all(at("second")).unwrap();
    std::fs::write(at("second.toml"), settings).unwrap();
    done(&tidegate(&["control", "init", "--config", &at("second.toml"), "--root-key", &at("second.root.key")], &[]));
    assert!(std::fs::read_to_string(at("second.root.key")).unwrap().contains("BEGIN PRIVATE KEY"));
}

#[test]
fn an_authority_that_a_node_still_needs_is_retired_only_by_force() {
    let dir = tempfile::tempdir().unwrap();
    let mut network = Network::planned(dir.path(), Plan { edges: 2, ..Plan::default() });
    let old = issuing(&network).remove(0);
    network.node("edge-2").kill();
    done(&network.tidegate(&["control", "ca", "rotate"]));
    let refused = wait_for("all others to have a new certificate", || {
        let out = network.tidegate(&["control", "ca", "retire", &old]);
        let ca = network.json(&["control", "ca", "show"]);
        (ca["issuing"][0]["nodes"].as_array()?.len() == 2).then(|| error_of(&out))
    });
    assert!(refused.contains("edge-2 may still show a certificate of this issuing authority"), "{refused}");
    done(&network.tidegate(&["control", "ca", "retire", &old, "--force"]));
    // Nobody believes it any more, and its log says why.
    network.node("edge-2").start();
    let said = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        wait_for("the refusal", || network.node_logged("edge-2").contains("CertificateRevoked").then_some(()));
    }));
    assert!(said.is_ok(), "{}", network.node_logged("edge-2"));
    wait_for("its lease to end", || {
        let nodes = network.json(&["node", "list"]);
        let edge = nodes.as_array()?.iter().find(|n| n["name"] == "edge-2")?.clone();
        (edge["state"] == "detached").then_some(())
    });
}

#[test]
fn keys_may_come_from_a_command_and_all_control_nodes_have_them_before_they_seal() {
    let dir = tempfile::tempdir().unwrap();
    // What a key store would print.
    let store = dir.path().join("store");
    std::fs::write(&store, format!("{}\n", "1a".repeat(32))).unwrap();
    let more = format!("cluster_key_command = [\"cat\", \"{}\"]", store.display());
    // Two keys for one thing.
    let both = dir.path().join("both.toml");
    let head = format!(
        "name = \"c\"\nregion = \"eu\"\ndata = \"{0}/c\"\nnode_key = \"{0}/c.key\"\nlisten = [\"127.0.0.1:1\"]\n",
        dir.path().display()
    );
    std::fs::write(&both, format!("{head}cluster_key = \"/etc/k\"\n{more}\n")).unwrap();
    let refused = tidegate(&["control", "run", "--check", "--config", both.to_str().unwrap()], &[]);
    assert!(error_of(&refused).contains("takes the place of cluster_key"), "{}", error_of(&refused));

    let mut network = Network::planned(dir.path(), Plan { controls: 3, control_more: &more, ..Plan::default() });
    assert!(std::fs::read_dir(dir.path()).unwrap().all(|f| !f.unwrap().file_name().to_str().unwrap().contains("cluster.key")));
    let first = network.json(&["control", "rotate-key", "tickets"])["cluster_key"].clone();
    let refused = network.tidegate(&["control", "rotate-key"]);
    assert!(
        error_of(&refused).contains("still prints") && error_of(&refused).contains("make a new key in the key store first"),
        "{}",
        error_of(&refused)
    );
    std::fs::write(&store, format!("{}\n{}\n", "1a".repeat(32), "2b".repeat(32))).unwrap();
    // Whoever is away has not got it.
    let away = network.json(&["control", "members"]).as_array().unwrap().iter().find(|m| m["state"] != "leader").unwrap()["name"]
        .as_str()
        .unwrap()
        .to_owned();
    network.node(&away).kill();
    let refused = network.tidegate(&["control", "rotate-key"]);
    assert!(
        error_of(&refused).contains(&format!("the control node {away} did not take the new key, so the old one stays")),
        "{}",
        error_of(&refused)
    );
    let keys = |network: &Network| -> Value { network.json(&["control", "rotate-key", "tickets"]) };
    assert_eq!(keys(&network)["cluster_key"], first);
    network.node(&away).start();
    let rotated = wait_for("the rotation", || {
        let out = network.tidegate(&["control", "rotate-key", "--json"]);
        out.status.success().then(|| serde_json::from_slice::<Value>(&out.stdout).unwrap())
    });
    assert!(rotated["cluster_key"] != first && rotated["sealed_otherwise"] == 0, "{rotated}");
    // A node whose store forgot the key that seals does not begin.
    network.node(&away).kill();
    std::fs::write(&store, format!("{}\n", "1a".repeat(32))).unwrap();
    network.node(&away).start();
    let node = network.node(&away);
    wait_for("it to end", || node.has_ended().then_some(()));
    assert!(node.logged().contains("which this node has not"), "{}", node.logged());
}

#[test]
fn a_node_is_answered_until_it_is_removed_whoever_has_its_name_then() {
    let dir = tempfile::tempdir().unwrap();
    let mut network = Network::planned(dir.path(), Plan { shields: 1, edges: 2, regions: &["eu", "us"], ..Plan::default() });
    let nginx = origin(dir.path());
    network.site("s", "\"s.example\"", &nginx.url(), "");
    let shield = network.nodes.iter().find(|n| n.role == "shield").unwrap().address().to_string();
    // What an edge would ask, with what it has on its disk.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let posts = |who: &str, role: &str, address: &str, request: http::request::Builder, body: Vec<u8>| {
        let key = SealingKey::load(&dir.path().join(format!("{who}.key"))).unwrap();
        let credentials = Credentials::load(&dir.path().join(who), &key).unwrap().unwrap();
        runtime.block_on(async {
            let (name, tls) = (format!("{role}.main.tidegate.internal"), std::sync::Arc::clone(&credentials.client));
            let mut connection = link::connect(address, &name, tls).await.map_err(|e| e.to_string())?;
            connection.send(request.body(link::full(body)).unwrap()).await.map(|answer| answer.status().as_u16())
        })
    };
    let asks = |edge: &str| {
        let request = http::Request::get("https://s.example/page").header("tidegate-site", "s").header("tidegate-scheme", "http");
        posts(edge, "shield", &shield, request, Vec::new())
    };
    let control = control_address(&network);
    let renews = |edge: &str| {
        let (_, request) = tidegate_certs::ca::request().unwrap();
        posts(edge, "control", &control, http::Request::post("https://node/renew"), request)
    };
    let watches = |edge: &str| posts(edge, "control", &control, http::Request::post("https://node/watch"), Vec::new());
    wait_for("the shield to know the edge", || (asks("edge-1") == Ok(200)).then_some(()));
    let elsewhere = asks("edge-2");
    assert!(elsewhere.is_err(), "an edge of another region: {elsewhere:?}");
    // It is told nothing of its removal, as if it were in a thief's hands.
    network.node("edge-1").kill();
    done(&network.tidegate(&["node", "remove", "edge-1", "--dead"]));
    wait_for("the end of its answers", || (asks("edge-1") == Ok(421)).then_some(()));
    assert_eq!(renews("edge-1"), Ok(403));
    // Another machine gets its name.
    let forgotten = || !text(&network.tidegate(&["node", "list"]).stdout).contains("edge-1");
    wait_for("its name to be free", || forgotten().then_some(()));
    let token = done(&network.tidegate(&["token", "create", "--join", "edge"])).trim().to_owned();
    assert!(enrols(&network, "edge-1", "another", &token).contains("this edge serves"));
    wait_for("the shield to know the other", || (asks("another") == Ok(200)).then_some(()));
    assert_eq!((renews("another"), watches("another")), (Ok(200), Ok(200)));
    assert_eq!((asks("edge-1"), renews("edge-1"), watches("edge-1")), (Ok(421), Ok(403), Ok(410)));
}

#[test]
fn a_clock_that_is_off_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let mut network = Network::planned(dir.path(), Plan::default());
    let day = 86_400;
    // Of its certificate, or of the other side's, one is not valid yet or no more.
    for days in [-30, 400] {
        network.node("edge-1").kill();
        network.node("edge-1").start_later(days * day);
        let said = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            wait_for("its words", || network.node_logged("edge-1").contains("look at the clocks of both machines").then_some(()));
        }));
        assert!(said.is_ok(), "{days}: {}", network.node_logged("edge-1"));
    }
    // With the right time it is as it was.
    network.node("edge-1").kill();
    network.node("edge-1").start();
    network.attached();
}

#[test]
fn a_node_that_was_away_for_too_long_is_refused_and_told_so() {
    let dir = tempfile::tempdir().unwrap();
    let mut network = Network::planned(dir.path(), Plan::default());
    // Its certificate ended 113 days ago: it is good for nothing, not even for its own renewal.
    for name in ["edge-1", "control-1"] {
        network.node(name).kill();
        network.node(name).start_later(120 * 86_400);
    }
    wait_for("the refusal", || network.node_logged("edge-1").contains("CertificateExpired").then_some(()));
    let nodes = network.json(&["node", "list"]);
    let edge = nodes.as_array().unwrap().iter().find(|n| n["name"] == "edge-1").unwrap();
    assert_eq!(edge["state"], "detached", "{nodes}");
}

#[test]
fn a_control_node_that_is_lost_is_removed_and_another_takes_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let mut network = Network::planned(dir.path(), Plan { controls: 3, ..Plan::default() });
    let status = network.json(&["status"]);
    let leader = status["leader"].as_str().unwrap().to_owned();
    let refused = network.tidegate(&["node", "remove", &leader]);
    assert!(error_of(&refused).contains("leads the control plane: stop it first"), "{}", error_of(&refused));
    let lost = (1..=3).map(|n| format!("control-{n}")).find(|n| *n != leader).unwrap();
    network.node(&lost).kill();
    let refused = network.tidegate(&["control", "rotate-key"]);
    assert!(error_of(&refused).contains(&format!("remove it (tidegate node remove {lost})")), "{}", error_of(&refused));
    // Not the one that is still there, without which nothing could be decided.
    let other = (1..=3).map(|n| format!("control-{n}")).find(|n| *n != leader && *n != lost).unwrap();
    let refused = network.tidegate(&["node", "remove", &other]);
    assert!(error_of(&refused).contains(&format!("1 of 3 control nodes do not answer ({lost})")), "{}", error_of(&refused));
    done(&network.tidegate(&["node", "remove", &lost]));
    let members = network.json(&["control", "members"]);
    assert_eq!(members.as_array().unwrap().len(), 2, "{members}");
    assert_eq!(network.json(&["control", "rotate-key"])["sealed_otherwise"], 0);
    // What it kept is of no use to it any more, and another one of its name begins with nothing.
    network.node(&lost).start();
    let node = network.node(&lost);
    wait_for("it to end", || node.has_ended().then_some(()));
    assert!(node.logged().contains("the network removed this control node; to bring it back, empty"), "{}", node.logged());
    for gone in [lost.clone(), format!("{lost}.cluster.key")] {
        let path = dir.path().join(gone);
        if path.is_dir() { std::fs::remove_dir_all(path).unwrap() } else { std::fs::remove_file(path).unwrap() }
    }
    network.enrol_again(&lost);
    let config = network.node(&lost).config.display().to_string();
    wait_for("it to join", || tidegate(&["control", "join", "--config", &config], &[]).status.success().then_some(()));
    network.node(&lost).start();
    wait_for("it to vote", || {
        let members = network.json(&["control", "members"]);
        let again = members.as_array()?.iter().find(|m| m["name"] == *lost)?.clone();
        assert_eq!(again["id"], 4, "no id is given twice: {members}");
        (again["state"] != "learner").then_some(())
    });
    assert_eq!(network.json(&["control", "rotate-key"])["sealed_otherwise"], 0);
}

#[test]
fn a_backup_from_before_a_rotation_brings_the_network_back_and_nothing_that_was_retired() {
    let dir = tempfile::tempdir().unwrap();
    let mut network = Network::planned(dir.path(), Plan::default());
    let nginx = origin(dir.path());
    network.site("s", "\"s.example\"", &nginx.url(), "");
    let backup = dir.path().join("backup").display().to_string();
    done(&network.tidegate(&["control", "backup", &backup]));
    let old = issuing(&network).remove(0);
    done(&network.tidegate(&["control", "ca", "rotate"]));
    issuing(&network);
    done(&network.tidegate(&["control", "ca", "retire", &old]));
    done(&network.tidegate(&["control", "rotate-key"]));
    network.node("control-1").kill();
    std::fs::remove_dir_all(dir.path().join("control-1")).unwrap();
    let config = network.nodes[0].config.display().to_string();
    let said = done(&tidegate(&["control", "restore", "--config", &config, &backup], &[]));
    assert!(said.contains("It seals with the cluster key of then"), "{said}");
    network.node("control-1").start();
    // The edge, which believes the old authority no more, comes back by itself.
    network.attached();
    assert!(!issuing(&network)[0].contains(&old));
    assert_eq!(network.json(&["control", "rotate-key"])["sealed_otherwise"], 0);
    wait_for("the page", || {
        let trusting = Trusting::authority(&network.ca);
        Https::to(network.edges()[0], "s.example", &trusting).ok()?.get("/page").ok().filter(|got| got.0 == 200)
    });
}

/// What an edge of that name says that enrols, with files of its own, until it serves or has ended.
fn enrols(network: &Network, name: &str, file: &str, token: &str) -> String {
    let (config, dir) = (network.dir.join(format!("{file}.toml")), network.dir.display());
    std::fs::write(network.dir.join(format!("{file}.join")), token).unwrap();
    let control = std::fs::read_to_string(&network.edges()[0].config).unwrap();
    let control = control.lines().find(|l| l.starts_with("control =")).unwrap().to_owned();
    let text = format!(
        "name = \"{name}\"\nregion = \"eu\"\ndata = \"{dir}/{file}\"\nnode_key = \"{dir}/{file}.key\"\njoin_token_file = \"{dir}/{file}.join\"\n{control}\nhttp = [\"127.0.0.1:0\"]\nhttps = []\nadmin = \"127.0.0.1:0\"\n"
    );
    std::fs::write(&config, text).unwrap();
    let log = network.dir.join(format!("{file}.log"));
    let mut command = command_on(None, binary());
    let mut process = Process::start(command.args(["edge", "--config"]).arg(&config).env("TIDEGATE_LOG", "info"), &log);
    wait_for("it to serve or to end", || {
        let is_done = process.child.try_wait().unwrap().is_some() || process.logged().contains("this edge serves");
        is_done.then_some(())
    });
    process.kill();
    process.logged()
}

#[test]
fn whoever_may_not_enrol_is_told_why() {
    let (dir, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let network = Network::planned(dir.path(), Plan::default());
    let other = Network::planned(elsewhere.path(), Plan { edges: 0, ..Plan::default() });
    let token =
        |network: &Network, more: &[&str]| done(&network.tidegate(&[&["token", "create", "--join"], more].concat())).trim().to_owned();

    let used = token(&network, &["edge"]);
    assert!(enrols(&network, "good", "good", &used).contains("this edge serves"));
    let short = token(&network, &["edge", "--ttl", "1s"]);
    std::thread::sleep(Duration::from_millis(1100));
    let revoked = token(&network, &["edge"]);
    done(&network.tidegate(&["token", "revoke", revoked.split('_').nth(1).unwrap()]));
    let no_more = "the join token is unknown, used up, revoked or expired: make another (tidegate token create --join ROLE)";
    let is_there = "there is a node good already: remove it first, or choose another name";
    for (name, file, token, why) in [
        ("replay", "replay", used, no_more),
        ("late", "late", short, no_more),
        ("revoked", "revoked", revoked, no_more),
        ("role", "role", token(&network, &["shield"]), "the join token is for the role shield, and role is to be edge"),
        ("region", "region", token(&network, &["edge", "--region", "us"]), "the join token is for another region than eu"),
        ("good", "second", token(&network, &["edge"]), is_there),
        ("foreign", "foreign", token(&other, &["edge"]), "the control node's CA is not the one that the join token names"),
        ("garbage", "garbage", "tgj_nonsense".into(), "holds no join token"),
    ] {
        let log = enrols(&network, name, file, &token);
        assert!(log.contains(why) && !log.contains("this edge serves"), "{name}: {log}");
    }
    // Twice at once: one gets in.
    let for_both = token(&network, &["edge"]);
    let logs = std::thread::scope(|scope| {
        let all = ["twin-1", "twin-2"].map(|name| {
            let (n, t) = (&network, &for_both);
            scope.spawn(move || enrols(n, name, name, t))
        });
        all.map(|t| t.join().unwrap())
    });
    assert_eq!(logs.iter().filter(|l| l.contains("this edge serves")).count(), 1, "{logs:?}");
    assert_eq!(logs.iter().filter(|l| l.contains(no_more)).count(), 1, "{logs:?}");
    // A node that did not hear the answer asks once more, and gets it. Whoever else has read its token gets nothing.
    let token = tidegate_certs::token::JoinToken::parse(&token(&network, &["edge"])).unwrap();
    let control = control_address(&network);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let asks = |request: &[u8]| {
        let node = NodeState {
            name: "deaf".parse().unwrap(),
            role: Role::Edge,
            region: "eu".into(),
            address: None,
            advertise: Vec::new(),
            drained: false,
            since: 0,
        };
        let body = EnrolRequest { join_id: token.id.clone(), join_secret: token.secret, node, request: request.to_vec() };
        runtime.block_on(async {
            let tls = std::sync::Arc::new(tidegate_certs::tls::enrolling_client(&token));
            let mut connection = link::connect(&control, "control.main.tidegate.internal", tls).await.unwrap();
            let request = http::Request::post("https://node/enrol").body(link::full(wire::encode(&body))).unwrap();
            connection.send(request).await.unwrap().status().as_u16()
        })
    };
    let request = || tidegate_certs::ca::request().unwrap().1;
    let mine = request();
    assert_eq!([asks(&mine), asks(&mine), asks(&request()), asks(&mine)], [200, 200, 403, 200]);
    // A node that was removed is told so when it comes back.
    done(&network.tidegate(&["node", "remove", "good", "--dead"]));
    let mut command = command_on(None, binary());
    command.args(["edge", "--config"]).arg(dir.path().join("good.toml"));
    let mut good = Process::start(&mut command, &dir.path().join("good.again"));
    assert_eq!(good.ended(), 1);
    assert!(good.logged().contains("the control plane removed this node; to bring it back, empty"), "{}", good.logged());
}
