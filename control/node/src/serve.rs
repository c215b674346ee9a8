//! Listeners between nodes and for the API: TLS or clear, HTTP/1.1 or HTTP/2, with limits, until the role ends.

use crate::SystemClock;
use crate::identity::{Credentials, CurrentCredentials};
use crate::lifecycle::{DRAIN_WITHIN, Stopping};
use bytes::Bytes;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use parking_lot::Mutex;
use std::convert::Infallible;
use std::future::Future;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;
use tidegate_certs::NodeIdentity;
use tidegate_certs::tls::is_retired;
use tidegate_control_types::Clock;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
const MOST_CONNECTIONS: usize = 20_000;
const MOST_STREAMS: u32 = 1000;
const KEEP_ALIVE: Duration = Duration::from_secs(5);

/// Who is at the other end.
#[derive(Clone, Debug)]
pub struct Peer {
    pub address: SocketAddr,
    /// From its certificate; `None` without one.
    pub identity: Option<NodeIdentity>,
    /// Its certificate has expired: it may renew it, and nothing else.
    pub is_late: bool,
}

/// The TLS settings to use for the next handshake; they change when a certificate is renewed.
pub type CurrentTls = Arc<dyn Fn() -> Option<Arc<rustls::ServerConfig>> + Send + Sync>;

/// With the credentials that it was made with.
type Made = (Arc<Credentials>, Arc<rustls::ServerConfig>);

/// The TLS of a listener between nodes, made again when the certificate is renewed.
#[derive(Clone)]
pub struct MutualTls {
    credentials: CurrentCredentials,
    enrolment: bool,
    made: Arc<Mutex<Option<Made>>>,
}

impl MutualTls {
    /// `enrolment`: nodes without a certificate, or with one that has expired, may connect too.
    #[must_use]
    pub fn new(credentials: CurrentCredentials, enrolment: bool) -> Self {
        Self { credentials, enrolment, made: Arc::default() }
    }

    /// For the next handshake.
    #[must_use]
    pub fn current(&self) -> Option<Arc<rustls::ServerConfig>> {
        let now = self.credentials.get();
        let mut made = self.made.lock();
        if let Some((with, config)) = made.as_ref()
            && Arc::ptr_eq(with, &now)
        {
            return Some(Arc::clone(config));
        }
        match tidegate_certs::tls::node_server(&now.chain, &now.key, &now.trust, self.enrolment) {
            Ok(config) => {
                let config = Arc::new(config);
                *made = Some((now, Arc::clone(&config)));
                Some(config)
            }
            Err(error) => {
                tracing::error!(%error, "the listener between nodes has no TLS settings");
                None
            }
        }
    }

    /// When a connection has to end: with the role, or once the authority of the other side's certificate is believed no more.
    pub fn ends(&self, session: &rustls::ServerConnection, mut stopping: Stopping) -> impl Future<Output = ()> + Send + use<> {
        let chain: Vec<_> = session.peer_certificates().unwrap_or_default().iter().skip(1).map(|c| c.to_vec()).collect();
        let mut changes = self.credentials.subscribe();
        async move {
            let distrusted = changes.wait_for(|now| is_retired(chain.iter().map(Vec::as_slice), &now.trust.retired));
            tokio::select! {
                Ok(_) = distrusted => {}
                () = stopping.stopped() => {}
            }
        }
    }
}

/// What a listener speaks below HTTP.
#[derive(Clone)]
pub enum Transport {
    Clear,
    Tls(CurrentTls),
    Mutual(MutualTls),
}

/// Who a verified peer is, by its certificate.
#[must_use]
pub fn identity_of(session: &rustls::ServerConnection) -> Option<NodeIdentity> {
    let leaf = session.peer_certificates()?.first()?;
    NodeIdentity::of_certificate(leaf).ok()
}

