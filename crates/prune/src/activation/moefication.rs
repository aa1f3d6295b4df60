//! A dense feed-forward network run as a mixture ("Understanding and Harnessing Sparsity in Unified Multimodal Models",
//! 2025): its channels, partitioned; weights stay as they are.

use tensorpress_tensor::ndarray::{Array2, ArrayView1, ArrayView2, Axis};
use tensorpress_tensor::{Error, Result, Scratch};

use super::affine::Affine;
use super::clusters::balanced_clusters;
use super::feed_forward::{FeedForward, Step};
use super::{check_columns, check_finite};
use crate::pattern::count;

/// How channels are parted: those that always run, and groups that a token chooses between.
///
/// A channel's worth is its contribution |h_i| ‖D_:i‖ over calibration tokens. The share of greatest mean worth always runs;
/// the others become clusters of one size, give or take a channel, of which two channels are close if they are among the
/// tokens' strongest at the same tokens: vectors of 0 and 1, a token each.
///
/// ```
/// use tensorpress_prune::activation::Moefication;
/// use tensorpress_tensor::ndarray::array;
///
/// // Channel 4 is always strong, 0 and 2 at even tokens, 1 and 3 at odd ones.
/// let even = [5.0, 0.1, 5.0, 0.1, 9.0];
/// let odd = [0.1, 5.0, 0.1, 5.0, 9.0];
/// let how = Moefication::default().with_experts(2).with_shared(0.2).with_strong(0.6);
/// let mut partition = how.partition(array![even, odd, even, odd].view())?;
/// partition.experts.sort();
/// assert_eq!((partition.shared, partition.experts), (vec![4], vec![vec![0, 2], vec![1, 3]]));
/// # Ok::<(), tensorpress_tensor::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Moefication {
    /// Groups that are chosen between, 1 and more. Default 8.
    pub experts: usize,
    /// Fraction of the channels that always run, 0 to below 1. Default 0.25.
    pub shared: f64,
    /// Fraction of a token's channels that count as strong, above 0 to 1. Default 0.25.
    pub strong: f64,
    /// Rounds of clustering, at most. Default 16.
    pub rounds: usize,
    /// Of the first means. Default 0.
    pub seed: u64,
}

impl Default for Moefication {
    fn default() -> Self {
        Self { experts: 8, shared: 0.25, strong: 0.25, rounds: 16, seed: 0 }
    }
}

/// The channels of a network, each in one place.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Partition {
    /// Those that always run, ascending.
    pub shared: Vec<usize>,
    /// Those of each group, ascending.
    pub experts: Vec<Vec<usize>>,
}

impl Moefication {
    /// Sets how many groups there are.
    #[must_use]
    pub fn with_experts(mut self, experts: usize) -> Self {
        self.experts = experts;
        self
    }

    /// Sets the fraction that always runs.
    #[must_use]
    pub fn with_shared(mut self, shared: f64) -> Self {
        self.shared = shared;
        self
    }

    /// Sets the fraction that counts as strong.
    #[must_use]
    pub fn with_strong(mut self, strong: f64) -> Self {
        self.strong = strong;
        self
    }

    /// Sets how often clusters are made anew, at most.
    #[must_use]
    pub fn with_rounds(mut self, rounds: usize) -> Self {
        self.rounds = rounds;
        self
    }

    /// Sets the seed.
    #[must_use]
    pub fn with_seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Parts the channels of contributions `[tokens, channels]` (see [`FeedForward::contributions`]). Without tokens all
    /// channels are alike: the first ones are shared, and the others fall to groups as they come.
    ///
    /// # Errors
    /// `InvalidArgument`, also for more groups than there are channels for; `Numerical` for contributions that are not
    /// finite.
    pub fn partition(&self, contributions: ArrayView2<'_, f32>) -> Result<Partition> {
        let channels = contributions.ncols();
        let outside = |name, value, allowed| {
            Err(Error::invalid(format!("{name} = {value}: allowed are {allowed}")))
        };
        if !(0.0..1.0).contains(&self.shared) {
            return outside("shared", self.shared, "0 to below 1");
        }
        if !(self.strong > 0.0 && self.strong <= 1.0) {
            return outside("strong", self.strong, "above 0 to 1");
        }
        let always = count(channels, self.shared);
        if !(1..=channels - always).contains(&self.experts) {
            let (experts, most) = (self.experts, channels - always);
            let what = format!("experts = {experts}: allowed are 1 to {most}, a channel each");
            return Err(Error::invalid(what));
        }
        check_finite("contributions", contributions)?;
        let worth = contributions.mapv(f64::from).sum_axis(Axis(0));
        let mut order = strongest(worth.view(), channels);
        let mut routed = order.split_off(always);
        order.sort_unstable();
        routed.sort_unstable();
        let strong = count(channels, self.strong).max(1);
        let mut patterns = Array2::<f32>::zeros((channels, contributions.nrows()));
        for (token, row) in contributions.rows().into_iter().enumerate() {
            for channel in strongest(row.mapv(f64::from).view(), strong) {
                patterns[[channel, token]] = 1.0;
            }
        }
        let patterns = patterns.select(Axis(0), &routed);
        let clusters = balanced_clusters(patterns.view(), self.experts, self.rounds, self.seed);
        let experts = clusters.into_iter().map(|c| c.into_iter().map(|i| routed[i]).collect());
        Ok(Partition { shared: order, experts: experts.collect() })
    }
}

