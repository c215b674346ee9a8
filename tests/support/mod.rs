//! The harness of the end-to-end tests: the real binary as processes, nginx as origin, and a small HTTP/1.1 client that
//! hides nothing. Ports are free ones, folders temporary; every process ends with its owner.

// Each test binary uses its part; waiting for processes needs real time; a test fails by panicking.
#![allow(dead_code, clippy::disallowed_methods, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

pub mod ari;
pub mod h3;
pub mod hosts;
pub mod https;
pub mod network;
pub mod origin;
pub mod pebble;

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

pub const PATIENCE: Duration = Duration::from_secs(60);

pub fn binary() -> &'static str {
    env!("CARGO_BIN_EXE_tidegate")
}

/// A port that nobody listens on, below those that outgoing connections take, and another one each time.
pub fn free_port() -> u16 {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    loop {
        let step = std::process::id().wrapping_mul(131).wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed));
        let port = u16::try_from(10_000 + step % 20_000).unwrap();
        if TcpListener::bind(("127.0.0.1", port)).is_ok() && TcpListener::bind(("::1", port)).is_ok() {
            return port;
        }
    }
}

/// A stream of numbers that its seed decides (SplitMix64).
pub struct Numbers(pub u64);

impl Numbers {
    pub fn below(&mut self, most: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % most
    }

    /// A place in a list that is so long.
    pub fn index(&mut self, length: usize) -> usize {
        usize::try_from(self.below(length as u64)).unwrap()
    }
}

