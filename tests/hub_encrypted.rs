//! Connections to the hub that are encrypted, and those through a proxy: a server of this machine with
//! certificates of its own. Where the system keeps trusted certificates elsewhere than in files, a test can
//! bring none.
#![cfg(target_os = "linux")]

#[path = "hub/certificates.rs"]
mod certificates;
mod common;
#[path = "hub/server.rs"]
mod server;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};

use certificates::{Authority, Ends};
use common::tiny::tiny_model;
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use server::{Answer, Server};
use tempfile::TempDir;

const TOKEN: &str = "hf_of_a_test";
/// A name that no resolver knows: who reaches it has gone through the proxy.
const HOST: &str = "hub.invalid";

/// A port where connections are answered, each by a thread.
fn listen(answer: impl Fn(TcpStream) -> Option<()> + Send + Sync + 'static) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let answer = Arc::new(answer);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let answer = Arc::clone(&answer);
            std::thread::spawn(move || answer(stream));
        }
    });
    port
}

/// The lines of a request's head, with its last, empty one.
fn head(reader: &mut impl BufRead) -> Option<String> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head).ok()? == 0 {
            return None;
        }
    }
    Some(head)
}

/// A hub that has one model and sends its bytes itself.
fn hub() -> Server {
    Server::ruled(&[("m-Q8_0.gguf", tiny_model().build())], |request, fake| {
        let is_file = request.path.starts_with("/some/model/resolve/");
        let file = || fake.files.values().next().expect("a file").clone();
        is_file.then(|| match request.range() {
            Some(_) => fake.ranged(request, &file()),
            None => Answer::of(200, &[], file()),
        })
    })
}

/// The port of what decrypts requests, hands them on to a hub, and encrypts its answers.
fn encrypted(hub: &Server, authority: &Authority, host: &str, ends: Ends) -> u16 {
    let (certificate, key) = authority.certify(host, ends);
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let config = config.expect("versions").with_no_client_auth().with_single_cert(vec![certificate], key);
    let config = Arc::new(config.expect("its key fits it"));
    let address = hub.hub.trim_start_matches("http://").to_owned();
    listen(move |stream| {
        let connection = ServerConnection::new(Arc::clone(&config)).ok()?;
        let mut stream = BufReader::new(StreamOwned::new(connection, stream));
        let request = head(&mut stream)?;
        let mut hub = TcpStream::connect(&address).ok()?;
        hub.write_all(request.as_bytes()).ok()?;
        let mut answer = Vec::new();
        hub.read_to_end(&mut answer).ok()?;
        let stream = stream.get_mut();
        stream.write_all(&answer).ok()?;
        stream.conn.send_close_notify();
        stream.flush().ok()
    })
}

/// What a proxy was asked for, and all that has gone through it.
#[derive(Clone, Default)]
struct Seen {
    requests: Arc<Mutex<Vec<String>>>,
    bytes: Arc<Mutex<Vec<u8>>>,
}

/// The port of a proxy by which every name leads to this one; or which wants to know who asks.
fn proxy(to: Option<u16>, seen: &Seen) -> u16 {
    let seen = seen.clone();
    listen(move |stream| {
        let mut reader = BufReader::new(stream.try_clone().ok()?);
        let request = head(&mut reader)?;
        seen.requests.lock().ok()?.push(request.lines().next()?.to_owned());
        let mut stream = stream;
        let Some(to) = to else {
            return stream.write_all(b"HTTP/1.1 407 Who are you\r\ncontent-length: 0\r\n\r\n").ok();
        };
        let target = TcpStream::connect(("127.0.0.1", to)).ok()?;
        stream.write_all(b"HTTP/1.1 200 Connected\r\n\r\n").ok()?;
        let pump = |mut from: TcpStream, mut to: TcpStream, seen: Seen| {
            let mut buffer = [0; 4096];
            while let Ok(n @ 1..) = from.read(&mut buffer) {
                seen.bytes.lock().expect("no panic").extend_from_slice(&buffer[..n]);
                if to.write_all(&buffer[..n]).is_err() {
                    break;
                }
            }
            let _ = to.shutdown(std::net::Shutdown::Write);
        };
        let (back, there, noted) = (target.try_clone().ok()?, stream.try_clone().ok()?, seen.clone());
        std::thread::spawn(move || pump(back, there, noted));
        pump(stream, target, seen.clone());
        Some(())
    })
}

/// A cache, and a file of certificates that are trusted.
struct Place {
    dir: TempDir,
}

impl Place {
    fn trusting(authority: &Authority) -> Place {
        let dir = TempDir::new().expect("a folder");
        std::fs::write(dir.path().join("trusted.pem"), authority.pem()).expect("a file");
        Place { dir }
    }

