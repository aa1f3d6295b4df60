//! PAT's operator: gradients by differences, folding by running both networks.

use tensorpress_prune::train::{HybridIdentity, fold_rms_norm, keep_inputs};
use tensorpress_tensor::linalg::gaussian;
use tensorpress_tensor::ndarray::{Array1, Array2, Axis};
use tensorpress_tensor::{Error, ErrorKind};

fn random(rows: usize, cols: usize, seed: u64) -> Array2<f32> {
    Array2::from_shape_fn((rows, cols), |(r, c)| gaussian(seed, (r * cols + c) as u64) as f32)
}

fn kind(error: &Error, kind: ErrorKind, part: &str) {
    assert_eq!(error.kind(), kind, "{error}");
    assert!(error.to_string().contains(part), "{error}");
}

fn operator(channels: usize, rank: usize, seed: u64) -> HybridIdentity {
    let mut operator = HybridIdentity::new(channels, rank, seed).unwrap();
    operator.scale = Array1::from_iter((0..rank).map(|i| 0.5 + i as f32));
    operator.down += &(random(rank, channels, seed + 1) * 0.2);
    operator.up += &(random(channels, rank, seed + 2) * 0.2);
    operator
}

/// PAT's operator and identity loss, by differences.
#[test]
fn the_operator_slopes_as_it_says() {
    let (x, weigh) = (random(5, 7, 1), random(5, 7, 2));
    let base = operator(7, 3, 3);
    let loss = |operator: &HybridIdentity, x: &Array2<f32>| -> f64 {
        (&operator.apply(x.view()).unwrap() * &weigh).iter().map(|v| f64::from(*v)).sum()
    };
    let found = base.backward(x.view(), weigh.view()).unwrap();
    let orthogonal = base.identity_loss();
    let near = |stated: f32, up: f64, down: f64, h: f64| {
        let wanted = (up - down) / (2.0 * h);
        assert!(
            (f64::from(stated) - wanted).abs() < 2e-3 * (1.0 + wanted.abs()),
            "{stated} {wanted}"
        );
    };
    let h = 0.0625f32;
    for (r, c) in [(0, 0), (2, 6), (1, 3)] {
        let moved = |by: f32, what: usize| {
            let mut moved = base.clone();
            match what {
                0 => moved.down[[r, c]] += by,
                1 => moved.up[[c, r]] += by,
                _ => moved.scale[r] += by,
            }
            moved
        };
        for (what, stated) in
            [found.down[[r, c]], found.up[[c, r]], found.scale[r]].into_iter().enumerate()
        {
            let at = |by: f32| loss(&moved(by, what), &x);
            near(stated, at(h), at(-h), f64::from(h));
        }
        let small = 1.0 / 1024.0;
        for (what, stated) in
            [orthogonal.down[[r, c]], orthogonal.up[[c, r]]].into_iter().enumerate()
        {
            let at = |by: f32| moved(by, what).identity_loss().value;
            near(stated, at(small), at(-small), f64::from(small));
        }
        let step = |by: f32| {
            let mut x = x.clone();
            x[[r, c]] += by;
            loss(&base, &x)
        };
        near(found.input[[r, c]], step(h), step(-h), f64::from(h));
    }
    assert!(HybridIdentity::new(9, 4, 5).unwrap().identity_loss().value < 1e-10);
    assert!(orthogonal.value > 0.01);
}

/// An RMS norm in f64.
fn rms_norm(x: &Array2<f64>, gain: &[f32], epsilon: f64) -> Array2<f64> {
    let mut y = x.clone();
    for mut row in y.rows_mut() {
        let mean = row.iter().map(|v| v * v).sum::<f64>() / row.len() as f64;
        let by = 1.0 / (mean + epsilon).sqrt();
        row.iter_mut().zip(gain).for_each(|(v, g)| *v *= by * f64::from(*g));
    }
    y
}

