//! Lines and markers over two axes, drawn by `plotters` as SVG.

mod axis;
mod colours;
mod draw;
mod labels;
mod legend;

pub use axis::{Axis, Scale};

use std::fmt::Write;

use crate::Result;
use crate::text::Escaped;

/// Colours of all plots, light and dark.
pub const CSS: &str = include_str!("plot.css");

/// A line of the plot, or markers.
pub struct Line {
    /// What the legend calls it.
    pub name: String,
    /// Its points, all of which the axes can show.
    pub points: Vec<(f64, f64)>,
    /// What is written beside its first points; an empty text is not.
    pub labels: Vec<String>,
    /// Drawn as a line.
    pub joined: bool,
    /// Drawn with a marker a point.
    pub marked: bool,
}

/// What is to be drawn.
pub struct Plot {
    /// What it shows.
    pub title: &'static str,
    /// From left to right.
    pub x: Axis,
    /// From bottom to top.
    pub y: Axis,
    /// In the order of the legend.
    pub lines: Vec<Line>,
    /// Sentences below the legend.
    pub notes: Vec<String>,
    /// Lines are shifted by a few pixels, so that those of the same height stay apart.
    pub beside: bool,
}

impl Plot {
    /// A plot of nothing yet.
    pub fn new(title: &'static str, x: Axis, y: Axis) -> Self {
        Self { title, x, y, lines: Vec::new(), notes: Vec::new(), beside: false }
    }

    /// Whether there is nothing to draw.
    pub fn is_empty(&self) -> bool {
        self.lines.iter().all(|line| line.points.is_empty())
    }

    /// An SVG with its own colours, for a file of its own.
    pub fn svg(&self) -> Result<Option<String>> {
        self.tagged(CSS)
    }

    /// An SVG for a page that has the colours already.
    pub fn inline(&self) -> Result<Option<String>> {
        self.tagged("")
    }

    fn tagged(&self, css: &str) -> Result<Option<String>> {
        if self.is_empty() {
            return Ok(None);
        }
        let drawn = draw::draw(self)?;
        let title = Escaped(self.title);
        let (width, height) = (drawn.width, drawn.height);
        let mut svg = String::with_capacity(drawn.body.len() + 2000);
        write!(
            svg,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" class=\"tp\" role=\"img\" aria-label=\"{}\" \
             width=\"{}\" height=\"{}\" viewBox=\"0 0 {width} {height}\">\n<title>{title}</title>\n",
            Escaped(&self.described()),
            width / draw::SCALE,
            height / draw::SCALE,
        )?;
        if !css.is_empty() {
            write!(svg, "<style>\n{css}</style>\n")?;
        }
        svg.push_str(&drawn.body);
        Ok(Some(svg))
    }

    /// For who cannot see it.
    fn described(&self) -> String {
        let drawn: Vec<&Line> = self.lines.iter().filter(|l| !l.points.is_empty()).collect();
        let names: Vec<&str> = drawn.iter().map(|line| line.name.as_str()).collect();
        let points: usize = drawn.iter().map(|line| line.points.len()).sum();
        format!(
            "{}: {} against {}, {points} points of {}",
            self.title,
            self.y.name,
            self.x.name,
            names.join(", ")
        )
    }
}
