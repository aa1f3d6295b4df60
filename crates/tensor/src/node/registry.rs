//! Reading trees back: wire ids to readers.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{
    AdditiveFormat, AffineFormat, BitshiftFormat, BlockDiagonal, Composed, Dense, Format, Hadamard,
    Index, Json, KeptPlane, KnownLevels, KnownVectors, Leaf, LevelFormat, Map, Mask, MaskForm,
    Masked, NestedFormat, Node, PackedPlane, Plane, PrefixedPlane, Product, PyramidFormat,
    Rotation, RoundedInputs, Scale, Signed, SplitFloats, Stacked, StepFormat, Sum, TensorTrain,
    Transformed, form, join,
};
use crate::bytes::Bytes;
use crate::dtype::DType;
use crate::error::{Context, Error, Result};
use crate::source::{RawTensor, Tensor};
use crate::stage::{Stages, WeightPart};

/// Where parts are read from: a file, or a map in memory.
pub trait PartSource {
    /// The part with this full name.
    ///
    /// # Errors
    /// `InsufficientData` if there is none.
    fn part(&self, name: &str) -> Result<RawTensor>;
}

impl PartSource for BTreeMap<String, RawTensor> {
    fn part(&self, name: &str) -> Result<RawTensor> {
        self.get(name).cloned().ok_or_else(|| Error::insufficient("missing part").in_tensor(name))
    }
}

