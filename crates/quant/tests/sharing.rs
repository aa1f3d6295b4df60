//! Weights in a shared memory, and convolutions of signs: slow references, bad input, figures.

use tensorpress_quant::{BinaryConv, RPRelu, RandomFold};
use tensorpress_tensor::ErrorKind;
use tensorpress_tensor::linalg::gaussian;
use tensorpress_tensor::ndarray::{Array2, Array3, Array4, ArrayView2};
use tensorpress_tensor::testing::data;
use tensorpress_tensor::testing::golden::Layer;

fn matrix(rows: usize, cols: usize, seed: u64) -> Array2<f32> {
    Array2::from_shape_fn((rows, cols), |(r, c)| gaussian(seed, (r * cols + c) as u64) as f32)
}

fn views(layers: &[Array2<f32>]) -> Vec<ArrayView2<'_, f32>> {
    layers.iter().map(|layer| layer.view()).collect()
}

/// The map itself, read off from the gradients of single weights: row i is weight i by places.
fn map_of(memory: usize, layers: &[Array2<f32>]) -> Array2<f64> {
    let folded = RandomFold::new(memory, 3).unwrap().fold(&views(layers)).unwrap();
    let count: usize = layers.iter().map(Array2::len).sum();
    let mut map = Array2::zeros((count, memory));
    for i in 0..count {
        let mut unit: Vec<Array2<f32>> = layers.iter().map(|l| l.mapv(|_| 0.0)).collect();
        let mut at = i;
        for layer in &mut unit {
            if at < layer.len() {
                *layer.iter_mut().nth(at).unwrap() = 1.0;
                break;
            }
            at -= layer.len();
        }
        let gradient = folded.gradient(&views(&unit), false).unwrap();
        for (place, g) in gradient.iter().enumerate() {
            map[[i, place]] = f64::from(*g);
        }
    }
    map
}

#[test]
fn folds_are_balanced_and_projections_least_squares() {
    let layers = [matrix(3, 7, 1) * 0.2, matrix(5, 4, 2) * 3.0, matrix(2, 3, 3)];
    let flat: Vec<f64> = layers.iter().flatten().map(|w| f64::from(*w)).collect();
    for memory in [1, 5, 12, 20, 47, 60] {
        let map = map_of(memory, &layers);
        let folded = RandomFold::new(memory, 3).unwrap().fold(&views(&layers)).unwrap();
        // One place a weight, and of any run as long as the memory each another.
        let of: Vec<usize> = map
            .rows()
            .into_iter()
            .map(|row| {
                let places: Vec<usize> = (0..memory).filter(|p| row[*p] != 0.0).collect();
                assert_eq!(places.len(), 1);
                places[0]
            })
            .collect();
        for run in of.chunks(memory) {
            let mut seen = run.to_vec();
            seen.sort_unstable();
            seen.dedup();
            assert_eq!(seen.len(), run.len());
        }
        // Normal equations: what is left is orthogonal to the map.
        let memory_values = folded.memory().mapv(f64::from);
        let decoded: Vec<f64> = (0..3)
            .flat_map(|l| folded.layer(l).unwrap().into_iter().map(f64::from).collect::<Vec<_>>())
            .collect();
        let exact = map.dot(&memory_values);
        assert!(decoded.iter().zip(&exact).all(|(d, e)| (d - e).abs() < 1e-5));
        let left: Vec<f64> = flat.iter().zip(&decoded).map(|(w, d)| w - d).collect();
        for column in map.columns() {
            let along: f64 = column.iter().zip(&left).map(|(m, l)| m * l).sum();
            assert!(along.abs() < 1e-4, "{along}");
        }
        if memory >= flat.len() {
            assert!(left.iter().all(|l| l.abs() < 1e-5), "as large as the model, it is the model");
        }
        // The balanced gradient of weights is what the projection of them is.
        let balanced = folded.gradient(&views(&layers), true).unwrap();
        for (place, b) in balanced.iter().enumerate() {
            if of.contains(&place) {
                assert!((b - folded.memory()[place]).abs() < 1e-5);
            }
        }
        assert_eq!(folded.bytes(), 4 * (memory + 3) + 8);
        for (layer, scale) in layers.iter().zip(folded.scales()) {
            let square: f64 = layer.iter().map(|w| f64::from(*w).powi(2)).sum();
            assert!((f64::from(*scale) - (square / layer.len() as f64).sqrt()).abs() < 1e-5);
        }
        let again = RandomFold::new(memory, 3).unwrap().fold(&views(&layers)).unwrap();
        assert!(again == folded);
        assert!(
            memory == 1
                || RandomFold::new(memory, 4).unwrap().fold(&views(&layers)).unwrap() != folded
        );
    }
}

