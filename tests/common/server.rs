//! A server at work, and a small HTTP client that can misbehave as well.
#![allow(dead_code)] // each test binary uses a part

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// How long anything may take before a test fails.
const PATIENCE: Duration = Duration::from_secs(120);

/// `wayinfer serve` on a free port of the loopback. Killed when dropped.
pub struct Server {
    child: Child,
    pub port: u16,
    log: Arc<Mutex<String>>,
    /// Reads what it tells, until it has ended.
    listener: Option<JoinHandle<()>>,
}

/// The program told to serve, its outputs piped.
pub fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_wayinfer"));
    command.arg("serve").args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.env_remove("RUST_BACKTRACE").env("WAYINFER_NO_CONFIG", "1");
    command
}

impl Server {
    /// A server with these arguments, once it listens.
    pub fn start(args: &[&str]) -> Server {
        Server::spawn(command(&[&["--port", "0"], args].concat()))
    }

    /// What a command starts, once it listens.
    pub fn spawn(mut command: Command) -> Server {
        let mut child = command.spawn().expect("the program starts");
        let mut stderr = BufReader::new(child.stderr.take().expect("a pipe"));
        let log = Arc::new(Mutex::new(String::new()));
        let port = loop {
            let mut line = String::new();
            if stderr.read_line(&mut line).expect("what it tells") == 0 {
                let _ = child.kill();
                panic!("{command:?}: it has ended: {}", log.lock().unwrap());
            }
            log.lock().unwrap().push_str(&line);
            if let Some(address) = line.trim_end().strip_prefix("listening on http://") {
                break address.rsplit(':').next().and_then(|port| port.parse().ok()).expect("a port");
            }
        };
        let told = Arc::clone(&log);
        let listener = std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                told.lock().unwrap().push_str(&format!("{line}\n"));
            }
        });
        Server { child, port, log, listener: Some(listener) }
    }

    /// One that serves a file.
    pub fn of(model: &Path, args: &[&str]) -> Server {
        Server::start(&[&[model.to_str().expect("UTF-8")], args].concat())
    }

    /// One that serves the demo.
    pub fn demo(args: &[&str]) -> Server {
        Server::start(&[&["-m", "demo"], args].concat())
    }

    /// What it has told on stderr so far.
    pub fn log(&self) -> String {
        self.log.lock().unwrap().clone()
    }

    pub fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).expect("it listens");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        stream.set_write_timeout(Some(PATIENCE)).expect("a timeout");
        stream
    }

    /// Sends bytes as they are and reads the reply.
    pub fn raw(&self, request: &[u8]) -> Reply {
        let mut stream = self.connect();
        stream.write_all(request).expect("it takes the request");
        Reply::read(&mut BufReader::new(stream)).expect("a reply")
    }

    /// A request with headers of one's own, each with its end of line.
    pub fn request(&self, method: &str, path: &str, headers: &str, body: &[u8]) -> Reply {
        self.raw(&head(method, path, headers, body))
    }

    pub fn get(&self, path: &str) -> Reply {
        self.request("GET", path, "", b"")
    }

    pub fn post(&self, path: &str, body: &Value) -> Reply {
        self.request("POST", path, "", body.to_string().as_bytes())
    }

    /// What a request is answered with, which has to be well.
    pub fn ask(&self, path: &str, body: &Value) -> Value {
        let reply = self.post(path, body);
        assert_eq!(reply.status, 200, "{body}: {}", reply.text());
        reply.json()
    }

    /// A request whose answer comes piece by piece.
    pub fn stream(&self, path: &str, body: &Value) -> Events {
        let mut stream = self.connect();
        stream.write_all(&head("POST", path, "", body.to_string().as_bytes())).expect("it takes the request");
        let mut reader = BufReader::new(stream);
        let (status, headers) = read_head(&mut reader).expect("a reply");
        assert_eq!(status, 200, "{body}");
        assert_eq!(find(&headers, "content-type"), Some("text/event-stream"));
        Events { reader: BufReader::new(Chunks { reader, left: 0, over: false }) }
    }

    /// All pieces of such an answer; it ends as it should.
    pub fn pieces(&self, path: &str, body: &Value) -> Vec<Value> {
        let mut body = body.clone();
        body["stream"] = json!(true);
        let mut all: Vec<String> = self.stream(path, &body).collect();
        assert_eq!(all.pop().as_deref(), Some("[DONE]"), "{body}: {all:?}");
        all.iter().map(|piece| serde_json::from_str(piece).expect("JSON")).collect()
    }

    /// The answer to `What is 2+2?`: the server is well.
    pub fn is_well(&self) {
        let body = json!({ "messages": [{ "role": "user", "content": "What is 2+2?" }], "temperature": 0 });
        let answer = self.ask("/v1/chat/completions", &body);
        assert_eq!(answer["choices"][0]["message"]["content"], "The sum of 2 and 2 is 4.");
    }

    /// Waits until a figure of `/metrics`, summed over the models, is what it has to be.
    pub fn until(&self, figure: &str, is: impl Fn(f64) -> bool) {
        let began = Instant::now();
        loop {
            let metrics = self.get("/metrics").text();
            let named = |line: &&str| line.strip_prefix(figure).is_some_and(|rest| rest.starts_with('{'));
            let values =
                metrics.lines().filter(named).filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
            let value: f64 = values.sum();
            if is(value) {
                return;
            }
            assert!(began.elapsed() < PATIENCE, "{figure} stays {value}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits until it has taken on so many requests since it started, those that are over included.
    pub fn has_taken_on(&self, count: u32) {
        self.until("wayinfer_requests_total", |taken| taken >= f64::from(count));
    }

    /// Its process.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// What SIGTERM does.
    #[cfg(unix)]
    pub fn terminate(&self) {
        // SAFETY: sends a signal to a child of this process that has not been waited for.
        assert_eq!(unsafe { libc::kill(self.id() as libc::pid_t, libc::SIGTERM) }, 0);
    }

    /// Its exit code, once it has ended and all that it told is in the log.
    pub fn wait(&mut self) -> Option<i32> {
        let began = Instant::now();
        while began.elapsed() < PATIENCE {
            if let Some(status) = self.child.try_wait().expect("a child") {
                if let Some(listener) = self.listener.take() {
                    listener.join().expect("it reads on");
                }
                return status.code();
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("it does not end: {}", self.log());
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A request on a connection that ends with it.
pub fn head(method: &str, path: &str, headers: &str, body: &[u8]) -> Vec<u8> {
    let host = if headers.to_ascii_lowercase().contains("host:") { "" } else { "Host: localhost\r\n" };
    let length = body.len();
    let head = format!(
        "{method} {path} HTTP/1.1\r\n{host}{headers}Content-Length: {length}\r\nConnection: close\r\n\r\n"
    );
    [head.as_bytes(), body].concat()
}

/// A reply that has come whole.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Reply {
    pub fn read(reader: &mut impl BufRead) -> io::Result<Reply> {
        let (status, headers) = read_head(reader)?;
        let mut body = Vec::new();
        match find(&headers, "content-length").and_then(|length| length.parse().ok()) {
            Some(length) => {
                body.resize(length, 0);
                reader.read_exact(&mut body)?;
            }
            None => {
                Chunks { reader, left: 0, over: false }.read_to_end(&mut body)?;
            }
        }
        Ok(Reply { status, headers, body })
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        find(&self.headers, name)
    }

    pub fn text(&self) -> String {
        String::from_utf8(self.body.clone()).expect("UTF-8")
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    /// The error that it tells of, which every reply that is not well does.
    pub fn error(&self) -> Value {
        assert!(self.status >= 400, "{}: {}", self.status, self.text());
        let error = self.json()["error"].clone();
        assert!(error["message"].as_str().is_some_and(|message| !message.is_empty()), "{}", self.text());
        assert!(error["type"].is_string(), "{}", self.text());
        error
    }
}

fn find<'a>(headers: &'a [(String, String)], name: &str) -> Option<&'a str> {
    headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
}

fn read_head(reader: &mut impl BufRead) -> io::Result<(u16, Vec<(String, String)>)> {
    let mut line = || -> io::Result<String> {
        let mut line = String::new();
        match reader.read_line(&mut line)? {
            0 => Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
            _ => Ok(line.trim_end().to_owned()),
        }
    };
    let first = line()?;
    let status = first.split(' ').nth(1).and_then(|status| status.parse().ok());
    let status = status.unwrap_or_else(|| panic!("no status: {first:?}"));
    let mut headers = Vec::new();
    loop {
        let line = line()?;
        let Some((name, value)) = line.split_once(':') else { return Ok((status, headers)) };
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
}

/// A body that comes in chunks.
struct Chunks<R> {
    reader: R,
    /// Bytes of the chunk that have not been read.
    left: usize,
    over: bool,
}

impl<R: BufRead> Read for Chunks<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 && !self.over {
            let mut line = String::new();
            self.reader.read_line(&mut line)?;
            let broken = |_| io::Error::new(io::ErrorKind::UnexpectedEof, format!("a chunk of {line:?}"));
            self.left = usize::from_str_radix(line.trim_end(), 16).map_err(broken)?;
            self.over = self.left == 0;
        }
        let most = self.left.min(buffer.len());
        let read = self.reader.read(&mut buffer[..most])?;
        self.left -= read;
        if self.left == 0 && (read > 0 || self.over) {
            self.reader.read_line(&mut String::new())?;
        }
        Ok(read)
    }
}

/// The data of server-sent events as they come.
pub struct Events {
    reader: BufReader<Chunks<BufReader<TcpStream>>>,
}

impl Iterator for Events {
    type Item = String;

    fn next(&mut self) -> Option<String> {
        loop {
            let mut line = String::new();
            if self.reader.read_line(&mut line).expect("an event") == 0 {
                return None;
            }
            if let Some(data) = line.trim_end().strip_prefix("data: ") {
                return Some(data.to_owned());
            }
            assert!(line.trim().is_empty(), "{line:?}");
        }
    }
}
