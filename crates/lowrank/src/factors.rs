use std::sync::Arc;

use tensorpress_tensor::grid::GridSpec;
use tensorpress_tensor::linalg::{self, Par};
use tensorpress_tensor::ndarray::{Array2, ArrayView2, s};
use tensorpress_tensor::node::{Dense, Product, Stacked, decode};
use tensorpress_tensor::stage::Keys;
use tensorpress_tensor::stats::{Calibration, Gram};
use tensorpress_tensor::{DType, DynCompress, Error, Group, Node, Result, Target, Usable};

use crate::metric::Root;
use crate::project::{Projection, exponent, power_of_two, scaled};
use crate::rank::Rank;

/// How factors are stored.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub enum Factors {
    /// As the weights are stored.
    #[default]
    Source,
    /// In this float type.
    Float(DType),
    /// Remapped (Dobi-SVD: Wang et al., 2025): with l the smaller side of the matrix, l rank numbers of each factor in 8
    /// bits and the rest of the longer one in f16, so that both take max(out, in) rank 16-bit numbers, and a scale for
    /// each row of 8-bit ones. A ratio r is a rank of (1 - r) l, rounded down. Of a wide matrix the directions that
    /// matter most stay in f16.
    Remapped,
    /// By a method of their own. V is compressed on the inputs' Gram matrix, U on that of V's outputs, after it was
    /// fitted anew to what V has become.
    By(Arc<dyn DynCompress>),
}

/// The key `factors`, where only floats are stored: none is the type of the weights.
pub(crate) fn float_knob(keys: &mut Keys<'_>, dtype: &mut Option<DType>) -> Result<()> {
    let types = [
        ("source", None),
        ("f16", Some(DType::F16)),
        ("bf16", Some(DType::BF16)),
        ("f32", Some(DType::F32)),
    ];
    keys.choice("factors", dtype, &types, "stored type of both factors")
}

/// An error for a stored type that is none of floats.
pub(crate) fn check_float(dtype: Option<DType>) -> Result<()> {
    match dtype.filter(|dtype| !dtype.is_float()) {
        None => Ok(()),
        Some(dtype) => {
            Err(Error::invalid(format!("factors = {dtype:?}: allowed are f16, bf16 and f32")))
        }
    }
}

/// What a factorisation is surrounded by.
pub(crate) struct Around<'a> {
    pub(crate) name: &'a str,
    pub(crate) dtype: DType,
    pub(crate) root: &'a Root,
    pub(crate) calibration: &'a Calibration,
    pub(crate) seed: u64,
    pub(crate) par: Par,
}

impl Factors {
    /// Whether a method of their own needs the inputs' Gram matrix.
    pub(crate) fn need_gram(&self) -> bool {
        matches!(self, Self::By(method) if method.needs().has::<Gram>())
    }

    /// Bytes of a value, where that is known before storing.
    pub(crate) fn value_bytes(&self, source: DType) -> Option<usize> {
        match self {
            Self::Source => Some(source.size()),
            Self::Float(dtype) => Some(dtype.size()),
            Self::Remapped | Self::By(_) => None,
        }
    }

    /// The rank that is meant of a matrix of this shape, where the way of storing says what a ratio is a ratio of.
    pub(crate) fn rank(&self, rank: Rank, [out, inp]: [usize; 2]) -> Rank {
        match (self, rank) {
            (Self::Remapped, Rank::Ratio(ratio)) => {
                let kept = (1.0 - ratio) * out.min(inp) as f64 + 1e-9;
                Rank::Number((kept as usize).max(1))
            }
            (_, rank) => rank,
        }
    }

    /// Stores both factors, and says what was done in the place of what was asked, if something was. `weight` is what
    /// they approximate.
    pub(crate) fn store(
        &self,
        weight: &Array2<f32>,
        factors: Projection,
        around: &Around<'_>,
    ) -> Result<(Product, Option<String>)> {
        let Projection { left, right } = factors;
        let dtype = match self {
            Self::Source => around.dtype,
            Self::Float(dtype) => *dtype,
            Self::Remapped => return remapped(left, right, around),
            Self::By(method) => return by_method(&**method, weight, left, right, around),
        };
        let (dtype, note) = fitting(dtype, left.iter().chain(&right));
        let dense = |m: &Array2<f32>| Ok::<_, Error>(Dense::from_f32(m.view(), dtype)?.boxed());
        Ok((Product::new(dense(&left)?, dense(&right)?)?, note))
    }
}

/// The type, or f32 and why, if it cannot hold the values.
pub(crate) fn fitting<'a>(
    dtype: DType,
    mut values: impl Iterator<Item = &'a f32>,
) -> (DType, Option<String>) {
    match values.all(|v| dtype.round(*v).is_finite()) {
        true => (dtype, None),
        false => (DType::F32, Some(format!("factors beyond {dtype:?}: stored in F32 instead"))),
    }
}

