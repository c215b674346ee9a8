//! Requests from one node to another: HTTP/2 over mutual TLS, one connection per neighbour, made again when it breaks.

use crate::identity::CurrentCredentials;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::BodyExt;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use parking_lot::Mutex;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
/// A body between nodes, where a box costs nothing that matters.
pub type Body = UnsyncBoxBody<Bytes, BoxError>;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// A neighbour that is gone without a word is noticed after this.
const KEEP_ALIVE: Duration = Duration::from_secs(2);

#[must_use]
pub fn full(bytes: impl Into<Bytes>) -> Body {
    http_body_util::Full::new(bytes.into()).map_err(|e| match e {}).boxed_unsync()
}

#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    #[error("cannot reach {address}: {error}")]
    Connect { address: String, error: String },
    #[error("{address} broke off: {error}")]
    Broken { address: String, error: String },
    #[error("{address} answered {status}: {detail}")]
    Refused { address: String, status: u16, detail: String },
}

type Sender = http2::SendRequest<Body>;

/// Connections to any number of neighbours.
pub struct Links {
    credentials: CurrentCredentials,
    /// By address, with the end of the certificate that each was made with: after a renewal they are made again.
    open: Mutex<HashMap<String, (u64, Sender)>>,
}

impl Links {
    #[must_use]
    pub fn new(credentials: CurrentCredentials) -> Arc<Self> {
        Arc::new(Self { credentials, open: Mutex::new(HashMap::new()) })
    }

    /// Sends a request to any node of `role` at `address` (host:port).
    ///
    /// # Errors
    /// It cannot be reached, is another's, or breaks off before its answer begins.
    pub async fn send(&self, address: &str, role: &str, request: Request<Body>) -> Result<Response<Incoming>, LinkError> {
        let mut sender = self.sender(address, role).await?;
        let broken = |e: hyper::Error| LinkError::Broken { address: address.into(), error: e.to_string() };
        if let Err(e) = sender.ready().await {
            self.open.lock().remove(address);
            return Err(broken(e));
        }
        sender.send_request(request).await.map_err(|e| {
            self.open.lock().remove(address);
            broken(e)
        })
    }

    /// Sends `body` to `path` and collects the answer, within `timeout`.
    ///
    /// # Errors
    /// As [`Links::send`], and an answer other than success.
    pub async fn call(&self, address: &str, role: &str, path: &str, body: Vec<u8>, timeout: Duration) -> Result<Bytes, LinkError> {
        let answer = async {
            let request = Request::post(format!("https://node{path}")).body(full(body));
            let request = request.map_err(|e| LinkError::Broken { address: address.into(), error: e.to_string() })?;
            let response = self.send(address, role, request).await?;
            let status = response.status();
            let bytes = response
                .into_body()
                .collect()
                .await
                .map_err(|e| LinkError::Broken { address: address.into(), error: e.to_string() })?
                .to_bytes();
            if status.is_success() {
                return Ok(bytes);
            }
            let detail = String::from_utf8_lossy(bytes.get(..bytes.len().min(500)).unwrap_or_default()).into_owned();
            Err(LinkError::Refused { address: address.into(), status: status.as_u16(), detail })
        };
        let late = |_| LinkError::Broken { address: address.into(), error: format!("no answer within {timeout:?}") };
        tokio::time::timeout(timeout, answer).await.map_err(late)?
    }

    async fn sender(&self, address: &str, role: &str) -> Result<Sender, LinkError> {
        let credentials = self.credentials.get();
        let is_good = |(not_after, sender): &&(u64, Sender)| *not_after == credentials.not_after && !sender.is_closed();
        if let Some((_, open)) = self.open.lock().get(address).filter(is_good) {
            return Ok(open.clone());
        }
        let name = tidegate_certs::identity::role_name(&credentials.identity.cluster, role);
        let sender = connect(address, &name, Arc::clone(&credentials.client)).await?;
        self.open.lock().insert(address.into(), (credentials.not_after, sender.clone()));
        Ok(sender)
    }
}

/// Opens one HTTP/2 connection; its driver runs until the connection ends.
///
/// # Errors
/// No connection, or the other side is not who `name` says.
pub async fn connect(address: &str, name: &str, config: Arc<ClientConfig>) -> Result<Sender, LinkError> {
    let fail = |error: String| LinkError::Connect { address: address.into(), error };
    let opening = async {
        let tcp = TcpStream::connect(address).await.map_err(|e| fail(e.to_string()))?;
        tcp.set_nodelay(true).map_err(|e| fail(e.to_string()))?;
        let name = ServerName::try_from(name.to_owned()).map_err(|e| fail(e.to_string()))?;
        let tls = TlsConnector::from(config).connect(name, tcp).await.map_err(|e| fail(e.to_string()))?;
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder.timer(TokioTimer::new()).keep_alive_interval(KEEP_ALIVE).keep_alive_timeout(KEEP_ALIVE).keep_alive_while_idle(true);
        builder.initial_stream_window_size(4 << 20).initial_connection_window_size(8 << 20);
        builder.handshake(TokioIo::new(tls)).await.map_err(|e| fail(e.to_string()))
    };
    let late = |_| fail(format!("no connection within {CONNECT_TIMEOUT:?}"));
    let (sender, connection) = tokio::time::timeout(CONNECT_TIMEOUT, opening).await.map_err(late)??;
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a connection to another node ended");
        }
    });
    Ok(sender)
}
