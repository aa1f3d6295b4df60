use std::ops::Range;
use std::sync::Arc;

use ndarray::{ArrayView2, ArrayView5, ArrayViewMut2, ArrayViewMut5, s};
use serde_json::json;

use super::registry::field;
use super::{
    Accum, Input, Json, Mask, Multiply, Node, NodeReader, PlaneMap, Scratch, check_matmul, join,
    matmul_by_tiles,
};
use crate::error::{Error, Result};
use crate::storage::PartSink;

/// A matrix product operator: outputs are numbered by legs (i₁, ..., iₙ), inputs by legs (j₁, ..., jₙ), the last leg
/// fastest, and W\[i, j\] = Σ C₁\[i₁ a₁, j₁\] C₂\[i₂ a₂, a₁ j₂\] ... Cₙ\[iₙ, aₙ₋₁ jₙ\] over the bonds a.
///
/// Core k is a node `[i_k a_k, a_(k-1) j_k]` of any kind; the first and the last bond have size 1. Two cores are a sum of
/// a₁ Kronecker products; one core is the matrix itself. A product contracts one core after the other with the inputs, and
/// never expands W.
///
/// ```
/// use tensorpress_tensor::ndarray::array;
/// use tensorpress_tensor::node::{Dense, TensorTrain, decode};
/// use tensorpress_tensor::{DType, Node};
///
/// let core = |m: tensorpress_tensor::ndarray::Array2<f32>| Dense::from(m).boxed();
/// let (a, b) = (core(array![[1.0, 2.0]]), core(array![[1.0], [10.0]]));
/// let kronecker = TensorTrain::new(vec![[1, 2], [2, 1]], vec![a, b])?;
/// assert_eq!(decode(&kronecker)?, array![[1.0, 2.0], [10.0, 20.0]]);
/// # Ok::<(), tensorpress_tensor::Error>(())
/// ```
#[derive(Debug)]
pub struct TensorTrain {
    /// `[i_k, j_k]` of each core.
    legs: Vec<[usize; 2]>,
    /// `a_k` behind each core; the last is 1.
    bonds: Vec<usize>,
    cores: Vec<Box<dyn Node>>,
}

/// Values on the way through a train that any matrix may have.
const LARGEST: f64 = (1u64 << 24) as f64;

/// Legs of one side multiply: few bytes could declare any number of channels.
const MOST_CHANNELS: usize = 1 << 20;
const MOST_CORES: usize = 16;

impl TensorTrain {
    /// One core for each pair of legs `[out, in]`.
    ///
    /// # Errors
    /// `InvalidArgument` without cores, with more than 16, with a leg of 0, or if a side has more than 2²⁰ channels;
    /// `ShapeMismatch` if a core does not fit the legs and the bond before it.
    pub fn new(legs: Vec<[usize; 2]>, cores: Vec<Box<dyn Node>>) -> Result<Self> {
        if cores.is_empty() || cores.len() > MOST_CORES || cores.len() != legs.len() {
            let message = format!(
                "{} cores for {} pairs of legs: allowed are 1 to {MOST_CORES} for as many",
                cores.len(),
                legs.len()
            );
            return Err(Error::invalid(message));
        }
        for side in [0, 1] {
            let channels = legs.iter().try_fold(1usize, |all, leg| all.checked_mul(leg[side]));
            if !channels.is_some_and(|channels| (1..=MOST_CHANNELS).contains(&channels)) {
                let legs: Vec<usize> = legs.iter().map(|leg| leg[side]).collect();
                let message = format!("legs {legs:?}: allowed are 1 to {MOST_CHANNELS} channels");
                return Err(Error::invalid(message));
            }
        }
        let (mut bond, mut bonds) = (1, Vec::with_capacity(cores.len()));
        for (k, (core, [i, j])) in cores.iter().zip(&legs).enumerate() {
            let [rows, cols] = core.shape();
            let next = rows / i;
            if cols.checked_div(bond) != Some(*j) || bond * j != cols || next * i != rows {
                let message = format!(
                    "core {k} is {rows} x {cols}, its legs {i} and {j} behind a bond {bond}"
                );
                return Err(Error::shape(message));
            }
            bond = next;
            bonds.push(bond);
        }
        if bond != 1 {
            return Err(Error::shape(format!("the last core has a bond of {bond} behind it")));
        }
        let train = Self { legs, bonds, cores };
        train.check_size()?;
        Ok(train)
    }

