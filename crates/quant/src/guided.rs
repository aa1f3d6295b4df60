use std::ops::Range;
use std::sync::Arc;

use tensorpress_tensor::ndarray::{Array2, ArrayView2, s};
use tensorpress_tensor::node::{Index, Mask, Side, Stacked};
use tensorpress_tensor::rate::{RateCurve, common_step};
use tensorpress_tensor::stage::{Keys, Knobs, Row, WeightPart};
use tensorpress_tensor::stats::{Calibration, CrossGram, Gram, Needs, Supply};
use tensorpress_tensor::{
    Compress, Compressed, CompressedGroup, Context, DynCompress, Error, ErrorKind, Group, Method,
    Node, Result, Target, Usable,
};

use crate::rtn::Rtn;

/// GuidedQuant (Kim et al., 2025, arXiv 2505.07004) before a method that reads the Gram matrix of its inputs: the rows of a
/// matrix are cut into groups of neighbours, and each is compressed by itself with a Gram matrix of its own, H = E\[s x
/// xᵀ] / E\[s], where s of a token is the mean of the squared gradients of the end loss by the group's outputs.
///
/// H is supplied ([`Supply::guided_gram`]) or found by the pipeline's backward pass. Scaled to the tokens of the
/// calibration, it takes the place of XᵀX: where all gradients are of one size it is XᵀX. A group that nothing depends on
/// keeps XᵀX, and the result says so. The node is a [`Stacked`] of the groups; of a single group, its node.
///
/// Matrices that share an input are all guided, or none: then the method works as if it stood alone, to the byte, and
/// `fallback` says why (nobody knows gradients, it reads no Gram matrix). Scales are not folded into what stands before.
///
/// ```
/// use tensorpress_quant::{Gptq, GridSpec, Guided};
/// use tensorpress_tensor::{Compress, linalg::Par, ndarray::Array2, stats::Calibration};
///
/// # fn main() -> tensorpress_tensor::Result<()> {
/// let weight = Array2::from_shape_fn((16, 64), |(r, c)| ((r * 7 + c * 3) % 11) as f32 - 5.0);
/// let inputs = Array2::from_shape_fn((128, 64), |(t, c)| ((t * 13 + c * 5) % 17) as f32 - 8.0);
/// let calibration = Calibration::from_samples(inputs, Par::Seq);
/// // Nothing says what the loss makes of the outputs.
/// let made = Guided::new(Gptq::new(GridSpec::new(3, 32))).compress(weight.view(), &calibration)?;
/// assert!(made.fallback.is_some());
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Guided<S = Rtn> {
    /// Groups that rows are cut into, of one row at least. Default 4.
    pub groups: usize,
    /// Compresses each.
    pub solver: S,
}

impl<S: Default> Default for Guided<S> {
    fn default() -> Self {
        Self::new(S::default())
    }
}

impl<S> Guided<S> {
    /// Four groups of rows, each by this method.
    #[must_use]
    pub fn new(solver: S) -> Self {
        Self { groups: 4, solver }
    }

    /// Sets how many groups rows are cut into.
    #[must_use]
    pub fn with_groups(mut self, groups: usize) -> Self {
        self.groups = groups;
        self
    }

    fn supply(&self) -> Supply {
        Supply::guided_gram(self.groups)
    }
}

impl<S: Method> Guided<S> {
    fn check(&self) -> Result<()> {
        if self.groups == 0 {
            return Err(Error::invalid("groups = 0: allowed are 1 and more"));
        }
        if self.solver.needs().has::<CrossGram>() {
            let message = format!(
                "`{}` behind `guided` would compare a weighted Gram matrix with one that is not: it \
                 has to stand before it",
                self.solver.id()
            );
            return Err(Error::unsupported(message));
        }
        Ok(())
    }

