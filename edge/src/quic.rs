//! HTTP/3's way in: one endpoint for each worker and address, on the UDP ports of the numbers that `https` has.

use crate::connection;
use crate::worker::{Open, Worker};
use quinn::{Connecting, Endpoint, Incoming};
use rustls::ServerConfig;
use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tidegate_gateway::MULTIPLEXED_PIECE;
use tidegate_http3::{EndpointSettings, Port, Secret};
use tidegate_node::clock::random_u64;

/// What all workers need to speak QUIC.
pub struct Quic {
    pub tls: Arc<ServerConfig>,
    pub secret: Secret,
}

/// Handshakes of clients that have not shown that they are where they say (RFC 9000 section 8.1): beyond so many at once on a worker,
/// further ones have to show it first.
const MOST_UNPROVEN: usize = 256;
/// Bytes of bodies of requests that may come before they are taken, as over HTTP/2.
const STREAM_WINDOW: u32 = 256 << 10;
const CONNECTION_WINDOW: u32 = 1 << 20;
/// Bytes of responses that one client has not acknowledged: its network's delay times what it carries.
pub const UNACKNOWLEDGED: u64 = 1 << 20;
const PING_EVERY: Duration = Duration::from_secs(20);
const SILENT_FOR: Duration = Duration::from_secs(30);

/// Takes a worker's connections until its task is aborted.
pub async fn accept(worker: Rc<Worker>, quic: Arc<Quic>, port: Port) {
    // Clients that come back with early data go by what they were told before: it stays as it is.
    let head = worker.shared.limits().head;
    let settings = EndpointSettings {
        streams: worker.shared.limits().streams,
        stream_window: STREAM_WINDOW,
        connection_window: CONNECTION_WINDOW,
        // Never reached: each response has its share of less than this.
        send_window: 2 * UNACKNOWLEDGED + u64::from(worker.shared.limits().streams) * 2 * MULTIPLEXED_PIECE as u64,
        ping_every: PING_EVERY,
        silent_for: SILENT_FOR,
    };
    let endpoint = match tidegate_http3::endpoint(port, &settings, Arc::clone(&quic.tls), &quic.secret, random_u64) {
        Ok(endpoint) => Closing(endpoint),
        Err(error) => return tracing::error!(%error, "HTTP/3 cannot be spoken"),
    };
    let unproven = Rc::new(Cell::new(0));
    while let Some(incoming) = endpoint.0.accept().await {
        if worker.is_full() {
            incoming.refuse();
            continue;
        }
        let proven = incoming.remote_address_validated();
        if !proven && unproven.get() >= MOST_UNPROVEN {
            worker.shared.retries.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            // A client that has a token already is proven.
            let _ = incoming.retry();
            continue;
        }
        let unproven = (!proven).then(|| Unproven::new(&unproven));
        begin(&worker, incoming, unproven, head);
        // A handshake takes a while: those that are open go on in between.
        tokio::task::yield_now().await;
    }
    tracing::error!("HTTP/3 has ended on a worker");
}

fn begin(worker: &Rc<Worker>, incoming: Incoming, unproven: Option<Unproven>, head: usize) {
    let connecting: Connecting = match incoming.accept() {
        Ok(connecting) => connecting,
        Err(error) => return tracing::debug!(%error, "a QUIC handshake failed"),
    };
    let open = Open::new(worker);
    let worker = Rc::clone(worker);
    tokio::task::spawn_local(async move {
        let _open = open;
        connection::accept_quic(worker, connecting, unproven, head).await;
    });
}

/// Once nobody takes its connections, it refuses new ones; those that are open go on.
struct Closing(Endpoint);

impl Drop for Closing {
    fn drop(&mut self) {
        self.0.set_server_config(None);
    }
}

/// Counts a handshake whose client may be somebody else.
pub struct Unproven(Rc<Cell<usize>>);

impl Unproven {
    fn new(count: &Rc<Cell<usize>>) -> Self {
        count.set(count.get() + 1);
        Self(Rc::clone(count))
    }
}

impl Drop for Unproven {
    fn drop(&mut self) {
        self.0.set(self.0.get().saturating_sub(1));
    }
}
