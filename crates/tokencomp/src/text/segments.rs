//! Compressed segments that are used again: Berton et al., *CompLLM: Compression for Long Context Q&A*, 2025.

use std::collections::HashMap;
use std::fmt::Debug;
use std::ops::Range;

use tensorpress_tensor::{Error, Result};

/// Anything that makes a segment of tokens shorter by itself: soft tokens, or a text.
pub trait SegmentCompressor: Debug {
    /// What a segment becomes; cheap to copy, where it can be (`Arc`).
    type Output: Clone + Debug;

    /// Compresses one segment, without a look at any other.
    ///
    /// # Errors
    /// Whatever the compressor cannot do.
    fn compress(&self, segment: &[u32]) -> Result<Self::Output>;

    /// Tokens that an output takes.
    fn tokens(&self, output: &Self::Output) -> usize;
}

/// What a context cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
#[non_exhaustive]
pub struct SegmentUse {
    /// Segments of the context.
    pub segments: usize,
    /// Those that were there already.
    pub hits: usize,
    /// Tokens of the context.
    pub tokens_before: usize,
    /// Tokens of all outputs.
    pub tokens_after: usize,
    /// Tokens that the compressor had to read: those of segments that were not there.
    pub tokens_read: usize,
}

/// Cuts contexts into segments of equal length, compresses each by itself, and remembers what each became, by its content.
///
/// - A context costs as many runs of the compressor as it has segments that were never seen: linear in its length, and
///   nothing where it was seen before, alone or within another context at a multiple of the segments' length.
/// - Segments are the same only if all of their tokens are: the tokens are the key, not a hash of them.
/// - At most `capacity` outputs are remembered; the one that was used longest ago goes first.
#[derive(Debug)]
pub struct SegmentCache<C: SegmentCompressor> {
    compressor: C,
    length: usize,
    capacity: usize,
    /// Outputs, and when they were last used.
    known: HashMap<Vec<u32>, (C::Output, u64)>,
    clock: u64,
    total: SegmentUse,
}

impl<C: SegmentCompressor> SegmentCache<C> {
    /// Segments of so many tokens (20 in the paper), at most `capacity` of them remembered.
    ///
    /// # Errors
    /// `InvalidArgument` for a length of 0.
    pub fn new(compressor: C, length: usize, capacity: usize) -> Result<Self> {
        if length == 0 {
            return Err(Error::invalid("segments of 0 tokens; at least 1 is needed"));
        }
        let (known, total) = (HashMap::new(), SegmentUse::default());
        Ok(Self { compressor, length, capacity, known, clock: 0, total })
    }

    /// The outputs of a context's segments in their order, to be joined before any question; and what this context cost.
    ///
    /// # Errors
    /// Those of the compressor; what was compressed before is remembered.
    pub fn compress(&mut self, context: &[u32]) -> Result<(Vec<C::Output>, SegmentUse)> {
        let mut outputs = Vec::with_capacity(context.len().div_ceil(self.length));
        let mut cost = SegmentUse::default();
        for segment in context.chunks(self.length) {
            self.clock += 1;
            let output = match self.known.get_mut(segment) {
                Some((output, used)) => {
                    *used = self.clock;
                    cost.hits += 1;
                    output.clone()
                }
                None => {
                    let output = self.compressor.compress(segment)?;
                    cost.tokens_read += segment.len();
                    self.remember(segment, output.clone());
                    output
                }
            };
            cost.segments += 1;
            cost.tokens_before += segment.len();
            cost.tokens_after += self.compressor.tokens(&output);
            outputs.push(output);
        }
        let total = &mut self.total;
        total.segments += cost.segments;
        total.hits += cost.hits;
        total.tokens_before += cost.tokens_before;
        total.tokens_after += cost.tokens_after;
        total.tokens_read += cost.tokens_read;
        Ok((outputs, cost))
    }

    /// The sum over all contexts that were compressed without an error.
    #[must_use]
    pub fn total(&self) -> SegmentUse {
        self.total
    }

    /// Outputs that are remembered.
    #[must_use]
    pub fn remembered(&self) -> usize {
        self.known.len()
    }

    /// The segments of a context of so many tokens.
    #[must_use]
    pub fn segments(&self, tokens: usize) -> Vec<Range<usize>> {
        let end = |at: usize| (at + self.length).min(tokens);
        (0..tokens).step_by(self.length).map(|at| at..end(at)).collect()
    }

    fn remember(&mut self, segment: &[u32], output: C::Output) {
        if self.capacity == 0 {
            return;
        }
        if self.known.len() >= self.capacity {
            let oldest = self.known.iter().min_by_key(|(_, (_, used))| *used);
            if let Some(oldest) = oldest.map(|(segment, _)| segment.clone()) {
                self.known.remove(&oldest);
            }
        }
        self.known.insert(segment.to_vec(), (output, self.clock));
    }
}
