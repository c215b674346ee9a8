//! HTTP/3 as clients that nobody here wrote speak it, and a network that loses packets.

use super::{Numbers, text};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::net::{SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Where `tests/run` puts what it has of Python.
pub const PYTHON_PATH: &str = concat!(env!("CARGO_TARGET_TMPDIR"), "/python");

/// aioquic, by way of `h3.py`.
pub struct Aioquic {
    pub connect: SocketAddr,
    pub ca: PathBuf,
    /// Who is asked for, in TLS and in requests.
    pub name: String,
}

impl Aioquic {
    pub fn of(connect: SocketAddr, ca: &Path, name: &str) -> Self {
        Self { connect, ca: ca.to_owned(), name: name.to_owned() }
    }

    fn command(&self, runs: &Value) -> Command {
        let spec = json!({ "connect": self.connect.to_string(), "ca": self.ca, "name": self.name, "runs": runs });
        let mut command = Command::new("python3");
        command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/h3.py")).arg(spec.to_string());
        command.env("PYTHONPATH", PYTHON_PATH).env("PYTHONDONTWRITEBYTECODE", "1");
        command
    }

    /// What came in each run.
    pub fn run(&self, runs: &Value) -> Vec<Value> {
        let out = self.command(runs).stdin(Stdio::null()).output().unwrap();
        serde_json::from_slice(&out.stdout).unwrap_or_else(|_| panic!("{}", text(&out.stderr)))
    }

    /// The answers to `requests`, all at once on one connection.
    pub fn ask(&self, requests: &Value) -> Vec<Value> {
        let all = self.run(&json!([{ "do": "requests", "requests": requests }]));
        all[0]["answers"].as_array().unwrap().clone()
    }

    /// Begins runs; the client says "begun" on its stderr where a run does.
    pub fn begin(&self, runs: &Value) -> Child {
        self.command(runs).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    }
}

/// A client that ends its connection where it hears that nobody knows it (aioquic does not listen for that).
pub fn quinn_client(ca: &Path) -> quinn::ClientConfig {
    use tokio_rustls::rustls::pki_types::{CertificateDer, pem::PemObject};
    use tokio_rustls::rustls::{ClientConfig, RootCertStore};
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(ca).unwrap()).unwrap();
    let mut tls = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    tls.alpn_protocols = vec![b"h3".to_vec()];
    let crypto = quinn::crypto::rustls::QuicClientConfig::try_from(tls).unwrap();
    let mut config = quinn::ClientConfig::new(Arc::new(crypto));
    let mut transport = quinn::TransportConfig::default();
    transport.keep_alive_interval(Some(Duration::from_millis(200)));
    config.transport_config(Arc::new(transport));
    config
}

/// Between clients and a server: loses packets, so many of a thousand, both ways, as its seed decides.
pub struct Lossy {
    pub address: SocketAddr,
    pub carried: Arc<AtomicU64>,
    pub lost: Arc<AtomicU64>,
    over: Arc<AtomicBool>,
}

impl Lossy {
    pub fn start(server: SocketAddr, per_mille: u64, seed: u64) -> Self {
        Self::slow(server, per_mille, seed, Duration::ZERO)
    }

    /// And takes so long for each packet to the client.
    pub fn slow(server: SocketAddr, per_mille: u64, seed: u64, takes: Duration) -> Self {
        let socket = Arc::new(UdpSocket::bind("127.0.0.1:0").unwrap());
        socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let lossy = Self { address: socket.local_addr().unwrap(), carried: Arc::default(), lost: Arc::default(), over: Arc::default() };
        let (carried, lost, over) = (Arc::clone(&lossy.carried), Arc::clone(&lossy.lost), Arc::clone(&lossy.over));
        let numbers = Arc::new(Mutex::new(Numbers(seed)));
        let carries = Arc::new(move || {
            let arrives = numbers.lock().unwrap().below(1000) >= per_mille;
            if arrives { &carried } else { &lost }.fetch_add(1, Ordering::Relaxed);
            arrives
        });
        std::thread::spawn(move || {
            let mut ways: HashMap<SocketAddr, Arc<UdpSocket>> = HashMap::new();
            let mut packet = [0; 65_536];
            while !over.load(Ordering::Relaxed) {
                let Ok((length, client)) = socket.recv_from(&mut packet) else { continue };
                let way = ways.entry(client).or_insert_with(|| {
                    let way = Arc::new(UdpSocket::bind("127.0.0.1:0").unwrap());
                    way.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
                    let (back, socket) = (Arc::clone(&way), Arc::clone(&socket));
                    let (carries, over) = (Arc::clone(&carries), Arc::clone(&over));
                    std::thread::spawn(move || {
                        let mut packet = [0; 65_536];
                        while !over.load(Ordering::Relaxed) {
                            let Ok(length) = back.recv(&mut packet) else { continue };
                            if carries() {
                                std::thread::sleep(takes);
                                let _ = socket.send_to(&packet[..length], client);
                            }
                        }
                    });
                    way
                });
                if carries() {
                    let _ = way.send_to(&packet[..length], server);
                }
            }
        });
        lossy
    }
}

impl Drop for Lossy {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}
