use std::ops::Range;

use tensorpress_tensor::{Error, Result};

/// Layers that became fewer.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct MergedLayers {
    /// The layers that each is made of, all of them in order.
    pub groups: Vec<Range<usize>>,
    /// What the task's error is then.
    pub error: f64,
    /// How often the error was asked for.
    pub asked: usize,
}

/// Merges neighbouring layers one pair at a time, always the pair with which the task's error is least (the first of equals),
/// as long as it stays at most `bound` (ECLM of FastHMR: *Accelerating Human Mesh Recovery via Token and Layer Merging with
/// Diffusion Decoding*, 2025). `error` is told the layers that each merged one is made of and makes it as it likes: by the
/// mean of their weights, or by the first alone. It is asked about at most layers² / 2 mergings.
///
/// # Errors
/// Those of `error`; `Numerical` for an error that is no number; `InvalidArgument` without layers.
pub fn merge_layers(
    layers: usize,
    bound: f64,
    mut error: impl FnMut(&[Range<usize>]) -> Result<f64>,
) -> Result<MergedLayers> {
    if layers == 0 {
        return Err(Error::invalid("no layers to merge"));
    }
    let mut asked = 0;
    let mut ask = |groups: &[Range<usize>]| {
        asked += 1;
        match error(groups)? {
            bad if bad.is_nan() => Err(Error::numerical(format!("the error of {groups:?}"))),
            fine => Ok(fine),
        }
    };
    let mut groups: Vec<Range<usize>> = (0..layers).map(|layer| layer..layer + 1).collect();
    let mut now = ask(&groups)?;
    while groups.len() > 1 {
        let mut best: Option<(f64, Vec<Range<usize>>)> = None;
        for pair in 0..groups.len() - 1 {
            let mut merged = groups.clone();
            merged[pair].end = merged.remove(pair + 1).end;
            let error = ask(&merged)?;
            if best.as_ref().is_none_or(|(least, _)| error < *least) {
                best = Some((error, merged));
            }
        }
        match best {
            Some((error, merged)) if error <= bound => (now, groups) = (error, merged),
            _ => break,
        }
    }
    Ok(MergedLayers { groups, error: now, asked })
}
