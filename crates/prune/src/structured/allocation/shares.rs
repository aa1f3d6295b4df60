//! Shares of the blocks by how far they turn their hidden states.

use super::Judged;

/// Of each block, the mean of those that are known where it is not.
pub(super) fn influences(blocks: &[Judged]) -> Vec<f64> {
    let known: Vec<f64> = blocks.iter().filter_map(|block| block.influence).collect();
    let mean = known.iter().sum::<f64>() / known.len().max(1) as f64;
    blocks.iter().map(|block| block.influence.unwrap_or(mean)).collect()
}

/// CFSP's shares to keep: their mean is `kept`, and none is above 1.
#[must_use]
pub fn sigmoid_shares(distances: &[f64], steepness: f64, kept: f64) -> Vec<f64> {
    let n = distances.len().max(1) as f64;
    let middle = distances.iter().sum::<f64>() / n;
    let mut shares: Vec<f64> =
        distances.iter().map(|d| 1.0 / (1.0 + (-steepness * (d - middle)).exp())).collect();
    let mean = shares.iter().sum::<f64>() / n;
    let most = shares.iter().copied().fold(0.0, f64::max);
    if most > mean && most / mean * kept >= 1.0 {
        // The most important block then keeps a little less than all, as in the released code.
        let drawn = mean * (1.0 / kept - 1.0) / (most - mean) / 1.05;
        shares.iter_mut().for_each(|share| *share = mean + (*share - mean) * drawn);
    }
    shares.iter().map(|share| (share / mean * kept).min(1.0)).collect()
}

/// MoDeGPT's shares that go: their mean is `mean`, and none is above 1.
#[must_use]
pub fn softmax_shares(influences: &[f64], epsilon: f64, mean: f64) -> Vec<f64> {
    let least = influences.iter().copied().fold(f64::INFINITY, f64::min);
    let weights: Vec<f64> = influences.iter().map(|s| (-(s - least) / epsilon).exp()).collect();
    let mut shares = vec![0.0; influences.len()];
    let mut full = vec![false; influences.len()];
    // Whoever is full takes no part any more; each round fills one at least.
    for _ in 0..influences.len() {
        let open: f64 = weights.iter().zip(&full).filter(|(_, full)| !**full).map(|(w, _)| w).sum();
        let taken = full.iter().filter(|full| **full).count() as f64;
        let left = (mean * influences.len() as f64 - taken).max(0.0);
        let number = full.iter().filter(|full| !**full).count();
        let mut more = false;
        for ((share, full), weight) in shares.iter_mut().zip(&mut full).zip(&weights) {
            if *full {
                continue;
            }
            // All weights may be beyond the smallest number.
            *share = if open > 0.0 { left * weight / open } else { left / number as f64 };
            if *share >= 1.0 {
                (*share, *full, more) = (1.0, true, true);
            }
        }
        if !more {
            break;
        }
    }
    shares
}
