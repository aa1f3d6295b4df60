//! What a compression method is: statistics it needs, targets in, nodes out.

use std::fmt::Debug;
use std::sync::Arc;

use ndarray::{Array2, ArrayView2, CowArray, Ix2};

use crate::dtype::DType;
use crate::error::{Context, Error, Result};
use crate::grid::GridSpec;
use crate::linalg::Par;
use crate::node::{Mask, Node};
use crate::rate::RateCurve;
use crate::row_feedback::RowFeedback;
use crate::stats::{Calibration, Needs};

/// A method has a name and declares the calibration statistics it wants.
///
/// ```
/// use tensorpress_tensor::{Method, stats::Needs};
///
/// #[derive(Debug)]
/// struct Soft;
///
/// impl Method for Soft {
///     fn id(&self) -> &'static str {
///         "soft"
///     }
///     fn needs(&self) -> Needs {
///         Needs::GRAM | Needs::MOMENTS
///     }
/// }
/// assert!(Soft.takes_mask() && Soft.grid().is_none());
/// ```
pub trait Method: Debug + Send + Sync {
    /// Name in recipes and reports.
    fn id(&self) -> &'static str;
    /// Statistics it uses; the pipeline collects the union over all methods once.
    fn needs(&self) -> Needs;
    /// The method that it stands before and changes nothing else of: all that it does not answer itself is then answered by
    /// that one. None by default.
    fn around(&self) -> Option<&dyn Method> {
        None
    }
    /// The integer grid it rounds to, which transforms before it want to know; none by default.
    fn grid(&self) -> Option<GridSpec> {
        self.around()?.grid()
    }
    /// It can be told which entries are kept ([`Target::mask`]). True by default; factors cannot.
    fn takes_mask(&self) -> bool {
        self.around().is_none_or(|method| method.takes_mask())
    }
    /// Bits a weight that all matrices it compresses are to take together, where it leaves their division to a caller that
    /// knows them all and finds the one step for it ([`Compress::rates`], [`Target::step`]). None by default: each matrix
    /// for itself.
    fn shared_bits(&self) -> Option<f64> {
        self.around()?.shared_bits()
    }
    /// Where it shares bits: whatever the matrix, a weight loses step² / 24 at a step, as on grids; not so where the step is
    /// the price of a rank. False by default.
    fn loses_by_steps(&self) -> bool {
        self.around().is_some_and(|method| method.loses_by_steps())
    }
    /// It leaves nothing of a matrix: all of it is 0. False by default.
    fn drops(&self) -> bool {
        self.around().is_some_and(|method| method.drops())
    }
    /// It makes good for the mean error by a bias, so that nothing else may. False by default.
    fn corrects_bias(&self) -> bool {
        self.around().is_some_and(|method| method.corrects_bias())
    }
}

/// One matrix to compress.
///
/// ```
/// use tensorpress_tensor::{DType, Target, ndarray::array};
///
/// let weight = array![[1.0f32, f32::NAN]];
/// let target = Target::new("layer.weight", weight.view()).with_dtype(DType::BF16);
/// assert_eq!(target.check_finite().unwrap_err().tensor(), Some("layer.weight"));
/// ```
#[derive(Debug, Clone)]
#[must_use]
pub struct Target<'a> {
    /// Name for errors and reports.
    pub name: &'a str,
    /// W, `[out, in]`.
    pub weight: ArrayView2<'a, f32>,
    /// Entries that may be kept, if a selector ran before. A method treats the others as 0 and may decode to
    /// anything there: the caller wraps the node in [`crate::node::Masked`].
    pub mask: Option<&'a Mask>,
    /// Type the weights are stored in: what is kept as it is, is kept in it.
    pub dtype: DType,
    /// Attention scores are products of its outputs with others (queries and keys): an error of size goes into both.
    pub scores: bool,
    /// log2 of the step at which all matrices of the model together take the bits asked for, where a caller found it: see
    /// [`Method::shared_bits`].
    pub step: Option<f64>,
    /// Asks methods that feed errors among columns to do so among rows.
    pub rows: Option<&'a RowFeedback>,
}

