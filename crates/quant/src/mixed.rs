use std::sync::Arc;

use tensorpress_tensor::linalg::{self, Par};
use tensorpress_tensor::ndarray::{Array2, Axis};
use tensorpress_tensor::node::{Index, Node, Side, Sum, Transformed, decode};
use tensorpress_tensor::stage::{Keys, Knobs, Row, WeightPart};
use tensorpress_tensor::stats::{Calibration, Needs, Supply};
use tensorpress_tensor::{
    Compress, Compressed, CompressedGroup, Context, DynCompress, Error, ErrorKind, Group, Method,
    Result, Target,
};

use crate::{Clip, Gptq, GridSpec};

/// Some rows by one method, the others by another: MixLLM (Zheng et al., 2024) gives the output features that the loss is
/// most sensitive to 8 bits and all others 4.
///
/// What a row is worth is how the loss would change, were it compressed by the method for the others: with δ the change of
/// its weights, g the gradient and F the diagonal of the Fisher matrix that a caller supplies, |Σ g δ + ½ Σ F δ²|; without a
/// gradient the second term alone, without either δ H δᵀ, the change of its outputs, and `fallback` says so. A node is the
/// sum of two, each of which has rows of its own. Refuses a mask.
///
/// ```
/// use tensorpress_quant::{GridSpec, MixedRows, Rtn};
/// use tensorpress_tensor::{Compress, Node, linalg::Par, ndarray::Array2, stats::Calibration};
///
/// # fn main() -> tensorpress_tensor::Result<()> {
/// let weight = Array2::from_shape_fn((16, 64), |(r, c)| ((r * 7 + c * 3) % 11) as f32 - 5.0);
/// let inputs = Array2::from_shape_fn((128, 64), |(t, c)| ((t * 13 + c * 5) % 17) as f32 - 8.0);
/// let [low, high] = [2, 8].map(|bits| Rtn::new(GridSpec::new(bits, 32)));
/// let made = MixedRows::new(low, high, 0.25)
///     .compress(weight.view(), &Calibration::from_samples(inputs, Par::Seq))?;
/// assert_eq!(made.node.shape(), [16, 64]);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct MixedRows<L, H> {
    /// For the rows that matter less.
    pub low: L,
    /// For the rows that matter most.
    pub high: H,
    /// The part of a matrix's rows that matters most, 0 to 1.
    pub share: f64,
    /// In place of a part: all rows that are worth more than this, so that one number divides the rows of a whole model.
    pub threshold: Option<f64>,
}

impl<L: Compress, H: Compress> MixedRows<L, H> {
    /// The part `share` of the rows by `high`, the others by `low`.
    #[must_use]
    pub fn new(low: L, high: H, share: f64) -> Self {
        Self { low, high, share, threshold: None }
    }

    /// Sets what rows must be worth, in place of a part of them.
    #[must_use]
    pub fn with_threshold(mut self, threshold: f64) -> Self {
        self.threshold = Some(threshold);
        self
    }

    fn check(&self) -> Result<()> {
        if !(0.0..=1.0).contains(&self.share) {
            return Err(Error::invalid(format!("share = {}: allowed are 0 to 1", self.share)));
        }
        match self.threshold {
            Some(threshold) if !(threshold.is_finite() && threshold >= 0.0) => {
                Err(Error::invalid(format!("threshold = {threshold}: allowed are 0 and more")))
            }
            _ => Ok(()),
        }
    }

    /// Whether each row is one of those that matter most.
    fn chosen(&self, worth: &[f64]) -> Vec<bool> {
        if let Some(threshold) = self.threshold {
            return worth.iter().map(|worth| *worth > threshold).collect();
        }
        let mut order: Vec<usize> = (0..worth.len()).collect();
        order.sort_by(|a, b| worth[*b].total_cmp(&worth[*a]));
        let mut chosen = vec![false; worth.len()];
        let many = (self.share * worth.len() as f64).round() as usize;
        order.iter().take(many).for_each(|row| chosen[*row] = true);
        chosen
    }
}

