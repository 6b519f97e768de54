//! The commands of a conversation.

use std::path::PathBuf;

/// A line that begins with a slash.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Command {
    Help,
    /// Another system message, an empty one being none; or the question for the one there is.
    System(Option<String>),
    Regenerate,
    Edit,
    Undo,
    Clear,
    /// Takes away the oldest exchange.
    Drop,
    /// Whether a file that is there may be replaced, and the file.
    Save(bool, PathBuf),
    Load(PathBuf),
    /// Name and value; none: what is set.
    Set(Option<(String, String)>),
    Show,
    Stats,
    /// A file whose text is the next message.
    Read(PathBuf),
    Exit,
}

/// Names, arguments and what they do.
pub const HELP: &[(&str, &str)] = &[
    ("/help", "this list"),
    ("/system [TEXT]", "show or replace the system message (\"\": none)"),
    ("/regen", "answer the last message again"),
    ("/edit", "change the last message in $EDITOR and ask again"),
    ("/undo", "take back the last message and its answer"),
    ("/drop", "take away the oldest message and its answer"),
    ("/clear", "begin anew; the system message stays"),
    ("/save FILE", "write the conversation as JSON lines (/save! replaces a file)"),
    ("/load FILE", "go on with a conversation that was saved"),
    ("/set [NAME VALUE]", "temp, top-k, top-p, min-p, repeat-penalty, seed, max-tokens, ctx, on-full"),
    ("/show", "the conversation so far"),
    ("/stats", "what the last answer cost, and the context in use"),
    ("/read FILE", "send the text of a file as a message"),
    ("/exit", "leave (as Ctrl-D does)"),
];

/// What is typed beside them.
pub const KEYS: &str = "Ctrl-C stops an answer, clears a line, leaves on an empty one; Ctrl-D leaves\n\
    a line that ends with a backslash goes on, as a text between \"\"\" does; Alt-Enter begins another line\n\
    two slashes begin a message with one";

impl Command {
    /// The command of a line; `None`: it is a message. Two slashes begin a message with one.
    ///
    /// # Errors
    /// What is wrong with a command.
    pub fn parse(line: &str) -> Result<Option<Command>, String> {
        let Some(line) = line.trim().strip_prefix('/').filter(|rest| !rest.starts_with('/')) else {
            return Ok(None);
        };
        let (name, rest) = line.split_once(char::is_whitespace).unwrap_or((line, ""));
        let rest = rest.trim();
        let file = || match rest {
            "" => Err(format!("/{name} needs a file")),
            file => Ok(path(file)),
        };
        let command = match name {
            "system" if rest == "\"\"" => Command::System(Some(String::new())),
            "system" => Command::System((!rest.is_empty()).then(|| rest.to_owned())),
            "save" => Command::Save(false, file()?),
            "save!" => Command::Save(true, file()?),
            "load" => Command::Load(file()?),
            "read" => Command::Read(file()?),
            "set" if rest.is_empty() => Command::Set(None),
            "set" => match rest.split_once(char::is_whitespace) {
                Some((name, value)) => Command::Set(Some((name.to_owned(), value.trim().to_owned()))),
                None => return Err(format!("/set {rest} needs a value")),
            },
            _ => {
                let command = Command::bare(name).ok_or_else(|| {
                    format!("/{name} is no command; /help lists them, // begins a message with a slash")
                })?;
                if !rest.is_empty() {
                    return Err(format!("/{name} takes nothing"));
                }
                command
            }
        };
        Ok(Some(command))
    }

    /// A command without arguments.
    fn bare(name: &str) -> Option<Command> {
        Some(match name {
            "help" | "?" => Command::Help,
            "regen" => Command::Regenerate,
            "edit" => Command::Edit,
            "undo" => Command::Undo,
            "clear" => Command::Clear,
            "drop" => Command::Drop,
            "show" => Command::Show,
            "stats" => Command::Stats,
            "exit" | "quit" | "bye" => Command::Exit,
            _ => return None,
        })
    }
}

/// A file as a shell would name it: without quotes around it, `~/` being the user's folder.
fn path(text: &str) -> PathBuf {
    let inner = |quote| text.strip_prefix(quote)?.strip_suffix(quote).filter(|inner| !inner.is_empty());
    if let Some(quoted) = inner('"').or_else(|| inner('\'')) {
        return PathBuf::from(quoted);
    }
    match (text.strip_prefix("~/"), etcetera::home_dir()) {
        (Some(rest), Ok(home)) => home.join(rest),
        _ => PathBuf::from(text),
    }
}

/// A message as it was meant: without the second of two slashes at its beginning.
pub fn message(line: &str) -> &str {
    if line.trim_start().starts_with("//") { &line.trim_start()[1..] } else { line }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_commands_or_messages() {
        let parsed = |line: &str| Command::parse(line).unwrap();
        assert_eq!(parsed("hello /help"), None);
        assert_eq!(parsed("//help is text"), None);
        assert_eq!(message("//help is text"), "/help is text");
        assert_eq!(message(" a"), " a");
        assert_eq!(parsed(" /help "), Some(Command::Help));
        assert_eq!(parsed("/system"), Some(Command::System(None)));
        assert_eq!(parsed("/system be  brief"), Some(Command::System(Some("be  brief".to_owned()))));
        assert_eq!(parsed("/system \"\""), Some(Command::System(Some(String::new()))));
        assert_eq!(parsed("/save a b.jsonl"), Some(Command::Save(false, "a b.jsonl".into())));
        assert_eq!(parsed("/save! 'a b'"), Some(Command::Save(true, "a b".into())));
        let home = etcetera::home_dir().unwrap();
        assert_eq!(parsed("/load ~/a"), Some(Command::Load(home.join("a"))));
        assert_eq!(parsed("/read \""), Some(Command::Read("\"".into())));
        assert_eq!(parsed("/set temp  0.5"), Some(Command::Set(Some(("temp".to_owned(), "0.5".to_owned())))));
        for wrong in ["/hlep", "/save", "/regen now", "/set temp", "/"] {
            assert!(Command::parse(wrong).is_err(), "{wrong}");
        }
    }

    /// Every command that is listed is known.
    #[test]
    fn help_lists_what_there_is() {
        for (usage, _) in HELP {
            let line = usage.replace("[TEXT]", "a").replace("FILE", "a").replace("[NAME VALUE]", "temp 1");
            assert!(matches!(Command::parse(&line), Ok(Some(_))), "{usage}");
        }
    }
}
