use serde::{Deserialize, Serialize};
use tensorpress_tensor::ndarray::Array2;
use tensorpress_tensor::stage::{Keys, Knobs, Row};
use tensorpress_tensor::{DType, Result};

use super::ProjectedCode;
use super::channel_shrink::{check_coordinates, check_share, knobs};
use super::code::{Rank, stored};
use crate::budget::LayerAt;
use crate::stage::KvPart;
use crate::store::int::Role;
use crate::store::own::{CodedForm, Given, PerHead, Place, check_dim, exact_tail, half_of, row};

/// MatryoshkaKV (Lin et al., 2024): each head's keys and values on an orthogonal basis of their own, and of each as many of the
/// first coordinates as it needs.
///
/// By recipe a head takes as many principal directions as hold a share of what its first tokens are. As a library: bases made
/// better for attention by [`Matryoshka`](super::Matryoshka), ranks by [`greedy_ranks`](super::greedy_ranks), and given here.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[non_exhaustive]
pub struct MatryoshkaProj {
    /// Share of the keys' squares that a head's coordinates hold.
    pub keys: f64,
    /// Share of the values' squares.
    pub values: f64,
    /// Bits of a coordinate: 16 for f16, or 2 to 8 for integers on grids of each coordinate and chunk.
    pub bits: u32,
    /// Tokens of a chunk, where coordinates are integers.
    pub chunk: usize,
    /// Tokens that bases are learnt from; 0 where they are given.
    pub fit: usize,
    /// Newest tokens that are exact.
    pub window: usize,
    /// Newest tokens that can be taken back exactly.
    pub margin: usize,
    #[serde(skip)]
    given: Option<Given<Array2<f32>>>,
}

impl Default for MatryoshkaProj {
    /// 97% of keys and of values in f16, bases of 256 tokens, a window and a margin of 32; chunks, where there are any, of 32.
    fn default() -> Self {
        let (keys, values, bits, chunk) = (0.97, 0.97, 16, 32);
        Self { keys, values, bits, chunk, fit: 256, window: 32, margin: 32, given: None }
    }
}

impl MatryoshkaProj {
    /// Sets the share of keys and of values that coordinates hold.
    #[must_use]
    pub fn with_energy(mut self, keys: f64, values: f64) -> Self {
        (self.keys, self.values) = (keys, values);
        self
    }

    /// Sets the bits of a coordinate.
    #[must_use]
    pub fn with_bits(mut self, bits: u32) -> Self {
        self.bits = bits;
        self
    }

    /// Sets how many of the first tokens bases are learnt from.
    #[must_use]
    pub fn with_fit(mut self, tokens: usize) -> Self {
        self.fit = tokens;
        self
    }

    /// Gives bases `[channels, coordinates]` for each layer, orthonormal columns, all of which are held: a head's own number.
    /// Heads without them are held exactly.
    #[must_use]
    pub fn with_bases(mut self, layers: Vec<PerHead<Array2<f32>>>) -> Self {
        (self.given, self.fit) = (Some(Given::new(layers)), 0);
        self
    }
}

exact_tail!(MatryoshkaProj);

impl CodedForm for MatryoshkaProj {
    const ID: &'static str = "matryoshka_proj";
    type Code = ProjectedCode;

    fn check(&self, role: Role, dim: usize) -> Result<()> {
        check_share("keys", self.keys)?;
        check_share("values", self.values)?;
        check_coordinates(self.bits, self.chunk)?;
        check_dim(role, dim)
    }

    /// A coordinate can hold all channels.
    fn limit(&self) -> f32 {
        half_of(DType::F16) / 32.0
    }

    fn windows(&self) -> [usize; 2] {
        [self.window, self.margin]
    }

    /// They have fewer directions.
    fn plain_keys(&self) -> bool {
        true
    }

    fn at(&self, layer: LayerAt) -> Option<Self> {
        let given = self.given.as_ref()?.at(layer);
        Some(Self { given: Some(given), ..self.clone() })
    }

    fn code(&self, place: Place) -> ProjectedCode {
        let (role, _, dim) = place;
        let share = if role == Role::Keys { self.keys } else { self.values };
        let chunk = if self.bits == 16 { 1 } else { self.chunk };
        let basis = self.given.as_ref().and_then(|given| given.of(place));
        let fits = |basis: &std::sync::Arc<Array2<f32>>| {
            basis.nrows() == dim && (1..=dim).contains(&basis.ncols())
        };
        let basis = basis.filter(fits).map(|basis| stored(&basis));
        let (rank, bits, fit) = (Rank::Energy(share), self.bits, self.fit);
        ProjectedCode { dim, rank, bits, chunk, fit, basis }
    }
}

impl Knobs for MatryoshkaProj {
    fn knobs(&mut self, keys: &mut Keys<'_>) -> Result<()> {
        let about = "share of the keys' squares that a head's coordinates hold, above 0";
        keys.float("keys", &mut self.keys, 0.0..=1.0, about)?;
        let about = "share of the values' squares that a head's coordinates hold, above 0";
        keys.float("values", &mut self.values, 0.0..=1.0, about)?;
        let Self { bits, chunk, fit, window, margin, .. } = self;
        knobs(keys, (bits, chunk), (fit, window, margin))
    }
}

pub(in crate::store) fn stage() -> Row<KvPart> {
    row::<MatryoshkaProj>(
        "holds as many coordinates of each head as it needs, on a basis of its own",
    )
}
