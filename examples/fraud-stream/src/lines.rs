//! Cuts a stream of bytes into lines, wherever its pieces end.

/// Longest line in bytes.
pub(crate) const MAX_LINE: usize = 64 << 10;

/// The stream so far, without the lines that were taken out.
#[derive(Default)]
pub(crate) struct Lines {
    /// Bytes without a line's end among them, once every line is taken.
    rest: Vec<u8>,
    /// Whether what comes up to the next line's end belongs to a line that was too long already.
    skipping: bool,
}

/// A line, or what stands for one.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Line {
    Whole(Vec<u8>),
    TooLong,
}

impl Lines {
    /// Takes a piece of the stream, and returns the lines that it completes. Empty lines are none.
    pub(crate) fn push(&mut self, piece: &[u8]) -> Vec<Line> {
        let mut found = Vec::new();
        for part in piece.split_inclusive(|byte| *byte == b'\n') {
            let ends = part.ends_with(b"\n");
            if !self.skipping {
                self.rest.extend_from_slice(part);
                if self.rest.len() > MAX_LINE + 1 {
                    self.rest.clear();
                    self.skipping = true;
                    found.push(Line::TooLong);
                }
            }
            if ends {
                self.skipping = false;
                found.extend(self.end());
            }
        }
        found
    }

    /// The last line, if the stream did not end with a line's end.
    pub(crate) fn end(&mut self) -> Option<Line> {
        let line = std::mem::take(&mut self.rest);
        let line = line.trim_ascii();
        (!line.is_empty()).then(|| Line::Whole(line.to_vec()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(text: &str) -> Line {
        Line::Whole(text.as_bytes().to_vec())
    }

    #[test]
    fn lines_end_where_they_end_and_not_where_pieces_do() {
        let mut lines = Lines::default();
        assert_eq!(lines.push(b"on"), []);
        assert_eq!(lines.push(b"e\r\n\ntwo\nth"), [whole("one"), whole("two")]);
        assert_eq!(lines.push(b"ree"), []);
        assert_eq!(lines.end(), Some(whole("three")));
        assert_eq!(lines.end(), None);
    }

    #[test]
    fn a_line_that_is_too_long_is_told_once_and_not_kept() {
        let mut lines = Lines::default();
        let mut told = Vec::new();
        for _ in 0..100 {
            told.extend(lines.push(&[b'x'; 4096]));
            assert!(lines.rest.len() <= MAX_LINE + 1);
        }
        told.extend(lines.push(b"x\nnext\n"));
        assert_eq!(told, [Line::TooLong, whole("next")]);
    }
}
