//! `tidegate dev`: a whole network in one process. It makes the settings of the roles, and calls what the roles' own
//! commands call; the nodes reach one another through mutual-TLS sockets only.

mod nodes;

use super::{Done, Failure, block_on, sample};
use crate::output;
use clap::Args;
use http::Method;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{IsTerminal, Write};
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;
use tidegate_certs::SealingKey;
use tidegate_client::{Client, Settings};
use tidegate_control::ControlSettings;
use tidegate_control_types::api::{JoinRequest, NodeView, TokenRequest};
use tidegate_control_types::site_file::parse_origin_url;
use tidegate_control_types::token::TokenRole;
use tidegate_control_types::{Clock, NodeName, Role};
use tidegate_node::SystemClock;
use tidegate_node::lifecycle::{Signals, Stop, Told, keep_memory_private, raise_open_files, stop_pair};
use tidegate_node::settings::NodeSettings;
use tokio::task::JoinHandle;

/// How long the network may take until it serves.
const START_TIMEOUT: Duration = Duration::from_secs(60);

#[derive(Args)]
pub struct Dev {
    /// Your site; without it a small built-in sample is served
    #[arg(long, value_name = "URL")]
    origin: Vec<String>,
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=16))]
    edges: u16,
    /// 0: edges ask the origin themselves
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(0..=16))]
    shields: u16,
    /// 1, 3 or 5
    #[arg(long, default_value_t = 1)]
    controls: u16,
    #[arg(long, default_value = "127.0.0.1:8080")]
    http: SocketAddr,
    #[arg(long, default_value = "127.0.0.1:8443")]
    https: SocketAddr,
    #[arg(long, default_value = "127.0.0.1:9080")]
    api: SocketAddr,
    #[arg(long, default_value = "127.0.0.1:9081")]
    admin: SocketAddr,
    /// Where the zone cdn.test is answered for, over UDP and TCP [default: 127.0.0.1:8053, or a free port where that is taken]
    #[arg(long, value_name = "ADDR")]
    dns: Option<SocketAddr>,
    /// Name server for the names of origins and of sites' hosts; default: the system's. May be given several times
    #[arg(long, value_name = "ADDR:PORT")]
    name_server: Vec<SocketAddr>,
    /// Kept between runs; without it a temporary folder, removed at the end
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    #[arg(long, value_name = "FILE|-")]
    access_log: Option<String>,
    /// Print one line of JSON once it serves
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Ready {
    http: Vec<String>,
    https: Vec<String>,
    api: Vec<String>,
    admin: String,
    dns: Option<String>,
    token: String,
    ca: PathBuf,
    data: PathBuf,
}

/// Ports that nodes told one another, kept with the data: another run has to take the same.
#[derive(Default, Serialize, Deserialize)]
struct Ports(BTreeMap<String, u16>);

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

fn url(scheme: &str, address: SocketAddr) -> String {
    let ip = address.ip();
    match (scheme, ip) {
        ("https", ip) if ip.is_loopback() => format!("https://localhost:{}", address.port()),
        _ if ip.is_unspecified() => format!("{scheme}://localhost:{}", address.port()),
        _ => format!("{scheme}://{address}"),
    }
}

const KEPT_PORTS: u16 = 30_000;
/// Where Linux begins with the ports of outgoing connections (ip_local_port_range), unless told otherwise.
const OUTGOING_PORTS: u16 = 32_768;

/// A part of the network that runs.
struct Running {
    name: String,
    stop: Stop,
    task: JoinHandle<Result<(), Failure>>,
}

struct Network {
    data: PathBuf,
    ports: Ports,
    running: Vec<Running>,
}

