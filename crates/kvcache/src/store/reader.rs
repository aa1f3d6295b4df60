//! A layer without keys and values of its own.

use ndarray::{ArrayView3, ArrayViewMut3};
use tensorpress_tensor::{Error, Result, Scratch, ndarray};

use super::{Bias, Causal, KvShape, Layer, Scoring, Watch};

/// A layer that attends over the keys and values of another one, as the later layers of Gemma 3n and of YOCO (Sun et al.,
/// 2024) do: the owner holds them once, and each reader has its own queries, scoring and number of query heads.
///
/// A reader looks and leaves no trace: the statistics of the owner's policy are of the owner's queries alone, and where the
/// owner's [`crate::Cache::attend`] has evicted something, it is gone for readers that come after it.
///
/// ```
/// use tensorpress_kvcache::{Causal, KvShape, KvStore, Layer, Reader, Scoring, StoreForm};
/// use tensorpress_tensor::ndarray::Array3;
/// use tensorpress_tensor::{DType, Scratch};
///
/// let shape = KvShape::new(2, 1, 4)?;
/// let mut owner = Layer::new(shape, StoreForm::Float(DType::F32))?;
/// let reader = Reader::new(shape, 4)?.with_scoring(Scoring::default().with_softcap(50.0))?;
/// let keys = Array3::from_elem((3, 1, 4), 0.5);
/// owner.append(keys.view(), keys.view())?;
/// let (queries, mut out) = (Array3::from_elem((1, 4, 4), 1.0), Array3::zeros((1, 4, 4)));
/// let (causal, mut scratch) = (Causal::from(2), Scratch::default());
/// reader.attend(&owner, queries.view(), causal, None, out.view_mut(), &mut scratch, None)?;
/// assert!(out.iter().all(|v: &f32| (v - 0.5).abs() < 1e-6));
/// # Ok::<(), tensorpress_tensor::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Reader {
    shape: KvShape,
    scoring: Scoring,
}

/// Who reads: heads of queries, and how they weigh.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reading<'a> {
    pub(super) shape: KvShape,
    pub(super) scoring: &'a Scoring,
}

impl Reader {
    /// A layer of `heads` query heads over owners of this shape.
    ///
    /// # Errors
    /// As [`KvShape::new`].
    pub fn new(owner: KvShape, heads: usize) -> Result<Self> {
        let shape = KvShape::new(heads, owner.kv_heads, owner.head_dim)?;
        let shape = shape.with_value_dim(owner.value_dim)?;
        Ok(Self { shape, scoring: Scoring::default() })
    }

    /// Says how products of its queries and the owner's keys become weights.
    ///
    /// # Errors
    /// Those of [`Scoring::check`].
    pub fn with_scoring(mut self, scoring: Scoring) -> Result<Self> {
        scoring.check(self.shape)?;
        self.scoring = scoring;
        Ok(self)
    }

    /// Heads: its own of queries, the owner's of keys and values.
    #[must_use]
    pub fn shape(&self) -> KvShape {
        self.shape
    }

    /// Attention of its queries `[tokens, heads, head_dim]` over the owner's keys and values; see
    /// [`crate::KvStore::attend_with`].
    ///
    /// # Errors
    /// As there; `ShapeMismatch` for an owner of other heads.
    pub fn attend(
        &self,
        owner: &Layer,
        queries: ArrayView3<'_, f32>,
        causal: Causal,
        bias: Option<Bias<'_>>,
        out: ArrayViewMut3<'_, f32>,
        scratch: &mut Scratch,
        watch: Option<&mut Watch<'_>>,
    ) -> Result<()> {
        if (KvShape { heads: self.shape.heads, ..owner.shape }) != self.shape {
            let (owner, mine) = (owner.shape, self.shape);
            return Err(Error::shape(format!(
                "keys and values of {owner:?}, a reader of {mine:?}"
            )));
        }
        let reading = Reading { shape: self.shape, scoring: &self.scoring };
        owner.attend_heads(reading, queries, causal, bias, out, scratch, watch)
    }
}
