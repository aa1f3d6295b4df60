use std::f64::consts::TAU;

use ndarray::ArrayViewMut2;

use crate::architecture::RopePlan;
use crate::config::{RopeConfig, RopeScaling, mscale};

/// Rotary position embeddings: pairs of dimensions of a head are turned by the angle position x frequency. Pairs are
/// dimensions i and i + d/2 of the d that are turned, or neighbours.
#[derive(Debug)]
pub struct Rope {
    head_dim: usize,
    /// The first dimension that is turned; twice as many as frequencies are.
    first: usize,
    interleaved: bool,
    frequencies: Vec<f32>,
    /// cos and sin are multiplied by this.
    factor: f32,
    /// Other frequencies, for sequences beyond a length.
    beyond: Option<Beyond>,
    /// cos and sin of the first positions, `[position][cos.., sin..]`.
    table: Vec<f32>,
}

/// What becomes of the frequencies when a sequence is longer than this.
#[derive(Debug)]
struct Beyond {
    length: f64,
    kind: BeyondKind,
}

#[derive(Debug)]
enum BeyondKind {
    /// The base grows with the length.
    Grows { theta: f64, factor: f64 },
    /// Others, whatever the length is.
    Others(Vec<f32>),
}

/// Where the rows of a sequence stand; positions ascend.
#[derive(Debug, Clone, Copy)]
pub(crate) enum RowsAt<'a> {
    /// One behind the other.
    From(usize),
    /// A position each.
    Each(&'a [usize]),
}

impl RowsAt<'_> {
    pub(crate) fn position(self, row: usize) -> usize {
        match self {
            Self::From(first) => first + row,
            Self::Each(positions) => positions[row],
        }
    }

    /// One more than the position of the last of so many rows.
    fn end(self, rows: usize) -> usize {
        match self {
            Self::From(first) => first + rows,
            Self::Each(positions) => positions.last().map_or(0, |last| last + 1),
        }
    }
}

/// Positions whose angles are computed beforehand.
const TABLE: usize = 4096;

impl Rope {
    /// Rotations of all of heads of `head_dim` values, in a model of this context length.
    #[must_use]
    pub fn new(config: &RopeConfig, head_dim: usize, context: usize) -> Self {
        Self::of(&RopePlan::whole(config.clone(), head_dim), head_dim, context)
    }

    /// Rotations of a part of heads.
    pub(crate) fn of(plan: &RopePlan, head_dim: usize, context: usize) -> Self {
        let RopePlan { config, first, dims, interleaved } = plan;
        let mut rope = Self {
            head_dim,
            first: *first,
            interleaved: *interleaved,
            frequencies: frequencies(config, *dims),
            factor: factor(&config.scaling) as f32,
            beyond: beyond(config, *dims),
            table: Vec::new(),
        };
        let mut table = Vec::new();
        for position in 0..context.min(TABLE) {
            rope.angles(&rope.frequencies, position, &mut table);
        }
        rope.table = table;
        rope
    }

    /// Angle per position of each pair of dimensions, in sequences that need no other.
    #[must_use]
    pub fn frequencies(&self) -> &[f32] {
        &self.frequencies
    }

    /// Whether heads are turned as a whole, in halves, by the same angles for any length, and not multiplied.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        let whole = 2 * self.frequencies.len() == self.head_dim;
        whole && !self.interleaved && self.factor == 1.0 && self.beyond.is_none()
    }

    /// Turns the heads of row t of `x` `[tokens, heads * head_dim]` to position `first + t`, in a sequence that ends with
    /// the last row. (Where the angles depend on the length, what was turned before keeps its angles.)
    ///
    /// # Panics
    /// If a row is not contiguous.
    pub fn apply(&self, x: ArrayViewMut2<'_, f32>, first: usize) {
        self.turn(x, RowsAt::From(first), 1.0);
    }

    /// Replaces gradients of what [`apply`](Self::apply) makes by those of what it reads: turns back, with the same factor.
    pub(crate) fn back(&self, x: ArrayViewMut2<'_, f32>, first: usize) {
        self.turn(x, RowsAt::From(first), -1.0);
    }

    /// [`apply`](Self::apply) where rows stand anywhere.
    pub(crate) fn apply_at(&self, x: ArrayViewMut2<'_, f32>, at: RowsAt<'_>) {
        self.turn(x, at, 1.0);
    }

    /// Turns by the angles times `way`, 1 or -1.
    fn turn(&self, mut x: ArrayViewMut2<'_, f32>, at: RowsAt<'_>, way: f32) {
        let half = self.frequencies.len();
        let other = self.frequencies_beyond(at.end(x.nrows()));
        let mut made = Vec::new();
        for (t, mut row) in x.rows_mut().into_iter().enumerate() {
            let position = at.position(t);
            let known = self.table.get(position * 2 * half..(position + 1) * 2 * half);
            let angles = match known.filter(|_| other.is_none()) {
                Some(known) => known,
                None => {
                    made.clear();
                    let frequencies = other.as_deref().unwrap_or(&self.frequencies);
                    self.angles(frequencies, position, &mut made);
                    &made
                }
            };
            let (cos, sin) = angles.split_at(half);
            let row = row.as_slice_mut().expect("rows are contiguous");
            for head in row.chunks_exact_mut(self.head_dim) {
                let head = &mut head[self.first..self.first + 2 * half];
                if self.interleaved {
                    for ((pair, cos), sin) in
                        head.as_chunks_mut::<2>().0.iter_mut().zip(cos).zip(sin)
                    {
                        let sin = way * sin;
                        *pair = [pair[0] * cos - pair[1] * sin, pair[1] * cos + pair[0] * sin];
                    }
                    continue;
                }
                let (a, b) = head.split_at_mut(half);
                for i in 0..half {
                    let (x, y, sin) = (a[i], b[i], way * sin[i]);
                    a[i] = x * cos[i] - y * sin;
                    b[i] = y * cos[i] + x * sin;
                }
            }
        }
    }

    /// The frequencies of a sequence of this length, if they are not the usual ones.
    fn frequencies_beyond(&self, length: usize) -> Option<Vec<f32>> {
        let Beyond { length: limit, kind } = self.beyond.as_ref()?;
        if length as f64 <= *limit {
            return None;
        }
        Some(match kind {
            BeyondKind::Others(others) => others.clone(),
            BeyondKind::Grows { theta, factor } => {
                let dims = 2.0 * self.frequencies.len() as f64;
                let grown = factor * length as f64 / limit - (factor - 1.0);
                let theta = theta * grown.powf(dims / (dims - 2.0));
                plain(theta, self.frequencies.len()).map(|f| f as f32).collect()
            }
        })
    }

    fn angles(&self, frequencies: &[f32], position: usize, out: &mut Vec<f32>) {
        // The product is rounded to f32 before cos and sin, as everywhere these models run.
        let angle = |f: &f32| position as f32 * f;
        out.extend(frequencies.iter().map(|f| angle(f).cos() * self.factor));
        out.extend(frequencies.iter().map(|f| angle(f).sin() * self.factor));
    }
}

