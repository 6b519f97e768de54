//! Lines of a batch, a request or an answer each: <https://platform.openai.com/docs/api-reference/batch>.

use serde::de::IgnoredAny;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::super::MAX_BODY;
use super::super::error::{ApiError, ErrorKind};
use super::super::many::{Answered, Asked};
use super::error_value;

/// Where requests of a batch may go.
pub const PATHS: [&str; 4] = ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"];

/// Bytes that a line of a request may have beside its body.
const AROUND: usize = 64 << 10;
/// Bytes of the longest line that is looked into.
pub const MAX_LINE: usize = MAX_BODY + AROUND;

/// What all lines of answers begin with.
const BEGINNING: &str = "{\"id\":\"batch_req_";

#[derive(Deserialize)]
struct Named {
    custom_id: String,
}

#[derive(Deserialize)]
struct Request<'l> {
    method: Option<String>,
    url: String,
    #[serde(borrow)]
    body: &'l RawValue,
}

#[derive(Deserialize)]
struct Streams {
    stream: Option<bool>,
}

/// Fields of a line, which is an object.
fn fields<'l, T: Deserialize<'l>>(line: &'l [u8]) -> Result<T, String> {
    // A list of values in this order would be taken for an object, too.
    match line.trim_ascii_start().first() {
        Some(b'{') => serde_json::from_slice(line).map_err(|error| error.to_string()),
        _ => Err("it is no JSON object".to_owned()),
    }
}

/// The name that a request is told apart by.
///
/// # Errors
/// Why the line has none.
pub fn custom_id(line: &[u8]) -> Result<String, String> {
    if line.len() > MAX_LINE {
        return Err(format!("it is longer than {MAX_LINE} bytes"));
    }
    let Named { custom_id } = fields(line)?;
    match custom_id.is_empty() {
        true => Err("its custom_id is empty".to_owned()),
        false => Ok(custom_id),
    }
}

/// What a line asks for; where that is nothing that can be answered, the line that says so.
pub fn request(number: usize, custom_id: &str, line: &[u8]) -> Result<Asked, String> {
    read(number, line).map_err(|error| {
        let body = error_value(&error).to_string().into_bytes();
        answer(custom_id, &Answered { number, status: error.kind.status().as_u16(), body })
    })
}

fn read(number: usize, line: &[u8]) -> Result<Asked, ApiError> {
    let wrong = |what| ApiError::new(ErrorKind::Invalid, format!("the line of the batch: {what}"));
    let Request { method, url, body } = fields(line).map_err(wrong)?;
    if let Some(method) = method.filter(|method| method != "POST") {
        return Err(ApiError::unsupported("method", format!("{method:?} is not POST")));
    }
    if !PATHS.contains(&&*url) {
        let known = PATHS.join(", ");
        return Err(ApiError::unsupported("url", format!("{url:?} is not known here: {known} are")));
    }
    let body = body.get();
    // Whatever else is wrong with a body is the dialect's to tell.
    if serde_json::from_str(body).is_ok_and(|Streams { stream }| stream == Some(true)) {
        return Err(ApiError::unsupported("stream", "answers of a batch come whole"));
    }
    Ok(Asked { number, path: url, body: body.as_bytes().to_vec() })
}

#[derive(Serialize)]
struct Line<'a> {
    id: String,
    custom_id: &'a str,
    response: Response<'a>,
    error: Option<()>,
}

#[derive(Serialize)]
struct Response<'a> {
    status_code: u16,
    request_id: String,
    body: &'a RawValue,
}

/// The line of an answer, be it an error too, with its end.
pub fn answer(custom_id: &str, answered: &Answered) -> String {
    let name = &blake3::hash(custom_id.as_bytes()).to_hex()[..24];
    let said = std::str::from_utf8(&answered.body).ok().map(str::trim).filter(|said| !said.contains('\n'));
    let (status_code, body) = match said.and_then(|said| serde_json::from_str::<&RawValue>(said).ok()) {
        Some(body) => (answered.status, body.to_owned()),
        None => {
            let body = error_value(&ApiError::internal("the answer is no JSON")).to_string();
            (500, RawValue::from_string(body).expect("what was made here is JSON"))
        }
    };
    let response = Response { status_code, request_id: format!("req_{name}"), body: &body };
    let line = Line { id: format!("batch_req_{name}"), custom_id, response, error: None };
    let text = serde_json::to_string(&line).expect("names and numbers have a text");
    debug_assert!(text.starts_with(BEGINNING));
    text + "\n"
}

