//! Panels of integer codes.
//!
//! *Keys*: 16 tokens a panel, one a lane; a line holds `32 / bits` channels, four to a field of `bits` bits of each
//! lane's bytes. *Values*: 16 channels a panel, one a lane; a line holds `32 / bits` tokens in the same way. The float
//! side of a product, with the scale of its group folded in, becomes two planes of int8 (16 bits), so that
//! products are exact to 2e-5 of the largest term.
//!
//! Up to four queries share what is read of a page and the codes taken out of it, and all queries of a call the scales.

mod fold;
mod keys;
mod values;

use crate::FloatType;

use super::{LANES, Line, Wide};

pub use fold::Work;
pub use keys::{by_channel_dots, by_token_dots};
pub use values::by_token_mix;

use fold::Planes;

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

/// Makes a kernel over one page and several queries, `next` being the page that will be read after it, from a function
/// that widens the grids and one that is generic over instruction set, bits of a code and queries at a time.
macro_rules! page_kernel {
    ($(#[$doc:meta])* fn $name:ident($given:ident) = $widen:ident, $generic:ident, $body:ident) => {
        super::super::stamp! {
            $(#[$doc])*
            pub fn $name(
                page: Page<'_>,
                next: Page<'_>,
                $given: &[f32],
                queries: usize,
                out: &mut [f32],
                work: &mut Work,
            ) = $body
        }

        #[inline(always)]
        fn $body<L: Wide>(
            l: L,
            page: Page<'_>,
            next: Page<'_>,
            $given: &[f32],
            queries: usize,
            out: &mut [f32],
            work: &mut Work,
        ) {
            let (each, wide) = ($given.len() / queries, out.len() / queries);
            super::super::elem::with_elem!(page.dtype, E => work.$widen::<L, E>(l, page, each, wide));
            match page.bits {
                2 => $generic::<L, 2>(l, page, next, $given, queries, out, work),
                4 => $generic::<L, 4>(l, page, next, $given, queries, out, work),
                _ => $generic::<L, 8>(l, page, next, $given, queries, out, work),
            }
        }
    };
}
use page_kernel;

/// Calls `$call` for blocks of `$Q` queries, of which `$at` is the first: as many at a time as their sums have registers.
macro_rules! each_block {
    ($L:ident, $queries:expr, $at:ident, $Q:ident => $call:expr) => {
        let mut $at = 0;
        while $at < $queries {
            let left = $queries - $at;
            if left >= 4 && matches!($L::ISA, $crate::Isa::Avx512) {
                const $Q: usize = 4;
                $call;
                $at += $Q;
            } else if left >= 2 {
                const $Q: usize = 2;
                $call;
                $at += $Q;
            } else {
                const $Q: usize = 1;
                $call;
                $at += $Q;
            }
        }
    };
}
use each_block;

/// Rows `at..at + Q` of a matrix.
#[inline(always)]
fn rows<const Q: usize>(matrix: &[f32], at: usize, width: usize) -> [&[f32]; Q] {
    std::array::from_fn(|q| &matrix[(at + q) * width..][..width])
}

#[inline(always)]
fn mask(bits: usize) -> u8 {
    (255usize >> (8 - bits)) as u8
}

/// Sums of the products of one panel's codes with both planes of `Q` queries, `S` of each: more than one where they would
/// wait for each other.
#[derive(Clone, Copy)]
struct Sums<L: Wide, const Q: usize, const S: usize> {
    high: [[L::I; S]; Q],
    low: [[L::I; S]; Q],
}

impl<L: Wide, const Q: usize, const S: usize> Sums<L, Q, S> {
    #[inline(always)]
    fn zero(l: L) -> Self {
        Self { high: [[l.zero(); S]; Q], low: [[l.zero(); S]; Q] }
    }

    /// Adds the products of one line with fours of the planes from four `at` of 16 on, a multiple of those in a line.
    #[inline(always)]
    fn add<const BITS: usize>(&mut self, l: L, line: &Line, planes: &[Planes; Q], at: usize) {
        let (fields, v) = (8 / BITS, l.line(line));
        let at = at % 16 / fields * fields;
        for f in 0..fields {
            let codes = l.bits(v, f * BITS, mask(BITS));
            for q in 0..Q {
                let (high, low) = planes[q].fours();
                self.high[q][f % S] = l.dot::<BITS>(self.high[q][f % S], codes, high[at + f]);
                self.low[q][f % S] = l.dot::<BITS>(self.low[q][f % S], codes, low[at + f]);
            }
        }
    }

    /// What the sums of query `q` stand for, in steps.
    #[inline(always)]
    fn value(&self, l: L, q: usize) -> L::F {
        let (mut high, mut low) = (self.high[q][0], self.low[q][0]);
        for s in 1..S {
            high = l.add_i(high, self.high[q][s]);
            low = l.add_i(low, self.low[q][s]);
        }
        l.mul_add(l.to_floats(high), l.splat(256.0), l.to_floats(low))
    }
}

/// [`Sums::add`] for the same lines of `P` panels that share planes: each four of a plane is read once for all of them.
#[inline(always)]
fn add<L: Wide, const BITS: usize, const Q: usize, const S: usize, const P: usize>(
    l: L,
    sums: &mut [Sums<L, Q, S>; P],
    lines: [&Line; P],
    planes: &[Planes; Q],
    at: usize,
) {
    let fields = 8 / BITS;
    let at = at % 16 / fields * fields;
    let mut v = [l.zero(); P];
    for p in 0..P {
        v[p] = l.line(lines[p]);
    }
    for f in 0..fields {
        let mut codes = v;
        for codes in &mut codes {
            *codes = l.bits(*codes, f * BITS, mask(BITS));
        }
        for q in 0..Q {
            let (high, low) = planes[q].fours();
            let (high, low) = (l.word(high[at + f]), l.word(low[at + f]));
            for p in 0..P {
                let Sums { high: h, low: w } = &mut sums[p];
                h[q][f % S] = l.dots::<BITS>(h[q][f % S], codes[p], high);
                w[q][f % S] = l.dots::<BITS>(w[q][f % S], codes[p], low);
            }
        }
    }
}
