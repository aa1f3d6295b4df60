use ndarray::{Array2, ArrayView3, ArrayViewMut3, Axis};
use tensorpress_tensor::node::Json;
use tensorpress_tensor::{Error, PartSink, Result, Scratch, ndarray};

use super::form::StoreForm;
use super::head::Tier;
use super::joint::Joined;
use super::merged::Merged;
use super::reader::Reading;
use super::{Bias, Causal, HeadSlots, KvShape, KvStore, Scoring, Watch};
use crate::rope::Rope;

/// A layer in one [`StoreForm`], or in two: tokens may be demoted to a second, lower one.
#[derive(Debug, Clone)]
pub struct Layer {
    pub(super) shape: KvShape,
    pub(super) form: StoreForm,
    pub(super) low: Option<StoreForm>,
    /// Keys are held before rotary embedding, and rotated when they are read.
    pub(super) rope: Option<Rope>,
    /// Keys come rotated all the same, and are turned back.
    pub(super) turned: bool,
    pub(super) scoring: Scoring,
    /// Values are the first channels of the keys.
    pub(super) values_in_keys: bool,
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
        form.check_widths(shape.head_dim, shape.value_dim)?;
        let mut layer = Self {
            shape,
            form,
            low: None,
            rope: None,
            turned: false,
            scoring: Scoring::default(),
            values_in_keys: false,
            heads: Vec::new(),
            len: 0,
            settled: 0,
        };
        layer.heads = (0..shape.kv_heads).map(|head| layer.empty_head(head)).collect();
        Ok(layer)
    }

    fn empty_head(&self, head: usize) -> Head {
        Head { main: Tier::new(&self.form, self.shape, head, self.values_in_keys), low: None }
    }

    /// Says how products of queries and keys become weights.
    ///
    /// # Errors
    /// Those of [`Scoring::check`].
    pub fn with_scoring(mut self, scoring: Scoring) -> Result<Self> {
        scoring.check(self.shape)?;
        self.scoring = scoring;
        Ok(self)
    }

    /// Holds values as what they are where they are the first `value_dim` channels of the keys: not a second time. That
    /// is MLA (DeepSeek-V2, 2024) held as its latent: one head of keys, each the latent and behind it the channels of
    /// position, both after whatever norm and rotary embedding the model has; values are the latent. With the maps from
    /// the latent to keys and values absorbed in queries and outputs, attention over it is that over all heads' keys and
    /// values. Integers are decoded for it at every call; floats and bitmaps are added up where they lie.
    ///
    /// ```
    /// use tensorpress_kvcache::{KvShape, KvStore, Layer, Scoring, StoreForm};
    /// use tensorpress_tensor::ndarray::{Array3, s};
    /// use tensorpress_tensor::DType;
    ///
    /// // 16 query heads of 128 + 64 channels; a latent of 512 that all of them share.
    /// let shape = KvShape::new(16, 1, 512 + 64)?.with_value_dim(512)?;
    /// let scoring = Scoring::default().with_scale(1.0 / (128.0f32 + 64.0).sqrt());
    /// let layer = Layer::new(shape, StoreForm::Float(DType::BF16))?;
    /// let mut layer = layer.with_scoring(scoring)?.with_values_in_keys()?;
    /// let latent = Array3::from_elem((10, 1, 512 + 64), 0.5);
    /// layer.append(latent.view(), latent.slice(s![.., .., ..512]))?;
    /// assert_eq!(layer.bytes(), 10 * (512 + 64) * 2);
    /// # Ok::<(), tensorpress_tensor::Error>(())
    /// ```
    ///
    /// # Errors
    /// `InvalidArgument` for values wider than keys, or where there are tokens already; `Unsupported` with plain keys.
    pub fn with_values_in_keys(mut self) -> Result<Self> {
        let KvShape { head_dim, value_dim, .. } = self.shape;
        if value_dim > head_dim {
            return Err(Error::invalid(format!(
                "value_dim = {value_dim}: at most head_dim = {head_dim} where values are in the keys"
            )));
        }
        if self.rope.is_some() {
            return Err(Error::unsupported("values in keys that are held before rotary embedding"));
        }
        if !self.is_empty() {
            return Err(Error::invalid("values in keys: said while the layer is empty"));
        }
        self.values_in_keys = true;
        self.heads = (0..self.shape.kv_heads).map(|head| self.empty_head(head)).collect();
        Ok(self)
    }

    /// Lets tokens be demoted to this form.
    ///
    /// # Errors
    /// Those of [`StoreForm::check`].
    pub fn with_low(mut self, form: StoreForm) -> Result<Self> {
        form.check_widths(self.shape.head_dim, self.shape.value_dim)?;
        self.low = Some(form);
        Ok(self)
    }

    /// Takes keys before rotary embedding and rotates them when they are read. Queries still come rotated.
    ///
    /// # Errors
    /// `ShapeMismatch` if the embedding has another number of channels, `Unsupported` where values are in the keys.
    pub fn with_plain_keys(mut self, rope: Rope) -> Result<Self> {
        if self.values_in_keys {
            return Err(Error::unsupported("values in keys that are held before rotary embedding"));
        }
        if rope.dim() != self.shape.head_dim {
            let (rope, dim) = (rope.dim(), self.shape.head_dim);
            return Err(Error::shape(format!(
                "rotary embedding of {rope} channels, head_dim = {dim}"
            )));
        }
        self.rope = Some(rope);
        Ok(self)
    }

    /// Takes keys after rotary embedding, turns them back, and holds and reads them as [`Layer::with_plain_keys`] does:
    /// channels then have a size of their own, which forms that quantise or project by channel want. Turning back is exact
    /// but for rounding.
    ///
    /// # Errors
    /// As there.
    pub fn with_turned_keys(self, rope: Rope) -> Result<Self> {
        let mut layer = self.with_plain_keys(rope)?;
        layer.turned = true;
        Ok(layer)
    }

    /// How tokens are held.
    #[must_use]
    pub fn form(&self) -> &StoreForm {
        &self.form
    }

    /// Keys are held before rotary embedding.
    #[must_use]
    pub fn holds_plain_keys(&self) -> bool {
        self.rope.is_some()
    }

    /// Merges slots: each head holds what its [`Merged`] says, and nothing else but what was demoted. Integers and bitmaps
    /// are packed anew.
    ///
    /// # Errors
    /// `ShapeMismatch` for other shapes, `InvalidArgument` for slots that are not there or not ascending, or weights that
    /// are not positive; `Numerical` for what is not finite; `Unsupported` where values are in the keys. The store is then
    /// as it was.
    pub fn merge(&mut self, merged: &[Merged]) -> Result<()> {
        if self.values_in_keys {
            return Err(Error::unsupported("merging where values are in the keys"));
        }
        let slots = HeadSlots(merged.iter().map(|m| m.slots.clone()).collect());
        self.check_slots(&slots)?;
        for (m, head) in merged.iter().zip(&self.heads) {
            m.check(self.shape, head.main.len())?;
            check_finite(&self.form, &m.keys.view().insert_axis(Axis(1)), "merged keys")?;
            check_finite(&self.form, &m.values.view().insert_axis(Axis(1)), "merged values")?;
        }
        for (m, head) in merged.iter().zip(&mut self.heads) {
            let mut keys = m.keys.clone();
            if let Some(rope) = &self.rope {
                for (row, slot) in keys.rows_mut().into_iter().zip(&m.slots) {
                    let row = row.into_slice().expect("contiguous");
                    rope.rotate_back(row, head.main.position(*slot));
                }
            }
            head.main.replace(&m.slots, keys.view(), m.values.view(), &m.weights);
        }
        self.settled = self.len;
        Ok(())
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
        let Some(form) = &self.low else {
            return Err(Error::unsupported("demote: the layer has no low form"));
        };
        let (shape, values_in_keys) = (self.shape, self.values_in_keys);
        for (h, (head, keep)) in self.heads.iter_mut().zip(&keep.0).enumerate() {
            let mut kept = keep.iter().peekable();
            let goes: Vec<usize> = (0..head.main.len())
                .filter(|slot| kept.next_if(|k| *k == slot).is_none())
                .collect();
            if goes.is_empty() {
                continue;
            }
            let (k, v) = (head.main.decode_keys(), head.main.decode_values());
            let positions: Vec<usize> = goes.iter().map(|slot| head.main.position(*slot)).collect();
            let weights: Vec<f32> = goes.iter().map(|slot| head.main.weight(*slot)).collect();
            let low = head.low.get_or_insert_with(|| Tier::new(form, shape, h, values_in_keys));
            let [k, v] = [k, v].map(|x| x.select(Axis(0), &goes));
            low.push_at(&k, &v, &positions, &weights);
            head.main.retain(keep);
        }
        self.settled = self.len;
        Ok(())
    }

    /// Rows of a head, keys and values.
    pub(crate) fn joined(&mut self, head: usize) -> [Option<&mut Joined>; 2] {
        let tier = &mut self.heads[head].main;
        let values = tier.values.as_mut().and_then(|values| values.joined());
        [tier.keys.joined(), values]
    }

    /// Keys of a tier, rotated where they are held plain.
    pub(super) fn rotated(&self, tier: &Tier) -> Array2<f32> {
        let mut k = tier.decode_keys();
        if let Some(rope) = &self.rope {
            for (slot, mut row) in k.rows_mut().into_iter().enumerate() {
                rope.rotate(row.as_slice_mut().expect("contiguous"), tier.position(slot));
            }
        }
        k
    }
}

