//! The site file: TOML to [`SiteSpec`]. Every default of a site stands here and nowhere else.

use crate::certificate::RESERVED;
use crate::name::NodeName;
use crate::settings::{self, Mistakes, Section, boolean, duration, number, one_of, parsed, size, string};
use crate::site::{
    Balance, CacheSpec, CertificateChoice, ClientReload, CompressionSpec, EjectionSpec, HealthSpec, HostPattern, OriginHost, OriginServer,
    OriginSpec, OriginTls, QueryRule, SiteSpec, TlsSpec, TlsVersion, WhenDetached, is_host,
};
use std::time::Duration;
use toml::de::DeValue;

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3600);
const YEAR: Duration = Duration::from_secs(365 * 86_400);
const MOST_HOSTS: usize = 1000;
const MOST_SERVERS: usize = 100;
const MOST_REGIONS: usize = 100;

/// Reads a site file; `file` names it in messages.
///
/// # Errors
/// All mistakes of the file.
pub fn read(file: &str, text: &str) -> Result<SiteSpec, Mistakes> {
    settings::read(file, text, |root| {
        let name = root.required("name", "\"shop\"", parsed);
        let hosts = root.list("hosts", |v| HostPattern::parse(&string(v)?));
        if !root.has("hosts") {
            root.wrong("hosts", "is missing; for example: hosts = [\"www.example.com\"]");
        } else if hosts.is_empty() || hosts.len() > MOST_HOSTS {
            root.wrong("hosts", format!("should name 1 to {MOST_HOSTS} hosts"));
        }
        let origin = origin(&root.table("origin"));
        let cache = cache(&root.table("cache"));
        let compression = compression(&root.table("compression"));
        let tls = tls(&root.table("tls"));
        let regions = root.list("regions", |v| parsed::<NodeName>(v).map(|name| name.to_string()));
        if root.has("regions") && (regions.is_empty() || regions.len() > MOST_REGIONS) {
            root.wrong("regions", format!("should name 1 to {MOST_REGIONS} regions; without it edges of all regions serve the site"));
        }
        Some(SiteSpec { name: name?, hosts, origin, cache, compression, tls, regions })
    })
}

fn origin(s: &Section<'_>) -> OriginSpec {
    let servers: Vec<_> = s.tables("servers").iter().filter_map(server).collect();
    if !s.has("servers") {
        s.wrong("servers", "is missing; for example: servers = [{ url = \"https://origin.example.com\" }]");
    } else if servers.len() > MOST_SERVERS || servers.iter().all(|v| v.backup) {
        s.wrong("servers", format!("should list 1 to {MOST_SERVERS} servers, at least one of them not a backup"));
    }
    let health = s.has("health").then(|| {
        let h = s.table("health");
        HealthSpec {
            path: h.or("path", "/".into(), path),
            interval: h.or("interval", 5 * SECOND, duration(100 * MS, HOUR)),
            expect: if h.has("expect") { h.list("expect", |v| Ok(u16::try_from(number(100, 599)(v)?).unwrap_or(200))) } else { vec![200] },
            down_after: small(&h, "down_after", 3, 100),
            up_after: small(&h, "up_after", 2, 100),
        }
    });
    let ejected = s.table("ejection");
    let ejection = EjectionSpec {
        statuses: ejected.list("statuses", |v| Ok(u16::try_from(number(500, 599)(v)?).unwrap_or(500))),
        after: ejected.or("after", 3, |v| Ok(u32::try_from(number(1, 1000)(v)?).unwrap_or(3))),
        time: ejected.or("time", 5 * SECOND, duration(100 * MS, HOUR)),
    };
    let tls = s.table("tls");
    let ca = tls.optional("ca", |v| match string(v)?.as_str() {
        "system" => Ok(None),
        pem if pem.contains("-----BEGIN CERTIFICATE-----") => Ok(Some(pem.to_owned())),
        other => Err(format!("{other:?} should be \"system\" or the authority's certificate in PEM form")),
    });
    OriginSpec {
        servers,
        host: s.or("host", OriginHost::Keep, |v| match string(v)?.as_str() {
            "keep" => Ok(OriginHost::Keep),
            name if is_host(name) => Ok(OriginHost::Name(name.to_ascii_lowercase())),
            other => Err(format!("{other:?} should be \"keep\" (the client's Host) or a host name")),
        }),
        balance: s.or(
            "balance",
            Balance::RoundRobin,
            one_of(&[("round_robin", Balance::RoundRobin), ("least_requests", Balance::LeastRequests), ("hash", Balance::Hash)]),
        ),
        connect_timeout: s.or("connect_timeout", 3 * SECOND, duration(10 * MS, HOUR)),
        first_byte_timeout: s.or("first_byte_timeout", 15 * SECOND, duration(10 * MS, HOUR)),
        idle_timeout: s.or("idle_timeout", 30 * SECOND, duration(10 * MS, HOUR)),
        total_timeout: s.or("total_timeout", 60 * SECOND, duration(10 * MS, HOUR)),
        max_connection_age: s.or("max_connection_age", HOUR, duration(SECOND, 24 * HOUR)),
        retries: small(s, "retries", 2, 10),
        ejection,
        health,
        tls: OriginTls { verify: tls.or("verify", true, boolean), ca: ca.flatten(), server_name: tls.optional("server_name", host_name) },
        allow_private: s.or("allow_private", false, boolean),
        forwarded: s.or("forwarded", true, boolean),
    }
}

