//! `--show-config`: what holds, as a file of settings that would say the same, and where each is from.

use std::io::{self, Write};
use std::path::Path;

use clap::{Arg, Command};

use super::file::{ConfigFile, Written};
use super::keys;
use super::settle::Settled;
use crate::cli::CliError;
use crate::cli::safe_text::escape;

/// A key that is not shown.
const SECRET: &str = "is set, and not shown";

pub fn print(text: &str) -> Result<(), CliError> {
    io::stdout().lock().write_all(text.as_bytes())?;
    Ok(())
}

/// Which file was read.
pub fn head(path: Option<&Path>, beside: Option<&str>) -> String {
    let path = path.map(|path| escape(&path.display().to_string()).into_owned());
    match (path, beside) {
        (None, _) => "# no file of settings\n".to_owned(),
        (Some(path), None) => format!("# {path}\n"),
        (Some(path), Some(beside)) => format!("# {path}: {beside}\n"),
    }
}

/// All that a file sets.
pub fn file(file: &ConfigFile, command: &Command) -> String {
    let mut text = String::new();
    let mut table: &[String] = &[];
    let mut entries: Vec<_> = file.entries.iter().collect();
    entries.sort_by(|a, b| (&a.table, a.line).cmp(&(&b.table, b.line)));
    let leaves = keys::leaves(command);
    for entry in entries {
        if entry.table != table {
            table = &entry.table;
            text += &format!("\n[{}]\n", table.join("."));
        }
        let secret = leaves
            .iter()
            .flat_map(|(_, leaf)| keys::of(leaf))
            .any(|arg| arg.get_long() == Some(&entry.key) && arg.is_hide_env_values_set());
        let value = match &entry.value {
            Written::Flag(on) => on.to_string(),
            Written::One(text) => value(text),
            Written::Many(texts) => list(texts.iter().map(String::as_str)),
        };
        text += &match secret {
            true => format!("# {}: {SECRET}  # line {}\n", entry.key, entry.line),
            false => format!("{} = {value}  # line {}\n", entry.key, entry.line),
        };
    }
    text
}

/// The table of a subcommand.
pub fn table(leaf: &Command, path: &[String], settled: &Settled) -> String {
    let mut text = format!("[{}]\n", path.join("."));
    for arg in leaf.get_positionals() {
        let id = arg.get_id().as_str();
        if let Some(values) = settled.matches.get_raw(id).filter(|_| settled.typed.iter().any(|it| it == id))
        {
            let name = arg.get_value_names().and_then(|names| names.first()).map_or(id, |name| name.as_str());
            let values: Vec<_> = values.map(|text| value(&text.to_string_lossy())).collect();
            text += &format!("# {name}: {}  # typed\n", values.join(" "));
        }
    }
    for arg in keys::of(leaf) {
        text += &line(arg, settled);
    }
    text
}

fn line(arg: &Arg, settled: &Settled) -> String {
    let (id, key) = (arg.get_id().as_str(), arg.get_long().unwrap_or_default());
    let set = settled.settings.iter().find(|setting| setting.id == id);
    let is_typed = settled.typed.iter().any(|it| it == id);
    let from = match set {
        _ if is_typed => "typed".to_owned(),
        Some(setting) => escape(&setting.place.to_string()).into_owned(),
        None => "default".to_owned(),
    };
    if arg.is_hide_env_values_set() {
        let set = if from == "default" { "not set" } else { SECRET };
        return format!("# {key}: {set}  # {from}\n");
    }
    if !arg.get_action().takes_values() {
        return format!("{key} = {}  # {from}\n", settled.matches.get_flag(id));
    }
    let values: Vec<String> =
        settled.matches.get_raw(id).into_iter().flatten().map(|v| v.to_string_lossy().into_owned()).collect();
    match (&*values, arg.get_action()) {
        ([], _) => match default_in_help(arg) {
            Some(default) => format!("# {key}: {default}  # default\n"),
            None => format!("# {key}: not set\n"),
        },
        (texts, clap::ArgAction::Append) => {
            format!("{key} = {}  # {from}\n", list(texts.iter().map(String::as_str)))
        }
        ([text, ..], _) => format!("{key} = {}  # {from}\n", value(text)),
    }
}

/// What the help says holds where nothing is set.
fn default_in_help(arg: &Arg) -> Option<String> {
    let help = arg.get_long_help().or(arg.get_help())?.to_string();
    let (_, rest) = help.split_once("[default: ")?;
    let (default, _) = rest.split_once(']')?;
    Some(escape(&default.split_whitespace().collect::<Vec<_>>().join(" ")).into_owned())
}

fn list<'t>(texts: impl Iterator<Item = &'t str>) -> String {
    format!("[{}]", texts.map(value).collect::<Vec<_>>().join(", "))
}

/// A value as TOML: a number as it is, else a text in quotes.
fn value(text: &str) -> String {
    let digits = text.strip_prefix('-').unwrap_or(text);
    let (whole, part) = digits.split_once('.').unwrap_or((digits, "0"));
    let all = |part: &str| (1..=15).contains(&part.len()) && part.bytes().all(|byte| byte.is_ascii_digit());
    if all(whole) && all(part) && (whole == "0" || !whole.starts_with('0')) {
        return text.to_owned();
    }
    let mut quoted = String::from('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            // What would turn the terminal is written as TOML writes it.
            c if escape(c.encode_utf8(&mut [0; 4])) != *c.encode_utf8(&mut [0; 4]) => {
                quoted += &format!("\\U{:08x}", c as u32);
            }
            c => quoted.push(c),
        }
    }
    quoted + "\""
}
