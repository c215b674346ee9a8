//! What an edge counts beside its gateway's figures.

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Read when somebody asks.
#[derive(Debug)]
pub struct ClientFigures {
    pub connections: Arc<AtomicU64>,
    pub refused: Arc<AtomicU64>,
    pub retries: Arc<AtomicU64>,
    pub log_dropped: Arc<AtomicU64>,
}

impl Collector for ClientFigures {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let open = i64::try_from(self.connections.load(Ordering::Relaxed)).unwrap_or(i64::MAX);
        ConstGauge::new(open).encode(encoder.encode_descriptor(
            "connections",
            "Open connections of clients",
            None,
            MetricType::Gauge,
        )?)?;
        for (name, help, value) in [
            ("refused", "Requests refused before they reached a site", &self.refused),
            ("quic_retries", "QUIC clients that had to show where they are before their handshake", &self.retries),
            ("access_log_dropped", "Lines of the access log that were lost", &self.log_dropped),
        ] {
            let value = ConstCounter::new(value.load(Ordering::Relaxed));
            value.encode(encoder.encode_descriptor(name, help, None, MetricType::Counter)?)?;
        }
        Ok(())
    }
}
