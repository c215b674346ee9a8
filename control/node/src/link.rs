//! Requests from one node to another: HTTP/2 over mutual TLS, one connection per neighbour, made again when it breaks.

use crate::identity::{Credentials, CurrentCredentials};
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
use std::sync::{Arc, OnceLock};
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

/// An open connection.
#[derive(Clone)]
pub struct Connection {
    sender: http2::SendRequest<Body>,
    /// Why it ended: the first to see that is the task that drives it.
    ended: Arc<OnceLock<String>>,
}

impl Connection {
    /// # Errors
    /// It breaks off before the answer begins; why.
    pub async fn send(&mut self, request: Request<Body>) -> Result<Response<Incoming>, String> {
        let sent = match self.sender.ready().await {
            Ok(()) => self.sender.send_request(request).await,
            Err(error) => Err(error),
        };
        sent.map_err(|error| self.ended.get().cloned().unwrap_or_else(|| words(&error)))
    }
}

/// Connections to any number of neighbours.
pub struct Links {
    credentials: CurrentCredentials,
    /// By address, with the credentials that each was made with: with others they are made again.
    open: Mutex<HashMap<String, (Arc<Credentials>, Connection)>>,
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
        let mut connection = self.connection(address, role).await?;
        connection.send(request).await.map_err(|error| {
            self.open.lock().remove(address);
            LinkError::Broken { address: address.into(), error }
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

    /// Returns once this node believes fewer authorities than at the time of the call.
    pub fn trust_changes(&self) -> impl Future<Output = ()> + Send + use<> {
        let (mut changes, trust) = (self.credentials.subscribe(), self.credentials.get().trust.clone());
        async move {
            if changes.wait_for(|now| now.trust != trust).await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    async fn connection(&self, address: &str, role: &str) -> Result<Connection, LinkError> {
        let credentials = self.credentials.get();
        let is_good = |(with, open): &&(Arc<Credentials>, Connection)| Arc::ptr_eq(with, &credentials) && !open.sender.is_closed();
        if let Some((_, open)) = self.open.lock().get(address).filter(is_good) {
            return Ok(open.clone());
        }
        let name = tidegate_certs::identity::role_name(&credentials.identity.cluster, role);
        let connection = connect(address, &name, Arc::clone(&credentials.client)).await?;
        self.open.lock().insert(address.into(), (credentials, connection.clone()));
        Ok(connection)
    }
}

/// Opens one HTTP/2 connection; its driver runs until the connection ends.
///
/// # Errors
/// No connection, or the other side is not who `name` says.
pub async fn connect(address: &str, name: &str, config: Arc<ClientConfig>) -> Result<Connection, LinkError> {
    let fail = |error: String| LinkError::Connect { address: address.into(), error };
    let opening = async {
        let tcp = TcpStream::connect(address).await.map_err(|e| fail(e.to_string()))?;
        tcp.set_nodelay(true).map_err(|e| fail(e.to_string()))?;
        let name = ServerName::try_from(name.to_owned()).map_err(|e| fail(e.to_string()))?;
        let tls = TlsConnector::from(config).connect(name, tcp).await.map_err(|e| fail(words(&e)))?;
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder.timer(TokioTimer::new()).keep_alive_interval(KEEP_ALIVE).keep_alive_timeout(KEEP_ALIVE).keep_alive_while_idle(true);
        builder.initial_stream_window_size(4 << 20).initial_connection_window_size(8 << 20);
        builder.handshake(TokioIo::new(tls)).await.map_err(|e| fail(e.to_string()))
    };
    let late = |_| fail(format!("no connection within {CONNECT_TIMEOUT:?}"));
    let (sender, connection) = tokio::time::timeout(CONNECT_TIMEOUT, opening).await.map_err(late)??;
    let ended = Arc::<OnceLock<String>>::default();
    let says = Arc::clone(&ended);
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            let why = words(&error);
            tracing::debug!(error = why, "a connection to another node ended");
            let _ = says.set(why);
        }
    });
    Ok(Connection { sender, ended })
}

/// An error with what it is due to.
fn words(error: &dyn std::error::Error) -> String {
    let mut words = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_words = cause.to_string();
        if !words.contains(&cause_words) {
            words = format!("{words}: {cause_words}");
        }
        source = cause.source();
    }
    // What rustls says of a certificate's dates, here or in the alert of the other side.
    if ["NotValidYet", "not valid yet", "xpired"].iter().any(|said| words.contains(said)) {
        words.push_str(": look at the clocks of both machines");
    }
    words
}
