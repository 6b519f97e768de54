//! Stop strings in a text that comes piece by piece.

/// Passes text on until a stop string appears; holds back what may be the start of one.
#[derive(Clone, Debug)]
pub struct StopMatcher {
    stops: Vec<String>,
    held: String,
    /// The one that has appeared.
    stopped: Option<usize>,
}

impl StopMatcher {
    /// A matcher for these strings; empty ones never match.
    pub fn new(stops: impl IntoIterator<Item = String>) -> StopMatcher {
        let stops = stops.into_iter().filter(|s| !s.is_empty()).collect();
        StopMatcher { stops, held: String::new(), stopped: None }
    }

    /// Takes the next piece and returns what can be shown of the text so far. What follows a stop string,
    /// and the string itself, never is.
    pub fn push(&mut self, piece: &str) -> String {
        if self.stopped() {
            return String::new();
        }
        self.held.push_str(piece);
        let found = self.stops.iter().enumerate().filter_map(|(i, s)| Some((self.held.find(s.as_str())?, i)));
        if let Some((at, which)) = found.min() {
            self.stopped = Some(which);
            self.held.truncate(at);
            return std::mem::take(&mut self.held);
        }
        let keep = self.stops.iter().map(|s| overlap(&self.held, s)).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - keep);
        std::mem::replace(&mut self.held, rest)
    }

    /// Whether a stop string has appeared.
    pub fn stopped(&self) -> bool {
        self.stopped.is_some()
    }

    /// The stop string that has appeared; of several at one place the first of the list.
    pub fn stopped_by(&self) -> Option<&str> {
        self.stopped.map(|which| self.stops[which].as_str())
    }

    /// What was held back, at the end of the text.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

/// Bytes of the longest end of `text` that is a proper start of `stop`.
fn overlap(text: &str, stop: &str) -> usize {
    stop.char_indices().map(|(at, _)| at).rev().find(|&n| text.ends_with(&stop[..n])).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(stops: &[&str], pieces: &[&str]) -> (String, bool) {
        let mut m = StopMatcher::new(stops.iter().map(|s| s.to_string()));
        let mut out: String = pieces.iter().map(|p| m.push(p)).collect();
        out += &m.finish();
        (out, m.stopped())
    }

    #[test]
    fn a_stop_across_pieces_cuts_the_text() {
        assert_eq!(run(&["\nUser:"], &["Hi", "\nUs", "er", ": x", "more"]), ("Hi".into(), true));
        assert_eq!(run(&["ab", "b"], &["xaa", "b"]), ("xa".into(), true));
    }

    #[test]
    fn a_start_that_comes_to_nothing_is_shown() {
        assert_eq!(run(&["\nUser:"], &["Hi", "\nUs", "ual"]), ("Hi\nUsual".into(), false));
        assert_eq!(run(&["é!"], &["caf", "é", "é", "?"]), ("caféé?".into(), false));
        assert_eq!(run(&["end"], &["the en"]), ("the en".into(), false));
        assert_eq!(run(&[""], &["a", "b"]), ("ab".into(), false));
    }

    #[test]
    fn only_what_may_become_a_stop_is_held_back() {
        let mut m = StopMatcher::new(["aab".to_string()]);
        assert_eq!(m.push("xaaa"), "xa");
        assert_eq!(m.push("c"), "aac");
    }
}
