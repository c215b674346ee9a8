//! `tidegate explain`: what each node says it holds and would do is what it does.

#![allow(clippy::unwrap_used, clippy::panic, clippy::disallowed_methods)] // A test fails by panicking.

mod support;

use serde_json::{Value, json};
use support::network::Network;
use support::{Nginx, error_of, get_with, text, wait_for};

const HOST: &str = "shop.example";

/// What one node says.
fn said<'a>(all: &'a Value, node: &str) -> &'a Value {
    &all["nodes"].as_array().unwrap().iter().find(|n| n["name"] == node).unwrap()["explained"]
}

#[test]
fn what_nodes_say_is_what_they_do() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    std::fs::create_dir_all(&root).unwrap();
    std::fs::write(root.join("a.txt"), "text ".repeat(2000)).unwrap();
    let extra = "add_header Cache-Control 'max-age=1000, stale-while-revalidate=50'; add_header Surrogate-Key red;
        location = /varied { default_type text/plain; add_header Cache-Control max-age=5; add_header CDN-Cache-Control max-age=900;
            add_header Vary Accept-Language; return 200 hello; }
        location = /mine { add_header Cache-Control private; return 200 mine; }
        location = /broken { return 444; }
        location = /old { add_header Cache-Control max-age=0; add_header ETag '\"a\"'; return 200 old; }
        location = /older { add_header Cache-Control max-age=0; return 200 older; }";
    let nginx = Nginx::start(&dir.path().join("nginx"), &root, extra);
    // The nodes watch any of the control nodes.
    let mut network = Network::start(dir.path(), 3, 1, 2, "1s");
    network.site("shop", &format!("\"{HOST}\""), &nginx.url(), "");
    let edge = network.edges()[0].address();
    let origin = format!("http://{HOST}:{}", edge.port());
    let ask = |network: &Network, path: &str, headers: &[&str]| {
        let url = format!("{origin}{path}");
        let mut arguments = vec!["explain", url.as_str()];
        headers.iter().for_each(|h| arguments.extend(["-H", h]));
        network.json(&arguments)
    };
    let get = |path: &str, headers: &[(&str, &str)]| {
        let host = format!("{HOST}:{}", edge.port());
        get_with(edge, &host, path, headers)
    };

    let nothing = ask(&network, "/a.txt", &[]);
    assert_eq!(nothing["nodes"].as_array().unwrap().len(), 3, "{nothing}");
    for node in ["edge-1", "edge-2", "shield-1"] {
        let said = said(&nothing, node);
        assert_eq!((&said["next"], &said["variants"], &said["attached"]), (&json!("fetch"), &json!([]), &json!(true)), "{said}");
    }
    get("/a.txt", &[("Accept-Encoding", "br")]);
    wait_for("the coding", || get("/a.txt", &[("Accept-Encoding", "br")]).header("content-encoding").map(|_| ()));
    let all = ask(&network, "/a.txt", &["Accept-Encoding: br"]);
    for (node, next) in [("edge-1", "hit"), ("edge-2", "fetch"), ("shield-1", "hit")] {
        assert_eq!(said(&all, node)["next"], next, "{all}");
    }
    let e = said(&all, "edge-1");
    assert_eq!(e["key"], json!(["shop", "http", format!("{HOST}:{}", edge.port()), "/a.txt"]));
    let v = &e["variants"][0];
    assert_eq!((&v["selected"], &v["lifetime"], &v["lifetime_by"]), (&json!(true), &json!(1000), &json!("max-age")));
    assert_eq!((&v["standing"], &v["bytes"], &v["tags"]), (&json!("current"), &json!(10_000), &json!(["red"])));
    assert_eq!(v["bytes_here"], v["bytes"]);
    assert_eq!(v["codings"][0][0], "br");
    assert!(e["why"].as_str().unwrap().starts_with("max-age says 1000 s, its age is"), "{e}");

    // A request may want it newer; a purge may want it stale, or gone.
    assert_eq!(said(&ask(&network, "/a.txt", &["Cache-Control: no-cache"]), "edge-1")["next"], "validate");
    network.purge(&["tag", "red", "--site", "shop", "--soft"]);
    let soft = ask(&network, "/a.txt", &[]);
    assert_eq!(
        (&said(&soft, "edge-1")["next"], &said(&soft, "edge-1")["variants"][0]["standing"]),
        (&json!("hit_stale"), &json!("softly_purged"))
    );
    network.purge(&["url", &format!("http://{HOST}/a.txt")]);
    let hard = ask(&network, "/a.txt", &[]);
    assert_eq!((&said(&hard, "edge-1")["next"], &said(&hard, "edge-1")["variants"][0]["standing"]), (&json!("fetch"), &json!("purged")));

    // Variants, targeted fields, what is stale at once and what may not be shared.
    get("/varied", &[("Accept-Language", "de")]);
    let varied = ask(&network, "/varied", &["Accept-Language: de"]);
    assert_eq!((&said(&varied, "edge-1")["next"], &said(&varied, "edge-1")["variants"][0]["lifetime"]), (&json!("hit"), &json!(900)));
    assert!(said(&varied, "edge-1")["why"].as_str().unwrap().contains("targeted"));
    assert_eq!(said(&ask(&network, "/varied", &["Accept-Language: fr"]), "edge-1")["next"], "fetch");
    get("/old", &[]);
    assert_eq!(said(&ask(&network, "/old", &[]), "edge-1")["next"], "validate");
    get("/mine", &[]);
    get("/older", &[]);
    for (path, why) in [("/mine", "its Cache-Control has private"), ("/older", "it is stale at once, and has neither")] {
        let all = ask(&network, path, &[]);
        let said = said(&all, "edge-1");
        assert!(said["next"] == "pass" && said["why"].as_str().unwrap().contains(why), "{said}");
    }
    let with_password = ask(&network, "/a.txt", &["Authorization: Basic x"]);
    assert_eq!(said(&with_password, "edge-2")["why"], "the request has Authorization");

    // The recent failures and their causes.
    assert_eq!(get("/broken", &[]).status, 502);
    for node in ["edge-1", "shield-1"] {
        let all = ask(&network, "/broken", &[]);
        assert!(said(&all, node)["why"].as_str().unwrap().contains("failed here: the origin closed the connection"), "{all}");
    }

    // For people.
    let shown = text(&network.tidegate(&["explain", &format!("{origin}/varied")]).stdout);
    assert!(shown.contains("NEXT") && shown.contains("edge-2") && shown.contains("accept-language: de"), "{shown}");
    // What is wrong is said.
    for (arguments, code, word) in [
        (&["explain", "shop.example/a"][..], 1, "is not a URL"),
        (&["explain", "http://other.example/"], 3, "no site serves the host"),
        (&["explain", "http://shop.example/", "-H", "nonsense"], 2, "is not a field"),
        (&["explain", "http://shop.example/", "-H", "a b: c"], 1, "is not a field"),
    ] {
        let out = network.tidegate(arguments);
        assert!(out.status.code() == Some(code) && error_of(&out).contains(word), "{arguments:?}: {}", error_of(&out));
    }
    // A node that is down says nothing.
    network.node("edge-2").kill();
    let silent = wait_for("its stream to end", || Some(ask(&network, "/varied", &[])).filter(|all| said(all, "edge-2").is_null()));
    assert!(!said(&silent, "edge-1").is_null());
}
