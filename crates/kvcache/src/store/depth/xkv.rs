use std::ops::Range;
use std::sync::Arc;

use crate::factor;
use ndarray::{Array2, Array3, ArrayView2, ArrayViewMut2, Axis, s};
use serde::{Deserialize, Serialize};
use tensorpress_tensor::node::{Json, PartSource};
use tensorpress_tensor::stage::{Keys, Knobs, Row};
use tensorpress_tensor::{DType, Error, PartKind, Result, ndarray};

use super::sheet::{Layout, Sheet, Size, described, put_half};
use crate::stage::{KvPart, KvRole};
use crate::store::coded::{Stream, floats};
use crate::store::int::Role;
use crate::store::own::check_count;
use crate::store::{JointForm, JointPage, KvShape, Paging};

pub(super) const ID: &str = "xkv";

/// xKV (Chang et al., 2025): the keys of a group of layers, side by side and before rotary embedding where that is known, have
/// few directions in common, and so have the values. Each token is held by its coordinates on them, once for all layers of the
/// group.
///
/// The directions of a group are the leading right singular vectors of its first page, `[tokens, layers x heads x channels]`,
/// not centred; later tokens are projected on them.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct XKv {
    /// Layers of a group.
    pub group: usize,
    /// Coordinates of a token's keys, as a share of the channels of one layer: at most as many as a page has tokens.
    pub keys: f64,
    /// Coordinates of a token's values, as such a share.
    pub values: f64,
    /// Tokens of a page: what directions are learnt from.
    pub chunk: usize,
    /// Newest tokens that are exact.
    pub window: usize,
    /// Newest tokens that can be taken back exactly.
    pub margin: usize,
}

impl Default for XKv {
    /// Four layers; coordinates as many as half of the channels of one layer for keys (an eighth of all four's), three
    /// quarters for values, the ratio the paper takes; pages of 256 tokens, a window and a margin of 32.
    fn default() -> Self {
        Self { group: 4, keys: 0.5, values: 0.75, chunk: 256, window: 32, margin: 32 }
    }
}

super::paged!(XKv);

impl XKv {
    /// Sets how many layers share directions.
    #[must_use]
    pub fn with_group(mut self, layers: usize) -> Self {
        self.group = layers;
        self
    }

    /// Sets the coordinates of keys and of values as shares of one layer's channels.
    #[must_use]
    pub fn with_coordinates(mut self, keys: f64, values: f64) -> Self {
        (self.keys, self.values) = (keys, values);
        self
    }

    fn rank(&self, size: Size, role: Role) -> usize {
        let share = if role == Role::Keys { self.keys } else { self.values };
        let width = size.heads * size.dim(role);
        let rank = (width as f64 * share).round() as usize;
        rank.clamp(1, self.chunk.min(width * size.members))
    }
}

/// The leading right singular vectors of X `[tokens, width]`, `[rank, width]`: from the eigenvectors of the smaller of X Xᵀ and
/// Xᵀ X. Zeros where X has fewer directions.
pub(super) fn shared(x: ArrayView2<'_, f32>, rank: usize) -> Result<Array2<f32>> {
    let x = x.mapv(f64::from);
    let (n, width) = x.dim();
    let moments = if n < width { x.dot(&x.t()) } else { x.t().dot(&x) };
    let eigen = factor::symmetric_eigen(moments.view())?;
    let most = eigen.values.last().copied().unwrap_or(0.0).max(0.0);
    let mut directions = Array2::zeros((rank, width));
    for (i, mut direction) in directions.rows_mut().into_iter().enumerate().take(moments.nrows()) {
        let at = moments.nrows() - 1 - i;
        let (value, vector) = (eigen.values[at], eigen.vectors.column(at));
        // What is rounding has no direction.
        if value > 1e-13 * most && value > 0.0 {
            let v = if n < width { x.t().dot(&vector) / value.sqrt() } else { vector.to_owned() };
            direction.assign(&v.mapv(|v| v as f32));
        }
    }
    Ok(directions)
}

