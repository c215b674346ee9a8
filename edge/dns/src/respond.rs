//! From a packet to its answer.
//!
//! Always true: what is no query gets no answer; an answer over UDP is no longer than [`MOST_UDP`] and than the client takes; nothing
//! that a packet says makes this node send more than one packet, to where it came from.

use crate::cookie::{Cookie, Cookies};
use crate::networks::{self, Networks};
use crate::sign::Signer;
use crate::steer::Client;
use crate::table::Table;
use crate::zone::{self, Answered, DecidedBy};
use hickory_proto::op::{Edns, Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::rdata::HINFO;
use hickory_proto::rr::rdata::opt::{ClientSubnet, EdnsCode, EdnsOption, NSIDPayload};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use std::net::IpAddr;

/// Bytes that fit into one packet everywhere, so that nothing is fragmented (DNS flag day 2020).
pub const MOST_UDP: u16 = 1232;
const LEAST_UDP: u16 = 512;
/// Of the answer to ANY (RFC 8482).
const ANY_TTL: u32 = 3600;

/// Where the question section of one of our answers ends: it holds one question at most, whose name is written out.
fn question_end(answer: &[u8]) -> usize {
    let mut at = 12;
    if answer.get(4..6) != Some(&[0, 1]) {
        return at;
    }
    while let Some(length) = answer.get(at).filter(|l| **l > 0) {
        at += 1 + usize::from(*length);
    }
    (at + 5).min(answer.len())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    Udp,
    Tcp,
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    pub bytes: Vec<u8>,
    /// Its client has shown that it is where it says (RFC 7873): nobody else is sent this.
    pub proven: bool,
}

pub struct Responder<'a> {
    pub table: &'a Table,
    pub networks: &'a Networks,
    /// With what the zone is signed, if it is.
    pub signer: Option<&'a Signer>,
    pub cookies: Option<&'a Cookies>,
    /// Seconds since 1970.
    pub now: u32,
    /// What this node calls itself to who asks (NSID, RFC 5001).
    pub name: &'a str,
    /// Near whoever is in no network of the table: who asks this node is near it, for want of better.
    pub region: &'a [String],
}

