//! What the pictures share: a text of SVG that grows, patterns, axes.

use std::fmt::Write as _;

use serde::{Serialize, Serializer};
use unicode_width::UnicodeWidthStr;

use super::safe_text::escape;
use super::{LOOKS, cut_middle, html};

/// Width of a letter of the pictures' font, in pixels; rather too wide than too narrow.
pub const LETTER: f64 = 7.4;
/// Most columns of a label: longer ones are cut.
const MOST: usize = 48;

/// A picture: what stands in it, as SVG has it.
#[derive(Clone, Debug, Serialize)]
pub struct Picture {
    width: f64,
    height: f64,
    /// What it is, for those who do not see it.
    name: String,
    elements: Vec<Element>,
}

/// An element of a picture. Texts are as they are, without escapes.
#[derive(Clone, Debug, Serialize)]
pub struct Element {
    tag: &'static str,
    #[serde(serialize_with = "as_object")]
    attributes: Vec<(&'static str, String)>,
    #[serde(skip_serializing_if = "String::is_empty")]
    text: String,
    /// What is told where a pointer rests on it.
    #[serde(skip_serializing_if = "String::is_empty")]
    title: String,
}

fn as_object<S: Serializer>(pairs: &[(&'static str, String)], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_map(pairs.iter().map(|(name, value)| (name, value)))
}

impl Picture {
    /// The picture as SVG within HTML, which [`PICTURES_CSS`](super::PICTURES_CSS) colours.
    pub fn svg(&self) -> String {
        let Picture { width, height, name, elements } = self;
        let mut out = format!(
            "<svg class=\"picture\" width=\"{width:.0}\" height=\"{height:.0}\" \
             viewBox=\"0 0 {width:.0} {height:.0}\" role=\"img\" aria-label=\"{}\">\n",
            html(name)
        );
        elements.iter().for_each(|element| element.write(&mut out));
        out.push_str("</svg>");
        out
    }
}

impl Element {
    fn write(&self, out: &mut String) {
        let Element { tag, attributes, text, title } = self;
        let _ = write!(out, "<{tag}");
        for (name, value) in attributes {
            let _ = write!(out, " {name}=\"{}\"", html(value));
        }
        if text.is_empty() && title.is_empty() {
            out.push_str("/>\n");
            return;
        }
        out.push('>');
        if !title.is_empty() {
            let _ = write!(out, "<title>{}</title>", html(title));
        }
        let _ = writeln!(out, "{}</{tag}>", html(text));
    }

    /// The same, which a pointer goes through.
    pub fn untouched(&mut self) {
        self.attributes.push(("pointer-events", "none".to_owned()));
    }
}

/// A picture under way.
pub struct Svg {
    elements: Vec<Element>,
}

impl Svg {
    pub fn new() -> Svg {
        Svg { elements: Vec::new() }
    }

    fn add(&mut self, tag: &'static str, attributes: Vec<(&'static str, String)>) -> &mut Element {
        self.elements.push(Element { tag, attributes, text: String::new(), title: String::new() });
        let last = self.elements.len() - 1;
        &mut self.elements[last]
    }

    /// A text with its foot at a place.
    pub fn text(&mut self, x: f64, y: f64, class: &str, text: &str) -> &mut Element {
        let element = self.add("text", vec![("x", fine(x)), ("y", fine(y)), ("class", class.to_owned())]);
        text.clone_into(&mut element.text);
        element
    }

    /// A rectangle, with what is told of it where a pointer rests there.
    pub fn rect(&mut self, [x, y, w, h]: [f64; 4], class: &str, title: &str) -> &mut Element {
        let size = [("width", format!("{w:.2}")), ("height", fine(h)), ("class", class.to_owned())];
        let element = self.add("rect", [("x", fine(x)), ("y", fine(y))].into_iter().chain(size).collect());
        title.clone_into(&mut element.title);
        element
    }

    /// The same, filled with the pattern of a look.
    pub fn patterned(&mut self, at: [f64; 4], look: usize, title: &str) {
        let look = look % LOOKS;
        self.rect(at, &format!("k{look}"), title);
        if look > 0 {
            let over = self.rect(at, "", "");
            over.attributes.push(("fill", format!("url(#p{look})")));
            over.untouched();
        }
    }

    pub fn line(&mut self, [x1, y1, x2, y2]: [f64; 4], class: &str) {
        let ends = [("x1", x1), ("y1", y1), ("x2", x2), ("y2", y2)].map(|(name, at)| (name, fine(at)));
        self.add("line", ends.into_iter().chain([("class", class.to_owned())]).collect());
    }

    /// A line through points, dashed by its look.
    pub fn path(&mut self, points: &[(f64, f64)], look: usize) {
        let look = look % LOOKS;
        let dashes = ["none", "8 4", "2 3", "12 3 2 3", "5 2", "1 5", "10 2", "6 6"][look];
        let all: Vec<String> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        let attributes = [
            ("points", all.join(" ")),
            ("class", format!("line k{look}")),
            ("stroke", "currentcolor".to_owned()),
            ("stroke-dasharray", dashes.to_owned()),
        ];
        self.add("polyline", attributes.into());
    }

    pub fn dot(&mut self, x: f64, y: f64, look: usize, title: &str) {
        let class = format!("k{}", look % LOOKS);
        let radius = ("r", "3.5".to_owned());
        let element = self.add("circle", vec![("cx", fine(x)), ("cy", fine(y)), radius, ("class", class)]);
        title.clone_into(&mut element.title);
    }

    /// The picture, of this size, named for those who do not see it.
    pub fn finish(self, width: f64, height: f64, name: &str) -> Picture {
        Picture {
            width: width.round(),
            height: height.round(),
            name: name.to_owned(),
            elements: self.elements,
        }
    }
}

/// A place, in tenths of a pixel.
fn fine(at: f64) -> String {
    format!("{at:.1}")
}

/// A label that is no wider than labels are.
pub fn label(text: &str) -> String {
    cut_middle(&escape(text), MOST).into_owned()
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
        "<svg class=\"patterns\" width=\"0\" height=\"0\" aria-hidden=\"true\">\
         <defs>{all}</defs></svg>"
    )
}
