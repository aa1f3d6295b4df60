use std::ops::Range;
use std::sync::{Arc, LazyLock};

use ndarray::{ArrayView2, ArrayViewMut2, s};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::error::{Error, Result};
use crate::node::registry::field;
use crate::node::{Accum, Json, Mask, Node, NodeReader, PlaneMap, Scratch};
use crate::storage::PartSink;

/// A codebook of vectors that has a name: a node `[entries, size]` that stores nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum KnownVectors {
    /// E8P of QuIP# (Tseng et al., 2024): 65536 points of the lattice E8 + 1/4 about 0, of 8 numbers each. A code is, from
    /// its highest bit on: 8 bits that name a vector of magnitudes ([`KnownVectors::e8p_magnitudes`]), a bit for each of
    /// the first seven numbers, set where it is negative, and a bit for what is added to all of them, 1/4 (set) or -1/4.
    /// The last number's sign makes the number of signs even, or odd where the sum of the magnitudes is.
    E8p,
}

/// Where the 29 vectors of squared length 12 have 3/2 for 1/2: bit i for number i, as the paper lists them.
const TWELVE: [u8; 29] = [
    0xF1, 0xF2, 0xF4, 0xF8, 0x37, 0x57, 0x67, 0x97, 0xA7, 0xC7, 0x3B, 0x5B, 0x6B, 0x9B, 0xAB, 0xCB,
    0x3D, 0x5D, 0x6D, 0x9D, 0xAD, 0x3E, 0x5E, 0x6E, 0x9E, 0xAE, 0xCE, 0xEC, 0x73,
];

static E8P_MAGNITUDES: LazyLock<[[f32; 8]; 256]> = LazyLock::new(e8p_magnitudes);
static E8P: LazyLock<Vec<f32>> = LazyLock::new(e8p);

/// All of half-integers with a squared length of at most 10, in order, then the 29.
fn e8p_magnitudes() -> [[f32; 8]; 256] {
    let mut all = Vec::with_capacity(256);
    // Numbers in base 3: 1/2, 3/2, 5/2, the first number highest.
    for code in 0..3usize.pow(8) {
        let halves: [usize; 8] =
            std::array::from_fn(|i| 1 + 2 * (code / 3usize.pow(7 - i as u32) % 3));
        if halves.iter().map(|half| half * half).sum::<usize>() <= 40 {
            all.push(halves.map(|half| half as f32 / 2.0));
        }
    }
    let twelve = |bits: &u8| std::array::from_fn(|i| if bits >> i & 1 == 1 { 1.5 } else { 0.5 });
    all.extend(TWELVE.iter().map(twelve));
    all.try_into().expect("227 and 29 vectors")
}

fn e8p() -> Vec<f32> {
    let mut all = Vec::with_capacity(8 << 16);
    for code in 0..1usize << 16 {
        all.extend(KnownVectors::e8p_point(code as u16));
    }
    all
}

impl KnownVectors {
    /// The vectors of magnitudes of [`KnownVectors::E8p`], by the highest 8 bits of a code.
    #[must_use]
    pub fn e8p_magnitudes() -> &'static [[f32; 8]; 256] {
        &E8P_MAGNITUDES
    }

    /// Whether a vector of these magnitudes has an odd number of signs in [`KnownVectors::E8p`].
    #[must_use]
    pub fn e8p_is_odd(magnitudes: &[f32; 8]) -> bool {
        magnitudes.iter().sum::<f32>() as u32 % 2 == 1
    }

    /// The point of [`KnownVectors::E8p`] with this code.
    #[must_use]
    pub fn e8p_point(code: u16) -> [f32; 8] {
        let magnitudes = &E8P_MAGNITUDES[usize::from(code >> 8)];
        // Bit 7 of a code is the first sign, bit 1 the seventh.
        let signs = code >> 1 & 0x7F;
        let odd = Self::e8p_is_odd(magnitudes) != (signs.count_ones() % 2 == 1);
        let shift = if code & 1 == 1 { 0.25 } else { -0.25 };
        std::array::from_fn(|i| {
            let negative = if i == 7 { odd } else { signs >> (6 - i) & 1 == 1 };
            shift + if negative { -magnitudes[i] } else { magnitudes[i] }
        })
    }

    /// All vectors, row-major, in the order of their codes.
    #[must_use]
    pub fn vectors(self) -> &'static [f32] {
        match self {
            Self::E8p => &E8P,
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

impl Node for KnownVectors {
    fn shape(&self) -> [usize; 2] {
        match self {
            Self::E8p => [1 << 16, 8],
        }
    }

    fn decode_rows(
        &self,
        rows: Range<usize>,
        mut out: ArrayViewMut2<'_, f32>,
        accum: Accum,
        _: &mut Scratch,
    ) -> Result<()> {
        let [count, size] = self.shape();
        assert_eq!(out.dim(), (rows.len(), size), "output shape");
        let all = ArrayView2::from_shape((count, size), self.vectors()).expect("all vectors");
        let rows = all.slice(s![rows, ..]);
        match accum {
            Accum::Replace => out.assign(&rows),
            Accum::Add => out += &rows,
        }
        Ok(())
    }

    fn describe(&self) -> Json {
        json!({"node": "known_vectors.v1", "name": self})
    }

    fn parts(&self, _: &str, _: &mut dyn PartSink) -> Result<()> {
        Ok(())
    }

    fn map_planes(self: Box<Self>, _: &mut PlaneMap<'_>) -> Result<Box<dyn Node>> {
        Ok(self)
    }

    fn keep(self: Box<Self>, _: &Arc<Mask>) -> Result<Box<dyn Node>> {
        Err(Error::unsupported("a mask over a known codebook"))
    }

    fn prepack(self: Box<Self>) -> Result<Box<dyn Node>> {
        Ok(self)
    }
}
