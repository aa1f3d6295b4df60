use half::{bf16, f16};

use super::*;
use crate::*;

fn product(x: &[f32], w: &[f32], t: usize, n: usize, k: usize) -> Vec<f64> {
    let entry = |i: usize, r: usize| {
        (0..k).map(|j| f64::from(x[i * k + j]) * f64::from(w[r * k + j])).sum()
    };
    (0..t).flat_map(|i| (0..n).map(move |r| (i, r))).map(|(i, r)| entry(i, r)).collect()
}

#[test]
fn dot_and_axpy() {
    on_every_isa(|isa| {
        for &n in SIZES {
            // An odd offset makes the slices unaligned.
            let (a, b) = (Random(1).normals(n + 1), Random(2).normals(n + 3));
            let (a, b) = (&a[1..], &b[3..]);
            let exact: f64 = a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum();
            assert!((f64::from(dot_on(isa, a, b)) - exact).abs() < 1e-5 * (n as f64 + 1.0), "{n}");
            assert!((dot_f64_on(isa, a, b) - exact).abs() < 1e-12 * (n as f64 + 1.0), "{n}");
            let mut y = b.to_vec();
            axpy_on(isa, -1.5, a, &mut y);
            let exact: Vec<f64> =
                a.iter().zip(b).map(|(&a, &b)| f64::from(b) - 1.5 * f64::from(a)).collect();
            assert_close(&y, &exact, 1e-6, "axpy");
        }
    });
}

#[test]
fn gemm_and_gemv() {
    on_every_isa(|isa| {
        for &k in &[0, 1, 7, 16, 33, 64, 129, 300] {
            for &n in &[0, 1, 3, 4, 5, 8, 13] {
                for t in [0, 1, 2, 3, 4, 5, 9, 17] {
                    let (x, w) = (Random(3).normals(t * k), Random(4).normals(n * k));
                    let exact = product(&x, &w, t, n, k);
                    let mut y = vec![f32::NAN; t * n];
                    gemm_nt_on(isa, &x, &w, t, n, k, &mut y, false);
                    assert_near(&y, &exact, 1e-6 * (1.0 + k as f64), "gemm");
                    gemm_nt_on(isa, &x, &w, t, n, k, &mut y, true);
                    let twice: Vec<f64> = exact.iter().map(|v| 2.0 * v).collect();
                    assert_near(&y, &twice, 1e-6 * (1.0 + k as f64), "gemm, accumulating");
                    // An entry does not depend on the pieces a product is cut into.
                    for i in 0..t {
                        let mut row = vec![0.0; n];
                        gemv_on(isa, &w, n, k, &x[i * k..(i + 1) * k], &mut row);
                        gemm_nt_on(isa, &x, &w, t, n, k, &mut y, false);
                        assert_same_bits(&row, &y[i * n..(i + 1) * n], "a piece of the product");
                    }
                }
            }
        }
    });
}

#[test]
fn nan_stays_where_it_belongs() {
    on_every_isa(|isa| {
        let mut w = Random(5).normals(3 * 40);
        w[45] = f32::NAN;
        let mut y = [0.0; 3];
        gemv_on(isa, &w, 3, 40, &[1.0; 40], &mut y);
        assert_eq!(y.map(f32::is_nan), [false, true, false]);
    });
}

#[test]
fn every_half_widens() {
    let all: Vec<u16> = (0..=u16::MAX).collect();
    let bytes: Vec<u8> =
        std::iter::once(0).chain(all.iter().flat_map(|h| h.to_le_bytes())).collect();
    on_every_isa(|isa| {
        let mut wide = vec![0.0; all.len()];
        let mut from_bytes = vec![0.0; all.len()];
        let halves: Vec<bf16> = all.iter().map(|&h| bf16::from_bits(h)).collect();
        bf16_to_f32_on(isa, &halves, &mut wide);
        bf16_bytes_to_f32_on(isa, &bytes[1..], &mut from_bytes);
        assert_same_bits(&wide, &from_bytes, "bf16 from bytes");
        for (wide, half) in wide.iter().zip(&halves) {
            assert!(wide.is_nan() == half.is_nan() && (wide.is_nan() || *wide == half.to_f32()));
        }
        let halves: Vec<f16> = all.iter().map(|&h| f16::from_bits(h)).collect();
        f16_to_f32_on(isa, &halves, &mut wide);
        f16_bytes_to_f32_on(isa, &bytes[1..], &mut from_bytes);
        assert_same_bits(&wide, &from_bytes, "f16 from bytes");
        for (wide, half) in wide.iter().zip(&halves) {
            assert!(wide.is_nan() == half.is_nan() && (wide.is_nan() || *wide == half.to_f32()));
        }
        let mut portable = vec![0.0; all.len()];
        f16_to_f32_on(Isa::Generic, &halves, &mut portable);
        assert_same_bits(&wide, &portable, "f16 against the portable code");
    });
}

