use super::*;
use crate::*;

#[test]
fn exp_is_accurate() {
    for i in -86_900..87_900 {
        let x = i as f32 * 1e-3;
        let exact = f64::from(x).exp();
        assert!((f64::from(exp(x)) / exact - 1.0).abs() < 5e-7, "{x}");
    }
    assert_eq!(exp(0.0), 1.0);
    assert!(exp(f32::NAN).is_nan());
}

#[test]
fn no_probability_is_subnormal() {
    on_every_isa(|isa| {
        let mut values: Vec<f32> = (0..2000).map(|i| i as f32 * -0.1).collect();
        softmax_on(isa, &mut values, 1.0);
        assert!(values.iter().all(|p| *p == 0.0 || p.is_normal()));
        assert!(values[600] > 0.0 && values[700] == 0.0);
        let mut bad = [1.0, f32::NAN, 0.0];
        softmax_on(isa, &mut bad, 1.0);
        assert!(bad.iter().all(|p| p.is_nan()));
    });
}

/// Against f64, and bit by bit what the portable code gives.
#[test]
fn softmax_and_its_kin_at_every_length() {
    on_every_isa(|isa| {
        for &n in SIZES {
            let values = Random(n as u64).normals(n);
            let most = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            assert_eq!(maximum_on(isa, &values), most);
            let exact: f64 = values.iter().map(|v| f64::from(*v).exp()).sum();
            let found = log_sum_exp_on(isa, &values);
            assert!(n == 0 || (found - exact.ln()).abs() < 1e-6, "{n}");
            assert_eq!(found.to_bits(), log_sum_exp_on(Isa::Generic, &values).to_bits());
            let scaled: Vec<f64> = values.iter().map(|v| (0.5 * f64::from(*v)).exp()).collect();
            let sum: f64 = scaled.iter().sum();
            let exact: Vec<f64> = scaled.iter().map(|p| p / sum).collect();
            let (mut p, mut portable) = (values.clone(), values.clone());
            softmax_on(isa, &mut p, 0.5);
            softmax_on(Isa::Generic, &mut portable, 0.5);
            assert_close(&p, &exact, 1e-6, "softmax");
            assert_same_bits(&p, &portable, "softmax");
            let swished = |v: &f32| f64::from(*v) / (1.0 + (-1.702 * f64::from(*v)).exp());
            let exact: Vec<f64> = values.iter().map(swished).collect();
            let (mut y, mut portable) = (values.clone(), values.clone());
            swish_on(isa, &mut y, 1.702);
            swish_on(Isa::Generic, &mut portable, 1.702);
            assert_close(&y, &exact, 1e-6, "swish");
            assert_same_bits(&y, &portable, "swish");
        }
    });
}
