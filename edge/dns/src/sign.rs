//! DNSSEC (RFC 4033 to 4035): answers are signed as they are asked for, with ECDSA P-256 (RFC 6605), and signatures are kept while they
//! are good. What does not exist is denied by one record at the very name that was asked for (RFC 9824), so that nobody can list the zone.

use hickory_proto::dnssec::crypto::EcdsaSigningKey;
use hickory_proto::dnssec::rdata::{DNSKEY, DNSSECRData, NSEC, RRSIG, sig::SigInput};
use hickory_proto::dnssec::{Algorithm, PublicKey, PublicKeyBuf, SigningKey, TBS};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType, SerialNumber};
use hickory_proto::serialize::binary::BinEncodable;
use parking_lot::Mutex;
use rustls::pki_types::PrivatePkcs8KeyDer;
use std::collections::HashMap;

/// Validators' clocks may be behind ours.
const SINCE: u32 = 3600;
/// How long a signature is good, and up to when it is given out.
const GOOD_FOR: u32 = 7 * 86_400;
const RENEWED_AFTER: u32 = 3 * 86_400;
/// Kept: of names that exist.
const MOST_KEPT: usize = 20_000;
/// Of an answer that says of a name that it does not exist (RFC 9824 section 2).
const NXNAME: RecordType = RecordType::Unknown(128);

/// Signs for one zone.
pub struct Signer {
    zone: Name,
    key: EcdsaSigningKey,
    dnskey: DNSKEY,
    key_tag: u16,
    /// By what was signed, its owner's name in lower case: the signature, and when it was made.
    kept: Mutex<HashMap<Signed, (RRSIG, u32)>>,
}

type Signed = (Name, RecordType, u32, Vec<Vec<u8>>);

impl std::fmt::Debug for Signer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Signer").field("zone", &self.zone).field("key_tag", &self.key_tag).finish_non_exhaustive()
    }
}

impl Signer {
    /// `key`: PKCS #8. `None`: it is no key for this.
    #[must_use]
    pub fn new(zone: &Name, key: &[u8]) -> Option<Self> {
        let key = EcdsaSigningKey::from_pkcs8(&PrivatePkcs8KeyDer::from(key), Algorithm::ECDSAP256SHA256).ok()?;
        let public = key.to_public_key().ok()?.public_bytes().to_vec();
        let dnskey = DNSKEY::new(true, true, false, PublicKeyBuf::new(public, Algorithm::ECDSAP256SHA256));
        let key_tag = dnskey.calculate_key_tag().ok()?;
        Some(Self { zone: zone.to_lowercase(), key, dnskey, key_tag, kept: Mutex::default() })
    }

    /// What the zone's own name has because it is signed. Not what parents that look for it would take over (RFC 7344): when its parent
    /// vouches for the zone is the operator's to say.
    #[must_use]
    pub fn records(&self, kind: RecordType) -> Option<RData> {
        (kind == RecordType::DNSKEY).then(|| RData::DNSSEC(DNSSECRData::DNSKEY(self.dnskey.clone())))
    }

    /// Which of these the zone's own name has.
    pub const OF_THE_ZONE: [RecordType; 1] = [RecordType::DNSKEY];

    /// That `name` has records of `types` alone; of none at all, that it does not exist. `ttl` as the SOA record's. `None`: the name is so
    /// long that none comes right behind it, and whatever else was said would deny others too.
    #[must_use]
    pub fn denial(&self, name: &Name, types: Option<&[RecordType]>, ttl: u32) -> Option<Record> {
        let next = name.prepend_label(&b"\0"[..]).ok()?;
        let types = types.unwrap_or(&[NXNAME]);
        let nsec = NSEC::new_cover_self(next.to_lowercase(), types.iter().copied());
        Some(Record::from_rdata(name.clone(), ttl, RData::DNSSEC(DNSSECRData::NSEC(nsec))))
    }

    /// Adds a signature for each set of records. `now`: in seconds since 1970.
    pub fn sign(&self, records: &mut Vec<Record>, now: u32) {
        let mut sets: Vec<(Name, RecordType)> = Vec::new();
        for record in &*records {
            let set = (record.name.clone(), record.record_type());
            if set.1 != RecordType::RRSIG && !sets.contains(&set) {
                sets.push(set);
            }
        }
        for (name, kind) in sets {
            let set: Vec<&Record> = records.iter().filter(|r| r.name == name && r.record_type() == kind).collect();
            if let Some((signature, ttl)) = self.signature(&name, kind, &set, now) {
                records.push(Record::from_rdata(name, ttl, RData::DNSSEC(DNSSECRData::RRSIG(signature))));
            }
        }
    }

    fn signature(&self, name: &Name, kind: RecordType, set: &[&Record], now: u32) -> Option<(RRSIG, u32)> {
        let ttl = set.first()?.ttl;
        let owner = name.to_lowercase();
        let mut data: Vec<Vec<u8>> = set.iter().map(|r| r.data.to_bytes().unwrap_or_default()).collect();
        data.sort();
        let signed = (owner.clone(), kind, ttl, data);
        if let Some((kept, made)) = self.kept.lock().get(&signed)
            && now.saturating_sub(*made) < RENEWED_AFTER
            && now >= *made
        {
            return Some((kept.clone(), ttl));
        }
        let input = SigInput {
            type_covered: kind,
            algorithm: Algorithm::ECDSAP256SHA256,
            num_labels: owner.num_labels(),
            original_ttl: ttl,
            sig_expiration: SerialNumber::new(now.wrapping_add(GOOD_FOR)),
            sig_inception: SerialNumber::new(now.wrapping_sub(SINCE)),
            key_tag: self.key_tag,
            signer_name: self.zone.clone(),
        };
        let tbs = TBS::from_input(name, DNSClass::IN, &input, set.iter().copied()).ok()?;
        let signature = RRSIG::from_sig(input, self.key.sign(&tbs).ok()?);
        if is_of_nothing(set) {
            // Strangers choose such names, one after another.
            return Some((signature, ttl));
        }
        let mut kept = self.kept.lock();
        if kept.len() >= MOST_KEPT {
            kept.clear();
        }
        kept.insert(signed, (signature.clone(), now));
        Some((signature, ttl))
    }
}

/// Whether it says of a name that it does not exist.
fn is_of_nothing(set: &[&Record]) -> bool {
    let denies = |r: &&Record| matches!(&r.data, RData::DNSSEC(DNSSECRData::NSEC(nsec)) if nsec.type_set().iter().any(|t| t == NXNAME));
    set.iter().any(denies)
}
