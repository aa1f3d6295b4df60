//! Where the entries of a legend go: rows below the plot.

use super::Line;
use super::draw::{CHARACTER, PAD, SCALE, WIDTH};
use crate::text::cut;

/// Between the tops of two rows of text.
pub const ROW: i32 = 20 * SCALE;

/// Of a sample of the line.
pub const SAMPLE: i32 = 26 * SCALE;

/// The longest name that is shown whole.
const NAME: usize = 40;

/// One entry.
pub struct Entry {
    /// Which line.
    pub line: usize,
    pub text: String,
    pub left: i32,
    pub row: i32,
}

/// The entries of all lines that have points, in columns of the same width, and how many rows they take.
pub fn entries(lines: &[Line]) -> (Vec<Entry>, i32) {
    let drawn: Vec<(usize, String)> = lines
        .iter()
        .enumerate()
        .filter(|(_, line)| !line.points.is_empty())
        .map(|(at, line)| (at, cut(&line.name, NAME)))
        .collect();
    let longest = drawn.iter().map(|(_, text)| text.chars().count()).max().unwrap_or(0) as i32;
    let width = SAMPLE + (longest + 3) * CHARACTER;
    let columns = ((WIDTH - PAD) / width).max(1);
    let rows = (drawn.len() as i32 + columns - 1) / columns;
    let entries = (0i32..).zip(drawn).map(|(at, (line, text))| {
        let (row, column) = (at / columns, at % columns);
        Entry { line, text, left: PAD + column * width, row }
    });
    (entries.collect(), rows)
}
