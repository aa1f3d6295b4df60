//! Some of a prompt's tokens, in layers that know each other.

use ndarray::{ArrayView3, ArrayViewMut3};
use tensorpress_tensor::{Error, Result, Scratch, ndarray};

use super::Caches;
use crate::store::Watch;

impl Caches {
    /// [`Cache::append_at`](crate::Cache::append_at) of a layer.
    ///
    /// # Errors
    /// As there; `InvalidArgument` for a layer that is not there; `Unsupported` where layers share pages or read others'
    /// keys: they would not have the same tokens.
    pub fn append_at(
        &mut self,
        layer: usize,
        keys: ArrayView3<'_, f32>,
        values: ArrayView3<'_, f32>,
        positions: &[usize],
        weights: &[f32],
    ) -> Result<()> {
        self.check(layer)?;
        if self.joint.is_some() || self.owners.iter().enumerate().any(|(at, owner)| at != *owner) {
            return Err(Error::unsupported(
                "tokens that left before, where layers share pages or read others' keys",
            ));
        }
        self.layers[layer].append_at(keys, values, positions, weights)?;
        self.seen[layer] = self.layers[layer].len();
        Ok(())
    }

    /// [`Cache::attend_at`](crate::Cache::attend_at) of a layer.
    ///
    /// # Errors
    /// As there; `InvalidArgument` for a layer that is not there.
    pub fn attend_at(
        &mut self,
        layer: usize,
        queries: ArrayView3<'_, f32>,
        positions: &[usize],
        window: Option<usize>,
        out: ArrayViewMut3<'_, f32>,
        scratch: &mut Scratch,
        watch: Option<&mut Watch<'_>>,
    ) -> Result<()> {
        self.check(layer)?;
        self.layers[layer].attend_at(queries, positions, window, out, scratch, watch)
    }
}
