//! STUN's first stage (Lee, Seo, Hwang et al.: "STUN: Structured-Then-Unstructured Pruning for Scalable MoE Pruning", 2024):
//! experts that behave alike are found by their rows of the router, and one of each cluster stays. The second stage is any
//! selector behind it: `stun | wanda(...)`.

use tensorpress_tensor::ndarray::{Array2, ArrayView2};
use tensorpress_tensor::rewrite::{
    BlockLayout, BlockView, Decision, Edit, Expert, Judgement, ModelLayout, SharedInput,
};
use tensorpress_tensor::stage::{Keys, Knobs, Row, WeightPart};
use tensorpress_tensor::stats::Needs;
use tensorpress_tensor::{Error, Method, RawTensor, Result, Rewrite, Tensor as _};

use super::mean::Clusters;

/// Drops experts that others are like.
///
/// Two experts are as far apart as their rows of the router, over the largest such distance, less `together` times how often
/// tokens go to both, over the most often. Clusters whose farthest members are nearest are joined until as many are left as
/// experts are to stay, in each group of experts by itself. Of each cluster the expert stays whose weights are nearest to
/// the mean of the cluster's; where a group has few clusters, the mean itself takes its place, and that of their rows.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Stun {
    /// Fraction of the experts of each block that goes, 0 to below 1. Default 0.25.
    pub sparsity: f64,
    /// What going together counts beside the distance of rows, 0 and more. Default 1.
    pub together: f64,
    /// Where a group of experts is left with fewer clusters than this, means stay; 0 for none. Default 3.
    pub mean: usize,
}

impl Default for Stun {
    fn default() -> Self {
        Self { sparsity: 0.25, together: 1.0, mean: 3 }
    }
}

impl Stun {
    /// Sets the fraction that goes.
    #[must_use]
    pub fn with_sparsity(mut self, sparsity: f64) -> Self {
        self.sparsity = sparsity;
        self
    }

    /// Sets what going together counts.
    #[must_use]
    pub fn with_together(mut self, together: f64) -> Self {
        self.together = together;
        self
    }

    /// Sets below how many clusters means stay.
    #[must_use]
    pub fn with_mean(mut self, mean: usize) -> Self {
        self.mean = mean;
        self
    }

    /// How far experts are apart, by their rows `[experts, channels]` of the router and by how often tokens go to both,
    /// `[experts, experts]`. NaN nowhere where rows are finite.
    ///
    /// # Panics
    /// Unless there are as many rows as experts.
    #[must_use]
    pub fn distances(
        &self,
        rows: ArrayView2<'_, f32>,
        together: ArrayView2<'_, f64>,
    ) -> Array2<f64> {
        let experts = rows.nrows();
        assert_eq!(together.dim(), (experts, experts), "pairs of as many experts as rows");
        let apart = Array2::from_shape_fn((experts, experts), |(a, b)| {
            let pairs = rows.row(a).into_iter().zip(rows.row(b));
            pairs.map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum::<f64>().sqrt()
        });
        let pair = |at: &(usize, usize)| at.0 != at.1;
        let most = |of: &ArrayView2<'_, f64>| {
            let values = of.indexed_iter().filter(|(at, _)| pair(at)).map(|(_, value)| *value);
            let most = values.fold(0.0, f64::max);
            if most > 0.0 { most } else { 1.0 }
        };
        let (far, often) = (most(&apart.view()), most(&together));
        Array2::from_shape_fn((experts, experts), |at| {
            apart[at] / far - self.together * together[at] / often
        })
    }
}

/// Clusters by complete linkage, of these experts, until so many are left; of equal pairs the first are joined.
fn clusters(
    distances: &Array2<f64>,
    experts: std::ops::Range<usize>,
    left: usize,
) -> Vec<Vec<usize>> {
    let mut clusters: Vec<Vec<usize>> = experts.map(|expert| vec![expert]).collect();
    let farthest = |a: &[usize], b: &[usize]| {
        let pairs = a.iter().flat_map(|a| b.iter().map(move |b| distances[[*a, *b]]));
        pairs.fold(f64::NEG_INFINITY, f64::max)
    };
    while clusters.len() > left.max(1) {
        let mut nearest = (f64::INFINITY, 0, 1);
        for a in 0..clusters.len() {
            for b in a + 1..clusters.len() {
                let apart = farthest(&clusters[a], &clusters[b]);
                if apart < nearest.0 {
                    nearest = (apart, a, b);
                }
            }
        }
        let joined = clusters.remove(nearest.2);
        clusters[nearest.1].extend(joined);
    }
    clusters
}

