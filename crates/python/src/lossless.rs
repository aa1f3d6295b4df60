//! Lossless coding: of bytes and arrays in memory, of files and folders.

use std::path::{Path, PathBuf};

use pyo3::prelude::*;
use pyo3::types::{PyByteArray, PyBytes};
use serde_json::json;
use tensorpress::Error;
use tensorpress::entropy::container::Progress;
use tensorpress::entropy::{
    Base, Effort, Frame, PackedFile, Packer, ValueType, compress_with, decompress,
};

use crate::array::{array_bytes, bytes, from_bytes};
use crate::error::raise;
use crate::json::{report, to_python};
use crate::work::{Watch, run, watched};

fn effort_of(name: &str) -> PyResult<Effort> {
    match name {
        "fast" => Ok(Effort::Fast),
        "best" => Ok(Effort::Best),
        other => {
            let message = format!("effort = {other}: allowed are fast and best");
            Err(raise(Error::invalid(message)))
        }
    }
}

/// How the bits of an array's numbers are laid out.
fn layout(dtype: &str) -> ValueType {
    match dtype {
        "float64" => ValueType::F64,
        "float32" | "complex64" => ValueType::F32,
        "float16" => ValueType::F16,
        "bfloat16" => ValueType::BF16,
        "int64" | "uint64" => ValueType::I64,
        "int32" | "uint32" => ValueType::I32,
        "int16" | "uint16" => ValueType::I16,
        name if name.starts_with("float8_e4m3") || name.starts_with("float8_e5m2") => ValueType::F8,
        _ => ValueType::Bytes,
    }
}

/// Packs bytes, or the values of an array, into one checked piece; every bit comes back.
///
/// `kind` says how numbers are laid out, which decides how small they become: `bytes`, `f8`, `f16`, `bf16`, `f32`, `f64`,
/// `i16`, `i32`, `i64`; by default what the array's type is, and `bytes` for bytes. `effort` is `fast` or `best`.
#[pyfunction]
#[pyo3(signature = (data, kind=None, *, effort="fast"))]
pub(crate) fn pack<'py>(
    py: Python<'py>,
    data: &Bound<'py, PyAny>,
    kind: Option<&str>,
    effort: &str,
) -> PyResult<Bound<'py, PyBytes>> {
    let effort = effort_of(effort)?;
    let (data, own) = match array_bytes(data)? {
        Some((bytes, dtype)) => (bytes, layout(&dtype)),
        None => (bytes(data)?, ValueType::Bytes),
    };
    let kind = match kind {
        None => own,
        Some(name) => ValueType::from_name(name).ok_or_else(|| {
            let names: Vec<_> = ValueType::ALL.iter().map(|kind| kind.name()).collect();
            let names = names.join(", ");
            raise(Error::invalid(format!("kind = {name}: allowed are {names}")))
        })?,
    };
    let data = data.as_bytes();
    let packed = run(py, || Ok(compress_with(data, kind, effort)))?;
    Ok(PyBytes::new(py, &packed))
}

/// What was packed: `bytes`, or with a `dtype` of numpy's a one-dimensional array (a shape is not stored).
///
/// Raises `CorruptionError` or `InsufficientDataError` for every changed, missing or added byte, `VersionError`, and
/// `InvalidArgumentError` if the bytes are no whole number of values.
#[pyfunction]
#[pyo3(signature = (packed, dtype=None))]
pub(crate) fn unpack<'py>(
    py: Python<'py>,
    packed: &Bound<'py, PyAny>,
    dtype: Option<&Bound<'py, PyAny>>,
) -> PyResult<Bound<'py, PyAny>> {
    let packed = bytes(packed)?;
    let frame = packed.as_bytes();
    let data = run(py, || decompress::<u8>(frame))?;
    let Some(dtype) = dtype else { return Ok(PyBytes::new(py, &data).into_any()) };
    let size = py.import("numpy")?.call_method1("dtype", (dtype,))?.getattr("itemsize")?;
    let (size, len) = (size.extract::<usize>()?, data.len());
    if size == 0 || !len.is_multiple_of(size) {
        let message = format!("{len} bytes are no values of {size} bytes each");
        return Err(raise(Error::invalid(message)));
    }
    from_bytes(PyByteArray::new(py, &data).into_any(), dtype)
}

