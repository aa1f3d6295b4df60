//! PV-tuning: codes and values by turns, for any representation that has both.

mod levels;
mod vectors;

use std::fmt::Debug;

use tensorpress_tensor::linalg::{self, Par};
use tensorpress_tensor::ndarray::{Array2, ArrayView2};
use tensorpress_tensor::node::{Node, as_node};
use tensorpress_tensor::stage::{Keys, Knobs, Row, WeightPart};
use tensorpress_tensor::stats::Needs;
use tensorpress_tensor::{
    Compress, Compressed, CompressedGroup, Context, DynCompress, Error, Group, Method, Result,
    Target, Usable,
};

use crate::Aqlm;
pub use levels::LevelCodes;
pub use vectors::VectorCodes;

/// A matrix of codes that stand for values: what PV-tuning works on.
///
/// Codes are grouped in units, each of which can be given another code by itself.
pub trait Representation: Debug + Send + Sync {
    /// The matrix, values as they are stored.
    fn decode(&self) -> Array2<f32>;

    /// P step: the values that lose least of tr(D H Dᵀ), D = W - Q, for the codes as they are; none is changed where that
    /// cannot be said.
    fn fit(&mut self, weight: ArrayView2<'_, f32>, gram: ArrayView2<'_, f64>, par: Par);

    /// For the units of a row the best other code of each that gains anything by itself, in any order. `slope` is D H of the
    /// row: a change δ of its weights gains 2 δ·slope - δ H δᵀ.
    fn proposals(&self, row: usize, slope: &[f64], gram: ArrayView2<'_, f64>) -> Vec<Proposal>;

    /// Adds to `change` what a proposal changes of the row's weights.
    fn change(&self, row: usize, proposal: &Proposal, change: &mut [f64]);

    /// V step: takes a proposal.
    fn take(&mut self, row: usize, proposal: &Proposal);

    /// Units of a row.
    fn units(&self) -> usize;

    /// Another one like it.
    fn copy(&self) -> Box<dyn Representation>;

    /// The node.
    ///
    /// # Errors
    /// `InvalidArgument` for values beyond their type.
    fn node(&self) -> Result<Box<dyn Node>>;
}

/// Another code for a unit.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Proposal {
    /// Which code of the row.
    pub place: usize,
    /// Its new value.
    pub code: u16,
    /// What is gained if no other changes.
    pub gain: f64,
}

/// PV-tuning (Malinovskii et al., 2024) of what another method made, matrix by matrix, on the error of its outputs: by turns
/// codes of a small part of the units are replaced, those that gain most (V), and values are fitted to the codes (P).
///
/// Works on tables of levels (`kmeans`, `squeezellm` without what stays, `sketch`, `post`, `dkm`, ...) and on sums of
/// codebooks (`aqlm`). Without statistics the method's node stays, and `fallback` says so. Refuses a mask.
///
/// ```
/// use tensorpress_quant::{KMeans, LevelSpec, Pv};
/// use tensorpress_tensor::{Compress, Node, linalg::Par, ndarray::Array2, stats::Calibration};
///
/// # fn main() -> tensorpress_tensor::Result<()> {
/// let weight = Array2::from_shape_fn((16, 64), |(r, c)| ((r * 7 + c * 3) % 11) as f32 - 5.0);
/// let inputs = Array2::from_shape_fn((128, 64), |(t, c)| ((t * 13 + c * 5) % 17) as f32 - 8.0);
/// let made = Pv::new(KMeans::new(LevelSpec::new(2)))
///     .compress(weight.view(), &Calibration::from_samples(inputs, Par::Seq))?;
/// assert_eq!(made.node.shape(), [16, 64]);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Pv<C> {
    /// Makes what is tuned.
    pub method: C,
    /// Rounds of both steps, at most. Default 8.
    pub rounds: usize,
    /// V steps of a round. Default 4.
    pub steps: usize,
    /// The part of a row's units that a V step may change, above 0 to 1. Default 0.05.
    pub share: f64,
}

/// A round that gains less than this part is the last.
const LITTLE: f64 = 1e-4;

