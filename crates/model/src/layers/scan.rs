//! State-space layers: what a token leaves behind fades as the next ones come.

use std::ops::ControlFlow;

use ndarray::{ArrayView2, ArrayViewMut2, Axis, s};
use tensorpress_tensor::node::Input;
use tensorpress_tensor::rewrite::SharedInput;
use tensorpress_tensor::{Error, Result, Scratch};

use super::{Linear, Norm, as_matrix, buffer, math};
use crate::block::{Observer, Past};
use crate::cache::ScanState;
use crate::config::Activation;

/// out(norm(activation(gate) x scan(activation(convolution(x))))), where `x` and the gate come out of one matrix.
#[derive(Debug)]
pub(crate) struct Scan {
    pub(crate) input: Linear,
    pub(crate) conv: Conv,
    pub(crate) kind: Scanning,
    pub(crate) inner: usize,
    pub(crate) state: usize,
    /// -exp of what is stored: one a channel and value, or one a head.
    pub(crate) decay: Vec<f32>,
    /// One a channel, or one a head.
    pub(crate) past: Vec<f32>,
    pub(crate) activation: Activation,
    pub(crate) output: Linear,
}

/// Where steps, B and C come from.
#[derive(Debug)]
pub(crate) enum Scanning {
    Selective { parameters: Linear, step: Linear, rank: usize },
    Heads { heads: usize, groups: usize, step_bias: Vec<f32>, limits: (f32, f32), norm: Norm },
}

/// A causal convolution of each channel with a kernel of its own.
#[derive(Debug)]
pub(crate) struct Conv {
    /// `[kernel, channels]`; the last row is that of the token itself.
    pub(crate) weight: Vec<f32>,
    pub(crate) bias: Option<Vec<f32>>,
    pub(crate) channels: usize,
}

/// Some tokens on their way through the scan: their channels, B and C, and steps.
struct Tokens<'a> {
    x: ArrayView2<'a, f32>,
    b: ArrayView2<'a, f32>,
    c: ArrayView2<'a, f32>,
    step: ArrayView2<'a, f32>,
    out: ArrayViewMut2<'a, f32>,
}

impl<'a> Tokens<'a> {
    fn split_at(self, at: usize) -> (Self, Self) {
        let (x, x2) = self.x.split_at(Axis(0), at);
        let (b, b2) = self.b.split_at(Axis(0), at);
        let (c, c2) = self.c.split_at(Axis(0), at);
        let (step, step2) = self.step.split_at(Axis(0), at);
        let (out, out2) = self.out.split_at(Axis(0), at);
        (Self { x, b, c, step, out }, Self { x: x2, b: b2, c: c2, step: step2, out: out2 })
    }
}

impl Conv {
    /// Inputs before the first of a sequence that it reads.
    fn reach(&self) -> usize {
        self.weight.len() / self.channels - 1
    }

    /// Fills `out` from `x`, both `[tokens, channels]`, of one sequence behind the inputs `before`, or behind nothing.
    fn apply(&self, x: ArrayView2<'_, f32>, before: &[f32], mut out: ArrayViewMut2<'_, f32>) {
        let reach = self.reach();
        let old: Vec<&[f32]> = before.chunks_exact(self.channels).collect();
        for (t, mut out) in out.rows_mut().into_iter().enumerate() {
            let out = out.as_slice_mut().expect("rows are contiguous");
            match &self.bias {
                Some(bias) => out.copy_from_slice(bias),
                None => out.fill(0.0),
            }
            for (k, weight) in self.weight.chunks_exact(self.channels).enumerate() {
                let from = match (t + k).checked_sub(reach) {
                    Some(now) => x.row(now),
                    None if old.is_empty() => continue,
                    None => old[t + k].into(),
                };
                let from = from.to_slice().expect("rows are contiguous");
                out.iter_mut().zip(weight).zip(from).for_each(|((o, w), v)| *o += w * v);
            }
        }
    }

