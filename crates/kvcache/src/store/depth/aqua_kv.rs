use std::ops::Range;
use std::sync::{Arc, Mutex};

use ndarray::{Array2, Array3, ArrayView2, ArrayViewMut2, Axis, s};
use serde::{Deserialize, Serialize};
use tensorpress_tensor::kernels::packed_len;
use tensorpress_tensor::node::{Json, PartSource};
use tensorpress_tensor::stage::{Keys, Knobs, Row};
use tensorpress_tensor::{DType, Error, PartKind, Result, ndarray};

use super::aqua::{Blind, beside, block, normal_grid, ridge, unblock};
use super::sheet::{Layout, Sheet, Size, described, put_half};
use crate::page::Rotation;
use crate::stage::{KvPart, KvRole};
use crate::store::coded::{Stream, floats, put_codes, put_floats, take_codes};
use crate::store::int::Role;
use crate::store::own::{check_bits, check_count};
use crate::store::{JointForm, JointPage, KvShape, Paging};

pub(super) const ID: &str = "aqua_kv";

/// AQUA-KV (Shutova et al., 2025): a layer's keys are predicted from the decoded keys of the layer before, its values from its
/// own decoded keys and the values of the layer before, and only what the predictions miss is stored, in few bits that need no
/// data. Keys are taken before rotary embedding, where that is known.
///
/// Predictors are fitted once, layer after layer, on inputs that are decoded already, so that each corrects what is left of the
/// errors before it: on the group's first page, which holds them. Its first tokens are exact.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct AquaKv {
    /// Bits of a code, 1 to 8.
    pub bits: u32,
    /// Bits of a code of the first layer of a group, which nothing predicts.
    pub first_bits: u32,
    /// Predictors take all heads together, as in the paper, and not each head alone: better, and as many numbers as the
    /// square of the heads.
    pub together: bool,
    /// Ridge of the regressions, as a share of the mean square of their inputs.
    pub ridge: f64,
    /// Layers of a group: all, if absent.
    pub group: Option<usize>,
    /// First tokens that stay exact (in f16).
    pub sinks: usize,
    /// Of the signs.
    pub seed: u64,
    /// Tokens of a page: what predictors are fitted on.
    pub chunk: usize,
    /// Newest tokens that are exact.
    pub window: usize,
    /// Newest tokens that can be taken back exactly.
    pub margin: usize,
}

impl Default for AquaKv {
    /// 2 bits, 4 in the first layer, heads apart, a ridge of 1e-3, all layers, 4 first tokens, pages of 256 tokens, a window and
    /// a margin of 32.
    fn default() -> Self {
        Self {
            bits: 2,
            first_bits: 4,
            together: false,
            ridge: 1e-3,
            group: None,
            sinks: 4,
            seed: 0,
            chunk: 256,
            window: 32,
            margin: 32,
        }
    }
}

super::paged!(AquaKv);

impl AquaKv {
    /// Sets the bits of a code, and of one of the first layer.
    #[must_use]
    pub fn with_bits(mut self, bits: u32, first: u32) -> Self {
        (self.bits, self.first_bits) = (bits, first);
        self
    }

    /// Sets whether predictors take all heads together.
    #[must_use]
    pub fn with_together(mut self, together: bool) -> Self {
        self.together = together;
        self
    }

    /// Sets the layers of a group.
    #[must_use]
    pub fn with_group(mut self, layers: usize) -> Self {
        self.group = Some(layers);
        self
    }

    /// Sets how many of the first tokens stay exact.
    #[must_use]
    pub fn with_sinks(mut self, tokens: usize) -> Self {
        self.sinks = tokens;
        self
    }
}

/// Of each layer but the first of a group and each block of heads: what predicts its keys, and its values.
#[derive(Debug, Default, Clone)]
struct Predictors(Vec<Vec<[Array2<f32>; 2]>>);

