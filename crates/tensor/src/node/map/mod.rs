//! Linear maps on one side of a node: scales, permutations, rotations, and those of a user's crate.

mod composed;
mod hadamard;
mod index;
mod rotation;
mod scale;

use std::any::Any;
use std::fmt::Debug;
use std::ops::Range;

use ndarray::parallel::prelude::*;
use ndarray::{Array2, ArrayView2, ArrayViewMut2, Axis, s};

pub use composed::Composed;
pub use hadamard::Hadamard;
pub use index::Index;
pub use rotation::Rotation;
pub use scale::Scale;

use super::{Json, Mask, Scratch};
use crate::error::{Error, Result};
use crate::linalg::Par;
use crate::storage::PartSink;

/// Side of the matrix a map acts on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// Columns: W = A T.
    In,
    /// Rows: W = Tᵀ A.
    Out,
}

/// A linear map T `[inner, outer]` on one side of a node A: W = A T (inputs) or W = Tᵀ A (outputs). A row vector v of the
/// inner space becomes v T of the outer.
///
/// A kind of map is a file like those of this module; its reader stands in a [`super::Registry`] under the name that
/// [`Map::describe`] gives as `"kind"` ([`super::Registry::add_map`]). [`super::Transformed`] puts one around a node;
/// [`crate::carry`] takes a group of matrices through one and back.
///
/// ```
/// use std::sync::Arc;
/// use tensorpress_tensor::linalg::Par;
/// use tensorpress_tensor::node::{Dense, Index, Map, Side, Transformed, decode};
/// use tensorpress_tensor::{DType, Node, ndarray::array};
///
/// let (swap, weight): (Arc<dyn Map>, _) = (Arc::new(Index::new(vec![1, 0], 2)?), array![[1.0, 2.0]]);
/// let inner = swap.weights(weight.view(), Side::In, Par::Seq);
/// assert_eq!(inner, array![[2.0, 1.0]]);
/// let node = Transformed::new(Side::In, swap, Dense::from_f32(inner.view(), DType::F32)?.boxed())?;
/// assert_eq!(decode(&node)?, weight);
/// # Ok::<(), tensorpress_tensor::Error>(())
/// ```
pub trait Map: Any + Debug + Send + Sync {
    /// Channels of the inner node.
    fn inner(&self) -> usize;

    /// Channels seen from outside.
    fn outer(&self) -> usize;

    /// Rows of `inner` `[n, inner]` times T, into `outer` `[n, outer]`.
    ///
    /// # Panics
    /// If a shape does not fit.
    fn apply(&self, inner: ArrayView2<'_, f32>, outer: ArrayViewMut2<'_, f32>);

    /// The inner channels that outer channels are made of: those of their bands, or all.
    fn reach(&self, outer: Range<usize>) -> Range<usize> {
        match self.band() {
            0 => 0..self.inner(),
            band => outer.start / band * band..outer.end.next_multiple_of(band).min(self.inner()),
        }
    }

    /// Outer channels `outer` alone of what [`Map::apply`] gives, into `part` `[n, outer.len()]`, from the inner channels in
    /// their [`Map::reach`].
    ///
    /// # Panics
    /// If a shape does not fit.
    fn apply_part(
        &self,
        inner: ArrayView2<'_, f32>,
        outer: Range<usize>,
        mut part: ArrayViewMut2<'_, f32>,
        scratch: &mut Scratch,
    ) {
        if outer == (0..self.outer()) {
            return self.apply(inner, part);
        }
        let (reach, n) = (self.reach(outer.clone()), inner.nrows());
        scratch.with_matrix((n, self.inner()), |mut before, scratch| {
            before.fill(0.0);
            before.slice_mut(s![.., reach]).assign(&inner);
            scratch.with_matrix((n, self.outer()), |mut whole, _| {
                self.apply(before.view(), whole.view_mut());
                part.assign(&whole.slice(s![.., outer]));
            });
        });
    }

    /// Rows of `outer` `[n, outer]` times Tᵀ, into `inner` `[n, inner]`: what becomes of inputs, X Tᵀ.
    ///
    /// # Panics
    /// If a shape does not fit.
    fn apply_transposed(&self, outer: ArrayView2<'_, f32>, inner: ArrayViewMut2<'_, f32>);

    /// Rows of `outer` `[n, outer]` times T⁻¹, into `inner` `[n, inner]`: what becomes of weights, A = W T⁻¹. Where T
    /// reaches some outer channels only, the others are dropped.
    ///
    /// # Panics
    /// If a shape does not fit.
    fn invert(&self, outer: ArrayView2<'_, f32>, inner: ArrayViewMut2<'_, f32>);

