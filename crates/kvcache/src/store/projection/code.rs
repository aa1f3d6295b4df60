use std::ops::Range;
use std::sync::Arc;

use ndarray::{Array2, ArrayView2, ArrayViewMut2};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tensorpress_tensor::kernels::{self, packed_len};
use tensorpress_tensor::node::{Json, PartSource};
use tensorpress_tensor::{DType, PartKind, Result, ndarray};

use super::principal_basis;
use crate::store::coded::{Code, Coded, Grid, Stream, floats, put_codes, put_floats, take_codes};
use crate::store::{product, read_bytes};

/// How many coordinates are held.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Rank {
    /// So many.
    Of(usize),
    /// As many of the first as hold this share of the squares of what is learnt from.
    Energy(f64),
}

/// Coordinates on an orthonormal basis: numbers of 16 bits, or integers on grids of each coordinate and chunk of tokens.
#[derive(Debug, Clone)]
pub(crate) struct ProjectedCode {
    pub(crate) dim: usize,
    pub(crate) rank: Rank,
    /// Bits of a coordinate; 16 for f16.
    pub(crate) bits: u32,
    /// Tokens of a chunk, 1 for f16.
    pub(crate) chunk: usize,
    /// Tokens that the basis is learnt from; 0 where it is given.
    pub(crate) fit: usize,
    /// `[dim, coordinates]`, in numbers that f16 holds.
    pub(crate) basis: Option<Arc<Array2<f32>>>,
}

const STREAMS: [Stream; 3] =
    [("coordinates", PartKind::Codes), ("scales", PartKind::Scales), ("mins", PartKind::Zeros)];
const BASIS: Stream = ("basis", PartKind::Transforms);

/// A basis as it is stored.
pub(crate) fn stored(basis: &Array2<f32>) -> Arc<Array2<f32>> {
    Arc::new(basis.mapv(|x| DType::F16.round(x)).as_standard_layout().into_owned())
}

/// As many of the first coordinates `[tokens, channels]` as hold this share of all their squares, one at least.
fn energy_rank(coordinates: ArrayView2<'_, f32>, share: f64) -> usize {
    let energy = |c: ndarray::ArrayView1<'_, f32>| c.iter().map(|x| f64::from(*x).powi(2)).sum();
    let energies: Vec<f64> = coordinates.columns().into_iter().map(energy).collect();
    let (mut held, wanted) = (0.0, share * energies.iter().sum::<f64>());
    let mut missing = |energy: &f64| {
        held += energy;
        held < wanted
    };
    (energies.iter().take_while(|e| missing(e)).count() + 1).min(energies.len())
}

impl ProjectedCode {
    fn known(&self) -> &Array2<f32> {
        self.basis.as_ref().expect("rows are packed once the basis is known")
    }

    /// Coordinates of a row.
    fn width(&self) -> usize {
        self.known().ncols()
    }

    /// `[chunk, coordinates]`.
    fn coordinates(&self, unit: &[&[u8]]) -> Vec<f32> {
        if self.bits == 16 {
            return floats(DType::F16, unit[0]);
        }
        let width = self.width();
        let codes = take_codes(unit[0], self.bits, self.chunk * width);
        let [scales, mins] = [1, 2].map(|i| floats(DType::F16, unit[i]));
        let value = |(i, code): (usize, u8)| {
            let c = i % width;
            f32::from(code) * scales[c] + mins[c]
        };
        codes.into_iter().enumerate().map(value).collect()
    }
}

impl Code for ProjectedCode {
    fn dim(&self) -> usize {
        self.dim
    }

    fn unit(&self) -> usize {
        self.chunk
    }

    fn fit(&self) -> usize {
        // Nothing is known and nothing will be learnt: no row is packed.
        if self.fit == 0 && self.basis.is_none() { usize::MAX } else { self.fit }
    }

    fn given(&self) -> bool {
        self.fit == 0
    }

