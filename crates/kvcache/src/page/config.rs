use serde::{Deserialize, Serialize};
use tensorpress_tensor::{DType, Error, Result};

use super::grid::Plane;
use super::wire;

/// What a page holds and how. Every page of one configuration takes the same bytes, [`PageConfig::page_bytes`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct PageConfig {
    /// Tokens of a full page, 1 to 65535.
    pub tokens: usize,
    /// Heads of keys and values, 1 to 65535.
    pub kv_heads: usize,
    /// Channels of a key, 1 to 65535.
    pub head_dim: usize,
    /// Channels of a value, 0 to 65535: 0 where one array is all there is, as with latents.
    pub value_dim: usize,
    /// Bits of a code of the keys, 2 to 8.
    pub key_bits: u32,
    /// Bits of a code of the values, 2 to 8.
    pub value_bits: u32,
    /// Channels of a head that share a scale, 1 to 65535; the last group of a head has what is left.
    pub group: usize,
    /// Grids around zero: a scale alone, no minimum.
    pub symmetric: bool,
    /// Type of scales and minima: f32, f16 or bf16. They are rounded to it before codes are chosen.
    pub scales: DType,
    /// Rotate keys and values before they are rounded, and back when they are decoded.
    pub rotate: bool,
    /// What draws the signs of the rotation.
    pub seed: u64,
}

impl Default for PageConfig {
    /// 16 tokens of 8 heads of 128 channels, 4 bits, groups of 64 with an f16 scale and minimum, rotated by seed 0.
    fn default() -> Self {
        Self {
            tokens: 16,
            kv_heads: 8,
            head_dim: 128,
            value_dim: 128,
            key_bits: 4,
            value_bits: 4,
            group: 64,
            symmetric: false,
            scales: DType::F16,
            rotate: true,
            seed: 0,
        }
    }
}

/// The most that tokens, heads, channels and groups may be.
const MOST: usize = 0xffff;

impl PageConfig {
    /// The default for pages of this shape, with values as wide as keys.
    #[must_use]
    pub fn new(tokens: usize, kv_heads: usize, head_dim: usize) -> Self {
        Self { tokens, kv_heads, head_dim, value_dim: head_dim, ..Self::default() }
    }

    /// Sets the channels of a value.
    #[must_use]
    pub fn with_value_dim(mut self, value_dim: usize) -> Self {
        self.value_dim = value_dim;
        self
    }

    /// Sets the bits of keys and of values.
    #[must_use]
    pub fn with_bits(mut self, keys: u32, values: u32) -> Self {
        (self.key_bits, self.value_bits) = (keys, values);
        self
    }

    /// Sets how many channels share a scale.
    #[must_use]
    pub fn with_group(mut self, group: usize) -> Self {
        self.group = group;
        self
    }

    /// Sets whether grids lie around zero.
    #[must_use]
    pub fn with_symmetric(mut self, symmetric: bool) -> Self {
        self.symmetric = symmetric;
        self
    }

    /// Sets the type of scales and minima.
    #[must_use]
    pub fn with_scales(mut self, scales: DType) -> Self {
        self.scales = scales;
        self
    }

    /// Sets whether heads are rotated.
    #[must_use]
    pub fn with_rotate(mut self, rotate: bool) -> Self {
        self.rotate = rotate;
        self
    }

    /// Sets what draws the signs of the rotation.
    #[must_use]
    pub fn with_seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// What wrote a page, from its header.
    ///
    /// # Errors
    /// `InsufficientData`, `Corruption` or `Version`: what is no whole and undamaged page.
    pub fn of(page: &[u8]) -> Result<Self> {
        let (config, _) = wire::open(page)?;
        let expected = config.page_bytes().map_err(|e| Error::corruption(e.message()))?;
        if expected != page.len() {
            let len = page.len();
            return Err(Error::corruption(format!("a page of {expected} bytes in {len}")));
        }
        Ok(config)
    }

    /// Bytes of every page, however many tokens it holds: header, codes, scales, minima and checksum.
    ///
    /// # Errors
    /// `InvalidArgument` for a number outside of what its field allows, or a page beyond the address space.
    pub fn page_bytes(&self) -> Result<usize> {
        self.check()?;
        let [keys, values] = self.planes();
        // At most 2^16 tokens of 2^32 channels, of 1 + 2 x 4 bytes each.
        let tokens = self.tokens as u64 * (keys.token_bytes() + values.token_bytes());
        let bytes = wire::HEAD as u64 + tokens + wire::SUM as u64;
        let fits = usize::try_from(bytes).ok().filter(|bytes| isize::try_from(*bytes).is_ok());
        fits.ok_or_else(|| Error::invalid(format!("pages of {bytes} bytes: too many to address")))
    }

    /// Bytes of the keys and values of a full page in this type.
    #[must_use]
    pub fn raw_bytes(&self, dtype: DType) -> u64 {
        let channels = self.head_dim as u64 + self.value_dim as u64;
        self.tokens as u64 * self.kv_heads as u64 * channels * dtype.size() as u64
    }

    /// Keys and values.
    pub(super) fn planes(&self) -> [Plane; 2] {
        let (heads, group) = (self.kv_heads, self.group);
        let (symmetric, scales) = (self.symmetric, self.scales);
        [(self.head_dim, self.key_bits), (self.value_dim, self.value_bits)]
            .map(|(dim, bits)| Plane { heads, dim, bits, group, symmetric, scales })
    }

    /// The first field that is not the same, in words.
    pub(super) fn difference(&self, other: &Self) -> Option<String> {
        let numbers = |c: &Self| {
            [
                ("tokens", c.tokens as u64),
                ("kv_heads", c.kv_heads as u64),
                ("head_dim", c.head_dim as u64),
                ("value_dim", c.value_dim as u64),
                ("key_bits", u64::from(c.key_bits)),
                ("value_bits", u64::from(c.value_bits)),
                ("group", c.group as u64),
                ("symmetric", u64::from(c.symmetric)),
                ("rotate", u64::from(c.rotate)),
                ("seed", c.seed),
            ]
        };
        let differs = numbers(self).into_iter().zip(numbers(other)).find(|(a, b)| a != b);
        let scales = || {
            let names = (self.scales.name(), other.scales.name());
            (names.0 != names.1).then(|| format!("scales = {}, {} here", names.1, names.0))
        };
        let say = |((name, here), (_, there))| format!("{name} = {there}, {here} here");
        differs.map(say).or_else(scales)
    }

    fn check(&self) -> Result<()> {
        let counts = [
            ("tokens", self.tokens, 1),
            ("kv_heads", self.kv_heads, 1),
            ("head_dim", self.head_dim, 1),
            ("value_dim", self.value_dim, 0),
            ("group", self.group, 1),
        ];
        for (name, count, least) in counts {
            if !(least..=MOST).contains(&count) {
                let message = format!("{name} = {count}: allowed are {least} to {MOST}");
                return Err(Error::invalid(message));
            }
        }
        for (name, bits) in [("key_bits", self.key_bits), ("value_bits", self.value_bits)] {
            if !(2..=8).contains(&bits) {
                return Err(Error::invalid(format!("{name} = {bits}: allowed are 2 to 8")));
            }
        }
        if self.scales.float_type().is_none() {
            let name = self.scales.name();
            return Err(Error::invalid(format!("scales = {name}: allowed are F32, F16 and BF16")));
        }
        Ok(())
    }
}