/// Codes of what predictions miss, and their scales; predictors and exact rows in the first page of a group.
#[derive(Debug)]
struct Missed {
    form: AquaKv,
    size: Size,
    first: bool,
    predictors: Arc<Predictors>,
    grids: [&'static [f32]; 2],
    rotations: [Arc<Rotation>; 2],
    /// Keys and values of the member that was decoded last: layers are read in order, and each takes the one before.
    last: Mutex<Option<(usize, [Array3<f32>; 2])>>,
}

const ARRAYS: [Stream; 4] = [
    ("codes", PartKind::Codes),
    ("scales", PartKind::Scales),
    ("predictors", PartKind::Tables),
    ("sinks", PartKind::Values),
];

const ROLES: [Role; 2] = [Role::Keys, Role::Values];

impl Missed {
    fn new(form: AquaKv, size: Size, first: bool, predictors: Arc<Predictors>) -> Self {
        let rotation = |role: Role| {
            let word = if role == Role::Keys { 0 } else { 1 << 32 };
            Arc::new(Rotation::new(1, size.dim(role), form.seed, word))
        };
        let grids = [normal_grid(form.bits), normal_grid(form.first_bits)];
        let (rotations, last) = (ROLES.map(rotation), Mutex::new(None));
        Self { form, size, first, predictors, grids, rotations, last }
    }

    /// Heads of each block.
    fn blocks(&self) -> Vec<Range<usize>> {
        let heads = self.size.heads;
        let each = if self.form.together { heads } else { 1 };
        (0..heads).step_by(each.max(1)).map(|h| h..h + each).collect()
    }

    fn bits(&self, member: usize) -> u32 {
        if member == 0 { self.form.first_bits } else { self.form.bits }
    }

    /// Bytes of the codes of a row.
    fn row(&self, member: usize, role: Role) -> usize {
        packed_len(self.size.dim(role), self.bits(member))
    }

    /// Where the codes of a member's keys or values begin: members, keys before values, heads, tokens.
    fn codes_at(&self, member: usize, role: Role) -> usize {
        let rows = self.size.heads * self.size.tokens;
        let both = |m: usize| (self.row(m, Role::Keys) + self.row(m, Role::Values)) * rows;
        let before: usize = (0..member).map(both).sum();
        before + if role == Role::Values { self.row(member, Role::Keys) * rows } else { 0 }
    }

    fn blind(&self, member: usize, role: Role) -> Blind<'_> {
        Blind {
            levels: self.grids[usize::from(member == 0)],
            rotation: &self.rotations[usize::from(role == Role::Values)],
        }
    }

    fn sinks(&self) -> usize {
        if self.first { self.form.sinks.min(self.size.tokens) } else { 0 }
    }

    /// Inputs and outputs of a predictor.
    fn shape(&self, role: Role, heads: usize) -> (usize, usize) {
        let Size { key_dim, value_dim, .. } = self.size;
        match role {
            Role::Keys => (heads * key_dim, heads * key_dim),
            Role::Values => (heads * (key_dim + value_dim), heads * value_dim),
        }
    }

    /// What is predicted for a member: from the keys before it, or from its own keys and the values before it.
    fn predicted(
        &self,
        member: usize,
        role: Role,
        before: &[Array3<f32>; 2],
        own: &Array3<f32>,
    ) -> Array3<f32> {
        let Size { tokens, heads, .. } = self.size;
        let mut out = Array3::zeros((tokens, heads, self.size.dim(role)));
        if member == 0 {
            return out;
        }
        for (heads, predictor) in self.blocks().into_iter().zip(&self.predictors.0[member - 1]) {
            let x = inputs(role, before, own, heads.clone());
            let y = x.dot(&predictor[usize::from(role == Role::Values)]);
            unblock(y.view(), heads, &mut out);
        }
        out
    }

