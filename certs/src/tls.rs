//! TLS between nodes: both sides show a certificate of the cluster's CA, TLS 1.3 only. A node that enrols has no
//! certificate yet: it knows the CA by the fingerprint in its join token.

use crate::CertError;
use crate::identity;
use crate::token::sha256;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, RootCertStore, ServerConfig, SignatureScheme};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use std::sync::Arc;
use std::time::Duration;

const VERSIONS: &[&rustls::SupportedProtocolVersion] = &[&rustls::version::TLS13];

fn chain(ders: &[Vec<u8>]) -> Vec<CertificateDer<'static>> {
    ders.iter().map(|d| CertificateDer::from(d.clone())).collect()
}

/// A private key in PKCS #8.
#[must_use]
pub fn private_key(der: &[u8]) -> PrivateKeyDer<'static> {
    PrivatePkcs8KeyDer::from(der.to_vec()).into()
}

fn roots(ca: &[u8]) -> Result<Arc<RootCertStore>, CertError> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from(ca.to_vec()))?;
    Ok(Arc::new(roots))
}

/// For listeners between nodes. `enrolment`: clients without a certificate may connect too, and the listener lets them
/// do nothing but enrol; and so may those whose certificate has expired, to renew it.
///
/// # Errors
/// A certificate or key is damaged.
pub fn node_server(identity: &[Vec<u8>], key: &[u8], ca: &[u8], enrolment: bool) -> Result<ServerConfig, CertError> {
    let verifier = WebPkiClientVerifier::builder(roots(ca)?);
    let verifier = if enrolment { Arc::new(LateToo(verifier.allow_unauthenticated().build()?)) } else { verifier.build()? };
    let mut config = ServerConfig::builder_with_protocol_versions(VERSIONS)
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain(identity), private_key(key))?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    // A resumed session would keep what a removed or renewed certificate said.
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// For connections from one node to another.
///
/// # Errors
/// A certificate or key is damaged.
pub fn node_client(identity: &[Vec<u8>], key: &[u8], ca: &[u8]) -> Result<ClientConfig, CertError> {
    let mut config = ClientConfig::builder_with_protocol_versions(VERSIONS)
        .with_root_certificates(roots(ca)?)
        .with_client_auth_cert(chain(identity), private_key(key))?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// For the one connection with which a node enrols.
#[must_use]
pub fn enrolling_client(ca_fingerprint: [u8; 32]) -> ClientConfig {
    let verifier = PinnedCa { fingerprint: ca_fingerprint };
    let mut config = ClientConfig::builder_with_protocol_versions(VERSIONS)
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    config
}

/// For how long after its end a node's certificate is good for its own renewal: the control plane may have been away for that long.
pub const LATE_DAYS: u64 = 90;

/// Takes certificates that have expired as well, for [`LATE_DAYS`]: whoever asks has to look.
#[derive(Debug)]
struct LateToo(Arc<dyn ClientCertVerifier>);

impl ClientCertVerifier for LateToo {
    fn offer_client_auth(&self) -> bool {
        self.0.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.0.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.0.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        let verified = self.0.verify_client_cert(end_entity, intermediates, now);
        let Err(rustls::Error::InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. })) = &verified else {
            return verified;
        };
        match identity::not_after(end_entity) {
            Ok(end) if now.as_secs().saturating_sub(end) <= LATE_DAYS * 86_400 => {
                self.0.verify_client_cert(end_entity, intermediates, UnixTime::since_unix_epoch(Duration::from_secs(end)))
            }
            _ => verified,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.0.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_verify_schemes()
    }
}

/// Trusts the CA at the end of the server's own chain if it is the one that was pinned; all else is webpki's check.
#[derive(Debug)]
struct PinnedCa {
    fingerprint: [u8; 32],
}

