//! Standard output, and how numbers read.

use std::io::{ErrorKind, Write};

use serde::Serialize;
use tensorpress::Error;
use tensorpress::tensor::Storage;

use crate::failure::{Failure, Outcome};

/// Writes to standard output; a closed pipe ends the program quietly.
pub(crate) fn print(text: &str) -> Outcome {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(|e| match e.kind() {
        ErrorKind::BrokenPipe => Failure::Closed,
        _ => Failure::Failed(Error::io("write to standard output", "-", e)),
    })
}

/// A line on standard error, for a person. Unlike `eprintln`, it does not matter whether somebody reads it.
macro_rules! say {
    ($($line:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stderr(), $($line)*);
    }};
}
pub(crate) use say;

/// One JSON object.
pub(crate) fn print_json(value: &impl Serialize) -> Outcome {
    let text = serde_json::to_string_pretty(value).expect("results are JSON");
    print(&(text + "\n"))
}

/// `12.3 MB`
pub(crate) fn bytes(bytes: u64) -> String {
    let units = [("GB", 1e9), ("MB", 1e6), ("kB", 1e3)];
    match units.into_iter().find(|(_, size)| bytes as f64 >= *size) {
        Some((unit, size)) => format!("{:.2} {unit}", bytes as f64 / size),
        None => format!("{bytes} B"),
    }
}

/// Packed over unpacked length.
pub(crate) fn ratio(packed: u64, unpacked: u64) -> f64 {
    packed as f64 / unpacked.max(1) as f64
}

/// `codes 4.000, scales 0.125` bits per weight.
pub(crate) fn itemised(storage: &Storage, weights: u64) -> String {
    let items = storage.items().map(|(kind, bytes)| {
        let bits = 8.0 * bytes as f64 / weights.max(1) as f64;
        format!("{} {bits:.3}", format!("{kind:?}").to_lowercase())
    });
    items.collect::<Vec<_>>().join(", ")
}

/// Characters of a name that a table shows.
const SHOWN: usize = 200;

/// A name as a table shows it: control characters are written out, the middle of one that nobody could read is not. JSON
/// has names whole.
pub(crate) fn shown(name: &str) -> String {
    let written = |c: char| if c.is_control() { c.escape_default().to_string() } else { c.into() };
    let name: String = name.chars().map(written).collect();
    let count = name.chars().count();
    if count <= SHOWN {
        return name;
    }
    let half = SHOWN / 2;
    let (begin, end) = (name.chars().take(half - 1), name.chars().skip(count - half));
    begin.chain(['…']).chain(end).collect()
}

/// Rows of cells as columns of equal width, numbers to the right.
pub(crate) fn table(rows: &[Vec<String>]) -> String {
    let widths = widths(rows);
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            // Not by a format's width, which ends at 65,535.
            let blanks = " ".repeat(width - cell.chars().count());
            let number = cell.starts_with(|c: char| c.is_ascii_digit());
            let (before, after) =
                if number { (blanks.as_str(), "") } else { ("", blanks.as_str()) };
            line += &[before, cell, after, "  "].concat();
        }
        text += line.trim_end();
        text.push('\n');
    }
    text
}

/// Indented rows whose cells but the last are columns of equal width.
pub(crate) fn listed<const N: usize>(rows: &[[String; N]]) -> String {
    let widths = widths(rows);
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            line += &["  ", cell, &" ".repeat(width - cell.chars().count())].concat();
        }
        text += line.trim_end();
        text.push('\n');
    }
    text
}

/// Names in indented lines of at most 100 characters.
pub(crate) fn wrapped(names: &[&str]) -> String {
    let mut lines = vec![" ".to_owned()];
    for (i, name) in names.iter().enumerate() {
        let name = if i + 1 < names.len() { format!(" {name},") } else { format!(" {name}") };
        match lines.last_mut() {
            Some(line) if line.len() + name.len() <= 100 => *line += &name,
            _ => lines.push(format!(" {name}")),
        }
    }
    lines.join("\n") + "\n"
}

/// Characters of the widest cell of each column.
fn widths<R: AsRef<[String]>>(rows: &[R]) -> Vec<usize> {
    let mut widths = Vec::new();
    for row in rows {
        let cells = row.as_ref();
        widths.resize(widths.len().max(cells.len()), 0);
        cells.iter().zip(&mut widths).for_each(|(c, width)| *width = c.chars().count().max(*width));
    }
    widths
}
