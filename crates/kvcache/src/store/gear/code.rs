use ndarray::{Array2, ArrayView2};
use serde_json::json;
use tensorpress_tensor::kernels::packed_len;
use tensorpress_tensor::linalg::{self, Par, SplitMix};
use tensorpress_tensor::node::Json;
use tensorpress_tensor::{DType, PartKind, ndarray};

use crate::store::Axis;
use crate::store::coded::{
    Code, Grid, Stream, floats, put_codes, put_floats, put_sparse, sparse, sparse_fits, take_codes,
};

/// X of a chunk as Q + S + L: integers on grids, the largest and smallest entries of every vector, and factors of what is
/// still wrong.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct GearCode {
    pub(crate) dim: usize,
    /// Tokens of a chunk.
    pub(crate) chunk: usize,
    /// What vectors are: channels, or tokens.
    pub(crate) axis: Axis,
    /// Entries of a vector that share a grid; divides it.
    pub(crate) group: usize,
    /// The largest code.
    pub(crate) most: u32,
    /// Entries at either end of a vector that are stored as they are.
    pub(crate) outliers: usize,
    pub(crate) rank: usize,
    /// Steps of power iteration.
    pub(crate) steps: usize,
    pub(crate) seed: u64,
    /// Type of scales, minima, entries and factors.
    pub(crate) dtype: DType,
}

const STREAMS: [Stream; 7] = [
    ("codes", PartKind::Codes),
    ("scales", PartKind::Scales),
    ("mins", PartKind::Zeros),
    ("places", PartKind::Indices),
    ("entries", PartKind::Values),
    ("left", PartKind::Values),
    ("right", PartKind::Values),
];

/// Integers and sparse entries, vectors as rows.
pub(super) struct Base {
    codes: Vec<u8>,
    grids: Vec<Grid>,
    /// Of all vectors, where they stand in their vector.
    entries: Vec<(usize, f32)>,
    /// What these give.
    pub(super) values: Array2<f32>,
}

impl GearCode {
    /// Length and number of the vectors.
    fn vectors(&self) -> (usize, usize) {
        match self.axis {
            Axis::Channel => (self.chunk, self.dim),
            Axis::Token => (self.dim, self.chunk),
        }
    }

    fn bits(&self) -> u32 {
        u32::BITS - self.most.leading_zeros()
    }

    /// Integers of vectors `[count, len]` with their ends taken out: these become the vector's mean before grids are laid.
    pub(super) fn base(&self, vectors: ArrayView2<'_, f32>) -> Base {
        let mut base = Base {
            codes: Vec::with_capacity(vectors.len()),
            grids: Vec::new(),
            entries: Vec::new(),
            values: Array2::zeros(vectors.dim()),
        };
        for (x, mut values) in vectors.rows().into_iter().zip(base.values.rows_mut()) {
            let mut rest = x.to_vec();
            let mean = rest.iter().sum::<f32>() / rest.len() as f32;
            let mut order: Vec<usize> = (0..rest.len()).collect();
            order.sort_by(|a, b| x[*a].total_cmp(&x[*b]));
            let ends = order[..self.outliers].iter().chain(&order[order.len() - self.outliers..]);
            let mut ends: Vec<usize> = ends.copied().collect();
            ends.sort_unstable();
            ends.iter().for_each(|at| rest[*at] = mean);
            for (group, values) in rest
                .chunks(self.group)
                .zip(values.as_slice_mut().expect("standard layout").chunks_mut(self.group))
            {
                let grid = Grid::of(group, self.most as f32, self.dtype);
                let codes = group.iter().map(|x| grid.code(*x));
                for (code, value) in codes.zip(values) {
                    base.codes.push(code);
                    *value = grid.value(code);
                }
                base.grids.push(grid);
            }
            for at in ends {
                let entry = self.dtype.round(x[at]);
                values[at] = entry;
                base.entries.push((at, entry));
            }
        }
        base
    }

    /// Where power iteration starts, `[dim, rank]`.
    fn start(&self) -> Array2<f32> {
        let random = SplitMix::new(self.seed);
        let value =
            |(i, j)| (random.at((i * self.rank + j) as u64) >> 40) as f32 / (1 << 24) as f32;
        Array2::from_shape_fn((self.dim, self.rank), value)
    }

    /// `[chunk, dim]` as vectors, and back.
    fn turned<'a>(&self, x: ArrayView2<'a, f32>) -> ArrayView2<'a, f32> {
        if self.axis == Axis::Channel { x.reversed_axes() } else { x }
    }
}

