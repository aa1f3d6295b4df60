use ndarray::{Array2, ArrayView3, ArrayViewMut3, Axis, s};
use tensorpress_tensor::node::Json;
use tensorpress_tensor::{Error, PartSink, Result, Scratch, ndarray};

use super::form::StoreForm;
use super::head::Tier;
use super::{Causal, HeadSlots, KvShape, KvStore, Watch};
use crate::rope::Rope;

/// A layer in one [`StoreForm`], or in two: tokens may be demoted to a second, lower one.
#[derive(Debug, Clone)]
pub struct Layer {
    pub(super) shape: KvShape,
    pub(super) form: StoreForm,
    pub(super) low: Option<StoreForm>,
    /// Keys are held before rotary embedding, and rotated when they are read.
    pub(super) rope: Option<Rope>,
    pub(super) heads: Vec<Head>,
    pub(super) len: usize,
    /// Length when something was last evicted or demoted.
    pub(super) settled: usize,
}

#[derive(Debug, Clone)]
pub(super) struct Head {
    pub(super) main: Tier,
    pub(super) low: Option<Tier>,
}

impl Layer {
    /// An empty layer.
    ///
    /// # Errors
    /// Those of [`StoreForm::check`].
    pub fn new(shape: KvShape, form: StoreForm) -> Result<Self> {
        form.check(shape.head_dim)?;
        let head = || Head { main: Tier::new(&form, shape), low: None };
        let heads = (0..shape.kv_heads).map(|_| head()).collect();
        Ok(Self { shape, form, low: None, rope: None, heads, len: 0, settled: 0 })
    }

    /// Lets tokens be demoted to this form.
    ///
    /// # Errors
    /// Those of [`StoreForm::check`].
    pub fn with_low(mut self, form: StoreForm) -> Result<Self> {
        form.check(self.shape.head_dim)?;
        self.low = Some(form);
        Ok(self)
    }

    /// Takes keys before rotary embedding and rotates them when they are read. Queries still come rotated.
    ///
    /// # Errors
    /// `ShapeMismatch` if the embedding has another number of channels.
    pub fn with_plain_keys(mut self, rope: Rope) -> Result<Self> {
        if rope.dim() != self.shape.head_dim {
            let (rope, dim) = (rope.dim(), self.shape.head_dim);
            return Err(Error::shape(format!(
                "rotary embedding of {rope} channels, head_dim = {dim}"
            )));
        }
        self.rope = Some(rope);
        Ok(self)
    }

    /// How tokens are held.
    #[must_use]
    pub fn form(&self) -> StoreForm {
        self.form
    }

    /// Tokens held for a head, but demoted ones.
    ///
    /// # Panics
    /// If there is no such head.
    #[must_use]
    pub fn held(&self, head: usize) -> usize {
        self.heads[head].main.len()
    }

    fn check_slots(&self, keep: &HeadSlots) -> Result<()> {
        if keep.0.len() != self.heads.len() {
            let (found, heads) = (keep.0.len(), self.heads.len());
            return Err(Error::shape(format!("slots of {found} heads, {heads} expected")));
        }
        for (keep, head) in keep.0.iter().zip(&self.heads) {
            let ascending = keep.windows(2).all(|w| w[0] < w[1]);
            if !ascending || keep.last().is_some_and(|last| *last >= head.main.len()) {
                let held = head.main.len();
                return Err(Error::invalid(format!("slots to keep: must ascend, below {held}")));
            }
        }
        Ok(())
    }

    /// Moves all slots but these to the low form.
    ///
    /// # Errors
    /// As [`KvStore::retain`]; `Unsupported` without a low form.
    pub fn demote(&mut self, keep: &HeadSlots) -> Result<()> {
        self.check_slots(keep)?;
        let Some(form) = self.low else {
            return Err(Error::unsupported("demote: the layer has no low form"));
        };
        for (head, keep) in self.heads.iter_mut().zip(&keep.0) {
            let mut kept = keep.iter().peekable();
            let goes: Vec<usize> = (0..head.main.len())
                .filter(|slot| kept.next_if(|k| *k == slot).is_none())
                .collect();
            if goes.is_empty() {
                continue;
            }
            let (k, v) = (head.main.decode(&*head.main.keys), head.main.decode(&*head.main.values));
            let positions: Vec<usize> = goes.iter().map(|slot| head.main.position(*slot)).collect();
            let low = head.low.get_or_insert_with(|| Tier::new(&form, self.shape));
            low.push_at(&k.select(Axis(0), &goes), &v.select(Axis(0), &goes), &positions);
            head.main.retain(keep);
        }
        self.settled = self.len;
        Ok(())
    }