/// Until `done` gives something; says `what` was waited for otherwise.
pub fn wait_for<T>(what: &str, mut done: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(t) = done() {
            return t;
        }
        assert!(start.elapsed() < PATIENCE, "waited {PATIENCE:?} for {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A process that ends with this value. Its stderr is in a file.
pub struct Process {
    pub child: Child,
    pub log: PathBuf,
}

impl Process {
    pub fn start(command: &mut Command, log: &Path) -> Self {
        let file = std::fs::OpenOptions::new().create(true).append(true).open(log).unwrap();
        let child = command.stdin(Stdio::null()).stdout(file.try_clone().unwrap()).stderr(file).spawn().unwrap();
        Self { child, log: log.to_owned() }
    }

    pub fn signal(&self, name: &str) {
        let done = Command::new("kill").args([format!("-{name}"), self.child.id().to_string()]).status().unwrap();
        assert!(done.success());
    }

    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Its exit code, once it has ended.
    pub fn ended(&mut self) -> i32 {
        wait_for("the process's end", || self.child.try_wait().unwrap()).code().unwrap_or(-1)
    }

    pub fn logged(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// nginx from Debian, serving a folder.
pub struct Nginx {
    process: Process,
    pub port: u16,
    log: PathBuf,
}

impl Nginx {
    /// `extra` goes into the server block.
    pub fn start(dir: &Path, root: &Path, extra: &str) -> Self {
        Self::start_at(&format!("127.0.0.1:{}", free_port()), dir, root, extra)
    }

    /// `listen`: its address, and what else stands in nginx's directive of that name.
    pub fn start_at(listen: &str, dir: &Path, root: &Path, extra: &str) -> Self {
        let address: SocketAddr = listen.split(' ').next().unwrap().parse().unwrap();
        std::fs::create_dir_all(dir).unwrap();
        let (conf, log) = (dir.join("nginx.conf"), dir.join("access.log"));
        let d = dir.display();
        let text = format!(
            "daemon off; user root; worker_processes 1; pid {d}/pid; error_log {d}/error.log;
             events {{ worker_connections 1024; }}
             http {{ include /etc/nginx/mime.types; default_type application/octet-stream; sendfile on; keepalive_requests 100000;
               log_format path '$request_method $status $request_uri'; access_log {log} path;
               client_body_temp_path {d}/b; proxy_temp_path {d}/p; fastcgi_temp_path {d}/f; uwsgi_temp_path {d}/u; scgi_temp_path {d}/s;
               map $uri $tag {{ default 'other'; ~^/(?<first>[^/]+)/ $first; }}
               server {{ listen {listen}; root {root}; {extra} }} }}",
            log = log.display(),
            root = root.display(),
        );
        std::fs::write(&conf, text).unwrap();
        let process = Process::start(Command::new("nginx").arg("-p").arg(dir).arg("-c").arg(&conf), &dir.join("out.log"));
        wait_for("nginx", || TcpStream::connect(address).ok());
        Self { process, port: address.port(), log }
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// How often each `METHOD STATUS TARGET` was asked.
    pub fn asked(&self) -> HashMap<String, usize> {
        let mut out = HashMap::new();
        for line in std::fs::read_to_string(&self.log).unwrap_or_default().lines() {
            *out.entry(line.to_owned()).or_default() += 1;
        }
        out
    }

    pub fn forget(&self) {
        std::fs::write(&self.log, "").unwrap();
    }

    pub fn stop(&mut self) {
        self.process.signal("QUIT");
        self.process.ended();
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // Its worker goes with the master only if the master is asked.
        let _ = Command::new("kill").args(["-TERM", &self.process.child.id().to_string()]).status();
        let _ = self.process.child.wait();
    }
}

#[derive(Debug, Clone)]
pub struct Response {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Response {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().rev().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str())
    }

    /// The members of Cache-Status, this network's edge last.
    pub fn cache_status(&self) -> String {
        let all: Vec<_> = self.headers.iter().filter(|(n, _)| n.eq_ignore_ascii_case("cache-status")).map(|(_, v)| v.as_str()).collect();
        all.join(", ")
    }

    pub fn is_hit(&self) -> bool {
        self.cache_status().rsplit(", ").next().is_some_and(|m| m.contains("; hit"))
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }
}

/// A connection that is kept for further requests.
pub struct Http {
    stream: BufReader<TcpStream>,
}

impl Http {
    pub fn connect(address: SocketAddr) -> std::io::Result<Self> {
        Self::connect_on(None, address)
    }

    /// As a program on that host would.
    pub fn connect_on(host: Option<&str>, address: SocketAddr) -> std::io::Result<Self> {
        let stream = hosts::connect(host, address)?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        stream.set_nodelay(true)?;
        Ok(Self { stream: BufReader::new(stream) })
    }

    pub fn send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.stream.get_mut().write_all(bytes)
    }

    /// Asks and reads the whole answer; an error for one that is short.
    pub fn ask(&mut self, method: &str, host: &str, target: &str, headers: &[(&str, &str)]) -> std::io::Result<Response> {
        let more: String = headers.iter().map(|(n, v)| format!("{n}: {v}\r\n")).collect();
        self.send(format!("{method} {target} HTTP/1.1\r\nHost: {host}\r\n{more}\r\n").as_bytes())?;
        self.read(method)
    }

    pub fn read(&mut self, method: &str) -> std::io::Result<Response> {
        let short = || std::io::Error::from(std::io::ErrorKind::UnexpectedEof);
        let mut line = String::new();
        let mut response = self.read_head()?;
        let status = response.status;
        if method == "HEAD" || matches!(status, 204 | 304 | 101) {
            return Ok(response);
        }
        if response.header("transfer-encoding").is_some() {
            loop {
                line.clear();
                self.stream.read_line(&mut line)?;
                let size = usize::from_str_radix(line.trim(), 16).map_err(|_| short())?;
                let mut chunk = vec![0; size + 2];
                self.stream.read_exact(&mut chunk)?;
                if size == 0 {
                    return Ok(response);
                }
                response.body.extend_from_slice(&chunk[..size]);
            }
        }
        match response.header("content-length").and_then(|l| l.parse::<usize>().ok()) {
            Some(length) => {
                response.body = vec![0; length];
                self.stream.read_exact(&mut response.body)?;
            }
            None => {
                self.stream.read_to_end(&mut response.body)?;
            }
        }
        Ok(response)
    }

    /// The head alone.
    pub fn read_head(&mut self) -> std::io::Result<Response> {
        let short = || std::io::Error::from(std::io::ErrorKind::UnexpectedEof);
        let mut line = String::new();
        if self.stream.read_line(&mut line)? == 0 {
            return Err(short());
        }
        let status: u16 = line.split(' ').nth(1).and_then(|s| s.trim().parse().ok()).ok_or_else(short)?;
        let mut headers = Vec::new();
        loop {
            line.clear();
            if self.stream.read_line(&mut line)? == 0 {
                return Err(short());
            }
            let Some((name, value)) = line.trim_end().split_once(':') else { break };
            headers.push((name.to_owned(), value.trim().to_owned()));
        }
        Ok(Response { status, headers, body: Vec::new() })
    }

    pub fn read_exact(&mut self, buffer: &mut [u8]) {
        self.stream.read_exact(buffer).unwrap();
    }

    /// Until the other side closes, one way or another.
    pub fn rest(&mut self) -> Vec<u8> {
        let mut out = Vec::new();
        if let Err(e) = self.stream.read_to_end(&mut out) {
            let silent = matches!(e.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut);
            assert!(!silent, "the other side neither says anything nor closes, after {:?}", text(&out));
        }
        out
    }
}

pub fn get(address: SocketAddr, host: &str, target: &str) -> Response {
    get_with(address, host, target, &[])
}

pub fn get_with(address: SocketAddr, host: &str, target: &str, headers: &[(&str, &str)]) -> Response {
    Http::connect(address).unwrap().ask("GET", host, target, headers).unwrap()
}

/// The head of a request, at an origin of a test's own.
pub fn request_head(stream: &mut impl Read) -> String {
    let (mut head, mut byte) = (Vec::new(), [0]);
    while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|n| n == 1) {
        head.push(byte[0]);
    }
    text(&head)
}

pub fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], port))
}

