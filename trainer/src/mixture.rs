//! A mixture of experts as Mixtral has it, forward and backward: a softmax over the router's
//! logits, the best experts of each token, their probabilities brought to a sum of one.
//!
//! The backward pass adds the gradient of the balance loss (Fedus, Zoph, Shazeer: Switch
//! Transformers, equation 4): coefficient x experts x Σₑ fₑ Pₑ, where fₑ is the share of all visits
//! that go to expert e and Pₑ the mean of its probability over the tokens. It is the coefficient
//! where all experts are as busy, and fₑ counts as a constant.

use std::ops::Range;

use crate::llama::{Config, Experts, Gated};
use crate::math::{axpy, dot, gemm, gemm_add, softmax, swiglu, swiglu_backward, view};

/// What a block's backward pass needs of its forward pass.
#[derive(Debug, Default)]
pub struct Saved {
    /// Probabilities, `[tokens, experts]`.
    probs: Vec<f32>,
    /// What each expert's result weighs, `[tokens, experts]`; 0 where a token does not go.
    weights: Vec<f32>,
    visits: Vec<Visits>,
}

/// Tokens that go to one expert.
#[derive(Debug, Default)]
struct Visits {
    tokens: Vec<usize>,
    /// Gate and up, `[visits, 2 x width]`.
    gate_up: Vec<f32>,
}

/// Scratch memory, kept from call to call.
#[derive(Debug, Default)]
pub struct Scratch {
    rows: Vec<f32>,
    act: Vec<f32>,
    out: Vec<f32>,
    dact: Vec<f32>,
    dweights: Vec<f32>,
}

impl Saved {
    /// Number of tokens that went to each expert.
    pub fn routed(&self) -> Vec<usize> {
        self.visits.iter().map(|v| v.tokens.len()).collect()
    }

    /// Turns logits in `probs` into probabilities and sends each token to its experts; of equal
    /// ones, to the first.
    fn route(&mut self, Experts { count, chosen, .. }: Experts) {
        self.weights.clear();
        self.weights.resize(self.probs.len(), 0.0);
        self.visits.resize_with(count, Visits::default);
        self.visits.iter_mut().for_each(|v| v.tokens.clear());
        let rows = self.probs.chunks_exact_mut(count).zip(self.weights.chunks_exact_mut(count));
        let mut order = vec![0; count];
        for (token, (probs, weights)) in rows.enumerate() {
            softmax(probs);
            (0..count).for_each(|e| order[e] = e);
            order.sort_by(|&a, &b| probs[b].total_cmp(&probs[a]));
            let total: f32 = order[..chosen].iter().map(|&e| probs[e]).sum();
            for &e in &order[..chosen] {
                weights[e] = probs[e] / total;
                self.visits[e].tokens.push(token);
            }
        }
    }
}

/// Copies the rows `tokens` of a `width` wide matrix.
fn gather(dst: &mut Vec<f32>, src: &[f32], width: usize, tokens: &[usize]) {
    dst.clear();
    for &t in tokens {
        dst.extend_from_slice(&src[t * width..(t + 1) * width]);
    }
}

/// Shape of a block's mixture; a layout has one where the configuration has experts.
fn shape(c: &Config, experts: &[Gated]) -> Experts {
    let shape = c.experts.expect("a block with a router belongs to a configuration with experts");
    Experts { count: experts.len(), ..shape }
}

