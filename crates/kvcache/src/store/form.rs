use std::fmt::Debug;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::json;
use tensorpress_tensor::kernels::LANES;
use tensorpress_tensor::kernels::attention::MAX_DIM;
use tensorpress_tensor::node::{Json, PartSource};
use tensorpress_tensor::{DType, Error, Result};

use super::bitmap::{BitmapRows, kept};
use super::float::FloatRows;
use super::int::{Axis, IntRows, IntShape, Role};
use super::rows::Rows;
use super::windowed::Windowed;
use crate::budget::LayerAt;
use crate::registry::KvRegistry;

/// How keys and values are held.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum StoreForm {
    /// Every value in a float type: f32, f16 or bf16.
    Float(DType),
    /// Integers on grids, the newest tokens exact.
    Int(Int),
    /// The largest entries of every vector, the newest tokens whole.
    Bitmap(Bitmap),
    /// Whatever else a [`Form`] makes.
    #[serde(skip)]
    Own(Arc<dyn Form>),
}

impl PartialEq for StoreForm {
    fn eq(&self, other: &Self) -> bool {
        self.describe() == other.describe()
    }
}

/// A way to hold keys and values: makes the rows of heads.
pub trait Form: Debug + Send + Sync {
    /// Short name.
    fn id(&self) -> &'static str;

    /// `id` and all parameters: what a reader of the cache makes this form from.
    fn describe(&self) -> Json;

    /// Whether heads whose keys and values have so many channels can be held.
    ///
    /// # Errors
    /// `InvalidArgument` and `Unsupported` name the parameter and what is allowed.
    fn check(&self, keys: usize, values: usize) -> Result<()>;

    /// The largest magnitude that can be held.
    fn limit(&self) -> f32 {
        f32::MAX / 4.0
    }

    /// What this is for one layer of a model, where that differs from layer to layer.
    fn at(&self, layer: LayerAt) -> Option<Arc<dyn Form>> {
        let _ = layer;
        None
    }

    /// Keys shall be held before rotary embedding, where the model's is known.
    fn plain_keys(&self) -> bool {
        false
    }

    /// Keys in this form can be added up by weights where they lie, as values can.
    fn mixes_keys(&self) -> bool {
        true
    }

    /// Empty rows of `dim` channels for a head of keys and values; shapes were checked.
    fn rows(&self, role: Role, head: usize, dim: usize) -> Box<dyn Rows>;

    /// Rows from what [`Rows::describe`] and [`Rows::parts`] gave; `place` is role, head and channels.
    ///
    /// # Errors
    /// `Corruption` or `InsufficientData`: a description and parts that contradict themselves or each other, or rows of
    /// another form.
    fn read_rows(
        &self,
        place: (Role, usize, usize),
        json: &Json,
        prefix: &str,
        source: &dyn PartSource,
    ) -> Result<Box<dyn Rows>>;
}

/// Integers of 2, 4 or 8 bits (KIVI, Liu et al., 2024): value = minimum + scale x code.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Int {
    /// 2, 4 or 8.
    pub bits: u32,
    /// Tokens (keys by channel) and channels (values, keys by token) that share a scale: a multiple of 16. Runs of
    /// channels are at most the head.
    pub group: usize,
    /// Newest tokens held exactly. KIVI's window of keys by channel fills up and is packed whole, so that 0 to
    /// `window - 1` keys are exact, and it is a multiple of `group`; see `sliding`.
    pub window: usize,
    /// Keys by channel: at least `window` of them are always exact, and whole groups of older ones are packed.
    pub sliding: bool,
    /// What shares a scale of the keys; those of values belong to tokens.
    pub keys: Axis,
    /// Type of scales and minima; they are rounded to it before codes are chosen.
    pub scales: DType,
    /// Newest tokens that can be taken back exactly; see `KvStore::earliest`.
    pub margin: usize,
}

impl Int {
    /// Groups of 32, a window of 32, keys by channel, f16 scales, a margin of 32.
    #[must_use]
    pub fn new(bits: u32) -> Self {
        let (group, window, margin) = (32, 32, 32);
        let (keys, scales, sliding) = (Axis::Channel, DType::F16, false);
        Self { bits, group, window, sliding, keys, scales, margin }
    }

    /// Sets the size of groups.
    #[must_use]
    pub fn with_group(mut self, group: usize) -> Self {
        self.group = group;
        self
    }

    /// Sets how many of the newest tokens stay exact.
    #[must_use]
    pub fn with_window(mut self, window: usize) -> Self {
        self.window = window;
        self
    }

    /// Sets whether the window of keys by channel is always full.
    #[must_use]
    pub fn with_sliding(mut self, sliding: bool) -> Self {
        self.sliding = sliding;
        self
    }

    /// Sets what shares a scale of the keys.
    #[must_use]
    pub fn with_keys(mut self, keys: Axis) -> Self {
        self.keys = keys;
        self
    }

    /// Sets the type of scales and minima.
    #[must_use]
    pub fn with_scales(mut self, scales: DType) -> Self {
        self.scales = scales;
        self
    }

