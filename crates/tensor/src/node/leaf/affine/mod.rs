//! Integer codes on grids, whose scales and zero points are shared by groups.

mod nested;
mod stored;

use std::sync::OnceLock;

use ndarray::ArrayView2;

use super::{Child, Encoding, Format, Fused, Leaf, Slot};
use crate::dtype::DType;
use crate::error::{Error, Result};
use crate::grid::{Affine, IntGrid};
use crate::kernels;
use crate::node::registry::field;
use crate::node::{Dense, Json, Node, PackedPlane, Scratch, Symbol, Symbols};
use crate::storage::PartKind;

pub use nested::{NestedAffine, NestedFormat};

/// Integer codes with a scale and zero point for each group of consecutive inputs of a row:
/// `w[r, c] = scale[r, c / group] * (code[r, c] - zero[r, c / group])`. Zero points are codes, or any real numbers.
pub type GroupedAffine = Leaf<AffineFormat>;

/// The format of a [`GroupedAffine`].
#[derive(Debug)]
pub struct AffineFormat {
    group: usize,
    /// One scale and zero for the whole matrix.
    per_tensor: bool,
    /// One zero point for all groups: symmetric grids. Else they are a plane of one code a group, or a node.
    zero: Option<u16>,
    /// Zero points are real numbers, a node of one value a group.
    real: bool,
    /// `zero` for each group, as the kernels want it, filled by the first use.
    zeros: OnceLock<Vec<f32>>,
}

/// Places of the slots.
const SCALES: usize = 0;
const ZEROS: usize = 1;

impl AffineFormat {
    fn new(group: usize, per_tensor: bool, zero: Option<u16>) -> Self {
        Self { group, per_tensor, zero, real: false, zeros: OnceLock::new() }
    }

    /// Wire id of leaves whose zero points are real numbers.
    pub(in crate::node) const REAL: &'static str = "grouped_affine.v2";

    /// `[rows, groups]` of scales and zeros.
    fn grids(&self, [rows, cols]: [usize; 2]) -> [usize; 2] {
        if self.per_tensor { [1, 1] } else { [rows, cols.div_ceil(self.group)] }
    }

    /// The zero points in the layout of the scales.
    fn zeros<'a>(&'a self, beside: &[&'a [f32]]) -> &'a [f32] {
        match self.zero {
            None => beside[ZEROS],
            Some(zero) => self.zeros.get_or_init(|| vec![f32::from(zero); beside[SCALES].len()]),
        }
    }

    /// Scales and zeros of a row of `cols` columns, and the group size they apply to.
    fn row<'a>(
        &'a self,
        row: usize,
        cols: usize,
        beside: &[&'a [f32]],
    ) -> (&'a [f32], &'a [f32], usize) {
        let (scales, zeros) = (beside[SCALES], self.zeros(beside));
        if self.per_tensor {
            return (scales, zeros, cols.max(1));
        }
        let groups = cols.div_ceil(self.group);
        let at = row * groups..(row + 1) * groups;
        (&scales[at.clone()], &zeros[at], self.group.min(cols.max(1)))
    }
}

impl Format for AffineFormat {
    const ID: &'static str = "grouped_affine.v1";

    fn read_from(json: &Json) -> Result<Self> {
        let group = field::<usize>(json, "group")?;
        if group == 0 {
            return Err(Error::corruption("group of 0 columns"));
        }
        let zero = json.get("zero").and_then(Json::as_u64).map(|zero| {
            u16::try_from(zero).map_err(|_| Error::corruption(format!("zero point {zero}")))
        });
        let per_tensor = json.get("per_tensor").and_then(Json::as_bool).unwrap_or(false);
        let real = json.get("node").and_then(Json::as_str) == Some(Self::REAL);
        let zero = zero.filter(|_| !real).transpose()?;
        Ok(Self { real, ..Self::new(group, per_tensor, zero) })
    }

    fn describe(&self, json: &mut Json) {
        json["group"] = self.group.into();
        if self.per_tensor {
            json["per_tensor"] = true.into();
        }
        if let Some(zero) = self.zero {
            json["zero"] = zero.into();
        }
        if self.real {
            json["node"] = Self::REAL.into();
        }
    }

    fn slots(&self, shape: [usize; 2]) -> Vec<Slot> {
        let shape = self.grids(shape);
        let scales =
            Slot { name: "scales", kind: PartKind::Scales, shape, encoding: Encoding::Floats };
        let encoding = if self.real { Encoding::Node } else { Encoding::Plane };
        let zeros = Slot { name: "zeros", kind: PartKind::Zeros, shape, encoding };
        if self.zero.is_some() { vec![scales] } else { vec![scales, zeros] }
    }

    fn check(&self, _: [usize; 2], _: u32) -> Result<()> {
        Ok(())
    }

    fn decode_row(&self, row: usize, codes: Symbols<'_>, beside: &[&[f32]], out: &mut [f32]) {
        let (scales, zeros, group) = self.row(row, out.len(), beside);
        match codes {
            Symbols::U8(codes) => {
                kernels::decode_affine(codes, 8, 0, scales, zeros, group, out, false);
            }
            Symbols::U16(codes) => {
                let groups = out.chunks_mut(group).zip(codes.chunks(group));
                for ((out, codes), (scale, zero)) in groups.zip(scales.iter().zip(zeros)) {
                    for (out, code) in out.iter_mut().zip(codes) {
                        *out = scale * (f32::from(*code) - zero);
                    }
                }
            }
        }
    }

