use std::ops::Range;
use std::sync::Arc;

use ndarray::{Array3, ArrayView1, ArrayViewMut2, Axis, s};
use serde::{Deserialize, Serialize};
use tensorpress_tensor::kernels::packed_len;
use tensorpress_tensor::node::{Json, PartSource};
use tensorpress_tensor::stage::{Keys, Knobs, Row};
use tensorpress_tensor::{DType, Error, PartKind, Result, ndarray};

use super::sheet::{Layout, Sheet, Size, described, put_half};
use crate::stage::{KvPart, KvRole};
use crate::store::coded::{Grid, Stream, floats, put_codes, put_floats, take_codes};
use crate::store::int::Role;
use crate::store::own::check_count;
use crate::store::{JointForm, JointPage, KvShape, Paging};

pub(super) const ID: &str = "minicache";

/// Which tokens stay unmerged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Unmerged {
    /// The share of them, rounded up, whose directions differ most: the paper's.
    #[default]
    Farthest,
    /// Those whose angle is within this share of the range of all heads' angles from the smallest: xKV's released reading of
    /// it; at most as many of a head as a quarter of its tokens.
    Nearest,
}

/// MiniCache (Liu et al., 2024): from the middle layer on, keys and values of two neighbouring layers as one direction between
/// theirs and two lengths; the tokens whose directions differ most stay as they are.
///
/// e = sin((1 - t) Ω) / sin Ω x₁ / |x₁| + sin(t Ω) / sin Ω x₂ / |x₂|, Ω the angle between x₁ and x₂; x₁ becomes |x₁| e.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct MiniCache {
    /// Where the direction lies: 0 the earlier layer's, 1 the later one's.
    pub t: f64,
    /// Share of a head's tokens, of each page, that stay unmerged.
    pub share: f64,
    /// Which.
    pub unmerged: Unmerged,
    /// The first layer that is merged; the middle one if absent.
    pub first: Option<usize>,
    /// Bits of a direction's channel: 16 for f16, or 2 to 8 on a grid of each token's head.
    pub bits: u32,
    /// Tokens of a page.
    pub chunk: usize,
    /// Newest tokens that are exact.
    pub window: usize,
    /// Newest tokens that can be taken back exactly.
    pub margin: usize,
}

impl Default for MiniCache {
    /// t = 0.6, 5% unmerged, from the middle layer on, f16, pages of 64 tokens, a window and a margin of 32.
    fn default() -> Self {
        let (t, share, unmerged, first) = (0.6, 0.05, Unmerged::Farthest, None);
        Self { t, share, unmerged, first, bits: 16, chunk: 64, window: 32, margin: 32 }
    }
}

super::paged!(MiniCache);

impl MiniCache {
    /// Sets where the direction lies.
    #[must_use]
    pub fn with_t(mut self, t: f64) -> Self {
        self.t = t;
        self
    }

    /// Sets which tokens stay unmerged.
    #[must_use]
    pub fn with_unmerged(mut self, unmerged: Unmerged, share: f64) -> Self {
        (self.unmerged, self.share) = (unmerged, share);
        self
    }

    /// Sets the first layer that is merged.
    #[must_use]
    pub fn with_first(mut self, layer: usize) -> Self {
        self.first = Some(layer);
        self
    }

    /// Sets the bits of a direction's channel.
    #[must_use]
    pub fn with_bits(mut self, bits: u32) -> Self {
        self.bits = bits;
        self
    }

    /// Tokens of a head's page that can stay unmerged: the arrays have room for as many.
    fn kept(&self, tokens: usize) -> usize {
        match self.unmerged {
            Unmerged::Farthest => (tokens as f64 * self.share).ceil() as usize,
            Unmerged::Nearest if self.share > 0.0 => tokens.div_ceil(4),
            Unmerged::Nearest => 0,
        }
    }
}

