//! SHOW: what is found, for people: texts that are safe to show, figures, pictures and pages of them.
//!
//! Pictures are SVG, told apart by figures and patterns as well as by colours; `pictures.css` colours them,
//! for dark and light screens, by the variables `--back`, `--text`, `--dim`, `--line` and `--bad` of the page
//! that they stand in.

mod bars;
mod figures;
mod heat_map;
mod lines;
mod page;
pub mod residency;
pub mod safe_text;
mod svg;

pub use bars::{Bar, Bars, Segment};
pub use figures::{binary_bytes, binary_bytes_up, bytes, count, cut_end, cut_middle, grouped, significant};
pub use heat_map::{Cell, HeatMap, Mark};
pub use lines::{Lines, Series};
pub use page::Page;
pub use svg::Picture;

/// Kinds of a thing that are told apart by colour and pattern; further ones look like the first again.
pub const LOOKS: usize = 8;

/// What the pictures look like.
pub const PICTURES_CSS: &str = include_str!("pictures.css");

/// Text for HTML, with nothing in it that is a tag or controls anything.
pub fn html(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in safe_text::escape(text).chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}
