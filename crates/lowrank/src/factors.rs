use std::sync::Arc;

use tensorpress_tensor::linalg::{self, Par};
use tensorpress_tensor::ndarray::Array2;
use tensorpress_tensor::node::{Dense, Product, decode};
use tensorpress_tensor::stats::{Calibration, Gram};
use tensorpress_tensor::{DType, DynCompress, Error, Group, Node, Result, Target};

use crate::metric::Root;
use crate::project::Projection;

/// How factors are stored.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub enum Factors {
    /// As the weights are stored.
    #[default]
    Source,
    /// In this float type.
    Float(DType),
    /// By a method of their own. V is compressed on the inputs' Gram matrix, U on that of V's outputs, after it was
    /// fitted anew to what V has become.
    By(Arc<dyn DynCompress>),
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
            Self::By(_) => None,
        }
    }

    /// Stores both factors. `weight` is what they approximate.
    pub(crate) fn store(
        &self,
        weight: &Array2<f32>,
        factors: Projection,
        around: &Around<'_>,
    ) -> Result<Product> {
        let Projection { left, right } = factors;
        let dtype = match self {
            Self::Source => around.dtype,
            Self::Float(dtype) => *dtype,
            Self::By(method) => return by_method(&**method, weight, left, right, around),
        };
        let dense = |m: &Array2<f32>| Ok::<_, Error>(Dense::from_f32(m.view(), dtype)?.boxed());
        Product::new(dense(&left)?, dense(&right)?)
    }
}

fn by_method(
    method: &dyn DynCompress,
    weight: &Array2<f32>,
    left: Array2<f32>,
    right: Array2<f32>,
    around: &Around<'_>,
) -> Result<Product> {
    let compress = |factor: &Array2<f32>, calibration: Calibration| -> Result<Box<dyn Node>> {
        let target = Target::new(around.name, factor.view()).with_dtype(around.dtype);
        let group =
            Group { seed: around.seed, par: around.par, ..Group::single(target, calibration) };
        let mut result = method.compress_group_dyn(group)?;
        match result.layers.pop() {
            Some(layer) if layer.bias.is_none() && result.folded.is_none() => Ok(layer.node),
            _ => Err(Error::unsupported(format!("`{}` as a method for factors", method.id()))),
        }
    };
    let right = compress(&right, around.calibration.clone())?;
    let stored = decode(&*right)?;
    let left = refit(weight, &left, &stored, around)?;
    let calibration = if method.needs().has::<Gram>() {
        let seen = outputs_gram(&stored, around)?;
        Calibration::from_gram(seen, around.calibration.tokens())?
    } else {
        Calibration::none(left.ncols())
    };
    Product::new(compress(&left, calibration)?, right)
}

/// V H Vᵀ: the Gram matrix of V's outputs.
fn outputs_gram(right: &Array2<f32>, around: &Around<'_>) -> Result<Array2<f32>> {
    let seen = around.root.apply(right.view(), around.par)?;
    let mut gram = Array2::zeros((right.nrows(), right.nrows()));
    linalg::matmul_nt(seen.view(), seen.view(), gram.view_mut(), false, around.par);
    Ok(gram)
}

/// The U that loses least with this V: W H Vᵀ (V H Vᵀ)⁻¹ (SVD-LLM's closed-form update of U). Keeps the old one where
/// the matrix cannot be factored.
fn refit(
    weight: &Array2<f32>,
    left: &Array2<f32>,
    right: &Array2<f32>,
    around: &Around<'_>,
) -> Result<Array2<f32>> {
    let par = around.par;
    let (target, seen) =
        (around.root.apply(weight.view(), par)?, around.root.apply(right.view(), par)?);
    let (target, seen) = (target.mapv(f64::from), seen.mapv(f64::from));
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
    Ok(fitted.t().mapv(|v| v as f32))
}