/// What each row is worth for its change δ, and why it is not what was asked for.
fn worth(
    target: &Target<'_>,
    change: &Array2<f64>,
    calibration: &Calibration,
    par: Par,
) -> Result<(Vec<f64>, Option<String>)> {
    let missing =
        |e: &Error| matches!(e.kind(), ErrorKind::MissingCalibration | ErrorKind::Numerical);
    let supplied = |supply: Supply| match calibration.supplied(supply, target, par) {
        Ok(values) if values.iter().all(|v| *v == 0.0) => {
            Ok(Err(format!("the {} is 0 everywhere", supply.name())))
        }
        Ok(values) => Ok(Ok(values)),
        Err(e) if missing(&e) => Ok(Err(e.message().to_owned())),
        Err(e) => Err(e),
    };
    let sums = |of: &dyn Fn(usize, usize) -> f64| -> Vec<f64> {
        let row = |r: usize| (0..change.ncols()).map(|c| of(r, c)).sum();
        (0..change.nrows()).map(row).collect()
    };
    let reason = match supplied(Supply::FISHER)? {
        Ok(fisher) => {
            let gradient = supplied(Supply::GRADIENT)?.ok();
            let of = |r: usize, c: usize| {
                let (d, f) = (change[[r, c]], f64::from(fisher[[r, c]].max(0.0)));
                let first = gradient.as_ref().map_or(0.0, |g| f64::from(g[[r, c]]) * d);
                first + 0.5 * f * d * d
            };
            return Ok((sums(&of).into_iter().map(f64::abs).collect(), None));
        }
        Err(reason) => reason,
    };
    let gram = match calibration.seen() {
        tensorpress_tensor::Usable::No(why) => Err(why),
        tensorpress_tensor::Usable::Yes(()) => match calibration.gram() {
            Ok(gram) if gram.iter().all(|v| v.is_finite()) => Ok(gram.mapv(f64::from)),
            Ok(_) => Err("its Gram matrix is not finite".to_owned()),
            Err(e) if missing(&e) => Err(e.message().to_owned()),
            Err(e) => return Err(e),
        },
    };
    match gram {
        Ok(gram) if gram.nrows() == change.ncols() => {
            let mut through = Array2::zeros(change.dim());
            linalg::matmul(change.view(), gram.view(), through.view_mut(), false, par);
            let rows = sums(&|r, c| change[[r, c]] * through[[r, c]]);
            Ok((rows, Some(format!("{reason}: rows count by the change of their outputs"))))
        }
        Ok(gram) => {
            let (got, wanted) = (gram.nrows(), change.ncols());
            Err(Error::shape(format!("a Gram matrix of {got} inputs for {wanted}")))
        }
        Err(why) => {
            let rows = sums(&|r, c| change[[r, c]].powi(2));
            Ok((rows, Some(format!("{reason}, {why}: rows count by the change of their weights"))))
        }
    }
}

impl<L: Compress, H: Compress> Method for MixedRows<L, H> {
    fn id(&self) -> &'static str {
        "mixllm"
    }

    fn needs(&self) -> Needs {
        let own = Needs::GRAM.union(Needs::supplied(Supply::FISHER));
        let own = own.union(Needs::supplied(Supply::GRADIENT));
        own.union(self.low.needs()).union(self.high.needs())
    }

    fn takes_mask(&self) -> bool {
        false
    }
}

impl<L: Compress, H: Compress> Compress for MixedRows<L, H> {
    type Node = Box<dyn Node>;

