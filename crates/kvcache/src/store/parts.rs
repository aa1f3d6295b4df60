//! Attention in parts, put together in the end: nothing of the size of queries x tokens is held.
//!
//! A part is some queries over a range of tokens. Its weights are relative to the largest score in it, and parts are
//! brought to the same scale when they are added (online softmax, Milakov and Gimelshein, 2018; FlashAttention, Dao et al.,
//! 2022; over ranges side by side, Flash-Decoding, Dao et al., 2023). Ranges are the same whatever the number of threads,
//! and so are the results.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use ndarray::{Array2, ArrayView2, ArrayView3, ArrayViewMut2, ArrayViewMut3, s};
use tensorpress_tensor::kernels::{Isa, attention};
use tensorpress_tensor::linalg::Par;
use tensorpress_tensor::{Scratch, linalg, ndarray};

use super::Layer;
use super::attend::{Ask, Block, QUERIES, SHARED};
use super::head::Tier;

/// Tokens of a part where products run over the stored form: whole pages, and scores that stay in the first caches.
const RANGE: usize = 4096;

/// Tokens that are decoded at a time where they do not.
const TILE: usize = 512;

/// For each query the largest score so far, the sum of the weights relative to it, and that of the weighted values.
struct Sums {
    most: Vec<f32>,
    total: Vec<f32>,
    mixed: Array2<f32>,
}

impl Sums {
    fn new(queries: usize, width: usize) -> Self {
        let (most, total) = (vec![f32::NEG_INFINITY; queries], vec![0.0; queries]);
        Self { most, total, mixed: Array2::zeros((queries, width)) }
    }

    fn add(&mut self, other: &Self) {
        for i in 0..self.most.len() {
            let most = self.most[i].max(other.most[i]);
            if other.most[i] == f32::NEG_INFINITY {
                continue;
            }
            let (mine, theirs) = ((self.most[i] - most).exp(), (other.most[i] - most).exp());
            (self.most[i], self.total[i]) = (most, mine * self.total[i] + theirs * other.total[i]);
            self.mixed.row_mut(i).zip_mut_with(&other.mixed.row(i), |sum, v| {
                *sum = mine * *sum + theirs * v;
            });
        }
    }

    /// Divides by the sums of weights, of which a sink takes its share.
    fn finish(mut self, block: &Block<'_>) -> Array2<f32> {
        let sinks = &block.ask.reading.scoring.sinks;
        for (i, mut row) in self.mixed.rows_mut().into_iter().enumerate() {
            let sink = sinks.get(block.place(i).0).copied().unwrap_or(f32::NEG_INFINITY);
            if self.most[i] == f32::NEG_INFINITY {
                continue;
            }
            let most = self.most[i].max(sink);
            let mine = (self.most[i] - most).exp();
            let factor = mine / (mine * self.total[i] + (sink - most).exp());
            row.mapv_inplace(|v| v * factor);
        }
        self.mixed
    }
}

/// The queries of a block over a range of a tier.
struct Part<'a, 'b> {
    block: &'a Block<'b>,
    q: &'a Array2<f32>,
    tier: &'a Tier,
    range: Range<usize>,
    sums: Sums,
}

impl Part<'_, '_> {
    /// Over the stored form, with room for the scores of all of the tier's tokens.
    fn run(&mut self, scores: &mut Vec<f32>) {
        let (len, n) = (self.tier.len(), self.block.queries());
        scores.resize(n * len, 0.0);
        self.tier.keys.dots(self.q.view(), self.range.clone(), scores);
        for i in 0..n {
            let row = &mut scores[i * len..][self.range.clone()];
            (self.sums.most[i], self.sums.total[i]) =
                self.block.soften(i, self.tier, &self.range, row);
        }
        self.tier.mixed().mix(scores, self.range.clone(), self.sums.mixed.view_mut());
    }
}

