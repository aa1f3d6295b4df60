use ndarray::Array2;
use serde::{Deserialize, Serialize};
use tensorpress_tensor::stage::{Keys, Knobs, Row};
use tensorpress_tensor::{DType, Error, Result, ndarray};

use super::ProjectedCode;
use super::code::{Rank, stored};
use crate::budget::LayerAt;
use crate::stage::KvPart;
use crate::store::int::Role;
use crate::store::own::{
    CodedForm, Given, PerHead, Place, check_count, check_dim, exact_tail, half_of, row,
};

/// CSKV (Wang et al., 2024): fewer channels for the history, the newest tokens exact. Keys and values of each head are held on
/// a basis of their own, in numbers of 16 bits or as integers.
///
/// Bases are those that lose least of the first tokens, which are exact until there are enough of them and have left the window,
/// or given: [`weighted_basis`](super::weighted_basis) is CSKV's start from a projection's weights and its inputs' scales.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[non_exhaustive]
pub struct ChannelShrink {
    /// Share of the keys' channels that is held: rounded, one at least.
    pub keys: f64,
    /// Share of the values' channels that is held.
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

impl Default for ChannelShrink {
    /// Half of the channels in f16, bases of 256 tokens, a window and a margin of 32; chunks, where there are any, of 32.
    fn default() -> Self {
        let (keys, values, bits, chunk) = (0.5, 0.5, 16, 32);
        Self { keys, values, bits, chunk, fit: 256, window: 32, margin: 32, given: None }
    }
}

impl ChannelShrink {
    /// Sets the share of the channels of keys and of values that is held.
    #[must_use]
    pub fn with_keep(mut self, keys: f64, values: f64) -> Self {
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

    /// Gives bases `[channels, coordinates]` for each layer, orthonormal columns, of which as many of the first are taken as are
    /// held. Heads without them, or with fewer columns, are held exactly.
    #[must_use]
    pub fn with_bases(mut self, layers: Vec<PerHead<Array2<f32>>>) -> Self {
        (self.given, self.fit) = (Some(Given::new(layers)), 0);
        self
    }
}

exact_tail!(ChannelShrink);

/// Whether coordinates can have so many bits.
pub(super) fn check_coordinates(bits: u32, chunk: usize) -> Result<()> {
    crate::factor::check("a basis")?;
    if bits != 16 && !(2..=8).contains(&bits) {
        return Err(Error::invalid(format!("bits = {bits}: allowed are 2 to 8, and 16")));
    }
    check_count("chunk", chunk, 1..=4096)
}

/// Whether a share of something can be held.
pub(super) fn check_share(key: &str, share: f64) -> Result<()> {
    if share > 0.0 && share <= 1.0 {
        return Ok(());
    }
    Err(Error::invalid(format!("{key} = {share}: allowed are shares above 0, up to 1")))
}

impl CodedForm for ChannelShrink {
    const ID: &'static str = "channel_shrink";
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
        let rank = ((dim as f64 * share).round() as usize).clamp(1, dim);
        let chunk = if self.bits == 16 { 1 } else { self.chunk };
        let basis = self.given.as_ref().and_then(|given| given.of(place));
        let basis = basis.filter(|basis| basis.nrows() == dim && basis.ncols() >= rank);
        let basis = basis.map(|basis| stored(&basis.slice(ndarray::s![.., ..rank]).to_owned()));
        let (rank, bits, fit) = (Rank::Of(rank), self.bits, self.fit);
        ProjectedCode { dim, rank, bits, chunk, fit, basis }
    }
}

/// Knobs of all forms of coordinates.
pub(super) fn knobs(
    keys: &mut Keys<'_>,
    (bits, chunk): (&mut u32, &mut usize),
    (fit, window, margin): (&mut usize, &mut usize, &mut usize),
) -> Result<()> {
    let about = "bits of a coordinate: 16 for f16, else integers";
    keys.one_of("bits", bits, &[2, 3, 4, 5, 6, 7, 8, 16], about)?;
    keys.int("chunk", chunk, 1..=4096, "tokens that share the grids of integers")?;
    let about = "first tokens that bases are learnt from, and exact until then";
    keys.int("fit", fit, 1..=1 << 20, about)?;
    keys.int("window", window, 0..=1 << 20, "newest tokens that are exact")?;
    let about = "newest tokens that can be taken back exactly";
    keys.int("margin", margin, 0..=1 << 20, about)
}

impl Knobs for ChannelShrink {
    fn knobs(&mut self, keys: &mut Keys<'_>) -> Result<()> {
        keys.float("keys", &mut self.keys, 0.0..=1.0, "share of the keys' channels, above 0")?;
        keys.float(
            "values",
            &mut self.values,
            0.0..=1.0,
            "share of the values' channels, above 0",
        )?;
        let Self { bits, chunk, fit, window, margin, .. } = self;
        knobs(keys, (bits, chunk), (fit, window, margin))
    }
}

pub(in crate::store) fn stage() -> Row<KvPart> {
    row::<ChannelShrink>(
        "holds fewer channels, on the bases that lose least, the newest tokens exactly",
    )
}
