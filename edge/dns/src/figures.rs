//! What is counted of queries and answers.

use crate::respond::Transport;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use std::sync::atomic::{AtomicU64, Ordering};

#[derive(Debug, Default)]
pub struct Figures {
    udp: AtomicU64,
    tcp: AtomicU64,
    unanswered: AtomicU64,
    held_back: AtomicU64,
}

impl Figures {
    pub fn asked(&self, transport: Transport, answered: bool) {
        let counter = match transport {
            Transport::Udp => &self.udp,
            Transport::Tcp => &self.tcp,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        if !answered {
            self.unanswered.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub fn held_back(&self) {
        self.held_back.fetch_add(1, Ordering::Relaxed);
    }

    pub fn queries(&self) -> u64 {
        self.udp.load(Ordering::Relaxed) + self.tcp.load(Ordering::Relaxed)
    }
}

/// Read when somebody asks.
#[derive(Debug)]
pub struct Collected(pub std::sync::Arc<Figures>);

impl Collector for Collected {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        for (name, help, value) in [
            ("dns_udp_queries", "Packets that came over UDP", &self.0.udp),
            ("dns_tcp_queries", "Queries that came over TCP", &self.0.tcp),
            ("dns_rate_limited", "Answers that were held back, since their network got many like them", &self.0.held_back),
            ("dns_unanswered", "Packets that got no answer, since they were no queries", &self.0.unanswered),
        ] {
            let value = ConstCounter::new(value.load(Ordering::Relaxed));
            value.encode(encoder.encode_descriptor(name, help, None, MetricType::Counter)?)?;
        }
        Ok(())
    }
}
