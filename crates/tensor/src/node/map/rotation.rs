use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use ndarray::{Array2, ArrayView2, ArrayViewMut2, Axis};
use serde_json::json;

use super::{
    Channels, DecodeRows, Map, by_bands, check_entries, check_shapes, flip, in_place, is_negative,
};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::kernels;
use crate::linalg::{self, Par, SplitMix};
use crate::node::plane::part_name;
use crate::node::registry::{NodeReader, field};
use crate::node::{Json, Scratch};
use crate::source::Tensor;
use crate::storage::{Part, PartKind, PartSink};

/// One orthogonal matrix along the diagonal for each `block` of channels, then random signs: T = (I ⊗ H ⊗ Q) diag(signs). On
/// the way to the inner node signs come first, W diag(signs) (I ⊗ H ⊗ Q)ᵀ, so that no part of W is all in one channel, not even
/// what all of its channels have in common. (Files of before have them on the other side, where they change nothing of that,
/// and are read as they are.)
///
/// H is the Walsh-Hadamard matrix of a power of two and Q a small factor for what is left of the block, so that any number of
/// channels can be rotated. Q is a Hadamard matrix by Paley where the block divides by the order of one (576 = 16 x 36, 1536 =
/// 128 x 12, 11 x 2^8 = 64 x 44): all entries of T have one size then, and an outlier is spread evenly. Elsewhere (11008 = 256
/// x 43) Q is a random orthogonal matrix, and stored. All entries are orthonormal to the accuracy of f32.
#[derive(Debug, Clone, PartialEq)]
pub struct Rotation {
    size: usize,
    block: usize,
    factor: Factor,
    /// One bit a channel, set where the sign is -1. Least significant bit first.
    signs: Vec<u8>,
    /// The side that the signs are on: W's, or the inner node's as in files of before.
    signed: Signed,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Signed {
    Inner,
    Outer,
}

/// Q, and how it is written.
#[derive(Debug, Clone, PartialEq)]
enum Factor {
    /// 1 x 1.
    One,
    /// Paley's Hadamard matrix, of entries 1 and -1.
    Known(Array2<f32>),
    /// Stored as it is.
    Given(Array2<f32>),
}

/// Side of Q, at most.
const MOST: usize = 2048;
/// Rows of H that are made at a time, and the parts the last pass takes together.
const RADIX: usize = 8;

impl Rotation {
    /// Blocks of `block` channels of `size`; signs, and Q where no Hadamard matrix is known, are drawn by `seed`.
    ///
    /// # Errors
    /// `InvalidArgument` unless the block divides the size. `Unsupported` if what is left of the block beside a power of two
    /// is more than 2048.
    pub fn new(size: usize, block: usize, seed: u64) -> Result<Self> {
        check_block(size, block)?;
        let random = SplitMix::new(seed);
        let mut signs: Vec<u8> =
            (0..size.div_ceil(8)).map(|i| (random.at(i as u64) >> 56) as u8).collect();
        if let Some(last) = signs.last_mut().filter(|_| !size.is_multiple_of(8)) {
            *last &= (1 << (size % 8)) - 1;
        }
        let odd = block >> block.trailing_zeros();
        let orders = (0..=block.trailing_zeros()).map(|twos| odd << twos);
        let known = orders.take_while(|order| *order <= MOST).find_map(linalg::hadamard_matrix);
        let factor = match known {
            _ if odd == 1 => Factor::One,
            Some(matrix) => Factor::Known(matrix),
            None => Factor::Given(random_orthogonal(odd, seed)?),
        };
        Ok(Self { size, block, factor, signs, signed: Signed::Outer })
    }

    /// The largest block that [`Rotation::new`] takes for a number of channels: all of them, for all numbers that models
    /// have.
    #[must_use]
    pub fn largest_block(size: usize) -> usize {
        let odd = size.checked_shr(size.trailing_zeros()).unwrap_or(1);
        // The largest divisor of the odd part that is small enough.
        let fits = (1..=MOST.min(odd)).rev().find(|d| odd.is_multiple_of(*d)).unwrap_or(1);
        size / odd.max(1) * fits
    }

    /// Side of Q.
    fn order(&self) -> usize {
        self.factor.matrix().map_or(1, |q| q.nrows())
    }

