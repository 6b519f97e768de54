//! A table of figures that is coloured by them.

use super::svg::{LETTER, Picture, Svg, label, width};

/// Rows and columns that are drawn at most: a page of more helps nobody.
const MOST: usize = 1000;
const HEIGHT: f64 = 20.0;
/// Room for a row's mark.
const MARGIN: f64 = 8.0;

/// What a cell says.
#[derive(Clone, Debug)]
pub struct Cell {
    /// 0 to 8: how strong its colour is.
    pub level: usize,
    /// What stands in it: a few letters.
    pub text: String,
    /// What is told where a pointer rests on it.
    pub title: String,
    pub mark: Option<Mark>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// It is more than is allowed.
    Beyond,
    /// It is the first of them.
    First,
}

/// See the module.
pub struct HeatMap {
    title: String,
    columns: Vec<String>,
    rows: Vec<(String, Vec<Option<Cell>>)>,
    legend: Vec<(usize, String)>,
}

impl HeatMap {
    /// One without rows.
    pub fn new(title: &str, columns: Vec<String>) -> HeatMap {
        HeatMap { title: title.to_owned(), columns, rows: Vec::new(), legend: Vec::new() }
    }

    /// Adds a row, with a cell a column.
    pub fn row(&mut self, label: &str, cells: Vec<Option<Cell>>) -> &mut HeatMap {
        self.rows.push((label.to_owned(), cells));
        self
    }

    /// Says what a level of colour means.
    pub fn legend(&mut self, level: usize, meaning: &str) -> &mut HeatMap {
        self.legend.push((level, meaning.to_owned()));
        self
    }

    /// Draws it.
    pub fn draw(&self) -> Picture {
        let (rows, columns) = (self.rows.len().min(MOST), self.columns.len().min(MOST));
        let mut svg = Svg::new();
        let left = width(self.rows.iter().take(rows).map(|(label, _)| label.as_str())) + 2.0 * MARGIN;
        let texts = self.rows.iter().flat_map(|(_, cells)| cells.iter().flatten().map(|cell| &*cell.text));
        let cell = width(texts.chain(self.columns.iter().map(String::as_str))).max(2.0 * LETTER) + 8.0;
        let top = if self.legend.is_empty() { HEIGHT + 4.0 } else { 2.0 * HEIGHT + 12.0 };
        let mut x = left;
        for (level, meaning) in &self.legend {
            svg.rect([x, 2.0, 16.0, 14.0], &format!("f{level}"), "");
            svg.rect([x, 2.0, 16.0, 14.0], "edge", "");
            svg.text(x + 20.0, 14.0, "dim", meaning);
            x += 34.0 + width(std::iter::once(meaning.as_str()));
        }
        for (i, column) in self.columns.iter().take(columns).enumerate() {
            svg.text(left + (i as f64 + 0.5) * cell, top - 6.0, "dim c", &label(column));
        }
        for (j, (name, cells)) in self.rows.iter().take(rows).enumerate() {
            let y = top + j as f64 * HEIGHT;
            let is_first = cells.iter().flatten().any(|cell| cell.mark == Some(Mark::First));
            let class = if is_first { "e named" } else { "e" };
            let name = if is_first { format!("\u{25b6} {}", label(name)) } else { label(name) };
            svg.text(left - MARGIN, y + 14.0, class, &name);
            for (i, found) in cells.iter().take(columns).enumerate() {
                let Some(found) = found else { continue };
                let at = [left + i as f64 * cell, y, cell, HEIGHT];
                svg.rect(at, &format!("f{}", found.level.min(8)), &found.title);
                let class = format!("c t{}", found.level.min(8));
                svg.text(at[0] + cell / 2.0, y + 14.0, &class, &found.text).untouched();
            }
        }
        // Marks lie over the neighbours' edges.
        for (j, (_, cells)) in self.rows.iter().take(rows).enumerate() {
            for (i, found) in cells.iter().take(columns).enumerate() {
                let Some(mark) = found.as_ref().and_then(|found| found.mark) else { continue };
                let at =
                    [left + i as f64 * cell + 1.0, top + j as f64 * HEIGHT + 1.0, cell - 2.0, HEIGHT - 2.0];
                let class = if mark == Mark::First { "first" } else { "beyond" };
                svg.rect(at, class, "").untouched();
            }
        }
        let mut height = top + rows as f64 * HEIGHT + 4.0;
        if rows < self.rows.len() || columns < self.columns.len() {
            let left_out = [self.rows.len() - rows, self.columns.len() - columns];
            let text = format!("not drawn: {} more rows, {} more columns", left_out[0], left_out[1]);
            height += HEIGHT;
            svg.text(MARGIN, height - 6.0, "dim", &text);
        }
        svg.finish((left + columns as f64 * cell + 4.0).max(x), height, &self.title)
    }
}
