//! Mixtures of experts.

use std::ops::ControlFlow;

use ndarray::{ArrayView2, ArrayViewMut2, Axis};
use tensorpress_tensor::node::Input;
use tensorpress_tensor::rewrite::SharedInput;
use tensorpress_tensor::{Result, Scratch};

use super::mlp::Mlp;
use super::{Linear, as_matrix, buffer, math};
use crate::architecture::{Groups, Rule, Score};
use crate::block::Observer;

/// Feed-forward networks side by side, of which each token goes through a few.
#[derive(Debug)]
pub(crate) struct Moe {
    pub(crate) router: Linear,
    /// Added to the scores for the choice alone.
    pub(crate) correction: Option<Vec<f32>>,
    pub(crate) rule: Rule,
    pub(crate) experts: Vec<Mlp>,
    /// An expert that every token goes through, and the gate that weighs it.
    pub(crate) shared: Option<(Mlp, Option<Linear>)>,
    pub(crate) weighs_input: bool,
}

/// Which experts some tokens go to: for each token, experts and factors in order of falling factor.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Routing {
    /// Experts a token goes to.
    pub chosen: usize,
    /// `[tokens, chosen]`, row after row.
    pub experts: Vec<usize>,
    /// What each expert's output, or input, is multiplied by.
    pub factors: Vec<f32>,
}

impl Moe {
    pub(crate) fn linears(&self) -> Vec<&Linear> {
        let mut all = vec![&self.router];
        if let Some((shared, gate)) = &self.shared {
            all.extend(gate);
            all.extend(shared.linears());
        }
        all.extend(self.experts.iter().flat_map(Mlp::linears));
        all
    }

    pub(crate) fn linears_mut(&mut self) -> Vec<&mut Linear> {
        let mut all = vec![&mut self.router];
        if let Some((shared, gate)) = &mut self.shared {
            all.extend(gate.as_mut());
            all.extend(shared.linears_mut());
        }
        all.extend(self.experts.iter_mut().flat_map(Mlp::linears_mut));
        all
    }

    /// Fills `y` with what the experts make of `x`.
    pub(crate) fn forward(
        &self,
        x: ArrayView2<'_, f32>,
        mut y: ArrayViewMut2<'_, f32>,
        observer: &mut dyn Observer,
        scratch: &mut Scratch,
    ) -> Result<ControlFlow<()>> {
        let (tokens, hidden) = x.dim();
        let routing = match observer.route() {
            Some(routing) => routing,
            None => self.route(x, scratch)?,
        };
        observer.routed(&routing);
        match &self.shared {
            None => y.fill(0.0),
            Some((shared, gate)) => {
                let inner = SharedInput::SharedOutput;
                if shared.forward(x, y.view_mut(), inner, observer, scratch)?.is_break() {
                    return Ok(ControlFlow::Break(()));
                }
                if let Some(gate) = gate {
                    let mut weights = buffer(scratch, tokens, 1);
                    let target = as_matrix(&mut weights, 1);
                    Input::with(x, scratch, |x, scratch| gate.forward(x, target, scratch))?;
                    for (mut row, weight) in y.rows_mut().into_iter().zip(&weights) {
                        row *= sigmoid(*weight);
                    }
                    scratch.put(weights);
                }
            }
        }
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
            if observer.input(SharedInput::Expert(index), mine.view())?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
            if observer.watches_experts() {
                let factors: Vec<f32> = places.iter().map(|at| routing.factors[*at]).collect();
                observer.sent(index, &factors, self.weighs_input);
            }
            let mut made = buffer(scratch, rows.len(), hidden);
            let inner = SharedInput::ExpertOutput(index);
            let target = as_matrix(&mut made, hidden);
            if expert.forward(mine.view(), target, inner, observer, scratch)?.is_break() {
                return Ok(ControlFlow::Break(()));
            }
            if observer.watches_experts() {
                observer.expert(index, as_matrix(&mut made, hidden).view());
            }
            for ((row, at), made) in rows.iter().zip(&places).zip(made.chunks_exact(hidden)) {
                let factor = if self.weighs_input { 1.0 } else { routing.factors[*at] };
                let mut row = y.row_mut(*row);
                row.iter_mut().zip(made).for_each(|(y, made)| *y += factor * made);
            }
            scratch.put(made);
        }
        Ok(ControlFlow::Continue(()))
    }

    /// Which experts each token goes to.
    fn route(&self, x: ArrayView2<'_, f32>, scratch: &mut Scratch) -> Result<Routing> {
        let experts = self.experts.len();
        let mut logits = buffer(scratch, x.nrows(), experts);
        let target = as_matrix(&mut logits, experts);
        Input::with(x, scratch, |x, scratch| self.router.forward(x, target, scratch))?;
        let routing = self.choose(&mut logits);
        scratch.put(logits);
        Ok(routing)
    }

    /// Which experts tokens with these logits `[tokens, experts]` go to; of the logits nothing is left.
    pub(crate) fn choose(&self, logits: &mut [f32]) -> Routing {
        let chosen = self.rule.chosen;
        let mut routing = Routing { chosen, experts: Vec::new(), factors: Vec::new() };
        for row in logits.chunks_exact_mut(self.experts.len()) {
            let (ids, factors) = choose(row, self.correction.as_deref(), self.rule);
            routing.experts.extend(ids);
            routing.factors.extend(factors);
        }
        routing
    }
}

