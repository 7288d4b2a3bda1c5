//! What people read: lines, fields and tables, fitted to the terminal.
//!
//! On a terminal a table's rows have one line each and long cells are cut; in a pipe nothing is.

use super::Terminal;
use anstyle::{AnsiColor, Style};
use comfy_table::{
    Attribute, Cell as TableCell, Color, ColumnConstraint, ContentArrangement, Table as Layout,
    Width, presets,
};
use std::fmt::{self, Display, Write};

/// What a piece of text means; a colour where colours may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Tone {
    #[default]
    Plain,
    /// It is as it should be.
    Good,
    /// It needs a look.
    Warn,
    /// It failed.
    Bad,
    /// It matters less.
    Dim,
    /// It is a heading or what one looks for.
    Strong,
}

impl Tone {
    fn style(self) -> Style {
        match self {
            Self::Plain => Style::new(),
            Self::Good => AnsiColor::Green.on_default(),
            Self::Warn => AnsiColor::Yellow.on_default(),
            Self::Bad => AnsiColor::Red.on_default().bold(),
            Self::Dim => Style::new().dimmed(),
            Self::Strong => Style::new().bold(),
        }
    }

    fn cell(self, text: String) -> TableCell {
        let cell = TableCell::new(text);
        match self {
            Self::Plain => cell,
            Self::Good => cell.fg(Color::DarkGreen),
            Self::Warn => cell.fg(Color::DarkYellow),
            Self::Bad => cell.fg(Color::DarkRed).add_attribute(Attribute::Bold),
            Self::Dim => cell.add_attribute(Attribute::Dim),
            Self::Strong => cell.add_attribute(Attribute::Bold),
        }
    }
}

/// Rows under a header.
#[derive(Debug)]
pub(crate) struct Table {
    header: Vec<String>,
    rows: Vec<Vec<Cell>>,
}

/// One cell: a text, or a text that means something.
#[derive(Debug)]
pub(crate) struct Cell {
    text: String,
    tone: Tone,
}

impl From<&str> for Cell {
    fn from(text: &str) -> Self {
        (text, Tone::Plain).into()
    }
}

impl From<String> for Cell {
    fn from(text: String) -> Self {
        (text, Tone::Plain).into()
    }
}

impl<T: Display> From<(T, Tone)> for Cell {
    fn from((text, tone): (T, Tone)) -> Self {
        Self {
            text: clean(&text.to_string()),
            tone,
        }
    }
}

impl Table {
    pub(crate) fn new(header: &[&str]) -> Self {
        Self {
            header: header.iter().map(|name| (*name).to_owned()).collect(),
            rows: Vec::new(),
        }
    }

    /// Adds a row.
    pub(crate) fn row<C: Into<Cell>>(&mut self, cells: impl IntoIterator<Item = C>) {
        self.rows.push(cells.into_iter().map(Into::into).collect());
    }

    fn into_text(self, terminal: Terminal) -> String {
        let mut layout = Layout::new();
        layout
            .load_preset(presets::NOTHING)
            .force_no_tty()
            .set_truncation_indicator(if terminal.unicode { "…" } else { "..." });
        if terminal.colours {
            layout.enforce_styling();
            layout.style_text_only();
        }
        match terminal.width {
            Some(width) => layout
                .set_content_arrangement(ContentArrangement::Dynamic)
                .set_width(width),
            None => layout.set_content_arrangement(ContentArrangement::Disabled),
        };
        let columns = self.header.len();
        let header: Vec<_> = self
            .header
            .into_iter()
            .map(|name| Tone::Strong.cell(name))
            .collect();
        let mut header = comfy_table::Row::from(header);
        header.max_height(1);
        layout.set_header(header);
        for cells in self.rows {
            let mut row = comfy_table::Row::from(
                cells
                    .into_iter()
                    .map(|cell| cell.tone.cell(cell.text))
                    .collect::<Vec<_>>(),
            );
            row.max_height(1);
            layout.add_row(row);
        }
        // The first column names the row: it is never cut to make room for the others.
        if columns > 1
            && let Some(first) = layout.column_mut(0)
        {
            first.set_padding((0, 1));
            first.set_constraint(ColumnConstraint::UpperBoundary(Width::Percentage(60)));
        }
        let mut text = String::new();
        for line in layout.lines() {
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// Collects what is printed at once.
#[derive(Debug)]
pub(crate) struct Page {
    terminal: Terminal,
    text: String,
}

impl Page {
    pub(crate) fn new(terminal: Terminal) -> Self {
        Self {
            terminal,
            text: String::new(),
        }
    }

    pub(crate) fn into_text(self) -> String {
        self.text
    }

    /// A plain line, or several.
    pub(crate) fn line(&mut self, text: impl Display) {
        for line in text.to_string().lines() {
            push(&mut self.text, line);
            self.text.push('\n');
        }
    }

    /// A line of pieces that mean something.
    pub(crate) fn pieces<T: Display>(&mut self, pieces: impl IntoIterator<Item = (T, Tone)>) {
        for (piece, tone) in pieces {
            let style = (self.terminal.colours && tone != Tone::Plain).then(|| tone.style());
            if let Some(style) = style {
                self.text.push_str(&style.to_string());
            }
            push(&mut self.text, piece);
            if let Some(style) = style {
                self.text.push_str(&format!("{style:#}"));
            }
        }
        self.text.push('\n');
    }

    /// A line that says that something was done.
    pub(crate) fn done(&mut self, text: impl Display) {
        let text = text.to_string();
        if self.terminal.unicode {
            self.pieces([("✓ ", Tone::Good), (&text, Tone::Plain)]);
        } else {
            self.line(text);
        }
    }

    /// Names and values, one pair a line.
    pub(crate) fn fields<N: Display, V: Display>(
        &mut self,
        fields: impl IntoIterator<Item = (N, V)>,
    ) {
        let fields: Vec<_> = fields
            .into_iter()
            .map(|(name, value)| (name.to_string(), value.to_string()))
            .collect();
        let width = fields
            .iter()
            .map(|(name, _)| name.chars().count())
            .max()
            .unwrap_or(0);
        for (name, value) in fields {
            self.pieces([
                (format!("{name:<width$}  "), Tone::Dim),
                (value, Tone::Plain),
            ]);
        }
    }

    pub(crate) fn table(&mut self, table: Table) {
        let text = table.into_text(self.terminal);
        self.text.push_str(&text);
    }
}

/// Writes text that cannot steer a terminal: control characters, also those of ISO 6429's upper half, and those that turn
/// the direction of writing become spaces.
struct Clean<'a>(&'a mut String);

impl fmt::Write for Clean<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let steers = |c: char| {
            c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
        };
        for (index, part) in text.split(steers).enumerate() {
            if index > 0 {
                self.0.push(' ');
            }
            self.0.push_str(part);
        }
        Ok(())
    }
}

