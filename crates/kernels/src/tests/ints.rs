use super::*;
use crate::*;

#[test]
fn integer_dots_are_exact() {
    on_every_isa(|isa| {
        for &n in SIZES {
            let mut random = Random(n as u64);
            let unsigned: Vec<u8> = (0..n + 1).map(|_| random.byte()).collect();
            let signed: Vec<i8> = (0..n + 1).map(|_| random.byte() as i8).collect();
            let other: Vec<i8> = (0..n).map(|_| random.byte() as i8).collect();
            let (unsigned, signed) = (&unsigned[1..], &signed[1..]);
            let exact: i32 = signed.iter().zip(&other).map(|(&a, &b)| a as i32 * b as i32).sum();
            assert_eq!(dot_i8_on(isa, signed, &other), exact, "{n}");
            let exact: i32 = unsigned.iter().zip(&other).map(|(&a, &b)| a as i32 * b as i32).sum();
            assert_eq!(dot_u8_i8_on(isa, unsigned, &other), exact, "{n}");
        }
    });
}

#[test]
fn nothing_saturates() {
    on_every_isa(|isa| {
        for n in [64, 4096, 65_536] {
            let low = vec![-128i8; n];
            assert_eq!(dot_i8_on(isa, &low, &low), 16_384 * n as i32);
            assert_eq!(
                dot_u8_i8_on(isa, &vec![255; n], &low),
                -32_640i64.wrapping_mul(n as i64) as i32
            );
            assert_eq!(dot_u8_i8_on(isa, &vec![255; n], &vec![127; n]), 32_385 * n as i32);
        }
    });
}
