//! What the IQ2 and IQ3 types share: signs beside points of positive values, whose levels are odd numbers.

use super::nearby::Points;
use super::{Block, nearest, square};

/// A group of at most 32 values while its scale is sought.
pub(super) struct Group<'a> {
    /// Magnitudes; where signs must be even, one may be negative.
    pub(super) x: Vec<f32>,
    pub(super) weight: &'a [f32],
    /// √weight, which is what points are chosen by.
    root: Vec<f32>,
    /// Bit j of byte k: element 8k + j is negative.
    pub(super) signs: Vec<u8>,
}

impl<'a> Group<'a> {
    pub(super) fn new(x: &[f32], weight: &'a [f32]) -> Self {
        let signs = x
            .chunks(8)
            .map(|x| x.iter().enumerate().fold(0, |bits, (j, &x)| bits | u8::from(x < 0.0) << j));
        let root = weight.iter().map(|w| w.sqrt()).collect();
        Self { signs: signs.collect(), x: x.iter().map(|x| x.abs()).collect(), weight, root }
    }

    /// As `new`; where the signs of eight are odd, that of the least important value is turned.
    pub(super) fn with_even_signs(x: &[f32], weight: &'a [f32]) -> Self {
        let mut group = Self::new(x, weight);
        for (k, signs) in group.signs.iter_mut().enumerate() {
            if signs.count_ones() % 2 == 1 {
                let cost = |i: usize| weight[8 * k + i] * x[8 * k + i] * x[8 * k + i];
                let least =
                    (1..8).fold(0, |least, i| if cost(i) < cost(least) { i } else { least });
                group.x[8 * k + least] = -group.x[8 * k + least];
                *signs ^= 1 << least;
            }
        }
        group
    }

    pub(super) fn max(&self) -> f32 {
        self.x.iter().copied().fold(self.x[0], f32::max)
    }

    /// Points and scale; `scale` is what is returned if no candidate fits. A negative scale turns all signs.
    pub(super) fn fit(&mut self, points: &Points, search: Search, scale: f32) -> (Vec<u16>, f32) {
        let mut chosen = vec![0; self.x.len() / points.len];
        let mut on_grid = vec![!search.all_again; chosen.len()];
        let (mut scale, mut best) = (scale, 0.0);
        for step in -search.steps..=search.steps {
            let inverse = (search.top + step as f32 * search.step) / search.max;
            let found: Vec<_> =
                (0..chosen.len()).map(|k| self.point(points, k, inverse, 1.0 / inverse)).collect();
            let numbers: Vec<u16> = found.iter().map(|f| f.0).collect();
            let (qx, qq) = self.sums(points, &numbers);
            if qq > 0.0 && qx * qx > best * qq {
                scale = qx / qq;
                best = scale * qx;
                on_grid = found.iter().map(|f| f.1).collect();
                chosen = numbers;
            }
        }
        if scale > 0.0 && on_grid.contains(&false) {
            for k in (0..chosen.len()).filter(|&k| search.all_again || !on_grid[k]) {
                chosen[k] = self.point(points, k, 1.0 / scale, scale).0;
            }
            let (qx, qq) = self.sums(points, &chosen);
            if qq > 0.0 {
                scale = qx / qq;
            }
        }
        if scale < 0.0 {
            scale = -scale;
            self.signs.iter_mut().for_each(|signs| *signs = !*signs);
        }
        (chosen, scale)
    }

    /// The point for part `k`, and whether its levels are those of the values themselves.
    fn point(&self, points: &Points, k: usize, inverse: f32, scale: f32) -> (u16, bool) {
        let len = points.len;
        let (x, root) = (&self.x[len * k..][..len], &self.root[len * k..][..len]);
        let top = if len == 8 { 2 } else { 7 };
        let level = |x: f32| nearest(0.5 * (inverse * x - 1.0)).clamp(0, top) as u8;
        let mut levels = [0; 8];
        for (l, &x) in levels.iter_mut().zip(x) {
            *l = level(x);
        }
        points.find(&levels[..len], |level| {
            let mut sum = 0.0;
            for i in 0..len {
                let difference = scale * odd(level(i)) - x[i];
                sum += root[i] * difference * difference;
            }
            sum
        })
    }

    fn sums(&self, points: &Points, numbers: &[u16]) -> (f32, f32) {
        let (mut qx, mut qq) = (0.0, 0.0);
        for (i, (&x, &w)) in self.x.iter().zip(self.weight).enumerate() {
            let q = odd(points.level(numbers[i / points.len], i % points.len));
            qx += w * x * q;
            qq += w * q * q;
        }
        (qx, qq)
    }
}

/// The value of a level.
fn odd(level: u8) -> f32 {
    f32::from(2 * level + 1)
}

/// Candidate scales of a group: `max / (top + step i)`, i from -steps to steps.
#[derive(Clone, Copy)]
pub(super) struct Search {
    /// The largest value of a point.
    pub(super) top: f32,
    /// The value that is to meet it.
    pub(super) max: f32,
    pub(super) step: f32,
    pub(super) steps: i32,
    /// At the end, points are sought again for all parts, not only for those that have a near one; and even if no
    /// candidate fits.
    pub(super) all_again: bool,
}

/// Weights of a block: importance √(σ² + x²), or what `otherwise` makes of σ² and x; σ² is `times` the mean square.
pub(super) fn weights(
    x: Block<'_, 256>,
    times: f32,
    otherwise: impl Fn(f32, f32) -> f32,
) -> [f32; 256] {
    let s = times * square(x.x) / 256.0;
    x.weights(s).unwrap_or_else(|| x.x.map(|x| otherwise(s, x)))
}

/// The four bits of a scale that counts `d (2 l + 1)`.
pub(super) fn scale_code(inverse: f32, scale: f32, top: i32) -> u8 {
    nearest(0.5 * (inverse * scale - 1.0)).clamp(0, top) as u8
}
