use ndarray::{Array, ArrayView, Axis, Dimension, RemoveAxis};
use tensorpress_tensor::{Error, Result};

/// Marks a source token that goes nowhere.
const DROPPED: u32 = u32::MAX;

/// Where each token of a sequence goes: one plan, applied to states, positions, keys and values alike.
///
/// A map takes `sources` tokens to `targets` tokens. Every target holds at least one source; a source is in one target
/// or dropped. What holds for every map:
/// - `merge(unmerge(z)) == z`, to the bit (where the merged values are finite);
/// - `a.then(&b)` merges as `b` after `a` does, with the sizes `a` left;
/// - counts, and what was dropped, sum to the source count. A map that prunes is a map with dropped tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenMap {
    assignment: Vec<u32>,
    counts: Vec<u32>,
}

impl TokenMap {
    /// A map of `assignment.len()` sources to `targets` tokens; `None` drops a source.
    ///
    /// # Errors
    /// `InvalidArgument` for a target out of range, a target without a source, or 2³² - 1 tokens or more.
    pub fn new(assignment: &[Option<usize>], targets: usize) -> Result<Self> {
        if assignment.len() >= DROPPED as usize {
            return Err(Error::invalid(format!(
                "{} tokens, below 2^32 - 1 are allowed",
                assignment.len()
            )));
        }
        let mut counts = vec![0u32; targets.min(assignment.len())];
        for (source, target) in assignment.iter().enumerate() {
            let Some(target) = *target else { continue };
            let Some(count) = counts.get_mut(target).filter(|_| target < targets) else {
                let message = format!(
                    "token {source} goes to {target}, allowed are 0 to {targets}, exclusive"
                );
                return Err(Error::invalid(message));
            };
            *count += 1;
        }
        let empty = counts
            .iter()
            .position(|c| *c == 0)
            .or_else(|| (counts.len() < targets).then_some(counts.len()));
        if let Some(empty) = empty {
            return Err(Error::invalid(format!("target {empty} of {targets} has no source token")));
        }
        let assignment = assignment.iter().map(|t| t.map_or(DROPPED, |t| t as u32)).collect();
        Ok(Self { assignment, counts })
    }

    /// Every token stays what it is.
    ///
    /// # Panics
    /// For 2³² - 1 tokens or more.
    #[must_use]
    pub fn identity(tokens: usize) -> Self {
        let all: Vec<_> = (0..tokens).map(Some).collect();
        Self::new(&all, tokens).expect("every target has its source")
    }

    /// Keeps these tokens of `tokens`, in the order of the sequence, and drops the others.
    ///
    /// # Errors
    /// `InvalidArgument` for a token that is out of range or named twice.
    pub fn keep(tokens: usize, kept: &[usize]) -> Result<Self> {
        let mut stays = vec![false; tokens];
        for &token in kept {
            match stays.get_mut(token) {
                None => return Err(Error::invalid(format!("token {token} of {tokens}"))),
                Some(true) => return Err(Error::invalid(format!("token {token} is kept twice"))),
                Some(stays) => *stays = true,
            }
        }
        let mut next = 0..;
        let assignment: Vec<_> =
            stays.iter().map(|stays| if *stays { next.next() } else { None }).collect();
        Self::new(&assignment, kept.len())
    }

    /// Tokens before.
    #[must_use]
    pub fn sources(&self) -> usize {
        self.assignment.len()
    }

    /// Tokens after.
    #[must_use]
    pub fn targets(&self) -> usize {
        self.counts.len()
    }

    /// Where a token goes; `None` if it is dropped.
    ///
    /// # Panics
    /// If there is no such token.
    #[must_use]
    pub fn target(&self, source: usize) -> Option<usize> {
        let target = self.assignment[source];
        (target != DROPPED).then_some(target as usize)
    }

    /// Source tokens of each target.
    #[must_use]
    pub fn counts(&self) -> &[u32] {
        &self.counts
    }

    /// Source tokens that go nowhere: `sources` less the sum of `counts`.
    #[must_use]
    pub fn dropped(&self) -> usize {
        self.assignment.iter().filter(|t| **t == DROPPED).count()
    }

    /// First source token of each target.
    #[must_use]
    pub fn firsts(&self) -> Vec<usize> {
        let mut firsts = vec![0; self.targets()];
        for (source, target) in self.assignment.iter().enumerate().rev() {
            if *target != DROPPED {
                firsts[*target as usize] = source;
            }
        }
        firsts
    }

    /// Last source token of each target.
    #[must_use]
    pub fn lasts(&self) -> Vec<usize> {
        let mut lasts = vec![0; self.targets()];
        for (source, target) in self.assignment.iter().enumerate() {
            if *target != DROPPED {
                lasts[*target as usize] = source;
            }
        }
        lasts
    }

    /// Values that cannot be averaged, such as positions or ids: each target takes its first source's.
    ///
    /// # Errors
    /// `ShapeMismatch` unless there is a value a source.
    pub fn first_of<T: Clone>(&self, values: &[T]) -> Result<Vec<T>> {
        self.check(values.len(), "values")?;
        Ok(self.firsts().into_iter().map(|first| values[first].clone()).collect())
    }

