//! Forms of this crate that are packed rows behind an exact window: what they share, and their table.

use std::fmt::Debug;
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tensorpress_tensor::node::{Json, PartSource};
use tensorpress_tensor::stage::{Knobs, Row};
use tensorpress_tensor::{DType, Error, Result};

use super::coded::{Code, Coded};
use super::int::Role;
use super::rows::Rows;
use super::windowed::{PackedRows, Windowed};
use super::{Form, StoreForm};
use crate::budget::LayerAt;
use crate::registry::KvRegistry;
use crate::stage::{KvPart, KvRole};

/// Role, head and channels of rows.
pub(crate) type Place = (Role, usize, usize);

/// A form whose rows are packed and have an exact window behind them.
pub(crate) trait PackedForm:
    Debug + Clone + Send + Sync + Serialize + DeserializeOwned + 'static
{
    /// Its name in recipes and descriptions.
    const ID: &'static str;
    type Packed: PackedRows;

    /// Whether rows of so many channels can be.
    fn check(&self, role: Role, dim: usize) -> Result<()>;

    /// The largest magnitude that can be held.
    fn limit(&self) -> f32;

    /// Newest tokens that are exact, and that can be taken back exactly.
    fn windows(&self) -> [usize; 2];

    /// Keys are better held before rotary embedding.
    fn plain_keys(&self) -> bool {
        false
    }

    /// Keys can be added up where they lie.
    fn mixes_keys(&self) -> bool {
        true
    }

    /// What was learnt beforehand for a layer is chosen.
    fn at(&self, _layer: LayerAt) -> Option<Self> {
        None
    }

    fn packed(&self, place: Place) -> Self::Packed;

    fn read(
        &self,
        place: Place,
        json: &Json,
        prefix: &str,
        source: &dyn PartSource,
    ) -> Result<Self::Packed>;
}

/// A form whose rows are those of a [`Code`]; the rest as [`PackedForm`] has it.
pub(crate) trait CodedForm:
    Debug + Clone + Send + Sync + Serialize + DeserializeOwned + 'static
{
    const ID: &'static str;
    type Code: Code;

    fn check(&self, role: Role, dim: usize) -> Result<()>;

    fn limit(&self) -> f32;

    fn windows(&self) -> [usize; 2];

    fn plain_keys(&self) -> bool {
        false
    }

    fn at(&self, _layer: LayerAt) -> Option<Self> {
        None
    }

    /// What packs the rows.
    fn code(&self, place: Place) -> Self::Code;
}

impl<F: CodedForm> PackedForm for F {
    const ID: &'static str = <F as CodedForm>::ID;
    type Packed = Coded<F::Code>;

    fn check(&self, role: Role, dim: usize) -> Result<()> {
        CodedForm::check(self, role, dim)
    }

    fn limit(&self) -> f32 {
        CodedForm::limit(self)
    }

    fn windows(&self) -> [usize; 2] {
        CodedForm::windows(self)
    }

    fn plain_keys(&self) -> bool {
        CodedForm::plain_keys(self)
    }

    fn at(&self, layer: LayerAt) -> Option<Self> {
        CodedForm::at(self, layer)
    }

    fn packed(&self, place: Place) -> Self::Packed {
        Coded::new(self.code(place))
    }

    fn read(
        &self,
        place: Place,
        json: &Json,
        prefix: &str,
        source: &dyn PartSource,
    ) -> Result<Self::Packed> {
        Coded::read(json, self.code(place), prefix, source)
    }
}

/// What every form with an exact window has: how that is set, and the way to a [`StoreForm`].
macro_rules! exact_tail {
    ($form:ty) => {
        impl $form {
            /// Sets how many of the newest tokens are exact.
            #[must_use]
            pub fn with_window(mut self, tokens: usize) -> Self {
                self.window = tokens;
                self
            }

            /// Sets how many of the newest tokens can be taken back exactly.
            #[must_use]
            pub fn with_margin(mut self, tokens: usize) -> Self {
                self.margin = tokens;
                self
            }
        }

        impl From<$form> for $crate::store::StoreForm {
            fn from(own: $form) -> Self {
                $crate::store::own::form(own)
            }
        }
    };
}
pub(crate) use exact_tail;

/// A [`PackedForm`] as a [`Form`].
#[derive(Debug)]
pub(crate) struct Shelf<F>(pub(crate) F);

impl<F: PackedForm> Shelf<F> {
    fn empty(&self, place: Place) -> Windowed<F::Packed> {
        let [window, margin] = self.0.windows();
        Windowed::new(self.0.packed(place), window, margin)
    }
}

