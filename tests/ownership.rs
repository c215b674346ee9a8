//! Whose a host is: a site answers for a host that leads to it, and nobody else does.

#![allow(clippy::unwrap_used, clippy::disallowed_methods)] // A test fails by panicking.

mod support;

use std::process::Output;
use support::network::{Network, Plan};
use support::pebble::{cnames, resolver};
use support::{Http, Nginx, error_of, free_port, text, tidegate, wait_for};

struct Tenants {
    network: Network,
    nginx: Nginx,
    port: u16,
    dns: u16,
}

impl Tenants {
    fn new(dir: &std::path::Path) -> Self {
        let port = free_port();
        let more = format!("zone = \"cdn.test\"\nname_servers = [\"127.0.0.1:{port}\"]");
        let network = Network::planned(dir, Plan { dns: 1, control_more: &more, ..Plan::default() });
        let dns = network.nodes.iter().find(|n| n.role == "dns").unwrap().port;
        let root = dir.join("www");
        std::fs::create_dir_all(&root).unwrap();
        std::fs::write(root.join("page"), "page").unwrap();
        Self { nginx: Nginx::start(&dir.join("nginx"), &root, "add_header Cache-Control max-age=3600;"), network, port, dns }
    }

    /// A token for one site alone, which is there.
    fn token(&self, site: &str) -> String {
        assert!(self.apply(None, site, &format!("\"{site}.example\""), &[]).status.success());
        let out = self.network.tidegate(&["token", "create", "--role", "deploy", "--site", site]);
        assert!(out.status.success(), "{}", error_of(&out));
        text(&out.stdout).trim().to_owned()
    }

    /// As whoever has this token; `None`: the admin.
    fn run(&self, token: Option<&str>, arguments: &[&str]) -> Output {
        let api = format!("http://127.0.0.1:{}", self.network.nodes[0].port);
        tidegate(arguments, &[("TIDEGATE_API", &api), ("TIDEGATE_TOKEN", token.unwrap_or(&self.network.token))])
    }

    fn apply(&self, token: Option<&str>, name: &str, hosts: &str, more: &[&str]) -> Output {
        let file = self.network.dir.join(format!("{name}.toml"));
        // A tenant's origin is no private one; nobody asks it here.
        let (url, private) =
            if token.is_some() { ("http://origin.example".to_owned(), "") } else { (self.nginx.url(), "allow_private = true\n") };
        let text = format!(
            "name = \"{name}\"\nhosts = [{hosts}]\n[origin]\nservers = [{{ url = \"{url}\" }}]\n{private}[tls]\ncertificate = \"internal\"\nredirect = false\n"
        );
        std::fs::write(&file, text).unwrap();
        self.run(token, &[&["site", "apply", file.to_str().unwrap()], more].concat())
    }

    fn status(&self, host: &str) -> u16 {
        let mut http = Http::connect_on(None, self.network.edges()[0].address()).unwrap();
        http.ask("GET", host, "/page", &[]).unwrap().status
    }

    fn until(&self, host: &str, status: u16) {
        wait_for(&format!("{status} from {host}"), || (self.status(host) == status).then_some(()));
    }
}

#[test]
fn a_host_is_served_for_the_site_that_it_leads_to_and_for_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let t = Tenants::new(dir.path());
    let (mine, yours) = (t.token("mine"), t.token("yours"));
    // One leads to a site, one has an address of this network's, one says by TXT whose it is.
    let records = cnames(&[("www.yours.example", "yours.cdn.test")])
        + "local-zone: \"bare.example.\" static\n local-data: \"bare.example. 60 IN A 127.0.1.1\"\n \
           local-zone: \"apex.example.\" static\n local-data: \"apex.example. 60 IN A 127.0.1.1\"\n \
           local-data: '_tidegate.apex.example. 60 IN TXT \"yours.cdn.test\"'\n";
    let first = resolver(dir.path(), t.port, t.dns, &records);

    // Whoever names a host first has nothing of it.
    let out = t.apply(Some(&mine), "mine", "\"www.yours.example\", \"bare.example\"", &[]);
    assert!(out.status.success() && text(&out.stdout).contains("not served until they show whose they are"), "{out:?}");
    let out = t.apply(None, "yours", "\"www.yours.example\", \"apex.example\"", &[]);
    assert!(out.status.success(), "{}", error_of(&out));
    t.until("www.yours.example", 200);
    t.until("apex.example", 200);
    assert_eq!(t.status("bare.example"), 421);
    let hosts = t.run(Some(&mine), &["site", "hosts", "mine"]);
    let said = text(&hosts.stdout);
    assert!(hosts.status.code() == Some(75) && said.contains("leads to yours.cdn.test, and not to mine.cdn.test"), "{said}");
    assert!(said.contains("bare.example has no CNAME record"), "{said}");
    let hosts = t.run(None, &["site", "hosts", "yours"]);
    let said = text(&hosts.stdout);
    assert!(hosts.status.success() && said.contains("by CNAME") && said.contains("by TXT"), "{said}");

    // What a site holds no other takes, whatever records say from now on.
    drop(first);
    let turned = cnames(&[("www.yours.example", "mine.cdn.test"), ("bare.example", "mine.cdn.test")]);
    let _second = resolver(dir.path(), t.port, t.dns, &turned);
    let out = t.apply(Some(&mine), "mine", "\"www.yours.example\"", &[]);
    assert!(error_of(&out).contains("www.yours.example belongs to the site yours"), "{}", error_of(&out));
    let hosts = t.run(Some(&mine), &["site", "hosts", "mine"]);
    assert!(text(&hosts.stdout).contains("belongs to the site yours"), "{}", text(&hosts.stdout));
    let hosts = t.run(Some(&yours), &["site", "hosts", "yours"]);
    let said = text(&hosts.stdout);
    assert!(hosts.status.code() == Some(75) && said.contains("for a week from"), "{said}");
    assert_eq!(t.status("www.yours.example"), 200);
    let audit = text(&t.network.tidegate(&["audit"]).stdout);
    assert!(audit.contains("shows no longer that it is the site yours's"), "{audit}");

    // An admin's word counts, and nobody else's.
    let out = t.apply(Some(&mine), "mine", "\"bare.example\", \"inner.example\"", &["--vouch"]);
    assert!(error_of(&out).contains("vouching for hosts needs a token of the role admin"), "{}", error_of(&out));
    let out = t.apply(None, "inner", "\"inner.example\"", &["--vouch"]);
    assert!(out.status.success(), "{}", error_of(&out));
    t.until("inner.example", 200);

    // A name that was a site's is not given to the next one who asks.
    assert!(t.run(None, &["site", "remove", "yours"]).status.success());
    t.until("www.yours.example", 421);
    let out = t.apply(Some(&yours), "yours", "\"www.yours.example\"", &[]);
    assert!(error_of(&out).contains("a site yours was removed"), "{}", error_of(&out));
    let purge = t.run(None, &["purge", "host", "www.yours.example"]);
    assert_eq!(purge.status.code(), Some(3), "{}", error_of(&purge));
}
