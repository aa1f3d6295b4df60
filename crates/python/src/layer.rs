//! One compressed matrix.

use std::sync::Arc;

use numpy::ndarray::{Array2, Axis, Ix2};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};
use serde::Serialize;
use tensorpress::recipe::Recipe;
use tensorpress::tensor::linalg::Par;
use tensorpress::tensor::node::{self, Accum};
use tensorpress::tensor::stats::Calibration;
use tensorpress::tensor::{Context, DType, Group, Node, Scratch, Storage, Target};
use tensorpress::{Error, registry};

use crate::array::{bytes, floats, inputs, to_numpy, values};
use crate::error::{raise, type_error};
use crate::json::to_python;
use crate::work::run;

/// A compressed matrix W `[rows, cols]`, made by `compress`, `Model.layer` or `Layer.from_bytes`; it never changes.
///
/// It can be pickled, and `numpy.asarray(layer)` decodes it.
#[pyclass(frozen, module = "tensorpress")]
pub(crate) struct Layer {
    node: Arc<dyn Node>,
    bias: Option<Vec<f32>>,
    fallback: Option<String>,
}

impl Layer {
    pub(crate) fn of(node: Box<dyn Node>) -> Self {
        Self { node: node.into(), bias: None, fallback: None }
    }

    /// X Wᵀ.
    fn product(&self, py: Python<'_>, x: Array2<f32>, par: Par) -> PyResult<Array2<f32>> {
        let mut y = Array2::zeros((x.nrows(), self.node.shape()[0]));
        run(py, || {
            self.node.matmul(x.view(), y.view_mut(), Accum::Replace, &mut Scratch::new(par))
        })?;
        Ok(y)
    }
}

/// As many threads as asked for; all where nothing was.
pub(crate) fn par(threads: Option<usize>) -> PyResult<Par> {
    match threads {
        None => Ok(Par::Rayon),
        Some(0) => Err(raise(Error::invalid("threads = 0: allowed are 1 and more, or None"))),
        Some(1) => Ok(Par::Seq),
        Some(threads) => Ok(Par::Threads(threads)),
    }
}

/// A variant as it is called in files.
fn name_of(value: &impl Serialize) -> String {
    let value = serde_json::to_value(value).unwrap_or_default();
    value.as_str().unwrap_or_default().to_owned()
}

#[pymethods]
impl Layer {
    /// `(rows, cols)`: outputs and inputs.
    #[getter]
    fn shape(&self) -> (usize, usize) {
        let [rows, cols] = self.node.shape();
        (rows, cols)
    }

    /// What it is at the root, such as `grouped_affine.v1`; `tree` tells the rest.
    #[getter]
    fn kind(&self) -> String {
        self.node.describe()["node"].as_str().unwrap_or_default().to_owned()
    }

