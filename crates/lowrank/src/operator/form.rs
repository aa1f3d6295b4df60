use std::fmt::{self, Debug};
use std::sync::Arc;

use tensorpress_tensor::ndarray::{Array2, ArrayView2};
use tensorpress_tensor::node::{Dense, decode};
use tensorpress_tensor::stage::{Keys, Knobs};
use tensorpress_tensor::stats::{Calibration, Needs};
use tensorpress_tensor::{
    Compress, Compressed, CompressedGroup, Context, DType, DynCompress, Error, Group, Method, Node,
    Result, Storage, Target, Usable,
};

pub use super::split::Effort;
use crate::factors::{Factors, compressed, fitting, float_knob};

/// Which small matrices an operator is made of, and the best of them for a given matrix.
pub trait Form: Debug + Send + Sync {
    /// Its name, in recipes and reports.
    fn id(&self) -> &'static str;

    /// Its knobs, as [`Knobs::knobs`].
    ///
    /// # Errors
    /// As there.
    fn knobs(&mut self, keys: &mut Keys<'_>) -> Result<()>;

    /// Whether the parameters are possible.
    ///
    /// # Errors
    /// `InvalidArgument`, naming parameter, value and what is allowed.
    fn check(&self) -> Result<()>;

    /// The form closest to a finite matrix `[out, in]` that is not empty, or why there is none.
    ///
    /// # Errors
    /// `Numerical` without convergence.
    fn fit(&self, weight: ArrayView2<'_, f64>, effort: Effort) -> Result<Usable<Fitted>>;
}

/// Makes one tree of the nodes of small matrices.
pub type Tree = Box<dyn FnOnce(Vec<Box<dyn Node>>) -> Result<Box<dyn Node>>>;

/// What a form made of a matrix.
pub struct Fitted {
    /// The small matrices.
    pub factors: Vec<Array2<f64>>,
    /// How they are composed.
    pub tree: Tree,
    /// ‖W - Ŵ‖² before anything is rounded.
    pub lost: f64,
}

impl Fitted {
    /// Numbers that are stored.
    #[must_use]
    pub fn weights(&self) -> usize {
        self.factors.iter().map(Array2::len).sum()
    }

    /// The tree, its leaves rounded to a float type.
    ///
    /// # Errors
    /// `Unsupported` if `dtype` is no float type.
    pub fn node(self, dtype: DType) -> Result<Box<dyn Node>> {
        let dense =
            |m: &Array2<f64>| Ok(Dense::from_f32(m.mapv(|v| v as f32).view(), dtype)?.boxed());
        (self.tree)(self.factors.iter().map(dense).collect::<Result<_>>()?)
    }
}

impl Debug for Fitted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let shapes: Vec<_> = self.factors.iter().map(Array2::dim).collect();
        let mut debug = f.debug_struct("Fitted");
        debug.field("factors", &shapes).field("lost", &self.lost).finish_non_exhaustive()
    }
}

/// W in a structured form, each of its small matrices stored by itself.
///
/// A matrix that the form does not fit, that cannot be decomposed, or whose small matrices would take as many bytes as
/// itself (unless [`Operator::always`] is set) stays dense, and says so. Entries outside a mask count as 0.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Operator<F> {
    /// Which small matrices.
    pub form: F,
    /// How they are stored: as the weights, in a float type, or by a method that needs no calibration. Default as the
    /// weights.
    pub factors: Factors,
    /// The form even where it is larger than the matrix: what corrections are. Default false.
    pub always: bool,
}

impl<F: Form> Operator<F> {
    /// This form, stored as the weights are.
    #[must_use]
    pub fn new(form: F) -> Self {
        Self { form, factors: Factors::default(), always: false }
    }

    /// Sets how the small matrices are stored.
    #[must_use]
    pub fn with_factors(mut self, factors: Factors) -> Self {
        self.factors = factors;
        self
    }

    /// Sets whether the form is kept where it is larger than the matrix.
    #[must_use]
    pub fn with_always(mut self, always: bool) -> Self {
        self.always = always;
        self
    }

    /// Stored by the method in a stage's parentheses, unless a type was asked for too.
    pub(super) fn stored_by(self, inner: Box<dyn DynCompress>, default: &Factors) -> Result<Self> {
        let said = |factors: &Factors| format!("{factors:?}");
        if said(&self.factors) != said(default) {
            let (name, factors, by) = (self.form.id(), &self.factors, inner.id());
            return Err(Error::invalid(format!(
                "{name}: factors = {factors:?} with `{by}`, which decides how they are stored"
            )));
        }
        Ok(self.with_factors(Factors::By(Arc::from(inner))))
    }

