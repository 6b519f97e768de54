//! What subcommands share in printing: tables that fit the terminal, lines on stderr.

use std::ffi::OsString;
use std::fmt;
use std::io::{self, IsTerminal, Write};

use comfy_table::{CellAlignment, ContentArrangement, Table, presets};

pub use crate::show::{
    binary_bytes, binary_bytes_up, bytes, count, cut_end, cut_middle, grouped, significant,
};

/// Spaces between two columns.
const GAP: u16 = 2;

/// Columns to fit output into: the terminal's where stdout is one, else the variable `COLUMNS`, else 100.
pub fn width() -> usize {
    let columns = || std::env::var("COLUMNS").ok()?.trim().parse().ok().filter(|&n: &usize| n > 0);
    // What is wider is a mistake, and products with it should stay numbers.
    const WIDEST: usize = 10_000;
    let mut table = Table::new();
    table.set_content_arrangement(ContentArrangement::Dynamic);
    table.width().map(usize::from).or_else(columns).unwrap_or(100).clamp(40, WIDEST)
}

/// Whether to write colours to stdout or stderr, which may be a terminal: by `NO_COLOR`, `CLICOLOR_FORCE`,
/// `CLICOLOR` and `TERM`, in this order, as the parser of arguments does.
pub fn colours(is_terminal: bool) -> bool {
    wants_colours(is_terminal, |name| std::env::var_os(name).filter(|value| !value.is_empty()))
}

fn wants_colours(is_terminal: bool, variable: impl Fn(&str) -> Option<OsString>) -> bool {
    let is = |name, value: &str| variable(name).is_some_and(|set| set == *value);
    let forced = variable("CLICOLOR_FORCE").is_some() && !is("CLICOLOR_FORCE", "0");
    let wanted = is_terminal && !is("CLICOLOR", "0") && !is("TERM", "dumb");
    variable("NO_COLOR").is_none() && (forced || wanted)
}

/// A table without borders, its cells in the width that they need: cut what may be long before.
/// `numbers` are the columns to align to the right.
pub fn new_table(header: &[&str], numbers: &[usize]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(header.to_vec());
    for (i, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, GAP));
        if numbers.contains(&i) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

/// Writes a line to stderr, as `eprintln!` does; see [`tell`].
macro_rules! tell {
    ($($what:tt)*) => {
        $crate::cli::output::write_to_stderr(format_args!($($what)*))
    };
}
pub(super) use tell;

/// Writes a line to stderr, whole. Where nobody reads it any more the run goes on: what it tells is not what
/// it is for.
pub fn write_to_stderr(line: fmt::Arguments<'_>) {
    let _ = io::stderr().lock().write_all(format!("{line}\n").as_bytes());
}

/// What a line on stderr begins with while text goes to stdout: a line end, where both are the same terminal.
pub fn line_start() -> &'static str {
    if io::stdout().is_terminal() && io::stderr().is_terminal() { "\n" } else { "" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_as_the_variables_have_it() {
        let cases = [
            ("", true, true),
            ("", false, false),
            ("NO_COLOR=0 CLICOLOR_FORCE=1", true, false),
            ("CLICOLOR_FORCE=1", false, true),
            ("CLICOLOR_FORCE=0", false, false),
            ("CLICOLOR=0", true, false),
            ("TERM=dumb", true, false),
        ];
        for (set, is_terminal, colours) in cases {
            let pairs = || set.split(' ').filter_map(|pair| pair.split_once('='));
            let variable = |name: &str| pairs().find(|(set, _)| *set == name).map(|(_, value)| value.into());
            assert_eq!(wants_colours(is_terminal, variable), colours, "{set} {is_terminal}");
        }
    }

    #[test]
    fn tables_align_and_do_not_wrap() {
        let mut table = new_table(&["name", "bytes"], &[1]);
        table.add_row(["a", "1"]).add_row(["long name", "12345"]);
        assert_eq!(table.trim_fmt(), "name       bytes\na              1\nlong name  12345");
    }
}
