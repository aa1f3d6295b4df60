//! The drawing itself.

use std::fmt::Display;

use plotters::coord::Shift;
use plotters::prelude::{
    ChartBuilder, Circle, Color, DrawingArea, IntoDrawingArea, IntoFont, PathElement, Polygon,
    RGBColor, SVGBackend, Text, TextStyle,
};
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::axis::Span;
use super::labels::{Area, Taken};
use super::legend::{self, Entry};
use super::{Line, Plot, colours};
use crate::text::{counted, cut};
use crate::{Error, Result};

/// Units a pixel: `plotters` draws at whole units.
pub const SCALE: i32 = 2;
/// Of the whole.
pub const WIDTH: i32 = 760 * SCALE;
/// Around the whole.
pub const PAD: i32 = 10 * SCALE;
/// As wide as a character is on average, or a little wider.
pub const CHARACTER: i32 = 15;

/// Of what the axes enclose, with what is written along them.
const HEIGHT: i32 = 400 * SCALE;
/// Of text, in units; the backend divides by 1.24.
const FONT: f64 = 12.5 * SCALE as f64 * 1.24;
/// Reach of a marker.
const MARKER: i32 = 4 * SCALE;
/// More points than these have smaller markers.
const MANY: usize = 100;
/// A line of more points than these has markers at some of them.
const MARKED: usize = 48;
/// How far lines beside each other are shifted at most.
const BESIDE: i32 = 7;
/// Width of a line.
const STROKE: u32 = 2 * SCALE as u32;
/// The longest label that is shown whole.
const LABEL: usize = 28;

type Canvas<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Place = (i32, i32);

/// What was drawn: all that follows `<svg ...>`, and how large it is.
pub struct Drawn {
    pub body: String,
    pub width: i32,
    pub height: i32,
}

/// Draws a plot that is not empty.
pub fn draw(plot: &Plot) -> Result<Drawn> {
    let failed = |e: &dyn Display| Error::Plot { plot: plot.title.into(), message: e.to_string() };
    let (entries, rows) = legend::entries(&plot.lines);
    let values =
        |axis: fn(&(f64, f64)) -> f64| plot.lines.iter().flat_map(|line| &line.points).map(axis);
    let spans = (plot.x.span(values(|p| p.0)), plot.y.span(values(|p| p.1)));

    // Labels come last, and how many of them found no room makes a note: room for one more row.
    let lines_below = rows + plot.notes.len() as i32 + 1;
    let height = HEIGHT + lines_below * legend::ROW + PAD;
    let mut svg = String::new();
    let unplaced = {
        let size = (WIDTH as u32, height as u32);
        let canvas = SVGBackend::with_string(&mut svg, size).into_drawing_area();
        let unplaced = chart(plot, &canvas, &spans).map_err(|e| failed(&e))?;
        below(plot, &canvas, &entries, rows, unplaced).map_err(|e| failed(&e))?;
        canvas.present().map_err(|e| failed(&e))?;
        unplaced
    };
    // The root is written anew by who called.
    let body = svg.split_once('>').map_or(svg.as_str(), |(_, body)| body);
    let spare = if unplaced == 0 { legend::ROW } else { 0 };
    Ok(Drawn { body: colours::classed(body), width: WIDTH, height: height - spare })
}

type Drawing<T = ()> =
    std::result::Result<T, plotters::drawing::DrawingAreaErrorKind<std::io::Error>>;

/// Axes, lines, markers and labels; says how many labels found no room.
fn chart(plot: &Plot, canvas: &Canvas<'_>, (x, y): &(Span, Span)) -> Drawing<usize> {
    let (area, _) = canvas.split_vertically(HEIGHT);
    let widest = y.ticks.iter().map(|(_, shown)| shown.chars().count()).max().unwrap_or(0) as i32;
    let mut chart = ChartBuilder::on(&area)
        .margin(PAD)
        .margin_right(2 * PAD)
        .x_label_area_size(42 * SCALE)
        .y_label_area_size(widest * CHARACTER + 34 * SCALE)
        .build_cartesian_2d(x.clone(), y.clone())?;
    chart
        .configure_mesh()
        .axis_style(colours::GRID.stroke_width(2))
        .bold_line_style(colours::GRID.stroke_width(1))
        .label_style(font())
        .axis_desc_style(font())
        .x_desc(plot.x.name)
        .y_desc(plot.y.name)
        .draw()?;

    let (columns, rows) = chart.plotting_area().get_pixel_range();
    let mut taken = Taken::new(Area(columns.start, rows.start, columns.end, rows.end));
    let drawn = || plot.lines.iter().enumerate().filter(|(_, line)| !line.points.is_empty());
    let (count, points) = drawn().fold((0, 0), |(c, p), (_, line)| (c + 1, p + line.points.len()));
    let reach = if points > MANY { MARKER * 3 / 4 } else { MARKER };
    let mut wanted = Vec::new();
    for (at, (number, line)) in (0..).zip(drawn()) {
        let aside = if plot.beside { (2 * at - count + 1) * BESIDE / count } else { 0 };
        let place = |(across, up): &(f64, f64)| {
            let (x, y) = chart.backend_coord(&(plot.x.at(*across), plot.y.at(*up)));
            (x, y - aside)
        };
        let places: Vec<Place> = line.points.iter().map(place).collect();
        stroke(canvas, line, number, &places, reach)?;
        if line.joined {
            taken.line(&places);
        }
        if line.marked {
            places.iter().for_each(|at| taken.mark(Area::around(*at, reach + SCALE)));
        }
        wanted.extend(places.into_iter().zip(&line.labels).filter(|(_, label)| !label.is_empty()));
    }
    label(canvas, &mut taken, wanted)
}