    /// What all entries are multiplied by, so that they are orthonormal.
    fn unit(&self) -> f32 {
        let squares = match self.factor {
            Factor::Given(_) => self.block / self.order(),
            _ => self.block,
        };
        (squares as f64).sqrt().recip() as f32
    }

    pub(in crate::node) fn read_from(
        reader: &NodeReader<'_>,
        json: &Json,
        prefix: &str,
    ) -> Result<Arc<dyn Map>> {
        Self::read(reader, json, prefix, Signed::Outer)
    }

    /// As it was written first.
    pub(in crate::node) fn read_first(
        reader: &NodeReader<'_>,
        json: &Json,
        prefix: &str,
    ) -> Result<Arc<dyn Map>> {
        Self::read(reader, json, prefix, Signed::Inner)
    }

    fn read(
        reader: &NodeReader<'_>,
        json: &Json,
        prefix: &str,
        signed: Signed,
    ) -> Result<Arc<dyn Map>> {
        let (size, block) = (field::<usize>(json, "channels")?, field::<usize>(json, "block")?);
        let name = part_name(prefix, "transform");
        let signs = reader.bytes(&name, DType::U8)?.to_vec();
        check_entries(signs.len(), size.div_ceil(8), &name)?;
        check_block(size, block).map_err(|e| Error::corruption(e.message()))?;
        let order = field::<usize>(json, "factor")?;
        let fits = (1..=MOST).contains(&order)
            && block.is_multiple_of(order)
            && (block / order).is_power_of_two();
        if !fits {
            return Err(Error::corruption(format!("a factor of {order} in a block of {block}")));
        }
        let factor = match field::<String>(json, "matrix")?.as_str() {
            "one" if order == 1 => Factor::One,
            "paley" => Factor::Known(linalg::hadamard_matrix(order).ok_or_else(|| {
                Error::corruption(format!("a Hadamard matrix by Paley of order {order}"))
            })?),
            "stored" => Factor::Given(read_factor(reader, order, prefix)?),
            other => return Err(Error::version(format!("unknown factor `{other}` of {order}"))),
        };
        Ok(Arc::new(Self { size, block, factor, signs, signed }))
    }

    /// x Q or x Qᵀ for each `order` values.
    fn small(&self, values: &mut [f32], transposed: bool) {
        let Some(q) = self.factor.matrix() else { return };
        let mut product = [0.0f32; MOST];
        let product = &mut product[..q.nrows()];
        for x in values.chunks_exact_mut(q.nrows()) {
            if transposed {
                for (y, row) in product.iter_mut().zip(q.rows()) {
                    *y = row.iter().zip(&*x).map(|(q, x)| q * x).sum();
                }
            } else {
                product.fill(0.0);
                for (x, row) in x.iter().zip(q.rows()) {
                    product.iter_mut().zip(row).for_each(|(y, q)| *y += x * q);
                }
            }
            x.copy_from_slice(product);
        }
    }

    /// A band of A, decoded and transformed, into the rows `out`; `first` is its first row.
    fn transform(
        &self,
        first: usize,
        out: &mut [&mut [f32]],
        scratch: &mut Scratch,
        decode: &mut DecodeRows<'_>,
    ) -> Result<()> {
        let cols = out.first().map_or(0, |row| row.len());
        let mut band = scratch.take(self.block * cols);
        let made = self.transform_in(first, &mut band, cols, scratch, decode);
        if made.is_ok() {
            kernels::hadamard_rows(&band, self.parts(), out);
            if self.signed == Signed::Outer {
                let rows = out.iter_mut().enumerate();
                let negative = rows.filter(|(row, _)| is_negative(&self.signs, first + row));
                negative.for_each(|(_, row)| row.iter_mut().for_each(|v| *v = -*v));
            }
        }
        scratch.put(band);
        made
    }

    /// Parts between which the last levels are.
    fn parts(&self) -> usize {
        (self.block / self.order()).min(RADIX)
    }

