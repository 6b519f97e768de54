//! Who may ask: keys, and the names that the server is asked under.

use std::net::IpAddr;

use axum::http::header::{AUTHORIZATION, HOST, ORIGIN};
use axum::http::{HeaderMap, Uri};
use subtle::ConstantTimeEq;

use super::error::{ApiError, ErrorKind};

/// Where a key may stand beside `Authorization: Bearer`.
const KEY_HEADER: &str = "x-api-key";

/// What is asked of requests.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// Any of these keys; none: everybody may.
    pub keys: Vec<String>,
    /// Names beside addresses and `localhost` by which the server may be asked.
    pub hosts: Vec<String>,
}

impl Access {
    /// Whether a request comes with a key, where one is needed.
    ///
    /// # Errors
    /// Where it does not.
    pub fn check_key(&self, headers: &HeaderMap) -> Result<(), ApiError> {
        if self.keys.is_empty() {
            return Ok(());
        }
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let bearer = text(AUTHORIZATION.as_str()).and_then(|value| {
            let (scheme, key) = value.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then_some(key.trim())
        });
        let given = [bearer, text(KEY_HEADER)];
        // All are compared, each in a time that does not tell how much of it is right.
        let right = given.iter().flatten().fold(false, |right, given| {
            let same = |key: &String| bool::from(key.as_bytes().ct_eq(given.as_bytes()));
            self.keys.iter().fold(right, |right, key| right | same(key))
        });
        match right {
            true => Ok(()),
            false => Err(ApiError::new(
                ErrorKind::Unauthorized,
                "a key is needed: Authorization: Bearer KEY, or X-Api-Key: KEY",
            )),
        }
    }

    /// Whether the name that a request asks for is one of the server's: a page of somebody else's, whose name
    /// leads here, asks for its own.
    ///
    /// # Errors
    /// Where it is another's.
    pub fn check_host(&self, uri: &Uri, headers: &HeaderMap) -> Result<(), ApiError> {
        let header = headers.get(HOST).and_then(|host| host.to_str().ok());
        let Some(host) = uri.host().map(str::to_owned).or_else(|| header.and_then(host_of)) else {
            return Err(ApiError::new(ErrorKind::Invalid, "the request names no host"));
        };
        match self.is_own(&host) {
            true => Ok(()),
            false => Err(ApiError::new(
                ErrorKind::Forbidden,
                format!("this server is not {host:?}; --allow-host gives it more names"),
            )),
        }
    }

    /// Whether it is a page of this server, or none, that has a browser ask: another's could not read the
    /// answer, but have it made. Programs that are no pages have origins of their own schemes, or none.
    ///
    /// # Errors
    /// Where it is another's page.
    pub fn check_origin(&self, headers: &HeaderMap) -> Result<(), ApiError> {
        let Some(origin) = headers.get(ORIGIN) else { return Ok(()) };
        let uri = origin.to_str().ok().and_then(|text| text.parse::<Uri>().ok());
        let of_a_page =
            uri.as_ref().is_none_or(|uri| matches!(uri.scheme_str(), Some("http" | "https") | None));
        let own = uri.as_ref().and_then(Uri::host).is_some_and(|host| self.is_own(host));
        // Pages whose origin is hidden send `null`.
        match of_a_page && !own {
            false => Ok(()),
            true => {
                Err(ApiError::new(ErrorKind::Forbidden, "pages of other origins may not ask this server"))
            }
        }
    }

    /// Whether a host is this machine: by an address, or by a name that it has.
    fn is_own(&self, host: &str) -> bool {
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let name = bare.trim_end_matches('.');
        bare.parse::<IpAddr>().is_ok()
            || name.eq_ignore_ascii_case("localhost")
            || name.to_ascii_lowercase().ends_with(".localhost")
            || self.hosts.iter().any(|host| host.eq_ignore_ascii_case(name))
    }
}

/// The name in a `Host` header, without the port.
fn host_of(header: &str) -> Option<String> {
    let authority: axum::http::uri::Authority = header.parse().ok()?;
    Some(authority.host().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()))
            .collect::<HeaderMap>()
    }

    #[test]
    fn a_key_is_asked_for_where_there_is_one() {
        let open = Access::default();
        assert!(open.check_key(&headers(&[])).is_ok());
        let closed = Access { keys: vec!["first".into(), "second".into()], ..Access::default() };
        for right in
            [("authorization", "Bearer second"), ("authorization", "bearer  first"), ("x-api-key", "first")]
        {
            assert!(closed.check_key(&headers(&[right])).is_ok(), "{right:?}");
        }
        for wrong in [
            ("authorization", "Basic first"),
            ("authorization", "first"),
            ("x-api-key", "firs"),
            ("x-api-key", ""),
        ] {
            let error = closed.check_key(&headers(&[wrong])).unwrap_err();
            assert_eq!(error.kind, ErrorKind::Unauthorized, "{wrong:?}");
        }
        assert!(closed.check_key(&headers(&[])).is_err());
        assert!(
            closed.check_key(&headers(&[("x-api-key", "no"), ("authorization", "Bearer first")])).is_ok()
        );
    }

    #[test]
    fn only_its_own_names_lead_here() {
        let access = Access { hosts: vec!["llm.example".into()], ..Access::default() };
        let check = |host: &str| access.check_host(&"/".parse().unwrap(), &headers(&[("host", host)]));
        for right in [
            "localhost",
            "LOCALHOST:8080",
            "127.0.0.1:8080",
            "[::1]:8080",
            "192.168.1.5",
            "LLM.example:1",
            "a.localhost",
        ] {
            assert!(check(right).is_ok(), "{right}");
        }
        for wrong in
            ["evil.example", "localhost.evil.example:8080", "127.0.0.1.evil.example", "llm.example.evil", ""]
        {
            assert!(check(wrong).is_err(), "{wrong}");
        }
        assert!(access.check_host(&"/".parse().unwrap(), &headers(&[])).is_err());
        assert!(
            access
                .check_host(&"http://evil.example/".parse().unwrap(), &headers(&[("host", "localhost")]))
                .is_err()
        );
    }

    #[test]
    fn pages_of_others_may_not_ask() {
        let access = Access { hosts: vec!["llm.example".into()], ..Access::default() };
        let check = |origin: &str| access.check_origin(&headers(&[("origin", origin)]));
        assert!(access.check_origin(&headers(&[])).is_ok());
        for right in [
            "http://127.0.0.1:8080",
            "http://localhost:3000",
            "https://llm.example",
            "http://[::1]:8080",
            "app://notes",
        ] {
            assert!(check(right).is_ok(), "{right}");
        }
        for wrong in ["https://evil.example", "http://localhost.evil.example:8080", "null", ""] {
            assert!(check(wrong).is_err(), "{wrong}");
        }
    }
}