/// Coordinates of keys and values, and directions in the first page of a group.
#[derive(Debug)]
struct Shared {
    form: XKv,
    size: Size,
    /// `[coordinates, members x heads x channels]`.
    directions: [Arc<Array2<f32>>; 2],
    first: bool,
}

const ARRAYS: [Stream; 4] = [
    ("keys", PartKind::Values),
    ("values", PartKind::Values),
    ("key_directions", PartKind::Transforms),
    ("value_directions", PartKind::Transforms),
];

/// Layers side by side: `[tokens, layers x heads x channels]`.
pub(super) fn aside(layers: &[Array3<f32>]) -> Array2<f32> {
    let (tokens, heads, dim) = layers[0].dim();
    let mut all = Array2::zeros((tokens, layers.len() * heads * dim));
    for (m, layer) in layers.iter().enumerate() {
        for h in 0..heads {
            let at = (m * heads + h) * dim;
            all.slice_mut(s![.., at..at + dim]).assign(&layer.index_axis(Axis(1), h));
        }
    }
    all
}

impl Layout for Shared {
    fn arrays(&self) -> Vec<(Stream, usize)> {
        let count = |role| {
            let (rank, size) = (self.form.rank(self.size, role), self.size);
            let width = size.members * size.heads * size.dim(role);
            (2 * size.tokens * rank, if self.first { 2 * rank * width } else { 0 })
        };
        let (keys, values) = (count(Role::Keys), count(Role::Values));
        ARRAYS.into_iter().zip([keys.0, values.0, keys.1, values.1]).collect()
    }

    fn decode(
        &self,
        arrays: &[Vec<u8>],
        (member, role, head): (usize, Role, usize),
        mut out: ArrayViewMut2<'_, f32>,
    ) {
        let i = usize::from(role == Role::Values);
        let rank = self.form.rank(self.size, role);
        let coordinates = floats(DType::F16, &arrays[i]);
        let coordinates = ArrayView2::from_shape((self.size.tokens, rank), &coordinates);
        let (dim, directions) = (self.size.dim(role), &self.directions[i]);
        let at = (member * self.size.heads + head) * dim;
        let mine = directions.slice(s![.., at..at + dim]);
        out.assign(&coordinates.expect("as many as are written").dot(&mine));
    }

    fn size(&self) -> Size {
        self.size
    }
}

impl XKv {
    /// The directions that a group's first page has.
    fn known(first: &dyn JointPage, size: Size) -> Option<[Arc<Array2<f32>>; 2]> {
        let first: &Sheet<Shared> = first.as_any().downcast_ref()?;
        (Size { tokens: size.tokens, ..first.layout.size } == size)
            .then(|| first.layout.directions.clone())
    }
}

