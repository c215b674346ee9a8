//! DNS cookies (RFC 7873) of the form that all servers may share (RFC 9018): who brings one back is where it says, and no amplifier for
//! somebody else.

use siphasher::sip::SipHasher24;
use std::hash::Hasher;
use std::net::IpAddr;

/// What a client makes up.
pub const CLIENT: usize = 8;
const SERVER: usize = 16;
/// With a server's cookie, of whatever form.
const WITH_SERVER: std::ops::RangeInclusive<usize> = 16..=40;
const VERSION: u8 = 1;
/// Seconds for which a cookie counts, and by how much its time may be ahead of ours.
const COUNTS_FOR: u32 = 3600;
const AHEAD: u32 = 300;

pub struct Cookies {
    secret: [u8; 16],
}

/// What a query's option says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cookie {
    /// It is none: the query is malformed.
    Malformed,
    /// The option of the answer, and whether its client has shown where it is.
    Answer { option: Vec<u8>, proven: bool },
}

impl Cookies {
    #[must_use]
    pub fn new(secret: [u8; 16]) -> Self {
        Self { secret }
    }

    /// `now`: in seconds since 1970.
    #[must_use]
    pub fn take(&self, option: &[u8], source: IpAddr, now: u32) -> Cookie {
        if option.len() != CLIENT && !WITH_SERVER.contains(&option.len()) {
            return Cookie::Malformed;
        }
        let (client, server) = option.split_at(CLIENT);
        let proven = server.len() == SERVER && self.is_ours(client, server, source, now);
        let mut option = client.to_vec();
        option.extend(self.server(client, now, source));
        Cookie::Answer { option, proven }
    }

    fn is_ours(&self, client: &[u8], server: &[u8], source: IpAddr, now: u32) -> bool {
        let Some(time) = server.get(4..8).and_then(|t| t.first_chunk()).map(|t| u32::from_be_bytes(*t)) else { return false };
        // The clock of such times goes round (RFC 1982).
        let age = now.wrapping_sub(time);
        let in_time = age <= COUNTS_FOR || time.wrapping_sub(now) <= AHEAD;
        // Whoever could learn from how long this takes would need an answer for every byte of a cookie.
        in_time && self.server(client, time, source) == server
    }

    fn server(&self, client: &[u8], time: u32, source: IpAddr) -> [u8; SERVER] {
        let mut cookie = [0; SERVER];
        let (head, hash) = cookie.split_at_mut(8);
        head.copy_from_slice(&[VERSION, 0, 0, 0, 0, 0, 0, 0]);
        if let Some(place) = head.get_mut(4..) {
            place.copy_from_slice(&time.to_be_bytes());
        }
        let mut hasher = SipHasher24::new_with_key(&self.secret);
        hasher.write(client);
        hasher.write(head);
        match source {
            IpAddr::V4(v4) => hasher.write(&v4.octets()),
            IpAddr::V6(v6) => hasher.write(&v6.octets()),
        }
        hash.copy_from_slice(&hasher.finish().to_le_bytes());
        cookie
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(hex: &str) -> Vec<u8> {
        (0..hex.len() / 2).map(|n| u8::from_str_radix(&hex[n * 2..n * 2 + 2], 16).unwrap()).collect()
    }

    /// RFC 9018 appendix A.1 and A.2.
    #[test]
    fn the_examples_of_the_standard() {
        let cookies = Cookies::new(bytes("e5e973e5a6b2a43f48e7dc849e37bfcf").try_into().unwrap());
        let (client, source) = (bytes("2464c4abcf10c957"), "198.51.100.100".parse().unwrap());
        let first = bytes("010000005cf79f111f8130c3eee29480");
        assert_eq!(cookies.take(&client, source, 1_559_731_985), Cookie::Answer { option: [&client[..], &first].concat(), proven: false });
        let client = bytes("fc93fc62807ddb86");
        let brought = [&client[..], &bytes("01abcdef5cf78f71a314227b6679ebf5")].concat();
        // The one of the second example has other reserved bits: it is not ours to the letter, and a new one is given.
        let Cookie::Answer { option, proven } = cookies.take(&brought, "203.0.113.203".parse().unwrap(), 1_559_734_385) else { panic!() };
        assert!(!proven && option.len() == CLIENT + SERVER);
    }

    #[test]
    fn a_cookie_counts_where_and_while_it_was_given() {
        let (cookies, source, other) = (Cookies::new([7; 16]), "192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap());
        let Cookie::Answer { option, proven } = cookies.take(b"abcdefgh", source, 1_000_000) else { panic!() };
        assert!(!proven);
        let proven = |option: &[u8], source, now| matches!(cookies.take(option, source, now), Cookie::Answer { proven: true, .. });
        assert!(proven(&option, source, 1_000_010) && proven(&option, source, 1_003_600));
        assert!(!proven(&option, other, 1_000_010), "another address");
        assert!(!proven(&option, source, 1_003_601) && !proven(&option, source, 999_000), "another time");
        let mut changed = option;
        changed[23] ^= 1;
        assert!(!proven(&changed, source, 1_000_010));
        for length in [0, 7, 9, 15, 41] {
            assert_eq!(cookies.take(&vec![1; length], source, 1_000_000), Cookie::Malformed, "{length}");
        }
    }
}
