//! Draws a session: all of it stands there in the end, and where animations run it appears line by line.

use super::screen::{Line, Look, Piece};
use super::{COLUMNS, Step};
use std::fmt::Write;

/// Pixels of a column and of a row at this font size.
const COLUMN: f64 = 8.4;
const ROW: f64 = 20.0;
const FONT: f64 = 14.0;
const MARGIN: f64 = 18.0;
const BAR: f64 = 34.0;
/// Seconds from a command to what it prints if it took no time; what it took is added, up to a limit.
const PAUSE: f64 = 0.7;
const LONGEST: f64 = 1.5;
/// Seconds to read a command's output: at least, and for each line.
const READING: f64 = 0.6;
const READING_LINE: f64 = 0.12;

/// The session as an SVG that fetches nothing.
pub(crate) fn draw(session: &[Step]) -> String {
    let rows: usize = session.iter().map(|step| step.lines.len() + 2).sum();
    let width = f64::from(COLUMNS) * COLUMN + 2.0 * MARGIN;
    let height = BAR + rows as f64 * ROW + MARGIN;
    let mut body = String::new();
    let mut row = 0;
    let mut seconds = 0.3;
    for step in session {
        appear(&mut body, seconds, |out| {
            let prompt = Look {
                colour: Some([0x56, 0xd3, 0x64]),
                bold: true,
                ..Look::default()
            };
            let typed = Look {
                bold: true,
                ..Look::default()
            };
            piece(out, row, &text("$", 0, prompt));
            for (column, word) in words(step.command) {
                piece(out, row, &text(word, column + 2, typed));
            }
        });
        row += 1;
        seconds += PAUSE + step.took.as_secs_f64().min(LONGEST);
        appear(&mut body, seconds, |out| {
            for Line(pieces) in &step.lines {
                for each in pieces {
                    piece(out, row, each);
                }
                row += 1;
            }
        });
        row += 1;
        seconds += READING + READING_LINE * step.lines.len() as f64;
    }
    let commands: Vec<_> = session.iter().map(|step| step.command).collect();
    let commands = escape(&commands.join("; "));
    let middle = width / 2.0;
    format!(
        r##"<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0} {height:.0}" width="{width:.0}" height="{height:.0}" role="img" aria-labelledby="title desc">
<title id="title">A terminal session with fnctl</title>
<desc id="desc">The commands, each followed by what it printed: {commands}</desc>
<!-- Made by `cargo xtask record`. -->
<style>
text{{font:{FONT}px ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono","Liberation Mono",monospace;fill:#e6edf3}}
.b{{font-weight:600}}.d{{fill:#9198a1}}.u{{text-decoration:underline}}
.g{{animation:appear .01s both}}
@keyframes appear{{from{{opacity:0}}to{{opacity:1}}}}
@media (prefers-reduced-motion:reduce){{.g{{animation:none}}}}
</style>
<rect x=".5" y=".5" width="{:.0}" height="{:.0}" rx="8" fill="#0d1117" stroke="#3d444d"/>
<circle cx="20" cy="17" r="5.5" fill="#ff5f57"/><circle cx="38" cy="17" r="5.5" fill="#febc2e"/><circle cx="56" cy="17" r="5.5" fill="#28c840"/>
<text x="{middle:.0}" y="22" text-anchor="middle" class="d">fnctl</text>
{body}</svg>
"##,
        width - 1.0,
        height - 1.0,
    )
}

/// A group that is not seen before its time.
fn appear(out: &mut String, seconds: f64, draw: impl FnOnce(&mut String)) {
    let _ = writeln!(
        out,
        r#"<g class="g" style="animation-delay:{seconds:.1}s">"#
    );
    draw(out);
    out.push_str("</g>\n");
}

fn words(command: &str) -> impl Iterator<Item = (u16, &str)> {
    let mut column = 0;
    command.split(' ').map(move |word| {
        let at = column;
        column += width(word) + 1;
        (at, word)
    })
}

fn width(text: &str) -> u16 {
    u16::try_from(text.chars().count()).unwrap_or(u16::MAX)
}

fn text(text: &str, column: u16, look: Look) -> Piece {
    Piece {
        column,
        columns: width(text),
        text: text.to_owned(),
        look,
    }
}

/// One piece, held to its columns whatever the font's own width is.
fn piece(out: &mut String, row: usize, piece: &Piece) {
    let x = MARGIN + f64::from(piece.column) * COLUMN;
    let y = BAR + (row as f64 + 0.9) * ROW;
    let length = f64::from(piece.columns) * COLUMN;
    let mut classes = Vec::new();
    for (wanted, class) in [
        (piece.look.bold, "b"),
        (piece.look.dim, "d"),
        (piece.look.underlined, "u"),
    ] {
        if wanted {
            classes.push(class);
        }
    }
    let _ = write!(
        out,
        r#"<text x="{x:.1}" y="{y:.0}" textLength="{length:.1}""#
    );
    if !classes.is_empty() {
        let _ = write!(out, r#" class="{}""#, classes.join(" "));
    }
    if let Some([red, green, blue]) = piece.look.colour {
        let _ = write!(out, r#" style="fill:#{red:02x}{green:02x}{blue:02x}""#);
    }
    let _ = writeln!(out, ">{}</text>", escape(&piece.text));
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn what_a_command_prints_is_text_and_not_markup() {
        let step = Step {
            command: "fnctl get a&b",
            took: Duration::ZERO,
            lines: vec![Line(vec![text("<script>", 4, Look::default())])],
        };
        let picture = draw(&[step]);
        assert!(picture.contains(">&lt;script&gt;</text>"), "{picture}");
        assert!(picture.contains(">a&amp;b</text>"), "{picture}");
        assert!(!picture.contains("<script"), "{picture}");
    }
}
