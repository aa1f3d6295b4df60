//! Judging a model: perplexity, and how far its predictions are from those of a reference.
//!
//! Every next-token prediction of every sequence counts once. Logarithms are natural, sums are in f64, and the same
//! numbers come out for any number of threads.

use std::borrow::Cow;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use ndarray::{Array2, ArrayView2, s};
use rayon::prelude::*;
use tensorpress_kvcache::KvRecipe;
use tensorpress_tensor::linalg::Par;
use tensorpress_tensor::{Error, Result, Scratch};

use crate::decoder::{Decoder, Head};
use crate::layers::math;

/// Told how many sequences of how many are done; called from any thread.
pub type Progress<'a> = dyn Fn(usize, usize) + Sync + 'a;

/// What judging found. Fields that need a reference are `None` without one.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
#[non_exhaustive]
pub struct Judgement {
    /// exp of the mean negative log-likelihood.
    pub perplexity: f64,
    /// The reference's perplexity.
    pub reference_perplexity: Option<f64>,
    /// Mean over predictions of the sum of p ln(p / q), p the reference's probabilities, q the model's.
    pub kld_mean: Option<f64>,
    /// 99th percentile of that divergence over all predictions, interpolated between the two nearest.
    pub kld_p99: Option<f64>,
    /// Share of predictions whose most probable token is the reference's, 0 to 1.
    pub top1_agreement: Option<f64>,
    /// Predictions.
    pub tokens: usize,
}

/// A model whose predictions are judged: a decoder, or one behind caches that lose something.
pub trait Judged: Sync {
    /// The model.
    fn decoder(&self) -> &Decoder;

    /// The last block's output `[tokens, hidden]` of a whole sequence, before the final norm.
    ///
    /// # Errors
    /// As [`Decoder::hidden`].
    fn hidden(&self, ids: &[u32], scratch: &mut Scratch) -> Result<Array2<f32>> {
        self.decoder().hidden(ids, scratch)
    }

    /// Tokens of every sequence that are read and not judged.
    fn read_first(&self) -> usize {
        0
    }
}

impl Judged for Decoder {
    fn decoder(&self) -> &Decoder {
        self
    }
}

/// How a model behind caches reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Reading {
    /// Tokens that it reads at once, as a prompt is read; they are not judged.
    pub prefix: usize,
    /// Tokens that it reads at a time after that, at least 1. Those read together see each other as the form holds them, and
    /// policies look once for all.
    pub step: usize,
}

impl Default for Reading {
    /// Token by token, as when it generates.
    fn default() -> Self {
        Self { prefix: 0, step: 1 }
    }
}

impl Reading {
    /// Sets how many tokens are read at once before anything is judged.
    #[must_use]
    pub fn with_prefix(mut self, tokens: usize) -> Self {
        self.prefix = tokens;
        self
    }

    /// Sets how many tokens are read at a time.
    #[must_use]
    pub fn with_step(mut self, tokens: usize) -> Self {
        self.step = tokens.max(1);
        self
    }
}

/// A model that sees the past through caches made by a recipe.
#[derive(Debug)]
pub struct ThroughCache<'a> {
    decoder: &'a Decoder,
    recipe: &'a KvRecipe,
    reading: Reading,
    /// Bytes held when sequences ended, and their tokens.
    held: [AtomicU64; 2],
}

impl<'a> ThroughCache<'a> {
    /// A model behind caches of this kind.
    ///
    /// # Errors
    /// Those of [`Decoder::caches`].
    pub fn new(decoder: &'a Decoder, recipe: &'a KvRecipe) -> Result<Self> {
        decoder.caches(recipe)?;
        Ok(Self { decoder, recipe, reading: Reading::default(), held: Default::default() })
    }

    /// Sets how it reads.
    #[must_use]
    pub fn with_reading(mut self, reading: Reading) -> Self {
        self.reading = reading;
        self
    }

    /// Bytes of keys and values of all blocks when sequences ended, over the tokens they had; of what was judged so far.
    #[must_use]
    pub fn bytes_per_token(&self) -> f64 {
        let [bytes, tokens] = &self.held;
        bytes.load(Ordering::Relaxed) as f64 / tokens.load(Ordering::Relaxed).max(1) as f64
    }
}