/// 8-bit and 16-bit rows as [`Factors::Remapped`] says.
fn remapped(
    mut left: Array2<f32>,
    mut right: Array2<f32>,
    around: &Around<'_>,
) -> Result<(Product, Option<String>)> {
    let (out, inp, rank) = (left.nrows(), right.ncols(), right.nrows());
    // Directions of one size in U, so that a scale of a row serves all of them; V has a scale for each.
    for (mut column, mut row) in left.columns_mut().into_iter().zip(right.rows_mut()) {
        let most = column.iter().fold(0.0f32, |most, v| most.max(v.abs()));
        if most > 0.0 {
            column.mapv_inplace(|v| v / most);
            row.mapv_inplace(|v| v * most);
        }
    }
    let l = out.min(inp);
    // As many numbers as U of a tall matrix has in f16.
    let exact = rank * (inp - l) / inp.max(1);
    let (narrow, wide) = (left.slice(s![l.., ..]), right.slice(s![..exact, ..]));
    let (dtype, note) = fitting(DType::F16, narrow.iter().chain(&wide));
    let half = |m: ArrayView2<'_, f32>| Ok::<_, Error>(Dense::from_f32(m, dtype)?.boxed());
    let grid = GridSpec::new(8, 0).with_symmetric(true);
    let bytes = |m: ArrayView2<'_, f32>| {
        Ok::<_, Error>(grid.round(&Target::new(around.name, m), around.par)?.boxed())
    };
    let stacked = |mut pieces: Vec<Box<dyn Node>>| {
        pieces.retain(|piece| piece.shape()[0] > 0);
        match pieces.len() {
            1 => Ok(pieces.remove(0)),
            _ => Stacked::new(pieces).map(Node::boxed),
        }
    };
    let left = stacked(vec![bytes(left.slice(s![..l, ..]))?, half(narrow)?])?;
    let right = stacked(vec![half(wide)?, bytes(right.slice(s![exact.., ..]))?])?;
    Ok((Product::new(left, right)?, note))
}

fn by_method(
    method: &dyn DynCompress,
    weight: &Array2<f32>,
    left: Array2<f32>,
    right: Array2<f32>,
    around: &Around<'_>,
) -> Result<(Product, Option<String>)> {
    let mut notes = Vec::new();
    let mut compress =
        |which: &str, factor: &Array2<f32>, calibration: Calibration| -> Result<Box<dyn Node>> {
            let target = Target::new(around.name, factor.view()).with_dtype(around.dtype);
            let group = Group::single(target, calibration);
            let (node, why) = compressed(method, group, around.seed, around.par)?;
            notes.extend(why.map(|why| format!("{which} factor: {why}")));
            Ok(node)
        };
    let right = compress("right", &right, around.calibration.clone())?;
    let stored = decode(&*right)?;
    let left = refit(weight, &left, &stored, around)?;
    let calibration = match method.needs().has::<Gram>() {
        true => outputs_calibration(&stored, around)?,
        false => Calibration::none(left.ncols()),
    };
    let left = compress("left", &left, calibration)?;
    Ok((Product::new(left, right)?, (!notes.is_empty()).then(|| notes.join("; "))))
}

/// A factor as a method makes it, and what that fell back to.
pub(crate) fn compressed(
    method: &dyn DynCompress,
    group: Group<'_>,
    seed: u64,
    par: Par,
) -> Result<(Box<dyn Node>, Option<String>)> {
    let mut made = method.compress_group_dyn(Group { seed, par, ..group })?;
    match made.layers.pop() {
        Some(layer) if layer.bias.is_none() && made.folded.is_none() => {
            Ok((layer.node, layer.fallback))
        }
        _ => Err(Error::unsupported(format!("`{}` as a method for factors", method.id()))),
    }
}

/// The Gram matrix of V's outputs, or no calibration where it is beyond f32: a method that wants it falls back.
fn outputs_calibration(right: &Array2<f32>, around: &Around<'_>) -> Result<Calibration> {
    let gram = Calibration::from_gram(outputs_gram(right, around)?, around.calibration.tokens());
    let (calibration, _) = Usable::of(gram)?.or_else(|_| Calibration::none(right.nrows()));
    Ok(calibration)
}

/// V H Vᵀ: the Gram matrix of V's outputs.
fn outputs_gram(right: &Array2<f32>, around: &Around<'_>) -> Result<Array2<f32>> {
    let seen = around.root.apply(right.view(), around.par)?;
    let mut gram = Array2::zeros((right.nrows(), right.nrows()));
    linalg::matmul_nt(seen.view(), seen.view(), gram.view_mut(), false, around.par);
    Ok(gram)
}

/// The U that loses least with this V: W H Vᵀ (V H Vᵀ)⁻¹ (SVD-LLM's closed-form update of U). Keeps the old one where
/// the matrix cannot be factored, or what comes of it is beyond f32.
fn refit(
    weight: &Array2<f32>,
    left: &Array2<f32>,
    right: &Array2<f32>,
    around: &Around<'_>,
) -> Result<Array2<f32>> {
    let par = around.par;
    // Of a usual size, as in a projection; undone at the end.
    let exponents = [weight, right].map(|m| exponent(m.iter()));
    let seen = |m: &Array2<f32>, own: i32| {
        let m = scaled(m.view(), -own - around.root.exponent());
        Ok::<_, Error>(around.root.apply(m.view(), par)?.mapv(f64::from))
    };
    let (target, seen) = (seen(weight, exponents[0])?, seen(right, exponents[1])?);
    let rank = right.nrows();
    let mut gram = Array2::zeros((rank, rank));
    linalg::matmul_nt(seen.view(), seen.view(), gram.view_mut(), false, par);
    let damp = 1e-9 * gram.diag().sum() / rank.max(1) as f64;
    let Ok(lower) = linalg::cholesky_damped(gram, damp, par) else { return Ok(left.clone()) };
    // Uᵀ = (V H Vᵀ)⁻¹ (V H Wᵀ), by two triangular solves.
    let mut fitted = Array2::zeros((rank, weight.nrows()));
    linalg::matmul_nt(seen.view(), target.view(), fitted.view_mut(), false, par);
    let lower_view = lower.view();
    linalg::solve_triangular(lower_view, linalg::Triangle::Lower, fitted.view_mut(), par)?;
    linalg::solve_triangular(lower.t(), linalg::Triangle::Upper, fitted.view_mut(), par)?;
    let back = power_of_two(exponents[0] - exponents[1]);
    let fitted = fitted.t().mapv(|v| (v * back) as f32);
    Ok(if fitted.iter().all(|v| v.is_finite()) { fitted } else { left.clone() })
}