    /// All but the last levels.
    fn transform_in(
        &self,
        first: usize,
        band: &mut [f32],
        cols: usize,
        scratch: &mut Scratch,
        decode: &mut DecodeRows<'_>,
    ) -> Result<()> {
        let (order, unit) = (self.order(), self.unit());
        let part = self.block / self.parts();
        // As few rows as one pass takes: they are still in the nearest cache then.
        let rows = order * (part / order).min(RADIX);
        let inner = self.signed == Signed::Inner;
        let sign = |row| if inner && is_negative(&self.signs, row) { -unit } else { unit };
        let mut at = first;
        for part in band.chunks_exact_mut(part * cols) {
            for leaf in part.chunks_exact_mut(rows * cols) {
                let view = ArrayViewMut2::from_shape((rows, cols), &mut *leaf).expect("whole rows");
                decode(at..at + rows, view, scratch)?;
                let factors: Vec<f32> = (at..at + rows).map(sign).collect();
                kernels::scale_lanes(leaf, &factors);
                self.small_rows(leaf, cols, scratch);
                linalg::hadamard_lanes(leaf, order * cols);
                at += rows;
            }
            linalg::hadamard_lanes(part, rows * cols);
        }
        Ok(())
    }

    /// Qᵀ A for each `order` rows.
    fn small_rows(&self, rows: &mut [f32], cols: usize, scratch: &mut Scratch) {
        let Some(q) = self.factor.matrix() else { return };
        let shape = (q.nrows(), cols);
        scratch.with_matrix(shape, |mut product, _| {
            for rows in rows.chunks_exact_mut(q.nrows() * cols) {
                let mut rows = ArrayViewMut2::from_shape(shape, rows).expect("whole rows");
                linalg::matmul_tn(q.view(), rows.view(), product.view_mut(), false, Par::Seq);
                rows.assign(&product);
            }
        });
    }
}

impl Factor {
    fn matrix(&self) -> Option<&Array2<f32>> {
        match self {
            Self::One => None,
            Self::Known(q) | Self::Given(q) => Some(q),
        }
    }

    fn name(&self) -> &'static str {
        match self {
            Self::One => "one",
            Self::Known(_) => "paley",
            Self::Given(_) => "stored",
        }
    }
}

fn check_block(size: usize, block: usize) -> Result<()> {
    if block == 0 || !size.is_multiple_of(block) {
        let message = format!("rotations of {block} channels in {size}: allowed are divisors");
        return Err(Error::invalid(message));
    }
    let odd = block >> block.trailing_zeros();
    if odd > MOST {
        let message =
            format!("rotations of {block} = 2^k x {odd} channels: allowed are up to {MOST}");
        return Err(Error::unsupported(message));
    }
    Ok(())
}

/// The orthogonal factor of a matrix of normal numbers, with the signs that make its distribution uniform (Mezzadri, 2007).
#[cfg(feature = "faer")]
fn random_orthogonal(order: usize, seed: u64) -> Result<Array2<f32>> {
    let at = |(i, j)| linalg::gaussian(seed, (i * order + j) as u64);
    let qr = linalg::qr(Array2::<f64>::from_shape_fn((order, order), at).view())?;
    let mut q = qr.q;
    for (mut column, r) in q.columns_mut().into_iter().zip(qr.r.diag()) {
        column *= if *r < 0.0 { -1.0 } else { 1.0 };
    }
    Ok(q.mapv(|v| v as f32))
}

/// What is stored can be read; making one takes a factorisation.
#[cfg(not(feature = "faer"))]
fn random_orthogonal(order: usize, _: u64) -> Result<Array2<f32>> {
    let message = format!("a new rotation with a factor of {order}, in a build without `faer`");
    Err(Error::unsupported(message))
}

fn read_factor(reader: &NodeReader<'_>, order: usize, prefix: &str) -> Result<Array2<f32>> {
    let name = part_name(prefix, "factor");
    let part = reader.part(&name)?;
    if part.dtype() != DType::F32 || part.matrix_shape() != [order, order] {
        let message = format!("{:?} {:?} as a factor of {order}", part.dtype(), part.shape());
        return Err(Error::corruption(message).in_tensor(&name));
    }
    let matrix = part.to_matrix()?;
    // Damage must not pass for a rotation: columns have length 1.
    let lengths = matrix.columns().into_iter().map(|c| c.dot(&c));
    if lengths.into_iter().any(|square| square.is_nan() || (square - 1.0).abs() >= 1e-3) {
        return Err(Error::corruption("a factor that is not orthogonal").in_tensor(&name));
    }
    Ok(matrix)
}

