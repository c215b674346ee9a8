//! Site files, URLs of origins and selectors of purges, as operators write them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use tidegate_control_types::purge::{PurgeType, without_port};
use tidegate_control_types::{Selector, site_file};

fuzz_target!(|text: &str| {
    if let Err(mistakes) = site_file::read("site.toml", text) {
        assert!(!mistakes.to_string().is_empty());
    }
    let _ = site_file::parse_origin_url(text);
    if let Some(host) = without_port(text) {
        assert_eq!(without_port(&host).as_deref(), Some(host.as_str()));
    }
    for kind in [PurgeType::Url, PurgeType::Tag, PurgeType::Prefix, PurgeType::Host, PurgeType::Site, PurgeType::All] {
        let _ = Selector::parse(kind, text);
    }
});