impl Dev {
    pub fn run(self) -> Done {
        let started = SystemClock.boot();
        if !matches!(self.controls, 1 | 3 | 5) {
            return Err(Failure::usage("--controls takes 1, 3 or 5: with an even number one more failure is no better survived"));
        }
        for origin in &self.origin {
            parse_origin_url(origin).map_err(|e| Failure::usage(format!("--origin {e}")))?;
        }
        let temporary = match &self.data {
            Some(_) => None,
            None => Some(
                tempfile::Builder::new()
                    .prefix("tidegate-dev-")
                    .tempdir()
                    .map_err(|e| Failure::new(format!("no temporary folder: {e}")))?,
            ),
        };
        let data = match (&self.data, &temporary) {
            (Some(dir), _) => std::path::absolute(dir).map_err(Failure::new)?,
            (None, Some(t)) => t.path().to_owned(),
            (None, None) => return Err(Failure::new("no folder for the data")),
        };
        std::fs::create_dir_all(&data).map_err(|e| Failure::new(format!("{}: {e}", data.display())))?;
        block_on(async {
            let mut network = Network { ports: Ports::load(&data)?, data, running: Vec::new() };
            let mut signals = Signals::listen().map_err(Failure::new)?;
            raise_open_files();
            keep_memory_private();
            let started = tokio::select! {
                ready = self.start(&mut network) => ready.map(|r| (r, SystemClock.boot().since(started))),
                _ = signals.next() => Err(Failure::new("ended before it served")),
            };
            let done = match started {
                Ok((ready, took)) => {
                    self.announce(&ready, took);
                    loop {
                        tokio::select! {
                            told = signals.next() => match told {
                                // Where there is a terminal, SIGHUP says that it is gone.
                                Told::Reload if !std::io::stdin().is_terminal() => network.running.iter().for_each(|r| r.stop.reload()),
                                Told::Reload | Told::End(_) => break Ok(ExitCode::SUCCESS),
                            },
                            failed = network.failed() => break Err(failed),
                        }
                    }
                }
                Err(e) => Err(e),
            };
            network.stop().await;
            done
        })
    }

    async fn start(&self, network: &mut Network) -> Result<Ready, Failure> {
        // Every listener that was asked for is bound before anything runs: a taken port ends it here.
        let mut edges = Vec::new();
        for n in 0..self.edges {
            let settings = self.edge(network, n)?;
            let bound = tidegate_edge::Bound::bind(&settings)?;
            edges.push((settings, bound));
        }
        let mut controls = Vec::new();
        for n in 0..self.controls {
            let settings = self.control(network, n)?;
            let bound = tidegate_control::Bound::bind(&settings)?;
            network.ports.set(&settings.name, bound.node().first());
            controls.push((settings, bound));
        }
        let mut shields = Vec::new();
        for n in 0..self.shields {
            let settings = self.shield(network, n)?;
            let bound = tidegate_origin_shield::Bound::bind(&settings)?;
            network.ports.set(&settings.node.name, bound.listen.first());
            shields.push((settings, bound));
        }
        let (mut dns_settings, dns_bound) = self.dns(network)?;
        let dns = *dns_bound.listen.first().ok_or_else(|| Failure::new("DNS has no address"))?;

        let admin = edges.first().and_then(|(_, b)| b.admin()).unwrap_or(self.admin);
        let http: Vec<_> = edges.iter().flat_map(|(_, b)| b.http.clone()).collect();
        let https: Vec<_> = edges.iter().flat_map(|(_, b)| b.https.clone()).collect();
        let api: Vec<_> = controls.iter().flat_map(|(_, b)| b.api()).collect();
        network.ports.save(&network.data)?;
        let control: Vec<String> = controls.iter().flat_map(|(_, b)| b.node()).map(|a| a.to_string()).collect();

        let client = self.start_controls(network, controls, &control, &api).await?;
        let (wanted, token) = (self.wanted(), self.fresh_token(&client, &network.data).await?);
        remove_others(&client, &wanted, &network.data).await?;
        for (mut settings, bound) in shields {
            settings.node.control.clone_from(&control);
            join_token(&client, &settings.node, Role::Shield).await?;
            let name = settings.node.name.clone();
            network.run(name.as_str(), |stopping| async move { Ok(tidegate_origin_shield::run(settings, bound, stopping).await?) });
        }
        for (mut settings, bound) in edges {
            settings.node.control.clone_from(&control);
            join_token(&client, &settings.node, Role::Edge).await?;
            let name = settings.node.name.clone();
            network.run(name.as_str(), |stopping| async move { Ok(tidegate_edge::run(settings, bound, None, stopping).await?) });
        }
        dns_settings.node.control.clone_from(&control);
        join_token(&client, &dns_settings.node, Role::Dns).await?;
        network.run("dns-1", |stopping| async move { Ok(tidegate_dns::run(dns_settings, dns_bound, stopping).await?) });
        let origins = if self.origin.is_empty() {
            let (stop, stopping) = stop_pair();
            let address = sample::start(stopping)?;
            network.running.push(Running { name: "sample site".into(), stop, task: tokio::spawn(std::future::pending()) });
            vec![format!("http://{address}")]
        } else {
            self.origin.clone()
        };
        client.apply_site("dev", &site_file(&origins), None, true).await?;
        let serving = async {
            tokio::try_join!(attached(&client, &wanted), serves(&http))?;
            Ok::<(), Failure>(())
        };
        tokio::select! {
            served = tokio::time::timeout(START_TIMEOUT, serving) => served.map_err(|_| Failure::new("the network did not serve in time"))??,
            failed = network.failed() => return Err(failed),
        }
        Ok(Ready {
            http: http.iter().map(|a| url("http", *a)).collect(),
            https: https.iter().map(|a| url("https", *a)).collect(),
            api: api.iter().map(|a| url("http", *a)).collect(),
            admin: url("http", admin),
            dns: Some(dns.to_string()),
            token,
            ca: network.data.join("ca.pem"),
            data: network.data.clone(),
        })
    }

