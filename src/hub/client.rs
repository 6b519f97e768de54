//! The one place that opens connections: requests to the hub, and to where it sends on.
//!
//! The user's token goes to the hub's own address and nowhere else: what is fetched comes from other hosts,
//! to which the hub redirects with addresses that are signed.

use std::io::{self, Read};
use std::sync::Arc;
use std::time::Duration;

use rustls::crypto::ring;
use ureq::http::header::{
    AUTHORIZATION, CONTENT_LENGTH, CONTENT_RANGE, ETAG, HeaderMap, LOCATION, RANGE, RETRY_AFTER,
};
use ureq::http::{Response, StatusCode, Uri};
use ureq::tls::{RootCerts, TlsConfig, TlsProvider};
use ureq::{Agent, Body};

use super::HubError;
use super::name::RepoName;
use super::settings::Settings;

/// Until a connection stands; until an answer comes; without a byte of it.
const CONNECT: Duration = Duration::from_secs(15);
const SILENCE: Duration = Duration::from_secs(30);
const MAX_REDIRECTS: usize = 8;
/// Longest text of the hub that a message quotes, characters.
const MAX_MESSAGE: usize = 200;

/// Asks the hub.
pub struct Client {
    agent: Agent,
    endpoint: String,
    origin: Origin,
    token: Option<String>,
}

/// What a request is about, for what is wrong with it.
#[derive(Clone, Copy)]
pub struct Subject<'a> {
    pub repo: &'a RepoName,
    pub revision: &'a str,
    pub file: Option<&'a str>,
}

/// Whom a token is for.
#[derive(PartialEq, Eq)]
struct Origin {
    scheme: String,
    host: String,
    port: u16,
}

impl Origin {
    fn of(uri: &Uri) -> Option<Origin> {
        let scheme = uri.scheme_str()?.to_ascii_lowercase();
        let port = uri.port_u16().unwrap_or(if scheme == "https" { 443 } else { 80 });
        Some(Origin { scheme, host: uri.host()?.to_ascii_lowercase(), port })
    }
}

/// Bytes of a file, from `from` on.
pub struct Bytes {
    pub from: u64,
    /// Of the whole file, where the answer says it.
    pub total: Option<u64>,
    body: Box<dyn Read>,
    host: String,
}

impl Bytes {
    /// Reads on; 0 is the end, be it that of the file or not.
    ///
    /// # Errors
    /// A connection that breaks, or stays silent.
    pub fn read(&mut self, buffer: &mut [u8]) -> Result<usize, HubError> {
        self.body.read(buffer).map_err(|error| network(&self.host, ureq::Error::from(error)))
    }
}

/// What the hub says of a file.
pub struct Facts {
    pub bytes: Option<u64>,
    /// Its SHA-256, or that of git.
    pub etag: Option<String>,
}

impl Client {
    /// By settings.
    ///
    /// # Errors
    /// An address that is none.
    pub fn new(settings: &Settings) -> Result<Client, HubError> {
        let origin = settings.endpoint.parse().ok().as_ref().and_then(Origin::of);
        let fail = || HubError::Setting { name: "HF_ENDPOINT".to_owned(), why: "it is no address" };
        let origin = origin.ok_or_else(fail)?;
        // The system's certificates: those of a company's proxy are among them.
        let tls = TlsConfig::builder()
            .provider(TlsProvider::Rustls)
            .root_certs(RootCerts::PlatformVerifier)
            .unversioned_rustls_crypto_provider(Arc::new(ring::default_provider()))
            .build();
        let config = Agent::config_builder()
            .tls_config(tls)
            .http_status_as_error(false)
            .max_redirects(0)
            .user_agent(concat!("wayinfer/", env!("CARGO_PKG_VERSION")))
            .timeout_resolve(Some(CONNECT))
            .timeout_connect(Some(CONNECT))
            .timeout_send_request(Some(SILENCE))
            .timeout_recv_response(Some(SILENCE))
            .timeout_per_read(Some(SILENCE))
            .build();
        let (endpoint, token) = (settings.endpoint.clone(), settings.token.clone());
        Ok(Client { agent: config.new_agent(), endpoint, origin, token })
    }