#[test]
fn training_the_memory_finds_the_projection() {
    let layers = [matrix(6, 8, 4), matrix(4, 5, 5) * 10.0];
    let best = RandomFold::new(17, 9).unwrap().fold(&views(&layers)).unwrap();
    let mut trained = best.clone();
    trained.memory_mut().fill(0.0);
    // One balanced step of length 1 down the squared error is the projection.
    let left: Vec<Array2<f32>> = (0..2).map(|l| trained.layer(l).unwrap() - &layers[l]).collect();
    let step = trained.gradient(&views(&left), true).unwrap();
    *trained.memory_mut() -= &step;
    assert!(trained.memory().iter().zip(best.memory()).all(|(a, b)| (a - b).abs() < 1e-5));
}

#[test]
fn shared_weights_refuse_bad_input() {
    for memory in [0, 1 << 32] {
        let refused = RandomFold::new(memory, 0).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::InvalidArgument);
    }
    let fold = RandomFold::new(7, 0).unwrap();
    let bad = fold.fold(&[matrix(2, 2, 1).view(), Array2::from_elem((1, 1), f32::NAN).view()]);
    let bad = bad.unwrap_err();
    assert!(bad.kind() == ErrorKind::Numerical && bad.tensor() == Some("layer 1"));
    let empty = fold.fold(&[]).unwrap();
    assert!(empty.memory().iter().all(|v| *v == 0.0));
    assert_eq!(empty.layer(0).unwrap_err().kind(), ErrorKind::InvalidArgument);
    let zeros = fold.fold(&[Array2::zeros((3, 3)).view(), Array2::zeros((0, 4)).view()]).unwrap();
    assert!(zeros.layer(0).unwrap().iter().all(|w| *w == 0.0));
    assert_eq!(zeros.layer(1).unwrap().dim(), (0, 4));
    let wrong = zeros.gradient(&[matrix(3, 3, 1).view()], false).unwrap_err();
    assert_eq!(wrong.kind(), ErrorKind::ShapeMismatch);
    let huge = fold.fold(&[(matrix(4, 4, 2) * 1e30).view()]).unwrap();
    assert!(huge.layer(0).unwrap().iter().all(|w| w.is_finite()));
}

#[test]
fn real_layers_in_shared_memory() {
    let Some(folder) = data::find("golden/weights") else { return };
    let layers: Vec<Layer> =
        ["l2_query", "l2_ffn_up"].iter().map(|name| Layer::read(&folder, name)).collect();
    let weights: Vec<Array2<f32>> = layers.iter().map(|l| l.weight.clone()).collect();
    let count: usize = weights.iter().map(Array2::len).sum();
    let mut before = 0.0;
    for ratio in [1.0, 1.25, 2.0, 4.0] {
        let memory = (count as f64 / ratio).ceil() as usize;
        let folded = RandomFold::new(memory, 1).unwrap().fold(&views(&weights)).unwrap();
        let errors: Vec<f64> =
            (0..2).map(|l| layers[l].output_error(folded.layer(l).unwrap().view())).collect();
        println!("1/{ratio} of the memory: output errors {:.4} and {:.4}", errors[0], errors[1]);
        assert!(errors[0] >= before);
        before = errors[0];
    }
}

/// The convolution with numbers 1 and -1, one by one.
fn slow(
    weights: &Array4<f32>,
    biases: &[f32],
    scales: &[f64],
    x: &Array3<f32>,
    stride: usize,
    padding: usize,
) -> Array3<f64> {
    let (out, inp, kh, kw) = weights.dim();
    let (_, height, width) = x.dim();
    let size = |n: usize, k: usize| (n + 2 * padding - k) / stride + 1;
    let sign = |v: f32| if v < 0.0 { -1.0 } else { 1.0 };
    Array3::from_shape_fn((out, size(height, kh), size(width, kw)), |(o, y, x0)| {
        let mut sum = 0.0;
        for c in 0..inp {
            for i in 0..kh {
                for j in 0..kw {
                    let row = (y * stride + i) as i64 - padding as i64;
                    let column = (x0 * stride + j) as i64 - padding as i64;
                    if (0..height as i64).contains(&row) && (0..width as i64).contains(&column) {
                        let v = x[[c, row as usize, column as usize]] + biases[c];
                        sum += sign(v) * sign(weights[[o, c, i, j]]);
                    }
                }
            }
        }
        scales[o] * sum
    })
}