impl<C: Compress> Pv<C> {
    /// Tuning of what `method` makes.
    #[must_use]
    pub fn new(method: C) -> Self {
        let Tuning { rounds, steps, share } = Tuning::default();
        Self { method, rounds, steps, share }
    }

    /// Sets the most rounds.
    #[must_use]
    pub fn with_rounds(mut self, rounds: usize) -> Self {
        self.rounds = rounds;
        self
    }

    /// Sets the V steps of a round.
    #[must_use]
    pub fn with_steps(mut self, steps: usize) -> Self {
        self.steps = steps;
        self
    }

    /// Sets the part of a row's units that a V step may change.
    #[must_use]
    pub fn with_share(mut self, share: f64) -> Self {
        self.share = share;
        self
    }

    /// Tunes a representation: it loses no more than before.
    #[must_use]
    pub fn tune(
        &self,
        start: Box<dyn Representation>,
        weight: ArrayView2<'_, f32>,
        gram: ArrayView2<'_, f64>,
        par: Par,
    ) -> Box<dyn Representation> {
        let mut best = start;
        let mut least = loss(&*best, weight, gram, par);
        for _ in 0..self.rounds {
            let mut next = best.copy();
            for _ in 0..self.steps {
                v_step(&mut *next, weight, gram, self.share, par);
            }
            next.fit(weight, gram, par);
            let loss = loss(&*next, weight, gram, par);
            let gained = least - loss;
            if gained <= 0.0 {
                break;
            }
            (best, least) = (next, loss);
            if gained < LITTLE * least {
                break;
            }
        }
        best
    }

    fn tuned(
        &self,
        target: &Target<'_>,
        node: Box<dyn Node>,
        gram: ArrayView2<'_, f64>,
        par: Par,
    ) -> Result<Box<dyn Node>> {
        let weight = target.weight;
        if weight.is_empty() {
            return Ok(node);
        }
        let start: Option<Box<dyn Representation>> = if let Some(table) = as_node(&*node) {
            Some(Box::new(LevelCodes::of(table)?))
        } else if let Some(sums) = as_node(&*node) {
            Some(Box::new(VectorCodes::of(sums)?))
        } else {
            None
        };
        if let Some(start) = start {
            return self.tune(start, weight, gram, par).node();
        }
        let kind = node.describe();
        let message = format!("tuning of {}: allowed are tables and codebooks", kind["node"]);
        Err(Error::unsupported(message))
    }
}

fn loss(
    of: &dyn Representation,
    weight: ArrayView2<'_, f32>,
    gram: ArrayView2<'_, f64>,
    par: Par,
) -> f64 {
    let (rest, slope) = slopes(of, weight, gram, par);
    rest.iter().zip(&slope).map(|(a, b)| a * b).sum()
}

/// D and D H.
fn slopes(
    of: &dyn Representation,
    weight: ArrayView2<'_, f32>,
    gram: ArrayView2<'_, f64>,
    par: Par,
) -> (Array2<f64>, Array2<f64>) {
    let rest = (&weight - &of.decode()).mapv(f64::from);
    let mut slope = Array2::zeros(rest.dim());
    linalg::matmul(rest.view(), gram, slope.view_mut(), false, par);
    (rest, slope)
}

/// In each row the proposals that gain most alone are taken together, at most a part `share` of the units; fewer by halves
/// until they gain together.
fn v_step(
    of: &mut dyn Representation,
    weight: ArrayView2<'_, f32>,
    gram: ArrayView2<'_, f64>,
    share: f64,
    par: Par,
) {
    let (_, slope) = slopes(of, weight, gram, par);
    let many = ((share * of.units() as f64).ceil() as usize).max(1);
    let mut taken: Vec<Vec<Proposal>> = vec![Vec::new(); weight.nrows()];
    let this = &*of;
    par.for_each(slope.rows().into_iter().zip(&mut taken).enumerate(), |(row, (slope, taken))| {
        let slope = slope.to_slice().expect("standard layout");
        let mut proposals = this.proposals(row, slope, gram);
        proposals.sort_by(|a, b| b.gain.total_cmp(&a.gain).then(a.place.cmp(&b.place)));
        proposals.truncate(many);
        let mut change = vec![0.0; slope.len()];
        while !proposals.is_empty() {
            change.fill(0.0);
            proposals.iter().for_each(|proposal| this.change(row, proposal, &mut change));
            if gain(&change, slope, gram) > 0.0 {
                break;
            }
            proposals.truncate(proposals.len() / 2);
        }
        *taken = proposals;
    });
    for (row, proposals) in taken.iter().enumerate() {
        proposals.iter().for_each(|proposal| of.take(row, proposal));
    }
}