/// Bytes that a packed piece stands for, from what it says itself, once its checksums were compared. Raises as `unpack`.
#[pyfunction]
pub(crate) fn unpacked_size(py: Python<'_>, packed: &Bound<'_, PyAny>) -> PyResult<u64> {
    let packed = bytes(packed)?;
    let frame = packed.as_bytes();
    run(py, || Ok(Frame::open(frame)?.byte_len()))
}

/// Passes on how far the work is, and whether to go on.
fn tell(watch: &Watch) -> impl FnMut(Progress) -> std::ops::ControlFlow<()> + Send {
    move |progress| {
        let Progress { done, total, stored, .. } = progress;
        watch.tell(|| json!({ "event": "bytes", "done": done, "total": total, "stored": stored }));
        watch.go_on()
    }
}

fn open(packed: &Path, base: Option<&Path>) -> tensorpress::Result<PackedFile> {
    let packed = PackedFile::open(packed)?;
    Ok(match base {
        Some(base) => packed.with_base(Base::open(base)?),
        None => packed,
    })
}

/// Packs a file or a folder, safetensors tensor by tensor, into the file `out` (`.tpk`).
///
/// `base` is what it was fine-tuned from: a file, a folder or a packed file; then differences are stored where they are
/// smaller. Returns the report as a dictionary (`files`, `tensors`, `bytes_before`, `bytes_after` ...). `progress` is called
/// with `{"event": "bytes", "done", "total", "stored"}`; where it raises, or Ctrl-C is pressed, nothing is left.
///
/// Raises `ExistsError` if `out` is there and `force` is not set, `FileMissingError` and `IoError`.
#[pyfunction]
#[pyo3(signature = (source, out, *, base=None, effort="fast", force=false, progress=None))]
pub(crate) fn pack_file<'py>(
    py: Python<'py>,
    source: PathBuf,
    out: PathBuf,
    base: Option<PathBuf>,
    effort: &str,
    force: bool,
    progress: Option<Py<PyAny>>,
) -> PyResult<Bound<'py, PyAny>> {
    let effort = effort_of(effort)?;
    let done = watched(py, progress, |watch| {
        let base = base.map(Base::open).transpose()?;
        let mut tell = tell(watch);
        let mut packer =
            Packer::new().with_effort(effort).with_force(force).with_progress(&mut tell);
        if let Some(base) = base {
            packer = packer.with_base(base);
        }
        packer.pack(&source, &out)
    })?;
    report(py, &done)
}

/// Restores what `pack_file` packed, byte for byte, as `out`. Progress and Ctrl-C are those of `pack_file`.
///
/// Raises `ExistsError` if `out` is there and `force` is not set, `CorruptionError` naming the tensor for every changed bit,
/// `MissingBaseError`, `FileMissingError` and `IoError`.
#[pyfunction]
#[pyo3(signature = (packed, out, *, base=None, force=false, progress=None))]
pub(crate) fn unpack_file(
    py: Python<'_>,
    packed: PathBuf,
    out: PathBuf,
    base: Option<PathBuf>,
    force: bool,
    progress: Option<Py<PyAny>>,
) -> PyResult<()> {
    watched(py, progress, |watch| {
        open(&packed, base.as_deref())?.unpack(&out, force, Some(&mut tell(watch)))
    })
}

/// Reads all of a packed file: `{"files", "tensors", "bytes", "damages"}`, the last a list of what is wrong, empty where
/// nothing is. Progress and Ctrl-C are those of `pack_file`.
#[pyfunction]
#[pyo3(signature = (packed, *, base=None, progress=None))]
pub(crate) fn verify_file<'py>(
    py: Python<'py>,
    packed: PathBuf,
    base: Option<PathBuf>,
    progress: Option<Py<PyAny>>,
) -> PyResult<Bound<'py, PyAny>> {
    let found = watched(py, progress, |watch| {
        open(&packed, base.as_deref())?.verify(Some(&mut tell(watch)))
    })?;
    let damages: Vec<String> = found.damages.iter().map(ToString::to_string).collect();
    let (files, tensors, bytes) = (found.files, found.tensors, found.bytes);
    let found = json!({ "files": files, "tensors": tensors, "bytes": bytes, "damages": damages });
    to_python(py, &found)
}
