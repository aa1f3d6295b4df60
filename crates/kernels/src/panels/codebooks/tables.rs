//! What a token makes of the entries of codebooks, as integers of 16 bits.

use std::ops::Range;

use super::pack::{BLOCK, Shape};
use crate::Isa;
use crate::simd::wide::{LANES, Line, Wide};
use crate::simd::{dispatch, stamp};
use crate::work::Work;

/// What the integer of 0 is: none is negative.
pub(super) const ZERO: u32 = 32_768;

/// The products of some tokens with all entries, a table for each code of a row in some blocks.
///
/// A table is two planes, high bytes before low ones, where they are looked up in registers (AVX-512), and integers of 16 bits
/// elsewhere: in as many lines.
#[derive(Debug, Default)]
pub(crate) struct Tables {
    pub(super) tokens: usize,
    /// `[tokens, codes, table]`
    pub(super) lines: Vec<Line>,
    /// `[tokens, blocks]`
    pub(super) scales: Vec<f32>,
}

impl Tables {
    /// Makes those of some blocks for `x [tokens, cols]`, blocks being shared among threads.
    pub(super) fn prepare(
        &mut self,
        shape: &Shape,
        books: &[Line],
        x: &[f32],
        blocks: Range<usize>,
        work: &mut Work,
    ) {
        let (isa, width) = (work.isa(), shape.table_lines());
        let codes = shape.codes().min(blocks.end * BLOCK) - blocks.start * BLOCK;
        self.tokens = x.len() / shape.cols;
        self.lines.resize(self.tokens * codes * width, Line::ZERO);
        self.scales.resize(self.tokens * blocks.len(), 0.0);
        let scales = self.scales.chunks_mut(blocks.len());
        let tokens = self.lines.chunks_mut(codes * width).zip(scales);
        for (x, (tables, scales)) in x.chunks(shape.cols).zip(tokens) {
            let here = tables.chunks_mut(BLOCK * width).zip(scales).enumerate();
            work.for_each(here, |places, (i, (tables, scale))| {
                let products = aligned(&mut places.floats, tables.len() * 32);
                let first = (blocks.start + i) * BLOCK;
                let most = products_on(isa, shape, books, x, first, products);
                let (step, inverse) = steps(most);
                *scale = step;
                dispatch! { isa;
                    avx512 => super::avx512::round(products, inverse, shape.entries / 64, tables);
                    _ => round(products, inverse, tables)
                }
            });
        }
    }
}

/// So many values that begin at a cache line: vectors read from it never straddle two.
fn aligned(buffer: &mut Vec<f32>, len: usize) -> &mut [f32] {
    buffer.resize(len + LANES - 1, 0.0);
    let skip = buffer.as_ptr().align_offset(size_of::<Line>()).min(LANES - 1);
    &mut buffer[skip..skip + len]
}

/// What an integer stands for, and the inverse of it, where the largest product is `most`.
fn steps(most: f32) -> (f32, f32) {
    let step = most / 32_767.0;
    match 1.0 / step {
        // All zero, or so small that the inverse is not there.
        inverse if inverse.is_infinite() => (0.0, 0.0),
        inverse if most.is_finite() => (step, inverse),
        _ => (f32::NAN, 0.0),
    }
}

stamp! {
    /// The products of a token with all entries, for the codes from `first` on: `to [codes, entries]`. Gives the largest; one
    /// that is not finite counts as larger than all that are.
    fn products_on(shape: &Shape, books: &[Line], x: &[f32], first: usize, to: &mut [f32]) -> f32 = products
}

#[inline(always)]
fn products<S: Wide>(
    s: S,
    shape: &Shape,
    books: &[Line],
    x: &[f32],
    first: usize,
    to: &mut [f32],
) -> f32 {
    for (i, to) in to.chunks_exact_mut(shape.entries).enumerate() {
        let (g, book) = ((first + i) / shape.books, (first + i) % shape.books);
        let x = &x[g * shape.size..((g + 1) * shape.size).min(shape.cols)];
        let book = &books[book * shape.book()..][..x.len() * shape.entries / LANES];
        // As many sums side by side as hide the latency of an addition, if the registers hold them.
        if const { matches!(S::ISA, Isa::Avx512) } {
            multiply::<S, 8>(s, x, book, to);
        } else {
            multiply::<S, 4>(s, x, book, to);
        }
    }
    let most = to.iter().fold(0, |most, product| most.max(product.to_bits() & 0x7FFF_FFFF));
    f32::from_bits(most)
}

/// The products of `x` with all entries, each rounded and summed in order: the same bits on every set. `W` vectors at once.
#[inline(always)]
fn multiply<S: Wide, const W: usize>(s: S, x: &[f32], book: &[Line], to: &mut [f32]) {
    let to = to.as_chunks_mut::<LANES>().0;
    let stride = to.len();
    for (c, to) in to.chunks_exact_mut(W).enumerate() {
        let mut sums = [s.splat(0.0); W];
        for (x, entries) in x.iter().zip(book.chunks_exact(stride)) {
            let (x, entries) = (s.splat(*x), &entries[W * c..W * (c + 1)]);
            for i in 0..W {
                sums[i] = s.add(sums[i], s.mul(x, s.line_floats(&entries[i])));
            }
        }
        for i in 0..W {
            s.store(&mut to[i], sums[i]);
        }
    }
}

/// Adding this leaves the integer, rounded, in the low bits; a cast would not become vector code.
pub(super) const ALIGN: f32 = 12_582_912.0;

/// Rounds products to integers about [`ZERO`]. Those that are not finite, with an inverse of 0, become anything.
fn round(products: &[f32], inverse: f32, tables: &mut [Line]) {
    for (line, products) in tables.iter_mut().zip(products.as_chunks::<32>().0) {
        for (to, product) in line.0.as_chunks_mut().0.iter_mut().zip(products) {
            let bits = (product * inverse + ALIGN).to_bits();
            let word = bits.wrapping_sub(ALIGN.to_bits()).wrapping_add(ZERO) as u16;
            *to = word.to_le_bytes();
        }
    }
}