    /// Sets how many tokens can be taken back.
    #[must_use]
    pub fn with_margin(mut self, margin: usize) -> Self {
        self.margin = margin;
        self
    }

    fn shape(&self, role: Role, dim: usize) -> IntShape {
        let axis = if role == Role::Keys { self.keys } else { Axis::Token };
        let group = if axis == Axis::Token { self.group.min(dim) } else { self.group };
        let (bits, dtype, sliding) = (self.bits, self.scales, self.sliding);
        IntShape { role, axis, bits, group, dim, dtype, sliding }
    }
}

/// Bitmaps (Mustafar, Joo et al., 2025): of every key and every value the entries of largest magnitude.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Bitmap {
    /// Share of a key's entries that is dropped, 0 to below 1.
    pub keys: f64,
    /// Share of a value's entries that is dropped.
    pub values: f64,
    /// Tokens of a run within which the entries of each channel of the values compete; without it, those of each token
    /// do, as those of keys always do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value_group: Option<usize>,
    /// Newest tokens held whole; up to `value_group - 1` more values are.
    pub window: usize,
    /// Type of the entries that stay.
    pub dtype: DType,
    /// Newest tokens that can be taken back exactly.
    pub margin: usize,
}

impl Bitmap {
    /// Drops this share of keys and values; f16, a window and a margin of 32.
    #[must_use]
    pub fn new(sparsity: f64) -> Self {
        let (keys, values, value_group) = (sparsity, sparsity, None);
        Self { keys, values, value_group, window: 32, dtype: DType::F16, margin: 32 }
    }

    /// Sets how many of the newest tokens stay whole.
    #[must_use]
    pub fn with_window(mut self, window: usize) -> Self {
        self.window = window;
        self
    }

    /// Sets that values are pruned by channel, in runs of so many tokens.
    #[must_use]
    pub fn with_value_group(mut self, tokens: usize) -> Self {
        self.value_group = Some(tokens);
        self
    }

    /// Sets the type of the entries.
    #[must_use]
    pub fn with_dtype(mut self, dtype: DType) -> Self {
        self.dtype = dtype;
        self
    }
}

/// Whether integer rows of this shape can be.
pub(crate) fn check_int(shape: &IntShape) -> Result<()> {
    let IntShape { role, axis, bits, group, dim, dtype, .. } = *shape;
    if !matches!(bits, 2 | 4 | 8) {
        return Err(Error::invalid(format!("bits = {bits}: allowed are 2, 4 and 8")));
    }
    check_dtype("scales", dtype)?;
    if dim == 0 || dim > MAX_DIM {
        let key = role.width();
        return Err(Error::unsupported(format!("{key} = {dim}: integers take 1 to {MAX_DIM}")));
    }
    let whole = axis == Axis::Token && group == dim;
    if group == 0 || group > MAX_DIM || !(whole || group.is_multiple_of(LANES)) {
        let most = MAX_DIM;
        return Err(Error::invalid(format!(
            "group = {group}: allowed are multiples of 16 to {most}"
        )));
    }
    if axis == Axis::Token && !dim.is_multiple_of(group) {
        let key = role.width();
        return Err(Error::invalid(format!("group = {group}: must divide {key} = {dim}")));
    }
    if role == Role::Values && axis == Axis::Channel {
        return Err(Error::unsupported("scales of values belong to tokens"));
    }
    Ok(())
}

pub(crate) fn check_dtype(key: &str, dtype: DType) -> Result<()> {
    if matches!(dtype, DType::F32 | DType::F16 | DType::BF16) {
        return Ok(());
    }
    Err(Error::invalid(format!("{key} = {dtype:?}: allowed are f32, f16 and bf16")))
}

/// Whether integers of this shape can keep this window exact.
pub(crate) fn check_window(shape: &IntShape, window: usize) -> Result<()> {
    let fills = shape.axis == Axis::Channel && !shape.sliding;
    if fills && (window == 0 || !window.is_multiple_of(shape.group)) {
        return Err(Error::invalid(format!(
            "window = {window}: keys by channel take multiples of the group of {}, unless the window is sliding",
            shape.group
        )));
    }
    Ok(())
}

impl StoreForm {
    /// A form of one's own.
    #[must_use]
    pub fn own(form: impl Form + 'static) -> Self {
        Self::Own(Arc::new(form))
    }

    /// What a reader makes this form from.
    #[must_use]
    pub fn describe(&self) -> Json {
        match self {
            Self::Own(form) => json!({ "own": form.describe() }),
            other => serde_json::to_value(other).expect("plain data"),
        }
    }

    /// Reads what [`StoreForm::describe`] gave; forms beside those of this enum are the registry's.
    ///
    /// # Errors
    /// `Corruption` for parameters that cannot be, `Unsupported` for a form that the registry does not have.
    pub(crate) fn read(json: &Json, registry: &KvRegistry) -> Result<Self> {
        match json.get("own") {
            Some(own) => Ok(Self::Own(registry.form(own)?)),
            None => Self::deserialize(json)
                .map_err(|e| Error::corruption(format!("KV cache description: {e}"))),
        }
    }

