//! Pages of keys and values between tiers of memory.

use numpy::ndarray::{Array3, Ix3};
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use tensorpress::Error;
use tensorpress::kvcache::page::{PageCodec as Codec, PageConfig, PageScratch};
use tensorpress::tensor::DType;

use crate::array::{bytes, to_numpy, values};
use crate::error::raise;
use crate::work::run;

/// Encodes keys and values into pages of `page_bytes` bytes each, and decodes them: heads are rotated, and groups of
/// channels rounded to integers of `key_bits` and `value_bits` bits (2 to 8), with scales in `scales` (`F32`, `F16`, `BF16`).
///
/// Raises `InvalidArgumentError` for a number outside of what is allowed.
#[pyclass(frozen, module = "tensorpress")]
pub(crate) struct PageCodec {
    codec: Codec,
}

fn float(name: &str) -> PyResult<DType> {
    DType::from_name(&name.to_ascii_uppercase())
        .ok_or_else(|| raise(Error::invalid(format!("type {name}: allowed are F32, F16 and BF16"))))
}

#[pymethods]
impl PageCodec {
    #[new]
    #[pyo3(signature = (
        tokens, kv_heads, head_dim, *, value_dim=None, key_bits=4, value_bits=4, group=64, symmetric=false,
        scales="F16", rotate=true, seed=0
    ))]
    fn new(
        py: Python<'_>,
        tokens: usize,
        kv_heads: usize,
        head_dim: usize,
        value_dim: Option<usize>,
        key_bits: u32,
        value_bits: u32,
        group: usize,
        symmetric: bool,
        scales: &str,
        rotate: bool,
        seed: u64,
    ) -> PyResult<Self> {
        let config = PageConfig::new(tokens, kv_heads, head_dim)
            .with_value_dim(value_dim.unwrap_or(head_dim))
            .with_bits(key_bits, value_bits)
            .with_group(group)
            .with_symmetric(symmetric)
            .with_scales(float(scales)?)
            .with_rotate(rotate)
            .with_seed(seed);
        Ok(Self { codec: run(py, || Codec::new(config))? })
    }

    /// Bytes of every page, however many tokens it holds.
    #[getter]
    fn page_bytes(&self) -> usize {
        self.codec.page_bytes()
    }

    /// How many times larger a full page is in this type (`F16` by default).
    #[pyo3(signature = (dtype="F16"))]
    fn ratio(&self, dtype: &str) -> PyResult<f64> {
        Ok(self.codec.ratio(float(dtype)?))
    }

    /// A page of keys `[tokens, kv_heads, head_dim]` and values `[tokens, kv_heads, value_dim]`, no more tokens than a page
    /// holds.
    ///
    /// Raises `ShapeMismatchError`, and `NumericalError` for NaN, infinity and numbers beyond 2^96, naming the place.
    fn encode<'py>(
        &self,
        py: Python<'py>,
        keys: &Bound<'py, PyAny>,
        values: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyBytes>> {
        let keys = self::values::<Ix3>(keys, "keys", "[tokens, kv_heads, head_dim]")?;
        let values = self::values::<Ix3>(values, "values", "[tokens, kv_heads, value_dim]")?;
        let page = run(py, || {
            let mut page = vec![0; self.codec.page_bytes()];
            let mut scratch = PageScratch::default();
            self.codec.encode(keys.view(), values.view(), &mut page, &mut scratch)?;
            Ok(page)
        })?;
        Ok(PyBytes::new(py, &page))
    }

    /// Keys and values of the tokens that a page holds, `[tokens, kv_heads, head_dim]` and `[tokens, kv_heads, value_dim]` of
    /// float32.
    ///
    /// Raises `InsufficientDataError`, `CorruptionError` or `VersionError` for what is no whole page, `InvalidArgumentError`
    /// for a page of another codec.
    fn decode<'py>(
        &self,
        py: Python<'py>,
        page: &Bound<'py, PyAny>,
    ) -> PyResult<(Bound<'py, PyAny>, Bound<'py, PyAny>)> {
        let page = bytes(page)?.as_bytes().to_vec();
        let config = *self.codec.config();
        let [keys, values] = run(py, || {
            let held = self.codec.held(&page)?;
            let room = |channels| Array3::<f32>::zeros((held, config.kv_heads, channels));
            let (mut keys, mut values) = (room(config.head_dim), room(config.value_dim));
            let mut scratch = PageScratch::default();
            self.codec.decode(&page, keys.view_mut(), values.view_mut(), &mut scratch)?;
            Ok([keys, values])
        })?;
        Ok((to_numpy(py, keys), to_numpy(py, values)))
    }

    /// How many tokens a page holds, once it is seen to be whole. Raises as `decode`.
    fn held(&self, py: Python<'_>, page: &Bound<'_, PyAny>) -> PyResult<usize> {
        let page = bytes(page)?.as_bytes().to_vec();
        run(py, || self.codec.held(&page))
    }
}
