//! Connections: TCP, TLS where it is wanted, then HTTP/1.1 or HTTP/2 by ALPN.

use crate::socket;
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use std::cell::Cell;
use std::collections::{HashMap, VecDeque};
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll};
use std::time::Duration;
use tidegate_control_types::site::OriginTls;
use tidegate_gateway::{FetchError, RequestBody, fields, interim};
use tidegate_http2::{ClientSettings, KeepAlive, Sender, Windows};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;
use x509_parser::time::ASN1Time;

/// One of HTTP/1.1.
pub struct Http1 {
    pub sender: http1::SendRequest<RequestBody>,
    bad_line: Rc<Cell<Option<u32>>>,
    interim: Arc<AtomicUsize>,
}

impl Http1 {
    /// The malformed line of the last response's head, if there is one.
    #[must_use]
    pub fn bad_line(&self) -> Option<u32> {
        self.bad_line.get()
    }

    /// The counter for interim responses to the next request. The connection ends when there are too many.
    #[must_use]
    pub fn count_interim(&self) -> Arc<AtomicUsize> {
        self.interim.store(0, Ordering::Relaxed);
        Arc::clone(&self.interim)
    }

    #[must_use]
    pub fn had_too_many_interim(&self) -> bool {
        self.interim.load(Ordering::Relaxed) > interim::MOST_RECEIVED
    }
}

pub enum Connection {
    H1(Http1),
    H2(Sender),
}

const HTTP_2: ClientSettings = ClientSettings {
    // More than the limit that is checked: beyond this the library resets the stream, and says less.
    head: 512 << 10,
    windows: Windows { few: 1 << 20, many: 64 << 10 },
    keep_alive: KeepAlive { every: Duration::from_secs(10), within: Duration::from_secs(5) },
};

/// The next address is tried when the one before has not answered for so long (RFC 8305 section 5).
const NEXT_AFTER: Duration = Duration::from_millis(250);
/// An address that did not answer is tried last for so long.
const SILENT_FOR: Duration = Duration::from_secs(60);
/// Silence that is more than the way there and back.
const SILENT_AFTER: Duration = Duration::from_millis(400);
const MAX_SILENT: usize = 10_000;

/// The addresses of origins: which goes first, and which did not answer of late. One for the node.
#[derive(Debug, Default)]
pub struct Addresses {
    turn: AtomicUsize,
    silent: Mutex<HashMap<SocketAddr, Instant>>,
}

impl Addresses {
    /// All of them, in the order in which they are tried: each goes first in its turn, families alternate (RFC 8305 section 4), and
    /// silent ones are last.
    fn in_order(&self, addresses: &[IpAddr], port: u16) -> Vec<SocketAddr> {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let of_family = |v6: bool| {
            let mut all: Vec<_> = addresses.iter().filter(|a| a.is_ipv6() == v6).map(|ip| SocketAddr::new(*ip, port)).collect();
            let length = all.len().max(1);
            all.rotate_left(turn % length);
            all
        };
        let (v6, v4) = (of_family(true), of_family(false));
        let longest = v6.len().max(v4.len());
        let mut all: Vec<_> = (0..longest).flat_map(|n| [v6.get(n), v4.get(n)]).flatten().copied().collect();
        let now = Instant::now();
        let silent = self.silent.lock();
        all.sort_by_key(|a| silent.get(a).is_some_and(|until| now < *until));
        all
    }

    fn note(&self, address: SocketAddr, answers: bool) {
        let mut silent = self.silent.lock();
        if answers {
            silent.remove(&address);
            return;
        }
        let now = Instant::now();
        if silent.len() >= MAX_SILENT {
            silent.retain(|_, until| now < *until);
        }
        if silent.len() >= MAX_SILENT {
            return;
        }
        silent.insert(address, now + SILENT_FOR);
    }

