//! The file of settings: TOML, a key a flag, for all subcommands or in the table of one.

use std::any::TypeId;
use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use clap::{Arg, ArgAction, Command};
use etcetera::BaseStrategy;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::OWN;
use super::keys::{self, Common, near};
use super::settle::{Place, Setting, Value};
use crate::cli::{CliError, InFile};

/// Bytes of a file of settings at most.
const MAX_BYTES: u64 = 1 << 20;

/// A file that has been read and checked.
pub struct ConfigFile {
    pub path: PathBuf,
    pub entries: Vec<Entry>,
}

/// A key and its value.
pub struct Entry {
    /// The subcommand's, or empty above all tables.
    pub table: Vec<String>,
    /// A flag's long name.
    pub key: String,
    pub value: Written,
    pub line: usize,
}

/// A value as it stands there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Written {
    Flag(bool),
    One(String),
    Many(Vec<String>),
}

impl ConfigFile {
    /// Reads a file and holds it to the flags that there are.
    ///
    /// # Errors
    /// What is no regular file of at most 1 MiB, no TOML, or sets what is not there; by line and key.
    pub fn read(path: &Path, command: &Command) -> Result<ConfigFile, CliError> {
        let text = text(path).in_file(path)?;
        let entries = entries(&text, command).in_file(path)?;
        Ok(ConfigFile { path: path.to_owned(), entries })
    }

    /// Those entries that set a flag of this subcommand.
    pub fn settings<'f>(
        &'f self,
        leaf: &'f Command,
        wanted: impl Fn(&Entry) -> bool + 'f,
    ) -> impl Iterator<Item = Setting> + 'f {
        self.entries.iter().filter(move |entry| wanted(entry)).filter_map(move |entry| {
            let arg = keys::of(leaf).find(|arg| arg.get_long() == Some(&entry.key))?;
            let place = Place::File { path: self.path.clone(), line: entry.line, table: entry.table.clone() };
            let value = match &entry.value {
                Written::Flag(on) => Value::Flag(*on),
                Written::One(text) => Value::Texts(vec![at_home(arg, text)]),
                Written::Many(texts) => Value::Texts(texts.iter().map(|text| at_home(arg, text)).collect()),
            };
            Some(Setting::new(arg, value, place))
        })
    }
}

/// A path with `~` in it as a shell would have it; any other value as it is.
fn at_home(arg: &Arg, text: &str) -> OsString {
    let is_path = arg.get_value_parser().type_id() == TypeId::of::<PathBuf>();
    let below = text.strip_prefix("~/").filter(|_| is_path);
    let home = || Some(etcetera::choose_base_strategy().ok()?.home_dir().to_owned());
    below.and_then(|below| Some(home()?.join(below).into_os_string())).unwrap_or_else(|| text.into())
}

fn text(path: &Path) -> Result<String, CliError> {
    let failed = |error: std::io::Error| CliError::new(format!("cannot be read: {error}"));
    // To open a pipe would wait for who writes to it.
    if !path.metadata().map_err(failed)?.is_file() {
        return Err(CliError::new("is no regular file"));
    }
    let mut bytes = Vec::new();
    File::open(path).and_then(|file| file.take(MAX_BYTES + 1).read_to_end(&mut bytes)).map_err(failed)?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(CliError::new(format!("has over {MAX_BYTES} bytes")));
    }
    String::from_utf8(bytes).map_err(|error| {
        let whole = error.utf8_error().valid_up_to();
        CliError::new(format!("line {}: not UTF-8", line(error.as_bytes(), whole)))
    })
}

/// The line of a place, from 1.
fn line(text: &[u8], at: usize) -> usize {
    1 + text[..at.min(text.len())].iter().filter(|&&byte| byte == b'\n').count()
}

fn entries(text: &str, command: &Command) -> Result<Vec<Entry>, CliError> {
    let whole = DeTable::parse(text).map_err(|error| {
        let at = error.span().map_or(0, |span| span.start);
        CliError::new(format!("line {}: {}", line(text.as_bytes(), at), error.message()))
    })?;
    let mut reader = Reader { text, common: Common::of(command), entries: Vec::new() };
    reader.table(whole.get_ref(), &mut Vec::new(), command)?;
    // In the order in which they stand there.
    reader.entries.sort_by_key(|entry| entry.line);
    Ok(reader.entries)
}

struct Reader<'t> {
    text: &'t str,
    common: Common,
    entries: Vec<Entry>,
}

