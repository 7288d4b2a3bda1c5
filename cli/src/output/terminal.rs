//! What a stream can show: colours, characters beyond ASCII, moving bars, and how wide it is.
//!
//! The decision is a pure function of the environment and of what the stream is.

use std::io::IsTerminal;
use std::os::fd::AsFd;

/// Columns of a terminal that does not say.
const USUAL_WIDTH: u16 = 80;

/// What a stream can show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Terminal {
    /// Columns, if people read along; `None` in a pipe or a file, where nothing is cut.
    pub(crate) width: Option<u16>,
    /// Whether text may be coloured.
    pub(crate) colours: bool,
    /// Whether characters beyond ASCII may decorate. Names and texts are printed as they are in any case.
    pub(crate) unicode: bool,
    /// Whether bars may move.
    pub(crate) bars: bool,
}

/// An environment variable that says something.
pub(crate) fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

impl Terminal {
    pub(crate) fn of(stream: &(impl IsTerminal + AsFd)) -> Self {
        let size = terminal_size::terminal_size_of(stream).map(|(width, _)| width.0);
        Self::decide(stream.is_terminal(), size, &variable)
    }

    /// <https://no-color.org> before <https://bixense.com/clicolors>, as clap decides for its help.
    fn decide(
        is_terminal: bool,
        size: Option<u16>,
        variable: &dyn Fn(&str) -> Option<String>,
    ) -> Self {
        let no_colour = variable("NO_COLOR").is_some();
        let forced = variable("CLICOLOR_FORCE").is_some_and(|value| value != "0");
        let unwanted = variable("CLICOLOR").is_some_and(|value| value == "0");
        let dumb = variable("TERM").is_none_or(|term| term == "dumb");
        let locale = ["LC_ALL", "LC_CTYPE", "LANG"]
            .iter()
            .find_map(|name| variable(name));
        let utf8 = locale.is_some_and(|locale| {
            let locale = locale.to_ascii_lowercase();
            locale.contains("utf-8") || locale.contains("utf8")
        });
        let columns = variable("COLUMNS").and_then(|columns| columns.parse().ok());
        let width = size
            .or(columns)
            .filter(|width| *width > 0)
            .unwrap_or(USUAL_WIDTH);
        Self {
            width: is_terminal.then_some(width),
            colours: !no_colour && (forced || (is_terminal && !unwanted && !dumb)),
            unicode: is_terminal && utf8 && !dumb,
            bars: is_terminal && !dumb && !no_colour,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decide(is_terminal: bool, environment: &[(&str, &str)]) -> Terminal {
        Terminal::decide(is_terminal, Some(100), &|name| {
            environment
                .iter()
                .find(|(key, value)| *key == name && !value.is_empty())
                .map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn colours_obey_the_variables_and_then_the_stream() {
        let term = ("TERM", "xterm");
        for (is_terminal, environment, colours) in [
            (true, vec![term], true),
            (false, vec![term], false),
            (true, vec![], false),
            (true, vec![("TERM", "dumb")], false),
            (true, vec![term, ("NO_COLOR", "1")], false),
            (true, vec![term, ("NO_COLOR", "")], true),
            (true, vec![term, ("CLICOLOR", "0")], false),
            (false, vec![("CLICOLOR_FORCE", "1")], true),
            (false, vec![("CLICOLOR_FORCE", "0")], false),
            (
                true,
                vec![term, ("CLICOLOR_FORCE", "1"), ("NO_COLOR", "1")],
                false,
            ),
        ] {
            assert_eq!(
                decide(is_terminal, &environment).colours,
                colours,
                "{is_terminal} {environment:?}"
            );
        }
    }

    #[test]
    fn bars_and_unicode_need_a_terminal_that_can() {
        let able = [("TERM", "xterm"), ("LANG", "en_GB.UTF-8")];
        assert!(decide(true, &able).bars && decide(true, &able).unicode);
        let pipe = decide(false, &able);
        assert_eq!((pipe.width, pipe.bars, pipe.unicode), (None, false, false));
        // LC_ALL has the last word over LANG; colours forced into a pipe bring no bars.
        assert!(!decide(true, &[able[0], able[1], ("LC_ALL", "C")]).unicode);
        assert!(!decide(false, &[able[0], ("CLICOLOR_FORCE", "1")]).bars);
        assert!(!decide(true, &[able[0], ("NO_COLOR", "1")]).bars);
    }

    #[test]
    fn the_width_is_the_terminals_then_columns_then_the_usual_one() {
        let width = |size, columns: &str| {
            let columns = columns.to_owned();
            Terminal::decide(true, size, &|name| {
                (name == "COLUMNS").then(|| columns.clone())
            })
            .width
        };
        assert_eq!(width(Some(120), "90"), Some(120));
        assert_eq!(width(None, "90"), Some(90));
        assert_eq!(width(None, "many"), Some(USUAL_WIDTH));
        assert_eq!(width(Some(0), ""), Some(USUAL_WIDTH));
    }
}
