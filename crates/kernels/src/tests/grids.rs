use super::*;
use crate::*;

/// Values on the edges of rounding and clamping, and none of the finite kind.
fn nasty(n: usize) -> Vec<f32> {
    let odd = [
        0.0,
        -0.0,
        0.5,
        1.5,
        2.5,
        -0.5,
        1e30,
        -1e30,
        f32::NAN,
        f32::INFINITY,
        f32::NEG_INFINITY,
        1e-40,
    ];
    let mut random = Random(11);
    (0..n)
        .map(|i| if i % 3 == 0 { odd[i / 3 % odd.len()] } else { 5.0 * random.normal() })
        .collect()
}

#[test]
fn codes_follow_the_definition() {
    on_every_isa(|isa| {
        for &n in SIZES {
            for (scale, zero, maxq) in
                [(1.0, 0.0, 15), (0.37, 8.0, 15), (0.5, 3.25, 7), (0.1, 128.0, 255), (0.0, 1.0, 3)]
            {
                let x = nasty(n);
                let mut codes = vec![99; n];
                quantize_affine_on(isa, &x, scale, zero, maxq, &mut codes);
                for (x, code) in x.iter().zip(&codes) {
                    let q = ((x / scale).round_ties_even() + zero).clamp(0.0, f32::from(maxq));
                    assert_eq!(*code, q as u8, "{x} / {scale} + {zero}");
                }
            }
        }
    });
}

#[test]
fn errors_follow_the_definition() {
    on_every_isa(|isa| {
        for &n in SIZES {
            let x = Random(12).normals(n);
            let scales: Vec<f32> = (1..=80).map(|i| 0.01 * i as f32).collect();
            let zeros: Vec<f32> = (1..=80).map(|i| (i % 16) as f32).collect();
            for (norm, p) in [(ErrorNorm::Square, 2.0), (ErrorNorm::Power2p4, 2.4)] {
                let mut errors = vec![0.0; 80];
                grid_errors_on(isa, &x, &scales, &zeros, 15, norm, &mut errors);
                let mut portable = vec![0.0; 80];
                grid_errors_on(Isa::Generic, &x, &scales, &zeros, 15, norm, &mut portable);
                assert_same_bits(&errors, &portable, "errors");
                for i in 0..80 {
                    let (scale, zero) = (scales[i], zeros[i]);
                    let exact: f64 = x
                        .iter()
                        .map(|x| {
                            let q = ((x / scale).round_ties_even() + zero).clamp(0.0, 15.0);
                            f64::from((scale * (q - zero) - x).abs()).powf(p)
                        })
                        .sum();
                    assert_close(&errors[i..=i], &[exact], 2e-6, "error");
                    let one = grid_error_on(isa, &x, scale, zero, 15, norm);
                    assert_eq!(one.to_bits(), errors[i].to_bits());
                }
            }
        }
    });
}

#[test]
fn odd_values_give_odd_errors_and_no_panic() {
    on_every_isa(|isa| {
        for norm in [ErrorNorm::Square, ErrorNorm::Power2p4] {
            assert!(grid_error_on(isa, &[1.0, f32::NAN], 0.1, 2.0, 7, norm).is_nan());
            assert_eq!(grid_error_on(isa, &[1.0, f32::INFINITY], 0.1, 2.0, 7, norm), f32::INFINITY);
            assert_eq!(grid_error_on(isa, &[0.0; 40], 0.1, 2.0, 7, norm), 0.0);
            assert_eq!(grid_error_on(isa, &[], 0.1, 2.0, 7, norm), 0.0);
            let _ = grid_error_on(isa, &nasty(100), 0.0, f32::NAN, 7, norm);
        }
    });
}

#[test]
fn step_errors_are_the_slow_ones() {
    for len in [0, 1, 31, 32, 33, 100, 768] {
        for step in [1e-3f32, 0.07, 1.0, 40.0] {
            let x = Random(24).normals(len);
            let changes: Vec<f64> = x
                .iter()
                .map(|&x| f64::from(x - step * (x * (1.0 / step)).round_ties_even()))
                .collect();
            let squares: f64 = changes.iter().map(|e| e * e).sum();
            let products: f64 = changes.iter().zip(&x).map(|(e, &x)| e * f64::from(x)).sum();
            let portable = step_error_on(Isa::Generic, &x, step);
            let most = 1e-6 * (squares + changes.iter().map(|e| e.abs() * 4.0).sum::<f64>());
            assert!((f64::from(portable.0) - squares).abs() <= most, "{len} {step}");
            assert!((f64::from(portable.1) - products).abs() <= most, "{len} {step}");
            for isa in Isa::available() {
                let ours = step_error_on(isa, &x, step);
                assert_same_bits(&[ours.0, ours.1], &[portable.0, portable.1], isa.name());
            }
        }
    }
    assert!(step_error(&[1.0, f32::NAN], 0.1).0.is_nan());
}