    /// Keys and values of a member, from those of the one before.
    fn member(
        &self,
        arrays: &[Vec<u8>],
        member: usize,
        before: &[Array3<f32>; 2],
    ) -> [Array3<f32>; 2] {
        let Size { tokens, heads, .. } = self.size;
        let mut both = [Array3::zeros((0, 0, 0)), Array3::zeros((0, 0, 0))];
        for (i, role) in ROLES.into_iter().enumerate() {
            let mut x = self.predicted(member, role, before, &both[0]);
            let (dim, bits, row) = (self.size.dim(role), self.bits(member), self.row(member, role));
            let (at, blind) = (self.codes_at(member, role), self.blind(member, role));
            let scales = &arrays[1][2 * (2 * member + i) * heads * tokens..][..2 * heads * tokens];
            let scales = floats(DType::F16, scales);
            let mut missed = vec![0.0; dim];
            for h in 0..heads {
                for t in 0..tokens {
                    let n = h * tokens + t;
                    let codes = take_codes(&arrays[0][at + n * row..][..row], bits, dim);
                    blind.unpack(&codes, scales[n], &mut missed);
                    let to = x.slice_mut(s![t, h, ..]);
                    to.into_iter().zip(&missed).for_each(|(x, missed)| *x += missed);
                }
            }
            let sinks = self.sinks();
            let exact = floats(DType::F16, &arrays[3]);
            let each = sinks * heads * (self.size.key_dim + self.size.value_dim);
            let from = member * each + i * sinks * heads * self.size.key_dim;
            let exact = &exact[from..][..sinks * heads * dim];
            let exact = ndarray::ArrayView3::from_shape((sinks, heads, dim), exact);
            x.slice_mut(s![..sinks, .., ..]).assign(&exact.expect("as many as are written"));
            both[i] = x;
        }
        both
    }

    fn nothing(&self) -> [Array3<f32>; 2] {
        ROLES.map(|role| Array3::zeros((self.size.tokens, self.size.heads, self.size.dim(role))))
    }
}

/// What a predictor of some heads takes.
fn inputs(
    role: Role,
    before: &[Array3<f32>; 2],
    own: &Array3<f32>,
    heads: Range<usize>,
) -> Array2<f32> {
    match role {
        Role::Keys => block(&before[0], heads),
        Role::Values => beside(block(own, heads.clone()).view(), block(&before[1], heads).view()),
    }
}

impl Layout for Missed {
    fn arrays(&self) -> Vec<(Stream, usize)> {
        let Size { members, tokens, heads, key_dim, value_dim } = self.size;
        let of_block = |heads: Range<usize>| -> usize {
            ROLES.map(|role| self.shape(role, heads.len())).iter().map(|(x, y)| x * y).sum()
        };
        let predictors: usize = self.blocks().into_iter().map(of_block).sum();
        let predictors = if self.first { 2 * predictors * (members - 1) } else { 0 };
        let scales = 2 * 2 * members * heads * tokens;
        let sinks = 2 * self.sinks() * members * heads * (key_dim + value_dim);
        let bytes = [self.codes_at(members, Role::Keys), scales, predictors, sinks];
        ARRAYS.into_iter().zip(bytes).collect()
    }

    fn decode(
        &self,
        arrays: &[Vec<u8>],
        (member, role, head): (usize, Role, usize),
        mut out: ArrayViewMut2<'_, f32>,
    ) {
        let last = || self.last.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let mut last = last();
        let (mut at, mut both) = match last.take() {
            Some((at, both)) if at <= member => (at + 1, both),
            _ => (0, self.nothing()),
        };
        while at <= member {
            both = self.member(arrays, at, &both);
            at += 1;
        }
        out.assign(&both[usize::from(role == Role::Values)].index_axis(Axis(1), head));
        *last = Some((member, both));
    }

    fn size(&self) -> Size {
        self.size
    }
}