impl Block<'_> {
    /// Products of query `i` with the tokens of a range become weights relative to the largest score, which is given with
    /// their sum; what the query does not see weighs 0.
    fn soften(&self, i: usize, tier: &Tier, range: &Range<usize>, row: &mut [f32]) -> (f32, f32) {
        let sight = self.ask.sight;
        let position = sight.causal.first + self.place(i).1;
        let span = tier.span(sight, position, position);
        let seen = span.start.max(range.start)..span.end.min(range.end);
        if seen.is_empty() {
            row.fill(0.0);
            return (f32::NEG_INFINITY, 0.0);
        }
        let places = seen.start - range.start..seen.end - range.start;
        row[..places.start].fill(0.0);
        row[places.end..].fill(0.0);
        let row = &mut row[places];
        let scale = self.score(i, tier, seen.clone(), row);
        if tier.scattered {
            let oldest = sight.oldest(position);
            for (score, p) in row.iter_mut().zip(seen.map(|slot| tier.position(slot))) {
                if !(oldest..=position).contains(&p) {
                    *score = f32::NEG_INFINITY;
                }
            }
        }
        let (most, total) = attention::exponentials(Isa::detect(), row, scale);
        (scale * most, total)
    }

    fn gather(&self, queries: ArrayView3<'_, f32>) -> Array2<f32> {
        let mut q = Array2::zeros((self.queries(), self.ask.reading.shape.head_dim));
        for (i, mut to) in q.rows_mut().into_iter().enumerate() {
            let (head, token) = self.place(i);
            to.assign(&queries.slice(s![token, head, ..]));
        }
        q
    }

    /// Slots of a tier that some of these tokens' queries may see.
    fn span_of(&self, tier: &Tier, tokens: &Range<usize>) -> Range<usize> {
        let sight = self.ask.sight;
        let first = sight.causal.first;
        tier.span(sight, first + tokens.start, first + tokens.end - 1)
    }
}

/// The pieces of whole multiples of `size` that overlap a range.
fn pieces(range: Range<usize>, size: usize) -> impl Iterator<Item = Range<usize>> {
    let end = if range.is_empty() { 0 } else { range.end.div_ceil(size) };
    (range.start / size..end).map(move |n| range.start.max(n * size)..range.end.min((n + 1) * size))
}

impl Layer {
    /// Few queries over the stored form: heads and ranges of tokens are shared among threads.
    pub(super) fn attend_stored<'a>(
        &'a self,
        ask: Ask<'a>,
        queries: ArrayView3<'_, f32>,
        out: &mut ArrayViewMut3<'_, f32>,
        scratch: &mut Scratch,
    ) {
        let tokens = queries.dim().0;
        let heads = 0..self.heads.len();
        let blocks: Vec<_> =
            heads.map(|head| Block::new(self, head, true, ask, 0..tokens)).collect();
        let q: Vec<_> = blocks.iter().map(|block| block.gather(queries)).collect();
        let mut parts = Vec::new();
        for (block, q) in blocks.iter().zip(&q) {
            for &tier in &block.tiers {
                for range in pieces(block.span_of(tier, &block.tokens), RANGE) {
                    let sums = Sums::new(block.queries(), block.width);
                    parts.push(Part { block, q, tier, range, sums });
                }
            }
        }
        let work = tokens * ask.reading.shape.heads * self.len * self.shape.head_dim;
        let par = if work >= SHARED { scratch.par() } else { Par::Seq };
        let buffers: Vec<_> = (0..par.threads()).map(|_| scratch.take(0)).collect();
        let buffers = Mutex::new(buffers);
        let lock = || buffers.lock().unwrap_or_else(PoisonError::into_inner);
        par.for_each(parts.iter_mut(), |part| {
            let mut buffer = lock().pop().unwrap_or_default();
            part.run(&mut buffer);
            lock().push(buffer);
        });
        let mut parts = parts.into_iter().peekable();
        for (head, block) in blocks.iter().enumerate() {
            let mut sums = Sums::new(block.queries(), block.width);
            while let Some(part) = parts.next_if(|part| part.block.head == head) {
                sums.add(&part.sums);
            }
            block.put(sums.finish(block).as_slice().expect("standard layout"), out);
        }
        let buffers = buffers.into_inner().unwrap_or_else(PoisonError::into_inner);
        buffers.into_iter().for_each(|buffer| scratch.put(buffer));
    }

    /// Many queries: tokens are decoded a tile at a time, for all blocks of a head's queries that see some of them.
    pub(super) fn attend_decoded<'a>(
        &'a self,
        ask: Ask<'a>,
        queries: ArrayView3<'_, f32>,
        out: &mut ArrayViewMut3<'_, f32>,
        scratch: &mut Scratch,
    ) {
        let (tokens, heads) = (queries.dim().0, self.heads.len());
        let step = (QUERIES / ask.reading.shape.group()).max(1);
        let threads = scratch.par().threads();
        // Whole blocks of a head for each: as many as keep the threads busy, since each decodes for itself.
        let each = tokens.div_ceil(step).div_ceil(threads.div_ceil(heads)).max(1) * step;
        let mut runs: Vec<Run<'a>> = (0..heads)
            .flat_map(|head| (0..tokens).step_by(each).map(move |start| (head, start)))
            .map(|(head, start)| {
                let end = (start + each).min(tokens);
                let block = |at| Block::new(self, head, true, ask, at..(at + step).min(end));
                let blocks = (start..end).step_by(step).map(block).collect();
                Run { layer: self, blocks, done: Vec::new() }
            })
            .collect();
        scratch.par().for_each(runs.iter_mut(), |run| run.run(queries));
        for run in runs {
            for (block, mixed) in run.blocks.iter().zip(run.done) {
                block.put(mixed.as_slice().expect("standard layout"), out);
            }
        }
    }

    /// Keys, and values where they are not in those, of a range of a tier.
    fn tile(&self, tier: &Tier, range: Range<usize>) -> (Array2<f32>, Option<Array2<f32>>) {
        let mut keys = Array2::zeros((range.len(), tier.keys.dim()));
        tier.keys.decode(range.clone(), keys.view_mut());
        if let Some(rope) = &self.rope {
            for (slot, mut row) in range.clone().zip(keys.rows_mut()) {
                rope.rotate(row.as_slice_mut().expect("contiguous"), tier.position(slot));
            }
        }
        let values = tier.values.as_ref().map(|values| {
            let mut decoded = Array2::zeros((range.len(), values.dim()));
            values.decode(range, decoded.view_mut());
            decoded
        });
        (keys, values)
    }
}

