//! Arrays of numpy, and what numpy makes arrays of, in and out. Inputs are copied: nothing that Python could write to is
//! read while its lock is released.

use half::{bf16, f16};
use numpy::ndarray::{Array, Array2, Dimension, Ix1, Ix2};
use numpy::{
    Element, IntoPyArray, PyArray, PyArrayDescrMethods, PyArrayMethods, PyUntypedArray,
    PyUntypedArrayMethods,
};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};
use tensorpress::Error;
use tensorpress::tensor::DType;

use crate::error::{raise, type_error};

/// What numpy makes of an object: an aligned array in the byte order of the machine.
fn array<'py>(given: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyUntypedArray>> {
    let py = given.py();
    let array = py.import("numpy")?.call_method1("require", (given, py.None(), ["A", "E"]))?;
    let dtype = array.getattr("dtype")?;
    let array = match dtype.getattr("isnative")?.extract()? {
        true => array,
        false => array.call_method1("astype", (dtype.call_method1("newbyteorder", ("=",))?,))?,
    };
    Ok(array.cast_into::<PyUntypedArray>()?)
}

/// The name of an array's type, such as `float32`.
fn dtype_name(array: &Bound<'_, PyUntypedArray>) -> PyResult<String> {
    array.dtype().getattr("name")?.extract()
}

/// Floats of any type that methods read, in standard layout, and the type they had. `bits` says what 16-bit integers
/// are the bits of. `axes` names the axes in errors.
pub(crate) fn floats<D: Dimension>(
    given: &Bound<'_, PyAny>,
    name: &str,
    axes: &str,
    bits: Option<DType>,
) -> PyResult<(Array<f32, D>, DType)> {
    let array = array(given)?;
    if D::NDIM.is_some_and(|axes| axes != array.ndim()) {
        let shape = array.shape();
        return Err(raise(Error::shape(format!("`{name}` is {shape:?}: {axes} expected"))));
    }
    let kind = dtype_name(&array)?;
    let array = array.into_any();
    let is_bits = kind == "uint16" && bits == Some(DType::BF16);
    if kind == "bfloat16" || is_bits {
        let bits = array.call_method1("view", ("uint16",))?;
        return Ok((copied(&bits, |v: u16| bf16::from_bits(v).to_f32())?, DType::BF16));
    }
    match kind.as_str() {
        "float32" => Ok((copied(&array, |v: f32| v)?, DType::F32)),
        "float16" => Ok((copied(&array, f16::to_f32)?, DType::F16)),
        "float64" => Ok((copied(&array, |v: f64| v as f32)?, DType::F64)),
        _ => Err(type_error(format!(
            "`{name}` is an array of {kind}: allowed are float32, float16, bfloat16 and float64"
        ))),
    }
}

fn copied<T: Element + Copy, D: Dimension>(
    array: &Bound<'_, PyAny>,
    value: impl Fn(T) -> f32,
) -> PyResult<Array<f32, D>> {
    let array = array.cast::<PyArray<T, D>>()?.readonly();
    let array = array.as_array();
    // ndarray refuses some strides of arrays that have no elements.
    if array.is_empty() {
        return Ok(Array::zeros(array.raw_dim()));
    }
    Ok(array.map(|v| value(*v)).as_standard_layout().into_owned())
}

/// Floats as f32, whatever they were.
pub(crate) fn values<D: Dimension>(
    given: &Bound<'_, PyAny>,
    name: &str,
    axes: &str,
) -> PyResult<Array<f32, D>> {
    Ok(floats(given, name, axes, None)?.0)
}

/// A value a token.
pub(crate) fn list(given: Option<&Bound<'_, PyAny>>, name: &str) -> PyResult<Option<Vec<f32>>> {
    let read = |given| values::<Ix1>(given, name, "[tokens]").map(|list| list.to_vec());
    given.map(read).transpose()
}

/// Inputs `[tokens, cols]`, or one token `[cols]`: then true beside them.
pub(crate) fn inputs(given: &Bound<'_, PyAny>, cols: usize) -> PyResult<(Array2<f32>, bool)> {
    let array = array(given)?;
    let single = array.ndim() == 1;
    let x = match single {
        true => {
            let x = values::<Ix1>(array.as_any(), "x", "[cols]")?;
            x.insert_axis(numpy::ndarray::Axis(0))
        }
        false => values::<Ix2>(array.as_any(), "x", "[tokens, cols] or [cols]")?,
    };
    if x.ncols() != cols {
        let found = x.ncols();
        return Err(raise(Error::shape(format!("`x` has {found} columns: {cols} expected"))));
    }
    Ok((x, single))
}

/// An array of numpy's that owns these values.
pub(crate) fn to_numpy<D: Dimension>(py: Python<'_>, values: Array<f32, D>) -> Bound<'_, PyAny> {
    values.into_pyarray(py).into_any()
}

/// The bytes of an object that has any: `bytes`, `bytearray`, `memoryview`, an array.
pub(crate) fn bytes<'py>(given: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyBytes>> {
    if let Ok(bytes) = given.cast::<PyBytes>() {
        return Ok(bytes.clone());
    }
    let view = given.py().import("builtins")?.call_method1("memoryview", (given,))?;
    Ok(view.call_method0("tobytes")?.cast_into()?)
}

/// The little-endian bytes of an array in the order of its axes, and the name of its type; `None` for what is none.
pub(crate) fn array_bytes<'py>(
    given: &Bound<'py, PyAny>,
) -> PyResult<Option<(Bound<'py, PyBytes>, String)>> {
    if given.cast::<PyUntypedArray>().is_err() {
        return Ok(None);
    }
    let array = array(given)?;
    let name = dtype_name(&array)?;
    if array.dtype().has_object() {
        return Err(type_error(format!("an array of {name} has no bytes of its own")));
    }
    let array = match cfg!(target_endian = "big") {
        true => array.call_method0("byteswap")?,
        false => array.into_any(),
    };
    let bytes = array.call_method0("tobytes")?;
    Ok(Some((bytes.cast_into()?, name)))
}

/// An array of numpy's over little-endian bytes, which it may write to.
pub(crate) fn from_bytes<'py>(
    bytes: Bound<'py, PyAny>,
    dtype: &Bound<'py, PyAny>,
) -> PyResult<Bound<'py, PyAny>> {
    let numpy = bytes.py().import("numpy")?;
    let dtype = numpy.call_method1("dtype", (dtype,))?;
    let stored = dtype.call_method1("newbyteorder", ("<",))?;
    let arguments = PyDict::new(bytes.py());
    arguments.set_item("dtype", stored)?;
    let array = numpy.call_method("frombuffer", (bytes,), Some(&arguments))?;
    arguments.set_item("copy", false)?;
    arguments.set_item("dtype", dtype)?;
    array.call_method("astype", (), Some(&arguments))
}
