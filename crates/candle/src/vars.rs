//! Any model as a source of decoded tensors.

use std::borrow::Borrow;
use std::collections::BTreeMap;
use std::sync::OnceLock;

use candle_core::{DType, Device, Error, Result, Shape, Tensor};
use candle_nn::var_builder::SimpleBackend;
use candle_nn::{Init, VarBuilder};
use tensorpress_model::Source;
use tensorpress_tensor::linalg::Par;
use tensorpress_tensor::ndarray::{ArrayViewMut2, Axis};
use tensorpress_tensor::rewrite::LinearSpec;
use tensorpress_tensor::{Accum, Node, Scratch};

use crate::error::{message, wrapped};
use crate::load::{self, stored_name};
use crate::workspace::claim;

/// The tensors of a model, decoded when they are asked for, in `dtype` and on `device`: the models of candle load from it.
/// `source` may be borrowed, owned or shared.
///
/// Names and shapes are those of the Hugging Face folder, also where the model is a GGUF file, and where compression stored
/// layers of a stack one by one. What shares its memory with another tensor has both names, if the file says so; a head
/// that is tied by the configuration alone has none of its own. A bias that compression added is there, but a model that
/// does not expect one does not ask for it: [`crate::Linear::load`] does.
///
/// A compressed matrix is decoded to the bits that [`tensorpress_tensor::node::decode`] gives, by the threads of the
/// current rayon pool, and then rounded to `dtype` if that is narrower than f32; a tensor that is not compressed is read as
/// it is. Errors are `CannotFindTensor`, `UnexpectedShape`, and those of tensorpress, which name tensor and file.
///
/// ```
/// use candle_core::{DType, Device};
/// use tensorpress_candle::var_builder;
/// use tensorpress_model::Source;
/// use tensorpress_tensor::Registry;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let source = Source::demo(&Registry::default())?;
/// let vars = var_builder(&source, DType::F16, &Device::Cpu).pp("model");
/// assert_eq!(vars.get((1024, 128), "embed_tokens.weight")?.dtype(), DType::F16);
/// assert!(vars.get((128, 1024), "embed_tokens.weight").is_err());
/// assert!(!vars.contains_tensor("norm.bias"));
/// # Ok(())
/// # }
/// ```
pub fn var_builder<'a>(
    source: impl Borrow<Source> + Send + Sync + 'a,
    dtype: DType,
    device: &Device,
) -> VarBuilder<'a> {
    let elsewhere = elsewhere(source.borrow());
    VarBuilder::from_backend(Box::new(Vars { source, elsewhere }), dtype, device.clone())
}

struct Vars<S> {
    source: S,
    /// Layers that compression stores under names of their own, by the tensor that they are parts of.
    elsewhere: BTreeMap<String, Vec<LinearSpec>>,
}

