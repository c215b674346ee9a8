//! Listeners. Ports are bound before anything else starts, so that a wrong address ends the start at once.

use crate::NodeError;
use socket2::{Domain, Protocol, Socket, Type};
use std::net::{Ipv6Addr, SocketAddr, TcpListener, UdpSocket};

const BACKLOG: i32 = 4096;

fn socket(address: SocketAddr, shared: bool) -> std::io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(shared)?;
    if address.is_ipv6() {
        // 0.0.0.0 and [::] stand side by side.
        socket.set_only_v6(true)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn fail(address: SocketAddr, error: std::io::Error) -> NodeError {
    let hint = match error.kind() {
        std::io::ErrorKind::AddrInUse => "; another program listens there: stop it, or choose another port",
        std::io::ErrorKind::PermissionDenied => "; ports below 1024 need root or the capability CAP_NET_BIND_SERVICE",
        std::io::ErrorKind::AddrNotAvailable => "; this machine has no such address",
        _ => "",
    };
    NodeError::Listen { address, error, hint }
}

/// All addresses of this host, IPv6 among them where it has any.
#[must_use]
pub fn everywhere(port: u16) -> Vec<SocketAddr> {
    let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0));
    let has_ipv6 = Socket::new(Domain::IPV6, Type::STREAM, Some(Protocol::TCP)).and_then(|s| s.bind(&any.into())).is_ok();
    let ipv6 = has_ipv6.then_some(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)));
    std::iter::once(SocketAddr::from(([0, 0, 0, 0], port))).chain(ipv6).collect()
}

/// One listener; port 0 takes a free one.
///
/// # Errors
/// The address cannot be bound.
pub fn bind(address: SocketAddr) -> Result<TcpListener, NodeError> {
    socket(address, false).map_err(|e| fail(address, e))
}

/// `count` listeners on one address (SO_REUSEPORT): the kernel spreads connections over them.
///
/// # Errors
/// The address cannot be bound, or another program has it.
pub fn bind_shared(address: SocketAddr, count: usize) -> Result<Vec<TcpListener>, NodeError> {
    let address = if address.port() == 0 {
        address
    } else {
        // Alone first: with SO_REUSEPORT a second Tidegate of the same user would silently share the port.
        drop(bind(address)?);
        address
    };
    let first = socket(address, true).map_err(|e| fail(address, e))?;
    let bound = first.local_addr().map_err(|e| fail(address, e))?;
    let mut all = vec![first];
    for _ in 1..count {
        all.push(socket(bound, true).map_err(|e| fail(bound, e))?);
    }
    Ok(all)
}

/// As many listeners as [`bind_shared`] and, on the same port, sockets for packets.
///
/// # Errors
/// The address cannot be bound, or another program has it.
pub fn bind_both(address: SocketAddr, count: usize) -> Result<(Vec<TcpListener>, Vec<UdpSocket>), NodeError> {
    // A free port of the one kind may be taken of the other.
    let mut tries = if address.port() == 0 { FREE_PORT_TRIES } else { 1 };
    loop {
        tries -= 1;
        let listeners = bind_shared(address, count)?;
        let bound = listeners.first().and_then(|l| l.local_addr().ok()).unwrap_or(address);
        if address.port() != 0 {
            drop(packets(bound, false).map_err(|e| fail(bound, e))?);
        }
        match (0..count).map(|_| packets(bound, true)).collect() {
            Ok(sockets) => return Ok((listeners, sockets)),
            Err(error) if tries == 0 => return Err(fail(bound, error)),
            Err(_) => {}
        }
    }
}

const FREE_PORT_TRIES: u32 = 20;
/// Bytes of packets that wait for their worker.
const PACKET_BUFFER: usize = 4 << 20;

fn packets(address: SocketAddr, shared: bool) -> std::io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_reuse_port(shared)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    // The kernel gives less where it must.
    let _ = socket.set_recv_buffer_size(PACKET_BUFFER);
    let _ = socket.set_send_buffer_size(PACKET_BUFFER);
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_taken_port_is_refused_even_for_shared_listeners() {
        let mine = bind_shared(SocketAddr::from(([127, 0, 0, 1], 0)), 2).unwrap();
        let taken = mine[0].local_addr().unwrap();
        assert_eq!(taken, mine[1].local_addr().unwrap());
        let message = bind_shared(taken, 2).unwrap_err().to_string();
        assert!(message.contains("another program listens there"), "{message}");
    }
}