/// Of a cluster the expert nearest to its mean, by inner products of the experts' weights; of equally near ones the first.
fn nearest_to_mean(cluster: &[usize], products: &Array2<f64>) -> usize {
    // ‖w_i - m‖² less what is the same for all: <w_i, w_i> - 2 <w_i, m>.
    let distance = |i: usize| {
        let to_mean: f64 = cluster.iter().map(|j| products[[i, *j]]).sum();
        products[[i, i]] - 2.0 * to_mean / cluster.len() as f64
    };
    let mut sorted = cluster.to_vec();
    sorted.sort_unstable();
    let best = sorted.iter().copied().min_by(|a, b| distance(*a).total_cmp(&distance(*b)));
    best.unwrap_or_default()
}

/// Values that are read of all experts at once.
const TOGETHER: usize = 1 << 22;

/// Inner products of the experts' weights, `[experts, experts]`.
fn products(block: &BlockView<'_>, experts: usize) -> Result<Array2<f64>> {
    let mut products = Array2::zeros((experts, experts));
    let linears = &block.layout().linears;
    let of = |index: usize| {
        linears.iter().filter(move |spec| spec.expert == Some(Expert::Routed(index)))
    };
    for at in 0..of(0).count() {
        let specs: Vec<_> = (0..experts).filter_map(|index| of(index).nth(at)).collect();
        // Each with the row at which it begins: a stack is one matrix below the other.
        let parts = specs.iter().map(|spec| -> Result<(RawTensor, usize)> {
            let Some(place) = &spec.place else { return Ok((block.tensor(&spec.name)?, 0)) };
            let stack = block.tensor(&place.tensor)?;
            let [all, rows, columns] = *stack.shape() else { return Ok((stack, 0)) };
            let below = vec![all * rows, columns];
            let flat = RawTensor::new(stack.dtype(), below, stack.bytes().clone())?;
            Ok((flat, place.index.unwrap_or(0) * rows))
        });
        let parts = parts.collect::<Result<Vec<_>>>()?;
        let Some((first, _)) = parts.first() else { continue };
        let [all, columns] = first.matrix_shape();
        let stacked = specs.first().is_some_and(|spec| spec.place.is_some());
        let rows = if stacked { all / experts } else { all };
        let step = (TOGETHER / (columns * experts).max(1)).clamp(1, rows.max(1));
        for begin in (0..rows).step_by(step) {
            let count = step.min(rows - begin);
            let mut values = Array2::<f32>::zeros((experts, count * columns));
            for ((tensor, row), mut to) in parts.iter().zip(values.rows_mut()) {
                let to = to.as_slice_mut().expect("a row of a new array");
                tensor.read_rows(row + begin..row + begin + count, to)?;
            }
            for a in 0..experts {
                for b in a..experts {
                    let pairs = values.row(a).into_iter().zip(values.row(b));
                    let sum: f64 = pairs.map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
                    products[[a, b]] += sum;
                    if a != b {
                        products[[b, a]] += sum;
                    }
                }
            }
        }
    }
    Ok(products)
}

impl Knobs for Stun {
    fn knobs(&mut self, keys: &mut Keys<'_>) -> Result<()> {
        let about = "fraction of the experts of each block that goes, below 1";
        keys.float("sparsity", &mut self.sparsity, 0.0..=1.0, about)?;
        keys.float("together", &mut self.together, 0.0..=1e3, "what going together counts")?;
        let about = "means stay where a group of experts has fewer clusters than this";
        keys.int("mean", &mut self.mean, 0..=1 << 16, about)
    }
}

impl Method for Stun {
    fn id(&self) -> &'static str {
        "stun"
    }

    fn needs(&self) -> Needs {
        Needs::NONE
    }
}