/// Blocks of one head's queries, in order.
struct Run<'a> {
    layer: &'a Layer,
    blocks: Vec<Block<'a>>,
    done: Vec<Array2<f32>>,
}

impl Run<'_> {
    fn run(&mut self, queries: ArrayView3<'_, f32>) {
        let (Some(first), Some(last)) = (self.blocks.first(), self.blocks.last()) else { return };
        let all = first.tokens.start..last.tokens.end;
        let q: Vec<_> = self.blocks.iter().map(|block| block.gather(queries)).collect();
        let new = |block: &Block<'_>| Sums::new(block.queries(), block.width);
        let mut sums: Vec<_> = self.blocks.iter().map(new).collect();
        let mut part = new(first);
        let mut scores = Vec::new();
        for &tier in &first.tiers {
            for range in pieces(first.span_of(tier, &all), TILE) {
                let (keys, values) = self.layer.tile(tier, range.clone());
                let values = values.as_ref().unwrap_or(&keys).slice(s![.., ..first.width]);
                for ((block, q), sums) in self.blocks.iter().zip(&q).zip(&mut sums) {
                    let seen = block.span_of(tier, &block.tokens);
                    if seen.start.max(range.start) >= seen.end.min(range.end) {
                        continue;
                    }
                    let (n, len) = (block.queries(), range.len());
                    scores.resize(n * len, 0.0);
                    let to = ArrayViewMut2::from_shape((n, len), &mut scores).expect("n x len");
                    linalg::matmul_nt(q.view(), keys.view(), to, false, Par::Seq);
                    for (i, row) in scores.chunks_exact_mut(len).enumerate() {
                        (part.most[i], part.total[i]) = block.soften(i, tier, &range, row);
                    }
                    let weights = ArrayView2::from_shape((n, len), &scores).expect("n x len");
                    let mixed = part.mixed.slice_mut(s![..n, ..]);
                    linalg::matmul(weights, values, mixed, false, Par::Seq);
                    sums.add(&part);
                }
            }
        }
        self.done = self.blocks.iter().zip(sums).map(|(block, sums)| sums.finish(block)).collect();
    }
}
