mod panels;

use std::borrow::Cow;
use std::ops::Range;
use std::sync::{Arc, OnceLock};

use serde_json::json;
use tensorpress_tensor::grid::{Affine, IntGrid};
use tensorpress_tensor::kernels::{AffineRows, KeptAffine};
use tensorpress_tensor::ndarray::{ArrayView2, ArrayViewMut2};
use tensorpress_tensor::node::registry::{field, shape_field};
use tensorpress_tensor::node::{
    FUSED_TOKENS, Json, Kept, Mask, Multiply, NodeReader, Packed, Plane, PlaneMap, check_matmul,
    join, matmul_by_tiles, with_slices,
};
use tensorpress_tensor::{
    Accum, DType, Error, Node, Part, PartKind, PartSink, Result, Scratch, Tensor, kernels,
};

/// Zero points of a [`GroupedAffine`].
#[derive(Debug)]
pub enum Zeros {
    /// One code for all groups: symmetric grids.
    Fixed(u8),
    /// A plane of one code a group.
    PerGroup(Box<dyn Plane>),
}

/// Integer codes with a scale and zero point for each group of consecutive inputs of a row:
/// `w[r, c] = scale[r, c / group] * (code[r, c] - zero[r, c / group])`.
#[derive(Debug)]
pub struct GroupedAffine {
    shape: [usize; 2],
    group: usize,
    /// One scale and zero for the whole matrix.
    per_tensor: bool,
    codes: Box<dyn Plane>,
    /// Row-major `[rows, groups]`, or a single one; values that `scale_dtype` represents.
    scales: Vec<f32>,
    scale_dtype: DType,
    zeros: Zeros,
    /// `zeros` as the kernels want them, filled by the first use.
    zero_values: OnceLock<Vec<f32>>,
}

impl GroupedAffine {
    /// A node from unpacked codes (row-major), scales (`[rows, groups]`, or one for the whole matrix) rounded to
    /// `scale_dtype`, and zero points: one a group, or a single one for all.
    ///
    /// # Errors
    /// `ShapeMismatch` if lengths disagree, `InvalidArgument` for codes or zeros that do not fit `bits`.
    pub fn new(
        shape: [usize; 2],
        bits: u8,
        group: usize,
        codes: &[u8],
        scales: Vec<f32>,
        scale_dtype: DType,
        zeros: &[u8],
    ) -> Result<Self> {
        let [rows, cols] = shape;
        if group == 0 {
            return Err(Error::invalid("group = 0: allowed are 1 and more"));
        }
        let groups = cols.div_ceil(group);
        let per_tensor = scales.len() == 1 && rows * groups != 1;
        let per_row = if per_tensor { [1, 1] } else { [rows, groups] };
        let zeros = match zeros {
            [zero] if scales.len() != 1 => Zeros::Fixed(*zero),
            zeros => Zeros::PerGroup(Box::new(Packed::pack(zeros, per_row[0], per_row[1], bits)?)),
        };
        let codes = Box::new(Packed::pack(codes, rows, cols, bits)?);
        let scales = scales.into_iter().map(|s| scale_dtype.round(s)).collect();
        let zero_values = OnceLock::new();
        Self { shape, group, per_tensor, codes, scales, scale_dtype, zeros, zero_values }.check()
    }