    /// What `before` is for the tokens behind `x`.
    fn remember(&self, x: ArrayView2<'_, f32>, before: &mut [f32]) {
        let reach = self.reach();
        let new = x.nrows().min(reach);
        before.copy_within(new * self.channels.., 0);
        let kept = before.chunks_exact_mut(self.channels).skip(reach - new);
        for (kept, row) in kept.zip(x.rows().into_iter().skip(x.nrows() - new)) {
            kept.copy_from_slice(row.to_slice().expect("rows are contiguous"));
        }
    }
}

impl Scan {
    /// The state before the first token.
    pub(crate) fn empty(&self) -> ScanState {
        let [conv, scan] = self.sizes();
        ScanState::new(conv, scan)
    }

    /// Values that a state has for the convolution, and for the scan.
    fn sizes(&self) -> [usize; 2] {
        [self.conv.reach() * self.conv.channels, self.inner * self.state]
    }

    pub(crate) fn linears(&self) -> Vec<&Linear> {
        let mut all = vec![&self.input];
        if let Scanning::Selective { parameters, step, .. } = &self.kind {
            all.extend([parameters, step]);
        }
        all.push(&self.output);
        all
    }

    pub(crate) fn linears_mut(&mut self) -> Vec<&mut Linear> {
        let mut all = vec![&mut self.input];
        if let Scanning::Selective { parameters, step, .. } = &mut self.kind {
            all.extend([parameters, step]);
        }
        all.push(&mut self.output);
        all
    }

    /// Fills `y` with what the layer makes of `x`.
    pub(crate) fn forward(
        &self,
        x: ArrayView2<'_, f32>,
        y: ArrayViewMut2<'_, f32>,
        past: &mut Past<'_>,
        observer: &mut dyn Observer,
        scratch: &mut Scratch,
    ) -> Result<ControlFlow<()>> {
        if let Past::State(state) = past
            && [state.conv.len(), state.scan.len()] != self.sizes()
        {
            return Err(Error::shape("the state of another layer"));
        }
        let (tokens, inner) = (x.nrows(), self.inner);
        let (wide, channels) = (self.input.shape()[0], self.conv.channels);
        let mut memory = [wide, channels, inner].map(|width| buffer(scratch, tokens, width));
        let [projected, convolved, out] = &mut memory;
        let mut projected = as_matrix(projected, wide);
        let (mut convolved, mut out) = (as_matrix(convolved, channels), as_matrix(out, inner));
        Input::with(x, scratch, |x, scratch| self.input.forward(x, projected.view_mut(), scratch))?;
        let (gate, first) = match &self.kind {
            Scanning::Selective { .. } => (inner, 0),
            Scanning::Heads { .. } => (0, inner),
        };
        let gate = projected.slice(s![.., gate..gate + inner]);
        let raw = projected.slice(s![.., first..first + channels]);
        self.convolve(raw, convolved.view_mut(), past);
        let values = convolved.as_slice_mut().expect("a whole buffer");
        self.activation.apply(values);

        let flow = match &self.kind {
            Scanning::Selective { parameters, step, rank } => {
                let width = rank + 2 * self.state;
                let mut more = [width, *rank, inner].map(|width| buffer(scratch, tokens, width));
                let [all, short, steps] = &mut more;
                let (mut all, mut short) = (as_matrix(all, width), as_matrix(short, *rank));
                let mut steps = as_matrix(steps, inner);
                if observer.input(SharedInput::ScanChannels, convolved.view())?.is_break() {
                    return Ok(ControlFlow::Break(()));
                }
                Input::with(convolved.view(), scratch, |x, scratch| {
                    parameters.forward(x, all.view_mut(), scratch)
                })?;
                short.assign(&all.slice(s![.., ..*rank]));
                if observer.input(SharedInput::ScanStep, short.view())?.is_break() {
                    return Ok(ControlFlow::Break(()));
                }
                Input::with(short.view(), scratch, |short, scratch| {
                    step.forward(short, steps.view_mut(), scratch)
                })?;
                steps.mapv_inplace(softplus);
                let tokens = Tokens {
                    x: convolved.view(),
                    b: all.slice(s![.., *rank..*rank + self.state]),
                    c: all.slice(s![.., *rank + self.state..]),
                    step: steps.view(),
                    out: out.view_mut(),
                };
                self.each(tokens, past, scratch);
                more.into_iter().for_each(|memory| scratch.put(memory));
                self.gate(gate, &mut out);
                observer.input(SharedInput::ScanOutput, out.view())?
            }
            Scanning::Heads { heads, groups, step_bias, limits, norm } => {
                let mut more = buffer(scratch, tokens, *heads);
                let mut steps = as_matrix(&mut more, *heads);
                steps.assign(&projected.slice(s![.., inner + channels..]));
                for mut row in steps.rows_mut() {
                    let row = row.iter_mut().zip(step_bias);
                    row.for_each(|(v, b)| *v = softplus(*v + b).clamp(limits.0, limits.1));
                }
                let (x, rest) = convolved.view().split_at(Axis(1), inner);
                let (b, c) = rest.split_at(Axis(1), groups * self.state);
                let tokens = Tokens { x, b, c, step: steps.view(), out: out.view_mut() };
                self.each(tokens, past, scratch);
                scratch.put(more);
                self.gate(gate, &mut out);
                norm.apply(out.view_mut());
                observer.input(SharedInput::ScanOutput, out.view())?
            }
        };
        if flow.is_continue() {
            Input::with(out.view(), scratch, |out, scratch| self.output.forward(out, y, scratch))?;
        }
        memory.into_iter().for_each(|memory| scratch.put(memory));
        Ok(flow)
    }

