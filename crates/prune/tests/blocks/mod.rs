//! Small random blocks, what their inputs looked like, and slow references.

#![allow(dead_code)] // each test that includes this uses a part of it

use std::collections::BTreeMap;

use tensorpress_prune::structured::{Module, Part};
use tensorpress_tensor::linalg::{Par, gaussian};
use tensorpress_tensor::ndarray::{Array2, Axis};
use tensorpress_tensor::rewrite::{
    BlockLayout, BlockShape, BlockView, Change, Decision, Edit, Judgement, LinearSpec, ModelLayout,
    Role, SharedInput, States,
};
use tensorpress_tensor::stats::Calibration;
use tensorpress_tensor::{DType, RawTensor, Result, Rewrite, Tensor};

pub const HIDDEN: usize = 6;

/// Gaussian values.
pub fn random(rows: usize, cols: usize, seed: u64) -> Array2<f32> {
    Array2::from_shape_fn((rows, cols), |(i, j)| gaussian(seed, (i * cols + j) as u64) as f32)
}

/// Inputs whose channels are alike in part.
pub fn correlated(tokens: usize, channels: usize, seed: u64) -> Array2<f32> {
    let hidden = random(tokens, channels.div_ceil(2), seed);
    let mix = random(channels.div_ceil(2), channels, seed ^ 1);
    hidden.dot(&mix) + random(tokens, channels, seed ^ 2) * 0.3
}

/// A model of gated blocks, and all it is judged by.
#[derive(Debug, Clone)]
pub struct Small {
    pub model: ModelLayout,
    pub tensors: BTreeMap<String, RawTensor>,
    /// Of each block.
    pub inputs: Vec<BTreeMap<SharedInput, Calibration>>,
    pub states: Vec<[Array2<f32>; 2]>,
}

impl Small {
    /// So many blocks of `heads` query and key heads of width `dim`, and `inner` channels, that saw `tokens` tokens.
    pub fn new(
        blocks: usize,
        heads: (usize, usize),
        dim: usize,
        inner: usize,
        tokens: usize,
        seed: u64,
    ) -> Self {
        let (heads, kv_heads) = heads;
        let (mut tensors, mut inputs, mut states) = (BTreeMap::new(), Vec::new(), Vec::new());
        let mut block = |block: usize| {
            let prefix = format!("layers.{block}.");
            let shapes = [
                (Role::Q, "q", [heads * dim, HIDDEN]),
                (Role::K, "k", [kv_heads * dim, HIDDEN]),
                (Role::V, "v", [kv_heads * dim, HIDDEN]),
                (Role::O, "o", [HIDDEN, heads * dim]),
                (Role::Gate, "gate", [inner, HIDDEN]),
                (Role::Up, "up", [inner, HIDDEN]),
                (Role::Down, "down", [HIDDEN, inner]),
            ];
            let linears = shapes.map(|(role, name, shape)| {
                let name = format!("{prefix}{name}.weight");
                let seed = seed.wrapping_add(tensors.len() as u64 * 7 + 1);
                tensors.insert(name.clone(), raw(&random(shape[0], shape[1], seed)));
                LinearSpec::new(role, name, shape)
            });
            let seed = seed.wrapping_add(1000 + 10 * block as u64);
            let of =
                |width, seed| Calibration::from_samples(correlated(tokens, width, seed), Par::Seq);
            inputs.push(BTreeMap::from([
                (SharedInput::AttentionOutput, of(heads * dim, seed)),
                (SharedInput::MlpOutput, of(inner, seed + 3)),
            ]));
            let before = random(tokens, HIDDEN, seed + 5);
            let after = &before + &(random(tokens, HIDDEN, seed + 6) * (0.2 + 0.3 * block as f32));
            states.push([before, after]);
            let shape = BlockShape::new(heads, kv_heads, inner);
            BlockLayout::new(block, prefix, shape, linears.into())
        };
        let blocks = (0..blocks).map(&mut block).collect();
        let model = ModelLayout::new("Llama", HIDDEN, dim, blocks);
        Self { model, tensors, inputs, states }
    }

    pub fn matrix(&self, name: &str) -> Array2<f32> {
        self.tensors[name].to_matrix().unwrap()
    }

    pub fn set(&mut self, name: &str, values: &Array2<f32>) {
        self.tensors.insert(name.to_owned(), raw(values));
    }

