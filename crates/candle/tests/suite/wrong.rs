//! What is wrong is said, and nothing panics.

use candle_core::{DType, Device, Error, Module, Tensor, Var};
use tensorpress::tensor::node::Dense;
use tensorpress_candle::Linear;
use tensorpress_tensor::Node;
use tensorpress_tensor::ndarray::Array2;

use crate::common::{compressed, demo, nodes, tensor};

fn layer() -> Linear {
    let (_, node) = nodes([37, 64]).swap_remove(3);
    Linear::new(node).with_name("blocks.3.up.weight")
}

fn refused(x: &Tensor) -> String {
    layer().forward(x).unwrap_err().to_string()
}

#[test]
fn another_width() {
    for dims in [vec![63], vec![2, 65], vec![2, 3, 1], vec![64, 37], vec![3, 0]] {
        let error = refused(&tensor(&dims, 1));
        let width = dims.last().unwrap();
        for word in ["blocks.3.up.weight", &format!("rows of {width} values"), "takes 64"] {
            assert!(error.contains(word), "{error}");
        }
    }
    let error = layer().forward(&tensor(&[5, 63], 1)).unwrap_err();
    let Error::UnexpectedShape { expected, got, .. } = unwrapped(error) else {
        panic!("another kind of error");
    };
    assert_eq!((expected.dims(), got.dims()), (&[5, 64][..], &[5, 63][..]));
    let error = refused(&Tensor::new(1f32, &Device::Cpu).unwrap());
    assert!(error.contains("scalar") && error.contains("64"), "{error}");
}

/// Without the backtrace that candle adds where one is asked for.
fn unwrapped(error: Error) -> Error {
    match error {
        Error::WithBacktrace { inner, .. } => *inner,
        other => other,
    }
}

#[test]
fn another_type() {
    for dtype in [DType::U8, DType::U32, DType::I64, DType::F64] {
        let error = refused(&Tensor::zeros((2, 64), dtype, &Device::Cpu).unwrap());
        assert!(error.contains(&format!("{dtype:?}")) && error.contains("BF16"), "{error}");
    }
}

#[test]
fn a_bias_of_another_length() {
    let error = layer().with_bias(vec![0.0; 64]).unwrap_err().to_string();
    assert!(["blocks.3.up", "37", "64"].iter().all(|word| error.contains(word)), "{error}");
}

#[test]
fn broadcasts_beyond_all_memory() {
    for dtype in [DType::F32, DType::F16] {
        let row = Tensor::zeros((1, 64), dtype, &Device::Cpu).unwrap();
        let error = refused(&row.broadcast_as((1 << 45, 64)).unwrap());
        assert!(error.contains("no memory for"), "{error}");
    }
    // More outputs than there are numbers.
    let wide = Linear::new(Dense::from(Array2::<f32>::zeros((1 << 20, 1))).boxed());
    let row = Tensor::zeros((1, 1), DType::F32, &Device::Cpu).unwrap();
    let error = wide.forward(&row.broadcast_as((1 << 50, 1)).unwrap()).unwrap_err().to_string();
    assert!(error.contains("too many outputs"), "{error}");
    // A matrix without outputs has none to give, however many rows there are.
    let none = Linear::new(Dense::from(Array2::<f32>::zeros((0, 64))).boxed());
    let row = Tensor::zeros((1, 64), DType::F32, &Device::Cpu).unwrap();
    let error = none.forward(&row.broadcast_as((1 << 45, 64)).unwrap()).unwrap_err().to_string();
    assert!(error.contains("no memory for"), "{error}");
}

#[test]
fn gradients_do_not_vanish_in_silence() {
    let x = Var::from_tensor(&tensor(&[2, 64], 1)).unwrap();
    let loss = layer().forward(x.as_tensor()).unwrap().sum_all().unwrap();
    let error = loss.backward().unwrap_err().to_string();
    assert!(error.contains("backward") && error.contains("tensorpress-linear"), "{error}");
}

#[test]
fn layers_that_are_not_there() {
    let folder = tempfile::tempdir().unwrap();
    let source = compressed(&demo(), "rtn(bits=4, group=32)", &folder.path().join("w4"));
    let name = "model.layers.0.mlp.up_proj.weight";
    assert_eq!(Linear::load(&source, name).unwrap().name(), name);
    for wrong in ["model.layers.9.mlp.up_proj.weight", "", "model.layers.0.mlp.up_proj", "a.b"] {
        for result in [Linear::load(&source, wrong), Linear::load_prepacked(&source, wrong)] {
            let error = result.unwrap_err().to_string();
            assert!(error.contains(&format!("`{wrong}`")) && error.contains("w4"), "{error}");
        }
    }
}

/// NaN and infinity come out where they went in, as from a product of floats.
#[test]
fn what_is_not_finite_stays_so() {
    for (kind, node) in nodes([37, 64]) {
        let layer = Linear::new(node);
        for value in [f32::NAN, f32::INFINITY] {
            let mut x = vec![0.25f32; 3 * 64];
            x[64 + 7] = value;
            let x = Tensor::from_vec(x, (3, 64), &Device::Cpu).unwrap();
            let y = layer.forward(&x).unwrap().to_vec2::<f32>().unwrap();
            assert!(y[0].iter().chain(&y[2]).all(|y| y.is_finite()), "{kind}, {value}");
            assert!(y[1].iter().all(|y| !y.is_finite()), "{kind}, {value}");
        }
    }
}
