use ndarray::ArrayView1;
use tensorpress_tensor::{Error, Result, ndarray};

/// Pairs of layers `(earlier, later)` by how unlike their keys and values are, the most unlike first: KVSharer's order (Yang et
/// al., 2024), which found that these, and not the most alike, can read each other's. Each layer comes as one vector: keys and
/// values one after another, the mean over a calibration set. Distances are Euclidean; of equal ones the first pair comes first.
///
/// # Errors
/// `ShapeMismatch` for layers of unlike length, `Numerical` for what is not finite.
pub fn dissimilar_pairs(layers: &[ArrayView1<'_, f32>]) -> Result<Vec<(usize, usize)>> {
    let mut pairs = Vec::new();
    for (b, later) in layers.iter().enumerate() {
        for (a, earlier) in layers[..b].iter().enumerate() {
            if earlier.len() != later.len() {
                let (x, y) = (earlier.len(), later.len());
                return Err(Error::shape(format!("layer {a} has {x} numbers, layer {b} {y}")));
            }
            let square = |(x, y): (&f32, &f32)| (f64::from(*x) - f64::from(*y)).powi(2);
            let distance: f64 = earlier.iter().zip(later).map(square).sum();
            if !distance.is_finite() {
                return Err(Error::numerical(format!("layers {a} and {b}: {distance} apart")));
            }
            pairs.push((distance, (a, b)));
        }
    }
    pairs.sort_by(|x, y| y.0.total_cmp(&x.0).then(x.1.cmp(&y.1)));
    Ok(pairs.into_iter().map(|(_, pair)| pair).collect())
}

/// Which layers read another's keys and values: pairs in this order, the later layer reading the earlier one, kept where
/// `similar`, asked with the owners so far, gives at least `least` (KVSharer: the cosine between the final hidden states with
/// and without, 0.5 in the paper), until `count` layers read others. A layer that is read stays its own owner, and one that
/// reads is not read. The result is what [`Caches::with_owners`](crate::Caches::with_owners) takes; fewer layers than `count`
/// read others where the pairs run out.
///
/// # Errors
/// `InvalidArgument` for pairs that are not `earlier < later < layers`, those of `similar`.
pub fn share_layers(
    layers: usize,
    pairs: &[(usize, usize)],
    count: usize,
    least: f64,
    mut similar: impl FnMut(&[usize]) -> Result<f64>,
) -> Result<Vec<usize>> {
    let mut owners: Vec<usize> = (0..layers).collect();
    let mut shared = 0;
    for (earlier, later) in pairs {
        if earlier >= later || *later >= layers {
            return Err(Error::invalid(format!(
                "layers {earlier} and {later} of {layers}: an earlier and a later one expected"
            )));
        }
        if shared == count {
            break;
        }
        let is_read =
            owners.iter().enumerate().any(|(layer, owner)| layer != *later && owner == later);
        if owners[*later] != *later || owners[*earlier] != *earlier || is_read {
            continue;
        }
        owners[*later] = *earlier;
        if similar(&owners)? >= least {
            shared += 1;
        } else {
            owners[*later] = *later;
        }
    }
    Ok(owners)
}
