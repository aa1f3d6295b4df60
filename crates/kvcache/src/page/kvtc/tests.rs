use ndarray::{Array3, s};
use tensorpress_tensor::ErrorKind;
use tensorpress_tensor::linalg::gaussian;
use tensorpress_tensor::ndarray;

use super::plane::allocate;
use super::{Kvtc, KvtcConfig};

/// Heads that share a few directions.
fn rows(n: usize, seed: u64) -> Array3<f32> {
    let value = |i: usize, j: usize, s| gaussian(s, (i * 32 + j) as u64) as f32;
    Array3::from_shape_fn((n, 4, 8), |(t, h, c)| {
        let shared: f32 = (0..3).map(|i| value(t, i, seed) * value(i, h * 8 + c, 99)).sum();
        shared + 0.05 * value(t, h * 8 + c, seed + 1) + 0.5
    })
}

fn error(x: &Array3<f32>, y: &Array3<f32>) -> f64 {
    let square = |x: Array3<f32>| x.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>();
    square(x - y) / square(x.clone())
}

/// Against every way to spend the bits, and the sum of losses they give.
#[test]
fn bits_go_where_they_serve_best() {
    let variances = [9.0, 4.0, 1.0, 0.3, 0.01];
    // What a normal number loses on an even grid (Max, 1960).
    let loss = [1.0, 0.3634, 0.1188, 0.03744, 0.01154];
    let of =
        |bits: &[usize]| -> f64 { bits.iter().zip(variances).map(|(b, v)| v * loss[*b]).sum() };
    for budget in [0, 1, 3, 7, 11, 20] {
        let mut best = f64::INFINITY;
        for code in 0..5usize.pow(5) {
            let bits: Vec<usize> = (0..5).map(|i| code / 5usize.pow(i) % 5).collect();
            if bits.iter().sum::<usize>() <= budget {
                best = best.min(of(&bits));
            }
        }
        let mine: Vec<usize> =
            allocate(&variances, budget, 4).into_iter().map(|b| b as usize).collect();
        assert!(mine.iter().sum::<usize>() <= budget);
        assert!((of(&mine) / best - 1.0).abs() < 2e-3, "{budget}: {mine:?}");
    }
}

#[test]
fn components_of_all_heads_in_few_bytes() {
    let (train, x) = (rows(600, 1), rows(256, 5));
    let codec = Kvtc::fit(train.view(), train.view(), KvtcConfig::default().with_bits(0.5, 1.0));
    let codec = codec.expect("fits");
    let page = codec.encode(x.view(), x.view()).expect("encodes");
    let (k, v) = codec.decode(&page).expect("decodes");
    // Three directions hold nearly all; 16 and 32 bits a token, the header and the streams' ends beside.
    assert!(page.len() < 256 * (16 + 32) / 8 + 64, "{} bytes", page.len());
    let (keys, values) = (error(&x, &k), error(&x, &v));
    assert!(keys < 0.01 && values < 0.005 && values < keys, "{keys} {values}");
    let held = codec.bits()[0];
    assert!(held.len() < 8 && held[..3].iter().all(|bits| *bits > 3), "{held:?}");
    // The same page on an equal codec; fewer tokens, and none.
    let again = Kvtc::from_bytes(&codec.to_bytes()).expect("reads");
    assert_eq!(again, codec);
    assert_eq!(again.encode(x.view(), x.view()).expect("encodes"), page);
    assert_eq!(again.decode(&page).expect("decodes"), (k, v));
    for n in [0, 1, 7] {
        let some = x.slice(s![..n, .., ..]);
        let page = codec.encode(some, some).expect("encodes");
        let (k, v) = codec.decode(&page).expect("decodes");
        assert_eq!((k.dim(), v.dim()), ((n, 4, 8), (n, 4, 8)));
    }
}

#[test]
fn what_is_wrong_is_said() {
    let x = rows(100, 1);
    let fit = |config| Kvtc::fit(x.view(), x.view(), config);
    let codec = fit(KvtcConfig::default()).expect("fits");
    let kind = |e: tensorpress_tensor::Error| e.kind();
    for bits in [(0.0, 1.0), (1.0, 9.0), (f64::NAN, 1.0)] {
        let error = fit(KvtcConfig::default().with_bits(bits.0, bits.1)).unwrap_err();
        assert_eq!(kind(error), ErrorKind::InvalidArgument);
    }
    let one = x.slice(s![..1, .., ..]);
    let none = Kvtc::fit(one, one, KvtcConfig::default()).unwrap_err();
    assert_eq!(kind(none), ErrorKind::InvalidArgument);
    let narrow = x.slice(s![.., ..3, ..]);
    let shape = codec.encode(narrow, x.view()).unwrap_err();
    assert_eq!(kind(shape), ErrorKind::ShapeMismatch);
    let mut nan = x.clone();
    nan[[3, 1, 2]] = f32::NAN;
    assert_eq!(kind(codec.encode(nan.view(), x.view()).unwrap_err()), ErrorKind::Numerical);
    let page = codec.encode(x.view(), x.view()).expect("encodes");
    let other = fit(KvtcConfig::default().with_bits(3.0, 1.0)).expect("fits");
    assert_eq!(kind(other.decode(&page).unwrap_err()), ErrorKind::InvalidArgument);
    for (bytes, read) in [
        (page, &(|b: &[u8]| codec.decode(b).map(|_| ())) as &dyn Fn(&[u8]) -> _),
        (codec.to_bytes(), &|b: &[u8]| Kvtc::from_bytes(b).map(|_| ())),
    ] {
        let step = bytes.len() / 97 + 1;
        for at in (0..bytes.len()).step_by(step) {
            read(&bytes[..at]).expect_err("cut");
            let mut flipped = bytes.clone();
            flipped[at] ^= 1;
            read(&flipped).expect_err("flipped");
        }
    }
}

/// What channels hold is what variance they have: constant ones have no component, and all constant is nothing to hold.
#[test]
fn nothing_to_hold_is_held() {
    let x = Array3::from_elem((50, 2, 4), 3.5);
    let codec = Kvtc::fit(x.view(), x.view(), KvtcConfig::default()).expect("fits");
    let page = codec.encode(x.view(), x.view()).expect("encodes");
    assert_eq!(codec.decode(&page).expect("decodes").0, x);
    assert!(codec.bits()[0].is_empty() && page.len() < 40);
}
