use ndarray::{Array2, s};
use tensorpress_tensor::{DType, ndarray};

use super::{Norm, Separable, join_split, split_codes};
use crate::store::Axis;
use crate::store::coded::{Code, Coded, floats, take_codes};
use crate::store::tests::{golden, near, rows_of};
use crate::store::windowed::PackedRows;

/// Codes as they are packed, scales, minima, norms of tokens and values of the released code.
#[test]
fn golden_zipcache() {
    let Some(file) = golden("zipcache_diffrate_uncomp") else { return };
    let mut checked = 0;
    for (name, input, norm) in [("channel", "in.k", Norm::One), ("tokenscaled", "in.v", Norm::Mean)]
    {
        let x = rows_of(&file, input, 4, 120, 32);
        for bits in [2, 4, 8] {
            let code = Separable {
                dim: 128,
                chunk: 120,
                bits,
                axis: Axis::Channel,
                norm,
                dtype: DType::F32,
            };
            let mut streams = vec![Vec::new(); 4];
            code.encode(x.view(), &mut streams);
            let name = |what: &str| format!("zip_{name}_b{bits}.{what}");
            let values =
                |what: &str| floats(DType::F32, file.tensor(&name(what)).expect("there").bytes());
            near(&floats(DType::F32, &streams[1]), &values("scale"), 1e-6, "scale");
            near(&floats(DType::F32, &streams[2]), &values("min"), 1e-6, "min");
            if norm == Norm::Mean {
                near(&floats(DType::F32, &streams[3]), &values("token_scale"), 1e-6, "norms");
            }
            let packed = file.tensor(&name("packed")).expect("there").bytes().clone();
            let codes = take_codes(&streams[0], bits, 120 * 128);
            for (codes, theirs) in codes.chunks(128).zip(packed.chunks(16 * bits as usize)) {
                assert_eq!(split_codes(codes, bits).expect("packs"), theirs, "{bits} bits");
                assert_eq!(join_split(theirs, bits).expect("unpacks"), codes);
            }
            let mut out = vec![0.0; 120 * 128];
            code.decode(&streams.iter().map(Vec::as_slice).collect::<Vec<_>>(), &mut out);
            let theirs = rows_of(&file, &name("dequant"), 4, 120, 32);
            near(&out, theirs.as_slice().expect("standard layout"), 2e-6, "values");
            checked += 1;
        }
    }
    println!(
        "zipcache: 1 file, {checked} tensors of codes, words, scales, minima and values equal"
    );
}

/// The paper's way in f64, another loop: each channel by the root of its largest magnitude, each token on its grid.
#[test]
fn channel_separable_tokens_as_written_out() {
    let mut random = tensorpress_tensor::linalg::SplitMix::new(1);
    let x = Array2::from_shape_fn((24, 16), |(_, c)| {
        (random.next_f64() as f32 - 0.5) * if c == 5 { 40.0 } else { 1.0 }
    });
    let code = Separable {
        dim: 16,
        chunk: 8,
        bits: 4,
        axis: Axis::Token,
        norm: Norm::SqrtMax,
        dtype: DType::F32,
    };
    let mut rows = Coded::new(code);
    rows.push(x.view());
    let mut out = Array2::zeros((24, 16));
    rows.decode(0..24, out.view_mut());
    let mut loss = [0.0, 0.0];
    for chunk in 0..3 {
        let x = x.slice(s![8 * chunk..8 * chunk + 8, ..]).mapv(f64::from);
        let norm: Vec<f64> =
            (0..16).map(|c| x.column(c).fold(0.0f64, |m, v| m.max(v.abs())).sqrt()).collect();
        for t in 0..8 {
            let y: Vec<f64> = (0..16).map(|c| x[[t, c]] / norm[c]).collect();
            let low = y.iter().copied().fold(f64::INFINITY, f64::min);
            let step = (y.iter().copied().fold(f64::NEG_INFINITY, f64::max) - low) / 15.0;
            let plain_low = x.row(t).fold(f64::INFINITY, |m, v| m.min(*v));
            let plain = (x.row(t).fold(f64::NEG_INFINITY, |m, v| m.max(*v)) - plain_low) / 15.0;
            for c in 0..16 {
                let value = (((y[c] - low) / step).round() * step + low) * norm[c];
                let mine = f64::from(out[[8 * chunk + t, c]]);
                assert!((mine - value).abs() < 1e-4, "{mine} against {value}");
                let without = ((x[[t, c]] - plain_low) / plain).round() * plain + plain_low;
                if c != 5 {
                    loss[0] += (mine - x[[t, c]]).powi(2);
                    loss[1] += (without - x[[t, c]]).powi(2);
                }
            }
        }
    }
    assert!(loss[0] < loss[1] / 2.0, "small channels: {} with norms, {} without", loss[0], loss[1]);
}
