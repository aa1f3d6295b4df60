//! The cross-Gram matrix of compressed and original inputs.

use std::sync::Arc;

use ndarray::{Array2, ArrayView2, Axis, s};

use super::NonFinite;
use super::statistic::{Ask, Batch, Statistic, Stream, Via};
use crate::linalg::{Par, matmul_tn};
use crate::node::{Channels, Side};
use crate::usable::Usable;
use crate::{Error, Result};

/// Rows of the sum that threads share out.
const STRIP: usize = 128;
/// Tokens multiplied in f32 before the product is added in f64, as in [`super::Gram`].
const ROWS: usize = 256;

/// X̂ᵀX `[channels, channels]`: X̂ is what the layer reads behind layers that are compressed ([`Stream::Input`]), X what it
/// reads in the model as it was ([`Stream::Original`]). What GPTAQ (Li et al., 2025), Qronos (Zhang et al., 2025) and
/// SAES-SVD correct the error of earlier layers by. Not symmetric; not divided by the number of tokens.
///
/// Sums as [`super::Gram`] does, 8n² bytes. The bytes depend neither on how the stream is cut nor on `par`.
#[derive(Debug, Clone)]
pub struct CrossGram {
    channels: usize,
    tokens: u64,
    sum: Array2<f64>,
    /// Rows of X̂ and X that do not fill a block yet.
    pending: [Vec<f32>; 2],
    /// Original inputs were not always there.
    missing: bool,
    non_finite: Option<NonFinite>,
}

impl CrossGram {
    /// Rows of both streams as they come, in blocks of [`ROWS`].
    fn add(&mut self, input: ArrayView2<'_, f32>, original: ArrayView2<'_, f32>, par: Par) {
        let (mut input, mut original) = (input, original);
        while input.nrows() > 0 {
            let waiting = self.pending[0].len() / self.channels;
            let count = input.nrows().min(ROWS - waiting);
            let (now, later) = input.split_at(Axis(0), count);
            let (now_original, later_original) = original.split_at(Axis(0), count);
            (input, original) = (later, later_original);
            if count == ROWS {
                self.add_block(now, now_original, par);
                continue;
            }
            self.pending[0].extend(now);
            self.pending[1].extend(now_original);
            if waiting + count == ROWS {
                self.flush(par);
            }
        }
    }

    fn flush(&mut self, par: Par) {
        let [input, original] = std::mem::take(&mut self.pending);
        if input.is_empty() {
            return;
        }
        let shape = (input.len() / self.channels, self.channels);
        let view = |rows| ArrayView2::from_shape(shape, rows).expect("whole rows");
        self.add_block(view(&input), view(&original), par);
    }

    /// Adds X̂ᵀX of at most [`ROWS`] tokens. Threads share strips out, so each sum has one order.
    fn add_block(&mut self, input: ArrayView2<'_, f32>, original: ArrayView2<'_, f32>, par: Par) {
        let add = |(at, mut sum): (usize, ndarray::ArrayViewMut2<'_, f64>)| {
            let left = input.slice(s![.., at * STRIP..at * STRIP + sum.nrows()]);
            let mut product = Array2::zeros(sum.dim());
            matmul_tn(left, original, product.view_mut(), false, Par::Seq);
            sum.zip_mut_with(&product, |sum, p: &f32| *sum += f64::from(*p));
        };
        let strips: Vec<_> = self.sum.axis_chunks_iter_mut(Axis(0), STRIP).enumerate().collect();
        par.for_each(strips.into_iter(), add);
    }
}

impl Statistic for CrossGram {
    type Value = Array2<f32>;
    const WHAT: &'static str = "the cross-Gram matrix";
    const STREAMS: &'static [Stream] = &[Stream::Input, Stream::Original];

    fn bytes(ask: Ask) -> u64 {
        8 * (ask.channels as u64).pow(2)
    }

    fn begin(ask: Ask) -> Self {
        let n = ask.channels;
        Self {
            channels: n,
            tokens: 0,
            sum: Array2::zeros((n, n)),
            pending: Default::default(),
            missing: false,
            non_finite: None,
        }
    }

    fn update(&mut self, batch: &Batch<'_>, par: Par) {
        let Some(original) = batch.original else {
            self.missing |= batch.input.nrows() > 0;
            return;
        };
        assert_eq!(original.dim(), batch.input.dim(), "inputs of two models");
        if self.non_finite.is_none() {
            self.non_finite = NonFinite::find(original, self.tokens);
        }
        self.tokens += original.nrows() as u64;
        if self.non_finite.is_none() && self.channels > 0 {
            self.add(batch.input, original, par);
        }
    }

    fn merge(&mut self, mut other: Self) {
        assert_eq!(other.channels, self.channels, "channels of merged cross-Gram matrices");
        let later = other.non_finite.map(|bad| NonFinite { token: bad.token + self.tokens, ..bad });
        self.non_finite = self.non_finite.or(later);
        self.tokens += other.tokens;
        self.missing |= other.missing;
        self.flush(Par::Seq);
        other.flush(Par::Seq);
        self.sum += &other.sum;
    }

    fn finish(mut self) -> Result<Array2<f32>> {
        if self.missing {
            return Err(Error::missing_calibration(format!(
                "{} lacks original inputs",
                Self::WHAT
            )));
        }
        self.non_finite.map_or(Ok(()), |bad| Err(bad.error("original inputs")))?;
        self.flush(Par::Seq);
        let matrix = self.sum.mapv(|v| v as f32);
        match matrix.indexed_iter().find(|(_, v)| !v.is_finite()) {
            None => Ok(matrix),
            Some(((i, j), v)) => {
                Err(Error::numerical(format!("{}: entry [{i}, {j}] is {v}", Self::WHAT)))
            }
        }
    }

    fn through(value: &Arc<Array2<f32>>, via: &Via<'_>) -> Usable<Arc<Array2<f32>>> {
        Usable::Yes(match (via.side, via.map.channels()) {
            (Side::Out, _) => value.clone(),
            (Side::In, Channels::Moved(index)) => {
                let index: Vec<usize> = index.iter().map(|i| *i as usize).collect();
                Arc::new(value.select(Axis(0), &index).select(Axis(1), &index))
            }
            (Side::In, _) => {
                let right = via.map.inputs(value.view(), via.par);
                let both = via.map.inputs(right.t(), via.par);
                Arc::new(both.t().as_standard_layout().into_owned())
            }
        })
    }
}
