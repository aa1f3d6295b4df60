use tensorpress_tensor::linalg::Par;
use tensorpress_tensor::ndarray::ArrayView2;
use tensorpress_tensor::node::{Dense, Product};
use tensorpress_tensor::{DType, Error, Node, Result, Target};

use crate::factors::fitting;
use crate::metric::Root;
use crate::project::{Solver, project};
use crate::rank::Rank;

/// The factors of a table of embeddings `[rows, dim]` that lose least where rows count by how often they are read: E ~ (E
/// V) Vᵀ, V the leading eigenvectors of Σ_i n_i e_i e_iᵀ (Yu and Wu, *Unified Low-rank Compression Framework for
/// Click-through Rate Prediction*, 2024: outputs of an embedding are its rows, as often as they occur).
///
/// `counts` are n_i, in any unit: one a row; all rows alike where all are 0. In f32 where `dtype` cannot hold the factors.
///
/// ```
/// use tensorpress_lowrank::{Rank, embedding_factors};
/// use tensorpress_tensor::{DType, Node, linalg::Par, ndarray::array, node::decode};
///
/// let table = array![[1.0f32, 0.0], [0.0, 2.0]];
/// // The first row is read a hundred times as often as the second.
/// let node = embedding_factors(table.view(), &[100.0, 1.0], Rank::Number(1), DType::F32, Par::Seq)?;
/// let kept = decode(&node)?;
/// assert!((kept[[0, 0]] - 1.0).abs() < 1e-6 && kept[[1, 1]].abs() < 1e-6);
/// # Ok::<(), tensorpress_tensor::Error>(())
/// ```
///
/// # Errors
/// `ShapeMismatch` unless there is one count a row; `Numerical` for embeddings that are not finite, counts below 0, NaN or
/// infinite, or without convergence; `InvalidArgument` for the rank, or a type that is none of floats.
pub fn embedding_factors(
    table: ArrayView2<'_, f32>,
    counts: &[f64],
    rank: Rank,
    dtype: DType,
    par: Par,
) -> Result<Product> {
    rank.check()?;
    Target::new("table", table).check_finite()?;
    if !dtype.is_float() {
        return Err(Error::invalid(format!("{dtype:?}: allowed are f16, bf16 and f32")));
    }
    if counts.len() != table.nrows() {
        let message = format!("{} counts of {} embeddings", counts.len(), table.nrows());
        return Err(Error::shape(message));
    }
    if let Some(i) = counts.iter().position(|n| !(n.is_finite() && *n >= 0.0)) {
        return Err(Error::numerical(format!("count {i} is {}", counts[i])));
    }
    let most = counts.iter().copied().fold(0.0, f64::max);
    let root = match most > 0.0 {
        true => Root::Diagonal(counts.iter().map(|n| (n / most).sqrt() as f32).collect()),
        false => Root::Identity,
    };
    // Eᵀ ~ V (VᵀEᵀ), its inputs being rows of the table.
    let made = project(table.t(), &root, rank, Solver::default(), 0, par)?;
    let (rows, directions) = (made.right.t(), made.left.t());
    let (dtype, _) = fitting(dtype, rows.iter().chain(&directions));
    let dense = |m: ArrayView2<'_, f32>| {
        Ok::<_, Error>(Dense::from_f32(m.as_standard_layout().view(), dtype)?.boxed())
    };
    Product::new(dense(rows)?, dense(directions)?)
}
