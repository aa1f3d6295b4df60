use tensorpress_tensor::{Error, Result};

/// Channels that are one number: those of a layer, or of all layers that a residual stream joins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Group {
    channels: usize,
    fixed: bool,
}

impl Group {
    /// So many channels, of which some may go.
    #[must_use]
    pub fn new(channels: usize) -> Self {
        Self { channels, fixed: false }
    }

    /// So many channels that stay, as those of the input do.
    #[must_use]
    pub fn fixed(channels: usize) -> Self {
        Self { channels, fixed: true }
    }
}

/// A layer between two groups of channels, and the share of its weights that is to stay.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Between {
    from: usize,
    to: usize,
    density: f64,
}

impl Between {
    /// A layer from one group to another, by their places.
    #[must_use]
    pub fn new(from: usize, to: usize, density: f64) -> Self {
        Self { from, to, density }
    }
}

/// Channels of each group for which each layer is about as dense as asked (PreCropping: Cai et al., *Structured Pruning is All
/// You Need for Pruning CNNs at Initialization*, 2022): least Σ ln²(c_from c_to k² / (density C_from C_to k²)), where the
/// kernel's area cancels.
///
/// In real numbers this is a least-squares problem, whose optimum coordinate descent finds; rounded, it is improved as long as
/// it helps to give one group up to 16 channels more or fewer, and then each of the others, from there on outwards, its best.
/// A target below one channel counts as one.
///
/// # Errors
/// `InvalidArgument` for a group without channels, a layer of groups that there are not, or a density outside 0 to 1.
pub fn crop(groups: &[Group], layers: &[Between]) -> Result<Vec<usize>> {
    if let Some(at) = groups.iter().position(|group| group.channels == 0) {
        return Err(Error::invalid(format!("group {at} has no channels")));
    }
    for (at, layer) in layers.iter().enumerate() {
        let known = layer.from < groups.len() && layer.to < groups.len();
        if !known || !(0.0..=1.0).contains(&layer.density) {
            return Err(Error::invalid(format!("layer {at} is {layer:?}")));
        }
    }
    let mut of = vec![Vec::new(); groups.len()];
    for (at, layer) in layers.iter().enumerate() {
        of[layer.from].push(at);
        if layer.to != layer.from {
            of[layer.to].push(at);
        }
    }
    let channels = |group: usize| groups[group].channels as f64;
    let target =
        |layer: &Between| (layer.density * channels(layer.from) * channels(layer.to)).max(1.0).ln();
    let net = Net { groups, layers, targets: layers.iter().map(target).collect(), of };
    let mut counts: Vec<usize> =
        net.real().into_iter().map(|log| log.exp().round() as usize).collect();
    for (count, group) in counts.iter_mut().zip(groups) {
        *count = if group.fixed { group.channels } else { (*count).clamp(1, group.channels) };
    }
    while net.improve(&mut counts) {}
    Ok(counts)
}

/// Where both ends of a chain are free, one end of a layer may grow as the other shrinks: whole numbers that suit all lie
/// some way off.
const REACH: isize = 16;

struct Net<'a> {
    groups: &'a [Group],
    layers: &'a [Between],
    /// Logarithms of what the channels of each layer should multiply to.
    targets: Vec<f64>,
    /// The layers at each group.
    of: Vec<Vec<usize>>,
}

impl Net<'_> {
    /// Logarithms of the channels, by turns each the best for what the others are.
    fn real(&self) -> Vec<f64> {
        let mut logs: Vec<f64> = (0..self.groups.len()).map(|group| self.most(group)).collect();
        for _ in 0..10_000 {
            let mut moved = 0.0f64;
            for group in 0..logs.len() {
                let best = self.best(group, |other| Some(logs[other]));
                moved = moved.max((best - logs[group]).abs());
                logs[group] = best;
            }
            if moved < 1e-12 {
                break;
            }
        }
        logs
    }

    fn most(&self, group: usize) -> f64 {
        (self.groups[group].channels as f64).ln()
    }

    /// The best logarithm of a group for those of the others that are known.
    fn best(&self, group: usize, log: impl Fn(usize) -> Option<f64>) -> f64 {
        let most = self.most(group);
        if self.groups[group].fixed || self.of[group].is_empty() {
            return most;
        }
        let (mut sum, mut weight) = (0.0, 0.0);
        for at in &self.of[group] {
            let Between { from, to, .. } = self.layers[*at];
            // Where both ends are one group, its logarithm counts twice.
            let (target, times) = match (from == to, log(from + to - group)) {
                (true, _) => (2.0 * self.targets[*at], 4.0),
                (false, Some(log)) => (self.targets[*at] - log, 1.0),
                (false, None) => continue,
            };
            (sum, weight) = (sum + target, weight + times);
        }
        (sum / weight).clamp(0.0, most)
    }

    /// What layers are off by.
    fn off(&self, counts: &[usize]) -> f64 {
        let off = |(layer, target): (&Between, &f64)| {
            let Between { from, to, .. } = *layer;
            ((counts[from] as f64).ln() + (counts[to] as f64).ln() - target).powi(2)
        };
        self.layers.iter().zip(&self.targets).map(off).sum()
    }

    /// The change that helps the most, if any does.
    fn improve(&self, counts: &mut Vec<usize>) -> bool {
        // What sums are rounded by is no gain.
        let mut least = self.off(counts) - 1e-12;
        let mut best = None;
        for group in 0..counts.len() {
            let Group { channels, fixed } = self.groups[group];
            let order = self.outwards(group);
            for by in (-REACH..=REACH).filter(|by| *by != 0) {
                let count = counts[group].saturating_add_signed(by);
                if fixed || !(1..=channels).contains(&count) {
                    continue;
                }
                // The others follow: each for those that already have, as what comes later can follow too; then for all.
                let mut next = counts.clone();
                next[group] = count;
                let mut settled = vec![false; counts.len()];
                settled[group] = true;
                for other in &order {
                    settled[*other] = true;
                    next[*other] = self.whole(*other, &next, |at| settled[at]);
                }
                for other in &order {
                    next[*other] = self.whole(*other, &next, |_| true);
                }
                let off = self.off(&next);
                if off < least {
                    (least, best) = (off, Some(next));
                }
            }
        }
        let found = best.is_some();
        *counts = best.unwrap_or_else(|| std::mem::take(counts));
        found
    }

    /// The best whole count of a group for those near it: beside the best real one, as what is off grows to both sides.
    fn whole(&self, group: usize, counts: &[usize], near: impl Fn(usize) -> bool) -> usize {
        if self.groups[group].fixed {
            return self.groups[group].channels;
        }
        let real = self.best(group, |other| near(other).then(|| (counts[other] as f64).ln()));
        let most = self.groups[group].channels;
        let below = (real.exp() as usize).clamp(1, most);
        let far = |count: &usize| ((*count as f64).ln() - real).abs();
        [below, below.saturating_add(1).min(most)]
            .into_iter()
            .min_by(|a, b| far(a).total_cmp(&far(b)))
            .unwrap_or(below)
    }

    /// The other groups that layers connect with one, the nearest first.
    fn outwards(&self, group: usize) -> Vec<usize> {
        let mut order = vec![group];
        let mut known = vec![false; self.groups.len()];
        known[group] = true;
        let mut at = 0;
        while at < order.len() {
            for layer in &self.of[order[at]] {
                let Between { from, to, .. } = self.layers[*layer];
                let other = from + to - order[at];
                if !std::mem::replace(&mut known[other], true) {
                    order.push(other);
                }
            }
            at += 1;
        }
        order.split_off(1)
    }
}