/// Serves `answer` on `listener`.
pub async fn serve<A, F, B>(listener: TcpListener, transport: Transport, answer: A, mut stopping: Stopping)
where
    A: Fn(Request<Incoming>, Peer) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response<B>> + Send + 'static,
    B: hyper::body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<crate::BoxError>,
{
    let listener = match tokio::net::TcpListener::from_std(listener) {
        Ok(l) => l,
        Err(error) => return tracing::error!(%error, "a listener failed"),
    };
    let room = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    loop {
        let accepted = tokio::select! {
            accepted = async {
                let permit = Arc::clone(&room).acquire_owned().await;
                (listener.accept().await, permit)
            } => accepted,
            () = stopping.stopped() => return,
        };
        let (Ok((tcp, address)), Ok(permit)) = accepted else {
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let _ = tcp.set_nodelay(true);
        let (answer, mut stopping, transport) = (answer.clone(), stopping.clone(), transport.clone());
        tokio::spawn(async move {
            let _permit = permit;
            let config = match &transport {
                Transport::Clear => {
                    let peer = Peer { address, identity: None, is_late: false };
                    return connection(tcp, peer, false, answer, stopping.stopped()).await;
                }
                Transport::Tls(current) => current(),
                Transport::Mutual(mutual) => mutual.current(),
            };
            let Some(config) = config else { return };
            let shaken = tokio::time::timeout(HANDSHAKE_TIMEOUT, TlsAcceptor::from(config).accept(tcp)).await;
            let tls = match shaken {
                Ok(Ok(tls)) => tls,
                Ok(Err(error)) => return tracing::debug!(%address, %error, "a TLS handshake failed"),
                Err(_) => return tracing::debug!(%address, "a TLS handshake took too long"),
            };
            let session = tls.get_ref().1;
            let h2 = session.alpn_protocol() == Some(b"h2");
            let identity = identity_of(session);
            let leaf = session.peer_certificates().and_then(|chain| chain.first());
            let not_after = leaf.and_then(|leaf| tidegate_certs::identity::not_after(leaf).ok());
            let is_late = not_after.is_some_and(|end| end < SystemClock.wall().as_secs());
            let peer = Peer { address, identity, is_late };
            match &transport {
                Transport::Mutual(mutual) => {
                    let ends = mutual.ends(session, stopping);
                    connection(tls, peer, h2, answer, ends).await;
                }
                Transport::Clear | Transport::Tls(_) => connection(tls, peer, h2, answer, stopping.stopped()).await,
            }
        });
    }
}

async fn connection<I, A, F, B>(io: I, peer: Peer, h2: bool, answer: A, ends: impl Future<Output = ()> + Send)
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    A: Fn(Request<Incoming>, Peer) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response<B>> + Send + 'static,
    B: hyper::body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<crate::BoxError>,
{
    let service = service_fn(move |request| {
        let answer = answer(request, peer.clone());
        async move { Ok::<_, Infallible>(answer.await) }
    });
    // Both kinds end the same way: told to finish, then given a bound.
    macro_rules! drive {
        ($connection:expr) => {{
            let mut connection = std::pin::pin!($connection);
            tokio::select! {
                ended = connection.as_mut() => ended,
                () = ends => {
                    connection.as_mut().graceful_shutdown();
                    tokio::time::timeout(DRAIN_WITHIN, connection).await.unwrap_or(Ok(()))
                }
            }
        }};
    }
    let ended = if h2 {
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder.timer(TokioTimer::new()).keep_alive_interval(KEEP_ALIVE).keep_alive_timeout(KEEP_ALIVE);
        builder.max_concurrent_streams(MOST_STREAMS).initial_stream_window_size(4 << 20).initial_connection_window_size(8 << 20);
        drive!(builder.serve_connection(TokioIo::new(io), service))
    } else {
        let mut builder = http1::Builder::new();
        builder.timer(TokioTimer::new()).header_read_timeout(HEAD_TIMEOUT);
        drive!(builder.serve_connection(TokioIo::new(io), service))
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection ended");
    }
}