#[derive(Deserialize)]
struct Told {
    id: String,
    custom_id: String,
    #[serde(rename = "response")]
    _response: IgnoredAny,
}

/// Whose answer a whole line is; `None` where it is no answer of a batch.
pub fn answered(line: &[u8]) -> Option<String> {
    let Told { id, custom_id, .. } = fields(line).ok()?;
    id.starts_with("batch_req_").then_some(custom_id)
}

/// Whether a line without its end may be the beginning of an answer's.
pub fn is_torn(line: &[u8]) -> bool {
    let n = line.len().min(BEGINNING.len());
    line[..n] == BEGINNING.as_bytes()[..n]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong(line: &str) -> (u16, serde_json::Value) {
        let told = request(7, "a", line.as_bytes()).expect_err(line);
        assert_eq!(answered(told.as_bytes()).as_deref(), Some("a"), "{told}");
        assert!(told.ends_with('\n') && is_torn(told.as_bytes()));
        let told: serde_json::Value = serde_json::from_str(&told).expect("JSON");
        let response = &told["response"];
        (response["status_code"].as_u64().expect("a number") as u16, response["body"]["error"].clone())
    }

    #[test]
    fn names_stand_in_objects() {
        assert_eq!(custom_id(br#" {"body": [[[]]], "custom_id": "a\u00e4"} "#), Ok("a\u{e4}".to_owned()));
        for nameless in [
            "",
            "{",
            "[\"a\"]",
            "3",
            "{}",
            "{\"custom_id\": 3}",
            "{\"custom_id\": \"\"}",
            "{\"custom_id\": null}",
        ] {
            assert!(custom_id(nameless.as_bytes()).is_err(), "{nameless}");
        }
        assert!(custom_id(b"{\"custom_id\": \"\xff\"}").is_err());
        assert!(custom_id(br#"{"custom_id": "a", "custom_id": "b"}"#).is_err());
        // How deep a body is does not matter yet.
        let deep = format!(r#"{{"custom_id": "a", "body": {}{}}}"#, "[".repeat(9999), "]".repeat(9999));
        assert_eq!(custom_id(deep.as_bytes()), Ok("a".to_owned()));
        assert!(custom_id(" ".repeat(MAX_LINE + 1).as_bytes()).is_err());
    }

    #[test]
    fn requests_go_where_answers_are() {
        let line = r#"{"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"x": 1.50}}"#;
        let asked = request(7, "a", line.as_bytes()).expect("a request");
        assert_eq!((asked.number, &*asked.path, &*asked.body), (7, PATHS[1], &br#"{"x": 1.50}"#[..]));
        for (line, status, field) in [
            (r#"{"url": "/v1/completions"}"#, 400, None),
            (r#"{"body": {}}"#, 400, None),
            (r#"{"url": 3, "body": {}}"#, 400, None),
            (r#"{"url": "/v1/completions", "method": "GET", "body": {}}"#, 400, Some("method")),
            (r#"{"url": "/v1/embeddings", "body": {}}"#, 400, Some("url")),
            (r#"{"url": "http://x/v1/completions", "body": {}}"#, 400, Some("url")),
            (r#"{"url": "/v1/completions", "body": {"stream": true}}"#, 400, Some("stream")),
        ] {
            let (found, error) = wrong(line);
            assert_eq!((found, error["param"].as_str()), (status, field), "{line}: {error}");
            assert!(error["message"].as_str().is_some_and(|message| !message.is_empty()));
        }
    }

    #[test]
    fn answers_are_told_apart_from_other_lines() {
        let body = br#"{"n":0.10}"#.to_vec();
        let line = answer("a\n\"b\"", &Answered { number: 0, status: 200, body });
        assert!(line.contains(r#""body":{"n":0.10}"#) && line.matches('\n').count() == 1, "{line}");
        assert_eq!(answered(line.as_bytes()).as_deref(), Some("a\n\"b\""));
        for cut in 0..line.len() - 1 {
            let torn = &line.as_bytes()[..cut];
            assert!(is_torn(torn) && answered(torn).is_none(), "{cut}");
        }
        for other in ["hello", "{}", r#"{"id":"x","custom_id":"a","response":{}}"#, "{\"custom_id\""] {
            assert!(answered(other.as_bytes()).is_none() && (!is_torn(other.as_bytes())), "{other}");
        }
        let broken = Answered { number: 0, status: 200, body: b"data: x\n\n".to_vec() };
        assert!(answer("a", &broken).contains(r#""status_code":500"#));
    }
}
