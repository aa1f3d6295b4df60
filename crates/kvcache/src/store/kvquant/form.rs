use serde::{Deserialize, Serialize};
use tensorpress_tensor::stage::{Keys, Knobs, Row};
use tensorpress_tensor::{DType, Error, Result};

use super::{KvLevels, Levels, NuqCode, Vectors};
use crate::budget::LayerAt;
use crate::stage::KvPart;
use crate::store::int::Role;
use crate::store::own::{
    CodedForm, Given, PerHead, Place, check_bits, check_count, check_dim, exact_tail, half_of, row,
};

/// KVQuant (Hooper et al., 2024): keys by channel, before rotary embedding where that is known, values by token; levels that
/// lose least, outliers stored as they are, the first tokens exact.
///
/// What must be learnt is learnt from the first tokens, which are exact until there are enough of them and have left the
/// window, or given ([`KvQuant::with_levels`]).
#[derive(Debug, Clone, Serialize, Deserialize)]
#[non_exhaustive]
pub struct KvQuant {
    /// Bits of a code, 2 to 8.
    pub bits: u32,
    /// Share of each vector's entries that is stored as it is.
    pub outliers: f64,
    /// Where levels come from.
    pub levels: Levels,
    /// Mean and spread are restored (Q-Norm); the paper's way at 2 bits.
    pub norm: bool,
    /// First tokens that stay exact.
    pub sinks: usize,
    /// Tokens that are learnt from, the exact first ones among them; 0 where levels are given.
    pub fit: usize,
    /// Newest tokens that are exact.
    pub window: usize,
    /// Newest tokens that can be taken back exactly.
    pub margin: usize,
    #[serde(skip)]
    given: Option<Given<KvLevels>>,
}

impl Default for KvQuant {
    /// 4 bits, 1% outliers, fitted levels, the first token exact, 256 tokens to learn from, a window and a margin of 32.
    fn default() -> Self {
        Self {
            bits: 4,
            outliers: 0.01,
            levels: Levels::Fitted,
            norm: false,
            sinks: 1,
            fit: 256,
            window: 32,
            margin: 32,
            given: None,
        }
    }
}

impl KvQuant {
    /// Sets the bits of a code.
    #[must_use]
    pub fn with_bits(mut self, bits: u32) -> Self {
        self.bits = bits;
        self
    }

    /// Sets the share of outliers.
    #[must_use]
    pub fn with_outliers(mut self, share: f64) -> Self {
        self.outliers = share;
        self
    }

    /// Sets whether mean and spread are restored.
    #[must_use]
    pub fn with_norm(mut self, norm: bool) -> Self {
        self.norm = norm;
        self
    }

    /// Sets how many of the first tokens are learnt from, and how many of them stay exact.
    #[must_use]
    pub fn with_fit(mut self, tokens: usize, sinks: usize) -> Self {
        (self.fit, self.sinks) = (tokens, sinks);
        self
    }

    /// Gives levels learnt from calibration data ([`KvLevels::of_keys`], [`KvLevels::of_values`]) for each layer. Heads without
    /// them are held exactly.
    #[must_use]
    pub fn with_levels(mut self, layers: Vec<PerHead<KvLevels>>) -> Self {
        (self.given, self.fit) = (Some(Given::new(layers)), 0);
        self
    }
}

exact_tail!(KvQuant);

impl CodedForm for KvQuant {
    const ID: &'static str = "kvquant";
    type Code = NuqCode;

    fn check(&self, role: Role, dim: usize) -> Result<()> {
        check_bits("bits", self.bits, 2..=8)?;
        check_dim(role, dim)?;
        check_count("sinks", self.sinks, 0..=1 << 20)?;
        if !(0.0..=0.5).contains(&self.outliers) {
            let share = self.outliers;
            return Err(Error::invalid(format!("outliers = {share}: allowed are 0 to 0.5")));
        }
        if self.fit > 0 && self.fit <= self.sinks {
            let (fit, sinks) = (self.fit, self.sinks);
            return Err(Error::invalid(format!("fit = {fit}: more than the {sinks} first tokens")));
        }
        Ok(())
    }

    fn limit(&self) -> f32 {
        half_of(DType::F16)
    }

    fn windows(&self) -> [usize; 2] {
        [self.window, self.margin]
    }

    fn plain_keys(&self) -> bool {
        true
    }

    fn at(&self, layer: LayerAt) -> Option<Self> {
        let given = self.given.as_ref()?.at(layer);
        Some(Self { given: Some(given), ..self.clone() })
    }

    fn code(&self, place: Place) -> NuqCode {
        let (role, _, dim) = place;
        let vectors = if role == Role::Keys { Vectors::Channels } else { Vectors::Tokens };
        let Self { bits, outliers, levels, norm, sinks, fit, .. } = *self;
        let fits = |model: &std::sync::Arc<KvLevels>| {
            let count = 1 << bits;
            let ranges = if role == Role::Keys { dim } else { 0 };
            (model.points.len(), model.levels.len()) == (count, count)
                && (model.lower.len(), model.upper.len()) == (ranges, ranges)
        };
        let model = self.given.as_ref().and_then(|given| given.of(place)).filter(fits);
        let dtype = DType::F16;
        NuqCode { dim, vectors, bits, outliers, levels, norm, sinks, fit, dtype, model }
    }
}

impl Knobs for KvQuant {
    fn knobs(&mut self, keys: &mut Keys<'_>) -> Result<()> {
        let levels =
            [("fitted", Levels::Fitted), ("uniform", Levels::Uniform), ("normal", Levels::Normal)];
        keys.int("bits", &mut self.bits, 2..=8, "bits of a code")?;
        let about = "share of each channel's keys and each token's values that stays as it is";
        keys.float("outliers", &mut self.outliers, 0.0..=0.5, about)?;
        keys.choice("levels", &mut self.levels, &levels, "where levels come from")?;
        keys.flag("norm", &mut self.norm, "restores mean and spread: for 2 bits")?;
        keys.int("sinks", &mut self.sinks, 0..=1 << 20, "first tokens that stay exact")?;
        let about = "first tokens that are learnt from, and exact until then";
        keys.int("fit", &mut self.fit, 1..=1 << 20, about)?;
        keys.int("window", &mut self.window, 0..=1 << 20, "newest tokens that are exact")?;
        let about = "newest tokens that can be taken back exactly";
        keys.int("margin", &mut self.margin, 0..=1 << 20, about)
    }
}

pub(in crate::store) fn stage() -> Row<KvPart> {
    row::<KvQuant>("holds codes of levels that lose least, and outliers as they are")
}
