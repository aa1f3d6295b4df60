//! Taking a group of matrices through a map and back: the one place where transforms meet methods.

use std::sync::Arc;

use ndarray::{Array2, ArrayView2};

use crate::error::{Context, Error, Result};
use crate::linalg::Par;
use crate::method::{Compressed, CompressedGroup, Group, Target};
use crate::node::{Map, Mask, Node, Side, Transformed};

/// What happens to the map once a group has been solved behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// It is stored: each result stands in a [`Transformed`].
    Stored,
    /// It is part of what stands before the matrices already (a norm it was folded into).
    Folded,
}

/// Solves the group behind `map` on its shared input, W = A T: `solve` gets A = W T⁻¹, the statistics of X Tᵀ, and masks
/// carried along; what it makes of A is wrapped in T again. A vector to fold into does not go along: it stands before T.
///
/// # Errors
/// `ShapeMismatch` if the map is of other channels, `Unsupported` for a mask that does not go through it, those of `solve`.
pub fn carry<N: Node + 'static>(
    group: Group<'_>,
    map: &Arc<dyn Map>,
    keep: Keep,
    solve: impl FnOnce(Group<'_>) -> Result<CompressedGroup<N>>,
) -> Result<CompressedGroup> {
    let channels = group.channels()?;
    if map.outer() != channels {
        let message = format!("a map of {} channels on {channels}", map.outer());
        return Err(Error::shape(message));
    }
    let Group { targets, calibration, fold: _, seed, par } = group;
    let inner = Inner::of(&targets, Side::In, |_| &**map, par)?;
    // Given away before the statistics are carried, so that no second Gram matrix is held longer than needed.
    let mapped = calibration.through(map.clone(), Side::In, par)?;
    drop(calibration);
    let group =
        Group { targets: inner.targets(&targets), calibration: mapped, fold: None, seed, par };
    let CompressedGroup { layers, .. } = solve(group)?;
    let wrap = |(layer, target): (Compressed<N>, &Target<'_>)| {
        let Compressed { bias, fallback, node } = layer.boxed();
        let node = match keep {
            Keep::Folded => node,
            Keep::Stored => {
                Transformed::new(Side::In, map.clone(), node).in_tensor(target.name)?.boxed()
            }
        };
        Ok(Compressed { bias, fallback, node })
    };
    let layers = layers.into_iter().zip(&targets).map(wrap).collect::<Result<_>>()?;
    Ok(CompressedGroup::new(layers))
}

/// Solves the group behind maps on the outputs, W = Tᵀ A, one for each matrix: `solve` gets A = T⁻ᵀ W and masks carried
/// along; the shared input is as it was, and so is a vector to fold into. What is made of A is wrapped in T again, and
/// corrections of biases are carried back. Statistics of the outputs go along with a single matrix; of several they
/// become an error met on access.
///
/// # Errors
/// `InvalidArgument` unless there is one map a matrix; those of [`carry`].
pub fn carry_out<N: Node + 'static>(
    group: Group<'_>,
    maps: &[Arc<dyn Map>],
    solve: impl FnOnce(Group<'_>) -> Result<CompressedGroup<N>>,
) -> Result<CompressedGroup> {
    let Group { targets, mut calibration, fold, seed, par } = group;
    if maps.len() != targets.len() {
        let message = format!("{} maps for {} matrices", maps.len(), targets.len());
        return Err(Error::invalid(message));
    }
    for (map, target) in maps.iter().zip(&targets) {
        if map.outer() != target.weight.nrows() {
            let message = format!("a map of {} on {} outputs", map.outer(), target.weight.nrows());
            return Err(Error::shape(message).in_tensor(target.name));
        }
        calibration =
            calibration.behind_outputs(map.clone(), target.name, targets.len() == 1, par)?;
    }
    let inner = Inner::of(&targets, Side::Out, |i| &*maps[i], par)?;
    let group = Group { targets: inner.targets(&targets), calibration, fold, seed, par };
    let CompressedGroup { layers, folded } = solve(group)?;
    let wrap = |((layer, target), map): ((Compressed<N>, &Target<'_>), &Arc<dyn Map>)| {
        let Compressed { bias, fallback, node } = layer.boxed();
        let bias = bias.map(|bias| {
            let inner = ArrayView2::from_shape((1, bias.len()), &bias).expect("one row");
            let mut outer = Array2::zeros((1, map.outer()));
            map.apply(inner, outer.view_mut());
            outer.into_raw_vec_and_offset().0
        });
        let node = Transformed::new(Side::Out, map.clone(), node).in_tensor(target.name)?.boxed();
        Ok(Compressed { bias, fallback, node })
    };
    let layers = layers.into_iter().zip(&targets).zip(maps).map(wrap).collect::<Result<_>>()?;
    Ok(CompressedGroup { layers, folded })
}

/// The matrices as they are behind the map.
struct Inner {
    weights: Vec<Array2<f32>>,
    masks: Vec<Option<Mask>>,
}

impl Inner {
    fn of<'m>(
        targets: &[Target<'_>],
        side: Side,
        map: impl Fn(usize) -> &'m dyn Map,
        par: Par,
    ) -> Result<Self> {
        let (mut weights, mut masks) = (Vec::new(), Vec::new());
        for (i, target) in targets.iter().enumerate() {
            let mask = target.mask.map(|mask| map(i).mask(mask, side)).transpose();
            masks.push(mask.in_tensor(target.name)?);
            weights.push(map(i).weights(target.kept_weight().view(), side, par));
        }
        Ok(Self { weights, masks })
    }

    fn targets<'s>(&'s self, targets: &'s [Target<'_>]) -> Vec<Target<'s>> {
        let mapped = targets.iter().zip(&self.weights).zip(&self.masks);
        mapped
            .map(|((target, weight), mask)| Target {
                weight: weight.view(),
                mask: mask.as_ref(),
                ..target.clone()
            })
            .collect()
    }
}