#[test]
fn floats_narrow() {
    // Random bits reach every exponent, NaN and infinity; the others lie on the edges of rounding.
    let mut random = Random(6);
    let mut values: Vec<f32> = (0..100_003).map(|_| f32::from_bits(random.word() as u32)).collect();
    for base in 0..=u16::MAX {
        for v in [f16::from_bits(base).to_f32(), bf16::from_bits(base).to_f32()] {
            let bits = v.to_bits();
            let half_way = [bits ^ 0x1000, bits ^ 0x8000, bits ^ 0x1001, bits ^ 0x8001, bits];
            values.extend(half_way.map(f32::from_bits));
        }
    }
    on_every_isa(|isa| {
        let (mut brain, mut half) = (vec![bf16::ZERO; values.len()], vec![f16::ZERO; values.len()]);
        f32_to_bf16_on(isa, &values, &mut brain);
        f32_to_f16_on(isa, &values, &mut half);
        for (i, v) in values.iter().enumerate() {
            if v.is_nan() {
                assert!(brain[i].is_nan() && half[i].is_nan(), "{:x}", v.to_bits());
            } else {
                assert_eq!(brain[i].to_bits(), bf16::from_f32(*v).to_bits(), "{v}");
                assert_eq!(half[i].to_bits(), f16::from_f32(*v).to_bits(), "{v}");
            }
        }
        let mut bytes = vec![0; 2 * values.len() + 1];
        f32_to_bf16_bytes_on(isa, &values, &mut bytes[1..]);
        assert!(bytes[1..].chunks(2).zip(&brain).all(|(b, v)| b == v.to_le_bytes()));
        f32_to_f16_bytes_on(isa, &values, &mut bytes[1..]);
        assert!(bytes[1..].chunks(2).zip(&half).all(|(b, v)| b == v.to_le_bytes()));
        let mut portable = vec![f16::ZERO; values.len()];
        f32_to_f16_on(Isa::Generic, &values, &mut portable);
        assert!(portable.iter().zip(&half).all(|(a, b)| a.to_bits() == b.to_bits()));
    });
}

#[test]
fn short_conversions() {
    on_every_isa(|isa| {
        for &n in SIZES {
            let values = Random(7).normals(n);
            let mut half = vec![f16::ZERO; n];
            f32_to_f16_on(isa, &values, &mut half);
            let mut back = vec![0.0; n];
            f16_to_f32_on(isa, &half, &mut back);
            assert!(back.iter().zip(&half).all(|(a, b)| *a == b.to_f32()));
            assert!(values.iter().zip(&half).all(|(a, b)| f16::from_f32(*a) == *b));
        }
    });
}

#[test]
fn extremes() {
    on_every_isa(|isa| {
        for &n in SIZES {
            let mut x = Random(8).normals(n);
            let low = x.iter().copied().fold(f32::INFINITY, f32::min);
            let high = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let most = x.iter().copied().fold(0.0, |m: f32, v| m.max(v.abs()));
            assert_eq!(minmax_on(isa, &x), (low, high));
            assert_eq!(abs_max_on(isa, &x), most);
            assert!(!has_non_finite_on(isa, &x));
            for odd in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                if let Some(place) = n.checked_sub(3) {
                    x[place] = odd;
                    assert!(has_non_finite_on(isa, &x));
                    x[place] = 0.0;
                }
            }
            if n > 0 {
                x[n / 2] = f32::NAN;
                let (low, high) = minmax_on(isa, &x);
                assert!(!low.is_nan() && !high.is_nan() && !abs_max_on(isa, &x).is_nan());
            }
        }
    });
}