    /// What the hub says of a revision of a repository, at most so many bytes of JSON.
    ///
    /// # Errors
    /// No answer, a refusal, or a longer one.
    pub fn listing(&self, subject: Subject<'_>, most: u64) -> Result<Vec<u8>, HubError> {
        let Subject { repo, revision, .. } = subject;
        let url = format!("{}/api/models/{repo}/revision/{}?blobs=true", self.endpoint, encode(revision));
        let (response, uri, _) = self.follow(&url, None, false)?;
        if response.status() != StatusCode::OK {
            return Err(self.refusal(subject, &response, &uri));
        }
        let (host, mut bytes) = (host(&uri), Vec::new());
        let body = response.into_body().into_reader();
        body.take(most + 1)
            .read_to_end(&mut bytes)
            .map_err(|error| network(&host, ureq::Error::from(error)))?;
        if bytes.len() as u64 > most {
            return Err(HubError::Answer { host, why: format!("more than {most} bytes of JSON") });
        }
        Ok(bytes)
    }

    /// What the hub says of a file, without its bytes.
    ///
    /// # Errors
    /// No answer or a refusal.
    pub fn facts(&self, subject: Subject<'_>) -> Result<Facts, HubError> {
        let (response, uri, facts) = self.follow(&self.file_url(subject), None, true)?;
        match response.status() {
            StatusCode::OK => Ok(facts),
            _ => Err(self.refusal(subject, &response, &uri)),
        }
    }

    /// A file's bytes from `from` up to `to`, or all where the host does not know ranges.
    ///
    /// # Errors
    /// No answer, a refusal, or one that is about other bytes.
    pub fn bytes(&self, subject: Subject<'_>, from: u64, to: u64) -> Result<Bytes, HubError> {
        let range = (from, to);
        let (response, uri, _) = self.follow(&self.file_url(subject), Some(range), false)?;
        let host = host(&uri);
        let (from, total) = match response.status() {
            StatusCode::PARTIAL_CONTENT => {
                let said = text(response.headers(), CONTENT_RANGE.as_str()).unwrap_or_default();
                let sound = content_range(&said).filter(|&(first, _)| first == from);
                let why = || format!("the range {said:?} where bytes from {from} on were asked for");
                sound.ok_or_else(|| HubError::Answer { host: host.clone(), why: why() })?
            }
            StatusCode::OK => (0, number(response.headers(), CONTENT_LENGTH.as_str())),
            _ => return Err(self.refusal(subject, &response, &uri)),
        };
        Ok(Bytes { from, total, body: Box::new(response.into_body().into_reader()), host })
    }

    fn file_url(&self, subject: Subject<'_>) -> String {
        let Subject { repo, revision, file } = subject;
        let file: Vec<_> = file.unwrap_or_default().split('/').map(encode).collect();
        format!("{}/{repo}/resolve/{}/{}", self.endpoint, encode(revision), file.join("/"))
    }

