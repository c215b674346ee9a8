//! `h3load`: asks one server for one target over HTTP/3, again and again, on so many connections with so many streams each, for so many
//! seconds, and prints what came as one line of JSON. It runs on one thread, so that it can be kept on one core.

#![forbid(unsafe_code)]

use bytes::Bytes;
use clap::Parser;
use quinn::crypto::rustls::QuicClientConfig;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, SignatureScheme};
use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tidegate_http3::parsers::{Frame, Frames, Kind, request_frame, response_status};

#[derive(Parser)]
struct Options {
    /// The server, as 127.0.0.1:8443
    address: SocketAddr,
    /// Whom to ask for, in TLS and in requests; with the port, where that is not 443
    #[arg(long, default_value = "localhost")]
    host: String,
    #[arg(long, default_value = "/")]
    path: String,
    #[arg(long, default_value_t = 16)]
    connections: usize,
    /// Requests at once on each
    #[arg(long, default_value_t = 16)]
    streams: usize,
    #[arg(long, default_value_t = 3)]
    seconds: u64,
    /// Ends after so many requests, however long they take
    #[arg(long)]
    requests: Option<u64>,
    /// A connection of its own for each request
    #[arg(long)]
    close: bool,
}

#[derive(Default)]
struct Counts {
    begun: Cell<u64>,
    answered: Cell<u64>,
    failed: Cell<u64>,
    bytes: Cell<u64>,
    micros: RefCell<Vec<u32>>,
}

struct Load {
    options: Options,
    request: Bytes,
    counts: Counts,
    until: Instant,
}

#[allow(clippy::disallowed_methods, clippy::print_stdout, clippy::expect_used)] // It measures, prints, and ends where it cannot.
fn main() {
    let options = Options::parse();
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let local = tokio::task::LocalSet::new();
    let started = Instant::now();
    let load = Rc::new(Load {
        request: request_frame("GET", &options.host, &options.path),
        until: started + Duration::from_secs(options.seconds),
        options,
        counts: Counts::default(),
    });
    let all = Rc::clone(&load);
    local.block_on(&runtime, async move {
        let endpoint = quinn::Endpoint::client(SocketAddr::from(([127, 0, 0, 1], 0))).expect("a socket");
        let connections: Vec<_> =
            (0..all.options.connections).map(|_| tokio::task::spawn_local(connection(Rc::clone(&all), endpoint.clone()))).collect();
        for connection in connections {
            let _ = connection.await;
        }
    });
    let (counts, seconds) = (&load.counts, started.elapsed().as_secs_f64());
    let mut micros = counts.micros.take();
    micros.sort_unstable();
    let at = |share: f64| {
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
        let index = (micros.len() as f64 * share) as usize;
        micros.get(index.min(micros.len().saturating_sub(1))).copied().unwrap_or(0)
    };
    #[allow(clippy::cast_precision_loss)]
    let rate = |n: u64| n as f64 / seconds;
    let said = serde_json::json!({
        "requests": counts.answered.get(), "failed": counts.failed.get(), "seconds": seconds,
        "requests_per_second": rate(counts.answered.get()), "megabytes_per_second": rate(counts.bytes.get()) / 1e6,
        "p50_micros": at(0.5), "p99_micros": at(0.99),
    });
    println!("{said}");
}

impl Load {
    /// Whether another request may begin.
    #[allow(clippy::disallowed_methods)]
    fn goes_on(&self) -> bool {
        let begun = self.counts.begun.get();
        let goes_on = match self.options.requests {
            Some(most) => begun < most,
            None => Instant::now() < self.until,
        };
        self.counts.begun.set(begun + u64::from(goes_on));
        goes_on
    }

    fn failed(&self) {
        self.counts.failed.set(self.counts.failed.get() + 1);
    }
}

async fn connection(load: Rc<Load>, endpoint: quinn::Endpoint) {
    let Some(config) = config() else { return };
    loop {
        let name = load.options.host.split(':').next().unwrap_or_default();
        let connecting = endpoint.connect_with(config.clone(), load.options.address, name);
        let Some(connection) = async { connecting.ok()?.await.ok() }.await else {
            load.failed();
            if load.goes_on() {
                continue;
            }
            return;
        };
        // A control stream, and settings of nothing.
        if let Ok(mut ours) = connection.open_uni().await {
            let _ = ours.write_all(&[0, 4, 0]).await;
            let streams = if load.options.close { 1 } else { load.options.streams };
            let all: Vec<_> = (0..streams).map(|_| tokio::task::spawn_local(stream(Rc::clone(&load), connection.clone()))).collect();
            for one in all {
                let _ = one.await;
            }
            connection.close(0x100u32.into(), b"");
            drop(ours);
        }
        if !(load.options.close && load.goes_on()) {
            return;
        }
    }
}

#[allow(clippy::disallowed_methods)]
async fn stream(load: Rc<Load>, connection: quinn::Connection) {
    while load.goes_on() {
        let begun = Instant::now();
        match exchange(&load, &connection).await {
            Some(bytes) => {
                load.counts.answered.set(load.counts.answered.get() + 1);
                load.counts.bytes.set(load.counts.bytes.get() + bytes);
                load.counts.micros.borrow_mut().push(u32::try_from(begun.elapsed().as_micros()).unwrap_or(u32::MAX));
            }
            None => {
                load.failed();
                if connection.close_reason().is_some() {
                    return;
                }
            }
        }
        if load.options.close {
            return;
        }
    }
}

/// The bytes of the body of a response with status 200, all of them.
async fn exchange(load: &Load, connection: &quinn::Connection) -> Option<u64> {
    let (mut to, mut from) = connection.open_bi().await.ok()?;
    to.write_chunk(load.request.clone()).await.ok()?;
    to.finish().ok()?;
    let (mut frames, mut bytes, mut good) = (Frames::new(64 << 10), 0, false);
    while let Some(chunk) = from.read_chunk(usize::MAX, true).await.ok()? {
        let mut input = chunk.bytes;
        while let Some(frame) = frames.next(&mut input).ok()? {
            match frame {
                Frame::Data(data) => bytes += data.len() as u64,
                Frame::Whole(Kind::Headers, section) => good |= response_status(&section) == Some(200),
                _ => {}
            }
        }
    }
    (good && frames.is_between()).then_some(bytes)
}

/// A load generator asks whatever it is pointed at.
fn config() -> Option<quinn::ClientConfig> {
    let builder = rustls::ClientConfig::builder().dangerous().with_custom_certificate_verifier(Arc::new(Anybody));
    let mut tls = builder.with_no_client_auth();
    tls.alpn_protocols = vec![b"h3".to_vec()];
    tls.resumption = rustls::client::Resumption::disabled();
    let mut config = quinn::ClientConfig::new(Arc::new(QuicClientConfig::try_from(tls).ok()?));
    let mut transport = quinn::TransportConfig::default();
    transport.stream_receive_window((4u32 << 20).into()).receive_window((16u32 << 20).into());
    config.transport_config(Arc::new(transport));
    Some(config)
}

#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
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
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ECDSA_NISTP256_SHA256, SignatureScheme::ED25519, SignatureScheme::RSA_PSS_SHA256]
    }
}
