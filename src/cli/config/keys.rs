//! What can be set: the long flags of the subcommands, read off their definitions.

use std::collections::{BTreeMap, BTreeSet};

use clap::{Arg, Command};

use super::OWN;

/// The flags of a subcommand that can be set.
pub fn of(command: &Command) -> impl Iterator<Item = &Arg> {
    let own = |arg: &&Arg| OWN.contains(&arg.get_id().as_str());
    let parsers = |arg: &&Arg| matches!(arg.get_id().as_str(), "help" | "version");
    command.get_arguments().filter(move |arg| arg.get_long().is_some() && !own(arg) && !parsers(arg))
}

/// The subcommand at the end of a path; the program itself at the end of an empty one.
pub fn leaf<'c>(command: &'c Command, path: &[String]) -> &'c Command {
    path.iter().fold(command, |command, name| command.find_subcommand(name).unwrap_or(command))
}

/// All subcommands that are shown, with their paths.
pub fn leaves(command: &Command) -> Vec<(Vec<String>, &Command)> {
    let mut found = Vec::new();
    for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set() && sub.get_name() != "help") {
        let path = || vec![sub.get_name().to_owned()];
        found.push((path(), sub));
        for (rest, below) in leaves(sub) {
            found.push((path().into_iter().chain(rest).collect(), below));
        }
    }
    found
}

/// What a flag takes: the same name with another of these is another setting.
type Meaning = Option<String>;

fn meaning(arg: &Arg) -> Meaning {
    let named = || arg.get_value_names().and_then(|names| names.first()).map(ToString::to_string);
    arg.get_action().takes_values().then(|| named().unwrap_or_default())
}

/// What a key means that stands above all tables.
pub struct Common(BTreeMap<String, Meant>);

#[derive(Default)]
struct Meant {
    all: BTreeSet<Meaning>,
    /// Where a variable of the environment sets it: that one is meant.
    of_environment: Option<Meaning>,
    subcommands: Vec<String>,
}

impl Common {
    pub fn of(command: &Command) -> Common {
        let mut keys: BTreeMap<String, Meant> = BTreeMap::new();
        for (path, leaf) in leaves(command) {
            for arg in of(leaf) {
                let meant = keys.entry(arg.get_long().unwrap_or_default().to_owned()).or_default();
                meant.all.insert(meaning(arg));
                meant.subcommands.push(path.join(" "));
                if arg.get_env().is_some() {
                    meant.of_environment = Some(meaning(arg));
                }
            }
        }
        Common(keys)
    }

    /// Whether the key is this flag's.
    pub fn holds(&self, key: &str, arg: &Arg) -> bool {
        let Some(meant) = self.0.get(key).filter(|_| arg.get_long() == Some(key)) else { return false };
        match &meant.of_environment {
            Some(common) => *common == meaning(arg),
            None => meant.all.len() == 1,
        }
    }

    /// A flag of this name.
    pub fn knows(&self, key: &str) -> bool {
        self.0.contains_key(key)
    }

    /// The subcommands that have it, where it means something else in each.
    pub fn apart(&self, key: &str) -> Option<&[String]> {
        let meant = self.0.get(key)?;
        (meant.all.len() > 1 && meant.of_environment.is_none()).then_some(&*meant.subcommands)
    }

    /// The subcommands that have it.
    pub fn subcommands(&self, key: &str) -> &[String] {
        self.0.get(key).map_or(&[], |meant| &meant.subcommands)
    }

    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }
}

/// The name that is nearest to what was written, where one is near.
pub fn near<'n>(written: &str, names: impl Iterator<Item = &'n str>) -> Option<&'n str> {
    // A name that was written at such a length is no slip of the hand.
    const LONGEST: usize = 64;
    if written.len() > LONGEST {
        return None;
    }
    let all = names.map(|name| (distance(written, name), name));
    all.filter(|(far, name)| *far <= 1 + name.len() / 4).min().map(|(_, name)| name)
}

/// Letters to insert, leave out or replace (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.bytes().enumerate() {
            let cost = (diagonal + usize::from(x != y)).min(row[j] + 1).min(row[j + 1] + 1);
            diagonal = std::mem::replace(&mut row[j + 1], cost);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances() {
        let cases = [("", "abc", 3), ("abc", "abc", 0), ("thread", "threads", 1), ("kitten", "sitting", 3)];
        for (a, b, far) in cases {
            assert_eq!((distance(a, b), distance(b, a)), (far, far));
        }
        assert_eq!(near("thread", ["temp", "threads"].into_iter()), Some("threads"));
        assert_eq!(near("colour", ["temp", "threads"].into_iter()), None);
    }
}