/// Where a tensor comes from.
enum Found<'a> {
    /// It is a compressed matrix.
    Node(&'a str),
    /// It is stored.
    Stored(&'a str),
    /// It is made of these layers, or, if so it is said, of their biases.
    Parts(&'a [LinearSpec], bool),
}

fn elsewhere(source: &Source) -> BTreeMap<String, Vec<LinearSpec>> {
    let mut all: BTreeMap<String, Vec<LinearSpec>> = BTreeMap::new();
    for spec in (0..source.blocks()).flat_map(|block| source.linears(block)) {
        let Some(place) = &spec.place else { continue };
        for name in place.bias.iter().chain([&place.tensor]) {
            all.entry(name.clone()).or_default().push(spec.clone());
        }
    }
    all
}

impl<S: Borrow<Source> + Send + Sync> Vars<S> {
    fn find<'a>(&'a self, name: &'a str) -> Option<Found<'a>> {
        let source = self.source.borrow();
        let parts = self.elsewhere.get(name).map(Vec::as_slice).unwrap_or_default();
        let is_bias = parts.iter().any(|spec| in_bias(spec, name));
        if let Some(stored) = stored_name(source, name) {
            // Turned as it was before.
            let turned = !parts.is_empty() && source.trees().contains_key(stored);
            return Some(match source.trees().contains_key(stored) {
                _ if turned => Found::Parts(parts, is_bias),
                true => Found::Node(stored),
                false => Found::Stored(stored),
            });
        }
        let there = |spec: &LinearSpec| match is_bias {
            true => source.checkpoint().contains(&spec.bias),
            false => stored_name(source, &spec.name).is_some(),
        };
        (!parts.is_empty() && parts.iter().all(there)).then_some(Found::Parts(parts, is_bias))
    }

    fn read(
        &self,
        name: &str,
        shape: Option<&Shape>,
        dtype: DType,
        device: &Device,
    ) -> Result<Tensor> {
        let source = self.source.borrow();
        let check = |stored: &[usize]| match shape.filter(|shape| shape.dims() != stored) {
            None => Ok(()),
            Some(asked) => {
                let msg = format!("tensor `{name}` is {stored:?}, asked for as {:?}", asked.dims());
                let (expected, got) = (asked.clone(), stored.into());
                Err(Error::UnexpectedShape { msg, expected, got }.bt())
            }
        };
        match self.find(name) {
            None => {
                // An index may claim it: which file it should be in is said then.
                if source.checkpoint().missing().any(|missing| missing == name) {
                    source.checkpoint().bytes(name).map_err(wrapped)?;
                }
                Err(Error::CannotFindTensor { path: name.to_owned() }.bt())
            }
            Some(Found::Node(stored)) => {
                let node = source.weight(stored).map_err(wrapped)?;
                check(&node.shape())?;
                matrix(&*node, stored)?.to_dtype(dtype)?.to_device(device)
            }
            Some(Found::Stored(stored)) => {
                let shape = source.checkpoint().shape(stored).unwrap_or_default();
                check(shape)?;
                read_stored(source, stored, shape)?.to_dtype(dtype)?.to_device(device)
            }
            Some(Found::Parts(specs, is_bias)) => {
                let whole = assembled(source, specs, is_bias, dtype)?;
                check(whole.dims())?;
                whole.to_device(device)
            }
        }
    }
}

impl<S: Borrow<Source> + Send + Sync> SimpleBackend for Vars<S> {
    fn get(&self, s: Shape, name: &str, _: Init, dtype: DType, dev: &Device) -> Result<Tensor> {
        self.read(name, Some(&s), dtype, dev)
    }

    fn get_unchecked(&self, name: &str, dtype: DType, dev: &Device) -> Result<Tensor> {
        self.read(name, None, dtype, dev)
    }

    fn contains_tensor(&self, name: &str) -> bool {
        self.find(name).is_some()
    }
}

/// Whether a tensor is made of the biases of layers like this one.
fn in_bias(spec: &LinearSpec, name: &str) -> bool {
    spec.place.as_ref().is_some_and(|place| place.bias.as_deref() == Some(name))
}

/// All values of a node, on the threads of the pool.
fn matrix(node: &dyn Node, name: &str) -> Result<Tensor> {
    let [out, inp] = node.shape();
    // A product of thin factors may claim any size.
    let too_large = || message(format!("tensor `{name}`: {out} x {inp} values are too many"));
    let mut values = Vec::new();
    let whole = claim(&mut values, out.checked_mul(inp).ok_or_else(too_large)?);
    let mut whole = ArrayViewMut2::from_shape((out, inp), whole?).map_err(Error::wrap)?;
    // One part a thread: what a node decodes anew for every part is never done more often than there are threads for it.
    let step = out.div_ceil(Par::Rayon.threads()).max(1);
    let failed = OnceLock::new();
    Par::Rayon.for_each(whole.axis_chunks_iter_mut(Axis(0), step).enumerate(), |(part, rows)| {
        let range = part * step..part * step + rows.nrows();
        if let Err(error) = node.decode_rows(range, rows, Accum::Replace, &mut Scratch::default()) {
            let _ = failed.set(error);
        }
    });
    if let Some(error) = failed.into_inner() {
        return Err(wrapped(error.in_tensor(name)));
    }
    Tensor::from_vec(values, (out, inp), &Device::Cpu)
}

/// A tensor in its own type.
fn read_stored(source: &Source, name: &str, shape: &[usize]) -> Result<Tensor> {
    let checkpoint = source.checkpoint();
    let stored = checkpoint.dtype_name(name).unwrap_or_default();
    let dtype = match stored {
        "F64" => DType::F64,
        "F32" => DType::F32,
        "F16" => DType::F16,
        "BF16" => DType::BF16,
        "F8_E4M3" => DType::F8E4M3,
        "I64" => DType::I64,
        "I32" => DType::I32,
        "I16" => DType::I16,
        "U32" => DType::U32,
        "U8" | "BOOL" => DType::U8,
        other => {
            let message = format!("candle has no elements of {other}");
            let error = tensorpress_tensor::Error::unsupported(message).in_tensor(name);
            let file = checkpoint.file_of(name);
            return Err(wrapped(match file {
                Some(file) => error.in_file(file),
                None => error,
            }));
        }
    };
    let bytes = checkpoint.bytes(name).map_err(wrapped)?;
    Tensor::from_raw_buffer(&bytes, dtype, shape, &Device::Cpu)
}

/// A stack of layers that are stored one by one, or one that was turned: as it was before.
fn assembled(source: &Source, specs: &[LinearSpec], is_bias: bool, dtype: DType) -> Result<Tensor> {
    let mut parts = BTreeMap::new();
    for spec in specs {
        let (place, name) = (spec.place.as_ref(), &spec.name);
        let part = if is_bias {
            let bias = source.stored_bias(spec).map_err(wrapped)?;
            let (_, values) = bias.ok_or_else(|| Error::CannotFindTensor { path: name.clone() })?;
            Tensor::from_vec(values, spec.shape[0], &Device::Cpu)?
        } else {
            let (node, _) = load::layer(source, name).map_err(wrapped)?;
            matrix(&*node, name)?
        };
        let turned = place.is_some_and(|place| place.transposed) && !is_bias;
        let part = if turned { part.t()?.contiguous()? } else { part };
        parts.insert(place.and_then(|place| place.index), part.to_dtype(dtype)?);
    }
    if let Some(whole) = parts.remove(&None) {
        return Ok(whole);
    }
    let parts: Vec<Tensor> = parts.into_values().collect();
    Tensor::stack(&parts, 0)
}