fn maps(channels: usize, height: usize, width: usize, seed: u64) -> Array3<f32> {
    let mut i = 0;
    Array3::from_shape_simple_fn((channels, height, width), || {
        i += 1;
        gaussian(seed, i) as f32
    })
}

fn kernel(shape: (usize, usize, usize, usize), seed: u64) -> Array4<f32> {
    let mut i = 0;
    Array4::from_shape_simple_fn(shape, || {
        i += 1;
        gaussian(seed, i) as f32
    })
}

#[test]
fn signs_are_convolved_as_numbers_are() {
    for (out, inp, k, stride, padding) in
        [(3, 5, 3, 1, 1), (2, 64, 1, 1, 0), (4, 70, 3, 2, 1), (1, 129, 2, 3, 2), (2, 1, 5, 1, 4)]
    {
        let weights = kernel((out, inp, k, k), 6);
        let conv = BinaryConv::new(weights.view(), stride, padding).unwrap();
        let scales: Vec<f64> = weights
            .outer_iter()
            .map(|w| w.iter().map(|v| f64::from(v.abs())).sum::<f64>() / w.len() as f64)
            .collect();
        let seen: Vec<(usize, Array3<f32>)> =
            (0..10).map(|step| (step, maps(inp, 6, 7, 50 + step as u64) + step as f32)).collect();
        let views: Vec<_> = seen.iter().map(|(step, x)| (*step, x.view())).collect();
        let conv = conv.with_steps(10, 4, &views).unwrap();
        for step in [0, 3, 9] {
            let group = step * 4 / 10;
            assert_eq!(conv.group_of(step), group);
            // Biases are minus the means of the group's steps.
            let own: Vec<&Array3<f32>> =
                seen.iter().filter(|(s, _)| s * 4 / 10 == group).map(|(_, x)| x).collect();
            let biases: Vec<f32> = (0..inp)
                .map(|c| {
                    let all = own.iter().flat_map(|x| x.outer_iter().nth(c).unwrap().to_owned());
                    let (sum, n) = all.fold((0f64, 0.0), |(s, n), v| (s + f64::from(v), n + 1.0));
                    (-sum / n) as f32
                })
                .collect();
            for (b, exact) in conv.biases().row(group).iter().zip(&biases) {
                assert!((b - exact).abs() < 1e-5);
            }
            let x = maps(inp, 6, 7, 90) + step as f32;
            let biases: Vec<f32> = conv.biases().row(group).to_vec();
            let exact = slow(&weights, &biases, &scales, &x, stride, padding);
            let got = conv.forward(x.view(), step).unwrap();
            assert_eq!(got.dim(), exact.dim());
            assert!(got.iter().zip(&exact).all(|(g, e)| (f64::from(*g) - e).abs() < 1e-3));
        }
        let signs = (out * inp * k * k).div_ceil(8);
        assert_eq!(conv.bytes(), signs + 4 * (out + 4 * inp + 3 * 4 * out));
    }
}

#[test]
fn activations_are_those_of_the_group() {
    let weights = kernel((2, 3, 1, 1), 7);
    let mut conv = BinaryConv::new(weights.view(), 1, 0).unwrap().with_steps(4, 2, &[]).unwrap();
    let x = maps(3, 2, 2, 8);
    let plain = conv.forward(x.view(), 3).unwrap();
    let bend = RPRelu { shift: 0.3, slope: 0.25, lift: -1.0 };
    conv.set_activation(1, 1, bend).unwrap();
    let bent = conv.forward(x.view(), 3).unwrap();
    for ((at, got), v) in bent.indexed_iter().zip(&plain) {
        let above = if v - 0.3 > 0.0 { v - 0.3 } else { 0.25 * (v - 0.3) } - 1.0;
        assert!((got - if at.0 == 1 { above } else { *v }).abs() < 1e-6);
    }
    assert_eq!(conv.forward(x.view(), 1).unwrap(), plain);
    assert_eq!(conv.set_activation(2, 0, bend).unwrap_err().kind(), ErrorKind::InvalidArgument);
    assert_eq!(conv.set_activation(0, 2, bend).unwrap_err().kind(), ErrorKind::InvalidArgument);
    let nan = RPRelu { slope: f32::NAN, ..bend };
    assert_eq!(conv.set_activation(0, 0, nan).unwrap_err().kind(), ErrorKind::Numerical);
}