    fn decode_stored(
        leaf: &Leaf<Self>,
        row: usize,
        beside: &[&[f32]],
        out: &mut [f32],
        add: bool,
        scratch: &mut Scratch,
    ) -> bool {
        stored::decode_row(leaf, row, beside, out, add, scratch)
    }

    fn fused(leaf: &Leaf<Self>, f: &mut dyn FnMut(&dyn Fused)) -> Result<()> {
        stored::fused(leaf, f)
    }

    fn prepacked(leaf: &Leaf<Self>) -> Result<Option<Box<dyn Fused>>> {
        stored::prepacked(leaf)
    }
}

impl GroupedAffine {
    /// A node from unpacked codes (row-major), scales (`[rows, groups]`, or one for the whole matrix) rounded to
    /// `scale_dtype`, and zero points: one a group, or a single one for all. Codes and zero points are bytes up to 8
    /// `bits`, else 16 bits wide.
    ///
    /// # Errors
    /// `ShapeMismatch` if lengths disagree, `InvalidArgument` for codes or zeros that do not fit `bits`.
    pub fn from_codes<S: Symbol>(
        shape: [usize; 2],
        bits: u8,
        group: usize,
        codes: &[S],
        scales: Vec<f32>,
        scale_dtype: DType,
        zeros: &[S],
    ) -> Result<Self> {
        let [rows, cols] = shape;
        if group == 0 {
            return Err(Error::invalid("group = 0: allowed are 1 and more"));
        }
        let per_tensor = scales.len() == 1 && rows * cols.div_ceil(group) != 1;
        let scales: Vec<f32> = scales.into_iter().map(|s| scale_dtype.round(s)).collect();
        let zero = match zeros {
            [zero] if scales.len() != 1 => Some((*zero).into()),
            _ => None,
        };
        let format = AffineFormat::new(group, per_tensor, zero);
        let [grid_rows, groups] = format.grids(shape);
        let mut beside = vec![Child::Floats { dtype: scale_dtype, values: scales }];
        if zero.is_none() {
            let zeros = PackedPlane::pack(zeros, grid_rows, groups, bits)?;
            beside.push(Child::Plane(Box::new(zeros)));
        }
        let codes = PackedPlane::pack(codes, rows, cols, bits)?;
        Self::new(format, shape, Box::new(codes), beside)
    }

    /// A node from unpacked codes (row-major), and scales and real zero points `[rows, groups]`, each rounded to its type.
    ///
    /// # Errors
    /// `ShapeMismatch` if lengths disagree, `InvalidArgument` for codes that do not fit `bits`, `Numerical` for scales or
    /// zero points that are not finite in their types.
    pub fn with_real_zeros(
        shape: [usize; 2],
        bits: u8,
        group: usize,
        codes: &[u8],
        (scales, scale_dtype): (Vec<f32>, DType),
        (zeros, zero_dtype): (&[f32], DType),
    ) -> Result<Self> {
        if group == 0 {
            return Err(Error::invalid("group = 0: allowed are 1 and more"));
        }
        let [rows, cols] = shape;
        let format = AffineFormat { real: true, ..AffineFormat::new(group, false, None) };
        let grids = format.grids(shape);
        let zeros = ArrayView2::from_shape(grids, zeros)
            .map_err(|_| Error::shape(format!("{} zero points for {grids:?}", zeros.len())))?;
        let zeros = Child::Node(Dense::from_f32(zeros, zero_dtype)?.boxed());
        let scales = scales.into_iter().map(|s| scale_dtype.round(s)).collect();
        let scales = Child::Floats { dtype: scale_dtype, values: scales };
        let codes = PackedPlane::pack(codes, rows, cols, bits)?;
        let leaf = Self::new(format, shape, Box::new(codes), vec![scales, zeros])?;
        // What its type cannot hold is said here, not to the first reader.
        leaf.beside().map_err(|e| Error::numerical(e.message()))?;
        Ok(leaf)
    }

    /// Whether zero points are real numbers, which grids of integers cannot hold.
    #[must_use]
    pub fn has_real_zeros(&self) -> bool {
        self.format().real
    }

    /// A node from unpacked codes (row-major) on fitted grids of one family: `[rows, groups]`, or one for the whole
    /// matrix.
    ///
    /// # Errors
    /// As [`GroupedAffine::from_codes`].
    pub fn on_grids(
        family: &IntGrid,
        shape: [usize; 2],
        group: usize,
        codes: &[u8],
        grids: &[Affine],
    ) -> Result<Self> {
        let scales = grids.iter().map(|p| p.scale).collect();
        let zeros: Vec<u8> = if family.symmetric && grids.len() != 1 {
            vec![1 << (family.bits - 1)]
        } else {
            grids.iter().map(|p| p.zero as u8).collect()
        };
        Self::from_codes(shape, family.bits, group, codes, scales, family.scale_dtype, &zeros)
    }

    /// Columns that share a scale.
    #[must_use]
    pub fn group(&self) -> usize {
        self.format().group
    }

    /// Scales, row-major `[rows, groups]` (or a single one).
    #[must_use]
    pub fn scales(&self) -> &[f32] {
        match self.child(SCALES) {
            Child::Floats { values, .. } => values,
            _ => unreachable!("the slot holds floats"),
        }
    }

    /// Zero points in the layout of the scales.
    ///
    /// # Errors
    /// `Corruption` if a coded plane turns out to be invalid.
    pub fn zeros(&self) -> Result<Vec<f32>> {
        Ok(self.format().zeros(&self.beside()?).to_vec())
    }
}
