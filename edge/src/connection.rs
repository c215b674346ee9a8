//! One client's connection, from its first byte to its end.

use crate::admission::{Admission, ConnectionState};
use crate::proxy_protocol;
use crate::worker::{Client, Worker};
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::TokioTimer;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tidegate_gateway::{Local, MULTIPLEXED_PIECE};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::LazyConfigAcceptor;

/// HTTP/2: a peer that answers no ping for this long is gone.
const PING_EVERY: Duration = Duration::from_secs(20);
const PING_TIMEOUT: Duration = Duration::from_secs(10);
/// Resets that a client may have pending, and that it may provoke, before the connection is ended.
const MOST_RESETS: usize = 50;
const MOST_LOCAL_RESETS: usize = 256;
/// Bytes of a response that wait in hyper for a slow client.
const MOST_BUFFERED: usize = 256 << 10;

pub async fn accept(worker: Rc<Worker>, mut tcp: TcpStream, mut address: SocketAddr, tls: bool) {
    let _ = tcp.set_nodelay(true);
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
        let config = worker.tls_for(name.as_deref());
        start.into_stream(config).await.map(|stream| (stream, name))
    });
    let Ok(Ok((stream, server_name))) = shaken.await else {
        return tracing::debug!(%address, "a TLS handshake failed");
    };
    let h2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    let client = Client { ip, https: true, server_name };
    if h2 { http_2(worker, stream, client).await } else { http_1(worker, stream, client).await }
}

/// Drives a connection to its end; once the worker drains, to the end of its requests within the bound.
macro_rules! drive {
    ($worker:expr, $connection:expr) => {{
        let mut connection = std::pin::pin!($connection);
        let mut stopping = $worker.shared.stopping.clone();
        let drain = $worker.shared.limits().drain;
        tokio::select! {
            ended = connection.as_mut() => ended,
            () = stopping.stopped() => {
                connection.as_mut().graceful_shutdown();
                tokio::time::timeout(drain, connection).await.unwrap_or(Ok(()))
            }
        }
    }};
}

async fn http_1<I>(worker: Rc<Worker>, io: I, client: Client)
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let state = worker.watch_connection(false);
    let io = Admission::new(io, true, Arc::clone(&state), worker.shared.limits(), Arc::clone(&worker.coarse));
    let service = service(&worker, &state, client, usize::MAX);
    let limits = worker.shared.limits();
    let mut builder = http1::Builder::new();
    builder
        .max_headers(limits.fields)
        .max_header_size(limits.head.max(8 << 10))
        .max_buf_size(MOST_BUFFERED.max(limits.head * 2))
        .half_close(false);
    let ended = drive!(worker, builder.serve_connection(io, service).with_upgrades());
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection ended");
    }
}

async fn http_2<I>(worker: Rc<Worker>, io: I, client: Client)
where
    I: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let state = worker.watch_connection(true);
    let io = Admission::new(io, false, Arc::clone(&state), worker.shared.limits(), Arc::clone(&worker.coarse));
    let service = service(&worker, &state, client, MULTIPLEXED_PIECE);
    let limits = worker.shared.limits();
    let mut builder = http2::Builder::new(Local);
    builder
        .timer(TokioTimer::new())
        .keep_alive_interval(PING_EVERY)
        .keep_alive_timeout(PING_TIMEOUT)
        .max_concurrent_streams(limits.streams)
        .max_header_list_size(u32::try_from(limits.head).unwrap_or(u32::MAX))
        .max_pending_accept_reset_streams(MOST_RESETS)
        .max_local_error_reset_streams(MOST_LOCAL_RESETS)
        .max_send_buf_size(MOST_BUFFERED)
        .initial_stream_window_size(256 << 10)
        .initial_connection_window_size(1 << 20);
    let ended = drive!(worker, builder.serve_connection(io, service));
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection ended");
    }
}

type Answered = http::Response<tidegate_gateway::ResponseBody>;

fn service(
    worker: &Rc<Worker>,
    state: &Arc<ConnectionState>,
    client: Client,
    most: usize,
) -> impl hyper::service::Service<http::Request<hyper::body::Incoming>, Response = Answered, Error = Infallible, Future: 'static> + use<> {
    let (worker, state) = (Rc::clone(worker), Arc::clone(state));
    service_fn(move |request| {
        let in_flight = state.in_flight.begin();
        worker.answer(request, &client, &state).then(move |mut response| {
            response.body_mut().hand_over(in_flight, most);
            Ok::<_, Infallible>(response)
        })
    })
}
