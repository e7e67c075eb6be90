//! Stop strings in text that comes in pieces.

/// Holds text back while it may turn out to be the beginning of a stop string.
#[derive(Debug, Clone)]
pub struct StopStrings {
    stops: Vec<String>,
    held: String,
}

/// What [`StopStrings::push`] lets go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Released {
    /// Text that is surely part of the answer.
    pub text: String,
    /// Whether a stop string followed it; it and everything after it are gone.
    pub stopped: bool,
}

impl StopStrings {
    /// A filter for these strings; empty ones are ignored.
    pub fn new(stops: &[String]) -> Self {
        StopStrings { stops: stops.iter().filter(|s| !s.is_empty()).cloned().collect(), held: String::new() }
    }

    /// Adds text and gives what can go out.
    pub fn push(&mut self, piece: &str) -> Released {
        self.held.push_str(piece);
        if let Some(at) = self.stops.iter().filter_map(|s| self.held.find(s)).min() {
            self.held.truncate(at);
            return Released { text: std::mem::take(&mut self.held), stopped: true };
        }
        let keep = self.stops.iter().map(|s| overlap(&self.held, s)).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - keep);
        Released { text: std::mem::replace(&mut self.held, rest), stopped: false }
    }

    /// What is still held when the text ends.
    pub fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

/// Length of the longest end of `text` that begins `stop` without being all of it.
fn overlap(text: &str, stop: &str) -> usize {
    let longest = text.len().min(stop.len() - 1);
    (1..=longest).rev().find(|n| text.as_bytes().ends_with(&stop.as_bytes()[..*n])).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(stops: &[&str], pieces: &[&str]) -> (Vec<String>, bool) {
        let mut filter = StopStrings::new(&stops.iter().map(|s| s.to_string()).collect::<Vec<_>>());
        let mut out = Vec::new();
        for piece in pieces {
            let released = filter.push(piece);
            out.push(released.text);
            if released.stopped {
                assert_eq!(filter.finish(), "");
                return (out, true);
            }
        }
        out.push(filter.finish());
        (out, false)
    }

    #[test]
    fn a_stop_string_may_span_pieces() {
        assert_eq!(run(&["\n\nQ:"], &["one\n", "\nQ", ": two"]), (vec!["one".into(), "".into(), "".into()], true));
        assert_eq!(run(&["\n\nQ:"], &["one\n", "\nR", ": two"]).0, ["one", "\n\nR", ": two", ""]);
        assert_eq!(run(&["aab"], &["a", "a", "a", "b!"]).0, ["", "", "a", ""]);
        assert_eq!(run(&["END"], &["no E", "N"]), (vec!["no ".into(), "".into(), "EN".into()], false));
    }

    #[test]
    fn the_earliest_stop_counts_and_characters_stay_whole() {
        assert_eq!(run(&["later", "now"], &["do it now or later"]), (vec!["do it ".into()], true));
        assert_eq!(run(&["éé"], &["caf", "é", "è"]).0, ["caf", "", "éè", ""]);
        assert_eq!(run(&["", "x"], &["abc"]).0, ["abc", ""]);
        assert_eq!(run(&[], &["abc"]).0, ["abc", ""]);
    }
}
