//! The whole state saved, lost and restored, with the caches that outlived it.

#![allow(clippy::unwrap_used)] // A test fails by panicking.

mod support;

use support::network::{Network, Plan};
use support::{Nginx, error_of, get, text, tidegate, wait_for};

#[test]
fn a_network_restored_from_a_backup_serves_nothing_that_was_purged_since() {
    let dir = tempfile::tempdir().unwrap();
    let mut network = Network::planned(dir.path(), Plan { shields: 1, ..Plan::default() });
    let root = dir.path().join("root");
    std::fs::create_dir_all(&root).unwrap();
    let page = |says: &str| std::fs::write(root.join("x"), says).unwrap();
    page("first");
    let origin = Nginx::start(&dir.path().join("origin"), &root, "add_header Cache-Control 'max-age=3600';");
    network.site("shop", "\"shop.example\"", &origin.url(), "");
    let edge = network.edges()[0].address();
    assert_eq!(get(edge, "shop.example", "/x").text(), "first");

    let file = dir.path().join("saved");
    let path = file.to_str().unwrap().to_owned();
    let out = network.tidegate(&["control", "backup", &path]);
    assert!(out.status.success() && text(&out.stdout).contains("cluster key"), "{}", error_of(&out));
    let again = network.tidegate(&["control", "backup", &path]);
    assert!(!again.status.success() && error_of(&again).contains("is there already"), "{}", error_of(&again));

    // What happens from here on, the backup does not know.
    page("second, of another length");
    network.purge(&["url", "shop.example/x"]);
    assert_eq!(get(edge, "shop.example", "/x").text(), "second, of another length");
    assert!(get(edge, "shop.example", "/x").is_hit());

    let config = network.node("control-1").config.to_str().unwrap().to_owned();
    let restore = |file: &str| tidegate(&["control", "restore", "--config", &config, file], &[]);
    let refused = restore(&path);
    assert!(!refused.status.success() && error_of(&refused).contains("control node already"), "{}", error_of(&refused));
    network.node("control-1").kill();
    std::fs::remove_dir_all(dir.path().join("control-1")).unwrap();
    let torn = dir.path().join("torn");
    let whole = std::fs::read(&file).unwrap();
    std::fs::write(&torn, &whole[..whole.len() - 1]).unwrap();
    let refused = restore(torn.to_str().unwrap());
    assert!(!refused.status.success() && error_of(&refused).contains("cut short or damaged"), "{}", error_of(&refused));
    let restored = restore(&path);
    assert!(restored.status.success() && text(&restored.stdout).contains("1 sites, 2 edges and shields"), "{}", error_of(&restored));

    network.node("control-1").start();
    wait_for("the control plane", || network.tidegate(&["status"]).status.success().then_some(()));
    network.attached();
    let answer = get(edge, "shop.example", "/x");
    assert!(answer.text() == "second, of another length" && !answer.is_hit(), "{answer:?}");
    assert!(get(edge, "shop.example", "/x").is_hit(), "vouched for again");
    page("third");
    network.purge(&["url", "shop.example/x"]);
    assert_eq!(get(edge, "shop.example", "/x").text(), "third");
}