/// PAT's folding: two linears that write to a stream behind operators and one mask, a norm, and a linear that reads it.
/// Fails if the operator is folded behind the mask, the bias is not folded, or the norm keeps its gain or ε.
#[test]
fn folded_neighbours_compute_the_same() {
    let (channels, inputs, out) = (12, 5, 4);
    let keep: Vec<bool> = (0..channels).map(|c| c % 3 != 0).collect();
    let mask = Array1::from_iter(keep.iter().map(|k| f64::from(u8::from(*k))));
    let (w, b) =
        ([random(channels, inputs, 1), random(channels, inputs, 2)], random(1, channels, 3));
    let operators = [operator(channels, 4, 4), operator(channels, 4, 8)];
    let (reads, gain, epsilon) = (random(out, channels, 12), random(1, channels, 13), 0.03);
    let (gain, x) = (gain.row(0).to_vec(), random(6, inputs, 14).mapv(f64::from));
    let wide = |m: &Array2<f32>| m.mapv(f64::from);
    let stream = (0..2).fold(Array2::<f64>::zeros((6, channels)), |stream, i| {
        let (down, up) = (wide(&operators[i].down), wide(&operators[i].up));
        let mut d = Array2::<f64>::eye(channels);
        d += &(up * &operators[i].scale.mapv(f64::from)).dot(&down);
        let written = x.dot(&wide(&w[i]).t()) + &b.row(0).mapv(f64::from);
        stream + written.dot(&d.t()) * &mask
    });
    let wanted = rms_norm(&stream, &gain, epsilon).dot(&wide(&reads).t());
    let kept = keep.iter().filter(|k| **k).count();
    let small = (0..2).fold(Array2::<f64>::zeros((6, kept)), |stream, i| {
        let bias = b.row(0).to_vec();
        let (weight, bias) = operators[i].fold(w[i].view(), Some(&bias), &keep).unwrap();
        let bias = Array1::from(bias.unwrap()).mapv(f64::from);
        assert_eq!((weight.dim(), bias.len()), ((kept, inputs), kept));
        stream + x.dot(&wide(&weight).t()) + &bias.insert_axis(Axis(0))
    });
    let (gain, epsilon) = fold_rms_norm(&gain, epsilon, &keep).unwrap();
    let reads = keep_inputs(reads.view(), &keep).unwrap();
    let ours = rms_norm(&small, &gain, epsilon).dot(&wide(&reads).t());
    let apart = ours.iter().zip(&wanted).fold(0.0f64, |a, (x, y)| a.max((x - y).abs()));
    assert!(apart < 1e-5, "{apart}");
}

#[test]
fn errors_say_what_is_allowed() {
    use ErrorKind::{InvalidArgument, ShapeMismatch};
    for rank in [0, 5] {
        kind(&HybridIdentity::new(4, rank, 0).unwrap_err(), InvalidArgument, "rank");
    }
    let operator = HybridIdentity::new(4, 2, 0).unwrap();
    let x = random(3, 4, 1);
    kind(&operator.apply(x.t()).unwrap_err(), ShapeMismatch, "operator of 4");
    kind(&operator.backward(x.view(), x.t()).unwrap_err(), ShapeMismatch, "(4, 3)");
    kind(&operator.fold(x.view(), None, &[true; 4]).unwrap_err(), ShapeMismatch, "3 outputs");
    kind(&operator.fold(x.t(), Some(&[1.0]), &[true; 4]).unwrap_err(), ShapeMismatch, "biases");
    kind(&operator.fold(x.t(), None, &[true; 3]).unwrap_err(), ShapeMismatch, "mask");
    kind(&keep_inputs(x.view(), &[true]).unwrap_err(), ShapeMismatch, "4 inputs");
    kind(&fold_rms_norm(&[1.0], 0.0, &[]).unwrap_err(), ShapeMismatch, "1 gains");
    kind(&fold_rms_norm(&[1.0], 0.0, &[false]).unwrap_err(), InvalidArgument, "no channel");
    let mut odd = operator;
    odd.scale = Array1::zeros(3);
    kind(&odd.apply(x.view()).unwrap_err(), ShapeMismatch, "v 3");
}
