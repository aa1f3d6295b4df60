use std::sync::OnceLock;

use ndarray::{Array2, Array3, ArrayView2, ArrayView3, s};
use tensorpress_tensor::{DType, Error, Result, linalg, ndarray};

use super::wire::{Read, put_count};
use crate::store::{normal_sample, principal_order};
use crate::stream::{Table, decode_symbols, encode_symbols};

/// Keys or values.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Plane {
    pub(super) heads: usize,
    pub(super) dim: usize,
    /// `[heads x dim]`.
    pub(super) mean: Vec<f32>,
    /// Components as rows, `[components, heads x dim]`, in numbers that f16 holds.
    pub(super) basis: Array2<f32>,
    /// The deviation of each component from its mean, 0.
    pub(super) spread: Vec<f32>,
    /// Bits of each component, at least 1: those without any are not held.
    pub(super) bits: Vec<u32>,
    /// How often each code of each component is met, and what the coder makes of it.
    pub(super) counts: Vec<Vec<u64>>,
    pub(super) tables: Vec<Table>,
}

/// For 0 to 8 bits: the step of an even grid, and what a normal number loses on it at best.
fn steps() -> &'static [(f32, f64); 9] {
    static STEPS: OnceLock<[(f32, f64); 9]> = OnceLock::new();
    STEPS.get_or_init(|| {
        let sample = normal_sample(2048);
        let loss = |bits: u32, step: f32| {
            let miss = |x: &f32| f64::from(x - value(code(*x / step, bits), bits) * step).powi(2);
            sample.iter().map(miss).sum::<f64>() / sample.len() as f64
        };
        std::array::from_fn(|bits| {
            if bits == 0 {
                return (1.0, 1.0);
            }
            // Steps from a 32nd of the widest to the widest, finer than any difference that shows.
            let widest = 8.0 / (1u32 << bits) as f32;
            let tried = (1..=128).map(|i| widest * i as f32 / 128.0);
            let tried = tried.map(|step| (step, loss(bits as u32, step)));
            tried.min_by(|a, b| a.1.total_cmp(&b.1)).expect("128 steps")
        })
    })
}

/// The code of a number in steps: `2^bits` values around 0.
fn code(x: f32, bits: u32) -> u8 {
    let half = (1u32 << bits) as f32 / 2.0;
    // NaN cannot be: numbers are finite and steps positive.
    (x + half).floor().clamp(0.0, 2.0 * half - 1.0) as u8
}

fn value(code: u8, bits: u32) -> f32 {
    f32::from(code) + 0.5 - (1u32 << bits) as f32 / 2.0
}

/// How many bits each of these variances gets, `budget` of them in all and at most `most` each, so that the losses' sum is the
/// least: by dynamic programming over how many are spent on the first.
pub(super) fn allocate(variances: &[f64], budget: usize, most: u32) -> Vec<u32> {
    let mut least = vec![0.0; budget + 1];
    let mut chosen: Vec<Vec<u8>> = Vec::with_capacity(variances.len());
    for variance in variances {
        let mut next = vec![f64::INFINITY; budget + 1];
        let mut bits = vec![0u8; budget + 1];
        for spent in 0..=budget {
            for b in 0..=(most as usize).min(spent) {
                let loss = least[spent - b] + variance * steps()[b].1;
                if loss < next[spent] {
                    (next[spent], bits[spent]) = (loss, b as u8);
                }
            }
        }
        chosen.push(bits);
        least = next;
    }
    let mut spent = budget;
    let mut bits: Vec<u32> = chosen
        .iter()
        .rev()
        .map(|of| {
            let b = of[spent];
            spent -= usize::from(b);
            u32::from(b)
        })
        .collect();
    bits.reverse();
    bits
}

