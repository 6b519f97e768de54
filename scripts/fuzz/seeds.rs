//! Writes the seeds of every target below a folder: small models that are sound, of every kind, and files of tensors.
//! `seeds FOLDER FIXTURES`

use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};

use wayinfer::gguf::{Gguf, Source, StaticBytes};
use wayinfer::verify::TensorWriter;
use wayinfer::verify::files::{Algorithms, Covered, hash, write_manifest};

mod cached;
#[path = "../../tests/common/gguf.rs"]
#[allow(dead_code)]
mod gguf;
#[path = "../../tests/common/tiny.rs"]
#[allow(dead_code)]
mod tiny;

use gguf::{Data, GgufBuilder, ty};

/// Headers alone are of interest of anything larger.
const LARGEST: usize = 200_000;

/// Writes the seed of a target: target, name, bytes.
type Write<'a> = dyn Fn(&str, &str, &[u8]) -> std::io::Result<()> + 'a;

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let [root, fixtures] = &args[..] else { return Err("usage: seeds FOLDER FIXTURES".into()) };
    let write = |target: &str, name: &str, bytes: &[u8]| -> std::io::Result<()> {
        let folder = root.join(target);
        fs::create_dir_all(&folder)?;
        fs::write(folder.join(name), bytes)
    };
    let models = models();
    for (name, model) in &models {
        write("header", name, &model.build())?;
        write("load", name, &model.build())?;
        let parts: Vec<Vec<u8>> = model.split(3).iter().map(GgufBuilder::build).collect();
        let part = |bytes: &Vec<u8>| [&(bytes.len() as u32).to_le_bytes()[..3], bytes].concat();
        write("split", name, &parts.iter().map(part).collect::<Vec<_>>().concat())?;
    }
    write("header", "small", &gguf::small_model().build())?;
    for entry in fs::read_dir(fixtures)? {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "gguf") {
            let bytes = fs::read(&path)?;
            let header = Gguf::open(path.as_path()).map_or(0, |gguf| gguf.parts[0].data_offset as usize);
            let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            write("header", &name, &bytes[..header.min(LARGEST).min(bytes.len())])?;
        }
    }
    tokenizers(&write)?;
    grammars(&write)?;
    cached_page(&write)?;
    transcripts(&write)?;
    bodies(&write)?;
    bases(&write)?;
    manifests(&write)?;
    settings(&write)?;
    repositories(&write)?;
    tensors(&root.join("golden"))
}

/// The tiny models, with each tensor type, with experts merged and one by one, with biases.
fn models() -> Vec<(String, GgufBuilder)> {
    let mut models = vec![("spm".to_owned(), tiny::tiny_model()), ("bpe".to_owned(), tiny::tiny_bpe())];
    for &(name, ty) in gguf::ty::ALL {
        if 64 % ty.1 == 0 {
            let output = tiny::tiny_model();
            let dims = [32u64.next_multiple_of(ty.1), tiny::TOKENS];
            if dims[0] == 32 {
                models
                    .push((name.to_lowercase(), output.replace("output.weight", ty, &dims, Data::Random(1))));
            }
        }
    }
    let bias = tiny::tiny_model().tensor("blk.0.attn_q.bias", ty::F32, &[32], Data::Zero);
    models.push(("bias".to_owned(), bias));
    let experts = |model: GgufBuilder| {
        let model = model.kv("llama.expert_count", 4u32).kv("llama.expert_used_count", 2u32);
        let model = ["gate", "up", "down"]
            .iter()
            .fold(model, |model, part| model.without_tensor(&format!("blk.0.ffn_{part}.weight")));
        let router = (0..4 * 32).map(|i| (i % 7) as f32 / 8.0).collect::<Vec<f32>>();
        model.tensor("blk.0.ffn_gate_inp.weight", ty::F32, &[32, 4], router)
    };
    let matrix = |n: usize| (0..n).map(|i| (i % 11) as f32 / 64.0 - 0.07).collect::<Vec<f32>>();
    let (mut merged, mut single) = (experts(tiny::tiny_model()), experts(tiny::tiny_model()));
    for (part, cols, rows) in [("gate", 32, 64), ("up", 32, 64), ("down", 64, 32)] {
        let dims = [cols, rows, 4];
        merged = merged.tensor(format!("blk.0.ffn_{part}_exps.weight"), ty::F32, &dims, matrix(4 * 32 * 64));
        for e in 0..4 {
            single =
                single.tensor(format!("blk.0.ffn_{part}.{e}.weight"), ty::F32, &dims[..2], matrix(32 * 64));
        }
    }
    models.push(("experts".to_owned(), merged));
    models.push(("experts-single".to_owned(), single));
    models
}

