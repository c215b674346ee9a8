//! A whole network as processes of their own, from settings files, as an operator would make it.

use super::hosts::Hosts;
use super::{Http, Process, binary, error_of, free_port, loopback, text, tidegate_on, wait_for};
use serde_json::Value;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Output;

pub struct Node {
    pub name: String,
    pub role: &'static str,
    pub config: PathBuf,
    /// Where clients (edges) or the API (control nodes) are; the listener for nodes of shields.
    pub port: u16,
    /// The same on IPv6, for edges.
    pub port_6: u16,
    pub admin: u16,
    /// Of edges.
    pub https: u16,
    pub process: Option<Process>,
    /// Where it listens for others. Its API and its admin listener are on its own loopback.
    pub ip: IpAddr,
    /// Its host, where it has one of its own.
    pub host: Option<String>,
    pub data: PathBuf,
    log: PathBuf,
}

impl Node {
    pub fn start(&mut self) {
        self.start_with(&[]);
    }

    pub fn start_with(&mut self, environment: &[(&str, &str)]) {
        let mut command = super::command_on(self.host.as_deref(), binary());
        command.envs(environment.iter().copied());
        match self.role {
            "control" => command.args(["control", "run"]),
            role => command.arg(role),
        };
        command.arg("--config").arg(&self.config).env("TIDEGATE_LOG", "info");
        self.process = Some(Process::start(&mut command, &self.log));
    }

    /// With a clock that is by so much ahead of the world's (libfaketime, where Debian puts it).
    pub fn start_later(&mut self, seconds: i64) {
        let found = std::fs::read_dir("/usr/lib").unwrap().flatten().map(|d| d.path().join("faketime/libfaketimeMT.so.1"));
        let library = found.into_iter().find(|f| f.exists()).expect("libfaketime is installed (tests/run does so)");
        self.start_with(&[
            ("LD_PRELOAD", library.to_str().unwrap()),
            ("FAKETIME", &format!("{seconds:+}")),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
        ]);
    }

    pub fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.kill();
        }
    }

    /// Whether it ended by itself.
    pub fn has_ended(&mut self) -> bool {
        self.process.as_mut().is_some_and(|p| p.child.try_wait().unwrap().is_some())
    }

    pub fn signal(&self, name: &str) {
        self.process.as_ref().unwrap().signal(name);
    }

    pub fn address(&self) -> SocketAddr {
        SocketAddr::new(self.ip, self.port)
    }

    /// A connection to its API, of control nodes.
    pub fn api(&self) -> Api {
        Api { host: self.host.clone(), port: self.port }
    }

    pub fn address_6(&self) -> SocketAddr {
        SocketAddr::from((std::net::Ipv6Addr::LOCALHOST, self.port_6))
    }

    /// A figure of its admin listener, summed over labels.
    pub fn figure(&self, name: &str) -> f64 {
        let mut http = Http::connect_on(self.host.as_deref(), loopback(self.admin)).unwrap();
        let text = http.ask("GET", "localhost", "/metrics", &[]).unwrap().text();
        let lines = text.lines().filter(|l| l.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' '])));
        let values: Vec<f64> = lines.filter_map(|l| l.rsplit(' ').next()?.parse().ok()).collect();
        assert!(!values.is_empty(), "there is no figure {name}");
        values.iter().sum()
    }

    pub fn logged(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

/// Where a control node's API is.
#[derive(Clone)]
pub struct Api {
    host: Option<String>,
    port: u16,
}

impl Api {
    pub fn connect(&self) -> std::io::Result<Http> {
        Http::connect_on(self.host.as_deref(), loopback(self.port))
    }
}

/// How many nodes of each kind, and what their files say beside what they must.
#[derive(Clone, Copy)]
pub struct Plan<'a> {
    pub controls: usize,
    pub shields: usize,
    pub edges: usize,
    pub dns: usize,
    pub lease: &'a str,
    /// `{data}` in these stands for the node's data folder.
    pub control_more: &'a str,
    pub shield_more: &'a str,
    pub edge_more: &'a str,
    pub dns_more: &'a str,
    /// Of edges, in turn.
    pub regions: &'a [&'a str],
    /// Lines of an edge's [limits].
    pub limits: &'a str,
    /// Each on a host of its own.
    pub apart: bool,
    /// Edges listen at the address that they advertise, all of them at the same ports.
    pub as_advertised: bool,
}

impl Default for Plan<'_> {
    fn default() -> Self {
        Self {
            controls: 1,
            shields: 0,
            edges: 1,
            dns: 0,
            lease: "5s",
            control_more: "",
            shield_more: "",
            edge_more: "",
            dns_more: "",
            regions: &["eu"],
            limits: "drain = \"3s\"",
            apart: false,
            as_advertised: false,
        }
    }
}

pub struct Network {
    pub nodes: Vec<Node>,
    pub token: String,
    /// The internal CA's file.
    pub ca: PathBuf,
    pub dir: PathBuf,
    pub hosts: Option<Hosts>,
}

