//! Activations as integers.
//!
//! Each group of each token gets a scale of its own, so an outlier costs accuracy only in its
//! group. An activation becomes `scale * (256 * high + low)` with two signed bytes, or
//! `scale * high` with one. The product with the codes is then exact in integers; the zero points
//! enter through the sum of the rounded activations, so that they cancel exactly too.

use std::ops::Range;

use super::pack::BLOCK;
use crate::Isa;
use crate::simd::{Simd, stamp};
use crate::stats::{abs_max_body, has_non_finite_body};
use crate::work::together;

/// How finely activations are rounded for a product with panels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Activations {
    /// 16 bits: an error of about 2e-5 of the product, well under 1e-4.
    #[default]
    Int16,
    /// 8 bits: an error of about 5e-3 of the product; faster where memory is not the limit.
    Int8,
}

impl Activations {
    pub(crate) fn planes(self) -> usize {
        match self {
            Activations::Int16 => 2,
            Activations::Int8 => 1,
        }
    }
}

/// In which form panels take activations.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct InputForm {
    /// Inputs that share a scale.
    pub(super) group: usize,
    /// Inputs of a row that lie side by side in a step: 4 or 16.
    pub(super) step: usize,
}

impl Default for InputForm {
    /// That of a grid in groups of 32.
    fn default() -> Self {
        Self { group: BLOCK, step: 4 }
    }
}

/// Activations of some tokens, prepared for products with panels ([`AffinePanels`](super::AffinePanels),
/// [`LevelPanels`](super::LevelPanels)) of one input size and form.
///
/// A group with a NaN or an infinity makes every product of its token NaN.
#[derive(Clone, Debug, Default)]
pub struct PanelInput {
    tokens: usize,
    cols: usize,
    form: InputForm,
    planes: usize,
    /// For each tile of tokens, for each step of 4 or 16 inputs, for each token of the tile, for each
    /// plane: as many bytes.
    words: Vec<[i8; 4]>,
    /// `[tokens, groups]`: the scale, and the sum of the integers.
    grids: Vec<Grid>,
    /// The integers of one token, while they are made.
    levels: Vec<i32>,
}

/// What a product needs to know of one group of one token.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Grid {
    pub(crate) scale: f32,
    pub(crate) sum: f32,
}

impl PanelInput {
    /// Prepares `x [tokens, cols]` for matrices of this form (as
    /// [`AffinePanels::input_form`](super::AffinePanels::input_form) tells it).
    ///
    /// # Panics
    ///
    /// If `x` does not have `tokens * cols` entries.
    pub fn new(
        x: &[f32],
        tokens: usize,
        cols: usize,
        form: InputForm,
        activations: Activations,
    ) -> Self {
        let mut input = Self::default();
        input.prepare_on(Isa::detect(), x, tokens, cols, form, activations);
        input
    }

    /// Prepares other activations in the memory of these, as [`PanelInput::new`] does, on a chosen
    /// instruction set; the portable code where this CPU lacks it. Bit-identical on all.
    ///
    /// # Panics
    ///
    /// As [`PanelInput::new`].
    pub fn prepare_on(
        &mut self,
        isa: Isa,
        x: &[f32],
        tokens: usize,
        cols: usize,
        form: InputForm,
        activations: Activations,
    ) {
        assert_eq!(Some(x.len()), tokens.checked_mul(cols), "panel input: x is not [tokens, cols]");
        let (planes, padded) = (activations.planes(), cols.next_multiple_of(BLOCK));
        let steps = padded / 4;
        (self.tokens, self.cols, self.form, self.planes) = (tokens, cols, form, planes);
        // All of them are written below, padding included.
        self.words.resize(steps * tokens * planes, [0; 4]);
        self.grids.clear();
        if cols == 0 {
            return;
        }
        self.levels.clear();
        self.levels.resize(padded, 0);
        for (token, x) in x.chunks(cols).enumerate() {
            for (x, levels) in x.chunks(form.group).zip(self.levels.chunks_mut(form.group)) {
                self.grids.push(round_on(isa, x, planes, levels));
            }
            let tile = TokenTile::of(token, tokens);
            let words = &mut self.words[tile.first * planes * steps..];
            let unit = form.step / 4 * planes;
            let words = &mut words[(token - tile.first) * unit..];
            split_on(isa, &self.levels, form.step, planes, words, tile.tokens * unit);
        }
    }

    /// The form they are prepared in.
    pub fn form(&self) -> InputForm {
        self.form
    }

    pub(super) fn tokens(&self) -> usize {
        self.tokens
    }

