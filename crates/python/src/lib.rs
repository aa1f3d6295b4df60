//! The Python package `tensorpress`: its native module, `tensorpress._native`.
//!
//! A layer is one compressed matrix (`layer`), a model what `tensorpress.open_model` opened (`model`); `jobs` work on
//! whole models, `kv` and `page` on keys and values, `lossless` on bytes and files, `tokens` on states. Arrays come
//! and go through `array`, errors through `error`, and all work is done by `work`, without the interpreter's lock.
//! There is no state but that of these objects.

mod array;
mod error;
mod jobs;
mod json;
mod kv;
mod layer;
mod lossless;
mod model;
mod page;
mod text;
mod tokens;
mod work;

/// What `tensorpress/__init__.py` gives names to.
#[pyo3::pymodule]
mod _native {
    use pyo3::prelude::*;

    #[pymodule_export]
    use crate::jobs::{compress_model, convert, evaluate};
    #[pymodule_export]
    use crate::kv::KvCache;
    #[pymodule_export]
    use crate::layer::{Layer, compress, restore_layer};
    #[pymodule_export]
    use crate::lossless::{pack, pack_file, unpack, unpack_file, unpacked_size, verify_file};
    #[pymodule_export]
    use crate::model::{Model, demo_texts, open_model};
    #[pymodule_export]
    use crate::page::PageCodec;
    #[pymodule_export]
    use crate::tokens::{TokenMap, divprune, tome};

    /// Panics, in builds for tests: what is caught must be seen to be.
    #[cfg(debug_assertions)]
    #[pyfunction]
    fn _panic(py: Python<'_>, threaded: bool) -> PyResult<()> {
        match threaded {
            true => crate::work::watched(py, None, |_| panic!("on purpose")),
            false => crate::work::run(py, || panic!("on purpose")),
        }
    }

    #[pymodule_init]
    fn init(module: &Bound<'_, PyModule>) -> PyResult<()> {
        module.add("__version__", env!("CARGO_PKG_VERSION"))
    }
}
