//! Products, against slow ones.

use std::sync::Arc;

use candle_core::{DType, Device, Module, Tensor};
use tensorpress::prelude::Node;
use tensorpress_candle::{Linear, Par, Workspace};
use tensorpress_tensor::ndarray::{Array2, ArrayView2};
use tensorpress_tensor::node::decode;
use tensorpress_tensor::{Accum, Scratch};

use crate::common::{nodes, random, tensor};

const SHAPES: [[usize; 2]; 3] = [[37, 64], [1, 128], [66, 160]];

fn floats(x: &Tensor) -> Vec<f32> {
    x.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

/// That y is x Wᵀ + b, to the precision of products and of the type of y.
fn check(what: &str, weight: &Array2<f32>, bias: Option<&[f32]>, x: &Tensor, y: &Tensor) {
    let [out, inp] = [weight.nrows(), weight.ncols()];
    let mut dims = x.dims().to_vec();
    *dims.last_mut().unwrap() = out;
    assert_eq!((y.dims(), y.dtype()), (&dims[..], x.dtype()), "{what}");
    let eps = match x.dtype() {
        DType::F16 => 1.0 / 2048.0,
        DType::BF16 => 1.0 / 256.0,
        _ => 0.0,
    };
    let (x, y) = (floats(x), floats(y));
    assert_eq!(x.len() / inp * out, y.len(), "{what}");
    let norm = |values: &[f32]| -> f64 {
        values.iter().map(|v| f64::from(*v) * f64::from(*v)).sum::<f64>().sqrt()
    };
    let norms: Vec<f64> = weight.rows().into_iter().map(|w| norm(w.as_slice().unwrap())).collect();
    for (x, y) in x.chunks(inp).zip(y.chunks(out)) {
        let length = norm(x);
        for (row, y) in y.iter().enumerate() {
            let weights = weight.row(row);
            let product: f64 =
                x.iter().zip(weights).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
            let exact = product + bias.map_or(0.0, |bias| f64::from(bias[row]));
            let most = 1e-4 * length * norms[row] + eps * exact.abs() + 1e-7;
            let error = (f64::from(*y) - exact).abs();
            assert!(error <= most, "{what}, row {row}: {y} is {error} from {exact}, not {most}");
        }
    }
}

/// Inputs of several ranks and layouts.
fn inputs(inp: usize, dtype: DType) -> Vec<(&'static str, Tensor)> {
    let t = |dims: &[usize], seed| tensor(dims, seed).to_dtype(dtype).unwrap();
    vec![
        ("vector", t(&[inp], 1)),
        ("one row", t(&[1, inp], 2)),
        ("rows", t(&[5, inp], 3)),
        ("many rows", t(&[67, inp], 4)),
        ("batches", t(&[2, 3, inp], 5)),
        ("rank 5", t(&[2, 1, 2, 1, inp], 6)),
        ("columns", t(&[inp, 3], 7).t().unwrap()),
        ("swapped batches", t(&[3, 2, inp], 8).transpose(0, 1).unwrap()),
        ("turned about", t(&[inp, 2, 3], 9).permute((2, 1, 0)).unwrap()),
        ("a part of the rows", t(&[6, inp], 10).narrow(0, 2, 3).unwrap()),
        ("a part of wide rows", t(&[2, 4, inp + 5], 11).narrow(2, 3, inp).unwrap()),
        ("a part of batches", t(&[2, 4, inp], 12).narrow(1, 1, 2).unwrap()),
        ("broadcast", t(&[1, inp], 13).broadcast_as((2, 3, inp)).unwrap()),
        ("one value", t(&[1, 1], 14).broadcast_as((2, inp)).unwrap()),
    ]
}

#[test]
fn products_are_those_of_decoded_weights() {
    let mut checked = 0;
    for shape in SHAPES {
        for (at, (kind, node)) in nodes(shape).into_iter().enumerate() {
            let weight = decode(&*node).unwrap();
            let bias = random(shape[0], 99);
            let plain = Linear::new(node);
            let with_bias = plain.clone().with_bias(bias.clone()).unwrap();
            for dtype in [DType::F32, DType::F16, DType::BF16] {
                // Every node meets a third of the layouts, and three nodes all of them.
                let some = inputs(shape[1], dtype).into_iter().skip(at % 3).step_by(3);
                for (layout, x) in some {
                    let what = format!("{kind}, {layout} of {dtype:?}");
                    check(&what, &weight, None, &x, &plain.forward(&x).unwrap());
                    let y = with_bias.forward(&x).unwrap();
                    check(&what, &weight, Some(&bias), &x, &y);
                    checked += 2;
                }
            }
        }
    }
    println!("checked: products of layers {checked}");
    assert!(checked > 700, "{checked}");
}

#[test]
fn layouts_change_no_bit() {
    let [out, inp] = [37, 64];
    for (kind, node) in nodes([out, inp]) {
        let layer = Linear::new(node.prepack().unwrap()).with_bias(random(out, 5)).unwrap();
        for dtype in [DType::F32, DType::F16, DType::BF16] {
            for (layout, x) in inputs(inp, dtype) {
                let (seen, laid) = (layer.forward(&x), layer.forward(&x.contiguous().unwrap()));
                let (seen, laid) = (floats(&seen.unwrap()), floats(&laid.unwrap()));
                assert!(seen == laid, "{kind}, {layout} of {dtype:?}");
            }
        }
    }
}

#[test]
fn a_layer_multiplies_as_its_node_does() {
    let [out, inp] = [130, 192];
    let x = random(7 * inp, 21);
    for (kind, node) in nodes([out, inp]) {
        let mut expected = Array2::<f32>::zeros((7, out));
        let rows = ArrayView2::from_shape((7, inp), &x[..]).unwrap();
        let mut scratch = Scratch::default();
        node.matmul(rows, expected.view_mut(), Accum::Replace, &mut scratch).unwrap();
        let node: Arc<dyn Node> = node.into();
        let x = Tensor::from_slice(&x, (7, inp), &Device::Cpu).unwrap();
        let y = Linear::new(node.clone()).forward(&x).unwrap();
        assert!(floats(&y) == expected.as_slice().unwrap(), "{kind}");
        assert_eq!(Linear::new(node.clone()).node().describe(), node.describe());
    }
}

#[test]
fn threads_and_neighbours_change_no_bit() {
    let [out, inp] = [256, 320];
    for (kind, node) in nodes([out, inp]) {
        let node: Arc<dyn Node> = node.prepack().unwrap().into();
        let layer = Linear::new(node);
        for tokens in [1, 3, 40] {
            let x = tensor(&[tokens, inp], tokens as u64);
            let with = |par| layer.clone().with_workspace(&Workspace::new(par));
            let expected = floats(&with(Par::Seq).forward(&x).unwrap());
            for par in [Par::Threads(2), Par::Threads(3), Par::Rayon] {
                assert!(floats(&with(par).forward(&x).unwrap()) == expected, "{kind}, {par:?}");
            }
            // One workspace, several threads at once, in two types.
            let shared = with(Par::Threads(2));
            let half = x.to_dtype(DType::BF16).unwrap();
            let narrow = floats(&shared.forward(&half).unwrap());
            std::thread::scope(|threads| {
                for _ in 0..3 {
                    threads.spawn(|| {
                        for _ in 0..4 {
                            assert!(floats(&shared.forward(&x).unwrap()) == expected);
                            assert!(floats(&shared.forward(&half).unwrap()) == narrow);
                        }
                    });
                }
            });
        }
    }
}

#[test]
fn nothing_in_is_nothing_out() {
    for (kind, node) in nodes([37, 64]) {
        let layer = Linear::new(node).with_bias(random(37, 1)).unwrap();
        for dims in [vec![0, 64], vec![2, 0, 64], vec![0, 0, 64]] {
            for dtype in [DType::F32, DType::F16, DType::BF16] {
                let x = Tensor::zeros(&dims[..], dtype, &Device::Cpu).unwrap();
                let y = layer.forward(&x).unwrap();
                assert_eq!((y.dims().last(), y.elem_count()), (Some(&37), 0), "{kind}");
                assert_eq!((y.rank(), y.dtype()), (dims.len(), dtype), "{kind}");
            }
        }
        // Rows of a matrix of none, seen from the side.
        let x = Tensor::zeros((64, 0), DType::F32, &Device::Cpu).unwrap().t().unwrap();
        assert_eq!(layer.forward(&x).unwrap().dims(), [0, 37]);
    }
}

#[test]
fn matrices_without_rows_or_columns() {
    use tensorpress::tensor::node::Dense;
    let none = |out, inp| Dense::from(Array2::<f32>::zeros((out, inp))).boxed();
    let x = Tensor::zeros((3, 0), DType::F32, &Device::Cpu).unwrap();
    let layer = Linear::new(none(2, 0)).with_bias(vec![1.0, 2.0]).unwrap();
    let y = layer.forward(&x).unwrap().to_vec2::<f32>().unwrap();
    assert_eq!(y, vec![vec![1.0, 2.0]; 3]);
    let x = Tensor::zeros((3, 4), DType::F16, &Device::Cpu).unwrap();
    assert_eq!(Linear::new(none(0, 4)).forward(&x).unwrap().dims(), [3, 0]);
    let x = Tensor::zeros((2, 3, 0), DType::BF16, &Device::Cpu).unwrap();
    assert_eq!(Linear::new(none(0, 0)).forward(&x).unwrap().dims(), [2, 3, 0]);
}
