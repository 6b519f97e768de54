//! A server of this machine that answers as the hub does, and one beside it as the hosts do that it sends to.
#![allow(dead_code)] // each test binary uses a part

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Request {
    /// Whether it came to the host that the hub sends to.
    pub is_cdn: bool,
    pub method: String,
    pub path: String,
    /// Lower-case names.
    pub headers: BTreeMap<String, String>,
}

impl Request {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    /// The first byte and the last one that are asked for.
    pub fn range(&self) -> Option<(usize, usize)> {
        let (first, last) = self.header("range")?.strip_prefix("bytes=")?.split_once('-')?;
        Some((first.parse().ok()?, last.parse().ok()?))
    }
}

/// An answer.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// The connection is cut after so many bytes of the body.
    pub cut: Option<usize>,
    /// After its body the connection stays open, in silence.
    pub stalls: bool,
}

impl Answer {
    pub fn of(status: u16, headers: &[(&str, &str)], body: impl Into<Vec<u8>>) -> Answer {
        let headers = headers.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
        Answer { status, headers, body: body.into(), ..Answer::default() }
    }
}

/// What a test puts in the place of an answer.
type Rule = Box<dyn Fn(&Request, &FakeHub) -> Option<Answer> + Send + Sync>;

/// The hub's state.
pub struct FakeHub {
    /// A repository's files by path.
    pub files: BTreeMap<String, Vec<u8>>,
    pub rule: Option<Rule>,
    /// Where the two are, without a path.
    pub hub: String,
    pub cdn: String,
}

/// Both servers; they end with the process.
#[derive(Clone)]
pub struct Server {
    pub hub: String,
    requests: Arc<Mutex<Vec<Request>>>,
}

pub fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

impl FakeHub {
    /// What the hub says of the repository.
    pub fn listing(&self) -> Value {
        let sibling = |(path, bytes): (&String, &Vec<u8>)| {
            json!({
                "rfilename": path, "size": bytes.len(), "blobId": "b".repeat(40),
                "lfs": { "sha256": sha256(bytes), "size": bytes.len(), "pointerSize": 134 },
            })
        };
        let siblings: Vec<_> = self.files.iter().map(sibling).collect();
        json!({ "id": "some/model", "sha": COMMIT, "private": false, "siblings": siblings, "tags": ["gguf"] })
    }

    /// The answer of the hub, or of the host that it sends to, where no rule says another.
    pub fn answer(&self, request: &Request) -> Answer {
        if request.is_cdn {
            let wanted = request.path.trim_start_matches("/blob/");
            let Some(bytes) = self.files.values().find(|bytes| sha256(bytes) == wanted) else {
                return Answer::of(403, &[], "");
            };
            return self.ranged(request, bytes);
        }
        if request.path.starts_with("/api/models/some/model/revision/") {
            return Answer::of(200, &[("content-type", "application/json")], self.listing().to_string());
        }
        let file = request.path.strip_prefix("/some/model/resolve/").and_then(|path| path.split_once('/'));
        let Some((_, bytes)) = file.and_then(|(_, file)| self.files.get_key_value(&file.replace("%20", " ")))
        else {
            return Answer::of(404, &[("x-error-code", "RepoNotFound")], "");
        };
        let (etag, size) = (format!("\"{}\"", sha256(bytes)), bytes.len().to_string());
        let location = format!("{}/blob/{}", self.cdn, sha256(bytes));
        let headers = [
            ("location", &*location),
            ("x-linked-etag", &etag),
            ("x-linked-size", &size),
            ("x-repo-commit", COMMIT),
        ];
        Answer::of(302, &headers, "")
    }

    /// The part of a file that is asked for.
    pub fn ranged(&self, request: &Request, bytes: &[u8]) -> Answer {
        let Some((first, last)) = request.range() else { return Answer::of(200, &[], bytes) };
        if first >= bytes.len() {
            return Answer::of(416, &[("content-range", &format!("bytes */{}", bytes.len()))], "");
        }
        let last = last.min(bytes.len() - 1);
        let range = format!("bytes {first}-{last}/{}", bytes.len());
        Answer::of(206, &[("content-range", &range)], &bytes[first..=last])
    }
}