fn plain(theta: f64, pairs: usize) -> impl Iterator<Item = f64> {
    (0..pairs).map(move |i| theta.powf(-(i as f64) / pairs as f64))
}

fn frequencies(config: &RopeConfig, dims: usize) -> Vec<f32> {
    let pairs = dims / 2;
    let plain = plain(config.theta, pairs).enumerate();
    plain.map(|(i, plain)| scaled(i, plain, config, dims) as f32).collect()
}

fn scaled(index: usize, frequency: f64, config: &RopeConfig, dims: usize) -> f64 {
    match &config.scaling {
        RopeScaling::Linear { factor } => frequency / factor,
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
            // How many turns fit into the original context: few means a long wavelength.
            let turns = original_context * frequency / TAU;
            let kept = (turns - low_freq_factor) / (high_freq_factor - low_freq_factor);
            let kept = kept.clamp(0.0, 1.0);
            kept * frequency + (1.0 - kept) * frequency / factor
        }
        RopeScaling::Yarn { factor, original_context, beta_fast, beta_slow, truncate, .. } => {
            // The index of the pair that turns so many times within the original context.
            let index_of = |turns: f64| {
                let ratio = original_context / (turns * TAU);
                dims as f64 * ratio.ln() / (2.0 * config.theta.ln())
            };
            let (mut low, mut high) = (index_of(*beta_fast), index_of(*beta_slow));
            if *truncate {
                (low, high) = (low.floor(), high.ceil());
            }
            (low, high) = (low.max(0.0), high.min(dims as f64 - 1.0));
            if low == high {
                high += 0.001;
            }
            let stretched = ((index as f64 - low) / (high - low)).clamp(0.0, 1.0);
            stretched * frequency / factor + (1.0 - stretched) * frequency
        }
        RopeScaling::Longrope { short, .. } => frequency / short.get(index).unwrap_or(&1.0),
        _ => frequency,
    }
}

/// What cos and sin are multiplied by.
fn factor(scaling: &RopeScaling) -> f64 {
    match scaling {
        RopeScaling::Longrope { attention_factor, .. } => *attention_factor,
        RopeScaling::Yarn { attention_factor: Some(given), .. } => *given,
        RopeScaling::Yarn { factor, mscale: Some(m), mscale_all_dim: Some(all), .. } => {
            mscale(*factor, *m) / mscale(*factor, *all)
        }
        RopeScaling::Yarn { factor, .. } => mscale(*factor, 1.0),
        _ => 1.0,
    }
}

fn beyond(config: &RopeConfig, dims: usize) -> Option<Beyond> {
    match &config.scaling {
        RopeScaling::Dynamic { factor, original_context } => {
            let kind = BeyondKind::Grows { theta: config.theta, factor: *factor };
            Some(Beyond { length: *original_context, kind })
        }
        RopeScaling::Longrope { long, original_context, .. } => {
            let one = |(i, f): (usize, f64)| (f / long.get(i).unwrap_or(&1.0)) as f32;
            let others = plain(config.theta, dims / 2).enumerate().map(one).collect();
            Some(Beyond { length: *original_context, kind: BeyondKind::Others(others) })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::Array2;

    #[test]
    fn beyond_the_table_is_the_same_rotation() {
        let config = RopeConfig { theta: 10_000.0, scaling: RopeScaling::Default };
        let (short, long) = (Rope::new(&config, 8, 2), Rope::new(&config, 8, 100));
        let mut a = Array2::from_shape_fn((50, 16), |(i, j)| (i * j % 7) as f32);
        let mut b = a.clone();
        short.apply(a.view_mut(), 30);
        long.apply(b.view_mut(), 30);
        assert_eq!(a, b);
    }
}
