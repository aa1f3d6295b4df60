//! Activations as integers, in units of 256.
//!
//! Each 32 of them share a scale, as in [`panels`](crate::panels). AVX-512 multiplies bytes, so they are cut into planes
//! there; the other sets multiply 16-bit words. The sums of the integers, by 16 and times the scale, are what minima and
//! offsets of codes are multiplied with.

use super::{GROUP, GROUPS, UNIT};
use crate::Isa;
use crate::panels::{Activations, Grid, round_body};
use crate::simd::{Simd, stamp};

/// Activations that share a scale.
const SHARED: usize = 32;

/// What there is to know of the groups of a unit of activations.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(super) struct Grids {
    pub(super) scales: [f32; GROUPS],
    /// The scale times the sum of the integers.
    pub(super) sums: [f32; GROUPS],
    /// The sums of two groups each.
    pub(super) pairs: [f32; GROUPS / 2],
}

/// A unit of activations, its integers being `L`.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub(super) struct Inputs<L> {
    pub(super) levels: L,
    pub(super) grids: Grids,
}

/// 16-bit integers.
pub(super) type Words = Inputs<[i16; UNIT]>;
/// Integers in `P` planes of bytes, the high one first.
pub(super) type Planes<const P: usize> = Inputs<[[i8; UNIT]; P]>;

/// Activations of some tokens, prepared for products with [`BlockRows`](super::BlockRows) of one input size.
///
/// A group of 32 with a NaN or an infinity makes every product of its token NaN.
#[derive(Clone, Debug)]
pub struct BlockActivations {
    isa: Isa,
    tokens: usize,
    cols: usize,
    activations: Activations,
    /// `[tokens, units]`, in one of the three.
    pub(super) words: Vec<Words>,
    pub(super) one_plane: Vec<Planes<1>>,
    pub(super) two_planes: Vec<Planes<2>>,
}

impl Default for BlockActivations {
    fn default() -> Self {
        Self {
            isa: Isa::detect(),
            tokens: 0,
            cols: 0,
            activations: Activations::default(),
            words: Vec::new(),
            one_plane: Vec::new(),
            two_planes: Vec::new(),
        }
    }
}

impl BlockActivations {
    /// Prepares `x [tokens, cols]`.
    ///
    /// # Panics
    ///
    /// If `x` does not have `tokens * cols` entries.
    pub fn new(x: &[f32], tokens: usize, cols: usize, activations: Activations) -> Self {
        let mut input = Self::default();
        input.prepare_on(Isa::detect(), x, tokens, cols, activations);
        input
    }

    /// Prepares other activations in the memory of these, as [`BlockActivations::new`] does, for products on a chosen
    /// instruction set; for the portable code where this CPU lacks it.
    ///
    /// # Panics
    ///
    /// As [`BlockActivations::new`].
    pub fn prepare_on(
        &mut self,
        isa: Isa,
        x: &[f32],
        tokens: usize,
        cols: usize,
        activations: Activations,
    ) {
        assert_eq!(Some(x.len()), tokens.checked_mul(cols), "blocks: x is not [tokens, cols]");
        self.isa = isa.or_generic();
        (self.tokens, self.cols, self.activations) = (tokens, cols, activations);
        self.words.clear();
        self.one_plane.clear();
        self.two_planes.clear();
        if cols == 0 {
            return;
        }
        let planes = activations.planes();
        let mut levels = Levels { words: [0; UNIT], planes: [[0; UNIT]; 2] };
        for x in x.chunks(cols).flat_map(|x| x.chunks(UNIT)) {
            let grids = round_on(self.isa, x, planes, &mut levels);
            let [high, low] = levels.planes;
            match (self.isa, planes) {
                (Isa::Avx512, 1) => self.one_plane.push(Inputs { levels: [low], grids }),
                (Isa::Avx512, _) => self.two_planes.push(Inputs { levels: [high, low], grids }),
                _ => self.words.push(Inputs { levels: levels.words, grids }),
            }
        }
    }

    /// How finely they are rounded.
    pub fn activations(&self) -> Activations {
        self.activations
    }

    /// Input size.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// How many tokens.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    pub(super) fn isa(&self) -> Isa {
        self.isa
    }
}

/// The integers of a unit, in the form that an instruction set takes: words, or the two planes, of which the low one is
/// all where there is one.
struct Levels {
    words: [i16; UNIT],
    planes: [[i8; UNIT]; 2],
}

stamp! {
    /// Rounds up to a unit to integers of `planes` bytes.
    fn round_on(x: &[f32], planes: usize, to: &mut Levels) -> Grids = round
}

#[inline(always)]
fn round<S: Simd>(s: S, x: &[f32], planes: usize, to: &mut Levels) -> Grids {
    let mut levels = [0; UNIT];
    let mut grids = Grids { scales: [0.0; GROUPS], sums: [0.0; GROUPS], pairs: [0.0; GROUPS / 2] };
    for (i, x) in x.chunks(SHARED).enumerate() {
        let levels = &mut levels[i * SHARED..(i + 1) * SHARED];
        let Grid { scale, sum } = round_body(s, x, planes, levels);
        grids.pairs[i] = scale * sum;
        for (j, levels) in levels.chunks_exact(GROUP).enumerate() {
            let group = i * (SHARED / GROUP) + j;
            let sum: i32 = levels.iter().sum();
            grids.scales[group] = scale;
            grids.sums[group] = scale * sum as f32;
        }
    }
    if S::ISA == Isa::Avx512 {
        let [high, low] = &mut to.planes;
        for ((high, low), level) in high.iter_mut().zip(low).zip(&levels) {
            *high = ((level + 128) >> 8) as i8;
            *low = *level as i8;
        }
    } else {
        for (word, level) in to.words.iter_mut().zip(&levels) {
            *word = *level as i16;
        }
    }
    grids
}
