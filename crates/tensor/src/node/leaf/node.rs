use std::ops::{Deref, Range};
use std::sync::Arc;

use ndarray::{ArrayView2, ArrayViewMut2, s};
use serde_json::json;

use super::child::Held;
use super::{Child, Format, Fused};
use crate::error::{Error, Result};
use crate::node::plane::is_even;
use crate::node::registry::shape_field;
use crate::node::{
    Accum, Input, Json, KeptPlane, Mask, Multiply, Node, NodeReader, Plane, PlaneMap, Scratch,
    SymbolBuf, check_matmul, join, matmul_by_tiles, scratch::with_slice,
};
use crate::storage::{PartKind, PartSink};

/// A matrix of codes in a [`Format`]: all of a node that does not depend on what the codes stand for.
///
/// The codes lie in a plane, so that they can be restricted to a support and entropy-coded.
#[derive(Debug)]
pub struct Leaf<F> {
    format: F,
    shape: [usize; 2],
    codes: Box<dyn Plane>,
    beside: Vec<Held>,
    /// The product made by [`Node::prepack`]. The codes stay: where they were read from a file they are mapped pages
    /// that the system can drop.
    fast: Option<Box<dyn Fused>>,
}

/// Slots that a format can have.
const SLOTS: usize = 8;

/// The values of a leaf's slots, in their order.
#[derive(Debug, Clone, Copy)]
pub struct Beside<'a> {
    values: [&'a [f32]; SLOTS],
    slots: usize,
}

impl<'a> Deref for Beside<'a> {
    type Target = [&'a [f32]];

    fn deref(&self) -> &Self::Target {
        &self.values[..self.slots]
    }
}

impl<F: Format> Leaf<F> {
    /// A leaf of codes and what lies in the format's slots.
    ///
    /// # Errors
    /// `ShapeMismatch` if something does not fill the matrix, `InvalidArgument` for codes that the format does not
    /// know, `Numerical` for floats that are not finite.
    pub fn new(
        format: F,
        shape: [usize; 2],
        codes: Box<dyn Plane>,
        beside: Vec<Child>,
    ) -> Result<Self> {
        let slots = format.slots(shape);
        assert!(slots.len() <= SLOTS, "{} has more than {SLOTS} slots", F::ID);
        if slots.len() != beside.len() {
            let (got, wanted) = (beside.len(), slots.len());
            return Err(Error::shape(format!("{got} children of a {}, not {wanted}", F::ID)));
        }
        let beside = slots.into_iter().zip(beside).map(|(slot, child)| Held::new(slot, child));
        Self { beside: beside.collect::<Result<_>>()?, format, shape, codes, fast: None }.check()
    }

    fn check(self) -> Result<Self> {
        let [rows, cols] = self.shape;
        if !is_even(&*self.codes, rows.div_ceil(F::BAND), self.format.codes(cols)) {
            return Err(Error::shape(format!("codes do not fill {rows} x {cols}")));
        }
        self.format.check(self.shape, self.codes.alphabet())?;
        Ok(self)
    }

    /// Reads a leaf of this format: what the registry holds for [`Format::ID`].
    ///
    /// # Errors
    /// `Corruption` or `InsufficientData` for descriptions and parts that contradict each other.
    pub fn read_from(reader: &NodeReader<'_>, json: &Json, prefix: &str) -> Result<Box<dyn Node>> {
        let (shape, format) = (shape_field(json)?, F::read_from(json)?);
        let codes = reader.plane(json, "codes", &join(prefix, "codes"))?;
        let unmasked = reader.unmasked();
        let slots = format.slots(shape).into_iter();
        let beside = slots.map(|slot| Held::read_from(slot, &unmasked, json, prefix));
        let leaf =
            Self { beside: beside.collect::<Result<_>>()?, format, shape, codes, fast: None };
        Ok(Box::new(leaf.check().map_err(|e| Error::corruption(e.message()))?))
    }

