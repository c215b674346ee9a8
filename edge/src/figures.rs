//! What an edge counts, for Prometheus and for its reports.

use crate::routes::AllCounters;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tidegate_gateway::{Counters, Fills, MemoryStore};

/// All that a node's figures are read from when somebody asks.
pub struct Figures {
    pub counters: Arc<AllCounters>,
    pub store: Arc<MemoryStore>,
    pub fills: Arc<Fills>,
    pub connections: Arc<AtomicU64>,
    pub refused: Arc<AtomicU64>,
    pub log_dropped: Arc<AtomicU64>,
}

impl std::fmt::Debug for Figures {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Figures")
    }
}

impl Collector for Figures {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let load = |c: &AtomicU64| c.load(Ordering::Relaxed);
        let sites = self.counters.all();
        type Read = fn(&Counters) -> &AtomicU64;
        let kinds: [(&str, &str, Read); 7] = [
            ("requests", "Requests", |c| &c.requests),
            ("hits", "Requests answered fresh from the cache", |c| &c.hits),
            ("stale", "Requests answered stale from the cache", |c| &c.stale),
            ("fetches", "Requests sent upstream", |c| &c.fetches),
            ("collapsed", "Requests that shared another's fetch", |c| &c.collapsed),
            ("errors", "Requests that upstream left without an answer", |c| &c.errors),
            ("body_bytes", "Bytes of bodies handed over", |c| &c.body_bytes),
        ];
        for (name, help, read) in kinds {
            for (site, counters) in &sites {
                let metric = ConstCounter::new(load(read(counters)));
                let full = format!("site_{name}");
                let mut described = encoder.encode_descriptor(&full, help, None, metric.metric_type())?;
                let family = [("site", site.as_str())];
                metric.encode(described.encode_family(&family)?)?;
            }
        }
        let (stored, limit) = self.store.usage();
        let int = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
        let gauges = [
            ("stored_bytes", "Bytes in the memory tier", int(stored)),
            ("stored_limit_bytes", "Bound of the memory tier", int(limit)),
            ("fills", "Fetches under way that others may share", int(self.fills.len() as u64)),
            ("connections", "Open connections of clients", int(load(&self.connections))),
        ];
        for (name, help, value) in gauges {
            let metric = ConstGauge::new(value);
            metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)?;
        }
        for (name, help, value) in [
            ("refused", "Requests refused before they reached a site", load(&self.refused)),
            ("access_log_dropped", "Lines of the access log that were lost", load(&self.log_dropped)),
        ] {
            let metric = ConstCounter::new(value);
            metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)?;
        }
        Ok(())
    }
}
