//! What is odd in a model whose files are sound: warnings for a check, no bar to opening it. What
//! would break every reader (counts that do not divide, arrays that do not match) counts as an error.

use std::path::Path;

use super::check::{Findings, Severity};
use super::error::label;
use super::header::ParsedFile;
use super::metadata::Metadata;
use super::value::{Array, Value, ValueType};

/// Reports on the files of a model, the first of which is to be its first part.
pub(super) fn lint(files: &[ParsedFile], findings: &mut Findings) {
    for file in files {
        lint_file(file, findings);
    }
    if let Some(first) = files.first().filter(|file| file.no == 0) {
        let mut model = Model { first, files, findings };
        model.architecture();
        model.vocabulary();
    }
}

/// What a file's data and names have of oddities.
fn lint_file(file: &ParsedFile, findings: &mut Findings) {
    let path = &file.part.path;
    for (index, (key, value)) in file.part.metadata.iter().enumerate() {
        if let Some(text) = odd_value(value) {
            let at = file.key_offsets.get(index).copied();
            findings.add(
                Severity::Warning,
                path,
                at,
                format!("metadata key {:?} {text}", label(key.as_bytes())),
            );
        }
    }
    for tensor in &file.tensors {
        let text = if tensor.info.name.is_empty() {
            "a tensor has an empty name".to_owned()
        } else if tensor.info.bytes == 0 {
            format!("tensor {:?} has no elements", tensor.info.name)
        } else {
            continue;
        };
        findings.add(Severity::Warning, path, Some(tensor.entry_offset), text);
    }
    surplus(file, path, findings);
}

/// Bytes after the last tensor's data and its padding.
fn surplus(file: &ParsedFile, path: &Path, findings: &mut Findings) {
    let Some(last) = file.tensors.last() else { return };
    let end = last.info.offset.saturating_add(last.info.bytes);
    let padded = end.checked_next_multiple_of(file.part.alignment).unwrap_or(end);
    if file.part.file_bytes > padded {
        let text = format!("{} bytes follow the last tensor's data", file.part.file_bytes - padded);
        findings.add(Severity::Warning, path, Some(padded), text);
    }
}

fn odd_value(value: &Value) -> Option<String> {
    match value {
        Value::Text(text) if text.as_str().is_none() => Some("is a string that is not UTF-8".to_owned()),
        Value::Array(Array::Texts(texts)) => {
            let mut odd = texts.iter().enumerate().filter(|(_, t)| std::str::from_utf8(t).is_err());
            let (first, _) = odd.next()?;
            Some(format!("has {} strings that are not UTF-8, the first at {first}", odd.count() + 1))
        }
        _ => {
            let float = value.as_f64().filter(|v| !v.is_finite())?;
            Some(format!("is {float}"))
        }
    }
}

/// The model as a whole: metadata is the first part's.
struct Model<'a> {
    first: &'a ParsedFile,
    files: &'a [ParsedFile],
    findings: &'a mut Findings,
}