    /// A node from unpacked codes (row-major) on fitted grids of one family: `[rows, groups]`, or one for the whole
    /// matrix.
    ///
    /// # Errors
    /// As [`GroupedAffine::new`].
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
        Self::new(shape, family.bits, group, codes, scales, family.scale_dtype, &zeros)
    }

    fn check(self) -> Result<Self> {
        let [rows, cols] = self.shape;
        let [scale_rows, groups] = self.scale_shape();
        if self.scales.len() != scale_rows * groups {
            return Err(Error::shape(format!(
                "{} scales for {scale_rows} x {groups} groups",
                self.scales.len()
            )));
        }
        if self.codes.rows() != rows || self.codes.len(0..rows) != rows * cols {
            return Err(Error::shape(format!("codes do not fill {rows} x {cols}")));
        }
        if self.codes.alphabet() > 256 {
            return Err(Error::unsupported("codes of more than 8 bits"));
        }
        if let Zeros::PerGroup(zeros) = &self.zeros
            && (zeros.rows() != scale_rows || zeros.len(0..scale_rows) != scale_rows * groups)
        {
            return Err(Error::shape(format!("zeros do not fill {scale_rows} x {groups}")));
        }
        if let Some(i) = self.scales.iter().position(|s| !s.is_finite()) {
            return Err(Error::numerical(format!("scale {i} is {}", self.scales[i])));
        }
        Ok(self)
    }

    fn scale_shape(&self) -> [usize; 2] {
        if self.per_tensor { [1, 1] } else { [self.shape[0], self.shape[1].div_ceil(self.group)] }
    }

    /// Columns that share a scale.
    #[must_use]
    pub fn group(&self) -> usize {
        self.group
    }

    /// The codes.
    #[must_use]
    pub fn codes(&self) -> &dyn Plane {
        &*self.codes
    }

    /// Scales, row-major `[rows, groups]` (or a single one).
    #[must_use]
    pub fn scales(&self) -> &[f32] {
        &self.scales
    }

    /// Zero points in the layout of the scales.
    ///
    /// # Errors
    /// `Corruption` if a coded plane turns out to be invalid.
    pub fn zeros(&self) -> Result<Vec<f32>> {
        let [rows, groups] = self.scale_shape();
        match &self.zeros {
            Zeros::Fixed(zero) => Ok(vec![f32::from(*zero); rows * groups]),
            Zeros::PerGroup(plane) => {
                let mut codes = vec![0u16; rows * groups];
                plane.read(0..rows, &mut codes)?;
                Ok(codes.into_iter().map(f32::from).collect())
            }
        }
    }

    /// Scales and zeros of some rows, with the group size they apply to.
    fn params(&self, rows: Range<usize>) -> Result<(&[f32], &[f32], usize)> {
        let zeros = self.zero_values()?;
        if self.per_tensor {
            return Ok((&self.scales, zeros, usize::MAX));
        }
        let groups = self.scale_shape()[1];
        let range = rows.start * groups..rows.end * groups;
        Ok((&self.scales[range.clone()], &zeros[range], self.group))
    }

    /// All zero points, read once.
    fn zero_values(&self) -> Result<&[f32]> {
        if self.zero_values.get().is_none() {
            let _ = self.zero_values.set(self.zeros()?);
        }
        Ok(self.zero_values.get().expect("set above"))
    }

    pub(crate) fn read_from(
        reader: &NodeReader<'_>,
        json: &Json,
        prefix: &str,
    ) -> Result<Box<dyn Node>> {
        let shape = shape_field(json)?;
        let group = field::<usize>(json, "group")?;
        if group == 0 {
            return Err(Error::corruption("group of 0 columns"));
        }
        let codes = reader.plane(json, "codes", &join(prefix, "codes"))?;
        let scales = reader.part(&join(prefix, "scales"))?;
        if !scales.dtype().is_float() {
            return Err(Error::corruption(format!("scales of type {:?}", scales.dtype())));
        }
        let zeros = match json.get("zero").and_then(Json::as_u64) {
            Some(zero) => Zeros::Fixed(
                u8::try_from(zero).map_err(|_| Error::corruption(format!("zero point {zero}")))?,
            ),
            None => Zeros::PerGroup(reader.plane(json, "zeros", &join(prefix, "zeros"))?),
        };
        let node = Self {
            shape,
            group,
            per_tensor: json.get("per_tensor").and_then(Json::as_bool).unwrap_or(false),
            codes,
            scale_dtype: scales.dtype(),
            scales: scales.to_matrix()?.into_raw_vec_and_offset().0,
            zeros,
            zero_values: OnceLock::new(),
        };
        Ok(Box::new(node.check().map_err(|e| Error::corruption(e.message()))?))
    }

    /// The matrix as the fused kernels take it, where its codes are packed and its groups lie along rows.
    fn affine_rows(&self) -> Result<Option<AffineRows<'_>>> {
        match self.codes.as_packed() {
            Some(packed) => self.affine_rows_of(packed, &self.scales),
            None => Ok(None),
        }
    }

    /// The same with the codes in `packed`, and other scales.
    fn affine_rows_of<'a>(
        &'a self,
        packed: &'a Packed,
        scales: &'a [f32],
    ) -> Result<Option<AffineRows<'a>>> {
        let Some(bytes) = packed.bytes().filter(|_| !self.per_tensor) else { return Ok(None) };
        Ok(Some(AffineRows {
            packed: bytes,
            bits: u32::from(packed.bits()),
            rows: self.shape[0],
            cols: self.shape[1],
            group: self.group,
            scales,
            zeros: self.zero_values()?,
        }))
    }

    /// The matrix as the fused kernels take it, where its codes are those of a support, packed.
    fn kept_affine(&self) -> Result<Option<KeptAffine<'_>>> {
        let Some(kept) = self.codes.as_kept().filter(|_| !self.per_tensor) else { return Ok(None) };
        let fits = KeptAffine::fits(self.group, self.shape[1]);
        let Some((packed, bits)) = kept.packed().filter(|_| fits) else { return Ok(None) };
        Ok(Some(KeptAffine {
            support: kept.mask().support(),
            packed,
            bits,
            group: self.group,
            scales: &self.scales,
            zeros: self.zero_values()?,
        }))
    }

    /// Codes that are coded, in the form that kernels know: they decode in tiles, so all rows at once.
    fn repacked(&self, rows: Range<usize>) -> Result<Option<Packed>> {
        if self.codes.as_packed().is_some() || self.codes.as_kept().is_some() {
            return Ok(None);
        }
        Packed::repack(&*self.codes, rows).map(Some)
    }

    /// The codes of kept entries among all, where those of the others are the zero point of their group; and scales, 0
    /// for groups that are all 0, so that their products are too.
    fn filled(&self) -> Result<Option<(Packed, Vec<f32>)>> {
        let Some(kept) = self.codes.as_kept().filter(|_| !self.per_tensor) else { return Ok(None) };
        let bits = (self.codes.alphabet().max(2) - 1).ilog2() as u8 + 1;
        let zeros = self.zero_values()?;
        if zeros.iter().any(|zero| *zero >= f32::from(1u16 << bits)) {
            return Ok(None);
        }
        let [rows, cols] = self.shape;
        let groups = self.scale_shape()[1];
        let mut codes = vec![0u8; rows * cols];
        let mut scales = self.scales.clone();
        let band = ((1 << 17) / cols.max(1)).max(1);
        let mut read = Vec::new();
        for first in (0..rows).step_by(band) {
            let range = first..(first + band).min(rows);
            read.resize(range.len() * cols, 0u16);
            self.codes.read(range.clone(), &mut read)?;
            for (row, read) in range.zip(read.chunks_exact(cols.max(1))) {
                let codes = &mut codes[row * cols..(row + 1) * cols];
                let grids = row * groups..(row + 1) * groups;
                for (codes, zero) in codes.chunks_mut(self.group).zip(&zeros[grids.clone()]) {
                    codes.fill(*zero as u8);
                }
                kept.mask().for_each_kept(row, |c| codes[c] = read[c] as u8);
                for (codes, grid) in codes.chunks(self.group).zip(grids) {
                    if codes.iter().all(|code| f32::from(*code) == zeros[grid]) {
                        scales[grid] = 0.0;
                    }
                }
            }
        }
        Ok(Some((Packed::pack(&codes, rows, cols, bits)?, scales)))
    }

    /// Hands over the codes of one row, read one by one if they are not at hand.
    fn decode_plane_row(
        &self,
        row: usize,
        codes: Option<&[u16]>,
        mut write: impl FnMut(usize, u16),
    ) -> Result<()> {
        let mut read = Vec::new();
        let codes = match codes {
            Some(codes) => codes,
            None => {
                read.resize(self.shape[1], 0u16);
                self.codes.read(row..row + 1, &mut read)?;
                &read
            }
        };
        codes.iter().enumerate().for_each(|(c, code)| write(c, *code));
        Ok(())
    }
}

