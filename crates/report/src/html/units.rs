//! The table of all matrices, which a script makes sortable and searchable.

use std::collections::BTreeMap;
use std::fmt::{self, Write};

use crate::kinds;
use crate::text::{Escaped, UNKNOWN, grouped, number};
use crate::unit::Unit;

/// Short names of kinds, by their names.
type Names<'a> = BTreeMap<&'a str, String>;

/// A column: its head, whether it holds numbers, and what a unit has in it, if anything.
struct Column {
    head: &'static str,
    numeric: bool,
    cell: fn(&Unit, &Names<'_>) -> Option<String>,
}

fn text(of: &str) -> Option<String> {
    (!of.is_empty()).then(|| Escaped(of).to_string())
}

fn kind(unit: &Unit, names: &Names<'_>) -> Option<String> {
    text(names.get(unit.kind.as_str()).unwrap_or(&unit.kind))
}

fn why(unit: &Unit, _: &Names<'_>) -> Option<String> {
    let fallback = unit.fallback.as_deref().and_then(text);
    let fallback = fallback.map(|reason| format!("fallback: {reason}"));
    match (text(&unit.why), fallback) {
        (Some(why), Some(fallback)) => Some(format!("{why}; {fallback}")),
        (why, fallback) => why.or(fallback),
    }
}

const COLUMNS: [Column; 8] = [
    Column {
        head: "block",
        numeric: true,
        cell: |unit, _| unit.block.map(|block| block.to_string()),
    },
    Column { head: "kind", numeric: false, cell: kind },
    Column { head: "method", numeric: false, cell: |unit, _| text(&unit.method) },
    Column {
        head: "bits a weight",
        numeric: true,
        cell: |unit, _| unit.bits.is_finite().then(|| number(unit.bits)),
    },
    Column { head: "bytes", numeric: true, cell: |unit, _| Some(grouped(unit.bytes.into())) },
    Column {
        head: "relative error",
        numeric: true,
        cell: |unit, _| unit.relative_error.map(number),
    },
    Column { head: "expected loss", numeric: true, cell: |unit, _| unit.expected_loss.map(number) },
    Column { head: "why this level", numeric: false, cell: why },
];

/// The table of these units; columns of which no unit has anything are left out.
pub fn table(out: &mut String, units: &[Unit]) -> fmt::Result {
    if units.is_empty() {
        return Ok(());
    }
    let names = kinds::short_names(units);
    let columns: Vec<&Column> = COLUMNS
        .iter()
        .filter(|column| units.iter().any(|unit| (column.cell)(unit, &names).is_some()))
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
            match (column.cell)(unit, &names) {
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