impl Plane {
    pub(super) fn fit(x: ArrayView3<'_, f32>, bits: f64, most: u32) -> Result<Self> {
        let (tokens, heads, dim) = x.dim();
        let width = heads * dim;
        if tokens < 2 || width == 0 || width > 0xffff {
            return Err(Error::invalid(format!(
                "{tokens} tokens of {width} channels to fit to: at least 2, and 1 to 65535"
            )));
        }
        let rows = flat(x)?;
        let mean = rows.mean_axis(ndarray::Axis(0)).expect("tokens");
        let centred = &rows - &mean;
        let (_, vectors) = principal_order(centred.view())?;
        let unseen = unseen(centred.view())?;
        let square = |y: ndarray::ArrayView1<'_, f32>| {
            y.iter().map(|y| f64::from(*y).powi(2)).sum::<f64>() / tokens as f64
        };
        let variances: Vec<f64> = unseen.columns().into_iter().map(square).collect();
        let budget = (bits * width as f64).floor() as usize;
        let bits = allocate(&variances, budget, most);
        let held: Vec<usize> = (0..width).filter(|i| bits[*i] > 0 && variances[*i] > 0.0).collect();
        let mut plane = Self {
            heads,
            dim,
            mean: mean.to_vec(),
            basis: Array2::zeros((held.len(), width)),
            spread: held.iter().map(|i| variances[*i].sqrt() as f32).collect(),
            bits: held.iter().map(|i| bits[*i]).collect(),
            counts: Vec::new(),
            tables: Vec::new(),
        };
        for (mut row, i) in plane.basis.rows_mut().into_iter().zip(&held) {
            row.assign(&vectors.column(*i).mapv(|v| DType::F16.round(v as f32)));
        }
        let count = |(component, i): (usize, &usize)| {
            let (bits, step) = (plane.bits[component], plane.step(component));
            let mut counts = vec![0u64; 1 << bits];
            let codes = unseen.column(*i).into_iter().map(|y| code(y / step, bits));
            codes.for_each(|code| counts[usize::from(code)] += 1);
            counts
        };
        plane.counts = held.iter().enumerate().map(count).collect();
        plane.tables = tables(&plane.counts)?;
        Ok(plane)
    }

    /// `[tokens, components]`.
    fn codes(&self, rows: ArrayView2<'_, f32>) -> Array2<u8> {
        let mean = ndarray::ArrayView1::from(&self.mean);
        let mut y = Array2::zeros((rows.nrows(), self.bits.len()));
        let centred = &rows - &mean;
        linalg::matmul_nt(centred.view(), self.basis.view(), y.view_mut(), false, linalg::Par::Seq);
        Array2::from_shape_fn(y.dim(), |(t, i)| code(y[[t, i]] / self.step(i), self.bits[i]))
    }

    fn step(&self, component: usize) -> f32 {
        let step = self.spread[component] * steps()[self.bits[component] as usize].0;
        step.max(f32::MIN_POSITIVE)
    }

    pub(super) fn encode(&self, x: ArrayView3<'_, f32>, to: &mut Vec<u8>) -> Result<()> {
        if (x.dim().1, x.dim().2) != (self.heads, self.dim) {
            let ((_, h, d), heads, dim) = (x.dim(), self.heads, self.dim);
            return Err(Error::shape(format!(
                "{h} heads of {d} channels: {heads} of {dim} expected"
            )));
        }
        let codes = self.codes(flat(x)?.view());
        for (codes, table) in codes.columns().into_iter().zip(&self.tables) {
            let stream = encode_symbols(codes.iter().copied(), table);
            put_count(stream.len(), to);
            to.extend(stream);
        }
        Ok(())
    }

    pub(super) fn decode(&self, tokens: usize, from: &mut Read<'_>) -> Result<Array3<f32>> {
        let mut y = Array2::zeros((tokens, self.bits.len()));
        for (i, table) in self.tables.iter().enumerate() {
            let len = from.count()?;
            let codes = decode_symbols(from.take(len)?, tokens, table);
            for (y, code) in y.column_mut(i).iter_mut().zip(codes) {
                *y = value(code, self.bits[i]) * self.step(i);
            }
        }
        let mut rows = Array2::zeros((tokens, self.heads * self.dim));
        linalg::matmul(y.view(), self.basis.view(), rows.view_mut(), false, linalg::Par::Seq);
        rows += &ndarray::ArrayView1::from(&self.mean);
        let rows = rows.into_shape_with_order((tokens, self.heads, self.dim));
        Ok(rows.expect("as many channels"))
    }
}

/// Each token's components `[tokens, width]` on directions that it had no part in: those of every second token for the others.
/// Few tokens have directions that suit themselves best; what a page will hold is not among them.
fn unseen(rows: ArrayView2<'_, f32>) -> Result<Array2<f32>> {
    let mut components = Array2::zeros(rows.dim());
    for fold in [0, 1] {
        let (_, vectors) = principal_order(rows.slice(s![1 - fold..;2, ..]))?;
        let others = rows.slice(s![fold..;2, ..]).dot(&vectors.mapv(|v| v as f32));
        components.slice_mut(s![fold..;2, ..]).assign(&others);
    }
    Ok(components)
}

/// Tables of counts: every code keeps a part, met or not.
pub(super) fn tables(counts: &[Vec<u64>]) -> Result<Vec<Table>> {
    counts.iter().map(|counts| Table::new(counts)).collect()
}

/// `[tokens, heads x channels]` of finite numbers.
fn flat(x: ArrayView3<'_, f32>) -> Result<Array2<f32>> {
    let (tokens, heads, dim) = x.dim();
    if let Some((at, bad)) = x.indexed_iter().find(|(_, x)| !x.is_finite()) {
        return Err(Error::numerical(format!("{bad} at {at:?} (token, head, channel)")));
    }
    let rows = x.as_standard_layout().into_owned().into_shape_with_order((tokens, heads * dim));
    Ok(rows.expect("as many channels"))
}
