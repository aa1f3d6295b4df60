//! What tests of several methods hold theirs against: written from the formulas, slow, in f64.
#![allow(dead_code)]

use std::hash::Hasher;

use tensorpress_tensor::Result;
use tensorpress_tensor::linalg::{Par, SplitMix};
use tensorpress_tensor::ndarray::Array2;
use tensorpress_tensor::stats::{Calibration, Supplied, Supply};

/// Sums of uniform numbers, which have tails.
pub fn random(rows: usize, cols: usize, seed: u64) -> Array2<f32> {
    let mut random = SplitMix::new(seed);
    Array2::from_shape_fn((rows, cols), |_| {
        let size = (random.next_f64() * 3.0).exp() / 20.0;
        ((random.next_f64() - 0.5) * size) as f32
    })
}

/// Inputs that depend on each other.
pub fn inputs(tokens: usize, cols: usize, seed: u64) -> Array2<f32> {
    let (own, shared) = (random(tokens, cols, seed), random(tokens, 3, seed + 1));
    Array2::from_shape_fn((tokens, cols), |(t, c)| {
        let mix = shared[[t, c % 3]] + 0.5 * shared[[t, (c / 3) % 3]];
        (own[[t, c]] + 2.0 * mix) * (1.0 + (c % 7) as f32 / 3.0)
    })
}

/// E[x xᵀ] of rows x.
pub fn second_moments(x: &Array2<f32>) -> Array2<f64> {
    let x = x.mapv(f64::from);
    x.t().dot(&x) / x.nrows() as f64
}

/// A Fisher matrix of outputs, or its diagonal, that a caller supplies.
#[derive(Debug)]
pub struct Costs(pub Array2<f32>);

impl Supplied for Costs {
    fn of_weights(&self, supply: Supply, _: &str) -> Result<Option<Array2<f32>>> {
        Ok((supply == Supply::OUTPUT_FISHER).then(|| self.0.clone()))
    }
    fn identify(&self, hash: &mut dyn Hasher) -> Result<()> {
        self.0.iter().for_each(|g| hash.write_u32(g.to_bits()));
        Ok(())
    }
}

pub fn seen(inputs: &Array2<f32>) -> Calibration {
    Calibration::from_samples(inputs.clone(), Par::Seq)
}

/// XᵀX with each entry of the diagonal damped in proportion, and 1e-4 of the median.
pub fn damped_gram(inputs: &Array2<f32>, damp: f64) -> Array2<f64> {
    let x = inputs.mapv(f64::from);
    let mut gram = x.t().dot(&x);
    let mut sorted = gram.diag().to_vec();
    sorted.sort_by(f64::total_cmp);
    let median = sorted[sorted.len() / 2];
    gram.diag_mut().mapv_inplace(|d| d * (1.0 + damp) + 1e-4 * median);
    gram
}

/// The inverse, by Gauss and Jordan.
pub fn inverse(matrix: &Array2<f64>) -> Array2<f64> {
    let n = matrix.nrows();
    let (mut a, mut out) = (matrix.clone(), Array2::<f64>::eye(n));
    for j in 0..n {
        let pivot = (j..n).max_by(|x, y| a[[*x, j]].abs().total_cmp(&a[[*y, j]].abs())).unwrap();
        for c in 0..n {
            a.swap([j, c], [pivot, c]);
            out.swap([j, c], [pivot, c]);
        }
        let by = a[[j, j]];
        a.row_mut(j).mapv_inplace(|v| v / by);
        out.row_mut(j).mapv_inplace(|v| v / by);
        for r in (0..n).filter(|r| *r != j) {
            let by = a[[r, j]];
            for c in 0..n {
                a[[r, c]] -= by * a[[j, c]];
                out[[r, c]] -= by * out[[j, c]];
            }
        }
    }
    out
}

/// What rounding each column costs once later columns have made good for what they can: 1 over the corner of the inverse
/// of the Gram matrix of it and the columns behind it, the largest being 1.
pub fn costs(gram: &Array2<f64>) -> Vec<f64> {
    let n = gram.nrows();
    let cost = |j: usize| {
        let behind = gram.slice(tensorpress_tensor::ndarray::s![j.., j..]).to_owned();
        1.0 / inverse(&behind)[[0, 0]]
    };
    let costs: Vec<f64> = (0..n).map(cost).collect();
    let most = costs.iter().fold(0.0, |most: f64, cost| most.max(*cost));
    costs.iter().map(|cost| cost / most).collect()
}

/// Rounds a row vector after vector of `width` columns; those still to come take the values that are best for the errors so
/// far: w_rest += -(w - q)(H_rest,rest)⁻¹ of the cross terms, solved anew each time. `round` is handed the first column and
/// the weights from there on as they stand, and gives `width` values.
pub fn feed_back(
    gram: &Array2<f64>,
    row: &[f64],
    width: usize,
    mut round: impl FnMut(usize, &[f64]) -> Vec<f64>,
) -> Vec<f64> {
    use tensorpress_tensor::ndarray::s;
    let n = row.len();
    let mut decided: Vec<f64> = Vec::new();
    let mut now = row.to_vec();
    while decided.len() < n {
        let at = decided.len();
        let values = round(at, &now[at..]);
        decided.extend(&values[..width.min(n - at)]);
        let done = decided.len();
        // The rest r minimises the loss given what is decided: H_rr (q_r - w_r) = -H_rd (q_d - w_d).
        if done < n {
            let error: Vec<f64> = (0..done).map(|c| decided[c] - row[c]).collect();
            let solve = inverse(&gram.slice(s![done.., done..]).to_owned());
            for (i, r) in (done..n).enumerate() {
                let mut moved = 0.0;
                for (j, other) in (done..n).enumerate() {
                    let pull: f64 = (0..done).map(|d| gram[[other, d]] * error[d]).sum();
                    moved -= solve[[i, j]] * pull;
                }
                now[r] = row[r] + moved;
            }
        }
    }
    decided
}

/// tr(D H Dᵀ) of the error over tr(W H Wᵀ).
pub fn output_error(gram: &Array2<f64>, weight: &Array2<f32>, decoded: &Array2<f32>) -> f64 {
    let loss = |of: Array2<f64>| (&of.dot(gram) * &of).sum();
    let weight = weight.mapv(f64::from);
    loss(&weight - &decoded.mapv(f64::from)) / loss(weight)
}