    fn pull(&self, endpoint: &str, variables: &[(&str, String)]) -> (Option<i32>, PathBuf, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_wayinfer"));
        for name in ["HF_HOME", "XDG_CACHE_HOME", "HF_TOKEN_PATH", "HF_HUB_OFFLINE", "SSL_CERT_DIR"] {
            command.env_remove(name);
        }
        for name in ["ALL_PROXY", "HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY"] {
            command.env_remove(name).env_remove(name.to_ascii_lowercase());
        }
        command.env("SSL_CERT_FILE", self.dir.path().join("trusted.pem"));
        command.env("HF_HUB_CACHE", self.dir.path().join("hub")).env("HF_TOKEN", TOKEN);
        command.env("HF_ENDPOINT", endpoint).env("WAYINFER_NO_CONFIG", "1");
        command.envs(variables.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).args(["pull", "some/model"]);
        let Output { status, stdout, stderr } = command.output().expect("the program starts");
        let path = String::from_utf8(stdout).expect("UTF-8");
        (status.code(), PathBuf::from(path.trim_end()), String::from_utf8(stderr).expect("UTF-8"))
    }
}

#[test]
fn an_encrypted_hub_is_asked_where_its_certificate_is_trusted() {
    let (hub, authority) = (hub(), Authority::new("Authority of a test"));
    let place = Place::trusting(&authority);
    let port = encrypted(&hub, &authority, "localhost", Ends::Later);
    let (code, path, told) = place.pull(&format!("https://localhost:{port}"), &[]);
    assert_eq!(code, Some(0), "{told}");
    assert_eq!(std::fs::read(path).expect("the model"), tiny_model().build());
    let bearer = format!("Bearer {TOKEN}");
    assert!(hub.requests().iter().all(|request| request.header("authorization") == Some(&*bearer)));
    assert!(hub.requests().len() >= 2, "the list and the file");
}

#[test]
fn wrong_certificates_are_refused() {
    let (hub, authority) = (hub(), Authority::new("Authority of a test"));
    // Of the same name, with another key.
    let other = Authority::new("Authority of a test");
    let place = Place::trusting(&authority);
    for (what, authority, host, ends) in [
        ("of an authority that is not trusted", &other, "localhost", Ends::Later),
        ("of another host", &authority, "elsewhere.invalid", Ends::Later),
        ("that has ended", &authority, "localhost", Ends::Before),
    ] {
        let port = encrypted(&hub, authority, host, ends);
        let (code, _, told) = place.pull(&format!("https://localhost:{port}"), &[]);
        assert_eq!(code, Some(1), "{what}: {told}");
        assert!(
            told.contains(&format!("localhost:{port}")) && told.contains("certificate"),
            "{what}: {told}"
        );
        assert!(told.contains("SSL_CERT_FILE"), "{what}: {told}");
        // It is not tried again: it stays wrong.
        assert!(!told.contains("again"), "{what}: {told}");
    }
    // A host that speaks without a cipher, where one is asked for.
    let plain = hub.hub.replace("http://127.0.0.1", "https://localhost");
    let (code, _, told) = place.pull(&plain, &[]);
    assert_eq!(code, Some(1), "{told}");
    let leaked = hub.requests().iter().any(|request| request.header("authorization").is_some());
    assert!(!leaked, "the token has gone to somebody else: {:?}", hub.requests());
}

#[test]
fn a_proxy_is_gone_through_and_reads_nothing() {
    let (hub, authority) = (hub(), Authority::new("Authority of a test"));
    let place = Place::trusting(&authority);
    let seen = Seen::default();
    let port = proxy(Some(encrypted(&hub, &authority, HOST, Ends::Later)), &seen);
    let proxy_at = |port: u16| [("HTTPS_PROXY", format!("http://127.0.0.1:{port}"))];
    let (code, path, told) = place.pull(&format!("https://{HOST}"), &proxy_at(port));
    assert_eq!(code, Some(0), "{told}");
    assert_eq!(std::fs::read(path).expect("the model"), tiny_model().build());
    let requests = seen.requests.lock().expect("no panic").clone();
    assert!(requests.len() >= 2 || hub.requests().len() >= 2, "{requests:?}");
    assert!(requests.iter().all(|line| line.starts_with(&format!("CONNECT {HOST}:443 "))), "{requests:?}");
    let bytes = seen.bytes.lock().expect("no panic").clone();
    assert!(bytes.len() > 1000 && !bytes.windows(TOKEN.len()).any(|part| part == TOKEN.as_bytes()));
    assert!(!bytes.windows(4).any(|part| part == b"GGUF"));

    // One that lets nobody through is told of by its answer.
    let place = Place::trusting(&authority);
    let strict = Seen::default();
    let (code, _, told) = place.pull(&format!("https://{HOST}"), &proxy_at(proxy(None, &strict)));
    assert_eq!(code, Some(1), "{told}");
    assert!(told.to_lowercase().contains("proxy"), "{told}");
    assert!(!strict.requests.lock().expect("no panic").is_empty());

    // Hosts that are to be reached without it are.
    let straight = encrypted(&hub, &authority, "localhost", Ends::Later);
    let variables = [proxy_at(port)[0].clone(), ("NO_PROXY", "localhost".to_owned())];
    let before = seen.requests.lock().expect("no panic").len();
    let (code, _, told) = place.pull(&format!("https://localhost:{straight}"), &variables);
    assert_eq!(code, Some(0), "{told}");
    assert_eq!(seen.requests.lock().expect("no panic").len(), before);
}
