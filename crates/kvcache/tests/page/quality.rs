use ndarray::Array3;
use tensorpress_kvcache::page::{PageCodec, PageConfig, PageScratch};
use tensorpress_tensor::half::{bf16, f16};
use tensorpress_tensor::linalg::gaussian;
use tensorpress_tensor::{DType, ndarray};

use crate::{decode, encode};

/// Keys as models have them: normal numbers, a few channels `factor` times larger for every token.
fn keys(tokens: usize, heads: usize, dim: usize, factor: f64, seed: u64) -> Array3<f32> {
    Array3::from_shape_fn((tokens, heads, dim), |(t, h, c)| {
        let i = ((t * heads + h) * dim + c) as u64;
        let large = (c + 5 * h) % 43 == 7;
        (gaussian(seed, i) * if large { factor } else { 1.0 }) as f32
    })
}

/// Mean square error of the keys over their mean square.
fn error(config: PageConfig, x: &Array3<f32>) -> f64 {
    let codec = PageCodec::new(config).expect("a codec");
    let none = Array3::zeros((x.dim().0, x.dim().1, 0));
    let [decoded, _] = decode(&codec, &encode(&codec, &[x.clone(), none]));
    let square = |x: f32| f64::from(x) * f64::from(x);
    let wrong: f64 = decoded.iter().zip(x).map(|(a, b)| square(a - b)).sum();
    wrong / x.iter().map(|x| square(*x)).sum::<f64>()
}

#[test]
fn rotations_help_where_channels_stand_out() {
    for (dim, bits) in [(64, 4), (96, 4), (128, 3), (128, 4), (128, 6), (576, 4)] {
        let config = PageConfig::new(64, 2, dim).with_value_dim(0).with_bits(bits, bits);
        let both = |factor| {
            let x = keys(64, 2, dim, factor, 1);
            [true, false].map(|rotate| error(config.with_rotate(rotate), &x))
        };
        let [rotated, plain] = both(20.0);
        println!("{dim} channels, {bits} bits, outliers: rotated {rotated:.5}, not {plain:.5}");
        assert!(rotated < 0.6 * plain, "{dim}: {rotated} {plain}");
        // Nothing stands out: nothing is gained, and nothing lost.
        let [rotated, plain] = both(1.0);
        println!("{dim} channels, {bits} bits, normal: rotated {rotated:.5}, not {plain:.5}");
        assert!((0.9..1.1).contains(&(rotated / plain)), "{dim}: {rotated} {plain}");
    }
}

/// A bit more is about a quarter of the error, whatever the type of scales; more bits never hurt.
#[test]
fn bits_buy_accuracy() {
    let x = keys(64, 2, 128, 20.0, 2);
    for symmetric in [false, true] {
        for group in [32, 64, 128] {
            let errors: Vec<f64> = (2..=8)
                .map(|bits| {
                    let config = PageConfig::new(64, 2, 128).with_value_dim(0).with_bits(bits, 2);
                    error(config.with_group(group).with_symmetric(symmetric), &x)
                })
                .collect();
            println!("symmetric {symmetric}, group {group}: {errors:.6?}");
            for pair in errors.windows(2) {
                assert!(pair[1] < 0.4 * pair[0], "{errors:?}");
            }
            assert!(errors[2] < 0.02 && errors[6] < 1e-4, "{errors:?}");
        }
    }
}

/// Zeros stay zeros and constants stay what scales hold; the ends of every type come back finite.
#[test]
fn extremes_come_back() {
    for (symmetric, rotate) in [(false, false), (false, true), (true, false), (true, true)] {
        let config = PageConfig::new(2, 1, 32).with_symmetric(symmetric).with_rotate(rotate);
        let codec = PageCodec::new(config).expect("a codec");
        let same = |value: f32| [0, 1].map(|_| Array3::from_elem((2, 1, 32), value));
        assert_eq!(decode(&codec, &encode(&codec, &same(0.0))), same(0.0));
        // Less than the smallest f16, up to the smallest f32.
        for tiny in [1e-9, f32::from_bits(1)] {
            let [k, _] = decode(&codec, &encode(&codec, &same(tiny)));
            assert!(k.iter().all(|x| x.abs() < 1e-6));
        }
        if !symmetric && !rotate {
            assert_eq!(decode(&codec, &encode(&codec, &same(-1.5))), same(-1.5));
        }
        let ends = |most: f32| {
            [3, 5].map(|i| {
                Array3::from_shape_fn((2, 1, 32), |(_, _, c)| if c % i == 0 { -most } else { most })
            })
        };
        // The largest f16 in and out.
        let wide = PageCodec::new(config.with_scales(DType::F32).with_bits(8, 8)).expect("a codec");
        let [k, v] = ends(65504.0).map(|x| x.mapv(f16::from_f32));
        let (mut page, mut scratch) = (vec![0; wide.page_bytes()], PageScratch::default());
        wide.encode(k.view(), v.view(), &mut page, &mut scratch).expect("encodes");
        let [mut k2, mut v2] = [k.clone(), v.clone()];
        k2.fill(f16::ZERO);
        wide.decode(&page, k2.view_mut(), v2.view_mut(), &mut scratch).expect("decodes");
        assert!(k2.iter().chain(&v2).all(|x| x.is_finite()));
        assert!(k2.iter().zip(&k).all(|(a, b)| (a.to_f32() - b.to_f32()).abs() < 2000.0));
        // The largest that is taken at all.
        let most = 2f32.powi(96);
        for scales in [DType::F32, DType::BF16] {
            let codec =
                PageCodec::new(config.with_scales(scales).with_bits(8, 8)).expect("a codec");
            let x = ends(most);
            for (x, out) in x.iter().zip(decode(&codec, &encode(&codec, &x))) {
                assert!(x.iter().zip(&out).all(|(a, b)| (a - b).abs() < 0.1 * most));
                assert!(out.iter().all(|x| bf16::from_f32(*x).is_finite()));
            }
        }
    }
}