    /// What it is made of, as it is described in files.
    #[getter]
    fn tree<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        to_python(py, &self.node.describe())
    }

    /// 8 x bytes of all parts over the number of weights.
    #[getter]
    fn bits_per_weight(&self, py: Python<'_>) -> PyResult<f64> {
        run(py, || node::bits_per_weight(&*self.node))
    }

    /// Bytes by what they are for (`codes`, `scales`, `zeros`, `values`, `masks` ...): exactly those that are written.
    #[getter]
    fn storage<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let storage = run(py, || Storage::of(&*self.node))?;
        let dict = PyDict::new(py);
        storage.items().try_for_each(|(kind, bytes)| dict.set_item(name_of(&kind), bytes))?;
        Ok(dict)
    }

    /// `fused` where a kernel multiplies by the stored form, `decode` where rows are decoded for it.
    #[getter]
    fn multiplies_by(&self) -> String {
        name_of(&self.node.multiply())
    }

    /// What to add to the bias of the layer, `[rows]`, where the method found something.
    #[getter]
    fn bias<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyAny>> {
        self.bias.clone().map(|bias| to_numpy(py, numpy::ndarray::Array1::from(bias)))
    }

    /// Why the method did less than it was asked to, where it did.
    #[getter]
    fn fallback(&self) -> Option<&str> {
        self.fallback.as_deref()
    }

    /// The matrix, `[rows, cols]` of float32.
    fn decode<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        Ok(to_numpy(py, run(py, || node::decode(&*self.node))?))
    }

    /// x Wᵀ, as a linear layer computes: `x` is `[tokens, cols]` and the result `[tokens, rows]`, or `[cols]` and `[rows]`.
    ///
    /// `threads` bounds the threads, all by default; no number depends on it. Raises `ShapeMismatchError`.
    #[pyo3(signature = (x, *, threads=None))]
    fn multiply<'py>(
        &self,
        py: Python<'py>,
        x: &Bound<'py, PyAny>,
        threads: Option<usize>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let (x, single) = inputs(x, self.node.shape()[1])?;
        let y = self.product(py, x, par(threads)?)?;
        Ok(match single {
            true => to_numpy(py, y.index_axis_move(Axis(0), 0)),
            false => to_numpy(py, y),
        })
    }

    /// The same as `multiply(x)`.
    fn __call__<'py>(&self, py: Python<'py>, x: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyAny>> {
        self.multiply(py, x, None)
    }

    /// `layer @ x` is `layer.decode() @ x`, as for any matrix: `x` is `[cols]`, or `[cols, n]` with a column a token.
    fn __matmul__<'py>(
        &self,
        py: Python<'py>,
        x: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let x = x
            .getattr("T")
            .or_else(|_| py.import("numpy")?.call_method1("asarray", (x,))?.getattr("T"))?;
        self.multiply(py, &x, None)?.getattr("T")
    }

    /// `x @ layer` is `x @ layer.decode()`: `x` is `[rows]` or `[n, rows]`. The matrix is decoded.
    fn __rmatmul__<'py>(
        &self,
        py: Python<'py>,
        x: &Bound<'py, PyAny>,
    ) -> PyResult<Bound<'py, PyAny>> {
        py.import("numpy")?.call_method1("matmul", (x, self.decode(py)?))
    }

    #[pyo3(signature = (dtype=None, copy=None))]
    fn __array__<'py>(
        &self,
        py: Python<'py>,
        dtype: Option<&Bound<'py, PyAny>>,
        copy: Option<bool>,
    ) -> PyResult<Bound<'py, PyAny>> {
        if copy == Some(false) {
            let message = "a compressed matrix is decoded into a new array: copy=False cannot be";
            return Err(raise(Error::invalid(message)));
        }
        let array = self.decode(py)?;
        match dtype {
            Some(dtype) => array.call_method1("astype", (dtype,)),
            None => Ok(array),
        }
    }

    /// All of it in one piece, with a checksum.
    fn to_bytes<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyBytes>> {
        let bytes = run(py, || node::to_bytes(&*self.node))?;
        Ok(PyBytes::new(py, &bytes))
    }

    /// The layer that `to_bytes` was called on; `bias` and `fallback` are not among the bytes.
    ///
    /// Raises `CorruptionError` or `InsufficientDataError` for every changed, missing or added byte, `VersionError` for
    /// what this version does not know.
    #[staticmethod]
    fn from_bytes(py: Python<'_>, data: &Bound<'_, PyAny>) -> PyResult<Self> {
        let data = bytes(data)?.as_bytes().to_vec();
        Ok(Self::of(run(py, || node::from_bytes(data, &registry()))?))
    }

    fn __reduce__<'py>(&self, py: Python<'py>) -> PyResult<(Bound<'py, PyAny>, Parts<'py>)> {
        let restore = py.import("tensorpress._native")?.getattr("_restore_layer")?;
        Ok((restore, (self.to_bytes(py)?, self.bias.clone(), self.fallback.clone())))
    }

    fn __repr__(&self, py: Python<'_>) -> PyResult<String> {
        let ([rows, cols], kind) = (self.node.shape(), self.kind());
        let bits = self.bits_per_weight(py)?;
        Ok(format!("<tensorpress.Layer [{rows}, {cols}] {kind}, {bits:.3} bits per weight>"))
    }
}