    /// Connects to whichever address answers first. One is tried after the other, without waiting for those that say nothing.
    ///
    /// # Errors
    /// No address accepted the connection in time.
    pub async fn connect(&self, addresses: &[IpAddr], port: u16, timeout: Duration) -> Result<TcpStream, FetchError> {
        let mut waiting: VecDeque<SocketAddr> = self.in_order(addresses, port).into();
        let mut connecting = FuturesUnordered::new();
        let mut tried = Vec::new();
        let mut last = None;
        let racing = async {
            loop {
                if let Some(address) = waiting.pop_front() {
                    tried.push((address, Instant::now()));
                    connecting.push(async move { (address, TcpStream::connect(address).await) });
                }
                let next = async {
                    if waiting.is_empty() {
                        std::future::pending::<()>().await;
                    }
                    tokio::time::sleep(NEXT_AFTER).await;
                };
                tokio::select! {
                    biased;
                    Some((address, connected)) = connecting.next() => match connected {
                        Ok(stream) => return Some((address, stream)),
                        Err(error) => {
                            tried.retain(|(a, _)| *a != address);
                            // The error of another address speaks of the server.
                            last = last.filter(|_| is_no_room(&error, address)).or_else(|| Some(not_connected(&error, address)));
                            if connecting.is_empty() && waiting.is_empty() {
                                return None;
                            }
                        }
                    },
                    () = next => {}
                }
            }
        };
        let raced = tokio::time::timeout(timeout, racing).await;
        // The silent addresses: tried, but another one answered first or the time ran out.
        let first = match raced {
            Ok(Some((address, stream))) => {
                self.note(address, true);
                // One that had little time may be as good.
                let is_silent = |(a, since): &&(SocketAddr, Instant)| *a != address && since.elapsed() >= SILENT_AFTER;
                tried.iter().filter(is_silent).for_each(|(a, _)| self.note(*a, false));
                stream
            }
            Ok(None) => return Err(last.unwrap_or(FetchError::ConnectTimeout)),
            Err(_) => {
                let is_silent = |(_, since): &&(SocketAddr, Instant)| since.elapsed() >= SILENT_AFTER;
                tried.iter().filter(is_silent).for_each(|(a, _)| self.note(*a, false));
                return Err(FetchError::ConnectTimeout);
            }
        };
        socket::prepare(&first);
        Ok(first)
    }
}

/// Whether a connection could not be opened because this node has no descriptor, port or memory left for it.
fn is_no_room(error: &std::io::Error, to: SocketAddr) -> bool {
    // ENFILE, EMFILE and ENOBUFS, of which the standard library has no kinds.
    let is_without_kind = matches!(error.raw_os_error(), Some(23 | 24 | 105));
    match error.kind() {
        // Over IPv6 a node without an address of its own gets the same error.
        ErrorKind::AddrNotAvailable => to.is_ipv4(),
        kind => kind == ErrorKind::OutOfMemory || is_without_kind,
    }
}

/// Why a connection could not be opened.
pub(crate) fn not_connected(error: &std::io::Error, to: SocketAddr) -> FetchError {
    match error.kind() {
        _ if is_no_room(error, to) => FetchError::NoRoom,
        ErrorKind::ConnectionRefused => FetchError::Refused,
        _ => FetchError::Connect,
    }
}

/// A server shows the certificate of an authority as its own, as `openssl req -x509` makes them.
fn is_ca_of_its_own(error: &CertificateError) -> bool {
    matches!(error, CertificateError::Other(e) if e.to_string() == "CaUsedAsEndEntity")
}

/// The cause of a failed handshake, read from the TLS library's error.
fn tls_error(error: &std::io::Error) -> FetchError {
    use rustls::Error;
    match error.get_ref().and_then(|e| e.downcast_ref::<Error>()) {
        Some(Error::InvalidCertificate(certificate)) => match certificate {
            CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. } => FetchError::TlsExpired,
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => FetchError::TlsName,
            CertificateError::UnknownIssuer => FetchError::TlsUnknownAuthority,
            error if is_ca_of_its_own(error) => FetchError::TlsUnknownAuthority,
            _ => FetchError::Tls,
        },
        Some(Error::InvalidMessage(rustls::InvalidMessage::InvalidContentType)) => FetchError::NotTls,
        Some(_) => FetchError::Tls,
        None if matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset) => FetchError::Reset,
        None => FetchError::Tls,
    }
}

