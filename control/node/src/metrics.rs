//! Figures for Prometheus. Whoever counts keeps its handle; no label is looked up on a request.

use parking_lot::Mutex;
use prometheus_client::encoding::text::encode;
use prometheus_client::registry::Registry;
use std::sync::Arc;

/// The figures of one role, each named `tidegate_...`.
#[derive(Clone)]
pub struct Metrics(Arc<Mutex<Registry>>);

impl Metrics {
    #[must_use]
    pub fn new(role: &'static str, node: &str) -> Self {
        let labels = [("role".into(), role.into()), ("node".into(), node.to_owned().into())];
        Self(Arc::new(Mutex::new(Registry::with_prefix_and_labels("tidegate", labels.into_iter()))))
    }

    /// Registers figures, at start or when a site appears.
    pub fn register(&self, add: impl FnOnce(&mut Registry)) {
        add(&mut self.0.lock());
    }

    /// In the text format of OpenMetrics.
    #[must_use]
    pub fn text(&self) -> String {
        let mut out = String::new();
        if encode(&mut out, &self.0.lock()).is_err() {
            out.push_str("# EOF\n");
        }
        out
    }
}
