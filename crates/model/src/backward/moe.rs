//! Mixtures of experts on the way back.

use std::sync::Arc;

use ndarray::{Array2, ArrayView1, Axis};
use tensorpress_tensor::Result;

use super::mlp::MlpTape;
use super::sweep::Sweep;
use crate::architecture::{Rule, Score};
use crate::layers::moe::sigmoid;
use crate::layers::{Moe, Routing, math};

/// What a mixture leaves on the way forward.
pub(super) struct MoeTape {
    x: Arc<Array2<f32>>,
    logits: Array2<f32>,
    routing: Routing,
    shared: Option<SharedTape>,
    experts: Vec<ExpertTape>,
}

struct SharedTape {
    mlp: MlpTape,
    /// What it made, and how far its gate was open, where it has one.
    gated: Option<(Array2<f32>, Vec<f32>)>,
}

struct ExpertTape {
    expert: usize,
    /// Where in the routing it stands.
    places: Vec<usize>,
    mlp: MlpTape,
    made: Array2<f32>,
}

impl Moe {
    /// What is left, and what it makes of `x`.
    pub(super) fn record(
        &self,
        x: Arc<Array2<f32>>,
        sweep: &mut Sweep<'_, '_>,
    ) -> Result<(MoeTape, Array2<f32>)> {
        let logits = sweep.forward(&self.router, x.view())?;
        let routing = self.choose(logits.clone().as_slice_mut().expect("a new matrix"));
        let (mut y, mut shared) = (Array2::zeros(x.dim()), None);
        if let Some((expert, gate)) = &self.shared {
            let mlp = expert.record(x.clone(), sweep)?;
            y = sweep.forward(&expert.down, mlp.middle.view())?;
            let mut gated = None;
            if let Some(gate) = gate {
                let open: Vec<f32> =
                    sweep.forward(gate, x.view())?.iter().map(|value| sigmoid(*value)).collect();
                let made = y.clone();
                for (mut row, open) in y.rows_mut().into_iter().zip(&open) {
                    row *= *open;
                }
                gated = Some((made, open));
            }
            shared = Some(SharedTape { mlp, gated });
        }
        let mut experts = Vec::new();
        for (index, expert) in self.experts.iter().enumerate() {
            let places: Vec<usize> =
                (0..routing.experts.len()).filter(|at| routing.experts[*at] == index).collect();
            if places.is_empty() {
                continue;
            }
            let rows: Vec<usize> = places.iter().map(|at| at / routing.chosen).collect();
            let mut mine = x.select(Axis(0), &rows);
            if self.weighs_input {
                for (mut row, at) in mine.rows_mut().into_iter().zip(&places) {
                    row *= routing.factors[*at];
                }
            }
            let mlp = expert.record(Arc::new(mine), sweep)?;
            let made = sweep.forward(&expert.down, mlp.middle.view())?;
            for ((row, at), made) in rows.iter().zip(&places).zip(made.rows()) {
                let factor = if self.weighs_input { 1.0 } else { routing.factors[*at] };
                y.row_mut(*row).scaled_add(factor, &made);
            }
            experts.push(ExpertTape { expert: index, places, mlp, made });
        }
        Ok((MoeTape { x, logits, routing, shared, experts }, y))
    }

    /// From gradients `g` of what it made to those of what it read.
    pub(super) fn back(
        &self,
        tape: MoeTape,
        g: Array2<f32>,
        sweep: &mut Sweep<'_, '_>,
    ) -> Array2<f32> {
        let MoeTape { x, logits, routing, shared, experts } = tape;
        let mut dx = Array2::zeros(x.dim());
        let mut by_factor = vec![0.0; routing.factors.len()];
        for ExpertTape { expert, places, mlp, made } in experts {
            let rows: Vec<usize> = places.iter().map(|at| at / routing.chosen).collect();
            let mut by_made = g.select(Axis(0), &rows);
            if !self.weighs_input {
                for ((mut row, made), at) in
                    by_made.rows_mut().into_iter().zip(made.rows()).zip(&places)
                {
                    by_factor[*at] = dot(row.view(), made);
                    row *= routing.factors[*at];
                }
            }
            let mut by_mine = Array2::zeros((rows.len(), x.ncols()));
            self.experts[expert].back(mlp, by_made, &mut by_mine, sweep);
            for ((row, at), by_mine) in rows.iter().zip(&places).zip(by_mine.rows()) {
                let mut factor = 1.0;
                if self.weighs_input {
                    by_factor[*at] = dot(by_mine, x.row(*row));
                    factor = routing.factors[*at];
                }
                dx.row_mut(*row).scaled_add(factor, &by_mine);
            }
        }
        if let (Some((expert, gate)), Some(SharedTape { mlp, gated })) = (&self.shared, shared) {
            let mut by_made = g;
            if let (Some(gate), Some((made, open))) = (gate, gated) {
                let mut by_gate = Array2::zeros((x.nrows(), 1));
                for (t, mut row) in by_made.rows_mut().into_iter().enumerate() {
                    by_gate[[t, 0]] = dot(row.view(), made.row(t)) * open[t] * (1.0 - open[t]);
                    row *= open[t];
                }
                sweep.back(gate, &x, by_gate, &mut dx);
            }
            expert.back(mlp, by_made, &mut dx, sweep);
        }
        let mut by_logits = Array2::zeros(logits.dim());
        let chosen = routing.chosen;
        for (t, mut row) in by_logits.rows_mut().into_iter().enumerate() {
            let of = t * chosen..(t + 1) * chosen;
            let ids = &routing.experts[of.clone()];
            let logits = logits.row(t).to_vec();
            let row = row.as_slice_mut().expect("rows of a new matrix");
            unchoose(self.rule, logits, ids, &by_factor[of], row);
        }
        sweep.back(&self.router, &x, by_logits, &mut dx);
        dx
    }
}

fn dot(a: ArrayView1<'_, f32>, b: ArrayView1<'_, f32>) -> f32 {
    a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>() as f32
}

/// From gradients of the factors of a token's experts to those of the router's logits, the choice held.
fn unchoose(rule: Rule, mut scores: Vec<f32>, ids: &[usize], by_factor: &[f32], to: &mut [f32]) {
    match rule.score {
        Score::Softmax => math::softmax(&mut scores, 1.0),
        Score::Sigmoid => scores.iter_mut().for_each(|score| *score = sigmoid(*score)),
        Score::SoftmaxOfChosen => {}
    }
    let mut of: Vec<f32> = ids.iter().map(|expert| scores[*expert]).collect();
    if rule.score == Score::SoftmaxOfChosen {
        math::softmax(&mut of, 1.0);
    }
    let mut by: Vec<f32> = by_factor.iter().map(|g| g * rule.scale).collect();
    let along = |by: &[f32], of: &[f32]| by.iter().zip(of).map(|(g, s)| g * s).sum::<f32>();
    if rule.renormalised {
        let sum = of.iter().sum::<f32>() + f32::MIN_POSITIVE;
        let mean = along(&by, &of) / sum;
        by.iter_mut().for_each(|g| *g = (*g - mean) / sum);
    }
    let mean = along(&by, &of);
    if rule.score == Score::Softmax {
        to.iter_mut().zip(&scores).for_each(|(to, p)| *to = -p * mean);
    }
    for ((expert, g), s) in ids.iter().zip(by).zip(of) {
        match rule.score {
            Score::Softmax => to[*expert] += s * g,
            Score::SoftmaxOfChosen => to[*expert] = s * (g - mean),
            Score::Sigmoid => to[*expert] = g * s * (1.0 - s),
        }
    }
}
