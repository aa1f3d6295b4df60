//! Products with many tokens by a matrix whose rows have equal supports in groups.
//!
//! The lanes are tokens: activations are turned so that the tokens of an input lie side by side, and every stored
//! weight is one broadcast. The inputs that a group of rows has stored are a list, made once and followed with
//! prefetches; inputs that it has dropped are never touched.

use std::ops::Range;

use super::{FloatType, StoredRows, check_sizes};
use crate::float::dot_body;
use crate::simd::{Ahead, Stored, prefetch, stamp};
use crate::work::{Places, Work};
use crate::{bf16_bytes_to_f32, f16_bytes_to_f32};

impl StoredRows<'_> {
    /// Whether [`block_matmul`] beats decoding: few enough inputs are stored, and enough rows share a support or there is so
    /// little that a list of it is no longer than a bitmap, as of outliers.
    #[must_use]
    pub fn in_blocks(&self) -> bool {
        let entries = self.rows * self.cols;
        self.support.is_some_and(|support| match support.starts[self.rows] {
            stored if stored <= entries / 32 => true,
            stored => support.alike >= 4 && stored <= entries / 2,
        })
    }
}

/// `Y = X Wᵀ` (or `Y += X Wᵀ` where `accumulate`) as [`stored_matmul`](super::stored_matmul), for a support that groups
/// of rows share. How many tokens there are decides the order of a sum; threads and the choice of rows change no bit.
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
    let (tall, isa) = (groups.tall, work.isa());
    let count = w.rows.div_ceil(tall);
    assert_eq!(groups.starts.len(), count + 1, "block_matmul: inputs of another matrix");
    // Whole groups, so that all rows of one find their inputs in the cache.
    let from = rows.start / tall;
    let made = from * tall..rows.end.next_multiple_of(tall).min(w.rows);
    let mut first = 0;
    while first < t {
        let portion = Portion::of(t - first);
        let x = &x[first * w.cols..(first + portion.tokens) * w.cols];
        let mut panels = work.take(portion.panels() * w.cols * PANEL);
        for (chunk, panel) in portion.chunks().zip(panels.chunks_exact_mut(w.cols * PANEL)) {
            let x = &x[chunk.start * w.cols..chunk.end * w.cols];
            turn(x, w.cols, chunk.len(), panel);
        }
        let width = portion.width();
        let mut out = work.take(made.len() * width);
        let blocks = out.chunks_mut(tall * width).enumerate();
        work.for_each(blocks, |places, (i, out)| {
            let rows = out.len() / width;
            let mut rest = out;
            // The numbers of a group are in the cache for all tokens but the first ones.
            for (c, chunk) in portion.chunks().enumerate() {
                let (out, later) = rest.split_at_mut(rows * chunk_width(&chunk));
                rest = later;
                if chunk.len() <= FEW {
                    let x = &x[chunk.start * w.cols..chunk.end * w.cols];
                    few_on(isa, w, groups, x, places, from + i, out);
                } else {
                    let panel = &panels[c * w.cols * PANEL..(c + 1) * w.cols * PANEL];
                    panel_on(isa, w, groups, panel, chunk.len(), places, from + i, out);
                }
            }
        });
        for (i, mut out) in out.chunks(tall * width).enumerate() {
            let group = made.start + i * tall..(made.start + (i + 1) * tall).min(made.end);
            let held = group.start.max(rows.start)..group.end.min(rows.end);
            for chunk in portion.chunks() {
                let width = chunk_width(&chunk);
                let (products, later) = out.split_at(group.len() * width);
                out = later;
                let products = &products[(held.start - group.start) * width..];
                for (i, token) in chunk.enumerate() {
                    let y = &mut y[(first + token) * rows.len() + held.start - rows.start..];
                    let y = y[..held.len()].iter_mut();
                    y.zip(products.chunks_exact(width)).for_each(|(y, out)| *y += out[i]);
                }
            }
        }
        work.put(panels);
        work.put(out);
        first += portion.tokens;
    }
}

/// Tokens that go through a matrix together: chunks of at most [`PANEL`], the smaller ones last.
struct Portion {
    tokens: usize,
}

impl Portion {
    /// Of those that are left.
    fn of(left: usize) -> Self {
        // What is left behind two whole panels goes with them, so that nothing small reads the matrix for itself.
        Self { tokens: if left < 3 * PANEL { left } else { 2 * PANEL } }
    }

    fn chunks(&self) -> impl Iterator<Item = Range<usize>> {
        let mut start = 0;
        std::iter::from_fn(move || {
            let left = self.tokens - start;
            let end = start + tokens_together(left);
            let chunk = start..end;
            start = end;
            (left > 0).then_some(chunk)
        })
    }

    /// Chunks whose tokens lie side by side.
    fn panels(&self) -> usize {
        self.chunks().filter(|chunk| chunk.len() > FEW).count()
    }

    /// Products of a row.
    fn width(&self) -> usize {
        self.chunks().map(|chunk| chunk_width(&chunk)).sum()
    }
}