/// Speaks HTTP/1.1 in clear. `upgrading`: its one request may make another protocol of it.
///
/// # Errors
/// The other side closes at once.
pub async fn clear(stream: TcpStream, upgrading: bool) -> Result<Connection, FetchError> {
    h1(stream, upgrading).await
}

/// Speaks TLS, then what ALPN says. `upgrading`: as for [`clear`].
///
/// # Errors
/// The handshake fails, or the certificate is not accepted.
pub async fn tls(
    stream: TcpStream,
    name: &str,
    config: Arc<ClientConfig>,
    timeout: Duration,
    upgrading: bool,
) -> Result<Connection, FetchError> {
    let name = ServerName::try_from(name.trim_matches(['[', ']']).to_owned()).map_err(|_| FetchError::Tls)?;
    let handshake = tokio::time::timeout(timeout, TlsConnector::from(config).connect(name, stream));
    let stream = handshake.await.map_err(|_| FetchError::TlsTimeout)?.map_err(|error| {
        tracing::debug!(%error, "a TLS handshake with an origin failed");
        tls_error(&error)
    })?;
    if stream.get_ref().1.alpn_protocol() != Some(b"h2") {
        return h1(stream, upgrading).await;
    }
    tidegate_http2::connect(stream, &HTTP_2).await.map(Connection::H2).map_err(|_| FetchError::Reset)
}

pub(crate) async fn h1<I>(io: I, upgrading: bool) -> Result<Connection, FetchError>
where
    I: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let mut builder = http1::Builder::new();
    builder.max_buf_size(fields::MAX_HEAD).max_headers(fields::MAX_FIELDS).allow_spaces_after_header_name_in_responses(true);
    let interim = Arc::<AtomicUsize>::default();
    let io = Bounded { io, interim: Arc::clone(&interim) };
    let (sender, connection) = builder.handshake(TokioIo::new(io)).await.map_err(|_| FetchError::Reset)?;
    let bad_line = Rc::<Cell<Option<u32>>>::default();
    let found = Rc::clone(&bad_line);
    tokio::task::spawn_local(async move {
        let ended = if upgrading {
            connection.with_upgrades().await
        } else {
            let mut connection = connection;
            let ended = std::future::poll_fn(|cx| connection.poll_without_shutdown(cx)).await;
            // A head that could not be read is still here.
            found.set(first_bad_line(&connection.into_parts().read_buf));
            ended
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "a connection to an origin ended");
        }
    });
    Ok(Connection::H1(Http1 { sender, bad_line, interim }))
}

pin_project_lite::pin_project! {
    /// A connection that can be read no further once too many interim responses came: they would be read one after the other, and
    /// nothing else done meanwhile.
    struct Bounded<I> {
        #[pin]
        io: I,
        interim: Arc<AtomicUsize>,
    }
}

impl<I: AsyncRead> AsyncRead for Bounded<I> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, to: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        let this = self.project();
        if this.interim.load(Ordering::Relaxed) > interim::MOST_RECEIVED {
            return Poll::Ready(Err(std::io::Error::other("too many interim responses")));
        }
        this.io.poll_read(cx, to)
    }
}

impl<I: AsyncWrite> AsyncWrite for Bounded<I> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, from: &[u8]) -> Poll<std::io::Result<usize>> {
        self.project().io.poll_write(cx, from)
    }

    fn poll_write_vectored(self: Pin<&mut Self>, cx: &mut Context<'_>, from: &[std::io::IoSlice<'_>]) -> Poll<std::io::Result<usize>> {
        self.project().io.poll_write_vectored(cx, from)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        self.project().io.poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        self.project().io.poll_shutdown(cx)
    }
}