    /// The format's parameters.
    #[must_use]
    pub fn format(&self) -> &F {
        &self.format
    }

    /// The codes.
    #[must_use]
    pub fn codes(&self) -> &dyn Plane {
        &*self.codes
    }

    /// The values of the format's slots, in their order; read by the first use.
    ///
    /// # Errors
    /// `Corruption` if something stored turns out to be invalid.
    pub fn beside(&self) -> Result<Beside<'_>> {
        let mut beside = Beside { values: [&[]; SLOTS], slots: self.beside.len() };
        for (values, held) in beside.values.iter_mut().zip(&self.beside) {
            *values = held.values()?;
        }
        Ok(beside)
    }

    /// Calls `f` with the fastest product over a stored form there is, if there is one.
    fn with_fused(&self, f: &mut dyn FnMut(&dyn Fused)) -> Result<()> {
        match &self.fast {
            Some(fast) => f(&**fast),
            None => F::fused(self, f)?,
        }
        Ok(())
    }

    /// As [`Node::decode_rows`], of rows that share codes.
    fn decode_bands(
        &self,
        rows: Range<usize>,
        mut out: ArrayViewMut2<'_, f32>,
        accum: Accum,
        scratch: &mut Scratch,
    ) -> Result<()> {
        let (cols, beside) = (self.shape[1], self.beside()?);
        if let (Accum::Replace, Some(out)) = (accum, out.as_slice_mut())
            && self.decode_part(rows.clone(), 0..cols, out)?
        {
            return Ok(());
        }
        let mut symbols = SymbolBuf::of(&*self.codes);
        let mut buffer = scratch.take(F::BAND * cols);
        for band in rows.start / F::BAND..rows.end.div_ceil(F::BAND) {
            let first = band * F::BAND;
            let here = rows.start.max(first)..rows.end.min(first + F::BAND);
            let skip = (here.start - first) * cols;
            let values = skip..skip + here.len() * cols;
            if !self.decode_part(here.clone(), 0..cols, &mut buffer[values.clone()])? {
                let codes = symbols.read(&*self.codes, band..band + 1)?;
                self.format.decode_row(band, codes, &beside, &mut buffer);
            }
            let decoded = ArrayView2::from_shape((here.len(), cols), &buffer[values]);
            let decoded = decoded.expect("rows of a band");
            let mut out = out.slice_mut(s![here.start - rows.start..here.end - rows.start, ..]);
            match accum {
                Accum::Replace => out.assign(&decoded),
                Accum::Add => out += &decoded,
            }
        }
        scratch.put(buffer);
        Ok(())
    }

    /// What lies in a slot.
    ///
    /// # Panics
    /// If there is no such slot.
    #[must_use]
    pub fn child(&self, slot: usize) -> &Child {
        &self.beside[slot].child
    }
}

impl<F: Format> Node for Leaf<F> {
    fn shape(&self) -> [usize; 2] {
        self.shape
    }

    fn decode_rows(
        &self,
        rows: Range<usize>,
        mut out: ArrayViewMut2<'_, f32>,
        accum: Accum,
        scratch: &mut Scratch,
    ) -> Result<()> {
        let cols = self.shape[1];
        assert_eq!(out.dim(), (rows.len(), cols), "output shape");
        if F::BAND > 1 {
            return self.decode_bands(rows, out, accum, scratch);
        }
        let add = accum == Accum::Add;
        let beside = self.beside()?;
        let mask = self.codes.as_kept().map(KeptPlane::mask);
        let mut symbols = SymbolBuf::of(&*self.codes);
        let mut buffer = scratch.take(cols);
        let mut read = 0..0;
        for (i, row) in rows.clone().enumerate() {
            let mut out = out.row_mut(i);
            if let Some(out) = out.as_slice_mut()
                && F::decode_stored(self, row, &beside, out, add, scratch)
            {
                continue;
            }
            if read.is_empty() {
                // All rows at once: coded planes decode in tiles.
                read = row..rows.end;
                symbols.read(&*self.codes, read.clone())?;
            }
            let width = self.format.codes(cols);
            let at = (row - read.start) * width;
            let codes = symbols.lend().slice(at..at + width);
            if let (None, false, Some(out)) = (mask, add, out.as_slice_mut()) {
                self.format.decode_row(row, codes, &beside, out);
                continue;
            }
            self.format.decode_row(row, codes, &beside, &mut buffer);
            if !add {
                out.fill(0.0);
            }
            let mut put = |c: usize| out[c] = if add { out[c] + buffer[c] } else { buffer[c] };
            match mask {
                Some(mask) => mask.for_each_kept(row, put),
                None => (0..cols).for_each(&mut put),
            }
        }
        scratch.put(buffer);
        Ok(())
    }

