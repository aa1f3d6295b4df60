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

/// Rows of cells as columns of equal width, numbers to the right.
pub(crate) fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|c| c.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            let number = cell.starts_with(|c: char| c.is_ascii_digit());
            line += &match number {
                true => format!("{cell:>width$}  "),
                false => format!("{cell:<width$}  "),
            };
        }
        text += line.trim_end();
        text.push('\n');
    }
    text
}
