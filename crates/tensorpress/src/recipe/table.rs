//! What a stage is, where it may stand, and how one is found by its name.

use std::fmt;

use tensorpress_tensor::{Error, Result};

use super::build::Build;
use super::stage::Stage;
use super::stages::STAGES;
use super::value::KeySpec;

/// Where a stage may stand; the order is that of a recipe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Kind {
    /// Changes what the model is built of (heads, channels, blocks): what comes after works on the model it leaves.
    Structured,
    /// Changes the space a matrix is compressed in.
    Transform,
    /// Chooses which weights are kept.
    Selector,
    /// Rounds or factors what is kept.
    Quantiser,
    /// Compresses what the stages before left over.
    Residual,
    /// Codes the integers without loss.
    Coded,
    /// Stands inside a residual: compresses what is left over.
    Correction,
    /// Stands inside `coded`.
    Coder,
}

impl Kind {
    pub(super) const ORDER: &'static str = "any number of rewrites, transforms, at most one selector, one quantiser or factoriser, residuals, at most one coding";
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Structured => "rewrite",
            Self::Transform => "transform",
            Self::Selector => "selector",
            Self::Quantiser => "quantiser or factoriser",
            Self::Residual => "residual",
            Self::Coded => "coding",
            Self::Correction => "correction",
            Self::Coder => "entropy coder",
        })
    }
}

/// A stage that exists.
#[derive(Debug)]
#[non_exhaustive]
pub struct StageSpec {
    /// Its name in recipes.
    pub name: &'static str,
    /// Where it may stand.
    pub kind: Kind,
    /// What it does.
    pub about: &'static str,
    /// Its keys.
    pub keys: &'static [KeySpec],
    /// It may end a recipe without a quantiser: it has the keys of a grid and rounds to nearest.
    pub alone: bool,
    /// What may stand in its parentheses.
    pub inside: Inside,
    pub(super) build: Build,
    /// Whether the values of its keys go together.
    pub(super) check: fn(&Stage) -> Result<()>,
}

/// Stages in the parentheses of a stage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Inside {
    /// None.
    Nothing,
    /// One of these kinds.
    One(&'static [Kind]),
    /// One of these kinds, or none.
    Maybe(&'static [Kind]),
}

/// Names that later versions will have, so that an error can say so.
const PLANNED: &[&str] = &["smoothquant", "hadamard", "quip", "nf4", "aqlm", "spqr", "lqer"];

/// The stages of this version.
#[must_use]
pub fn known_stages() -> &'static [StageSpec] {
    STAGES
}

/// Names of stages that later versions will have.
#[must_use]
pub fn planned_stages() -> &'static [&'static str] {
    PLANNED
}

pub(super) fn find(name: &str) -> Result<&'static StageSpec> {
    if let Some(spec) = STAGES.iter().find(|s| s.name == name) {
        return Ok(spec);
    }
    let known: Vec<&str> = STAGES.iter().map(|s| s.name).collect();
    let known = known.join(", ");
    if PLANNED.contains(&name) {
        return Err(Error::unsupported(format!(
            "stage `{name}` is planned, but not in this version; allowed are {known}"
        )));
    }
    let presets: Vec<&str> = super::PRESETS.iter().map(|p| p.name).collect();
    Err(Error::invalid(format!(
        "unknown stage `{name}`; allowed are {known} (and the presets {})",
        presets.join(", ")
    )))
}

/// Names of the stages of some kinds.
pub(super) fn names_of(kinds: &[Kind]) -> Vec<&'static str> {
    STAGES.iter().filter(|s| kinds.contains(&s.kind)).map(|s| s.name).collect()
}