impl Judged for ThroughCache<'_> {
    fn decoder(&self) -> &Decoder {
        self.decoder
    }

    fn hidden(&self, ids: &[u32], scratch: &mut Scratch) -> Result<Array2<f32>> {
        let mut caches = self.decoder.caches(self.recipe)?;
        let mut hidden = Array2::zeros((ids.len(), self.decoder.config().hidden));
        let Reading { prefix, step } = self.reading;
        let mut waits = caches.iter_mut().filter_map(|cache| cache.repeats());
        if prefix == 0 && waits.any(|cache| cache.repetition().is_some()) {
            return Err(Error::invalid(
                "prefix = 0: the cache waits until what is read at once has been said again: at least 1",
            ));
        }
        let mut next = 0..prefix.min(ids.len());
        while next.start < ids.len() {
            if !next.is_empty() {
                let rows = self.decoder.advance(&ids[next.clone()], &mut caches, scratch)?;
                hidden.slice_mut(s![next.clone(), ..]).assign(&rows);
            }
            next = next.end..(next.end + step.max(1)).min(ids.len());
        }
        let bytes: u64 = caches.iter().map(|cache| cache.bytes()).sum();
        self.held[0].fetch_add(bytes, Ordering::Relaxed);
        self.held[1].fetch_add(ids.len() as u64, Ordering::Relaxed);
        Ok(hidden)
    }

    fn read_first(&self) -> usize {
        self.reading.prefix
    }
}

/// Perplexity of a model on sequences of tokens.
///
/// # Errors
/// `InsufficientData` if there is nothing to predict; `Numerical` where something is not finite; those of
/// [`Decoder::hidden`].
pub fn perplexity(
    model: &dyn Judged,
    segments: &[Vec<u32>],
    progress: &Progress<'_>,
) -> Result<Judgement> {
    let tallies = each(segments, progress, |_, ids, scratch| {
        let hidden = model.hidden(ids, scratch)?;
        let mut tally = Tally::default();
        let head = model.decoder().head();
        for rows in chunks(ids, model.read_first(), head.vocab()) {
            let logits = head.logits(hidden.slice(s![rows.clone(), ..]), scratch)?;
            for (logits, next) in logits.rows().into_iter().zip(&ids[rows.start + 1..]) {
                let logits = logits.to_slice().expect("rows of a new matrix");
                tally.nll += math::log_sum_exp(logits) - f64::from(logits[*next as usize]);
                tally.tokens += 1;
            }
        }
        Ok(tally)
    })?;
    judge(&tallies, false)
}

/// Compares a model's predictions with a reference's; both run on each sequence, nothing is kept.
///
/// # Errors
/// As [`perplexity`]; `InvalidArgument` if the vocabularies differ.
pub fn compare(
    reference: &Decoder,
    model: &dyn Judged,
    segments: &[Vec<u32>],
    progress: &Progress<'_>,
) -> Result<Judgement> {
    compare_with(reference.head(), model, segments, progress, &|i, scratch| {
        Ok(Cow::Owned(reference.hidden(&segments[i], scratch)?))
    })
}

/// A reference model whose last hidden states on some sequences are kept (4 x hidden bytes a token), so that judging
/// many candidates costs it only the product with its head.
#[derive(Debug)]
pub struct Reference<'a> {
    head: &'a Head,
    segments: &'a [Vec<u32>],
    hidden: Vec<Array2<f32>>,
}

impl<'a> Reference<'a> {
    /// Runs the reference.
    ///
    /// # Errors
    /// Those of [`Decoder::hidden`].
    pub fn new(
        decoder: &'a Decoder,
        segments: &'a [Vec<u32>],
        progress: &Progress<'_>,
    ) -> Result<Self> {
        Self::with_head(decoder, decoder.head(), segments, progress)
    }

