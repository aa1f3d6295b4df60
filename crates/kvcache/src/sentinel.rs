use std::ops::Range;

use ndarray::Array2;
use tensorpress_tensor::{Error, Result, ndarray};

use crate::store::{HeadSlots, KvStore};

/// Spans of tokens that two sentinels stand for (Ren et al.: *Context Compression for Auto-regressive Transformers with
/// Sentinel Tokens*, 2023): between an opening and a closing sentinel lies what later tokens see no more. The closing
/// sentinel still sees its span, so its keys and values can hold what the span says; those of the span are freed. The
/// sentinels' embeddings are the model's: the paper trains them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SentinelSpans {
    /// Positions of both sentinels, ascending.
    closed: Vec<(usize, usize)>,
    open: Option<usize>,
}

impl SentinelSpans {
    /// No spans.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// An opening sentinel stands at `position`.
    ///
    /// # Errors
    /// `InvalidArgument` within a span, or before the end of the last.
    pub fn open(&mut self, position: usize) -> Result<()> {
        let after = self.closed.last().map_or(0, |(_, end)| end + 1);
        if let Some(open) = self.open {
            return Err(Error::invalid(format!("position = {position}: a span is open at {open}")));
        }
        if position < after {
            return Err(Error::invalid(format!("position = {position}: at least {after}")));
        }
        self.open = Some(position);
        Ok(())
    }

    /// The closing sentinel stands at `position`.
    ///
    /// # Errors
    /// `InvalidArgument` where none is open, or it opened there or later.
    pub fn close(&mut self, position: usize) -> Result<()> {
        match self.open {
            Some(open) if open < position => {
                self.closed.push((open, position));
                self.open = None;
                Ok(())
            }
            Some(open) => Err(Error::invalid(format!("position = {position}: above {open}"))),
            None => Err(Error::invalid(format!("position = {position}: no span is open"))),
        }
    }

    /// Whether the token at `query` sees that at `key`.
    #[must_use]
    pub fn sees(&self, query: usize, key: usize) -> bool {
        key <= query && self.covering(key).is_none_or(|(_, end)| query <= end)
    }

    /// The closed span whose inside a position is.
    fn covering(&self, position: usize) -> Option<(usize, usize)> {
        let after = self.closed.partition_point(|(start, _)| *start < position);
        let span = self.closed[..after].last().copied();
        span.filter(|(_, end)| position < *end)
    }

    /// What `queries` see of the first `keys` tokens: 0, or minus infinity, to add to scores `[queries, keys]`.
    #[must_use]
    pub fn mask(&self, queries: Range<usize>, keys: usize) -> Array2<f32> {
        let first = queries.start;
        Array2::from_shape_fn((queries.len(), keys), |(row, key)| {
            if self.sees(first + row, key) { 0.0 } else { f32::NEG_INFINITY }
        })
    }

    /// The slots of a cache that tokens to come still see: all but those inside closed spans. Keep them
    /// ([`crate::Cache::retain`]) once the closing sentinel was attended for.
    #[must_use]
    pub fn slots(&self, store: &dyn KvStore) -> HeadSlots {
        let of = |head| {
            let positions = store.positions(head);
            (0..positions.len()).filter(|s| self.covering(positions[*s]).is_none()).collect()
        };
        HeadSlots((0..store.shape().kv_heads).map(of).collect())
    }

    /// Tokens that spans have freed.
    #[must_use]
    pub fn freed(&self) -> usize {
        self.closed.iter().map(|(start, end)| end - start - 1).sum()
    }

    /// Goes back to the first `len` tokens: spans that were closed later are open again. What a cache has freed does not
    /// come back by itself.
    pub fn truncate(&mut self, len: usize) {
        while let Some((start, _)) = self.closed.last().copied().filter(|(_, end)| *end >= len) {
            self.closed.pop();
            self.open = Some(start);
        }
        self.open = self.open.filter(|open| *open < len);
    }
}
