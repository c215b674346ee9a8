//! Connections: TCP, TLS where it is wanted, then HTTP/1.1 or HTTP/2 by ALPN.

use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, LazyLock};
use std::time::Duration;
use tidegate_control_types::site::OriginTls;
use tidegate_gateway::{FetchError, RequestBody};
use tidegate_http2::{ClientSettings, KeepAlive, Sender};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

pub enum Connection {
    H1(http1::SendRequest<RequestBody>),
    H2(Sender),
}

const HTTP_2: ClientSettings = ClientSettings {
    head: 64 << 10,
    stream_window: 1 << 20,
    connection_window: 4 << 20,
    keep_alive: KeepAlive { every: Duration::from_secs(10), within: Duration::from_secs(5) },
};

/// Tries the addresses in turn, IPv6 and IPv4 as they came, each with a fair share of the time.
///
/// # Errors
/// None of them accepts.
pub async fn tcp(addresses: &[IpAddr], port: u16, timeout: Duration) -> Result<TcpStream, FetchError> {
    let share = timeout / u32::try_from(addresses.len()).unwrap_or(1).clamp(1, 4);
    for ip in addresses {
        if let Ok(Ok(stream)) = tokio::time::timeout(share, TcpStream::connect(SocketAddr::new(*ip, port))).await {
            let _ = stream.set_nodelay(true);
            return Ok(stream);
        }
    }
    Err(FetchError::Connect)
}

/// Speaks HTTP/1.1 in clear.
///
/// # Errors
/// The other side closes at once.
pub async fn clear(stream: TcpStream) -> Result<Connection, FetchError> {
    h1(stream).await
}

/// Speaks TLS, then what ALPN says.
///
/// # Errors
/// The handshake fails, or the certificate is not accepted.
pub async fn tls(stream: TcpStream, name: &str, config: Arc<ClientConfig>, timeout: Duration) -> Result<Connection, FetchError> {
    let name = ServerName::try_from(name.trim_matches(['[', ']']).to_owned()).map_err(|_| FetchError::Tls)?;
    let handshake = tokio::time::timeout(timeout, TlsConnector::from(config).connect(name, stream));
    let stream = handshake.await.map_err(|_| FetchError::Timeout)?.map_err(|error| {
        tracing::debug!(%error, "a TLS handshake with an origin failed");
        FetchError::Tls
    })?;
    if stream.get_ref().1.alpn_protocol() != Some(b"h2") {
        return h1(stream).await;
    }
    tidegate_http2::connect(stream, &HTTP_2).await.map(Connection::H2).map_err(|_| FetchError::Broken)
}

async fn h1<I>(io: I) -> Result<Connection, FetchError>
where
    I: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let mut builder = http1::Builder::new();
    builder.max_buf_size(256 << 10).max_headers(256);
    let (sender, connection) = builder.handshake(TokioIo::new(io)).await.map_err(|_| FetchError::Broken)?;
    tokio::task::spawn_local(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "a connection to an origin ended");
        }
    });
    Ok(Connection::H1(sender))
}

static SYSTEM_ROOTS: LazyLock<Arc<RootCertStore>> = LazyLock::new(|| {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    for error in &found.errors {
        tracing::warn!(%error, "the system's certificate authorities could not all be read");
    }
    roots.add_parsable_certificates(found.certs);
    Arc::new(roots)
});

/// TLS settings towards origins, made once for each way in which sites want them.
#[derive(Default)]
pub struct TlsSettings(Mutex<HashMap<Wanted, Arc<ClientConfig>>>);

/// Whether to verify, by which authority, and whether HTTP/2 may be spoken.
type Wanted = (bool, Option<String>, bool);

impl TlsSettings {
    /// # Errors
    /// The site's authority is no certificate.
    pub fn get(&self, site: &OriginTls, http_2: bool) -> Result<Arc<ClientConfig>, FetchError> {
        let key = (site.verify, site.ca.clone(), http_2);
        if let Some(made) = self.0.lock().get(&key) {
            return Ok(Arc::clone(made));
        }
        let roots = match &site.ca {
            None => Arc::clone(&SYSTEM_ROOTS),
            Some(pem) => {
                let mut roots = RootCertStore::empty();
                for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
                    roots.add(certificate.map_err(|_| FetchError::Tls)?).map_err(|_| FetchError::Tls)?;
                }
                Arc::new(roots)
            }
        };
        let builder = ClientConfig::builder();
        let mut config = if site.verify {
            builder.with_root_certificates(roots).with_no_client_auth()
        } else {
            builder.dangerous().with_custom_certificate_verifier(Arc::new(Unverified)).with_no_client_auth()
        };
        config.alpn_protocols = if http_2 { vec![b"h2".to_vec(), b"http/1.1".to_vec()] } else { vec![b"http/1.1".to_vec()] };
        let config = Arc::new(config);
        self.0.lock().insert(key, Arc::clone(&config));
        Ok(config)
    }
}

/// For sites that say `verify = false`: encrypted, but to whoever answers.
#[derive(Debug)]
struct Unverified;

impl ServerCertVerifier for Unverified {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        m: &[u8],
        c: &CertificateDer<'_>,
        d: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(m, c, d, &rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        m: &[u8],
        c: &CertificateDer<'_>,
        d: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(m, c, d, &rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms.supported_schemes()
    }
}
