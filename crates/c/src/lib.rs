//! The C interface of tensorpress: compressed models, layers, caches and lossless bytes for inference engines.
//!
//! `include/tensorpress.h` is made of these modules and says everything a caller needs; README.md says how to link.
//!
//! - [`context`]: what owns handles and threads, and what a handle is.
//! - [`status`]: how every call ends.
//! - [`numbers`]: the types of numbers.
//! - [`model`], [`layer`], [`multiply`], [`compress`]: models, compressed matrices, products with them, new ones.
//! - [`kv`], [`page`]: keys and values, attended to where they lie compressed, or as bytes of declared size.
//! - [`bytes`]: numbers and files made smaller without losing a bit.
//!
//! Unsafe code stands in `memory`, which makes slices of what callers point to, and where functions call it.
#![allow(non_camel_case_types)] // the names are C's

pub mod bytes;
pub mod compress;
pub mod context;
pub mod kv;
pub mod layer;
mod memory;
pub mod model;
pub mod multiply;
pub mod numbers;
pub mod page;
pub mod status;
mod table;
