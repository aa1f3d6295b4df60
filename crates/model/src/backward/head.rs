//! From the last states to labels and back.

use ndarray::{Array2, ArrayView2, ArrayViewMut2, Axis, Slice, s};
use tensorpress_tensor::linalg;
use tensorpress_tensor::node::{Accum, Input};
use tensorpress_tensor::{Error, Result, Scratch, kernels};

use super::labels::Labels;
use super::observer::GradientObserver;
use crate::decoder::Head;
use crate::layers::{Linear, math};

/// Logits held at a time, per thread.
const LOGITS: usize = 1 << 24;
/// Rows of a stored matrix that are decoded at a time.
const ROWS: usize = 4096;

/// The head on the way back.
pub(super) struct Heading<'a> {
    head: &'a Head,
    labels: Labels,
    /// Whether somebody wants to see the matrix over the vocabulary, and what stands before it.
    wanted: [bool; 2],
}

/// The labels of a window, and the sum of -ln p of them.
type Judged = (Vec<Option<u32>>, f64);

/// Sees x and g of a layer.
type See<'a> = dyn FnMut(&Linear, &Array2<f32>, &Array2<f32>) -> Result<()> + 'a;

impl<'a> Heading<'a> {
    pub(super) fn new(
        head: &'a Head,
        labels: Labels,
        observer: &dyn GradientObserver,
    ) -> Result<Self> {
        let before = head.project.as_ref().is_some_and(|project| observer.wants(project));
        Ok(Self { head, labels, wanted: [observer.wants(&head.linear), before] })
    }

    pub(super) fn watched(&self) -> bool {
        self.wanted[0] || self.wanted[1]
    }

    pub(super) fn layers(&self) -> Vec<&'a Linear> {
        let before = self.head.project.as_ref().filter(|_| self.wanted[1]);
        let matrix = Some(&self.head.linear).filter(|_| self.wanted[0]);
        before.into_iter().chain(matrix).collect()
    }

    /// Fills `to` with the gradients of the last states `hidden`, both `[tokens, hidden]`, of one window.
    pub(super) fn back(
        &self,
        window: usize,
        ids: &[u32],
        hidden: ArrayView2<'_, f32>,
        mut to: ArrayViewMut2<'_, f32>,
        see: &mut See<'_>,
        scratch: &mut Scratch,
    ) -> Result<Judged> {
        let head = self.head;
        let mut normed = hidden.to_owned();
        head.norm.iter().for_each(|norm| norm.apply(normed.view_mut()));
        let narrow = match &head.project {
            None => None,
            Some(project) => Some(forward(project, normed.view(), scratch)?),
        };
        let x = narrow.as_ref().unwrap_or(&normed);
        let mut dx = Array2::zeros(x.dim());
        let (mut labels, mut loss) = (Vec::with_capacity(ids.len()), 0.0);
        let step = (LOGITS / head.vocab().max(1)).max(1);
        for start in (0..ids.len()).step_by(step) {
            let rows = Slice::from(start..(start + step).min(ids.len()));
            let x = x.slice_axis(Axis(0), rows);
            let mut logits = forward(&head.linear, x, scratch)?;
            for (t, mut row) in logits.rows_mut().into_iter().enumerate() {
                let row = row.as_slice_mut().expect("rows of a new matrix");
                let (label, nats) = self.judge(window, ids, start + t, row)?;
                labels.push(label);
                loss += nats;
            }
            let target = dx.slice_axis_mut(Axis(0), rows);
            through(&head.linear, logits.view(), target, scratch)?;
            if self.wanted[0] {
                see(&head.linear, &x.to_owned(), &logits)?;
            }
        }
        if let Some(project) = &head.project {
            let mut wide = Array2::zeros(normed.dim());
            through(project, dx.view(), wide.view_mut(), scratch)?;
            if self.wanted[1] {
                see(project, &normed, &dx)?;
            }
            dx = wide;
        }
        head.norm.iter().for_each(|norm| norm.back(hidden, dx.view_mut()));
        if kernels::has_non_finite(dx.as_slice().expect("a new matrix")) {
            return Err(self.blame("gradients of the last states are not finite"));
        }
        to.assign(&dx);
        Ok((labels, loss))
    }

    /// Replaces the products of a token with the matrix by the gradient of its loss by them; gives label and loss.
    fn judge(
        &self,
        window: usize,
        ids: &[u32],
        position: usize,
        row: &mut [f32],
    ) -> Result<(Option<u32>, f64)> {
        let head = self.head;
        if head.scale != 1.0 {
            row.iter_mut().for_each(|logit| *logit *= head.scale);
        }
        if let Some(cap) = head.softcap {
            row.iter_mut().for_each(|logit| *logit = cap * (*logit / cap).tanh());
        }
        if kernels::has_non_finite(row) {
            return Err(self.blame("logits are not finite"));
        }
        let top = math::max(row);
        let next = ids.get(position + 1).and_then(|next| row.get(*next as usize)).copied();
        let slopes = head.softcap.map(|cap| row.iter().map(|l| 1.0 - (l / cap).powi(2)).collect());
        let slopes: Option<Vec<f32>> = slopes;
        row.iter_mut().for_each(|logit| *logit = math::exp(*logit - top));
        let total = sum(row);
        let label = self.labels.of(window, ids, position, row, total);
        let Some(place) = label.map(|label| label as usize) else {
            row.fill(0.0);
            return Ok((None, 0.0));
        };
        if place >= row.len() {
            let message = format!("token {place} in a vocabulary of {}", row.len());
            return Err(Error::invalid(message));
        }
        let own = f64::from(row[place]);
        // Of what is very improbable the power is cut off; only a given label can be that.
        let height = match (self.labels, next) {
            (Labels::Next, Some(logit)) => f64::from(logit) - f64::from(top),
            _ => own.ln(),
        };
        let nats = total.ln() - height;
        let factor = (f64::from(head.scale) / total) as f32;
        row.iter_mut().for_each(|p| *p *= factor);
        // In f64: near p = 1 the difference is all there is.
        row[place] = ((own / total - 1.0) * f64::from(head.scale)) as f32;
        for (g, slope) in row.iter_mut().zip(slopes.iter().flatten()) {
            *g *= slope;
        }
        Ok((label, nats))
    }

    fn blame(&self, what: &str) -> Error {
        let head = self.head;
        let layers = head.project.iter().chain([&head.linear]);
        let checked = layers.into_iter().try_for_each(Linear::check_finite);
        let checked = checked.and_then(|()| head.norm.iter().try_for_each(|n| n.check_finite()));
        checked.err().unwrap_or_else(|| Error::numerical(what).in_tensor(head.linear.name()))
    }
}

