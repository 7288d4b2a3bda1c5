//! What the pictures that xtask draws have in common: paper, ink, words and legends.

use plotters::coord::Shift;
use plotters::prelude::*;

/// A part of a picture.
pub(crate) type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

pub(crate) const GROUND: RGBColor = RGBColor(255, 255, 255);
pub(crate) const INK: RGBColor = RGBColor(31, 35, 40);
pub(crate) const QUIET: RGBColor = RGBColor(89, 99, 110);
pub(crate) const GRID: RGBColor = RGBColor(226, 230, 234);

/// How words look, in the size that plotters counts: 1.24 of it are a pixel.
pub(crate) fn words(size: i32, colour: RGBColor) -> TextStyle<'static> {
    ("sans-serif", size).into_font().color(&colour)
}

/// Words with their upper left corner at a place.
pub(crate) fn write(
    area: &Area<'_>,
    text: impl Into<String>,
    at: (i32, i32),
    style: TextStyle<'static>,
) -> anyhow::Result<()> {
    area.draw(&Text::new(text.into(), at, style))?;
    Ok(())
}

/// Squares with what they mean, in a row from `x` on.
pub(crate) fn legend(
    area: &Area<'_>,
    mut x: i32,
    size: i32,
    entries: impl Iterator<Item = (String, RGBColor)>,
) -> anyhow::Result<()> {
    for (text, colour) in entries {
        area.draw(&Rectangle::new([(x, 10), (x + 12, 22)], colour.filled()))?;
        // Wide enough for most letters: nothing here knows how wide they are.
        let width = 8 * i32::try_from(text.chars().count()).unwrap_or(0);
        write(area, text, (x + 18, 9), words(size, INK))?;
        x += 18 + width + 17;
    }
    Ok(())
}
