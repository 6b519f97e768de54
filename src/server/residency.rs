//! `/residency`: where weights are, what that costs by token, and which experts are used.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, State};
use axum::response::Response;
use axum::{Json, Router, routing::get};
use serde_json::{Value, json};

use super::Server;
use super::error::ApiError;
use super::native;
use super::worker::Worker;
use crate::engine::{ExpertUse, Scheduler};
use crate::show::Picture;
use crate::show::residency::{
    ExpertLayer, Step, Stretch, by_token, expert_layers, experts, plan_line, stretches,
};
use crate::store::ResidencyStats;

/// Passes that are remembered, and stretches of them that are told.
const PASSES: usize = 1024;
const STRETCHES: usize = 256;

pub fn routes() -> Router<Arc<Server>> {
    Router::new().route("/residency", get(all)).route("/residency/{*name}", get(one))
}

/// What there is to tell of a model's residency.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    streamed: bool,
    /// Where the weights are, in words.
    weights: String,
    totals: ResidencyStats,
    /// Passes that made tokens, and the tokens made before the first of them.
    steps: VecDeque<Step>,
    before: usize,
    layers: Vec<ExpertLayer>,
    experts: ExpertUse,
}

impl Seen {
    /// Of a model that has run nothing.
    pub fn new(scheduler: &Scheduler<'_>) -> Seen {
        let model = scheduler.engine().model();
        let store = model.store();
        let weights = store.plan().map(|plan| plan_line(plan, store.reads_directly()));
        Seen {
            streamed: store.plan().is_some_and(|plan| !plan.is_mapped()),
            weights: weights.unwrap_or_default(),
            totals: store.stats(),
            layers: expert_layers(model.spec()),
            ..Seen::default()
        }
    }

    /// Takes note of a pass that made so many tokens in this time. One that read prompts alone counts in the
    /// sums, and is none of the tokens'.
    pub fn pass(&mut self, scheduler: &Scheduler<'_>, made: usize, time: Duration) {
        let mut step = Step { tokens: made, time, stats: ResidencyStats::default() };
        if self.streamed {
            let now = scheduler.engine().model().store().stats();
            step.stats = now.since(&self.totals);
            self.totals = now;
        }
        if made == 0 {
            return;
        }
        if self.steps.len() == PASSES {
            self.before += self.steps.pop_front().map_or(0, |step| step.tokens);
        }
        self.steps.push_back(step);
    }

    /// Takes note of the experts that were chosen.
    pub fn count(&mut self, experts: &ExpertUse) {
        self.experts.clone_from(experts);
    }

    /// All of it but pictures.
    fn value(&self, model: &str) -> Value {
        let ResidencyStats {
            hits, misses, hit_bytes, miss_bytes, guesses, right_guesses, bytes_read, ..
        } = self.totals;
        let by_token: Vec<Value> =
            stretches(self.steps.iter(), self.before, STRETCHES).iter().map(stretch_value).collect();
        let experts: Vec<Value> = self.layers.iter().map(|layer| self.layer_value(layer)).collect();
        json!({
            "model": model,
            "loaded": true,
            "streamed": self.streamed,
            "weights": self.weights,
            "hits": hits,
            "misses": misses,
            "hit_bytes": hit_bytes,
            "miss_bytes": miss_bytes,
            "hit_rate": self.totals.hit_rate(),
            "guesses": guesses,
            "right_guesses": right_guesses,
            "bytes_read": bytes_read,
            "wait_seconds": self.totals.wait.as_secs_f64(),
            "by_token": by_token,
            "experts": experts,
        })
    }

    fn layer_value(&self, layer: &ExpertLayer) -> Value {
        let known = self.experts.layers.get(layer.layer).map_or(&[][..], Vec::as_slice);
        let counts: Vec<u64> = (0..layer.count).map(|i| known.get(i).copied().unwrap_or(0)).collect();
        json!({ "layer": layer.layer, "used": layer.used, "counts": counts })
    }

    /// Pictures with their titles.
    fn pictures(&self) -> Vec<Value> {
        let titled = |title: &str, picture: Picture| json!({ "title": title, "picture": picture });
        let lines = match self.steps.is_empty() {
            true => Vec::new(),
            false => by_token(self.steps.iter(), self.before, self.streamed),
        };
        let mut all: Vec<Value> = lines.iter().map(|lines| titled(&lines.title, lines.draw())).collect();
        if !self.layers.is_empty() {
            all.push(titled("Experts by layer", experts(&self.experts, &self.layers).draw()));
        }
        all
    }
}

fn stretch_value(stretch: &Stretch) -> Value {
    json!({
        "first": stretch.first,
        "tokens": stretch.count,
        "seconds": stretch.time.as_secs_f64(),
        "wait_seconds": stretch.stats.wait.as_secs_f64(),
        "bytes_read": stretch.stats.bytes_read,
        "hits": stretch.stats.hits,
        "misses": stretch.stats.misses,
    })
}

fn value(worker: &Worker) -> Value {
    worker.seen().value(&worker.facts.name)
}

/// All models that are loaded.
async fn all(State(server): State<Arc<Server>>) -> Json<Value> {
    let models: Vec<Value> = server.registry.workers().iter().map(value).collect();
    Json(json!({ "models": models }))
}

/// One of them, with pictures; it is not loaded for that.
async fn one(State(server): State<Arc<Server>>, Path(name): Path<String>) -> Response {
    let told = async {
        let Some(worker) = server.registry.loaded_one(&name)? else {
            return Ok(json!({ "model": name, "loaded": false }));
        };
        let draw = move || {
            let seen = worker.seen();
            let mut value = seen.value(&worker.facts.name);
            value["pictures"] = seen.pictures().into();
            value
        };
        tokio::task::spawn_blocking(draw).await.map_err(ApiError::internal)
    };
    native::respond(told.await)
}