pub(crate) fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + math::exp(-x))
}

/// The best experts by their logits, and their factors.
fn choose(row: &mut [f32], correction: Option<&[f32]>, rule: Rule) -> (Vec<usize>, Vec<f32>) {
    match rule.score {
        Score::Softmax => math::softmax(row, 1.0),
        Score::Sigmoid => row.iter_mut().for_each(|score| *score = sigmoid(*score)),
        Score::SoftmaxOfChosen => {}
    }
    let biased: Vec<f32> = match correction {
        Some(correction) => row.iter().zip(correction).map(|(score, c)| score + c).collect(),
        None => row.to_vec(),
    };
    let open = rule.groups.map_or_else(|| vec![true; row.len()], |groups| best(&biased, groups));
    let mut ids: Vec<usize> = (0..row.len()).filter(|expert| open[*expert]).collect();
    ids.sort_by(|a, b| biased[*b].total_cmp(&biased[*a]).then(a.cmp(b)));
    ids.truncate(rule.chosen);
    ids.sort_by(|a, b| row[*b].total_cmp(&row[*a]).then(a.cmp(b)));
    let mut factors: Vec<f32> = ids.iter().map(|expert| row[*expert]).collect();
    if rule.score == Score::SoftmaxOfChosen {
        math::softmax(&mut factors, 1.0);
    }
    if rule.renormalised {
        // As the models do it: not to divide by nothing.
        let sum = factors.iter().sum::<f32>() + f32::MIN_POSITIVE;
        factors.iter_mut().for_each(|factor| *factor /= sum);
    }
    factors.iter_mut().for_each(|factor| *factor *= rule.scale);
    (ids, factors)
}

/// The experts that lie in the best groups.
fn best(scores: &[f32], groups: Groups) -> Vec<bool> {
    let size = scores.len() / groups.of;
    let score = |group: &[f32]| {
        let mut group = group.to_vec();
        group.sort_by(|a, b| b.total_cmp(a));
        group.iter().take(groups.best).sum::<f32>()
    };
    let of: Vec<f32> = scores.chunks_exact(size).map(score).collect();
    let mut order: Vec<usize> = (0..groups.of).collect();
    order.sort_by(|a, b| of[*b].total_cmp(&of[*a]).then(a.cmp(b)));
    let kept = &order[..groups.kept];
    (0..scores.len()).map(|expert| kept.contains(&(expert / size))).collect()
}