/// Adds to `x` (`[tokens, hidden]`) the mixture of `normed`.
pub fn forward(
    c: &Config,
    p: &[f32],
    router: &Range<usize>,
    experts: &[Gated],
    normed: &[f32],
    x: &mut [f32],
    s: &mut Saved,
    scratch: &mut Scratch,
) {
    let (d, ff, shape) = (c.hidden_size, c.intermediate_size, shape(c, experts));
    let n = normed.len() / d;
    s.probs.resize(n * shape.count, 0.0);
    gemm(&mut s.probs, view(normed, n, d), view(&p[router.clone()], shape.count, d).t());
    s.route(shape);
    for (e, (g, v)) in experts.iter().zip(&mut s.visits).enumerate() {
        let m = v.tokens.len();
        v.gate_up.resize(m * 2 * ff, 0.0);
        scratch.act.resize(m * ff, 0.0);
        scratch.out.resize(m * d, 0.0);
        gather(&mut scratch.rows, normed, d, &v.tokens);
        let gate_up = view(&p[g.gate_up.clone()], 2 * ff, d);
        gemm(&mut v.gate_up, view(&scratch.rows, m, d), gate_up.t());
        swiglu(&mut scratch.act, &v.gate_up, ff);
        let down = view(&p[g.down.clone()], d, ff);
        gemm(&mut scratch.out, view(&scratch.act, m, ff), down.t());
        for (&t, out) in v.tokens.iter().zip(scratch.out.chunks_exact(d)) {
            axpy(&mut x[t * d..(t + 1) * d], s.weights[t * shape.count + e], out);
        }
    }
}