impl Reader<'_> {
    fn table(
        &mut self,
        table: &DeTable<'_>,
        path: &mut Vec<String>,
        command: &Command,
    ) -> Result<(), CliError> {
        for (key, value) in table {
            let line = line(self.text.as_bytes(), key.span().start);
            let wrong = |what: String| CliError::new(format!("line {line}: {what}"));
            let name = key.get_ref().as_ref();
            if let DeValue::Table(below) = value.get_ref() {
                let subs = || command.get_subcommands().filter(|sub| !sub.is_hide_set());
                let Some(sub) = subs().find(|sub| sub.get_name() == name) else {
                    let error = wrong(format!("[{}]: there is no such subcommand", dotted(path, name)));
                    return Err(match near(name, subs().map(Command::get_name)) {
                        Some(near) => error.hint(format!("there is [{}]", dotted(path, near))),
                        None => error,
                    });
                };
                path.push(name.to_owned());
                self.table(below, path, sub)?;
                path.pop();
                continue;
            }
            // In flags there are dashes; who writes programs writes underscores.
            let flag = name.replace('_', "-");
            let arg = self.known(&flag, path, command).map_err(|(what, hint)| {
                let error = wrong(format!("{}: {what}", dotted(path, name)));
                if let Some(hint) = hint { error.hint(hint) } else { error }
            })?;
            let value =
                written(value, arg).map_err(|what| wrong(format!("{}: {what}", dotted(path, name))))?;
            let same = |entry: &&Entry| entry.key == flag && entry.table == *path;
            if let Some(other) = self.entries.iter().find(same) {
                return Err(wrong(format!("{}: set in line {} as well", dotted(path, name), other.line)));
            }
            self.entries.push(Entry { table: path.clone(), key: flag, value, line });
        }
        Ok(())
    }

    /// The flag of a key; above all tables that of any subcommand.
    fn known<'c>(
        &self,
        key: &str,
        path: &[String],
        command: &'c Command,
    ) -> Result<&'c Arg, (String, Option<String>)> {
        if OWN.iter().any(|own| own.replace('_', "-") == key) {
            return Err(("stands on the command line alone".to_owned(), None));
        }
        if !path.is_empty() {
            return keys::of(command).find(|arg| arg.get_long() == Some(key)).ok_or_else(|| {
                let hint = match self.common.subcommands(key) {
                    [] => near(key, keys::of(command).filter_map(Arg::get_long))
                        .map(|near| format!("there is {near}")),
                    others => Some(format!("{} has it", others.join(", "))),
                };
                (format!("{} has no such flag", path.join(" ")), hint)
            });
        }
        if let Some(apart) = self.common.apart(key) {
            let tables: Vec<String> =
                apart.iter().map(|sub| format!("[{}]", sub.replace(' ', "."))).collect();
            let hint = format!("set it in the tables: {}", tables.join(", "));
            return Err(("means something else to each subcommand that has it".to_owned(), Some(hint)));
        }
        let mut all = keys::leaves(command).into_iter().flat_map(|(_, leaf)| keys::of(leaf));
        let found = all.find(|arg| self.common.knows(key) && self.common.holds(key, arg));
        found.ok_or_else(|| {
            let hint = near(key, self.common.names()).map(|near| format!("there is {near}"));
            ("there is no such flag".to_owned(), hint)
        })
    }
}

fn dotted(path: &[String], name: &str) -> String {
    // A name may be of any length.
    let name: String = name.chars().take(100).collect();
    path.iter().map(String::as_str).chain([&*name]).collect::<Vec<_>>().join(".")
}

/// The value, where it is of the kind that the flag takes.
fn written(value: &Spanned<DeValue<'_>>, arg: &Arg) -> Result<Written, String> {
    let value = value.get_ref();
    if !arg.get_action().takes_values() {
        let on = value.as_bool().ok_or_else(|| format!("true or false is needed, not {}", kind(value)))?;
        return Ok(Written::Flag(on));
    }
    match value {
        DeValue::Array(_) if !matches!(arg.get_action(), ArgAction::Append) => {
            Err("it is set once: an array is too much".to_owned())
        }
        DeValue::Array(values) => {
            values.iter().map(|value| scalar(value.get_ref())).collect::<Result<_, _>>().map(Written::Many)
        }
        value => scalar(value).map(Written::One),
    }
}

fn scalar(value: &DeValue<'_>) -> Result<String, String> {
    match value {
        DeValue::String(text) => Ok(text.clone().into_owned()),
        DeValue::Integer(number) if number.radix() == 10 => Ok(number.as_str().to_owned()),
        DeValue::Integer(number) => u64::from_str_radix(number.as_str(), number.radix())
            .map(|number| number.to_string())
            .map_err(|_| "the number has over 64 bits".to_owned()),
        DeValue::Float(number) => Ok(number.as_str().to_owned()),
        other => Err(format!("a text or a number is needed, not {}", kind(other))),
    }
}

fn kind(value: &DeValue<'_>) -> &'static str {
    match value {
        DeValue::String(_) => "a text",
        DeValue::Integer(_) | DeValue::Float(_) => "a number",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a time",
        DeValue::Array(_) => "an array",
        DeValue::Table(_) => "a table",
    }
}
