//! The room of weights.

use std::fmt;
use std::sync::Arc;

use super::keys::Knobs;
use super::row::{Inside, Part, Role, Row};
use crate::error::Result;
use crate::method::{DynCompress, Recode, Select};
use crate::rewrite::Rewrite;

/// Makes a method around the one that follows, or of its own; nothing where it cannot stand alone.
pub type Before =
    Box<dyn FnOnce(Option<Box<dyn DynCompress>>) -> Result<Option<Box<dyn DynCompress>>>>;

/// Makes a method around the one before.
pub type After = Box<dyn FnOnce(Box<dyn DynCompress>) -> Result<Box<dyn DynCompress>>>;

/// What a stage of a recipe for weights builds.
#[non_exhaustive]
pub enum WeightPart {
    /// Changes blocks as a whole.
    Rewrite(Box<dyn Rewrite>),
    /// Changes the space that a matrix is compressed in.
    Transform(Before),
    /// Chooses which weights stay.
    Select(Box<dyn Select>),
    /// Compresses a matrix.
    Method(Box<dyn DynCompress>),
    /// Works on what the stages before it made.
    After(After),
    /// Codes nodes anew without loss.
    Recode(Arc<dyn Recode>),
}

impl fmt::Debug for WeightPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rewrite(rewrite) => f.debug_tuple("Rewrite").field(rewrite).finish(),
            Self::Transform(_) => f.write_str("Transform(..)"),
            Self::Select(select) => f.debug_tuple("Select").field(select).finish(),
            Self::Method(method) => f.debug_tuple("Method").field(method).finish(),
            Self::After(_) => f.write_str("After(..)"),
            Self::Recode(recode) => f.debug_tuple("Recode").field(recode).finish(),
        }
    }
}

impl Part for WeightPart {
    type Role = WeightRole;
}

/// Where a stage may stand in a recipe for weights; the order is that of a recipe.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum WeightRole {
    /// Changes blocks as a whole: what comes after works on a smaller model.
    Rewrite,
    /// Changes the space a matrix is compressed in.
    Transform,
    /// Chooses which weights are kept.
    Selector,
    /// Rounds or factors what is kept.
    Quantiser,
    /// Compresses what the stages before left over.
    Residual,
    /// Codes the integers without loss.
    Coding,
    /// Stands inside a residual: compresses what is left over.
    Correction,
    /// Stands inside a coding.
    Coder,
}

impl Role for WeightRole {
    const ORDER: &'static str = "any number of rewrites, transforms, at most one selector, one quantiser or factoriser, \
                                 residuals, at most one coding";

    fn is_single(self) -> bool {
        matches!(self, Self::Selector | Self::Quantiser | Self::Coding)
    }

    fn is_inner(self) -> bool {
        matches!(self, Self::Correction | Self::Coder)
    }

    fn decides(self) -> bool {
        self == Self::Quantiser
    }
}

impl fmt::Display for WeightRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Rewrite => "rewrite",
            Self::Transform => "transform",
            Self::Selector => "selector",
            Self::Quantiser => "quantiser or factoriser",
            Self::Residual => "residual",
            Self::Coding => "coding",
            Self::Correction => "correction",
            Self::Coder => "entropy coder",
        })
    }
}

/// The constructor's signature says where a stage may stand.
impl Row<WeightPart> {
    /// A rewrite of whole blocks.
    pub fn rewrite<T: Knobs + Rewrite + 'static>(
        name: &'static str,
        about: &'static str,
        default: impl Fn() -> T + Send + Sync + 'static,
    ) -> Self {
        let build = |rewrite: T, _| Ok(WeightPart::Rewrite(Box::new(rewrite)));
        Self::new(name, WeightRole::Rewrite, about, default, build)
    }

    /// A quantiser or factoriser.
    pub fn method<T: Knobs + DynCompress + 'static>(
        name: &'static str,
        about: &'static str,
        default: impl Fn() -> T + Send + Sync + 'static,
    ) -> Self {
        let build = |method: T, _| Ok(WeightPart::Method(Box::new(method)));
        Self::new(name, WeightRole::Quantiser, about, default, build)
    }

    /// A quantiser or factoriser that may be handed a method for its own parts.
    pub fn method_with<T: Knobs + 'static>(
        name: &'static str,
        about: &'static str,
        default: impl Fn() -> T + Send + Sync + 'static,
        build: impl Fn(T, Option<Box<dyn DynCompress>>) -> Result<Box<dyn DynCompress>>
        + Send
        + Sync
        + 'static,
    ) -> Self {
        let build = move |knobs, inner| build(knobs, inner_method(inner)).map(WeightPart::Method);
        Self::new(name, WeightRole::Quantiser, about, default, build)
            .with_inside(Inside::Maybe(vec![WeightRole::Quantiser]))
    }

    /// A selector, alone or before a quantiser.
    pub fn select<T: Knobs + Select + 'static>(
        name: &'static str,
        about: &'static str,
        default: impl Fn() -> T + Send + Sync + 'static,
    ) -> Self {
        let build = |select: T, _| Ok(WeightPart::Select(Box::new(select)));
        Self::new(name, WeightRole::Selector, about, default, build)
    }

    /// A transform. `build` makes a method around the one that follows, or by itself where none does, if it can.
    pub fn transform<T: Knobs + 'static>(
        name: &'static str,
        about: &'static str,
        default: impl Fn() -> T + Send + Sync + 'static,
        build: impl Fn(T, Option<Box<dyn DynCompress>>) -> Result<Option<Box<dyn DynCompress>>>
        + Send
        + Sync
        + 'static,
    ) -> Self {
        let build = Arc::new(build);
        let build = move |knobs, _| {
            let build = build.clone();
            Ok(WeightPart::Transform(Box::new(move |method| build(knobs, method))))
        };
        Self::new(name, WeightRole::Transform, about, default, build)
    }

    /// Another way to code the integers of nodes.
    pub fn recode<T: Knobs + Recode + 'static>(
        name: &'static str,
        about: &'static str,
        default: impl Fn() -> T + Send + Sync + 'static,
    ) -> Self {
        let build = |coder: T, _| Ok(WeightPart::Recode(Arc::new(coder)));
        Self::new(name, WeightRole::Coder, about, default, build)
    }
}

/// The method inside the parentheses.
fn inner_method(part: Option<WeightPart>) -> Option<Box<dyn DynCompress>> {
    match part {
        Some(WeightPart::Method(method)) => Some(method),
        _ => None,
    }
}
