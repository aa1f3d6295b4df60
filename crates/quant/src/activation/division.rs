use tensorpress_tensor::half::bf16;
use tensorpress_tensor::linalg::SplitMix;
use tensorpress_tensor::ndarray::{Array3, Array4, ArrayView4, s};
use tensorpress_tensor::node::{PackedPlane, Plane, SymbolsMut};
use tensorpress_tensor::{Error, Result};

/// DIVISION (Wang et al., 2023): activation maps kept for the backward pass in two precisions. Their low frequencies, means of
/// square blocks, are kept in bf16; what is left is rounded at random, without bias, to a few bits in groups.
///
/// ```
/// use tensorpress_quant::activation::Division;
/// use tensorpress_tensor::ndarray::Array4;
///
/// let maps = Array4::from_shape_fn((1, 2, 16, 16), |(_, c, y, x)| (c + x * y) as f32 / 20.0);
/// let kept = Division::default().compress(maps.view(), 7)?;
/// assert!(kept.bytes() * 9 < 4 * maps.len());
/// assert_eq!(kept.decompress()?.dim(), maps.dim());
/// # Ok::<(), tensorpress_tensor::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Division {
    /// Side of a block whose mean is kept. Default 8.
    pub block: usize,
    /// Bits of what is left, 1 to 8. Default 2.
    pub bits: u8,
    /// Consecutive numbers, in the order of the maps, that share a range. Default 256.
    pub group: usize,
}

impl Default for Division {
    fn default() -> Self {
        Self { block: 8, bits: 2, group: 256 }
    }
}

impl Division {
    /// Sets the side of a block.
    #[must_use]
    pub fn with_block(mut self, block: usize) -> Self {
        self.block = block;
        self
    }

    /// Sets the bits of what is left, and how many numbers share a range.
    #[must_use]
    pub fn with_bits(mut self, bits: u8, group: usize) -> Self {
        (self.bits, self.group) = (bits, group);
        self
    }

    /// Compresses maps `[batch, channels, height, width]`; sides need not divide by the block. The same seed gives the same
    /// bytes.
    ///
    /// # Errors
    /// `InvalidArgument` for parameters out of their range, `Numerical` for numbers that are not finite or beyond bf16.
    pub fn compress(&self, maps: ArrayView4<'_, f32>, seed: u64) -> Result<DualPrecision> {
        let Self { block, bits, group } = *self;
        for (name, value, most) in
            [("block", block, 1 << 16), ("bits", bits.into(), 8), ("group", group, 1 << 30)]
        {
            if !(1..=most).contains(&value) {
                return Err(Error::invalid(format!("{name} = {value}: allowed are 1 to {most}")));
            }
        }
        if let Some((at, v)) = maps.indexed_iter().find(|(_, v)| v.is_nan() || v.abs() > 1e38) {
            return Err(Error::numerical(format!("activation {at:?} is {v}")));
        }
        let low = means(maps, block);
        let left: Vec<f32> = maps
            .indexed_iter()
            .map(|((b, c, y, x), v)| v - low[[b * maps.dim().1 + c, y / block, x / block]].to_f32())
            .collect();
        let levels = f32::from((1u16 << bits) - 1);
        let random = SplitMix::new(seed);
        let mut codes = vec![0u8; left.len()];
        let mut ranges = Vec::with_capacity(left.len().div_ceil(group));
        for (g, (left, codes)) in left.chunks(group).zip(codes.chunks_mut(group)).enumerate() {
            let range = Range::of(left, levels);
            for (i, (v, code)) in left.iter().zip(codes).enumerate() {
                let uniform =
                    (random.at((g * group + i) as u64) >> 40) as f32 / (1u32 << 24) as f32;
                *code = range.code(*v, levels, uniform);
            }
            ranges.push(range);
        }
        let codes = PackedPlane::pack(&codes, 1, left.len(), bits)?;
        Ok(DualPrecision { shape: maps.dim().into(), form: *self, low, ranges, codes })
    }
}