    fn compress_group(&self, group: Group<'_>) -> Result<CompressedGroup> {
        self.check()?;
        for target in &group.targets {
            target.check_finite()?;
            if target.mask.is_some() {
                let message = "rows of a matrix of which only a support is kept";
                return Err(Error::unsupported(message)).in_tensor(target.name);
            }
        }
        group.channels()?;
        let with = |targets: Vec<Target<'_>>, by: &dyn DynCompress| {
            let Group { calibration, seed, par, .. } = &group;
            let (calibration, seed, par) = (calibration.clone(), *seed, *par);
            by.compress_group_dyn(Group { targets, calibration, fold: None, seed, par })
        };
        let (low, high): (&dyn DynCompress, &dyn DynCompress) = (&self.low, &self.high);
        let all = with(group.targets.clone(), low)?;
        let one = |(target, whole): (&Target<'_>, Compressed)| {
            let change = decode(&*whole.node)? - target.weight;
            let change = change.mapv(f64::from);
            let (worth, note) = worth(target, &change, &group.calibration, group.par)?;
            let chosen = self.chosen(&worth);
            let mut terms: Vec<Box<dyn Node>> = Vec::new();
            let mut news = Vec::new();
            for (by, of) in [(low, false), (high, true)] {
                let rows: Vec<usize> = (0..chosen.len()).filter(|row| chosen[*row] == of).collect();
                if rows.is_empty() && (of || !chosen.is_empty()) {
                    continue;
                }
                let weight = target.weight.select(Axis(0), &rows);
                let part = Target { weight: weight.view(), ..target.clone() };
                let part = with(vec![part], by)?.layers.pop();
                let part = part.ok_or_else(|| Error::invalid("no result"))?;
                news.push(part.fallback);
                if rows.len() == chosen.len() {
                    terms.push(part.node);
                    continue;
                }
                let index = rows.iter().map(|row| *row as u32).collect();
                let index = Arc::new(Index::new(index, chosen.len())?);
                terms.push(Transformed::new(Side::Out, index, part.node)?.boxed());
            }
            let node = match terms.len() {
                1 => terms.remove(0),
                _ => Sum::new(terms)?.boxed(),
            };
            let made = Compressed::new(node).with_fallback(note);
            news.dedup();
            Ok(news.into_iter().fold(made, Compressed::with_note))
        };
        let layers = group.targets.iter().zip(all.layers);
        let layers = layers.map(|(target, whole)| one((target, whole)).in_tensor(target.name));
        Ok(CompressedGroup::new(layers.collect::<Result<_>>()?))
    }
}

/// What a recipe says of them.
#[derive(Debug, Clone, Copy)]
struct MixLlm {
    bits: u8,
    high: u8,
    group: usize,
    share: f64,
    threshold: Option<f64>,
}

impl Default for MixLlm {
    fn default() -> Self {
        Self { bits: 4, high: 8, group: 128, share: 0.1, threshold: None }
    }
}

impl Knobs for MixLlm {
    fn knobs(&mut self, keys: &mut Keys<'_>) -> Result<()> {
        keys.int("bits", &mut self.bits, 2..=8, "bits of most rows, where no quantiser is inside")?;
        keys.int("high", &mut self.high, 2..=8, "bits of the rows that matter most")?;
        let about = "consecutive inputs that share a scale; 0: a whole row";
        keys.int("group", &mut self.group, 0..=1 << 20, about)?;
        keys.float("share", &mut self.share, 0.0..=1.0, "part of the rows that matters most")?;
        let about = "in place of a part: rows that the loss changes by more for matter most";
        keys.optional_float("threshold", &mut self.threshold, 0.0..=1e30, about)
    }
}

pub(crate) fn stage() -> Row<WeightPart> {
    Row::method_with(
        "mixllm",
        "rounds the rows that the loss is most sensitive to at more bits than the others",
        MixLlm::default,
        |knobs, inner| {
            let gptq = |bits| Gptq::new(GridSpec::new(bits, knobs.group).with_clip(Clip::Mse));
            let low = inner.unwrap_or_else(|| Box::new(gptq(knobs.bits)));
            let mut mixed = MixedRows::new(low, gptq(knobs.high), knobs.share);
            mixed.threshold = knobs.threshold;
            Ok(Box::new(mixed))
        },
    )
}
