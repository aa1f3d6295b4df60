use proptest::prelude::*;

use super::*;
use crate::*;

/// Bit `b` of the stream, by the definition.
fn bit(packed: &[u8], b: usize) -> u8 {
    packed[b / 8] >> (b % 8) & 1
}

fn check_packing(isa: Isa, codes: &[u8], bits: u32) {
    let len = packed_len(codes.len(), bits);
    assert_eq!(len, (codes.len() * bits as usize).div_ceil(8));
    // A byte too many, which must stay as it is.
    let mut packed = vec![0xa5; len + 1];
    pack_bits_on(isa, codes, bits, &mut packed);
    assert_eq!(packed[len], 0xa5);
    for b in 0..8 * len {
        let expected = codes.get(b / bits as usize).map_or(0, |c| c >> (b % bits as usize) & 1);
        assert_eq!(bit(&packed, b), expected, "{isa} {bits} bits, bit {b}");
    }
    let packed = &packed[..len];
    for start in [0, 1, 3, 8, 13, 64, 100] {
        for short in [0, 1, 2, 9] {
            let Some(n) = codes.len().checked_sub(start + short) else { continue };
            let mut out = vec![0xee; n];
            unpack_bits_on(isa, packed, bits, start, &mut out);
            assert_eq!(out, &codes[start..start + n], "{isa} {bits} bits from {start}");
        }
    }
}

#[test]
fn packing_follows_the_definition() {
    on_every_isa(|isa| {
        for bits in 1..=8 {
            for &n in SIZES {
                check_packing(isa, &Random(n as u64).codes(n, bits), bits);
            }
        }
    });
}

#[test]
fn surplus_bits_are_ignored() {
    on_every_isa(|isa| {
        let mut packed = [0; 15];
        pack_bits_on(isa, &[0xff; 20], 3, &mut packed);
        assert_eq!(&packed[..8], &[255, 255, 255, 255, 255, 255, 255, 15]);
        assert_eq!(code_at(&packed, 3, 19), 7);
    });
}

#[test]
#[should_panic(expected = "too short")]
fn a_short_row_is_refused() {
    unpack_bits(&[0; 3], 4, 1, &mut [0; 6]);
}

#[test]
#[should_panic(expected = "too short")]
fn a_huge_start_is_refused() {
    unpack_bits(&[0; 3], 8, usize::MAX, &mut [0; 1]);
}

#[test]
fn decoding_is_the_same_everywhere() {
    on_every_isa(|isa| {
        for bits in 1..=8 {
            for group in [1, 5, 8, 32, 100, 128, 5000] {
                for (start, n) in [(0, 1100), (3, 700), (64, 128), (127, 1), (10, 0)] {
                    let mut random = Random(9);
                    let codes = random.codes(start + n, bits);
                    let mut packed = vec![0; packed_len(codes.len(), bits)];
                    pack_bits(&codes, bits, &mut packed);
                    let groups = codes.len().div_ceil(group);
                    let (scales, zeros) = (random.normals(groups), random.normals(groups));
                    let mut out = vec![1.25; n];
                    let exact: Vec<f32> = (start..start + n)
                        .map(|j| scales[j / group] * (f32::from(codes[j]) - zeros[j / group]))
                        .collect();
                    decode_affine_on(
                        isa, &packed, bits, start, &scales, &zeros, group, &mut out, true,
                    );
                    let sum: Vec<f32> = exact.iter().map(|v| 1.25 + v).collect();
                    assert_same_bits(&out, &sum, "decode, accumulating");
                    decode_affine_on(
                        isa, &packed, bits, start, &scales, &zeros, group, &mut out, false,
                    );
                    assert_same_bits(&out, &exact, "decode");
                }
            }
        }
    });
}

#[test]
fn products_of_packed_rows() {
    on_every_isa(|isa| {
        for bits in [1, 2, 3, 4, 5, 8] {
            for (rows, cols, group) in [
                (1, 1, 1),
                (3, 64, 64),
                (17, 300, 128),
                (33, 129, 32),
                (5, 200, 7),
                (2, 1030, 2000),
            ] {
                for t in [1, 2, 3, 4, 7, 9, 16] {
                    check_rows(isa, bits, rows, cols, group, t);
                }
            }
        }
        check_rows(isa, 4, 0, 64, 32, 2);
        check_rows(isa, 4, 3, 0, 32, 2);
        check_rows(isa, 4, 3, 64, 32, 0);
    });
}