/// 2 δ·slope - δ H δᵀ; most of δ is 0.
fn gain(change: &[f64], slope: &[f64], gram: ArrayView2<'_, f64>) -> f64 {
    let changed: Vec<usize> = (0..change.len()).filter(|c| change[*c] != 0.0).collect();
    let curved: f64 = changed
        .iter()
        .map(|a| {
            let row = gram.row(*a);
            change[*a] * changed.iter().map(|b| row[*b] * change[*b]).sum::<f64>()
        })
        .sum();
    2.0 * changed.iter().map(|c| change[*c] * slope[*c]).sum::<f64>() - curved
}

/// What a recipe says.
#[derive(Debug, Clone, Copy)]
struct Tuning {
    rounds: usize,
    steps: usize,
    share: f64,
}

impl Default for Tuning {
    fn default() -> Self {
        Self { rounds: 8, steps: 4, share: 0.05 }
    }
}

impl Knobs for Tuning {
    fn knobs(&mut self, keys: &mut Keys<'_>) -> Result<()> {
        keys.int("rounds", &mut self.rounds, 0..=1000, "rounds of both steps, at most")?;
        keys.int("steps", &mut self.steps, 1..=1000, "steps of choosing codes in a round")?;
        let about = "part of a row's codes that a step may change";
        keys.float("share", &mut self.share, 1e-6..=1.0, about)
    }
}

pub(crate) fn stage() -> Row<WeightPart> {
    Row::method_with(
        "pv",
        "tunes codes and values, by turns, of the method inside (`aqlm` unless another is)",
        Tuning::default,
        |Tuning { rounds, steps, share }, inner| {
            let method: Box<dyn DynCompress> = inner.unwrap_or_else(|| Box::new(Aqlm::default()));
            Ok(Box::new(Pv { method, rounds, steps, share }))
        },
    )
}

impl<C: Compress> Method for Pv<C> {
    fn id(&self) -> &'static str {
        "pv"
    }

    fn needs(&self) -> Needs {
        self.method.needs().union(Needs::GRAM.true_sequentially())
    }

    fn takes_mask(&self) -> bool {
        false
    }
}

impl<C: Compress> Compress for Pv<C> {
    type Node = Box<dyn Node>;

    fn compress_group(&self, mut group: Group<'_>) -> Result<CompressedGroup> {
        if !(self.share > 0.0 && self.share <= 1.0) {
            return Err(Error::invalid(format!(
                "share = {}: allowed are above 0 to 1",
                self.share
            )));
        }
        for target in &group.targets {
            target.check_finite()?;
            if target.mask.is_some() {
                let message = "tuning of a matrix of which only a support is kept";
                return Err(Error::unsupported(message)).in_tensor(target.name);
            }
        }
        group.channels()?;
        let Group { calibration, fold: _, seed, par, .. } = &group;
        let (calibration, seed, par) = (calibration.clone(), *seed, *par);
        let targets = group.targets.clone();
        let made =
            self.method.compress_group(Group { targets, calibration, fold: None, seed, par })?;
        let gram = Usable::of(crate::aqlm::usable_gram(&mut group))?;
        let layers = group.targets.iter().zip(made.layers).map(|(target, layer)| {
            let Compressed { bias, fallback, node } = layer.boxed();
            match &gram {
                Usable::Yes(gram) => {
                    let node = self.tuned(target, node, gram.view(), par).in_tensor(target.name)?;
                    Ok(Compressed { bias, fallback, node })
                }
                Usable::No(reason) => {
                    let note = Some(format!("{reason}: not tuned"));
                    Ok(Compressed { bias, fallback, node }.with_note(note))
                }
            }
        });
        Ok(CompressedGroup::new(layers.collect::<Result<_>>()?))
    }
}
