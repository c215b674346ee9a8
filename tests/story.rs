//! docs/cname.md, as it stands: its commands in their order, against a network of processes and a resolver that nobody here wrote.

#![allow(clippy::unwrap_used, clippy::disallowed_methods)] // A test fails by panicking.

mod support;

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Output};
use support::network::{Network, Plan};
use support::pebble::{Place, resolver};
use support::{Nginx, binary, free_port, text};

/// The commands of the page, block by block, and the site file in it.
fn page() -> (Vec<String>, String) {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/cname.md")).unwrap();
    let blocks = |language: &str| -> Vec<String> {
        let begin = format!("```{language}\n");
        page.split(&begin).skip(1).map(|rest| rest.split("```").next().unwrap().to_owned()).collect()
    };
    (blocks("sh"), blocks("toml").remove(0))
}

/// A program of this name that is called with more than was written: where the test's resolver and ports are.
fn stand_in(bin: &Path, name: &str, script: &str) {
    let file = bin.join(name);
    std::fs::write(&file, format!("#!/bin/sh\n{script}\n")).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
}

fn run(block: &str, dir: &Path, bin: &Path) -> Output {
    let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
    Command::new("sh").args(["-e", "-c", block]).current_dir(dir).env("PATH", path).output().unwrap()
}

#[test]
fn from_a_cname_to_a_page() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let port = free_port();
    let place = Place::new(dir);
    let control_more = format!("zone = \"cdn.test\"\nname_servers = [\"127.0.0.1:{port}\"]\n{}", place.settings(""));
    let plan = Plan { edges: 1, dns: 1, control_more: &control_more, as_advertised: true, ..Plan::default() };
    let network = Network::planned(dir, plan);
    let root = dir.join("www");
    std::fs::create_dir_all(&root).unwrap();
    std::fs::write(root.join("page"), "a page of the shop\n").unwrap();
    let nginx = Nginx::start(&dir.join("nginx"), &root, "add_header Cache-Control max-age=3600;");
    let dns = network.nodes.iter().find(|n| n.role == "dns").unwrap().port;
    let (blocks, site) = page();
    let [before, after] = &blocks[..] else { panic!("docs/cname.md has {} blocks of commands", blocks.len()) };
    let site = site.replace("http://origin.shop.example\" }]", &format!("{}\" }}]\nallow_private = true", nginx.url()));
    std::fs::write(dir.join("shop.toml"), site).unwrap();
    let (http, https) = (network.edges()[0].port, network.edges()[0].https);
    let pebble = place.start(port, http, https, "", &[("PEBBLE_VA_NOSLEEP", "1")]);

    let bin = dir.join("bin");
    std::fs::create_dir(&bin).unwrap();
    let api = network.nodes[0].port;
    stand_in(&bin, "tidegate", &format!("TIDEGATE_API=http://127.0.0.1:{api} TIDEGATE_TOKEN={} exec {} \"$@\"", network.token, binary()));
    stand_in(&bin, "dig", &format!("exec /usr/bin/dig @127.0.0.1 -p {port} \"$@\""));
    // The world trusts the authority, and finds the edge's port where it has another.
    let curl = format!(
        "ip=$(/usr/bin/dig @127.0.0.1 -p {port} +short www.shop.example A | tail -1)\n\
         exec /usr/bin/curl --cacert {} --connect-to www.shop.example:443:$ip:{https} \"$@\"",
        pebble.root().display()
    );
    stand_in(&bin, "curl", &curl);

    let nobody = resolver(dir, port, dns, "local-zone: \"shop.example.\" static");
    let first = run(before, dir, &bin);
    let said = text(&first.stdout);
    assert!(first.status.success(), "{said}{}", text(&first.stderr));
    assert!(said.contains("CNAME shop.cdn.test") && said.contains("cdn.test. IN DS "), "{said}");
    assert!(said.contains("has no CNAME record") && said.ends_with("not yet\n"), "{said}");
    drop(nobody);

    let record = "local-zone: \"www.shop.example.\" redirect\n local-data: \"www.shop.example. 60 IN CNAME shop.cdn.test.\"";
    let somebody = resolver(dir, port, dns, record);
    let second = run(after, dir, &bin);
    let said = text(&second.stdout);
    assert!(second.status.success(), "{said}{}{}", text(&second.stderr), somebody.logged());
    assert!(said.contains("by CNAME") && said.contains("shop.cdn.test.\n127.0.1.1\n"), "{said}");
    assert!(said.contains("acme/shop is there, for www.shop.example"), "{said}");
    assert!(said.contains("dns-1 (eu) on shop.cdn.test.") && said.contains("a page of the shop\n"), "{said}");
    assert!(said.trim_end().rsplit('\n').next().unwrap().starts_with("edge-1; hit"), "{said}");

    // Who holds a name that may have no CNAME says it otherwise; an address alone says nothing.
    drop(somebody);
    let records = "local-zone: \"shop.example.\" static\n local-data: \"www.shop.example. 60 IN A 127.0.1.1\"";
    let third = resolver(dir, port, dns, records);
    let hosts = || network.tidegate(&["site", "hosts", "shop"]);
    assert_eq!(hosts().status.code(), Some(75), "{}", text(&hosts().stdout));
    drop(third);
    let records = format!("{records}\n local-data: '_tidegate.www.shop.example. 60 IN TXT \"shop.cdn.test\"'");
    let _fourth = resolver(dir, port, dns, &records);
    assert!(hosts().status.success() && text(&hosts().stdout).contains("by TXT"), "{}", text(&hosts().stdout));
}
