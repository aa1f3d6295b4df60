//! Errors of the libraries, and panics, as the exceptions of `tensorpress._errors`.

use std::any::Any;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};

use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use tensorpress::{Error, ErrorKind};

/// What work in Rust may end with.
pub(crate) enum Failure {
    /// An error of the libraries.
    Error(Error),
    /// A panic: a defect, in its words.
    Panic(String),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

impl From<Failure> for PyErr {
    fn from(failure: Failure) -> Self {
        Python::attach(|py| failure.raise(py).unwrap_or_else(|error| error))
    }
}

impl Failure {
    fn raise(&self, py: Python<'_>) -> PyResult<PyErr> {
        let errors = py.import("tensorpress._errors")?;
        let error = match self {
            Self::Panic(message) => {
                let message = format!("{message}; this is a defect of tensorpress");
                return Ok(PyErr::from_value(errors.getattr("InternalError")?.call1((message,))?));
            }
            Self::Error(error) => error,
        };
        let made = errors.getattr(class(error))?.call1((error.to_string(),))?;
        made.setattr("tensor", error.tensor())?;
        made.setattr("file", error.file().map(|file| file.to_string_lossy().into_owned()))?;
        if let Some(number) = os_error(error).and_then(io::Error::raw_os_error) {
            made.setattr("errno", number)?;
        }
        Ok(PyErr::from_value(made))
    }
}

fn os_error(error: &Error) -> Option<&io::Error> {
    std::error::Error::source(error)?.downcast_ref()
}

/// The name of the exception.
fn class(error: &Error) -> &'static str {
    match error.kind() {
        ErrorKind::InvalidArgument => "InvalidArgumentError",
        ErrorKind::ShapeMismatch => "ShapeMismatchError",
        ErrorKind::MissingCalibration => "MissingCalibrationError",
        ErrorKind::Unsupported => "UnsupportedError",
        ErrorKind::Numerical => "NumericalError",
        ErrorKind::Corruption => "CorruptionError",
        ErrorKind::InsufficientData => "InsufficientDataError",
        ErrorKind::Version => "VersionError",
        ErrorKind::Io => match os_error(error).map(io::Error::kind) {
            Some(io::ErrorKind::NotFound) => "FileMissingError",
            _ => "IoError",
        },
        ErrorKind::Interrupted => "CancelledError",
        ErrorKind::Exists => "ExistsError",
        ErrorKind::MissingBase => "MissingBaseError",
        _ => "TensorpressError",
    }
}

/// An error of the libraries as an exception.
pub(crate) fn raise(error: Error) -> PyErr {
    Failure::from(error).into()
}

/// A `TypeError`.
pub(crate) fn type_error(message: String) -> PyErr {
    PyTypeError::new_err(message)
}

/// Runs what may panic, and catches that.
pub(crate) fn caught<T>(work: impl FnOnce() -> tensorpress::Result<T>) -> Result<T, Failure> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(result) => result.map_err(Failure::Error),
        Err(panic) => Err(Failure::Panic(words(&*panic))),
    }
}

/// The message of a panic.
pub(crate) fn words(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
    format!("panicked: {}", text.unwrap_or_else(|| "without a word".to_owned()))
}
