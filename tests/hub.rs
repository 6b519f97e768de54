//! Models by name: a server of this machine answers as the hub does, well and badly.

mod common;
#[path = "hub/server.rs"]
mod server;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use common::gguf::{Data, Kv, split_name, ty};
use common::tiny::{of, tiny_model};
use serde_json::{Value, json};
use server::{Answer, COMMIT, FakeHub, Request, Server, sha256};
use tempfile::TempDir;
use wayinfer::hub::{Event, Hub, HubError, ModelName, Settings};

const TOKEN: &str = "hf_of_a_test";

/// A cache of its own, and the hub as a server has it.
struct Place {
    dir: TempDir,
    hub: Hub,
    endpoint: String,
}

impl Place {
    fn new(server: &Server) -> Place {
        let dir = TempDir::new().expect("a folder");
        Place { hub: hub(dir.path(), server), endpoint: server.hub.clone(), dir }
    }

    fn repo(&self) -> PathBuf {
        self.dir.path().join("models--some--model")
    }

    fn blob(&self, bytes: &[u8]) -> PathBuf {
        self.repo().join("blobs").join(sha256(bytes))
    }

    /// Whether a file has come whole: as a blob or, where links cannot be made, as a file of a snapshot.
    fn has(&self, bytes: &[u8]) -> bool {
        let is_it = |path: &Path| fs::read(path).is_ok_and(|found| found == bytes);
        if cfg!(unix) || self.blob(bytes).exists() {
            return is_it(&self.blob(bytes));
        }
        let mut folders = vec![self.repo().join("snapshots")];
        while let Some(folder) = folders.pop() {
            for path in fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()) {
                if path.is_dir() {
                    folders.push(path);
                } else if is_it(&path) {
                    return true;
                }
            }
        }
        false
    }

    fn incomplete(&self, bytes: &[u8]) -> PathBuf {
        self.blob(bytes).with_extension("incomplete")
    }

    /// Puts there what another program may have left.
    fn leave(&self, path: &Path, bytes: &[u8]) {
        fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        fs::write(path, bytes).expect("a file");
    }

    fn pull(&self, name: &str) -> Result<PathBuf, HubError> {
        self.pull_hearing(name, &mut |_| ())
    }

    fn pull_hearing(&self, name: &str, tell: &mut dyn FnMut(Event<'_>)) -> Result<PathBuf, HubError> {
        let mut pull = self.hub.pull(&name.parse()?, tell)?;
        pull.check_space()?;
        if let Err(error) = pull.heads(tell) {
            pull.give_up();
            return Err(error);
        }
        pull.finish(tell)
    }

    /// The program, with nothing of the tester's environment that would matter.
    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_wayinfer"));
        let others =
            ["HF_HOME", "XDG_CACHE_HOME", "HUGGINGFACE_HUB_CACHE", "HF_TOKEN_PATH", "HF_HUB_OFFLINE"];
        let proxies = ["ALL_PROXY", "HTTPS_PROXY", "HTTP_PROXY", "all_proxy", "https_proxy", "http_proxy"];
        others.iter().chain(&proxies).for_each(|name| {
            command.env_remove(name);
        });
        command
            .env("HF_HUB_CACHE", self.dir.path())
            .env("HF_ENDPOINT", &self.endpoint)
            .env("HF_TOKEN", TOKEN);
        command.env("COLUMNS", "200").stdin(Stdio::null()).args(args);
        command
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().expect("the program starts")
    }
}

fn hub(cache: &Path, server: &Server) -> Hub {
    Hub::new(Settings {
        cache: cache.to_owned(),
        endpoint: server.hub.clone(),
        token: Some(TOKEN.to_owned()),
        offline: false,
        pause: Duration::from_millis(1),
    })
}

fn model() -> Vec<u8> {
    tiny_model().build()
}

/// A model that is not fetched whole with its header: so many MiB of a tensor that nothing uses.
fn large(mib: u64) -> Vec<u8> {
    tiny_model().tensor("rest.weight", ty::F32, &[1 << 18, mib], Data::Random(5)).build()
}

