//! The HTTP API's client, for the command line: one request at a time, over TLS or, on loopback, in clear.

#![forbid(unsafe_code)]

use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tidegate_control_types::api::{JoinRequest, Problem, PurgeRequest, Receipt, SiteView, TokenRequest, TokenView};
use tidegate_control_types::site_file::parse_origin_url;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Beyond what the server itself may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(320);
const MOST_ANSWER: usize = 256 << 20;

#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("{0}")]
    Settings(String),
    #[error("cannot reach the API at {api}: {error}")]
    Connect { api: String, error: String },
    #[error("the API broke off: {0}")]
    Broken(String),
    #[error("{}", .0.detail)]
    Problem(Problem),
    #[error("the API answered {status} with what is not its own: {text}")]
    Foreign { status: u16, text: String },
}

impl ClientError {
    /// As the command line exits: 1 refused or failed, 3 nothing such, 75 try again.
    #[must_use]
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Problem(p) if p.status == 404 || p.status == 410 => 3,
            Self::Problem(p) if p.status == 503 => 75,
            _ => 1,
        }
    }
}

/// Where the API is and how to talk to it.
#[derive(Clone, Debug)]
pub struct Settings {
    pub api: String,
    pub token: String,
    /// PEM file of the authority to trust for https, instead of the system's.
    pub ca: Option<PathBuf>,
}

pub struct Client {
    settings: Settings,
    https: bool,
    host: String,
    port: u16,
}

pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Client {
    /// # Errors
    /// The API's address is no URL, or a token would cross the network in clear.
    pub fn new(settings: Settings) -> Result<Self, ClientError> {
        let (https, host, port) = parse_origin_url(&settings.api).map_err(|e| ClientError::Settings(format!("the API's address {e}")))?;
        let bare = host.trim_matches(['[', ']']);
        let local = bare == "localhost" || bare.parse::<std::net::IpAddr>().is_ok_and(|a| a.is_loopback());
        if !https && !local {
            return Err(ClientError::Settings(format!("{} is not https, and the token would cross the network in clear", settings.api)));
        }
        Ok(Self { settings, https, host, port })
    }

    /// Sends a request and gives the answer, whatever its status.
    ///
    /// # Errors
    /// There is no answer.
    pub async fn send(&self, method: Method, path: &str, headers: HeaderMap, body: Vec<u8>) -> Result<Answer, ClientError> {
        let fail = |error: String| ClientError::Connect { api: self.settings.api.clone(), error };
        let mut request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, format!("{}:{}", self.host, self.port))
            .header(header::AUTHORIZATION, format!("Bearer {}", self.settings.token))
            .body(Full::new(Bytes::from(body)))
            .map_err(|e| ClientError::Settings(e.to_string()))?;
        request.headers_mut().extend(headers);
        let address = format!("{}:{}", self.host, self.port);
        let tcp = tokio::time::timeout(CONNECT_TIMEOUT, TcpStream::connect(&address)).await;
        let tcp = tcp.map_err(|_| fail("no connection in time".into()))?.map_err(|e| fail(e.to_string()))?;
        let exchange = async {
            if self.https {
                let name = ServerName::try_from(self.host.trim_matches(['[', ']']).to_owned()).map_err(|e| fail(e.to_string()))?;
                let tls = TlsConnector::from(self.tls()?)
                    .connect(name, tcp)
                    .await
                    .map_err(|e| fail(format!("{e}; name the network's CA file with TIDEGATE_CA")))?;
                exchange(tls, request).await
            } else {
                exchange(tcp, request).await
            }
        };
        tokio::time::timeout(ANSWER_TIMEOUT, exchange).await.map_err(|_| ClientError::Broken("no answer in time".into()))?
    }

    fn tls(&self) -> Result<Arc<ClientConfig>, ClientError> {
        let mut roots = RootCertStore::empty();
        match &self.settings.ca {
            Some(path) => add_roots(&mut roots, path)?,
            None => {
                roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            }
        }
        Ok(Arc::new(ClientConfig::builder().with_root_certificates(roots).with_no_client_auth()))
    }

    /// Sends a request and gives the answer if it is a success.
    ///
    /// # Errors
    /// There is no answer, or it is a problem.
    pub async fn ask(&self, method: Method, path: &str, headers: HeaderMap, body: Vec<u8>) -> Result<Answer, ClientError> {
        let answer = self.send(method, path, headers, body).await?;
        if answer.status.is_success() {
            return Ok(answer);
        }
        match serde_json::from_slice::<Problem>(&answer.body) {
            Ok(problem) => Err(ClientError::Problem(problem)),
            Err(_) => Err(ClientError::Foreign {
                status: answer.status.as_u16(),
                text: String::from_utf8_lossy(&answer.body).chars().take(200).collect(),
            }),
        }
    }

    /// # Errors
    /// As [`Client::ask`], or the answer is not what it should be.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        read(&self.ask(Method::GET, path, HeaderMap::new(), Vec::new()).await?)
    }

    /// # Errors
    /// As [`Client::get`].
    pub async fn post<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, ClientError> {
        read(&self.ask(Method::POST, path, HeaderMap::new(), json(body)).await?)
    }

    /// # Errors
    /// As [`Client::get`].
    pub async fn put<T: DeserializeOwned>(&self, path: &str, body: &impl Serialize) -> Result<T, ClientError> {
        read(&self.ask(Method::PUT, path, HeaderMap::new(), json(body)).await?)
    }

    /// Does something that has no answer beside its success.
    ///
    /// # Errors
    /// As [`Client::ask`].
    pub async fn act(&self, method: Method, path: &str) -> Result<(), ClientError> {
        self.ask(method, path, HeaderMap::new(), Vec::new()).await.map(|_| ())
    }

    /// Applies a site file. `expected`: the revision that the caller saw last.
    ///
    /// # Errors
    /// As [`Client::ask`].
    pub async fn apply_site(&self, name: &str, source: &str, expected: Option<u64>, vouch: bool) -> Result<SiteView, ClientError> {
        let mut headers = HeaderMap::new();
        if let Some(value) = expected.and_then(|r| format!("\"{r}\"").parse().ok()) {
            headers.insert(header::IF_MATCH, value);
        }
        read(
            &self
                .ask(
                    Method::PUT,
                    &format!("/v1/sites/{name}{}", if vouch { "?vouch=true" } else { "" }),
                    headers,
                    source.as_bytes().to_vec(),
                )
                .await?,
        )
    }

    /// Purges; `wait` such as "10s". The receipt says whether it is true already.
    ///
    /// # Errors
    /// As [`Client::ask`].
    pub async fn purge(&self, purge: &PurgeRequest, wait: &str) -> Result<Receipt, ClientError> {
        self.post(&format!("/v1/purges?wait={wait}"), purge).await
    }

    /// # Errors
    /// As [`Client::ask`].
    pub async fn receipt(&self, index: u64, wait: &str) -> Result<Receipt, ClientError> {
        self.get(&format!("/v1/purges/{index}?wait={wait}")).await
    }

    /// # Errors
    /// As [`Client::ask`].
    pub async fn create_token(&self, asked: &TokenRequest) -> Result<TokenView, ClientError> {
        self.post("/v1/tokens", asked).await
    }

    /// # Errors
    /// As [`Client::ask`].
    pub async fn create_join(&self, asked: &JoinRequest) -> Result<TokenView, ClientError> {
        self.post("/v1/joins", asked).await
    }
}

