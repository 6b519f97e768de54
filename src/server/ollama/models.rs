//! The models that there are, as Ollama tells of its own.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};

use super::super::Server;
use super::super::error::ApiError;
use super::super::models::{Described, Listed};
use super::super::openai::rfc3339;
use super::error;

/// Models stay until others need their memory: a time that nobody waits for.
const NEVER: &str = "2100-01-01T00:00:00Z";

/// Clients look for a tag.
fn tagged(name: &str) -> String {
    if name.contains(':') { name.to_owned() } else { format!("{name}:latest") }
}

/// What tells a model from others. It is not made from the file's bytes: they are too many to be read for it.
fn digest(listed: &Listed) -> String {
    let mark = format!("{}\n{}\n{}", listed.name, listed.file_bytes, listed.created);
    blake3::hash(mark.as_bytes()).to_hex().to_string()
}

fn entry(listed: &Listed, described: &Described) -> Value {
    json!({
        "name": tagged(&listed.name),
        "model": tagged(&listed.name),
        "modified_at": rfc3339(listed.created),
        "size": listed.file_bytes,
        "digest": digest(listed),
        "details": details(described),
    })
}

fn details(described: &Described) -> Value {
    json!({
        "parent_model": "",
        "format": "gguf",
        "family": described.architecture,
        "families": [described.architecture],
        "parameter_size": parameter_size(described.parameters),
        "quantization_level": described.quantization,
    })
}

/// `7.2B`, `494.03M`.
fn parameter_size(n: u64) -> String {
    match n as f64 {
        n if n >= 1e9 => format!("{:.1}B", n / 1e9),
        n if n >= 1e6 => format!("{:.2}M", n / 1e6),
        n if n >= 1e3 => format!("{:.2}K", n / 1e3),
        _ => n.to_string(),
    }
}

/// What a model can do, as far as its template tells.
fn capabilities(template: Option<&str>) -> Vec<&'static str> {
    let reads =
        |names: &[&str]| template.is_some_and(|source| names.iter().any(|name| source.contains(name)));
    let mut all = vec!["completion"];
    // A template that knows no tools is told of them in words.
    if template.is_some() {
        all.push("tools");
    }
    if reads(&["enable_thinking", "reasoning_content", "reasoning_effort", "<think>"]) {
        all.push("thinking");
    }
    all
}

pub async fn tags(State(server): State<Arc<Server>>) -> Json<Value> {
    let mut models = Vec::new();
    for listed in server.registry.list() {
        // A file that cannot be read is listed all the same: who asks for it is told why.
        let described = server.registry.describe(&listed.name).await.map(|(_, described)| described);
        models.push(entry(&listed, &described.unwrap_or_default()));
    }
    Json(json!({ "models": models }))
}

pub async fn ps(State(server): State<Arc<Server>>) -> Json<Value> {
    let mut models = Vec::new();
    for worker in server.registry.workers() {
        let Ok((listed, described)) = server.registry.describe(&worker.facts.name).await else { continue };
        let mut entry = entry(&listed, &described);
        entry["expires_at"] = NEVER.into();
        entry["size_vram"] = 0.into();
        entry["context_length"] = worker.facts.context.into();
        models.push(entry);
    }
    Json(json!({ "models": models }))
}

#[derive(Debug, Deserialize)]
struct Show {
    model: Option<String>,
    /// An older name of the same.
    name: Option<String>,
}

pub async fn show(State(server): State<Arc<Server>>, body: Body) -> Response {
    let shown = async {
        let (asked, _share): (Show, _) = server.bodies.json(body).await?;
        let name = asked.model.or(asked.name).unwrap_or_default();
        let (listed, described) = server.registry.describe(&name).await?;
        Ok(Json(shown(&listed, &described)).into_response())
    };
    shown.await.unwrap_or_else(|wrong: ApiError| error(&wrong))
}

fn shown(listed: &Listed, described: &Described) -> Value {
    let mut info = described.metadata.clone();
    info.insert("general.architecture".to_owned(), described.architecture.clone().into());
    info.insert("general.parameter_count".to_owned(), described.parameters.into());
    // What a request may have here: clients go by it.
    info.insert(format!("{}.context_length", described.architecture), described.context.into());
    json!({
        "modelfile": format!("FROM {}\n", listed.name),
        "parameters": format!("num_ctx {}", described.context),
        "template": described.template.as_deref().unwrap_or_default(),
        "details": details(described),
        "model_info": info,
        "capabilities": capabilities(described.template.as_deref()),
        "modified_at": rfc3339(listed.created),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn described() -> Described {
        let metadata = json!({ "llama.context_length": 4096, "llama.block_count": 4 });
        Described {
            architecture: "llama".to_owned(),
            parameters: 1_235_000_000,
            quantization: "Q4_K".to_owned(),
            context: 512,
            template: Some("{{ messages }}".to_owned()),
            metadata: metadata.as_object().cloned().unwrap(),
        }
    }

    #[test]
    fn what_is_shown_is_what_can_be_had() {
        let listed = Listed { name: "m".to_owned(), file_bytes: 10, created: 0 };
        let shown = shown(&listed, &described());
        let info = &shown["model_info"];
        let expected = json!({ "llama.context_length": 512, "llama.block_count": 4,
            "general.architecture": "llama", "general.parameter_count": 1_235_000_000u64 });
        assert_eq!(*info, expected);
        assert_eq!(shown["capabilities"], json!(["completion", "tools"]));
        assert_eq!(shown["details"]["parameter_size"], "1.2B");
        let entry = entry(&listed, &described());
        assert_eq!(
            (&entry["name"], &entry["modified_at"]),
            (&"m:latest".into(), &"1970-01-01T00:00:00Z".into())
        );
        assert_eq!(entry["digest"].as_str().unwrap().len(), 64);
    }

    #[test]
    fn sizes_are_short() {
        let sizes = [7, 7_350, 7_350_528, 7_241_000_000].map(parameter_size);
        assert_eq!(sizes, ["7", "7.35K", "7.35M", "7.2B"]);
        assert_eq!(capabilities(Some("{% if enable_thinking %}")), ["completion", "tools", "thinking"]);
        assert_eq!(capabilities(None), ["completion"]);
        assert_eq!(tagged("a:b"), "a:b");
    }
}