fn length(x: ArrayView1<'_, f32>) -> f32 {
    x.iter().map(|x| x * x).sum::<f32>().sqrt()
}

/// The angle between two rows, and the direction between theirs; the second's where one of them is nothing or they are alike.
pub(super) fn between(a: ArrayView1<'_, f32>, b: ArrayView1<'_, f32>, t: f64) -> (f64, Vec<f32>) {
    let (p, q) = (f64::from(length(a)), f64::from(length(b)));
    let unit = |x: ArrayView1<'_, f32>, of: f64| -> Vec<f64> {
        x.iter().map(|x| if of > 0.0 { f64::from(*x) / of } else { 0.0 }).collect()
    };
    let (a, b) = (unit(a, p), unit(b, q));
    let cosine: f64 = a.iter().zip(&b).map(|(a, b)| a * b).sum();
    let angle = if p > 0.0 && q > 0.0 { cosine.clamp(-1.0, 1.0).acos() } else { 0.0 };
    let (from, to) = if angle.sin() > 1e-6 {
        (((1.0 - t) * angle).sin() / angle.sin(), (t * angle).sin() / angle.sin())
    } else if q > 0.0 {
        (0.0, 1.0)
    } else {
        (1.0, 0.0)
    };
    (angle, a.iter().zip(&b).map(|(a, b)| (from * a + to * b) as f32).collect())
}

/// Which tokens of each head stay unmerged, by their angles `[heads][tokens]`.
pub(super) fn unmerged(of: &MiniCache, angles: &[Vec<f64>]) -> Vec<Vec<usize>> {
    let all = || angles.iter().flatten().copied();
    let (low, high) =
        (all().fold(f64::INFINITY, f64::min), all().fold(f64::NEG_INFINITY, f64::max));
    let most = low + (high - low) * of.share;
    let head = |angles: &Vec<f64>| {
        let mut order: Vec<usize> = (0..angles.len()).collect();
        match of.unmerged {
            Unmerged::Farthest => order.sort_by(|a, b| angles[*b].total_cmp(&angles[*a])),
            Unmerged::Nearest => {
                order.retain(|t| angles[*t] <= most);
                order.sort_by(|a, b| angles[*a].total_cmp(&angles[*b]));
            }
        }
        order.truncate(of.kept(angles.len()));
        order.sort_unstable();
        order
    };
    angles.iter().map(head).collect()
}

/// Arrays of keys, then of values.
#[derive(Debug)]
struct Merged {
    form: MiniCache,
    size: Size,
}

const ARRAYS: [[Stream; 5]; 2] = [
    [
        ("key_directions", PartKind::Codes),
        ("key_grids", PartKind::Scales),
        ("key_lengths", PartKind::Scales),
        ("key_places", PartKind::Indices),
        ("key_rows", PartKind::Values),
    ],
    [
        ("value_directions", PartKind::Codes),
        ("value_grids", PartKind::Scales),
        ("value_lengths", PartKind::Scales),
        ("value_places", PartKind::Indices),
        ("value_rows", PartKind::Values),
    ],
];

/// No token.
const NONE: u16 = u16::MAX;

impl Merged {
    /// Bytes of a row's direction.
    fn row(&self, dim: usize) -> usize {
        if self.form.bits == 16 { 2 * dim } else { packed_len(dim, self.form.bits) }
    }

