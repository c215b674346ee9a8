//! The public suite of tests for HTTP caches (npm's http-cache-tests), over one tier and over two. `tests/run` installs it.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout)] // A test fails by panicking, and its score is for people.

mod support;

use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use support::{Dev, Process, error_of, free_port, loopback, wait_for};

/// What does not pass, and why it cannot.
const LEFT: [(&str, &str); 24] = [
    // They want an Age that cannot be read, or that comes twice, to make the response stale. RFC 9111 section 5.1: a cache should use
    // the first member of a list, and ignore a field that is invalid.
    ("age-parse-dup-0", "the first member counts (RFC 9111 section 5.1)"),
    ("age-parse-dup-0-twoline", "as above"),
    ("age-parse-dup-old", "as above"),
    ("age-parse-prefix-twoline", "as above, and as age-parse-prefix wants it"),
    ("age-parse-float", "what is no number of seconds is ignored (RFC 9111 section 5.1)"),
    ("age-parse-negative", "as above"),
    ("age-parse-nonnumeric", "as above"),
    ("age-parse-numeric-parameter", "as above"),
    ("age-parse-parameter", "as above"),
    // They expect the number that the origin gives its answers, in an answer to which the origin gave none.
    ("stale-close-must-revalidate", "no answer can pass it once the origin has closed the connection"),
    ("stale-close-proxy-revalidate", "as above"),
    ("stale-close-no-cache", "as above"),
    ("stale-close-s-maxage=2", "as above"),
    ("headers-store-Set-Cookie", "a cookie is never handed to another client"),
    ("304-etag-update-response-Set-Cookie", "a cookie is never handed to another client"),
    // A coding that nobody knows: the body ends with its connection (RFC 9112 section 6.3).
    ("headers-store-Transfer-Encoding", "a body that only its connection ends is not kept: a torn one looks the same"),
    ("304-etag-update-response-ETag", "a 304 with another strong validator must not update what is stored (RFC 9111 section 4.3.4)"),
    ("conditional-lm-fresh-no-lm", "its date is before the stored Date, which stands in for Last-Modified (RFC 9111 section 4.3.2)"),
    ("vary-normalise-space", "of a field that nobody knows, nobody knows that it is a list (RFC 9111 section 4.1)"),
    // Five bytes that claim to be six.
    ("partial-store-partial-reuse-partial", "its Content-Range does not fit its body"),
    ("partial-store-partial-reuse-partial-byterange", "as above"),
    ("partial-store-partial-reuse-partial-absent", "as above"),
    ("partial-store-partial-reuse-partial-suffix", "as above"),
    ("partial-store-partial-complete", "parts without a strong validator may not be combined (RFC 9111 section 3.4)"),
];

fn suite() -> PathBuf {
    let home = Path::new(env!("CARGO_TARGET_TMPDIR")).join("http-cache-tests");
    let suite = home.join("node_modules/http-cache-tests");
    assert!(suite.exists(), "the suite is not there: npm install --prefix {} http-cache-tests@0.4.5", home.display());
    suite
}

fn node(arguments: &[&str], environment: &[(&str, &str)]) -> String {
    let mut node = Command::new("node");
    node.arg("--no-warnings").args(arguments).envs(environment.iter().copied()).current_dir(suite());
    let out = node.output().unwrap();
    assert!(out.status.success(), "{}", error_of(&out));
    String::from_utf8(out.stdout).unwrap()
}

struct Test {
    required: bool,
    needs: Vec<String>,
}

/// By their names, those that say something of a cache that is no browser's.
fn tests() -> BTreeMap<String, Test> {
    let text = node(
        &[
            "--input-type=module",
            "--eval",
            "import suites from './tests/index.mjs'; console.log(JSON.stringify(suites.flatMap(s => s.tests).filter(t => !t.browser_only)))",
        ],
        &[],
    );
    let all: Vec<Value> = serde_json::from_str(&text).unwrap();
    let judged = all.iter().filter(|t| t["kind"] != "check");
    let named = judged.map(|t| {
        let needs = t["depends_on"].as_array().into_iter().flatten().filter_map(|n| n.as_str().map(str::to_owned)).collect();
        (t["id"].as_str().unwrap().to_owned(), Test { required: t["kind"] != "optimal", needs })
    });
    named.collect()
}

fn run(shields: &str) {
    let dir = tempfile::tempdir().unwrap();
    let port = free_port();
    let mut server = Command::new("node");
    server.args(["--no-warnings", "server/server.mjs"]).current_dir(suite());
    server.env("npm_config_port", port.to_string()).env("npm_config_protocol", "http").env("npm_config_pidfile", dir.path().join("pid"));
    let _origin = Process::start(&mut server, &dir.path().join("origin.log"));
    wait_for("the suite's origin", || TcpStream::connect(loopback(port)).ok());
    let dev = Dev::start(dir.path(), &["--origin", &format!("http://127.0.0.1:{port}"), "--shields", shields]);
    let base = format!("http://{}", dev.http[0]);
    let out = node(&["cli.mjs"], &[("npm_config_base", &base), ("npm_config_id", ""), ("npm_package_config_id", "")]);
    let results: BTreeMap<String, Value> = serde_json::from_str(out.get(out.find('{').unwrap()..).unwrap()).unwrap();
    let tests = tests();
    let passes = |id: &str| results.get(id) == Some(&Value::Bool(true));
    let judged = || tests.iter().filter(|(id, _)| results.contains_key(*id));
    let score = |required: bool| {
        let of_kind = || judged().filter(|(_, t)| t.required == required);
        let passed = of_kind().filter(|(id, t)| passes(id) && t.needs.iter().all(|n| passes(n))).count();
        format!("{passed}/{}", of_kind().count())
    };
    println!("{shields} shields: required {}, optimal {}", score(true), score(false));
    let failed: BTreeSet<_> = judged().filter(|(id, _)| !passes(id)).map(|(id, _)| id.as_str()).collect();
    let left: BTreeSet<_> = LEFT.iter().map(|(id, _)| *id).collect();
    let why = |id: &&str| format!("{id}: {}", results[*id]);
    let new: Vec<_> = failed.difference(&left).map(why).collect();
    assert!(new.is_empty(), "{new:#?}");
    assert!(left.is_subset(&failed), "they pass now: {:?}", left.difference(&failed).collect::<Vec<_>>());
    assert!(judged().count() > 200, "the suite did not run");
}

#[test]
fn one_tier_passes_what_can_be_passed() {
    run("0");
}

#[test]
fn two_tiers_pass_what_can_be_passed() {
    run("1");
}
