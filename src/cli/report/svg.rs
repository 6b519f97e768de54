//! What the pictures share: a text of SVG that grows, patterns, axes.

use std::fmt::Write as _;

use unicode_width::UnicodeWidthStr;

use super::{LOOKS, html};

/// Width of a letter of the pictures' font, in pixels; rather too wide than too narrow.
pub const LETTER: f64 = 7.4;
/// Most columns of a label: longer ones are cut.
const MOST: usize = 48;

/// A picture under way.
pub struct Svg {
    body: String,
}

impl Svg {
    pub fn new() -> Svg {
        Svg { body: String::new() }
    }

    /// A text with its foot at a place.
    pub fn text(&mut self, x: f64, y: f64, class: &str, text: &str) {
        let _ =
            writeln!(self.body, "<text x=\"{x:.1}\" y=\"{y:.1}\" class=\"{class}\">{}</text>", html(text));
    }

    /// A rectangle, with what is told of it where a pointer rests there.
    pub fn rect(&mut self, [x, y, w, h]: [f64; 4], class: &str, title: &str) {
        let _ = write!(
            self.body,
            "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{w:.2}\" height=\"{h:.1}\" class=\"{class}\""
        );
        self.close("rect", title);
    }

    /// The same, filled with the pattern of a look.
    pub fn patterned(&mut self, at: [f64; 4], look: usize, title: &str) {
        let look = look % LOOKS;
        self.rect(at, &format!("k{look}"), title);
        if look > 0 {
            let [x, y, w, h] = at;
            let _ = writeln!(
                self.body,
                "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{w:.2}\" height=\"{h:.1}\" fill=\"url(#p{look})\" \
                 pointer-events=\"none\"/>"
            );
        }
    }

    pub fn line(&mut self, [x1, y1, x2, y2]: [f64; 4], class: &str) {
        let _ = writeln!(
            self.body,
            "<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" class=\"{class}\"/>"
        );
    }

    /// A line through points, dashed by its look.
    pub fn path(&mut self, points: &[(f64, f64)], look: usize) {
        let look = look % LOOKS;
        let dashes = ["none", "8 4", "2 3", "12 3 2 3", "5 2", "1 5", "10 2", "6 6"][look];
        let all: Vec<String> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        let _ = writeln!(
            self.body,
            "<polyline points=\"{}\" class=\"line k{look}\" style=\"fill:none\" stroke=\"currentcolor\" \
             stroke-dasharray=\"{dashes}\"/>",
            all.join(" ")
        );
    }

    pub fn dot(&mut self, x: f64, y: f64, look: usize, title: &str) {
        let _ =
            write!(self.body, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3.5\" class=\"k{}\"", look % LOOKS);
        self.close("circle", title);
    }

    fn close(&mut self, tag: &str, title: &str) {
        match title {
            "" => self.body.push_str("/>\n"),
            title => {
                let _ = writeln!(self.body, "><title>{}</title></{tag}>", html(title));
            }
        }
    }

    /// The picture, of this size, named for those who do not see it.
    pub fn finish(self, width: f64, height: f64, name: &str) -> String {
        format!(
            "<svg width=\"{width:.0}\" height=\"{height:.0}\" viewBox=\"0 0 {width:.0} {height:.0}\" \
             role=\"img\" aria-label=\"{}\">\n{}</svg>",
            html(name),
            self.body
        )
    }
}

/// A label that is no wider than labels are.
pub fn label(text: &str) -> String {
    crate::cli::output::cut_middle(&crate::cli::safe_text::escape(text), MOST).into_owned()
}

/// The width of the widest of these labels.
pub fn width<'t>(labels: impl Iterator<Item = &'t str>) -> f64 {
    labels.map(|text| label(text).width()).max().unwrap_or(0) as f64 * LETTER
}

/// What each look but the first is drawn over with.
pub fn patterns() -> String {
    let inks = [
        "<path d=\"M0 8L8 0\" class=\"ink\"/>",
        "<circle cx=\"4\" cy=\"4\" r=\"1.8\" class=\"spot\"/>",
        "<path d=\"M0 0L8 8\" class=\"ink\"/>",
        "<path d=\"M0 4H8\" class=\"ink\"/>",
        "<path d=\"M4 0V8\" class=\"ink\"/>",
        "<path d=\"M0 8L8 0M0 0L8 8\" class=\"ink\"/>",
        "<path d=\"M0 4H8M4 0V8\" class=\"ink\"/>",
    ];
    let pattern = |(at, ink): (usize, &&str)| {
        let look = at + 1;
        format!(
            "<pattern id=\"p{look}\" width=\"8\" height=\"8\" patternUnits=\"userSpaceOnUse\">{ink}</pattern>"
        )
    };
    let all: String = inks.iter().enumerate().map(pattern).collect();
    format!(
        "<svg width=\"0\" height=\"0\" aria-hidden=\"true\" style=\"position:absolute\">\
         <defs>{all}</defs></svg>"
    )
}