fn check_rows(isa: Isa, bits: u32, rows: usize, cols: usize, group: usize, t: usize) {
    let mut random = Random(10);
    let bytes = packed_len(cols, bits);
    let mut packed = vec![0; rows * bytes];
    let groups = cols.div_ceil(group);
    let scales: Vec<f32> = random.normals(rows * groups);
    let zeros: Vec<f32> = random.codes(rows * groups, bits).into_iter().map(f32::from).collect();
    let mut dense = vec![0.0; rows * cols];
    for r in 0..rows {
        let codes = random.codes(cols, bits);
        pack_bits(&codes, bits, &mut packed[r * bytes..(r + 1) * bytes]);
        for j in 0..cols {
            let g = r * groups + j / group;
            dense[r * cols + j] = scales[g] * (f32::from(codes[j]) - zeros[g]);
        }
    }
    let x = random.normals(t * cols);
    let exact: Vec<f64> = (0..t * rows)
        .map(|i| {
            let (token, r) = (i / rows, i % rows);
            let pairs = x[token * cols..(token + 1) * cols].iter().zip(&dense[r * cols..]);
            pairs.map(|(&x, &w)| f64::from(x) * f64::from(w)).sum()
        })
        .collect();
    let w = AffineRows { packed: &packed, bits, rows, cols, group, scales: &scales, zeros: &zeros };
    let mut y = vec![f32::NAN; t * rows];
    affine_matmul(&w, 0..rows, &x, t, &mut y, false, &mut Work::on(isa, Par::Seq));
    assert_close(&y, &exact, 1e-5, &format!("{isa} {bits} bits {rows}x{cols}/{group} t={t}"));
    let mut parallel = vec![0.0; t * rows];
    let mut work = Work::on(isa, Par::Threads(2));
    affine_matmul(&w, 0..rows, &x, t, &mut parallel, true, &mut work);
    assert_same_bits(&y, &parallel, "in parallel");
    in_pieces(rows, t, &y, "rows", |some, y| affine_matmul(&w, some, &x, t, y, true, &mut work));
}

#[test]
fn wide_codes_lie_in_the_stream_as_defined() {
    for bits in 9..=16 {
        for n in [0, 1, 2, 7, 8, 9, 63, 200] {
            let codes: Vec<u16> =
                (0..n).map(|i| (i as u32 * 40_503 + 977) as u16 >> (16 - bits)).collect();
            let len = packed_len(n, bits);
            assert_eq!(len, (n * bits as usize).div_ceil(8));
            let mut packed = vec![0xa5; len + 1];
            pack_wide(&codes, bits, &mut packed);
            assert_eq!(packed[len], 0xa5);
            for b in 0..8 * len {
                let code = codes.get(b / bits as usize).map_or(0, |c| c >> (b % bits as usize) & 1);
                assert_eq!(u16::from(bit(&packed, b)), code, "{bits} bits, bit {b}");
            }
            for start in 0..=n.min(20) {
                let mut out = vec![0xeeee; n - start];
                unpack_wide(&packed[..len], bits, start, &mut out);
                assert_eq!(out, &codes[start..], "{bits} bits from {start}");
            }
        }
    }
}

proptest! {
    #[test]
    fn any_codes_come_back(
        codes in proptest::collection::vec(any::<u8>(), 0..400),
        bits in 1u32..=8,
        cut in 0usize..400,
    ) {
        let codes: Vec<u8> = codes.into_iter().map(|c| c >> (8 - bits)).collect();
        for isa in Isa::available() {
            let mut packed = vec![0; packed_len(codes.len(), bits)];
            pack_bits_on(isa, &codes, bits, &mut packed);
            let start = cut.min(codes.len());
            let mut out = vec![0; codes.len() - start];
            unpack_bits_on(isa, &packed, bits, start, &mut out);
            prop_assert_eq!(&out, &codes[start..]);
        }
    }
}