    /// Hands a block, as the pipeline shows it when it judges, to `with`.
    pub fn judging<T>(&self, block: usize, with: impl FnOnce(&BlockView<'_>) -> T) -> T {
        let [before, after] = &self.states[block];
        let lengths = [before.nrows()];
        let view = BlockView::new(&self.model.blocks[block], &self.tensors)
            .with_inputs(&self.inputs[block])
            .with_states(States::new(before.view(), after.view(), &lengths));
        with(&view)
    }

    pub fn part<T>(&self, block: usize, module: Module, with: impl FnOnce(&Part<'_>) -> T) -> T {
        self.judging(block, |view| with(&Part::new(module, *view).unwrap()))
    }

    pub fn judge(&self, rewrite: &dyn Rewrite) -> Result<Vec<Judgement>> {
        let blocks = 0..self.model.blocks.len();
        blocks.map(|b| self.judging(b, |view| rewrite.judge(&self.model, view))).collect()
    }

    /// Decisions and edits.
    pub fn run(&self, rewrite: &dyn Rewrite) -> Result<(Vec<Decision>, Vec<Edit>)> {
        rewrite.fits(&self.model)?;
        let judgements = self.judge(rewrite)?;
        let decisions = rewrite.settle(&self.model, &judgements)?;
        let edit = |((layout, judgement), decision): ((&BlockLayout, &Judgement), &Decision)| {
            let view = BlockView::new(layout, &self.tensors);
            rewrite.edit(&self.model, &view, judgement, decision)
        };
        let each = self.model.blocks.iter().zip(&judgements).zip(&decisions);
        let edits = each.map(edit).collect::<Result<Vec<_>>>()?;
        Ok((decisions, edits))
    }

    /// A matrix as an edit leaves it.
    pub fn edited(&self, edit: &Edit, name: &str) -> Array2<f32> {
        let whole = self.matrix(name);
        match edit.changes().get(name) {
            None => whole,
            Some(Change::Rows(kept)) => whole.select(Axis(0), kept),
            Some(Change::Columns(kept)) => whole.select(Axis(1), kept),
            Some(Change::New(tensor)) => tensor.to_matrix().unwrap(),
            Some(other) => panic!("{name}: {other:?}"),
        }
    }

    /// Weights of all blocks, and what edits leave of them.
    pub fn weights(&self, edits: &[Edit]) -> [usize; 2] {
        let mut sums = [0; 2];
        for (layout, edit) in self.model.blocks.iter().zip(edits) {
            for spec in &layout.linears {
                sums[0] += spec.shape[0] * spec.shape[1];
                sums[1] += self.edited(edit, &spec.name).len();
            }
        }
        sums
    }
}

pub fn raw(values: &Array2<f32>) -> RawTensor {
    RawTensor::from_f32(values.view().into_dyn(), DType::F32).unwrap()
}

/// X of A X = B by elimination with pivots, in f64.
pub fn solve(mut a: Array2<f64>, mut b: Array2<f64>) -> Array2<f64> {
    let n = a.nrows();
    for column in 0..n {
        let pivot =
            (column..n).max_by(|i, j| a[[*i, column]].abs().total_cmp(&a[[*j, column]].abs()));
        let pivot = pivot.unwrap();
        for j in 0..n {
            a.swap([column, j], [pivot, j]);
        }
        for j in 0..b.ncols() {
            b.swap([column, j], [pivot, j]);
        }
        for row in (0..n).filter(|row| *row != column) {
            let factor = a[[row, column]] / a[[column, column]];
            for j in 0..n {
                a[[row, j]] -= factor * a[[column, j]];
            }
            for j in 0..b.ncols() {
                b[[row, j]] -= factor * b[[column, j]];
            }
        }
    }
    for row in 0..n {
        for j in 0..b.ncols() {
            b[[row, j]] /= a[[row, row]];
        }
    }
    b
}

/// The refit on the columns that stay, by normal equations; and the damped error it leaves.
pub fn refit(w: &Array2<f32>, gram: &Array2<f32>, kept: &[usize], damp: f64) -> (Array2<f64>, f64) {
    let (w, mut h) = (w.mapv(f64::from), gram.mapv(f64::from));
    let mean = h.diag().sum() / h.nrows() as f64;
    h.diag_mut().mapv_inplace(|v| v + damp * mean);
    // Ŵ H_KK = W H_:K.
    let right = w.dot(&h.select(Axis(1), kept));
    let inner = h.select(Axis(0), kept).select(Axis(1), kept);
    let fitted = solve(inner, right.t().to_owned()).t().to_owned();
    let mut lost = w;
    for (at, column) in kept.iter().enumerate() {
        let mut column = lost.column_mut(*column);
        column -= &fitted.column(at);
    }
    let error = (&lost.dot(&h) * &lost).sum();
    (fitted, error)
}
