//! What a cache node counts of its sites, its store and its fills, for Prometheus and for its reports.

use crate::fill::Fills;
use crate::site::Counters;
use parking_lot::Mutex;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use tidegate_store::Store;

/// The figures of every site on one node, shared by all workers and kept over changes of the sites.
#[derive(Debug, Default)]
pub struct AllCounters(Mutex<BTreeMap<String, Arc<Counters>>>);

impl AllCounters {
    #[must_use]
    pub fn get(&self, site: &str) -> Arc<Counters> {
        Arc::clone(self.0.lock().entry(site.to_owned()).or_default())
    }

    /// Over all sites.
    #[must_use]
    pub fn sum(&self, read: fn(&Counters) -> &AtomicU64) -> u64 {
        self.0.lock().values().map(|c| read(c).load(Ordering::Relaxed)).sum()
    }
}

/// Where the figures of a cache node are read from when somebody asks.
#[derive(Clone)]
pub struct Figures {
    pub counters: Arc<AllCounters>,
    pub store: Arc<Store>,
    pub fills: Arc<Fills>,
}

impl std::fmt::Debug for Figures {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Figures")
    }
}

type Read = fn(&Counters) -> &AtomicU64;
const OF_SITES: [(&str, &str, Read); 8] = [
    ("site_requests", "Requests", |c| &c.requests),
    ("site_hits", "Requests answered fresh from the cache", |c| &c.hits),
    ("site_stale", "Requests answered stale from the cache", |c| &c.stale),
    ("site_fetches", "Requests sent upstream", |c| &c.fetches),
    ("site_collapsed", "Requests that shared another's fetch", |c| &c.collapsed),
    ("site_errors", "Requests that upstream left without an answer", |c| &c.errors),
    ("site_codings", "Codings made of stored bodies", |c| &c.codings),
    ("site_body_bytes", "Bytes of bodies handed over", |c| &c.body_bytes),
];

impl Collector for Figures {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let sites = self.counters.0.lock().clone();
        for (name, help, read) in OF_SITES {
            let mut described = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            for (site, counters) in &sites {
                let family = [("site", site.as_str())];
                ConstCounter::new(read(counters).load(Ordering::Relaxed)).encode(described.encode_family(&family)?)?;
            }
        }
        let (stored, limit) = self.store.usage();
        let gauges = [
            ("stored_bytes", "Bytes in the memory tier", stored),
            ("stored_limit_bytes", "Bound of the memory tier", limit),
            ("fills", "Fetches under way that others may share", self.fills.len() as u64),
        ];
        let disk = self.store.disk().map(|tier| {
            let f = &tier.figures;
            let read = |figure: &AtomicU64| figure.load(Ordering::Relaxed);
            let gauges = [
                ("disk_bytes", "Bytes in the disk tier", read(&f.bytes)),
                ("disk_limit_bytes", "Bound of the disk tier", tier.size()),
                ("disk_records", "Responses and chunks that the disk tier holds", read(&f.records)),
            ];
            let counters = [
                ("disk_reads", "Records read", read(&f.reads)),
                ("disk_written_bytes", "Bytes written", read(&f.written_bytes)),
                ("disk_overrun", "Records not kept, since the disk could not follow", read(&f.overrun)),
                ("disk_damaged", "Records that were damaged, and not used", read(&f.damaged)),
                ("disk_errors", "Writes that failed", read(&f.errors)),
            ];
            (gauges, counters)
        });
        for (name, help, value) in disk.iter().flat_map(|(_, counters)| counters) {
            ConstCounter::new(*value).encode(encoder.encode_descriptor(name, help, None, MetricType::Counter)?)?;
        }
        for (name, help, value) in gauges.into_iter().chain(disk.into_iter().flat_map(|(gauges, _)| gauges)) {
            let value = i64::try_from(value).unwrap_or(i64::MAX);
            ConstGauge::new(value).encode(encoder.encode_descriptor(name, help, None, MetricType::Gauge)?)?;
        }
        Ok(())
    }
}
