//! How an authority is spoken to: over https, within limits.

use super::Stop;
use crate::settings::AcmeSettings;
use bytes::Bytes;
use http::{Request, Response, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use instant_acme::{
    Account, AccountCredentials, BodyWrapper, BytesResponse, Error, ExternalAccountKey, HttpClient, NewAccount, Problem, Subproblem,
};
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, ServerName};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

const TIMEOUT: Duration = Duration::from_secs(30);
const MOST_ANSWER: usize = 1 << 20;

/// The account at the authority; where there is none yet it is made, and comes back to be kept.
///
/// # Errors
/// In words for the operator.
pub async fn account(settings: &AcmeSettings, kept: Option<&[u8]>) -> Result<(Account, Option<Vec<u8>>), Stop> {
    let client = Https(TlsConnector::from(Arc::new(tls(settings).map_err(Stop::failed)?)));
    let builder = Account::builder_with_http(Box::new(client));
    let failed = |e: Error| match Stop::from(e) {
        Stop::Failed { problem, is_rate_limited, unproven } => {
            Stop::Failed { problem: format!("{}: {problem}", settings.directory), is_rate_limited, unproven }
        }
        Stop::Away(problem) => Stop::Away(format!("{}: {problem}", settings.directory)),
        other => other,
    };
    if let Some(kept) = kept {
        let credentials: AccountCredentials =
            serde_json::from_slice(kept).map_err(|e| Stop::failed(format!("the account cannot be read: {e}")))?;
        return Ok((builder.from_credentials(credentials).await.map_err(failed)?, None));
    }
    let binding = match &settings.external_account {
        None => None,
        Some(e) => {
            let file = e.hmac_key_file.display();
            let text = std::fs::read_to_string(&e.hmac_key_file).map_err(|e| Stop::failed(format!("{file}: {e}")))?;
            let key = data_encoding::BASE64URL_NOPAD.decode(text.trim().trim_end_matches('=').as_bytes());
            Some(ExternalAccountKey::new(e.key_id.clone(), &key.map_err(|_| Stop::failed(format!("{file} holds no key in base64url")))?))
        }
    };
    let contact: Vec<&str> = settings.contact.iter().map(String::as_str).collect();
    let new = NewAccount { contact: &contact, terms_of_service_agreed: true, only_return_existing: false };
    let (account, credentials) = builder.create(&new, settings.directory.clone(), binding.as_ref()).await.map_err(failed)?;
    let kept = serde_json::to_vec(&credentials).map_err(|e| Stop::failed(format!("the account cannot be kept: {e}")))?;
    Ok((account, Some(kept)))
}

/// Why something failed, as the authority says it.
#[must_use]
pub fn words(error: &Error) -> String {
    match error {
        Error::Api(problem) => problem.to_string().trim_start_matches("API error: ").to_owned(),
        other => other.to_string(),
    }
}

/// Whether an order was not taken for another reason than the certificate that it is to replace.
#[must_use]
pub fn says_something_else(error: &Error) -> bool {
    // An authority that has not read it does not repeat it, and the library takes no such answer.
    let is_unread = matches!(error, Error::Other(why) if why.to_string().starts_with("replaces field mismatch"));
    !is_unread && is_away(error) || is_rate_limit(error) || is(error, "badNonce") || is(error, "accountDoesNotExist")
}

/// The names that a problem is about, where it says so (section 6.7.1).
#[must_use]
pub fn named(problem: &Problem) -> Vec<String> {
    let name = |s: &Subproblem| s.identifier.as_ref().map(|i| i.authorized(false).to_string());
    problem.subproblems.iter().filter_map(name).collect()
}

/// Whether the authority says that it was asked too much (section 6.6).
#[must_use]
pub fn is_rate_limit(error: &Error) -> bool {
    is(error, "rateLimited") || matches!(error, Error::Api(p) if p.status == Some(429))
}

/// Whether the problem is of this type (section 6.7).
#[must_use]
pub fn is(error: &Error, kind: &str) -> bool {
    matches!(error, Error::Api(p) if p.r#type.as_deref().and_then(|t| t.strip_prefix("urn:ietf:params:acme:error:")) == Some(kind))
}

/// Whether nothing was heard of it, or only that it cannot say anything now.
#[must_use]
pub fn is_away(error: &Error) -> bool {
    match error {
        Error::Api(p) => p.status.is_some_and(|s| s >= 500) || is(error, "serverInternal"),
        Error::Http(_) | Error::Other(_) => true,
        _ => false,
    }
}

fn tls(settings: &AcmeSettings) -> Result<ClientConfig, String> {
    let mut roots = RootCertStore::empty();
    if let Some(file) = &settings.ca {
        let wrong = |e: String| format!("{}: {e}", file.display());
        for certificate in CertificateDer::pem_file_iter(file).map_err(|e| wrong(e.to_string()))? {
            roots.add(certificate.map_err(|e| wrong(e.to_string()))?).map_err(|e| wrong(e.to_string()))?;
        }
    } else {
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    }
    let mut config = ClientConfig::builder().with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

/// A connection for each request: there are few.
struct Https(TlsConnector);

impl HttpClient for Https {
    fn request(&self, request: Request<BodyWrapper<Bytes>>) -> Pin<Box<dyn Future<Output = Result<BytesResponse, Error>> + Send>> {
        let connector = self.0.clone();
        Box::pin(async move {
            let answer = tokio::time::timeout(TIMEOUT, ask(connector, request)).await;
            match answer {
                Ok(Ok(response)) => Ok(response.into()),
                Ok(Err(e)) => Err(Error::Other(e)),
                Err(_) => Err(Error::Other(format!("no answer within {} s", TIMEOUT.as_secs()).into())),
            }
        })
    }
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;

async fn ask(connector: TlsConnector, request: Request<BodyWrapper<Bytes>>) -> Result<Response<Full<Bytes>>, BoxError> {
    let (mut parts, body) = request.into_parts();
    let authority = parts.uri.authority().cloned().ok_or("the URL names no host")?;
    if parts.uri.scheme_str() != Some("https") {
        return Err(format!("{} is no https URL", parts.uri).into());
    }
    let host = authority.host().trim_matches(['[', ']']).to_owned();
    let cannot = |e: &dyn std::fmt::Display| format!("cannot reach {authority}: {e}");
    let tcp = TcpStream::connect((host.as_str(), authority.port_u16().unwrap_or(443))).await.map_err(|e| cannot(&e))?;
    let name = ServerName::try_from(host).map_err(|e| cannot(&e))?;
    let tls = connector.connect(name, tcp).await.map_err(|e| cannot(&e))?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(tls)).await?;
    let driving = tokio::spawn(connection);
    parts.headers.insert(header::HOST, authority.as_str().parse()?);
    parts.uri = parts.uri.path_and_query().map_or("/", |p| p.as_str()).parse()?;
    let body = body.collect().await.map(http_body_util::Collected::to_bytes)?;
    let response = sender.send_request(Request::from_parts(parts, Full::new(body))).await?;
    let (parts, body) = response.into_parts();
    let body = Limited::new(body, MOST_ANSWER).collect().await?.to_bytes();
    driving.abort();
    Ok(Response::from_parts(parts, Full::new(body)))
}
