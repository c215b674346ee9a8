//! Connections to clients, between nodes, and to origins.

use socket2::SockRef;
use tokio::net::TcpStream;

/// The most bytes that wait unsent in the kernel. They bound the memory that a peer can hold by reading nothing, and a small response
/// does not wait behind megabytes of another one.
const MOST_UNSENT: u32 = 128 << 10;

/// Sets the options of a new connection: no delay of small writes, and a bound on unsent bytes.
pub fn prepare(tcp: &TcpStream) {
    let _ = tcp.set_nodelay(true);
    let _ = SockRef::from(tcp).set_tcp_notsent_lowat(MOST_UNSENT);
}
