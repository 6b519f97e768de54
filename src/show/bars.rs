//! Bars, each of one or several parts that are told apart by colour and pattern.

use super::svg::{Picture, Svg, label, width};

const HEIGHT: f64 = 22.0;
/// The longest bar.
const LENGTH: f64 = 700.0;
/// Bars that are drawn at most.
const MOST: usize = 1000;

/// A part of a bar.
#[derive(Clone, Debug)]
pub struct Segment {
    /// Which of the looks.
    pub look: usize,
    pub value: f64,
    pub title: String,
}

/// A bar, with what it is and how much.
#[derive(Clone, Debug)]
pub struct Bar {
    pub label: String,
    pub value: String,
    pub segments: Vec<Segment>,
}

/// See the module.
pub struct Bars {
    pub title: String,
    /// What each look means; none where there is one alone.
    pub looks: Vec<String>,
    pub bars: Vec<Bar>,
}

impl Bars {
    /// Draws it.
    pub fn draw(&self) -> Picture {
        let mut svg = Svg::new();
        let bars = &self.bars[..self.bars.len().min(MOST)];
        let left = width(bars.iter().map(|bar| bar.label.as_str())) + 12.0;
        let right = width(bars.iter().map(|bar| bar.value.as_str())) + 12.0;
        let sum = |bar: &Bar| bar.segments.iter().map(|segment| segment.value.max(0.0)).sum::<f64>();
        let most = bars.iter().map(sum).fold(0.0, f64::max);
        let scale = if most > 0.0 { LENGTH / most } else { 0.0 };
        let (mut top, mut x) = (4.0, left);
        for (look, meaning) in self.looks.iter().enumerate() {
            let wide = 34.0 + width(std::iter::once(meaning.as_str()));
            if x > left && x + wide > left + LENGTH {
                (x, top) = (left, top + 20.0);
            }
            svg.patterned([x, top, 16.0, 14.0], look, "");
            svg.text(x + 20.0, top + 12.0, "dim", &label(meaning));
            x += wide;
        }
        top += if self.looks.is_empty() { 0.0 } else { 26.0 };
        for (n, bar) in bars.iter().enumerate() {
            let y = top + n as f64 * HEIGHT;
            svg.text(left - 8.0, y + 15.0, "e", &label(&bar.label));
            let mut x = left;
            for segment in &bar.segments {
                let wide = segment.value.max(0.0) * scale;
                svg.patterned([x, y + 2.0, wide, HEIGHT - 4.0], segment.look, &segment.title);
                x += wide;
            }
            svg.text(x + 8.0, y + 15.0, "dim", &bar.value);
        }
        let mut height = top + bars.len() as f64 * HEIGHT + 4.0;
        if bars.len() < self.bars.len() {
            height += HEIGHT;
            svg.text(8.0, height - 6.0, "dim", &format!("not drawn: {} more", self.bars.len() - bars.len()));
        }
        svg.finish(left + LENGTH + right, height, &self.title)
    }
}
