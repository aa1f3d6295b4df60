//! Fewer tokens.

use numpy::ndarray::{ArrayD, Ix2, IxDyn};
use numpy::{IntoPyArray, PyArray1};
use pyo3::prelude::*;
use tensorpress::Error;
use tensorpress::tokencomp::{DivPrune, ToMe, TokenHints, TokenMap as Map, TokenReduce};

use crate::array::{list, to_numpy, values};
use crate::error::raise;
use crate::work::run;

/// Where each token of a sequence goes: one plan, applied to states, positions, keys and values alike.
///
/// `merge(unmerge(z))` is `z`. Made by `tome` and `divprune`.
#[pyclass(frozen, module = "tensorpress")]
pub(crate) struct TokenMap {
    map: Map,
}

/// An array with a token in each entry of its first axis.
fn tokens(given: &Bound<'_, PyAny>, name: &str) -> PyResult<ArrayD<f32>> {
    let values = values::<IxDyn>(given, name, "[tokens, ...]")?;
    match values.ndim() {
        0 => Err(raise(Error::shape(format!("`{name}` is a number: [tokens, ...] expected")))),
        _ => Ok(values),
    }
}

#[pymethods]
impl TokenMap {
    /// Tokens before.
    #[getter]
    fn sources(&self) -> usize {
        self.map.sources()
    }

    /// Tokens after.
    #[getter]
    fn targets(&self) -> usize {
        self.map.targets()
    }

    /// Where each token goes, `[sources]` of int64; -1 where it is dropped.
    #[getter]
    fn assignment<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<i64>> {
        let target = |source| self.map.target(source).map_or(-1, |target| target as i64);
        (0..self.map.sources()).map(target).collect::<Vec<_>>().into_pyarray(py)
    }

    /// Source tokens of each target, `[targets]` of int64.
    #[getter]
    fn counts<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<i64>> {
        let counts = self.map.counts().iter().map(|count| i64::from(*count));
        counts.collect::<Vec<_>>().into_pyarray(py)
    }

    /// First source token of each target, `[targets]` of int64: index ids and positions with it.
    #[getter]
    fn firsts<'py>(&self, py: Python<'py>) -> Bound<'py, PyArray1<i64>> {
        let firsts = self.map.firsts().into_iter().map(|first| first as i64);
        firsts.collect::<Vec<_>>().into_pyarray(py)
    }

    /// Each target's mean over its sources, weighted by their `sizes` (1 by default), along the first axis of `x`:
    /// `[sources, ...]` becomes `[targets, ...]` of float32. Raises `ShapeMismatchError`.
    #[pyo3(signature = (x, sizes=None))]
    fn merge<'py>(
        &self,
        py: Python<'py>,
        x: &Bound<'py, PyAny>,
        sizes: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let (x, sizes) = (tokens(x, "x")?, list(sizes, "sizes")?);
        Ok(to_numpy(py, run(py, || self.map.merge(x.view(), sizes.as_deref()))?))
    }

    /// Gives every source its target's values, 0 where it was dropped: `[targets, ...]` becomes `[sources, ...]` of float32.
    /// Raises `ShapeMismatchError`.
    fn unmerge<'py>(&self, py: Python<'py>, z: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        let z = tokens(z, "z")?;
        Ok(to_numpy(py, run(py, || self.map.unmerge(z.view()))?))
    }

    /// Tokens of the text that each target stands for, `[targets]` of float32, from the sizes before (1 by default).
    /// Raises `ShapeMismatchError`.
    #[pyo3(signature = (before=None))]
    fn sizes<'py>(
        &self,
        py: Python<'py>,
        before: Option<&Bound<'py, PyAny>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let before = list(before, "before")?;
        let sizes = run(py, || self.map.sizes(before.as_deref()))?;
        Ok(to_numpy(py, numpy::ndarray::Array1::from(sizes)))
    }

    /// This map, then another of its targets, as one. Raises `ShapeMismatchError`.
    fn then(&self, py: Python<'_>, next: &Self) -> PyResult<Self> {
        Ok(Self { map: run(py, || self.map.then(&next.map))? })
    }

    fn __repr__(&self) -> String {
        format!("<tensorpress.TokenMap {} -> {}>", self.map.sources(), self.map.targets())
    }
}

fn plan(
    py: Python<'_>,
    method: &dyn TokenReduce,
    states: &Bound<'_, PyAny>,
    keep: usize,
    protected: Option<Vec<usize>>,
    sizes: Option<&Bound<'_, PyAny>>,
) -> PyResult<TokenMap> {
    let protected = protected.unwrap_or_default();
    let states = values::<Ix2>(states, "states", "[tokens, channels]")?;
    let sizes = list(sizes, "sizes")?;
    let map = run(py, || {
        let mut hints = TokenHints::default().with_protected(&protected);
        if let Some(sizes) = &sizes {
            hints = hints.with_sizes(sizes);
        }
        method.plan(states.view(), &hints, keep)
    })?;
    Ok(TokenMap { map })
}

/// Token merging (ToMe): merges the most similar of the states `[tokens, channels]`, by their cosine, until `keep` are left.
///
/// `protected` tokens stay alone. `sizes` says how many tokens of the text each stands for, 1 by default.
///
/// Raises `InvalidArgumentError` for a `keep` that is 0, above the tokens or below the protected ones, or a protected token
/// out of range; `ShapeMismatchError` for sizes of another length; `NumericalError` for states that are not finite.
#[pyfunction]
#[pyo3(signature = (states, keep, *, protected=None, sizes=None))]
pub(crate) fn tome(
    py: Python<'_>,
    states: &Bound<'_, PyAny>,
    keep: usize,
    protected: Option<Vec<usize>>,
    sizes: Option<&Bound<'_, PyAny>>,
) -> PyResult<TokenMap> {
    plan(py, &ToMe::new(), states, keep, protected, sizes)
}

/// Diversity-based pruning (DivPrune): keeps `keep` of the states `[tokens, channels]` that are far from one another, by
/// their cosine, and drops the others. `protected` tokens stay. Raises as `tome`.
#[pyfunction]
#[pyo3(signature = (states, keep, *, protected=None))]
pub(crate) fn divprune(
    py: Python<'_>,
    states: &Bound<'_, PyAny>,
    keep: usize,
    protected: Option<Vec<usize>>,
) -> PyResult<TokenMap> {
    plan(py, &DivPrune::new(), states, keep, protected, None)
}
