//! Codes, scales and minima of one token's keys or values.

use tensorpress_tensor::DType;
use tensorpress_tensor::kernels;

use super::scratch::{Buffers, LARGEST};

/// Keys or values of a page.
#[derive(Debug, Clone, Copy)]
pub(super) struct Plane {
    pub(super) heads: usize,
    pub(super) dim: usize,
    pub(super) bits: u32,
    pub(super) group: usize,
    pub(super) symmetric: bool,
    pub(super) scales: DType,
}

/// The bytes of one token.
pub(super) struct Row<B> {
    pub(super) codes: B,
    pub(super) scales: B,
    /// Empty where grids are symmetric.
    pub(super) mins: B,
}

impl Plane {
    /// Channels of all heads.
    pub(super) fn width(&self) -> usize {
        self.heads * self.dim
    }

    /// Scales of a head.
    pub(super) fn groups(&self) -> usize {
        self.dim.div_ceil(self.group)
    }

    /// Bytes of the codes, scales and minima of a token.
    pub(super) fn parts(&self) -> [usize; 3] {
        let codes = kernels::packed_len(self.width(), self.bits);
        let scales = self.heads * self.groups() * self.scales.size();
        [codes, scales, if self.symmetric { 0 } else { scales }]
    }

    /// Bytes of a token, counted where they may be more than can be addressed.
    pub(super) fn token_bytes(&self) -> u64 {
        let width = self.heads as u64 * self.dim as u64;
        let codes = (width * u64::from(self.bits)).div_ceil(8);
        let grids = if self.symmetric { 1 } else { 2 };
        codes + grids * (self.heads * self.groups() * self.scales.size()) as u64
    }

    fn most(&self) -> f32 {
        ((1u32 << self.bits) - 1) as f32
    }

    /// The code of 0 in a symmetric grid.
    fn zero(&self) -> f32 {
        if self.symmetric { (1u32 << (self.bits - 1)) as f32 } else { 0.0 }
    }

    /// Rounds the finite values in `buffers.x` and writes them. The head whose scale or minimum is beyond the type of scales is
    /// the error.
    pub(super) fn encode(&self, buffers: Buffers<'_>, row: Row<&mut [u8]>) -> Result<(), usize> {
        let Buffers { x, codes, scales, mins } = buffers;
        let (most, zero) = (self.most(), self.zero());
        for ((x, scale), min) in self.each(x).zip(&mut *scales).zip(&mut *mins) {
            let (low, high) = range(x);
            // A symmetric grid has no use for the minimum.
            (*min, *scale) = if self.symmetric { (0.0, 2.0 * high.max(-low)) } else { (low, high) };
        }
        if self.symmetric {
            scales.iter_mut().for_each(|scale| *scale /= most);
        } else {
            self.store(mins, row.mins)?;
            // From the minimum as it is stored: what rounds there is not lost at the other end.
            let spans = scales.iter_mut().zip(&*mins);
            spans.for_each(|(scale, min)| *scale = (*scale - min).max(0.0) / most);
        }
        self.store(scales, row.scales)?;
        for ((x, scale), min) in self.each(x).zip(&*scales).zip(&*mins) {
            if *scale > 0.0 {
                x.iter_mut().for_each(|x| *x = (*x - min) / scale);
            } else {
                // A constant group, or one of less than the smallest scale.
                x.fill(0.0);
            }
        }
        kernels::quantize_affine(x, 1.0, zero, most as u8, codes);
        kernels::pack_bits(codes, self.bits, row.codes);
        Ok(())
    }

    /// Reads what [`Plane::encode`] wrote into `buffers.x`. The head of a scale or minimum that no encoder writes is the
    /// error.
    pub(super) fn decode(&self, row: Row<&[u8]>, buffers: Buffers<'_>) -> Result<(), usize> {
        let Buffers { x, codes, scales, mins } = buffers;
        let head = |at: usize| at / self.groups();
        self.scales.read_f32(row.scales, scales).expect("a float type");
        let wrong = scales.iter().position(|scale| !(0.0..=LARGEST).contains(scale));
        if let Some(at) = wrong {
            return Err(head(at));
        }
        if !self.symmetric {
            self.scales.read_f32(row.mins, mins).expect("a float type");
            if let Some(at) = mins.iter().position(|min| !(-LARGEST..=LARGEST).contains(min)) {
                return Err(head(at));
            }
        }
        kernels::unpack_bits(row.codes, self.bits, 0, codes);
        let codes = codes.chunks(self.dim.max(1)).flat_map(|head| head.chunks(self.group));
        let zero = self.zero();
        for (((x, codes), scale), min) in self.each(x).zip(codes).zip(&*scales).zip(&*mins) {
            let pairs = x.iter_mut().zip(codes);
            if self.symmetric {
                pairs.for_each(|(x, code)| *x = scale * (f32::from(*code) - zero));
            } else {
                pairs.for_each(|(x, code)| *x = min + scale * f32::from(*code));
            }
        }
        Ok(())
    }

    /// Group after group of head after head.
    fn each<'a>(&self, x: &'a mut [f32]) -> impl Iterator<Item = &'a mut [f32]> {
        let group = self.group;
        x.chunks_mut(self.dim.max(1)).flat_map(move |head| head.chunks_mut(group))
    }

    /// Rounds values to the type of scales, and writes them.
    fn store(&self, values: &mut [f32], bytes: &mut [u8]) -> Result<(), usize> {
        write_f32(self.scales, values, bytes);
        self.scales.read_f32(bytes, values).expect("a float type");
        match values.iter().position(|v| !v.is_finite()) {
            None => Ok(()),
            Some(at) => Err(at / self.groups()),
        }
    }
}

/// Rounds to f32, f16 or bf16, little-endian.
pub(super) fn write_f32(dtype: DType, values: &[f32], bytes: &mut [u8]) {
    match dtype {
        DType::F16 => kernels::f32_to_f16_bytes(values, bytes),
        DType::BF16 => kernels::f32_to_bf16_bytes(values, bytes),
        _ => {
            let words = bytes.as_chunks_mut::<4>().0;
            words.iter_mut().zip(values).for_each(|(word, v)| *word = v.to_le_bytes());
        }
    }
}

/// The least and the greatest of finite values. Groups are shorter than what the kernel of that name is made for.
fn range(x: &[f32]) -> (f32, f32) {
    const LANES: usize = 8;
    let less = |a: f32, b: f32| if a < b { a } else { b };
    let more = |a: f32, b: f32| if a > b { a } else { b };
    let (mut low, mut high) = ([f32::INFINITY; LANES], [f32::NEG_INFINITY; LANES]);
    let (blocks, rest) = x.as_chunks::<LANES>();
    for block in blocks {
        for i in 0..LANES {
            low[i] = less(block[i], low[i]);
            high[i] = more(block[i], high[i]);
        }
    }
    let low = rest.iter().chain(&low).fold(f32::INFINITY, |a, b| less(*b, a));
    let high = rest.iter().chain(&high).fold(f32::NEG_INFINITY, |a, b| more(*b, a));
    (low, high)
}
