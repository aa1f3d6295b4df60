//! Recipes: what to do to which weights.
//!
//! A recipe is a line of stages, `stage ('|' stage)*` with `stage = name` or `name(key=value, ...)`:
//!
//! ```text
//! wanda(pattern=2:4) | gptq(bits=4, group=64) | residual(eora(rank=16)) | coded(rans)
//! ```
//!
//! The order is fixed: any number of rewrites of whole blocks, transforms, at most one selector, one quantiser or factoriser,
//! any number of residuals, at most one coding. Factorisers take a quantiser for their factors:
//! `svd_llm(ratio=0.3, rtn(bits=8))`.
//! A TOML file says the same with a `[[stage]]` each, and may treat some weights differently; the first match wins:
//!
//! ```toml
//! [[stage]]
//! method = "gptq"
//! bits = 3
//! group = 64
//!
//! [[layer]]
//! match = "*.down_proj.weight"
//! stage = [{ method = "gptq", bits = 4, group = 64 }]
//!
//! [[layer]]
//! match = "model.layers.0.*"
//! skip = true
//! ```
//!
//! The stages are those of [`crate::registry`], or of a registry with stages of your own. Every error names the key, the value, and what is allowed.

mod chain;
mod describe;
mod file;
mod presets;

use std::fmt;
use std::path::Path;

use globset::{GlobBuilder, GlobMatcher};
use tensorpress_tensor::{Context, Error, Registry, Result, Rewrite};

pub use chain::Chain;
pub use describe::{reference, schema};
pub(crate) use presets::PLANNED;
pub use presets::presets;

/// What to do to which weights. The default does nothing.
///
/// ```
/// use tensorpress::prelude::*;
///
/// # fn main() -> Result<()> {
/// let recipe = Recipe::parse("awq | gptq(bits=3, group=64)")?;
/// assert!(recipe.canonical().contains("damp=0.01"), "every key is spelled out");
/// assert!(Recipe::parse("gptq(bits=9)").unwrap_err().to_string().contains("from 2 to 8"));
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Recipe {
    chain: Option<Chain>,
    layers: Vec<LayerRule>,
}

/// What to do to the weights whose names match a pattern.
#[derive(Debug, Clone)]
pub struct LayerRule {
    pattern: String,
    glob: GlobMatcher,
    chain: Option<Chain>,
}

impl PartialEq for LayerRule {
    fn eq(&self, other: &Self) -> bool {
        self.pattern == other.pattern && self.chain == other.chain
    }
}

impl LayerRule {
    /// A rule for the names that match `pattern` (`*`, `?`, `[abc]` and `{a,b}`; `*` matches dots too); without a
    /// chain the weights stay as they are.
    ///
    /// # Errors
    /// `InvalidArgument` for an invalid pattern, or a chain that rewrites whole blocks.
    pub fn new(pattern: &str, chain: Option<Chain>) -> Result<Self> {
        if let Some(chain) = chain.as_ref().filter(|chain| !chain.rewrites().is_empty()) {
            return Err(Error::invalid(format!(
                "layer `{pattern}`: `{chain}`: rewrites work on whole models: allowed only in the stages of the recipe \
                 itself"
            )));
        }
        let glob = GlobBuilder::new(pattern).build().map_err(|e| {
            Error::invalid(format!("layer: match = `{pattern}`: no valid pattern: {}", e.kind()))
        })?;
        Ok(Self { pattern: pattern.to_owned(), glob: glob.compile_matcher(), chain })
    }

    /// The pattern.
    #[must_use]
    pub fn pattern(&self) -> &str {
        &self.pattern
    }

    /// What to do; nothing if the weights stay as they are.
    #[must_use]
    pub fn chain(&self) -> Option<&Chain> {
        self.chain.as_ref()
    }

    /// Whether a weight of this name is meant.
    #[must_use]
    pub fn matches(&self, name: &str) -> bool {
        self.glob.is_match(name)
    }
}

impl Recipe {
    /// The same chain for every linear layer.
    #[must_use]
    pub fn new(chain: Chain) -> Self {
        Self { chain: Some(chain), layers: Vec::new() }
    }

    /// Adds a rule, tried after those that are there already.
    #[must_use]
    pub fn with_layer(mut self, rule: LayerRule) -> Self {
        self.layers.push(rule);
        self
    }

    /// A preset, a path that ends in `.toml`, or a line, with the stages of [`crate::registry`].
    ///
    /// # Errors
    /// `Io` if the file cannot be read; else as [`Recipe::parse`].
    pub fn read(text: &str) -> Result<Self> {
        Self::read_with(text, &crate::registry())
    }