/// Backward of [`forward`], given the gradient `dx` of its result: adds to `grad` the parameters'
/// gradients, that of the balance loss of `scale` x tokens included, and overwrites `dnormed` by
/// that of `normed`. What `s` keeps of the experts is used up.
pub fn backward(
    c: &Config,
    p: &[f32],
    router: &Range<usize>,
    experts: &[Gated],
    normed: &[f32],
    dx: &[f32],
    scale: f32,
    s: &mut Saved,
    grad: &mut [f32],
    dnormed: &mut [f32],
    scratch: &mut Scratch,
) {
    let (d, ff, shape) = (c.hidden_size, c.intermediate_size, shape(c, experts));
    let (n, count) = (normed.len() / d, shape.count);
    dnormed.fill(0.0);
    scratch.dweights.clear();
    scratch.dweights.resize(n * count, 0.0);
    for (e, (g, v)) in experts.iter().zip(&mut s.visits).enumerate() {
        let m = v.tokens.len();
        scratch.act.resize(m * ff, 0.0);
        scratch.dact.resize(m * ff, 0.0);
        swiglu(&mut scratch.act, &v.gate_up, ff);
        gather(&mut scratch.out, dx, d, &v.tokens);
        let down = view(&p[g.down.clone()], d, ff);
        gemm(&mut scratch.dact, view(&scratch.out, m, d), down);
        for (i, &t) in v.tokens.iter().enumerate() {
            // The expert's result, times dx: as good before the down projection as after it.
            let dact = &mut scratch.dact[i * ff..(i + 1) * ff];
            let at = t * count + e;
            scratch.dweights[at] = dot(dact, &scratch.act[i * ff..(i + 1) * ff]);
            dact.iter_mut().for_each(|v| *v *= s.weights[at]);
            scratch.out[i * d..(i + 1) * d].iter_mut().for_each(|v| *v *= s.weights[at]);
        }
        let dout = view(&scratch.out, m, d);
        gemm_add(&mut grad[g.down.clone()], dout.t(), view(&scratch.act, m, ff));
        swiglu_backward(&mut v.gate_up, &scratch.dact, ff);
        let dgate_up = view(&v.gate_up, m, 2 * ff);
        gather(&mut scratch.rows, normed, d, &v.tokens);
        gemm_add(&mut grad[g.gate_up.clone()], dgate_up.t(), view(&scratch.rows, m, d));
        gemm(&mut scratch.rows, dgate_up, view(&p[g.gate_up.clone()], 2 * ff, d));
        for (&t, row) in v.tokens.iter().zip(scratch.rows.chunks_exact(d)) {
            axpy(&mut dnormed[t * d..(t + 1) * d], 1.0, row);
        }
    }

    // The weights are a softmax over the logits of the chosen, the probabilities one over all.
    let visits = (n * shape.chosen).max(1) as f32;
    let busy: Vec<f32> = s.visits.iter().map(|v| v.tokens.len() as f32 / visits).collect();
    let balance = scale * shape.balance * count as f32;
    let rows = s.weights.chunks_exact(count).zip(s.probs.chunks_exact(count));
    for ((weights, probs), dlogits) in rows.zip(scratch.dweights.chunks_exact_mut(count)) {
        let (mean, even) = (dot(weights, dlogits), dot(probs, &busy));
        for e in 0..count {
            dlogits[e] = weights[e] * (dlogits[e] - mean) + balance * probs[e] * (busy[e] - even);
        }
    }
    let dlogits = view(&scratch.dweights, n, count);
    gemm_add(&mut grad[router.clone()], dlogits.t(), view(normed, n, d));
    gemm_add(dnormed, dlogits, view(&p[router.clone()], count, d));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::llama::{Layout, Llama, Mlp};
    use crate::rng::Rng;

    const SHAPE: Experts = Experts { count: 5, chosen: 2, balance: 0.3 };
    const TOKENS: usize = 13;

    fn config() -> Config {
        let small = Config { hidden_size: 6, intermediate_size: 4, ..Config::demo(3) };
        Config { num_hidden_layers: 1, experts: Some(SHAPE), ..small }
    }

    type Places = (Range<usize>, Vec<Gated>);

    fn places(layout: &Layout) -> Places {
        match &layout.blocks[0].mlp {
            Mlp::Mixture { router, experts } => (router.clone(), experts.clone()),
            Mlp::Gated(_) => panic!("a configuration with experts gives a mixture"),
        }
    }

    fn normal(rng: &mut Rng, n: usize) -> Vec<f32> {
        (0..n).map(|_| rng.normal()).collect()
    }

    /// Experts of each token, ascending, as `s` sent them.
    fn choices(s: &Saved) -> Vec<Vec<usize>> {
        let goes = |t: usize| s.visits.iter().map(move |v| v.tokens.contains(&t));
        let of = |t| goes(t).enumerate().filter(|&(_, goes)| goes).map(|(e, _)| e).collect();
        (0..TOKENS).map(of).collect()
    }

    /// The formula itself, token by token in f64: the mixture's result, and the balance loss of
    /// one token. The experts are given, so that a difference never runs over an edge.
    fn reference(
        c: &Config,
        p: &[f64],
        (router, experts): &Places,
        normed: &[f64],
        choices: &[Vec<usize>],
    ) -> (Vec<f64>, f64) {
        let (d, ff) = (c.hidden_size, c.intermediate_size);
        let times = |w: &[f64], x: &[f64]| -> Vec<f64> {
            w.chunks_exact(x.len()).map(|w| w.iter().zip(x).map(|(a, b)| a * b).sum()).collect()
        };
        let mut out = vec![];
        let (mut busy, mut mean) = (vec![0.0; SHAPE.count], vec![0.0; SHAPE.count]);
        for (x, chosen) in normed.chunks_exact(d).zip(choices) {
            let exps: Vec<f64> =
                times(&p[router.clone()], x).into_iter().map(|l| l.exp()).collect();
            let (all, some): (f64, f64) =
                (exps.iter().sum(), chosen.iter().map(|&e| exps[e]).sum());
            let mut y = vec![0.0; d];
            for &e in chosen {
                let gu = times(&p[experts[e].gate_up.clone()], x);
                let act: Vec<f64> =
                    (0..ff).map(|i| gu[i] / (1.0 + (-gu[i]).exp()) * gu[ff + i]).collect();
                for (y, v) in y.iter_mut().zip(times(&p[experts[e].down.clone()], &act)) {
                    *y += exps[e] / some * v;
                }
                busy[e] += 1.0 / (TOKENS * SHAPE.chosen) as f64;
            }
            for e in 0..SHAPE.count {
                mean[e] += exps[e] / all / TOKENS as f64;
            }
            out.extend(y);
        }
        let even: f64 = busy.iter().zip(&mean).map(|(f, p)| f * p).sum();
        (out, SHAPE.balance as f64 * SHAPE.count as f64 * even)
    }

    fn wide(x: &[f32]) -> Vec<f64> {
        x.iter().map(|&v| v as f64).collect()
    }

    fn setting() -> (Config, Vec<f32>, Places, Vec<f32>, Vec<f32>) {
        let c = config();
        let mut rng = Rng::new(11, 0);
        let model = Llama::init(c.clone(), 3);
        let places = places(&model.layout);
        let params = normal(&mut rng, model.layout.len);
        let normed = normal(&mut rng, TOKENS * c.hidden_size);
        let dout = normal(&mut rng, TOKENS * c.hidden_size);
        (c, params, places, normed, dout)
    }

    #[test]
    fn forward_follows_the_formula() {
        let (c, p, at, normed, start) = setting();
        let (mut s, mut x) = (Saved::default(), start.clone());
        forward(&c, &p, &at.0, &at.1, &normed, &mut x, &mut s, &mut Scratch::default());
        // The chosen are those of the largest logits.
        let d = c.hidden_size;
        for (x, chosen) in normed.chunks_exact(d).zip(choices(&s)) {
            let logits: Vec<f32> = p[at.0.clone()].chunks_exact(d).map(|w| dot(w, x)).collect();
            let better = |e: &usize| logits.iter().filter(|&&l| l > logits[*e]).count();
            assert!(chosen.len() == SHAPE.chosen && chosen.iter().all(|e| better(e) < 2));
        }
        let (expected, _) = reference(&c, &wide(&p), &at, &wide(&normed), &choices(&s));
        for ((x, start), expected) in x.iter().zip(&start).zip(expected) {
            let found = (x - start) as f64;
            assert!((found - expected).abs() < 1e-4 * (1.0 + expected.abs()));
        }
    }

    /// Every single derivative against central differences of the reference in f64.
    #[test]
    fn backward_agrees_with_finite_differences() {
        let (c, p, at, normed, dout) = setting();
        let (mut s, mut scratch) = (Saved::default(), Scratch::default());
        let (mut x, mut grad) = (dout.clone(), vec![0.0; p.len()]);
        let mut dnormed = vec![f32::NAN; normed.len()];
        forward(&c, &p, &at.0, &at.1, &normed, &mut x, &mut s, &mut scratch);
        let choices = choices(&s);
        let scale = 0.5;
        let rest = (&mut s, &mut grad[..], &mut dnormed[..], &mut scratch);
        backward(&c, &p, &at.0, &at.1, &normed, &dout, scale, rest.0, rest.1, rest.2, rest.3);
        let objective = |p: &[f64], normed: &[f64]| -> f64 {
            let (out, balance) = reference(&c, p, &at, normed, &choices);
            let data: f64 = out.iter().zip(&dout).map(|(&y, &d)| y * d as f64).sum();
            data + scale as f64 * TOKENS as f64 * balance
        };
        let (mut p, mut normed) = (wide(&p), wide(&normed));
        let mut check = |found: f32, normed_at: Option<usize>, at: usize| {
            let mut moved = |by: f64| {
                let v = if normed_at.is_some() { &mut normed[at] } else { &mut p[at] };
                *v += by;
                objective(&p, &normed)
            };
            let (up, down) = (moved(1e-5), moved(-2e-5));
            moved(1e-5);
            let expected = (up - down) / 2e-5;
            let error = (found as f64 - expected).abs();
            assert!(error < 1e-4 * (1.0 + expected.abs()), "{at}: {found}, expected {expected}");
        };
        let experts = at.1.iter().flat_map(|g| g.gate_up.clone().chain(g.down.clone()));
        for i in at.0.clone().chain(experts) {
            check(grad[i], None, i);
        }
        for (i, &found) in dnormed.iter().enumerate() {
            check(found, Some(i), i);
        }
    }
}
