//! Scores become weights.

use std::ops::Range;

use tensorpress_tensor::kernels::{Isa, attention};

use super::attend::{Ask, Block};
use super::head::Tier;

impl Block<'_> {
    /// Products (tier after tier, each `[n, len]`) become weights: what a query does not see weighs 0.
    pub(super) fn weigh(&self, products: &mut [f32]) {
        let Ask { reading, sight, bias } = self.ask;
        let scale = reading.scoring.scale_of(reading.shape.head_dim);
        let plain = reading.scoring.is_plain() && bias.is_none();
        let mut joint = Vec::new();
        for i in 0..self.queries() {
            let position = sight.causal.first + self.place(i).1;
            match self.tiers.as_slice() {
                [tier] if plain && tier.weights.is_none() => {
                    let row = &mut products[i * tier.len()..][..tier.len()];
                    let span = tier.span(sight, position, position);
                    tier.hide(row, sight, position);
                    attention::softmax(Isa::detect(), &mut row[span.clone()], scale);
                    row[..span.start].fill(0.0);
                    row[span.end..].fill(0.0);
                }
                _ => self.weigh_row(i, position, products, &mut joint),
            }
        }
    }

    /// Products of query `i` with the slots `seen` become scores but for a factor, which is given.
    pub(super) fn score(&self, i: usize, tier: &Tier, seen: Range<usize>, row: &mut [f32]) -> f32 {
        let Ask { reading, sight, bias } = self.ask;
        let scale = reading.scoring.scale_of(reading.shape.head_dim);
        if reading.scoring.is_plain() && bias.is_none() && tier.weights.is_none() {
            return scale;
        }
        let (head, token) = self.place(i);
        let positions = || seen.clone().map(|slot| tier.position(slot));
        let position = sight.causal.first + token;
        reading.scoring.score(scale, head, position, positions(), row);
        if let Some(bias) = bias {
            bias.add(head, token, positions(), row);
        }
        if let Some(weights) = &tier.weights {
            // A slot that stands for w tokens weighs as w equal ones would.
            row.iter_mut().zip(&weights[seen.clone()]).for_each(|(x, w)| *x += w.ln());
        }
        1.0
    }

    /// The row of query `i`, over all tiers and with whatever the layer asks for.
    fn weigh_row(&self, i: usize, position: usize, products: &mut [f32], joint: &mut Vec<f32>) {
        let Ask { reading, sight, .. } = self.ask;
        let head = self.place(i).0;
        joint.clear();
        self.each_row(i, products, |tier, row| {
            let span = tier.span(sight, position, position);
            let scale = self.score(i, tier, span.clone(), &mut row[span.clone()]);
            row[span.clone()].iter_mut().for_each(|x| *x *= scale);
            tier.hide(row, sight, position);
            joint.extend_from_slice(&row[span]);
        });
        reading.scoring.soften(head, joint);
        let mut from = 0;
        self.each_row(i, products, |tier, row| {
            let span = tier.span(sight, position, position);
            row.fill(0.0);
            row[span.clone()].copy_from_slice(&joint[from..from + span.len()]);
            from += span.len();
        });
    }

    /// What query `i` has of each tier.
    fn each_row(&self, i: usize, rows: &mut [f32], mut f: impl FnMut(&Tier, &mut [f32])) {
        let (n, mut at) = (self.queries(), 0);
        for tier in &self.tiers {
            f(tier, &mut rows[at * n + i * tier.len()..][..tier.len()]);
            at += tier.len();
        }
    }
}
