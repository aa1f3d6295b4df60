use super::AdaptiveModel;
use crate::coder::range::Interval;

/// Adaptive frequencies of bytes: every occurrence adds a fixed step, and all halve when the sum reaches a limit, so
/// that the recent past weighs more. Sums lie in a Fenwick tree: 8 steps to find or to learn.
#[derive(Debug, Clone)]
pub struct AdaptiveBytes {
    /// `tree[i]` sums the frequencies of the `i & -i` symbols below i.
    tree: [u32; 257],
    total: u32,
    step: u32,
    limit: u32,
}

impl AdaptiveBytes {
    /// Every byte equally likely at first; `step` (1 to 4096) is what an occurrence adds. Larger steps learn and forget
    /// faster.
    ///
    /// # Panics
    /// If `step` is outside that range.
    #[must_use]
    pub fn new(step: u32) -> Self {
        assert!((1..=4096).contains(&step), "step {step}");
        let mut model = Self { tree: [0; 257], total: 0, step, limit: 1 << 16 };
        (0..=255).for_each(|s| model.add(s, 1));
        model
    }

    fn add(&mut self, symbol: u8, amount: u32) {
        let mut i = usize::from(symbol) + 1;
        while i <= 256 {
            self.tree[i] += amount;
            i += i & i.wrapping_neg();
        }
        self.total += amount;
    }

    /// Sum of the frequencies below a symbol (0 to 256).
    fn below(&self, symbol: usize) -> u32 {
        let (mut i, mut sum) = (symbol, 0);
        while i > 0 {
            sum += self.tree[i];
            i &= i - 1;
        }
        sum
    }

    fn halve(&mut self) {
        let sizes: Vec<u32> =
            (0..256).map(|s| (self.below(s + 1) - self.below(s)).div_ceil(2)).collect();
        self.tree = [0; 257];
        self.total = 0;
        (0..=255u8).zip(sizes).for_each(|(s, n)| self.add(s, n));
    }
}

impl AdaptiveModel for AdaptiveBytes {
    fn total(&self) -> u32 {
        self.total
    }

    fn interval(&self, symbol: u8) -> Option<Interval> {
        let start = self.below(usize::from(symbol));
        let size = self.below(usize::from(symbol) + 1) - start;
        Some(Interval { start, size, total: self.total })
    }

    fn find(&self, position: u32) -> (u8, Interval) {
        let (mut symbol, mut left) = (0usize, position);
        let mut half = 128;
        while half > 0 {
            if self.tree[symbol + half] <= left {
                symbol += half;
                left -= self.tree[symbol];
            }
            half /= 2;
        }
        let symbol = symbol.min(255) as u8;
        (symbol, self.interval(symbol).expect("every byte has one"))
    }

    fn update(&mut self, symbol: u8) {
        if self.total + self.step > self.limit {
            self.halve();
        }
        self.add(symbol, self.step);
    }
}