    /// Refuses cores, and products on the way from input to output, that are out of all proportion to the matrix.
    fn check_size(&self) -> Result<()> {
        let n = self.cores.len();
        let size = |shape: [usize; 2]| shape[0] as f64 * shape[1] as f64;
        let most = (16.0 * size(self.shape())).max(LARGEST);
        let cores: f64 = self.cores.iter().map(|core| size(core.shape())).sum();
        let made = (0..n).map(|k| {
            let [out, inp] = [self.channels(0..k + 1, 0), self.channels(k + 1..n, 1)];
            out as f64 * inp as f64 * self.bonds[k] as f64
        });
        let rows = (0..n).map(|k| self.channels(0..k + 1, 1) as f64 * self.bonds[k] as f64);
        let largest = made.chain(rows).chain([cores]).fold(0.0, f64::max);
        if largest <= most {
            return Ok(());
        }
        let [out, inp] = self.shape();
        Err(Error::invalid(format!(
            "cores of {cores} entries, or up to {largest} values on the way through them, for a matrix of {out} x {inp}: \
             allowed are {most}"
        )))
    }

    /// The cores, from the slowest legs on.
    #[must_use]
    pub fn cores(&self) -> &[Box<dyn Node>] {
        &self.cores
    }

    /// The legs `[out, in]` of each core.
    #[must_use]
    pub fn legs(&self) -> &[[usize; 2]] {
        &self.legs
    }

    /// The sizes of the bonds between cores, one fewer than cores.
    #[must_use]
    pub fn bonds(&self) -> &[usize] {
        &self.bonds[..self.bonds.len() - 1]
    }

    pub(super) fn read_from(
        reader: &NodeReader<'_>,
        json: &Json,
        prefix: &str,
    ) -> Result<Box<dyn Node>> {
        let (legs, described) = (field(json, "legs")?, field::<Vec<Json>>(json, "cores")?);
        if described.len() > MOST_CORES {
            return Err(Error::corruption(format!("{} cores", described.len())));
        }
        let reader = reader.unmasked();
        let read = |(i, json): (usize, &Json)| reader.node(json, &join(prefix, &i.to_string()));
        let cores = described.iter().enumerate().map(read).collect::<Result<_>>()?;
        Ok(Box::new(Self::new(legs, cores).map_err(|e| Error::corruption(e.message()))?))
    }

    /// The bond in front of a core.
    fn bond_before(&self, core: usize) -> usize {
        core.checked_sub(1).map_or(1, |before| self.bonds[before])
    }

    /// Channels of a side (0: outputs, 1: inputs) that the legs of these cores number.
    fn channels(&self, cores: Range<usize>, side: usize) -> usize {
        self.legs[cores].iter().map(|leg| leg[side]).product()
    }

    /// Entries of the first `k` cores.
    fn cores_before(&self, k: usize) -> usize {
        self.cores[..k].iter().map(|core| core.shape()[0] * core.shape()[1]).sum()
    }

    /// Values that the first 0, 1, ... `k` - 1 cores make of a row.
    fn made_before(&self, k: usize) -> usize {
        (0..k).map(|k| self.channels(0..k, 1) * self.bond_before(k)).sum()
    }

    /// Whether so many tokens are multiplied faster by decoded rows than by one core after the other.
    fn decodes_for(&self, tokens: usize) -> bool {
        let n = self.cores.len();
        let [out, inp] = self.shape().map(|side| side as f64);
        let (mut by_cores, mut decoding) = (0.0, 0.0);
        for (k, core) in self.cores.iter().enumerate() {
            let [rows, cols] = core.shape().map(|side| side as f64);
            let (made, behind) = (self.channels(0..k, 0), self.channels(k + 1..n, 1));
            by_cores += (made * behind) as f64 * rows * cols;
            let rows_made = self.channels(0..k + 1, 0) * self.bonds[k];
            decoding += rows_made as f64 * self.channels(0..k, 1) as f64 * cols;
        }
        let tokens = tokens as f64;
        tokens * by_cores > decoding + tokens * out * inp
    }