impl Network {
    /// Founds and starts everything, and waits until every node has its lease.
    pub fn start(dir: &Path, controls: usize, shields: usize, edges: usize, lease: &str) -> Self {
        Self::planned(dir, Plan { controls, shields, edges, lease, ..Plan::default() })
    }

    pub fn planned(dir: &Path, plan: Plan<'_>) -> Self {
        let Plan {
            controls,
            shields,
            edges,
            dns,
            lease,
            control_more,
            shield_more,
            edge_more,
            dns_more,
            regions,
            limits,
            apart,
            as_advertised,
        } = plan;
        let hosts = apart.then(Hosts::new);
        let mut network = Self { nodes: Vec::new(), token: String::new(), ca: PathBuf::new(), dir: dir.to_owned(), hosts };
        let peers: Vec<_> = (1..=controls).map(|n| SocketAddr::new(network.host(&format!("control-{n}")), free_port())).collect();
        let urls: Vec<String> = peers.iter().map(|p| format!("\"https://{p}\"")).collect();
        for (n, listen) in peers.iter().enumerate() {
            let name = format!("control-{}", n + 1);
            let api = free_port();
            let key = format!("cluster_key = \"{}\"\n", dir.join(format!("{name}.cluster.key")).display());
            let key = if control_more.contains("cluster_key_command") { "" } else { key.as_str() };
            let text =
                format!("listen = [\"{listen}\"]\napi = [\"127.0.0.1:{api}\"]\n{key}peers = [{}]\n{control_more}\n", urls.join(", "));
            network.add(&name, "control", listen.ip(), api, 0, &text, &format!("[raft]\nlease = \"{lease}\"\n"));
            if n == 0 {
                let out = tidegate_on(None, &["control", "init", "--json", "--config", network.nodes[0].config.to_str().unwrap()], &[]);
                assert!(out.status.success(), "{}", error_of(&out));
                let founded: Value = serde_json::from_slice(&out.stdout).unwrap();
                network.token = founded["token"].as_str().unwrap().into();
                network.ca = founded["ca"].as_str().unwrap().into();
            } else {
                network.join_token(&name, "control");
                let node = network.nodes.last().unwrap();
                let out = tidegate_on(None, &["control", "join", "--config", node.config.to_str().unwrap()], &[]);
                assert!(out.status.success(), "{}", error_of(&out));
            }
            network.nodes.last_mut().unwrap().start();
            wait_for("the control plane", || network.tidegate(&["status"]).status.success().then_some(()));
        }
        wait_for("all control nodes to vote", || {
            let members = network.json(&["control", "members"]);
            let voting = members.as_array()?.iter().filter(|m| m["state"] != "learner").count();
            (voting == controls).then_some(())
        });
        let control = format!("control = [{}]\n", urls.join(", "));
        for n in 1..=shields {
            let (name, port) = (format!("shield-{n}"), free_port());
            let ip = network.host(&name);
            network.add(&name, "shield", ip, port, 0, &format!("{control}listen = [\"{ip}:{port}\"]\n{shield_more}\n"), "");
        }
        for n in 1..=edges {
            let (name, mut port, port_6, mut https) = (format!("edge-{n}"), free_port(), free_port(), free_port());
            let mut ip = network.host(&name);
            if as_advertised {
                ip = format!("127.0.1.{n}").parse().unwrap();
                if let Some(first) = network.edges().first() {
                    (port, https) = (first.port, first.https);
                }
            }
            let text = format!(
                "{control}http = [\"{ip}:{port}\", \"[::1]:{port_6}\"]\nhttps = [\"{ip}:{https}\"]\nadvertise = [{}]\nworkers = 2\n{edge_more}\n",
                // Each its own, for DNS to name.
                if apart || as_advertised { format!("\"{ip}\"") } else { format!("\"127.0.1.{n}\", \"::1\"") }
            );
            network.add(&name, "edge", ip, port, port_6, &text, &format!("[limits]\n{limits}\n"));
            let config = &network.nodes.last().unwrap().config;
            let region = format!("region = \"{}\"", regions[(n - 1) % regions.len()]);
            std::fs::write(config, std::fs::read_to_string(config).unwrap().replace("region = \"eu\"", &region)).unwrap();
            network.nodes.last_mut().unwrap().https = https;
        }
        for n in 1..=dns {
            let (name, port) = (format!("dns-{n}"), free_port());
            let ip = network.host(&name);
            let text = format!("{control}zone = \"cdn.test\"\nlisten = [\"{ip}:{port}\"]\nadvertise = [\"{ip}\"]\n{dns_more}\n");
            network.add(&name, "dns", ip, port, 0, &text, "");
        }
        for at in controls..network.nodes.len() {
            let (name, role) = (network.nodes[at].name.clone(), network.nodes[at].role);
            network.join_token(&name, role);
            network.nodes[at].start();
        }
        network.attached();
        network
    }