    pub(super) fn cols(&self) -> usize {
        self.cols
    }

    pub(super) fn planes(&self) -> usize {
        self.planes
    }

    /// The words of a tile of tokens, from the given input on.
    pub(super) fn words(&self, tile: &TokenTile, from: usize) -> &[[i8; 4]] {
        let steps = self.cols.next_multiple_of(BLOCK) / 4;
        let words = &self.words[tile.first * self.planes * steps..];
        &words[from / 4 * tile.tokens * self.planes..steps * tile.tokens * self.planes]
    }

    /// What there is to know of each group of a token.
    pub(super) fn grids(&self, token: usize) -> &[Grid] {
        let groups = self.cols.div_ceil(self.form.group);
        &self.grids[token * groups..(token + 1) * groups]
    }
}

/// Tokens that go through a panel together, up to four.
pub(super) struct TokenTile {
    pub(super) first: usize,
    pub(super) tokens: usize,
}

impl TokenTile {
    /// The tile that `token` of so many belongs to.
    pub(super) fn of(token: usize, tokens: usize) -> Self {
        // Tiles of four, but for the last 9 tokens at most.
        let mut first = (token.min(tokens.saturating_sub(9))) / 4 * 4;
        loop {
            let width = together(tokens - first);
            if token < first + width {
                return Self { first, tokens: width };
            }
            first += width;
        }
    }

    /// The tiles of some of so many tokens, in order; they begin and end with tiles.
    pub(super) fn within(range: Range<usize>, tokens: usize) -> impl Iterator<Item = Self> {
        let mut token = range.start;
        std::iter::from_fn(move || {
            let tile = (token < range.end).then(|| Self::of(token, tokens))?;
            token += tile.tokens;
            Some(tile)
        })
    }
}

stamp! {
    /// Rounds one group to integers of `planes` bytes.
    fn round_on(x: &[f32], planes: usize, levels: &mut [i32]) -> Grid = round_body
}

#[inline(always)]
pub(crate) fn round_body<S: Simd>(s: S, x: &[f32], planes: usize, levels: &mut [i32]) -> Grid {
    levels.fill(0);
    // The high byte is at most 127 when the low one is -128 to 127.
    let most = if planes == 2 { 127.0 * 256.0 } else { 127.0 };
    if has_non_finite_body(s, x) {
        return Grid { scale: f32::NAN, sum: 0.0 };
    }
    let scale = abs_max_body(s, x) / most;
    let inverse = 1.0 / scale;
    if !inverse.is_finite() {
        // All zero, or so small that the product is below the smallest normal number.
        return Grid { scale: 0.0, sum: 0.0 };
    }
    for (level, x) in levels.iter_mut().zip(x) {
        // Adding this leaves the integer, rounded, in the low bits; a cast would not become vector
        // code.
        const ALIGN: f32 = 12_582_912.0;
        *level = (x * inverse + ALIGN).to_bits().wrapping_sub(ALIGN.to_bits()) as i32;
    }
    // At most 65 536 levels below 2^15: their sum fits.
    let sum = levels.iter().fold(0, |sum: i32, level| sum.wrapping_add(*level));
    Grid { scale, sum: sum as f32 }
}

stamp! {
    /// Cuts integers into planes of bytes, the high one first; the words of one step lie `stride` after those of the one
    /// before.
    fn split_on(
        levels: &[i32], step: usize, planes: usize, words: &mut [[i8; 4]], stride: usize,
    ) = split_body
}

#[inline(always)]
fn split_body<S: Simd>(
    _: S,
    levels: &[i32],
    step: usize,
    planes: usize,
    words: &mut [[i8; 4]],
    stride: usize,
) {
    match step {
        4 => split::<1>(levels, planes, words, stride),
        _ => split::<4>(levels, planes, words, stride),
    }
}

/// Of steps of `U` words.
#[inline(always)]
fn split<const U: usize>(levels: &[i32], planes: usize, words: &mut [[i8; 4]], stride: usize) {
    let steps = levels.as_chunks::<4>().0.as_chunks::<U>().0;
    for (words, levels) in words.chunks_mut(stride).zip(steps) {
        if planes == 1 {
            for (word, levels) in words[..U].iter_mut().zip(levels) {
                *word = levels.map(|level| level as i8);
            }
            continue;
        }
        let (high, low) = words[..2 * U].split_at_mut(U);
        for ((high, low), levels) in high.iter_mut().zip(low).zip(levels) {
            *high = levels.map(|level| ((level + 128) >> 8) as i8);
            *low = levels.map(|level| level as i8);
        }
    }
}
