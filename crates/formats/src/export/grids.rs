//! Integers on grids out of a node: what GPTQ, AWQ, compressed-tensors and several types of ggml can hold.

use tensorpress_tensor::ndarray::Array2;
use tensorpress_tensor::node::{
    Child, GroupedAffine, Index, Map, Side, SymbolBuf, Symbols, Transformed, as_node,
};
use tensorpress_tensor::{DType, Error, Node, Result};

use crate::ggml::{GgmlBlocks, Type};

/// Integer codes on grids of scales and zero points: `w = scale * (code - zero)`.
#[derive(Debug, Clone, PartialEq)]
pub struct Grids {
    /// Bits that hold every code.
    pub bits: u8,
    /// Codes, `[out, in]`.
    pub codes: Array2<u8>,
    /// Scales, `[out, groups]`.
    pub scales: Array2<f32>,
    /// What scales are stored as.
    pub dtype: DType,
    /// Zero points, `[out, groups]`.
    pub zeros: Array2<u16>,
    /// Inputs of a group.
    pub group: usize,
    /// The group of each input, where groups are no runs.
    pub group_of: Option<Vec<u32>>,
}

/// Bits of an alphabet.
fn bits_of(alphabet: u32) -> u8 {
    (alphabet.max(2) - 1).ilog2() as u8 + 1
}

/// What is known of [`Grids`] before any code is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Survey {
    /// Bits that hold every code.
    pub bits: u8,
    /// Inputs of a group.
    pub group: usize,
    /// The one zero point of all groups, if it is one.
    pub zero: Option<u16>,
    /// Groups are no runs of inputs.
    pub ordered: bool,
}

impl Survey {
    /// As [`Grids::of`], without reading codes.
    ///
    /// # Errors
    /// As there.
    pub fn of(node: &dyn Node) -> Result<Option<Self>> {
        if let Some(affine) = as_node::<GroupedAffine>(node) {
            let plane = affine.codes();
            if plane.alphabet() > 256 || plane.as_kept().is_some() || affine.has_real_zeros() {
                return Ok(None);
            }
            let zeros = affine.zeros()?;
            let first = zeros.first().copied().unwrap_or(0.0);
            let zero = zeros.iter().all(|zero| *zero == first).then_some(first as u16);
            let group = affine.group().min(affine.shape()[1].max(1));
            return Ok(Some(Self { bits: bits_of(plane.alphabet()), group, zero, ordered: false }));
        }
        if let Some(blocks) = as_node::<GgmlBlocks>(node) {
            let of = |(bits, zero)| {
                let group = blocks.format().ty().block_len();
                Self { bits, group, zero: Some(zero), ordered: false }
            };
            return Ok(on_grid(blocks.format().ty()).map(of));
        }
        let Some(moved) = as_node::<Transformed>(node) else { return Ok(None) };
        let map: &dyn std::any::Any = moved.map();
        if moved.side() != Side::In || !map.is::<Index>() {
            return Ok(None);
        }
        let inner = Self::of(moved.inner())?.filter(|inner| !inner.ordered);
        Ok(inner.map(|inner| Self { ordered: true, ..inner }))
    }
}

/// Bits and the code of zero of the types of ggml that are integers on grids about a code.
fn on_grid(ty: Type) -> Option<(u8, u16)> {
    match ty {
        Type::Q4_0 => Some((4, 8)),
        Type::Q5_0 => Some((5, 16)),
        Type::Q8_0 => Some((8, 128)),
        _ => None,
    }
}

impl Grids {
    /// What a node holds, if it is integers of at most 8 bits on grids, their inputs perhaps in another order: one of
    /// tensorpress, or of ggml's types Q4_0, Q5_0 and Q8_0, whose zero is a code.
    ///
    /// # Errors
    /// As [`Plane::read`](tensorpress_tensor::node::Plane::read); `Numerical` for blocks whose scale is not finite.
    pub fn of(node: &dyn Node) -> Result<Option<Self>> {
        if let Some(affine) = as_node::<GroupedAffine>(node) {
            return Self::of_affine(affine);
        }
        if let Some(blocks) = as_node::<GgmlBlocks>(node) {
            return Self::of_blocks(blocks);
        }
        let Some(moved) = as_node::<Transformed>(node) else { return Ok(None) };
        let map: &dyn std::any::Any = moved.map();
        let (Side::In, Some(index)) = (moved.side(), map.downcast_ref::<Index>()) else {
            return Ok(None);
        };
        let permuted = index.inner() == index.outer();
        let Some(inner) =
            Self::of(moved.inner())?.filter(|grids| permuted && grids.group_of.is_none())
        else {
            return Ok(None);
        };
        let mut group_of = vec![0; index.outer()];
        let mut codes = Array2::zeros(inner.codes.dim());
        for (from, to) in index.index().iter().enumerate() {
            group_of[*to as usize] = (from / inner.group) as u32;
            codes.column_mut(*to as usize).assign(&inner.codes.column(from));
        }
        Ok(Some(Self { codes, group_of: Some(group_of), ..inner }))
    }

