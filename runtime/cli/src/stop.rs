//! Texts that end an answer.

/// Holds back what may be the beginning of a stop string, until it is known whether it is one.
pub(crate) struct StopFilter {
    stops: Vec<String>,
    held: String,
}

impl StopFilter {
    /// Stops at any of these texts; empty ones are none.
    pub(crate) fn new(stops: Vec<String>) -> Self {
        Self {
            stops: stops.into_iter().filter(|stop| !stop.is_empty()).collect(),
            held: String::new(),
        }
    }

    /// The text that is certain not to be part of a stop string, and whether one was found: what
    /// comes after it is lost.
    pub(crate) fn push(&mut self, piece: &str) -> (String, bool) {
        self.held.push_str(piece);
        let found = self
            .stops
            .iter()
            .filter_map(|stop| self.held.find(stop))
            .min();
        if let Some(at) = found {
            self.held.truncate(at);
            return (std::mem::take(&mut self.held), true);
        }
        let rest = self.held.split_off(self.certain());
        (std::mem::replace(&mut self.held, rest), false)
    }

    /// What was held back.
    pub(crate) fn finish(&mut self) -> String {
        std::mem::take(&mut self.held)
    }

    /// Bytes before the first place at which a stop string may have begun.
    fn certain(&self) -> usize {
        let places = self.held.char_indices().map(|(at, _)| at);
        let may_begin = |at: &usize| self.stops.iter().any(|s| s.starts_with(&self.held[*at..]));
        places
            .into_iter()
            .find(may_begin)
            .unwrap_or(self.held.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(stops: &[&str], pieces: &[&str]) -> (String, bool) {
        let mut filter = StopFilter::new(stops.iter().map(|s| (*s).to_owned()).collect());
        let mut text = String::new();
        for piece in pieces {
            let (certain, stopped) = filter.push(piece);
            text.push_str(&certain);
            if stopped {
                return (text, true);
            }
        }
        (text + &filter.finish(), false)
    }

    #[test]
    fn the_text_before_the_first_stop_string_is_kept() {
        assert_eq!(run(&[], &["a", "b"]), ("ab".into(), false));
        assert_eq!(
            run(&["User:"], &["hi\nUs", "er", ": x"]),
            ("hi\n".into(), true)
        );
        assert_eq!(
            run(&["User:"], &["hi\nUs", "ed"]),
            ("hi\nUsed".into(), false)
        );
        assert_eq!(run(&["User:"], &["Us"]), ("Us".into(), false));
        assert_eq!(run(&["bcd", "c"], &["ab", "cd"]), ("a".into(), true));
        assert_eq!(
            run(&["aab"], &["a", "a", "a", "b", "x"]),
            ("a".into(), true)
        );
        assert_eq!(run(&["", "€!"], &["1€", "€!"]), ("1€".into(), true));
    }

    #[test]
    fn nothing_waits_longer_than_it_must() {
        let mut filter = StopFilter::new(vec!["END".into()]);
        assert_eq!(filter.push("xE"), ("x".into(), false));
        assert_eq!(filter.push("N"), (String::new(), false));
        assert_eq!(filter.push("E"), ("EN".into(), false));
        assert_eq!(filter.finish(), "E");
    }
}