/// Factors `[n, rank]`, `[d, rank]` of an error `[n, d]` whose product is near it: power iteration from a start `[d, rank]`,
/// bases made orthonormal in the last step, as GEAR's code does.
pub(super) fn factors(
    error: ArrayView2<'_, f32>,
    start: Array2<f32>,
    steps: usize,
) -> (Array2<f32>, Array2<f32>) {
    let mut right = start;
    let mut left = Array2::zeros((error.nrows(), right.ncols()));
    for step in 0..steps {
        let last = step + 1 == steps;
        if last {
            right = orthonormal(right);
        }
        linalg::matmul(error, right.view(), left.view_mut(), false, Par::Seq);
        if last {
            left = orthonormal(left);
        }
        linalg::matmul_tn(error, left.view(), right.view_mut(), false, Par::Seq);
    }
    (left, right)
}

/// Orthonormal columns of the same span; zeros where they are none.
fn orthonormal(x: Array2<f32>) -> Array2<f32> {
    match crate::factor::qr(x.view()) {
        Ok(qr) => qr.q,
        Err(_) => Array2::zeros(x.dim()),
    }
}

impl Code for GearCode {
    fn dim(&self) -> usize {
        self.dim
    }

    fn unit(&self) -> usize {
        self.chunk
    }

    fn streams(&self) -> &'static [Stream] {
        &STREAMS
    }

    fn bytes(&self, before: &[&[u8]]) -> usize {
        let (len, count) = self.vectors();
        let size = self.dtype.size();
        match before.len() {
            0 => packed_len(len * count, self.bits()),
            1 | 2 => len / self.group * count * size,
            3 => 2 * self.outliers * count * 2,
            4 => 2 * self.outliers * count * size,
            5 => self.chunk * self.rank * size,
            _ => self.dim * self.rank * size,
        }
    }

    fn fits(&self, unit: &[&[u8]]) -> bool {
        sparse_fits(unit[3], self.vectors().0)
    }

    fn encode(&self, rows: ArrayView2<'_, f32>, streams: &mut [Vec<u8>]) {
        let base = self.base(self.turned(rows));
        put_codes(&base.codes, self.bits(), &mut streams[0]);
        let scales: Vec<f32> = base.grids.iter().map(|g| g.scale).collect();
        let mins: Vec<f32> = base.grids.iter().map(|g| g.min).collect();
        put_floats(self.dtype, &scales, &mut streams[1]);
        put_floats(self.dtype, &mins, &mut streams[2]);
        let [_, _, _, places, entries, left, right] = streams else {
            unreachable!("seven streams")
        };
        put_sparse(&base.entries, self.dtype, places, entries);
        if self.rank > 0 {
            let error = &rows - &self.turned(base.values.view());
            let (l, r) = factors(error.view(), self.start(), self.steps);
            put_floats(self.dtype, &l.into_iter().collect::<Vec<_>>(), left);
            put_floats(self.dtype, &r.into_iter().collect::<Vec<_>>(), right);
        }
    }

    fn decode(&self, unit: &[&[u8]], out: &mut [f32]) {
        let (len, count) = self.vectors();
        let codes = take_codes(unit[0], self.bits(), len * count);
        let [scales, mins, left, right] = [1, 2, 5, 6].map(|i| floats(self.dtype, unit[i]));
        let mut place = |vector: usize, at: usize, value: f32| match self.axis {
            Axis::Channel => out[at * self.dim + vector] = value,
            Axis::Token => out[vector * self.dim + at] = value,
        };
        for (i, code) in codes.iter().enumerate() {
            let grid = i / self.group;
            place(i / len, i % len, f32::from(*code) * scales[grid] + mins[grid]);
        }
        for (i, (at, value)) in sparse(unit[3], unit[4], self.dtype).into_iter().enumerate() {
            place(i / (2 * self.outliers), at, value);
        }
        if self.rank > 0 {
            for (row, left) in out.chunks_exact_mut(self.dim).zip(left.chunks_exact(self.rank)) {
                for (out, right) in row.iter_mut().zip(right.chunks_exact(self.rank)) {
                    *out += left.iter().zip(right).map(|(l, r)| l * r).sum::<f32>();
                }
            }
        }
    }

    fn describe(&self) -> Json {
        let Self { chunk, axis, group, most, outliers, rank, steps, seed, dtype, .. } = *self;
        json!({
            "form": "gear", "chunk": chunk, "axis": axis, "group": group, "most": most, "outliers": outliers,
            "rank": rank, "steps": steps, "seed": seed, "dtype": dtype,
        })
    }
}
