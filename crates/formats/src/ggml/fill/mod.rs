//! Blocks whose codes make good for each other.

mod fit;
mod plan;
mod rule;

use tensorpress_tensor::half::f16;
use tensorpress_tensor::linalg::Par;
use tensorpress_tensor::obs::Prepared;
use tensorpress_tensor::stage::{Keys, Knobs, Row, WeightPart};
use tensorpress_tensor::stats::Needs;
use tensorpress_tensor::{
    Compress, Compressed, CompressedGroup, Context, Error, Group, Method, Result, Target, Usable,
    kernels,
};

use super::{GgmlBlocks, Type, blocks, encode};
use crate::export::{Fit, fallback};
use plan::Plan;
use rule::FillRule;

/// Fills blocks of a type of ggml: what llama.cpp reads and multiplies, with other numbers in them than its quantiser's.
///
/// The scales of a block are searched when its first column's turn comes, on the weights as they stand then, each column
/// weighted by what rounding it costs; then its columns are rounded one after another, and each error is spread over the
/// columns still to come, as in GPTQ.
///
/// Rows that blocks do not divide are kept in the type that llama.cpp takes instead, and singular or missing statistics
/// lead to ggml's own quantiser; both are told in [`Compressed::fallback`].
///
/// ```
/// use tensorpress_formats::ggml::{Fill, Type};
/// use tensorpress_tensor::{Compress, linalg::Par, ndarray::Array2, stats::Calibration};
///
/// # fn main() -> tensorpress_tensor::Result<()> {
/// let weight = Array2::from_shape_fn((16, 64), |(r, c)| ((r * 7 + c * 3) % 11) as f32 - 5.0);
/// let inputs = Array2::from_shape_fn((128, 64), |(t, c)| ((t * 13 + c * 5) % 17) as f32 - 8.0);
/// let calibration = Calibration::from_samples(inputs, Par::Seq);
/// let made = Fill::new(Type::Q4_0).compress(weight.view(), &calibration)?;
/// assert_eq!(made.node.format().ty(), Type::Q4_0);
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct Fill {
    /// The type of the blocks, one of [`Fill::TYPES`]. Default Q4_K.
    pub ty: Type,
    /// How codes are decided. Default by feedback.
    pub rounding: Rounding,
    /// What is added to each entry of the diagonal, as a fraction of it. Default 0.01.
    pub damp: f32,
}

/// How [`Fill`] decides codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[non_exhaustive]
pub enum Rounding {
    /// Column by column, each error spread over the columns still to come. Needs the Gram matrix.
    #[default]
    Feedback,
    /// By ggml's quantiser with the mean squares of the inputs as importance.
    Importance,
    /// By ggml's quantiser alone.
    Nearest,
}

impl Default for Fill {
    fn default() -> Self {
        Self::new(Type::Q4_K)
    }
}

impl Fill {
    /// Types that can be filled.
    pub const TYPES: [Type; 14] = [
        Type::Q2_K,
        Type::Q3_K,
        Type::Q4_0,
        Type::Q4_1,
        Type::Q4_K,
        Type::Q5_0,
        Type::Q5_1,
        Type::Q5_K,
        Type::Q6_K,
        Type::Q8_0,
        Type::IQ4_NL,
        Type::IQ4_XS,
        Type::MXFP4,
        Type::NVFP4,
    ];

    /// Blocks of this type.
    #[must_use]
    pub fn new(ty: Type) -> Self {
        Self { ty, rounding: Rounding::default(), damp: 0.01 }
    }

    /// Sets how codes are decided.
    #[must_use]
    pub fn with_rounding(mut self, rounding: Rounding) -> Self {
        self.rounding = rounding;
        self
    }

    /// Sets the damping, a fraction of each entry of the diagonal.
    #[must_use]
    pub fn with_damp(mut self, damp: f32) -> Self {
        self.damp = damp;
        self
    }

    /// The type for rows of this width, and why if it is another one.
    fn ty_of(&self, cols: usize) -> (Type, Option<String>) {
        let (Fit::Blocks(ty), name) = (fallback(self.ty, cols), self.ty.name()) else {
            return (Type::F16, None);
        };
        let other = ty != self.ty;
        let note =
            || format!("rows of {cols} are no whole blocks of {name}: {} instead", ty.name());
        (ty, other.then(note))
    }
}

/// Columns between two updates of the rest of the matrix, where blocks are shorter.
const COLUMNS: usize = 128;

/// Rows that a thread rounds at a time.
const FEW: usize = 16;

/// One target with the shared inverse factor.
fn filled(target: &Target<'_>, plan: Plan, prepared: &Prepared, par: Par) -> Result<GgmlBlocks> {
    let mut weight = target.kept_weight().into_owned();
    let (rows, cols) = weight.dim();
    for &dead in &prepared.dead {
        weight.column_mut(dead).fill(0.0);
    }
    let factor = prepared.factor.view();
    let diagonal = factor.diag().into_iter().copied();
    let mut rule = FillRule::new(plan, (rows, cols), diagonal, &prepared.dead, target.mask);
    let block = COLUMNS.max(plan.len());
    let swept = prepared.sweep(target, weight, block, &mut rule, par)?;
    let node = blocks(plan.ty, [rows, cols], rule.into_bytes().into())?;
    debug_assert!(
        target.mask.is_some()
            || tensorpress_tensor::node::decode(&node).is_ok_and(|made| made == swept.weight),
        "blocks decode to what was decided"
    );
    Ok(node)
}

