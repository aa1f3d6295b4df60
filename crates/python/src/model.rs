//! Opened models.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use numpy::ndarray::ArrayD;
use pyo3::prelude::*;
use pyo3::types::{PyByteArray, PyDict};
use serde_json::Value;
use tensorpress::bill::Bill;
use tensorpress::entropy::{Base, PackedFile};
use tensorpress::model::Source;
use tensorpress::tensor::node::{Node, decode};
use tensorpress::tensor::{DType, RawTensor};
use tensorpress::{Error, registry};

use crate::array::{from_bytes, to_numpy};
use crate::error::raise;
use crate::json::to_python;
use crate::layer::Layer;
use crate::work::run;

/// An opened model, made by `open_model`. Weights are mapped, or lie coded in a packed file, until they are asked for:
/// its files must not be changed while it, or a layer of it, is in use.
#[pyclass(frozen, module = "tensorpress")]
pub(crate) struct Model {
    pub(crate) source: Arc<Source>,
}

impl Model {
    fn of(source: Source) -> Self {
        Self { source: Arc::new(source) }
    }

    /// Whether a stored array is one of the parts of a compressed weight.
    fn is_part(&self, name: &str) -> bool {
        let trees = self.source.trees();
        !trees.contains_key(name)
            && name.match_indices('.').any(|(at, _)| trees.contains_key(&name[..at]))
    }

    fn known(&self, name: &str) -> PyResult<()> {
        let source = &self.source;
        let stored = source.checkpoint().contains(name) && !self.is_part(name);
        match stored || source.trees().contains_key(name) {
            true => Ok(()),
            false => Err(raise(Error::invalid("the model has no such tensor").in_tensor(name))),
        }
    }
}

/// A model, or where it lies.
#[derive(FromPyObject)]
pub(crate) enum Given {
    Opened(Py<Model>),
    Path(PathBuf),
}

impl Given {
    /// The opened model.
    pub(crate) fn open(&self) -> tensorpress::Result<Arc<Source>> {
        match self {
            Self::Opened(model) => Ok(model.get().source.clone()),
            Self::Path(path) => Ok(Arc::new(tensorpress::open_model(path)?)),
        }
    }
}

/// Opens a model, compressed or not: a Hugging Face folder, a folder that tensorpress, GPTQ, AWQ, compressed-tensors or
/// bitsandbytes has compressed, a GGUF file, a packed file (`.tpk`), or a safetensors file.
///
/// `base` is what a packed difference differs from. Raises `FileMissingError` and `IoError`, `CorruptionError`,
/// `InsufficientDataError`, `UnsupportedError`, `VersionError`, `MissingBaseError`; each names file and tensor where known.
#[pyfunction]
#[pyo3(signature = (path, *, base=None))]
pub(crate) fn open_model(py: Python<'_>, path: PathBuf, base: Option<PathBuf>) -> PyResult<Model> {
    let open = || match &base {
        None => tensorpress::open_model(&path),
        Some(base) => {
            let packed = PackedFile::open(&path)?.with_base(Base::open(base)?);
            tensorpress::open_packed_model(packed)
        }
    };
    Ok(Model::of(run(py, open)?))
}

#[pymethods]
impl Model {
    /// The small model of children's stories that this package brings along.
    #[staticmethod]
    fn demo(py: Python<'_>) -> PyResult<Self> {
        Ok(Self::of(run(py, || Source::demo(&registry()))?))
    }