    fn matmul_rows(
        &self,
        rows: Range<usize>,
        x: &Input<'_>,
        mut y: ArrayViewMut2<'_, f32>,
        accum: Accum,
        scratch: &mut Scratch,
    ) -> Result<()> {
        check_matmul(self.shape, &rows, x, &y);
        let mut done = false;
        self.with_fused(&mut |fused| {
            if x.tokens() <= fused.most_tokens() {
                with_slice(y.view_mut(), accum, scratch, |y, add, scratch| {
                    fused.matmul(rows.clone(), x, y, add, scratch);
                });
                done = true;
            }
        })?;
        if done { Ok(()) } else { matmul_by_tiles(self, rows, x, y, accum, scratch) }
    }

    fn multiply(&self) -> Multiply {
        let mut multiply = Multiply::Decode;
        // What cannot be read says so when it is multiplied.
        let _ = self.with_fused(&mut |_| multiply = Multiply::Fused);
        multiply
    }

    fn decode_part(
        &self,
        rows: Range<usize>,
        columns: Range<usize>,
        out: &mut [f32],
    ) -> Result<bool> {
        let mut done = false;
        F::fused(self, &mut |stored| {
            done = stored.decode_part(rows.clone(), columns.clone(), out);
        })?;
        Ok(done)
    }

    fn zero_outside(&self) -> bool {
        self.codes.as_kept().is_some()
    }

    fn describe(&self) -> Json {
        let mut json = json!({"node": F::ID, "shape": self.shape, "codes": self.codes.describe()});
        self.format.describe(&mut json);
        for held in &self.beside {
            if let Some(described) = held.describe() {
                json[held.slot.name] = described;
            }
        }
        json
    }

    fn parts(&self, prefix: &str, sink: &mut dyn PartSink) -> Result<()> {
        self.codes.parts(&join(prefix, "codes"), PartKind::Codes, sink)?;
        self.beside.iter().try_for_each(|held| held.parts(prefix, sink))
    }

    fn map_planes(mut self: Box<Self>, f: &mut PlaneMap<'_>) -> Result<Box<dyn Node>> {
        self.codes = self.codes.map_inner(f)?;
        let beside = self.beside.into_iter().map(|held| held.map_planes(f));
        self.beside = beside.collect::<Result<_>>()?;
        self.fast = None;
        Ok(self)
    }

    fn keep(mut self: Box<Self>, mask: &Arc<Mask>) -> Result<Box<dyn Node>> {
        if F::BAND > 1 || self.format.codes(self.shape[1]) != self.shape[1] {
            return Err(Error::unsupported(format!("a mask over a {}", F::ID)));
        }
        self.codes = Box::new(KeptPlane::restrict(&*self.codes, mask)?);
        self.fast = None;
        Ok(self)
    }

    fn prepack(mut self: Box<Self>) -> Result<Box<dyn Node>> {
        if self.fast.is_none() {
            self.fast = F::prepacked(&self)?;
        }
        Ok(self)
    }
}