/// The first line of a response's head that cannot be one, counted from the status line as 1.
fn first_bad_line(head: &[u8]) -> Option<u32> {
    let mut lines = head.split_inclusive(|b| *b == b'\n').map(|l| l.strip_suffix(b"\n").map(|l| l.strip_suffix(b"\r").unwrap_or(l)));
    if !is_status_line(lines.next()?.unwrap_or(head)) {
        return Some(1);
    }
    for (line, number) in lines.zip(2..) {
        match line {
            // An empty line ends the head; no line means that the rest has not come.
            None | Some(b"") => return None,
            Some(line) if !is_field_line(line) => return Some(number),
            Some(_) => {}
        }
    }
    None
}

fn is_status_line(line: &[u8]) -> bool {
    let Some([version, b' ', code @ ..]) = line.strip_prefix(b"HTTP/1.") else { return false };
    let (digits, rest) = code.split_at(code.len().min(3));
    version.is_ascii_digit() && digits.len() == 3 && digits.iter().all(u8::is_ascii_digit) && matches!(rest, [] | [b' ', ..])
}

fn is_field_line(line: &[u8]) -> bool {
    let Some(colon) = line.iter().position(|b| *b == b':') else { return false };
    let (name, value) = line.split_at(colon);
    let name = name.trim_ascii_end();
    let is_token = |b: &u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(b);
    !name.is_empty() && name.iter().all(is_token) && value.iter().all(|b| *b == b'\t' || (*b >= 0x20 && *b != 0x7f))
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

/// Maximum number of kept settings: those of removed sites and former authorities would accumulate.
const MAX_TLS_SETTINGS: usize = 1000;

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
        let mut own = Vec::new();
        let roots = match &site.ca {
            None => Arc::clone(&SYSTEM_ROOTS),
            Some(pem) => {
                let mut roots = RootCertStore::empty();
                for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
                    let certificate = certificate.map_err(|_| FetchError::Tls)?;
                    roots.add(certificate.clone()).map_err(|_| FetchError::Tls)?;
                    own.push(certificate);
                }
                Arc::new(roots)
            }
        };
        let builder = ClientConfig::builder();
        let mut config = if site.verify {
            // None can be made of no authorities at all.
            let verifier = WebPkiServerVerifier::builder(roots).build().map_err(|_| FetchError::TlsUnknownAuthority)?;
            builder.dangerous().with_custom_certificate_verifier(Arc::new(Verified { verifier, own })).with_no_client_auth()
        } else {
            builder.dangerous().with_custom_certificate_verifier(Arc::new(Unverified)).with_no_client_auth()
        };
        config.alpn_protocols = if http_2 { vec![b"h2".to_vec(), b"http/1.1".to_vec()] } else { vec![b"http/1.1".to_vec()] };
        let config = Arc::new(config);
        let mut all = self.0.lock();
        if all.len() >= MAX_TLS_SETTINGS {
            all.clear();
        }
        all.insert(key, Arc::clone(&config));
        Ok(config)
    }
}

/// The usual verification. In addition, a server may show one of the site's own authorities as its certificate.
#[derive(Debug)]
struct Verified {
    verifier: Arc<WebPkiServerVerifier>,
    own: Vec<CertificateDer<'static>>,
}

impl ServerCertVerifier for Verified {
    fn verify_server_cert(
        &self,
        shown: &CertificateDer<'_>,
        between: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        match self.verifier.verify_server_cert(shown, between, name, ocsp, now) {
            Err(rustls::Error::InvalidCertificate(error)) if is_ca_of_its_own(&error) && self.own.contains(shown) => {
                verify_server_name(&ParsedCertificate::try_from(shown)?, name)?;
                let (_, parsed) = x509_parser::parse_x509_certificate(shown).map_err(|_| CertificateError::BadEncoding)?;
                let now = i64::try_from(now.as_secs()).ok().and_then(|now| ASN1Time::from_timestamp(now).ok());
                let is_valid = now.is_some_and(|now| parsed.validity().is_valid_at(now));
                is_valid.then(ServerCertVerified::assertion).ok_or_else(|| CertificateError::Expired.into())
            }
            verified => verified,
        }
    }