fn clean(text: &str) -> String {
    let mut cleaned = String::with_capacity(text.len());
    push(&mut cleaned, text);
    cleaned
}

/// Adds a value's text, cleaned.
fn push(text: &mut String, value: impl Display) {
    // A string takes everything, and what cannot be displayed is left out.
    let _ = write!(Clean(text), "{value}");
}

#[cfg(test)]
mod tests {
    use super::*;

    const PIPE: Terminal = Terminal {
        width: None,
        colours: false,
        unicode: false,
        bars: false,
    };

    fn table(terminal: Terminal) -> String {
        let mut table = Table::new(&["NAME", "LIVE", "DESCRIPTION"]);
        table.row([
            ("fraud".to_owned(), Tone::Good),
            ("1".to_owned(), Tone::Plain),
            ("scores ".repeat(30), Tone::Plain),
        ]);
        table.row(["echo", "12", "\u{1b}[31mred\nline"]);
        let mut page = Page::new(terminal);
        page.table(table);
        page.into_text()
    }

    #[test]
    fn a_table_in_a_pipe_is_plain_whole_and_one_line_a_row() {
        let text = table(PIPE);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 3, "{text}");
        assert!(lines[1].matches("scores").count() == 30 && text.is_ascii());
        assert!(!text.contains('\u{1b}') && !text.contains('|'));
    }

    #[test]
    fn a_table_on_a_terminal_fits_it_and_says_what_it_cut() {
        for width in [20, 40, 80] {
            for unicode in [false, true] {
                let text = table(Terminal {
                    width: Some(width),
                    unicode,
                    ..PIPE
                });
                assert_eq!(text.lines().count(), 3, "{width}: {text}");
                for line in text.lines() {
                    assert!(
                        line.chars().count() <= usize::from(width),
                        "{width}: {text}"
                    );
                }
                assert!(
                    text.contains(if unicode { "…" } else { "..." }),
                    "{width}: {text}"
                );
                assert!(text.contains("fraud"), "{width}: {text}");
            }
        }
    }

    #[test]
    fn colours_change_no_character_of_the_text() {
        let plain = table(Terminal {
            width: Some(60),
            ..PIPE
        });
        let coloured = table(Terminal {
            width: Some(60),
            colours: true,
            ..PIPE
        });
        assert!(coloured.contains('\u{1b}'));
        let mut bare = String::new();
        let mut rest = coloured.as_str();
        while let Some((before, after)) = rest.split_once('\u{1b}') {
            bare.push_str(before);
            rest = after.split_once('m').unwrap().1;
        }
        bare.push_str(rest);
        let bare: Vec<_> = bare.lines().map(str::trim_end).collect();
        assert_eq!(bare, plain.lines().collect::<Vec<_>>());
    }

    #[test]
    fn nothing_that_others_wrote_steers_the_terminal() {
        let mut page = Page::new(PIPE);
        page.line("a\u{1b}]0;title\u{7}b\u{9b}2Jc\u{202e}d\r\nnext");
        page.fields([("na\u{1b}me", "va\nlue")]);
        let text = page.into_text();
        assert!(
            text.chars().all(|c| c == '\n' || !c.is_control()),
            "{text:?}"
        );
        assert!(!text.contains('\u{202e}') && text.contains("\nnext\n"));
    }
}