/// Labels, after all else is drawn; says how many found no room.
fn label(canvas: &Canvas<'_>, taken: &mut Taken, wanted: Vec<(Place, &String)>) -> Drawing<usize> {
    let mut unplaced = 0;
    for (at, label) in wanted {
        let text = cut(label, LABEL);
        let size = (text.chars().count() as i32 * CHARACTER, 15 * SCALE);
        match taken.place(at, size, MARKER + 3 * SCALE) {
            Some(at) => canvas.draw(&Text::new(text, at, middle(font())))?,
            None => unplaced += 1,
        }
    }
    Ok(unplaced)
}

/// The legend, and what is to be said below it.
fn below(
    plot: &Plot,
    canvas: &Canvas<'_>,
    entries: &[Entry],
    rows: i32,
    unplaced: usize,
) -> Drawing {
    let middle_of = |row: i32| HEIGHT + row * legend::ROW + legend::ROW / 2;
    for entry in entries {
        let (line, y) = (&plot.lines[entry.line], middle_of(entry.row));
        let end = entry.left + legend::SAMPLE;
        if line.joined {
            let sample = vec![(entry.left, y), (end, y)];
            canvas.draw(&PathElement::new(sample, colour(entry.line).stroke_width(STROKE)))?;
        }
        if line.marked {
            marker(canvas, entry.line, ((entry.left + end) / 2, y), MARKER)?;
        }
        canvas.draw(&Text::new(entry.text.clone(), (end + CHARACTER, y), middle(font())))?;
    }
    let mut notes = plot.notes.clone();
    if unplaced > 0 {
        notes.push(format!("{} left out for want of room.", counted(unplaced, "label")));
    }
    for (at, note) in notes.into_iter().enumerate() {
        let y = middle_of(rows + at as i32);
        canvas.draw(&Text::new(note, (PAD, y), middle(font())))?;
    }
    Ok(())
}

/// A line with its markers.
fn stroke(
    canvas: &Canvas<'_>,
    line: &Line,
    number: usize,
    places: &[Place],
    reach: i32,
) -> Drawing {
    if line.joined && places.len() > 1 {
        canvas.draw(&PathElement::new(places.to_vec(), colour(number).stroke_width(STROKE)))?;
    }
    if line.marked {
        let every = if line.joined { places.len().div_ceil(MARKED).max(1) } else { 1 };
        for at in places.iter().step_by(every) {
            marker(canvas, number, *at, reach)?;
        }
    }
    Ok(())
}

/// A marker whose form tells lines apart where colours do not.
fn marker(canvas: &Canvas<'_>, line: usize, at: Place, r: i32) -> Drawing {
    let style = colour(line).filled();
    let (x, y) = at;
    let wide = r * 5 / 4;
    // Lines of the same colour have different forms.
    let corners = match (line + line / colours::LINES.len()) % 4 {
        0 => return canvas.draw(&Circle::new(at, r, style)),
        1 => vec![(x - r, y - r), (x + r, y - r), (x + r, y + r), (x - r, y + r)],
        2 => vec![(x, y - wide), (x + wide, y + r), (x - wide, y + r)],
        _ => vec![(x, y - wide), (x + wide, y), (x, y + wide), (x - wide, y)],
    };
    canvas.draw(&Polygon::new(corners, style))
}

fn colour(line: usize) -> RGBColor {
    colours::LINES[line % colours::LINES.len()]
}

fn font() -> TextStyle<'static> {
    TextStyle::from(("sans-serif", FONT).into_font()).color(&colours::TEXT)
}

fn middle(style: TextStyle<'_>) -> TextStyle<'_> {
    style.pos(Pos::new(HPos::Left, VPos::Center))
}
