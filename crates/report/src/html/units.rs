//! The table of all matrices, which a script makes sortable and searchable.

use std::fmt::{self, Write};

use crate::text::{Escaped, UNKNOWN, grouped, number};
use crate::unit::Unit;

/// A column: its head, whether it holds numbers, and what a unit has in it, if anything.
struct Column {
    head: &'static str,
    numeric: bool,
    cell: fn(&Unit) -> Option<String>,
}

fn text(of: &str) -> Option<String> {
    (!of.is_empty()).then(|| Escaped(of).to_string())
}

const COLUMNS: [Column; 9] = [
    Column { head: "block", numeric: true, cell: |unit| unit.block.map(|block| block.to_string()) },
    Column { head: "kind", numeric: false, cell: |unit| text(&unit.kind) },
    Column { head: "method", numeric: false, cell: |unit| text(&unit.method) },
    Column {
        head: "bits a weight",
        numeric: true,
        cell: |unit| unit.bits.is_finite().then(|| number(unit.bits)),
    },
    Column { head: "bytes", numeric: true, cell: |unit| Some(grouped(unit.bytes.into())) },
    Column { head: "relative error", numeric: true, cell: |unit| unit.relative_error.map(number) },
    Column { head: "expected loss", numeric: true, cell: |unit| unit.expected_loss.map(number) },
    Column { head: "why this level", numeric: false, cell: |unit| text(&unit.why) },
    Column {
        head: "fallback",
        numeric: false,
        cell: |unit| unit.fallback.as_deref().and_then(text),
    },
];

/// The table of these units; columns of which no unit has anything are left out.
pub fn table(out: &mut String, units: &[Unit]) -> fmt::Result {
    if units.is_empty() {
        return Ok(());
    }
    let columns: Vec<&Column> = COLUMNS
        .iter()
        .filter(|column| units.iter().any(|unit| (column.cell)(unit).is_some()))
        .collect();
    let count = grouped(units.len() as u128);
    write!(
        out,
        "<section>\n<h2>Matrices</h2>\n<p class=\"count\" id=\"shown\" role=\"status\">{count} in all</p>\n\
         <div class=\"wide tall\" tabindex=\"0\" role=\"group\" aria-label=\"Matrices\">\n<table class=\"units\">\n\
         <thead><tr><th scope=\"col\">name</th>"
    )?;
    for column in &columns {
        let class = if column.numeric { " class=\"n\"" } else { "" };
        write!(out, "<th scope=\"col\"{class}>{}</th>", column.head)?;
    }
    out.push_str("</tr></thead>\n<tbody>\n");
    for unit in units {
        // There may be many: ends of cells and rows, which HTML does not ask for, would be a third of the page.
        write!(out, "<tr><th scope=row>{}", Escaped(&unit.name))?;
        for column in &columns {
            out.push_str(if column.numeric { "<td class=n>" } else { "<td>" });
            match (column.cell)(unit) {
                Some(shown) => out.push_str(&shown),
                None if column.numeric => out.push_str(UNKNOWN),
                None => {}
            }
        }
        out.push('\n');
    }
    out.push_str("</tbody>\n</table>\n</div>\n</section>\n");
    Ok(())
}