impl AquaKv {
    /// Fits predictors on what is decoded of each layer, as it is packed.
    fn pack_first(&self, size: Size, both: &[[&Array3<f32>; 2]]) -> Sheet<Missed> {
        let mut layout = Missed::new(*self, size, true, Arc::default());
        let mut predictors = Predictors::default();
        let mut arrays = vec![Vec::new(); 4];
        let mut before = layout.nothing();
        let sinks = layout.sinks();
        for (member, exact) in both.iter().enumerate() {
            if member > 0 {
                let none = || [Array2::zeros((0, 0)), Array2::zeros((0, 0))];
                predictors.0.push(layout.blocks().iter().map(|_| none()).collect());
            }
            let mut own = Array3::zeros((0, 0, 0));
            for (i, role) in ROLES.into_iter().enumerate() {
                if member > 0 {
                    for (b, heads) in layout.blocks().into_iter().enumerate() {
                        // Exact tokens stand out: they are none that predictions are for.
                        let rows = s![sinks.min(size.tokens - 1).., ..];
                        let x = inputs(role, &before, &own, heads.clone());
                        let y = block(exact[i], heads);
                        predictors.0[member - 1][b][i] =
                            ridge(x.slice(rows), y.slice(rows), self.ridge);
                    }
                    layout.predictors = Arc::new(predictors.clone());
                }
                own = layout.pack_rows(member, role, exact[i], (&mut before, own), &mut arrays);
            }
        }
        for blocks in &layout.predictors.0 {
            for predictor in blocks.iter().flatten() {
                put_floats(
                    DType::F16,
                    &predictor.iter().copied().collect::<Vec<_>>(),
                    &mut arrays[2],
                );
            }
        }
        Sheet { layout, arrays }
    }
}

impl Missed {
    /// Packs keys or values of a member, and gives the decoded keys; after the values, `before` is this member's.
    fn pack_rows(
        &self,
        member: usize,
        role: Role,
        exact: &Array3<f32>,
        (before, own): (&mut [Array3<f32>; 2], Array3<f32>),
        arrays: &mut [Vec<u8>],
    ) -> Array3<f32> {
        let Size { tokens, heads, .. } = self.size;
        let mut decoded = self.predicted(member, role, before, &own);
        let (blind, bits, sinks) = (self.blind(member, role), self.bits(member), self.sinks());
        for h in 0..heads {
            for t in 0..tokens {
                let mut to = decoded.slice_mut(s![t, h, ..]);
                let x = exact.slice(s![t, h, ..]);
                let mut missed: Vec<f32> = x.iter().zip(&to).map(|(x, p)| x - p).collect();
                let (codes, scale) = blind.pack(&mut missed);
                put_codes(&codes, bits, &mut arrays[0]);
                put_half([scale].into_iter(), &mut arrays[1]);
                to.iter_mut().zip(&missed).for_each(|(to, missed)| *to += missed);
            }
        }
        let first =
            exact.slice(s![..sinks, .., ..]).mapv(|x| DType::F16.round(x.clamp(-65504.0, 65504.0)));
        put_half(first.iter().copied(), &mut arrays[3]);
        decoded.slice_mut(s![..sinks, .., ..]).assign(&first);
        if role == Role::Keys {
            return decoded;
        }
        *before = [own, decoded];
        Array3::zeros((0, 0, 0))
    }

    /// What a group's first page knows.
    fn of(first: &dyn JointPage, size: Size) -> Option<Arc<Predictors>> {
        let first: &Sheet<Self> = first.as_any().downcast_ref()?;
        let same = Size { tokens: size.tokens, ..first.layout.size } == size;
        same.then(|| first.layout.predictors.clone())
    }
}