impl Responder<'_> {
    /// The answer to `packet`, which came from `source`; `None`: it gets none.
    #[must_use]
    pub fn respond(&self, packet: &[u8], source: IpAddr, transport: Transport) -> Option<Reply> {
        // Its id and flags: without them there is nobody to answer.
        let (id, flags) = (packet.get(..2)?, *packet.get(2)?);
        let is_response = flags & 0x80 != 0;
        if is_response || packet.len() < 12 {
            return None;
        }
        let Ok(query) = Message::from_vec(packet) else {
            let id = u16::from_be_bytes([*id.first()?, *id.get(1)?]);
            let bytes = Message::error_msg(id, OpCode::from_u8(flags >> 3 & 0xf), ResponseCode::FormErr).to_vec().ok()?;
            return Some(Reply { bytes, proven: false });
        };
        let cookie = self.cookie(&query, source);
        let mut response = self.answer(&query, source, cookie.as_ref());
        response.metadata.message_type = MessageType::Response;
        let limit = match (transport, &query.edns) {
            (Transport::Tcp, _) => usize::from(u16::MAX),
            (Transport::Udp, Some(edns)) => usize::from(edns.max_payload().clamp(LEAST_UDP, MOST_UDP)),
            (Transport::Udp, None) => usize::from(LEAST_UDP),
        };
        let bytes = response.to_vec().ok()?;
        let bytes = if bytes.len() <= limit { bytes } else { response.truncate().to_vec().ok().filter(|b| b.len() <= limit)? };
        Some(Reply { bytes, proven: matches!(cookie, Some(Cookie::Answer { proven: true, .. })) })
    }

    fn cookie(&self, query: &Message, source: IpAddr) -> Option<Cookie> {
        let EdnsOption::Unknown(_, option) = query.edns.as_ref()?.option(EdnsCode::Cookie)? else { return None };
        Some(self.cookies?.take(option, source, self.now))
    }

    /// The part of an answer that is the same for all who ask the same, for [`crate::limit`]: its code and, where it holds records, the
    /// question. Names that do not exist, and types that a name does not have, are without number.
    #[must_use]
    pub fn alike(answer: &[u8]) -> Vec<u8> {
        let code = answer.get(3).copied().unwrap_or(0) & 0xf;
        let (mut alike, is_cut) = (vec![code], answer.get(2).is_some_and(|f| f & 0x02 != 0));
        if code == 0 && (is_cut || answer.get(6..8) != Some(&[0, 0])) {
            alike.extend(answer.get(12..question_end(answer)).unwrap_or_default().iter().map(u8::to_ascii_lowercase));
        }
        alike
    }

    /// The same answer without content, which says that there is more over TCP.
    #[must_use]
    pub fn cut_short(answer: &[u8]) -> Vec<u8> {
        let mut short = answer.get(..question_end(answer)).unwrap_or_default().to_vec();
        if let Some(flags) = short.get_mut(2) {
            *flags |= 0x02;
        }
        // All that stands behind the authority section is the OPT record, which who asks would miss.
        let has_opt = answer.get(10..12).is_some_and(|n| n != [0, 0]);
        if let Some(counts) = short.get_mut(6..12) {
            counts.copy_from_slice(&[0, 0, 0, 0, 0, u8::from(has_opt)]);
        }
        if has_opt {
            short.extend_from_slice(&[0, 0, 41]);
            short.extend_from_slice(&MOST_UDP.to_be_bytes());
            short.extend_from_slice(&[0; 6]);
        }
        short
    }

    fn answer(&self, query: &Message, source: IpAddr, cookie: Option<&Cookie>) -> Message {
        let mut response = Message::response(query.id, query.op_code);
        response.metadata.recursion_desired = query.recursion_desired;
        let with_code = |mut response: Message, code| {
            response.metadata.response_code = code;
            response
        };
        let subnet = query.edns.as_ref().and_then(|e| match e.option(EdnsCode::Subnet) {
            Some(EdnsOption::Subnet(subnet)) => Some(*subnet),
            _ => None,
        });
        if let Some(edns) = &query.edns {
            let mut own = Edns::new();
            own.set_max_payload(MOST_UDP).set_version(0);
            own.set_dnssec_ok(edns.flags().dnssec_ok);
            if edns.option(EdnsCode::NSID).is_some()
                && let Ok(name) = NSIDPayload::new(self.name.as_bytes())
            {
                own.options_mut().insert(EdnsOption::NSID(name));
            }
            if let Some(Cookie::Answer { option, .. }) = cookie {
                own.options_mut().insert(EdnsOption::Unknown(EdnsCode::Cookie.into(), option.clone()));
            }
            if edns.version() > 0 {
                own.set_rcode_high(ResponseCode::BADVERS.high());
                response.set_edns(own);
                return with_code(response, ResponseCode::BADVERS);
            }
            response.set_edns(own);
        }
        if cookie == Some(&Cookie::Malformed) {
            // RFC 7873 section 5.2.2.
            return with_code(response, ResponseCode::FormErr);
        }
        if query.op_code != OpCode::Query {
            return with_code(response, ResponseCode::NotImp);
        }
        let [question] = &query.queries[..] else { return with_code(response, ResponseCode::FormErr) };
        // As it was asked, its letters' case too: who asks tells answers from forged ones by it.
        response.add_query(question.clone());
        if question.query_class != DNSClass::IN {
            return with_code(response, ResponseCode::Refused);
        }
        if matches!(question.query_type, RecordType::AXFR | RecordType::IXFR) {
            return with_code(response, ResponseCode::Refused);
        }
        if subnet.is_some_and(|s| s.scope_prefix() != 0 || s.source_prefix() > if s.addr().is_ipv4() { 32 } else { 128 }) {
            // RFC 7871 section 7.1.2.
            return with_code(response, ResponseCode::FormErr);
        }
        let client = subnet.filter(|s| s.source_prefix() > 0).map_or(source, |s| s.addr());
        let (near, of_regions) = self.networks.find(client);
        let near = if near.is_empty() { self.region } else { near };
        let (network, of_network) = networks::network(client, of_regions);
        let signed = self.signer.filter(|_| query.edns.as_ref().is_some_and(|e| e.flags().dnssec_ok));
        let is_zone = self.signer.is_some() && question.name().eq_ignore_root(&self.table.zone);
        if question.query_type == RecordType::Unknown(128) {
            // It stands in denials alone (RFC 9824 section 3.5).
            return with_code(response, ResponseCode::FormErr);
        }
        let of_signer = self.signer.filter(|_| is_zone).and_then(|s| s.records(question.query_type));
        let types = |name: &Name| -> Option<Vec<RecordType>> {
            let own: &[RecordType] = if is_zone { &Signer::OF_THE_ZONE } else { &[] };
            Some(zone::types(self.table, name)?.into_iter().chain(own.iter().copied()).collect())
        };
        let of_name = signed
            .filter(|_| question.query_type == RecordType::NSEC)
            .and_then(|signer| signer.denial(question.name(), Some(&types(question.name())?), zone::NEGATIVE_TTL));
        let (answered, decided_by) = match (of_signer, of_name) {
            (Some(record), _) => (Answered::Records(vec![record], zone::STABLE_TTL), DecidedBy::Nothing),
            (None, Some(nsec)) => (Answered::Records(vec![nsec.data], zone::NEGATIVE_TTL), DecidedBy::Nothing),
            (None, None) => zone::answer(self.table, question.name(), question.query_type, Client { near, network }),
        };
        if let (Some(subnet), Some(edns)) = (subnet, response.edns.as_mut()) {
            // For which clients it counts (RFC 7871 section 7.2.1): for all, where the client had no say in it.
            let scope = match decided_by {
                DecidedBy::Regions if subnet.source_prefix() > 0 => of_regions,
                DecidedBy::Network if subnet.source_prefix() > 0 => of_network,
                _ => 0,
            };
            edns.options_mut().insert(EdnsOption::Subnet(ClientSubnet::new(subnet.addr(), subnet.source_prefix(), scope)));
        }
        let code = match answered {
            Answered::Refused => ResponseCode::Refused,
            Answered::Failed => ResponseCode::ServFail,
            Answered::NxDomain => {
                response.metadata.authoritative = true;
                response.add_authority(zone::negative(self.table));
                match signed {
                    Some(signer) => {
                        // One record says so; the code that goes with it would ask for another (RFC 9824 section 3).
                        match signer.denial(question.name(), None, zone::NEGATIVE_TTL) {
                            Some(denial) => {
                                response.add_authority(denial);
                                ResponseCode::NoError
                            }
                            None => return with_code(response, ResponseCode::ServFail),
                        }
                    }
                    None => ResponseCode::NXDomain,
                }
            }
            Answered::NoData => {
                response.metadata.authoritative = true;
                if matches!(question.query_type, RecordType::ANY | RecordType::RRSIG) {
                    let hinfo = RData::HINFO(HINFO::new("RFC8482".into(), String::new()));
                    response.add_answer(Record::from_rdata(question.name().clone(), ANY_TTL, hinfo));
                } else {
                    response.add_authority(zone::negative(self.table));
                    if let Some(signer) = signed {
                        // Without the one that it was asked for in vain.
                        let types: Vec<_> =
                            types(question.name()).unwrap_or_default().into_iter().filter(|t| *t != question.query_type).collect();
                        response.authorities.extend(signer.denial(question.name(), Some(&types), zone::NEGATIVE_TTL));
                    }
                }
                ResponseCode::NoError
            }
            Answered::Records(records, ttl) => {
                response.metadata.authoritative = true;
                response.add_answers(records.into_iter().map(|data| Record::from_rdata(question.name().clone(), ttl, data)));
                ResponseCode::NoError
            }
        };
        if let Some(signer) = signed {
            signer.sign(&mut response.answers, self.now);
            signer.sign(&mut response.authorities, self.now);
        }
        with_code(response, code)
    }
}