    fn convolve(
        &self,
        mut x: ArrayView2<'_, f32>,
        mut out: ArrayViewMut2<'_, f32>,
        past: &mut Past<'_>,
    ) {
        match past {
            Past::State(state) => {
                self.conv.apply(x, &state.conv, out);
                self.conv.remember(x, &mut state.conv);
            }
            Past::None(lengths) => {
                for length in *lengths {
                    let (now, later) = x.split_at(Axis(0), *length);
                    let (now_out, later_out) = out.split_at(Axis(0), *length);
                    self.conv.apply(now, &[], now_out);
                    (x, out) = (later, later_out);
                }
            }
        }
    }

    /// Scans every sequence by itself.
    fn each(&self, tokens: Tokens<'_>, past: &mut Past<'_>, scratch: &Scratch) {
        match past {
            Past::State(state) => {
                let count = tokens.x.nrows();
                self.scan(tokens, &mut state.scan);
                state.tokens += count;
            }
            Past::None(lengths) => {
                let (mut rest, mut sequences) = (tokens, Vec::with_capacity(lengths.len()));
                for length in *lengths {
                    let (now, later) = rest.split_at(*length);
                    sequences.push(now);
                    rest = later;
                }
                let state = || vec![0.0; self.inner * self.state];
                scratch.par().for_each_init(sequences.into_iter(), state, |state, tokens| {
                    state.fill(0.0);
                    self.scan(tokens, state);
                });
            }
        }
    }

    /// One sequence; `state` `[channels, values]` is what it has become by its last token.
    fn scan(&self, tokens: Tokens<'_>, state: &mut [f32]) {
        let Tokens { x, b, c, step, mut out } = tokens;
        let n = self.state;
        let rows = x.rows().into_iter().zip(step.rows()).zip(b.rows()).zip(c.rows());
        for ((((x, step), b), c), mut out) in rows.zip(out.rows_mut()) {
            let b = b.to_slice().expect("rows are contiguous");
            let c = c.to_slice().expect("rows are contiguous");
            match &self.kind {
                Scanning::Selective { .. } => {
                    let channels = state.chunks_exact_mut(n).zip(self.decay.chunks_exact(n));
                    for (i, (state, decay)) in channels.enumerate() {
                        let (x, step) = (x[i], step[i]);
                        out[i] = self.past[i] * x + selective(state, decay, step, step * x, b, c);
                    }
                }
                Scanning::Heads { heads, groups, .. } => {
                    let width = self.inner / heads;
                    for (head, state) in state.chunks_exact_mut(width * n).enumerate() {
                        let (step, past) = (step[head], self.past[head]);
                        let fades = math::exp(step * self.decay[head]);
                        let from = head / (heads / groups) * n;
                        let (b, c) = (&b[from..from + n], &c[from..from + n]);
                        for (i, state) in state.chunks_exact_mut(n).enumerate() {
                            let i = head * width + i;
                            out[i] = past * x[i] + together(state, fades, step * x[i], b, c);
                        }
                    }
                }
            }
        }
    }

