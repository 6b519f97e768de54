//! Where the hub and its cache are, by the variables that the hub's own tools heed.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::HubError;

const ENDPOINT: &str = "https://huggingface.co";

const PAUSE: Duration = Duration::from_millis(500);

/// Most bytes of a token.
const MAX_TOKEN: usize = 4096;

/// See [`Settings::from_env`].
#[derive(Clone)]
pub struct Settings {
    /// The folder of the repositories.
    pub cache: PathBuf,
    /// The hub's address, without a slash at its end.
    pub endpoint: String,
    /// What the user is known by.
    pub token: Option<String>,
    /// Whether no connection may be opened.
    pub offline: bool,
    /// The first pause between two tries; each further one is twice as long.
    pub pause: Duration,
}

/// Without the token, which no message is to show.
impl std::fmt::Debug for Settings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Settings { cache, endpoint, token, offline, .. } = self;
        let has_token = token.is_some();
        write!(f, "Settings {{ {cache:?}, {endpoint:?}, token: {has_token}, offline: {offline} }}")
    }
}

impl Settings {
    /// `HF_HUB_CACHE`, else `hub` below `HF_HOME`, else below `huggingface` of `XDG_CACHE_HOME` or
    /// `~/.cache`; `HF_ENDPOINT`; `HF_TOKEN`, else the file that `HF_TOKEN_PATH` names or `token` below `HF_HOME`;
    /// `HF_HUB_OFFLINE`.
    ///
    /// # Errors
    /// A variable that makes no sense, or no home folder.
    pub fn from_env() -> Result<Settings, HubError> {
        let home = etcetera::home_dir().ok();
        Settings::read(&|name| std::env::var_os(name), home.as_deref())
    }

    fn read(variable: &dyn Fn(&str) -> Option<OsString>, home: Option<&Path>) -> Result<Settings, HubError> {
        let set = |name: &str| variable(name).filter(|value| !value.is_empty());
        let path = |name: &str| set(name).map(|value| below_home(PathBuf::from(value), home));
        let hf_home = match (path("HF_HOME"), path("XDG_CACHE_HOME"), home) {
            (Some(folder), _, _) => Some(folder),
            (None, Some(cache), _) => Some(cache.join("huggingface")),
            (None, None, home) => home.map(|home| home.join(".cache").join("huggingface")),
        };
        let cache = path("HF_HUB_CACHE").or_else(|| path("HUGGINGFACE_HUB_CACHE"));
        let cache = cache.or_else(|| hf_home.as_ref().map(|folder| folder.join("hub")));
        let is_set = |name: &str| {
            let value = set(name).map(|value| value.to_string_lossy().to_ascii_uppercase());
            value.is_some_and(|value| ["1", "ON", "YES", "TRUE"].contains(&value.as_str()))
        };
        let token = match set("HF_TOKEN") {
            Some(token) => token.into_string().map(Some).map_err(|_| token_fault("HF_TOKEN".into()))?,
            None => {
                let file = path("HF_TOKEN_PATH").or_else(|| Some(hf_home.as_ref()?.join("token")));
                file.map(|file| read_token(&file)).transpose()?.flatten()
            }
        };
        let token = token.map(|token| token.trim().to_owned()).filter(|token| !token.is_empty());
        let is_sound =
            |token: &String| token.bytes().all(|b| b.is_ascii_graphic()) && token.len() <= MAX_TOKEN;
        if token.as_ref().is_some_and(|token| !is_sound(token)) {
            return Err(token_fault("the hub's token".to_owned()));
        }
        let endpoint =
            set("HF_ENDPOINT").map_or_else(|| ENDPOINT.into(), |url| url.to_string_lossy().into_owned());
        let endpoint = endpoint.trim_end_matches('/').to_owned();
        if !endpoint.starts_with("https://") && !endpoint.starts_with("http://") {
            let why = "it is no address that begins with https:// or http://";
            return Err(HubError::Setting { name: "HF_ENDPOINT".to_owned(), why });
        }
        let cache = cache.ok_or(HubError::NoHome)?;
        Ok(Settings { cache, endpoint, token, offline: is_set("HF_HUB_OFFLINE"), pause: PAUSE })
    }
}