    /// Keys of a tier, rotated where they are held plain.
    pub(super) fn rotated(&self, tier: &Tier) -> Array2<f32> {
        let mut k = tier.decode(&*tier.keys);
        if let Some(rope) = &self.rope {
            for (slot, mut row) in k.rows_mut().into_iter().enumerate() {
                rope.rotate(row.as_slice_mut().expect("contiguous"), tier.position(slot));
            }
        }
        k
    }
}

impl Head {
    pub(super) fn tiers(&self) -> Vec<&Tier> {
        std::iter::once(&self.main).chain(&self.low).collect()
    }
}

impl KvStore for Layer {
    fn shape(&self) -> KvShape {
        self.shape
    }

    fn len(&self) -> usize {
        self.len
    }

    fn positions(&self, head: usize) -> Vec<usize> {
        let main = &self.heads[head].main;
        (0..main.len()).map(|slot| main.position(slot)).collect()
    }

    fn append(&mut self, keys: ArrayView3<'_, f32>, values: ArrayView3<'_, f32>) -> Result<()> {
        self.shape.check("keys", self.shape.kv_heads, keys.dim())?;
        self.shape.check("values", self.shape.kv_heads, values.dim())?;
        if keys.dim() != values.dim() {
            let (k, v) = (keys.dim().0, values.dim().0);
            return Err(Error::shape(format!("keys of {k} tokens, values of {v}")));
        }
        let tokens = keys.dim().0;
        if self.len + tokens > u32::MAX as usize {
            return Err(Error::unsupported(format!(
                "{} tokens: at most {}",
                self.len + tokens,
                u32::MAX
            )));
        }
        let limit = self.low.iter().map(StoreForm::limit).fold(self.form.limit(), f32::min);
        for (what, x) in [("keys", &keys), ("values", &values)] {
            if let Some(bad) = x.iter().find(|v| v.is_nan() || v.abs() > limit) {
                return Err(Error::numerical(format!(
                    "{what}: {bad}; this form holds finite values up to {limit:e}"
                )));
            }
        }
        for (h, head) in self.heads.iter_mut().enumerate() {
            head.main.push(keys.slice(s![.., h, ..]), values.slice(s![.., h, ..]), self.len);
        }
        self.len += tokens;
        Ok(())
    }

    fn attend(
        &self,
        queries: ArrayView3<'_, f32>,
        causal: Causal,
        out: ArrayViewMut3<'_, f32>,
        scratch: &mut Scratch,
        watch: Option<&mut Watch<'_>>,
    ) -> Result<()> {
        self.shape.check("queries", self.shape.heads, queries.dim())?;
        if out.dim() != queries.dim() {
            let (o, q) = (out.dim(), queries.dim());
            return Err(Error::shape(format!("out {o:?}, queries {q:?}")));
        }
        self.attend_heads(queries, causal, out, scratch, watch);
        Ok(())
    }

    fn keys(&self, head: usize) -> Array2<f32> {
        self.rotated(&self.heads[head].main)
    }

    fn values(&self, head: usize) -> Array2<f32> {
        let tier = &self.heads[head].main;
        tier.decode(&*tier.values)
    }

    fn retain(&mut self, keep: &HeadSlots) -> Result<()> {
        self.check_slots(keep)?;
        for (head, keep) in self.heads.iter_mut().zip(&keep.0) {
            head.main.retain(keep);
        }
        self.settled = self.len;
        Ok(())
    }

    fn earliest(&self) -> usize {
        let of = |head: &Head| {
            let slots = head.main.earliest();
            if slots == 0 { 0 } else { head.main.position(slots - 1) + 1 }
        };
        self.heads.iter().map(of).max().unwrap_or(0).max(self.settled)
    }

    fn truncate(&mut self, len: usize) -> Result<()> {
        if len > self.len {
            return Err(Error::invalid(format!(
                "truncate to {len}: there are {} tokens",
                self.len
            )));
        }
        if len == self.len {
            return Ok(());
        }
        let earliest = self.earliest();
        if len > 0 && len < earliest {
            return Err(Error::unsupported(format!(
                "truncate to {len}: tokens were evicted or packed since; allowed are 0 and {earliest} to {}",
                self.len
            )));
        }
        for head in &mut self.heads {
            let slots = head.main.slots_before(len);
            head.main.truncate(slots);
            if len == 0 {
                head.low = None;
            }
        }
        self.len = len;
        self.settled = self.settled.min(len);
        Ok(())
    }

    fn fork(&self) -> Box<dyn KvStore> {
        Box::new(self.clone())
    }

    fn describe(&self) -> Json {
        self.describe_layer()
    }

    fn parts(&self, prefix: &str, sink: &mut dyn PartSink) -> Result<()> {
        self.write_parts(prefix, sink)
    }

    fn bytes(&self) -> u64 {
        self.heads.iter().flat_map(Head::tiers).map(Tier::bytes).sum()
    }
}
