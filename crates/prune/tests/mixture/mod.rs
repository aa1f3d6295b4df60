//! A block of experts of different widths, its weights, its tokens, and what a pipeline would know of them.

use std::collections::BTreeMap;
use std::hash::Hasher;
use std::sync::Arc;

use tensorpress_tensor::linalg::SplitMix;
use tensorpress_tensor::ndarray::{Array1, Array2};
use tensorpress_tensor::rewrite::{
    BlockLayout, BlockShape, Expert, Experts, LinearSpec, ModelLayout, Role, SharedInput,
};
use tensorpress_tensor::stats::{Calibration, ExpertActivity, Supplied, Supply};
use tensorpress_tensor::{DType, RawTensor, Result};

pub const HIDDEN: usize = 5;
/// Widths differ, as behind an earlier cut; one expert has a single micro-expert.
pub const WIDTHS: [usize; 4] = [7, 4, 6, 1];

pub fn spec(index: usize, role: Role, name: &str, shape: [usize; 2]) -> LinearSpec {
    LinearSpec::new(role, format!("l.0.e.{index}.{name}.weight"), shape)
        .with_expert(Expert::Routed(index))
}

pub fn layout() -> (BlockLayout, ModelLayout) {
    let linears = WIDTHS.iter().enumerate().flat_map(|(index, width)| {
        [
            spec(index, Role::Gate, "gate", [*width, HIDDEN]),
            spec(index, Role::Up, "up", [*width, HIDDEN]),
            spec(index, Role::Down, "down", [HIDDEN, *width]),
        ]
    });
    let block = BlockLayout::new(0, "l.0.", BlockShape::new(1, 1, 7), linears.collect());
    let block = block.with_experts(Some(Experts::new(WIDTHS.len(), 2, "l.0.router.weight")));
    (block.clone(), ModelLayout::new("Some", HIDDEN, HIDDEN, vec![block]))
}

pub fn random(rows: usize, columns: usize, random: &mut SplitMix) -> Array2<f32> {
    Array2::from_shape_fn((rows, columns), |_| (random.next_u64() % 2001) as f32 / 1000.0 - 1.0)
}

pub fn raw(matrix: &Array2<f32>) -> RawTensor {
    let bytes: Vec<u8> = matrix.iter().flat_map(|value| value.to_le_bytes()).collect();
    RawTensor::new(DType::F32, matrix.shape().to_vec(), bytes.into()).expect("a tensor")
}

pub type Weights = BTreeMap<String, Array2<f32>>;

pub fn weights(seed: u64) -> Weights {
    let mut draw = SplitMix::new(seed);
    let (block, _) = layout();
    block
        .linears
        .iter()
        .map(|spec| (spec.name.clone(), random(spec.shape[0], spec.shape[1], &mut draw)))
        .collect()
}

pub fn stored(weights: &Weights) -> BTreeMap<String, RawTensor> {
    weights.iter().map(|(name, matrix)| (name.clone(), raw(matrix))).collect()
}

/// Tokens, the two experts each goes to, and their factors; nobody goes to the third.
pub struct Tokens {
    pub x: Array2<f32>,
    pub chosen: Vec<[usize; 2]>,
    pub factors: Vec<[f32; 2]>,
}

pub fn tokens(seed: u64) -> Tokens {
    let mut draw = SplitMix::new(seed);
    let x = random(40, HIDDEN, &mut draw);
    let chosen = (0..40).map(|t| if t % 3 == 0 { [0, 3] } else { [t % 2, 3] }).collect();
    let factors = (0..40).map(|_| (draw.next_u64() % 1000) as f32 / 1000.0);
    let factors = factors.map(|f| [f, 1.0 - f]).collect();
    Tokens { x, chosen, factors }
}

pub fn silu(x: f64) -> f64 {
    x / (1.0 + (-x).exp())
}

/// φ of a micro-expert of a token, in f64.
pub fn phi(weights: &Weights, expert: usize, channel: usize, x: &Array1<f64>) -> f64 {
    let product = |name: &str| {
        let row = weights[&format!("l.0.e.{expert}.{name}.weight")].row(channel).mapv(f64::from);
        row.dot(x)
    };
    silu(product("gate")) * product("up")
}

/// What the pipeline would have seen; factors may be on what is read.
pub fn activity(weights: &Weights, tokens: &Tokens, weighed: bool) -> ExpertActivity {
    let mut activity = ExpertActivity::new(WIDTHS.len());
    // In two pieces, as tokens come.
    for piece in [0..17, 17..40] {
        let chosen: Vec<usize> = tokens.chosen[piece.clone()].concat();
        activity.route(2, &chosen);
        for (expert, width) in WIDTHS.iter().enumerate() {
            let (mut factors, mut rows) = (Vec::new(), Vec::new());
            for t in piece.clone() {
                for (of, factor) in tokens.chosen[t].iter().zip(tokens.factors[t]) {
                    if *of == expert {
                        let factor_of_x = if weighed { f64::from(factor) } else { 1.0 };
                        let x = tokens.x.row(t).mapv(|v| f64::from(v) * factor_of_x);
                        factors.push(factor);
                        rows.extend((0..*width).map(|c| phi(weights, expert, c, &x) as f32));
                    }
                }
            }
            if !factors.is_empty() {
                let rows = Array2::from_shape_vec((factors.len(), *width), rows).unwrap();
                activity.inside(expert, &factors, weighed, rows.view());
            }
        }
    }
    activity
}

/// Quantities of matrices by name.
#[derive(Debug)]
pub struct Known(pub Supply, pub Weights);

impl Supplied for Known {
    fn of_weights(&self, supply: Supply, tensor: &str) -> Result<Option<Array2<f32>>> {
        Ok(self.1.get(tensor).filter(|_| supply == self.0).cloned())
    }

    fn identify(&self, hash: &mut dyn Hasher) -> Result<()> {
        hash.write(b"known");
        Ok(())
    }
}

pub fn inputs(known: Known) -> BTreeMap<SharedInput, Calibration> {
    let (block, _) = layout();
    let known: Arc<dyn Supplied> = Arc::new(known);
    let input = |spec: &LinearSpec| {
        (spec.input, Calibration::none(spec.shape[1]).with_supplied(known.clone()))
    };
    block.linears.iter().map(input).collect()
}