impl<'a> Target<'a> {
    /// A target without a mask.
    pub fn new(name: &'a str, weight: ArrayView2<'a, f32>) -> Self {
        let (mask, step, rows) = (None, None, None);
        Self { name, weight, mask, dtype: DType::F32, scores: false, step, rows }
    }

    /// Asks for feedback among rows.
    pub fn with_rows(mut self, rows: Option<&'a RowFeedback>) -> Self {
        self.rows = rows;
        self
    }

    /// Sets the step that all matrices of the model have in common.
    pub fn with_step(mut self, step: Option<f64>) -> Self {
        self.step = step;
        self
    }

    /// Says whether attention scores are products of its outputs.
    pub fn with_scores(mut self, scores: bool) -> Self {
        self.scores = scores;
        self
    }

    /// Says what type the weights are stored in.
    pub fn with_dtype(mut self, dtype: DType) -> Self {
        self.dtype = dtype;
        self
    }

    /// W in standard layout with everything outside the mask set to 0.
    #[must_use]
    pub fn kept_weight(&self) -> CowArray<'a, f32, Ix2> {
        let Some(mask) = self.mask else {
            return match self.weight.is_standard_layout() {
                true => self.weight.into(),
                false => self.weight.as_standard_layout().into_owned().into(),
            };
        };
        let mut weight = self.weight.as_standard_layout().into_owned();
        for ((row, col), w) in weight.indexed_iter_mut() {
            if !mask.keeps(row, col) {
                *w = 0.0;
            }
        }
        weight.into()
    }

    /// Checks that all weights are finite.
    ///
    /// # Errors
    /// `Numerical`, naming the tensor and the first bad entry.
    pub fn check_finite(&self) -> Result<()> {
        match self.weight.indexed_iter().find(|(_, w)| !w.is_finite()) {
            None => Ok(()),
            Some(((row, col), w)) => {
                Err(Error::numerical(format!("weight [{row}, {col}] is {w}"))).in_tensor(self.name)
            }
        }
    }
}

/// A per-channel vector into which input scales can be folded: it feeds only these targets. A norm's weight, or ones in
/// f32 for the rows of a matrix that is yet to be compressed.
#[derive(Debug, Clone, Copy)]
pub struct Fold<'a> {
    /// The vector's values, one an input channel.
    pub values: &'a [f32],
    /// Its stored type.
    pub dtype: DType,
}

impl Fold<'_> {
    /// Moves each scale to the nearest one for which `value / scale` is exactly representable in the vector's
    /// type, so that folding loses nothing; returns the folded vector.
    ///
    /// # Panics
    /// If the lengths differ.
    #[must_use]
    pub fn make_exact(&self, scale: &mut [f32]) -> Vec<f32> {
        assert_eq!(scale.len(), self.values.len(), "channels");
        let fold_one = |(s, value): (&mut f32, &f32)| {
            let folded = self.dtype.round(value / *s);
            let exact = value / folded;
            if exact.is_finite() && exact > 0.0 {
                *s = exact;
                folded
            } else {
                *s = 1.0;
                *value
            }
        };
        scale.iter_mut().zip(self.values).map(fold_one).collect()
    }
}

/// Matrices that share one input, and what is known about it.
///
/// ```
/// use tensorpress_tensor::{Group, Target, ndarray::Array2, stats::Calibration};
///
/// let (q, k) = (Array2::zeros((8, 16)), Array2::zeros((4, 16)));
/// let mut group = Group::single(Target::new("q", q.view()), Calibration::none(16));
/// group.targets.push(Target::new("k", k.view()));
/// assert_eq!(group.channels().unwrap(), 16);
/// ```
#[derive(Debug)]
#[must_use]
pub struct Group<'a> {
    /// The matrices; all have the same number of columns.
    pub targets: Vec<Target<'a>>,
    /// Statistics of the shared input; owned, so that a Gram matrix can be factored in place.
    pub calibration: Calibration,
    /// The vector that input scales may be folded into, if there is one.
    pub fold: Option<Fold<'a>>,
    /// Seed of everything random.
    pub seed: u64,
    /// Parallelism allowed.
    pub par: Par,
}