    /// Sizes after, in tokens of the text: sums of the sizes before, which are 1 where absent.
    ///
    /// # Errors
    /// `ShapeMismatch` unless there is a size a source.
    pub fn sizes(&self, before: Option<&[f32]>) -> Result<Vec<f32>> {
        let Some(before) = before else {
            return Ok(self.counts.iter().map(|c| *c as f32).collect());
        };
        self.check(before.len(), "sizes")?;
        let mut sizes = vec![0.0; self.targets()];
        for (target, size) in self.assignment.iter().zip(before).filter(|(t, _)| **t != DROPPED) {
            sizes[*target as usize] += size;
        }
        Ok(sizes)
    }

    /// What attention adds to the scores of each target's key so that it weighs as much as the tokens it stands for:
    /// ln(size) (ToMe, section 3.2).
    ///
    /// # Errors
    /// As [`TokenMap::sizes`].
    pub fn log_sizes(&self, before: Option<&[f32]>) -> Result<Vec<f32>> {
        Ok(self.sizes(before)?.into_iter().map(f32::ln).collect())
    }

    /// Each target's mean over its sources, weighted by their sizes (1 where absent), along the first axis: states
    /// `[tokens, channels]`, keys and values `[tokens, heads, dim]`, positions `[tokens]`. Sums are in f64.
    ///
    /// # Errors
    /// `ShapeMismatch` unless the first axis, and the sizes, have an entry a source.
    pub fn merge<D: Dimension + RemoveAxis>(
        &self,
        x: ArrayView<'_, f32, D>,
        sizes: Option<&[f32]>,
    ) -> Result<Array<f32, D>> {
        self.check(x.len_of(Axis(0)), "tokens")?;
        let weights = self.sizes(sizes)?;
        let mut sums = Array::<f64, D>::zeros(self.resized(&x, self.targets()));
        for (source, row) in x.axis_iter(Axis(0)).enumerate() {
            let Some(target) = self.target(source) else { continue };
            let weight = sizes.map_or(1.0, |sizes| f64::from(sizes[source]));
            sums.index_axis_mut(Axis(0), target)
                .zip_mut_with(&row, |s, v| *s += weight * f64::from(*v));
        }
        let mut merged = Array::<f32, D>::zeros(sums.raw_dim());
        let rows = merged.axis_iter_mut(Axis(0)).zip(sums.axis_iter(Axis(0)));
        for ((mut row, sum), weight) in rows.zip(weights) {
            row.zip_mut_with(&sum, |m, s| *m = (s / f64::from(weight)) as f32);
        }
        Ok(merged)
    }

    /// Gives every source its target's values, along the first axis; 0 where it was dropped.
    ///
    /// # Errors
    /// `ShapeMismatch` unless the first axis has an entry a target.
    pub fn unmerge<D: Dimension + RemoveAxis>(
        &self,
        z: ArrayView<'_, f32, D>,
    ) -> Result<Array<f32, D>> {
        let tokens = z.len_of(Axis(0));
        if tokens != self.targets() {
            let message =
                format!("{tokens} tokens to unmerge, the map has {} targets", self.targets());
            return Err(Error::shape(message));
        }
        let mut out = Array::<f32, D>::zeros(self.resized(&z, self.sources()));
        for (source, mut row) in out.axis_iter_mut(Axis(0)).enumerate() {
            if let Some(target) = self.target(source) {
                row.assign(&z.index_axis(Axis(0), target));
            }
        }
        Ok(out)
    }

    /// This map, then another of its targets, as one.
    ///
    /// # Errors
    /// `ShapeMismatch` unless `next` has as many sources as this map has targets.
    pub fn then(&self, next: &Self) -> Result<Self> {
        next.check(self.targets(), "targets of the map before")?;
        let follow = |source| self.target(source).and_then(|middle| next.target(middle));
        let assignment: Vec<_> = (0..self.sources()).map(follow).collect();
        Self::new(&assignment, next.targets())
    }

    /// The same groups in the order in which the sequence meets their first tokens: positions then rise.
    #[must_use]
    pub fn sorted(&self) -> Self {
        self.ordered(&self.firsts())
    }

    /// The same groups in the order of their last tokens: where a target stands for none that comes after it.
    #[must_use]
    pub fn sorted_by_lasts(&self) -> Self {
        self.ordered(&self.lasts())
    }

    /// The same groups in the order of these.
    fn ordered(&self, keys: &[usize]) -> Self {
        let mut order: Vec<u32> = (0..self.targets() as u32).collect();
        order.sort_unstable_by_key(|target| keys[*target as usize]);
        let mut place = vec![0; order.len()];
        for (new, old) in order.iter().enumerate() {
            place[*old as usize] = new as u32;
        }
        let moved = |t: &u32| if *t == DROPPED { DROPPED } else { place[*t as usize] };
        Self {
            assignment: self.assignment.iter().map(moved).collect(),
            counts: order.iter().map(|old| self.counts[*old as usize]).collect(),
        }
    }

    fn resized<A, D: Dimension + RemoveAxis>(&self, x: &ArrayView<'_, A, D>, tokens: usize) -> D {
        let mut dim = x.raw_dim();
        dim[0] = tokens;
        dim
    }

    fn check(&self, given: usize, what: &str) -> Result<()> {
        if given == self.sources() {
            return Ok(());
        }
        Err(Error::shape(format!("{given} {what}, the map has {} sources", self.sources())))
    }
}