fn out(output: &Output) -> (Option<i32>, String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

#[test]
fn a_model_is_fetched_checked_and_found_again_without_a_connection() {
    let bytes = model();
    let server = Server::start(&[("tiny-Q4_K_M.gguf", bytes.clone()), ("README.md", b"# model".to_vec())]);
    let place = Place::new(&server);
    let (code, path, told) = out(&place.run(&["pull", "some/model"]));
    assert_eq!(code, Some(0), "{told}");
    let path = PathBuf::from(path.trim_end());
    assert_eq!(fs::read(&path).expect("the model"), bytes);
    assert!(told.contains("hf:some/model:Q4_K_M at 0123456789ab: 1 file, "), "{told}");
    assert!(told.contains("llama, ") && told.contains("of weights, mapped"), "{told}");
    assert!(told.contains("fetched and checked in"), "{told}");

    // As the hub's own tools lay it out.
    assert_eq!(path, place.repo().join("snapshots").join(COMMIT).join("tiny-Q4_K_M.gguf"));
    assert!(place.has(&bytes));
    assert_eq!(fs::read_to_string(place.repo().join("refs/main")).expect("a reference"), COMMIT);
    #[cfg(unix)]
    assert_eq!(fs::read_link(&path).expect("a link"), Path::new("../../blobs").join(sha256(&bytes)));
    assert!(!place.incomplete(&bytes).exists());

    // The token is for the hub alone.
    let requests = server.requests();
    let bearer = format!("Bearer {TOKEN}");
    assert!(requests.iter().any(|request| request.is_cdn));
    for request in &requests {
        let wanted = (!request.is_cdn).then_some(&*bearer);
        assert_eq!(request.header("authorization"), wanted, "{request:?}");
    }

    // Whoever asks once more fetches nothing.
    server.forget();
    let (code, again, told) = out(&place.run(&["pull", "hf:some/model:q4_k_m", "--json"]));
    let report: Value = serde_json::from_str(&again).expect("JSON");
    assert_eq!((code, &report["missing_bytes"]), (Some(0), &json!(0)), "{told}");
    assert!(!server.requests().iter().any(|request| request.is_cdn));

    server.forget();
    for name in ["hf:some/model", "hf:some/model:Q4_K_M", "hf:some/model/tiny-Q4_K_M.gguf"] {
        let (code, text, told) =
            out(&place.run(&["generate", "-m", name, "-p", "a", "-n", "3", "--ignore-eos"]));
        assert!(code == Some(0) && !text.is_empty(), "{name}: {told}");
    }
    let checked = place.command(&["inspect", "--check", "hf:some/model"]).env("HF_HUB_OFFLINE", "1").output();
    assert_eq!(checked.expect("the program starts").status.code(), Some(0));
    assert!(server.requests().is_empty(), "{:?}", server.requests());
}

#[test]
fn a_model_that_is_not_there_is_fetched_where_it_is_used() {
    let server = Server::start(&[("tiny-Q8_0.gguf", model())]);
    let place = Place::new(&server);
    let offline =
        place.command(&["generate", "-m", "hf:some/model", "-p", "a"]).env("HF_HUB_OFFLINE", "1").output();
    let (code, _, told) = out(&offline.expect("the program starts"));
    assert!(code == Some(1) && told.contains("HF_HUB_OFFLINE"), "{told}");
    assert!(server.requests().is_empty());
    let args = ["generate", "-m", "hf:some/model:Q8_0", "-p", "a", "-n", "3", "--ignore-eos", "--json"];
    let (code, text, told) = out(&place.run(&args));
    assert_eq!(code, Some(0), "{told}");
    assert!(told.contains("to fetch"), "{told}");
    serde_json::from_str::<Value>(&text).expect("nothing but JSON on stdout");
}

#[test]
fn all_parts_of_a_split_come() {
    let parts: Vec<_> = tiny_model().split(3).iter().map(|part| part.build()).collect();
    let names: Vec<_> = (0..3).map(|no| format!("Q8_0/{}", split_name("tiny-Q8_0", no, 3))).collect();
    let files: Vec<_> = names.iter().map(String::as_str).zip(parts.clone()).collect();
    let server = Server::start(&files);
    let place = Place::new(&server);
    let path = place.pull("some/model").expect("a model");
    assert!(path.ends_with(&names[0]), "{}", path.display());
    assert!(wayinfer::gguf::Gguf::open(&path).is_ok_and(|gguf| gguf.parts.len() == 3));
    assert!(parts.iter().all(|part| place.has(part)));
    let name = "some/model:Q8_0".parse().unwrap();
    assert_eq!(place.hub.cached(&name).expect("it"), path);

    // A part that is missing is found out, and alone is fetched.
    fs::remove_file(path.with_file_name(split_name("tiny-Q8_0", 2, 3))).expect("a part");
    let _ = fs::remove_file(place.blob(&parts[2]));
    assert!(matches!(place.hub.cached(&name), Err(HubError::NoPart { part: 3, .. })));
    let (whole, unfinished) = place.hub.list().expect("a list");
    let there = (parts[0].len() + parts[1].len()) as u64;
    assert!(whole.is_empty() && unfinished[0].bytes == there);
    server.forget();
    place.pull("some/model").expect("a model");
    assert_eq!(server.ranges(), [(0, parts[2].len() - 1)]);

    // A part that is not the one that its name says is refused by its header.
    let other = tiny_model().split(4)[1].build();
    let files = [files[0].clone(), (&names[1], other), files[2].clone()];
    let place = Place::new(&Server::start(&files));
    let error = place.pull("some/model").expect_err("a part of another split").to_string();
    assert!(error.starts_with("hf:some/model/Q8_0/tiny-Q8_0-00002-of-00003.gguf"), "{error}");
    assert!(error.contains("split.count is 4"), "{error}");
    // Nothing of what was begun is left.
    assert_eq!(fs::read_dir(place.repo().join("blobs")).expect("a folder").count(), 0);
    // One that is missing is found before anything is fetched.
    let server = Server::start(&files[..2]);
    assert!(matches!(Place::new(&server).pull("some/model"), Err(HubError::NoPart { part: 3, .. })));
    assert!(server.ranges().is_empty());
}

#[test]
fn a_fetch_goes_on_where_it_was_broken_off() {
    let bytes = large(6);
    let half = bytes.len() / 2;
    let end = bytes.len() - 1;
    // What is there of an earlier time is not fetched again.
    let server = Server::start(&[("m.gguf", bytes.clone())]);
    let place = Place::new(&server);
    place.leave(&place.incomplete(&bytes), &bytes[..half]);
    place.pull("some/model").expect("a model");
    assert_eq!(server.ranges()[0].0, half);
    assert!(place.has(&bytes));

    // All of it is there, and only to be checked.
    let place = Place::new(&server);
    place.leave(&place.incomplete(&bytes), &bytes);
    server.forget();
    place.pull("some/model").expect("a model");
    assert!(server.ranges().is_empty() && place.has(&bytes));

    // Connections that are cut: each time some bytes more.
    let cuts = AtomicUsize::new(0);
    let server = Server::ruled(&[("m.gguf", bytes.clone())], move |request, fake| {
        let cut = request.is_cdn && cuts.fetch_add(1, Ordering::SeqCst) < 4;
        cut.then(|| Answer { cut: Some(1_000_000), ..fake.answer(request) })
    });
    let place = Place::new(&server);
    place.pull("some/model").expect("a model");
    let firsts: Vec<_> = server.ranges().iter().map(|range| range.0).collect();
    assert!(firsts[..5].iter().enumerate().all(|(i, &first)| first == i * 1_000_000), "{firsts:?}");
    assert!(place.has(&bytes));

    // A host that knows no ranges sends all of it.
    let server = Server::ruled(&[("m.gguf", bytes.clone())], |request, fake| {
        let file = || fake.files.values().next().expect("a file").clone();
        request.is_cdn.then(|| Answer::of(200, &[], file()))
    });
    let place = Place::new(&server);
    place.leave(&place.incomplete(&bytes), &bytes[..half]);
    place.pull("some/model").expect("a model");
    assert!(place.has(&bytes));

    // What is there is of something else, or longer than the file.
    for left in [vec![7; half], vec![7; end + 2]] {
        let place = Place::new(&server);
        place.leave(&place.incomplete(&bytes), &left);
        let mut anew = 0;
        let pulled = place.pull_hearing("some/model", &mut |event| {
            anew += usize::from(matches!(event, Event::Anew { .. }));
        });
        pulled.expect("a model");
        assert_eq!(anew, usize::from(left.len() == half), "a header that is none");
        assert!(place.has(&bytes));
    }
    let place = Place::new(&server);
    let mut spoilt = bytes[..half].to_vec();
    spoilt[half - 1] ^= 1;
    place.leave(&place.incomplete(&bytes), &spoilt);
    let mut anew = 0;
    let count = &mut |event: Event<'_>| anew += usize::from(matches!(event, Event::Anew { .. }));
    place.pull_hearing("some/model", count).expect("a model");
    assert!(anew == 1 && place.has(&bytes));
}

#[test]
fn what_is_not_what_the_hub_says_is_refused() {
    let bytes = model();
    let wrong = |change: fn(&mut Vec<u8>)| {
        let server = Server::ruled(&[("m.gguf", bytes.clone())], move |request, fake| {
            let mut sent = fake.files.values().next().expect("a file").clone();
            change(&mut sent);
            request.is_cdn.then(|| fake.ranged(request, &sent))
        });
        let place = Place::new(&server);
        let error = place.pull("some/model").expect_err("another file");
        assert!(!place.has(&bytes) && place.hub.cached(&"some/model".parse().unwrap()).is_err());
        (error, place.incomplete(&bytes).exists())
    };
    let (error, left) = wrong(|sent| *sent.last_mut().expect("a byte") ^= 1);
    assert!(matches!(error, HubError::Hash { .. }) && !left, "{error}");
    let (error, _) = wrong(|sent| sent.push(0));
    assert!(matches!(error, HubError::Size { .. }), "{error}");
    let (error, _) = wrong(|sent| sent.truncate(sent.len() - 1));
    assert!(matches!(error, HubError::Size { .. }), "{error}");
    let (error, left) = wrong(|sent| sent[0] = b'X');
    assert!(matches!(error, HubError::Header(_)) && !left, "{error}");

    // Bytes of another place than was asked for, and ranges that are none.
    for range in ["bytes 5-9/100", "bytes 0-1", "nonsense", ""] {
        let server = Server::ruled(&[("m.gguf", bytes.clone())], move |request, _| {
            request.is_cdn.then(|| Answer::of(206, &[("content-range", range)], "GGUF"))
        });
        let error = Place::new(&server).pull("some/model").expect_err("another range");
        assert!(matches!(error, HubError::Answer { .. } | HubError::Size { .. }), "{range}: {error}");
    }
}

/// What a rule answers to the first requests for which it holds.
fn answering(
    times: usize,
    holds: fn(&Request) -> bool,
    answer: Answer,
) -> impl Fn(&Request, &FakeHub) -> Option<Answer> + Send + Sync {
    let done = AtomicUsize::new(0);
    move |request, _| (holds(request) && done.fetch_add(1, Ordering::SeqCst) < times).then(|| answer.clone())
}

#[test]
fn refusals_are_told_apart() {
    let files = [("m.gguf", model())];
    let is_api = |request: &Request| request.path.starts_with("/api/");
    let is_file = |request: &Request| request.path.contains("/resolve/");
    let error = |holds: fn(&Request) -> bool, answer: Answer| {
        let server = Server::ruled(&files, answering(usize::MAX, holds, answer));
        (Place::new(&server).pull("some/model").expect_err("a refusal"), server.requests().len())
    };
    let code = |status, code: &str| {
        Answer::of(status, &[("x-error-code", code), ("x-error-message", "so \u{202e}")], "")
    };
    let (found, tries) = error(is_api, code(401, "RepoNotFound"));
    assert!(matches!(&found, HubError::NoRepo { has_token: true, .. }) && tries == 1, "{found}");
    let (found, _) = error(is_api, Answer::of(401, &[], ""));
    assert!(matches!(found, HubError::NoRepo { .. }), "{found}");
    let (found, _) = error(is_file, code(403, "GatedRepo"));
    assert!(matches!(found, HubError::Gated { .. }), "{found}");
    let (found, _) = error(is_api, code(404, "RevisionNotFound"));
    assert!(matches!(found, HubError::NoRevision { .. }), "{found}");
    let (found, _) = error(is_file, code(404, "EntryNotFound"));
    assert!(matches!(found, HubError::NoFile { .. }), "{found}");
    let (found, _) = error(|request| request.is_cdn, Answer::of(416, &[], ""));
    assert!(matches!(found, HubError::Status { status: 416, .. }), "{found}");
    // What the other host says of a repository is not the hub's word.
    let (found, _) = error(|request| request.is_cdn, code(403, "GatedRepo"));
    assert!(matches!(found, HubError::Status { status: 403, .. }), "{found}");

    // What may go better is tried again, but not for ever.
    let busy = Answer::of(503, &[("retry-after", "0")], "");
    let (found, tries) = error(is_api, busy.clone());
    assert!(matches!(found, HubError::Status { status: 503, .. }) && tries == 3, "{found}: {tries}");
    let (found, tries) = error(is_api, Answer::of(429, &[("retry-after", "9999")], ""));
    assert!(matches!(found, HubError::Status { status: 429, .. }) && tries == 1, "{found}: {tries}");
    let (found, tries) = error(is_file, Answer::of(500, &[], ""));
    assert!(matches!(found, HubError::Status { status: 500, .. }) && tries == 9, "{found}: {tries}");
    for holds in [is_api, is_file, |request: &Request| request.is_cdn] {
        let server = Server::ruled(&files, answering(2, holds, busy.clone()));
        Place::new(&server).pull("some/model").expect("a model at last");
    }

    let (code, _, told) =
        out(&Place::new(&Server::ruled(&files, answering(9, is_api, code(403, "GatedRepo"))))
            .run(&["pull", "some/model"]));
    assert!(code == Some(1) && told.contains("hint: ask for it at http://"), "{told}");
    assert!(!told.contains('\u{202e}') && !told.contains(TOKEN), "{told:?}");
}

#[test]
fn nobody_is_sent_in_circles_or_elsewhere() {
    let circle = |request: &Request, fake: &FakeHub| {
        let to = format!("{}{}", fake.hub, request.path);
        Some(Answer::of(302, &[("location", &to)], ""))
    };
    let server = Server::ruled(&[("m.gguf", model())], circle);
    let error = Place::new(&server).pull("some/model").expect_err("a circle").to_string();
    assert!(error.contains("redirects") && server.requests().len() == 8, "{error}");
    for to in ["file:///etc/passwd", "", "ftp://h/x", "x"] {
        let server = Server::ruled(&[("m.gguf", model())], move |request, _| {
            request.path.contains("/resolve/").then(|| Answer::of(302, &[("location", to)], ""))
        });
        let error = Place::new(&server).pull("some/model").expect_err("nowhere").to_string();
        assert!(error.contains("a redirect to"), "{to}: {error}");
    }
    // A repository that was renamed: within the hub, with the token.
    let server = Server::ruled(&[("m.gguf", model())], |request, fake| {
        let old = request.path.replace("/some/model", "/former/name");
        if old == request.path {
            let new = request.path.replace("/former/name", "/some/model");
            return Some(Answer::of(307, &[("location", &new)], "")).filter(|_| !request.is_cdn);
        }
        Some(fake.answer(request))
    });
    let place = Place::new(&server);
    place.pull("former/name").expect("a model");
    assert!(
        server.requests().iter().all(|request| request.is_cdn == request.header("authorization").is_none())
    );
}

#[test]
fn what_cannot_run_is_refused_by_its_first_bytes() {
    let bytes = of("nobody").tensor("rest.weight", ty::F32, &[1 << 18, 8], Data::Zero).build();
    let server = Server::start(&[("m-Q4_K_M.gguf", bytes.clone())]);
    let place = Place::new(&server);
    for args in [&["pull", "some/model"][..], &["generate", "-m", "hf:some/model", "-p", "a"]] {
        server.forget();
        let (code, text, told) = out(&place.run(args));
        assert!(code == Some(1) && text.is_empty(), "{told}");
        assert!(
            told.contains("error: hf:some/model: m-Q4_K_M.gguf: ") && told.contains("architecture nobody"),
            "{told}"
        );
        assert_eq!(server.ranges(), [(0, (4 << 20) - 1)]);
        assert!(!place.incomplete(&bytes).exists() && !place.has(&bytes));
    }
    let (code, _, told) = out(&place.run(&["pull", "some/model", "--anyway"]));
    assert!(code == Some(0) && told.contains("warning: ") && place.has(&bytes), "{told}");
    // No folder of headers is left.
    let left: Vec<_> =
        fs::read_dir(place.repo()).expect("a folder").flatten().map(|e| e.file_name()).collect();
    assert_eq!(left.len(), 3, "{left:?}");
}

#[test]
fn a_long_header_is_read_to_its_end() {
    let words = Kv::array(0, 9 << 20, vec![0; 9 << 20]);
    let bytes = tiny_model().kv("test.long", words).build();
    let server = Server::start(&[("m.gguf", bytes.clone())]);
    let place = Place::new(&server);
    let (code, text, told) = out(&place.run(&["pull", "some/model", "--dry-run"]));
    assert!(code == Some(0) && text.contains("a token reads"), "{told}");
    let mib = 1 << 20;
    let all = [(0, 4 * mib - 1), (4 * mib, 8 * mib - 1), (8 * mib, bytes.len() - 1)];
    assert_eq!(server.ranges(), all);
    assert!(!place.has(&bytes) && !place.incomplete(&bytes).exists());
}

#[test]
fn what_there_is_no_room_for_is_not_begun() {
    let listing = |request: &Request, fake: &FakeHub| {
        let mut listing = fake.listing();
        listing["siblings"][0]["lfs"]["size"] = json!(1u64 << 60);
        request.path.starts_with("/api/").then(|| Answer::of(200, &[], listing.to_string()))
    };
    let server = Server::ruled(&[("m.gguf", model())], listing);
    let place = Place::new(&server);
    let (code, _, told) = out(&place.run(&["pull", "some/model"]));
    assert!(code == Some(1) && told.contains("1152921504.61 GB are needed, "), "{told}");
    assert!(server.ranges().is_empty());
}

/// Listings that no hub would write.
#[test]
fn hostile_listings_are_refused() {
    let with = |change: fn(&mut Value)| {
        let listing = move |request: &Request, fake: &FakeHub| {
            let mut listing = fake.listing();
            change(&mut listing);
            request.path.starts_with("/api/").then(|| Answer::of(200, &[], listing.to_string()))
        };
        let server = Server::ruled(&[("m.gguf", model())], listing);
        let place = Place::new(&server);
        let pulled = place.pull("some/model");
        let outside = place.dir.path().parent().expect("a folder").join("evil.gguf");
        assert!(!outside.exists() && !place.dir.path().join("evil.gguf").exists());
        pulled
    };
    let error = |change: fn(&mut Value)| with(change).expect_err("no listing").to_string();
    assert!(error(|l| l["sha"] = json!("../../x")).contains("no commit"));
    assert!(error(|l| l["sha"] = json!(5)).contains("JSON"));
    for path in [
        "../../evil.gguf",
        "/evil.gguf",
        "a/../../../evil.gguf",
        "..\\evil.gguf",
        "C:\\evil.gguf",
        "nul.gguf",
        "",
    ] {
        let listing = move |request: &Request, fake: &FakeHub| {
            let mut listing = fake.listing();
            listing["siblings"][0]["rfilename"] = json!(path);
            request.path.starts_with("/api/").then(|| Answer::of(200, &[], listing.to_string()))
        };
        let place = Place::new(&Server::ruled(&[("m.gguf", model())], listing));
        let error = place.pull("some/model").expect_err("no path");
        assert!(matches!(error, HubError::NoGguf { aside: 1, .. }), "{path}: {error}");
    }
    assert!(error(|l| l["siblings"][0]["lfs"]["sha256"] = json!("../../../evil.gguf")).contains("the hash"));
    assert!(error(|l| l["siblings"] = json!([])).contains("no GGUF file"));
    // Two files of all that a number can hold are not added up to a small one.
    let huge = error(|l| {
        let mut one = l["siblings"][0].clone();
        one["lfs"]["size"] = json!(u64::MAX);
        let mut two = one.clone();
        one["rfilename"] = json!("m-00001-of-00002.gguf");
        two["rfilename"] = json!("m-00002-of-00002.gguf");
        two["lfs"]["sha256"] = json!("c".repeat(64));
        l["siblings"] = json!([one, two]);
    });
    assert!(huge.contains("are needed"), "{huge}");
    // One file by two names is waited for by itself.
    let twice = error(|l| {
        let mut one = l["siblings"][0].clone();
        let mut two = one.clone();
        one["rfilename"] = json!("m-00001-of-00002.gguf");
        two["rfilename"] = json!("m-00002-of-00002.gguf");
        l["siblings"] = json!([one, two]);
    });
    assert!(twice.contains("the same hash"), "{twice}");
    // What the listing leaves out the file's own headers say.
    with(|l| {
        l["siblings"][0].as_object_mut().expect("an object").retain(|key, _| key == "rfilename");
    })
    .expect("a model");

    for body in ["", "<html>", "[]", "null", "{\"sha\":", &"[".repeat(100_000), &" ".repeat((16 << 20) + 1)] {
        let answer = Answer::of(200, &[], body);
        let server =
            Server::ruled(&[("m.gguf", model())], answering(9, |r| r.path.starts_with("/api/"), answer));
        let error = Place::new(&server).pull("some/model").expect_err("no listing");
        assert!(matches!(error, HubError::Answer { .. }), "{error}");
    }
}

#[cfg(unix)]
#[test]
fn links_in_the_cache_lead_nothing_astray() {
    use std::os::unix::fs::symlink;
    let bytes = model();
    let server = Server::start(&[("sub/m.gguf", bytes.clone())]);
    let place = Place::new(&server);
    let outside = place.dir.path().join("outside");
    fs::create_dir_all(outside.join("folder")).expect("a folder");
    fs::write(outside.join("file"), "precious").expect("a file");

    // The unfinished file, and the reference, are links to someone's file.
    fs::create_dir_all(place.repo().join("blobs")).expect("a folder");
    fs::create_dir_all(place.repo().join("refs")).expect("a folder");
    symlink(outside.join("file"), place.incomplete(&bytes)).expect("a link");
    symlink(outside.join("file"), place.repo().join("refs/main")).expect("a link");
    let path = place.pull("some/model").expect("a model");
    assert_eq!(fs::read_to_string(outside.join("file")).expect("the file"), "precious");

    // A snapshot's file is one: it is replaced, not written through.
    fs::remove_file(&path).expect("a link");
    symlink(outside.join("file"), &path).expect("a link");
    assert_eq!(fs::read(place.pull("some/model").expect("a model")).expect("the model"), bytes);
    assert_eq!(fs::read_to_string(outside.join("file")).expect("the file"), "precious");

    // A snapshot's folder is one.
    fs::remove_dir_all(place.repo().join("snapshots")).expect("a folder");
    fs::create_dir_all(place.repo().join("snapshots").join(COMMIT)).expect("a folder");
    symlink(outside.join("folder"), place.repo().join("snapshots").join(COMMIT).join("sub")).expect("a link");
    assert!(matches!(place.pull("some/model"), Err(HubError::Link { .. })));
    assert_eq!(fs::read_dir(outside.join("folder")).expect("a folder").count(), 0);

    // Of a link that leads out of the cache only the link is removed.
    fs::remove_dir_all(place.repo().join("snapshots")).expect("a folder");
    let snapshot = place.repo().join("snapshots").join(COMMIT);
    fs::create_dir_all(&snapshot).expect("a folder");
    symlink(outside.join("file"), snapshot.join("x.gguf")).expect("a link");
    let removal = place.hub.removal(&"some/model/x.gguf".parse().unwrap()).expect("a link");
    assert_eq!((removal.bytes(), removal.kept()), (0, 1));
    removal.remove().expect("it goes");
    assert!(!snapshot.exists() && outside.join("file").exists());
}

#[test]
fn two_fetches_of_a_file_do_not_meet() {
    let bytes = model();
    let server = Server::start(&[("m.gguf", bytes.clone())]);
    let place = Place::new(&server);
    let locks = place.dir.path().join(".locks/models--some--model");
    fs::create_dir_all(&locks).expect("a folder");
    let lock = File::create(locks.join(format!("{}.lock", sha256(&bytes)))).expect("a file");
    lock.lock().expect("a lock");
    let mut lock = Some(lock);
    let mut waited = 0;
    place
        .pull_hearing("some/model", &mut |event| {
            if matches!(event, Event::Waiting) {
                waited += 1;
                // The other one has fetched it.
                place.leave(&place.blob(&bytes), &bytes);
                lock = None;
            }
        })
        .expect("a model");
    assert_eq!(waited, 1);
    assert!(server.ranges().is_empty(), "it was there");
    // Two processes at once.
    let place = Place::new(&server);
    let mut others: Vec<_> = (0..2)
        .map(|_| {
            let mut command = place.command(&["pull", "some/model"]);
            command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it starts")
        })
        .collect();
    assert!(others.iter_mut().all(|other| other.wait().expect("it ends").success()));
    assert!(place.has(&bytes));
}

/// A cache with a model in two revisions, another beside it, and a file of another kind.
fn two_revisions() -> (Place, Vec<u8>) {
    let (bytes, other) = (model(), of("qwen2").build());
    let files = [("m-Q8_0.gguf", bytes.clone()), ("m-Q4_0.gguf", other.clone())];
    let server = Server::ruled(&files, |request, fake| {
        let mut listing = fake.listing();
        let newer = request.path.starts_with("/api/") && request.path.contains("revision/newer");
        listing["sha"] = json!("f".repeat(40));
        newer.then(|| Answer::of(200, &[], listing.to_string()))
    });
    let place = Place::new(&server);
    for name in ["some/model:Q8_0", "some/model:Q4_0", "some/model:Q8_0@newer"] {
        place.pull(name).expect("a model");
    }
    place.leave(&place.repo().join("snapshots").join(COMMIT).join("config.json"), b"{}");
    place.leave(&place.repo().join("blobs").join(format!("{}.incomplete", "a".repeat(64))), &[0; 1000]);
    (place, bytes)
}

#[test]
fn the_list_has_names_that_find_what_it_lists() {
    let (place, bytes) = two_revisions();
    place.leave(&place.dir.path().join("models--x--y/snapshots/not-a-commit/z.gguf"), b"GGUF");
    place.leave(&place.dir.path().join("datasets--x--y/refs/main"), COMMIT.as_bytes());
    let (models, unfinished) = place.hub.list().expect("a list");
    let names: Vec<_> = models.iter().map(|model| model.name.to_string()).collect();
    assert_eq!(names, ["hf:some/model:Q4_0", "hf:some/model:Q8_0", "hf:some/model:Q8_0@newer"]);
    for model in &models {
        assert_eq!(place.hub.cached(&model.name).expect("it"), model.files[0]);
        assert!(model.used.is_some());
    }
    assert_eq!(models[1].bytes, bytes.len() as u64);
    assert_eq!((unfinished.len(), unfinished[0].bytes), (1, 1000));
    let (code, text, _) = out(&place.run(&["list", "--json"]));
    let report: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!((code, &report["models"][0]["architecture"]), (Some(0), &json!("qwen2")), "{text}");
    assert_eq!(report["unfinished"][0], json!({ "name": "hf:some/model", "bytes": 1000 }));
    let (_, text, _) = out(&place.run(&["list"]));
    assert!(text.contains("hf:some/model:Q8_0@newer  llama "), "{text}");
    assert!(
        text.lines().any(|line| line.starts_with("hf:some/model ") && line.contains("unfinished")),
        "{text}"
    );
    let empty = Place::new(&Server::start(&[]));
    assert!(out(&empty.run(&["list"])).1.contains("the cache has no models"));
}

#[test]
fn only_what_nothing_else_uses_is_removed() {
    let (place, bytes) = two_revisions();
    let exists = |name: &str| place.hub.cached(&name.parse::<ModelName>().unwrap()).is_ok();
    // Nobody can be asked.
    let (code, _, told) = out(&place.run(&["rm", "some/model:Q8_0@newer"]));
    assert!(code == Some(2) && told.contains("--yes") && exists("some/model:Q8_0@newer"), "{told}");
    let (code, _, told) = out(&place.run(&["rm", "some/model:Q2_K", "--yes"]));
    assert!(code == Some(1) && told.contains("not in the cache"), "{told}");

    // The other revision has the same bytes.
    let (code, _, told) = out(&place.run(&["rm", "--yes", "hf:some/model:Q8_0@newer"]));
    let shared = if cfg!(unix) { "0 B are free again" } else { "free again" };
    assert!(code == Some(0) && told.contains(shared), "{told}");
    assert!(!exists("some/model:Q8_0@newer") && exists("some/model:Q8_0"));
    assert!(!place.repo().join("refs/newer").exists());

    let (_, _, told) = out(&place.run(&["rm", "-y", "some/model:q8_0"]));
    assert!(
        told.contains(&format!("{:.2} kB are free again", bytes.len() as f64 / 1e3)) || told.contains("kB"),
        "{told}"
    );
    assert!(!exists("some/model:Q8_0") && exists("some/model:Q4_0") && !place.has(&bytes));

    // All models of the repository; what is no model stays.
    assert_eq!(out(&place.run(&["rm", "-y", "some/model"])).0, Some(0));
    let config = place.repo().join("snapshots").join(COMMIT).join("config.json");
    assert!(config.exists() && place.hub.list().expect("a list").0.is_empty());
    assert_eq!(fs::read_dir(place.repo().join("blobs")).expect("a folder").count(), 0);

    // Where nothing is left the repository's folder goes.
    let bytes = model();
    let place = Place::new(&Server::start(&[("m.gguf", bytes.clone())]));
    place.pull("some/model").expect("a model");
    place.leave(&place.incomplete(b"x"), b"part");
    let locked =
        File::create(place.dir.path().join(format!(".locks/models--some--model/{}.lock", sha256(b"x"))));
    locked.as_ref().expect("a lock").lock().expect("it is free");
    let (code, _, told) = out(&place.run(&["rm", "-y", "some/model"]));
    assert!(code == Some(1) && told.contains("another process"), "{told}");
    drop(locked);
    assert_eq!(out(&place.run(&["rm", "-y", "some/model"])).0, Some(0));
    assert!(!place.repo().exists());
}

/// Newer tools of the hub keep a file once for all repositories: it goes with the last link to it.
#[cfg(unix)]
#[test]
fn bytes_that_repositories_share_stay_for_the_others() {
    use std::os::unix::fs::symlink;
    let bytes = model();
    let place = Place::new(&Server::start(&[]));
    let (cache, hash) = (place.dir.path(), sha256(&bytes));
    let payload = cache.join("blobs").join(&hash[..2]).join(&hash);
    place.leave(&cache.join("blobs/.huggingface-shared-blobs"), b"1\n");
    place.leave(&payload, &bytes);
    place.leave(&payload.with_extension("refs"), b"models--some--model/blobs/x\n");
    for repo in ["models--some--model", "models--some--copy"] {
        let repo = cache.join(repo);
        place.leave(&repo.join("refs/main"), COMMIT.as_bytes());
        fs::create_dir_all(repo.join("blobs")).expect("a folder");
        fs::create_dir_all(repo.join("snapshots").join(COMMIT)).expect("a folder");
        symlink(format!("../../blobs/{}/{hash}", &hash[..2]), repo.join("blobs").join(&hash))
            .expect("a link");
        let pointer = repo.join("snapshots").join(COMMIT).join("m.gguf");
        symlink(format!("../../blobs/{hash}"), pointer).expect("a link");
    }
    assert_eq!(place.hub.list().expect("a list").0.len(), 2);
    let remove = |name: &str| {
        let removal = place.hub.removal(&name.parse().unwrap()).expect("a model");
        let freed = removal.bytes();
        removal.remove().expect("it goes");
        freed
    };
    assert_eq!(remove("some/copy"), 0);
    assert!(payload.exists() && !cache.join("models--some--copy").exists());
    assert_eq!(remove("some/model"), bytes.len() as u64);
    assert!(!payload.exists() && !payload.with_extension("refs").exists());
}

/// At a terminal `rm` asks, and only yes is yes.
#[cfg(unix)]
#[test]
fn removing_is_asked_for() {
    use portable_pty::{CommandBuilder, PtySize, native_pty_system};
    use std::io::{Read, Write};
    let bytes = model();
    let place = Place::new(&Server::start(&[("m.gguf", bytes.clone())]));
    place.pull("some/model").expect("a model");
    for (answer, code) in [("n\n", 1), ("\n", 1), ("y\n", 0)] {
        let pty = native_pty_system()
            .openpty(PtySize { rows: 20, cols: 200, ..PtySize::default() })
            .expect("a terminal");
        let mut command = CommandBuilder::new(env!("CARGO_BIN_EXE_wayinfer"));
        command.args(["rm", "some/model"]);
        command.env("HF_HUB_CACHE", place.dir.path());
        let mut child = pty.slave.spawn_command(command).expect("it starts");
        let mut reader = pty.master.try_clone_reader().expect("a reader");
        let mut writer = pty.master.take_writer().expect("a writer");
        let mut said = String::new();
        while !said.contains("[y/N] ") {
            let mut buffer = [0; 1024];
            let n = reader.read(&mut buffer).expect("a question");
            assert!(n > 0, "{said}");
            said += &String::from_utf8_lossy(&buffer[..n]);
        }
        writer.write_all(answer.as_bytes()).expect("it listens");
        assert_eq!(child.wait().expect("it ends").exit_code(), code, "{said}");
        assert!(said.contains("remove hf:some/model ("), "{said}");
        assert_eq!(place.blob(&bytes).exists(), code == 1);
    }
}

/// Headers so long that they come in pieces lie in a folder of their own meanwhile: Ctrl-C removes it,
/// whoever fetches, and what has come of the model stays.
#[cfg(unix)]
#[test]
fn an_interrupt_leaves_no_headers_behind() {
    let bytes = tiny_model().kv("general.long", vec![0i32; 3 << 20]).build();
    let first = 4 << 20;
    let server = Server::ruled(&[("m.gguf", bytes.clone())], move |request, fake| {
        // What follows the first piece never comes.
        let follows = request.is_cdn && request.range().is_some_and(|range| range.0 > 0);
        follows.then(|| {
            let length = fake.answer(request).body.len().to_string();
            let mut answer = fake.answer(request);
            answer.headers.push(("content-length".to_owned(), length));
            answer.body.clear();
            answer.stalls = true;
            answer
        })
    });
    let commands: [&[&str]; 3] = [
        &["pull", "some/model"],
        &["inspect", "hf:some/model"],
        &["generate", "-m", "hf:some/model", "-p", "a"],
    ];
    for args in commands {
        let place = Place::new(&server);
        let folders = || {
            let names = fs::read_dir(place.repo()).into_iter().flatten().flatten();
            names.filter(|entry| entry.file_name().to_string_lossy().starts_with(".wayinfer-")).count()
        };
        server.forget();
        let child = place.command(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let child = child.expect("it starts");
        while !server.ranges().iter().any(|range| range.0 == first) {
            std::thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(folders(), 1, "{args:?}: the canary: without them there is nothing to remove");
        // SAFETY: sends a signal to a child of this process that has not been waited for.
        assert_eq!(unsafe { libc::kill(child.id() as libc::pid_t, libc::SIGINT) }, 0);
        let (code, _, told) = out(&child.wait_with_output().expect("it ends"));
        assert!(code == Some(130) && told.contains("what has come stays"), "{args:?}: {told}");
        assert_eq!(folders(), 0, "{args:?}");
        assert_eq!(fs::read(place.incomplete(&bytes)).expect("what has come"), bytes[..first]);
    }
}

/// Ctrl-C leaves what has come, and the next run goes on from there.
#[cfg(unix)]
#[test]
fn an_interrupt_keeps_what_has_come() {
    let bytes = large(5);
    let slow = AtomicUsize::new(0);
    let first = (4 << 20) + 1000;
    let server = Server::ruled(&[("m.gguf", bytes.clone())], move |request, fake| {
        // The second request for bytes brings some and then none.
        if !request.is_cdn || slow.fetch_add(1, Ordering::SeqCst) != 1 {
            return None;
        }
        let mut answer = fake.answer(request);
        answer.headers.push(("content-length".to_owned(), answer.body.len().to_string()));
        answer.body.truncate(1000);
        answer.stalls = true;
        Some(answer)
    });
    let place = Place::new(&server);
    // A tensor that no model has.
    let args = ["pull", "some/model", "--anyway"];
    let child = place.command(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let child = child.expect("it starts");
    let partial = place.incomplete(&bytes);
    while fs::metadata(&partial).map_or(0, |found| found.len()) < first {
        std::thread::sleep(Duration::from_millis(5));
    }
    // SAFETY: sends a signal to a child of this process that has not been waited for.
    assert_eq!(unsafe { libc::kill(child.id() as libc::pid_t, libc::SIGINT) }, 0);
    let (code, _, told) = out(&child.wait_with_output().expect("it ends"));
    assert!(code == Some(130) && told.contains("what has come stays"), "{told}");
    assert_eq!(fs::read(&partial).expect("what has come"), bytes[..first as usize]);
    server.forget();
    assert_eq!(out(&place.run(&args)).0, Some(0));
    assert_eq!(server.ranges(), [(first as usize, bytes.len() - 1)]);
}
