use std::fmt;

use tensorpress_tensor::{DynCompress, Error, Result, Rewrite};

use super::build;
use super::line::{self, RawStage};
use super::stage::Stage;
use super::table::Kind;

/// Stages in order: any number of rewrites, transforms, at most one selector, one quantiser or factoriser,
/// residuals, at most one coding.
#[derive(Debug, Clone, PartialEq)]
pub struct Chain {
    stages: Vec<Stage>,
}

impl Chain {
    /// Reads a line of stages.
    ///
    /// # Errors
    /// `InvalidArgument` for what is no recipe, `Unsupported` for stages of later versions; the message names what is
    /// allowed.
    pub fn parse(text: &str) -> Result<Self> {
        Self::resolve(line::parse(text)?)
    }

    pub(super) fn resolve(raw: Vec<RawStage>) -> Result<Self> {
        let stages = raw.into_iter().map(Stage::resolve).collect::<Result<Vec<_>>>()?;
        let chain = Self { stages };
        chain.check()?;
        Ok(chain)
    }

    fn check(&self) -> Result<()> {
        for pair in self.stages.windows(2) {
            let [first, second] = [&pair[0], &pair[1]];
            let (a, b) = (first.spec().kind, second.spec().kind);
            if a > b {
                let message = format!(
                    "`{}` ({a}) cannot come before `{}` ({b}): the order is {}",
                    first.spec().name,
                    second.spec().name,
                    Kind::ORDER
                );
                return Err(Error::invalid(message));
            }
            let once = [Kind::Selector, Kind::Quantiser, Kind::Coded];
            if a == b && once.contains(&a) {
                let message = format!(
                    "`{}` and `{}`: a recipe has at most one {a}",
                    first.spec().name,
                    second.spec().name
                );
                return Err(Error::invalid(message));
            }
        }
        let inner = |s: &&Stage| matches!(s.spec().kind, Kind::Correction | Kind::Coder);
        if let Some(outside) = self.stages.iter().find(inner) {
            let name = outside.spec().name;
            return Err(Error::invalid(format!("`{name}` stands inside another stage only")));
        }
        if let (Some(selector), Some(method)) = (self.selector(), self.quantiser())
            && !method.has("bits")
        {
            let [first, second] = [selector.spec().name, method.spec().name];
            let message = format!(
                "`{first}` before `{second}`: a support restricts codes, not factors; allowed are quantisers"
            );
            return Err(Error::invalid(message));
        }
        match self.quantiser() {
            Some(quantiser) => self.before(quantiser).try_for_each(|s| s.check_before(quantiser)),
            None if self.alone().or(self.selector()).is_some() => Ok(()),
            None if !self.compresses() => Ok(()),
            None => Err(Error::invalid(format!(
                "`{self}` has no quantiser, factoriser or selector: add one of {}",
                super::table::names_of(&[Kind::Quantiser, Kind::Selector]).join(", ")
            ))),
        }
    }

    /// The stages.
    #[must_use]
    pub fn stages(&self) -> &[Stage] {
        &self.stages
    }

    /// What changes the model before the other stages, in order: the text of each stage, and the rewrite.
    #[must_use]
    pub fn rewrites(&self) -> Vec<(String, Box<dyn Rewrite>)> {
        let stages = self.stages.iter().filter(|s| s.spec().kind == Kind::Structured);
        stages.map(|stage| (stage.to_string(), build::structured(stage))).collect()
    }

    /// There are stages that compress matrices.
    #[must_use]
    pub fn compresses(&self) -> bool {
        self.stages.iter().any(|s| s.spec().kind != Kind::Structured)
    }

    /// The stage that rounds or factors, if one is named.
    pub(super) fn quantiser(&self) -> Option<&Stage> {
        self.stages.iter().find(|s| s.spec().kind == Kind::Quantiser)
    }

    /// The stage that chooses what stays, if there is one.
    pub(super) fn selector(&self) -> Option<&Stage> {
        self.stages.iter().find(|s| s.spec().kind == Kind::Selector)
    }

    /// The last transform, if it brings its own quantiser along.
    pub(super) fn alone(&self) -> Option<&Stage> {
        let transform = |s: &&Stage| s.spec().kind == Kind::Transform;
        self.stages.iter().rev().find(transform).filter(|s| s.spec().alone)
    }

    fn before<'a>(&'a self, quantiser: &'a Stage) -> impl Iterator<Item = &'a Stage> {
        self.stages.iter().take_while(move |s| !std::ptr::eq(*s, quantiser))
    }

    /// The method that this chain stands for.
    ///
    /// # Errors
    /// `Unsupported` for a combination that does not exist, naming both, and for a chain that
    /// [compresses no matrix](Chain::compresses).
    pub fn build(&self) -> Result<Box<dyn DynCompress>> {
        build::chain(self)
    }

    /// The chain with every key spelled out: equal texts mean equal results.
    #[must_use]
    pub fn canonical(&self) -> String {
        let decided = self.quantiser().map(|q| self.before(q).count()).unwrap_or(0);
        let text = |(i, stage): (usize, &Stage)| stage.canonical(i < decided);
        self.stages.iter().enumerate().map(text).collect::<Vec<_>>().join(" | ")
    }
}

/// Only the keys that were given; can be read again.
impl fmt::Display for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, stage) in self.stages.iter().enumerate() {
            let separator = if i == 0 { "" } else { " | " };
            write!(f, "{separator}{stage}")?;
        }
        Ok(())
    }
}
