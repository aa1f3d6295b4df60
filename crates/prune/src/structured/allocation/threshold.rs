//! One threshold for the whole model.

use tensorpress_tensor::Result;

use super::{Judged, mean_share};

/// A threshold for heads and one for channels: the cheapest steps go, and of equal ones those of earlier blocks.
pub(super) fn threshold(sparsity: f64, balance: f64, blocks: &[Judged]) -> Result<Vec<[usize; 2]>> {
    let of = |module: usize| -> f64 {
        let units = blocks.iter().filter_map(|block| block.modules[module].as_ref());
        units.map(|units| (units.weights * units.count() as u64) as f64).sum()
    };
    let all: f64 = blocks.iter().map(|block| block.weights as f64).sum();
    // sparsity x all = share x channels + balance x share x heads.
    let [heads, channels] = [of(0), of(1)];
    let share = mean_share(sparsity, blocks)
        .map(|_| sparsity * all / (channels + balance * heads).max(f64::MIN_POSITIVE))?;
    let shares = match (share >= 1.0, balance * share >= 1.0) {
        (_, true) => [1.0, (sparsity * all - heads) / channels.max(1.0)],
        (true, false) => [(sparsity * all - channels) / heads.max(1.0), 1.0],
        _ => [balance * share, share],
    };
    let mut gone = vec![[0; 2]; blocks.len()];
    for module in 0..2 {
        let mut steps = Vec::new();
        for (index, block) in blocks.iter().enumerate() {
            let Some(units) = &block.modules[module] else { continue };
            let mut most = 0.0f64;
            // Steps come in the order of the track: none before those that it builds on. The last unit stays.
            for step in &units.track.steps[..units.count() - 1] {
                most = most.max(step / units.weights.max(1) as f64);
                steps.push((most, index, units.weights as f64));
            }
        }
        steps.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
        let mut left = shares[module].clamp(0.0, 1.0) * of(module) * (1.0 + 1e-12);
        for (_, block, weights) in steps {
            if weights > left {
                break;
            }
            left -= weights;
            gone[block][module] += 1;
        }
    }
    for (gone, block) in gone.iter_mut().zip(blocks) {
        for (gone, units) in gone.iter_mut().zip(&block.modules) {
            let Some(units) = units.as_ref().filter(|units| units.multiple > 1) else { continue };
            *gone = units.gone(*gone as f64 / units.count() as f64);
        }
    }
    Ok(gone)
}
