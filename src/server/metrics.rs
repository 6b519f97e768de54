//! Figures of the server, as Prometheus reads them.

use axum::http::StatusCode;
use prometheus::{HistogramOpts, HistogramVec, IntCounterVec, Opts, Registry, TextEncoder, core::Collector};

use super::answer::Timings;
use super::worker::{Status, Worker};
use crate::engine::Usage;

/// What is counted outside the workers, by model.
pub struct Metrics {
    registry: Registry,
    requests: IntCounterVec,
    refused: IntCounterVec,
    prompt_tokens: IntCounterVec,
    tokens: IntCounterVec,
    first: HistogramVec,
    each: HistogramVec,
}

/// Bounds in seconds of the time to a first token: from what a prompt of some tokens takes to a long one on a
/// model that is streamed.
const FIRST: [f64; 12] = [0.02, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0, 600.0];
/// Bounds in seconds of the time of each further token.
const EACH: [f64; 10] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0];

impl Metrics {
    /// Nothing has happened yet.
    ///
    /// # Panics
    /// Never: no two figures have one name.
    pub fn new() -> Metrics {
        let registry = Registry::new();
        let add = |collector: Box<dyn Collector>| registry.register(collector).expect("names differ");
        let counter = |name: &str, help: &str, labels: &[&str]| {
            let counter = IntCounterVec::new(Opts::new(name, help), labels).expect("a name of a figure");
            add(Box::new(counter.clone()));
            counter
        };
        let histogram = |name: &str, help: &str, bounds: &[f64]| {
            let options = HistogramOpts::new(name, help).buckets(bounds.to_vec());
            let histogram = HistogramVec::new(options, &["model"]).expect("a name of a figure");
            add(Box::new(histogram.clone()));
            histogram
        };
        Metrics {
            requests: counter("wayinfer_requests_total", "Requests taken on", &["model"]),
            refused: counter("wayinfer_refused_total", "Requests refused, by HTTP status", &["status"]),
            prompt_tokens: counter(
                "wayinfer_answered_prompt_tokens_total",
                "Tokens of answered prompts",
                &["model"],
            ),
            tokens: counter("wayinfer_answer_tokens_total", "Tokens of answers", &["model"]),
            first: histogram(
                "wayinfer_time_to_first_token_seconds",
                "From a request to the first token of its answer",
                &FIRST,
            ),
            each: histogram("wayinfer_time_per_token_seconds", "Of an answer's further tokens", &EACH),
            registry: registry.clone(),
        }
    }

    /// A request for a model was taken on.
    pub fn asked(&self, model: &str) {
        self.requests.with_label_values(&[model]).inc();
    }

    /// A request was refused.
    pub fn refused(&self, status: StatusCode) {
        self.refused.with_label_values(&[status.as_str()]).inc();
    }

    /// An answer is over, however it ended.
    pub fn answered(&self, model: &str, usage: &Usage, timings: &Timings) {
        self.prompt_tokens.with_label_values(&[model]).inc_by(usage.prompt as u64);
        self.tokens.with_label_values(&[model]).inc_by(usage.made as u64);
        if let Some(first) = timings.first {
            self.first.with_label_values(&[model]).observe(first.as_secs_f64());
        }
        if let Some(each) = timings.per_token() {
            self.each.with_label_values(&[model]).observe(each);
        }
    }

    /// All figures.
    pub fn text(&self, workers: &[Worker]) -> String {
        let mut families = self.registry.gather();
        families.extend(of_workers(workers));
        TextEncoder::new().encode_to_string(&families).unwrap_or_default()
    }
}

/// A figure of a worker.
type Figure = (&'static str, &'static str, Kind, fn(&Status) -> f64);

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Gauge,
    Counter,
}

const FIGURES: [Figure; 15] = [
    ("running_requests", "Requests that run", Kind::Gauge, |s| s.running as f64),
    ("waiting_requests", "Requests that wait", Kind::Gauge, |s| s.waiting as f64),
    ("sequence_bytes", "Bytes of sequences, remembered ones included", Kind::Gauge, |s| s.held_bytes as f64),
    ("session_bytes", "Bytes of sequences that sessions keep", Kind::Gauge, |s| s.kept_bytes as f64),
    (
        "sequence_pages",
        "Pages of 128 positions in use, those that sequences share counted for each",
        Kind::Gauge,
        |s| s.held_pages as f64,
    ),
    ("passes_total", "Passes", Kind::Counter, |s| s.done.passes as f64),
    ("busy_seconds_total", "Time in passes", Kind::Counter, |s| s.busy.as_secs_f64()),
    ("prefilled_tokens_total", "Tokens of prompts that were run", Kind::Counter, |s| s.done.prefilled as f64),
    ("remembered_tokens_total", "Tokens of prompts that were remembered", Kind::Counter, |s| {
        s.done.cached as f64
    }),
    ("drawn_tokens_total", "Tokens drawn", Kind::Counter, |s| s.done.made as f64),
    ("expert_hits_total", "Experts in memory when asked for", Kind::Counter, |s| s.residency.hits as f64),
    ("expert_misses_total", "Experts read when asked for", Kind::Counter, |s| s.residency.misses as f64),
    ("read_bytes_total", "Bytes of weights read from disk", Kind::Counter, |s| s.residency.bytes_read as f64),
    ("wait_seconds_total", "Time without weights", Kind::Counter, |s| s.residency.wait.as_secs_f64()),
    ("models_loaded", "1 where the model is loaded", Kind::Gauge, |_| 1.0),
];

/// What workers tell of themselves, figure by figure.
fn of_workers(workers: &[Worker]) -> Vec<prometheus::proto::MetricFamily> {
    let statuses: Vec<(&str, Status)> =
        workers.iter().map(|worker| (&*worker.facts.name, worker.status())).collect();
    let family = |&(name, help, kind, value): &Figure| {
        let options = Opts::new(format!("wayinfer_{name}"), help);
        if kind == Kind::Gauge {
            let gauge = prometheus::GaugeVec::new(options, &["model"]).ok()?;
            statuses.iter().for_each(|(model, status)| gauge.with_label_values(&[model]).set(value(status)));
            return gauge.collect().pop();
        }
        let counter = prometheus::CounterVec::new(options, &["model"]).ok()?;
        statuses.iter().for_each(|(model, status)| counter.with_label_values(&[model]).inc_by(value(status)));
        counter.collect().pop()
    };
    let families = FIGURES.iter().filter_map(family);
    families.filter(|family| !statuses.is_empty() && !family.get_metric().is_empty()).collect()
}
