//! One client's connection, from its first byte to its end.

use crate::admission::{Admission, ConnectionState};
use crate::proxy_protocol;
use crate::quic::{UNACKNOWLEDGED, Unproven};
use crate::worker::{Client, Worker};
use http::{HeaderName, HeaderValue, Method, StatusCode};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use quinn::Connecting;
use quinn::crypto::rustls::HandshakeData;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tidegate_certs::challenge;
use tidegate_gateway::interim::Interim;
use tidegate_gateway::{Answering, MULTIPLEXED_PIECE, RequestBody};
use tidegate_http2::{KeepAlive, ServerSettings};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::LazyConfigAcceptor;

/// HTTP/2: a peer that answers no ping for this long is gone.
const KEEP_ALIVE: KeepAlive = KeepAlive { every: Duration::from_secs(20), within: Duration::from_secs(10) };
/// Resets that a client may provoke by errors before its connection is ended.
const MOST_PROVOKED_RESETS: usize = 256;
/// Bytes of a response that wait for a slow client, beside the piece that is under way.
const MOST_BUFFERED: usize = 256 << 10;

pub async fn accept(worker: Rc<Worker>, mut tcp: TcpStream, mut address: SocketAddr, tls: bool) {
    tidegate_upstream::prepare(&tcp);
    let limits = worker.shared.limits();
    if worker.shared.settings.proxy_protocol_from.iter().any(|n| n.contains(address.ip())) {
        match tokio::time::timeout(limits.head_timeout, proxy_protocol::read(&mut tcp)).await {
            Ok(Ok(client)) => address = client.unwrap_or(address),
            _ => return tracing::debug!(%address, "no PROXY protocol header came"),
        }
    }
    let ip = address.ip().to_canonical();
    if !tls {
        return http_1(worker, tcp, Client { ip, https: false, server_name: None }).await;
    }
    let shaken = tokio::time::timeout(limits.head_timeout, async {
        let start = LazyConfigAcceptor::new(rustls::server::Acceptor::default(), tcp).await?;
        let name = start.client_hello().server_name().map(|n| n.trim_end_matches('.').to_ascii_lowercase());
        if start.client_hello().alpn().is_some_and(|mut protocols| protocols.any(|p| p == challenge::ALPN)) {
            // The handshake is all that there is.
            let mut stream = start.into_stream(Arc::clone(&worker.shared.tls_challenge)).await?;
            stream.shutdown().await?;
            return Ok(None);
        }
        let config = worker.tls_for(name.as_deref());
        start.into_stream(config).await.map(|stream| Some((stream, name)))
    });
    let (stream, server_name) = match shaken.await {
        Ok(Ok(Some(shaken))) => shaken,
        Ok(Ok(None)) => return,
        _ => return tracing::debug!(%address, "a TLS handshake failed"),
    };
    let h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    let client = Client { ip, https: true, server_name };
    if h2 { http_2(worker, stream, client).await } else { http_1(worker, stream, client).await }
}

async fn http_1<I>(worker: Rc<Worker>, io: I, client: Client)
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let state = worker.watch_connection(false);
    let io = Admission::new(io, true, Arc::clone(&state), worker.shared.limits(), Arc::clone(&worker.coarse));
    let limits = worker.shared.limits();
    let client = Rc::new(client);
    let (answering, of_connection, of_client) = (Rc::clone(&worker), Arc::clone(&state), Rc::clone(&client));
    let service = service_fn(move |request: http::Request<hyper::body::Incoming>| {
        let state = Arc::clone(&of_connection);
        // HTTP/1.0 knows no interim responses.
        let interim = (request.version() == http::Version::HTTP_11).then(|| state.begin_request());
        let request = request.map(|body| RequestBody::of(body, answering.most_body()));
        answer(&answering, &state, request, &of_client, interim, usize::MAX).then(move |response| {
            state.end_request();
            Ok::<_, Infallible>(response)
        })
    });
    let mut builder = http1::Builder::new();
    builder
        .max_headers(limits.fields)
        .max_header_size(limits.head.max(8 << 10))
        .max_buf_size(MOST_BUFFERED.max(limits.head * 2))
        .half_close(false);
    let mut connection = std::pin::pin!(builder.serve_connection(io, service).with_upgrades());
    let mut stopping = worker.shared.stopping.clone();
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stopping.stopped() => {
            connection.as_mut().graceful_shutdown();
            tokio::time::timeout(limits.drain, connection).await.unwrap_or(Ok(()))
        }
    };
    if let Some(refusal) = state.refusal() {
        let status = http::StatusCode::from_u16(refusal.status).unwrap_or(http::StatusCode::BAD_REQUEST);
        worker.refused(&client, None, status, refusal.why);
    } else if let Err(error) = ended {
        if state.in_flight.count() > 0 || error.is_parse() {
            tracing::info!(client = %client.ip, %error, "connection ended before its request was answered");
        } else {
            tracing::debug!(client = %client.ip, %error, "connection ended");
        }
    }
}

