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

/// How keys and values are held.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum StoreForm {
    /// Every value in a float type: f32, f16 or bf16.
    Float(DType),
    /// Integers on grids, the newest tokens exact.
    Int(Int),
    /// The largest entries of every vector, the newest tokens whole.
    Bitmap(Bitmap),
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

fn check_dtype(key: &str, dtype: DType) -> Result<()> {
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
        }
    }

    /// Whether keys in this form can be added up by weights where they lie, as values can.
    pub(crate) fn mixes_keys(&self) -> bool {
        !matches!(self, Self::Int(_))
    }

    /// Empty rows of a head that was checked.
    pub(crate) fn rows(&self, role: Role, dim: usize) -> Box<dyn Rows> {
        match self {
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

    pub(crate) fn read_rows(
        &self,
        json: &Json,
        dim: usize,
        prefix: &str,
        source: &dyn PartSource,
    ) -> Result<Box<dyn Rows>> {
        match self {
            Self::Float(_) => Ok(Box::new(FloatRows::read(json, dim, prefix, source)?)),
            Self::Int(_) => {
                let rows = IntRows::read(json, dim, prefix, source)?;
                Ok(Box::new(Windowed::read(json, rows, prefix, source)?))
            }
            Self::Bitmap(_) => {
                let rows = BitmapRows::read(json, dim, prefix, source)?;
                Ok(Box::new(Windowed::read(json, rows, prefix, source)?))
            }
        }
    }

    /// The description of empty rows: what those of a file must agree with.
    pub(crate) fn agrees(&self, role: Role, dim: usize, json: &Json) -> bool {
        let mut mine = self.rows(role, dim).describe();
        for key in ["len", "first", "exact"] {
            if json[key] != Json::Null && mine[key] != Json::Null {
                mine[key] = json!(json[key]);
            }
        }
        mine == *json
    }
}
