use serde::{Deserialize, Serialize};
use tensorpress_tensor::stage::{Keys, Knobs, Row};
use tensorpress_tensor::{DType, Error, Result};

use super::{Codebooks, PqCode};
use crate::budget::LayerAt;
use crate::stage::KvPart;
use crate::store::int::Role;
use crate::store::own::{
    CodedForm, Given, PerHead, Place, check_bits, check_dim, exact_tail, half_of, row,
};

/// Product quantisation (MILLION, Wang et al., 2025): channels in subvectors, each of which is one of few centroids. Attention
/// takes products of a query with the centroids once, and adds up what the codes name; sums of values come from how much weight
/// each centroid has.
///
/// Codebooks are learnt from the first tokens of each head, which are exact until there are enough of them and have left the
/// window, or given ([`PqCache::with_codebooks`]).
#[derive(Debug, Clone, Serialize, Deserialize)]
#[non_exhaustive]
pub struct PqCache {
    /// Channels of a subvector: divides the head.
    pub sub: usize,
    /// Bits of a code, 1 to 8: `bits / sub` bits a channel.
    pub bits: u32,
    /// Tokens that codebooks are learnt from, at least one for each centroid; 0 where they are given.
    pub fit: usize,
    /// Where k-means begins.
    pub seed: u64,
    /// Newest tokens that are exact.
    pub window: usize,
    /// Newest tokens that can be taken back exactly.
    pub margin: usize,
    #[serde(skip)]
    given: Option<Given<Codebooks>>,
}

impl Default for PqCache {
    /// 8 bits for pairs of channels, codebooks of 512 tokens, a window and a margin of 32.
    fn default() -> Self {
        Self { sub: 2, bits: 8, fit: 512, seed: 0, window: 32, margin: 32, given: None }
    }
}

impl PqCache {
    /// Sets the channels of a subvector and the bits of its code.
    #[must_use]
    pub fn with_codes(mut self, sub: usize, bits: u32) -> Self {
        (self.sub, self.bits) = (sub, bits);
        self
    }

    /// Sets how many of the first tokens codebooks are learnt from.
    #[must_use]
    pub fn with_fit(mut self, tokens: usize) -> Self {
        self.fit = tokens;
        self
    }

    /// Gives codebooks learnt from calibration data for each layer. Heads without them, or whose are of another shape, are
    /// held exactly.
    #[must_use]
    pub fn with_codebooks(mut self, layers: Vec<PerHead<Codebooks>>) -> Self {
        (self.given, self.fit) = (Some(Given::new(layers)), 0);
        self
    }
}

exact_tail!(PqCache);

impl CodedForm for PqCache {
    const ID: &'static str = "pq_cache";
    type Code = PqCode;

    fn check(&self, role: Role, dim: usize) -> Result<()> {
        check_bits("bits", self.bits, 1..=8)?;
        check_dim(role, dim)?;
        if self.sub == 0 || !dim.is_multiple_of(self.sub) {
            let (sub, width) = (self.sub, role.width());
            return Err(Error::invalid(format!("sub = {sub}: must divide {width} = {dim}")));
        }
        if self.fit > 0 && self.fit < 1 << self.bits {
            let (fit, least) = (self.fit, 1 << self.bits);
            return Err(Error::invalid(format!(
                "fit = {fit}: at least {least}, as many as centroids"
            )));
        }
        Ok(())
    }

    fn limit(&self) -> f32 {
        half_of(DType::F16)
    }

    fn windows(&self) -> [usize; 2] {
        [self.window, self.margin]
    }

    fn at(&self, layer: LayerAt) -> Option<Self> {
        let given = self.given.as_ref()?.at(layer);
        Some(Self { given: Some(given), ..self.clone() })
    }

    fn code(&self, place: Place) -> PqCode {
        let Self { sub, bits, fit, seed, .. } = *self;
        let dim = place.2;
        let shape = (dim / sub, 1 << bits, sub);
        let books = self.given.as_ref().and_then(|given| given.of(place));
        let books = books.filter(|books| books.centroids().dim() == shape);
        PqCode { dim, sub, bits, fit, seed, books }
    }
}

impl Knobs for PqCache {
    fn knobs(&mut self, keys: &mut Keys<'_>) -> Result<()> {
        keys.int("sub", &mut self.sub, 1..=256, "channels that share a code: divides the head")?;
        keys.int("bits", &mut self.bits, 1..=8, "bits of a code")?;
        let about = "first tokens that codebooks are learnt from, and exact until then";
        keys.int("fit", &mut self.fit, 2..=1 << 20, about)?;
        keys.int("seed", &mut self.seed, 0..=i64::MAX, "where k-means begins")?;
        keys.int("window", &mut self.window, 0..=1 << 20, "newest tokens that are exact")?;
        let about = "newest tokens that can be taken back exactly";
        keys.int("margin", &mut self.margin, 0..=1 << 20, about)
    }
}

pub(in crate::store) fn stage() -> Row<KvPart> {
    row::<PqCache>("holds a code for each subvector; attention reads tables of the centroids")
}
