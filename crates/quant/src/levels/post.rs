use tensorpress_tensor::node::LevelTable;
use tensorpress_tensor::stage::{Keys, Knobs, Row, WeightPart};
use tensorpress_tensor::stats::Needs;
use tensorpress_tensor::{Compress, CompressedGroup, DType, Error, Group, Method, Result, Target};

use super::Nearest;
use super::scaled::{Scaled, dense};
use crate::rounding::{Codes, Filler};

/// Powers of the square root of two (POST of ASQ; Zhou et al., 2025): levels 0 and ±2^(-k/2), under the scale of each group
/// with the least squared error.
///
/// ```
/// use tensorpress_quant::Post;
/// use tensorpress_tensor::{Compress, ndarray::array, node::decode, stats::Calibration};
///
/// # fn main() -> tensorpress_tensor::Result<()> {
/// let weight = array![[2.0, -1.0, 0.0, -2.0]];
/// let made = Post::new(4, 4).compress(weight.view(), &Calibration::none(4))?;
/// assert_eq!(decode(&made.node)?, weight);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Post {
    /// Bits of a code, 2 to 6: 2^(bits - 1) - 1 magnitudes. Default 4.
    pub bits: u8,
    /// Consecutive inputs of a row that share a scale; 0 stands for whole rows. Default 128.
    pub group: usize,
    /// Stored type of scales; f32 in its place where it cannot hold them well. Default f16.
    pub scale: DType,
    /// How weights get their codes. Default nearest.
    pub codes: Codes,
}

impl Default for Post {
    fn default() -> Self {
        Self { bits: 4, group: 128, scale: DType::F16, codes: Codes::default() }
    }
}

impl Post {
    /// `bits` bits in groups of `group` inputs (0: whole rows).
    #[must_use]
    pub fn new(bits: u8, group: usize) -> Self {
        Self { bits, group, ..Self::default() }
    }

    /// Sets the stored type of scales.
    #[must_use]
    pub fn with_scale(mut self, scale: DType) -> Self {
        self.scale = scale;
        self
    }

    /// Sets how weights get their codes.
    #[must_use]
    pub fn with_codes(mut self, codes: Codes) -> Self {
        self.codes = codes;
        self
    }

    /// The levels, ascending: 2^bits - 1 of them.
    ///
    /// # Errors
    /// `InvalidArgument` for bits that are not 2 to 6.
    pub fn levels(bits: u8) -> Result<Vec<f32>> {
        if !(2..=6).contains(&bits) {
            return Err(Error::invalid(format!("bits = {bits}: allowed are 2 to 6")));
        }
        let root = |k: i32| match k % 2 {
            0 => 0.5f32.powi(k / 2),
            _ => 0.5f32.powi(k / 2) * std::f32::consts::FRAC_1_SQRT_2,
        };
        let sizes: Vec<f32> = (0..(1 << (bits - 1)) - 1).map(root).collect();
        let negative = sizes.iter().map(|size| -size);
        Ok(negative.chain([0.0]).chain(sizes.iter().rev().copied()).collect())
    }

    fn quantize(&self, target: &Target<'_>, filler: Filler<'_>) -> Result<LevelTable> {
        let levels = Self::levels(self.bits)?;
        // The last code stands for the last level too: none writes it.
        let mut table = levels.clone();
        table.push(1.0);
        let table = dense(&table, [1, table.len()], None)?;
        let nearest = Nearest::of(&levels);
        let rule = Scaled::new((&levels, &nearest), target, self.group, self.scale);
        rule.node(target, filler, (table, self.bits))
    }
}

impl Knobs for Post {
    fn knobs(&mut self, keys: &mut Keys<'_>) -> Result<()> {
        keys.int("bits", &mut self.bits, 2..=6, "bits of a code")?;
        let about = "consecutive inputs that share a scale; 0: a whole row";
        keys.int("group", &mut self.group, 0..=1 << 20, about)?;
        let types = [("f16", DType::F16), ("bf16", DType::BF16), ("f32", DType::F32)];
        keys.choice("scale", &mut self.scale, &types, "stored type of scales")?;
        self.codes.knobs(keys)
    }
}

pub(super) fn stage() -> Row<WeightPart> {
    Row::method(
        "post",
        "rounds to powers of the square root of two, under the best scale of each group",
        Post::default,
    )
}

impl Method for Post {
    fn id(&self) -> &'static str {
        "post"
    }

    fn needs(&self) -> Needs {
        self.codes.needs()
    }
}

impl Compress for Post {
    type Node = LevelTable;

    fn compress_group(&self, group: Group<'_>) -> Result<CompressedGroup<LevelTable>> {
        Self::levels(self.bits)?;
        super::check_float("scale", self.scale)?;
        self.codes.each(group, |target, filler| self.quantize(target, filler))
    }
}
