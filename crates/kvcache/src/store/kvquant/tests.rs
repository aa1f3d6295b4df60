use std::sync::Arc;

use ndarray::Array2;
use tensorpress_tensor::{Checkpoint, DType, ndarray};

use super::levels::inward;
use super::{KvLevels, Levels, NuqCode, Vectors, normal_levels};
use crate::store::coded::{Coded, floats};
use crate::store::tests::{golden, near, rows_of};
use crate::store::windowed::PackedRows;

fn values(file: &Checkpoint, name: &str) -> Vec<f32> {
    floats(DType::F32, file.tensor(name).expect("there").bytes())
}

fn code(vectors: Vectors, bits: u32, outliers: f64, model: KvLevels) -> NuqCode {
    NuqCode {
        dim: 64,
        vectors,
        bits,
        outliers,
        levels: Levels::Fitted,
        norm: false,
        sinks: 0,
        fit: 0,
        dtype: DType::F32,
        model: Some(Arc::new(model)),
    }
}

/// Decoded rows, and which entries came as outliers.
fn decoded(code: NuqCode, x: &Array2<f32>) -> (Vec<f32>, Vec<u8>) {
    let mut rows = Coded::new(code);
    rows.push(x.view());
    let mut mask = vec![0; x.len()];
    rows.each_unit(0..x.nrows(), |t, unit| {
        for place in unit[2].as_chunks::<2>().0 {
            mask[t * 64 + usize::from(u16::from_le_bytes(*place))] = 1;
        }
    });
    let mut out = Array2::zeros(x.dim());
    rows.decode(0..x.nrows(), out.view_mut());
    (out.into_raw_vec_and_offset().0, mask)
}

/// Thresholds, levels, outliers and values of keys.
#[test]
fn golden_kvquant_keys() {
    let Some(file) = golden("kvquant_k64") else { return };
    let (k, fisher) = (rows_of(&file, "in.k", 1, 256, 64), rows_of(&file, "in.fisher", 1, 256, 64));
    let mut checked = 0;
    for bits in [2, 3, 4] {
        for (name, outliers) in [("dense", 0.0), ("sparse1pct", 0.01)] {
            let get = |what: &str| values(&file, &format!("key_b{bits}_{name}.{what}"));
            let mine =
                KvLevels::of_keys(k.view(), Some(fisher.view()), bits, outliers, Levels::Fitted)
                    .expect("learns");
            near(&mine.lower, &get("lower"), 1e-7, "lower");
            near(&mine.upper, &get("upper"), 1e-7, "upper");
            // Theirs are a local optimum; ours lose no more.
            let loss = |points: &[f32]| {
                let mut loss = 0.0;
                for ((t, c), x) in k.indexed_iter() {
                    let x = inward(*x, (mine.lower[c], mine.upper[c]));
                    let far = points.iter().map(|p| (x - p).abs()).fold(f32::INFINITY, f32::min);
                    if x.abs() <= 1.0 {
                        loss += f64::from(fisher[[t, c]]) * f64::from(far).powi(2);
                    }
                }
                loss
            };
            let theirs = get("centroids_sorted");
            let (ours, other) = (loss(&mine.points), f64::from(get("weighted_sse")[0]));
            assert!(
                (loss(&theirs) - other).abs() < 1e-4 * other,
                "{} against {other}",
                loss(&theirs)
            );
            assert!(ours <= other * (1.0 + 1e-6), "{name} {bits}: {ours} against {other}");
            // With their levels, their values.
            let given = KvLevels { points: theirs.clone(), levels: theirs, ..mine };
            let (out, mask) = decoded(code(Vectors::Channels, bits, outliers, given), &k);
            near(&out, &get("dequant"), 1e-6, "values");
            if outliers > 0.0 {
                assert_eq!(
                    mask,
                    file.tensor(&format!("key_b{bits}_sparse1pct.outlier_mask"))
                        .expect("there")
                        .bytes()[..]
                );
            }
            checked += 1;
        }
    }
    let uniform = KvLevels::of_keys(k.view(), None, 3, 0.0, Levels::Uniform).expect("learns");
    let (out, _) = decoded(code(Vectors::Channels, 3, 0.0, uniform), &k);
    near(&out, &values(&file, "key.dequant_int3_perchannel"), 1e-5, "integers");
    println!("kvquant: 1 file, {} tensors of keys equal, losses no larger", checked + 1);
}

