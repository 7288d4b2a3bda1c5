//! What a terminal shows after a command: escape codes followed, progress bars gone as they are for whoever looks on.

use anyhow::{Context, ensure};
use std::num::NonZeroU16;
use vt100::{Cell, Color, Parser};

/// How a piece of text looks.
#[derive(Clone, Copy, Default, PartialEq)]
pub(crate) struct Look {
    pub(crate) colour: Option<[u8; 3]>,
    pub(crate) bold: bool,
    pub(crate) dim: bool,
    pub(crate) underlined: bool,
}

/// Text without a gap and with one look, from a column on.
#[derive(Debug, PartialEq)]
pub(crate) struct Piece {
    pub(crate) column: u16,
    pub(crate) columns: u16,
    pub(crate) text: String,
    pub(crate) look: Look,
}

impl std::fmt::Debug for Look {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            out,
            "{:?} bold {} dim {} underlined {}",
            self.colour, self.bold, self.dim, self.underlined
        )
    }
}

/// A row of the screen.
#[derive(Default)]
pub(crate) struct Line(pub(crate) Vec<Piece>);

impl Line {
    /// The row as plain text.
    pub(crate) fn text(&self) -> String {
        let mut text = String::new();
        let mut column = 0;
        for piece in &self.0 {
            let gap = piece.column.saturating_sub(column);
            text.extend(std::iter::repeat_n(' ', gap.into()));
            text.push_str(&piece.text);
            column = piece.column + piece.columns;
        }
        text
    }
}

/// The rows that a terminal of this size shows once it has read these bytes, without the empty ones at the end.
pub(crate) fn lines(bytes: &[u8], rows: u16, columns: u16) -> anyhow::Result<Vec<Line>> {
    let size = |cells| NonZeroU16::new(cells).context("a screen without a cell");
    let mut parser = Parser::new(size(rows)?, size(columns)?, 1);
    parser.process(bytes);
    // A row that scrolled away would be missing from the picture.
    let screen = parser.screen();
    ensure!(
        screen.scrollback_len() == 0,
        "a command prints more than {rows} rows"
    );
    let mut lines: Vec<Line> = (0..rows)
        .map(|row| {
            let mut line = Line::default();
            for column in 0..columns {
                if let Some(cell) = screen.cell(row, column) {
                    add(&mut line, column, cell);
                }
            }
            line
        })
        .collect();
    while lines.last().is_some_and(|line| line.0.is_empty()) {
        lines.pop();
    }
    Ok(lines)
}

fn add(line: &mut Line, column: u16, cell: &Cell) {
    let text = cell.contents();
    if text.trim().is_empty() {
        return;
    }
    let look = Look {
        colour: colour(cell.fgcolor()),
        bold: cell.bold(),
        dim: cell.dim(),
        underlined: cell.underline(),
    };
    let columns = if cell.is_wide() { 2 } else { 1 };
    match line.0.last_mut() {
        Some(piece) if piece.column + piece.columns == column && piece.look == look => {
            piece.text.push_str(text);
            piece.columns += columns;
        }
        _ => line.0.push(Piece {
            column,
            columns,
            text: text.to_owned(),
            look,
        }),
    }
}

/// The first sixteen colours, made for a dark ground: each reads on it at 4.5 to 1 or better.
const PALETTE: [[u8; 3]; 16] = [
    [0x8b, 0x94, 0x9e],
    [0xff, 0x7b, 0x72],
    [0x56, 0xd3, 0x64],
    [0xe3, 0xb3, 0x41],
    [0x79, 0xc0, 0xff],
    [0xd2, 0xa8, 0xff],
    [0x56, 0xd4, 0xdd],
    [0xe6, 0xed, 0xf3],
    [0x8b, 0x94, 0x9e],
    [0xff, 0xa1, 0x98],
    [0x7e, 0xe7, 0x87],
    [0xf2, 0xcc, 0x60],
    [0xa5, 0xd6, 0xff],
    [0xe2, 0xc5, 0xff],
    [0xb3, 0xf0, 0xff],
    [0xff, 0xff, 0xff],
];

/// Red, green and blue; the upper 240 colours as xterm defines them.
fn colour(colour: Color) -> Option<[u8; 3]> {
    match colour {
        Color::Default => None,
        Color::Rgb(red, green, blue) => Some([red, green, blue]),
        Color::Idx(index) => Some(match (PALETTE.get(usize::from(index)), index) {
            (Some(colour), _) => *colour,
            (None, 232..) => [8 + 10 * (index - 232); 3],
            (None, _) => [36, 6, 1].map(|step| match (index - 16) / step % 6 {
                0 => 0,
                level => 55 + 40 * level,
            }),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_that_was_drawn_over_is_gone_and_colours_stay() {
        let bytes = b"  upload \x1b[36m####\x1b[0m\r\x1b[2K\x1b[32mdone\x1b[0m  2 files\r\n\x1b[38;5;196mx\x1b[0m\r\n";
        let lines = lines(bytes, 5, 40).unwrap();
        let texts: Vec<_> = lines.iter().map(Line::text).collect();
        assert_eq!(texts, ["done  2 files", "x"]);
        assert_eq!(lines[0].0[0].look.colour, Some(PALETTE[2]));
        assert_eq!(lines[0].0[1].column, 6);
        assert_eq!(lines[1].0[0].look.colour, Some([255, 0, 0]));
    }

    #[test]
    fn output_longer_than_the_screen_is_an_error() {
        assert!(lines(b"1\r\n2\r\n3\r\n4", 3, 10).is_err());
    }
}
