//! A client over TLS that says what went wrong, and resumes no session.

use super::network::Node;
use rustls::pki_types::pem::PemObject;
use std::io::{Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Whom a client trusts.
#[derive(Clone)]
pub struct Trusting(Arc<rustls::ClientConfig>);

impl Trusting {
    pub fn authority(ca: impl AsRef<Path>) -> Self {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(rustls::pki_types::CertificateDer::from_pem_file(ca).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let mut config = config.with_root_certificates(roots).with_no_client_auth();
        config.resumption = rustls::client::Resumption::disabled();
        Self(Arc::new(config))
    }
}

/// Whether what listens there shows a certificate for that host that is trusted.
pub fn shakes_hands(address: std::net::SocketAddr, host: &str, trusting: &Trusting) -> bool {
    let Ok(mut tcp) = std::net::TcpStream::connect(address) else { return false };
    let mut tls = rustls::ClientConnection::new(Arc::clone(&trusting.0), host.to_owned().try_into().unwrap()).unwrap();
    tls.complete_io(&mut tcp).is_ok()
}

/// A connection to an edge, after its handshake.
pub struct Https {
    pub stream: rustls::StreamOwned<rustls::ClientConnection, std::net::TcpStream>,
    host: String,
}

impl Https {
    pub fn to(node: &Node, host: &str, trusting: &Trusting) -> std::io::Result<Self> {
        let mut tcp = std::net::TcpStream::connect((node.ip, node.https))?;
        tcp.set_read_timeout(Some(Duration::from_secs(10)))?;
        let mut tls = rustls::ClientConnection::new(Arc::clone(&trusting.0), host.to_owned().try_into().unwrap()).unwrap();
        tls.complete_io(&mut tcp)?;
        Ok(Self { stream: rustls::StreamOwned::new(tls, tcp), host: host.into() })
    }

    /// The status and the body of an answer that says how long it is.
    pub fn get(&mut self, path: &str) -> std::io::Result<(u16, String)> {
        write!(self.stream, "GET {path} HTTP/1.1\r\nHost: {}\r\n\r\n", self.host)?;
        let mut head = Vec::new();
        let mut byte = [0; 1];
        while !head.ends_with(b"\r\n\r\n") {
            self.stream.read_exact(&mut byte)?;
            head.push(byte[0]);
        }
        let head = String::from_utf8(head).unwrap().to_lowercase();
        let length = head.split("content-length: ").nth(1).unwrap().lines().next().unwrap().trim().parse().unwrap();
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body)?;
        Ok((head[9..12].parse().unwrap(), String::from_utf8(body).unwrap()))
    }
}