    fn gate(&self, gate: ArrayView2<'_, f32>, out: &mut ArrayViewMut2<'_, f32>) {
        let mut open = vec![0.0; self.inner];
        for (gate, mut out) in gate.rows().into_iter().zip(out.rows_mut()) {
            open.iter_mut().zip(gate).for_each(|(o, g)| *o = *g);
            self.activation.apply(&mut open);
            out.iter_mut().zip(&open).for_each(|(o, g)| *o *= g);
        }
    }
}

/// `state = exp(step decay) state + new b`; gives `state c`. By itself, so that the compiler makes vector code of it.
#[inline(never)]
fn selective(state: &mut [f32], decay: &[f32], step: f32, new: f32, b: &[f32], c: &[f32]) -> f32 {
    for ((s, a), b) in state.iter_mut().zip(decay).zip(b) {
        *s = math::exp(step * a) * *s + new * b;
    }
    short_dot(state, c)
}

/// The same where all values fade alike.
#[inline(never)]
fn together(state: &mut [f32], fades: f32, new: f32, b: &[f32], c: &[f32]) -> f32 {
    for (s, b) in state.iter_mut().zip(b) {
        *s = fades * *s + new * b;
    }
    short_dot(state, c)
}

/// A product of rows so short that choosing a kernel would take longer.
fn short_dot(a: &[f32], b: &[f32]) -> f32 {
    const LANES: usize = 8;
    let (a_blocks, a_rest) = a.as_chunks::<LANES>();
    let (b_blocks, b_rest) = b.as_chunks::<LANES>();
    let mut sums = [0.0f32; LANES];
    for (a, b) in a_blocks.iter().zip(b_blocks) {
        for i in 0..LANES {
            sums[i] += a[i] * b[i];
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f32>() + rest
}

/// ln(1 + e^x)
fn softplus(x: f32) -> f32 {
    // From there on it is x, to the last bit.
    if x > 20.0 { x } else { math::exp(x).ln_1p() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_convolution_in_pieces_is_that_of_the_whole() {
        let conv = Conv { weight: (1..=8).map(|v| v as f32).collect(), bias: None, channels: 2 };
        let x: Vec<f32> = (0..14).map(|i| ((i * 5) % 7) as f32).collect();
        let x = ArrayView2::from_shape((7, 2), &x).unwrap();
        let mut whole = ndarray::Array2::zeros((7, 2));
        conv.apply(x, &[], whole.view_mut());
        // By hand: the third token of channel 0 has weights 3, 5, 7 of the tokens up to it.
        assert_eq!(whole[[2, 0]], 3.0 * x[[0, 0]] + 5.0 * x[[1, 0]] + 7.0 * x[[2, 0]]);
        for first in 0..=7 {
            let mut before = vec![0.0; 6];
            let mut pieces = ndarray::Array2::zeros((7, 2));
            for rows in [0..first, first..7] {
                let piece = x.slice(s![rows.clone(), ..]);
                conv.apply(piece, &before, pieces.slice_mut(s![rows, ..]));
                conv.remember(piece, &mut before);
            }
            assert_eq!(pieces, whole, "{first}");
        }
    }

    #[test]
    fn softplus_is_smooth_where_it_ends() {
        assert!((softplus(0.0) - std::f32::consts::LN_2).abs() < 1e-7);
        assert!((softplus(19.999) - softplus(20.001) + 0.002).abs() < 1e-5);
        assert!(softplus(-50.0) < 1e-20 && softplus(-50.0) >= 0.0);
    }
}