    /// [`Recipe::read`] with the stages of a registry of your own.
    ///
    /// # Errors
    /// As there.
    pub fn read_with(text: &str, registry: &Registry) -> Result<Self> {
        if !text.trim().ends_with(".toml") {
            return Self::parse_with(text, registry);
        }
        let path = Path::new(text.trim());
        let file =
            std::fs::read_to_string(path).map_err(|e| Error::io("read the recipe", path, e))?;
        Self::from_toml_with(&file, registry).in_file(path)
    }

    /// A preset or a line, with the stages of [`crate::registry`].
    ///
    /// # Errors
    /// `InvalidArgument` for what is no recipe, `Unsupported` for combinations that do not exist; the message names what is
    /// allowed.
    pub fn parse(text: &str) -> Result<Self> {
        Self::parse_with(text, &crate::registry())
    }

    /// [`Recipe::parse`] with the stages of a registry of your own.
    ///
    /// # Errors
    /// As there.
    pub fn parse_with(text: &str, registry: &Registry) -> Result<Self> {
        Ok(Self::new(Chain::parse(text.trim(), registry.stages())?))
    }

    /// The text of a TOML recipe, with the stages of [`crate::registry`].
    ///
    /// # Errors
    /// As [`Recipe::parse`].
    pub fn from_toml(text: &str) -> Result<Self> {
        Self::from_toml_with(text, &crate::registry())
    }

    /// [`Recipe::from_toml`] with the stages of a registry of your own.
    ///
    /// # Errors
    /// As [`Recipe::parse`].
    pub fn from_toml_with(text: &str, registry: &Registry) -> Result<Self> {
        let (chain, layers) = file::parse(text, registry.stages())?;
        if chain.is_none() && layers.iter().all(|rule| rule.chain.is_none()) {
            return Err(Error::invalid("the recipe has no [[stage]]: nothing would be compressed"));
        }
        Ok(Self { chain, layers })
    }

    /// What to do to all linear layers that no rule matches; nothing if they stay as they are.
    #[must_use]
    pub fn chain(&self) -> Option<&Chain> {
        self.chain.as_ref()
    }

    /// Rules for single layers, in the order in which they are tried.
    #[must_use]
    pub fn layers(&self) -> &[LayerRule] {
        &self.layers
    }

    /// What changes the model before anything else, in order: the text of each stage, and the rewrite.
    #[must_use]
    pub fn rewrites(&self) -> Vec<(String, Box<dyn Rewrite>)> {
        self.chain.as_ref().map_or_else(Vec::new, Chain::rewrites)
    }

    /// What to do to the linear layer of this name; nothing if it stays as it is.
    #[must_use]
    pub fn chain_for(&self, name: &str) -> Option<&Chain> {
        let chain = match self.rule_for(name) {
            Some(rule) => rule.chain(),
            None => self.chain.as_ref(),
        };
        chain.filter(|chain| chain.compresses())
    }

    /// The first rule that matches this name.
    #[must_use]
    pub fn rule_for(&self, name: &str) -> Option<&LayerRule> {
        self.layers.iter().find(|rule| rule.matches(name))
    }

    /// All chains in use.
    pub fn chains(&self) -> impl Iterator<Item = &Chain> {
        self.chain.iter().chain(self.layers.iter().filter_map(LayerRule::chain))
    }

    /// The recipe with every key spelled out: equal texts mean equal results. A line where no layer has a rule of its
    /// own, else TOML; either can be read again.
    #[must_use]
    pub fn canonical(&self) -> String {
        self.text(&Chain::canonical)
    }

    fn text(&self, line: &dyn Fn(&Chain) -> String) -> String {
        if let (Some(chain), []) = (&self.chain, self.layers.as_slice()) {
            return line(chain);
        }
        let quoted = |text: String| toml::Value::String(text).to_string();
        let mut out = String::new();
        if let Some(chain) = &self.chain {
            out += &format!("stage = [{}]\n", quoted(line(chain)));
        }
        for rule in &self.layers {
            out += &format!("[[layer]]\nmatch = {}\n", quoted(rule.pattern.clone()));
            out += &match &rule.chain {
                None => "skip = true\n".to_owned(),
                Some(chain) => format!("stage = [{}]\n", quoted(line(chain))),
            };
        }
        out
    }
}

/// Only the keys that were given; can be read again.
impl fmt::Display for Recipe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text(&Chain::to_string))
    }
}

impl std::str::FromStr for Recipe {
    type Err = Error;

    /// [`Recipe::parse`].
    fn from_str(text: &str) -> Result<Self> {
        Self::parse(text)
    }
}

#[cfg(test)]
mod tests;