impl<'a> Group<'a> {
    /// One target with its calibration.
    pub fn single(target: Target<'a>, calibration: Calibration) -> Self {
        Self { targets: vec![target], calibration, fold: None, seed: 0, par: Par::default() }
    }

    /// Input channels.
    ///
    /// # Errors
    /// `ShapeMismatch` if the targets differ, `InvalidArgument` if there are none.
    pub fn channels(&self) -> Result<usize> {
        let first =
            self.targets.first().ok_or_else(|| Error::invalid("a group without targets"))?;
        for target in &self.targets {
            if target.weight.ncols() != first.weight.ncols() {
                return Err(Error::shape(format!(
                    "{} input channels, `{}` has {}",
                    target.weight.ncols(),
                    first.name,
                    first.weight.ncols()
                ))
                .in_tensor(target.name));
            }
        }
        Ok(first.weight.ncols())
    }

    /// What `one` makes of every target by itself: all of a method that looks at no statistics.
    ///
    /// # Errors
    /// Those of `one`, naming the tensor.
    pub fn each<N: Node + 'static>(
        &self,
        one: impl Fn(&Target<'a>) -> Result<N>,
    ) -> Result<CompressedGroup<N>> {
        let one = |t: &Target<'a>| Ok(Compressed::new(one(t).in_tensor(t.name)?));
        Ok(CompressedGroup::new(self.targets.iter().map(one).collect::<Result<_>>()?))
    }
}

/// What a method made of one target.
#[derive(Debug)]
#[must_use]
pub struct Compressed<N = Box<dyn Node>> {
    /// Correction to add to the layer's bias, if the method found one.
    pub bias: Option<Vec<f32>>,
    /// Why the method did less than asked (no calibration token seen, singular statistics), if it did.
    pub fallback: Option<String>,
    /// The compressed matrix.
    pub node: N,
}

impl<N: Node + 'static> Compressed<N> {
    /// A node without further news.
    pub fn new(node: N) -> Self {
        Self { bias: None, fallback: None, node }
    }

    /// Says why the method did less than asked.
    pub fn with_fallback(mut self, reason: Option<String>) -> Self {
        self.fallback = reason;
        self
    }

    /// Adds to why the method did less than asked.
    pub fn with_note(mut self, note: Option<String>) -> Self {
        self.fallback = join_notes([self.fallback, note]);
        self
    }

    /// Forgets the concrete type of the node.
    pub fn boxed(self) -> Compressed {
        Compressed { bias: self.bias, fallback: self.fallback, node: self.node.boxed() }
    }
}

/// Several reasons as one.
fn join_notes(notes: [Option<String>; 2]) -> Option<String> {
    let notes: Vec<String> = notes.into_iter().flatten().collect();
    (!notes.is_empty()).then(|| notes.join("; "))
}

/// The compressed targets of a group, in their order.
#[derive(Debug)]
#[must_use]
pub struct CompressedGroup<N = Box<dyn Node>> {
    /// One result a target.
    pub layers: Vec<Compressed<N>>,
    /// The new values of [`Group::fold`]'s vector, where scales were folded into it.
    pub folded: Option<Vec<f32>>,
}

impl<N> CompressedGroup<N> {
    /// Results without folding.
    pub fn new(layers: Vec<Compressed<N>>) -> Self {
        Self { layers, folded: None }
    }
}

/// What a selector keeps of one target.
#[derive(Debug)]
#[must_use]
pub struct Selection {
    /// The entries that stay.
    pub mask: Mask,
    /// The weights that stay, where the method changed them to make good for those that go; 0 outside the mask.
    pub weight: Option<Array2<f32>>,
    /// Why the method did less than asked, if it did.
    pub fallback: Option<String>,
}