/// One target by ggml's quantiser.
fn encoded(
    target: &Target<'_>,
    ty: Type,
    importance: Option<&[f32]>,
    par: Par,
) -> Result<GgmlBlocks> {
    let weight = target.kept_weight();
    let (rows, cols) = weight.dim();
    let row_bytes = cols / ty.block_len() * ty.block_bytes();
    let mut bytes = vec![0; rows * row_bytes];
    let weight = weight.as_slice().expect("standard layout");
    let few = (FEW * cols).max(1);
    let mut results: Vec<Result<()>> = weight.chunks(few).map(|_| Ok(())).collect();
    let pieces = weight.chunks(few).zip(bytes.chunks_mut((FEW * row_bytes).max(1)));
    par.for_each(pieces.zip(&mut results), |((weight, bytes), result)| {
        *result = encode(ty, weight, importance, bytes);
    });
    results.into_iter().collect::<Result<()>>()?;
    blocks(ty, [rows, cols], bytes.into())
}

/// Mean squares of the inputs, where there are any.
fn importance(group: &Group<'_>) -> Result<Usable<Vec<f32>>> {
    if let Usable::No(reason) = group.calibration.seen() {
        return Ok(Usable::No(reason));
    }
    let moments = group.calibration.moments()?;
    let (channels, cols) = (moments.channels(), group.channels()?);
    if channels != cols {
        return Err(Error::shape(format!("moments of {channels} channels for {cols} inputs")));
    }
    let tokens = moments.tokens().max(1) as f64;
    let squares: Vec<f32> =
        moments.sum_of_squares().iter().map(|sum| (sum / tokens) as f32).collect();
    Ok(if squares.iter().any(|square| !square.is_finite()) {
        Usable::no("its mean squares are not finite")
    } else if squares.iter().all(|square| *square == 0.0) {
        Usable::no("all its inputs were zero")
    } else {
        Usable::Yes(squares)
    })
}

impl Knobs for Fill {
    fn knobs(&mut self, keys: &mut Keys<'_>) -> Result<()> {
        let types = Self::TYPES.map(|ty| (ty.name(), ty));
        keys.choice("type", &mut self.ty, &types, "the type of the blocks")?;
        let roundings = [
            ("feedback", Rounding::Feedback),
            ("importance", Rounding::Importance),
            ("nearest", Rounding::Nearest),
        ];
        let about = "codes make good for each other's errors, or are ggml's own";
        keys.choice("rounding", &mut self.rounding, &roundings, about)?;
        let about = "added to each entry of the diagonal, as a fraction of it";
        keys.float("damp", &mut self.damp, 0.0..=1e6, about)
    }
}

/// Its name in recipes.
const NAME: &str = "ggml";

pub(crate) fn stage() -> Row<WeightPart> {
    let about = "blocks of a type of ggml, each error spread over the columns still to come";
    Row::method(NAME, about, Fill::default)
}

impl Method for Fill {
    fn id(&self) -> &'static str {
        NAME
    }

    fn needs(&self) -> Needs {
        match self.rounding {
            Rounding::Feedback => Needs::GRAM.true_sequentially(),
            Rounding::Importance => Needs::MOMENTS,
            Rounding::Nearest => Needs::default(),
        }
    }
}

impl Compress for Fill {
    type Node = GgmlBlocks;

    fn compress_group(&self, mut group: Group<'_>) -> Result<CompressedGroup<GgmlBlocks>> {
        if !self.damp.is_finite() || self.damp < 0.0 {
            return Err(Error::invalid(format!("damp = {}: allowed are 0 and more", self.damp)));
        }
        if Plan::of(self.ty).is_none() {
            let (name, known) = (self.ty.name(), Self::TYPES.map(Type::name).join(", "));
            return Err(Error::invalid(format!("type = {name}: allowed are {known}")));
        }
        let cols = group.channels()?;
        for target in &group.targets {
            target.check_finite()?;
            check_size(target).in_tensor(target.name)?;
        }
        let (ty, other) = self.ty_of(cols);
        let par = group.par;
        // F16 has nothing to choose.
        let plan = Plan::of(ty).filter(|_| self.rounding == Rounding::Feedback);
        let instead = |reason: String| Some(format!("{reason}: {} by ggml's rounding", ty.name()));
        let all = |group: &Group<'_>, importance: Option<&[f32]>, note: Option<String>| {
            let one = |target: &Target<'_>| {
                let node = encoded(target, ty, importance, par).in_tensor(target.name)?;
                Ok(Compressed::new(node).with_fallback(other.clone()).with_note(note.clone()))
            };
            group.targets.iter().map(one).collect::<Result<Vec<_>>>()
        };
        let layers = if let Some(plan) = plan {
            match Prepared::in_proportion(&mut group, self.damp.into())? {
                Usable::Yes(prepared) => {
                    let one = |target: &Target<'_>| {
                        let node = filled(target, plan, &prepared, par).in_tensor(target.name)?;
                        let made = Compressed::new(node).with_fallback(other.clone());
                        Ok(made.with_note(prepared.note.clone()))
                    };
                    group.targets.iter().map(one).collect::<Result<Vec<_>>>()?
                }
                Usable::No(reason) => all(&group, None, instead(reason))?,
            }
        } else if self.rounding == Rounding::Importance && ty != Type::F16 {
            match importance(&group)? {
                Usable::Yes(squares) => all(&group, Some(&squares), None)?,
                Usable::No(reason) => all(&group, None, instead(reason))?,
            }
        } else {
            all(&group, None, None)?
        };
        Ok(CompressedGroup::new(layers))
    }
}

/// That scales in f16 hold the weights.
fn check_size(target: &Target<'_>) -> Result<()> {
    let largest = kernels::abs_max(target.kept_weight().as_slice().expect("standard layout"));
    if largest <= f16::MAX.to_f32() {
        return Ok(());
    }
    Err(Error::numerical(format!("weights up to {largest}, where blocks hold up to 65504")))
}