    fn streams(&self) -> &'static [Stream] {
        &STREAMS
    }

    fn bytes(&self, before: &[&[u8]]) -> usize {
        match before.len() {
            0 if self.bits == 16 => 2 * self.width(),
            0 => packed_len(self.chunk * self.width(), self.bits),
            _ if self.bits == 16 => 0,
            _ => 2 * self.width(),
        }
    }

    fn encode(&self, rows: ArrayView2<'_, f32>, streams: &mut [Vec<u8>]) {
        let x = rows.dot(self.known());
        if self.bits == 16 {
            put_floats(DType::F16, &x.into_iter().collect::<Vec<_>>(), &mut streams[0]);
            return;
        }
        let most = ((1u32 << self.bits) - 1) as f32;
        let columns = x.columns().into_iter();
        let grids: Vec<Grid> = columns.map(|c| Grid::of(&c.to_vec(), most, DType::F16)).collect();
        let code = |((_, c), x): ((usize, usize), &f32)| grids[c].code(*x);
        put_codes(&x.indexed_iter().map(code).collect::<Vec<u8>>(), self.bits, &mut streams[0]);
        for (stream, value) in [(1, (|g| g.scale) as fn(&Grid) -> f32), (2, |g| g.min)] {
            let values: Vec<f32> = grids.iter().map(value).collect();
            put_floats(DType::F16, &values, &mut streams[stream]);
        }
    }

    fn decode(&self, unit: &[&[u8]], out: &mut [f32]) {
        let basis = self.known();
        let coordinates = self.coordinates(unit);
        for (out, x) in out.chunks_exact_mut(self.dim).zip(coordinates.chunks_exact(self.width())) {
            for (out, direction) in out.iter_mut().zip(basis.rows()) {
                *out = kernels::dot(x, direction.to_slice().expect("standard layout"));
            }
        }
    }

    fn learn(&mut self, rows: ArrayView2<'_, f32>) {
        // No convergence is none of the data's faults that a cache could refuse: the first channels then.
        let basis = principal_basis(rows, self.dim).unwrap_or_else(|_| Array2::eye(self.dim));
        let rank = match self.rank {
            Rank::Of(rank) => rank,
            Rank::Energy(share) => energy_rank(rows.dot(&basis).view(), share),
        };
        self.basis = Some(stored(&basis.slice_move(ndarray::s![.., ..rank])));
    }

    fn forget(&mut self) {
        self.basis = None;
    }

    fn model(&self) -> Vec<(Stream, Vec<u8>)> {
        let Some(basis) = &self.basis else { return Vec::new() };
        let mut bytes = Vec::new();
        put_floats(DType::F16, basis.as_slice().expect("standard layout"), &mut bytes);
        vec![(BASIS, bytes)]
    }

    fn read_model(&mut self, prefix: &str, source: &dyn PartSource) -> Result<()> {
        let found = source.part(&format!("{prefix}.{}", BASIS.0))?.bytes().len();
        let width = match self.rank {
            Rank::Of(rank) => rank,
            Rank::Energy(_) => (found / 2 / self.dim).clamp(1, self.dim),
        };
        let bytes = read_bytes(source, prefix, BASIS.0, product(&[self.dim, width, 2])?)?;
        let basis = Array2::from_shape_vec((self.dim, width), floats(DType::F16, &bytes));
        self.basis = Some(Arc::new(basis.expect("as many as read")));
        Ok(())
    }

    fn describe(&self) -> Json {
        let Self { rank, bits, chunk, fit, .. } = self;
        json!({ "form": "projected", "rank": rank, "bits": bits, "chunk": chunk, "fit": fit })
    }

    /// Products on the basis: it is the query that is projected.
    fn dots(
        rows: &Coded<Self>,
        queries: ArrayView2<'_, f32>,
        tokens: Range<usize>,
        out: &mut [f32],
        stride: usize,
    ) {
        if tokens.is_empty() {
            return;
        }
        let code = &rows.code;
        let queries = queries.dot(code.known());
        rows.each_unit(tokens.clone(), |first, unit| {
            let x = code.coordinates(unit);
            for (t, x) in (first..).zip(x.chunks_exact(code.width())) {
                if tokens.contains(&t) {
                    for (i, q) in queries.rows().into_iter().enumerate() {
                        out[i * stride + t] = kernels::dot(x, q.to_slice().expect("contiguous"));
                    }
                }
            }
        });
    }

    /// Sums on the basis, and only these leave it.
    fn mix(
        rows: &Coded<Self>,
        weights: &[f32],
        stride: usize,
        tokens: Range<usize>,
        mut out: ArrayViewMut2<'_, f32>,
    ) {
        if tokens.is_empty() {
            return;
        }
        let code = &rows.code;
        let mut sums = Array2::zeros((out.nrows(), code.width()));
        rows.each_unit(tokens.clone(), |first, unit| {
            let x = code.coordinates(unit);
            for (t, x) in (first..).zip(x.chunks_exact(code.width())) {
                if tokens.contains(&t) {
                    for (i, mut sum) in sums.rows_mut().into_iter().enumerate() {
                        let sum = sum.as_slice_mut().expect("contiguous");
                        kernels::axpy(weights[i * stride + t], x, sum);
                    }
                }
            }
        });
        out += &sums.dot(&code.known().t());
    }
}