    /// The weighted matrices of a target's groups, one above the other.
    fn grams(&self, target: &Target<'_>, group: &Group<'_>) -> Result<Usable<Array2<f32>>> {
        if !self.solver.needs().has::<Gram>() {
            return Ok(Usable::no(format!("`{}` reads no Gram matrix", self.solver.id())));
        }
        let (calibration, inputs) = (&group.calibration, target.weight.ncols());
        // Whatever is wrong with its own statistics, the method says best.
        match calibration.seen().map(|()| calibration.gram()) {
            Usable::No(reason) => return Ok(Usable::No(reason)),
            Usable::Yes(Err(e)) => return Ok(Usable::no(e.message())),
            Usable::Yes(Ok(gram)) if gram.dim() != (inputs, inputs) => {
                return Ok(Usable::no("a Gram matrix of other inputs"));
            }
            Usable::Yes(Ok(_)) => {}
        }
        let found = match calibration.supplied(self.supply(), target, group.par) {
            Err(e) if e.kind() == ErrorKind::MissingCalibration => Usable::no(e.message()),
            found => Usable::of(found)?,
        };
        Ok(found.and_then(|grams| match grams.iter().all(|v| *v == 0.0) {
            true => Usable::no("nothing was seen to depend on its outputs"),
            false => Usable::Yes(grams),
        }))
    }
}

/// What is known of some rows of a matrix, and what is to be said of it: their own matrix `[in, in]`, a mean over tokens, in
/// place of the Gram matrix.
fn calibration_of(
    rows: &Range<usize>,
    outputs: usize,
    mean: ArrayView2<'_, f32>,
    group: &Group<'_>,
) -> Result<(Calibration, Option<String>)> {
    let all = (rows.start as u32..rows.end as u32).collect();
    let some = Arc::new(Index::new(all, outputs)?);
    // What else is supplied of the outputs is that of these rows.
    let calibration = group.calibration.through(some, Side::Out, group.par)?;
    let gram = mean.mapv(|v| v * calibration.tokens() as f32);
    let trace: f32 = gram.diag().sum();
    if trace > 0.0 && trace.is_finite() {
        return Ok((calibration.with::<Gram>(gram), None));
    }
    let note = format!("nothing was seen to depend on rows {rows:?}: they are not guided");
    Ok((calibration, Some(note)))
}

