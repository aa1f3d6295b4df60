//! Caches of keys and values.

use std::sync::{Mutex, MutexGuard};

use numpy::ndarray::{Array3, Ix3};
use pyo3::prelude::*;
use tensorpress::Error;
use tensorpress::kvcache::{Cache, KvRecipe, KvShape};
use tensorpress::tensor::Scratch;
use tensorpress::tensor::linalg::Par;

use crate::array::{to_numpy, values};
use crate::error::raise;
use crate::layer::par;
use crate::work::run;

/// The cache of one attention layer, by a recipe such as `kivi(bits=4)`, `kivi(bits=4) | snapkv(keep=0.5)`, `f16`.
///
/// `heads` are those of the queries, as many as `kv_heads` by default; `value_dim` is `head_dim` by default. Recipes that
/// share a budget out want to know which of `layers` layers this is. Raises `InvalidArgumentError` and `UnsupportedError`
/// where a stage does not go with the heads.
#[pyclass(frozen, module = "tensorpress")]
pub(crate) struct KvCache {
    cache: Mutex<Cache>,
    shape: KvShape,
}

impl KvCache {
    /// The cache; where a panic has left it in no state to go on from, another one.
    fn lock(&self) -> MutexGuard<'_, Cache> {
        self.cache.lock().expect("a panic before has left the cache unfinished")
    }
}

#[pymethods]
impl KvCache {
    #[new]
    #[pyo3(signature = (recipe, kv_heads, head_dim, *, heads=None, value_dim=None, layer=0, layers=1))]
    fn new(
        py: Python<'_>,
        recipe: &str,
        kv_heads: usize,
        head_dim: usize,
        heads: Option<usize>,
        value_dim: Option<usize>,
        layer: usize,
        layers: usize,
    ) -> PyResult<Self> {
        if layer >= layers {
            let message =
                format!("layer = {layer} of {layers}: allowed are 0 to {layers}, exclusive");
            return Err(raise(Error::invalid(message)));
        }
        run(py, || {
            let mut shape = KvShape::new(heads.unwrap_or(kv_heads), kv_heads, head_dim)?;
            if let Some(value_dim) = value_dim {
                shape = shape.with_value_dim(value_dim)?;
            }
            let mut caches = recipe.parse::<KvRecipe>()?.caches_of(layers, shape)?;
            Ok(Self { cache: Mutex::new(caches.swap_remove(layer)), shape })
        })
    }

    /// Takes the keys `[tokens, kv_heads, head_dim]` and values `[tokens, kv_heads, value_dim]` of the next tokens.
    ///
    /// Raises `ShapeMismatchError`, and `NumericalError` where a form cannot hold a number; the cache is then as it was.
    fn append(
        &self,
        py: Python<'_>,
        keys: &Bound<'_, PyAny>,
        values: &Bound<'_, PyAny>,
    ) -> PyResult<()> {
        let keys = self::values::<Ix3>(keys, "keys", "[tokens, kv_heads, head_dim]")?;
        let values = self::values::<Ix3>(values, "values", "[tokens, kv_heads, value_dim]")?;
        run(py, || self.lock().append(keys.view(), values.view()))
    }

    /// Causal attention of the queries `[tokens, heads, head_dim]` of the tokens appended last: `[tokens, heads, value_dim]` of
    /// float32. `window` bounds how far a token looks back. Then the policy, if there is one, lets tokens go.
    ///
    /// Raises `ShapeMismatchError`, and `InvalidArgumentError` for more queries than tokens.
    #[pyo3(signature = (queries, *, window=None, threads=None))]
    fn attend<'py>(
        &self,
        py: Python<'py>,
        queries: &Bound<'py, PyAny>,
        window: Option<usize>,
        threads: Option<usize>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let queries = values::<Ix3>(queries, "queries", "[tokens, heads, head_dim]")?;
        let par: Par = par(threads)?;
        let mut out = Array3::zeros((queries.dim().0, self.shape.heads, self.shape.value_dim));
        run(py, || {
            let mut scratch = Scratch::new(par);
            self.lock().attend(queries.view(), window, out.view_mut(), &mut scratch)
        })?;
        Ok(to_numpy(py, out))
    }

    /// Goes back to the first `length` tokens, as if the others had never been.
    ///
    /// Raises `UnsupportedError` where tokens were evicted or packed since, and says how far back it can go.
    fn truncate(&self, py: Python<'_>, length: usize) -> PyResult<()> {
        run(py, || self.lock().truncate(length))
    }

    /// A cache of its own with the same contents; full pages are shared until one side changes them.
    fn fork(&self, py: Python<'_>) -> PyResult<Self> {
        let cache = run(py, || Ok(self.lock().fork()))?;
        Ok(Self { cache: Mutex::new(cache), shape: self.shape })
    }

    /// Tokens that are still held, for each head of keys and values.
    #[getter]
    fn held(&self, py: Python<'_>) -> PyResult<Vec<usize>> {
        run(py, || {
            let cache = self.lock();
            Ok((0..self.shape.kv_heads).map(|head| cache.store().held(head)).collect())
        })
    }

    /// Bytes held for keys and values.
    #[getter]
    fn bytes(&self, py: Python<'_>) -> PyResult<u64> {
        run(py, || Ok(self.lock().bytes()))
    }

    /// Tokens appended, those that went included: the position of the next.
    fn __len__(&self, py: Python<'_>) -> PyResult<usize> {
        run(py, || Ok(self.lock().len()))
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        let (tokens, bytes) = (self.__len__(py)?, self.bytes(py)?);
        Ok(format!("<tensorpress.KvCache of {tokens} tokens in {bytes} bytes>"))
    }
}
