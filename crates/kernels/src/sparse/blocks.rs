//! Products with many tokens by a matrix whose rows have equal supports in groups.
//!
//! The lanes are tokens: activations are turned so that the tokens of an input lie side by side, and every stored
//! weight is one broadcast. The inputs that a group of rows has stored are a list, made once and followed with
//! prefetches; inputs that it has dropped are never touched.

use std::ops::Range;

use super::{FloatType, StoredRows, check_sizes};
use crate::simd::{Ahead, Stored, prefetch, stamp};
use crate::work::{Places, Work};
use crate::{bf16_bytes_to_f32, f16_bytes_to_f32};

impl StoredRows<'_> {
    /// Whether [`block_matmul`] beats decoding: enough rows share a support, and few enough inputs are stored.
    #[must_use]
    pub fn in_blocks(&self) -> bool {
        let entries = self.rows * self.cols;
        self.support
            .is_some_and(|support| support.alike >= 4 && support.starts[self.rows] <= entries / 2)
    }
}

/// `Y = X Wᵀ` (or `Y += X Wᵀ` where `accumulate`) as [`stored_matmul`](super::stored_matmul), for many tokens and a
/// support that groups of rows share.
///
/// # Panics
///
/// If a size does not fit.
pub fn block_matmul(
    w: &StoredRows<'_>,
    groups: &BlockInputs,
    rows: Range<usize>,
    x: &[f32],
    t: usize,
    y: &mut [f32],
    accumulate: bool,
    work: &mut Work,
) {
    w.check();
    check_sizes([w.rows, w.cols], &rows, x, t, y);
    if !accumulate {
        y.fill(0.0);
    }
    if y.is_empty() || w.cols == 0 {
        return;
    }
    let (tall, isa, par) = (groups.tall, work.isa(), work.par());
    let count = w.rows.div_ceil(tall);
    assert_eq!(groups.starts.len(), count + 1, "block_matmul: inputs of another matrix");
    // Whole groups, so that all rows of one find their inputs in the cache.
    let from = rows.start / tall;
    let made = from * tall..rows.end.next_multiple_of(tall).min(w.rows);
    let mut panel = work.take(w.cols * PANEL);
    let mut out = work.take(made.len() * PANEL);
    for first in (0..t).step_by(PANEL) {
        let tokens = (t - first).min(PANEL);
        turn(&x[first * w.cols..(first + tokens) * w.cols], w.cols, tokens, &mut panel);
        let blocks = out.chunks_mut(tall * PANEL).enumerate();
        let block = |places: &mut Places, (i, out): (usize, &mut [f32])| {
            panel_on(isa, w, groups, &panel, places, from + i, out);
        };
        match par.threads() {
            1 => blocks.for_each(|rows| block(&mut work.places, rows)),
            _ => par.for_each_init(blocks, Places::default, block),
        }
        // A few rows at a time, which stay in the nearest cache.
        for row in rows.clone().step_by(CHUNK) {
            let end = (row + CHUNK).min(rows.end);
            let out = &out[(row - made.start) * PANEL..(end - made.start) * PANEL];
            for token in 0..tokens {
                let y = &mut y[(first + token) * rows.len() + row - rows.start..];
                for (y, out) in y.iter_mut().zip(out.chunks_exact(PANEL)) {
                    *y += out[token];
                }
            }
        }
    }
    work.put(panel);
    work.put(out);
}

/// Inputs or rows that are turned together.
const CHUNK: usize = 16;

/// Tokens that lie side by side.
const PANEL: usize = 32;

/// Puts the tokens of each input side by side, and zeros where fewer than [`PANEL`] are left.
fn turn(x: &[f32], cols: usize, tokens: usize, panel: &mut [f32]) {
    for (i, panel) in panel.chunks_mut(CHUNK * PANEL).enumerate() {
        panel.chunks_exact_mut(PANEL).for_each(|tokens_of_one| tokens_of_one[tokens..].fill(0.0));
        for (token, x) in x.chunks_exact(cols).enumerate() {
            for (x, to) in x[i * CHUNK..].iter().zip(panel.chunks_exact_mut(PANEL)) {
                to[token] = *x;
            }
        }
    }
}

/// The stored inputs of every group of rows that share a support: made once for a matrix.
#[derive(Debug)]
pub struct BlockInputs {
    /// Rows of a group.
    tall: usize,
    inputs: Vec<u32>,
    /// Where each group's inputs begin, and the end.
    starts: Vec<usize>,
}

