use tensorpress_tensor::kernels::{TRELLIS_TILE, TRELLIS_UNIT, trellis_encode, trellis_values};
use tensorpress_tensor::linalg::{self, Par};
use tensorpress_tensor::ndarray::{Array2, ArrayView2, Axis, s};

use crate::factor::Factor;

/// Rows, and columns, of a tile.
const SIDE: usize = 16;
/// Bands of rows that say how large targets are.
const SOME: usize = 2;

/// No scale is larger, so that what is rotated back are numbers.
const LARGEST: f64 = 1e35;

/// What scales are multiplied by where paths of 1, 2, ... bits are drawn from more than they are to reach: beside the
/// variance that the error takes. Measured on normal numbers; high rates lose more by what is out of reach.
const REACH: [f64; 8] = [1.0, 1.0, 1.04, 1.05, 1.1, 1.15, 1.2, 1.25];

/// A matrix to be coded block by block of 16 columns.
#[derive(Debug)]
pub(super) struct Sweep<'a> {
    weight: ArrayView2<'a, f32>,
    /// For each block of columns, what it takes over from the errors of those before: `[columns before, columns]`.
    feedback: Vec<Array2<f32>>,
    bits: u32,
    par: Par,
}

impl<'a> Sweep<'a> {
    pub(super) fn new(weight: ArrayView2<'a, f32>, inputs: &Factor, bits: u32, par: Par) -> Self {
        let unit = inputs.unit.view();
        let feedback = blocks(weight.ncols()).map(|(from, to)| by_block(unit, from, to)).collect();
        Self { weight, feedback, bits, par }
    }

    /// Scales by which targets have the variance that values reach best: one a row or one for all. What feedback adds to the
    /// weights is seen on some rows.
    pub(super) fn scales(&self, by_row: bool) -> Vec<f32> {
        let (rows, cols) = self.weight.dim();
        let spread = |of: ArrayView2<'_, f32>| {
            let squares: f64 = of.iter().map(|w| f64::from(*w).powi(2)).sum();
            (squares / of.len().max(1) as f64).sqrt()
        };
        let bits = self.bits as usize;
        let fit = (1.0 - 0.25f64.powi(self.bits as i32)).sqrt() * REACH[bits - 1];
        let scale = |spread: f64| (spread * fit).min(LARGEST) as f32;
        let whole = spread(self.weight);
        let mut scales = match by_row {
            true => {
                let rows = self.weight.axis_chunks_iter(Axis(0), 1);
                rows.map(|row| scale(spread(row))).collect()
            }
            false => vec![scale(whole)],
        };
        let fed = self.feedback.iter().any(|u| u.iter().any(|u| *u != 0.0));
        if fed && rows > 0 && cols > 0 && whole > 0.0 {
            let some = self.weight.slice(s![..rows.min(SOME * SIDE), ..]);
            let first = if by_row { scales[..some.nrows()].to_vec() } else { scales.clone() };
            let mut squares = 0.0;
            self.run(some, &first, |target, _| {
                squares += target.iter().map(|t| f64::from(*t).powi(2)).sum::<f64>();
            });
            let ratio = (squares / some.len() as f64).sqrt() / spread(some);
            if ratio.is_finite() && ratio > 0.0 {
                scales.iter_mut().for_each(|s| *s = (f64::from(*s) * ratio).min(LARGEST) as f32);
            }
        }
        scales
    }

    /// The codes of all tiles, those of 16 rows one after another.
    pub(super) fn codes(&self, scales: &[f32]) -> Vec<u8> {
        let (bands, across) = self.tiles();
        let mut all = vec![0; bands * across * TRELLIS_TILE];
        let mut block = 0;
        self.run(self.weight, scales, |_, codes| {
            for (band, codes) in codes.chunks_exact(TRELLIS_TILE).enumerate() {
                let at = (band * across + block) * TRELLIS_TILE;
                all[at..at + TRELLIS_TILE].copy_from_slice(codes);
            }
            block += 1;
        });
        all
    }

    fn tiles(&self) -> (usize, usize) {
        (self.weight.nrows().div_ceil(SIDE), self.weight.ncols().div_ceil(SIDE))
    }

    /// Codes rows of the matrix, block after block; `seen` gets the targets and the codes of each.
    fn run(
        &self,
        matrix: ArrayView2<'_, f32>,
        scales: &[f32],
        mut seen: impl FnMut(ArrayView2<'_, f32>, &[u8]),
    ) {
        let (rows, cols) = matrix.dim();
        let bands = rows.div_ceil(SIDE);
        let step =
            |row: usize| scales.get(row).or(scales.first()).map_or(0.0, |s| s * TRELLIS_UNIT);
        let mut errors = Array2::<f32>::zeros((rows, cols));
        let mut units = vec![0.0f32; bands * TRELLIS_TILE];
        let mut codes = vec![0u8; bands * TRELLIS_TILE];
        let mut values = [0i16; TRELLIS_TILE];
        for ((from, to), feedback) in blocks(cols).zip(&self.feedback) {
            let weight = matrix.slice(s![.., from..to]);
            let mut target = Array2::zeros(weight.dim());
            let before = errors.slice(s![.., ..from]);
            linalg::matmul(before, feedback.view(), target.view_mut(), false, self.par);
            target.zip_mut_with(&weight, |t, w| *t = w - *t);
            units.fill(0.0);
            for (r, target) in target.rows().into_iter().enumerate() {
                let step = step(r);
                let units = &mut units[r * SIDE..][..to - from];
                for (unit, target) in units.iter_mut().zip(target) {
                    // Nothing is divided by 0, and infinity is the outermost value.
                    *unit = if step > 0.0 { target / step } else { 0.0 };
                }
            }
            trellis_encode(self.bits, &units, &mut codes, self.par);
            for (band, codes) in codes.chunks_exact(TRELLIS_TILE).enumerate() {
                trellis_values(codes, self.bits, &mut values);
                let last = rows.min((band + 1) * SIDE);
                for (r, values) in (band * SIDE..last).zip(values.chunks_exact(SIDE)) {
                    let step = step(r);
                    for (c, value) in (from..to).zip(values) {
                        errors[[r, c]] = step * f32::from(*value) - matrix[[r, c]];
                    }
                }
            }
            seen(target.view(), &codes);
        }
    }
}

/// The columns of each block.
fn blocks(cols: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..cols).step_by(SIDE).map(move |from| (from, cols.min(from + SIDE)))
}

/// What a block takes over from the columns before it, U_ik = u_ik u_kk⁻¹, from the factor u by single columns: columns of a block
/// feed each other nothing.
fn by_block(unit: ArrayView2<'_, f32>, from: usize, to: usize) -> Array2<f32> {
    let mut block = unit.slice(s![..from, from..to]).mapv(f64::from);
    // X u = b, column by column: u is unit upper triangular.
    for j in 1..to - from {
        for k in 0..j {
            let u = f64::from(unit[[from + k, from + j]]);
            if u != 0.0 {
                let (before, mut here) = block.multi_slice_mut((s![.., k], s![.., j]));
                here.scaled_add(-u, &before);
            }
        }
    }
    block.mapv(|v| v as f32)
}