    /// Founds or starts the control plane; gives a client with an admin's token.
    async fn start_controls(
        &self,
        network: &mut Network,
        controls: Vec<(ControlSettings, tidegate_control::Bound)>,
        peers: &[String],
        api: &[SocketAddr],
    ) -> Result<Client, Failure> {
        let dev_key = SealingKey::load_or_create(&network.data.join("keys/dev.key")).map_err(Failure::new)?;
        let sealed = network.data.join("admin-token");
        let mut client = None;
        for (n, (mut settings, bound)) in controls.into_iter().enumerate() {
            settings.address = peers.get(n).cloned();
            settings.peers = peers.to_vec();
            let is_new = !settings.data.join("raft.redb").exists();
            if n == 0 && is_new {
                let founded = tidegate_control::init(&settings, "dev", None)?;
                write_secret(&sealed, &dev_key.seal("admin token", founded.admin_token.as_bytes()).map_err(Failure::new)?)?;
                std::fs::write(network.data.join("ca.pem"), &founded.ca).map_err(|e| Failure::new(format!("ca.pem: {e}")))?;
            }
            if n == 0 {
                let bytes = std::fs::read(&sealed).map_err(|e| Failure::new(format!("{}: {e}", sealed.display())))?;
                let token = dev_key.open("admin token", &bytes).map_err(Failure::new)?;
                let api = api.first().map(|a| url("http", *a)).unwrap_or_default();
                client = Some(Client::new(Settings { api, token: String::from_utf8_lossy(&token).into_owned(), ca: None })?);
            } else if let (true, Some(client)) = (is_new, &client) {
                let file = settings.join_token_file.clone().unwrap_or_default();
                write_join(client, &file, Role::Control).await?;
                tidegate_control::join(&settings).await?;
            }
            let name = settings.name.clone();
            network.run(name.as_str(), |stopping| async move { Ok(tidegate_control::run(settings, bound, stopping).await?) });
            if let (0, Some(client)) = (n, &client) {
                until_led(client, network, self.controls == 1 || is_new).await?;
            }
        }
        let client = client.ok_or_else(|| Failure::new("no control node"))?;
        until_led(&client, network, true).await?;
        Ok(client)
    }

    /// A token for this run; the last run's is revoked.
    async fn fresh_token(&self, client: &Client, data: &Path) -> Result<String, Failure> {
        let file = data.join("token-id");
        if let Ok(old) = std::fs::read_to_string(&file) {
            let _ = client.act(Method::DELETE, &format!("/v1/tokens/{}", old.trim())).await;
        }
        let asked = TokenRequest { role: TokenRole::Admin, sites: Vec::new(), note: "tidegate dev".into(), expires_in: None };
        let made = client.create_token(&asked).await?;
        std::fs::write(&file, &made.id).map_err(|e| Failure::new(format!("{}: {e}", file.display())))?;
        made.token.ok_or_else(|| Failure::new("the API made no token"))
    }