type ReadNode = fn(&NodeReader<'_>, &Json, &str) -> Result<Box<dyn Node>>;
type ReadPlane = fn(&NodeReader<'_>, &Json, &str) -> Result<Box<dyn Plane>>;
type ReadMaskForm = fn(&Json) -> Result<Arc<dyn MaskForm>>;
type ReadMap = fn(&NodeReader<'_>, &Json, &str) -> Result<Arc<dyn Map>>;

/// Readers by wire id. An id names a wire layout and is never reused.
#[derive(Debug, Clone)]
pub struct Registry {
    stages: Stages<WeightPart>,
    nodes: BTreeMap<&'static str, ReadNode>,
    planes: BTreeMap<&'static str, ReadPlane>,
    maps: BTreeMap<&'static str, ReadMap>,
    mask_forms: BTreeMap<&'static str, ReadMaskForm>,
}

impl Default for Registry {
    /// The nodes, planes, maps and forms of masks of this crate.
    fn default() -> Self {
        let nodes: [(_, ReadNode); 24] = [
            ("dense.v1", Dense::read_from),
            ("split_floats.v1", SplitFloats::read_from),
            ("sum.v1", Sum::read_from),
            ("stacked.v1", Stacked::read_from),
            ("product.v1", Product::read_from),
            ("block_diagonal.v1", BlockDiagonal::read_from),
            ("tensor_train.v1", TensorTrain::read_from),
            (AffineFormat::ID, Leaf::<AffineFormat>::read_from),
            (AffineFormat::REAL, Leaf::<AffineFormat>::read_from),
            (LevelFormat::ID, Leaf::<LevelFormat>::read_from),
            (LevelFormat::TABLES, Leaf::<LevelFormat>::read_from),
            (LevelFormat::OF_BLOCKS, Leaf::<LevelFormat>::read_from),
            (PyramidFormat::ID, Leaf::<PyramidFormat>::read_from),
            (StepFormat::ID, Leaf::<StepFormat>::read_from),
            (AdditiveFormat::ID, Leaf::<AdditiveFormat>::read_from),
            (BitshiftFormat::ID, Leaf::<BitshiftFormat>::read_from),
            (NestedFormat::ID, Leaf::<NestedFormat>::read_from),
            ("known_levels.v1", KnownLevels::read_from),
            ("known_vectors.v1", KnownVectors::read_from),
            ("signed.v1", Signed::read_from),
            ("masked.v1", Masked::read_from),
            ("masked.v2", Masked::read_v2),
            ("transformed.v1", Transformed::read_from),
            ("rounded_inputs.v1", RoundedInputs::read_from),
        ];
        let planes: [(_, ReadPlane); 3] = [
            ("packed.v1", PackedPlane::read_from),
            ("kept.v1", KeptPlane::read_from),
            ("prefixed.v1", PrefixedPlane::read_from),
        ];
        let maps: [(_, ReadMap); 6] = [
            ("scale", Scale::read_from),
            ("index", Index::read_from),
            ("hadamard", Hadamard::read_from),
            ("rotation", Rotation::read_first),
            ("rotation.v2", Rotation::read_from),
            ("composed", Composed::read_from),
        ];
        let mask_forms: [(_, ReadMaskForm); 4] = [
            ("bitmap", form::Bitmap::read_from),
            ("n_of_m", form::NOfM::read_from),
            ("blocks", form::Blocks::read_from),
            ("gaps", form::Gaps::read_from),
        ];
        Self {
            stages: Stages::default(),
            nodes: nodes.into(),
            planes: planes.into(),
            maps: maps.into(),
            mask_forms: mask_forms.into(),
        }
    }
}

fn add<T>(
    readers: &mut BTreeMap<&'static str, T>,
    kind: &str,
    id: &'static str,
    read: T,
) -> Result<()> {
    if readers.contains_key(id) {
        return Err(Error::invalid(format!("{kind} id `{id}`: the id is taken")));
    }
    readers.insert(id, read);
    Ok(())
}

impl Registry {
    /// Adds a reader of nodes.
    ///
    /// # Errors
    /// `InvalidArgument` if the id is taken: ids are never reused.
    pub fn add_node(&mut self, id: &'static str, read: ReadNode) -> Result<()> {
        add(&mut self.nodes, "node", id, read)
    }

    /// Adds a reader of planes.
    ///
    /// # Errors
    /// `InvalidArgument` if the id is taken.
    pub fn add_plane(&mut self, id: &'static str, read: ReadPlane) -> Result<()> {
        add(&mut self.planes, "plane", id, read)
    }

    /// The stages of recipes for weights.
    #[must_use]
    pub fn stages(&self) -> &Stages<WeightPart> {
        &self.stages
    }

    /// The stages of recipes for weights, to add to.
    pub fn stages_mut(&mut self) -> &mut Stages<WeightPart> {
        &mut self.stages
    }

    /// Adds a reader of maps.
    ///
    /// # Errors
    /// `InvalidArgument` if the kind is taken.
    pub fn add_map(&mut self, kind: &'static str, read: ReadMap) -> Result<()> {
        add(&mut self.maps, "map", kind, read)
    }

    /// Adds a reader of a form of masks.
    ///
    /// # Errors
    /// `InvalidArgument` if the name is taken.
    pub fn add_mask_form(&mut self, form: &'static str, read: ReadMaskForm) -> Result<()> {
        add(&mut self.mask_forms, "form of masks", form, read)
    }

    /// Reads the tree `json` whose parts are named `prefix...` in `source`.
    ///
    /// # Errors
    /// `Version` for unknown wire ids, `Corruption` or `InsufficientData` for descriptions and parts that
    /// contradict each other, each naming the tensor.
    pub fn read(
        &self,
        json: &Json,
        prefix: &str,
        source: &dyn PartSource,
    ) -> Result<Box<dyn Node>> {
        let reader = NodeReader { registry: self, source, mask: None, depth: 0 };
        reader.node(json, prefix).in_tensor(prefix)
    }
}

/// Deeper trees than this are taken for hostile.
const MAX_DEPTH: usize = 32;

/// What a node's reader has at hand.
#[derive(Clone)]
pub struct NodeReader<'a> {
    registry: &'a Registry,
    source: &'a dyn PartSource,
    mask: Option<Arc<Mask>>,
    depth: usize,
}

impl NodeReader<'_> {
    fn deeper(&self) -> Result<Self> {
        if self.depth >= MAX_DEPTH {
            return Err(Error::corruption(format!("tree deeper than {MAX_DEPTH}")));
        }
        Ok(Self { depth: self.depth + 1, ..self.clone() })
    }

    /// Reads a node from its description.
    ///
    /// # Errors
    /// As [`Registry::read`].
    pub fn node(&self, json: &Json, prefix: &str) -> Result<Box<dyn Node>> {
        let id = field::<String>(json, "node")?;
        let read = self
            .registry
            .nodes
            .get(id.as_str())
            .ok_or_else(|| Error::version(format!("unknown node `{id}`")))?;
        read(&self.deeper()?, json, prefix)
    }

    /// Reads the child described under `key`, its parts under `prefix.key`.
    ///
    /// # Errors
    /// As [`Registry::read`].
    pub fn child(&self, json: &Json, key: &str, prefix: &str) -> Result<Box<dyn Node>> {
        self.node(required(json, key)?, &join(prefix, key))
    }

    /// Reads the plane described under `key`, its parts named `prefix`.
    ///
    /// # Errors
    /// As [`Registry::read`].
    pub fn plane(&self, json: &Json, key: &str, prefix: &str) -> Result<Box<dyn Plane>> {
        let json = required(json, key)?;
        let id = field::<String>(json, "plane")?;
        let read = self
            .registry
            .planes
            .get(id.as_str())
            .ok_or_else(|| Error::version(format!("unknown plane `{id}`")))?;
        read(&self.deeper()?, json, prefix)
    }

    /// Reads the map described by `json`, its parts named `prefix...`.
    ///
    /// # Errors
    /// As [`Registry::read`].
    pub fn map(&self, json: &Json, prefix: &str) -> Result<Arc<dyn Map>> {
        let kind = field::<String>(json, "kind")?;
        let read = self
            .registry
            .maps
            .get(kind.as_str())
            .ok_or_else(|| Error::version(format!("unknown map `{kind}`")))?;
        read(&self.deeper()?, json, prefix)
    }

    /// The form of a mask from its description.
    ///
    /// # Errors
    /// As [`Registry::read`].
    pub fn mask_form(&self, json: &Json) -> Result<Arc<dyn MaskForm>> {
        let form = field::<String>(json, "form")?;
        let read = self.registry.mask_forms.get(form.as_str());
        read.ok_or_else(|| Error::version(format!("unknown form `{form}` of a mask")))?(json)
    }

    /// A part as a tensor.
    ///
    /// # Errors
    /// `InsufficientData` if it is missing.
    pub fn part(&self, name: &str) -> Result<RawTensor> {
        self.source.part(name)
    }

    /// The bytes of a part that must have type `dtype`.
    ///
    /// # Errors
    /// `InsufficientData` if it is missing, `Corruption` if it has another type.
    pub fn bytes(&self, name: &str, dtype: DType) -> Result<Bytes> {
        let part = self.part(name)?;
        if part.dtype() != dtype {
            return Err(Error::corruption(format!(
                "part is {:?}, expected {dtype:?}",
                part.dtype()
            ))
            .in_tensor(name));
        }
        Ok(part.bytes().clone())
    }

    /// The support that encloses what is being read.
    #[must_use]
    pub fn mask(&self) -> Option<&Arc<Mask>> {
        self.mask.as_ref()
    }

    /// A reader for what no support restricts, such as the scales of a leaf.
    #[must_use]
    pub fn unmasked(&self) -> Self {
        Self { mask: None, ..self.clone() }
    }

    /// A reader for what lies under `mask`.
    #[must_use]
    pub fn under(&self, mask: Arc<Mask>) -> Self {
        Self { mask: Some(mask), ..self.clone() }
    }
}

fn required<'a>(json: &'a Json, key: &str) -> Result<&'a Json> {
    json.get(key).ok_or_else(|| Error::corruption(format!("description lacks `{key}`")))
}

/// A typed field of a description.
///
/// # Errors
/// `Corruption` if it is missing or of another type.
pub fn field<T: serde::de::DeserializeOwned>(json: &Json, key: &str) -> Result<T> {
    let value = required(json, key)?;
    serde_json::from_value(value.clone())
        .map_err(|e| Error::corruption(format!("description's `{key}` = {value}: {e}")))
}

/// A declared matrix shape. Sizes that no bytes can back (an empty matrix with a huge side) are refused here,
/// all others by comparing with the parts' lengths.
///
/// # Errors
/// `Corruption`.
pub fn shape_field(json: &Json) -> Result<[usize; 2]> {
    let shape = field::<[usize; 2]>(json, "shape")?;
    let values = shape[0].checked_mul(shape[1]);
    if values.is_none() || (values == Some(0) && shape[0].max(shape[1]) > 1 << 16) {
        return Err(Error::corruption(format!("declared shape {shape:?}")));
    }
    Ok(shape)
}
