use tensorpress_tensor::{Error, Result};

/// How many tokens each layer of a model takes away.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum Schedule {
    /// So many in each layer; none in the layers after the last.
    Tokens(Vec<usize>),
    /// A share of those that come in, 0 to 1 exclusive, in every layer.
    Share(f64),
}

impl Schedule {
    /// `r` tokens a layer on average, rising or falling along a line: `inflection` 0 is constant, 1 starts at 0 and
    /// ends at 2r, -1 the reverse (ToMe, `parse_r`; rounded down).
    ///
    /// # Errors
    /// `InvalidArgument` for an inflection outside -1 to 1.
    pub fn line(layers: usize, r: usize, inflection: f64) -> Result<Self> {
        if !(-1.0..=1.0).contains(&inflection) {
            return Err(Error::invalid(format!("inflection = {inflection}; allowed are -1 to 1")));
        }
        let least = (r as f64 * (1.0 - inflection)) as usize;
        let most = 2.0 * r as f64 - least as f64;
        let step = if layers > 1 { (most - least as f64) / (layers - 1) as f64 } else { 0.0 };
        Ok(Self::Tokens((0..layers).map(|i| (least as f64 + step * i as f64) as usize).collect()))
    }

    /// The same share of the tokens in every layer.
    ///
    /// # Errors
    /// `InvalidArgument` for a share outside 0 to 1 (exclusive).
    pub fn share(share: f64) -> Result<Self> {
        if (0.0..1.0).contains(&share) {
            return Ok(Self::Share(share));
        }
        Err(Error::invalid(format!("a share of {share}; allowed are 0 to 1, exclusive")))
    }

    /// Tokens that layer `layer` keeps of `tokens`, `protected` of which stay: never fewer than those and one more.
    #[must_use]
    pub fn keep(&self, layer: usize, tokens: usize, protected: usize) -> usize {
        let removed = match self {
            Self::Tokens(r) => r.get(layer).copied().unwrap_or(0),
            Self::Share(share) => (share * tokens as f64).round() as usize,
        };
        tokens.saturating_sub(removed).max((protected + 1).min(tokens))
    }
}