/// Values by token, and the known levels.
#[test]
fn golden_kvquant_values() {
    let Some(file) = golden("kvquant_k64") else { return };
    let v = rows_of(&file, "in.v", 1, 256, 64);
    let known = |points: Vec<f32>| KvLevels {
        lower: Vec::new(),
        upper: Vec::new(),
        levels: points.clone(),
        points,
    };
    let (lut, uniform) =
        (values(&file, "value.lut_b3"), Levels::Uniform.of(&[], None, 3).expect("known"));
    for (name, outliers, points) in [
        ("value_thr0.99.dequant_nuq3", 0.01, &lut),
        ("value_thr0.95.dequant_nuq3", 0.05, &lut),
        ("value_thr0.99.dequant_int3", 0.01, &uniform),
        ("value_thr0.95.dequant_int3", 0.05, &uniform),
        ("value.dequant_int3_dense", 0.0, &uniform),
    ] {
        let (out, mask) = decoded(code(Vectors::Tokens, 3, outliers, known(points.clone())), &v);
        near(&out, &values(&file, name), 2e-6, name);
        if outliers > 0.0 {
            let name = name.split(".dequant").next().expect("a name");
            let theirs = file.tensor(&format!("{name}.outlier_mask")).expect("there");
            assert_eq!(mask, theirs.bytes()[..], "{name}");
        }
    }
    // The first tokens as they are.
    let first = NuqCode { sinks: 4, ..code(Vectors::Tokens, 3, 0.01, known(lut)) };
    let mut rows = Coded::new(first);
    rows.push(v.view());
    let mut out = Array2::zeros(v.dim());
    rows.decode(0..256, out.view_mut());
    near(
        out.as_slice().expect("rows"),
        &values(&file, "value_thr0.99_first4.dequant_nuq3"),
        2e-6,
        "sinks",
    );
    for bits in [2, 3, 4] {
        near(
            &normal_levels(bits),
            &values(&file, &format!("nf_signposts_b{bits}")),
            1e-6,
            "normal",
        );
    }
    println!("kvquant: 1 file, 6 tensors of values, 2 masks and 3 tables equal");
}

/// Q-Norm gives the data's mean and spread back; without it, 2 bits shrink them.
#[test]
fn spread_is_restored() {
    let mut random = tensorpress_tensor::linalg::SplitMix::new(1);
    let x =
        Array2::from_shape_fn((128, 64), |_| (random.next_f64() + random.next_f64() - 1.0) as f32);
    let plain = KvLevels::of_keys(x.view(), None, 2, 0.01, Levels::Fitted).expect("learns");
    let inner = plain.inner(x.view(), 0.01);
    let normed = plain.clone().with_spread_of(&inner);
    let spread = |levels: &KvLevels| {
        let value = |x: &f32| {
            let at = (0..4).min_by(|a, b| {
                (x - levels.points[*a]).abs().total_cmp(&(x - levels.points[*b]).abs())
            });
            f64::from(levels.levels[at.expect("four")])
        };
        let n = inner.len() as f64;
        let mean = inner.iter().map(value).sum::<f64>() / n;
        (inner.iter().map(|x| (value(x) - mean).powi(2)).sum::<f64>() / n).sqrt()
    };
    let n = inner.len() as f64;
    let mean = inner.iter().map(|x| f64::from(*x)).sum::<f64>() / n;
    let data = (inner.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum::<f64>() / n).sqrt();
    assert!((spread(&normed) - data).abs() < 1e-5 * data);
    assert!(spread(&plain) < 0.98 * data, "{} of {data}", spread(&plain));
}