    /// What this is for one layer.
    #[must_use]
    pub fn at(&self, layer: LayerAt) -> Self {
        match self {
            Self::Own(form) => Self::Own(form.at(layer).unwrap_or_else(|| form.clone())),
            other => other.clone(),
        }
    }

    /// Keys shall be held before rotary embedding, where the model's is known.
    #[must_use]
    pub fn plain_keys(&self) -> bool {
        matches!(self, Self::Own(form) if form.plain_keys())
    }

    /// Whether heads of `dim` channels can be held in this form.
    ///
    /// # Errors
    /// `InvalidArgument` and `Unsupported` name the parameter and what is allowed.
    pub fn check(&self, dim: usize) -> Result<()> {
        self.check_widths(dim, dim)
    }

    /// Whether keys and values of so many channels can be.
    pub(crate) fn check_widths(&self, keys: usize, values: usize) -> Result<()> {
        match self {
            Self::Float(dtype) => check_dtype("dtype", *dtype),
            Self::Int(int) => {
                check_int(&int.shape(Role::Keys, keys))?;
                check_int(&int.shape(Role::Values, values))?;
                check_window(&int.shape(Role::Keys, keys), int.window)
            }
            Self::Bitmap(map) => {
                check_dtype("dtype", map.dtype)?;
                if map.value_group == Some(0) {
                    return Err(Error::invalid("value_group = 0: at least 1"));
                }
                for (key, sparsity) in [("keys", map.keys), ("values", map.values)] {
                    if !(0.0..1.0).contains(&sparsity) {
                        let why =
                            format!("{key} = {sparsity}: allowed are shares from 0 to below 1");
                        return Err(Error::invalid(why));
                    }
                }
                Ok(())
            }
            Self::Own(form) => form.check(keys, values),
        }
    }

    /// The largest magnitude that can be held.
    pub(crate) fn limit(&self) -> f32 {
        let of = |dtype| if dtype == DType::F16 { 65504.0 } else { f32::MAX / 4.0 };
        match self {
            Self::Float(dtype) => of(*dtype),
            // The distance of two values goes into a scale.
            Self::Int(int) => of(int.scales) / 2.0,
            Self::Bitmap(map) => of(map.dtype),
            Self::Own(form) => form.limit(),
        }
    }

    /// Whether keys in this form can be added up by weights where they lie, as values can.
    pub(crate) fn mixes_keys(&self) -> bool {
        match self {
            Self::Int(_) => false,
            Self::Own(form) => form.mixes_keys(),
            _ => true,
        }
    }

    /// Empty rows of a head that was checked.
    #[must_use]
    pub fn rows(&self, role: Role, head: usize, dim: usize) -> Box<dyn Rows> {
        match self {
            Self::Own(form) => form.rows(role, head, dim),
            Self::Float(dtype) => Box::new(FloatRows::new(*dtype, dim)),
            Self::Int(int) => {
                let rows = IntRows::new(int.shape(role, dim));
                Box::new(Windowed::new(rows, int.window, int.margin))
            }
            Self::Bitmap(map) => {
                let (sparsity, group) = match role {
                    Role::Keys => (map.keys, None),
                    Role::Values => (map.values, map.value_group),
                };
                let keep = kept(group.unwrap_or(dim), sparsity);
                let rows = BitmapRows::new(map.dtype, dim, keep, group);
                Box::new(Windowed::new(rows, map.window, map.margin))
            }
        }
    }

    /// Rows of this form from a description and parts.
    pub fn read_rows(
        &self,
        (role, head, dim): (Role, usize, usize),
        json: &Json,
        prefix: &str,
        source: &dyn PartSource,
    ) -> Result<Box<dyn Rows>> {
        if let Self::Own(form) = self {
            return form.read_rows((role, head, dim), json, prefix, source);
        }
        if !self.agrees(role, dim, json) {
            let why = "rows that do not have the form of the layer";
            return Err(Error::corruption(format!("KV cache description: {why}")));
        }
        Ok(match self {
            Self::Int(_) => {
                let rows = IntRows::read(json, dim, prefix, source)?;
                Box::new(Windowed::read(json, rows, prefix, source)?)
            }
            Self::Bitmap(_) => {
                let rows = BitmapRows::read(json, dim, prefix, source)?;
                Box::new(Windowed::read(json, rows, prefix, source)?)
            }
            _ => Box::new(FloatRows::read(json, dim, prefix, source)?),
        })
    }

    /// The description of empty rows: what those of a file must agree with.
    fn agrees(&self, role: Role, dim: usize, json: &Json) -> bool {
        let mut mine = self.rows(role, 0, dim).describe();
        for key in ["len", "first", "exact"] {
            if json[key] != Json::Null && mine[key] != Json::Null {
                mine[key] = json!(json[key]);
            }
        }
        mine == *json
    }
}
