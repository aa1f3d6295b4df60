use std::sync::Arc;

use ndarray::ArrayView2;
use serde::{Deserialize, Serialize};
use serde_json::json;
use tensorpress_tensor::kernels::packed_len;
use tensorpress_tensor::node::{Json, PartSource};
use tensorpress_tensor::{DType, PartKind, Result, ndarray};

use super::levels::{KvLevels, Levels, dynamic, inward, nearest, outward};
use crate::store::coded::{
    Code, Stream, floats, put_codes, put_floats, put_sparse, sparse, sparse_fits, take_codes,
};
use crate::store::{product, read_bytes};

/// What a range belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Vectors {
    /// Channels: learnt.
    Channels,
    /// Tokens: their own.
    Tokens,
}

/// Codes of levels within ranges, and outliers as they are.
#[derive(Debug, Clone)]
pub(crate) struct NuqCode {
    pub(crate) dim: usize,
    pub(crate) vectors: Vectors,
    pub(crate) bits: u32,
    pub(crate) outliers: f64,
    pub(crate) levels: Levels,
    /// Mean and spread are restored.
    pub(crate) norm: bool,
    pub(crate) sinks: usize,
    /// Tokens that are learnt from; 0 where the model is given.
    pub(crate) fit: usize,
    /// Type of outliers and of tokens' ranges.
    pub(crate) dtype: DType,
    pub(crate) model: Option<Arc<KvLevels>>,
}

const KEYS: [Stream; 4] = [
    ("codes", PartKind::Codes),
    ("counts", PartKind::Indices),
    ("places", PartKind::Indices),
    ("outliers", PartKind::Values),
];

const VALUES: [Stream; 5] = [KEYS[0], KEYS[1], KEYS[2], KEYS[3], ("ranges", PartKind::Scales)];

const LOWER: Stream = ("lower", PartKind::Scales);
const UPPER: Stream = ("upper", PartKind::Scales);
const POINTS: Stream = ("points", PartKind::Tables);
const LEVELS: Stream = ("levels", PartKind::Tables);

impl NuqCode {
    fn known(&self) -> &KvLevels {
        self.model.as_ref().expect("rows are packed once levels are known")
    }

    fn ranges(&self) -> usize {
        if self.vectors == Vectors::Channels { self.dim } else { 0 }
    }
}

impl Code for NuqCode {
    fn dim(&self) -> usize {
        self.dim
    }

    fn fit(&self) -> usize {
        // Nothing is known and nothing will be learnt: no row is packed.
        if self.fit == 0 && self.model.is_none() { usize::MAX } else { self.fit }
    }

    fn given(&self) -> bool {
        self.fit == 0
    }

    fn sinks(&self) -> usize {
        self.sinks
    }

