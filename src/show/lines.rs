//! Lines through points, over axes.

use super::significant;
use super::svg::{Picture, Svg, width};

const WIDTH: f64 = 800.0;
const HEIGHT: f64 = 260.0;
const TOP: f64 = 34.0;
/// More points than this are no marks of their own.
const DOTS: usize = 200;

/// A line, with what it is called.
#[derive(Clone, Debug)]
pub struct Series {
    pub name: String,
    /// From left to right. Points that are no numbers are left out.
    pub points: Vec<(f64, f64)>,
}

/// See the module.
pub struct Lines {
    pub title: String,
    /// What goes to the right, and what up, with their units.
    pub x: String,
    pub y: String,
    /// Whether the axis up begins at 0.
    pub from_zero: bool,
    pub series: Vec<Series>,
}

impl Lines {
    /// Draws it.
    pub fn draw(&self) -> Picture {
        let series: Vec<(&str, Vec<(f64, f64)>)> = self
            .series
            .iter()
            .map(|series| {
                let points = series.points.iter().copied();
                (&*series.name, points.filter(|(x, y)| x.is_finite() && y.is_finite()).collect())
            })
            .collect();
        let all = || series.iter().flat_map(|(_, points)| points.iter().copied());
        let xs = Axis::over(all().map(|(x, _)| x), false);
        let ys = Axis::over(all().map(|(_, y)| y), self.from_zero);
        let marks: Vec<String> = ys.ticks().map(|y| ys.name(y)).collect();
        let left = width(marks.iter().map(String::as_str)) + 16.0;
        let place = |x: f64, y: f64| (left + xs.part(x) * WIDTH, TOP + (1.0 - ys.part(y)) * HEIGHT);
        let mut svg = Svg::new();
        svg.text(4.0, 14.0, "dim", &self.y);
        for y in ys.ticks() {
            let at = place(xs.from, y).1;
            svg.line([left, at, left + WIDTH, at], "axis");
            svg.text(left - 8.0, at + 4.0, "e dim", &ys.name(y));
        }
        for x in xs.ticks() {
            let at = place(x, ys.from).0;
            svg.line([at, TOP + HEIGHT, at, TOP + HEIGHT + 5.0], "axis");
            svg.text(at, TOP + HEIGHT + 19.0, "m dim", &xs.name(x));
        }
        svg.text(left + WIDTH, TOP + HEIGHT + 38.0, "e dim", &self.x);
        let mut legend = left + 60.0 + width(std::iter::once(self.y.as_str()));
        for (look, (name, points)) in series.iter().enumerate() {
            let places: Vec<(f64, f64)> = points.iter().map(|&(x, y)| place(x, y)).collect();
            svg.path(&places, look);
            if places.len() <= DOTS {
                for (&(x, y), &(px, py)) in points.iter().zip(&places) {
                    let title = format!(
                        "{name}\n{}: {}\n{}: {}",
                        self.x,
                        significant(x, 4),
                        self.y,
                        significant(y, 4)
                    );
                    svg.dot(px, py, look, &title);
                }
            }
            if series.len() > 1 {
                svg.path(&[(legend, 10.0), (legend + 30.0, 10.0)], look);
                svg.text(legend + 36.0, 14.0, "dim", name);
                legend += 60.0 + width(std::iter::once(*name));
            }
        }
        svg.finish((left + WIDTH + 24.0).max(legend), TOP + HEIGHT + 44.0, &self.title)
    }
}

/// A range with marks at round numbers.
struct Axis {
    from: f64,
    to: f64,
    step: f64,
}

impl Axis {
    fn over(values: impl Iterator<Item = f64>, from_zero: bool) -> Axis {
        let start = if from_zero { 0.0 } else { f64::INFINITY };
        let (mut from, mut to) = values.fold((start, -start), |(from, to), v| (v.min(from), v.max(to)));
        if from > to {
            (from, to) = (0.0, 1.0);
        }
        if to - from < to.abs().max(from.abs()) * 1e-9 || to == from {
            (from, to) = if from_zero { (0.0, to.max(1.0)) } else { (from - 0.5, to + 0.5) };
        }
        let rough = (to - from) / 5.0;
        let power = 10f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].map(|n| n * power).into_iter().find(|&step| step >= rough);
        let step = step.unwrap_or(rough);
        // Marks below and above all of them.
        Axis { from: (from / step).floor() * step, to: (to / step).ceil() * step, step }
    }

    fn part(&self, value: f64) -> f64 {
        (value - self.from) / (self.to - self.from)
    }

    fn ticks(&self) -> impl Iterator<Item = f64> {
        let count = ((self.to - self.from) / self.step).round().clamp(1.0, 20.0) as usize;
        (0..=count).map(|n| self.from + n as f64 * self.step)
    }

    fn name(&self, value: f64) -> String {
        let digits = (-self.step.log10().floor()).clamp(0.0, 12.0) as usize;
        match self.to.abs().max(self.from.abs()) {
            large if large >= 1e7 => format!("{value:.1e}"),
            _ => format!("{value:.digits$}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_stand_at_round_numbers() {
        let ticks = |values: &[f64], from_zero| {
            let axis = Axis::over(values.iter().copied(), from_zero);
            axis.ticks().map(|tick| axis.name(tick)).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(ticks(&[3.0, 47.0], true), "0 10 20 30 40 50");
        assert_eq!(ticks(&[0.12, 0.31], false), "0.10 0.15 0.20 0.25 0.30 0.35");
        assert_eq!(ticks(&[], false), "0.0 0.2 0.4 0.6 0.8 1.0");
        assert_eq!(ticks(&[7.0], false), "6.4 6.6 6.8 7.0 7.2 7.4 7.6");
        assert_eq!(ticks(&[0.0, 0.0], true), "0.0 0.2 0.4 0.6 0.8 1.0");
        assert!(ticks(&[1e300, 2e300], true).contains("2.0e300"));
        assert!(!ticks(&[-5.0, 5.0], true).contains("NaN"));
    }
}