    fn of_affine(affine: &GroupedAffine) -> Result<Option<Self>> {
        let [rows, cols] = affine.shape();
        let plane = affine.codes();
        if plane.alphabet() > 256 || plane.as_kept().is_some() || affine.has_real_zeros() {
            return Ok(None);
        }
        let mut symbols = SymbolBuf::of(plane);
        let Symbols::U8(codes) = symbols.read(plane, 0..rows)? else { return Ok(None) };
        let codes = Array2::from_shape_vec((rows, cols), codes.to_vec()).expect("even rows");
        let (scales, zeros) = (affine.scales(), affine.zeros()?);
        let groups = cols.div_ceil(affine.group().max(1));
        let whole = scales.len() == 1 && rows * groups != 1;
        let at = |row: usize, group: usize| if whole { 0 } else { row * groups + group };
        let dtype = match affine.child(0) {
            Child::Floats { dtype, .. } => *dtype,
            _ => DType::F32,
        };
        Ok(Some(Self {
            bits: bits_of(plane.alphabet()),
            codes,
            scales: Array2::from_shape_fn((rows, groups), |(r, g)| scales[at(r, g)]),
            zeros: Array2::from_shape_fn((rows, groups), |(r, g)| zeros[at(r, g)] as u16),
            dtype,
            group: affine.group().min(cols.max(1)),
            group_of: None,
        }))
    }

    fn of_blocks(blocks: &GgmlBlocks) -> Result<Option<Self>> {
        let Some((bits, zero)) = on_grid(blocks.format().ty()) else { return Ok(None) };
        let ty = blocks.format().ty();
        let [rows, cols] = blocks.shape();
        let groups = cols / ty.block_len();
        let mut codes = Array2::zeros((rows, cols));
        let mut scales = Array2::zeros((rows, groups));
        let mut symbols = SymbolBuf::of(blocks.codes());
        let mut values = vec![0.0; ty.block_len()];
        for row in 0..rows {
            let Symbols::U8(bytes) = symbols.read(blocks.codes(), row..row + 1)? else {
                return Ok(None);
            };
            for (group, block) in bytes.chunks_exact(ty.block_bytes()).enumerate() {
                let mut unit = block.to_vec();
                // With a scale of 1 values are codes.
                unit[..2].copy_from_slice(&0x3c00u16.to_le_bytes());
                crate::ggml::decode(ty, &unit, &mut values)?;
                let mut scale = [0.0];
                DType::F16.read_f32(&block[..2], &mut scale)?;
                if !scale[0].is_finite() {
                    return Err(Error::numerical(format!("scale {} in row {row}", scale[0])));
                }
                scales[[row, group]] = scale[0];
                for (i, value) in values.iter().enumerate() {
                    codes[[row, group * ty.block_len() + i]] =
                        (value + f32::from(zero as u8)) as u8;
                }
            }
        }
        let zeros = Array2::from_elem((rows, groups), zero);
        let group = ty.block_len();
        Ok(Some(Self { bits, codes, scales, dtype: DType::F16, zeros, group, group_of: None }))
    }

    /// The one zero point of all groups, if it is one.
    #[must_use]
    pub fn zero(&self) -> Option<u16> {
        let first = *self.zeros.first()?;
        self.zeros.iter().all(|zero| *zero == first).then_some(first)
    }

    /// The same in groups of `group` inputs, which divides those there are: scales and zeros are said more often.
    #[must_use]
    pub fn in_groups(&self, group: usize) -> Option<Self> {
        if group == self.group {
            return Some(self.clone());
        }
        let cols = self.codes.ncols();
        let fits = group > 0
            && self.group.is_multiple_of(group)
            && cols.is_multiple_of(group)
            && self.group_of.is_none();
        let shape = (self.codes.nrows(), cols / group.max(1));
        fits.then(|| Self {
            scales: Array2::from_shape_fn(shape, |(r, g)| self.scales[[r, g * group / self.group]]),
            zeros: Array2::from_shape_fn(shape, |(r, g)| self.zeros[[r, g * group / self.group]]),
            group,
            ..self.clone()
        })
    }

    /// Scales as a format of this type holds them, if it does exactly.
    #[must_use]
    pub fn exact_in(&self, dtype: DType) -> bool {
        self.scales.iter().all(|scale| dtype.round(*scale) == *scale)
    }
}
