//! Connections to clients, between nodes, and to origins.

use socket2::SockRef;
use tokio::net::TcpStream;

/// Bytes that wait in the kernel and have not been sent. A peer that takes nothing holds no more than these, and what is small and new
/// does not wait behind megabytes.
const MOST_UNSENT: u32 = 128 << 10;

/// What is written goes out at once.
pub fn prepare(tcp: &TcpStream) {
    let _ = tcp.set_nodelay(true);
    let _ = SockRef::from(tcp).set_tcp_notsent_lowat(MOST_UNSENT);
}
