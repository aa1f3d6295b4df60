//! All that a page shows.

use serde::{Deserialize, Serialize};

use crate::curve::{Curve, Point, Series, SeriesKind};
use crate::unit::Unit;
use crate::{Result, blocks, html};

/// A label and a value, as both are to be shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Fact {
    /// What is stated.
    pub label: String,
    /// Its value, with its unit.
    pub value: String,
}

impl Fact {
    /// A fact.
    #[must_use]
    pub fn new(label: impl Into<String>, value: impl Into<String>) -> Self {
        Self { label: label.into(), value: value.into() }
    }
}

/// What a page shows; what is empty is left out.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Page {
    /// Heading and title.
    pub title: String,
    /// What matters most: sizes, bits a weight, KL divergence, seconds, memory.
    #[serde(default)]
    pub facts: Vec<Fact>,
    /// The command that does the same again.
    #[serde(default)]
    pub command: Option<String>,
    /// What is lost at which size.
    #[serde(default)]
    pub curve: Option<Curve>,
    /// Every matrix; those with a reason are listed as fallbacks, too.
    #[serde(default)]
    pub units: Vec<Unit>,
    /// What else a reader must know.
    #[serde(default)]
    pub notes: Vec<String>,
}

impl Page {
    /// A page of this title, and nothing else.
    #[must_use]
    pub fn new(title: impl Into<String>) -> Self {
        Self { title: title.into(), ..Self::default() }
    }

    /// What matters most.
    #[must_use]
    pub fn with_facts(mut self, facts: impl Into<Vec<Fact>>) -> Self {
        self.facts = facts.into();
        self
    }

    /// The command that does the same again.
    #[must_use]
    pub fn with_command(mut self, command: impl Into<String>) -> Self {
        self.command = Some(command.into());
        self
    }

    /// What is lost at which size.
    #[must_use]
    pub fn with_curve(mut self, curve: Curve) -> Self {
        self.curve = Some(curve);
        self
    }

    /// Files by others beside the curve, or by themselves where there is none.
    #[must_use]
    pub fn with_rivals(mut self, points: impl Into<Vec<Point>>) -> Self {
        let series = Series::new("others", SeriesKind::Rivals, points);
        self.curve.get_or_insert_default().series.push(series);
        self
    }

    /// Every matrix.
    #[must_use]
    pub fn with_units(mut self, units: impl Into<Vec<Unit>>) -> Self {
        self.units = units.into();
        self
    }

    /// What else a reader must know.
    #[must_use]
    pub fn with_notes(mut self, notes: impl Into<Vec<String>>) -> Self {
        self.notes = notes.into();
        self
    }

    /// The page: one file of HTML that loads nothing, the same bytes for the same data.
    ///
    /// # Errors
    /// `Plot` if a plot cannot be drawn.
    pub fn html(&self) -> Result<String> {
        html::page(self)
    }

    /// Bits a weight by block, a line for each kind of matrix, as an SVG that stands by itself; nothing where no unit
    /// has a block.
    ///
    /// # Errors
    /// `Plot` if the drawing fails.
    pub fn bits_svg(&self) -> Result<Option<String>> {
        blocks::bits(&self.units).svg()
    }

    /// Expected loss by block, a line for each kind of matrix, as an SVG that stands by itself; nothing where no unit of
    /// a block has one that is known.
    ///
    /// # Errors
    /// `Plot` if the drawing fails.
    pub fn sensitivity_svg(&self) -> Result<Option<String>> {
        blocks::sensitivity(&self.units).svg()
    }
}