    fn announce(&self, ready: &Ready, took: Duration) {
        if self.json {
            output::json(ready);
            output::note(&format!("serving after {:.2} s", took.as_secs_f64()));
            return;
        }
        let first = ready.http.first().map(String::as_str).unwrap_or_default();
        let api = ready.api.first().map(String::as_str).unwrap_or_default();
        let what = if self.origin.is_empty() { "the built-in sample site".into() } else { self.origin.join(", ") };
        output::line(&format!("Tidegate serves {what} after {:.2} s\n", took.as_secs_f64()));
        output::line(&format!("  http    {}", ready.http.join("  ")));
        output::line(&format!("  https   {}", ready.https.join("  ")));
        output::line(&format!("  api     {}", ready.api.join("  ")));
        output::line(&format!("  admin   {}", ready.admin));
        if let Some(dns) = &ready.dns {
            output::line(&format!("  dns     {dns}, for the zone cdn.test"));
        }
        output::line(&format!("  CA      {}", ready.ca.display()));
        output::line(&format!("  data    {}{}\n", ready.data.display(), if self.data.is_none() { " (removed at the end)" } else { "" }));
        output::line("Try, in another terminal:\n");
        output::line(&format!("  export TIDEGATE_API={api} TIDEGATE_TOKEN={}", ready.token));
        output::line(&format!("  curl -sI {first}/ | grep -i -e cache-status -e age"));
        let program = program();
        if let Some((ip, port)) = ready.dns.as_ref().and_then(|d| d.rsplit_once(':')) {
            output::line(&format!("  dig @{ip} -p {port} dev.cdn.test"));
        }
        output::line(&format!("  {program} purge all"));
        output::line(&format!("  {program} status\n"));
        output::line("Ctrl-C ends it.");
    }
}

/// How to call this program from another terminal: by its name where that finds it.
fn program() -> String {
    let Ok(own) = std::env::current_exe() else { return "tidegate".into() };
    let folders = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&folders).map(|f| f.join("tidegate")).find(|p| p.is_file());
    if found.and_then(|f| f.canonicalize().ok()).is_some_and(|f| f == own) { "tidegate".into() } else { own.display().to_string() }
}

/// A free port that is likely to be free at the next run too: not one of those that the kernel gives to outgoing connections.
fn kept_port() -> u16 {
    let first = std::process::id().wrapping_mul(131) % u32::from(OUTGOING_PORTS - KEPT_PORTS);
    let first = u16::try_from(first).unwrap_or(0);
    (KEPT_PORTS + first..OUTGOING_PORTS)
        .chain(KEPT_PORTS..KEPT_PORTS + first)
        .find(|port| tidegate_node::listen::bind(loopback(*port)).is_ok())
        .unwrap_or(0)
}

impl Ports {
    fn load(data: &Path) -> Result<Self, Failure> {
        let file = data.join("ports.json");
        match std::fs::read(&file) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|e| Failure::new(format!("{}: {e}", file.display()))),
            Err(_) => Ok(Self::default()),
        }
    }

    fn save(&self, data: &Path) -> Result<(), Failure> {
        let file = data.join("ports.json");
        std::fs::write(&file, serde_json::to_vec(self).unwrap_or_default()).map_err(|e| Failure::new(format!("{}: {e}", file.display())))
    }

    fn get(&self, name: &str) -> u16 {
        self.0.get(name).copied().unwrap_or_else(kept_port)
    }

    fn set(&mut self, name: &NodeName, address: Option<&SocketAddr>) {
        if let Some(address) = address {
            self.0.insert(name.to_string(), address.port());
        }
    }
}

impl Network {
    fn run<F>(&mut self, name: &str, run: impl FnOnce(tidegate_node::lifecycle::Stopping) -> F)
    where
        F: Future<Output = Result<(), Failure>> + Send + 'static,
    {
        let (stop, stopping) = stop_pair();
        self.running.push(Running { name: name.into(), stop, task: tokio::spawn(run(stopping)) });
    }

