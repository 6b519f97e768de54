//! Reports as one HTML file that needs nothing else: text, tables and pictures, for dark and light screens,
//! with figures and patterns wherever there are colours. There are no scripts in it.

use std::fmt::Write as _;

use super::{Bars, HeatMap, Lines, PICTURES_CSS, html, svg};

/// A page that is being written. All texts are given as they are.
pub struct Page {
    body: String,
    title: String,
}

impl Page {
    pub fn new(title: &str) -> Page {
        let title = html(title);
        Page { body: format!("<h1>{title}</h1>\n"), title }
    }

    /// Names and what they are.
    pub fn facts(&mut self, facts: &[(&str, String)]) -> &mut Page {
        self.body.push_str("<dl>\n");
        for (name, value) in facts {
            let _ = writeln!(self.body, "<dt>{}</dt><dd>{}</dd>", html(name), html(value));
        }
        self.body.push_str("</dl>\n");
        self
    }

    pub fn heading(&mut self, text: &str) -> &mut Page {
        let _ = writeln!(self.body, "<h2>{}</h2>", html(text));
        self
    }

    pub fn paragraph(&mut self, text: &str) -> &mut Page {
        let _ = writeln!(self.body, "<p>{}</p>", html(text));
        self
    }

    /// A line that must not be missed.
    pub fn verdict(&mut self, good: bool, text: &str) -> &mut Page {
        let (class, sign) = if good { ("good", "\u{2713}") } else { ("bad", "\u{2717}") };
        let _ = writeln!(self.body, "<p class=\"{class}\"><b>{sign}</b> {}</p>", html(text));
        self
    }

    /// A table; `numbers` are the columns to align to the right.
    pub fn table(&mut self, header: &[&str], rows: &[Vec<String>], numbers: &[usize]) -> &mut Page {
        let class = |column: usize| if numbers.contains(&column) { " class=\"n\"" } else { "" };
        let row = |cells: &mut dyn Iterator<Item = &str>, tag: &str| {
            let cells = cells.enumerate();
            let cells = cells.map(|(i, cell)| format!("<{tag}{}>{}</{tag}>", class(i), html(cell)));
            format!("<tr>{}</tr>\n", cells.collect::<String>())
        };
        self.body.push_str("<div class=\"wide\"><table>\n");
        self.body += &row(&mut header.iter().copied(), "th");
        for cells in rows {
            self.body += &row(&mut cells.iter().map(String::as_str), "td");
        }
        self.body.push_str("</table></div>\n");
        self
    }

    pub fn heat_map(&mut self, map: &HeatMap) -> &mut Page {
        self.picture(&map.draw().svg())
    }

    pub fn bars(&mut self, bars: &Bars) -> &mut Page {
        self.picture(&bars.draw().svg())
    }

    pub fn lines(&mut self, lines: &Lines) -> &mut Page {
        self.picture(&lines.draw().svg())
    }

    fn picture(&mut self, svg: &str) -> &mut Page {
        let _ = writeln!(self.body, "<div class=\"wide\" tabindex=\"0\">{svg}</div>");
        self
    }

    /// The whole file.
    pub fn finish(self) -> String {
        let Page { body, title } = self;
        let (style, patterns) = ([include_str!("page.css"), PICTURES_CSS].concat(), svg::patterns());
        let version = env!("CARGO_PKG_VERSION");
        // Nothing is fetched and nothing runs, whatever stands in names.
        let policy = "default-src 'none'; style-src 'unsafe-inline'";
        format!(
            "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n\
             <meta http-equiv=\"Content-Security-Policy\" content=\"{policy}\">\n\
             <meta name=\"viewport\" content=\"width=device-width\">\n\
             <meta name=\"color-scheme\" content=\"light dark\">\n<title>{title}</title>\n\
             <style>\n{style}</style>\n{patterns}\n<main>\n{body}</main>\n\
             <footer>wayinfer {version}</footer>\n</html>\n"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Bar, Cell, Mark, Segment, Series};
    use super::*;

    #[test]
    fn names_are_no_tags() {
        let evil = "</title><script>alert('1')</script>\u{202e}\"&";
        let escaped = html(evil);
        assert!(!escaped.contains(['<', '>', '"', '\'', '\u{202e}']), "{escaped}");
        let mut page = Page::new(evil);
        page.facts(&[(evil, evil.to_owned())]).heading(evil).paragraph(evil).verdict(false, evil);
        page.table(&[evil], &[vec![evil.to_owned()]], &[0]);
        let mut map = HeatMap::new(evil, vec![evil.to_owned()]);
        let cell = Cell { level: 3, text: evil.to_owned(), title: evil.to_owned(), mark: Some(Mark::First) };
        map.row(evil, vec![Some(cell)]).legend(3, evil);
        let segment = Segment { look: 1, value: 2.0, title: evil.to_owned() };
        let bar = Bar { label: evil.to_owned(), value: evil.to_owned(), segments: vec![segment] };
        page.heat_map(&map);
        page.bars(&Bars { title: evil.to_owned(), looks: vec![evil.to_owned()], bars: vec![bar] });
        let series = Series { name: evil.to_owned(), points: vec![(0.0, 1.0), (1.0, 2.0)] };
        page.lines(&Lines {
            title: evil.to_owned(),
            x: evil.to_owned(),
            y: evil.to_owned(),
            from_zero: true,
            series: vec![series],
        });
        let text = page.finish();
        assert!(!text.contains("<script") && !text.contains("alert('"), "{text}");
        assert!(text.matches("&lt;script&gt;").count() >= 15);
        // The canary: without the escape the first of these would fail.
        assert!(evil.contains("<script"));
    }

    #[test]
    fn nothing_is_fetched() {
        let mut page = Page::new("t");
        page.heading("h");
        let text = page.finish();
        for what in ["http:", "https:", "src=", "href=", "url(", "@import", "<link", "<script"] {
            let found: Vec<_> =
                text.match_indices(what).map(|(at, _)| &text[at..(at + 30).min(text.len())]).collect();
            let patterns = what == "url(" && found.iter().all(|found| found.starts_with("url(#"));
            assert!(found.is_empty() || patterns, "{found:?}");
        }
    }
}
