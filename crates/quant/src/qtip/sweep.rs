use tensorpress_tensor::kernels::{TRELLIS_TILE, TRELLIS_UNIT, trellis_encode, trellis_values};
use tensorpress_tensor::linalg::{self, Par};
use tensorpress_tensor::ndarray::{Array2, ArrayView2, Axis, s};
use tensorpress_tensor::obs::{Factor, RowFactor};

/// Rows, and columns, of a tile.
const SIDE: usize = 16;
/// Rows that are coded side by side where rows feed each other.
pub(super) const BAND: usize = 2 * SIDE;
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
    /// What bands of rows take over, where rows feed each other.
    rows: Option<RowFactor>,
    bits: u32,
    par: Par,
}

impl<'a> Sweep<'a> {
    pub(super) fn new(
        weight: ArrayView2<'a, f32>,
        inputs: &Factor,
        rows: Option<RowFactor>,
        bits: u32,
        par: Par,
    ) -> Self {
        let feedback = blocks(weight.ncols()).map(|(from, to)| inputs.block(from, to)).collect();
        Self { weight, feedback, rows, bits, par }
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
        let mut codes = vec![0u8; bands * TRELLIS_TILE];
        let together = if self.rows.is_some() { BAND } else { rows.max(1) };
        // What rows were given beyond their targets.
        let mut given = Array2::<f32>::zeros((if self.rows.is_some() { rows } else { 0 }, SIDE));
        for ((from, to), feedback) in blocks(cols).zip(&self.feedback) {
            let weight = matrix.slice(s![.., from..to]);
            let mut target = Array2::zeros(weight.dim());
            let before = errors.slice(s![.., ..from]);
            linalg::matmul(before, feedback.view(), target.view_mut(), false, self.par);
            target.zip_mut_with(&weight, |t, w| *t = w - *t);
            for (number, first) in (0..rows).step_by(together).enumerate() {
                let last = rows.min(first + together);
                let mut fed = target.slice(s![first..last, ..]).to_owned();
                if let Some(rows) = &self.rows {
                    let mut before = Array2::zeros(fed.dim());
                    let given = given.slice(s![.., ..to - from]);
                    rows.before(number, given, before.view_mut(), self.par);
                    fed -= &before;
                }
                let steps: Vec<f32> = (first..last).map(step).collect();
                let codes = &mut codes[first / SIDE * TRELLIS_TILE..]
                    [..(last - first).div_ceil(SIDE) * TRELLIS_TILE];
                let values = self.coded(fed.view(), &steps, codes);
                for (r, values) in (first..last).zip(values.chunks_exact(SIDE)) {
                    for (c, value) in values[..to - from].iter().enumerate() {
                        errors[[r, from + c]] = value - weight[[r, c]];
                        if self.rows.is_some() {
                            given[[r, c]] = value - target[[r, c]];
                        }
                    }
                }
            }
            seen(target.view(), &codes);
        }
    }

    /// Codes some rows of a block of columns; gives their values, [`SIDE`] a row.
    fn coded(&self, target: ArrayView2<'_, f32>, steps: &[f32], codes: &mut [u8]) -> Vec<f32> {
        let tiles = codes.len() / TRELLIS_TILE;
        let mut units = vec![0.0f32; tiles * TRELLIS_TILE];
        for ((target, step), units) in
            target.rows().into_iter().zip(steps).zip(units.chunks_mut(SIDE))
        {
            for (unit, target) in units.iter_mut().zip(target) {
                // Nothing is divided by 0, and infinity is the outermost value.
                *unit = if *step > 0.0 { target / step } else { 0.0 };
            }
        }
        trellis_encode(self.bits, &units, codes, self.par);
        let mut values = [0i16; TRELLIS_TILE];
        let tiles = codes.chunks_exact(TRELLIS_TILE).zip(units.chunks_exact_mut(TRELLIS_TILE));
        for ((codes, tile), steps) in tiles.zip(steps.chunks(SIDE)) {
            trellis_values(codes, self.bits, &mut values);
            for ((row, values), step) in tile.chunks_mut(SIDE).zip(values.chunks(SIDE)).zip(steps) {
                row.iter_mut().zip(values).for_each(|(to, value)| *to = step * f32::from(*value));
            }
        }
        units
    }
}

/// The columns of each block.
fn blocks(cols: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..cols).step_by(SIDE).map(move |from| (from, cols.min(from + SIDE)))
}
