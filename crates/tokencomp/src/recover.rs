//! Maps from other descriptions, and ways back.

use ndarray::{Array, Array2, ArrayView, Axis, Dimension, RemoveAxis};
use tensorpress_tensor::{Error, Result};

use crate::map::TokenMap;

impl TokenMap {
    /// Runs of these lengths, one target each: `[r; n]` for groups of r consecutive tokens, the last of what is left.
    ///
    /// # Errors
    /// `InvalidArgument` for a length of 0.
    pub fn runs(lengths: &[usize]) -> Result<Self> {
        let of = lengths.iter().enumerate();
        let assignment: Vec<_> =
            of.flat_map(|(target, length)| std::iter::repeat_n(Some(target), *length)).collect();
        Self::new(&assignment, lengths.len())
    }

    /// Each token goes where the one it names goes; one that names itself is a target. Targets are in the order in which
    /// the sequence meets their first tokens.
    ///
    /// # Errors
    /// `InvalidArgument` for a token out of range, and for tokens that name one another in a circle.
    pub fn from_roots(into: &[usize]) -> Result<Self> {
        let mut root: Vec<Option<usize>> = vec![None; into.len()];
        let mut path = Vec::new();
        for token in 0..into.len() {
            let mut at = token;
            let found = loop {
                match (root.get(at), into.get(at)) {
                    (Some(Some(found)), _) => break *found,
                    (_, Some(next)) if *next == at => break at,
                    (_, Some(next)) if path.len() <= into.len() => {
                        path.push(at);
                        at = *next;
                    }
                    (_, Some(_)) => return Err(Error::invalid(format!("token {token}: a circle"))),
                    (_, None) => {
                        let n = into.len();
                        return Err(Error::invalid(format!("token {at} of {n}")));
                    }
                }
            };
            root[token] = Some(found);
            path.drain(..).for_each(|passed| root[passed] = Some(found));
        }
        let root: Vec<usize> = root.into_iter().flatten().collect();
        let mut number = vec![None; into.len()];
        let mut targets = 0;
        for &root in &root {
            number[root].get_or_insert_with(|| {
                targets += 1;
                targets - 1
            });
        }
        let assignment: Vec<_> = root.iter().map(|root| number[*root]).collect();
        Self::new(&assignment, targets)
    }

    /// The sources of each target, rising; the map must have `sources` of them.
    ///
    /// # Errors
    /// `ShapeMismatch` if it has not.
    pub fn groups(&self, sources: usize) -> Result<Vec<Vec<usize>>> {
        if sources != self.sources() {
            let message = format!("{sources} tokens, the map has {} sources", self.sources());
            return Err(Error::shape(message));
        }
        let mut groups = vec![Vec::new(); self.targets()];
        for source in 0..sources {
            if let Some(target) = self.target(source) {
                groups[target].push(source);
            }
        }
        Ok(groups)
    }

    /// The source matrix S `[targets, sources]`: 1 where a target holds a source. Unmerging is z -> Sᵀ z (MergeVQ).
    #[must_use]
    pub fn source_matrix(&self) -> Array2<f32> {
        let mut matrix = Array2::zeros((self.targets(), self.sources()));
        for source in 0..self.sources() {
            if let Some(target) = self.target(source) {
                matrix[[target, source]] = 1.0;
            }
        }
        matrix
    }

    /// [`TokenMap::unmerge`], but tokens that were dropped keep their own values, those of `x`: they pass by what was done to
    /// the others.
    ///
    /// # Errors
    /// `ShapeMismatch` unless z has an entry a target and x one a source, alike but for the first axis.
    pub fn unmerge_onto<D: Dimension + RemoveAxis>(
        &self,
        z: ArrayView<'_, f32, D>,
        x: ArrayView<'_, f32, D>,
    ) -> Result<Array<f32, D>> {
        let mut out = self.unmerge(z)?;
        if out.raw_dim() != x.raw_dim() {
            return Err(Error::shape(format!("{:?} onto {:?}", out.shape(), x.shape())));
        }
        for source in (0..self.sources()).filter(|source| self.target(*source).is_none()) {
            out.index_axis_mut(Axis(0), source).assign(&x.index_axis(Axis(0), source));
        }
        Ok(out)
    }
}