    /// The same with a head of its own, so that the decoder is free when it has run.
    ///
    /// # Errors
    /// As there.
    pub fn with_head(
        decoder: &Decoder,
        head: &'a Head,
        segments: &'a [Vec<u32>],
        progress: &Progress<'_>,
    ) -> Result<Self> {
        let run = |_, ids: &[u32], scratch: &mut Scratch| decoder.hidden(ids, scratch);
        Ok(Self { head, segments, hidden: each(segments, progress, run)? })
    }

    /// As [`compare`].
    ///
    /// # Errors
    /// As there.
    pub fn judge(&self, model: &dyn Judged, progress: &Progress<'_>) -> Result<Judgement> {
        compare_with(self.head, model, self.segments, progress, &|i, _| {
            Ok(Cow::Borrowed(&self.hidden[i]))
        })
    }
}

type ReferenceHidden<'a, 'b> =
    dyn Fn(usize, &mut Scratch) -> Result<Cow<'b, Array2<f32>>> + Sync + 'a;

fn compare_with<'b>(
    reference: &Head,
    model: &dyn Judged,
    segments: &[Vec<u32>],
    progress: &Progress<'_>,
    reference_hidden: &ReferenceHidden<'_, 'b>,
) -> Result<Judgement>
where
    Array2<f32>: 'b,
{
    let head = model.decoder().head();
    let vocab = head.vocab();
    if reference.vocab() != vocab {
        let message = format!("a vocabulary of {vocab}, the reference's has {}", reference.vocab());
        return Err(Error::invalid(message));
    }
    let tallies = each(segments, progress, |i, ids, scratch| {
        let theirs = reference_hidden(i, scratch)?;
        let ours = model.hidden(ids, scratch)?;
        let mut tally = Tally::default();
        for rows in chunks(ids, model.read_first(), 2 * vocab) {
            let theirs = reference.logits(theirs.slice(s![rows.clone(), ..]), scratch)?;
            let ours = head.logits(ours.slice(s![rows.clone(), ..]), scratch)?;
            tally.add(theirs.view(), ours.view(), &ids[rows.start + 1..]);
        }
        Ok(tally)
    })?;
    judge(&tallies, true)
}

/// Runs every sequence on one thread of the pool; results in order.
pub(crate) fn each<T: Send>(
    segments: &[Vec<u32>],
    progress: &Progress<'_>,
    run: impl Fn(usize, &[u32], &mut Scratch) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    let done = AtomicUsize::new(0);
    segments
        .par_iter()
        .enumerate()
        .map_init(
            || Scratch::new(Par::Seq),
            |scratch, (i, ids)| {
                let result = run(i, ids, scratch);
                progress(done.fetch_add(1, Ordering::Relaxed) + 1, segments.len());
                result
            },
        )
        .collect()
}

/// Logits held at a time, per thread.
const LOGITS: usize = 1 << 23;

/// Rows whose next token is none of the first `read`, in chunks whose logits are bounded.
fn chunks(
    ids: &[u32],
    read: usize,
    width: usize,
) -> impl Iterator<Item = std::ops::Range<usize>> + use<> {
    let rows = ids.len().saturating_sub(1);
    let step = (LOGITS / width.max(1)).max(1);
    (read.saturating_sub(1)..rows).step_by(step).map(move |start| start..(start + step).min(rows))
}

/// Sums over the predictions of one sequence.
#[derive(Debug, Default)]
struct Tally {
    nll: f64,
    reference_nll: f64,
    kld: Vec<f64>,
    agreed: usize,
    tokens: usize,
}

impl Tally {
    fn add(&mut self, theirs: ArrayView2<'_, f32>, ours: ArrayView2<'_, f32>, next: &[u32]) {
        for ((theirs, ours), next) in theirs.rows().into_iter().zip(ours.rows()).zip(next) {
            let theirs = theirs.to_slice().expect("rows of a new matrix");
            let ours = ours.to_slice().expect("rows of a new matrix");
            let Divergence { kld, log_sums: [p, q] } = divergence(theirs, ours);
            self.reference_nll += p - f64::from(theirs[*next as usize]);
            self.nll += q - f64::from(ours[*next as usize]);
            self.kld.push(kld);
            self.agreed += usize::from(math::argmax(theirs) == math::argmax(ours));
            self.tokens += 1;
        }
    }
}