impl JointForm for XKv {
    fn id(&self) -> &'static str {
        ID
    }

    fn describe(&self) -> Json {
        described(ID, self)
    }

    fn check(&self, shape: KvShape, _: usize) -> Result<()> {
        factor::check(self.id())?;
        check_count("group", self.group, 1..=1 << 10)?;
        check_count("chunk", self.chunk, 1..=4096)?;
        check_count("head_dim", shape.head_dim, 1..=1 << 15)?;
        check_count("value_dim", shape.value_dim, 1..=1 << 15)?;
        for (key, share) in [("keys", self.keys), ("values", self.values)] {
            if !(share > 0.0 && share <= self.group as f64) {
                let most = self.group;
                return Err(Error::invalid(format!("{key} = {share}: above 0, up to {most}")));
            }
        }
        Ok(())
    }

    fn plain_keys(&self) -> bool {
        true
    }

    fn groups(&self, layers: usize) -> Vec<Range<usize>> {
        let group = self.group.max(1);
        (0..layers).step_by(group).map(|start| start..(start + group).min(layers)).collect()
    }

    fn paging(&self) -> Paging {
        Paging::new(self.chunk).with_window(self.window).with_margin(self.margin)
    }

    fn pack(
        &self,
        _: Range<usize>,
        first: Option<&dyn JointPage>,
        keys: &[Array3<f32>],
        values: &[Array3<f32>],
    ) -> Result<Arc<dyn JointPage>> {
        let (size, x) = (Size::of(keys, values), [aside(keys), aside(values)]);
        let known = first.and_then(|first| Self::known(first, size));
        let mine = known.is_none();
        let directions = match known {
            Some(known) => known,
            None => {
                let of = |x: &Array2<f32>, role| {
                    let found = shared(x.view(), self.rank(size, role))?;
                    Ok::<_, Error>(Arc::new(found.mapv(|x| DType::F16.round(x))))
                };
                [of(&x[0], Role::Keys)?, of(&x[1], Role::Values)?]
            }
        };
        let mut arrays = vec![Vec::new(); 4];
        for (i, (x, directions)) in x.iter().zip(&directions).enumerate() {
            put_half(x.dot(&directions.t()).iter().copied(), &mut arrays[i]);
            if mine {
                put_half(directions.iter().copied(), &mut arrays[2 + i]);
            }
        }
        let layout = Shared { form: *self, size, directions, first: mine };
        Ok(Arc::new(Sheet { layout, arrays }))
    }

    fn read_page(
        &self,
        group: Range<usize>,
        first: Option<&dyn JointPage>,
        json: &Json,
        prefix: &str,
        source: &dyn PartSource,
    ) -> Result<Arc<dyn JointPage>> {
        let size = Size::read(&group, json)?;
        let known = first.and_then(|first| Self::known(first, size));
        if known.is_none() && first.is_some() {
            let why = "KV cache description: a page unlike the first of its group";
            return Err(Error::corruption(why).in_tensor(prefix));
        }
        let mine = known.is_none();
        let none = || [(); 2].map(|()| Arc::new(Array2::zeros((0, 0))));
        let directions = known.unwrap_or_else(none);
        let layout = Shared { form: *self, size, directions, first: mine };
        let mut page = Sheet::read(layout, prefix, source)?;
        if mine {
            let of = |(role, bytes): (Role, &Vec<u8>)| {
                let (values, rank) = (floats(DType::F16, bytes), self.rank(size, role));
                let width = values.len() / rank;
                let all = Array2::from_shape_vec((rank, width), values);
                Arc::new(all.expect("as many as are written"))
            };
            page.layout.directions =
                [(Role::Keys, &page.arrays[2]), (Role::Values, &page.arrays[3])].map(of);
        }
        Ok(Arc::new(page))
    }
}

impl Knobs for XKv {
    fn knobs(&mut self, keys: &mut Keys<'_>) -> Result<()> {
        keys.int("group", &mut self.group, 1..=1 << 10, "layers that share directions")?;
        let about = "coordinates of keys as a share of one layer's channels, above 0";
        keys.float("keys", &mut self.keys, 0.0..=1024.0, about)?;
        let about = "coordinates of values as a share of one layer's channels, above 0";
        keys.float("values", &mut self.values, 0.0..=1024.0, about)?;
        let about = "tokens of a page; directions are learnt from the first";
        keys.int("chunk", &mut self.chunk, 1..=4096, about)?;
        keys.int("window", &mut self.window, 0..=1 << 20, "newest tokens that are exact")?;
        let about = "newest tokens that can be taken back exactly";
        keys.int("margin", &mut self.margin, 0..=1 << 20, about)
    }
}

pub(super) fn stage() -> Row<KvPart> {
    let about = "holds groups of layers by coordinates on directions that they share";
    let build = |form: XKv, _| Ok(KvPart::Joint(Arc::new(form)));
    Row::new(ID, KvRole::Store, about, XKv::default, build)
}
