//! PROXY protocol version 2: the client's address, told by a load balancer in front. Believed only from the networks that
//! the operator names, and required from those.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;
use tokio::io::{AsyncRead, AsyncReadExt};

const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// TLVs after the addresses are read and ignored, up to this many bytes.
const MOST_LENGTH: usize = 4096;

/// A network such as `10.0.0.0/8`, or one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    prefix: u32,
}

impl FromStr for Network {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        let wrong = || format!("{s:?} is not a network: write it like \"10.0.0.0/8\" or \"2001:db8::/32\"");
        let (address, prefix) = match s.split_once('/') {
            Some((a, p)) => (a.parse::<IpAddr>().map_err(|_| wrong())?, Some(p.parse::<u32>().map_err(|_| wrong())?)),
            None => (s.parse::<IpAddr>().map_err(|_| wrong())?, None),
        };
        let most = if address.is_ipv4() { 32 } else { 128 };
        let prefix = prefix.unwrap_or(most);
        if prefix <= most { Ok(Self { address, prefix }) } else { Err(wrong()) }
    }
}

impl Network {
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        fn same<const N: usize>(a: [u8; N], b: [u8; N], bits: u32) -> bool {
            let differ = a.iter().zip(&b).map(|(x, y)| (x ^ y).leading_zeros()).enumerate().find(|(_, z)| *z < 8);
            differ.is_none_or(|(n, z)| u32::try_from(n).unwrap_or(0) * 8 + z >= bits)
        }
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(a), IpAddr::V4(b)) => same(a.octets(), b.octets(), self.prefix),
            (IpAddr::V6(a), IpAddr::V6(b)) => same(a.octets(), b.octets(), self.prefix),
            _ => false,
        }
    }
}

/// Reads the header off `io`; `None` for a LOCAL one, that is a health check of the balancer's own.
///
/// # Errors
/// The connection does not begin with one.
pub async fn read<I: AsyncRead + Unpin>(io: &mut I) -> std::io::Result<Option<SocketAddr>> {
    let wrong = |what: &'static str| std::io::Error::new(std::io::ErrorKind::InvalidData, what);
    let mut head = [0; 16];
    io.read_exact(&mut head).await?;
    let [signature @ .., command, family, high, low] = head;
    if signature != SIGNATURE || command >> 4 != 2 {
        return Err(wrong("no PROXY protocol v2 header"));
    }
    let length = usize::from(u16::from_be_bytes([high, low]));
    if length > MOST_LENGTH {
        return Err(wrong("an over-long PROXY protocol header"));
    }
    let mut rest = vec![0; length];
    io.read_exact(&mut rest).await?;
    match command & 0xf {
        0 => return Ok(None),
        1 => {}
        _ => return Err(wrong("an unknown PROXY protocol command")),
    }
    let port = |bytes: [u8; 2]| u16::from_be_bytes(bytes);
    let short = || wrong("a short PROXY protocol header");
    match family >> 4 {
        1 => {
            let [a, b, c, d, _, _, _, _, p, q, ..] = *rest.first_chunk::<12>().ok_or_else(short)?;
            Ok(Some(SocketAddr::from((Ipv4Addr::new(a, b, c, d), port([p, q])))))
        }
        2 => {
            let (source, after) = rest.split_first_chunk::<16>().ok_or_else(short)?;
            let ports = after.get(16..).and_then(|p| p.first_chunk::<2>()).ok_or_else(short)?;
            Ok(Some(SocketAddr::from((Ipv6Addr::from(*source), port(*ports)))))
        }
        _ => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(bytes: &[u8]) -> std::io::Result<Option<SocketAddr>> {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(read(&mut &*bytes))
    }

    #[test]
    fn addresses_of_both_families_are_read() {
        let mut v4 = SIGNATURE.to_vec();
        v4.extend([0x21, 0x11, 0, 15, 203, 0, 113, 7, 10, 0, 0, 1, 0x30, 0x39, 0, 80, 9, 9, 9]);
        assert_eq!(parse(&v4).unwrap(), Some("203.0.113.7:12345".parse().unwrap()));
        let mut v6 = SIGNATURE.to_vec();
        v6.extend([0x21, 0x21, 0, 36]);
        v6.extend("2001:db8::7".parse::<Ipv6Addr>().unwrap().octets());
        v6.extend([0; 16]);
        v6.extend([0, 9, 0, 80]);
        assert_eq!(parse(&v6).unwrap(), Some("[2001:db8::7]:9".parse().unwrap()));
        let local = [&SIGNATURE[..], &[0x20, 0, 0, 0]].concat();
        assert_eq!(parse(&local).unwrap(), None);
        assert!(parse(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").is_err());
        assert!(parse(&v4[..20]).is_err());
    }

    #[test]
    fn networks_contain_by_prefix() {
        let n: Network = "10.1.0.0/16".parse().unwrap();
        assert!(n.contains("10.1.255.1".parse().unwrap()) && n.contains("::ffff:10.1.2.3".parse().unwrap()));
        assert!(!n.contains("10.2.0.1".parse().unwrap()) && !n.contains("::1".parse().unwrap()));
        assert!("::/0".parse::<Network>().unwrap().contains("2001:db8::1".parse().unwrap()));
        assert!("127.0.0.1".parse::<Network>().unwrap().contains("127.0.0.1".parse().unwrap()));
        assert!("10.0.0.0/33".parse::<Network>().is_err() && "x/1".parse::<Network>().is_err());
    }

    proptest! {
        #[test]
        fn garbage_is_an_error_never_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = parse(&bytes);
            let _ = parse(&[&SIGNATURE[..], &bytes].concat());
        }
    }
}
