//! Rotations before a quantiser.

use tensorpress_quant::{Awq, Gptq, GridSpec, Hadamard, Rtn, Sides};
use tensorpress_tensor::linalg::gaussian;
use tensorpress_tensor::ndarray::Array2;
use tensorpress_tensor::node::decode;
use tensorpress_tensor::stats::{Calibration, Moments, SampledRows};
use tensorpress_tensor::testing::laws::check_node;
use tensorpress_tensor::{Compress, DynCompress, ErrorKind, Group, Method, Registry, Target};

fn random(rows: usize, cols: usize, seed: u64) -> Array2<f32> {
    Array2::from_shape_fn((rows, cols), |(r, c)| gaussian(seed, (r * cols + c) as u64) as f32)
}

/// Normal weights, a few of which are twenty times as large.
fn with_outliers(rows: usize, cols: usize, seed: u64) -> Array2<f32> {
    let mut weight = random(rows, cols, seed);
    for (i, w) in weight.iter_mut().enumerate() {
        if gaussian(seed + 1, i as u64) > 3.0 {
            *w *= 20.0;
        }
    }
    weight
}

fn error(method: &dyn DynCompress, weight: &Array2<f32>, calibration: &Calibration) -> f64 {
    let group = Group::single(Target::new("w", weight.view()), calibration.clone());
    let node = method.compress_group_dyn(group).unwrap().layers.remove(0).node;
    let lost = (decode(&*node).unwrap() - weight).dot(&calibration.samples().unwrap().t());
    lost.iter().map(|v| f64::from(*v).powi(2)).sum()
}

#[test]
fn rotations_of_any_size_spread_outliers() {
    let grid = GridSpec::new(4, 0);
    for cols in [512usize, 576, 1536] {
        let weight = with_outliers(64, cols, 7);
        let calibration = Calibration::of(random(200, cols, 9).view());
        let plain = error(&Rtn::new(grid), &weight, &calibration);
        for sides in [Sides::In, Sides::Out, Sides::Both] {
            let turned = Hadamard::new(Rtn::new(grid)).with_sides(sides);
            let turned = error(&turned, &weight, &calibration);
            // A row's outliers are spread over the row; those of a column only make its neighbours' like it.
            let most = if sides == Sides::Out { 0.8 } else { 0.5 };
            assert!(turned < most * plain, "{cols} {sides:?}: {turned} against {plain}");
        }
        let turned = error(&Hadamard::new(Gptq::new(grid)), &weight, &calibration);
        assert!(turned < 0.5 * plain, "{cols}: {turned} against {plain}");
    }
}

#[test]
fn rotated_nodes_keep_the_laws() {
    let registry = Registry::default();
    let weight = with_outliers(12, 36, 3);
    let calibration = Calibration::of(random(80, 36, 1).view());
    for sides in [Sides::In, Sides::Out, Sides::Both] {
        let method = Hadamard::new(Rtn::new(GridSpec::new(4, 12))).with_sides(sides);
        let node = || method.compress(weight.view(), &calibration).unwrap().node;
        check_node(node(), &registry, 1e-3);
        assert_eq!(decode(&node()).unwrap(), decode(&node()).unwrap());
    }
}

#[test]
fn what_a_rotation_needs_and_refuses() {
    let grid = GridSpec::new(4, 0);
    let needs = Hadamard::new(Awq::new(grid)).needs();
    assert!(needs.has::<Moments>() && needs.amount::<SampledRows>() >= 1024);
    assert!(Hadamard::new(Rtn::new(grid)).needs().is_none());
    assert_eq!(Hadamard::<Rtn>::default().id(), "hadamard");
    let (weight, calibration) = (random(8, 48, 1), Calibration::of(random(60, 48, 2).view()));
    // A solver with scales of its own works behind it.
    let awq = Hadamard::new(Awq::new(grid)).compress(weight.view(), &calibration).unwrap();
    assert!(awq.node.describe().to_string().contains("rotation"));
    let block = Hadamard::new(Rtn::new(grid)).with_block(7);
    let error = block.compress(weight.view(), &calibration).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidArgument);
    let mut bad = weight.clone();
    bad[[1, 1]] = f32::NAN;
    let error = Hadamard::new(Rtn::new(grid)).compress(bad.view(), &calibration).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Numerical);
}
