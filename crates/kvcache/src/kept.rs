//! Some of a prompt's tokens: the others have left the model before they came to this layer.

use ndarray::{ArrayView3, ArrayViewMut3, Axis, Slice};
use tensorpress_tensor::{Error, Result, Scratch, ndarray};

use crate::cache::Cache;
use crate::store::{Causal, Watch};

/// The ranges of rows whose positions follow each other.
fn runs(positions: &[usize]) -> impl Iterator<Item = std::ops::Range<usize>> {
    let mut start = 0;
    positions.chunk_by(|a, b| a + 1 == *b).map(move |run| {
        start += run.len();
        start - run.len()..start
    })
}

impl Cache {
    /// Takes keys and values of some of the next tokens, where they stand and for how many: see
    /// [`Layer::append_at`](crate::Layer::append_at).
    ///
    /// # Errors
    /// As there; `Unsupported` where eviction is put off.
    pub fn append_at(
        &mut self,
        keys: ArrayView3<'_, f32>,
        values: ArrayView3<'_, f32>,
        positions: &[usize],
        weights: &[f32],
    ) -> Result<()> {
        if self.drafts.is_some() {
            return Err(Error::unsupported("tokens that left before, where eviction is put off"));
        }
        self.layer.append_at(keys, values, positions, weights)
    }

    /// [`Cache::attend`] for the queries of the tokens that [`Cache::append_at`] took last, at their positions; whoever
    /// watches sees rows of `queries`. The policy looks once, behind all of them.
    ///
    /// # Errors
    /// As there; `InvalidArgument` unless there is an ascending position a query, the last that of the last token.
    pub fn attend_at(
        &mut self,
        queries: ArrayView3<'_, f32>,
        positions: &[usize],
        window: Option<usize>,
        mut out: ArrayViewMut3<'_, f32>,
        scratch: &mut Scratch,
        mut watch: Option<&mut Watch<'_>>,
    ) -> Result<()> {
        let tokens = queries.dim().0;
        let ascend = positions.windows(2).all(|pair| pair[0] < pair[1]);
        let ends = positions.last().is_none_or(|last| last + 1 == self.len());
        if positions.len() != tokens || out.dim().0 != tokens || !ascend || !ends {
            let (given, held) = (positions.len(), self.len());
            return Err(Error::invalid(format!(
                "{given} positions of {tokens} queries: one each, ascending to the last of {held} tokens"
            )));
        }
        for rows in runs(positions) {
            let causal = Causal { first: positions[rows.start], window };
            let (queries, out) = (
                queries.slice_axis(Axis(0), Slice::from(rows.clone())),
                out.slice_axis_mut(Axis(0), Slice::from(rows.clone())),
            );
            let mut shifted;
            let seen: Option<&mut Watch<'_>> = match &mut watch {
                None => None,
                Some(watch) => {
                    shifted = |head: usize, row: usize, weights: &[f32]| {
                        watch(head, rows.start + row, weights);
                    };
                    Some(&mut shifted)
                }
            };
            self.look(queries, causal, None, out, scratch, seen)?;
        }
        self.plan(tokens == 1)
    }
}