/// Inputs whose means move with the step, as in diffusion: one bias for all steps, and one a group.
#[test]
fn biases_of_groups_lose_less() {
    let weights = kernel((16, 32, 3, 3), 9);
    let input = |step: usize, seed: u64| {
        let drift = maps(32, 1, 1, 10);
        let mut x = maps(32, 12, 12, seed);
        for (mut channel, d) in x.outer_iter_mut().zip(&drift) {
            channel += 2.0 * d * (step as f32 / 20.0 - 1.0);
        }
        x
    };
    let seen: Vec<(usize, Array3<f32>)> = (0..40).map(|s| (s, input(s, 200 + s as u64))).collect();
    let views: Vec<_> = seen.iter().map(|(step, x)| (*step, x.view())).collect();
    let conv = BinaryConv::new(weights.view(), 1, 1).unwrap();
    let mut errors = Vec::new();
    for groups in [1, 2, 5, 10] {
        let conv = conv.clone().with_steps(40, groups, &views).unwrap();
        // Of the products of centred inputs, up to one factor a channel.
        let (mut along, mut own, mut whole) = (0.0, 0.0, 0.0);
        for step in (0..40).step_by(3) {
            let x = input(step, 500 + step as u64);
            let drift = maps(32, 1, 1, 10);
            let centred = Array3::from_shape_fn(x.dim(), |(c, i, j)| {
                x[[c, i, j]] - 2.0 * drift[[c, 0, 0]] * (step as f32 / 20.0 - 1.0)
            });
            let got = conv.forward(x.view(), step).unwrap();
            for ((o, y, x0), g) in got.indexed_iter() {
                let mut exact = 0f64;
                for c in 0..32 {
                    for i in 0..3usize {
                        for j in 0..3usize {
                            let (r, k) = ((y + i).wrapping_sub(1), (x0 + j).wrapping_sub(1));
                            if r < 12 && k < 12 {
                                exact += f64::from(centred[[c, r, k]])
                                    * f64::from(weights[[o, c, i, j]]);
                            }
                        }
                    }
                }
                along += exact * f64::from(*g);
                own += f64::from(*g).powi(2);
                whole += exact * exact;
            }
        }
        let error = (1.0 - along * along / (own * whole)).max(0.0).sqrt();
        println!(
            "{groups} groups: error {error:.4}, {} bytes of {}",
            conv.bytes(),
            4 * weights.len()
        );
        errors.push(error);
    }
    assert!(errors[3] < errors[0] && errors[2] < errors[0]);
}

#[test]
fn convolutions_refuse_bad_input() {
    let kind = |w: Array4<f32>, stride| BinaryConv::new(w.view(), stride, 0).unwrap_err().kind();
    for shape in [(2, 0, 3, 3), (2, 3, 0, 3), (2, 3, 3, 0)] {
        assert_eq!(kind(Array4::zeros(shape), 1), ErrorKind::InvalidArgument);
    }
    assert_eq!(kind(Array4::zeros((1, 1, 1, 1)), 0), ErrorKind::InvalidArgument);
    assert_eq!(kind(Array4::from_elem((1, 1, 1, 1), f32::NAN), 1), ErrorKind::Numerical);
    let conv = BinaryConv::new(kernel((2, 3, 3, 3), 1).view(), 1, 0).unwrap();
    let kind = |x: Array3<f32>, step| conv.forward(x.view(), step).unwrap_err().kind();
    assert_eq!(kind(maps(3, 5, 5, 1), 1), ErrorKind::InvalidArgument);
    assert_eq!(kind(maps(3, 2, 5, 1), 0), ErrorKind::InvalidArgument);
    assert_eq!(kind(maps(4, 5, 5, 1), 0), ErrorKind::ShapeMismatch);
    assert_eq!(kind(Array3::from_elem((3, 5, 5), f32::INFINITY), 0), ErrorKind::Numerical);
    for (steps, groups) in [(0, 0), (4, 0), (4, 5)] {
        let refused = conv.clone().with_steps(steps, groups, &[]).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::InvalidArgument);
    }
    let x = maps(3, 4, 4, 2);
    let late = conv.clone().with_steps(4, 2, &[(4, x.view())]).unwrap_err();
    assert_eq!(late.kind(), ErrorKind::InvalidArgument);
    // A group of which nothing was seen has the means of all.
    let some = conv.clone().with_steps(4, 2, &[(0, x.view())]).unwrap();
    assert_eq!(some.biases().row(0), some.biases().row(1));
    let none = BinaryConv::new(Array4::zeros((0, 3, 1, 1)).view(), 1, 0).unwrap();
    assert_eq!(none.forward(x.view(), 0).unwrap().dim(), (0, 4, 4));
}
