use std::fmt;

use tensorpress_tensor::stage::{self, RawStage, Stage, Stages, WeightPart, WeightRole};
use tensorpress_tensor::{DynCompress, Error, Result, Rewrite};

use crate::compose::{Compose, Kept};

/// Stages in order: any number of rewrites, transforms, at most one selector, one quantiser or factoriser, residuals, at
/// most one coding.
#[derive(Debug, Clone, PartialEq)]
pub struct Chain(stage::Chain<WeightPart>);

impl Chain {
    /// Reads a line of these stages.
    ///
    /// # Errors
    /// `InvalidArgument` for what is no recipe, `Unsupported` for a combination that does not exist; the message names what
    /// is allowed.
    pub fn parse(text: &str, stages: &Stages<WeightPart>) -> Result<Self> {
        Self::resolve(stage::parse(text)?, stages)
    }

    pub(super) fn resolve(raw: Vec<RawStage>, stages: &Stages<WeightPart>) -> Result<Self> {
        let chain = Self(stage::Chain::resolve(raw, stages)?);
        let built = chain.parts()?.method()?;
        if chain.compresses() && built.is_none() {
            let names = stages.names_of(&[WeightRole::Quantiser, WeightRole::Selector]);
            return Err(Error::invalid(format!(
                "`{chain}` has no quantiser, factoriser or selector: add one of {names}"
            )));
        }
        Ok(chain)
    }

    /// The stages.
    #[must_use]
    pub fn stages(&self) -> &[Stage<WeightPart>] {
        self.0.stages()
    }

    /// What changes the model before the other stages, in order: the text of each stage, and the rewrite.
    #[must_use]
    pub fn rewrites(&self) -> Vec<(String, Box<dyn Rewrite>)> {
        let rewrite = |stage: &Stage<WeightPart>| match stage.build() {
            Ok(WeightPart::Rewrite(rewrite)) => Some((stage.to_string(), rewrite)),
            _ => None,
        };
        self.stages().iter().filter_map(rewrite).collect()
    }

    /// There are stages that compress matrices.
    #[must_use]
    pub fn compresses(&self) -> bool {
        self.stages().iter().any(|s| s.role() != WeightRole::Rewrite)
    }

    /// The method that this chain stands for.
    ///
    /// # Errors
    /// `Unsupported` for a chain that [compresses no matrix](Chain::compresses).
    pub fn build(&self) -> Result<Box<dyn DynCompress>> {
        let nothing = || Error::unsupported(format!("`{self}` compresses no matrix"));
        self.parts()?.method()?.ok_or_else(nothing)
    }

    fn parts(&self) -> Result<Parts> {
        let mut parts = Parts::default();
        for stage in self.stages() {
            let name = stage.name();
            match stage.build()? {
                WeightPart::Transform(transform) => parts.before.push(transform),
                WeightPart::Select(select) => parts.select = Some((name, select)),
                WeightPart::Method(method) => parts.method = Some((name, method)),
                WeightPart::After(after) => parts.after.push(after),
                // Not for matrices.
                _ => {}
            }
        }
        Ok(parts)
    }

    /// The chain with every key spelled out: equal texts mean equal results.
    #[must_use]
    pub fn canonical(&self) -> String {
        self.0.canonical()
    }
}

/// Only the keys that were given; can be read again.
impl fmt::Display for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What the stages build, by what becomes of it.
#[derive(Default)]
struct Parts {
    before: Vec<stage::Before>,
    select: Option<(&'static str, Box<dyn tensorpress_tensor::Select>)>,
    method: Option<(&'static str, Box<dyn DynCompress>)>,
    after: Vec<stage::After>,
}

impl Parts {
    /// A support fixed first, a method for what stays; transforms around it, the last one innermost; then what works on the
    /// result.
    fn method(self) -> Result<Option<Box<dyn DynCompress>>> {
        let mut made: Option<Box<dyn DynCompress>> = match (self.select, self.method) {
            (None, method) => method.map(|(_, method)| method),
            (Some((_, select)), None) => Some(Box::new(Kept(select))),
            (Some((first, _)), Some((second, method))) if !method.takes_mask() => {
                return Err(Error::invalid(format!(
                    "`{first}` before `{second}`: a support restricts codes, not factors; allowed are quantisers"
                )));
            }
            (Some((_, select)), Some((_, method))) => Some(Box::new(select.then(method))),
        };
        for transform in self.before.into_iter().rev() {
            made = transform(made)?;
        }
        for after in self.after {
            made = made.map(after).transpose()?;
        }
        Ok(made)
    }
}
