//! Networks from a file in MaxMind's format (as GeoLite2-City.mmdb or GeoLite2-Country.mmdb), which says where on the globe each of them is.

use crate::networks::{Networks, Reading};
use crate::places::{self, Place, PlacedRegion};
use maxminddb::{MaxMindDbError, PathElement, Reader, WithinOptions};
use std::collections::HashMap;

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
    let mut near: HashMap<usize, Option<Vec<String>>> = HashMap::new();
    let (mut all, mut count, mut placed) = (Reading::default(), 0, 0);
    for searched in SEARCHED.iter().take(if reader.metadata().ip_version == 4 { 1 } else { 2 }) {
        let searched = searched.parse().map_err(|e| format!("{searched}: {e}"))?;
        for found in reader.within(searched, WithinOptions::default()).map_err(damaged)? {
            let found = found.map_err(damaged)?;
            count += 1;
            if count > MOST_NETWORKS {
                return Err(format!("it has more than {MOST_NETWORKS} networks"));
            }
            let (network, Some(record)) = (found.network().map_err(damaged)?, found.offset()) else { continue };
            if let std::collections::hash_map::Entry::Vacant(new) = near.entry(record) {
                new.insert(place(&found, &countries).map_err(damaged)?.map(|p| places::nearest(regions, p)));
            }
            let Some(Some(near)) = near.get(&record) else { continue };
            placed += 1;
            all.add(network.ip(), network.prefix(), near.clone());
        }
    }
    if placed == 0 {
        return Err("it names neither places nor countries: a City or a Country file is needed".into());
    }
    Ok(all.done())
}

/// Where the network is: at the place that its record says, else in its country, else in that where it is registered.
fn place(found: &maxminddb::LookupResult<'_, Vec<u8>>, countries: &HashMap<&'static str, Place>) -> Result<Option<Place>, MaxMindDbError> {
    let number = |key| found.decode_path::<f64>(&[PathElement::Key("location"), PathElement::Key(key)]);
    if let (Some(latitude), Some(longitude)) = (number("latitude")?, number("longitude")?) {
        return Ok(Some(Place { latitude, longitude }));
    }
    for country in ["country", "registered_country"] {
        let code = found.decode_path::<&str>(&[PathElement::Key(country), PathElement::Key("iso_code")])?;
        if let Some(place) = code.and_then(|c| countries.get(c)) {
            return Ok(Some(*place));
        }
    }
    Ok(None)
}