/// The tokenizer's input is made of its bytes by `arbitrary`: texts of every kind give it something to take.
fn tokenizers(write: &Write<'_>) -> Result<(), Box<dyn Error>> {
    let texts: [(&str, &[u8]); 4] = [
        ("words", "\u{1}\u{1}the then hello <s> </s> ▁a ĠA <|im_end|> 0123 été 你好".as_bytes()),
        (
            "template",
            b"\x00\x01{% for m in messages %}{{ m.role }}: {{ m.content | trim }}{% endfor %}{{ eos_token }}",
        ),
        (
            "functions",
            b"\x01\x00{{ raise_exception('x') }}{{ strftime_now('%Y') }}{{ messages | tojson(indent=2) }}",
        ),
        ("bytes", &[0xff; 64]),
    ];
    for (name, bytes) in texts {
        write("tokenizer", name, bytes)?;
        write("tokenizer", &format!("{name}-long"), &bytes.repeat(8))?;
    }
    Ok(())
}

/// A grammar of each kind, behind the bytes that choose it and the walk.
fn grammars(write: &Write<'_>) -> std::io::Result<()> {
    let schema = r##"{"type":"object","properties":{"a":{"enum":[1,"b",null]},"c":{"type":"array","items":{"$ref":"#/$defs/d"},
        "maxItems":3}},"required":["a"],"$defs":{"d":{"anyOf":[{"type":"string","pattern":"^[a-c]{2}$"},{"type":"integer",
        "minimum":-5}]}},"additionalProperties":false}"##;
    let lark = "start: item (\",\" item)* | <|none|>\nitem: NUMBER | \"(\" start \")\"\nNUMBER: /[0-9]+/\n%ignore / +/";
    let gbnf = "root ::= item (\",\" ws item)* # a list\nitem ::= [^,()\\n]{1,4} | \"(\" root \")\"\nws ::= (\" \" ws)?";
    let texts =
        [("schema", 0, schema), ("regex", 1, "(a|b)*[^\\d]{2,3}é?"), ("lark", 2, lark), ("gbnf", 3, gbnf)];
    let walk: Vec<u8> = (0..24u8).map(|step| step.wrapping_mul(37)).collect();
    texts.iter().try_for_each(|&(name, kind, text)| {
        write("grammar", name, &[&[kind], &walk[..], text.as_bytes()].concat())
    })
}

/// A page of a text in a prefix cache, whole and cut.
fn cached_page(write: &Write<'_>) -> Result<(), Box<dyn Error>> {
    let bytes: &'static [u8] = Vec::leak(tiny::tiny_model().build());
    let gguf = Gguf::open(Source::Memory { name: "tiny", bytes: StaticBytes(bytes) })?;
    let folder = tempfile::tempdir()?;
    let (_, page) = cached::kept(&gguf, folder.path());
    write("cache", "whole", &page)?;
    write("cache", "cut", &page[..page.len() / 2])?;
    write("cache", "header", &page[..128])?;
    Ok(())
}

/// Conversations, and what a model has written of one in each of the ways that mark reasoning.
fn transcripts(write: &Write<'_>) -> std::io::Result<()> {
    let header = r#"{"format":"wayinfer-chat","version":1,"model":"demo"}"#;
    let system = r#"{"role":"system","content":"Be brief."}"#;
    let user = r#"{"role":"user","content":"2+2? \n\u001b[2J"}"#;
    let answer = r#"{"role":"assistant","content":"4","reasoning_content":"Hm."}"#;
    let texts = [
        ("whole", [header, system, user, answer, user, answer].join("\n")),
        ("short", [header, user, answer].join("\n\n")),
        ("open", [header, user].join("\n")),
        ("think", "<think>Hm.</think>4 [THINK]a[/THINK]<|START_THINKING|>b<|END_THINKING|>".to_owned()),
        (
            "harmony",
            "<|start|>assistant<|channel|>analysis<|message|>a<|end|><|channel|>final<|message|>4".to_owned(),
        ),
    ];
    texts.iter().try_for_each(|(name, text)| write("transcript", name, text.as_bytes()))
}

