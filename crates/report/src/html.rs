//! The pieces of a page.

mod points;
mod units;

use std::fmt::{self, Write};

use crate::curve::Curve;
use crate::kinds;
use crate::page::{Fact, Page};
use crate::plot::Plot;
use crate::text::{Escaped, Lines, grouped};
use crate::unit::Unit;
use crate::{Result, blocks, plot};

const CSS: &str = include_str!("html/page.css");
const JS: &str = include_str!("html/page.js");

/// More kinds than these share a row.
const KINDS: usize = 40;

/// The whole page.
pub fn page(page: &Page) -> Result<String> {
    let mut out = String::with_capacity(50_000 + 250 * page.units.len());
    head(&mut out, &page.title)?;
    facts(&mut out, &page.facts)?;
    if let Some(curve) = &page.curve {
        rate_distortion(&mut out, curve)?;
    }
    figure(
        &mut out,
        &blocks::bits(&page.units),
        "The mean where a block has several matrices of a kind. Lines are shifted by up to four pixels, so that equals do not hide each other.",
    )?;
    figure(
        &mut out,
        &blocks::sensitivity(&page.units),
        "What the model is expected to lose by the level that was chosen, summed over a block's matrices of a kind.",
    )?;
    bytes_by_kind(&mut out, &page.units)?;
    fallbacks(&mut out, &page.units)?;
    notes(&mut out, &page.notes)?;
    command(&mut out, page.command.as_deref())?;
    units::table(&mut out, &page.units)?;
    write!(out, "</main>\n<script>\n{JS}</script>\n</body>\n</html>\n")?;
    Ok(out)
}

fn head(out: &mut String, title: &str) -> fmt::Result {
    let title = Escaped(title);
    // The policy keeps the page from loading anything, whatever is in it; an icon would be asked for.
    write!(
        out,
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <meta name=\"color-scheme\" content=\"light dark\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; \
         style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:\">\n\
         <link rel=\"icon\" href=\"data:,\">\n<title>{title}</title>\n<style>\n{}{CSS}</style>\n\
         </head>\n<body>\n<main>\n<h1>{title}</h1>\n",
        plot::CSS
    )
}

fn facts(out: &mut String, facts: &[Fact]) -> fmt::Result {
    if facts.is_empty() {
        return Ok(());
    }
    out.push_str("<dl class=\"facts\">\n");
    for Fact { label, value, .. } in facts {
        let (label, value) = (Escaped(label), Escaped(value));
        writeln!(out, "<div><dt>{label}</dt><dd>{value}</dd></div>")?;
    }
    out.push_str("</dl>\n");
    Ok(())
}

fn rate_distortion(out: &mut String, curve: &Curve) -> Result<()> {
    figure(out, &curve.plot(), "Further down and to the left is better.")?;
    points::table(out, curve)?;
    Ok(())
}

/// A plot that is not empty.
fn figure(out: &mut String, plot: &Plot, caption: &str) -> Result<()> {
    if let Some(svg) = plot.inline()? {
        let title = Escaped(plot.title);
        write!(
            out,
            "<section>\n<h2>{title}</h2>\n<figure>\n<div class=\"wide\" tabindex=\"0\" role=\"group\" \
             aria-label=\"{title}\">\n{svg}</div>\n<figcaption>{caption}</figcaption>\n</figure>\n</section>\n"
        )?;
    }
    Ok(())
}

fn bytes_by_kind(out: &mut String, units: &[Unit]) -> fmt::Result {
    if units.is_empty() {
        return Ok(());
    }
    let kinds = kinds::of(units);
    let total: u128 = kinds.iter().map(|kind| kind.bytes).sum();
    out.push_str(
        "<section>\n<h2>Bytes by kind</h2>\n<div class=\"wide\" tabindex=\"0\" role=\"group\" aria-label=\"Bytes by kind\">\n\
         <table>\n<thead><tr><th scope=\"col\">kind</th><th scope=\"col\" class=\"n\">matrices</th>\
         <th scope=\"col\" class=\"n\">bytes</th><th scope=\"col\" class=\"share\">share</th></tr></thead>\n<tbody>\n",
    );
    let mut row = |name: &str, count: usize, bytes: u128| {
        let share = if total > 0 { 100.0 * bytes as f64 / total as f64 } else { 0.0 };
        // The number beside the longest bar needs room.
        let bar = 0.75 * share;
        let (count, bytes) = (grouped(count as u128), grouped(bytes));
        writeln!(
            out,
            "<tr><th scope=\"row\">{}</th><td class=\"n\">{count}</td><td class=\"n\">{bytes}</td>\
             <td class=\"share\"><span class=\"bar\" style=\"width:{bar:.1}%\"></span>\
             {share:.1} %</td></tr>",
            Escaped(name)
        )
    };
    let (first, rest) = kinds.split_at(kinds.len().min(KINDS));
    for kind in first {
        row(kind.name, kind.count, kind.bytes)?;
    }
    if !rest.is_empty() {
        let name = format!("({} further kinds)", grouped(rest.len() as u128));
        let (count, bytes) =
            (rest.iter().map(|k| k.count).sum(), rest.iter().map(|k| k.bytes).sum());
        row(&name, count, bytes)?;
    }
    out.push_str("</tbody>\n</table>\n</div>\n</section>\n");
    Ok(())
}

/// By reason, in the order in which they first come.
fn fallbacks(out: &mut String, units: &[Unit]) -> fmt::Result {
    let mut reasons: Vec<(&str, Vec<&Unit>)> = Vec::new();
    let mut known = std::collections::HashMap::new();
    for unit in units {
        let Some(reason) = unit.fallback.as_deref() else { continue };
        let at = *known.entry(reason).or_insert(reasons.len());
        if at == reasons.len() {
            reasons.push((reason, Vec::new()));
        }
        reasons[at].1.push(unit);
    }
    if reasons.is_empty() {
        return Ok(());
    }
    out.push_str("<section>\n<h2>Fallbacks</h2>\n<p>Stored otherwise than was asked for:</p>\n<ul class=\"fallbacks\">\n");
    for (reason, units) in reasons {
        write!(out, "<li>{}\n<ul>\n", Escaped(reason))?;
        for unit in units {
            let (name, method) = (Escaped(&unit.name), Escaped(&unit.method));
            writeln!(out, "<li><code>{name}</code>: {method}</li>")?;
        }
        out.push_str("</ul></li>\n");
    }
    out.push_str("</ul>\n</section>\n");
    Ok(())
}

fn notes(out: &mut String, notes: &[String]) -> fmt::Result {
    if notes.is_empty() {
        return Ok(());
    }
    out.push_str("<section>\n<h2>Notes</h2>\n<ul class=\"notes\">\n");
    for note in notes {
        writeln!(out, "<li>{}</li>", Lines(note))?;
    }
    out.push_str("</ul>\n</section>\n");
    Ok(())
}

fn command(out: &mut String, command: Option<&str>) -> fmt::Result {
    match command {
        Some(command) if !command.is_empty() => writeln!(
            out,
            "<section>\n<h2>To repeat it</h2>\n<pre tabindex=\"0\"><code>{}</code></pre>\n</section>",
            Lines(command)
        ),
        _ => Ok(()),
    }
}