fn small(s: &Section<'_>, key: &'static str, default: u32, most: u64) -> u32 {
    s.or(key, default, |v| Ok(u32::try_from(number(0, most)(v)?).unwrap_or(default)))
}

fn server(s: &Section<'_>) -> Option<OriginServer> {
    let weight = s.or("weight", 1, number(1, 1000));
    let backup = s.or("backup", false, boolean);
    let (https, host, port) = s.required("url", "\"https://origin.example.com\"", origin_url)?;
    Some(OriginServer { https, host, port, weight: u32::try_from(weight).unwrap_or(1), backup })
}

fn origin_url(v: &DeValue<'_>) -> Result<(bool, String, u16), String> {
    let text = string(v)?;
    parse_origin_url(&text)
}

/// Scheme, host and port of an origin server's URL.
///
/// # Errors
/// What would be right.
pub fn parse_origin_url(text: &str) -> Result<(bool, String, u16), String> {
    let wrong = |why: &str| format!("{text:?} {why}; it should look like \"https://origin.example.com\" or \"http://10.0.0.7:8080\"");
    let (https, rest) = match text.split_once("://") {
        Some(("https", rest)) => (true, rest),
        Some(("http", rest)) => (false, rest),
        _ => return Err(wrong("is not an http or https URL")),
    };
    let authority = rest.strip_suffix('/').unwrap_or(rest);
    if authority.contains(['/', '?', '#', '@']) {
        return Err(wrong("has more than scheme, host and port"));
    }
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => {
            (host, port.parse::<u16>().ok().filter(|p| *p > 0).ok_or_else(|| wrong("has no valid port"))?)
        }
        _ => (authority, if https { 443 } else { 80 }),
    };
    if !is_host(host) {
        return Err(wrong("has no valid host"));
    }
    Ok((https, host.to_ascii_lowercase(), port))
}

fn host_name(v: &DeValue<'_>) -> Result<String, String> {
    let text = string(v)?;
    if is_host(&text) { Ok(text.to_ascii_lowercase()) } else { Err(format!("{text:?} is not a host name")) }
}

fn path(v: &DeValue<'_>) -> Result<String, String> {
    let text = string(v)?;
    if text.starts_with('/') && text.bytes().all(|b| b.is_ascii_graphic()) {
        Ok(text)
    } else {
        Err(format!("{text:?} is not a path: it begins with / and has no spaces"))
    }
}

fn cache(s: &Section<'_>) -> CacheSpec {
    CacheSpec {
        query: query(s),
        default_ttl: s.or("default_ttl", None, |v| match string(v)?.as_str() {
            "heuristic" => Ok(None),
            _ => duration(Duration::ZERO, YEAR)(v).map(Some),
        }),
        ttl_jitter: s.or("ttl_jitter", 0, percent),
        stale_while_revalidate: s.or("stale_while_revalidate", Duration::ZERO, duration(Duration::ZERO, YEAR)),
        stale_if_error: s.or("stale_if_error", Duration::ZERO, duration(Duration::ZERO, YEAR)),
        stale_if_unreachable: s.or("stale_if_unreachable", HOUR, duration(Duration::ZERO, YEAR)),
        stale_wait: s.or("stale_wait", 2 * SECOND, duration(Duration::ZERO, HOUR)),
        when_detached: s.or(
            "when_detached",
            WhenDetached::Serve,
            one_of(&[("serve", WhenDetached::Serve), ("revalidate", WhenDetached::Revalidate), ("refuse", WhenDetached::Refuse)]),
        ),
        client_reload: s.or(
            "client_reload",
            ClientReload::Revalidate,
            one_of(&[("revalidate", ClientReload::Revalidate), ("ignore", ClientReload::Ignore)]),
        ),
        finish_size: s.or("finish_size", 1 << 20, size(0, 1 << 40)),
        finish_time: s.or("finish_time", 10 * SECOND, duration(Duration::ZERO, HOUR)),
        max_object: s.or("max_object", 10 << 30, size(0, 1 << 50)),
    }
}