impl Node for GroupedAffine {
    fn shape(&self) -> [usize; 2] {
        self.shape
    }

    fn decode_rows(
        &self,
        rows: Range<usize>,
        mut out: ArrayViewMut2<'_, f32>,
        accum: Accum,
        _: &mut Scratch,
    ) -> Result<()> {
        let cols = self.shape[1];
        assert_eq!(out.dim(), (rows.len(), cols), "output shape");
        let (scales, zeros, group) = self.params(rows.clone())?;
        let groups = if group == usize::MAX { 0 } else { self.scale_shape()[1] };
        let row_groups = self.scale_shape()[1];
        let repacked = self.repacked(rows.clone())?;
        let kept = self.kept_affine()?;
        let first = rows.start;
        let mut codes = Vec::new();
        if kept.is_none() && self.codes.as_kept().is_some() {
            // All rows at once: coded planes decode in tiles.
            codes.resize(rows.len() * cols, 0u16);
            self.codes.read(rows.clone(), &mut codes)?;
        }
        for (i, row) in rows.enumerate() {
            let at = i * groups..i * groups + row_groups;
            let (scales, zeros) = (&scales[at.clone()], &zeros[at]);
            let mut target = out.row_mut(i);
            if let (Some(kept), Some(target)) = (&kept, target.as_slice_mut()) {
                kernels::kept_affine_decode(kept, row, target, accum == Accum::Add);
                continue;
            }
            let stored = self.codes.as_packed().map(|p| (p, row));
            let stored = stored.or_else(|| repacked.as_ref().map(|p| (p, row - first)));
            let packed = stored.and_then(|(p, row)| Some((p.row_bytes(row)?, p.bits())));
            match (packed, target.as_slice_mut()) {
                (Some((bytes, bits)), Some(target)) => kernels::decode_affine(
                    bytes,
                    u32::from(bits),
                    0,
                    scales,
                    zeros,
                    group.min(cols.max(1)),
                    target,
                    accum == Accum::Add,
                ),
                _ => {
                    self.decode_plane_row(row, codes.get(i * cols..(i + 1) * cols), |c, code| {
                        let g = if group == usize::MAX { 0 } else { c / group };
                        let kept =
                            self.codes.as_kept().is_none_or(|kept| kept.mask().keeps(row, c));
                        let value =
                            if kept { scales[g] * (f32::from(code) - zeros[g]) } else { 0.0 };
                        if accum == Accum::Add {
                            target[c] += value;
                        } else {
                            target[c] = value;
                        }
                    })?
                }
            }
        }
        Ok(())
    }

