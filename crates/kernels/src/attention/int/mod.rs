//! Panels of integer codes.
//!
//! *Keys*: 16 tokens a panel, one a lane; a line holds `32 / bits` channels, four to a field of `bits` bits of each
//! lane's bytes. *Values*: 16 channels a panel, one a lane; a line holds `32 / bits` tokens in the same way. The float
//! side of a product, with the scale of its group folded in, becomes two planes of int8 (16 bits), so that
//! products are exact to 2e-5 of the largest term.

mod keys;
mod values;

use crate::FloatType;

use super::{LANES, Line, Wide};
use crate::simd::wide::LEVELS;

pub use keys::{by_channel_dots, by_token_dots};
pub use values::by_token_mix;

/// Most channels of a head, and most tokens of a page.
pub const MAX_DIM: usize = 1024;

/// Codes of one page, and the scales and minima of their groups as little-endian floats.
#[derive(Debug, Clone, Copy)]
pub struct Page<'a> {
    /// Bits of a code: 2, 4 or 8.
    pub bits: u32,
    /// Channels.
    pub dim: usize,
    /// The codes.
    pub lines: &'a [Line],
    /// Type of scales and minima.
    pub dtype: FloatType,
    /// Tokens (by channel) or channels (by token) that share a scale.
    pub group: usize,
    /// Scales of the groups.
    pub scales: &'a [u8],
    /// Minima of the groups.
    pub mins: &'a [u8],
}

/// Buffers of one caller, used for page after page: floats as `step * (256 * high + low)`.
#[derive(Debug, Default)]
pub struct Work {
    x: Vec<f32>,
    high: Vec<i8>,
    low: Vec<i8>,
    /// What the minima of each group add.
    offsets: Vec<f32>,
    step: f32,
}

impl Work {
    /// Makes room for `n` floats (a multiple of 16) and `groups` offsets.
    #[inline(always)]
    fn room(&mut self, n: usize, groups: usize) {
        self.x.resize(n, 0.0);
        self.high.resize(n, 0);
        self.low.resize(n, 0);
        self.offsets.resize(groups.next_multiple_of(FOUR), 0.0);
    }

    /// Makes planes of the floats, none of which is larger than a lane of `largest`.
    #[inline(always)]
    fn split<L: Wide>(&mut self, l: L, largest: L::F) {
        self.step = l.largest(largest) / LEVELS;
        let factor = l.splat(if self.step > 0.0 { 1.0 / self.step } else { 0.0 });
        let high = self.high.as_chunks_mut::<LANES>().0;
        let low = self.low.as_chunks_mut::<LANES>().0;
        for ((x, high), low) in self.x.as_chunks::<LANES>().0.iter().zip(high).zip(low) {
            l.planes(l.mul(l.load(x), factor), high, low);
        }
    }

    /// Fours of both planes from entry `first` on.
    #[inline(always)]
    fn fours(&self, first: usize) -> (&[[i8; 4]], &[[i8; 4]]) {
        (self.high[first..].as_chunks().0, self.low[first..].as_chunks().0)
    }

    /// What the two integer sums stand for.
    #[inline(always)]
    fn value<L: Wide>(&self, l: L, high: L::I, low: L::I) -> L::F {
        let sum = l.mul_add(l.to_floats(high), l.splat(256.0), l.to_floats(low));
        l.mul(sum, l.splat(self.step))
    }
}

/// Sums that are added across lanes together.
const FOUR: usize = 4;

/// Makes a kernel over one page, `next` being the page that will be read after it, from a function that is generic over
/// instruction set, float type of the grids and bits of a code.
macro_rules! page_kernel {
    ($(#[$doc:meta])* fn $name:ident($given:ident) = $generic:ident, $body:ident) => {
        super::super::stamp! {
            $(#[$doc])*
            pub fn $name(
                page: Page<'_>, next: Page<'_>, $given: &[f32], out: &mut [f32], work: &mut Work,
            ) = $body
        }

        #[inline(always)]
        fn $body<L: Wide>(
            l: L,
            page: Page<'_>,
            next: Page<'_>,
            $given: &[f32],
            out: &mut [f32],
            work: &mut Work,
        ) {
            super::super::elem::with_elem!(page.dtype, E => match page.bits {
                2 => $generic::<L, E, 2>(l, page, next, $given, out, work),
                4 => $generic::<L, E, 4>(l, page, next, $given, out, work),
                _ => $generic::<L, E, 8>(l, page, next, $given, out, work),
            });
        }
    };
}
use page_kernel;

#[inline(always)]
fn mask(bits: usize) -> u8 {
    (255usize >> (8 - bits)) as u8
}

/// Adds the products of one line with fours of both planes.
#[inline(always)]
fn line_dot<L: Wide, const BITS: usize>(
    l: L,
    line: &Line,
    h: &[[i8; 4]],
    w: &[[i8; 4]],
    (high, low): (&mut L::I, &mut L::I),
) {
    let v = l.line(line);
    for i in 0..8 / BITS {
        let codes = l.bits(v, i * BITS, mask(BITS));
        *high = l.dot::<BITS>(*high, codes, h[i]);
        *low = l.dot::<BITS>(*low, codes, w[i]);
    }
}