/// What text is served as; other types gain nothing, or are compressed already.
const TEXT_TYPES: [&str; 42] = [
    "text/*",
    "*+json",
    "*+xml",
    "*+yaml",
    "*+protobuf",
    "*+text",
    "application/graphql",
    "application/javascript",
    "application/json",
    "application/json5",
    "application/jsonl",
    "application/manifest",
    "application/ndjson",
    "application/protobuf",
    "application/rtf",
    "application/sql",
    "application/toml",
    "application/vnd.apple.mpegurl",
    "application/vnd.google.protobuf",
    "application/vnd.ms-fontobject",
    "application/wasm",
    "application/x-font-opentype",
    "application/x-font-ttf",
    "application/x-javascript",
    "application/x-jsonlines",
    "application/x-mpegurl",
    "application/x-ndjson",
    "application/x-protobuf",
    "application/x-sh",
    "application/x-yaml",
    "application/xml",
    "application/yaml",
    "audio/mpegurl",
    "audio/x-mpegurl",
    "font/collection",
    "font/otf",
    "font/sfnt",
    "font/ttf",
    "image/bmp",
    "image/vnd.microsoft.icon",
    "image/x-icon",
    "model/gltf-binary",
];
const MOST_TYPES: usize = 100;

fn compression(s: &Section<'_>) -> CompressionSpec {
    let types = s.list("types", media_type);
    if types.len() > MOST_TYPES {
        s.wrong("types", format!("should list at most {MOST_TYPES} types"));
    }
    CompressionSpec {
        enabled: s.or("enabled", true, boolean),
        types: if s.has("types") { types } else { TEXT_TYPES.map(str::to_owned).to_vec() },
        min_size: s.or("min_size", 1 << 10, size(0, 1 << 40)),
    }
}

fn media_type(v: &DeValue<'_>) -> Result<String, String> {
    let text = string(v)?.to_ascii_lowercase();
    let rest = text.strip_prefix('*').or_else(|| text.strip_suffix('*')).unwrap_or(&text);
    let is_token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'+-.^_`|~/".contains(&b);
    if rest.is_empty() || !rest.bytes().all(is_token) || !(text.contains('/') || text.starts_with('*')) {
        return Err(format!("{text:?} is not a media type such as \"application/json\", \"text/*\" or \"*+xml\""));
    }
    Ok(text)
}

fn percent(v: &DeValue<'_>) -> Result<u8, String> {
    let text = string(v)?;
    let number = text.strip_suffix('%').and_then(|n| n.parse().ok()).filter(|n| *n <= 90);
    number.ok_or_else(|| format!("{text:?} should be from \"0%\" to \"90%\""))
}

fn query(s: &Section<'_>) -> QueryRule {
    let is_table = s.optional("query", |v| Ok(v.is_table())).unwrap_or(false);
    if !is_table {
        return s.or("query", QueryRule::All, |v| match v.as_str() {
            Some("all") => Ok(QueryRule::All),
            Some("none") => Ok(QueryRule::None),
            _ => Err("should be \"all\", \"none\", { keep = [\"q\"] } or { drop = [\"utm_*\"] }".into()),
        });
    }
    let t = s.table("query");
    let (keep, remove) = (t.list("keep", parameter), t.list("drop", parameter));
    match (t.has("keep"), t.has("drop")) {
        (true, false) => QueryRule::Keep(keep),
        (false, true) => QueryRule::Drop(remove),
        _ => {
            s.wrong("query", "should have either keep or drop");
            QueryRule::All
        }
    }
}

fn parameter(v: &DeValue<'_>) -> Result<String, String> {
    let text = string(v)?;
    let name = text.strip_suffix('*').unwrap_or(&text);
    if text.is_empty() || name.bytes().any(|b| !b.is_ascii_graphic() || b"&=#*?".contains(&b)) {
        return Err(format!("{text:?} is not a parameter's name, with or without one * at its end"));
    }
    Ok(text)
}