    fn streams(&self) -> &'static [Stream] {
        if self.vectors == Vectors::Channels { &KEYS } else { &VALUES }
    }

    fn bytes(&self, before: &[&[u8]]) -> usize {
        let count = || usize::from(u16::from_le_bytes([before[1][0], before[1][1]]));
        match before.len() {
            0 => packed_len(self.dim, self.bits),
            1 => 2,
            2 => 2 * count(),
            3 => count() * self.dtype.size(),
            _ => 2 * self.dtype.size(),
        }
    }

    fn fits(&self, unit: &[&[u8]]) -> bool {
        sparse_fits(unit[2], self.dim)
    }

    fn encode(&self, rows: ArrayView2<'_, f32>, streams: &mut [Vec<u8>]) {
        let known = self.known();
        for row in rows.rows() {
            let row = row.to_vec();
            let (ranges, out): (Vec<(f32, f32)>, Vec<bool>) = match self.vectors {
                Vectors::Channels => {
                    let ranges = known.lower.iter().copied().zip(known.upper.iter().copied());
                    // Dense: what is beyond the range becomes the level at its end.
                    let beyond =
                        |(x, (a, b)): (&f32, (f32, f32))| self.outliers > 0.0 && (*x < a || *x > b);
                    (ranges.clone().collect(), row.iter().zip(ranges).map(beyond).collect())
                }
                Vectors::Tokens => {
                    let ((a, b), out) = dynamic(&row, self.outliers);
                    let range = (self.dtype.round(a), self.dtype.round(b));
                    put_floats(self.dtype, &[range.0, range.1], &mut streams[4]);
                    (vec![range; self.dim], out)
                }
            };
            let code = |(x, range): (&f32, &(f32, f32))| nearest(&known.points, inward(*x, *range));
            let codes: Vec<u8> = row.iter().zip(&ranges).map(code).collect();
            put_codes(&codes, self.bits, &mut streams[0]);
            let entries: Vec<(usize, f32)> =
                row.iter().enumerate().filter(|(c, _)| out[*c]).map(|(c, x)| (c, *x)).collect();
            streams[1].extend((entries.len() as u16).to_le_bytes());
            let [_, _, places, values, ..] = streams else { unreachable!("four or five streams") };
            put_sparse(&entries, self.dtype, places, values);
        }
    }

    fn decode(&self, unit: &[&[u8]], out: &mut [f32]) {
        let known = self.known();
        let codes = take_codes(unit[0], self.bits, self.dim);
        let own = unit.get(4).map(|bytes| floats(self.dtype, bytes));
        for (c, (out, code)) in out.iter_mut().zip(codes).enumerate() {
            let range = match &own {
                Some(range) => (range[0], range[1]),
                None => (known.lower[c], known.upper[c]),
            };
            *out = outward(known.levels[usize::from(code)], range);
        }
        for (c, value) in sparse(unit[2], unit[3], self.dtype) {
            out[c] = value;
        }
    }

    fn learn(&mut self, rows: ArrayView2<'_, f32>) {
        let (bits, outliers, levels) = (self.bits, self.outliers, self.levels);
        let model = match self.vectors {
            Vectors::Channels => KvLevels::of_keys(rows, None, bits, outliers, levels),
            Vectors::Tokens => KvLevels::of_values(rows, bits, outliers, levels),
        };
        let mut model = model.expect("rows and numbers were checked");
        if self.norm {
            let inner = model.inner(rows, outliers);
            model = model.with_spread_of(&inner);
        }
        self.model = Some(Arc::new(model));
    }

    fn forget(&mut self) {
        self.model = None;
    }

    fn model(&self) -> Vec<(Stream, Vec<u8>)> {
        let bytes = |values: &[f32]| {
            let mut bytes = Vec::new();
            put_floats(DType::F32, values, &mut bytes);
            bytes
        };
        let Some(model) = &self.model else { return Vec::new() };
        let mut parts = vec![(POINTS, bytes(&model.points)), (LEVELS, bytes(&model.levels))];
        if self.vectors == Vectors::Channels {
            parts.push((LOWER, bytes(&model.lower)));
            parts.push((UPPER, bytes(&model.upper)));
        }
        parts
    }

    fn read_model(&mut self, prefix: &str, source: &dyn PartSource) -> Result<()> {
        let read = |(name, _): Stream, count: usize| {
            let bytes = read_bytes(source, prefix, name, product(&[count, 4])?)?;
            Ok(floats(DType::F32, &bytes))
        };
        let (count, ranges) = (1 << self.bits, self.ranges());
        let (points, levels) = (read(POINTS, count)?, read(LEVELS, count)?);
        let [lower, upper] = match self.vectors {
            Vectors::Channels => [read(LOWER, ranges)?, read(UPPER, ranges)?],
            Vectors::Tokens => [Vec::new(), Vec::new()],
        };
        self.model = Some(Arc::new(KvLevels { lower, upper, points, levels }));
        Ok(())
    }

    fn describe(&self) -> Json {
        let Self { vectors, bits, outliers, levels, norm, sinks, fit, dtype, .. } = self;
        json!({
            "form": "kvquant", "vectors": vectors, "bits": bits, "outliers": outliers, "levels": levels,
            "norm": norm, "sinks": sinks, "fit": fit, "dtype": dtype,
        })
    }
}