/// Products of a row with a chunk, those of a panel that is not full included.
fn chunk_width(chunk: &Range<usize>) -> usize {
    if chunk.len() <= FEW { chunk.len() } else { PANEL }
}

/// So few tokens gather their inputs; more lie side by side.
const FEW: usize = 5;

/// How many of the tokens that are left go together: those that begin a panel cost as much as a whole or a half one.
fn tokens_together(left: usize) -> usize {
    match left {
        17..=20 => 16,
        _ => left.min(PANEL),
    }
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
    /// The products of the rows of a group with the first tokens of a panel: `out` is `[rows, PANEL]`.
    fn panel_on(
        w: &StoredRows<'_>, groups: &BlockInputs, panel: &[f32], tokens: usize, places: &mut Places,
        group: usize, out: &mut [f32],
    ) = panel_body
}

#[inline(always)]
fn panel_body<S: Stored>(
    s: S,
    w: &StoredRows<'_>,
    groups: &BlockInputs,
    panel: &[f32],
    tokens: usize,
    places: &mut Places,
    group: usize,
    out: &mut [f32],
) {
    let one_vector = tokens <= S::LANES;
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
        match (n, one_vector) {
            (8, false) => tiles::<S, 8, 2>(s, values, inputs, panel, tokens, out),
            (4, false) => tiles::<S, 4, 2>(s, values, inputs, panel, tokens, out),
            (_, false) => tiles::<S, 1, 2>(s, values, inputs, panel, tokens, out),
            (8, true) => tiles::<S, 8, 1>(s, values, inputs, panel, tokens, out),
            (4, true) => tiles::<S, 4, 1>(s, values, inputs, panel, tokens, out),
            (_, true) => tiles::<S, 1, 1>(s, values, inputs, panel, tokens, out),
        }
        rows += n;
    }
}

stamp! {
    /// The products of the rows of a group with a few tokens: `out` is `[rows, tokens]`.
    fn few_on(
        w: &StoredRows<'_>, groups: &BlockInputs, x: &[f32], places: &mut Places, group: usize, out: &mut [f32],
    ) = few_body
}

#[inline(always)]
fn few_body<S: Stored>(
    s: S,
    w: &StoredRows<'_>,
    groups: &BlockInputs,
    x: &[f32],
    places: &mut Places,
    group: usize,
    out: &mut [f32],
) {
    let inputs = &groups.inputs[groups.starts[group]..groups.starts[group + 1]];
    let (first, tokens) = (group * groups.tall, x.len() / w.cols);
    let rows = out.len() / tokens;
    let size = w.format.size();
    let bytes = w.start(first) * size..w.start(first + rows) * size;
    let Places { floats, gathered, .. } = places;
    let values = numbers(w.format, &w.values[bytes], floats);
    assert_eq!(values.len(), rows * inputs.len(), "block_matmul: inputs of another matrix");
    for (token, x) in x.chunks_exact(w.cols).enumerate() {
        gathered.clear();
        gathered.extend(inputs.iter().map(|input| x[*input as usize]));
        for row in 0..rows {
            let values = &values[row * inputs.len()..(row + 1) * inputs.len()];
            out[row * tokens + token] = dot_body(s, values, gathered);
        }
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

/// The products of `R` rows, whose numbers are `values [R, inputs]`, with the first tokens of a panel, `V` vectors of them at
/// a time.
#[inline(always)]
fn tiles<S: Stored, const R: usize, const V: usize>(
    s: S,
    values: &[f32],
    inputs: &[u32],
    panel: &[f32],
    tokens: usize,
    out: &mut [f32],
) {
    let k = inputs.len();
    assert!(values.len() == R * k && out.len() >= R * PANEL);
    for token in (0..tokens).step_by(V * S::LANES) {
        let mut sums = [[s.splat(0.0); V]; R];
        for j in 0..k {
            if token == 0 {
                let next = inputs[(j + AHEAD).min(k - 1)] as usize * PANEL;
                prefetch(panel.as_ptr().wrapping_add(next), Ahead::Near);
                prefetch(panel.as_ptr().wrapping_add(next + 16), Ahead::Near);
            }
            let at = inputs[j] as usize * PANEL + token;
            assert!(at + V * S::LANES <= panel.len());
            let mut x = [s.splat(0.0); V];
            for (i, x) in x.iter_mut().enumerate() {
                // SAFETY: asserted above.
                *x = unsafe { s.load(panel, at + i * S::LANES) };
            }
            for r in 0..R {
                // SAFETY: `r * k + j < R * k`, asserted above.
                let v = s.splat(unsafe { *values.get_unchecked(r * k + j) });
                for i in 0..V {
                    sums[r][i] = s.mul_add(v, x[i], sums[r][i]);
                }
            }
        }
        for r in 0..R {
            for (i, sum) in sums[r].into_iter().enumerate() {
                let at = r * PANEL + token + i * S::LANES;
                // SAFETY: within the `R * PANEL` numbers asserted above.
                unsafe { s.store(out[at..at + S::LANES].as_mut_ptr(), sum) };
            }
        }
    }
}

/// How many inputs ahead their activations are asked for.
const AHEAD: usize = 8;