/// A method that chooses which weights are kept (a pruner).
///
/// ```
/// use tensorpress_tensor::node::Mask;
/// use tensorpress_tensor::stats::{Calibration, Needs};
/// use tensorpress_tensor::{Group, Method, Result, Select, Selection, Target, ndarray::array};
/// #
/// # #[derive(Debug)]
/// # struct Positive;
/// #
/// # impl Method for Positive {
/// #     fn id(&self) -> &'static str {
/// #         "positive"
/// #     }
/// #     fn needs(&self) -> Needs {
/// #         Needs::NONE
/// #     }
/// # }
///
/// impl Select for Positive {
///     fn select_group(&self, group: &mut Group<'_>) -> Result<Vec<Selection>> {
///         let select = |target: &Target<'_>| {
///             let mask = Mask::from_bools(target.weight.mapv(|w| w > 0.0).view());
///             Selection { mask, weight: None, fallback: None }
///         };
///         Ok(group.targets.iter().map(select).collect())
///     }
/// }
/// let weight = array![[1.0f32, -2.0]];
/// let mut group = Group::single(Target::new("w", weight.view()), Calibration::none(2));
/// assert!(!Positive.select_group(&mut group)?[0].mask.keeps(0, 1));
/// # Ok::<(), tensorpress_tensor::Error>(())
/// ```
pub trait Select: Method {
    /// Selects for matrices that share an input; may use the group's statistics up.
    ///
    /// # Errors
    /// As [`Compress::compress_group`].
    fn select_group(&self, group: &mut Group<'_>) -> Result<Vec<Selection>>;
}

/// A method that returns nodes of one type: what researchers use.
///
/// ```
/// use tensorpress_tensor::node::{Dense, decode};
/// use tensorpress_tensor::stats::{Calibration, Needs};
/// use tensorpress_tensor::{
///     Compress, Compressed, CompressedGroup, DType, Group, Method, Result, Target, ndarray::array,
/// };
/// #
/// # #[derive(Debug)]
/// # struct Half;
/// #
/// # impl Method for Half {
/// #     fn id(&self) -> &'static str {
/// #         "half"
/// #     }
/// #     fn needs(&self) -> Needs {
/// #         Needs::NONE
/// #     }
/// # }
///
/// impl Compress for Half {
///     type Node = Dense;
///
///     fn compress_group(&self, group: Group<'_>) -> Result<CompressedGroup<Dense>> {
///         let half = |t: &Target<'_>| Dense::from_f32(t.weight, DType::BF16).map(Compressed::new);
///         Ok(CompressedGroup::new(group.targets.iter().map(half).collect::<Result<_>>()?))
///     }
/// }
/// let made = Half.compress(array![[1.0, 2.5]].view(), &Calibration::none(2))?;
/// assert_eq!(decode(&made.node)?, array![[1.0, 2.5]]);
/// # Ok::<(), tensorpress_tensor::Error>(())
/// ```
pub trait Compress: Method {
    /// What it returns.
    type Node: Node + 'static;