async fn http_2<I>(worker: Rc<Worker>, io: I, client: Client)
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let state = worker.watch_connection(true);
    let limits = worker.shared.limits();
    let io = Admission::new(io, false, Arc::clone(&state), Arc::clone(&limits), Arc::clone(&worker.coarse));
    let settings = ServerSettings {
        streams: limits.streams,
        // Beyond this the protocol refuses by itself, without a log line; see `Worker::route` for the limit.
        head: u32::try_from(limits.head * 2).unwrap_or(u32::MAX),
        stream_window: 256 << 10,
        connection_window: 1 << 20,
        send_buffer: MOST_BUFFERED,
        keep_alive: KEEP_ALIVE,
        provoked_resets: MOST_PROVOKED_RESETS,
        extended_connect: true,
        drain: limits.drain,
    };
    let service = |request: http::Request<tidegate_http2::Received>, interim| {
        let request = request.map(|body| RequestBody::of(body, worker.most_body()));
        answer(&worker, &state, request, &client, Some(interim), MULTIPLEXED_PIECE)
    };
    let mut stopping = worker.shared.stopping.clone();
    if let Err(error) = tidegate_http2::serve(TokioIo::new(io), &settings, service, stopping.stopped()).await {
        tracing::debug!(%error, "a connection ended");
    }
}

/// A QUIC connection, from its handshake on: requests, with heads of up to `head` bytes, may come before that is over.
pub async fn accept_quic(worker: Rc<Worker>, mut connecting: Connecting, unproven: Option<Unproven>, head: usize) {
    let limits = worker.shared.limits();
    let address = connecting.remote_address();
    let Ok(Ok(data)) = tokio::time::timeout(limits.head_timeout, connecting.handshake_data()).await else {
        return tracing::debug!(%address, "a QUIC handshake failed");
    };
    let named = data.downcast::<HandshakeData>().ok().and_then(|data| data.server_name);
    let server_name = named.map(|n| n.trim_end_matches('.').to_ascii_lowercase());
    let Ok((connection, shaken)) = connecting.into_0rtt() else { return };
    let (shaking, timeout) = (connection.clone(), limits.head_timeout);
    tokio::task::spawn_local(async move {
        if tokio::time::timeout(timeout, shaken).await.is_err() {
            shaking.close(0u8.into(), b"");
        }
        drop(unproven);
    });
    let state = worker.watch_connection(true);
    let client = Client { ip: address.ip().to_canonical(), https: true, server_name };
    let (head_timeout, drain, unacknowledged) = (limits.head_timeout, limits.drain, UNACKNOWLEDGED);
    let settings = tidegate_http3::ServerSettings { head, head_timeout, drain, unacknowledged };
    let (answering, of_connection) = (Rc::clone(&worker), Arc::clone(&state));
    let service = move |mut request: http::Request<tidegate_http3::Received>, interim| {
        let is_early = request.extensions_mut().remove::<tidegate_http3::EarlyData>().is_some();
        let mut request = request.map(|body| RequestBody::of(body, answering.most_body()));
        if is_early {
            if !request.method().is_safe() {
                let why = "this request came before the handshake was over, when it could be a repeated one: send it again";
                answering.refused(&client, Some(&request), StatusCode::TOO_EARLY, why);
                return Answering::now(answering.page(StatusCode::TOO_EARLY, why));
            }
            request.headers_mut().insert(EARLY_DATA, HeaderValue::from_static("1"));
        }
        answer(&answering, &of_connection, request, &client, Some(interim), MULTIPLEXED_PIECE)
    };
    let mut stopping = worker.shared.stopping.clone();
    tidegate_http3::serve(connection, &settings, service, stopping.stopped(), state.expired()).await;
}

/// RFC 8470: whoever takes such a request on may refuse it with 425.
const EARLY_DATA: HeaderName = HeaderName::from_static("early-data");

type Answered = http::Response<tidegate_gateway::ResponseBody>;

/// `most`: the longest piece of the response's body.
fn answer(
    worker: &Rc<Worker>,
    state: &Arc<ConnectionState>,
    request: http::Request<RequestBody>,
    client: &Client,
    interim: Option<Interim>,
    most: usize,
) -> Answering<Answered> {
    let in_flight = state.in_flight.begin();
    let is_tunnel = request.method() == Method::CONNECT;
    let limits = worker.limits.get();
    let (of_body, of_stream) = (limits.body_timeout * 10, limits.tunnel_timeout);
    worker.answer(request, client, state, interim).then(move |mut response| {
        let is_stream = is_tunnel || tidegate_gateway::is_stream(response.headers());
        response.body_mut().hand_over(in_flight, most, if is_stream { of_stream } else { of_body });
        response
    })
}