    fn pack(&self, role: Role, layers: &[Array3<f32>]) -> [Vec<u8>; 5] {
        let mut arrays = [const { Vec::new() }; 5];
        let (tokens, heads, dim) = layers[0].dim();
        let (mut angles, mut directions) = (Vec::new(), Vec::new());
        for h in 0..heads {
            let row = |t: usize| {
                let [a, b] = [0, 1].map(|m| layers[m].slice(s![t, h, ..]));
                between(a, b, self.form.t)
            };
            let (angle, direction): (Vec<f64>, Vec<Vec<f32>>) = (0..tokens).map(row).unzip();
            angles.push(angle);
            directions.extend(direction);
        }
        debug_assert_eq!(self.size.dim(role), dim);
        let [codes, grids, lengths, places, rows] = &mut arrays;
        for direction in &directions {
            if self.form.bits == 16 {
                put_half(direction.iter().copied(), codes);
            } else {
                let most = ((1u32 << self.form.bits) - 1) as f32;
                let grid = Grid::of(direction, most, DType::F16);
                let row: Vec<u8> = direction.iter().map(|x| grid.code(*x)).collect();
                put_codes(&row, self.form.bits, codes);
                put_floats(DType::F16, &[grid.scale, grid.min], grids);
            }
        }
        for layer in layers {
            for h in 0..heads {
                let of = layer.index_axis(Axis(1), h);
                let all: Vec<f32> = of.rows().into_iter().map(length).collect();
                put_floats(DType::F32, &all, lengths);
            }
        }
        let room = self.form.kept(tokens);
        for (h, kept) in unmerged(&self.form, &angles).iter().enumerate() {
            let of_head = kept.iter().map(|t| *t as u16).chain(std::iter::repeat(NONE));
            of_head.take(room).for_each(|t| places.extend(t.to_le_bytes()));
            for layer in layers {
                let of = layer.index_axis(Axis(1), h);
                for i in 0..room {
                    let row = kept.get(i).map_or(vec![0.0; dim], |t| of.row(*t).to_vec());
                    put_half(row.into_iter(), rows);
                }
            }
        }
        arrays
    }
}

impl Layout for Merged {
    fn arrays(&self) -> Vec<(Stream, usize)> {
        let Size { tokens, heads, .. } = self.size;
        let (rows, kept) = (tokens * heads, self.form.kept(tokens) * heads);
        let of = |(names, dim): (&[Stream; 5], usize)| {
            let grids = if self.form.bits == 16 { 0 } else { 4 * rows };
            let bytes = [rows * self.row(dim), grids, 2 * 4 * rows, 2 * kept, 2 * 2 * kept * dim];
            names.iter().copied().zip(bytes).collect::<Vec<_>>()
        };
        ARRAYS.iter().zip([self.size.key_dim, self.size.value_dim]).flat_map(of).collect()
    }

    fn decode(
        &self,
        arrays: &[Vec<u8>],
        (member, role, head): (usize, Role, usize),
        mut out: ArrayViewMut2<'_, f32>,
    ) {
        let Size { tokens, heads, .. } = self.size;
        let dim = self.size.dim(role);
        let at = if role == Role::Keys { 0 } else { 5 };
        let [directions, grids, lengths, places, rows] = [0, 1, 2, 3, 4].map(|i| &arrays[at + i]);
        let first = head * tokens;
        let bytes = self.row(dim);
        let lengths = &lengths[4 * (member * heads * tokens + first)..][..4 * tokens];
        let lengths = floats(DType::F32, lengths);
        for (t, mut row) in out.rows_mut().into_iter().enumerate() {
            let held = &directions[(first + t) * bytes..][..bytes];
            let direction = if self.form.bits == 16 {
                floats(DType::F16, held)
            } else {
                let grid = floats(DType::F16, &grids[4 * (first + t)..][..4]);
                let codes = take_codes(held, self.form.bits, dim);
                codes.into_iter().map(|code| f32::from(code) * grid[0] + grid[1]).collect()
            };
            row.iter_mut().zip(direction).for_each(|(out, e)| *out = lengths[t] * e);
        }
        let room = self.form.kept(tokens);
        let places = places[2 * head * room..][..2 * room].as_chunks().0;
        let rows = &rows[2 * dim * room * (2 * head + member)..][..2 * dim * room];
        for (place, row) in places.iter().zip(rows.chunks_exact(2 * dim)) {
            // What is no token is none that is written over.
            let t = usize::from(u16::from_le_bytes(*place));
            if t < tokens {
                out.row_mut(t).assign(&ArrayView1::from(&floats(DType::F16, row)));
            }
        }
    }