fn json(body: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(body).unwrap_or_default()
}

fn read<T: DeserializeOwned>(answer: &Answer) -> Result<T, ClientError> {
    serde_json::from_slice(&answer.body).map_err(|e| ClientError::Broken(format!("its answer is not what this version expects: {e}")))
}

fn add_roots(roots: &mut RootCertStore, path: &Path) -> Result<(), ClientError> {
    let wrong = |e: String| ClientError::Settings(format!("{}: {e}", path.display()));
    let bytes = std::fs::read(path).map_err(|e| wrong(e.to_string()))?;
    for certificate in CertificateDer::pem_slice_iter(&bytes) {
        roots.add(certificate.map_err(|e| wrong(e.to_string()))?).map_err(|e| wrong(e.to_string()))?;
    }
    if roots.is_empty() { Err(wrong("holds no certificate in PEM form".into())) } else { Ok(()) }
}

async fn exchange<I>(io: I, request: Request<Full<Bytes>>) -> Result<Answer, ClientError>
where
    I: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
{
    let broken = |e: hyper::Error| ClientError::Broken(e.to_string());
    let (mut sender, connection) = http1::handshake(TokioIo::new(io)).await.map_err(broken)?;
    let driver = tokio::spawn(connection);
    let response = sender.send_request(request).await.map_err(broken)?;
    let (parts, body) = response.into_parts();
    let body = Limited::new(body, MOST_ANSWER).collect().await.map_err(|e| ClientError::Broken(e.to_string()))?.to_bytes();
    driver.abort();
    Ok(Answer { status: parts.status, headers: parts.headers, body })
}
