//! What the experts of a mixture did with the tokens that a router sent to them.

use ndarray::ArrayView2;

/// What one expert did.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
#[non_exhaustive]
pub struct ExpertSeen {
    /// Tokens that went to it.
    pub tokens: u64,
    /// Sum over them of the factors g that the router gave it.
    pub factors: f64,
    /// Sum of the norms ‖f(x)‖ of what it made of them, before the factor (behind it where the factor is put on x).
    pub norms: f64,
    /// Sum of the norms of what it added: g ‖f(x)‖, or ‖f(g x)‖.
    pub weighted: f64,
}

/// What one channel inside an expert did: of the values m = act(gate x) (up x) that its down matrix reads, over its tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
#[non_exhaustive]
pub struct ChannelSeen {
    /// Sum of m².
    pub squares: f64,
    /// Sum of (g m)², g the factor; of m² where the factor is put on x and is in m.
    pub weighted: f64,
    /// The largest |g m|; |m| there.
    pub peak: f64,
}

/// What all experts of a block did with the tokens of a calibration; sums are f64, in the order of the tokens.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ExpertActivity {
    tokens: u64,
    seen: Vec<ExpertSeen>,
    /// Of each expert; nothing of one that no token went to.
    channels: Vec<Vec<ChannelSeen>>,
    /// How many tokens went to both of two experts, `[experts, experts]`; to one of them on the diagonal.
    pairs: Vec<u64>,
    finite: bool,
}

impl ExpertActivity {
    /// Nothing was seen of so many experts.
    #[must_use]
    pub fn new(experts: usize) -> Self {
        Self {
            tokens: 0,
            seen: vec![ExpertSeen::default(); experts],
            channels: vec![Vec::new(); experts],
            pairs: vec![0; experts * experts],
            finite: true,
        }
    }

    /// Counts where tokens went: `chosen` experts of each, `[tokens, chosen]`.
    ///
    /// # Panics
    /// For experts that there are not, and for no whole number of tokens.
    pub fn route(&mut self, chosen: usize, experts: &[usize]) {
        assert!(chosen > 0 && experts.len().is_multiple_of(chosen), "experts of whole tokens");
        let all = self.seen.len();
        for of in experts.chunks_exact(chosen) {
            self.tokens += 1;
            for (at, one) in of.iter().enumerate() {
                self.seen[*one].tokens += 1;
                self.pairs[one * all + one] += 1;
                for other in &of[at + 1..] {
                    self.pairs[one * all + other] += 1;
                    self.pairs[other * all + one] += 1;
                }
            }
        }
    }

    /// Adds what an expert made of its tokens, `[tokens, hidden]`, before the factors of these; `weighed`: behind them.
    ///
    /// # Panics
    /// If there is no such expert, or not one factor a token.
    pub fn made(
        &mut self,
        expert: usize,
        factors: &[f32],
        weighed: bool,
        outputs: ArrayView2<'_, f32>,
    ) {
        assert_eq!(factors.len(), outputs.nrows(), "one factor a token");
        let seen = &mut self.seen[expert];
        for (factor, row) in factors.iter().zip(outputs.rows()) {
            let (factor, mut squares) = (f64::from(*factor), 0.0);
            for value in row {
                squares += f64::from(*value) * f64::from(*value);
            }
            let norm = squares.sqrt();
            self.finite &= norm.is_finite() && factor.is_finite();
            seen.factors += factor;
            seen.norms += norm;
            seen.weighted += if weighed { norm } else { factor * norm };
        }
    }

    /// Adds what an expert's down matrix reads of its tokens, `[tokens, channels]`; factors as in [`ExpertActivity::made`].
    ///
    /// # Panics
    /// If there is no such expert, not one factor a token, or another number of channels than before.
    pub fn inside(
        &mut self,
        expert: usize,
        factors: &[f32],
        weighed: bool,
        values: ArrayView2<'_, f32>,
    ) {
        assert_eq!(factors.len(), values.nrows(), "one factor a token");
        let channels = &mut self.channels[expert];
        if channels.is_empty() {
            channels.resize(values.ncols(), ChannelSeen::default());
        }
        assert_eq!(channels.len(), values.ncols(), "channels of the expert");
        for (factor, row) in factors.iter().zip(values.rows()) {
            let factor = if weighed { 1.0 } else { f64::from(*factor) };
            for (seen, value) in channels.iter_mut().zip(row) {
                let value = f64::from(*value);
                let weighted = factor * value;
                self.finite &= weighted.is_finite();
                seen.squares += value * value;
                seen.weighted += weighted * weighted;
                seen.peak = seen.peak.max(weighted.abs());
            }
        }
    }

    /// Tokens that were routed.
    #[must_use]
    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    /// Each expert.
    #[must_use]
    pub fn seen(&self) -> &[ExpertSeen] {
        &self.seen
    }

    /// Each channel inside an expert: nothing, if no token went there or nobody looked.
    ///
    /// # Panics
    /// If there is no such expert.
    #[must_use]
    pub fn channels(&self, expert: usize) -> &[ChannelSeen] {
        &self.channels[expert]
    }

    /// How many tokens went to both of two experts; to the expert, if they are one.
    ///
    /// # Panics
    /// If there are no such experts.
    #[must_use]
    pub fn together(&self, one: usize, other: usize) -> u64 {
        assert!(one < self.seen.len() && other < self.seen.len(), "no such expert");
        self.pairs[one * self.seen.len() + other]
    }

    /// Everything that was made was finite, and some token was seen.
    #[must_use]
    pub fn is_usable(&self) -> bool {
        self.finite && self.tokens > 0
    }
}