    fn size(&self) -> Size {
        self.size
    }
}

impl JointForm for MiniCache {
    fn id(&self) -> &'static str {
        ID
    }

    fn describe(&self) -> Json {
        described(ID, self)
    }

    fn check(&self, shape: KvShape, _: usize) -> Result<()> {
        check_count("chunk", self.chunk, 1..=4096)?;
        check_count("head_dim", shape.head_dim, 1..=1 << 15)?;
        check_count("value_dim", shape.value_dim, 1..=1 << 15)?;
        for (key, share) in [("t", self.t), ("share", self.share)] {
            if !(0.0..=1.0).contains(&share) {
                return Err(Error::invalid(format!("{key} = {share}: allowed are 0 to 1")));
            }
        }
        if self.bits != 16 && !(2..=8).contains(&self.bits) {
            let bits = self.bits;
            return Err(Error::invalid(format!("bits = {bits}: allowed are 2 to 8, and 16")));
        }
        Ok(())
    }

    fn groups(&self, layers: usize) -> Vec<Range<usize>> {
        let first = self.first.unwrap_or(layers / 2);
        (first..layers.saturating_sub(1)).step_by(2).map(|layer| layer..layer + 2).collect()
    }

    fn paging(&self) -> Paging {
        Paging::new(self.chunk).with_window(self.window).with_margin(self.margin)
    }

    fn pack(
        &self,
        _: Range<usize>,
        _: Option<&dyn JointPage>,
        keys: &[Array3<f32>],
        values: &[Array3<f32>],
    ) -> Result<Arc<dyn JointPage>> {
        let layout = Merged { form: *self, size: Size::of(keys, values) };
        let arrays = [layout.pack(Role::Keys, keys), layout.pack(Role::Values, values)];
        Ok(Arc::new(Sheet { layout, arrays: arrays.into_iter().flatten().collect() }))
    }

    fn read_page(
        &self,
        group: Range<usize>,
        _: Option<&dyn JointPage>,
        json: &Json,
        prefix: &str,
        source: &dyn PartSource,
    ) -> Result<Arc<dyn JointPage>> {
        let layout = Merged { form: *self, size: Size::read(&group, json)? };
        Ok(Arc::new(Sheet::read(layout, prefix, source)?))
    }
}

impl Knobs for MiniCache {
    fn knobs(&mut self, keys: &mut Keys<'_>) -> Result<()> {
        keys.float("t", &mut self.t, 0.0..=1.0, "where the direction lies between the layers'")?;
        let about = "share of the tokens that stay unmerged";
        keys.float("share", &mut self.share, 0.0..=1.0, about)?;
        let which = [("farthest", Unmerged::Farthest), ("nearest", Unmerged::Nearest)];
        keys.choice("unmerged", &mut self.unmerged, &which, "which; the paper's are the farthest")?;
        let about = "first layer that is merged; else the middle one";
        keys.optional("first", &mut self.first, 0..=1 << 20, about)?;
        let about = "bits of a direction's channel, 16 for f16";
        keys.one_of("bits", &mut self.bits, &[2, 3, 4, 5, 6, 7, 8, 16], about)?;
        keys.int("chunk", &mut self.chunk, 1..=4096, "tokens of a page")?;
        keys.int("window", &mut self.window, 0..=1 << 20, "newest tokens that are exact")?;
        let about = "newest tokens that can be taken back exactly";
        keys.int("margin", &mut self.margin, 0..=1 << 20, about)
    }
}

pub(super) fn stage() -> Row<KvPart> {
    let about = "holds two neighbouring layers as one direction and two lengths";
    let build = |form: MiniCache, _| Ok(KvPart::Joint(Arc::new(form)));
    Row::new(ID, KvRole::Store, about, MiniCache::default, build)
}