    /// Until a part ends that should not have.
    async fn failed(&mut self) -> Failure {
        loop {
            if let Some(at) = self.running.iter().position(|r| r.task.is_finished()) {
                let ended = self.running.remove(at);
                let why = match ended.task.await {
                    Ok(Ok(())) => "it ended".into(),
                    Ok(Err(failure)) => failure.message,
                    Err(e) => e.to_string(),
                };
                return Failure::new(format!("{}: {why}", ended.name));
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Edges first, the control plane last.
    async fn stop(mut self) {
        while let Some(part) = self.running.pop() {
            part.stop.stop();
            if part.name == "sample site" {
                continue;
            }
            if tokio::time::timeout(Duration::from_secs(15), part.task).await.is_err() {
                tracing::warn!(part = part.name, "it did not end in time");
            }
        }
    }
}

fn site_file(origins: &[String]) -> String {
    let servers: Vec<String> = origins.iter().map(|o| format!("{{ url = {o:?} }}")).collect();
    format!(
        "name = \"dev\"\nhosts = [\"*\"]\n\n[origin]\nservers = [{}]\nallow_private = true\n\n[tls]\ncertificate = \"internal\"\nredirect = false\n",
        servers.join(", ")
    )
}

fn write_secret(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    let fail = |e| Failure::new(format!("{}: {e}", path.display()));
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(fail)?;
    }
    let mut file = std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path).map_err(fail)?;
    file.write_all(bytes).map_err(fail)
}

async fn write_join(client: &Client, file: &Path, role: Role) -> Result<(), Failure> {
    let made = client.create_join(&JoinRequest { role, region: None, expires_in: Some(300) }).await?;
    write_secret(file, made.token.unwrap_or_default().as_bytes())
}

/// A node that is not enrolled yet gets a join token into its file, as an operator would put one there.
async fn join_token(client: &Client, node: &NodeSettings, role: Role) -> Result<(), Failure> {
    match &node.join_token_file {
        Some(file) if !node.data.join("identity").exists() => write_join(client, file, role).await,
        _ => Ok(()),
    }
}

/// Until the API is led. `needed`: without the other control nodes there may be no quorum yet.
async fn until_led(client: &Client, network: &mut Network, needed: bool) -> Result<(), Failure> {
    if !needed {
        return Ok(());
    }
    let led = async {
        while client.get::<serde_json::Value>("/v1/members").await.is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::select! {
        led = tokio::time::timeout(START_TIMEOUT, led) => led.map_err(|_| Failure::new("the control plane did not start in time")),
        failed = network.failed() => Err(failed),
    }
}

/// Nodes of an earlier run that this one does not start.
async fn remove_others(client: &Client, wanted: &BTreeSet<String>, data: &Path) -> Result<(), Failure> {
    let nodes: Vec<NodeView> = client.get("/v1/nodes").await?;
    for node in nodes.iter().filter(|n| n.role != "control" && !wanted.contains(&n.name)) {
        client.act(Method::DELETE, &format!("/v1/nodes/{}?dead=true", node.name)).await?;
        let _ = std::fs::remove_dir_all(data.join(&node.name));
    }
    Ok(())
}

async fn attached(client: &Client, wanted: &BTreeSet<String>) -> Result<(), Failure> {
    loop {
        let nodes: Vec<NodeView> = client.get("/v1/nodes").await?;
        let ready = nodes.iter().filter(|n| wanted.contains(&n.name) && n.state == "attached").count();
        if ready == wanted.len() {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Until each edge knows the site: it answers something other than 421.
async fn serves(http: &[SocketAddr]) -> Result<(), Failure> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    for address in http {
        loop {
            let asked = async {
                let reach = if address.ip().is_unspecified() { loopback(address.port()) } else { *address };
                let mut tcp = tokio::net::TcpStream::connect(reach).await?;
                // Asks the edge alone: nothing is fetched for it.
                tcp.write_all(b"HEAD / HTTP/1.1\r\nHost: localhost\r\nCache-Control: only-if-cached\r\nConnection: close\r\n\r\n").await?;
                let mut head = [0; 12];
                tcp.read_exact(&mut head).await?;
                Ok::<_, std::io::Error>(head)
            };
            match tokio::time::timeout(Duration::from_secs(2), asked).await {
                Ok(Ok(head)) if !head.ends_with(b"421") => break,
                _ => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    }
    Ok(())
}
