//! An authority that nobody here wrote (pebble), and a resolver for it and for everybody (unbound).

use super::network::Network;
use super::{Process, free_port, text, wait_for};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;

pub struct Pebble {
    pub directory: String,
    /// Of its own https, for those who order.
    pub ca: PathBuf,
    management: String,
    dir: PathBuf,
    pub process: Process,
}

/// What a program says, which has to go well.
pub fn run(program: &str, arguments: &[&str]) -> String {
    let out = Command::new(program).args(arguments).output().unwrap();
    assert!(out.status.success(), "{program} {arguments:?}: {}", text(&out.stderr));
    text(&out.stdout)
}

/// Where the authority will be, and what a control node's settings say of it: known before anything runs.
pub struct Place {
    port: u16,
    dir: PathBuf,
}

impl Place {
    pub fn new(dir: &Path) -> Self {
        let dir = dir.join("pebble");
        std::fs::create_dir_all(&dir).unwrap();
        let (cert, key) = (dir.join("cert.pem"), dir.join("key.pem"));
        run(
            "openssl",
            &[
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:P-256",
                "-nodes",
                "-days",
                "2",
                "-subj",
                "/CN=pebble",
                "-addext",
                "subjectAltName=DNS:localhost,IP:127.0.0.1",
                "-addext",
                "basicConstraints=critical,CA:FALSE",
                "-keyout",
                key.to_str().unwrap(),
                "-out",
                cert.to_str().unwrap(),
            ],
        );
        Self { port: free_port(), dir }
    }

    /// For a control node; `more`: lines of [acme].
    pub fn settings(&self, more: &str) -> String {
        format!(
            "[acme]\ndirectory = \"https://127.0.0.1:{}/dir\"\nca = \"{}\"\nagree_to_terms = true\ncontact = [\"mailto:admin@shop.example\"]\n{more}\n",
            self.port,
            self.dir.join("cert.pem").display()
        )
    }

    /// Starts it: it looks for hosts by way of `resolver`, and asks them at these ports.
    pub fn start(&self, resolver: u16, http: u16, https: u16, more: &str, environment: &[(&str, &str)]) -> Pebble {
        let management = free_port();
        let (dir, port) = (self.dir.clone(), self.port);
        let (cert, key) = (dir.join("cert.pem"), dir.join("key.pem"));
        let config = dir.join("config.json");
        std::fs::write(
            &config,
            format!(
                "{{\"pebble\": {{\"listenAddress\": \"127.0.0.1:{port}\", \"managementListenAddress\": \"127.0.0.1:{management}\", \
                 \"certificate\": {cert:?}, \"privateKey\": {key:?}, \"httpPort\": {http}, \"tlsPort\": {https}{more}}}}}"
            ),
        )
        .unwrap();
        let mut command = Command::new("pebble");
        command.args(["-strict", "-config", config.to_str().unwrap(), "-dnsserver", &format!("127.0.0.1:{resolver}")]);
        command.envs(environment.iter().copied());
        let process = Process::start(&mut command, &dir.join("log"));
        wait_for("the authority", || TcpStream::connect(("127.0.0.1", port)).ok());
        wait_for("its management", || TcpStream::connect(("127.0.0.1", management)).ok());
        Pebble {
            directory: format!("https://127.0.0.1:{port}/dir"),
            ca: cert,
            management: format!("https://127.0.0.1:{management}"),
            dir,
            process,
        }
    }
}

impl Pebble {
    /// What clients trust: made anew whenever it starts.
    pub fn root(&self) -> PathBuf {
        let file = self.dir.join("root.pem");
        let pem = run("curl", &["-sS", "--cacert", self.ca.to_str().unwrap(), &format!("{}/roots/0", self.management)]);
        std::fs::write(&file, pem).unwrap();
        file
    }
}

/// A resolver for everybody: it asks the network's own node for the zone cdn.test, and is told what `more` says.
pub fn resolver(dir: &Path, port: u16, dns: u16, more: &str) -> Process {
    let config = dir.join(format!("unbound-{port}.conf"));
    let text = format!(
        "server:\n interface: 127.0.0.1@{port}\n port: {port}\n do-daemonize: no\n use-syslog: no\n username: \"\"\n chroot: \"\"\n directory: \"{}\"\n \
         pidfile: \"\"\n do-not-query-localhost: no\n use-caps-for-id: yes\n module-config: \"iterator\"\n local-zone: \"test.\" nodefault\n \
         cache-max-negative-ttl: 0\n {more}\nstub-zone:\n name: \"cdn.test.\"\n stub-addr: 127.0.0.1@{dns}\n",
        dir.display(),
    );
    std::fs::write(&config, text).unwrap();
    let mut command = Command::new("unbound");
    let log = dir.join(format!("unbound-{port}.log"));
    let started = Process::start(command.args(["-d", "-p", "-c", config.to_str().unwrap()]), &log);
    wait_for("the resolver", || TcpStream::connect(("127.0.0.1", port)).ok());
    started
}

/// For the resolver: each name leads to another.
pub fn cnames(all: &[(&str, &str)]) -> String {
    let one =
        |(name, target): &(&str, &str)| format!("local-zone: \"{name}.\" redirect\n local-data: \"{name}. 60 IN CNAME {target}.\"\n ");
    all.iter().map(one).collect()
}

/// What a client of TLS is shown: the chain as openssl says it, with `more` arguments.
pub fn shown(network: &Network, edge: usize, name: &str, more: &[&str]) -> String {
    let address = format!("{}:{}", network.edges()[edge].ip, network.edges()[edge].https);
    let mut openssl = Command::new("openssl");
    openssl.args(["s_client", "-connect", &address, "-servername", name, "-showcerts"]).args(more);
    let out = openssl.stdin(std::process::Stdio::null()).output().unwrap();
    format!("{}{}", text(&out.stdout), text(&out.stderr))
}
