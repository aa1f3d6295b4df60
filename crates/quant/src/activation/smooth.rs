//! What methods share that scale input channels and round the inputs behind.

use tensorpress_tensor::node::{InputRounding, RoundedInputs};
use tensorpress_tensor::stats::{Calibration, Moments};
use tensorpress_tensor::{
    Compress, Compressed, CompressedGroup, Group, Node, Result, Target, Usable,
};

use crate::scaled::solve_scaled;

/// Scales are kept within these, so that neither weights nor inputs leave the range of floats.
const LEAST: f32 = 1e-5;
const MOST: f32 = 1e5;

/// Largest magnitude of every channel, or why it cannot be known.
pub(super) fn ranges(calibration: &Calibration) -> Result<Usable<Vec<f32>>> {
    let moments = calibration.usable::<Moments>()?;
    let known = moments.and_then(|moments| match moments.check() {
        Ok(()) => Usable::Yes(moments.abs_max().to_vec()),
        Err(e) => Usable::no(e.message()),
    });
    Ok(known)
}

/// Largest magnitude of every column over all matrices.
pub(super) fn weight_ranges(targets: &[Target<'_>], channels: usize) -> Vec<f32> {
    let mut most = vec![0.0f32; channels];
    for target in targets {
        for row in target.kept_weight().rows() {
            most.iter_mut().zip(row).for_each(|(most, w)| *most = most.max(w.abs()));
        }
    }
    most
}

/// Scales as they may be applied: a channel without one keeps its own.
pub(super) fn bounded(scale: impl Iterator<Item = f32>) -> Vec<f32> {
    let one = |s: f32| if s.is_finite() && s > 0.0 { s.clamp(LEAST, MOST) } else { 1.0 };
    scale.map(one).collect()
}

/// The largest of all.
pub(super) fn largest(ranges: &[f32]) -> f32 {
    ranges.iter().copied().fold(0.0, f32::max)
}

/// Rounding by the range that the statistics show; none where they show nothing but zeros, or cannot be used.
pub(super) fn fixed(bits: u8, calibration: &Calibration) -> Result<Option<InputRounding>> {
    match ranges(calibration)? {
        Usable::Yes(ranges) if largest(&ranges) > 0.0 => {
            InputRounding::fixed(bits, largest(&ranges)).map(Some)
        }
        _ => Ok(None),
    }
}

/// Solves the group behind `scale`, if there is one, and rounds the inputs as `rounding` says of the statistics behind it.
pub(super) fn solve<S: Compress>(
    solver: &S,
    group: Group<'_>,
    scale: Option<Vec<f32>>,
    note: Option<String>,
    rounding: impl Fn(&Calibration) -> Result<Option<InputRounding>>,
) -> Result<CompressedGroup> {
    let inner = |group: Group<'_>| {
        let rounding = rounding(&group.calibration)?;
        let wrap = |layer: Compressed<S::Node>| {
            let layer = layer.boxed().with_note(note.clone());
            let Some(rounding) = rounding else { return layer };
            let Compressed { bias, fallback, node } = layer;
            Compressed { bias, fallback, node: RoundedInputs::new(rounding, node).boxed() }
        };
        let made = solver.compress_group(group)?;
        Ok(CompressedGroup::new(made.layers.into_iter().map(wrap).collect()))
    };
    match scale {
        Some(scale) => solve_scaled(group, scale, inner),
        None => inner(Group { fold: None, ..group }),
    }
}
