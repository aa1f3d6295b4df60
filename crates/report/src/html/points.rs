//! The points of a curve as a table: every number, and for who cannot see the plot.

use std::fmt::{self, Write};

use crate::curve::Curve;
use crate::text::{Escaped, grouped, number};

/// Nothing for a curve without points.
pub fn table(out: &mut String, curve: &Curve) -> fmt::Result {
    if curve.series.iter().all(|series| series.points.is_empty()) {
        return Ok(());
    }
    out.push_str(
        "<details>\n<summary>The points as a table</summary>\n<div class=\"wide\">\n<table>\n<thead><tr>\
         <th scope=\"col\">series</th><th scope=\"col\">label</th><th scope=\"col\" class=\"n\">bytes</th>\
         <th scope=\"col\" class=\"n\">bits a weight</th><th scope=\"col\" class=\"n\">mean KL divergence</th>\
         </tr></thead>\n<tbody>\n",
    );
    for series in &curve.series {
        for point in &series.points {
            writeln!(
                out,
                "<tr><th scope=\"row\">{}</th><td>{}</td><td class=\"n\">{}</td><td class=\"n\">{}</td>\
                 <td class=\"n\">{}</td></tr>",
                Escaped(&series.name),
                Escaped(&point.label),
                grouped(point.bytes.into()),
                number(point.bits),
                number(point.divergence)
            )?;
        }
    }
    out.push_str("</tbody>\n</table>\n</div>\n</details>\n");
    Ok(())
}