/// Whether a form can hold this.
pub(super) fn check_finite(form: &StoreForm, x: &ArrayView3<'_, f32>, what: &str) -> Result<()> {
    let limit = form.limit();
    match x.iter().find(|v| v.is_nan() || v.abs() > limit) {
        None => Ok(()),
        Some(bad) => Err(Error::numerical(format!(
            "{what}: {bad}; this form holds finite values up to {limit:e}"
        ))),
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

    fn weights(&self, head: usize) -> Vec<f32> {
        let main = &self.heads[head].main;
        (0..main.len()).map(|slot| main.weight(slot)).collect()
    }

    fn scoring(&self) -> &Scoring {
        &self.scoring
    }

    fn append(&mut self, keys: ArrayView3<'_, f32>, values: ArrayView3<'_, f32>) -> Result<()> {
        self.take(keys, values, None)
    }

    fn attend_with(
        &self,
        queries: ArrayView3<'_, f32>,
        causal: Causal,
        bias: Option<Bias<'_>>,
        out: ArrayViewMut3<'_, f32>,
        scratch: &mut Scratch,
        watch: Option<&mut Watch<'_>>,
    ) -> Result<()> {
        let reading = Reading { shape: self.shape, scoring: &self.scoring };
        self.attend_heads(reading, queries, causal, bias, out, scratch, watch)
    }

    fn keys(&self, head: usize) -> Array2<f32> {
        self.rotated(&self.heads[head].main)
    }

    fn values(&self, head: usize) -> Array2<f32> {
        self.heads[head].main.decode_values()
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
