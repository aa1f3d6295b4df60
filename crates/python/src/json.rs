//! JSON as Python's own objects.

use pyo3::IntoPyObjectExt;
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyList};
use serde::Serialize;
use serde_json::Value;
use tensorpress::Error;

use crate::error::raise;

/// Dictionaries, lists, strings, numbers, booleans and `None`.
pub(crate) fn to_python<'py>(py: Python<'py>, value: &Value) -> PyResult<Bound<'py, PyAny>> {
    match value {
        Value::Null => Ok(py.None().into_bound(py)),
        Value::Bool(value) => value.into_bound_py_any(py),
        Value::Number(number) => match (number.as_u64(), number.as_i64(), number.as_f64()) {
            (Some(number), _, _) => number.into_bound_py_any(py),
            (_, Some(number), _) => number.into_bound_py_any(py),
            (_, _, number) => number.into_bound_py_any(py),
        },
        Value::String(text) => text.into_bound_py_any(py),
        Value::Array(items) => {
            let list = PyList::empty(py);
            items.iter().try_for_each(|item| list.append(to_python(py, item)?))?;
            Ok(list.into_any())
        }
        Value::Object(entries) => {
            let dict = PyDict::new(py);
            let put = |(key, value): (&String, &Value)| dict.set_item(key, to_python(py, value)?);
            entries.iter().try_for_each(put)?;
            Ok(dict.into_any())
        }
    }
}

/// A report as a dictionary.
pub(crate) fn report<'py>(py: Python<'py>, report: &impl Serialize) -> PyResult<Bound<'py, PyAny>> {
    let value = serde_json::to_value(report).map_err(|e| raise(Error::invalid(e.to_string())))?;
    to_python(py, &value)
}