    /// How it acts on single channels: what statistics, masks and second derivatives go by.
    fn channels(&self) -> Channels<'_>;

    /// T Tᵀ = I: lengths and angles stay.
    fn is_orthogonal(&self) -> bool {
        false
    }

    /// Rows `rows` of Tᵀ A into `out` `[rows.len(), columns]`, where `decode` gives rows of A. Any partition of the rows must
    /// give the same bits. [`by_bands`] is how to do it where outer channels depend on inner ones of a band.
    ///
    /// # Errors
    /// Those of `decode`.
    fn decode_out(
        &self,
        rows: Range<usize>,
        out: ArrayViewMut2<'_, f32>,
        scratch: &mut Scratch,
        decode: &mut DecodeRows<'_>,
    ) -> Result<()> {
        decode_whole(self, rows, out, scratch, decode)
    }

    /// How many consecutive channels depend on one another alone, beginning with the first: then [`super::Transformed`] calls
    /// [`Map::decode_out`] for strips of some columns of such a band, which the caches hold. 0 to be asked for whole rows.
    fn band(&self) -> usize {
        0
    }

    /// Its kind under `"kind"`, and parameters: enough to read the parts back.
    fn describe(&self) -> Json;

    /// Hands its parts to `sink`, named `prefix` + part: `transform`, or beginning with that.
    ///
    /// # Errors
    /// Those of the sink.
    fn parts(&self, prefix: &str, sink: &mut dyn PartSink) -> Result<()>;
}

/// Fills band number `n`.
type MakeBand<'a> = dyn FnMut(usize, &mut [f32], &mut Scratch) -> Result<()> + 'a;