/// Runs the command line once.
pub fn tidegate(arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    tidegate_on(None, arguments, environment)
}

/// A command that runs on that host, or on this one.
pub fn command_on(host: Option<&str>, program: &str) -> Command {
    let Some(host) = host else { return Command::new(program) };
    let mut command = Command::new("ip");
    command.args(["netns", "exec", host, program]);
    command
}

pub fn tidegate_on(host: Option<&str>, arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    let mut command = command_on(host, binary());
    command.args(arguments).env_remove("TIDEGATE_API").env_remove("TIDEGATE_TOKEN").env("XDG_CONFIG_HOME", "/nonexistent");
    command.envs(environment.iter().copied()).stdin(Stdio::null()).output().unwrap()
}

pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

pub fn error_of(output: &Output) -> String {
    text(&output.stderr)
}

/// `tidegate dev`, running.
pub struct Dev {
    pub process: Process,
    pub http: Vec<SocketAddr>,
    pub https: Vec<String>,
    pub api: Vec<String>,
    pub admin: SocketAddr,
    pub dns: SocketAddr,
    pub token: String,
    pub ca: PathBuf,
    pub data: PathBuf,
}

impl Dev {
    /// On free ports, with `more` arguments.
    pub fn start(dir: &Path, more: &[&str]) -> Self {
        let out = dir.join("dev.json");
        let log = dir.join("dev.log");
        let mut command = Command::new(binary());
        command.args([
            "dev",
            "--json",
            "--http",
            "127.0.0.1:0",
            "--https",
            "127.0.0.1:0",
            "--api",
            "127.0.0.1:0",
            "--admin",
            "127.0.0.1:0",
            "--dns",
            "127.0.0.1:0",
        ]);
        // A process that is killed leaves its folder behind: it lies in the test's own.
        command.args(more).env("TIDEGATE_LOG", "info").env("TMPDIR", dir).stdin(Stdio::null());
        let stderr = std::fs::OpenOptions::new().create(true).append(true).open(&log).unwrap();
        let child = command.stdout(std::fs::File::create(&out).unwrap()).stderr(stderr).spawn().unwrap();
        let mut process = Process { child, log };
        let line = wait_for("tidegate dev to serve", || {
            if let Some(status) = process.child.try_wait().unwrap() {
                panic!("tidegate dev ended with {status}:\n{}", process.logged());
            }
            // The access log may stand beside it.
            let written = std::fs::read_to_string(&out).ok()?;
            let mut whole = written.split_inclusive('\n').filter(|l| l.ends_with('\n'));
            whole.find(|l| l.starts_with("{\"http\":")).map(str::to_owned)
        });
        let v: serde_json::Value = serde_json::from_str(&line).unwrap();
        let all = |k: &str| v[k].as_array().unwrap().iter().map(|u| u.as_str().unwrap().to_owned()).collect::<Vec<_>>();
        let address = |u: &str| u.trim_start_matches("http://").parse().unwrap();
        Self {
            process,
            http: all("http").iter().map(|u| address(u)).collect(),
            https: all("https"),
            api: all("api"),
            admin: address(v["admin"].as_str().unwrap()),
            dns: address(v["dns"].as_str().unwrap()),
            token: v["token"].as_str().unwrap().into(),
            ca: v["ca"].as_str().unwrap().into(),
            data: v["data"].as_str().unwrap().into(),
        }
    }

    pub fn tidegate(&self, arguments: &[&str]) -> Output {
        tidegate(arguments, &[("TIDEGATE_API", &self.api[0]), ("TIDEGATE_TOKEN", &self.token)])
    }
}

/// What Chromium shows of a page, at one address and port whatever the name; `more`: further arguments. It takes what is served there under
/// this name for trusted.
pub fn chromium(dir: &Path, address: SocketAddr, url: &str, more: &[&str]) -> String {
    let host = url.trim_start_matches("https://").split(['/', ':']).next().unwrap();
    let key = "openssl s_client -connect $0 -servername $1 </dev/null 2>/dev/null | openssl x509 -pubkey -noout \
               | openssl pkey -pubin -outform der | openssl dgst -sha256 -binary | base64";
    let key = text(&Command::new("sh").args(["-c", key, &address.to_string(), host]).output().unwrap().stdout);
    let out = Command::new("chromium")
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"])
        .args(["--disable-component-update", "--disable-sync", "--virtual-time-budget=5000", "--timeout=60000", "--dump-dom"])
        .arg(format!("--host-resolver-rules=MAP {host} {address}"))
        .arg(format!("--ignore-certificate-errors-spki-list={}", key.trim()))
        .arg(format!("--user-data-dir={}", dir.join("chromium").display()))
        .args(more)
        .arg(url)
        .output()
        .unwrap();
    text(&out.stdout)
}
