//! Networks from a file in MaxMind's format (as GeoLite2-City.mmdb or GeoLite2-Country.mmdb), which says where on the globe each of them is.

use crate::networks::{NearPlace, Networks, Reading};
use crate::places::{self, Place, PlacedRegion};
use maxminddb::{MaxMindDbError, PathElement, Reader, WithinOptions};
use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};

/// Of one file: those with every city have some five millions.
const MOST_NETWORKS: usize = 20_000_000;
/// What of IPv6 is given to clients (RFC 4291 section 2.4): the rest of the tree holds IPv4 again.
const SEARCHED: [&str; 2] = ["0.0.0.0/0", "2000::/3"];

/// For each network the regions, the nearest first; of a network whose place the file does not say nothing is known.
///
/// # Errors
/// It is no such file, or damaged.
pub fn read(file: Vec<u8>, regions: &[PlacedRegion]) -> Result<Networks, String> {
    let damaged = |e: MaxMindDbError| format!("not a MaxMind file, or damaged: {e}");
    let reader = Reader::from_source(file).map_err(damaged)?;
    let countries = places::countries();
    // Many networks share one record.
    let mut near: HashMap<usize, Option<NearPlace>> = HashMap::new();
    let (mut all, mut count, mut placed) = (Reading::default(), 0, 0);
    for searched in SEARCHED.iter().take(if reader.metadata().ip_version == 4 { 1 } else { 2 }) {
        let is_ipv4 = !searched.contains(':');
        let searched = searched.parse().map_err(|e| format!("{searched}: {e}"))?;
        for found in reader.within(searched, WithinOptions::default()).map_err(damaged)? {
            let found = found.map_err(damaged)?;
            count += 1;
            if count > MOST_NETWORKS {
                return Err(format!("it has more than {MOST_NETWORKS} networks"));
            }
            let (network, Some(record)) = (found.network().map_err(damaged)?, found.offset()) else { continue };
            if let std::collections::hash_map::Entry::Vacant(new) = near.entry(record) {
                new.insert(place(&found, &countries).map(|p| all.near(places::nearest(regions, p))));
            }
            let Some(Some(near)) = near.get(&record) else { continue };
            placed += 1;
            // A record of all IPv4 stands where IPv6 has it.
            let (first, length) = match network.ip() {
                IpAddr::V6(_) if is_ipv4 => (Ipv4Addr::UNSPECIFIED.into(), 0),
                ip => (ip, network.prefix()),
            };
            all.add(first, length, *near);
        }
    }
    if placed == 0 {
        return Err("it names neither places nor countries: a City or a Country file is needed".into());
    }
    Ok(all.done())
}

/// Where the network is: at the place that its record says, else in its country, else in that where it is registered. What is written in
/// another way than the format's makers do says nothing.
fn place(found: &maxminddb::LookupResult<'_, Vec<u8>>, countries: &HashMap<&'static str, Place>) -> Option<Place> {
    let number = |key, most: f64| {
        let path = [PathElement::Key("location"), PathElement::Key(key)];
        let double = found.decode_path::<f64>(&path).ok().flatten();
        double.or_else(|| found.decode_path::<f32>(&path).ok()?.map(f64::from)).filter(|d| d.abs() <= most)
    };
    if let (Some(latitude), Some(longitude)) = (number("latitude", 90.0), number("longitude", 180.0)) {
        return Some(Place { latitude, longitude });
    }
    ["country", "registered_country"].into_iter().find_map(|country| {
        let code = found.decode_path::<&str>(&[PathElement::Key(country), PathElement::Key("iso_code")]).ok()??;
        countries.get(code).copied()
    })
}