    /// `config.json` as it stands.
    #[getter]
    fn config<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        to_python(py, self.source.raw_config())
    }

    /// Names of all tensors, sorted; those of a compressed weight count as one.
    #[getter]
    fn names(&self) -> BTreeList {
        let stored = self.source.checkpoint().names().filter(|name| !self.is_part(name));
        let names = stored.map(str::to_owned).chain(self.source.trees().keys().cloned());
        names.collect()
    }

    /// Names of the compressed matrices, sorted.
    #[getter]
    fn compressed(&self) -> Vec<String> {
        self.source.trees().keys().cloned().collect()
    }

    /// Names of the matrices of the blocks, in the order in which they are computed with.
    #[getter]
    fn linears(&self) -> Vec<String> {
        let blocks = 0..self.source.blocks();
        blocks.flat_map(|block| self.source.linears(block)).map(|spec| spec.name).collect()
    }

    /// Number of transformer blocks.
    #[getter]
    fn blocks(&self) -> usize {
        self.source.blocks()
    }

    /// What a reader of this model should be told about its files.
    #[getter]
    fn notes(&self) -> Vec<String> {
        self.source.notes().to_vec()
    }

    /// 8 x bytes of all parts of the compressed matrices over the number of their weights; of a model without any, the same
    /// of the matrices of its blocks.
    #[getter]
    fn bits_per_weight(&self, py: Python<'_>) -> PyResult<f64> {
        Ok(run(py, || Bill::of(&self.source))?.bits_per_weight)
    }

    /// What the model is made of, to the byte: `storage` (bytes by what they are for), `weights`, `uncompressed_bytes`,
    /// `container_bytes`, `file_bytes`, `bits_per_weight`, and the same for each of `layers`.
    fn bill<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let bill = run(py, || Bill::of(&self.source))?;
        let mut json = serde_json::to_value(&bill).unwrap_or_default();
        flatten(&mut json);
        json["layers"].as_array_mut().into_iter().flatten().for_each(flatten);
        to_python(py, &json)
    }

    /// A matrix as it is stored, compressed or not.
    ///
    /// Raises `InvalidArgumentError` if there is no such tensor, `UnsupportedError` if it is no matrix of floats.
    fn layer(&self, py: Python<'_>, name: &str) -> PyResult<Layer> {
        self.known(name)?;
        Ok(Layer::of(run(py, || self.source.weight(name))?))
    }

    /// The values of a tensor: in the type it is stored in, but of bfloat16 and of compressed weights as float32, which
    /// holds them exactly.
    ///
    /// Raises `InvalidArgumentError` if there is no such tensor, `UnsupportedError` for types that numpy does not know.
    fn tensor<'py>(&self, py: Python<'py>, name: &str) -> PyResult<Bound<'py, PyAny>> {
        self.known(name)?;
        let source = &self.source;
        if source.trees().contains_key(name) {
            let read = || {
                let node: Box<dyn Node> = source.weight(name)?;
                decode(&*node)
            };
            return Ok(to_numpy(py, run(py, read)?));
        }
        let tensor = run(py, || source.checkpoint().tensor(name))?;
        to_array(py, &tensor)
    }

    /// The type a tensor is stored in, as safetensors names it: `F32`, `BF16` ...; `None` for a compressed weight.
    fn dtype(&self, name: &str) -> PyResult<Option<String>> {
        self.known(name)?;
        let checkpoint = self.source.checkpoint();
        let compressed = self.source.trees().contains_key(name);
        Ok(checkpoint.dtype_name(name).filter(|_| !compressed).map(str::to_owned))
    }

    fn __contains__(&self, name: &str) -> bool {
        self.known(name).is_ok()
    }

    fn __repr__(&self) -> String {
        let (source, compressed) = (&self.source, self.source.trees().len());
        let at = source.folder().map_or(String::new(), |at| format!(" {}", at.display()));
        let blocks = source.blocks();
        format!("<tensorpress.Model{at}: {blocks} blocks, {compressed} compressed matrices>")
    }
}

/// Bytes by what they are for, as `Layer.storage` has them.
fn flatten(bill: &mut Value) {
    bill["storage"] = bill["storage"]["items"].take();
}

/// A sorted list.
#[derive(IntoPyObject)]
#[pyo3(transparent)]
pub(crate) struct BTreeList(Vec<String>);

impl FromIterator<String> for BTreeList {
    fn from_iter<I: IntoIterator<Item = String>>(names: I) -> Self {
        let sorted: BTreeSet<String> = names.into_iter().collect();
        Self(sorted.into_iter().collect())
    }
}

/// A stored tensor as an array of numpy's.
fn to_array<'py>(py: Python<'py>, tensor: &RawTensor) -> PyResult<Bound<'py, PyAny>> {
    use tensorpress::tensor::Tensor;
    let shape = tensor.shape().to_vec();
    let dtype = match tensor.dtype() {
        DType::BF16 => {
            let values = run(py, || tensor.to_matrix())?.into_raw_vec_and_offset().0;
            let values = ArrayD::from_shape_vec(shape, values);
            let values = values.map_err(|e| raise(Error::shape(e.to_string())))?;
            return Ok(to_numpy(py, values));
        }
        DType::F64 => "float64",
        DType::F32 => "float32",
        DType::F16 => "float16",
        DType::I64 => "int64",
        DType::I32 => "int32",
        DType::I16 => "int16",
        DType::I8 => "int8",
        DType::U64 => "uint64",
        DType::U32 => "uint32",
        DType::U16 => "uint16",
        DType::U8 => "uint8",
        DType::BOOL => "bool",
        other => {
            let message = format!("numpy has no type for {}", other.name());
            return Err(raise(Error::unsupported(message)));
        }
    };
    let bytes = PyByteArray::new(py, tensor.bytes());
    let dtype = pyo3::types::PyString::new(py, dtype);
    from_bytes(bytes.into_any(), dtype.as_any())?.call_method1("reshape", (shape,))
}

/// The texts that the demo model brings along: `{"calibration": ..., "held_out": [...]}`.
#[pyfunction]
pub(crate) fn demo_texts(py: Python<'_>) -> PyResult<Bound<'_, PyDict>> {
    use tensorpress::model::{embedded, text};
    let corpus = run(py, || text::Corpus::from_text(embedded::HELD_OUT, "held_out".as_ref()))?;
    let held_out = corpus.documents().iter().filter_map(|text| Some(text.text()?.into_owned()));
    let dict = PyDict::new(py);
    dict.set_item("calibration", embedded::CALIBRATION)?;
    dict.set_item("held_out", held_out.collect::<Vec<_>>())?;
    Ok(dict)
}