/// So many of the greatest values, from the greatest on; of equal ones the earlier.
fn strongest(values: ArrayView1<'_, f64>, count: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_unstable_by(|a, b| values[*b].total_cmp(&values[*a]).then(a.cmp(b)));
    order.truncate(count);
    order
}

/// The `count` groups of highest score of each token, ascending; of equal ones the earlier. All, where there are fewer.
#[must_use]
pub fn choose(scores: ArrayView2<'_, f32>, count: usize) -> Vec<Vec<usize>> {
    let choose = |row: ArrayView1<'_, f32>| {
        let mut chosen = strongest(row.mapv(f64::from).view(), count);
        chosen.sort_unstable();
        chosen
    };
    scores.rows().into_iter().map(choose).collect()
}

/// A network whose tokens run what always runs, and the groups they choose.
#[derive(Debug, Clone)]
pub struct RoutedNetwork {
    network: FeedForward,
    partition: Partition,
    /// The group of each channel; none of what always runs.
    group: Vec<Option<usize>>,
}

impl RoutedNetwork {
    /// Runs a network by a partition of its channels.
    ///
    /// # Errors
    /// `ShapeMismatch` unless every channel is in one place.
    pub fn new(network: FeedForward, partition: Partition) -> Result<Self> {
        let channels = network.channels();
        let mut places = vec![0_u32; channels];
        let mut group = vec![None; channels];
        let shared = partition.shared.iter().map(|channel| (*channel, None));
        let routed = partition.experts.iter().enumerate();
        let routed = routed.flat_map(|(e, all)| all.iter().map(move |channel| (*channel, Some(e))));
        for (channel, of) in shared.chain(routed) {
            if channel >= channels {
                let what = format!("channel {channel} of a partition of {channels} channels");
                return Err(Error::shape(what));
            }
            places[channel] += 1;
            group[channel] = of;
        }
        match places.iter().position(|count| *count != 1) {
            None => Ok(Self { network, partition, group }),
            Some(channel) => {
                let count = places[channel];
                Err(Error::shape(format!("channel {channel} is in {count} places of a partition")))
            }
        }
    }

    /// The partition.
    #[must_use]
    pub fn partition(&self) -> &Partition {
        &self.partition
    }

    /// What each group would add to each token X `[tokens, inputs]`, the root of the sum of its channels' squared
    /// contributions, `[tokens, groups]`: the oracle. It reads the whole network.
    ///
    /// # Errors
    /// `ShapeMismatch`.
    pub fn oracle(&self, x: ArrayView2<'_, f32>, scratch: &mut Scratch) -> Result<Array2<f32>> {
        let all: Vec<usize> = (0..self.network.channels()).collect();
        let hidden = self.network.hidden(x, &all, scratch)?;
        let contributions = self.network.contributions(hidden.view())?;
        let mut scores = Array2::<f64>::zeros((x.nrows(), self.partition.experts.len()));
        for ((token, channel), value) in contributions.indexed_iter() {
            if let Some(group) = self.group[channel] {
                scores[[token, group]] += f64::from(*value).powi(2);
            }
        }
        Ok(scores.mapv(|sum| sum.sqrt() as f32))
    }

    /// The router that is nearest to the oracle on tokens X `[tokens, inputs]`, an affine map.
    ///
    /// # Errors
    /// `ShapeMismatch`; `Numerical` for values that are not finite.
    pub fn fit_router(&self, x: ArrayView2<'_, f32>, scratch: &mut Scratch) -> Result<Affine> {
        Affine::fit(x, self.oracle(x, scratch)?.view())
    }

    /// Answers tokens X `[tokens, inputs]`, each by what always runs and its own groups (see [`choose`]). The groups that one
    /// of them chose are read, once for all; those that a token did not are 0 to it.
    ///
    /// # Errors
    /// `ShapeMismatch`; `InvalidArgument` for a group that is not there.
    pub fn apply(
        &self,
        x: ArrayView2<'_, f32>,
        chosen: &[Vec<usize>],
        scratch: &mut Scratch,
    ) -> Result<Step> {
        check_columns("tokens' choices", x.t(), chosen.len())?;
        let groups = self.partition.experts.len();
        let mut open = vec![vec![false; groups]; chosen.len()];
        for (open, chosen) in open.iter_mut().zip(chosen) {
            for group in chosen {
                let place = open.get_mut(*group).ok_or_else(|| {
                    Error::invalid(format!("group = {group}: allowed are those below {groups}"))
                })?;
                *place = true;
            }
        }
        let runs =
            |token: usize, channel: usize| self.group[channel].is_none_or(|g| open[token][g]);
        let any = |channel: &usize| (0..open.len()).any(|token| runs(token, *channel));
        let channels: Vec<usize> = (0..self.network.channels()).filter(any).collect();
        let mut hidden = self.network.hidden(x, &channels, scratch)?;
        for ((token, place), h) in hidden.indexed_iter_mut() {
            if !runs(token, channels[place]) {
                *h = 0.0;
            }
        }
        Ok(Step { output: self.network.output(hidden.view(), &channels, scratch)?, channels })
    }
}