impl Model<'_> {
    fn metadata(&self) -> &Metadata {
        &self.first.part.metadata
    }

    fn report(&mut self, severity: Severity, key: &str, text: String) {
        let at = self.first.key_offset(key);
        self.findings.add(severity, &self.first.part.path, at, text);
    }

    /// Reports a value of the wrong type; gives the value where it is there and right.
    fn read<T>(&mut self, read: Result<Option<T>, super::MetadataError>, key: &str) -> Option<T> {
        read.unwrap_or_else(|e| {
            self.report(Severity::Error, key, e.to_string());
            None
        })
    }

    fn has_tensor(&self, wanted: impl Fn(&str) -> bool) -> bool {
        self.files.iter().flat_map(|f| &f.tensors).any(|t| wanted(&t.info.name))
    }

    fn architecture(&mut self) {
        const KEY: &str = "general.architecture";
        let read = self.metadata().str(KEY).map(|arch| arch.map(str::to_owned));
        if !self.metadata().contains(KEY) {
            let text = format!("metadata key {KEY} is missing: it cannot be run, only inspected");
            return self.report(Severity::Warning, KEY, text);
        }
        let Some(arch) = self.read(read, KEY) else { return };
        // The keys below are made from it: a name beyond all reason is not to be multiplied.
        if arch.is_empty() || arch.len() > 64 {
            let text = format!("{KEY} is {:?}, no name of an architecture", label(arch.as_bytes()));
            return self.report(Severity::Error, KEY, text);
        }
        self.heads(&arch);
        self.experts(&arch);
        self.blocks(&arch);
    }

    /// An integer, or one a layer: models whose layers differ have arrays.
    fn per_layer(&mut self, key: &str) -> Option<Vec<u64>> {
        let value = self.metadata().get(key)?;
        let numbers = match value {
            Value::Array(Array::Packed(p)) => p.iter().map(|v| v.as_u64()).collect(),
            value => value.as_u64().map(|v| vec![v]),
        };
        if numbers.is_none() {
            let text = format!(
                "metadata key {key:?} is {}, where a non-negative integer (or one a layer) is needed",
                value.ty()
            );
            self.report(Severity::Error, key, text);
        }
        numbers
    }

    /// Head counts are divided by and divide; models without attention have zeros.
    fn heads(&mut self, arch: &str) {
        let [heads_key, kv_key, width_key, length_key] =
            ["attention.head_count", "attention.head_count_kv", "embedding_length", "attention.key_length"]
                .map(|name| format!("{arch}.{name}"));
        let heads = self.per_layer(&heads_key).unwrap_or_default();
        let kv = self.per_layer(&kv_key).unwrap_or_default();
        let width = self.read(self.metadata().u64(&width_key), &width_key);
        let attention = self.has_tensor(|n| n.contains(".attn_q") || n.contains(".attn_k."));
        for (key, counts) in [(&heads_key, &heads), (&kv_key, &kv)] {
            if attention && counts.len() == 1 && counts[0] == 0 {
                self.report(Severity::Error, key, format!("{key} is 0, though there are attention tensors"));
            }
        }
        if let (Some(width), &[heads]) = (width, heads.as_slice())
            && !self.metadata().contains(&length_key)
            && heads > 0
            && width % heads != 0
        {
            let text = format!("{width_key} is {width}, not a multiple of {heads_key}, {heads}");
            self.report(Severity::Error, &heads_key, text);
        }
        if heads.len() > 1 && kv.len() > 1 && heads.len() != kv.len() {
            let text = format!("{heads_key} has {} elements, {kv_key} {}", heads.len(), kv.len());
            self.report(Severity::Error, &kv_key, text);
        }
        let layers = heads.len().max(kv.len());
        let at = |counts: &[u64], i: usize| {
            counts.get(i).or(counts.first().filter(|_| counts.len() == 1)).copied()
        };
        let odd = (0..layers).find_map(|i| {
            let (heads, kv) = (at(&heads, i)?, at(&kv, i)?);
            (kv > 0 && heads % kv != 0).then_some((heads, kv))
        });
        if let Some((heads, kv)) = odd {
            let text = format!("{heads_key} is {heads}, not a multiple of {kv_key}, {kv}");
            self.report(Severity::Error, &kv_key, text);
        }
    }

    fn experts(&mut self, arch: &str) {
        let [count_key, used_key] =
            ["expert_count", "expert_used_count"].map(|name| format!("{arch}.{name}"));
        let Some(count @ 1..) = self.read(self.metadata().u64(&count_key), &count_key) else { return };
        match self.read(self.metadata().u64(&used_key), &used_key) {
            Some(used) if (1..=count).contains(&used) => {}
            Some(used) => {
                let text = format!("{used_key} is {used}, where 1 to {count} ({count_key}) are possible");
                self.report(Severity::Error, &used_key, text);
            }
            None => self.report(Severity::Warning, &count_key, format!("{used_key} is missing")),
        }
    }

    fn blocks(&mut self, arch: &str) {
        let key = format!("{arch}.block_count");
        let declared = self.read(self.metadata().u64(&key), &key);
        let number = |name: &str| name.strip_prefix("blk.")?.split('.').next()?.parse::<u64>().ok();
        let tensors = self.files.iter().flat_map(|f| &f.tensors);
        let last = tensors.filter_map(|t| number(&t.info.name)).max();
        match (declared, last) {
            (Some(declared), Some(last)) if last.checked_add(1) != Some(declared) => {
                let text = format!("{key} is {declared}, the last layer that has tensors is {last}");
                self.report(Severity::Warning, &key, text);
            }
            (None, Some(_)) if !self.metadata().contains(&key) => {
                self.report(Severity::Warning, &key, format!("{key} is missing"));
            }
            _ => {}
        }
    }

    /// The vocabulary's arrays are as long as each other, and of the types that readers need.
    fn vocabulary(&mut self) {
        const TOKENS: &str = "tokenizer.ggml.tokens";
        for key in ["tokenizer.ggml.model", "tokenizer.ggml.pre", "tokenizer.chat_template"] {
            let read = self.metadata().str(key).map(|s| s.map(|_| ()));
            self.read(read, key);
        }
        let tokens = self.array(TOKENS, ValueType::String);
        self.array("tokenizer.ggml.merges", ValueType::String);
        for (key, ty) in
            [("tokenizer.ggml.scores", ValueType::F32), ("tokenizer.ggml.token_type", ValueType::I32)]
        {
            let found = self.array(key, ty);
            if let (Some(tokens), Some(found)) = (tokens, found)
                && tokens != found
            {
                self.report(Severity::Error, key, format!("{key} has {found} elements, {TOKENS} {tokens}"));
            }
        }
        let Some(tokens) = tokens else { return };
        self.special_tokens(tokens);
        let rows = self.files.iter().flat_map(|f| &f.tensors).find(|t| t.info.name == "token_embd.weight");
        if let Some(rows) = rows.map(|t| t.info.dims.get(1).copied().unwrap_or(1))
            && rows != tokens as u64
        {
            let text = format!("{TOKENS} has {tokens} elements, token_embd.weight {rows} rows");
            self.report(Severity::Warning, TOKENS, text);
        }
    }

    /// The length of an array of this type; another type is reported.
    fn array(&mut self, key: &str, ty: ValueType) -> Option<usize> {
        let value = self.metadata().get(key)?;
        let found = match value {
            Value::Array(array) if array.ty() == ty => return Some(array.len()),
            Value::Array(array) => format!("an array of {}", array.ty()),
            other => other.ty().name().to_owned(),
        };
        self.report(Severity::Error, key, format!("{key} is {found}, where an array of {ty} is needed"));
        None
    }

    /// Ids of special tokens lie in the vocabulary.
    fn special_tokens(&mut self, tokens: usize) {
        let ids: Vec<(String, Option<u64>)> = (self.metadata().iter())
            .filter(|(key, _)| key.starts_with("tokenizer.ggml.") && key.ends_with("_token_id"))
            .map(|(key, value)| (key.to_owned(), value.as_u64()))
            .collect();
        for (key, id) in ids {
            if id.is_none_or(|id| id >= tokens as u64) {
                let text =
                    format!("{:?} is no token of the vocabulary, which has {tokens}", label(key.as_bytes()));
                self.report(Severity::Warning, &key, text);
            }
        }
    }
}
