//! Tokens that stand in rows and columns.

use std::collections::BTreeMap;

use ndarray::{ArrayView1, ArrayView2, Axis};
use tensorpress_tensor::{Error, Result};

use crate::hints::{Place, TokenHints, need};
use crate::map::TokenMap;
use crate::similarity::normalised;

/// The places of `pictures` pictures of `rows` x `cols` tokens, one after another, each row by row: what
/// [`TokenHints::places`] takes. Tokens of no place, such as a class token, are `None`s to be put between.
#[must_use]
pub fn grid(rows: usize, cols: usize, pictures: usize) -> Vec<Option<Place>> {
    let one = (0..rows).flat_map(|row| (0..cols).map(move |col| Some([row, col])));
    let one: Vec<_> = one.collect();
    one.repeat(pictures)
}

/// The picture of each token: its frame and its crop.
pub(crate) fn picture(hints: &TokenHints<'_>, token: usize) -> [usize; 2] {
    [hints.frames.map_or(0, |frames| frames[token]), hints.crops.map_or(0, |crops| crops.of[token])]
}

/// Windows of `window` rows x columns of each picture as one token each: the pooled path of fast frames (Slow-Fast), and the
/// mean that goes beside a regrouping (LaCo). Protected tokens and those of no place stay alone.
///
/// # Errors
/// `InvalidArgument` without places, for a window of nothing, and for hints that contradict the number of tokens.
pub fn pool_windows(tokens: usize, hints: &TokenHints<'_>, window: Place) -> Result<TokenMap> {
    if window.contains(&0) {
        return Err(Error::invalid(format!("a window of {window:?}; allowed are 1 and above")));
    }
    let places = need(hints.places, "a pool of windows", "the places of the tokens")?;
    let frames = hints.frames.map_or(tokens, <[_]>::len);
    let crops = hints.crops.map_or(tokens, |crops| crops.of.len());
    if [places.len(), frames, crops].iter().any(|given| *given != tokens) {
        return Err(Error::shape(format!("{} places for {tokens} tokens", places.len())));
    }
    let (mut windows, mut targets) = (BTreeMap::new(), 0);
    let mut assignment = Vec::with_capacity(tokens);
    for (token, place) in places.iter().enumerate() {
        let place = place.filter(|_| !hints.protected.contains(&token));
        let target = match place {
            None => targets,
            Some([row, col]) => *windows
                .entry((picture(hints, token), row / window[0], col / window[1]))
                .or_insert(targets),
        };
        targets = targets.max(target + 1);
        assignment.push(Some(target));
    }
    TokenMap::new(&assignment, targets)
}

/// The mean gradient of the brightness of a picture `[rows, cols]` within each patch of `patch` x `patch` pixels, row by row:
/// the length of Sobel's two differences, borders repeated. One number a token, as [`TokenHints::saliency`].
///
/// # Errors
/// `InvalidArgument` unless the picture is made of whole patches; `Numerical` for a pixel that is not finite.
pub fn pixel_gradient(picture: ArrayView2<'_, f32>, patch: usize) -> Result<Vec<f32>> {
    let (rows, cols) = picture.dim();
    if patch == 0 || rows % patch != 0 || cols % patch != 0 {
        return Err(Error::invalid(format!("{rows} x {cols} pixels in patches of {patch}")));
    }
    if let Some(((r, c), bad)) = picture.indexed_iter().find(|(_, v)| !v.is_finite()) {
        return Err(Error::numerical(format!("pixel [{r}, {c}] is {bad}")));
    }
    let pixel = |r: isize, c: isize| {
        let at = |i: isize, n: usize| i.clamp(0, n as isize - 1) as usize;
        f64::from(picture[[at(r, rows), at(c, cols)]])
    };
    let length = |r: usize, c: usize| {
        let (r, c) = (r as isize, c as isize);
        let (mut down, mut right) = (0.0, 0.0);
        for (side, weight) in [(-1, 1.0), (0, 2.0), (1, 1.0)] {
            down += weight * (pixel(r + 1, c + side) - pixel(r - 1, c + side));
            right += weight * (pixel(r + side, c + 1) - pixel(r + side, c - 1));
        }
        down.hypot(right)
    };
    let mean = |row: usize, col: usize| {
        let pixels = (0..patch * patch).map(|i| length(row + i / patch, col + i % patch));
        (pixels.sum::<f64>() / (patch * patch) as f64) as f32
    };
    let starts = |n: usize| (0..n).step_by(patch);
    Ok(starts(rows).flat_map(|row| starts(cols).map(move |col| mean(row, col))).collect())
}

/// How much each token differs from those around it: the mean square over channels of its 3 x 3 neighbours' differences from
/// their mean; 0 for tokens of no place.
pub(crate) fn local_variance(
    x: ArrayView2<'_, f32>,
    hints: &TokenHints<'_>,
    places: &[Option<Place>],
) -> Vec<f64> {
    let at = |token: usize, [row, col]: Place| (picture(hints, token), row, col);
    let tokens = 0..x.nrows();
    let by_place: BTreeMap<_, usize> =
        tokens.filter_map(|token| Some((at(token, places[token]?), token))).collect();
    let of = |token: usize| {
        let Some([row, col]) = places[token] else { return 0.0 };
        let near = (0..9).filter_map(|i| {
            let by = |at: usize, step: usize| at.checked_add(step)?.checked_sub(1);
            let (row, col) = (by(row, i / 3)?, by(col, i % 3)?);
            by_place.get(&at(token, [row, col])).copied()
        });
        let near: Vec<usize> = near.collect();
        let (n, mut sum) = (near.len() as f64, 0.0);
        for channel in 0..x.ncols() {
            let values = || near.iter().map(|t| f64::from(x[[*t, channel]]));
            let mean = values().sum::<f64>() / n;
            sum += values().map(|v| (v - mean).powi(2)).sum::<f64>();
        }
        sum / (n * x.ncols().max(1) as f64)
    };
    (0..x.nrows()).map(of).collect()
}

/// Cosine of each token with a query `[channels]`: [`TokenHints::relevance`] from embeddings. 0 where either has no length.
///
/// # Errors
/// `ShapeMismatch` unless both have as many channels; `Numerical` for values that are not finite.
pub fn relevance(x: ArrayView2<'_, f32>, query: ArrayView1<'_, f32>) -> Result<Vec<f32>> {
    if x.ncols() != query.len() {
        return Err(Error::shape(format!("a query of {} channels for {}", query.len(), x.ncols())));
    }
    let query = query.insert_axis(Axis(0));
    let query = normalised(query, &[0])?;
    let unit = normalised(x, &(0..x.nrows()).collect::<Vec<_>>())?;
    Ok(unit.dot(&query.row(0)).to_vec())
}