    /// Compresses matrices that share an input.
    ///
    /// # Errors
    /// `Numerical` for non-finite weights, `InvalidArgument`, `ShapeMismatch`, `MissingCalibration`; naming the
    /// tensor. Calibration that is singular, empty or not finite is no error: the method falls back and says so.
    fn compress_group(&self, group: Group<'_>) -> Result<CompressedGroup<Self::Node>>;

    /// About the bits that each of these matrices would take by the step, of a method that has [`Method::shared_bits`];
    /// nothing by default.
    ///
    /// # Errors
    /// As [`Compress::compress_group`].
    fn rates(&self, _: Group<'_>) -> Result<Vec<RateCurve>> {
        Ok(Vec::new())
    }

    /// Compresses one matrix.
    ///
    /// # Errors
    /// As [`Compress::compress_group`].
    fn compress(
        &self,
        weight: ArrayView2<'_, f32>,
        calibration: &Calibration,
    ) -> Result<Compressed<Self::Node>> {
        let group = Group::single(Target::new("weight", weight), calibration.clone());
        let mut layers = self.compress_group(group)?.layers;
        layers.pop().ok_or_else(|| Error::invalid("no result"))
    }
}

/// The object-safe twin of [`Compress`], implemented for every one of them: what engines and pipelines hold.
///
/// ```
/// use tensorpress_tensor::ndarray::Array2;
/// use tensorpress_tensor::stats::Calibration;
/// use tensorpress_tensor::{CompressedGroup, DynCompress, Group, Result, Target};
///
/// /// What the first method that has nothing to excuse makes of a matrix.
/// fn first(methods: &[Box<dyn DynCompress>], w: &Array2<f32>) -> Result<Option<CompressedGroup>> {
///     let one = || Group::single(Target::new("w", w.view()), Calibration::none(w.ncols()));
///     let mut made = methods.iter().map(|method| method.compress_group_dyn(one()));
///     made.find(|made| made.as_ref().map_or(true, |m| m.layers[0].fallback.is_none())).transpose()
/// }
/// assert!(first(&[], &Array2::zeros((2, 2)))?.is_none());
/// # Ok::<(), tensorpress_tensor::Error>(())
/// ```
pub trait DynCompress: Method {
    /// [`Compress::compress_group`] with the node's type forgotten.
    ///
    /// # Errors
    /// As there.
    fn compress_group_dyn(&self, group: Group<'_>) -> Result<CompressedGroup>;

    /// [`Compress::rates`].
    ///
    /// # Errors
    /// As there.
    fn rates_dyn(&self, group: Group<'_>) -> Result<Vec<RateCurve>>;
}

impl<T: Compress> DynCompress for T {
    fn compress_group_dyn(&self, group: Group<'_>) -> Result<CompressedGroup> {
        let CompressedGroup { layers, folded } = self.compress_group(group)?;
        Ok(CompressedGroup { layers: layers.into_iter().map(Compressed::boxed).collect(), folded })
    }

    fn rates_dyn(&self, group: Group<'_>) -> Result<Vec<RateCurve>> {
        self.rates(group)
    }
}

/// Writes a node in another way without changing a bit of what it decodes to: entropy coding.
pub trait Recode: Debug + Send + Sync {
    /// The node coded anew.
    ///
    /// # Errors
    /// `Corruption` if a plane turns out to be invalid.
    fn recode(&self, node: Box<dyn Node>) -> Result<Box<dyn Node>>;
}

impl Recode for Arc<dyn Recode> {
    fn recode(&self, node: Box<dyn Node>) -> Result<Box<dyn Node>> {
        (**self).recode(node)
    }
}

/// A boxed method is a method: what recipes compose.
impl Method for Box<dyn DynCompress> {
    fn id(&self) -> &'static str {
        (**self).id()
    }

    fn needs(&self) -> Needs {
        (**self).needs()
    }

    fn grid(&self) -> Option<GridSpec> {
        (**self).grid()
    }

    fn takes_mask(&self) -> bool {
        (**self).takes_mask()
    }

    fn shared_bits(&self) -> Option<f64> {
        (**self).shared_bits()
    }

    fn loses_by_steps(&self) -> bool {
        (**self).loses_by_steps()
    }

    fn drops(&self) -> bool {
        (**self).drops()
    }

    fn corrects_bias(&self) -> bool {
        (**self).corrects_bias()
    }
}

impl Compress for Box<dyn DynCompress> {
    type Node = Box<dyn Node>;

    fn compress_group(&self, group: Group<'_>) -> Result<CompressedGroup> {
        (**self).compress_group_dyn(group)
    }

    fn rates(&self, group: Group<'_>) -> Result<Vec<RateCurve>> {
        (**self).rates_dyn(group)
    }
}

impl Method for Box<dyn Select> {
    fn id(&self) -> &'static str {
        (**self).id()
    }

    fn needs(&self) -> Needs {
        (**self).needs()
    }

    fn grid(&self) -> Option<GridSpec> {
        (**self).grid()
    }

    fn takes_mask(&self) -> bool {
        (**self).takes_mask()
    }

    fn corrects_bias(&self) -> bool {
        (**self).corrects_bias()
    }
}

impl Select for Box<dyn Select> {
    fn select_group(&self, group: &mut Group<'_>) -> Result<Vec<Selection>> {
        (**self).select_group(group)
    }
}