struct Divergence {
    kld: f64,
    log_sums: [f64; 2],
}

/// KL divergence of softmax(b) from softmax(a), and both normalisers.
fn divergence(a: &[f32], b: &[f32]) -> Divergence {
    const LANES: usize = 8;
    let (top_a, top_b) = (math::max(a), math::max(b));
    // Sums of exp(a), exp(b) and exp(a) (a - b).
    let mut sums = [[0.0f64; LANES]; 3];
    let mut add = |lane: usize, a: f32, b: f32| {
        let p = f64::from(math::exp(a - top_a));
        sums[0][lane] += p;
        sums[1][lane] += f64::from(math::exp(b - top_b));
        sums[2][lane] += p * (f64::from(a) - f64::from(b));
    };
    let ((a_blocks, a_rest), (b_blocks, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    for (a, b) in a_blocks.iter().zip(b_blocks) {
        for i in 0..LANES {
            add(i, a[i], b[i]);
        }
    }
    for (i, (a, b)) in a_rest.iter().zip(b_rest).enumerate() {
        add(i, *a, *b);
    }
    let [sum_a, sum_b, cross] = sums.map(|lanes| lanes.iter().sum::<f64>());
    let log_sums = [f64::from(top_a) + sum_a.ln(), f64::from(top_b) + sum_b.ln()];
    Divergence { kld: cross / sum_a - (log_sums[0] - log_sums[1]), log_sums }
}

fn judge(tallies: &[Tally], compared: bool) -> Result<Judgement> {
    let tokens: usize = tallies.iter().map(|t| t.tokens).sum();
    if tokens == 0 {
        return Err(Error::insufficient("no token to predict: every sequence is shorter than 2"));
    }
    let mean = |sum: f64| sum / tokens as f64;
    let nll = mean(tallies.iter().map(|t| t.nll).sum());
    if !nll.is_finite() {
        return Err(Error::numerical(format!("the mean log-likelihood is {nll}")));
    }
    let mut kld: Vec<f64> = tallies.iter().flat_map(|t| t.kld.iter().copied()).collect();
    let kld_mean = mean(kld.iter().sum());
    kld.sort_by(f64::total_cmp);
    let when = |value: f64| compared.then_some(value);
    Ok(Judgement {
        perplexity: nll.exp(),
        reference_perplexity: when(mean(tallies.iter().map(|t| t.reference_nll).sum()).exp()),
        kld_mean: when(kld_mean),
        kld_p99: compared.then(|| quantile(&kld, 0.99)),
        top1_agreement: when(mean(tallies.iter().map(|t| t.agreed).sum::<usize>() as f64)),
        tokens,
    })
}

/// Quantile of sorted values, linear between the two nearest.
fn quantile(sorted: &[f64], q: f64) -> f64 {
    let at = q * (sorted.len() - 1) as f64;
    let (low, high) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
    low + (high - low) * at.fract()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn divergence_is_the_definition() {
        let a: Vec<f32> = (0..37).map(|i| (i * 13 % 29) as f32 * 0.3).collect();
        let b: Vec<f32> = (0..37).map(|i| (i * 7 % 31) as f32 * 0.3 - 50.0).collect();
        let log_p = |x: &[f32]| -> Vec<f64> {
            let sum: f64 = x.iter().map(|v| f64::from(*v).exp()).sum();
            x.iter().map(|v| f64::from(*v) - sum.ln()).collect()
        };
        let (p, q) = (log_p(&a), log_p(&b));
        let exact: f64 = p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum();
        assert!((divergence(&a, &b).kld - exact).abs() < 1e-6 * exact);
        assert_eq!(divergence(&a, &a).kld, 0.0);
    }

    #[test]
    fn quantiles_are_interpolated() {
        let values: Vec<f64> = (0..101).map(f64::from).collect();
        assert_eq!(quantile(&values, 0.99), 99.0);
        assert_eq!(quantile(&[1.0, 2.0], 0.5), 1.5);
        assert_eq!(quantile(&[3.0], 0.99), 3.0);
    }
}
