use serde::{Deserialize, Serialize};
use tensorpress_tensor::node::{Json, PartSource};
use tensorpress_tensor::stage::{Keys, Knobs, Row};
use tensorpress_tensor::{DType, Error, Result};

use super::centred::Centred;
use super::form::check_int;
use super::int::{Axis, IntRows, IntShape, Role};
use super::own::{PackedForm, Place, check_count, exact_tail, half_of, row};
use super::rotated::Rotated;
use crate::stage::KvPart;

/// Integers behind a rotation: signs drawn from a seed and a Hadamard matrix spread what single channels stand out by, and plain
/// grids of each token and run of channels do for keys as well as for values (QuaRot, Ashkboos et al., 2024). Attention rotates
/// queries and sums, not the tokens. Of keys a mean of the tokens before is taken off first, for only what differs from it
/// changes what is looked at (SageAttention, Zhang et al., 2025); the first tokens, which are unlike the rest, stay exact.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct HadamardInt {
    /// Bits of a key's code: 2, 4 or 8.
    pub key_bits: u32,
    /// Bits of a value's code.
    pub value_bits: u32,
    /// Channels of a key that share a scale: a multiple of 16 that divides the head, or all of it.
    pub group: usize,
    /// Channels of a value; 0 for as many.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub value_group: usize,
    /// Newest tokens that are exact.
    pub window: usize,
    /// Type of scales and minima.
    pub scales: DType,
    /// Of the signs.
    pub seed: u64,
    /// First tokens that stay exact.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub sinks: usize,
    /// Keys are packed less a mean that moves with them.
    #[serde(default, skip_serializing_if = "is_false")]
    pub centre: bool,
    /// Newest tokens that can be taken back exactly.
    pub margin: usize,
}

// What came later is not in descriptions that do without it: those from before are as they were.
fn is_zero(n: &usize) -> bool {
    *n == 0
}

fn is_false(flag: &bool) -> bool {
    !flag
}

impl Default for HadamardInt {
    /// 4 bits in groups of 32 f16 scales, centred keys, 4 exact tokens first, a window of 16 and a margin
    /// of 32.
    fn default() -> Self {
        Self {
            key_bits: 4,
            value_bits: 4,
            group: 32,
            value_group: 0,
            window: 16,
            scales: DType::F16,
            seed: 0,
            sinks: 4,
            centre: true,
            margin: 32,
        }
    }
}

impl HadamardInt {
    /// Sets the bits of keys and of values.
    #[must_use]
    pub fn with_bits(mut self, keys: u32, values: u32) -> Self {
        (self.key_bits, self.value_bits) = (keys, values);
        self
    }

    /// Sets how many channels of keys and of values share a scale.
    #[must_use]
    pub fn with_groups(mut self, keys: usize, values: usize) -> Self {
        (self.group, self.value_group) = (keys, values);
        self
    }

    /// Sets how many of the first tokens stay exact.
    #[must_use]
    pub fn with_sinks(mut self, tokens: usize) -> Self {
        self.sinks = tokens;
        self
    }

    /// Sets whether a mean is taken off the keys.
    #[must_use]
    pub fn with_centre(mut self, centre: bool) -> Self {
        self.centre = centre;
        self
    }

    /// Exact first rows, and the type of means.
    fn around(&self, role: Role) -> (usize, Option<DType>) {
        (self.sinks, (self.centre && role == Role::Keys).then_some(self.scales))
    }

    fn shape(&self, (role, _, dim): Place) -> IntShape {
        let (bits, group) = match role {
            Role::Values if self.value_group > 0 => (self.value_bits, self.value_group),
            Role::Values => (self.value_bits, self.group),
            Role::Keys => (self.key_bits, self.group),
        };
        let (axis, group, dtype) = (Axis::Token, group.min(dim), self.scales);
        IntShape { role, axis, bits, group, dim, dtype, sliding: false }
    }
}

exact_tail!(HadamardInt);

impl PackedForm for HadamardInt {
    const ID: &'static str = "hadamard_int";
    type Packed = Centred<Rotated<IntRows>>;

    fn check(&self, role: Role, dim: usize) -> Result<()> {
        check_count("sinks", self.sinks, 0..=1 << 20)?;
        check_int(&self.shape((role, 0, dim))).map_err(|e| {
            let key = if role == Role::Keys { "key" } else { "value" };
            Error::new(e.kind(), format!("{key}s: {}", e.message()))
        })
    }

    /// Rotated, a number can be the sum of all channels; centred, it can be twice as large.
    fn limit(&self) -> f32 {
        half_of(self.scales) / 64.0
    }

    fn windows(&self) -> [usize; 2] {
        [self.window, self.margin]
    }

    fn mixes_keys(&self) -> bool {
        false
    }

    fn packed(&self, place: Place) -> Self::Packed {
        let rows = Rotated::new(IntRows::new(self.shape(place)), place.0, self.seed);
        let (sinks, means) = self.around(place.0);
        Centred::new(rows, sinks, means)
    }

    fn read(
        &self,
        place: Place,
        json: &Json,
        prefix: &str,
        source: &dyn PartSource,
    ) -> Result<Self::Packed> {
        let rows = |json: &Json| {
            let rows = IntRows::read(json, place.2, prefix, source)?;
            Ok(Rotated::new(rows, place.0, self.seed))
        };
        Centred::read(json, rows, self.around(place.0), prefix, source)
    }
}

impl Knobs for HadamardInt {
    fn knobs(&mut self, keys: &mut Keys<'_>) -> Result<()> {
        keys.one_of("key_bits", &mut self.key_bits, &[2, 4, 8], "bits of a key's code")?;
        keys.one_of("value_bits", &mut self.value_bits, &[2, 4, 8], "bits of a value's code")?;
        let about =
            "channels of a key that share a scale: a multiple of 16 that divides the head, or all";
        keys.int("group", &mut self.group, 1..=1 << 20, about)?;
        let about = "channels of a value that share a scale; 0 for as many as of a key";
        keys.int("value_group", &mut self.value_group, 0..=1 << 20, about)?;
        keys.int("window", &mut self.window, 0..=1 << 20, "newest tokens that are exact")?;
        let types = [("f32", DType::F32), ("f16", DType::F16), ("bf16", DType::BF16)];
        keys.choice("scales", &mut self.scales, &types, "type of scales and minima")?;
        keys.int("seed", &mut self.seed, 0..=i64::MAX, "of the signs")?;
        keys.int("sinks", &mut self.sinks, 0..=1 << 20, "first tokens that stay exact")?;
        let about = "keys are packed less a mean that moves with them";
        keys.flag("centre", &mut self.centre, about)?;
        let about = "newest tokens that can be taken back exactly";
        keys.int("margin", &mut self.margin, 0..=1 << 20, about)
    }
}

pub(super) fn stage() -> Row<KvPart> {
    row::<HadamardInt>("holds integers behind signs and a Hadamard matrix, keys and values alike")
}