/// In f64, in lanes.
fn sum(values: &[f32]) -> f64 {
    let (blocks, rest) = values.as_chunks::<8>();
    let mut sums = [0.0f64; 8];
    for block in blocks {
        for i in 0..8 {
            sums[i] += f64::from(block[i]);
        }
    }
    sums.iter().sum::<f64>() + rest.iter().map(|v| f64::from(*v)).sum::<f64>()
}

fn forward(layer: &Linear, x: ArrayView2<'_, f32>, scratch: &mut Scratch) -> Result<Array2<f32>> {
    let mut y = Array2::zeros((x.nrows(), layer.shape()[0]));
    Input::with(x, scratch, |x, scratch| layer.forward(x, y.view_mut(), scratch))?;
    Ok(y)
}

/// `dx = g W`, some rows of W at a time: a matrix over the vocabulary is large.
fn through(
    layer: &Linear,
    g: ArrayView2<'_, f32>,
    mut dx: ArrayViewMut2<'_, f32>,
    scratch: &mut Scratch,
) -> Result<()> {
    let [out, width] = layer.shape();
    let par = scratch.par();
    dx.fill(0.0);
    let decoded = match layer.node() {
        None => Some(layer.values()?),
        Some(_) => None,
    };
    for start in (0..out).step_by(ROWS) {
        let rows = start..(start + ROWS).min(out);
        let g = g.slice(s![.., rows.clone()]);
        match (&decoded, layer.node()) {
            (None, Some(node)) => {
                scratch.with_matrix((rows.len(), width), |mut values, scratch| {
                    let into = values.view_mut();
                    node.decode_rows(rows.clone(), into, Accum::Replace, scratch)?;
                    linalg::matmul(g, values.view(), dx.view_mut(), true, par);
                    Ok(())
                })
            }
            (Some(values), _) => {
                linalg::matmul(g, values.slice(s![rows, ..]), dx.view_mut(), true, par);
                Ok(())
            }
            (None, None) => Ok(()),
        }
        .map_err(|error: Error| error.in_tensor(layer.name()))?;
    }
    Ok(())
}
