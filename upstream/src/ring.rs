//! Rendezvous hashing: every edge ranks a region's shields alike for a key, and when one goes only its keys move.

/// The candidates for `key`, best first, each weighed by its name alone.
#[must_use]
pub fn ranked<T>(key: u64, candidates: &[T], name: impl Fn(&T) -> &str) -> Vec<&T> {
    let mut all: Vec<_> = candidates.iter().map(|c| (score(key, name(c)), c)).collect();
    all.sort_by_key(|(score, _)| std::cmp::Reverse(*score));
    all.into_iter().map(|(_, c)| c).collect()
}

fn score(key: u64, name: &str) -> u64 {
    // The name's hash mixed with the key, by the finalizer of MurmurHash3.
    let mut h = tidegate_gateway::hash(name.as_bytes()) ^ key;
    h = (h ^ (h >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    h = (h ^ (h >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    h ^ (h >> 33)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_spread_evenly_and_only_a_lost_shields_keys_move() {
        let four = ["a", "b", "c", "d"];
        let three = ["a", "b", "d"];
        let keys: Vec<u64> = (0..4000u64).map(|n| tidegate_gateway::hash(&n.to_be_bytes())).collect();
        let mut count = std::collections::HashMap::new();
        for key in &keys {
            let before = ranked(*key, &four, |s| s);
            *count.entry(*before[0]).or_insert(0) += 1;
            let after = ranked(*key, &three, |s| s);
            assert_eq!(*after[0], if *before[0] == "c" { *before[1] } else { *before[0] });
        }
        assert!(count.values().all(|n| (800..1200).contains(n)), "{count:?}");
    }
}
