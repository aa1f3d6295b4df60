//! What is lost at which size.

use serde::{Deserialize, Serialize};

use crate::Result;
use crate::plot::{Axis, Line, Plot, Scale};
use crate::text::{counted, nan_for_null};

/// What a [`Series`] is, and how it is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum SeriesKind {
    /// Expected of a table of errors: a line.
    Predicted,
    /// Measured on the whole model: a line with a marker a point.
    Judged,
    /// Files by others: markers with labels, no line.
    Rivals,
}

/// A model file of some size, and what it loses.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Point {
    /// Bytes of the file.
    pub bytes: u64,
    /// Bits a weight.
    #[serde(deserialize_with = "nan_for_null")]
    pub bits: f64,
    /// Mean KL divergence from the model as it was.
    #[serde(deserialize_with = "nan_for_null")]
    pub divergence: f64,
    /// What it is called, if anything.
    #[serde(default)]
    pub label: String,
}

impl Point {
    /// A point without a label.
    #[must_use]
    pub fn new(bytes: u64, bits: f64, divergence: f64) -> Self {
        Self { bytes, bits, divergence, label: String::new() }
    }

    /// What it is called.
    #[must_use]
    pub fn with_label(mut self, label: impl Into<String>) -> Self {
        self.label = label.into();
        self
    }
}

/// Points that belong together.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Series {
    /// What the legend calls it.
    pub name: String,
    /// What it is.
    pub kind: SeriesKind,
    /// Its points; lines are drawn in the order of size.
    pub points: Vec<Point>,
}

impl Series {
    /// A series of this name.
    #[must_use]
    pub fn new(name: impl Into<String>, kind: SeriesKind, points: impl Into<Vec<Point>>) -> Self {
        Self { name: name.into(), kind, points: points.into() }
    }
}

/// What the curve runs across.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Across {
    /// Size of the file in megabytes of 10⁶ bytes.
    #[default]
    Megabytes,
    /// Bits a weight.
    Bits,
}

/// KL divergence against size.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Curve {
    /// Its series, in the order of the legend.
    pub series: Vec<Series>,
    /// What it runs across.
    #[serde(default)]
    pub across: Across,
}

impl Curve {
    /// A curve across megabytes.
    #[must_use]
    pub fn new(series: impl Into<Vec<Series>>) -> Self {
        Self { series: series.into(), across: Across::default() }
    }

    /// What it runs across.
    #[must_use]
    pub fn with_across(mut self, across: Across) -> Self {
        self.across = across;
        self
    }

    /// The plot as an SVG that stands by itself, or nothing where no point can be drawn.
    ///
    /// # Errors
    /// `Plot` if the drawing fails.
    pub fn svg(&self) -> Result<Option<String>> {
        self.plot().svg()
    }

    pub(crate) fn plot(&self) -> Plot {
        let name = match self.across {
            Across::Megabytes => "size in MB (10⁶ bytes)",
            Across::Bits => "bits a weight",
        };
        let mut plot = Plot::new(
            "KL divergence against size",
            Axis::new(name, Scale::Linear),
            Axis::new("mean KL divergence (log)", Scale::Log),
        );
        let mut left_out = 0;
        for series in &self.series {
            let mut places: Vec<(f64, f64, &str)> =
                series.points.iter().filter_map(|point| self.place(point)).collect();
            left_out += series.points.len() - places.len();
            places.sort_by(|a, b| a.0.total_cmp(&b.0));
            let labelled = series.kind == SeriesKind::Rivals;
            let labels = places.iter().filter(|_| labelled).map(|p| p.2.to_owned()).collect();
            plot.lines.push(Line {
                name: series.name.clone(),
                points: places.into_iter().map(|(x, y, _)| (x, y)).collect(),
                labels,
                joined: series.kind != SeriesKind::Rivals,
                marked: series.kind != SeriesKind::Predicted,
            });
        }
        if left_out > 0 {
            let points = counted(left_out, "point");
            plot.notes.push(format!("{points} left out: no size or divergence above 0."));
        }
        plot
    }

    /// Where a point lies, if that is anywhere on the plot.
    fn place<'a>(&self, point: &'a Point) -> Option<(f64, f64, &'a str)> {
        let x = match self.across {
            Across::Megabytes => point.bytes as f64 / 1e6,
            Across::Bits => point.bits,
        };
        let drawn = |value: f64| value.is_finite() && value > 0.0;
        (drawn(x) && drawn(point.divergence)).then_some((x, point.divergence, &*point.label))
    }
}
