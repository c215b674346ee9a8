//! What must never be served: torn bodies, what was purged under another name, what a cut-off node cannot know of.

#![allow(clippy::unwrap_used, clippy::disallowed_methods)] // A test fails by panicking.

mod support;

use std::io::Write;
use std::net::TcpListener;
use std::path::Path;
use support::network::{Network, Plan};
use support::{Dev, Http, Nginx, get, text, wait_for};

fn nginx(dir: &Path, name: &str, body: &str, cache_control: &str) -> Nginx {
    let root = dir.join(name);
    std::fs::create_dir_all(&root).unwrap();
    std::fs::write(root.join("x"), body).unwrap();
    Nginx::start(&dir.join(format!("{name}.nginx")), &root, &format!("add_header Cache-Control '{cache_control}';"))
}

#[test]
fn a_host_that_moves_between_sites_takes_no_old_content_along() {
    let dir = tempfile::tempdir().unwrap();
    let network = Network::planned(dir.path(), Plan { shields: 1, ..Plan::default() });
    let edge = network.edges()[0].address();
    let (a, b) = (nginx(dir.path(), "a", "a, first", "max-age=3600"), nginx(dir.path(), "b", "b", "max-age=3600"));
    network.site("a", "\"h.example\"", &a.url(), "");
    assert_eq!(get(edge, "h.example", "/x").text(), "a, first");
    assert!(get(edge, "h.example", "/x").is_hit());
    network.site("a", "\"elsewhere.example\"", &a.url(), "");
    assert_eq!(get(edge, "h.example", "/x").status, 421);
    network.site("b", "\"h.example\"", &b.url(), "");
    assert_eq!(get(edge, "h.example", "/x").text(), "b");
    // Purged while the host is the other site's: that purge is true for what the first one stored, too.
    std::fs::write(dir.path().join("a/x"), "a, second").unwrap();
    network.purge(&["url", "h.example/x"]);
    network.site("b", "\"other.example\"", &b.url(), "");
    network.site("a", "\"h.example\"", &a.url(), "");
    assert_eq!(get(edge, "h.example", "/x").text(), "a, second");
}

#[test]
fn a_cut_off_edge_that_has_to_revalidate_never_answers_by_itself() {
    let dir = tempfile::tempdir().unwrap();
    let mut network = Network::planned(dir.path(), Plan { lease: "3s", ..Plan::default() });
    let edge = network.edges()[0].address();
    let mut origin = nginx(dir.path(), "o", "content", "max-age=3600, stale-if-error=3600");
    let cache = |mode: &str| format!("[cache]\nwhen_detached = \"{mode}\"");
    network.site("strict", "\"strict.example\"", &origin.url(), &cache("revalidate"));
    network.site("shut", "\"shut.example\"", &origin.url(), &cache("refuse"));
    network.site("loose", "\"loose.example\"", &origin.url(), "");
    network.attached();
    for host in ["strict.example", "shut.example", "loose.example"] {
        assert_eq!(get(edge, host, "/x").text(), "content");
        assert!(get(edge, host, "/x").is_hit());
    }
    network.node("control-1").kill();
    let refused = wait_for("the lease to end", || Some(get(edge, "shut.example", "/x")).filter(|r| r.status != 200));
    assert_eq!(refused.status, 503);
    let alone = get(edge, "loose.example", "/x");
    assert!(alone.is_hit() && alone.cache_status().contains("detail=detached"), "{alone:?}");
    let asked = wait_for("a validation", || Some(get(edge, "strict.example", "/x")).filter(|r| !r.is_hit()));
    assert!(asked.status == 200 && asked.cache_status().contains("fwd-status=304"), "{asked:?}");
    origin.stop();
    // A purge may have been answered that counts this node as silent: stale-if-error must not make it speak.
    let silent = wait_for("the second to be over", || Some(get(edge, "strict.example", "/x")).filter(|r| !r.is_hit()));
    assert!(silent.status == 502, "{silent:?}");
    assert_eq!(get(edge, "loose.example", "/x").text(), "content");
    // Back again: attached, and hits as before.
    network.node("control-1").start();
    wait_for("the edge to be attached", || get(edge, "shut.example", "/x").is_hit().then_some(()));
}

/// An origin whose bodies end with the connection; every second one is torn, which nobody can tell.
fn unframed_origin() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        let mut torn = true;
        for mut stream in listener.incoming().map_while(Result::ok) {
            let head = support::request_head(&mut stream);
            let upgrade = head.to_lowercase().contains("upgrade: echo");
            let body = if torn && !upgrade { "half of" } else { "half of it, and all" };
            torn = !torn;
            let _ =
                stream.write_all(format!("HTTP/1.1 200 OK\r\nCache-Control: max-age=3600\r\nConnection: close\r\n\r\n{body}").as_bytes());
        }
    });
    url
}

#[test]
fn a_body_whose_end_nobody_can_tell_is_kept_by_no_tier() {
    let dir = tempfile::tempdir().unwrap();
    let origin = unframed_origin();
    for shields in ["0", "1"] {
        let dev = Dev::start(dir.path(), &["--origin", &origin, "--shields", shields]);
        let mut seen: Vec<_> = (0..4).map(|_| get(dev.http[0], "a", "/x")).map(|r| (r.is_hit(), r.text())).collect();
        seen.sort();
        assert!(seen.iter().all(|(hit, _)| !hit), "{seen:?} with {shields} shields");
        assert!(seen.first().unwrap().1 == "half of" && seen.last().unwrap().1 == "half of it, and all", "{seen:?}");
    }
}

#[test]
fn an_upgrade_that_is_not_granted_leaves_a_usable_connection() {
    let dir = tempfile::tempdir().unwrap();
    let dev = Dev::start(dir.path(), &[]);
    let mut http = Http::connect(dev.http[0]).unwrap();
    let answer = http.ask("GET", "a", "/hello.txt", &[("Connection", "Upgrade"), ("Upgrade", "echo")]).unwrap();
    assert_eq!(answer.status, 200, "{}", text(&answer.body));
    assert_eq!(http.ask("GET", "a", "/hello.txt", &[]).unwrap().status, 200);
}

#[test]
fn a_removed_edge_says_that_it_has_ended_and_does_not_begin_anew() {
    let dir = tempfile::tempdir().unwrap();
    let mut network = Network::planned(dir.path(), Plan { edges: 2, ..Plan::default() });
    let origin = nginx(dir.path(), "o", "content", "max-age=3600");
    network.site("loose", "\"loose.example\"", &origin.url(), "");
    let gone = network.node("edge-1").address();
    assert_eq!(get(gone, "loose.example", "/x").text(), "content");
    assert!(network.tidegate(&["node", "remove", "edge-1"]).status.success());
    // Nobody has to vouch for it, although its site lets it serve on its own.
    wait_for("the edge to be forgotten", || (!text(&network.tidegate(&["node", "list"]).stdout).contains("edge-1")).then_some(()));
    assert!(Http::connect(gone).is_err() || get(gone, "loose.example", "/x").status == 503);
    network.purge(&["url", "loose.example/x"]);
    let node = network.node("edge-1");
    assert_eq!(node.process.as_mut().unwrap().ended(), 1);
    // Cut off as well: its control node is gone when its supervisor starts it again.
    network.node("control-1").kill();
    let node = network.node("edge-1");
    node.start();
    assert_eq!(node.process.as_mut().unwrap().ended(), 1);
    assert!(node.logged().contains("the control plane removed this node"), "{}", node.logged());
}