    fn try_map(
        self,
        f: impl FnMut(Box<dyn Node>) -> Result<Box<dyn Node>>,
    ) -> Result<Box<dyn Node>> {
        let cores = self.cores.into_iter().map(f).collect::<Result<_>>()?;
        Ok(Box::new(Self { cores, ..self }))
    }

    /// Core `k`, decoded, applied to what the cores before it made of a row: `[J, a]` becomes `[J j, a']`.
    fn extend_row(&self, k: usize, i: usize, core: &[f32], before: &[f32], made: &mut [f32]) {
        let (bond, next, j) = (self.bond_before(k), self.bonds[k], self.legs[k][1]);
        let cols = bond * j;
        made.fill(0.0);
        for (before, made) in before.chunks_exact(bond).zip(made.chunks_exact_mut(j * next)) {
            for (a, value) in before.iter().enumerate() {
                for to in 0..next {
                    let from = (i * next + to) * cols + a * j;
                    let core = core[from..from + j].iter();
                    match next {
                        // Nearly all of the work, in the last core: without steps it is vectorised.
                        1 => made.iter_mut().zip(core).for_each(|(m, c)| *m += value * c),
                        _ => {
                            let made = made[to..].iter_mut().step_by(next);
                            made.zip(core).for_each(|(m, c)| *m += value * c);
                        }
                    }
                }
            }
        }
    }
}

impl Node for TensorTrain {
    fn shape(&self) -> [usize; 2] {
        [0, 1].map(|side| self.channels(0..self.legs.len(), side))
    }

    /// Decodes the cores, then row for row what they make of each other: as many operations as a product of two factors
    /// whose inner size is the last bond, and a little more where leading legs change.
    fn decode_rows(
        &self,
        rows: Range<usize>,
        mut out: ArrayViewMut2<'_, f32>,
        accum: Accum,
        scratch: &mut Scratch,
    ) -> Result<()> {
        let ([all, inp], n) = (self.shape(), self.cores.len());
        assert!(rows.start <= rows.end && rows.end <= all, "rows {rows:?} of {all}");
        assert_eq!(out.dim(), (rows.len(), inp), "output shape");
        let mut cores = scratch.take(self.cores_before(n));
        for (k, core) in self.cores.iter().enumerate() {
            let [rows, cols] = core.shape();
            let own = &mut cores[self.cores_before(k)..self.cores_before(k + 1)];
            let view = ArrayViewMut2::from_shape((rows, cols), own).expect("as many values");
            core.decode_rows(0..rows, view, Accum::Replace, scratch)?;
        }
        // What the first k cores make of the row at hand, one after the other; of no core: 1.
        let mut made = scratch.take(self.made_before(n + 1));
        made[0] = 1.0;
        let leg_of = |row: usize, k: usize| row / self.channels(k + 1..n, 0) % self.legs[k][0];
        for (row, mut out) in rows.clone().zip(out.rows_mut()) {
            let same = |k: &usize| row > rows.start && leg_of(row, *k) == leg_of(row - 1, *k);
            let changed = (0..n).find(|k| !same(k)).unwrap_or(n);
            for k in changed..n {
                let core = &cores[self.cores_before(k)..self.cores_before(k + 1)];
                let (before, after) = made.split_at_mut(self.made_before(k + 1));
                let before = &before[self.made_before(k)..];
                let after = &mut after[..self.made_before(k + 2) - self.made_before(k + 1)];
                self.extend_row(k, leg_of(row, k), core, before, after);
            }
            for (out, value) in out.iter_mut().zip(&made[self.made_before(n)..]) {
                *out = if accum == Accum::Add { *out + value } else { *value };
            }
        }
        scratch.put(made);
        scratch.put(cores);
        Ok(())
    }