    fn make(&self, target: &Target<'_>, group: &Group<'_>) -> Result<Compressed> {
        target.check_finite()?;
        let weight = target.kept_weight();
        let kept = |reason: String| {
            let node = Dense::from_f32(weight.view(), target.dtype)?;
            let reason = Some(format!("{reason}: kept dense"));
            Ok(Compressed::new(node).boxed().with_fallback(reason))
        };
        if weight.is_empty() {
            return kept("an empty matrix".to_owned());
        }
        let effort = Effort { seed: group.seed, par: group.par };
        let fitted = self.form.fit(weight.mapv(f64::from).view(), effort);
        let fitted = match Usable::of(fitted)? {
            Usable::Yes(Usable::Yes(fitted)) => fitted,
            Usable::Yes(Usable::No(reason)) | Usable::No(reason) => return kept(reason),
        };
        let (nodes, note) = match self.store(&fitted.factors, target, group)? {
            Usable::Yes(stored) => stored,
            Usable::No(reason) => return kept(reason),
        };
        let node = (fitted.tree)(nodes)?;
        let (bytes, dense) =
            (Storage::of(&node)?.bytes() as usize, weight.len() * target.dtype.size());
        if !self.always && bytes >= dense {
            return kept(format!("its factors would take {bytes} bytes, the matrix {dense}"));
        }
        // Rounding may end beyond f32 where weights are near its end.
        let near = weight.iter().any(|w| w.abs() > 1e36);
        if near && decode(&node)?.iter().any(|v| !v.is_finite()) {
            return kept("its factors' product is beyond f32".to_owned());
        }
        Ok(Compressed::new(node).boxed().with_fallback(note))
    }

    /// The nodes of the small matrices, and what was done in the place of what was asked.
    fn store(
        &self,
        factors: &[Array2<f64>],
        target: &Target<'_>,
        group: &Group<'_>,
    ) -> Result<Usable<Stored>> {
        let factors: Vec<Array2<f32>> = factors.iter().map(|m| m.mapv(|v| v as f32)).collect();
        if factors.iter().flatten().any(|v| !v.is_finite()) {
            return Ok(Usable::no("its factors are beyond f32"));
        }
        let dtype = match &self.factors {
            Factors::Source => target.dtype,
            Factors::Float(dtype) => *dtype,
            Factors::Remapped => {
                let message = "factors = remapped: allowed are source, f16, bf16 and f32, for it is of two factors";
                return Err(Error::invalid(format!("{}: {message}", self.form.id())));
            }
            Factors::By(method) => {
                return factors_by(&**method, &factors, target, group).map(Usable::Yes);
            }
        };
        let (dtype, note) = fitting(dtype, factors.iter().flatten());
        let dense = |m: &Array2<f32>| Ok(Dense::from_f32(m.view(), dtype)?.boxed());
        Ok(Usable::Yes((factors.iter().map(dense).collect::<Result<_>>()?, note)))
    }
}

/// Nodes, and a note.
type Stored = (Vec<Box<dyn Node>>, Option<String>);

fn factors_by(
    method: &dyn DynCompress,
    factors: &[Array2<f32>],
    target: &Target<'_>,
    group: &Group<'_>,
) -> Result<Stored> {
    let (mut nodes, mut notes) = (Vec::new(), Vec::new());
    for (i, factor) in factors.iter().enumerate() {
        let factor = Target::new(target.name, factor.view()).with_dtype(target.dtype);
        let channels = factor.weight.ncols();
        let one = Group::single(factor, Calibration::none(channels));
        let (node, why) = compressed(method, one, group.seed, group.par)?;
        notes.extend(why.map(|why| format!("factor {i}: {why}")));
        nodes.push(node);
    }
    Ok((nodes, (!notes.is_empty()).then(|| notes.join("; "))))
}

/// The form's knobs, then how it is stored.
impl<F: Form> Knobs for Operator<F> {
    fn knobs(&mut self, keys: &mut Keys<'_>) -> Result<()> {
        self.form.knobs(keys)?;
        let mut dtype = match self.factors {
            Factors::Float(dtype) => Some(dtype),
            _ => None,
        };
        float_knob(keys, &mut dtype)?;
        self.factors = dtype.map_or(Factors::Source, Factors::Float);
        // A correction is asked for: it is never left out to save bytes.
        self.always |= keys.corrects();
        Ok(())
    }

    fn check(&self) -> Result<()> {
        self.form.check()
    }
}

impl<F: Form> Method for Operator<F> {
    fn id(&self) -> &'static str {
        self.form.id()
    }

    fn takes_mask(&self) -> bool {
        false
    }

    fn needs(&self) -> Needs {
        Needs::NONE
    }
}

impl<F: Form> Compress for Operator<F> {
    type Node = Box<dyn Node>;

    fn compress_group(&self, group: Group<'_>) -> Result<CompressedGroup> {
        self.form.check()?;
        group.channels()?;
        let one = |target: &Target<'_>| self.make(target, &group).in_tensor(target.name);
        Ok(CompressedGroup::new(group.targets.iter().map(one).collect::<Result<_>>()?))
    }
}
