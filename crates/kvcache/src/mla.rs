//! Multi-head latent attention from the matrices of other attention, in closed form (X-EcoMLA, Li et al., 2025): what a
//! short distillation starts from. Rows of matrices are outputs, `[out, in]`; heads lie one behind the other.

use crate::factor::{Svd, svd};
use ndarray::{Array2, ArrayView2, Axis, s};
use tensorpress_tensor::{Error, Result, ndarray};

/// Attention whose matrices are taken over.
#[derive(Debug, Clone, Copy)]
pub struct Attention<'a> {
    /// `[heads * head_dim, in]`
    pub queries: ArrayView2<'a, f32>,
    /// `[kv_heads * head_dim, in]`
    pub keys: ArrayView2<'a, f32>,
    /// `[kv_heads * head_dim, in]`
    pub values: ArrayView2<'a, f32>,
    /// Query heads, a multiple of `kv_heads`.
    pub heads: usize,
    /// Heads of keys and values.
    pub kv_heads: usize,
}

/// How wide a latent is.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub enum Rank {
    /// So many channels, or as many as there are.
    Fixed(usize),
    /// The fewest that keep this share of the squared singular values, above 0 to 1.
    Energy(f64),
}

/// What latent attention is made of.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Upcycled {
    /// Down to the latent of queries `[rank_q, in]`.
    pub down_queries: Array2<f32>,
    /// Up to the heads' queries without position `[heads * plain, rank_q]`.
    pub up_queries: Array2<f32>,
    /// Up to the heads' channels of position `[heads * rotary, rank_q]`.
    pub up_queries_rotary: Array2<f32>,
    /// Down to the latent that is cached `[rank_kv, in]`.
    pub down: Array2<f32>,
    /// Up to the heads' keys without position `[heads * plain, rank_kv]`.
    pub up_keys: Array2<f32>,
    /// Up to the heads' values `[heads * head_dim, rank_kv]`.
    pub up_values: Array2<f32>,
    /// Channels of position of the keys, one head for all `[rotary, in]`; cached beside the latent.
    pub keys_rotary: Array2<f32>,
}

impl Upcycled {
    /// Numbers that are cached for a token.
    #[must_use]
    pub fn cached(&self) -> usize {
        self.down.nrows() + self.keys_rotary.nrows()
    }
}

/// Latent attention whose queries are of `rank_q` and whose keys and values share a latent of `rank_kv`. The last `rotary`
/// channels of a head carry its position: those of the keys are the mean over the heads. At full rank and without rotary
/// channels it is the attention it was made from; with them where all heads' channels of position are alike.
///
/// # Errors
/// `ShapeMismatch` for matrices that do not fit each other; `InvalidArgument` for ranks that cannot be, or more rotary
/// channels than a head has; `Numerical` for what is not finite.
pub fn upcycle(
    attention: &Attention<'_>,
    rank_q: Rank,
    rank_kv: Rank,
    rotary: usize,
) -> Result<Upcycled> {
    let Attention { queries, keys, values, heads, kv_heads } = *attention;
    let fit = kv_heads > 0
        && heads.is_multiple_of(kv_heads)
        && queries.nrows().is_multiple_of(heads.max(1))
        && keys.dim() == values.dim()
        && keys.ncols() == queries.ncols()
        && heads > 0
        && keys.nrows() * heads == queries.nrows() * kv_heads;
    if !fit {
        return Err(Error::shape(format!(
            "queries {:?} of {heads} heads, keys {:?} and values {:?} of {kv_heads}",
            queries.dim(),
            keys.dim(),
            values.dim()
        )));
    }
    let dim = queries.nrows() / heads;
    let plain = dim.checked_sub(rotary).ok_or_else(|| {
        Error::invalid(format!("rotary = {rotary}: at most the {dim} channels of a head"))
    })?;
    let of_heads = |x: ArrayView2<'_, f32>, from: usize, to: usize| {
        let parts: Vec<_> = (0..x.nrows() / dim)
            .map(|h| x.slice_move(s![h * dim + from..h * dim + to, ..]))
            .collect();
        ndarray::concatenate(Axis(0), &parts).expect("as wide")
    };
    // Every query head has its own keys and values here: heads of a group share what they had.
    let repeat = |x: Array2<f32>, wide: usize| {
        let group = heads / kv_heads;
        let rows: Vec<usize> =
            (0..heads * wide).map(|row| row / wide / group * wide + row % wide).collect();
        x.select(Axis(0), &rows)
    };
    let (down_queries, up) = factors(queries, rank_q)?;
    let plain_keys = of_heads(keys, 0, plain);
    let joint = ndarray::concatenate(Axis(0), &[plain_keys.view(), values]).expect("as wide");
    let (down, up_joint) = factors(joint.view(), rank_kv)?;
    let (of_keys, of_values) = up_joint.view().split_at(Axis(0), plain_keys.nrows());
    let mut keys_rotary = Array2::zeros((rotary, keys.ncols()));
    for h in 0..kv_heads {
        keys_rotary += &keys.slice(s![h * dim + plain..(h + 1) * dim, ..]);
    }
    keys_rotary /= kv_heads as f32;
    Ok(Upcycled {
        up_queries: of_heads(up.view(), 0, plain),
        up_queries_rotary: of_heads(up.view(), plain, dim),
        down_queries,
        down,
        up_keys: repeat(of_keys.to_owned(), plain),
        up_values: repeat(of_values.to_owned(), dim),
        keys_rotary,
    })
}

/// Down `[rank, in]`, orthonormal rows, and up `[out, rank]`: their product is the closest of that rank.
fn factors(w: ArrayView2<'_, f32>, rank: Rank) -> Result<(Array2<f32>, Array2<f32>)> {
    let all = svd(w.mapv(f64::from).view())?;
    let rank = match rank {
        Rank::Fixed(rank @ 1..) => rank.min(all.s.len()),
        Rank::Energy(share) if share > 0.0 && share <= 1.0 => enough(&all, share),
        other => {
            return Err(Error::invalid(format!(
                "rank = {other:?}: allowed are ranks from 1 on, shares above 0 to 1"
            )));
        }
    };
    let Svd { u, s, vt, .. } = all.truncate(rank);
    Ok((vt.mapv(|x| x as f32), (&u * &s).mapv(|x| x as f32)))
}

fn enough(all: &Svd<f64>, share: f64) -> usize {
    let whole: f64 = all.s.iter().map(|s| s * s).sum();
    let mut sum = 0.0;
    let below = all.s.iter().take_while(|s| {
        sum += **s * **s;
        sum < share * whole
    });
    (below.count() + 1).min(all.s.len())
}