    /// Core after core; from so many tokens on that decoding costs less, tiles of decoded rows.
    fn matmul_rows(
        &self,
        rows: Range<usize>,
        x: &Input<'_>,
        mut y: ArrayViewMut2<'_, f32>,
        accum: Accum,
        scratch: &mut Scratch,
    ) -> Result<()> {
        check_matmul(self.shape(), &rows, x, &y);
        if rows.is_empty() || x.tokens() == 0 {
            return Ok(());
        }
        if self.is_linear() && self.decodes_for(x.tokens()) {
            return matmul_by_tiles(self, rows, x, y, accum, scratch);
        }
        // The first leg of the rows asked for, whole: the other legs run through all their values.
        let n = self.cores.len();
        let per_leg = self.channels(1..n, 0);
        let first = rows.start / per_leg..rows.end.div_ceil(per_leg);
        // Before core k: lines [tokens and legs made, inputs behind], each [bond, j_k].
        let mut lines = x.tokens();
        let mut now = scratch.take(x.tokens() * self.shape()[1]);
        let (j, behind) = (self.legs[0][1], self.channels(1..n, 1));
        turn(x.as_slice(), &mut now, [lines, j, behind, 1, 1]);
        for (k, core) in self.cores.iter().enumerate() {
            let behind = self.channels(k + 1..n, 1);
            let legs = if k == 0 { first.clone() } else { 0..self.legs[k][0] };
            let made_rows = legs.start * self.bonds[k]..legs.end * self.bonds[k];
            let shape = (lines * behind, core.shape()[1]);
            let mut made = scratch.take(lines * behind * made_rows.len());
            let view = ArrayView2::from_shape(shape, &now).expect("taken");
            let out = (shape.0, made_rows.len());
            let out = ArrayViewMut2::from_shape(out, &mut made).expect("taken");
            Input::with(view, scratch, |x, scratch| {
                core.matmul_rows(made_rows, x, out, Accum::Replace, scratch)
            })?;
            scratch.put(std::mem::replace(&mut now, made));
            if let Some([_, j]) = self.legs.get(k + 1) {
                let mut turned = scratch.take(now.len());
                turn(&now, &mut turned, [lines, *j, behind / j, legs.len(), self.bonds[k]]);
                scratch.put(std::mem::replace(&mut now, turned));
            }
            lines *= legs.len();
        }
        let whole = ArrayView2::from_shape((x.tokens(), first.len() * per_leg), &now);
        let start = rows.start - first.start * per_leg;
        let asked = whole.expect("one line an output");
        let asked = asked.slice(s![.., start..start + rows.len()]);
        match accum {
            Accum::Replace => y.assign(&asked),
            Accum::Add => y += &asked,
        }
        scratch.put(now);
        Ok(())
    }

    fn multiply(&self) -> Multiply {
        let fused = self.cores.iter().all(|core| core.multiply() == Multiply::Fused);
        if fused { Multiply::Fused } else { Multiply::Decode }
    }

    fn is_linear(&self) -> bool {
        self.cores.iter().all(|core| core.is_linear())
    }

    fn describe(&self) -> Json {
        let cores: Vec<Json> = self.cores.iter().map(|core| core.describe()).collect();
        json!({"node": "tensor_train.v1", "legs": self.legs, "cores": cores})
    }

    fn parts(&self, prefix: &str, sink: &mut dyn PartSink) -> Result<()> {
        for (i, core) in self.cores.iter().enumerate() {
            core.parts(&join(prefix, &i.to_string()), sink)?;
        }
        Ok(())
    }

    fn map_planes(self: Box<Self>, f: &mut PlaneMap<'_>) -> Result<Box<dyn Node>> {
        self.try_map(|core| core.map_planes(f))
    }

    fn keep(self: Box<Self>, _: &Arc<Mask>) -> Result<Box<dyn Node>> {
        Err(Error::unsupported("a mask over a matrix product operator: mask its cores instead"))
    }

    fn prepack(self: Box<Self>) -> Result<Box<dyn Node>> {
        self.try_map(|core| core.prepack())
    }
}

/// `[lines, j, behind, i, a]` as `[lines, i, behind, a, j]`: what one core made as the next one takes it.
fn turn(from: &[f32], to: &mut [f32], [lines, j, behind, i, a]: [usize; 5]) {
    let from = ArrayView5::from_shape((lines, j, behind, i, a), from).expect("as many values");
    let to = ArrayViewMut5::from_shape((lines, i, behind, a, j), to).expect("as many values");
    let mut to = to;
    to.assign(&from.permuted_axes([0, 3, 2, 4, 1]));
}
