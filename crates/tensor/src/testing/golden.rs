//! Vectors made by official implementations: files, and the layers they belong to.

use std::collections::BTreeMap;
use std::path::Path;

use ndarray::{Array2, ArrayView2};

use super::data;
use crate::checkpoint::Checkpoint;
use crate::dtype::DType;
use crate::source::{RawTensor, Tensor};

/// One golden file with the layer it belongs to.
#[derive(Debug)]
pub struct Golden {
    /// The file's name without extension.
    pub name: String,
    /// Its tensors and metadata.
    pub file: Checkpoint,
    /// The weights and inputs it was made from.
    pub layer: Layer,
}

/// A real layer.
#[derive(Debug, Clone)]
pub struct Layer {
    /// W, `[out, in]`.
    pub weight: Array2<f32>,
    /// X, `[tokens, in]`.
    pub x: Array2<f32>,
    /// XᵀX, summed in f64 and rounded once.
    pub gram: Array2<f32>,
}

impl Layer {
    /// Reads `layer_<name>.safetensors`.
    ///
    /// # Panics
    /// If it is not what its page says.
    #[must_use]
    pub fn read(folder: &Path, name: &str) -> Self {
        let path = folder.join(format!("layer_{name}.safetensors"));
        let file = Checkpoint::open(path).expect("a layer");
        let matrix = |name: &str| {
            let tensor = file.tensor(name).expect("a tensor of the layer");
            tensor.to_matrix().expect("a matrix of floats")
        };
        let x = matrix("X");
        let gram = if file.contains("H") { matrix("H") } else { exact_gram(x.view()) };
        Self { weight: matrix("W"), x, gram }
    }

    /// ||X (W - Q)ᵀ|| / ||X Wᵀ|| in f64.
    #[must_use]
    pub fn output_error(&self, quantised: ArrayView2<'_, f32>) -> f64 {
        let x = self.x.mapv(f64::from);
        let w = self.weight.mapv(f64::from);
        let d = &w - &quantised.mapv(f64::from);
        let norm = |m: &Array2<f64>| m.iter().map(|v| v * v).sum::<f64>().sqrt();
        norm(&x.dot(&d.t())) / norm(&x.dot(&w.t()))
    }
}

fn exact_gram(x: ArrayView2<'_, f32>) -> Array2<f32> {
    let x = x.mapv(f64::from);
    x.t().dot(&x).mapv(|v| v as f32)
}

impl Golden {
    /// All files of a method, if the vectors are there.
    ///
    /// # Panics
    /// If a file is not what its page says.
    #[must_use]
    pub fn all(method: &str) -> Option<Vec<Self>> {
        let files = data::golden_weights(method)?;
        let read = |path: &std::path::PathBuf| {
            let file = Checkpoint::open(path).expect("a golden file");
            let name = path.file_stem().expect("a name").to_string_lossy().into_owned();
            let layer = file.metadata().next().expect("one file")["layer"].clone();
            let folder = path.parent().expect("a folder");
            Self { name, layer: Layer::read(folder, &layer), file }
        };
        Some(files.iter().map(read).collect())
    }

    /// Metadata of the file.
    ///
    /// # Panics
    /// If there is none.
    #[must_use]
    pub fn meta(&self) -> &BTreeMap<String, String> {
        self.file.metadata().next().expect("one file")
    }

    /// A figure of the metadata.
    ///
    /// # Panics
    /// If it is no number.
    #[must_use]
    pub fn figure(&self, key: &str) -> Option<f64> {
        self.meta().get(key).map(|v| v.parse().expect("a number"))
    }

    /// A parameter the official code ran with; null if it is not there.
    ///
    /// # Panics
    /// If the parameters are no JSON.
    #[must_use]
    pub fn param(&self, key: &str) -> serde_json::Value {
        // As Python writes JSON; null stands in for what JSON lacks.
        let params = self.meta()["params"].replace("Infinity", "null");
        let params: serde_json::Value = serde_json::from_str(&params).expect("JSON");
        params.get(key).cloned().unwrap_or(serde_json::Value::Null)
    }

    /// A parameter that is true or false.
    #[must_use]
    pub fn flag(&self, key: &str) -> bool {
        self.param(key).as_bool().unwrap_or(false)
    }

    /// A tensor of floats or integers as f32.
    ///
    /// # Panics
    /// If it is not there.
    #[must_use]
    pub fn floats(&self, name: &str) -> Array2<f32> {
        let tensor = self.file.tensor(name).expect("a tensor of the file");
        if tensor.dtype().is_float() {
            tensor.to_matrix().expect("a matrix of floats")
        } else {
            ints(&tensor)
        }
    }
}

fn ints(tensor: &RawTensor) -> Array2<f32> {
    let [rows, cols] = tensor.matrix_shape();
    let bytes = tensor.bytes();
    let values = match tensor.dtype() {
        DType::I8 => bytes.iter().map(|b| f32::from(*b as i8)).collect(),
        DType::U8 => bytes.iter().map(|b| f32::from(*b)).collect(),
        DType::I32 => bytes.as_chunks().0.iter().map(|b| i32::from_le_bytes(*b) as f32).collect(),
        other => panic!("{other:?} in a golden file"),
    };
    Array2::from_shape_vec((rows, cols), values).expect("as many as the shape says")
}
