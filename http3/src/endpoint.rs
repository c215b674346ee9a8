//! QUIC as an edge speaks it: limits, timeouts, and keys that outlive a restart.

use crate::routing::Port;
use aws_lc_rs::{hkdf, hmac};
use quinn::crypto::rustls::QuicServerConfig;
use quinn::{
    BloomTokenLog, Endpoint, EndpointConfig, IdleTimeout, Runtime, ServerConfig, TokioRuntime, TransportConfig, ValidationTokenConfig,
    VarInt,
};
use std::io;
use std::sync::Arc;
use std::time::Duration;

#[derive(Clone, Copy, Debug)]
pub struct EndpointSettings {
    /// Requests at once, of one connection.
    pub streams: u32,
    /// Bytes of bodies that may come before they are taken.
    pub stream_window: u32,
    pub connection_window: u32,
    /// Bytes of responses that wait for one client to acknowledge them.
    pub send_window: u64,
    /// A ping goes out where nothing else does for this long, and a peer that is silent for longer is gone.
    pub ping_every: Duration,
    pub silent_for: Duration,
}

/// From which the keys for stateless resets and address tokens are made: the same for all workers, and after a restart.
pub struct Secret {
    key: hkdf::Prk,
    /// Address tokens that were used: each counts once, whichever worker it comes to.
    used: Arc<BloomTokenLog>,
}

impl Secret {
    #[must_use]
    pub fn new(key: &[u8]) -> Self {
        Self { key: hkdf::Salt::new(hkdf::HKDF_SHA256, b"tidegate quic").extract(key), used: Arc::default() }
    }

    fn derive(&self, purpose: &[u8], of: &[u8]) -> Result<[u8; 32], aws_lc_rs::error::Unspecified> {
        let mut bytes = [0; 32];
        self.key.expand(&[purpose, b" ", of], hkdf::HKDF_SHA256)?.fill(&mut bytes)?;
        Ok(bytes)
    }
}

/// Streams of one way: a client needs three, and opens others to see that they are borne.
const ONE_WAY_STREAMS: u32 = 16;
/// Handshakes that nobody has taken up; more are ignored.
const MOST_INCOMING: usize = 4096;
/// Bytes of early data that wait for one of these, and for all.
const EARLY: u64 = 64 << 10;
const EARLY_OF_ALL: u64 = 16 << 20;

/// A worker's endpoint on its part of a port. To be called on the worker.
///
/// # Errors
/// The socket cannot be used, or `tls` lacks what QUIC needs.
pub fn endpoint(
    port: Port,
    settings: &EndpointSettings,
    tls: Arc<rustls::ServerConfig>,
    secret: &Secret,
    random: fn() -> u64,
) -> io::Result<Endpoint> {
    // A connection of one address is unknown at another, which must not say so in the words that end it (RFC 9000 section 21.11).
    let address = port.address()?.to_string();
    let reset = secret.derive(b"reset", address.as_bytes()).map_err(io::Error::other)?;
    let mut config = EndpointConfig::new(Arc::new(hmac::Key::new(hmac::HMAC_SHA256, &reset)));
    let number = port.identifiers(random);
    config.cid_generator(move || Box::new(number.clone()));

    let crypto = QuicServerConfig::try_from(tls).map_err(io::Error::other)?;
    let tokens = secret.derive(b"token", b"").map_err(io::Error::other)?;
    let tokens = hkdf::Salt::new(hkdf::HKDF_SHA256, &[]).extract(&tokens);
    let mut once = ValidationTokenConfig::default();
    once.log(Arc::clone(&secret.used) as Arc<dyn quinn::TokenLog>);
    let mut server = ServerConfig::new(Arc::new(crypto), Arc::new(tokens));
    server
        .transport_config(Arc::new(transport(settings)?))
        .validation_token_config(once)
        .max_incoming(MOST_INCOMING)
        .incoming_buffer_size(EARLY)
        .incoming_buffer_size_total(EARLY_OF_ALL);

    let runtime = Arc::new(TokioRuntime);
    let socket = port.routed(|socket| runtime.wrap_udp_socket(socket))?;
    Endpoint::new_with_abstract_socket(config, Some(server), Arc::new(socket), runtime)
}

fn transport(settings: &EndpointSettings) -> io::Result<TransportConfig> {
    let mut transport = TransportConfig::default();
    transport
        .max_concurrent_bidi_streams(settings.streams.into())
        .max_concurrent_uni_streams(ONE_WAY_STREAMS.into())
        .stream_receive_window(settings.stream_window.into())
        .receive_window(VarInt::from(settings.connection_window))
        .send_window(settings.send_window)
        .keep_alive_interval(Some(settings.ping_every))
        .max_idle_timeout(Some(IdleTimeout::try_from(settings.silent_for).map_err(io::Error::other)?))
        // Nobody asks for datagrams.
        .datagram_receive_buffer_size(None);
    Ok(transport)
}