fn token_fault(name: String) -> HubError {
    HubError::Setting { name, why: "it is no token: those are letters, digits and signs of ASCII" }
}

/// `~/` is the home folder, where a variable's writer has left it to others to say so.
fn below_home(path: PathBuf, home: Option<&Path>) -> PathBuf {
    match (path.strip_prefix("~"), home) {
        (Ok(rest), Some(home)) => home.join(rest),
        _ => path,
    }
}

/// The token of a file, where there is one.
fn read_token(file: &Path) -> Result<Option<String>, HubError> {
    match std::fs::metadata(file) {
        Ok(found) if found.is_file() && found.len() <= MAX_TOKEN as u64 => {}
        Ok(_) => return Err(token_fault(file.display().to_string())),
        Err(_) => return Ok(None),
    }
    let text = std::fs::read_to_string(file).map_err(|error| HubError::io(file, error))?;
    Ok(Some(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(set: &[(&str, &str)]) -> Result<Settings, HubError> {
        let variable =
            |name: &str| set.iter().find(|(n, _)| *n == name).map(|(_, value)| OsString::from(value));
        Settings::read(&variable, Some(Path::new("/home/a")))
    }

    #[test]
    fn the_cache_is_where_the_hubs_own_tools_have_it() {
        for (set, cache) in [
            (&[][..], "/home/a/.cache/huggingface/hub"),
            (&[("XDG_CACHE_HOME", "/x")], "/x/huggingface/hub"),
            (&[("HF_HOME", "~/h"), ("XDG_CACHE_HOME", "/x")], "/home/a/h/hub"),
            (&[("HF_HUB_CACHE", "/c"), ("HF_HOME", "/h")], "/c"),
            (&[("HF_HUB_CACHE", ""), ("HF_HOME", "/h")], "/h/hub"),
        ] {
            assert_eq!(read(set).unwrap().cache, Path::new(cache), "{set:?}");
        }
        assert!(matches!(Settings::read(&|_| None, None), Err(HubError::NoHome)));
    }

    #[test]
    fn tokens_come_from_a_variable_or_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let home = dir.path().to_str().unwrap();
        std::fs::write(dir.path().join("token"), "hf_of_file\n").unwrap();
        let token = |set: &[(&str, &str)]| read(set).map(|settings| settings.token);
        assert_eq!(token(&[("HF_HOME", home)]).unwrap().as_deref(), Some("hf_of_file"));
        assert_eq!(token(&[("HF_HOME", home), ("HF_TOKEN", " hf_b ")]).unwrap().as_deref(), Some("hf_b"));
        assert_eq!(token(&[("HF_HOME", "/nowhere")]).unwrap(), None);
        for bad in ["a\nb: c", "a b", "é"] {
            assert!(matches!(token(&[("HF_TOKEN", bad)]), Err(HubError::Setting { .. })), "{bad:?}");
        }
        let shown = format!("{:?}", read(&[("HF_TOKEN", "hf_secret")]).unwrap());
        assert!(!shown.contains("secret"), "{shown}");
    }

    #[test]
    fn the_endpoint_is_an_address() {
        assert_eq!(read(&[("HF_ENDPOINT", "http://h:1/")]).unwrap().endpoint, "http://h:1");
        assert!(matches!(read(&[("HF_ENDPOINT", "ftp://h")]), Err(HubError::Setting { .. })));
        assert!(read(&[("HF_HUB_OFFLINE", "yes")]).unwrap().offline);
        assert!(!read(&[("HF_HUB_OFFLINE", "0")]).unwrap().offline);
    }
}
