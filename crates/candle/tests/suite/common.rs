//! Models and nodes to test with.

use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use tensorpress::model::{Source, embedded};
use tensorpress::pipeline::{CalibrationText, Convert, Target};
use tensorpress::prelude::*;
use tensorpress_tensor::linalg::SplitMix;
use tensorpress_tensor::ndarray::Array2;
use tensorpress_tensor::stats::Calibration;

/// Values between -0.5 and 0.5.
pub(crate) fn random(len: usize, seed: u64) -> Vec<f32> {
    let mut random = SplitMix::new(seed);
    (0..len).map(|_| random.next_f64() as f32 - 0.5).collect()
}

/// The same as a tensor of f32.
pub(crate) fn tensor(dims: &[usize], seed: u64) -> Tensor {
    Tensor::from_vec(random(dims.iter().product(), seed), dims, &Device::Cpu).expect("a tensor")
}

/// A node of every kind that a recipe makes, and floats of every type.
pub(crate) fn nodes(shape: [usize; 2]) -> Vec<(String, Box<dyn Node>)> {
    let [out, inp] = shape;
    let values = random(out * inp, 3 + out as u64 + inp as u64);
    let weight = Array2::from_shape_vec((out, inp), values).expect("as many");
    let mut nodes: Vec<(String, Box<dyn Node>)> = Vec::new();
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        let node = tensorpress::tensor::node::Dense::from_f32(weight.view(), dtype);
        nodes.push((format!("{dtype:?} {shape:?}"), node.expect("floats").boxed()));
    }
    for line in [
        "rtn(bits=4, group=32)",
        "rtn(bits=3, group=0)",
        "rtn(bits=8, group=32, symmetric=true)",
        "nf4(block=64)",
        "magnitude(sparsity=0.5)",
        "magnitude(pattern=2:4) | rtn(bits=4, group=32)",
        "svd(rank=2)",
        "rtn(bits=2, group=32) | residual(svd(rank=2))",
        "rtn(bits=4, group=32) | coded(rans)",
    ] {
        let made = tensorpress::compress(&weight, line, &Calibration::none(inp));
        let made = made.unwrap_or_else(|e| panic!("{line} of {shape:?}: {e}"));
        nodes.push((format!("{line} {shape:?}"), made.node));
    }
    nodes
}

/// The demo model.
pub(crate) fn demo() -> Source {
    Source::demo(&registry()).expect("the demo model")
}

/// A model compressed into a folder.
pub(crate) fn compressed(source: &Source, line: &str, out: &Path) -> Source {
    let recipe = Recipe::parse(line).expect("a recipe");
    let mut compressor = Compressor::new(recipe);
    if line.contains("gptq") {
        let text = CalibrationText::new(embedded::CALIBRATION).with_windows(8);
        compressor = compressor.with_calibration(text);
    }
    let _ = compressor.run(source, out).unwrap_or_else(|e| panic!("{e}"));
    open_model(out).expect("opens")
}

/// A model in another format.
pub(crate) fn converted(source: &Source, to: &str, out: &Path) -> Source {
    let to: Target = to.parse().expect("a format");
    Convert::new(to).run(source, out).unwrap_or_else(|e| panic!("to {}: {e}", to.name()));
    open_model(out).expect("opens")
}

/// A folder of others' models, if it is there.
pub(crate) fn golden(name: &str) -> Option<PathBuf> {
    tensorpress_tensor::testing::data::find(&format!("golden/models/{name}"))
}