/// Decodes rows of the inner node.
pub type DecodeRows<'a> =
    dyn FnMut(Range<usize>, ArrayViewMut2<'_, f32>, &mut Scratch) -> Result<()> + 'a;

/// How a map acts on channels.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Channels<'a> {
    /// Each on its own: inner input = outer input / divisor, one a channel.
    Scaled(&'a [f32]),
    /// Inner channel j is outer channel `index[j]`.
    Moved(&'a [u32]),
    /// Each inner channel is made of several outer ones.
    Mixed,
}

impl dyn Map + '_ {
    /// The support of A where that of W is `mask`.
    ///
    /// # Errors
    /// `Unsupported` if the map mixes channels.
    pub fn mask(&self, mask: &Mask, side: Side) -> Result<Mask> {
        match self.channels() {
            Channels::Scaled(_) => Ok(mask.clone()),
            Channels::Moved(index) => {
                let [rows, cols] = mask.shape();
                let at = |i: usize| index[i] as usize;
                let keep = match side {
                    Side::In => {
                        Array2::from_shape_fn((rows, index.len()), |(r, c)| mask.keeps(r, at(c)))
                    }
                    Side::Out => {
                        Array2::from_shape_fn((index.len(), cols), |(r, c)| mask.keeps(at(r), c))
                    }
                };
                Ok(Mask::from_bools(keep.view()))
            }
            Channels::Mixed => {
                Err(Error::unsupported("a mask over a rotated node: mask what is inside"))
            }
        }
    }

    /// A with W = A T (inputs) or W = Tᵀ A (outputs), for a map that reaches all outer channels.
    #[must_use]
    pub fn weights(&self, weight: ArrayView2<'_, f32>, side: Side, par: Par) -> Array2<f32> {
        on_side(weight, side, self.inner(), par, |outer, inner| self.invert(outer, inner))
    }

    /// Inputs as A meets them: X Tᵀ, where each row is a token. A scale divides by the divisors it was made of, so that it
    /// is the same to the last bit whether it is stored or folded into what stands before.
    #[must_use]
    pub fn inputs(&self, x: ArrayView2<'_, f32>, par: Par) -> Array2<f32> {
        if let Channels::Scaled(divisors) = self.channels() {
            return &x / &ndarray::ArrayView1::from(divisors);
        }
        on_side(x, Side::In, self.inner(), par, |outer, inner| self.apply_transposed(outer, inner))
    }
}

/// What `f` makes of the rows of a matrix (`Side::In`) or of its columns: each has `channels` values then. The bytes do not
/// depend on `par`.
pub fn on_side(
    matrix: ArrayView2<'_, f32>,
    side: Side,
    channels: usize,
    par: Par,
    f: impl Fn(ArrayView2<'_, f32>, ArrayViewMut2<'_, f32>) + Sync,
) -> Array2<f32> {
    if side == Side::Out {
        let columns = matrix.t().as_standard_layout().into_owned();
        let mapped = on_side(columns.view(), Side::In, channels, par, f);
        return mapped.t().as_standard_layout().into_owned();
    }
    let mut mapped = Array2::zeros((matrix.nrows(), channels));
    let threads = par.threads();
    if threads == 1 || matrix.is_empty() || channels == 0 {
        f(matrix, mapped.view_mut());
        return mapped;
    }
    let rows = matrix.nrows().div_ceil(threads);
    let pieces = mapped.axis_chunks_iter_mut(Axis(0), rows).into_par_iter();
    pieces.zip(matrix.axis_chunks_iter(Axis(0), rows)).for_each(|(to, from)| f(from, to));
    mapped
}

/// Tᵀ A by decoding all of A, transposing it and transforming its columns: for maps without structure.
fn decode_whole<M: Map + ?Sized>(
    map: &M,
    rows: Range<usize>,
    mut out: ArrayViewMut2<'_, f32>,
    scratch: &mut Scratch,
    decode: &mut DecodeRows<'_>,
) -> Result<()> {
    let (inner, cols) = (map.inner(), out.ncols());
    let all = scratch.with_matrix((inner, cols), |mut a, scratch| {
        decode(0..inner, a.view_mut(), scratch)?;
        Ok(on_side(a.view(), Side::Out, map.outer(), Par::Seq, |x, y| map.apply(x, y)))
    })?;
    out.assign(&all.slice(ndarray::s![rows, ..]));
    Ok(())
}

/// Tᵀ A where the outer channels of each `band` depend on the inner channels of the same band alone: `transform(first,
/// rows)` turns the decoded rows of the band that begins with row `first` into rows of the result, in their place, row-major
/// and without gaps. Each band that `rows` touches is decoded once.
///
/// # Errors
/// Those of `decode` and `transform`.
pub fn by_bands(
    band: usize,
    rows: Range<usize>,
    mut out: ArrayViewMut2<'_, f32>,
    scratch: &mut Scratch,
    make: &mut MakeBand<'_>,
) -> Result<()> {
    let cols = out.ncols();
    let mut at = rows.start;
    while at < rows.end {
        let first = at / band * band;
        let until = rows.end.min(first + band);
        let mut here = out.slice_mut(ndarray::s![at - rows.start..until - rows.start, ..]);
        match here.as_slice_mut().filter(|_| until - at == band) {
            Some(values) => make(first, values, scratch)?,
            None => {
                let mut values = scratch.take(band * cols);
                let made = make(first, &mut values, scratch);
                let from = &values[(at - first) * cols..(until - first) * cols];
                here.assign(&ArrayView2::from_shape((until - at, cols), from).expect("whole rows"));
                scratch.put(values);
                made?;
            }
        }
        at = until;
    }
    Ok(())
}

/// Row for row over contiguous copies: `f` works in place on one row.
fn in_place(
    from: ArrayView2<'_, f32>,
    mut to: ArrayViewMut2<'_, f32>,
    mut f: impl FnMut(&mut [f32]),
) {
    to.assign(&from);
    for mut row in to.rows_mut() {
        match row.as_slice_mut() {
            Some(values) => f(values),
            None => {
                let mut values = row.to_vec();
                f(&mut values);
                row.iter_mut().zip(values).for_each(|(to, v)| *to = v);
            }
        }
    }
}

/// Negates the values whose bit is set; none if there are no bits.
fn flip(values: &mut [f32], signs: &[u8]) {
    if signs.is_empty() {
        return;
    }
    for (i, v) in values.iter_mut().enumerate() {
        if is_negative(signs, i) {
            *v = -*v;
        }
    }
}

fn is_negative(signs: &[u8], at: usize) -> bool {
    signs.get(at / 8).is_some_and(|byte| byte >> (at % 8) & 1 == 1)
}

fn check_shapes(map: &(impl Map + ?Sized), inner: (usize, usize), outer: (usize, usize)) {
    assert_eq!(inner, (outer.0, map.inner()), "inner shape");
    assert_eq!(outer, (inner.0, map.outer()), "outer shape");
}

/// Checks the length of a part of a map read back.
fn check_entries(len: usize, channels: usize, name: &str) -> Result<()> {
    if len == channels {
        return Ok(());
    }
    Err(Error::corruption(format!("{len} entries for {channels} channels")).in_tensor(name))
}
