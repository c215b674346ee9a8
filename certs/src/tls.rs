//! TLS between nodes: both sides show a certificate of the cluster's CA, TLS 1.3 only. A node that enrols has no
//! certificate yet: it knows the CA by the fingerprint in its join token. Issuing authorities that were retired count for nothing.

use crate::CertError;
use crate::ca::LATE_DAYS;
use crate::identity;
use crate::token::{JoinToken, sha256};
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

/// Whom nodes believe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trust {
    /// The root's certificate, DER.
    pub root: Vec<u8>,
    /// Issuing authorities that are trusted no more, by the fingerprints of their keys.
    pub retired: Vec<[u8; 32]>,
}

/// Whether a chain, leaf first, goes through an authority that was retired: no other certificate leads from its key to the root. What
/// cannot be read counts as one.
#[must_use]
pub fn is_retired<'a>(mut above_leaf: impl Iterator<Item = &'a [u8]>, retired: &[[u8; 32]]) -> bool {
    !retired.is_empty() && above_leaf.any(|c| identity::key_fingerprint(c).map_or(true, |f| retired.contains(&f)))
}

impl Trust {
    fn check(&self, above_leaf: &[CertificateDer<'_>]) -> Result<(), rustls::Error> {
        if is_retired(above_leaf.iter().map(AsRef::as_ref), &self.retired) {
            return Err(CertificateError::Revoked.into());
        }
        Ok(())
    }
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
pub fn node_server(identity: &[Vec<u8>], key: &[u8], trust: &Trust, enrolment: bool) -> Result<ServerConfig, CertError> {
    let builder = WebPkiClientVerifier::builder(roots(&trust.root)?);
    let inner = if enrolment { builder.allow_unauthenticated() } else { builder }.build()?;
    let verifier = NodeClients { inner, trust: trust.clone(), late_too: enrolment };
    let mut config = ServerConfig::builder_with_protocol_versions(VERSIONS)
        .with_client_cert_verifier(Arc::new(verifier))
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
pub fn node_client(identity: &[Vec<u8>], key: &[u8], trust: &Trust) -> Result<ClientConfig, CertError> {
    let verifier = NodeServers { inner: WebPkiServerVerifier::builder(roots(&trust.root)?).build()?, trust: trust.clone() };
    let mut config = ClientConfig::builder_with_protocol_versions(VERSIONS)
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_client_auth_cert(chain(identity), private_key(key))?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// For the one connection with which a node enrols: what its token says of the network.
#[must_use]
pub fn enrolling_client(token: &JoinToken) -> ClientConfig {
    let verifier = PinnedCa { fingerprint: token.ca_fingerprint, retired: token.retired.clone() };
    let mut config = ClientConfig::builder_with_protocol_versions(VERSIONS)
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    config
}

/// webpki's check, and [`Trust::check`].
#[derive(Debug)]
struct NodeClients {
    inner: Arc<dyn ClientCertVerifier>,
    trust: Trust,
    /// Takes certificates that have expired as well, for [`LATE_DAYS`]: whoever asks has to look.
    late_too: bool,
}

impl ClientCertVerifier for NodeClients {
    fn offer_client_auth(&self) -> bool {
        self.inner.offer_client_auth()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.inner.client_auth_mandatory()
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.inner.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.trust.check(intermediates)?;
        let verified = self.inner.verify_client_cert(end_entity, intermediates, now);
        let Err(rustls::Error::InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. })) = &verified else {
            return verified;
        };
        match identity::not_after(end_entity) {
            Ok(end) if self.late_too && now.as_secs().saturating_sub(end) <= LATE_DAYS * 86_400 => {
                self.inner.verify_client_cert(end_entity, intermediates, UnixTime::since_unix_epoch(Duration::from_secs(end)))
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
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

/// webpki's check, and [`Trust::check`].
#[derive(Debug)]
struct NodeServers {
    inner: Arc<WebPkiServerVerifier>,
    trust: Trust,
}

impl ServerCertVerifier for NodeServers {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.trust.check(intermediates)?;
        self.inner.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

/// Why a node does not enrol with a control node of another network.
pub const OTHER_CA: &str = "the control node's CA is not the one that the join token names";

/// Trusts the CA at the end of the server's own chain if it is the one that was pinned; all else is webpki's check.
#[derive(Debug)]
struct PinnedCa {
    fingerprint: [u8; 32],
    retired: Vec<[u8; 32]>,
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
        let refuse = || rustls::Error::General(OTHER_CA.into());
        let ca = intermediates.last().filter(|ca| sha256(ca) == self.fingerprint).ok_or_else(refuse)?;
        if is_retired(intermediates.iter().map(AsRef::as_ref), &self.retired) {
            return Err(CertificateError::Revoked.into());
        }
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
    use crate::{Ca, NodeIdentity, Root, ca, identity};
    use zeroize::Zeroizing;

    /// Handshakes check validity against the real clock, so the certificates are made for it.
    fn now() -> u64 {
        UnixTime::now().as_secs()
    }

    fn node(ca: &Ca, role: &str) -> (Vec<Vec<u8>>, Zeroizing<Vec<u8>>) {
        node_since(ca, role, now())
    }

    fn node_since(ca: &Ca, role: &str, since: u64) -> (Vec<Vec<u8>>, Zeroizing<Vec<u8>>) {
        let (key, request) = ca::request().unwrap();
        let id = NodeIdentity { cluster: "main".into(), role: role.into(), region: "eu".into(), name: "n-1".into(), enrolled: 7 };
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

    /// A root, its issuing authority, and whom nodes of that network believe.
    fn network() -> (Root, Ca, Trust) {
        let since = now() - 200 * 86_400;
        let root = Root::create("main", since).unwrap().0;
        let ca = issuing(&root, since);
        let trust = Trust { root: root.certificate().to_vec(), retired: Vec::new() };
        (root, ca, trust)
    }

    fn issuing(root: &Root, since: u64) -> Ca {
        let (certificate, key) = root.make_issuing(since).unwrap();
        Ca::open(root.certificate(), &certificate, &key).unwrap()
    }

    /// The same certificate with the signature `(r, n - s)`.
    fn with_other_signature(der: &[u8]) -> Vec<u8> {
        const ORDER: &str = "ffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551";
        let (_, parsed) = x509_parser::parse_x509_certificate(der).unwrap();
        let signature = parsed.signature_value.data.to_vec();
        let integer = |at: usize| (at + 2, usize::from(signature[at + 1]));
        let (r_at, r_len) = integer(2);
        let (s_at, s_len) = integer(r_at + r_len);
        let order = crate::seal::from_hex(ORDER).unwrap();
        let mut s = [0; 33];
        s[33 - s_len..].copy_from_slice(&signature[s_at..s_at + s_len]);
        let (mut other, mut borrow) = (vec![0u8; 33], 0i16);
        for at in (0..32).rev() {
            let digit = i16::from(order[at]) - i16::from(s[at + 1]) - borrow;
            borrow = i16::from(digit < 0);
            other[at + 1] = u8::try_from(digit.rem_euclid(256)).unwrap();
        }
        let zeros = other.iter().take_while(|b| **b == 0).count();
        let mut s = other.split_off(zeros);
        if s[0] >= 0x80 {
            s.insert(0, 0);
        }
        let tag = |tag: u8, content: &[u8]| {
            let length = content.len();
            let head = if length < 128 {
                vec![tag, u8::try_from(length).unwrap()]
            } else if length < 256 {
                vec![tag, 0x81, u8::try_from(length).unwrap()]
            } else {
                vec![tag, 0x82, u8::try_from(length >> 8).unwrap(), u8::try_from(length & 255).unwrap()]
            };
            [&head[..], content].concat()
        };
        let r = tag(2, &signature[r_at..r_at + r_len]);
        let signature = tag(0x30, &[&r[..], &tag(2, &s)].concat());
        let bits = tag(3, &[&[0][..], &signature].concat());
        // ecdsa-with-SHA256.
        let algorithm = [0x30, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02];
        tag(0x30, &[parsed.tbs_certificate.as_ref(), &algorithm, &bits].concat())
    }

    #[test]
    fn a_new_issuing_authority_is_believed_at_once_and_a_retired_one_no_more() {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let (root, old, mut trust) = network();
        let new = issuing(&root, now());
        let ((control, control_key), (edge, edge_key)) = (node(&new, "control"), node(&old, "edge"));
        let name = identity::role_name("main", "control");
        let shake = |trust: &Trust, (server, server_key): (&[Vec<u8>], &[u8]), (client, client_key): (&[Vec<u8>], &[u8])| {
            let server = node_server(server, server_key, trust, true).unwrap();
            handshake(node_client(client, client_key, trust).unwrap(), server, &name)
        };
        assert!(shake(&trust, (&control, &control_key), (&edge, &edge_key)).is_ok());
        trust.retired.push(identity::key_fingerprint(&edge[1]).unwrap());
        let refused = shake(&trust, (&control, &control_key), (&edge, &edge_key)).unwrap_err();
        assert!(refused.starts_with("server: invalid peer certificate: Revoked"), "{refused}");
        // A signature of ECDSA is as good with its second number negated: the same certificate in other bytes.
        let mut disguised = edge.clone();
        disguised[1] = with_other_signature(&edge[1]);
        assert_ne!(sha256(&disguised[1]), sha256(&edge[1]));
        let believing = Trust { root: trust.root.clone(), retired: Vec::new() };
        assert!(shake(&believing, (&control, &control_key), (&disguised, &edge_key)).is_ok());
        let refused = shake(&trust, (&control, &control_key), (&disguised, &edge_key)).unwrap_err();
        assert!(refused.starts_with("server: invalid peer certificate: Revoked"), "{refused}");
        let (old_control, old_key) = node(&old, "control");
        let refused = shake(&trust, (&old_control, &old_key), (&control, &control_key)).unwrap_err();
        assert!(refused.starts_with("client: invalid peer certificate: Revoked"), "{refused}");
    }

    #[test]
    fn an_issuing_authority_is_taken_only_from_its_root_and_over_its_request() {
        let (root, ca, _) = network();
        let (other, ..) = network();
        let ((_, request), (_, another)) = (ca::request().unwrap(), ca::request().unwrap());
        let check = |certificate: &[u8], request: &[u8], at: u64| {
            ca::check_issuing(certificate, request, root.certificate(), at).map_err(|e| e.to_string())
        };
        let good = root.sign_issuing(&request, now()).unwrap();
        assert_eq!(check(&good, &request, now()), Ok(()));
        let bad = [
            (other.sign_issuing(&request, now()).unwrap(), &request, now(), "the network's root did not sign it"),
            (good.clone(), &another, now(), "it is over another key than was requested last"),
            (
                good,
                &request,
                now() + 1100 * 86_400,
                "it is not valid now: look at the clocks, this one's and that of the machine that signed",
            ),
            (node(&ca, "edge").0.remove(0), &request, now(), "the network's root did not sign it"),
        ];
        for (certificate, request, at, why) in bad {
            assert_eq!(check(&certificate, request, at), Err(format!("not a certificate: {why}")));
        }
        assert!(check(b"x", &request, now()).is_err());
        assert!(Root::open(root.certificate(), &ca::request().unwrap().0).is_err(), "another key than the root's");
    }

    #[test]
    fn an_expired_certificate_is_taken_where_it_can_be_renewed_and_for_a_while_only() {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let (_, ca, trust) = network();
        let (control, control_key) = node(&ca, "control");
        let name = identity::role_name("main", "control");
        for (days, renewal, taken) in [(8, true, true), (8, false, false), (96, true, true), (98, true, false)] {
            let (edge, edge_key) = node_since(&ca, "edge", now() - days * 86_400);
            let server = node_server(&control, &control_key, &trust, renewal).unwrap();
            let client = node_client(&edge, &edge_key, &trust).unwrap();
            let shaken = handshake(client, server, &name);
            assert_eq!(shaken.is_ok(), taken, "{days} days, {renewal}: {shaken:?}");
        }
        // One that is of no use yet stays so.
        let (edge, edge_key) = node_since(&ca, "edge", now() + 86_400);
        let server = node_server(&control, &control_key, &trust, true).unwrap();
        assert!(handshake(node_client(&edge, &edge_key, &trust).unwrap(), server, &name).is_err());
    }

    #[test]
    fn roles_are_checked_by_name_and_strangers_are_refused() {
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let ((root, ca, trust), (other_root, other, _)) = (network(), network());
        let (control, control_key) = node(&ca, "control");
        let (edge, edge_key) = node(&ca, "edge");
        let (stranger, stranger_key) = node(&other, "edge");
        let server = |chain: &[Vec<u8>], key: &[u8]| node_server(chain, key, &trust, true).unwrap();
        let name = identity::role_name("main", "control");

        let client = node_client(&edge, &edge_key, &trust).unwrap();
        let who = handshake(client, server(&control, &control_key), &name).unwrap().unwrap();
        assert_eq!((who.role.as_str(), who.name.as_str()), ("edge", "n-1"));
        let client = node_client(&edge, &edge_key, &trust).unwrap();
        assert!(handshake(client, server(&edge, &edge_key), &name).is_err(), "an edge does not pass for a control node");
        let client = node_client(&stranger, &stranger_key, &trust).unwrap();
        assert!(handshake(client, server(&control, &control_key), &name).is_err(), "a certificate of another CA");
        let token = |root: &Root| JoinToken::generate("main", root.certificate(), &[]).unwrap();
        let mut mine = token(&root);
        let pinned = enrolling_client(&mine);
        assert_eq!(handshake(pinned, server(&control, &control_key), &name), Ok(None));
        let pinned = enrolling_client(&token(&other_root));
        assert!(handshake(pinned, server(&control, &control_key), &name).is_err(), "another CA than the token names");
        mine.retired.push(identity::key_fingerprint(&control[1]).unwrap());
        let refused = handshake(enrolling_client(&mine), server(&control, &control_key), &name).unwrap_err();
        assert!(refused.contains("Revoked"), "whoever enrols believes no retired authority either: {refused}");
    }
}