/// Requests of every dialect; the first byte says where they go.
fn bodies(write: &Write<'_>) -> std::io::Result<()> {
    let messages =
        r#""messages":[{"role":"system","content":"Be brief."},{"role":"user","content":"hello"}]"#;
    let sampling =
        r#""temperature":0.7,"top_p":0.9,"top_k":40,"min_p":0.1,"seed":1,"stop":["a"],"n":2,"stream":true"#;
    let schema =
        r#"{"type":"object","properties":{"a":{"type":"integer"},"b":{"enum":["x","y"]}},"required":["a"]}"#;
    let tool = format!(r#"{{"type":"function","function":{{"name":"f","parameters":{schema}}}}}"#);
    let parts = r#"[{"type":"text","text":"hello"}]"#;
    let chat = format!(
        r#"{{{messages},{sampling},"logprobs":true,"top_logprobs":2,"max_tokens":5,"logit_bias":{{"5":1}}}}"#
    );
    let format = format!(
        r#"{{{messages},"response_format":{{"type":"json_schema","json_schema":{{"name":"s","schema":{schema}}}}}}}"#
    );
    let tools = format!(r#"{{{messages},"tools":[{tool}],"tool_choice":"required","max_tokens":9}}"#);
    let text = format!(r#"{{"prompt":"hello",{sampling},"logprobs":2,"max_tokens":5}}"#);
    let anthropic_tool = format!(r#"[{{"name":"f","input_schema":{schema}}}]"#);
    let user = format!(r#""messages":[{{"role":"user","content":{parts}}}]"#);
    let anthropic =
        format!(r#"{{"max_tokens":5,"system":"a",{user},"tools":{anthropic_tool},"stop_sequences":["a"]}}"#);
    let responses = r#"{"input":[{"role":"user","content":"hello"}],"instructions":"a","stream":true}"#;
    let options = r#""options":{"temperature":0.5,"num_predict":5,"seed":1,"stop":["a"]}"#;
    let ollama = format!(r#"{{"model":"tiny",{messages},"stream":false,"format":{schema},{options}}}"#);
    let generate = format!(r#"{{"model":"tiny","prompt":"hello","system":"a","raw":false,{options}}}"#);
    let seeds: [(u8, &str, &str); 14] = [
        (0, "chat", &chat),
        (0, "schema", &format),
        (0, "tools", &tools),
        (0, "parts", &format!("{{{user}}}")),
        (1, "text", &text),
        (1, "tokens", r#"{"prompt":[1,2,3],"max_tokens":5}"#),
        (2, "tokenize", r#"{"content":"hello","add_special":true,"with_pieces":true}"#),
        (3, "detokenize", r#"{"tokens":[1,2,3]}"#),
        (4, "template", &format!("{{{messages}}}")),
        (5, "responses", responses),
        (6, "anthropic", &anthropic),
        (7, "count", &anthropic),
        (8, "ollama", &ollama),
        (9, "generate", &generate),
    ];
    seeds
        .iter()
        .try_for_each(|(path, name, body)| write("request", name, &[&[*path], body.as_bytes()].concat()))
}

/// Bases of the target's windows, behind the byte that says what they are; see the target.
fn bases(write: &Write<'_>) -> std::io::Result<()> {
    // A scale of 1, the least of -8, and steps.
    let row = [&[0x3f80_0000u32, 0xc100_0000][..], &[0x0002_0001; 8]].concat();
    let llama: Vec<u8> = row.repeat(9).into_iter().flat_map(u32::to_le_bytes).collect();
    let mut npy =
        b"\x93NUMPY\x01\x00\x76\x00{'descr': '<f4', 'fortran_order': False, 'shape': (3, 3, 16), }".to_vec();
    npy.resize(127, b' ');
    npy.push(b'\n');
    npy.resize(128 + 4 * 9 * 16, 0);
    let own = br#"{"model":"m","settings":"s","vocab":16,"context":8,"stride":null,"windows":3,"top":4}"#;
    let header = [b"WayBase\x01", &(own.len() as u32).to_le_bytes()[..], own].concat();
    write("base", "llama", &[&[2], &llama[..]].concat())?;
    write("base", "npy", &[&[0], &npy[..]].concat())?;
    write("base", "header", &[&[0], &header[..]].concat())?;
    write("base", "rows", &[&[1, 1, 0, 4, 0, 1, 2, 3][..], &[0xbf; 64]].concat())
}

/// Manifests of each kind.
fn manifests(write: &Write<'_>) -> Result<(), Box<dyn Error>> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("model.gguf");
    fs::write(&path, tiny::tiny_model().build())?;
    let gguf = Gguf::open(path.as_path())?;
    let all = Covered { algorithms: Algorithms::BOTH, files: true, tensors: true };
    let mut own = Vec::new();
    write_manifest(&gguf, &hash(&gguf, all, &|_| ())?, &mut own)?;
    let sum = "0123456789abcdef".repeat(4);
    write("manifest", "own", &own)?;
    let pointer = format!("version https://git-lfs.github.com/spec/v1\noid sha256:{sum}\nsize 4\n");
    write("manifest", "pointer", pointer.as_bytes())?;
    write("manifest", "sums", format!("{sum}  model.gguf\n\\{sum} *a\\nb\\\\\n").as_bytes())?;
    Ok(())
}

/// Files of settings.
fn settings(write: &Write<'_>) -> std::io::Result<()> {
    let tables = "# mine\n[generate]\ntemp = 0.5\nstop = [\"a\", '''b''']\nmodel = \"~/m.gguf\"\n[serve]\nport = 8080\n";
    let texts = [
        ("common", "threads = 4\nram = \"12G\"\nctx = 0x1000\nverbose = true\n"),
        ("tables", tables),
        ("wrong", "[generate\nx = 1979-05-27\n\"\\u001b\" = {a = 1}\nthreads = []\n"),
    ];
    texts.iter().try_for_each(|(name, text)| write("config", name, text.as_bytes()))
}

/// Answers of the hub, and caches; see the target.
fn repositories(write: &Write<'_>) -> std::io::Result<()> {
    let (commit, hash) = ("0123456789abcdef0123456789abcdef01234567", "89abcdef".repeat(8));
    let answer = |files: &[&str]| {
        let large = format!(r#""lfs":{{"sha256":"{hash}","size":5,"pointerSize":134}}"#);
        let file = |path: &&str| format!(r#"{{"rfilename":"{path}","size":5,"blobId":"{commit}",{large}}}"#);
        let files: Vec<String> = files.iter().map(file).collect();
        format!(r#"{{"id":"a/b","sha":"{commit}","siblings":[{}]}}"#, files.join(","))
    };
    let snapshot = format!("models--a--b/snapshots/{commit}");
    let linked = format!(
        "models--a--b/refs/main={commit}\nmodels--a--b/blobs/{hash}=GGUF\nmodels--a--b/blobs/{hash}.incomplete=GG\n\
         {snapshot}/m-Q4_K_M.gguf>../../blobs/{hash}\n{snapshot}/x.gguf>../../../../outside\n"
    );
    let parts = format!(
        "models--a--b/refs/pr/1={commit}\n{snapshot}/q/m-00001-of-00002.gguf=a\n\
         {snapshot}/q/m-00002-of-00002.gguf=b\nblobs/89/{hash}=GGUF\nblobs/.huggingface-shared-blobs=1\n"
    );
    let seeds = [
        ("one", format!("a/b\n{}", answer(&["m-Q4_K_M.gguf", "README.md", "../x.gguf"]))),
        ("split", format!("a/b:Q8_0\n{}", answer(&["Q8_0/m-Q8_0-00001-of-00001.gguf"]))),
        ("file", format!("a/b/m.gguf@main\n{}", answer(&["m.gguf"]))),
        ("cache", format!("a/b:Q4_K_M\n{linked}")),
        ("parts", format!("a/b@refs/pr/1\n{parts}")),
    ];
    seeds.iter().try_for_each(|(name, text)| write("hub", name, text.as_bytes()))
}

fn tensors(folder: &Path) -> Result<(), Box<dyn Error>> {
    fs::create_dir_all(folder)?;
    let mut writer = TensorWriter::create(&folder.join("small.safetensors"), true)?;
    writer.add("a", &[2, 3], &[1.0f32; 6])?;
    writer.add("b", &[0], &[0u8; 0])?;
    writer.finish()?;
    let mut writer = TensorWriter::create(&folder.join("reference.safetensors"), true)?;
    writer.text("wayinfer", r#"{"format":1,"kv":"f16","decode_steps":1,"order":["prefill/embd#0"]}"#);
    writer.add("prompt", &[3], &[1i32, 2, 3])?;
    writer.add("rows", &[2], &[0i32, 2])?;
    writer.add("greedy/ids", &[1], &[7i32])?;
    writer.add("prefill/embd#0", &[2, 4], &[0.5f32; 8])?;
    writer.add("prefill/Qcur-0#1", &[2, 4], &[0.5f32; 8])?;
    writer.add("decode.0/result_output#0", &[1, 4], &[0.5f32; 4])?;
    writer.finish()?;
    Ok(())
}