fn tls(s: &Section<'_>) -> TlsSpec {
    TlsSpec {
        certificate: s.or("certificate", CertificateChoice::Auto, |v| match string(v)?.as_str() {
            "auto" => Ok(CertificateChoice::Auto),
            "internal" => Ok(CertificateChoice::Internal),
            name if RESERVED.contains(&name) => {
                Err(format!("{name:?} should be \"auto\", \"internal\" or the name of an uploaded certificate"))
            }
            name => name.parse().map(CertificateChoice::Uploaded).map_err(|e| format!("{e}, or \"auto\", or \"internal\"")),
        }),
        redirect: s.or("redirect", true, boolean),
        hsts: s.or("hsts", Duration::ZERO, duration(Duration::ZERO, 2 * YEAR)),
        min_version: s.or("min_version", TlsVersion::V1_2, one_of(&[("1.2", TlsVersion::V1_2), ("1.3", TlsVersion::V1_3)])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEAST: &str = "name = \"shop\"\nhosts = [\"www.example.com\"]\n[origin]\nservers = [{ url = \"https://o.example.com\" }]\n";

    #[test]
    fn the_least_file_has_all_defaults() {
        let site = read("shop.toml", LEAST).unwrap();
        assert_eq!(site.origin.servers, [OriginServer { https: true, host: "o.example.com".into(), port: 443, weight: 1, backup: false }]);
        assert_eq!((site.origin.retries, site.origin.first_byte_timeout, site.origin.health), (2, 15 * SECOND, None));
        assert_eq!((site.cache.query, site.cache.default_ttl, site.cache.max_object), (QueryRule::All, None, 10 << 30));
        assert!(site.tls.redirect && site.origin.tls.verify && !site.origin.allow_private);
        let same = crate::wire::decode::<SiteSpec>(&crate::wire::encode(&read("x", LEAST).unwrap())).unwrap();
        assert_eq!(same, read("x", LEAST).unwrap());
    }

    #[test]
    fn every_setting_is_read() {
        let text = r#"
            name = "shop"
            hosts = ["www.example.com", "*.img.example.com"]
            [origin]
            servers = [{ url = "https://o1.example.com", weight = 3 }, { url = "http://[2001:db8::1]:8080/", backup = true }]
            host = "inner.example.com"
            balance = "hash"
            connect_timeout = "1s"
            retries = 0
            ejection = { statuses = [503], after = 1, time = "1m" }
            health = { path = "/ok", interval = "1s", expect = [200, 204], down_after = 1, up_after = 1 }
            tls = { verify = false, server_name = "o" }
            allow_private = true
            forwarded = false
            [cache]
            query = { drop = ["utm_*"] }
            default_ttl = "5m"
            ttl_jitter = "10%"
            when_detached = "refuse"
            client_reload = "ignore"
            stale_if_unreachable = "1d"
            stale_wait = "500ms"
            finish_size = "2MiB"
            finish_time = "0s"
            max_object = "1MiB"
            [compression]
            enabled = false
            types = ["Text/*", "*+json"]
            min_size = "2KiB"
            [tls]
            certificate = "internal"
            redirect = false
            min_version = "1.3"
            hsts = "365d"
        "#;
        let s = read("f", text).unwrap();
        assert_eq!(s.origin.servers[1].host, "[2001:db8::1]");
        assert_eq!(s.origin.ejection, EjectionSpec { statuses: vec![503], after: 1, time: 60 * SECOND });
        assert_eq!(s.origin.health.unwrap().expect, [200, 204]);
        assert_eq!(s.cache.query, QueryRule::Drop(vec!["utm_*".into()]));
        assert_eq!((s.cache.stale_if_unreachable, s.cache.stale_wait), (24 * HOUR, 500 * MS));
        assert_eq!((s.cache.finish_size, s.cache.finish_time), (2 << 20, Duration::ZERO));
        assert_eq!((s.cache.ttl_jitter, s.cache.client_reload, s.origin.forwarded), (10, ClientReload::Ignore, false));
        assert_eq!((s.cache.when_detached, s.cache.default_ttl), (WhenDetached::Refuse, Some(Duration::from_secs(300))));
        let types = ["text/*", "*+json"].map(str::to_owned).to_vec();
        assert_eq!(s.compression, CompressionSpec { enabled: false, types, min_size: 2 << 10 });
        assert_eq!((s.tls.certificate, s.tls.min_version, s.tls.hsts), (CertificateChoice::Internal, TlsVersion::V1_3, YEAR));
    }

    #[test]
    fn mistakes_are_named_where_they_stand() {
        let text = "name = \"Shop\"\nhosts = [\"a b\"]\n[origin]\nservers = [{ url = \"o.example.com\" }]\nretires = 3\n[cache]\nquery = { keep = [\"a&b\"] }\n[compression]\ntypes = [\"text\"]\n";
        let shown = read("shop.toml", text).unwrap_err().to_string();
        for want in [
            "shop.toml:1: name: \"Shop\"",
            "shop.toml:2: hosts[0]",
            "shop.toml:4: origin.servers[0].url",
            "shop.toml:5: origin.retires: no such key; did you mean retries?",
            "shop.toml:7: cache.query.keep[0]",
            "shop.toml:9: compression.types[0]: \"text\" is not a media type",
        ] {
            assert!(shown.contains(want), "{want} not in\n{shown}");
        }
    }
}
