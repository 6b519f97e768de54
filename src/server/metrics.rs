//! Figures of the server, as Prometheus reads them.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::{Mutex, PoisonError};

use super::worker::Worker;

/// What is counted outside the workers.
#[derive(Debug, Default)]
pub struct Metrics {
    /// Requests by model.
    asked: Mutex<BTreeMap<String, u64>>,
}

impl Metrics {
    /// A request for a model was taken on.
    pub fn asked(&self, model: &str) {
        *self.asked.lock().unwrap_or_else(PoisonError::into_inner).entry(model.to_owned()).or_default() += 1;
    }

    /// All figures.
    pub fn text(&self, workers: &[Worker]) -> String {
        let mut text = String::new();
        for (model, n) in &*self.asked.lock().unwrap_or_else(PoisonError::into_inner) {
            let _ = writeln!(text, "wayinfer_requests_total{{model={model:?}}} {n}");
        }
        for worker in workers {
            let _ = writeln!(text, "{}", worker.facts.name);
        }
        text
    }
}