/// Names of what is remembered.
const DISTANCES: &str = "distances";
const PRODUCTS: &str = "products";
const CLUSTERS: &str = "clusters";

impl Rewrite for Stun {
    fn inputs(&self) -> &[SharedInput] {
        &[]
    }

    fn needs_experts(&self) -> bool {
        true
    }

    fn keeps_blocks_alike(&self) -> bool {
        true
    }

    fn fits(&self, model: &ModelLayout) -> Result<()> {
        super::fits(self.id(), self.sparsity, model)?;
        let uneven =
            |block: &&BlockLayout| block.expert_widths().windows(2).any(|pair| pair[0] != pair[1]);
        match model.blocks.iter().find(uneven) {
            None => Ok(()),
            Some(block) => Err(Error::unsupported(format!(
                "{}: experts of block {} differ in width: there is no distance between them, and no mean",
                self.id(),
                block.block
            ))),
        }
    }

    /// Distances and inner products; where no token was seen, by the router alone, and a note says so.
    ///
    /// # Errors
    /// `Numerical` for rows of the router that are not finite.
    fn judge(&self, _: &ModelLayout, block: &BlockView<'_>) -> Result<Judgement> {
        let Some(experts) = &block.layout().experts else { return Ok(Judgement::new()) };
        let rows = block.matrix(&experts.router)?;
        if rows.iter().any(|value| !value.is_finite()) {
            let message = "the router has values that are not finite";
            return Err(Error::numerical(message).in_tensor(&experts.router));
        }
        let activity = block.experts().filter(|activity| activity.tokens() > 0);
        let all = (experts.count, experts.count);
        let together = Array2::from_shape_fn(all, |(a, b)| {
            activity.map_or(0.0, |activity| activity.together(a, b) as f64)
        });
        let distances = self.distances(rows.view(), together.view());
        let products = products(block, experts.count)?;
        let flat = |of: Array2<f64>| of.into_raw_vec_and_offset().0;
        let judgement = Judgement::new()
            .with_values(DISTANCES, &flat(distances))
            .with_values(PRODUCTS, &flat(products));
        Ok(match activity {
            Some(_) => judgement,
            None => {
                let note = "no token was seen: experts were compared by the router alone";
                judgement.with_note(&experts.router, note)
            }
        })
    }

    fn settle(&self, model: &ModelLayout, judgements: &[Judgement]) -> Result<Vec<Decision>> {
        super::settle(model, judgements, &|experts, judgement| {
            let square = |name: &str| {
                let all = (experts.count, experts.count);
                Array2::from_shape_vec(all, judgement.values(name)?)
                    .map_err(|_| Error::shape(format!("`{name}` of another number of experts")))
            };
            let (distances, products) = (square(DISTANCES)?, square(PRODUCTS)?);
            let size = experts.count / experts.groups;
            let gone = super::gone(self.sparsity, size, experts.least());
            let (mut kept, mut of) = (Vec::new(), vec![0; experts.count]);
            for group in 0..experts.groups {
                for cluster in clusters(&distances, group * size..(group + 1) * size, size - gone) {
                    let stays = nearest_to_mean(&cluster, &products);
                    cluster.iter().for_each(|index| of[*index] = stays);
                    kept.push(stays);
                }
            }
            kept.sort_unstable();
            let decision = super::decision(kept);
            let few = gone > 0 && size - gone < self.mean;
            Ok(if few { decision.with_kept(CLUSTERS, of) } else { decision })
        })
    }

    fn edit(
        &self,
        _: &ModelLayout,
        block: &BlockView<'_>,
        _: &Judgement,
        decision: &Decision,
    ) -> Result<Edit> {
        match decision.kept(CLUSTERS) {
            Ok(of) => Clusters { kept: decision.kept(super::KEPT)?, of }.edit(block),
            Err(_) => super::edit(block.layout(), decision),
        }
    }
}

pub(crate) fn stage() -> Row<WeightPart> {
    Row::rewrite(
        "stun",
        "of experts that the router can hardly tell apart one stays; before any selector",
        Stun::default,
    )
}