impl JointForm for AquaKv {
    fn id(&self) -> &'static str {
        ID
    }

    fn describe(&self) -> Json {
        described(ID, self)
    }

    fn check(&self, shape: KvShape, _: usize) -> Result<()> {
        crate::factor::check(self.id())?;
        check_bits("bits", self.bits, 1..=8)?;
        check_bits("first_bits", self.first_bits, 1..=8)?;
        check_count("chunk", self.chunk, 1..=4096)?;
        check_count("head_dim", shape.head_dim, 1..=1 << 15)?;
        check_count("value_dim", shape.value_dim, 1..=1 << 15)?;
        if self.group == Some(0) {
            return Err(Error::invalid("group = 0: at least 1"));
        }
        if !(self.ridge > 0.0 && self.ridge.is_finite()) {
            let ridge = self.ridge;
            return Err(Error::invalid(format!("ridge = {ridge}: allowed are positive numbers")));
        }
        Ok(())
    }

    fn plain_keys(&self) -> bool {
        true
    }

    fn groups(&self, layers: usize) -> Vec<Range<usize>> {
        let group = self.group.unwrap_or(layers).max(1);
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
        let size = Size::of(keys, values);
        let both: Vec<[&Array3<f32>; 2]> = keys.iter().zip(values).map(|(k, v)| [k, v]).collect();
        let Some(known) = first.and_then(|first| Missed::of(first, size)) else {
            return Ok(Arc::new(self.pack_first(size, &both)));
        };
        let layout = Missed::new(*self, size, false, known);
        let (mut arrays, mut before) = (vec![Vec::new(); 4], layout.nothing());
        for (member, exact) in both.iter().enumerate() {
            let mut own = Array3::zeros((0, 0, 0));
            for (role, exact) in ROLES.into_iter().zip(exact) {
                own = layout.pack_rows(member, role, exact, (&mut before, own), &mut arrays);
            }
        }
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
        crate::factor::check(self.id())?;
        check_bits("bits", self.bits, 1..=8)?;
        check_bits("first_bits", self.first_bits, 1..=8)?;
        let size = Size::read(&group, json)?;
        let known = first.map(|first| Missed::of(first, size));
        if matches!(known, Some(None)) {
            let why = "KV cache description: a page unlike the first of its group";
            return Err(Error::corruption(why).in_tensor(prefix));
        }
        let known = known.flatten();
        let mine = known.is_none();
        let layout = Missed::new(*self, size, mine, known.unwrap_or_default());
        let mut page = Sheet::read(layout, prefix, source)?;
        if mine {
            let (values, mut at) = (floats(DType::F16, &page.arrays[2]), 0);
            let mut next = |(x, y): (usize, usize)| {
                let matrix = ArrayView2::from_shape((x, y), &values[at..][..x * y]);
                at += x * y;
                matrix.expect("as many as are written").to_owned()
            };
            let layout = &page.layout;
            let blocks = layout.blocks();
            let mut of_block =
                |heads: &Range<usize>| ROLES.map(|role| next(layout.shape(role, heads.len())));
            let members = (1..size.members).map(|_| blocks.iter().map(&mut of_block).collect());
            let predictors = Predictors(members.collect());
            page.layout.predictors = Arc::new(predictors);
        }
        Ok(Arc::new(page))
    }
}

impl Knobs for AquaKv {
    fn knobs(&mut self, keys: &mut Keys<'_>) -> Result<()> {
        keys.int("bits", &mut self.bits, 1..=8, "bits of a code")?;
        let about = "bits of a code in the first layer of a group";
        keys.int("first_bits", &mut self.first_bits, 1..=8, about)?;
        keys.flag("together", &mut self.together, "predictors take all heads, not each alone")?;
        let about = "ridge of the regressions, as a share of their inputs' mean square, above 0";
        keys.float("ridge", &mut self.ridge, 0.0..=1e6, about)?;
        keys.optional("group", &mut self.group, 1..=1 << 20, "layers of a group; else all")?;
        keys.int("sinks", &mut self.sinks, 0..=4096, "first tokens that stay exact")?;
        keys.int("seed", &mut self.seed, 0..=i64::MAX, "of the signs")?;
        let about = "tokens of a page; predictors are fitted on the first";
        keys.int("chunk", &mut self.chunk, 1..=4096, about)?;
        keys.int("window", &mut self.window, 0..=1 << 20, "newest tokens that are exact")?;
        let about = "newest tokens that can be taken back exactly";
        keys.int("margin", &mut self.margin, 0..=1 << 20, about)
    }
}

pub(super) fn stage() -> Row<KvPart> {
    let about = "holds what the layer before does not predict";
    let build = |form: AquaKv, _| Ok(KvPart::Joint(Arc::new(form)));
    Row::new(ID, KvRole::Store, about, AquaKv::default, build)
}