impl Server {
    /// Starts with these files of `some/model`.
    pub fn start(files: &[(&str, Vec<u8>)]) -> Server {
        Server::with_rule(files, None)
    }

    /// The same; what the rule answers goes before.
    pub fn ruled(
        files: &[(&str, Vec<u8>)],
        rule: impl Fn(&Request, &FakeHub) -> Option<Answer> + Send + Sync + 'static,
    ) -> Server {
        Server::with_rule(files, Some(Box::new(rule)))
    }

    fn with_rule(files: &[(&str, Vec<u8>)], rule: Option<Rule>) -> Server {
        let listen = || TcpListener::bind("127.0.0.1:0").expect("a port");
        let (hub, cdn) = (listen(), listen());
        let at = |listener: &TcpListener| format!("http://{}", listener.local_addr().expect("an address"));
        let fake = Arc::new(FakeHub {
            files: files.iter().map(|(path, bytes)| (path.to_string(), bytes.clone())).collect(),
            rule,
            hub: at(&hub),
            cdn: at(&cdn),
        });
        let server = Server { hub: at(&hub), requests: Arc::default() };
        for (listener, is_cdn) in [(hub, false), (cdn, true)] {
            let (fake, requests) = (Arc::clone(&fake), Arc::clone(&server.requests));
            std::thread::spawn(move || {
                for stream in listener.incoming().flatten() {
                    let (fake, requests) = (Arc::clone(&fake), Arc::clone(&requests));
                    // A client that goes away is none of its business.
                    std::thread::spawn(move || serve(stream, is_cdn, &fake, &requests));
                }
            });
        }
        server
    }

    /// All requests so far.
    pub fn requests(&self) -> Vec<Request> {
        self.requests.lock().expect("no panic").clone()
    }

    /// The ranges that were asked for of files so far.
    pub fn ranges(&self) -> Vec<(usize, usize)> {
        self.requests().iter().filter(|request| request.is_cdn).filter_map(Request::range).collect()
    }

    /// Forgets the requests so far.
    pub fn forget(&self) {
        self.requests.lock().expect("no panic").clear();
    }
}

fn serve(stream: TcpStream, is_cdn: bool, fake: &FakeHub, requests: &Mutex<Vec<Request>>) -> Option<()> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    let mut line = || {
        let mut line = String::new();
        (&mut reader).take(1 << 16).read_line(&mut line).ok()?;
        Some(line.trim_end().to_owned())
    };
    let first = line()?;
    let mut words = first.split(' ');
    let (method, path) = (words.next()?.to_owned(), words.next()?.to_owned());
    let mut headers = BTreeMap::new();
    while let Some((name, value)) =
        line()?.split_once(": ").map(|(n, v)| (n.to_ascii_lowercase(), v.to_owned()))
    {
        headers.insert(name, value);
    }
    let request = Request { is_cdn, method, path, headers };
    requests.lock().ok()?.push(request.clone());
    let ruled = fake.rule.as_ref().and_then(|rule| rule(&request, fake));
    let answer = ruled.unwrap_or_else(|| fake.answer(&request));
    let mut head = format!("HTTP/1.1 {} Said\r\nconnection: close\r\n", answer.status);
    for (name, value) in &answer.headers {
        head += &format!("{name}: {value}\r\n");
    }
    if !answer.headers.iter().any(|(name, _)| name == "content-length") {
        head += &format!("content-length: {}\r\n", answer.body.len());
    }
    let mut stream = stream;
    stream.write_all(format!("{head}\r\n").as_bytes()).ok()?;
    let body = if request.method == "HEAD" { &[][..] } else { &answer.body };
    stream.write_all(&body[..answer.cut.unwrap_or(body.len()).min(body.len())]).ok()?;
    if !answer.stalls {
        stream.shutdown(Shutdown::Write).ok()?;
    }
    // What is not read would make the other end lose what it has not read yet.
    let _ = std::io::copy(&mut stream, &mut std::io::sink());
    Some(())
}