/// What a layer is pickled as.
type Parts<'py> = (Bound<'py, PyBytes>, Option<Vec<f32>>, Option<String>);

/// What unpickles a layer.
#[pyfunction]
#[pyo3(name = "_restore_layer")]
pub(crate) fn restore_layer(
    py: Python<'_>,
    data: &Bound<'_, PyAny>,
    bias: Option<Vec<f32>>,
    fallback: Option<String>,
) -> PyResult<Layer> {
    Ok(Layer { bias, fallback, ..Layer::from_bytes(py, data)? })
}

/// Compresses one matrix W `[rows, cols]` (outputs by inputs) by a recipe.
///
/// `matrix` is an array of float32, float16, bfloat16 or float64, of any strides; `dtype="bfloat16"` says that integers of
/// 16 bits are the bits of bfloat16. `recipe` is a line such as `"gptq(bits=4, group=128)"` or a preset. `calibration` are
/// inputs of the layer, `[tokens, cols]`, for methods that want them (of none, a method does what it can without, and
/// `fallback` says so). The result is the same for any number of threads. Ctrl-C is heard
/// when the work is done.
///
/// Raises `InvalidArgumentError` and `UnsupportedError` for what is no recipe for one matrix, `ShapeMismatchError` where
/// shapes do not go together, `MissingCalibrationError`, and `NumericalError` for NaN and infinity in the matrix.
#[pyfunction]
#[pyo3(signature = (matrix, recipe, calibration=None, *, seed=0, threads=None, dtype=None))]
pub(crate) fn compress(
    py: Python<'_>,
    matrix: &Bound<'_, PyAny>,
    recipe: &str,
    calibration: Option<&Bound<'_, PyAny>>,
    seed: u64,
    threads: Option<usize>,
    dtype: Option<&str>,
) -> PyResult<Layer> {
    let bits = match dtype {
        None => None,
        Some("bfloat16") => Some(DType::BF16),
        Some(other) => {
            let message = format!("dtype = {other}: allowed is bfloat16, or None");
            return Err(type_error(message));
        }
    };
    let (weight, dtype) = floats::<Ix2>(matrix, "matrix", "[rows, cols]", bits)?;
    let samples = calibration.map(|x| values::<Ix2>(x, "calibration", "[tokens, cols]"));
    let (samples, par) = (samples.transpose()?, par(threads)?);
    let made = run(py, || {
        let name = "matrix";
        let recipe = Recipe::parse(recipe)?;
        let method = recipe
            .chain_for(name)
            .ok_or_else(|| Error::unsupported(format!("`{recipe}` compresses no matrix")))?;
        if let Some((stage, _)) = recipe.rewrites().first() {
            let message = format!("`{stage}` rewrites whole blocks of a model, not one matrix");
            return Err(Error::unsupported(message));
        }
        let method = method.build()?;
        let cols = weight.ncols();
        if samples.is_none() && !method.needs().is_none() {
            let message = format!("`{recipe}` needs calibration, and none was given");
            return Err(Error::missing_calibration(message));
        }
        let calibration = match samples {
            Some(x) if x.ncols() != cols => {
                let found = x.ncols();
                let message = format!("`calibration` has {found} columns: {cols} expected");
                return Err(Error::shape(message));
            }
            Some(x) => Calibration::from_samples(x, par),
            None => Calibration::none(cols),
        };
        let target = Target::new(name, weight.view()).with_dtype(dtype);
        let mut group = Group::single(target, calibration);
        (group.seed, group.par) = (seed, par);
        let mut made = method.compress_group_dyn(group)?;
        made.layers.pop().ok_or_else(|| Error::invalid("no result")).in_tensor(name)
    })?;
    Ok(Layer { node: made.node.into(), bias: made.bias, fallback: made.fallback })
}
