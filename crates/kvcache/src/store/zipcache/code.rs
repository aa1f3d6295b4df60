use ndarray::{ArrayView2, Axis as Way};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tensorpress_tensor::kernels::packed_len;
use tensorpress_tensor::node::Json;
use tensorpress_tensor::{DType, PartKind, ndarray};

use crate::store::Axis;
use crate::store::coded::{Code, Grid, Stream, floats, put_codes, put_floats, take_codes};

/// What a vector is divided by before vectors that cross it are quantised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Norm {
    /// Nothing.
    One,
    /// The square root of its largest magnitude: the paper's.
    #[default]
    SqrtMax,
    /// The square root of its mean magnitude.
    SqrtMean,
    /// Its mean magnitude: the released code's, of tokens.
    Mean,
}

impl Norm {
    fn of(self, x: impl Iterator<Item = f32> + Clone, dtype: DType) -> f32 {
        let count = x.clone().count().max(1) as f32;
        let norm = match self {
            Self::One => 1.0,
            Self::SqrtMax => x.fold(0.0f32, |m, v| m.max(v.abs())).sqrt(),
            Self::SqrtMean => (x.map(f32::abs).sum::<f32>() / count).sqrt(),
            Self::Mean => x.map(f32::abs).sum::<f32>() / count,
        };
        let norm = dtype.round(norm);
        if norm > 0.0 { norm } else { 1.0 }
    }
}

/// A grid for each vector along one axis of a chunk, whose vectors along the other are divided by their norms first.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Separable {
    pub(crate) dim: usize,
    /// Tokens of a chunk.
    pub(crate) chunk: usize,
    pub(crate) bits: u32,
    /// What has a grid: channels or tokens.
    pub(crate) axis: Axis,
    /// What divides the others.
    pub(crate) norm: Norm,
    /// Type of scales, minima and norms.
    pub(crate) dtype: DType,
}

const STREAMS: [Stream; 4] = [
    ("codes", PartKind::Codes),
    ("scales", PartKind::Scales),
    ("mins", PartKind::Zeros),
    ("norms", PartKind::Transforms),
];

impl Separable {
    /// How many vectors have grids, and how many have norms.
    fn counts(&self) -> (usize, usize) {
        let (grids, norms) = match self.axis {
            Axis::Channel => (self.dim, self.chunk),
            Axis::Token => (self.chunk, self.dim),
        };
        (grids, if self.norm == Norm::One { 0 } else { norms })
    }

    /// Which of a token and a channel a grid and a norm belong to.
    fn places(&self, token: usize, channel: usize) -> (usize, usize) {
        match self.axis {
            Axis::Channel => (channel, token),
            Axis::Token => (token, channel),
        }
    }
}

impl Code for Separable {
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
        let (grids, norms) = self.counts();
        match before.len() {
            0 => packed_len(self.chunk * self.dim, self.bits),
            1 | 2 => grids * self.dtype.size(),
            _ => norms * self.dtype.size(),
        }
    }

    fn encode(&self, rows: ArrayView2<'_, f32>, streams: &mut [Vec<u8>]) {
        let (grid_axis, norm_axis) = match self.axis {
            Axis::Channel => (Way(1), Way(0)),
            Axis::Token => (Way(0), Way(1)),
        };
        let norm = |x: ndarray::ArrayView1<'_, f32>| self.norm.of(x.iter().copied(), self.dtype);
        let norms: Vec<f32> = rows.axis_iter(norm_axis).map(norm).collect();
        let most = ((1u32 << self.bits) - 1) as f32;
        let grid = |x: ndarray::ArrayView1<'_, f32>| {
            let x: Vec<f32> = x.iter().zip(&norms).map(|(x, norm)| x / norm).collect();
            Grid::of(&x, most, self.dtype)
        };
        let grids: Vec<Grid> = rows.axis_iter(grid_axis).map(grid).collect();
        let code = |((t, c), x): ((usize, usize), &f32)| {
            let (grid, norm) = self.places(t, c);
            grids[grid].code(x / norms[norm])
        };
        put_codes(&rows.indexed_iter().map(code).collect::<Vec<u8>>(), self.bits, &mut streams[0]);
        put_floats(
            self.dtype,
            &grids.iter().map(|g| g.scale).collect::<Vec<f32>>(),
            &mut streams[1],
        );
        put_floats(self.dtype, &grids.iter().map(|g| g.min).collect::<Vec<f32>>(), &mut streams[2]);
        if self.norm != Norm::One {
            put_floats(self.dtype, &norms, &mut streams[3]);
        }
    }

    fn decode(&self, unit: &[&[u8]], out: &mut [f32]) {
        let codes = take_codes(unit[0], self.bits, self.chunk * self.dim);
        let [scales, mins, norms] = [1, 2, 3].map(|i| floats(self.dtype, unit[i]));
        for (i, (out, code)) in out.iter_mut().zip(codes).enumerate() {
            let (grid, norm) = self.places(i / self.dim, i % self.dim);
            let value = f32::from(code) * scales[grid] + mins[grid];
            *out = value * norms.get(norm).copied().unwrap_or(1.0);
        }
    }

    fn describe(&self) -> Json {
        let Self { chunk, bits, axis, norm, dtype, .. } = *self;
        json!({
            "form": "separable", "chunk": chunk, "bits": bits, "axis": axis, "norm": norm, "dtype": dtype,
        })
    }
}
