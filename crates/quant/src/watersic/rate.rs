//! How many bits codes take, and the step that makes them take so many.

use tensorpress_tensor::ndarray::Array2;
use tensorpress_tensor::node::spread::{Model, Token};

use super::job::Job;

/// Sweeps at most.
const TRIES: usize = 8;

/// Bits a weight that are near enough; a part of what is asked for where that is more.
const NEAR: f64 = 0.005;

/// Bits a row and a column for their steps.
const STEP: f64 = 8.0;

/// Bits a weight.
pub(super) fn of(job: &Job<'_>, codes: &Array2<i32>) -> f64 {
    let (rows, cols) = codes.dim();
    let steps = STEP * (rows + cols) as f64;
    let all = codes.as_slice().expect("standard layout");
    let (codes, count) = match job.mask {
        None => (Model::fit(all, cols, job.paths.is_some()).bits, all.len()),
        Some(mask) => {
            // Kept codes are coded as one run.
            let kept: Vec<i32> = (0..rows)
                .flat_map(|r| (0..cols).map(move |c| (r, c)))
                .filter(|(r, c)| mask.keeps(*r, *c))
                .map(|(r, c)| all[r * cols + c])
                .collect();
            (in_one_run(&kept), kept.len())
        }
    };
    (codes + steps) / count.max(1) as f64
}

fn in_one_run(codes: &[i32]) -> f64 {
    let mut counts = [0u32; 256];
    let mut bits = 0.0;
    for token in codes.iter().map(|code| Token::of(*code)) {
        counts[usize::from(token.number)] += 1;
        bits += f64::from(token.bits);
    }
    for count in counts.into_iter().filter(|n| *n > 0).map(f64::from) {
        bits += count * (codes.len() as f64 / count).log2();
    }
    bits
}

/// log2 of the step where normal weights would take so many bits: their differential entropy, by the mean logarithm of
/// their sizes in steps.
pub(super) fn first_guess(job: &Job<'_>, bits: f64) -> f64 {
    /// Of a normal variable: of its entropy at deviation 1, and of its mean log2 |x|.
    const ENTROPY: f64 = 2.047 + 0.916;
    let (mut sum, mut count) = (0.0f64, 0usize);
    for (row, exponent) in job.weight.rows().into_iter().zip(job.row_exponents) {
        let row_step = f64::from(*exponent) / 8.0;
        for (w, column) in row.iter().zip(job.columns).filter(|(w, _)| **w != 0.0) {
            sum += f64::from(w.abs()).log2() - row_step - column;
            count += 1;
        }
    }
    // The parity of codes along a trellis is known.
    let bits = bits + if job.paths.is_some() { 1.0 } else { 0.0 };
    if count == 0 { 0.0 } else { sum / count as f64 + ENTROPY - bits }
}

/// The step, codes and exponents nearest to so many bits a weight: secants from the slope of fine steps, a bit an octave.
pub(super) fn search(job: &Job<'_>, bits: f64, start: f64) -> (f64, Array2<i32>, Vec<i32>) {
    let near = NEAR.max(NEAR * bits / 3.0);
    let (mut delta, mut slope) = (start, -1.0);
    let mut last: Option<(f64, f64)> = None;
    let mut best: Option<(f64, f64, Array2<i32>, Vec<i32>)> = None;
    for _ in 0..TRIES {
        let (codes, exponents) = job.run(delta);
        let rate = of(job, &codes);
        let off = rate - bits;
        if let Some((other, rate_there)) = last.filter(|(other, _)| *other != delta) {
            slope = f64::clamp((rate - rate_there) / (delta - other), -1.2, -0.1);
        }
        last = Some((delta, rate));
        let same = best.as_ref().is_some_and(|(_, _, codes_there, _)| *codes_there == codes);
        if best.as_ref().is_none_or(|(off_there, ..)| off.abs() < *off_there) {
            best = Some((off.abs(), delta, codes, exponents));
        }
        if off.abs() <= near || same {
            break;
        }
        delta -= (off / slope).clamp(-6.0, 6.0);
    }
    let (_, delta, codes, exponents) = best.expect("tried once");
    (delta, codes, exponents)
}