    fn matmul(
        &self,
        x: ArrayView2<'_, f32>,
        y: ArrayViewMut2<'_, f32>,
        accum: Accum,
        scratch: &mut Scratch,
    ) -> Result<()> {
        check_matmul(self.shape, &x, &y);
        if x.nrows() <= FUSED_TOKENS {
            let (add, par) = (accum == Accum::Add, scratch.par());
            if let Some(rows) = self.affine_rows()? {
                with_slices(x, y, |x, y, t| kernels::affine_matmul(&rows, x, t, y, add, par));
                return Ok(());
            }
            if let Some(kept) = self.kept_affine()? {
                with_slices(x, y, |x, y, t| kernels::kept_affine_matmul(&kept, x, t, y, add, par));
                return Ok(());
            }
        }
        matmul_by_tiles(self, x, y, accum, scratch)
    }

    fn multiply(&self) -> Multiply {
        match (self.affine_rows(), self.kept_affine()) {
            (Ok(Some(_)), _) | (_, Ok(Some(_))) => Multiply::Fused,
            _ => Multiply::Decode,
        }
    }

    fn zero_outside(&self) -> bool {
        self.codes.as_kept().is_some()
    }

    fn describe(&self) -> Json {
        let mut json = json!({
            "node": "grouped_affine.v1",
            "shape": self.shape,
            "group": self.group,
            "codes": self.codes.describe(),
        });
        if self.per_tensor {
            json["per_tensor"] = true.into();
        }
        match &self.zeros {
            Zeros::Fixed(zero) => json["zero"] = (*zero).into(),
            Zeros::PerGroup(plane) => json["zeros"] = plane.describe(),
        }
        json
    }

    fn parts(&self, prefix: &str, sink: &mut dyn PartSink) -> Result<()> {
        self.codes.parts(&join(prefix, "codes"), PartKind::Codes, sink)?;
        let mut bytes = Vec::new();
        self.scale_dtype.write_f32(&self.scales, &mut bytes)?;
        sink.part(Part {
            name: join(prefix, "scales"),
            kind: PartKind::Scales,
            dtype: self.scale_dtype,
            shape: self.scale_shape().to_vec(),
            bytes: Cow::Owned(bytes),
        })?;
        match &self.zeros {
            Zeros::Fixed(_) => Ok(()),
            Zeros::PerGroup(plane) => plane.parts(&join(prefix, "zeros"), PartKind::Zeros, sink),
        }
    }

    fn map_planes(mut self: Box<Self>, f: &mut PlaneMap<'_>) -> Result<Box<dyn Node>> {
        self.codes = self.codes.map_inner(f)?;
        if let Zeros::PerGroup(plane) = self.zeros {
            self.zeros = Zeros::PerGroup(plane.map_inner(f)?);
        }
        Ok(self)
    }

    fn keep(mut self: Box<Self>, mask: &Arc<Mask>) -> Result<Box<dyn Node>> {
        self.codes = Box::new(Kept::restrict(&*self.codes, mask)?);
        Ok(self)
    }

    fn prepack(self: Box<Self>) -> Result<Box<dyn Node>> {
        panels::PanelAffine::prepack(*self)
    }
}