    /// Follows redirects to the end, and keeps what the hub says of a file on the way.
    fn follow(
        &self,
        url: &str,
        range: Option<(u64, u64)>,
        head: bool,
    ) -> Result<(Response<Body>, Uri, Facts), HubError> {
        let mut facts = Facts { bytes: None, etag: None };
        let mut uri = parse(url).ok_or_else(|| HubError::Setting {
            name: "HF_ENDPOINT".to_owned(),
            why: "it makes no address",
        })?;
        for _ in 0..MAX_REDIRECTS {
            let of_hub = Origin::of(&uri).is_some_and(|origin| origin == self.origin);
            let mut request = if head { self.agent.head(&uri) } else { self.agent.get(&uri) };
            if let (true, Some(token)) = (of_hub, &self.token) {
                request = request.header(AUTHORIZATION, format!("Bearer {token}"));
            }
            if let Some((from, to)) = range {
                request = request.header(RANGE, format!("bytes={from}-{}", to.saturating_sub(1)));
            }
            let response = request.call().map_err(|error| network(&host(&uri), error))?;
            if of_hub {
                facts.read(response.headers());
            }
            if !response.status().is_redirection() || response.status() == StatusCode::NOT_MODIFIED {
                return Ok((response, uri, facts));
            }
            let to = text(response.headers(), LOCATION.as_str()).unwrap_or_default();
            // What the hub knows of a file it says itself.
            if head && facts.is_whole() {
                return Ok((without_redirect(response), uri, facts));
            }
            uri = redirected(&uri, &to)
                .ok_or_else(|| HubError::Answer { host: host(&uri), why: format!("a redirect to {to:?}") })?;
        }
        Err(HubError::Answer { host: host(&uri), why: format!("more than {MAX_REDIRECTS} redirects") })
    }

    /// What a status other than success means.
    fn refusal(&self, subject: Subject<'_>, response: &Response<Body>, uri: &Uri) -> HubError {
        let (status, headers) = (response.status().as_u16(), response.headers());
        let message: String =
            text(headers, "x-error-message").unwrap_or_default().chars().take(MAX_MESSAGE).collect();
        let code = text(headers, "x-error-code").unwrap_or_default();
        let (repo, has_token) = (subject.repo.clone(), self.token.is_some());
        let of_hub = Origin::of(uri).is_some_and(|origin| origin == self.origin);
        match (of_hub, code.as_str(), status, subject.file) {
            (true, "GatedRepo", ..) => HubError::Gated { repo, has_token, message },
            (true, "RevisionNotFound", ..) => {
                HubError::NoRevision { repo, revision: subject.revision.to_owned() }
            }
            (true, "EntryNotFound", _, Some(file)) | (true, "", 404, Some(file)) => {
                HubError::NoFile { repo, file: file.to_owned() }
            }
            (true, "RepoNotFound", ..) | (true, "", 401 | 404, _) => {
                HubError::NoRepo { repo, has_token, message }
            }
            _ => {
                let retry_after = number(headers, RETRY_AFTER.as_str());
                HubError::Status { host: host(uri), status, message, retry_after }
            }
        }
    }
}

impl Facts {
    /// A file in large storage is told of by headers of its own; of others the plain ones are true where
    /// nothing redirects.
    fn read(&mut self, headers: &HeaderMap) {
        let unquoted = |text: String| text.trim_start_matches("W/").trim_matches('"').to_owned();
        if let Some(etag) = text(headers, "x-linked-etag").or_else(|| text(headers, ETAG.as_str())) {
            self.etag = Some(unquoted(etag));
        }
        let is_redirect = headers.contains_key(LOCATION);
        let plain = || number(headers, CONTENT_LENGTH.as_str()).filter(|_| !is_redirect);
        self.bytes = number(headers, "x-linked-size").or_else(plain).or(self.bytes);
    }

    fn is_whole(&self) -> bool {
        self.bytes.is_some() && self.etag.is_some()
    }
}

/// An answer that is used for its headers, whatever it redirects to.
fn without_redirect(mut response: Response<Body>) -> Response<Body> {
    *response.status_mut() = StatusCode::OK;
    response
}

fn parse(url: &str) -> Option<Uri> {
    url.parse::<Uri>()
        .ok()
        .filter(|uri| uri.host().is_some() && matches!(uri.scheme_str(), Some("http" | "https")))
}

