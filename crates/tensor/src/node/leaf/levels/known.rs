use std::ops::Range;
use std::sync::{Arc, LazyLock};

use ndarray::{ArrayView1, ArrayViewMut2};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::error::{Error, Result};
use crate::node::registry::field;
use crate::node::{Accum, Json, Mask, Node, NodeReader, PlaneMap, Scratch};
use crate::storage::PartSink;

/// A table of levels that has a name: a node `[1, levels]` that stores nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum KnownLevels {
    /// 4-bit NormalFloat of QLoRA (Dettmers et al., 2023): quantiles of a normal distribution, ascending, code 7 is 0.
    Nf4,
    /// The 4-bit floats of bitsandbytes: sign, 2 bits of exponent, 1 of mantissa, over 12; code 1 is the subnormal.
    Fp4,
    /// The signed dynamic map of 8-bit optimisers (Dettmers et al., 2022): the bits after the sign count decades, the
    /// rest divide one evenly; ascending, the last is 1.
    Dynamic8,
}

/// Those of the official code, which rounds them from f64.
const NF4: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

static FP4: LazyLock<[f32; 16]> = LazyLock::new(|| {
    // Codes 0 to 7; those from 8 on are negative.
    let twelfths = [0.0, 0.0625, 8.0, 12.0, 4.0, 6.0, 2.0, 3.0];
    std::array::from_fn(|code| {
        let value = twelfths[code % 8] / 12.0;
        if code < 9 { value } else { -value }
    })
});

static DYNAMIC8: LazyLock<[f32; 256]> = LazyLock::new(dynamic8);

/// Decade by decade, 2^i levels in the middles of as many equal pieces of 0.1 to 1, times 10^(i - 6).
fn dynamic8() -> [f32; 256] {
    let mut levels = vec![0.0, 1.0];
    for decade in 0..7 {
        let pieces = 1usize << decade;
        let (first, last) = (0.1f32, 1.0f32);
        let step = (last - first) / pieces as f32;
        // From the nearer end, rounded once, as the official code's linear space has it.
        let edge = |i: usize| {
            let from_first = i < pieces.div_ceil(2);
            let (end, steps) =
                if from_first { (first, i as f64) } else { (last, i as f64 - pieces as f64) };
            (f64::from(end) + f64::from(step) * steps) as f32
        };
        let scale = 10f64.powi(decade - 6) as f32;
        for i in 0..pieces {
            let level = scale * ((edge(i) + edge(i + 1)) / 2.0);
            levels.extend([level, -level]);
        }
    }
    levels.sort_by(f32::total_cmp);
    levels.try_into().expect("2 and twice 127 levels")
}

impl KnownLevels {
    /// The levels, in the order of their codes.
    #[must_use]
    pub fn levels(self) -> &'static [f32] {
        match self {
            Self::Nf4 => &NF4,
            Self::Fp4 => &*FP4,
            Self::Dynamic8 => &*DYNAMIC8,
        }
    }

    pub(in crate::node) fn read_from(
        _: &NodeReader<'_>,
        json: &Json,
        _: &str,
    ) -> Result<Box<dyn Node>> {
        Ok(Box::new(field::<Self>(json, "name")?))
    }
}

impl Node for KnownLevels {
    fn shape(&self) -> [usize; 2] {
        [1, self.levels().len()]
    }

    fn decode_rows(
        &self,
        rows: Range<usize>,
        mut out: ArrayViewMut2<'_, f32>,
        accum: Accum,
        _: &mut Scratch,
    ) -> Result<()> {
        assert_eq!(out.dim(), (rows.len(), self.levels().len()), "output shape");
        let levels = ArrayView1::from(self.levels());
        match accum {
            Accum::Replace => out.assign(&levels),
            Accum::Add => out += &levels,
        }
        Ok(())
    }

    fn describe(&self) -> Json {
        json!({"node": "known_levels.v1", "name": self})
    }

    fn parts(&self, _: &str, _: &mut dyn PartSink) -> Result<()> {
        Ok(())
    }

    fn map_planes(self: Box<Self>, _: &mut PlaneMap<'_>) -> Result<Box<dyn Node>> {
        Ok(self)
    }

    fn keep(self: Box<Self>, _: &Arc<Mask>) -> Result<Box<dyn Node>> {
        Err(Error::unsupported("a mask over a known table"))
    }

    fn prepack(self: Box<Self>) -> Result<Box<dyn Node>> {
        Ok(self)
    }
}