    /// The address of a node's host, and the host itself where it gets one.
    fn host(&mut self, name: &str) -> IpAddr {
        let data = self.dir.join(name);
        self.hosts.as_mut().map_or(Ipv4Addr::LOCALHOST.into(), |hosts| hosts.add(name, &data))
    }

    #[allow(clippy::too_many_arguments)]
    fn add(&mut self, name: &str, role: &'static str, ip: IpAddr, port: u16, port_6: u16, text: &str, tables: &str) {
        let (config, admin, d) = (self.dir.join(format!("{name}.toml")), free_port(), self.dir.display());
        let head = format!(
            "name = \"{name}\"\nregion = \"eu\"\ndata = \"{d}/{name}\"\nnode_key = \"{d}/{name}.key\"\njoin_token_file = \"{d}/{name}.join\"\nadmin = \"127.0.0.1:{admin}\"\n"
        );
        let text = text.replace("{data}", &format!("{d}/{name}"));
        std::fs::write(&config, format!("{head}{text}{tables}")).unwrap();
        let log = self.dir.join(format!("{name}.log"));
        let (host, data) = (self.hosts.as_ref().map(|_| name.to_owned()), self.dir.join(name));
        self.nodes.push(Node { name: name.into(), role, config, port, port_6, admin, https: 0, process: None, ip, host, data, log });
    }

    /// A new join token for a node that begins anew.
    pub fn enrol_again(&self, name: &str) {
        let role = self.nodes.iter().find(|n| n.name == name).unwrap().role;
        self.join_token(name, role);
    }

    fn join_token(&self, name: &str, role: &str) {
        let out = self.tidegate(&["token", "create", "--join", role]);
        assert!(out.status.success(), "{}", error_of(&out));
        std::fs::write(self.dir.join(format!("{name}.join")), out.stdout).unwrap();
    }

    /// Through the API of the first control node that answers.
    pub fn tidegate(&self, arguments: &[&str]) -> Output {
        let mut last = None;
        for node in self.nodes.iter().filter(|n| n.role == "control" && n.process.is_some()) {
            let api = format!("http://127.0.0.1:{}", node.port);
            let out = tidegate_on(node.host.as_deref(), arguments, &[("TIDEGATE_API", &api), ("TIDEGATE_TOKEN", &self.token)]);
            if !error_of(&out).contains("cannot reach the API") {
                return out;
            }
            last = Some(out);
        }
        last.expect("a control node runs")
    }

    pub fn json(&self, arguments: &[&str]) -> Value {
        let out = self.tidegate(&[arguments, &["--json"]].concat());
        serde_json::from_slice(&out.stdout).unwrap_or(Value::Null)
    }

    /// Until every cache node that runs holds its lease.
    pub fn attached(&self) {
        let wanted: Vec<_> = self.nodes.iter().filter(|n| n.role != "control" && n.process.is_some()).map(|n| n.name.as_str()).collect();
        wait_for("every node to be attached", || {
            let nodes = self.json(&["node", "list"]);
            let attached =
                |name: &&str| nodes.as_array().is_some_and(|all| all.iter().any(|n| n["name"] == **name && n["state"] == "attached"));
            wanted.iter().all(attached).then_some(())
        });
    }

    pub fn edges(&self) -> Vec<&Node> {
        self.nodes.iter().filter(|n| n.role == "edge").collect()
    }

    pub fn node_logged(&self, name: &str) -> String {
        self.nodes.iter().find(|n| n.name == name).unwrap().logged()
    }

    pub fn node(&mut self, name: &str) -> &mut Node {
        self.nodes.iter_mut().find(|n| n.name == name).unwrap()
    }

    /// Applies a site in front of `origin`.
    pub fn site(&self, name: &str, hosts: &str, origin: &str, more: &str) {
        let file = self.dir.join(format!("{name}.site.toml"));
        let tls = "[tls]\ncertificate = \"internal\"\nredirect = false\n";
        std::fs::write(
            &file,
            format!(
                "name = \"{name}\"\nhosts = [{hosts}]\n[origin]\nservers = [{{ url = \"{origin}\" }}]\nallow_private = true\n{more}\n{tls}"
            ),
        )
        .unwrap();
        let out = self.tidegate(&["site", "apply", file.to_str().unwrap()]);
        assert!(out.status.success(), "{}", error_of(&out));
        let revision = self.json(&["site", "show", name])["revision"].as_u64().unwrap();
        wait_for("every node to have the site", || {
            let nodes = self.json(&["node", "list"]);
            let has =
                |n: &Value| n["applied"].as_u64().is_some_and(|a| a >= revision) || n["role"] == "control" || n["state"] != "attached";
            nodes.as_array()?.iter().all(has).then_some(())
        });
    }

    /// A purge that has to be true when it returns.
    pub fn purge(&self, arguments: &[&str]) {
        let out = self.tidegate(&[&["purge"], arguments].concat());
        assert_eq!(out.status.code(), Some(0), "{arguments:?}: {}{}", text(&out.stdout), error_of(&out));
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        // Before their disks go.
        self.nodes.clear();
    }
}