impl Map for Rotation {
    fn inner(&self) -> usize {
        self.size
    }

    fn outer(&self) -> usize {
        self.size
    }

    fn apply(&self, inner: ArrayView2<'_, f32>, outer: ArrayViewMut2<'_, f32>) {
        check_shapes(self, inner.dim(), outer.dim());
        let (order, unit) = (self.order(), self.unit());
        in_place(inner, outer, |row| {
            if self.signed == Signed::Inner {
                flip(row, &self.signs);
            }
            for block in row.chunks_exact_mut(self.block) {
                self.small(block, false);
                linalg::hadamard_lanes(block, order);
                block.iter_mut().for_each(|v| *v *= unit);
            }
            if self.signed == Signed::Outer {
                flip(row, &self.signs);
            }
        });
    }

    fn apply_transposed(&self, outer: ArrayView2<'_, f32>, inner: ArrayViewMut2<'_, f32>) {
        check_shapes(self, inner.dim(), outer.dim());
        let (order, unit) = (self.order(), self.unit());
        in_place(outer, inner, |row| {
            if self.signed == Signed::Outer {
                flip(row, &self.signs);
            }
            for block in row.chunks_exact_mut(self.block) {
                linalg::hadamard_lanes(block, order);
                self.small(block, true);
                block.iter_mut().for_each(|v| *v *= unit);
            }
            if self.signed == Signed::Inner {
                flip(row, &self.signs);
            }
        });
    }

    fn invert(&self, outer: ArrayView2<'_, f32>, inner: ArrayViewMut2<'_, f32>) {
        self.apply_transposed(outer, inner);
    }

    fn channels(&self) -> Channels<'_> {
        Channels::Mixed
    }

    fn is_orthogonal(&self) -> bool {
        true
    }

    fn decode_out(
        &self,
        rows: Range<usize>,
        mut out: ArrayViewMut2<'_, f32>,
        scratch: &mut Scratch,
        decode: &mut DecodeRows<'_>,
    ) -> Result<()> {
        let cols = out.ncols();
        if cols == 0 {
            return Ok(());
        }
        let mut at = rows.start;
        let whole = at.is_multiple_of(self.block) && rows.end.is_multiple_of(self.block);
        if !whole || (cols > 1 && out.strides()[1] != 1) {
            return by_bands(self.block, rows, out, scratch, &mut |first, values, scratch| {
                let mut rows: Vec<_> = values.chunks_exact_mut(cols).collect();
                self.transform(first, &mut rows, scratch, decode)
            });
        }
        for mut band in out.axis_chunks_iter_mut(Axis(0), self.block) {
            let rows = band.rows_mut().into_iter();
            let rows = rows.map(|row| row.into_slice().expect("columns side by side"));
            self.transform(at, &mut rows.collect::<Vec<_>>(), scratch, decode)?;
            at += self.block;
        }
        Ok(())
    }

    fn band(&self) -> usize {
        self.block
    }

    fn describe(&self) -> Json {
        json!({
            "kind": if self.signed == Signed::Inner { "rotation" } else { "rotation.v2" },
            "channels": self.size,
            "block": self.block,
            "factor": self.order(),
            "matrix": self.factor.name(),
        })
    }

    fn parts(&self, prefix: &str, sink: &mut dyn PartSink) -> Result<()> {
        sink.part(Part {
            name: part_name(prefix, "transform"),
            kind: PartKind::Transforms,
            dtype: DType::U8,
            shape: vec![self.signs.len()],
            bytes: Cow::Borrowed(&self.signs),
        })?;
        let Factor::Given(matrix) = &self.factor else { return Ok(()) };
        let mut bytes = Vec::new();
        DType::F32.write_f32(matrix.as_slice().expect("standard layout"), &mut bytes)?;
        sink.part(Part {
            name: part_name(prefix, "factor"),
            kind: PartKind::Transforms,
            dtype: DType::F32,
            shape: matrix.shape().to_vec(),
            bytes: Cow::Owned(bytes),
        })
    }
}