impl ServerCertVerifier for PinnedCa {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let refuse = || rustls::Error::General("the control node's CA is not the one that the join token names".into());
        let ca = intermediates.last().filter(|ca| sha256(ca) == self.fingerprint).ok_or_else(refuse)?;
        let roots = roots(ca).map_err(|e| rustls::Error::General(e.to_string()))?;
        let verifier = WebPkiServerVerifier::builder(roots).build().map_err(|e| rustls::Error::General(e.to_string()))?;
        verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(rustls::Error::General("TLS 1.2 is not spoken between nodes".into()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, cert, dss, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Ca, NodeIdentity, ca, identity};

    /// Handshakes check validity against the real clock, so the certificates are made for it.
    fn now() -> u64 {
        UnixTime::now().as_secs()
    }

    fn node(ca: &Ca, role: &str) -> (Vec<Vec<u8>>, Vec<u8>) {
        node_since(ca, role, now())
    }

    fn node_since(ca: &Ca, role: &str, since: u64) -> (Vec<Vec<u8>>, Vec<u8>) {
        let (key, request) = ca::node_request().unwrap();
        let id = NodeIdentity { cluster: "main".into(), role: role.into(), region: "eu".into(), name: "n-1".into() };
        (ca.sign_node(&request, &id, since).unwrap(), key)
    }

    /// Runs a handshake in memory; `Err` says which side refused.
    fn handshake(client: ClientConfig, server: ServerConfig, name: &str) -> Result<Option<NodeIdentity>, String> {
        let mut c = rustls::ClientConnection::new(Arc::new(client), ServerName::try_from(name.to_owned()).unwrap()).unwrap();
        let mut s = rustls::ServerConnection::new(Arc::new(server)).unwrap();
        for _ in 0..8 {
            let mut wire = Vec::new();
            c.write_tls(&mut wire).unwrap();
            s.read_tls(&mut wire.as_slice()).unwrap();
            s.process_new_packets().map_err(|e| format!("server: {e}"))?;
            let mut wire = Vec::new();
            s.write_tls(&mut wire).unwrap();
            c.read_tls(&mut wire.as_slice()).unwrap();
            c.process_new_packets().map_err(|e| format!("client: {e}"))?;
        }
        Ok(s.peer_certificates().map(|chain| NodeIdentity::of_certificate(&chain[0]).unwrap()))
    }

    fn ca() -> Ca {
        Ca::create("main", now() - 200 * 86_400).unwrap().0
    }

    #[test]
    fn an_expired_certificate_is_taken_where_it_can_be_renewed_and_for_a_while_only() {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let ca = ca();
        let (control, control_key) = node(&ca, "control");
        let name = identity::role_name("main", "control");
        for (days, renewal, taken) in [(8, true, true), (8, false, false), (96, true, true), (98, true, false)] {
            let (edge, edge_key) = node_since(&ca, "edge", now() - days * 86_400);
            let server = node_server(&control, &control_key, ca.certificate(), renewal).unwrap();
            let client = node_client(&edge, &edge_key, ca.certificate()).unwrap();
            let shaken = handshake(client, server, &name);
            assert_eq!(shaken.is_ok(), taken, "{days} days, {renewal}: {shaken:?}");
        }
        // One that is of no use yet stays so.
        let (edge, edge_key) = node_since(&ca, "edge", now() + 86_400);
        let server = node_server(&control, &control_key, ca.certificate(), true).unwrap();
        assert!(handshake(node_client(&edge, &edge_key, ca.certificate()).unwrap(), server, &name).is_err());
    }

    #[test]
    fn roles_are_checked_by_name_and_strangers_are_refused() {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let (ca, other) = (ca(), ca());
        let (control, control_key) = node(&ca, "control");
        let (edge, edge_key) = node(&ca, "edge");
        let (stranger, stranger_key) = node(&other, "edge");
        let server = |chain: &[Vec<u8>], key: &[u8]| node_server(chain, key, ca.certificate(), true).unwrap();
        let name = identity::role_name("main", "control");

        let client = node_client(&edge, &edge_key, ca.certificate()).unwrap();
        let who = handshake(client, server(&control, &control_key), &name).unwrap().unwrap();
        assert_eq!((who.role.as_str(), who.name.as_str()), ("edge", "n-1"));
        let client = node_client(&edge, &edge_key, ca.certificate()).unwrap();
        assert!(handshake(client, server(&edge, &edge_key), &name).is_err(), "an edge does not pass for a control node");
        let client = node_client(&stranger, &stranger_key, ca.certificate()).unwrap();
        assert!(handshake(client, server(&control, &control_key), &name).is_err(), "a certificate of another CA");
        let pinned = enrolling_client(sha256(ca.certificate()));
        assert_eq!(handshake(pinned, server(&control, &control_key), &name), Ok(None));
        let pinned = enrolling_client(sha256(other.certificate()));
        assert!(handshake(pinned, server(&control, &control_key), &name).is_err(), "another CA than the token names");
    }
}