impl<S: Compress> Guided<S> {
    /// What `one` makes of each group of a matrix's rows, and what is to be said of them.
    fn each<T>(
        &self,
        target: &Target<'_>,
        grams: &Array2<f32>,
        group: &Group<'_>,
        one: impl Fn(Group<'_>) -> Result<Vec<T>>,
    ) -> Result<(Vec<T>, Vec<String>)> {
        let (outputs, inputs) = target.weight.dim();
        let (mut made, mut notes) = (Vec::new(), Vec::new());
        for (k, rows) in self.supply().rows(outputs).enumerate() {
            let mean = grams.slice(s![k * inputs..(k + 1) * inputs, ..]);
            let (calibration, note) = calibration_of(&rows, outputs, mean, group)?;
            notes.extend(note);
            let mask: Option<Mask> = target.mask.map(|mask| mask.rows(rows.clone()));
            let weight = target.weight.slice(s![rows, ..]);
            let piece = Target { weight, mask: mask.as_ref(), ..target.clone() };
            let (seed, par) = (group.seed, group.par);
            let alone = Group { targets: vec![piece], calibration, fold: None, seed, par };
            made.push(one(alone)?.pop().ok_or_else(|| Error::invalid("no result"))?);
        }
        Ok((made, notes))
    }

    /// One matrix, group by group.
    fn stack(
        &self,
        target: &Target<'_>,
        grams: &Array2<f32>,
        group: &Group<'_>,
    ) -> Result<Compressed> {
        let compress = |group: Group<'_>| Ok(self.solver.compress_group(group)?.layers);
        let (pieces, mut notes) = self.each(target, grams, group, compress)?;
        let pieces: Vec<Compressed> = pieces.into_iter().map(Compressed::boxed).collect();
        notes.extend(pieces.iter().filter_map(|piece| piece.fallback.clone()));
        notes.dedup();
        let bias = bias(&pieces);
        let mut nodes: Vec<Box<dyn Node>> = pieces.into_iter().map(|piece| piece.node).collect();
        let node = match nodes.len() {
            1 => nodes.remove(0),
            _ => Stacked::new(nodes)?.boxed(),
        };
        let made = Compressed { bias, fallback: None, node };
        Ok(notes.into_iter().map(Some).fold(made, Compressed::with_note))
    }

    /// Bits of one matrix by the step: those of its groups together, near to those asked for.
    fn curve(
        &self,
        target: &Target<'_>,
        group: &Group<'_>,
        bits: f64,
    ) -> Result<Option<RateCurve>> {
        let Usable::Yes(grams) = self.grams(target, group)? else { return Ok(None) };
        let (curves, _) = self.each(target, &grams, group, |group| self.solver.rates(group))?;
        let weights: u64 = curves.iter().map(RateCurve::weights).sum();
        let point = |off: &f64| {
            let step = common_step(curves.iter(), (bits + off).max(0.05) * weights as f64);
            (step, curves.iter().map(|curve| curve.bits(step)).sum::<f64>().round() as u64)
        };
        Ok(Some(RateCurve::new(weights, AROUND.iter().map(point).collect())))
    }
}

/// Bits a weight, from those asked for, at the points of a curve.
const AROUND: [f64; 3] = [1.5, 0.0, -1.0];

/// The corrections of all rows, if there are any.
fn bias(pieces: &[Compressed]) -> Option<Vec<f32>> {
    pieces.iter().any(|piece| piece.bias.is_some()).then(|| {
        let of = |piece: &Compressed| {
            piece.bias.clone().unwrap_or_else(|| vec![0.0; piece.node.shape()[0]])
        };
        pieces.iter().flat_map(of).collect()
    })
}

impl<S> Knobs for Guided<S> {
    fn knobs(&mut self, keys: &mut Keys<'_>) -> Result<()> {
        let about =
            "consecutive rows are cut into so many groups, each with a Gram matrix of its own";
        keys.int("groups", &mut self.groups, 1..=64, about)
    }
}

pub(crate) fn stage() -> Row<WeightPart> {
    let about = "weighs the tokens of a method's Gram matrix by the gradients of the end loss, group \
                 of rows by group";
    Row::transform("guided", about, Guided::<Rtn>::default, |Guided { groups, .. }, solver| {
        let Some(solver) = solver else { return Ok(None) };
        let guided = Guided { groups, solver };
        guided.check()?;
        let guided: Box<dyn DynCompress> = Box::new(guided);
        Ok(Some(guided))
    })
}

impl<S: Method> Method for Guided<S> {
    fn id(&self) -> &'static str {
        "guided"
    }

    fn around(&self) -> Option<&dyn Method> {
        Some(&self.solver)
    }

    fn needs(&self) -> Needs {
        let needs = self.solver.needs();
        match needs.has::<Gram>() {
            true => needs | Needs::supplied(self.supply()),
            false => needs,
        }
    }
}

impl<S: Compress> Compress for Guided<S> {
    type Node = Box<dyn Node>;

    fn rates(&self, group: Group<'_>) -> Result<Vec<RateCurve>> {
        let Some(bits) = self.solver.shared_bits() else { return self.solver.rates(group) };
        let curves = group.targets.iter().map(|target| self.curve(target, &group, bits));
        match curves.collect::<Result<Option<Vec<RateCurve>>>>()? {
            Some(curves) => Ok(curves),
            None => self.solver.rates(group),
        }
    }

    fn compress_group(&self, group: Group<'_>) -> Result<CompressedGroup> {
        self.check()?;
        group.channels()?;
        for target in &group.targets {
            target.check_finite()?;
        }
        let mut layers = Vec::with_capacity(group.targets.len());
        for target in &group.targets {
            match self.grams(target, &group)? {
                Usable::Yes(grams) => {
                    layers.push(self.stack(target, &grams, &group).in_tensor(target.name)?);
                }
                Usable::No(reason) => return self.plain(group, &reason),
            }
        }
        Ok(CompressedGroup::new(layers))
    }
}

impl<S: Compress> Guided<S> {
    /// As if the method stood alone.
    fn plain(&self, group: Group<'_>, reason: &str) -> Result<CompressedGroup> {
        let CompressedGroup { layers, folded } = self.solver.compress_group(group)?;
        let note = |layer: Compressed<S::Node>| {
            layer.boxed().with_note(Some(format!("{reason}: not guided")))
        };
        Ok(CompressedGroup { layers: layers.into_iter().map(note).collect(), folded })
    }
}
