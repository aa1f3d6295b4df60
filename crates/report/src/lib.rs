//! What a compression did, as one HTML page that needs no network and no second file, and its plots as SVG.
//!
//! | piece | shows | plot |
//! |---|---|---|
//! | [`Fact`] | a label and a value: sizes, bits a weight, seconds | |
//! | [`Curve`] | what is lost at which size: predicted, judged, of rivals | [`Curve::svg`] |
//! | [`Unit`] | a matrix: its level, and why it got it | [`Page::bits_svg`], [`Page::sensitivity_svg`] |
//!
//! A [`Page`] is plain data, and the same as JSON. Pieces that are empty are left out. Every text is escaped; a number
//! that is none (NaN, infinite) is shown as a dash, and a plot says how many points it has left out.
//!
//! ```
//! use tensorpress_report::{Curve, Fact, Page, Point, Series, SeriesKind, Unit};
//!
//! # fn main() -> tensorpress_report::Result<()> {
//! let judged = [Point::new(90_000_000, 3.0, 0.2), Point::new(120_000_000, 4.0, 0.03)];
//! let page = Page::new("Tiny model, 4 bits")
//!     .with_facts([Fact::new("bits a weight", "4.02")])
//!     .with_curve(Curve::new([Series::new("as judged", SeriesKind::Judged, judged)]))
//!     .with_units([Unit::new("layers.0.mlp.up_proj", "gptq", 4.02, 1_000_000)]);
//! assert!(page.html()?.starts_with("<!DOCTYPE html>"));
//! # Ok(())
//! # }
//! ```

mod blocks;
mod curve;
mod error;
mod html;
mod kinds;
mod page;
mod plot;
mod text;
mod unit;

pub use curve::{Across, Curve, Point, Series, SeriesKind};
pub use error::{Error, Result};
pub use page::{Fact, Page};
pub use unit::Unit;