impl<F: PackedForm> Form for Shelf<F> {
    fn id(&self) -> &'static str {
        F::ID
    }

    fn describe(&self) -> Json {
        let mut json = serde_json::to_value(&self.0).unwrap_or_default();
        json["id"] = F::ID.into();
        json
    }

    fn check(&self, keys: usize, values: usize) -> Result<()> {
        self.0.check(Role::Keys, keys)?;
        self.0.check(Role::Values, values)
    }

    fn limit(&self) -> f32 {
        self.0.limit()
    }

    fn at(&self, layer: LayerAt) -> Option<Arc<dyn Form>> {
        Some(Arc::new(Self(self.0.at(layer)?)))
    }

    fn plain_keys(&self) -> bool {
        self.0.plain_keys()
    }

    fn mixes_keys(&self) -> bool {
        self.0.mixes_keys()
    }

    fn rows(&self, role: Role, head: usize, dim: usize) -> Box<dyn Rows> {
        Box::new(self.empty((role, head, dim)))
    }

    fn read_rows(
        &self,
        place: Place,
        json: &Json,
        prefix: &str,
        source: &dyn PartSource,
    ) -> Result<Box<dyn Rows>> {
        let mut mine = self.empty(place).describe();
        for key in ["len", "first", "exact"] {
            mine[key] = json[key].clone();
        }
        if mine != *json {
            let why = "KV cache description: rows that do not have the form of the layer";
            return Err(Error::corruption(why).in_tensor(prefix));
        }
        let packed = self.0.read(place, json, prefix, source)?;
        Ok(Box::new(Windowed::read(json, packed, prefix, source)?))
    }
}

/// As a form of a layer.
pub(crate) fn form(form: impl PackedForm) -> StoreForm {
    StoreForm::Own(Arc::new(Shelf(form)))
}

/// The stage of a form.
pub(crate) fn row<F: PackedForm + Knobs + Default>(about: &'static str) -> Row<KvPart> {
    Row::new(F::ID, KvRole::Store, about, F::default, |own, _| Ok(KvPart::Store(form(own))))
}

/// The largest magnitude of numbers whose distance goes into a scale of this type.
pub(crate) fn half_of(dtype: DType) -> f32 {
    if dtype == DType::F16 { 65504.0 / 2.0 } else { f32::MAX / 8.0 }
}

/// Whether a number of bits is allowed.
pub(crate) fn check_bits(
    key: &str,
    bits: u32,
    allowed: std::ops::RangeInclusive<u32>,
) -> Result<()> {
    if allowed.contains(&bits) {
        return Ok(());
    }
    let (low, high) = (allowed.start(), allowed.end());
    Err(Error::invalid(format!("{key} = {bits}: allowed are {low} to {high}")))
}

/// Whether a count is allowed.
pub(crate) fn check_count(
    key: &str,
    count: usize,
    allowed: std::ops::RangeInclusive<usize>,
) -> Result<()> {
    if allowed.contains(&count) {
        return Ok(());
    }
    let (low, high) = (allowed.start(), allowed.end());
    Err(Error::invalid(format!("{key} = {count}: allowed are {low} to {high}")))
}

/// Rows at most so wide: places within them take two bytes.
pub(crate) fn check_dim(role: Role, dim: usize) -> Result<()> {
    check_count(role.width(), dim, 1..=1 << 15)
}

/// Adds the reader of a form.
pub(crate) fn reads<F: PackedForm>(registry: KvRegistry) -> KvRegistry {
    registry.with_form(F::ID, |json| {
        let bad = |e: &dyn std::fmt::Display| Error::corruption(format!("form {json}: {e}"));
        Ok(Arc::new(Shelf(F::deserialize(json).map_err(|e| bad(&e))?)))
    })
}

/// What was learnt beforehand, for keys and values of each head of a layer.
#[derive(Debug, Clone, PartialEq)]
pub struct PerHead<T> {
    /// Of keys.
    pub keys: Vec<T>,
    /// Of values.
    pub values: Vec<T>,
}

/// What was learnt beforehand for all layers, and which layer this is.
#[derive(Debug, Clone)]
pub(crate) struct Given<T> {
    layers: Arc<Vec<PerHead<Arc<T>>>>,
    layer: usize,
}

impl<T> Given<T> {
    pub(crate) fn new(layers: Vec<PerHead<T>>) -> Self {
        let shared = |models: Vec<T>| models.into_iter().map(Arc::new).collect();
        let layer =
            |layer: PerHead<T>| PerHead { keys: shared(layer.keys), values: shared(layer.values) };
        Self { layers: Arc::new(layers.into_iter().map(layer).collect()), layer: 0 }
    }

    pub(crate) fn at(&self, layer: LayerAt) -> Self {
        Self { layers: self.layers.clone(), layer: layer.index }
    }

    /// That of a head, where there is one.
    pub(crate) fn of(&self, (role, head, _): Place) -> Option<Arc<T>> {
        let layer = self.layers.get(self.layer)?;
        let heads = if role == Role::Keys { &layer.keys } else { &layer.values };
        heads.get(head).cloned()
    }
}