/// Means of blocks of each map; at the edges of what there is.
fn means(maps: ArrayView4<'_, f32>, block: usize) -> Array3<bf16> {
    let (batch, channels, height, width) = maps.dim();
    let shape = (batch * channels, height.div_ceil(block), width.div_ceil(block));
    Array3::from_shape_fn(shape, |(map, y, x)| {
        let rows = y * block..height.min((y + 1) * block);
        let columns = x * block..width.min((x + 1) * block);
        let part = maps.slice(s![map / channels, map % channels, rows, columns]);
        let sum: f64 = part.iter().map(|v| f64::from(*v)).sum();
        bf16::from_f64(sum / part.len() as f64)
    })
}

/// The levels `low + step code` of a group.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Range {
    low: bf16,
    step: bf16,
}

impl Range {
    /// Levels that span all numbers even after rounding to bf16: else those at the ends would be moved inwards.
    fn of(values: &[f32], levels: f32) -> Self {
        let (low, high) = values
            .iter()
            .fold((f32::INFINITY, f32::NEG_INFINITY), |(l, h), v| (l.min(*v), h.max(*v)));
        let mut start = bf16::from_f32(low);
        if start.to_f32() > low {
            start = below(start);
        }
        let mut step = bf16::from_f32((high - start.to_f32()) / levels);
        while start.to_f32() + step.to_f32() * levels < high {
            step = bf16::from_bits(step.to_bits() + 1);
        }
        Self { low: start, step }
    }

    /// One of the two levels beside a number, the nearer the likelier: the mean over `uniform` numbers is the number.
    fn code(self, value: f32, levels: f32, uniform: f32) -> u8 {
        let step = self.step.to_f32();
        if step == 0.0 {
            return 0;
        }
        ((value - self.low.to_f32()) / step + uniform).floor().clamp(0.0, levels) as u8
    }
}

/// The next number of bf16 below a finite one.
fn below(x: bf16) -> bf16 {
    match x.to_bits() {
        0 | 0x8000 => bf16::from_bits(0x8001),
        bits if bits & 0x8000 == 0 => bf16::from_bits(bits - 1),
        bits => bf16::from_bits(bits + 1),
    }
}

/// Activation maps in two precisions.
#[derive(Debug)]
pub struct DualPrecision {
    shape: [usize; 4],
    form: Division,
    /// `[batch * channels, blocks, blocks]`.
    low: Array3<bf16>,
    ranges: Vec<Range>,
    codes: PackedPlane,
}

impl DualPrecision {
    /// `[batch, channels, height, width]`.
    #[must_use]
    pub fn shape(&self) -> [usize; 4] {
        self.shape
    }

    /// Bytes of means, ranges and codes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let codes =
            (self.shape.iter().product::<usize>() * usize::from(self.form.bits)).div_ceil(8);
        2 * self.low.len() + 4 * self.ranges.len() + codes
    }

    /// The largest distance of a number from what is decompressed: a step of its group, in the order of the maps.
    #[must_use]
    pub fn steps(&self) -> Vec<f32> {
        self.ranges.iter().map(|range| range.step.to_f32()).collect()
    }

    /// The maps: means of blocks, and what was left of them.
    ///
    /// # Errors
    /// Those of the plane of codes.
    pub fn decompress(&self) -> Result<Array4<f32>> {
        let [_, channels, ..] = self.shape;
        let (block, group) = (self.form.block, self.form.group);
        let mut maps = Array4::zeros(self.shape);
        let mut codes = vec![0u8; maps.len()];
        self.codes.read(0..1, SymbolsMut::U8(&mut codes))?;
        for (i, ((b, c, y, x), v)) in maps.indexed_iter_mut().enumerate() {
            let Range { low, step } = self.ranges[i / group];
            let mean = self.low[[b * channels + c, y / block, x / block]].to_f32();
            *v = mean + (low.to_f32() + step.to_f32() * f32::from(codes[i]));
        }
        Ok(maps)
    }
}