    fn verify_tls12_signature(
        &self,
        m: &[u8],
        c: &CertificateDer<'_>,
        d: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verifier.verify_tls12_signature(m, c, d)
    }

    fn verify_tls13_signature(
        &self,
        m: &[u8],
        c: &CertificateDer<'_>,
        d: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verifier.verify_tls13_signature(m, c, d)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.verifier.supported_verify_schemes()
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

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn the_bad_line_of_a_head_is_found() {
        for (head, line) in [
            (&b"HTTP/1.1 200 OK\r\nA: b\r\n\r\nbody without colon\r\n"[..], None),
            (b"HTTP/1.1 200\r\nA : b\xff\r\n\r\n", None),
            (b"SSH-2.0-x\r\n", Some(1)),
            (b"HTTP/1.1 20 OK\r\n", Some(1)),
            (b"HTTP/1.1 200 OK\r\nA: b\r\nFoo Bar: x\r\n\r\n", Some(3)),
            (b"HTTP/1.1 200 OK\r\n: x\r\n\r\n", Some(2)),
            (b"HTTP/1.1 200 OK\r\nA: \x00\r\n\r\n", Some(2)),
            (b"HTTP/1.1 200 OK\r\nno colon", None),
        ] {
            assert_eq!(first_bad_line(head), line, "{}", head.escape_ascii());
        }
    }

    #[tokio::test]
    async fn every_address_has_its_turn_and_silent_ones_are_last() {
        let all = [ip("192.0.2.1"), ip("192.0.2.2"), ip("2001:db8::1")];
        let addresses = Addresses::default();
        let firsts: Vec<_> = (0..4).map(|_| addresses.in_order(&all, 80)).collect();
        assert!(firsts.iter().all(|order| order.len() == 3 && order[0].is_ipv6()));
        assert_ne!(firsts[0][1], firsts[1][1]);
        addresses.note(SocketAddr::new(all[2], 80), false);
        assert!(addresses.in_order(&all, 80)[2].is_ipv6() && addresses.in_order(&all, 443)[0].is_ipv6());
        addresses.note(SocketAddr::new(all[2], 80), true);
        assert!(addresses.in_order(&all, 80)[0].is_ipv6());
    }

    #[test]
    fn a_node_that_has_no_room_blames_nobody_else() {
        // EMFILE, ENFILE, ENOBUFS, ENOMEM, EADDRNOTAVAIL; ECONNREFUSED; EHOSTUNREACH.
        let [v4, v6] = ["192.0.2.1:80", "[2001:db8::1]:80"].map(|a| a.parse().unwrap());
        for (codes, error) in
            [(&[24, 23, 105, 12, 99][..], FetchError::NoRoom), (&[111], FetchError::Refused), (&[113], FetchError::Connect)]
        {
            for code in codes {
                assert_eq!(not_connected(&std::io::Error::from_raw_os_error(*code), v4), error, "{code}");
            }
        }
        assert_eq!(not_connected(&std::io::Error::from_raw_os_error(99), v6), FetchError::Connect, "IPv6 is off");
        assert!(!FetchError::NoRoom.is_of_the_server());
    }

    #[tokio::test]
    async fn who_refuses_is_left_at_once_for_who_accepts() {
        let listener = tokio::net::TcpListener::bind("127.0.0.3:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let addresses = Addresses::default();
        for _ in 0..4 {
            let all = [ip("127.0.0.2"), ip("127.0.0.3"), ip("127.0.0.4")];
            let stream = addresses.connect(&all, port, Duration::from_secs(3)).await.unwrap();
            assert_eq!(stream.peer_addr().unwrap().ip(), ip("127.0.0.3"));
        }
        let refused = addresses.connect(&[ip("127.0.0.2")], port, Duration::from_secs(3)).await.unwrap_err();
        assert_eq!(refused, FetchError::Refused);
    }
}