/// Where an address redirects to; from an encrypted connection to no other.
fn redirected(from: &Uri, to: &str) -> Option<Uri> {
    let scheme = from.scheme_str()?;
    let uri = match to {
        to if to.starts_with("//") => parse(&format!("{scheme}:{to}"))?,
        to if to.starts_with('/') => parse(&format!("{scheme}://{}{to}", from.authority()?))?,
        to => parse(to)?,
    };
    (scheme != "https" || uri.scheme_str() == Some("https")).then_some(uri)
}

fn host(uri: &Uri) -> String {
    uri.authority().map_or_else(String::new, |authority| {
        // What stands before an @ may be a secret.
        authority.as_str().rsplit('@').next().unwrap_or_default().to_owned()
    })
}

fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    headers.get(name).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
}

fn number(headers: &HeaderMap, name: &str) -> Option<u64> {
    text(headers, name)?.trim().parse().ok()
}

/// The first byte of `bytes 100-199/1000`, and all bytes where they are said.
fn content_range(text: &str) -> Option<(u64, Option<u64>)> {
    let (range, total) = text.trim().strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last) = (first.parse::<u64>().ok()?, last.parse::<u64>().ok()?);
    let total = if total == "*" { None } else { Some(total.parse::<u64>().ok()?) };
    (first <= last && total.is_none_or(|total| last < total)).then_some((first, total))
}

/// A part of an address: all that is not plain in it as `%20`.
fn encode(part: &str) -> String {
    let mut out = String::with_capacity(part.len());
    for byte in part.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(char::from(byte)),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

fn network(host: &str, error: ureq::Error) -> HubError {
    let (why, is_transient) = match error {
        // What is wrong with a certificate comes as bytes that make no sense.
        ureq::Error::Io(error) => (error.to_string(), error.kind() != io::ErrorKind::InvalidData),
        ureq::Error::Timeout(_) => ("no answer in time".to_owned(), true),
        ureq::Error::HostNotFound => ("no such host is known: is there a network?".to_owned(), true),
        error @ (ureq::Error::ConnectionFailed | ureq::Error::BodyStalled) => (error.to_string(), true),
        error => (error.to_string(), false),
    };
    HubError::Network { host: host.to_owned(), why, is_transient }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_lead_to_addresses_alone() {
        let from = |from: &str, to: &str| redirected(&from.parse().unwrap(), to).map(|uri| uri.to_string());
        assert_eq!(from("https://a/b/c", "/d?e").as_deref(), Some("https://a/d?e"));
        assert_eq!(from("https://a:1/b", "//c/d").as_deref(), Some("https://c/d"));
        assert_eq!(from("http://a/b", "https://c/d").as_deref(), Some("https://c/d"));
        for to in ["http://c/d", "ftp://c/d", "file:///etc/passwd", "d", "", "https://"] {
            assert_eq!(from("https://a/b", to), None, "{to}");
        }
    }

    #[test]
    fn ranges_are_read() {
        assert_eq!(content_range("bytes 5-9/100"), Some((5, Some(100))));
        assert_eq!(content_range("bytes 5-9/*"), Some((5, None)));
        for text in ["", "bytes 9-5/100", "bytes 5-100/100", "items 5-9/100", "bytes */100", "bytes 5-9"] {
            assert_eq!(content_range(text), None, "{text}");
        }
    }

    #[test]
    fn parts_of_addresses_are_encoded() {
        assert_eq!(encode("refs/pr/1"), "refs%2Fpr%2F1");
        assert_eq!(encode("a b%?#é"), "a%20b%25%3F%23%C3%A9");
    }

    /// A port or a scheme of its own is another origin; a token is not for it.
    #[test]
    fn origins_are_told_apart() {
        let of = |url: &str| Origin::of(&url.parse().unwrap()).unwrap();
        assert!(of("https://Hub.co/a") == of("https://hub.co:443/b"));
        for other in ["http://hub.co", "https://hub.co:444", "https://cdn.hub.co", "https://hub.co.evil"] {
            assert!(of("https://hub.co") != of(other), "{other}");
        }
    }
}