impl BlockInputs {
    /// The lists for a matrix.
    ///
    /// # Panics
    ///
    /// If it has no support.
    #[must_use]
    pub fn new(w: &StoredRows<'_>) -> Self {
        // Large groups are cut, so that threads share them.
        w.check();
        let alike = w.support.expect("block inputs: a matrix with a support").alike;
        let tall = if alike.is_multiple_of(16) { 16 } else { alike };
        let (mut inputs, mut starts) = (Vec::new(), vec![0]);
        for row in (0..w.rows).step_by(tall) {
            for (i, byte) in w.bits(row).iter().enumerate() {
                let mut rest = *byte;
                while rest != 0 {
                    inputs.push(8 * i as u32 + rest.trailing_zeros());
                    rest &= rest - 1;
                }
            }
            starts.push(inputs.len());
        }
        Self { tall, inputs, starts }
    }
}

stamp! {
    /// The products of the rows of a group with the tokens of a panel: `out` is `[rows, PANEL]`.
    fn panel_on(
        w: &StoredRows<'_>, groups: &BlockInputs, panel: &[f32], places: &mut Places, group: usize,
        out: &mut [f32],
    ) = panel_body
}

#[inline(always)]
fn panel_body<S: Stored>(
    s: S,
    w: &StoredRows<'_>,
    groups: &BlockInputs,
    panel: &[f32],
    places: &mut Places,
    group: usize,
    out: &mut [f32],
) {
    let inputs = &groups.inputs[groups.starts[group]..groups.starts[group + 1]];
    let first = group * groups.tall;
    let mut rows = 0;
    let count = out.len() / PANEL;
    while rows < count {
        let out = &mut out[rows * PANEL..];
        let n = if count - rows >= 8 && S::LANES == 16 { 8 } else { (count - rows).min(4) };
        let n = if n < 4 { 1 } else { n };
        let bytes =
            w.start(first + rows) * w.format.size()..w.start(first + rows + n) * w.format.size();
        let values = numbers(w.format, &w.values[bytes], &mut places.floats);
        assert_eq!(values.len(), n * inputs.len(), "block_matmul: inputs of another matrix");
        match n {
            8 => tiles::<S, 8>(s, values, inputs, panel, out),
            4 => tiles::<S, 4>(s, values, inputs, panel, out),
            _ => tiles::<S, 1>(s, values, inputs, panel, out),
        }
        rows += n;
    }
}

/// Stored numbers as f32: where they lie, or widened into `place`.
fn numbers<'a>(format: FloatType, bytes: &'a [u8], place: &'a mut Vec<f32>) -> &'a [f32] {
    if format == FloatType::F32 && cfg!(target_endian = "little") {
        // SAFETY: any bytes are an f32, stored in the order of this machine.
        let (before, numbers, after) = unsafe { bytes.align_to::<f32>() };
        if before.is_empty() && after.is_empty() {
            return numbers;
        }
    }
    place.resize(bytes.len() / format.size(), 0.0);
    match format {
        FloatType::F32 => {
            for (number, bytes) in place.iter_mut().zip(bytes.as_chunks().0) {
                *number = f32::from_le_bytes(*bytes);
            }
        }
        FloatType::F16 => f16_bytes_to_f32(bytes, place),
        FloatType::Bf16 => bf16_bytes_to_f32(bytes, place),
    }
    place
}

/// The products of `R` rows, whose numbers are `values [R, inputs]`, with a panel, two vectors of tokens at a time.
#[inline(always)]
fn tiles<S: Stored, const R: usize>(
    s: S,
    values: &[f32],
    inputs: &[u32],
    panel: &[f32],
    out: &mut [f32],
) {
    let k = inputs.len();
    assert!(values.len() == R * k && out.len() >= R * PANEL);
    for token in (0..PANEL).step_by(2 * S::LANES) {
        let mut sums = [[s.splat(0.0); 2]; R];
        for j in 0..k {
            if token == 0 {
                let next = inputs[(j + AHEAD).min(k - 1)] as usize * PANEL;
                prefetch(panel.as_ptr().wrapping_add(next), Ahead::Near);
                prefetch(panel.as_ptr().wrapping_add(next + 16), Ahead::Near);
            }
            let at = inputs[j] as usize * PANEL + token;
            assert!(at + 2 * S::LANES <= panel.len());
            // SAFETY: asserted above.
            let x = unsafe { [s.load(panel, at), s.load(panel, at + S::LANES)] };
            for r in 0..R {
                // SAFETY: `r * k + j < R * k`, asserted above.
                let v = s.splat(unsafe { *values.get_unchecked(r * k + j) });
                sums[r] = [s.mul_add(v, x[0], sums[r][0]), s.mul_add(v, x[1], sums[r][1])];
            }
        }
        for r in 0..R {
            for half in 0..2 {
                let at = r * PANEL + token + half * S::LANES;
                // SAFETY: within the `R * PANEL` numbers asserted above.
                unsafe { s.store(out[at..at + S::LANES].as_mut_ptr(), sums[r][half]) };
            }
        }
    }
}

/// How many inputs ahead their activations are asked for.
const AHEAD: usize = 8;
