use std::ops::Range;
use std::sync::Arc;

use ndarray::{Array2, ArrayView2, ArrayViewMut2};
use serde_json::json;
use tensorpress_tensor::node::Json;
use tensorpress_tensor::{PartSink, Result, ndarray};

use super::int::Role;
use super::windowed::PackedRows;
use crate::page::Rotation;

/// Rows packed after signs and a Hadamard matrix, so that no channel stands out. Products are those of the query turned alike,
/// and sums are turned back as a whole: nothing is decoded for it.
#[derive(Debug, Clone)]
pub(crate) struct Rotated<P> {
    packed: P,
    seed: u64,
    rotation: Arc<Rotation>,
}

impl<P: PackedRows> Rotated<P> {
    /// Keys and values have signs of their own.
    pub(crate) fn new(packed: P, role: Role, seed: u64) -> Self {
        let dim = packed.dim();
        let word = if role == Role::Keys { 0 } else { 1 << 32 };
        let rotation = Arc::new(Rotation::new(1, dim, seed, word));
        Self { packed, seed, rotation }
    }

    fn turned(&self, rows: ArrayView2<'_, f32>) -> Array2<f32> {
        let mut rows = rows.as_standard_layout().into_owned();
        for mut row in rows.rows_mut() {
            self.rotation.apply(row.as_slice_mut().expect("standard layout"));
        }
        rows
    }
}

impl<P: PackedRows> PackedRows for Rotated<P> {
    fn len(&self) -> usize {
        self.packed.len()
    }

    fn dim(&self) -> usize {
        self.packed.dim()
    }

    fn prefix(&self, total: usize, window: usize) -> usize {
        self.packed.prefix(total, window)
    }

    fn push(&mut self, rows: ArrayView2<'_, f32>) {
        let rows = self.turned(rows);
        self.packed.push(rows.view());
    }

    fn truncate(&mut self, len: usize) {
        self.packed.truncate(len);
    }

    fn decode(&self, tokens: Range<usize>, mut out: ArrayViewMut2<'_, f32>) {
        let mut rows = Array2::zeros(out.dim());
        self.packed.decode(tokens, rows.view_mut());
        for mut row in rows.rows_mut() {
            self.rotation.invert(row.as_slice_mut().expect("standard layout"));
        }
        out.assign(&rows);
    }

    fn dots(
        &self,
        queries: ArrayView2<'_, f32>,
        tokens: Range<usize>,
        out: &mut [f32],
        stride: usize,
    ) {
        self.packed.dots(self.turned(queries).view(), tokens, out, stride);
    }

    fn mix(
        &self,
        weights: &[f32],
        stride: usize,
        tokens: Range<usize>,
        mut out: ArrayViewMut2<'_, f32>,
    ) {
        let mut sums = Array2::zeros(out.dim());
        self.packed.mix(weights, stride, tokens, sums.view_mut());
        for mut row in sums.rows_mut() {
            self.rotation.invert(row.as_slice_mut().expect("standard layout"));
        }
        out += &sums;
    }

    fn parts(&self, prefix: &str, sink: &mut dyn PartSink) -> Result<()> {
        self.packed.parts(prefix, sink)
    }

    fn bytes(&self) -> u64 {
        self.packed.bytes()
    }

    fn describe(&self) -> Json {
        let mut json = self.packed.describe();
        json["seed"] = json!(self.seed);
        json
    }
}

#[cfg(test)]
mod tests {
    use tensorpress_tensor::DType;
    use tensorpress_tensor::linalg::SplitMix;

    use super::*;
    use crate::store::Axis;
    use crate::store::int::{IntRows, IntShape};

    fn shape(dim: usize, bits: u32, role: Role) -> IntShape {
        let (axis, dtype) = (Axis::Token, DType::F32);
        IntShape { role, axis, bits, group: dim, dim, dtype, sliding: false }
    }

    /// One channel that stands out.
    fn rows(n: usize, dim: usize, seed: u64) -> Array2<f32> {
        let mut random = SplitMix::new(seed);
        Array2::from_shape_fn((n, dim), |(_, c)| {
            (random.next_f64() as f32 - 0.5) * if c == 3 { 20.0 } else { 1.0 }
        })
    }

    fn decoded<P: PackedRows>(rows: &P) -> Array2<f32> {
        let mut out = Array2::zeros((rows.len(), rows.dim()));
        rows.decode(0..rows.len(), out.view_mut());
        out
    }

    /// Products and sums without decoding are those with the decoded rows, in f64 by plain loops.
    #[test]
    fn queries_and_sums_turn_instead_of_tokens() {
        for (dim, bits) in [(32, 4), (64, 2), (96, 8), (128, 4)] {
            let x = rows(70, dim, 1);
            let q = rows(2, dim, 2);
            let mut keys = Rotated::new(IntRows::new(shape(dim, bits, Role::Keys)), Role::Keys, 7);
            keys.push(x.view());
            let k = decoded(&keys);
            let mut out = vec![f32::NAN; 140];
            keys.dots(q.view(), 0..70, &mut out, 70);
            let dot = |i: usize, t: usize| -> f64 {
                (0..dim).map(|c| f64::from(q[[i, c]]) * f64::from(k[[t, c]])).sum()
            };
            let largest = (0..140).map(|n| dot(n / 70, n % 70).abs()).fold(0.0, f64::max);
            for (n, mine) in out.iter().enumerate() {
                let exact = dot(n / 70, n % 70);
                assert!((f64::from(*mine) - exact).abs() < 5e-4 * largest, "{dim}: {mine} {exact}");
            }
            let empty = IntRows::new(shape(dim, bits, Role::Values));
            let mut values = Rotated::new(empty, Role::Values, 7);
            values.push(x.view());
            let (v, weights) = (decoded(&values), rows(2, 70, 5).into_raw_vec_and_offset().0);
            let mut sums = Array2::ones((2, dim));
            values.mix(&weights, 70, 0..70, sums.view_mut());
            for ((i, c), mine) in sums.indexed_iter() {
                let exact: f64 =
                    (0..70).map(|t| f64::from(weights[i * 70 + t]) * f64::from(v[[t, c]])).sum();
                assert!((f64::from(*mine) - 1.0 - exact).abs() < 2e-3 * largest, "{mine} {exact}");
            }
        }
    }

    /// A channel that stands out costs the others their levels, unless it is spread.
    #[test]
    fn turned_rows_lose_less() {
        let x = rows(64, 64, 1);
        let mut turned = Rotated::new(IntRows::new(shape(64, 4, Role::Keys)), Role::Keys, 0);
        let mut plain = IntRows::new(shape(64, 4, Role::Keys));
        turned.push(x.view());
        plain.push(x.view());
        let error = |y: Array2<f32>| (y - &x).mapv(|e| f64::from(e).powi(2)).sum();
        let (turned, plain) = (error(decoded(&turned)), error(decoded(&plain)));
        assert!(turned < 0.5 * plain, "{turned} against {plain}");
        // Another seed, other signs; keys and values have their own.
        let seeds = [(0, Role::Keys), (1, Role::Keys), (0, Role::Values)];
        let of = |(seed, role)| {
            let mut rows = Rotated::new(IntRows::new(shape(64, 2, Role::Keys)), role, seed);
            rows.push(x.view());
            decoded(&rows)
        };
        let all = seeds.map(of);
        assert!(all[0] != all[1] && all[0] != all[2]);
    }
}
